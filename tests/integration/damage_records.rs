//! Damaged records beside the snapshots (identity, head, claims, proofs), objects in each other's
//! places, and records of another time: a database is never wrong, nobody publishes who must not, and
//! whatever is refused is named.

use std::fs;
use std::sync::Arc;

use bytes::Bytes;
use lifeboat::backup::Outcome;
use lifeboat::error::{Error, ErrorKind};
use lifeboat::snapshot::{Claim, FORMAT, Key, Manifest, Record};
use lifeboat::storage::{self, Memory};
use lifeboat::verify;

use crate::support::lab::Lab;

/// Two snapshots in memory, both proven, and what each of them must restore to.
struct History {
    lab: Lab,
    memory: Memory,
    manifests: [Manifest; 2],
    plain: [Vec<u8>; 2],
}

impl History {
    async fn new() -> History {
        let memory = Memory::default();
        let lab = Lab::over(tempfile::tempdir().expect("a directory"), Arc::new(memory.clone()));
        let mut taken = Vec::new();
        for sql in ["PRAGMA page_size=512; CREATE TABLE t(x)", "INSERT INTO t VALUES (randomblob(50))"] {
            drop(lab.database("app.db", sql));
            let manifest = lab.stored(&lab.path("app.db")).await;
            let proof = verify::run(&lab.catalog(), &manifest, &lab.resources()).await.expect("proven");
            lab.catalog().write_proof(&proof).await.expect("noted");
            taken.push((manifest, fs::read(lab.path("app.db")).expect("readable")));
        }
        let [(first, one), (second, two)] = taken.try_into().expect("two");
        History { lab, memory, manifests: [first, second], plain: [one, two] }
    }

    fn object(&self, path: &str) -> Bytes {
        let found = self.memory.objects().into_iter().find(|(name, _)| name == path);
        found.unwrap_or_else(|| panic!("no {path}")).1
    }

    fn proof_path(&self, number: usize) -> String {
        format!("app/proofs/{}.json", self.manifests[number].id)
    }

    /// Restores one of the two by its id, as storage is now. `Ok` is the right database, and only that.
    async fn restore(&self, number: usize) -> Result<(), Error> {
        let output = self.lab.path("restored.db");
        let _ = fs::remove_file(&output);
        let manifest = self.lab.catalog().manifest(&self.manifests[number].id).await?;
        self.lab.restored_to(&manifest, &output).await?;
        assert!(fs::read(&output).expect("restored") == self.plain[number], "a wrong database");
        Ok(())
    }

    /// Puts each damaged form of an object in its place: one bit of each byte flipped, and cut off
    /// after each byte; then the object itself again.
    async fn with_each_damage<Judged: Future<Output = ()>>(
        &self,
        path: &str,
        judge: impl Fn(String) -> Judged,
    ) {
        let good = self.object(path);
        for at in 0..good.len() {
            let mut flipped = good.to_vec();
            flipped[at] ^= 1 << (at * 5 % 8);
            self.memory.overwrite(path, flipped);
            judge(format!("{path} with byte {at} flipped")).await;
            // The last byte is a line feed, without which nothing is missing.
            if at + 1 < good.len() {
                self.memory.overwrite(path, good.slice(..at));
                judge(format!("{path} of {at} bytes")).await;
            }
        }
        self.memory.overwrite(path, good);
    }
}

