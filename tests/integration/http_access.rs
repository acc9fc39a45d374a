//! Who may ask the HTTP interface for what, and what strangers never read.

use std::time::{Duration, Instant};

use axum::http::StatusCode;
use futures::future::join_all;
use lifeboat::config::{Http, read_tokens};
use lifeboat::http::Access;
use serde_json::json;

use crate::support::station::{LOCAL, STRANGER, Station, TOKEN};

const RESTORE: &str = r#"{"database":"app","confirm":"app"}"#;
const JSON: (&str, &str) = ("content-type", "application/json");

/// How a request proves who it is.
#[derive(Debug, Clone, Copy)]
enum Shows {
    Nothing,
    Wrong,
    Right,
}

/// The status of one request, with a body where the route reads one.
async fn status(station: &Station, line: &str, peer: &str, shows: Shows) -> u16 {
    let right = format!("Bearer {TOKEN}");
    let authorization = match shows {
        Shows::Nothing => None,
        Shows::Wrong => Some("Bearer wrong-horse-battery"),
        Shows::Right => Some(right.as_str()),
    };
    let mut headers = vec![JSON];
    headers.extend(authorization.map(|value| ("authorization", value)));
    let body = if line.starts_with("POST /restore") { RESTORE } else { "" };
    station.ask(peer, line, &headers, body).await.status.as_u16()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_access_matrix() {
    use Shows::{Nothing, Right, Wrong};
    // Each column: the listener's address, the configured token, the peer, and what it shows.
    let columns = [
        ("127.0.0.1:9091", None, LOCAL, Nothing),
        ("127.0.0.1:9091", None, LOCAL, Wrong),
        ("127.0.0.1:9091", Some(TOKEN), LOCAL, Nothing),
        ("127.0.0.1:9091", Some(TOKEN), LOCAL, Right),
        ("0.0.0.0:9091", None, LOCAL, Nothing),
        ("0.0.0.0:9091", None, STRANGER, Nothing),
        ("0.0.0.0:9091", Some(TOKEN), STRANGER, Nothing),
        ("0.0.0.0:9091", Some(TOKEN), STRANGER, Wrong),
        ("0.0.0.0:9091", Some(TOKEN), STRANGER, Right),
        ("0.0.0.0:9091", Some(TOKEN), LOCAL, Nothing),
    ];
    let reading = [200, 401, 200, 200, 200, 200, 200, 401, 200, 200];
    let rows = [
        ("GET /health", reading),
        ("GET /ready", reading),
        ("GET /metrics", reading),
        ("GET /", reading),
        ("GET /openapi.json", reading),
        ("GET /snapshots", reading),
        ("GET /jobs/1", reading),
        ("GET /backup-now", [200, 401, 200, 200, 200, 403, 401, 401, 200, 200]),
        ("POST /backup-now", [200, 401, 200, 200, 200, 403, 401, 401, 200, 200]),
        ("POST /verify", [200, 401, 200, 200, 200, 403, 401, 401, 200, 200]),
        ("POST /restore", [200, 401, 401, 200, 403, 403, 401, 401, 200, 401]),
    ];
    let check = async |(at, (bind, token, peer, shows))| {
        let station = Station::with(&["app"], bind, token).await;
        let handle = station.app.fleet.member(None).and_then(|member| member.handle()).expect("open");
        handle
            .run(lifeboat::worker::Job::Backup { accept_shrunken: false }, lifeboat::worker::Reason::Startup)
            .await
            .expect("backs up");
        for (line, expected) in rows {
            let status = status(&station, line, peer, shows).await;
            assert_eq!(status, expected[at], "{line} on {bind} with {token:?} from {peer} showing {shows:?}");
        }
    };
    // A wrong token is kept waiting: let all columns wait at once.
    join_all(columns.into_iter().enumerate().map(check)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_read_no_place_no_path_and_no_message() {
    let station = Station::with(&["app"], "0.0.0.0:9091", Some(TOKEN)).await;
    let backup = station.get("/backup-now").await.json();
    let verified = station.post("/verify", &json!({})).await;
    assert_eq!(verified.status, 200, "{verified:?}");
    // A job that fails, with a path in its message.
    let restoring = json!({"database": "app", "confirm": "app"}).to_string();
    std::fs::rename(station.lab.path("app.db"), station.lab.path("gone.db")).expect("renames");
    let token = format!("Bearer {TOKEN}");
    let failed = station.ask(LOCAL, "POST /restore", &[JSON, ("authorization", &token)], &restoring).await;
    assert!(failed.body.contains("app.db"), "the trusted read why: {failed:?}");

    let snapshot = format!("/snapshots/{}", backup["snapshot"]["id"].as_str().expect("an id"));
    let place = station.lab.dir.path().display().to_string();
    let targets =
        ["/health", "/ready", "/metrics", "/", "/snapshots", &snapshot, "/jobs/1", "/jobs/2", "/jobs/3"];
    for target in targets {
        let answer = station.ask(STRANGER, &format!("GET {target}"), &[], "").await;
        for secret in [place.as_str(), "backups/", "app.db", "manifest", "sha256"] {
            assert!(!answer.body.contains(secret), "{target} tells {secret}: {}", answer.body);
        }
    }
    let job = station.ask(STRANGER, "GET /jobs/3", &[], "").await.json();
    assert_eq!((&job["state"], &job["error"]["kind"]), (&json!("failed"), &json!("source")));
    let listed = station.ask(STRANGER, "GET /snapshots", &[], "").await.json();
    assert!(listed["snapshots"][0]["proven_at"].is_string(), "{listed}");
    assert_eq!(listed["snapshots"][0].get("drill_failure"), None);
    let ready = station.ask(STRANGER, "GET /ready", &[], "").await;
    assert_eq!(ready.json(), json!({"ready": true}));
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_learn_that_storage_is_away_but_not_which() {
    let station = Station::opening(&["app"], "0.0.0.0:9091", Some(TOKEN));
    station.fail_to_open("app");
    let unready = json!({"ready": false});
    assert_eq!(station.ask(STRANGER, "GET /ready", &[], "").await.json(), unready);
    assert_eq!(station.ask(STRANGER, "GET /health", &[], "").await.json(), json!({"status": "degraded"}));
    for target in ["/snapshots", "/jobs/1"] {
        let answer = station.ask(STRANGER, &format!("GET {target}"), &[], "").await;
        assert_eq!(
            (answer.status, answer.error_kind().as_str()),
            (StatusCode::SERVICE_UNAVAILABLE, "unavailable")
        );
        assert!(!answer.body.contains("very-secret-bucket"), "{answer:?}");
        assert_eq!(answer.headers["retry-after"], "10");
    }
    for target in ["/snapshots", "/ready", "/", "/backup-now"] {
        let answer = station.get(target).await;
        assert!(answer.body.contains("very-secret-bucket"), "{target}: {answer:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_does_not_lend_its_address() {
    let station = Station::new().await;
    for name in ["x-forwarded-for", "forwarded", "fly-client-ip", "x-real-ip"] {
        let answer = station.ask(LOCAL, "POST /backup-now", &[(name, "127.0.0.1")], "").await;
        assert_eq!(answer.status, StatusCode::FORBIDDEN, "{name}");
        assert_eq!(
            station.ask(LOCAL, "GET /ready", &[(name, "::1")], "").await.json(),
            json!({"ready": false})
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wrong_token_waits_and_a_missing_one_is_asked_for() {
    let station = Station::with(&["app"], "0.0.0.0:9091", Some(TOKEN)).await;
    let missing = station.ask(STRANGER, "POST /backup-now", &[], "").await;
    assert_eq!(missing.headers["www-authenticate"], r#"Bearer realm="lifeboat""#);
    let began = Instant::now();
    let wrong = station.ask(STRANGER, "GET /health", &[("authorization", "Bearer guess")], "").await;
    assert_eq!(wrong.status, StatusCode::UNAUTHORIZED);
    assert!(began.elapsed() >= Duration::from_millis(500));
    assert!(!wrong.body.contains("guess"), "{wrong:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn asking_whether_a_backup_route_exists_takes_no_backup() {
    let station = Station::new().await;
    assert_eq!(station.ask(LOCAL, "HEAD /backup-now", &[], "").await.status, StatusCode::METHOD_NOT_ALLOWED);
    assert_eq!(station.get("/jobs/1").await.status, StatusCode::NOT_FOUND);
    assert_eq!(station.ask(LOCAL, "HEAD /health", &[], "").await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_changed_without_a_restart_and_without_a_gap() {
    const NEXT: &str = "next-horse-battery";
    let mut station = Station::with(&["app"], "0.0.0.0:9091", Some(TOKEN)).await;
    let file = station.lab.path("token");
    std::fs::write(&file, TOKEN).expect("writes");
    let http = Http {
        addr: None,
        tokens: read_tokens(&file).expect("a token"),
        token_file: Some(file.clone()),
        connections_max: 64,
        allowed_hosts: Vec::new(),
    };
    station.app.access =
        Access::new("0.0.0.0:9091".parse().expect("an address"), &http).expect("random bits");
    let valid = async |token: &str| {
        let bearer = format!("Bearer {token}");
        let answer = station.ask(STRANGER, "GET /ready", &[("authorization", &bearer)], "").await;
        answer.status != StatusCode::UNAUTHORIZED
    };
    for (content, expected) in [
        (TOKEN.to_owned(), (true, false)),
        (format!("{NEXT}\n{TOKEN}\n"), (true, true)),
        (NEXT.to_owned(), (false, true)),
        (String::new(), (false, true)),
    ] {
        std::fs::write(&file, &content).expect("writes");
        // It is read once a second at most.
        tokio::time::sleep(Duration::from_millis(1_100)).await;
        assert_eq!((valid(TOKEN).await, valid(NEXT).await), expected, "{content:?}");
    }
}
