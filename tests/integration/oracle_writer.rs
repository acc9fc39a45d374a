//! An application of the oracle, in a process of its own that may be killed at any moment: it keeps a
//! journal, outside the database, of what it began and of what it was told is committed.
//!
//! The process is this test binary, started for one test alone: [`Writer::start`] names it, and the
//! environment says what to write. Started as any other test, that test looks at the journal itself.

use std::collections::BTreeMap;
use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rusqlite::{Connection, TransactionBehavior, params};
use serde::{Deserialize, Serialize};

/// What a database of the oracle holds before anybody writes.
///
/// Each transaction takes the next `g` from the one counter all writers share, so `tx` is the order of
/// commits; each of its parts is a row; and a table that a transaction creates is named in `made`.
pub const SCHEMA: &str = "CREATE TABLE counter(n INTEGER NOT NULL); INSERT INTO counter VALUES (0);
    CREATE TABLE tx(g INTEGER PRIMARY KEY, writer INTEGER NOT NULL, seq INTEGER NOT NULL,
        parts INTEGER NOT NULL, UNIQUE(writer, seq));
    CREATE TABLE part(g INTEGER NOT NULL REFERENCES tx(g), i INTEGER NOT NULL, payload BLOB NOT NULL,
        PRIMARY KEY(g, i)) WITHOUT ROWID;
    CREATE TABLE made(writer INTEGER PRIMARY KEY, name TEXT NOT NULL);";

const TASK: &str = "LIFEBOAT_TEST_WRITER";

/// What a writer process is told.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Task {
    pub writer: i64,
    pub database: PathBuf,
    pub journal: PathBuf,
    /// The writer ends when this file appears.
    pub stop: PathBuf,
    pub manner: Manner,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Manner {
    /// Transactions of all sizes, changes of the schema, VACUUM; waits for other writers.
    Various,
    /// Small transactions by the only writer, which waits for nobody and counts who was in its way.
    Impatient,
}

/// A writer's own account, which survives its death: what the kernel was given, it keeps.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Journal {
    /// The last transaction that was begun.
    pub begun: i64,
    /// The `g` of each transaction, by its number, whose commit was answered.
    pub committed: BTreeMap<i64, i64>,
    /// What the impatient one counted.
    pub counted: Option<Counted>,
}

/// How often somebody was in the way of a writer that does not wait.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counted {
    pub commits: u64,
    /// Beginnings, statements and commits that were told "busy".
    pub blocked: u64,
    /// Calls of `wal_checkpoint(PASSIVE)`, and how many of them reported "busy".
    pub passive: u64,
    pub passive_busy: u64,
    /// The same of `wal_checkpoint(TRUNCATE)`.
    pub truncate: u64,
    pub truncate_busy: u64,
    /// The longest transaction, from BEGIN to the answer of COMMIT.
    pub longest_us: u64,
}

/// A writer process; it is killed when dropped.
pub struct Writer(Child);

