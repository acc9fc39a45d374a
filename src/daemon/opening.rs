//! Reaching storage and starting workers, without the application waiting for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use backon::{ExponentialBuilder, Retryable};
use jiff::SignedDuration;
use tokio::sync::{OnceCell, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::catalog::{Catalog, NewestDrills};
use crate::clock::Clock;
use crate::config::{Config, DatabaseFile};
use crate::credentials::Session;
use crate::descent::{Descent, Judged, Traces};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::lineage::{Standing, Verdict};
use crate::metrics::Metrics;
use crate::retention::Policy;
use crate::setup;
use crate::snapshot::DatabaseName;
use crate::spool::{Asked, Published, Spool, Taken};
use crate::storage::Storage;
use crate::worker::{self, Answer, AtStart, Fallback, Fleet, Member, Perform};

/// What is needed to start workers.
pub(super) struct Opener {
    pub config: Config,
    pub clock: Clock,
    databases: usize,
    policy: Policy,
    metrics: Metrics,
    session: Option<Session>,
    storage: OnceCell<Arc<dyn Storage>>,
    /// What each database showed before the application started.
    traces: Mutex<HashMap<DatabaseName, Traces>>,
    /// How many databases are worked on at once.
    turns: Arc<Semaphore>,
    stop: CancellationToken,
}

/// Databases worked on at once: each takes memory and threads of its own, and scratch space.
const JOBS_AT_ONCE: usize = 2;

/// Uploads and files that a process of ours began this long ago and never finished are nobody's.
const UNFINISHED_AGE: SignedDuration = SignedDuration::from_hours(24);

/// How long a start waits for storage to say what the newest snapshot is.
const STORAGE_WAIT: Duration = Duration::from_secs(3);

/// How long it waits in all: for the other records, and for the database to be read where it has to be.
const TRACE_WAIT: Duration = Duration::from_secs(30);

impl Opener {
    pub fn new(
        config: Config,
        databases: usize,
        session: Option<Session>,
        metrics: Metrics,
        clock: Clock,
        stop: CancellationToken,
    ) -> Result<Opener> {
        let policy = setup::policy(&config)?;
        Ok(Opener {
            config,
            clock,
            databases,
            policy,
            metrics,
            session,
            storage: OnceCell::new(),
            traces: Mutex::default(),
            turns: Arc::new(Semaphore::new(JOBS_AT_ONCE)),
            stop,
        })
    }

    /// The storage; connected at the first call that succeeds, then shared.
    async fn storage(&self) -> Result<Arc<dyn Storage>> {
        let session = self.session.as_ref();
        let connect = async || {
            let opened = setup::storage_for_writing(&self.config, session, self.metrics.storage()).await?;
            let (clock, metrics) = (&self.clock, self.metrics.budget());
            Ok(setup::within_budget(&self.config, self.databases, opened, clock, metrics))
        };
        self.storage.get_or_try_init(connect).await.cloned()
    }

    /// The storage, for reading: nothing is written to learn what it honours.
    pub fn storage_to_read(&self) -> Result<Arc<dyn Storage>> {
        setup::storage(&self.config, self.session.as_ref(), self.metrics.storage())
    }

    /// The file of `database` and what this machine noted of it.
    pub fn descent(&self, database: &DatabaseFile) -> Descent {
        Descent::of(&database.name, &database.path, &setup::scratch(&self.config))
    }

    /// Takes the traces of where a database comes from, while nobody writes to it yet.
    ///
    /// Storage is asked, but not waited for: what it would have told is then not known.
    pub async fn trace(&self, database: &DatabaseFile) {
        let descent = self.descent(database);
        let mut traces = descent.traces();
        let compare = async {
            let catalog = setup::catalog(&self.storage_to_read()?, &database.name);
            tokio::time::timeout(STORAGE_WAIT, catalog.newest_id()).await.map_err(|_| out_of_reach())??;
            let limits = setup::backup_settings(&self.config).limits(&self.stop);
            descent.compare(&catalog, &mut traces, limits).await
        };
        let compared =
            tokio::time::timeout(TRACE_WAIT, compare).await.unwrap_or_else(|_| Err(out_of_reach()));
        if let Err(error) = compared {
            tracing::info!(database = %database.name, "{} is not compared with its backups: {}", database.name, error.chain());
        }
        self.traces().insert(database.name.clone(), traces);
    }

    fn traces(&self) -> std::sync::MutexGuard<'_, HashMap<DatabaseName, Traces>> {
        self.traces.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As whom this process publishes: it claims the head, or a branch.
    async fn stand(&self, catalog: &Catalog, database: &DatabaseFile) -> Result<Standing> {
        let traces = self.traces().get(&database.name).cloned().unwrap_or_default();
        let (holder, now) = (self.holder(), self.clock.now());
        let Judged { verdict, newest } = self.descent(database).judge(catalog, &traces).await?;
        match verdict {
            Verdict::Older(fork) => {
                let epoch = catalog.claim_branch(&holder, now).await?;
                tracing::error!(
                    database = %database.name, epoch,
                    "the backups of {} form a branch and are not the newest: {fork}", database.name
                );
                return Ok(Standing { epoch, fork: Some(fork) });
            }
            Verdict::Unknown => tracing::warn!(
                database = %database.name,
                "whether {} descends from the newest snapshot is not known; it is taken to", database.name
            ),
            Verdict::Descends => {}
        }
        Ok(Standing::head(catalog.claim_epoch_after(newest.as_ref(), &holder, now).await?))
    }

    /// Starts a worker for every database, each as soon as storage lets it.
    pub fn open_all(self: &Arc<Self>, fleet: &Fleet, tasks: &TaskTracker) {
        for index in 0..fleet.members().len() {
            let (this, fleet, tasks) = (Arc::clone(self), fleet.clone(), tasks.clone());
            let workers = tasks.clone();
            tasks.spawn(async move {
                let member = &fleet.members()[index];
                let open = || this.open(member, &workers);
                let mut is_first = true;
                let opened = open.retry(waits()).notify(|error: &Error, wait: Duration| {
                    member.not_yet(error);
                    if std::mem::take(&mut is_first) {
                        let (this, fleet) = (Arc::clone(&this), fleet.clone());
                        workers.spawn(async move { this.spool_due(&fleet.members()[index]).await });
                    }
                    tracing::error!(
                        database = %member.database.name, wait_ms = wait.as_millis() as u64,
                        "no backups of {} yet, trying again: {}", member.database.name, error.chain()
                    );
                });
                tokio::select! {
                    opened = opened => match opened {
                        Ok(()) => {}
                        Err(error) => member.not_yet(&error),
                    },
                    () = this.stop.cancelled() => {}
                }
            });
        }
    }

    async fn open(&self, member: &Member, workers: &TaskTracker) -> Result<()> {
        let database = &member.database;
        let storage = self.storage().await?;
        let catalog = setup::catalog(&storage, &database.name);
        let now = self.clock.now();
        match storage.sweep_unfinished(now - UNFINISHED_AGE).await {
            Ok(0) => {}
            Ok(count) => tracing::info!(count, "removed {count} unfinished writes of earlier processes"),
            Err(error) if error.kind() == ErrorKind::Denied => {}
            Err(error) => return Err(error),
        }
        if let Some(spool) = member.spool()
            && let Err(error) = spool.sweep(now - UNFINISHED_AGE).await
        {
            tracing::warn!(database = %database.name, "the spool is not swept: {}", error.chain());
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
        let standing = self.stand(&catalog, database).await?;
        let metrics = self.metrics.database(&database.name);
        metrics.started(standing.epoch, standing.fork.is_some());
        newest.iter().for_each(|newest| metrics.stored(newest));
        drills.latest.iter().for_each(|proof| metrics.proven(proof));
        let (epoch, newest_id) = (standing.epoch, newest.as_ref().map(|newest| newest.id.to_string()));
        let perform = Perform {
            database: database.clone(),
            catalog,
            standing: Mutex::new(standing),
            holder: self.holder(),
            settings: setup::backup_settings(&self.config),
            policy: self.policy.clone(),
            point_in_time: self.config.capture.point_in_time,
            safety_age: self.config.retention.safety_age,
            clock: self.clock.clone(),
            metrics,
            checks: setup::checks(&self.config),
            at_start: AtStart { newest, drills, damage },
            memory: Mutex::default(),
            fallback: member.spool().map(|spool| self.fallback(spool)).unwrap_or_default(),
            turns: Arc::clone(&self.turns),
            capture: Arc::default(),
        };
        let (handle, worker) = worker::prepare(perform, self.clock.clone(), self.stop.clone());
        workers.spawn(worker);
        // Whoever waits for this line may ask the worker then.
        member.opened(handle);
        tracing::info!(
            database = %database.name, path = %database.path.display(), storage = storage.location(), epoch,
            newest = newest_id, "backing up {} to {}", database.name, storage.location()
        );
        Ok(())
    }

    fn fallback(&self, spool: &Spool) -> Fallback {
        Fallback::new(spool.clone(), self.config.backup.shutdown_deadline)
    }

    /// Gives a database its spool, if there is one.
    pub async fn give_spool(&self, member: &Member) {
        let name = &member.database.name;
        if let Some(spool) = setup::spool(&self.config, name, &self.clock, self.metrics.database(name)) {
            spool.look().await;
            if let Some(error) = spool.state().error {
                tracing::error!(database = %name, "there is no spool for {name}: {error}");
            }
            member.give_spool(spool);
        }
    }

    /// Takes what is due into the spool, while storage was never reached and there is no worker yet. Says
    /// in the log what came of it.
    pub async fn spool_due(&self, member: &Member) {
        let spool = member.spool().filter(|spool| spool.is_on());
        let (Some(outage), Some(spool)) = (member.outage(), spool) else { return };
        match self.spool_one(member, spool, &outage).await {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) => {
                let name = &member.database.name;
                tracing::error!(database = %name, "failed to spool {name}: {}", error.chain());
            }
        }
    }

    /// Takes a snapshot into the spool, for storage was not reached because of `outage`.
    pub async fn spool_one(&self, member: &Member, spool: &Spool, outage: &Error) -> Result<()> {
        let database = &member.database;
        spool.note_outage(outage);
        let _turn =
            self.turns.acquire().await.context(ErrorKind::Internal, || "wait for a turn".to_owned())?;
        let noted = self.descent(database).noted();
        let published = Published {
            database_id: noted.as_ref().map(|(database_id, _)| database_id.clone()),
            newest: noted.as_ref().map(|(_, known)| known.snapshot.clone()),
            manifest: None,
        };
        let asked = Asked {
            path: &database.path,
            settings: &setup::backup_settings(&self.config),
            published,
            // None is claimed without storage.
            epoch: 0,
            is_branch: noted.is_some_and(|(_, known)| known.is_branch),
            trusts_stamps: true,
            cancel: &self.stop,
            on_progress: Arc::new(|_| {}),
        };
        if let Taken::Waits(manifest) = spool.take(asked).await? {
            tracing::error!(
                database = %database.name, snapshot = %manifest.id,
                "snapshot {} of {} waits in the spool, for storage cannot be reached: {}",
                manifest.id, database.name, outage.chain()
            );
        }
        Ok(())
    }

    /// Who claims the epoch, for people who look at the record.
    fn holder(&self) -> String {
        format!("{} pid {}", self.config.process.machine(), std::process::id())
    }
}

fn out_of_reach() -> Error {
    Error::new(ErrorKind::Unavailable, "storage did not answer in time")
}

fn waits() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(60))
        .without_max_times()
}
