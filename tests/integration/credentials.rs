//! An identity at work: one for many requests, renewed in time, at once when refused, and kept while
//! it lasts when it cannot be.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::SignedDuration;
use lifeboat::clock::Clock;
use lifeboat::credentials::{self, Class, Identity, Role, Session, TokenSource};
use lifeboat::error::ErrorKind;
use lifeboat::metrics::{IdentityMetrics, Metrics};
use lifeboat::storage::{self, Parts, Patience, Renewal, S3, S3Settings, Storage};
use tempfile::TempDir;

use crate::storage::{MIB, key, noise};
use crate::support::identity::{Answer, Machine, Sts, good_token, role, sts_error};
use crate::support::s3_server::{Fault, Server};

const REGION: &str = "eu-north-1";

struct World {
    server: Server,
    sts: Sts,
    machine: Machine,
    session: Session,
    storage: S3,
    metrics: Metrics,
    /// By how many seconds the wall clock is ahead of the machine's.
    ahead: Arc<AtomicI64>,
    folder: TempDir,
}

impl World {
    async fn new() -> World {
        World::with(|role, _| role).await
    }

    async fn with(change: impl FnOnce(Role, PathBuf) -> Role) -> World {
        let ahead = Arc::new(AtomicI64::new(0));
        let seconds = Arc::clone(&ahead);
        let clock = Clock::from_fn(move || {
            Clock::system().now() + SignedDuration::from_secs(seconds.load(Ordering::Relaxed))
        });
        let folder = tempfile::tempdir().expect("a temporary directory");
        let (server, sts) = (Server::start().await, Sts::start(clock.clone()).await);
        let machine = Machine::start(&folder.path().join("api"), clock.clone());
        let role = Role { machine_socket: Some(machine.path.clone()), ..role(&sts) };
        let role = change(role, folder.path().to_owned());
        let metrics = Metrics::new();
        let session = Session::open(Identity::Role(role), REGION, clock, metrics.identity().clone());
        let session = session.expect("a valid identity");
        let storage = credentials::connect(server.settings(), &session).expect("valid settings");
        World { server, sts, machine, session, storage, metrics, ahead, folder }
    }

    /// Lets wall-clock time pass that no monotonic clock sees.
    fn suspend(&self, minutes: i64) {
        self.ahead.fetch_add(minutes * 60, Ordering::Relaxed);
    }

    async fn create(&self, name: &str) -> lifeboat::error::Result<()> {
        self.storage.create(&key(name), storage::whole("x")).await
    }

    /// The session tokens with which requests about `name` were signed.
    fn signed_with(&self, name: &str) -> Vec<String> {
        self.server.headers("", name, "x-amz-security-token")
    }

    fn metric(&self, line: &str) -> bool {
        self.metrics.render().expect("rendered").lines().any(|found| found.starts_with(line))
    }

