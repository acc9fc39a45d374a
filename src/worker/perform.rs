//! Doing a job: the verbs, with what one database needs for them.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OnceCell, Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use super::fallback::Fallback;
use super::job::{Answer, Job, Reason, Report};
use super::status::Status;
use crate::backup::{self, Outcome};
use crate::capture::Capture;
use crate::catalog::{Catalog, NewestDrills};
use crate::clock::Clock;
use crate::config::DatabaseFile;
use crate::descent::{Descent, Traces};
use crate::error::{Error, ErrorKind, Result};
use crate::lineage::{Fork, Standing, Verdict};
use crate::metrics::DatabaseMetrics;
use crate::prune;
use crate::restore::{self, Checks, Resources, Restored};
use crate::retention::Policy;
use crate::snapshot::{DatabaseName, Flag, Manifest, Proof, SnapshotId};
use crate::source::{Fingerprint, OnProgress, Source};
use crate::spool;
use crate::storage;
use crate::verify;

/// Which snapshot to prove.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum VerifyTarget {
    /// The newest.
    Newest,
    /// This one.
    Snapshot(SnapshotId),
}

/// One database, where its backups go, and how it is treated.
pub struct Perform {
    /// The database: name in storage and path.
    pub database: DatabaseFile,
    /// Its backups.
    pub catalog: Catalog,
    /// As whom this process publishes. A branch whose side was adopted becomes head.
    pub standing: Mutex<Standing>,
    /// Who claims the epoch then, for people.
    pub holder: String,
    /// How snapshots are taken.
    pub settings: backup::Settings,
    /// What is kept.
    pub policy: Policy,
    /// How far back any moment can be restored.
    pub point_in_time: Duration,
    /// What is younger is never deleted.
    pub safety_age: Duration,
    /// How restored copies are checked.
    pub checks: Checks,
    /// The time.
    pub clock: Clock,
    /// Where numbers go.
    pub metrics: DatabaseMetrics,
    /// What storage held when this process started.
    pub at_start: AtStart,
    /// Shared by all databases of the process: how many are worked on at once.
    pub turns: Arc<Semaphore>,
    /// What one job leaves for the next.
    pub memory: Mutex<Memory>,
    /// Where snapshots wait while storage cannot be reached.
    pub fallback: Fallback,
    /// What follows the database between its snapshots, once it has begun.
    pub capture: Arc<OnceCell<Arc<Capture>>>,
}

/// What storage held when this process started.
#[derive(Debug, Default)]
pub struct AtStart {
    /// The newest snapshot, if it can be read.
    pub newest: Option<Manifest>,
    /// What drills said of the newest snapshots.
    pub drills: NewestDrills,
    /// Why the newest snapshot cannot be read.
    pub damage: Option<Answer>,
}

/// What a worker remembers between jobs; forgotten with the process, which costs one more look.
#[derive(Debug, Default)]
pub struct Memory {
    /// The database file as it was when its content was last known to be in this snapshot.
    stored: Option<(Fingerprint, Box<Manifest>)>,
    /// A snapshot that could not be restored: whatever it claims to hold is stored anew.
    distrusted: Option<SnapshotId>,
    /// What the last drill found, if it failed; on its way to the status.
    refuted: Option<Proof>,
}

impl Perform {
    /// What a drill that just ended found, if it failed.
    pub(super) fn take_refuted(&self) -> Option<Proof> {
        self.memory().refuted.take()
    }

    pub(super) fn database(&self) -> &DatabaseName {
        &self.database.name
    }

    pub(super) fn first_status(&self) -> Status {
        Status::new(self.catalog.storage().location(), &self.at_start, self.standing().fork)
    }

    /// As whom this process publishes now.
    pub(super) fn standing(&self) -> Standing {
        self.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn descent(&self) -> Descent {
        Descent::of(self.database(), &self.database.path, &self.settings.scratch)
    }

    /// Waits until few enough databases are worked on; the turn ends when it is dropped.
    pub(super) async fn turn(&self, cancel: &CancellationToken) -> Result<SemaphorePermit<'_>> {
        let closed = || Error::new(ErrorKind::Internal, "nobody gives out turns any more");
        tokio::select! {
            turn = self.turns.acquire() => turn.map_err(|error| closed().because(error)),
            () = cancel.cancelled() => Err(Error::cancelled()),
        }
    }

