//! The catalog's part of lineage: branches, claims, releases, foreign snapshots, stores that compare nothing.

use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;

use super::fixture::{Hooked, Moment, at, catalog, listed_is_restorable, manifest, publish, with_snapshots};
use super::*;
use crate::snapshot::Flag;
use crate::storage::{Guarantees, Memory, Object, Parts, whole};

const NOON: &str = "2026-11-21T12:00:00Z";
const ONE: &str = "2026-11-21T13:00:00Z";
const TWO: &str = "2026-11-21T14:00:00Z";
const LATE: &str = "2026-11-21T23:00:00Z";

/// A branch of one snapshot, younger than the newest, by a writer of an epoch of its own.
async fn with_branch(memory: &Memory) -> (Catalog, Vec<Manifest>, Manifest) {
    let (line, published) = with_snapshots(memory, &[NOON, ONE]).await;
    let epoch = line.claim_branch("old", at(TWO)).await.expect("claimed");
    let branch = manifest(at(TWO), epoch, Some(&published[0].id), &[Flag::Branch]);
    line.storage().create(&branch.data_key(), whole("data")).await.expect("stored");
    line.publish_branch(&branch, epoch).await.expect("published");
    (line, published, branch)
}

#[tokio::test]
async fn a_branch_moves_no_head_and_fences_nobody() {
    let memory = Memory::default();
    let (line, published, branch) = with_branch(&memory).await;
    let (head, _) = line.head().await.expect("read").expect("there");
    assert_eq!((head.epoch, head.snapshot.as_ref()), (1, Some(&published[1].id)));
    assert_eq!(line.newest().await.expect("read").as_ref(), Some(&published[1]));
    assert_eq!(line.at_or_before(at(LATE)).await.expect("read"), published[1]);
    assert_eq!(line.manifest(&branch.id).await.expect("by its id"), branch);

    let next = manifest(at(LATE), 1, Some(&published[1].id), &[]);
    publish(&line, &next).await;
    // The branch is older than the newest now, and still answers for no moment.
    assert_eq!(line.at_or_before(at("2026-11-21T14:30:00Z")).await.expect("read"), published[1]);
    // Without a head its claim counts for nothing either, and the head is not made of it.
    line.storage().delete(&line.head_key()).await.expect("deleted");
    assert_eq!(line.newest().await.expect("read"), Some(next.clone()));
    let last = manifest(at("2026-11-21T23:30:00Z"), 1, Some(&next.id), &[]);
    publish(&line, &last).await;
}

#[tokio::test]
async fn a_head_made_anew_is_not_made_of_a_branch() {
    let memory = Memory::default();
    let (line, published, _) = with_branch(&memory).await;
    line.storage().delete(&line.head_key()).await.expect("deleted");
    assert_eq!(line.newest().await.expect("read").as_ref(), Some(&published[1]));
    assert_eq!(line.newest_id().await.expect("read").as_ref(), Some(&published[1].id));
    assert_eq!(line.claim_epoch("next", at(LATE)).await.expect("claimed"), 3, "above the branch's");
    assert_eq!(line.newest().await.expect("read").as_ref(), Some(&published[1]));
}

#[tokio::test]
async fn a_branch_is_not_published_as_the_newest_nor_the_other_way_round() {
    let memory = Memory::default();
    let (line, published) = with_snapshots(&memory, &[NOON]).await;
    let branch = manifest(at(ONE), 1, Some(&published[0].id), &[Flag::Branch]);
    assert_eq!(line.publish(&branch, 1, at(ONE)).await.expect_err("refused").kind(), ErrorKind::Internal);
    let sound = manifest(at(ONE), 1, Some(&published[0].id), &[]);
    assert_eq!(line.publish_branch(&sound, 1).await.expect_err("refused").kind(), ErrorKind::Internal);
    assert_eq!(line.list().await.expect("read").snapshots, published);
}

