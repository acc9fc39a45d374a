//! `lifeboat doctor` over a bucket in trouble: what is refused, ignored, elsewhere or dead.

use jiff::{SignedDuration, Timestamp};
use lifeboat::storage::{S3Settings, Storage};

use crate::doctor::{DATABASE, UNHEALTHY, doctor};
use crate::support::program::Program;
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server, connect};

const DENIED: Fault = Fault::Status(403, "AccessDenied");

/// A program whose backups are in the server's bucket, with one backup taken.
fn program(server: &Server) -> Program {
    let program = aiming_at(&server.url);
    program.succeed(&["backup"]);
    program
}

fn aiming_at(url: &str) -> Program {
    let program = Program::new()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_ENDPOINT_URL_S3", url)
        .with("AWS_REGION", "eu-west-1")
        .with("AWS_ACCESS_KEY_ID", KEY_ID)
        .with("AWS_SECRET_ACCESS_KEY", SECRET);
    drop(program.app(DATABASE));
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_allows_and_honours_all_is_left_as_it_was() {
    let server = Server::start().await;
    let program = program(&server);
    let found = doctor(&program, &[]);
    assert_eq!(found.ended.code, Some(0), "{:?}", found.ended);
    for name in [
        "reachable",
        "region",
        "clock",
        "put",
        "get",
        "list",
        "create-only",
        "compare-and-swap",
        "abort-multipart",
        "delete",
    ] {
        assert_eq!(found.status(&format!("storage.{name}")), "ok");
    }
    assert_eq!(found.status("restore.newest"), "ok");
    assert_eq!(server.unfinished(), 0);
    let storage = connect(S3Settings { prefix: String::new(), ..server.settings() }).await;
    let left = storage.list(".probe/").await.expect("listed");
    assert_eq!(left, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn every_right_that_is_refused_has_a_line_of_its_own() {
    for (method, target, name, status, code) in [
        ("PUT", ".probe/", "put", "failure", UNHEALTHY),
        ("GET", "x-id=GetObject", "get", "failure", UNHEALTHY),
        ("GET", "list-type=2", "list", "warning", 0),
        ("DELETE", "uploadId=", "abort-multipart", "warning", 0),
        ("DELETE", ".probe/", "delete", "note", 0),
    ] {
        let server = Server::start().await;
        let program = program(&server);
        if name == "delete" {
            // Only the object: an upload is ended by the same method.
            server.fault("DELETE", "x-id=DeleteObject", 100, DENIED);
        } else {
            server.fault(method, target, 100, DENIED);
        }
        let found = doctor(&program, &[]);
        assert_eq!(found.status(&format!("storage.{name}")), status, "{name}");
        assert_eq!(found.ended.code, Some(code), "{name}: {:?}", found.ended);
        assert_eq!(found.status("storage.reachable"), "ok");
        for other in ["put", "list", "abort-multipart", "delete"].into_iter().filter(|other| *other != name) {
            assert_eq!(found.status(&format!("storage.{other}")), "ok", "{other} while {name} is refused");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn conditions_that_a_store_ignores_or_refuses_are_told() {
    for refuses in [false, true] {
        let server = Server::start().await;
        let program = program(&server);
        match refuses {
            true => server.refuse_conditions(),
            false => server.ignore_conditions(),
        }
        let found = doctor(&program, &[]);
        assert_eq!(found.ended.code, Some(0), "{:?}", found.ended);
        assert_eq!(found.status("storage.create-only"), "warning");
        assert_eq!(found.status("storage.compare-and-swap"), "warning");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_elsewhere_is_named_with_its_region() {
    for fault in [Fault::Status(301, "PermanentRedirect"), Fault::Status(400, "AuthorizationHeaderMalformed")]
    {
        let server = Server::start().await;
        let program = program(&server);
        for method in ["HEAD", "GET", "PUT", "POST", "DELETE"] {
            server.fault(method, "", 100, fault);
        }
        let found = doctor(&program, &[]);
        assert_eq!(found.ended.code, Some(UNHEALTHY));
        found.are("failure", &["storage.region"]);
        assert_eq!(found.check("storage.region")["do"], "set AWS_REGION=eu-north-1");
        assert_eq!(found.status("restore.newest"), "skipped");
        assert_eq!(found.status("database.content"), "ok");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_clock_that_is_off_is_told_by_how_much() {
    let server = Server::start().await;
    let program = program(&server);
    for (seconds, status, code) in [(60, "warning", 0), (-60, "warning", 0), (1_200, "failure", UNHEALTHY)] {
        let time = Timestamp::now() + SignedDuration::from_secs(seconds);
        server.show_date(time.strftime("%a, %d %b %Y %H:%M:%S GMT").to_string());
        let found = doctor(&program, &[]);
        assert_eq!((found.status("storage.clock"), found.ended.code), (status, Some(code)), "{seconds}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_that_is_not_there_is_named() {
    let server = Server::start().await;
    let program = program(&server).with("BACKUP_S3_BUCKET", "another-bucket");
    let found = doctor(&program, &[]);
    found.are("failure", &["storage.reachable"]);
    let text = found.check("storage.reachable")["found"].as_str().expect("text");
    assert!(text.contains("there is no such bucket") && text.contains("another-bucket"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_and_somebody_who_never_answers_end_in_bounded_time() {
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let found = doctor(&aiming_at(&format!("http://{nobody}")), &[]);
    assert_eq!(found.ended.code, Some(UNHEALTHY));
    found.are("failure", &["storage.reachable"]);
    assert_eq!(found.status("database.content"), "ok");
    assert!(found.ended.took.as_secs() < 15, "{:?}", found.ended.took);

    let server = Server::start().await;
    for method in ["HEAD", "GET", "PUT", "POST", "DELETE"] {
        server.fault(method, "", 100, Fault::Silence);
    }
    let found = doctor(&aiming_at(&server.url), &[]);
    found.are("failure", &["storage.reachable"]);
    assert!(found.ended.took.as_secs() < 20, "{:?}", found.ended.took);
}
