//! Merging over storage in memory, whole and interrupted.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use proptest::prelude::*;

use super::*;
use crate::catalog::fixture::{Hooked, Moment, at, catalog, manifest};
use crate::delta::fixture::{self, Pages, any_history, applier, database_id, pages};
use crate::delta::{Encoder, Listed, Target, plan, reachable};
use crate::metrics::StorageMetrics;
use crate::snapshot::{Anchor, Key};
use crate::storage::{Fault, Faulty, How, Memory, Metered, Operation, Storage};

/// A bucket with a head, and a database whose states are known.
struct World {
    memory: Memory,
    /// When storage was begun, by its own clock, which stamps all that follows.
    began: i64,
    /// Seconds since then.
    time: Arc<AtomicI64>,
    states: Vec<Pages>,
}

impl World {
    async fn new(first: Pages) -> World {
        let memory = Memory::default();
        catalog(memory.clone()).claim_epoch("test", at("2026-11-22T10:00:00Z")).await.expect("claimed");
        let entries = memory.list("").await.expect("listed");
        let began = entries[0].modified_at.as_second();
        World { memory, began, time: Arc::default(), states: vec![first] }
    }

    /// What merges there, through any storage.
    fn merging(&self, storage: impl Storage + 'static) -> Merging {
        let writer = Writer { database_id: database_id(), epoch: 1, zstd_level: 1 };
        let (began, time) = (self.began, Arc::clone(&self.time));
        let clock = Clock::from_fn(move || second(began + time.load(Ordering::Relaxed)));
        Merging::new(catalog(storage), writer, clock, None)
    }

    fn pass(&self, seconds: i64) {
        self.time.fetch_add(seconds, Ordering::Relaxed);
    }

    /// The database changes, and that is captured.
    async fn capture(&mut self, next: Pages, merging: &Merging) {
        let from = self.states.len() as u64 - 1;
        let now = second(self.began + self.time.load(Ordering::Relaxed));
        let before = &self.states[from as usize];
        let header = Header { first_commit: now, last_commit: now, ..fixture::header(from, before, &next) };
        let mut encoder = Encoder::new(Vec::new(), &header, 1).expect("begun");
        for (number, page) in (1..).zip(&next) {
            if before.get(number as usize - 1) != Some(page) {
                encoder.page(number, page).expect("in order");
            }
        }
        let (_, bytes) = encoder.finish(fixture::table(&next).checksum()).expect("ended");
        merging.note(header.span, bytes.len(), now);
        catalog(self.memory.clone()).put_delta(header.span, bytes.into()).await.expect("stored");
        self.states.push(next);
    }

    /// That many times, every ten seconds.
    async fn go_on(&mut self, deltas: usize, merging: &Merging) {
        merging.tend().await.expect("looked");
        for number in 1..=deltas {
            self.pass(10);
            self.capture(state(number), merging).await;
        }
    }

    async fn listed(&self) -> Vec<Listed> {
        let stored = catalog(self.memory.clone()).deltas().await.expect("listed");
        let listed = |delta: StoredDelta| Listed { level: delta.level, span: delta.span, moments: None };
        stored.into_iter().map(listed).collect()
    }

    /// How many deltas there are of each level.
    async fn levels(&self) -> [usize; 3] {
        let mut levels = [0; 3];
        self.listed().await.iter().for_each(|delta| levels[usize::from(delta.level.number())] += 1);
        levels
    }

    /// Whatever deltas lead to is what was there, and they lead to the end. How many moments there are.
    async fn check(&self) -> usize {
        let listed = self.listed().await;
        let reached = reachable(&listed, 0);
        let end = reached.last().map_or(0, |delta| delta.span.to());
        assert_eq!(end, self.states.len() as u64 - 1, "the end is lost");
        for target in &reached {
            let position = target.span.to();
            let mut applier = applier(&self.states[0], 0);
            for step in plan(&listed, 0, Target::Position(position)).expect("there is a way") {
                let key = Key::Delta("app".parse().expect("a name"), step.level, step.span);
                let object = self.memory.read(&key, usize::MAX).await.expect("stored");
                applier.apply(Decoder::new(&object.bytes[..], &key).expect("ours")).expect("proves");
            }
            assert!(applier.into_parts().0.0 == self.states[position as usize], "position {position}");
        }
        reached.len()
    }
}

