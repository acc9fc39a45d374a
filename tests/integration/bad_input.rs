//! What is no database, and what is no configuration: the real program says so in one line, with the
//! exit code of its kind, at once, and changes nothing.

use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use lifeboat::error::ErrorKind;

use crate::support::files::names;
use crate::support::program::Program;

const SOURCE: i32 = ErrorKind::Source.exit_code() as i32;
const BUSY: i32 = ErrorKind::Busy.exit_code() as i32;
const CONFIG: i32 = ErrorKind::Config.exit_code() as i32;

const FILL: &str = "CREATE TABLE t(x BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<100)
    INSERT INTO t SELECT randomblob(1000) FROM n;";

/// What stands in storage, all folders below included; nothing if there is no storage.
fn stored(program: &Program) -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().map(|entry| entry.expect("an entry")) {
            if entry.path().is_dir() {
                walk(&entry.path(), found);
            } else {
                found.push(entry.path().display().to_string());
            }
        }
    }
    let mut found = Vec::new();
    walk(&program.path("backups"), &mut found);
    found
}

/// Backs up what stands at `data/app.db`, which must be refused in time and leave no trace.
#[track_caller]
fn refuses(program: &Program, what: &str) {
    let before = names(&program.path("data"));
    let path = program.database().display().to_string();
    let ended = program.run(&["backup"]);
    ended.refused(SOURCE, &[&path, what]);
    assert!(ended.took < Duration::from_secs(10), "{ended:?}");
    assert_eq!(names(&program.path("data")), before, "nothing is created beside it");
    let data: Vec<String> =
        stored(program).into_iter().filter(|path| !path.ends_with(".lifeboat-lock")).collect();
    assert_eq!(data, Vec::<String>::new(), "nothing is created in storage");
}

#[test]
fn no_file_is_not_made_into_an_empty_database() {
    refuses(&Program::new(), "there is no database file");
}

#[test]
fn a_directory_is_refused() {
    let program = Program::new();
    fs::create_dir(program.database()).expect("a directory");
    refuses(&program, "this is a directory");
}

#[test]
fn a_fifo_is_refused_and_not_waited_for() {
    let program = Program::new();
    let made = Command::new("mkfifo").arg(program.database()).status().expect("mkfifo runs");
    assert!(made.success());
    refuses(&program, "this is a pipe");
}

#[test]
fn a_device_is_refused() {
    let program = Program::new();
    std::os::unix::fs::symlink("/dev/null", program.database()).expect("a link");
    refuses(&program, "this is a device");
}

#[test]
fn a_circle_of_links_is_refused() {
    let program = Program::new();
    std::os::unix::fs::symlink("app.db", program.database()).expect("a link");
    refuses(&program, "cannot be reached");
}

#[test]
fn bytes_that_are_no_database_are_refused() {
    let noise = |seed: u32| (0..20_000u32).map(|n| (n.wrapping_mul(seed) >> 13) as u8).collect::<Vec<u8>>();
    let texts =
        [b"not a database, but long enough to be one\n".repeat(100), noise(2_654_435_761), vec![0; 512]];
    for bytes in texts {
        let program = Program::new();
        fs::write(program.database(), &bytes).expect("written");
        refuses(&program, "not an SQLite database, or an encrypted one");
        assert_eq!(fs::read(program.database()).expect("readable"), bytes, "it is untouched");
    }
}

#[test]
fn an_encrypted_database_is_refused() {
    let program = Program::new();
    drop(program.app(FILL));
    // What encryption does to a file: every byte of every page looks random, the header too.
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 24) as u8
    };
    let encrypted: Vec<u8> =
        fs::read(program.database()).expect("readable").into_iter().map(|byte| byte ^ noise()).collect();
    fs::write(program.database(), encrypted).expect("written");
    refuses(&program, "encrypted");
}

