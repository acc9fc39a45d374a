//! The verb "back up": one snapshot of one database, stored and published, or nothing at all.

mod pipeline;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use pipeline::FRAME_BYTES;

use crate::catalog::{Catalog, is_not_ours};
use crate::clock::{Clock, Timestamp, elapsed_ms};
use crate::descent::Descent;
use crate::disk::blocking;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::lineage::{self, Fork, Standing};
use crate::snapshot::{Baseline, FORMAT, Flag, Key, Manifest, SnapshotId, TOOL};
use crate::source::{Facts, Findings, Limits, OnProgress, Reading, Source};
use pipeline::{Passed, Recipe};

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

/// Takes a snapshot of the database at `path` and publishes it: as the newest, or on a branch.
///
/// Data first, manifest last, then head. After an error in between, the data stands without a
/// manifest and is swept by a later prune, or the snapshot is listed without being the newest.
pub async fn run(
    catalog: &Catalog,
    path: &std::path::Path,
    standing: &Standing,
    settings: &Settings,
    clock: &Clock,
    cancel: &CancellationToken,
    on_progress: OnProgress,
) -> Result<Outcome> {
    let source = Source::locate(path)?;
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

    let limits = settings.limits(cancel);
    let (reading, taken_at) = pin(source.clone(), limits, clock).await?;
    let facts = reading.facts().clone();
    let id = SnapshotId::next(taken_at, parent.as_ref(), crate::random::u128()? as u32);

    let recipe =
        Recipe { level: settings.zstd_level, threads: settings.threads, scratch: settings.scratch.clone() };
    let known = match previous {
        Some(manifest) if is_reusable(catalog, &manifest, settings).await? => Some(manifest),
        _ => None,
    };
    let log = (source.clone(), source.fingerprint().log_bytes());
    let (parts, passing) = pipeline::start(reading, recipe, on_progress, known);
    let key = Key::Snapshot(catalog.database().clone(), id.clone());
    let created = tokio::select! {
        created = catalog.storage().create(&key, parts) => created,
        // Dropping the upload undoes it and takes the pipeline's customer away, which ends it too.
        () = cancel.cancelled() => Err(Error::cancelled()),
        () = tokio::time::sleep(settings.deadline) => Err(Limits::deadline_passed()),
        error = log_outgrows(log, settings.wal_growth_max) => Err(error),
    };
    let passed =
        passing.await.context(ErrorKind::Internal, || "the snapshot pipeline ended early".to_owned())?;
    let copied = match (passed, created) {
        (Ok(Passed::Known(manifest)), _) => {
            descent.stored(&manifest);
            return Ok(Outcome::Unchanged(manifest));
        }
        // If the storage failed, the pipeline merely lost its customer.
        (Err(effect), Err(cause)) if effect.kind() == ErrorKind::Cancelled => return Err(cause),
        (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
        (Ok(Passed::New(copied)), Ok(())) => copied,
    };

    let manifest = Manifest {
        format: FORMAT,
        id,
        database: catalog.database().clone(),
        database_id: identity.database_id,
        parent,
        epoch,
        taken_at,
        took_ms: elapsed_ms(taken_at, clock.now()),
        writer_blocked_ms: copied.writer_blocked.as_millis() as u64,
        page_size: facts.page_size,
        page_count: facts.page_count,
        frame_bytes: FRAME_BYTES,
        zstd_level: settings.zstd_level,
        plain: copied.plain,
        stored: copied.stored,
        flags: flags(
            &facts,
            copied.findings.as_ref(),
            baseline.as_ref().filter(|_| !settings.accept_shrunken),
            standing,
        ),
        baseline,
        sqlite: facts.sqlite,
        tool: TOOL.to_owned(),
    };
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
    Ok(Outcome::Stored(Box::new(manifest)))
}

/// Whether "unchanged" may point at this snapshot: it is not distrusted, it is not about to lose a
/// flag, and its data is there.
async fn is_reusable(catalog: &Catalog, manifest: &Manifest, settings: &Settings) -> Result<bool> {
    let data = catalog.storage().head(&manifest.data_key()).await?;
    let is_whole = data.is_some_and(|data| data.bytes == manifest.stored.bytes);
    let loses_flag = settings.accept_shrunken && manifest.flags.contains(&Flag::Shrunken);
    Ok(is_whole && !loses_flag && settings.distrusted.as_ref() != Some(&manifest.id))
}

/// Ends when the write-ahead log has grown too far. The reader looks at it between its steps, but
/// waits inside one when the storage does.
async fn log_outgrows((source, bytes_at_start): (Source, u64), growth_max: u64) -> Error {
    loop {
        tokio::time::sleep(Duration::from_secs(1)).await;
        let grown = source.fingerprint().log_bytes().saturating_sub(bytes_at_start);
        if grown > growth_max {
            return Limits::log_outgrown(source.path(), grown, growth_max);
        }
    }
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

async fn pin(source: Source, limits: Limits, clock: &Clock) -> Result<(Reading, Timestamp)> {
    let clock = clock.clone();
    let begin = move || {
        let reading = Reading::begin(&source, limits)?;
        // Whatever was committed before the pin is in the snapshot, so it shows this moment or later.
        Ok((reading, clock.now()))
    };
    blocking("pin the database", begin).await
}

/// What looks wrong with a source, next to the newest snapshot that looked well.
fn flags(
    facts: &Facts,
    findings: Option<&Findings>,
    baseline: Option<&Baseline>,
    standing: &Standing,
) -> Vec<Flag> {
    let bytes = u64::from(facts.page_size) * u64::from(facts.page_count);
    let checks = [
        (Flag::Empty, facts.schema_objects == 0),
        (Flag::Shrunken, baseline.is_some_and(|baseline| bytes < baseline.plain_bytes / 2)),
        (Flag::Malformed, findings.is_some_and(|findings| !findings.is_whole())),
        (Flag::Branch, standing.fork.is_some()),
    ];
    checks.into_iter().filter_map(|(flag, raised)| raised.then_some(flag)).collect()
}