/// Fails unless an error says that something is damaged, and what.
#[track_caller]
fn assert_names(error: &Error, path: &str, what: &str) {
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error:?}");
    assert!(error.chain().contains(path), "{what}: {}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_head_is_refused_by_name_or_still_names_the_newest() {
    let history = History::new().await;
    let newest = &history.manifests[1].id;
    history
        .with_each_damage("app/head.json", async |what| match history.lab.catalog().newest().await {
            Ok(found) => assert_eq!(found.map(|found| found.id).as_ref(), Some(newest), "{what}"),
            // A flipped digit of the id names a snapshot that is not there.
            Err(error) if error.chain().contains("the newest snapshot is gone") => {
                assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}");
            }
            Err(error) => assert_names(&error, "app/head.json", &what),
        })
        .await;
    history.restore(1).await.expect("as before");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_identity_ends_backups_and_no_restore_becomes_wrong() {
    let history = History::new().await;
    let path = "app/identity.json";
    let good = history.lab.catalog().identity().await.expect("readable").expect("there");
    drop(history.lab.database("app.db", "INSERT INTO t VALUES ('third')"));
    history
        .with_each_damage(path, async |what| {
            let database = history.lab.path("app.db");
            match history.lab.catalog().identity().await {
                Ok(Some(identity)) if identity.database_id == good.database_id => {}
                Ok(found) => {
                    assert!(found.is_some(), "{what}");
                    let refused = history.lab.back_up(&database).await.expect_err(&what);
                    assert_names(&refused, "foreign database", &what);
                    assert_names(&history.restore(1).await.expect_err(&what), "foreign database", &what);
                    return;
                }
                Err(error) => {
                    assert_names(&error, path, &what);
                    let refused = history.lab.back_up(&database).await.expect_err(&what);
                    assert_names(&refused, path, &what);
                }
            }
            history.restore(1).await.unwrap_or_else(|error| panic!("{what}: {}", error.chain()));
        })
        .await;
    assert!(matches!(history.lab.back_up(&history.lab.path("app.db")).await, Ok(Outcome::Stored(_))));
}

