//! What must hold in every history, looked at whenever an object comes or goes, and at the end.

use std::time::Duration;

use jiff::SignedDuration;
use lifeboat::clock::Timestamp;
use lifeboat::retention::BRANCH_AGE_MAX;
use lifeboat::snapshot::{Flag, Head, Identity, Key, Manifest, SnapshotId};

use super::world::{World, name};

/// A prune under way.
#[derive(Debug, Clone)]
pub struct Pruning {
    /// What the machine took for the time.
    pub now: Timestamp,
    pub safety_age: Duration,
    /// How many snapshots the policy keeps, whatever their age.
    pub last: usize,
    /// How many proofs had been written when it was planned.
    pub proofs_written: usize,
}

/// The head was written: it moves along one order of epochs, names what exists, and holds all that the
/// one before it held, unless somebody adopted the other side, or nobody could know.
pub fn head(world: &World, head: &Head) {
    let before = world.state().heads.last().cloned();
    let newest = head.snapshot.as_ref().map(|id| {
        let manifest =
            world.manifest(id).unwrap_or_else(|| panic!("the head names {id}, which is not there"));
        assert!(!manifest.is_branch(), "a branch became head");
        manifest
    });
    // Where nothing is compared, one of two that write at once wins, and which is luck.
    if world.weather.honours_conditions
        && let Some(before) = &before
    {
        assert!(head.epoch >= before.epoch && head.snapshot >= before.snapshot, "{before:?} then {head:?}");
        if let (Some(old), Some(new)) = (&before.snapshot, &newest)
            && *old != new.id
        {
            keeps_commits(world, head, old, new);
        }
    }
    world.state().heads.push(head.clone());
}

fn keeps_commits(world: &World, head: &Head, old: &SnapshotId, new: &Manifest) {
    let adopted =
        new.parent.as_ref().filter(|parent| world.manifest(parent).is_some_and(|parent| parent.is_branch()));
    if let Some(adopted) = adopted {
        assert!(world.state().adopting.contains(adopted), "nobody adopted {adopted}");
        return;
    }
    if world.state().guesses.contains(&head.epoch) {
        return;
    }
    let old = world.manifest(old).expect("the newest is never removed");
    let (old, new) = (world.commits(&old), world.commits(new));
    assert!(new.starts_with(&old), "the newest lost commits: {old:?} then {new:?}");
}

/// Data or a manifest was created: never twice, the manifest after its data and after its parent, and
/// of this history.
pub fn created(world: &World, key: &Key) {
    let is_new = world.state().created.insert(key.path());
    assert!(is_new || !world.weather.honours_conditions, "{key} was written twice");
    let Key::Manifest(_, id) = key else { return };
    let manifest = world.manifest(id).expect("written");
    let objects = world.memory.objects();
    // A branch looks whether its data is still there after it wrote the manifest.
    let has_data = objects.iter().any(|(path, _)| *path == manifest.data_key().path());
    assert!(has_data || manifest.is_branch(), "{id} is listed without its data");
    assert!(manifest.parent.as_ref() < Some(id), "{id} follows {:?}", manifest.parent);
    let identity: Identity = world.record(&Key::Identity(name())).expect("there is an identity");
    assert_eq!(manifest.database_id, identity.database_id, "{id} is of another history");
}

/// An object is about to go.
pub fn deletion(world: &World, key: &Key, pruning: Option<&Pruning>) {
    match key {
        Key::Manifest(_, id) => match (world.manifest(id), pruning) {
            (None, _) => {}
            (Some(manifest), Some(pruning)) => {
                if world.weather.honours_conditions {
                    may_go(world, &manifest, pruning);
                }
                world.count(|counts| &mut counts.pruned);
                world.state().pruned.insert(id.clone());
            }
            // Withdrawn by a writer that was overtaken.
            (Some(_), None) => {
                assert!(!world.state().acknowledged.contains(id), "{id} was acknowledged, and is withdrawn");
            }
        },
        Key::Snapshot(_, id) => {
            assert!(world.manifest(id).is_none(), "the data of {id} goes while it is listed");
        }
        Key::Proof(_, id) => {
            assert!(world.manifest(id).is_none(), "the proof of {id} goes while it is listed")
        }
        _ => panic!("{key} is deleted"),
    }
}

