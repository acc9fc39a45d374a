//! What is known of the stores that speak S3, from their own documents; what is not, a probe finds out.

use super::{Checksums, S3Settings};
use crate::config::Provider;
use crate::storage::Guarantees;

impl S3Settings {
    /// The same for a store of `provider`, where the user left it open.
    pub fn for_provider(self, provider: Provider) -> S3Settings {
        let path_style =
            self.path_style.unwrap_or_else(|| has_path_style(provider) || self.has_dotted_bucket());
        let region = self.region.clone().or_else(|| region(provider, self.endpoint_url.as_deref()));
        S3Settings {
            path_style: Some(path_style),
            region,
            checksums: checksums(provider),
            expected: expected(provider),
            ..self
        }
    }
}

/// Checksum headers where the store knows them; the manifest's own hash holds in any case.
fn checksums(provider: Provider) -> Checksums {
    match provider {
        Provider::Aws | Provider::Tigris | Provider::Minio | Provider::Garage => Checksums::Always,
        // B2 refuses them. R2 takes some, and not together with others. Of others too little is known.
        Provider::B2 | Provider::R2 | Provider::Other => Checksums::WhenRequired,
    }
}

/// Whether the bucket is named in the path.
fn has_path_style(provider: Provider) -> bool {
    match provider {
        // Buckets of Tigris made after 2025-02-19 are found by their host name only.
        Provider::Aws | Provider::Tigris | Provider::B2 => false,
        // Servers of one's own seldom have a wildcard name and certificate.
        Provider::R2 | Provider::Minio | Provider::Garage | Provider::Other => true,
    }
}

/// What conditions on writes are sent at first. A probe may find less, never more.
fn expected(provider: Provider) -> Guarantees {
    match provider {
        Provider::Aws | Provider::Tigris | Provider::R2 | Provider::Minio | Provider::Other => {
            Guarantees::FULL
        }
        // B2 refuses a write with a condition, Garage overwrites in spite of one.
        Provider::B2 | Provider::Garage => Guarantees { create_only: false, compare_and_swap: false },
    }
}

/// The region to sign for, where the provider or its endpoint tells.
fn region(provider: Provider, endpoint: Option<&str>) -> Option<String> {
    match provider {
        Provider::Tigris | Provider::R2 => Some("auto".to_owned()),
        Provider::Garage => Some("garage".to_owned()),
        // https://s3.REGION.backblazeb2.com
        Provider::B2 => {
            let host = endpoint?.split("://").nth(1)?.split(['/', ':']).next()?;
            let region = host.strip_suffix(".backblazeb2.com")?.rsplit('.').next()?;
            Some(region.to_owned())
        }
        Provider::Aws | Provider::Minio | Provider::Other => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(provider: Provider, endpoint: &str) -> S3Settings {
        let endpoint_url = Some(endpoint.to_owned()).filter(|endpoint| !endpoint.is_empty());
        S3Settings { endpoint_url, ..S3Settings::new("backups") }.for_provider(provider)
    }

    #[test]
    fn each_provider_is_spoken_to_in_its_own_way() {
        use Checksums::{Always, WhenRequired};
        for (provider, endpoint, checksums, path_style, region, conditions) in [
            (Provider::Aws, "", Always, false, None, true),
            (Provider::Tigris, "https://fly.storage.tigris.dev", Always, false, Some("auto"), true),
            (Provider::R2, "https://a.r2.cloudflarestorage.com", WhenRequired, true, Some("auto"), true),
            (
                Provider::B2,
                "https://s3.us-west-004.backblazeb2.com/",
                WhenRequired,
                false,
                Some("us-west-004"),
                false,
            ),
            (Provider::Minio, "https://minio.example", Always, true, None, true),
            (Provider::Garage, "https://garage.example", Always, true, Some("garage"), false),
            (Provider::Other, "https://s3.example", WhenRequired, true, None, true),
        ] {
            let settings = settings(provider, endpoint);
            assert_eq!(settings.checksums, checksums, "{provider:?}");
            assert_eq!(settings.path_style, Some(path_style), "{provider:?}");
            assert_eq!(settings.region.as_deref(), region, "{provider:?}");
            assert_eq!(settings.expected.create_only, conditions, "{provider:?}");
            assert_eq!(settings.expected.compare_and_swap, conditions, "{provider:?}");
        }
    }

    #[test]
    fn what_the_user_says_counts() {
        let given = S3Settings {
            path_style: Some(true),
            region: Some("eu-central-1".to_owned()),
            ..S3Settings::new("backups")
        };
        let settings = given.for_provider(Provider::Tigris);
        assert_eq!((settings.path_style, settings.region.as_deref()), (Some(true), Some("eu-central-1")));
        // A dotted name does not match a wildcard certificate.
        let dotted = S3Settings::new("my.backups").for_provider(Provider::Aws);
        assert_eq!(dotted.path_style, Some(true));
    }
}
