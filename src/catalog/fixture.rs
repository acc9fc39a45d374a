//! Snapshots to test with: true manifests of small data.

use std::sync::Arc;

use jiff::Timestamp;

use super::Catalog;
use crate::snapshot::{
    Content, DatabaseId, Digest, FORMAT, Flag, Key, Manifest, Proof, SnapshotId, SqliteFacts, TOOL,
};
use crate::storage::{Memory, Storage, whole};

/// A time from its text.
pub(crate) fn at(text: &str) -> Timestamp {
    text.parse().expect("a valid time")
}

/// The catalog of the database `app` in `storage`.
pub(crate) fn catalog(storage: impl Storage + 'static) -> Catalog {
    Catalog::new(Arc::new(storage), "app".parse().expect("a valid name"))
}

const DATA: &[u8] = &[7; 64];

/// The manifest of a snapshot of `app` taken at `time`, by `epoch`, after `parent`.
pub(crate) fn manifest(time: Timestamp, epoch: u64, parent: Option<&SnapshotId>, flags: &[Flag]) -> Manifest {
    Manifest {
        format: FORMAT,
        id: SnapshotId::next(time, parent, epoch as u32),
        database: "app".parse().expect("a valid name"),
        database_id: DatabaseId::new(1),
        parent: parent.cloned(),
        epoch,
        taken_at: time,
        took_ms: 1,
        writer_blocked_ms: 0,
        page_size: 512,
        page_count: 2,
        frame_bytes: 1024,
        zstd_level: 3,
        plain: Content { bytes: 1024, sha256: Digest::of(b"") },
        stored: Content { bytes: DATA.len() as u64, sha256: Digest::of(DATA) },
        sqlite: SqliteFacts {
            user_version: 0,
            application_id: 0,
            journal_mode: "wal".to_owned(),
            encoding: "UTF-8".to_owned(),
            freelist_count: 0,
            schema_sha256: Digest::of(b""),
            written_by: 3_051_003,
        },
        flags: flags.to_vec(),
        tool: TOOL.to_owned(),
    }
}

/// A proof of `id`, complete at `proven_at`.
pub(crate) fn proof(id: &SnapshotId, proven_at: Timestamp) -> Proof {
    Proof {
        format: FORMAT,
        snapshot: id.clone(),
        proven_at,
        took_ms: 1,
        check: "integrity_check".to_owned(),
        tool: TOOL.to_owned(),
    }
}

/// Stores the data of `manifest` and publishes it.
pub(crate) async fn publish(catalog: &Catalog, manifest: &Manifest) {
    catalog.storage().create(&manifest.data_key(), whole(DATA)).await.expect("data stored");
    catalog.publish(manifest, manifest.epoch, manifest.taken_at).await.expect("published");
}

/// A catalog with snapshots of `times`, all by epoch 1.
pub(crate) async fn with_snapshots(memory: &Memory, times: &[&str]) -> (Catalog, Vec<Manifest>) {
    let catalog = catalog(memory.clone());
    let epoch = catalog.claim_epoch("test", at(times[0])).await.expect("claimed");
    let mut manifests: Vec<Manifest> = Vec::new();
    for time in times {
        let next = manifest(at(time), epoch, manifests.last().map(|parent| &parent.id), &[]);
        publish(&catalog, &next).await;
        manifests.push(next);
    }
    (catalog, manifests)
}

/// Whether every listed manifest has its data.
pub(crate) fn listed_is_restorable(memory: &Memory) -> bool {
    let paths: Vec<String> = memory.objects().into_iter().map(|(path, _)| path).collect();
    paths.iter().filter_map(|path| Key::parse(path)).all(|key| match key {
        Key::Manifest(database, id) => paths.contains(&Key::Snapshot(database, id).path()),
        _ => true,
    })
}
