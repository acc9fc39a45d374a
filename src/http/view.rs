//! What is shown, and to whom: the only place where the program's own types become response bodies.
//!
//! Strangers see ids, times, sizes and plain yes or no. Whatever may name a bucket, a path or a role,
//! and every message of an error, is for those who are trusted.

use jiff::Timestamp;
use serde::Serialize;
use utoipa::ToSchema;

use super::captured::{CaptureView, ReachView};
use super::failure::{ErrorView, Failure};
use super::listings::Listed;
use crate::credentials::{IdentityState, TokenSource};
use crate::restore::{Restored, Target};
use crate::snapshot::{Manifest, Proof, SnapshotId};
use crate::source::Progress;
use crate::spool::{Contents, State};
use crate::worker::{Job, JobRecord, JobState, MemberView, Report, Status, VerifyTarget};

/// Who looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Viewer {
    /// Anybody.
    Public,
    /// The holder of the token, or a program on this machine.
    Trusted,
}

impl Viewer {
    /// A detail, if this one may see it.
    pub(super) fn detail<T>(self, detail: impl FnOnce() -> T) -> Option<T> {
        (self == Viewer::Trusted).then(detail)
    }
}

/// Whether the process works.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct HealthView {
    /// `ok`, or `degraded` while a database could not be lost without losing data.
    pub(super) status: &'static str,
    /// What the process is doing. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) phase: Option<&'static str>,
    /// Who the process is to the bucket. A detail; absent where backups are in a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) identity: Option<IdentityView>,
    /// What waits for the bucket, of each database. A detail; absent where backups are in a directory.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) spool: Option<Vec<SpoolView>>,
}

/// What waits on this machine for the bucket, of one database.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SpoolView {
    /// The database's name.
    database: String,
    /// Snapshots that wait.
    snapshots: usize,
    /// What they take.
    bytes: u64,
    /// The moment the oldest of them shows.
    #[schema(value_type = Option<String>, format = DateTime)]
    oldest: Option<Timestamp>,
    /// Why they wait, what was dropped, and what is wrong with the spool.
    reasons: Vec<String>,
}

impl SpoolView {
    pub(super) fn of(database: &str, state: &State) -> SpoolView {
        let State { snapshots, bytes, oldest, .. } = *state;
        SpoolView { database: database.to_owned(), snapshots, bytes, oldest, reasons: state.reasons() }
    }
}

/// Who the process is to the bucket, and how well that goes.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct IdentityView {
    /// `role`, `key` or `chain`.
    kind: &'static str,
    /// The role's ARN.
    role: Option<String>,
    /// Where the last identity token came from: `machine-socket` or `token-file`.
    source: Option<&'static str>,
    /// When the credentials end; they are renewed when next needed.
    #[schema(value_type = Option<String>, format = DateTime)]
    expires_at: Option<Timestamp>,
    /// When they were last renewed.
    #[schema(value_type = Option<String>, format = DateTime)]
    renewed_at: Option<Timestamp>,
    /// The class of the last failure to renew them, also after a later success.
    last_failure: Option<&'static str>,
    /// When that was.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_failure_at: Option<Timestamp>,
}

impl IdentityView {
    pub(super) fn of(state: &IdentityState) -> IdentityView {
        IdentityView {
            kind: state.kind,
            role: state.role.clone(),
            source: state.source.map(TokenSource::name),
            expires_at: state.expires_at,
            renewed_at: state.renewed_at,
            last_failure: state.last_failure.as_ref().map(|failure| failure.class.name()),
            last_failure_at: state.last_failure.as_ref().map(|failure| failure.at),
        }
    }
}

/// Whether every database could be lost now without losing its data.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReadyView {
    /// All of them.
    pub(super) ready: bool,
    /// Each of them. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) databases: Option<Vec<ReadinessView>>,
}

