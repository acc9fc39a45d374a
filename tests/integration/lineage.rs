//! Two machines on one prefix, real daemons: an old volume, a rolling deploy, a handover, an adoption.

use std::fs;
use std::net::TcpListener;
use std::time::{Duration, SystemTime};

use lifeboat::error::ErrorKind;
use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::program::{Program, Running, rows};

const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1);";

/// Another machine that backs up to the storage of `first`, with a volume of its own.
fn beside(first: &Program) -> Program {
    Program::new().with("BACKUP_DIR", first.path("backups").display().to_string())
}

/// The machine of an old copy of `first`'s database, which has its first row only, next to a newest
/// snapshot with two. Nothing is noted of the copy.
fn old_copy(first: &Program) -> Program {
    let app = first.app(FILL);
    first.succeed(&["backup"]);
    let second = beside(first);
    first.succeed(&["restore", "--output", &second.database().display().to_string()]);
    app.execute_batch("INSERT INTO t VALUES (2)").expect("writes");
    first.succeed(&["backup"]);
    second
}

fn write(program: &Program, row: i64) {
    program.app(&format!("INSERT INTO t VALUES ({row})"));
}

/// What the newest snapshot holds.
fn newest(program: &Program) -> Vec<i64> {
    let output = program.path("newest.db");
    program.succeed(&["restore", "--output", &output.display().to_string()]);
    let rows = rows(&output);
    fs::remove_file(output).expect("removed");
    rows
}

fn head(program: &Program) -> serde_json::Value {
    program.json(&["status"])["head"].clone()
}

fn started(program: &Program) -> Running {
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("backing up app to");
    daemon
}

fn port() -> String {
    TcpListener::bind("127.0.0.1:0").expect("a free port").local_addr().expect("bound").to_string()
}

#[test]
fn an_old_volume_beside_a_healthy_machine_becomes_a_branch_and_is_adopted() {
    let first = Program::new();
    let second = old_copy(&first).with("BACKUP_HTTP_ADDR", port());
    let healthy = started(&first);
    let before = head(&first);

    let mut old = started(&second);
    old.wait_for_line(&["form a branch", &first.snapshots()[1], &first.snapshots()[0]]);
    assert_eq!(head(&first), before, "the head has not moved");
    let unready = second.run(&["health", "--ready"]);
    assert_eq!(unready.code, Some(i32::from(ErrorKind::Unhealthy.exit_code())), "{unready:?}");
    let told = unready.stdout + &unready.stderr;
    assert!(told.contains("lifeboat adopt") && told.contains("lifeboat restore"), "{told}");

    // Both write; only the healthy one moves the head.
    write(&second, 99);
    let ended = old.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    write(&first, 3);
    assert_eq!(healthy.end(Signal::TERM).code, Some(0));
    assert_eq!(newest(&first), [1, 2, 3]);
    let listing = first.json(&["snapshots"]);
    let branch = listing["branches"][0]["newest"].as_str().expect("a branch").to_owned();
    let of_branch = listing["snapshots"].as_array().expect("a list").iter().find(|one| one["id"] == *branch);
    assert_eq!(of_branch.expect("listed")["flags"], serde_json::json!(["branch"]));
    assert_eq!(listing["branches"][0]["from"], listing["snapshots"][3]["id"]);
    assert_eq!(listing["branches"].as_array().map(Vec::len), Some(1));
    let now = jiff::Timestamp::now().to_string();
    assert_ne!(first.json(&["restore", "--at", &now, "--dry-run"])["snapshot"], *branch);

    // The next start goes on with it, and is still no head.
    let mut old = started(&second);
    old.wait_for_line(&["form a branch", &branch]);

    let dry = first.json(&["adopt"]);
    assert_eq!(dry["snapshot"], *branch);
    assert_eq!(newest(&first), [1, 2, 3], "a dry run does nothing");
    first.succeed(&["adopt", "--snapshot", &branch, "--apply"]);
    assert_eq!(newest(&first), [1, 99]);
    let again = first.run(&["adopt", "--snapshot", &branch, "--apply"]);
    again.refused(i32::from(ErrorKind::Conflict.exit_code()), &["adopted already"]);

    // The running daemon of the adopted side goes on as head, the other side is a branch now.
    write(&second, 100);
    let ended = old.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("is no branch any more"), "{ended:?}");
    assert_eq!(newest(&first), [1, 99, 100]);
    let mut healthy = started(&first);
    healthy.wait_for_log("form a branch");
    assert_eq!(healthy.end(Signal::TERM).code, Some(0));
    assert_eq!(newest(&first), [1, 99, 100]);
}

