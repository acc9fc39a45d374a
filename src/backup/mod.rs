//! The verb "back up": one snapshot of one database, stored and published, or nothing at all.

mod pipeline;

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

pub use pipeline::FRAME_BYTES;

use crate::catalog::Catalog;
use crate::clock::{Clock, Timestamp, elapsed_ms};
use crate::disk::blocking;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{FORMAT, Flag, Key, Manifest, SnapshotId, TOOL};
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
    Unchanged(SnapshotId),
}

/// Takes a snapshot of the database at `path` and publishes it under `epoch`.
///
/// Data first, manifest last, then head. After an error in between, the data stands without a
/// manifest and is swept by a later prune, or the snapshot is listed without being the newest.
pub async fn run(
    catalog: &Catalog,
    path: &std::path::Path,
    epoch: u64,
    settings: &Settings,
    clock: &Clock,
    cancel: &CancellationToken,
    on_progress: OnProgress,
) -> Result<Outcome> {
    let source = Source::locate(path)?;
    let previous = catalog.newest().await?;
    let identity = catalog.ensure_identity(clock.now(), crate::random::u128()?).await?;

    let limits = settings.limits(cancel);
    let (reading, taken_at) = pin(source, limits, clock).await?;
    let facts = reading.facts().clone();
    let id = SnapshotId::next(
        taken_at,
        previous.as_ref().map(|manifest| &manifest.id),
        crate::random::u128()? as u32,
    );

    let recipe =
        Recipe { level: settings.zstd_level, threads: settings.threads, scratch: settings.scratch.clone() };
    let known = previous.as_ref().map(|manifest| (manifest.id.clone(), manifest.plain));
    let (parts, passing) = pipeline::start(reading, recipe, on_progress, known);
    let key = Key::Snapshot(catalog.database().clone(), id.clone());
    let created = tokio::select! {
        created = catalog.storage().create(&key, parts) => created,
        // Dropping the upload undoes it and takes the pipeline's customer away, which ends it too.
        () = cancel.cancelled() => Err(Error::cancelled()),
        () = tokio::time::sleep(settings.deadline) => Err(Limits::deadline_passed()),
    };
    let passed =
        passing.await.context(ErrorKind::Internal, || "the snapshot pipeline ended early".to_owned())?;
    let copied = match (passed, created) {
        (Ok(Passed::Known(id)), _) => return Ok(Outcome::Unchanged(id)),
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
        parent: previous.as_ref().map(|manifest| manifest.id.clone()),
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
        flags: flags(&facts, copied.findings.as_ref(), previous.as_ref()),
        sqlite: facts.sqlite,
        tool: TOOL.to_owned(),
    };
    // When this fails the manifest may stand nevertheless, and while it does the data must: it is
    // not deleted here. Data without a manifest is swept by a later prune.
    catalog.publish(&manifest, epoch, clock.now()).await?;
    Ok(Outcome::Stored(Box::new(manifest)))
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

/// What looks wrong with a source, next to the snapshot before.
fn flags(facts: &Facts, findings: Option<&Findings>, previous: Option<&Manifest>) -> Vec<Flag> {
    let bytes = u64::from(facts.page_size) * u64::from(facts.page_count);
    let checks = [
        (Flag::Empty, facts.schema_objects == 0),
        (Flag::Shrunken, previous.is_some_and(|previous| bytes < previous.plain.bytes / 2)),
        (Flag::Malformed, findings.is_some_and(|findings| !findings.is_whole())),
    ];
    checks.into_iter().filter_map(|(flag, raised)| raised.then_some(flag)).collect()
}
