//! A stored delta, read piece by piece from a thread that may wait.

use std::io::{self, Read};
use std::sync::Arc;

use bytes::{Buf, Bytes};
use tokio::runtime::Handle;

use crate::catalog::Catalog;
use crate::error::Result;
use crate::snapshot::{Key, Level, Span};
use crate::storage::Storage;

/// Bytes per piece; one is in memory.
const PIECE_BYTES: u64 = 1 << 20;

/// The bytes of one delta.
pub(super) struct Pieces {
    storage: Arc<dyn Storage>,
    key: Key,
    runtime: Handle,
    piece: Bytes,
    read_to: u64,
    bytes: u64,
}

impl Pieces {
    /// Reads the first piece, which of most deltas is all.
    pub(super) async fn begin(catalog: &Catalog, level: Level, span: Span, bytes: u64) -> Result<Pieces> {
        let (storage, key) = (Arc::clone(catalog.storage()), catalog.delta_key(level, span));
        let read_to = bytes.min(PIECE_BYTES);
        let piece = storage.read_range(&key, 0..read_to).await?;
        Ok(Pieces { storage, key, runtime: Handle::current(), piece, read_to, bytes })
    }

    /// Where it is stored.
    pub(super) fn key(&self) -> &Key {
        &self.key
    }
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.piece.is_empty() && self.read_to < self.bytes {
            let end = self.bytes.min(self.read_to + PIECE_BYTES);
            let reading = self.storage.read_range(&self.key, self.read_to..end);
            self.piece = self.runtime.block_on(reading).map_err(io::Error::other)?;
            self.read_to = end;
        }
        let count = buffer.len().min(self.piece.len());
        self.piece.copy_to_slice(&mut buffer[..count]);
        Ok(count)
    }
}
