//! What may be asked of a bucket in one day.

use std::num::NonZeroU64;

use super::Config;

/// What may be asked of a bucket in one day.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Budget {
    /// Requests.
    pub requests: Requests,
    /// Bytes sent; `None` is without limit.
    pub uploaded_bytes: Option<NonZeroU64>,
}

/// How many requests a day may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Requests {
    /// As many as the capture of every database can take, and some for all else.
    Enough,
    /// So many.
    AtMost(NonZeroU64),
    /// Without limit.
    Unlimited,
}

/// Snapshots, proofs and prunes: many times what a usual day takes.
const REQUESTS_BESIDE_DELTAS: NonZeroU64 = NonZeroU64::new(50_000).expect("not zero");

/// A delta is stored, read once to be merged with others, and removed. What it is merged into takes twice as many, for
/// it is also read back, and the head is looked at; of those there is at most about one for two deltas.
const REQUESTS_PER_DELTA: u64 = 6;

const DAY_MILLIS: u64 = 86_400_000;

impl Config {
    /// How many requests a day may have, for so many databases; `None` is without limit.
    pub fn requests_per_day(&self, databases: usize) -> Option<NonZeroU64> {
        match self.budget.requests {
            Requests::Enough => Some(REQUESTS_BESIDE_DELTAS.saturating_add(self.capture_requests(databases))),
            Requests::AtMost(requests) => Some(requests),
            Requests::Unlimited => None,
        }
    }

    /// How many requests a day the capture of so many databases takes if all are written to all the time.
    pub fn capture_requests(&self, databases: usize) -> u64 {
        if !self.capture.on {
            return 0;
        }
        let interval = u64::try_from(self.capture.interval.as_millis()).unwrap_or(u64::MAX).max(1);
        DAY_MILLIS.div_ceil(interval).saturating_mul(REQUESTS_PER_DELTA).saturating_mul(databases as u64)
    }
}
