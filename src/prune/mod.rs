//! Prune: remove what retention no longer keeps, and what crashes left behind.
//!
//! A snapshot goes manifest first, then data, then proof, so that at every moment what is listed
//! can be restored; what a crash leaves in between is an orphan and goes with the next run.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::Timestamp;
use serde::Serialize;

use crate::catalog::{Catalog, StoredDelta, is_not_ours};
use crate::delta::Listed;
use crate::error::{Error, ErrorKind, Result};
use crate::lineage;
use crate::retention::{self, Anchored, Policy, SnapshotFacts, Window};
use crate::snapshot::{DatabaseName, Key, Kind, Manifest, SnapshotId, is_other_format};
use crate::storage::Entry;

/// How many snapshots, orphans and proofs one run removes. A run that goes wrong does limited
/// damage; what is left over goes with the next one. More than a schedule can make in a day (one a
/// minute), so that a prune a day keeps up.
pub const REMOVALS_MAX: usize = 2_000;

/// This many orphans may be left by crashes. When there are more, and more than snapshots, somebody
/// removed manifests (a lifecycle rule, say), and the data must not follow.
const ORPHANS_PLAUSIBLE: usize = 16;

/// What is kept.
#[derive(Debug, Clone, Copy)]
pub struct Rules<'a> {
    /// Which snapshots.
    pub policy: &'a Policy,
    /// How far back any moment can be restored.
    pub point_in_time: Duration,
    /// What is younger is never deleted.
    pub safety_age: Duration,
}

/// What a run would remove, and everything it looked at. Nothing is removed by making it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PrunePlan {
    /// The database.
    pub database: DatabaseName,
    /// The epoch of the head when the plan was made; 0 without a head.
    pub epoch: u64,
    /// The snapshot the head named.
    pub head: Option<SnapshotId>,
    /// What retention says about every sound snapshot.
    pub snapshots: retention::Plan,
    /// Snapshots to remove, oldest first.
    pub removals: Vec<Removal>,
    /// Data without a manifest that nobody can publish any more, oldest first.
    pub orphans: Vec<Removal>,
    /// Snapshots that no longer exist and still have a proof, oldest first.
    pub stale_proofs: Vec<SnapshotId>,
    /// Deltas that lead to no moment that is kept, by where they lead.
    pub deltas: Vec<StoredDelta>,
    /// What is broken. It is left alone and counts for nothing.
    pub damaged: Vec<Damage>,
}

/// Data to remove.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Removal {
    /// Whose.
    pub id: SnapshotId,
    /// Size of the data object.
    pub bytes: u64,
}

/// A listed snapshot that cannot be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// The object concerned.
    pub path: String,
    /// What is wrong with it.
    pub what: String,
}

/// What a run removed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Snapshots that no longer exist.
    pub removed: Vec<SnapshotId>,
    /// Snapshots whose orphaned data was removed.
    pub orphans: Vec<SnapshotId>,
    /// Snapshots whose stale proof was removed.
    pub stale_proofs: Vec<SnapshotId>,
    /// How many deltas were removed.
    pub deltas: usize,
    /// Size of all data removed.
    pub bytes_freed: u64,
    /// Objects that storage refused to delete.
    pub refused: Vec<Damage>,
    /// How many planned removals were not tried, because of [`REMOVALS_MAX`] or an error.
    pub left: usize,
}

impl PrunePlan {
    /// Whether there is nothing to remove.
    pub fn is_empty(&self) -> bool {
        self.removal_count() == 0
    }

    fn removal_count(&self) -> usize {
        self.removals.len() + self.orphans.len() + self.stale_proofs.len() + self.deltas.len()
    }
}

impl fmt::Display for PrunePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.snapshots.fmt(f)?;
        for Removal { id, bytes } in &self.orphans {
            writeln!(f, "remove  {id}  data without a manifest, {}", ByteSize(*bytes))?;
        }
        for id in &self.stale_proofs {
            writeln!(f, "remove  {id}  proof of a snapshot that is gone")?;
        }
        let delta_bytes: u64 = self.deltas.iter().map(|delta| delta.bytes).sum();
        if !self.deltas.is_empty() {
            let deltas = self.deltas.len();
            writeln!(f, "remove  {deltas} deltas to moments that are not kept, {}", ByteSize(delta_bytes))?;
        }
        for Damage { path, what } in &self.damaged {
            writeln!(f, "damaged {path}  {what}")?;
        }
        let bytes: u64 = self.removals.iter().chain(&self.orphans).map(|removal| removal.bytes).sum();
        writeln!(
            f,
            "{} of {} snapshots, {} orphans and {} stale proofs to remove: {}",
            self.removals.len(),
            self.snapshots.decisions.len(),
            self.orphans.len(),
            self.stale_proofs.len(),
            ByteSize(bytes + delta_bytes)
        )
    }
}

