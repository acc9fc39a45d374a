//! Storage that counts what is asked of it.

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;

use super::{Entry, Guarantees, Object, Operation, Parts, Storage, Version};
use crate::error::Result;
use crate::metrics::{Direction, StorageMetrics};
use crate::snapshot::Key;

/// Passes everything on, and counts operations, outcomes, time and bytes.
#[derive(Debug, Clone)]
pub struct Metered {
    inner: Arc<dyn Storage>,
    metrics: StorageMetrics,
    requests: Arc<AtomicU64>,
}

impl Metered {
    /// Counts what is asked of `inner` in `metrics`.
    pub fn new(inner: Arc<dyn Storage>, metrics: StorageMetrics) -> Self {
        Metered { inner, metrics, requests: Arc::default() }
    }

    /// How many operations were asked for so far, through this or a clone of it.
    pub fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    async fn count<T>(&self, operation: Operation, act: impl Future<Output = Result<T>>) -> Result<T> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let began = Instant::now();
        let result = act.await;
        let outcome = result.as_ref().map_or_else(|error| error.kind().name(), |_| "ok");
        self.metrics.request(operation.name(), outcome, began.elapsed());
        result
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Storage for Metered {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        // Counted as they are taken: a long upload shows its progress.
        let metrics = self.metrics.clone();
        let parts = parts.inspect(move |part| {
            if let Ok(bytes) = part {
                metrics.transferred(Direction::Written, bytes.len() as u64);
            }
        });
        self.count(Operation::Create, self.inner.create(key, parts.boxed())).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        self.metrics.transferred(Direction::Written, bytes.len() as u64);
        self.count(Operation::Replace, self.inner.replace(key, expected, bytes)).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        let object = self.count(Operation::Read, self.inner.read(key, bytes_max)).await?;
        self.metrics.transferred(Direction::Read, object.bytes.len() as u64);
        Ok(object)
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let bytes = self.count(Operation::ReadRange, self.inner.read_range(key, range)).await?;
        self.metrics.transferred(Direction::Read, bytes.len() as u64);
        Ok(bytes)
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.count(Operation::Head, self.inner.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.count(Operation::List, self.inner.list(prefix)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.count(Operation::Delete, self.inner.delete(key)).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.count(Operation::Sweep, self.inner.sweep_unfinished(older_than)).await
    }

    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }
}
