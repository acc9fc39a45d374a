//! What is shown of capture: from when to when any moment can be restored, and how far behind storage is.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use crate::capture::{Pace, State};
use crate::catalog::{Gap, Reach, Window};
use crate::metrics::Captured;

/// The numbers of a state.
pub(super) fn counted(state: &State, now: Timestamp) -> Captured {
    Captured {
        lag_seconds: state.lag(now).as_secs_f64(),
        stored_until: state.stored_until,
        position: state.position,
        log_bytes: state.log_bytes,
        deltas: state.deltas,
        delta_bytes: state.delta_bytes,
        comparisons: state.comparisons.iter().map(|(reason, count)| (*reason, *count)).collect(),
        gaps: state.gaps,
    }
}

/// How far deltas are.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct CaptureView {
    /// `following`; `comparing` or `anchoring` while all pages are compared, or a snapshot is taken, before it goes on;
    /// `no-log` if the database has no write-ahead log.
    doing: &'static str,
    /// How far storage is behind, in milliseconds.
    lag_ms: u64,
    /// When the last commit was seen that this process stored.
    #[schema(value_type = Option<String>, format = DateTime)]
    stored_until: Option<Timestamp>,
    /// The number of the last state that was captured.
    position: u64,
    /// Deltas that this process stored.
    deltas: u64,
    /// Their size in storage.
    delta_bytes: u64,
    /// How often all pages had to be compared.
    comparisons: u64,
    /// Gaps that began.
    gaps: u64,
    /// What a day takes if it goes on as it did so far; absent in the first ten minutes.
    a_day: Option<PaceView>,
}

/// What a day takes, and a month costs.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct PaceView {
    /// Deltas.
    deltas: u64,
    /// Their size in storage.
    delta_bytes: u64,
    /// Requests to storage.
    requests: u64,
    /// What 30 such days of requests cost in S3, in US dollars, at the list prices of us-east-1.
    month_usd: f64,
}

impl PaceView {
    fn of(pace: Pace) -> PaceView {
        PaceView {
            deltas: pace.deltas.round() as u64,
            delta_bytes: pace.bytes.round() as u64,
            requests: pace.requests.round() as u64,
            month_usd: (pace.dollars_per_month * 100.0).round() / 100.0,
        }
    }
}

impl CaptureView {
    pub(super) fn of(state: &State, now: Timestamp) -> CaptureView {
        CaptureView {
            doing: state.doing.name(),
            lag_ms: state.lag(now).as_millis() as u64,
            stored_until: state.stored_until,
            position: state.position,
            deltas: state.deltas,
            delta_bytes: state.delta_bytes,
            comparisons: state.comparisons.values().sum(),
            gaps: state.gaps,
            a_day: state.pace(now).map(PaceView::of),
        }
    }
}

/// A stretch of time of which every moment can be restored.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct WindowView {
    /// When its first snapshot was taken.
    #[schema(value_type = String, format = DateTime)]
    from: Timestamp,
    /// When the last commit in it was seen, or its last snapshot taken.
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
    /// Deltas in it.
    deltas: usize,
    /// Their size in storage.
    delta_bytes: u64,
}

/// A stretch of time of which no moment can be restored.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct GapView {
    /// The last moment before it that can be.
    #[schema(value_type = String, format = DateTime)]
    after: Timestamp,
    /// The first one after it; behind the last window, when the last commit was seen that cannot be restored.
    #[schema(value_type = String, format = DateTime)]
    until: Timestamp,
}

/// What can be restored to any moment.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReachView {
    /// The windows, oldest first.
    windows: Vec<WindowView>,
    /// What lies between them, and behind the last one.
    gaps: Vec<GapView>,
}

impl ReachView {
    pub(super) fn of(reach: &Reach) -> ReachView {
        let window = |window: &Window| {
            let Window { from, until, deltas, delta_bytes } = *window;
            WindowView { from, until, deltas, delta_bytes }
        };
        let gap = |gap: &Gap| GapView { after: gap.after, until: gap.until };
        ReachView {
            windows: reach.windows.iter().map(window).collect(),
            gaps: reach.gaps.iter().map(gap).collect(),
        }
    }
}