#[test]
fn an_exclusive_lock_is_waited_for_no_longer_than_allowed() {
    let kept = "PRAGMA locking_mode=EXCLUSIVE; BEGIN IMMEDIATE; INSERT INTO t VALUES (1); COMMIT";
    // With a write-ahead log an exclusive transaction keeps no reader out.
    for (mode, lock) in [("delete", "BEGIN EXCLUSIVE"), ("delete", kept), ("wal", kept)] {
        let program = Program::new();
        drop(program.app(&format!("PRAGMA journal_mode={mode}; {FILL}")));
        let app = program.app(lock);
        let ended = program.run(&["backup", "--busy-timeout", "1s"]);
        ended.refused(BUSY, &["app.db", "locking_mode=EXCLUSIVE"]);
        assert!((0.9..8.0).contains(&ended.took.as_secs_f64()), "{mode} {lock}: {ended:?}");
        drop(app);
        program.succeed(&["backup", "--busy-timeout", "1s"]);
    }
}

/// Takes several snapshots and proves them, so that retention would remove all but the newest.
fn with_history() -> Program {
    let program = Program::new().with("BACKUP_RETENTION", "1l").with("BACKUP_PRUNE_SAFETY_AGE", "0s");
    let app = program.app(FILL);
    for _ in 0..3 {
        app.execute("INSERT INTO t VALUES (randomblob(1000))", []).expect("inserts");
        program.succeed(&["backup"]);
    }
    program.succeed(&["verify"]);
    program
}

#[test]
fn an_empty_or_shrunken_source_is_stored_and_keeps_everything_older() {
    type Loss = fn(&Path);
    let losses: [(&str, Loss); 3] = [
        ("empty", |path| fs::write(path, "").expect("emptied")),
        ("empty", |path| {
            fs::remove_file(path).expect("removed");
            let empty = rusqlite::Connection::open(path).expect("opens");
            empty.execute_batch("PRAGMA user_version=1").expect("a database without a table");
        }),
        ("shrunken", |path| {
            let app = rusqlite::Connection::open(path).expect("opens");
            app.execute_batch("DELETE FROM t WHERE rowid > 10; VACUUM").expect("shrinks");
        }),
    ];
    for (flag, loss) in losses {
        let program = with_history();
        loss(&program.database());
        let printed = program.succeed(&["backup"]);
        assert!(printed.contains(&format!("source was {flag}")), "{printed}");
        let before = program.snapshots();
        assert_eq!(before.len(), 4);
        let printed = program.succeed(&["prune", "--apply"]);
        assert!(printed.contains("removed 0 snapshots"), "{printed}");
        assert_eq!(program.snapshots(), before, "everything older is kept");
        let printed = program.succeed(&["prune"]);
        assert!(printed.contains(&format!("the newest snapshot is {flag}")), "{printed}");
    }
    let program = with_history();
    program.succeed(&["prune", "--apply"]);
    assert_eq!(program.snapshots().len(), 1, "without a loss the policy is followed");
}

#[test]
fn a_loss_is_not_forgotten_with_the_next_snapshot_but_only_when_it_is_accepted() {
    let program = with_history();
    let good = program.snapshots();
    fs::write(program.database(), "").expect("emptied");
    program.succeed(&["backup"]);
    // An application that starts on nothing makes its tables anew, and goes on.
    let app = program.app("CREATE TABLE t(x)");
    for _ in 0..2 {
        app.execute("INSERT INTO t VALUES (randomblob(1000))", []).expect("inserts");
        let printed = program.succeed(&["backup"]);
        assert!(printed.contains("source was shrunken"), "{printed}");
        program.succeed(&["verify"]);
        program.succeed(&["prune", "--apply"]);
    }
    let listed = program.snapshots();
    assert!(good.iter().all(|id| listed.contains(id)), "{good:?} are in {listed:?}");
    let printed = program.succeed(&["backup"]);
    assert!(printed.contains("unchanged"), "{printed}");

    // Nothing was written since, and yet there is something to say of it.
    let printed = program.succeed(&["backup", "--accept-shrunken"]);
    assert!(printed.contains("stored") && !printed.contains("shrunken"), "{printed}");
    app.execute("INSERT INTO t VALUES (randomblob(1000))", []).expect("inserts");
    let printed = program.succeed(&["backup"]);
    assert!(printed.contains("stored") && !printed.contains("shrunken"), "{printed}");
    program.succeed(&["verify"]);
    program.succeed(&["prune", "--apply"]);
    assert_eq!(program.snapshots().len(), 1, "what was lost was meant to be, so the policy is followed");
}

