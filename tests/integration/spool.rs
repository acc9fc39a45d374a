//! The spool in a daemon's life: an outage in the middle, at the start and at the end, and what follows.

use rustix::process::Signal;
use serde_json::Value;

use crate::support::program::{Program, Running, ask, free_address, rows};
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server};

/// Refused at once: what waits for an answer is tried in one test only.
const REFUSED: Fault = Fault::Status(403, "AccessDenied");

/// A program that backs `app` up to the server's bucket, with an HTTP interface.
fn program(server: &Server) -> (Program, std::net::SocketAddr) {
    let address = free_address();
    let program = Program::new()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("BACKUP_S3_PREFIX", "ships")
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ENDPOINT_URL_S3", &server.url)
        .with("AWS_ACCESS_KEY_ID", KEY_ID)
        .with("AWS_SECRET_ACCESS_KEY", SECRET)
        .with("BACKUP_HTTP_ADDR", address.to_string());
    (program, address)
}

const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (0);";

fn write(program: &Program, row: i64) {
    program.app(&format!("INSERT INTO t VALUES ({row})"));
}

/// What a snapshot holds, restored to a file of its own.
fn restored(program: &Program, arguments: &[&str]) -> Vec<i64> {
    let output = program.path("restored.db");
    let path = output.display().to_string();
    program.succeed(&[&["restore", "--output", &path], arguments].concat());
    let rows = rows(&output);
    std::fs::remove_file(output).expect("removed");
    rows
}

fn backup_now(address: std::net::SocketAddr) -> (u16, Value) {
    let answer = ask(address, "POST /backup-now", "");
    let status = answer.split(' ').nth(1).and_then(|status| status.parse().ok()).expect("a status");
    let body = answer.split_once("\r\n\r\n").expect("a body").1;
    (status, serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}")))
}

fn get(address: std::net::SocketAddr, path: &str) -> String {
    ask(address, &format!("GET {path}"), "")
}

fn wait_until_shipped(daemon: &mut Running, ids: &[impl AsRef<str>]) {
    ids.iter().for_each(|id| daemon.wait_for_log(&format!("shipped snapshot {} of app", id.as_ref())));
}

