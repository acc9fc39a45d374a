//! Thousands of short histories: two or three machines over one storage in memory, with the clocks, the
//! store, the volumes and the losses of machines driven by one seed, and their storage calls interleaved.
//!
//! The library's catalog, lineage, retention, prune and adoption are the real ones; what a database
//! holds is a list of numbered commits, and a drill compares digests: real databases are looked at
//! elsewhere, one at a time. A history that fails prints its seed:
//!
//! - `LIFEBOAT_SEED=N cargo nextest run simulation` replays the history of that seed alone,
//! - `tests/run simulate HISTORIES` goes through more of them.

mod checks;
mod link;
mod machine;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use world::{Counts, World};

/// In every run of the tests.
const HISTORIES: u64 = 2_400;

async fn history(seed: u64) -> Arc<World> {
    let world = Arc::new(World::new(seed));
    if !world.weather.honours_conditions {
        // Two that begin a history at once overwrite each other's, and nothing can be done about it.
        machine::found(&world).await;
    }
    let machines = 2 + world.below(2) as usize;
    let all = (0..machines).map(|number| machine::machine(Arc::clone(&world), number));
    tokio::join!(futures::future::join_all(all), machine::operator(Arc::clone(&world)));
    checks::end(&world);
    world
}

fn run(seed: u64) -> Arc<World> {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(history(seed))
}

/// A number from the environment.
fn told(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not `{text}`")))
}

/// All histories of the seeds from 1 on, on every core; their counts, added up.
fn run_all(histories: u64) -> [(&'static str, usize); 12] {
    let threads = std::thread::available_parallelism().map_or(1, |threads| threads.get());
    let next = AtomicU64::new(1);
    let work = || {
        let mut sums = Counts::default().all();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > histories {
                return sums;
            }
            let world = std::panic::catch_unwind(|| run(seed))
                .unwrap_or_else(|_| panic!("LIFEBOAT_SEED={seed} replays the history that failed"));
            let counts = world.state().counts.all();
            sums.iter_mut().zip(counts).for_each(|(sum, count)| sum.1 += count.1);
        }
    };
    std::thread::scope(|scope| {
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
        let mut sums = Counts::default().all();
        for worker in workers {
            let counts = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sums.iter_mut().zip(counts).for_each(|(sum, count)| sum.1 += count.1);
        }
        sums
    })
}

#[test]
fn no_history_loses_what_was_acknowledged() {
    if let Some(seed) = told("LIFEBOAT_SEED") {
        println!("{:?}", World::new(seed).weather);
        println!("{:?}", run(seed).state().counts);
        return;
    }
    let histories = told("LIFEBOAT_HISTORIES").unwrap_or(HISTORIES);
    let sums = run_all(histories);
    println!("{histories} histories: {sums:?}");
    // A few alone may well be dull.
    for (what, count) in sums.into_iter().filter(|_| histories >= HISTORIES) {
        assert!(count as u64 > histories / 40, "the histories are dull: {count} {what}: {sums:?}");
    }
}

#[test]
fn a_seed_replays_its_history() {
    let heads = |seed| {
        let world = run(seed);
        let state = world.state();
        let heads = state.heads.iter();
        // The end of an adopted snapshot's id is drawn by the program itself.
        let heads = heads.map(|head| (head.epoch, head.released, head.snapshot.as_ref().map(|id| id.time())));
        (heads.collect::<Vec<_>>(), state.counts)
    };
    for seed in 1..=40 {
        assert_eq!(heads(seed), heads(seed), "the seed is {seed}");
    }
    assert_ne!(heads(1), heads(2));
}
