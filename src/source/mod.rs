//! The live database. Only this module speaks to SQLite; it reads, and writes only at a restore:
//! [`overwrite()`] replaces the content, [`Exclusive`] folds the log in before the file is replaced.
//!
//! Apart from that: no table of ours, no checkpoint, no change of journal mode, nothing left beside the database,
//! and no lock held longer than a stated bound. A raw descriptor on the database is never opened while
//! a connection of ours is on it: closing one would drop the locks SQLite holds on it in this process.

mod assertion;
mod check;
mod connection;
mod exclusive;
mod frame;
mod locate;
mod overwrite;
mod pages;
mod pins;
mod presence;
mod reading;
mod stream_vfs;
pub mod wal;

use std::time::{Duration, Instant};

use tokio_util::sync::CancellationToken;

pub use assertion::require_assertion;
pub use check::{Depth, Findings, inspect, inspect_live, query_value, require_database};
pub use connection::assert_library;
pub use exclusive::{Exclusive, companions};
pub use locate::{Fingerprint, Source, last_written};
pub use overwrite::overwrite;
pub use pages::{ByPage, PageSink, TakePages};
pub use pins::Pins;
pub use presence::{Presence, Version};
pub use reading::{Copied, Facts, Reading};

use crate::error::{Error, ErrorKind, Result};

/// The bounds of one piece of work on a database.
#[derive(Debug, Clone)]
pub struct Limits {
    /// How long to wait for somebody else's lock.
    pub busy_timeout: Duration,
    /// When the work must be over.
    pub deadline: Instant,
    /// By how many bytes the write-ahead log may grow while it is pinned.
    pub wal_growth_max: u64,
    /// For how long writers may be kept waiting; only matters without a write-ahead log.
    pub writer_blocked_max: Duration,
    /// Set when the work is no longer wanted.
    pub cancel: CancellationToken,
}

impl Limits {
    /// The error of work that did not end in time.
    pub fn deadline_passed() -> Error {
        Error::new(ErrorKind::Limit, "it took longer than allowed (backup.deadline)")
    }

    /// The error of a write-ahead log that grew too far while it was pinned.
    pub fn log_outgrown(path: &std::path::Path, grown: u64, growth_max: u64) -> Error {
        let message = format!(
            "the write-ahead log grew by {grown} bytes while it was pinned, more than {growth_max} \
             (backup.wal_growth_max): path=`{}`",
            path.display()
        );
        Error::new(ErrorKind::Limit, message)
    }

    /// An error if the work has to stop now.
    fn check(&self) -> Result<()> {
        if self.cancel.is_cancelled() {
            return Err(Error::cancelled());
        }
        if Instant::now() >= self.deadline {
            return Err(Limits::deadline_passed());
        }
        Ok(())
    }
}

/// The pause before a locked database is tried again.
#[expect(clippy::disallowed_methods, reason = "only called on threads that are for blocking work")]
fn wait_for_lock() {
    std::thread::sleep(Duration::from_millis(10));
}

/// How much of a piece of work is done.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize)]
pub struct Progress {
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Is told how far a piece of work has come; called often, from any thread.
pub type OnProgress = std::sync::Arc<dyn Fn(Progress) + Send + Sync>;
