//! Deltas grow old: which of them become one of a higher level, and which are not kept beside that one.

use std::cmp::Reverse;
use std::collections::BTreeSet;

use jiff::{SignedDuration, Timestamp};

use super::header::Header;
use crate::error::Result;
use crate::snapshot::{Level, Span};

/// A delta, and the time that decides about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Aged {
    /// How often it was merged.
    pub level: Level,
    /// Where it leads.
    pub span: Span,
    /// Its size.
    pub bytes: u64,
    /// For [`merges`], when the last commit in it was seen; for [`removals`], when it was stored.
    pub at: Timestamp,
}

/// What the deltas of a level are for.
#[derive(Debug, Clone, Copy)]
pub struct Rule {
    /// The level.
    pub level: Level,
    /// The time that one of them covers: from a multiple of it since 1970 to the next.
    pub covers: SignedDuration,
    /// For how long what went into one of them is kept beside it.
    pub parts_kept: SignedDuration,
}

/// All levels above the one that capture writes, the lowest first.
///
/// So a moment of the last hour is restored to the commit that was captured; for three days, to the minute; before
/// that, to the hour. A page goes up once for each level, so there are as few as keep a restore from reading many.
pub const RULES: [Rule; 2] = [
    Rule {
        level: Level::MERGED[0],
        covers: SignedDuration::from_mins(1),
        parts_kept: SignedDuration::from_hours(1),
    },
    Rule {
        level: Level::MERGED[1],
        covers: SignedDuration::from_hours(1),
        parts_kept: SignedDuration::from_hours(72),
    },
];

/// The most bytes that go into a merged delta, and so come out of it.
pub const MERGED_BYTES_MAX: u64 = 64 << 20;

/// The most deltas that become one at a time: a block of each is in memory.
pub const PARTS_MAX: usize = 64;

/// What was committed within a time is on its way to storage for a moment longer.
const GRACE: SignedDuration = SignedDuration::from_secs(5);

/// Deltas that are to become one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Merge {
    /// The level of that one.
    pub level: Level,
    /// Where it will lead.
    pub span: Span,
    /// What goes into it, oldest first; two at least.
    pub parts: Vec<Aged>,
}

/// Deltas that nobody needs beside the merged one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Removal {
    /// What has to be proven first.
    pub merged: Aged,
    /// What goes then.
    pub parts: Vec<Aged>,
}

impl Rule {
    fn period(&self, time: Timestamp) -> i64 {
        time.as_second().div_euclid(self.covers.as_secs())
    }

    /// Whether what was committed in the same period as `time` is all stored.
    fn is_over(&self, time: Timestamp, now: Timestamp) -> bool {
        let end = (self.period(time) + 1).saturating_mul(self.covers.as_secs());
        now.as_second() >= end.saturating_add(GRACE.as_secs())
    }
}

/// Which deltas are to become one of the rule's level now. Each run has no gap, and lies within one period.
///
/// Those of lower levels come first: what they become goes into this one.
pub fn merges(line: &[Aged], rule: &Rule, now: Timestamp) -> Vec<Merge> {
    let mut runs: Vec<Vec<Aged>> = Vec::new();
    let (mut merged_to, mut reached) = (0, 0);
    for delta in in_order(line) {
        if delta.level >= rule.level {
            merged_to = merged_to.max(delta.span.to());
            continue;
        }
        // What is merged already, and of the rest what a longer one holds.
        if delta.span.from() < merged_to.max(reached) {
            continue;
        }
        match runs.last_mut().filter(|run| goes_on(run, &delta, rule)) {
            Some(run) => run.push(delta),
            None => runs.push(vec![delta]),
        }
        reached = delta.span.to();
    }
    // Nothing is added any more to a run that another one follows.
    if runs.last().is_some_and(|run| !rule.is_over(run[0].at, now)) {
        runs.pop();
    }
    runs.retain(|run| run.len() > 1);
    runs.into_iter().filter_map(|parts| merge(parts, rule.level).ok()).collect()
}

/// The longest first where several begin.
fn in_order(deltas: &[Aged]) -> Vec<Aged> {
    let mut sorted = deltas.to_vec();
    sorted.sort_by_key(|delta| (delta.span.from(), Reverse((delta.span.to(), delta.level))));
    sorted
}