fn second(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

/// A state that is told from all others.
fn state(number: usize) -> Pages {
    pages(&[number as u8, (number >> 8) as u8, 7])
}

/// A world in which a delta was captured every ten seconds.
async fn captured(deltas: usize) -> (World, Merging) {
    let mut world = World::new(state(0)).await;
    let merging = world.merging(world.memory.clone());
    world.go_on(deltas, &merging).await;
    (world, merging)
}

#[tokio::test]
async fn deltas_become_fewer_with_age_and_all_that_is_left_proves() {
    let (world, merging) = captured(720).await;
    assert_eq!(world.levels().await, [720, 0, 0]);
    world.pass(3600);
    merging.tend().await.expect("merged");
    // Hours, and so all periods, begin anywhere in two hours: one more of each is begun.
    let [captured, minutes, hours] = world.levels().await;
    assert!(captured <= 720 && minutes.abs_diff(120) <= 1, "{:?}", world.levels().await);
    assert!((2..=3).contains(&hours));
    world.check().await;
    world.pass(80 * 3600);
    merging.tend().await.expect("removed");
    let left = world.levels().await;
    // One may be alone in its hour.
    assert!(left[0] + left[1] <= 1 && left[2] == hours, "{left:?}");
    assert_eq!(world.check().await, left[0] + left[1] + hours);
    assert_eq!(merging.rest(), None, "there is nothing left to do, ever");
}

#[tokio::test]
async fn a_moment_of_the_last_hour_stays_as_it_was_captured() {
    let (world, merging) = captured(30).await;
    world.pass(3600 - 400);
    merging.tend().await.expect("merged");
    assert_eq!(world.check().await, 30);
    assert!(merging.rest().is_some_and(|rest| rest <= Duration::from_secs(3600)));
}

#[tokio::test]
async fn nothing_is_asked_where_nothing_is_written_and_little_elsewhere() {
    let (mut world, _) = captured(0).await;
    let metered = Metered::new(Arc::new(world.memory.clone()), StorageMetrics::default());
    let merging = world.merging(metered.clone());
    assert_eq!(merging.rest(), None);
    let mut by_hour = Vec::new();
    for hour in 0..3 {
        let before = metered.requests();
        for tick in 0..120 {
            for number in 0..30 {
                world.pass(1);
                world.capture(state(hour * 3600 + tick * 30 + number + 1), &merging).await;
            }
            merging.tend().await.expect("tended");
        }
        by_hour.push(metered.requests() - before);
    }
    // Of a delta a second: each is read once and removed once. Each merged one: head, write, proof, head before
    // removals; it is read and removed itself.
    let merged = 60 + 1;
    let most = 2 * 3600 + 6 * merged + 10;
    assert!(by_hour.iter().all(|requests| *requests <= most), "{by_hour:?}, at most {most}");
    // With nothing written, it comes to rest.
    for _ in 0..400 {
        world.pass(3600);
        merging.tend().await.expect("tended");
    }
    assert_eq!(merging.rest(), None);
    let before = metered.requests();
    merging.tend().await.expect("tended");
    assert_eq!(metered.requests(), before);
}

#[tokio::test]
async fn while_storage_is_away_nothing_is_gathered_and_nothing_forgotten() {
    let mut world = World::new(state(0)).await;
    let faulty = Faulty::new(Arc::new(world.memory.clone()));
    let merging = world.merging(faulty.clone());
    for number in 1..=30 {
        faulty.script(Fault::at(Operation::List, 1, How::Before(ErrorKind::Unavailable)));
        world.pass(10);
        world.capture(state(number), &merging).await;
        assert_eq!(merging.tend().await.expect_err("away").kind(), ErrorKind::Unavailable);
        assert_eq!(merging.state().fresh.len(), 1);
        assert_eq!(merging.rest(), Some(RHYTHM));
    }
    world.pass(3600);
    merging.tend().await.expect("back");
    let [captured, merged, ..] = world.levels().await;
    assert!(captured <= 30 && merged > 0, "{:?}", world.levels().await);
    world.check().await;
}

#[tokio::test]
async fn whoever_does_not_hold_the_head_merges_and_removes_nothing() {
    let (world, merging) = captured(30).await;
    world.pass(7200);
    catalog(world.memory.clone()).claim_epoch("newer", second(world.began)).await.expect("claimed");
    let before = world.memory.objects();
    assert_eq!(merging.tend().await.expect_err("overtaken").kind(), ErrorKind::Fenced);
    assert_eq!(world.memory.objects(), before);
    // Merged by the newer one, and looked at by the older: nothing goes.
    let (world, merging) = captured(30).await;
    world.pass(100);
    merging.tend().await.expect("merged");
    world.pass(100 * 3600);
    catalog(world.memory.clone()).claim_epoch("newer", second(world.began)).await.expect("claimed");
    let before = world.memory.objects();
    assert_eq!(merging.tend().await.expect_err("overtaken").kind(), ErrorKind::Fenced);
    assert_eq!(world.memory.objects(), before);
}

#[tokio::test]
async fn what_is_not_proven_after_it_was_stored_goes_and_its_parts_stay() {
    let mut world = World::new(state(0)).await;
    let faulty = Faulty::new(Arc::new(world.memory.clone()));
    let merging = world.merging(faulty.clone());
    world.go_on(30, &merging).await;
    faulty.script(Fault::at(Operation::Read, 3, How::Truncated(100)).on("deltas/1/"));
    for _ in 0..2 {
        world.pass(3600);
        merging.tend().await.expect("the others are merged");
    }
    assert!(faulty.is_spent());
    let [captured, ..] = world.levels().await;
    // And one more, where the first of them is alone in its minute.
    assert!((2..=7).contains(&captured), "the parts of that one, which alone are left: {captured}");
    world.check().await;
}

#[tokio::test]
async fn a_merged_delta_that_is_damaged_is_made_again_as_long_as_its_parts_are_there() {
    let (world, merging) = captured(30).await;
    world.pass(100);
    merging.tend().await.expect("merged");
    let levels = world.levels().await;
    for (path, bytes) in world.memory.objects() {
        if path.contains("/deltas/") && !path.contains("/deltas/0/") {
            world.memory.overwrite(&path, bytes.slice(..bytes.len() - 1));
        }
    }
    world.pass(100 * 3600);
    let next = world.merging(world.memory.clone());
    next.tend().await.expect("looked");
    assert_eq!(world.levels().await[..2], [30, 0], "the damaged ones are gone, their parts are not");
    world.check().await;
    next.note(Span::new(29, 30).expect("forward"), 200, second(world.began + 300));
    next.tend().await.expect("merged");
    assert!(world.levels().await[1] > 0, "made of {levels:?}");
    assert!(world.check().await > 0);
}

#[tokio::test]
async fn states_that_do_not_follow_one_another_are_not_merged() {
    let (mut world, merging) = captured(3).await;
    // As if somebody else had written the one before: it leads to another state than the next begins with.
    *world.states.last_mut().expect("there is one") = pages(&[9, 9]);
    world.capture(state(4), &merging).await;
    world.pass(7200);
    let before = world.memory.objects();
    merging.tend().await.expect("all the rest is done");
    let merged = world.memory.objects().len() - before.len();
    let levels = world.levels().await;
    assert_eq!(levels[0], 4, "{levels:?}");
    assert!(merged <= 1, "at most the first of them within another period: {merged}");
}

#[tokio::test]
async fn deltas_that_outweigh_their_snapshot_ask_for_a_new_one() {
    let (world, merging) = captured(3).await;
    let mut snapshot = manifest(at("2026-11-22T10:00:00Z"), 1, None, &[]);
    snapshot.anchor = Some(Anchor { position: 1, checksum: 0 });
    merging.rests_on(&snapshot);
    merging.tend().await.expect("looked");
    assert!(!merging.outweighs_snapshot());
    // Heavier than what costs nothing to read.
    merging.note(Span::new(3, 4).expect("forward"), WEIGHT_MIN as usize, second(world.began + 31));
    merging.tend().await.expect("looked");
    assert!(merging.outweighs_snapshot());
    snapshot.stored.bytes = 2 * WEIGHT_MIN;
    merging.rests_on(&snapshot);
    assert!(!merging.outweighs_snapshot());
    // Those before the snapshot weigh nothing.
    snapshot.anchor = Some(Anchor { position: 4, checksum: 0 });
    snapshot.stored.bytes = 1;
    merging.rests_on(&snapshot);
    assert!(!merging.outweighs_snapshot());
}

/// One thing after the other.
async fn live(history: &[Pages], steps: &[(i64, u8, usize)]) {
    let mut world = World::new(history[0].clone()).await;
    let mut merging = world.merging(world.memory.clone());
    for ((pause, kind, calls), next) in steps.iter().zip(history.iter().cycle().skip(1)) {
        world.pass(*pause);
        world.capture(next.clone(), &merging).await;
        match kind {
            0..4 => {}
            4 => merging.tend().await.expect("tended"),
            // The process dies in the middle, or is about to; another one goes on.
            _ => {
                let moment = if *kind == 5 { Moment::Before } else { Moment::After };
                let dying = world.merging(Hooked::stopping(&world.memory, *calls, moment));
                let position = world.states.len() as u64 - 1;
                dying.note(Span::new(position - 1, position).expect("forward"), 200, second(world.began));
                let _ = dying.tend().await;
                merging = world.merging(world.memory.clone());
            }
        }
        world.check().await;
    }
    world.pass(100 * 3600);
    let span = Span::new(world.states.len() as u64 - 2, world.states.len() as u64 - 1).expect("forward");
    merging.note(span, 200, second(world.began));
    merging.tend().await.expect("tended");
    world.check().await;
    assert!(merging.rest().is_none_or(|rest| rest <= RHYTHM || rest >= Duration::from_secs(3600)));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, ..ProptestConfig::default() })]

    #[test]
    fn whenever_the_process_dies_all_that_is_left_proves_and_leads_to_the_end(
        history in any_history(),
        steps in prop::collection::vec((prop_oneof![1i64..20, 20i64..3000], 0u8..7, 0usize..40), 1..40),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
        runtime.block_on(live(&history, &steps));
    }
}
