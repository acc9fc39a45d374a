//! Looking at the snapshots of one database: can the newest be read, is it proven, what would be kept.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::SignedDuration;

use super::check::Check;
use super::patience::{LOOK, Patience, SURVEY};
use crate::catalog::Catalog;
use crate::clock::Timestamp;
use crate::config::Retention;
use crate::error::{Error, ErrorKind, Result};
use crate::prune::{self, PrunePlan};
use crate::restore;
use crate::retention::{Policy, Reason};
use crate::snapshot::{DatabaseName, Manifest, Proof};
use crate::storage::Storage;

const NEWEST: &str = "restore.newest";
const PROOF: &str = "restore.proof";
const RETENTION: &str = "retention";

/// What was found.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) newest: Result<Option<Newest>>,
    pub(super) plan: Result<PrunePlan>,
}

/// The newest snapshot.
#[derive(Debug)]
pub(super) struct Newest {
    pub(super) manifest: Manifest,
    /// Whether both of its ends could be read.
    pub(super) sample: Result<()>,
    /// What came of its last drill.
    pub(super) proof: Result<Option<Proof>>,
}

/// What the configuration says of age and keeping.
pub(super) struct Rules<'a> {
    pub(super) now: Timestamp,
    /// How old the newest snapshot may be.
    pub(super) age_max: Option<Duration>,
    pub(super) policy: &'a Result<Policy>,
    pub(super) retention: &'a Retention,
    /// How far back any moment can be restored.
    pub(super) point_in_time: Duration,
}

/// Reads head, manifest, both ends of the data and the proof, and plans what pruning would remove.
pub(super) async fn look(
    storage: &Arc<dyn Storage>,
    database: &DatabaseName,
    rules: &Rules<'_>,
    patience: Patience,
) -> Looked {
    let catalog = Catalog::new(Arc::clone(storage), database.clone());
    let plan = async {
        let policy = rules.policy.as_ref().map_err(Error::again)?;
        let Rules { point_in_time, retention, now, .. } = *rules;
        let rules = prune::Rules { policy, point_in_time, safety_age: retention.safety_age };
        prune::plan(&catalog, rules, now).await
    };
    let (newest, plan) = tokio::join!(newest(storage, &catalog, patience), patience.bounded(SURVEY, plan));
    Looked { newest, plan }
}

async fn newest(storage: &Arc<dyn Storage>, catalog: &Catalog, patience: Patience) -> Result<Option<Newest>> {
    let Some(manifest) = patience.bounded(LOOK, catalog.newest()).await? else { return Ok(None) };
    let sample = patience.bounded(LOOK, restore::sample(storage, &manifest)).await;
    let proof = patience.bounded(LOOK, catalog.drill(&manifest.id)).await;
    Ok(Some(Newest { manifest, sample, proof }))
}

/// The checks of one database's snapshots; `None` where storage could not be asked. Pure.
pub(super) fn judge(looked: Option<&Looked>, rules: &Rules<'_>, drills: bool) -> [Check; 3] {
    let Some(looked) = looked else {
        return [NEWEST, PROOF, RETENTION].map(|name| Check::skipped(name, "storage cannot be used"));
    };
    let (newest, proof) = match &looked.newest {
        Ok(Some(found)) => (newest_found(found, rules), proven(&found.proof, rules, drills)),
        Ok(None) => (
            Check::note(
                NEWEST,
                "there is no snapshot yet",
                "there is nothing to restore until `lifeboat backup`, or the schedule, took one",
            ),
            Check::skipped(PROOF, "there is no snapshot yet"),
        ),
        Err(error) => (unreadable(error), Check::skipped(PROOF, "the newest snapshot cannot be read")),
    };
    [newest, proof, retention(&looked.plan, rules)]
}

fn newest_found(found: &Newest, rules: &Rules<'_>) -> Check {
    if let Err(error) = &found.sample {
        return unreadable(error);
    }
    let manifest = &found.manifest;
    let text = format!(
        "{}, {} ({} stored), {} old: manifest, seek table, first and last frame can be read",
        manifest.id,
        ByteSize(manifest.plain.bytes),
        ByteSize(manifest.stored.bytes),
        age(manifest.taken_at, rules.now),
    );
    let flags: Vec<&str> = manifest.flags.iter().map(|flag| flag.name()).collect();
    if !flags.is_empty() {
        return Check::warning(
            NEWEST,
            format!("{text}; its source was {}", flags.join(" and ")),
            "it is what a restore of the newest would bring back, and nothing older is pruned meanwhile",
            "look at the database, and at `lifeboat snapshots`; restore an older one with --snapshot if it is better",
        );
    }
    let is_stale = rules.age_max.is_some_and(|max| {
        rules.now.duration_since(manifest.taken_at)
            > SignedDuration::try_from(max).unwrap_or(SignedDuration::MAX)
    });
    match is_stale {
        false => Check::ok(NEWEST, text),
        // A snapshot is old, too, where nothing was written since: only the daemon knows.
        true => Check::note(
            NEWEST,
            text,
            "either nothing was written since, or no backup has succeeded: `lifeboat health --ready` asks the daemon, \
             `lifeboat backup` tries it now",
        ),
    }
}

