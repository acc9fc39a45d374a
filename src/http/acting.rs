//! The routes that have something done. Each asks a worker; none does it itself.

use std::sync::Arc;

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::LOCATION;
use axum::response::{IntoResponse, Response};
use futures::stream::{self, StreamExt};
use jiff::Timestamp;
use serde::Deserialize;
use utoipa::ToSchema;

use super::Shared;
use super::extract::{Asked, Body};
use super::failure::{ErrorBody, Failure};
use super::guard::within;
use super::view::{
    BackupAnswer, BackupView, BackupsView, JobView, RestoreView, SnapshotView, VerifyView, Viewer,
};
use crate::backup::Outcome;
use crate::error::{Error, ErrorKind};
use crate::restore::{Target, when};
use crate::snapshot::SnapshotId;
use crate::spool;
use crate::storage;
use crate::worker::{Handle, Job, JobId, JobRecord, Member, Reason, Report, VerifyTarget};

/// How many databases one request has backed up at the same time.
const BACKUPS_AT_ONCE: usize = 4;

/// Which database to back up, and whether to wait.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct BackupAsked {
    /// Its name; without it, all of them.
    database: Option<String>,
    /// `false` to be told of the job at once instead of its outcome; `true` without it.
    wait: Option<bool>,
    /// `true` to say that the database is meant to be as small as it is: the snapshot is not flagged
    /// `shrunken`, and later ones are compared with it.
    accept_shrunken: Option<bool>,
}

/// Whether to wait.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Waits {
    /// `false` to be told of the job at once instead of its outcome; `true` without it.
    wait: Option<bool>,
}

/// What to prove.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct VerifyAsked {
    /// The database's name; may be left out where there is only one.
    database: Option<String>,
    /// The snapshot's id; without it, the newest.
    #[schema(value_type = Option<String>)]
    snapshot: Option<SnapshotId>,
}

/// What to restore. Without `snapshot` and `at`, the newest state.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(super) struct RestoreAsked {
    /// The name of the database whose content is replaced.
    database: String,
    /// The same name again.
    confirm: String,
    /// The snapshot's id.
    #[schema(value_type = Option<String>)]
    snapshot: Option<SnapshotId>,
    /// A moment: a time of any zone, or how long ago it was, such as `10m ago`. What was committed by then.
    at: Option<String>,
}

