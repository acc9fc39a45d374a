//! A bucket that cannot be reached: what is due waits in the spool, makes room there, and is shipped.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::sync::Arc;

use lifeboat::catalog::Catalog;
use lifeboat::error::ErrorKind;
use lifeboat::snapshot::{Digest, Kind, SnapshotId};
use lifeboat::storage::{Directory, Storage};
use rustix::process::Signal;
use serde_json::Value;

use super::invariants::{BYTES_MAX, Photograph};
use super::scenarios::{Orders, PLAIN, Scenario, crash, run};
use super::site::{Content, Site, Store};
use crate::support::program::Ended;

/// What waits is on this machine only, and a stop says so.
const DENIED: i32 = ErrorKind::Denied.exit_code() as i32;

/// Two snapshots of this fit into the smallest spool, and three do not: it does not compress.
const LARGE: &str = "INSERT INTO fill VALUES (randomblob(400000))";

const SPOOL: Scenario = Scenario { store: Store::Bucket, codes: &[DENIED], about: &["spool-"], ..PLAIN };

pub const OUTAGE: &[Scenario] = &[
    Scenario {
        name: "a daemon that never reached the bucket",
        prepare: |site| changed(site, ""),
        act: in_an_outage,
        ..SPOOL
    },
    Scenario {
        name: "an outage in a daemon's life",
        prepare: |site| changed(site, ""),
        act: |site, orders| {
            let mut daemon = site.program.start_with(&["run"], orders);
            daemon.says("backing up app to");
            site.refuse();
            let ended = daemon.end(Signal::TERM);
            site.heal();
            ended
        },
        ..SPOOL
    },
    Scenario {
        name: "the oldest has to make room",
        prepare: |site| {
            changed(site, LARGE);
            site.set("BACKUP_SPOOL_MAX", "1 MiB");
            (0..2).for_each(|_| spool(site));
            assert!(site.dropped.is_empty(), "two fit");
        },
        act: in_an_outage,
        ..SPOOL
    },
    Scenario {
        name: "an outage after a crash in an outage",
        prepare: |site| {
            changed(site, "");
            spool(site);
            left_over(site);
        },
        act: in_an_outage,
        ..SPOOL
    },
];

pub const SHIPPING: &[Scenario] = &[
    Scenario {
        name: "two are shipped, after one was dropped",
        prepare: |site| {
            changed(site, LARGE);
            site.set("BACKUP_SPOOL_MAX", "1 MiB");
            (0..3).for_each(|_| spool(site));
            assert_eq!(site.dropped.len(), 1, "two fit");
            let newest = site.waiting.keys().next_back().expect("it waits").to_string();
            site.program.succeed(&["verify", "--snapshot", &newest]);
        },
        act: ship,
        codes: &[0],
        ..SPOOL
    },
    Scenario {
        name: "what a crash left is removed when the bucket is back",
        prepare: |site| {
            changed(site, LARGE);
            site.set("BACKUP_SPOOL_MAX", "1 MiB");
            (0..2).for_each(|_| spool(site));
            // Killed after it made room, so that a single snapshot waits, and one is noted as dropped.
            left_over(site);
            assert_eq!((spooled(site).len(), site.dropped.len()), (1, 1));
        },
        act: ship,
        codes: &[0],
        ..SPOOL
    },
];

/// A database that was changed since the one snapshot of it; the program itself made that, and noted it.
fn changed(site: &mut Site, fill: &str) {
    site.make("wal", fill);
    let report = site.program.json(&["backup"]);
    let id = report["snapshot"]["id"].as_str().expect("an id").parse().expect("an id");
    let content = site.content();
    site.acknowledged.insert(id, content);
    site.write();
}

/// A daemon that finds no bucket has a snapshot in the spool, and is stopped.
fn in_an_outage(site: &Site, orders: Orders) -> Ended {
    site.refuse();
    let mut daemon = site.program.start_with(&["run"], orders);
    daemon.says("waits in the spool");
    let ended = daemon.end(Signal::TERM);
    site.heal();
    ended
}

fn ship(site: &Site, orders: Orders) -> Ended {
    run(site, &["run", "--", "true"], orders)
}

