//! Which of the snapshots that wait go on from the newest one in storage. Pure, but for asking which that is.

use super::place::Dropped;
use crate::catalog::{Catalog, is_not_ours};
use crate::error::{ErrorKind, Result};
use crate::snapshot::{Manifest, SnapshotId};

/// The newest snapshot in storage: its id, and its epoch if its manifest can be read.
pub type Head = Option<(SnapshotId, Option<u64>)>;

/// The newest snapshot in storage: its name, and its manifest unless that is damaged.
pub async fn newest(catalog: &Catalog) -> Result<(Option<SnapshotId>, Option<Manifest>)> {
    let Some(id) = catalog.newest_id().await? else { return Ok((None, None)) };
    match catalog.named(&id).await {
        Err(error) if error.kind() == ErrorKind::Corrupt && !is_not_ours(&error) => Ok((Some(id), None)),
        manifest => Ok((Some(id), Some(manifest?))),
    }
}

/// The ids of those of `waiting` (the oldest first) that follow `head`; what a branch left never does.
///
/// One follows that was taken under the epoch of the head's snapshot or under `own_epoch`, for an epoch has
/// one line only; one whose parents lead to the head, through what waits or was `dropped`; and one
/// whose parent does.
pub fn following(
    head: &Head,
    own_epoch: Option<u64>,
    waiting: &[Manifest],
    dropped: &[Dropped],
) -> Vec<SnapshotId> {
    let of_head = head.as_ref().and_then(|(_, epoch)| *epoch);
    let is_of_line = |epoch: u64| epoch > 0 && (Some(epoch) == of_head || Some(epoch) == own_epoch);
    let mut found: Vec<SnapshotId> = Vec::new();
    for manifest in waiting.iter().filter(|manifest| !manifest.is_branch()) {
        let leads_there = root(manifest, waiting, dropped) == head.as_ref().map(|(id, _)| id);
        let follows_one = manifest.parent.as_ref().is_some_and(|parent| found.contains(parent));
        if is_of_line(manifest.epoch) || leads_there || follows_one {
            found.push(manifest.id.clone());
        }
    }
    found
}

/// The snapshot in storage that `manifest` goes back to, through what waits or was dropped.
pub fn root<'a>(
    manifest: &'a Manifest,
    waiting: &'a [Manifest],
    dropped: &'a [Dropped],
) -> Option<&'a SnapshotId> {
    let parent_of = |id: &SnapshotId| {
        let waits = waiting.iter().find(|other| other.id == *id).map(|other| &other.parent);
        waits.or_else(|| dropped.iter().find(|other| other.snapshot == *id).map(|other| &other.parent))
    };
    let mut at = manifest.parent.as_ref();
    // Ids decrease along parents, so this ends; a record that says otherwise is not followed.
    while let Some(id) = at
        && let Some(parent) = parent_of(id)
        && parent.as_ref() < Some(id)
    {
        at = parent.as_ref();
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::fixture::{at, manifest};
    use crate::clock::Timestamp;
    use crate::snapshot::Flag;

    fn id(minute: i64) -> SnapshotId {
        SnapshotId::next(time(minute), None, 0)
    }

    fn time(minute: i64) -> Timestamp {
        at("2026-11-21T14:00:00Z") + jiff::SignedDuration::from_mins(minute)
    }

    fn waits(minute: i64, epoch: u64, parent: Option<i64>) -> Manifest {
        Manifest { id: id(minute), parent: parent.map(id), ..manifest(time(minute), epoch, None, &[]) }
    }

    fn gone(minute: i64, parent: Option<i64>) -> Dropped {
        let (taken_at, reason) = (time(minute), String::new());
        Dropped { snapshot: id(minute), parent: parent.map(id), taken_at, dropped_at: taken_at, reason }
    }

    #[track_caller]
    fn check(
        head: Option<(i64, u64)>,
        own: Option<u64>,
        waiting: &[Manifest],
        dropped: &[Dropped],
        expected: &[i64],
    ) {
        let head = head.map(|(minute, epoch)| (id(minute), Some(epoch)));
        let expected: Vec<SnapshotId> = expected.iter().map(|minute| id(*minute)).collect();
        assert_eq!(following(&head, own, waiting, dropped), expected);
    }

    #[test]
    fn a_chain_that_leads_to_the_head_follows_it() {
        let chain = [waits(2, 0, Some(1)), waits(3, 0, Some(2))];
        check(Some((1, 4)), None, &chain, &[], &[2, 3]);
        check(Some((1, 4)), None, &chain[1..], &[gone(2, Some(1))], &[3]);
        // Nothing tells any more what the lost one followed.
        check(Some((1, 4)), None, &chain[1..], &[], &[]);
        // Somebody else published meanwhile.
        check(Some((5, 4)), None, &chain, &[], &[]);
        check(None, None, &[waits(2, 0, None), waits(3, 0, Some(2))], &[], &[2, 3]);
        check(Some((1, 4)), None, &[waits(2, 0, None)], &[], &[]);
    }

    #[test]
    fn an_epoch_has_one_line_and_what_follows_it_is_on_it() {
        let chain = [waits(2, 4, Some(1)), waits(6, 0, Some(2))];
        // Published by hand under the same epoch, or by a swap whose answer was lost.
        check(Some((5, 4)), None, &chain, &[], &[2, 6]);
        check(Some((5, 7)), None, &chain, &[], &[]);
        // Ours, whatever cannot be read of the head.
        let unread = Some((id(5), None));
        assert_eq!(following(&unread, Some(4), &chain, &[]), [id(2), id(6)]);
        assert_eq!(following(&unread, None, &chain, &[]), []);
        // 0 is no epoch: nobody had claimed one.
        check(Some((5, 0)), Some(0), &[waits(2, 0, Some(1))], &[], &[]);
    }

    #[test]
    fn what_a_branch_left_never_follows() {
        let mut branch = waits(2, 4, Some(1));
        branch.flags.push(Flag::Branch);
        check(Some((1, 4)), Some(4), &[branch], &[], &[]);
    }

    #[test]
    fn parents_that_go_round_in_a_circle_are_not_followed_for_ever() {
        let circle = [waits(2, 0, Some(3)), waits(3, 0, Some(2))];
        check(Some((1, 4)), None, &circle, &[], &[]);
    }
}
