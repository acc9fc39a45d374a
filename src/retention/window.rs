//! The window within which any moment is restored: which snapshots it rests on, and which deltas it needs.

use std::collections::BTreeSet;

use jiff::Timestamp;

use crate::delta::{self, Listed};
use crate::snapshot::{SnapshotId, Span};

/// A snapshot from which deltas may lead on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Anchored {
    /// Its name.
    pub id: SnapshotId,
    /// The moment it shows.
    pub taken_at: Timestamp,
    /// Where it stands.
    pub position: u64,
}

/// What has to stay for every moment from some time on to be restorable as it is now.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Window {
    /// Snapshots without which some moment could not be restored, or only to an earlier one.
    pub bases: BTreeSet<SnapshotId>,
    /// Where the newest snapshot stands that was taken before the window begins.
    from: Option<u64>,
    /// What can be restored at all.
    lines: Vec<delta::Window>,
}

impl Window {
    /// The window that begins at a time. Without deltas it rests on nothing.
    pub fn of(snapshots: &[Anchored], deltas: &[Listed], begins: Timestamp) -> Window {
        let positions: Vec<u64> = snapshots.iter().map(|snapshot| snapshot.position).collect();
        let lines = delta::windows(&positions, deltas);
        let before = snapshots.iter().filter(|snapshot| snapshot.taken_at <= begins);
        let oldest = before.max_by_key(|snapshot| (snapshot.position, snapshot.taken_at));
        let from = oldest.map(|oldest| oldest.position);
        // From the first snapshot of a line all of it can be restored.
        let is_later =
            |line: &&delta::Window| line.from < line.to && from.is_none_or(|from| from < line.from);
        let first_of = |line: &delta::Window| {
            let stand_there = snapshots.iter().filter(|snapshot| snapshot.position == line.from);
            stand_there.min_by_key(|snapshot| snapshot.taken_at)
        };
        let bases = lines.iter().filter(is_later).filter_map(first_of).chain(oldest);
        let bases = bases.filter(|_| !deltas.is_empty()).map(|base| base.id.clone()).collect();
        Window { bases, from, lines }
    }

    /// Whether a delta leads only to moments before the window.
    pub fn is_past(&self, span: Span) -> bool {
        self.from.is_some_and(|from| span.to() <= from)
    }

    /// Whether a snapshot leads on to a delta, or past it.
    pub fn is_reached(&self, span: Span) -> bool {
        self.lines.iter().any(|line| line.from < span.to() && span.to() <= line.to)
    }
}

#[cfg(test)]
mod tests;
