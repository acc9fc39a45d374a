//! What a request says, as typed values. What cannot be read is refused in the one form of errors.

use std::time::Duration;

use axum::body::{Bytes, HttpBody};
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use axum::http::StatusCode;
use axum::http::header::{CONTENT_TYPE, HeaderMap};
use axum::http::request::Parts;
use serde::de::DeserializeOwned;

use super::failure::Failure;

/// How long a body may take to arrive.
const BODY_TIME: Duration = Duration::from_secs(10);

/// The query, without unknown or repeated fields.
pub(super) struct Asked<T>(pub(super) T);

impl<T: DeserializeOwned, S: Sync> FromRequestParts<S> for Asked<T> {
    type Rejection = Failure;

    async fn from_request_parts(head: &mut Parts, _: &S) -> Result<Self, Failure> {
        let Query(asked) = Query::try_from_uri(&head.uri)
            .map_err(|rejection| Failure::bad_request(rejection.body_text().replace('\n', " ")))?;
        Ok(Asked(asked))
    }
}

/// The one variable segment of the path, still text.
pub(super) struct Segment(pub(super) String);

impl<S: Send + Sync> FromRequestParts<S> for Segment {
    type Rejection = Failure;

    async fn from_request_parts(head: &mut Parts, state: &S) -> Result<Self, Failure> {
        let Path(segment) = Path::from_request_parts(head, state)
            .await
            .map_err(|_| Failure::bad_request("the path is not text in UTF-8"))?;
        Ok(Segment(segment))
    }
}

/// A JSON body; `None` if the request has none.
pub(super) struct Body<T>(pub(super) Option<T>);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for Body<T> {
    type Rejection = Failure;

    async fn from_request(request: Request, state: &S) -> Result<Self, Failure> {
        let is_json = is_json(request.headers());
        if request.body().size_hint().lower() > super::BODY_BYTES_MAX as u64 {
            return Err(too_large());
        }
        let timeout =
            || Failure::request(StatusCode::REQUEST_TIMEOUT, "timeout", "the body did not arrive in time");
        let bytes = tokio::time::timeout(BODY_TIME, Bytes::from_request(request, state))
            .await
            .map_err(|_| timeout())?
            .map_err(|rejection| match rejection.status() {
                StatusCode::PAYLOAD_TOO_LARGE => too_large(),
                _ => Failure::bad_request("the body did not arrive whole"),
            })?;
        if bytes.is_empty() {
            return Ok(Body(None));
        }
        if !is_json {
            return Err(Failure::request(
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "unsupported-media-type",
                "the body must be JSON and say so: content-type=`application/json`",
            ));
        }
        serde_json::from_slice(&bytes)
            .map(|body| Body(Some(body)))
            .map_err(|error| Failure::bad_request(format!("the body is not what this route reads: {error}")))
    }
}

fn too_large() -> Failure {
    let message = format!("a body has at most {} bytes", super::BODY_BYTES_MAX);
    Failure::request(StatusCode::PAYLOAD_TOO_LARGE, "too-large", message)
}

/// A page cannot send this type to another origin without being asked first, and we never answer that.
fn is_json(headers: &HeaderMap) -> bool {
    let text = headers.get(CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let essence = text.split(';').next().unwrap_or_default();
    essence.trim().eq_ignore_ascii_case("application/json")
}
