//! An S3 server inside the test process: a real implementation over files, with a script of
//! faults in front of it and the behaviours of lesser stores inside.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use axum::http::HeaderMap;
use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper_util::rt::TokioIo;
use lifeboat::clock::Clock;
use lifeboat::credentials::{self, Identity, Session};
use lifeboat::metrics::IdentityMetrics;
use lifeboat::storage::{Patience, S3, S3Settings};
use s3s::auth::SimpleAuth;
use s3s::dto::*;
use s3s::service::{S3Service, S3ServiceBuilder};
use s3s::stream::DynByteStream;
use s3s::{Body, HttpResponse, S3 as Protocol, S3Request, S3Response, S3Result, s3_error};
use s3s_fs::FileSystem;
use tempfile::TempDir;
use tokio::net::TcpListener;

pub const BUCKET: &str = "backups";
pub const KEY_ID: &str = "AKIDTEST";
pub const SECRET: &str = "not-a-secret";

/// A running server with one empty bucket.
pub struct Server {
    pub url: String,
    script: Arc<Mutex<Script>>,
    bucket: Bucket,
    _files: TempDir,
}

#[derive(Default)]
struct Script {
    rules: Vec<Rule>,
    log: Vec<String>,
    headers: Vec<HeaderMap>,
    /// What every answer says the time is.
    date: Option<String>,
}

struct Rule {
    method: &'static str,
    target: &'static str,
    /// How many matching requests pass before this strikes.
    after: usize,
    /// How many it strikes then.
    times: usize,
    fault: Fault,
}

