//! The peers of an identity: a machine's socket that gives tokens, and an STS that looks at what it
//! is sent as AWS would. Both can be told to misbehave.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use futures::StreamExt;
use jiff::Timestamp;
use lifeboat::clock::Clock;
use lifeboat::credentials::Role;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};
use tokio::net::{TcpListener, UnixListener};

use super::s3_server::{KEY_ID, SECRET};

pub const ARN: &str = "arn:aws:iam::123456789012:role/backups";
pub const ISSUER: &str = "https://oidc.fly.io/acme-inc";
pub const SUBJECT: &str = "acme-inc:shop:quiet-cloud-9972";
pub const AUDIENCE: &str = "sts.amazonaws.com";

/// A token with these claims; its signature names it, so that one can be told from another.
pub fn jwt(name: &str, claims: &Value) -> String {
    let part = |text: &str| URL_SAFE_NO_PAD.encode(text);
    let header = part(r#"{"alg":"RS256","typ":"JWT","kid":"1"}"#);
    format!("{header}.{}.{}", part(&claims.to_string()), part(&format!("signature-of-{name}")))
}

/// A token that AWS would take for ten minutes from `now`.
pub fn good_token(name: &str, now: Timestamp) -> String {
    jwt(name, &good_claims(now))
}

pub fn good_claims(now: Timestamp) -> Value {
    let now = now.as_second();
    json!({ "iss": ISSUER, "aud": AUDIENCE, "sub": SUBJECT, "exp": now + 600, "iat": now, "nbf": now })
}

/// A role for the tests: no socket, no file, no waiting.
pub fn role(sts: &Sts) -> Role {
    Role {
        arn: ARN.to_owned(),
        machine_socket: None,
        web_identity_token_file: None,
        token_wait: Duration::ZERO,
        session_name: "lifeboat-test".to_owned(),
        session_duration: Duration::from_secs(3_600),
        sts_endpoint_url: Some(sts.url.clone()),
    }
}

/// What a peer does instead of its work.
#[derive(Debug, Clone)]
pub enum Answer {
    /// This status and body.
    Page(u16, String),
    /// Nothing, for ever.
    Silence,
    /// A success whose body does not end, 50 MiB of it a second.
    Endless,
}

/// A machine's socket at a path.
#[derive(Clone)]
pub struct Machine {
    pub path: PathBuf,
    state: Arc<Mutex<MachineState>>,
}

struct MachineState {
    clock: Clock,
    given: Vec<String>,
    /// Instead of tokens, from now on.
    instead: Option<Answer>,
    /// Around every token: `{}` stands for it.
    wrapping: &'static str,
}

impl Machine {
    /// Listens at `path`.
    pub fn start(path: &Path, clock: Clock) -> Machine {
        let state = MachineState { clock, given: Vec::new(), instead: None, wrapping: "{}\n" };
        let machine = Machine { path: path.to_owned(), state: Arc::new(Mutex::new(state)) };
        let listener = UnixListener::bind(path).expect("a free path");
        let service = Router::new().fallback(give).with_state(machine.clone());
        tokio::spawn(async move { axum::serve(listener, service).await });
        machine
    }

    /// From now on it does this instead.
    pub fn instead(&self, answer: impl Into<Option<Answer>>) {
        self.state.lock().expect("not poisoned").instead = answer.into();
    }

    pub fn wrap(&self, wrapping: &'static str) {
        self.state.lock().expect("not poisoned").wrapping = wrapping;
    }

    /// Every token it gave.
    pub fn given(&self) -> Vec<String> {
        self.state.lock().expect("not poisoned").given.clone()
    }
}

async fn give(
    State(machine): State<Machine>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let instead = machine.state.lock().expect("not poisoned").instead.clone();
    if let Some(answer) = instead {
        return play(answer).await;
    }
    let is_json = headers.get("content-type").is_some_and(|kind| kind == "application/json");
    if method != Method::POST || uri.path() != "/v1/tokens/oidc" || !is_json {
        return (StatusCode::BAD_REQUEST, format!("{method} {uri} {headers:?}")).into_response();
    }
    let asked: Value = serde_json::from_slice(&body).expect("JSON");
    let mut state = machine.state.lock().expect("not poisoned");
    let now = state.clock.now();
    let mut claims = good_claims(now);
    claims["aud"] = asked["aud"].clone();
    let token = jwt(&format!("machine-{}", state.given.len()), &claims);
    state.given.push(token.clone());
    state.wrapping.replace("{}", &token).into_response()
}

async fn play(answer: Answer) -> Response {
    match answer {
        Answer::Page(status, body) => {
            (StatusCode::from_u16(status).expect("a status"), Body::from(body)).into_response()
        }
        Answer::Silence => std::future::pending().await,
        Answer::Endless => {
            let chunk = Bytes::from(vec![b' '; 1 << 20]);
            let chunks = futures::stream::repeat(chunk).then(async |chunk| {
                tokio::time::sleep(Duration::from_millis(20)).await;
                Ok::<_, std::convert::Infallible>(chunk)
            });
            Body::from_stream(chunks).into_response()
        }
    }
}

/// A token service that hands out the test server's key to whom it trusts.
#[derive(Clone)]
pub struct Sts {
    pub url: String,
    state: Arc<Mutex<StsState>>,
}

struct StsState {
    clock: Clock,
    /// The forms of every request, decoded.
    forms: Vec<BTreeMap<String, String>>,
    /// For the next requests, the last one first.
    instead: Vec<Answer>,
    /// What the role allows.
    duration_max: u64,
    /// For how long credentials are good, whatever was asked for, in seconds.
    lifetime: Option<u64>,
    exchanged: usize,
}

/// The page of an error, as STS writes it.
pub fn sts_error(status: u16, code: &str, message: &str) -> Answer {
    let page = format!(
        "<ErrorResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\"><Error><Type>Sender</Type>\
         <Code>{code}</Code><Message>{message}</Message></Error>\
         <RequestId>c6104cbe-af31-11e0-8154-cbc7ccf896c7</RequestId></ErrorResponse>"
    );
    Answer::Page(status, page)
}

impl Sts {
    pub async fn start(clock: Clock) -> Sts {
        let state = StsState {
            clock,
            forms: Vec::new(),
            instead: Vec::new(),
            duration_max: 43_200,
            lifetime: None,
            exchanged: 0,
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let sts = Sts { url, state: Arc::new(Mutex::new(state)) };
        let service = Router::new().fallback(assume).with_state(sts.clone());
        tokio::spawn(async move { axum::serve(listener, service).await });
        sts
    }

    /// The next `times` requests get this instead.
    pub fn instead(&self, times: usize, answer: &Answer) {
        self.with(|state| state.instead = vec![answer.clone(); times]);
    }

    /// From now on the role allows sessions of at most this, in seconds.
    pub fn allow_seconds(&self, seconds: u64) {
        self.with(|state| state.duration_max = seconds);
    }

    /// From now on credentials are good for this, in seconds.
    pub fn live_seconds(&self, seconds: u64) {
        self.with(|state| state.lifetime = Some(seconds));
    }

    /// How many requests came.
    pub fn requests(&self) -> usize {
        self.with(|state| state.forms.len())
    }

    /// The tokens of all requests.
    pub fn tokens(&self) -> Vec<String> {
        self.with(|state| state.forms.iter().map(|form| form["WebIdentityToken"].clone()).collect())
    }

    /// One field of the last request.
    pub fn last(&self, field: &str) -> String {
        self.with(|state| state.forms.last().expect("a request")[field].clone())
    }

    fn with<T>(&self, act: impl FnOnce(&mut StsState) -> T) -> T {
        act(&mut self.state.lock().expect("not poisoned"))
    }
}

async fn assume(State(sts): State<Sts>, method: Method, headers: HeaderMap, body: String) -> Response {
    let decoded = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
    let form: BTreeMap<String, String> = body
        .split('&')
        .filter_map(|pair| pair.split_once('='))
        .map(|(name, value)| (decoded(name), decoded(value)))
        .collect();
    let instead = sts.with(|state| {
        state.forms.push(form.clone());
        state.instead.pop()
    });
    if let Some(answer) = instead {
        return play(answer).await;
    }
    let is_form = headers.get("content-type").is_some_and(|kind| kind == "application/x-www-form-urlencoded");
    if method != Method::POST || !is_form || headers.contains_key("authorization") {
        return play(sts_error(400, "MalformedInput", "not an unsigned form")).await;
    }
    let judged = sts.with(|state| state.judge(&form));
    match judged {
        Ok(page) => page.into_response(),
        Err((status, code, message)) => play(sts_error(status, code, &message)).await,
    }
}

impl StsState {
    /// What AWS looks at, in about its order and in its words.
    fn judge(&mut self, form: &BTreeMap<String, String>) -> Result<String, (u16, &'static str, String)> {
        let field = |name: &str| form.get(name).map_or("", String::as_str);
        let invalid = |message: &str| (400, "ValidationError", message.to_owned());
        if field("Action") != "AssumeRoleWithWebIdentity" || field("Version") != "2011-06-15" {
            return Err((400, "InvalidAction", "Could not find operation".to_owned()));
        }
        let name = field("RoleSessionName");
        let is_word = |c: char| c.is_ascii_alphanumeric() || "_+=,.@-".contains(c);
        if !(2..=64).contains(&name.len()) || !name.chars().all(is_word) {
            return Err(invalid("Value at 'roleSessionName' failed to satisfy constraint"));
        }
        let seconds: u64 = field("DurationSeconds").parse().map_err(|_| invalid("DurationSeconds"))?;
        if !(900..=43_200).contains(&seconds) {
            return Err(invalid("Value at 'durationSeconds' failed to satisfy constraint"));
        }
        if seconds > self.duration_max {
            return Err(invalid(
                "The requested DurationSeconds exceeds the MaxSessionDuration set for this role.",
            ));
        }
        let not_a_token =
            || (400, "InvalidIdentityToken", "The ID Token provided is not a valid JWT.".to_owned());
        let payload = field("WebIdentityToken").split('.').nth(1).ok_or_else(not_a_token)?;
        let payload = URL_SAFE_NO_PAD.decode(payload).map_err(|_| not_a_token())?;
        let claims: Value = serde_json::from_slice(&payload).map_err(|_| not_a_token())?;
        if claims["iss"] != ISSUER {
            let message = format!("No OpenIDConnect provider found in your account for {}", claims["iss"]);
            return Err((400, "InvalidIdentityToken", message));
        }
        if claims["aud"] != AUDIENCE {
            return Err((400, "InvalidIdentityToken", "Incorrect token audience".to_owned()));
        }
        let now = self.clock.now();
        if claims["exp"].as_i64().is_none_or(|end| end <= now.as_second()) {
            let message = "Token expired: current date/time must be before the expiration date/time";
            return Err((400, "ExpiredTokenException", message.to_owned()));
        }
        let is_trusted = claims["sub"].as_str().is_some_and(|subject| subject.starts_with("acme-inc:shop:"));
        if field("RoleArn") != ARN || !is_trusted {
            let message = "Not authorized to perform sts:AssumeRoleWithWebIdentity";
            return Err((403, "AccessDenied", message.to_owned()));
        }
        self.exchanged += 1;
        let end = now + Duration::from_secs(self.lifetime.unwrap_or(seconds));
        Ok(format!(
            "<AssumeRoleWithWebIdentityResponse xmlns=\"https://sts.amazonaws.com/doc/2011-06-15/\">\
             <AssumeRoleWithWebIdentityResult><SubjectFromWebIdentityToken>{SUBJECT}</SubjectFromWebIdentityToken>\
             <Audience>{AUDIENCE}</Audience><AssumedRoleUser>\
             <Arn>arn:aws:sts::123456789012:assumed-role/backups/{name}</Arn>\
             <AssumedRoleId>AROACLKWSDQRAOEXAMPLE:{name}</AssumedRoleId></AssumedRoleUser><Credentials>\
             <AccessKeyId>{KEY_ID}</AccessKeyId><SecretAccessKey>{SECRET}</SecretAccessKey>\
             <SessionToken>session-token-{}</SessionToken><Expiration>{end:.0}</Expiration></Credentials>\
             </AssumeRoleWithWebIdentityResult><ResponseMetadata>\
             <RequestId>ad4156e9-bce1-11e2-82e6-6b6efEXAMPLE</RequestId></ResponseMetadata>\
             </AssumeRoleWithWebIdentityResponse>",
            self.exchanged
        ))
    }
}
