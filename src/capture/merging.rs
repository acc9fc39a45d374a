//! What was captured grows old: small deltas become larger ones, and go once those are proven.
//!
//! What was shipped is remembered, so that nothing is listed to find out what to merge; without anything shipped
//! nothing is asked of storage at all. A crash at any moment leaves deltas that overlap, which is no harm.

use std::collections::BTreeSet;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use jiff::SignedDuration;
use tokio::sync::Notify;

use super::Writer;
use super::pieces::Pieces;
use crate::catalog::{Catalog, StoredDelta};
use crate::clock::{Clock, Timestamp};
use crate::delta::ageing::{self, Aged, Merge, RULES, Removal};
use crate::delta::{Decoder, Header, PutId, Trailer, merge};
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::lineage;
use crate::snapshot::{Level, Manifest, Span};

/// How often is looked for something to merge, while anything is written.
pub const RHYTHM: Duration = Duration::from_secs(30);

/// Between two looks for what can go, each of which lists all deltas.
const REMOVAL_PAUSE: SignedDuration = SignedDuration::from_hours(1);

/// Where deleting is not allowed, it is tried again after this time.
const REFUSED_PAUSE: SignedDuration = SignedDuration::from_hours(24);

/// Requests under way at once.
const AT_ONCE: usize = 8;

/// Deltas need not weigh less than a snapshot before they have this many bytes: reading them takes no time.
const WEIGHT_MIN: u64 = 16 << 20;

/// The merging of one database's deltas.
pub struct Merging {
    catalog: Catalog,
    writer: Writer,
    clock: Clock,
    state: Mutex<State>,
    stored: Notify,
}

#[derive(Default)]
struct State {
    /// Stored since the last look, which forgets them at its end only.
    fresh: Vec<Aged>,
    /// What is known of storage. Without it, it is listed when there is something fresh.
    line: Option<Line>,
    /// The newest snapshot from which deltas lead on.
    base: Option<Base>,
}

#[derive(Clone, Copy)]
struct Base {
    position: u64,
    bytes: u64,
}

/// What is known of the deltas in storage.
#[derive(Default)]
struct Line {
    /// Those that something may still be merged with, and those since the newest snapshot.
    deltas: Vec<Aged>,
    /// When to look for what can go.
    removals_due: Option<Timestamp>,
    /// Merged ones that were read back.
    proven: BTreeSet<(Level, Span)>,
    /// What does not become one delta, whatever is tried.
    barred: BTreeSet<(Level, Span)>,
}

impl Merging {
    pub(super) fn new(catalog: Catalog, writer: Writer, clock: Clock, newest: Option<&Manifest>) -> Merging {
        let state = Mutex::new(State { base: newest.and_then(Base::of), ..State::default() });
        Merging { catalog, writer, clock, state, stored: Notify::new() }
    }

    /// Takes note of a delta that capture stored.
    pub(super) fn note(&self, span: Span, bytes: usize, last_commit: Timestamp) {
        let delta = Aged { level: Level::CAPTURED, span, bytes: bytes as u64, at: last_commit };
        self.state().fresh.push(delta);
        self.stored.notify_one();
    }

    /// Takes note of a snapshot that is stored.
    pub fn rests_on(&self, manifest: &Manifest) {
        if let Some(base) = Base::of(manifest) {
            self.state().base = Some(base);
        }
    }

    /// Whether restoring reads more of deltas than of the snapshot before them. Then a new one is due.
    pub fn outweighs_snapshot(&self) -> bool {
        let state = self.state();
        let (Some(line), Some(base)) = (&state.line, state.base) else { return false };
        let since = line.deltas.iter().filter(|delta| delta.span.to() > base.position);
        since.map(|delta| delta.bytes).sum::<u64>() > base.bytes.max(WEIGHT_MIN)
    }

    /// Waits until [`Merging::tend`] may have something to do. As long as nothing was written, for ever.
    pub async fn due(&self) {
        loop {
            match self.rest() {
                None => self.stored.notified().await,
                Some(rest) if rest <= RHYTHM => return tokio::time::sleep(rest).await,
                Some(rest) => tokio::select! {
                    () = tokio::time::sleep(rest) => return,
                    () = self.stored.notified() => {}
                },
            }
        }
    }

