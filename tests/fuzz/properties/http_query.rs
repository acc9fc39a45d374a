//! Whatever a request asks for: it is answered by one of the codes of the contract, as data, and an error
//! has the one form of errors.
//!
//! The input is a method, a target and, on the lines below, a body. No database has a worker, so nothing
//! is done.
use std::cell::RefCell;

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use lifeboat::clock::Clock;
use lifeboat::config::{DatabaseFile, Http};
use lifeboat::http::{Access, App, Peer, router};
use lifeboat::metrics::Metrics;
use lifeboat::worker::{Fleet, Freshness};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

thread_local! {
    static SERVED: RefCell<(Router, Runtime)> = RefCell::new(served());
}

fn served() -> (Router, Runtime) {
    let runtime = Builder::new_current_thread().enable_all().build().expect("a runtime");
    let names = ["app", "users"];
    let file = |name: &str| DatabaseFile {
        name: name.parse().expect("a name"),
        path: format!("/srv/{name}.db").into(),
    };
    let freshness = Freshness {
        backup_age_max: None,
        uncaptured_age_max: None,
        proof_age_max: None,
        capture_lag_max: None,
    };
    let http = Http {
        addr: None,
        tokens: Vec::new(),
        token_file: None,
        connections_max: 1,
        allowed_hosts: Vec::new(),
    };
    let app = App {
        fleet: Fleet::new(names.into_iter().map(file).collect(), freshness),
        metrics: Metrics::new(),
        clock: Clock::system(),
        access: Access::new("127.0.0.1:9091".parse().expect("an address"), &http).expect("random bits"),
        phase: watch::channel("running").1,
        identity: None,
    };
    let stop = CancellationToken::new();
    // Streams end as soon as they begin.
    stop.cancel();
    (router(app, stop), runtime)
}

pub fn holds(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let (line, body) = text.split_once('\n').unwrap_or((text, ""));
    let (method, target) = line.split_once(' ').unwrap_or(("GET", line));
    let request = Request::builder()
        .method(method)
        .uri(target)
        .header("host", "localhost")
        .header("content-type", "application/json")
        .extension(Peer("127.0.0.1:40000".parse().expect("an address")))
        .body(Body::from(body.to_owned()));
    // What is no URI never gets this far.
    let Ok(request) = request else { return };
    SERVED.with_borrow(|(router, runtime)| {
        let answer = runtime.block_on(router.clone().oneshot(request)).expect("never fails");
        let status = answer.status();
        let content =
            answer.headers().get("content-type").map(|value| value.to_str().expect("text").to_owned());
        let body = runtime.block_on(to_bytes(answer.into_body(), 1 << 20)).expect("a body");
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{}", String::from_utf8_lossy(&body));
        let is_readiness =
            content.is_some() && status == StatusCode::SERVICE_UNAVAILABLE && body.starts_with(b"{\"ready\"");
        if (status.is_client_error() || status.is_server_error()) && method != "HEAD" && !is_readiness {
            assert_eq!(content.as_deref(), Some("application/json"), "{status}");
            let answer: serde_json::Value = serde_json::from_slice(&body).expect("JSON");
            // What is asked of all databases fails for each of them by itself.
            let failures = answer["databases"].as_array().cloned().unwrap_or_else(|| vec![answer.clone()]);
            let is_told = |failure: &serde_json::Value| {
                failure["error"]["kind"].is_string() && failure["error"]["message"].is_string()
            };
            assert!(!failures.is_empty() && failures.iter().any(is_told), "{answer}");
        }
    });
}
