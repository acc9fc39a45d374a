//! Following one database from a known state: its log is read, and what it changed is cut into deltas.
//!
//! The state of the last cut is known as a table of page hashes. What is not proven to continue it is compared
//! with it, page by page; without a table only a new snapshot helps. Nothing here waits or stores anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::Arc;

use super::attendance::{Attendance, Place};
use super::cut::Cut;
use super::rhythm::Seen;
use super::since::Since;
use super::state::Doing;
use super::why::Why;
use crate::clock::Timestamp;
use crate::delta::PageTable;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Span;
use crate::source::wal::{Bounds, Log, Outcome};
use crate::source::{Fingerprint, Presence, Source, Version};

/// What is known of one database, and what of it waits to be stored.
pub struct Follower {
    log: Log,
    attendance: Attendance,
    /// The number of the last state that was cut, or at which a snapshot stands.
    position: u64,
    state: State,
    /// What was cut and is not known to be stored, in order.
    cuts: VecDeque<Cut>,
}

enum State {
    /// Nothing is known: a snapshot is needed.
    Unknown,
    /// A snapshot is taken, or was not stored; what it does not show is behind this place.
    Anchoring(Place),
    /// The database has no log: its snapshots stand nowhere, and nothing lies between them.
    Unlogged,
    /// The table is that of the state at the position, and all that changed since is known.
    Following(Box<Following>),
    /// The table is that of the state at the position, and what changed since is not known.
    Behind(Arc<PageTable>, Why),
    /// The pages are being compared.
    Comparing(Why),
}

struct Following {
    table: PageTable,
    /// Up to where all is known.
    place: Place,
    /// The place before a transaction was pinned, until the cut after it.
    pin: Option<Place>,
    /// What the snapshot of that transaction has to show.
    claimed: Option<Claimed>,
    since: Since,
}

/// What is known of a snapshot from the log, before its pages were read.
struct Claimed {
    position: u64,
    table: PageTable,
    /// The pages in which it may differ.
    differing: BTreeSet<u32>,
}

/// What a follower needs before it can go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Needs {
    /// Nothing.
    Nothing,
    /// That pages are compared.
    Comparison(Why),
    /// A snapshot.
    Snapshot,
}

/// Bytes of pages that are kept until they are cut.
pub const SINCE_BYTES_MAX: usize = 64 << 20;

/// To compare all pages of a larger database takes longer than to hold a connection is worth.
const RESTING_BYTES_MAX: usize = 64 << 20;

/// Between two looks at everything else.
const READS_MAX: u32 = 8;

/// One read of the log.
const BOUNDS: Bounds = Bounds { bytes_max: SINCE_BYTES_MAX, frames_max: 8 << 10 };

impl Follower {
    /// Nothing is known but the last position that was ever used.
    pub fn new(log: Log, presence: Presence, position: u64) -> Follower {
        let attendance = Attendance::Present(presence);
        Follower { log, attendance, position, state: State::Unknown, cuts: VecDeque::new() }
    }

    /// This is the last position that was ever used.
    pub fn stand_at(&mut self, position: u64) {
        self.position = position;
    }

    /// Is present by another connection from now on: the file may be another one.
    pub fn renew(&mut self, presence: Presence) {
        self.attendance = Attendance::Present(presence);
    }

    /// Leaves a database that is followed and small, of which nothing waits: should the log go meanwhile, all pages are
    /// soon compared.
    pub fn rest(&mut self, source: &Source) {
        let State::Following(following) = &self.state else { return };
        let bytes = following.table.pages() as usize * following.table.page_size().bytes();
        let waits = following.since.seen.is_some() || !self.cuts.is_empty();
        if bytes <= RESTING_BYTES_MAX && !waits && matches!(self.attendance, Attendance::Present(_)) {
            let left = || Attendance::Resting(source.fingerprint());
            self.attendance = left();
            // Once more: with the connection an empty log may have gone.
            self.attendance = left();
        }
    }

    /// What was there when we left, if we did.
    pub fn rested(&self) -> Option<Fingerprint> {
        match &self.attendance {
            Attendance::Present(_) => None,
            Attendance::Resting(left) => Some(*left),
        }
    }

