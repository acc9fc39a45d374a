//! One daemon's life against a store that fails where it is told to, and what must hold afterwards.

use std::collections::BTreeSet;
use std::fs;
use std::path::PathBuf;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use lifeboat::backup::{self, Outcome};
use lifeboat::catalog::Catalog;
use lifeboat::clock::Clock;
use lifeboat::error::{ErrorKind, Result};
use lifeboat::lineage::Standing;
use lifeboat::prune;
use lifeboat::restore::{self, Damage, Moment};
use lifeboat::snapshot::{Key, Manifest, SnapshotId};
use lifeboat::storage::{self, Entry, Guarantees, Object, Parts, Patience, S3, S3Settings, Storage, Version};
use lifeboat::verify;
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use crate::scripted_store::Life;
use crate::storage::noise;
use crate::support::lab::Lab;
use crate::support::s3_server::{Server, connect};

/// Data goes up in parts of this size, so that a small database is a true multipart upload.
const PART_BYTES: usize = 6 << 10;

/// S3 that is handed smaller parts than a backup makes.
#[derive(Debug)]
struct SmallParts(S3);

#[async_trait]
impl Storage for SmallParts {
    fn location(&self) -> String {
        self.0.location()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        let cut = |part: Result<Bytes>| match part {
            Ok(bytes) => {
                let pieces = bytes.chunks(PART_BYTES).map(Bytes::copy_from_slice);
                pieces.map(Ok).collect::<Vec<_>>()
            }
            Err(error) => vec![Err(error)],
        };
        self.0.create(key, parts.flat_map(move |part| stream::iter(cut(part))).boxed()).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        self.0.replace(key, expected, bytes).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.0.read(key, bytes_max).await
    }

    async fn read_range(&self, key: &Key, range: std::ops::Range<u64>) -> Result<Bytes> {
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
        self.0.guarantees()
    }
}

/// The database as it is before each of three snapshots: made once, small, and not to be compressed.
fn states() -> &'static [Vec<u8>; 3] {
    static STATES: OnceLock<[Vec<u8>; 3]> = OnceLock::new();
    STATES.get_or_init(|| {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("app.db");
        let connection = Connection::open(&path).expect("the database opens");
        connection.execute_batch("CREATE TABLE t(x)").expect("the statement runs");
        [1, 2, 3].map(|seed| {
            let row = noise(3 * PART_BYTES, seed).to_vec();
            connection.execute("UPDATE t SET x = ?1", [&row]).expect("writes");
            connection
                .execute("INSERT INTO t SELECT ?1 WHERE NOT EXISTS (SELECT 1 FROM t)", [&row])
                .expect("writes");
            fs::read(&path).expect("readable")
        })
    })
}

/// A database on a machine, a server, and what the machine was told is safe.
pub struct Snapshots {
    server: Server,
    lab: Lab,
    acknowledged: Vec<(SnapshotId, usize)>,
    /// Whether a prune has begun, which may remove what a newer snapshot makes superfluous.
    pruned: bool,
}

impl Life for Snapshots {
    async fn start(patience: Patience) -> Snapshots {
        let server = Server::start().await;
        server.take_small_parts();
        let settings = S3Settings { patience, part_concurrency: 2, ..server.settings() };
        let storage = SmallParts(connect(settings).await);
        let dir = tempfile::tempdir().expect("a temporary directory");
        Snapshots { server, lab: Lab::over(dir, Arc::new(storage)), acknowledged: Vec::new(), pruned: false }
    }

    fn server(&self) -> &Server {
        &self.server
    }

    async fn live(&mut self) -> Result<()> {
        let catalog = self.catalog();
        storage::probe(self.lab.storage.as_ref()).await?;
        self.lab.storage.sweep_unfinished(Timestamp::now() - SignedDuration::from_hours(24)).await?;
        let newest = catalog.newest().await?.map(|newest| newest.id);
        match catalog.newest_drills().await {
            Err(error) if error.kind() == ErrorKind::Denied => {}
            drills => drop(drills?),
        }
        let epoch = catalog.claim_epoch_after(newest.as_ref(), "test", Timestamp::now()).await?;
        for state in [0, 1] {
            let manifest = self.back_up(epoch, state).await?;
            verify::run(&catalog, &manifest, &self.lab.resources()).await.map_err(|failure| failure.error)?;
        }
        self.prune(epoch).await?;
        let newest = catalog.newest().await?.expect("acknowledged");
        self.restore(&newest, "restored.db").await?;
        catalog.release_epoch(epoch, Timestamp::now()).await
    }

    async fn check(&self) {
        self.server.heal();
        let catalog = self.catalog();
        let listing = catalog.list().await.expect("listed");
        assert!(listing.damaged.is_empty(), "{:?}", listing.damaged);
        for manifest in &listing.snapshots {
            let restored = self.restore(manifest, "listed.db").await.expect("what is listed restores");
            let state = states().iter().position(|state| *state == restored);
            let state = state.unwrap_or_else(|| panic!("{} holds what never was", manifest.id));
            let told = self.acknowledged.iter().find(|(id, _)| *id == manifest.id);
            assert!(told.is_none_or(|(_, stored)| *stored == state), "{} holds another state", manifest.id);
        }
        let newest = catalog.newest().await.expect("readable").map(|newest| newest.id);
        let last = self.acknowledged.last().map(|(id, _)| id.clone());
        assert!(newest >= last, "the newest is {newest:?}, acknowledged was {last:?}");
        let due = if self.pruned { self.acknowledged.len().saturating_sub(1) } else { 0 };
        for (id, _) in &self.acknowledged[due..] {
            assert!(listing.snapshots.iter().any(|manifest| manifest.id == *id), "{id} was acknowledged");
        }
    }

