//! Every shape a database comes in: backed up and restored it is the same, byte for byte, and the
//! source is as it was. What a crash left beside a database is in `zoo_crashed`.

use std::fs;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use lifeboat::backup::Outcome;
use lifeboat::error::ErrorKind;
use lifeboat::snapshot::Flag;
use lifeboat::verify;
use rusqlite::Connection;

use crate::support::files::{assert_same, names, state};
use crate::support::lab::{Lab, checkpoint};

/// Rows with gaps between them: b-tree pages, overflow pages and a free list.
const FILL: &str = "CREATE TABLE t(id INTEGER PRIMARY KEY, name TEXT, x BLOB);
    CREATE INDEX i ON t(name);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<600)
    INSERT INTO t SELECT i, 'näme ' || i, randomblob(i*7%3000) FROM n;
    DELETE FROM t WHERE id % 3 = 0;";

fn open(lab: &Lab) -> Connection {
    fs::create_dir(lab.path("data")).expect("a folder for the database");
    Connection::open(lab.path("data/app.db")).expect("the database opens")
}

/// Makes a database with `header` before and `content` after its journal mode is set, once with
/// and once without a write-ahead log; it must come back, and its folder be as it was.
async fn comes_back(header: &str, content: &str) {
    for mode in ["wal", "delete"] {
        let lab = Lab::new();
        let app = open(&lab);
        app.execute_batch(&format!("{header}; PRAGMA journal_mode={mode}; {content}")).expect(content);
        comes_back_from(&lab, app).await;
    }
}

