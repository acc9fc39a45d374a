//! `lifeboat restore`, the real program: all of it or nothing, onto every kind of target.

use std::fs::{self, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use lifeboat::error::ErrorKind;

use crate::support::files::{State, copy_tree, digest, names, state};
use crate::support::mount::SmallDisk;
use crate::support::program::{Ended, Program};
use crate::support::word::{with_snapshot_of, word};

const TARGET: i32 = ErrorKind::Target.exit_code() as i32;
const NOT_FOUND: i32 = ErrorKind::NotFound.exit_code() as i32;

const FILL: &str =
    "PRAGMA journal_mode=wal; CREATE TABLE t(word TEXT, x BLOB); INSERT INTO t(word) VALUES ('old');
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<300)
    INSERT INTO t(x) SELECT randomblob(1000) FROM n;";

fn with_snapshot() -> Program {
    with_snapshot_of(FILL)
}

/// The one name under which a restore kept what it replaced, with this ending.
fn kept(program: &Program, ending: &str) -> PathBuf {
    let names = names(&program.path("data"));
    let is_kept = |name: &&String| name.starts_with("app.db.pre-restore-") && name.ends_with(ending);
    let kept: Vec<&String> = names.iter().filter(is_kept).collect();
    assert_eq!(kept.len(), 1, "{names:?}");
    program.path("data").join(kept[0])
}

fn changes_nothing(program: &Program, restore: impl FnOnce() -> Ended) -> Ended {
    let before: State = state(&program.path("data"));
    let ended = restore();
    assert_eq!(state(&program.path("data")), before, "{ended:?}");
    ended
}

#[test]
fn the_old_database_is_kept_with_all_that_was_in_its_log() {
    let program = with_snapshot();
    let printed = program.succeed(&["restore"]);
    assert!(printed.contains("the old database is kept at"), "{printed}");
    assert_eq!(word(&program.database()), "old");
    assert_eq!(word(&kept(&program, "Z")), "new");
    // And back again.
    fs::rename(kept(&program, "Z"), program.database()).expect("renames");
    assert_eq!(word(&program.database()), "new");
}

#[test]
fn a_database_that_somebody_has_open_is_refused() {
    for (mode, hold) in [
        ("wal", "SELECT 1"),
        ("wal", "BEGIN; SELECT count(*) FROM t"),
        ("wal", "BEGIN IMMEDIATE; INSERT INTO t(word) VALUES (NULL)"),
        ("delete", "SELECT 1"),
        ("delete", "BEGIN; SELECT count(*) FROM t"),
        ("delete", "BEGIN IMMEDIATE; INSERT INTO t(word) VALUES (NULL)"),
    ] {
        let program = with_snapshot();
        let app = program.app(&format!("PRAGMA journal_mode={mode}; SELECT count(*) FROM t; {hold}"));
        let ended = changes_nothing(&program, || program.run(&["restore"]));
        ended.refused(TARGET, &["open in another process", "app.db"]);
        drop(app);
        assert_eq!(word(&program.database()), "new", "{mode} {hold}");
        program.succeed(&["restore"]);
        assert_eq!(word(&program.database()), "old", "{mode} {hold}");
    }
}

/// Leaves what a crash does: the database (or nothing, or garbage in its place) and its companion.
fn leave_behind(program: &Program, companion: &str, in_its_place: Option<&str>) {
    let app = match companion {
        "-wal" => {
            program.app("PRAGMA wal_autocheckpoint=0; UPDATE t SET word='stale' WHERE word IS NOT NULL")
        }
        _ => program.app(
            "PRAGMA journal_mode=delete; PRAGMA cache_size=1; BEGIN IMMEDIATE;
             UPDATE t SET word='stale' WHERE word IS NOT NULL; UPDATE t SET x=randomblob(1000)",
        ),
    };
    copy_tree(&program.path("data"), &program.path("crashed"));
    drop(app);
    fs::remove_dir_all(program.path("data")).expect("removed");
    fs::rename(program.path("crashed"), program.path("data")).expect("renamed");
    let found = names(&program.path("data"));
    assert!(found.contains(&format!("app.db{companion}")), "{found:?}");
    match in_its_place {
        None => fs::remove_file(program.database()).expect("removed"),
        Some(garbage) => fs::write(program.database(), garbage.repeat(1000)).expect("written"),
    }
}

