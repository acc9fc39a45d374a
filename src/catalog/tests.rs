//! The catalog over storage in memory.

use futures::FutureExt;

use super::fixture::{
    Hooked, Moment, at, catalog, listed_is_restorable, manifest, proof, publish, with_snapshots,
};
use super::*;
use crate::snapshot::Flag;
use crate::storage::{Memory, whole};

const NOON: &str = "2026-11-21T12:00:00Z";
const ONE: &str = "2026-11-21T13:00:00Z";
const TWO: &str = "2026-11-21T14:00:00Z";

#[tokio::test]
async fn an_empty_storage_has_nothing() {
    let catalog = catalog(Memory::default());
    assert!(catalog.identity().await.expect("read").is_none());
    assert!(catalog.head().await.expect("read").is_none());
    assert!(catalog.newest().await.expect("read").is_none());
    assert!(catalog.list().await.expect("read").snapshots.is_empty());
    assert_eq!(catalog.at_or_before(at(NOON)).await.expect_err("none").kind(), ErrorKind::NotFound);
}

#[tokio::test]
async fn the_first_identity_wins() {
    let catalog = catalog(Memory::default());
    let first = catalog.ensure_identity(at(NOON), 1).await.expect("made");
    let second = catalog.ensure_identity(at(ONE), 2).await.expect("read");
    assert_eq!(first, second);
}

#[tokio::test]
async fn epochs_increase_and_fence_those_before() {
    let memory = Memory::default();
    let (old, published) = with_snapshots(&memory, &[NOON]).await;
    let new = catalog(memory.clone());
    assert_eq!(new.claim_epoch("b", at(ONE)).await.expect("claimed"), 2);
    let (head, _) = new.head().await.expect("read").expect("there");
    assert_eq!((head.epoch, head.snapshot.as_ref()), (2, Some(&published[0].id)));

    let late = manifest(at(ONE), 1, Some(&published[0].id), &[]);
    let error = old.publish(&late, 1, at(ONE)).await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(old.list().await.expect("read").snapshots, published);
}

#[tokio::test]
async fn a_claim_passes_over_epochs_whose_start_died() {
    let memory = Memory::default();
    let (catalog, _) = with_snapshots(&memory, &[NOON]).await;
    for epoch in [2, 3] {
        memory.overwrite(&Key::Epoch(catalog.database().clone(), epoch).path(), "{}");
    }
    assert_eq!(catalog.claim_epoch("b", at(ONE)).await.expect("claimed"), 4);
}

#[tokio::test]
async fn a_lost_head_is_made_anew_from_what_is_listed() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[NOON, ONE]).await;
    catalog.storage().delete(&catalog.head_key()).await.expect("deleted");
    assert_eq!(catalog.newest().await.expect("read").as_ref(), published.last());
    assert_eq!(catalog.claim_epoch("b", at(TWO)).await.expect("claimed"), 2);
    assert_eq!(catalog.newest().await.expect("read").as_ref(), published.last());
}

#[tokio::test]
async fn without_a_head_a_later_claim_still_fences() {
    let memory = Memory::default();
    let (old, published) = with_snapshots(&memory, &[NOON]).await;
    catalog(memory.clone()).claim_epoch("b", at(ONE)).await.expect("claimed");
    old.storage().delete(&old.head_key()).await.expect("deleted");
    let late = manifest(at(ONE), 1, Some(&published[0].id), &[]);
    assert_eq!(old.publish(&late, 1, at(ONE)).await.expect_err("fenced").kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn publishing_twice_is_publishing_once() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[NOON]).await;
    catalog.publish(&published[0], 1, at(ONE)).await.expect("the same again");
    let mut other = published[0].clone();
    other.took_ms += 1;
    let error = catalog.publish(&other, 1, at(ONE)).await.expect_err("the id is taken");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert_eq!(catalog.list().await.expect("read").snapshots, published);
}

