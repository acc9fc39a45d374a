//! What the spool shows of itself, for whoever asks "are we safe?".

use serde::Serialize;

use super::place::Dropped;
use crate::clock::Timestamp;
use crate::snapshot::SnapshotId;

/// What waits for storage, and what is wrong with it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct State {
    /// Snapshots that wait.
    pub snapshots: usize,
    /// Those of them that cannot be shipped as they are.
    pub stuck: usize,
    /// What they take on the disk.
    pub bytes: u64,
    /// The moment the oldest of them shows.
    pub oldest: Option<Timestamp>,
    /// The newest of them.
    pub newest: Option<SnapshotId>,
    /// What storage said last, while they wait for it.
    pub waits_because: Option<String>,
    /// Files that are damaged or not ours, and snapshots that cannot be shipped; each is named.
    pub trouble: Vec<String>,
    /// What was dropped for a limit, as long as nothing newer was shipped.
    pub dropped: Vec<Dropped>,
    /// Why nothing can be spooled, or the last one could not.
    pub error: Option<String>,
}

impl State {
    /// Whether anything waits that can be shipped.
    pub fn has_to_ship(&self) -> bool {
        self.snapshots > self.stuck
    }

    /// What of it speaks against the database being safe.
    pub fn reasons(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        if let Some(oldest) = self.oldest.filter(|_| self.has_to_ship()) {
            let because = self.waits_because.as_deref().unwrap_or("they were not shipped yet");
            let (some, wait) = match self.snapshots - self.stuck {
                1 => ("1 snapshot".to_owned(), "waits"),
                several => (format!("{several} snapshots"), "wait"),
            };
            reasons.push(format!("{some} {wait} in the spool for storage since {oldest:.0}: {because}"));
        }
        if let Some(last) = self.dropped.last() {
            reasons.push(format!(
                "dropped from the spool, which never reached storage: {}, the last of them {}, for {}",
                self.dropped.len(),
                last.snapshot,
                last.reason
            ));
        }
        reasons.extend(self.trouble.iter().map(|trouble| format!("the spool: {trouble}")));
        reasons.extend(self.error.iter().map(|error| format!("there is no fallback: {error}")));
        reasons
    }
}
