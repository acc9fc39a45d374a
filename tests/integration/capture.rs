//! `lifeboat run` with capture, the real daemon: whatever ends it, its application or its storage, what was committed
//! is restored, up to a moment ago.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use lifeboat::error::ErrorKind;
use rusqlite::Connection;
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::support::program::{Program, Running};
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server};

pub const FILL: &str =
    "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER PRIMARY KEY, x); INSERT INTO t(n) VALUES (1);";

/// Nothing that happens within the interval is waited for longer, on a machine however busy.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Captures every tenth of a second; snapshots are taken only where capture needs one.
pub fn capturing() -> Program {
    Program::new()
        .with("BACKUP_CAPTURE", "on")
        .with("BACKUP_INTERVAL", "100ms")
        .with("BACKUP_VERIFY_SCHEDULE", "off")
        .with("BACKUP_PRUNE_SCHEDULE", "off")
}

/// The same, to S3.
pub fn capturing_to(server: &Server) -> Program {
    capturing()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ENDPOINT_URL_S3", &server.url)
        .with("AWS_ACCESS_KEY_ID", KEY_ID)
        .with("AWS_SECRET_ACCESS_KEY", SECRET)
}

/// A daemon whose capture goes on, and a snapshot.
pub fn started(program: &Program) -> Running {
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("deltas of app are stored up to position");
    while program.run(&["restore", "--dry-run"]).code == Some(ErrorKind::NotFound.exit_code().into()) {
        thread::sleep(Duration::from_millis(20));
    }
    daemon
}

pub fn add(app: &Connection, n: i64) {
    app.execute("INSERT INTO t VALUES (?1, randomblob(3000))", [n]).expect("commits");
}

