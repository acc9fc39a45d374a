//! What is counted of the identity towards storage.

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

/// How the identity is renewed and when it ends.
///
/// Clones share the numbers. One that was never registered counts for nobody, which is what tests
/// and short commands want.
#[derive(Debug, Clone, Default)]
pub struct IdentityMetrics {
    renewals: Family<OutcomeLabels, Counter>,
    expiry: Family<SourceLabels, Gauge>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct OutcomeLabels {
    /// `ok`, or the class of the failure.
    outcome: &'static str,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct SourceLabels {
    source: &'static str,
}

impl IdentityMetrics {
    /// Numbers that `registry` shows as `identity_…`.
    pub(super) fn register(registry: &mut Registry) -> IdentityMetrics {
        let metrics = IdentityMetrics::default();
        let help = "Renewals of the credentials for storage, by outcome: ok, or the class of the failure";
        registry.register("identity_renewals", help, metrics.renewals.clone());
        let help = "When the credentials for storage end, by their source; renewed when next needed";
        registry.register_with_unit("identity_expiry_timestamp", help, Unit::Seconds, metrics.expiry.clone());
        metrics
    }

    /// The credentials were renewed from `source`; `None` if they do not end.
    pub fn renewed(&self, source: &'static str, expires_at: Option<Timestamp>) {
        self.renewals.get_or_create(&OutcomeLabels { outcome: "ok" }).inc();
        // Only the source that counts now is shown.
        self.expiry.clear();
        if let Some(end) = expires_at {
            self.expiry.get_or_create(&SourceLabels { source }).set(end.as_second());
        }
    }

    /// A renewal failed with a failure of `class`.
    pub fn failed(&self, class: &'static str) {
        self.renewals.get_or_create(&OutcomeLabels { outcome: class }).inc();
    }
}
