//! One error type for the whole program: what failed, in words, and whose turn it is to act.
//!
//! The kind is for control flow (retry? which exit code? which HTTP status?); the message and
//! the source chain are for the person who reads them. Messages are lowercase fragments that
//! read well after "failed to …", name the thing with ``key=`value` `` and say what to do.

use std::fmt;

/// The result of everything in this crate.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Who has to act on an error, and with which exit code a command ends because of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ErrorKind {
    /// A defect in Lifeboat, or a state it did not foresee. Report it.
    Internal,
    /// A flag, key or value is wrong. Correct it and start again.
    Config,
    /// The source is not what it should be: absent, not a file, not SQLite, encrypted, malformed.
    Source,
    /// Somebody holds a lock, or wrote without pause, for longer than the stated bound.
    Busy,
    /// Storage (or the network to it) did not answer in time, or answered with a server error.
    Unavailable,
    /// Storage refused: credentials, permissions, bucket or region.
    Denied,
    /// There is no such snapshot, key or moment.
    NotFound,
    /// A stored object is damaged, foreign, or of a format this program does not know.
    Corrupt,
    /// A conditional write was lost: the object exists already, or changed meanwhile.
    Conflict,
    /// A newer writer owns this database's backups; this one must stop publishing.
    Fenced,
    /// The restore target cannot be replaced: in use, not a regular file, no space.
    Target,
    /// A stated bound was reached: deadline, log growth, size, number of requests.
    Limit,
    /// A check ran and its answer is "no": unhealthy, not ready, not proven.
    Unhealthy,
    /// Told to stop.
    Cancelled,
}

impl ErrorKind {
    /// Every kind, in the order of the table in `docs/EXIT-CODES.md`.
    pub const ALL: [ErrorKind; 14] = [
        ErrorKind::Internal,
        ErrorKind::Config,
        ErrorKind::Source,
        ErrorKind::Busy,
        ErrorKind::Unavailable,
        ErrorKind::Denied,
        ErrorKind::NotFound,
        ErrorKind::Corrupt,
        ErrorKind::Conflict,
        ErrorKind::Fenced,
        ErrorKind::Target,
        ErrorKind::Limit,
        ErrorKind::Unhealthy,
        ErrorKind::Cancelled,
    ];

    /// The process exit code. Stable: scripts depend on it, a number is never given a new meaning.
    pub const fn exit_code(self) -> u8 {
        match self {
            ErrorKind::Internal => 1,
            ErrorKind::Config => 2,
            ErrorKind::Source => 3,
            ErrorKind::Busy => 4,
            ErrorKind::Unavailable => 5,
            ErrorKind::Denied => 6,
            ErrorKind::NotFound => 7,
            ErrorKind::Corrupt => 8,
            ErrorKind::Conflict => 9,
            ErrorKind::Fenced => 10,
            ErrorKind::Target => 11,
            ErrorKind::Limit => 12,
            ErrorKind::Unhealthy => 13,
            ErrorKind::Cancelled => 130,
        }
    }

    /// The stable name used in JSON, metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            ErrorKind::Internal => "internal",
            ErrorKind::Config => "config",
            ErrorKind::Source => "source",
            ErrorKind::Busy => "busy",
            ErrorKind::Unavailable => "unavailable",
            ErrorKind::Denied => "denied",
            ErrorKind::NotFound => "not-found",
            ErrorKind::Corrupt => "corrupt",
            ErrorKind::Conflict => "conflict",
            ErrorKind::Fenced => "fenced",
            ErrorKind::Target => "target",
            ErrorKind::Limit => "limit",
            ErrorKind::Unhealthy => "unhealthy",
            ErrorKind::Cancelled => "cancelled",
        }
    }

    /// Whether the same call may succeed later without anybody changing anything.
    pub const fn is_transient(self) -> bool {
        match self {
            ErrorKind::Busy | ErrorKind::Unavailable | ErrorKind::Limit => true,
            ErrorKind::Internal
            | ErrorKind::Config
            | ErrorKind::Source
            | ErrorKind::Denied
            | ErrorKind::NotFound
            | ErrorKind::Corrupt
            | ErrorKind::Conflict
            | ErrorKind::Fenced
            | ErrorKind::Target
            | ErrorKind::Unhealthy
            | ErrorKind::Cancelled => false,
        }
    }
}

impl fmt::Display for ErrorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What failed, of which kind, and what caused it.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct Error {
    kind: ErrorKind,
    message: String,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    /// An error of `kind`; `message` is a lowercase fragment.
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error { kind, message: message.into(), source: None }
    }

    /// The error of work that was told to stop.
    pub fn cancelled() -> Self {
        Error::new(ErrorKind::Cancelled, "told to stop")
    }

    /// The same error with its cause attached; the message does not repeat the cause.
    pub fn because(mut self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(cause.into());
        self
    }

    /// The same error, told once more: its causes are in its message.
    pub fn again(&self) -> Error {
        Error::new(self.kind, self.chain())
    }

    /// Who has to act.
    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The message and every cause below it, joined by `: `, on one line.
    pub fn chain(&self) -> String {
        let mut text = self.message.clone();
        let mut cause = std::error::Error::source(self);
        while let Some(error) = cause {
            text.push_str(": ");
            text.push_str(&error.to_string());
            cause = error.source();
        }
        text.replace('\n', " ")
    }
}

/// Adds what was being attempted to an error of any type.
pub trait Context<T> {
    /// Wraps the error as the cause of a new one of `kind`.
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T>;
}

impl<T, E> Context<T> for std::result::Result<T, E>
where
    E: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    fn context(self, kind: ErrorKind, message: impl FnOnce() -> String) -> Result<T> {
        self.map_err(|cause| Error::new(kind, message()).because(cause))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn exit_codes_and_names_are_distinct_and_never_zero() {
        let codes: HashSet<u8> = ErrorKind::ALL.iter().map(|kind| kind.exit_code()).collect();
        let names: HashSet<&str> = ErrorKind::ALL.iter().map(|kind| kind.name()).collect();
        assert_eq!(codes.len(), ErrorKind::ALL.len());
        assert_eq!(names.len(), ErrorKind::ALL.len());
        assert!(!codes.contains(&0));
    }

    #[test]
    fn the_chain_is_one_line_from_the_outside_in() {
        let error = Error::new(ErrorKind::Unavailable, "upload key=`a`")
            .because(std::io::Error::other("connection\nreset"));
        assert_eq!(error.chain(), "upload key=`a`: connection reset");
    }
}