/// One more snapshot waits, and the database is changed since.
fn spool(site: &mut Site) {
    let ended = in_an_outage(site, &[]);
    assert_eq!(ended.code, Some(DENIED), "{ended:?}");
    let before = site.waiting.len();
    site.note_waiting(&ended);
    assert_eq!(site.waiting.len(), before + 1, "{ended:?}");
    site.write();
}

/// What crashes leave in the spool: data without a manifest, and a file that is not complete.
fn left_over(site: &mut Site) {
    site.refuse();
    crash(site, &["run"], "spool-data-written");
    site.heal();
    fs::write(site.spool().join("app/snapshots/.lifeboat-tmp-left"), "left").expect("written");
}

/// The spool after anything: whole, and whatever was said to wait is there, in storage, or was dropped with a note.
pub fn require_spool(site: &mut Site, now: &Photograph) {
    let spooled = spooled(site);
    for (id, content) in site.waiting.clone() {
        let stored = now.listed.iter().find(|manifest| manifest.id == id);
        let found = spooled.get(&id).copied().or_else(|| {
            let manifest = stored?;
            assert!(
                now.proven.contains(&id),
                "I5: {id} does not wait any more, and is not proven in storage"
            );
            Some(site.restored(manifest, now.objects[&manifest.data_key()]))
        });
        match found {
            Some(found) => assert_eq!(found, content, "I1: {id} waited, and is another database"),
            None => assert!(site.dropped.contains(&id), "I5: {id} waited, and is lost without a note"),
        }
    }
}

/// What every snapshot in the spool restores to; each to what was committed at one moment. Takes in what is noted
/// as dropped.
fn spooled(site: &mut Site) -> BTreeMap<SnapshotId, Content> {
    let mut contents = BTreeMap::new();
    if !site.spool().join("spool.json").exists() {
        return contents;
    }
    let note = fs::read(site.spool().join("app/dropped.json")).unwrap_or_default();
    if !note.is_empty() {
        let note: Value = serde_json::from_slice(&note).expect("JSON");
        let ids = note["dropped"].as_array().expect("a list").iter().map(|dropped| &dropped["snapshot"]);
        let ids: Vec<SnapshotId> =
            ids.map(|id| id.as_str().expect("an id").parse().expect("an id")).collect();
        let once: BTreeSet<SnapshotId> = ids.iter().cloned().collect();
        assert_eq!(ids.len(), once.len(), "noted as dropped twice: {ids:?}");
        site.dropped.extend(once);
    }
    let storage: Arc<dyn Storage> = Arc::new(Directory::open(site.spool()).expect("opens"));
    let catalog = Catalog::new(Arc::clone(&storage), "app".parse().expect("a name"));
    let listing = site.block_on(catalog.list()).expect("listed");
    assert!(listing.damaged.is_empty(), "I1: {:?}", listing.damaged);
    for manifest in listing.snapshots {
        let object = site.block_on(storage.read(&manifest.data_key(), BYTES_MAX));
        let object = object.unwrap_or_else(|error| panic!("I1: {} waits without data: {error}", manifest.id));
        let content = site.restored_from(Arc::clone(&storage), &manifest, Digest::of(&object.bytes));
        assert!(site.was_committed(&content), "I1: {} waits, and is what never was", manifest.id);
        contents.insert(manifest.id, content);
    }
    contents
}

/// What is so once the bucket was back for a while: nothing waits, nothing is left over, and no snapshot is listed
/// twice.
pub fn require_shipped(site: &Site, now: &Photograph) {
    if !site.spool().exists() {
        return;
    }
    let mut left = Vec::new();
    super::site::walk(&site.spool(), &mut left);
    left.retain(|path| {
        !["spool.json", "app/spool.lock", ".lifeboat-lock"].iter().any(|own| path.ends_with(own))
    });
    assert_eq!(left, Vec::<std::path::PathBuf>::new(), "I8: the spool");
    for kind in [Kind::Snapshots, Kind::Manifests] {
        let ids = site.block_on(site.catalog().objects(kind)).expect("listed");
        assert_eq!(ids.len(), now.listed.len(), "{kind:?}");
    }
    let listed = site.program.json(&["snapshots"]);
    assert_eq!(listed["snapshots"].as_array().map(Vec::len), Some(now.listed.len()), "{listed}");
}
