//! The real program, killed at any moment: of a backup, of a restore, and in the middle of a swap.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::files::{digest, names};
use crate::support::program::Program;
use crate::support::word::{with_snapshot_of, word};

const ROUNDS: u32 = 20;

/// Some 20 MiB that do not compress.
const FILL: &str =
    "PRAGMA journal_mode=wal; CREATE TABLE t(word TEXT, x BLOB); INSERT INTO t(word) VALUES ('old');
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<320)
    INSERT INTO t(x) SELECT randomblob(65000) FROM n; PRAGMA wal_checkpoint(TRUNCATE);";

/// A moment within one and a quarter of `whole`, another one in every round, early ones included.
fn moment(round: u32, whole: Duration) -> Duration {
    whole * (round * 7 % ROUNDS) / ROUNDS * 5 / 4
}

/// The ids of the objects in a folder of storage.
fn ids(program: &Program, folder: &str, suffix: &str) -> BTreeSet<String> {
    let names = names(&program.path("backups/app").join(folder));
    names.iter().filter_map(|name| name.strip_suffix(suffix).map(str::to_owned)).collect()
}

#[test]
fn a_backup_killed_at_any_moment_leaves_a_sound_storage() {
    let program = Program::new().with("BACKUP_PRUNE_SAFETY_AGE", "0s").with("BACKUP_RETENTION", "1000l");
    let app = program.app(FILL);
    let whole = program.run(&["backup"]).took;
    let mut acknowledged: BTreeSet<String> = program.snapshots().into_iter().collect();
    for round in 0..ROUNDS {
        app.execute("UPDATE t SET word = ?1 WHERE word IS NOT NULL", [round.to_string()]).expect("writes");
        let running = program.start(&["backup", "--json"]);
        std::thread::sleep(moment(round, whole));
        let ended = running.end(Signal::KILL);
        if ended.code == Some(0) {
            let report: serde_json::Value = serde_json::from_str(&ended.stdout).expect("JSON");
            acknowledged.insert(report["snapshot"]["id"].as_str().expect("an id").to_owned());
        }
        app.busy_timeout(Duration::ZERO).expect("set");
        app.execute("INSERT INTO t(x) VALUES ('not locked')", []).expect("no lock is left behind");
        program.succeed(&["verify"]);
    }
    program.succeed(&["backup"]);
    program.succeed(&["prune", "--apply"]);
    let listed: BTreeSet<String> = program.snapshots().into_iter().collect();
    assert!(acknowledged.is_subset(&listed), "{acknowledged:?} {listed:?}");
    for id in &listed {
        program.succeed(&["verify", "--snapshot", id]);
    }
    assert_eq!(ids(&program, "snapshots", ".db.zst"), listed, "orphans are swept");
    assert_eq!(names(&program.path("data")), ["app.db", "app.db-shm", "app.db-wal"]);
}

fn with_snapshot() -> Program {
    with_snapshot_of(FILL)
}

/// Removes what earlier restores kept.
fn remove_kept(program: &Program) {
    for name in names(&program.path("data")) {
        if name.contains(".pre-restore-") {
            fs::remove_file(program.path("data").join(name)).expect("removed");
        }
    }
}

#[test]
fn a_restore_killed_at_any_moment_leaves_the_old_or_the_new_database() {
    let program = with_snapshot();
    let id = program.snapshots().remove(0);
    let restore = ["restore", "--snapshot", &id];
    let output = program.path("timing.db").display().to_string();
    let whole = program.run(&["restore", "--output", &output]).took;
    let mut seen = BTreeSet::new();
    for round in 0..ROUNDS {
        let change = Connection::open(program.database()).expect("opens");
        change.execute_batch("UPDATE t SET word = 'new' WHERE word IS NOT NULL").expect("changes");
        drop(change);
        let running = program.start(&restore);
        std::thread::sleep(moment(round, whole));
        running.end(Signal::KILL);
        assert!(program.database().exists(), "at no moment is there no database");
        // Starting the application through the daemon settles what the crash left. (It may also store
        // a snapshot, so that what is restored is named.)
        let settled = program.run(&["run", "--", "true"]);
        assert_eq!(settled.code, Some(0), "{settled:?}");
        let word = word(&program.database());
        assert!(word == "old" || word == "new", "{word}");
        seen.insert(word);
        remove_kept(&program);
        // Of SQLite's own files the kill may have left an unused journal.
        let is_companion = |name: &String| name.starts_with("app.db-");
        let left: Vec<String> =
            names(&program.path("data")).into_iter().filter(|name| !is_companion(name)).collect();
        assert_eq!(left, ["app.db"], "round {round}: nothing is left over");
    }
    assert!(seen.contains("new"), "some were killed before the swap");
    program.succeed(&restore);
    assert_eq!(word(&program.database()), "old");
}

const KEPT: &str = "app.db.pre-restore-20261121T140500.000Z";
const COPY: &str = ".lifeboat-copy-abcdef";

