//! Ageing by tables, and over random histories in which the process dies at any moment.

use proptest::prelude::*;

use super::super::{Listed, reachable};
use super::*;

const HOUR: i64 = 3600;
const DAY: i64 = 24 * HOUR;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// A delta of that level; its last commit was seen, and it was stored, at that second.
fn delta(level: u8, from: u64, to: u64, second: i64) -> Aged {
    let level = Level::new(level).expect("there is one");
    Aged { level, span: Span::new(from, to).expect("forward"), bytes: 1000, at: time(second) }
}

/// Captured ones that follow one another from position 0 on.
fn captured(seconds: &[i64]) -> Vec<Aged> {
    (0..).zip(seconds).map(|(from, second)| delta(0, from, from + 1, *second)).collect()
}

/// The spans of what becomes one of that level, as `FROM-TO`.
fn merged(line: &[Aged], level: usize, now: i64) -> String {
    let merges = merges(line, &RULES[level - 1], time(now));
    for merge in &merges {
        assert!(merge.parts.windows(2).all(|pair| pair[0].span.to() == pair[1].span.from()));
        assert_eq!(usize::from(merge.level.number()), level);
    }
    let spans: Vec<String> =
        merges.iter().map(|merge| format!("{}-{}", merge.span.from(), merge.span.to())).collect();
    spans.join(" ")
}

#[test]
fn what_was_committed_within_a_period_becomes_one() {
    let line = captured(&[1, 2, 59, 60, 61, 119, 120]);
    assert_eq!(merged(&line, 1, 1000), "0-3 3-6");
    assert_eq!(merged(&line, 2, 2 * HOUR), "0-7", "nothing of the level below: then of what there is");
}

#[test]
fn a_period_is_over_when_the_next_one_has_begun_for_a_while() {
    let line = captured(&[1, 2]);
    assert_eq!(merged(&line, 1, 64), "");
    assert_eq!(merged(&line, 1, 65), "0-2");
    // Or when something follows, whatever the clock says: here it was set back.
    assert_eq!(merged(&captured(&[121, 122, 1]), 1, 3), "0-2");
}

#[test]
fn what_is_merged_becomes_one_of_the_next_level_with_what_is_not() {
    let mut line = captured(&[1, 2, 61, 121, 122]);
    line.extend([delta(1, 0, 2, 2), delta(1, 3, 5, 122)]);
    let merges = merges(&line, &RULES[1], time(2 * HOUR));
    let parts: Vec<(u8, u64)> =
        merges[0].parts.iter().map(|part| (part.level.number(), part.span.from())).collect();
    assert_eq!(parts, [(1, 0), (0, 2), (1, 3)]);
    // And then nothing of it does once more.
    line.push(delta(2, 0, 5, 122));
    assert_eq!([1, 2].map(|level| merged(&line, level, 2 * HOUR)), ["", ""]);
}

#[test]
fn nothing_is_merged_across_a_gap() {
    let mut line = captured(&[1, 2, 3, 4, 5]);
    line.remove(2);
    assert_eq!(merged(&line, 1, 1000), "0-2 3-5");
}

#[test]
fn what_becomes_one_has_a_bound() {
    let line = captured(&vec![1; PARTS_MAX + 3]);
    assert_eq!(merged(&line, 1, 1000), "0-64 64-67");
    let mut line = captured(&[1; 5]);
    line.iter_mut().for_each(|delta| delta.bytes = MERGED_BYTES_MAX / 2);
    assert_eq!(merged(&line, 1, 1000), "0-2 2-4");
    line[0].bytes = MERGED_BYTES_MAX;
    assert_eq!(merged(&line, 1, 1000), "1-3 3-5");
}

/// What goes, as `LEVEL:FROM-TO`.
fn removed(stored: &[Aged], now: i64) -> String {
    let (removals, _) = removals(stored, time(now));
    let parts = removals.iter().flat_map(|removal| &removal.parts);
    let names: Vec<String> =
        parts.map(|part| format!("{}:{}-{}", part.level, part.span.from(), part.span.to())).collect();
    names.join(" ")
}

#[test]
fn what_went_into_a_merged_one_stays_for_its_time() {
    let mut stored = captured(&[1, 2, 31]);
    stored.push(delta(1, 0, 2, 40));
    assert_eq!(removed(&stored, 2 + HOUR - 1), "");
    assert_eq!(removed(&stored, 2 + HOUR), "0:0-1 0:1-2");
    assert_eq!(removals(&stored, time(5)).1, Some(time(2 + HOUR)));
    // What only a delta of an hour holds is kept for three days.
    stored.push(delta(2, 0, 3, 700));
    assert_eq!(removed(&stored, 3 * DAY), "0:0-1 0:1-2");
    assert_eq!(removed(&stored, 31 + 3 * DAY), "0:0-1 0:1-2");
    assert_eq!(removed(&stored, 40 + 3 * DAY), "0:0-1 0:1-2 1:0-2 0:2-3");
}