/// Whether one database could be lost now without losing its data.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ReadinessView {
    /// Its name.
    pub(super) database: String,
    /// Whether nothing speaks against it.
    pub(super) ready: bool,
    /// What speaks against it.
    pub(super) reasons: Vec<String>,
}

impl ReadinessView {
    pub(super) fn of(member: MemberView) -> ReadinessView {
        let MemberView { database, readiness, .. } = member;
        ReadinessView {
            database: database.name.to_string(),
            ready: readiness.ready,
            reasons: readiness.reasons,
        }
    }
}

/// The snapshots of one database.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotsView {
    /// The database's name.
    database: String,
    /// Newest first.
    snapshots: Vec<SnapshotView>,
    /// Manifests that cannot be read, newest first.
    damaged: Vec<DamagedView>,
    /// What waits on this machine for storage, newest first.
    spooled: Vec<SnapshotView>,
    /// Whether storage could not be listed: then `snapshots` is empty and says nothing.
    unreachable: bool,
    /// What can be restored to any moment; absent where nothing was captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    point_in_time: Option<ReachView>,
    /// Whether deltas may not be listed: then `point_in_time` is absent, whatever was captured.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    point_in_time_denied: bool,
}

impl SnapshotsView {
    /// What storage lists; `None` if it cannot be reached. Nothing waits yet.
    pub(super) fn of(database: String, listed: Option<&Listed>, viewer: Viewer) -> SnapshotsView {
        let Some(Listed { listing, drills, reach }) = listed else {
            let (snapshots, damaged, spooled) = (Vec::new(), Vec::new(), Vec::new());
            return SnapshotsView {
                database,
                snapshots,
                damaged,
                spooled,
                unreachable: true,
                point_in_time: None,
                point_in_time_denied: false,
            };
        };
        let drill_of = |id: &SnapshotId| drills.iter().find(|drill| drill.snapshot == *id);
        let snapshot = |manifest| SnapshotView::of(manifest, drill_of(&manifest.id), viewer);
        let damaged = listing.damaged.iter().map(|(key, error)| DamagedView {
            id: key.snapshot_id().map(ToString::to_string),
            error: viewer.detail(|| error.chain()),
        });
        let snapshots = listing.snapshots.iter().map(snapshot).collect();
        let (damaged, spooled) = (damaged.collect(), Vec::new());
        SnapshotsView {
            database,
            snapshots,
            damaged,
            spooled,
            unreachable: false,
            point_in_time: reach.as_ref().ok().and_then(Option::as_ref).map(ReachView::of),
            point_in_time_denied: reach.is_err(),
        }
    }

    /// The same with what waits in the spool.
    pub(super) fn with(self, waits: &Contents, viewer: Viewer) -> SnapshotsView {
        let drill_of = |id: &SnapshotId| waits.drills.iter().find(|drill| drill.snapshot == *id);
        let view = |manifest: &Manifest| SnapshotView::of(manifest, drill_of(&manifest.id), viewer);
        SnapshotsView { spooled: waits.waiting.iter().rev().map(view).collect(), ..self }
    }
}

/// One snapshot.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct SnapshotView {
    /// Its id.
    id: String,
    /// The moment it shows.
    #[schema(value_type = String, format = DateTime)]
    taken_at: Timestamp,
    /// How long it took, in milliseconds.
    took_ms: u64,
    /// Size of the database in it.
    plain_bytes: u64,
    /// Size of its data in storage.
    stored_bytes: u64,
    /// When it was last read back and shown to restore; none if its last drill failed.
    #[schema(value_type = Option<String>, format = DateTime)]
    proven_at: Option<Timestamp>,
    /// When it was last read back and shown not to restore; none if its last drill went well.
    #[schema(value_type = Option<String>, format = DateTime)]
    drill_failed_at: Option<Timestamp>,
    /// Why that drill failed. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    drill_failure: Option<String>,
    /// Whether it stands on a branch: it never was the newest, and is restored only by its id.
    branch: bool,
    /// Its manifest, as FORMAT.md describes it. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    manifest: Option<Manifest>,
}

