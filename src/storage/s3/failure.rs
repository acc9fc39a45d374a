//! What a store answered, sorted by what it means for us.
//!
//! The SDK's errors carry the raw response in their debug form, and with it whatever a store
//! echoes; only the text made here leaves this folder.

use std::error::Error as StdError;
use std::time::Duration;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};

use super::Unready;
use crate::error::{Error, ErrorKind};
use crate::storage::Operation;

/// What a failed attempt means.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Class {
    /// There is no such object.
    Missing,
    /// There is no such multipart upload (any more).
    MissingUpload,
    /// There is no such bucket.
    MissingBucket,
    /// The bucket is in another region.
    Elsewhere,
    /// Not allowed.
    Denied,
    /// Nothing to sign a request with: it was never sent.
    Unidentified,
    /// The same, after a wait for it that was in vain.
    Awaited,
    /// The credentials were good and are too old.
    Expired,
    /// A question whose answer has no body was refused, so that nothing tells why: perhaps this.
    PerhapsExpired,
    /// A condition did not hold.
    Precondition,
    /// Another conditional write to the same key was under way.
    Concurrent,
    /// The object ends before the range.
    OutOfRange,
    /// The store does not know this operation or this header.
    Unsupported,
    /// May go away by itself: no answer, overload, a server error.
    Transient,
    /// Anything else: asking again gets the same answer.
    Refused,
}

/// One failed attempt.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) class: Class,
    /// What happened, in one line for people, without secrets.
    pub(super) text: String,
}

/// A store's message is somebody else's text: this much of it is shown.
const MESSAGE_CHARS_MAX: usize = 300;

const TRANSIENT_CODES: [&str; 12] = [
    "InternalError",
    "InternalFailure",
    "ServiceUnavailable",
    "SlowDown",
    "Throttling",
    "ThrottlingException",
    "TooManyRequests",
    "RequestLimitExceeded",
    "RequestTimeout",
    "RequestTimeoutException",
    // The SDK measures the server's clock in the refused answer and signs the next attempt by it.
    "RequestTimeTooSkewed",
    "OperationAborted",
];

impl Failure {
    pub(super) fn new(class: Class, text: impl Into<String>) -> Self {
        Failure { class, text: text.into() }
    }

    pub(super) fn unready(unready: Unready) -> Self {
        let class = match (unready.error.kind().is_transient(), unready.was_awaited) {
            (false, _) => Class::Unidentified,
            (true, false) => Class::Transient,
            (true, true) => Class::Awaited,
        };
        Failure::new(class, unready.error.chain())
    }

    pub(super) fn timeout(limit: Duration) -> Self {
        Failure::new(Class::Transient, format!("no complete answer within {} s", limit.as_secs_f32()))
    }

    /// Whether new credentials may help.
    pub(super) fn is_expiry(&self) -> bool {
        matches!(self.class, Class::Expired | Class::PerhapsExpired)
    }

    /// A transfer that broke off after the answer had begun.
    pub(super) fn body(error: &(dyn StdError + 'static)) -> Self {
        Failure::new(Class::Transient, format!("the answer broke off: {}", chain(error)))
    }

    pub(super) fn of<E>(error: SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        if let Some(response) = error.raw_response() {
            let status = response.status().as_u16();
            let code = error.code().unwrap_or_default();
            let region = response.headers().get("x-amz-bucket-region");
            let class = match &error {
                SdkError::ServiceError(_) => classify(status, code),
                // An answer that cannot be read: a proxy's page, or one cut short.
                _ if status < 400 => Class::Transient,
                _ => classify(status, ""),
            };
            let mut text = format!("the store answered {status} {code}").trim_end().to_owned();
            if let Some(message) = error.message() {
                let message: String = message.chars().take(MESSAGE_CHARS_MAX).collect();
                text.push_str(&format!(" ({})", message.escape_debug()));
            }
            if let (Class::Elsewhere, Some(region)) = (class, region) {
                text.push_str(&format!("; its region is `{}`", region.escape_debug()));
            }
            return Failure::new(class, text);
        }
        let class = match &error {
            SdkError::TimeoutError(_) => Class::Transient,
            SdkError::DispatchFailure(_) => credentials_fault(&error).unwrap_or(Class::Transient),
            _ => Class::Refused,
        };
        Failure::new(class, chain(&error))
    }

    /// The same for a request of the method HEAD: S3 answers 400 to old credentials there, and no more.
    pub(super) fn of_head<E>(error: SdkError<E>) -> Self
    where
        E: ProvideErrorMetadata + StdError + Send + Sync + 'static,
    {
        let is_wordless = error.raw_response().is_some_and(|response| response.status().as_u16() == 400);
        match Failure::of(error) {
            failure if is_wordless => Failure { class: Class::PerhapsExpired, ..failure },
            failure => failure,
        }
    }

    /// The same as an error of the program: what was tried, what it means, what the user can do.
    pub(super) fn error(self, operation: Operation, bucket: &str, what: &str) -> Error {
        let (kind, advice) = match self.class {
            Class::Missing => (ErrorKind::NotFound, "there is no such object"),
            Class::MissingUpload => (ErrorKind::Unavailable, "the upload was ended by somebody else"),
            Class::MissingBucket => (ErrorKind::Denied, "there is no such bucket"),
            Class::Elsewhere => {
                (ErrorKind::Denied, "the bucket is in another region: set AWS_REGION to that")
            }
            Class::Denied => (ErrorKind::Denied, permission(operation)),
            Class::Awaited => {
                (ErrorKind::Unavailable, "no credentials came in the time that is given to them")
            }
            Class::Unidentified => (ErrorKind::Denied, "there are no credentials"),
            Class::Expired => (ErrorKind::Denied, "the credentials have expired"),
            Class::Precondition => (ErrorKind::Conflict, "the object exists or has changed"),
            Class::Concurrent => (ErrorKind::Unavailable, "another write to the same key was under way"),
            Class::OutOfRange => (ErrorKind::Corrupt, "the object ends before the range does"),
            Class::Unsupported => (ErrorKind::Denied, "the store does not support this"),
            Class::Transient => (ErrorKind::Unavailable, "no usable answer in the allowed time and tries"),
            Class::Refused | Class::PerhapsExpired => (ErrorKind::Denied, "storage refused"),
        };
        let message = format!("{} in storage: {advice}: bucket=`{bucket}` {what}", operation.verb());
        Error::new(kind, message).because(self.text)
    }
}

/// What to look at when an operation is not allowed.
const fn permission(operation: Operation) -> &'static str {
    match operation {
        Operation::Create => "not allowed; check the credentials, s3:PutObject and s3:AbortMultipartUpload",
        Operation::Replace => "not allowed; check the credentials and s3:PutObject",
        // S3 tells only those who may list that an object is absent.
        Operation::Read | Operation::ReadRange | Operation::Head => {
            "not allowed, or absent; check the credentials and s3:GetObject, and allow s3:ListBucket to tell these apart"
        }
        Operation::List => "not allowed; check the credentials and s3:ListBucket",
        Operation::Delete => "not allowed; check the credentials and s3:DeleteObject",
        Operation::Sweep => "not allowed; check the credentials and s3:ListBucketMultipartUploads",
    }
}

