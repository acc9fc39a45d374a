//! Backup, then restore: the file that comes back is the source, byte for byte.

use std::fs;
use std::sync::{Arc, Mutex};

use lifeboat::backup::Outcome;
use lifeboat::restore::{self, Damage, Moment, Resources};
use lifeboat::source::Progress;
use lifeboat::verify;
use rusqlite::Connection;

use crate::support::lab::{Lab, assert_same_bytes, checkpoint};

const FILL: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<4000)
    INSERT INTO t SELECT i, randomblob(400) FROM n;";

#[tokio::test(flavor = "multi_thread")]
async fn a_database_in_wal_mode_comes_back_byte_for_byte() {
    let lab = Lab::new();
    let app = lab.database("app.db", &format!("PRAGMA journal_mode=wal; {FILL}"));
    app.execute_batch("DELETE FROM t WHERE id % 3 = 0; PRAGMA user_version=7").expect("deletes");
    let (before, log_before) = (fs::read(lab.path("app.db")), fs::read(lab.path("app.db-wal")));
    let manifest = lab.stored(&lab.path("app.db")).await;
    assert_eq!(
        fs::read(lab.path("app.db")).expect("readable"),
        before.expect("readable"),
        "the source is untouched"
    );
    assert_eq!(
        fs::read(lab.path("app.db-wal")).expect("readable"),
        log_before.expect("readable"),
        "so is its log"
    );

    assert_eq!(manifest.sqlite.user_version, 7);
    assert_eq!(manifest.flags, vec![]);
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    drop(app);
    checkpoint(&lab.path("app.db"));
    assert_same_bytes(&lab.path("app.db"), &lab.path("restored.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_a_rollback_journal_comes_back_byte_for_byte() {
    let lab = Lab::new();
    let app = lab.database("app.db", FILL);
    let manifest = lab.stored(&lab.path("app.db")).await;
    assert_eq!(manifest.sqlite.journal_mode, "delete");
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    drop(app);
    assert_same_bytes(&lab.path("app.db"), &lab.path("restored.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_database_is_stored_once() {
    let lab = Lab::new();
    let app = lab.database("app.db", &format!("PRAGMA journal_mode=wal; {FILL}"));
    let manifest = lab.stored(&lab.path("app.db")).await;
    let objects = lab.storage.list("").await.expect("lists");
    // A checkpoint moves bytes about but changes no content.
    app.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).expect("checkpoints");
    match lab.back_up(&lab.path("app.db")).await.expect("backs up") {
        Outcome::Unchanged(known) => assert_eq!(known.id, manifest.id),
        Outcome::Stored(_) => panic!("stored again"),
    }
    assert_eq!(lab.storage.list("").await.expect("lists"), objects);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restore_shows_one_moment_while_a_writer_goes_on() {
    let lab = Lab::new();
    let app = lab.database("app.db", &format!("PRAGMA journal_mode=wal; {FILL} CREATE TABLE log(n INTEGER)"));
    let writing = std::thread::spawn(move || {
        for n in 0..2000 {
            app.execute("INSERT INTO log VALUES (?1)", [n]).expect("writes");
        }
    });
    for _ in 0..5 {
        let manifest = lab.stored(&lab.path("app.db")).await;
        let output = lab.path(manifest.id.as_str());
        lab.restored_to(&manifest, &output).await.expect("restores");
        let copy = Connection::open(&output).expect("opens");
        let (count, last): (i64, Option<i64>) = copy
            .query_row("SELECT count(*), max(n) FROM log", [], |row| Ok((row.get(0)?, row.get(1)?)))
            .expect("queries");
        assert_eq!(last.map_or(0, |last| last + 1), count, "a prefix of what was committed");
    }
    writing.join().expect("the writer finishes");
}

/// SQLite alone cannot check what is ordered by a collation that only the application has.
#[tokio::test(flavor = "multi_thread")]
async fn a_database_with_a_collation_of_its_own_is_stored_proven_and_restored() {
    let lab = Lab::new();
    let sql = "CREATE TABLE t(word TEXT COLLATE nocase PRIMARY KEY) WITHOUT ROWID; INSERT INTO t VALUES ('a'), ('b');
        PRAGMA writable_schema=ON; UPDATE sqlite_schema SET sql = replace(sql, 'nocase', 'unicase');";
    drop(lab.database("app.db", sql));
    let manifest = lab.stored(&lab.path("app.db")).await;
    assert_eq!(manifest.flags, vec![]);
    let proof = verify::run(&lab.catalog(), &manifest, &lab.resources()).await.expect("proven by its hashes");
    assert_eq!(proof.check, "hashes");
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    assert_same_bytes(&lab.path("app.db"), &lab.path("restored.db"));
}

#[tokio::test]
async fn a_restore_tells_how_far_it_is() {
    let lab = Lab::new();
    drop(lab.database("app.db", "CREATE TABLE t(x); INSERT INTO t VALUES (randomblob(3000000))"));
    let manifest = lab.stored(&lab.path("app.db")).await;
    let told: Arc<Mutex<Vec<Progress>>> = Arc::default();
    let seen = Arc::clone(&told);
    let on_progress = Arc::new(move |progress| seen.lock().expect("whole").push(progress));
    let resources = Resources { on_progress, ..lab.resources() };
    let moment = Moment::of(manifest.clone());
    restore::to_new_file(&resources, &moment, &lab.path("new.db"), Damage::Refused).await.expect("restored");
    let told = told.lock().expect("whole");
    assert!(told.len() > 1 && told.windows(2).all(|pair| pair[0].done < pair[1].done), "{told:?}");
    let last = told.last().expect("there is one");
    assert_eq!((last.done, last.total), (manifest.plain.bytes, manifest.plain.bytes));
}
