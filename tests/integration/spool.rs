//! The spool in a daemon's life: an outage in the middle, at the start and at the end, and what follows.

use std::path::Path;

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::program::{Program, Running, ask, free_address};
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

fn rows(database: &Path) -> Vec<i64> {
    let connection = Connection::open(database).expect("opens");
    let mut statement = connection.prepare("SELECT n FROM t ORDER BY n").expect("prepares");
    let rows = statement.query_map([], |row| row.get(0)).expect("queries");
    rows.collect::<Result<_, _>>().expect("rows")
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
    server.begin_outage(REFUSED);
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
    server.end_outage();
    daemon.wait_for_log("shipped 3 snapshots of app");
    let listed = program.snapshots();
    assert!(listed[..3].iter().eq(ids.iter().rev()), "{listed:?} {ids:?}");
    assert_eq!(restored(&program, &[]), [0, 1, 2, 3]);
    for (row, id) in ids.iter().enumerate() {
        assert_eq!(restored(&program, &["--snapshot", id]).len(), row + 2);
    }
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
}
