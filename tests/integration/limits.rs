//! Bounds that hold when somebody else does not let go: a storage, a lock, other databases.

use std::cell::Cell;
use std::fs::{self, File};
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat::error::ErrorKind;
use lifeboat::storage::{Directory, Fault, Faulty, How, Operation};
use lifeboat::worker::{Job, JobId, JobState, Reason};
use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use rustix::process::Signal;

use crate::support::lab::Lab;
use crate::support::program::Program;
use crate::support::station::Station;

/// Some 64 MiB that do not compress: more than waits between a database and a storage.
const LARGE: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(x BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<1024)
    INSERT INTO t SELECT randomblob(65000) FROM n; PRAGMA wal_checkpoint(TRUNCATE);";

/// Whether the whole log could be folded in and cut off.
fn checkpoints(connection: &Connection) -> bool {
    connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| row.get(0)).map(|busy: i64| busy == 0)
        == Ok(true)
}

/// Looks again and again, for a bounded time, whether something is so.
async fn until(what: &str, is_so: impl Fn() -> bool) {
    let waiting = Instant::now();
    while !is_so() {
        assert!(waiting.elapsed() < Duration::from_secs(60), "never: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_outgrows_its_bound_while_storage_hangs_ends_the_backup() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage = Faulty::new(Arc::new(Directory::open(dir.path().join("backups")).expect("opens")));
    let for_ever = How::Late(Duration::from_secs(86_400));
    storage.script(Fault::at(Operation::Create, 1, for_ever).on("/snapshots/"));
    let mut lab = Lab::over(dir, Arc::new(storage));
    lab.settings.wal_growth_max = 1 << 20;
    let lab = Arc::new(lab);
    let app = lab.database("app.db", LARGE);
    app.busy_timeout(Duration::ZERO).expect("set");

    let backup = tokio::spawn({
        let lab = Arc::clone(&lab);
        async move { lab.back_up(&lab.path("app.db")).await }
    });
    // A backup looks into the database before it pins it: once is not enough.
    let in_a_row = Cell::new(0);
    until("the backup pins the log", || {
        app.execute("INSERT INTO t VALUES ('a row for the log')", []).expect("writers go on");
        in_a_row.set(if checkpoints(&app) { 0 } else { in_a_row.get() + 1 });
        in_a_row.get() == 20
    })
    .await;
    app.execute("INSERT INTO t VALUES (randomblob(2000000))", []).expect("writers go on");
    assert!(!checkpoints(&app), "the storage hangs, so the pin stays");

    let ended = tokio::time::timeout(Duration::from_secs(30), backup).await.expect("it ends by itself");
    let error = ended.expect("no panic").expect_err("given up");
    assert_eq!(error.kind(), ErrorKind::Limit);
    let message = error.to_string();
    assert!(message.contains("the write-ahead log grew by"), "{message}");
    assert!(message.contains("(backup.wal_growth_max)") && message.contains("app.db"), "{message}");
    assert!(checkpoints(&app), "the pin is gone");
    assert_eq!(fs::metadata(lab.path("app.db-wal")).expect("there").len(), 0);
    assert!(lab.catalog().list().await.expect("listed").snapshots.is_empty());
    lab.stored(&lab.path("app.db")).await;
}

#[test]
fn a_lock_on_the_backup_directory_that_is_never_given_back_is_an_error() {
    let program = Program::new();
    let app = program.app("CREATE TABLE t(n INTEGER)");
    program.succeed(&["backup"]);
    app.execute_batch("INSERT INTO t VALUES (1)").expect("writes");
    let lock = File::open(program.path("backups/.lifeboat-lock")).expect("the lock is there");
    flock(&lock, FlockOperation::LockExclusive).expect("locked");
    let ended = program.run(&["backup"]);
    let parts = ["another process has held the lock for 10s", "backups/.lifeboat-lock", "head.json"];
    ended.refused(i32::from(ErrorKind::Unavailable.exit_code()), &parts);
    assert!(ended.took >= Duration::from_secs(10), "it was waited for: {ended:?}");
    assert!(ended.took < Duration::from_secs(20), "and not for ever: {ended:?}");
    drop(lock);
    let report = program.json(&["backup"]);
    assert_eq!(report["outcome"], "stored", "what was not published to the end is taken again: {report}");
}

/// Where the only job of a database stands.
fn state(station: &Station, name: &str) -> JobState {
    let handle = station.app.fleet.member(Some(name)).expect("a member").handle().expect("open");
    handle.status().job(JobId(1)).expect("asked for").state.clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_third_database_waits_until_one_of_two_is_done() {
    const NAMES: [&str; 3] = ["app", "second", "third"];
    let mut station = Station::opening(&NAMES, "127.0.0.1:9091", None);
    // Without a log to read from, each backup waits for the application's transaction.
    station.lab.settings.busy_timeout = Duration::from_secs(60);
    for connection in &station.connections {
        connection.execute_batch("PRAGMA journal_mode=delete; BEGIN EXCLUSIVE").expect("locks");
    }
    for member in station.app.fleet.members() {
        station.open(member).await;
        member
            .handle()
            .expect("open")
            .submit(Job::Backup { accept_shrunken: false }, Reason::Request)
            .await
            .expect("admitted");
    }
    let running = || {
        let is_running = |name: &&str| matches!(state(&station, name), JobState::Running { .. });
        NAMES.into_iter().filter(is_running).collect::<Vec<_>>()
    };
    until("two of them run", || running().len() >= 2).await;
    // Nothing tells that the third will not begin; it would have by now.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let first = running();
    assert_eq!(first.len(), 2, "{first:?}");
    let third = NAMES.into_iter().position(|name| !first.contains(&name)).expect("one is left");
    assert!(matches!(state(&station, NAMES[third]), JobState::Waiting));

    let release = |name: &str| {
        let at = NAMES.iter().position(|other| *other == name).expect("one of them");
        station.connections[at].execute_batch("COMMIT").expect("lets go");
    };
    release(first[0]);
    until("the third runs", || running().contains(&NAMES[third])).await;
    assert!(matches!(state(&station, first[0]), JobState::Done { .. }));
    assert_eq!(running().len(), 2);
    release(first[1]);
    release(NAMES[third]);
    until("all are done", || NAMES.iter().all(|name| matches!(state(&station, name), JobState::Done { .. })))
        .await;
}

#[test]
fn a_daemon_works_on_two_databases_at_once() {
    const BUSY_TIMEOUT: Duration = Duration::from_secs(3);
    let program = Program::new()
        .with("BACKUP_DATABASE", "data/app.db,data/second.db,data/third.db")
        .with("BACKUP_BUSY_TIMEOUT", "3s");
    let names = ["app", "second", "third"];
    let locked = names.map(|name| {
        let database = Connection::open(program.path(&format!("data/{name}.db"))).expect("opens");
        database.execute_batch("CREATE TABLE t(n); BEGIN EXCLUSIVE").expect("locks");
        database
    });
    let mut daemon = program.start(&["run"]);
    let given_up = |log: &str| log.lines().filter(|line| line.contains("failed to backup")).count();
    let mut ends = Vec::new();
    daemon.wait_for_log("failed to backup");
    while ends.len() < names.len() {
        ends.resize(given_up(&daemon.log()), Instant::now());
        std::thread::sleep(Duration::from_millis(10));
        assert!(ends.first().is_none_or(|first| first.elapsed() < 4 * BUSY_TIMEOUT), "{}", daemon.log());
    }
    // The third began to wait for its lock when the first had given up.
    assert!(ends[2] - ends[0] > BUSY_TIMEOUT / 2, "{}", daemon.log());
    assert!(ends[1] - ends[0] < BUSY_TIMEOUT / 2, "{}", daemon.log());
    for database in locked {
        database.execute_batch("COMMIT").expect("lets go");
    }
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "the last backups of all of them: {ended:?}");
    for name in names {
        let stored = |line: &str| line.contains("stored snapshot") && line.contains(&format!(" of {name} "));
        assert!(ended.stderr.lines().any(stored), "{name}: {ended:?}");
    }
}