#[test]
fn a_stale_companion_is_moved_away_and_not_replayed() {
    for (companion, in_its_place, is_evidence) in [
        ("-wal", None, true),
        ("-wal", Some("garbage "), true),
        ("-journal", None, true),
        // Whoever opens what stands there, SQLite rolls a journal back into it, and takes away what
        // lies beside an empty file: to SQLite it belongs to nothing.
        ("-journal", Some("garbage "), false),
        ("-wal", Some(""), false),
        ("-journal", Some(""), false),
    ] {
        let program = with_snapshot();
        leave_behind(&program, companion, in_its_place);
        let stale = digest(&program.path(&format!("data/app.db{companion}")));
        program.succeed(&["restore"]);
        assert_eq!(word(&program.database()), "old", "{companion} {in_its_place:?}");
        if is_evidence {
            assert_eq!(digest(&kept(&program, companion)), stale, "{companion} {in_its_place:?}");
        }
    }
}

#[test]
fn a_symbolic_link_stays_and_what_it_points_to_is_replaced() {
    let program = with_snapshot();
    fs::create_dir(program.path("real")).expect("a folder");
    fs::rename(program.database(), program.path("real/store.db")).expect("renamed");
    symlink("../real/store.db", program.database()).expect("a link");
    program.succeed(&["restore"]);
    assert!(fs::symlink_metadata(program.database()).expect("there").is_symlink());
    assert_eq!(word(&program.path("real/store.db")), "old");
    assert_eq!(names(&program.path("data")), ["app.db"], "nothing is beside the link");
    assert!(names(&program.path("real")).iter().any(|name| name.starts_with("store.db.pre-restore-")));
}

#[test]
fn what_cannot_be_a_database_is_not_replaced() {
    type Place = fn(&Path);
    let places: [(&str, Place); 4] = [
        ("not a regular file", |path| fs::create_dir(path).expect("a folder")),
        ("a symbolic link to nothing", |path| symlink("nowhere", path).expect("a link")),
        ("cannot be reached", |path| symlink("app.db", path).expect("a link")),
        ("more than one hard link", |path| {
            fs::write(path, "one").expect("written");
            fs::hard_link(path, path.with_file_name("other.db")).expect("a link");
        }),
    ];
    for (what, place) in places {
        let program = with_snapshot();
        fs::remove_file(program.database()).expect("removed");
        place(&program.database());
        let before = names(&program.path("data"));
        program.run(&["restore"]).refused(TARGET, &[what, "app.db"]);
        assert_eq!(names(&program.path("data")), before, "{what}");
    }
}

#[test]
fn owner_and_mode_are_those_of_the_old_database_or_of_the_folder() {
    const OTHER_USER: u32 = 12_345;
    let is_root = rustix::process::geteuid().is_root();
    let owner = |path: &Path| {
        let metadata = fs::metadata(path).expect("there");
        (metadata.uid(), metadata.gid(), metadata.mode() & 0o7777)
    };
    for mode in [0o600, 0o640, 0o664] {
        let program = with_snapshot();
        fs::set_permissions(program.database(), Permissions::from_mode(mode)).expect("set");
        if is_root {
            chown(program.database(), Some(OTHER_USER), Some(OTHER_USER)).expect("given away");
        }
        let before = owner(&program.database());
        program.succeed(&["restore"]);
        assert_eq!(owner(&program.database()), before);
        assert_eq!(before.2, mode);
    }
    let program = with_snapshot();
    fs::remove_file(program.database()).expect("removed");
    if is_root {
        chown(program.path("data"), Some(OTHER_USER), Some(OTHER_USER)).expect("given away");
    }
    let folder = owner(&program.path("data"));
    program.succeed(&["restore"]);
    assert_eq!(owner(&program.database()), (folder.0, folder.1, 0o600));
}

