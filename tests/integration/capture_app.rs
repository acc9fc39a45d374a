//! An application that does to its database what applications do, by the throw of dice.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use rusqlite::Connection;

/// Steele, Lea and Flood's splitmix: enough to choose by, and the same everywhere.
pub struct Dice(pub u64);

impl Dice {
    pub fn below(&mut self, bound: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (mixed ^ (mixed >> 31)) % bound
    }

    pub fn bytes(&mut self, count: u64) -> Vec<u8> {
        (0..count).map(|_| self.below(256) as u8).collect()
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u64) as usize]
    }
}

/// What happened, so that no life is dull.
#[derive(Debug, Clone, Default)]
pub struct Seen {
    counts: BTreeMap<&'static str, u64>,
}

impl Seen {
    pub fn note(&mut self, what: &'static str) {
        *self.counts.entry(what).or_default() += 1;
    }

    pub fn add(&mut self, other: &Seen) {
        for (what, count) in &other.counts {
            *self.counts.entry(what).or_default() += count;
        }
    }

    pub fn all(&self) -> Vec<(&'static str, u64)> {
        WANTED.iter().map(|what| (*what, self.counts.get(what).copied().unwrap_or(0))).collect()
    }
}

const WANTED: &[&str] = &[
    "recorded",
    "comparisons",
    "snapshots",
    "snapshots while following",
    "captures that went on",
    "captures that began anew",
    "shipments that failed",
    "vacuums",
    "journal modes changed",
    "logs truncated",
    "last connections closed",
    "shipments without a log",
    "restores while a capture begins",
];

/// The application.
pub struct App {
    pub path: PathBuf,
    pub connection: Option<Connection>,
    pub dice: Dice,
    pub seen: Seen,
}

impl App {
    fn open(&mut self) -> &Connection {
        let path = &self.path;
        self.connection.get_or_insert_with(|| {
            let connection = Connection::open(path).expect("opens");
            connection.busy_timeout(Duration::ZERO).expect("set");
            let settings = "PRAGMA synchronous=OFF; PRAGMA cache_size=5; PRAGMA wal_autocheckpoint=0";
            connection.execute_batch(settings).expect("set");
            connection
        })
    }

    /// Something that an application does; whether it could be done.
    pub fn act(&mut self) {
        let (table, bytes) = (self.dice.below(3), self.dice.below(1500));
        let blob = self.dice.bytes(bytes);
        let rows = 1 + self.dice.below(12);
        let every = 1 + self.dice.below(4);
        let insert = format!(
            "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<{rows})
             INSERT INTO t{table}(x) SELECT ?1 FROM n"
        );
        match self.dice.below(23) {
            0..=5 => drop(self.open().execute(&insert, [&blob])),
            6..=7 => {
                let sql = format!("UPDATE t{table} SET x=?1 WHERE id % 5 < {every}");
                drop(self.open().execute(&sql, [&blob]));
            }
            8 => self.attempt(&format!("DELETE FROM t{table} WHERE id % 5 < {every}")),
            // Back to what it was: pages that are the same at both ends.
            9 => {
                self.attempt("UPDATE t0 SET flag=1 WHERE id<20");
                self.attempt("UPDATE t0 SET flag=0 WHERE id<20");
            }
            10 => {
                if self.run("VACUUM") {
                    self.seen.note("vacuums");
                }
            }
            11 => drop(
                self.run(&format!("CREATE TABLE IF NOT EXISTS t{table}(id INTEGER PRIMARY KEY, flag, x)")),
            ),
            12 => self.attempt(&format!("DROP TABLE IF EXISTS t{}", 1 + table % 2)),
            13 => self.attempt(&format!("CREATE INDEX IF NOT EXISTS i{table} ON t{table}(x)")),
            // The cache spills into the log, and is rolled back.
            14 => {
                let sql = format!(
                    "BEGIN; UPDATE t0 SET x=zeroblob(700); {}; ROLLBACK",
                    insert.replace("?1", "zeroblob(900)")
                );
                self.attempt(&sql);
            }
            // Pages that come and go within a transaction are never written.
            15 => {
                let fill = insert.replace("?1", "zeroblob(2000)");
                self.attempt(&format!("BEGIN; {fill}; DELETE FROM t{table} WHERE id % 3 = 0; COMMIT"));
            }
            16 => self.attempt("PRAGMA incremental_vacuum(7)"),
            17..=18 => self.checkpoint(),
            19 => {
                self.connection = None;
                self.seen.note("last connections closed");
            }
            20 => self.leave_the_log(every < 4),
            21 => self.attempt("PRAGMA journal_mode=wal"),
            _ => self.attempt(&format!("PRAGMA user_version={bytes}")),
        }
    }

    /// Does without a log for a while, or for longer.
    pub fn leave_the_log(&mut self, comes_back: bool) {
        if self.run("PRAGMA journal_mode=delete") && self.journal_mode() == "delete" {
            self.seen.note("journal modes changed");
            self.attempt("UPDATE t0 SET flag=id");
            if comes_back {
                self.attempt("PRAGMA journal_mode=wal");
            }
        }
    }

    /// What may well be impossible now.
    pub fn attempt(&mut self, sql: &str) {
        self.run(sql);
    }

    pub fn run(&mut self, sql: &str) -> bool {
        let connection = self.open();
        let is_done = connection.execute_batch(sql).is_ok();
        if !connection.is_autocommit() {
            connection.execute_batch("ROLLBACK").expect("rolled back");
        }
        is_done
    }

    fn checkpoint(&mut self) {
        let mode = self.dice.one_of(&["PASSIVE", "FULL", "RESTART", "TRUNCATE"]);
        let sql = format!("PRAGMA wal_checkpoint({mode})");
        let is_busy = self.open().query_row(&sql, [], |row| row.get::<_, bool>(0));
        if mode == "TRUNCATE" && is_busy.is_ok_and(|is_busy| !is_busy) {
            self.seen.note("logs truncated");
        }
    }

    pub fn journal_mode(&mut self) -> String {
        self.open().query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("asked")
    }

    pub fn several(&mut self, most: u64) {
        for _ in 0..self.dice.below(most + 1) {
            self.act();
        }
    }
}
