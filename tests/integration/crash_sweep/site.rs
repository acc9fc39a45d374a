//! A place where the real program is killed: a database whose every state is known, its storage, and what was
//! promised of it so far.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use lifeboat::backup;
use lifeboat::catalog::Catalog;
use lifeboat::clock::Clock;
use lifeboat::lineage::Standing;
use lifeboat::prune;
use lifeboat::restore::{self, Checks, Damage, Moment, Resources};
use lifeboat::snapshot::{Digest, Manifest, SnapshotId};
use lifeboat::source::OnProgress;
use lifeboat::storage::{Directory, Storage};
use lifeboat::verify;
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tempfile::TempDir;
use tokio::runtime::Runtime;
use tokio_util::sync::CancellationToken;

use crate::support::program::{Ended, Program, free_address};
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server};

/// What is nowhere to be read in what the program prints.
const TOKEN: &str = "canary-of-the-http-interface";

/// What a database holds: the digest of its file once its log is folded in, or of what is no database.
/// `None` where there is none.
pub type Content = Option<Digest>;

/// Where snapshots go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Store {
    Directory,
    Bucket,
}

pub struct Site {
    pub program: Program,
    /// Looked at past the program.
    pub storage: Arc<dyn Storage>,
    server: Option<Server>,
    /// Serves the bucket.
    runtime: Runtime,
    /// Everything the database ever held.
    states: BTreeSet<Content>,
    /// Snapshots whose backup ended well, and what they hold.
    pub acknowledged: BTreeMap<SnapshotId, Content>,
    /// Snapshots that were told to wait in the spool, and what they hold.
    pub waiting: BTreeMap<SnapshotId, Content>,
    /// Those of them that were told to be dropped, by the spool's own note or in the log.
    pub dropped: BTreeSet<SnapshotId>,
    /// What the database may hold after the next crash.
    pub allowed: BTreeSet<Content>,
    /// Objects that restored before, and what to.
    restored: BTreeMap<Digest, Content>,
    versions: u32,
    /// The last version that storage was seen to have.
    pub stored_version: Cell<u32>,
    /// The snapshot a scenario is about.
    pub chosen: Option<SnapshotId>,
    /// How many of the newest snapshots retention keeps; all, unless a scenario is about pruning.
    pub keeps: usize,
}

impl Site {
    pub fn new(store: Store) -> Site {
        let runtime = Runtime::new().expect("a runtime");
        let program = Program::within(&folder_without_a_disk())
            .with("BACKUP_RETENTION", "1000l")
            .with("BACKUP_PRUNE_SAFETY_AGE", "0s")
            .with("BACKUP_VERIFY_SCHEDULE", "off")
            .with("BACKUP_PRUNE_SCHEDULE", "off")
            .with("BACKUP_HTTP_TOKEN", TOKEN);
        let (program, storage, server): (_, Arc<dyn Storage>, _) = match store {
            Store::Directory => {
                let storage = Directory::open(program.path("backups")).expect("opens");
                (program, Arc::new(storage), None)
            }
            Store::Bucket => {
                let server = runtime.block_on(Server::start());
                let storage = runtime.block_on(server.storage());
                let program = program
                    .with("BACKUP_S3_BUCKET", BUCKET)
                    .with("BACKUP_S3_PREFIX", "some/prefix")
                    .with("AWS_REGION", "eu-north-1")
                    .with("AWS_ENDPOINT_URL_S3", &server.url)
                    .with("AWS_ACCESS_KEY_ID", KEY_ID)
                    .with("AWS_SECRET_ACCESS_KEY", SECRET);
                (program, Arc::new(storage), Some(server))
            }
        };
        Site {
            program,
            storage,
            server,
            runtime,
            states: BTreeSet::new(),
            acknowledged: BTreeMap::new(),
            waiting: BTreeMap::new(),
            dropped: BTreeSet::new(),
            allowed: BTreeSet::new(),
            restored: BTreeMap::new(),
            versions: 0,
            stored_version: Cell::new(0),
            chosen: None,
            keeps: usize::MAX,
        }
    }

    pub fn set(&mut self, name: &str, value: impl Into<String>) {
        self.program.set(name, value);
    }

    pub fn block_on<T>(&self, act: impl Future<Output = T>) -> T {
        self.runtime.block_on(act)
    }

