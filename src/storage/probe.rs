//! What a store honours, learned by trying it on objects of our own.
//!
//! Stores that speak S3 differ in what they do with conditions on writes: some refuse them, some
//! ignore them and overwrite. What depends on them must know before it writes anything that counts.

use super::{Guarantees, Storage, whole};
use crate::error::{ErrorKind, Result};
use crate::snapshot::Key;

/// What was found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Findings {
    /// What the store honours.
    pub guarantees: Guarantees,
    /// Objects can be listed.
    pub may_list: bool,
    /// Objects can be deleted. If not, the probe's own object of one byte stays.
    pub may_delete: bool,
    /// Asked for an object that is absent, the store says so; without the permission to list, S3
    /// says "not allowed" instead.
    pub tells_absence: bool,
}

const BYTES_MAX: usize = 16;

/// Tries the store with one object of its own, in about seven requests.
///
/// Fails where nothing can be done with the store at all: it cannot be reached, written or read.
pub async fn probe(storage: &dyn Storage) -> Result<Findings> {
    // A name of its own, so that machines that start together do not meet.
    let name = format!("{:016x}", fastrand::u64(..));
    let key = Key::Probe(name.clone());
    let tells_absence = match storage.read(&key, BYTES_MAX).await {
        Err(error) if error.kind() == ErrorKind::NotFound => true,
        Err(error) if error.kind() == ErrorKind::Denied => false,
        Err(error) => return Err(error),
        Ok(_) => true,
    };
    storage.create(&key, whole("1")).await?;
    let guarantees = try_conditions(storage, &key).await;
    let may_delete = allowed(storage.delete(&key).await);
    let guarantees = guarantees?;
    let may_list = allowed(storage.list(&Key::Probe(name).path()).await);
    Ok(Findings { guarantees, may_list: may_list?, may_delete: may_delete?, tells_absence })
}

async fn try_conditions(storage: &dyn Storage, key: &Key) -> Result<Guarantees> {
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

/// Whether the store let us; anything but a refusal is a failure of the probe.
fn allowed<T>(result: Result<T>) -> Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(error) if error.kind() == ErrorKind::Denied => Ok(false),
        Err(error) => Err(error),
    }
}
