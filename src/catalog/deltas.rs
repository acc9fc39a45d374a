//! The deltas of a database: which there are, where they end, and writing one.

use std::cmp::Reverse;

use bytes::Bytes;
use jiff::Timestamp;
use serde::Serialize;

use super::Catalog;
use crate::delta::{self, DatabaseChecksum, Decoder, Header, Listed, PageSize, Trailer};
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Key, Kind, Level, Manifest, Span, is_other_format};
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

impl StoredDelta {
    /// As it is planned with.
    pub fn listed(&self) -> Listed {
        Listed { level: self.level, span: self.span, moments: None }
    }
}

/// The last state that storage knows of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LineEnd {
    /// Its number.
    pub position: u64,
    /// Who wrote it.
    pub epoch: u64,
    /// Bytes per page.
    pub page_size: PageSize,
    /// The size of the database, in pages.
    pub pages: u32,
    /// The checksum of the database.
    pub checksum: DatabaseChecksum,
    /// When the last commit in it was seen, or the snapshot taken that it is, if that can be told.
    pub shows: Option<Timestamp>,
    /// Whether deltas lead there from a snapshot.
    pub is_reached: bool,
}

impl LineEnd {
    /// What nobody can tell any more, so that nothing goes on from it.
    fn unknown(position: u64) -> LineEnd {
        LineEnd {
            position,
            epoch: 0,
            page_size: PageSize::SMALLEST,
            pages: 0,
            checksum: DatabaseChecksum::default(),
            shows: None,
            is_reached: false,
        }
    }
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
    ///
    /// A last delta that is damaged ends the line: nobody knows its state.
    pub async fn line_end(&self, newest: Option<&Manifest>) -> Result<Option<LineEnd>> {
        let deltas = self.deltas().await?;
        let anchored = match newest {
            None => Vec::new(),
            Some(newest) if newest.anchor.is_some() => vec![newest.clone()],
            Some(newest) => {
                // What was never published leads nowhere: no restore begins with it.
                let mut published = self.list().await?.snapshots;
                published.retain(|manifest| manifest.id <= newest.id);
                published
            }
        };
        let anchored = anchored.into_iter().filter(|manifest| !manifest.is_branch());
        let anchored = anchored.filter_map(|manifest| Some((manifest.anchor?, manifest)));
        let anchored = anchored.max_by_key(|(anchor, _)| anchor.position);
        // Of several that end there, the smallest.
        let last = deltas.iter().max_by_key(|delta| (delta.span.to(), Reverse(delta.level)));
        match (last, anchored) {
            (Some(last), anchored)
                if anchored.as_ref().is_none_or(|(anchor, _)| anchor.position <= last.span.to()) =>
            {
                let (header, trailer) = match self.delta(last.level, last.span).await {
                    Err(error) if error.kind() == ErrorKind::Corrupt && !is_other_format(&error) => {
                        tracing::error!(database = %self.database, "the last delta is damaged, a new line begins: {}", error.chain());
                        return Ok(Some(LineEnd::unknown(last.span.to())));
                    }
                    whole => whole?,
                };
                let positions: Vec<u64> = anchored.iter().map(|(anchor, _)| anchor.position).collect();
                let listed: Vec<Listed> = deltas
                    .iter()
                    .map(|delta| Listed { level: delta.level, span: delta.span, moments: None })
                    .collect();
                let windows = delta::windows(&positions, &listed);
                Ok(Some(LineEnd {
                    position: last.span.to(),
                    epoch: header.epoch,
                    page_size: header.page_size,
                    pages: header.pages_after,
                    checksum: trailer.checksum_after,
                    shows: Some(header.last_commit),
                    is_reached: windows.first().is_some_and(|window| window.to == last.span.to()),
                }))
            }
            (_, Some((anchor, manifest))) => Ok(Some(LineEnd {
                position: anchor.position,
                epoch: manifest.epoch,
                page_size: PageSize::new(manifest.page_size)?,
                pages: manifest.page_count,
                checksum: DatabaseChecksum::from(anchor.checksum),
                shows: Some(manifest.taken_at),
                is_reached: true,
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
