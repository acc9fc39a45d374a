//! The verb "back up": one snapshot of one database, stored and published, or nothing at all.

mod pipeline;
mod take;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use pipeline::FRAME_BYTES;
pub use take::{Basis, Follow, Taken, Work, take};

use crate::catalog::{Catalog, is_not_ours};
use crate::descent::Descent;
use crate::error::{ErrorKind, Result};
use crate::lineage::{self, Fork, Standing};
use crate::snapshot::{Baseline, Flag, Key, Manifest, SnapshotId};
use crate::source::{Limits, Source};
use crate::storage::Parts;

/// What a backup may use, as configured.
#[derive(Debug, Clone)]
pub struct Settings {
    /// How long to wait for somebody else's lock.
    pub busy_timeout: Duration,
    /// How long one backup may take in all.
    pub deadline: Duration,
    /// By how many bytes the write-ahead log may grow meanwhile.
    pub wal_growth_max: u64,
    /// For how long writers may be kept waiting; only matters without a write-ahead log.
    pub writer_blocked_max: Duration,
    /// zstd level.
    pub zstd_level: i32,
    /// Number of compressing threads.
    pub threads: usize,
    /// Where a database without WAL is copied to first.
    pub scratch: PathBuf,
    /// A snapshot that could not be restored: a database that it claims to hold is stored anew.
    pub distrusted: Option<SnapshotId>,
    /// Somebody says that the database is meant to be as small as it is: no [`Flag::Shrunken`].
    pub accept_shrunken: bool,
}

impl Settings {
    /// The bounds of a piece of work on a database that begins now.
    pub fn limits(&self, cancel: &CancellationToken) -> Limits {
        Limits {
            busy_timeout: self.busy_timeout,
            deadline: std::time::Instant::now() + self.deadline,
            wal_growth_max: self.wal_growth_max,
            writer_blocked_max: self.writer_blocked_max,
            cancel: cancel.clone(),
        }
    }
}

/// How a backup ended well.
#[derive(Debug, Clone, Serialize)]
#[serde(tag = "outcome", content = "snapshot", rename_all = "kebab-case")]
pub enum Outcome {
    /// A new snapshot is published.
    Stored(Box<Manifest>),
    /// The database is, byte for byte, what this snapshot holds already; nothing was stored.
    Unchanged(Box<Manifest>),
}

impl Outcome {
    /// The snapshot that now holds the database.
    pub fn manifest(&self) -> &Manifest {
        match self {
            Outcome::Stored(manifest) | Outcome::Unchanged(manifest) => manifest,
        }
    }
}