#[test]
fn a_loss_beside_a_damaged_newest_manifest_is_seen_all_the_same() {
    let program = with_history();
    let newest = program.snapshots().remove(0);
    fs::write(program.path(&format!("backups/app/manifests/{newest}.json")), "{").expect("damaged");
    drop(program.app("DELETE FROM t WHERE rowid > 10; VACUUM"));
    let printed = program.succeed(&["backup"]);
    assert!(printed.contains("source was shrunken"), "{printed}");
}

#[test]
fn a_database_that_grows_back_has_lost_nothing() {
    let program = with_history();
    drop(program.app("DELETE FROM t; VACUUM"));
    assert!(program.succeed(&["backup"]).contains("shrunken"));
    drop(program.app(FILL.trim_start_matches("CREATE TABLE t(x BLOB);")));
    let printed = program.succeed(&["backup"]);
    assert!(printed.contains("stored") && !printed.contains("shrunken"), "{printed}");
}

#[test]
fn a_wrong_schedule_names_its_key_and_field() {
    for (variable, key) in [
        ("BACKUP_SCHEDULE", "backup.schedule"),
        ("BACKUP_VERIFY_SCHEDULE", "verify.schedule"),
        ("BACKUP_PRUNE_SCHEDULE", "retention.prune_schedule"),
    ] {
        for (schedule, what) in [
            ("61 * * * *", "field 1 (minute)"),
            ("0 0 31 2 *", "no date ever matches"),
            ("every 5 minutes", "five fields"),
            ("* * * * * *", "five fields"),
        ] {
            let program = Program::new().with(variable, schedule);
            drop(program.app(FILL));
            program.run(&["run"]).refused(CONFIG, &[key, what, schedule]);
        }
    }
}

#[test]
fn a_wrong_setting_names_itself() {
    for (variable, value, parts) in [
        ("BACKUP_SHEDULE", "* * * * *", &["BACKUP_SHEDULE", "BACKUP_SCHEDULE"][..]),
        ("BACKUP_BUSY_TIMEOUT", "30", &["backup.busy_timeout", "unit"]),
        ("BACKUP_WAL_GROWTH_MAX", "5 parsecs", &["backup.wal_growth_max"]),
        ("BACKUP_ZSTD_LEVEL", "20", &["backup.zstd_level", "from 1 to 19"]),
        ("BACKUP_RETENTION", "0h", &["retention.keep"]),
        ("BACKUP_RETENTION", "7x", &["retention.keep", "7x"]),
        ("BACKUP_RESTORE_ON_BOOT", "sometimes", &["restore.on_boot", "if-missing"]),
        ("BACKUP_USE_AWS", "true", &["storage.use_aws", "BACKUP_S3_BUCKET"]),
        ("BACKUP_HTTP_ADDR", "9091", &["http.addr"]),
        ("BACKUP_LOG", "lifeboat=loud", &["log.level"]),
        ("BACKUP_DATABASE", "", &["BACKUP_DATABASE"]),
        ("BACKUP_DATABASE", "sqlite::memory:", &["databases.paths"]),
        ("BACKUP_DATABASE", "file:app.db?mode=memory", &["databases.paths"]),
        ("BACKUP_DATABASE", "postgres://localhost/app", &["databases.paths", "SQLite"]),
        ("BACKUP_DATABASE", "/a/app.db,/b/app.db", &["two have one name", "/a/app.db", "/b/app.db"]),
    ] {
        let program = Program::new().with(variable, value);
        program.run(&["run"]).refused(CONFIG, parts);
        assert_eq!(stored(&program), Vec::<String>::new(), "{variable}={value}");
    }
}

#[test]
fn a_wrong_file_names_itself_and_the_key() {
    for (text, parts) in [
        ("[backup]\nshedule = \"* * * * *\"\n", &["backup.shedule", "backup.schedule"][..]),
        ("[bakcup]\nschedule = \"* * * * *\"\n", &["bakcup.schedule"]),
        ("[backup]\nbusy_timeout = 30\n", &["backup.busy_timeout", "unit"]),
        ("[backup]\nschedule = [\"* * * * *\"]\n", &["backup.schedule"]),
        ("[backup]\n\nschedule = \n", &["line=`3`"]),
    ] {
        let program = Program::new();
        fs::write(program.path("lifeboat.toml"), text).expect("written");
        program
            .run(&["backup", "--config", "lifeboat.toml"])
            .refused(CONFIG, &[&["lifeboat.toml"], parts].concat());
    }
    Program::new().run(&["backup", "--config", "absent.toml"]).refused(CONFIG, &["absent.toml"]);
}