#[test]
fn a_branch_that_follows_the_newest_instead_is_head_again() {
    let first = Program::new();
    let second = old_copy(&first);
    let mut old = started(&second);
    old.wait_for_log("form a branch");
    assert_eq!(old.end(Signal::TERM).code, Some(0));
    second.succeed(&["restore"]);
    let mut daemon = started(&second);
    write(&second, 3);
    daemon.wait_for_log("backing up app to");
    let ended = daemon.end(Signal::TERM);
    assert!(!ended.stderr.contains("form a branch"), "{ended:?}");
    assert_eq!(newest(&first), [1, 2, 3]);
}

#[test]
fn an_old_volume_with_its_own_note_becomes_a_branch() {
    let program = Program::new();
    drop(program.app(FILL));
    program.succeed(&["backup"]);
    let (note, old) = (program.path("backups/.lifeboat-scratch/app.lineage.json"), program.database());
    let volume = (fs::read(&note).expect("a note"), fs::read(&old).expect("a database"));
    write(&program, 2);
    program.succeed(&["backup"]);
    // The volume as it was: the same file, written over.
    fs::write(&old, volume.1).expect("set back");
    fs::write(&note, volume.0).expect("set back");
    write(&program, 77);
    assert!(program.succeed(&["status"]).contains("branch    the database descends from"));
    let mut daemon = started(&program);
    daemon.wait_for_log("form a branch");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(newest(&program), [1, 2]);
}

#[test]
fn storage_that_is_emptied_under_a_daemon_is_filled_again_with_the_same_history() {
    let program = Program::new().with("BACKUP_HTTP_ADDR", port());
    drop(program.app(FILL));
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("proved snapshot");
    let objects = program.path("backups/app");
    let identity = || fs::read_to_string(objects.join("identity.json")).expect("an identity");
    let id = || serde_json::from_str::<serde_json::Value>(&identity()).expect("JSON")["database_id"].clone();
    let before = id();
    fs::remove_dir_all(&objects).expect("emptied");
    for row in [2, 3] {
        write(&program, row);
        let answer = get(&program, "/backup-now");
        assert!(answer.contains("\"outcome\":\"stored\""), "{answer}");
        assert_eq!(id(), before);
    }
    assert_eq!(program.snapshots().len(), 2);
    assert_eq!(newest(&program), [1, 2, 3]);

    // Another history in its place is not gone on with.
    let theirs = identity().replace(before.as_str().expect("text"), &"5".repeat(32));
    fs::write(objects.join("identity.json"), &theirs).expect("replaced");
    write(&program, 4);
    let refused = get(&program, "/backup-now");
    assert!(refused.contains("foreign database"), "{refused}");
    let manifests = fs::read_dir(objects.join("manifests")).expect("a folder").count();
    assert_eq!((identity(), manifests), (theirs, 2), "nothing was put upon it");
    daemon.signal(Signal::KILL);
}

#[test]
fn a_database_restored_to_an_older_moment_goes_on_as_head() {
    let program = Program::new();
    drop(program.app(FILL));
    program.succeed(&["backup"]);
    write(&program, 2);
    program.succeed(&["backup"]);
    let old = program.snapshots()[1].clone();
    program.succeed(&["restore", "--snapshot", &old]);
    let daemon = started(&program);
    write(&program, 3);
    let ended = daemon.end(Signal::TERM);
    assert!(!ended.stderr.contains("form a branch"), "{ended:?}");
    assert_eq!(newest(&program), [1, 3]);
}

