//! The layout of storage: every key this program reads or writes, formatted and parsed here only.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use super::id::SnapshotId;
use super::span::{Level, Span};
use crate::error::{Error, ErrorKind, Result};

/// The name of a database in storage: 1 to 64 characters of `[a-z0-9._-]`, not starting with a dot.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct DatabaseName(String);

impl DatabaseName {
    /// The name as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for DatabaseName {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let allowed = |b: u8| matches!(b, b'a'..=b'z' | b'0'..=b'9' | b'.' | b'_' | b'-');
        if text.is_empty() || text.len() > 64 || text.starts_with('.') || !text.bytes().all(allowed) {
            return Err(Error::new(
                ErrorKind::Config,
                format!(
                    "a database name is 1 to 64 characters of a-z 0-9 . _ - and does not start with a dot: name=`{}`",
                    text.escape_debug()
                ),
            ));
        }
        Ok(DatabaseName(text.to_owned()))
    }
}

impl fmt::Display for DatabaseName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<DatabaseName> for String {
    fn from(name: DatabaseName) -> String {
        name.0
    }
}

impl TryFrom<String> for DatabaseName {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

/// One object below the configured prefix.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Key {
    /// `DATABASE/identity.json`: which database this is; written once.
    Identity(DatabaseName),
    /// `DATABASE/head.json`: epoch and newest snapshot; replaced by compare-and-swap.
    Head(DatabaseName),
    /// `DATABASE/epochs/N.json`: the claim of one daemon start; ten digits, so that they sort.
    Epoch(DatabaseName, u64),
    /// `DATABASE/snapshots/ID.db.zst`: the pages, one plain zstd stream.
    Snapshot(DatabaseName, SnapshotId),
    /// `DATABASE/manifests/ID.json`: the commit marker; a snapshot exists if and only if this does.
    Manifest(DatabaseName, SnapshotId),
    /// `DATABASE/proofs/ID.json`: when and how the snapshot was last proven; replaced by a newer proof.
    Proof(DatabaseName, SnapshotId),
    /// `DATABASE/deltas/LEVEL/FROM-TO`: the pages that lead from one position to another; written once.
    Delta(DatabaseName, Level, Span),
    /// `.probe/NAME`: written and removed again to learn what the store can do.
    Probe(String),
}

/// The families of keys that are listed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// [`Key::Epoch`]
    Epochs,
    /// [`Key::Snapshot`]
    Snapshots,
    /// [`Key::Manifest`]
    Manifests,
    /// [`Key::Proof`]
    Proofs,
    /// [`Key::Delta`], of every level.
    Deltas,
}

impl Kind {
    const fn folder(self) -> &'static str {
        match self {
            Kind::Epochs => "epochs",
            Kind::Snapshots => "snapshots",
            Kind::Manifests => "manifests",
            Kind::Proofs => "proofs",
            Kind::Deltas => "deltas",
        }
    }

    /// The prefix under which all keys of this kind stand, with its closing slash.
    pub fn prefix(self, database: &DatabaseName) -> String {
        format!("{database}/{}/", self.folder())
    }
}

const DATA_SUFFIX: &str = ".db.zst";
const RECORD_SUFFIX: &str = ".json";
const PROBE_FOLDER: &str = ".probe";

impl Key {
    /// The path below the configured prefix, with `/` between its parts.
    pub fn path(&self) -> String {
        match self {
            Key::Identity(database) => format!("{database}/identity.json"),
            Key::Head(database) => format!("{database}/head.json"),
            Key::Epoch(database, epoch) => {
                format!("{}{epoch:010}{RECORD_SUFFIX}", Kind::Epochs.prefix(database))
            }
            Key::Snapshot(database, id) => format!("{}{id}{DATA_SUFFIX}", Kind::Snapshots.prefix(database)),
            Key::Manifest(database, id) => format!("{}{id}{RECORD_SUFFIX}", Kind::Manifests.prefix(database)),
            Key::Proof(database, id) => format!("{}{id}{RECORD_SUFFIX}", Kind::Proofs.prefix(database)),
            Key::Delta(database, level, span) => format!("{}{level}/{span}", Kind::Deltas.prefix(database)),
            Key::Probe(name) => format!("{PROBE_FOLDER}/{name}"),
        }
    }

