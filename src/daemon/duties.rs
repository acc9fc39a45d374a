//! What the daemon asks of its workers by itself: on schedule, at the start, and after a backup.

use std::sync::Arc;
use std::time::Duration;

use futures::stream::{FuturesUnordered, StreamExt};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::opening::Opener;
use crate::clock::{Clock, Timestamp};
use crate::config::Config;
use crate::error::{Error, ErrorKind, Result};
use crate::schedule::{OnDue, Schedule, Trigger};
use crate::setup::Schedules;
use crate::snapshot::SnapshotId;
use crate::spool::{self, State};
use crate::verify::{self, Rhythm};
use crate::worker::{Fleet, Freshness, Handle, Job, JobRecord, Member, Reason, Status, VerifyTarget};

/// Missed schedules after which backups count as stale, unless `verify.max_age` says otherwise.
const MISSED_MAX: u32 = 3;

/// Missed drills after which the proof counts as stale: one, and half a period for the drill itself.
const PROOF_PERIODS: (u32, u32) = (3, 2);

/// After a backup the newest snapshot is proven, but no more often than this: reading back costs
/// as much as writing.
const FOLLOW_UP_PAUSE: Duration = Duration::from_secs(3600);

/// How far behind storage may be with deltas: this, or so many intervals if that is more.
const LAG_MIN: Duration = Duration::from_secs(60);
const LAG_INTERVALS: u32 = 10;

/// How old things may become, from the schedules.
pub(super) fn freshness(config: &Config, schedules: &Schedules, now: Timestamp) -> Freshness {
    let period = |schedule: &Option<Schedule>| schedule.as_ref().map(|schedule| schedule.period(now));
    let (times, halves) = PROOF_PERIODS;
    Freshness {
        backup_age_max: backup_age_max(config, schedules.backup.as_ref(), now),
        uncaptured_age_max: backup_age_max(config, schedules.uncaptured.as_ref(), now),
        proof_age_max: period(&schedules.verify).map(|period| period * times / halves),
        capture_lag_max: config.capture.on.then(|| LAG_MIN.max(config.capture.interval * LAG_INTERVALS)),
    }
}

/// How old the newest snapshot may become.
pub(crate) fn backup_age_max(config: &Config, backup: Option<&Schedule>, now: Timestamp) -> Option<Duration> {
    config.verify.max_age.or(backup.map(|schedule| schedule.period(now) * MISSED_MAX))
}

/// Starts the schedules, and for each database what follows from its state.
pub(super) async fn start(
    fleet: &Fleet,
    schedules: &Schedules,
    opener: &Arc<Opener>,
    tasks: &TaskTracker,
    stop: &CancellationToken,
) -> Result<Trigger> {
    let (clock, within) = (&opener.clock, opener.config.verify.within);
    let captures = opener.config.capture.on;
    let period = |schedule: &Option<Schedule>| schedule.as_ref().map(|schedule| schedule.period(clock.now()));
    let periods = Periods { captured: period(&schedules.backup), uncaptured: period(&schedules.uncaptured) };
    for index in 0..fleet.members().len() {
        let (fleet, clock, stop) = (fleet.clone(), clock.clone(), stop.clone());
        tasks.spawn(async move {
            tokio::select! {
                () = attend(&fleet, index, periods, captures, &clock) => {}
                () = have_shipped(&fleet.members()[index]) => {}
                () = stop.cancelled() => {}
            }
        });
    }
    let drills = |schedule: &Schedule| {
        let rhythm = Rhythm { period: schedule.period(clock.now()), within };
        drill_all(fleet, rhythm)
    };
    let backup = Job::Backup { accept_shrunken: false };
    let due = [
        (&schedules.backup, ask(fleet, opener, backup.clone(), Whose::Captured)),
        (&schedules.uncaptured, ask(fleet, opener, backup, Whose::Uncaptured)),
        (&schedules.prune, ask(fleet, opener, Job::Prune, Whose::All)),
    ];
    let due = due.into_iter().filter_map(|(schedule, ask)| Some((schedule.clone()?, ask)));
    let drills = schedules.verify.iter().map(|schedule| (schedule.clone(), drills(schedule)));
    Trigger::start(due.chain(drills).collect()).await
}

