//! What of a database can be restored to any moment, and where there are gaps: positions as times.

use std::fmt;

use jiff::Timestamp;
use serde::Serialize;

use super::{Catalog, StoredDelta};
use crate::delta::{self, Listed};
use crate::error::{ErrorKind, Result};
use crate::snapshot::Manifest;

/// A stretch of time of which every moment can be restored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Window {
    /// When its first snapshot was taken.
    pub from: Timestamp,
    /// When the last commit in it was seen, or its last snapshot taken.
    pub until: Timestamp,
    /// Deltas in it.
    pub deltas: usize,
    /// Their size in storage.
    pub delta_bytes: u64,
}

/// A stretch of time between two windows, or behind the last one: of what was committed then, nothing that is
/// stored proves.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gap {
    /// The last moment before it that can be restored.
    pub after: Timestamp,
    /// The first one after it; behind the last window, when the last commit was seen that cannot be restored.
    pub until: Timestamp,
}

/// All of both, in order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reach {
    /// What can be restored.
    pub windows: Vec<Window>,
    /// What cannot, between and behind.
    pub gaps: Vec<Gap>,
}

impl Reach {
    /// The gap that this moment is in.
    pub fn gap_at(&self, time: Timestamp) -> Option<&Gap> {
        self.gaps.iter().find(|gap| gap.after < time && time < gap.until)
    }
}

/// The windows, in words.
impl fmt::Display for Reach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let windows = self.windows.iter().map(|window| format!("from {} to {}", window.from, window.until));
        f.write_str(&windows.collect::<Vec<_>>().join(", "))
    }
}

/// Up to where deltas are stored.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Captured {
    /// The position.
    pub position: u64,
    /// When the last commit in them was seen; `None` if the last one is damaged.
    pub until: Option<Timestamp>,
    /// How many there are.
    pub deltas: usize,
    /// Their size.
    pub delta_bytes: u64,
}

impl Catalog {
    /// Up to where deltas are stored; `None` if there are none. Takes a listing and one read.
    pub async fn captured(&self) -> Result<Option<Captured>> {
        let deltas = self.deltas().await?;
        let Some(position) = deltas.iter().map(|delta| delta.span.to()).max() else { return Ok(None) };
        let until = self.last_commit(deltas.iter(), position).await?;
        let delta_bytes = deltas.iter().map(|delta| delta.bytes).sum();
        Ok(Some(Captured { position, until, deltas: deltas.len(), delta_bytes }))
    }

    /// What can be restored to any moment; `None` where no delta leads on from a snapshot.
    ///
    /// Takes a listing, and one read for each window. `Denied` if nothing may be listed.
    pub async fn reach(&self, snapshots: &[Manifest]) -> Result<Option<Reach>> {
        let deltas = self.deltas().await?;
        self.reach_of(snapshots, &deltas).await
    }

    /// The same of deltas that were listed.
    pub async fn reach_of(&self, snapshots: &[Manifest], deltas: &[StoredDelta]) -> Result<Option<Reach>> {
        let anchored: Vec<(u64, Timestamp)> = snapshots
            .iter()
            .filter(|manifest| !manifest.is_branch())
            .filter_map(|manifest| Some((manifest.anchor?.position, manifest.taken_at)))
            .collect();
        if deltas.is_empty() || anchored.is_empty() {
            return Ok(None);
        }
        let positions: Vec<u64> = anchored.iter().map(|(position, _)| *position).collect();
        let listed: Vec<Listed> = deltas.iter().map(StoredDelta::listed).collect();
        let mut found = delta::windows(&positions, &listed);
        // Before the first delta there are snapshots, and neither windows nor gaps.
        let before = found.iter().take_while(|window| window.from == window.to).count();
        found.drain(..before);
        if found.is_empty() {
            return Ok(None);
        }
        let mut windows = Vec::new();
        for window in &found {
            let snapshots = || anchored.iter().filter(|(at, _)| (window.from..=window.to).contains(at));
            let first = snapshots().filter(|(at, _)| *at == window.from).map(|(_, taken_at)| *taken_at).min();
            let last = snapshots().map(|(_, taken_at)| *taken_at).max();
            let within = || {
                deltas.iter().filter(|delta| window.from < delta.span.to() && delta.span.to() <= window.to)
            };
            let last_commit = self.last_commit(within(), window.to).await?;
            // Each window begins with a snapshot.
            let Some(from) = first else { continue };
            windows.push(Window {
                from,
                until: [last, last_commit].into_iter().flatten().fold(from, Timestamp::max),
                deltas: within().count(),
                delta_bytes: within().map(|delta| delta.bytes).sum(),
            });
        }
        let mut gaps = Vec::new();
        for (index, gap) in delta::gaps(&found, &listed).into_iter().enumerate() {
            let until = match windows.get(index + 1) {
                Some(next) => Some(next.from),
                None => self.last_commit(deltas.iter(), gap.until).await?,
            };
            let after = windows.get(index).map(|window: &Window| window.until);
            gaps.extend(after.zip(until).map(|(after, until)| Gap { after, until }));
        }
        Ok(Some(Reach { windows, gaps }))
    }

    /// When the last commit before a position was seen, if one of these deltas leads there and can be read.
    async fn last_commit(
        &self,
        mut deltas: impl Iterator<Item = &StoredDelta>,
        position: u64,
    ) -> Result<Option<Timestamp>> {
        let Some(delta) = deltas.find(|delta| delta.span.to() == position) else { return Ok(None) };
        match self.delta_header(delta.level, delta.span).await {
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                tracing::warn!("a damaged delta tells no time: {}", error.chain());
                Ok(None)
            }
            header => Ok(Some(header?.last_commit)),
        }
    }
}
