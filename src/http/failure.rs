//! What went wrong, as a response: one table of statuses, one form of body, one place of redaction.

use axum::Json;
use axum::http::header::{RETRY_AFTER, WWW_AUTHENTICATE};
use axum::http::{HeaderValue, StatusCode};
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use utoipa::ToSchema;

use super::access::Refusal;
use super::view::Viewer;
use crate::error::{Error, ErrorKind};
use crate::worker::Answer;

/// When to come back, in seconds, after an error that may pass by itself.
const RETRY_AFTER_SECONDS: HeaderValue = HeaderValue::from_static("10");

/// What strangers read instead of a message that may name storage, paths or roles.
const WITHHELD: &str = "details are shown to programs on this machine and to holders of the token";

/// A request that is answered with an error.
#[derive(Debug, Clone)]
pub(super) struct Failure {
    status: StatusCode,
    kind: &'static str,
    message: String,
    /// Whether the message speaks of the request only.
    is_public: bool,
    challenge: Option<&'static str>,
    is_transient: bool,
}

/// The body of every answer that is an error.
#[derive(Debug, Serialize, ToSchema)]
pub(super) struct ErrorBody {
    /// What went wrong.
    error: ErrorView,
}

/// An error as it is shown.
#[derive(Debug, Clone, Serialize, ToSchema)]
pub(super) struct ErrorView {
    /// Its stable name.
    kind: &'static str,
    /// For people.
    message: String,
}

impl Failure {
    /// Something is wrong with the request itself; `message` says nothing but that.
    pub(super) fn request(status: StatusCode, kind: &'static str, message: impl Into<String>) -> Failure {
        let message = message.into();
        Failure { status, kind, message, is_public: true, challenge: None, is_transient: false }
    }

    /// The request cannot be understood.
    pub(super) fn bad_request(message: impl Into<String>) -> Failure {
        Failure::request(StatusCode::BAD_REQUEST, "bad-request", message)
    }

    /// Every connection there may be is open.
    pub(super) fn crowded() -> Failure {
        let message = "all connections are taken (http.connections_max): only probes are answered";
        let failure = Failure::request(StatusCode::SERVICE_UNAVAILABLE, "crowded", message);
        Failure { is_transient: true, ..failure }
    }

    /// A domain error that speaks only of what the request named.
    pub(super) fn public(error: &Error) -> Failure {
        Failure { is_public: true, ..Failure::of(error.kind(), error.chain()) }
    }

    fn of(kind: ErrorKind, message: String) -> Failure {
        let (status, is_transient) = (status(kind), kind.is_transient());
        Failure { status, kind: kind.name(), message, is_public: false, challenge: None, is_transient }
    }

    /// Whether strangers are told less than there is to tell.
    pub(super) fn withholds(&self) -> bool {
        !self.is_public
    }

    /// Its stable name.
    pub(super) fn kind(&self) -> &'static str {
        self.kind
    }

    /// Its HTTP status.
    pub(super) fn status(&self) -> StatusCode {
        self.status
    }

    /// What `viewer` is told.
    pub(super) fn view(&self, viewer: Viewer) -> ErrorView {
        let message = match viewer {
            Viewer::Public if !self.is_public => WITHHELD.to_owned(),
            _ => self.message.clone(),
        };
        ErrorView { kind: self.kind, message }
    }

    /// The response to `viewer`.
    pub(super) fn response(&self, viewer: Viewer) -> Response {
        let mut response = (self.status, Json(ErrorBody { error: self.view(viewer) })).into_response();
        if let Some(challenge) = self.challenge {
            response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static(challenge));
        }
        if self.is_transient {
            response.headers_mut().insert(RETRY_AFTER, RETRY_AFTER_SECONDS);
        }
        response
    }
}

/// Whose fault it is, in HTTP's terms: what a request names wrongly is refused before a domain error
/// arises. Storage's "denied" must not look like our own.
const fn status(kind: ErrorKind) -> StatusCode {
    match kind {
        ErrorKind::NotFound => StatusCode::NOT_FOUND,
        ErrorKind::Conflict | ErrorKind::Fenced | ErrorKind::Target => StatusCode::CONFLICT,
        ErrorKind::Denied => StatusCode::BAD_GATEWAY,
        ErrorKind::Busy
        | ErrorKind::Unavailable
        | ErrorKind::Limit
        | ErrorKind::Unhealthy
        | ErrorKind::Cancelled => StatusCode::SERVICE_UNAVAILABLE,
        ErrorKind::Internal | ErrorKind::Config | ErrorKind::Source | ErrorKind::Corrupt => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

impl IntoResponse for Failure {
    /// What strangers see. The guard, who knows the asker, replaces it for those who may see more.
    fn into_response(self) -> Response {
        let mut response = self.response(Viewer::Public);
        response.extensions_mut().insert(self);
        response
    }
}

impl From<Error> for Failure {
    fn from(error: Error) -> Failure {
        Failure::of(error.kind(), error.chain())
    }
}

impl From<&Answer> for Failure {
    fn from(answer: &Answer) -> Failure {
        Failure::of(answer.kind, answer.message.clone())
    }
}

impl From<Refusal> for Failure {
    fn from(refusal: Refusal) -> Failure {
        let unauthorized = |message: &str, challenge| Failure {
            challenge: Some(challenge),
            ..Failure::request(StatusCode::UNAUTHORIZED, "unauthorized", message)
        };
        match refusal {
            Refusal::WrongToken => unauthorized(
                "the token is not valid here",
                r#"Bearer realm="lifeboat", error="invalid_token""#,
            ),
            Refusal::NoToken => unauthorized("this needs the token", r#"Bearer realm="lifeboat""#),
            Refusal::Forbidden(why) => Failure::request(StatusCode::FORBIDDEN, "forbidden", why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_an_error_and_storage_never_answers_for_us() {
        for kind in ErrorKind::ALL {
            let status = status(kind);
            assert!(status.is_client_error() || status.is_server_error(), "{kind}");
            assert!(!matches!(status, StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN), "{kind}");
            assert!(!kind.is_transient() || status == StatusCode::SERVICE_UNAVAILABLE, "{kind}");
        }
    }

    #[test]
    fn strangers_read_the_kind_but_not_the_message() {
        let failure = Failure::from(Error::new(ErrorKind::Denied, "bucket=`secret`"));
        let (public, trusted) = (failure.view(Viewer::Public), failure.view(Viewer::Trusted));
        assert_eq!((public.kind, public.message.as_str()), ("denied", WITHHELD));
        assert_eq!(trusted.message, "bucket=`secret`");
    }
}
