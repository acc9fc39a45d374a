//! A policy is refused, or reads the same when written; whatever it says, the newest snapshot, the last
//! proven one and what is young are kept, and a second run removes nothing more.
//!
//! The input is a line with the policy, and below it four bytes for each snapshot.
use std::time::Duration;

use lifeboat::clock::Timestamp;
use lifeboat::error::ErrorKind;
use lifeboat::retention::{Policy, SnapshotFacts, plan};
use lifeboat::snapshot::{Flag, SnapshotId};

/// The longest row of snapshots, so that a run stays short.
const SNAPSHOTS_MAX: usize = 64;

const SAFETY_AGE: Duration = Duration::from_secs(3600);

pub fn holds(input: &[u8]) {
    let (text, steps) = input.split_at(input.iter().position(|byte| *byte == b'\n').unwrap_or(input.len()));
    let Ok(text) = str::from_utf8(text) else { return };
    let steps = steps.chunks_exact(4).map(|step| u32::from_le_bytes(step.try_into().expect("four bytes")));
    let policy = match text.parse::<Policy>() {
        Ok(policy) => policy,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Config),
    };
    assert_eq!(policy.to_string().parse::<Policy>().expect("written by us"), policy);
    let (snapshots, now) = history(steps);
    let planned = plan(&snapshots, &policy, now, SAFETY_AGE);
    let removed: Vec<_> = planned.removed().map(|decision| decision.id.clone()).collect();
    let left: Vec<_> = snapshots.iter().filter(|one| !removed.contains(&one.id)).cloned().collect();
    assert_eq!(left.len() + removed.len(), snapshots.len(), "each is decided about once");
    assert!(snapshots.iter().filter(|one| one.is_head).all(|head| left.contains(head)));
    let proven = |one: &&SnapshotFacts| one.is_proven && one.flags.is_empty();
    assert!(snapshots.iter().rev().find(proven).is_none_or(|last| left.contains(last)));
    let is_young = |one: &&SnapshotFacts| now.duration_since(one.taken_at).unsigned_abs() < SAFETY_AGE;
    assert!(snapshots.iter().filter(is_young).all(|one| left.contains(one)));
    let again = plan(&left, &policy, now, SAFETY_AGE);
    assert_eq!(again.removed().count(), 0, "a second run removes nothing more: {policy}");
}

/// Snapshots, oldest first, each some minutes after the one before it; the time is ten minutes after the last.
fn history(steps: impl Iterator<Item = u32>) -> (Vec<SnapshotFacts>, Timestamp) {
    let mut now: Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
    let mut snapshots: Vec<SnapshotFacts> = Vec::new();
    for step in steps.take(SNAPSHOTS_MAX) {
        now += Duration::from_secs(u64::from(step >> 8) % (40 * 86_400));
        let flags = if step & 0b1100 == 0b1100 { vec![Flag::Shrunken] } else { Vec::new() };
        snapshots.push(SnapshotFacts {
            id: SnapshotId::next(now, snapshots.last().map(|last| &last.id), step),
            taken_at: now,
            flags,
            is_proven: step & 0b11 == 0b01,
            is_refuted: step & 0b11 == 0b11,
            is_head: false,
            epoch: 1,
            is_base: false,
        });
    }
    if let Some(newest) = snapshots.last_mut() {
        newest.is_head = true;
    }
    (snapshots, now + Duration::from_secs(600))
}
