//! What is counted of a day's allowance for storage.

use std::num::NonZeroU64;

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// What was asked of storage since midnight UTC, and what may be.
///
/// Clones share the numbers. One that was never registered counts for nobody, which is what tests want.
#[derive(Debug, Clone, Default)]
pub struct BudgetMetrics {
    requests_limit: Gauge,
    bytes_limit: Gauge,
    requests: Family<ClassLabels, Gauge>,
    bytes: Gauge,
    refused: Family<OperationLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ClassLabels {
    /// `begin`, `finish` or `read`.
    class: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OperationLabels {
    operation: &'static str,
}

impl BudgetMetrics {
    /// Numbers that `registry` shows as `budget_…`.
    pub(super) fn register(registry: &mut Registry) -> BudgetMetrics {
        let metrics = BudgetMetrics::default();
        let budget = registry.sub_registry_with_prefix("budget");
        budget.register(
            "requests_limit",
            "Requests to storage that a day may have, 0 for no limit",
            metrics.requests_limit.clone(),
        );
        budget.register(
            "requests",
            "Requests to storage since midnight UTC, as of the last one, by what they are for",
            metrics.requests.clone(),
        );
        budget.register_with_unit(
            "upload_limit",
            "What may be sent to storage in a day, 0 for no limit",
            Unit::Bytes,
            metrics.bytes_limit.clone(),
        );
        budget.register_with_unit(
            "upload",
            "Sent to storage since midnight UTC, as of the last request",
            Unit::Bytes,
            metrics.bytes.clone(),
        );
        budget.register(
            "refused",
            "Operations on storage that were refused because the day's allowance is used up",
            metrics.refused.clone(),
        );
        metrics
    }

    /// What a day may have; `None` is without limit.
    pub fn limits(&self, requests: Option<NonZeroU64>, bytes: Option<NonZeroU64>) {
        let shown = |limit: Option<NonZeroU64>| limit.map_or(0, |limit| limit.get() as i64);
        self.requests_limit.set(shown(requests));
        self.bytes_limit.set(shown(bytes));
    }

    /// Counting begins anew.
    pub fn new_day(&self) {
        self.requests.clear();
        self.bytes.set(0);
    }

    /// Counts requests of a class and what they sent.
    pub fn spent(&self, class: &'static str, requests: u64, bytes: u64) {
        self.requests.get_or_create(&ClassLabels { class }).inc_by(requests as i64);
        self.bytes.inc_by(bytes as i64);
    }

    /// Counts an operation that was refused.
    pub fn refused(&self, operation: &'static str) {
        self.refused.get_or_create(&OperationLabels { operation }).inc();
    }
}
