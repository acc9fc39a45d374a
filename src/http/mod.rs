//! The HTTP interface: who may ask for what, and what they are told.
//!
//! Nothing here does work on a database: a route reads the catalog or the workers' status, or sends
//! a job to a worker and waits. Every path through it has a bound in time, in bytes and in number.
//! The contract is generated from the routes, so that it cannot differ from them.

mod access;
mod acting;
mod captured;
mod contract;
mod events;
mod extract;
mod failure;
mod guard;
mod listings;
mod patient;
mod reading;
mod serve;
mod tokens;
mod view;

use std::sync::Arc;

use axum::Router;
use axum::extract::DefaultBodyLimit;
use axum::middleware::{from_fn_with_state, map_response};
use tokio::sync::{Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tower_http::catch_panic::CatchPanicLayer;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use access::{Access, Peer};
pub use serve::serve;

use crate::clock::Clock;
use crate::credentials::IdentityState;
use crate::metrics::Metrics;
use crate::worker::Fleet;
use access::Wants;
use listings::Listings;

/// The largest request body, in bytes. The longest valid one has some two hundred.
const BODY_BYTES_MAX: usize = 16 << 10;

/// What the interface shows and asks.
#[derive(Clone)]
pub struct App {
    /// The databases.
    pub fleet: Fleet,
    /// The numbers.
    pub metrics: Metrics,
    /// The time.
    pub clock: Clock,
    /// Who may do what.
    pub access: Access,
    /// What the process is doing, in a word: `starting`, `running`, `stopping`.
    pub phase: watch::Receiver<&'static str>,
    /// Who the process is to a bucket; none where backups are in a directory.
    pub identity: Option<watch::Receiver<IdentityState>>,
}

/// What the routes share.
struct Shared {
    app: App,
    listings: Listings,
    /// One permit for each event stream that may be open.
    streams: Arc<Semaphore>,
    contract: String,
    routes: String,
    stop: CancellationToken,
}

/// The routes of `app`. A request carries its [`Peer`] as an extension; one without is a stranger's.
/// Streams end when `stop` is cancelled.
pub fn router(app: App, stop: CancellationToken) -> Router {
    let metrics = app.metrics.http().clone();
    let (routes, contract) = guarded_routes(&app.access).split_for_parts();
    let shared = Shared {
        listings: Listings::of(&app.fleet),
        streams: Arc::new(Semaphore::new(events::STREAMS_MAX)),
        contract: contract::json(&contract),
        routes: contract::table(&contract),
        stop,
        app,
    };
    routes
        .fallback(guard::no_such_route)
        .method_not_allowed_fallback(guard::method_not_allowed)
        .with_state(Arc::new(shared))
        .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
        .layer(from_fn_with_state(metrics, guard::logged))
        .layer(CatchPanicLayer::custom(guard::panicked))
        .layer(map_response(guard::hardened))
}

/// Every route there is, each behind the guard of what it wants.
fn guarded_routes(access: &Access) -> OpenApiRouter<Arc<Shared>> {
    let guarded = |wants: Wants, routes: OpenApiRouter<Arc<Shared>>| {
        routes.route_layer(from_fn_with_state((access.clone(), wants), guard::admitted))
    };
    let probes = OpenApiRouter::new()
        .routes(routes!(reading::health))
        .routes(routes!(reading::ready))
        .routes(routes!(reading::metrics));
    let pages = OpenApiRouter::new().routes(routes!(reading::page)).routes(routes!(reading::openapi));
    let reads = OpenApiRouter::new()
        .routes(routes!(reading::snapshots))
        .routes(routes!(reading::snapshot))
        .routes(routes!(reading::job))
        .routes(routes!(events::events));
    let acts = OpenApiRouter::new()
        .routes(routes!(acting::backup_now, acting::backup_now_by_get))
        .routes(routes!(acting::verify));
    let restores = OpenApiRouter::new().routes(routes!(acting::restore));
    OpenApiRouter::with_openapi(contract::frame())
        .merge(guarded(Wants::Probe, probes))
        .merge(guarded(Wants::Page, pages))
        .merge(guarded(Wants::Read, reads))
        .merge(guarded(Wants::Act, acts))
        .merge(guarded(Wants::Restore, restores))
}
