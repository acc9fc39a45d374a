//! Configuration: defaults, a file, the environment and flags, merged into one value that is valid.
//!
//! `config/default.toml` holds every key with its meaning and default and is the lowest layer.
//! Nothing else in the crate reads an environment variable. What a later consumer alone can judge
//! (the syntax of a schedule, of the retention and of the log filter) stays text here.

mod aws;
mod budget;
mod build;
mod database_url;
mod databases;
mod effective;
mod environment;
mod identity;
mod layers;
mod provider;
mod setting;
mod value;

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::num::NonZeroUsize;
use std::path::PathBuf;
use std::time::Duration;

use secrecy::SecretString;

pub(crate) use aws::is_loopback;
pub use budget::{Budget, Requests};
pub use build::read_tokens;
pub use databases::{DatabaseFile, DatabasePattern, DatabasePatterns};
pub use effective::{Effective, EffectiveValue};
pub use environment::{Environment, ProcessFacts};
pub use layers::Origin;
pub use provider::Provider;
pub use setting::{Kind, SETTINGS, Setting};

use crate::error::Result;

/// `config/default.toml`.
pub const DEFAULT_FILE: &str = include_str!("../../config/default.toml");

/// Where configuration comes from, beside the defaults.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file a flag names; without it `LIFEBOAT_CONFIG`, and without that none.
    pub file: Option<PathBuf>,
    /// The environment variables.
    pub environment: Environment,
    /// The values of flags by the key of their setting; items of a list are separated by commas.
    pub flags: BTreeMap<String, String>,
    /// Absolute; where relative paths start.
    pub current_directory: PathBuf,
}

/// Everything that can be configured, checked. `Debug` shows no secret.
#[derive(Debug, Clone)]
pub struct Config {
    /// The databases.
    pub databases: DatabasePatterns,
    /// Where backups are kept.
    pub storage: StorageChoice,
    /// The directory for backups when S3 is not used, absolute.
    pub fallback_directory: PathBuf,
    /// What the daemon may ask of a bucket in one day.
    pub budget: Budget,
    /// How snapshots are taken.
    pub backup: Backup,
    /// How much may wait while a bucket cannot be reached.
    pub spool: Spool,
    /// What happens between snapshots.
    pub capture: Capture,
    /// What happens before the application starts.
    pub restore: Restore,
    /// As whom the application runs, as `USER[:GROUP]`, not looked up; `None` is as ourselves.
    pub command_user: Option<String>,
    /// The HTTP interface.
    pub http: Http,
    /// What is kept, and when the rest goes.
    pub retention: Retention,
    /// When backups are proven.
    pub verify: Verify,
    /// What is logged.
    pub log: Log,
    /// What the platform says about this process.
    pub process: ProcessFacts,
}

/// Where backups are kept.
#[derive(Debug, Clone)]
pub enum StorageChoice {
    /// A bucket.
    S3(Box<S3>),
    /// A directory, absolute.
    Directory(PathBuf),
}

/// A bucket and how to speak to its store.
#[derive(Debug, Clone)]
pub struct S3 {
    /// Its name.
    pub bucket: String,
    /// Stands before every key, without slashes at its ends; may be empty.
    pub prefix: String,
    /// The region; always there with a role.
    pub region: Option<String>,
    /// The URL of a store that is not AWS; for the S3 client only, never for the token service.
    pub endpoint_url: Option<String>,
    /// Whose store it is.
    pub provider: Provider,
    /// Whether the bucket is named in the path; `None` leaves it to the provider.
    pub path_style: Option<bool>,
    /// How many parts of one upload are under way at a time.
    pub part_concurrency: NonZeroUsize,
    /// Who we are.
    pub credentials: Credentials,
}

/// How credentials for S3 are come by.
#[derive(Debug, Clone)]
pub struct Credentials {
    /// Who is meant.
    pub identity: Identity,
    /// The URL of the token service; `None` is that of the region.
    pub sts_endpoint_url: Option<String>,
}

/// Who we are to the store.
#[derive(Debug, Clone)]
pub enum Identity {
    /// A role.
    Role(Role),
    /// The key in the environment and nothing else.
    Key(Key),
    /// Whatever the SDK's default chain finds.
    Chain,
}

impl Credentials {
    /// The role to assume, if one is meant.
    pub fn role(&self) -> Option<&Role> {
        match &self.identity {
            Identity::Role(role) => Some(role),
            Identity::Key(_) | Identity::Chain => None,
        }
    }
}

/// A static key.
#[derive(Debug, Clone)]
pub struct Key {
    /// Its id; not a secret.
    pub id: String,
    /// Its secret half.
    pub secret: SecretString,
    /// What goes with a key that was made for a while.
    pub session_token: Option<SecretString>,
}

