//! Copying a database to an object, with everything its manifest says; who publishes it is not known here.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use futures::future::BoxFuture;
use tokio_util::sync::CancellationToken;

use super::Settings;
use super::pipeline::{self, FRAME_BYTES, Passed, Recipe};
use crate::clock::{Clock, Timestamp, elapsed_ms};
use crate::delta::PageTable;
use crate::disk::blocking;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{
    Anchor, Baseline, DatabaseId, DatabaseName, FORMAT, Flag, Key, Manifest, SnapshotId, TOOL,
};
use crate::source::{Facts, Findings, Limits, OnProgress, Reading, Source};
use crate::storage::Parts;

/// Which database is copied, and how.
pub struct Work<'a> {
    /// Its name in storage.
    pub database: &'a DatabaseName,
    /// Where it is.
    pub path: &'a Path,
    /// What may be used.
    pub settings: &'a Settings,
    /// The time.
    pub clock: &'a Clock,
    /// Ends it early.
    pub cancel: &'a CancellationToken,
    /// Is told how far it has come.
    pub on_progress: OnProgress,
    /// Who follows the database between its snapshots.
    pub follower: Option<Arc<dyn Follow>>,
}

/// Whoever follows a database between its snapshots, and has to know where each of them stands.
pub trait Follow: Send + Sync {
    /// Whether there has to be a new snapshot, also of what is in storage already.
    fn wants_anchor(&self) -> bool;

    /// Comes right before a transaction is pinned.
    fn before_pin(&self);

    /// Comes right after it was, on a database with a log or without: the position at which the snapshot stands, if
    /// there is any.
    fn pinned(&self, has_log: bool) -> Option<u64>;

    /// Comes before the snapshot is published: what was committed while it was pinned is stored, so that later
    /// deltas lead on from it.
    fn lead_on(&self) -> BoxFuture<'_, Result<()>>;

    /// The snapshot at that position is in storage, and these are the hashes of its pages.
    fn anchored(&self, position: u64, table: PageTable);
}

/// What is known of a snapshot before the database is read.
#[derive(Debug)]
pub struct Basis {
    /// The history it belongs to.
    pub database_id: DatabaseId,
    /// The epoch of the writer.
    pub epoch: u64,
    /// Whether the database does not descend from the newest snapshot.
    pub is_branch: bool,
    /// The snapshot it follows; its own id is above that one.
    pub parent: Option<SnapshotId>,
    /// The newest one without flags.
    pub baseline: Option<Baseline>,
    /// A snapshot of this very content makes another one needless.
    pub known: Option<Box<Manifest>>,
}

/// How a copy ended well.
#[derive(Debug)]
pub enum Taken {
    /// The data is there; its manifest, which would make it a snapshot, is not. With the hashes of its pages,
    /// if the manifest has an anchor.
    New(Box<Manifest>, Option<PageTable>),
    /// The database is, byte for byte, what this snapshot holds already; nothing was kept.
    Known(Box<Manifest>),
}

/// Reads the database in one transaction and hands its parts to `create`, which stores them under the key
/// of the data, all or nothing.
pub async fn take<F>(work: Work<'_>, basis: Basis, create: impl FnOnce(Key, Parts) -> F) -> Result<Taken>
where
    F: Future<Output = Result<()>>,
{
    let Work { database, path, settings, clock, cancel, on_progress, follower } = work;
    let Basis { database_id, epoch, is_branch, parent, baseline, known } = basis;
    let source = Source::locate(path)?;
    let Pinned { reading, taken_at, position } =
        pin(source.clone(), settings.limits(cancel), clock, follower).await?;
    let facts = reading.facts().clone();
    let id = SnapshotId::next(taken_at, parent.as_ref(), crate::random::u128()? as u32);

    let recipe = Recipe {
        level: settings.zstd_level,
        threads: settings.threads,
        scratch: settings.scratch.clone(),
        wants_table: position.is_some(),
    };
    let log = (source.clone(), source.fingerprint().log_bytes());
    let (parts, passing) = pipeline::start(reading, recipe, on_progress, known);
    let created = tokio::select! {
        created = create(Key::Snapshot(database.clone(), id.clone()), parts) => created,
        // Dropping the upload undoes it and takes the pipeline's customer away, which ends it too.
        () = cancel.cancelled() => Err(Error::cancelled()),
        () = tokio::time::sleep(settings.deadline) => Err(Limits::deadline_passed()),
        error = log_outgrows(log, settings.wal_growth_max) => Err(error),
    };
    let passed =
        passing.await.context(ErrorKind::Internal, || "the snapshot pipeline ended early".to_owned())?;
    let copied = match (passed, created) {
        (Ok(Passed::Known(manifest)), _) => return Ok(Taken::Known(manifest)),
        // If the storage failed, the pipeline merely lost its customer.
        (Err(effect), Err(cause)) if effect.kind() == ErrorKind::Cancelled => return Err(cause),
        (Err(error), _) | (Ok(_), Err(error)) => return Err(error),
        (Ok(Passed::New(copied)), Ok(())) => copied,
    };
    let compared_with = baseline.as_ref().filter(|_| !settings.accept_shrunken);
    let anchor = position.zip(copied.table.as_ref());
    let anchor = anchor.map(|(position, table)| Anchor { position, checksum: table.checksum().bits() });
    let manifest = Box::new(Manifest {
        format: FORMAT,
        id,
        database: database.clone(),
        database_id,
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
        flags: flags(&facts, copied.findings.as_ref(), compared_with, is_branch),
        baseline,
        sqlite: facts.sqlite,
        anchor,
        tool: TOOL.to_owned(),
    });
    Ok(Taken::New(manifest, copied.table))
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

struct Pinned {
    reading: Reading,
    taken_at: Timestamp,
    position: Option<u64>,
}

async fn pin(
    source: Source,
    limits: Limits,
    clock: &Clock,
    follower: Option<Arc<dyn Follow>>,
) -> Result<Pinned> {
    let clock = clock.clone();
    let begin = move || {
        follower.iter().for_each(|follower| follower.before_pin());
        let reading = Reading::begin(&source, limits)?;
        // Whatever was committed before the pin is in the snapshot, so it shows this moment or later.
        let taken_at = clock.now();
        let has_log = reading.facts().sqlite.journal_mode == "wal";
        let position = follower.and_then(|follower| follower.pinned(has_log));
        Ok(Pinned { reading, taken_at, position })
    };
    blocking("pin the database", begin).await
}

/// What looks wrong with a source, next to the newest snapshot that looked well.
fn flags(
    facts: &Facts,
    findings: Option<&Findings>,
    baseline: Option<&Baseline>,
    is_branch: bool,
) -> Vec<Flag> {
    let bytes = u64::from(facts.page_size) * u64::from(facts.page_count);
    let checks = [
        (Flag::Empty, facts.schema_objects == 0),
        (Flag::Shrunken, baseline.is_some_and(|baseline| baseline.is_more_than_twice(bytes))),
        (Flag::Malformed, findings.is_some_and(|findings| !findings.is_whole())),
        (Flag::Branch, is_branch),
    ];
    checks.into_iter().filter_map(|(flag, raised)| raised.then_some(flag)).collect()
}
