//! Proving that nobody has a database open, and keeping it that way.

mod holders;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use self::holders::{Files, lock_holder};
use super::connection::{distrust, explain};
use super::locate::{beside, log_path};
use crate::crash::{self, Point};
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
    /// descriptor in the processes that this one may look into, SQLite's locks in all.
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

    /// A process that has the old database open by now, whatever its name, if one can be seen: it
    /// would go on with it. The database must still have a name.
    pub fn newcomer(&self) -> Option<Holder> {
        self.files.holder_of_database()
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
        distrust(&connection)?;
        // Of the file itself, also in WAL mode, where all who have it open share a lock on it.
        connection.execute_batch("PRAGMA locking_mode=EXCLUSIVE; SELECT 1 FROM sqlite_schema LIMIT 1;")?;
        connection.execute_batch(
            "PRAGMA wal_checkpoint(TRUNCATE); BEGIN EXCLUSIVE; SELECT 1 FROM sqlite_schema LIMIT 1;",
        )?;
        crash::at(Point::SwapLogFolded);
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
            _ => crash::at(Point::SwapLogRemoved),
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

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Child, Command, Stdio};

    use super::*;

    /// Copies with another process: closing a descriptor here would drop the locks that are tested.
    fn copy(from: &Path, to: &Path) {
        assert!(Command::new("cp").args([from, to]).status().expect("cp runs").success());
    }

    fn bytes_of(path: &Path) -> Vec<u8> {
        let folder = tempfile::tempdir().expect("a folder");
        copy(path, &folder.path().join("copy"));
        fs::read(folder.path().join("copy")).expect("readable")
    }

    /// A closed database in this journal mode.
    fn database(folder: &Path, mode: &str) -> PathBuf {
        let path = folder.join("app.db");
        let app = Connection::open(&path).expect("opens");
        app.execute_batch(&format!(
            "PRAGMA journal_mode={mode}; CREATE TABLE t(x); INSERT INTO t VALUES (1)"
        ))
        .expect("fills");
        path
    }

    /// A process that has `path` open, as long as its standard input is.
    fn open_elsewhere(path: &Path) -> Child {
        let mut child = Command::new("sh")
            .args(["-c", "exec 3<\"$0\"; echo open; read line"])
            .arg(path)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("sh runs");
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().expect("piped")).read_line(&mut line).expect("it says so");
        assert_eq!(line, "open\n");
        child
    }

    #[test]
    fn what_is_taken_and_not_replaced_is_what_it_was() {
        for mode in ["wal", "delete"] {
            let folder = tempfile::tempdir().expect("a folder");
            let path = database(folder.path(), mode);
            let before = bytes_of(&path);
            let held = Exclusive::take(&path).expect("nobody has it");
            assert_eq!(bytes_of(&path), before, "{mode}: what a kill would leave");
            let late = Connection::open(&path).expect("opens");
            late.busy_timeout(Duration::ZERO).expect("set");
            let locked = late.query_row("SELECT x FROM t", [], |row| row.get::<_, i64>(0));
            assert!(locked.is_err(), "{mode}: {locked:?}");
            drop((late, held));
            assert_eq!(bytes_of(&path), before, "{mode}");
            assert!(companions(&path).iter().all(|companion| !companion.exists()), "{mode}");
        }
    }

    #[test]
    fn the_log_of_a_dead_writer_is_folded_in_and_the_mode_stays() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = database(folder.path(), "wal");
        let app = Connection::open(&path).expect("opens");
        app.execute_batch("UPDATE t SET x = 2").expect("changes");
        let dead = folder.path().join("dead.db");
        copy(&path, &dead);
        copy(&log_path(&path), &log_path(&dead));
        drop(Exclusive::take(&dead).expect("nobody has it"));
        assert!(companions(&dead).iter().all(|companion| !companion.exists()));
        let database = Connection::open(&dead).expect("opens");
        let x: i64 = database.query_row("SELECT x FROM t", [], |row| row.get(0)).expect("queries");
        let mode: String = database.query_row("PRAGMA journal_mode", [], |row| row.get(0)).expect("queries");
        assert_eq!((x, mode.as_str()), (2, "wal"));
    }

    #[test]
    fn a_descriptor_elsewhere_is_seen_whatever_is_in_the_file_and_whatever_its_name() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("app.db");
        fs::write(&path, "garbage ".repeat(1000)).expect("written");
        let held = Exclusive::take(&path).expect("nobody has it");
        assert!(held.exists() && held.newcomer().is_none());
        let mut child = open_elsewhere(&path);
        let pid = format!("pid=`{}` command=`sh`", child.id());
        fs::rename(&path, folder.path().join("kept.db")).expect("renamed");
        assert_eq!(held.newcomer().expect("seen").to_string(), pid);
        fs::rename(folder.path().join("kept.db"), &path).expect("renamed");
        let refused = Exclusive::take(&path).err().expect("refused");
        assert!(refused.to_string().contains(&pid), "{refused}");
        drop(child.stdin.take());
        child.wait().expect("ends");
        assert!(held.newcomer().is_none());
    }

    #[test]
    fn a_newcomer_has_the_database_itself_open() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("app.db");
        fs::write(&path, "garbage ".repeat(1000)).expect("written");
        fs::write(log_path(&path), "a log").expect("written");
        let held = Exclusive::take(&path).expect("nobody has it");
        // By now its number may be that of anybody's file.
        let mut child = open_elsewhere(&log_path(&path));
        assert!(held.newcomer().is_none());
        drop(child.stdin.take());
        child.wait().expect("ends");
    }

    #[test]
    fn nothing_can_be_taken_but_not_beside_a_log_in_use() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("app.db");
        assert!(!Exclusive::take(&path).expect("nobody has it").exists());
        fs::write(log_path(&path), "the log of a database that was removed").expect("written");
        let mut child = open_elsewhere(&log_path(&path));
        let refused = Exclusive::take(&path).err().expect("refused");
        assert_eq!(refused.kind(), ErrorKind::Target);
        drop(child.stdin.take());
        child.wait().expect("ends");
        assert!(!Exclusive::take(&path).expect("nobody has it").exists());
    }
}
