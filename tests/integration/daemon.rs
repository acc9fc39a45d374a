//! `lifeboat run`, the real daemon: backups by itself, an application beside it, and every way to stop.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::time::{Duration, Instant};

use lifeboat::error::ErrorKind;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::files::{digest, state};
use crate::support::program::{Program, Running};

const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1);";

fn code(kind: ErrorKind) -> Option<i32> {
    Some(i32::from(kind.exit_code()))
}

/// A daemon that has stored and proven the first snapshot.
fn started(program: &Program, arguments: &[&str]) -> Running {
    let mut daemon = program.start(arguments);
    daemon.wait_for_log("proved snapshot");
    daemon
}

fn rows(database: &Path) -> i64 {
    let connection = Connection::open(database).expect("opens");
    connection.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("queries")
}

/// What the newest snapshot holds.
fn rows_stored(program: &Program) -> i64 {
    let output = program.path("stored.db");
    program.succeed(&["restore", "--output", &output.display().to_string()]);
    let rows = rows(&output);
    fs::remove_file(output).expect("removed");
    rows
}

#[test]
fn an_overdue_database_is_backed_up_and_proven_at_the_start() {
    let program = Program::new();
    let _app = program.app(FILL);
    let daemon = started(&program, &["run"]);
    assert_eq!(program.snapshots().len(), 1);
    let status = program.json(&["status"]);
    assert_eq!(status["proof"]["check"], "integrity_check");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    // Nothing was due, so nothing is stored; the snapshot is proven already.
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("backing up app to");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(program.snapshots().len(), 1);
}

#[test]
fn a_last_backup_is_not_taken_where_it_is_not_wanted() {
    let program = Program::new().with("BACKUP_ON_SHUTDOWN", "false");
    let app = program.app(FILL);
    let daemon = started(&program, &["run"]);
    app.execute_batch("INSERT INTO t VALUES (2)").expect("writes");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(rows_stored(&program), 1);
}

#[test]
fn an_unchanged_database_writes_nothing_to_storage_on_the_way_out_but_its_release() {
    let program = Program::new();
    let _app = program.app(FILL);
    let daemon = started(&program, &["run"]);
    let objects = |folder: &str| state(&program.path("backups/app").join(folder));
    let before = ["snapshots", "manifests", "epochs", "proofs"].map(objects);
    let mut head = program.json(&["status"])["head"].clone();
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0));
    assert!(ended.stderr.contains("app is unchanged since snapshot"), "{}", ended.stderr);
    assert_eq!(["snapshots", "manifests", "epochs", "proofs"].map(objects), before);
    assert_eq!(head["released"], false);
    let released = program.json(&["status"])["head"].clone();
    (head["released"], head["updated_at"]) = (true.into(), released["updated_at"].clone());
    assert_eq!(released, head);
}

#[test]
fn the_end_of_the_application_is_the_end() {
    for (script, expected) in [("exit 7", 7), ("exit 0", 0), ("kill -9 $$", 128 + 9)] {
        let program = Program::new();
        drop(program.app(FILL));
        let ended = program.run(&["run", "--", "sh", "-c", script]);
        assert_eq!(ended.code, Some(expected), "{script}: {ended:?}");
    }
    let program = Program::new();
    let ended = program.run(&["run", "--", "there-is-no-such-program"]);
    ended.refused(
        i32::from(ErrorKind::Config.exit_code()),
        &["start the application", "there-is-no-such-program"],
    );
}

#[test]
fn what_the_application_wrote_last_is_backed_up() {
    let program = Program::new();
    drop(program.app(FILL));
    // It waits for the first snapshot, so that only the last one can show the second row.
    let script = "while ! ls backups/app/manifests/*.json; do sleep 0.05; done >&2;
        sqlite3 data/app.db 'INSERT INTO t VALUES (2)'; exit 3";
    let ended = program.run(&["run", "--", "sh", "-c", script]);
    assert_eq!(ended.code, Some(3), "{ended:?}");
    assert_eq!(rows_stored(&program), 2);
}

#[test]
fn a_release_command_and_a_missing_volume_only_execute() {
    let program = Program::new().with("RELEASE_COMMAND", "1");
    drop(program.app(FILL));
    let ended = program.run(&["run", "--", "sh", "-c", "echo migrated; exit 6"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(6), "migrated\n"), "{ended:?}");
    assert!(ended.stderr.contains("RELEASE_COMMAND=1"), "{ended:?}");
    assert!(!program.path("backups").exists(), "storage was not even opened");

    let program = Program::new();
    fs::remove_dir(program.path("data")).expect("removed");
    let ended = program.run(&["run", "--", "sh", "-c", "echo ran; exit 6"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(6), "ran\n"), "{ended:?}");
    assert!(ended.stderr.contains("the volume is not there"), "{ended:?}");
    assert!(!program.path("backups").exists() && !program.path("data").exists());
}

/// What stands where the database should be when the daemon starts.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Found {
    Nothing,
    NothingButALog,
    NoByte,
    Garbage,
    Healthy,
}

