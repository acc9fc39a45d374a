//! What a machine does: it starts with what is on its volume, or restores; it writes, backs up, proves
//! and prunes; it stops in order, is fenced off, or dies.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use lifeboat::adopt;
use lifeboat::catalog::{Catalog, branches};
use lifeboat::clock::{Clock, Timestamp};
use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::lineage::{self, Evidence, Fork, Known, Likeness, Newest, Standing, Verdict};
use lifeboat::prune;
use lifeboat::snapshot::{
    Content, Digest, FORMAT, Flag, Identity, Manifest, Proof, SnapshotId, SqliteFacts, TOOL,
};
use lifeboat::storage::whole;

use super::checks::Pruning;
use super::link::Link;
use super::world::{Volume, World, content};

/// One start of one machine.
#[derive(Clone)]
struct Life {
    world: Arc<World>,
    machine: usize,
    link: Arc<Link>,
    catalog: Catalog,
    standing: Standing,
}

/// A machine's starts, one after the other.
pub async fn machine(world: Arc<World>, number: usize) {
    for _ in 0..=world.below(3) {
        trouble(&world, number).await;
        let calls_left = match world.below(3) {
            0 => Some(1 + world.below(60)),
            _ => None,
        };
        let link = Link::of_life(&world, calls_left);
        let ended = match Life::begin(&world, number, &link).await {
            Ok(life) => life.run().await,
            Err(error) => Err(error),
        };
        match ended.map_err(|error| (error.kind(), error)) {
            Ok(()) => {}
            Err((ErrorKind::Unavailable | ErrorKind::Busy, _)) if link.is_dead() => {
                world.count(|counts| &mut counts.deaths);
            }
            Err((ErrorKind::Unavailable | ErrorKind::Busy, _)) => {}
            Err((ErrorKind::Fenced, _)) => world.count(|counts| &mut counts.fenced),
            // The newest is damaged, and there is nothing to start with.
            Err((ErrorKind::Corrupt, _)) if !world.state().rotten.is_empty() => {}
            Err((_, error)) => panic!("{}", error.chain()),
        }
        let volume = world.state().volumes.get(&number).cloned();
        world.state().copies.extend(volume);
    }
}

/// What happens to a machine between two starts.
async fn trouble(world: &World, number: usize) {
    match world.below(4) {
        // Lost with its volume.
        0 => drop(world.state().volumes.remove(&number)),
        // Started from a copy of some volume, its own or another's, that lay around for a while.
        1 => {
            let copies: Vec<Volume> = {
                let state = world.state();
                let living = state.volumes.values().take(1).cloned();
                living.chain(state.copies.iter().cloned()).collect()
            };
            if !copies.is_empty() {
                let copy = copies[world.below(copies.len() as u64) as usize].clone();
                world.state().volumes.insert(number, copy);
                for _ in 0..world.below(60) {
                    tokio::task::yield_now().await;
                }
            }
        }
        _ => {}
    }
    if world.weather.loses_notes && world.below(3) == 0 {
        // Gone, or half-written, which is as good as gone.
        world.state().volumes.entry(number).and_modify(|volume| volume.note = None);
    }
    if world.weather.has_odd_clocks && world.below(2) == 0 {
        world.upset_clock(number);
    }
}

impl Life {
    /// Judges as a start does, and claims the head or a branch.
    async fn begin(world: &Arc<World>, machine: usize, link: &Arc<Link>) -> Result<Life> {
        let catalog = link.catalog();
        if !world.state().volumes.contains_key(&machine) {
            let volume = restored(world, &catalog).await?;
            world.state().volumes.insert(machine, volume);
        }
        let life = |standing| Life {
            world: Arc::clone(world),
            machine,
            link: Arc::clone(link),
            catalog: catalog.clone(),
            standing,
        };
        loop {
            let volume = world.state().volumes[&machine].clone();
            let judged = judge(&catalog, &volume).await?;
            let now = world.now(machine);
            let claimed = match judged.verdict {
                Verdict::Older(fork) => {
                    let epoch = catalog.claim_branch("machine", now).await?;
                    world.count(|counts| &mut counts.branches);
                    return Ok(life(Standing { epoch, fork: Some(fork) }));
                }
                Verdict::Unknown => {
                    world.count(|counts| &mut counts.guesses);
                    let claimed = catalog.claim_epoch_after(judged.newest.as_ref(), "machine", now).await;
                    claimed.inspect(|epoch| {
                        world.state().guesses.insert(*epoch);
                    })
                }
                Verdict::Descends => catalog.claim_epoch_after(judged.newest.as_ref(), "machine", now).await,
            };
            match claimed {
                Ok(epoch) => return Ok(life(Standing::head(epoch))),
                // Somebody published meanwhile.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                Err(error) => return Err(error),
            }
        }
    }

