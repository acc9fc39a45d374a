//! What a store honours, learned by trying it on objects of our own.
//!
//! Stores that speak S3 differ in what they do with conditions on writes: some refuse them, some
//! ignore them and overwrite. What depends on them must know before it writes anything that counts.

use super::{Guarantees, Storage, whole};
use crate::error::{ErrorKind, Result};
use crate::random;
use crate::snapshot::Key;

const BYTES_MAX: usize = 16;

/// Tries the store with one object of its own, in about six requests.
///
/// Fails where nothing can be done with the store at all: it cannot be reached, written or read.
/// Where nothing may be deleted, the object of one byte stays.
pub async fn probe(storage: &dyn Storage) -> Result<Guarantees> {
    let key = new_probe_key()?;
    storage.create(&key, whole("1")).await?;
    let found = conditions_honoured(storage, &key).await;
    let deleted = storage.delete(&key).await;
    let found = found?;
    match deleted {
        Err(error) if error.kind() != ErrorKind::Denied => Err(error),
        _ => Ok(found),
    }
}

/// A key of its own for every caller, so that machines that start together do not meet.
pub fn new_probe_key() -> Result<Key> {
    Ok(Key::Probe(format!("{:016x}", random::u128()? as u64)))
}

/// Tries which conditions hold back a write to the object at `key`, which is there.
pub async fn conditions_honoured(storage: &dyn Storage, key: &Key) -> Result<Guarantees> {
    let created_twice = !refused(storage.create(key, whole("2")).await)?;
    let first = storage.read(key, BYTES_MAX).await?;
    let swapped = !refused(storage.replace(key, Some(&first.version), "3".into()).await)?;
    let swapped_twice = !refused(storage.replace(key, Some(&first.version), "4".into()).await)?;
    // A storage that found out by itself makes up for it by looking first, and so seems to honour.
    let admitted = storage.guarantees();
    Ok(Guarantees {
        create_only: admitted.create_only && !created_twice,
        compare_and_swap: admitted.compare_and_swap && swapped && !swapped_twice,
    })
}

/// Whether a condition was held against the write.
fn refused<T>(result: Result<T>) -> Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(true),
        Err(error) => Err(error),
    }
}