/// Restores to `COPY` and notes the swap that is about to happen, as the program does.
fn intend(program: &Program) {
    let copy = program.path("data").join(COPY).display().to_string();
    program.succeed(&["restore", "--output", &copy]);
    let intent = format!(r#"{{"format":1,"copy":"{COPY}","kept":"{KEPT}"}}"#);
    fs::write(program.path("data/.app.db.lifeboat-intent"), intent).expect("written");
}

#[test]
fn every_state_a_swap_can_be_left_in_is_settled() {
    type Progress = fn(&Path);
    let keep: Progress = |data| fs::hard_link(data.join("app.db"), data.join(KEPT)).expect("linked");
    let swap: Progress = |data| fs::rename(data.join(COPY), data.join("app.db")).expect("renamed");
    let states: [(&str, &[Progress], &str, &[&str]); 4] = [
        ("noted", &[], "new", &["app.db"]),
        ("old one kept under a second name", &[keep], "new", &["app.db"]),
        ("renamed", &[keep, swap], "old", &["app.db", KEPT]),
        (
            "renamed onto nothing",
            &[|data| fs::remove_file(data.join("app.db")).expect("removed"), swap],
            "old",
            &["app.db"],
        ),
    ];
    for (state, progress, expected, left) in states {
        for settle in [&["run", "--", "true"][..], &["restore"]] {
            let program = with_snapshot();
            intend(&program);
            progress.iter().for_each(|step| step(&program.path("data")));
            let ended = program.run(settle);
            assert_eq!(ended.code, Some(0), "{state}: {ended:?}");
            if settle[0] == "run" {
                assert_eq!(names(&program.path("data")), left, "{state}");
                assert_eq!(word(&program.database()), expected, "{state}");
                continue;
            }
            assert_eq!(word(&program.database()), "old", "{state}: and then it is restored");
            let found = names(&program.path("data"));
            let of_swap = found.iter().any(|name| name == COPY || name.contains("intent"));
            assert!(!of_swap, "{state}: {found:?}");
        }
    }
}

#[test]
fn the_companions_of_a_swap_that_was_undone_are_back() {
    let program = with_snapshot();
    intend(&program);
    let data = program.path("data");
    // A database that could not be opened, whose log was moved away already.
    fs::write(data.join("app.db"), "garbage ".repeat(1000)).expect("written");
    fs::hard_link(data.join("app.db"), data.join(KEPT)).expect("linked");
    fs::write(data.join(format!("{KEPT}-wal")), "the log").expect("written");
    let before = digest(&data.join("app.db"));
    let ended = program.run(&["run", "--", "true"]);
    assert!(ended.stderr.contains("an interrupted restore was undone"), "{ended:?}");
    // The index is SQLite's, made by the attempt at a backup that follows.
    let found: Vec<String> = names(&data).into_iter().filter(|name| name != "app.db-shm").collect();
    assert_eq!(found, ["app.db", "app.db-wal"]);
    assert_eq!(digest(&data.join("app.db")), before);
    assert_eq!(fs::read(data.join("app.db-wal")).expect("readable"), b"the log");
}

#[test]
fn a_swap_that_is_undone_does_not_remove_what_is_no_longer_the_database() {
    let program = with_snapshot();
    intend(&program);
    let data = program.path("data");
    fs::rename(data.join("app.db"), data.join(KEPT)).expect("somebody removed the first of two names");
    let ended = program.run(&["restore"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert!(ended.stderr.contains("was given up"), "{ended:?}");
    assert_eq!(word(&data.join(KEPT)), "new");
    assert_eq!(names(&data), ["app.db", KEPT]);
}

#[test]
fn a_note_that_cannot_be_read_stops_everything_and_changes_nothing() {
    let naming = |copy: &str, kept: &str| format!(r#"{{"format":1,"copy":"{copy}","kept":"{kept}"}}"#);
    for note in [
        String::new(),
        "{".to_owned(),
        r#"{"format":2,"copy":".lifeboat-copy-x","kept":"app.db.pre-restore-x"}"#.to_owned(),
        naming("../.lifeboat-copy-x", KEPT),
        naming(".lifeboat-copy-/../app.db", KEPT),
        // What is called the copy is removed.
        naming("app.db", KEPT),
        naming("other.db", KEPT),
        naming(COPY, "other.db"),
        naming(COPY, "other.db.pre-restore-x"),
        r#"{"format":1,"copy":"other.db","kept":"app.db.pre-restore-x","puts_back":true}"#.to_owned(),
    ] {
        let program = with_snapshot();
        fs::create_dir(program.path("data/.lifeboat-copy-")).expect("a folder");
        fs::write(program.path("data/other.db"), "somebody's").expect("written");
        fs::write(program.path("data/.app.db.lifeboat-intent"), &note).expect("written");
        let before = names(&program.path("data"));
        for arguments in [&["run", "--", "true"][..], &["restore"]] {
            program.run(arguments).refused(8, &["interrupted restore", "lifeboat-intent"]);
        }
        assert_eq!(names(&program.path("data")), before, "{note}");
    }
}