    fn rest(&self) -> Option<Duration> {
        let (state, now) = (self.state(), self.clock.now());
        let line = state.line.as_ref();
        let is_open = |line: &Line| line.deltas.iter().any(|delta| ageing::is_open(delta, now));
        if !state.fresh.is_empty() || line.is_some_and(is_open) {
            return Some(RHYTHM);
        }
        let rest = line?.removals_due?.duration_since(now);
        Some(Duration::try_from(rest).unwrap_or_default())
    }

    /// Merges what is old enough, and removes what was merged long enough ago. One at a time.
    ///
    /// After an error, what is known is forgotten, and listed the next time. `Fenced` and `Conflict` if the head
    /// is not ours.
    pub async fn tend(&self) -> Result<()> {
        let tended = self.tend_once().await;
        if tended.is_err() {
            // All of them will be listed: that there is something is enough.
            self.state().fresh.truncate(1);
        }
        tended
    }

    async fn tend_once(&self) -> Result<()> {
        let now = self.clock.now();
        let (fresh, line) = {
            let mut state = self.state();
            (state.fresh.clone(), state.line.take())
        };
        let mut line = match line {
            Some(line) => line,
            None => self.look(now).await?,
        };
        // Of what was listed, too, this has the better time.
        line.deltas = ageing::cover(&[&fresh[..], &line.deltas].concat());
        self.merge_due(&mut line, now).await?;
        if line.removals_due.is_some_and(|due| due <= now) && !self.remove_due(&mut line, now).await? {
            return Ok(());
        }
        let mut state = self.state();
        let position = state.base.map_or(u64::MAX, |base| base.position);
        line.deltas.retain(|delta| ageing::is_open(delta, now) || delta.span.to() > position);
        state.fresh.drain(..fresh.len());
        state.line = Some(line);
        Ok(())
    }

    /// Finds out what is in storage: one listing, and the header of what may be merged again.
    async fn look(&self, now: Timestamp) -> Result<Line> {
        let stored: Vec<Aged> = self.catalog.deltas().await?.into_iter().map(aged).collect();
        let dated = stream::iter(ageing::cover(&stored)).map(|delta| async move {
            // A captured one was stored when its last commit was seen; a merged one was not.
            let is_dated = delta.level == Level::CAPTURED || delta.level == Level::MAX;
            match is_dated {
                true => Ok(delta),
                false => {
                    let header = self.catalog.delta_header(delta.level, delta.span).await?;
                    Ok::<_, Error>(Aged { at: header.last_commit, ..delta })
                }
            }
        });
        let deltas = dated.buffered(AT_ONCE).try_collect().await?;
        Ok(Line { deltas, removals_due: Some(now), ..Line::default() })
    }

    async fn merge_due(&self, line: &mut Line, now: Timestamp) -> Result<()> {
        for rule in &RULES {
            for due in ageing::merges(&line.deltas, rule, now) {
                let place = (due.level, due.span);
                if line.barred.contains(&place) {
                    continue;
                }
                match self.merge(&due).await {
                    Ok(merged) => {
                        line.deltas.push(merged);
                        line.proven.insert(place);
                        let due = now.checked_add(RULES[0].parts_kept).unwrap_or(now);
                        line.removals_due = Some(line.removals_due.map_or(due, |known| known.min(due)));
                    }
                    // What does not go on from one to the other stays as it is: a restore says why.
                    Err(error) if error.kind() == ErrorKind::Corrupt => {
                        line.barred.insert(place);
                        self.warn(&format!("deltas are not merged: span=`{}`", due.span), &error);
                    }
                    Err(error) => return Err(error),
                }
            }
            line.deltas = ageing::cover(&line.deltas);
        }
        Ok(())
    }

