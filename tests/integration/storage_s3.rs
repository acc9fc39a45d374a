//! S3 in trouble: what the network, the store and its permissions can do to a request.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::{SignedDuration, Timestamp};
use lifeboat::error::{Error, ErrorKind};
use lifeboat::storage::{self, Guarantees, Parts, Patience, S3Settings, Storage, Version};

use crate::storage::{MIB, key, kind_of, noise};
use crate::support::program::Program;
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server, connect, impatience};

const PUT: &str = "PUT";
const GET: &str = "GET";
const POST: &str = "POST";
const HEAD: &str = "HEAD";
const DELETE: &str = "DELETE";

/// What only a request for a part, or about an upload, has in its target.
const PART: &str = "partNumber=";
const UPLOAD: &str = "uploadId=";

fn three_parts() -> (Bytes, Parts) {
    let parts = [noise(5 * MIB, 1), noise(5 * MIB, 2), noise(100, 3)];
    (parts.concat().into(), stream::iter(parts.map(Ok)).boxed())
}

fn scripted(error: &Error) -> String {
    let chain = error.chain();
    assert!(!chain.contains("not-a-secret") && !chain.contains("Signature"), "{chain}");
    chain
}

#[tokio::test]
async fn an_overloaded_store_is_asked_again() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.fault(PUT, "/calm", 2, Fault::Status(503, "SlowDown"));
    storage.create(&key("calm"), storage::whole("x")).await.expect("the third attempt");
    assert_eq!(server.requests(PUT, "/calm"), 3);

    for (method, status, code) in
        [(GET, 500, "InternalError"), (GET, 429, ""), (GET, 400, "RequestTimeout"), (GET, 502, "")]
    {
        server.fault(method, "/calm", 1, Fault::Status(status, code));
        assert_eq!(storage.read(&key("calm"), 10).await.expect("the second attempt").bytes, "x");
    }
    server.fault(HEAD, "/calm", 1, Fault::Status(503, "SlowDown"));
    server.fault(GET, "list-type=2", 1, Fault::Status(503, "SlowDown"));
    server.fault(DELETE, "/calm", 1, Fault::Status(503, "SlowDown"));
    storage.head(&key("calm")).await.expect("asked").expect("there");
    assert_eq!(storage.list("").await.expect("listed").len(), 1);
    storage.delete(&key("calm")).await.expect("deleted");
}

#[tokio::test]
async fn a_store_that_stays_overloaded_is_unavailable_after_a_bounded_number_of_tries() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.fault(PUT, "/busy", 100, Fault::Status(503, "SlowDown"));
    let error = storage.create(&key("busy"), storage::whole("x")).await.expect_err("refused");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert_eq!(server.requests(PUT, "/busy"), 4);
    let text = scripted(&error);
    for part in ["create an object", "503", "SlowDown", "bucket=`backups`", "key=`.probe/busy`"] {
        assert!(text.contains(part), "{text}");
    }
}

#[tokio::test]
async fn connections_that_break_are_made_again() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let (whole, parts) = three_parts();
    server.fault(PUT, "partNumber=2", 1, Fault::Reset);
    server.fault(PUT, "partNumber=1", 2, Fault::Reset);
    server.fault(PUT, "partNumber=3", 1, Fault::Unanswered);
    storage.create(&key("large"), parts).await.expect("created");
    assert_eq!(server.unfinished(), 0);

    server.fault(GET, "/large", 2, Fault::Cut);
    assert!(storage.read(&key("large"), 20 * MIB).await.expect("read").bytes == whole);
    server.fault(GET, "/large", 2, Fault::Cut);
    assert_eq!(storage.read_range(&key("large"), 7..9).await.expect("read"), whole.slice(7..9));
}

#[tokio::test]
async fn a_write_whose_answer_was_lost_knows_itself() {
    let server = Server::start().await;
    let storage = server.storage().await;
    // Done, unanswered, repeated, refused because of itself.
    server.fault(PUT, "/lost", 1, Fault::Unanswered);
    storage.create(&key("lost"), storage::whole("x")).await.expect("it was us");
    assert_eq!(server.requests(PUT, "/lost"), 2);

    let seen = storage.read(&key("lost"), 10).await.expect("there").version;
    server.fault(PUT, "/lost", 1, Fault::Unanswered);
    let new = storage.replace(&key("lost"), Some(&seen), "y".into()).await.expect("it was us");
    let read = storage.read(&key("lost"), 10).await.expect("there");
    assert_eq!((read.bytes, read.version), ("y".into(), new));

    // And when every answer is lost, the object itself has the last word.
    server.fault(PUT, "/deaf", 1, Fault::Unanswered);
    server.fault(PUT, "/deaf", 100, Fault::Reset);
    storage.create(&key("deaf"), storage::whole("x")).await.expect("it was us");
}

