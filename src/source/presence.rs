//! Being connected to a database, so that its log stays.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use super::connection::{Live, explain};
use super::locate::Source;
use crate::error::Result;

/// An idle connection without a transaction.
///
/// Whoever closes a database last moves the log into it and removes the log. As long as this is open, that is not
/// the application; closing this one moves and removes nothing. It keeps nobody from writing, or from checkpoints.
pub struct Presence {
    live: Live,
    path: PathBuf,
}

/// Which commits a database has seen: another one after every commit, whether or not a log tells of it.
///
/// Only comparable with others of the same [`Presence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    inode: Option<u64>,
    data: i64,
}

impl Presence {
    /// Connects to a database with a log.
    pub fn begin(source: &Source, busy_timeout: Duration) -> Result<Presence> {
        let live = Live::open(source.path(), busy_timeout)?;
        // Only whoever has read once is seen by others.
        let read = live.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
        read.map_err(|error| explain(source.path(), "read", error))?;
        Ok(Presence { live, path: source.path().to_owned() })
    }

    /// The version that a transaction sees which begins now.
    pub fn version(&self) -> Result<Version> {
        let data = self.live.connection.query_row("PRAGMA data_version", [], |row| row.get(0));
        let data = data.map_err(|error| explain(&self.path, "read", error))?;
        let inode = fs::metadata(&self.path).ok().map(|metadata| metadata.ino());
        Ok(Version { inode, data })
    }
}
