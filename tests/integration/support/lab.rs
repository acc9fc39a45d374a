//! A database, a storage and everything a backup and a restore need, in a temporary directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use lifeboat::backup::{self, Outcome};
use lifeboat::catalog::Catalog;
use lifeboat::clock::Clock;
use lifeboat::error::Result;
use lifeboat::lineage::Standing;
use lifeboat::restore::{self, Checks, Damage, Moment, Resources, Restored};
use lifeboat::snapshot::Manifest;
use lifeboat::source::OnProgress;
use lifeboat::storage::{Directory, Storage};
use rusqlite::Connection;
use tempfile::TempDir;
use tokio_util::sync::CancellationToken;

pub struct Lab {
    pub dir: TempDir,
    pub storage: Arc<dyn Storage>,
    pub settings: backup::Settings,
}

impl Lab {
    /// A laboratory over a directory storage.
    pub fn new() -> Lab {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let storage = Directory::open(dir.path().join("backups")).expect("the directory opens");
        Lab::over(dir, Arc::new(storage))
    }

    /// A laboratory over any storage.
    pub fn over(dir: TempDir, storage: Arc<dyn Storage>) -> Lab {
        let settings = backup::Settings {
            busy_timeout: Duration::from_secs(2),
            deadline: Duration::from_secs(120),
            wal_growth_max: 1 << 30,
            writer_blocked_max: Duration::from_secs(30),
            zstd_level: 1,
            threads: 2,
            scratch: dir.path().join("scratch"),
            distrusted: None,
            accept_shrunken: false,
        };
        Lab { dir, storage, settings }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// A database at `name`, made by running `sql`. The connection stays open with the caller.
    pub fn database(&self, name: &str, sql: &str) -> Connection {
        let connection = Connection::open(self.path(name)).expect("the database opens");
        connection.execute_batch(sql).expect("the statements run");
        connection
    }

    pub fn catalog(&self) -> Catalog {
        Catalog::new(Arc::clone(&self.storage), "app".parse().expect("a valid name"))
    }

    pub fn resources(&self) -> Resources {
        Resources {
            storage: Arc::clone(&self.storage),
            scratch: self.path("scratch"),
            threads: 2,
            checks: Checks { deadline: Duration::from_secs(60), assertion: None },
            clock: Clock::system(),
            on_progress: Arc::new(|_| {}),
        }
    }

    pub async fn back_up(&self, database: &Path) -> Result<Outcome> {
        self.back_up_watched(database, Arc::new(|_| {})).await
    }

    /// Backs up, and tells `progress` how far it is.
    pub async fn back_up_watched(&self, database: &Path, progress: OnProgress) -> Result<Outcome> {
        let cancel = CancellationToken::new();
        let standing = Standing::head(1);
        let (catalog, clock) = (self.catalog(), Clock::system());
        let work = backup::Work {
            database: catalog.database(),
            path: database,
            settings: &self.settings,
            clock: &clock,
            cancel: &cancel,
            on_progress: progress,
            follower: None,
        };
        backup::run(&catalog, &standing, work).await
    }

    /// Backs up what must be stored, and returns its manifest.
    pub async fn stored(&self, database: &Path) -> Manifest {
        match self.back_up(database).await.expect("the backup succeeds") {
            Outcome::Stored(manifest) => *manifest,
            Outcome::Unchanged(known) => panic!("unchanged since {}", known.id),
        }
    }

    pub async fn restored_to(&self, manifest: &Manifest, output: &Path) -> Result<Restored> {
        restore::to_new_file(&self.resources(), &Moment::of(manifest.clone()), output, Damage::Refused).await
    }
}

/// Folds the log of a database in, so that its file is comparable; nobody else may have it open.
pub fn checkpoint(path: &Path) {
    let connection = Connection::open(path).expect("the database opens");
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("the checkpoint runs");
}

/// Fails unless two files are the same, byte for byte.
pub fn assert_same_bytes(one: &Path, other: &Path) {
    let (one_bytes, other_bytes) = (fs::read(one).expect("readable"), fs::read(other).expect("readable"));
    assert_eq!(
        one_bytes.len(),
        other_bytes.len(),
        "{} and {} differ in size",
        one.display(),
        other.display()
    );
    let differs = one_bytes.iter().zip(&other_bytes).position(|(one, other)| one != other);
    assert_eq!(differs, None, "{} and {} differ at this byte", one.display(), other.display());
}