#[tokio::test]
async fn a_lost_race_is_not_taken_for_a_lost_answer() {
    let server = Server::start().await;
    let (ours, theirs) = (server.storage().await, server.storage().await);
    theirs.create(&key("race"), storage::whole("theirs")).await.expect("created");
    server.fault(PUT, "/race", 1, Fault::Reset);
    assert_eq!(kind_of(ours.create(&key("race"), storage::whole("ours")).await), ErrorKind::Conflict);

    let (_, parts) = three_parts();
    server.fault(POST, UPLOAD, 1, Fault::Reset);
    assert_eq!(kind_of(ours.create(&key("race"), parts).await), ErrorKind::Conflict);
    assert_eq!(server.unfinished(), 0);
    assert_eq!(ours.read(&key("race"), 10).await.expect("there").bytes, "theirs");

    // Not being able to tell is no lost race either.
    server.fault(HEAD, "/race", 100, Fault::Status(503, "SlowDown"));
    let error = ours.create(&key("race"), storage::whole("ours")).await.expect_err("unclear");
    assert_eq!(error.kind(), ErrorKind::Unavailable, "{}", scripted(&error));
}

#[tokio::test]
async fn conflicting_writes_under_way_are_waited_for_or_reported() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.fault(PUT, "/small", 2, Fault::Status(409, "ConditionalRequestConflict"));
    storage.create(&key("small"), storage::whole("x")).await.expect("the third attempt");

    server.fault(POST, UPLOAD, 1, Fault::Status(409, "ConditionalRequestConflict"));
    let error = storage.create(&key("large"), three_parts().1).await.expect_err("the parts are spent");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(scripted(&error).contains("another write to the same key"), "{}", error.chain());
    assert_eq!(server.unfinished(), 0);
}

#[tokio::test]
async fn a_state_of_an_object_that_went_away_is_a_conflict() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.fault(PUT, "/gone", 1, Fault::Status(404, "NoSuchKey"));
    let expected = Version("\"etag\"".to_owned());
    assert_eq!(
        kind_of(storage.replace(&key("gone"), Some(&expected), "x".into()).await),
        ErrorKind::Conflict
    );
}

#[tokio::test]
async fn a_completion_that_says_200_and_means_an_error_is_one() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let (whole, parts) = three_parts();
    server.fault(POST, UPLOAD, 1, Fault::ErrorInside200);
    storage.create(&key("second-try"), parts).await.expect("completed when asked again");
    assert!(storage.read(&key("second-try"), 20 * MIB).await.expect("there").bytes == whole);

    server.fault(POST, UPLOAD, 100, Fault::ErrorInside200);
    let error = storage.create(&key("never"), three_parts().1).await.expect_err("never completed");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(scripted(&error).contains("InternalError"), "{}", error.chain());
    assert_eq!(storage.head(&key("never")).await.expect("asked"), None);
    assert_eq!(server.unfinished(), 0);
}

#[tokio::test]
async fn a_completion_whose_answer_was_lost_knows_itself() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let (whole, parts) = three_parts();
    server.fault(POST, UPLOAD, 1, Fault::Unanswered);
    storage.create(&key("lost"), parts).await.expect("it was us");
    assert!(storage.read(&key("lost"), 20 * MIB).await.expect("there").bytes == whole);
    assert_eq!(server.requests(DELETE, UPLOAD), 0);
}

#[tokio::test]
async fn a_failed_upload_is_aborted_and_a_dropped_one_too() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.fault(PUT, PART, 100, Fault::Status(403, "AccessDenied"));
    assert_eq!(kind_of(storage.create(&key("refused"), three_parts().1).await), ErrorKind::Denied);
    assert_eq!(server.unfinished(), 0);

    let endless =
        stream::iter([Ok(noise(5 * MIB, 1)), Ok(noise(5 * MIB, 2))]).chain(stream::pending()).boxed();
    let server = Server::start().await;
    let storage = server.storage().await;
    let dropped = tokio::time::timeout(Duration::from_secs(1), async {
        storage.create(&key("dropped"), endless).await
    });
    dropped.await.expect_err("it never ends");
    assert_eq!(server.requests(POST, "uploads"), 1);
    for _ in 0..100 {
        if server.unfinished() == 0 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("the upload stays");
}

