//! Whose store a bucket is in.

use hyper::Uri;

use super::value::Parsed;

/// Who runs the store. What follows from it stands with the storage, but for what has to be refused
/// before anything is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Provider {
    /// Amazon's S3.
    Aws,
    /// Tigris, which fly.io offers.
    Tigris,
    /// Cloudflare's R2.
    R2,
    /// Backblaze's B2.
    B2,
    /// MinIO.
    Minio,
    /// Garage.
    Garage,
    /// Any other store that speaks S3.
    Other,
}

impl Provider {
    /// Every provider.
    pub const ALL: [Provider; 7] = [
        Provider::Aws,
        Provider::Tigris,
        Provider::R2,
        Provider::B2,
        Provider::Minio,
        Provider::Garage,
        Provider::Other,
    ];

    /// The name in the configuration.
    pub const fn name(self) -> &'static str {
        match self {
            Provider::Aws => "aws",
            Provider::Tigris => "tigris",
            Provider::R2 => "r2",
            Provider::B2 => "b2",
            Provider::Minio => "minio",
            Provider::Garage => "garage",
            Provider::Other => "other",
        }
    }

    /// Whether the store opens to credentials that AWS's token service made.
    pub(super) const fn takes_roles(self) -> bool {
        match self {
            // MinIO has a token service of its own; what `other` has, nobody knows.
            Provider::Aws | Provider::Minio | Provider::Other => true,
            Provider::Tigris | Provider::R2 | Provider::B2 | Provider::Garage => false,
        }
    }

    /// The provider that an endpoint belongs to; without an endpoint it is AWS.
    pub(super) fn of(endpoint: Option<&Uri>) -> Provider {
        let Some(host) = endpoint.and_then(Uri::host) else { return Provider::Aws };
        let is_of = |domain: &str| {
            host.strip_suffix(domain).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
        };
        let known = [
            (Provider::Aws, ["amazonaws.com", "amazonaws.com.cn"].as_slice()),
            (Provider::Tigris, &["storage.tigris.dev", "t3.storage.dev", "t3.storageapi.dev"]),
            (Provider::R2, &["r2.cloudflarestorage.com"]),
            (Provider::B2, &["backblazeb2.com"]),
        ];
        let found = known.into_iter().find(|(_, domains)| domains.iter().any(|domain| is_of(domain)));
        found.map_or(Provider::Other, |(provider, _)| provider)
    }
}

/// A provider by its name.
pub(super) fn provider(text: &str) -> Parsed<Provider> {
    let found = Provider::ALL.into_iter().find(|provider| provider.name() == text);
    found.ok_or_else(|| {
        let names: Vec<&str> = Provider::ALL.into_iter().map(Provider::name).collect();
        format!("it is one of {}", names.join(", "))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_provider_is_known_by_its_domain_and_by_nothing_that_resembles_it() {
        for (endpoint, provider) in [
            ("https://s3.eu-central-1.amazonaws.com", Provider::Aws),
            ("https://s3.cn-north-1.amazonaws.com.cn", Provider::Aws),
            ("https://fly.storage.tigris.dev", Provider::Tigris),
            ("https://t3.storage.dev", Provider::Tigris),
            ("https://0a1b.r2.cloudflarestorage.com", Provider::R2),
            ("https://0a1b.eu.r2.cloudflarestorage.com/", Provider::R2),
            ("https://s3.us-west-004.backblazeb2.com", Provider::B2),
            ("https://s3.example.com", Provider::Other),
            ("https://notamazonaws.com", Provider::Other),
            ("https://amazonaws.com.example.com", Provider::Other),
            ("http://127.0.0.1:9000", Provider::Other),
        ] {
            assert_eq!(Provider::of(Some(&endpoint.parse().expect("a URL"))), provider, "{endpoint}");
        }
        assert_eq!(Provider::of(None), Provider::Aws);
    }

    #[test]
    fn a_name_is_that_of_one_provider() {
        for one in Provider::ALL {
            assert_eq!(provider(one.name()), Ok(one));
        }
        assert!(provider("s3").is_err() && provider("AWS").is_err());
    }
}
