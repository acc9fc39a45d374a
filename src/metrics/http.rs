//! What is counted of the HTTP interface.

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::Registry;

/// Connections, and what was refused to whom because of a bound. Clones share the numbers.
#[derive(Debug, Clone, Default)]
pub struct HttpMetrics {
    connections: Gauge,
    connections_max: Gauge,
    refused: Family<ReasonLabels, Counter>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ReasonLabels {
    reason: &'static str,
}

impl HttpMetrics {
    /// Numbers that `registry` shows as `http_…`.
    pub(super) fn register(registry: &mut Registry) -> HttpMetrics {
        let metrics = HttpMetrics::default();
        let http = registry.sub_registry_with_prefix("http");
        http.register("connections", "Connections that are open", metrics.connections.clone());
        http.register(
            "connections_max",
            "Connections that may be open before only probes are answered",
            metrics.connections_max.clone(),
        );
        http.register(
            "refused",
            "Requests and connections that were ended because of a bound or a wrong token",
            metrics.refused.clone(),
        );
        metrics
    }

    /// How many connections there may be.
    pub fn bounded(&self, connections_max: usize) {
        self.connections_max.set(connections_max as i64);
    }

    /// A connection was opened.
    pub fn opened(&self) {
        self.connections.inc();
    }

    /// A connection was closed.
    pub fn closed(&self) {
        self.connections.dec();
    }

    /// A bound was reached, or a token was wrong.
    pub fn refused(&self, reason: &'static str) {
        self.refused.get_or_create(&ReasonLabels { reason }).inc();
    }
}