#[tokio::test]
async fn parts_are_taken_from_the_maker_only_as_fast_as_they_are_sent() {
    let server = Server::start().await;
    let patience = Patience { attempt: Duration::from_secs(1), retries: 0, ..impatience() };
    let storage = connect(S3Settings { part_concurrency: 2, patience, ..server.settings() }).await;
    server.fault(PUT, PART, 100, Fault::Silence);
    let taken = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counter = taken.clone();
    let parts = stream::iter(0..20).map(move |_| {
        counter.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(Bytes::from_static(b"part"))
    });
    assert_eq!(kind_of(storage.create(&key("slow"), parts.boxed()).await), ErrorKind::Unavailable);
    let taken = taken.load(std::sync::atomic::Ordering::Relaxed);
    assert!(taken <= 3, "{taken} parts in memory");
}

#[tokio::test]
async fn what_earlier_processes_left_is_swept_and_what_is_not_ours_is_not() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let others = connect(S3Settings { prefix: "some/prefix/deeper".to_owned(), ..server.settings() }).await;
    server.fault(DELETE, UPLOAD, 3, Fault::Status(403, "AccessDenied"));
    let broken =
        || stream::iter([Ok(noise(9, 1)), Ok(noise(9, 2)), Err(Error::new(ErrorKind::Busy, "x"))]).boxed();
    assert_eq!(kind_of(storage.create(&key("left"), broken()).await), ErrorKind::Busy);
    assert_eq!(kind_of(storage.create(&key("left-too"), broken()).await), ErrorKind::Busy);
    assert_eq!(kind_of(others.create(&key("theirs"), broken()).await), ErrorKind::Busy);
    assert_eq!(server.unfinished(), 3);

    let (past, future) =
        (Timestamp::now() - SignedDuration::from_hours(1), Timestamp::now() + SignedDuration::from_hours(1));
    assert_eq!(storage.sweep_unfinished(past).await.expect("swept"), 0);
    // The second is what rclone's server says as long as nobody has begun an upload.
    for refusal in [Fault::Status(403, "AccessDenied"), Fault::Status(404, "NoSuchUpload")] {
        server.fault(GET, "uploads", 1, refusal);
        assert_eq!(storage.sweep_unfinished(future).await.expect("that is no error"), 0);
    }
    assert_eq!(storage.sweep_unfinished(future).await.expect("swept"), 2);
    assert_eq!(server.unfinished(), 1);
}

#[tokio::test]
async fn what_is_not_allowed_is_denied_at_once_and_says_which_permission() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let denied = Fault::Status(403, "AccessDenied");
    server.fault(PUT, "/x", 1, denied);
    server.fault(GET, "/x", 1, denied);
    server.fault(HEAD, "/y", 1, denied);
    server.fault(DELETE, "/x", 1, denied);
    server.fault(GET, "list-type=2", 1, denied);
    let refusals = [
        (storage.create(&key("x"), storage::whole("x")).await.expect_err("put"), "s3:PutObject"),
        (storage.read(&key("x"), 10).await.map(drop).expect_err("get"), "s3:GetObject"),
        (storage.head(&key("y")).await.map(drop).expect_err("head"), "s3:ListBucket"),
        (storage.delete(&key("x")).await.expect_err("delete"), "s3:DeleteObject"),
        (storage.list("").await.map(drop).expect_err("list"), "s3:ListBucket"),
    ];
    for (error, permission) in refusals {
        assert_eq!(error.kind(), ErrorKind::Denied);
        assert!(scripted(&error).contains(permission), "{}", error.chain());
    }
    assert_eq!(server.requests(PUT, "/x"), 1);
}

