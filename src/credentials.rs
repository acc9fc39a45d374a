//! How we prove to AWS who we are.
//!
//! With a role, a web identity token is exchanged at STS for credentials of about an hour; the
//! token is read anew at every exchange, for it lives for minutes. Without one, we look where
//! every AWS tool looks. Nothing here reads the environment, except through that last way.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_config::{BehaviorVersion, Region, SdkConfig};
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider, future};
use aws_sdk_sts::config::retry::RetryConfig;
use aws_sdk_sts::config::timeout::TimeoutConfig;
use aws_sdk_sts::error::{ProvideErrorMetadata, SdkError};
use secrecy::{ExposeSecret, SecretString};

use crate::error::{Context, Error, ErrorKind, Result};
use crate::storage::{S3, S3Settings, check_endpoint};

/// Where credentials come from.
#[derive(Debug, Clone)]
pub enum Identity {
    /// A role, assumed with a web identity token.
    Role(Role),
    /// A key that does not expire.
    Key {
        /// The access key's id; not a secret.
        id: String,
        /// Its secret half.
        secret: SecretString,
    },
    /// Environment, profile, container; and the instance, where it is one of EC2.
    Chain,
}

/// A role and the token that opens it.
#[derive(Debug, Clone)]
pub struct Role {
    /// `arn:aws:iam::ACCOUNT:role/NAME`
    pub arn: String,
    /// The file in which somebody keeps a fresh token.
    pub token_file: PathBuf,
    /// How the session is called in AWS's own logs.
    pub session_name: String,
    /// Another STS than that of the region, as `https://host[:port]`.
    pub sts_endpoint_url: Option<String>,
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Identity::Role(role) => write!(f, "role {} by web identity", role.arn),
            Identity::Key { .. } => f.write_str("static key"),
            Identity::Chain => f.write_str("default chain"),
        }
    }
}

/// Prepares storage in a bucket, as `identity`. Nothing is sent before the first operation.
pub async fn connect(settings: S3Settings, identity: &Identity) -> Result<S3> {
    let region = Region::new(settings.signing_region()?);
    if let Identity::Role(Role { sts_endpoint_url: Some(endpoint), .. }) = identity {
        // A token in plain text is anybody's token.
        check_endpoint(endpoint, false)?;
    }
    tracing::info!(%identity, "credentials for storage come from {identity}");
    let provider = provider(identity, &region).await;
    let sdk = SdkConfig::builder()
        .behavior_version(behavior_version())
        .region(region)
        .credentials_provider(provider)
        .build();
    S3::connect(settings, &sdk)
}

/// The SDK's defaults as of the day this program was tried with them.
fn behavior_version() -> BehaviorVersion {
    BehaviorVersion::v2026_01_12()
}

async fn provider(identity: &Identity, region: &Region) -> SharedCredentialsProvider {
    match identity {
        Identity::Role(role) => SharedCredentialsProvider::new(RoleProvider::new(role.clone(), region)),
        Identity::Key { id, secret } => {
            SharedCredentialsProvider::new(Credentials::new(id, secret.expose_secret(), None, None, "key"))
        }
        Identity::Chain if is_ec2() => {
            let chain = DefaultCredentialsChain::builder().region(region.clone());
            SharedCredentialsProvider::new(chain.build().await)
        }
        Identity::Chain => {
            let config = ProviderConfig::without_region().with_region(Some(region.clone()));
            let profile = ProfileFileCredentialsProvider::builder().configure(&config).build();
            let container = EcsCredentialsProvider::builder().configure(&config).build();
            let chain = CredentialsProviderChain::first_try(
                "Environment",
                EnvironmentVariableCredentialsProvider::new(),
            )
            .or_else("Profile", profile)
            .or_else("Container", container);
            SharedCredentialsProvider::new(chain)
        }
    }
}

/// Off EC2, to ask for an instance's credentials is to wait for an address that nobody has.
fn is_ec2() -> bool {
    std::fs::read_to_string("/sys/devices/virtual/dmi/id/sys_vendor")
        .is_ok_and(|vendor| vendor.starts_with("Amazon EC2"))
}

/// Exchanges a token at STS whenever credentials are asked for; the client in front caches them.
#[derive(Debug)]
struct RoleProvider {
    role: Role,
    sts: aws_sdk_sts::Client,
}

impl RoleProvider {
    fn new(role: Role, region: &Region) -> Self {
        // Built from nothing, so that no endpoint meant for storage is ever handed the token.
        let mut config = aws_sdk_sts::Config::builder()
            .behavior_version(behavior_version())
            .region(region.clone())
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
        RoleProvider { sts: aws_sdk_sts::Client::from_conf(config.build()), role }
    }

    async fn exchange(&self) -> Result<Credentials> {
        let arn = &self.role.arn;
        let token = read_token(&self.role.token_file).await?;
        let answer = self
            .sts
            .assume_role_with_web_identity()
            .role_arn(arn)
            .role_session_name(&self.role.session_name)
            .web_identity_token(token.expose_secret())
            .send()
            .await
            .map_err(|error| sts_fault(&error, arn))?;
        let credentials = answer.credentials.ok_or_else(|| {
            Error::new(ErrorKind::Unavailable, format!("STS answered without credentials: role=`{arn}`"))
        })?;
        let expires_at = SystemTime::try_from(credentials.expiration)
            .context(ErrorKind::Unavailable, || format!("STS answered without an end: role=`{arn}`"))?;
        Ok(Credentials::new(
            credentials.access_key_id,
            credentials.secret_access_key,
            Some(credentials.session_token),
            Some(expires_at),
            "web-identity",
        ))
    }
}

impl ProvideCredentials for RoleProvider {
    fn provide_credentials<'a>(&'a self) -> future::ProvideCredentials<'a>
    where
        Self: 'a,
    {
        future::ProvideCredentials::new(async {
            self.exchange().await.map_err(CredentialsError::provider_error)
        })
    }
}

async fn read_token(file: &Path) -> Result<SecretString> {
    let text = tokio::fs::read_to_string(file)
        .await
        .context(ErrorKind::Denied, || format!("read the web identity token: path=`{}`", file.display()))?;
    Ok(text.trim().into())
}

/// What STS said, without the request: that one has the token in it.
fn sts_fault<E: ProvideErrorMetadata>(error: &SdkError<E>, arn: &str) -> Error {
    let kind = match error {
        // STS asks the issuer for its keys, and answers for the issuer's failures too.
        SdkError::ServiceError(answer) if answer.err().code() == Some("IDPCommunicationError") => {
            ErrorKind::Unavailable
        }
        SdkError::ServiceError(answer) if answer.raw().status().is_client_error() => ErrorKind::Denied,
        _ => ErrorKind::Unavailable,
    };
    let cause = match error {
        SdkError::ServiceError(_) => {
            format!("{}: {}", error.code().unwrap_or("no code"), error.message().unwrap_or("no message"))
        }
        _ => error.to_string(),
    };
    Error::new(kind, format!("assume the role by web identity: role=`{arn}`")).because(cause)
}