impl SnapshotView {
    pub(super) fn of(manifest: &Manifest, drill: Option<&Proof>, viewer: Viewer) -> SnapshotView {
        let failure = drill.and_then(|drill| drill.failure.clone());
        let (proven_at, drill_failed_at) = match (drill.map(|drill| drill.proven_at), &failure) {
            (at, Some(_)) => (None, at),
            (at, None) => (at, None),
        };
        SnapshotView {
            id: manifest.id.to_string(),
            taken_at: manifest.taken_at,
            took_ms: manifest.took_ms,
            plain_bytes: manifest.plain.bytes,
            stored_bytes: manifest.stored.bytes,
            proven_at,
            drill_failed_at,
            drill_failure: viewer.detail(|| failure).flatten(),
            branch: manifest.is_branch(),
            manifest: viewer.detail(|| manifest.clone()),
        }
    }
}

/// A manifest that cannot be read.
#[derive(Debug, Serialize, ToSchema)]
struct DamagedView {
    /// The id of the snapshot it stands for.
    id: Option<String>,
    /// Why. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
}

/// A job and what became of it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct JobView {
    /// Its number, unique for this database while the process lives.
    id: u64,
    /// The database's name.
    database: String,
    /// `backup`, `verify`, `prune`, `restore`, `ship` or `capture`.
    job: &'static str,
    /// The snapshot it is about, if one was named.
    snapshot: Option<String>,
    /// `waiting`, `running`, `done` or `failed`.
    state: &'static str,
    /// How far it is, while it runs.
    progress: Option<ProgressView>,
    /// When it was asked for.
    #[schema(value_type = String, format = DateTime)]
    asked_at: Timestamp,
    /// When it began.
    #[schema(value_type = Option<String>, format = DateTime)]
    began_at: Option<Timestamp>,
    /// When it ended.
    #[schema(value_type = Option<String>, format = DateTime)]
    ended_at: Option<Timestamp>,
    /// Why it failed.
    error: Option<ErrorView>,
    /// What came of it. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<Object>)]
    report: Option<Report>,
}

/// How much of a job is done.
#[derive(Debug, Serialize, ToSchema)]
struct ProgressView {
    /// Bytes done.
    done: u64,
    /// Bytes in all.
    total: u64,
}

impl JobView {
    pub(super) fn of(database: &str, record: &JobRecord, viewer: Viewer) -> JobView {
        let snapshot = match &record.job {
            Job::Verify { target: VerifyTarget::Snapshot(id) }
            | Job::Restore { target: Target::Snapshot(id) } => Some(id),
            Job::Backup { .. } | Job::Verify { .. } | Job::Prune | Job::Ship => None,
            Job::Capture | Job::Restore { .. } => None,
        };
        let (mut progress, mut error, mut report) = (None, None, None);
        let state = match &record.state {
            JobState::Waiting => "waiting",
            JobState::Running { progress: Progress { done, total } } => {
                progress = Some(ProgressView { done: *done, total: *total });
                "running"
            }
            JobState::Done { report: came } => {
                report = viewer.detail(|| came.clone());
                "done"
            }
            JobState::Failed(answer) => {
                error = Some(Failure::from(answer).view(viewer));
                "failed"
            }
        };
        JobView {
            id: record.id.0,
            database: database.to_owned(),
            job: record.job.name(),
            snapshot: snapshot.map(ToString::to_string),
            state,
            progress,
            asked_at: record.asked_at,
            began_at: record.began_at,
            ended_at: record.ended_at,
            error,
            report,
        }
    }
}

