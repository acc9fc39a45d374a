//! `lifeboat doctor` over databases, snapshots and a daemon: what it finds, and that it changes nothing.

use std::fs;
use std::net::TcpListener;
use std::path::Path;

use lifeboat::clock::Clock;
use lifeboat::disk::mount_of;
use lifeboat::error::ErrorKind;
use lifeboat::snapshot::SeekTable;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::files;
use crate::support::identity::{ARN, Answer, Machine, Sts, sts_error};
use crate::support::program::{Ended, Program};
use crate::support::s3_server::{BUCKET, KEY_ID, SECRET, Server};

pub const UNHEALTHY: i32 = ErrorKind::Unhealthy.exit_code() as i32;

/// A database with a log and one row.
pub const DATABASE: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(n); INSERT INTO t VALUES (1)";

/// What a run found, and how it ended.
pub struct Found {
    pub ended: Ended,
    report: Value,
}

pub fn doctor(program: &Program, arguments: &[&str]) -> Found {
    let ended = program.run(&[&["doctor", "--json"], arguments].concat());
    let report = serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {ended:?}"));
    Found { ended, report }
}

impl Found {
    /// The checks of this name, one for each database where it is about databases.
    fn all(&self, name: &str) -> Vec<&Value> {
        let checks = self.report["checks"].as_array().expect("checks").iter();
        checks.filter(|check| check["name"] == name).collect()
    }

    /// The one check of this name.
    pub fn check(&self, name: &str) -> &Value {
        match self.all(name)[..] {
            [check] => check,
            ref checks => panic!("{} checks of {name}: {:#}", checks.len(), self.report),
        }
    }

    pub fn status(&self, name: &str) -> &str {
        self.check(name)["status"].as_str().expect("a status")
    }

    /// Fails unless exactly these checks have this status.
    #[track_caller]
    pub fn are(&self, status: &str, names: &[&str]) {
        let checks = self.report["checks"].as_array().expect("checks").iter();
        let found: Vec<&str> = checks
            .filter(|check| check["status"] == status)
            .map(|check| check["name"].as_str().expect("a name"))
            .collect();
        assert_eq!(found, names, "{:#}", self.report);
    }
}

/// Nothing outside decides what a test sees.
fn program() -> Program {
    Program::new().with("BACKUP_SCHEDULE", "*/5 * * * *")
}

#[test]
fn a_backed_up_database_is_well_and_nothing_is_changed_by_looking() {
    let program = program();
    let app = program.app(DATABASE);
    program.succeed(&["backup"]);
    program.succeed(&["verify"]);
    app.execute_batch("INSERT INTO t VALUES (2)").expect("written");
    let before = (files::state(&program.path("data")), tree(&program.path("backups")));
    let found = doctor(&program, &[]);
    assert_eq!(found.ended.code, Some(0), "{:#}", found.report);
    found.are("failure", &[]);
    // The file system below a test may be a container's own layer, or memory.
    for name in ["file", "rights", "content", "journal-mode", "space", "scratch", "sqlite-version"] {
        assert_eq!(found.status(&format!("database.{name}")), "ok");
    }
    for name in [
        "reachable",
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
    for name in ["identity.source", "restore.newest", "restore.proof", "retention", "schedule.backup"] {
        assert_eq!(found.status(name), "ok");
    }
    let after = (files::state(&program.path("data")), tree(&program.path("backups")));
    assert_eq!(after, before, "no byte, and no probe, is left");

    // Once nobody has the database open, nothing appears beside it either.
    drop(app);
    let before = files::names(&program.path("data"));
    assert_eq!(doctor(&program, &[]).status("database.content"), "ok");
    assert_eq!(files::names(&program.path("data")), before);
}

/// Every file below a folder but those that only lock.
fn tree(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        match path.is_dir() {
            true => found.extend(tree(&path)),
            false if !path.ends_with(".lifeboat-lock") => found.push(path.display().to_string()),
            false => {}
        }
    }
    found.sort();
    found
}

#[test]
fn the_shape_of_the_report_is_stable() {
    let program = program();
    drop(program.app(DATABASE));
    let found = doctor(&program, &[]);
    let shape: Vec<Value> = found.report["checks"]
        .as_array()
        .expect("checks")
        .iter()
        .map(|check| {
            let keys: Vec<&String> = check.as_object().expect("an object").keys().collect();
            // What the machine is decides here, and with it whether there is something to do.
            match check["name"] == "database.file-system" {
                true => serde_json::json!({ "name": check["name"], "database": check["database"] }),
                false => {
                    serde_json::json!({ "name": check["name"], "status": check["status"], "keys": keys })
                }
            }
        })
        .collect();
    insta::assert_json_snapshot!(shape);
    let keys: Vec<&String> = found.report.as_object().expect("an object").keys().collect();
    assert_eq!(keys, ["checks", "worst"]);
}

