//! The verb "verify": read a snapshot back from storage, restore it to scratch, and say in storage what came
//! of it.

mod drills;

use std::time::Instant;

pub use drills::{Rhythm, drills};

use crate::catalog::Catalog;
use crate::clock::{Timestamp, elapsed_ms};
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::restore::{Resources, Scratch};
use crate::snapshot::{FORMAT, Manifest, Proof, TOOL};
use crate::source::{Depth, query_value, require_assertion};

/// A snapshot that is not proven.
#[derive(Debug)]
pub struct Failure {
    /// Why not.
    pub error: Error,
    /// What is known of the snapshot now, unless something else came in between: it does not restore, or
    /// not to what it should.
    pub verdict: Option<Proof>,
    /// Storage holds what was stored: storing the same database again would help nothing.
    pub is_as_stored: bool,
}

/// Proves one snapshot and writes the proof, or that there is none.
///
/// Everything is read from storage, never from local memory: both hashes are compared, the database
/// is restored to a scratch file, SQLite's `integrity_check` passes over it, and the assertion, if there
/// is one, holds for it.
pub async fn run(
    catalog: &Catalog,
    manifest: &Manifest,
    resources: &Resources,
) -> std::result::Result<Proof, Failure> {
    let clock = &resources.clock;
    let began = clock.now();
    let (examined, is_as_stored) = match fetch(manifest, resources).await {
        Ok(copy) => (examine(copy, manifest, resources).await, true),
        Err(error) => (Err(error), false),
    };
    let proven_at = clock.now();
    let record = |check: &str, failure: Option<String>| Proof {
        format: FORMAT,
        snapshot: manifest.id.clone(),
        proven_at,
        took_ms: elapsed_ms(began, proven_at),
        check: check.to_owned(),
        assertion: resources.checks.assertion.clone(),
        failure,
        tool: TOOL.to_owned(),
    };
    match examined {
        Ok(check) => {
            let proof = record(check, None);
            let written = catalog.write_proof(&proof).await;
            written.map(|()| proof).map_err(|error| Failure { error, verdict: None, is_as_stored })
        }
        Err(error) if is_verdict(error.kind()) => {
            let verdict = record("none", Some(shortened(error.chain())));
            if let Err(unwritten) = catalog.write_proof(&verdict).await {
                tracing::warn!(
                    snapshot = %manifest.id,
                    "that snapshot {} is not proven could not be noted in storage: {}",
                    manifest.id, unwritten.chain()
                );
            }
            Err(Failure { error, verdict: Some(verdict), is_as_stored })
        }
        Err(error) => Err(Failure { error, verdict: None, is_as_stored }),
    }
}

/// Whether an error speaks of the snapshot, and not of the way to it.
fn is_verdict(kind: ErrorKind) -> bool {
    matches!(kind, ErrorKind::Corrupt | ErrorKind::NotFound | ErrorKind::Unhealthy)
}

/// Records have an end; the rest of a long reason is in the log.
const REASON_CHARS_MAX: usize = 2_000;

fn shortened(reason: String) -> String {
    reason.chars().take(REASON_CHARS_MAX).collect()
}

async fn fetch(manifest: &Manifest, resources: &Resources) -> Result<Scratch> {
    let copy = Scratch::fetch(resources, manifest, &resources.scratch).await?;
    match copy.remark(manifest) {
        None => Ok(copy),
        Some(remark) => Err(Error::new(ErrorKind::Corrupt, remark)),
    }
}

/// Returns what passed: the SQLite check, or the hashes alone.
async fn examine(mut copy: Scratch, manifest: &Manifest, resources: &Resources) -> Result<&'static str> {
    copy.check(resources, Depth::Full).await?;
    copy.require_whole(manifest)?;
    // Without SQLite's word it is still what was stored, byte for byte; the proof says which it was.
    let check = if copy.is_checked() { Depth::Full.pragma() } else { "hashes" };
    let (stated, deadline) = (manifest.clone(), resources.check_by());
    let assertion = resources.checks.assertion.clone();
    let ask = move || {
        require_facts(&copy, &stated, deadline)?;
        let about = |error: Error| {
            Error::new(error.kind(), format!("snapshot `{}` is not proven", stated.id)).because(error)
        };
        assertion.map_or(Ok(()), |sql| require_assertion(copy.path(), &sql, deadline)).map_err(about)
    };
    blocking("compare the facts", ask).await?;
    Ok(check)
}

/// The manifest's facts must be those of the database it stands for.
fn require_facts(copy: &Scratch, manifest: &Manifest, deadline: Instant) -> Result<()> {
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
        let found = query_value(copy.path(), sql, deadline)?;
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

/// When a snapshot was last shown to restore.
fn proven_at(manifest: &Manifest, proofs: &[Proof]) -> Option<Timestamp> {
    proofs.iter().filter(|proof| proof.snapshot == manifest.id).map(|proof| proof.proven_at).max()
}
