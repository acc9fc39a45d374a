//! The catalog: what storage knows about one database, as records instead of objects.
//!
//! Reading the newest snapshot takes `head.json` and one manifest, no listing. Everything that
//! writes to the catalog, and decides who may, is in `writer`.

mod branches;
mod deltas;
#[cfg(test)]
pub(crate) mod fixture;
mod windows;
mod writer;

use std::cmp::Reverse;
use std::sync::{Arc, OnceLock};

use futures::stream::{self, StreamExt};
use jiff::Timestamp;

pub use branches::{Branch, adopted_as, branches};
pub use deltas::{LineEnd, StoredDelta};
pub use windows::{Captured, Gap, Reach, Window};

use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{
    DatabaseId, DatabaseName, Hasher, Head, Identity, Key, Kind, Manifest, Proof, Record, SnapshotId,
    is_other_format,
};
use crate::storage::{Entry, Parts, Storage, Version, part_bytes};

/// The records of one database.
#[derive(Debug, Clone)]
pub struct Catalog {
    storage: Arc<dyn Storage>,
    database: DatabaseName,
    /// The id in `identity.json`, once it was read or made: it never changes, also if the record is lost.
    known: Arc<OnceLock<DatabaseId>>,
}

/// Every snapshot there is, and every manifest that could not be read.
#[derive(Debug)]
pub struct Listing {
    /// The readable manifests, newest first.
    pub snapshots: Vec<Manifest>,
    /// Manifests that are damaged, foreign or refused, newest first. What they stood for may exist.
    pub damaged: Vec<(Key, Error)>,
}

/// The cause of an error about a snapshot of another history, which sets it apart from damage.
#[derive(Debug, thiserror::Error)]
#[error("nothing of ours is put upon it")]
struct Foreign;

/// Whether an error says that a snapshot is whole, but of another database or for another program:
/// whoever goes on past it would mix two histories.
pub fn is_not_ours(error: &Error) -> bool {
    is_other_format(error) || std::error::Error::source(error).is_some_and(|cause| cause.is::<Foreign>())
}

/// What the newest drills said.
#[derive(Debug, Clone, Default)]
pub struct NewestDrills {
    /// The proof of the newest snapshot that has one.
    pub newest: Option<Proof>,
    /// The proof that was made last, of whatever snapshot.
    pub latest: Option<Proof>,
    /// The failed drill of the newest snapshot that had one, beyond the newest that is proven.
    pub failure: Option<Proof>,
}

/// How many records are read at the same time: hides the latency of a remote store and stays far
/// below its request rate.
const READS_AT_ONCE: usize = 16;

impl Catalog {
    /// The catalog of `database` in `storage`; nothing is read yet.
    pub fn new(storage: Arc<dyn Storage>, database: DatabaseName) -> Self {
        Catalog { storage, database, known: Arc::default() }
    }

    /// Where the objects are.
    pub fn storage(&self) -> &Arc<dyn Storage> {
        &self.storage
    }

    /// Which database it is about.
    pub fn database(&self) -> &DatabaseName {
        &self.database
    }

