//! What is counted, as Prometheus reads it. Names and units are a contract with dashboards.

use std::time::Duration;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// What was asked of storage, how it ended, how long it took and what it moved.
///
/// Clones share the counters. One that was never registered counts for nobody, which is what
/// tests and short commands want.
#[derive(Debug, Clone)]
pub struct StorageMetrics {
    requests: Family<RequestLabels, Counter>,
    bytes: Family<DirectionLabels, Counter>,
    seconds: Family<OperationLabels, Histogram>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct RequestLabels {
    operation: &'static str,
    /// `ok`, or the name of the error's kind.
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DirectionLabels {
    direction: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

/// Which way bytes went.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// To storage.
    Written,
    /// From storage.
    Read,
}

impl Default for StorageMetrics {
    fn default() -> Self {
        StorageMetrics {
            requests: Family::default(),
            bytes: Family::default(),
            // 5 ms to 22 minutes: from a record on this machine to a snapshot over a slow line.
            seconds: Family::new_with_constructor(|| Histogram::new(exponential_buckets(0.005, 4.0, 10))),
        }
    }
}

impl StorageMetrics {
    /// Counters that `registry` shows as `storage_…`.
    pub fn register(registry: &mut Registry) -> Self {
        let metrics = StorageMetrics::default();
        let storage = registry.sub_registry_with_prefix("storage");
        storage.register(
            "requests",
            "Operations on storage by their outcome; repetitions within one are not counted",
            metrics.requests.clone(),
        );
        storage.register_with_unit("transferred", "Content moved", Unit::Bytes, metrics.bytes.clone());
        storage.register_with_unit(
            "request",
            "How long operations on storage took, with their repetitions",
            Unit::Seconds,
            metrics.seconds.clone(),
        );
        metrics
    }

    /// Counts one operation that is over; `outcome` is `ok` or the name of the error's kind.
    pub fn request(&self, operation: &'static str, outcome: &'static str, took: Duration) {
        self.requests.get_or_create(&RequestLabels { operation, outcome }).inc();
        self.seconds.get_or_create(&OperationLabels { operation }).observe(took.as_secs_f64());
    }

    /// Counts content that was moved.
    pub fn transferred(&self, direction: Direction, bytes: u64) {
        let direction = match direction {
            Direction::Written => "written",
            Direction::Read => "read",
        };
        self.bytes.get_or_create(&DirectionLabels { direction }).inc_by(bytes);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_names_and_units_are_these() {
        let mut registry = Registry::with_prefix("lifeboat");
        let metrics = StorageMetrics::register(&mut registry);
        metrics.request("create", "ok", Duration::from_millis(1));
        metrics.transferred(Direction::Written, 42);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).expect("a string takes everything");
        for line in [
            r#"lifeboat_storage_requests_total{operation="create",outcome="ok"} 1"#,
            r#"lifeboat_storage_transferred_bytes_total{direction="written"} 42"#,
            r#"lifeboat_storage_request_seconds_bucket{le="0.005",operation="create"} 1"#,
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
    }
}