async fn comes_back_from(lab: &Lab, app: Connection) {
    let source = lab.path("data/app.db");
    let before = state(&lab.path("data"));
    let manifest = lab.stored(&source).await;
    assert_eq!(state(&lab.path("data")), before, "the source is untouched and nothing is beside it");
    assert_eq!(manifest.flags, vec![]);
    verify::run(&lab.catalog(), &manifest, &lab.resources()).await.expect("proven");
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    drop(app);
    checkpoint(&source);
    assert_same(&source, &lab.path("restored.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn every_page_size_comes_back() {
    for page_size in [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536] {
        comes_back(&format!("PRAGMA page_size={page_size}"), FILL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn auto_vacuum_comes_back() {
    for kind in ["FULL", "INCREMENTAL"] {
        comes_back(&format!("PRAGMA auto_vacuum={kind}"), FILL).await;
    }
    let some = "PRAGMA incremental_vacuum(20)";
    comes_back("PRAGMA auto_vacuum=INCREMENTAL", &format!("{FILL} {some};")).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn utf_16_comes_back() {
    for encoding in ["UTF-16le", "UTF-16be"] {
        comes_back(&format!("PRAGMA encoding='{encoding}'"), FILL).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tables_of_every_kind_come_back() {
    let tables = [
        "CREATE TABLE w(a TEXT, b BLOB, PRIMARY KEY(b, a)) WITHOUT ROWID;
         INSERT INTO w SELECT name, x FROM t;",
        "CREATE VIRTUAL TABLE f USING fts5(name, content='t', content_rowid='id');
         INSERT INTO f(f) VALUES ('rebuild');
         CREATE VIRTUAL TABLE g USING fts5(words); INSERT INTO g SELECT name FROM t;",
        "CREATE VIRTUAL TABLE r USING rtree(id, x0, x1, y0, y1);
         INSERT INTO r SELECT id, id, id+1, -id, -id+1 FROM t;",
        "CREATE TABLE c(a INT, b INT AS (a*2) STORED, d TEXT AS (a || '!') VIRTUAL);
         CREATE INDEX ci ON c(d); INSERT INTO c(a) SELECT id FROM t;",
        "CREATE TABLE s(a INT, b ANY) STRICT; INSERT INTO s SELECT id, x FROM t;
         CREATE VIEW v AS SELECT * FROM s; CREATE TRIGGER g AFTER INSERT ON s BEGIN DELETE FROM t; END;",
    ];
    for table in tables {
        comes_back("", &format!("{FILL} {table}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reserved_bytes_come_back() {
    const RESERVED: usize = 32;
    const PAGE: usize = 4096;
    let lab = Lab::new();
    let app = open(&lab);
    app.execute_batch(&format!("PRAGMA page_size={PAGE}; PRAGMA user_version=1")).expect("one page");
    drop(app);
    // What an extension for encryption or checksums asks SQLite for: byte 20 of the header says how
    // many bytes each page keeps for it, and page 1's cells begin that much earlier.
    let path = lab.path("data/app.db");
    let mut page = fs::read(&path).expect("readable");
    assert_eq!(page.len(), PAGE);
    page[20] = RESERVED as u8;
    page[105..107].copy_from_slice(&((PAGE - RESERVED) as u16).to_be_bytes());
    fs::write(&path, page).expect("writable");

    let app = Connection::open(&path).expect("opens");
    app.execute_batch(&format!("PRAGMA journal_mode=wal; {FILL}")).expect("fills");
    comes_back_from(&lab, app).await;
    assert_eq!(fs::read(lab.path("restored.db")).expect("readable")[20], RESERVED as u8);
}

#[tokio::test(flavor = "multi_thread")]
async fn application_id_and_user_version_are_kept_and_recorded() {
    let lab = Lab::new();
    let app = open(&lab);
    app.execute_batch(&format!("{FILL} PRAGMA user_version=-7; PRAGMA application_id=0x4c494645"))
        .expect("set");
    let manifest = lab.stored(&lab.path("data/app.db")).await;
    assert_eq!((manifest.sqlite.user_version, manifest.sqlite.application_id), (-7, 0x4c49_4645));
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    let restored = Connection::open(lab.path("restored.db")).expect("opens");
    for (pragma, expected) in [("user_version", -7), ("application_id", 0x4c49_4645)] {
        let value: i64 =
            restored.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get(0)).expect("queries");
        assert_eq!(value, expected, "{pragma}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_beyond_one_gibibyte_comes_back_with_its_lock_page() {
    let lab = Lab::new();
    let app = open(&lab);
    // Zeros in two rows up to just below 1 GiB, then rows that straddle the page of the lock byte.
    app.execute_batch(
        "PRAGMA page_size=65536; PRAGMA journal_mode=off; PRAGMA synchronous=off; PRAGMA cache_size=-65536;
         CREATE TABLE t(x BLOB);
         INSERT INTO t VALUES (zeroblob(999999000)), (zeroblob(73000000));
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<64)
         INSERT INTO t SELECT randomblob(60000) FROM n;
         PRAGMA journal_mode=wal; INSERT INTO t VALUES ('in the log');",
    )
    .expect("fills");
    let pages: i64 = app.query_row("PRAGMA page_count", [], |row| row.get(0)).expect("counts");
    assert!(pages * 65536 > (1 << 30) + (1 << 20), "data stands beyond the lock page");
    let manifest = lab.stored(&lab.path("data/app.db")).await;
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    drop(app);
    assert_same(&lab.path("data/app.db"), &lab.path("restored.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_symbolic_link_is_followed_to_the_log_beside_the_real_file() {
    let lab = Lab::new();
    let app = open(&lab);
    app.execute_batch(&format!("PRAGMA journal_mode=wal; {FILL}")).expect("fills");
    fs::create_dir(lab.path("links")).expect("a folder");
    std::os::unix::fs::symlink("../data/app.db", lab.path("links/app.db")).expect("a link");
    let manifest = lab.stored(&lab.path("links/app.db")).await;
    assert_eq!(names(&lab.path("links")), ["app.db"], "nothing is beside the link");
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    drop(app);
    assert_same(&lab.path("data/app.db"), &lab.path("restored.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_hard_link_is_refused() {
    let lab = Lab::new();
    drop(open(&lab).execute_batch(FILL));
    fs::hard_link(lab.path("data/app.db"), lab.path("data/other.db")).expect("a link");
    let error = lab.back_up(&lab.path("data/app.db")).await.expect_err("two logs for one database");
    assert_eq!(error.kind(), ErrorKind::Source);
    assert!(error.to_string().contains("hard link"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_closed_database_in_wal_mode_stays_alone() {
    let lab = Lab::new();
    let app = open(&lab);
    app.execute_batch(&format!("PRAGMA journal_mode=wal; {FILL}")).expect("fills");
    drop(app);
    let before = state(&lab.path("data"));
    assert_eq!(before.keys().collect::<Vec<_>>(), ["app.db"], "closing took log and index away");
    let manifest = lab.stored(&lab.path("data/app.db")).await;
    assert_eq!(state(&lab.path("data")), before);
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    assert_same(&lab.path("data/app.db"), &lab.path("restored.db"));
}

#[tokio::test(flavor = "multi_thread")]
async fn vacuum_a_new_page_size_and_another_journal_mode_between_backups_change_nothing() {
    let lab = Lab::new();
    let app = open(&lab);
    app.execute_batch(&format!("PRAGMA journal_mode=wal; {FILL}")).expect("fills");
    let changes = [
        "SELECT 1",
        "DELETE FROM t WHERE id % 2 = 0; VACUUM",
        "PRAGMA journal_mode=delete; PRAGMA page_size=1024; VACUUM",
        "PRAGMA journal_mode=truncate; INSERT INTO t(name) VALUES ('truncate')",
        "PRAGMA journal_mode=persist; INSERT INTO t(name) VALUES ('persist')",
        "PRAGMA auto_vacuum=full; VACUUM; PRAGMA journal_mode=wal; INSERT INTO t(name) VALUES ('wal')",
    ];
    let mut parent = None;
    for (number, change) in changes.into_iter().enumerate() {
        app.execute_batch(change).expect(change);
        let manifest = lab.stored(&lab.path("data/app.db")).await;
        assert_eq!(manifest.parent, parent, "one line of snapshots");
        let restored = lab.path(&format!("restored-{number}.db"));
        lab.restored_to(&manifest, &restored).await.expect(change);
        let copy = lab.path(&format!("copy-{number}.db"));
        app.execute("VACUUM INTO ?1", [copy.to_str().expect("UTF-8")]).expect("copies");
        assert_eq!(rows(&restored), rows(&copy), "{change}");
        parent = Some(manifest.id);
    }
}

fn rows(path: &std::path::Path) -> Vec<(i64, String, Option<Vec<u8>>)> {
    let connection = Connection::open(path).expect("opens");
    let mut statement = connection.prepare("SELECT id, name, x FROM t ORDER BY id").expect("prepares");
    let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).expect("queries");
    rows.map(|row| row.expect("a row")).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_database_that_was_replaced_by_a_rename_is_the_new_one() {
    let lab = Lab::new();
    open(&lab).execute_batch(FILL).expect("fills");
    let first = lab.stored(&lab.path("data/app.db")).await;
    lab.database("other.db", "CREATE TABLE other(x); PRAGMA user_version=2");
    fs::rename(lab.path("other.db"), lab.path("data/app.db")).expect("renames");
    let second = lab.stored(&lab.path("data/app.db")).await;
    assert_eq!((first.sqlite.user_version, second.sqlite.user_version), (0, 2));
    assert_eq!(second.flags, [Flag::Shrunken]);
}

/// 16 MiB of rows, so that a backup takes several steps.
const LARGE: &str = "CREATE TABLE t(x BLOB); CREATE TABLE log(n INTEGER);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<256)
    INSERT INTO t SELECT randomblob(65000) FROM n;";

#[tokio::test(flavor = "multi_thread")]
async fn a_writer_never_waits_for_a_backup_in_wal_mode() {
    let lab = Lab::new();
    let app = open(&lab);
    app.execute_batch(&format!("PRAGMA journal_mode=wal; {LARGE} PRAGMA wal_checkpoint(TRUNCATE)"))
        .expect("fills");
    // No patience at all: had the backup any lock in the way, the write would fail.
    app.busy_timeout(Duration::ZERO).expect("set");
    let (writer, written) = (Mutex::new(app), Arc::new(AtomicU32::new(0)));
    let count = Arc::clone(&written);
    let write = move |_| {
        let writer = writer.lock().expect("not poisoned");
        writer.execute("INSERT INTO log VALUES (1)", []).expect("writes in the middle of a backup");
        count.fetch_add(1, Ordering::Relaxed);
    };
    let outcome = lab.back_up_watched(&lab.path("data/app.db"), Arc::new(write)).await.expect("backs up");
    let Outcome::Stored(manifest) = outcome else { panic!("the database is new") };
    assert!(written.load(Ordering::Relaxed) >= 3, "there were several steps");
    assert_eq!(manifest.writer_blocked_ms, 0);
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    let restored = Connection::open(lab.path("restored.db")).expect("opens");
    let seen: u32 = restored.query_row("SELECT count(*) FROM log", [], |row| row.get(0)).expect("queries");
    assert_eq!(seen, 0, "the snapshot shows the moment it began");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_that_grows_too_much_ends_the_backup_and_not_the_application() {
    let mut lab = Lab::new();
    lab.settings.wal_growth_max = 1 << 20;
    let app = open(&lab);
    app.execute_batch(&format!("PRAGMA journal_mode=wal; {LARGE} PRAGMA wal_checkpoint(TRUNCATE)"))
        .expect("fills");
    let writer = Arc::new(Mutex::new(app));
    let app = Arc::clone(&writer);
    let write = move |_| {
        let writer = writer.lock().expect("not poisoned");
        writer.execute("INSERT INTO t VALUES (randomblob(2000000))", []).expect("writes");
    };
    let error =
        lab.back_up_watched(&lab.path("data/app.db"), Arc::new(write)).await.expect_err("the log grows");
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("backup.wal_growth_max"), "{error}");
    assert_eq!(lab.catalog().list().await.expect("lists").snapshots.len(), 0);
    let snapshots = lab.storage.list("app/snapshots/").await.expect("lists");
    assert_eq!(snapshots, [], "what was begun is undone");
    let app = app.lock().expect("not poisoned");
    let (busy, log): (i64, i64) = app
        .query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |row| Ok((row.get(0)?, row.get(1)?)))
        .expect("checkpoints");
    assert_eq!((busy, log), (0, 0), "nothing holds the log any more");
}

#[tokio::test(flavor = "multi_thread")]
async fn writers_without_a_log_wait_no_longer_than_allowed() {
    let mut lab = Lab::new();
    lab.settings.writer_blocked_max = Duration::ZERO;
    let app = open(&lab);
    app.execute_batch(LARGE).expect("fills");
    let error = lab.back_up(&lab.path("data/app.db")).await.expect_err("no time at all");
    assert_eq!(error.kind(), ErrorKind::Limit);
    assert!(error.to_string().contains("backup.writer_blocked_max"), "{error}");
    app.busy_timeout(Duration::ZERO).expect("set");
    app.execute("INSERT INTO log VALUES (1)", []).expect("nobody holds a lock");
    lab.settings.writer_blocked_max = Duration::from_secs(30);
    let manifest = lab.stored(&lab.path("data/app.db")).await;
    lab.restored_to(&manifest, &lab.path("restored.db")).await.expect("restores");
    assert_same(&lab.path("data/app.db"), &lab.path("restored.db"));
}
