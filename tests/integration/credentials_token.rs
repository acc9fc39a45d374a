//! Sources of identity tokens: the machine's socket, then a file, each in every state it can be in.

use std::fs;
use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use jiff::SignedDuration;
use lifeboat::clock::Clock;
use lifeboat::credentials::{Class, Fault, Role, TokenSource, fetch_token};
use serde_json::json;
use tempfile::TempDir;

use crate::support::identity::{
    AUDIENCE, Answer, ISSUER, Machine, SUBJECT, Sts, good_claims, good_token, jwt, role,
};

/// A place for a socket and a file, and a role that looks there.
struct Place {
    folder: TempDir,
    role: Role,
    clock: Clock,
}

impl Place {
    async fn new() -> Place {
        let clock = Clock::system();
        let folder = tempfile::tempdir().expect("a temporary directory");
        let mut role = role(&Sts::start(clock.clone()).await);
        role.machine_socket = Some(folder.path().join("api"));
        role.web_identity_token_file = Some(folder.path().join("token"));
        Place { folder, role, clock }
    }

    fn machine(&self) -> Machine {
        Machine::start(&self.folder.path().join("api"), self.clock.clone())
    }

    fn file(&self, text: &str) {
        fs::write(self.folder.path().join("token"), text).expect("written");
    }

    async fn source(&self) -> TokenSource {
        fetch_token(&self.role, &self.clock).await.expect("a token").source
    }

    /// What was said of the socket before the file's token was taken.
    async fn passed_over(&self) -> Fault {
        self.file(&good_token("file", self.clock.now()));
        let token = fetch_token(&self.role, &self.clock).await.expect("the file has one");
        assert_eq!(token.source, TokenSource::File);
        token.passed_over.into_iter().next().expect("the socket was asked first").1
    }

    /// The fault where the file's token, the only source, is not taken.
    async fn refused(&self) -> Fault {
        let fault = fetch_token(&self.role, &self.clock).await.expect_err("no token");
        assert!(!fault.text.contains("eyJ"), "no word of a token: {}", fault.text);
        fault
    }
}

#[tokio::test]
async fn the_machine_is_asked_first_and_the_file_is_next() {
    let place = Place::new().await;
    place.file(&good_token("file", place.clock.now()));
    assert_eq!(place.source().await, TokenSource::File);
    let machine = place.machine();
    let token = fetch_token(&place.role, &place.clock).await.expect("a token");
    assert_eq!((token.source, machine.given().len()), (TokenSource::MachineSocket, 1));
    assert_eq!(token.claims.issuer, ISSUER);
    assert_eq!(token.claims.audience, [AUDIENCE]);
    assert_eq!(token.claims.subject, SUBJECT);
    let left = token.claims.expires_at.duration_since(place.clock.now());
    assert!(left > SignedDuration::from_secs(590) && left <= SignedDuration::from_secs(600), "{left}");
    assert!(!format!("{token:?}").contains("eyJ"), "a token is not printed");
}

#[tokio::test]
async fn a_wrapped_token_is_unwrapped() {
    let place = Place::new().await;
    let machine = place.machine();
    for wrapping in
        ["{}", "\n  {}\r\n", "\"{}\"\n", "{\"token\":\"{}\"}", "{\"id_token\": \"{}\"}", "{\"value\":\"{}\"}"]
    {
        // The claims come from the unwrapped token, so reading them shows that it was whole.
        machine.wrap(wrapping);
        assert_eq!(place.source().await, TokenSource::MachineSocket, "{wrapping}");
    }
    machine.wrap("{\"error\":\"{}\"}");
    assert_eq!(place.refused().await.class, Class::TokenMalformed);
}

#[tokio::test]
async fn a_socket_that_gives_no_token_is_passed_over_with_a_reason() {
    let html = "<!DOCTYPE html><html><body>sign in</body></html>";
    let cases = [
        (Answer::Page(200, html.to_owned()), Class::SocketAnswer, "HTML"),
        (Answer::Page(404, html.to_owned()), Class::SocketAnswer, "404"),
        (Answer::Page(503, String::new()), Class::SocketRefused, "503"),
        (Answer::Page(200, String::new()), Class::TokenMalformed, "empty"),
        (Answer::Page(200, "x".repeat(1 << 20)), Class::SocketAnswer, "limit"),
        (Answer::Page(200, "eyJhbGciOi.half".to_owned()), Class::TokenMalformed, "three segments"),
    ];
    for (answer, class, word) in cases {
        let place = Place::new().await;
        place.machine().instead(answer);
        let fault = place.passed_over().await;
        assert_eq!(fault.class, class, "{}", fault.text);
        assert!(fault.text.contains(word) && !fault.text.contains("sign in"), "{}", fault.text);
    }
    let place = Place::new().await;
    assert_eq!(place.passed_over().await.class, Class::SocketAbsent);
    // Bound once and left behind, as by a process that died.
    drop(UnixListener::bind(place.folder.path().join("api")).expect("a free path"));
    assert_eq!(place.passed_over().await.class, Class::SocketRefused);
}