/// A function that has every worker prove what has its turn.
fn drill_all(fleet: &Fleet, rhythm: Rhythm) -> OnDue {
    let runtime = tokio::runtime::Handle::current();
    let at_it: Vec<_> = fleet.members().iter().map(|_| Arc::new(Semaphore::new(1))).collect();
    let fleet = fleet.clone();
    Box::new(move || {
        for (member, at_it) in fleet.members().iter().zip(&at_it) {
            let Ok(handle) = member.handle() else { continue };
            let name = member.database.name.clone();
            let Ok(turn) = Arc::clone(at_it).try_acquire_owned() else {
                tracing::warn!(database = %name, "a scheduled verify was missed: the one before is not over");
                continue;
            };
            runtime.spawn(async move {
                if let Err(error) = drill(&handle, rhythm).await {
                    tracing::warn!(database = %name, "a scheduled verify was missed: {}", error.chain());
                }
                drop(turn);
            });
        }
    })
}

/// Has everything proven that has its turn. Each is a job of its own: backups go on in between.
async fn drill(handle: &Handle, rhythm: Rhythm) -> Result<()> {
    let mut snapshots = handle.catalog().list().await?.snapshots;
    // What nobody restores unasked is proven when asked for.
    snapshots.retain(|manifest| !manifest.is_branch());
    let proofs = handle.catalog().proofs().await?;
    let planned = verify::drills(&snapshots, &proofs, rhythm).into_iter();
    let planned: Vec<SnapshotId> = planned.map(|manifest| manifest.id.clone()).collect();
    if planned.is_empty() {
        // There is none, or none that can be read: the worker says which.
        return handle.run(Job::Verify { target: VerifyTarget::Newest }, Reason::Schedule).await.map(drop);
    }
    for id in planned {
        let is_gone = match handle.catalog().manifest(&id).await {
            Err(error) => error.kind() == ErrorKind::NotFound,
            Ok(_) => false,
        };
        // Pruned since the plan was made.
        if is_gone {
            continue;
        }
        // The worker tells how it ended; a snapshot that fails does not spare the others.
        handle.run(Job::Verify { target: VerifyTarget::Snapshot(id) }, Reason::Schedule).await?;
    }
    Ok(())
}

/// Which databases a schedule is for, by how they stand when it is due.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Whose {
    All,
    Captured,
    Uncaptured,
}

/// A function that asks the workers of those databases for `job`.
fn ask(fleet: &Fleet, opener: &Arc<Opener>, job: Job, whose: Whose) -> OnDue {
    let (fleet, opener, runtime) = (fleet.clone(), Arc::clone(opener), tokio::runtime::Handle::current());
    Box::new(move || {
        for (index, member) in fleet.members().iter().enumerate() {
            let Ok(handle) = member.handle() else {
                // A database that cannot be backed up yet has said so; it starts with a backup.
                if whose == Whose::Uncaptured && member.spool().is_some() {
                    let (fleet, opener) = (fleet.clone(), Arc::clone(&opener));
                    runtime.spawn(async move { opener.spool_due(&fleet.members()[index]).await });
                }
                continue;
            };
            let is_captured = || fleet.is_captured(&handle, opener.clock.now());
            let is_meant = match whose {
                Whose::All => true,
                Whose::Captured => is_captured(),
                Whose::Uncaptured => !is_captured(),
            };
            if !is_meant {
                continue;
            }
            let (job, name) = (job.clone(), member.database.name.clone());
            runtime.spawn(async move {
                if let Err(error) = handle.submit(job.clone(), Reason::Schedule).await {
                    tracing::warn!(database = %name, job = job.name(), "a scheduled {} was missed: {error}", job.name());
                }
            });
        }
    })
}

/// The time between two scheduled snapshots; `None` where none is scheduled.
#[derive(Debug, Clone, Copy)]
struct Periods {
    captured: Option<Duration>,
    uncaptured: Option<Duration>,
}

