//! A restore beside others: another restore, an application that writes, one that is about to start.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::Duration;

use lifeboat::error::ErrorKind;

use lifeboat::storage::{Fault, How, Operation};
use rusqlite::Connection;
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use crate::support::files::{names, state};
use crate::support::program::Program;
use crate::support::station::Station;
use crate::support::word::{with_snapshot_of, word};

const BUSY: i32 = ErrorKind::Busy.exit_code() as i32;
const CORRUPT: i32 = ErrorKind::Corrupt.exit_code() as i32;
const TARGET: i32 = ErrorKind::Target.exit_code() as i32;

fn with_snapshot() -> Program {
    with_snapshot_of(
        "PRAGMA journal_mode=wal; CREATE TABLE t(word TEXT, x); INSERT INTO t(word) VALUES ('old')",
    )
}

#[test]
fn a_swap_under_way_is_left_alone() {
    let program = with_snapshot();
    let note = program.path("data/.app.db.lifeboat-intent");
    // Past the rename: no copy is there any more that could be locked.
    fs::write(&note, r#"{"format":1,"copy":".lifeboat-copy-abcdef","kept":"app.db.pre-restore-x"}"#)
        .expect("written");
    let at_work = File::open(&note).expect("opens");
    flock(&at_work, FlockOperation::LockExclusive).expect("locked");
    let before = state(&program.path("data"));
    for arguments in [&["restore"][..], &["run", "--", "touch", "started"]] {
        program.run(arguments).refused(BUSY, &["another process is restoring", "app.db"]);
        assert_eq!(state(&program.path("data")), before, "{arguments:?}");
    }
    assert!(!program.path("started").exists());
    drop(at_work);
    program.succeed(&["restore"]);
    assert_eq!(word(&program.database()), "old");
    assert!(!note.exists());
}

#[test]
fn of_restores_at_once_each_succeeds_or_says_why_not() {
    const ROUNDS: usize = 10;
    let mut refused = 0;
    for round in 0..ROUNDS {
        let program = with_snapshot();
        let running = [(); 3].map(|()| program.start(&["restore"]));
        let ended = running.map(|running| running.wait());
        let succeeded = ended.iter().filter(|ended| ended.code == Some(0)).count();
        assert!(succeeded > 0, "round {round}: {ended:?}");
        for ended in ended.iter().filter(|ended| ended.code != Some(0)) {
            assert!([Some(BUSY), Some(TARGET)].contains(&ended.code), "round {round}: {ended:?}");
            refused += 1;
        }
        assert_eq!(word(&program.database()), "old");
        let data = program.path("data");
        let (kept, others): (BTreeSet<String>, BTreeSet<String>) =
            names(&data).into_iter().partition(|name| name.starts_with("app.db.pre-restore-"));
        assert_eq!(others, BTreeSet::from(["app.db".to_owned()]), "round {round}: nothing is left over");
        assert_eq!(kept.len(), succeeded, "round {round}: {ended:?}");
        let words: Vec<String> = kept.iter().map(|name| word(&data.join(name))).collect();
        assert_eq!(words[0], "new", "round {round}: the first has kept what was there: {words:?}");
    }
    assert!(refused > 0, "some met");
}

fn rows(connection: &Connection) -> String {
    connection
        .query_row("SELECT group_concat(x, ' ') FROM t", [], |row| row.get::<_, String>(0))
        .expect("queries")
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_committed_while_the_snapshot_was_fetched_is_stored_before_it_is_replaced() {
    let station = Station::new().await;
    let first = station.get("/backup-now").await.json()["snapshot"]["id"].clone();
    station.storage.script(Fault::at(Operation::ReadRange, 1, How::Late(Duration::from_secs(1))));
    let restore = json!({"database": "app", "confirm": "app", "snapshot": first});
    let (answer, ()) = tokio::join!(station.post("/restore", &restore), async {
        tokio::time::sleep(Duration::from_millis(300)).await;
        station.connections[0].execute_batch("INSERT INTO t VALUES ('late')").expect("writes");
    });
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(rows(&station.connections[0]), "first");
    let newest = json!({"database": "app", "confirm": "app"});
    assert_eq!(station.post("/restore", &newest).await.status, 200);
    assert_eq!(rows(&station.connections[0]), "first late");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_stored_is_not_replaced() {
    let station = Station::new().await;
    let first = station.get("/backup-now").await.json()["snapshot"]["id"].clone();
    station.connections[0].execute_batch("INSERT INTO t VALUES ('second')").expect("writes");
    station.storage.script(Fault::at(Operation::Create, 1, How::Before(ErrorKind::Denied)));
    let restore = json!({"database": "app", "confirm": "app", "snapshot": first});
    let answer = station.post("/restore", &restore).await;
    assert_eq!(answer.error_kind(), "denied", "{answer:?}");
    assert_eq!(rows(&station.connections[0]), "first second");
}

#[test]
fn no_application_starts_by_itself_on_a_snapshot_of_an_empty_or_damaged_database() {
    type Ruin = fn(&Program);
    let ruins: [(&str, Ruin); 2] = [
        ("empty", |program| drop(program.app("DROP TABLE t"))),
        ("malformed", |program| {
            drop(program.app("CREATE INDEX i ON t(word); PRAGMA journal_mode=delete"));
            let mut bytes = fs::read(program.database()).expect("readable");
            // The last page, which is the index's.
            let at = bytes.len() - 4096;
            bytes[at..at + 100].fill(0xff);
            fs::write(program.database(), bytes).expect("written");
        }),
    ];
    for (flag, ruin) in ruins {
        let program = with_snapshot().with("BACKUP_RESTORE_ON_BOOT", "if-missing");
        ruin(&program);
        program.run(&["backup"]);
        let listing = program.json(&["snapshots"]);
        assert_eq!(listing["snapshots"][0]["flags"], json!([flag]), "{listing}");
        fs::remove_file(program.database()).expect("removed");
        let ended = program.run(&["run", "--", "touch", "started"]);
        assert_eq!(ended.code, Some(CORRUPT), "{ended:?}");
        assert!(ended.stderr.contains("flagged") && ended.stderr.contains(flag), "{ended:?}");
        assert!(!program.path("started").exists(), "{flag}");
        assert_eq!(names(&program.path("data")), Vec::<String>::new(), "{flag}");
        // As the refusal says.
        let older = program.snapshots()[1].clone();
        program.succeed(&["restore", "--snapshot", &older]);
        program.succeed(&["run", "--", "touch", "started"]);
        assert!(program.path("started").exists() && word(&program.database()) == "old", "{flag}");
    }
}
