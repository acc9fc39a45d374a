//! The manifest: everything known about one snapshot, and the marker that makes it exist.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::digest::Digest;
use super::frame::FRAME_BYTES_MAX;
use super::id::SnapshotId;
use super::key::{DatabaseName, Key};
use super::records::{DatabaseId, Record};
use super::seek_table::SeekTable;
use crate::error::{Error, ErrorKind, Result};

/// The version of everything stored. A reader refuses any other.
pub const FORMAT: u32 = 1;

/// Name and version of this program, as records carry it.
pub const TOOL: &str = concat!("lifeboat ", env!("CARGO_PKG_VERSION"));

/// `manifests/ID.json`: a snapshot exists if and only if this object does.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Manifest {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// The snapshot's name.
    pub id: SnapshotId,
    /// The name of the database.
    pub database: DatabaseName,
    /// The identity of its history.
    pub database_id: DatabaseId,
    /// The newest snapshot when this one was taken.
    pub parent: Option<SnapshotId>,
    /// The epoch of the writer.
    pub epoch: u64,
    /// When the read transaction began: the moment this snapshot shows.
    pub taken_at: Timestamp,
    /// Wall time from there to the last byte stored, in milliseconds.
    pub took_ms: u64,
    /// Time during which our locks kept writers waiting, in milliseconds: 0 in WAL mode.
    pub writer_blocked_ms: u64,
    /// Bytes per database page: a power of two from 512 to 65536.
    pub page_size: u32,
    /// Number of database pages.
    pub page_count: u32,
    /// Plain bytes per frame; the last frame may be shorter.
    pub frame_bytes: u32,
    /// zstd level the frames were compressed with.
    pub zstd_level: i32,
    /// The database file: its size is `page_size` × `page_count`.
    pub plain: Content,
    /// The stored object: all frames and the seek table.
    pub stored: Content,
    /// What SQLite says about the database.
    pub sqlite: SqliteFacts,
    /// What looked wrong with the source; empty is well.
    pub flags: Vec<Flag>,
    /// The newest snapshot without flags when this one was taken: what `shrunken` compares with.
    pub baseline: Option<Baseline>,
    /// Where it stands in the line of states that deltas lead along; absent if nobody captured then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub anchor: Option<Anchor>,
    /// The program that wrote it.
    pub tool: String,
}

/// Size and SHA-256 of a sequence of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Content {
    /// Number of bytes.
    pub bytes: u64,
    /// Their SHA-256.
    pub sha256: Digest,
}

/// A snapshot that looked well, and how large it was.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Baseline {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The size of its database file.
    pub plain_bytes: u64,
}

/// Where a snapshot stands in the line of states that deltas lead along.
///
/// It shows the state at `position`, or a later one before the next: so every delta that leads from there, or
/// from before, to a later position gives exactly that, put upon it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Anchor {
    /// The position.
    pub position: u64,
    /// The XOR of the hashes of its pages.
    #[serde(with = "hex")]
    pub checksum: u64,
}

/// 64 bits as 16 hex digits: many readers of JSON round numbers of that size.
mod hex {
    use serde::de::{Deserialize, Deserializer, Error};
    use serde::ser::Serializer;

    pub fn serialize<S: Serializer>(bits: &u64, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(&format_args!("{bits:016x}"))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<u64, D::Error> {
        let text = String::deserialize(deserializer)?;
        let bits = u64::from_str_radix(&text, 16).map_err(D::Error::custom)?;
        match text == format!("{bits:016x}") {
            true => Ok(bits),
            false => Err(D::Error::custom("a checksum is 16 hex digits")),
        }
    }
}

/// Facts about the database in the snapshot, for people and for checks after a restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SqliteFacts {
    /// `PRAGMA user_version`, the application's schema number.
    pub user_version: i32,
    /// `PRAGMA application_id`.
    pub application_id: i32,
    /// `PRAGMA journal_mode` as our connection sees it: `wal`, or `delete` for every database without
    /// a log (which of the other modes the application uses is not in the file).
    pub journal_mode: String,
    /// `PRAGMA encoding`.
    pub encoding: String,
    /// Number of unused pages.
    pub freelist_count: u32,
    /// SHA-256 over the rows of `sqlite_schema`, in order of type and name.
    pub schema_sha256: Digest,
    /// The SQLite library version that last wrote the source, from its header; 0 if none did.
    pub written_by: u32,
}

