//! The HTTP interface over a laboratory: databases with workers, and requests from any peer.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, StatusCode};
use lifeboat::catalog::Catalog;
use lifeboat::clock::Clock;
use lifeboat::config::{DatabaseFile, Http};
use lifeboat::error::{Error, ErrorKind};
use lifeboat::http::{Access, App, Peer, router, serve};
use lifeboat::lineage::Standing;
use lifeboat::metrics::Metrics;
use lifeboat::restore::Checks;
use lifeboat::retention::Policy;
use lifeboat::storage::{Directory, Faulty};
use lifeboat::worker::{self, AtStart, Fallback, Fleet, Freshness, Member, Perform};
use rusqlite::Connection;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use super::lab::Lab;

pub const TOKEN: &str = "correct-horse-battery";
pub const LOCAL: &str = "127.0.0.1:40000";
/// As by default.
pub const CONNECTIONS_MAX: usize = 64;

pub const STRANGER: &str = "10.1.2.3:40000";

/// Databases `app` (and others), each with a table `t` of one row, and the interface over them.
pub struct Station {
    pub lab: Lab,
    pub app: App,
    /// Where faults are scripted.
    pub storage: Faulty,
    pub connections: Vec<Connection>,
    /// Two databases are worked on at once.
    turns: Arc<Semaphore>,
}

impl Station {
    /// One database, reachable from this machine only, no token.
    pub async fn new() -> Station {
        Station::with(&["app"], "127.0.0.1:9091", None).await
    }

    /// Databases of these names, behind a listener bound to `bind`.
    pub async fn with(names: &[&str], bind: &str, token: Option<&str>) -> Station {
        let station = Station::opening(names, bind, token);
        for member in station.app.fleet.members() {
            station.open(member).await;
        }
        station
    }

    /// The same, with no worker started yet.
    pub fn opening(names: &[&str], bind: &str, token: Option<&str>) -> Station {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let directory = Directory::open(dir.path().join("backups")).expect("the directory opens");
        let storage = Faulty::new(Arc::new(directory));
        let lab = Lab::over(dir, Arc::new(storage.clone()));
        let sql = "PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES ('first')";
        let connections = names.iter().map(|name| lab.database(&format!("{name}.db"), sql)).collect();
        let file = |name: &&str| DatabaseFile {
            name: name.parse().expect("a valid name"),
            path: lab.path(&format!("{name}.db")),
        };
        let freshness = Freshness {
            backup_age_max: Some(Duration::from_secs(900)),
            uncaptured_age_max: Some(Duration::from_secs(900)),
            proof_age_max: None,
            capture_lag_max: None,
        };
        let http = Http {
            addr: None,
            tokens: token.into_iter().map(Into::into).collect(),
            token_file: None,
            connections_max: 64,
            allowed_hosts: vec!["backups.example".to_owned()],
        };
        let access = Access::new(bind.parse().expect("an address"), &http).expect("random bits");
        let app = App {
            fleet: Fleet::new(names.iter().map(file).collect(), freshness),
            metrics: Metrics::new(),
            clock: Clock::system(),
            access,
            phase: watch::channel("running").1,
            identity: None,
        };
        Station { lab, app, storage, connections, turns: Arc::new(Semaphore::new(2)) }
    }

    /// Starts the worker of one database.
    pub async fn open(&self, member: &Member) {
        let (clock, database) = (self.app.clock.clone(), member.database.clone());
        let catalog = Catalog::new(Arc::clone(&self.lab.storage), database.name.clone());
        let epoch = catalog.claim_epoch("test", clock.now()).await.expect("the epoch is free");
        let perform = Perform {
            metrics: self.app.metrics.database(&database.name),
            database,
            catalog,
            standing: Mutex::new(Standing::head(epoch)),
            holder: "test".to_owned(),
            settings: self.lab.settings.clone(),
            policy: Policy::default(),
            point_in_time: Duration::from_secs(7 * 86_400),
            safety_age: Duration::from_secs(3_600),
            clock: clock.clone(),
            checks: Checks { deadline: Duration::from_secs(60), assertion: None },
            at_start: AtStart::default(),
            memory: Mutex::default(),
            fallback: Fallback::default(),
            turns: Arc::clone(&self.turns),
            capture: Arc::default(),
        };
        let (handle, worker) = worker::prepare(perform, clock, CancellationToken::new());
        tokio::spawn(worker);
        member.opened(handle);
    }

    /// Says of one database that storage cannot be reached.
    pub fn fail_to_open(&self, name: &str) {
        let error = Error::new(ErrorKind::Unavailable, "connect to bucket=`very-secret-bucket`");
        self.app.fleet.member(Some(name)).expect("a member").not_yet(&error);
    }

    /// The answer to a request that `peer` sends; `line` is a method and a target.
    pub async fn ask(&self, peer: &str, line: &str, headers: &[(&str, &str)], body: &str) -> Answer {
        let (method, target) = line.split_once(' ').expect("a method and a target");
        let mut request = Request::builder().method(method).uri(target);
        if !headers.iter().any(|(name, _)| *name == "host") {
            request = request.header("host", "127.0.0.1:9091");
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let mut request = request.body(Body::from(body.to_owned())).expect("a request");
        request.extensions_mut().insert(Peer(peer.parse().expect("an address")));
        let router = router(self.app.clone(), CancellationToken::new());
        let response = router.oneshot(request).await.expect("always an answer");
        let (head, body) = response.into_parts();
        let body = to_bytes(body, 1 << 20).await.expect("a body");
        Answer { status: head.status, headers: head.headers, body: String::from_utf8_lossy(&body).into() }
    }

    /// The answer to a program on this machine.
    pub async fn get(&self, target: &str) -> Answer {
        self.ask(LOCAL, &format!("GET {target}"), &[], "").await
    }

    /// The answer to a program on this machine that sends JSON.
    pub async fn post(&self, target: &str, body: &Value) -> Answer {
        let headers = [("content-type", "application/json")];
        self.ask(LOCAL, &format!("POST {target}"), &headers, &body.to_string()).await
    }

    /// Serves on a port of this machine until `stop`.
    pub async fn serve(&self, stop: &CancellationToken) -> (SocketAddr, tokio::task::JoinHandle<()>) {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let address = listener.local_addr().expect("it is bound");
        let (app, stop) = (self.app.clone(), stop.clone());
        let serving =
            tokio::spawn(async move { serve(listener, app, CONNECTIONS_MAX, stop).await.expect("serves") });
        (address, serving)
    }
}

/// A response.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub body: String,
}

impl Answer {
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The stable name of the error.
    pub fn error_kind(&self) -> String {
        self.json()["error"]["kind"].as_str().unwrap_or_else(|| panic!("no error: {}", self.body)).to_owned()
    }
}

/// Sends bytes as they are; returns what comes back until the other side closes.
pub async fn exchange(address: SocketAddr, request: &str) -> String {
    let mut stream = TcpStream::connect(address).await.expect("connects");
    stream.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = Vec::new();
    // A connection that is cut off has answered whatever it has answered.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into()
}
