//! Jobs and what became of them.

use std::fmt;

use serde::Serialize;

use super::capturing::Captured;
use super::fallback::{Shipments, Spooled};
use super::perform::VerifyTarget;
use crate::backup::Outcome;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind};
use crate::prune;
use crate::restore::{Restored, Target};
use crate::snapshot::{DatabaseName, Proof};
use crate::source::Progress;

/// What a worker can be asked to do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Job {
    /// Take a snapshot.
    Backup {
        /// However small the database is, it is meant to be.
        accept_shrunken: bool,
    },
    /// Prove a snapshot.
    Verify {
        /// Which.
        target: VerifyTarget,
    },
    /// Remove what retention does not keep.
    Prune,
    /// Ship what waits in the spool.
    Ship,
    /// Bring the capture of what is committed to where it can go on.
    Capture,
    /// Replace the content of the open database.
    Restore {
        /// By this.
        target: Target,
    },
}

impl Job {
    /// The stable name used in metrics and logs.
    pub const fn name(&self) -> &'static str {
        match self {
            Job::Backup { .. } => "backup",
            Job::Verify { .. } => "verify",
            Job::Prune => "prune",
            Job::Ship => "ship",
            Job::Capture => "capture",
            Job::Restore { .. } => "restore",
        }
    }
}

/// Why a job was asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The schedule.
    Schedule,
    /// Somebody asked.
    Request,
    /// The daemon started and the database was overdue.
    Startup,
    /// The daemon is about to stop.
    Shutdown,
    /// A job before it made it necessary.
    FollowUp,
}

/// A job's number, unique within one daemon's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct JobId(pub u64);

impl fmt::Display for JobId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// What a job that ended well has to say.
#[derive(Debug, Clone, Serialize)]
#[serde(untagged)]
pub enum Report {
    /// A backup that storage holds.
    Backup(Outcome),
    /// A backup that waits for storage.
    Spooled(Spooled),
    /// What was shipped from the spool.
    Ship(Shipments),
    /// A proof; `None` if there was nothing to prove.
    Verify(Option<Proof>),
    /// A prune.
    Prune(prune::Report),
    /// Deltas are stored up to there.
    Capture(Captured),
    /// A restore.
    Restore(Restored),
}

/// Where a job stands.
#[derive(Debug, Clone)]
pub enum JobState {
    /// Another one is running, of this database or of too many others.
    Waiting,
    /// It is being done.
    Running {
        /// How far it is.
        progress: Progress,
    },
    /// It ended well.
    Done {
        /// What came of it.
        report: Report,
    },
    /// It failed.
    Failed(Answer),
}

/// An error as it is told to others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// Its kind.
    pub kind: ErrorKind,
    /// Message and causes.
    pub message: String,
}

impl From<&Error> for Answer {
    fn from(error: &Error) -> Self {
        Answer { kind: error.kind(), message: error.chain() }
    }
}

impl From<Answer> for Error {
    fn from(answer: Answer) -> Self {
        Error::new(answer.kind, answer.message)
    }
}

/// One job, from being asked for to its end.
#[derive(Debug, Clone)]
pub struct JobRecord {
    /// Its number.
    pub id: JobId,
    /// What was asked.
    pub job: Job,
    /// Why.
    pub reason: Reason,
    /// Where it stands.
    pub state: JobState,
    /// When it was asked for.
    pub asked_at: Timestamp,
    /// When it began.
    pub began_at: Option<Timestamp>,
    /// When it ended.
    pub ended_at: Option<Timestamp>,
}

impl JobRecord {
    /// Whether it has ended, well or not.
    pub fn is_over(&self) -> bool {
        matches!(self.state, JobState::Done { .. } | JobState::Failed(_))
    }

    /// What came of it; the error if it failed or is not over.
    pub fn report(self) -> Result<Report, Error> {
        match self.state {
            JobState::Done { report } => Ok(report),
            JobState::Failed(answer) => Err(answer.into()),
            JobState::Waiting | JobState::Running { .. } => {
                Err(Error::new(ErrorKind::Busy, format!("the job is not over: job=`{}`", self.id)))
            }
        }
    }

    pub(super) fn waiting(id: JobId, job: Job, reason: Reason, now: Timestamp) -> Self {
        JobRecord { id, job, reason, state: JobState::Waiting, asked_at: now, began_at: None, ended_at: None }
    }

