//! Capture as a job: what it needs before it can go on beside the other jobs.

use std::sync::Arc;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::job::Report;
use super::perform::Perform;
use crate::backup::Follow;
use crate::capture::{Capture, Needs, Writer};
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};
use crate::source::Source;

/// Up to where deltas are stored.
#[derive(Debug, Clone, Serialize)]
pub struct Captured {
    /// The position.
    pub position: u64,
    /// When the last commit in a delta that this job stored was seen.
    pub shows: Option<Timestamp>,
}

/// A database that changes while its pages are compared is compared again, but not for ever.
const TRIES: u32 = 3;

impl Perform {
    /// The capture, where it has begun.
    pub(super) fn follower(&self) -> Option<Arc<dyn Follow>> {
        if self.standing().fork.is_some() {
            return None;
        }
        self.capture.get().map(|capture| Arc::clone(capture) as Arc<dyn Follow>)
    }

    /// Begins to capture, or brings it to where it can go on, and stores what was committed.
    ///
    /// A snapshot is a job of its own: whoever asked looks at [`Capture::needs`].
    pub(super) async fn catch_up(&self, cancel: &CancellationToken) -> Result<Report> {
        let standing = self.standing();
        if let Some(fork) = standing.fork {
            return Err(Error::new(ErrorKind::Conflict, format!("capture nothing, for {fork}")));
        }
        let capture = self.capture.get_or_try_init(|| self.begin_capture(standing.epoch, cancel)).await?;
        if capture.needs() == Needs::Nothing {
            return self.flush(capture).await.map(Report::Capture);
        }
        // What was cut before is stored before anything is cut upon it, so that little waits in memory. What the
        // comparison finds is stored beside the reading, which goes on at once.
        capture.ship().await?;
        for _ in 0..TRIES {
            match capture.needs() {
                Needs::Nothing => break,
                Needs::Comparison(why) => {
                    let database = self.database();
                    tracing::info!(%database, "comparing all pages of {database}: {why}");
                    if let Err(error) = capture.compare(self.settings.limits(cancel)).await
                        && error.kind() != ErrorKind::Limit
                    {
                        return Err(error);
                    }
                }
                Needs::Snapshot => break,
            }
        }
        Ok(Report::Capture(Captured { position: capture.position(), shows: None }))
    }

    /// Stores what was committed, if capture can go on without more work.
    pub(super) async fn flush(&self, capture: &Capture) -> Result<Captured> {
        capture.read()?;
        let stored = capture.ship().await?;
        Ok(Captured { position: capture.position(), shows: stored.map(|stored| stored.last_commit) })
    }

    /// The last delta before a stop, after which nobody has to wait for us; `None` if it takes a snapshot.
    pub(super) async fn last_delta(&self) -> Option<Captured> {
        let capture = self.capture.get()?;
        let standing = self.standing();
        let captured = match self.flush(capture).await {
            Ok(captured) if standing.fork.is_none() && capture.is_caught_up() => captured,
            Ok(_) => return None,
            Err(error) => {
                let database = self.database();
                tracing::warn!(%database, "the last delta is not stored: {}", error.chain());
                return None;
            }
        };
        self.release(standing.epoch).await;
        Some(captured)
    }

    async fn begin_capture(&self, epoch: u64, cancel: &CancellationToken) -> Result<Arc<Capture>> {
        let identity = self.catalog.ensure_identity(self.clock.now(), crate::random::u128()?).await?;
        let newest = self.catalog.newest().await?;
        let source = Source::locate(&self.database.path)?;
        let writer =
            Writer { database_id: identity.database_id, epoch, zstd_level: self.settings.zstd_level };
        let begun = Capture::begin(
            self.catalog.clone(),
            &source,
            writer,
            self.clock.clone(),
            newest.as_ref(),
            self.settings.limits(cancel),
        );
        begun.await.map(Arc::new)
    }
}