#[test]
fn a_dry_run_says_what_would_be_done_and_does_nothing() {
    let program = with_snapshot();
    let ended = changes_nothing(&program, || program.run(&["restore", "--dry-run"]));
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let id = &program.snapshots()[0];
    for part in [id.as_str(), "app.db", "by one rename", "both hashes compared"] {
        assert!(ended.stdout.contains(part), "no `{part}`: {}", ended.stdout);
    }
    fs::remove_file(program.database()).expect("removed");
    let ended = changes_nothing(&program, || program.run(&["restore", "--dry-run"]));
    assert!(ended.stdout.contains("create "), "{ended:?}");
}

#[test]
fn an_output_that_exists_is_not_overwritten() {
    let program = with_snapshot();
    fs::write(program.path("data/output.db"), "precious").expect("written");
    let output = program.path("data/output.db").display().to_string();
    let ended = changes_nothing(&program, || program.run(&["restore", "--output", &output]));
    ended.refused(TARGET, &["exists already", "output.db"]);
    fs::remove_file(&output).expect("removed");
    program.succeed(&["restore", "--output", &output]);
    assert_eq!(word(Path::new(&output)), "old");
    assert_eq!(word(&program.database()), "new", "the configured database is another matter");
}

#[test]
fn a_disk_without_room_is_noticed_before_anything_is_written() {
    let program = with_snapshot();
    fs::create_dir(program.path("small")).expect("a folder");
    let _disk = SmallDisk::mount(program.path("small"), "8m");
    copy_tree(&program.database(), &program.path("small/app.db"));
    let database = program.path("small/app.db").display().to_string();
    let before = state(&program.path("small"));
    let ended = program.run(&["restore", "--database", &format!("app={database}")]);
    ended.refused(TARGET, &["not enough space", "nothing was changed"]);
    assert_eq!(state(&program.path("small")), before);
}

#[test]
fn a_disk_that_fills_up_midway_leaves_the_old_database() {
    let program = with_snapshot();
    let before = state(&program.path("data"));
    // The limit on the size of a file, in units of 512 bytes, stands for the full disk.
    let script = "trap '' XFSZ; ulimit -f 200; exec \"$0\" restore";
    let ended = Command::new("sh")
        .args(["-c", script, env!("CARGO_BIN_EXE_lifeboat")])
        .env("BACKUP_DATABASE", program.database())
        .env("BACKUP_DIR", program.path("backups"))
        .output()
        .expect("it runs");
    let stderr = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(TARGET), "{stderr}");
    assert!(stderr.contains("write the restored database"), "{stderr}");
    assert_eq!(state(&program.path("data")), before, "no copy is left and nothing has changed");
    program.succeed(&["restore"]);
    assert_eq!(word(&program.database()), "old");
}

#[test]
fn a_moment_is_the_newest_snapshot_at_or_before_it() {
    let program = Program::new();
    let app = program.app("CREATE TABLE t(word TEXT); INSERT INTO t VALUES ('0')");
    let mut taken = Vec::new();
    for number in 1..=3 {
        app.execute("UPDATE t SET word = ?1", [number.to_string()]).expect("updates");
        let report = program.json(&["backup"]);
        taken.push(report["snapshot"]["taken_at"].as_str().expect("a time").to_owned());
    }
    let time = |text: &str| text.parse::<jiff::Timestamp>().expect("a time");
    let shortly = jiff::SignedDuration::from_micros(1);
    for (at, expected) in [
        (time(&taken[0]), "1"),
        (time(&taken[1]) - shortly, "1"),
        (time(&taken[1]), "2"),
        (time(&taken[2]), "3"),
        (jiff::Timestamp::now(), "3"),
    ] {
        let output = program.path("moment.db");
        program.succeed(&["restore", "--at", &at.to_string(), "--output", &output.display().to_string()]);
        assert_eq!(word(&output), expected, "{at}");
        fs::remove_file(output).expect("removed");
    }
    let before_all = time(&taken[0]) - shortly;
    let ended = program.run(&["restore", "--at", &before_all.to_string(), "--output", "never.db"]);
    ended.refused(NOT_FOUND, &["no snapshot is that old", &format!("oldest=`{}`", taken[0])]);
    assert!(!program.path("never.db").exists());
    let both = program.run(&["restore", "--at", &taken[0], "--snapshot", &program.snapshots()[0]]);
    assert_eq!(both.code, Some(i32::from(ErrorKind::Config.exit_code())), "{both:?}");
}
