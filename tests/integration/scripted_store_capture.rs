//! Every fault of a store, at every request of a daemon's life that captures: taking the line over, deltas, merging,
//! removing, restoring.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use jiff::{SignedDuration, Timestamp};
use lifeboat::backup::{self, Follow};
use lifeboat::capture::{Capture, Needs, Writer};
use lifeboat::catalog::Catalog;
use lifeboat::clock::Clock;
use lifeboat::delta::{self, Listed};
use lifeboat::error::{ErrorKind, Result};
use lifeboat::lineage::Standing;
use lifeboat::restore::{self, Damage, Moment, Target};
use lifeboat::source::Source;
use lifeboat::storage::{Patience, S3Settings};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use crate::scripted_store::{
    DENIED, FOR_GOOD, Life, OVERLOADED, any, changes, fails_once, is_list, once, reads, stores, sweep, writes,
};
use crate::scripted_store_scene::residue;
use crate::support::lab::Lab;
use crate::support::s3_server::{Fault, Server, connect, impatience};

use ErrorKind::{Conflict, Corrupt, Denied, NotFound, Unavailable};

/// What went into a merged delta is gone after this time.
const LONG: SignedDuration = SignedDuration::from_hours(80);

/// A captured database on a machine, a server, and what the machine was told is safe.
struct Deltas {
    server: Server,
    lab: Lab,
    app: Connection,
    /// By how much our clock is ahead of the store's.
    ahead: Arc<AtomicI64>,
    /// Rows that were committed, and of those how many storage acknowledged; none before the first snapshot.
    rows: i64,
    acknowledged: Option<i64>,
}

impl Life for Deltas {
    async fn start(patience: Patience) -> Deltas {
        let server = Server::start().await;
        let storage = connect(S3Settings { patience, ..server.settings() }).await;
        let lab = Lab::over(tempfile::tempdir().expect("a temporary directory"), Arc::new(storage));
        let app = lab.database("app.db", "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER PRIMARY KEY, x)");
        Deltas { server, lab, app, ahead: Arc::default(), rows: 0, acknowledged: None }
    }

    fn server(&self) -> &Server {
        &self.server
    }

    async fn live(&mut self) -> Result<()> {
        let (capture, epoch) = self.begin().await?;
        for pause in [0, 20, 60, 20] {
            self.pass(SignedDuration::from_secs(pause));
            self.commit(&capture).await?;
        }
        // Minutes and the hour, and then what went into them goes.
        for _ in 0..2 {
            self.pass(LONG);
            capture.merging().tend().await?;
        }
        self.commit(&capture).await?;
        self.restored(&Moment::find(&Target::Newest, &self.catalog()).await?).await?;
        self.catalog().release_epoch(epoch, self.clock().now()).await
    }

    async fn check(&self) {
        self.server.heal();
        let rows = match Moment::find(&Target::Newest, &self.catalog()).await {
            Err(error) if error.kind() == NotFound => None,
            moment => {
                let moment = moment.expect("the newest is found");
                Some(self.restored(&moment).await.expect("the newest restores"))
            }
        };
        assert!(
            self.acknowledged <= rows && rows <= Some(self.rows),
            "{rows:?}, acknowledged {:?}",
            self.acknowledged
        );
    }

    async fn residue(&self) -> String {
        residue(&self.lab, &self.server).await
    }

    async fn go_on(&mut self) {
        let (capture, _) = self.begin().await.expect("the next process takes over");
        self.commit(&capture).await.expect("the next delta is stored");
        for _ in 0..2 {
            self.pass(LONG);
            capture.merging().tend().await.expect("deltas are merged, and removed");
        }
        self.check_all().await;
    }
}

impl Deltas {
    fn catalog(&self) -> Catalog {
        self.lab.catalog()
    }

    fn clock(&self) -> Clock {
        let ahead = Arc::clone(&self.ahead);
        Clock::from_fn(move || Timestamp::now() + SignedDuration::from_secs(ahead.load(Ordering::Relaxed)))
    }

    fn pass(&self, time: SignedDuration) {
        self.ahead.fetch_add(time.as_secs(), Ordering::Relaxed);
    }

    /// A process captures under an epoch of its own, from a state that storage has.
    async fn begin(&mut self) -> Result<(Arc<Capture>, u64)> {
        let (catalog, clock, cancel) = (self.catalog(), self.clock(), CancellationToken::new());
        let newest = catalog.newest().await?;
        let id = newest.as_ref().map(|newest| &newest.id);
        let epoch = catalog.claim_epoch_after(id, "test", clock.now()).await?;
        let identity = catalog.ensure_identity(clock.now(), 7).await?;
        let source = Source::locate(&self.lab.path("app.db")).expect("there");
        let writer = Writer { database_id: identity.database_id, epoch, zstd_level: 1 };
        let limits = self.lab.settings.limits(&cancel);
        let capture =
            Capture::begin(catalog.clone(), &source, writer, clock.clone(), newest.as_ref(), limits);
        let capture = Arc::new(capture.await?);
        if capture.needs() == Needs::Snapshot {
            let work = backup::Work {
                database: catalog.database(),
                path: &self.lab.path("app.db"),
                settings: &self.lab.settings,
                clock: &clock,
                cancel: &cancel,
                on_progress: Arc::new(|_| {}),
                follower: Some(Arc::clone(&capture) as Arc<dyn Follow>),
            };
            backup::run(&catalog, &Standing::head(epoch), work).await?;
        }
        self.acknowledged = Some(self.rows);
        Ok((capture, epoch))
    }

