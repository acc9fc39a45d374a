//! Reading the log forward from a mark.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::chain::{Bytes, Chain, Next, Start, frame_header, start};
use super::changes::{Changes, Pending};
use super::format::{Header, Salts, lock_page};
use super::mark::Mark;
use crate::error::{Error, ErrorKind, Result};
use crate::source::locate::log_path;

/// How much one read takes on.
#[derive(Debug, Clone, Copy)]
pub struct Bounds {
    /// Bytes of pages held at most. A transaction with more is [`Loss::TooLarge`].
    pub bytes_max: usize,
    /// No transaction is begun after so many frames.
    pub frames_max: u32,
}

/// What came of reading.
#[derive(Debug)]
pub enum Outcome {
    /// All transactions from the mark on, or the first of them; maybe there were none.
    Read(Changes),
    /// It is not proven that the log continues where the mark stands.
    Lost(Loss),
}

/// Why it is not proven that nothing is missing: compare pages, and begin with a new mark.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Loss {
    /// There is no log: the last connection was closed, or the journal mode was changed.
    Gone,
    /// The log was truncated to nothing. What came before that nobody can tell.
    Emptied,
    /// What the log begins with is no header.
    Malformed,
    /// Another file is in the log's place, or a log with other pages.
    Replaced,
    /// The log was restarted more than once, or in a way that leaves no trace of the order.
    Restarted,
    /// The log was restarted, and has overwritten what was not read.
    Overwritten,
    /// The log was restarted and may have been truncated within what was not read.
    Cut,
    /// What was read is not in the log any more: the machine crashed, or a commit failed.
    Rewritten,
    /// A transaction has more pages than the bound allows to hold.
    TooLarge,
}

impl Loss {
    /// The stable name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Loss::Gone => "gone",
            Loss::Emptied => "emptied",
            Loss::Malformed => "malformed",
            Loss::Replaced => "replaced",
            Loss::Restarted => "restarted",
            Loss::Overwritten => "overwritten",
            Loss::Cut => "cut",
            Loss::Rewritten => "rewritten",
            Loss::TooLarge => "too-large",
        }
    }
}

/// Where a log ended once: a read transaction that had begun by then sees nothing behind it.
#[derive(Debug, Clone, Copy)]
pub struct End {
    /// Those of the run that was written then.
    salts: Salts,
    /// With what was left of earlier runs.
    bytes: u64,
}

impl End {
    /// Whether there is anything between `mark` and this.
    pub fn is_behind(&self, mark: &Mark) -> bool {
        match self.salts == mark.run.salts {
            true => mark.bytes() < self.bytes,
            false => self.salts.0.wrapping_sub(mark.run.salts.0).cast_signed() > 0,
        }
    }
}

impl fmt::Display for Loss {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Loss::Gone => "there is no log any more",
            Loss::Emptied => "the log was truncated",
            Loss::Malformed => "the log has no valid header",
            Loss::Replaced => "another log is in its place",
            Loss::Restarted => "the log was restarted more than once",
            Loss::Overwritten => "the log was restarted and overwrote what was not read",
            Loss::Cut => "the log was restarted and may have been cut short",
            Loss::Rewritten => "what was read from the log is not in it any more",
            Loss::TooLarge => "a transaction is too large to be read at once",
        })
    }
}

/// The write-ahead log of a database. Each call opens it and closes it again.
#[derive(Debug, Clone)]
pub struct Log {
    path: PathBuf,
}

impl Log {
    /// The log of the database at this real path; it need not be there.
    pub fn of(database: &Path) -> Log {
        Log { path: log_path(database) }
    }

    /// Where it ends now, if there is one.
    pub fn end(&self) -> Result<Option<End>> {
        let Some((log, _)) = self.open()? else { return Ok(None) };
        let end = || -> io::Result<Option<End>> {
            let Start::Header(header) = start(&log)? else { return Ok(None) };
            Ok(Some(End { salts: header.salts, bytes: log.size()? }))
        };
        end().map_err(|error| self.explain(error))
    }

    /// Where somebody begins who reads the database in a read transaction that begins after this call:
    /// all that this transaction does not see is behind the mark. `None` if there is no log, or no more than
    /// a part of its header. Reads the whole log once.
    pub fn mark(&self) -> Result<Option<Mark>> {
        let Some((log, inode)) = self.open()? else { return Ok(None) };
        let mark = || -> io::Result<Option<Mark>> {
            let bytes = log.size()?;
            let Start::Header(header) = start(&log)? else { return Ok(None) };
            let mut chain = Chain::behind(Mark::start(&header, inode), &log, bytes);
            chain.mark.bytes_seen_max = bytes;
            while let Next::Frame { .. } = chain.next()? {}
            Ok(Some(chain.mark.settled()))
        };
        mark().map_err(|error| self.explain(error))
    }

