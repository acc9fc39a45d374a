//! A small database that nobody writes: capture holds nothing of it open, and misses nothing.

use std::fs;
use std::time::Duration;

use lifeboat::capture::{Needs, Step};
use lifeboat::restore::Target;
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use crate::support::line::Line;

/// Descriptors of this process on the database, its log and the index of that.
fn open_files(line: &Line) -> usize {
    let database = line.lab.path("app.db").canonicalize().expect("it is there");
    let links = fs::read_dir("/proc/self/fd").expect("listed").flatten();
    let links = links.filter_map(|entry| fs::read_link(entry.path()).ok());
    links.filter(|link| link.to_string_lossy().starts_with(&*database.to_string_lossy())).count()
}

/// Only then do the stamps of the files say that nothing was written.
async fn let_stamps_settle() {
    tokio::time::sleep(Duration::from_millis(2_100)).await;
}

async fn resting(line: &Line) {
    let_stamps_settle().await;
    assert_eq!(line.capture().read().expect("read"), Step::Rest);
    let before = open_files(line);
    line.capture().rest().expect("rests");
    let left = open_files(line);
    assert!(left < before, "{left} of {before} files stay open");
    assert_eq!(line.capture().read().expect("read"), Step::Rest);
    assert_eq!(open_files(line), left, "nobody wrote");
}

/// What was committed, however long it takes to find out, is restored.
async fn require_restored(line: &Line, rows: i64) {
    line.capture().read().expect("read");
    if let Needs::Comparison(_) = line.capture().needs() {
        let limits = line.lab.settings.limits(&CancellationToken::new());
        line.capture().compare(limits).await.expect("compared");
    }
    line.capture().ship().await.expect("stored");
    assert_eq!(line.capture().needs(), Needs::Nothing);
    assert_eq!(line.restored(&Target::Newest).await.expect("restored"), rows);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_rests_is_not_open_and_its_next_commit_is_read() {
    let line = Line::new().await;
    line.commit("12:00:01").await;
    resting(&line).await;
    line.at("12:05:00");
    line.write();
    line.capture().read().expect("read");
    assert_eq!(line.capture().needs(), Needs::Nothing, "the log goes on where it was left");
    require_restored(&line, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_commit_whose_log_is_gone_is_found_by_comparing() {
    let mut line = Line::new().await;
    line.commit("12:00:01").await;
    resting(&line).await;
    line.at("12:05:00");
    line.write();
    // The last one to close moves the log into the database.
    line.app = Connection::open_in_memory().expect("opens");
    assert!(!line.lab.path("app.db-wal").exists());
    line.capture().read().expect("read");
    assert!(matches!(line.capture().needs(), Needs::Comparison(_)), "{:?}", line.capture().needs());
    require_restored(&line, 2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn without_anything_in_its_log_it_rests_too() {
    let mut line = Line::new().await;
    line.app.execute_batch("INSERT INTO t VALUES (1)").expect("written");
    line.app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpointed");
    line.start("12:01:00").await;
    resting(&line).await;
    // A snapshot that shows no change is no reason to compare.
    line.snapshot("12:02:00").await;
    line.capture().read().expect("read");
    assert_eq!(line.capture().needs(), Needs::Nothing);
    resting(&line).await;
    line.at("12:05:00");
    line.write();
    // There is none again, as before.
    line.app = Connection::open_in_memory().expect("opens");
    require_restored(&line, 2).await;
}
