//! The routes that only look.

use std::fmt::Write;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::State;
use axum::http::StatusCode;
use axum::http::header::CONTENT_TYPE;
use axum::response::IntoResponse;
use axum::{Extension, Json};
use serde::Deserialize;

use super::Shared;
use super::captured;
use super::extract::{Asked, Segment};
use super::failure::{ErrorBody, Failure};
use super::view::{
    HealthView, IdentityView, JobView, ReadinessView, ReadyView, SnapshotView, SnapshotsView, SpoolView,
    Viewer,
};
use crate::error::{Error, ErrorKind};
use crate::snapshot::SnapshotId;
use crate::spool::{self, Contents};
use crate::worker::{JobId, Member, MemberView};

/// Which database.
#[derive(Debug, Deserialize, utoipa::IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
pub(super) struct Which {
    /// Its name; may be left out where there is only one.
    pub(super) database: Option<String>,
}

impl Shared {
    /// What every database shows now; puts the same into the gauges.
    fn views(&self) -> Vec<MemberView> {
        let now = self.app.clock.now();
        let views = self.app.fleet.view(now);
        for view in &views {
            let metrics = self.app.metrics.database(&view.database.name);
            metrics.ready(view.readiness.ready);
            view.capture.iter().for_each(|capture| metrics.captured(&captured::counted(capture, now)));
        }
        views
    }

    /// The database of this name; without a name, the only one.
    pub(super) fn member(&self, name: Option<&str>) -> Result<&Member, Failure> {
        self.app.fleet.member(name).map_err(|error| match error.kind() {
            ErrorKind::Config => Failure::bad_request(error.to_string()),
            _ => Failure::public(&error),
        })
    }
}

/// Whether the process works, whatever the state of the backups
#[utoipa::path(get, path = "/health", responses((status = 200, description = "It works", body = HealthView)))]
pub(super) async fn health(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
) -> Json<HealthView> {
    let is_ready = shared.views().iter().all(|view| view.readiness.ready);
    let status = if is_ready { "ok" } else { "degraded" };
    let phase = viewer.detail(|| *shared.app.phase.borrow());
    let identity =
        viewer.detail(|| shared.app.identity.as_ref().map(|state| IdentityView::of(&state.borrow())));
    let spool = viewer.detail(|| {
        let of_member =
            |member: &Member| Some(SpoolView::of(member.database.name.as_str(), &member.spool()?.state()));
        let spools: Vec<_> = shared.app.fleet.members().iter().filter_map(of_member).collect();
        (!spools.is_empty()).then_some(spools)
    });
    Json(HealthView { status, phase, identity: identity.flatten(), spool: spool.flatten() })
}

/// Whether backups are fresh and proven
#[utoipa::path(
    get, path = "/ready",
    responses(
        (status = 200, description = "They are", body = ReadyView),
        (status = 503, description = "They are not", body = ReadyView)
    )
)]
pub(super) async fn ready(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
) -> (StatusCode, Json<ReadyView>) {
    let views = shared.views();
    let ready = views.iter().all(|view| view.readiness.ready);
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    let databases = viewer.detail(|| views.into_iter().map(ReadinessView::of).collect());
    (status, Json(ReadyView { ready, databases }))
}

/// Numbers for Prometheus, in the OpenMetrics text format
#[utoipa::path(
    get, path = "/metrics",
    responses((status = 200, description = "The numbers", body = String, content_type = "application/openmetrics-text"))
)]
pub(super) async fn metrics(State(shared): State<Arc<Shared>>) -> Result<impl IntoResponse, Failure> {
    shared.views();
    let text = shared.app.metrics.render()?;
    Ok(([(CONTENT_TYPE, "application/openmetrics-text; version=1.0.0; charset=utf-8")], text))
}

