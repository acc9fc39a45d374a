//! Which snapshots to keep, and why: grandfather-father-son with floors below which it never goes.
//!
//! Periods are counted over the snapshots that exist, not back from `now`. A clock that jumps
//! therefore cannot empty a catalog: a policy of 24 hours keeps one snapshot of each of the 24
//! newest hours that have any, however long ago they were.

mod policy;
mod window;

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Serialize, Serializer};

pub use policy::{Policy, Unit};
pub use window::{Anchored, Window};

use crate::snapshot::{Flag, SnapshotId};

/// What retention looks at in one snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SnapshotFacts {
    /// Its name; ids tell the order in which snapshots were taken, whatever the clock said.
    pub id: SnapshotId,
    /// The moment it shows, which decides its calendar periods.
    pub taken_at: Timestamp,
    /// What looked wrong with the source.
    pub flags: Vec<Flag>,
    /// It was read back and shown to restore.
    pub is_proven: bool,
    /// It was read back, and shown not to restore or not to what it should.
    pub is_refuted: bool,
    /// `head.json` names it as the newest.
    pub is_head: bool,
    /// The epoch of its writer, which tells one branch from another.
    pub epoch: u64,
    /// Moments after it are restored from it, see [`Window::bases`].
    pub is_base: bool,
}

impl SnapshotFacts {
    fn is_branch(&self) -> bool {
        self.flags.contains(&Flag::Branch)
    }
}

/// For so long the snapshots of a branch wait to be adopted; then they are removed.
pub const BRANCH_AGE_MAX: Duration = Duration::from_secs(30 * 24 * 3600);

/// Why a snapshot is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// It stands for one period of a rule: the newest snapshot there, if possible one without flags.
    Rule(Unit, String),
    /// It is the head.
    Newest,
    /// It is newer than the head: being published just now, or never published to the end.
    BeyondHead,
    /// It is the newest snapshot known to restore.
    LastProven,
    /// Of a branch that somebody may still adopt, it is the newest, or stands for a period there.
    Branch,
    /// Moments of the window are restored from it.
    PointInTime,
    /// It is younger than the safety age.
    Young,
    /// It was taken after `now`: a clock is or was wrong, so its age is unknown.
    Ahead,
    /// Nothing may be removed at present.
    Frozen(Freeze),
}

/// Why nothing may be removed at present.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Freeze {
    /// The head is missing, or names a snapshot that is missing or damaged.
    NoHead,
    /// The head is suspicious: the good data may be in any older snapshot.
    HeadFlagged(Vec<Flag>),
    /// The newest snapshot that was read back did not restore: its source may be damaged since any time.
    DrillFailed,
    /// No snapshot without flags is known to restore, so any one may turn out to be the only one.
    NoneProven,
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Rule(unit, period) => write!(f, "{} {period}", unit.name()),
            Reason::Newest => f.write_str("newest"),
            Reason::BeyondHead => f.write_str("not published to the end"),
            Reason::LastProven => f.write_str("last proven"),
            Reason::Branch => f.write_str("branch, not adopted yet"),
            Reason::PointInTime => f.write_str("moments after it"),
            Reason::Young => f.write_str("younger than the safety age"),
            Reason::Ahead => f.write_str("taken in the future"),
            Reason::Frozen(Freeze::NoHead) => f.write_str("the newest snapshot is not known"),
            Reason::Frozen(Freeze::DrillFailed) => f.write_str("the newest drill failed"),
            Reason::Frozen(Freeze::NoneProven) => f.write_str("no snapshot is proven yet"),
            Reason::Frozen(Freeze::HeadFlagged(flags)) => {
                let names: Vec<&str> = flags.iter().map(|flag| flag.name()).collect();
                write!(f, "the newest snapshot is {}", names.join(" and "))
            }
        }
    }
}

impl Serialize for Reason {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// What is to happen to one snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Decision {
    /// Which.
    pub id: SnapshotId,
    /// The moment it shows.
    pub taken_at: Timestamp,
    /// Every reason to keep it; without any it is removed.
    pub keep: Vec<Reason>,
}

