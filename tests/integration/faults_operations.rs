//! Faults of everyday operation: a log nobody reads, more work than may wait, a defect in a job, a
//! machine that slept, descriptors that ran out.

use std::io::{BufRead, BufReader};
use std::process::Stdio;
use std::time::Duration;

use lifeboat::error::ErrorKind;
use lifeboat::source;
use lifeboat::storage::{Fault, How, Operation};
use lifeboat::worker::{Job, JobState, Reason};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;

use crate::last_backup::blocked;
use crate::support::program::{Program, ask, free_address};
use crate::support::station::{LOCAL, Station};

const PROGRAM: &str = env!("CARGO_BIN_EXE_lifeboat");
const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1);";

#[test]
fn a_log_that_nobody_reads_stops_no_backup() {
    let address = free_address();
    let program = Program::new().with("BACKUP_HTTP_ADDR", address.to_string()).with("BACKUP_LOG", "debug");
    let app = program.app(FILL);
    let mut daemon = program
        .command(PROGRAM)
        .arg("run")
        .stderr(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .expect("starts");
    let mut log = BufReader::new(daemon.stderr.take().expect("piped"));
    let mut line = String::new();
    while !line.contains("backing up app to") {
        line.clear();
        assert!(log.read_line(&mut line).expect("it says so") > 0, "it ended");
    }
    // From now on every line it writes is an error to it.
    drop(log);
    for _ in 0..3 {
        app.execute("INSERT INTO t VALUES (2)", []).expect("writes");
        let answer = ask(address, "POST /backup-now", "");
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    }
    let id = Pid::from_raw(daemon.id().cast_signed()).expect("a process id");
    kill_process(id, Signal::TERM).expect("it is there");
    assert_eq!(daemon.wait().expect("it ends").code(), Some(0));
    assert!(program.snapshots().len() >= 3);
}

#[test]
fn output_that_nobody_reads_is_no_success_on_a_full_disk() {
    let program = Program::new();
    drop(program.app(FILL));
    program.succeed(&["backup"]);
    let full = std::fs::File::create("/dev/full").expect("there is such a device");
    let mut command = program.command(PROGRAM);
    let ended = command.args(["snapshots", "--json"]).stdout(full).output().expect("runs");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert!(!ended.status.success() && stderr.contains("write to standard output"), "{stderr}");
}

#[test]
fn nothing_that_a_request_says_forges_a_line_of_the_log() {
    let address = free_address();
    let program = Program::new()
        .with("BACKUP_HTTP_ADDR", address.to_string())
        .with("BACKUP_HTTP_TOKEN", "correct-horse-battery")
        .with("BACKUP_LOG", "trace")
        .with("BACKUP_LOG_FORMAT", "json");
    drop(program.app(FILL));
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("backing up app to");
    for line in [
        "GET /x%0d%0a{\"level\":\"INFO\"}",
        "GET /snapshots/%1b[2J%00%0aforged",
        "POST /backup-now?database=%0aforged\"}",
        "GET /jobs/1%0a?database=app%0d%0aforged",
    ] {
        let answer = ask(address, line, "");
        assert!(answer.starts_with("HTTP/1.1 4"), "{line}: {answer}");
    }
    let log = daemon.end(Signal::TERM).stderr;
    for line in log.lines() {
        let read: serde_json::Value =
            serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert!(read["timestamp"].is_string() && read["level"].is_string(), "{line}");
        assert!(!line.starts_with("forged"), "{line}");
    }
    assert!(log.contains("%0d%0a"), "the paths are in the log, as they were sent: {log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_jobs_than_may_wait_are_refused() {
    let (station, handle) = blocked().await;
    let mut admitted = 0;
    let refused = loop {
        // Each of another snapshot, for what is the same joins.
        let body = json!({"snapshot": format!("20260101T000000.000Z-{admitted:08x}")});
        let answer = station.post("/verify?wait=false", &body).await;
        if answer.status != 202 {
            break answer;
        }
        admitted += 1;
        assert!(admitted < 100, "there is no end to what may wait");
    };
    assert_eq!((admitted, refused.error_kind().as_str()), (8, "limit"), "{refused:?}");
    let jobs = handle.status().jobs.len();
    for _ in 0..3 {
        let again = station.ask(LOCAL, "POST /backup-now?wait=false", &[], "").await;
        assert_eq!(again.status, 202, "a backup is not refused for what waits: {again:?}");
    }
    assert_eq!(handle.status().jobs.len(), jobs + 1, "but one of them is enough");
    station.connections[0].execute_batch("COMMIT").expect("lets go");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_while_a_backup_runs_joins_it() {
    let station = Station::new().await;
    station.storage.script(Fault::at(Operation::Create, 1, How::Late(Duration::from_millis(1_000))));
    let handle = station.app.fleet.members()[0].handle().expect("open");
    let backup = Job::Backup { accept_shrunken: false };
    let first = handle.submit(backup.clone(), Reason::Schedule).await.expect("admitted");
    while !matches!(handle.status().jobs[0].state, JobState::Running { .. }) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert_eq!(handle.submit(backup, Reason::Schedule).await.expect("admitted"), first);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_defect_in_a_job_fails_that_job_and_ends_no_worker() {
    let mut station = Station::opening(&["app"], "127.0.0.1:9091", None);
    // No setting can say this: the end of such a backup is a time that does not exist.
    station.lab.settings.deadline = Duration::MAX;
    let member = &station.app.fleet.members()[0];
    station.open(member).await;
    for _ in 0..2 {
        let answer = station.post("/backup-now", &json!({})).await;
        assert_eq!(answer.error_kind(), "internal", "{answer:?}");
        assert!(answer.body.contains("the backup ended by a defect"), "{answer:?}");
    }
    let verify = station.post("/verify", &json!({})).await;
    assert_eq!(verify.error_kind(), "not-found", "the worker goes on with what works: {verify:?}");
    let status = member.handle().expect("open").status();
    assert_eq!(status.failures["backup"].kind, ErrorKind::Internal);
    assert_eq!(station.get("/ready").await.status, 503);
}

#[test]
fn a_daemon_that_slept_while_another_took_over_changes_nothing_when_it_wakes() {
    let address = free_address();
    let program = Program::new().with("BACKUP_ON_SHUTDOWN", "false");
    let app = program.app(FILL);
    let sleeper = program.with("BACKUP_HTTP_ADDR", address.to_string());
    let mut first = sleeper.start(&["run"]);
    first.wait_for_log("proved snapshot");
    first.signal(Signal::STOP);
    let program = sleeper.with("BACKUP_HTTP_ADDR", "off");
    app.execute("INSERT INTO t VALUES (2)", []).expect("writes");
    let mut second = program.start(&["run"]);
    second.wait_for_log("epoch=2");
    program.succeed(&["backup"]);
    let head = || std::fs::read(program.path("backups/app/head.json")).expect("there is a head");
    let (listed, before) = (program.snapshots(), head());
    first.signal(Signal::CONT);
    app.execute("INSERT INTO t VALUES (3)", []).expect("writes");
    let answer = ask(address, "POST /backup-now", "");
    assert!(answer.contains(r#""kind":"fenced""#), "{answer}");
    assert_eq!((program.snapshots(), head()), (listed, before), "nothing was published");
    let ended = first.wait();
    assert_eq!(ended.code, Some(i32::from(ErrorKind::Fenced.exit_code())), "{ended:?}");
    assert_eq!(second.end(Signal::TERM).code, Some(0));
}

#[test]
fn a_backup_that_gets_no_descriptor_is_an_error_and_the_next_one_succeeds() {
    let program = Program::new();
    let app = program.app(FILL);
    program.succeed(&["backup"]);
    let listed = program.snapshots();
    app.execute("INSERT INTO t VALUES (2)", []).expect("writes");
    let mut failures = 0;
    // With fewer neither the system nor the runtime can start the program.
    for descriptors in 12..64 {
        let script = format!("ulimit -n {descriptors}; exec \"$0\" backup");
        let ended = program.command("sh").args(["-c", &script, PROGRAM]).output().expect("runs");
        let stderr = String::from_utf8_lossy(&ended.stderr);
        if ended.status.success() {
            break;
        }
        failures += 1;
        assert!(ended.status.code().is_some_and(|code| code < 100), "{descriptors}: no crash: {stderr}");
        assert_eq!(program.snapshots(), listed, "{descriptors}: {stderr}");
    }
    assert!(failures > 0, "some were too few");
    program.succeed(&["backup"]);
    program.succeed(&["verify"]);
}

#[test]
fn the_linked_sqlite_has_no_wal_reset_bug() {
    source::assert_library().expect("the library that is built in");
    assert!(rusqlite::version_number() >= 3_051_003, "{}", rusqlite::version());
}
