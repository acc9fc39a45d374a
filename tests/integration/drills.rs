//! Drills, the real program: what is proven and when, the user's own test, and what follows from damage.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::path::Path;
use std::time::Duration;

use lifeboat::error::ErrorKind;
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::files::names;
use crate::support::program::{Ended, Program};

const CORRUPT: i32 = ErrorKind::Corrupt.exit_code() as i32;
const UNHEALTHY: i32 = ErrorKind::Unhealthy.exit_code() as i32;
const LIMIT: i32 = ErrorKind::Limit.exit_code() as i32;

const ORDERS: &str =
    "PRAGMA journal_mode=wal; CREATE TABLE orders(total INTEGER); INSERT INTO orders VALUES (3);";

/// Anything may be pruned but what retention itself holds back.
fn keeping_one() -> Program {
    Program::new().with("BACKUP_RETENTION", "1l").with("BACKUP_PRUNE_SAFETY_AGE", "0s")
}

fn backed_up(program: &Program) -> String {
    program.json(&["backup"])["snapshot"]["id"].as_str().expect("an id").to_owned()
}

fn proof(program: &Program, id: &str) -> Value {
    let path = program.path("backups/app/proofs").join(format!("{id}.json"));
    serde_json::from_slice(&fs::read(path).expect("a record")).expect("JSON")
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("opens");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).expect("overwritten");
}

#[test]
fn the_assertion_is_asked_of_the_restored_copy_and_stands_in_the_proof() {
    let program = keeping_one().with("BACKUP_VERIFY_SQL", "SELECT count(*) > 0 FROM orders");
    let app = program.app(ORDERS);
    let first = backed_up(&program);
    assert!(program.succeed(&["verify"]).contains("the assertion holds"));
    assert_eq!(proof(&program, &first)["assertion"], "SELECT count(*) > 0 FROM orders");
    assert_eq!(proof(&program, &first)["failure"], Value::Null);
    app.execute("DELETE FROM orders", []).expect("deletes");
    let second = backed_up(&program);
    program.run(&["verify"]).refused(
        UNHEALTHY,
        &[&second, "the assertion does not hold", "it returned 0", "SELECT count(*) > 0 FROM orders"],
    );
    let record = proof(&program, &second);
    assert!(record["failure"].as_str().expect("a reason").contains("it returned 0"), "{record}");
    assert_eq!(record["check"], "none");

    let listed = program.succeed(&["snapshots"]);
    assert!(listed.contains("drill failed"), "{listed}");
    let listed = program.json(&["snapshots"]);
    assert_eq!(listed["failed_drills"][0]["snapshot"], second);
    assert_eq!(listed["proofs"].as_array().expect("a list").len(), 1);
    assert!(program.succeed(&["status"]).contains("drill failed"));
    let doctor = program.run(&["doctor"]);
    assert!(doctor.stdout.contains("its drill failed"), "{doctor:?}");

    // A restore is not refused because of it.
    let output = program.path("restored.db").display().to_string();
    program.succeed(&["restore", "--output", &output]);
    // And when all is well again, so is the record.
    app.execute("INSERT INTO orders VALUES (1)", []).expect("inserts");
    let third = backed_up(&program);
    program.succeed(&["verify"]);
    assert_eq!(proof(&program, &third)["failure"], Value::Null);
}

#[test]
fn an_assertion_that_cannot_be_asked_or_does_not_end_says_so() {
    let program = keeping_one();
    let _app = program.app(ORDERS);
    let id = backed_up(&program);
    let ask = |sql: &str| program.run(&["verify", "--verify-sql", sql, "--check-deadline", "1s"]);
    ask("SELECT * FROM customers").refused(UNHEALTHY, &[&id, "cannot be asked", "no such table: customers"]);
    assert!(proof(&program, &id)["failure"].is_string());
    program.succeed(&["verify"]);
    let endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n) SELECT count(*) FROM n";
    ask(endless).refused(LIMIT, &[&id, "longer than allowed", "verify.check_deadline"]);
    assert_eq!(proof(&program, &id)["failure"], Value::Null, "nothing was found out");
}

#[test]
fn a_failed_drill_holds_back_every_prune_until_a_newer_snapshot_is_proven() {
    let program = keeping_one();
    let app = program.app(ORDERS);
    let ids: Vec<String> = (0..4)
        .map(|total| {
            app.execute("INSERT INTO orders VALUES (?1)", [total]).expect("inserts");
            backed_up(&program)
        })
        .collect();
    program.succeed(&["verify", "--snapshot", &ids[0]]);
    let prune = || program.json(&["prune"])["removals"].as_array().expect("a list").len();
    assert_eq!(prune(), 2, "all but the newest and the last proven");
    let failed = program.run(&["verify", "--snapshot", &ids[2], "--verify-sql", "SELECT 0"]);
    assert_eq!(failed.code, Some(UNHEALTHY), "{failed:?}");
    assert_eq!(prune(), 0);
    let plan = program.succeed(&["prune"]);
    assert!(plan.contains("the newest drill failed"), "{plan}");
    program.succeed(&["verify", "--snapshot", &ids[1]]);
    assert_eq!(prune(), 0, "an older one says nothing of what came after it");
    program.succeed(&["verify", "--snapshot", &ids[3]]);
    assert_eq!(prune(), 3);
}

