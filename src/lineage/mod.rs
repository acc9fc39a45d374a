//! Who may publish and who may delete, and where `head.json` may move: only forward.
//!
//! Every daemon start claims an epoch, one higher than any before it. From then on writers of a
//! lower epoch are fenced: they find the higher one in `head.json`, before they write and again
//! when their compare-and-swap is refused. Whether a writer may claim at all is in `descent`.

mod descent;

use jiff::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{FORMAT, Head, SnapshotId};

pub use descent::{Evidence, Fork, Known, Likeness, Newest, Standing, Verdict, WAYS_OUT, judge};

/// The first epoch a new writer may try to claim: one above everything known.
pub fn next_epoch(head: Option<&Head>, claim_highest: Option<u64>) -> Result<u64> {
    let known = head.map(|head| head.epoch).max(claim_highest).unwrap_or(0);
    known.checked_add(1).ok_or_else(|| {
        Error::new(ErrorKind::Corrupt, format!("no epoch is left to claim, one is damaged: epoch=`{known}`"))
    })
}

/// Whether the writer of `own_epoch` may publish; `Fenced` if a newer one owns the head.
///
/// A head of a lower epoch, or none, is behind our claim: the next swap brings it up.
pub fn may_publish(head: Option<&Head>, own_epoch: u64) -> Result<()> {
    match head {
        Some(head) if head.epoch > own_epoch => Err(fenced(own_epoch, head.epoch)),
        _ => Ok(()),
    }
}

/// Whether the writer of `own_epoch` may delete: only the one the head names, and never without a
/// head, for then nothing tells which snapshot is the newest.
pub fn may_delete(head: Option<&Head>, own_epoch: u64) -> Result<()> {
    owns(head, own_epoch, "delete nothing")
}

/// Whether the head names the writer of `own_epoch`; what else is to be done is said by `refused`.
fn owns(head: Option<&Head>, own_epoch: u64, refused: &str) -> Result<()> {
    may_publish(head, own_epoch)?;
    match head {
        Some(head) if head.epoch == own_epoch => Ok(()),
        _ => Err(Error::new(
            ErrorKind::Conflict,
            format!("{refused}: head.json is missing or behind our claim: own_epoch=`{own_epoch}`"),
        )),
    }
}

/// The error of a writer that has been overtaken.
pub fn fenced(own_epoch: u64, newer_epoch: u64) -> Error {
    Error::new(
        ErrorKind::Fenced,
        format!(
            "a newer writer owns these backups, stop this one: own_epoch=`{own_epoch}` newer_epoch=`{newer_epoch}`"
        ),
    )
}

/// The head after a claim of `own_epoch`.
///
/// `listed` is the newest snapshot found by listing when there was no head to read it from.
pub fn claimed_head(
    head: Option<&Head>,
    own_epoch: u64,
    listed: Option<&SnapshotId>,
    now: Timestamp,
) -> Result<Head> {
    may_publish(head, own_epoch)?;
    let snapshot = head.and_then(|head| head.snapshot.as_ref()).max(listed).cloned();
    Ok(Head { format: FORMAT, epoch: own_epoch, snapshot, updated_at: now, released: false })
}

/// The head a claim made, unless it names another snapshot than `judged`, from which the claimant's
/// database was found to descend. Then `Conflict`: somebody published meanwhile.
pub fn judged_head(claimed: Head, judged: Option<&SnapshotId>) -> Result<Head> {
    match claimed.snapshot.as_ref() == judged {
        true => Ok(claimed),
        false => Err(Error::new(
            ErrorKind::Conflict,
            "a snapshot was published while this process looked at where its database comes from",
        )),
    }
}

/// The head after the writer of `own_epoch` has stopped in order.
pub fn released_head(head: Option<&Head>, own_epoch: u64, now: Timestamp) -> Result<Head> {
    owns(head, own_epoch, "release nothing")?;
    let snapshot = head.and_then(|head| head.snapshot.clone());
    Ok(Head { format: FORMAT, epoch: own_epoch, snapshot, updated_at: now, released: true })
}

