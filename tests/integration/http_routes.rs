//! What holds of every route there is, as the contract lists them: a new one is tried without being named here.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use axum::http::StatusCode;
use serde_json::{Value, json};

use crate::support::station::{LOCAL, STRANGER, Station, TOKEN};

const JSON: (&str, &str) = ("content-type", "application/json");

/// Answered to anybody, under any host name.
const PROBES: [&str; 3] = ["/health", "/ready", "/metrics"];

/// Open to a link from another site.
const PAGES: [&str; 2] = ["/", "/openapi.json"];

/// A stream: what it answers has no end.
const STREAM: &str = "/events";

/// What leads elsewhere, if anything believes it.
const ELSEWHERE: [&str; 16] = [
    "../../../etc/passwd",
    "..",
    "/etc/passwd",
    "app/../app",
    "./app",
    "app.db",
    "app\0",
    "\0",
    "file:///etc/passwd",
    "http://169.254.169.254/latest/meta-data/",
    "https://evil.example/",
    "s3://bucket/app/head.json",
    "\\\\host\\share",
    "app\r\nset-cookie: a=b",
    "~/.ssh/id_rsa",
    "$(id)",
];

/// One route of the contract.
#[derive(Debug)]
struct Route {
    method: String,
    path: String,
    /// Names of what its query takes.
    query: Vec<String>,
    /// Names of what its body takes.
    body: Vec<String>,
}

async fn routes(station: &Station) -> Vec<Route> {
    let contract = station.get("/openapi.json").await.json();
    let mut routes = Vec::new();
    for (path, item) in contract["paths"].as_object().expect("paths") {
        for (method, operation) in item.as_object().expect("methods") {
            let parameters = operation["parameters"].as_array().cloned().unwrap_or_default();
            let of_query = parameters.iter().filter(|parameter| parameter["in"] == "query");
            let query =
                of_query.map(|parameter| parameter["name"].as_str().expect("a name").to_owned()).collect();
            let (method, path) = (method.to_uppercase(), path.clone());
            routes.push(Route { method, path, query, body: fields(&contract, operation) });
        }
    }
    assert!(routes.len() >= 12, "{routes:?}");
    routes
}

/// The fields of an operation's body, if it has one.
fn fields(contract: &Value, operation: &Value) -> Vec<String> {
    let schema = &operation["requestBody"]["content"]["application/json"]["schema"];
    let references = schema.to_string();
    let Some((_, rest)) = references.split_once("#/components/schemas/") else { return Vec::new() };
    let name = rest.split('"').next().expect("a name");
    let properties = &contract["components"]["schemas"][name]["properties"];
    properties.as_object().expect("properties").keys().cloned().collect()
}

impl Route {
    fn line(&self, target: &str) -> String {
        format!("{} {target}", self.method)
    }

    /// With an id that is well formed and leads to nothing.
    fn target(&self) -> String {
        self.path.replace("{id}", "20010101T000000.000Z-00000000")
    }
}

/// Every byte but letters and digits, as a URL writes it.
fn encoded(text: &str) -> String {
    let byte = |byte: u8| match byte.is_ascii_alphanumeric() {
        true => char::from(byte).to_string(),
        false => format!("%{byte:02x}"),
    };
    text.bytes().map(byte).collect()
}

