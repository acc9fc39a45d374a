//! Reading a snapshot back: ranges in parallel, frames decompressed on all cores, both hashes checked.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::sync::mpsc::sync_channel;
use std::thread;

use bytes::Bytes;
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use crate::crash::{self, Point};
use crate::disk::SyncedFile;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::lanes::{Drain, Feed, Priority, lanes};
use crate::snapshot::{Content, Decompressor, Hasher, Manifest, SeekTable};
use crate::source::{OnProgress, Progress};
use crate::storage::{Entry, Storage};

use super::Resources;

/// Stored bytes per read.
const PIECE_BYTES: u64 = 4 << 20;

/// Reads under way at once.
const READS: usize = 4;

/// Frames that are written and wait for being hashed.
const FRAMES_TO_HASH: usize = 2;

/// Writes the database of `manifest` into the empty `file` and syncs it.
///
/// `Corrupt` unless every size and both hashes are the manifest's; the caller throws the file away
/// on any error. Takes a handful of frames and pieces of memory, whatever the size.
///
/// Returns how many bytes the object has behind the end that the manifest gives it. They are nobody's
/// and are not read; what stands before them is what was stored.
pub async fn fetch(resources: &Resources, manifest: &Manifest, file: File) -> Result<u64> {
    let fetched = read_back(resources, manifest, file).await;
    fetched.map_err(|error| {
        let key = manifest.data_key().path();
        if error.kind() != ErrorKind::Corrupt || error.chain().contains(&key) {
            return error;
        }
        Error::new(ErrorKind::Corrupt, format!("the stored database is damaged: key=`{key}`")).because(error)
    })
}

async fn read_back(resources: &Resources, manifest: &Manifest, file: File) -> Result<u64> {
    let storage = &resources.storage;
    let object = object(storage, manifest).await?;
    let surplus = object.bytes.saturating_sub(manifest.stored.bytes);
    let table = seek_table(storage, manifest).await?;
    let pieces = table.pieces(PIECE_BYTES);
    let (sender, receiver) = mpsc::channel(1);
    let expected = manifest.clone();
    let (threads, on_progress) = (resources.threads, Arc::clone(&resources.on_progress));
    let decoding =
        tokio::task::spawn_blocking(move || decode(&expected, &table, receiver, file, threads, &on_progress));

    let key = manifest.data_key();
    let reading = stream::iter(pieces)
        .map(|(frames, range)| {
            let key = key.clone();
            async move { Ok::<_, Error>((frames, storage.read_range(&key, range).await?)) }
        })
        .buffered(READS)
        .try_for_each(|piece| async {
            // A decoder that stopped has the reason; it is asked below.
            sender.send(piece).await.map_err(|_| Error::new(ErrorKind::Cancelled, "decoding stopped"))
        })
        .await;
    drop(sender);
    let decoded = decoding.await.context(ErrorKind::Internal, || "decoding ended early".to_owned())?;
    match (reading, decoded) {
        (Err(error), _) if error.kind() != ErrorKind::Cancelled => Err(error),
        (_, decoded) => decoded.map(|()| surplus),
    }
}

/// What storage says of a snapshot's data; `NotFound` if there is none.
pub(super) async fn object(storage: &Arc<dyn Storage>, manifest: &Manifest) -> Result<Entry> {
    let key = manifest.data_key();
    let missing = || Error::new(ErrorKind::NotFound, format!("the data is missing: key=`{key}`"));
    storage.head(&key).await?.ok_or_else(missing)
}

pub(super) async fn seek_table(storage: &Arc<dyn Storage>, manifest: &Manifest) -> Result<SeekTable> {
    let end = manifest.stored.bytes;
    let key = manifest.data_key();
    let encoded = storage.read_range(&key, end - manifest.seek_table_bytes()..end).await?;
    SeekTable::decode(&encoded, end, manifest.plain.bytes, manifest.frame_bytes)
        .context(ErrorKind::Corrupt, || format!("read a snapshot: key=`{key}`"))
}

/// A stored frame and the size of its content.
type Frame = (Bytes, usize);

fn decode(
    manifest: &Manifest,
    table: &SeekTable,
    pieces: mpsc::Receiver<(Range<usize>, Bytes)>,
    file: File,
    threads: usize,
    on_progress: &OnProgress,
) -> Result<()> {
    let (feed, drain) = lanes(threads, Priority::Normal, || {
        let mut decompressor = Decompressor::new()?;
        Ok(move |(stored, plain_bytes): Frame| decompressor.frame(&stored, plain_bytes))
    })?;
    thread::scope(|scope| {
        let writer = scope.spawn(|| write(drain, file, manifest.plain.bytes, on_progress));
        let stored = split(table, pieces, feed);
        let plain =
            writer.join().map_err(|_| Error::new(ErrorKind::Internal, "the writer thread panicked"))?;
        // The writer's error is the cause when both stopped.
        require_same("database", manifest, manifest.plain, plain?)?;
        require_same("object", manifest, manifest.stored, stored)
    })
}

/// Hashes the object as it arrives and cuts it into frames. Stops when nobody wants more.
fn split(
    table: &SeekTable,
    mut pieces: mpsc::Receiver<(Range<usize>, Bytes)>,
    mut feed: Feed<Frame>,
) -> Content {
    let mut hasher = Hasher::default();
    'pieces: while let Some((frames, mut piece)) = pieces.blocking_recv() {
        hasher.update(&piece);
        for index in frames {
            let (stored_bytes, plain_bytes) = table.sizes(index);
            // The range read was the sum of its frames' sizes, so there is always enough to cut.
            if !feed.put((piece.split_to(stored_bytes), plain_bytes)) {
                break 'pieces;
            }
        }
    }
    hasher.update(&table.encode());
    Content { bytes: hasher.bytes(), sha256: hasher.finish() }
}

fn write(mut drain: Drain<Vec<u8>>, file: File, total: u64, on_progress: &OnProgress) -> Result<Content> {
    // Whatever the disk says of a write or a sync, it is not a defect of ours.
    let failed =
        |error: io::Error| Error::new(ErrorKind::Target, "write the restored database").because(error);
    // Hashing and writing take about the same time, so each has a thread.
    let (hashing, written) = sync_channel::<Vec<u8>>(FRAMES_TO_HASH);
    thread::scope(|scope| {
        let hashed = scope.spawn(move || {
            let mut hasher = Hasher::default();
            written.into_iter().for_each(|plain| hasher.update(&plain));
            Content { bytes: hasher.bytes(), sha256: hasher.finish() }
        });
        let mut file = SyncedFile::new(file).map_err(failed)?;
        let mut done = 0;
        while let Some(plain) = drain.take() {
            let plain = plain?;
            file.append(&plain).map_err(failed)?;
            crash::at(Point::CopyAppended);
            done += plain.len() as u64;
            on_progress(Progress { done, total });
            // It takes everything until this sender is gone.
            let _ = hashing.send(plain);
        }
        drop(hashing);
        file.finish().map_err(failed)?;
        hashed.join().map_err(|_| Error::new(ErrorKind::Internal, "the hashing thread panicked"))
    })
}

fn require_same(what: &str, manifest: &Manifest, expected: Content, found: Content) -> Result<()> {
    if expected == found {
        return Ok(());
    }
    let message = format!(
        "the {what} is not what the manifest says: snapshot=`{}` expected=`{} bytes, sha256 {}` found=`{} bytes, \
         sha256 {}`",
        manifest.id, expected.bytes, expected.sha256, found.bytes, found.sha256
    );
    Err(Error::new(ErrorKind::Corrupt, message))
}
