//! One worker per database does one job at a time; everybody else asks it and watches.
//!
//! Overlap is impossible because only the worker acts. A request for what is running or waiting already joins it; one
//! for a backup only if that has not begun.

mod capturing;
mod fallback;
mod fleet;
mod job;
mod lag;
mod perform;
mod status;

use std::collections::VecDeque;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;

use futures::FutureExt;
use tokio::sync::{OnceCell, mpsc, oneshot, watch};
use tokio_util::sync::CancellationToken;

pub use capturing::Captured;
pub use fallback::{Fallback, Shipments, Spooled};
pub use fleet::{Fleet, Member, MemberView};
pub use job::{Answer, Job, JobId, JobRecord, JobState, Reason, Report};
pub use perform::{AtStart, Perform, VerifyTarget};
pub use status::{Freshness, LastBackup, Readiness, Status};

use crate::capture::Capture;
use crate::catalog::Catalog;
use crate::clock::Clock;
use crate::error::{Error, ErrorKind, Result};
use crate::source::{OnProgress, Progress};

/// Jobs that may wait; one more is refused.
const QUEUE_MAX: usize = 8;

/// Finished jobs that can still be asked for.
const HISTORY_MAX: usize = 64;

/// What is sent to a worker.
struct Request {
    job: Job,
    reason: Reason,
    admitted: oneshot::Sender<Result<JobId>>,
}

/// A worker seen from outside. Clones speak to the same worker.
#[derive(Clone)]
pub struct Handle {
    requests: mpsc::Sender<Request>,
    status: watch::Receiver<Status>,
    catalog: Catalog,
    capture: Arc<OnceCell<Arc<Capture>>>,
}

impl Handle {
    /// What follows the database between its snapshots, once it has begun.
    pub fn capture(&self) -> Option<&Arc<Capture>> {
        self.capture.get()
    }

    /// The database's backups, for reading.
    pub fn catalog(&self) -> &Catalog {
        &self.catalog
    }

    /// Asks for a job; returns its id once it is admitted or joined.
    ///
    /// `Limit` if too many wait; `Cancelled` if the worker has stopped.
    pub async fn submit(&self, job: Job, reason: Reason) -> Result<JobId> {
        let stopped = || Error::new(ErrorKind::Cancelled, "the worker has stopped");
        let (admitted, answer) = oneshot::channel();
        self.requests.send(Request { job, reason, admitted }).await.map_err(|_| stopped())?;
        answer.await.map_err(|_| stopped())?
    }

    /// Waits until a job is over.
    pub async fn wait(&self, id: JobId) -> Result<JobRecord> {
        let mut status = self.status.clone();
        let over = |status: &Status| status.job(id).is_none_or(JobRecord::is_over);
        let status = status
            .wait_for(over)
            .await
            .map_err(|_| Error::new(ErrorKind::Cancelled, "the worker has stopped"))?;
        status.job(id).cloned().ok_or_else(|| {
            Error::new(ErrorKind::NotFound, format!("there is no such job (any more): job=`{id}`"))
        })
    }

    /// Asks for a job and waits until it is over.
    pub async fn run(&self, job: Job, reason: Reason) -> Result<JobRecord> {
        let id = self.submit(job, reason).await?;
        self.wait(id).await
    }

    /// The state now.
    pub fn status(&self) -> Status {
        self.status.borrow().clone()
    }

    /// The state now and every later one.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

/// A worker to be spawned, and its handle. It ends when `stop` is cancelled (the running job is
/// cancelled with it), or when every handle is gone.
pub fn prepare(
    perform: Perform,
    clock: Clock,
    stop: CancellationToken,
) -> (Handle, impl Future<Output = ()> + Send + 'static) {
    let (requests, receiver) = mpsc::channel(QUEUE_MAX);
    let status = Arc::new(watch::Sender::new(perform.first_status()));
    let catalog = perform.catalog.clone();
    let capture = Arc::clone(&perform.capture);
    let handle = Handle { requests, status: status.subscribe(), catalog, capture };
    let worker =
        Worker { perform: Arc::new(perform), clock, stop, status, waiting: VecDeque::new(), last_id: 0 };
    (handle, worker.run(receiver))
}

/// The panic itself was written to standard error where it happened.
fn panicked(job: &Job) -> Error {
    Error::new(ErrorKind::Internal, format!("the {} ended by a defect of this program", job.name()))
}

struct Worker {
    perform: Arc<Perform>,
    clock: Clock,
    stop: CancellationToken,
    status: Arc<watch::Sender<Status>>,
    waiting: VecDeque<(JobId, Job)>,
    last_id: u64,
}

impl Worker {
    async fn run(mut self, mut requests: mpsc::Receiver<Request>) {
        loop {
            if self.stop.is_cancelled() {
                return;
            }
            let Some((id, job)) = self.waiting.pop_front() else {
                tokio::select! {
                    request = requests.recv() => match request {
                        Some(request) => self.admit(request),
                        None => return,
                    },
                    () = self.stop.cancelled() => return,
                }
                continue;
            };
            // A defect in one job is that job's failure: a worker that ended would be missed by nobody
            // until its backups are old. What a job leaves behind it can leave at any error.
            // Boxed, so that a worker without a job is small.
            let mut performing = Box::pin(AssertUnwindSafe(self.begin(id, job.clone())).catch_unwind());
            let result = loop {
                tokio::select! {
                    result = &mut performing => break result.unwrap_or_else(|_| Err(panicked(&job))),
                    Some(request) = requests.recv() => self.admit(request),
                }
            };
            self.end(id, &job, result);
        }
    }