/// Every file below `folder` and its size.
fn files(folder: &Path) -> BTreeSet<(String, u64)> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let entry = entry.expect("an entry");
        match entry.file_type().expect("a type").is_dir() {
            true => found.extend(files(&entry.path())),
            false => {
                found.insert((entry.path().display().to_string(), entry.metadata().expect("there").len()));
            }
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_that_leads_elsewhere_is_believed() {
    let station = Station::new().await;
    let id = station.get("/backup-now").await.json()["snapshot"]["id"].as_str().expect("an id").to_owned();
    let before = files(station.lab.dir.path());
    let valid = json!({"database": "app", "confirm": "app"});
    let mut tried = 0;
    for route in routes(&station).await {
        for value in ELSEWHERE {
            let text = encoded(value);
            let mut lines = Vec::new();
            if route.path.contains("{id}") {
                let target = |text: &str| route.path.replace("{id}", text);
                lines.extend([
                    target(&text),
                    target(&format!("{id}%2f{text}")),
                    target(&format!("{id}{text}")),
                ]);
            }
            lines.extend(route.query.iter().map(|name| format!("{}?{name}={text}", route.target())));
            for target in lines {
                let answer = station.ask(LOCAL, &route.line(&target), &[JSON], "").await;
                refuses(&answer, &route.line(&target));
                tried += 1;
            }
            for name in route.body.iter().map(String::as_str).chain(["path", "url", "target", "bucket"]) {
                if route.method != "POST" || route.body.is_empty() {
                    continue;
                }
                let mut body = valid.clone();
                if !route.body.contains(&"confirm".to_owned()) {
                    body = json!({});
                }
                body[name] = json!(value);
                let answer = station.ask(LOCAL, &route.line(&route.path), &[JSON], &body.to_string()).await;
                refuses(&answer, &format!("{} {body}", route.line(&route.path)));
                tried += 1;
            }
        }
    }
    assert!(tried > 300, "{tried}");
    assert_eq!(files(station.lab.dir.path()), before, "nothing was written");
    assert_eq!(station.get("/jobs/2").await.status, StatusCode::NOT_FOUND, "no job was begun");
}

#[track_caller]
fn refuses(answer: &crate::support::station::Answer, what: &str) {
    let status = answer.status;
    assert!(matches!(status.as_u16(), 400 | 404), "{what}: {answer:?}");
    assert!(matches!(answer.error_kind().as_str(), "bad-request" | "not-found"), "{what}: {answer:?}");
    for trace in ["root:", "ssh-rsa", "instance-id"] {
        assert!(!answer.body.contains(trace), "{what}: {answer:?}");
    }
    assert!(!answer.headers.contains_key("set-cookie"), "{what}: {answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_are_kept_out_of_every_route() {
    let station = Station::new().await;
    let foreign_page = [
        ("origin", "https://evil.example"),
        ("origin", "null"),
        ("origin", "http://127.0.0.1:9091"),
        ("sec-fetch-site", "cross-site"),
        ("sec-fetch-site", "same-site"),
        ("sec-fetch-site", "anything"),
    ];
    let foreign_host = [
        ("host", "evil.example"),
        ("host", "127.0.0.1.evil.example:9091"),
        ("host", "localhost@evil.example"),
    ];
    for route in routes(&station).await {
        let path = route.path.as_str();
        let marks =
            foreign_page.iter().map(|mark| (*mark, !PROBES.contains(&path) && !PAGES.contains(&path)));
        let hosts = foreign_host.iter().map(|mark| (*mark, !PROBES.contains(&path)));
        for (mark, is_refused) in marks.chain(hosts) {
            let line = route.line(&route.target());
            let answer =
                station.ask(LOCAL, &line, &[JSON, mark], r#"{"database":"app","confirm":"app"}"#).await;
            match is_refused {
                true => {
                    assert_eq!(answer.status, StatusCode::FORBIDDEN, "{line} {mark:?}: {answer:?}");
                    assert_eq!(answer.error_kind(), "forbidden", "{line} {mark:?}");
                }
                false => assert_eq!(answer.status, expected_of(path), "{line} {mark:?}: {answer:?}"),
            }
        }
    }
    assert!(station.get("/snapshots").await.json()["snapshots"].as_array().expect("a list").is_empty());
    assert_eq!(station.get("/jobs/1").await.status, StatusCode::NOT_FOUND, "no job was begun");
    for mark in [("sec-fetch-site", "none"), ("sec-fetch-site", "same-origin"), ("host", "backups.example")] {
        assert_eq!(station.ask(LOCAL, "GET /backup-now", &[mark], "").await.status, 200, "{mark:?}");
    }
}

/// Before the first snapshot a station is not ready.
fn expected_of(path: &str) -> StatusCode {
    if path == "/ready" { StatusCode::SERVICE_UNAVAILABLE } else { StatusCode::OK }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_answer_is_data_for_this_asker_and_this_moment() {
    let station = Station::new().await;
    let mut lines: Vec<String> =
        vec!["GET /nowhere".to_owned(), "TRACE /".to_owned(), "OPTIONS /restore".to_owned()];
    for route in routes(&station).await.iter().filter(|route| route.path != STREAM) {
        lines.extend([route.line(&route.target()), format!("DELETE {}", route.target())]);
    }
    for line in lines {
        for headers in [&[][..], &[("origin", "https://evil.example")]] {
            let answer = station.ask(STRANGER, &line, headers, "").await;
            for (name, value) in [
                ("cache-control", "no-store"),
                ("x-content-type-options", "nosniff"),
                ("referrer-policy", "no-referrer"),
                ("cross-origin-resource-policy", "same-origin"),
                ("content-security-policy", "default-src 'none'; frame-ancestors 'none'"),
            ] {
                assert_eq!(answer.headers[name], value, "{line}");
            }
            for name in ["access-control-allow-origin", "server", "set-cookie"] {
                assert!(!answer.headers.contains_key(name), "{line}: {name}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_route_tells_a_stranger_where_backups_are() {
    let station = Station::opening(&["app"], "0.0.0.0:9091", Some(TOKEN));
    station.fail_to_open("app");
    let place = station.lab.dir.path().display().to_string();
    let mut told = 0;
    for route in routes(&station).await.iter().filter(|route| route.path != STREAM) {
        let line = route.line(&route.target());
        let body = r#"{"database":"app","confirm":"app"}"#;
        let body = if route.body.is_empty() { "" } else { body };
        let answer = station.ask(STRANGER, &line, &[JSON], body).await;
        for secret in ["very-secret-bucket", place.as_str(), TOKEN] {
            assert!(!answer.body.contains(secret), "{line} tells {secret}: {answer:?}");
        }
        let bearer = format!("Bearer {TOKEN}");
        let body = body.replace(
            r#""confirm":"app""#,
            if route.path == "/verify" { r#""snapshot":null"# } else { r#""confirm":"app""# },
        );
        let answer = station.ask(STRANGER, &line, &[JSON, ("authorization", &bearer)], &body).await;
        assert!(!answer.body.contains(TOKEN), "{line}: {answer:?}");
        told += usize::from(answer.body.contains("very-secret-bucket"));
    }
    assert!(told >= 5, "whoever holds the token is told: {told}");
}
