//! What capture shows of itself: how far behind storage is, and what it did so far.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;

use super::Stored;
use super::follower::Follower;
use super::why::Why;
use crate::clock::Timestamp;
use crate::delta::ageing::RULES;

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
    /// Since when all this is counted.
    pub counted_since: Option<Timestamp>,
}

/// What a day takes if it goes on as it did so far.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Pace {
    /// Deltas.
    pub deltas: f64,
    /// Their size in storage.
    pub bytes: f64,
    /// Requests to storage, of which removals cost nothing in S3.
    pub requests: f64,
    /// What 30 such days of requests cost in S3, in US dollars, at the list prices of us-east-1.
    pub dollars_per_month: f64,
}

/// A shorter time tells nothing of a day.
const PACE_MIN: Duration = Duration::from_secs(600);

/// What S3 charges for writing an object, and for reading one (`deploy/scripts/prices.json`); a removal is free.
const DOLLARS: (f64, f64) = (0.000_005, 0.000_000_4);

/// Days in what is called a month.
const MONTH: f64 = 30.0;

const DAY_SECONDS: f64 = 86_400.0;

impl State {
    /// What a day takes, once there is enough of one.
    pub fn pace(&self, now: Timestamp) -> Option<Pace> {
        let counted: Duration = now.duration_since(self.counted_since?).try_into().ok()?;
        let share = counted.as_secs_f64() / DAY_SECONDS;
        (counted >= PACE_MIN).then(|| {
            let deltas = self.deltas as f64 / share;
            // Of two at least, and one for each time that its level covers.
            let times = RULES.iter().map(|rule| DAY_SECONDS / rule.covers.as_secs_f64());
            let merged: f64 = times.map(|times| times.min(deltas / 2.0)).sum();
            // Each is written, read once to be merged, and removed; a merged one is also read back.
            let (writes, reads, removals) = (deltas + merged, deltas + 2.0 * merged, deltas + merged);
            Pace {
                deltas,
                bytes: self.delta_bytes as f64 / share,
                requests: writes + reads + removals,
                dollars_per_month: (writes * DOLLARS.0 + reads * DOLLARS.1) * MONTH,
            }
        })
    }

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
    pub(super) fn new(has_line: bool, now: Timestamp) -> Tally {
        let state = State { counted_since: Some(now), ..State::default() };
        Tally(Mutex::new(Counted { has_line, state, ..Counted::default() }))
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
    fn a_pace_is_what_a_day_takes_once_there_are_ten_minutes_of_it() {
        let at = |text: &str| -> Timestamp { text.parse().expect("a time") };
        let since = Some(at("2026-11-21T14:00:00Z"));
        let state = State { deltas: 3_600, delta_bytes: 1_000_000, counted_since: since, ..State::default() };
        assert_eq!(state.pace(at("2026-11-21T14:09:59Z")), None);
        assert_eq!(State::default().pace(at("2026-11-21T14:10:00Z")), None, "it did not begin");
        // One a second, and 1,440 and 24 merged ones.
        let pace = state.pace(at("2026-11-21T15:00:00Z")).expect("an hour");
        assert_eq!((pace.deltas.round(), pace.bytes.round()), (86_400.0, 24_000_000.0));
        assert_eq!(pace.requests.round(), (87_864 + 89_328 + 87_864) as f64);
        // 30 times 87,864 writes and 89,328 reads.
        assert!((pace.dollars_per_month - 14.2515).abs() < 0.001, "{pace:?}");
    }

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
