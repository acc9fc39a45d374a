//! Which moment is restored: a snapshot, and the deltas that lead from there to it.

use super::offline::Target;
use crate::catalog::{Catalog, StoredDelta};
use crate::clock::Timestamp;
use crate::delta::{self, Listed};
use crate::error::{ErrorKind, Result};
use crate::snapshot::Manifest;

/// A snapshot and what leads on from it.
#[derive(Debug, Clone)]
pub struct Moment {
    /// The snapshot.
    pub manifest: Manifest,
    /// The deltas that follow, in order; maybe none.
    pub deltas: Vec<StoredDelta>,
    /// When the last commit in it was seen; without deltas, when the snapshot was taken.
    pub shows: Timestamp,
}

impl Moment {
    /// The snapshot, and nothing else.
    pub fn of(manifest: Manifest) -> Moment {
        Moment { shows: manifest.taken_at, manifest, deltas: Vec::new() }
    }

    /// Bytes of the deltas.
    pub fn delta_bytes(&self) -> u64 {
        self.deltas.iter().map(|delta| delta.bytes).sum()
    }

    /// What `target` means: the newest state that storage can prove, or the last one at a time.
    ///
    /// `NotFound` says what there is instead.
    pub async fn find(target: &Target, catalog: &Catalog) -> Result<Moment> {
        let until = match target {
            Target::Snapshot(_) => return Ok(Moment::of(target.find(catalog).await?)),
            Target::Newest => None,
            Target::At(time) => Some(*time),
        };
        let snapshot = target.find(catalog).await?;
        let stored = match catalog.deltas().await {
            Err(error) if error.kind() == ErrorKind::Denied => {
                tracing::warn!(
                    "deltas cannot be listed, so the snapshot alone is restored: {}",
                    error.chain()
                );
                Vec::new()
            }
            stored => stored?,
        };
        if stored.is_empty() {
            return Ok(Moment::of(snapshot));
        }
        let anchored = match snapshot.anchor {
            Some(_) => Some(snapshot.clone()),
            None => newest_anchored(catalog, until).await?,
        };
        let led = match anchored {
            Some(anchored) => lead(catalog, anchored, &stored, until).await?,
            None => None,
        };
        // What leads on from a snapshot is later, whatever clocks say; of two lines only they can tell.
        let is_later = |led: &Moment| led.manifest.id == snapshot.id || led.shows > snapshot.taken_at;
        Ok(led.filter(is_later).unwrap_or_else(|| Moment::of(snapshot)))
    }
}

async fn newest_anchored(catalog: &Catalog, until: Option<Timestamp>) -> Result<Option<Manifest>> {
    let is_candidate = |manifest: &Manifest| {
        manifest.anchor.is_some()
            && !manifest.is_branch()
            && until.is_none_or(|until| manifest.taken_at <= until)
    };
    Ok(catalog.list().await?.snapshots.into_iter().find(is_candidate))
}

/// As far as deltas lead from the snapshot, or as far as commits were seen until then.
async fn lead(
    catalog: &Catalog,
    manifest: Manifest,
    stored: &[StoredDelta],
    until: Option<Timestamp>,
) -> Result<Option<Moment>> {
    let Some(anchor) = manifest.anchor else { return Ok(None) };
    let listed: Vec<Listed> =
        stored.iter().map(|delta| Listed { level: delta.level, span: delta.span, moments: None }).collect();
    // A merged delta leads past the moment that those it was made of, as long as they are kept, lead to.
    let mut reachable = delta::reachable(&listed, anchor.position);
    let reach = reachable.last().map_or(anchor.position, |delta| delta.span.to());
    if stored.iter().any(|delta| delta.span.from() >= reach && delta.span.to() > reach) {
        tracing::warn!(
            database = %catalog.database(), position = reach,
            "a delta is missing: what was committed after position {reach} cannot be restored from {}", manifest.id
        );
    }
    if let Some(until) = until {
        reachable.truncate(seen_until(catalog, &reachable, until).await?);
    }
    let Some(last) = reachable.last() else { return Ok(None) };
    let shows = catalog.delta_header(last.level, last.span).await?.last_commit;
    let planned = delta::plan(&listed, anchor.position, delta::Target::Position(last.span.to()))?;
    let is_of = |step: &Listed, delta: &&StoredDelta| (delta.level, delta.span) == (step.level, step.span);
    let deltas =
        planned.iter().filter_map(|step| stored.iter().find(|delta| is_of(step, delta)).copied()).collect();
    Ok(Some(Moment { manifest, deltas, shows }))
}

/// How many of the deltas, in the order of where they lead, have no commit that was seen after that time. If the
/// clock was set back meanwhile, the moment has several places, and it is one of them.
async fn seen_until(catalog: &Catalog, deltas: &[Listed], until: Timestamp) -> Result<usize> {
    let (mut within, mut beyond) = (0, deltas.len());
    while within < beyond {
        let middle = within + (beyond - within) / 2;
        let delta = &deltas[middle];
        match catalog.delta_header(delta.level, delta.span).await?.last_commit <= until {
            true => within = middle + 1,
            false => beyond = middle,
        }
    }
    Ok(within)
}

#[cfg(test)]
mod tests;
