//! What a store honours, learned by trying it on objects of our own.
//!
//! Stores that speak S3 differ in what they do with conditions on writes: some refuse them, some
//! ignore them and overwrite. What depends on them must know before it writes anything that counts.

use super::{Guarantees, Storage, whole};
use crate::error::{ErrorKind, Result};
use crate::random;
use crate::snapshot::Key;

const BYTES_MAX: usize = 16;

/// Probes are written under this many keys, drawn anew each time: where nothing may be deleted, no more objects
/// than these gather however often we start. Machines that start together seldom meet, and see it if they do.
const SLOTS: u128 = 16;

/// How often another key is tried when somebody else seems to be at the same.
const TRIES_MAX: usize = 4;

/// Tries the store with one object of its own, in about six requests.
///
/// Fails where nothing can be done with the store at all: it cannot be reached, written or read.
/// Where nothing may be deleted, the object of one byte stays, and is used again.
pub async fn probe(storage: &dyn Storage) -> Result<Guarantees> {
    let mut found = probe_at(storage, &new_probe_key()?).await;
    for _ in 1..TRIES_MAX {
        // Two at one key can take a condition from each other that holds, never lend one that does not.
        match &found {
            Ok(found) if *found == storage.guarantees() => break,
            Err(error) if !matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict) => break,
            _ => {}
        }
        let again = probe_at(storage, &new_probe_key()?).await;
        // A store with fewer conditions says the same at every key.
        if let (Ok(found), Ok(again)) = (&found, &again)
            && found == again
        {
            break;
        }
        found = again;
    }
    found
}

async fn probe_at(storage: &dyn Storage, key: &Key) -> Result<Guarantees> {
    ensure_probe(storage, key).await?;
    let found = conditions_honoured(storage, key).await;
    let deleted = storage.delete(key).await;
    let found = found?;
    match deleted {
        Err(error) if error.kind() != ErrorKind::Denied => Err(error),
        _ => Ok(found),
    }
}

/// Writes a probe; one that an earlier start could not remove is as good.
pub async fn ensure_probe(storage: &dyn Storage, key: &Key) -> Result<()> {
    match storage.create(key, whole("1")).await {
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        created => created,
    }
}

/// One of the keys for probes.
pub fn new_probe_key() -> Result<Key> {
    Ok(Key::Probe(format!("{:02x}", random::u128()? % SLOTS)))
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
