//! The way to a store and its rights, one fault at a time: names, certificates, proxies, slow links,
//! long listings, rights that are missing.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use jiff::Timestamp;
use lifeboat::error::ErrorKind;
use lifeboat::prune;
use lifeboat::storage::{self, Patience, S3Settings, Storage};
use lifeboat::verify;
use tokio::io::AsyncReadExt;
use tokio::net::TcpListener;

use crate::storage::{MIB, key, noise};
use crate::support::lab::Lab;
use crate::support::program::Program;
use crate::support::s3_server::{BUCKET, Fault, KEY_ID, SECRET, Server, connect, impatience};

const DENIED: Fault = Fault::Status(403, "AccessDenied");

/// A program that backs up to the bucket at `url`.
fn program(url: &str) -> Program {
    Program::new()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_ENDPOINT_URL_S3", url)
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ACCESS_KEY_ID", KEY_ID)
        .with("AWS_SECRET_ACCESS_KEY", SECRET)
}

/// The same, with a database of one row.
fn program_with_database(url: &str) -> Program {
    let program = program(url);
    drop(program.app("CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1)"));
    program
}

fn certificate(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/integration/support/tls").join(name)
}

#[tokio::test]
async fn a_listing_of_many_pages_is_complete_whatever_the_keys_are() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let odd = ["a b", "a+b", "a%2Bb", "ü", "日本", "<a&b>'\"", "~!*()"];
    let mut names: BTreeSet<String> =
        odd.into_iter().map(|name| format!("app/manifests/{name}.json")).collect();
    names.extend((0..2_501 - names.len()).map(|number| format!("app/manifests/{number:04}.json")));
    names.iter().for_each(|name| server.place(&format!("some/prefix/{name}"), b"x"));
    let listed: Vec<String> =
        storage.list("app/").await.expect("listed").into_iter().map(|entry| entry.path).collect();
    assert_eq!(listed, names.into_iter().collect::<Vec<_>>());
    assert_eq!(server.requests("GET", "list-type=2"), 3);
}

