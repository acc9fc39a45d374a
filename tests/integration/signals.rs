//! Every signal that is meant for the daemon or its application, and what becomes of it.

use std::time::{Duration, Instant};

use lifeboat::error::ErrorKind;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::program::{Program, Running};

const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1);";

/// All that are listened for.
const SIGNALS: [(Signal, &str); 6] = [
    (Signal::TERM, "TERM"),
    (Signal::INT, "INT"),
    (Signal::HUP, "HUP"),
    (Signal::QUIT, "QUIT"),
    (Signal::USR1, "USR1"),
    (Signal::USR2, "USR2"),
];

fn code(kind: ErrorKind) -> Option<i32> {
    Some(i32::from(kind.exit_code()))
}

/// The daemon with an application that is `script`, which says `ready`; the first snapshot is proven.
fn beside(program: &Program, script: &str) -> Running {
    let mut daemon = program.start(&["run", "--", "sh", "-c", script]);
    daemon.wait_for_log("ready");
    daemon.wait_for_log("proved snapshot");
    daemon
}

/// What the newest snapshot holds.
fn rows_stored(program: &Program) -> i64 {
    let output = program.path("stored.db");
    program.succeed(&["restore", "--output", &output.display().to_string()]);
    let stored = Connection::open(output).expect("opens");
    stored.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("queries")
}

#[test]
fn without_an_application_every_signal_is_the_end_after_a_last_backup() {
    for (signal, name) in SIGNALS {
        let program = Program::new();
        let app = program.app(FILL);
        let mut daemon = program.start(&["run"]);
        daemon.wait_for_log("proved snapshot");
        app.execute_batch("INSERT INTO t VALUES (2)").expect("writes");
        let ended = daemon.end(signal);
        assert_eq!(ended.code, Some(0), "{name}: {ended:?}");
        assert_eq!(program.snapshots().len(), 2, "{name}");
        assert_eq!(rows_stored(&program), 2, "{name}: the last write is in the last snapshot");
    }
}

#[test]
fn every_signal_is_passed_on_and_what_the_application_does_then_is_backed_up() {
    for (signal, name) in SIGNALS {
        let program = Program::new();
        drop(program.app(FILL));
        let script = format!(
            "trap 'sqlite3 data/app.db \"INSERT INTO t VALUES (2)\"; exit 5' {name}
            echo ready >&2; while :; do sleep 0.05; done"
        );
        let ended = beside(&program, &script).end(signal);
        assert_eq!(ended.code, Some(5), "{name}: {ended:?}");
        assert_eq!(rows_stored(&program), 2, "{name}");
    }
}

#[test]
fn a_signal_that_kills_the_application_shows_in_the_exit_code() {
    for (signal, name) in SIGNALS {
        let program = Program::new();
        drop(program.app(FILL));
        let ended = beside(&program, "echo ready >&2; exec sleep 60").end(signal);
        assert_eq!(ended.code, Some(128 + signal.as_raw()), "{name}: {ended:?}");
        assert_eq!(program.snapshots().len(), 1, "{name}: nothing had changed");
    }
}

#[test]
fn an_application_may_go_on_after_a_signal_and_so_does_its_daemon() {
    let program = Program::new();
    drop(program.app(FILL));
    let script = "for signal in HUP USR1 USR2; do trap \"echo again $signal >&2\" $signal; done
        trap 'exit 5' TERM; echo ready >&2; while :; do sleep 0.05; done";
    let mut daemon = beside(&program, script);
    for (signal, line) in [(Signal::HUP, "HUP"), (Signal::USR1, "USR1"), (Signal::USR2, "USR2")] {
        daemon.signal(signal);
        daemon.wait_for_log(&format!("again {line}"));
    }
    assert_eq!(daemon.end(Signal::TERM).code, Some(5));
}

#[test]
fn what_the_application_started_gets_the_signal_too() {
    let program = Program::new();
    drop(program.app(FILL));
    let script = "sh -c 'trap \"echo inner >&2; exit\" TERM; echo ready >&2; while :; do sleep 0.05; done' &
        trap 'wait; exit 5' TERM; while :; do sleep 0.05; done";
    let ended = beside(&program, script).end(Signal::TERM);
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.stderr.contains("inner\n"), "{ended:?}");
}

/// A daemon whose last backup waits for a lock that the connection holds.
fn held_up(program: &Program) -> (Running, Connection) {
    let app = program.app("CREATE TABLE t(n INTEGER)");
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("proved snapshot");
    app.execute_batch("INSERT INTO t VALUES (2); BEGIN EXCLUSIVE").expect("locks");
    (daemon, app)
}

#[test]
fn a_second_signal_gives_the_last_backup_up() {
    let program = Program::new().with("BACKUP_BUSY_TIMEOUT", "60s");
    let (mut daemon, _lock) = held_up(&program);
    daemon.signal(Signal::TERM);
    daemon.wait_for_log("told to stop");
    let stopped = Instant::now();
    let ended = daemon.end(Signal::INT);
    assert_eq!(ended.code, code(ErrorKind::Cancelled), "{ended:?}");
    assert!(ended.stderr.contains("the last backup is given up"), "{ended:?}");
    assert!(stopped.elapsed() < Duration::from_secs(15), "{ended:?}");
}

#[test]
fn a_last_backup_ends_at_its_deadline() {
    let program = Program::new().with("BACKUP_BUSY_TIMEOUT", "60s").with("BACKUP_SHUTDOWN_DEADLINE", "1s");
    let (daemon, _lock) = held_up(&program);
    let stopped = Instant::now();
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, code(ErrorKind::Limit), "{ended:?}");
    assert!(ended.stderr.contains("did not end within 1s (backup.shutdown_deadline)"), "{ended:?}");
    assert!(stopped.elapsed() < Duration::from_secs(15), "{ended:?}");
}
