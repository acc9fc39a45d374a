//! Following one database from a known state: its log is read, and what it changed is cut into deltas.
//!
//! The state of the last cut is known as a table of page hashes. What is not proven to continue it is compared
//! with it, page by page; without a table only a new snapshot helps. Nothing here waits or stores anything.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::fmt;
use std::sync::Arc;

use super::cut::Cut;
use super::rhythm::Seen;
use crate::clock::Timestamp;
use crate::delta::PageTable;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Span;
use crate::source::wal::{Bounds, Changes, Log, Loss, Mark, Outcome};

/// What is known of one database, and what of it waits to be stored.
pub struct Follower {
    log: Log,
    /// The number of the last state that was cut, or at which a snapshot stands.
    position: u64,
    state: State,
    /// What was cut and is not known to be stored, in order.
    cuts: VecDeque<Cut>,
}

enum State {
    /// Nothing is known: a snapshot is needed.
    Unknown,
    /// A snapshot is taken, or was not stored; what it does not show is behind the mark.
    Anchoring(Option<Mark>),
    /// The table is that of the state at the position, and all that changed since is known.
    Following(Box<Following>),
    /// The table is that of the state at the position, and what changed since is not known.
    Behind(Arc<PageTable>, Why),
    /// The pages are being compared.
    Comparing(Why),
}

struct Following {
    table: PageTable,
    /// Up to where the log was read; none if there was no log.
    mark: Option<Mark>,
    /// Where the mark stood before a transaction was pinned, until the cut after it.
    pin: Option<Mark>,
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

/// What whole transactions changed since the last cut.
#[derive(Default)]
struct Since {
    pages: BTreeMap<u32, Box<[u8]>>,
    page_count: Option<u32>,
    seen: Option<(Timestamp, Timestamp)>,
}

/// Why pages have to be compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Why {
    /// The log is not proven to continue.
    Log(Loss),
    /// The database got pages that were not written.
    Unwritten,
    /// More changed than is kept in memory.
    TooMuch,
    /// There was no log before.
    NewLog,
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::Log(loss) => loss.fmt(f),
            Why::Unwritten => f.write_str("the database got pages that were never written"),
            Why::TooMuch => f.write_str("more changed than is kept in memory"),
            Why::NewLog => f.write_str("there is a log where none was"),
        }
    }
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

/// One read of the log.
const BOUNDS: Bounds = Bounds { bytes_max: SINCE_BYTES_MAX, frames_max: 8 << 10 };

impl Follower {
    /// Nothing is known but the last position that was ever used.
    pub fn new(log: Log, position: u64) -> Follower {
        Follower { log, position, state: State::Unknown, cuts: VecDeque::new() }
    }

    /// What it needs before it can go on.
    pub fn needs(&self) -> Needs {
        match &self.state {
            State::Unknown | State::Anchoring(_) => Needs::Snapshot,
            State::Behind(_, why) => Needs::Comparison(*why),
            State::Following(_) | State::Comparing(_) => Needs::Nothing,
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
        let State::Following(following) = &mut self.state else { return Ok(Seen::default()) };
        let mut seen = Seen::default();
        if let Some(why) = following.read(&self.log, now, &mut seen)? {
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
                self.cut()?;
                if let State::Following(following) = &mut self.state {
                    following.pin.clone_from(&following.mark);
                }
            }
            State::Unknown | State::Anchoring(_) | State::Comparing(_) | State::Behind(..) => {}
        }
        if !matches!(self.state, State::Following(_) | State::Comparing(_)) {
            self.state = State::Anchoring(self.log.mark()?);
        }
        Ok(())
    }

