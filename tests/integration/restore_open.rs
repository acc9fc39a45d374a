//! `lifeboat restore` beside an application that works on, whatever has become of the file: refused.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Child, ChildStdout, Command, Stdio};

use lifeboat::error::ErrorKind;
use rusqlite::Connection;

use crate::support::files::state;
use crate::support::program::Program;
use crate::support::word::{with_snapshot_of, word};

const TARGET: i32 = ErrorKind::Target.exit_code() as i32;

/// An application in a process of its own: the `sqlite3` shell, killed when dropped.
struct App {
    process: Child,
    answers: BufReader<ChildStdout>,
}

impl App {
    /// Opens the database and runs `sql`.
    fn start(database: &Path, sql: &str) -> App {
        let mut shell = Command::new("sqlite3");
        shell.args(["-batch", "-noheader"]).arg(database).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = shell.spawn().expect("this test wants the `sqlite3` shell");
        let answers = BufReader::new(process.stdout.take().expect("piped"));
        let mut app = App { process, answers };
        app.ask(sql);
        app
    }

    /// The last line that `sql` answers with.
    fn ask(&mut self, sql: &str) -> String {
        let stdin = self.process.stdin.as_mut().expect("open");
        writeln!(stdin, "{sql};\nSELECT 'answered';").expect("written");
        let (mut last, mut line) = (String::new(), String::new());
        while line.trim_end() != "answered" {
            last = line.trim_end().to_owned();
            line.clear();
            assert_ne!(self.answers.read_line(&mut line).expect("readable"), 0, "it goes on: {sql}");
        }
        last
    }

    fn id(&self) -> String {
        format!("pid=`{}` command=`sqlite3`", self.process.id())
    }

    /// Lets it close its database.
    fn end(mut self) {
        drop(self.process.stdin.take());
        assert!(self.process.wait().expect("ends").success());
    }
}

impl Drop for App {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

fn with_snapshot(mode: &str) -> Program {
    with_snapshot_of(&format!(
        "PRAGMA journal_mode={mode}; CREATE TABLE t(word TEXT); INSERT INTO t VALUES ('old')"
    ))
}

/// Overwrites page 1 where it lies, or empties the file, from outside.
fn damage(database: &Path, script: &str) {
    let done = Command::new("sh").args(["-c", script]).arg(database).status().expect("sh runs");
    assert!(done.success(), "{script}");
}

const ZEROS: &str = "dd if=/dev/zero of=\"$0\" bs=4096 count=1 conv=notrunc status=none";
const NOISE: &str = "dd if=/dev/urandom of=\"$0\" bs=4096 count=1 conv=notrunc status=none";
const NOTHING: &str = ": > \"$0\"";

#[test]
fn a_damaged_file_that_an_application_works_on_with_is_not_replaced() {
    for (script, log) in [
        (ZEROS, "SELECT 1"),
        (NOISE, "SELECT 1"),
        // Page 1 is in the log too.
        (NOISE, "PRAGMA wal_autocheckpoint=0; CREATE TABLE u(x)"),
        (NOTHING, "PRAGMA wal_autocheckpoint=0; CREATE TABLE u(x)"),
    ] {
        let program = with_snapshot("wal");
        let mut app = App::start(&program.database(), &format!("SELECT word FROM t; {log}"));
        damage(&program.database(), script);
        let before = state(&program.path("data"));
        let ended = program.run(&["restore"]);
        ended.refused(TARGET, &["open in another process", "app.db", &app.id()]);
        assert_eq!(state(&program.path("data")), before, "{script} {log}: not a byte has changed");
        if script != NOTHING {
            app.ask("INSERT INTO t VALUES ('later')");
            assert_eq!(app.ask("SELECT count(*) FROM t"), "2", "{script} {log}: it goes on");
        }
        // It dies, and what it left is no reason to refuse.
        drop(app);
        program.succeed(&["restore"]);
        assert_eq!(word(&program.database()), "old", "{script} {log}");
    }
}

#[test]
fn an_application_that_closed_its_damaged_database_is_no_reason_to_refuse() {
    let program = with_snapshot("wal");
    let app = App::start(&program.database(), "SELECT word FROM t");
    damage(&program.database(), NOISE);
    program.run(&["restore"]).refused(TARGET, &[&app.id()]);
    app.end();
    program.succeed(&["restore"]);
    assert_eq!(word(&program.database()), "old");
}

#[test]
fn a_connection_without_a_lock_is_noticed() {
    for mode in ["wal", "delete"] {
        let program = with_snapshot(mode);
        // The shell opens the file with the first statement, and this one reads nothing.
        for idle in ["PRAGMA locking_mode", "SELECT word FROM t"] {
            let mut app = App::start(&program.database(), idle);
            let before = state(&program.path("data"));
            program.run(&["restore"]).refused(TARGET, &["open in another process", &app.id()]);
            assert_eq!(state(&program.path("data")), before, "{mode} {idle}");
            assert_eq!(app.ask("SELECT word FROM t"), "new", "{mode} {idle}");
            app.end();
        }
        program.succeed(&["restore"]);
        assert_eq!(word(&program.database()), "old", "{mode}");
    }
}

/// Runs `lifeboat restore` as a user who may look into nobody else's processes.
fn restore_as_other_user(program: &Program) -> (Option<i32>, String) {
    const OTHER_USER: u32 = 12_345;
    assert!(
        rustix::process::geteuid().is_root(),
        "this test wants to act as another user, so run it as root"
    );
    let binary = program.path("lifeboat");
    fs::copy(env!("CARGO_BIN_EXE_lifeboat"), &binary).expect("copied");
    let owner = format!("{OTHER_USER}:{OTHER_USER}");
    let given =
        Command::new("chown").args(["-R", &owner]).arg(program.dir.path()).status().expect("chown runs");
    assert!(given.success());
    let ended = Command::new(binary)
        .arg("restore")
        .current_dir(program.dir.path())
        .env_clear()
        .env("BACKUP_DATABASE", program.database())
        .env("BACKUP_DIR", program.path("backups"))
        .uid(OTHER_USER)
        .gid(OTHER_USER)
        .output()
        .expect("it runs");
    (ended.status.code(), String::from_utf8_lossy(&ended.stderr).into())
}

#[test]
fn where_descriptors_cannot_be_seen_locks_are() {
    for (mode, hold, script) in [
        // In WAL mode an idle connection has the lock that says it is there.
        ("wal", "SELECT word FROM t", NOISE),
        ("wal", "SELECT word FROM t", NOTHING),
        ("delete", "BEGIN; SELECT word FROM t", NOISE),
        ("delete", "BEGIN IMMEDIATE; UPDATE t SET word = 'newer'", NOISE),
    ] {
        let program = with_snapshot(mode);
        let app = App::start(&program.database(), hold);
        damage(&program.database(), script);
        let before = state(&program.path("data"));
        let (code, stderr) = restore_as_other_user(&program);
        assert_eq!(code, Some(TARGET), "{mode} {hold}: {stderr}");
        assert!(stderr.contains("open in another process") && stderr.contains(&app.id()), "{stderr}");
        assert_eq!(state(&program.path("data")), before, "{mode} {hold}");
        drop(app);
        let (code, stderr) = restore_as_other_user(&program);
        assert_eq!(code, Some(0), "{mode} {hold}: {stderr}");
        assert_eq!(word(&program.database()), "old", "{mode} {hold}");
    }
}

/// A file that is mounted where it is: nothing can be renamed onto it. Only root can do that.
struct Mounted<'a>(&'a Path);

