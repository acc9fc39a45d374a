//! Restoring where nobody has the database open: a plan that can be shown, and its execution.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::Resources;
use super::scratch::Scratch;
use super::swap;
use crate::catalog::Catalog;
use crate::clock::{Timestamp, elapsed_ms};
use crate::disk::{self, blocking, folder_of, sweep_scratch};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{Flag, Manifest, SnapshotId};

/// Which moment to restore.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Target {
    /// The newest snapshot.
    Newest,
    /// This one.
    Snapshot(SnapshotId),
    /// The newest that shows this moment or an earlier one.
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
    /// What was wrong with the source then.
    pub flags: Vec<Flag>,
    /// Where the database will be: the real path.
    pub path: PathBuf,
    /// Bytes to read from storage.
    pub stored_bytes: u64,
    /// Bytes of the restored database.
    pub plain_bytes: u64,
    /// Whether a database stands there now, which will be kept under another name.
    pub replaces: bool,
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "snapshot   {}", self.snapshot)?;
        writeln!(f, "shows      {}", self.taken_at)?;
        for flag in &self.flags {
            writeln!(f, "flagged    the source was {}", flag.name())?;
        }
        writeln!(f, "read       {} bytes from storage, both hashes compared", self.stored_bytes)?;
        writeln!(
            f,
            "write      {} bytes beside the target, synced, checked by SQLite unless proven before",
            self.plain_bytes
        )?;
        match self.replaces {
            true => {
                write!(f, "replace    {} by one rename; the old file is kept beside it", self.path.display())
            }
            false => write!(f, "create     {}", self.path.display()),
        }
    }
}

/// What a restore did.
#[derive(Debug, Clone, Serialize)]
pub struct Restored {
    /// The snapshot.
    pub snapshot: SnapshotId,
    /// The moment it shows.
    pub taken_at: Timestamp,
    /// Where the database is.
    pub path: PathBuf,
    /// Its size in bytes.
    pub bytes: u64,
    /// Where the replaced database is kept, if there was one.
    pub kept: Option<PathBuf>,
    /// How long it took, in milliseconds.
    pub took_ms: u64,
}

/// Plans the restore of `manifest` onto the database at `path`, following symbolic links.
///
/// `Target` if what stands there is not a regular file or has several names.
pub fn plan(manifest: &Manifest, path: &Path) -> Result<Plan> {
    let (path, replaces) = resolve(path)?;
    Ok(Plan {
        snapshot: manifest.id.clone(),
        taken_at: manifest.taken_at,
        flags: manifest.flags.clone(),
        path,
        stored_bytes: manifest.stored.bytes,
        plain_bytes: manifest.plain.bytes,
        replaces,
    })
}

/// Carries out a [`Plan`]: the database at its path is replaced, or created.
pub async fn onto(resources: &Resources, manifest: &Manifest, plan: &Plan) -> Result<Restored> {
    let clock = &resources.clock;
    let began = clock.now();
    let scratch = Scratch::fetch_to_restore(resources, manifest, folder_of(&plan.path)).await?;
    let (target, now) = (plan.path.clone(), clock.now());
    let swap = move || {
        let (copy, _lock) = scratch.keep()?;
        swap::swap(&copy, &target, now).inspect_err(|_| drop(fs::remove_file(&copy)))
    };
    let kept = blocking("swap the database", swap).await?;
    Ok(Restored::new(manifest, plan.path.clone(), kept, elapsed_ms(began, clock.now())))
}

/// Restores into a new file; `Target` if `output` exists.
pub async fn to_new_file(resources: &Resources, manifest: &Manifest, output: &Path) -> Result<Restored> {
    let plan = plan(manifest, output)?;
    if plan.replaces {
        let message =
            format!("the output exists already; name another, or remove it: path=`{}`", output.display());
        return Err(Error::new(ErrorKind::Target, message));
    }
    onto(resources, manifest, &plan).await
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
    pub(super) fn new(manifest: &Manifest, path: PathBuf, kept: Option<PathBuf>, took_ms: u64) -> Self {
        Restored {
            snapshot: manifest.id.clone(),
            taken_at: manifest.taken_at,
            path,
            bytes: manifest.plain.bytes,
            kept,
            took_ms,
        }
    }
}

/// The real path of a restore's target, and whether a file stands there, which has no other name.
fn resolve(path: &Path) -> Result<(PathBuf, bool)> {
    let (real, metadata) = real_path(path)?;
    if metadata.as_ref().is_some_and(|metadata| metadata.nlink() > 1) {
        let message =
            format!("the target has more than one hard link; remove the others: path=`{}`", path.display());
        return Err(Error::new(ErrorKind::Target, message));
    }
    Ok((real, metadata.is_some()))
}

/// The real path of a restore's target, and what is known of the file that stands there.
fn real_path(path: &Path) -> Result<(PathBuf, Option<fs::Metadata>)> {
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
