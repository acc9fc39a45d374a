//! A database that is captured, at times that the test says.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use lifeboat::backup::{self, Follow, Outcome};
use lifeboat::capture::{Capture, Needs, Writer};
use lifeboat::clock::{Clock, Timestamp};
use lifeboat::error::Result;
use lifeboat::lineage::Standing;
use lifeboat::restore::{self, Damage, Moment, Target};
use lifeboat::snapshot::Manifest;
use lifeboat::source::Source;
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use super::lab::Lab;

/// A day on which all of it happens.
pub fn time(clock: &str) -> Timestamp {
    format!("2026-11-21T{clock}Z").parse().expect("a time")
}

pub struct Line {
    pub lab: Lab,
    pub app: Connection,
    now: Arc<AtomicI64>,
    capture: Option<Arc<Capture>>,
}

impl Line {
    /// A database `app.db` without a row in `t`, of which there is a snapshot of 12:00.
    pub async fn new() -> Line {
        Line::over(Lab::new()).await
    }

    pub async fn over(lab: Lab) -> Line {
        let app = lab.database("app.db", "PRAGMA journal_mode=wal; CREATE TABLE t(x)");
        let mut line = Line { lab, app, now: Arc::default(), capture: None };
        line.start("12:00:00").await;
        line
    }

    fn clock(&self) -> Clock {
        let now = Arc::clone(&self.now);
        Clock::from_fn(move || Timestamp::from_millisecond(now.load(Ordering::Relaxed)).expect("a time"))
    }

    pub fn capture(&self) -> &Arc<Capture> {
        self.capture.as_ref().expect("it was started")
    }

    pub fn at(&self, clock: &str) {
        self.now.store(time(clock).as_millisecond(), Ordering::Relaxed);
    }

    /// A new process captures; it takes the snapshot it needs.
    pub async fn start(&mut self, clock: &str) {
        self.at(clock);
        let catalog = self.lab.catalog();
        let epoch = catalog.claim_epoch("test", time(clock)).await.expect("claimed");
        let identity = catalog.ensure_identity(time(clock), 7).await.expect("there");
        let newest = catalog.newest().await.expect("read");
        let source = Source::locate(&self.lab.path("app.db")).expect("there");
        let writer = Writer { database_id: identity.database_id, epoch, zstd_level: 1 };
        let limits = self.lab.settings.limits(&CancellationToken::new());
        let begun = Capture::begin(catalog, &source, writer, self.clock(), newest.as_ref(), limits).await;
        let capture = Arc::new(begun.expect("begun"));
        let is_needed = capture.needs() == Needs::Snapshot;
        self.capture = Some(capture);
        if is_needed {
            self.snapshot(clock).await;
        }
    }

    /// Nobody captures any more.
    pub fn stop(&mut self) {
        self.capture = None;
    }

    pub async fn snapshot(&self, clock: &str) -> Manifest {
        let follower = self.capture.clone().map(|capture| capture as Arc<dyn Follow>);
        self.back_up(clock, follower).await
    }

    /// A snapshot that another process takes, so that it has no place between deltas.
    pub async fn snapshot_by_hand(&self, clock: &str) -> Manifest {
        self.back_up(clock, None).await
    }

    async fn back_up(&self, clock: &str, follower: Option<Arc<dyn Follow>>) -> Manifest {
        self.at(clock);
        let catalog = self.lab.catalog();
        let (head, _) = catalog.head().await.expect("read").expect("claimed");
        let work = backup::Work {
            database: catalog.database(),
            path: &self.lab.path("app.db"),
            settings: &self.lab.settings,
            clock: &self.clock(),
            cancel: &CancellationToken::new(),
            on_progress: Arc::new(|_| {}),
            follower,
        };
        match backup::run(&catalog, &Standing::head(head.epoch), work).await.expect("backed up") {
            Outcome::Stored(manifest) | Outcome::Unchanged(manifest) => *manifest,
        }
    }

    /// Commits a row that nobody captures yet.
    pub fn write(&self) {
        self.app.execute_batch("INSERT INTO t VALUES (1)").expect("written");
    }

    /// Commits a row, and stores the delta with it.
    pub async fn commit(&self, clock: &str) {
        self.at(clock);
        self.write();
        self.capture().read().expect("read");
        self.capture().ship().await.expect("stored").expect("something was");
    }

    pub async fn find(&self, target: &Target) -> Result<Moment> {
        Moment::find(target, &self.lab.catalog()).await
    }

    /// What a restore of it has: the number of rows.
    pub async fn restored(&self, target: &Target) -> Result<i64> {
        let moment = self.find(target).await?;
        let output = self.lab.path("restored.db");
        // What an earlier one left.
        let _ = std::fs::remove_file(&output);
        restore::to_new_file(&self.lab.resources(), &moment, &output, Damage::Refused).await?;
        let connection = Connection::open(&output).expect("it opens");
        Ok(connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("counted"))
    }
}