#[test]
fn the_place_of_a_claim_stays_taken() {
    let mut stored = captured(&[1, 2]);
    stored[1].bytes = Header::EMPTY_DELTA_BYTES;
    stored.push(delta(1, 0, 2, 40));
    assert_eq!(removed(&stored, 10 * DAY), "0:0-1");
}

#[test]
fn where_deltas_overlap_that_do_not_hold_one_another_nothing_goes() {
    let mut stored = captured(&[1, 2, 3, 4]);
    stored.extend([delta(1, 0, 3, 40), delta(1, 1, 4, 40)]);
    assert_eq!(removed(&stored, 10 * DAY), "");
    stored.push(delta(2, 0, 4, 50));
    assert_eq!(removed(&stored, 10 * DAY), "1:0-3 0:0-1 1:1-4 0:1-2 0:2-3 0:3-4");
}

/// Storage, with the times of all positions there ever were.
#[derive(Default)]
struct World {
    stored: Vec<Aged>,
    /// When each delta was captured, by the position it leads to, and from where it leads.
    captured: Vec<(u64, u64, Timestamp)>,
}

impl World {
    /// Does what is due, and dies after `operations` of it.
    fn age(&mut self, now: Timestamp, mut operations: usize) {
        let mut spend = || {
            let lives = operations > 0;
            operations = operations.saturating_sub(1);
            lives
        };
        for rule in &RULES {
            for merge in merges(&self.stored, rule, now) {
                if !spend() {
                    return;
                }
                let at = merge.parts[merge.parts.len() - 1].at;
                self.stored.push(Aged { level: merge.level, span: merge.span, bytes: 1000, at });
            }
        }
        for removal in removals(&self.stored, now).0 {
            for part in removal.parts {
                if !spend() {
                    return;
                }
                self.stored.retain(|delta| (delta.level, delta.span) != (part.level, part.span));
            }
        }
    }

    /// Whatever was captured can be restored as exactly as its age says, from the snapshot at the beginning of
    /// its line.
    fn check(&self, now: Timestamp) {
        let listed: Vec<Listed> = self
            .stored
            .iter()
            .map(|delta| Listed { level: delta.level, span: delta.span, moments: None })
            .collect();
        let begins_line = |at: &usize| *at == 0 || self.captured[*at].0 != self.captured[*at - 1].1;
        let starts: Vec<usize> = (0..self.captured.len()).filter(begins_line).collect();
        for (nth, start) in starts.iter().enumerate() {
            let end = starts.get(nth + 1).copied().unwrap_or(self.captured.len());
            let line = &self.captured[*start..end];
            let reached: BTreeSet<u64> =
                reachable(&listed, line[0].0).iter().map(|delta| delta.span.to()).collect();
            assert!(reached.contains(&line[line.len() - 1].1), "the end of a line is lost");
            let mut next = None;
            for (_, to, at) in line.iter().rev() {
                if reached.contains(to) {
                    next = Some(*at);
                    continue;
                }
                let next = next.expect("the end is reached");
                let is_allowed = |rule: &Rule| {
                    rule.period(*at) == rule.period(next) && now.duration_since(*at) >= rule.parts_kept
                };
                assert!(RULES.iter().any(is_allowed), "position {to} of {at} is lost at {now}");
            }
        }
    }
}

proptest! {
    #[test]
    fn whenever_a_process_dies_what_age_has_not_given_up_can_be_restored(
        steps in prop::collection::vec(
            (prop_oneof![6 => 0i64..20, 2 => 20i64..700, 1 => 600i64..40_000], 0u32..20, 0usize..12),
            1..100,
        )
    ) {
        let mut world = World::default();
        let (mut now, mut position) = (1_000_000, 0);
        for (pause, kind, operations) in steps {
            now += pause;
            // A new line, whose snapshot stands behind a gap.
            position += u64::from(kind == 0);
            world.stored.push(delta(0, position, position + 1, now));
            world.captured.push((position, position + 1, time(now)));
            position += 1;
            if kind < 8 {
                world.age(time(now), if kind < 4 { operations } else { usize::MAX });
                world.check(time(now));
            }
        }
        for _ in 0..4 {
            now += DAY;
            world.age(time(now), usize::MAX);
            world.check(time(now));
        }
    }

    #[test]
    fn an_old_line_is_few_deltas(seconds in prop::collection::vec(0i64..20_000, 1..150)) {
        let mut seconds = seconds;
        seconds.sort_unstable();
        let mut world = World { stored: captured(&seconds), ..World::default() };
        world.age(time(5 * DAY), usize::MAX);
        let hours: BTreeSet<i64> = seconds.iter().map(|second| second.div_euclid(HOUR)).collect();
        prop_assert_eq!(cover(&world.stored).len(), world.stored.len());
        prop_assert!(world.stored.len() <= hours.len() + seconds.len() / PARTS_MAX);
    }
}