/// A snapshot with one row; then `found` stands in its place. A healthy one has two rows.
fn lost(found: Found) -> Program {
    let program = Program::new();
    let app = program.app(FILL);
    program.succeed(&["backup"]);
    app.execute_batch("INSERT INTO t VALUES (2)").expect("writes");
    let log = program.path("data/app.db-wal");
    let stale = program.path("stale-wal");
    fs::copy(&log, &stale).expect("a log with a row in it");
    drop(app);
    match found {
        Found::Healthy => {}
        Found::NoByte => fs::write(program.database(), "").expect("emptied"),
        Found::Garbage => fs::write(program.database(), "garbage ".repeat(2000)).expect("written"),
        Found::Nothing | Found::NothingButALog => fs::remove_file(program.database()).expect("removed"),
    }
    if found == Found::NothingButALog {
        fs::rename(stale, log).expect("left beside nothing");
    }
    program
}

/// The application: says how many rows it saw, or that it found no database.
const APPLICATION: &str = "if [ -s data/app.db ]; then sqlite3 data/app.db 'SELECT count(*) FROM t' 2>&1;
    else echo no database; fi";

#[test]
fn restore_on_boot_does_what_the_table_says() {
    use Found::{Garbage, Healthy, NoByte, Nothing, NothingButALog};
    let (old, new, none) = ("1\n", "2\n", "no database\n");
    for (policy, found, seen) in [
        ("never", Nothing, none),
        ("never", NothingButALog, none),
        ("never", NoByte, none),
        ("never", Healthy, new),
        ("if-missing", Nothing, old),
        ("if-missing", NothingButALog, old),
        ("if-missing", NoByte, old),
        ("if-missing", Garbage, old),
        ("if-missing", Healthy, new),
        ("always", Nothing, old),
        ("always", NothingButALog, old),
        ("always", NoByte, old),
        ("always", Garbage, old),
        ("always", Healthy, old),
    ] {
        let program = lost(found).with("BACKUP_RESTORE_ON_BOOT", policy);
        let before = (found == Garbage).then(|| digest(&program.database()));
        let ended = program.run(&["run", "--", "sh", "-c", APPLICATION]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), seen), "{policy} {found:?}: {ended:?}");
        if let Some(before) = before {
            let kept = state(&program.path("data"))
                .into_iter()
                .any(|(name, content)| name.starts_with("app.db.pre-restore-") && content == Some(before));
            assert!(kept, "{policy} {found:?}: what stood there is kept");
        }
    }
    let program = lost(Garbage).with("BACKUP_RESTORE_ON_BOOT", "never");
    let ended = program.run(&["run", "--", "sh", "-c", APPLICATION]);
    assert!(ended.stdout.contains("not a database"), "never touches nothing: {ended:?}");
}

#[test]
fn with_nothing_to_restore_the_application_starts_only_if_that_is_allowed() {
    for found in [Found::Nothing, Found::NoByte, Found::Garbage] {
        let empty = || {
            let program = lost(found).with("BACKUP_RESTORE_ON_BOOT", "if-missing");
            fs::remove_dir_all(program.path("backups")).expect("removed");
            program
        };
        let ended = empty().run(&["run", "--", "sh", "-c", "echo started"]);
        assert_eq!(ended.code, code(ErrorKind::NotFound), "{found:?}: {ended:?}");
        assert_eq!(ended.stdout, "", "the application was not started");
        assert!(ended.stderr.contains("BACKUP_ALLOW_EMPTY=true"), "{ended:?}");
        let allowed = empty().with("BACKUP_ALLOW_EMPTY", "true");
        let ended = allowed.run(&["run", "--", "sh", "-c", "echo started"]);
        assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "started\n"), "{found:?}: {ended:?}");
    }
}

#[test]
fn a_damaged_snapshot_is_not_served_on_boot() {
    let program = lost(Found::Nothing).with("BACKUP_RESTORE_ON_BOOT", "if-missing");
    let data = fs::read_dir(program.path("backups/app/snapshots")).expect("a folder").next();
    let data = data.expect("a snapshot").expect("an entry").path();
    let mut bytes = fs::read(&data).expect("readable");
    bytes[30] ^= 1;
    fs::write(&data, bytes).expect("written");
    let ended = program.run(&["run", "--", "sh", "-c", "echo started"]);
    assert_eq!(ended.code, code(ErrorKind::Corrupt), "{ended:?}");
    assert_eq!(ended.stdout, "");
    assert!(!program.database().exists(), "no half of it is left");
}

/// S3 at a port where nobody listens.
fn unreachable(program: Program) -> Program {
    let free = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    program
        .with("BACKUP_USE_AWS", "true")
        .with("BACKUP_S3_BUCKET", "bucket")
        .with("AWS_ENDPOINT_URL_S3", format!("http://{free}"))
        .with("AWS_REGION", "eu-central-1")
        .with("AWS_ACCESS_KEY_ID", "id")
        .with("AWS_SECRET_ACCESS_KEY", "secret")
        .with("BACKUP_RESTORE_ON_BOOT", "if-missing")
}

