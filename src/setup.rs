//! The composition root: configuration becomes the things that do the work.

use std::sync::Arc;
use std::thread::available_parallelism;
use std::time::Duration;

use crate::backup;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::config::{self, Config, StorageChoice};
use crate::credentials::{self, Identity, Role, Session};
use crate::disk::blocking;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::metrics::{BudgetMetrics, DatabaseMetrics, IdentityMetrics, StorageMetrics};
use crate::prune;
use crate::restore::{Checks, Resources};
use crate::retention::Policy;
use crate::schedule::Schedule;
use crate::snapshot::DatabaseName;
use crate::source::OnProgress;
use crate::spool::{self, Spool};
use crate::storage::{
    self, Allowance, Budgeted, Directory, Examine, Metered, Patience, S3, S3Settings, Storage,
};

/// Who we are to the storage of `config`, one for all that is opened; `None` for a directory. Nothing
/// is sent.
pub fn session(config: &Config, clock: &Clock, metrics: &IdentityMetrics) -> Result<Option<Session>> {
    let StorageChoice::S3(s3) = &config.storage else { return Ok(None) };
    let region = settings_of(s3).signing_region()?;
    let identity = match (&s3.credentials.identity, role(config)) {
        (_, Some(role)) => Identity::Role(role),
        (config::Identity::Key(config::Key { id, secret, session_token }), None) => {
            Identity::Key { id: id.clone(), secret: secret.clone(), session_token: session_token.clone() }
        }
        (_, None) => Identity::Chain,
    };
    Session::open(identity, &region, clock.clone(), metrics.clone()).map(Some)
}

/// Opens the storage of `config` for reading. To a bucket nothing is sent.
pub fn storage(
    config: &Config,
    session: Option<&Session>,
    metrics: &StorageMetrics,
) -> Result<Arc<dyn Storage>> {
    let opened: Arc<dyn Examine> = match &config.storage {
        StorageChoice::Directory(path) => Arc::new(Directory::open(path)?),
        StorageChoice::S3(s3) => Arc::new(bucket(s3, session)?),
    };
    Ok(Arc::new(Metered::new(mortal(opened), metrics.clone())))
}

/// In a debug build every write is a crash point.
fn mortal(storage: Arc<dyn Examine>) -> Arc<dyn Examine> {
    #[cfg(debug_assertions)]
    let storage = Arc::new(storage::Mortal::new(storage));
    storage
}

/// Opens the storage of `config` for a diagnosis, which would rather hear soon that nobody answers.
pub async fn storage_to_examine(config: &Config, session: Option<&Session>) -> Result<Arc<dyn Examine>> {
    let s3 = match &config.storage {
        StorageChoice::Directory(path) => {
            let path = path.clone();
            let opened = blocking("open the backup directory", move || Directory::open(path)).await?;
            return Ok(mortal(Arc::new(opened)));
        }
        StorageChoice::S3(s3) => s3,
    };
    let patience = Patience {
        attempt: Duration::from_secs(6),
        retries: 1,
        deadline: Duration::from_secs(8),
        ..Patience::default()
    };
    Ok(mortal(Arc::new(connect(S3Settings { patience, ..settings_of(s3) }, session)?)))
}

/// Opens the storage of `config` and learns what it honours, which costs a bucket a few requests.
pub async fn storage_for_writing(
    config: &Config,
    session: Option<&Session>,
    metrics: &StorageMetrics,
) -> Result<Arc<dyn Storage>> {
    let StorageChoice::S3(s3) = &config.storage else { return storage(config, session, metrics) };
    let bucket = Arc::new(bucket(s3, session)?);
    let opened = mortal(bucket.clone());
    bucket.set_guarantees(storage::probe(&*opened).await?);
    warn_of_missing_guarantees(&*opened);
    Ok(Arc::new(Metered::new(opened, metrics.clone())))
}

/// The same storage, asked for no more than the configuration allows in a day for so many databases; a directory
/// costs nothing.
pub fn within_budget(
    config: &Config,
    databases: usize,
    storage: Arc<dyn Storage>,
    clock: &Clock,
    metrics: &BudgetMetrics,
) -> Arc<dyn Storage> {
    match config.storage {
        StorageChoice::Directory(_) => storage,
        StorageChoice::S3(_) => {
            let requests = config.requests_per_day(databases);
            let allowance = Allowance { requests, uploaded_bytes: config.budget.uploaded_bytes };
            Arc::new(Budgeted::new(storage, allowance, clock.clone(), metrics.clone()))
        }
    }
}

fn bucket(s3: &config::S3, session: Option<&Session>) -> Result<S3> {
    connect(settings_of(s3), session)
}

fn connect(settings: S3Settings, session: Option<&Session>) -> Result<S3> {
    let session =
        session.ok_or_else(|| Error::new(ErrorKind::Internal, "a bucket is opened without an identity"))?;
    credentials::connect(settings, session)
}

fn warn_of_missing_guarantees(storage: &dyn Storage) {
    let found = storage.guarantees();
    if !found.create_only {
        tracing::warn!(
            storage = %storage.location(),
            "this store does not keep an object from being overwritten: two processes could damage each other's \
             backups, so make sure that only one runs"
        );
    }
    if !found.compare_and_swap {
        tracing::warn!(
            storage = %storage.location(),
            "this store has no compare-and-swap: a process that was replaced may not notice it at once"
        );
    }
}