fn unreadable(error: &Error) -> Check {
    let action = match error.kind() {
        ErrorKind::Limit => return Check::skipped(NEWEST, error.chain()),
        ErrorKind::Denied => "allow s3:GetObject",
        ErrorKind::Unavailable => "see that the store is well, and try again",
        _ => "choose an older one (`lifeboat snapshots`), and take a new one now (`lifeboat backup`)",
    };
    Check::failure(NEWEST, error.chain(), "the newest snapshot could not be restored", action)
}

fn proven(proof: &Result<Option<Proof>>, rules: &Rules<'_>, drills: bool) -> Check {
    match (proof, drills) {
        (Ok(Some(Proof { failure: Some(failure), proven_at, .. })), _) => Check::failure(
            PROOF,
            format!("its drill failed {} ago: {failure}", age(*proven_at, rules.now)),
            "it does not restore, or not to what it should; nothing is pruned meanwhile",
            "look at the database with `PRAGMA integrity_check`, and at older snapshots with `lifeboat snapshots`",
        ),
        (Ok(Some(proof)), _) => Check::ok(
            PROOF,
            format!(
                "proven {} ago by {}, in {} ms",
                age(proof.proven_at, rules.now),
                proof.check,
                proof.took_ms
            ),
        ),
        (Ok(None), true) => {
            Check::note(PROOF, "not proven yet", "the daemon proves it, or `lifeboat verify` now")
        }
        (Ok(None), false) => Check::warning(
            PROOF,
            "not proven, and drills are off (verify.schedule)",
            "that it restores is a hope",
            "run `lifeboat verify`, or set BACKUP_VERIFY_SCHEDULE",
        ),
        (Err(error), _) if error.kind() == ErrorKind::Limit => Check::skipped(PROOF, error.chain()),
        (Err(error), _) => Check::warning(
            PROOF,
            error.chain(),
            "whether the newest snapshot is proven is not known",
            "see what the message names, and try again",
        ),
    }
}

fn retention(plan: &Result<PrunePlan>, rules: &Rules<'_>) -> Check {
    let keep = &rules.retention.keep;
    let plan = match plan {
        Ok(plan) => plan,
        Err(error) if rules.policy.is_err() => {
            return Check::failure(
                RETENTION,
                error.chain(),
                "nothing is pruned, and the daemon does not start",
                "correct retention.keep (BACKUP_RETENTION)",
            );
        }
        Err(error) => {
            return Check::skipped(
                RETENTION,
                format!("the snapshots could not be surveyed: {}", error.chain()),
            );
        }
    };
    let all = plan.snapshots.decisions.len();
    let bytes: u64 = plan.removals.iter().chain(&plan.orphans).map(|removal| removal.bytes).sum();
    let found = format!(
        "`{keep}` keeps {} of {all} snapshots and removes {}, {} orphans and {} stale proofs: {}",
        all - plan.removals.len(),
        plan.removals.len(),
        plan.orphans.len(),
        plan.stale_proofs.len(),
        ByteSize(bytes)
    );
    if let Some(damage) = plan.damaged.first() {
        return Check::warning(
            RETENTION,
            format!(
                "{found}; {} are damaged, the first is {}: {}",
                plan.damaged.len(),
                damage.path,
                damage.what
            ),
            "what is damaged cannot be restored, is left alone, and counts for nothing",
            "look at what `lifeboat prune` shows, and keep what is damaged for inspection",
        );
    }
    let frozen = plan
        .snapshots
        .decisions
        .iter()
        .flat_map(|decision| &decision.keep)
        .find(|reason| matches!(reason, Reason::Frozen(_)));
    match (frozen, &rules.retention.prune_schedule) {
        (Some(reason), _) => {
            Check::note(RETENTION, found, format!("nothing is removed at present: {reason}"))
        }
        (None, None) if !plan.is_empty() => Check::note(
            RETENTION,
            found,
            "nothing is removed by itself (retention.prune_schedule is `off`): `lifeboat prune --apply` does it",
        ),
        (None, _) => Check::ok(RETENTION, found),
    }
}

fn age(then: Timestamp, now: Timestamp) -> String {
    format!("{:#}", SignedDuration::from_secs(now.duration_since(then).as_secs()))
}

#[cfg(test)]
mod tests;