/// A claim only tells who came later where the head does not.
#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_claim_never_lets_the_earlier_writer_publish() {
    let history = History::new().await;
    let key = Key::Epoch("app".parse().expect("a name"), 2);
    let claim = Claim {
        format: FORMAT,
        epoch: 2,
        holder: "another machine".to_owned(),
        claimed_at: jiff::Timestamp::now(),
        branch: false,
    };
    history.lab.storage.create(&key, storage::whole(claim.encode())).await.expect("claimed");
    history.lab.storage.delete(&Key::Head("app".parse().expect("a name"))).await.expect("removed");
    drop(history.lab.database("app.db", "INSERT INTO t VALUES ('third')"));
    let publish = async |what: String| {
        let refused = history.lab.back_up(&history.lab.path("app.db")).await.expect_err(&what);
        assert_eq!(refused.kind(), ErrorKind::Fenced, "{what}: {refused:?}");
    };
    publish("the claim as it is".to_owned()).await;
    history.with_each_damage(&key.path(), publish).await;
    assert_eq!(history.lab.catalog().list().await.expect("listed").snapshots.len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_record_of_a_drill_proves_nothing_and_is_replaced() {
    let history = History::new().await;
    let (path, manifest) = (history.proof_path(1), &history.manifests[1]);
    let good = history.lab.catalog().proof(&manifest.id).await.expect("readable").expect("there");
    history
        .with_each_damage(&path, async |what| {
            match history.lab.catalog().proof(&manifest.id).await.expect("a damaged one counts as none") {
                None => {}
                // What was checked, when, how long and by whom: it is still of this snapshot.
                Some(found) => assert_eq!(found.snapshot, good.snapshot, "{what}"),
            }
        })
        .await;
    let mut failed = good.clone();
    failed.failure = Some("the seek table is damaged".to_owned());
    history.memory.overwrite(&path, failed.encode());
    history
        .with_each_damage(&path, async |what| {
            let proof = history.lab.catalog().proof(&manifest.id).await.expect("readable");
            assert_eq!(proof, None, "{what}: a failed drill became a proof");
        })
        .await;
    history.memory.overwrite(&path, "{");
    history.lab.catalog().write_proof(&good).await.expect("in place of the damaged one");
    assert_eq!(history.lab.catalog().proof(&manifest.id).await.expect("readable"), Some(good));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_notices_each_damage_of_the_data() {
    let history = History::new().await;
    let manifest = &history.manifests[0];
    let path = manifest.data_key().path();
    history
        .with_each_damage(&path, async |what| {
            // Its last byte is no line feed: it is cut off, too, in `damage`.
            let refused = verify::run(&history.lab.catalog(), manifest, &history.lab.resources()).await;
            assert_names(&refused.expect_err(&what).error, &path, &what);
        })
        .await;
    verify::run(&history.lab.catalog(), manifest, &history.lab.resources()).await.expect("proven again");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_belongs_to_another_database_or_snapshot_is_refused_in_its_place() {
    let (history, other) = (History::new().await, History::new().await);
    let paths = |history: &History| {
        [
            "app/identity.json".to_owned(),
            history.manifests[1].key().path(),
            history.manifests[1].data_key().path(),
        ]
    };
    // Of the same name, size and kind, but of another database.
    for (ours, theirs) in paths(&history).iter().zip(paths(&other)) {
        let good = history.object(ours);
        history.memory.overwrite(ours, other.object(&theirs));
        let refused = history.restore(1).await.expect_err(ours);
        assert_eq!(refused.kind(), ErrorKind::Corrupt, "{ours}: {refused:?}");
        history.memory.overwrite(ours, good);
        history.restore(1).await.expect("the right one");
    }
    let head = history.object("app/head.json");
    history.memory.overwrite("app/head.json", other.object("app/head.json"));
    let refused = history.lab.catalog().newest().await.expect_err("a head of another database");
    assert_names(&refused, "the newest snapshot is gone", "head");
    history.memory.overwrite("app/head.json", head);
    // Two of one kind, in each other's places.
    let (one, two) = (history.proof_path(0), history.proof_path(1));
    let (first, second) = (history.object(&one), history.object(&two));
    history.memory.overwrite(&one, second);
    history.memory.overwrite(&two, first);
    for manifest in &history.manifests {
        assert_eq!(history.lab.catalog().proof(&manifest.id).await.expect("readable"), None);
    }
    history.restore(0).await.expect("a proof in the wrong place is none");
}

/// An older head is as valid as it was; that it is old shows from nothing it says. So it may name what
/// is not the newest, but nothing wrong, and nothing that stands beyond it is lost.
#[tokio::test(flavor = "multi_thread")]
async fn a_head_of_an_earlier_time_loses_nothing() {
    let history = History::new().await;
    let (head, version) = history.lab.catalog().head().await.expect("readable").expect("there");
    drop(history.lab.database("app.db", "INSERT INTO t VALUES ('third')"));
    let third = history.lab.stored(&history.lab.path("app.db")).await;
    // By whoever goes on from it.
    history.memory.overwrite("app/head.json", head.encode());
    let found = history.lab.catalog().newest().await.expect("readable").expect("there");
    assert_eq!(found.id, history.manifests[1].id);
    history.restore(1).await.expect("the right bytes for that name");
    drop(history.lab.database("app.db", "INSERT INTO t VALUES ('fourth')"));
    let fourth = history.lab.stored(&history.lab.path("app.db")).await;
    let listing = history.lab.catalog().list().await.expect("listed");
    let ids: Vec<_> = listing.snapshots.iter().map(|manifest| &manifest.id).collect();
    assert!(ids.contains(&&third.id) && ids.contains(&&fourth.id), "{ids:?}");
    history.lab.restored_to(&third, &history.lab.path("third.db")).await.expect("restores by its id");
    // And by whoever had read an earlier one before: what it expects is not there any more.
    let key = Key::Head("app".parse().expect("a name"));
    let late = history.lab.storage.replace(&key, Some(&version), head.encode().into()).await;
    let late = late.map(drop).map_err(|error| error.kind());
    // The same bytes are the same version: only a head that moved on is noticed.
    assert_eq!(late, Err(ErrorKind::Conflict));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_was_there_and_is_not_is_missed() {
    let history = History::new().await;
    history.lab.storage.delete(&history.manifests[1].key()).await.expect("removed");
    let error = history.lab.catalog().newest().await.expect_err("an older one is not passed off as it");
    assert_names(&error, history.manifests[1].id.as_str(), "the manifest is gone");
    history.restore(0).await.expect("the other one is untouched");
}
