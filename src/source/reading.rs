//! One read transaction on the live database, and the copy of every page as it stands there.

use std::io::{BufWriter, Read, Seek, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use rusqlite::backup::{Backup, StepResult};
use rusqlite::{Connection, OptionalExtension};

use super::check::{self, CHECK_BYTES_MAX, Depth, Findings};
use super::connection::{Live, explain};
use super::locate::Source;
use super::pages::{PageSink, PageStream};
use super::{Limits, OnProgress, Progress, stream_vfs, wait_for_lock};
use crate::crash::{self, Point};
use crate::disk::{make_private_directory, require_space, scratch_file};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{Hasher, SqliteFacts};

/// A pinned transaction: whatever is read through it shows one moment.
///
/// In WAL mode writers go on meanwhile, and the log cannot be reset past it. Without WAL, writers
/// cannot commit until it ends; [`Reading::copy`] keeps that short.
pub struct Reading {
    live: Live,
    source: Source,
    limits: Limits,
    began: Instant,
    first_page: Option<Vec<u8>>,
    facts: Facts,
    log_bytes: u64,
}

/// What is known of the database before its pages are read.
#[derive(Debug, Clone)]
pub struct Facts {
    /// Bytes per page; 0 for a file without a byte.
    pub page_size: u32,
    /// Number of pages.
    pub page_count: u32,
    /// Number of rows of `sqlite_schema`.
    pub schema_objects: u32,
    /// What goes into the manifest.
    pub sqlite: SqliteFacts,
}

/// What is known after the last page.
#[derive(Debug)]
pub struct Copied<S> {
    /// Where the pages went.
    pub sink: S,
    /// For how long writers could not commit because of us.
    pub writer_blocked: Duration,
    /// What `quick_check` said; `None` if the database is too large to check on the way.
    pub findings: Option<Findings>,
}

/// Pages are copied in steps of this many bytes; between steps the bounds are looked at.
const STEP_BYTES: u32 = 4 << 20;

impl Reading {
    /// Opens the database and pins its present state.
    pub fn begin(source: &Source, limits: Limits) -> Result<Reading> {
        limits.check()?;
        let live = Live::open(source.path(), limits.busy_timeout)?;
        let began = Instant::now();
        let pin = || {
            // The schema is read, not merely BEGIN said: only a read starts the transaction.
            live.connection.execute_batch("BEGIN; SELECT 1 FROM sqlite_schema LIMIT 1;")?;
            let first_page: Option<Vec<u8>> = live
                .connection
                .query_row("SELECT data FROM sqlite_dbpage('main') WHERE pgno=1", [], |row| row.get(0))
                .optional()?;
            let facts = facts(&live.connection, first_page.as_deref())?;
            Ok((first_page, facts))
        };
        let (first_page, facts) = pin().map_err(|error| explain(source.path(), "read", error))?;
        let log_bytes = source.fingerprint().log_bytes();
        crash::at(Point::SourcePinned);
        Ok(Reading { live, source: source.clone(), limits, began, first_page, facts, log_bytes })
    }

    /// What the pinned state is.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Sends every page to `sink`, first to last, and ends the transaction.
    ///
    /// The bytes are those of the database file as a checkpoint at this moment would leave it.
    /// `scratch` is a directory for the copy that a database without WAL needs; with WAL nothing
    /// is written anywhere.
    pub fn copy<S: PageSink + 'static>(
        self,
        sink: S,
        scratch: &Path,
        on_progress: &OnProgress,
    ) -> Result<Copied<S>> {
        if self.first_page.is_none() {
            return Ok(Copied { sink, writer_blocked: Duration::ZERO, findings: None });
        }
        if self.facts.sqlite.journal_mode == "wal" {
            self.copy_beside_writers(sink, on_progress)
        } else {
            self.copy_before_writers(sink, scratch, on_progress)
        }
    }

    fn bytes(&self) -> u64 {
        u64::from(self.facts.page_size) * u64::from(self.facts.page_count)
    }

    fn copy_beside_writers<S: PageSink + 'static>(
        self,
        sink: S,
        on_progress: &OnProgress,
    ) -> Result<Copied<S>> {
        let findings = if self.bytes() <= CHECK_BYTES_MAX {
            Some(check::inspect_open(&self.live.connection, self.source.path(), Depth::Quick)?)
        } else {
            None
        };
        let sink = self.transfer(sink, on_progress)?;
        Ok(Copied { sink, writer_blocked: Duration::ZERO, findings })
    }

    /// Copies to a scratch file first, as fast as the disk allows, for writers wait until it is done.
    fn copy_before_writers<S: PageSink + 'static>(
        mut self,
        mut sink: S,
        scratch: &Path,
        on_progress: &OnProgress,
    ) -> Result<Copied<S>> {
        let bytes = self.bytes();
        let failed = |error: std::io::Error| {
            let kind = match error.kind() {
                std::io::ErrorKind::StorageFull | std::io::ErrorKind::QuotaExceeded => ErrorKind::Limit,
                _ => ErrorKind::Target,
            };
            Error::new(
                kind,
                format!("copy the database to a scratch file: directory=`{}`", scratch.display()),
            )
            .because(error)
        };
        make_private_directory(scratch).map_err(failed)?;
        require_space(scratch, bytes)?;
        let file = scratch_file(scratch).map_err(failed)?;
        let blocked_until = self.began + self.limits.writer_blocked_max;
        let check_until = self.limits.deadline;
        self.limits.deadline = self.limits.deadline.min(blocked_until);
        let (began, limits) = (self.began, self.limits.clone());
        let quiet: OnProgress = Arc::new(|_| {});
        let staged = ScratchSink { file: BufWriter::with_capacity(1 << 20, file), limits: limits.clone() };
        let staged = self.transfer(staged, &quiet).map_err(|error| {
            if Instant::now() < blocked_until {
                return error;
            }
            let message = format!(
                "writers would have waited longer than {:?} (backup.writer_blocked_max); switch the database to WAL",
                limits.writer_blocked_max
            );
            Error::new(ErrorKind::Limit, message)
        })?;
        let writer_blocked = began.elapsed();

        let mut file = staged.file.into_inner().map_err(|error| failed(error.into_error()))?;
        let findings = if bytes <= CHECK_BYTES_MAX {
            Some(check::inspect(file.path(), Depth::Quick, check_until)?)
        } else {
            None
        };
        crash::at(Point::SourceCopied);
        file.rewind().map_err(failed)?;
        let mut piece = vec![0; 1 << 20];
        let mut done = 0;
        loop {
            let count = file.read(&mut piece).map_err(failed)?;
            if count == 0 {
                return Ok(Copied { sink, writer_blocked, findings });
            }
            sink.write(&piece[..count])?;
            done += count as u64;
            on_progress(Progress { done, total: bytes });
        }
    }

    /// The backup API, from the pinned transaction into the stream.
    fn transfer<S: PageSink + 'static>(self, sink: S, on_progress: &OnProgress) -> Result<S> {
        let Some(first_page) = self.first_page.clone() else { return Ok(sink) };
        let stream = Arc::new(Mutex::new(PageStream::new(sink, first_page, self.facts.page_count)));
        let lock = || stream.lock().unwrap_or_else(PoisonError::into_inner);
        lock().begin()?;

        let taker = Arc::clone(&stream);
        let take = move |offset: u64, page: &[u8]| {
            taker.lock().unwrap_or_else(PoisonError::into_inner).take(offset, page)
        };
        let mut destination = stream_vfs::open(Box::new(take))
            .context(ErrorKind::Internal, || "open the page stream".to_owned())?;
        let stepped = self.step_to_the_end(&mut destination, || {
            on_progress(Progress { done: lock().sent(), total: self.bytes() });
        });
        drop(destination);
        // What the sink says comes first: to SQLite it is only a failed write.
        if let Some(failure) = lock().take_failure() {
            return Err(failure);
        }
        stepped?;
        let stream = Arc::into_inner(stream)
            .ok_or_else(|| Error::new(ErrorKind::Internal, "SQLite kept the page stream open"))?;
        stream.into_inner().unwrap_or_else(PoisonError::into_inner).finish()
    }

    fn step_to_the_end(&self, destination: &mut Connection, after_step: impl Fn()) -> Result<()> {
        let path = self.source.path();
        let pages_per_step = (STEP_BYTES / self.facts.page_size.max(512)) as i32;
        let backup = Backup::new(&self.live.connection, destination)
            .map_err(|error| explain(path, "back up", error))?;
        let mut remaining_least = i32::MAX;
        let mut busy_since = None;
        loop {
            self.limits.check()?;
            self.check_log_growth()?;
            match backup.step(pages_per_step).map_err(|error| explain(path, "back up", error))? {
                StepResult::Done => return Ok(()),
                StepResult::More => {
                    busy_since = None;
                    let remaining = backup.progress().remaining;
                    // The transaction is pinned, so no step can start over; if one does, it would
                    // do so for ever.
                    if remaining >= remaining_least {
                        let message = format!("the backup started over: path=`{}`", path.display());
                        return Err(Error::new(ErrorKind::Busy, message));
                    }
                    remaining_least = remaining;
                    after_step();
                }
                _ => {
                    let since = *busy_since.get_or_insert_with(Instant::now);
                    if since.elapsed() > self.limits.busy_timeout {
                        let message = format!("the database stayed locked: path=`{}`", path.display());
                        return Err(Error::new(ErrorKind::Busy, message));
                    }
                    wait_for_lock();
                }
            }
        }
    }

    fn check_log_growth(&self) -> Result<()> {
        let grown = self.source.fingerprint().log_bytes().saturating_sub(self.log_bytes);
        if grown > self.limits.wal_growth_max {
            return Err(Limits::log_outgrown(self.source.path(), grown, self.limits.wal_growth_max));
        }
        Ok(())
    }
}