impl Report {
    /// Everything in numbers, on one line.
    pub fn summary(&self) -> String {
        let mut text = format!(
            "removed {} snapshots, {} orphans and {} stale proofs: {}",
            self.removed.len(),
            self.orphans.len(),
            self.stale_proofs.len(),
            ByteSize(self.bytes_freed)
        );
        if self.deltas > 0 {
            text.push_str(&format!("; {} of it are deltas", self.deltas));
        }
        if !self.refused.is_empty() {
            text.push_str(&format!("; storage refused to delete {} objects", self.refused.len()));
        }
        if self.left > 0 {
            text.push_str(&format!("; {} left for the next run", self.left));
        }
        text
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Damage { path, what } in &self.refused {
            writeln!(f, "refused {path}  {what}")?;
        }
        writeln!(f, "{}", self.summary())
    }
}

/// Finds out what to remove. Takes four listings and one read per snapshot; removes nothing.
///
/// `Corrupt` if a record is of a format that this program does not know: then a newer one is at work here,
/// and what it still needs is not known either. The same if another history stands here by now.
pub async fn plan(catalog: &Catalog, rules: Rules<'_>, now: Timestamp) -> Result<PrunePlan> {
    let Rules { policy, safety_age, .. } = rules;
    let head = catalog.head().await?.map(|(head, _)| head);
    let newest = head.as_ref().and_then(|head| head.snapshot.clone());
    if let Err(error) = catalog.identity().await
        && is_not_ours(&error)
    {
        return Err(error);
    }
    // Manifests last: data and proofs seen here whose manifest is not there have none now.
    let data = by_id(catalog.objects(Kind::Snapshots).await?);
    let proofs = by_id(catalog.objects(Kind::Proofs).await?);
    let stored_deltas = catalog.deltas().await?;
    let mut manifests = catalog.list().await?;
    if let Some(newer) = manifests.damaged.iter().position(|(_, error)| is_other_format(error)) {
        return Err(manifests.damaged.swap_remove(newer).1);
    }
    let listed: BTreeSet<SnapshotId> = {
        let damaged = manifests.damaged.iter().filter_map(|(key, _)| key.snapshot_id());
        manifests.snapshots.iter().map(|manifest| &manifest.id).chain(damaged).cloned().collect()
    };
    let mut damaged: Vec<Damage> = manifests
        .damaged
        .iter()
        .map(|(key, error)| Damage { path: key.path(), what: error.chain() })
        .collect();
    let mut sound = Vec::new();
    for manifest in manifests.snapshots {
        match data_damage(catalog, &manifest, data.get(&manifest.id)).await? {
            Some(what) => damaged.push(Damage { path: manifest.data_key().path(), what }),
            None => sound.push(manifest),
        }
    }

    let mut facts = facts(catalog, &sound, &proofs, newest.as_ref()).await?;
    let window = window(&sound, &facts, &stored_deltas, now, rules.point_in_time);
    for fact in &mut facts {
        fact.is_base = window.bases.contains(&fact.id);
    }
    let snapshots = retention::plan(&facts, policy, now, safety_age);
    let bytes: BTreeMap<&SnapshotId, u64> =
        sound.iter().map(|manifest| (&manifest.id, manifest.stored.bytes)).collect();
    let removals = snapshots
        .removed()
        .rev()
        .filter_map(|decision| Some((&decision.id, bytes.get(&decision.id)?)))
        .map(|(id, bytes)| Removal { id: id.clone(), bytes: *bytes })
        .collect();
    // Only a branch, and what waited in a spool, is published below the head's id, and both look for their data after
    // they wrote their manifest. So what has no manifest there by now gets none that counts. Beyond the head it may be
    // on its way right now, however old the clock makes it look. And a head that is broken itself proves nothing.
    let sound_head = facts.iter().find(|facts| facts.is_head).map(|facts| &facts.id);
    let is_dead = |id: &SnapshotId| !listed.contains(id) && sound_head.is_some_and(|head| id < head);
    let mut orphans: Vec<Removal> = data
        .iter()
        .filter(|(id, entry)| is_dead(id) && is_old(entry.modified_at, now, safety_age))
        .map(|(id, entry)| Removal { id: id.clone(), bytes: entry.bytes })
        .collect();
    if orphans.len() > listed.len().max(ORPHANS_PLAUSIBLE) {
        let what =
            format!("{} objects have no manifest: were manifests deleted? All are left alone", orphans.len());
        damaged.push(Damage { path: Kind::Snapshots.prefix(catalog.database()), what });
        orphans.clear();
    }
    // What no snapshot leads to may be led to by one that cannot be read at present.
    let all_read = damaged.is_empty() && facts.iter().all(|facts| !facts.is_refuted);
    let unreached_age = safety_age.max(rules.point_in_time);
    let is_spent = |delta: &StoredDelta| match window.is_past(delta.span) {
        true => is_old(delta.stored_at, now, safety_age),
        false => all_read && !window.is_reached(delta.span) && is_old(delta.stored_at, now, unreached_age),
    };
    let mut deltas = stored_deltas;
    deltas.retain(|delta| snapshots.freeze.is_none() && is_spent(delta));
    deltas.sort_by_key(|delta| delta.span.to());
    Ok(PrunePlan {
        database: catalog.database().clone(),
        epoch: head.map_or(0, |head| head.epoch),
        stale_proofs: proofs.into_keys().filter(|id| is_dead(id)).collect(),
        head: newest,
        deltas,
        snapshots,
        removals,
        orphans,
        damaged,
    })
}

