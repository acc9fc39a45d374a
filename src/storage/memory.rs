//! Storage in memory, for tests that look at what is above it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use jiff::Timestamp;

use super::{Entry, Guarantees, Object, Parts, Storage, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Digest, Key};

/// Objects in a map. Clones share it, as two machines share a bucket.
#[derive(Debug, Clone, Default)]
pub struct Memory(Arc<Mutex<BTreeMap<String, (Bytes, Timestamp)>>>);

impl Memory {
    /// Puts any bytes under any path, past every rule: how a test damages an object.
    pub fn overwrite(&self, path: &str, bytes: impl Into<Bytes>) {
        self.with(|objects| objects.insert(path.to_owned(), (bytes.into(), written_now())));
    }

    /// Every path and its content.
    pub fn objects(&self) -> Vec<(String, Bytes)> {
        self.with(|objects| objects.iter().map(|(path, (bytes, _))| (path.clone(), bytes.clone())).collect())
    }

    fn with<T>(&self, act: impl FnOnce(&mut BTreeMap<String, (Bytes, Timestamp)>) -> T) -> T {
        act(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn get(&self, key: &Key) -> Result<(Bytes, Timestamp)> {
        self.with(|objects| objects.get(&key.path()).cloned())
            .ok_or_else(|| Error::new(ErrorKind::NotFound, format!("no such object: key=`{key}`")))
    }
}

/// A store stamps with its own clock, whatever its users' clocks show.
#[expect(clippy::disallowed_methods, reason = "this is the store's own clock")]
fn written_now() -> Timestamp {
    Timestamp::now()
}

fn version(bytes: &[u8]) -> Version {
    Version(Digest::of(bytes).to_string())
}

#[async_trait]
impl Storage for Memory {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        let bytes = parts.try_fold(BytesMut::new(), |mut all, part| async move {
            all.extend_from_slice(&part);
            Ok(all)
        });
        self.replace(key, None, bytes.await?.freeze()).await.map(drop)
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        self.with(|objects| {
            let path = key.path();
            let current = objects.get(&path).map(|(bytes, _)| version(bytes));
            if current.as_ref() != expected {
                return Err(Error::new(
                    ErrorKind::Conflict,
                    format!("the object exists or has changed: key=`{key}`"),
                ));
            }
            let new = version(&bytes);
            objects.insert(path, (bytes, written_now()));
            Ok(new)
        })
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        let (bytes, _) = self.get(key)?;
        if bytes.len() > bytes_max {
            let message = format!("the object has {} bytes, more than {bytes_max}: key=`{key}`", bytes.len());
            return Err(Error::new(ErrorKind::Limit, message));
        }
        let version = version(&bytes);
        Ok(Object { bytes, version })
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let (bytes, _) = self.get(key)?;
        if range.end > bytes.len() as u64 {
            let message =
                format!("the object ends at byte {}, before {}: key=`{key}`", bytes.len(), range.end);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        Ok(bytes.slice(range.start as usize..range.end as usize))
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        Ok(self.get(key).ok().map(|(bytes, modified_at)| Entry {
            path: key.path(),
            bytes: bytes.len() as u64,
            modified_at,
        }))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let entry = |(path, (bytes, modified_at)): (&String, &(Bytes, Timestamp))| Entry {
            path: path.clone(),
            bytes: bytes.len() as u64,
            modified_at: *modified_at,
        };
        Ok(self
            .with(|objects| objects.iter().filter(|(path, _)| path.starts_with(prefix)).map(entry).collect()))
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.with(|objects| objects.remove(&key.path()));
        Ok(())
    }

    async fn sweep_unfinished(&self, _older_than: Timestamp) -> Result<u64> {
        Ok(0)
    }

    fn guarantees(&self) -> Guarantees {
        Guarantees::FULL
    }
}