#[tokio::test]
async fn an_older_snapshot_never_becomes_the_newest() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[ONE]).await;
    let older = manifest(at(NOON), 1, None, &[]);
    let error = catalog.publish(&older, 1, at(TWO)).await.expect_err("too late");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(catalog.list().await.expect("read").snapshots, published);
}

#[tokio::test]
async fn listing_is_newest_first_and_names_what_it_cannot_read() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[NOON, ONE, TWO]).await;
    memory.overwrite(&published[1].key().path(), vec![b' '; Manifest::BYTES_MAX + 1]);
    memory.overwrite("app/manifests/notes.txt", "not ours");
    let listing = catalog.list().await.expect("read");
    assert_eq!(listing.snapshots, [published[2].clone(), published[0].clone()]);
    let damaged: Vec<(Key, ErrorKind)> =
        listing.damaged.into_iter().map(|(key, error)| (key, error.kind())).collect();
    assert_eq!(damaged, [(published[1].key(), ErrorKind::Corrupt)]);
}

#[tokio::test]
async fn a_head_that_names_nothing_is_corrupt() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[NOON, ONE]).await;
    catalog.storage().delete(&published[1].key()).await.expect("deleted");
    let error = catalog.newest().await.expect_err("gone");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(published[1].id.as_str()), "{error}");
}

#[tokio::test]
async fn a_time_finds_the_snapshot_that_shows_it() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[NOON, ONE, TWO]).await;
    for (time, expected) in [
        (NOON, &published[0]),
        ("2026-11-21T12:59:59Z", &published[0]),
        (ONE, &published[1]),
        ("2030-01-01T00:00:00Z", &published[2]),
    ] {
        assert_eq!(&catalog.at_or_before(at(time)).await.expect(time), expected, "{time}");
    }
    let error = catalog.at_or_before(at("2026-11-21T11:59:59Z")).await.expect_err("too old");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.to_string().contains(NOON), "{error}");
}

#[tokio::test]
async fn a_time_whose_snapshot_is_damaged_does_not_fall_back_in_silence() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[NOON, ONE, TWO]).await;
    memory.overwrite(&published[1].key().path(), "torn");
    let error = catalog.at_or_before(at("2026-11-21T13:30:00Z")).await.expect_err("damaged");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains(published[0].id.as_str()), "{error}");
    assert_eq!(catalog.at_or_before(at(TWO)).await.expect("sound"), published[2]);
}

