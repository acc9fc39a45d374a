//! Pages → frames → zstd on all cores → parts, with a SHA-256 before and after.
//!
//! ```text
//! reader thread          lanes                 assembler thread         storage
//! Reading ─▶ FrameSink ─▶ compress ×n, ordered ─▶ Assembler ─▶ parts ─▶ create()
//!            plain hash                           stored hash
//! ```
//! Every arrow is a bounded channel, so memory depends on frame size, part size and the number of
//! threads; a slow storage slows the reader down. Of these only parts grow with the database, above
//! some 70 GiB ([`part_bytes`]); so does the seek table, by 8 bytes per frame.

use std::path::PathBuf;
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use crate::delta::{PageSize, PageTable};
use crate::error::{Error, ErrorKind, Result};
use crate::lanes::{Drain, Feed, Priority, lanes, step_back};
use crate::snapshot::{Compressor, Content, FRAME_BYTES_DEFAULT, Hasher, Manifest, SeekTable};
use crate::source::{ByPage, Facts, Findings, OnProgress, PageSink, Reading, TakePages};
use crate::storage::{Parts, part_bytes};

/// How a snapshot is made.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// zstd level.
    pub level: i32,
    /// Number of compressing threads.
    pub threads: usize,
    /// Where a database without WAL is copied to first.
    pub scratch: PathBuf,
    /// Whether the hashes of all pages are asked for.
    pub wants_table: bool,
}

/// What went through the pipeline.
#[derive(Debug)]
pub struct Copied {
    /// The database.
    pub plain: Content,
    /// The object.
    pub stored: Content,
    /// For how long writers could not commit because of us.
    pub writer_blocked: Duration,
    /// What `quick_check` said of the source, if it was asked.
    pub findings: Option<Findings>,
    /// The hashes of all pages, if they were asked for.
    pub table: Option<PageTable>,
}

/// The plain bytes per frame of every snapshot written.
pub const FRAME_BYTES: u32 = FRAME_BYTES_DEFAULT;

/// Parts that wait for the storage, besides those it is sending.
const PARTS_WAITING: usize = 1;

/// How copying ended well.
#[derive(Debug)]
pub enum Passed {
    /// Everything went to the storage.
    New(Box<Copied>),
    /// The database is what this snapshot holds; the storage was told to undo what it began.
    Known(Box<Manifest>),
}

/// Starts copying. The parts are for [`crate::storage::Storage::create`]; the handle gives the result
/// once the last part was taken, or the reason why the parts ended with an error.
///
/// A database that turns out to be `known` is not stored again: before the last part is sent, its
/// digest tells.
pub fn start(
    reading: Reading,
    recipe: Recipe,
    on_progress: OnProgress,
    known: Option<Box<Manifest>>,
) -> (Parts, JoinHandle<Result<Passed>>) {
    let (sender, mut receiver) = mpsc::channel(PARTS_WAITING);
    let handle = tokio::task::spawn_blocking(move || {
        let result = pass(reading, recipe, on_progress, known, &sender);
        let undo = match &result {
            Ok(Passed::New(_)) => None,
            Ok(Passed::Known(manifest)) => {
                Some(Error::new(ErrorKind::Conflict, format!("unchanged since {}", manifest.id)))
            }
            Err(error) => Some(Error::new(error.kind(), error.chain())),
        };
        if let Some(undo) = undo {
            // If the storage is gone already there is nobody to tell.
            let _ = sender.blocking_send(Err(undo));
        }
        result
    });
    (futures::stream::poll_fn(move |context| receiver.poll_recv(context)).boxed(), handle)
}

fn pass(
    reading: Reading,
    recipe: Recipe,
    on_progress: OnProgress,
    known: Option<Box<Manifest>>,
    parts: &mpsc::Sender<Result<Bytes>>,
) -> Result<Passed> {
    let facts = reading.facts();
    let plain_bound = u64::from(facts.page_size) * u64::from(facts.page_count);
    let in_wal_mode = facts.sqlite.journal_mode == "wal";
    let level = recipe.level;
    let (feed, drain) = lanes(recipe.threads, Priority::Background, || {
        let mut compressor = Compressor::new(level)?;
        Ok(move |plain: Vec<u8>| Ok((compressor.frame(&plain)?, plain.len() as u32)))
    })?;

    let scratch = recipe.scratch;
    let wanted = recipe.wants_table && facts.page_size > 0;
    let hashes = wanted.then(|| Hashes::of(facts)).transpose()?;
    let reader = thread::Builder::new()
        .name("lifeboat-reader".to_owned())
        .spawn(move || {
            // Without WAL writers wait for the reader: it must not wait for them in turn.
            if in_wal_mode {
                step_back();
            }
            let sink = (FrameSink::new(feed), hashes);
            let copied = reading.copy(sink, &scratch, &on_progress)?;
            let (frames, hashes) = copied.sink;
            let table = hashes.map(|hashes| hashes.into_taker().0);
            Ok::<_, Error>((frames.finish()?, table, copied.writer_blocked, copied.findings))
        })
        .map_err(|error| Error::new(ErrorKind::Internal, "start the reader thread").because(error))?;

    let mut assembler = Assembler::new(parts, part_bytes(plain_bound + plain_bound / 128));
    let assembled = assembler.take_all(drain);
    // Whatever the reader says is the cause; that its frames were not wanted is only an effect.
    let read = reader.join().map_err(|_| Error::new(ErrorKind::Internal, "the reader thread panicked"))?;
    let (plain, table, writer_blocked, findings) = match (read, assembled) {
        (Err(error), Err(cause)) if error.kind() == ErrorKind::Cancelled => return Err(cause),
        (Err(error), _) => return Err(error),
        (Ok(_), Err(error)) => return Err(error),
        (Ok(read), Ok(())) => read,
    };
    match known {
        Some(known) if known.plain == plain => Ok(Passed::Known(known)),
        _ => {
            let stored = assembler.finish()?;
            Ok(Passed::New(Box::new(Copied { plain, stored, writer_blocked, findings, table })))
        }
    }
}