#[tokio::test]
async fn a_bucket_that_is_not_there_or_elsewhere_is_named() {
    let server = Server::start().await;
    let storage = connect(S3Settings { bucket: "nobodys".to_owned(), ..server.settings() }).await;
    let error = storage.create(&key("x"), storage::whole("x")).await.expect_err("no bucket");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(
        error.to_string().contains("no such bucket") && error.to_string().contains("bucket=`nobodys`"),
        "{error}"
    );
    assert_eq!(kind_of(storage.list("").await), ErrorKind::Denied);

    let storage = server.storage().await;
    server.fault(PUT, "/x", 1, Fault::Status(301, "PermanentRedirect"));
    server.fault(HEAD, "/x", 1, Fault::Status(301, ""));
    for error in [
        storage.head(&key("x")).await.expect_err("elsewhere"),
        storage.create(&key("x"), storage::whole("x")).await.expect_err("elsewhere"),
    ] {
        assert_eq!(error.kind(), ErrorKind::Denied);
        let text = scripted(&error);
        assert!(text.contains("in another region") && text.contains("eu-north-1"), "{text}");
    }
}

#[tokio::test]
async fn a_store_that_never_answers_costs_a_bounded_time() {
    let server = Server::start().await;
    let patience = Patience { attempt: Duration::from_millis(200), retries: 1, ..impatience() };
    let storage = connect(S3Settings { patience, ..server.settings() }).await;
    for method in [PUT, GET, HEAD, POST, DELETE] {
        server.fault(method, "", 100, Fault::Silence);
    }
    let began = Instant::now();
    assert_eq!(kind_of(storage.create(&key("x"), storage::whole("x")).await), ErrorKind::Unavailable);
    assert_eq!(kind_of(storage.read(&key("x"), 10).await), ErrorKind::Unavailable);
    assert_eq!(kind_of(storage.list("").await), ErrorKind::Unavailable);
    assert_eq!(kind_of(storage.create(&key("x"), three_parts().1).await), ErrorKind::Unavailable);
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
}

#[tokio::test]
async fn a_store_that_is_not_there_is_unavailable() {
    let server = Server::start().await;
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").and_then(|free| free.local_addr()).expect("free");
    let endpoint_url = Some(format!("http://{nobody}"));
    let storage = connect(S3Settings { endpoint_url, ..server.settings() }).await;
    let error = storage.read(&key("x"), 10).await.expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(scripted(&error).to_lowercase().contains("refused"), "{}", error.chain());
}

#[tokio::test]
async fn expired_credentials_are_loaded_anew_once() {
    let server = Server::start().await;
    let storage = server.storage().await;
    storage.create(&key("x"), storage::whole("x")).await.expect("created");
    server.fault(GET, "/x", 1, Fault::Status(400, "ExpiredToken"));
    storage.read(&key("x"), 10).await.expect("renewed");
    server.fault(GET, "/x", 2, Fault::Status(400, "ExpiredToken"));
    let error = storage.read(&key("x"), 10).await.expect_err("still expired");
    assert_eq!(error.kind(), ErrorKind::Denied);
    assert!(scripted(&error).contains("expired"), "{}", error.chain());
}

#[tokio::test]
async fn a_store_that_knows_no_conditions_says_so_and_gets_the_best_there_is() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.refuse_conditions();
    assert_eq!(storage.guarantees(), Guarantees::FULL);
    storage.create(&key("x"), storage::whole("one")).await.expect("without a condition");
    assert!(!storage.guarantees().create_only);
    assert_eq!(kind_of(storage.create(&key("x"), storage::whole("two")).await), ErrorKind::Conflict);

    let one = storage.read(&key("x"), 10).await.expect("there").version;
    let two = storage.replace(&key("x"), Some(&one), "two".into()).await.expect("without a condition");
    assert!(!storage.guarantees().compare_and_swap);
    assert_eq!(kind_of(storage.replace(&key("x"), Some(&one), "three".into()).await), ErrorKind::Conflict);
    assert_eq!(storage.read(&key("x"), 10).await.expect("there").version, two);

    let server = Server::start().await;
    let storage = server.storage().await;
    server.refuse_conditions();
    storage.create(&key("large"), three_parts().1).await.expect("without a condition");
    assert_eq!(kind_of(storage.create(&key("large"), three_parts().1).await), ErrorKind::Conflict);
    assert_eq!(server.unfinished(), 0);
}

#[tokio::test]
async fn a_store_that_ignores_ranges_is_not_believed() {
    let server = Server::start().await;
    let storage = server.storage().await;
    storage.create(&key("five"), storage::whole("01234")).await.expect("created");
    server.ignore_ranges();
    assert_eq!(storage.read_range(&key("five"), 0..5).await.expect("the whole"), "01234");
    // The last one is as long as the whole.
    for range in [1..3, 0..4, 3..8] {
        assert_eq!(kind_of(storage.read_range(&key("five"), range).await), ErrorKind::Corrupt);
    }
}