    /// Which history is kept here; `None` before the first snapshot.
    ///
    /// `Corrupt` if it is another one than this catalog knows: nothing is put upon that.
    pub async fn identity(&self) -> Result<Option<Identity>> {
        let key = Key::Identity(self.database.clone());
        let Some((identity, _)) = self.record::<Identity>(&key).await? else { return Ok(None) };
        if identity.database != self.database {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("the identity is of another database: key=`{key}` database=`{}`", identity.database),
            ));
        }
        let known = self.known.get_or_init(|| identity.database_id.clone());
        if *known != identity.database_id {
            let message = format!(
                "the backups under this name are of a foreign database by now: its identity stands in place of ours; \
                 give this one another name or prefix: key=`{key}` its_database_id=`{}` database_id=`{known}`",
                identity.database_id
            );
            return Err(Error::new(ErrorKind::Corrupt, message).because(Foreign));
        }
        Ok(Some(identity))
    }

    /// Who may publish and what was published last, with the version to expect in a swap.
    pub async fn head(&self) -> Result<Option<(Head, Version)>> {
        self.record(&self.head_key()).await
    }

    /// The manifest of one snapshot. `NotFound` if there is none: then the snapshot does not exist.
    pub async fn manifest(&self, id: &SnapshotId) -> Result<Manifest> {
        self.find_manifest(&Key::Manifest(self.database.clone(), id.clone())).await?.ok_or_else(|| {
            Error::new(
                ErrorKind::NotFound,
                format!("no such snapshot: database=`{}` id=`{id}`", self.database),
            )
        })
    }

    /// The newest snapshot; `None` if there is none at all.
    ///
    /// By the head, without listing; by listing only if there is no head. `Corrupt` if the head
    /// names a snapshot that does not exist: an older one is never passed off as the newest.
    pub async fn newest(&self) -> Result<Option<Manifest>> {
        let Some((head, _)) = self.head().await? else { return self.newest_listed().await };
        let Some(id) = head.snapshot else { return Ok(None) };
        self.named(&id).await.map(Some)
    }

    /// The manifest of the snapshot that the head names.
    pub(crate) async fn named(&self, id: &SnapshotId) -> Result<Manifest> {
        self.manifest(id).await.map_err(|error| match error.kind() {
            ErrorKind::NotFound => Error::new(
                ErrorKind::Corrupt,
                format!("the newest snapshot is gone, choose another one by id: id=`{id}`"),
            )
            .because(error),
            _ => error,
        })
    }

    /// The name of the newest snapshot, also if it cannot be read. Without a head by listing, as far
    /// as that is permitted.
    pub async fn newest_id(&self) -> Result<Option<SnapshotId>> {
        match self.head().await? {
            Some((head, _)) => Ok(head.snapshot),
            None => match self.newest_id_listed().await {
                Err(error) if error.kind() == ErrorKind::Denied => Ok(None),
                newest => newest,
            },
        }
    }

    async fn newest_id_listed(&self) -> Result<Option<SnapshotId>> {
        for (key, _) in self.objects(Kind::Manifests).await?.iter().rev() {
            match self.find_manifest(key).await {
                Ok(Some(manifest)) if manifest.is_branch() => {}
                Ok(None) => {}
                Err(error) if error.kind().is_transient() => return Err(error),
                // What cannot be read may have been the newest, and is not passed over.
                _ => return Ok(key.snapshot_id().cloned()),
            }
        }
        Ok(None)
    }

    async fn newest_listed(&self) -> Result<Option<Manifest>> {
        let listing = self.list().await?;
        let newest = listing.snapshots.into_iter().find(|manifest| !manifest.is_branch());
        match listing.damaged.into_iter().next() {
            Some((key, error)) if key.snapshot_id() > newest.as_ref().map(|newest| &newest.id) => Err(error),
            _ => Ok(newest),
        }
    }

    /// Every snapshot, newest first. Takes a listing and one read per snapshot.
    pub async fn list(&self) -> Result<Listing> {
        let keys = self.objects(Kind::Manifests).await?.into_iter().rev().map(|(key, _)| key);
        let mut reads = stream::iter(keys)
            .map(|key| async move {
                let manifest = self.find_manifest(&key).await;
                (key, manifest)
            })
            .buffered(READS_AT_ONCE);
        let mut listing = Listing { snapshots: Vec::new(), damaged: Vec::new() };
        while let Some((key, manifest)) = reads.next().await {
            match manifest {
                Ok(Some(manifest)) => listing.snapshots.push(manifest),
                // Removed since it was listed.
                Ok(None) => {}
                Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Denied) => {
                    listing.damaged.push((key, error));
                }
                Err(error) => return Err(error),
            }
        }
        Ok(listing)
    }

    /// The newest published snapshot that shows the database at `time` or before; never a branch.
    ///
    /// `NotFound` if all are later. `Corrupt` if an unreadable manifest may be a better answer:
    /// data is never rolled back further than was asked for without saying so.
    pub async fn at_or_before(&self, time: Timestamp) -> Result<Manifest> {
        let head = self.head().await?.and_then(|(head, _)| head.snapshot);
        let listing = self.list().await?;
        // Beyond the head stands only what was never published to the end.
        let published = |id: &SnapshotId| head.as_ref().is_none_or(|head| id <= head);
        let oldest = listing.snapshots.last().map(|oldest| oldest.taken_at);
        let found = listing
            .snapshots
            .into_iter()
            .find(|manifest| published(&manifest.id) && manifest.taken_at <= time && !manifest.is_branch());
        let best = found.as_ref().map(|manifest| &manifest.id);
        let better = |key: &Key| {
            key.snapshot_id().is_some_and(|id| published(id) && id.time() <= time && Some(id) > best)
        };
        if let Some((key, error)) = listing.damaged.into_iter().find(|(key, _)| better(key)) {
            let instead = best.map(|id| format!(" instead=`{id}`")).unwrap_or_default();
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the snapshot of that time is damaged, choose another one by id: key=`{key}`{instead}"
                ),
            )
            .because(error));
        }
        found.ok_or_else(|| {
            let oldest = oldest.map(|oldest| format!(" oldest=`{oldest}`")).unwrap_or_default();
            Error::new(
                ErrorKind::NotFound,
                format!("no snapshot is that old: database=`{}` time=`{time}`{oldest}", self.database),
            )
        })
    }

    /// When and how a snapshot was proven, if its last drill succeeded.
    pub async fn proof(&self, id: &SnapshotId) -> Result<Option<Proof>> {
        Ok(self.drill(id).await?.filter(|drill| drill.failure.is_none()))
    }

    /// What came of a snapshot's last drill. A damaged record says nothing and counts as none; the next
    /// drill replaces it.
    pub async fn drill(&self, id: &SnapshotId) -> Result<Option<Proof>> {
        match self.drill_of_known_format(id).await {
            Err(error) if is_other_format(&error) => {
                tracing::warn!(snapshot = %id, error = error.chain(), "a proof of another format counts as none");
                Ok(None)
            }
            found => found,
        }
    }

    /// The same for whoever goes on to remove or replace something: `Corrupt` if a newer program wrote it.
    pub async fn drill_of_known_format(&self, id: &SnapshotId) -> Result<Option<Proof>> {
        let key = Key::Proof(self.database.clone(), id.clone());
        match self.record::<Proof>(&key).await {
            Ok(found) => Ok(found.map(|(proof, _)| proof).filter(|proof| proof.snapshot == *id)),
            Err(error) if error.kind() == ErrorKind::Corrupt && !is_other_format(&error) => {
                tracing::warn!(%key, error = error.chain(), "a damaged proof counts as none");
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Every drill's outcome, newest snapshot first. Takes a listing and one read per record.
    pub async fn drills(&self) -> Result<Vec<Proof>> {
        let keys = self.objects(Kind::Proofs).await?.into_iter().rev().map(|(key, _)| key);
        let mut reads =
            stream::iter(keys).map(|key| async move { self.drill_at(&key).await }).buffered(READS_AT_ONCE);
        let mut drills = Vec::new();
        while let Some(drill) = reads.next().await {
            drills.extend(drill?);
        }
        Ok(drills)
    }

    /// Every proof, newest snapshot first: the drills that succeeded.
    pub async fn proofs(&self) -> Result<Vec<Proof>> {
        Ok(self.drills().await?.into_iter().filter(|drill| drill.failure.is_none()).collect())
    }

    /// What the newest drills said. Takes a listing, and mostly one or two reads.
    pub async fn newest_drills(&self) -> Result<NewestDrills> {
        let mut records = self.objects(Kind::Proofs).await?;
        records.reverse();
        let mut found = NewestDrills::default();
        for (key, _) in &records {
            match self.drill_at(key).await? {
                Some(drill) if drill.failure.is_none() => {
                    found.newest = Some(drill);
                    break;
                }
                drill => found.failure = found.failure.or(drill),
            }
        }
        records.sort_by_key(|(_, entry)| Reverse(entry.modified_at));
        for (key, _) in &records {
            let drill = self.drill_at(key).await?;
            if let Some(proof) = drill.filter(|drill| drill.failure.is_none()) {
                found.latest = Some(proof);
                break;
            }
        }
        Ok(found)
    }

    async fn drill_at(&self, key: &Key) -> Result<Option<Proof>> {
        match key.snapshot_id() {
            Some(id) => self.drill(id).await,
            None => Ok(None),
        }
    }

    /// The stored object of `manifest`, piece by piece; the last one only if all of them have its digest.
    pub fn data(&self, manifest: &Manifest) -> Parts {
        let (storage, key, stored) = (self.storage.clone(), manifest.data_key(), manifest.stored);
        let step = part_bytes(stored.bytes) as u64;
        let next = move |(from, mut hasher): (u64, Hasher)| {
            let (storage, key) = (storage.clone(), key.clone());
            async move {
                if from >= stored.bytes {
                    return Ok::<_, Error>(None);
                }
                let to = (from + step).min(stored.bytes);
                let part = storage.read_range(&key, from..to).await?;
                hasher.update(&part);
                if to == stored.bytes && hasher.clone().finish() != stored.sha256 {
                    let message = format!("the stored bytes are not what the manifest says: key=`{key}`");
                    return Err(Error::new(ErrorKind::Corrupt, message));
                }
                Ok(Some((part, (to, hasher))))
            }
        };
        stream::try_unfold((0, Hasher::default()), next).boxed()
    }

    /// Every object of one kind, in order of its key; objects that are not ours are left out.
    pub async fn objects(&self, kind: Kind) -> Result<Vec<(Key, Entry)>> {
        let prefix = kind.prefix(&self.database);
        let entries = self.storage.list(&prefix).await.map_err(|error| match error.kind() {
            ErrorKind::Denied => Error::new(
                ErrorKind::Denied,
                format!(
                    "list objects, which is not permitted here (on S3: s3:ListBucket); naming a snapshot by id, \
                     and restoring the newest, work without: location=`{}` prefix=`{prefix}`",
                    self.storage.location()
                ),
            )
            .because(error),
            _ => error,
        })?;
        Ok(entries.into_iter().filter_map(|entry| Some((Key::parse(&entry.path)?, entry))).collect())
    }

    fn head_key(&self) -> Key {
        Key::Head(self.database.clone())
    }

    async fn find_manifest(&self, key: &Key) -> Result<Option<Manifest>> {
        let Some((bytes, _)) = self.bytes(key, Manifest::BYTES_MAX).await? else { return Ok(None) };
        let manifest = Manifest::read(&bytes, key)?;
        match self.known_identity().await? {
            Some(ours) if manifest.database_id != ours => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the snapshot is of a foreign database, which has the same name: key=`{key}` \
                     its_database_id=`{}` database_id=`{ours}`",
                    manifest.database_id
                ),
            )
            .because(Foreign)),
            _ => Ok(Some(manifest)),
        }
    }

    /// The id of this history, asked for once. Where its record is damaged or not to be had, a
    /// restore still goes on; whoever writes asks for the identity itself and is refused.
    async fn known_identity(&self) -> Result<Option<DatabaseId>> {
        if let Some(known) = self.known.get() {
            return Ok(Some(known.clone()));
        }
        match self.identity().await {
            Ok(identity) => Ok(identity.map(|identity| identity.database_id)),
            Err(error) if matches!(error.kind(), ErrorKind::Corrupt | ErrorKind::Denied) => {
                tracing::warn!(database = %self.database, "snapshots are not compared with their identity: {}", error.chain());
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    /// Reads a record; `None` if there is no such object.
    async fn record<R: Record>(&self, key: &Key) -> Result<Option<(R, Version)>> {
        let Some((bytes, version)) = self.bytes(key, R::BYTES_MAX).await? else { return Ok(None) };
        Ok(Some((R::decode(&bytes, key)?, version)))
    }

    async fn bytes(&self, key: &Key, bytes_max: usize) -> Result<Option<(bytes::Bytes, Version)>> {
        match self.storage.read(key, bytes_max).await {
            Ok(object) => Ok(Some((object.bytes, object.version))),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            // We never write a record this large, so this one is not ours.
            Err(error) if error.kind() == ErrorKind::Limit => Err(Error::new(
                ErrorKind::Corrupt,
                format!("read a record, it is too large to be ours: key=`{key}`"),
            )
            .because(error)),
            Err(error) => Err(error),
        }
    }
}

#[cfg(test)]
mod lineage_tests;
#[cfg(test)]
mod tests;