#[tokio::test]
async fn where_nothing_may_be_deleted_a_prune_says_so_and_breaks_nothing() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let lab = Lab::over(dir, Arc::new(server.storage().await));
    let (catalog, database) = (lab.catalog(), lab.path("app.db"));
    catalog.claim_epoch("test", Timestamp::now()).await.expect("claimed");
    let app = lab.database("app.db", "CREATE TABLE t(n)");
    let mut newest = None;
    for _ in 0..3 {
        app.execute_batch("INSERT INTO t VALUES (1)").expect("writes");
        newest = Some(lab.stored(&database).await);
    }
    let newest = newest.expect("stored");
    verify::run(&catalog, &newest, &lab.resources()).await.expect("proven");
    server.fault("DELETE", "", usize::MAX, DENIED);
    let policy = "1l".parse().expect("a policy");
    let plan = prune::plan(
        &catalog,
        prune::Rules { policy: &policy, point_in_time: Duration::ZERO, safety_age: Duration::ZERO },
        Timestamp::now(),
    )
    .await
    .expect("planned");
    assert_eq!(plan.removals.len(), 2);
    let (report, ended) = prune::apply(&catalog, &plan, 1).await;
    ended.expect("to be refused is no failure");
    assert_eq!((report.removed.len(), report.refused.len()), (0, 2), "{report}");
    assert!(report.to_string().contains("s3:DeleteObject"), "{report}");
    assert_eq!(server.requests("DELETE", ""), 2, "each is asked for once, and its data not at all");
    let listed = catalog.list().await.expect("listed").snapshots;
    assert_eq!(listed.len(), 3);
    for manifest in &listed {
        lab.restored_to(manifest, &lab.path(manifest.id.as_str())).await.expect("it restores");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_right_to_list_backups_and_restores_go_on() {
    let server = Server::start().await;
    let program = program_with_database(&server.url);
    server.fault("GET", "list-type=2", usize::MAX, DENIED);
    server.fault("GET", "uploads", usize::MAX, DENIED);
    program.succeed(&["backup"]);
    drop(program.app("INSERT INTO t VALUES (2)"));
    program.succeed(&["backup"]);
    program.succeed(&["restore", "--output", "restored.db"]);
    let ended = program.run(&["snapshots"]);
    assert_eq!(ended.code, Some(i32::from(ErrorKind::Denied.exit_code())), "{}", ended.stderr);
    assert!(ended.stderr.contains("s3:ListBucket"), "{}", ended.stderr);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bucket_in_another_region_is_named_without_a_storm_of_requests() {
    let server = Server::start().await;
    let program = program_with_database(&server.url);
    server.fault_at(0, usize::MAX, Fault::Status(301, "PermanentRedirect"));
    let ended = program.run(&["backup"]);
    assert_eq!(ended.code, Some(i32::from(ErrorKind::Denied.exit_code())), "{}", ended.stderr);
    assert!(ended.stderr.contains("eu-north-1") && ended.stderr.contains("AWS_REGION"), "{}", ended.stderr);
    assert!(server.log().len() <= 4, "{:?}", server.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_counts_only_if_its_authority_name_and_time_do() {
    let authority = certificate("authority.pem").display().to_string();
    let server = Server::start_with_tls(&certificate("server.pem")).await;
    let trusting = program_with_database(&server.url).with("SSL_CERT_FILE", &authority);
    trusting.succeed(&["backup"]);
    trusting.succeed(&["restore", "--output", "restored.db"]);

    // Nobody vouches for it here.
    let storage = connect(S3Settings { patience: impatience(), ..server.settings() }).await;
    let before = server.log().len();
    let error = storage.read(&key("x"), 10).await.expect_err("not trusted");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("certificate"), "{}", error.chain());
    assert_eq!(server.log().len(), before, "nothing is sent");

    // Of that authority, and of another host, or of another time.
    let others = [
        Server::start_with_tls(&certificate("elsewhere.pem")).await,
        Server::start_with_tls(&certificate("expired.pem")).await,
    ];
    let programs =
        others.each_ref().map(|server| program_with_database(&server.url).with("SSL_CERT_FILE", &authority));
    let runs = programs.each_ref().map(|program| program.start(&["backup"]));
    for (run, server) in runs.into_iter().zip(&others) {
        let ended = run.wait();
        assert_eq!(ended.code, Some(i32::from(ErrorKind::Unavailable.exit_code())), "{}", ended.stderr);
        assert!(ended.stderr.contains("certificate"), "{}", ended.stderr);
        assert!(server.log().is_empty(), "nothing is sent: {:?}", server.log());
    }
}

#[tokio::test]
async fn a_name_that_nobody_knows_is_unavailable_and_said() {
    let server = Server::start().await;
    let endpoint_url = Some("https://no-such-host.invalid".to_owned());
    let storage = connect(S3Settings { endpoint_url, ..server.settings() }).await;
    let error = storage.read(&key("x"), 10).await.expect_err("nobody there");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().contains("dns error"), "{}", error.chain());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_may_have_no_address_but_one_of_ipv6() {
    let server = Server::start_at("[::1]:0").await;
    assert!(server.url.starts_with("http://[::1]:"), "{}", server.url);
    let program = program_with_database(&server.url);
    program.succeed(&["backup"]);
    program.succeed(&["restore", "--output", "restored.db"]);
}

/// A proxy that takes note of what it is asked and hangs up.
async fn proxy() -> (String, Arc<Mutex<Vec<String>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}", listener.local_addr().expect("bound"));
    let asked = Arc::new(Mutex::new(Vec::new()));
    let seen = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let mut bytes = vec![0; 1_000];
            let count = socket.read(&mut bytes).await.unwrap_or(0);
            seen.lock().expect("not poisoned").push(String::from_utf8_lossy(&bytes[..count]).into_owned());
        }
    });
    (url, asked)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_sealed_goes_through_the_proxy_that_is_named_and_past_it_where_that_is_said() {
    let ((through, asked), (past, unasked)) = (proxy().await, proxy().await);
    let endpoint = "https://no-such-host.invalid";
    let proxied = program(endpoint).with("HTTPS_PROXY", &through);
    let straight = program(endpoint).with("HTTPS_PROXY", &past).with("NO_PROXY", "no-such-host.invalid");
    let runs = [&proxied, &straight].map(|program| program.start(&["snapshots"]));
    for run in runs {
        let ended = run.wait();
        assert_eq!(ended.code, Some(i32::from(ErrorKind::Unavailable.exit_code())), "{}", ended.stderr);
    }
    let asked = asked.lock().expect("not poisoned");
    assert!(!asked.is_empty());
    for request in asked.iter() {
        assert!(request.starts_with("CONNECT no-such-host.invalid:443 "), "{request}");
        assert!(!request.contains(KEY_ID) && !request.contains(SECRET), "{request}");
    }
    assert!(unasked.lock().expect("not poisoned").is_empty());
}