fn settings_of(s3: &config::S3) -> S3Settings {
    S3Settings {
        prefix: s3.prefix.clone(),
        region: s3.region.clone(),
        endpoint_url: s3.endpoint_url.clone(),
        path_style: s3.path_style,
        // The configuration has already refused what it does not allow.
        allow_http: true,
        part_concurrency: s3.part_concurrency.get(),
        ..S3Settings::new(&s3.bucket)
    }
    .for_provider(s3.provider)
}

/// The role to assume, where the configuration has one.
pub fn role(config: &Config) -> Option<Role> {
    let StorageChoice::S3(s3) = &config.storage else { return None };
    let credentials = &s3.credentials;
    let role = credentials.role()?;
    Some(Role {
        arn: role.arn.clone(),
        machine_socket: role.machine_socket.clone(),
        web_identity_token_file: role.web_identity_token_file.clone(),
        token_wait: role.token_wait,
        session_name: role.session_name.clone(),
        session_duration: role.session_duration,
        sts_endpoint_url: credentials.sts_endpoint_url.clone(),
    })
}

/// How snapshots are taken.
pub fn backup_settings(config: &Config) -> backup::Settings {
    let backup = &config.backup;
    backup::Settings {
        busy_timeout: backup.busy_timeout,
        deadline: backup.deadline,
        wal_growth_max: backup.wal_growth_bytes_max,
        writer_blocked_max: backup.writer_blocked_max,
        zstd_level: backup.zstd_level,
        threads: threads(config),
        scratch: scratch(config),
        distrusted: None,
        accept_shrunken: false,
    }
}

/// How restored copies are checked.
pub fn checks(config: &Config) -> Checks {
    Checks { deadline: config.verify.check_deadline, assertion: config.verify.sql.clone() }
}

/// What restores and proofs may use.
pub fn resources(
    config: &Config,
    storage: &Arc<dyn Storage>,
    clock: &Clock,
    on_progress: OnProgress,
) -> Resources {
    Resources {
        storage: Arc::clone(storage),
        scratch: scratch(config),
        threads: threads(config),
        checks: checks(config),
        clock: clock.clone(),
        on_progress,
    }
}

/// The backups of one database.
pub fn catalog(storage: &Arc<dyn Storage>, name: &DatabaseName) -> Catalog {
    Catalog::new(Arc::clone(storage), name.clone())
}

/// Where the snapshots of `database` wait while its storage cannot be reached; none for a directory.
pub fn spool(
    config: &Config,
    database: &DatabaseName,
    clock: &Clock,
    metrics: DatabaseMetrics,
) -> Option<Spool> {
    let StorageChoice::S3(s3) = &config.storage else { return None };
    let config::Spool { bytes_max, age_max } = config.spool;
    let settings = spool::Settings {
        folder: config.fallback_directory.join(".lifeboat-spool"),
        storage: settings_of(s3).location(),
        limits: spool::Limits { bytes_max, age_max },
    };
    Some(Spool::new(settings, database.clone(), clock.clone(), metrics))
}

/// Which snapshots are kept.
pub fn policy(config: &Config) -> Result<Policy> {
    let keep = &config.retention.keep;
    keep.parse().map_err(|error: Error| Error::new(ErrorKind::Config, "key=`retention.keep`").because(error))
}

/// What pruning goes by.
pub fn prune_rules<'a>(config: &Config, policy: &'a Policy) -> prune::Rules<'a> {
    let (point_in_time, safety_age) = (config.capture.point_in_time, config.retention.safety_age);
    prune::Rules { policy, point_in_time, safety_age }
}

/// The configured times, each checked.
pub struct Schedules {
    /// Snapshots.
    pub backup: Option<Schedule>,
    /// Snapshots of databases between which nothing is captured.
    pub uncaptured: Option<Schedule>,
    /// Drills.
    pub verify: Option<Schedule>,
    /// Pruning.
    pub prune: Option<Schedule>,
}

impl Schedules {
    /// Reads the schedules; an error names the key.
    pub fn of(config: &Config) -> Result<Schedules> {
        let [backup, uncaptured, verify, prune] = schedules(config);
        Ok(Schedules { backup: backup?, uncaptured: uncaptured?, verify: verify?, prune: prune? })
    }
}

/// The schedules of snapshots (captured or not), drills and pruning, each by itself; an error names the key.
pub fn schedules(config: &Config) -> [Result<Option<Schedule>>; 4] {
    [
        ("backup.schedule", &config.backup.schedule),
        ("backup.schedule", &config.backup.uncaptured_schedule),
        ("verify.schedule", &config.verify.schedule),
        ("retention.prune_schedule", &config.retention.prune_schedule),
    ]
    .map(|(key, text)| {
        let schedule = text.as_deref().map(str::parse::<Schedule>).transpose();
        schedule.context(ErrorKind::Config, || format!("key=`{key}`"))
    })
}

fn threads(config: &Config) -> usize {
    let cores = || available_parallelism().map_or(1, |cores| cores.get());
    config.backup.threads.map_or_else(cores, |threads| threads.get())
}

/// Copies that do not become the database: below the backup directory, out of the objects' way.
pub fn scratch(config: &Config) -> std::path::PathBuf {
    config.fallback_directory.join(".lifeboat-scratch")
}