fn started(program: &Program) -> Running {
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("backing up app to");
    daemon.wait_for_log("proved snapshot");
    daemon
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_due_in_an_outage_waits_and_is_shipped_in_order() {
    let server = Server::start().await;
    let (program, address) = program(&server);
    drop(program.app(FILL));
    let mut daemon = started(&program);
    server.fault_at(0, usize::MAX, REFUSED);
    let mut ids = Vec::new();
    for row in 1..=3 {
        write(&program, row);
        let (status, body) = backup_now(address);
        assert_eq!((status, &body["outcome"]), (202, &Value::from("spooled")), "{body}");
        ids.push(body["snapshot"]["id"].as_str().expect("an id").to_owned());
    }
    let told = get(address, "/ready");
    assert!(told.contains("3 snapshots wait in the spool for storage since"), "{told}");
    assert!(get(address, "/health").contains("degraded"));
    assert!(get(address, "/metrics").contains("lifeboat_spool_snapshots{database=\"app\"} 3"));
    server.heal();
    wait_until_shipped(&mut daemon, &ids);
    let listed = program.snapshots();
    assert!(listed[..3].iter().eq(ids.iter().rev()), "{listed:?} {ids:?}");
    assert_eq!(restored(&program, &[]), [0, 1, 2, 3]);
    for (row, id) in ids.iter().enumerate() {
        assert_eq!(restored(&program, &["--snapshot", id]).len(), row + 2);
    }
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}

/// What the program says while no storage answers: its own outcome, and what it printed.
fn without_storage(program: &Program, arguments: &[&str]) -> (i32, String, String) {
    let ended = program.run(arguments);
    (ended.code.expect("a code"), ended.stdout, ended.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_that_never_reached_storage_spools_its_first_and_its_last_and_ships_them_later() {
    let server = Server::start().await;
    let (program, address) = program(&server);
    drop(program.app(FILL));
    // One snapshot is in storage, and nobody reaches it from here on.
    program.succeed(&["backup"]);
    server.fault_at(0, usize::MAX, REFUSED);
    write(&program, 1);
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_line(&["waits in the spool", "of app"]);
    assert!(get(address, "/ready").contains("1 snapshot waits in the spool for storage since"));
    let listed = get(address, "/snapshots");
    assert!(listed.contains("\"unreachable\":true") && listed.contains("\"spooled\":[{"), "{listed}");
    assert!(get(address, "/health").contains("\"spool\":[{\"database\":\"app\",\"snapshots\":1"));
    write(&program, 2);
    let ended = daemon.end(Signal::TERM);
    // It is on this machine only, and nobody may take that for stored.
    assert_eq!(ended.code, Some(6), "{ended:?}");

    let (code, listed, _) = without_storage(&program, &["snapshots", "--json"]);
    let listed: Value = serde_json::from_str(&listed).expect("JSON");
    let ids: Vec<&str> = listed["spooled"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|one| one["id"].as_str().expect("an id"))
        .collect();
    assert_eq!((code, ids.len(), &listed["snapshots"]), (6, 2, &Value::Null));
    let (code, text, _) = without_storage(&program, &["snapshots"]);
    assert!(code == 6 && text.matches("waits in the spool").count() == 2, "{text}");
    let (code, text, _) = without_storage(&program, &["status"]);
    assert!(code == 6 && text.contains("2 snapshots wait in the spool"), "{text}");
    let (code, _, told) = without_storage(&program, &["restore"]);
    assert!(code == 6 && told.contains(&format!("lifeboat restore --snapshot {}", ids[0])), "{told}");
    assert_eq!(restored(&program, &["--snapshot", ids[1]]), [0, 1]);
    assert!(program.succeed(&["verify", "--snapshot", ids[0]]).contains("read back from the spool"));

    // The volume lost the database: the newest is restored from the spool, and goes on from there.
    std::fs::remove_file(program.database()).expect("removed");
    program.succeed(&["restore", "--snapshot", ids[0]]);
    assert_eq!(rows(&program.database()), [0, 1, 2]);
    server.heal();
    assert_eq!(restored(&program, &[]), [0, 1, 2], "storage knows the newest, which follows and waits");
    let mut daemon = program.start(&["run"]);
    wait_until_shipped(&mut daemon, &ids);
    let log = daemon.end(Signal::TERM);
    assert_eq!(log.code, Some(0), "{log:?}");
    assert!(!log.stderr.contains("form a branch"), "{log:?}");
    let stored = program.snapshots();
    assert_eq!(stored.len(), 3, "{stored:?}");
    assert_eq!(stored[..2], ids);
    assert_eq!(restored(&program, &[]), [0, 1, 2]);
    assert_eq!(program.json(&["snapshots"])["spooled"], serde_json::json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn storage_that_never_answers_leaves_time_for_the_last_snapshot() {
    let server = Server::start().await;
    let (program, _) = program(&server);
    let program = program.with("BACKUP_SHUTDOWN_DEADLINE", "8s");
    drop(program.app(FILL));
    let daemon = started(&program);
    server.fault_at(0, usize::MAX, Fault::Silence);
    write(&program, 1);
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(5), "{ended:?}");
    assert!(ended.stderr.contains("waits in the spool"), "{ended:?}");
    server.heal();
    assert_eq!(restored(&program, &[]), [0, 1]);
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("shipped snapshot");
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(program.snapshots().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_machines_and_an_outage_of_one_make_a_branch_and_no_loss() {
    let server = Server::start().await;
    let ((one, address), (two, _)) = (program(&server), program(&server));
    drop(one.app(FILL));
    let daemon = started(&one);
    server.fault_at(0, usize::MAX, REFUSED);
    write(&one, 1);
    let asked = server.requests("GET", "head.json");
    let (status, waits) = backup_now(address);
    assert_eq!(status, 202, "{waits}");
    let waits = waits["snapshot"]["id"].as_str().expect("an id").to_owned();
    // The backup asked once, and so did whoever wants to ship; that one comes back after half a minute.
    while server.requests("GET", "head.json") < asked + 2 {
        tokio::time::sleep(std::time::Duration::from_millis(10)).await;
    }
    server.heal();
    // Meanwhile another machine took over from what storage has.
    two.succeed(&["restore"]);
    let mut other = two.start(&["run"]);
    other.wait_for_log("backing up app to");
    write(&two, 2);
    assert_eq!(other.end(Signal::TERM).code, Some(0));
    let ended = daemon.wait();
    assert_eq!(ended.code, Some(10), "fenced: {ended:?}");
    assert_eq!(one.json(&["snapshots"])["spooled"][0]["id"], *waits, "it stays");
    assert_eq!(restored(&one, &[]), [0, 2], "and is not the newest, for it does not follow");

    let mut daemon = one.start(&["run"]);
    daemon.wait_for_log("form a branch");
    wait_until_shipped(&mut daemon, &[&waits]);
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    let listed = one.json(&["snapshots"]);
    assert_eq!(listed["spooled"], serde_json::json!([]));
    assert!(listed["branches"].to_string().contains(&waits), "{listed}");
    assert_eq!(restored(&one, &["--snapshot", &waits]), [0, 1]);
    assert_eq!(restored(&one, &[]), [0, 2]);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_database_goes_back_to_what_waits_while_storage_is_away() {
    let server = Server::start().await;
    let (program, address) = program(&server);
    let app = program.app(FILL);
    let mut daemon = started(&program);
    server.fault_at(0, usize::MAX, REFUSED);
    app.execute_batch("INSERT INTO t VALUES (1)").expect("writes");
    let (_, waits) = backup_now(address);
    let id = waits["snapshot"]["id"].as_str().expect("an id").to_owned();
    app.execute_batch("DELETE FROM t").expect("writes");
    let body = serde_json::json!({"database": "app", "confirm": "app", "snapshot": id}).to_string();
    let answer = ask(address, "POST /restore", &body);
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert_eq!(rows(&program.database()), [0, 1]);
    assert!(get(address, &format!("/snapshots/{id}")).contains(&id));
    // What the restore replaced waits as well, and nothing of it is lost.
    server.heal();
    daemon.wait_for_log("shipped 2 snapshots of app");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(restored(&program, &[]), [0, 1]);
    let all = program.snapshots();
    assert!(restored(&program, &["--snapshot", &all[1]]).is_empty(), "{all:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_is_switched_off_is_no_matter_once_the_outage_is_over() {
    let server = Server::start().await;
    let (program, address) = program(&server);
    let program = program.with("BACKUP_SPOOL_MAX", "off");
    drop(program.app(FILL));
    let daemon = started(&program);
    server.fault_at(0, usize::MAX, REFUSED);
    write(&program, 1);
    let (status, body) = backup_now(address);
    assert_eq!((status, &body["error"]["kind"]), (502, &Value::from("denied")), "{body}");
    assert!(!body.to_string().contains("spool"), "{body}");
    server.heal();
    assert_eq!(backup_now(address).0, 200);
    let told = get(address, "/ready");
    assert!(told.contains("200 OK") && !told.contains("spool"), "{told}");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn an_outage_is_told_although_there_is_nothing_to_spool() {
    let server = Server::start().await;
    let (program, address) = program(&server);
    drop(program.app(FILL));
    let mut daemon = started(&program);
    server.fault_at(0, usize::MAX, REFUSED);
    let (status, body) = backup_now(address);
    assert_eq!((status, &body["error"]["kind"]), (502, &Value::from("denied")), "{body}");
    assert!(body.to_string().contains("nothing was spooled, for snapshot"), "{body}");
    daemon.wait_for_log("nothing was spooled, for snapshot");
    server.heal();
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_spool_that_somebody_else_holds_keeps_no_backup_from_storage() {
    let server = Server::start().await;
    let (program, address) = program(&server);
    drop(program.app(FILL));
    let mut daemon = started(&program);
    server.fault_at(0, usize::MAX, REFUSED);
    write(&program, 1);
    let waits = backup_now(address).1["snapshot"]["id"].as_str().expect("an id").to_owned();
    let lock = std::fs::File::open(program.path("backups/.lifeboat-spool/app/spool.lock")).expect("there");
    rustix::fs::flock(&lock, rustix::fs::FlockOperation::LockExclusive).expect("locked");
    server.heal();
    write(&program, 2);
    let (status, body) = backup_now(address);
    assert_eq!((status, &body["outcome"]), (200, &Value::from("stored")), "{body}");
    drop(lock);
    wait_until_shipped(&mut daemon, &[&waits]);
    assert_eq!(restored(&program, &["--snapshot", &waits]), [0, 1]);
    assert_eq!(restored(&program, &[]), [0, 1, 2]);
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}