    /// The application commits a row, and storage gets it.
    async fn commit(&mut self, capture: &Capture) -> Result<()> {
        self.rows += 1;
        self.app.execute("INSERT INTO t VALUES (?1, randomblob(900))", [self.rows]).expect("commits");
        capture.read().expect("readable");
        capture.ship().await?;
        self.acknowledged = Some(self.rows);
        Ok(())
    }

    /// The number of rows, which are the first ones.
    async fn restored(&self, moment: &Moment) -> Result<i64> {
        let output = self.lab.path("restored.db");
        // What an earlier one left.
        let _ = fs::remove_file(&output);
        restore::to_new_file(&self.lab.resources(), moment, &output, Damage::Refused).await?;
        let restored = Connection::open(&output).expect("opens");
        let (rows, last): (i64, i64) = restored
            .query_row("SELECT count(*), ifnull(max(n), 0) FROM t", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("asked");
        assert_eq!(rows, last, "a commit is missing before another");
        Ok(rows)
    }

    /// Whatever any snapshot leads to restores, and the end is the newest.
    async fn check_all(&self) {
        let catalog = self.catalog();
        let stored = catalog.deltas().await.expect("listed");
        let listed: Vec<Listed> = stored
            .iter()
            .map(|delta| Listed { level: delta.level, span: delta.span, moments: None })
            .collect();
        for manifest in catalog.list().await.expect("listed").snapshots {
            let anchor = manifest.anchor.expect("it has a place");
            let mut before = 0;
            for target in delta::reachable(&listed, anchor.position) {
                let plan = delta::plan(&listed, anchor.position, delta::Target::Position(target.span.to()));
                let of = |step: &Listed| {
                    stored.iter().find(|delta| (delta.level, delta.span) == (step.level, step.span)).copied()
                };
                let deltas = plan.expect("there is a way").iter().filter_map(of).collect();
                let moment = Moment { shows: manifest.taken_at, manifest: manifest.clone(), deltas };
                let rows = self.restored(&moment).await.expect("what is stored proves");
                assert!(before <= rows, "{rows} rows after {before}");
                before = rows;
            }
        }
        let newest = Moment::find(&Target::Newest, &catalog).await.expect("found");
        assert_eq!(self.restored(&newest).await.expect("restores"), self.rows);
    }
}

#[tokio::test]
async fn a_request_that_fails_once_fails_no_delta() {
    let faults =
        [OVERLOADED, Fault::Reset, Fault::Unanswered, Fault::Cut, Fault::Status(400, "ExpiredToken")];
    for fault in faults {
        fails_once::<Deltas>(impatience(), 0, 1, fault).await;
    }
}

#[tokio::test]
async fn an_answer_that_is_lost_loses_no_delta() {
    sweep::<Deltas>(once(Fault::Unanswered), changes, &[]).await;
}

#[tokio::test]
async fn a_store_that_stops_working_loses_no_delta_that_was_acknowledged() {
    let fault = |index| match index % 3 {
        0 => (impatience(), FOR_GOOD, OVERLOADED),
        1 => (impatience(), FOR_GOOD, DENIED),
        _ => (impatience(), FOR_GOOD, Fault::Reset),
    };
    sweep::<Deltas>(fault, any, &[Unavailable, Denied]).await;
}

#[tokio::test]
async fn one_refusal_while_capturing() {
    sweep::<Deltas>(once(DENIED), any, &[Denied]).await;
}

#[tokio::test]
async fn one_answer_that_is_not_true_while_capturing() {
    sweep::<Deltas>(once(Fault::ErrorInside200), stores, &[Unavailable, Corrupt]).await;
    sweep::<Deltas>(once(Fault::Stale), is_list, &[Conflict, Unavailable, Corrupt, NotFound]).await;
}

#[tokio::test]
async fn one_delta_that_is_not_found_or_half() {
    let kinds = [NotFound, Corrupt, Conflict, Unavailable];
    sweep::<Deltas>(once(Fault::Status(404, "NoSuchKey")), reads, &kinds).await;
    sweep::<Deltas>(once(Fault::Halved), reads, &kinds).await;
}

#[tokio::test]
async fn one_delta_that_is_refused_for_its_condition() {
    let refused = Fault::Status(412, "PreconditionFailed");
    sweep::<Deltas>(once(refused), writes, &[Conflict, Corrupt, NotFound]).await;
}