#[tokio::test]
async fn a_branch_whose_data_was_taken_for_an_orphan_leaves_no_manifest() {
    let memory = Memory::default();
    let (line, published) = with_snapshots(&memory, &[NOON]).await;
    let branch = manifest(at(ONE), 1, Some(&published[0].id), &[Flag::Branch]);
    assert_eq!(line.publish_branch(&branch, 1).await.expect_err("no data").kind(), ErrorKind::Conflict);
    assert!(listed_is_restorable(&memory));
    assert_eq!(line.list().await.expect("read").snapshots, published);
}

#[tokio::test]
async fn a_claim_takes_over_the_snapshot_that_was_judged_and_no_other() {
    let memory = Memory::default();
    let (line, published) = with_snapshots(&memory, &[NOON, ONE]).await;
    let judged = Some(&published[0].id);
    let error = line.claim_epoch_after(judged, "late", at(TWO)).await.expect_err("published meanwhile");
    assert_eq!(error.kind(), ErrorKind::Conflict);
    assert_eq!(line.head().await.expect("read").expect("there").0.epoch, 1, "the head has not moved");
    let epoch = line.claim_epoch_after(Some(&published[1].id), "late", at(TWO)).await.expect("claimed");
    assert_eq!(line.head().await.expect("read").expect("there").0.epoch, epoch);
}

#[tokio::test]
async fn many_starts_of_a_branch_do_not_keep_the_line_from_starting() {
    let memory = Memory::default();
    let (line, _) = with_snapshots(&memory, &[NOON]).await;
    for _ in 0..70 {
        line.claim_branch("old", at(ONE)).await.expect("claimed");
    }
    assert_eq!(line.claim_epoch("healthy", at(TWO)).await.expect("claimed"), 72);
}

#[tokio::test]
async fn only_the_holder_releases_and_the_next_claim_takes_up() {
    let memory = Memory::default();
    let (line, published) = with_snapshots(&memory, &[NOON]).await;
    let head = async || line.head().await.expect("read").expect("there").0;
    assert!(!head().await.released);
    line.release_epoch(1, at(ONE)).await.expect("released");
    assert!(head().await.released);
    assert_eq!(head().await.snapshot.as_ref(), Some(&published[0].id));
    assert_eq!(line.claim_epoch("next", at(TWO)).await.expect("claimed"), 2);
    assert!(!head().await.released);
    assert_eq!(line.release_epoch(1, at(TWO)).await.expect_err("fenced").kind(), ErrorKind::Fenced);
    assert!(!head().await.released);
}

#[tokio::test]
async fn a_snapshot_of_a_foreign_database_is_named_and_refused() {
    let memory = Memory::default();
    let (line, published) = with_snapshots(&memory, &[NOON]).await;
    // The fixture's snapshots are of the database 1.
    let other = catalog(memory.clone());
    other.storage().delete(&other.head_key()).await.expect("deleted");
    other.ensure_identity(at(ONE), 2).await.expect("made");
    let error = other.manifest(&published[0].id).await.expect_err("foreign");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    assert!(error.to_string().contains("foreign database"), "{error}");
    let listing = other.list().await.expect("read");
    assert_eq!((listing.snapshots.len(), listing.damaged.len()), (0, 1));
    assert_eq!(other.newest().await.expect_err("foreign").kind(), ErrorKind::Corrupt);
    // Without a readable identity there is nothing to compare with, and restores go on.
    memory.overwrite("app/identity.json", "{");
    assert_eq!(catalog(memory.clone()).manifest(&published[0].id).await.expect("read"), published[0]);
    drop(line);
}

#[tokio::test]
async fn a_lost_identity_is_that_of_the_newest_snapshot() {
    let memory = Memory::default();
    let (line, published) = with_snapshots(&memory, &[NOON]).await;
    let identity = line.ensure_identity(at(ONE), 2).await.expect("made");
    assert_eq!(identity.database_id, published[0].database_id);
    assert_eq!(catalog(memory).newest().await.expect("read").as_ref(), published.first());
}