/// What goes wrong with a request.
#[derive(Debug, Clone, Copy)]
pub enum Fault {
    /// Answered with this status and error code, and not done.
    Status(u16, &'static str),
    /// The connection is cut before the request was read to its end; not done.
    Reset,
    /// Done, and the connection is cut instead of an answer.
    Unanswered,
    /// Never answered, and not done.
    Silence,
    /// Answered with 200 and an error in the body, and not done.
    ErrorInside200,
    /// Done, but the answer's body is cut short.
    Cut,
}

impl Server {
    pub async fn start() -> Server {
        let files = tempfile::tempdir().expect("a temporary directory");
        std::fs::create_dir(files.path().join(BUCKET)).expect("a bucket");
        let bucket = Bucket {
            files: Arc::new(FileSystem::new(files.path()).expect("a directory")),
            state: Arc::default(),
            turn: Arc::default(),
        };
        let mut service = S3ServiceBuilder::new(bucket.clone());
        service.set_auth(SimpleAuth::from_single(KEY_ID, SECRET));
        let service = service.build();
        let script = Arc::new(Mutex::new(Script::default()));
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let scripted = script.clone();
        tokio::spawn(async move {
            while let Ok((socket, _)) = listener.accept().await {
                let (service, script) = (service.clone(), scripted.clone());
                tokio::spawn(async move {
                    let answer = hyper::service::service_fn(|request| answer(&service, &script, request));
                    let connection = hyper::server::conn::http1::Builder::new();
                    // A cut connection is what some faults are; it is no news here.
                    let _ = connection.serve_connection(TokioIo::new(socket), answer).await;
                });
            }
        });
        Server { url, script, bucket, _files: files }
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

type Answer = Result<HttpResponse, Box<dyn std::error::Error + Send + Sync>>;

async fn answer(service: &S3Service, script: &Mutex<Script>, request: hyper::Request<Incoming>) -> Answer {
    let mut answer = answer_undated(service, script, request).await?;
    if let Some(date) = &script.lock().expect("not poisoned").date {
        answer.headers_mut().insert("date", date.parse().expect("a header"));
    }
    Ok(answer)
}

async fn answer_undated(
    service: &S3Service,
    script: &Mutex<Script>,
    request: hyper::Request<Incoming>,
) -> Answer {
    let fault = script.lock().expect("not poisoned").next(&request);
    match fault {
        None => {}
        Some(Fault::Status(status, code)) => return Ok(error_page(status, code)),
        Some(Fault::ErrorInside200) => return Ok(error_page(200, "InternalError")),
        Some(Fault::Reset) => {
            let mut body = Body::from(request.into_body());
            let _ = poll_fn(|cx| Pin::new(&mut body).poll_frame(cx)).await;
            return Err("cut".into());
        }
        Some(Fault::Silence) => std::future::pending().await,
        Some(Fault::Unanswered) => {
            let done = act(service, request).await?;
            assert!(done.status().is_success(), "{done:?}");
            return Err("cut".into());
        }
        Some(Fault::Cut) => {
            let beginning =
                futures::stream::iter([Ok(Bytes::from_static(b"?")), Err(std::io::Error::other("cut"))]);
            return Ok(act(service, request)
                .await?
                .map(|_| Body::from(DynByteStream::from(StreamingBlob::wrap(beginning)))));
        }
    }
    act(service, request).await
}

async fn act(service: &S3Service, request: hyper::Request<Incoming>) -> Answer {
    service.call(request.map(Body::from)).await.map_err(|error| format!("{error:?}").into())
}

fn error_page(status: u16, code: &str) -> HttpResponse {
    // S3 quotes what it was sent beside its message.
    let text = format!(
        "<?xml version=\"1.0\"?><Error><Code>{code}</Code><Message>scripted</Message>\
         <Token-0>session-token-quoted</Token-0><StringToSign>not-a-secret</StringToSign></Error>"
    );
    let mut page = HttpResponse::new(Body::from(text));
    *page.status_mut() = status.try_into().expect("a status");
    page.headers_mut().insert("content-type", "application/xml".parse().expect("valid"));
    if status == 301 || code == "AuthorizationHeaderMalformed" {
        page.headers_mut().insert("x-amz-bucket-region", "eu-north-1".parse().expect("valid"));
    }
    page
}

impl Script {
    fn next(&mut self, request: &hyper::Request<Incoming>) -> Option<Fault> {
        let (method, target) = (request.method().as_str(), request.uri().to_string());
        self.log.push(format!("{method} {target}"));
        self.headers.push(request.headers().clone());
        let matching =
            |rule: &&mut Rule| rule.times > 0 && rule.method == method && target.contains(rule.target);
        let rule = self.rules.iter_mut().find(matching)?;
        if rule.after > 0 {
            rule.after -= 1;
            return None;
        }
        rule.times -= 1;
        Some(rule.fault)
    }
}

/// The server's one bucket: s3s-fs, made atomic and given what it lacks.
#[derive(Clone)]
struct Bucket {
    files: Arc<FileSystem>,
    state: Arc<Mutex<State>>,
    /// s3s-fs looks at a condition and writes in two steps, and metadata in a third; S3 does not.
    turn: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    conditions: Conditions,
    ignores_ranges: bool,
    uploads: Vec<(String, String, SystemTime)>,
}

#[derive(Default, Clone, Copy)]
enum Conditions {
    #[default]
    Honoured,
    Ignored,
    Refused,
}

impl Bucket {
    fn with<T>(&self, act: impl FnOnce(&mut State) -> T) -> T {
        act(&mut self.state.lock().expect("not poisoned"))
    }

    fn judge<T>(&self, if_match: &mut Option<T>, if_none_match: &mut Option<T>) -> S3Result<()> {
        match self.with(|state| state.conditions) {
            Conditions::Honoured => {}
            Conditions::Ignored => (*if_match, *if_none_match) = (None, None),
            Conditions::Refused if if_match.is_some() || if_none_match.is_some() => {
                return Err(s3_error!(NotImplemented));
            }
            Conditions::Refused => {}
        }
        Ok(())
    }

    fn ended(&self, upload_id: &str) {
        self.with(|state| state.uploads.retain(|(_, id, _)| id != upload_id));
    }
}

#[async_trait::async_trait]
impl Protocol for Bucket {
    async fn put_object(
        &self,
        mut request: S3Request<PutObjectInput>,
    ) -> S3Result<S3Response<PutObjectOutput>> {
        self.judge(&mut request.input.if_match, &mut request.input.if_none_match)?;
        if request.input.bucket != BUCKET {
            return Err(s3_error!(NoSuchBucket)); // s3s-fs would create it.
        }
        let _turn = self.turn.lock().await;
        self.files.put_object(request).await
    }

    async fn get_object(
        &self,
        mut request: S3Request<GetObjectInput>,
    ) -> S3Result<S3Response<GetObjectOutput>> {
        if self.with(|state| state.ignores_ranges) {
            request.input.range = None;
        }
        let _turn = self.turn.lock().await;
        self.files.get_object(request).await
    }

    async fn head_bucket(
        &self,
        request: S3Request<HeadBucketInput>,
    ) -> S3Result<S3Response<HeadBucketOutput>> {
        self.files.head_bucket(request).await
    }

    async fn head_object(
        &self,
        request: S3Request<HeadObjectInput>,
    ) -> S3Result<S3Response<HeadObjectOutput>> {
        let _turn = self.turn.lock().await;
        self.files.head_object(request).await
    }

    async fn delete_object(
        &self,
        request: S3Request<DeleteObjectInput>,
    ) -> S3Result<S3Response<DeleteObjectOutput>> {
        let _turn = self.turn.lock().await;
        self.files.delete_object(request).await
    }

    async fn list_objects_v2(
        &self,
        request: S3Request<ListObjectsV2Input>,
    ) -> S3Result<S3Response<ListObjectsV2Output>> {
        self.files.list_objects_v2(request).await
    }

    async fn create_multipart_upload(
        &self,
        request: S3Request<CreateMultipartUploadInput>,
    ) -> S3Result<S3Response<CreateMultipartUploadOutput>> {
        let key = request.input.key.clone();
        let begun = self.files.create_multipart_upload(request).await?;
        let id = begun.output.upload_id.clone().expect("an id");
        self.with(|state| state.uploads.push((key, id, SystemTime::now())));
        Ok(begun)
    }

    async fn upload_part(
        &self,
        request: S3Request<UploadPartInput>,
    ) -> S3Result<S3Response<UploadPartOutput>> {
        self.files.upload_part(request).await
    }

    async fn complete_multipart_upload(
        &self,
        mut request: S3Request<CompleteMultipartUploadInput>,
    ) -> S3Result<S3Response<CompleteMultipartUploadOutput>> {
        self.judge(&mut request.input.if_match, &mut request.input.if_none_match)?;
        let _turn = self.turn.lock().await;
        let id = request.input.upload_id.clone();
        let completed = self.files.complete_multipart_upload(request).await?;
        self.ended(&id);
        Ok(completed)
    }

    async fn abort_multipart_upload(
        &self,
        request: S3Request<AbortMultipartUploadInput>,
    ) -> S3Result<S3Response<AbortMultipartUploadOutput>> {
        let id = request.input.upload_id.clone();
        let aborted = self.files.abort_multipart_upload(request).await?;
        self.ended(&id);
        Ok(aborted)
    }

    async fn list_multipart_uploads(
        &self,
        request: S3Request<ListMultipartUploadsInput>,
    ) -> S3Result<S3Response<ListMultipartUploadsOutput>> {
        let input = request.input;
        let prefix = input.prefix.unwrap_or_default();
        let after = (input.key_marker.unwrap_or_default(), input.upload_id_marker.unwrap_or_default());
        let mut uploads = self.with(|state| state.uploads.clone());
        uploads.retain(|(key, id, _)| key.starts_with(&prefix) && (key, id) > (&after.0, &after.1));
        uploads.sort();
        // One to a page, so that every listing of two has two pages.
        let is_truncated = Some(uploads.len() > 1);
        uploads.truncate(1);
        let last = uploads.last().cloned();
        let uploads = uploads.into_iter().map(|(key, id, began)| {
            let initiated = Some(Timestamp::from(began));
            MultipartUpload { key: Some(key), upload_id: Some(id), initiated, ..Default::default() }
        });
        Ok(S3Response::new(ListMultipartUploadsOutput {
            uploads: Some(uploads.collect()),
            is_truncated,
            next_key_marker: last.as_ref().map(|(key, ..)| key.clone()),
            next_upload_id_marker: last.map(|(_, id, _)| id),
            ..Default::default()
        }))
    }
}
