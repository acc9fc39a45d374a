//! What a crash leaves of a database: journals, logs without an index, torn logs, damaged pages.
//! A backup holds what the application would see if it opened the database now.

use std::fs::{self, OpenOptions};
use std::io::{Seek, SeekFrom, Write};
use std::path::Path;

use lifeboat::error::ErrorKind;
use lifeboat::snapshot::{Flag, Proof};
use lifeboat::verify;
use rusqlite::Connection;

use crate::support::files::{assert_same, copy_tree, digest, names};
use crate::support::lab::{Lab, checkpoint};

const FILL: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<500)
    INSERT INTO t SELECT i, randomblob(1000) FROM n;";

/// Copies what stands in `app/` to `data/` as a crash would leave it: files of these suffixes.
fn crash(lab: &Lab, suffixes: &[&str]) {
    fs::create_dir(lab.path("data")).expect("a folder");
    for suffix in suffixes {
        copy_tree(&lab.path(&format!("app/app.db{suffix}")), &lab.path(&format!("data/app.db{suffix}")));
    }
}

fn open(lab: &Lab, sql: &str) -> Connection {
    fs::create_dir(lab.path("app")).expect("a folder");
    lab.database("app/app.db", sql)
}

/// A database in WAL mode with committed transactions in its log.
fn logged(lab: &Lab) -> Connection {
    let sql = format!("PRAGMA journal_mode=wal; {FILL} PRAGMA wal_checkpoint(TRUNCATE)");
    let app = open(lab, &sql);
    app.pragma_update(None, "wal_autocheckpoint", 0).expect("set");
    for round in 0..20 {
        app.execute("UPDATE t SET x = randomblob(1000) WHERE id % 20 = ?1", [round]).expect("updates");
    }
    app
}

/// What SQLite itself makes of the files in `data/`, as one file.
fn seen_by_sqlite(lab: &Lab) -> std::path::PathBuf {
    copy_tree(&lab.path("data"), &lab.path("seen"));
    checkpoint(&lab.path("seen/app.db"));
    lab.path("seen/app.db")
}

