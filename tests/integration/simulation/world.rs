//! What all machines of a history share: the objects, the weather, the true time, and what was told to whom.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::{Mutex, MutexGuard};

use lifeboat::clock::Timestamp;
use lifeboat::lineage::Known;
use lifeboat::snapshot::{Content, Digest, Head, Key, Manifest, Proof, Record, SnapshotId};
use lifeboat::storage::{Entry, Memory};

/// The commits a database holds, each with a number of its own.
pub type Commits = Vec<u32>;

pub struct World {
    pub memory: Memory,
    pub weather: Weather,
    state: Mutex<State>,
}

/// What may go wrong in a history; drawn once, at its beginning.
#[derive(Debug, Clone, Copy)]
pub struct Weather {
    /// Whether calls fail now and then, done or not, and the machine lives on.
    pub loses_answers: bool,
    /// Whether listings may be out of date.
    pub has_stale_lists: bool,
    /// Whether conditions on writes are honoured; else each is looked at first, and others come in between.
    pub honours_conditions: bool,
    /// Whether clocks jump and stand still.
    pub has_odd_clocks: bool,
    /// Whether notes get lost, and volumes are set back to older copies.
    pub loses_notes: bool,
    /// Whether stored data rots, and sources are found malformed.
    pub has_damage: bool,
}

#[derive(Default)]
pub struct State {
    random: u64,
    /// Seconds since the beginning.
    true_time: i64,
    clocks: BTreeMap<usize, Clock>,
    pub last_commit: u32,
    /// What each content is.
    pub contents: HashMap<String, Commits>,
    /// Every head there was.
    pub heads: Vec<Head>,
    /// Snapshots that a writer was told are the newest, or stored on its branch.
    pub acknowledged: Vec<SnapshotId>,
    /// Snapshots that a prune removed.
    pub pruned: BTreeSet<SnapshotId>,
    /// Branches that somebody asked to adopt.
    pub adopting: BTreeSet<SnapshotId>,
    /// Epochs of writers of which nobody could know where their databases come from.
    pub guesses: BTreeSet<u64>,
    /// Snapshots whose data was damaged in storage.
    pub rotten: BTreeSet<SnapshotId>,
    /// Data and manifests that were ever created.
    pub created: BTreeSet<String>,
    pub proofs_written: usize,
    /// When each object was written, by the store's clock.
    pub written: BTreeMap<String, Timestamp>,
    /// What each listing showed the last time.
    pub listings: HashMap<String, Vec<Entry>>,
    /// What each machine has on its volume.
    pub volumes: BTreeMap<usize, Volume>,
    /// Copies that were made of volumes.
    pub copies: Vec<Volume>,
    pub counts: Counts,
}

#[derive(Clone, Default)]
pub struct Volume {
    pub commits: Commits,
    pub note: Option<Known>,
    /// When the database was last written, by the machine's clock.
    pub modified_at: Option<Timestamp>,
}

/// How often something happened: what a test looks at to see that histories are not dull.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub acknowledged: usize,
    pub branches: usize,
    pub adopted: usize,
    pub fenced: usize,
    pub deaths: usize,
    pub failures: usize,
    pub guesses: usize,
    pub proven: usize,
    pub refuted: usize,
    pub pruned: usize,
    pub clock_jumps: usize,
    pub handovers: usize,
}