    /// Makes one delta of several, and proves it.
    async fn merge(&self, due: &Merge) -> Result<Aged> {
        self.require_head().await?;
        let pieces = |part: &Aged| Pieces::begin(&self.catalog, part.level, part.span, part.bytes);
        let parts: Vec<Pieces> =
            stream::iter(due.parts.iter().map(pieces)).buffered(AT_ONCE).try_collect().await?;
        let (put_id, zstd_level) = (PutId::new(crate::random::u128()?), self.writer.zstd_level);
        let work = move || {
            let begin = |part: Pieces| {
                let key = part.key().clone();
                Decoder::new(part, &key)
            };
            let run: Vec<Decoder<Pieces>> = parts.into_iter().map(begin).collect::<Result<_>>()?;
            merge(run, put_id, zstd_level, Vec::new())
        };
        let merged = blocking("merge deltas", work).await?;
        let bytes = merged.to.len() as u64;
        // What stands there already was made of the same parts: whether it is right is seen when it is read.
        match self.catalog.create_merged(due.level, due.span, merged.to.into()).await {
            Err(error) if error.kind() == ErrorKind::Conflict => {}
            created => created?,
        }
        match self.catalog.delta(due.level, due.span).await {
            Ok(stored) if is_same(&stored, &(merged.header, merged.trailer)) => {}
            Err(error) if error.kind() != ErrorKind::Corrupt => return Err(error),
            not_proven => {
                // All that went into it was read just now: it is there.
                self.require_head().await?;
                self.catalog.remove_delta(due.level, due.span).await?;
                let message = format!("a merged delta is not what was stored: span=`{}`", due.span);
                let error = Error::new(ErrorKind::Corrupt, message);
                return Err(not_proven.err().map_or(error, |cause| cause));
            }
        }
        tracing::debug!(
            database = %self.catalog.database(), level = %due.level, span = %due.span, parts = due.parts.len(), bytes,
            "merged {} deltas into one of {bytes} bytes", due.parts.len()
        );
        let at = due.parts.last().map_or(Timestamp::MIN, |part| part.at);
        Ok(Aged { level: due.level, span: due.span, bytes, at })
    }

    /// Whether what is known is still so: what is damaged went, and is to be merged again.
    async fn remove_due(&self, line: &mut Line, now: Timestamp) -> Result<bool> {
        let mut is_known = true;
        let stored: Vec<Aged> = self.catalog.deltas().await?.into_iter().map(aged).collect();
        let (removals, next) = ageing::removals(&stored, now);
        let pause = |pause| now.checked_add(pause).unwrap_or(Timestamp::MAX);
        for Removal { merged, parts } in removals {
            self.require_head().await?;
            let place = (merged.level, merged.span);
            if !line.proven.contains(&place) && !self.is_proven(&merged).await? {
                if ageing::is_made_again(&stored, &merged) {
                    self.catalog.remove_delta(merged.level, merged.span).await?;
                    is_known = false;
                }
                continue;
            }
            let remove = |part: Aged| self.catalog.remove_delta(part.level, part.span);
            let removed = stream::iter(parts.into_iter().map(remove)).buffer_unordered(AT_ONCE);
            match removed.try_collect::<()>().await {
                Err(error) if error.kind() == ErrorKind::Denied => {
                    self.warn("deltas that were merged are not removed", &error);
                    line.removals_due = Some(pause(REFUSED_PAUSE));
                    return Ok(is_known);
                }
                removed => removed?,
            }
            line.proven.remove(&place);
        }
        line.removals_due = next.map(|next| next.max(pause(REMOVAL_PAUSE)));
        Ok(is_known)
    }

    /// Whether a delta that was merged by an earlier process is whole.
    async fn is_proven(&self, merged: &Aged) -> Result<bool> {
        match self.catalog.delta(merged.level, merged.span).await {
            Ok((header, _)) => Ok(header.database_id == self.writer.database_id),
            Err(error) if error.kind() == ErrorKind::Corrupt => {
                self.warn("a merged delta is damaged, and what is left of its parts stays", &error);
                Ok(false)
            }
            Err(error) => Err(error),
        }
    }

    async fn require_head(&self) -> Result<()> {
        let head = self.catalog.head().await?.map(|(head, _)| head);
        lineage::may_delete(head.as_ref(), self.writer.epoch)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn warn(&self, what: &str, error: &Error) {
        let database = self.catalog.database();
        tracing::warn!(%database, "{what}: {}", error.chain());
    }
}

impl Base {
    fn of(manifest: &Manifest) -> Option<Base> {
        Some(Base { position: manifest.anchor?.position, bytes: manifest.stored.bytes })
    }
}

fn aged(stored: StoredDelta) -> Aged {
    Aged { level: stored.level, span: stored.span, bytes: stored.bytes, at: stored.stored_at }
}

/// But for who wrote it.
fn is_same(stored: &(Header, Trailer), merged: &(Header, Trailer)) -> bool {
    let of_other = Header { put_id: merged.0.put_id, ..stored.0.clone() };
    (of_other, stored.1) == *merged
}

#[cfg(test)]
mod tests;