impl Mounted<'_> {
    fn over_itself(file: &Path) -> Mounted<'_> {
        let mounted =
            Command::new("mount").arg("--bind").args([file, file]).output().expect("`mount` is there");
        assert!(mounted.status.success(), "this test wants to mount a file, so run it as root: {mounted:?}");
        Mounted(file)
    }
}

impl Drop for Mounted<'_> {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()), "{} stays mounted", self.0.display());
    }
}

#[test]
fn a_swap_that_fails_leaves_the_old_database_as_it_was() {
    for mode in ["wal", "delete"] {
        let program = with_snapshot(mode);
        let before = state(&program.path("data"));
        let database = program.database();
        let mounted = Mounted::over_itself(&database);
        program.run(&["restore"]).refused(TARGET, &["swap the database", "app.db"]);
        drop(mounted);
        assert_eq!(state(&program.path("data")), before, "{mode}: also its journal mode");
        let found: String =
            program.app("SELECT 1").query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("queries");
        assert_eq!(found, mode);
        program.succeed(&["restore"]);
        assert_eq!(word(&database), "old");
    }
}

#[test]
fn a_name_too_long_to_keep_the_old_database_under_is_refused_before_anything_is_noted() {
    let program = Program::new();
    let database = program.path("data").join(format!("{}.db", "a".repeat(225)));
    let program = program.with("BACKUP_DATABASE", format!("app={}", database.display()));
    let app = Connection::open(&database).expect("opens");
    app.execute_batch("PRAGMA journal_mode=wal; CREATE TABLE t(word TEXT); INSERT INTO t VALUES ('old')")
        .expect("fills");
    program.succeed(&["backup"]);
    drop(app);
    let before = state(&program.path("data"));
    program.run(&["restore"]).refused(TARGET, &["too long"]);
    assert_eq!(state(&program.path("data")), before);
    program.succeed(&["run", "--", "true"]);
}
