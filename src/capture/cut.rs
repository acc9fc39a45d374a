//! What changed from one position to the next, until it is stored.

use std::collections::BTreeMap;

use bytes::Bytes;

use crate::clock::Timestamp;
use crate::delta::{DatabaseChecksum, Encoder, Header, PageSize, PutId};
use crate::error::Result;
use crate::snapshot::{DatabaseId, Span};

/// A delta before it is encoded: all that is known of it but who writes it.
#[derive(Debug, Clone)]
pub struct Cut {
    /// Where it leads.
    pub span: Span,
    /// Bytes per page.
    pub page_size: PageSize,
    /// The pages that differ, as they are at the end.
    pub pages: BTreeMap<u32, Box<[u8]>>,
    /// The size of the database at the end, in pages.
    pub pages_after: u32,
    /// The checksum at the beginning.
    pub before: DatabaseChecksum,
    /// The checksum at the end.
    pub after: DatabaseChecksum,
    /// When the first commit in it was seen.
    pub first_commit: Timestamp,
    /// When the last one was.
    pub last_commit: Timestamp,
}

/// Who writes deltas.
#[derive(Debug, Clone)]
pub struct Writer {
    /// The history.
    pub database_id: DatabaseId,
    /// The epoch.
    pub epoch: u64,
    /// zstd level.
    pub zstd_level: i32,
}

impl Cut {
    /// The stored form.
    pub fn encode(&self, writer: &Writer, put_id: PutId) -> Result<Bytes> {
        let header = Header {
            database_id: writer.database_id.clone(),
            epoch: writer.epoch,
            put_id,
            span: self.span,
            first_commit: self.first_commit,
            last_commit: self.last_commit,
            page_size: self.page_size,
            pages_after: self.pages_after,
            checksum_before: self.before,
        };
        let mut encoder = Encoder::new(Vec::new(), &header, writer.zstd_level)?;
        for (number, page) in &self.pages {
            encoder.page(*number, page)?;
        }
        let (_, bytes) = encoder.finish(self.after)?;
        Ok(bytes.into())
    }

    /// Bytes of its pages.
    pub fn bytes(&self) -> usize {
        self.pages.len() * self.page_size.bytes()
    }
}
