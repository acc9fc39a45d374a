//! Opening databases: the application's with every courtesy, our own copies with every suspicion.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rusqlite::config::DbConfig;
use rusqlite::limits::Limit;
use rusqlite::{Connection, ErrorCode, OpenFlags};

use super::locate::log_path;
use crate::error::{Context, Error, ErrorKind, Result};

/// The oldest SQLite without the bug that could corrupt a database when one connection checkpoints
/// while another resets the log.
const LIBRARY_VERSION_MIN: i32 = 3_051_003;

/// Refuses to run on an SQLite library that is too old or lacks what snapshots need.
pub fn assert_library() -> Result<()> {
    let version = rusqlite::version_number();
    if version < LIBRARY_VERSION_MIN {
        let message =
            format!("the linked SQLite is too old: version=`{version}` minimum=`{LIBRARY_VERSION_MIN}`");
        return Err(Error::new(ErrorKind::Internal, message));
    }
    let has_dbpage: bool = Connection::open_in_memory()
        .and_then(|connection| {
            connection
                .query_row("SELECT sqlite_compileoption_used('ENABLE_DBPAGE_VTAB')", [], |row| row.get(0))
        })
        .context(ErrorKind::Internal, || "ask SQLite for its options".to_owned())?;
    if !has_dbpage {
        let message = "the linked SQLite has no sqlite_dbpage table: build with \
                       LIBSQLITE3_FLAGS=-DSQLITE_ENABLE_DBPAGE_VTAB, as .cargo/config.toml does";
        return Err(Error::new(ErrorKind::Internal, message));
    }
    Ok(())
}

/// A connection to the application's database that cannot change it, unless [`super::overwrite()`],
/// whose purpose that is, lifts the ban (`query_only`).
pub(super) struct Live {
    pub connection: Connection,
    path: PathBuf,
    log_was_absent: bool,
}

impl Live {
    /// Opens the database at `path`, which exists; waits at most `busy_timeout` for any lock.
    ///
    /// Read-write, for a read-only connection can neither roll back a dead writer's journal nor use
    /// a log without its index; but without CREATE, and closed to every statement that writes.
    pub fn open(path: &Path, busy_timeout: Duration) -> Result<Live> {
        Live::open_unexplained(path, busy_timeout).map_err(|error| explain(path, "open", error))
    }

    /// As [`Live::open`], with SQLite's own error.
    pub fn open_unexplained(path: &Path, busy_timeout: Duration) -> rusqlite::Result<Live> {
        let log_was_absent = !log_path(path).exists();
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(busy_timeout)?;
        // First of all: should anything below fail, closing must not checkpoint either.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        distrust(&connection)?;
        connection.execute_batch("PRAGMA query_only=ON; PRAGMA wal_autocheckpoint=0;")?;
        Ok(Live { connection, path: path.to_owned(), log_was_absent })
    }
}

impl Drop for Live {
    /// If opening a cleanly closed database made its log appear and nobody wrote to it, let SQLite
    /// take log and index away again: nothing of ours stays beside the database. With any other
    /// connection open, or anything in the log, this does nothing.
    fn drop(&mut self) {
        let log_is_empty = std::fs::metadata(log_path(&self.path)).is_ok_and(|metadata| metadata.len() == 0);
        if self.log_was_absent && log_is_empty {
            // On failure the empty log stays, which is harmless.
            let _ = self.connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, false);
        }
    }
}

/// Opens a private copy that nobody else has open, for reading only; nothing appears beside it.
///
/// What was restored may have been made by anybody who can write to storage: it gets no other file,
/// no thread, no extension, no statement that writes, and no time beyond `deadline`.
pub(super) fn open_copy(path: &Path, deadline: Instant) -> rusqlite::Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let mut connection = Connection::open_with_flags(immutable_uri(path), flags)?;
    connection.progress_handler(INSTRUCTIONS_BETWEEN_LOOKS, Some(move || Instant::now() >= deadline))?;
    distrust(&connection)?;
    for (limit, most) in [
        (Limit::SQLITE_LIMIT_ATTACHED, 0),
        (Limit::SQLITE_LIMIT_WORKER_THREADS, 0),
        (Limit::SQLITE_LIMIT_LIKE_PATTERN_LENGTH, 1_000),
    ] {
        connection.set_limit(limit, most)?;
    }
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_FTS3_TOKENIZER, false)?;
    connection.execute_batch("PRAGMA query_only=ON")?;
    Ok(connection)
}