    /// Is present again; `version` is that of the state in which we left, if it still is the same.
    pub fn wake(&mut self, presence: Presence, version: Option<Version>) {
        self.attendance = Attendance::Present(presence);
        if let State::Following(following) = &mut self.state
            && let Place::NoLog(known) = &mut following.place
        {
            *known = version;
        }
    }

    /// What it needs before it can go on.
    pub fn needs(&self) -> Needs {
        match &self.state {
            State::Unknown | State::Anchoring(_) => Needs::Snapshot,
            State::Behind(_, why) => Needs::Comparison(*why),
            State::Following(_) | State::Comparing(_) | State::Unlogged => Needs::Nothing,
        }
    }

    /// Whether all that is committed is seen.
    pub fn is_following(&self) -> bool {
        matches!(self.state, State::Following(_))
    }

    /// Whether a snapshot is taken that begins a new line.
    pub fn is_anchoring(&self) -> bool {
        matches!(self.state, State::Anchoring(_))
    }

    /// What it is at.
    pub fn doing(&self) -> Doing {
        match &self.state {
            State::Unknown | State::Anchoring(_) => Doing::Anchoring,
            State::Behind(..) | State::Comparing(_) => Doing::Comparing,
            State::Following(_) => Doing::Following,
            State::Unlogged => Doing::NoLog,
        }
    }

    /// The position of the last cut.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// When the oldest commit was seen that is not cut yet.
    pub fn waits_since(&self) -> Option<Timestamp> {
        match &self.state {
            State::Following(following) => following.since.seen.map(|(first, _)| first),
            _ => None,
        }
    }

    /// Reads what was committed; `now` is when it was seen.
    ///
    /// An error is one of the file system; nothing is lost by it.
    pub fn read(&mut self, now: Timestamp) -> Result<Seen> {
        if matches!(self.state, State::Unlogged) && self.log.mark()?.is_some() {
            self.state = State::Unknown;
        }
        let State::Following(following) = &mut self.state else { return Ok(Seen::default()) };
        let mut seen = Seen::default();
        if let Some(why) = following.read(&self.log, &self.attendance, now, READS_MAX, &mut seen)? {
            self.fall_behind(why);
        }
        Ok(seen)
    }

    /// Cuts what changed since the last cut, if anything did.
    pub fn cut(&mut self) -> Result<()> {
        let State::Following(following) = &mut self.state else { return Ok(()) };
        if let Some(cut) = following.cut(self.position)? {
            self.position = cut.span.to();
            self.cuts.push_back(cut);
        }
        Ok(())
    }

    /// What is to be stored next.
    pub fn next_cut(&self) -> Option<&Cut> {
        self.cuts.front()
    }

    /// The next cut is stored.
    pub fn stored(&mut self) {
        self.cuts.pop_front();
    }

    /// Comes right before a read transaction begins, of a snapshot.
    pub fn before_pin(&mut self, now: Timestamp) -> Result<()> {
        match self.state {
            State::Following(_) => {
                self.read(now)?;
                // Two cuts for every snapshot: as long as none is stored, no more of them wait than this.
                if self.cuts.iter().map(Cut::bytes).sum::<usize>() <= SINCE_BYTES_MAX {
                    self.cut()?;
                    if let State::Following(following) = &mut self.state {
                        following.pin = Some(following.place.clone());
                    }
                }
            }
            State::Unknown
            | State::Unlogged
            | State::Anchoring(_)
            | State::Comparing(_)
            | State::Behind(..) => {}
        }
        if !matches!(self.state, State::Following(_) | State::Comparing(_)) {
            self.state = State::Anchoring(self.place()?);
        }
        Ok(())
    }

    /// Where a transaction begins that is asked for now, or later.
    pub fn place(&self) -> Result<Place> {
        Ok(match self.log.mark()? {
            Some(mark) => Place::Log(mark),
            None => Place::NoLog(self.attendance.version()?),
        })
    }

