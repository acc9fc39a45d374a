//! What stands before and behind the pages of a stored delta.

use std::fmt;

use jiff::Timestamp;

use super::checksum::DatabaseChecksum;
use super::layout::{Fields, damaged};
use super::page::PageSize;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{DatabaseId, FORMAT, Key, Span, other_format};

/// 128 random bits by which a writer that lost the answer recognises what it wrote itself.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct PutId(u128);

impl PutId {
    /// An id from 128 random bits.
    pub fn new(random: u128) -> PutId {
        PutId(random)
    }
}

impl fmt::Display for PutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for PutId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What is known of a delta before its pages.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Header {
    /// The identity of the history.
    pub database_id: DatabaseId,
    /// The epoch of the writer; of a merged delta, that of the last one.
    pub epoch: u64,
    /// Who wrote just this object.
    pub put_id: PutId,
    /// The positions it leads from and to.
    pub span: Span,
    /// The time of the first commit in it. Stored to the millisecond, and what the clock said then: it
    /// may be after `last_commit`.
    pub first_commit: Timestamp,
    /// The time of the last commit in it, to the millisecond.
    pub last_commit: Timestamp,
    /// Bytes per page.
    pub page_size: PageSize,
    /// The size of the database at the end, in pages.
    pub pages_after: u32,
    /// The checksum of the database at the beginning.
    pub checksum_before: DatabaseChecksum,
}

/// What is known of a delta once all its pages were seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Trailer {
    /// The number of pages in it.
    pub pages: u32,
    /// The checksum of the database at the end.
    pub checksum_after: DatabaseChecksum,
}

/// Stands at the beginning, followed by the format version in one byte.
const MAGIC: [u8; 3] = *b"LBD";

impl Header {
    /// Its size, stored.
    pub const BYTES: usize = 89;

    /// The size of a stored delta without pages: header, the end of the blocks, trailer and digest.
    pub const EMPTY_DELTA_BYTES: u64 = (Header::BYTES + 2 + Trailer::BYTES + 32) as u64;

    pub(super) fn encode(&self) -> Result<Vec<u8>> {
        let database_id = self.database_id.bits().ok_or_else(|| {
            let id = &self.database_id;
            Error::new(
                ErrorKind::Corrupt,
                format!("the id of a history is 32 hex digits: database_id=`{id}`"),
            )
        })?;
        let mut bytes = Vec::with_capacity(Header::BYTES);
        bytes.extend(MAGIC);
        bytes.push(u8::try_from(FORMAT).expect("one byte holds the format"));
        bytes.push(self.page_size.log2());
        bytes.extend(database_id.to_be_bytes());
        bytes.extend(self.put_id.0.to_be_bytes());
        bytes.extend(self.epoch.to_le_bytes());
        bytes.extend(self.span.from().to_le_bytes());
        bytes.extend(self.span.to().to_le_bytes());
        bytes.extend(self.first_commit.as_millisecond().to_le_bytes());
        bytes.extend(self.last_commit.as_millisecond().to_le_bytes());
        bytes.extend(self.checksum_before.bits().to_le_bytes());
        bytes.extend(self.pages_after.to_le_bytes());
        Ok(bytes)
    }

    /// Reads a header found under `key`. The version is looked at before all else but the magic, so that a
    /// newer format is told apart from damage.
    pub(super) fn decode(bytes: &[u8; Header::BYTES], key: &Key) -> Result<Header> {
        let wrong = |why: &str| damaged(format_args!("the delta key=`{key}`"), why);
        let mut fields = Fields(bytes);
        if fields.next() != MAGIC {
            return Err(wrong("it does not begin as one"));
        }
        let [format] = fields.next();
        if u32::from(format) != FORMAT {
            return Err(other_format(u32::from(format), key));
        }
        let [page_size] = fields.next();
        let page_size =
            PageSize::from_log2(page_size).ok_or_else(|| wrong("its page size is not one SQLite has"))?;
        let database_id = DatabaseId::new(u128::from_be_bytes(fields.next()));
        let put_id = PutId(u128::from_be_bytes(fields.next()));
        let epoch = u64::from_le_bytes(fields.next());
        let span = Span::new(u64::from_le_bytes(fields.next()), u64::from_le_bytes(fields.next()))
            .map_err(|_| wrong("it leads nowhere"))?;
        let mut time = || {
            Timestamp::from_millisecond(i64::from_le_bytes(fields.next()))
                .map_err(|_| wrong("a time in it is none"))
        };
        let (first_commit, last_commit) = (time()?, time()?);
        let checksum_before = DatabaseChecksum::from(u64::from_le_bytes(fields.next()));
        let pages_after = u32::from_le_bytes(fields.next());
        if !matches!(key, Key::Delta(_, _, of_key) if *of_key == span) {
            return Err(wrong("it stands under another one's key"));
        }
        Ok(Header {
            database_id,
            epoch,
            put_id,
            span,
            first_commit,
            last_commit,
            page_size,
            pages_after,
            checksum_before,
        })
    }
}

impl Trailer {
    /// Its size, stored; the digest comes after it.
    pub(super) const BYTES: usize = 12;

    pub(super) fn encode(&self) -> Vec<u8> {
        [&self.pages.to_le_bytes()[..], &self.checksum_after.bits().to_le_bytes()].concat()
    }

    pub(super) fn decode(bytes: &[u8; Trailer::BYTES]) -> Trailer {
        let mut fields = Fields(bytes);
        Trailer {
            pages: u32::from_le_bytes(fields.next()),
            checksum_after: DatabaseChecksum::from(u64::from_le_bytes(fields.next())),
        }
    }
}

/// Which page may come next: both who writes and who reads holds to it.
pub(super) struct Order {
    page_size: PageSize,
    pages_after: u32,
    last: u32,
}

impl Order {
    pub(super) fn of(header: &Header) -> Order {
        Order { page_size: header.page_size, pages_after: header.pages_after, last: 0 }
    }

    /// Lets a page in that may come after those before, else says why it may not.
    pub(super) fn admit(&mut self, number: u32) -> Result<(), String> {
        let Order { page_size, pages_after, last } = *self;
        if number == 0 {
            return Err("there is no page 0".to_owned());
        }
        if number == last {
            return Err(format!("page {number} is in it twice"));
        }
        if number < last {
            return Err(format!("page {number} comes after page {last}"));
        }
        if number > pages_after {
            return Err(format!("page {number} is beyond the {pages_after} pages of the database"));
        }
        if number == page_size.lock_byte_page() {
            return Err(format!("page {number} is the lock-byte page"));
        }
        self.last = number;
        Ok(())
    }
}

/// Plain bytes of a block at most: what a reader holds of one delta in memory, and, of a thousand pages of
/// one table, enough for zstd to find what they have in common.
const BLOCK_BYTES: usize = 256 << 10;

/// Bytes of the number that stands before each page.
pub(super) const NUMBER_BYTES: usize = 4;

/// How many pages a block holds at most.
pub(super) fn block_pages(page_size: PageSize) -> usize {
    BLOCK_BYTES / (NUMBER_BYTES + page_size.bytes())
}