    async fn run(mut self) -> Result<()> {
        for _ in 0..=self.world.below(3) {
            for _ in 0..self.world.below(3) {
                self.write();
            }
            if self.world.weather.has_odd_clocks && self.world.below(6) == 0 {
                self.world.upset_clock(self.machine);
            }
            let stored = match self.by_hand() {
                Some(mut by_hand) => {
                    let (stored, other) = tokio::join!(self.back_up(), by_hand.back_up());
                    self.goes_on(other)?;
                    stored
                }
                None => self.back_up().await,
            };
            self.goes_on(stored)?;
            if self.world.below(2) == 0 {
                let proven = self.drill().await;
                self.goes_on(proven)?;
            }
            if self.world.below(2) == 0 {
                let pruned = match self.by_hand() {
                    Some(mut by_hand) => {
                        let (pruned, other) = tokio::join!(self.prune(), by_hand.back_up());
                        self.goes_on(other)?;
                        pruned
                    }
                    None => self.prune().await,
                };
                self.goes_on(pruned)?;
            }
            tokio::task::yield_now().await;
        }
        match self.standing.fork {
            None => self.catalog.release_epoch(self.standing.epoch, self.now()).await,
            Some(_) => Ok(()),
        }
    }

    /// Now and then somebody runs `lifeboat backup`, which publishes beside the daemon, under the same
    /// epoch. (Two that ask a clock that stands still may share a millisecond, and chance orders them.)
    fn by_hand(&self) -> Option<Life> {
        let is_due = self.world.below(4) == 0 && !self.world.weather.has_odd_clocks;
        let link = self.link.beside();
        is_due.then(|| Life { catalog: link.catalog(), link, ..self.clone() })
    }

    /// A job that failed is no reason to stop, unless the machine is dead, or fenced off.
    fn goes_on(&self, ended: Result<()>) -> Result<()> {
        let Err(error) = ended else { return Ok(()) };
        match error.kind() {
            ErrorKind::Unavailable if self.link.is_dead() => Err(error),
            ErrorKind::Unavailable | ErrorKind::Busy => {
                self.world.count(|counts| &mut counts.failures);
                Ok(())
            }
            // Another snapshot came in between, or is gone.
            ErrorKind::Conflict | ErrorKind::NotFound => Ok(()),
            _ => Err(error),
        }
    }

    fn now(&self) -> Timestamp {
        self.world.now(self.machine)
    }

    fn volume(&self) -> Volume {
        self.world.state().volumes[&self.machine].clone()
    }

    fn change(&self, act: impl FnOnce(&mut Volume)) {
        act(self.world.state().volumes.get_mut(&self.machine).expect("there"));
    }

    fn write(&self) {
        let now = self.now();
        let commit = {
            let mut state = self.world.state();
            state.last_commit += 1;
            state.last_commit
        };
        self.change(|volume| {
            volume.commits.push(commit);
            volume.modified_at = Some(now);
        });
    }

    /// A snapshot as `backup::run` takes it: what it follows, data, note, manifest, head, note.
    async fn back_up(&mut self) -> Result<()> {
        if self.standing.fork.is_some() {
            self.rejoin().await?;
        }
        let parent = match &self.standing.fork {
            Some(fork) => fork.from.clone(),
            None => {
                let head = self.catalog.head().await?.map(|(head, _)| head);
                lineage::may_publish(head.as_ref(), self.standing.epoch)?;
                head.and_then(|head| head.snapshot)
            }
        };
        let random = u128::from(self.world.below(1 << 40));
        let identity = self.catalog.ensure_identity(self.now(), random).await?;
        let manifest = self.manifest(parent, identity);
        let data = Bytes::from(format!("{:?}", manifest.plain.sha256).into_bytes());
        self.catalog.storage().create(&manifest.data_key(), whole(data)).await?;
        if self.standing.fork.is_some() {
            self.catalog.publish_branch(&manifest, manifest.epoch).await?;
        } else {
            self.change(|volume| {
                if let Some(note) = &mut volume.note {
                    note.pending = Some(manifest.id.clone());
                }
            });
            self.catalog.publish(&manifest, manifest.epoch, self.now()).await?;
        }
        if let Some(Fork { from, .. }) = &mut self.standing.fork {
            *from = Some(manifest.id.clone());
        }
        self.world.count(|counts| &mut counts.acknowledged);
        self.world.state().acknowledged.push(manifest.id.clone());
        self.change(|volume| volume.note = Some(note(&manifest)));
        Ok(())
    }