/// The head after `snapshot` is published; `Conflict` if the head names a newer one.
pub fn moved_head(
    head: Option<&Head>,
    own_epoch: u64,
    snapshot: &SnapshotId,
    now: Timestamp,
) -> Result<Head> {
    may_publish(head, own_epoch)?;
    match head.and_then(|head| head.snapshot.as_ref()) {
        Some(newer) if newer > snapshot => Err(Error::new(
            ErrorKind::Conflict,
            format!("a newer snapshot is published already: snapshot=`{snapshot}` newest=`{newer}`"),
        )),
        _ => Ok(Head {
            format: FORMAT,
            epoch: own_epoch,
            snapshot: Some(snapshot.clone()),
            updated_at: now,
            // A snapshot by hand, after the daemon stopped, does not take the epoch up again.
            released: head.is_some_and(|head| head.released && head.epoch == own_epoch),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const NOW: Timestamp = Timestamp::UNIX_EPOCH;

    #[test]
    fn a_snapshot_is_published_after_older_ones_and_itself_only() {
        let [older, same, newer] = [1, 2, 3]
            .map(|second| SnapshotId::next(Timestamp::from_second(second).expect("in range"), None, 0));
        let publish = |head: &SnapshotId| {
            let head = claimed_head(None, 1, Some(head), NOW).expect("the first claim");
            moved_head(Some(&head), 1, &same, NOW)
        };
        for head in [&older, &same] {
            assert_eq!(publish(head).expect("not behind").snapshot, Some(same.clone()));
        }
        assert_eq!(publish(&newer).expect_err("behind").kind(), ErrorKind::Conflict);
    }

    #[test]
    fn a_released_epoch_stays_released_until_the_next_claim() {
        let id = SnapshotId::next(NOW, None, 0);
        let held = claimed_head(None, 1, None, NOW).expect("the first claim");
        let is_released = |head: &Head, own| moved_head(Some(head), own, &id, NOW).expect("ours").released;
        assert!(!is_released(&held, 1));
        let released = released_head(Some(&held), 1, NOW).expect("ours");
        assert!(is_released(&released, 1));
        assert!(!is_released(&released, 2));
        assert!(!claimed_head(Some(&released), 2, None, NOW).expect("the next claim").released);
    }

    fn any_id() -> impl Strategy<Value = SnapshotId> {
        (0i64..10, 0u32..4).prop_map(|(seconds, random)| {
            SnapshotId::next(Timestamp::from_second(seconds).expect("in range"), None, random)
        })
    }

    fn any_head() -> impl Strategy<Value = Option<Head>> {
        let head = (0u64..6, prop::option::of(any_id())).prop_map(|(epoch, snapshot)| Head {
            format: FORMAT,
            epoch,
            snapshot,
            updated_at: NOW,
            released: false,
        });
        prop::option::of(head)
    }

    #[test]
    fn the_fenced_error_names_both_epochs() {
        let head = Head { format: FORMAT, epoch: 7, snapshot: None, updated_at: NOW, released: false };
        let error = may_publish(Some(&head), 3).expect_err("fenced");
        assert_eq!(error.kind(), ErrorKind::Fenced);
        assert_eq!(
            error.to_string(),
            "a newer writer owns these backups, stop this one: own_epoch=`3` newer_epoch=`7`"
        );
    }

    #[test]
    fn the_last_epoch_has_no_next() {
        assert_eq!(next_epoch(None, None).expect("first"), 1);
        assert_eq!(next_epoch(None, Some(u64::MAX)).expect_err("damaged").kind(), ErrorKind::Corrupt);
    }

    proptest! {
        #[test]
        fn the_next_epoch_is_above_everything_known(head in any_head(), claim in prop::option::of(0u64..6)) {
            let next = next_epoch(head.as_ref(), claim).expect("in range");
            prop_assert!(head.as_ref().is_none_or(|head| head.epoch < next));
            prop_assert!(claim.is_none_or(|claim| claim < next));
            prop_assert!(may_publish(head.as_ref(), next).is_ok());
        }

        #[test]
        fn the_head_only_moves_forward(head in any_head(), own in 0u64..6, id in any_id()) {
            let moves = [claimed_head(head.as_ref(), own, Some(&id), NOW), moved_head(head.as_ref(), own, &id, NOW)];
            for moved in moves.into_iter().flatten() {
                prop_assert_eq!(moved.epoch, own);
                prop_assert!(moved.snapshot.as_ref() >= Some(&id));
                if let Some(head) = &head {
                    prop_assert!(moved.epoch >= head.epoch && moved.snapshot >= head.snapshot);
                }
            }
        }

        #[test]
        fn a_claim_takes_over_nothing_but_what_was_judged(head in any_head(), judged in prop::option::of(any_id())) {
            let standing = head.as_ref().and_then(|head| head.snapshot.as_ref());
            let claimed = claimed_head(head.as_ref(), 9, None, NOW).expect("free");
            prop_assert_eq!(judged_head(claimed, judged.as_ref()).is_ok(), standing == judged.as_ref());
        }

        #[test]
        fn only_the_holder_releases_and_only_a_claim_takes_up_again(head in any_head(), own in 0u64..6, id in any_id()) {
            let holds = head.as_ref().is_some_and(|head| head.epoch == own);
            let released = released_head(head.as_ref(), own, NOW);
            prop_assert_eq!(released.is_ok(), holds);
            if let Ok(released) = released {
                prop_assert_eq!(&released.snapshot, &head.expect("it holds").snapshot);
                if let Ok(moved) = moved_head(Some(&released), own, &id, NOW) {
                    prop_assert!(moved.released);
                }
                let claimed = claimed_head(Some(&released), own + 1, None, NOW);
                prop_assert!(!claimed.expect("free").released);
            }
        }

        #[test]
        fn of_two_writers_at_most_one_may_delete(head in any_head(), one in 0u64..6, other in 0u64..6) {
            prop_assume!(one != other);
            let allowed = [one, other].map(|epoch| may_delete(head.as_ref(), epoch).is_ok());
            prop_assert!(allowed != [true, true]);
            prop_assert!(head.is_some() || allowed == [false, false]);
        }
    }
}