/// Something about a source that makes a snapshot suspicious. Such a snapshot is kept and shown,
/// and as long as it is the newest nothing older is pruned. A branch is never the newest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Flag {
    /// The source file has no bytes at all, or no table.
    Empty,
    /// Less than half the size of the newest snapshot without flags, and nobody said that it is meant.
    Shrunken,
    /// `PRAGMA quick_check` found damage in the source.
    Malformed,
    /// The source did not descend from the newest snapshot: this one never was the newest, and is
    /// restored only by its id.
    Branch,
}

impl Baseline {
    /// Whether a database of `bytes` has shrunk, next to it, to less than half.
    pub fn is_more_than_twice(&self, bytes: u64) -> bool {
        bytes < self.plain_bytes / 2
    }
}

impl Flag {
    /// The name used in manifests and messages.
    pub const fn name(self) -> &'static str {
        match self {
            Flag::Empty => "empty",
            Flag::Shrunken => "shrunken",
            Flag::Malformed => "malformed",
            Flag::Branch => "branch",
        }
    }

    /// What it says, in words.
    pub const fn told(self) -> &'static str {
        match self {
            Flag::Empty => "the source was empty",
            Flag::Shrunken => "the source was shrunken",
            Flag::Malformed => "the source was malformed",
            Flag::Branch => "a branch: it never was the newest",
        }
    }
}

impl Record for Manifest {}

impl Manifest {
    /// Reads a manifest found under `key` and checks that it speaks of that key and can be true.
    pub fn read(bytes: &[u8], key: &Key) -> Result<Manifest> {
        let manifest = Manifest::decode(bytes, key)?;
        match manifest.contradiction(key) {
            Some(what) => Err(Error::new(
                ErrorKind::Corrupt,
                format!("the manifest contradicts itself: {what}: key=`{key}`"),
            )),
            None => Ok(manifest),
        }
    }

    /// Whether it stands beside the line that leads to the newest snapshot.
    pub fn is_branch(&self) -> bool {
        self.flags.contains(&Flag::Branch)
    }

    /// Number of frames of the stored object.
    pub fn frame_count(&self) -> u64 {
        self.plain.bytes.div_ceil(u64::from(self.frame_bytes))
    }

    /// Size of the seek table at the end of the stored object, in bytes.
    pub fn seek_table_bytes(&self) -> u64 {
        SeekTable::encoded_bytes(self.frame_count())
    }

    /// What the snapshot after this one is compared with: this one if it looked well, else what it was
    /// compared with itself, so that a loss is not forgotten with the second snapshot of it.
    pub fn baseline_for_next(&self) -> Option<Baseline> {
        match self.flags.is_empty() {
            true => Some(Baseline { snapshot: self.id.clone(), plain_bytes: self.plain.bytes }),
            false => self.baseline.clone(),
        }
    }

    /// Where the stored object is.
    pub fn data_key(&self) -> Key {
        Key::Snapshot(self.database.clone(), self.id.clone())
    }

    /// Where this manifest is.
    pub fn key(&self) -> Key {
        Key::Manifest(self.database.clone(), self.id.clone())
    }

    /// The first thing that cannot be so. Everything a reader computes with is bounded here.
    fn contradiction(&self, key: &Key) -> Option<&'static str> {
        // First, for what follows divides by it.
        if !(512..=FRAME_BYTES_MAX).contains(&self.frame_bytes) {
            return Some("frame_bytes is out of bounds");
        }
        let page_size_valid = self.page_size == 0
            || (self.page_size.is_power_of_two() && (512..=65536).contains(&self.page_size));
        let checks = [
            (*key == self.key(), "it stands under another database's or snapshot's key"),
            (page_size_valid, "page_size is not one SQLite has"),
            (
                u64::from(self.page_size) * u64::from(self.page_count) == self.plain.bytes,
                "plain.bytes is not page_size × page_count",
            ),
            (self.stored.bytes >= self.seek_table_bytes(), "stored.bytes has no room for the seek table"),
        ];
        checks.into_iter().find_map(|(holds, what)| (!holds).then_some(what))
    }
}