#[tokio::test]
async fn a_slow_link_is_no_stall_and_a_link_that_stands_still_is_one() {
    let server = Server::start().await;
    let patience = Patience {
        attempt: Duration::from_millis(300),
        bytes_per_second_min: 1 << 10,
        stall: Duration::from_secs(5),
        ..impatience()
    };
    let storage = connect(S3Settings { patience, ..server.settings() }).await;
    let whole = noise(20 << 10, 1);
    storage.create(&key("slow"), storage::whole(whole.clone())).await.expect("created");
    // 20 KiB a second and slower, for far longer than the bound on an attempt that moves nothing.
    server.fault("GET", "/slow", 1, Fault::Trickle(10, Duration::from_millis(150)));
    assert_eq!(storage.read_range(&key("slow"), 0..20 << 10).await.expect("read"), whole);
    assert_eq!(server.requests("GET", "/slow"), 1, "no attempt was given up");

    let patience =
        Patience { attempt: Duration::from_secs(30), stall: Duration::from_millis(500), ..impatience() };
    let storage = connect(S3Settings { patience, ..server.settings() }).await;
    server.fault("GET", "/slow", 1, Fault::Trickle(2, Duration::from_secs(600)));
    assert_eq!(storage.read_range(&key("slow"), 0..20 << 10).await.expect("read"), whole);
    assert_eq!(server.requests("GET", "/slow"), 3, "the one that stood still was given up");
}

#[tokio::test]
async fn parts_of_one_upload_are_of_one_size_but_the_last() {
    let server = Server::start().await;
    let dir = tempfile::tempdir().expect("a temporary directory");
    let lab = Lab::over(dir, Arc::new(server.storage().await));
    lab.catalog().claim_epoch("test", Timestamp::now()).await.expect("claimed");
    let app = lab.database("app.db", "CREATE TABLE t(x)");
    for seed in 0..20 {
        app.execute("INSERT INTO t VALUES (?1)", [noise(MIB, seed).to_vec()]).expect("writes");
    }
    let manifest = lab.stored(&lab.path("app.db")).await;
    let lengths = server.headers("PUT", "partNumber=", "content-length");
    let mut lengths: Vec<u64> = lengths.iter().map(|length| length.parse().expect("a number")).collect();
    assert_eq!(lengths.iter().sum::<u64>(), manifest.stored.bytes);
    lengths.sort_unstable();
    let last = lengths.remove(0);
    assert_eq!(lengths, [8 << 20; 2]);
    assert!(last > 0, "no part is empty");
}

#[tokio::test]
async fn an_object_that_ends_with_a_full_part_has_no_empty_one_behind_it() {
    let server = Server::start().await;
    let storage = server.storage().await;
    let parts: [Bytes; 2] = [noise(5 * MIB, 1), noise(5 * MIB, 2)];
    let stored = storage.create(&key("exact"), stream::iter(parts.clone().map(Ok)).boxed()).await;
    stored.expect("created");
    assert_eq!(server.requests("PUT", "partNumber="), 2);
    assert!(storage.read(&key("exact"), 20 * MIB).await.expect("read").bytes == parts.concat());
}
