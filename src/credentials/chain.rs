//! Where every AWS tool looks for credentials, without a role: environment, profile, container.

use aws_config::Region;
use aws_config::default_provider::credentials::DefaultCredentialsChain;
use aws_config::ecs::EcsCredentialsProvider;
use aws_config::environment::EnvironmentVariableCredentialsProvider;
use aws_config::meta::credentials::CredentialsProviderChain;
use aws_config::profile::ProfileFileCredentialsProvider;
use aws_config::provider_config::ProviderConfig;
use aws_credential_types::provider::SharedCredentialsProvider;
use aws_credential_types::provider::error::CredentialsError;

use super::fault::{Class, Fault, said};

/// The chain of the SDK; the instance's own credentials are asked for on EC2 only.
pub(super) async fn provider(region: &Region) -> SharedCredentialsProvider {
    if is_ec2() {
        let chain = DefaultCredentialsChain::builder().region(region.clone());
        return SharedCredentialsProvider::new(chain.build().await);
    }
    let config = ProviderConfig::without_region().with_region(Some(region.clone()));
    let profile = ProfileFileCredentialsProvider::builder().configure(&config).build();
    let container = EcsCredentialsProvider::builder().configure(&config).build();
    let chain =
        CredentialsProviderChain::first_try("Environment", EnvironmentVariableCredentialsProvider::new())
            .or_else("Profile", profile)
            .or_else("Container", container);
    SharedCredentialsProvider::new(chain)
}

/// Off EC2, to ask for an instance's credentials is to wait for an address that nobody has.
fn is_ec2() -> bool {
    std::fs::read_to_string("/sys/devices/virtual/dmi/id/sys_vendor")
        .is_ok_and(|vendor| vendor.starts_with("Amazon EC2"))
}

/// Why the chain has nothing, without what a provider may have read.
pub(super) fn fault(error: &CredentialsError) -> Fault {
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