    fn manifest(&self, parent: Option<SnapshotId>, identity: Identity) -> Manifest {
        let commits = self.volume().commits;
        let plain = content(&commits);
        self.world.state().contents.insert(plain.sha256.to_string(), commits);
        let data = format!("{:?}", plain.sha256);
        let taken_at = self.now();
        let is_malformed = self.world.weather.has_damage && self.world.below(10) == 0;
        let flags = [(is_malformed, Flag::Malformed), (self.standing.fork.is_some(), Flag::Branch)];
        Manifest {
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
            stored: Content { bytes: data.len() as u64, sha256: Digest::of(data.as_bytes()) },
            sqlite: SqliteFacts {
                user_version: 0,
                application_id: 0,
                journal_mode: "wal".to_owned(),
                encoding: "UTF-8".to_owned(),
                freelist_count: 0,
                schema_sha256: Digest::of(b""),
                written_by: 0,
            },
            flags: flags.into_iter().filter_map(|(holds, flag)| holds.then_some(flag)).collect(),
            baseline: None,
            anchor: None,
            tool: TOOL.to_owned(),
        }
    }

    /// A branch looks before each of its snapshots whether it was adopted.
    async fn rejoin(&mut self) -> Result<()> {
        let judged = judge(&self.catalog, &Volume { modified_at: None, ..self.volume() }).await?;
        if judged.verdict == Verdict::Descends {
            let newest = judged.newest.as_ref();
            let epoch = self.catalog.claim_epoch_after(newest, "machine", self.now()).await?;
            self.standing = Standing::head(epoch);
        }
        Ok(())
    }

    /// Reads one snapshot back, and says in storage what came of it.
    async fn drill(&self) -> Result<()> {
        let manifest = match self.world.below(3) {
            0 => {
                let mut listed = self.catalog.list().await?.snapshots;
                if listed.is_empty() {
                    return Ok(());
                }
                listed.swap_remove(self.world.below(listed.len() as u64) as usize)
            }
            _ => match self.catalog.newest().await? {
                Some(newest) => newest,
                None => return Ok(()),
            },
        };
        if self.world.weather.has_damage && self.world.below(6) == 0 {
            self.rot(&manifest);
        }
        let bytes = self.catalog.storage().read_range(&manifest.data_key(), 0..manifest.stored.bytes).await?;
        let is_whole = Digest::of(&bytes) == manifest.stored.sha256;
        let proof = Proof {
            format: FORMAT,
            snapshot: manifest.id.clone(),
            proven_at: self.now(),
            took_ms: 1,
            check: "integrity_check".to_owned(),
            assertion: None,
            failure: (!is_whole).then(|| "damaged".to_owned()),
            tool: TOOL.to_owned(),
        };
        self.world.count(|counts| if is_whole { &mut counts.proven } else { &mut counts.refuted });
        self.catalog.write_proof(&proof).await
    }

    fn rot(&self, manifest: &Manifest) {
        let path = manifest.data_key().path();
        if self.world.memory.objects().iter().any(|(other, _)| *other == path) {
            self.world.memory.overwrite(&path, vec![b'?'; manifest.stored.bytes as usize]);
            self.world.state().rotten.insert(manifest.id.clone());
        }
    }

    async fn prune(&self) -> Result<()> {
        if self.standing.fork.is_some() {
            return Ok(());
        }
        let last = 1 + self.world.below(2);
        let policy = format!("{last}l").parse().expect("a policy");
        let safety_age = Duration::from_secs([0, 60, 3_600, 86_400][self.world.below(4) as usize]);
        let (now, proofs_written) = (self.now(), self.world.state().proofs_written);
        let plan = prune::plan(
            &self.catalog,
            prune::Rules { policy: &policy, point_in_time: Duration::ZERO, safety_age },
            now,
        )
        .await?;
        self.link.prunes(Some(Pruning { now, safety_age, last: last as usize, proofs_written }));
        let (_, ended) = prune::apply(&self.catalog, &plan, self.standing.epoch).await;
        self.link.prunes(None);
        ended
    }
}