    /// And leaves nothing behind of what went wrong.
    async fn go_on(&mut self) {
        let catalog = self.catalog();
        let newest = catalog.newest().await.expect("readable").map(|newest| newest.id);
        let now = Timestamp::now();
        let epoch = catalog.claim_epoch_after(newest.as_ref(), "test", now).await.expect("claimed");
        let manifest = self.back_up(epoch, 2).await.expect("the next backup succeeds");
        let proven = verify::run(&catalog, &manifest, &self.lab.resources()).await;
        proven.map_err(|failure| failure.error).expect("the next drill succeeds");
        self.prune(epoch).await.expect("the next prune succeeds");
        let soon = Timestamp::now() + SignedDuration::from_hours(1);
        self.lab.storage.sweep_unfinished(soon).await.expect("swept");
        assert_eq!(self.server.unfinished(), 0);
        let paths = paths(&self.lab).await;
        let ids = |folder: &str| -> Vec<&str> {
            let of = paths.iter().filter_map(|path| path.strip_prefix("app/")?.strip_prefix(folder));
            of.map(|name| name.split('.').next().unwrap_or(name)).collect()
        };
        let (id, _) = manifest.id.as_str().split_once('.').expect("a fraction of a second");
        assert_eq!(ids("manifests/"), [id], "one is kept");
        assert_eq!(ids("snapshots/"), [id], "no orphan stays");
        assert_eq!(ids("proofs/"), [id], "no proof of nothing stays");
    }

    async fn residue(&self) -> String {
        residue(&self.lab, &self.server).await
    }
}

/// What storage holds, but for names and times.
pub async fn residue(lab: &Lab, server: &Server) -> String {
    let mut residue = paths(lab).await.join("\n");
    let head = lab.catalog().head().await.expect("readable");
    let head = head.map(|(head, _)| (head.epoch, head.snapshot, head.released));
    residue.push_str(&format!("\n{head:?} {}", server.unfinished()));
    let ids: BTreeSet<String> = residue
        .split(|c: char| !(c.is_ascii_alphanumeric() || c == '.' || c == '-'))
        .filter_map(|word| word.get(..ID_LENGTH)?.parse::<SnapshotId>().ok())
        .map(|id| id.to_string())
        .collect();
    for (rank, id) in ids.iter().enumerate() {
        residue = residue.replace(id, &format!("ID{rank}"));
    }
    residue
}

async fn paths(lab: &Lab) -> Vec<String> {
    let objects = lab.storage.list("app/").await.expect("listed");
    objects.into_iter().map(|entry| entry.path).collect()
}

impl Snapshots {
    fn catalog(&self) -> Catalog {
        self.lab.catalog()
    }

    fn database(&self) -> PathBuf {
        self.lab.path("app.db")
    }

    async fn back_up(&mut self, epoch: u64, state: usize) -> Result<Manifest> {
        fs::write(self.database(), &states()[state]).expect("writable");
        let (catalog, database, settings) = (self.catalog(), self.database(), &self.lab.settings);
        let (standing, clock, cancel) = (Standing::head(epoch), Clock::system(), CancellationToken::new());
        let quiet = Arc::new(|_| {});
        let outcome = backup::run(
            &catalog,
            &standing,
            backup::Work {
                database: catalog.database(),
                path: &database,
                settings,
                clock: &clock,
                cancel: &cancel,
                on_progress: quiet,
                follower: None,
            },
        )
        .await?;
        let Outcome::Stored(manifest) = outcome else { panic!("it was changed") };
        self.acknowledged.push((manifest.id.clone(), state));
        Ok(*manifest)
    }

    async fn prune(&mut self, epoch: u64) -> Result<()> {
        self.pruned = true;
        let (catalog, policy) = (self.catalog(), "1l".parse().expect("a policy"));
        let plan = prune::plan(
            &catalog,
            prune::Rules { policy: &policy, point_in_time: Duration::ZERO, safety_age: Duration::ZERO },
            Timestamp::now(),
        )
        .await?;
        prune::apply(&catalog, &plan, epoch).await.1
    }

    async fn restore(&self, manifest: &Manifest, name: &str) -> Result<Vec<u8>> {
        let output = self.lab.path(name);
        restore::to_new_file(&self.lab.resources(), &Moment::of(manifest.clone()), &output, Damage::Refused)
            .await?;
        let bytes = fs::read(&output).expect("readable");
        fs::remove_file(&output).expect("removable");
        Ok(bytes)
    }
}

const ID_LENGTH: usize = "20261121T140500.123Z-9f3a2c07".len();
