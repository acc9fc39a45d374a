//! Shipping a snapshot from the spool to storage: stored, published, proven there, and only then removed here.

use std::sync::{Arc, Mutex, PoisonError};

use futures::StreamExt;

use super::line;
use super::{Contents, Spool};
use crate::catalog::{Catalog, is_not_ours};
use crate::crash::{self, Point};
use crate::descent::Descent;
use crate::error::{ErrorKind, Result};
use crate::lineage::Standing;
use crate::restore::Resources;
use crate::snapshot::{Flag, Manifest, Proof, SnapshotId};
use crate::storage::{Directory, Parts};
use crate::verify;

/// Where snapshots are shipped to, and as whom.
pub struct Destination<'a> {
    /// The database's backups in storage.
    pub catalog: &'a Catalog,
    /// As whom this process publishes.
    pub standing: &'a Standing,
    /// Who claims an epoch for a branch, for people.
    pub holder: &'a str,
    /// The notes about the database file.
    pub descent: &'a Descent,
    /// What a proof may use; its storage is that of the catalog.
    pub resources: &'a Resources,
}

/// What became of the oldest snapshot that could be shipped.
#[derive(Debug)]
pub enum Shipped {
    /// It is in storage, proven, and not in the spool any more.
    Proven(Box<Manifest>, Proof),
    /// It is in storage, byte for byte, and not in the spool any more; the database in it was not found
    /// well, or not looked at, and why.
    Stored(Box<Manifest>, verify::Failure),
    /// It stays in the spool: it is damaged, or its copy in storage is; the state says so.
    Stuck(Option<Proof>),
}

impl Spool {
    /// Ships the oldest snapshot that was not found to be stuck; `None` if there is none.
    ///
    /// An error leaves it in the spool, and leaves storage as a crash at that moment would: the same call
    /// goes on from there.
    pub async fn ship_next(&self, to: &Destination<'_>) -> Result<Option<Shipped>> {
        let shipped = self.try_ship_next(to).await;
        match &shipped {
            Ok(_) => self.memory().outage = None,
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) => self.memory().outage = Some(error.chain()),
        }
        self.look().await;
        shipped
    }

    async fn try_ship_next(&self, to: &Destination<'_>) -> Result<Option<Shipped>> {
        let Some(directory) = self.directory().await? else { return Ok(None) };
        let _turn = self.turn().await?;
        self.sweep_orphans(&directory).await?;
        let contents = self.contents().await?;
        let is_stuck = |id: &SnapshotId| self.memory().stuck.contains_key(id);
        let Some(waits) = contents.waiting.iter().find(|manifest| !is_stuck(&manifest.id)) else {
            return Ok(None);
        };
        let there = match to.catalog.manifest(&waits.id).await {
            Err(error) if error.kind() == ErrorKind::NotFound => None,
            Err(error) if error.kind() == ErrorKind::Corrupt && !is_not_ours(&error) => {
                let why = format!("the manifest of {} in storage is damaged: {}", waits.id, error.chain());
                return Ok(Some(self.stuck(waits, why, None)));
            }
            found => Some(found?),
        };
        let published = match there {
            Some(there) if (there.stored, there.plain) == (waits.stored, waits.plain) => {
                finish(to, &there, &contents).await?;
                there
            }
            Some(_) => {
                let why = format!("another snapshot has the id of {} in storage", waits.id);
                return Ok(Some(self.stuck(waits, why, None)));
            }
            None => {
                if let Err(error) = self.store(&directory, to.catalog, waits).await? {
                    let why = format!("snapshot {} cannot be shipped: {}", waits.id, error.chain());
                    return Ok(Some(self.stuck(waits, why, None)));
                }
                crash::at(Point::SpoolDataShipped);
                let published = publish(to, waits, &contents).await?;
                crash::at(Point::SpoolPublished);
                published
            }
        };
        self.prove_and_remove(&directory, to, published, contents).await.map(Some)
    }

    /// Uploads the data. The inner error says that it can never be shipped as it is, for it is damaged here
    /// or its place is taken; nothing was stored then.
    async fn store(&self, directory: &Directory, storage: &Catalog, waits: &Manifest) -> Result<Result<()>> {
        let read = Arc::new(Mutex::new(None));
        let noted = Arc::clone(&read);
        let parts: Parts = self
            .catalog(directory)
            .data(waits)
            .map(move |part| {
                part.inspect_err(|error| {
                    *noted.lock().unwrap_or_else(PoisonError::into_inner) = Some(error.again());
                })
            })
            .boxed();
        let created = storage.storage().create(&waits.data_key(), parts).await;
        let unreadable = read.lock().unwrap_or_else(PoisonError::into_inner).take();
        match created {
            Ok(()) => Ok(Ok(())),
            Err(_) if let Some(unreadable) = unreadable => Ok(Err(unreadable)),
            // Our own, from before a crash: the proof will tell whether it is what it should be.
            Err(error) if error.kind() == ErrorKind::Conflict => {
                let found = storage.storage().head(&waits.data_key()).await?;
                match found.is_some_and(|found| found.bytes == waits.stored.bytes) {
                    true => Ok(Ok(())),
                    false => Ok(Err(error)),
                }
            }
            Err(error) => Err(error),
        }
    }

    async fn prove_and_remove(
        &self,
        directory: &Directory,
        to: &Destination<'_>,
        published: Manifest,
        contents: Contents,
    ) -> Result<Shipped> {
        let id = published.id.clone();
        let shipped = match verify::run(to.catalog, &published, to.resources).await {
            Ok(proof) => Shipped::Proven(Box::new(published), proof),
            // What is in storage is what was spooled, whatever the database in it is worth.
            Err(failure) if failure.is_as_stored => Shipped::Stored(Box::new(published), failure),
            Err(failure) if failure.verdict.is_some() => {
                let why = format!("snapshot {id} was shipped, but is not proven: {}", failure.error.chain());
                return Ok(self.stuck(&published, why, failure.verdict));
            }
            // There is no room to restore it to; that it was stored can be told without.
            Err(failure) if matches!(failure.error.kind(), ErrorKind::Target | ErrorKind::Limit) => {
                let mut parts = to.catalog.data(&published);
                while let Some(part) = parts.next().await {
                    part?;
                }
                Shipped::Stored(Box::new(published), failure)
            }
            Err(failure) => return Err(failure.error),
        };
        crash::at(Point::SpoolProven);
        // Forgotten first: nobody would come back for it, were this the last that waits and a crash next.
        if contents.dropped.iter().all(|dropped| dropped.snapshot < id) && !contents.dropped.is_empty() {
            self.remember_dropped(Vec::new()).await?;
        }
        self.remove(directory, &id).await?;
        Ok(shipped)
    }

    fn stuck(&self, waits: &Manifest, why: String, verdict: Option<Proof>) -> Shipped {
        let path = self.path_of(&waits.key().path());
        let why =
            format!("{why}; it stays in the spool until its files are moved away: path=`{}`", path.display());
        tracing::error!(database = %self.database, snapshot = %waits.id, "{why}");
        self.memory().stuck.insert(waits.id.clone(), why);
        Shipped::Stuck(verdict)
    }
}

