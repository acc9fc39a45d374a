//! What must hold whenever a process was killed: I1 to I9.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use lifeboat::snapshot::{Digest, Head, Key, Kind, Manifest, SnapshotId};

use super::site::Site;
use crate::support::files::names;

/// No object in a scenario is larger.
pub const BYTES_MAX: usize = 64 << 20;

/// What stood in storage and beside the database at one moment.
pub struct Photograph {
    /// Every object that is written once.
    pub objects: BTreeMap<Key, Digest>,
    /// The newest first.
    pub listed: Vec<Manifest>,
    pub proven: BTreeSet<SnapshotId>,
    head: Option<Head>,
    /// What lies in the folder of the database.
    data: BTreeMap<String, Digest>,
}

/// The content of the database and of what lies beside it. What SQLite itself makes beside any database in WAL mode
/// that is only read, and a kill leaves, has no content: an index, and a log without a byte.
fn data(site: &Site) -> BTreeMap<String, Digest> {
    let names = names(&site.data()).into_iter().filter(|name| !name.ends_with("-shm"));
    let files = names.map(|name| {
        let bytes = fs::read(site.data().join(&name)).expect("readable");
        (name, bytes)
    });
    let has_content = |(name, bytes): &(String, Vec<u8>)| !bytes.is_empty() || !name.ends_with("-wal");
    files.filter(has_content).map(|(name, bytes)| (name, Digest::of(&bytes))).collect()
}

impl Photograph {
    pub fn of(site: &Site) -> Photograph {
        let catalog = site.catalog();
        site.block_on(async {
            let mut objects = BTreeMap::new();
            for entry in site.storage.list("").await.expect("listed") {
                if entry.path.starts_with(".lifeboat-") {
                    continue;
                }
                let key = Key::parse(&entry.path).unwrap_or_else(|| panic!("{} is nobody's", entry.path));
                if !matches!(key, Key::Head(_) | Key::Proof(..) | Key::Probe(_)) {
                    let object = site.storage.read(&key, BYTES_MAX).await.expect("readable");
                    objects.insert(key, Digest::of(&object.bytes));
                }
            }
            let listing = catalog.list().await.expect("listed");
            assert!(listing.damaged.is_empty(), "I1: {:?}", listing.damaged);
            let proofs = catalog.proofs().await.expect("listed");
            let proven = proofs.into_iter().filter(|proof| proof.failure.is_none());
            Photograph {
                objects,
                listed: listing.snapshots,
                proven: proven.map(|proof| proof.snapshot).collect(),
                head: catalog.head().await.expect("readable").map(|(head, _)| head),
                data: data(site),
            }
        })
    }

    fn ids(&self) -> BTreeSet<&SnapshotId> {
        self.listed.iter().map(|manifest| &manifest.id).collect()
    }

    fn of_kind(&self, kind: Kind) -> BTreeSet<&SnapshotId> {
        let is_of = |key: &&Key| match kind {
            Kind::Snapshots => matches!(key, Key::Snapshot(..)),
            _ => matches!(key, Key::Manifest(..)),
        };
        self.objects.keys().filter(is_of).filter_map(Key::snapshot_id).collect()
    }
}

/// Storage after anything: what it was before, and more.
pub fn require_storage(site: &mut Site, before: &Photograph) -> Photograph {
    let now = Photograph::of(site);
    // I2: put once.
    for (key, digest) in &now.objects {
        let unchanged = before.objects.get(key).is_none_or(|known| known == digest);
        assert!(unchanged, "I2: {key} was overwritten");
    }
    require_identity(&now, before);
    require_order(&now, before);
    // I1: what is listed restores, to what was committed at one moment.
    let mut contents = BTreeMap::new();
    for manifest in &now.listed {
        let object = now.objects.get(&manifest.data_key());
        let object = object.unwrap_or_else(|| panic!("I1: {} has no data", manifest.id));
        let content = site.restored(manifest, *object);
        assert!(site.was_committed(&content), "I1: {} restores to what never was", manifest.id);
        contents.insert(manifest.id.clone(), content);
    }
    // What was acknowledged is not lost.
    let mut kept: Vec<&SnapshotId> = site.acknowledged.keys().chain(contents.keys()).collect();
    kept.sort_unstable();
    kept.dedup();
    for id in kept.into_iter().rev().take(site.keeps) {
        let known = site.acknowledged.get(id);
        assert!(contents.contains_key(id), "I5: {id} was acknowledged, and is lost");
        assert!(known.is_none_or(|known| contents[id] == *known), "I1: {id} is another database");
    }
    // I5: the last proof outlives everything.
    let is_proven = |photograph: &Photograph| {
        let ids = photograph.ids();
        photograph.proven.iter().any(|id| ids.contains(id))
    };
    assert!(is_proven(&now) || !is_proven(before), "I5: no proven snapshot is left");
    now
}

