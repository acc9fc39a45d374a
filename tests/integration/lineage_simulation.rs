//! Two or three machines over one storage in memory, their storage calls interleaved by a seed: they
//! start, write, publish, die, come back, start from a copy of another's volume, and somebody adopts.
//!
//! A history that fails prints its seed, and `run(seed)` replays it.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard};

use async_trait::async_trait;
use bytes::Bytes;
use lifeboat::adopt;
use lifeboat::catalog::{Catalog, branches};
use lifeboat::clock::{Clock, Timestamp};
use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::lineage::{self, Evidence, Fork, Known, Likeness, Newest, Standing, Verdict};
use lifeboat::snapshot::{
    Content, Digest, FORMAT, Flag, Head, Key, Manifest, Record, SnapshotId, SqliteFacts, TOOL,
};
use lifeboat::storage::{Entry, Guarantees, Memory, Object, Parts, Storage, Version, whole};

const HISTORIES: u64 = 800;

/// The commits a database holds, each with a number of its own.
type Commits = Vec<u32>;

/// What all machines of a history share.
struct World {
    memory: Memory,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    random: u64,
    seconds: i64,
    last_commit: u32,
    /// What each content is.
    contents: HashMap<String, Commits>,
    /// Every head there was.
    heads: Vec<Head>,
    /// Snapshots that a writer was told are the newest.
    acknowledged: Vec<SnapshotId>,
    /// What each machine has on its volume: its database and its note.
    volumes: BTreeMap<usize, Volume>,
    adoptions: usize,
    branches: usize,
    fenced: usize,
    deaths: usize,
}

#[derive(Clone, Default)]
struct Volume {
    commits: Commits,
    known: Option<Known>,
}

impl World {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect("nobody panicked")
    }

    fn below(&self, bound: u64) -> u64 {
        let mut state = self.state();
        state.random ^= state.random << 13;
        state.random ^= state.random >> 7;
        state.random ^= state.random << 17;
        state.random % bound
    }

    fn now(&self) -> Timestamp {
        let mut state = self.state();
        state.seconds += 1;
        Timestamp::from_second(1_800_000_000 + state.seconds).expect("in range")
    }

    fn record<R: Record>(&self, key: &Key) -> Option<R> {
        let (_, bytes) = self.memory.objects().into_iter().find(|(path, _)| *path == key.path())?;
        Some(R::decode(&bytes, key).expect("readable"))
    }

    fn manifest(&self, id: &SnapshotId) -> Manifest {
        let name = "app".parse().expect("a name");
        self.record(&Key::Manifest(name, id.clone())).unwrap_or_else(|| panic!("{id} is listed"))
    }

    fn commits(&self, manifest: &Manifest) -> Commits {
        self.state().contents[&manifest.plain.sha256.to_string()].clone()
    }

    /// The head was written: it moves along one order of epochs, names what exists, and holds all that
    /// the one before it held, unless somebody adopted the other side.
    fn check_head(&self, head: &Head) {
        let before = self.state().heads.last().cloned();
        if let Some(before) = &before {
            assert!(
                head.epoch >= before.epoch && head.snapshot >= before.snapshot,
                "{before:?} then {head:?}"
            );
        }
        if let Some(id) = &head.snapshot {
            let manifest = self.manifest(id);
            assert!(!manifest.is_branch(), "a branch became head");
            let is_adoption =
                manifest.parent.as_ref().is_some_and(|parent| self.manifest(parent).is_branch());
            let old = before.and_then(|before| before.snapshot).filter(|old| old != id);
            match old {
                Some(_) if is_adoption => {
                    self.state().adoptions -= 1;
                }
                Some(old) => {
                    let (old, new) = (self.commits(&self.manifest(&old)), self.commits(&manifest));
                    assert!(new.starts_with(&old), "the newest lost commits: {old:?} then {new:?}");
                }
                None => {}
            }
        }
        self.state().heads.push(head.clone());
    }
}

/// The storage as one life of one machine sees it: others come in between, answers are lost, and at
/// some call the machine dies.
struct Link {
    world: Arc<World>,
    calls_left: Mutex<Option<u64>>,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Link")
    }
}

