//! The exchange of an identity token for credentials, at STS.

use std::sync::atomic::AtomicBool;
use std::time::{Duration, SystemTime};

use aws_config::Region;
use aws_credential_types::Credentials;
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_sts::operation::assume_role_with_web_identity::{
    AssumeRoleWithWebIdentityError, AssumeRoleWithWebIdentityOutput,
};
use secrecy::ExposeSecret;

use super::claims::Claims;
use super::explain;
use super::fault::{Class, Fault, said};
use super::token::{self, Token, TokenSource};
use super::wire::{self, Peers};
use super::{Role, behavior_version};
use crate::clock::{Clock, Timestamp};

/// How many tokens are tried, each fresh, when STS says that it is the token or its issuer.
const TOKENS_MAX: usize = 3;

/// The pause before the next one.
const PAUSE: Duration = Duration::from_millis(500);

/// An end further off than asked for, by more than this, shows that clocks differ.
const SKEW_MAX: Duration = Duration::from_secs(300);

/// A message of STS is somebody else's text: this much of it is shown, in characters.
const MESSAGE_CHARS_MAX: usize = 300;

/// The name of an error is one word.
const CODE_BYTES_MAX: usize = 64;

/// A role that was assumed.
#[derive(Debug)]
pub struct Assumed {
    pub(super) credentials: Credentials,
    /// Where the token came from.
    pub source: TokenSource,
    /// What it said.
    pub claims: Claims,
    /// When the credentials end, by the clock of this machine.
    pub expires_at: Timestamp,
    /// What AWS calls us: `arn:aws:sts::ACCOUNT:assumed-role/ROLE/SESSION`.
    pub session_arn: Option<String>,
}

/// The token service of one region.
#[derive(Debug)]
pub(super) struct Sts {
    client: aws_sdk_sts::Client,
    /// Somebody was told that a token is waited for.
    told: AtomicBool,
}

impl Sts {
    pub(super) fn new(role: &Role, region: &Region) -> Sts {
        // Built from nothing, so that no endpoint meant for storage is ever handed the token.
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(behavior_version())
            .region(region.clone())
            .http_client(wire::client(Peers::Chosen))
            // Storage tries again; two layers of that would multiply.
            .retry_config(RetryConfig::disabled())
            .timeout_config(
                TimeoutConfig::builder()
                    .connect_timeout(Duration::from_millis(3_100))
                    .operation_attempt_timeout(Duration::from_secs(8))
                    .build(),
            );
        if let Some(endpoint) = &role.sts_endpoint_url {
            config = config.endpoint_url(endpoint);
        }
        Sts { client: aws_sdk_sts::Client::from_conf(config.build()), told: AtomicBool::new(false) }
    }

    /// Gets a token and exchanges it; gets a fresh one a few times where STS finds fault with it.
    pub(super) async fn assume(&self, role: &Role, clock: &Clock) -> Result<Assumed, Fault> {
        let mut tried = 1;
        loop {
            let token = token::fetch(role, clock, &self.told).await?;
            let fault = match self.exchange(role, token, clock).await {
                Ok(assumed) => return Ok(assumed),
                Err(fault) => fault,
            };
            let is_of_token =
                matches!(fault.class, Class::InvalidToken | Class::IdpCommunication | Class::TokenExpired);
            if !is_of_token || tried == TOKENS_MAX {
                return Err(fault);
            }
            tracing::debug!(class = fault.class.name(), "trying a fresh identity token: {}", fault.text);
            tokio::time::sleep(PAUSE * tried as u32).await;
            tried += 1;
        }
    }

    async fn exchange(&self, role: &Role, token: Token, clock: &Clock) -> Result<Assumed, Fault> {
        let answer = self
            .client
            .assume_role_with_web_identity()
            .role_arn(&role.arn)
            .role_session_name(&role.session_name)
            .duration_seconds(role.session_duration.as_secs().try_into().unwrap_or(i32::MAX))
            .web_identity_token(token.secret.expose_secret())
            .send()
            .await
            .map_err(|error| refused(&error, role, &token))?;
        taken(answer, token, role, clock)
    }
}

