//! What capture does unasked: it is on, beside the schedule, for as many databases as there are.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::program::Program;

const FILL: &str = "CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1);";

fn daemon() -> Program {
    let unset = "";
    Program::new()
        .with("BACKUP_CAPTURE", unset)
        .with("BACKUP_VERIFY_SCHEDULE", "off")
        .with("BACKUP_PRUNE_SCHEDULE", "off")
}

#[test]
fn what_is_committed_is_captured_if_nobody_says_otherwise() {
    let program = daemon();
    let app = program.app(&format!("PRAGMA journal_mode=wal; {FILL}"));
    let mut running = program.start(&["run"]);
    running.wait_for_log("deltas of app are stored up to position");
    app.execute_batch("INSERT INTO t VALUES (2)").expect("commits");
    let waiting = Instant::now();
    loop {
        let _ = fs::remove_file(program.path("restored.db"));
        if program.run(&["restore", "--output", "restored.db"]).code == Some(0) {
            let restored = Connection::open(program.path("restored.db")).expect("opens");
            let rows: i64 =
                restored.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("asked");
            if rows == 2 {
                break;
            }
        }
        assert!(waiting.elapsed() < Duration::from_secs(60), "what was committed is not in storage");
        thread::sleep(Duration::from_millis(50));
    }
    assert_eq!(program.snapshots().len(), 1, "without another snapshot");
    assert_eq!(running.end(Signal::TERM).code, Some(0));
}

#[test]
fn a_schedule_is_for_databases_that_are_captured_and_for_others() {
    let program = daemon()
        .with("BACKUP_SCHEDULE", "* * * * *")
        .with("BACKUP_DATABASE", "data/app.db,data/plain.db")
        .with("BACKUP_ON_SHUTDOWN", "false");
    let app = program.app(&format!("PRAGMA journal_mode=wal; {FILL}"));
    let plain = Connection::open(program.path("data/plain.db")).expect("opens");
    plain.execute_batch(FILL).expect("fills");
    let mut running = program.start(&["run"]);
    for database in ["app", "plain"] {
        running.wait_for_line(&["stored snapshot", &format!("of {database} ")]);
    }
    for database in [&app, &plain] {
        database.execute_batch("INSERT INTO t VALUES (2)").expect("commits");
    }
    for database in ["app", "plain"] {
        running.wait_for_line(&["stored snapshot", &format!("of {database} "), "reason=Schedule"]);
    }
    assert_eq!(running.end(Signal::TERM).code, Some(0));
}

/// Fewer open files than the databases take are allowed by default, but not by force.
#[test]
fn many_databases_are_captured_where_few_files_may_be_open() {
    const DATABASES: usize = 40;
    let program = daemon().with("BACKUP_DATABASE", "data/*.db").with("BACKUP_ON_SHUTDOWN", "false");
    for number in 0..DATABASES {
        let database = Connection::open(program.path(&format!("data/app{number:02}.db"))).expect("opens");
        database.execute_batch(&format!("PRAGMA journal_mode=wal; {FILL}")).expect("fills");
    }
    let mut running = program.start_under(&["prlimit", "--nofile=100:4096"], &["run"]);
    for number in 0..DATABASES {
        running.wait_for_log(&format!("deltas of app{number:02} are stored up to position"));
    }
    let ended = running.end(Signal::TERM);
    assert_eq!(ended.code, Some(0));
    assert!(!ended.stderr.contains("Too many open files"), "{}", ended.stderr);
}
