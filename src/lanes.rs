//! An ordered parallel map: work goes round robin to a few threads and comes back in order.
//!
//! Item `n` goes to thread `n mod threads` and is taken from there, so order needs no buffer that
//! sorts, and the bounded channels are the back-pressure.

use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;

use crate::error::{Error, ErrorKind, Result};

/// Items a lane holds before and after its thread works on them, besides the one in work.
const LANE_ITEMS: usize = 1;

/// Puts items into the lanes, in order.
pub struct Feed<I> {
    lanes: Vec<SyncSender<I>>,
    next: usize,
}

/// Takes results out of the lanes, in the order in which the items went in.
pub struct Drain<O> {
    lanes: Vec<Receiver<Result<O>>>,
    next: usize,
}

/// Whether the application has the processor before these threads.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Priority {
    /// The work may wait: a backup beside a running application.
    Background,
    /// Somebody waits for the work: a restore.
    Normal,
}

/// Starts `threads` threads; each maps items with a function that `make` returns for it.
///
/// Dropping the [`Feed`] ends the stream; dropping the [`Drain`] makes feeding fail.
pub fn lanes<I, O, F>(
    threads: usize,
    priority: Priority,
    make: impl Fn() -> Result<F>,
) -> Result<(Feed<I>, Drain<O>)>
where
    I: Send + 'static,
    O: Send + 'static,
    F: FnMut(I) -> Result<O> + Send + 'static,
{
    let mut feed = Feed { lanes: Vec::new(), next: 0 };
    let mut drain = Drain { lanes: Vec::new(), next: 0 };
    for _ in 0..threads.max(1) {
        let (item_sender, items) = sync_channel::<I>(LANE_ITEMS);
        let (result_sender, results) = sync_channel::<Result<O>>(LANE_ITEMS);
        let mut map = make()?;
        let work = move || {
            if priority == Priority::Background {
                step_back();
            }
            for item in items {
                if result_sender.send(map(item)).is_err() {
                    return;
                }
            }
        };
        thread::Builder::new()
            .name("lifeboat-lane".to_owned())
            .spawn(work)
            .map_err(|error| Error::new(ErrorKind::Internal, "start a worker thread").because(error))?;
        feed.lanes.push(item_sender);
        drain.lanes.push(results);
    }
    Ok((feed, drain))
}

impl<I> Feed<I> {
    /// Puts the next item in; waits while its lane is full. `false`: nobody wants results any more.
    pub fn put(&mut self, item: I) -> bool {
        let lane = self.next % self.lanes.len();
        self.next += 1;
        self.lanes[lane].send(item).is_ok()
    }
}

impl<O> Drain<O> {
    /// The next result, in order; `None` after the last. An error of the mapping function is a result.
    pub fn take(&mut self) -> Option<Result<O>> {
        let lane = self.next % self.lanes.len();
        self.next += 1;
        self.lanes[lane].recv().ok()
    }
}

/// Lets every other thread of the machine go first, where the platform can.
pub fn step_back() {
    const LEAST_URGENT: i32 = 19;
    // On Linux, niceness is per thread and a thread id is taken for a process id. A refusal costs
    // nothing but courtesy.
    #[cfg(target_os = "linux")]
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), LEAST_URGENT);
    #[cfg(not(target_os = "linux"))]
    let _ = LEAST_URGENT;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    #[expect(clippy::disallowed_methods, reason = "the lanes' own threads sleep")]
    fn results_come_in_the_order_of_the_items() {
        let (mut feed, mut drain) = lanes(3, Priority::Background, || {
            Ok(|n: u64| {
                // Earlier items take longer.
                thread::sleep(std::time::Duration::from_micros(500 / (n + 1)));
                Ok(n * 2)
            })
        })
        .expect("threads start");
        let feeder = thread::spawn(move || (0..100).all(|n| feed.put(n)));
        let results: Vec<u64> =
            std::iter::from_fn(|| drain.take()).map(|result| result.expect("maps")).collect();
        assert_eq!(results, (0..100).map(|n| n * 2).collect::<Vec<_>>());
        assert!(feeder.join().expect("no panic"));
    }

    #[test]
    fn feeding_fails_once_nobody_drains() {
        let (mut feed, drain) = lanes(2, Priority::Normal, || Ok(|n: u64| Ok(n))).expect("threads start");
        drop(drain);
        assert!((0..10).any(|n| !feed.put(n)));
    }
}