/// The credentials in STS's answer, if they are ones.
fn taken(
    answer: AssumeRoleWithWebIdentityOutput,
    token: Token,
    role: &Role,
    clock: &Clock,
) -> Result<Assumed, Fault> {
    let nonsense = |what: &str| {
        let text =
            format!("assume the role by web identity: STS answered without {what}: role=`{}`", role.arn);
        Fault::new(Class::StsAnswer, text)
    };
    let found = answer.credentials.ok_or_else(|| nonsense("credentials"))?;
    if [&found.access_key_id, &found.secret_access_key, &found.session_token]
        .into_iter()
        .any(String::is_empty)
    {
        return Err(nonsense("a complete key"));
    }
    let ends_at = SystemTime::try_from(found.expiration).ok().and_then(|end| Timestamp::try_from(end).ok());
    let expires_at =
        local_end(ends_at.ok_or_else(|| nonsense("an end"))?, role.session_duration, clock.now());
    Ok(Assumed {
        credentials: Credentials::new(
            found.access_key_id,
            found.secret_access_key,
            Some(found.session_token),
            Some(expires_at.into()),
            "web-identity",
        ),
        source: token.source,
        claims: token.claims,
        expires_at,
        session_arn: answer.assumed_role_user.map(|user| user.arn),
    })
}

/// When what ends at `ends_at` by the clock of STS ends by ours.
fn local_end(ends_at: Timestamp, duration: Duration, now: Timestamp) -> Timestamp {
    let latest = now + duration;
    if ends_at > now && ends_at <= latest + SKEW_MAX {
        return ends_at;
    }
    tracing::warn!(
        "the clocks of this machine and of STS differ, set this one right: credentials for {} s end at {ends_at}, and \
         here it is {now:.0}",
        duration.as_secs()
    );
    latest
}

/// What STS said, without the request: that one has the token in it.
fn refused(error: &SdkError<AssumeRoleWithWebIdentityError>, role: &Role, token: &Token) -> Fault {
    let class = classify(error);
    let said = match error {
        SdkError::ServiceError(answer) => match (answer.err().code(), error.message()) {
            (Some(code), message) => format!("{code}: {}", message.unwrap_or("no message")),
            (None, _) => match code_in(answer.raw().body().bytes()) {
                Some(code) => format!("{} and yet the error {code}", answer.raw().status()),
                None => format!("{} and no error code", answer.raw().status()),
            },
        },
        SdkError::ResponseError(answer) => format!("{} and no answer of STS", answer.raw().status()),
        SdkError::TimeoutError(_) => "no answer in time".to_owned(),
        error => said(error),
    };
    let said: String = without_token(&said, token).chars().take(MESSAGE_CHARS_MAX).collect();
    let advice = explain::advice(class, role, &token.claims);
    let arn = &role.arn;
    Fault::new(
        class,
        format!("assume the role by web identity: {}: role=`{arn}`{advice}", said.escape_debug()),
    )
}

/// The error that an answer names, where its status does not say that it is one.
fn code_in(body: Option<&[u8]>) -> Option<&str> {
    let (_, rest) = str::from_utf8(body?).ok()?.split_once("<Code>")?;
    let (code, _) = rest.split_once("</Code>")?;
    (code.len() <= CODE_BYTES_MAX && code.bytes().all(|b| b.is_ascii_alphanumeric())).then_some(code)
}

fn classify(error: &SdkError<AssumeRoleWithWebIdentityError>) -> Class {
    let Some(status) = error.raw_response().map(|response| response.status()) else {
        return match error {
            SdkError::ConstructionFailure(_) => Class::StsRefused,
            _ => Class::StsUnreachable,
        };
    };
    match error.code() {
        _ if status.is_success() => Class::StsAnswer,
        Some("IDPCommunicationError") => Class::IdpCommunication,
        Some("InvalidIdentityToken" | "IDPRejectedClaim") => Class::InvalidToken,
        Some("ExpiredToken" | "ExpiredTokenException") => Class::TokenExpired,
        Some("AccessDenied" | "AccessDeniedException") => Class::AccessDenied,
        Some("Throttling" | "ThrottlingException" | "RequestLimitExceeded") => Class::StsUnavailable,
        _ if status.is_server_error() || status.as_u16() == 429 => Class::StsUnavailable,
        Some(_) => Class::StsRefused,
        // STS has a code for everything; this is somebody in between.
        None => Class::StsAnswer,
    }
}

/// A service, or who stands before it, may quote what it was sent.
fn without_token(text: &str, token: &Token) -> String {
    let segments = token.secret.expose_secret().split('.');
    segments
        .filter(|segment| segment.len() >= 8)
        .fold(text.to_owned(), |text, segment| text.replace(segment, "…"))
}
