//! Proving that nobody has a database open, and keeping it that way.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::connection::explain;
use super::locate::{beside, log_path};
use crate::error::{Error, ErrorKind, Result};

/// A database that nobody else can read or write as long as this lives.
///
/// Its log is folded in and gone. Used on a database that is about to be replaced: with
/// [`super::overwrite()`] one of the two places where this program writes to somebody else's file.
pub struct Exclusive {
    /// Kept open over the swap, so that whoever opens the old file now is told "locked".
    _connection: Connection,
}

/// Whether a database could be taken.
pub enum Taken {
    /// Nobody has it open.
    Yes(Exclusive),
    /// The file is not a readable database, so nobody can be using it as one.
    Unreadable,
}

impl Exclusive {
    /// Takes the database at `path`.
    ///
    /// `Target` if anybody has it open. Leaving WAL mode fails while any other connection exists;
    /// that is the proof. Without WAL an idle connection cannot be seen, only a transaction.
    pub fn take(path: &Path) -> Result<Taken> {
        let take = || {
            let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
            let connection = Connection::open_with_flags(path, flags)?;
            connection.busy_timeout(Duration::ZERO)?;
            connection.query_row("PRAGMA journal_mode=DELETE", [], |row| row.get::<_, String>(0))?;
            connection.execute_batch("BEGIN EXCLUSIVE; SELECT 1 FROM sqlite_schema LIMIT 1;")?;
            Ok::<_, rusqlite::Error>(connection)
        };
        match take() {
            Ok(connection) => Ok(Taken::Yes(Exclusive { _connection: connection })),
            Err(error) => match error.sqlite_error_code() {
                Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => {
                    Ok(Taken::Unreadable)
                }
                Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                    let message = format!(
                        "the database is open in another process; stop it, or restore through the running daemon \
                         (POST /restore): path=`{}`",
                        path.display()
                    );
                    Err(Error::new(ErrorKind::Target, message).because(error))
                }
                _ => Err(explain(path, "take exclusive hold of", error)),
            },
        }
    }
}

/// The files SQLite keeps beside a database: log, log index, rollback journal.
pub fn companions(path: &Path) -> [PathBuf; 3] {
    [log_path(path), beside(path, "-shm"), beside(path, "-journal")]
}
