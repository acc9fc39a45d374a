//! The HTTP interface: what its routes do, and what it takes from peers that mean it ill.

use std::process::Command;
use std::time::{Duration, Instant};

use axum::http::StatusCode;
use lifeboat::error::ErrorKind;
use lifeboat::storage::{Fault, How, Operation};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::support::station::{LOCAL, Station, exchange};

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_answers_with_its_snapshot() {
    let station = Station::new().await;
    let first = station.get("/backup-now").await;
    assert_eq!(first.status, 200, "{first:?}");
    let first = first.json();
    assert_eq!((&first["database"], &first["outcome"]), (&json!("app"), &json!("stored")));
    let second = station.post("/backup-now?database=app", &json!({})).await.json();
    assert_eq!(second["outcome"], "unchanged");
    assert_eq!(second["snapshot"]["id"], first["snapshot"]["id"]);

    let listed = station.get("/snapshots").await.json();
    assert_eq!(listed["snapshots"].as_array().expect("a list").len(), 1);
    assert_eq!(listed["snapshots"][0]["id"], first["snapshot"]["id"]);
    let id = first["snapshot"]["id"].as_str().expect("an id");
    let shown = station.get(&format!("/snapshots/{id}?database=app")).await.json();
    assert_eq!(shown["manifest"]["plain"]["bytes"], first["snapshot"]["plain_bytes"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shrunken_database_degrades_health_until_it_is_accepted() {
    let station = Station::new().await;
    let app = &station.connections[0];
    app.execute_batch("INSERT INTO t SELECT randomblob(1000000)").expect("grows");
    station.get("/backup-now").await;
    app.execute_batch("DELETE FROM t; VACUUM").expect("shrinks");
    for _ in 0..2 {
        // Also when the same is looked at again.
        let flags = station.get("/backup-now").await.json()["snapshot"]["manifest"]["flags"].clone();
        assert_eq!(flags, json!(["shrunken"]));
        let ready = station.get("/ready").await;
        assert_eq!(ready.status, StatusCode::SERVICE_UNAVAILABLE);
        assert!(ready.body.contains("--accept-shrunken"), "{ready:?}");
    }
    let accepted = station.post("/backup-now?accept_shrunken=true", &json!({})).await.json();
    assert_eq!(
        (&accepted["outcome"], &accepted["snapshot"]["manifest"]["flags"]),
        (&json!("stored"), &json!([]))
    );
    assert_eq!(station.get("/ready").await.status, StatusCode::OK);
    assert_eq!(station.get("/backup-now").await.json()["outcome"], "unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_learns_what_was_accepted_beside_it() {
    let mut station = Station::new().await;
    let app = &station.connections[0];
    app.execute_batch("INSERT INTO t SELECT randomblob(1000000)").expect("grows");
    station.get("/backup-now").await;
    app.execute_batch("DELETE FROM t; VACUUM").expect("shrinks");
    // Long ago, so that the stamps alone say that nothing was written since.
    for name in ["app.db", "app.db-wal"] {
        let aged = Command::new("touch").args(["-d", "1 minute ago"]).arg(station.lab.path(name)).status();
        assert!(aged.expect("touch runs").success());
    }
    station.get("/backup-now").await;
    station.lab.settings.accept_shrunken = true;
    station.lab.stored(&station.lab.path("app.db")).await;
    // The schedule's way: it trusts the file's stamps where it can.
    let handle = station.app.fleet.members()[0].handle().expect("open");
    let job = lifeboat::worker::Job::Backup { accept_shrunken: false };
    handle.run(job, lifeboat::worker::Reason::Schedule).await.expect("runs");
    assert_eq!(station.get("/ready").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_meant_to_be_small_is_named_where_there_are_several() {
    let station = Station::with(&["app", "other"], "127.0.0.1:9091", None).await;
    assert_eq!(station.get("/backup-now?accept_shrunken=true").await.error_kind(), "bad-request");
    assert_eq!(station.get("/backup-now?accept_shrunken=true&database=other").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_asks_while_a_backup_is_taken_shares_the_next_one() {
    let station = Station::new().await;
    station.storage.script(Fault::at(Operation::Create, 1, How::Late(Duration::from_millis(1_000))));
    station.get("/backup-now?wait=false").await;
    while station.get("/jobs/1?database=app").await.json()["state"] != "running" {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    station.connections[0].execute_batch("INSERT INTO t VALUES ('second')").expect("writes");
    let (one, other) = tokio::join!(station.get("/backup-now"), station.get("/backup-now"));
    assert_eq!((one.status, other.status), (StatusCode::OK, StatusCode::OK));
    assert_eq!(
        (&one.json()["job"], &other.json()["job"]),
        (&json!(2), &json!(2)),
        "the first may be without that"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn not_waiting_is_answered_with_the_job() {
    let station = Station::new().await;
    let asked = station.get("/backup-now?wait=false").await;
    assert_eq!(asked.status, StatusCode::ACCEPTED);
    let location = asked.headers["location"].to_str().expect("text").to_owned();
    assert_eq!(location, "/jobs/1?database=app");
    let job = ended(&station, &location).await;
    assert_eq!((&job["state"], &job["report"]["outcome"]), (&json!("done"), &json!("stored")));
}

/// The job at `location`, once it is over.
async fn ended(station: &Station, location: &str) -> Value {
    loop {
        let job = station.get(location).await.json();
        if job["ended_at"].is_string() {
            return job;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn several_databases_are_all_backed_up_and_each_answers() {
    let station = Station::with(&["app", "tenant"], "127.0.0.1:9091", None).await;
    std::fs::remove_file(station.lab.path("tenant.db")).expect("removes");
    let answer = station.get("/backup-now").await;
    assert_eq!(answer.status, StatusCode::INTERNAL_SERVER_ERROR, "one failed: {answer:?}");
    let databases = answer.json()["databases"].clone();
    assert_eq!((&databases[0]["database"], &databases[0]["outcome"]), (&json!("app"), &json!("stored")));
    assert_eq!(
        (&databases[1]["database"], &databases[1]["error"]["kind"]),
        (&json!("tenant"), &json!("source"))
    );

    for target in ["/snapshots", "/jobs/1"] {
        let answer = station.get(target).await;
        assert_eq!(answer.status, StatusCode::BAD_REQUEST);
        assert!(answer.body.contains("app, tenant"), "{answer:?}");
    }
    assert_eq!(station.get("/snapshots?database=app").await.status, 200);
    assert_eq!(station.get("/snapshots?database=other").await.status, StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_is_restored_while_it_is_open() {
    let station = Station::new().await;
    let first = station.get("/backup-now").await.json();
    let rows = || {
        let query = "SELECT group_concat(x, ' ') FROM t";
        station.connections[0].query_row(query, [], |row| row.get::<_, String>(0)).expect("queries")
    };
    station.connections[0].execute_batch("INSERT INTO t VALUES ('second')").expect("writes");
    let between = jiff::Timestamp::now();
    station.get("/backup-now").await;
    station.connections[0].execute_batch("DROP TABLE t").expect("writes");

    let newest = station.post("/restore", &json!({"database": "app", "confirm": "app"})).await;
    assert_eq!(newest.status, 200, "{newest:?}");
    assert_eq!(rows(), "first second");
    let at = json!({"database": "app", "confirm": "app", "at": between.to_string()});
    let restored = station.post("/restore", &at).await.json();
    assert_eq!(restored["restored"]["snapshot"], first["snapshot"]["id"]);
    assert_eq!(rows(), "first");
    let by_id = json!({"database": "app", "confirm": "app", "snapshot": first["snapshot"]["id"]});
    let asked = station.post("/restore?wait=false", &by_id).await;
    assert_eq!(asked.status, StatusCode::ACCEPTED);
    let job = ended(&station, asked.headers["location"].to_str().expect("text")).await;
    assert_eq!((&job["state"], &job["snapshot"]), (&json!("done"), &first["snapshot"]["id"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proof_shows_everywhere() {
    let station = Station::new().await;
    assert_eq!(station.post("/verify", &json!({})).await.status, StatusCode::NOT_FOUND, "nothing to prove");
    let backup = station.get("/backup-now").await.json();
    let proof = station.post("/verify", &json!({"snapshot": backup["snapshot"]["id"]})).await;
    assert_eq!(proof.status, 200, "{proof:?}");
    assert_eq!(proof.json()["proof"]["snapshot"], backup["snapshot"]["id"]);
    let listed = station.get("/snapshots").await.json();
    assert_eq!(listed["snapshots"][0]["proven_at"], proof.json()["proof"]["proven_at"]);
    assert_eq!(listed["snapshots"][0]["drill_failed_at"], Value::Null);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_failed_its_drill_is_stored_anew_although_nothing_was_written() {
    let station = Station::new().await;
    let first = station.get("/backup-now").await.json()["snapshot"]["id"].clone();
    assert_eq!(station.get("/backup-now").await.json()["outcome"], "unchanged");
    station.storage.script(Fault::at(Operation::ReadRange, 1, How::Before(ErrorKind::Corrupt)));
    let drill = station.post("/verify", &json!({})).await;
    assert_eq!(drill.error_kind(), "corrupt");
    let listed = station.get("/snapshots").await.json()["snapshots"][0].clone();
    assert_eq!((&listed["id"], &listed["proven_at"]), (&first, &Value::Null));
    assert!(listed["drill_failed_at"].is_string() && listed["drill_failure"].is_string(), "{listed}");
    let one = station.get(&format!("/snapshots/{}", first.as_str().expect("an id"))).await.json();
    assert_eq!(one, listed);
    let answer = station.get("/backup-now").await.json();
    assert_eq!(answer["outcome"], "stored");
    assert_ne!(answer["snapshot"]["id"], first);
    assert_eq!(station.get("/backup-now").await.json()["outcome"], "unchanged");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_read_is_refused_and_nothing_is_done() {
    let station = Station::new().await;
    station.get("/backup-now").await;
    let long = format!(r#"{{"database":"{}","confirm":"app"}}"#, "a".repeat(16 << 10));
    let cases = [
        ("", 400),
        ("{", 400),
        ("[]", 400),
        ("\u{0}", 400),
        (r#"{"database":"app"}"#, 400),
        (r#"{"database":"app","confirm":"ap"}"#, 400),
        (r#"{"database":"app","confirm":"app","path":"/etc/passwd"}"#, 400),
        (r#"{"database":"app","confirm":"app","database":"app"}"#, 400),
        (r#"{"database":"app","confirm":"app","snapshot":"../../head"}"#, 400),
        (r#"{"database":"app","confirm":"app","at":"yesterday"}"#, 400),
        (r#"{"database":"app","confirm":"app","at":"2999-01-01T00:00:00Z"}"#, 400),
        (r#"{"database":"app","confirm":"app","at":"2001-01-01T00:00:00Z"}"#, 404),
        (r#"{"database":"app","confirm":"app","snapshot":"20010101T000000.000Z-00000000"}"#, 404),
        (
            r#"{"database":"app","confirm":"app","at":"2001-01-01T00:00:00Z","snapshot":"20010101T000000.000Z-00000000"}"#,
            400,
        ),
        (r#"{"database":"other","confirm":"other"}"#, 404),
        (long.as_str(), 413),
    ];
    for (body, status) in cases {
        let headers = [("content-type", "application/json")];
        let answer = station.ask(LOCAL, "POST /restore", &headers, body).await;
        assert_eq!(answer.status, status, "{body:.100}: {answer:?}");
        answer.error_kind();
    }
    let text = [("content-type", "text/plain")];
    let answer = station.ask(LOCAL, "POST /restore", &text, r#"{"database":"app","confirm":"app"}"#).await;
    assert_eq!(answer.status, StatusCode::UNSUPPORTED_MEDIA_TYPE);
    for target in ["/backup-now?databse=app", "/backup-now?wait=maybe", "/backup-now?wait=true&wait=false"] {
        assert_eq!(station.get(target).await.error_kind(), "bad-request", "{target}");
    }
    assert_eq!(station.get("/jobs/2").await.status, StatusCode::NOT_FOUND, "no job was begun");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_lead_nowhere_but_to_the_catalog() {
    let station = Station::new().await;
    for target in [
        "/snapshots/..",
        "/snapshots/../head.json",
        "/snapshots/..%2f..%2fetc%2fpasswd",
        "/snapshots/%2e%2e",
        "/snapshots/%00",
        "/snapshots/20010101T000000.000Z-00000000",
        "/snapshots?database=..%2f..",
        "/snapshots?database=https://evil.example/",
        "/jobs/-1",
        "/jobs/99999999999999999999999",
        "/jobs/%0d%0aset-cookie:x",
        "/nowhere",
    ] {
        let answer = station.get(target).await;
        assert_eq!(
            (answer.status, answer.error_kind().as_str()),
            (StatusCode::NOT_FOUND, "not-found"),
            "{target}"
        );
    }
    assert_eq!(station.get("/snapshots/%ff").await.error_kind(), "bad-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_listing_is_fetched_once_until_a_job_ends() {
    let station = Station::new().await;
    let count = |answer: Value| answer["snapshots"].as_array().expect("a list").len();
    let router = lifeboat::http::router(station.app.clone(), CancellationToken::new());
    let list = async || {
        use axum::body::{Body, to_bytes};
        let request = axum::http::Request::get("/snapshots").header("host", "localhost");
        let request = request.body(Body::empty()).expect("a request");
        let response = tower::ServiceExt::oneshot(router.clone(), request).await.expect("an answer");
        let body = to_bytes(response.into_body(), 1 << 20).await.expect("a body");
        serde_json::from_slice::<Value>(&body).expect("json")
    };
    assert_eq!(count(list().await), 0);
    let handle = station.app.fleet.member(None).and_then(|member| member.handle()).expect("open");
    handle
        .run(lifeboat::worker::Job::Backup { accept_shrunken: false }, lifeboat::worker::Reason::Request)
        .await
        .expect("backs up");
    assert_eq!(count(list().await), 1, "a job has ended");
    let fault = How::Before(ErrorKind::Unavailable);
    station.storage.script(Fault::at(Operation::List, 1, fault));
    assert_eq!(count(list().await), 1, "storage is not asked again");
}

#[tokio::test(flavor = "multi_thread")]
async fn events_show_a_job_from_beginning_to_end_and_stop_with_the_server() {
    let station = Station::opening(&["app"], "127.0.0.1:0", None);
    let stop = CancellationToken::new();
    let (address, serving) = station.serve(&stop).await;
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let request = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut seen = String::new();
    read_until(&mut stream, &mut seen, "it is being opened").await;
    assert!(seen.contains("content-type: text/event-stream"), "{seen}");
    station.open(station.app.fleet.member(None).expect("one")).await;
    read_until(&mut stream, &mut seen, r#""jobs":[]"#).await;
    let backup = exchange(address, "POST /backup-now HTTP/1.0\r\nHost: localhost\r\n\r\n").await;
    assert!(backup.starts_with("HTTP/1.0 200"), "{backup}");
    read_until(&mut stream, &mut seen, r#""state":"done""#).await;
    assert!(seen.contains("event: status") && seen.contains(r#""ready":true"#), "{seen}");

    let began = Instant::now();
    stop.cancel();
    let rest = stream.read_to_string(&mut seen).await;
    assert!(rest.is_ok(), "the stream ends in good order: {rest:?}");
    serving.await.expect("serving ends");
    assert!(began.elapsed() < Duration::from_secs(4), "and at once");
}

async fn read_until(stream: &mut TcpStream, seen: &mut String, what: &str) {
    let mut chunk = [0; 4096];
    let reading = async {
        while !seen.contains(what) {
            let count = stream.read(&mut chunk).await.expect("reads");
            assert!(count > 0, "the stream ended before {what}: {seen}");
            seen.push_str(&String::from_utf8_lossy(&chunk[..count]));
        }
    };
    tokio::time::timeout(Duration::from_secs(10), reading).await.unwrap_or_else(|_| panic!("no {what}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn event_streams_are_counted() {
    let station = Station::new().await;
    let stop = CancellationToken::new();
    let (address, _serving) = station.serve(&stop).await;
    let request = "GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n";
    let mut streams = Vec::new();
    for _ in 0..16 {
        let mut stream = TcpStream::connect(address).await.expect("connects");
        stream.write_all(request.as_bytes()).await.expect("writes");
        read_until(&mut stream, &mut String::new(), "event: status").await;
        streams.push(stream);
    }
    let closing = "GET /events HTTP/1.0\r\nHost: localhost\r\n\r\n";
    assert!(exchange(address, closing).await.contains(r#""kind":"limit""#));
    drop(streams.pop());
    let mut stream = TcpStream::connect(address).await.expect("connects");
    let mut seen = String::new();
    while !seen.contains("event: status") {
        // Its place is free as soon as the server has seen that it is gone.
        stream.write_all(request.as_bytes()).await.expect("writes");
        seen.clear();
        read_until(&mut stream, &mut seen, "\r\n\r\n").await;
        tokio::time::sleep(Duration::from_millis(20)).await;
        if seen.contains("200 OK") {
            read_until(&mut stream, &mut seen, "event: status").await;
        }
    }
    stop.cancel();
}

#[tokio::test(flavor = "multi_thread")]
async fn heads_that_are_too_large_or_no_heads_end_the_connection() {
    let station = Station::new().await;
    let stop = CancellationToken::new();
    let (address, _serving) = station.serve(&stop).await;
    let large = format!("GET /health HTTP/1.1\r\nX: {}\r\n\r\n", "a".repeat(32 << 10));
    let many = format!("GET /health HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(100));
    for request in [
        large.as_str(),
        many.as_str(),
        "\u{16}\u{3}\u{1}hello",
        "GET /\r\n\r\n",
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
    ] {
        let answer = exchange(address, request).await;
        assert!(!answer.contains(" 200 "), "{request:.40}: {answer}");
    }
    // The answer may be there before it is counted.
    let counted = async || {
        while !station
            .get("/metrics")
            .await
            .body
            .contains(r#"lifeboat_http_refused_total{reason="large-head"} 2"#)
        {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(30), counted()).await.expect("both are counted");
    let whole = "POST /restore HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n\
        Transfer-Encoding: chunked\r\nConnection: close\r\n\r\n";
    let chunks = format!("{whole}{}0\r\n\r\n", format!("1000\r\n{}\r\n", " ".repeat(0x1000)).repeat(5));
    let answer = exchange(address, &chunks).await;
    assert!(answer.starts_with("HTTP/1.1 413"), "{answer}");
}

#[tokio::test(flavor = "multi_thread")]
async fn numbers_are_those_of_this_moment() {
    let station = Station::new().await;
    let metrics = station.get("/metrics").await;
    assert!(
        metrics.headers["content-type"].to_str().expect("text").starts_with("application/openmetrics-text")
    );
    assert!(metrics.body.contains(r#"lifeboat_ready{database="app"} 0"#), "{}", metrics.body);
    station.get("/backup-now").await;
    let metrics = station.get("/metrics").await.body;
    for line in [
        r#"lifeboat_ready{database="app"} 1"#,
        r#"lifeboat_jobs_total{database="app",job="backup",outcome="ok"} 1"#,
        r#"lifeboat_last_backup_timestamp_seconds{database="app"} "#,
    ] {
        assert!(metrics.contains(line), "{line}: {metrics}");
    }
    assert!(metrics.ends_with("# EOF\n"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_shows_databases_and_routes() {
    let page = Station::new().await.get("/").await;
    assert!(page.body.contains("app") && page.body.contains("POST /restore"), "{}", page.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_contract_is_what_is_served() {
    let station = Station::new().await;
    let contract = station.get("/openapi.json").await.json();
    insta::assert_json_snapshot!(contract, { ".info.version" => "[version]" });

    for (path, item) in contract["paths"].as_object().expect("paths") {
        let target = path.replace("{id}", "20010101T000000.000Z-00000000");
        for method in ["GET", "POST", "PUT", "DELETE"] {
            if target == "/events" && method == "GET" {
                continue;
            }
            let answer = station.ask(LOCAL, &format!("{method} {target}"), &[], "").await;
            let is_routed = answer.status != StatusCode::METHOD_NOT_ALLOWED;
            assert_eq!(is_routed, item.get(method.to_lowercase()).is_some(), "{method} {target}: {answer:?}");
            assert!(is_routed || answer.headers.contains_key("allow"), "{method} {target}: {answer:?}");
            assert!(is_routed || answer.error_kind() == "method-not-allowed");
            assert!(!answer.body.contains("no such route"), "{target}");
        }
    }
}
