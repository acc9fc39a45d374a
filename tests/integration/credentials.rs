//! Credentials by web identity: what STS is told, and what is made of its answers.

use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::IntoResponse;
use lifeboat::credentials::{self, Identity, Role};
use lifeboat::error::ErrorKind;
use lifeboat::storage::{self, S3, S3Settings, Storage};
use tokio::net::TcpListener;

use crate::storage::key;
use crate::support::program::Program;
use crate::support::s3_server::{Fault, KEY_ID, SECRET, Server};

/// A token service that hands out the test server's key, and remembers what it was sent.
struct Sts {
    url: String,
    state: Arc<Mutex<Script>>,
}

#[derive(Default)]
struct Script {
    bodies: Vec<String>,
    /// Answered to the next requests, instead of credentials.
    refusals: Vec<(u16, &'static str)>,
}

impl Sts {
    async fn start() -> Sts {
        let state = Arc::<Mutex<Script>>::default();
        let service = Router::new().fallback(answer).with_state(state.clone());
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        tokio::spawn(async move { axum::serve(listener, service).await });
        Sts { url, state }
    }

    fn refuse(&self, times: usize, status: u16, code: &'static str) {
        self.state.lock().expect("not poisoned").refusals = vec![(status, code); times];
    }

    fn bodies(&self) -> Vec<String> {
        self.state.lock().expect("not poisoned").bodies.clone()
    }
}

async fn answer(State(state): State<Arc<Mutex<Script>>>, body: String) -> impl IntoResponse {
    let mut state = state.lock().expect("not poisoned");
    state.bodies.push(body);
    if let Some((status, code)) = state.refusals.pop() {
        let page = format!(
            "<ErrorResponse><Error><Type>Sender</Type><Code>{code}</Code><Message>scripted</Message></Error></ErrorResponse>"
        );
        return (StatusCode::from_u16(status).expect("a status"), page);
    }
    let page = format!(
        "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
         <AssumeRoleWithWebIdentityResult><Credentials><AccessKeyId>{KEY_ID}</AccessKeyId>\
         <SecretAccessKey>{SECRET}</SecretAccessKey><SessionToken>session</SessionToken>\
         <Expiration>2096-11-21T00:00:00Z</Expiration></Credentials></AssumeRoleWithWebIdentityResult>\
         </AssumeRoleWithWebIdentityResponse>"
    );
    (StatusCode::OK, page)
}

struct World {
    server: Server,
    sts: Sts,
    folder: tempfile::TempDir,
    storage: S3,
}

async fn world() -> World {
    let (server, sts) = (Server::start().await, Sts::start().await);
    let folder = tempfile::tempdir().expect("a temporary directory");
    std::fs::write(folder.path().join("token"), "first-token\n").expect("written");
    let role = Role {
        arn: "arn:aws:iam::123456789012:role/backups".to_owned(),
        token_file: folder.path().join("token"),
        session_name: "lifeboat-test".to_owned(),
        sts_endpoint_url: Some(sts.url.clone()),
    };
    let settings = S3Settings { region: Some("eu-north-1".to_owned()), ..server.settings() };
    let storage = credentials::connect(settings, &Identity::Role(role)).await.expect("valid settings");
    World { server, sts, folder, storage }
}

#[tokio::test]
async fn a_token_is_exchanged_once_and_read_anew_when_credentials_expire() {
    let World { server, sts, folder, storage } = world().await;
    assert!(sts.bodies().is_empty(), "nothing is sent before it is needed");
    storage.create(&key("x"), storage::whole("x")).await.expect("created");
    storage.read(&key("x"), 10).await.expect("read");
    let bodies = sts.bodies();
    assert_eq!(bodies.len(), 1);
    for part in
        ["Action=AssumeRoleWithWebIdentity", "WebIdentityToken=first-token&", "RoleSessionName=lifeboat-test"]
    {
        assert!(format!("{}&", bodies[0]).contains(part), "{bodies:?}");
    }

    std::fs::write(folder.path().join("token"), "second-token").expect("written");
    server.fault("GET", "/x", 1, Fault::Status(400, "ExpiredToken"));
    storage.read(&key("x"), 10).await.expect("renewed");
    let bodies = sts.bodies();
    assert!(bodies.len() == 2 && bodies[1].contains("second-token"), "{bodies:?}");
}

#[tokio::test]
async fn a_refused_token_is_denied_at_once_and_never_shown() {
    let World { sts, storage, server: _server, folder: _folder } = world().await;
    sts.refuse(100, 403, "AccessDenied");
    let error = storage.read(&key("x"), 10).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Denied, "{}", error.chain());
    let shown = format!("{} {error:?}", error.chain());
    for part in ["no credentials", "assume the role", "role/backups", "AccessDenied"] {
        assert!(shown.contains(part), "{shown}");
    }
    assert!(!shown.contains("first-token"), "{shown}");
    assert_eq!(sts.bodies().len(), 1);
}

#[tokio::test]
async fn a_token_service_in_trouble_is_asked_again() {
    let World { sts, storage, server: _server, folder: _folder } = world().await;
    sts.refuse(1, 503, "ServiceUnavailable");
    storage.create(&key("x"), storage::whole("x")).await.expect("created");

    let World { sts, storage, server: _server, folder: _folder } = world().await;
    sts.refuse(100, 400, "IDPCommunicationError");
    let error = storage.read(&key("x"), 10).await.expect_err("still in trouble");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
}

#[tokio::test]
async fn a_token_that_is_not_there_is_named() {
    let World { folder, storage, .. } = world().await;
    std::fs::remove_file(folder.path().join("token")).expect("removed");
    let error = storage.read(&key("x"), 10).await.expect_err("no token");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.chain().contains("read the web identity token: path=`"), "{}", error.chain());
}

#[tokio::test]
async fn a_token_is_not_sent_in_plain_text() {
    let role = Role {
        arn: "arn:aws:iam::123456789012:role/backups".to_owned(),
        token_file: "token".into(),
        session_name: "lifeboat-test".to_owned(),
        sts_endpoint_url: Some("http://sts.example".to_owned()),
    };
    let settings = S3Settings { region: Some("eu-north-1".to_owned()), ..S3Settings::new("backups") };
    let error = credentials::connect(settings, &Identity::Role(role)).await.expect_err("plain http");
    assert_eq!(error.kind(), ErrorKind::Config);
}

#[test]
fn a_static_key_beside_a_role_is_told_to_be_of_no_use() {
    let program = Program::new()
        .with("BACKUP_S3_BUCKET", "backups")
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ROLE_ARN", "arn:aws:iam::123456789012:role/backups");
    let without = program.run(&["snapshots"]);
    assert!(!without.stderr.contains("AWS_ACCESS_KEY_ID"), "{without:?}");
    let beside = program.with("AWS_ACCESS_KEY_ID", "AKIDTEST").run(&["snapshots"]);
    assert!(beside.stderr.contains("AWS_ACCESS_KEY_ID is set beside a role"), "{beside:?}");
    assert_eq!([without.code, beside.code], [Some(i32::from(ErrorKind::Config.exit_code())); 2]);
}

#[tokio::test]
async fn a_bucket_without_an_endpoint_needs_a_region() {
    let settings = S3Settings::new("backups");
    let error = credentials::connect(settings, &Identity::Chain).await.expect_err("no region");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("AWS_REGION"), "{error}");
}
