//! How we prove to AWS who we are.
//!
//! With a role, an identity token is exchanged at STS for credentials of about an hour; the token is
//! fetched anew for every exchange, for it lives for minutes. Without one, we look where every AWS
//! tool looks. Nothing here reads the environment, except through that last way.

mod chain;
mod claims;
mod exchange;
mod explain;
mod fault;
mod machine_socket;
mod policy;
mod session;
mod state;
mod token;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::provider::SharedCredentialsProvider;
use secrecy::SecretString;

pub use claims::{AUDIENCE, Claims, FlyMachine};
pub use exchange::Assumed;
pub use explain::slug_trap;
pub use fault::{Class, Fault};
pub use policy::{Rights, partition_of, role_policy, trust_policy};
pub use session::Session;
pub use state::{IdentityFailure, IdentityState};
pub use token::{Token, TokenSource, fetch_token};

use crate::clock::Clock;
use crate::error::Result;
use crate::storage::{S3, S3Settings};

/// Where credentials come from.
#[derive(Debug, Clone)]
pub enum Identity {
    /// A role, assumed with an identity token.
    Role(Role),
    /// A key, used for as long as it is good.
    Key {
        /// The access key's id; not a secret.
        id: String,
        /// Its secret half.
        secret: SecretString,
        /// What goes with a key that was made for a while.
        session_token: Option<SecretString>,
    },
    /// Environment, profile, container; and the instance, where it is one of EC2.
    Chain,
}

/// A role and where the tokens are that open it.
#[derive(Debug, Clone)]
pub struct Role {
    /// `arn:aws:iam::ACCOUNT:role/NAME`
    pub arn: String,
    /// The socket through which the machine gets a token about itself; the first source.
    pub machine_socket: Option<PathBuf>,
    /// The file in which somebody keeps a fresh token; the second source.
    pub web_identity_token_file: Option<PathBuf>,
    /// For how long sources that are not there yet are waited for.
    pub token_wait: Duration,
    /// How the session is called in AWS's own logs.
    pub session_name: String,
    /// For how long the credentials are asked for; whole seconds count.
    pub session_duration: Duration,
    /// Another STS than that of the region, as `https://host[:port]`.
    pub sts_endpoint_url: Option<String>,
}

impl Identity {
    /// The stable name of its kind.
    fn name(&self) -> &'static str {
        match self {
            Identity::Role(_) => "role",
            Identity::Key { .. } => "key",
            Identity::Chain => "chain",
        }
    }

    fn role(&self) -> Option<&Role> {
        match self {
            Identity::Role(role) => Some(role),
            Identity::Key { .. } | Identity::Chain => None,
        }
    }
}

impl Role {
    /// The partition in its ARN: `aws`, `aws-cn`, `aws-us-gov`.
    pub fn partition(&self) -> &str {
        self.part(1)
    }

    /// The account in its ARN.
    pub fn account(&self) -> &str {
        self.part(4)
    }

    fn part(&self, index: usize) -> &str {
        self.arn.split(':').nth(index).unwrap_or_default()
    }
}

/// Prepares storage in a bucket, as `session`. Nothing is sent before the first operation.
pub fn connect(settings: S3Settings, session: &Session) -> Result<S3> {
    let sdk = SdkConfig::builder()
        .behavior_version(behavior_version())
        .region(Region::new(settings.signing_region()?))
        .http_client(wire::client(wire::Peers::Chosen))
        .credentials_provider(SharedCredentialsProvider::new(session.clone()))
        .build();
    S3::connect(settings, &sdk, Arc::new(session.clone()))
}

/// Gets a token and exchanges it, once, as a renewal would; the credentials are thrown away by
/// whoever drops the answer.
pub async fn try_role(role: &Role, region: &str, clock: &Clock) -> Result<Assumed, Fault> {
    exchange::Sts::new(role, &Region::new(region.to_owned())).assume(role, clock).await
}

/// The SDK's defaults as of the day this program was tried with them.
fn behavior_version() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}
