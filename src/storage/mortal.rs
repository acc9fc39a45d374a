//! Storage in whose every write a test can have the process killed. Debug builds only.

use std::ops::Range;
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;

use super::{Entry, Examine, Greeting, Guarantees, Object, Operation, Parts, Storage, Version};
use crate::crash::{self, Point};
use crate::error::Result;
use crate::snapshot::Key;

/// Passes everything on; before and after each write there is a crash point, by operation and kind of key.
#[derive(Debug)]
pub struct Mortal(Arc<dyn Examine>);

/// The points before and after a write. The panic, in a debug build, names a new kind of write: it needs a row.
fn around(operation: Operation, key: &Key) -> (Point, Point) {
    use Operation::{Create, Delete, Replace};
    match (operation, key) {
        (Create, Key::Identity(_)) => (Point::IdentityCreating, Point::IdentityCreated),
        (Create, Key::Epoch(..)) => (Point::ClaimCreating, Point::ClaimCreated),
        (Create, Key::Snapshot(..)) => (Point::DataCreating, Point::DataCreated),
        (Create, Key::Manifest(..)) => (Point::ManifestCreating, Point::ManifestCreated),
        (Create, Key::Delta(..)) => (Point::DeltaCreating, Point::DeltaCreated),
        (Create, Key::Probe(_)) => (Point::ProbeCreating, Point::ProbeCreated),
        (Replace, Key::Head(_)) => (Point::HeadReplacing, Point::HeadReplaced),
        (Replace, Key::Proof(..)) => (Point::ProofReplacing, Point::ProofReplaced),
        (Replace, Key::Probe(_)) => (Point::ProbeReplacing, Point::ProbeReplaced),
        (Delete, Key::Snapshot(..)) => (Point::DataDeleting, Point::DataDeleted),
        (Delete, Key::Manifest(..)) => (Point::ManifestDeleting, Point::ManifestDeleted),
        (Delete, Key::Proof(..)) => (Point::ProofDeleting, Point::ProofDeleted),
        (Delete, Key::Delta(..)) => (Point::DeltaDeleting, Point::DeltaDeleted),
        (Delete, Key::Probe(_)) => (Point::ProbeDeleting, Point::ProbeDeleted),
        _ => panic!("there is no crash point for this write: operation=`{operation:?}` key=`{key}`"),
    }
}

impl Mortal {
    /// The same storage with crash points.
    pub fn new(inner: Arc<dyn Examine>) -> Self {
        Mortal(inner)
    }

    async fn write<T>(
        &self,
        operation: Operation,
        key: &Key,
        write: impl Future<Output = Result<T>>,
    ) -> Result<T> {
        let (before, after) = around(operation, key);
        crash::at(before);
        let written = write.await;
        crash::at(after);
        written
    }
}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Storage for Mortal {
    fn location(&self) -> String {
        self.0.location()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        let is_data = matches!(key, Key::Snapshot(..));
        let parts = parts.inspect(move |_| {
            if is_data {
                crash::at(Point::DataPartTaken);
            }
        });
        self.write(Operation::Create, key, self.0.create(key, parts.boxed())).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        self.write(Operation::Replace, key, self.0.replace(key, expected, bytes)).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.0.read(key, bytes_max).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.0.read_range(key, range).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.0.head(key).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.0.list(prefix).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.write(Operation::Delete, key, self.0.delete(key)).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        crash::at(Point::UnfinishedSweeping);
        let swept = self.0.sweep_unfinished(older_than).await;
        crash::at(Point::UnfinishedSwept);
        swept
    }

    fn guarantees(&self) -> Guarantees {
        self.0.guarantees()
    }
}

#[async_trait]
impl Examine for Mortal {
    async fn greet(&self) -> Result<Greeting> {
        self.0.greet().await
    }

    async fn begin_and_abort(&self, key: &Key) -> Result<()> {
        self.0.begin_and_abort(key).await
    }
}
