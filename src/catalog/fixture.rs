//! What to test with: true manifests of small data, and a storage that interferes.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use async_trait::async_trait;
use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use jiff::Timestamp;

use super::Catalog;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{
    Content, DatabaseId, Digest, FORMAT, Flag, Key, Manifest, Proof, SnapshotId, SqliteFacts, TOOL,
};
use crate::storage::{Entry, Guarantees, Memory, Object, Parts, Storage, Version, whole};

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
        anchor: None,
        baseline: None,
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
        assertion: None,
        failure: None,
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

/// When a [`Hooked`] storage calls its hook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Moment {
    /// Before the call is carried out.
    Before,
    /// After it was carried out, before the answer is given.
    After,
}

/// Called around every call but listings and sweeps, with the operation's name; an error it
/// returns is the answer.
pub(crate) type Hook = dyn Fn(Moment, &'static str, &Key) -> BoxFuture<'static, Result<()>> + Send + Sync;

/// Storage in memory with a hook around every call: how a test stops, refuses or overtakes.
pub(crate) struct Hooked {
    memory: Memory,
    hook: Box<Hook>,
    may_list: bool,
}

impl Hooked {
    /// Calls `hook` around the calls to `memory`.
    pub(crate) fn new(
        memory: &Memory,
        hook: impl Fn(Moment, &'static str, &Key) -> BoxFuture<'static, Result<()>> + Send + Sync + 'static,
    ) -> Self {
        Hooked { memory: memory.clone(), hook: Box::new(hook), may_list: true }
    }

    /// Refuses to list.
    pub(crate) fn unlisted(memory: &Memory) -> Self {
        let unhooked = Hooked::new(memory, |_, _, _| async { Ok(()) }.boxed());
        Hooked { may_list: false, ..unhooked }
    }

    /// Fails every call from the `calls`th on; the first of them `Before` or `After` it took effect.
    pub(crate) fn stopping(memory: &Memory, calls: usize, moment: Moment) -> Self {
        let count = AtomicUsize::new(0);
        Hooked::new(memory, move |at, operation, key| {
            let begun = match at {
                Moment::Before => count.fetch_add(1, Ordering::SeqCst),
                Moment::After => count.load(Ordering::SeqCst) - 1,
            };
            let stops = begun > calls || (begun == calls && at == moment);
            let answer = match stops {
                true => Err(Error::new(ErrorKind::Unavailable, format!("stopped: {operation} key=`{key}`"))),
                false => Ok(()),
            };
            async move { answer }.boxed()
        })
    }

    async fn around<T>(
        &self,
        operation: &'static str,
        key: &Key,
        call: impl Future<Output = Result<T>> + Send,
    ) -> Result<T> {
        (self.hook)(Moment::Before, operation, key).await?;
        let answer = call.await?;
        (self.hook)(Moment::After, operation, key).await?;
        Ok(answer)
    }
}

impl fmt::Debug for Hooked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Hooked")
    }
}

#[async_trait]
impl Storage for Hooked {
    fn location(&self) -> String {
        self.memory.location()
    }

    async fn create(&self, key: &Key, parts: Parts) -> Result<()> {
        self.around("create", key, self.memory.create(key, parts)).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        self.around("replace", key, self.memory.replace(key, expected, bytes)).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        self.around("read", key, self.memory.read(key, bytes_max)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        self.around("read_range", key, self.memory.read_range(key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        self.around("head", key, self.memory.head(key)).await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        match self.may_list {
            true => self.memory.list(prefix).await,
            false => Err(Error::new(ErrorKind::Denied, "not permitted")),
        }
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        self.around("delete", key, self.memory.delete(key)).await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        self.memory.sweep_unfinished(older_than).await
    }

    fn guarantees(&self) -> Guarantees {
        self.memory.guarantees()
    }
}