/// Cuts the database into frames.
struct FrameSink {
    feed: Feed<Vec<u8>>,
    frame: Vec<u8>,
    hasher: Hasher,
}

impl FrameSink {
    fn new(feed: Feed<Vec<u8>>) -> Self {
        FrameSink { feed, frame: Vec::with_capacity(FRAME_BYTES as usize), hasher: Hasher::default() }
    }

    fn send(&mut self) -> Result<()> {
        let frame = std::mem::replace(&mut self.frame, Vec::with_capacity(FRAME_BYTES as usize));
        self.hasher.update(&frame);
        match self.feed.put(frame) {
            true => Ok(()),
            false => Err(Error::new(ErrorKind::Cancelled, "the storage stopped taking the snapshot")),
        }
    }

    fn finish(mut self) -> Result<Content> {
        if !self.frame.is_empty() {
            self.send()?;
        }
        Ok(Content { bytes: self.hasher.bytes(), sha256: self.hasher.finish() })
    }
}

impl PageSink for FrameSink {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let room = FRAME_BYTES as usize - self.frame.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.frame.extend_from_slice(now);
            bytes = later;
            if self.frame.len() == FRAME_BYTES as usize {
                self.send()?;
            }
        }
        Ok(())
    }
}

/// Takes note of all pages.
struct Hashes(PageTable);

impl Hashes {
    fn of(facts: &Facts) -> Result<ByPage<Hashes>> {
        let page_size = PageSize::new(facts.page_size)?;
        let mut table = PageTable::new(page_size);
        table.resize(facts.page_count);
        Ok(ByPage::new(Hashes(table), page_size.bytes()))
    }
}

impl TakePages for Hashes {
    fn take(&mut self, number: u32, page: &[u8]) -> Result<()> {
        self.0.set(number, page)
    }
}

/// Joins compressed frames into parts of one size and writes the seek table behind them.
struct Assembler<'a> {
    parts: &'a mpsc::Sender<Result<Bytes>>,
    part_bytes: usize,
    part: Vec<u8>,
    hasher: Hasher,
    table: SeekTable,
}

impl<'a> Assembler<'a> {
    fn new(parts: &'a mpsc::Sender<Result<Bytes>>, part_bytes: usize) -> Self {
        Assembler {
            parts,
            part_bytes,
            part: Vec::new(),
            hasher: Hasher::default(),
            table: SeekTable::default(),
        }
    }

    fn take_all(&mut self, mut drain: Drain<(Vec<u8>, u32)>) -> Result<()> {
        while let Some(frame) = drain.take() {
            let (stored, plain_bytes) = frame?;
            self.table.push(stored.len() as u32, plain_bytes);
            self.append(&stored)?;
        }
        Ok(())
    }

    fn append(&mut self, mut bytes: &[u8]) -> Result<()> {
        self.hasher.update(bytes);
        while !bytes.is_empty() {
            // A full part is sent only when more follows, so the last one is never empty.
            if self.part.len() == self.part_bytes {
                self.send()?;
            }
            let room = self.part_bytes - self.part.len();
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.part.extend_from_slice(now);
            bytes = later;
        }
        Ok(())
    }

    fn send(&mut self) -> Result<()> {
        let part = Bytes::from(std::mem::take(&mut self.part));
        self.parts
            .blocking_send(Ok(part))
            .map_err(|_| Error::new(ErrorKind::Cancelled, "the storage stopped taking the snapshot"))
    }

    fn finish(mut self) -> Result<Content> {
        let table = self.table.encode();
        self.append(&table)?;
        self.send()?;
        Ok(Content { bytes: self.hasher.bytes(), sha256: self.hasher.finish() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_part_is_never_empty_and_all_others_are_full() {
        const PART_BYTES: usize = 64;
        let lengths = |data_bytes: usize| -> Vec<usize> {
            let (sender, mut receiver) = mpsc::channel(64);
            let mut assembler = Assembler::new(&sender, PART_BYTES);
            assembler.append(&vec![7; data_bytes]).expect("taken");
            let content = assembler.finish().expect("taken");
            drop(sender);
            let parts = std::iter::from_fn(|| receiver.blocking_recv());
            let lengths: Vec<usize> = parts.map(|part| part.expect("no error").len()).collect();
            assert_eq!(lengths.iter().sum::<usize>() as u64, content.bytes);
            lengths
        };
        let mut multiples = 0;
        for data_bytes in 1_000..1_000 + 2 * PART_BYTES {
            let (last, others) = lengths(data_bytes)
                .split_last()
                .map(|(last, others)| (*last, others.to_vec()))
                .expect("parts");
            assert!(others.iter().all(|part| *part == PART_BYTES), "{others:?}");
            assert!((1..=PART_BYTES).contains(&last), "{last}");
            multiples += usize::from(last == PART_BYTES);
        }
        assert_eq!(multiples, 2);
    }
}
