//! The small JSON records beside the snapshots: identity, head, epoch claim, proof.

use std::fmt;

use jiff::Timestamp;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::id::SnapshotId;
use super::key::{DatabaseName, Key};
use super::manifest::FORMAT;
use crate::error::{Context, Error, ErrorKind, Result};

/// The identity of a database's history in storage: 32 random hex digits, made once.
#[derive(Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct DatabaseId(String);

impl DatabaseId {
    /// An id from 128 random bits.
    pub fn new(random: u128) -> Self {
        DatabaseId(format!("{random:032x}"))
    }

    /// The 128 bits its digits spell; none if a record holds something else in its place.
    pub fn bits(&self) -> Option<u128> {
        let bits = u128::from_str_radix(&self.0, 16).ok()?;
        // One id, one spelling.
        (DatabaseId::new(bits) == *self).then_some(bits)
    }

    /// Stands for a history that is not known: of a snapshot that waits in the spool of a machine that
    /// never reached storage.
    pub fn unknown() -> Self {
        DatabaseId::new(0)
    }
}

impl fmt::Display for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for DatabaseId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// `identity.json`: written once, when the first snapshot of a database is about to be stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Identity {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// The name under which the database is stored.
    pub database: DatabaseName,
    /// The id every manifest of this history carries.
    pub database_id: DatabaseId,
    /// When it was written.
    pub created_at: Timestamp,
}

/// `head.json`: who may publish, and what was published last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Head {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// The epoch that may publish; a writer with a smaller one is fenced.
    pub epoch: u64,
    /// The newest snapshot; none before the first.
    pub snapshot: Option<SnapshotId>,
    /// When it was last moved.
    pub updated_at: Timestamp,
    /// Whether the holder of the epoch stopped in order: its last snapshot is the newest, and nobody
    /// writes the database any more.
    #[serde(default)]
    pub released: bool,
}

/// `epochs/N.json`: the claim to epoch N of one daemon start, or of the first `lifeboat backup`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Claim {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// The epoch claimed.
    pub epoch: u64,
    /// Who claimed it: machine id or host name, and process id; or `lifeboat backup`.
    pub holder: String,
    /// When.
    pub claimed_at: Timestamp,
    /// Whether it names a branch: such a writer moves no head and fences nobody.
    #[serde(default)]
    pub branch: bool,
}

/// `proofs/ID.json`: the last time this snapshot was read back, and whether it was shown to restore.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Proof {
    /// Format version, [`FORMAT`].
    pub format: u32,
    /// The snapshot proven.
    pub snapshot: SnapshotId,
    /// When the proof was complete, or had failed.
    pub proven_at: Timestamp,
    /// How long reading back, decoding and checking took, in milliseconds.
    pub took_ms: u64,
    /// What was done: always both hashes and a restore to scratch, and the named SQLite check; `none` if
    /// it failed.
    pub check: String,
    /// The user's SELECT that had to hold for the restored database; null if there was none.
    #[serde(default)]
    pub assertion: Option<String>,
    /// Why the snapshot is not proven, and does not restore or not to what it should; null if it is.
    #[serde(default)]
    pub failure: Option<String>,
    /// The program that did it.
    pub tool: String,
}

/// The cause of an error about a record that a newer program wrote, which sets it apart from damage:
/// what it says is not known, so nothing is built upon it, put in its place, or removed beside it.
#[derive(Debug, thiserror::Error)]
#[error("use that lifeboat, or a newer one")]
struct OtherFormat;

/// Whether an error says that a record is of a format this program does not know.
pub fn is_other_format(error: &Error) -> bool {
    std::error::Error::source(error).is_some_and(|cause| cause.is::<OtherFormat>())
}

/// The error of what a newer program stored: `key` holds `format`, which is not [`FORMAT`].
pub fn other_format(format: u32, key: &Key) -> Error {
    Error::new(
        ErrorKind::Corrupt,
        format!(
            "unknown format version {format} (this program knows {FORMAT}; a newer lifeboat wrote it): key=`{key}`"
        ),
    )
    .because(OtherFormat)
}

/// A record with a format version, stored as one JSON object.
pub trait Record: Serialize + DeserializeOwned {
    /// The largest record a reader accepts, in bytes.
    const BYTES_MAX: usize = 64 << 10;

    /// The JSON as it is stored: indented, with a closing line feed, for people who look at it.
    fn encode(&self) -> Vec<u8> {
        let mut json = serde_json::to_vec_pretty(self).expect("records have string keys and finite numbers");
        json.push(b'\n');
        json
    }

    /// Reads a record; `key` is named in the error.
    ///
    /// The version is looked at first, so that a newer format is told apart from damage.
    fn decode(bytes: &[u8], key: &Key) -> Result<Self> {
        #[derive(Deserialize)]
        struct Version {
            format: u32,
        }
        let damaged = || format!("read a record, it is damaged or not ours: key=`{key}`");
        let Version { format } = serde_json::from_slice(bytes).context(ErrorKind::Corrupt, damaged)?;
        if format != FORMAT {
            return Err(other_format(format, key));
        }
        serde_json::from_slice(bytes).context(ErrorKind::Corrupt, damaged)
    }
}

impl Record for Identity {}
impl Record for Head {}
impl Record for Claim {}
impl Record for Proof {}