    /// Joins what runs or waits, or queues, or refuses.
    fn admit(&mut self, Request { job, reason, admitted }: Request) {
        // Who asks for a backup wants what is committed by then, and one that has begun may not have seen it.
        let is_begun_too_early = |record: &JobRecord| {
            matches!(job, Job::Backup { .. })
                && matches!(reason, Reason::Request | Reason::Shutdown)
                && !matches!(record.state, JobState::Waiting)
        };
        let joins =
            |record: &&JobRecord| record.job == job && !record.is_over() && !is_begun_too_early(record);
        let joined = self.status.borrow().jobs.iter().find(joins).map(|record| record.id);
        let is_last = reason == Reason::Shutdown;
        if is_last {
            self.perform.hurry();
        }
        let answer = match joined {
            Some(id) => {
                self.status.send_modify(|status| status.with_job(id, |record| record.urge(reason)));
                Ok(id)
            }
            // Of each kind of backup one waits at most.
            None if self.waiting.len() >= QUEUE_MAX && !matches!(job, Job::Backup { .. }) => Err(Error::new(
                ErrorKind::Limit,
                format!("{QUEUE_MAX} jobs are waiting already; try again later"),
            )),
            None => {
                self.last_id += 1;
                let id = JobId(self.last_id);
                let record = JobRecord::waiting(id, job.clone(), reason, self.clock.now());
                self.status.send_modify(|status| {
                    status.jobs.push_back(record);
                    if status.jobs.len() > HISTORY_MAX {
                        status.jobs.pop_front();
                    }
                });
                self.waiting.push_back((id, job));
                Ok(id)
            }
        };
        if is_last && let Ok(last) = answer {
            // There is no time for what waits before it.
            self.waiting.make_contiguous().sort_by_key(|(id, _)| *id != last);
        }
        // Whoever asked may be gone; the job goes on.
        let _ = admitted.send(answer);
    }

    fn begin(&self, id: JobId, job: Job) -> impl Future<Output = Result<Report>> + use<> {
        let (perform, status) = (Arc::clone(&self.perform), Arc::clone(&self.status));
        let (clock, cancel) = (self.clock.clone(), self.stop.child_token());
        async move {
            // Until then the job waits, for its status and for those who may join it.
            let _turn = perform.turn(&cancel).await?;
            let now = clock.now();
            let mut reason = Reason::Request;
            status.send_modify(|status| {
                status.with_job(id, |record| {
                    record.begin(now);
                    reason = record.reason;
                });
            });
            let on_progress: OnProgress = Arc::new(move |progress: Progress| {
                status.send_if_modified(|status| status.set_progress(id, progress));
            });
            perform.perform(&job, reason, &cancel, on_progress).await
        }
    }

    fn end(&mut self, id: JobId, job: &Job, result: Result<Report>) {
        let now = self.clock.now();
        self.perform.record(job, &result);
        let (refuted, shipped) = (self.perform.take_refuted(), self.perform.take_shipped());
        let mut ended = None;
        self.status.send_modify(|status| {
            shipped.iter().for_each(|shipped| status.take_in_shipped(shipped));
            status.apply(job.name(), &result, now);
            refuted.into_iter().for_each(|verdict| status.refute(verdict));
            status.fork = self.perform.standing().fork;
            status.with_job(id, |record| {
                record.end(result.as_ref(), now);
                ended = Some(record.clone());
            });
        });
        if let Some(record) = ended {
            record.log(self.perform.database());
        }
    }
}
