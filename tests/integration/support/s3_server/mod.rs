//! An S3 server inside the test process: a real implementation over files, with a script of
//! faults in front of it and the behaviours of lesser stores inside.

mod bucket;
mod script;
mod tls;

use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::http::HeaderMap;
use bucket::{Bucket, Conditions};
use hyper_util::rt::TokioIo;
use lifeboat::clock::Clock;
use lifeboat::credentials::{self, Identity, Session};
use lifeboat::metrics::IdentityMetrics;
use lifeboat::storage::{Patience, S3, S3Settings};
use s3s::auth::SimpleAuth;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s_fs::FileSystem;
pub use script::Fault;
use script::{Rule, Script};
use tempfile::TempDir;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;

pub const BUCKET: &str = "backups";
pub const KEY_ID: &str = "AKIDTEST";
pub const SECRET: &str = "not-a-secret";

/// A running server with one empty bucket.
pub struct Server {
    pub url: String,
    script: Arc<Mutex<Script>>,
    bucket: Bucket,
    files: TempDir,
}

impl Server {
    pub async fn start() -> Server {
        Server::start_at("127.0.0.1:0").await
    }

    /// At an address of this machine.
    pub async fn start_at(address: &str) -> Server {
        let listener = TcpListener::bind(address).await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        Server::serve(listener, url, None)
    }

    /// At `https://localhost`, with the certificate in `file`, whatever it says.
    pub async fn start_with_tls(file: &Path) -> Server {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("https://localhost:{}", listener.local_addr().expect("bound").port());
        Server::serve(listener, url, Some(tls::acceptor(file)))
    }