/// The databases and routes, for people
#[utoipa::path(
    get, path = "/",
    responses((status = 200, description = "A page of text", body = String, content_type = "text/plain"))
)]
pub(super) async fn page(State(shared): State<Arc<Shared>>, Extension(viewer): Extension<Viewer>) -> String {
    let mut page = format!("lifeboat {}\n\n", env!("CARGO_PKG_VERSION"));
    for MemberView { database, readiness, .. } in shared.views() {
        let word = if readiness.ready { "ready" } else { "not ready" };
        let reasons = viewer.detail(|| readiness.reasons.join("; ")).unwrap_or_default();
        let line = format!("{:<20} {word:<10} {reasons}", database.name.as_str());
        // Writing to a string does not fail.
        let _ = writeln!(page, "{}", line.trim_end());
    }
    page + "\n" + &shared.routes
}

/// This contract
#[utoipa::path(
    get, path = "/openapi.json",
    responses((status = 200, description = "The contract", body = Object, content_type = "application/json"))
)]
pub(super) async fn openapi(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    ([(CONTENT_TYPE, "application/json")], shared.contract.clone())
}

/// Every snapshot of a database, newest first
#[utoipa::path(
    get, path = "/snapshots", params(Which),
    responses(
        (status = 200, description = "The catalog, at most 10 s old", body = SnapshotsView),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn snapshots(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    Asked(which): Asked<Which>,
) -> Result<Json<SnapshotsView>, Failure> {
    let member = shared.member(which.database.as_deref())?;
    let waits = waiting(member).await;
    let listed = async { shared.listings.get(&member.handle()?).await };
    let listed = match waits.waiting.is_empty() {
        true => Some(listed.await?),
        // What waits is shown soon, whether storage answers or not.
        false => match tokio::time::timeout(STORAGE_WAIT, listed).await {
            Ok(Err(error)) if !spool::is_outage(&error) => return Err(error.into()),
            listed => listed.ok().and_then(Result::ok),
        },
    };
    let name = member.database.name.to_string();
    Ok(Json(SnapshotsView::of(name, listed.as_deref(), viewer).with(&waits, viewer)))
}

/// How long storage may take to list its snapshots where others wait for it on this machine.
const STORAGE_WAIT: Duration = Duration::from_secs(5);

/// What waits in the spool; what is wrong with it stands in the reasons of `/ready`.
async fn waiting(member: &Member) -> Contents {
    match member.spool() {
        Some(spool) => spool.contents().await.unwrap_or_default(),
        None => Contents::default(),
    }
}

/// One snapshot
#[utoipa::path(
    get, path = "/snapshots/{id}", params(Which, ("id" = String, Path, description = "The snapshot's id")),
    responses(
        (status = 200, description = "The snapshot", body = SnapshotView),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn snapshot(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    Segment(id): Segment,
    Asked(which): Asked<Which>,
) -> Result<Json<SnapshotView>, Failure> {
    let id: SnapshotId = id.parse().map_err(|error| Failure::public(&error))?;
    let member = shared.member(which.database.as_deref())?;
    let waits = waiting(member).await;
    if let Some(manifest) = waits.snapshot(&id) {
        let drill = waits.drills.iter().find(|drill| drill.snapshot == id);
        return Ok(Json(SnapshotView::of(manifest, drill, viewer)));
    }
    let handle = member.handle()?;
    let (manifest, drill) = tokio::try_join!(handle.catalog().manifest(&id), handle.catalog().drill(&id))?;
    Ok(Json(SnapshotView::of(&manifest, drill.as_ref(), viewer)))
}

/// A job and what became of it
#[utoipa::path(
    get, path = "/jobs/{id}", params(Which, ("id" = u64, Path, description = "The job's number")),
    responses(
        (status = 200, description = "The job", body = JobView),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn job(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    Segment(id): Segment,
    Asked(which): Asked<Which>,
) -> Result<Json<JobView>, Failure> {
    let member = shared.member(which.database.as_deref())?;
    let status = member.handle()?.status();
    let record = id.parse().ok().and_then(|id| status.job(JobId(id)));
    let unknown = || {
        let message = format!("there is no such job (any more): job=`{}`", id.escape_debug());
        Failure::public(&Error::new(ErrorKind::NotFound, message))
    };
    let record = record.ok_or_else(unknown)?;
    Ok(Json(JobView::of(member.database.name.as_str(), record, viewer)))
}
