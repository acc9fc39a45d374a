//! The verb "adopt": the newest snapshot of a branch becomes the newest of all, and the other side is
//! fenced off.
//!
//! What was stored stays as it is: the adopted snapshot is a new one with the same content, whose
//! parent is the branch's. So the head only moves forward, and no record is ever changed.

use std::fmt;

use serde::Serialize;

use crate::catalog::{Branch, Catalog, adopted_as, branches};
use crate::clock::{Clock, Timestamp};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Flag, Key, Manifest, SnapshotId, TOOL};

/// What an adoption would do. Nothing is done by making it.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The snapshot to adopt.
    pub snapshot: SnapshotId,
    /// The moment it shows.
    pub taken_at: Timestamp,
    /// The snapshot its branch left the line from, if that is known.
    pub from: Option<SnapshotId>,
    /// A newer snapshot of the same branch, which is not the one asked for.
    pub newer: Option<SnapshotId>,
    /// The newest snapshot now, which an adopted one follows.
    pub newest: Option<SnapshotId>,
    /// The epoch that is fenced off.
    pub epoch: u64,
    /// Bytes to read from storage and to write to it.
    pub stored_bytes: u64,
    #[serde(skip)]
    manifest: Box<Manifest>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "adopt      {}, which shows {}", self.snapshot, self.taken_at)?;
        if let Some(newer) = &self.newer {
            writeln!(f, "not        {newer}, which is newer on the same branch")?;
        }
        if let Some(from) = &self.from {
            writeln!(f, "from       {from} on, this side counts")?;
        }
        if let Some(newest) = &self.newest {
            writeln!(f, "instead of {newest}; it and what led to it stay listed, as retention says")?;
        }
        writeln!(f, "copy       {} bytes within storage, under a new id", self.stored_bytes)?;
        writeln!(f, "fence      epoch {}: the process that holds it publishes nothing more", self.epoch)?;
        writeln!(
            f,
            "or else    keep the other side: on the branch's machine stop the application, `lifeboat restore`, start"
        )
    }
}

/// Finds out what adopting `snapshot` means; without it, the only branch's newest.
///
/// `NotFound` if there is no such snapshot or no branch; `Config` if the snapshot is on no branch, or
/// there are several branches and none is named; `Conflict` if it was adopted already.
pub async fn plan(catalog: &Catalog, snapshot: Option<SnapshotId>) -> Result<Plan> {
    let manifests = catalog.list().await?.snapshots;
    let head = catalog.head().await?.map(|(head, _)| head);
    let newest = head.as_ref().and_then(|head| head.snapshot.as_ref());
    let branches = branches(&manifests, newest);
    let id = match snapshot {
        Some(id) => id,
        None => only_branch(&branches)?.newest.clone(),
    };
    let manifest = catalog.manifest(&id).await?;
    if !manifest.is_branch() {
        let message = format!(
            "this snapshot is on no branch; to go back to it, `lifeboat restore --snapshot {id}`: snapshot=`{id}`"
        );
        return Err(Error::new(ErrorKind::Config, message));
    }
    if let Some(adopted) = adopted_as(&id, &manifests, newest) {
        let message =
            format!("this snapshot was adopted already: snapshot=`{id}` adopted_as=`{}`", adopted.id);
        return Err(Error::new(ErrorKind::Conflict, message));
    }
    let is_of_branch =
        |other: &&Manifest| other.is_branch() && other.epoch == manifest.epoch && other.id > id;
    Ok(Plan {
        taken_at: manifest.taken_at,
        from: branches.iter().find(|branch| branch.newest == id).and_then(|branch| branch.from.clone()),
        newer: manifests.iter().find(is_of_branch).map(|newer| newer.id.clone()),
        epoch: head.as_ref().map_or(0, |head| head.epoch),
        newest: head.and_then(|head| head.snapshot),
        stored_bytes: manifest.stored.bytes,
        snapshot: id,
        manifest: Box::new(manifest),
    })
}

fn only_branch(branches: &[Branch]) -> Result<&Branch> {
    let open: Vec<&Branch> = branches.iter().filter(|branch| branch.adopted_as.is_none()).collect();
    match open.as_slice() {
        [only] => Ok(only),
        [] => Err(Error::new(ErrorKind::NotFound, "there is no branch to adopt")),
        several => {
            let ids: Vec<&str> = several.iter().map(|branch| branch.newest.as_str()).collect();
            let message =
                format!("there are several branches; say which with --snapshot: newest=`{}`", ids.join(", "));
            Err(Error::new(ErrorKind::Config, message))
        }
    }
}

/// Carries out a [`Plan`] and returns the snapshot that is the newest now.
///
/// The other side is fenced first, so that nothing it stores meanwhile is set aside unseen. When the
/// copy fails after that, its newest snapshot still is the newest, and its process has to be started
/// again to go on.
pub async fn apply(catalog: &Catalog, plan: &Plan, clock: &Clock) -> Result<Manifest> {
    let present = catalog.storage().head(&plan.manifest.data_key()).await?;
    if present.is_none_or(|entry| entry.bytes != plan.stored_bytes) {
        let message =
            format!("the branch's data is missing or has another size: key=`{}`", plan.manifest.data_key());
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let epoch = catalog.claim_epoch("lifeboat adopt", clock.now()).await?;
    publish_copy(catalog, &plan.manifest, epoch, clock).await.map_err(|error| {
        let message = format!(
            "the branch was not adopted, but the other side is fenced off: adopt again, or start the process of that \
             side again: snapshot=`{}` epoch=`{epoch}`",
            plan.snapshot
        );
        Error::new(error.kind(), message).because(error)
    })
}

async fn publish_copy(catalog: &Catalog, branch: &Manifest, epoch: u64, clock: &Clock) -> Result<Manifest> {
    let newest = catalog.newest_id().await?;
    let previous = newest.as_ref().max(Some(&branch.id));
    let id = SnapshotId::next(clock.now(), previous, crate::random::u128()? as u32);
    catalog
        .storage()
        .create(&Key::Snapshot(branch.database.clone(), id.clone()), catalog.data(branch))
        .await?;
    let manifest = Manifest {
        id,
        parent: Some(branch.id.clone()),
        epoch,
        flags: branch.flags.iter().copied().filter(|flag| *flag != Flag::Branch).collect(),
        // Deltas lead along the main line, where the branch's positions mean other states.
        anchor: None,
        tool: TOOL.to_owned(),
        ..branch.clone()
    };
    catalog.publish(&manifest, epoch, clock.now()).await?;
    // Nobody publishes under this epoch any more; the branch's process claims its own.
    catalog.release_epoch(epoch, clock.now()).await?;
    Ok(manifest)
}
