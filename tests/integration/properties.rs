//! Backup, then restore, is the identity: for generated databases, and beside a writer that goes on.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use lifeboat::backup::Outcome;
use lifeboat::verify;
use proptest::prelude::*;
use proptest::test_runner::Config;
use rusqlite::{Connection, params};

use crate::support::files::assert_same;
use crate::support::lab::{Lab, checkpoint};

/// A change of the database. Tables are `t0` to `t3`; what cannot be done is no error.
#[derive(Debug, Clone)]
enum Change {
    Create { table: u8, without_rowid: bool },
    Drop { table: u8 },
    Index { table: u8 },
    Insert { table: u8, rows: u16, bytes: u16 },
    Update { table: u8, every: u8 },
    Delete { table: u8, every: u8 },
    UserVersion(i32),
    Vacuum,
    JournalMode(&'static str),
    Checkpoint,
    BackUp,
}

impl Change {
    fn apply(&self, app: &Connection) {
        let sql = match self {
            Change::Create { table, without_rowid } => {
                let kind = if *without_rowid { "WITHOUT ROWID" } else { "" };
                format!("CREATE TABLE IF NOT EXISTS t{table}(k TEXT PRIMARY KEY, x BLOB) {kind}")
            }
            Change::Drop { table } => format!("DROP TABLE IF EXISTS t{table}"),
            Change::Index { table } => format!("CREATE INDEX IF NOT EXISTS i{table} ON t{table}(x)"),
            Change::Insert { table, rows, bytes } => format!(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<={rows})
                 INSERT OR REPLACE INTO t{table} SELECT 'key ' || i, randomblob({bytes}) FROM n"
            ),
            Change::Update { table, every } => {
                format!("UPDATE t{table} SET x = randomblob(length(x)/2) WHERE length(k) % {every} = 0")
            }
            Change::Delete { table, every } => {
                format!("DELETE FROM t{table} WHERE abs(random()) % {every} = 0")
            }
            Change::UserVersion(version) => format!("PRAGMA user_version={version}"),
            Change::Vacuum => "VACUUM".to_owned(),
            Change::JournalMode(mode) => format!("PRAGMA journal_mode={mode}"),
            Change::Checkpoint => "PRAGMA wal_checkpoint(PASSIVE)".to_owned(),
            Change::BackUp => return,
        };
        // Most often: the table is not there.
        let _ = app.execute_batch(&sql);
    }
}

fn any_change() -> impl Strategy<Value = Change> {
    let (table, every) = (0..4u8, 1..5u8);
    prop_oneof![
        3 => (table.clone(), any::<bool>()).prop_map(|(table, without_rowid)| Change::Create { table, without_rowid }),
        1 => table.clone().prop_map(|table| Change::Drop { table }),
        1 => table.clone().prop_map(|table| Change::Index { table }),
        5 => (table.clone(), 0..400u16, 0..3000u16).prop_map(|(table, rows, bytes)| Change::Insert { table, rows, bytes }),
        2 => (table.clone(), every.clone()).prop_map(|(table, every)| Change::Update { table, every }),
        2 => (table, every).prop_map(|(table, every)| Change::Delete { table, every }),
        1 => any::<i32>().prop_map(Change::UserVersion),
        1 => Just(Change::Vacuum),
        2 => prop::sample::select(vec!["wal", "delete", "truncate", "persist"]).prop_map(Change::JournalMode),
        1 => Just(Change::Checkpoint),
        2 => Just(Change::BackUp),
    ]
}

fn any_header() -> impl Strategy<Value = String> {
    let page_size = (9..=16u32).prop_map(|power| 1 << power);
    let auto_vacuum = prop::sample::select(vec!["NONE", "FULL", "INCREMENTAL"]);
    let encoding = prop::sample::select(vec!["UTF-8", "UTF-16le", "UTF-16be"]);
    let journal_mode = prop::sample::select(vec!["wal", "delete"]);
    (page_size, auto_vacuum, encoding, journal_mode).prop_map(
        |(page_size, vacuum, encoding, mode): (u32, _, _, _)| {
            format!(
                "PRAGMA page_size={page_size}; PRAGMA auto_vacuum={vacuum}; PRAGMA encoding='{encoding}';
             PRAGMA journal_mode={mode};"
            )
        },
    )
}

