//! One database, the application that writes it, and its capture.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};

use futures::future::BoxFuture;
use lifeboat::backup::{self, Follow};
use lifeboat::capture::{Capture, Needs, Writer};
use lifeboat::clock::{Clock, Timestamp};
use lifeboat::delta::PageTable;
use lifeboat::error::{ErrorKind, Result};
use lifeboat::lineage::Standing;
use lifeboat::restore::{self, Damage, Moment, Target};
use lifeboat::source::Source;
use lifeboat::storage::{Fault, Faulty, How, Memory, Operation};
use rusqlite::Connection;
use rusqlite::config::DbConfig;
use tokio_util::sync::CancellationToken;

use crate::capture_app::{App, Dice, Seen};
use crate::support::lab::Lab;

pub type Pages = BTreeMap<u32, Box<[u8]>>;

/// The capture as a backup sees it, with an application that commits around the pin.
struct Racing {
    capture: Arc<Capture>,
    app: Arc<Mutex<App>>,
}

impl Racing {
    /// Commits, and others that read and ship meanwhile, as the daemon does.
    fn meddle(&self) {
        let (ships, reads) = {
            let mut app = self.app.lock().expect("not poisoned");
            app.several(2);
            (app.dice.below(4) == 0, app.dice.below(2) == 0)
        };
        if reads {
            self.capture.read().expect("readable");
        }
        if ships {
            // Whether it worked, the next shipment tells.
            let _ = tokio::runtime::Handle::current().block_on(self.capture.ship());
        }
        self.app.lock().expect("not poisoned").several(2);
    }
}

impl Follow for Racing {
    fn wants_anchor(&self) -> bool {
        self.capture.wants_anchor()
    }

    fn before_pin(&self) {
        self.capture.before_pin();
        self.meddle();
    }

    fn pinned(&self, has_log: bool) -> Option<u64> {
        self.meddle();
        self.capture.pinned(has_log)
    }

    fn lead_on(&self) -> BoxFuture<'_, Result<()>> {
        self.capture.lead_on()
    }

    fn anchored(&self, position: u64, table: PageTable) {
        self.app.lock().expect("not poisoned").several(2);
        self.capture.anchored(position, table);
    }
}

/// A state that storage acknowledged.
pub struct Recorded {
    pub position: u64,
    pub time: Timestamp,
    pub pages: Pages,
}

pub struct Life {
    pub lab: Lab,
    storage: Faulty,
    clock: Clock,
    app: Arc<Mutex<App>>,
    capture: Option<Arc<Capture>>,
    epoch: u64,
    dice: Dice,
    page_size: usize,
    recorded: Vec<Recorded>,
    seen: Seen,
    fails: bool,
}

impl Life {
    pub async fn new(seed: u64) -> Life {
        let mut dice = Dice(seed);
        let base = Path::new("/dev/shm");
        let folder = tempfile::tempdir_in(if base.is_dir() { base } else { Path::new("/tmp") });
        let storage = Faulty::new(Arc::new(Memory::default()));
        let lab = Lab::over(folder.expect("a folder"), Arc::new(storage.clone()));
        let path = lab.path("app.db");
        let page_size = dice.one_of(&[512, 1024, 4096]) as usize;
        let auto_vacuum = dice.one_of(&["none", "full", "incremental"]);
        let app = Connection::open(&path).expect("opens");
        let sql = format!(
            "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={auto_vacuum}; PRAGMA journal_mode=wal;
             CREATE TABLE t0(id INTEGER PRIMARY KEY, flag, x); CREATE TABLE t1(id INTEGER PRIMARY KEY, flag, x)"
        );
        app.execute_batch(&sql).expect("made");
        drop(app);
        let began = 1_795_354_800_000;
        let ticks = AtomicI64::new(began);
        let clock = Clock::from_fn(move || {
            let now = ticks.fetch_add(7, Ordering::Relaxed);
            Timestamp::from_millisecond(now).expect("a time")
        });
        let app = App { path, connection: None, dice: Dice(!seed), seen: Seen::default() };
        let mut life = Life {
            lab,
            storage,
            clock,
            app: Arc::new(Mutex::new(app)),
            capture: None,
            epoch: 0,
            dice,
            page_size,
            recorded: Vec::new(),
            seen: Seen::default(),
            fails: true,
        };
        life.begin().await;
        life
    }

    pub fn page_size(&self) -> usize {
        self.page_size
    }

    pub fn recorded(&self) -> &[Recorded] {
        &self.recorded
    }

    pub fn seen(&self) -> Seen {
        let mut seen = self.seen.clone();
        seen.add(&self.app().seen);
        seen
    }

    /// Nothing fails any more, there is a log, and everything is stored.
    pub async fn end(&mut self) {
        self.fails = false;
        let recorded = self.recorded.len();
        // The application may do without a log again, beside a snapshot.
        for _ in 0..5 {
            self.app().attempt("PRAGMA journal_mode=wal; PRAGMA user_version=1; PRAGMA user_version=2");
            self.settle().await;
            if self.recorded.len() > recorded {
                return;
            }
        }
        panic!("it never catches up");
    }

