//! What every request passes: admission, a bound in time, a log line, and headers that keep the
//! answer from being cached, guessed at, framed, embedded or executed.

use std::any::Any;
use std::time::{Duration, Instant};

use axum::extract::{Request, State};
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, REFERRER_POLICY, X_CONTENT_TYPE_OPTIONS};
use axum::http::{HeaderValue, Method, StatusCode, Uri};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::access::{Access, Peer, Refusal, Wants};
use super::failure::Failure;
use super::view::Viewer;
use crate::error::{Error, ErrorKind};
use crate::metrics::HttpMetrics;

/// How long a request may take unless it waits for a job.
const REQUEST_TIME: Duration = Duration::from_secs(30);

/// How long a wrong token is kept waiting: too long to try many, and nobody's typing mistake.
const WRONG_TOKEN_DELAY: Duration = Duration::from_millis(500);

/// Says of a request that it came although all connections are taken.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crowded;

/// Lets a request through to a route that wants `wants`, or answers it.
pub(super) async fn admitted(
    State((access, wants)): State<(Access, Wants)>,
    request: Request,
    next: Next,
) -> Response {
    let (mut head, body) = request.into_parts();
    let peer = head.extensions.get::<Peer>().map(|Peer(address)| address.to_string());
    // Every place is taken: whoever watches over us is answered still, work is not begun.
    if wants > Wants::Probe && head.extensions.get::<Crowded>().is_some() {
        return Failure::crowded().into_response();
    }
    access.refresh(&head).await;
    let viewer = match access.admit(wants, &head) {
        Ok(viewer) => viewer,
        Err(refusal) => {
            if refusal == Refusal::WrongToken {
                tracing::warn!(peer, path = head.uri.path(), "refused a wrong token");
                tokio::time::sleep(WRONG_TOKEN_DELAY).await;
            }
            return Failure::from(refusal).into_response();
        }
    };
    // A route that answers GET answers HEAD too, and asking whether it exists must do nothing.
    if wants >= Wants::Act && head.method == Method::HEAD {
        return method_not_allowed(head.method).await.into_response();
    }
    if wants >= Wants::Act {
        let (method, path) = (&head.method, head.uri.path());
        tracing::info!(peer, %method, path, "{method} {path} was asked for");
    }
    head.extensions.insert(viewer);
    let answer = next.run(Request::from_parts(head, body));
    let response = match wants {
        Wants::Probe | Wants::Page | Wants::Read => {
            within(async { Ok(answer.await) }).await.unwrap_or_else(IntoResponse::into_response)
        }
        // A job has its own deadline; what comes before and after it is bounded where it is done.
        Wants::Act | Wants::Restore => answer.await,
    };
    match (viewer, response.extensions().get::<Failure>()) {
        (Viewer::Trusted, Some(failure)) if failure.withholds() => failure.response(viewer),
        _ => response,
    }
}

/// The outcome of `work`, or an error if it takes too long.
pub(super) async fn within<T>(work: impl Future<Output = Result<T, Failure>>) -> Result<T, Failure> {
    let late = || Error::new(ErrorKind::Unavailable, format!("there was no answer within {REQUEST_TIME:?}"));
    tokio::time::timeout(REQUEST_TIME, work).await.unwrap_or_else(|_| Err(late().into()))
}

/// The kinds of failures that are a bound or a rule of this interface, and no outcome of any work.
const COUNTED: [&str; 5] = ["crowded", "forbidden", "timeout", "too-large", "unauthorized"];

/// Writes one line for every request that was answered, and counts those that a bound ended.
pub(super) async fn logged(State(metrics): State<HttpMetrics>, request: Request, next: Next) -> Response {
    let began = Instant::now();
    let peer = request.extensions().get::<Peer>().map(|Peer(address)| address.to_string());
    let (method, path) = (request.method().clone(), request.uri().path().to_owned());
    let response = next.run(request).await;
    let refused = response.extensions().get::<Failure>().map(Failure::kind);
    refused.filter(|kind| COUNTED.contains(kind)).into_iter().for_each(|kind| metrics.refused(kind));
    let (status, duration_ms) = (response.status().as_u16(), began.elapsed().as_millis() as u64);
    tracing::debug!(peer, %method, path, status, duration_ms, "{method} {path} answered {status}");
    response
}

/// Adds the headers that every answer has: it is data, for this asker, now.
pub(super) async fn hardened(mut response: Response) -> Response {
    let headers = response.headers_mut();
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    headers.insert(X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    headers.insert(REFERRER_POLICY, HeaderValue::from_static("no-referrer"));
    headers.insert("cross-origin-resource-policy", HeaderValue::from_static("same-origin"));
    headers.insert(
        CONTENT_SECURITY_POLICY,
        HeaderValue::from_static("default-src 'none'; frame-ancestors 'none'"),
    );
    response
}

/// Answers for a route that panicked. The panic itself was written to the log where it happened.
pub(super) fn panicked(_: Box<dyn Any + Send>) -> Response {
    Failure::request(StatusCode::INTERNAL_SERVER_ERROR, "internal", "this request failed by a defect")
        .into_response()
}

/// Answers where there is no route.
pub(super) async fn no_such_route(uri: Uri) -> Failure {
    Failure::request(
        StatusCode::NOT_FOUND,
        "not-found",
        format!("there is no such route: path=`{}`", uri.path()),
    )
}

/// Answers where there is a route, but not for this method.
pub(super) async fn method_not_allowed(method: Method) -> Failure {
    Failure::request(
        StatusCode::METHOD_NOT_ALLOWED,
        "method-not-allowed",
        format!("this route has no such method: method=`{method}`"),
    )
}

#[cfg(test)]
mod tests {
    use axum::Router;
    use axum::body::{Body, to_bytes};
    use axum::routing::get;
    use tower::ServiceExt;
    use tower_http::catch_panic::CatchPanicLayer;

    use super::*;

    #[tokio::test]
    async fn a_panic_is_answered_and_says_nothing() {
        async fn broken() {
            panic!("with a secret");
        }
        let router = Router::new().route("/", get(broken)).layer(CatchPanicLayer::custom(panicked));
        let response = router.oneshot(Request::new(Body::empty())).await.expect("an answer");
        assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
        let body = to_bytes(response.into_body(), 1 << 10).await.expect("a body");
        let body = String::from_utf8_lossy(&body);
        assert!(body.contains("defect") && !body.contains("secret"), "{body}");
    }
}
