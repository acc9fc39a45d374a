//! Where backups are kept: a small trait, its kinds, and decorators around it.
//!
//! Storage is the only truth. Data objects are created once and never overwritten; the small
//! records that move (`head.json`, proofs) move only by compare-and-swap.

mod budget;
mod directory;
mod examine;
mod faulty;
mod memory;
mod metered;
#[cfg(debug_assertions)]
mod mortal;
mod operation;
mod probe;
mod s3;

use std::fmt;
use std::ops::Range;

use async_trait::async_trait;
use bytes::Bytes;
use futures::stream::{self, BoxStream, StreamExt};
use jiff::Timestamp;

pub use budget::{Allowance, Budgeted, regardless_of_budget};
pub use directory::Directory;
pub(crate) use directory::{LOCK_FILE, TEMPORARY_PREFIX};
pub use examine::{Examine, Greeting};
pub use faulty::{Fault, Faulty, How};
pub use memory::Memory;
pub use metered::Metered;
#[cfg(debug_assertions)]
pub use mortal::Mortal;
pub use operation::Operation;
pub use probe::{conditions_honoured, ensure_probe, new_probe_key, probe};
pub(crate) use s3::check_endpoint;
pub use s3::{Checksums, Patience, Renewal, S3, S3Settings, Unready};

use crate::error::Result;
use crate::snapshot::Key;

/// The pieces of an object that is written while it is still being made.
///
/// An `Err` item means that the maker failed: the storage undoes what it began and returns that
/// error. Every piece but the last has the size the maker chose for the whole object (see
/// [`part_bytes`]); none is empty.
pub type Parts = BoxStream<'static, Result<Bytes>>;

/// A whole small object as [`Parts`].
pub fn whole(bytes: impl Into<Bytes>) -> Parts {
    let bytes = bytes.into();
    stream::iter([Ok(bytes)]).boxed()
}

/// Which state of an object a compare-and-swap expects, as the storage names states.
///
/// On S3 the ETag; elsewhere a digest of the content.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Version(pub String);

/// A small object and the state it was read in.
#[derive(Debug, Clone)]
pub struct Object {
    /// The content.
    pub bytes: Bytes,
    /// The state to expect in a later [`Storage::replace`].
    pub version: Version,
}

/// One object of a listing.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The path below the configured prefix; not necessarily a key of ours.
    pub path: String,
    /// Size in bytes.
    pub bytes: u64,
    /// When it was written, by the storage's clock.
    pub modified_at: Timestamp,
}

/// What the store was found to honour. Learned by trying, never by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Guarantees {
    /// A create-only write of a key that exists is refused.
    pub create_only: bool,
    /// A replacement that expects another state is refused.
    pub compare_and_swap: bool,
}

impl Guarantees {
    /// Everything is honoured.
    pub const FULL: Guarantees = Guarantees { create_only: true, compare_and_swap: true };
}

/// A place that keeps objects under keys.
///
/// Error kinds every implementation uses alike: `NotFound` (no such object), `Conflict` (a
/// condition did not hold), `Denied` (not allowed; also: no such bucket), `Unavailable` (no answer
/// in the allowed time and tries), `Limit` (larger than the caller's bound), `Corrupt` (it ends
/// too early, or is no object). An implementation retries by itself what is worth retrying; nobody above it does.
#[async_trait]
pub trait Storage: fmt::Debug + Send + Sync {
    /// What it is and where, for people: no secrets.
    fn location(&self) -> String;

    /// Writes an object that must not exist yet.
    ///
    /// All or nothing: on any error, also one inside `parts`, no object is visible. A lost answer
    /// to our own successful write is told from a lost race and is a success. `Conflict` if the
    /// object exists.
    async fn create(&self, key: &Key, parts: Parts) -> Result<()>;

    /// Writes an object if it still is in the `expected` state; `None` expects no object.
    ///
    /// `Conflict` if it is not. A lost answer to our own write is a success.
    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version>;

    /// Reads a small object whole. `NotFound`; `Limit` if it is larger than `bytes_max`.
    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object>;

    /// Reads exactly `range` of an object. `NotFound`; `Corrupt` if the object ends before it.
    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes>;

    /// Size and time of an object, or `None` if there is none.
    async fn head(&self, key: &Key) -> Result<Option<Entry>>;

    /// Every object whose path begins with `prefix`, in order of path.
    async fn list(&self, prefix: &str) -> Result<Vec<Entry>>;

    /// Removes an object; that it was not there is no error.
    async fn delete(&self, key: &Key) -> Result<()>;

    /// Removes what earlier processes of ours began to write before `older_than` and never
    /// finished (temporary files, multipart uploads). Returns how many there were.
    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64>;

    /// What the store was found to honour.
    fn guarantees(&self) -> Guarantees;
}

const PART_BYTES_MIN: u64 = 8 << 20;

/// S3 allows 10,000 parts; the rest is margin for a database whose data does not compress.
const PARTS_MAX: u64 = 9_000;

/// The size of every part but the last of an object of at most `object_bytes`, in bytes.
pub fn part_bytes(object_bytes: u64) -> usize {
    let mebibyte = 1 << 20;
    let bytes = object_bytes.div_ceil(PARTS_MAX).next_multiple_of(mebibyte).max(PART_BYTES_MIN);
    usize::try_from(bytes).expect("9,000 parts of an address space")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_are_8_mib_until_9000_of_them_do_not_suffice() {
        assert_eq!(part_bytes(0), 8 << 20);
        assert_eq!(part_bytes(9_000 * (8 << 20)), 8 << 20);
        assert_eq!(part_bytes(9_000 * (8 << 20) + 1), 9 << 20);
        assert!(part_bytes(5 << 40) as u64 * 10_000 >= 5 << 40);
    }
}
