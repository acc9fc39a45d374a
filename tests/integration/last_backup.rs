//! The last backup before a stop: what runs, waits or fills the queue stands in nobody's way.

use std::time::Duration;

use lifeboat::storage::{Fault, How, Operation};
use lifeboat::worker::{Handle, Job, JobId, JobRecord, JobState, Reason, VerifyTarget};

use crate::support::station::Station;

const BACKUP: Job = Job::Backup { accept_shrunken: false };

/// A worker whose first job, another backup, waits for a lock of the application; everything else waits for it.
pub async fn blocked() -> (Station, Handle) {
    let mut station = Station::opening(&["app"], "127.0.0.1:9091", None);
    station.lab.settings.busy_timeout = Duration::from_secs(60);
    station.connections[0].execute_batch("PRAGMA journal_mode=delete; BEGIN EXCLUSIVE").expect("locks");
    let member = &station.app.fleet.members()[0];
    station.open(member).await;
    let handle = member.handle().expect("open");
    let first = Job::Backup { accept_shrunken: true };
    handle.submit(first, Reason::Request).await.expect("admitted");
    until_it_runs(&handle).await;
    (station, handle)
}

async fn until_it_runs(handle: &Handle) {
    let mut status = handle.watch();
    let running = status
        .wait_for(|status| status.jobs.iter().any(|record| matches!(record.state, JobState::Running { .. })));
    running.await.expect("the worker is there");
}

fn verify(number: u32) -> Job {
    let id = format!("20260101T000000.000Z-{number:08x}").parse().expect("an id");
    Job::Verify { target: VerifyTarget::Snapshot(id) }
}

async fn ended(handle: &Handle, id: JobId) -> JobRecord {
    let mut status = handle.watch();
    let over = |status: &lifeboat::worker::Status| status.job(id).is_some_and(JobRecord::is_over);
    let status = tokio::time::timeout(Duration::from_secs(60), status.wait_for(over)).await;
    status.expect("it ends").expect("the worker is there").job(id).expect("remembered").clone()
}

async fn is_released(station: &Station) -> bool {
    station.lab.catalog().head().await.expect("read").expect("there").0.released
}

#[tokio::test(flavor = "multi_thread")]
async fn the_last_backup_is_never_refused_and_goes_before_all_that_waits() {
    let (station, handle) = blocked().await;
    let mut waiting = Vec::new();
    let refused = loop {
        match handle.submit(verify(waiting.len() as u32), Reason::Request).await {
            Ok(id) => waiting.push(id),
            Err(error) => break error,
        }
    };
    assert!(refused.to_string().contains("jobs are waiting already"), "{refused}");
    let last = handle.submit(BACKUP, Reason::Shutdown).await.expect("admitted");
    station.connections[0].execute_batch("COMMIT").expect("lets go");
    let last = ended(&handle, last).await;
    assert!(matches!(last.state, JobState::Done { .. }), "{last:?}");
    for id in waiting {
        let began = ended(&handle, id).await.began_at;
        assert!(
            began >= last.ended_at,
            "a drill began at {began:?}, the last backup ended at {:?}",
            last.ended_at
        );
    }
    assert!(is_released(&station).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_backup_that_waits_becomes_the_last_one_when_that_is_asked_for() {
    let (station, handle) = blocked().await;
    let scheduled = handle.submit(BACKUP, Reason::Schedule).await.expect("admitted");
    let other = handle.submit(verify(0), Reason::Request).await.expect("admitted");
    assert_eq!(handle.submit(BACKUP, Reason::Request).await.expect("admitted"), scheduled);
    assert_eq!(handle.submit(BACKUP, Reason::Schedule).await.expect("admitted"), scheduled);
    assert_eq!(handle.status().job(scheduled).expect("waits").reason, Reason::Request, "who asks for more");
    assert_eq!(handle.submit(BACKUP, Reason::Shutdown).await.expect("admitted"), scheduled);
    station.connections[0].execute_batch("COMMIT").expect("lets go");
    let last = ended(&handle, scheduled).await;
    assert_eq!(last.reason, Reason::Shutdown);
    assert!(ended(&handle, other).await.began_at >= last.ended_at);
    assert!(is_released(&station).await);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_drill_under_way_makes_way_for_the_last_backup() {
    let station = Station::new().await;
    let handle = station.app.fleet.members()[0].handle().expect("open");
    station.get("/backup-now").await;
    station.storage.script(Fault::at(Operation::ReadRange, 1, How::Late(Duration::from_secs(3_600))));
    let drill = Job::Verify { target: VerifyTarget::Newest };
    let drill = handle.submit(drill, Reason::Schedule).await.expect("admitted");
    until_it_runs(&handle).await;
    station.connections[0].execute_batch("INSERT INTO t VALUES ('last')").expect("writes");
    let last = handle.submit(BACKUP, Reason::Shutdown).await.expect("admitted");
    let last = ended(&handle, last).await;
    assert!(matches!(last.state, JobState::Done { .. }), "{last:?}");
    assert!(matches!(ended(&handle, drill).await.state, JobState::Failed(_)));
    assert!(handle.status().failures.is_empty(), "nothing is wrong: {:?}", handle.status().failures);
    assert!(is_released(&station).await);
}