fn goes_on(run: &[Aged], delta: &Aged, rule: &Rule) -> bool {
    let bytes: u64 = run.iter().map(|part| part.bytes).sum();
    run.len() < PARTS_MAX
        && bytes.saturating_add(delta.bytes) <= MERGED_BYTES_MAX
        && run.last().is_some_and(|last| last.span.to() == delta.span.from())
        && rule.period(run[0].at) == rule.period(delta.at)
}

fn merge(parts: Vec<Aged>, level: Level) -> Result<Merge> {
    let end = parts.iter().map(|part| part.span.to()).max().unwrap_or_default();
    Ok(Merge { level, span: Span::new(parts[0].span.from(), end)?, parts })
}

/// Whether something else may still become one with the delta.
pub fn is_open(delta: &Aged, now: Timestamp) -> bool {
    let highest = &RULES[RULES.len() - 1];
    delta.level < highest.level && !highest.is_over(delta.at, now)
}

/// The fewest deltas that hold all that is in `deltas`, in order.
pub fn cover(deltas: &[Aged]) -> Vec<Aged> {
    let mut reached = 0;
    let mut cover = in_order(deltas);
    cover.retain(|delta| {
        let is_new = delta.span.to() > reached;
        reached = reached.max(delta.span.to());
        is_new
    });
    cover
}

/// What is not needed any more, and when there will be more of that.
///
/// A captured delta without pages stays: it is how a daemon's start takes the place of whoever wrote before, and
/// who was suspended meanwhile, for however long, must find it taken. Where deltas overlap that do not hold one
/// another, nothing goes.
pub fn removals(stored: &[Aged], now: Timestamp) -> (Vec<Removal>, Option<Timestamp>) {
    let sorted = in_order(stored);
    let mut by_end: Vec<Span> = stored.iter().map(|delta| delta.span).collect();
    by_end.sort_by_key(|span| span.to());
    let (mut removals, mut next, mut gone) = (Vec::new(), None::<Timestamp>, BTreeSet::new());
    for rule in &RULES {
        for merged in sorted.iter().filter(|delta| delta.level == rule.level) {
            let (from, to) = (merged.span.from(), merged.span.to());
            let first = sorted.partition_point(|delta| delta.span.from() < from);
            let beginning = sorted[first..].iter().take_while(|delta| delta.span.from() < to);
            let first_end = by_end.partition_point(|span| span.to() <= from);
            let mut ending = by_end[first_end..].iter().take_while(|span| span.to() < to);
            if beginning.clone().any(|delta| delta.span.from() > from && delta.span.to() > to)
                || ending.any(|span| span.from() < from)
            {
                continue;
            }
            let is_part = |delta: &&Aged| {
                delta.level < merged.level
                    && delta.span.to() <= to
                    && !is_claim(delta)
                    && !gone.contains(&(delta.level, delta.span))
            };
            let parts: Vec<Aged> = beginning.filter(is_part).copied().collect();
            let Some(youngest) = parts.iter().map(|part| part.at).max() else { continue };
            match youngest.checked_add(rule.parts_kept) {
                Ok(due) if due <= now => {
                    gone.extend(parts.iter().map(|part| (part.level, part.span)));
                    removals.push(Removal { merged: *merged, parts });
                }
                Ok(due) => next = Some(next.map_or(due, |next| next.min(due))),
                Err(_) => {}
            }
        }
    }
    (removals, next)
}

/// Whether all of what a merged delta was made of is still there.
pub fn is_made_again(stored: &[Aged], merged: &Aged) -> bool {
    let is_part = |delta: &Aged| {
        delta.level < merged.level
            && merged.span.from() <= delta.span.from()
            && delta.span.to() <= merged.span.to()
    };
    let parts: Vec<Aged> = stored.iter().copied().filter(is_part).collect();
    let reached = cover(&parts).iter().try_fold(merged.span.from(), |reached, part| {
        (part.span.from() == reached).then_some(part.span.to())
    });
    reached == Some(merged.span.to())
}

fn is_claim(delta: &Aged) -> bool {
    delta.level == Level::CAPTURED && delta.bytes <= Header::EMPTY_DELTA_BYTES
}

#[cfg(test)]
mod tests;