fn dead() -> Error {
    Error::new(ErrorKind::Unavailable, "the machine is dead")
}

impl Link {
    async fn around<T>(&self, call: impl Future<Output = Result<T>>) -> Result<T> {
        for _ in 0..self.world.below(4) {
            tokio::task::yield_now().await;
        }
        let dies = {
            let mut left = self.calls_left.lock().expect("nobody panicked");
            match left.as_mut() {
                Some(0) => return Err(dead()),
                Some(left) => {
                    *left -= 1;
                    *left == 0
                }
                None => false,
            }
        };
        // Half of the last calls take effect.
        if dies && self.world.below(2) == 0 {
            return Err(dead());
        }
        let answer = call.await;
        for _ in 0..self.world.below(3) {
            tokio::task::yield_now().await;
        }
        if dies { Err(dead()) } else { answer }
    }
}

#[async_trait]
impl Storage for Link {
    fn location(&self) -> String {
        "memory".to_owned()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        self.around(self.world.memory.create(key, parts)).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        let replace = async {
            let version = self.world.memory.replace(key, expected, bytes.clone()).await?;
            if matches!(key, Key::Head(_)) {
                self.world.check_head(&Head::decode(&bytes, key).expect("ours"));
            }
            Ok(version)
        };
        self.around(replace).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.around(self.world.memory.read(key, bytes_max)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.around(self.world.memory.read_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.around(self.world.memory.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        self.around(self.world.memory.list(prefix)).await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.around(self.world.memory.delete(key)).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.world.memory.sweep_unfinished(older_than).await
    }

    fn guarantees(&self) -> Guarantees {
        Guarantees::FULL
    }
}

fn catalog(world: &Arc<World>, calls_left: Option<u64>) -> Catalog {
    let link = Link { world: Arc::clone(world), calls_left: Mutex::new(calls_left) };
    Catalog::new(Arc::new(link), "app".parse().expect("a name"))
}

fn content(commits: &Commits) -> Content {
    let bytes: Vec<u8> = commits.iter().flat_map(|commit| commit.to_be_bytes()).collect();
    Content { bytes: 512, sha256: Digest::of(&bytes) }
}

/// One start of one machine, until it stops in order, is fenced, or dies.
struct Life {
    world: Arc<World>,
    machine: usize,
    catalog: Catalog,
    standing: Standing,
}

impl Life {
    fn volume(&self) -> Volume {
        self.world.state().volumes[&self.machine].clone()
    }

    fn change(&self, act: impl FnOnce(&mut Volume)) {
        act(self.world.state().volumes.get_mut(&self.machine).expect("there"));
    }

    /// Judges as a start does, and claims the head or a branch.
    async fn begin(world: &Arc<World>, machine: usize, calls_left: Option<u64>) -> Result<Life> {
        let catalog = catalog(world, calls_left);
        let has_volume = world.state().volumes.contains_key(&machine);
        if !has_volume {
            let restored = catalog.newest().await?;
            let volume = restored
                .map(|manifest| Volume { commits: world.commits(&manifest), known: Some(known(&manifest)) });
            world.state().volumes.insert(machine, volume.unwrap_or_default());
        }
        loop {
            let volume = world.state().volumes[&machine].clone();
            let newest = match catalog.newest_id().await? {
                Some(id) => Some(catalog.manifest(&id).await?),
                None => None,
            };
            let facts = newest.as_ref().map(|newest| Newest {
                id: newest.id.clone(),
                content: Some((newest.plain.sha256, newest.taken_at)),
            });
            let likeness = match &newest {
                Some(newest) if newest.plain == content(&volume.commits) => Likeness::Newest,
                // A machine that began with nothing when there was nothing.
                Some(_) if volume.known.is_none() => Likeness::Absent,
                _ => Likeness::Unknown,
            };
            let evidence = Evidence { known: volume.known, modified_at: None, likeness };
            let claimed = match lineage::judge(facts.as_ref(), &evidence) {
                Verdict::Descends => {
                    let newest = facts.as_ref().map(|facts| &facts.id);
                    catalog.claim_epoch_after(newest, "machine", world.now()).await.map(Standing::head)
                }
                Verdict::Older(fork) => {
                    world.state().branches += 1;
                    let epoch = catalog.claim_branch("machine", world.now()).await?;
                    Ok(Standing { epoch, fork: Some(fork) })
                }
                Verdict::Unknown => panic!("every machine has a note"),
            };
            match claimed {
                Ok(standing) => return Ok(Life { world: Arc::clone(world), machine, catalog, standing }),
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
    }

    fn write(&self) {
        let mut state = self.world.state();
        state.last_commit += 1;
        let commit = state.last_commit;
        state.volumes.get_mut(&self.machine).expect("there").commits.push(commit);
    }

    /// A snapshot as `backup::run` takes it: what it follows, data, note, manifest, head, note.
    async fn back_up(&mut self) -> Result<()> {
        let identity = self.catalog.ensure_identity(self.world.now(), 7).await?;
        let parent = match &self.standing.fork {
            Some(fork) => fork.from.clone(),
            None => {
                let head = self.catalog.head().await?.map(|(head, _)| head);
                lineage::may_publish(head.as_ref(), self.standing.epoch)?;
                head.and_then(|head| head.snapshot)
            }
        };
        let commits = self.volume().commits;
        let plain = content(&commits);
        self.world.state().contents.insert(plain.sha256.to_string(), commits);
        let taken_at = self.world.now();
        let data = Bytes::from(format!("{:?}", plain.sha256).into_bytes());
        let manifest = Manifest {
            format: FORMAT,
            id: SnapshotId::next(taken_at, parent.as_ref(), self.world.below(1 << 32) as u32),
            database: self.catalog.database().clone(),
            database_id: identity.database_id,
            parent,
            epoch: self.standing.epoch,
            taken_at,
            took_ms: 0,
            writer_blocked_ms: 0,
            page_size: 512,
            page_count: 1,
            frame_bytes: 512,
            zstd_level: 1,
            plain,
            stored: Content { bytes: data.len() as u64, sha256: Digest::of(&data) },
            sqlite: SqliteFacts {
                user_version: 0,
                application_id: 0,
                journal_mode: "wal".to_owned(),
                encoding: "UTF-8".to_owned(),
                freelist_count: 0,
                schema_sha256: Digest::of(b""),
                written_by: 0,
            },
            flags: self.standing.fork.iter().map(|_| Flag::Branch).collect(),
            baseline: None,
            tool: TOOL.to_owned(),
        };
        self.catalog.storage().create(&manifest.data_key(), whole(data)).await?;
        if let Some(Fork { from, .. }) = &mut self.standing.fork {
            self.catalog.publish_branch(&manifest, manifest.epoch).await?;
            *from = Some(manifest.id.clone());
        } else {
            self.change(|volume| {
                if let Some(known) = &mut volume.known {
                    known.pending = Some(manifest.id.clone());
                }
            });
            self.catalog.publish(&manifest, manifest.epoch, self.world.now()).await?;
            self.world.state().acknowledged.push(manifest.id.clone());
        }
        self.change(|volume| volume.known = Some(known(&manifest)));
        Ok(())
    }

    async fn run(mut self) -> Result<()> {
        for _ in 0..=self.world.below(3) {
            for _ in 0..self.world.below(3) {
                self.write();
            }
            self.back_up().await?;
            tokio::task::yield_now().await;
        }
        match self.standing.fork {
            None => self.catalog.release_epoch(self.standing.epoch, self.world.now()).await,
            Some(_) => Ok(()),
        }
    }
}

fn known(manifest: &Manifest) -> Known {
    Known {
        snapshot: manifest.id.clone(),
        sha256: manifest.plain.sha256,
        is_branch: manifest.is_branch(),
        pending: None,
    }
}

async fn machine(world: Arc<World>, number: usize) {
    for _ in 0..=world.below(3) {
        let copied = world.below(4);
        // A volume lost, or an older or newer copy of another machine's.
        if copied == 0 {
            world.state().volumes.remove(&number);
        } else if copied == 1 {
            let other = world.state().volumes.values().next().cloned();
            if let Some(other) = other {
                world.state().volumes.insert(number, other);
                // It lies around for a while before it is started.
                for _ in 0..world.below(60) {
                    tokio::task::yield_now().await;
                }
            }
        }
        let dies = world.below(3) == 0;
        let calls_left = match dies {
            true => Some(1 + world.below(40)),
            false => None,
        };
        let ended = match Life::begin(&world, number, calls_left).await {
            Ok(life) => life.run().await,
            Err(error) => Err(error),
        };
        match ended {
            Ok(()) => {}
            Err(error) if error.kind() == ErrorKind::Unavailable => world.state().deaths += 1,
            Err(error) if error.kind() == ErrorKind::Fenced => world.state().fenced += 1,
            Err(error) => panic!("{}", error.chain()),
        }
    }
}

/// Somebody adopts a branch now and then.
async fn operator(world: Arc<World>) {
    if world.below(3) != 0 {
        return;
    }
    for _ in 0..world.below(200) {
        tokio::task::yield_now().await;
    }
    let catalog = catalog(&world, None);
    let branches = branches(&catalog.list().await.expect("listed").snapshots);
    let open = branches.into_iter().find(|branch| branch.adopted_as.is_none());
    let Some(branch) = open else { return };
    let plan = adopt::plan(&catalog, Some(branch.newest)).await.expect("it is a branch");
    world.state().adoptions += 1;
    let of_world = Arc::clone(&world);
    let clock = Clock::from_fn(move || of_world.now());
    match adopt::apply(&catalog, &plan, &clock).await {
        Ok(adopted) => world.state().acknowledged.push(adopted.id),
        // Somebody started meanwhile.
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
            let mut state = world.state();
            state.adoptions = state.adoptions.saturating_sub(1);
        }
    }
}

/// One history; returns its counts: acknowledged, branches, fenced, deaths.
async fn history(seed: u64) -> [usize; 4] {
    let world = Arc::new(World {
        memory: Memory::default(),
        state: Mutex::new(State { random: seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1, ..State::default() }),
    });
    for _ in 0..8 {
        world.below(2);
    }
    let machines = 2 + world.below(2) as usize;
    let all = (0..machines).map(|number| machine(Arc::clone(&world), number));
    tokio::join!(futures::future::join_all(all), operator(Arc::clone(&world)));

    let objects: Vec<String> = world.memory.objects().into_iter().map(|(path, _)| path).collect();
    let state = world.state();
    let acknowledged = state.acknowledged.clone();
    let counts = [acknowledged.len(), state.branches, state.fenced, state.deaths];
    drop(state);
    for id in &acknowledged {
        let manifest = world.manifest(id);
        assert!(!manifest.is_branch(), "{id} was acknowledged as the newest");
        assert!(objects.contains(&manifest.data_key().path()), "{id} has its data");
    }
    let newest = world.state().heads.last().and_then(|head| head.snapshot.clone());
    assert!(acknowledged.iter().max() <= newest.as_ref(), "the newest is at least what was acknowledged");
    counts
}

fn run(seed: u64) -> [usize; 4] {
    let runtime = tokio::runtime::Builder::new_current_thread().build().expect("a runtime");
    runtime.block_on(history(seed))
}

#[test]
fn no_interleaving_loses_what_was_acknowledged() {
    let mut sums = [0; 4];
    for seed in 1..=HISTORIES {
        let counts = std::panic::catch_unwind(|| run(seed)).unwrap_or_else(|_| panic!("the seed is {seed}"));
        sums.iter_mut().zip(counts).for_each(|(sum, count)| *sum += count);
    }
    let [acknowledged, branches, fenced, deaths] = sums;
    println!(
        "{HISTORIES} histories: {acknowledged} acknowledged, {branches} branches, {fenced} fenced, {deaths} deaths"
    );
    assert!(sums.iter().all(|sum| *sum as u64 > HISTORIES / 10), "the histories are dull: {sums:?}");
}