/// By the storage's clock, for the one in the id may have been wrong.
fn is_old(modified_at: Timestamp, now: Timestamp, safety_age: Duration) -> bool {
    modified_at <= now && now.duration_since(modified_at).unsigned_abs() >= safety_age
}

/// What moments rest on: only snapshots that the head stands for, and none that was shown not to restore.
fn window(
    sound: &[Manifest],
    facts: &[SnapshotFacts],
    stored: &[StoredDelta],
    now: Timestamp,
    point_in_time: Duration,
) -> Window {
    let head = facts.iter().find(|facts| facts.is_head).map(|facts| &facts.id);
    let is_of_line = |(manifest, facts): &(&Manifest, &SnapshotFacts)| {
        !manifest.is_branch() && !facts.is_refuted && head.is_some_and(|head| manifest.id <= *head)
    };
    let anchored = |(manifest, _): (&Manifest, &SnapshotFacts)| {
        let position = manifest.anchor?.position;
        Some(Anchored { id: manifest.id.clone(), taken_at: manifest.taken_at, position })
    };
    let anchored: Vec<Anchored> = sound.iter().zip(facts).filter(is_of_line).filter_map(anchored).collect();
    let listed: Vec<Listed> =
        stored.iter().map(|delta| Listed { level: delta.level, span: delta.span, moments: None }).collect();
    Window::of(&anchored, &listed, now.checked_sub(point_in_time).unwrap_or(Timestamp::MIN))
}

fn by_id(objects: Vec<(Key, Entry)>) -> BTreeMap<SnapshotId, Entry> {
    objects.into_iter().filter_map(|(key, entry)| Some((key.snapshot_id()?.clone(), entry))).collect()
}

/// What is wrong with the data of a listed snapshot, as far as it shows without reading it.
async fn data_damage(
    catalog: &Catalog,
    manifest: &Manifest,
    listed: Option<&Entry>,
) -> Result<Option<String>> {
    let entry = match listed {
        Some(entry) => Some(entry.clone()),
        // Perhaps it was published after the data was listed.
        None => catalog.storage().head(&manifest.data_key()).await?,
    };
    Ok(match entry {
        None => Some("the data is missing".to_owned()),
        Some(entry) if entry.bytes != manifest.stored.bytes => {
            Some(format!("the data has {} bytes, not {}", entry.bytes, manifest.stored.bytes))
        }
        Some(_) => None,
    })
}

/// What retention wants to know. Only the newest proofs matter to it, so reading them ends at the
/// first snapshot that is proven, has no flags and is not beyond the head.
async fn facts(
    catalog: &Catalog,
    newest_first: &[Manifest],
    proofs: &BTreeMap<SnapshotId, Entry>,
    head: Option<&SnapshotId>,
) -> Result<Vec<SnapshotFacts>> {
    let mut facts = Vec::with_capacity(newest_first.len());
    let mut found = false;
    for manifest in newest_first {
        let look = !found && !manifest.is_branch() && proofs.contains_key(&manifest.id);
        let drill = if look { catalog.drill_of_known_format(&manifest.id).await? } else { None };
        let is_refuted = drill.as_ref().is_some_and(|drill| drill.failure.is_some());
        let is_proven = drill.is_some() && !is_refuted;
        let is_of_line = head.is_some_and(|head| manifest.id <= *head);
        found |= is_proven && is_of_line && manifest.flags.is_empty();
        facts.push(SnapshotFacts {
            id: manifest.id.clone(),
            taken_at: manifest.taken_at,
            flags: manifest.flags.clone(),
            is_proven,
            is_refuted,
            is_head: head == Some(&manifest.id),
            epoch: manifest.epoch,
            is_base: false,
        });
    }
    Ok(facts)
}

