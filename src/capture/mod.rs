//! The verb "capture": between snapshots, what the application commits is stored as deltas.
//!
//! The log is read beside the application, without a lock. What it changed since the last delta is cut into the
//! next, and stored under a key that only one writer can create: whoever finds somebody else's delta there has
//! been overtaken. A page that is not proven to be right is never stored: where the log does not continue,
//! pages are compared, and where nothing is known, a snapshot is taken.

mod attendance;
mod compare;
mod cut;
mod follower;
mod merging;
mod pieces;
mod rhythm;
mod since;
mod state;
mod why;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use tokio::sync::Notify;

pub use cut::{Cut, Writer};
pub use follower::Needs;
pub use merging::Merging;
pub use rhythm::Step;
pub use state::{Doing, Pace, State};
pub use why::Why;

use crate::backup::Follow;
use crate::catalog::{Catalog, LineEnd};
use crate::clock::{Clock, Timestamp};
use crate::delta::{PageTable, PutId};
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Level, Manifest, Span};
use crate::source::wal::Log;
use crate::source::{Fingerprint, Limits, Pins, Presence, Source};
use follower::Follower;
use rhythm::Rhythm;
use state::Tally;

/// The capture of one database.
pub struct Capture {
    path: PathBuf,
    catalog: Catalog,
    writer: Writer,
    clock: Clock,
    /// Never held while anything is waited for.
    follower: Mutex<Follower>,
    /// What is on its way to storage: a second try stores the same bytes.
    shipping: tokio::sync::Mutex<Option<Encoded>>,
    /// Told when something is to be shipped.
    due: Notify,
    reading: Mutex<Reading>,
    busy_timeout: Duration,
    merging: Merging,
    tally: Tally,
}

/// How the log is read.
struct Reading {
    rhythm: Rhythm,
    pins: Option<Pins>,
    /// Whether somebody will read again soon: else nothing is pinned.
    is_attended: bool,
    /// Whether the last pin failed, which is said once.
    is_unpinned: bool,
}

/// A log that is kept from being restarted is let go when it has this many bytes.
const LOG_BYTES_MAX: u64 = 32 << 20;

impl Reading {
    fn new() -> Reading {
        Reading { rhythm: Rhythm::new(LOG_BYTES_MAX), pins: None, is_attended: false, is_unpinned: false }
    }

    fn pin(&mut self, step: Step, path: &Path, busy_timeout: Duration) -> Result<()> {
        match (step, &mut self.pins) {
            (Step::Pin(_), Some(pins)) => pins.renew(),
            (Step::Pin(_), none) => none.insert(Pins::open(&Source::locate(path)?, busy_timeout)?).renew(),
            (Step::LetGo(_), Some(pins)) => pins.release(),
            (Step::LetGo(_), None) => Ok(()),
            (Step::Rest | Step::Read(_), pins) => {
                *pins = None;
                Ok(())
            }
        }
    }
}

struct Encoded {
    span: Span,
    bytes: Bytes,
    last_commit: Timestamp,
}

/// A delta that is stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stored {
    /// Where it leads.
    pub span: Span,
    /// Its size.
    pub bytes: usize,
    /// When the last commit in it was seen.
    pub last_commit: Timestamp,
}

impl Capture {
    /// Takes the line over: whoever wrote deltas before cannot go on.
    ///
    /// Goes on from the last state that storage knows if that is what the database still is; else a snapshot is
    /// needed, as [`Capture::needs`] says. `Fenced` if somebody of a later epoch went on.
    pub async fn begin(
        catalog: Catalog,
        source: &Source,
        writer: Writer,
        clock: Clock,
        newest: Option<&Manifest>,
        limits: Limits,
    ) -> Result<Capture> {
        let presence = be_present(source.clone(), &limits).await?;
        let busy_timeout = limits.busy_timeout;
        let mut follower = Follower::new(Log::of(source.path()), presence, 0);
        let place = follower.place()?;
        let reading = source.clone();
        let table = blocking("read the pages", move || compare::table(&reading, limits)).await?;
        let end = take_over(&catalog, newest, &writer, &clock).await?;
        let tally = Tally::new(end.is_some(), clock.now());
        follower.stand_at(end.map_or(0, |end| end.position + 1));
        if let (Some(end), Some(table)) = (end.filter(|end| end.is_reached), table)
            && (table.page_size(), table.pages(), table.checksum())
                == (end.page_size, end.pages, end.checksum)
        {
            follower.resume(table, place, clock.now())?;
        }
        tally.looked(follower.doing(), clock.now());
        let path = source.path().to_owned();
        let follower = Mutex::new(follower);
        let reading = Mutex::new(Reading::new());
        let merging = Merging::new(catalog.clone(), writer.clone(), clock.clone(), newest);
        Ok(Capture {
            path,
            catalog,
            writer,
            clock,
            follower,
            shipping: Default::default(),
            due: Notify::new(),
            reading,
            busy_timeout,
            merging,
            tally,
        })
    }