    fn app(&self) -> MutexGuard<'_, App> {
        self.app.lock().expect("not poisoned")
    }

    fn capture(&self) -> &Arc<Capture> {
        self.capture.as_ref().expect("there is one")
    }

    pub async fn step(&mut self) {
        match self.dice.below(20) {
            0..=9 => self.app().several(3),
            10..=12 => drop(self.capture().read().expect("readable")),
            13..=16 => self.settle().await,
            17 => {
                let _ = self.capture().ship().await;
            }
            18 => self.back_up().await,
            _ => {
                if self.dice.below(2) == 0 {
                    self.settle().await;
                }
                self.capture = None;
                self.app().several(3);
                if self.dice.below(2) == 0 {
                    let comes_back = self.dice.below(3) == 0;
                    self.app().leave_the_log(comes_back);
                }
                self.begin().await;
                if self.dice.below(2) == 0 {
                    self.settle().await;
                }
            }
        }
    }

    /// A new capture, after whatever the one before came to.
    async fn begin(&mut self) {
        self.capture = None;
        let catalog = self.lab.catalog();
        self.epoch = catalog.claim_epoch("test", self.clock.now()).await.expect("claimed");
        let identity = catalog.ensure_identity(self.clock.now(), 7).await.expect("made");
        let newest = catalog.newest().await.expect("readable");
        let source = Source::locate(&self.app().path).expect("there");
        let writer = Writer { database_id: identity.database_id, epoch: self.epoch, zstd_level: 1 };
        let capture = loop {
            let limits = self.lab.settings.limits(&CancellationToken::new());
            let (catalog, writer, clock) = (self.lab.catalog(), writer.clone(), self.clock.clone());
            match Capture::begin(catalog, &source, writer, clock, newest.as_ref(), limits).await {
                Ok(capture) => break capture,
                Err(error) => assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain()),
            }
        };
        self.seen.note(match capture.needs() {
            Needs::Snapshot => "captures that began anew",
            _ => "captures that went on",
        });
        self.capture = Some(Arc::new(capture));
        if self.dice.below(2) == 0 && newest.is_some() {
            self.require_restorable().await;
        }
    }

    /// The next object of this kind may not be stored, or it is and nobody says so.
    fn maybe_fail(&mut self, kind: &str) {
        if self.fails && self.storage.is_spent() && self.dice.below(6) == 0 {
            let hows = [How::Before(ErrorKind::Unavailable), How::After(ErrorKind::Unavailable)];
            let how = self.dice.one_of(&hows);
            self.storage.script(Fault::at(Operation::Create, 1, how).on(kind));
        }
    }

    /// Whatever happened before: the newest state that storage holds can be had.
    async fn require_restorable(&mut self) {
        self.seen.note("restores while a capture begins");
        let moment = Moment::find(&Target::Newest, &self.lab.catalog()).await.expect("there is one");
        let output = self.lab.path("now.db");
        let restored = restore::to_new_file(&self.lab.resources(), &moment, &output, Damage::Refused).await;
        if let Err(error) = restored {
            panic!("refused while a capture begins: {}", error.chain());
        }
        fs::remove_file(output).expect("removed");
    }

    async fn back_up(&mut self) {
        let path = self.dice.one_of(&["manifests", "snapshots", "deltas"]);
        self.maybe_fail(path);
        let is_following = self.capture().needs() == Needs::Nothing;
        let racing = Racing { capture: Arc::clone(self.capture()), app: Arc::clone(&self.app) };
        let catalog = self.lab.catalog();
        let (path, cancel) = (self.app().path.clone(), CancellationToken::new());
        let work = backup::Work {
            database: catalog.database(),
            path: &path,
            settings: &self.lab.settings,
            clock: &self.clock,
            cancel: &cancel,
            on_progress: Arc::new(|_| {}),
            follower: Some(Arc::new(racing)),
        };
        if let Ok(backup::Outcome::Stored(_)) = backup::run(&catalog, &Standing::head(self.epoch), work).await
        {
            self.seen.note("snapshots");
            if is_following {
                self.seen.note("snapshots while following");
            }
        }
    }

    /// The application goes on beside the comparison, maybe.
    async fn compare(&mut self) -> Result<()> {
        self.seen.note("comparisons");
        let limits = self.lab.settings.limits(&CancellationToken::new());
        let app = Arc::clone(&self.app);
        let is_busy = self.dice.below(2) == 0;
        let beside = tokio::task::spawn_blocking(move || {
            if is_busy {
                app.lock().expect("not poisoned").several(4);
            }
        });
        let compared = self.capture().compare(limits).await;
        beside.await.expect("it went on");
        compared
    }

    /// What the daemon does: whatever is needed, then everything is shipped. Once it is, the state is recorded.
    pub async fn settle(&mut self) {
        for _ in 0..20 {
            self.capture().read().expect("readable");
            match self.capture().needs() {
                Needs::Snapshot => self.back_up().await,
                Needs::Comparison(_) => {
                    if let Err(error) = self.compare().await {
                        assert_eq!(error.kind(), ErrorKind::Limit, "{}", error.chain());
                    }
                }
                Needs::Nothing => {
                    self.maybe_fail("deltas");
                    match self.capture().ship().await {
                        Ok(_) if self.capture().is_caught_up() => return self.record(),
                        // Nobody commits beside it: there is no log.
                        Ok(_) if self.capture().needs() == Needs::Nothing => {
                            return self.seen.note("shipments without a log");
                        }
                        Ok(_) => {}
                        Err(error) => {
                            assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
                            self.seen.note("shipments that failed");
                        }
                    }
                }
            }
        }
        assert!(self.fails, "it never settles");
    }

    fn record(&mut self) {
        self.seen.note("recorded");
        let pages = pages(&self.app().path);
        let (position, time) = (self.capture().position(), self.clock.now());
        self.recorded.push(Recorded { position, time, pages });
    }
}

/// All pages as SQLite reads them, in one transaction.
fn pages(path: &Path) -> Pages {
    let connection = Connection::open(path).expect("opens");
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true).expect("set");
    let mut statement = connection.prepare("SELECT pgno, data FROM sqlite_dbpage('main')").expect("known");
    let rows =
        statement.query_map([], |row| Ok((row.get(0)?, row.get::<_, Vec<u8>>(1)?.into()))).expect("asked");
    rows.collect::<rusqlite::Result<_>>().expect("pages")
}
