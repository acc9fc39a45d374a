//! Restoring where nobody has the database open: a plan that can be shown, and its execution.

use std::fmt;
use std::fs;
use std::io;
use std::num::NonZeroUsize;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Resources;
use super::kept;
use super::moment::Moment;
use super::scratch::{Damage, Scratch};
use super::swap;
use crate::catalog::Catalog;
use crate::clock::{Timestamp, elapsed_ms};
use crate::disk::{self, blocking, folder_of, require_space, sweep_scratch};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{Flag, Manifest, SnapshotId};

/// Which moment to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The newest state.
    Newest,
    /// This snapshot, without deltas.
    Snapshot(SnapshotId),
    /// What was committed by this moment.
    At(Timestamp),
}

impl Target {
    /// The snapshot meant. `NotFound` says what there is instead.
    pub async fn find(&self, catalog: &Catalog) -> Result<Manifest> {
        match self {
            Target::Newest => catalog.newest().await?.ok_or_else(|| {
                let message = format!(
                    "there is no snapshot yet: database=`{}` storage=`{}`",
                    catalog.database(),
                    catalog.storage().location()
                );
                Error::new(ErrorKind::NotFound, message)
            }),
            Target::Snapshot(id) => catalog.manifest(id).await,
            Target::At(time) => catalog.at_or_before(*time).await,
        }
    }
}

/// What a restore will do, before anything is done.
#[derive(Debug, Clone, Serialize)]
pub struct Plan {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The moment it shows.
    pub taken_at: Timestamp,
    /// How many deltas are put upon it.
    pub deltas: usize,
    /// Their size in storage.
    pub delta_bytes: u64,
    /// The position that the last of them leads to.
    pub position: Option<u64>,
    /// When the last commit was seen that will be in the database.
    pub shows: Timestamp,
    /// What was wrong with the source then.
    pub flags: Vec<Flag>,
    /// Where the database will be: the real path.
    pub path: PathBuf,
    /// Bytes to read from storage.
    pub stored_bytes: u64,
    /// Bytes of the database in the snapshot.
    pub plain_bytes: u64,
    /// Whether a database stands there now, which will be kept under another name.
    pub replaces: bool,
    /// What earlier restores replaced and will no longer be kept.
    pub gives_up: Vec<PathBuf>,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "snapshot   {}", self.snapshot)?;
        match self.deltas {
            0 => writeln!(f, "shows      {}", self.taken_at)?,
            deltas => {
                writeln!(f, "taken      {}", self.taken_at)?;
                let (bytes, position) = (self.delta_bytes, self.position.unwrap_or_default());
                writeln!(f, "deltas     {deltas}, of {bytes} bytes, each proven, up to position {position}")?;
                writeln!(f, "shows      {}", self.shows)?;
            }
        }
        for flag in &self.flags {
            writeln!(f, "flagged    {}", flag.told())?;
        }
        writeln!(f, "read       {} bytes from storage, both hashes compared", self.stored_bytes)?;
        writeln!(
            f,
            "write      {} bytes beside the target, synced, checked by SQLite unless proven before",
            self.plain_bytes
        )?;
        match self.replaces {
            true => {
                write!(
                    f,
                    "replace    {} by one rename; the old file is kept beside it",
                    self.path.display()
                )?;
            }
            false => write!(f, "create     {}", self.path.display())?,
        }
        for path in &self.gives_up {
            write!(f, "\nremove     {}", path.display())?;
        }
        Ok(())
    }
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// When the snapshot was taken.
    pub taken_at: Timestamp,
    /// How many deltas were put upon it.
    pub deltas: usize,
    /// When the last commit was seen that is in the database.
    pub shows: Timestamp,
    /// Where the database is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Where the replaced database is kept, if there was one.
    pub kept: Option<PathBuf>,
    /// What earlier restores replaced and is no longer kept.
    pub gave_up: Vec<PathBuf>,
    /// What SQLite complained of, and what is odd about the stored object; the restore was wanted
    /// nevertheless.
    pub remarks: Vec<String>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Plans the restore of `moment` onto the database at `path`, following symbolic links.
///
/// `Target` if what stands there is not a regular file or has several names.
pub fn plan(moment: &Moment, path: &Path, keep_replaced: NonZeroUsize) -> Result<Plan> {
    let manifest = &moment.manifest;
    let (path, replaces) = resolve(path)?;
    let kept = kept::list(&path)?;
    let gives_up = kept::beyond(&kept, keep_replaced.get() - usize::from(replaces));
    Ok(Plan {
        gives_up: gives_up.iter().map(|kept| kept.path.clone()).collect(),
        snapshot: manifest.id.clone(),
        taken_at: manifest.taken_at,
        deltas: moment.deltas.len(),
        delta_bytes: moment.delta_bytes(),
        position: moment.deltas.last().map(|delta| delta.span.to()),
        shows: moment.shows,
        flags: manifest.flags.clone(),
        path,
        stored_bytes: manifest.stored.bytes + moment.delta_bytes(),
        plain_bytes: manifest.plain.bytes,
        replaces,
    })
}