    /// Comes right after it began, on a database with a log or without: where the snapshot stands, if it is to
    /// stand anywhere.
    ///
    /// Frames are in the log before a read transaction sees them. So what was read last before may not be in the
    /// snapshot, and is cut once more with what follows: then that cut leads on from the snapshot, too.
    pub fn pinned(&mut self, has_log: bool, now: Timestamp) -> Result<Option<u64>> {
        if !has_log && !matches!(self.state, State::Comparing(_)) {
            self.state = State::Unlogged;
        }
        match &mut self.state {
            State::Anchoring(_) => {
                // Used up, whatever becomes of the snapshot: two of them never stand at one position.
                self.position += 1;
                Ok(Some(self.position))
            }
            State::Following(following) => {
                let position = self.position;
                // If the log could not be read right before, nobody knows where the snapshot stands.
                let Some(pin) = following.pin.take() else { return Ok(None) };
                following.place = pin.settled();
                following.since = Since::default();
                self.read_to_the_end(now)?;
                self.cut()?;
                let State::Following(following) = &mut self.state else { return Ok(None) };
                let last = self.cuts.back().filter(|cut| cut.span.from() == position);
                let differing = last.map(|cut| cut.pages.keys().copied().collect()).unwrap_or_default();
                following.claimed = Some(Claimed { position, table: following.table.clone(), differing });
                Ok(Some(position))
            }
            State::Unknown | State::Unlogged | State::Comparing(_) | State::Behind(..) => Ok(None),
        }
    }

    /// The snapshot at `position` is stored, and `table` is of its pages.
    pub fn anchored(&mut self, position: u64, table: PageTable, now: Timestamp) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Unknown) {
            State::Anchoring(place) if position == self.position => self.follow(table, place, now),
            State::Following(mut following) => {
                let claimed = following.claimed.take().filter(|claimed| claimed.position == position);
                // Else nothing is known any more, whatever the log says.
                claimed.map_or(Ok(()), |claimed| claimed.require(&table))?;
                self.state = State::Following(following);
                Ok(())
            }
            other => {
                self.state = other;
                Ok(())
            }
        }
    }

    /// Begins at a state that is known from elsewhere: `table` is of the pages that a transaction saw which began
    /// at this place or later.
    pub fn resume(&mut self, table: PageTable, place: Place, now: Timestamp) -> Result<()> {
        self.follow(table, place, now)
    }

    /// Gives out the table to compare pages with, and where the comparison begins.
    pub fn begin_comparison(&mut self) -> Result<Option<(Arc<PageTable>, Place)>> {
        let State::Behind(table, why) = &self.state else { return Ok(None) };
        let (table, place) = (Arc::clone(table), self.place()?);
        self.state = State::Comparing(*why);
        Ok(Some((table, place)))
    }

    /// What the comparison found, in a transaction that began at this place or later.
    pub fn compared(&mut self, compared: Compared, place: Place, now: Timestamp) -> Result<()> {
        let Compared { before, pages, table } = compared;
        if !pages.is_empty() || before != table.checksum() {
            let cut = Cut {
                span: Span::new(self.position, self.position + 1)?,
                page_size: table.page_size(),
                pages,
                pages_after: table.pages(),
                before,
                after: table.checksum(),
                first_commit: now,
                last_commit: now,
            };
            self.position += 1;
            self.cuts.push_back(cut);
        }
        self.follow(table, place, now)
    }

    /// The comparison failed and is to be tried again with the same table; or without, so that only a snapshot
    /// helps.
    pub fn not_compared(&mut self, table: Option<Arc<PageTable>>) {
        if let State::Comparing(why) = self.state {
            self.state = table.map_or(State::Unknown, |table| State::Behind(table, why));
        }
    }

    /// Reads on at once: only what reaches beyond the transaction that the table is of may be cut.
    fn follow(&mut self, table: PageTable, place: Place, now: Timestamp) -> Result<()> {
        let since = Since::default();
        self.state = State::Following(Box::new(Following { table, place, pin: None, claimed: None, since }));
        self.read_to_the_end(now)?;
        if let State::Following(following) = &mut self.state {
            following.since.forget_shown(&following.table);
        }
        Ok(())
    }

    /// Reads what begins before the state of the table, and at least what any transaction sees that has begun. In
    /// the middle of it the pages are older than those of the table, so none may be cut before that end is reached.
    fn read_to_the_end(&mut self, now: Timestamp) -> Result<()> {
        let State::Following(following) = &mut self.state else { return Ok(()) };
        let read = following.read(&self.log, &self.attendance, now, u32::MAX, &mut Seen::default());
        match read {
            Ok(None) => Ok(()),
            Ok(Some(why)) => {
                self.fall_behind(why);
                Ok(())
            }
            Err(error) => {
                self.fall_behind(Why::Unread);
                Err(error)
            }
        }
    }

    fn fall_behind(&mut self, why: Why) {
        if let State::Following(following) = std::mem::replace(&mut self.state, State::Unknown) {
            self.state = State::Behind(Arc::new(following.table), why);
        }
    }
}

