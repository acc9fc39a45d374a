//! Reaching storage and starting workers, without the application waiting for it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use jiff::SignedDuration;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::NewestDrills;
use crate::clock::Clock;
use crate::config::{Config, DatabaseFile};
use crate::credentials::Session;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::Metrics;
use crate::retention::Policy;
use crate::setup;
use crate::storage::Storage;
use crate::worker::{self, Answer, AtStart, Fleet, Handle, Perform};

/// What is needed to start workers.
pub(super) struct Opener {
    pub config: Config,
    pub clock: Clock,
    policy: Policy,
    metrics: Metrics,
    session: Option<Session>,
    storage: OnceCell<Arc<dyn Storage>>,
    /// How many databases are worked on at once.
    turns: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Databases worked on at once: each takes memory and threads of its own, and scratch space.
const JOBS_AT_ONCE: usize = 2;

/// Uploads and files that a process of ours began this long ago and never finished are nobody's.
const UNFINISHED_AGE: SignedDuration = SignedDuration::from_hours(24);

impl Opener {
    pub fn new(
        config: Config,
        session: Option<Session>,
        metrics: Metrics,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<Opener> {
        let policy = setup::policy(&config)?;
        Ok(Opener {
            config,
            clock,
            policy,
            metrics,
            session,
            storage: OnceCell::new(),
            turns: Arc::new(Semaphore::new(JOBS_AT_ONCE)),
            stop,
        })
    }

    /// The storage; connected at the first call that succeeds, then shared.
    async fn storage(&self) -> Result<Arc<dyn Storage>> {
        let session = self.session.as_ref();
        let connect = async || {
            let opened = setup::storage_for_writing(&self.config, session, self.metrics.storage()).await?;
            Ok(setup::within_budget(&self.config, opened, &self.clock, self.metrics.budget()))
        };
        self.storage.get_or_try_init(connect).await.cloned()
    }

    /// The storage, for reading: nothing is written to learn what it honours.
    pub fn storage_to_read(&self) -> Result<Arc<dyn Storage>> {
        setup::storage(&self.config, self.session.as_ref(), self.metrics.storage())
    }

    /// Starts a worker for every database, each as soon as storage lets it.
    pub fn open_all(self: &Arc<Self>, fleet: &Fleet, tasks: &TaskTracker) {
        for index in 0..fleet.members().len() {
            let (this, fleet, tasks) = (Arc::clone(self), fleet.clone(), tasks.clone());
            let workers = tasks.clone();
            tasks.spawn(async move {
                let member = &fleet.members()[index];
                let open = || this.open(&member.database, &workers);
                let opened = open.retry(waits()).notify(|error: &Error, wait: Duration| {
                    member.not_yet(error);
                    tracing::error!(
                        database = %member.database.name, wait_ms = wait.as_millis() as u64,
                        "no backups of {} yet, trying again: {}", member.database.name, error.chain()
                    );
                });
                tokio::select! {
                    opened = opened => match opened {
                        Ok(handle) => member.opened(handle),
                        Err(error) => member.not_yet(&error),
                    },
                    () = this.stop.cancelled() => {}
                }
            });
        }
    }

    async fn open(&self, database: &DatabaseFile, workers: &TaskTracker) -> Result<Handle> {
        let storage = self.storage().await?;
        let catalog = setup::catalog(&storage, &database.name);
        let now = self.clock.now();
        match storage.sweep_unfinished(now - UNFINISHED_AGE).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed {count} unfinished writes of earlier processes"),
            Err(error) if error.kind() == ErrorKind::Denied => {}
            Err(error) => return Err(error),
        }
        let (newest, damage) = match catalog.newest().await {
            // Whether it is damage or not, backups go on; the next one replaces it as the newest.
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::error!(database = %database.name, "the newest snapshot is damaged: {}", error.chain());
                (None, Some(Answer::from(&error)))
            }
            newest => (newest?, None),
        };
        let drills = match catalog.newest_drills().await {
            // What drills said cannot be listed; the next one says it again.
            Err(error) if error.kind() == ErrorKind::Denied => NewestDrills::default(),
            drills => drills?,
        };
        let epoch = catalog.claim_epoch(&self.holder(), now).await?;
        let metrics = self.metrics.database(&database.name);
        metrics.started(epoch);
        newest.iter().for_each(|newest| metrics.stored(newest));
        drills.latest.iter().for_each(|proof| metrics.proven(proof));
        tracing::info!(
            database = %database.name,
            path = %database.path.display(),
            storage = storage.location(),
            epoch,
            newest = newest.as_ref().map(|newest| newest.id.to_string()),
            "backing up {} to {}", database.name, storage.location()
        );
        let perform = Perform {
            database: database.clone(),
            catalog,
            epoch,
            settings: setup::backup_settings(&self.config),
            policy: self.policy.clone(),
            safety_age: self.config.retention.safety_age,
            clock: self.clock.clone(),
            metrics,
            checks: setup::checks(&self.config),
            at_start: AtStart { newest, drills, damage },
            memory: Mutex::default(),
            turns: Arc::clone(&self.turns),
        };
        let (handle, worker) = worker::prepare(perform, self.clock.clone(), self.stop.clone());
        workers.spawn(worker);
        Ok(handle)
    }

    /// Who claims the epoch, for people who look at the record.
    fn holder(&self) -> String {
        format!("{} pid {}", self.config.process.machine(), std::process::id())
    }
}

fn waits() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(60))
        .without_max_times()
}
