//! Which snapshots have to go so that another one finds room. Pure: a plan, nothing is removed here.

use std::time::Duration;

use crate::clock::Timestamp;

/// How much may wait for storage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of one database's spool; 0 lets nothing new in.
    pub bytes_max: u64,
    /// What is older goes, once a newer one is there.
    pub age_max: Duration,
}

/// How many of the oldest have to go so that `wanted` bytes fit beside the rest; `None` if they cannot.
///
/// `sizes` are those that wait, the oldest first. The newest of them stays in any case: until the one
/// that is being taken is complete, it is the best there is.
pub fn to_make_room(sizes: &[u64], wanted: u64, bytes_max: u64) -> Option<usize> {
    let mut used: u64 = sizes.iter().sum();
    for gone in 0..sizes.len().max(1) {
        if used.saturating_add(wanted) <= bytes_max {
            return Some(gone);
        }
        used -= sizes.get(gone).copied().unwrap_or(0);
    }
    None
}

/// How many of the oldest are older than `age_max`; never the newest.
pub fn outdated(taken: &[Timestamp], age_max: Duration, now: Timestamp) -> usize {
    let is_old =
        |at: &&Timestamp| Duration::try_from(now.duration_since(**at)).is_ok_and(|age| age > age_max);
    taken.iter().take(taken.len().saturating_sub(1)).take_while(is_old).count()
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_oldest_go_first_and_the_newest_never() {
        for (sizes, wanted, expected) in [
            (&[][..], 10, Some(0)),
            (&[], 11, None),
            (&[3, 3], 4, Some(0)),
            (&[3, 3], 5, Some(1)),
            (&[3, 3], 7, Some(1)),
            (&[3, 3], 8, None),
            (&[1, 1, 1], 9, Some(2)),
            (&[10], 1, None),
            // The limit was lowered since.
            (&[20, 4], 5, Some(1)),
            (&[1], u64::MAX, None),
        ] {
            assert_eq!(to_make_room(sizes, wanted, 10), expected, "{sizes:?} {wanted}");
        }
        assert_eq!(to_make_room(&[], 0, 0), Some(0));
        assert_eq!(to_make_room(&[], 1, 0), None);
    }

    #[test]
    fn age_spares_the_newest_and_a_clock_that_went_back() {
        let at = |second| Timestamp::from_second(second).expect("in range");
        let outdated = |taken: &[i64], now| {
            let taken: Vec<_> = taken.iter().map(|second| at(*second)).collect();
            outdated(&taken, Duration::from_secs(100), at(now))
        };
        assert_eq!(outdated(&[0, 50, 100], 100), 0);
        assert_eq!(outdated(&[0, 50, 100], 101), 1);
        assert_eq!(outdated(&[0, 50, 100], 1_000), 2);
        assert_eq!(outdated(&[0], 1_000), 0);
        assert_eq!(outdated(&[], 1_000), 0);
        assert_eq!(outdated(&[500, 600], 0), 0);
    }

    proptest! {
        #[test]
        fn what_is_planned_fits_and_is_the_least(
            sizes in prop::collection::vec(0u64..50, 0..8), wanted in 0u64..100, bytes_max in 0u64..100,
        ) {
            let fits = |gone: usize| sizes[gone..].iter().sum::<u64>() + wanted <= bytes_max;
            let may_go = sizes.len().saturating_sub(1);
            match to_make_room(&sizes, wanted, bytes_max) {
                Some(gone) => prop_assert!(gone <= may_go && fits(gone) && (0..gone).all(|less| !fits(less))),
                None => prop_assert!((0..=may_go).all(|gone| !fits(gone))),
            }
        }
    }
}