impl Claimed {
    /// `Internal` unless the pages of the snapshot are those that the log made: this is the proof of all deltas
    /// since the snapshot before.
    fn require(&self, snapshot: &PageTable) -> Result<()> {
        let both = 1..=snapshot.pages().min(self.table.pages());
        let differs = |number: &u32| {
            !self.differing.contains(number) && snapshot.hash(*number) != self.table.hash(*number)
        };
        match both.into_iter().find(differs) {
            None => Ok(()),
            Some(number) => Err(Error::new(
                ErrorKind::Internal,
                format!(
                    "what was captured is not what the snapshot shows; a new line begins with the next snapshot: \
                     position=`{}` page=`{number}`",
                    self.position
                ),
            )),
        }
    }
}

/// What a comparison found.
pub struct Compared {
    /// The checksum before.
    pub before: crate::delta::DatabaseChecksum,
    /// The pages that differ.
    pub pages: BTreeMap<u32, Box<[u8]>>,
    /// The hashes of all pages now.
    pub table: PageTable,
}

impl Following {
    /// Reads to where the log ended when this was called, or to its end, but no more often than that. Says why
    /// pages have to be compared, if they do.
    fn read(
        &mut self,
        log: &Log,
        attendance: &Attendance,
        now: Timestamp,
        reads_max: u32,
        seen: &mut Seen,
    ) -> Result<Option<Why>> {
        let end = log.end()?;
        let mark = match &mut self.place {
            Place::Log(mark) => mark,
            Place::NoLog(version) => {
                return Ok(match log.mark()? {
                    Some(_) => Some(Why::NewLog),
                    None if version.is_some() && attendance.version()? == *version => None,
                    None => Some(Why::Traceless),
                });
            }
        };
        for _ in 0..reads_max {
            let changes = match log.read(mark, &BOUNDS)? {
                Outcome::Lost(loss) => return Ok(Some(Why::Log(loss))),
                Outcome::Read(changes) => changes,
            };
            let page_count = self.since.page_count.unwrap_or(self.table.pages());
            if changes.unwritten(page_count).next().is_some() {
                return Ok(Some(Why::Unwritten));
            }
            seen.is_behind = changes.more && end.is_some_and(|end| end.is_behind(&changes.mark));
            let before = Some(mark.frames()).filter(|before| *before <= changes.mark.frames());
            seen.frames += changes.mark.frames() - before.unwrap_or(0);
            (seen.uncommitted, seen.log_bytes) = (changes.uncommitted, changes.mark.bytes());
            *mark = changes.mark.clone();
            self.since.take(changes, now);
            if self.since.pages.len() * self.table.page_size().bytes() > SINCE_BYTES_MAX {
                return Ok(Some(Why::TooMuch));
            }
            if !seen.is_behind {
                break;
            }
        }
        Ok(None)
    }

    fn cut(&mut self, position: u64) -> Result<Option<Cut>> {
        let since = std::mem::take(&mut self.since);
        let (Some(pages_after), Some((first_commit, last_commit))) = (since.page_count, since.seen) else {
            return Ok(None);
        };
        let before = self.table.checksum();
        self.table.resize(pages_after);
        for (number, page) in &since.pages {
            self.table.set(*number, page)?;
        }
        Ok(Some(Cut {
            span: Span::new(position, position + 1)?,
            page_size: self.table.page_size(),
            pages: since.pages,
            pages_after,
            before,
            after: self.table.checksum(),
            first_commit,
            last_commit,
        }))
    }
}

#[cfg(test)]
mod tests;