#[test]
fn an_application_without_its_database_waits_for_storage_and_can_be_stopped() {
    let program = unreachable(lost(Found::Nothing));
    let mut daemon = program.start(&["run", "--", "sh", "-c", "echo started"]);
    daemon.wait_for_log("the application is not started, for storage cannot be reached");
    let stopped = Instant::now();
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, code(ErrorKind::Cancelled), "{ended:?}");
    assert!(stopped.elapsed() < Duration::from_secs(5), "it waited for storage");
    assert_eq!(ended.stdout, "", "the application was not started");
    assert!(!program.database().exists());
}

#[test]
fn an_application_with_its_database_does_not_wait_for_storage() {
    let program = unreachable(lost(Found::Healthy));
    // The last backup may wait for storage, but no longer than it is allowed to.
    let ended = program.run(&["run", "--shutdown-deadline", "2s", "--", "sh", "-c", APPLICATION]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "2\n"), "{ended:?}");
    assert!(ended.took < Duration::from_secs(20), "{ended:?}");
}

#[test]
fn a_daemon_that_could_not_take_its_last_backup_says_so_with_its_exit_code() {
    let program = unreachable(lost(Found::Healthy));
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("no backups of app yet");
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, code(ErrorKind::Unavailable), "{ended:?}");
    let program = Program::new();
    let _app = program.app(FILL);
    let daemon = started(&program, &["run"]);
    fs::remove_file(program.database()).expect("removed");
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, code(ErrorKind::Source), "{ended:?}");
}

#[test]
fn a_second_daemon_fences_the_first() {
    let program = Program::new();
    let app = program.app(FILL);
    let first = started(&program, &["run"]);
    let mut second = program.start(&["run"]);
    second.wait_for_log("epoch=2");
    app.execute_batch("INSERT INTO t VALUES (2)").expect("writes");
    let ended = first.end(Signal::TERM);
    assert!(ended.stderr.contains("a newer writer owns these backups"), "{}", ended.stderr);
    assert_eq!(ended.code, code(ErrorKind::Fenced), "{ended:?}");
    assert_eq!(program.snapshots().len(), 1, "the fenced one published nothing");
    assert_eq!(second.end(Signal::TERM).code, Some(0));
    assert_eq!(program.snapshots().len(), 2);
    assert_eq!(rows_stored(&program), 2);
}

#[test]
fn an_interrupted_restore_is_settled_before_the_application_starts() {
    let program = lost(Found::Healthy);
    fs::write(program.path("data/.lifeboat-copy-x"), "half a copy").expect("written");
    let intent = r#"{"format":1,"copy":".lifeboat-copy-x","kept":"app.db.pre-restore-x"}"#;
    fs::write(program.path("data/.app.db.lifeboat-intent"), intent).expect("written");
    let ended = program.run(&["run", "--", "sh", "-c", APPLICATION]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "2\n"), "{ended:?}");
    assert!(ended.stderr.contains("an interrupted restore was undone"), "{ended:?}");
    assert_eq!(crate::support::files::names(&program.path("data")), ["app.db"]);
}

#[test]
fn a_damaged_newest_manifest_is_told_of_and_replaced() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound");
    let program =
        Program::new().with("BACKUP_HTTP_ADDR", port.to_string()).with("BACKUP_BUSY_TIMEOUT", "60s");
    let app = program.app("CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1)");
    program.succeed(&["backup"]);
    let [damaged] = program.snapshots().try_into().expect("one snapshot");
    let manifest = program.path(&format!("backups/app/manifests/{damaged}.json"));
    fs::write(&manifest, "{").expect("cut short");
    // While this holds the next backup back, there is time to ask.
    app.execute_batch("BEGIN EXCLUSIVE").expect("locks");
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_line(&["the newest snapshot is damaged", &damaged]);
    daemon.wait_for_log("backing up app to");
    let told = loop {
        let unready = program.run(&["health", "--ready"]);
        assert_eq!(unready.code, code(ErrorKind::Unhealthy), "{unready:?}");
        // That line comes a moment before the worker does.
        match unready.stdout + &unready.stderr {
            early if early.contains("storage has not been reached yet") => {}
            told => break told,
        }
    };
    assert!(told.contains("the newest snapshot is damaged") && told.contains(&damaged), "{told}");
    assert!(!told.contains("there is no snapshot yet"), "{told}");

    app.execute_batch("COMMIT").expect("lets go");
    daemon.wait_for_log("stored snapshot");
    daemon.wait_for_log("proved snapshot");
    program.succeed(&["health", "--ready"]);
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(rows_stored(&program), 1);
    let listing = program.json(&["snapshots"]);
    assert_eq!(listing["snapshots"].as_array().map(Vec::len), Some(1), "{listing}");
    assert_eq!(listing["damaged"].as_array().map(Vec::len), Some(1), "{listing}");
}
