//! What a store honours, learned by trying it on objects of our own.
//!
//! Stores that speak S3 differ in what they do with conditions on writes: some refuse them, some
//! ignore them and overwrite. What depends on them must know before it writes anything that counts.

use super::{Guarantees, Storage, whole};
use crate::error::{Error, ErrorKind, Result};
use crate::random;
use crate::snapshot::Key;

/// What a probe holds, in bytes.
const BYTES: usize = 16;

/// Probes are written under this many keys, drawn anew each time: where nothing may be deleted, no more objects
/// than these gather, however often we start.
const SLOTS: u128 = 64;

/// How many keys are tried while somebody else is at the same one.
const TRIES_MAX: usize = 8;

/// Tries the store with one object of its own, in about six requests.
///
/// Fails where nothing can be done with the store at all: it cannot be reached, written or read.
/// Where nothing may be deleted, the object of 16 bytes stays, and is used again.
pub async fn probe(storage: &dyn Storage) -> Result<Guarantees> {
    let mut found = probe_at(storage, &new_probe_key()?).await;
    for _ in 1..TRIES_MAX {
        let is_shared = |error: &Error| matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Conflict);
        if !found.as_ref().is_err_and(is_shared) {
            break;
        }
        found = probe_at(storage, &new_probe_key()?).await;
    }
    found
}

async fn probe_at(storage: &dyn Storage, key: &Key) -> Result<Guarantees> {
    ensure_probe(storage, key).await?;
    let found = conditions_honoured(storage, key).await?;
    match storage.delete(key).await {
        Err(error) if error.kind() != ErrorKind::Denied => Err(error),
        _ => Ok(found),
    }
}

/// One of the keys for probes.
pub fn new_probe_key() -> Result<Key> {
    Ok(Key::Probe(format!("{:02x}", random::u128()? % SLOTS)))
}

/// Writes a probe; one that an earlier start could not remove is as good.
pub async fn ensure_probe(storage: &dyn Storage, key: &Key) -> Result<()> {
    match storage.create(key, whole(content()?)).await {
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(()),
        created => created,
    }
}

/// Tries which conditions hold back a write to the object at `key`, which is there.
///
/// `Conflict` or `NotFound` if somebody else is seen to write or remove it meanwhile.
pub async fn conditions_honoured(storage: &dyn Storage, key: &Key) -> Result<Guarantees> {
    // Somebody who removes it in between lets one of these succeed, but not both.
    let created_again = !refused(storage.create(key, whole(content()?)).await)?
        && !refused(storage.create(key, whole(content()?)).await)?;
    let first = storage.read(key, BYTES).await?;
    let swapped = !refused(storage.replace(key, Some(&first.version), content()?.into()).await)?;
    if !swapped && storage.read(key, BYTES).await?.version != first.version {
        let message =
            format!("try the conditions of the store: somebody else does at the same time: key=`{key}`");
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let swapped_twice = !refused(storage.replace(key, Some(&first.version), content()?.into()).await)?;
    // A storage that found out by itself makes up for it by looking first, and so seems to honour.
    let admitted = storage.guarantees();
    Ok(Guarantees {
        create_only: admitted.create_only && !created_again,
        compare_and_swap: admitted.compare_and_swap && swapped && !swapped_twice,
    })
}

/// Another one each time: some stores name a state by its content.
fn content() -> Result<String> {
    Ok(format!("{:016x}", random::u128()? as u64))
}

/// Whether a condition was held against the write.
fn refused<T>(result: Result<T>) -> Result<bool> {
    match result {
        Ok(_) => Ok(false),
        Err(error) if error.kind() == ErrorKind::Conflict => Ok(true),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::super::{Fault, Faulty, How, Memory, Operation};
    use super::*;

    #[tokio::test]
    async fn two_that_meet_at_one_probe_do_not_mislead_each_other() {
        let storage = Faulty::new(Arc::new(Memory::default()));
        let key = new_probe_key().expect("random bits");
        ensure_probe(&storage, &key).await.expect("written");
        // The first one's swap comes when the second one is through.
        storage.script(Fault::at(Operation::Replace, 1, How::Late(Duration::from_millis(50))));
        let (first, second) =
            tokio::join!(conditions_honoured(&storage, &key), conditions_honoured(&storage, &key));
        assert_eq!(first.expect_err("it saw the other").kind(), ErrorKind::Conflict);
        assert_eq!(second.expect("undisturbed"), Guarantees::FULL);
    }

    #[tokio::test]
    async fn a_probe_that_is_taken_away_is_tried_at_another_key() {
        let storage = Faulty::new(Arc::new(Memory::default()));
        storage.script(Fault::at(Operation::Read, 1, How::Before(ErrorKind::NotFound)));
        assert_eq!(probe(&storage).await.expect("probed"), Guarantees::FULL);
    }
}
