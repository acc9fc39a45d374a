//! One identity for everything that is asked of storage: cached, shared, and renewed in time.
//!
//! Its end is judged by the wall clock, for a machine that was suspended wakes up with a monotonic
//! clock that knows nothing of it.

use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use aws_config::Region;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, future};
use futures::FutureExt;
use futures::future::{BoxFuture, Shared};
use jiff::SignedDuration;
use secrecy::ExposeSecret;
use tokio::sync::watch;
use tokio::time::Instant;

use super::chain::{self, Chain};
use super::exchange::Sts;
use super::fault::Fault;
use super::state::{IdentityFailure, IdentityState};
use super::token::TokenSource;
use super::{Identity, Role};
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::IdentityMetrics;
use crate::storage::{Renewal, Unready, check_endpoint};

/// So long before their end credentials are renewed, so that a long part does not outlive its
/// signature and STS has time to recover.
const RENEW_AHEAD: SignedDuration = SignedDuration::from_mins(5);

/// The pause after a renewal that failed while the old credentials are still good; at least, after one that brought
/// hardly more time.
const RENEW_PAUSE: Duration = Duration::from_secs(15);

/// The longest a renewal of the chain may take; the parts of a role's have bounds of their own.
const CHAIN_TIME_MAX: Duration = Duration::from_secs(30);

/// An identity. Clones are the same one.
#[derive(Clone)]
pub struct Session(Arc<Inner>);

struct Inner {
    maker: Maker,
    clock: Clock,
    metrics: IdentityMetrics,
    cached: Mutex<Cached>,
    state: watch::Sender<IdentityState>,
}

/// How credentials are come by.
enum Maker {
    Role { role: Role, sts: Sts },
    Key(Credentials),
    Chain(Chain),
}

#[derive(Default)]
struct Cached {
    credentials: Option<Credentials>,
    /// How often credentials were renewed.
    generation: u64,
    /// The store says that these have ended, whatever they say themselves.
    refused: bool,
    /// The renewal under way.
    running: Option<Renewing>,
    /// No renewal ahead of time before this.
    not_before: Option<Instant>,
}

type Renewing = Shared<BoxFuture<'static, Result<Credentials, Arc<Unready>>>>;

/// What a renewal brings.
struct Renewed {
    credentials: Credentials,
    source: Option<TokenSource>,
    /// Of the chain.
    provider: Option<&'static str>,
}

impl Session {
    /// An identity in `region`. Nothing is sent before credentials are needed.
    ///
    /// `Config` if the token would be sent in clear.
    pub fn open(identity: Identity, region: &str, clock: Clock, metrics: IdentityMetrics) -> Result<Session> {
        let region = Region::new(region.to_owned());
        let (kind, role) = (identity.name(), identity.role().map(|role| role.arn.clone()));
        let maker = match identity {
            Identity::Role(role) => {
                if let Some(endpoint) = &role.sts_endpoint_url {
                    // A token in plain text is anybody's token.
                    check_endpoint(endpoint, false)?;
                }
                Maker::Role { sts: Sts::new(&role, &region), role }
            }
            Identity::Key { id, secret, session_token } => {
                let session_token = session_token.map(|token| token.expose_secret().to_owned());
                Maker::Key(Credentials::new(id, secret.expose_secret(), session_token, None, "key"))
            }
            Identity::Chain => Maker::Chain(Chain::new(&region)),
        };
        let state = IdentityState {
            kind,
            role,
            source: None,
            provider: None,
            expires_at: None,
            renewed_at: None,
            last_failure: None,
        };
        let (cached, state) = (Mutex::default(), watch::Sender::new(state));
        Ok(Session(Arc::new(Inner { maker, clock, metrics, cached, state })))
    }

    /// What is known of it, now and later.
    pub fn watch(&self) -> watch::Receiver<IdentityState> {
        self.0.state.subscribe()
    }

    /// What is known of it now.
    pub fn state(&self) -> IdentityState {
        self.0.state.borrow().clone()
    }

    /// Credentials that are good now: cached ones, or new ones if those have ended.
    async fn credentials(&self) -> Result<Credentials, Unready> {
        let renewing = {
            let mut cached = self.cached();
            let now = self.0.clock.now();
            match cached.credentials.clone().map(|credentials| (time_left(&credentials, now), credentials)) {
                Some((None, credentials)) if !cached.refused => return Ok(credentials),
                Some((Some(left), credentials)) if !cached.refused && left > SignedDuration::ZERO => {
                    let may_try = cached.not_before.is_none_or(|moment| moment <= Instant::now());
                    if left <= RENEW_AHEAD && may_try {
                        // Nobody waits for it, while there is something to go on with.
                        drop(self.renewing(&mut cached));
                    }
                    return Ok(credentials);
                }
                _ => self.renewing(&mut cached),
            }
        };
        // Each waiter gets an error of its own that says the same.
        renewing.await.map_err(|unready| Unready { error: unready.error.again(), ..*unready })
    }