#[test]
fn a_variable_that_is_no_text_is_refused() {
    let program = Program::new();
    let ended = Command::new(env!("CARGO_BIN_EXE_lifeboat"))
        .arg("config")
        .env_clear()
        .env("BACKUP_DIR", std::ffi::OsStr::from_bytes(b"/tmp/\xff"))
        .current_dir(program.dir.path())
        .output()
        .expect("it runs");
    assert_eq!(ended.status.code(), Some(CONFIG));
    assert!(String::from_utf8_lossy(&ended.stderr).contains("BACKUP_DIR"));
}

#[test]
fn one_bad_database_does_not_keep_the_others_from_being_backed_up() {
    let program = Program::new();
    let paths =
        ["data/one.db", "data/two.db", "data/three.db", "data/four.db"].map(|name| program.path(name));
    let list = paths.iter().map(|path| path.display().to_string()).collect::<Vec<_>>().join(",");
    let program = program.with("BACKUP_DATABASE", list);
    for good in [&paths[1], &paths[3]] {
        let app = rusqlite::Connection::open(good).expect("opens");
        app.execute_batch(FILL).expect("filled");
    }
    fs::write(&paths[0], "no database, whatever it is called").expect("written");
    fs::create_dir(&paths[2]).expect("created");

    let ended = program.run(&["backup", "--json"]);
    let printed: serde_json::Value = serde_json::from_str(&ended.stdout).expect("one array");
    let told = |at: usize| (printed[at]["database"].as_str(), printed[at]["outcome"].as_str());
    assert_eq!(printed.as_array().map(Vec::len), Some(2));
    assert_eq!([told(0), told(1)], [(Some("two"), Some("stored")), (Some("four"), Some("stored"))]);
    let first: serde_json::Value =
        serde_json::from_str(ended.stderr.lines().last().expect("an error")).expect("JSON");
    let message = first["error"]["message"].as_str().expect("a message");
    assert!(message.starts_with("back up one: "), "{message}");
    assert!(ended.stderr.contains("back up three: "), "{}", ended.stderr);
    assert_ne!(ended.code, Some(0));

    let ended = program.run(&["backup"]);
    let lines: Vec<&str> = ended.stdout.lines().collect();
    assert!(lines.len() == 2 && lines[0].starts_with("two: unchanged since "), "{ended:?}");
    program.succeed(&["backup", "--name", "four"]);
}

#[test]
fn what_is_not_there_has_its_own_exit_code() {
    let program = Program::new();
    drop(program.app(FILL));
    let missing = i32::from(ErrorKind::NotFound.exit_code());
    program.run(&["restore", "--output", "x.db"]).refused(missing, &["there is no snapshot yet", "app"]);
    program.succeed(&["backup"]);
    let id = "20200101T000000.000Z-00000000";
    program.run(&["verify", "--snapshot", id]).refused(missing, &["no such snapshot", id]);
    program.run(&["backup", "--name", "other"]).refused(CONFIG, &["other", "app"]);
    let health = program.run(&["health", "--http-addr", "127.0.0.1:1"]);
    health.refused(i32::from(ErrorKind::Unhealthy.exit_code()), &["127.0.0.1:1"]);
}

#[test]
fn the_table_of_exit_codes_is_the_truth() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/EXIT-CODES.md");
    let document = fs::read_to_string(path).expect("docs/EXIT-CODES.md");
    let rows: Vec<(String, String)> = document
        .lines()
        .filter_map(|line| {
            let mut cells = line.strip_prefix('|')?.split('|').map(|cell| cell.trim().replace('`', ""));
            Some((cells.next()?, cells.next()?))
        })
        .filter(|(code, _)| code.parse::<u8>().is_ok_and(|code| code != 0))
        .collect();
    let kinds: Vec<(String, String)> =
        ErrorKind::ALL.iter().map(|kind| (kind.exit_code().to_string(), kind.name().to_owned())).collect();
    assert_eq!(rows, kinds, "code and name of every kind, in order");
}
