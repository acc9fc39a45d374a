//! What capture keeps in memory while storage is away, and what it does where that does not suffice.

use std::sync::Arc;

use lifeboat::capture::{Needs, Why};
use lifeboat::error::ErrorKind;
use lifeboat::restore::Target;
use lifeboat::storage::{Fault, Faulty, How, Memory, Operation};
use lifeboat::worker::{Job, Reason};
use tokio_util::sync::CancellationToken;

use crate::support::lab::Lab;
use crate::support::line::Line;
use crate::support::station::Station;

/// A line in a storage that can be told to fail.
async fn line() -> (Line, Faulty) {
    let storage = Faulty::new(Arc::new(Memory::default()));
    let lab = Lab::over(tempfile::tempdir().expect("a folder"), Arc::new(storage.clone()));
    (Line::over(lab).await, storage)
}

/// The log is emptied past the capture.
fn lose_the_log(line: &Line) {
    line.app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("truncated");
    line.write();
    line.capture().read().expect("readable");
    assert!(matches!(line.capture().needs(), Needs::Comparison(_)));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_while_nothing_could_be_stored_is_kept_up_to_a_bound_and_arrives() {
    let (line, storage) = line().await;
    line.app.execute_batch("PRAGMA wal_autocheckpoint=0").expect("set");
    line.commit("12:00:01").await;
    line.at("12:00:02");
    for rows in 2..4 {
        storage.script(Fault::at(Operation::Create, 1, How::Before(ErrorKind::Unavailable)).on("deltas"));
        // Of both one cut is made, and of the second another one could be.
        line.app.execute("INSERT INTO t VALUES (zeroblob(?1))", [40 << 20]).expect("committed");
        line.capture().read().expect("readable");
        assert_eq!(line.capture().needs(), Needs::Nothing, "{rows}");
        line.capture().ship().await.expect_err("it is away");
    }
    line.app.execute("INSERT INTO t VALUES (zeroblob(?1))", [40 << 20]).expect("committed");
    line.capture().read().expect("readable");
    assert_eq!(line.capture().needs(), Needs::Comparison(Why::TooMuch));
    assert_eq!(line.restored(&Target::Newest).await.expect("what was stored before"), 1);

    // Storage is back. First what was cut, and then what a comparison finds, or a snapshot.
    line.capture().ship().await.expect("stored");
    assert_eq!(line.restored(&Target::Newest).await.expect("what was cut"), 2);
    let limits = line.lab.settings.limits(&CancellationToken::new());
    let error = line.capture().compare(limits).await.expect_err("more differs than is kept");
    assert_eq!((error.kind(), line.capture().needs()), (ErrorKind::Limit, Needs::Snapshot));
    line.snapshot("12:00:03").await;
    assert_eq!(line.restored(&Target::Newest).await.expect("all of it"), 4);
    line.commit("12:00:04").await;
    assert_eq!(line.restored(&Target::Newest).await.expect("and what follows"), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_comparison_that_was_ended_is_made_again() {
    let (line, _storage) = line().await;
    line.commit("12:00:01").await;
    lose_the_log(&line);
    let ended = CancellationToken::new();
    ended.cancel();
    let error = line.capture().compare(line.lab.settings.limits(&ended)).await.expect_err("ended");
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{}", error.chain());
    assert!(matches!(line.capture().needs(), Needs::Comparison(_)), "{:?}", line.capture().needs());
    let limits = line.lab.settings.limits(&CancellationToken::new());
    line.capture().compare(limits).await.expect("compared");
    line.capture().ship().await.expect("stored");
    assert_eq!(line.restored(&Target::Newest).await.expect("both"), 2);
    assert_eq!(line.lab.catalog().list().await.expect("listed").snapshots.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_cut_is_stored_before_anything_is_compared() {
    let station = Station::new().await;
    let handle = station.app.fleet.members()[0].handle().expect("open");
    let ask = async |job| handle.run(job, Reason::FollowUp).await.expect("asked").report();
    ask(Job::Capture).await.expect("begins");
    ask(Job::Backup { accept_shrunken: false }).await.expect("stored");
    let app = &station.connections[0];
    let write = || {
        app.execute_batch("INSERT INTO t VALUES ('one')").expect("written");
        app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("truncated");
    };
    let away = || {
        station
            .storage
            .script(Fault::at(Operation::Create, 1, How::Before(ErrorKind::Unavailable)).on("deltas"));
    };
    app.execute_batch("INSERT INTO t VALUES ('one')").expect("written");
    away();
    ask(Job::Capture).await.expect_err("it is cut, and not stored");
    write();
    // The log does not tell any more; and as long as storage is away nothing more is gathered.
    let capture = handle.capture().expect("it began");
    for _ in 0..4 {
        away();
        ask(Job::Capture).await.expect_err("it is away");
        write();
    }
    assert!(matches!(capture.needs(), Needs::Comparison(_)), "{:?}", capture.needs());
    assert_eq!(capture.state().comparisons.values().sum::<u64>(), 0, "{:?}", capture.state());
    ask(Job::Capture).await.expect("it is back");
    assert_eq!(capture.needs(), Needs::Nothing);
    assert_eq!(capture.state().comparisons.values().sum::<u64>(), 1, "{:?}", capture.state());
}