/// A decision for every snapshot, newest first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(transparent)]
pub struct Plan {
    /// The decisions.
    pub decisions: Vec<Decision>,
    /// Why nothing may be removed, if that is so.
    #[serde(skip)]
    pub freeze: Option<Freeze>,
}

impl Plan {
    /// The snapshots to remove, newest first.
    pub fn removed(&self) -> impl DoubleEndedIterator<Item = &Decision> {
        self.decisions.iter().filter(|decision| decision.keep.is_empty())
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for Decision { id, keep, .. } in &self.decisions {
            let reasons: Vec<String> = keep.iter().map(Reason::to_string).collect();
            match &reasons[..] {
                [] => writeln!(f, "remove  {id}")?,
                reasons => writeln!(f, "keep    {id}  {}", reasons.join(", "))?,
            }
        }
        Ok(())
    }
}

/// Decides about every snapshot; their order does not matter.
pub fn plan(snapshots: &[SnapshotFacts], policy: &Policy, now: Timestamp, safety_age: Duration) -> Plan {
    let mut newest_first: Vec<&SnapshotFacts> = snapshots.iter().collect();
    newest_first.sort_by(|one, other| other.id.cmp(&one.id));
    let floors = Floors::of(&newest_first, now, safety_age);
    // What is kept anyway and is not, or may not be, a true part of the past uses up no period:
    // it must not push out what is.
    let past = newest_first.iter().copied().filter(|snapshot| !floors.is_beyond(snapshot));
    let mut kept_by_rules = rule_reasons(&past.collect::<Vec<_>>(), policy);
    kept_by_rules.extend(branch_reasons(&newest_first, policy, now));
    let decisions = newest_first.into_iter().map(|snapshot| {
        let mut keep = kept_by_rules.remove(&snapshot.id).unwrap_or_default();
        keep.extend(floors.reasons(snapshot));
        Decision { id: snapshot.id.clone(), taken_at: snapshot.taken_at, keep }
    });
    Plan { decisions: decisions.collect(), freeze: floors.freeze }
}

/// The policy's part.
fn rule_reasons(newest_first: &[&SnapshotFacts], policy: &Policy) -> BTreeMap<SnapshotId, Vec<Reason>> {
    let mut reasons: BTreeMap<SnapshotId, Vec<Reason>> = BTreeMap::new();
    let mut keep = |snapshot: &SnapshotFacts, unit: Unit, period: String| {
        reasons.entry(snapshot.id.clone()).or_default().push(Reason::Rule(unit, period));
    };
    for (unit, count) in policy.rules() {
        let mut periods: BTreeMap<i64, (&SnapshotFacts, String)> = BTreeMap::new();
        for (position, snapshot) in newest_first.iter().copied().enumerate() {
            let Some((period, name)) = unit.period(snapshot.taken_at) else {
                if position < count {
                    keep(snapshot, unit, (position + 1).to_string());
                }
                continue;
            };
            let standing = periods.entry(period).or_insert_with(|| (snapshot, name));
            if !standing.0.flags.is_empty() && snapshot.flags.is_empty() {
                standing.0 = snapshot;
            }
        }
        for (snapshot, name) in periods.into_values().rev().take(count) {
            keep(snapshot, unit, name);
        }
    }
    reasons
}

/// The policy within each branch, as long as it waits for being adopted.
fn branch_reasons(
    newest_first: &[&SnapshotFacts],
    policy: &Policy,
    now: Timestamp,
) -> BTreeMap<SnapshotId, Vec<Reason>> {
    let mut branches: BTreeMap<u64, Vec<&SnapshotFacts>> = BTreeMap::new();
    for snapshot in newest_first.iter().filter(|snapshot| snapshot.is_branch()) {
        let is_over = now.duration_since(snapshot.taken_at)
            >= SignedDuration::try_from(BRANCH_AGE_MAX).unwrap_or(SignedDuration::MAX);
        if !is_over {
            branches.entry(snapshot.epoch).or_default().push(snapshot);
        }
    }
    let kept = branches.into_values().flat_map(|branch| {
        let newest = branch.first().map(|newest| newest.id.clone());
        rule_reasons(&branch, policy).into_keys().chain(newest)
    });
    kept.map(|id| (id, vec![Reason::Branch])).collect()
}

