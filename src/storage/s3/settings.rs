//! What a user can say about a bucket, and how patient we are with it.

use std::time::Duration;

use backon::ExponentialBuilder;
use hyper::Uri;

use crate::config::is_loopback;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::storage::Guarantees;

/// Where the bucket is and how to talk to it. Data only: no credentials, no connection.
#[derive(Debug, Clone)]
pub struct S3Settings {
    /// The bucket's name.
    pub bucket: String,
    /// What every key begins with; slashes at both ends are dropped, empty means none.
    pub prefix: String,
    /// The bucket's region. May be absent only with an endpoint of its own.
    pub region: Option<String>,
    /// The S3-compatible store to use instead of AWS, as `https://host[:port]`.
    pub endpoint_url: Option<String>,
    /// `https://host/bucket/key` instead of `https://bucket.host/key`; unset: with an endpoint.
    pub path_style: Option<bool>,
    /// Allows `http://` to a host other than this machine.
    pub allow_http: bool,
    /// When uploads carry a checksum and downloads are checked against one.
    pub checksums: Checksums,
    /// What the store is thought to honour before it was tried.
    pub expected: Guarantees,
    /// How many parts of one object are under way at once.
    pub part_concurrency: usize,
    /// Timeouts and retries.
    pub patience: Patience,
}

/// When uploads carry a checksum (CRC32) and downloads are checked against one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Checksums {
    /// Wherever the API knows one. What AWS wants, and most stores allow.
    Always,
    /// Only where the API demands one: for stores that refuse checksum headers.
    WhenRequired,
}

/// How long we wait and how often we try.
#[derive(Debug, Clone)]
pub struct Patience {
    /// The bound on establishing a connection.
    pub connect: Duration,
    /// The bound on one attempt, without what its bytes need.
    pub attempt: Duration,
    /// The slowest transfer we accept; an attempt's bound grows by its bytes at this rate.
    pub bytes_per_second_min: u64,
    /// A transfer that moves nothing for this long is ended.
    pub stall: Duration,
    /// How often a request is repeated after the first attempt.
    pub retries: usize,
    /// No attempt begins later than this after the first one began.
    pub deadline: Duration,
    /// The wait before the first repetition; it doubles, with jitter, until `delay_max`.
    pub delay_min: Duration,
    /// The longest wait between two attempts.
    pub delay_max: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Patience {
            connect: Duration::from_millis(3_100),
            attempt: Duration::from_secs(30),
            bytes_per_second_min: 64 << 10,
            stall: Duration::from_secs(30),
            retries: 6,
            deadline: Duration::from_secs(300),
            delay_min: Duration::from_millis(200),
            delay_max: Duration::from_secs(20),
        }
    }
}

impl Patience {
    /// The bound on one attempt that moves `bytes`.
    pub(super) fn attempt_max(&self, bytes: u64) -> Duration {
        self.attempt + Duration::from_secs(bytes / self.bytes_per_second_min.max(1))
    }

    pub(super) fn backoff(&self) -> ExponentialBuilder {
        ExponentialBuilder::new()
            .with_jitter()
            .with_min_delay(self.delay_min)
            .with_max_delay(self.delay_max)
            .with_max_times(self.retries)
    }
}

/// S3 signs for a region; stores with an endpoint of their own mostly ignore which.
const REGION_OF_FOREIGN_STORES: &str = "us-east-1";

impl S3Settings {
    /// A bucket on AWS in its region, everything else as usual.
    pub fn new(bucket: impl Into<String>) -> Self {
        S3Settings {
            bucket: bucket.into(),
            prefix: String::new(),
            region: None,
            endpoint_url: None,
            path_style: None,
            allow_http: false,
            checksums: Checksums::Always,
            expected: Guarantees::FULL,
            part_concurrency: 4,
            patience: Patience::default(),
        }
    }

    /// Which bucket and prefix, and of which store: for people, no secrets.
    pub fn location(&self) -> String {
        let place = format!("s3://{}/{}", self.bucket, self.prefix());
        match &self.endpoint_url {
            Some(endpoint) => format!("{place} at {endpoint}"),
            None => place,
        }
    }

    /// The region to sign for.
    pub fn signing_region(&self) -> Result<String> {
        match (&self.region, &self.endpoint_url) {
            (Some(region), _) => Ok(region.clone()),
            (None, Some(_)) => Ok(REGION_OF_FOREIGN_STORES.to_owned()),
            (None, None) => {
                let message = format!("set the region of the bucket (AWS_REGION): bucket=`{}`", self.bucket);
                Err(Error::new(ErrorKind::Config, message))
            }
        }
    }

