//! Asking SQLite whether a database is whole.

use std::path::Path;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::connection::{Live, explain, open_copy};
use super::frame::frame;
use super::locate::Source;
use crate::error::{Error, ErrorKind, Result};

/// How thoroughly to check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// `PRAGMA quick_check`: every page and cell, but not whether indexes match their tables.
    Quick,
    /// `PRAGMA integrity_check`: also the indexes; about ten times the work.
    Full,
}

impl Depth {
    /// The pragma's name, as proofs carry it.
    pub const fn pragma(self) -> &'static str {
        match self {
            Depth::Quick => "quick_check",
            Depth::Full => "integrity_check",
        }
    }
}

/// What a check found: nothing, or the first complaints.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Findings {
    /// The complaints.
    pub complaints: Vec<String>,
    /// Whether SQLite could look at everything. It cannot where the schema needs what only the
    /// application has: a collation, a function, a module of its own.
    pub is_complete: bool,
}

impl Findings {
    fn of(complaints: Vec<String>) -> Self {
        Findings { complaints, is_complete: true }
    }

    /// Whether the database is whole.
    pub fn is_whole(&self) -> bool {
        self.complaints.is_empty()
    }
}

/// Databases up to this size are checked whenever they are looked at (some 40 ms). Reading a larger
/// one twice would cost more than it tells; its drill checks the stored copy.
pub(super) const CHECK_BYTES_MAX: u64 = 64 << 20;

/// Complaints listed at most: the first says enough.
const COMPLAINTS_MAX: u32 = 10;

/// Checks a private copy at `path`, which nobody else has open. An empty file is whole.
///
/// `Limit` if it does not end by `deadline`.
pub fn inspect(path: &Path, depth: Depth, deadline: Instant) -> Result<Findings> {
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    if bytes == 0 {
        return Ok(Findings::of(Vec::new()));
    }
    open_copy(path, deadline)
        .and_then(|connection| run(&connection, depth))
        .or_else(|error| findings_or_error(path, error))
}

/// Refuses what is no database that can be read, before anything is made because of it.
pub fn require_database(path: &Path, busy_timeout: Duration) -> Result<()> {
    let source = Source::locate(path)?;
    Live::open(source.path(), busy_timeout)?
        .connection
        .execute_batch("SELECT 1 FROM sqlite_schema LIMIT 1")
        .map_err(|error| explain(source.path(), "read", error))
}

/// Checks the application's own database, log and journal included: `quick_check` up to 64 MiB, beyond
/// that only its frame.
pub fn inspect_live(path: &Path, busy_timeout: Duration) -> Result<Findings> {
    let bytes = std::fs::metadata(path).map_or(0, |metadata| metadata.len());
    let look = |live: &Live| match bytes {
        0..=CHECK_BYTES_MAX => run(&live.connection, Depth::Quick),
        _ => frame(&live.connection).map(Findings::of),
    };
    let live = Live::open_unexplained(path, busy_timeout);
    live.and_then(|live| look(&live)).or_else(|error| findings_or_error(path, error))
}

/// Runs the check on the open connection to the database at `path`.
pub(super) fn inspect_open(connection: &Connection, path: &Path, depth: Depth) -> Result<Findings> {
    run(connection, depth).or_else(|error| findings_or_error(path, error))
}

/// That a file is no whole database is a finding, also where SQLite ends the check because of it;
/// that it cannot be read is an error.
fn findings_or_error(path: &Path, error: rusqlite::Error) -> Result<Findings> {
    match error.sqlite_error_code() {
        Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
            Ok(Findings::of(vec![error.to_string()]))
        }
        _ => Err(explain(path, "check", error)),
    }
}

/// SQLite's general error: what it says of a schema that names something unknown to it.
const SQLITE_ERROR: i32 = 1;

fn run(connection: &Connection, depth: Depth) -> rusqlite::Result<Findings> {
    let sql = format!("PRAGMA {}({COMPLAINTS_MAX})", depth.pragma());
    let check = || {
        let mut statement = connection.prepare(&sql)?;
        let lines = statement.query_map([], |row| row.get::<_, String>(0))?;
        lines.collect::<rusqlite::Result<Vec<String>>>()
    };
    match check() {
        Ok(lines) => Ok(Findings::of(lines.into_iter().filter(|line| line != "ok").collect())),
        Err(error)
            if error.sqlite_error().is_some_and(|error| error.extended_code & 0xff == SQLITE_ERROR) =>
        {
            Ok(Findings { complaints: Vec::new(), is_complete: false })
        }
        Err(error) => Err(error),
    }
}

/// The single value of a query on a private copy, for facts such as `PRAGMA user_version`.
pub fn query_value(path: &Path, sql: &str, deadline: Instant) -> Result<i64> {
    open_copy(path, deadline).and_then(|connection| connection.query_row(sql, [], |row| row.get(0))).map_err(
        |error| {
            Error::new(ErrorKind::Source, format!("run `{sql}`: path=`{}`", path.display())).because(error)
        },
    )
}