/// Take a snapshot, or join the next one if one is being taken
#[utoipa::path(
    post, path = "/backup-now", params(BackupAsked), security(("token" = []), ()),
    responses(
        (status = 200, description = "The snapshot", body = BackupsView),
        (status = 202, description = "The job that takes it, or a snapshot that waits for storage", body = BackupsView),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn backup_now(
    State(shared): State<Arc<Shared>>,
    Asked(asked): Asked<BackupAsked>,
) -> Result<Response, Failure> {
    let wait = asked.wait.unwrap_or(true);
    let accept_shrunken = asked.accept_shrunken.unwrap_or(false);
    match (asked.database.as_deref(), shared.app.fleet.members()) {
        (None, members) if members.len() > 1 && accept_shrunken => {
            Err(Failure::bad_request("say which database is meant to be small: ?database=NAME"))
        }
        (None, members) if members.len() > 1 => Ok(back_up_all(members, wait).await),
        (name, _) => {
            let member = shared.member(name)?;
            let (handle, id) = submit(member, Job::Backup { accept_shrunken }).await?;
            if !wait {
                return accepted(member, &handle, id);
            }
            let (status, view) = backed_up(member, &handle, id).await?;
            Ok((status, Json(BackupsView::One(BackupAnswer::Done(view)))).into_response())
        }
    }
}

/// The same, for schedulers that can only fetch an address
#[utoipa::path(
    get, path = "/backup-now", params(BackupAsked), security(("token" = []), ()),
    responses(
        (status = 200, description = "The snapshot", body = BackupsView),
        (status = 202, description = "The job that takes it, or a snapshot that waits for storage", body = BackupsView),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn backup_now_by_get(
    state: State<Arc<Shared>>,
    asked: Asked<BackupAsked>,
) -> Result<Response, Failure> {
    backup_now(state, asked).await
}

/// Read a snapshot back from storage and prove that it restores
#[utoipa::path(
    post, path = "/verify", params(Waits), request_body = Option<VerifyAsked>, security(("token" = []), ()),
    responses(
        (status = 200, description = "The proof", body = VerifyView),
        (status = 202, description = "The job that makes it", body = JobView),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn verify(
    State(shared): State<Arc<Shared>>,
    Asked(waits): Asked<Waits>,
    Body(asked): Body<VerifyAsked>,
) -> Result<Response, Failure> {
    let asked = asked.unwrap_or_default();
    let member = shared.member(asked.database.as_deref())?;
    let target = asked.snapshot.map_or(VerifyTarget::Newest, VerifyTarget::Snapshot);
    let (handle, id) = submit(member, Job::Verify { target }).await?;
    if waits.wait == Some(false) {
        return accepted(member, &handle, id);
    }
    match handle.wait(id).await?.report()? {
        Report::Verify(Some(proof)) => {
            let database = member.database.name.to_string();
            Ok(Json(VerifyView { database, job: id.0, proof }).into_response())
        }
        Report::Verify(None) => Err(Error::new(ErrorKind::NotFound, "there is no snapshot yet").into()),
        _ => Err(foreign_report(id)),
    }
}

/// Replace the content of a database that is in use by that of a snapshot
#[utoipa::path(
    post, path = "/restore", params(Waits), request_body = RestoreAsked, security(("token" = []), ()),
    responses(
        (status = 200, description = "What was restored", body = RestoreView),
        (status = 202, description = "The job that restores", body = JobView),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn restore(
    State(shared): State<Arc<Shared>>,
    Asked(waits): Asked<Waits>,
    Body(asked): Body<RestoreAsked>,
) -> Result<Response, Failure> {
    let asked = asked.ok_or_else(|| Failure::bad_request("say what to restore, in a JSON body"))?;
    let target = asked.target(shared.app.clock.now())?;
    let member = shared.member(Some(&asked.database))?;
    let handle = member.handle()?;
    let found = storage::regardless_of_budget(spool::find(&target, handle.catalog(), member.spool()));
    // What is not there is told at once.
    within(async { Ok(found.await?) }).await?;
    let (handle, id) = submit(member, Job::Restore { target }).await?;
    if waits.wait == Some(false) {
        return accepted(member, &handle, id);
    }
    match handle.wait(id).await?.report()? {
        Report::Restore(restored) => {
            let database = member.database.name.to_string();
            Ok(Json(RestoreView { database, job: id.0, restored }).into_response())
        }
        _ => Err(foreign_report(id)),
    }
}

impl RestoreAsked {
    /// The snapshot meant, if the request is sure of itself.
    fn target(&self, now: Timestamp) -> Result<Target, Failure> {
        if self.confirm != self.database {
            return Err(Failure::bad_request(
                "a restore replaces a database: name it a second time to confirm, in `confirm`",
            ));
        }
        match (&self.snapshot, &self.at) {
            (None, None) => Ok(Target::Newest),
            (Some(id), None) => Ok(Target::Snapshot(id.clone())),
            (None, Some(at)) => match when(at, now) {
                Ok(time) => Ok(Target::At(time)),
                Err(error) => Err(Failure::bad_request(error.to_string())),
            },
            (Some(_), Some(_)) => Err(Failure::bad_request("name a snapshot or a moment, not both")),
        }
    }
}

/// Backs up every database; each has an answer, and a failure of one is no failure of the others.
async fn back_up_all(members: &[Member], wait: bool) -> Response {
    let answers: Vec<_> = members.iter().map(|member| answer_of(member, wait)).collect();
    let answers: Vec<(StatusCode, BackupAnswer)> =
        stream::iter(answers).buffered(BACKUPS_AT_ONCE).collect().await;
    // The first failure's status, then that of what waits: who only looks at that must not take it for
    // success.
    let first = |is_meant: fn(&StatusCode) -> bool| answers.iter().map(|(status, _)| *status).find(is_meant);
    let failed = first(|status| !status.is_success());
    let status = failed.or_else(|| first(|status| *status == StatusCode::ACCEPTED)).unwrap_or(StatusCode::OK);
    let databases = answers.into_iter().map(|(_, answer)| answer).collect();
    (status, Json(BackupsView::Each { databases })).into_response()
}

async fn answer_of(member: &Member, wait: bool) -> (StatusCode, BackupAnswer) {
    let answer = async {
        let (handle, id) = submit(member, Job::Backup { accept_shrunken: false }).await?;
        match wait {
            true => {
                let (status, view) = backed_up(member, &handle, id).await?;
                Ok((status, BackupAnswer::Done(view)))
            }
            false => {
                Ok((StatusCode::ACCEPTED, BackupAnswer::Asked(Box::new(asked_for(member, &handle, id)?))))
            }
        }
    };
    answer.await.unwrap_or_else(|failure: Failure| {
        let (database, error) = (member.database.name.to_string(), failure.view(Viewer::Trusted));
        (failure.status(), BackupAnswer::Failed { database, error })
    })
}

async fn submit(member: &Member, job: Job) -> Result<(Handle, JobId), Failure> {
    let handle = member.handle()?;
    let id = handle.submit(job, Reason::Request).await?;
    Ok((handle, id))
}

/// Waits for a backup, and shows the snapshot that holds the database now: 202 if it waits for storage.
async fn backed_up(
    member: &Member,
    handle: &Handle,
    id: JobId,
) -> Result<(StatusCode, Box<BackupView>), Failure> {
    let (status, outcome, manifest) = match handle.wait(id).await?.report()? {
        Report::Backup(Outcome::Stored(manifest)) => (StatusCode::OK, "stored", manifest),
        Report::Backup(Outcome::Unchanged(manifest)) => (StatusCode::OK, "unchanged", manifest),
        Report::Spooled(spooled) => (StatusCode::ACCEPTED, "spooled", spooled.snapshot),
        _ => return Err(foreign_report(id)),
    };
    let snapshot = SnapshotView::of(&manifest, None, Viewer::Trusted);
    let database = member.database.name.to_string();
    Ok((status, Box::new(BackupView { database, job: id.0, outcome, snapshot })))
}

/// 202, with the job and where to ask for it.
fn accepted(member: &Member, handle: &Handle, id: JobId) -> Result<Response, Failure> {
    let location = format!("/jobs/{id}?database={}", member.database.name);
    let job = asked_for(member, handle, id)?;
    Ok((StatusCode::ACCEPTED, [(LOCATION, location)], Json(job)).into_response())
}

fn asked_for(member: &Member, handle: &Handle, id: JobId) -> Result<JobView, Failure> {
    let status = handle.status();
    let record: &JobRecord = status.job(id).ok_or_else(|| foreign_report(id))?;
    Ok(JobView::of(member.database.name.as_str(), record, Viewer::Trusted))
}

fn foreign_report(id: JobId) -> Failure {
    Error::new(ErrorKind::Internal, format!("the worker answered for another job: job=`{id}`")).into()
}
