//! `lifeboat restore --undo`, the real program: what a restore replaced comes back, and how much of it is kept.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::Path;

use lifeboat::error::ErrorKind;
use rustix::process::Signal;

use crate::support::files::{copy_tree, digest, names, state};
use crate::support::mount::SmallDisk;
use crate::support::program::Program;
use crate::support::word::{with_snapshot_of, word};

const TARGET: i32 = ErrorKind::Target.exit_code() as i32;
const NOT_FOUND: i32 = ErrorKind::NotFound.exit_code() as i32;
const USAGE: Option<i32> = Some(2);

const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(word TEXT); INSERT INTO t VALUES ('old');";

fn with_snapshot() -> Program {
    with_snapshot_of(FILL)
}

fn say(program: &Program, word: &str) {
    program.app("SELECT 1").execute("UPDATE t SET word = ?1", [word]).expect("changes");
}

/// The names of what restores replaced, oldest first.
fn kept(program: &Program) -> Vec<String> {
    names(&program.path("data")).into_iter().filter(|name| name.contains(".pre-restore-")).collect()
}

#[test]
fn what_was_replaced_comes_back_and_once_more_is_there_and_back() {
    let program = with_snapshot();
    program.succeed(&["restore"]);
    let replaced = kept(&program);
    let before = state(&program.path("data"));
    let planned = program.json(&["restore", "--undo", "--dry-run"]);
    assert!(planned["puts_back"].as_str().expect("a path").ends_with(&replaced[0]), "{planned}");
    assert!(program.succeed(&["restore", "--undo", "--dry-run"]).contains("put back"));
    assert_eq!(state(&program.path("data")), before, "a dry run changes nothing");

    let undone = program.json(&["restore", "--undo"]);
    assert!(undone["put_back"].as_str().expect("a path").ends_with(&replaced[0]), "{undone}");
    assert_eq!(word(&program.database()), "new");
    assert!(!program.path("data").join(&replaced[0]).exists());
    assert_eq!(kept(&program).len(), 1);
    assert_eq!(word(&program.path("data").join(&kept(&program)[0])), "old");

    let printed = program.succeed(&["restore", "--undo"]);
    assert!(printed.contains("what stood there is kept at"), "{printed}");
    assert_eq!(word(&program.database()), "old");
    assert_eq!(kept(&program).len(), 1);
}

#[test]
fn where_nothing_is_kept_there_is_nothing_to_undo() {
    let program = with_snapshot();
    for name in ["app.db.pre-restore-mine", "app.db.pre-restore-20261121T140500.000Z-wal"] {
        fs::write(program.path("data").join(name), "not a database that was replaced").expect("written");
    }
    let before = state(&program.path("data"));
    for arguments in [&["restore", "--undo"][..], &["restore", "--undo", "--dry-run"]] {
        program.run(arguments).refused(NOT_FOUND, &["no restore to undo", "app.db"]);
        assert_eq!(state(&program.path("data")), before);
    }
    for with in [&["--output", "x.db"][..], &["--accept-damage"], &["--at", "2026-11-21T14:05:00Z"]] {
        assert_eq!(program.run(&[&["restore", "--undo"], with].concat()).code, USAGE, "{with:?}");
    }
}

#[test]
fn an_undo_needs_the_database_for_itself_as_a_restore_does() {
    let program = with_snapshot();
    program.succeed(&["restore"]);
    for mode in ["wal", "delete"] {
        let app = program.app(&format!("PRAGMA journal_mode={mode}; SELECT count(*) FROM t"));
        let before = state(&program.path("data"));
        program.run(&["restore", "--undo"]).refused(TARGET, &["open in another process", "app.db"]);
        assert_eq!(state(&program.path("data")), before, "{mode}");
        drop(app);
    }
    program.succeed(&["restore", "--undo"]);
    assert_eq!(word(&program.database()), "new");
}

#[test]
fn an_undo_without_an_answer_from_storage_is_done_and_says_what_that_means() {
    let program = with_snapshot();
    program.succeed(&["restore"]);
    // It takes connections, and says nothing.
    let hole = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let program = program
        .with("BACKUP_DIR", "")
        .with("BACKUP_S3_BUCKET", "bucket")
        .with("AWS_ENDPOINT_URL", format!("http://{}", hole.local_addr().expect("bound")))
        .with("AWS_REGION", "eu-central-1")
        .with("AWS_ACCESS_KEY_ID", "key")
        .with("AWS_SECRET_ACCESS_KEY", "very-secret");
    let printed = program.succeed(&["restore", "--undo"]);
    assert_eq!(word(&program.database()), "new");
    for told in ["put back", "did not answer in time", "lifeboat adopt"] {
        assert!(printed.contains(told), "no {told}: {printed}");
    }
    let again = program.json(&["restore", "--undo"]);
    assert_eq!(again["follows"], serde_json::Value::Null);
    assert!(again["remarks"][0].as_str().expect("a remark").contains("lifeboat adopt"), "{again}");
}

