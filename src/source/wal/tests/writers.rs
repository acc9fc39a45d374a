//! Writers at full speed, with checkpoints of their own, while the log is read.

use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags};

use crate::source::wal::fixture::{BOUNDS, Replica, Scene, run};
use crate::source::wal::{Log, Loss, Outcome};

/// Rows of the table: transaction number n writes some of them, which ones and what follows from n.
const ROWS: u32 = 60;

/// What row `row` holds after `count` transactions: the number of the last one that wrote to it.
fn last_writer(row: u32, count: u32) -> u32 {
    (1..=count).rev().take(40).find(|number| writes(*number).any(|written| written == row)).unwrap_or(0)
}

/// The rows that transaction `number` writes.
fn writes(number: u32) -> impl Iterator<Item = u32> {
    let rows = if number.is_multiple_of(17) { ROWS } else { 1 + number % 3 };
    (0..rows).map(move |at| (number * 7 + at) % ROWS)
}

fn write(path: &Path, checkpoint_pages: u32, stop: &AtomicBool) {
    let connection = Connection::open(path).expect("opens");
    connection.busy_timeout(Duration::from_secs(60)).expect("set");
    run(&connection, &format!("PRAGMA synchronous=OFF; PRAGMA wal_autocheckpoint={checkpoint_pages}"));
    while !stop.load(Ordering::Relaxed) {
        run(&connection, "BEGIN IMMEDIATE");
        let count: u32 =
            connection.query_row("SELECT count FROM counter", [], |row| row.get(0)).expect("asked");
        let number = count + 1;
        connection.execute("UPDATE counter SET count = ?1", [number]).expect("counts");
        for row in writes(number) {
            let sql = "UPDATE r SET number = ?1, x = zeroblob(?2) WHERE id = ?3";
            connection.execute(sql, [number, 100 + number * 13 % 900, row]).expect("writes");
        }
        run(&connection, "COMMIT");
    }
}

/// Checks that the copy is the state after some number of transactions, and says which.
fn check(replica: &Replica, scratch: &Path) -> u32 {
    let mut bytes: Vec<u8> = replica.pages.values().flat_map(|page| page.iter().copied()).collect();
    // Not in WAL mode: it has no log.
    bytes[18..20].fill(1);
    fs::write(scratch, &bytes).expect("written");
    let copy = Connection::open_with_flags(scratch, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("opens");
    let verdict: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(verdict, "ok");
    let count: u32 = copy.query_row("SELECT count FROM counter", [], |row| row.get(0)).expect("asked");
    let mut rows = copy.prepare("SELECT id, number, length(x) FROM r ORDER BY id").expect("asked");
    let rows = rows.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?))).expect("asked");
    for row in rows {
        let (id, number, length): (u32, u32, u32) = row.expect("a row");
        assert_eq!(number, last_writer(id, count), "row {id} after {count} transactions");
        assert!(number == 0 || length == 100 + number * 13 % 900, "row {id} after {count} transactions");
    }
    count
}

/// Stops the writers when it is dropped.
struct Ended<'a>(&'a AtomicBool);

impl Drop for Ended<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// What was seen of the log.
#[derive(Debug, Default)]
struct Seen {
    checked: u32,
    transactions: u32,
    runs: u32,
    losses: Vec<Loss>,
}

/// Reads while `writers` write, with a pause after each reading, until enough was seen.
fn race(writers: u32, checkpoint_pages: u32, pause: Duration, enough: impl Fn(&Seen) -> bool) -> Seen {
    let (scene, connection) = Scene::new(1024);
    run(&connection, "CREATE TABLE counter(count); INSERT INTO counter VALUES (0)");
    run(&connection, "CREATE TABLE r(id INTEGER PRIMARY KEY, number, x)");
    for row in 0..ROWS {
        connection.execute("INSERT INTO r VALUES (?1, 0, zeroblob(500))", [row]).expect("adds");
    }
    let scratch = scene.folder.path().join("copy.db");
    let stop = AtomicBool::new(false);
    let mut seen = Seen::default();
    thread::scope(|scope| {
        // Also when a check fails: the writers are waited for.
        let _ended = Ended(&stop);
        for _ in 0..writers {
            scope.spawn(|| write(&scene.path, checkpoint_pages, &stop));
        }
        let end = Instant::now() + Duration::from_secs(120);
        let mut replica = Replica::of(&scene.path);
        // Between a mark and the first reading behind the read transaction the copy is of both.
        let mut is_exact = false;
        let mut count = 0;
        while !enough(&seen) && Instant::now() < end {
            let mark = replica.mark.clone().expect("a log");
            match Log::of(&scene.path).read(&mark, &BOUNDS).expect("readable") {
                Outcome::Read(changes) => {
                    seen.transactions += changes.transactions;
                    seen.runs += u32::from(changes.mark.run != mark.run);
                    is_exact = is_exact || !changes.more;
                    replica.apply(changes);
                }
                Outcome::Lost(loss) => {
                    seen.losses.push(loss);
                    is_exact = false;
                    replica.start_again();
                }
            }
            if is_exact {
                let now = check(&replica, &scratch);
                assert!(now >= count, "back from {count} to {now}");
                (count, seen.checked) = (now, seen.checked + 1);
            }
            // How long it really is does not matter: it decides only how much there is to read.
            thread::park_timeout(pause);
        }
    });
    assert!(enough(&seen), "too slow: {} readings, {} losses", seen.checked, seen.losses.len());
    seen
}

#[test]
fn one_writer_is_followed_through_its_checkpoints() {
    let seen = race(1, 200, Duration::from_millis(1), |seen| seen.checked > 150 && seen.runs > 10);
    assert!(seen.transactions > 150, "{}", seen.transactions);
}

#[test]
fn two_writers_that_restart_the_log_all_the_time_are_never_misread() {
    race(2, 20, Duration::ZERO, |seen| {
        seen.checked > 100 && seen.transactions > 300 && !seen.losses.is_empty()
    });
}
