//! Which snapshots a scheduled run of drills proves.

use std::time::Duration;

use super::proven_at;
use crate::clock::Timestamp;
use crate::snapshot::{Manifest, Proof};

/// How often drills run, and within which time each snapshot is to be proven.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rhythm {
    /// From one scheduled run to the next.
    pub period: Duration,
    /// Each listed snapshot is proven, or proven again, within this time.
    pub within: Duration,
}

/// The snapshots to prove now, in this order. `proofs` are those that stand; a failed drill is none. Pure.
///
/// First the newest, if it is unproven. Then as many others as it takes for all to have their turn within
/// the time, those first that have been without a proof for longest: since they were taken, or since
/// their last one. So whoever waits is behind fewer and fewer, and no stream of new snapshots overtakes.
pub fn drills<'a>(snapshots: &'a [Manifest], proofs: &[Proof], rhythm: Rhythm) -> Vec<&'a Manifest> {
    let since =
        |manifest: &Manifest| -> Timestamp { proven_at(manifest, proofs).unwrap_or(manifest.taken_at) };
    let newest = snapshots
        .iter()
        .max_by_key(|manifest| &manifest.id)
        .filter(|newest| proven_at(newest, proofs).is_none());
    let mut others: Vec<&Manifest> =
        snapshots.iter().filter(|manifest| newest.is_none_or(|newest| newest.id != manifest.id)).collect();
    others.sort_by_key(|manifest| (since(manifest), &manifest.id));
    let turns = turns(snapshots.len(), rhythm);
    newest.into_iter().chain(others.into_iter().take(turns)).collect()
}

/// How many of `count` have their turn in each run, so that in `within` all have had one.
fn turns(count: usize, rhythm: Rhythm) -> usize {
    // A run that is begun late, or ends late, must not cost a whole turn: one run is held back.
    let runs = (rhythm.within.as_secs() / rhythm.period.as_secs().max(1)).saturating_sub(1).max(1);
    count.div_ceil(usize::try_from(runs).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::catalog::fixture::{at, manifest, proof};

    const DAY: Duration = Duration::from_secs(86_400);

    const fn rhythm(days: u32) -> Rhythm {
        Rhythm { period: DAY, within: DAY.saturating_mul(days) }
    }

    fn day(day: i64) -> Timestamp {
        at("2026-01-01T12:00:00Z") + SignedDuration::from_hours(24 * day)
    }

    /// The days whose snapshots are proven, for snapshots of these days and proofs `(of, on)`.
    fn planned(snapshots: &[i64], proofs: &[(i64, i64)], days: u32) -> Vec<i64> {
        let manifests: Vec<Manifest> =
            snapshots.iter().map(|taken| manifest(day(*taken), 1, None, &[])).collect();
        let of = |taken: &i64| &manifests[snapshots.iter().position(|it| it == taken).expect("listed")].id;
        let proofs: Vec<Proof> = proofs.iter().map(|(taken, on)| proof(of(taken), day(*on))).collect();
        let planned = drills(&manifests, &proofs, rhythm(days));
        let index = |found: &&Manifest| manifests.iter().position(|it| it.id == found.id).expect("listed");
        planned.iter().map(|found| snapshots[index(found)]).collect()
    }

    #[test]
    fn the_plan() {
        for (snapshots, proofs, days, expected) in [
            (&[][..], &[][..], 30, &[][..]),
            (&[1], &[], 30, &[1]),
            // Proven before, and proven again.
            (&[1], &[(1, 2)], 30, &[1]),
            // The newest is unproven, and an older one has its turn all the same.
            (&[1, 2, 3], &[(1, 5), (2, 4)], 30, &[3, 2]),
            // The newest is proven: it waits for its turn like the others.
            (&[1, 2, 3], &[(1, 5), (2, 4), (3, 6)], 30, &[2]),
            // Unproven counts from when it was taken.
            (&[1, 2, 3, 4], &[(1, 5), (4, 4)], 30, &[2]),
            // Four in three runs are two each; in one run all.
            (&[1, 2, 3, 4], &[(4, 4)], 4, &[1, 2]),
            (&[1, 2, 3, 4], &[(4, 4)], 1, &[1, 2, 3, 4]),
        ] {
            assert_eq!(planned(snapshots, proofs, days), expected, "{snapshots:?} {proofs:?} {days}");
        }
    }

    #[test]
    fn each_snapshot_is_proven_within_the_time_whatever_else_comes() {
        const WITHIN: i64 = 10;
        let keep = |taken: i64, today: i64| today - taken < 15 || taken % 10 == 0;
        // Of every tenth day one snapshot stays for ever: there are more and more.
        let mut manifests: Vec<Manifest> = Vec::new();
        let mut proofs: Vec<Proof> = Vec::new();
        let mut most = 0;
        for today in 0..200 {
            manifests.push(manifest(day(today), 1, None, &[]));
            let taken = |manifest: &Manifest| manifest.taken_at.duration_since(day(0)).as_hours() / 24;
            manifests.retain(|manifest| keep(taken(manifest), today));
            let now = day(today) + SignedDuration::from_hours(1);
            let planned = drills(&manifests, &proofs, rhythm(WITHIN as u32));
            most = most.max(planned.len());
            proofs.extend(planned.iter().map(|found| proof(&found.id, now)));
            for manifest in &manifests {
                let since = proven_at(manifest, &proofs).unwrap_or(manifest.taken_at);
                let waited = now.duration_since(since);
                assert!(waited <= SignedDuration::from_hours(24 * WITHIN), "{}: {waited:?}", manifest.id);
            }
        }
        assert!(most <= 7, "no more than it takes: {most}");
    }

    #[test]
    fn an_old_backlog_has_its_turn_within_the_time() {
        const WITHIN: usize = 10;
        let manifests: Vec<Manifest> = (0..47).map(|taken| manifest(day(taken), 1, None, &[])).collect();
        let mut proofs: Vec<Proof> = Vec::new();
        for run in 0..WITHIN as i64 {
            let planned = drills(&manifests, &proofs, rhythm(WITHIN as u32));
            assert!(planned.len() <= 7, "not all at once: {}", planned.len());
            proofs.extend(planned.iter().map(|found| proof(&found.id, day(100 + run))));
        }
        assert!(manifests.iter().all(|manifest| proven_at(manifest, &proofs).is_some()));
    }
}
