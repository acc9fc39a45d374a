//! The application of the demonstration: a shop that takes orders, as a naive program would.
//!
//! It plays somebody else's program, so it opens its database by itself and knows nothing of backups.

use std::path::Path;
use std::time::Duration;

use rusqlite::{Connection, params};

use super::failed;
use crate::error::Result;

const SCHEMA: &str = "
    PRAGMA journal_mode = wal;
    PRAGMA busy_timeout = 5000;
    CREATE TABLE IF NOT EXISTS customers (id INTEGER PRIMARY KEY, name TEXT NOT NULL, notes BLOB);
    CREATE TABLE IF NOT EXISTS orders (
        id INTEGER PRIMARY KEY, customer INTEGER NOT NULL REFERENCES customers, cents INTEGER NOT NULL);
    CREATE INDEX IF NOT EXISTS orders_by_customer ON orders (customer);
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
    INSERT OR IGNORE INTO customers SELECT i, 'customer ' || i, randomblob(2000) FROM n;";

/// Takes orders until it is killed: numbered without gaps, one transaction each.
#[expect(clippy::disallowed_methods, reason = "plays another program, in a process of its own")]
pub fn write_orders(path: &Path) -> Result<()> {
    let write = || {
        let shop = Connection::open(path)?;
        shop.execute_batch(SCHEMA)?;
        let mut next: i64 =
            shop.query_row("SELECT coalesce(max(id), 0) + 1 FROM orders", [], |row| row.get(0))?;
        loop {
            let customer = next * 7919 % 5000 + 1;
            shop.execute("INSERT INTO orders VALUES (?1, ?2, ?3)", params![next, customer, next % 10_000])?;
            next += 1;
            std::thread::sleep(Duration::from_millis(2));
        }
    };
    let ended: rusqlite::Result<()> = write();
    failed(ended, "take orders")
}

/// What the shop has sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Orders {
    /// Number of orders.
    pub count: i64,
    /// The last order's number: the count, if none is missing.
    pub last: i64,
}

/// Counts the orders committed by now.
pub fn orders(path: &Path) -> Result<Orders> {
    let count = || {
        let flags = rusqlite::OpenFlags::SQLITE_OPEN_READ_WRITE;
        let shop = Connection::open_with_flags(path, flags)?;
        shop.busy_timeout(Duration::from_secs(5))?;
        shop.query_row("SELECT count(*), coalesce(max(id), 0) FROM orders", [], |row| {
            Ok(Orders { count: row.get(0)?, last: row.get(1)? })
        })
    };
    failed(count(), "count the orders")
}