    /// Comes right after it began: where the snapshot stands, if it is to stand anywhere.
    ///
    /// Frames are in the log before a read transaction sees them. So what was read last before may not be in the
    /// snapshot, and is cut once more with what follows: then that cut leads on from the snapshot, too.
    pub fn pinned(&mut self, now: Timestamp) -> Result<Option<u64>> {
        match &mut self.state {
            State::Anchoring(_) => {
                // Used up, whatever becomes of the snapshot: two of them never stand at one position.
                self.position += 1;
                Ok(Some(self.position))
            }
            State::Following(following) => {
                let position = self.position;
                following.mark = following.pin.take().map(|mark| mark.settled());
                following.since = Since::default();
                self.read(now)?;
                self.cut()?;
                let State::Following(following) = &mut self.state else { return Ok(None) };
                let last = self.cuts.back().filter(|cut| cut.span.from() == position);
                let differing = last.map(|cut| cut.pages.keys().copied().collect()).unwrap_or_default();
                following.claimed = Some(Claimed { position, table: following.table.clone(), differing });
                Ok(Some(position))
            }
            State::Unknown | State::Comparing(_) | State::Behind(..) => Ok(None),
        }
    }

    /// The snapshot at `position` is stored, and `table` is of its pages.
    pub fn anchored(&mut self, position: u64, table: PageTable, now: Timestamp) -> Result<()> {
        match std::mem::replace(&mut self.state, State::Unknown) {
            State::Anchoring(mark) if position == self.position => self.follow(table, mark, now),
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
    /// after `mark` was taken.
    pub fn resume(&mut self, table: PageTable, mark: Option<Mark>, now: Timestamp) -> Result<()> {
        self.follow(table, mark, now)
    }

    /// Gives out the table to compare pages with, and where the log stands.
    pub fn begin_comparison(&mut self) -> Result<Option<(Arc<PageTable>, Option<Mark>)>> {
        let State::Behind(table, why) = &self.state else { return Ok(None) };
        let (table, mark) = (Arc::clone(table), self.log.mark()?);
        self.state = State::Comparing(*why);
        Ok(Some((table, mark)))
    }

    /// What the comparison found, in a transaction that began after the mark was taken.
    pub fn compared(&mut self, compared: Compared, mark: Option<Mark>, now: Timestamp) -> Result<()> {
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
        self.follow(table, mark, now)
    }

    /// The comparison failed and is to be tried again with the same table; or without, so that only a snapshot
    /// helps.
    pub fn not_compared(&mut self, table: Option<Arc<PageTable>>) {
        if let State::Comparing(why) = self.state {
            self.state = table.map_or(State::Unknown, |table| State::Behind(table, why));
        }
    }

    /// Reads on at once: only what reaches beyond the transaction that the table is of may be cut.
    fn follow(&mut self, table: PageTable, mark: Option<Mark>, now: Timestamp) -> Result<()> {
        let since = Since::default();
        self.state = State::Following(Box::new(Following { table, mark, pin: None, claimed: None, since }));
        self.read(now).map(drop)
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
    /// Reads to the end of the log. Says why pages have to be compared, if they do.
    fn read(&mut self, log: &Log, now: Timestamp, seen: &mut Seen) -> Result<Option<Why>> {
        let Some(mark) = &mut self.mark else {
            return Ok(log.mark()?.map(|_| Why::NewLog));
        };
        loop {
            let changes = match log.read(mark, &BOUNDS)? {
                Outcome::Lost(loss) => return Ok(Some(Why::Log(loss))),
                Outcome::Read(changes) => changes,
            };
            let page_count = self.since.page_count.unwrap_or(self.table.pages());
            if changes.unwritten(page_count).next().is_some() {
                return Ok(Some(Why::Unwritten));
            }
            let has_more = changes.more;
            let before = Some(mark.frames()).filter(|before| *before <= changes.mark.frames());
            seen.frames += changes.mark.frames() - before.unwrap_or(0);
            (seen.uncommitted, seen.log_bytes) = (changes.uncommitted, changes.mark.bytes());
            *mark = changes.mark.clone();
            self.since.take(changes, now);
            if self.since.pages.len() * self.table.page_size().bytes() > SINCE_BYTES_MAX {
                return Ok(Some(Why::TooMuch));
            }
            if !has_more {
                return Ok(None);
            }
        }
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

impl Since {
    fn take(&mut self, changes: Changes, now: Timestamp) {
        let Some(page_count) = changes.page_count else { return };
        self.pages.extend(changes.pages);
        self.pages.split_off(&page_count.saturating_add(1));
        self.page_count = Some(page_count);
        let first = self.seen.map_or(now, |(first, _)| first);
        self.seen = Some((first, now));
    }
}
