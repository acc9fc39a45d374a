//! Random lives of a captured database: every state that was stored is restored, page by page, from every snapshot
//! that leads there.
//!
//! One life is driven by one seed: what the application commits, when the log is read, when deltas are shipped and
//! fail to be, snapshots with commits before, between and behind their pin, comparisons with commits beside them, and
//! captures that begin again after anything may have happened. One that fails prints its seed, and
//! `LIFEBOAT_SEED=N cargo nextest run capture_oracle` replays it.

use std::collections::BTreeSet;
use std::fs;
use std::sync::atomic::{AtomicU64, Ordering};

use lifeboat::catalog::Catalog;
use lifeboat::delta::{self, Listed};
use lifeboat::error::ErrorKind;
use lifeboat::restore::{self, Damage, Moment, Target};

use crate::capture_app::Seen;
use crate::capture_damage::named;
use crate::capture_life::{Life, Pages, Recorded};

/// In every run of the tests.
const LIVES: u64 = 64;

/// What one life consists of.
const STEPS: u32 = 90;

async fn live(seed: u64) -> Seen {
    let mut life = Life::new(seed).await;
    for _ in 0..STEPS {
        life.step().await;
    }
    life.end().await;
    judge(&life).await;
    life.seen()
}

/// A number from the environment.
fn told(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is a number, not `{text}`")))
}

fn run(seed: u64) -> Seen {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    runtime.expect("a runtime").block_on(live(seed))
}

#[test]
fn every_state_that_was_stored_is_restored() {
    if let Some(seed) = told("LIFEBOAT_SEED") {
        println!("{:?}", run(seed));
        return;
    }
    let lives = told("LIFEBOAT_LIVES").unwrap_or(LIVES);
    let next = AtomicU64::new(1);
    let work = || {
        let mut seen = Seen::default();
        loop {
            let seed = next.fetch_add(1, Ordering::Relaxed);
            if seed > lives {
                return seen;
            }
            let one = std::panic::catch_unwind(|| run(seed))
                .unwrap_or_else(|_| panic!("LIFEBOAT_SEED={seed} replays the life that failed"));
            seen.add(&one);
        }
    };
    let seen = std::thread::scope(|scope| {
        let workers: Vec<_> = (0..2).map(|_| scope.spawn(work)).collect();
        let mut all = Seen::default();
        for worker in workers {
            all.add(&worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
        all
    });
    println!("{lives} lives: {seen:?}");
    for (what, count) in seen.all().into_iter().filter(|_| lives >= LIVES) {
        assert!(count >= lives / 8, "the lives are dull: {count} {what}: {seen:?}");
    }
}

/// Everything that storage acknowledged, from wherever it can be reached.
async fn judge(life: &Life) {
    let catalog = life.lab.catalog();
    let anchored = catalog.list().await.expect("listed").snapshots;
    let stored = catalog.deltas().await.expect("listed");
    let listed: Vec<Listed> =
        stored.iter().map(|delta| Listed { level: delta.level, span: delta.span, moments: None }).collect();
    let mut positions = BTreeSet::new();
    for recorded in life.recorded() {
        let mut ways = 0;
        for manifest in &anchored {
            let Some(anchor) = manifest.anchor else { continue };
            let target = delta::Target::Position(recorded.position);
            let Ok(plan) = delta::plan(&listed, anchor.position, target) else { continue };
            ways += 1;
            if !positions.insert((anchor.position, recorded.position)) {
                continue;
            }
            let of = |step: &Listed| {
                stored.iter().find(|delta| (delta.level, delta.span) == (step.level, step.span)).copied()
            };
            let deltas = plan.iter().filter_map(of).collect();
            let moment = Moment { manifest: manifest.clone(), deltas, shows: manifest.taken_at };
            let way = format!("from the snapshot {} at {}", manifest.id, anchor.position);
            require(life, recorded, &moment, &way).await;
        }
        let stands = |manifest: &&lifeboat::snapshot::Manifest| {
            manifest.anchor.is_some_and(|anchor| anchor.position == recorded.position)
        };
        if ways == 0 {
            // The one that began the line; others at this position show something later.
            let snapshot = anchored.iter().rfind(stands);
            let snapshot = snapshot.unwrap_or_else(|| panic!("nothing leads to {}", recorded.position));
            require(life, recorded, &Moment::of(snapshot.clone()), "as a snapshot alone").await;
        }
        // Where a gap follows, nobody knows for how long it stayed so: then its last commit is named.
        let target = match Moment::find(&Target::At(recorded.time), &catalog).await {
            Err(error) if error.kind() == ErrorKind::NotFound => named(&error),
            _ => Target::At(recorded.time),
        };
        require_found(life, &catalog, target, recorded).await;
    }
    let last = life.recorded().last().expect("something was recorded");
    require_found(life, &catalog, Target::Newest, last).await;
}

async fn require_found(life: &Life, catalog: &Catalog, target: Target, recorded: &Recorded) {
    let moment = Moment::find(&target, catalog).await.expect("there is such a moment");
    require(life, recorded, &moment, &format!("{target:?}")).await;
}

async fn require(life: &Life, recorded: &Recorded, moment: &Moment, way: &str) {
    let output = life.lab.path("restored.db");
    let restored = restore::to_new_file(&life.lab.resources(), moment, &output, Damage::Refused).await;
    if let Err(error) = restored {
        panic!("position {} is refused, {way}: {}", recorded.position, error.chain());
    }
    let bytes = fs::read(&output).expect("readable");
    fs::remove_file(&output).expect("removed");
    let pages: Pages = (1..)
        .zip(bytes.chunks(life.page_size()))
        .collect::<Vec<_>>()
        .into_iter()
        .map(|(number, page)| (number, page.into()))
        .collect();
    assert_eq!(pages.len(), recorded.pages.len(), "pages at position {}, {way}", recorded.position);
    for (number, page) in &recorded.pages {
        let at = recorded.position;
        assert!(pages[number] == *page, "page {number} at position {at} is not what it was, {way}");
    }
}