    fn serve(listener: TcpListener, url: String, tls: Option<TlsAcceptor>) -> Server {
        let files = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(files.path().join(BUCKET)).expect("a bucket");
        let bucket = Bucket {
            files: Arc::new(FileSystem::new(files.path()).expect("a directory")),
            state: Arc::default(),
            turn: Arc::default(),
        };
        let mut service = S3ServiceBuilder::new(bucket.clone());
        service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let (service, script) = (service.build(), Arc::new(Mutex::new(Script::default())));
        let scripted = script.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                // Else an answer in two pieces takes 40 ms.
                socket.set_nodelay(true).expect("a socket of ours");
                let (service, script, tls) = (service.clone(), scripted.clone(), tls.clone());
                tokio::spawn(async move {
                    match tls {
                        None => talk(socket, service, script).await,
                        Some(tls) => {
                            // Whoever does not like the certificate hangs up.
                            if let Ok(socket) = tls.accept(socket).await {
                                talk(socket, service, script).await;
                            }
                        }
                    }
                });
            }
        });
        Server { url, script, bucket, files }
    }

    /// Puts an object there, past every rule.
    pub fn place(&self, key: &str, bytes: &[u8]) {
        let path = self.files.path().join(BUCKET).join(key);
        std::fs::create_dir_all(path.parent().expect("below the bucket")).expect("a folder");
        std::fs::write(path, bytes).expect("written");
    }

    /// The next `times` requests of `method` whose target contains `target` go wrong.
    pub fn fault(&self, method: &'static str, target: &'static str, times: usize, fault: Fault) {
        self.fault_after(0, method, target, times, fault);
    }

    /// The same after `after` matching requests have passed.
    pub fn fault_after(
        &self,
        after: usize,
        method: &'static str,
        target: &'static str,
        times: usize,
        fault: Fault,
    ) {
        let rule = Rule { method, target, after, times, fault };
        self.script.lock().expect("not poisoned").rules.push(rule);
    }

    /// The `times` requests from the one numbered `index` on, whatever they are, go wrong. Numbers
    /// begin with 0 at the next request.
    pub fn fault_at(&self, index: usize, times: usize, fault: Fault) {
        self.fault_after(index, "", "", times, fault);
    }

    /// Requests go wrong the first time they are sent, the third, and so on: those of one of `shares`.
    pub fn fault_once_each(&self, share: usize, shares: usize, fault: Fault) {
        self.script.lock().expect("not poisoned").alternating = Some((fault, share, shares));
    }

    /// From now on nothing goes wrong any more.
    pub fn heal(&self) {
        let mut script = self.script.lock().expect("not poisoned");
        script.rules.clear();
        script.alternating = None;
    }

    /// Every request so far, as `METHOD target`.
    pub fn log(&self) -> Vec<String> {
        self.script.lock().expect("not poisoned").log.clone()
    }

    /// How many requests of `method` came whose target contains `target`.
    pub fn requests(&self, method: &str, target: &str) -> usize {
        let script = self.script.lock().expect("not poisoned");
        script.log.iter().filter(|line| line.starts_with(method) && line.contains(target)).count()
    }

    /// A header of every request of `method` whose target contains `target`; empty where it had none.
    pub fn headers(&self, method: &str, target: &str, name: &str) -> Vec<String> {
        let script = self.script.lock().expect("not poisoned");
        let requests = script.log.iter().zip(&script.headers);
        let meant = requests.filter(|(line, _)| line.starts_with(method) && line.contains(target));
        let text = |headers: &HeaderMap| {
            headers.get(name).map_or_else(String::new, |value| value.to_str().expect("text").to_owned())
        };
        meant.map(|(_, headers)| text(headers)).collect()
    }

    /// From now on every answer says that this is the time, as HTTP writes it.
    pub fn show_date(&self, date: String) {
        self.script.lock().expect("not poisoned").date = Some(date);
    }

    /// From now on conditions on writes are ignored, as some stores do.
    pub fn ignore_conditions(&self) {
        self.bucket.with(|state| state.conditions = Conditions::Ignored);
    }

    /// From now on conditions on writes are answered with "not implemented".
    pub fn refuse_conditions(&self) {
        self.bucket.with(|state| state.conditions = Conditions::Refused);
    }

    /// From now on the whole object is sent, whatever range was asked for.
    pub fn ignore_ranges(&self) {
        self.bucket.with(|state| state.ignores_ranges = true);
    }

    /// From now on an object may be made of parts of any size.
    pub fn take_small_parts(&self) {
        self.bucket.with(|state| state.takes_small_parts = true);
    }

    /// From now on every upload that has begun and not ended did so two days ago.
    pub fn age_unfinished(&self) {
        let ago = Duration::from_secs(2 * 24 * 3600);
        self.bucket.with(|state| state.uploads.iter_mut().for_each(|upload| upload.began -= ago));
    }

    /// How many multipart uploads have begun and not ended.
    pub fn unfinished(&self) -> usize {
        self.bucket.with(|state| state.uploads.len())
    }

    pub fn settings(&self) -> S3Settings {
        S3Settings {
            prefix: "some/prefix".to_owned(),
            endpoint_url: Some(self.url.clone()),
            patience: impatience(),
            ..S3Settings::new(BUCKET)
        }
    }

    pub async fn storage(&self) -> S3 {
        connect(self.settings()).await
    }
}

async fn talk(
    socket: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    service: S3Service,
    script: Arc<Mutex<Script>>,
) {
    let answer = hyper::service::service_fn(|request| script::answer(&service, &script, request));
    let connection = hyper::server::conn::http1::Builder::new();
    // A cut connection is what some faults are; it is no news here.
    let _ = connection.serve_connection(TokioIo::new(socket), answer).await;
}

pub async fn connect(settings: S3Settings) -> S3 {
    let identity = Identity::Key { id: KEY_ID.to_owned(), secret: SECRET.into(), session_token: None };
    let region = settings.signing_region().expect("a region");
    let session = Session::open(identity, &region, Clock::system(), IdentityMetrics::default());
    credentials::connect(settings, &session.expect("a valid identity")).expect("valid settings")
}

/// Waits short enough for a test.
pub fn impatience() -> Patience {
    Patience {
        attempt: Duration::from_secs(20),
        retries: 3,
        delay_min: Duration::from_millis(1),
        delay_max: Duration::from_millis(5),
        ..Patience::default()
    }
}