/// The state of one database's backups, as events carry it.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct StatusView {
    /// The database's name.
    database: String,
    /// Whether it could be lost now without losing its data.
    ready: bool,
    /// What speaks against it. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    reasons: Option<Vec<String>>,
    /// The snapshot that holds what the database last was known to be.
    last_snapshot: Option<String>,
    /// When that was known.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_backup_at: Option<Timestamp>,
    /// When a snapshot was last proven.
    #[schema(value_type = Option<String>, format = DateTime)]
    last_proof_at: Option<Timestamp>,
    /// Jobs that wait or run, and the last one that ended; oldest first.
    jobs: Vec<JobView>,
    /// Where the backups are. A detail.
    #[serde(skip_serializing_if = "Option::is_none")]
    storage: Option<String>,
    /// How far deltas are; absent where nothing is captured.
    #[serde(skip_serializing_if = "Option::is_none")]
    capture: Option<CaptureView>,
}

impl StatusView {
    pub(super) fn of(member: MemberView, viewer: Viewer, now: Timestamp) -> StatusView {
        let MemberView { database, readiness, status, capture, .. } = member;
        let status = status.as_ref();
        let name = database.name.to_string();
        let last_backup = status.and_then(|status| status.last_backup.as_ref());
        StatusView {
            ready: readiness.ready,
            reasons: viewer.detail(|| readiness.reasons),
            last_snapshot: last_backup.map(|last| last.snapshot.to_string()),
            last_backup_at: last_backup.map(|last| last.confirmed_at),
            last_proof_at: status.and_then(|status| status.last_proof.as_ref()).map(|proof| proof.proven_at),
            jobs: status.map(|status| current_jobs(status, &name, viewer)).unwrap_or_default(),
            storage: viewer.detail(|| status.map(|status| status.storage.clone())).flatten(),
            capture: capture.map(|capture| CaptureView::of(&capture, now)),
            database: name,
        }
    }
}

fn current_jobs(status: &Status, database: &str, viewer: Viewer) -> Vec<JobView> {
    let last_ended = status.jobs.iter().rposition(JobRecord::is_over);
    let is_shown = |(at, record): &(usize, &JobRecord)| !record.is_over() || Some(*at) == last_ended;
    let shown = status.jobs.iter().enumerate().filter(is_shown);
    shown.map(|(_, record)| JobView::of(database, record, viewer)).collect()
}

/// A backup that ended well. Only those who are trusted can ask for one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct BackupView {
    /// The database's name.
    pub(super) database: String,
    /// The job that took it.
    pub(super) job: u64,
    /// `stored`; `unchanged` if the snapshot held the database already; `spooled` if it waits on this machine,
    /// for storage cannot be reached.
    pub(super) outcome: &'static str,
    /// The snapshot that holds the database.
    pub(super) snapshot: SnapshotView,
}

/// The answer for one database.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum BackupAnswer {
    /// It ended well.
    Done(Box<BackupView>),
    /// It was asked for.
    Asked(Box<JobView>),
    /// It failed; only among the answers of several.
    Failed {
        /// The database's name.
        database: String,
        /// Why.
        error: ErrorView,
    },
}

/// One answer, or with several databases and none named one for each, as configured.
#[derive(Debug, Serialize, ToSchema)]
#[serde(untagged)]
pub(super) enum BackupsView {
    /// The only database, or the one that was named.
    One(BackupAnswer),
    /// All of them.
    Each {
        /// One answer for each.
        databases: Vec<BackupAnswer>,
    },
}

/// A proof. Only those who are trusted can ask for one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct VerifyView {
    /// The database's name.
    pub(super) database: String,
    /// The job that proved it.
    pub(super) job: u64,
    /// What was proven, when and how.
    #[schema(value_type = Object)]
    pub(super) proof: Proof,
}

/// A restore. Only those who are trusted can ask for one.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct RestoreView {
    /// The database's name.
    pub(super) database: String,
    /// The job that did it.
    pub(super) job: u64,
    /// What was restored.
    #[schema(value_type = Object)]
    pub(super) restored: Restored,
}
