//! The verb "restore": a snapshot becomes the database again, all of it or nothing.
//!
//! Offline, when nobody has the database open: fetch beside it, prove, swap in one rename, keep the
//! old file. Online, when the application runs: through SQLite's backup API.

mod boot;
mod fetch;
mod offline;
mod online;
mod sample;
mod scratch;
mod swap;

use std::path::PathBuf;
use std::sync::Arc;

pub use boot::{Boot, BootAction, Present, WithoutSnapshot, decide, look};
pub use offline::{Plan, Restored, Target, onto, plan, recover, to_new_file};
pub use online::{Overwriting, prepare_online};
pub use sample::sample;
pub use scratch::Scratch;

use crate::clock::Clock;
use crate::source::OnProgress;
use crate::storage::Storage;

/// What a restore or a proof may use.
#[derive(Clone)]
pub struct Resources {
    /// Where snapshots are.
    pub storage: Arc<dyn Storage>,
    /// A directory for copies that do not become the database.
    pub scratch: PathBuf,
    /// Number of decompressing threads.
    pub threads: usize,
    /// The time.
    pub clock: Clock,
    /// Is told how far reading back has come.
    pub on_progress: OnProgress,
}
