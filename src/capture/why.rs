//! Why the log alone does not tell what was committed.

use std::fmt;

use crate::source::wal::Loss;

/// Why pages have to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The log is not proven to continue.
    Log(Loss),
    /// The database got pages that were not written.
    Unwritten,
    /// More changed than is kept in memory.
    TooMuch,
    /// There was no log before.
    NewLog,
    /// There is no log, as before, and the database was written.
    Traceless,
    /// The log could not be read where it had to be.
    Unread,
}

impl Why {
    /// The stable name used in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Why::Log(loss) => loss.name(),
            Why::Unwritten => "unwritten",
            Why::TooMuch => "too-much",
            Why::NewLog => "new-log",
            Why::Traceless => "traceless",
            Why::Unread => "unread",
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Log(loss) => loss.fmt(f),
            Why::Unwritten => f.write_str("the database got pages that were never written"),
            Why::TooMuch => f.write_str("more changed than is kept in memory"),
            Why::NewLog => f.write_str("there is a log where none was"),
            Why::Traceless => f.write_str("the database was written, and the log is gone again"),
            Why::Unread => f.write_str("the log could not be read"),
        }
    }
}