    /// Whether all that was read up to `mark` is in the log as it was then. Belongs before the first read
    /// from a mark that was kept while the reader was not running: after a crash of the machine the log may
    /// have lost transactions that were read. Reads the log up to the mark.
    pub fn confirm(&self, mark: &Mark) -> Result<bool> {
        let Some((log, inode)) = self.open()? else { return Ok(false) };
        let confirm = || -> io::Result<bool> {
            let Start::Header(header) = start(&log)? else { return Ok(false) };
            let begin = Mark::start(&header, inode);
            if begin.run != mark.run || inode != mark.inode {
                return Ok(false);
            }
            let mut chain = Chain::behind(begin, &log, mark.bytes());
            while let Next::Frame { .. } = chain.next()? {}
            Ok(chain.mark.at == mark.at)
        };
        confirm().map_err(|error| self.explain(error))
    }

    /// Reads whole transactions from `mark` on, within `bounds`.
    ///
    /// An error is one of the file system; the mark stays good.
    pub fn read(&self, mark: &Mark, bounds: &Bounds) -> Result<Outcome> {
        match self.open()? {
            None => Ok(Outcome::Lost(Loss::Gone)),
            Some((_, inode)) if inode != mark.inode => Ok(Outcome::Lost(Loss::Replaced)),
            Some((log, _)) => read(&log, mark, bounds).map_err(|error| self.explain(error)),
        }
    }

    /// The log and its inode, if it is there.
    fn open(&self) -> Result<Option<(File, u64)>> {
        let open = || -> io::Result<(File, u64)> {
            let file = File::open(&self.path)?;
            let inode = file.metadata()?.ino();
            Ok((file, inode))
        };
        match open() {
            Ok(opened) => Ok(Some(opened)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.explain(error)),
        }
    }

    fn explain(&self, error: io::Error) -> Error {
        let message = format!("read the write-ahead log: path=`{}`", self.path.display());
        Error::new(ErrorKind::Source, message).because(error)
    }
}