#[tokio::test]
async fn in_a_storage_that_was_emptied_the_history_goes_on_under_its_name() {
    for is_made_here in [true, false] {
        let memory = Memory::default();
        let (line, published) = with_snapshots(&memory, &[NOON]).await;
        match is_made_here {
            true => drop(line.ensure_identity(at(NOON), 1).await.expect("made")),
            false => {
                catalog(memory.clone()).ensure_identity(at(NOON), 1).await.expect("made");
                line.identity().await.expect("read").expect("there");
            }
        }
        for (path, _) in memory.objects() {
            line.storage().delete(&Key::parse(&path).expect("ours")).await.expect("deleted");
        }
        let identity = line.ensure_identity(at(ONE), 2).await.expect("made again");
        assert_eq!(identity.database_id, published[0].database_id);
        let next = manifest(at(TWO), 1, None, &[]);
        publish(&line, &next).await;
        for reader in [line, catalog(memory)] {
            assert_eq!(reader.identity().await.expect("read"), Some(identity.clone()));
            assert_eq!(reader.newest().await.expect("read"), Some(next.clone()));
        }
    }
}

#[tokio::test]
async fn a_history_that_was_put_in_place_of_ours_is_named_and_left_alone() {
    let memory = Memory::default();
    let (line, _) = with_snapshots(&memory, &[NOON]).await;
    line.ensure_identity(at(NOON), 1).await.expect("made");
    for (path, _) in memory.objects() {
        line.storage().delete(&Key::parse(&path).expect("ours")).await.expect("deleted");
    }
    let theirs = catalog(memory.clone()).ensure_identity(at(ONE), 2).await.expect("made");
    let before = memory.objects();
    for error in [
        line.ensure_identity(at(TWO), 3).await.expect_err("foreign"),
        line.identity().await.expect_err("foreign"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        assert!(is_not_ours(&error));
        let told = error.to_string();
        let parts = ["foreign database", "app/identity.json", &theirs.database_id.to_string()];
        assert!(parts.iter().all(|part| told.contains(part)), "{told}");
    }
    assert_eq!(memory.objects(), before);
}

/// A store that replaces whatever it is told to.
#[derive(Debug)]
struct Careless(Hooked, Memory);

#[async_trait]
impl Storage for Careless {
    fn location(&self) -> String {
        self.0.location()
    }
    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        self.0.create(key, parts).await
    }
    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        match self.0.replace(key, expected, bytes.clone()).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                self.1.overwrite(&key.path(), bytes);
                Ok(Version(String::new()))
            }
            replaced => replaced,
        }
    }
    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.0.read(key, bytes_max).await
    }
    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.0.read_range(key, range).await
    }
    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.0.head(key).await
    }
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.0.list(prefix).await
    }
    async fn delete(&self, key: &Key) -> Result<()> {
        self.0.delete(key).await
    }
    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.0.sweep_unfinished(older_than).await
    }
    fn guarantees(&self) -> Guarantees {
        Guarantees { compare_and_swap: false, ..Guarantees::FULL }
    }
}

/// Between our look at the head and our write of it a newer writer claims: on a store that compares
/// nothing our write goes over it, and reading again shows that we came too late.
#[tokio::test]
async fn where_nothing_is_compared_a_writer_that_was_overtaken_is_fenced_after_its_write() {
    for moment in [Moment::Before, Moment::After] {
        let memory = Memory::default();
        let (sound, published) = with_snapshots(&memory, &[NOON]).await;
        let late = manifest(at(ONE), 1, Some(&published[0].id), &[]);
        sound.storage().create(&late.data_key(), whole("data")).await.expect("stored");
        let beside = memory.clone();
        let overtaken = Hooked::new(&memory, move |at_moment, operation, key| {
            let now = at_moment == moment && operation == "replace" && matches!(key, Key::Head(_));
            let newer = catalog(beside.clone());
            async move {
                match now {
                    true => newer.claim_epoch("newer", at(TWO)).await.map(drop),
                    false => Ok(()),
                }
            }
            .boxed()
        });
        let error = catalog(Careless(overtaken, memory.clone())).publish(&late, 1, at(ONE)).await;
        assert_eq!(error.expect_err("fenced").kind(), ErrorKind::Fenced, "{moment:?}");
        // The newer one goes on, whatever stands in the head.
        let next = manifest(at(LATE), 2, Some(&late.id), &[]);
        publish(&sound, &next).await;
        assert_eq!(sound.newest().await.expect("read"), Some(next));
        assert!(listed_is_restorable(&memory));
    }
}
