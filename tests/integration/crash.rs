//! Storage that fails or dies at every single operation of a backup: what is listed restores, what was
//! acknowledged stays, the next backup succeeds, and what was left behind is swept.

use std::collections::BTreeSet;
use std::fs;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::{SignedDuration, Timestamp};
use lifeboat::backup::Outcome;
use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::prune;
use lifeboat::snapshot::{Key, Manifest, SnapshotId};
use lifeboat::storage::{
    Entry, Fault, Faulty, Guarantees, How, Memory, Object, Operation, Parts, Storage, Version,
};

use crate::support::lab::Lab;

/// Dies in the `nth` operation, before or after it took effect; from then on nothing is answered,
/// as far as a process that died with it can tell.
#[derive(Debug)]
struct Mortal {
    inner: Memory,
    nth: u32,
    after_effect: bool,
    calls: AtomicU32,
}

impl Mortal {
    fn new(inner: &Memory, nth: u32, after_effect: bool) -> Mortal {
        Mortal { inner: inner.clone(), nth, after_effect, calls: AtomicU32::new(0) }
    }

    async fn act<T>(&self, act: impl Future<Output = Result<T>> + Send) -> Result<T> {
        let call = self.calls.fetch_add(1, Ordering::SeqCst) + 1;
        if call < self.nth {
            return act.await;
        }
        if call == self.nth && self.after_effect {
            // Whatever came of it, nobody hears of it.
            let _ = act.await;
        }
        Err(Error::new(ErrorKind::Unavailable, "the storage is dead"))
    }

    fn is_dead(&self) -> bool {
        self.calls.load(Ordering::SeqCst) >= self.nth
    }
}