    pub fn catalog(&self) -> Catalog {
        Catalog::new(Arc::clone(&self.storage), "app".parse().expect("a name"))
    }

    pub fn data(&self) -> PathBuf {
        self.program.path("data")
    }

    // The application.

    /// Makes the database: in this journal mode, with `fill` in it beside the rows that change.
    pub fn make(&mut self, journal: &str, fill: &str) {
        let app = Connection::open(self.program.database()).expect("opens");
        app.execute_batch(&format!(
            "PRAGMA page_size=1024; PRAGMA journal_mode={journal}; CREATE TABLE t(version INTEGER, x BLOB); CREATE TABLE fill(x BLOB);
            WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<50)
            INSERT INTO t SELECT 0, zeroblob(500) FROM n; {fill}"
        ))
        .expect("filled");
        drop(app);
        self.write();
    }

    /// The application commits once, on many pages, waiting for nobody's lock, and closes.
    pub fn write(&mut self) {
        self.commit(false);
    }

    /// The same, and is killed: its log stays beside the database.
    pub fn write_and_die(&mut self) {
        self.commit(true);
        assert!(self.data().join("app.db-wal").exists(), "there is a log");
    }

    fn commit(&mut self, leaves_log: bool) {
        self.versions += 1;
        let app = Connection::open(self.program.database()).expect("opens");
        app.busy_timeout(Duration::ZERO).expect("set");
        app.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, leaves_log).expect("set");
        app.execute("UPDATE t SET version = ?1", [self.versions]).expect("no lock is in the way");
        drop(app);
        self.remember();
    }

    /// What stands there now is what the database may hold, and nothing else.
    pub fn remember(&mut self) {
        let content = self.content();
        self.states.insert(content);
        self.allowed = BTreeSet::from([content]);
    }

    /// The application will commit these versions, one after the other, while the program runs.
    pub fn foresee(&mut self, versions: &[u32]) {
        let (folder, copy) = self.copy();
        for version in versions {
            let app = Connection::open(&copy).expect("opens");
            app.execute("UPDATE t SET version = ?1", [version]).expect("commits");
            drop(app);
            fold(&copy).expect("folded");
            let content = Some(normalised(&copy));
            self.states.insert(content);
            self.allowed.insert(content);
        }
        drop(folder);
    }

    /// A copy of the database with its log, in a folder of its own.
    fn copy(&self) -> (TempDir, PathBuf) {
        let folder = tempfile::tempdir_in(self.program.dir.path()).expect("a folder");
        let copy = folder.path().join("app.db");
        for suffix in ["", "-wal", "-journal"] {
            let file = self.data().join(format!("app.db{suffix}"));
            if file.exists() {
                fs::copy(&file, folder.path().join(format!("app.db{suffix}"))).expect("copied");
            }
        }
        (folder, copy)
    }

    /// What the database holds; looked at in a copy, so that nothing is changed. Nobody in this process has it open
    /// then, so no lock is dropped.
    pub fn content(&self) -> Content {
        let database = self.program.database();
        if !database.exists() {
            return None;
        }
        let (_folder, copy) = self.copy();
        // What is no database has nothing to fold in, and counts as it is.
        let _ = fold(&copy);
        Some(normalised(&copy))
    }

    /// Whether this is a state that was committed, all of it and nothing else.
    pub fn was_committed(&self, content: &Content) -> bool {
        self.states.contains(content)
    }

    /// Whether what stands there is one.
    pub fn holds_a_database(&self) -> bool {
        let header = fs::read(self.program.database()).unwrap_or_default();
        header.starts_with(b"SQLite format 3\0")
    }

    // Promises.

    // Done in this process, past the program, for this is not what is tried.

    /// A backup that ends well, and is remembered.
    pub fn back_up(&mut self) -> SnapshotId {
        let (catalog, database, clock) = (self.catalog(), self.program.database(), Clock::system());
        let settings = backup::Settings {
            busy_timeout: Duration::from_secs(10),
            deadline: Duration::from_secs(100),
            wal_growth_max: 1 << 30,
            writer_blocked_max: Duration::from_secs(30),
            zstd_level: 1,
            threads: 2,
            scratch: self.scratch(),
            distrusted: None,
            accept_shrunken: false,
        };
        let id = self.block_on(async {
            let epoch = match catalog.head().await.expect("readable") {
                Some((head, _)) => head.epoch,
                None => catalog.claim_epoch("the site", clock.now()).await.expect("free"),
            };
            let (standing, cancel) = (Standing::head(epoch), CancellationToken::new());
            let quiet: OnProgress = Arc::new(|_| {});
            let stored = backup::run(
                &catalog,
                &standing,
                backup::Work {
                    database: catalog.database(),
                    path: &database,
                    settings: &settings,
                    clock: &clock,
                    cancel: &cancel,
                    on_progress: quiet,
                    follower: None,
                },
            )
            .await;
            stored.expect("stored").manifest().id.clone()
        });
        self.acknowledged.insert(id.clone(), self.content());
        id
    }

    /// A proof of the newest snapshot. What was left in the scratch directory is swept.
    pub fn prove(&self) {
        let (catalog, resources) = (self.catalog(), self.resources(&self.scratch()));
        self.block_on(async {
            let newest = catalog.newest().await.expect("readable").expect("there is one");
            if let Err(failure) = verify::run(&catalog, &newest, &resources).await {
                panic!("I1: {}: {}", newest.id, failure.error.chain());
            }
        });
    }

    /// Whether the newest snapshot is proven.
    pub fn is_proven(&self) -> bool {
        let catalog = self.catalog();
        self.block_on(async {
            match catalog.newest_id().await.expect("readable") {
                Some(id) => catalog.proof(&id).await.expect("readable").is_some(),
                None => false,
            }
        })
    }

    /// What retention does, with nothing too young for it.
    pub fn prune(&self) {
        let (catalog, policy) = (self.catalog(), self.program.variable("BACKUP_RETENTION").parse());
        let now = Clock::system().now();
        self.block_on(async {
            let plan = prune::plan(
                &catalog,
                prune::Rules {
                    policy: &policy.expect("a policy"),
                    point_in_time: Duration::ZERO,
                    safety_age: Duration::ZERO,
                },
                now,
            )
            .await;
            let plan = plan.expect("planned");
            prune::apply(&catalog, &plan, plan.epoch).await.1.expect("pruned");
        });
    }

    fn scratch(&self) -> PathBuf {
        self.program.path("backups/.lifeboat-scratch")
    }

    pub fn resources(&self, scratch: &Path) -> Resources {
        Resources {
            storage: Arc::clone(&self.storage),
            scratch: scratch.to_owned(),
            threads: 2,
            checks: Checks { deadline: Duration::from_secs(60), assertion: None },
            clock: Clock::system(),
            on_progress: Arc::new(|_| {}),
        }
    }

    /// After the next crash the database may also hold what `id` does: it is being restored.
    pub fn allow(&mut self, id: &SnapshotId) {
        let content = self.acknowledged[id];
        self.allowed.insert(content);
    }

    /// What a listed snapshot restores to, past the program.
    pub fn restored(&mut self, manifest: &Manifest, object: Digest) -> Content {
        let storage = Arc::clone(&self.storage);
        self.restored_from(storage, manifest, object)
    }

    /// The same of a snapshot in another storage.
    pub fn restored_from(
        &mut self,
        storage: Arc<dyn Storage>,
        manifest: &Manifest,
        object: Digest,
    ) -> Content {
        if let Some(known) = self.restored.get(&object) {
            return *known;
        }
        let folder = tempfile::tempdir_in(self.program.dir.path()).expect("a folder");
        let moment = Moment::of(manifest.clone());
        let output = folder.path().join("restored.db");
        let resources = Resources { storage, ..self.resources(folder.path()) };
        let restored = restore::to_new_file(&resources, &moment, &output, Damage::Refused);
        self.block_on(restored)
            .unwrap_or_else(|error| panic!("{} is listed: {}", manifest.id, error.chain()));
        let content = Some(normalised(&output));
        self.restored.insert(object, content);
        content
    }

    // Outages.

    /// The bucket refuses everybody.
    pub fn refuse(&self) {
        let server = self.server.as_ref().expect("a bucket");
        server.fault_at(0, usize::MAX, Fault::Status(403, "AccessDenied"));
    }

    /// The bucket answers again.
    pub fn heal(&self) {
        self.server.as_ref().expect("a bucket").heal();
    }

    pub fn spool(&self) -> PathBuf {
        self.program.path("backups/.lifeboat-spool")
    }

    /// Takes in what a run said of the spool, while the database still is what it was then.
    pub fn note_waiting(&mut self, ended: &Ended) {
        let content = self.content();
        let named = |line: &str, before: &str| {
            let after = line.split_once(before)?.1;
            after.split(' ').next()?.parse::<SnapshotId>().ok()
        };
        for line in ended.stderr.lines() {
            if line.contains("waits in the spool, for storage") {
                let id = named(line, "snapshot ").unwrap_or_else(|| panic!("no id in: {line}"));
                self.waiting.entry(id).or_insert(content);
            }
            if line.contains("from the spool, which never reached storage") {
                let id = named(line, "dropped snapshot ").unwrap_or_else(|| panic!("no id in: {line}"));
                self.dropped.insert(id);
            }
        }
    }

    // Time.

    /// Two days pass for whatever was begun and not finished.
    pub fn age_unfinished(&self) {
        if let Some(server) = &self.server {
            server.age_unfinished();
        }
        for file in self.unfinished() {
            let ago = SystemTime::now() - Duration::from_secs(2 * 24 * 3600);
            File::options().write(true).open(&file).expect("opens").set_modified(ago).expect("set");
        }
    }

    /// What is begun and not finished: beside the database, in storage, in the scratch directory.
    pub fn unfinished(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for folder in ["data", "backups", "elsewhere"] {
            walk(&self.program.path(folder), &mut found);
        }
        let is_ours = |path: &PathBuf| {
            let name = path.file_name().unwrap_or_default().to_string_lossy();
            [".lifeboat-tmp-", ".lifeboat-copy-"].iter().any(|prefix| name.starts_with(prefix))
                || name.ends_with(".lifeboat-intent")
        };
        found.retain(is_ours);
        found
    }

    /// Whether a swap is noted that has not come to its end.
    pub fn has_intent(&self) -> bool {
        self.unfinished().iter().any(|path| path.to_string_lossy().ends_with(".lifeboat-intent"))
    }

    /// Uploads to the bucket that have begun and not ended.
    pub fn unfinished_uploads(&self) -> usize {
        self.server.as_ref().map_or(0, Server::unfinished)
    }

    /// Fails if a secret is in what a run printed.
    pub fn require_discretion(&self, ended: &Ended) {
        for secret in [SECRET, TOKEN] {
            let told = ended.stdout.contains(secret) || ended.stderr.contains(secret);
            assert!(!told, "a secret is printed: {ended:?}");
        }
    }

    /// Has the daemon listen.
    pub fn listen(&mut self) {
        self.set("BACKUP_HTTP_ADDR", free_address().to_string());
    }

    pub fn token(&self) -> &'static str {
        TOKEN
    }
}

