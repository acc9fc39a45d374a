//! Status changes as they happen, as server-sent events.

use std::sync::Arc;
use std::time::Duration;

use axum::Extension;
use axum::extract::State;
use axum::response::Sse;
use axum::response::sse::{Event, KeepAlive};
use futures::stream::{self, Stream, StreamExt};
use tokio_stream::wrappers::WatchStream;

use super::Shared;
use super::extract::Asked;
use super::failure::{ErrorBody, Failure};
use super::reading::Which;
use super::view::{StatusView, Viewer};
use crate::error::{Error, ErrorKind};

/// Streams that may be open: a quarter of the connections there may be.
pub(super) const STREAMS_MAX: usize = 16;

/// Often enough that nothing between us and the client takes the connection for dead.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// What every database (or one) is doing, now and at every change: events named `status`
#[utoipa::path(
    get, path = "/events", params(Which),
    responses(
        (status = 200, description = "A stream of events, each with this as its data", body = StatusView, content_type = "text/event-stream"),
        (status = "default", description = "An error", body = ErrorBody)
    )
)]
pub(super) async fn events(
    State(shared): State<Arc<Shared>>,
    Extension(viewer): Extension<Viewer>,
    Asked(which): Asked<Which>,
) -> Result<Sse<impl Stream<Item = Result<Event, axum::Error>>>, Failure> {
    let permit = Arc::clone(&shared.streams).try_acquire_owned().map_err(|_| {
        let message = format!("{STREAMS_MAX} event streams are open already; try again later");
        Failure::public(&Error::new(ErrorKind::Limit, message))
    })?;
    if let Some(name) = &which.database {
        shared.member(Some(name))?;
    }
    let members = shared.app.fleet.members();
    let is_asked_for = |index: &usize| {
        which.database.as_ref().is_none_or(|name| name == members[*index].database.name.as_str())
    };
    let asked_for = (0..members.len()).filter(is_asked_for);
    let changes = stream::select_all(asked_for.map(|index| changes(&shared, index, viewer).boxed()));
    let events = changes
        .map(move |view| {
            // The stream owns its permit, and gives it back when it is dropped.
            let _ = &permit;
            Event::default().event("status").json_data(view)
        })
        .take_until(shared.stop.clone().cancelled_owned());
    Ok(Sse::new(events).keep_alive(KeepAlive::new().interval(KEEP_ALIVE)))
}

/// What one database shows: at once, when its worker starts, and whenever its status changes.
fn changes(shared: &Arc<Shared>, index: usize, viewer: Viewer) -> impl Stream<Item = StatusView> + use<> {
    let opening = stream::iter(shared.app.fleet.members()[index].handle().is_err().then_some(()));
    let opened = {
        let shared = Arc::clone(shared);
        stream::once(async move { shared.app.fleet.members()[index].opened_handle().await })
            .flat_map(|handle| WatchStream::new(handle.watch()))
            .map(drop)
    };
    let shared = Arc::clone(shared);
    opening.chain(opened).map(move |()| {
        let fleet = &shared.app.fleet;
        let member = &fleet.members()[index];
        let now = shared.app.clock.now();
        StatusView::of(fleet.view_of(member, now), viewer, now)
    })
}
