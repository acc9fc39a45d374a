//! A day's budget for a bucket, with the real daemon: what stops when it is used up, and what never does.

use lifeboat::error::ErrorKind;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::program::{Program, Running, ask, free_address};
use crate::support::s3_server::{BUCKET, KEY_ID, SECRET, Server};

/// A database whose backups go to `server`.
fn program(server: &Server) -> Program {
    Program::new()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_ENDPOINT_URL_S3", &server.url)
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ACCESS_KEY_ID", KEY_ID)
        .with("AWS_SECRET_ACCESS_KEY", SECRET)
}

fn started(program: &Program) -> Running {
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("proved snapshot");
    daemon
}

fn rows(program: &Program) -> i64 {
    let app = Connection::open(program.database()).expect("opens");
    app.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("queries")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_budget_that_is_used_up_stops_snapshots_but_no_restore_and_not_the_last_one() {
    let server = Server::start().await;
    let address = free_address();
    let program =
        program(&server).with("BACKUP_REQUESTS_PER_DAY", "60").with("BACKUP_HTTP_ADDR", address.to_string());
    let app = program.app("PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (0);");
    let daemon = started(&program);
    let mut stored = 1;
    let refused = loop {
        app.execute("INSERT INTO t VALUES (1)", []).expect("writes");
        let answer = ask(address, "POST /backup-now", "");
        if !answer.starts_with("HTTP/1.1 200") {
            break answer;
        }
        stored += 1;
        assert!(stored < 30, "60 requests were enough for {stored} snapshots");
    };
    assert!(stored > 2, "{stored}: {}", daemon.log());
    assert!(refused.starts_with("HTTP/1.1 503") && refused.contains("retry-after"), "{refused}");
    for part in [r#""kind":"limit""#, "key=`storage.requests_per_day` limit=`60`", "T00:00:00Z"] {
        assert!(refused.contains(part), "no {part}: {refused}");
    }
    let log = daemon.log();
    assert_eq!(log.matches("80 % of what a day may ask of storage").count(), 1, "{log}");
    assert_eq!(log.matches("backups pause").count(), 1, "{log}");
    let metrics = ask(address, "GET /metrics", "");
    assert!(metrics.contains(r#"lifeboat_budget_refused_total{operation="create"} 1"#), "{metrics}");
    let written = || ["PUT", "POST", "DELETE"].map(|method| server.requests(method, ""));
    let before = written();
    ask(address, "POST /backup-now", "");
    assert_eq!(written(), before, "what is refused writes nothing");

    // Even by a moment, which takes a listing, and with the snapshot that comes before it.
    let moment = jiff::Timestamp::now().to_string();
    let body = format!(r#"{{"database":"app","confirm":"app","at":"{moment}"}}"#);
    let restored = ask(address, "POST /restore", &body);
    assert!(restored.starts_with("HTTP/1.1 200"), "{restored}");
    assert_eq!(rows(&program), stored, "what was stored when the budget ended");

    app.execute("INSERT INTO t VALUES (2)", []).expect("writes");
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "the last snapshot was taken: {ended:?}");
    program.succeed(&["restore", "--output", "last.db"]);
    let last = Connection::open(program.path("last.db")).expect("opens");
    let rows: i64 = last.query_row("SELECT count(*) FROM t", [], |row| row.get(0)).expect("queries");
    assert_eq!(rows, stored + 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_are_counted_and_a_command_is_not() {
    let server = Server::start().await;
    let address = free_address();
    let program =
        program(&server).with("BACKUP_UPLOAD_PER_DAY", "2 MiB").with("BACKUP_HTTP_ADDR", address.to_string());
    let app = program.app("PRAGMA journal_mode=wal; CREATE TABLE t(x BLOB); INSERT INTO t VALUES (1);");
    let daemon = started(&program);
    app.execute("INSERT INTO t VALUES (randomblob(3000000))", []).expect("writes");
    let refused = ask(address, "POST /backup-now", "");
    assert!(refused.contains("key=`storage.upload_per_day` limit=`2097152`"), "{refused}");
    assert_eq!(server.unfinished(), 0, "nothing half done is left");
    assert_eq!(program.json(&["backup"])["outcome"], "stored", "somebody asks in person");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    let limit = program.with("BACKUP_UPLOAD_PER_DAY", "1 KiB").run(&["backup"]);
    assert_eq!(limit.code, Some(i32::from(ErrorKind::Config.exit_code())), "{limit:?}");
}