    /// The renewal under way, begun if there is none. It goes on whoever stops waiting for it.
    fn renewing(&self, cached: &mut Cached) -> Renewing {
        if let Some(running) = cached.running.as_ref().filter(|running| running.peek().is_none()) {
            return running.clone();
        }
        let session = self.clone();
        let task = tokio::spawn(async move { session.renew().await });
        let ended = task.map(|ended| match ended {
            Ok(outcome) => outcome,
            Err(error) => {
                let error = match error.is_cancelled() {
                    true => Error::cancelled(),
                    false => Error::new(ErrorKind::Internal, "the renewal of the identity panicked"),
                };
                Err(Arc::new(Unready { error, was_awaited: false }))
            }
        });
        cached.running.insert(ended.boxed().shared()).clone()
    }

    async fn renew(&self) -> Result<Credentials, Arc<Unready>> {
        let made = self.0.maker.make(&self.0.clock).await;
        let now = self.0.clock.now();
        let mut cached = self.cached();
        cached.running = None;
        match made {
            Ok(Renewed { credentials, source, provider }) => {
                cached.credentials = Some(credentials.clone());
                cached.generation += 1;
                cached.refused = false;
                cached.not_before = pause_after(&credentials, now);
                self.note_success(source, provider, end_of(&credentials), now);
                Ok(credentials)
            }
            Err(fault) => {
                cached.not_before = Some(Instant::now() + RENEW_PAUSE);
                let left = cached.credentials.as_ref().and_then(|credentials| time_left(credentials, now));
                self.note_failure(&fault, left.filter(|_| !cached.refused), now);
                let was_awaited = fault.class.may_pass_soon();
                Err(Arc::new(Unready { error: fault.into(), was_awaited }))
            }
        }
    }

    fn note_success(
        &self,
        source: Option<TokenSource>,
        provider: Option<&'static str>,
        expires_at: Option<Timestamp>,
        now: Timestamp,
    ) {
        let before = self.state();
        if (before.source, before.provider) != (source, provider) || before.renewed_at.is_none() {
            let source = source.map(TokenSource::name).or(provider).unwrap_or_default();
            tracing::info!(
                identity = before.kind,
                source,
                role = before.role,
                expires_at = expires_at.map(|end| end.to_string()),
                "credentials for storage come from {} {source}",
                before.kind
            );
        }
        self.0.metrics.renewed(source.map_or(before.kind, TokenSource::name), expires_at);
        self.0.state.send_modify(|state| {
            state.source = source;
            state.provider = provider;
            state.expires_at = expires_at;
            state.renewed_at = Some(now);
        });
    }

    /// `left` is what the credentials in hand still have, if there are good ones.
    fn note_failure(&self, fault: &Fault, left: Option<SignedDuration>, now: Timestamp) {
        if let Some(left) = left.filter(|left| *left > SignedDuration::ZERO) {
            tracing::warn!(
                class = fault.class.name(),
                left_seconds = left.as_secs(),
                "the identity could not be renewed, the old one is good for another {} s: {}",
                left.as_secs(),
                fault.text
            );
        }
        self.0.metrics.failed(fault.class.name());
        self.0.state.send_modify(|state| {
            state.last_failure = Some(IdentityFailure { class: fault.class, at: now });
        });
    }

    fn cached(&self) -> MutexGuard<'_, Cached> {
        self.0.cached.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Maker {
    async fn make(&self, clock: &Clock) -> Result<Renewed, Fault> {
        match self {
            Maker::Role { role, sts } => {
                let assumed = sts.assume(role, clock).await?;
                Ok(Renewed { credentials: assumed.credentials, source: Some(assumed.source), provider: None })
            }
            Maker::Key(credentials) => {
                Ok(Renewed { credentials: credentials.clone(), source: None, provider: None })
            }
            Maker::Chain(chain) => {
                let made = tokio::time::timeout(CHAIN_TIME_MAX, chain.credentials()).await;
                let made = made.unwrap_or_else(|_| Err(CredentialsError::provider_timed_out(CHAIN_TIME_MAX)));
                let (provider, credentials) = made.map_err(|error| chain::fault(&error))?;
                Ok(Renewed { credentials, source: None, provider: Some(provider) })
            }
        }
    }
}

/// When credentials end, if they do.
fn end_of(credentials: &Credentials) -> Option<Timestamp> {
    credentials.expiry().and_then(|end| Timestamp::try_from(end).ok())
}

/// Credentials that come with less left than is wanted are all there are for a while.
fn pause_after(credentials: &Credentials, now: Timestamp) -> Option<Instant> {
    let left = time_left(credentials, now).filter(|left| *left <= RENEW_AHEAD)?;
    let half = Duration::try_from(left / 2).unwrap_or_default();
    Some(Instant::now() + half.max(RENEW_PAUSE))
}

fn time_left(credentials: &Credentials, now: Timestamp) -> Option<SignedDuration> {
    end_of(credentials).map(|end| end.duration_since(now))
}

impl ProvideCredentials for Session {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(
            self.credentials()
                .map(|made| made.map_err(|unready| CredentialsError::provider_error(unready.error))),
        )
    }
}

#[async_trait]
impl Renewal for Session {
    async fn ready(&self) -> Result<(), Unready> {
        self.credentials().await.map(drop)
    }

    fn generation(&self) -> u64 {
        self.cached().generation
    }

    fn refuse(&self, generation: u64) {
        let mut cached = self.cached();
        cached.refused |= cached.generation == generation;
    }
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Session({:?})", self.state())
    }
}