    pub(super) fn path_style(&self) -> bool {
        self.path_style.unwrap_or(self.endpoint_url.is_some() || self.has_dotted_bucket())
    }

    /// A dotted name does not match a wildcard certificate.
    pub(super) fn has_dotted_bucket(&self) -> bool {
        self.bucket.contains('.')
    }

    /// The prefix with its closing slash, or nothing.
    pub(super) fn prefix(&self) -> String {
        match self.prefix.trim_matches('/') {
            "" => String::new(),
            prefix => format!("{prefix}/"),
        }
    }

    pub(super) fn check(&self) -> Result<()> {
        let fault = |message: String| Err(Error::new(ErrorKind::Config, message));
        let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'-' | b'_');
        if !(3..=255).contains(&self.bucket.len()) || !self.bucket.bytes().all(allowed) {
            return fault(format!("not the name of a bucket: value=`{}`", self.bucket.escape_debug()));
        }
        if self.part_concurrency == 0 {
            return fault("at least one part has to be under way at once: value=`0`".to_owned());
        }
        match &self.endpoint_url {
            Some(endpoint) => check_endpoint(endpoint, self.allow_http),
            None => Ok(()),
        }
    }
}

/// Refuses an endpoint that would show what it is sent to the network, or that carries secrets.
pub(crate) fn check_endpoint(endpoint: &str, allow_http: bool) -> Result<()> {
    let fault = |message: String| Err(Error::new(ErrorKind::Config, message));
    let uri: Uri = endpoint
        .parse()
        .context(ErrorKind::Config, || "an endpoint is a URL of the form https://host[:port]".to_owned())?;
    let host = uri.host().unwrap_or_default();
    if uri.authority().is_some_and(|authority| authority.as_str().contains('@')) {
        return fault(format!("an endpoint must not carry credentials: host=`{host}`"));
    }
    match uri.scheme_str() {
        Some("https") => Ok(()),
        Some("http") if allow_http || is_loopback(&uri) => Ok(()),
        Some("http") => fault(format!(
            "plain http shows everything to the network; use https, or allow http explicitly: host=`{host}`"
        )),
        _ => fault(format!("an endpoint needs https:// in front: host=`{host}`")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdict(endpoint: &str, allow_http: bool) -> Result<(), ErrorKind> {
        let endpoint_url = Some(endpoint.to_owned());
        let settings = S3Settings { endpoint_url, allow_http, ..S3Settings::new("backups") };
        settings.check().map_err(|error| error.kind())
    }

    #[test]
    fn plain_http_is_for_this_machine_or_explicit() {
        for endpoint in ["http://127.0.0.1:9000", "http://localhost", "http://[::1]:80", "https://s3.example"]
        {
            assert_eq!(verdict(endpoint, false), Ok(()), "{endpoint}");
        }
        assert_eq!(verdict("http://s3.example", true), Ok(()));
        let refused = [
            "http://s3.example",
            "http://localhost.example",
            "ftp://127.0.0.1",
            "s3.example",
            "",
            "https://a:b@s3.example",
        ];
        for endpoint in refused {
            assert_eq!(verdict(endpoint, false), Err(ErrorKind::Config), "{endpoint}");
        }
    }

    #[test]
    fn a_refused_endpoint_does_not_show_its_password() {
        let endpoint_url = Some("https://user:hunter2@s3.example".to_owned());
        let error = S3Settings { endpoint_url, ..S3Settings::new("backups") }.check().expect_err("refused");
        assert!(!error.chain().contains("hunter2"), "{}", error.chain());
    }

    #[test]
    fn an_attempt_may_take_longer_the_more_it_moves() {
        let patience = Patience::default();
        assert_eq!(patience.attempt_max(0), Duration::from_secs(30));
        assert_eq!(patience.attempt_max(8 << 20), Duration::from_secs(30 + 128));
    }

    #[test]
    fn the_prefix_has_one_slash_at_its_end_or_is_empty() {
        for (given, used) in [("", ""), ("/", ""), ("a", "a/"), ("/a/b/", "a/b/")] {
            assert_eq!(S3Settings { prefix: given.into(), ..S3Settings::new("backups") }.prefix(), used);
        }
    }
}
