//! The write-ahead log, read forward as bytes: no connection, no lock, nothing written.
//!
//! SQLite takes no lock on the `-wal` file itself (only on the database and its `-shm`), so a plain
//! descriptor on it may be opened and closed at will. In exchange anything may happen to the log while it
//! is read. Every frame carries the salts of its run and a checksum that chains it to all before it, so
//! what is handed on is what some run of the log held; and where it is not proven that nothing lies between
//! two reads, the reader says [`Loss`] instead. Then pages are compared, which needs no log.

mod chain;
mod changes;
#[cfg(test)]
pub(crate) mod fixture;
pub mod format;
mod mark;
mod reader;
#[cfg(test)]
mod tests;

pub use changes::Changes;
pub use mark::Mark;
pub use reader::{Bounds, End, Log, Loss, Outcome};