    /// What becomes of deltas with age.
    pub fn merging(&self) -> &Merging {
        &self.merging
    }

    /// Where the database is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What it needs before it can go on.
    pub fn needs(&self) -> Needs {
        self.follower().needs()
    }

    /// What it shows of itself.
    pub fn state(&self) -> State {
        self.tally.state(&self.follower())
    }

    /// The position of the last cut.
    pub fn position(&self) -> u64 {
        self.follower().position()
    }

    /// Reads what was committed, and keeps the log from being restarted before the next time, where that is to be
    /// feared. Says when the next time is. Blocks for as long as reading takes.
    pub fn read(&self) -> Result<Step> {
        if !self.is_awake()? {
            return Ok(Step::Rest);
        }
        let seen = {
            let mut follower = self.follower();
            let seen = follower.read(self.clock.now())?;
            self.tell(&follower);
            self.tally.read(seen.log_bytes);
            seen
        };
        let mut reading = self.reading();
        let step = reading.rhythm.next(seen);
        if reading.is_attended {
            self.pin(&mut reading, step);
        }
        Ok(step)
    }

    /// Holds nothing open any more, where that is worth it, until something is written; comes after [`Step::Rest`],
    /// when nothing was written for a while.
    pub fn rest(&self) -> Result<()> {
        let source = Source::locate(&self.path)?;
        self.follower().rest(&source);
        Ok(())
    }

    /// Whether we are connected, or somebody wrote since we left, so that now we are.
    fn is_awake(&self) -> Result<bool> {
        let Some(left) = self.follower().rested() else { return Ok(true) };
        let source = Source::locate(&self.path)?;
        if source.fingerprint().shows_no_write_since(&left) {
            return Ok(false);
        }
        self.wake(&source, &left)?;
        Ok(true)
    }

    fn wake(&self, source: &Source, left: &Fingerprint) -> Result<()> {
        let presence = Presence::begin(source, self.busy_timeout)?;
        let version = presence.version()?;
        let is_as_left = source.fingerprint().shows_no_commit_since(left);
        self.follower().wake(presence, Some(version).filter(|_| is_as_left));
        Ok(())
    }

    /// From now on it is read as often as [`Step`] says, until [`Capture::let_go`].
    pub fn attend(&self) {
        self.reading().is_attended = true;
    }

    /// Lets the log be restarted, for it is not read for a while.
    pub fn let_go(&self) {
        *self.reading() = Reading::new();
    }

    fn pin(&self, reading: &mut Reading, step: Step) {
        let pinned = reading.pin(step, &self.path, self.busy_timeout);
        let was_unpinned = std::mem::replace(&mut reading.is_unpinned, pinned.is_err());
        if let Err(error) = pinned
            && !was_unpinned
        {
            // There may be no log any more; and one that is restarted past us is seen, and costs a comparison.
            self.note("the log is not pinned", &error);
        }
    }

    fn reading(&self) -> MutexGuard<'_, Reading> {
        self.reading.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until there is something to ship.
    pub async fn due(&self) {
        self.due.notified().await;
    }

    fn tell(&self, follower: &Follower) {
        self.tally.looked(follower.doing(), self.clock.now());
        if follower.next_cut().is_some() || follower.waits_since().is_some() {
            self.due.notify_one();
        }
    }

    /// Whether everything that was read is stored.
    pub fn is_caught_up(&self) -> bool {
        let follower = self.follower();
        follower.is_following() && follower.waits_since().is_none() && follower.next_cut().is_none()
    }

    /// Cuts what was read, and stores what was cut: the last delta stored.
    ///
    /// After an error the same is right: what was not stored is, then.
    pub async fn ship(&self) -> Result<Option<Stored>> {
        let mut shipping = self.shipping.lock().await;
        let mut last = None;
        loop {
            if shipping.is_none() {
                let Some(encoded) = self.next()? else { return Ok(last) };
                *shipping = Some(encoded);
            }
            let Some(Encoded { span, bytes, last_commit }) = &*shipping else { return Ok(last) };
            self.catalog.put_delta(*span, bytes.clone()).await?;
            self.merging.note(*span, bytes.len(), *last_commit);
            let stored = Stored { span: *span, bytes: bytes.len(), last_commit: *last_commit };
            self.tally.stored(&stored);
            last = Some(stored);
            self.follower().stored();
            *shipping = None;
        }
    }

    fn next(&self) -> Result<Option<Encoded>> {
        let put_id = PutId::new(crate::random::u128()?);
        let mut follower = self.follower();
        if follower.next_cut().is_none() {
            follower.cut()?;
        }
        let Some(cut) = follower.next_cut() else { return Ok(None) };
        let bytes = cut.encode(&self.writer, put_id)?;
        Ok(Some(Encoded { span: cut.span, bytes, last_commit: cut.last_commit }))
    }

