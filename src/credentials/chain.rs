//! Where every AWS tool looks for credentials, without a role: environment, profile, container.

use aws_config::Region;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::imds::credentials::ImdsCredentialsProvider;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::Credentials;
use aws_credential_types::provider::error::CredentialsError;
use aws_credential_types::provider::{ProvideCredentials, SharedCredentialsProvider};

use super::fault::{Class, Fault, causes, said};
use super::wire::{self, Elsewhere, Peers};

/// The providers of the SDK, by name, in the order in which they are asked.
pub(super) struct Chain(Vec<(&'static str, SharedCredentialsProvider)>);

impl Chain {
    /// The instance's own credentials are asked for on EC2 only.
    pub(super) fn new(region: &Region) -> Chain {
        let config = ProviderConfig::without_region()
            .with_region(Some(region.clone()))
            .with_http_client(wire::client(Peers::AwsOnly));
        let environment = EnvironmentVariableCredentialsProvider::new();
        let profile = ProfileFileCredentialsProvider::builder().configure(&config).build();
        let container = EcsCredentialsProvider::builder().configure(&config).build();
        let mut chain = vec![
            ("environment", SharedCredentialsProvider::new(environment)),
            ("profile", SharedCredentialsProvider::new(profile)),
            ("container", SharedCredentialsProvider::new(container)),
        ];
        if is_ec2() {
            let instance = ImdsCredentialsProvider::builder().configure(&config).build();
            chain.push(("instance", SharedCredentialsProvider::new(instance)));
        }
        Chain(chain)
    }

    /// Of the first provider that is configured, its name and what it has.
    pub(super) async fn credentials(&self) -> Result<(&'static str, Credentials), CredentialsError> {
        for (name, provider) in &self.0 {
            match provider.provide_credentials().await {
                Ok(credentials) => return Ok((name, credentials)),
                Err(CredentialsError::CredentialsNotLoaded(_)) => {}
                Err(error) => return Err(error),
            }
        }
        Err(CredentialsError::not_loaded_no_source())
    }
}

/// Off EC2, to ask for an instance's credentials is to wait for an address that nobody has.
fn is_ec2() -> bool {
    std::fs::read_to_string("/sys/devices/virtual/dmi/id/sys_vendor")
        .is_ok_and(|vendor| vendor.starts_with("Amazon EC2"))
}

/// Why the chain has nothing, without what a provider may have read.
pub(super) fn fault(error: &CredentialsError) -> Fault {
    if let Some(refusal) = causes(error).find_map(|cause| cause.downcast_ref::<Elsewhere>()) {
        return Fault::new(Class::NoCredentials, refusal.to_string());
    }
    let what = match error {
        CredentialsError::CredentialsNotLoaded(_) => {
            "no credentials in the environment, a profile or the container's service: set AWS_ROLE_ARN, or \
             AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        }
        CredentialsError::ProviderTimedOut(_) => "a provider of credentials did not answer in time",
        CredentialsError::InvalidConfiguration(_) => "the configuration of credentials is not valid",
        _ => "a provider of credentials failed",
    };
    let class = match error {
        CredentialsError::ProviderTimedOut(_) | CredentialsError::ProviderError(_) => Class::ChainUnavailable,
        _ => Class::NoCredentials,
    };
    Fault::new(class, format!("{what}: {}", said(error)))
}
