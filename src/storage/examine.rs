//! What a diagnosis asks of a storage beyond what backups need.

use async_trait::async_trait;
use jiff::Timestamp;

use super::Storage;
use crate::error::Result;
use crate::snapshot::Key;

/// What a storage says of itself in its first answer, whatever that answer allows or refuses.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Greeting {
    /// The time by its clock when it answered, to the second where it is a remote one.
    pub time: Option<Timestamp>,
    /// The region that keeps the bucket, where the store names it.
    pub region: Option<String>,
    /// Whether it sent us to another region.
    pub is_elsewhere: bool,
}

/// A storage that can be examined.
#[async_trait]
pub trait Examine: Storage {
    /// Asks for nothing but an answer. That something is refused is an answer too; `Denied` if
    /// there is no such bucket, or nothing to sign the request with.
    async fn greet(&self) -> Result<Greeting>;

    /// Begins to write an object in parts and ends that again; nothing becomes visible.
    async fn begin_and_abort(&self, key: &Key) -> Result<()>;
}
