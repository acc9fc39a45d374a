//! Writing one small object in one request, on a condition.

use std::sync::atomic::Ordering;

use bytes::Bytes;

use super::S3;
use super::failure::{Class, Failure};
use super::read::Found;
use crate::error::Result;
use crate::random;
use crate::snapshot::Key;
use crate::storage::{Operation, Version};

/// The metadata name under which an object carries the id of the write that made it.
pub(super) const PUT_ID: &str = "lifeboat-put";

/// What must be true of an object for a write to it to happen.
#[derive(Debug, Clone)]
pub(super) enum Condition {
    /// There is none.
    Absent,
    /// It is in this state.
    Is(Version),
}

impl Condition {
    fn holds_for(&self, found: Option<&Found>) -> bool {
        match (self, found) {
            (Condition::Absent, found) => found.is_none(),
            (Condition::Is(version), Some(found)) => found.version.as_ref() == Some(version),
            (Condition::Is(_), None) => false,
        }
    }
}

/// An id that no other write has.
pub(super) fn new_put_id() -> Result<String> {
    Ok(format!("{:032x}", random::u128()?))
}

impl S3 {
    /// Writes `bytes` if `condition` holds, and finds out whether it did if the answer is unclear.
    pub(super) async fn put(
        &self,
        key: &Key,
        operation: Operation,
        condition: &Condition,
        bytes: Bytes,
    ) -> Result<Option<Version>> {
        let put_id = new_put_id()?;
        let mut outcome = self.put_conditionally(key, condition, &bytes, &put_id).await;
        if let Err(failure) = &outcome
            && failure.class == Class::Unsupported
            && self.honours(condition)
        {
            self.note_unsupported(condition);
            outcome = self.put_conditionally(key, condition, &bytes, &put_id).await;
        }
        match outcome {
            Ok(Some(version)) => Ok(Some(version)),
            // Whoever stored an object names its state: somebody else may have answered.
            Ok(None) => {
                let failure =
                    Failure::new(Class::Transient, "the answer names no state (ETag) of the object");
                self.settle(key, operation, &put_id, failure).await
            }
            Err(failure) => self.settle(key, operation, &put_id, failure).await,
        }
    }

    async fn put_conditionally(
        &self,
        key: &Key,
        condition: &Condition,
        bytes: &Bytes,
        put_id: &str,
    ) -> Result<Option<Version>, Failure> {
        let (if_none_match, if_match) = self.headers(key, condition).await?;
        let put = self.retrying(bytes.len() as u64, |client| {
            let request = client
                .put_object()
                .bucket(&self.settings.bucket)
                .key(self.name(key))
                .metadata(PUT_ID, put_id)
                .set_if_none_match(if_none_match.clone())
                .set_if_match(if_match.clone())
                .body(bytes.clone().into());
            async {
                match request.send().await.map_err(Failure::of) {
                    // For a write in one request, the way out of this is to send it again.
                    Err(failure) if failure.class == Class::Concurrent => {
                        Err(Failure { class: Class::Transient, ..failure })
                    }
                    outcome => outcome,
                }
            }
        });
        Ok(put.await?.e_tag.map(Version))
    }

    /// Looks whether a write that seems to have failed is nevertheless what made the object.
    ///
    /// A condition that does not hold may be our own doing (the answer to an earlier attempt was
    /// lost), and silence may mean either. A write of ours that another one replaced meanwhile
    /// cannot be told from one that never was.
    pub(super) async fn settle(
        &self,
        key: &Key,
        operation: Operation,
        put_id: &str,
        failure: Failure,
    ) -> Result<Option<Version>> {
        match self.look(key).await {
            Ok(Some(found)) if found.put_id.as_deref() == Some(put_id) => {
                tracing::debug!(%key, "a write that looked failed had succeeded: {}", failure.text);
                Ok(found.version)
            }
            Err(unknown) if failure.class == Class::Precondition => {
                let asked = "whether by this very write could not be asked";
                let text = format!("{}; {asked}: {}", failure.text, unknown.text);
                Err(self.explain(Failure { text, ..unknown }, operation, key))
            }
            // To expect a state of an object that is not there is to lose the race for it.
            _ if failure.class == Class::Missing && operation == Operation::Replace => {
                Err(self.explain(Failure { class: Class::Precondition, ..failure }, operation, key))
            }
            _ => Err(self.explain(failure, operation, key)),
        }
    }

    /// The headers that carry the condition; or, where the store ignores them, a look beforehand.
    pub(super) async fn headers(
        &self,
        key: &Key,
        condition: &Condition,
    ) -> Result<(Option<String>, Option<String>), Failure> {
        if !self.honours(condition) {
            let found = self.look(key).await?;
            return match condition.holds_for(found.as_ref()) {
                true => Ok((None, None)),
                false => Err(Failure::new(
                    Class::Precondition,
                    "seen before writing: the store knows no conditions",
                )),
            };
        }
        Ok(match condition {
            Condition::Absent => (Some("*".to_owned()), None),
            Condition::Is(version) => (None, Some(version.0.clone())),
        })
    }

    pub(super) fn honours(&self, condition: &Condition) -> bool {
        match condition {
            Condition::Absent => self.create_only.load(Ordering::Relaxed),
            Condition::Is(_) => self.compare_and_swap.load(Ordering::Relaxed),
        }
    }

    /// The store said itself that it does not know this condition.
    pub(super) fn note_unsupported(&self, condition: &Condition) {
        let (header, flag) = match condition {
            Condition::Absent => ("If-None-Match", &self.create_only),
            Condition::Is(_) => ("If-Match", &self.compare_and_swap),
        };
        flag.store(false, Ordering::Relaxed);
        tracing::warn!(
            header,
            "storage does not support {header}: concurrent writers are told apart as well as can be"
        );
    }
}