#[test]
fn a_restore_that_was_undone_goes_on_as_head_whatever_was_published_in_between() {
    let program = Program::new();
    drop(program.app(FILL));
    program.succeed(&["backup"]);
    let first = program.snapshots()[0].clone();
    program.succeed(&["restore"]);
    write(&program, 2);
    program.succeed(&["backup"]);
    let newest_id = program.snapshots()[0].clone();
    assert_ne!(newest_id, first);
    let undone = program.json(&["restore", "--undo"]);
    assert_eq!((&undone["follows"], &undone["remarks"]), (&newest_id.into(), &serde_json::json!([])));
    assert_eq!(rows(&program.database()), [1]);
    let daemon = started(&program);
    write(&program, 3);
    let ended = daemon.end(Signal::TERM);
    assert!(!ended.stderr.contains("form a branch"), "{ended:?}");
    assert_eq!(newest(&program), [1, 3]);
}

#[test]
fn a_branch_is_backed_up_at_its_start_and_proves_what_it_stored() {
    let first = Program::new();
    let second = old_copy(&first);
    write(&second, 99);
    let file = fs::File::options().write(true).open(second.database()).expect("opens");
    file.set_modified(SystemTime::now() - Duration::from_secs(3600)).expect("stamped");
    let mut old = started(&second);
    old.wait_for_log("form a branch");
    old.wait_for_log("proved snapshot");
    assert_eq!(old.end(Signal::TERM).code, Some(0));
    let listing = first.json(&["snapshots"]);
    assert_eq!(listing["proofs"][0]["snapshot"], listing["branches"][0]["newest"], "{listing}");
    assert!(listing["proofs"][0]["snapshot"].is_string(), "{listing}");
}

#[test]
fn a_lost_note_does_not_end_the_backups_of_a_healthy_machine() {
    let program = Program::new();
    drop(program.app(FILL));
    program.succeed(&["backup"]);
    let note = program.path("backups/.lifeboat-scratch/app.lineage.json");
    fs::remove_file(&note).expect("there was a note");
    // Its content is that of the newest.
    let ended = started(&program).end(Signal::TERM);
    assert!(!ended.stderr.contains("is not known; it is taken to"), "{ended:?}");
    // Written since, and the note lost again: not known, and said.
    fs::remove_file(&note).expect("there is a note again");
    write(&program, 2);
    let mut daemon = started(&program);
    daemon.wait_for_log("is not known; it is taken to");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(newest(&program), [1, 2]);
}

#[test]
fn a_machine_that_begins_with_nothing_beside_backups_is_a_branch() {
    let first = Program::new();
    drop(first.app(FILL));
    first.succeed(&["backup"]);
    let second = beside(&first);
    let mut daemon = started(&second);
    daemon.wait_for_log("form a branch");
    drop(second.app(FILL));
    write(&second, 55);
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
    assert_eq!(newest(&first), [1]);
    assert_eq!(first.json(&["snapshots"])["branches"].as_array().map(Vec::len), Some(1));
}

#[test]
fn a_backup_by_hand_of_an_old_copy_goes_on_a_branch() {
    let first = Program::new();
    let second = old_copy(&first);
    write(&second, 99);
    // Its content is no snapshot's, so the times tell: it was last written before the newest was taken.
    let long_ago = SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000_000);
    drop(Connection::open(second.database()).expect("opens"));
    for name in fs::read_dir(second.path("data")).expect("a folder") {
        let file = fs::File::options().write(true).open(name.expect("an entry").path()).expect("opens");
        file.set_modified(long_ago).expect("stamped");
    }
    let before = head(&first);
    let stored = second.json(&["backup"]);
    assert_eq!(stored["snapshot"]["flags"], serde_json::json!(["branch"]));
    assert_eq!(head(&first), before);
    assert!(second.succeed(&["status"]).contains("lifeboat adopt"));
    // Unchanged, it is stored once.
    assert_eq!(second.json(&["backup"])["outcome"], "unchanged");
    assert_eq!(newest(&first), [1, 2]);
}