/// Takes a snapshot of the database and publishes it: as the newest, or on a branch.
///
/// Data first, manifest last, then head. After an error in between, the data stands without a
/// manifest and is swept by a later prune, or the snapshot is listed without being the newest.
pub async fn run(catalog: &Catalog, standing: &Standing, work: Work<'_>) -> Result<Outcome> {
    let Work { path, settings, clock, .. } = work;
    // Before storage is asked for anything: what is no database costs no request.
    Source::locate(path)?;
    let epoch = standing.epoch;
    let Previous { parent, baseline, manifest: previous } = match &standing.fork {
        Some(fork) => Previous::of_branch(catalog, fork).await?,
        None => {
            // A writer that was overtaken would upload everything before it learned that.
            let head = catalog.head().await?;
            lineage::may_publish(head.as_ref().map(|(head, _)| head), epoch)?;
            Previous::of(catalog).await?
        }
    };
    let descent = Descent::of(catalog.database(), path, &settings.scratch);
    let identity = catalog.ensure_identity(clock.now(), crate::random::u128()?).await?;
    let wants_new = work.follower.as_ref().is_some_and(|follower| follower.wants_anchor());
    let known = match previous {
        Some(manifest) if !wants_new && is_reusable(catalog, &manifest, settings).await? => Some(manifest),
        _ => None,
    };
    let database_id = identity.database_id;
    let basis = Basis { database_id, epoch, is_branch: standing.fork.is_some(), parent, baseline, known };
    let follower = work.follower.clone();
    let create = |key: Key, parts: Parts| async move { catalog.storage().create(&key, parts).await };
    let (mut manifest, table) = match take(work, basis, create).await? {
        Taken::Known(manifest) => {
            descent.stored(&manifest);
            return Ok(Outcome::Unchanged(manifest));
        }
        Taken::New(manifest, table) => (manifest, table),
    };
    if let (Some(follower), Some(_)) = (&follower, manifest.anchor)
        && let Err(error) = follower.lead_on().await
    {
        tracing::warn!(database = %catalog.database(), "no deltas lead on from this snapshot: {}", error.chain());
        manifest.anchor = None;
    }
    // When this fails the manifest may stand nevertheless, and while it does the data must: it is
    // not deleted here. Data without a manifest is swept by a later prune.
    match standing.fork {
        Some(_) => catalog.publish_branch(&manifest, epoch).await?,
        None => {
            // Noted beforehand, so that a crash right after it is not taken for somebody else's work.
            descent.publishing(&manifest);
            catalog.publish(&manifest, epoch, clock.now()).await?;
        }
    }
    descent.stored(&manifest);
    if let (Some(follower), Some(anchor), Some(table)) = (follower, manifest.anchor, table) {
        follower.anchored(anchor.position, table);
    }
    Ok(Outcome::Stored(manifest))
}

/// Whether "unchanged" may point at this snapshot: it is not distrusted, it is not about to lose a
/// flag, and its data is there.
async fn is_reusable(catalog: &Catalog, manifest: &Manifest, settings: &Settings) -> Result<bool> {
    let data = catalog.storage().head(&manifest.data_key()).await?;
    let is_whole = data.is_some_and(|data| data.bytes == manifest.stored.bytes);
    let loses_flag = settings.accept_shrunken && manifest.flags.contains(&Flag::Shrunken);
    Ok(is_whole && !loses_flag && settings.distrusted.as_ref() != Some(&manifest.id))
}

/// What a new snapshot follows.
struct Previous {
    /// The newest snapshot.
    parent: Option<SnapshotId>,
    /// The newest one without flags.
    baseline: Option<Baseline>,
    /// The newest one's manifest unless that is damaged: then a backup is due all the more.
    manifest: Option<Box<Manifest>>,
}

impl Previous {
    /// What a branch goes on from; nothing if that is not known, or gone.
    async fn of_branch(catalog: &Catalog, fork: &Fork) -> Result<Self> {
        let manifest = match &fork.from {
            None => None,
            Some(from) => match catalog.manifest(from).await {
                Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::Corrupt) => None,
                manifest => Some(manifest?),
            },
        };
        Ok(Previous {
            parent: fork.from.clone(),
            baseline: manifest.as_ref().and_then(Manifest::baseline_for_next),
            manifest: manifest.map(Box::new),
        })
    }

    async fn of(catalog: &Catalog) -> Result<Self> {
        match catalog.newest().await {
            Ok(newest) => Ok(Previous {
                parent: newest.as_ref().map(|manifest| manifest.id.clone()),
                baseline: newest.as_ref().and_then(Manifest::baseline_for_next),
                manifest: newest.map(Box::new),
            }),
            Err(error) if error.kind() == ErrorKind::Corrupt && !is_not_ours(&error) => {
                let Some((head, _)) = catalog.head().await? else { return Err(error) };
                tracing::error!(database = %catalog.database(), "the newest snapshot is damaged, taking another: {}", error.chain());
                let newest_sound = catalog.list().await?.snapshots.into_iter().next();
                let baseline = newest_sound.as_ref().and_then(Manifest::baseline_for_next);
                Ok(Previous { parent: head.snapshot, baseline, manifest: None })
            }
            Err(error) => Err(error),
        }
    }
}
