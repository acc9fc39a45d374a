//! Which moment is restored: a snapshot, and the deltas that lead from there to it.

use super::offline::Target;
use crate::catalog::{Catalog, Listing, Reach, StoredDelta};
use crate::clock::Timestamp;
use crate::delta::{self, Listed};
use crate::error::{Error, ErrorKind, Result};
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

    /// What `target` means: the newest state that storage can prove, or the last one at a time. Before anything was
    /// captured, that is the newest snapshot until then.
    ///
    /// `NotFound` says what there is instead; a time in a gap between deltas is one.
    pub async fn find(target: &Target, catalog: &Catalog) -> Result<Moment> {
        let until = match target {
            Target::Snapshot(_) => return Ok(Moment::of(target.find(catalog).await?)),
            Target::Newest => None,
            Target::At(time) => Some(*time),
        };
        let snapshot = match target.find(catalog).await {
            Err(error) if error.kind() == ErrorKind::NotFound => {
                return Err(with_windows(catalog, error).await);
            }
            found => found?,
        };
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
        let found = led.filter(is_later).unwrap_or_else(|| Moment::of(snapshot));
        if let Some(time) = until {
            let Listing { snapshots, .. } = catalog.list().await?;
            let reach = catalog.reach_of(&snapshots, &stored).await?;
            reach.map_or(Ok(()), |reach| found.require_no_gap(&reach, time))?;
        }
        Ok(found)
    }

    /// `NotFound` if something was committed after this and before `time` that is not stored; says how this is
    /// restored nevertheless.
    fn require_no_gap(&self, reach: &Reach, time: Timestamp) -> Result<()> {
        let Some(gap) = reach.gap_at(time) else { return Ok(()) };
        let instead = match self.deltas.is_empty() {
            true => format!("--snapshot {}", self.manifest.id),
            false => format!("--at {}", gap.after),
        };
        Err(Error::new(
            ErrorKind::NotFound,
            format!(
                "what was committed then is not stored, it is in the gap from {} to {}; any moment can be restored {reach}; \
                 the last state before it is restored with `lifeboat restore {instead}`: at=`{time}`",
                gap.after, gap.until
            ),
        ))
    }
}

/// The error of a time before all snapshots, with the windows that there are.
async fn with_windows(catalog: &Catalog, error: Error) -> Error {
    let reach = async { catalog.reach(&catalog.list().await?.snapshots).await };
    match reach.await {
        Ok(Some(reach)) => {
            Error::new(error.kind(), format!("any moment can be restored {reach}")).because(error)
        }
        _ => error,
    }
}

/// The error of deltas that do not prove, with the newest moment before them, as a command.
pub(super) fn proves_until(manifest: &Manifest, reached: Option<Timestamp>, error: Error) -> Error {
    let newest = match reached {
        Some(time) => format!("--at {time}"),
        None => format!("--snapshot {}", manifest.id),
    };
    let message = format!(
        "what was committed later does not prove; the newest moment that does is restored with `lifeboat restore {newest}`"
    );
    Error::new(error.kind(), message).because(error)
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
    let listed: Vec<Listed> = stored.iter().map(StoredDelta::listed).collect();
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
        reachable.truncate(seen_until(catalog, &manifest, &reachable, until).await?);
    }
    let Some(last) = reachable.last() else { return Ok(None) };
    let shows = last_commit(catalog, &manifest, &reachable).await?;
    let planned = delta::plan(&listed, anchor.position, delta::Target::Position(last.span.to()))?;
    let is_of = |step: &Listed, delta: &&StoredDelta| (delta.level, delta.span) == (step.level, step.span);
    let deltas =
        planned.iter().filter_map(|step| stored.iter().find(|delta| is_of(step, delta)).copied()).collect();
    Ok(Some(Moment { manifest, deltas, shows }))
}

/// When the last commit in these deltas was seen, of those that tell: what is damaged is left to whoever applies it,
/// and then knows how far it proves. `Corrupt` if all are.
async fn last_commit(catalog: &Catalog, manifest: &Manifest, deltas: &[Listed]) -> Result<Timestamp> {
    let mut damage = None;
    for delta in deltas.iter().rev() {
        match catalog.delta_header(delta.level, delta.span).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => damage = Some(error),
            header => return Ok(header?.last_commit),
        }
    }
    damage.map_or(Ok(manifest.taken_at), |error| Err(proves_until(manifest, None, error)))
}

/// How many of the deltas, in the order of where they lead, have no commit that was seen after that time. If the
/// clock was set back meanwhile, the moment has several places, and it is one of them.
///
/// `Corrupt` if the next one cannot be read, and may have one that was seen before.
async fn seen_until(
    catalog: &Catalog,
    manifest: &Manifest,
    deltas: &[Listed],
    until: Timestamp,
) -> Result<usize> {
    let (mut within, mut beyond) = (0, deltas.len());
    let (mut reached, mut damage) = (None, None);
    while within < beyond {
        let middle = within + (beyond - within) / 2;
        let delta = &deltas[middle];
        match catalog.delta_header(delta.level, delta.span).await {
            Ok(header) if header.last_commit <= until => {
                (within, reached) = (middle + 1, Some(header.last_commit));
            }
            Ok(_) => beyond = middle,
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                (beyond, damage) = (middle, Some((middle, error)));
            }
            Err(error) => return Err(error),
        }
    }
    match damage {
        Some((at, error)) if at == within && reached != Some(until) => {
            Err(proves_until(manifest, reached, error))
        }
        _ => Ok(within),
    }
}

#[cfg(test)]
mod tests;
