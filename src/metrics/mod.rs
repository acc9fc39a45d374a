//! Numbers for Prometheus. The registry is a value; nothing here is global.

mod budget;
mod capture;
mod http;
mod identity;
mod storage;

use std::sync::Arc;

use jiff::Timestamp;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

pub use budget::BudgetMetrics;
pub use capture::Captured;
pub use http::HttpMetrics;
pub use identity::IdentityMetrics;
pub use storage::{Direction, StorageMetrics};

use crate::error::{Context, ErrorKind, Result};
use crate::snapshot::{DatabaseName, Manifest, Proof};

/// Every metric of this process. Clones share them.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    databases: Databases,
    storage: StorageMetrics,
    identity: IdentityMetrics,
    budget: BudgetMetrics,
    http: HttpMetrics,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct DatabaseLabels {
    database: String,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct JobLabels {
    database: String,
    job: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Default)]
struct Databases {
    jobs: Family<JobLabels, Counter>,
    last_backup: Family<DatabaseLabels, Gauge>,
    last_proof: Family<DatabaseLabels, Gauge>,
    plain_bytes: Family<DatabaseLabels, Gauge>,
    stored_bytes: Family<DatabaseLabels, Gauge>,
    backup_ms: Family<DatabaseLabels, Gauge>,
    writer_blocked_ms: Family<DatabaseLabels, Gauge>,
    flagged: Family<DatabaseLabels, Gauge>,
    ready: Family<DatabaseLabels, Gauge>,
    fenced: Family<DatabaseLabels, Gauge>,
    branch: Family<DatabaseLabels, Gauge>,
    epoch: Family<DatabaseLabels, Gauge>,
    spool_snapshots: Family<DatabaseLabels, Gauge>,
    spool_bytes: Family<DatabaseLabels, Gauge>,
    spool_oldest: Family<DatabaseLabels, Gauge>,
    spool_dropped: Family<DatabaseLabels, Counter>,
    capture: capture::CaptureMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        Metrics::new()
    }
}

impl Metrics {
    /// Metrics that have counted nothing yet.
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("lifeboat");
        let databases = Databases::default();
        databases.register(&mut registry);
        let storage = StorageMetrics::register(&mut registry);
        let identity = IdentityMetrics::register(&mut registry);
        let budget = BudgetMetrics::register(&mut registry);
        let http = HttpMetrics::register(&mut registry);
        Metrics { registry: Arc::new(registry), databases, storage, identity, budget, http }
    }

    /// What is counted of storage.
    pub fn storage(&self) -> &StorageMetrics {
        &self.storage
    }

    /// What is counted of the identity towards storage.
    pub fn identity(&self) -> &IdentityMetrics {
        &self.identity
    }

    /// What is counted of a day's allowance for storage.
    pub fn budget(&self) -> &BudgetMetrics {
        &self.budget
    }

    /// What is counted of the HTTP interface.
    pub fn http(&self) -> &HttpMetrics {
        &self.http
    }

    /// The metrics of one database.
    pub fn database(&self, name: &DatabaseName) -> DatabaseMetrics {
        DatabaseMetrics { families: self.databases.clone(), name: name.to_string() }
    }

    /// The exposition in the OpenMetrics text format.
    pub fn render(&self) -> Result<String> {
        let mut text = String::new();
        encode(&mut text, &self.registry).context(ErrorKind::Internal, || "write the metrics".to_owned())?;
        Ok(text)
    }
}