/// What a machine without a volume begins with: the newest snapshot, if there is one; it may wait for the
/// one before it to let go.
async fn restored(world: &Arc<World>, catalog: &Catalog) -> Result<Volume> {
    if world.below(2) == 0 {
        for _ in 0..world.below(8) {
            if catalog.head().await?.is_some_and(|(head, _)| head.released) {
                world.count(|counts| &mut counts.handovers);
                break;
            }
            tokio::task::yield_now().await;
        }
    }
    let Some(manifest) = catalog.newest().await? else { return Ok(Volume::default()) };
    if world.state().rotten.contains(&manifest.id) {
        return Err(Error::new(ErrorKind::Corrupt, "the newest snapshot is damaged"));
    }
    let commits = world.commits(&manifest);
    Ok(Volume { commits, note: Some(note(&manifest)), modified_at: None })
}

struct Judged {
    verdict: Verdict,
    newest: Option<SnapshotId>,
}

/// As a start judges by what the volume shows.
async fn judge(catalog: &Catalog, volume: &Volume) -> Result<Judged> {
    let newest = match catalog.newest_id().await? {
        Some(id) => Some(catalog.manifest(&id).await?),
        None => None,
    };
    let facts = newest.as_ref().map(|newest| Newest {
        id: newest.id.clone(),
        content: Some((newest.plain.sha256, newest.taken_at)),
    });
    let here = content(&volume.commits);
    let likeness = match &newest {
        Some(newest) if newest.plain == here => Likeness::Newest,
        Some(_) if volume.commits.is_empty() => Likeness::Absent,
        Some(_) if volume.note.is_none() => {
            let listed = catalog.list().await?.snapshots;
            let older = listed.into_iter().find(|manifest| manifest.plain == here);
            older.map_or(Likeness::None, |older| Likeness::Older(older.id))
        }
        _ => Likeness::Unknown,
    };
    let evidence = Evidence { known: volume.note.clone(), modified_at: volume.modified_at, likeness };
    let verdict = lineage::judge(facts.as_ref(), &evidence);
    Ok(Judged { verdict, newest: facts.map(|facts| facts.id) })
}

fn note(manifest: &Manifest) -> Known {
    Known {
        snapshot: manifest.id.clone(),
        sha256: manifest.plain.sha256,
        is_branch: manifest.is_branch(),
        pending: None,
    }
}

/// Somebody adopts a branch now and then.
pub async fn operator(world: Arc<World>) {
    if world.below(2) != 0 {
        return;
    }
    for _ in 0..world.below(300) {
        tokio::task::yield_now().await;
    }
    let catalog = Link::calm(&world).catalog();
    let listed = catalog.list().await.expect("listed").snapshots;
    // A head that rotted names nothing.
    let newest = catalog.newest_id().await.ok().flatten();
    let branches = branches(&listed, newest.as_ref());
    let open = branches.into_iter().find(|branch| branch.adopted_as.is_none());
    let Some(branch) = open else { return };
    let plan = match adopt::plan(&catalog, Some(branch.newest)).await {
        Ok(plan) => plan,
        // Pruned meanwhile.
        Err(error) => return assert_eq!(error.kind(), ErrorKind::NotFound, "{}", error.chain()),
    };
    world.state().adopting.insert(plan.snapshot.clone());
    let of_world = Arc::clone(&world);
    let clock = Clock::from_fn(move || of_world.true_now());
    match adopt::apply(&catalog, &plan, &clock).await {
        Ok(adopted) => {
            world.count(|counts| &mut counts.adopted);
            world.state().acknowledged.push(adopted.id);
        }
        // Somebody started meanwhile.
        Err(error) if error.kind() == ErrorKind::Fenced => {}
        // Or it went, or was damaged, under the operator's hands.
        Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::NotFound) => {
            let state = world.state();
            let is_gone = state.pruned.contains(&plan.snapshot) || state.rotten.contains(&plan.snapshot);
            assert!(is_gone, "{}", error.chain());
        }
        Err(error) => panic!("{}", error.chain()),
    }
}

/// Says which history is kept here, before anybody else could at the same time.
pub async fn found(world: &Arc<World>) {
    let catalog = Link::calm(world).catalog();
    catalog.ensure_identity(world.true_now(), 7).await.expect("founded");
}
