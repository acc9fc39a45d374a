//! Connections: as many as there may be, each with its timeouts, and an orderly end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use hyper::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;

use super::guard::Crowded;
use super::patient::Patient;
use super::{App, Peer};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::metrics::HttpMetrics;

/// Connections above those of `http.connections_max`: for whoever watches over us when all are taken. Where
/// these are taken too, the next one waits in the kernel's queue, where it costs nothing.
const RESERVE: usize = 8;

/// How long the head of a request may take; also how long an idle connection is kept.
const HEAD_TIME: Duration = Duration::from_secs(5);

/// The same on a connection of the reserve: probes are sent at once.
const RESERVE_HEAD_TIME: Duration = Duration::from_secs(2);

/// The largest head of a request, in bytes, and the number of its lines.
const HEAD_BYTES_MAX: usize = 16 << 10;
const HEADERS_MAX: usize = 64;

/// How long a peer may take nothing of what is written to it.
const STALL_TIME: Duration = Duration::from_secs(20);

/// How long an answer may take to be finished after we were told to stop.
const GRACE: Duration = Duration::from_secs(5);

/// How long to wait when the system has no connection to give (no descriptors, no memory), and how
/// often in a row before the listener is given up.
const ACCEPT_PAUSE: Duration = Duration::from_secs(1);
const ACCEPT_FAILURES_MAX: u32 = 60;

/// Serves `app` on `listener` until `stop` is cancelled; then finishes what was begun, for 5 s at most.
pub async fn serve(
    listener: TcpListener,
    app: App,
    connections_max: usize,
    stop: CancellationToken,
) -> Result<()> {
    let stop = stop.child_token();
    let metrics = app.metrics.http().clone();
    metrics.bounded(connections_max);
    let router = super::router(app, stop.clone());
    let slots = Slots {
        regular: Arc::new(Semaphore::new(connections_max)),
        reserve: Arc::new(Semaphore::new(RESERVE)),
    };
    let connections = TaskTracker::new();
    let outcome = loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((slot, stream, peer)) => {
                let (router, stop, metrics) = (router.clone(), stop.clone(), metrics.clone());
                connections.spawn(async move {
                    metrics.opened();
                    converse(stream, peer, &slot, router, &metrics, stop).await;
                    metrics.closed();
                    drop(slot);
                });
            }
            Err(error) => break Err(error),
        }
    };
    drop(listener);
    stop.cancel();
    connections.close();
    connections.wait().await;
    outcome
}

/// Where connections take their places.
struct Slots {
    regular: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
}

/// A place, given back when it is dropped.
enum Slot {
    Regular { _permit: OwnedSemaphorePermit },
    Reserve { _permit: OwnedSemaphorePermit },
}

impl Slots {
    /// A regular place for a connection that has come, else one of the reserve, else the next that is free.
    async fn take(&self) -> Result<Slot> {
        let closed = || "wait for a free connection".to_owned();
        let regular = Arc::clone(&self.regular);
        if let Ok(permit) = Arc::clone(&regular).try_acquire_owned() {
            return Ok(Slot::Regular { _permit: permit });
        }
        tokio::select! {
            biased;
            permit = regular.acquire_owned() => {
                Ok(Slot::Regular { _permit: permit.context(ErrorKind::Internal, closed)? })
            }
            permit = Arc::clone(&self.reserve).acquire_owned() => {
                Ok(Slot::Reserve { _permit: permit.context(ErrorKind::Internal, closed)? })
            }
        }
    }
}

/// The next connection, once there may be one more.
async fn accept(listener: &TcpListener, slots: &Slots) -> Result<(Slot, TcpStream, SocketAddr)> {
    // There must be a place before there is a connection; which one is known only then.
    drop(slots.take().await?);
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Ok((slots.take().await?, stream, peer)),
            Err(error) => {
                failures += 1;
                if failures == ACCEPT_FAILURES_MAX {
                    let message = "accept a connection, again and again";
                    return Err(Error::new(ErrorKind::Internal, message).because(error));
                }
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Answers the requests of one connection. What goes wrong with it is its peer's affair.
async fn converse(
    stream: TcpStream,
    peer: SocketAddr,
    slot: &Slot,
    router: Router,
    metrics: &HttpMetrics,
    stop: CancellationToken,
) {
    // Answers are small and whole; an error here only costs latency.
    let _ = stream.set_nodelay(true);
    let is_reserve = matches!(slot, Slot::Reserve { .. });
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        if is_reserve {
            request.extensions_mut().insert(Crowded);
        }
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(if is_reserve { RESERVE_HEAD_TIME } else { HEAD_TIME })
        .keep_alive(!is_reserve)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEADERS_MAX)
        .serve_connection(TokioIo::new(Patient::new(stream, STALL_TIME)), service);
    tokio::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            tokio::time::timeout(GRACE, connection).await.unwrap_or(Ok(()))
        }
    };
    if let Err(error) = ended {
        bound_of(&error).into_iter().for_each(|reason| metrics.refused(reason));
        tracing::debug!(%peer, %error, "a connection ended badly");
    }
}

/// Which of our bounds ended a connection, if one did.
fn bound_of(error: &hyper::Error) -> Option<&'static str> {
    let is_stalled = |error: &std::io::Error| error.kind() == std::io::ErrorKind::TimedOut;
    let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref::<std::io::Error>());
    match error {
        // Also an idle connection's end, which its peer could not tell from this.
        error if error.is_timeout() => Some("slow-head"),
        error if error.is_parse_too_large() => Some("large-head"),
        _ => cause.is_some_and(is_stalled).then_some("slow-reader"),
    }
}