    /// Does one job. A restore, and what would be lost with this process, heed no budget.
    pub(super) async fn perform(
        &self,
        job: &Job,
        reason: Reason,
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Report> {
        let work = async {
            let work = self.act(job, reason, cancel, on_progress);
            match job {
                // A backup has the spool to turn to, and a restore is not left in the middle.
                Job::Backup { .. } | Job::Restore { .. } => work.await,
                // With it, the last delta is all that is left to do.
                Job::Capture => self.while_there_is_time(work).await,
                // Left anywhere, they lose nothing, and the next one does it.
                Job::Verify { .. } | Job::Prune | Job::Ship => self.unless_leaving(work).await,
            }
        };
        match (job, reason) {
            (Job::Restore { .. }, _) | (_, Reason::Shutdown) => storage::regardless_of_budget(work).await,
            _ => work.await,
        }
    }

    async fn act(
        &self,
        job: &Job,
        reason: Reason,
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Report> {
        match job {
            Job::Backup { accept_shrunken } => {
                self.back_up(*accept_shrunken, reason, cancel, on_progress).await
            }
            Job::Verify { target } => self.verify(target, cancel, on_progress).await.map(Report::Verify),
            Job::Prune => self.prune().await.map(Report::Prune),
            Job::Ship => self.ship(cancel).await.map(Report::Ship),
            Job::Capture => self.catch_up(cancel).await,
            Job::Restore { target } => self.restore(target, cancel, on_progress).await.map(Report::Restore),
        }
    }

    /// Tells the metrics how a job ended.
    pub(super) fn record(&self, job: &Job, result: &Result<Report>) {
        let failure = match result {
            Ok(Report::Spooled(spooled)) => Some(spooled.outage.kind),
            result => result.as_ref().err().map(Error::kind),
        };
        self.metrics.job_ended(job.name(), failure);
        match result {
            Ok(Report::Backup(Outcome::Stored(manifest))) => self.metrics.stored(manifest),
            Ok(Report::Backup(Outcome::Unchanged(_))) => self.metrics.unchanged(self.clock.now()),
            Ok(Report::Verify(Some(proof))) => self.metrics.proven(proof),
            _ => {}
        }
    }

    /// Backs up to storage, and releases the epoch after the last snapshot.
    pub(super) async fn back_up_to_storage(
        &self,
        accept_shrunken: bool,
        reason: Reason,
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Outcome> {
        let mut standing = self.standing();
        if let Some(fork) = &standing.fork {
            standing = self.rejoin(standing.epoch, fork).await?;
        }
        let outcome = self.store(&standing, accept_shrunken, reason, cancel, on_progress).await?;
        if let Some(fork) = standing.fork {
            let from = Some(outcome.manifest().id.clone());
            self.stand(Standing { fork: Some(Fork { from, ..fork }), ..standing });
        } else if reason == Reason::Shutdown {
            self.release(standing.epoch).await;
        }
        Ok(outcome)
    }

    pub(super) fn stand(&self, standing: Standing) {
        *self.standing.lock().unwrap_or_else(PoisonError::into_inner) = standing;
    }

    /// Where a branch stands now: its side may have been adopted, or the newest snapshot restored here.
    pub(super) async fn rejoin(&self, epoch: u64, fork: &Fork) -> Result<Standing> {
        let judged = self.descent().judge(&self.catalog, &Traces::default()).await?;
        let standing = match judged.verdict {
            Verdict::Descends => {
                let newest = judged.newest.as_ref();
                let epoch = self.catalog.claim_epoch_after(newest, &self.holder, self.clock.now()).await?;
                self.metrics.started(epoch, false);
                *self.memory() = Memory::default();
                tracing::info!(database = %self.database(), epoch, "{} is no branch any more", self.database());
                Standing::head(epoch)
            }
            Verdict::Older(Fork { newest, .. }) => {
                Standing { epoch, fork: Some(Fork { newest, ..fork.clone() }) }
            }
            Verdict::Unknown => Standing { epoch, fork: Some(fork.clone()) },
        };
        self.stand(standing.clone());
        Ok(standing)
    }

    /// After the last snapshot: whoever waits for it need not wait longer.
    pub(super) async fn release(&self, epoch: u64) {
        let database = self.database();
        match self.catalog.release_epoch(epoch, self.clock.now()).await {
            Ok(()) => tracing::info!(%database, epoch, "released epoch {epoch} of {database}"),
            Err(error) => {
                tracing::warn!(%database, epoch, "epoch {epoch} of {database} is not released: {}", error.chain());
            }
        }
    }

    async fn store(
        &self,
        standing: &Standing,
        accept_shrunken: bool,
        reason: Reason,
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Outcome> {
        let source = Source::locate(&self.database.path)?;
        // Taken before the transaction: what is written in between is seen as a change next time.
        let state = source.fingerprint();
        let distrusted = {
            let memory = self.memory();
            let wants_anchor = self.follower().is_some_and(|follower| follower.wants_anchor());
            if reason != Reason::Request
                && !wants_anchor
                && let Some((stored, manifest)) = &memory.stored
                && state.shows_no_write_since(stored)
            {
                return Ok(Outcome::Unchanged(manifest.clone()));
            }
            memory.distrusted.clone()
        };
        let settings = backup::Settings { distrusted, accept_shrunken, ..self.settings.clone() };
        let work = backup::Work {
            database: self.database(),
            path: &self.database.path,
            settings: &settings,
            clock: &self.clock,
            cancel,
            on_progress,
            follower: self.follower(),
        };
        let outcome = backup::run(&self.catalog, standing, work).await?;
        self.fallback.published(outcome.manifest());
        if let Some(capture) = self.capture.get() {
            capture.merging().rests_on(outcome.manifest());
        }
        // What looks wrong is looked at again each time: somebody else may have said that it is meant.
        let stored = Some((state, Box::new(outcome.manifest().clone())))
            .filter(|(_, manifest)| manifest.flags.iter().all(|flag| *flag == Flag::Branch));
        *self.memory() = Memory { stored, ..Memory::default() };
        Ok(outcome)
    }

    async fn verify(
        &self,
        target: &VerifyTarget,
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Option<Proof>> {
        let manifest = match target {
            VerifyTarget::Newest => self.catalog.newest().await?,
            VerifyTarget::Snapshot(id) => Some(self.catalog.manifest(id).await?),
        };
        let Some(manifest) = manifest else { return Ok(None) };
        let resources = self.resources(on_progress);
        let proven = tokio::select! {
            proof = verify::run(&self.catalog, &manifest, &resources) => proof,
            () = cancel.cancelled() => Err(verify::Failure {
                error: Error::cancelled(), verdict: None, is_as_stored: true
            }),
        };
        proven.map(Some).map_err(|failure| {
            self.refute(failure.verdict, failure.is_as_stored);
            failure.error
        })
    }

    /// Remembers what a drill found, if it failed.
    pub(super) fn refute(&self, verdict: Option<Proof>, is_as_stored: bool) {
        let mut memory = self.memory();
        if let (Some(verdict), false) = (&verdict, is_as_stored) {
            // If it is the newest, "unchanged" would point at what cannot be restored.
            *memory = Memory { distrusted: Some(verdict.snapshot.clone()), ..Memory::default() };
        }
        memory.refuted = verdict;
    }

    /// The snapshot of which a drill found that storage does not hold it.
    pub(super) fn distrusted(&self) -> Option<SnapshotId> {
        self.memory().distrusted.clone()
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Replaces the open database's content; what it holds now is stored first, so that nothing
    /// committed since the last snapshot is lost by a restore that was asked for in error.
    async fn restore(
        &self,
        target: &restore::Target,
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Restored> {
        let found = spool::find(target, &self.catalog, self.fallback.spool()).await?;
        let storage = Arc::clone(&found.storage);
        let resources = Resources { storage, ..self.resources(on_progress) };
        let overwriting = restore::prepare_online(&resources, &found.moment, &self.database.path).await?;
        // As late as can be: what is committed after this is lost with what it was added to.
        let quiet: OnProgress = Arc::new(|_| {});
        self.back_up(false, Reason::Request, cancel, quiet).await.map_err(|error| {
            let message = "store the database as it is before it is replaced; nothing was changed";
            Error::new(error.kind(), message).because(error)
        })?;
        let newest = match self.catalog.newest_id().await {
            // It goes on from what was noted before, whatever it holds now.
            Err(error) if found.is_spooled() && spool::is_outage(&error) => None,
            newest => Some(newest?),
        };
        let restored = overwriting.carry_out(self.settings.limits(cancel)).await?;
        match (newest, self.standing().fork) {
            (None, _) => {}
            (Some(newest), None) => self.descent().overwritten(found.manifest(), newest.as_ref()),
            (Some(newest), Some(_)) => found.note_restored(&self.descent(), newest.as_ref()),
        }
        Ok(restored)
    }

    async fn prune(&self) -> Result<prune::Report> {
        let Standing { epoch, fork } = self.standing();
        if let Some(fork) = fork {
            return Err(Error::new(ErrorKind::Conflict, format!("prune nothing, for {fork}")));
        }
        let now = self.clock.now();
        let Perform { policy, point_in_time, safety_age, .. } = self;
        let rules = prune::Rules { policy, point_in_time: *point_in_time, safety_age: *safety_age };
        let plan = prune::plan(&self.catalog, rules, now).await?;
        let (report, ended) = prune::apply(&self.catalog, &plan, epoch).await;
        if ended.is_err() {
            let database = self.database();
            tracing::warn!(%database, "the prune of {database} ended early: {}", report.summary());
        }
        ended.map(|()| report)
    }

    pub(super) fn resources(&self, on_progress: OnProgress) -> Resources {
        Resources {
            storage: self.catalog.storage().clone(),
            scratch: self.settings.scratch.clone(),
            threads: self.settings.threads,
            checks: self.checks.clone(),
            clock: self.clock.clone(),
            on_progress,
        }
    }
}
