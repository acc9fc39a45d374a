//! Backups while storage cannot be reached: they wait in the spool, and are shipped before anything newer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use serde::Serialize;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::job::{Answer, Reason, Report};
use super::perform::Perform;
use crate::backup;
use crate::error::{Error, ErrorKind, Result};
use crate::lineage::{Fork, Standing};
use crate::snapshot::{Manifest, SnapshotId};
use crate::source::OnProgress;
use crate::spool::{self, Asked, Destination, Published, Shipped, Spool, Taken};

/// A backup that waits in the spool.
#[derive(Debug, Clone, Serialize)]
pub struct Spooled {
    /// Always `spooled`.
    outcome: &'static str,
    /// The snapshot that waits and holds the database.
    pub snapshot: Box<Manifest>,
    /// What storage said.
    #[serde(skip)]
    pub outage: Answer,
}

/// What was shipped from the spool.
#[derive(Debug, Clone, Serialize)]
pub struct Shipments {
    /// The snapshots that are in storage now, in the order in which they were taken.
    pub shipped: Vec<SnapshotId>,
}

/// Where snapshots wait, and what is to be remembered of storage while it cannot be asked.
#[derive(Default)]
pub struct Fallback {
    spool: Option<Spool>,
    /// How long the last backup before a stop may take in all.
    shutdown_deadline: Duration,
    /// The newest snapshot of this database that is known to be in storage.
    newest: Mutex<Option<Box<Manifest>>>,
    /// What was shipped, on its way to the status.
    shipped: Mutex<Vec<Shipped>>,
    /// Whether the last backup was asked for.
    is_leaving: watch::Sender<bool>,
    /// Since then: how long storage is waited for at most.
    remote_until: watch::Sender<Option<Instant>>,
}

/// How long storage may take to answer before what is due is spooled, while something waits there already.
const ANSWER_WAIT: Duration = Duration::from_secs(5);

impl Fallback {
    /// What is due waits in `spool`; the last backup before a stop may take `shutdown_deadline` in all.
    pub fn new(spool: Spool, shutdown_deadline: Duration) -> Fallback {
        Fallback { spool: Some(spool), shutdown_deadline, ..Fallback::default() }
    }

    pub(super) fn spool(&self) -> Option<&Spool> {
        self.spool.as_ref()
    }

