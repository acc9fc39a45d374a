//! Being connected to a database, so that its log stays.

use std::sync::Mutex;
use std::time::Duration;

use super::connection::{Live, explain};
use super::locate::Source;
use crate::error::Result;

/// An idle connection without a transaction.
///
/// Whoever closes a database last moves the log into it and removes the log. As long as this is open, that is not
/// the application; closing this one moves and removes nothing. It keeps nobody from writing, or from checkpoints.
pub struct Presence {
    /// Never used again.
    _live: Mutex<Live>,
}

impl Presence {
    /// Connects to a database with a log.
    pub fn begin(source: &Source, busy_timeout: Duration) -> Result<Presence> {
        let live = Live::open(source.path(), busy_timeout)?;
        // Only whoever has read once is seen by others.
        let read = live.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
        read.map_err(|error| explain(source.path(), "read", error))?;
        Ok(Presence { _live: Mutex::new(live) })
    }
}
