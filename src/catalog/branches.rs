//! The branches of a catalog: lines of snapshots that never were the newest.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use serde::Serialize;

use crate::snapshot::{Manifest, SnapshotId};

/// One branch.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Branch {
    /// Its newest snapshot.
    pub newest: SnapshotId,
    /// The snapshot from which it left the line of the newest, if that is known.
    pub from: Option<SnapshotId>,
    /// How many snapshots it has.
    pub snapshots: usize,
    /// The snapshot as which its newest was adopted.
    pub adopted_as: Option<SnapshotId>,
}

impl fmt::Display for Branch {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "branch  {}  {} snapshots", self.newest, self.snapshots)?;
        if let Some(from) = &self.from {
            write!(f, ", from {from}")?;
        }
        match &self.adopted_as {
            Some(adopted_as) => write!(f, ", adopted as {adopted_as}"),
            None => write!(f, "; `lifeboat adopt --snapshot {}` would make it the newest", self.newest),
        }
    }
}

/// Every branch among `manifests`, the one with the newest snapshot first; `newest` is what the head names.
pub fn branches(manifests: &[Manifest], newest: Option<&SnapshotId>) -> Vec<Branch> {
    let by_id: BTreeMap<&SnapshotId, &Manifest> = manifests
        .iter()
        .filter(|manifest| manifest.is_branch())
        .map(|manifest| (&manifest.id, manifest))
        .collect();
    let followed: BTreeSet<&SnapshotId> =
        by_id.values().filter_map(|manifest| manifest.parent.as_ref()).collect();
    let tips = by_id.values().rev().filter(|manifest| !followed.contains(&manifest.id));
    let branch = |tip: &&Manifest| {
        // Ids decrease along parents, so this ends.
        let before =
            |manifest: &&Manifest| manifest.parent.as_ref().and_then(|parent| by_id.get(parent)).copied();
        let line: Vec<&Manifest> = std::iter::successors(Some(*tip), before).collect();
        let adopted = adopted_as(&tip.id, manifests, newest);
        Branch {
            newest: tip.id.clone(),
            from: line.last().and_then(|first| first.parent.clone()),
            snapshots: line.len(),
            adopted_as: adopted.map(|adopted| adopted.id.clone()),
        }
    };
    tips.map(branch).collect()
}

/// The snapshot as which that of a branch became the newest.
///
/// One beyond the head never was the newest: an adoption that ended between its manifest and the head.
pub fn adopted_as<'a>(
    snapshot: &SnapshotId,
    manifests: &'a [Manifest],
    newest: Option<&SnapshotId>,
) -> Option<&'a Manifest> {
    let was_newest = |other: &Manifest| newest.is_none_or(|newest| other.id <= *newest);
    manifests
        .iter()
        .find(|other| !other.is_branch() && other.parent.as_ref() == Some(snapshot) && was_newest(other))
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{at, manifest};
    use super::*;
    use crate::snapshot::Flag;

    #[test]
    fn branches_are_told_apart_by_their_parents() {
        let time = |minute: i32| at(&format!("2026-11-21T14:{minute:02}:00Z"));
        let line = |minute, parent| manifest(time(minute), 1, parent, &[]);
        let branch = |minute, epoch, parent| manifest(time(minute), epoch, parent, &[Flag::Branch]);
        let first = line(1, None);
        let second = line(2, Some(&first.id));
        // One branch of two starts, and one of which it is not known where it came from.
        let one = branch(3, 2, Some(&first.id));
        let two = branch(4, 3, Some(&one.id));
        let lost = branch(5, 4, None);
        let all = [&lost, &two, &one, &second, &first].map(Manifest::clone);
        let found = |newest: &Manifest, from: Option<&Manifest>, snapshots| Branch {
            newest: newest.id.clone(),
            from: from.map(|from| from.id.clone()),
            snapshots,
            adopted_as: None,
        };
        let newest = Some(&second.id);
        assert_eq!(branches(&all, newest), [found(&lost, None, 1), found(&two, Some(&first), 2)]);
        assert_eq!(branches(&all[3..], newest), []);

        let adopted = line(6, Some(&two.id));
        let all = [adopted.clone(), two.clone(), one.clone()];
        for newest in [None, Some(&adopted.id)] {
            assert_eq!(branches(&all, newest)[0].adopted_as.as_ref(), Some(&adopted.id));
        }
        assert_eq!(branches(&all, Some(&second.id))[0].adopted_as, None, "the head did not come to it");
        // The snapshot it left from was pruned, and so was its own first.
        assert_eq!(branches(&[two], None)[0].from.as_ref(), Some(&one.id));
    }
}