#[tokio::test]
async fn another_prefix_is_another_world() {
    let server = Server::start().await;
    let one = server.storage().await;
    let two = connect(S3Settings { prefix: String::new(), ..server.settings() }).await;
    one.create(&key("x"), storage::whole("one")).await.expect("created");
    two.create(&key("x"), storage::whole("two")).await.expect("created");
    assert_eq!(one.read(&key("x"), 10).await.expect("there").bytes, "one");
    assert_eq!(one.list("").await.expect("listed").len(), 1);
    assert_eq!(one.location(), format!("s3://{BUCKET}/some/prefix/ at {}", server.url));
    let paths: Vec<String> =
        two.list("").await.expect("listed").into_iter().map(|entry| entry.path).collect();
    assert_eq!(paths, [".probe/x", "some/prefix/.probe/x"]);
}

#[tokio::test]
async fn a_probe_finds_a_store_that_ignores_conditions_and_overwrites() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.ignore_conditions();
    let found = storage::probe(&storage).await.expect("probed");
    assert_eq!(found, Guarantees { create_only: false, compare_and_swap: false });
    storage.create(&key("x"), storage::whole("one")).await.expect("created");
    storage.create(&key("x"), storage::whole("two")).await.expect("this is what it is about");

    storage.set_guarantees(found);
    assert_eq!(kind_of(storage.create(&key("x"), storage::whole("three")).await), ErrorKind::Conflict);
    assert_eq!(kind_of(storage.replace(&key("x"), None, "three".into()).await), ErrorKind::Conflict);
    let two = storage.read(&key("x"), 10).await.expect("there").version;
    storage.replace(&key("x"), Some(&two), "four".into()).await.expect("it was so");
    assert_eq!(kind_of(storage.replace(&key("x"), Some(&two), "five".into()).await), ErrorKind::Conflict);
    assert_eq!(storage.read(&key("x"), 10).await.expect("there").bytes, "four");
}

#[tokio::test]
async fn a_probe_finds_a_store_that_refuses_conditions() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.refuse_conditions();
    let found = storage::probe(&storage).await.expect("probed");
    assert_eq!(found, Guarantees { create_only: false, compare_and_swap: false });
}

#[tokio::test]
async fn a_probe_makes_do_with_reading_and_writing() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let denied = Fault::Status(403, "AccessDenied");
    server.fault(DELETE, "", 100, denied);
    assert_eq!(storage::probe(&storage).await.expect("probed"), Guarantees::FULL);
    assert_eq!(server.requests(GET, "list-type=2"), 0);

    server.fault(PUT, "", 100, denied);
    assert_eq!(kind_of(storage::probe(&storage).await), ErrorKind::Denied);
}

#[tokio::test]
async fn where_nothing_may_be_deleted_starts_gather_no_probes() {
    let server = Server::start().await;
    let storage = server.storage().await;
    server.fault(DELETE, "", usize::MAX, Fault::Status(403, "AccessDenied"));
    for _ in 0..200 {
        assert_eq!(storage::probe(&storage).await.expect("probed"), Guarantees::FULL);
    }
    let left = storage.list(".probe/").await.expect("listed").len();
    assert!((2..=64).contains(&left), "{left}");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_only_looks_writes_nothing() {
    let server = Server::start().await;
    let program = Program::new()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_ENDPOINT_URL_S3", &server.url)
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ACCESS_KEY_ID", KEY_ID)
        .with("AWS_SECRET_ACCESS_KEY", SECRET);
    drop(program.app("CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1)"));
    program.succeed(&["backup"]);
    let writes = || [PUT, POST, DELETE].map(|method| server.requests(method, ""));
    let before = writes();
    assert!(server.requests(PUT, ".probe/") > 0, "who writes looks first what is honoured");

    for method in [PUT, POST, DELETE] {
        server.fault(method, "", 100, Fault::Status(403, "AccessDenied"));
    }
    assert_eq!(program.snapshots().len(), 1);
    program.succeed(&["status"]);
    program.succeed(&["prune"]);
    program.succeed(&["restore", "--dry-run"]);
    program.succeed(&["restore", "--output", "restored.db"]);
    assert_eq!(writes(), before);
    assert_eq!(program.run(&["verify"]).code, Some(i32::from(ErrorKind::Denied.exit_code())));
}