    /// Somebody else waits for it, too, and it is done as the one wants it who asks for more.
    pub(super) fn urge(&mut self, reason: Reason) {
        let demand = |reason| match reason {
            Reason::Schedule | Reason::Startup | Reason::FollowUp => 0,
            Reason::Request => 1,
            Reason::Shutdown => 2,
        };
        if matches!(self.state, JobState::Waiting) && demand(reason) > demand(self.reason) {
            self.reason = reason;
        }
    }

    pub(super) fn begin(&mut self, now: Timestamp) {
        self.state = JobState::Running { progress: Progress::default() };
        self.began_at = Some(now);
    }

    pub(super) fn end(&mut self, result: Result<&Report, &Error>, now: Timestamp) {
        self.state = match result {
            Ok(report) => JobState::Done { report: report.clone() },
            Err(error) => JobState::Failed(error.into()),
        };
        self.ended_at = Some(now);
    }

    /// The one log line of a job: written by its worker, when it is over.
    pub(super) fn log(&self, database: &DatabaseName) {
        let (job, reason) = (self.job.name(), self.reason);
        let duration_ms = match (self.began_at, self.ended_at) {
            (Some(began), Some(ended)) => ended.duration_since(began).as_millis() as u64,
            _ => 0,
        };
        match &self.state {
            JobState::Done { report: Report::Backup(Outcome::Stored(manifest)) } => tracing::info!(
                %database, job, ?reason, duration_ms,
                snapshot = %manifest.id,
                plain_bytes = manifest.plain.bytes,
                stored_bytes = manifest.stored.bytes,
                writer_blocked_ms = manifest.writer_blocked_ms,
                flags = ?manifest.flags,
                "stored snapshot {} of {database}", manifest.id
            ),
            JobState::Done { report: Report::Backup(Outcome::Unchanged(manifest)) } => {
                let id = &manifest.id;
                tracing::info!(%database, job, ?reason, duration_ms, snapshot = %id, "{database} is unchanged since snapshot {id}");
            }
            JobState::Done { report: Report::Spooled(Spooled { snapshot, outage, .. }) } => {
                let id = &snapshot.id;
                tracing::error!(%database, job, ?reason, duration_ms, snapshot = %id, error_kind = outage.kind.name(), "snapshot {id} of {database} waits in the spool, for storage cannot be reached: {}", outage.message);
            }
            JobState::Done { report: Report::Ship(Shipments { shipped }) } => {
                let snapshots = shipped.len();
                tracing::info!(%database, job, ?reason, duration_ms, snapshots, "shipped {snapshots} snapshots of {database} from the spool");
            }
            JobState::Done { report: Report::Verify(Some(proof)) } => {
                tracing::info!(%database, job, ?reason, duration_ms, snapshot = %proof.snapshot, "proved snapshot {}", proof.snapshot);
            }
            JobState::Done { report: Report::Capture(captured) } => {
                tracing::info!(%database, position = captured.position, "deltas of {database} are stored up to position {}", captured.position);
            }
            JobState::Done { report: Report::Restore(restored) } => {
                tracing::warn!(%database, job, ?reason, duration_ms, snapshot = %restored.snapshot, "restored {database} from snapshot {}", restored.snapshot);
            }
            JobState::Done { report: Report::Prune(report) } => match report.refused.first() {
                None => tracing::info!(
                    %database, job, ?reason, duration_ms,
                    snapshots = report.removed.len(),
                    orphans = report.orphans.len(),
                    stale_proofs = report.stale_proofs.len(),
                    bytes_freed = report.bytes_freed,
                    left = report.left,
                    "pruned {database}: {}", report.summary()
                ),
                Some(first) => tracing::warn!(
                    %database, job, ?reason, duration_ms,
                    snapshots = report.removed.len(),
                    orphans = report.orphans.len(),
                    stale_proofs = report.stale_proofs.len(),
                    bytes_freed = report.bytes_freed,
                    refused = report.refused.len(),
                    left = report.left,
                    "pruned {database}: {}; the first: {}", report.summary(), first.what
                ),
            },
            JobState::Done { report: Report::Verify(None) } => {
                tracing::info!(%database, job, ?reason, duration_ms, "{database} has no snapshot to prove");
            }
            JobState::Failed(answer) if answer.kind == ErrorKind::Cancelled => {
                tracing::info!(%database, job, ?reason, duration_ms, "{job} of {database} was cancelled");
            }
            JobState::Failed(answer) => tracing::error!(
                %database, job, ?reason, duration_ms, error_kind = answer.kind.name(),
                "failed to {job} {database}: {}", answer.message
            ),
            JobState::Waiting | JobState::Running { .. } => {}
        }
    }
}