#[tokio::test]
async fn a_socket_that_hangs_is_given_up_in_time() {
    let place = Place::new().await;
    place.machine().instead(Answer::Silence);
    let began = Instant::now();
    let fault = place.passed_over().await;
    assert_eq!(fault.class, Class::SocketSilent, "{}", fault.text);
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_file_without_a_usable_token_is_told_apart() {
    let mut place = Place::new().await;
    place.role.machine_socket = None;
    let now = place.clock.now();
    let claims = |name: &str, value: serde_json::Value| {
        let mut claims = good_claims(now);
        claims[name] = value;
        jwt("file", &claims)
    };
    let whole = good_token("file", now);
    let cases = [
        (String::new(), Class::TokenMalformed, "is empty"),
        (" \n".to_owned(), Class::TokenMalformed, "is empty"),
        (whole[..whole.len() / 2].to_owned(), Class::TokenMalformed, "no whole token"),
        (
            whole.rsplit_once('.').expect("segments").0.to_owned() + ".",
            Class::TokenMalformed,
            "no whole token",
        ),
        ("<html>".to_owned(), Class::TokenMalformed, "HTML"),
        (claims("exp", json!("soon")), Class::TokenMalformed, "exp"),
        (claims("exp", json!(now.as_second() - 1)), Class::TokenExpired, "expired_at="),
        (
            claims("aud", json!("https://fly.io/acme-inc")),
            Class::TokenAudience,
            "aud=`https://fly.io/acme-inc`",
        ),
        (claims("aud", json!([])), Class::TokenAudience, "wanted=`sts.amazonaws.com`"),
    ];
    for (text, class, word) in cases {
        place.file(&text);
        let fault = place.refused().await;
        assert_eq!(fault.class, class, "{text}: {}", fault.text);
        assert!(fault.text.contains(word), "{text}: {}", fault.text);
    }
    place.file(&claims("aud", json!(["other", AUDIENCE])));
    assert_eq!(place.source().await, TokenSource::File);

    fs::remove_file(place.folder.path().join("token")).expect("removed");
    assert_eq!(place.refused().await.class, Class::FileAbsent);
    fs::create_dir(place.folder.path().join("token")).expect("a folder of that name");
    assert_eq!(place.refused().await.class, Class::FileUnreadable);
    place.role.web_identity_token_file = None;
    let fault = place.refused().await;
    assert_eq!(fault.class, Class::NoToken);
    assert!(fault.text.contains("AWS_WEB_IDENTITY_TOKEN_FILE"), "{}", fault.text);
}

#[tokio::test]
async fn sources_that_come_late_are_waited_for() {
    for is_socket in [true, false] {
        let mut place = Place::new().await;
        place.role.token_wait = Duration::from_secs(20);
        let (token, path) = (good_token("late", place.clock.now()), place.folder.path().to_owned());
        let clock = place.clock.clone();
        let late = async move {
            tokio::time::sleep(Duration::from_millis(600)).await;
            match is_socket {
                true => drop(Machine::start(&path.join("api"), clock)),
                false => fs::write(path.join("token"), token).expect("written"),
            }
        };
        let began = Instant::now();
        let (source, ()) = tokio::join!(place.source(), late);
        assert_eq!(source == TokenSource::MachineSocket, is_socket);
        assert!((600..5_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    }
}

#[tokio::test]
async fn waiting_has_a_bound_and_what_waiting_cannot_help_is_told_at_once() {
    let mut place = Place::new().await;
    place.role.token_wait = Duration::from_secs(1);
    let began = Instant::now();
    let fault = place.refused().await;
    assert!(
        fault.text.contains("no machine socket") && fault.text.contains("no token file"),
        "{}",
        fault.text
    );
    assert!((500..3_000).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());

    place.role.machine_socket = None;
    place.role.token_wait = Duration::from_secs(60);
    place.file(&jwt(
        "file",
        &json!({ "iss": ISSUER, "aud": "else", "sub": SUBJECT, "exp": 4_000_000_000u32 }),
    ));
    let began = Instant::now();
    assert_eq!(place.refused().await.class, Class::TokenAudience);
    assert!(began.elapsed() < Duration::from_secs(2), "{:?}", began.elapsed());
}