/// More than 64 MiB, in which no backup looks for damage, and an index that is broken in the middle:
/// where, and what stood there.
fn large_and_damaged(program: &Program) -> (u64, Vec<u8>) {
    let app = program.app(
        "CREATE TABLE filler(x); CREATE TABLE t(word TEXT); CREATE INDEX i ON t(word);
         WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k+1 FROM n WHERE k < 3000)
         INSERT INTO t SELECT 'word ' || k FROM n;
         WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k+1 FROM n WHERE k < 70)
         INSERT INTO filler SELECT zeroblob(1000000) FROM n;",
    );
    let leaf: i64 = app
        .query_row(
            "SELECT pageno FROM dbstat WHERE name = 'i' AND pagetype = 'leaf' ORDER BY pageno DESC LIMIT 1",
            [],
            |row| row.get(0),
        )
        .expect("the index has leaves");
    drop(app);
    let at = (leaf.cast_unsigned() - 1) * 4096;
    let bytes = fs::read(program.database()).expect("readable");
    assert!(bytes.len() > 64 << 20);
    overwrite(&program.database(), at, &[0xff; 4096]);
    (at, bytes[at as usize..][..4096].to_vec())
}

/// What the daemon says of its readiness once its worker is there.
fn readiness(program: &Program) -> Ended {
    loop {
        let answer = program.run(&["health", "--ready"]);
        if !answer.stderr.contains("storage has not been reached yet") {
            return answer;
        }
    }
}

#[test]
fn damage_that_only_a_drill_finds_is_told_freezes_and_survives_a_restart() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let program =
        keeping_one().with("BACKUP_ON_SHUTDOWN", "false").with("BACKUP_HTTP_ADDR", port.to_string());
    let app = program.app("PRAGMA journal_mode=delete; CREATE TABLE small(x); INSERT INTO small VALUES (1)");
    let first = backed_up(&program);
    program.succeed(&["verify"]);
    drop(app);
    let (at, whole) = large_and_damaged(&program);
    let manifest = program.json(&["backup"]);
    assert_eq!(manifest["snapshot"]["flags"], serde_json::json!([]), "a backup does not see it");
    let second = manifest["snapshot"]["id"].as_str().expect("an id").to_owned();
    // As much again: what comes between the first and the newest could go.
    let app = program.app("UPDATE small SET x = 2");
    drop(app);
    let third = backed_up(&program);

    // The drill that follows a start, once the last proof is an hour old, is asked for here.
    program.run(&["verify"]).refused(CORRUPT, &[&third, "was damaged when it was taken"]);
    let told = |what: &str| {
        let mut daemon = program.start(&["run"]);
        daemon.wait_for_log("backing up app to");
        let ready = readiness(&program);
        assert_eq!(ready.code, Some(UNHEALTHY), "{what}: {ready:?}");
        assert!(ready.stderr.contains("failed its drill"), "{what}: {ready:?}");
        assert!(ready.stderr.contains(&third), "{what}: {ready:?}");
        assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    };
    told("after the drill");
    told("after another restart");
    assert!(program.succeed(&["status"]).contains("drill failed"));
    assert_eq!(program.json(&["prune"])["removals"], serde_json::json!([]));
    program.succeed(&["prune", "--apply"]);
    let listed = program.snapshots();
    assert!([&first, &second, &third].iter().all(|id| listed.contains(id)), "{listed:?}");

    // Mended, stored and proven: the alarm ends, and what is old goes.
    overwrite(&program.database(), at, &whole);
    program.succeed(&["backup"]);
    program.succeed(&["verify"]);
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("backing up app to");
    let ready = readiness(&program);
    assert_eq!(ready.code, Some(0), "{ready:?}");
    daemon.end(Signal::TERM);
    assert!(!program.json(&["prune"])["removals"].as_array().expect("a list").is_empty());
}

#[test]
fn a_daemon_finds_it_by_itself_and_says_so_at_once() {
    let port = TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("bound");
    let program = keeping_one().with("BACKUP_HTTP_ADDR", port.to_string());
    large_and_damaged(&program);
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_line(&["failed to verify app", "was damaged when it was taken"]);
    let ready = program.run(&["health", "--ready"]);
    assert!(ready.stderr.contains("failed its drill"), "{ready:?}");
    let status = program.run(&["status", "--json"]);
    let failure = serde_json::from_str::<Value>(&status.stdout).expect("JSON")["proof"]["failure"].clone();
    assert!(failure.is_string(), "{status:?}");
    let ended = daemon.end(Signal::TERM);
    // The damage is not storage's: storing the same again would help nothing.
    assert!(ended.stderr.contains("app is unchanged since snapshot"), "{ended:?}");
    assert_eq!(program.snapshots().len(), 1);
}

