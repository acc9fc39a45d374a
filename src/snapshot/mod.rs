//! What a snapshot is: its name, its manifest, its bytes. No I/O here.

mod digest;
mod frame;
mod id;
mod key;
mod manifest;
mod records;
mod seek_table;
mod span;

pub use digest::{Digest, Hasher};
pub use frame::{Compressor, Decompressor, FRAME_BYTES_DEFAULT, FRAME_BYTES_MAX, LEVELS};
pub use id::SnapshotId;
pub use key::{DatabaseName, Key, Kind};
pub use manifest::{Baseline, Content, FORMAT, Flag, Manifest, SqliteFacts, TOOL};
pub use records::{Claim, DatabaseId, Head, Identity, Proof, Record, is_other_format, other_format};
pub use seek_table::SeekTable;
pub use span::{Level, Span};