#[test]
fn people_get_the_same_in_words() {
    let program = program();
    let ended = program.run(&["doctor"]);
    assert_eq!(ended.code, Some(UNHEALTHY));
    assert!(
        ended.stdout.contains("failure  database.file (app): there is no such file\n"),
        "{}",
        ended.stdout
    );
    assert!(ended.stdout.contains("\n         means  ") && ended.stdout.contains("\n         do     "));
    assert!(ended.stderr.contains("lifeboat: checks failed: database.file (app)\n"), "{}", ended.stderr);
}

#[test]
fn what_is_no_database_is_a_failure_and_stops_nothing_else() {
    let program = program();
    let path = program.database();
    let check = |failed: &str, part: &str| {
        let found = doctor(&program, &[]);
        assert_eq!(found.ended.code, Some(UNHEALTHY));
        found.are("failure", &[failed]);
        let text = found.check(failed)["found"].as_str().expect("text").to_owned();
        assert!(text.contains(part), "{text}");
        assert_eq!(found.status("storage.put"), "ok");
    };
    check("database.file", "there is no such file");
    fs::create_dir(&path).expect("created");
    check("database.file", "a directory");
    fs::remove_dir(&path).expect("removed");
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, 0o600.into()).expect("created");
    check("database.file", "pipe");
    fs::remove_file(&path).expect("removed");
    fs::write(&path, "not a database, but long enough to have a header. ".repeat(40)).expect("written");
    check("database.content", "not an SQLite database");
    assert_eq!(fs::read(&path).expect("there")[..14], *b"not a database");
}

#[test]
fn an_absent_database_is_no_failure_where_a_start_restores_it() {
    let found = doctor(&program().with("BACKUP_RESTORE_ON_BOOT", "if-missing"), &[]);
    assert_eq!((found.ended.code, found.status("database.file")), (Some(0), "note"));
}

#[test]
fn a_locked_database_is_waited_for_no_longer_than_a_bound() {
    let program = program();
    let app = program.app("CREATE TABLE t(n)");
    app.execute_batch("BEGIN EXCLUSIVE; INSERT INTO t VALUES (1)").expect("locked");
    let found = doctor(&program, &[]);
    assert_eq!((found.ended.code, found.status("database.content")), (Some(0), "warning"));
    assert!(found.ended.took.as_secs() < 15, "{:?}", found.ended.took);
}

#[test]
fn several_databases_are_looked_at_and_one_can_be_named() {
    let program = program();
    drop(program.app(DATABASE));
    let paths = format!("{},{}", program.database().display(), program.path("data/other.db").display());
    let program = program.with("BACKUP_DATABASE", paths);
    let found = doctor(&program, &[]);
    let of = |name: &str| {
        let checks = found.all(name).into_iter();
        checks.map(|check| (check["database"].as_str(), check["status"].as_str())).collect::<Vec<_>>()
    };
    assert_eq!(of("database.file"), [(Some("app"), Some("ok")), (Some("other"), Some("failure"))]);
    assert_eq!(of("database.content"), [(Some("app"), Some("ok"))]);
    assert_eq!(found.ended.code, Some(UNHEALTHY));
    assert_eq!(doctor(&program, &["--name", "app"]).ended.code, Some(0));
    let unknown = program.run(&["doctor", "--name", "nobody"]);
    unknown.refused(2, &["no database of this name", "name=`nobody`"]);
}

#[test]
fn a_pattern_that_stands_for_no_file_is_a_finding() {
    let program = program();
    let pattern = program.path("data/*.db").display().to_string();
    let found = doctor(&program.with("BACKUP_DATABASE", pattern), &[]);
    assert_eq!(found.ended.code, Some(UNHEALTHY));
    found.are("failure", &["database"]);
    assert_eq!((found.status("storage.put"), found.all("restore.newest").len()), ("ok", 0));
}

#[test]
fn settings_that_cannot_be_read_are_findings() {
    let program = program()
        .with("BACKUP_VERIFY_SCHEDULE", "every day")
        .with("BACKUP_RETENTION", "lots")
        .with("BACKUP_PRUNE_SCHEDULE", "off");
    drop(program.app(DATABASE));
    let found = doctor(&program, &[]);
    assert_eq!(found.ended.code, Some(UNHEALTHY));
    found.are("failure", &["schedule.verify", "retention"]);
    assert!(found.check("schedule.verify")["found"].as_str().expect("text").contains("verify.schedule"));
    let backup = found.check("schedule.backup")["found"].as_str().expect("text");
    assert_eq!(backup.matches(":00Z").count(), 5, "{backup}");
    assert_eq!(found.status("schedule.prune"), "note");
}