impl Bytes for File {
    fn size(&self) -> io::Result<u64> {
        Ok(self.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
        FileExt::read_at(self, buffer, offset)
    }
}

/// How often a log may be restarted while it is read, until what was read is handed on as it is.
const RUNS_MAX: u32 = 4;

/// Reads on from `mark`.
///
/// Why nothing is missing. SQLite restarts a log only when all of its frames are in the database file, so
/// no transaction of the old run is written any more once the new header is. It then writes the new run's
/// frames in ascending order, and skips none. So, in this order:
///
/// 1. The header is read. With the salts of the mark, what the chain gives is the mark's run, as far as it
///    has come. If the header is the same after that, nothing was overwritten before the end was seen: all that
///    was committed when this began is in it. Else the run is finished by now, and is read on as such.
/// 2. If the header is that of the next run (first salt one higher), the old run was finished *before* the
///    chain is followed. The chain ends for one of three reasons: the old run ended there; the new run
///    overwrote what followed; the file was truncated there.
/// 3. If the last frame of the mark is still the old one *after* that, the new run has not come as far, and
///    what followed was not overwritten either.
/// 4. SQLite truncates a restarted log at the first commit of the new run at the earliest, to the end of
///    that commit, or to `journal_size_limit` if that is more. The former is before the mark (3). With the
///    latter the chain ends with the file. If it ends before, at bytes that are not its continuation, it was
///    not cut. If it ends with the file, it counts as whole only where the file ends exactly behind a
///    transaction and never was seen longer. (Which is wrong only if `journal_size_limit` is, to the byte,
///    the end of a frame, that frame ends a transaction, and the log was never seen beyond the limit.)
/// 5. Several restarts give a first salt one higher only if one of them drew both salts anew, as happens
///    after a truncation to nothing, and drew this one of 2^32.
pub(super) fn read(log: &impl Bytes, mark: &Mark, bounds: &Bounds) -> io::Result<Outcome> {
    let mut changes = Changes::none(mark.clone());
    let mut frames_left = bounds.frames_max;
    for _ in 0..RUNS_MAX {
        let header = match start(log)? {
            Start::Header(header) => header,
            Start::Short => return Ok(Outcome::Lost(Loss::Emptied)),
            Start::Invalid => return Ok(Outcome::Lost(Loss::Malformed)),
        };
        let bytes = log.size()?;
        changes.mark.bytes_seen_max = changes.mark.bytes_seen_max.max(bytes);
        let run = changes.mark.run;
        if (header.page_size, header.order) != (run.page_size, run.order) {
            return Ok(Outcome::Lost(Loss::Replaced));
        }
        if header.salts == run.salts && header.checksum != run.begin {
            // Until the first transaction is whole each one who tries writes the header again, with the
            // sequence number that it counts by itself.
            if changes.mark.at.frames > 0 {
                return Ok(Outcome::Lost(Loss::Rewritten));
            }
            changes.mark = Mark {
                bytes_seen_max: changes.mark.bytes_seen_max,
                ..Mark::start(&header, changes.mark.inode)
            };
        }
        let finished = header.salts != run.salts;
        if finished && !header.succeeds(run.salts) {
            return Ok(Outcome::Lost(Loss::Restarted));
        }
        if !finished && !stands(log, &changes.mark, None)? {
            match start(log)? {
                Start::Header(now) if now == header => return Ok(Outcome::Lost(Loss::Rewritten)),
                _ => continue,
            }
        }
        let frames_before = changes.mark.at.frames;
        let ending = follow(log, bytes, frames_left, bounds.bytes_max, &mut changes)?;
        frames_left = frames_left.saturating_sub(changes.mark.at.frames - frames_before);
        match ending {
            Ending::TooLarge => return Ok(Outcome::Lost(Loss::TooLarge)),
            Ending::Bound => return Ok(Outcome::Read(changes.with_more())),
            Ending::Foreign | Ending::File if !finished => match start(log)? {
                Start::Header(now) if now == header => return Ok(Outcome::Read(changes)),
                // It was restarted meanwhile, and what ended the chain may have been the next run.
                _ => continue,
            },
            Ending::File if !ends_with_file(log, &changes)? => return Ok(Outcome::Lost(Loss::Cut)),
            Ending::Foreign | Ending::File => {}
        }
        if changes.mark.at.frames == 0 || !stands(log, &changes.mark, Some(&header))? {
            return Ok(Outcome::Lost(Loss::Overwritten));
        }
        let bytes_seen_max = changes.mark.bytes_seen_max;
        changes.mark = Mark { bytes_seen_max, ..Mark::start(&header, changes.mark.inode) };
        changes.uncommitted = 0;
    }
    Ok(Outcome::Read(changes.with_more()))
}

/// Whether the frames that were read last are in the log as they were read.
///
/// The first frame of the last transaction is looked at, too: when the machine crashed, or a commit
/// failed after its last frame was written, SQLite writes something else from there on, maybe less.
/// `next_run` may have overwritten that one, not the last.
fn stands(log: &impl Bytes, mark: &Mark, next_run: Option<&Header>) -> io::Result<bool> {
    if mark.at.frames > 0 {
        let last = frame_header(log, mark, mark.at.frames)?;
        if last.is_none_or(|last| (last.salts, last.checksum) != (mark.run.salts, mark.at.checksum)) {
            return Ok(false);
        }
    }
    let Some(transaction) = mark.last else { return Ok(true) };
    let first = frame_header(log, mark, transaction.after.frames + 1)?;
    Ok(first.is_some_and(|first| {
        (first.salts, first.checksum) == (mark.run.salts, transaction.first)
            || next_run.is_some_and(|header| header.salts == first.salts)
    }))
}

/// Whether a finished run whose frames end with the file is all there.
fn ends_with_file(log: &impl Bytes, changes: &Changes) -> io::Result<bool> {
    let size = log.size()?;
    Ok(size == changes.mark.bytes() && size >= changes.mark.bytes_seen_max)
}

/// Why the frames of a run were not followed further.
enum Ending {
    /// A bound was reached.
    Bound,
    /// What follows is no frame of the run.
    Foreign,
    /// There is no whole frame any more.
    File,
    /// A transaction is larger than the bound.
    TooLarge,
}

/// Follows the run of the mark in `changes` as far as `bytes_end` and takes whole transactions over.
fn follow(
    log: &impl Bytes,
    bytes_end: u64,
    frames_max: u32,
    bytes_max: usize,
    changes: &mut Changes,
) -> io::Result<Ending> {
    let page_bytes = changes.mark.page_size() as usize;
    let lock_page = lock_page(changes.mark.page_size());
    let pages_max = bytes_max / page_bytes;
    let begin = changes.mark.at.frames;
    let mut chain = Chain::behind(changes.mark.clone(), log, bytes_end);
    let mut pending = Pending::new();
    let mut too_large = false;
    loop {
        let (page, content, page_count) = match chain.next()? {
            Next::Frame { page, content, page_count } => (page, content, page_count),
            ending => {
                let ending = if matches!(ending, Next::End) { Ending::File } else { Ending::Foreign };
                changes.uncommitted = chain.uncommitted();
                return Ok(ending);
            }
        };
        if page != lock_page && !too_large {
            pending.insert(page, content.into());
        }
        if pending.len() + changes.pages.len() > pages_max {
            if changes.transactions > 0 {
                return Ok(Ending::Bound);
            }
            // Only if it is committed one day, is it too large.
            (too_large, pending) = (true, Pending::new());
        }
        if page_count == 0 {
            continue;
        }
        if too_large {
            return Ok(Ending::TooLarge);
        }
        changes.commit(std::mem::take(&mut pending), page_count);
        changes.mark = chain.mark.clone();
        if chain.mark.at.frames - begin >= frames_max {
            return Ok(Ending::Bound);
        }
    }
}
