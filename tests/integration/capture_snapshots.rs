//! Snapshots of a database that is captured: those that capture needs, and where those beside it stand.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::future::BoxFuture;
use lifeboat::backup::{self, Follow, Outcome};
use lifeboat::capture::{Capture, Needs};
use lifeboat::clock::Clock;
use lifeboat::delta::PageTable;
use lifeboat::error::Result;
use lifeboat::lineage::Standing;
use lifeboat::restore::Target;
use lifeboat::worker::{Job, Reason, Report};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use crate::support::line::Line;
use crate::support::station::Station;

#[tokio::test(flavor = "multi_thread")]
async fn what_is_in_storage_already_is_taken_again_where_capture_needs_it() {
    let station = Station::new().await;
    let handle = station.app.fleet.members()[0].handle().expect("open");
    let ask = async |job| {
        let record = handle.run(job, Reason::FollowUp).await.expect("asked");
        record.report().expect("done")
    };
    // Only then do the stamps of the files say that nothing was written.
    tokio::time::sleep(Duration::from_millis(2_100)).await;
    ask(Job::Backup { accept_shrunken: false }).await;
    ask(Job::Capture).await;
    let capture = handle.capture().expect("it began");
    assert_eq!(capture.needs(), Needs::Snapshot);
    let report = ask(Job::Backup { accept_shrunken: false }).await;
    let Report::Backup(Outcome::Stored(manifest)) = report else { panic!("{report:?}") };
    assert!(manifest.anchor.is_some());
    assert_eq!(capture.needs(), Needs::Nothing);
    // And not again and again.
    let report = ask(Job::Backup { accept_shrunken: false }).await;
    assert!(matches!(report, Report::Backup(Outcome::Unchanged(_))), "{report:?}");
}

/// A capture that is told late, for the application commits just before.
struct Late {
    capture: Arc<Capture>,
    app: Mutex<Connection>,
}

impl Follow for Late {
    fn wants_anchor(&self) -> bool {
        self.capture.wants_anchor()
    }

    fn before_pin(&self) {
        // Of one transaction nobody knows whether it is shown already; that is made up for.
        for _ in 0..3 {
            let app = self.app.lock().expect("not poisoned");
            app.execute_batch("INSERT INTO t VALUES (zeroblob(9000))").expect("commits");
        }
        self.capture.before_pin();
    }

    fn pinned(&self, has_log: bool) -> Option<u64> {
        self.capture.pinned(has_log)
    }

    fn lead_on(&self) -> BoxFuture<'_, Result<()>> {
        self.capture.lead_on()
    }

    fn anchored(&self, position: u64, table: PageTable) {
        self.capture.anchored(position, table);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_shows_all_that_was_cut_before_it() {
    let line = Line::new().await;
    line.commit("12:00:01").await;
    let path = line.lab.path("app.db");
    let app = Mutex::new(Connection::open(&path).expect("opens"));
    let late = Arc::new(Late { capture: Arc::clone(line.capture()), app });
    let catalog = line.lab.catalog();
    let work = backup::Work {
        database: catalog.database(),
        path: &path,
        settings: &line.lab.settings,
        clock: &Clock::system(),
        cancel: &CancellationToken::new(),
        on_progress: Arc::new(|_| {}),
        follower: Some(late),
    };
    let stored = backup::run(&catalog, &Standing::head(1), work).await.expect("backs up");
    assert!(stored.manifest().anchor.is_some());
    assert_eq!(line.capture().needs(), Needs::Nothing, "the snapshot is what was captured");
    line.commit("12:00:02").await;
    assert_eq!(line.restored(&Target::Newest).await.expect("it proves"), 5);
}
