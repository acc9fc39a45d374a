//! Restoring into a database that the application has open.

use std::path::Path;
use std::time::Instant;

use rusqlite::Connection;
use rusqlite::backup::{Backup, StepResult};

use super::connection::{Live, explain, open_copy};
use super::{Limits, OnProgress, Progress, wait_for_lock};
use crate::crash::{self, Point};
use crate::error::{Error, ErrorKind, Result};

/// Replaces the content of the live database at `target` by that of the private copy at `restored`.
///
/// One SQLite transaction with the live database as the backup API's destination: readers keep
/// what they see until they look again, and a kill at any moment leaves the old content. `Target`
/// if the page sizes differ in WAL mode, which SQLite cannot do.
pub fn overwrite(target: &Path, restored: &Path, limits: &Limits, on_progress: &OnProgress) -> Result<()> {
    let mut live = Live::open(target, limits.busy_timeout)?;
    let failed = |error| explain(target, "overwrite", error);
    let copy = open_copy(restored, limits.deadline)
        .map_err(|error| explain(restored, "open the restored copy", error))?;
    let page_size =
        |connection: &Connection| connection.query_row("PRAGMA page_size", [], |row| row.get::<_, i64>(0));
    let (old, new) = (page_size(&live.connection).map_err(failed)?, page_size(&copy).map_err(failed)?);
    let journal_mode: String =
        live.connection.query_row("PRAGMA journal_mode", [], |row| row.get(0)).map_err(failed)?;
    if old != new && journal_mode == "wal" {
        let message = format!(
            "the snapshot has pages of {new} bytes and the open database of {old}, which SQLite cannot change in \
             place; stop the application and run `lifeboat restore`: path=`{}`",
            target.display()
        );
        return Err(Error::new(ErrorKind::Target, message));
    }
    live.connection.execute_batch("PRAGMA query_only=OFF").map_err(failed)?;

    let backup = Backup::new(&copy, &mut live.connection).map_err(failed)?;
    crash::at(Point::OverwriteBeginning);
    let mut busy_since = None;
    loop {
        limits.check()?;
        match backup.step(1024).map_err(failed)? {
            StepResult::Done => {
                crash::at(Point::OverwriteCommitted);
                return Ok(());
            }
            StepResult::More => {
                crash::at(Point::OverwriteStepped);
                busy_since = None;
                let progress = backup.progress();
                let bytes = |pages: i32| u64::try_from(pages).unwrap_or(0) * new as u64;
                on_progress(Progress {
                    done: bytes(progress.pagecount - progress.remaining),
                    total: bytes(progress.pagecount),
                });
            }
            _ => {
                if busy_since.get_or_insert_with(Instant::now).elapsed() > limits.busy_timeout {
                    let message =
                        format!("the database stayed locked by a writer: path=`{}`", target.display());
                    return Err(Error::new(ErrorKind::Busy, message));
                }
                wait_for_lock();
            }
        }
    }
}