impl Counts {
    pub fn all(&self) -> [(&'static str, usize); 12] {
        [
            ("acknowledged", self.acknowledged),
            ("branches", self.branches),
            ("adopted", self.adopted),
            ("fenced", self.fenced),
            ("deaths", self.deaths),
            ("failures", self.failures),
            ("guesses", self.guesses),
            ("proven", self.proven),
            ("refuted", self.refuted),
            ("pruned", self.pruned),
            ("clock jumps", self.clock_jumps),
            ("handovers", self.handovers),
        ]
    }
}

/// What a machine takes for the time.
#[derive(Clone, Copy)]
enum Clock {
    /// The true time and so many seconds.
    Off(i64),
    /// Always this.
    Stopped(i64),
}

/// The first of January 2027.
const BEGINNING: i64 = 1_798_761_600;

/// The first of January 2099.
const FAR: i64 = 4_070_908_800;

const DAY: i64 = 86_400;

impl World {
    pub fn new(seed: u64) -> World {
        let random = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let state = Mutex::new(State { random, ..State::default() });
        let calm = Weather {
            loses_answers: false,
            has_stale_lists: false,
            honours_conditions: true,
            has_odd_clocks: false,
            loses_notes: false,
            has_damage: false,
        };
        let mut world = World { memory: Memory::default(), weather: calm, state };
        for _ in 0..8 {
            world.below(2);
        }
        world.weather = Weather {
            loses_answers: world.below(2) == 0,
            has_stale_lists: world.below(4) == 0,
            honours_conditions: world.below(8) != 0,
            has_odd_clocks: world.below(2) == 0,
            loses_notes: world.below(3) == 0,
            has_damage: world.below(3) == 0,
        };
        world
    }

    pub fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked")
    }

    pub fn count(&self, count: impl FnOnce(&mut Counts) -> &mut usize) {
        *count(&mut self.state().counts) += 1;
    }

    pub fn below(&self, bound: u64) -> u64 {
        let mut state = self.state();
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        state.random % bound
    }

    /// The true time, which is the store's, and moves on by looking at it: mostly by a second, now
    /// and then by up to three days.
    pub fn true_now(&self) -> Timestamp {
        let step = if self.below(12) == 0 { self.below(3 * DAY as u64) } else { 1 };
        let mut state = self.state();
        state.true_time += step as i64;
        Timestamp::from_second(BEGINNING + state.true_time).expect("in range")
    }

    /// What the machine takes for the time.
    pub fn now(&self, machine: usize) -> Timestamp {
        let true_now = self.true_now();
        let second = match self.state().clocks.get(&machine) {
            None => return true_now,
            Some(Clock::Off(seconds)) => true_now.as_second() + seconds,
            Some(Clock::Stopped(second)) => *second,
        };
        Timestamp::from_second(second).expect("in range")
    }

    /// The machine's clock jumps back by up to a year, or to 2099; it stops; it is set right.
    pub fn upset_clock(&self, machine: usize) {
        let true_now = self.true_now().as_second();
        let clock = match self.below(4) {
            0 => Clock::Off(-(self.below(365 * DAY as u64) as i64)),
            1 => Clock::Off(FAR - true_now),
            2 => Clock::Stopped(true_now),
            _ => Clock::Off(0),
        };
        self.state().clocks.insert(machine, clock);
        self.count(|counts| &mut counts.clock_jumps);
    }

    pub fn record<R: Record>(&self, key: &Key) -> Option<R> {
        let path = key.path();
        let (_, bytes) = self.memory.objects().into_iter().find(|(other, _)| *other == path)?;
        R::decode(&bytes, key).ok()
    }

    pub fn manifest(&self, id: &SnapshotId) -> Option<Manifest> {
        self.record(&Key::Manifest(name(), id.clone()))
    }

    /// Every snapshot there truly is, newest first.
    pub fn manifests(&self) -> Vec<Manifest> {
        let objects = self.memory.objects().into_iter().rev();
        let manifests = objects.filter_map(|(path, bytes)| match Key::parse(&path)? {
            key @ Key::Manifest(..) => Some(Manifest::decode(&bytes, &key).expect("readable")),
            _ => None,
        });
        manifests.collect()
    }

    pub fn drill(&self, id: &SnapshotId) -> Option<Proof> {
        self.record(&Key::Proof(name(), id.clone()))
    }

    pub fn commits(&self, manifest: &Manifest) -> Commits {
        self.state().contents[&manifest.plain.sha256.to_string()].clone()
    }
}

pub fn name() -> lifeboat::snapshot::DatabaseName {
    "app".parse().expect("a name")
}

pub fn content(commits: &Commits) -> Content {
    let bytes: Vec<u8> = commits.iter().flat_map(|commit| commit.to_be_bytes()).collect();
    Content { bytes: 512, sha256: Digest::of(&bytes) }
}
