//! What capture does by itself: it reads when the log is written, and stores what was committed, at most once per
//! interval.

use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Notify, Semaphore};
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::capture::{Capture, Needs, Step};
use crate::config;
use crate::disk::{Watcher, blocking};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::memory;
use crate::worker::{Fleet, Handle, Job, JobRecord, Member, Reason, Report};

/// After the first write to a log that rested: a transaction is more than one write.
const GATHER: Duration = Duration::from_millis(5);

/// After this time in which nothing was written.
const REST_AFTER: Duration = Duration::from_secs(60);

/// After a failure, and again twice as long after the next.
const RETRY_PAUSE: Duration = Duration::from_secs(1);

/// The longest pause after a failure.
const RETRY_PAUSE_MAX: Duration = Duration::from_secs(60);

/// Databases whose deltas are merged at once: what becomes one is in memory until it is stored.
const MERGES_AT_ONCE: usize = 2;

/// The longest pause after deltas could not be merged, and between two snapshots that are asked for because of the
/// weight of deltas.
const MERGE_PAUSE_MAX: Duration = Duration::from_secs(900);

/// Captures every database, if that is wanted.
pub(super) fn start(
    fleet: &Fleet,
    capture: &config::Capture,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<()> {
    if !capture.on {
        return Ok(());
    }
    let watcher = Watcher::new().context(ErrorKind::Internal, || "watch files".to_owned())?;
    let merges = Arc::new(Semaphore::new(MERGES_AT_ONCE));
    for index in 0..fleet.members().len() {
        let (fleet, watcher, stop, interval) =
            (fleet.clone(), watcher.clone(), stop.clone(), capture.interval);
        let merges = Arc::clone(&merges);
        tasks.spawn(async move {
            tokio::select! {
                () = attend(&fleet.members()[index], &watcher, &merges, interval) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    Ok(())
}

/// Captures one database until it is dropped.
async fn attend(member: &Member, watcher: &Watcher, merges: &Semaphore, interval: Duration) {
    let handle = member.opened_handle().await;
    let written = watcher.watch(&member.database.path, &["", "-wal"]);
    let mut pause = RETRY_PAUSE;
    loop {
        let ended = match handle.capture() {
            Some(capture) if capture.needs() == Needs::Nothing => {
                tokio::select! {
                    ended = follow(Arc::clone(capture), &written, interval) => ended,
                    never = keep_merging(capture, &handle, merges) => match never {},
                }
            }
            _ => catch_up(&handle).await,
        };
        match ended {
            Ok(()) => pause = RETRY_PAUSE,
            Err(error) if error.kind() == ErrorKind::Cancelled => return,
            // A branch captures nothing, until it is one no more.
            Err(_) if handle.status().fork.is_some() => {
                if handle.watch().wait_for(|status| status.fork.is_none()).await.is_err() {
                    return;
                }
            }
            Err(error) => {
                // As long as nobody reads, nothing is kept from being restarted.
                handle.capture().iter().for_each(|capture| capture.let_go());
                tracing::warn!(
                    database = %member.database.name, wait_ms = pause.as_millis() as u64,
                    "what was committed to {} is not captured, trying again: {}",
                    member.database.name, error.chain()
                );
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(RETRY_PAUSE_MAX);
                // Whether somebody else goes on there, the worker finds out, and says so.
                if catch_up(&handle).await.is_ok() {
                    pause = RETRY_PAUSE;
                }
            }
        }
    }
}

async fn catch_up(handle: &Handle) -> Result<()> {
    let ask = async |job| handle.run(job, Reason::FollowUp).await.and_then(JobRecord::report);
    ask(Job::Capture).await?;
    match handle.capture().map(|capture| capture.needs()) {
        Some(Needs::Snapshot) => {
            handle.capture().iter().for_each(|capture| capture.let_go());
            match ask(Job::Backup { accept_shrunken: false }).await? {
                Report::Spooled(spooled) => Err(spooled.outage.into()),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Reads and stores, until more is needed than that.
async fn follow(capture: Arc<Capture>, written: &Notify, interval: Duration) -> Result<()> {
    tokio::select! {
        ended = keep_reading(&capture, written) => ended,
        error = keep_shipping(&capture, interval) => Err(error),
    }
}

/// Reads as often as the log is written, so that it is not restarted past us.
async fn keep_reading(capture: &Arc<Capture>, written: &Notify) -> Result<()> {
    capture.attend();
    loop {
        let reader = Arc::clone(capture);
        let step = blocking("read the log", move || reader.read()).await?;
        if capture.needs() != Needs::Nothing {
            return Ok(());
        }
        let pause = match step {
            Step::Rest => {
                if timeout(REST_AFTER, written.notified()).await.is_err() {
                    let resting = Arc::clone(capture);
                    blocking("leave the database", move || resting.rest()).await?;
                    // By then others have left, too: what all of them held is in few pieces.
                    if timeout(REST_AFTER, written.notified()).await.is_err() {
                        memory::give_back_all();
                        written.notified().await;
                    }
                }
                GATHER
            }
            Step::Read(pause) | Step::Pin(pause) | Step::LetGo(pause) => pause,
        };
        tokio::time::sleep(pause).await;
    }
}

/// Stores the first commit after a pause at once, and then at most once per interval.
async fn keep_shipping(capture: &Capture, interval: Duration) -> Error {
    loop {
        let not_before = Instant::now() + interval;
        // Boxed, here and for merging, so that a database of which nothing is due takes little memory.
        match Box::pin(capture.ship()).await {
            Ok(Some(stored)) => tracing::debug!(
                span = %stored.span, bytes = stored.bytes, "stored a delta of {} bytes", stored.bytes
            ),
            Ok(None) => {}
            Err(error) => return error,
        }
        capture.due().await;
        tokio::time::sleep_until(not_before).await;
    }
}

/// Merges deltas with age, and asks for a snapshot when they outweigh the one before.
async fn keep_merging(capture: &Capture, handle: &Handle, merges: &Semaphore) -> Infallible {
    let merging = capture.merging();
    let mut pause = RETRY_PAUSE;
    let mut asked: Option<Instant> = None;
    loop {
        merging.due().await;
        // Closed never.
        let turn = merges.acquire().await;
        let tended = Box::pin(merging.tend()).await;
        drop(turn);
        match tended {
            Ok(()) => pause = RETRY_PAUSE,
            Err(error) => {
                let database = handle.catalog().database();
                tracing::warn!(%database, "deltas of {database} are not merged, trying again: {}", error.chain());
                tokio::time::sleep(pause).await;
                pause = (pause * 2).min(MERGE_PAUSE_MAX);
            }
        }
        let is_early = asked.is_some_and(|asked| asked.elapsed() < MERGE_PAUSE_MAX);
        if merging.outweighs_snapshot() && !is_early {
            asked = Some(Instant::now());
            // Refused only while stopping, or while many wait: then it is asked for again.
            let _ = handle.submit(Job::Backup { accept_shrunken: false }, Reason::FollowUp).await;
        }
    }
}
