//! Which snapshot is meant, where some wait in the spool.

use std::sync::Arc;

use super::line;
use super::{Contents, Spool, is_outage};
use crate::catalog::Catalog;
use crate::descent::Descent;
use crate::error::{Error, ErrorKind, Result};
use crate::restore::{Moment, Resources, Target};
use crate::snapshot::{Manifest, Proof, SnapshotId};
use crate::storage::Storage;
use crate::verify;

/// The snapshot that was meant, and where it is.
pub struct Found {
    /// The snapshot, and what leads on from it.
    pub moment: Moment,
    /// The storage or the spool, whichever has it.
    pub storage: Arc<dyn Storage>,
    /// If it is in the spool, the newest snapshot in storage that it follows.
    root: Option<Option<SnapshotId>>,
}

impl Found {
    /// What is known of the snapshot.
    pub fn manifest(&self) -> &Manifest {
        &self.moment.manifest
    }

    /// Whether it waits in the spool.
    pub fn is_spooled(&self) -> bool {
        self.root.is_some()
    }

    /// Notes that the database at `descent` was replaced by it, knowingly in place of `newest`, the newest
    /// in storage where that is known.
    pub fn note_restored(&self, descent: &Descent, newest: Option<&SnapshotId>) {
        match &self.root {
            Some(root) => descent.restored_from_spool(self.manifest(), newest.or(root.as_ref())),
            None => descent.restored(self.manifest(), newest),
        }
    }
}

/// The snapshot meant: in the spool if it is named, or if it is newer and follows the newest in storage.
///
/// Storage that cannot be reached keeps nobody from a snapshot that is named and waits here. Without a name
/// it does, for nobody knows whether there is a newer one; the error says what waits.
pub async fn find(target: &Target, catalog: &Catalog, spool: Option<&Spool>) -> Result<Found> {
    let in_storage = |moment| Found { moment, storage: catalog.storage().clone(), root: None };
    let Some(spool) = spool else { return Moment::find(target, catalog).await.map(in_storage) };
    let contents = match spool.contents().await {
        Ok(contents) => contents,
        Err(error) => {
            tracing::warn!(database = %catalog.database(), "the spool is left out: {}", error.chain());
            Contents::default()
        }
    };
    let Some(newest) = contents.waiting.last() else {
        return Moment::find(target, catalog).await.map(in_storage);
    };
    let newest_id = newest.id.clone();
    let chosen = match target {
        Target::Snapshot(id) => contents.snapshot(id),
        Target::Newest | Target::At(_) => {
            let (head, newest) = line::newest(catalog).await.map_err(|error| match is_outage(&error) {
                true => Error::new(
                    error.kind(),
                    format!(
                        "storage cannot be reached, so nobody knows which snapshot is the newest; the newest that waits \
                         in the spool of this machine is restored with `lifeboat restore --snapshot {newest_id}`"
                    ),
                )
                .because(error),
                false => error,
            })?;
            let known = head.clone().map(|id| (id, newest.map(|newest| newest.epoch)));
            let following = line::following(&known, None, &contents.waiting, &contents.dropped);
            if following.is_empty() {
                tracing::warn!(
                    database = %catalog.database(), snapshot = %newest_id,
                    "what waits in the spool does not follow the newest snapshot and is left out; it is restored by its \
                     id, the newest of it is {newest_id}"
                );
            }
            let is_meant = |manifest: &&Manifest| {
                following.contains(&manifest.id)
                    && match target {
                        Target::At(time) => manifest.taken_at <= *time,
                        _ => Some(&manifest.id) > head.as_ref(),
                    }
            };
            let waits = contents.waiting.iter().rev().find(is_meant);
            match (target, waits) {
                (Target::At(_), Some(waits)) => match target.find(catalog).await {
                    Err(error) if error.kind() == ErrorKind::NotFound => Some(waits),
                    stored => {
                        Some(waits).filter(|waits| stored.as_ref().is_ok_and(|stored| stored.id < waits.id))
                    }
                },
                (_, waits) => waits,
            }
        }
    };
    match (chosen, spool.storage().await?) {
        (Some(manifest), Some(storage)) => {
            let root = line::root(manifest, &contents.waiting, &contents.dropped).cloned();
            Ok(Found { moment: Moment::of(manifest.clone()), storage, root: Some(root) })
        }
        _ => Moment::find(target, catalog).await.map(in_storage),
    }
}

impl Spool {
    /// Proves a snapshot where it waits; `None` if none of this id does.
    pub async fn prove(&self, id: &SnapshotId, resources: &Resources) -> Result<Option<Proof>> {
        let Some(directory) = self.directory().await? else { return Ok(None) };
        // Nothing in it goes away meanwhile.
        let _turn = self.turn().await?;
        let contents = self.contents().await?;
        let Some(manifest) = contents.snapshot(id) else { return Ok(None) };
        let proven = verify::run(&self.catalog(&directory), manifest, resources).await;
        proven.map(Some).map_err(|failure| failure.error)
    }
}
