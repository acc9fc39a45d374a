//! A database, its storage, and a spool beside it.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use lifeboat::clock::Clock;
use lifeboat::descent::Descent;
use lifeboat::error::Result;
use lifeboat::lineage::Standing;
use lifeboat::metrics::Metrics;
use lifeboat::snapshot::{Manifest, SnapshotId};
use lifeboat::spool::{Asked, Destination, Limits, Published, Settings, Shipped, Spool, Taken};
use lifeboat::storage::{Directory, Faulty};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use super::lab::Lab;

pub const STORAGE: &str = "s3://somewhere/";

/// Enough for all that is tried here.
pub const LIMITS: Limits = Limits { bytes_max: 64 << 20, age_max: Duration::from_secs(3_600) };

pub struct Harbour {
    pub lab: Lab,
    /// Where faults are scripted.
    pub storage: Faulty,
    pub app: Connection,
    pub clock: Clock,
}

impl Harbour {
    /// A database `app.db` with one row, and an epoch 1 claimed for it.
    pub async fn new() -> Harbour {
        Harbour::at(Clock::system()).await
    }

    pub async fn at(clock: Clock) -> Harbour {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::open(dir.path().join("backups")).expect("the directory opens");
        let storage = Faulty::new(Arc::new(directory));
        let lab = Lab::over(dir, Arc::new(storage.clone()));
        let app =
            lab.database("app.db", "PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES (0)");
        lab.catalog().claim_epoch("test", clock.now()).await.expect("claimed");
        Harbour { lab, storage, app, clock }
    }

    pub fn folder(&self) -> PathBuf {
        self.lab.path("spool")
    }

    pub fn spool(&self, limits: Limits) -> Spool {
        self.spool_in(self.folder(), limits)
    }

    pub fn spool_in(&self, folder: PathBuf, limits: Limits) -> Spool {
        let storage = STORAGE.to_owned();
        let settings = Settings { folder, storage, limits };
        let name = "app".parse().expect("a valid name");
        let metrics = Metrics::new().database(&name);
        Spool::new(settings, name, self.clock.clone(), metrics)
    }

    /// Adds a row with so many bytes that do not compress.
    pub fn write(&self, bytes: u32) {
        self.app.execute("INSERT INTO t VALUES (randomblob(?1))", [bytes]).expect("written");
    }

    pub async fn try_take(&self, spool: &Spool, published: Published, epoch: u64) -> Result<Taken> {
        let asked = Asked {
            path: &self.lab.path("app.db"),
            settings: &self.lab.settings,
            published,
            epoch,
            is_branch: false,
            trusts_stamps: true,
            cancel: &CancellationToken::new(),
            on_progress: Arc::new(|_| {}),
        };
        spool.take(asked).await
    }

    /// Replaces all rows by one of so many bytes, and tries to take that.
    pub async fn try_take_more(&self, spool: &Spool, bytes: u32) -> Result<Taken> {
        self.app.execute_batch("DELETE FROM t").expect("emptied");
        self.write(bytes);
        self.app.execute_batch("VACUUM").expect("compact");
        self.try_take(spool, Published::default(), 1).await
    }

    /// Writes, and takes what must wait then, by the process of epoch 1.
    pub async fn take(&self, spool: &Spool) -> Manifest {
        self.take_after(spool, None, 1).await
    }

    /// The same for a process of this epoch, after a published snapshot.
    pub async fn take_after(&self, spool: &Spool, newest: Option<&Manifest>, epoch: u64) -> Manifest {
        self.write(1_000);
        let published = Published {
            database_id: newest.map(|newest| newest.database_id.clone()),
            newest: newest.map(|newest| newest.id.clone()),
            manifest: newest.map(|newest| Box::new(newest.clone())),
        };
        match self.try_take(spool, published, epoch).await.expect("it is taken") {
            Taken::Waits(manifest) => *manifest,
            Taken::Published(manifest) => panic!("{} is published", manifest.id),
        }
    }

    pub async fn ship(&self, spool: &Spool, standing: &Standing) -> Result<Option<Shipped>> {
        let path = self.lab.path("app.db");
        let destination = Destination {
            catalog: &self.lab.catalog(),
            standing,
            holder: "test",
            descent: &Descent::of(&"app".parse().expect("a valid name"), &path, &self.lab.settings.scratch),
            resources: &self.lab.resources(),
        };
        spool.ship_next(&destination).await
    }

    /// Ships until nothing more can be, as the head of epoch 1; what is in storage then, in that order.
    pub async fn ship_all(&self, spool: &Spool) -> Vec<Manifest> {
        let mut shipped = Vec::new();
        while let Some(one) = self.ship(spool, &Standing::head(1)).await.expect("shipped") {
            shipped.extend(one.manifest().cloned());
        }
        shipped
    }

    pub async fn head(&self) -> Option<SnapshotId> {
        self.lab.catalog().newest_id().await.expect("read")
    }

    /// Every file of the spool but locks, with its content.
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        let mut folders = vec![self.folder()];
        let mut files = Vec::new();
        while let Some(folder) = folders.pop() {
            for entry in fs::read_dir(folder).into_iter().flatten() {
                let path = entry.expect("an entry").path();
                match path.is_dir() {
                    true => folders.push(path),
                    false if path.ends_with("spool.lock") => {}
                    false => {
                        let bytes = fs::read(&path).expect("readable");
                        files.push((path, bytes));
                    }
                }
            }
        }
        files.sort();
        files
    }
}

pub fn ids(manifests: &[Manifest]) -> Vec<&SnapshotId> {
    manifests.iter().map(|manifest| &manifest.id).collect()
}
