//! Proving that nobody has a database open, and keeping it that way.

mod holders;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use self::holders::{Files, lock_holder};
use super::connection::explain;
use super::locate::{beside, log_path};
use crate::error::{Context, Error, ErrorKind, Result};

pub use self::holders::Holder;

/// A database that is about to be replaced, and that nobody else had open when it was taken.
///
/// Used with [`super::overwrite()`] in the only two places where this program writes to somebody
/// else's file. What is written is the content of its log, as by whoever closes it last; apart from
/// that, and from a dead writer's journal that is rolled back, the database stays as it was, byte
/// for byte, its journal mode included. So dropping this, or dying with it, undoes it.
pub struct Exclusive {
    files: Files,
    /// Kept open over the swap, so that whoever opens the old file now is told "locked". None where
    /// there is nothing that SQLite can read, and so nothing that its locks could be taken on.
    _connection: Option<Connection>,
}

impl Exclusive {
    /// Takes what stands at `path`, a database or not, or nothing.
    ///
    /// `Target` if another process has it or a file beside it open, as far as can be seen: any
    /// descriptor in the processes that this one may look into, SQLite's locks in all ([`holders`]).
    /// This process does not count. It may have no connection of its own to the database: looking at
    /// the locks would end that one's.
    pub fn take(path: &Path) -> Result<Exclusive> {
        let look = || format!("see who has the database open: path=`{}`", path.display());
        let files = Files::of(path).context(ErrorKind::Target, look)?;
        let holder = match files.holder() {
            None => lock_holder(path).context(ErrorKind::Target, look)?,
            found => found,
        };
        match holder {
            None if files.has_database() => Ok(Exclusive { _connection: lock(path)?, files }),
            None => Ok(Exclusive { _connection: None, files }),
            Some(holder) => Err(in_use(path, Some(&holder))),
        }
    }

    /// Whether there was a file, readable or not.
    pub fn exists(&self) -> bool {
        self.files.has_database()
    }

    /// A process that has the files open by now, if one can be seen: to replace them does not reach it.
    pub fn newcomer(&self) -> Option<Holder> {
        self.files.holder()
    }
}

/// Locks the database and folds its log in; `None` if SQLite cannot read it.
fn lock(path: &Path) -> Result<Option<Connection>> {
    let attempt = || {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        connection.busy_timeout(Duration::ZERO)?;
        // Closing writes nothing: what could not be read is evidence, and after the swap the log
        // beside the database is no longer its own.
        connection.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        // Of the file itself, also in WAL mode, where all who have it open share a lock on it.
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; SELECT 1 FROM sqlite_schema LIMIT 1;")?;
        connection.execute_batch(
            "PRAGMA wal_checkpoint(TRUNCATE); BEGIN EXCLUSIVE; SELECT 1 FROM sqlite_schema LIMIT 1;",
        )?;
        Ok::<_, rusqlite::Error>(connection)
    };
    match attempt() {
        Ok(connection) => {
            remove_folded_log(path).context(ErrorKind::Target, || {
                format!("remove the empty log of the database: path=`{}`", path.display())
            })?;
            Ok(Some(connection))
        }
        Err(error) => match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::NotADatabase | rusqlite::ErrorCode::DatabaseCorrupt) => Ok(None),
            Some(rusqlite::ErrorCode::DatabaseBusy | rusqlite::ErrorCode::DatabaseLocked) => {
                Err(in_use(path, None).because(error))
            }
            _ => Err(explain(path, "take exclusive hold of", error)),
        },
    }
}

/// Takes away what the last connection takes away when it closes: a log of which nothing is left to
/// fold in, and its index. A log with content stays, whatever the reason.
fn remove_folded_log(path: &Path) -> io::Result<()> {
    let log = log_path(path);
    if fs::metadata(&log).is_ok_and(|metadata| metadata.len() > 0) {
        return Ok(());
    }
    for file in [log, beside(path, "-shm")] {
        match fs::remove_file(file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

fn in_use(path: &Path, holder: Option<&Holder>) -> Error {
    let mut message = format!(
        "the database is open in another process; stop it, or restore through the running daemon \
         (POST /restore): path=`{}`",
        path.display()
    );
    if let Some(holder) = holder {
        message.push_str(&format!(" {holder}"));
    }
    Error::new(ErrorKind::Target, message)
}

/// The files SQLite keeps beside a database: log, log index, rollback journal.
pub fn companions(path: &Path) -> [PathBuf; 3] {
    [log_path(path), beside(path, "-shm"), beside(path, "-journal")]
}