/// How many of SQLite's instructions run between two looks at the clock.
const INSTRUCTIONS_BETWEEN_LOOKS: i32 = 1_000;

/// A file name that SQLite reads as "nobody changes this": no locks, no log, no journal.
fn immutable_uri(path: &Path) -> String {
    use std::fmt::Write;
    use std::os::unix::ffi::OsStrExt;
    let mut uri = "file:".to_owned();
    for &byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'-' | b'_' => uri.push(byte as char),
            _ => write!(uri, "%{byte:02x}").expect("writing to a string"),
        }
    }
    uri.push_str("?immutable=1");
    uri
}

/// A database file may come from anybody: its schema runs no functions, its cells are checked.
pub(super) fn distrust(connection: &Connection) -> rusqlite::Result<()> {
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_TRUSTED_SCHEMA, false)?;
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_DEFENSIVE, true)?;
    connection.execute_batch("PRAGMA cell_size_check=ON; PRAGMA mmap_size=0; PRAGMA cache_size=-2048;")
}

/// Says in words what SQLite's error means for the database at `path`.
pub(super) fn explain(path: &Path, attempt: &str, error: rusqlite::Error) -> Error {
    let (kind, meaning) = match error.sqlite_error_code() {
        Some(ErrorCode::NotADatabase) => {
            (ErrorKind::Source, "it is not an SQLite database, or an encrypted one")
        }
        Some(ErrorCode::DatabaseCorrupt) => {
            (ErrorKind::Source, "it is malformed; restore a snapshot or repair it")
        }
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => (
            ErrorKind::Busy,
            "somebody else holds its lock (an exclusive transaction, or locking_mode=EXCLUSIVE)",
        ),
        Some(ErrorCode::CannotOpen) => {
            let hint =
                "check permissions; a database in WAL mode needs its directory writable for -wal and -shm";
            (ErrorKind::Source, hint)
        }
        Some(ErrorCode::ReadOnly | ErrorCode::PermissionDenied) => {
            (ErrorKind::Source, "the file or its directory is not writable for this user")
        }
        Some(ErrorCode::SystemIoFailure) => (ErrorKind::Source, "the disk reports an error"),
        Some(ErrorCode::OperationInterrupted) => {
            (ErrorKind::Limit, "it took longer than allowed (verify.check_deadline)")
        }
        Some(ErrorCode::DiskFull) => (ErrorKind::Limit, "the disk is full"),
        _ => (ErrorKind::Source, "SQLite refuses"),
    };
    Error::new(kind, format!("{attempt} the database, {meaning}: path=`{}`", path.display())).because(error)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_copy_is_opened_as_a_strangers() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("copy.db");
        let maker = Connection::open(&path).expect("opens");
        let sql = "CREATE TABLE t(x); CREATE VIEW pages AS SELECT data FROM sqlite_dbpage('main')";
        maker.execute_batch(sql).expect("fills");
        drop(maker);
        let copy = open_copy(&path, Instant::now() + Duration::from_secs(60)).expect("opens");
        for (pragma, expected) in
            [("trusted_schema", 0), ("cell_size_check", 1), ("query_only", 1), ("writable_schema", 0)]
        {
            let sql = format!("PRAGMA {pragma}");
            let found: i64 = copy.query_row(&sql, [], |row| row.get(0)).expect("asked");
            assert_eq!(found, expected, "{pragma}");
        }
        let is = |config| copy.db_config(config).expect("asked");
        assert!(is(DbConfig::SQLITE_DBCONFIG_DEFENSIVE));
        assert!(!is(DbConfig::SQLITE_DBCONFIG_ENABLE_TRIGGER));
        for (sql, reason) in [
            ("SELECT * FROM pages", "use of virtual table"),
            ("ATTACH ':memory:' AS other", "too many attached databases"),
            ("INSERT INTO t VALUES (1)", "readonly"),
            ("SELECT load_extension('x')", "not authorized"),
        ] {
            let error = copy.execute_batch(sql).expect_err(sql);
            assert!(error.to_string().contains(reason), "{sql}: {error}");
        }
        let left: Vec<_> = std::fs::read_dir(folder.path()).expect("listed").collect();
        assert_eq!(left.len(), 1, "nothing appears beside it");
    }
}