/// I6: one history, from the first to the last.
fn require_identity(now: &Photograph, before: &Photograph) {
    let identity = |photograph: &Photograph| {
        photograph.objects.iter().find(|(key, _)| matches!(key, Key::Identity(_))).map(|(_, digest)| *digest)
    };
    let known = identity(before);
    assert!(known.is_none() || identity(now) == known, "I6: the identity is another");
    let histories: BTreeSet<String> =
        now.listed.iter().map(|manifest| format!("{:?}", manifest.database_id)).collect();
    assert!(histories.len() <= 1, "I6: {histories:?}");
    assert!(now.listed.is_empty() || identity(now).is_some(), "I6: snapshots without an identity");
}

/// I9: later is larger, and the head only moves forward.
fn require_order(now: &Photograph, before: &Photograph) {
    let is_later = |pair: &[Manifest]| pair[0].id > pair[1].id;
    assert!(now.listed.windows(2).all(is_later), "I9: {:?}", now.ids());
    for manifest in &now.listed {
        assert!(manifest.parent.as_ref() < Some(&manifest.id), "I9: {} is not after its parent", manifest.id);
    }
    let known = before.ids();
    let is_new = |id: &&&SnapshotId| !known.contains(**id);
    let now_ids = now.ids();
    let oldest_new = now_ids.iter().find(is_new);
    assert!(oldest_new.is_none_or(|new| known.iter().all(|old| old < new)), "I9: {oldest_new:?} comes late");
    let place = |head: &Option<Head>| head.as_ref().map(|head| (head.epoch, head.snapshot.clone()));
    assert!(place(&now.head) >= place(&before.head), "I9: the head went back");
    let named = now.head.as_ref().and_then(|head| head.snapshot.as_ref());
    assert!(named.is_none_or(|id| now_ids.contains(id)), "I1: the head names what is not listed");
}

/// I4: whoever only reads the database has changed nothing of it and made nothing beside it.
pub fn require_source_untouched(site: &Site, before: &Photograph) {
    assert_eq!(data(site), before.data, "I4: the source");
}

/// I3: the old database or the new one, whole.
pub fn require_old_or_new(site: &Site) {
    let content = site.content();
    assert!(site.allowed.contains(&content), "I3: {content:?} is neither of {:?}", site.allowed);
}

/// What is so once everything was tidied up: nothing half done is left anywhere, and the newest snapshot is the
/// database as it is.
pub fn require_tidy(site: &mut Site, now: &Photograph) {
    assert_eq!(site.unfinished(), Vec::<std::path::PathBuf>::new(), "I8");
    assert_eq!(site.unfinished_uploads(), 0, "I8");
    assert_eq!(
        now.of_kind(Kind::Snapshots),
        now.of_kind(Kind::Manifests),
        "I5: orphans are swept, and only these"
    );
    let is_branch =
        |manifest: &&Manifest| manifest.is_branch() && !site.acknowledged.contains_key(&manifest.id);
    let branch = now.listed.iter().find(is_branch);
    assert!(branch.is_none(), "a crash made a branch: {branch:?}");
    if site.holds_a_database() {
        let newest = now
            .listed
            .iter()
            .find(|manifest| Some(&manifest.id) == now.head.as_ref().and_then(|head| head.snapshot.as_ref()));
        let newest = newest.expect("there is a snapshot").clone();
        let object = now.objects[&newest.data_key()];
        assert_eq!(site.restored(&newest, object), site.content(), "the newest snapshot is the database");
    }
}