/// What no policy can reach below.
struct Floors<'a> {
    head: Option<&'a SnapshotId>,
    proven: Vec<&'a SnapshotId>,
    freeze: Option<Freeze>,
    now: Timestamp,
    safety_age: Duration,
}

impl<'a> Floors<'a> {
    fn of(newest_first: &[&'a SnapshotFacts], now: Timestamp, safety_age: Duration) -> Self {
        let newest = |test: fn(&SnapshotFacts) -> bool| {
            newest_first.iter().find(|snapshot| !snapshot.is_branch() && test(snapshot)).copied()
        };
        let head = newest(|snapshot| snapshot.is_head);
        // What stands beyond the head may be of a writer that was overtaken: it proves nothing for the line.
        let is_of_line = |snapshot: &SnapshotFacts| {
            !snapshot.is_branch() && head.is_some_and(|head| snapshot.id <= head.id)
        };
        let mut all_proven =
            newest_first.iter().copied().filter(|snapshot| snapshot.is_proven && is_of_line(snapshot));
        let proven = all_proven.next();
        let proven_well = proven.into_iter().chain(all_proven).find(|snapshot| snapshot.flags.is_empty());
        let refuted = newest(|snapshot| snapshot.is_refuted)
            .filter(|refuted| proven.is_none_or(|proven| refuted.id > proven.id));
        let freeze = match (head, proven_well) {
            (None, _) => Some(Freeze::NoHead),
            (Some(_), _) if refuted.is_some() => Some(Freeze::DrillFailed),
            (Some(head), _) if !head.flags.is_empty() => Some(Freeze::HeadFlagged(head.flags.clone())),
            (Some(_), None) => Some(Freeze::NoneProven),
            (Some(_), Some(_)) => None,
        };
        Floors {
            head: head.map(|head| &head.id),
            proven: [proven, proven_well].into_iter().flatten().map(|snapshot| &snapshot.id).collect(),
            freeze,
            now,
            safety_age,
        }
    }

    fn is_beyond_head(&self, snapshot: &SnapshotFacts) -> bool {
        !snapshot.is_branch() && self.head.is_some_and(|head| &snapshot.id > head)
    }

    fn is_ahead(&self, snapshot: &SnapshotFacts) -> bool {
        snapshot.taken_at > self.now
    }

    fn is_beyond(&self, snapshot: &SnapshotFacts) -> bool {
        self.is_beyond_head(snapshot) || self.is_ahead(snapshot) || snapshot.is_branch()
    }

    fn is_young(&self, snapshot: &SnapshotFacts) -> bool {
        let age = self.now.duration_since(snapshot.taken_at).unsigned_abs();
        !self.is_ahead(snapshot) && age < self.safety_age
    }

    fn reasons(&self, snapshot: &SnapshotFacts) -> Vec<Reason> {
        let is_head = self.head == Some(&snapshot.id);
        let reasons = [
            (is_head, Reason::Newest),
            (self.is_beyond_head(snapshot), Reason::BeyondHead),
            (self.proven.contains(&&snapshot.id), Reason::LastProven),
            (snapshot.is_base, Reason::PointInTime),
            (self.is_young(snapshot), Reason::Young),
            (self.is_ahead(snapshot), Reason::Ahead),
        ];
        let freeze = self.freeze.clone().filter(|_| !is_head).map(Reason::Frozen);
        reasons.into_iter().filter_map(|(holds, reason)| holds.then_some(reason)).chain(freeze).collect()
    }
}

#[cfg(test)]
mod tests;
