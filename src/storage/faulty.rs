//! Storage that fails where a test says so.
//!
//! Faults are counted, never drawn: the same script on the same calls gives the same run.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use jiff::Timestamp;

use super::{Entry, Guarantees, Object, Operation, Parts, Storage, Version};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Key;

/// One scripted fault.
#[derive(Debug, Clone)]
pub struct Fault {
    operation: Operation,
    path: String,
    nth: u32,
    how: How,
}

/// What goes wrong.
#[derive(Debug, Clone, Copy)]
pub enum How {
    /// Nothing is done, and this kind of error comes back.
    Before(ErrorKind),
    /// It is done, and this kind of error comes back: applied but unanswered.
    After(ErrorKind),
    /// What is read ends after this many bytes, and nobody says so.
    Truncated(usize),
    /// It is done as it should, this much later.
    Late(Duration),
}

impl Fault {
    /// The `nth` (from 1) call of `operation` goes wrong.
    pub fn at(operation: Operation, nth: u32, how: How) -> Self {
        Fault { operation, path: String::new(), nth, how }
    }

    /// Only calls whose path or prefix contains `path` are counted.
    pub fn on(self, path: impl Into<String>) -> Self {
        Fault { path: path.into(), ..self }
    }
}

/// Passes everything on, except what the script says. Clones share the script.
#[derive(Debug, Clone)]
pub struct Faulty {
    inner: Arc<dyn Storage>,
    script: Arc<Mutex<Vec<Fault>>>,
}

impl Faulty {
    /// `inner`, with no faults yet.
    pub fn new(inner: Arc<dyn Storage>) -> Self {
        Faulty { inner, script: Arc::default() }
    }

    /// Adds a fault; calls count from now on.
    pub fn script(&self, fault: Fault) {
        self.faults().push(fault);
    }

    /// Whether every fault had its turn.
    pub fn is_spent(&self) -> bool {
        self.faults().is_empty()
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Vec<Fault>> {
        self.script.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts this call against every fault that matches it, and takes out the one whose turn it is.
    fn due(&self, operation: Operation, path: &str) -> Option<How> {
        let mut faults = self.faults();
        for fault in faults.iter_mut() {
            if fault.operation == operation && path.contains(&fault.path) {
                fault.nth = fault.nth.saturating_sub(1);
            }
        }
        let turn = faults.iter().position(|fault| fault.nth == 0)?;
        Some(faults.remove(turn).how)
    }

    async fn act<T>(
        &self,
        operation: Operation,
        path: &str,
        act: impl Future<Output = Result<T>>,
        truncate: impl FnOnce(&mut T, usize),
    ) -> Result<T> {
        let fault =
            |kind| Err(Error::new(kind, format!("scripted fault: {}: path=`{path}`", operation.verb())));
        match self.due(operation, path) {
            None => act.await,
            Some(How::Before(kind)) => fault(kind),
            Some(How::After(kind)) => act.await.and_then(|_| fault(kind)),
            Some(How::Truncated(bytes)) => {
                let mut result = act.await?;
                truncate(&mut result, bytes);
                Ok(result)
            }
            Some(How::Late(time)) => {
                tokio::time::sleep(time).await;
                act.await
            }
        }
    }
}

/// For what has no body to cut.
fn whole<T>(_: &mut T, _: usize) {}

#[deny(clippy::missing_trait_methods)]
#[async_trait]
impl Storage for Faulty {
    fn location(&self) -> String {
        self.inner.location()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        self.act(Operation::Create, &key.path(), self.inner.create(key, parts), whole).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        self.act(Operation::Replace, &key.path(), self.inner.replace(key, expected, bytes), whole).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        let cut = |object: &mut Object, bytes| object.bytes.truncate(bytes);
        self.act(Operation::Read, &key.path(), self.inner.read(key, bytes_max), cut).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.act(Operation::ReadRange, &key.path(), self.inner.read_range(key, range), Bytes::truncate).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.act(Operation::Head, &key.path(), self.inner.head(key), whole).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.act(Operation::List, prefix, self.inner.list(prefix), Vec::truncate).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.act(Operation::Delete, &key.path(), self.inner.delete(key), whole).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.act(Operation::Sweep, "", self.inner.sweep_unfinished(older_than), whole).await
    }

    fn guarantees(&self) -> Guarantees {
        self.inner.guarantees()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::{self, Memory};

    fn key(name: &str) -> Key {
        Key::Probe(name.to_owned())
    }

    #[tokio::test]
    async fn only_the_nth_matching_call_goes_wrong() {
        let storage = Faulty::new(Arc::new(Memory::default()));
        storage.script(Fault::at(Operation::Create, 2, How::Before(ErrorKind::Unavailable)).on("a"));
        let mut outcomes = Vec::new();
        for name in ["a1", "b1", "a2", "a3"] {
            outcomes.push(storage.create(&key(name), storage::whole("x")).await.is_ok());
        }
        assert_eq!(outcomes, [true, true, false, true]);
        assert_eq!(storage.head(&key("a2")).await.expect("asked"), None);
    }

    #[tokio::test]
    async fn applied_but_unanswered_is_applied() {
        let storage = Faulty::new(Arc::new(Memory::default()));
        storage.script(Fault::at(Operation::Create, 1, How::After(ErrorKind::Unavailable)));
        let error = storage.create(&key("a"), storage::whole("x")).await.expect_err("scripted");
        assert_eq!(error.kind(), ErrorKind::Unavailable);
        assert!(storage.head(&key("a")).await.expect("asked").is_some());
    }

    #[tokio::test]
    async fn a_body_ends_early_and_an_answer_comes_late() {
        let storage = Faulty::new(Arc::new(Memory::default()));
        storage.create(&key("a"), storage::whole("0123456789")).await.expect("created");
        storage.script(Fault::at(Operation::Read, 1, How::Truncated(3)));
        storage.script(Fault::at(Operation::Read, 2, How::Late(Duration::from_millis(30))));
        assert_eq!(storage.read(&key("a"), 10).await.expect("read").bytes, "012");
        let began = std::time::Instant::now();
        assert_eq!(storage.read(&key("a"), 10).await.expect("read").bytes, "0123456789");
        assert!(began.elapsed() >= Duration::from_millis(30));
    }
}
