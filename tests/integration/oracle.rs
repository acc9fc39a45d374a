//! Writers in other processes, which are killed now and then, against a real daemon that is killed
//! too: what is restored is a prefix of what was committed, in whole transactions, and at least as new
//! as what was acknowledged.
//!
//! Writers and kills meet the backups at other moments in every run: `tests/run oracle SECONDS` repeats them.

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::Value;

use crate::oracle_facts::judge;
use crate::oracle_writer::{Counted, Journal, Manner, SCHEMA, Task, Writer};
use crate::support::files::assert_same;
use crate::support::lab::checkpoint;
use crate::support::program::{Program, Running, ask, free_address};

const WRITERS: usize = 3;

/// How long writers are watched.
const WATCHED: Duration = Duration::from_secs(7);

/// A database, its writers and a daemon beside them.
struct Stage {
    program: Program,
    address: SocketAddr,
    tasks: Vec<Task>,
}

impl Stage {
    fn new(journal_mode: &str, writers: usize, manner: Manner) -> Stage {
        let address = free_address();
        let program = Program::new()
            .with("BACKUP_HTTP_ADDR", address.to_string())
            .with("BACKUP_VERIFY_SCHEDULE", "off")
            .with("BACKUP_PRUNE_SCHEDULE", "off")
            .with("BACKUP_REQUESTS_PER_DAY", "10000000");
        drop(program.app(&format!("PRAGMA journal_mode={journal_mode}; {SCHEMA}")));
        let task = |writer: usize| Task {
            writer: writer as i64,
            database: program.database(),
            journal: program.path(&format!("journal-{writer}")),
            stop: program.path("stop"),
            manner,
        };
        let tasks = (0..writers).map(task).collect();
        Stage { program, address, tasks }
    }

    fn daemon(&self) -> Running {
        let mut daemon = self.program.start(&["run"]);
        daemon.wait_for_log("backing up app to");
        while TcpStream::connect(self.address).is_err() {
            std::thread::sleep(Duration::from_millis(5));
        }
        daemon
    }

    fn journals(&self) -> Vec<Journal> {
        self.tasks.iter().map(|task| Journal::read(&task.journal)).collect()
    }

    /// Asks for a backup; the id of the snapshot that holds the database, or the daemon's refusal.
    fn backed_up(&self) -> Result<String, String> {
        let answer = ask(self.address, "POST /backup-now", "");
        if !answer.starts_with("HTTP/1.1 200") {
            return Err(answer);
        }
        let body = &answer[answer.find('{').expect("JSON")..=answer.rfind('}').expect("JSON")];
        let body: Value = serde_json::from_str(body).expect("JSON");
        Ok(body["snapshot"]["id"].as_str().expect("an id").to_owned())
    }

    /// Restores to a new file beside everything.
    fn restored(&self, arguments: &[&str]) -> PathBuf {
        let output = self.program.path("restored.db");
        let _ = fs::remove_file(&output);
        let text = output.display().to_string();
        self.program.succeed(&[&["restore", "--output", &text], arguments].concat());
        output
    }
}

/// What happened, for whoever reads the output.
#[derive(Debug, Default)]
struct Figures {
    backups: u32,
    refused: u32,
    writers_killed: u32,
    daemons_killed: u32,
    transactions: i64,
}

fn history(journal_mode: &str) {
    let mut figures = Figures::default();
    let stage = Stage::new(journal_mode, WRITERS, Manner::Various);
    let mut writers: Vec<Writer> = stage.tasks.iter().map(Writer::start).collect();
    let mut daemon = stage.daemon();
    let began = Instant::now();
    let mut rounds = 0;
    while began.elapsed() < WATCHED || rounds < 4 {
        let before = stage.journals();
        match stage.backed_up() {
            Ok(id) => {
                figures.backups += 1;
                let copy = stage.restored(&["--snapshot", &id]);
                judge(&copy, &before, &stage.journals()).unwrap_or_else(|error| panic!("{id}: {error}"));
            }
            // Without a log, writers and a backup take turns: it may not get its turn in time.
            Err(answer) if journal_mode != "wal" && answer.contains(r#""kind":"busy""#) => {
                figures.refused += 1
            }
            Err(answer) => panic!("{answer}"),
        }
        let victim = rounds % WRITERS;
        std::mem::replace(&mut writers[victim], Writer::start(&stage.tasks[victim])).kill();
        figures.writers_killed += 1;
        rounds += 1;
        if rounds == 3 {
            kill_in_a_backup(&stage, daemon, rounds);
            daemon = stage.daemon();
            figures.daemons_killed += 1;
            // What was acknowledged before it died is still the least there is.
            let copy = stage.restored(&[]);
            judge(&copy, &before, &stage.journals()).unwrap_or_else(|error| panic!("the newest: {error}"));
        }
    }
    fs::write(stage.program.path("stop"), "").expect("written");
    writers.into_iter().for_each(Writer::join);
    let journals = stage.journals();
    let ended = daemon.end(Signal::TERM);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    let copy = stage.restored(&[]);
    figures.transactions = judge(&copy, &journals, &journals).expect("everything, by the last backup");
    checkpoint(&stage.program.database());
    checkpoint(&copy);
    assert_same(&copy, &stage.program.database());
    println!("{journal_mode}: {figures:?}");
    assert!(figures.backups >= 3, "{figures:?}");
}

/// Asks for a backup without waiting, and kills the daemon some moments later.
fn kill_in_a_backup(stage: &Stage, daemon: Running, moment: usize) {
    let answer = ask(stage.address, "POST /backup-now?wait=false", "");
    assert!(answer.starts_with("HTTP/1.1 202"), "{answer}");
    std::thread::sleep(Duration::from_millis(7 * moment as u64));
    assert_eq!(daemon.end(Signal::KILL).code, None, "killed");
}

#[test]
fn what_is_restored_is_a_prefix_of_the_commits_in_wal_mode() {
    history("wal");
}

#[test]
fn what_is_restored_is_a_prefix_of_the_commits_in_rollback_mode() {
    history("delete");
}

/// A checkpoint that wants to restart or cut off the log (RESTART, TRUNCATE) may be told "busy" while
/// we read: it has to wait for any reader, by SQLite's rules. That blocks no writer, and is only counted.
#[test]
fn a_writer_in_wal_mode_is_never_kept_waiting() {
    let stage = Stage::new("wal", 1, Manner::Impatient);
    let app = Connection::open(stage.program.database()).expect("opens");
    // Some MiB, so that backups are under way most of the time.
    app.execute_batch(
        "CREATE TABLE ballast(x); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<400)
         INSERT INTO ballast SELECT randomblob(20000) FROM n;",
    )
    .expect("written");
    drop(app);
    let daemon = stage.daemon();
    let writer = Writer::start(&stage.tasks[0]);
    let (began, mut backups) = (Instant::now(), 0);
    while began.elapsed() < WATCHED || backups < 8 {
        stage.backed_up().expect("nothing is in a backup's way");
        backups += 1;
        if backups % 8 == 0 {
            let answer = ask(stage.address, "POST /verify", "");
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
    }
    fs::write(stage.program.path("stop"), "").expect("written");
    writer.join();
    let counted: Counted = stage.journals()[0].counted.expect("it counts at its end");
    println!("{backups} backups beside {counted:?}");
    assert!(counted.commits > 100, "{counted:?}");
    assert_eq!(counted.blocked, 0, "{counted:?}");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}
