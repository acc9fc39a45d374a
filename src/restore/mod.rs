//! The verb "restore": a snapshot becomes the database again, all of it or nothing.
//!
//! Offline, when nobody has the database open: fetch beside it, prove, swap in one rename, keep the
//! old file. Online, when the application runs: through SQLite's backup API.

mod boot;
mod fetch;
mod kept;
mod moment;
mod offline;
mod online;
mod replay;
mod sample;
mod scratch;
mod swap;
mod undo;
mod when;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

pub use boot::{Boot, BootAction, Present, WithoutSnapshot, decide, look};
pub use moment::Moment;
pub use offline::{Plan, Restored, Target, onto, plan, recover, to_new_file};
pub use online::{Overwriting, prepare_online};
pub use sample::sample;
pub use scratch::{Damage, Scratch};
pub use undo::{Undo, Undone, plan_undo, undo};
pub use when::when;

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
    /// How copies are checked.
    pub checks: Checks,
    /// The time.
    pub clock: Clock,
    /// Is told how far reading back has come.
    pub on_progress: OnProgress,
}

/// How copies are checked, as configured.
#[derive(Debug, Clone)]
pub struct Checks {
    /// How long SQLite may look at one copy.
    pub deadline: Duration,
    /// One SELECT that must say yes of every copy that is to be proven; a restore does not ask it.
    pub assertion: Option<String>,
}

impl Resources {
    /// When SQLite, asked now, must have looked.
    pub(crate) fn check_by(&self) -> Instant {
        Instant::now() + self.checks.deadline
    }
}
