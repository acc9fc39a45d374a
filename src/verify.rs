//! The verb "verify": read a snapshot back from storage, restore it to scratch, and say so in storage.

use crate::catalog::Catalog;
use crate::clock::elapsed_ms;
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::restore::{Resources, Scratch};
use crate::snapshot::{FORMAT, Manifest, Proof, TOOL};
use crate::source::{Depth, query_value};

/// Proves one snapshot and writes the proof.
///
/// Everything is read from storage, never from local memory: both hashes are compared, the database
/// is restored to a scratch file, and SQLite's `integrity_check` passes over it.
pub async fn run(catalog: &Catalog, manifest: &Manifest, resources: &Resources) -> Result<Proof> {
    let clock = &resources.clock;
    let began = clock.now();
    let copy = Scratch::fetch(resources, manifest, &resources.scratch, Some(Depth::Full)).await?;
    // Without SQLite's word it is still what was stored, byte for byte; the proof says which it was.
    let check = if copy.is_checked() { Depth::Full.pragma() } else { "hashes" };
    let stated = manifest.clone();
    blocking("compare the facts", move || require_facts(&copy, &stated)).await?;
    let proven_at = clock.now();
    let proof = Proof {
        format: FORMAT,
        snapshot: manifest.id.clone(),
        proven_at,
        took_ms: elapsed_ms(began, proven_at),
        check: check.to_owned(),
        tool: TOOL.to_owned(),
    };
    catalog.write_proof(&proof).await?;
    Ok(proof)
}

/// The snapshot a drill should prove: the newest if it is unproven, else the one whose proof is
/// missing or oldest, so that in time each is proven. Pure.
pub fn due<'a>(snapshots: &'a [Manifest], proofs: &[Proof]) -> Option<&'a Manifest> {
    let proven_at = |manifest: &Manifest| {
        proofs.iter().filter(|proof| proof.snapshot == manifest.id).map(|proof| proof.proven_at).max()
    };
    let newest = snapshots.iter().max_by_key(|manifest| &manifest.id)?;
    match proven_at(newest) {
        None => Some(newest),
        // An absent proof orders before every time.
        Some(_) => snapshots.iter().min_by_key(|manifest| (proven_at(manifest), &manifest.id)),
    }
}

/// The manifest's facts must be those of the database it stands for.
fn require_facts(copy: &Scratch, manifest: &Manifest) -> Result<()> {
    if manifest.plain.bytes == 0 {
        return Ok(());
    }
    let facts = &manifest.sqlite;
    for (sql, expected) in [
        ("PRAGMA page_count", i64::from(manifest.page_count)),
        ("PRAGMA page_size", i64::from(manifest.page_size)),
        ("PRAGMA user_version", i64::from(facts.user_version)),
        ("PRAGMA application_id", i64::from(facts.application_id)),
    ] {
        let found = query_value(copy.path(), sql)?;
        if found != expected {
            let message = format!(
                "the manifest does not describe the database it stands for: snapshot=`{}` sql=`{sql}` \
                 expected=`{expected}` found=`{found}`",
                manifest.id
            );
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
    }
    Ok(())
}