/// The rows of a whole database: 1 to this, and no others.
fn rows(database: &Path) -> i64 {
    let connection = Connection::open(database).expect("opens");
    let verdict: String =
        connection.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("asked");
    assert_eq!(verdict, "ok");
    let (rows, last): (i64, i64) = connection
        .query_row("SELECT count(*), ifnull(max(n), 0) FROM t", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("asked");
    assert_eq!(rows, last, "a commit is missing before another");
    rows
}

pub fn restored(program: &Program, arguments: &[&str]) -> PathBuf {
    let output = program.path("restored.db");
    let _ = fs::remove_file(&output);
    program.succeed(&[&["restore", "--output", "restored.db"], arguments].concat());
    output
}

/// What storage alone has.
pub fn rows_stored(program: &Program) -> i64 {
    rows(&restored(program, &[]))
}

#[track_caller]
pub fn wait_for_rows(program: &Program, expected: i64) {
    let waiting = Instant::now();
    loop {
        let stored = rows_stored(program);
        if stored == expected {
            return;
        }
        assert!(stored < expected && waiting.elapsed() < PATIENCE, "{stored} of {expected} rows");
        thread::sleep(Duration::from_millis(20));
    }
}

fn kill(daemon: Running) {
    assert_eq!(daemon.end(Signal::KILL).signal, Some(9));
}

/// An application that commits again and again, until it is told to stop; when each commit was begun.
fn write_until(stop: &AtomicBool, began: &Mutex<Vec<Instant>>, app: &Connection) {
    let mut n = 1;
    while !stop.load(Ordering::Relaxed) {
        n += 1;
        began.lock().expect("not poisoned").push(Instant::now());
        add(app, n);
        thread::sleep(Duration::from_millis(2));
    }
}

#[test]
fn writer_and_daemon_end_at_once_and_little_is_lost() {
    /// Of what is promised a second, on a machine that does ten other things.
    const LOST_MAX: Duration = Duration::from_secs(10);
    let program = capturing();
    let app = program.app(FILL);
    let daemon = started(&program);
    let (stop, began) = (AtomicBool::new(false), Mutex::new(Vec::new()));
    let killed_at = thread::scope(|scope| {
        let (stopped, begun) = (&stop, &began);
        let writer = scope.spawn(move || write_until(stopped, begun, &app));
        thread::sleep(Duration::from_millis(2_500));
        kill(daemon);
        let killed_at = Instant::now();
        stop.store(true, Ordering::Relaxed);
        writer.join().expect("it wrote");
        killed_at
    });
    let began = began.into_inner().expect("not poisoned");
    let stored = rows_stored(&program);
    assert!(stored > 1 && stored as usize <= began.len() + 1, "{stored} of {}", began.len());
    // Row 2 was begun first; what was begun next after the last one stored is lost.
    if let Some(lost) = began.get(stored as usize - 1) {
        let lost = killed_at.saturating_duration_since(*lost);
        assert!(lost < LOST_MAX, "{lost:?} are lost");
    }
}

#[test]
fn a_daemon_goes_on_without_a_snapshot_where_nothing_was_committed_meanwhile() {
    let program = capturing();
    let app = program.app(FILL);
    let daemon = started(&program);
    add(&app, 2);
    wait_for_rows(&program, 2);
    kill(daemon);
    // Somebody folds the log in meanwhile, which is no commit.
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("folded");

    let daemon = started(&program);
    assert_eq!(program.snapshots().len(), 1);
    add(&app, 3);
    wait_for_rows(&program, 3);
    kill(daemon);
    assert_eq!(program.snapshots().len(), 1);

    // Now something is missing between the deltas.
    add(&app, 4);
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("folded");
    let daemon = started(&program);
    wait_for_rows(&program, 4);
    assert_eq!(program.snapshots().len(), 2);
    add(&app, 5);
    wait_for_rows(&program, 5);
    assert_eq!(program.snapshots().len(), 2);
    kill(daemon);
}

#[test]
fn the_last_act_is_a_delta_and_the_epoch_is_released() {
    let program = capturing().with("BACKUP_INTERVAL", "1h");
    let app = program.app(FILL);
    let daemon = started(&program);
    // The first is stored at once, all others in an hour.
    for n in 2..9 {
        add(&app, n);
    }
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(rows_stored(&program), 8);
    assert_eq!(program.snapshots().len(), 1, "{}", ended.stderr);
    assert_eq!(program.json(&["status"])["head"]["released"], true);
}

#[test]
fn a_log_that_somebody_else_empties_loses_nothing() {
    let program = capturing();
    let app = program.app(FILL);
    let daemon = started(&program);
    for n in 2..20 {
        add(&app, n);
        app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("folded");
    }
    wait_for_rows(&program, 19);
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(rows_stored(&program), 19);
}

#[test]
fn an_application_may_close_its_last_connection() {
    let program = capturing();
    drop(program.app(FILL));
    let daemon = started(&program);
    for n in 2..6 {
        let app = program.app("");
        add(&app, n);
        drop(app);
        wait_for_rows(&program, n);
    }
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(program.snapshots().len(), 1, "{}", ended.stderr);
}

#[test]
fn a_database_without_a_log_is_backed_up_on_the_way_out() {
    let program = capturing();
    let app = program.app("CREATE TABLE t(n INTEGER PRIMARY KEY, x); INSERT INTO t(n) VALUES (1)");
    let daemon = started(&program);
    for n in 2..5 {
        add(&app, n);
    }
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(rows_stored(&program), 4);
    let stored = program.snapshots().len();
    assert!(stored <= 3, "{stored} snapshots: {}", ended.stderr);
}

#[test]
fn who_is_overtaken_ends_and_damages_nothing() {
    let first = capturing();
    let app = first.app(FILL);
    let daemon = started(&first);
    add(&app, 2);
    wait_for_rows(&first, 2);

    let second =
        capturing().with("BACKUP_DIR", first.variable("BACKUP_DIR")).with("BACKUP_RESTORE_ON_BOOT", "true");
    let later = started(&second);
    let other = second.app("");
    assert_eq!(rows(&second.database()), 2, "the deltas were restored, too");
    // Both go on from there; only one of them is right.
    add(&app, 3);
    app.execute("UPDATE t SET x='overtaken'", []).expect("commits");
    let ended = daemon.wait();
    assert_eq!(ended.code, Some(i32::from(ErrorKind::Fenced.exit_code())), "{ended:?}");
    add(&other, 3);
    add(&other, 4);
    wait_for_rows(&second, 4);
    let output = restored(&second, &[]);
    let overtaken = "SELECT count(*) FROM t WHERE x='overtaken'";
    let overtaken: i64 =
        Connection::open(output).expect("opens").query_row(overtaken, [], |row| row.get(0)).expect("asked");
    assert_eq!(overtaken, 0);
    assert_eq!(later.end(Signal::TERM).code, Some(0));
}

#[test]
fn any_moment_is_restored() {
    let program = capturing();
    let app = program.app(FILL);
    let daemon = started(&program);
    let mut moments = Vec::new();
    for n in 2..7 {
        add(&app, n);
        wait_for_rows(&program, n);
        moments.push((n, jiff::Timestamp::now().to_string()));
        thread::sleep(Duration::from_millis(20));
    }
    for (n, moment) in &moments {
        assert_eq!(rows(&restored(&program, &["--at", moment])), *n, "{moment}");
    }
    assert_eq!(program.snapshots().len(), 1);
    kill(daemon);

    // And by a machine that has nothing but the storage.
    let other =
        capturing().with("BACKUP_DIR", program.variable("BACKUP_DIR")).with("BACKUP_RESTORE_ON_BOOT", "true");
    let ended = other.run(&["run", "--", "true"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(rows(&other.database()), 6);
}

#[test]
fn what_was_committed_while_storage_was_away_arrives() {
    let runtime = Runtime::new().expect("a runtime");
    let server = runtime.block_on(Server::start());
    let program = capturing_to(&server);
    let app = program.app(FILL);
    let mut daemon = started(&program);
    add(&app, 2);
    wait_for_rows(&program, 2);
    // A checkpoint does not wait for whoever reads.
    app.busy_timeout(Duration::ZERO).expect("set");
    server.fault("PUT", "", usize::MAX, Fault::Status(403, "AccessDenied"));
    for n in 3..40 {
        add(&app, n);
        app.query_row("PRAGMA wal_checkpoint(RESTART)", [], |_| Ok(())).expect("folded");
    }
    daemon.wait_for_log("is not captured, trying again");
    assert_eq!(rows_stored(&program), 2);
    server.heal();
    wait_for_rows(&program, 39);
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(rows_stored(&program), 39);
}
