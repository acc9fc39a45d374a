//! What is counted of capture, as Prometheus reads it.

use std::sync::atomic::{AtomicU64, Ordering};

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use super::{DatabaseLabels, DatabaseMetrics};

type Seconds = Gauge<f64, AtomicU64>;

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    database: String,
    reason: &'static str,
}

#[derive(Clone, Default)]
pub(super) struct CaptureMetrics {
    lag: Family<DatabaseLabels, Seconds>,
    stored_until: Family<DatabaseLabels, Seconds>,
    position: Family<DatabaseLabels, Gauge>,
    log_bytes: Family<DatabaseLabels, Gauge>,
    deltas: Family<DatabaseLabels, Counter>,
    delta_bytes: Family<DatabaseLabels, Counter>,
    comparisons: Family<ReasonLabels, Counter>,
    gaps: Family<DatabaseLabels, Counter>,
}

/// What capture did so far and where it stands.
#[derive(Debug, Clone, Default)]
pub struct Captured {
    /// How far storage is behind, in seconds.
    pub lag_seconds: f64,
    /// When the last commit was seen that was stored.
    pub stored_until: Option<Timestamp>,
    /// The position of the last cut.
    pub position: u64,
    /// Bytes of the log.
    pub log_bytes: u64,
    /// Deltas stored since the start.
    pub deltas: u64,
    /// Their size in storage.
    pub delta_bytes: u64,
    /// Comparisons of all pages, by the reason.
    pub comparisons: Vec<(&'static str, u64)>,
    /// Gaps that began.
    pub gaps: u64,
}

impl CaptureMetrics {
    pub(super) fn register(&self, registry: &mut Registry) {
        for (name, help, family) in [
            (
                "capture_lag",
                "Since when the first commit waits that is not stored yet, 0 if none does",
                &self.lag,
            ),
            (
                "capture_stored_until_timestamp",
                "When the last commit was seen that this process stored in a delta",
                &self.stored_until,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        let help = "The number of the last state that was captured";
        registry.register("capture_position", help, self.position.clone());
        let help = "Size of the write-ahead log, up to where it was read";
        registry.register_with_unit("capture_log", help, Unit::Bytes, self.log_bytes.clone());
        registry.register("capture_deltas", "Deltas that were stored", self.deltas.clone());
        let help = "Size in storage of the deltas that were stored";
        registry.register_with_unit("capture_deltas_stored", help, Unit::Bytes, self.delta_bytes.clone());
        let help = "How often all pages were compared because the log did not tell what was committed";
        registry.register("capture_comparisons", help, self.comparisons.clone());
        let help = "Gaps that began between what can be restored to any moment";
        registry.register("capture_gaps", help, self.gaps.clone());
    }
}

impl DatabaseMetrics {
    /// What capture did so far and where it stands.
    pub fn captured(&self, captured: &Captured) {
        let families = &self.families.capture;
        let labels = DatabaseLabels { database: self.name.clone() };
        families.lag.get_or_create(&labels).set(captured.lag_seconds);
        if let Some(time) = captured.stored_until {
            families.stored_until.get_or_create(&labels).set(time.as_millisecond() as f64 / 1_000.0);
        }
        families.position.get_or_create(&labels).set(captured.position as i64);
        families.log_bytes.get_or_create(&labels).set(captured.log_bytes as i64);
        raise(&families.deltas.get_or_create(&labels), captured.deltas);
        raise(&families.delta_bytes.get_or_create(&labels), captured.delta_bytes);
        raise(&families.gaps.get_or_create(&labels), captured.gaps);
        for (reason, count) in &captured.comparisons {
            let labels = ReasonLabels { database: self.name.clone(), reason };
            raise(&families.comparisons.get_or_create(&labels), *count);
        }
    }
}

/// Two that look at the same time count nothing twice, and nothing backwards.
fn raise(counter: &Counter, count: u64) {
    counter.inner().fetch_max(count, Ordering::Relaxed);
}