impl Writer {
    pub fn start(task: &Task) -> Writer {
        let own = std::env::current_exe().expect("the path of this binary");
        let child = Command::new(own)
            .args(["--exact", "oracle_writer::the_journal_tells_what_was_committed"])
            .env(TASK, serde_json::to_string(task).expect("JSON"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("the writer starts");
        Writer(child)
    }

    /// Kills it, wherever it is.
    pub fn kill(mut self) {
        self.0.kill().expect("killed");
        self.0.wait().expect("waited for");
    }

    /// Waits for its end, which must be a good one.
    pub fn join(mut self) {
        assert!(self.0.wait().expect("waited for").success(), "the writer failed; its own lines are above");
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // Both fail only if it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Journal {
    pub fn read(path: &Path) -> Journal {
        let mut journal = Journal::default();
        let text = fs::read_to_string(path).unwrap_or_default();
        // The last line may be in the middle of being written.
        for line in text.split_inclusive('\n').filter_map(|line| line.strip_suffix('\n')) {
            match line.split_once(' ').expect("a word and what it says") {
                ("begin", seq) => journal.begun = journal.begun.max(seq.parse().expect("a number")),
                ("commit", rest) => {
                    let (seq, g) = rest.split_once(' ').expect("two numbers");
                    journal.committed.insert(seq.parse().expect("a number"), g.parse().expect("a number"));
                }
                ("counted", json) => journal.counted = Some(serde_json::from_str(json).expect("JSON")),
                other => panic!("what is {other:?} in {}", path.display()),
            }
        }
        journal
    }
}

/// What this process was told, if it is a writer.
fn task() -> Option<Task> {
    let json = std::env::var(TASK).ok()?;
    Some(serde_json::from_str(&json).expect("a task"))
}

fn note(journal: &mut File, line: &str) {
    journal.write_all(format!("{line}\n").as_bytes()).expect("noted");
}

impl Task {
    fn carry_out(&self) {
        let mut journal =
            OpenOptions::new().create(true).append(true).open(&self.journal).expect("a journal");
        let mut app = Connection::open(&self.database).expect("opens");
        match self.manner {
            Manner::Various => self.write_various(&mut app, &mut journal),
            Manner::Impatient => self.write_impatiently(&mut app, &mut journal),
        }
    }

    fn write_various(&self, app: &mut Connection, journal: &mut File) {
        app.busy_timeout(Duration::from_secs(60)).expect("set");
        // So few pages in memory that large transactions reach the files before they are committed.
        app.pragma_update(None, "cache_size", 20).expect("set");
        app.pragma_update(None, "synchronous", "NORMAL").expect("set");
        let last = "SELECT coalesce(max(seq), 0) FROM tx WHERE writer = ?1";
        let mut seq: i64 = app.query_row(last, [self.writer], |row| row.get(0)).expect("queries");
        while !self.stop.exists() {
            seq += 1;
            note(journal, &format!("begin {seq}"));
            let g = self.transact(app, seq).expect("nobody is in the way for a minute");
            note(journal, &format!("commit {seq} {g}"));
            if fate(self.writer, seq, 3) % 61 == 5 {
                // It may be refused while others read.
                let _ = app.execute_batch("VACUUM");
            }
            std::thread::sleep(Duration::from_millis(fate(self.writer, seq, 4) % 8));
        }
    }

    /// One transaction; its place in the order of commits.
    fn transact(&self, app: &mut Connection, seq: i64) -> rusqlite::Result<i64> {
        let parts: i64 = match fate(self.writer, seq, 1) % 24 {
            0 => 500,
            1..=3 => 40,
            other => other as i64 % 5 + 1,
        };
        let bytes = (fate(self.writer, seq, 2) % 300) as i64;
        let transaction = app.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let g = transaction.query_row("UPDATE counter SET n = n + 1 RETURNING n", [], |row| row.get(0))?;
        transaction.execute("INSERT INTO tx VALUES (?1, ?2, ?3, ?4)", params![g, self.writer, seq, parts])?;
        for i in 0..parts {
            transaction.execute("INSERT INTO part VALUES (?1, ?2, randomblob(?3))", params![g, i, bytes])?;
        }
        if fate(self.writer, seq, 5) % 16 == 3 {
            self.change_schema(&transaction, seq)?;
        }
        transaction.commit()?;
        Ok(g)
    }

    /// A table with an index takes the place of the one this writer made before.
    fn change_schema(&self, transaction: &Connection, seq: i64) -> rusqlite::Result<()> {
        let (writer, name) = (self.writer, format!("extra_{}_{seq}", self.writer));
        let before = transaction
            .query_row("SELECT name FROM made WHERE writer = ?1", [writer], |row| row.get::<_, String>(0));
        if let Ok(before) = before {
            transaction.execute_batch(&format!("DROP TABLE {before}"))?;
        }
        transaction.execute_batch(&format!(
            "CREATE TABLE {name}(x); CREATE INDEX {name}_x ON {name}(x); INSERT INTO {name} VALUES ({seq})"
        ))?;
        transaction.execute("INSERT OR REPLACE INTO made VALUES (?1, ?2)", params![writer, name])?;
        Ok(())
    }

    fn write_impatiently(&self, app: &mut Connection, journal: &mut File) {
        app.busy_timeout(Duration::ZERO).expect("set");
        let mut counted = Counted::default();
        let mut seq = 0;
        while !self.stop.exists() {
            seq += 1;
            let began = Instant::now();
            match self.transact(app, seq) {
                Ok(_) => counted.commits += 1,
                Err(error) if is_busy(&error) => {
                    counted.blocked += 1;
                    eprintln!("blocked: {error}");
                }
                Err(error) => panic!("{error}"),
            }
            counted.longest_us = counted.longest_us.max(began.elapsed().as_micros() as u64);
            if seq % 5 == 0 {
                counted.passive += 1;
                counted.passive_busy += u64::from(is_refused(app, "PASSIVE"));
            }
            if seq % 25 == 0 {
                counted.truncate += 1;
                counted.truncate_busy += u64::from(is_refused(app, "TRUNCATE"));
            }
            std::thread::sleep(Duration::from_micros(fate(self.writer, seq, 4) % 4000));
        }
        note(journal, &format!("counted {}", serde_json::to_string(&counted).expect("JSON")));
    }
}

fn is_busy(error: &rusqlite::Error) -> bool {
    matches!(
        error.sqlite_error_code(),
        Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked)
    )
}

/// Whether a checkpoint of this kind says that somebody was in its way.
fn is_refused(app: &Connection, kind: &str) -> bool {
    let sql = format!("PRAGMA wal_checkpoint({kind})");
    match app.query_row(&sql, [], |row| row.get::<_, i64>(0)) {
        Ok(busy) => busy != 0,
        Err(error) if is_busy(&error) => true,
        Err(error) => panic!("{error}"),
    }
}

/// A number that looks like chance and is the same in every run.
fn fate(writer: i64, seq: i64, question: u64) -> u64 {
    let mut state = (writer as u64) << 40 ^ (seq as u64) << 8 ^ question;
    state = (state ^ state >> 30).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    state = (state ^ state >> 27).wrapping_mul(0x94D0_49BB_1331_11EB);
    state ^ state >> 31
}

/// Also the entry of a writer process.
#[test]
fn the_journal_tells_what_was_committed() {
    if let Some(task) = task() {
        return task.carry_out();
    }
    let dir = tempfile::tempdir().expect("a directory");
    let path = |name: &str| dir.path().join(name);
    Connection::open(path("app.db")).expect("opens").execute_batch(SCHEMA).expect("made");
    let task = |manner| Task {
        writer: 1,
        database: path("app.db"),
        journal: path("journal"),
        stop: path("stop"),
        manner,
    };
    let writer = Writer::start(&task(Manner::Various));
    while Journal::read(&path("journal")).committed.len() < 20 {
        std::thread::sleep(Duration::from_millis(5));
    }
    writer.kill();
    let journal = Journal::read(&path("journal"));
    let app = Connection::open(path("app.db")).expect("opens");
    let count: i64 = app.query_row("SELECT n FROM counter", [], |row| row.get(0)).expect("queries");
    let acknowledged = journal.committed.len() as i64;
    assert!(
        (acknowledged..=journal.begun).contains(&count),
        "{acknowledged} <= {count} <= {}",
        journal.begun
    );
    assert_eq!(*journal.committed.iter().next_back().expect("twenty at least").1, acknowledged);
}
