//! The storage as one life of one machine sees it: others come in between, answers are lost, listings
//! are out of date, and at some call the machine dies.

use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::TryStreamExt;
use lifeboat::catalog::Catalog;
use lifeboat::clock::Timestamp;
use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::snapshot::{Digest, Head, Key, Record};
use lifeboat::storage::{Entry, Guarantees, Object, Parts, Storage, Version};

use super::checks::{self, Pruning};
use super::world::{World, name};

pub struct Link {
    world: Arc<World>,
    calls_left: Arc<Mutex<Option<u64>>>,
    is_calm: bool,
    /// The prune under way, if there is one.
    pruning: Mutex<Option<Pruning>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

fn unavailable(why: &str) -> Error {
    Error::new(ErrorKind::Unavailable, why)
}

impl Link {
    /// Of a life that ends after so many calls, if after any.
    pub fn of_life(world: &Arc<World>, calls_left: Option<u64>) -> Arc<Link> {
        let calls_left = Arc::new(Mutex::new(calls_left));
        Arc::new(Link { world: Arc::clone(world), calls_left, is_calm: false, pruning: Mutex::default() })
    }

    /// Of somebody to whom nothing happens.
    pub fn calm(world: &Arc<World>) -> Arc<Link> {
        let calls_left = Arc::default();
        Arc::new(Link { world: Arc::clone(world), calls_left, is_calm: true, pruning: Mutex::default() })
    }

    /// Of another process of the same machine, which dies with it.
    pub fn beside(&self) -> Arc<Link> {
        let (world, calls_left) = (Arc::clone(&self.world), Arc::clone(&self.calls_left));
        Arc::new(Link { world, calls_left, is_calm: self.is_calm, pruning: Mutex::default() })
    }

    pub fn catalog(self: &Arc<Self>) -> Catalog {
        Catalog::new(self.clone(), name())
    }

    pub fn is_dead(&self) -> bool {
        *self.calls_left.lock().expect("nobody panicked") == Some(0)
    }

    /// A prune begins, or has ended.
    pub fn prunes(&self, pruning: Option<Pruning>) {
        *self.pruning.lock().expect("nobody panicked") = pruning;
    }

    async fn others(&self, bound: u64) {
        for _ in 0..self.world.below(bound) {
            tokio::task::yield_now().await;
        }
    }

    async fn around<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        self.others(4).await;
        let dies = {
            let mut left = self.calls_left.lock().expect("nobody panicked");
            match left.as_mut() {
                Some(0) => return Err(unavailable("the machine is dead")),
                Some(left) => {
                    *left -= 1;
                    *left == 0
                }
                None => false,
            }
        };
        let fails = dies || (self.world.weather.loses_answers && !self.is_calm && self.world.below(24) == 0);
        // Half of the calls that fail take effect.
        if fails && self.world.below(2) == 0 {
            return Err(unavailable("no answer, and nothing done"));
        }
        let answer = call.await;
        self.others(3).await;
        match fails {
            true => Err(unavailable("no answer")),
            false => answer,
        }
    }

    /// Writes, if the object is in the `expected` state; where conditions are not honoured, as best as
    /// can be done by looking first.
    async fn put(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        let world = &self.world;
        let version = if world.weather.honours_conditions {
            world.memory.replace(key, expected, bytes.clone()).await?
        } else {
            let standing = world.memory.read(key, usize::MAX).await.ok().map(|object| object.version);
            if standing.as_ref() != expected {
                return Err(Error::new(ErrorKind::Conflict, "seen before writing"));
            }
            self.others(2).await;
            world.memory.overwrite(&key.path(), bytes.clone());
            Version(Digest::of(&bytes).to_string())
        };
        let now = world.true_now();
        world.state().written.insert(key.path(), now);
        match key {
            Key::Head(_) => checks::head(world, &Head::decode(&bytes, key).expect("ours")),
            Key::Proof(..) => world.state().proofs_written += 1,
            Key::Snapshot(..) | Key::Manifest(..) => checks::created(world, key),
            _ => {}
        }
        Ok(version)
    }

    fn dated(&self, entry: Entry) -> Entry {
        let modified_at = self.world.state().written.get(&entry.path).copied().unwrap_or(entry.modified_at);
        Entry { modified_at, ..entry }
    }
}

#[async_trait]
impl Storage for Link {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        let bytes = parts.try_fold(BytesMut::new(), |mut all, part| async move {
            all.extend_from_slice(&part);
            Ok(all)
        });
        let bytes = bytes.await?.freeze();
        self.around(self.put(key, None, bytes)).await.map(drop)
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        assert!(matches!(key, Key::Head(_) | Key::Proof(..)), "{key} is replaced");
        self.around(self.put(key, expected, bytes)).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.around(self.world.memory.read(key, bytes_max)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.around(self.world.memory.read_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        let entry = self.around(self.world.memory.head(key)).await?;
        Ok(entry.map(|entry| self.dated(entry)))
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let entries = self.around(self.world.memory.list(prefix)).await?;
        let entries: Vec<Entry> = entries.into_iter().map(|entry| self.dated(entry)).collect();
        let is_stale = self.world.weather.has_stale_lists && !self.is_calm && self.world.below(4) == 0;
        let before = self.world.state().listings.insert(prefix.to_owned(), entries.clone());
        Ok(if is_stale { before.unwrap_or_default() } else { entries })
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let pruning = self.pruning.lock().expect("nobody panicked").clone();
        let delete = async {
            checks::deletion(&self.world, key, pruning.as_ref());
            self.world.memory.delete(key).await
        };
        self.around(delete).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.world.memory.sweep_unfinished(older_than).await
    }

    fn guarantees(&self) -> Guarantees {
        let honoured = self.world.weather.honours_conditions;
        Guarantees { create_only: honoured, compare_and_swap: honoured }
    }
}
