//! Where a reader stands in the log.

use serde::{Deserialize, Serialize};

use super::format::{ByteOrder, Checksum, FRAME_HEADER_BYTES, HEADER_BYTES, Header, Salts};

/// Where a reader stands in a log: behind a whole transaction of one of its runs.
///
/// May be kept over restarts of the reader; then [`super::Log::confirm`] comes before it is read from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mark {
    pub(super) run: Run,
    pub(super) at: Position,
    /// The last transaction that was read, if it was in this run.
    pub(super) last: Option<Transaction>,
    /// Bytes the log had at most, as far as it was seen.
    pub(super) bytes_seen_max: u64,
    /// The log's inode: another file is another log, whatever is in it.
    pub(super) inode: u64,
}

/// What all frames of one run of the log have in common.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Run {
    pub page_size: u32,
    pub order: ByteOrder,
    pub salts: Salts,
    /// The checksum in the header.
    pub begin: Checksum,
}

/// So many frames of the run were read, and this is their checksum.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Position {
    pub frames: u32,
    pub checksum: Checksum,
}

/// Where a transaction begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Transaction {
    /// The end of the one before.
    pub after: Position,
    /// The checksum in its first frame.
    pub first: Checksum,
    /// Its last frame.
    pub commit: Commit,
}

/// The last frame of a transaction: SQLite pads with copies of it where a torn sector may harm its neighbours.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Commit {
    pub page: u32,
    pub page_count: u32,
    /// Over the page alone.
    pub content: Checksum,
}

impl Mark {
    /// The beginning of the run that `header` begins.
    pub(super) fn start(header: &Header, inode: u64) -> Mark {
        let Header { order, page_size, salts, checksum, .. } = *header;
        let at = Position { frames: 0, checksum };
        Mark {
            run: Run { page_size, order, salts, begin: checksum },
            at,
            last: None,
            bytes_seen_max: 0,
            inode,
        }
    }

    /// The same, one transaction back, if the last one is of the same run: to read that one again.
    ///
    /// Frames are in the log before SQLite shows them to readers: with `synchronous=FULL` a whole fsync
    /// before. So a read transaction that begins after this mark was reached may see the state one
    /// transaction earlier, never two, for the next one is written only once this one is shown. Whoever
    /// combines a mark with a read transaction that began later goes on reading from here.
    pub fn settled(&self) -> Mark {
        let at = self.last.map_or(self.at, |last| last.after);
        Mark { at, last: None, ..self.clone() }
    }

    /// Bytes of a page.
    pub fn page_size(&self) -> u32 {
        self.run.page_size
    }

    /// Frames of this run that were read.
    pub fn frames(&self) -> u32 {
        self.at.frames
    }

    /// Bytes of the log up to here.
    pub fn bytes(&self) -> u64 {
        self.run.offset(self.at.frames)
    }
}

impl Run {
    /// Bytes of one frame.
    pub fn frame_bytes(&self) -> usize {
        FRAME_HEADER_BYTES + self.page_size as usize
    }

    /// Where the frame begins that so many others come before.
    pub fn offset(&self, frames: u32) -> u64 {
        HEADER_BYTES as u64 + u64::from(frames) * self.frame_bytes() as u64
    }
}