#[test]
fn a_damaged_newest_snapshot_is_found_without_reading_all() {
    let program = program();
    // Four frames, of what does not compress.
    let noise = "CREATE TABLE t(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 900) \
                 INSERT INTO t SELECT randomblob(4000) FROM n";
    drop(program.app(noise));
    program.succeed(&["backup"]);
    let id = program.snapshots().remove(0);
    let data = program.path(&format!("backups/app/snapshots/{id}.db.zst"));
    let sound = fs::read(&data).expect("data");
    let check = |bytes: Option<&[u8]>, part: &str| {
        match bytes {
            Some(bytes) => fs::write(&data, bytes).expect("written"),
            None => fs::remove_file(&data).expect("removed"),
        }
        let found = doctor(&program, &[]);
        assert_eq!(found.ended.code, Some(UNHEALTHY), "{:#}", found.report);
        found.are("failure", &["restore.newest"]);
        let text = found.check("restore.newest")["found"].as_str().expect("text").to_owned();
        assert!(text.contains(part), "{text}");
    };
    let flipped = |at: usize| {
        let mut bytes = sound.clone();
        bytes[at] ^= 0xff;
        bytes
    };
    let table = SeekTable::encoded_bytes(4) as usize;
    check(Some(&flipped(2)), "read frame 0");
    check(Some(&flipped(sound.len() - table - 100)), "read frame 3");
    check(Some(&flipped(sound.len() - 2)), "seek table");
    check(Some(&sound[..sound.len() - 1]), "bytes, not");
    check(None, "missing");
    fs::write(&data, flipped(sound.len() / 2)).expect("written");
    assert_eq!(doctor(&program, &[]).status("restore.newest"), "ok", "what lies between only a proof reads");
}

#[test]
fn the_port_is_a_daemons_or_nobodys() {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    let addr = listener.local_addr().expect("bound").to_string();
    let program = program().with("BACKUP_HTTP_ADDR", &addr);
    drop(program.app(DATABASE));
    let found = doctor(&program, &[]);
    assert_eq!(
        (found.ended.code, found.status("http.port")),
        (Some(UNHEALTHY), "failure"),
        "somebody hangs there"
    );
    drop(listener);
    let found = doctor(&program, &[]);
    assert!(found.check("http.port")["found"].as_str().expect("text").contains("nobody listens"));
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("stored snapshot");
    let found = doctor(&program, &[]);
    assert!(found.check("http.port")["found"].as_str().expect("text").contains("daemon answers"));
    assert_eq!((found.ended.code, found.status("http.bind")), (Some(0), "ok"));
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}

#[test]
fn on_fly_the_volume_is_looked_for() {
    let program = program().with("FLY_APP_NAME", "shop");
    drop(program.app(DATABASE));
    let path = fs::canonicalize(program.database()).expect("there");
    let mount = mount_of(&path).expect("readable").expect("a table of mounts");
    let expected = if mount.point == Path::new("/") { "failure" } else { "ok" };
    let found = doctor(&program, &[]);
    assert_eq!(found.status("fly.volume"), expected);
    assert_eq!((found.status("fly.kill-timeout"), found.status("fly.autostop")), ("note", "note"));
    let elsewhere = program.with("FLY_APP_NAME", "");
    assert_eq!(doctor(&elsewhere, &[]).status("fly.volume"), "skipped");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_role_is_tried_its_claims_are_shown_and_its_token_never() {
    let clock = Clock::system();
    let (server, sts) = (Server::start().await, Sts::start(clock.clone()).await);
    let program = program()
        .with("BACKUP_S3_BUCKET", BUCKET)
        .with("AWS_ENDPOINT_URL_S3", &server.url)
        .with("BACKUP_S3_PROVIDER", "aws")
        .with("AWS_REGION", "eu-north-1")
        .with("AWS_ROLE_ARN", ARN)
        .with("AWS_ENDPOINT_URL_STS", &sts.url)
        .with("BACKUP_HTTP_TOKEN", "canary-of-the-http-token");
    let socket = program.path("api");
    let machine = Machine::start(&socket, clock);
    let program = program.with("BACKUP_MACHINE_SOCKET", socket.display().to_string());
    drop(program.app(DATABASE));

    let found = doctor(&program, &[]);
    assert_eq!(found.ended.code, Some(0), "{:#}", found.report);
    for name in ["source", "token", "role", "trust-policy", "role-policy"] {
        assert_eq!(found.status(&format!("identity.{name}")), "ok");
    }
    assert_eq!(found.check("identity.token")["document"]["subject"], "acme-inc:shop:quiet-cloud-9972");
    let trust = &found.check("identity.trust-policy")["document"]["Statement"][0]["Condition"]["StringLike"];
    assert_eq!(trust["oidc.fly.io/acme-inc:sub"], "acme-inc:shop:*");

    sts.instead(
        100,
        &sts_error(403, "AccessDenied", "Not authorized to perform sts:AssumeRoleWithWebIdentity"),
    );
    let refused = doctor(&program, &[]);
    assert_eq!(refused.ended.code, Some(UNHEALTHY));
    refused.are("failure", &["storage.reachable", "identity.role"]);
    assert!(refused.check("identity.trust-policy")["means"].as_str().expect("text").contains("personal"));

    machine.instead(Answer::Page(404, "no".to_owned()));
    let without = doctor(&program, &[]);
    without.are("failure", &["storage.reachable", "identity.token"]);

    for Found { ended, .. } in [found, refused, without] {
        let shown = format!("{}{}", ended.stdout, ended.stderr);
        let tokens = machine.given();
        let segments = tokens.iter().flat_map(|token| token.split('.').skip(1));
        for secret in segments.chain([SECRET, KEY_ID, "canary-of-the-http-token"]) {
            assert!(!shown.contains(secret), "{secret} is in: {shown}");
        }
    }
}
