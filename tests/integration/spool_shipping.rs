//! From the spool to storage: in order, on the right line, proven before anything is removed.

use std::fs;
use std::sync::Arc;

use lifeboat::error::{Error, ErrorKind};
use lifeboat::lineage::{Fork, Standing};
use lifeboat::restore::Target;
use lifeboat::snapshot::{DatabaseId, Flag, Kind, Manifest};
use lifeboat::spool::{self, Published, Shipped};
use lifeboat::storage::{Fault, How, Operation, whole};

use crate::support::harbour::{Harbour, LIMITS, ids};

async fn listed(harbour: &Harbour) -> Vec<Manifest> {
    harbour.lab.catalog().list().await.expect("listed").snapshots
}

#[tokio::test(flavor = "multi_thread")]
async fn everything_is_shipped_in_order_proven_and_then_gone_from_here() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let mut waits = Vec::new();
    for _ in 0..3 {
        waits.push(harbour.take(&spool).await);
    }
    assert_eq!(waits[0].database_id, DatabaseId::unknown());
    for manifest in &waits {
        let shipped = harbour.ship(&spool, &Standing::head(1)).await.expect("shipped").expect("it waits");
        assert!(matches!(&shipped, Shipped::Proven(shipped, _) if shipped.id == manifest.id), "{shipped:?}");
        assert_eq!(harbour.head().await.as_ref(), Some(&manifest.id));
        assert!(harbour.lab.catalog().proof(&manifest.id).await.expect("read").is_some());
    }
    assert!(harbour.ship(&spool, &Standing::head(1)).await.expect("asked").is_none());
    assert_eq!((spool.state().snapshots, spool.state().reasons()), (0, vec![]));
    assert_eq!(harbour.files().len(), 1, "{:?}", harbour.files());
    let identity = harbour.lab.catalog().identity().await.expect("read").expect("made");
    for (stored, waited) in listed(&harbour).await.iter().rev().zip(&waits) {
        assert_eq!(
            (stored.plain, stored.stored, stored.taken_at),
            (waited.plain, waited.stored, waited.taken_at)
        );
        assert_eq!((&stored.database_id, stored.epoch), (&identity.database_id, 1));
    }
    assert_eq!(listed(&harbour).await[0].parent.as_ref(), Some(&waits[1].id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failure_at_any_request_leaves_it_here_and_the_next_try_goes_on() {
    use Operation::{Create, Head, Read, ReadRange, Replace};
    for operation in [Create, Replace, Read, ReadRange, Head] {
        for after in [false, true] {
            for nth in 1.. {
                let harbour = Harbour::new().await;
                let spool = harbour.spool(LIMITS);
                let waits = harbour.take(&spool).await;
                let kind = ErrorKind::Unavailable;
                let how = if after { How::After(kind) } else { How::Before(kind) };
                harbour.storage.script(Fault::at(operation, nth, how));
                let failed = harbour.ship(&spool, &Standing::head(1)).await;
                if !harbour.storage.is_spent() {
                    failed.expect("no request has that number");
                    break;
                }
                if let Err(error) = &failed {
                    assert_eq!(error.kind(), ErrorKind::Unavailable, "{operation:?} {nth}");
                    assert_eq!(ids(&spool.contents().await.expect("readable").waiting), [&waits.id]);
                    assert!(spool.state().reasons()[0].contains("scripted"), "{:?}", spool.state());
                    assert_eq!(ids(&harbour.ship_all(&spool).await), [&waits.id], "{operation:?} {nth}");
                }
                assert_eq!(harbour.head().await, Some(waits.id), "{operation:?} {nth} {after}");
                assert_eq!(spool.state().snapshots, 0);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_flipped_byte_is_never_shipped_and_keeps_nobody_else() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let (first, second) = (harbour.take(&spool).await, harbour.take(&spool).await);
    let data = harbour.folder().join(first.data_key().path());
    let mut bytes = fs::read(&data).expect("read");
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    fs::write(&data, &bytes).expect("written");
    assert_eq!(ids(&harbour.ship_all(&spool).await), [&second.id]);
    assert_eq!(ids(&listed(&harbour).await), [&second.id]);
    assert_eq!(harbour.lab.catalog().objects(Kind::Snapshots).await.expect("listed").len(), 1);
    let state = spool.state();
    assert_eq!((state.snapshots, state.stuck, state.has_to_ship()), (1, 1, false));
    let told = state.reasons().join(" ");
    assert!(told.contains(first.id.as_str()) && told.contains("cannot be shipped"), "{told}");
    assert_eq!(fs::read(&data).expect("still there"), bytes);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_storage_does_not_hold_as_sent_stays_here() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let waits = harbour.take(&spool).await;
    // As left by a crash, but with other bytes of the same length.
    let other = vec![7; waits.stored.bytes as usize];
    harbour.lab.storage.create(&waits.data_key(), whole(other)).await.expect("stored");
    assert!(harbour.ship_all(&spool).await.is_empty());
    let told = spool.state().reasons().join(" ");
    assert!(told.contains("was shipped, but is not proven") && told.contains(waits.id.as_str()), "{told}");
    assert_eq!(ids(&spool.contents().await.expect("readable").waiting), [&waits.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_can_never_be_shipped_keeps_nothing_else_back() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let first = harbour.take(&spool).await;
    let second = harbour.take(&spool).await;
    let third = harbour.take(&spool).await;
    // Other data of another length in the place of one, a damaged manifest in the place of another.
    let storage = &harbour.lab.storage;
    let longer = vec![7; first.stored.bytes as usize + 1];
    storage.create(&first.data_key(), whole(longer)).await.expect("stored");
    storage.create(&second.key(), whole("{")).await.expect("stored");
    assert_eq!(ids(&harbour.ship_all(&spool).await), [&third.id]);
    let told = spool.state().reasons().join(" ");
    assert!(told.contains(first.id.as_str()) && told.contains(second.id.as_str()), "{told}");
    assert!(!spool.state().has_to_ship());
    assert_eq!(ids(&spool.contents().await.expect("readable").waiting), [&first.id, &second.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_fenced_writer_ships_nothing_and_a_branch_ships_as_a_branch() {
    let harbour = Harbour::new().await;
    let published = harbour.lab.stored(&harbour.lab.path("app.db")).await;
    let spool = harbour.spool(LIMITS);
    let first = harbour.take_after(&spool, Some(&published), 1).await;
    let second = harbour.take(&spool).await;
    let catalog = harbour.lab.catalog();
    let epoch = catalog.claim_epoch("another machine", harbour.clock.now()).await.expect("claimed");
    let fenced = harbour.ship(&spool, &Standing::head(1)).await.expect_err("fenced");
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    assert_eq!(ids(&listed(&harbour).await), [&published.id]);
    assert_eq!(spool.contents().await.expect("readable").waiting.len(), 2);
    assert!(spool.state().reasons()[0].contains("newer writer"), "{:?}", spool.state());

    let branch = catalog.claim_branch("this machine", harbour.clock.now()).await.expect("claimed");
    let fork = |from: &Manifest| Fork { from: Some(from.id.clone()), newest: published.id.clone() };
    let mut from = published.clone();
    for waits in [&first, &second] {
        let standing = Standing { epoch: branch, fork: Some(fork(&from)) };
        harbour.ship(&spool, &standing).await.expect("shipped").expect("it waits");
        let shipped = catalog.manifest(&waits.id).await.expect("listed");
        assert_eq!((shipped.flags.as_slice(), shipped.epoch), (&[Flag::Branch][..], branch));
        assert_eq!(shipped.parent, Some(from.id));
        from = waits.clone();
    }
    let head = catalog.head().await.expect("read").expect("there").0;
    assert_eq!((head.epoch, head.snapshot), (epoch, Some(published.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_others_published_over_becomes_a_branch_beside_them() {
    let harbour = Harbour::new().await;
    let published = harbour.lab.stored(&harbour.lab.path("app.db")).await;
    let spool = harbour.spool(LIMITS);
    let waits = harbour.take_after(&spool, Some(&published), 0).await;
    let catalog = harbour.lab.catalog();
    catalog.claim_epoch("another machine", harbour.clock.now()).await.expect("claimed");
    let settings = &harbour.lab.settings;
    let cancel = tokio_util::sync::CancellationToken::new();
    harbour.write(1_000);
    let path = harbour.lab.path("app.db");
    let standing = Standing::head(2);
    let newer = lifeboat::backup::run(
        &catalog,
        &standing,
        lifeboat::backup::Work {
            database: catalog.database(),
            path: &path,
            settings,
            clock: &harbour.clock,
            cancel: &cancel,
            on_progress: Arc::new(|_| {}),
            follower: None,
        },
    )
    .await
    .expect("stored");
    let epoch = catalog.claim_epoch("this machine, restored", harbour.clock.now()).await.expect("claimed");
    harbour.ship(&spool, &Standing::head(epoch)).await.expect("shipped").expect("it waited");
    assert_eq!(harbour.head().await.as_ref(), Some(&newer.manifest().id));
    let shipped = catalog.manifest(&waits.id).await.expect("listed");
    assert!(shipped.is_branch() && shipped.parent == Some(published.id), "{shipped:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_backup_by_hand_overtook_is_listed_and_the_head_stays() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let waits = harbour.take(&spool).await;
    harbour.write(1_000);
    let by_hand = harbour.lab.stored(&harbour.lab.path("app.db")).await;
    assert!(by_hand.id > waits.id);
    assert_eq!(ids(&harbour.ship_all(&spool).await), [&waits.id]);
    assert_eq!(harbour.head().await, Some(by_hand.id.clone()));
    let all = listed(&harbour).await;
    assert_eq!(ids(&all), [&by_hand.id, &waits.id]);
    assert!(all.iter().all(|manifest| !manifest.is_branch()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shrunken_database_of_a_process_that_knew_nothing_is_flagged_when_it_is_shipped() {
    let harbour = Harbour::new().await;
    harbour.write(400_000);
    let published = harbour.lab.stored(&harbour.lab.path("app.db")).await;
    harbour.app.execute_batch("DELETE FROM t; VACUUM").expect("shrunk");
    let spool = harbour.spool(LIMITS);
    harbour.write(10);
    let known = Published { newest: Some(published.id.clone()), ..Published::default() };
    harbour.try_take(&spool, known, 0).await.expect("taken");
    let shipped = harbour.ship_all(&spool).await;
    assert_eq!(
        (shipped[0].flags.as_slice(), &shipped[0].parent),
        (&[Flag::Shrunken][..], &Some(published.id.clone()))
    );
    assert_eq!(shipped[0].baseline.as_ref().map(|baseline| &baseline.snapshot), Some(&published.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_newest_is_in_the_spool_if_it_follows_the_head() {
    let harbour = Harbour::new().await;
    let published = harbour.lab.stored(&harbour.lab.path("app.db")).await;
    let spool = harbour.spool(LIMITS);
    let first = harbour.take_after(&spool, Some(&published), 0).await;
    let second = harbour.take_after(&spool, Some(&published), 0).await;
    let catalog = harbour.lab.catalog();
    let find = async |target: Target| {
        let found = spool::find(&target, &catalog, Some(&spool)).await.expect("found");
        (found.manifest().id.clone(), found.is_spooled())
    };
    assert_eq!(find(Target::Newest).await, (second.id.clone(), true));
    assert_eq!(find(Target::At(first.taken_at)).await, (first.id.clone(), true));
    assert_eq!(find(Target::At(published.taken_at)).await, (published.id.clone(), false));
    assert_eq!(find(Target::Snapshot(first.id.clone())).await, (first.id.clone(), true));
    assert_eq!(find(Target::Snapshot(published.id.clone())).await, (published.id.clone(), false));

    // Storage away: by its id only, and the way is told.
    let away = |nth| Fault::at(Operation::Read, nth, How::Before(ErrorKind::Unavailable));
    (1..=9).for_each(|nth| harbour.storage.script(away(nth)));
    for target in [Target::Newest, Target::At(first.taken_at)] {
        let error: Error = spool::find(&target, &catalog, Some(&spool)).await.err().expect("nobody knows");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        let told = format!("lifeboat restore --snapshot {}", second.id);
        assert!(error.chain().contains(&told), "{}", error.chain());
    }
    let by_id = spool::find(&Target::Snapshot(second.id.clone()), &catalog, Some(&spool)).await;
    assert!(by_id.expect("it waits here").is_spooled());
}
