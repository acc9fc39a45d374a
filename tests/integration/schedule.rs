//! What the daemon does because its minute has come. Real daemons on the real clock: a schedule has no
//! seconds, so the next full minute is waited for, by all of them at the same time.

use rusqlite::Connection;
use rustix::process::Signal;

use crate::support::files::{State, names, state};
use crate::support::program::{Program, Running};

const EVERY_MINUTE: &str = "* * * * *";
const FILL: &str = "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER); INSERT INTO t VALUES (1);";
const CHANGE: &str = "INSERT INTO t VALUES (2)";

/// A program with nothing scheduled and nothing done on the way out.
fn idle() -> Program {
    Program::new()
        .with("BACKUP_VERIFY_SCHEDULE", "off")
        .with("BACKUP_PRUNE_SCHEDULE", "off")
        .with("BACKUP_ON_SHUTDOWN", "false")
}

/// What is in storage of one database, but for the lock.
fn stored(program: &Program, database: &str) -> Vec<State> {
    let folders = ["", "manifests", "snapshots", "proofs", "epochs"];
    folders.map(|folder| state(&program.path("backups").join(database).join(folder))).into()
}

/// Two databases, of which one changes.
struct Backups {
    program: Program,
    daemon: Running,
    app: Connection,
    before: Vec<State>,
}

impl Backups {
    fn start() -> Backups {
        let program =
            idle().with("BACKUP_SCHEDULE", EVERY_MINUTE).with("BACKUP_DATABASE", "data/app.db,data/quiet.db");
        let app = program.app(FILL);
        Connection::open(program.path("data/quiet.db")).expect("opens").execute_batch(FILL).expect("runs");
        let mut daemon = program.start(&["run"]);
        for database in ["database=app", "database=quiet"] {
            daemon.wait_for_line(&["proved snapshot", database]);
        }
        let before = stored(&program, "quiet");
        app.execute_batch(CHANGE).expect("writes");
        Backups { program, daemon, app, before }
    }

    fn expect(mut self) {
        self.daemon.wait_for_line(&["stored snapshot", "of app", "job=\"backup\"", "reason=Schedule"]);
        self.daemon.wait_for_line(&["quiet is unchanged since snapshot", "reason=Schedule"]);
        assert_eq!(stored(&self.program, "quiet"), self.before, "unchanged means that nothing was written");
        assert_eq!(self.daemon.end(Signal::TERM).code, Some(0));
        let output = self.program.path("stored.db");
        self.program.succeed(&["restore", "--name", "app", "--output", &output.display().to_string()]);
        let rows = "SELECT count(*) FROM t";
        let count = |database: &Connection| -> i64 {
            database.query_row(rows, [], |row| row.get(0)).expect("queries")
        };
        assert_eq!(count(&Connection::open(output).expect("opens")), 2);
        assert_eq!(count(&self.app), 2);
    }
}

/// Two snapshots, of which the newest is proven.
struct Drills {
    program: Program,
    daemon: Running,
    older: String,
    newest: String,
}

impl Drills {
    fn start() -> Drills {
        let program = idle().with("BACKUP_VERIFY_SCHEDULE", EVERY_MINUTE);
        let app = program.app(FILL);
        program.succeed(&["backup"]);
        app.execute_batch(CHANGE).expect("writes");
        program.succeed(&["backup"]);
        program.succeed(&["verify"]);
        let [newest, older] = program.snapshots().try_into().expect("two snapshots");
        app.execute_batch(CHANGE).expect("writes");
        let daemon = program.start(&["run"]);
        Drills { program, daemon, older, newest }
    }

    fn expect(mut self) {
        self.daemon.wait_for_line(&["proved snapshot", &self.older, "job=\"verify\"", "reason=Schedule"]);
        assert_eq!(self.daemon.end(Signal::TERM).code, Some(0));
        let proofs = [&self.older, &self.newest].map(|id| format!("{id}.json"));
        assert_eq!(names(&self.program.path("backups/app/proofs")), proofs);
        assert_eq!(self.program.snapshots(), [self.newest, self.older], "no backup was asked for");
    }
}

/// Three snapshots, where one is to be kept.
struct Prunes {
    program: Program,
    daemon: Running,
    newest: String,
}

impl Prunes {
    fn start() -> Prunes {
        let program = idle()
            .with("BACKUP_PRUNE_SCHEDULE", EVERY_MINUTE)
            .with("BACKUP_RETENTION", "1l")
            .with("BACKUP_PRUNE_SAFETY_AGE", "0s");
        let app = program.app(FILL);
        program.succeed(&["backup"]);
        for _ in 0..2 {
            app.execute_batch(CHANGE).expect("writes");
            program.succeed(&["backup"]);
        }
        program.succeed(&["verify"]);
        let newest = program.snapshots().swap_remove(0);
        let daemon = program.start(&["run"]);
        Prunes { program, daemon, newest }
    }

    fn expect(mut self) {
        let summary = "pruned app: removed 2 snapshots, 0 orphans and 0 stale proofs: ";
        self.daemon.wait_for_line(&[summary, "job=\"prune\"", "reason=Schedule", "snapshots=2", "left=0"]);
        let log = self.daemon.end(Signal::TERM).stderr;
        let line = log.lines().find(|line| line.contains(summary)).expect("it was there");
        let freed = line.split("bytes_freed=").nth(1).and_then(|rest| rest.split(' ').next());
        assert!(freed.and_then(|bytes| bytes.parse().ok()).is_some_and(|bytes: u64| bytes > 0), "{line}");
        assert_eq!(self.program.snapshots(), [self.newest.clone()]);
        let data = names(&self.program.path("backups/app/snapshots"));
        assert_eq!(data, [format!("{}.db.zst", self.newest)], "the data went too");
        self.program.succeed(&["verify"]);
    }
}

#[test]
fn backups_drills_and_pruning_come_when_their_minute_has_come() {
    let (backups, drills, prunes) = (Backups::start(), Drills::start(), Prunes::start());
    backups.expect();
    drills.expect();
    prunes.expect();
}