/// A killed process loses nothing that it wrote, synced or not. So a file system in memory shows the same as a disk,
/// and does not make every sync be waited for; where there is none with room, a disk does as well.
fn folder_without_a_disk() -> PathBuf {
    const ROOM: u64 = 1 << 30;
    let memory = Path::new("/dev/shm");
    match rustix::fs::statvfs(memory) {
        Ok(stat) if stat.f_bavail * stat.f_frsize >= ROOM => memory.to_owned(),
        _ => std::env::temp_dir(),
    }
}

/// Folds the log of a closed database into it, and looks whether it is whole.
fn fold(path: &Path) -> rusqlite::Result<()> {
    let connection = Connection::open(path)?;
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    let verdict: String = connection.query_row("PRAGMA quick_check", [], |row| row.get(0))?;
    assert_eq!(verdict, "ok", "{}", path.display());
    Ok(())
}

/// The digest of a database file without the counters in its header that every transaction moves, also one that
/// puts older content back.
pub fn normalised(path: &Path) -> Digest {
    let mut bytes = fs::read(path).expect("readable");
    for counter in [24..28, 40..44, 92..100] {
        if let Some(counter) = bytes.get_mut(counter) {
            counter.fill(0);
        }
    }
    Digest::of(&bytes)
}

pub fn walk(folder: &Path, found: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(folder) else { return };
    for entry in entries {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            walk(&path, found);
        } else {
            found.push(path);
        }
    }
}