async fn restored(lab: &Lab) -> std::path::PathBuf {
    let manifest = lab.stored(&lab.path("data/app.db")).await;
    assert_eq!(manifest.flags, vec![]);
    verify::run(&lab.catalog(), &manifest, &lab.resources()).await.expect("proven");
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    lab.path("restored.db")
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hot_journal_is_rolled_back_as_the_application_would() {
    let lab = Lab::new();
    let app = open(&lab, FILL);
    copy_tree(&lab.path("app/app.db"), &lab.path("committed.db"));
    // A cache of one page makes SQLite write into the file before the commit.
    app.execute_batch("PRAGMA cache_size=1; BEGIN IMMEDIATE; UPDATE t SET x = randomblob(1000)")
        .expect("begins");
    crash(&lab, &["", "-journal"]);
    drop(app);
    let torn = digest(&lab.path("data/app.db"));
    assert_ne!(torn, digest(&lab.path("committed.db")), "the file holds half a transaction");
    assert_same(&restored(&lab).await, &lab.path("committed.db"));
    assert_same(&lab.path("data/app.db"), &lab.path("committed.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_without_its_index_is_read() {
    let lab = Lab::new();
    let app = logged(&lab);
    crash(&lab, &["", "-wal"]);
    drop(app);
    let seen = seen_by_sqlite(&lab);
    let before = ["app.db", "app.db-wal"].map(|name| digest(&lab.path("data").join(name)));
    let restored = restored(&lab).await;
    assert_same(&restored, &seen);
    let after = ["app.db", "app.db-wal"].map(|name| digest(&lab.path("data").join(name)));
    assert_eq!(before, after, "database and log are untouched");
    // Without an index SQLite cannot read the log; the index it makes is not taken away again, for
    // somebody may have begun to use it.
    assert_eq!(names(&lab.path("data")), ["app.db", "app.db-shm", "app.db-wal"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_torn_log_is_read_up_to_its_last_whole_transaction() {
    type Damage = fn(&Path, u64);
    let damages: [(&str, Damage); 4] = [
        ("cut in a frame", |log, bytes| set_length(log, bytes - 5000)),
        ("cut in the header", |log, _| set_length(log, 20)),
        ("garbage behind", |log, bytes| overwrite(log, bytes, &[0xa5; 30_000])),
        ("garbage in the last frames", |log, bytes| overwrite(log, bytes - 10_000, &[0x5a; 10_000])),
    ];
    for (what, damage) in damages {
        let lab = Lab::new();
        let app = logged(&lab);
        crash(&lab, &["", "-wal"]);
        drop(app);
        let log = lab.path("data/app.db-wal");
        damage(&log, fs::metadata(&log).expect("a log").len());
        let (seen, before) = (seen_by_sqlite(&lab), digest(&lab.path("data/app.db")));
        let restored = restored(&lab).await;
        assert_eq!(digest(&restored), digest(&seen), "{what}");
        assert_eq!(digest(&lab.path("data/app.db")), before, "{what}: the source is untouched");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_index_without_a_log_is_no_obstacle() {
    let lab = Lab::new();
    let app = logged(&lab);
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoints");
    crash(&lab, &["", "-shm"]);
    drop(app);
    assert_same(&restored(&lab).await, &lab.path("data/app.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_page_is_stored_with_a_flag_and_never_restored_in_silence() {
    for mode in ["wal", "delete"] {
        let lab = Lab::new();
        drop(open(&lab, &format!("PRAGMA journal_mode={mode}; {FILL}")));
        crash(&lab, &[""]);
        overwrite(&lab.path("data/app.db"), 40 * 4096, &[0xff; 4096]);
        let manifest = lab.stored(&lab.path("data/app.db")).await;
        assert_eq!(manifest.flags, [Flag::Malformed], "{mode}");
        let error = lab.restored_to(&manifest, &lab.path("restored.db")).await.expect_err("it is not whole");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
        let error =
            verify::run(&lab.catalog(), &manifest, &lab.resources()).await.expect_err("it is not whole");
        assert_eq!(error.error.kind(), ErrorKind::Corrupt);
        assert!(!lab.path("restored.db").exists());
    }
}

/// A proof stands for the check; here it is written by hand, for the check could only fail.
#[tokio::test(flavor = "multi_thread")]
async fn what_a_proof_stands_for_is_not_checked_again() {
    let lab = Lab::new();
    drop(open(&lab, FILL));
    crash(&lab, &[""]);
    overwrite(&lab.path("data/app.db"), 40 * 4096, &[0xff; 4096]);
    let manifest = lab.stored(&lab.path("data/app.db")).await;
    let (snapshot, proven_at) = (manifest.id.clone(), manifest.taken_at);
    let proof = Proof {
        format: 1,
        snapshot,
        proven_at,
        took_ms: 1,
        check: "none".to_owned(),
        assertion: None,
        failure: None,
        tool: "test".to_owned(),
    };
    lab.catalog().write_proof(&proof).await.expect("writes");
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_truncated_database_is_refused() {
    let lab = Lab::new();
    drop(open(&lab, FILL));
    crash(&lab, &[""]);
    set_length(&lab.path("data/app.db"), 100 * 4096);
    let error = lab.back_up(&lab.path("data/app.db")).await.expect_err("pages are missing");
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(error.to_string().contains("malformed"), "{error}");
    assert_eq!(lab.storage.list("app/snapshots/").await.expect("lists"), []);
}

fn set_length(path: &Path, bytes: u64) {
    OpenOptions::new().write(true).open(path).and_then(|file| file.set_len(bytes)).expect("cut");
}

fn overwrite(path: &Path, at: u64, bytes: &[u8]) {
    let mut file = OpenOptions::new().write(true).open(path).expect("opens");
    file.seek(SeekFrom::Start(at)).and_then(|_| file.write_all(bytes)).expect("overwritten");
}