impl Databases {
    fn register(&self, registry: &mut Registry) {
        registry.register("jobs", "Jobs that ended, by kind and outcome", self.jobs.clone());
        for (name, help, family) in [
            (
                "last_backup_timestamp",
                "When storage was last known to hold what the database held",
                &self.last_backup,
            ),
            (
                "last_proven_restore_timestamp",
                "When a snapshot was last read back and shown to restore",
                &self.last_proof,
            ),
            (
                "spool_oldest_timestamp",
                "When the oldest snapshot that waits for storage was taken, 0 if none waits",
                &self.spool_oldest,
            ),
        ] {
            registry.register_with_unit(name, help, Unit::Seconds, family.clone());
        }
        for (name, help, family) in [
            ("snapshot_plain", "Size of the database in the newest snapshot", &self.plain_bytes),
            ("snapshot_stored", "Size of the newest snapshot in storage", &self.stored_bytes),
            ("spool", "What waits on this machine for storage", &self.spool_bytes),
        ] {
            registry.register_with_unit(name, help, Unit::Bytes, family.clone());
        }
        for (name, help, family) in [
            ("backup_duration_milliseconds", "How long the newest snapshot took", &self.backup_ms),
            (
                "writer_blocked_milliseconds",
                "For how long the newest snapshot kept writers waiting",
                &self.writer_blocked_ms,
            ),
            ("snapshot_flagged", "1 if the newest snapshot's source looked wrong", &self.flagged),
            ("ready", "1 if backups are fresh and proven", &self.ready),
            ("fenced", "1 if a newer process publishes this database's backups", &self.fenced),
            (
                "branch",
                "1 if this database does not descend from the newest snapshot, and its snapshots form a branch",
                &self.branch,
            ),
            ("epoch", "The epoch under which this process publishes", &self.epoch),
            ("spool_snapshots", "Snapshots that wait on this machine for storage", &self.spool_snapshots),
        ] {
            registry.register(name, help, family.clone());
        }
        let help = "Snapshots that were dropped for a limit of the spool and never reached storage";
        registry.register("spool_dropped", help, self.spool_dropped.clone());
        self.capture.register(registry);
    }
}

/// The metrics of one database.
#[derive(Clone)]
pub struct DatabaseMetrics {
    families: Databases,
    name: String,
}

impl DatabaseMetrics {
    fn set(&self, family: &Family<DatabaseLabels, Gauge>, value: i64) {
        family.get_or_create(&DatabaseLabels { database: self.name.clone() }).set(value);
    }

    /// A job ended: well, or with an error of this kind.
    pub fn job_ended(&self, job: &'static str, error: Option<ErrorKind>) {
        let outcome = error.map_or("ok", ErrorKind::name);
        let labels = JobLabels { database: self.name.clone(), job, outcome };
        self.families.jobs.get_or_create(&labels).inc();
        if error == Some(ErrorKind::Fenced) {
            self.set(&self.families.fenced, 1);
        }
    }

    /// What the newest snapshot in storage is.
    pub fn stored(&self, manifest: &Manifest) {
        self.set(&self.families.last_backup, manifest.taken_at.as_second());
        self.set(&self.families.plain_bytes, manifest.plain.bytes as i64);
        self.set(&self.families.stored_bytes, manifest.stored.bytes as i64);
        self.set(&self.families.backup_ms, manifest.took_ms as i64);
        self.set(&self.families.writer_blocked_ms, manifest.writer_blocked_ms as i64);
        self.set(&self.families.flagged, i64::from(!manifest.flags.is_empty()));
    }

    /// The database was seen to be what storage holds.
    pub fn unchanged(&self, now: Timestamp) {
        self.set(&self.families.last_backup, now.as_second());
    }

    /// A snapshot was proven.
    pub fn proven(&self, proof: &Proof) {
        self.set(&self.families.last_proof, proof.proven_at.as_second());
    }

    /// This process publishes under `epoch`, perhaps a branch, and is not fenced.
    pub fn started(&self, epoch: u64, is_branch: bool) {
        self.set(&self.families.branch, i64::from(is_branch));
        self.set(&self.families.epoch, epoch as i64);
        self.set(&self.families.fenced, 0);
    }

    /// What waits on this machine for storage.
    pub fn spooled(&self, snapshots: usize, bytes: u64, oldest: Option<Timestamp>) {
        self.set(&self.families.spool_snapshots, snapshots as i64);
        self.set(&self.families.spool_bytes, bytes as i64);
        self.set(&self.families.spool_oldest, oldest.map_or(0, Timestamp::as_second));
    }

    /// A snapshot was dropped before it reached storage.
    pub fn spool_dropped(&self) {
        let labels = DatabaseLabels { database: self.name.clone() };
        self.families.spool_dropped.get_or_create(&labels).inc();
    }

    /// Whether backups are fresh and proven, as judged now.
    pub fn ready(&self, ready: bool) {
        self.set(&self.families.ready, i64::from(ready));
    }
}
