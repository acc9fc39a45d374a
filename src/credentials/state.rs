//! What is known of an identity, for those who look at it. Nothing here is a secret.

use serde::Serialize;

use super::fault::Class;
use super::token::TokenSource;
use crate::clock::Timestamp;

/// Who we are to the store, and how well that goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityState {
    /// `role`, `key` or `chain`.
    pub kind: &'static str,
    /// The role's ARN.
    pub role: Option<String>,
    /// Where the token of the last exchange came from.
    pub source: Option<TokenSource>,
    /// Which provider of the chain had the last credentials: `environment`, `profile`, `container`, `instance`.
    pub provider: Option<&'static str>,
    /// When the credentials end; `None` before the first exchange, and for what does not end.
    pub expires_at: Option<Timestamp>,
    /// When they were last renewed.
    pub renewed_at: Option<Timestamp>,
    /// The last failure, also after a later success.
    pub last_failure: Option<IdentityFailure>,
}

/// A failure to renew an identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct IdentityFailure {
    /// What kind of failure it was.
    pub class: Class,
    /// When.
    pub at: Timestamp,
}
