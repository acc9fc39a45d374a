//! What capture shows of itself: how far behind storage is, and what it did so far.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::Stored;
use super::follower::Follower;
use super::why::Why;
use crate::clock::Timestamp;

/// What capture is at.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Doing {
    /// It reads the log: all that is committed is known.
    Following,
    /// There is no log to read, so nothing is captured.
    NoLog,
    /// Pages have to be compared before it can go on.
    Comparing,
    /// A snapshot has to be taken before it can go on.
    #[default]
    Anchoring,
}

impl Doing {
    /// Whether what is committed becomes deltas, without a snapshot before.
    pub const fn captures(self) -> bool {
        matches!(self, Doing::Following | Doing::Comparing)
    }

    /// As in JSON.
    pub const fn name(self) -> &'static str {
        match self {
            Doing::Following => "following",
            Doing::NoLog => "no-log",
            Doing::Comparing => "comparing",
            Doing::Anchoring => "anchoring",
        }
    }
}

/// The capture of one database, as it is shown.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct State {
    /// What it is at.
    pub doing: Doing,
    /// The position of the last cut.
    pub position: u64,
    /// Since when something waits: the first commit was seen that is not stored yet, or the log stopped to tell.
    pub waits_since: Option<Timestamp>,
    /// When the last commit was seen that this process stored.
    pub stored_until: Option<Timestamp>,
    /// Bytes of the log, up to where it was read.
    pub log_bytes: u64,
    /// Deltas that this process stored.
    pub deltas: u64,
    /// Their size in storage.
    pub delta_bytes: u64,
    /// How often all pages were compared, by the reason.
    pub comparisons: BTreeMap<&'static str, u64>,
    /// Gaps that began: a snapshot after which nothing before it can be led on from.
    pub gaps: u64,
}

impl State {
    /// How far storage is behind.
    pub fn lag(&self, now: Timestamp) -> Duration {
        let lag = self.waits_since.map(|since| now.duration_since(since));
        lag.and_then(|lag| lag.try_into().ok()).unwrap_or_default()
    }
}

/// What was done so far.
#[derive(Default)]
pub(super) struct Tally(Mutex<Counted>);

#[derive(Default)]
struct Counted {
    state: State,
    /// Whether there is anything to lead on from.
    has_line: bool,
    /// Since when the log does not tell what was committed.
    behind_since: Option<Timestamp>,
}

impl Tally {
    pub(super) fn new(has_line: bool) -> Tally {
        Tally(Mutex::new(Counted { has_line, ..Counted::default() }))
    }

    fn counted(&self) -> MutexGuard<'_, Counted> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn stored(&self, stored: &Stored) {
        let mut counted = self.counted();
        counted.has_line = true;
        let state = &mut counted.state;
        (state.deltas, state.delta_bytes) = (state.deltas + 1, state.delta_bytes + stored.bytes as u64);
        state.stored_until = Some(stored.last_commit);
    }

    pub(super) fn read(&self, log_bytes: u64) {
        self.counted().state.log_bytes = log_bytes;
    }

    pub(super) fn compares(&self, why: Why) {
        *self.counted().state.comparisons.entry(why.name()).or_default() += 1;
    }

    /// A snapshot stands at a position that no delta leads to.
    pub(super) fn anchored(&self) {
        let mut counted = self.counted();
        counted.state.gaps += u64::from(counted.has_line);
        counted.has_line = true;
    }

    pub(super) fn looked(&self, doing: Doing, now: Timestamp) {
        let mut counted = self.counted();
        counted.behind_since = match doing {
            Doing::Comparing | Doing::Anchoring => counted.behind_since.or(Some(now)),
            Doing::Following | Doing::NoLog => None,
        };
    }

    pub(super) fn state(&self, follower: &Follower) -> State {
        let counted = self.counted();
        let waiting = follower.next_cut().map(|cut| cut.first_commit).or(follower.waits_since());
        State {
            doing: follower.doing(),
            position: follower.position(),
            waits_since: [waiting, counted.behind_since].into_iter().flatten().min(),
            ..counted.state.clone()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_lag_is_counted_from_the_first_commit_that_waits() {
        let at = |text: &str| -> Timestamp { text.parse().expect("a time") };
        let now = at("2026-11-21T14:00:05Z");
        assert_eq!(State::default().lag(now), Duration::ZERO, "nothing waits");
        let waits = |since| State { waits_since: Some(at(since)), ..State::default() };
        assert_eq!(waits("2026-11-21T14:00:02.500Z").lag(now), Duration::from_millis(2_500));
        assert_eq!(waits("2026-11-21T15:00:00Z").lag(now), Duration::ZERO, "the clock was set back");
    }
}