/// A snapshot is about to be pruned: retention can have meant it.
fn may_go(world: &World, manifest: &Manifest, pruning: &Pruning) {
    let id = &manifest.id;
    let age = pruning.now.duration_since(manifest.taken_at);
    let is_old = |limit: Duration| age >= SignedDuration::try_from(limit).expect("short");
    assert!(is_old(pruning.safety_age), "{id} is younger than the safety age: {age:?}");
    let manifests = world.manifests();
    if manifest.is_branch() {
        let is_newest = !manifests
            .iter()
            .any(|other| other.is_branch() && other.epoch == manifest.epoch && other.id > *id);
        assert!(!is_newest || is_old(BRANCH_AGE_MAX), "{id} is the newest of a branch");
        return;
    }
    let head = world.state().heads.last().and_then(|head| head.snapshot.clone()).expect("there is a head");
    assert!(*id < head, "{id} is not older than the newest");
    let line = || manifests.iter().filter(|other| !other.is_branch() && other.id <= head);
    let is_ahead = |manifest: &&Manifest| manifest.taken_at > pruning.now;
    let newer = line().filter(|other| other.id > *id && !is_ahead(other)).count();
    assert!(newer >= pruning.last, "{id} is one of the last {}", pruning.last);
    // A drill elsewhere may have ended since this was planned.
    if world.state().proofs_written != pruning.proofs_written {
        return;
    }
    let outcome = |manifest: &Manifest| world.drill(&manifest.id).map(|drill| drill.failure.is_none());
    let is_well = |manifest: &&Manifest| manifest.flags.is_empty() && outcome(manifest) == Some(true);
    let mut proven = line().filter(is_well).map(|proven| &proven.id);
    if world.weather.has_stale_lists {
        // What is not listed yet is not known: then an older one that is proven stays.
        assert!(proven.any(|proven| proven != id), "{id} is the last one proven");
        return;
    }
    let proven = proven.next().unwrap_or_else(|| panic!("{id} goes, and none is proven"));
    assert!(proven != id, "{id} is the last one proven");
    let refuted = line().find(|manifest| outcome(manifest) == Some(false));
    assert!(refuted.is_none_or(|refuted| refuted.id < *proven), "{id} goes, and the newest drill failed");
}

/// After the last machine stopped.
pub fn end(world: &World) {
    let manifests = world.manifests();
    let objects = world.memory.objects();
    for manifest in &manifests {
        let data = objects.iter().find(|(path, _)| *path == manifest.data_key().path());
        let Some((_, bytes)) = data else {
            // A branch that died before it looked.
            let is_unseen = manifest.is_branch() && !world.state().acknowledged.contains(&manifest.id);
            assert!(is_unseen, "{} is listed without its data", manifest.id);
            continue;
        };
        let is_whole = lifeboat::snapshot::Digest::of(bytes) == manifest.stored.sha256;
        assert!(is_whole || world.state().rotten.contains(&manifest.id), "{} does not restore", manifest.id);
    }
    let state = world.state();
    for id in &state.acknowledged {
        let is_there = manifests.iter().any(|manifest| manifest.id == *id);
        assert!(is_there || state.pruned.contains(id), "{id} was acknowledged, and is lost");
    }
    if world.weather.honours_conditions {
        let newest = state.heads.last().and_then(|head| head.snapshot.clone());
        let told = manifests.iter().filter(|manifest| !manifest.flags.contains(&Flag::Branch));
        let told = told.map(|manifest| &manifest.id).filter(|id| state.acknowledged.contains(id)).max();
        assert!(told <= newest.as_ref(), "{told:?} was acknowledged, the newest is {newest:?}");
    }
}