#[test]
fn in_a_rolling_deploy_one_publishes_and_the_other_serves_and_says_fenced() {
    let first = Program::new().with("BACKUP_HTTP_ADDR", port());
    drop(first.app(FILL));
    let script = "while [ ! -e stop ]; do sleep 0.05; done; exit 7";
    let mut old = first.start(&["run", "--", "sh", "-c", script]);
    old.wait_for_log("proved snapshot");
    let second = beside(&first).with("BACKUP_RESTORE_ON_BOOT", "if-missing");
    let new = started(&second);
    write(&first, 2);
    let refused = get(&first, "/backup-now");
    assert!(refused.contains("a newer writer owns these backups"), "{refused}");
    let unready = first.run(&["health", "--ready"]);
    assert!((unready.stdout + &unready.stderr).contains("fenced"), "health says it");
    let metrics = get(&first, "/metrics");
    assert!(metrics.contains("lifeboat_fenced{database=\"app\"} 1"), "{metrics}");
    // The application is not stopped because of that, and its end is the end.
    fs::write(first.path("stop"), "").expect("told");
    let ended = old.wait();
    assert_eq!(ended.code, Some(7), "{ended:?}");
    assert!(ended.stderr.contains("a newer writer owns these backups"), "{ended:?}");
    write(&second, 3);
    assert_eq!(new.end(Signal::TERM).code, Some(0));
    assert_eq!(newest(&second), [1, 3]);
    // The replaced machine comes back with its volume: its second row is kept, on a branch.
    fs::remove_file(first.path("stop")).expect("removed");
    let mut old = started(&first);
    old.wait_for_log("form a branch");
    assert_eq!(old.end(Signal::TERM).code, Some(0));
    assert_eq!(newest(&second), [1, 3]);
    assert_eq!(second.json(&["snapshots"])["branches"].as_array().map(Vec::len), Some(1));
}

/// The body of a GET to the program's HTTP interface.
fn get(program: &Program, target: &str) -> String {
    use std::io::{Read, Write};
    let address = program.variable("BACKUP_HTTP_ADDR");
    let mut stream = std::net::TcpStream::connect(address).expect("connects");
    write!(stream, "GET {target} HTTP/1.1\r\nhost: {address}\r\nconnection: close\r\n\r\n").expect("asked");
    let mut answer = String::new();
    stream.read_to_string(&mut answer).expect("answers");
    answer
}

#[test]
fn a_handover_with_restore_on_boot_loses_nothing() {
    let first = Program::new();
    drop(first.app(FILL));
    let mut old = first.start(&["run"]);
    old.wait_for_log("proved snapshot");
    assert_eq!(head(&first)["released"], false);
    let second =
        beside(&first).with("BACKUP_RESTORE_ON_BOOT", "if-missing").with("BACKUP_HANDOVER_WAIT", "60s");
    let script = "sqlite3 data/app.db 'SELECT count(*) FROM t'";
    let mut new = second.start(&["run", "--", "sh", "-c", script]);
    new.wait_for_log("waiting for the holder of epoch 1");
    // The old machine still serves, and then leaves in order.
    write(&first, 2);
    assert_eq!(old.end(Signal::TERM).code, Some(0));
    let ended = new.wait();
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "2\n"), "{ended:?}");
    assert!(!ended.stderr.contains("form a branch"), "{ended:?}");
    assert_eq!(head(&first)["released"], true, "the second left in order, too");
    assert_eq!(head(&first)["epoch"], 2);
}

#[test]
fn a_handover_is_waited_for_within_its_bound_only() {
    let first = Program::new();
    drop(first.app(FILL));
    let mut old = first.start(&["run"]);
    old.wait_for_log("proved snapshot");
    old.signal(Signal::KILL);
    drop(old);
    let second =
        beside(&first).with("BACKUP_RESTORE_ON_BOOT", "if-missing").with("BACKUP_HANDOVER_WAIT", "2s");
    let ended = second.run(&["run", "--", "sh", "-c", "sqlite3 data/app.db 'SELECT count(*) FROM t'"]);
    assert_eq!((ended.code, ended.stdout.as_str()), (Some(0), "1\n"), "{ended:?}");
    assert!(ended.stderr.contains("did not release app in time"), "{ended:?}");
}