    /// Reads a path written by [`Key::path`]. `None` means: not an object of ours, leave it alone.
    pub fn parse(path: &str) -> Option<Key> {
        let parts: Vec<&str> = path.split('/').collect();
        let key = match parts[..] {
            [PROBE_FOLDER, name] => Key::Probe(name.to_owned()),
            [database, "identity.json"] => Key::Identity(database.parse().ok()?),
            [database, "head.json"] => Key::Head(database.parse().ok()?),
            [database, folder, file] => {
                let database = database.parse().ok()?;
                let id = |suffix| file.strip_suffix(suffix)?.parse::<SnapshotId>().ok();
                match folder {
                    "epochs" => Key::Epoch(database, file.strip_suffix(RECORD_SUFFIX)?.parse().ok()?),
                    "snapshots" => Key::Snapshot(database, id(DATA_SUFFIX)?),
                    "manifests" => Key::Manifest(database, id(RECORD_SUFFIX)?),
                    "proofs" => Key::Proof(database, id(RECORD_SUFFIX)?),
                    _ => return None,
                }
            }
            [database, "deltas", level, span] => {
                Key::Delta(database.parse().ok()?, Level::new(level.parse().ok()?)?, Span::parse(span)?)
            }
            _ => return None,
        };
        // One key, one spelling: `epochs/1.json` and `epochs/+1.json` are not ours.
        (key.path() == path).then_some(key)
    }

    /// The snapshot this key belongs to, if it belongs to one.
    pub fn snapshot_id(&self) -> Option<&SnapshotId> {
        match self {
            Key::Snapshot(_, id) | Key::Manifest(_, id) | Key::Proof(_, id) => Some(id),
            Key::Identity(_) | Key::Head(_) | Key::Epoch(..) | Key::Delta(..) | Key::Probe(_) => None,
        }
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.path())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use jiff::Timestamp;
    use proptest::prelude::*;

    fn any_key() -> impl Strategy<Value = Key> {
        let name =
            "[a-z0-9_-][a-z0-9._-]{0,63}".prop_map(|name| name.parse::<DatabaseName>().expect("valid"));
        let id = (0i64..4_000_000_000, any::<u32>()).prop_map(|(seconds, random)| {
            SnapshotId::next(Timestamp::from_second(seconds).expect("in range"), None, random)
        });
        let span = (any::<u64>(), any::<u64>())
            .prop_filter_map("empty", |(one, other)| Span::new(one.min(other), one.max(other)).ok());
        let level = (0..=Level::MAX.number()).prop_map(|number| Level::new(number).expect("there is one"));
        (name, id, any::<u64>(), (level, span), 0..8).prop_map(|(name, id, number, (level, span), kind)| {
            match kind {
                0 => Key::Identity(name),
                1 => Key::Head(name),
                2 => Key::Epoch(name, number),
                3 => Key::Snapshot(name, id),
                4 => Key::Manifest(name, id),
                5 => Key::Proof(name, id),
                6 => Key::Delta(name, level, span),
                _ => Key::Probe(format!("{number:x}")),
            }
        })
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_path(key in any_key()) {
            prop_assert_eq!(Key::parse(&key.path()), Some(key));
        }

        #[test]
        fn whatever_parses_has_that_path(path in "[a-z0-9./+-]{0,40}") {
            if let Some(key) = Key::parse(&path) {
                prop_assert_eq!(key.path(), path);
            }
        }
    }

    #[test]
    fn deltas_sort_by_level_then_by_position() {
        let app: DatabaseName = "app".parse().expect("valid");
        let key = |level, from, to| {
            let level = Level::new(level).expect("there is one");
            Key::Delta(app.clone(), level, Span::new(from, to).expect("forward"))
        };
        assert_eq!(key(2, 0x2f, 0x30).path(), "app/deltas/2/000000000000002f-0000000000000030");
        let keys = [key(0, 9, 10), key(0, 10, 11), key(0, u64::MAX - 1, u64::MAX), key(1, 0, 30)];
        assert!(keys.is_sorted() && keys.map(|key| key.path()).is_sorted());
    }

    #[test]
    fn foreign_paths_are_not_ours() {
        for path in [
            "",
            "app",
            "app/epochs/1.json",
            "app/epochs/+000000001.json",
            "app/manifests/x.json",
            "../head.json",
            "app/snapshots/a/b",
            "app/deltas/0000000000000000-0000000000000001",
            "app/deltas/4/0000000000000000-0000000000000001",
            "app/deltas/00/0000000000000000-0000000000000001",
            "app/deltas/0/0-1",
            "app/deltas/0/000000000000000A-000000000000000B",
            "app/deltas/0/0000000000000001-0000000000000001",
            "app/deltas/0/0000000000000002-0000000000000001",
        ] {
            assert_eq!(Key::parse(path), None, "{path}");
        }
    }
}
