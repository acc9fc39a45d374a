//! The frames of one run of the log, each proven by the checksum to follow the one before.

use std::io;

use super::format::{Checksum, FRAME_HEADER_BYTES, FrameHeader, HEADER_BYTES, Header, frame_checksum};
use super::mark::{Commit, Mark, Position, Transaction};

/// The bytes of a log that others may write to meanwhile.
pub(super) trait Bytes {
    /// How many there are.
    fn size(&self) -> io::Result<u64>;
    /// Reads at `offset`, into all of `buffer` or a part of it; 0 is the end.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<usize>;
}

/// Reads into all of `buffer` as far as there are bytes; says how many.
fn fill(log: &impl Bytes, buffer: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut filled = 0;
    while filled < buffer.len() {
        match log.read_at(&mut buffer[filled..], offset + filled as u64) {
            Ok(0) => break,
            Ok(bytes) => filled += bytes,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(filled)
}

/// What stands where a log's header should.
pub(super) enum Start {
    Header(Header),
    /// Fewer bytes than a header has.
    Short,
    /// Enough bytes, which are no header.
    Invalid,
}

/// A header may be read while it is written; so it is given this many chances.
const HEADER_READS_MAX: u32 = 3;

/// Reads the header.
pub(super) fn start(log: &impl Bytes) -> io::Result<Start> {
    let mut bytes = [0; HEADER_BYTES];
    for _ in 0..HEADER_READS_MAX {
        if fill(log, &mut bytes, 0)? < HEADER_BYTES {
            return Ok(Start::Short);
        }
        if let Some(header) = Header::parse(&bytes) {
            return Ok(Start::Header(header));
        }
    }
    Ok(Start::Invalid)
}

/// The header of frame `number` (the first is 1) of a log like the mark's; `None` behind the end.
pub(super) fn frame_header(log: &impl Bytes, mark: &Mark, number: u32) -> io::Result<Option<FrameHeader>> {
    let mut bytes = [0; FRAME_HEADER_BYTES];
    let filled = fill(log, &mut bytes, mark.run.offset(number - 1))?;
    Ok((filled == FRAME_HEADER_BYTES).then(|| FrameHeader::parse(&bytes)))
}

/// What comes next.
pub(super) enum Next<'a> {
    /// A valid frame: which page, with what content, and how many pages the database has if it commits.
    Frame { page: u32, content: &'a [u8], page_count: u32 },
    /// Something that the run did not write there as its next frame.
    Foreign,
    /// The end of the file, before a whole frame.
    End,
}

/// Bytes read at once; always whole frames. Begins with one frame, for mostly there is nothing new.
const READ_BYTES_MAX: usize = 256 * 1024;

/// Goes through the frames behind a mark.
pub(super) struct Chain<'a, B> {
    log: &'a B,
    /// Moves when a transaction is whole.
    pub mark: Mark,
    /// Moves with each frame.
    at: Position,
    /// The checksum in the first frame behind the mark.
    first: Option<Checksum>,
    /// Frames that begin behind this many bytes are left for another time: an end for a log that grows.
    end: u64,
    buffer: Vec<u8>,
    filled: usize,
    used: usize,
}

impl<'a, B: Bytes> Chain<'a, B> {
    pub fn behind(mark: Mark, log: &'a B, end: u64) -> Self {
        let frame_bytes = mark.run.frame_bytes();
        let buffer = vec![0; frame_bytes];
        Chain { log, at: mark.at, mark, first: None, end, buffer, filled: 0, used: 0 }
    }

    /// Valid frames behind the last whole transaction, so far.
    pub fn uncommitted(&self) -> u32 {
        self.at.frames - self.mark.at.frames
    }

    pub fn next(&mut self) -> io::Result<Next<'_>> {
        let run = self.mark.run;
        let frame_bytes = run.frame_bytes();
        let offset = run.offset(self.at.frames);
        if self.filled - self.used < frame_bytes {
            // A frame that was there in part is read again, and not put together from two reads.
            if self.filled == self.buffer.len() {
                let frames = (4 * self.filled).min(READ_BYTES_MAX).div_ceil(frame_bytes);
                self.buffer.resize(frames * frame_bytes, 0);
            }
            let wanted = self.end.saturating_sub(offset).min(self.buffer.len() as u64) as usize;
            (self.filled, self.used) = (fill(self.log, &mut self.buffer[..wanted], offset)?, 0);
        }
        let bytes = &self.buffer[self.used..self.filled];
        let Some(header) = bytes.first_chunk().map(FrameHeader::parse) else { return Ok(Next::End) };
        if header.salts != run.salts {
            return Ok(Next::Foreign);
        }
        let Some(frame) = bytes.get(..frame_bytes) else { return Ok(Next::End) };
        let checksum = frame_checksum(self.at.checksum, frame, run.order);
        if checksum != header.checksum || header.page == 0 {
            return Ok(Next::Foreign);
        }
        self.used += frame_bytes;
        self.at = Position { frames: self.at.frames + 1, checksum };
        let first = *self.first.get_or_insert(checksum);
        let content = &self.buffer[self.used - frame_bytes + FRAME_HEADER_BYTES..self.used];
        let FrameHeader { page, page_count, .. } = header;
        if page_count != 0 {
            let content = Checksum::ZERO.over(content, run.order);
            let commit = Commit { page, page_count, content };
            let padding = |last: &Transaction| first == checksum && last.commit == commit;
            let begun = Transaction { after: self.mark.at, first, commit };
            self.mark.last = Some(self.mark.last.filter(padding).unwrap_or(begun));
            self.mark.at = self.at;
            self.first = None;
        }
        Ok(Next::Frame { page, content, page_count })
    }
}