/// Carries out a plan, as the writer of `own_epoch`, and tells how far it came.
///
/// Before each removal the head is read again: if it moved, by a newer writer (`Fenced`) or a new
/// snapshot (`Conflict`), the plan is out of date and nothing more is removed. What a writer that
/// was suspended between that look and its delete removes is still only what retention gave up.
/// An object that storage refuses to delete is reported and passed over.
pub async fn apply(catalog: &Catalog, plan: &PrunePlan, own_epoch: u64) -> (Report, Result<()>) {
    let mut run = Run { catalog, plan, own_epoch, report: Report::default() };
    let ended = run.remove_all().await;
    (run.report, ended)
}

struct Run<'a> {
    catalog: &'a Catalog,
    plan: &'a PrunePlan,
    own_epoch: u64,
    report: Report,
}

impl Run<'_> {
    async fn remove_all(&mut self) -> Result<()> {
        let plan = self.plan;
        self.report.left = plan.removal_count();
        let budget = REMOVALS_MAX;
        for removal in plan.removals.iter().take(budget) {
            self.remove_snapshot(removal).await?;
            self.report.left -= 1;
        }
        let budget = budget.saturating_sub(plan.removals.len());
        for removal in plan.orphans.iter().take(budget) {
            self.remove_orphan(removal).await?;
            self.report.left -= 1;
        }
        let budget = budget.saturating_sub(plan.orphans.len());
        for id in plan.stale_proofs.iter().take(budget) {
            self.check_head().await?;
            if self.delete(&self.proof_key(id)).await? {
                self.report.stale_proofs.push(id.clone());
            }
            self.report.left -= 1;
        }
        let budget = budget.saturating_sub(plan.stale_proofs.len());
        for delta in plan.deltas.iter().take(budget) {
            self.check_head().await?;
            if self.delete(&self.catalog.delta_key(delta.level, delta.span)).await? {
                self.report.deltas += 1;
                self.report.bytes_freed += delta.bytes;
            }
            self.report.left -= 1;
        }
        Ok(())
    }

    async fn remove_snapshot(&mut self, removal: &Removal) -> Result<()> {
        self.check_head().await?;
        // While the manifest stands the data must.
        if !self.delete(&self.manifest_key(&removal.id)).await? {
            return Ok(());
        }
        self.report.removed.push(removal.id.clone());
        if self.delete(&self.data_key(&removal.id)).await? {
            self.report.bytes_freed += removal.bytes;
        }
        self.delete(&self.proof_key(&removal.id)).await?;
        Ok(())
    }

    async fn remove_orphan(&mut self, removal: &Removal) -> Result<()> {
        self.check_head().await?;
        let has_manifest = self.catalog.storage().head(&self.manifest_key(&removal.id)).await?.is_some();
        if !has_manifest && self.delete(&self.data_key(&removal.id)).await? {
            self.report.orphans.push(removal.id.clone());
            self.report.bytes_freed += removal.bytes;
        }
        Ok(())
    }

    async fn check_head(&self) -> Result<()> {
        let head = self.catalog.head().await?.map(|(head, _)| head);
        lineage::may_delete(head.as_ref(), self.own_epoch)?;
        match head.and_then(|head| head.snapshot) {
            snapshot if snapshot == self.plan.head => Ok(()),
            _ => Err(Error::new(
                ErrorKind::Conflict,
                format!(
                    "prune, a snapshot was published since it was planned, plan again: database=`{}`",
                    self.plan.database
                ),
            )),
        }
    }

    /// Whether the object is gone now; `false` if storage refused.
    async fn delete(&mut self, key: &Key) -> Result<bool> {
        match self.catalog.storage().delete(key).await {
            Ok(()) => Ok(true),
            Err(error) if error.kind() == ErrorKind::Denied => {
                self.report.refused.push(Damage { path: key.path(), what: error.chain() });
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    fn manifest_key(&self, id: &SnapshotId) -> Key {
        Key::Manifest(self.plan.database.clone(), id.clone())
    }

    fn data_key(&self, id: &SnapshotId) -> Key {
        Key::Snapshot(self.plan.database.clone(), id.clone())
    }

    fn proof_key(&self, id: &SnapshotId) -> Key {
        Key::Proof(self.plan.database.clone(), id.clone())
    }
}

#[cfg(test)]
mod tests;