struct ScratchSink {
    file: BufWriter<tempfile::NamedTempFile>,
    limits: Limits,
}

impl PageSink for ScratchSink {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        // Looked at per page, for while this runs nobody can write.
        self.limits.check()?;
        self.file.write_all(bytes).context(ErrorKind::Limit, || "write the scratch copy".to_owned())
    }
}

fn facts(connection: &Connection, first_page: Option<&[u8]>) -> rusqlite::Result<Facts> {
    let number =
        |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, i64>(0));
    let text =
        |pragma: &str| connection.query_row(&format!("PRAGMA {pragma}"), [], |row| row.get::<_, String>(0));
    let (schema_objects, schema_sha256) = schema(connection)?;
    Ok(Facts {
        page_size: first_page.map_or(0, |page| page.len() as u32),
        page_count: if first_page.is_some() { number("page_count")? as u32 } else { 0 },
        schema_objects,
        sqlite: SqliteFacts {
            user_version: number("user_version")? as i32,
            application_id: number("application_id")? as i32,
            journal_mode: text("journal_mode")?,
            encoding: text("encoding")?,
            freelist_count: number("freelist_count")? as u32,
            schema_sha256,
            written_by: first_page
                .and_then(|page| page.get(96..100))
                .map_or(0, |word| u32::from_be_bytes(word.try_into().expect("four bytes"))),
        },
    })
}

/// Number of schema rows, and a digest of them in which no two different schemas look alike.
fn schema(connection: &Connection) -> rusqlite::Result<(u32, crate::snapshot::Digest)> {
    let mut statement = connection
        .prepare("SELECT type, name, tbl_name, coalesce(sql, '') FROM sqlite_schema ORDER BY type, name")?;
    let mut rows = statement.query([])?;
    let mut hasher = Hasher::default();
    let mut count = 0;
    while let Some(row) = rows.next()? {
        count += 1;
        for column in 0..4 {
            let text: String = row.get(column)?;
            hasher.update(&(text.len() as u64).to_le_bytes());
            hasher.update(text.as_bytes());
        }
    }
    Ok((count, hasher.finish()))
}