    /// Waits for what happens beside the requests.
    async fn until(&self, what: &str, is_so: impl Fn(&World) -> bool) {
        let began = Instant::now();
        while !is_so(self) {
            assert!(began.elapsed() < Duration::from_secs(10), "{what}: {:?}", self.session);
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn parts(count: usize) -> Parts {
    let part = move |index: usize| Ok(noise(5 * MIB, index as u8));
    stream::iter((0..count).map(part)).boxed()
}

#[tokio::test]
async fn one_identity_serves_every_request_and_every_storage() {
    let world = World::new().await;
    assert_eq!(world.sts.requests(), 0, "nothing is sent before it is needed");
    assert_eq!(world.session.state().expires_at, None);
    world.create("x").await.expect("created");
    world.storage.read(&key("x"), 10).await.expect("read");
    let other = credentials::connect(world.server.settings(), &world.session).expect("valid settings");
    let reads = (0..20).map(|_| async { other.read(&key("x"), 10).await.expect("read") });
    futures::future::join_all(reads).await;
    assert_eq!(world.sts.requests(), 1);

    let state = world.session.state();
    assert_eq!((state.kind, state.source), ("role", Some(TokenSource::MachineSocket)));
    assert!(state.last_failure.is_none() && state.expires_at.is_some() && state.renewed_at.is_some());
    assert!(world.metric("lifeboat_identity_renewals_total{outcome=\"ok\"} 1"));
    assert!(world.metric("lifeboat_identity_expiry_timestamp_seconds{source=\"machine-socket\"} 1"));
}

#[tokio::test]
async fn those_who_come_together_wait_for_one_exchange() {
    let world = World::new().await;
    let names: Vec<String> = (0..10).map(|n| format!("many-{n}")).collect();
    futures::future::join_all(names.iter().map(|name| async { world.create(name).await.expect("created") }))
        .await;
    assert_eq!(world.sts.requests(), 1);
}

#[tokio::test]
async fn a_refused_identity_is_renewed_at_once_and_the_part_alone_is_sent_again() {
    let world = World::new().await;
    world.server.fault("PUT", "partNumber=2", 1, Fault::Status(400, "ExpiredToken"));
    world.storage.create(&key("large"), parts(4)).await.expect("created");
    let sent = |number: usize| world.server.requests("PUT", &format!("partNumber={number}"));
    assert_eq!([1, 2, 3, 4].map(sent), [1, 2, 1, 1]);
    assert_eq!(world.server.requests("POST", "uploads"), 1, "the upload is the same one");
    assert_eq!(world.sts.requests(), 2);
    assert_eq!(world.signed_with("partNumber=2"), ["session-token-1", "session-token-2"]);
    let whole: Bytes = (0..4).flat_map(|index| noise(5 * MIB, index)).collect();
    assert!(world.storage.read(&key("large"), 21 * MIB).await.expect("read").bytes == whole);
}

#[tokio::test]
async fn many_refusals_of_one_identity_are_one_renewal() {
    let world = World::new().await;
    world.create("x").await.expect("created");
    world.server.fault("PUT", "partNumber=", 4, Fault::Status(400, "ExpiredToken"));
    world.storage.create(&key("large"), parts(4)).await.expect("created");
    assert_eq!(world.server.requests("PUT", "partNumber="), 8);
    assert_eq!(world.sts.requests(), 2);
}

#[tokio::test]
async fn a_refusal_that_comes_after_the_renewal_is_of_the_past() {
    let world = World::new().await;
    world.create("one").await.expect("created");
    let generation = world.session.generation();
    world.session.refuse(generation);
    world.create("two").await.expect("created");
    world.session.refuse(generation);
    world.create("three").await.expect("created");
    assert_eq!(
        ["one", "two", "three"].map(|name| world.signed_with(name).concat()),
        ["session-token-1", "session-token-2", "session-token-2"]
    );
    assert_eq!(world.sts.requests(), 2);
}

#[tokio::test]
async fn an_identity_that_is_refused_again_and_again_is_an_error() {
    let world = World::new().await;
    world.create("x").await.expect("created");
    world.server.fault("GET", "/x", 100, Fault::Status(400, "ExpiredToken"));
    let error = world.storage.read(&key("x"), 10).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert_eq!((world.server.requests("GET", "/x"), world.sts.requests()), (2, 2));
}

#[tokio::test]
async fn a_machine_that_was_suspended_renews_before_its_next_request() {
    let world = World::new().await;
    world.create("before").await.expect("created");
    world.suspend(61);
    world.create("after").await.expect("created");
    assert_eq!(world.sts.requests(), 2);
    assert_eq!(world.signed_with("/after"), ["session-token-2"], "the old identity is not even tried");
}

#[tokio::test]
async fn an_identity_is_renewed_five_minutes_ahead_while_the_old_one_serves() {
    let world = World::new().await;
    world.create("first").await.expect("created");
    world.suspend(54);
    world.create("early").await.expect("created");
    assert_eq!(world.sts.requests(), 1);
    world.suspend(2);
    world.create("ahead").await.expect("created");
    assert_eq!(world.signed_with("/ahead"), ["session-token-1"]);
    world.until("renewed", |world| world.metric("lifeboat_identity_renewals_total{outcome=\"ok\"} 2")).await;
    world.create("later").await.expect("created");
    assert_eq!(world.signed_with("/later"), ["session-token-2"]);
}

#[tokio::test]
async fn while_sts_is_away_the_last_good_identity_is_kept_as_long_as_it_lasts() {
    for answer in [sts_error(503, "ServiceUnavailable", "scripted"), Answer::Silence] {
        let world = World::new().await;
        world.create("first").await.expect("created");
        world.sts.instead(1_000, &answer);
        world.suspend(57);
        let began = Instant::now();
        for name in ["one", "two", "three"] {
            world.create(name).await.expect("the old identity is good");
            assert_eq!(world.signed_with(name), ["session-token-1"]);
        }
        assert!(began.elapsed() < Duration::from_secs(3), "nobody waits: {:?}", began.elapsed());
        world.until("asked", |world| world.sts.requests() == 2).await;
        if matches!(answer, Answer::Silence) {
            continue;
        }
        world.until("noted", |world| world.session.state().last_failure.is_some()).await;
        world.create("four").await.expect("the old identity is good");
        assert_eq!(world.sts.requests(), 2, "there is a pause between two tries");
        let failure = world.session.state().last_failure.expect("noted");
        assert_eq!(failure.class, Class::StsUnavailable);
        assert!(world.metric("lifeboat_identity_renewals_total{outcome=\"sts-unavailable\"} 1"));

        // It has ended: now there is nothing to go on with, and a bound on the tries.
        world.suspend(4);
        let error = world.create("five").await.expect_err("nothing to sign with");
        assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", error.chain());
        assert!(error.chain().contains("assume the role by web identity"), "{}", error.chain());
        assert_eq!(world.signed_with("five"), Vec::<String>::new());

        world.sts.instead(0, &answer);
        world.create("six").await.expect("STS is back");
        assert_eq!(world.signed_with("six"), ["session-token-2"]);
        assert!(world.session.state().last_failure.is_some(), "the failure stays visible");
    }
}

#[tokio::test]
async fn an_sts_in_trouble_is_asked_again_and_a_refusal_is_final() {
    let world = World::new().await;
    world.sts.instead(1, &sts_error(503, "ServiceUnavailable", "scripted"));
    world.create("x").await.expect("the second time");
    assert_eq!(world.sts.requests(), 2);

    let world =
        World::with(|role, _| Role { arn: "arn:aws:iam::123456789012:role/other".to_owned(), ..role }).await;
    let error = world.storage.read(&key("x"), 10).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Denied);
    for part in ["no credentials", "AccessDenied", "role/other", "trust policy", "sub=`acme-inc:shop:"] {
        assert!(error.chain().contains(part), "no `{part}` in {}", error.chain());
    }
    assert_eq!((world.sts.requests(), world.server.requests("", "")), (1, 0));
}

#[tokio::test]
async fn without_any_token_nothing_is_sent_and_the_reason_is_told() {
    let world =
        World::with(|role, folder| Role { machine_socket: Some(folder.join("absent")), ..role }).await;
    let error = world.create("x").await.expect_err("no token");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(error.chain().contains("there is no machine socket"), "{}", error.chain());
    assert_eq!(world.session.state().last_failure.expect("noted").class, Class::SocketAbsent);
    assert_eq!((world.sts.requests(), world.server.requests("", "")), (0, 0));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_file_that_is_rotated_under_load_is_read_anew_at_every_exchange() {
    let world = World::with(|role, folder| Role {
        machine_socket: None,
        web_identity_token_file: Some(folder.join("token")),
        token_wait: Duration::from_secs(5),
        ..role
    })
    .await;
    let file = world.folder.path().join("token");
    fs::write(&file, good_token("0", Clock::system().now())).expect("written");
    world.create("x").await.expect("created");
    // Not atomic: truncated, then written, as a careless writer does it.
    let stop = Arc::new(AtomicBool::new(false));
    let rotating = {
        let stop = Arc::clone(&stop);
        std::thread::spawn(move || {
            for n in 1.. {
                if stop.load(Ordering::Relaxed) {
                    return;
                }
                let token = good_token(&n.to_string(), Clock::system().now());
                let (begin, end) = token.split_at(token.len() / 2);
                fs::write(&file, begin).expect("written");
                std::thread::sleep(Duration::from_millis(1));
                fs::write(&file, format!("{begin}{end}\n")).expect("written");
                std::thread::sleep(Duration::from_millis(3));
            }
        })
    };
    for _ in 0..30 {
        world.server.fault("GET", "/x", 1, Fault::Status(400, "ExpiredToken"));
        world.storage.read(&key("x"), 10).await.expect("renewed");
    }
    stop.store(true, Ordering::Relaxed);
    rotating.join().expect("ended");
    let mut tokens = world.sts.tokens();
    assert_eq!(tokens.len(), 31);
    tokens.dedup();
    assert!(tokens.len() > 20, "only {} tokens: the file is not read anew", tokens.len());
    assert!(world.machine.given().is_empty());
}

#[tokio::test]
async fn the_wait_for_a_token_is_not_cut_short_by_the_bound_of_a_request() {
    let world = World::with(|role, _| Role { token_wait: Duration::from_secs(3), ..role }).await;
    world.machine.instead(Answer::Silence);
    let patience = Patience { attempt: Duration::from_secs(1), ..Patience::default() };
    let settings = S3Settings { patience, ..world.server.settings() };
    let storage = credentials::connect(settings, &world.session).expect("valid settings");
    let began = Instant::now();
    let error = storage.read(&key("x"), 10).await.expect_err("no token");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("the machine socket gave no answer"), "{}", error.chain());
    assert!(began.elapsed() < Duration::from_secs(12), "{:?}", began.elapsed());
    assert_eq!(world.server.requests("", ""), 0);
}

#[tokio::test]
async fn credentials_that_come_with_minutes_left_are_not_renewed_at_every_request() {
    let world = World::new().await;
    world.sts.live_seconds(200);
    for n in 0..20 {
        world.create(&format!("short-{n}")).await.expect("created");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(world.sts.requests(), 1);
}

#[tokio::test]
async fn an_answer_of_the_store_that_does_not_end_is_not_read_to_its_end() {
    let world = World::new().await;
    let store = Sts::start(Clock::system()).await;
    store.instead(100, &Answer::Endless);
    let patience = Patience { attempt: Duration::from_secs(5), retries: 0, ..Patience::default() };
    let settings = S3Settings { patience, endpoint_url: Some(store.url.clone()), ..world.server.settings() };
    let storage = credentials::connect(settings, &world.session).expect("valid settings");
    let began = Instant::now();
    storage.list("").await.expect_err("no list");
    assert!(began.elapsed() < Duration::from_secs(3), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_token_is_not_sent_in_plain_text() {
    let world = World::new().await;
    let role = Role { sts_endpoint_url: Some("http://sts.example".to_owned()), ..role(&world.sts) };
    let opened = Session::open(Identity::Role(role), REGION, Clock::system(), IdentityMetrics::default());
    assert_eq!(opened.expect_err("plain http").kind(), ErrorKind::Config);
}

#[test]
fn a_bucket_without_an_endpoint_needs_a_region() {
    let error = S3Settings::new("backups").signing_region().expect_err("no region");
    assert_eq!(error.kind(), ErrorKind::Config);
    assert!(error.to_string().contains("AWS_REGION"), "{error}");
}

/// A store whose clock is an hour ahead refuses the first request by its date; the next one is
/// dated by the store's clock, and so are all later ones.
#[tokio::test]
async fn a_clock_that_is_wrong_is_made_up_for() {
    let (url, dates) = skewed_store::start().await;
    let identity =
        Identity::Key { id: "AKIDTEST".to_owned(), secret: "not-a-secret".into(), session_token: None };
    let session =
        Session::open(identity, REGION, Clock::system(), IdentityMetrics::default()).expect("valid");
    let patience = Patience { delay_min: Duration::from_millis(1), ..Patience::default() };
    let settings = S3Settings { endpoint_url: Some(url), patience, ..S3Settings::new("backups") };
    let storage = credentials::connect(settings, &session).expect("valid settings");
    for _ in 0..2 {
        assert_eq!(storage.read(&key("x"), 10).await.expect("read").bytes, "x");
    }
    let dates = dates.lock().expect("not poisoned").clone();
    let minutes = |date: &jiff::Timestamp| date.duration_since(Clock::system().now()).as_mins();
    let ahead: Vec<i64> = dates.iter().map(minutes).collect();
    assert_eq!(ahead.len(), 3, "{ahead:?}");
    assert!(ahead[0].abs() <= 1 && ahead[1..].iter().all(|minutes| (58..=60).contains(minutes)), "{ahead:?}");
}

mod skewed_store {
    use std::sync::{Arc, Mutex};

    use axum::Router;
    use axum::extract::State;
    use axum::http::{HeaderMap, StatusCode};
    use axum::response::{IntoResponse, Response};
    use jiff::{SignedDuration, Timestamp};
    use lifeboat::clock::Clock;
    use tokio::net::TcpListener;

    type Dates = Arc<Mutex<Vec<Timestamp>>>;

    pub async fn start() -> (String, Dates) {
        let dates = Dates::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let url = format!("http://{}", listener.local_addr().expect("bound"));
        let service = Router::new().fallback(answer).with_state(Arc::clone(&dates));
        tokio::spawn(async move { axum::serve(listener, service).await });
        (url, dates)
    }

    async fn answer(State(dates): State<Dates>, headers: HeaderMap) -> Response {
        let date = headers["x-amz-date"].to_str().expect("text");
        let date: Timestamp = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%SZ", date)
            .and_then(|date| date.to_zoned(jiff::tz::TimeZone::UTC))
            .expect("a date")
            .timestamp();
        dates.lock().expect("not poisoned").push(date);
        let now = Clock::system().now() + SignedDuration::from_hours(1);
        let shown = now.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string();
        let page = "<Error><Code>RequestTimeTooSkewed</Code><Message>too large</Message></Error>";
        match now.duration_since(date).abs() > SignedDuration::from_mins(15) {
            true => (StatusCode::FORBIDDEN, [("date", shown.as_str())], page).into_response(),
            false => (StatusCode::OK, [("date", shown.as_str()), ("etag", "\"1\"")], "x").into_response(),
        }
    }
}
