//! `lifeboat run` with capture, the real daemon: the database is rebuilt, replaced or set back, or storage is away
//! while it is written.

use std::fs;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, ErrorCode};
use rustix::process::Signal;
use tokio::runtime::Runtime;

use crate::capture::{
    FILL, PATIENCE, add, capturing, capturing_to, restored, rows_stored, started, wait_for_rows,
};
use crate::support::program::Program;
use crate::support::s3_server::{Fault, Server};

/// All rows.
fn content(database: &Path) -> Vec<(i64, Vec<u8>)> {
    let connection = Connection::open(database).expect("opens");
    let mut statement = connection.prepare("SELECT n, ifnull(x, '') FROM t ORDER BY n").expect("a table");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get_ref(1)?.as_bytes()?.to_vec())));
    rows.expect("asked").collect::<rusqlite::Result<_>>().expect("rows")
}

/// Waits until storage has what the database has, which nobody writes meanwhile.
#[track_caller]
fn wait_until_stored(program: &Program, what: &str) {
    let (waiting, expected) = (Instant::now(), content(&program.database()));
    while content(&restored(program, &[])) != expected {
        assert!(waiting.elapsed() < PATIENCE, "{what}: it is not stored");
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn whatever_becomes_of_the_database_the_newest_is_what_it_is() {
    let program = capturing();
    let app = program.app(FILL);
    let daemon = started(&program);
    (2..40).for_each(|n| add(&app, n));
    wait_until_stored(&program, "rows");

    app.execute_batch("DELETE FROM t WHERE n % 3 = 0; VACUUM").expect("rebuilt");
    wait_until_stored(&program, "VACUUM");
    (100..120).for_each(|n| add(&app, n));
    wait_until_stored(&program, "rows after VACUUM");

    // Whoever captures is connected, and SQLite takes no log away from anybody.
    let left = app.query_row("PRAGMA journal_mode=delete", [], |_| Ok(()));
    assert_eq!(left.expect_err("it is in use").sqlite_error_code(), Some(ErrorCode::DatabaseBusy));
    (200..220).for_each(|n| add(&app, n));
    wait_until_stored(&program, "rows after the journal mode was not changed");

    // Another database, with all that belongs to the one before gone.
    let other = program.path("data/other.db");
    let filled = Connection::open(&other).expect("opens");
    filled.execute_batch(FILL).expect("made");
    (2..10).for_each(|n| add(&filled, n));
    drop((app, filled));
    ["-wal", "-shm"].iter().for_each(|end| drop(fs::remove_file(program.path(&format!("data/app.db{end}")))));
    fs::rename(&other, program.database()).expect("replaced");
    let app = program.app("PRAGMA journal_mode=wal");
    add(&app, 10);
    wait_until_stored(&program, "another database");
    add(&app, 11);
    wait_until_stored(&program, "rows of another database");
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(rows_stored(&program), 11);
}

/// The deltas in storage.
fn deltas(program: &Program) -> Vec<PathBuf> {
    let folder = fs::read_dir(program.path("backups/app/deltas/0")).expect("a folder");
    let mut paths: Vec<PathBuf> = folder.map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[test]
fn a_branch_captures_nothing_and_leaves_the_line_as_it_is() {
    let program = capturing();
    let app = program.app(FILL);
    let daemon = started(&program);
    let old = capturing().with("BACKUP_DIR", program.variable("BACKUP_DIR"));
    fs::rename(restored(&program, &[]), old.database()).expect("an old volume");
    add(&app, 2);
    wait_for_rows(&program, 2);
    drop(app);
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    program.succeed(&["backup"]);
    let line = deltas(&program);

    let app = old.app("");
    let mut daemon = old.start(&["run"]);
    daemon.wait_for_log("form a branch");
    let waiting = Instant::now();
    while !["capture nothing", "deltas of app are stored"].iter().any(|said| daemon.log().contains(said)) {
        assert!(waiting.elapsed() < PATIENCE, "{}", daemon.log());
        thread::sleep(Duration::from_millis(10));
    }
    add(&app, 2);
    app.execute("UPDATE t SET x = 'of the branch'", []).expect("commits");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(deltas(&program), line);
    let newest = content(&restored(&program, &[]));
    assert!(newest.len() == 2 && newest.iter().all(|(_, x)| x != b"of the branch"));
}

/// One that is kept from being restarted grows with all that is written.
#[test]
fn a_log_is_not_kept_from_being_restarted_while_storage_is_away() {
    let runtime = Runtime::new().expect("a runtime");
    let server = runtime.block_on(Server::start());
    let program = capturing_to(&server);
    let app = program.app(FILL);
    let daemon = started(&program);
    app.busy_timeout(Duration::ZERO).expect("set");
    app.execute_batch("PRAGMA wal_autocheckpoint=0; CREATE TABLE wide(x); INSERT INTO wide VALUES (1)")
        .expect("made");
    let write = |bytes: u32, pause| {
        app.execute("UPDATE wide SET x = randomblob(?1)", [bytes]).expect("commits");
        thread::sleep(Duration::from_millis(pause));
    };
    let is_kept =
        || -> bool { app.query_row("PRAGMA wal_checkpoint(RESTART)", [], |row| row.get(0)).expect("asked") };
    let waiting = Instant::now();
    // As long as it goes well, whoever writes fast is followed.
    loop {
        (0..10).for_each(|_| write(1_000_000, 10));
        if is_kept() {
            break;
        }
        assert!(waiting.elapsed() < PATIENCE, "it is never kept: {}", daemon.log());
    }
    server.fault("PUT", "", usize::MAX, Fault::Status(403, "AccessDenied"));
    // Much is written in every pause, the last of which is of 8 seconds.
    while !daemon.log().contains("wait_ms=8000") {
        write(200_000, 100);
        assert!(waiting.elapsed() < PATIENCE, "it goes well: {}", daemon.log());
    }
    let away = Instant::now();
    while is_kept() {
        assert!(away.elapsed() < Duration::from_secs(5), "nobody can restart it");
        thread::sleep(Duration::from_millis(10));
    }
    add(&app, 2);
    server.heal();
    wait_for_rows(&program, 2);
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