#[tokio::test]
async fn proofs_only_get_newer_and_a_damaged_one_counts_as_none() {
    let memory = Memory::default();
    let (catalog, published) = with_snapshots(&memory, &[NOON, ONE]).await;
    let id = &published[0].id;
    assert!(catalog.proof(id).await.expect("read").is_none());
    for time in [ONE, TWO, NOON] {
        catalog.write_proof(&proof(id, at(time))).await.expect("written");
    }
    assert_eq!(catalog.proofs().await.expect("read"), [proof(id, at(TWO))]);

    memory.overwrite(&Key::Proof(catalog.database().clone(), id.clone()).path(), "torn");
    assert!(catalog.proof(id).await.expect("read").is_none());
    catalog.write_proof(&proof(id, at(NOON))).await.expect("replaced");
    assert_eq!(catalog.proof(id).await.expect("read"), Some(proof(id, at(NOON))));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_racing_for_epochs_each_get_their_own_and_one_publishes() {
    let memory = Memory::default();
    let claims = (0..8).map(|holder| {
        let catalog = catalog(memory.clone());
        tokio::spawn(async move { catalog.claim_epoch(&format!("holder {holder}"), at(NOON)).await })
    });
    let mut epochs = Vec::new();
    for claim in claims.collect::<Vec<_>>() {
        match claim.await.expect("no panic") {
            Ok(epoch) => epochs.push(epoch),
            Err(error) => assert_eq!(error.kind(), ErrorKind::Fenced),
        }
    }
    let catalog = catalog(memory);
    let (head, _) = catalog.head().await.expect("read").expect("there");
    assert_eq!(Some(&head.epoch), epochs.iter().max());
    assert_eq!(head.epoch, 8);
    publish(&catalog, &manifest(at(NOON), 8, None, &[])).await;
    assert_eq!(catalog.list().await.expect("read").snapshots.len(), 1);
}

#[tokio::test]
async fn the_daemon_can_spawn_every_call() {
    fn spawnable<T: Send>(_: &T) {}
    let catalog = catalog(Memory::default());
    let manifest = manifest(at(NOON), 1, None, &[]);
    spawnable(&catalog.newest());
    spawnable(&catalog.at_or_before(at(NOON)));
    spawnable(&catalog.proofs());
    spawnable(&catalog.publish(&manifest, 1, at(NOON)));
    spawnable(&catalog.write_proof(&proof(&manifest.id, at(NOON))));
}

#[tokio::test]
async fn wherever_publishing_stops_it_can_be_done_again() {
    for moment in [Moment::Before, Moment::After] {
        for calls in 0.. {
            let memory = Memory::default();
            let (sound, published) = with_snapshots(&memory, &[NOON]).await;
            let next = manifest(at(ONE), 1, Some(&published[0].id), &[]);
            sound.storage().create(&next.data_key(), whole("data")).await.expect("stored");
            let stopping = catalog(Hooked::stopping(&memory, calls, moment));
            let ended = stopping.publish(&next, 1, at(ONE)).await;
            assert!(listed_is_restorable(&memory), "{moment:?} call {calls}");
            sound.publish(&next, 1, at(ONE)).await.expect("again");
            assert_eq!(sound.newest().await.expect("read"), Some(next), "{moment:?} call {calls}");
            if ended.is_ok() {
                break;
            }
        }
    }
}

/// A catalog that is overtaken by another start at the moment it writes a manifest.
fn overtaken(memory: &Memory, may_delete: bool) -> Catalog {
    let beside = memory.clone();
    catalog(Hooked::new(memory, move |moment, operation, key| {
        let newer = catalog(beside.clone());
        let now = (moment, operation) == (Moment::Before, "create") && matches!(key, Key::Manifest(..));
        let denied = operation == "delete" && !may_delete;
        async move {
            match (now, denied) {
                (true, _) => newer.claim_epoch("newer", at(ONE)).await.map(drop),
                (_, true) => Err(Error::new(ErrorKind::Denied, "not permitted")),
                (false, false) => Ok(()),
            }
        }
        .boxed()
    }))
}

#[tokio::test]
async fn a_writer_overtaken_while_it_publishes_withdraws() {
    for may_delete in [true, false] {
        let memory = Memory::default();
        let (sound, published) = with_snapshots(&memory, &[NOON]).await;
        let late = manifest(at(ONE), 1, Some(&published[0].id), &[]);
        sound.storage().create(&late.data_key(), whole("data")).await.expect("stored");
        let error = overtaken(&memory, may_delete).publish(&late, 1, at(ONE)).await.expect_err("fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert_eq!(sound.newest().await.expect("read").as_ref(), published.first());
        assert_eq!(&sound.at_or_before(at(TWO)).await.expect("read"), &published[0]);
        assert_eq!(sound.list().await.expect("read").snapshots.len(), if may_delete { 1 } else { 2 });
        assert!(listed_is_restorable(&memory));
    }
}

/// Our swap took effect, its answer was lost, and before the next look another start built upon it.
#[tokio::test]
async fn what_the_head_names_is_never_withdrawn() {
    let memory = Memory::default();
    let (sound, published) = with_snapshots(&memory, &[NOON]).await;
    let next = manifest(at(ONE), 1, Some(&published[0].id), &[]);
    sound.storage().create(&next.data_key(), whole("data")).await.expect("stored");
    let beside = memory.clone();
    let unanswered = catalog(Hooked::new(&memory, move |moment, operation, key| {
        let newer = catalog(beside.clone());
        let now = (moment, operation) == (Moment::After, "replace") && matches!(key, Key::Head(..));
        async move {
            match now {
                true => {
                    newer.claim_epoch("newer", at(TWO)).await?;
                    Err(Error::new(ErrorKind::Conflict, "it has changed"))
                }
                false => Ok(()),
            }
        }
        .boxed()
    }));
    let error = unanswered.publish(&next, 1, at(ONE)).await.expect_err("fenced");
    assert_eq!(error.kind(), ErrorKind::Fenced);
    assert_eq!(sound.newest().await.expect("the head's manifest is there"), Some(next));
}

#[tokio::test]
async fn wherever_a_claim_stops_the_next_one_is_higher() {
    for moment in [Moment::Before, Moment::After] {
        for with_head in [true, false] {
            for calls in 0.. {
                let memory = Memory::default();
                let (sound, published) = with_snapshots(&memory, &[NOON]).await;
                if !with_head {
                    sound.storage().delete(&sound.head_key()).await.expect("deleted");
                }
                let stopping = catalog(Hooked::stopping(&memory, calls, moment));
                let ended = stopping.claim_epoch("a", at(ONE)).await;
                let epoch = sound.claim_epoch("b", at(TWO)).await.expect("the next start");
                assert!(epoch > 1 && ended.as_ref().is_ok_and(|first| *first < epoch) || ended.is_err());
                assert_eq!(sound.newest().await.expect("read").as_ref(), published.first());
                if ended.is_ok() {
                    break;
                }
            }
        }
    }
}

#[tokio::test]
async fn without_permission_to_list_only_a_first_start_goes_on_without_a_head() {
    let memory = Memory::default();
    let blind = catalog(Hooked::unlisted(&memory));
    let error = blind.list().await.expect_err("denied");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.to_string().contains("s3:ListBucket"), "{error}");

    assert_eq!(blind.claim_epoch("first", at(NOON)).await.expect("claimed"), 1);
    let snapshot = manifest(at(NOON), 1, None, &[]);
    publish(&blind, &snapshot).await;
    assert_eq!(blind.newest().await.expect("read"), Some(snapshot.clone()));
    assert_eq!(blind.claim_epoch("second", at(ONE)).await.expect("claimed"), 2);

    blind.storage().delete(&blind.head_key()).await.expect("deleted");
    assert_eq!(blind.newest().await.expect_err("unknown").kind(), ErrorKind::Denied);
    assert_eq!(blind.claim_epoch("third", at(TWO)).await.expect_err("unknown").kind(), ErrorKind::Denied);
    assert_eq!(catalog(memory).newest().await.expect("read"), Some(snapshot));
}

#[tokio::test]
async fn the_newest_drills_are_those_of_the_newest_snapshots_and_the_latest_is_by_time() {
    let catalog = catalog(Memory::default());
    let id = |hour: u32| SnapshotId::next(at(&format!("2026-11-21T{hour:02}:00:00Z")), None, 1);
    let found = catalog.newest_drills().await.expect("readable");
    assert!(found.newest.is_none() && found.latest.is_none() && found.failure.is_none());
    for (hour, proven_at, failure) in [
        (13, "2026-11-22T01:00:00Z", None),
        (15, "2026-11-22T02:00:00Z", Some("torn")),
        (14, "2026-11-22T03:00:00Z", Some("an older one")),
        (12, "2026-11-22T04:00:00Z", None),
    ] {
        let drill = Proof { failure: failure.map(str::to_owned), ..proof(&id(hour), at(proven_at)) };
        catalog.write_proof(&drill).await.expect("written");
        // What is listed is dated by the storage's own clock.
        tokio::time::sleep(std::time::Duration::from_millis(5)).await;
    }
    let found = catalog.newest_drills().await.expect("readable");
    assert_eq!(found.newest.map(|proof| proof.snapshot), Some(id(13)));
    assert_eq!(found.latest.map(|proof| proof.snapshot), Some(id(12)));
    assert_eq!(found.failure.map(|proof| proof.snapshot), Some(id(15)));
    assert_eq!(catalog.proof(&id(15)).await.expect("readable"), None, "a failed drill is no proof");
    let proofs = catalog.proofs().await.expect("readable");
    assert_eq!(proofs.iter().map(|proof| &proof.snapshot).collect::<Vec<_>>(), [&id(13), &id(12)]);
    assert_eq!(catalog.drills().await.expect("readable").len(), 4);
}

#[tokio::test]
async fn an_older_snapshot_is_listed_beside_the_head_and_nothing_else_is_let_past_it() {
    let memory = Memory::default();
    let (catalog, manifests) = with_snapshots(&memory, &["2026-11-21T14:10:00Z"]).await;
    let older = manifest(at("2026-11-21T14:00:00Z"), 1, None, &[]);
    let without_data = catalog.publish_older(&older, 1).await.expect_err("its data is gone");
    assert_eq!(without_data.kind(), ErrorKind::Conflict);
    catalog.storage().create(&older.data_key(), whole(&[7; 64][..])).await.expect("stored");
    let newer = manifest(at("2026-11-21T14:20:00Z"), 1, None, &[]);
    let branch = manifest(at("2026-11-21T14:00:01Z"), 1, None, &[Flag::Branch]);
    for refused in [&newer, &branch, &manifests[0]] {
        assert_eq!(catalog.publish_older(refused, 1).await.expect_err("refused").kind(), ErrorKind::Internal);
    }
    catalog.publish_older(&older, 1).await.expect("listed");
    let listed: Vec<_> =
        catalog.list().await.expect("listed").snapshots.into_iter().map(|one| one.id).collect();
    assert_eq!(listed, [manifests[0].id.clone(), older.id.clone()]);
    assert_eq!(catalog.newest_id().await.expect("read"), Some(manifests[0].id.clone()));
    catalog.claim_epoch("another", at("2026-11-21T15:00:00Z")).await.expect("claimed");
    let late = manifest(at("2026-11-21T14:00:02Z"), 1, None, &[]);
    assert_eq!(catalog.publish_older(&late, 1).await.expect_err("fenced").kind(), ErrorKind::Fenced);
}

#[tokio::test]
async fn an_interrupted_publication_is_finished_under_a_later_epoch_and_never_backwards() {
    let memory = Memory::default();
    let (catalog, manifests) = with_snapshots(&memory, &["2026-11-21T14:00:00Z"]).await;
    let next = manifest(at("2026-11-21T14:10:00Z"), 1, Some(&manifests[0].id), &[]);
    catalog.storage().create(&next.key(), whole(next.encode())).await.expect("stored");
    let epoch = catalog.claim_epoch("the next start", at("2026-11-21T15:00:00Z")).await.expect("claimed");
    let now = at("2026-11-21T15:00:01Z");
    assert_eq!(catalog.finish_publishing(&next, 1, now).await.expect_err("fenced").kind(), ErrorKind::Fenced);
    let head = catalog.finish_publishing(&next, epoch, now).await.expect("moved");
    assert_eq!((head.epoch, head.snapshot), (epoch, Some(next.id)));
    let back = catalog.finish_publishing(&manifests[0], epoch, now).await.expect_err("older");
    assert_eq!(back.kind(), ErrorKind::Conflict);
    let branch = manifest(at("2026-11-21T16:00:00Z"), epoch, None, &[Flag::Branch]);
    assert_eq!(
        catalog.finish_publishing(&branch, epoch, now).await.expect_err("a branch").kind(),
        ErrorKind::Internal
    );
}
