//! The deltas of a database: which there are, where they end, and writing one.

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::Catalog;
use crate::delta::{DatabaseChecksum, Decoder, Header, PageSize, Trailer};
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Key, Kind, Level, Manifest, Span};
use crate::storage::whole;

/// A delta in storage, as the listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
pub struct StoredDelta {
    /// How often it was merged.
    pub level: Level,
    /// Where it leads.
    pub span: Span,
    /// Its size.
    pub bytes: u64,
    /// When it was written, by the storage's clock.
    pub stored_at: Timestamp,
}

/// The last state that storage knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineEnd {
    /// Its number.
    pub position: u64,
    /// Bytes per page.
    pub page_size: PageSize,
    /// The size of the database, in pages.
    pub pages: u32,
    /// The checksum of the database.
    pub checksum: DatabaseChecksum,
}

/// The largest delta that is read whole; none that capture writes is larger.
pub const DELTA_BYTES_MAX: usize = 128 << 20;

impl Catalog {
    /// Where a delta is stored.
    pub fn delta_key(&self, level: Level, span: Span) -> Key {
        Key::Delta(self.database.clone(), level, span)
    }

    /// Every delta there is, by level and position. What is not ours is passed over.
    pub async fn deltas(&self) -> Result<Vec<StoredDelta>> {
        let entries = self.storage.list(&Kind::Deltas.prefix(&self.database)).await?;
        let ours = |entry: crate::storage::Entry| match Key::parse(&entry.path)? {
            Key::Delta(_, level, span) => {
                Some(StoredDelta { level, span, bytes: entry.bytes, stored_at: entry.modified_at })
            }
            _ => None,
        };
        Ok(entries.into_iter().filter_map(ours).collect())
    }

    /// What stands before the pages of a delta.
    pub async fn delta_header(&self, level: Level, span: Span) -> Result<Header> {
        let key = self.delta_key(level, span);
        let bytes = self.storage.read_range(&key, 0..Header::BYTES as u64).await?;
        Ok(Decoder::new(&bytes[..], &key)?.header().clone())
    }

    /// A delta, read and checked from its first byte to its last.
    pub async fn delta(&self, level: Level, span: Span) -> Result<(Header, Trailer)> {
        let key = self.delta_key(level, span);
        let object = self.storage.read(&key, DELTA_BYTES_MAX).await?;
        let check = move || {
            let decoder = Decoder::new(&object.bytes[..], &key)?;
            let header = decoder.header().clone();
            Ok((header, decoder.check()?))
        };
        blocking("read a delta", check).await
    }

    /// Where the deltas end, or the newest snapshot `newest` if that is further.
    pub async fn line_end(&self, newest: Option<&Manifest>) -> Result<Option<LineEnd>> {
        let anchored = newest.and_then(|manifest| Some((manifest, manifest.anchor?)));
        let last = self.deltas().await?.into_iter().max_by_key(|delta| delta.span.to());
        match (last, anchored) {
            (Some(last), anchored)
                if anchored.is_none_or(|(_, anchor)| anchor.position <= last.span.to()) =>
            {
                let (header, trailer) = self.delta(last.level, last.span).await?;
                Ok(Some(LineEnd {
                    position: last.span.to(),
                    page_size: header.page_size,
                    pages: header.pages_after,
                    checksum: trailer.checksum_after,
                }))
            }
            (_, Some((manifest, anchor))) => Ok(Some(LineEnd {
                position: anchor.position,
                page_size: PageSize::new(manifest.page_size)?,
                pages: manifest.page_count,
                checksum: DatabaseChecksum::from(anchor.checksum),
            })),
            (_, None) => Ok(None),
        }
    }

    /// Stores a delta that capture made.
    ///
    /// Repeating it with the same bytes after an error is right. `Fenced` if somebody else's stands at its
    /// place: then the line goes on without us.
    pub async fn put_delta(&self, span: Span, bytes: Bytes) -> Result<()> {
        let key = self.delta_key(Level::CAPTURED, span);
        match self.storage.create(&key, whole(bytes.clone())).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let stands = self.storage.read(&key, DELTA_BYTES_MAX).await?;
                match stands.bytes == bytes {
                    true => Ok(()),
                    false => Err(Error::new(
                        ErrorKind::Fenced,
                        format!("somebody else goes on from there, nothing was overwritten: key=`{key}`"),
                    )
                    .because(error)),
                }
            }
            done => done,
        }
    }

    /// Stores a delta that was merged. `Conflict` if one stands in its place.
    pub async fn create_merged(&self, level: Level, span: Span, bytes: Bytes) -> Result<()> {
        self.storage.create(&self.delta_key(level, span), whole(bytes)).await
    }

    /// Removes a delta, if it is there.
    pub async fn remove_delta(&self, level: Level, span: Span) -> Result<()> {
        self.storage.delete(&self.delta_key(level, span)).await
    }
}