#[test]
fn owner_mode_and_links_are_what_they_were() {
    let program = with_snapshot();
    let real = program.path("real");
    fs::create_dir(&real).expect("a folder");
    fs::rename(program.database(), real.join("main.db")).expect("renamed");
    symlink(real.join("main.db"), program.database()).expect("linked");
    fs::set_permissions(real.join("main.db"), Permissions::from_mode(0o640)).expect("set");
    // Only root can give a file away; whoever runs this, it stays whose it was.
    let _ = chown(real.join("main.db"), Some(1234), Some(4321));
    let like = |path: &Path| {
        let metadata = fs::metadata(path).expect("there");
        (metadata.mode(), metadata.uid(), metadata.gid())
    };
    let before = like(&real.join("main.db"));
    program.succeed(&["restore"]);
    program.succeed(&["restore", "--undo"]);
    assert_eq!(like(&real.join("main.db")), before);
    assert_eq!(word(&real.join("main.db")), "new");
    assert!(fs::symlink_metadata(program.database()).expect("there").is_symlink());
    assert!(kept(&program).is_empty(), "beside the real file, not beside the link");
}

/// A damaged database and its log are replaced by a restore: both are kept as they were.
fn with_evidence() -> Program {
    let program = with_snapshot();
    fs::write(program.database(), "garbage ".repeat(1000)).expect("written");
    fs::write(program.path("data/app.db-wal"), "the log").expect("written");
    program.succeed(&["restore"]);
    assert_eq!(word(&program.database()), "old");
    program
}

#[test]
fn the_log_of_what_is_put_back_comes_with_it() {
    let program = with_evidence();
    program.succeed(&["restore", "--undo"]);
    let data = program.path("data");
    assert_eq!(fs::read(data.join("app.db")).expect("there"), "garbage ".repeat(1000).as_bytes());
    assert_eq!(fs::read(data.join("app.db-wal")).expect("there"), b"the log");
    assert_eq!(kept(&program).len(), 1, "{:?}", kept(&program));
    assert_eq!(word(&data.join(&kept(&program)[0])), "old");
}

const NOW_KEPT: &str = "app.db.pre-restore-29991231T000000.000Z";