    /// Remembers that storage holds `manifest`, taken of this database.
    pub(super) fn published(&self, manifest: &Manifest) {
        *lock(&self.newest) = Some(Box::new(manifest.clone()));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Perform {
    /// Backs up to storage, what waits first; to the spool, if storage cannot be reached.
    pub(super) async fn back_up(
        &self,
        accept_shrunken: bool,
        reason: Reason,
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Report> {
        if reason == Reason::Shutdown
            && let Some(captured) = self.last_delta().await
        {
            return Ok(Report::Capture(captured));
        }
        let progress = Arc::clone(&on_progress);
        let to_storage = async {
            if self.fallback.spool().is_some_and(|spool| spool.state().has_to_ship()) {
                self.require_answer().await?;
                self.ship_first(cancel).await?;
            }
            self.back_up_to_storage(accept_shrunken, reason, cancel, progress).await
        };
        let Some(spool) = self.fallback.spool() else { return to_storage.await.map(Report::Backup) };
        match self.while_there_is_time(to_storage).await {
            Err(outage) if spool::is_outage(&outage) && spool.is_on() => {
                self.spool(spool, outage, (accept_shrunken, reason), cancel, on_progress).await
            }
            Err(error) => Err(error),
            Ok(outcome) => {
                spool.note_answer().await;
                Ok(Report::Backup(outcome))
            }
        }
    }

    /// Somebody waits for the last backup: what can be done later ends, and storage is given up in time for the spool.
    pub(super) fn hurry(&self) {
        self.fallback.is_leaving.send_replace(true);
        if self.fallback.spool().is_some_and(Spool::is_on) {
            let half = self.fallback.shutdown_deadline / 2;
            self.fallback.remote_until.send_replace(Some(Instant::now() + half));
        }
    }

    /// What was shipped since this was last asked.
    pub(super) fn take_shipped(&self) -> Vec<Shipped> {
        std::mem::take(&mut lock(&self.fallback.shipped))
    }

    /// `Cancelled` once somebody waits for the last backup.
    pub(super) async fn unless_leaving<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut is_leaving = self.fallback.is_leaving.subscribe();
        tokio::select! {
            done = work => done,
            // The sender is this worker's own.
            _ = is_leaving.wait_for(|is_leaving| *is_leaving) => {
                Err(Error::new(ErrorKind::Cancelled, "it made way for the last backup"))
            }
        }
    }

    /// `Unavailable` once storage has to be given up in favour of the spool.
    pub(super) async fn while_there_is_time<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut remote_until = self.fallback.remote_until.subscribe();
        let no_time = async {
            // The sender is this worker's own.
            let until = remote_until.wait_for(Option::is_some).await.ok().and_then(|until| *until);
            match until {
                Some(until) => tokio::time::sleep_until(until).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            done = work => done,
            () = no_time => Err(Error::new(
                ErrorKind::Unavailable,
                "storage took more than half of the time there is before the stop (backup.shutdown_deadline)",
            )),
        }
    }

    /// Whether storage answers at all: what is due is not kept waiting for it a second time.
    async fn require_answer(&self) -> Result<()> {
        let asked = tokio::time::timeout(ANSWER_WAIT, self.catalog.head()).await;
        asked.unwrap_or_else(|_| {
            Err(Error::new(ErrorKind::Unavailable, format!("storage did not answer within {ANSWER_WAIT:?}")))
        })?;
        Ok(())
    }

    async fn spool(
        &self,
        spool: &Spool,
        outage: Error,
        (accept_shrunken, reason): (bool, Reason),
        cancel: &CancellationToken,
        on_progress: OnProgress,
    ) -> Result<Report> {
        spool.note_outage(&outage);
        let settings = backup::Settings { accept_shrunken, ..self.settings.clone() };
        let standing = self.standing();
        let asked = Asked {
            path: &self.database.path,
            settings: &settings,
            published: self.known_of_storage(&standing),
            epoch: standing.epoch,
            is_branch: standing.fork.is_some(),
            trusts_stamps: reason != Reason::Request,
            cancel,
            on_progress,
        };
        match spool.take(asked).await {
            // Storage was asked and did not answer: whether it still holds that, nobody knows.
            Ok(Taken::Published(holds)) => {
                let message = format!(
                    "{}; nothing was spooled, for snapshot {} holds the database",
                    outage.chain(),
                    holds.id
                );
                Err(Error::new(outage.kind(), message))
            }
            Ok(Taken::Waits(snapshot)) => Ok(Report::Spooled(Spooled::new(snapshot, &outage))),
            Err(error) if error.kind() == ErrorKind::Cancelled => Err(error),
            Err(error) => {
                let message = format!("{}; nor could it be spooled", outage.chain());
                Err(Error::new(outage.kind(), message).because(error))
            }
        }
    }

    /// The newest snapshot that this database descends from, as far as this process knows.
    fn known_of_storage(&self, standing: &Standing) -> Published {
        let mut manifest =
            lock(&self.fallback.newest).clone().or_else(|| self.at_start.newest.clone().map(Box::new));
        let newest = match &standing.fork {
            Some(fork) => fork.from.clone(),
            None => manifest.as_ref().map(|manifest| manifest.id.clone()),
        };
        let noted = || self.descent().noted().map(|(database_id, _)| database_id);
        let database_id = manifest.as_ref().map(|manifest| manifest.database_id.clone()).or_else(noted);
        let distrusted = self.distrusted();
        manifest = manifest.filter(|manifest| Some(&manifest.id) == newest.as_ref() && newest != distrusted);
        Published { database_id, newest, manifest }
    }

    /// Ships what waits before something newer is stored. What keeps it here, unless it is storage, keeps no
    /// backup back: it can be shipped later, as an older one.
    async fn ship_first(&self, cancel: &CancellationToken) -> Result<()> {
        match self.ship(cancel).await {
            Ok(_) => Ok(()),
            Err(error) if spool::is_outage(&error) => Err(error),
            Err(error) if matches!(error.kind(), ErrorKind::Fenced | ErrorKind::Cancelled) => Err(error),
            Err(error) => {
                let database = self.database();
                tracing::error!(%database, "what waits in the spool of {database} is not shipped: {}", error.chain());
                Ok(())
            }
        }
    }

    /// Ships what waits, the oldest first.
    pub(super) async fn ship(&self, cancel: &CancellationToken) -> Result<Shipments> {
        let mut shipments = Shipments { shipped: Vec::new() };
        let Some(spool) = self.fallback.spool() else { return Ok(shipments) };
        let standing = self.standing();
        if let Some(fork) = &standing.fork {
            self.rejoin(standing.epoch, fork).await?;
        }
        while let Some(shipped) = self.ship_one(spool, cancel).await? {
            shipments.shipped.extend(shipped.manifest().map(|manifest| manifest.id.clone()));
            self.take_in(shipped);
        }
        Ok(shipments)
    }

    async fn ship_one(&self, spool: &Spool, cancel: &CancellationToken) -> Result<Option<Shipped>> {
        let destination = Destination {
            catalog: &self.catalog,
            standing: &self.standing(),
            holder: &self.holder,
            descent: &self.descent(),
            resources: &self.resources(Arc::new(|_| {})),
        };
        tokio::select! {
            shipped = spool.ship_next(&destination) => shipped,
            () = cancel.cancelled() => Err(Error::cancelled()),
        }
    }

    fn take_in(&self, shipped: Shipped) {
        if let Some(Manifest { id, .. }) = shipped.manifest() {
            let database = self.database();
            tracing::info!(%database, snapshot = %id, "shipped snapshot {id} of {database} from the spool");
        }
        let is_branch = self.standing().fork.is_some();
        if shipped.manifest().is_some_and(|manifest| manifest.is_branch() != is_branch) {
            // It left the line that this process goes on with, and says nothing of it.
            return;
        }
        match &shipped {
            Shipped::Stuck(verdict) => self.refute(verdict.clone(), false),
            Shipped::Proven(manifest, proof) => {
                self.metrics.proven(proof);
                self.take_in_manifest(manifest);
            }
            Shipped::Stored(manifest, failure) => {
                self.refute(failure.verdict.clone(), true);
                self.take_in_manifest(manifest);
            }
        }
        lock(&self.fallback.shipped).push(shipped);
    }

    fn take_in_manifest(&self, manifest: &Manifest) {
        let standing = self.standing();
        if let Some(fork) = standing.fork {
            let from = Some(manifest.id.clone());
            self.stand(Standing { fork: Some(Fork { from, ..fork }), ..standing });
        }
        let is_newest = lock(&self.fallback.newest).as_ref().is_none_or(|newest| newest.id < manifest.id);
        if is_newest {
            self.fallback.published(manifest);
            self.metrics.stored(manifest);
        }
    }
}

impl Spooled {
    fn new(snapshot: Box<Manifest>, outage: &Error) -> Spooled {
        Spooled { outcome: "spooled", snapshot, outage: Answer::from(outage) }
    }
}
