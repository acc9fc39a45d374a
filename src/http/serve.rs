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

use super::patient::Patient;
use super::{App, Peer};
use crate::error::{Context, Error, ErrorKind, Result};

/// Connections at a time. The next one waits in the kernel's queue, where it costs nothing.
const CONNECTIONS_MAX: usize = 64;

/// How long the head of a request may take; also how long an idle connection is kept.
const HEAD_TIME: Duration = Duration::from_secs(5);

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
pub async fn serve(listener: TcpListener, app: App, stop: CancellationToken) -> Result<()> {
    let stop = stop.child_token();
    let router = super::router(app, stop.clone());
    let slots = Arc::new(Semaphore::new(CONNECTIONS_MAX));
    let connections = TaskTracker::new();
    let outcome = loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break Ok(()),
            accepted = accept(&listener, &slots) => accepted,
        };
        match accepted {
            Ok((slot, stream, peer)) => {
                let (router, stop) = (router.clone(), stop.clone());
                connections.spawn(async move {
                    converse(stream, peer, router, stop).await;
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

/// The next connection, once there may be one more.
async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Result<(OwnedSemaphorePermit, TcpStream, SocketAddr)> {
    let slot = Arc::clone(slots)
        .acquire_owned()
        .await
        .context(ErrorKind::Internal, || "wait for a free connection".to_owned())?;
    let mut failures = 0;
    loop {
        match listener.accept().await {
            Ok((stream, peer)) => return Ok((slot, stream, peer)),
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
async fn converse(stream: TcpStream, peer: SocketAddr, router: Router, stop: CancellationToken) {
    // Answers are small and whole; an error here only costs latency.
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: Request<Incoming>| {
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(Peer(peer));
        router.clone().oneshot(request)
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
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
        tracing::debug!(%peer, %error, "a connection ended badly");
    }
}
