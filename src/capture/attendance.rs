//! Whether we are connected to a database that is followed, and where reading it goes on.

use crate::error::Result;
use crate::source::wal::Mark;
use crate::source::{Fingerprint, Presence, Version};

/// Whether we are connected to the database.
pub enum Attendance {
    /// So the log stays when the application closes the database.
    Present(Presence),
    /// No, and this is what was there when we left.
    Resting(Fingerprint),
}

/// Between two transactions.
#[derive(Debug, Clone)]
pub enum Place {
    /// Behind these in the log.
    Log(Mark),
    /// Where there is no log, and was none since. One may have come and gone: then the version is another, or unknown.
    NoLog(Option<Version>),
}

impl Attendance {
    /// The version that a transaction sees which begins now; unknown to who is not there.
    pub fn version(&self) -> Result<Option<Version>> {
        match self {
            Attendance::Present(presence) => presence.version().map(Some),
            Attendance::Resting(_) => Ok(None),
        }
    }
}

impl Place {
    /// The same, one transaction back: see [`Mark::settled`].
    pub fn settled(self) -> Place {
        match self {
            Place::Log(mark) => Place::Log(mark.settled()),
            Place::NoLog(version) => Place::NoLog(version),
        }
    }
}