fn classify(status: u16, code: &str) -> Class {
    match code {
        "NoSuchBucket" => return Class::MissingBucket,
        "NoSuchKey" => return Class::Missing,
        "NoSuchUpload" => return Class::MissingUpload,
        "PermanentRedirect" | "TemporaryRedirect" | "AuthorizationHeaderMalformed" => {
            return Class::Elsewhere;
        }
        "IllegalLocationConstraintException" => return Class::Elsewhere,
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" => return Class::Expired,
        "PreconditionFailed" => return Class::Precondition,
        "ConditionalRequestConflict" => return Class::Concurrent,
        "InvalidRange" => return Class::OutOfRange,
        "NotImplemented" => return Class::Unsupported,
        code if TRANSIENT_CODES.contains(&code) => return Class::Transient,
        _ => {}
    }
    match status {
        301 | 307 | 308 => Class::Elsewhere,
        // Some stores answer a failed condition on a write as if it were a read.
        304 | 412 => Class::Precondition,
        401 | 403 => Class::Denied,
        404 => Class::Missing,
        408 | 425 | 429 | 500 | 502 | 503 | 504 | 509 => Class::Transient,
        409 => Class::Concurrent,
        416 => Class::OutOfRange,
        501 => Class::Unsupported,
        // An error inside an answer that says 200 (CompleteMultipartUpload): undecided.
        200..=299 => Class::Transient,
        500..=599 => Class::Transient,
        _ => Class::Refused,
    }
}

/// A request that was never sent, because there was nothing to sign it with.
fn credentials_fault(error: &(dyn StdError + 'static)) -> Option<Class> {
    let mut causes = causes(error);
    if let Some(ours) = causes.clone().find_map(|cause| cause.downcast_ref::<Error>()) {
        return Some(if ours.kind().is_transient() { Class::Transient } else { Class::Unidentified });
    }
    let fault = causes.find_map(|cause| cause.downcast_ref::<CredentialsError>())?;
    Some(match fault {
        CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_) => Class::Transient,
        _ => Class::Unidentified,
    })
}

fn causes<'a>(
    error: &'a (dyn StdError + 'static),
) -> impl Iterator<Item = &'a (dyn StdError + 'static)> + Clone {
    std::iter::successors(Some(error), |error: &&'a (dyn StdError + 'static)| (*error).source())
}

/// The error and its causes, each said once.
fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut texts: Vec<String> = causes(error).map(|cause| cause.to_string().replace('\n', " ")).collect();
    texts.dedup();
    texts.join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_code_counts_before_the_status() {
        let cases = [
            (404, "NoSuchBucket", Class::MissingBucket),
            (404, "NoSuchKey", Class::Missing),
            (404, "", Class::Missing),
            (400, "ExpiredToken", Class::Expired),
            (400, "RequestTimeout", Class::Transient),
            (403, "RequestTimeTooSkewed", Class::Transient),
            (403, "SignatureDoesNotMatch", Class::Denied),
            (301, "PermanentRedirect", Class::Elsewhere),
            (400, "AuthorizationHeaderMalformed", Class::Elsewhere),
            (409, "ConditionalRequestConflict", Class::Concurrent),
            (409, "OperationAborted", Class::Transient),
            (412, "", Class::Precondition),
            (304, "", Class::Precondition),
            (501, "NotImplemented", Class::Unsupported),
            (200, "InternalError", Class::Transient),
            (200, "SomethingNew", Class::Transient),
            (503, "SlowDown", Class::Transient),
            (520, "", Class::Transient),
            (400, "EntityTooSmall", Class::Refused),
        ];
        for (status, code, class) in cases {
            assert_eq!(classify(status, code), class, "{status} {code}");
        }
    }
}
