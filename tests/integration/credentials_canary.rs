//! Secrets in every failure, looked for in everything that is printed, logged and served.

use std::fs;
use std::net::SocketAddr;
use std::time::Duration;

use lifeboat::clock::Clock;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::support::identity::{ARN, Answer, ISSUER, Machine, SUBJECT, Sts, good_token, jwt, sts_error};
use crate::support::program::{Ended, Program};
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server};
use crate::support::station::exchange;

const HTTP_TOKEN: &str = "http-token-canary-0123456789";
const OTHER_SECRET: &str = "wrong-secret-canary-0123456789";

/// The program with a role at in-process peers, all of it at the finest level of logging.
struct World {
    program: Program,
    server: Server,
    sts: Sts,
    machine: Machine,
    /// A host for AWS's general variable, which must never hear of us.
    foreign: Server,
}

impl World {
    async fn new() -> World {
        let clock = Clock::system();
        let (server, foreign, sts) =
            (Server::start().await, Server::start().await, Sts::start(clock.clone()).await);
        let program = Program::new();
        let machine = Machine::start(&program.path("api"), clock);
        let program = program
            .with("BACKUP_S3_BUCKET", BUCKET)
            .with("AWS_REGION", "eu-north-1")
            .with("AWS_ENDPOINT_URL_S3", &server.url)
            .with("AWS_ENDPOINT_URL_STS", &sts.url)
            .with("AWS_ENDPOINT_URL", &foreign.url)
            .with("AWS_ROLE_ARN", ARN)
            .with("BACKUP_MACHINE_SOCKET", machine.path.display().to_string())
            .with("BACKUP_TOKEN_WAIT", "0s")
            .with("BACKUP_HTTP_TOKEN", HTTP_TOKEN)
            .with("BACKUP_LOG", "trace");
        drop(program.app("CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1)"));
        World { program, server, sts, machine, foreign }
    }

    /// Runs `arguments`, with JSON and without; how it ended, and that no secret came out.
    fn run(&self, arguments: &[&str]) -> Ended {
        let ended = self.program.run(arguments);
        self.program.run(&[arguments, &["--json"]].concat());
        self.assert_clean();
        ended
    }

    /// Every byte of every run so far.
    fn assert_clean(&self) {
        let files = fs::read_dir(self.program.path("runs")).expect("a folder");
        for file in files.map(|file| file.expect("a file").path()) {
            let text = String::from_utf8_lossy(&fs::read(&file).expect("readable")).into_owned();
            self.assert_no_secret(&file.display().to_string(), &text);
        }
        assert_eq!(self.foreign.requests("", ""), 0, "AWS_ENDPOINT_URL is nobody's business");
    }

