//! Which deltas lead where: the fewest to a position, what can be restored, and where there are gaps.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use jiff::Timestamp;

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Level, Span};

/// A delta as a listing shows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Listed {
    /// How often it was merged.
    pub level: Level,
    /// Where it leads.
    pub span: Span,
    /// When its commits were, if its header was read.
    pub moments: Option<Moments>,
}

/// The times of the first and the last commit in something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Moments {
    /// Of the first.
    pub first: Timestamp,
    /// Of the last.
    pub last: Timestamp,
}

/// Where deltas are to lead.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// As far as any delta leads.
    Latest,
    /// To this position.
    Position(u64),
}

/// The fewest deltas that lead, one after the other, from a snapshot at `start` to the target.
///
/// The first of them may begin before the snapshot, for a delta holds all pages that were written in its span.
/// If none do, the error ([`ErrorKind::NotFound`]) names the position up to which they lead, and what there is
/// after it. A snapshot lies between its position and the next: only what comes after it can be had exactly.
pub fn plan(listing: &[Listed], start: u64, target: Target) -> Result<Vec<Listed>> {
    let newest = listing.iter().map(|delta| delta.span.to()).max().unwrap_or(start).max(start);
    let (end, is_needed) = match target {
        Target::Latest => (newest, newest > start),
        Target::Position(position) => (position, true),
    };
    if !is_needed {
        return Ok(Vec::new());
    }
    let paths = paths(listing, start, end);
    let mut run = Vec::new();
    let mut position = end;
    while let Some(step) = paths.get(&position) {
        run.push(step.delta);
        position = step.delta.span.from();
    }
    run.reverse();
    match run.is_empty() {
        true => Err(not_there(listing, start, end, &paths)),
        false => Ok(run),
    }
}

/// Every position that deltas lead to from a snapshot at `start`, in order, each as a delta that ends there.
pub fn reachable(listing: &[Listed], start: u64) -> Vec<Listed> {
    paths(listing, start, u64::MAX).into_values().map(|path| path.delta).collect()
}

/// The last step of the shortest way to a position.
struct Path {
    deltas: usize,
    delta: Listed,
}

/// The shortest way to every position up to `end` that deltas lead to from `start`.
fn paths(listing: &[Listed], start: u64, end: u64) -> BTreeMap<u64, Path> {
    let mut found: BTreeMap<u64, Path> = BTreeMap::new();
    // All deltas that lead to a position begin before it: they were looked at when it is gone on from.
    for delta in in_order(listing) {
        let deltas = match found.get(&delta.span.from()) {
            Some(path) => path.deltas + 1,
            None if leads_on(delta.span, start) => 1,
            None => continue,
        };
        let is_shorter = found.get(&delta.span.to()).is_none_or(|path| deltas < path.deltas);
        if delta.span.to() <= end && is_shorter {
            found.insert(delta.span.to(), Path { deltas, delta });
        }
    }
    found
}

/// Whether a delta leads on from a snapshot at this position.
fn leads_on(span: Span, snapshot: u64) -> bool {
    span.from() <= snapshot && snapshot < span.to()
}

fn in_order(listing: &[Listed]) -> Vec<Listed> {
    let mut sorted = listing.to_vec();
    sorted.sort_by_key(|delta| (delta.span, Reverse(delta.level)));
    sorted
}

fn not_there(listing: &[Listed], start: u64, end: u64, paths: &BTreeMap<u64, Path>) -> Error {
    let reached = paths.last_key_value().map_or(start, |(position, _)| *position);
    let over = listing.iter().map(|delta| delta.span).find(|span| {
        let begins = leads_on(*span, start) || paths.contains_key(&span.from());
        begins && span.from() < end && span.to() > end
    });
    let beyond = listing.iter().map(|delta| delta.span.from()).filter(|from| *from > reached).min();
    let why = match (over, beyond) {
        _ if end <= start => "the snapshot is a later one".to_owned(),
        (Some(span), _) => format!("it went into the merged delta span=`{span}`"),
        (None, Some(next)) => format!("a gap follows, up to position=`{next}`"),
        (None, None) => "nothing follows".to_owned(),
    };
    Error::new(
        ErrorKind::NotFound,
        format!(
            "no deltas lead to position=`{end}` from the snapshot at position=`{start}`; they lead up to position=`{reached}`: {why}"
        ),
    )
}

/// Positions that can be restored: those after `from` that some delta leads to, up to `to`. If both are the
/// same, the snapshot there is all there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// The position of its first snapshot.
    pub from: u64,
    /// The last position.
    pub to: u64,
    /// The earliest and the latest commit in it, as far as times are known.
    pub moments: Option<Moments>,
}

/// Positions that cannot be restored, although there is something later: those after `after`, up to `until`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Gap {
    /// The last position before.
    pub after: u64,
    /// The position of the snapshot that ends it; if none does, where the last delta leads.
    pub until: u64,
}

/// What can be restored from snapshots at these positions with these deltas, in order.
pub fn windows(snapshots: &[u64], listing: &[Listed]) -> Vec<Window> {
    let snapshots: BTreeSet<u64> = snapshots.iter().copied().collect();
    let mut reached = BTreeSet::new();
    let mut pieces: Vec<Window> =
        snapshots.iter().map(|position| Window { from: *position, to: *position, moments: None }).collect();
    for Listed { span, moments, .. } in in_order(listing) {
        let from = match reached.contains(&span.from()) {
            true => Some(span.from()),
            false => snapshots.range(span.from()..span.to()).next().copied(),
        };
        if let Some(from) = from {
            reached.insert(span.to());
            pieces.push(Window { from, to: span.to(), moments });
        }
    }
    pieces.sort_by_key(|piece| piece.from);
    let mut windows: Vec<Window> = Vec::new();
    for piece in pieces {
        match windows.last_mut().filter(|window| piece.from <= window.to) {
            Some(window) => {
                window.to = window.to.max(piece.to);
                window.moments = both(window.moments, piece.moments);
            }
            None => windows.push(piece),
        }
    }
    windows
}

/// What lies between the windows, and behind the last one.
pub fn gaps(windows: &[Window], listing: &[Listed]) -> Vec<Gap> {
    let between = windows.windows(2).map(|pair| Gap { after: pair[0].to, until: pair[1].from });
    let end = listing.iter().map(|delta| delta.span.to()).max();
    let behind = windows.last().zip(end).map(|(last, end)| Gap { after: last.to, until: end });
    between.chain(behind.filter(|gap| gap.after < gap.until)).collect()
}

fn both(one: Option<Moments>, other: Option<Moments>) -> Option<Moments> {
    match (one, other) {
        (Some(one), Some(other)) => {
            Some(Moments { first: one.first.min(other.first), last: one.last.max(other.last) })
        }
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests;