/// A role that is assumed with the machine's identity token.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Role {
    /// Its ARN.
    pub arn: String,
    /// What the session is called.
    pub session_name: String,
    /// The machine's socket, absolute.
    pub machine_socket: Option<PathBuf>,
    /// The file that holds the identity token, absolute.
    pub web_identity_token_file: Option<PathBuf>,
    /// For how long a socket or a file that is to be there is waited for; zero where nobody said that a token comes.
    pub token_wait: Duration,
    /// For how long credentials are asked for.
    pub session_duration: Duration,
}

/// How snapshots are taken.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backup {
    /// When, in cron's five fields, UTC, unchecked; `None` for no schedule.
    pub schedule: Option<String>,
    /// The same for a database between whose snapshots nothing is captured.
    pub uncaptured_schedule: Option<String>,
    /// Whether a last one is taken on the way out.
    pub on_shutdown: bool,
    /// How long that last one may take.
    pub shutdown_deadline: Duration,
    /// How long any other may take.
    pub deadline: Duration,
    /// How long to wait for a lock of the application.
    pub busy_timeout: Duration,
    /// By how much the write-ahead log may grow meanwhile, in bytes.
    pub wal_growth_bytes_max: u64,
    /// For how long writers may be kept waiting; only matters without a write-ahead log.
    pub writer_blocked_max: Duration,
    /// The zstd level, one of [`crate::snapshot::LEVELS`].
    pub zstd_level: i32,
    /// How many threads compress; `None` is one per core.
    pub threads: Option<NonZeroUsize>,
}

/// What happens between snapshots.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Capture {
    /// Whether what is committed is stored as deltas.
    pub on: bool,
    /// At most one delta is stored in this time.
    pub interval: Duration,
    /// How far back any moment can be restored.
    pub point_in_time: Duration,
}

/// How much may wait, of one database, while a bucket cannot be reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Spool {
    /// In bytes; 0 for nothing.
    pub bytes_max: u64,
    /// How old it may become.
    pub age_max: Duration,
}

/// What happens before the application starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Restore {
    /// When the newest snapshot is restored.
    pub on_boot: RestoreOnBoot,
    /// Whether the application may start with no database when there is no snapshot.
    pub allow_empty: bool,
    /// How many databases that restores replaced are kept, for each one.
    pub keep_replaced: NonZeroUsize,
    /// How long a restore waits for the process that publishes to stop in order.
    pub handover_wait: Duration,
}

/// When a start restores the newest snapshot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RestoreOnBoot {
    /// Never.
    Never,
    /// Where the database is absent.
    IfMissing,
    /// In any case.
    Always,
}

/// The HTTP interface.
#[derive(Debug, Clone)]
pub struct Http {
    /// Where it listens; `None` for nowhere.
    pub addr: Option<SocketAddr>,
    /// The bearer tokens, each at least 16 characters; none, one, or two while callers change.
    pub tokens: Vec<SecretString>,
    /// The file they were read from, absolute; see [`read_tokens`].
    pub token_file: Option<PathBuf>,
    /// How many connections may be open.
    pub connections_max: usize,
    /// Host names in lower case, without port, beside loopback names and the address itself.
    pub allowed_hosts: Vec<String>,
}

/// What is kept, and when the rest goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retention {
    /// The policy, unchecked.
    pub keep: String,
    /// What is younger is never deleted.
    pub safety_age: Duration,
    /// When pruning is due, in cron's five fields, UTC, unchecked; `None` for never.
    pub prune_schedule: Option<String>,
}

/// When backups are proven.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verify {
    /// When a drill is due, in cron's five fields, UTC, unchecked; `None` for never.
    pub schedule: Option<String>,
    /// Within which time each snapshot is proven, and proven again.
    pub within: Duration,
    /// One SELECT that must say yes of every restored copy; not checked beyond its first word.
    pub sql: Option<String>,
    /// How long SQLite may look at one restored copy.
    pub check_deadline: Duration,
    /// How old the newest snapshot may become; `None` is until three schedules were missed.
    pub max_age: Option<Duration>,
}

/// What is logged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Log {
    /// In which form.
    pub format: LogFormat,
    /// The filter's text, unchecked.
    pub level: String,
}

/// The form of a log line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Merges and checks all layers; every error is of kind `Config`.
    ///
    /// Reads the configuration file and the token file, and nothing else.
    pub fn load(sources: &Sources) -> Result<(Config, Effective)> {
        let values = layers::Values::layered(sources)?;
        let config = build::config(&values, sources)?;
        let effective = Effective::of(&values, &config);
        Ok((config, effective))
    }
}

#[cfg(test)]
mod tests;