/// Notes the undo that is about to happen, as the program does; the name of what is put back.
fn intend(program: &Program) -> String {
    let copy = kept(program).remove(0);
    let intent = format!(r#"{{"format":1,"copy":"{copy}","kept":"{NOW_KEPT}","puts_back":true}}"#);
    fs::write(program.path("data/.app.db.lifeboat-intent"), intent).expect("written");
    copy
}

#[test]
fn every_state_an_undo_can_be_left_in_is_settled_and_loses_nothing() {
    type Step = fn(&Path, &str);
    let keep: Step = |data, _| fs::hard_link(data.join("app.db"), data.join(NOW_KEPT)).expect("linked");
    let swap: Step = |data, copy| fs::rename(data.join(copy), data.join("app.db")).expect("renamed");
    let follow: Step = |data, copy| {
        fs::rename(data.join(format!("{copy}-wal")), data.join("app.db-wal")).expect("renamed");
    };
    for (state, steps, is_undone) in [
        ("noted", &[][..], false),
        ("the present one kept under a second name", &[keep], false),
        ("renamed", &[keep, swap], true),
        ("renamed, and the log too", &[keep, swap, follow], true),
    ] {
        for settle in [&["run", "--", "true"][..], &["restore", "--undo"]] {
            let program = with_evidence().with("BACKUP_ON_SHUTDOWN", "false");
            let copy = intend(&program);
            let data = program.path("data");
            let (present, replaced) = (digest(&data.join("app.db")), digest(&data.join(&copy)));
            steps.iter().for_each(|step| step(&data, &copy));
            let ended = program.run(settle);
            assert_eq!(ended.code, Some(0), "{state}: {ended:?}");
            let done = if is_undone { "was finished" } else { "was undone" };
            assert!(ended.stderr.contains(done), "{state}: {ended:?}");
            // A second undo puts back what the first one replaced.
            let is_back = is_undone == (settle[0] == "run");
            assert_eq!(digest(&data.join("app.db")), if is_back { replaced } else { present }, "{state}");
            let other = kept(&program).into_iter().find(|name| !name.ends_with("-wal")).expect("kept");
            assert_eq!(digest(&data.join(&other)), if is_back { present } else { replaced }, "{state}");
            let log = if is_back { data.join("app.db-wal") } else { data.join(format!("{other}-wal")) };
            assert_eq!(fs::read(log).expect("there"), b"the log", "{state}");
            let left = names(&data);
            assert!(!left.iter().any(|name| name.contains("intent")), "{state}: {left:?}");
        }
    }
}

#[test]
fn an_undo_killed_at_any_moment_leaves_one_of_the_two_databases_and_loses_neither() {
    const ROUNDS: u32 = 20;
    let program = with_snapshot().with("BACKUP_ON_SHUTDOWN", "false");
    program.succeed(&["restore"]);
    let whole = program.run(&["restore", "--undo"]).took;
    for round in 0..ROUNDS {
        let running = program.start(&["restore", "--undo"]);
        std::thread::sleep(whole * (round * 7 % ROUNDS) / ROUNDS * 5 / 4);
        running.end(Signal::KILL);
        assert!(program.database().exists(), "at no moment is there no database");
        let settled = program.run(&["run", "--", "true"]);
        assert_eq!(settled.code, Some(0), "{settled:?}");
        let other = kept(&program);
        assert_eq!(other.len(), 1, "round {round}: {other:?}");
        let mut words = [word(&program.database()), word(&program.path("data").join(&other[0]))];
        words.sort();
        assert_eq!(words, ["new", "old"], "round {round}");
    }
}

#[test]
fn the_newest_that_restores_replaced_are_kept_and_no_more() {
    let program = with_snapshot().with("BACKUP_KEEP_REPLACED", "2");
    fs::write(program.path("data/app.db.pre-restore-mine"), "somebody's").expect("written");
    for round in 0..5 {
        say(&program, &format!("round {round}"));
        let planned = program.json(&["restore", "--dry-run"]);
        let restored = program.json(&["restore"]);
        assert_eq!(planned["gives_up"], restored["gave_up"], "the plan says what goes");
        let gone = restored["gave_up"].as_array().expect("a list").len();
        assert_eq!(gone, usize::from(round >= 2), "round {round}: {restored}");
    }
    let kept = kept(&program);
    let words: Vec<String> = kept
        .iter()
        .filter(|name| !name.ends_with("mine"))
        .map(|name| word(&program.path("data").join(name)))
        .collect();
    assert_eq!(words, ["round 3", "round 4"]);
    assert!(program.path("data/app.db.pre-restore-mine").exists());
    program.succeed(&["restore", "--undo"]);
    assert_eq!(word(&program.database()), "round 4");
}

#[test]
fn a_crash_loop_that_restores_at_every_start_fills_no_disk() {
    let program =
        with_snapshot().with("BACKUP_RESTORE_ON_BOOT", "always").with("BACKUP_ON_SHUTDOWN", "false");
    for _ in 0..6 {
        let ended = program.run(&["run", "--", "false"]);
        assert_eq!(ended.code, Some(1), "{ended:?}");
    }
    assert_eq!(kept(&program).len(), 3, "{:?}", kept(&program));
}

#[test]
fn a_restore_that_fails_or_replaces_nothing_gives_nothing_up() {
    let program = with_snapshot().with("BACKUP_KEEP_REPLACED", "3");
    for _ in 0..3 {
        program.succeed(&["restore"]);
    }
    let before = kept(&program);
    let program = program.with("BACKUP_KEEP_REPLACED", "1");
    let app = program.app("SELECT count(*) FROM t");
    assert_eq!(program.run(&["restore"]).code, Some(TARGET));
    drop(app);
    let copy = program.path("data/copy.db").display().to_string();
    program.succeed(&["restore", "--output", &copy]);
    assert_eq!(kept(&program), before);
    program.succeed(&["restore"]);
    assert_eq!(kept(&program).len(), 1);
}

#[test]
fn where_there_is_no_room_it_is_said_what_earlier_restores_take() {
    let program = with_snapshot();
    program.succeed(&["restore"]);
    fs::create_dir(program.path("small")).expect("a folder");
    let _disk = SmallDisk::mount(program.path("small"), "8m");
    for name in names(&program.path("data")) {
        copy_tree(&program.path("data").join(&name), &program.path("small").join(&name));
    }
    let before = state(&program.path("small"));
    let database = program.path("small/app.db").display().to_string();
    let ended = program.run(&["restore", "--database", &format!("app={database}")]);
    ended.refused(TARGET, &["not enough space", "earlier restores", ".pre-restore-"]);
    assert_eq!(state(&program.path("small")), before);
}