/// Takes an overdue backup once the worker is there, and has new snapshots proven.
async fn attend(fleet: &Fleet, index: usize, periods: Periods, captures: bool, clock: &Clock) {
    let handle = fleet.members()[index].opened_handle().await;
    if captures {
        // It takes the snapshot it needs, if it needs one.
        let _ = handle.run(Job::Capture, Reason::Startup).await;
    }
    let period = match fleet.is_captured(&handle, clock.now()) {
        true => periods.captured,
        false => periods.uncaptured,
    };
    if is_overdue(&handle.status(), period, clock.now()) {
        // Refused only while stopping.
        let _ = handle.submit(Job::Backup { accept_shrunken: false }, Reason::Startup).await;
    }
    let mut status = handle.watch();
    loop {
        let due = status.borrow_and_update().clone();
        if let Some(unproven) = unproven(&due, clock.now()) {
            // By its name: what a branch stores never is the newest.
            let target = VerifyTarget::Snapshot(unproven.clone());
            // Whatever comes of it, the next try comes with the next snapshot or the next drill.
            let _ = handle.run(Job::Verify { target }, Reason::FollowUp).await;
            if wait_for_other_snapshot(&mut status, unproven).await.is_err() {
                return;
            }
        } else if status.changed().await.is_err() {
            return;
        }
    }
}

/// Between two tries to ship what waits: it doubles as long as storage answers and shipping fails.
const SHIP_PAUSE: Duration = Duration::from_secs(30);

/// The longest pause.
const SHIP_PAUSE_MAX: Duration = Duration::from_secs(900);

/// Has what waits in the spool shipped as soon as storage answers. Never ends.
async fn have_shipped(member: &Member) {
    let Some(spool) = member.spool() else { return std::future::pending().await };
    let handle = member.opened_handle().await;
    let mut state = spool.watch();
    let mut pause = SHIP_PAUSE;
    while state.wait_for(State::has_to_ship).await.is_ok() && !handle.status().fenced {
        // Whoever asks here keeps nobody waiting; a job that waits for storage would.
        let answers = match handle.catalog().head().await {
            Err(error) if spool::is_outage(&error) => {
                spool.note_outage(&error);
                false
            }
            _ => true,
        };
        // The worker tells how it ended.
        let fails =
            answers && handle.run(Job::Ship, Reason::FollowUp).await.and_then(JobRecord::report).is_err();
        pause = if fails { (pause * 2).min(SHIP_PAUSE_MAX) } else { SHIP_PAUSE };
        if spool.state().has_to_ship() {
            tokio::time::sleep(pause).await;
        }
    }
    std::future::pending().await
}

async fn wait_for_other_snapshot(
    status: &mut tokio::sync::watch::Receiver<Status>,
    than: &SnapshotId,
) -> Result<(), tokio::sync::watch::error::RecvError> {
    let snapshot = |status: &Status| status.last_backup.as_ref().map(|last| last.snapshot.clone());
    status.wait_for(|status| snapshot(status).as_ref() != Some(than)).await.map(drop)
}

fn is_overdue(status: &Status, period: Option<Duration>, now: Timestamp) -> bool {
    match (&status.last_backup, period) {
        (None, _) => true,
        (Some(last), Some(period)) => now.duration_since(last.confirmed_at).unsigned_abs() >= period,
        (Some(_), None) => false,
    }
}

/// What was stored last, if it has to be proven now.
fn unproven(status: &Status, now: Timestamp) -> Option<&SnapshotId> {
    let stored = &status.last_backup.as_ref()?.snapshot;
    let is_proven = status.newest_proven.as_ref() == Some(stored);
    let is_early = |then| now.duration_since(then).unsigned_abs() < FOLLOW_UP_PAUSE;
    (!is_proven && !status.drilled_at().is_some_and(is_early)).then_some(stored)
}

/// Returns once any worker is fenced off.
pub(super) async fn fenced(fleet: &Fleet) -> Error {
    let mut waits: FuturesUnordered<_> = fleet
        .members()
        .iter()
        .map(|member| async move {
            let handle: Handle = member.opened_handle().await;
            let mut status = handle.watch();
            let fenced = status.wait_for(|status| status.fenced).await.ok()?;
            fenced.fenced_error()
        })
        .collect();
    while let Some(ended) = waits.next().await {
        if let Some(error) = ended {
            return error;
        }
    }
    std::future::pending().await
}