    /// Compares all pages with the last known state, if that is what is needed.
    pub async fn compare(&self, limits: Limits) -> Result<()> {
        let Needs::Comparison(why) = self.needs() else { return Ok(()) };
        // Whatever is compared is pinned until the log was read from there on.
        {
            let mut reading = self.reading();
            reading.is_attended = true;
            let step = reading.rhythm.pin();
            self.pin(&mut reading, step);
        }
        let renewed = be_present(Source::locate(&self.path)?, &limits).await?;
        let begun = {
            let mut follower = self.follower();
            follower.renew(renewed);
            follower.begin_comparison()?
        };
        let Some((table, place)) = begun else { return Ok(()) };
        self.tally.compares(why);
        let (before, path) = (Arc::clone(&table), self.path.clone());
        let compare = move || compare::compare(&Source::locate(&path)?, limits, before);
        match blocking("compare the pages", compare).await {
            Ok(compared) => self.follower().compared(compared, place, self.clock.now()),
            Err(error) => {
                // What is no small change any more is a snapshot's to hold.
                let table = (error.kind() != ErrorKind::Limit).then_some(table);
                self.follower().not_compared(table);
                Err(error)
            }
        }
    }

    fn follower(&self) -> MutexGuard<'_, Follower> {
        self.follower.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(&self, attempt: &str, failure: &Error) {
        let database = self.catalog.database();
        tracing::warn!(%database, "{attempt}: {}", failure.chain());
    }
}

async fn be_present(source: Source, limits: &Limits) -> Result<Presence> {
    let busy_timeout = limits.busy_timeout;
    blocking("connect to the database", move || Presence::begin(&source, busy_timeout)).await
}

/// An older writer may store what it has in hand while we take over, but not for ever.
const TAKE_OVERS: u32 = 8;

/// Ends the line for whoever wrote before, by an empty delta under our epoch. The state it ends at, if there is a
/// line; `Fenced` if somebody of a later epoch goes on with it.
async fn take_over(
    catalog: &Catalog,
    newest: Option<&Manifest>,
    writer: &Writer,
    clock: &Clock,
) -> Result<Option<LineEnd>> {
    let mut tries = 0..TAKE_OVERS;
    loop {
        let Some(end) = catalog.line_end(newest).await? else { return Ok(None) };
        if end.epoch > writer.epoch {
            return Err(Error::new(
                ErrorKind::Fenced,
                format!(
                    "somebody who started later captures already: position=`{}` epoch=`{}` own_epoch=`{}`",
                    end.position, end.epoch, writer.epoch
                ),
            ));
        }
        // Its time is that of the state it leads on from: what was committed since may not be in it.
        let shows = end.shows.unwrap_or_else(|| clock.now());
        let claim = Cut {
            span: Span::new(end.position, end.position + 1)?,
            page_size: end.page_size,
            pages: Default::default(),
            pages_after: end.pages,
            before: end.checksum,
            after: end.checksum,
            first_commit: shows,
            last_commit: shows,
        };
        let bytes = claim.encode(writer, PutId::new(crate::random::u128()?))?;
        match catalog.put_delta(claim.span, bytes).await {
            Err(error) if error.kind() == ErrorKind::Fenced && tries.next().is_some() => {
                let stands = catalog.delta_header(Level::CAPTURED, claim.span).await?;
                if stands.epoch >= writer.epoch {
                    return Err(error);
                }
            }
            claimed => return claimed.map(|()| Some(end)),
        }
    }
}

impl Follow for Capture {
    fn wants_anchor(&self) -> bool {
        self.needs() == Needs::Snapshot
    }

    fn before_pin(&self) {
        let rested = self.follower().rested();
        let woken = rested.map_or(Ok(()), |left| self.wake(&Source::locate(&self.path)?, &left));
        if let Err(error) = woken {
            // Then nobody knows what became of it, and it is compared, or begins anew.
            self.note("the database cannot be reached", &error);
        }
        if let Err(error) = self.follower().before_pin(self.clock.now()) {
            self.note("the log is not read", &error);
        }
    }

    fn pinned(&self, has_log: bool) -> Option<u64> {
        let mut follower = self.follower();
        let pinned = follower.pinned(has_log, self.clock.now());
        self.tell(&follower);
        pinned.unwrap_or_else(|error| {
            self.note("a snapshot has no place between deltas", &error);
            None
        })
    }

    fn lead_on(&self) -> BoxFuture<'_, Result<()>> {
        // Nothing leads to a snapshot that begins a line, so nothing has to lead on.
        let begins = self.follower().is_anchoring();
        Box::pin(async move { if begins { Ok(()) } else { self.ship().await.map(drop) } })
    }

    fn anchored(&self, position: u64, table: PageTable) {
        let mut follower = self.follower();
        if follower.needs() == Needs::Snapshot {
            self.tally.anchored();
        }
        if let Err(error) = follower.anchored(position, table, self.clock.now()) {
            self.note("a snapshot does not go on from the deltas", &error);
        }
        self.tell(&follower);
    }
}
