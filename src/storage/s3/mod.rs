//! Storage in a bucket of S3 or of a store that speaks its protocol.
//!
//! One retry layer, ours: the SDK tries once. Every write is conditional and carries a put-id of
//! its own in the object's metadata, so that whatever the answer was (or if there was none), the
//! object itself tells whether the write that made it was this one.

mod examine;
mod failure;
mod multipart;
mod provider;
mod put;
mod read;
mod settings;

use std::fmt;
use std::future::Future;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use aws_config::SdkConfig;
use aws_sdk_s3::Client;
use aws_sdk_s3::config::retry::RetryConfig;
use aws_sdk_s3::config::timeout::TimeoutConfig;
use aws_sdk_s3::config::{
    IdentityCache, Region, RequestChecksumCalculation, ResponseChecksumValidation,
    StalledStreamProtectionConfig,
};
use backon::Retryable;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;

pub(crate) use settings::check_endpoint;
pub use settings::{Checksums, Patience, S3Settings};

use super::{Entry, Guarantees, Object, Operation, Parts, Storage, Version};
use crate::error::{Error, Result};
use crate::snapshot::Key;
use failure::{Class, Failure};
use put::Condition;

/// Who makes the credentials that requests are signed with, and can be told that they have ended.
#[async_trait]
pub trait Renewal: Send + Sync {
    /// Sees to it that there are good credentials. Takes the time that it needs: its bounds are its own.
    async fn ready(&self) -> Result<(), Unready>;

    /// A number that grows with every renewal.
    fn generation(&self) -> u64;

    /// The store takes the credentials of `generation` for expired: the next request gets new ones,
    /// unless there are some already.
    fn refuse(&self, generation: u64);
}

/// Why there are no credentials.
#[derive(Debug)]
pub struct Unready {
    /// What went wrong.
    pub error: Error,
    /// They were waited for already: to ask again is to wait again.
    pub was_awaited: bool,
}

/// Objects in a bucket, below a prefix.
pub struct S3 {
    settings: S3Settings,
    prefix: String,
    client: Client,
    renewal: Arc<dyn Renewal>,
    /// See [`Guarantees`]: what is expected, until the store, or a probe of it, shows less.
    create_only: AtomicBool,
    compare_and_swap: AtomicBool,
}

impl S3 {
    /// Checks the settings and prepares a client; nothing is sent yet. The credentials of `sdk` are
    /// asked for at every request: caching them is the business of `renewal`.
    ///
    /// The endpoint is set on this client only: what else is made from `sdk` (above all the
    /// exchange of a token for credentials) keeps talking to AWS.
    pub fn connect(settings: S3Settings, sdk: &SdkConfig, renewal: Arc<dyn Renewal>) -> Result<Self> {
        settings.check()?;
        let patience = &settings.patience;
        let mut config = aws_sdk_s3::config::Builder::from(sdk)
            .region(Region::new(settings.signing_region()?))
            .retry_config(RetryConfig::disabled())
            // No read timeout: it would bound sending the request's body and waiting together.
            .timeout_config(TimeoutConfig::builder().connect_timeout(patience.connect).build())
            .stalled_stream_protection(
                StalledStreamProtectionConfig::enabled().grace_period(patience.stall).build(),
            )
            .identity_cache(IdentityCache::no_cache())
            .force_path_style(settings.path_style());
        if let Some(endpoint) = &settings.endpoint_url {
            config = config.endpoint_url(endpoint);
        }
        if settings.checksums == Checksums::WhenRequired {
            config = config
                .request_checksum_calculation(RequestChecksumCalculation::WhenRequired)
                .response_checksum_validation(ResponseChecksumValidation::WhenRequired);
        }
        Ok(S3 {
            prefix: settings.prefix(),
            create_only: AtomicBool::new(settings.expected.create_only),
            compare_and_swap: AtomicBool::new(settings.expected.compare_and_swap),
            settings,
            client: Client::from_conf(config.build()),
            renewal,
        })
    }

    /// Uses conditions only where `found` says that the store honours them, and otherwise looks
    /// before it writes, which is the best that can be done there.
    pub fn set_guarantees(&self, found: Guarantees) {
        self.create_only.store(found.create_only, Ordering::Relaxed);
        self.compare_and_swap.store(found.compare_and_swap, Ordering::Relaxed);
    }

    /// The key's full name in the bucket.
    fn name(&self, key: &Key) -> String {
        format!("{}{}", self.prefix, key.path())
    }

    fn explain(&self, failure: Failure, operation: Operation, key: &Key) -> Error {
        failure.error(operation, &self.settings.bucket, &format!("key=`{key}`"))
    }

    /// Tries until it succeeds, fails for good, or patience ends; `bytes` is what an attempt moves.
    async fn retrying<T, F>(
        &self,
        bytes: u64,
        mut attempt: impl FnMut(Client) -> F + Send,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Failure>> + Send,
    {
        let patience = &self.settings.patience;
        let limit = patience.attempt_max(bytes);
        let began = Instant::now();
        let mut renewed = false;
        let once = || {
            let attempt = attempt(self.client.clone());
            async move {
                // Before the attempt's clock runs: a token may be longer on its way than an answer.
                self.renewal.ready().await.map_err(Failure::unready)?;
                let generation = self.renewal.generation();
                let outcome = tokio::time::timeout(limit, attempt).await;
                let outcome = outcome.unwrap_or_else(|_| Err(Failure::timeout(limit)));
                if outcome.as_ref().is_err_and(Failure::is_expiry) {
                    self.renewal.refuse(generation);
                }
                outcome
            }
        };
        once.retry(patience.backoff())
            .when(|failure| {
                let again = match failure.class {
                    Class::Transient => true,
                    _ if failure.is_expiry() => !std::mem::replace(&mut renewed, true),
                    _ => false,
                };
                again && began.elapsed() < patience.deadline
            })
            .notify(|failure, wait| {
                tracing::debug!(
                    wait_ms = wait.as_millis() as u64,
                    "storage failed, trying again: {}",
                    failure.text
                );
            })
            .await
    }
}

impl fmt::Debug for S3 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "S3({})", self.location())
    }
}

#[async_trait]
impl Storage for S3 {
    fn location(&self) -> String {
        self.settings.location()
    }

    async fn create(&self, key: &Key, mut parts: Parts) -> Result<()> {
        let first = parts.next().await.transpose()?.unwrap_or_default();
        match parts.next().await.transpose()? {
            None => self.put(key, Operation::Create, &Condition::Absent, first).await.map(drop),
            Some(second) => self.upload(key, first, second, parts).await,
        }
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        let condition = expected.cloned().map_or(Condition::Absent, Condition::Is);
        let version = self.put(key, Operation::Replace, &condition, bytes).await?;
        version.ok_or_else(|| read::nameless(key))
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.read_whole(key, bytes_max).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.read_part(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        let found = self.look(key).await.map_err(|failure| self.explain(failure, Operation::Head, key))?;
        Ok(found.map(|found| found.entry))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.list_all(prefix).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let deleted = self.retrying(0, |client| {
            let request = client.delete_object().bucket(&self.settings.bucket).key(self.name(key));
            async { request.send().await.map_err(Failure::of) }
        });
        match deleted.await {
            Err(failure) if failure.class != Class::Missing => {
                Err(self.explain(failure, Operation::Delete, key))
            }
            _ => Ok(()),
        }
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.sweep(older_than).await
    }

    fn guarantees(&self) -> Guarantees {
        Guarantees {
            create_only: self.create_only.load(Ordering::Relaxed),
            compare_and_swap: self.compare_and_swap.load(Ordering::Relaxed),
        }
    }
}