#[test]
fn a_scheduled_drill_proves_the_older_ones_too() {
    let program =
        Program::new().with("BACKUP_VERIFY_SCHEDULE", "* * * * *").with("BACKUP_VERIFY_WITHIN", "1h");
    let app = program.app(ORDERS);
    let older = backed_up(&program);
    app.execute("INSERT INTO orders VALUES (4)", []).expect("inserts");
    let newest = backed_up(&program);
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log(&format!("proved snapshot {newest}"));
    daemon.wait_for_log(&format!("proved snapshot {older}"));
    daemon.end(Signal::TERM);
}

#[test]
fn a_damaged_snapshot_is_restored_where_somebody_says_so() {
    let program = Program::new();
    let app = program.app("CREATE TABLE t(x); CREATE TABLE u(word TEXT); INSERT INTO u VALUES ('saved')");
    let fill = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i < 300)
        INSERT INTO t SELECT randomblob(1000) FROM n";
    app.execute_batch(fill).expect("fills");
    drop(app);
    overwrite(&program.database(), 40 * 4096, &[0xff; 4096]);
    let stored = program.json(&["backup"]);
    assert_eq!(stored["snapshot"]["flags"], serde_json::json!(["malformed"]));
    let word = |path: &Path| -> String {
        let copy = Connection::open(path).expect("opens");
        copy.query_row("SELECT word FROM u", [], |row| row.get(0)).expect("what is whole can be read")
    };
    let output = program.path("saved.db");
    let path = output.display().to_string();
    for restore in [&["restore"][..], &["restore", "--output", &path]] {
        program
            .run(restore)
            .refused(CORRUPT, &["was damaged when it was taken", "--accept-damage", "finding="]);
    }
    assert_eq!(names(&program.path("data")), ["app.db"]);
    assert!(!output.exists());
    let report = program.json(&["restore", "--output", &path, "--accept-damage"]);
    let remarks = report["remarks"].as_array().expect("a list");
    assert!(remarks.iter().any(|remark| remark.as_str().expect("text").contains("malformed")), "{report}");
    assert_eq!(word(&output), "saved");
    let printed = program.succeed(&["restore", "--accept-damage"]);
    assert!(printed.contains("\n! "), "it says what quick_check said: {printed}");
    assert_eq!(word(&program.database()), "saved");
}

#[test]
fn bytes_behind_the_end_of_the_object_are_told_by_a_restore_and_fail_a_proof() {
    let program = Program::new();
    let _app = program.app(ORDERS);
    let id = backed_up(&program);
    let object = program.path("backups/app/snapshots").join(format!("{id}.db.zst"));
    OpenOptions::new()
        .append(true)
        .open(&object)
        .and_then(|mut file| file.write_all(b"more"))
        .expect("appended");
    program.run(&["verify"]).refused(CORRUPT, &["4 bytes behind its end", &id]);
    let output = program.path("restored.db").display().to_string();
    let report = program.json(&["restore", "--output", &output]);
    assert!(report["remarks"][0].as_str().expect("text").contains("4 bytes behind its end"), "{report}");
}

/// How long a boot waits for what it restores.
const BOOT_MAX: Duration = Duration::from_secs(60);

#[test]
fn a_large_database_whose_frame_is_broken_is_restored_on_boot_and_a_whole_one_is_not() {
    for (damage, is_restored) in [(None, false), (Some((4096, [0; 4096])), true)] {
        let program = Program::new()
            .with("BACKUP_RESTORE_ON_BOOT", "if-missing")
            .with("BACKUP_ON_SHUTDOWN", "false")
            .with("BACKUP_VERIFY_SCHEDULE", "off");
        let app = program.app(
            "CREATE TABLE t(word TEXT); INSERT INTO t VALUES ('stored'); CREATE TABLE filler(x);
             WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k+1 FROM n WHERE k < 70)
             INSERT INTO filler SELECT zeroblob(1000000) FROM n;",
        );
        program.succeed(&["backup"]);
        app.execute("UPDATE t SET word = 'since'", []).expect("changes");
        drop(app);
        // The second page is the root of the first table.
        if let Some((at, bytes)) = damage {
            overwrite(&program.database(), at, &bytes);
        }
        let ended = program.run(&["run", "--", "true"]);
        assert_eq!(ended.code, Some(0), "{ended:?}");
        assert!(ended.took < BOOT_MAX, "{ended:?}");
        assert_eq!(ended.stderr.contains("restored app from snapshot"), is_restored, "{ended:?}");
        let word: String = Connection::open(program.database())
            .expect("opens")
            .query_row("SELECT word FROM t", [], |row| row.get(0))
            .expect("queries");
        assert_eq!(word, if is_restored { "stored" } else { "since" });
    }
}