#[async_trait]
impl Storage for Mortal {
    fn location(&self) -> String {
        "mortal memory".to_owned()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        self.act(self.inner.create(key, parts)).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        self.act(self.inner.replace(key, expected, bytes)).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.act(self.inner.read(key, bytes_max)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.act(self.inner.read_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.act(self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.act(self.inner.list(prefix)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.act(self.inner.delete(key)).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.act(self.inner.sweep_unfinished(older_than)).await
    }

    fn guarantees(&self) -> Guarantees {
        Guarantees::FULL
    }
}

/// A database, its storage without any fault, and what it was at every acknowledged snapshot.
struct World {
    lab: Lab,
    memory: Memory,
    acknowledged: Vec<(SnapshotId, Vec<u8>)>,
}

impl World {
    /// With `snapshots` acknowledged snapshots already.
    async fn with(snapshots: u32) -> World {
        let memory = Memory::default();
        let lab = Lab::over(tempfile::tempdir().expect("a directory"), Arc::new(memory.clone()));
        drop(lab.database("app.db", "CREATE TABLE t(n); INSERT INTO t VALUES (0)"));
        let mut world = World { lab, memory, acknowledged: Vec::new() };
        for _ in 0..snapshots {
            world.back_up().await;
        }
        world
    }

    fn database(&self) -> PathBuf {
        self.lab.path("app.db")
    }

    /// Changes the database and returns its bytes.
    fn change(&self) -> Vec<u8> {
        drop(self.lab.database("app.db", "INSERT INTO t SELECT max(n) + 1 FROM t"));
        fs::read(self.database()).expect("readable")
    }

    /// A backup that must succeed.
    async fn back_up(&mut self) -> Manifest {
        let bytes = self.change();
        let manifest = self.lab.stored(&self.database()).await;
        self.acknowledged.push((manifest.id.clone(), bytes));
        manifest
    }

    /// A backup over a storage with faults, which may fail.
    async fn try_back_up(&mut self, storage: Arc<dyn Storage>) -> Result<SnapshotId> {
        let bytes = self.change();
        let faultless = std::mem::replace(&mut self.lab.storage, storage);
        let outcome = self.lab.back_up(&self.database()).await;
        self.lab.storage = faultless;
        match outcome? {
            Outcome::Stored(manifest) => {
                self.acknowledged.push((manifest.id.clone(), bytes));
                Ok(manifest.id)
            }
            Outcome::Unchanged(known) => panic!("unchanged since {}", known.id),
        }
    }

    /// Every listed snapshot restores, and to the right bytes where these are known.
    async fn check(&self, what: &str) {
        let listing = self.lab.catalog().list().await.expect("lists");
        assert!(listing.damaged.is_empty(), "{what}: {:?}", listing.damaged);
        for manifest in &listing.snapshots {
            let output = self.lab.path("check.db");
            let restored = self.lab.restored_to(manifest, &output).await;
            restored.unwrap_or_else(|error| panic!("{what}: {} is listed: {}", manifest.id, error.chain()));
            let bytes = fs::read(&output).expect("restored");
            fs::remove_file(&output).expect("removed");
            if let Some((_, known)) = self.acknowledged.iter().find(|(id, _)| *id == manifest.id) {
                assert!(bytes == *known, "{what}: {} is another database", manifest.id);
            }
        }
        for (id, _) in &self.acknowledged {
            assert!(listing.snapshots.iter().any(|manifest| manifest.id == *id), "{what}: {id} is lost");
        }
        let newest = self.lab.catalog().newest().await.expect("found").map(|manifest| manifest.id);
        let published = self.acknowledged.last().map(|(id, _)| id.clone());
        assert!(newest >= published, "{what}: the newest is older than what was acknowledged");
    }

    /// What follows any crash: all is well, a backup succeeds, a later prune leaves nothing over.
    async fn recovers(&mut self, what: &str) {
        self.check(what).await;
        let manifest = self.back_up().await;
        let newest = self.lab.catalog().newest().await.expect("found").map(|manifest| manifest.id);
        assert_eq!(newest, Some(manifest.id), "{what}");
        let policy = "1000l".parse().expect("a policy");
        let later = Timestamp::now() + SignedDuration::from_hours(2);
        let catalog = self.lab.catalog();
        let plan = prune::plan(
            &catalog,
            prune::Rules {
                policy: &policy,
                point_in_time: Duration::ZERO,
                safety_age: Duration::from_secs(3600),
            },
            later,
        )
        .await
        .expect(what);
        let (_, ended) = prune::apply(&catalog, &plan, 1).await;
        ended.expect(what);
        let ids = |folder: &str| -> BTreeSet<String> {
            let prefix = format!("app/{folder}/");
            let paths = self.memory.objects().into_iter().map(|(path, _)| path);
            let names = paths.filter_map(|path| path.strip_prefix(&prefix).map(str::to_owned));
            names.map(|name| name.trim_end_matches(".json").trim_end_matches(".db.zst").to_owned()).collect()
        };
        assert_eq!(ids("snapshots"), ids("manifests"), "{what}: orphans are swept, and only these");
        self.check(what).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_storage_that_dies_in_any_operation_of_a_backup_loses_nothing() {
    for snapshots in [0, 1, 2] {
        for after_effect in [false, true] {
            for nth in 1.. {
                let mut world = World::with(snapshots).await;
                let mortal = Arc::new(Mortal::new(&world.memory, nth, after_effect));
                let outcome = world.try_back_up(mortal.clone()).await;
                let what = format!("{snapshots} before, died in {nth} (after: {after_effect}): {outcome:?}");
                if !mortal.is_dead() {
                    assert!(outcome.is_ok() && nth > 5, "{what}");
                    break;
                }
                world.recovers(&what).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_single_failure_in_any_operation_of_a_backup_loses_nothing() {
    let operations = [
        (Operation::Create, 3),
        (Operation::Replace, 2),
        (Operation::Read, 6),
        (Operation::Head, 2),
        (Operation::List, 2),
        (Operation::Delete, 1),
    ];
    for (operation, calls) in operations {
        for nth in 1..=calls {
            for how in [
                How::Before(ErrorKind::Unavailable),
                How::After(ErrorKind::Unavailable),
                How::Before(ErrorKind::Denied),
                How::Before(ErrorKind::Conflict),
            ] {
                for snapshots in [0, 1] {
                    let mut world = World::with(snapshots).await;
                    let faulty = Faulty::new(Arc::new(world.memory.clone()));
                    faulty.script(Fault::at(operation, nth, how));
                    let outcome = world.try_back_up(Arc::new(faulty)).await;
                    let what = format!("{snapshots} before, {operation:?} {nth} {how:?}: {outcome:?}");
                    world.recovers(&what).await;
                }
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_prune_that_dies_in_any_operation_breaks_nothing() {
    for after_effect in [false, true] {
        for nth in 1.. {
            let mut world = World::with(4).await;
            let newest = world.lab.catalog().newest().await.expect("found").expect("there is one");
            let resources = world.lab.resources();
            lifeboat::verify::run(&world.lab.catalog(), &newest, &resources).await.expect("proven");
            let mortal = Arc::new(Mortal::new(&world.memory, nth, after_effect));
            let dying = lifeboat::catalog::Catalog::new(mortal.clone(), "app".parse().expect("a name"));
            let policy = "2l".parse().expect("a policy");
            let later = Timestamp::now() + SignedDuration::from_hours(2);
            let planned = prune::plan(
                &dying,
                prune::Rules {
                    policy: &policy,
                    point_in_time: Duration::ZERO,
                    safety_age: Duration::from_secs(3600),
                },
                later,
            )
            .await;
            if let Ok(plan) = &planned {
                let (_, _) = prune::apply(&dying, plan, 1).await;
            }
            // The two oldest may be gone, the two newest may not.
            world.acknowledged.drain(..2);
            let what = format!("prune died in {nth} (after: {after_effect})");
            if !mortal.is_dead() {
                let left = world.lab.catalog().list().await.expect("lists").snapshots.len();
                assert_eq!(left, 2, "{what}: it came to its end");
                break;
            }
            world.recovers(&what).await;
        }
    }
}
