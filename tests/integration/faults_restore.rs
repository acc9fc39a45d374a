//! Faults of restores: what does not fit, a snapshot that goes away meanwhile, a file system of its own.

use std::fs;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::sync::Arc;
use std::time::{Duration, Instant};

use lifeboat::error::ErrorKind;
use lifeboat::restore::{self, Damage, Moment};
use lifeboat::storage::{Directory, Fault, Faulty, How, Operation};
use rusqlite::Connection;
use rustix::process::Signal;
use serde_json::json;

use crate::support::files::state;
use crate::support::lab::Lab;
use crate::support::mount::SmallDisk;
use crate::support::program::{Program, ask, free_address};
use crate::support::station::Station;

fn words(connection: &Connection) -> String {
    let sql = "SELECT group_concat(x, ' ') FROM t";
    connection.query_row(sql, [], |row| row.get::<_, String>(0)).expect("queries")
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_another_size_are_refused_where_the_database_is_open() {
    let station = Station::new().await;
    let app = &station.connections[0];
    let first = station.get("/backup-now").await.json()["snapshot"]["id"].clone();
    let other_pages = "PRAGMA journal_mode=delete; PRAGMA page_size=8192; VACUUM; PRAGMA journal_mode=wal;
        INSERT INTO t VALUES ('second')";
    app.execute_batch(other_pages).expect("changes its pages");
    let restore = json!({"database": "app", "confirm": "app", "snapshot": first});
    let answer = station.post("/restore", &restore).await;
    assert_eq!((answer.status.as_u16(), answer.error_kind().as_str()), (409, "target"), "{answer:?}");
    assert!(answer.body.contains("stop the application and run `lifeboat restore`"), "{answer:?}");
    assert_eq!(words(app), "first second", "nothing was changed");
}

/// A restore into an open database of four megabytes is refused for want of space, and changes nothing.
fn require_no_room(program: &Program, address: SocketAddr) {
    let app = program.app(
        "PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES ('old');
         INSERT INTO t SELECT zeroblob(4000000); PRAGMA wal_checkpoint(TRUNCATE);",
    );
    let mut daemon = program.start(&["run"]);
    daemon.wait_for_log("proved snapshot");
    app.execute_batch("UPDATE t SET x = 'new' WHERE x = 'old'").expect("writes");
    let answer = ask(address, "POST /restore", r#"{"database":"app","confirm":"app"}"#);
    assert!(answer.contains("not enough space, nothing was changed"), "{answer}");
    let word: String = app.query_row("SELECT x FROM t LIMIT 1", [], |row| row.get(0)).expect("queries");
    assert_eq!(word, "new");
    assert_eq!(daemon.end(Signal::TERM).code, Some(0));
}

#[test]
fn a_log_that_would_not_fit_is_noticed_before_an_open_database_is_replaced() {
    let address = free_address();
    let program = Program::new().with("BACKUP_HTTP_ADDR", address.to_string());
    // Room for the database, and less than for it once more beside what is left to the application.
    let _disk = SmallDisk::mount(program.path("data"), "36m");
    require_no_room(&program, address);
}

/// What was looked for before the copy was fetched may be taken by the copy.
#[test]
fn a_log_that_would_not_fit_beside_the_copy_is_noticed_too() {
    let address = free_address();
    let program = Program::new();
    let backups = program.path("data/backups").display().to_string();
    let program = program.with("BACKUP_HTTP_ADDR", address.to_string()).with("BACKUP_DIR", backups);
    // Room for the database once more, and less than for it twice.
    let _disk = SmallDisk::mount(program.path("data"), "42m");
    require_no_room(&program, address);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_is_pruned_while_it_is_restored_leaves_the_old_database() {
    let dir = tempfile::tempdir().expect("a temporary directory");
    let storage = Faulty::new(Arc::new(Directory::open(dir.path().join("backups")).expect("opens")));
    let lab = Lab::over(dir, Arc::new(storage.clone()));
    fs::create_dir(lab.path("data")).expect("a folder");
    drop(lab.database("data/app.db", "CREATE TABLE t(x); INSERT INTO t VALUES ('old')"));
    let manifest = lab.stored(&lab.path("data/app.db")).await;
    drop(lab.database("data/app.db", "UPDATE t SET x = 'new'"));
    let before = state(&lab.path("data"));
    // The seek table, and the first piece.
    for nth in 1..=2 {
        storage.script(Fault::at(Operation::ReadRange, nth, How::Before(ErrorKind::NotFound)));
        let keep = NonZeroUsize::new(3).expect("not zero");
        let plan =
            restore::plan(&Moment::of(manifest.clone()), &lab.path("data/app.db"), keep).expect("planned");
        let error = restore::onto(&lab.resources(), &Moment::of(manifest.clone()), &plan, Damage::Refused)
            .await
            .expect_err("the data has gone");
        assert_eq!(error.kind(), ErrorKind::NotFound, "{nth}: {error:?}");
        assert_eq!(state(&lab.path("data")), before, "{nth}");
    }
}

#[test]
fn a_restore_into_an_open_database_killed_at_any_moment_leaves_the_old_or_the_new() {
    let address = free_address();
    let program = Program::new().with("BACKUP_HTTP_ADDR", address.to_string());
    let fill = |word: &str, rows: u32| {
        format!(
            "BEGIN; DELETE FROM t; INSERT INTO t VALUES ('{word}'); WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL \
             SELECT i+1 FROM n WHERE i<{rows}) INSERT INTO t SELECT randomblob(5000) FROM n; COMMIT;"
        )
    };
    drop(program.app(&format!("PRAGMA journal_mode=delete; CREATE TABLE t(x); {}", fill("old", 2_000))));
    program.succeed(&["backup"]);
    let snapshot = program.snapshots().remove(0);
    let (mut old, mut new) = (0, 0);
    for round in 0..6 {
        drop(program.app(&fill("new", 2_500)));
        let mut daemon = program.start(&["run"]);
        daemon.wait_for_log("backing up app to");
        let restore = format!(r#"{{"database":"app","confirm":"app","snapshot":"{snapshot}"}}"#);
        let asked = std::thread::spawn(move || {
            // Its answer is cut off.
            let _ = std::panic::catch_unwind(|| ask(address, "POST /restore?wait=false", &restore));
        });
        asked.join().expect("no panic leaves it");
        // Until pages are written, or noted to be; then a little further each time.
        let written =
            || fs::metadata(program.database()).and_then(|database| database.modified()).expect("there");
        let (journal, before, waiting) = (program.path("data/app.db-journal"), written(), Instant::now());
        while !journal.exists() && written() == before && waiting.elapsed() < Duration::from_secs(20) {
            std::thread::sleep(Duration::from_millis(1));
        }
        std::thread::sleep(Duration::from_millis(round * 8));
        daemon.end(Signal::KILL);
        let app = program.app("");
        let whole: String = app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checks");
        assert_eq!(whole, "ok", "round {round}");
        let (word, rows): (String, u32) = app
            .query_row("SELECT (SELECT x FROM t LIMIT 1), count(*) FROM t", [], |row| {
                Ok((row.get(0)?, row.get(1)?))
            })
            .expect("queries");
        match (word.as_str(), rows) {
            ("new", 2_501) => new += 1,
            ("old", 2_001) => old += 1,
            other => panic!("round {round}: {other:?}"),
        }
    }
    assert!(new > 0, "some were killed before the end: {old} {new}");
}

#[test]
fn a_database_on_a_file_system_of_its_own_is_restored() {
    let program = Program::new();
    let _disk = SmallDisk::mount(program.path("data"), "64m");
    drop(program.app("CREATE TABLE t(x); INSERT INTO t VALUES ('old')"));
    program.succeed(&["backup"]);
    drop(program.app("UPDATE t SET x = 'new'"));
    program.succeed(&["restore"]);
    assert_eq!(words(&program.app("")), "old");
    fs::remove_file(program.database()).expect("removed");
    program.succeed(&["restore"]);
    assert_eq!(words(&program.app("")), "old");
    program.succeed(&["restore", "--output", &program.path("elsewhere.db").display().to_string()]);
}
