//! Deltas put upon a restored copy: read ahead, applied in order, each proven by the checksum after it.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::{Buf, Bytes};
use futures::{StreamExt, TryStreamExt, stream};
use tokio::sync::mpsc;

use super::Resources;
use super::moment::{Moment, proves_until};
use crate::clock::Timestamp;
use crate::crash::{self, Point};
use crate::delta::{Applier, DatabaseChecksum, Decoder, PageSize, PageStore, PageTable};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{Anchor, Key, Manifest};

/// Bytes per read.
const PIECE_BYTES: u64 = 4 << 20;

/// Reads under way at once: most deltas are small, and what they cost is the way to them.
const READS: usize = 16;

/// Puts the deltas of `moment` upon its snapshot, which the file at `path` holds, and syncs it.
///
/// `Corrupt` unless the database has the checksum that each delta says; the caller throws the file away on any
/// error.
pub async fn replay(resources: &Resources, moment: &Moment, path: &Path) -> Result<()> {
    let Some(anchor) = moment.manifest.anchor else { return Ok(()) };
    if moment.deltas.is_empty() {
        return Ok(());
    }
    let storage = &resources.storage;
    let database = &moment.manifest.database;
    let deltas: Vec<(Key, u64)> = moment
        .deltas
        .iter()
        .map(|delta| (Key::Delta(database.clone(), delta.level, delta.span), delta.bytes))
        .collect();
    let pieces = deltas.iter().flat_map(|(key, bytes)| {
        let starts = (0..*bytes).step_by(PIECE_BYTES as usize);
        starts.map(move |start| (key.clone(), start..bytes.min(&(start + PIECE_BYTES)).to_owned()))
    });
    let pieces: Vec<_> = pieces.collect();
    let (sender, receiver) = mpsc::channel(1);
    let (manifest, path, ours) = (moment.manifest.clone(), path.to_owned(), deltas.clone());
    let applying = tokio::task::spawn_blocking(move || apply(&manifest, anchor, &path, &ours, receiver));
    let reading = stream::iter(pieces)
        .map(|(key, range)| async move { storage.read_range(&key, range).await })
        .buffered(READS)
        .try_for_each(|piece| async {
            // Whoever stopped applying has the reason; it is asked below.
            sender.send(piece).await.map_err(|_| Error::new(ErrorKind::Cancelled, "applying stopped"))
        })
        .await;
    drop(sender);
    let applied = applying.await.context(ErrorKind::Internal, || "applying ended early".to_owned())?;
    match reading {
        Err(error) if error.kind() != ErrorKind::Cancelled => Err(error),
        _ => applied,
    }
}

fn apply(
    manifest: &Manifest,
    anchor: Anchor,
    path: &Path,
    deltas: &[(Key, u64)],
    mut pieces: mpsc::Receiver<Bytes>,
) -> Result<()> {
    let failed =
        |error: io::Error| Error::new(ErrorKind::Target, "write the restored database").because(error);
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    let page_size = PageSize::new(manifest.page_size)?;
    let table = table_of(&file, page_size, manifest.page_count).map_err(failed)?;
    if table.checksum() != DatabaseChecksum::from(anchor.checksum) {
        let message = format!(
            "the snapshot is not what its anchor says: snapshot=`{}` expected=`{}` found=`{}`",
            manifest.id,
            DatabaseChecksum::from(anchor.checksum),
            table.checksum()
        );
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let store = Pages { file, page_size };
    let mut applier = Applier::new(store, table, manifest.database_id.clone(), anchor.position);
    let mut reached = Vec::new();
    for (key, bytes) in deltas {
        let stored = Stored { pieces: &mut pieces, piece: Bytes::new(), left: *bytes };
        let last_commit =
            apply_one(&mut applier, stored, key).map_err(|Unproven { error, last_commit }| {
                // Whoever asks for that moment gets no delta in which the last commit was not seen later.
                let before =
                    |reached: &&Timestamp| last_commit.is_none_or(|last_commit| **reached < last_commit);
                match error.kind() {
                    ErrorKind::Corrupt => {
                        proves_until(manifest, reached.iter().rev().find(before).copied(), error)
                    }
                    _ => error,
                }
            })?;
        reached.push(last_commit);
        crash::at(Point::DeltaApplied);
    }
    let (Pages { file, .. }, _) = applier.into_parts();
    file.sync_all().map_err(failed)
}

/// A delta that was not applied, and when its last commit was seen, if it told.
struct Unproven {
    error: Error,
    last_commit: Option<Timestamp>,
}

/// When the last commit in the delta was seen, once it is applied and proven.
fn apply_one(
    applier: &mut Applier<Pages>,
    stored: Stored<'_>,
    key: &Key,
) -> std::result::Result<Timestamp, Unproven> {
    let decoder = Decoder::new(stored, key).map_err(|error| Unproven { error, last_commit: None })?;
    let last_commit = decoder.header().last_commit;
    match applier.apply(decoder) {
        Ok(()) => Ok(last_commit),
        Err(error) => Err(Unproven { error, last_commit: Some(last_commit) }),
    }
}

fn table_of(file: &File, page_size: PageSize, pages: u32) -> io::Result<PageTable> {
    let mut table = PageTable::new(page_size);
    table.resize(pages);
    let mut page = vec![0; page_size.bytes()];
    for number in 1..=pages {
        file.read_exact_at(&mut page, offset(page_size, number))?;
        table.set(number, &page).map_err(io::Error::other)?;
    }
    Ok(table)
}

fn offset(page_size: PageSize, number: u32) -> u64 {
    u64::from(number - 1) * page_size.bytes() as u64
}

/// The restored file.
struct Pages {
    file: File,
    page_size: PageSize,
}

impl PageStore for Pages {
    fn set_pages(&mut self, pages: u32) -> Result<()> {
        let bytes = u64::from(pages) * self.page_size.bytes() as u64;
        self.file.set_len(bytes).context(ErrorKind::Target, || "write the restored database".to_owned())
    }

    fn write_page(&mut self, number: u32, page: &[u8]) -> Result<()> {
        let written = self.file.write_all_at(page, offset(self.page_size, number));
        written.context(ErrorKind::Target, || "write the restored database".to_owned())
    }
}

/// The bytes of one delta, out of the pieces of all.
struct Stored<'a> {
    pieces: &'a mut mpsc::Receiver<Bytes>,
    piece: Bytes,
    left: u64,
}

impl Read for Stored<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            return Ok(0);
        }
        if self.piece.is_empty() {
            // Without another one the reading failed, and says why.
            self.piece = self.pieces.blocking_recv().ok_or(io::ErrorKind::UnexpectedEof)?;
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        self.left -= count as u64;
        Ok(count)
    }
}