fn cases(cases: u32) -> Config {
    // Failing cases are printed; nothing is written into the tree.
    Config { cases, failure_persistence: None, max_shrink_iters: 64, ..Config::default() }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(work)
}

async fn is_identity(header: String, changes: Vec<Change>) {
    let lab = Lab::new();
    let app = lab.database("app.db", &header);
    for change in &changes {
        change.apply(&app);
        if matches!(change, Change::BackUp) {
            lab.back_up(&lab.path("app.db")).await.expect("backs up");
        }
    }
    let id = match lab.back_up(&lab.path("app.db")).await.expect("backs up") {
        Outcome::Stored(manifest) => manifest.id,
        Outcome::Unchanged(known) => known.id,
    };
    let manifest = lab.catalog().manifest(&id).await.expect("listed");
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    verify::run(&lab.catalog(), &manifest, &lab.resources()).await.expect("proven");
    drop(app);
    checkpoint(&lab.path("app.db"));
    assert_same(&lab.path("app.db"), &lab.path("restored.db"));
}

/// Rows of one transaction; a torn one would show.
const ROWS: u32 = 3;

async fn shows_a_prefix(header: String, backups: usize, bytes: u32) {
    let mut lab = Lab::new();
    // Without a log a backup has to meet a pause of the writer, which on a busy machine syncs for long.
    lab.settings.busy_timeout = Duration::from_secs(30);
    let sql = "CREATE TABLE log(n INTEGER, part INTEGER, x BLOB)";
    let mut app = lab.database("app.db", &format!("{header} {sql}"));
    app.busy_timeout(Duration::from_secs(30)).expect("set");
    let stop = Arc::new(AtomicBool::new(false));
    let stopped = Arc::clone(&stop);
    let writer = thread::spawn(move || {
        let mut written = 0u32;
        while !stopped.load(Ordering::Relaxed) {
            let transaction = app.transaction().expect("begins");
            for part in 0..ROWS {
                transaction
                    .execute("INSERT INTO log VALUES (?1, ?2, randomblob(?3))", params![written, part, bytes])
                    .expect("writes");
            }
            transaction.commit().expect("commits");
            written += 1;
            thread::sleep(Duration::from_millis(1));
        }
        written
    });
    let mut seen = Vec::new();
    for _ in 0..backups {
        let outcome = lab.back_up(&lab.path("app.db")).await.expect("backs up beside the writer");
        let Outcome::Stored(manifest) = outcome else { continue };
        let output = lab.path(manifest.id.as_str());
        lab.restored_to(&manifest, &output).await.expect("restores");
        let copy = Connection::open(&output).expect("opens");
        let (rows, count, last): (u32, u32, Option<u32>) = copy
            .query_row("SELECT count(*), count(DISTINCT n), max(n) FROM log", [], |row| {
                Ok((row.get(0)?, row.get(1)?, row.get(2)?))
            })
            .expect("queries");
        assert_eq!(rows, count * ROWS, "whole transactions only");
        assert_eq!(last.map_or(0, |last| last + 1), count, "and none is missing in between");
        seen.push(count);
    }
    stop.store(true, Ordering::Relaxed);
    let written = writer.join().expect("the writer was never refused");
    assert!(seen.is_sorted() && seen.last().is_none_or(|last| *last <= written), "{seen:?} of {written}");
}

proptest! {
    #![proptest_config(cases(24))]

    #[test]
    fn a_generated_database_comes_back_byte_for_byte(
        header in any_header(),
        changes in prop::collection::vec(any_change(), 1..16),
    ) {
        block_on(is_identity(header, changes));
    }
}

proptest! {
    #![proptest_config(cases(8))]

    #[test]
    fn beside_a_writer_a_snapshot_is_a_prefix_of_what_was_committed(
        header in any_header(),
        backups in 2..5usize,
        bytes in 0..20_000u32,
    ) {
        block_on(shows_a_prefix(header, backups, bytes));
    }
}
