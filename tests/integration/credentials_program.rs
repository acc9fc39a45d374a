//! The program's own choice of an identity and of a store's ways, from its environment.

use std::fs;
use std::time::Duration;

use lifeboat::clock::Clock;
use serde_json::json;
use tokio::net::TcpListener;

use crate::support::identity::{ARN, Answer, Machine, Sts, good_token};
use crate::support::program::Program;
use crate::support::s3_server::{BUCKET, KEY_ID, SECRET, Server};

fn program(server: &Server) -> Program {
    let program = Program::new()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ENDPOINT_URL_S3", &server.url);
    drop(program.app("CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1)"));
    program
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_account_of_kubernetes_is_a_role_and_a_file() {
    let (server, sts) = (Server::start().await, Sts::start(Clock::system()).await);
    let program = program(&server)
        .with("AWS_ROLE_ARN", ARN)
        .with("AWS_WEB_IDENTITY_TOKEN_FILE", "token")
        .with("AWS_ENDPOINT_URL_STS", &sts.url)
        .with("AWS_STS_REGIONAL_ENDPOINTS", "regional");
    fs::write(program.path("token"), good_token("kubelet", Clock::system().now())).expect("written");
    program.succeed(&["backup"]);
    let status = program.json(&["status"]);
    assert_eq!(status["identity"]["source"], "token-file");
    assert_eq!(sts.requests(), 2, "one for each command");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_comes_seconds_after_the_boot_is_waited_for_and_told_once() {
    let (server, sts) = (Server::start().await, Sts::start(Clock::system()).await);
    let program = program(&server)
        .with("AWS_ROLE_ARN", ARN)
        .with("AWS_ENDPOINT_URL_STS", &sts.url)
        .with("FLY_MACHINE_ID", "148e")
        .with("BACKUP_MACHINE_SOCKET", "api");
    let mut running = program.start(&["status"]);
    running.wait_for_log("waiting for an identity token");
    tokio::time::sleep(Duration::from_secs(1)).await;
    let _machine = Machine::start(&program.path("api"), Clock::system());
    let ended = running.wait();
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr.matches("waiting for an identity token").count(), 1, "{}", ended.stderr);
    assert_eq!(sts.last("RoleSessionName"), "lifeboat-148e");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_without_any_token_is_told_at_once_where_none_is_to_be_expected() {
    let server = Server::start().await;
    let program = program(&server).with("AWS_ROLE_ARN", ARN).with("BACKUP_MACHINE_SOCKET", "off");
    let ended = program.run(&["status"]);
    ended.refused(6, &["no source of identity tokens", "AWS_WEB_IDENTITY_TOKEN_FILE"]);
    assert!(ended.took.as_secs() < 10, "{:?}", ended.took);
    assert_eq!(server.requests("", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_credentials_at_all_are_named() {
    let server = Server::start().await;
    let ended = program(&server).run(&["status"]);
    ended.refused(6, &["no credentials in the environment", "AWS_ROLE_ARN", "AWS_ACCESS_KEY_ID"]);
    assert_eq!(server.requests("", ""), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_provider_is_spoken_to_as_its_profile_says() {
    for (provider, has_checksum, has_condition) in [
        ("minio", true, true),
        ("other", false, true),
        ("r2", false, true),
        ("b2", false, false),
        ("garage", true, false),
    ] {
        let server = Server::start().await;
        let program = program(&server)
            .with("BACKUP_S3_PROVIDER", provider)
            .with("BACKUP_S3_PATH_STYLE", "true")
            .with("AWS_ACCESS_KEY_ID", KEY_ID)
            .with("AWS_SECRET_ACCESS_KEY", SECRET);
        let ended = program.run(&["backup"]);
        assert_eq!(ended.code, Some(0), "{provider}: {}", ended.stderr);
        let of_puts = |name: &str| {
            let values = server.headers("PUT", "", name);
            assert!(!values.is_empty(), "{provider} was written to");
            values.into_iter().filter(|value| !value.is_empty()).count()
        };
        assert_eq!(of_puts("x-amz-checksum-crc32") > 0, has_checksum, "{provider}");
        assert_eq!(of_puts("if-none-match") > 0, has_condition, "{provider}");
        assert_eq!(
            ended.stderr.contains("does not keep an object from being overwritten"),
            !has_condition,
            "{provider}"
        );
        assert_eq!(program.snapshots().len(), 1, "{provider}");
        assert_eq!(program.json(&["status"])["identity"]["kind"], "chain");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_role_of_a_task_is_asked_of_the_container_s_service() {
    let server = Server::start().await;
    let url = container_service().await;
    let program = program(&server).with("AWS_CONTAINER_CREDENTIALS_FULL_URI", url);
    program.succeed(&["backup"]);
    let identity = &program.json(&["status"])["identity"];
    assert_eq!((&identity["kind"], identity["expires_at"].is_string()), (&json!("chain"), true));
    let tokens = server.headers("PUT", "", "x-amz-security-token");
    assert!(tokens.iter().all(|token| token == "session-token-of-a-task"), "{tokens:?}");
}

/// The service that gives a container the credentials of its task.
async fn container_service() -> String {
    let end = Clock::system().now() + Duration::from_secs(3_600);
    let page = json!({
        "AccessKeyId": KEY_ID, "SecretAccessKey": SECRET, "Token": "session-token-of-a-task",
        "Expiration": format!("{end:.0}"), "RoleArn": ARN,
    });
    let service = axum::Router::new().route("/v2/credentials", axum::routing::get(page.to_string()));
    let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
    let url = format!("http://{}/v2/credentials", listener.local_addr().expect("bound"));
    tokio::spawn(async move { axum::serve(listener, service).await });
    url
}

#[tokio::test(flavor = "multi_thread")]
async fn the_general_endpoint_is_given_no_token_whatever_the_way_to_an_identity() {
    let clock = Clock::system();
    let (server, foreign) = (Server::start().await, Sts::start(clock.clone()).await);
    let by_token = format!("[default]\nrole_arn = {ARN}\nweb_identity_token_file = token\n");
    let by_key = format!(
        "[default]\nrole_arn = {ARN}\nsource_profile = other\n[profile other]\naws_access_key_id = {KEY_ID}\n\
         aws_secret_access_key = {SECRET}\n"
    );
    let in_profile =
        by_token.replace("web_identity", &format!("endpoint_url = {}\nweb_identity", foreign.url));
    for (profile, general) in [(by_token, true), (by_key, true), (in_profile, false)] {
        let program = program(&server);
        fs::write(program.path("token"), good_token("file", clock.now())).expect("written");
        fs::write(program.path("aws"), &profile).expect("written");
        let program = program.with("AWS_CONFIG_FILE", "aws").with("AWS_SHARED_CREDENTIALS_FILE", "none");
        let program = if general { program.with("AWS_ENDPOINT_URL", &foreign.url) } else { program };
        let ended = program.run(&["status"]);
        assert_eq!((foreign.requests(), ended.code), (0, Some(6)), "{profile} {}", ended.stderr);
        let last = ended.stderr.lines().last().unwrap_or_default();
        let parts = ["AWS_ENDPOINT_URL", "AWS_ROLE_ARN", "AWS_WEB_IDENTITY_TOKEN_FILE"];
        assert!(parts.iter().all(|part| last.contains(part)), "{last}");
    }
    let ways = [
        ("AWS_CONTAINER_CREDENTIALS_FULL_URI", container_service().await),
        ("AWS_CONFIG_FILE", "key".to_owned()),
    ];
    for (name, value) in ways {
        let program = program(&server).with("AWS_ENDPOINT_URL", &foreign.url).with(name, value);
        let profile = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
        fs::write(program.path("key"), profile).expect("written");
        program.succeed(&["status"]);
        assert_eq!(foreign.requests(), 0, "{name}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_proxy_is_not_shown_what_goes_in_clear() {
    let clock = Clock::system();
    let (server, sts) = (Server::start().await, Sts::start(clock.clone()).await);
    let proxy = Sts::start(clock.clone()).await;
    let proxied = |program: Program| {
        let names = ["HTTP_PROXY", "http_proxy", "HTTPS_PROXY", "ALL_PROXY"];
        names.into_iter().fold(program, |program, name| program.with(name, &proxy.url))
    };
    let by_role = proxied(program(&server))
        .with("AWS_ROLE_ARN", ARN)
        .with("AWS_WEB_IDENTITY_TOKEN_FILE", "token")
        .with("AWS_ENDPOINT_URL_STS", &sts.url);
    fs::write(by_role.path("token"), good_token("file", clock.now())).expect("written");
    let by_container =
        proxied(program(&server)).with("AWS_CONTAINER_CREDENTIALS_FULL_URI", container_service().await);
    for program in [by_role, by_container] {
        let ended = program.run(&["status"]);
        assert_eq!((proxy.requests(), ended.code), (0, Some(0)), "{}", ended.stderr);
    }
}

/// A profile beside it would do, and is not meant.
#[tokio::test(flavor = "multi_thread")]
async fn a_static_key_is_whole_and_nobody_takes_its_place() {
    let server = Server::start().await;
    let profile = format!("[default]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\n");
    let by_profile = program(&server).with("AWS_CONFIG_FILE", "aws");
    fs::write(by_profile.path("aws"), profile).expect("written");
    assert_eq!(by_profile.json(&["status"])["identity"]["provider"], "profile");
    let served = server.requests("", "");

    let halved = by_profile.with("BACKUP_AWS_AUTH", "static").with("AWS_ACCESS_KEY_ID", KEY_ID);
    halved.run(&["status"]).refused(2, &["AWS_SECRET_ACCESS_KEY"]);
    assert_eq!(server.requests("", ""), served);
    let whole = halved.with("AWS_SECRET_ACCESS_KEY", SECRET);
    assert_eq!(whole.json(&["status"])["identity"]["kind"], "key");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_socket_that_hangs_is_waited_for_once_and_named() {
    let server = Server::start().await;
    let program = program(&server)
        .with("AWS_ROLE_ARN", ARN)
        .with("BACKUP_TOKEN_WAIT", "6s")
        .with("BACKUP_MACHINE_SOCKET", "api");
    let machine = Machine::start(&program.path("api"), Clock::system());
    machine.instead(Answer::Silence);
    let ended = program.run(&["backup"]);
    assert_eq!(ended.code, Some(5), "{}", ended.stderr);
    let last = ended.stderr.lines().last().unwrap_or_default();
    assert!(last.contains("the machine socket gave no answer") && last.contains("path=`"), "{last}");
    assert!(ended.took < Duration::from_secs(25), "{:?}", ended.took);
    assert_eq!(ended.stderr.matches("waiting for an identity token").count(), 1, "{}", ended.stderr);
}