/// Carries out a [`Plan`]: the database at its path is replaced, or created.
///
/// What earlier restores replaced is removed, beyond the number to keep, once the new database stands
/// in its place; that this failed is only logged.
pub async fn onto(resources: &Resources, moment: &Moment, plan: &Plan, damage: Damage) -> Result<Restored> {
    let manifest = &moment.manifest;
    let clock = &resources.clock;
    let began = clock.now();
    require_room(plan)?;
    let scratch = Scratch::fetch_to_restore(resources, moment, folder_of(&plan.path), damage).await?;
    let remarks = scratch.complaints().iter().cloned().chain(scratch.remark(manifest)).collect();
    let (target, now, gives_up) = (plan.path.clone(), clock.now(), plan.gives_up.clone());
    let swap = move || {
        let (copy, lock) = scratch.keep()?;
        let kept = swap::swap(&copy, &target, now).inspect_err(|_| drop(fs::remove_file(&copy)))?;
        let is_in_place = disk::is_at(&lock, &target).unwrap_or(false);
        let gave_up = match is_in_place {
            true => kept::remove(&target, &gives_up).unwrap_or_else(|error| {
                tracing::warn!("what earlier restores replaced stays: {}", error.chain());
                Vec::new()
            }),
            false => Vec::new(),
        };
        Ok((kept, gave_up))
    };
    let (kept, gave_up) = blocking("swap the database", swap).await?;
    let took_ms = elapsed_ms(began, clock.now());
    Ok(Restored { kept, gave_up, remarks, ..Restored::new(moment, plan.path.clone(), took_ms) })
}

/// Room for the new database beside the old one and all that is kept: nothing of that makes room.
fn require_room(plan: &Plan) -> Result<()> {
    require_space(folder_of(&plan.path), plan.plain_bytes).map_err(|error| {
        let kept = kept::list(&plan.path).unwrap_or_default();
        let bytes: u64 = kept.iter().map(|kept| kept.bytes).sum();
        match kept.first() {
            None => error,
            Some(newest) => {
                let message = format!(
                    "what {} earlier restores replaced takes {bytes} bytes here; remove what you do not need of it: \
                     newest=`{}`",
                    kept.len(),
                    newest.path.display()
                );
                Error::new(error.kind(), message).because(error)
            }
        }
    })
}

/// Restores into a new file; `Target` if `output` exists.
pub async fn to_new_file(
    resources: &Resources,
    moment: &Moment,
    output: &Path,
    damage: Damage,
) -> Result<Restored> {
    // Nothing is replaced, so nothing that was is given up.
    let plan = plan(moment, output, NonZeroUsize::MAX)?;
    if plan.replaces {
        let message =
            format!("the output exists already; name another, or remove it: path=`{}`", output.display());
        return Err(Error::new(ErrorKind::Target, message));
    }
    onto(resources, moment, &plan, damage).await
}

/// Finishes or undoes a restore onto `path` that a crash interrupted; says what it did. What the
/// crash left of a copy is removed.
pub fn recover(path: &Path) -> Result<Option<&'static str>> {
    // In the middle of a swap the database has two names.
    let (path, _) = real_path(path)?;
    let done = swap::recover(&path)?;
    let folder = folder_of(&path);
    sweep_scratch(folder).context(ErrorKind::Target, || {
        format!("remove what an interrupted restore left: directory=`{}`", folder.display())
    })?;
    Ok(done)
}

impl Restored {
    /// A restore that replaced no file.
    pub(super) fn new(moment: &Moment, path: PathBuf, took_ms: u64) -> Self {
        let manifest = &moment.manifest;
        Restored {
            snapshot: manifest.id.clone(),
            taken_at: manifest.taken_at,
            deltas: moment.deltas.len(),
            shows: moment.shows,
            path,
            bytes: manifest.plain.bytes,
            kept: None,
            gave_up: Vec::new(),
            remarks: Vec::new(),
            took_ms,
        }
    }
}

/// The real path of a restore's target, and whether a file stands there, which has no other name.
pub(super) fn resolve(path: &Path) -> Result<(PathBuf, bool)> {
    let (real, metadata) = real_path(path)?;
    if metadata.as_ref().is_some_and(|metadata| metadata.nlink() > 1) {
        let message =
            format!("the target has more than one hard link; remove the others: path=`{}`", path.display());
        return Err(Error::new(ErrorKind::Target, message));
    }
    Ok((real, metadata.is_some()))
}

/// The real path of a restore's target, and what is known of the file that stands there.
pub(super) fn real_path(path: &Path) -> Result<(PathBuf, Option<fs::Metadata>)> {
    let refuse = |what: &str| Error::new(ErrorKind::Target, format!("{what}: path=`{}`", path.display()));
    match disk::real_path(path) {
        Ok(real) => {
            let metadata =
                fs::metadata(&real).map_err(|error| refuse("the target cannot be reached").because(error))?;
            if !metadata.is_file() {
                return Err(refuse("the target is not a regular file"));
            }
            Ok((real, Some(metadata)))
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            if fs::symlink_metadata(path).is_ok() {
                return Err(refuse(
                    "the target is a symbolic link to nothing; create what it points to, or remove it",
                ));
            }
            let name = path.file_name().ok_or_else(|| refuse("the target has no file name"))?;
            let folder = disk::real_path(folder_of(path))
                .map_err(|error| refuse("the target's directory cannot be reached").because(error))?;
            Ok((folder.join(name), None))
        }
        Err(error) => Err(refuse("the target cannot be reached").because(error)),
    }
}