/// Moves the head to what an interrupted shipment published, if that goes on from it.
async fn finish(to: &Destination<'_>, there: &Manifest, contents: &Contents) -> Result<()> {
    let Destination { catalog, standing, descent, resources, .. } = to;
    let front = Front::of(to, contents).await?;
    let is_behind = front.head.as_ref() < Some(&there.id);
    if standing.fork.is_none() && !there.is_branch() && front.following.contains(&there.id) && is_behind {
        descent.publishing(there);
        catalog.finish_publishing(there, standing.epoch, resources.clock.now()).await?;
        descent.stored(there);
    }
    Ok(())
}

/// Where the line of storage ends, and what goes on from it.
struct Front {
    head: Option<SnapshotId>,
    newest: Option<Manifest>,
    following: Vec<SnapshotId>,
}

impl Front {
    async fn of(to: &Destination<'_>, contents: &Contents) -> Result<Front> {
        let (head, newest) = line::newest(to.catalog).await?;
        let epoch = newest.as_ref().map(|newest| newest.epoch);
        let known = head.clone().map(|id| (id, epoch));
        let own = Some(to.standing.epoch);
        let following = line::following(&known, own, &contents.waiting, &contents.dropped);
        Ok(Front { head, newest, following })
    }
}

/// Makes the uploaded snapshot exist: as the newest, as an older one, or on a branch.
async fn publish(to: &Destination<'_>, waits: &Manifest, contents: &Contents) -> Result<Manifest> {
    let Destination { catalog, standing, holder, descent, resources } = to;
    let clock = &resources.clock;
    let identity = catalog.ensure_identity(clock.now(), crate::random::u128()?).await?;
    let shipped = Manifest { database_id: identity.database_id, epoch: standing.epoch, ..waits.clone() };
    if let Some(fork) = &standing.fork {
        let manifest = Manifest { parent: fork.from.clone(), ..on_branch(shipped) };
        catalog.publish_branch(&manifest, standing.epoch).await?;
        descent.stored(&manifest);
        return Ok(manifest);
    }
    let Front { head, newest, following } = Front::of(to, contents).await?;
    if !following.contains(&waits.id) {
        let epoch = catalog.claim_branch(holder, clock.now()).await?;
        let manifest = Manifest { epoch, ..on_branch(shipped) };
        catalog.publish_branch(&manifest, epoch).await?;
        tracing::warn!(
            database = %catalog.database(), snapshot = %manifest.id,
            "snapshot {} waited in the spool while others were published, and forms a branch", manifest.id
        );
        return Ok(manifest);
    }
    let manifest = compared(shipped, newest.as_ref());
    if head.as_ref() > Some(&manifest.id) {
        catalog.publish_older(&manifest, standing.epoch).await?;
        return Ok(manifest);
    }
    let manifest = Manifest { parent: head, ..manifest };
    // Noted beforehand, so that a crash right after it is not taken for somebody else's work.
    descent.publishing(&manifest);
    catalog.publish(&manifest, standing.epoch, clock.now()).await?;
    descent.stored(&manifest);
    Ok(manifest)
}

fn on_branch(mut manifest: Manifest) -> Manifest {
    if !manifest.is_branch() {
        manifest.flags.push(Flag::Branch);
    }
    manifest
}

/// Says whether the database had shrunk, if nobody could when it was taken.
fn compared(mut manifest: Manifest, newest: Option<&Manifest>) -> Manifest {
    if manifest.baseline.is_none() {
        manifest.baseline = newest.and_then(Manifest::baseline_for_next);
        let has_shrunk = manifest
            .baseline
            .as_ref()
            .is_some_and(|baseline| baseline.is_more_than_twice(manifest.plain.bytes));
        if has_shrunk && !manifest.flags.contains(&Flag::Shrunken) {
            manifest.flags.push(Flag::Shrunken);
        }
    }
    manifest
}

impl Shipped {
    /// What is in storage now.
    pub fn manifest(&self) -> Option<&Manifest> {
        match self {
            Shipped::Proven(manifest, _) | Shipped::Stored(manifest, _) => Some(manifest),
            Shipped::Stuck(_) => None,
        }
    }
}