    fn assert_no_secret(&self, place: &str, text: &str) {
        let tokens = self.machine.given().into_iter().chain(self.sts.tokens());
        let segments: Vec<String> = tokens
            .flat_map(|token| token.split('.').skip(1).map(str::to_owned).collect::<Vec<_>>())
            .collect();
        let known = [SECRET, OTHER_SECRET, HTTP_TOKEN, "session-token", "signature-of"].map(str::to_owned);
        for secret in known.into_iter().chain(segments).filter(|secret| secret.len() > 8) {
            if let Some(at) = text.find(&secret) {
                let line = text[..at].lines().count();
                panic!("{secret} in {place}, line {line}: {}", &text[at.saturating_sub(300)..at]);
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn commands_that_succeed_print_no_secret_and_say_who_they_were() {
    let world = World::new().await;
    let backup = world.run(&["backup"]);
    assert_eq!(backup.code, Some(0), "{}", backup.stderr);
    let status = world.run(&["status"]);
    for part in [format!("identity  {ARN}"), "by machine-socket".to_owned(), "until ".to_owned()] {
        assert!(status.stdout.contains(&part), "no `{part}` in {}", status.stdout);
    }
    let status = world.program.json(&["status"]);
    let identity = &status["identity"];
    assert_eq!((&identity["kind"], &identity["role"]), (&json!("role"), &json!(ARN)));
    assert_eq!((&identity["source"], &identity["last_failure"]), (&json!("machine-socket"), &json!(null)));
    assert!(identity["expires_at"].is_string() && identity["renewed_at"].is_string());
    world.run(&["config"]);
    world.run(&["verify"]);
    assert!(world.program.run(&["snapshots"]).stderr.len() > 1_000, "trace is on");
    assert_eq!(
        world.server.headers("PUT", "/app/", "x-amz-security-token").first().map(String::is_empty),
        Some(false)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_exchange_that_fails_prints_no_secret() {
    let world = World::new().await;
    let token = good_token("file", Clock::system().now());
    fs::write(world.program.path("token"), &token).expect("written");
    world.machine.instead(Answer::Page(200, "<html>session-token-in-a-page</html>".to_owned()));
    let program = world.program.with("AWS_WEB_IDENTITY_TOKEN_FILE", "token");
    let world = World { program, ..world };
    let quoting = format!("The token {token} is bad");
    for (answer, code, word) in [
        (sts_error(403, "AccessDenied", &quoting), 6, "AccessDenied"),
        (sts_error(400, "InvalidIdentityToken", &quoting), 6, "InvalidIdentityToken"),
        (sts_error(400, "ExpiredTokenException", &quoting), 6, "ExpiredTokenException"),
        (sts_error(400, "ValidationError", &quoting), 6, "ValidationError"),
        (Answer::Page(200, format!("<html>{quoting}, session-token-quoted</html>")), 5, "200"),
    ] {
        world.sts.instead(1_000, &answer);
        let ended = world.program.run(&["status"]);
        assert_eq!(ended.code, Some(code), "{answer:?}");
        assert!(ended.stderr.lines().last().is_some_and(|line| line.contains(word)), "{answer:?}");
        world.assert_clean();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_is_not_taken_is_not_printed() {
    let world = World::new().await;
    let now = Clock::system().now().as_second();
    let claims =
        |audience: &str, end: i64| json!({"iss": ISSUER, "aud": audience, "sub": SUBJECT, "exp": end});
    let whole = jwt("bad", &claims("sts.amazonaws.com", now + 600));
    for (answer, word) in [
        (whole[..whole.len() - 40].to_owned() + ".", "no whole token"),
        (whole.replacen('.', "", 1), "three segments"),
        (jwt("bad", &claims("https://fly.io/acme-inc", now + 600)), "aud="),
        (jwt("bad", &claims("sts.amazonaws.com", now - 1)), "expired_at="),
        (format!("<html>{whole}</html>"), "HTML"),
        (format!("{{\"message\":\"{whole}\"}}"), "no whole token"),
    ] {
        world.machine.instead(Answer::Page(200, answer));
        let ended = world.program.run(&["status"]);
        assert_eq!(ended.code, Some(6), "{word}");
        assert!(ended.stderr.lines().last().is_some_and(|line| line.contains(word)), "{word}");
        world.assert_clean();
        assert!(!ended.stderr.contains("eyJ"), "{word}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_refuses_brings_out_no_secret() {
    for (status, code) in [
        (403, "AccessDenied"),
        (403, "SignatureDoesNotMatch"),
        (400, "ExpiredToken"),
        (400, "InvalidToken"),
        (301, "PermanentRedirect"),
        (404, "NoSuchBucket"),
    ] {
        let world = World::new().await;
        for method in ["GET", "HEAD", "PUT"] {
            world.server.fault(method, "", 1_000, Fault::Status(status, code));
        }
        assert_ne!(world.run(&["status"]).code, Some(0), "{code}");
        assert_ne!(world.run(&["backup"]).code, Some(0), "{code}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_static_key_is_never_printed_and_beside_a_role_it_is_refused() {
    let world = World::new().await;
    let program = world.program.with("AWS_ACCESS_KEY_ID", KEY_ID).with("AWS_SECRET_ACCESS_KEY", OTHER_SECRET);
    let world = World { program, ..world };
    let parts = ["AWS_ACCESS_KEY_ID", "AWS_ROLE_ARN", "BACKUP_AWS_AUTH"];
    world.program.run(&["status"]).refused(2, &parts);
    assert_eq!((world.sts.requests(), world.server.requests("", "")), (0, 0));

    // Meant, and wrong: the store says that it does not match.
    let ended = world.run(&["status", "--aws-auth", "static"]);
    assert_eq!(ended.code, Some(6), "{}", ended.stderr);
    assert_eq!(world.sts.requests(), 0, "the role is not asked for");
    assert!(world.server.headers("", "", "x-amz-security-token").iter().all(String::is_empty));

    let ended = world.run(&["status", "--aws-auth", "web-identity"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(world.sts.requests() > 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_daemon_serves_and_logs_no_secret_in_good_times_and_bad() {
    let world = World::new().await;
    let port =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound").port();
    let addr = SocketAddr::from(([127, 0, 0, 1], port));
    let world = World { program: world.program.with("BACKUP_HTTP_ADDR", addr.to_string()), ..world };
    world.sts.instead(2, &sts_error(403, "AccessDenied", "scripted"));
    let mut daemon = world.program.start(&["run"]);
    daemon.wait_for_log("no backups of app yet");
    let bad = serve_all(&world, addr).await;
    assert!(bad.contains("\"last_failure\":\"access-denied\""), "{bad}");
    assert!(bad.contains("lifeboat_identity_renewals_total{outcome=\"access-denied\"}"), "{bad}");

    daemon.wait_for_log("backing up app to");
    for n in 0..2 {
        let application = rusqlite::Connection::open(world.program.database()).expect("it opens");
        application.execute("INSERT INTO t VALUES (?1)", [n]).expect("it is written");
        world.server.fault("PUT", "", 1, Fault::Status(400, "ExpiredToken"));
        exchange(addr, "POST /backup-now HTTP/1.0\r\nHost: localhost\r\nContent-Length: 0\r\n\r\n").await;
    }
    let good = serve_all(&world, addr).await;
    for part in [
        "\"identity\":{\"kind\":\"role\"",
        "\"source\":\"machine-socket\"",
        "lifeboat_identity_renewals_total{outcome=\"ok\"} 3",
        "lifeboat_identity_expiry_timestamp_seconds{source=\"machine-socket\"}",
    ] {
        assert!(good.contains(part), "no `{part}` in {good}");
    }
    daemon.end(rustix::process::Signal::TERM);
    world.assert_clean();
}

/// What every route says, to the holder of the token and to a stranger behind a proxy.
async fn serve_all(world: &World, addr: SocketAddr) -> String {
    let mut all = String::new();
    for path in ["/health", "/ready", "/metrics", "/snapshots", "/", "/openapi.json", "/jobs/1", "/nowhere"] {
        let trusted = format!("Authorization: Bearer {HTTP_TOKEN}\r\n");
        for header in [trusted.as_str(), "X-Forwarded-For: 10.0.0.1\r\n"] {
            let request = format!("GET {path} HTTP/1.0\r\nHost: localhost\r\n{header}\r\n");
            let answer = exchange(addr, &request).await;
            world.assert_no_secret(path, &answer);
            if header.starts_with('X') {
                assert!(!answer.contains(ARN), "{path}: {answer}");
                assert!(path != "/health" || !answer.contains("identity"), "{answer}");
            }
            all.push_str(&answer);
        }
    }
    let mut events = TcpStream::connect(addr).await.expect("connects");
    let request =
        format!("GET /events HTTP/1.0\r\nHost: localhost\r\nAuthorization: Bearer {HTTP_TOKEN}\r\n\r\n");
    events.write_all(request.as_bytes()).await.expect("writes");
    let mut answer = vec![0; 64 << 10];
    let read = tokio::time::timeout(Duration::from_secs(5), events.read(&mut answer)).await;
    let read = read.expect("an answer").expect("readable");
    world.assert_no_secret("/events", &String::from_utf8_lossy(&answer[..read]));
    all
}
