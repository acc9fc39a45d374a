//! What the spool takes in and what it refuses: its limits, and files in it that should not be there.

use std::fs;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use lifeboat::clock::{Clock, Timestamp};
use lifeboat::error::ErrorKind;
use lifeboat::restore::{Moment, Resources};
use lifeboat::snapshot::Flag;
use lifeboat::spool::{Limits, Published, Taken};
use serde_json::json;

use crate::support::harbour::{Harbour, LIMITS, STORAGE, ids};
use crate::support::lab::{assert_same_bytes, checkpoint};
use crate::support::mount::SmallDisk;

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_is_complete_and_proven_where_it_is() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    spool.look().await;
    assert_eq!((spool.state().snapshots, spool.state().reasons()), (0, vec![]));
    assert!(!harbour.folder().exists(), "nothing is made before anything waits");
    let first = harbour.take(&spool).await;
    let second = harbour.take(&spool).await;
    assert_eq!(second.parent.as_ref(), Some(&first.id));
    assert!(first.id < second.id && first.flags.is_empty());
    let contents = spool.contents().await.expect("readable");
    assert_eq!(ids(&contents.waiting), [&first.id, &second.id]);
    let state = spool.state();
    assert_eq!(
        (state.snapshots, state.oldest, state.newest.clone()),
        (2, Some(first.taken_at), Some(second.id.clone()))
    );
    assert!(state.reasons()[0].starts_with("2 snapshots wait in the spool for storage since"), "{state:?}");

    let storage = spool.storage().await.expect("ours").expect("made");
    let resources = Resources { storage, ..harbour.lab.resources() };
    let proof = spool.prove(&second.id, &resources).await.expect("proven").expect("it waits");
    assert_eq!((proof.snapshot, proof.check.as_str()), (second.id.clone(), "integrity_check"));
    assert!(
        spool
            .prove(&harbour.lab.stored(&harbour.lab.path("app.db")).await.id, &resources)
            .await
            .expect("asked")
            .is_none()
    );
    let copy = harbour.lab.path("copy.db");
    lifeboat::restore::to_new_file(
        &resources,
        &Moment::of(second),
        &copy,
        lifeboat::restore::Damage::Refused,
    )
    .await
    .expect("restored");
    drop(harbour.app);
    checkpoint(&harbour.lab.path("app.db"));
    assert_same_bytes(&copy, &harbour.lab.path("app.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_is_known_already_does_not_wait_twice() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let first = harbour.take(&spool).await;
    let before = harbour.files();
    for epoch in [1, 0] {
        let taken = harbour.try_take(&spool, Published::default(), epoch).await.expect("looked at");
        assert!(matches!(taken, Taken::Waits(same) if same.id == first.id));
    }
    assert_eq!(harbour.files(), before);

    // What storage holds is not spooled at all.
    let published = harbour.lab.stored(&harbour.lab.path("app.db")).await;
    let known = Published {
        manifest: Some(Box::new(published.clone())),
        newest: Some(published.id.clone()),
        database_id: None,
    };
    let taken = harbour.try_take(&spool, known, 1).await.expect("looked at");
    assert!(matches!(taken, Taken::Published(same) if same.id == published.id));
    assert_eq!(harbour.files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shrunken_database_is_flagged_in_the_spool_too() {
    let harbour = Harbour::new().await;
    harbour.write(400_000);
    let published = harbour.lab.stored(&harbour.lab.path("app.db")).await;
    harbour.app.execute_batch("DELETE FROM t; VACUUM").expect("shrunk");
    let spool = harbour.spool(LIMITS);
    let first = harbour.take_after(&spool, Some(&published), 1).await;
    assert_eq!((first.flags.as_slice(), first.parent), (&[Flag::Shrunken][..], Some(published.id)));
    let second = harbour.take(&spool).await;
    assert_eq!(second.flags, [Flag::Shrunken]);
}

/// A limit for two snapshots of some 100 KB.
const NARROW: Limits = Limits { bytes_max: 240_000, ..LIMITS };

#[tokio::test(flavor = "multi_thread")]
async fn the_oldest_makes_room_loudly_and_the_newest_never() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(NARROW);
    harbour.write(95_000);
    let (first, second) = (harbour.take(&spool).await, harbour.take(&spool).await);
    assert_eq!(spool.state().dropped, []);
    let third = harbour.take(&spool).await;
    let contents = spool.contents().await.expect("readable");
    assert_eq!(ids(&contents.waiting), [&second.id, &third.id]);
    assert!(contents.bytes <= NARROW.bytes_max, "{}", contents.bytes);
    let told = spool.state().reasons().join(" ");
    assert!(told.contains("never reached storage") && told.contains(first.id.as_str()), "{told}");
    assert!(told.contains("spool.bytes_max"), "{told}");
    // A new process tells it, too.
    let again = harbour.spool(NARROW);
    again.look().await;
    assert_eq!(again.state().dropped[0].snapshot, first.id);

    // Until something newer is shipped, which is on the line that the lost one began.
    assert_eq!(ids(&harbour.ship_all(&spool).await), [&second.id, &third.id]);
    assert_eq!((spool.state().dropped, harbour.head().await), (vec![], Some(third.id)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_is_refused_and_leaves_what_waits() {
    let harbour = Harbour::new().await;
    let alone = harbour.spool(Limits { bytes_max: 50_000, ..LIMITS });
    harbour.write(95_000);
    let refused = harbour.try_take(&alone, Published::default(), 1).await.expect_err("too large");
    assert_eq!(refused.kind(), ErrorKind::Limit);
    assert!(refused.chain().contains("BACKUP_SPOOL_MAX"), "{}", refused.chain());
    assert_eq!(harbour.files().len(), 1, "spool.json alone: {:?}", harbour.files());
    assert!(alone.state().reasons()[0].contains("no room"), "{:?}", alone.state());

    // One fits, and stays for the next one may fail yet.
    let spool = harbour.spool(Limits { bytes_max: 150_000, ..LIMITS });
    let first = harbour.take(&spool).await;
    harbour.write(1_000);
    let refused = harbour.try_take(&spool, Published::default(), 1).await.expect_err("no room beside it");
    assert_eq!(refused.kind(), ErrorKind::Limit);
    assert_eq!(ids(&spool.contents().await.expect("readable").waiting), [&first.id]);
    assert!(spool.state().dropped.is_empty() && spool.state().error.is_some());

    let off = harbour.spool(Limits { bytes_max: 0, ..LIMITS });
    let refused = harbour.try_take(&off, Published::default(), 1).await.expect_err("off");
    assert!(refused.chain().contains("switched off"), "{}", refused.chain());
    // What waits is shipped nevertheless.
    assert_eq!(ids(&harbour.ship_all(&off).await), [&first.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_volume_is_not_filled_and_keeps_room_for_the_application() {
    let harbour = Harbour::new().await;
    fs::create_dir(harbour.folder()).expect("made");
    let _volume = SmallDisk::mount(harbour.folder(), "2m");
    let spool = harbour.spool(LIMITS);
    harbour.write(1_000_000);
    let first = harbour.take(&spool).await;
    let refused = harbour.try_take_more(&spool, 900_000).await.expect_err("a tenth stays free");
    assert_eq!(refused.kind(), ErrorKind::Limit);
    assert!(
        refused.chain().contains("too full") && refused.chain().contains("reserve"),
        "{}",
        refused.chain()
    );
    assert_eq!(ids(&spool.contents().await.expect("readable").waiting), [&first.id]);
    harbour.app.execute_batch("DELETE FROM t; VACUUM").expect("shrunk");
    harbour.take(&spool).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_old_goes_loudly_but_never_the_newest() {
    let now = Arc::new(AtomicI64::new(1_800_000_000));
    let shown = Arc::clone(&now);
    let clock =
        Clock::from_fn(move || Timestamp::from_second(shown.load(Ordering::SeqCst)).expect("in range"));
    let harbour = Harbour::at(clock).await;
    let spool = harbour.spool(LIMITS);
    let (first, second) = (harbour.take(&spool).await, harbour.take(&spool).await);
    now.fetch_add(LIMITS.age_max.as_secs().cast_signed() + 1, Ordering::SeqCst);
    let taken = harbour.try_take(&spool, Published::default(), 1).await.expect("unchanged");
    assert!(matches!(taken, Taken::Waits(same) if same.id == second.id), "the newest stays");
    assert_eq!(spool.state().dropped[0].snapshot, first.id);
    assert!(spool.state().dropped[0].reason.contains("spool.age_max"));
    let third = harbour.take(&spool).await;
    assert_eq!(ids(&spool.contents().await.expect("readable").waiting), [&second.id, &third.id]);
    assert_eq!(third.parent, Some(second.id));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_not_ours_is_named_and_left_alone() {
    let record = |value: serde_json::Value| value.to_string();
    for (text, kind, told) in [
        (
            record(json!({"format": 2, "storage": STORAGE, "new": 1})),
            ErrorKind::Corrupt,
            "unknown format version 2",
        ),
        (record(json!({"format": 1, "storage": "s3://other/"})), ErrorKind::Config, "s3://other/"),
        (record(json!({"format": 1})), ErrorKind::Corrupt, "damaged or not ours"),
        ("garbage".to_owned(), ErrorKind::Corrupt, "damaged or not ours"),
        (String::new(), ErrorKind::Corrupt, "damaged or not ours"),
        ("x".repeat(100_000), ErrorKind::Corrupt, "damaged or not ours"),
    ] {
        let harbour = Harbour::new().await;
        let spool = harbour.spool(LIMITS);
        harbour.take(&spool).await;
        fs::write(harbour.folder().join("spool.json"), &text).expect("written");
        refuses(&harbour, kind, &[told, "spool.json"]).await;
    }
    let harbour = Harbour::new().await;
    harbour.take(&harbour.spool(LIMITS)).await;
    fs::remove_file(harbour.folder().join("spool.json")).expect("removed");
    refuses(&harbour, ErrorKind::Corrupt, &["does not say what it is for", "spool.json"]).await;
}

/// Nothing is taken, listed or shipped, the reason names the file, and no file changes.
async fn refuses(harbour: &Harbour, kind: ErrorKind, parts: &[&str]) {
    let before = harbour.files();
    harbour.write(1_000);
    let spool = harbour.spool(LIMITS);
    spool.look().await;
    let health = spool.state().reasons().join(" ");
    let taken = harbour.try_take(&spool, Published::default(), 1).await.expect_err("refused");
    let listed = spool.contents().await.expect_err("refused");
    let shipped = harbour.ship(&spool, &lifeboat::lineage::Standing::head(1)).await.expect_err("refused");
    for told in [health, taken.chain(), listed.chain(), shipped.chain()] {
        assert!(parts.iter().all(|part| told.contains(part)), "{parts:?}: {told}");
    }
    assert_eq!([taken.kind(), listed.kind(), shipped.kind()], [kind; 3]);
    assert_eq!(harbour.files(), before);
}

#[tokio::test(flavor = "multi_thread")]
async fn files_that_do_not_belong_there_are_named_and_left_alone_and_the_rest_goes_on() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let (first, second) = (harbour.take(&spool).await, harbour.take(&spool).await);
    let manifest = harbour.folder().join(first.key().path());
    fs::write(
        &manifest,
        fs::read_to_string(&manifest).expect("read").replace("\"format\": 1", "\"format\": 7"),
    )
    .expect("written");
    let foreign =
        ["notes.txt", "app/notes.txt", "app/head.json", "app/snapshots/x.db.zst", "app/deep/er/file"];
    for name in foreign {
        let path = harbour.folder().join(name);
        fs::create_dir_all(path.parent().expect("a folder")).expect("made");
        fs::write(path, "not ours").expect("written");
    }
    let third = harbour.take(&spool).await;
    let told = spool.state().reasons().join("\n");
    for name in foreign {
        assert!(told.contains(&format!("`{}`", harbour.folder().join(name).display())), "{name}: {told}");
    }
    assert!(told.contains(&manifest.display().to_string()) && told.contains("format version 7"), "{told}");
    assert_eq!(ids(&harbour.ship_all(&spool).await), [&second.id, &third.id]);
    let is_there = |path: &Path| harbour.folder().join(path).exists();
    assert!(foreign.iter().all(|name| is_there(Path::new(name))));
    assert!(manifest.exists() && is_there(Path::new(&first.data_key().path())));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_crash_left_is_swept_and_is_no_snapshot() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let (first, second) = (harbour.take(&spool).await, harbour.take(&spool).await);
    fs::remove_file(harbour.folder().join(first.key().path())).expect("removed");
    let unfinished = harbour.folder().join("app/snapshots/.lifeboat-tmp-abc");
    fs::write(&unfinished, "half").expect("written");
    let third = harbour.take(&spool).await;
    assert!(!unfinished.exists() && !harbour.folder().join(first.data_key().path()).exists());
    assert_eq!(ids(&spool.contents().await.expect("readable").waiting), [&second.id, &third.id]);
    assert_eq!(spool.state().trouble, Vec::<String>::new());
}

#[tokio::test(flavor = "multi_thread")]
async fn another_process_in_the_spool_is_waited_for() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    harbour.take(&spool).await;
    let lock = fs::File::open(harbour.folder().join("app/spool.lock")).expect("there");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    let waits = harbour.take(&spool);
    let unlock = async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(spool.contents().await.expect("readable").waiting.len(), 1, "it looked, and has to wait");
        drop(lock);
    };
    tokio::join!(waits, unlock);
    assert_eq!(spool.contents().await.expect("readable").waiting.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn on_a_volume_that_fills_up_the_newest_waits_and_the_oldest_make_room() {
    let harbour = Harbour::new().await;
    fs::create_dir(harbour.folder()).expect("made");
    let _volume = SmallDisk::mount(harbour.folder(), "2m");
    let spool = harbour.spool(LIMITS);
    let mut taken = Vec::new();
    for _ in 0..6 {
        harbour.write(120_000);
        taken.push(harbour.take(&spool).await);
    }
    let waiting = spool.contents().await.expect("readable").waiting;
    assert!(!waiting.is_empty() && taken.ends_with(&waiting), "{waiting:?}");
    let told = spool.state().reasons().join(" ");
    assert!(told.contains("of the volume stay free") && told.contains("never reached storage"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_damaged_here_is_not_said_to_hold_the_database() {
    let harbour = Harbour::new().await;
    let spool = harbour.spool(LIMITS);
    let damaged = harbour.take(&spool).await;
    let data = harbour.folder().join(damaged.data_key().path());
    let mut bytes = fs::read(&data).expect("there");
    bytes[20] ^= 1;
    fs::write(&data, bytes).expect("written");
    assert!(harbour.ship_all(&spool).await.is_empty());
    assert!(spool.state().reasons()[0].contains("until its files are moved away"), "{:?}", spool.state());
    // Nothing was written since; all the same it has to be taken once more.
    let taken = harbour.try_take(&spool, Published::default(), 1).await.expect("taken");
    let Taken::Waits(sound) = taken else { panic!("{taken:?}") };
    assert!(sound.id > damaged.id);
    assert_eq!(ids(&harbour.ship_all(&spool).await), [&sound.id]);
}
