//! The spool as a folder: whose it is, who works in it, and what does not belong there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use rustix::process::geteuid;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::crash::{self, Point};
use crate::disk::{
    is_at, make_private_directory, open_lock_file, open_own_file, read_own_file, refuse_foreign_links,
    sync_folder,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{DatabaseName, Kind, SnapshotId};
use crate::storage::{Directory, LOCK_FILE, TEMPORARY_PREFIX};

/// The version of the spool's own files. Any other is refused.
const FORMAT: u32 = 1;

/// Says whose the spool is.
const RECORD: &str = "spool.json";

/// Locked while a process works on the spool of a database.
const LOCK: &str = "spool.lock";

/// Names what was dropped and never reached storage.
const DROPPED: &str = "dropped.json";

/// What is remembered of what was dropped; of more, the last ones.
const DROPPED_MAX: usize = 100;

/// The largest of these files that is read, in bytes.
const BYTES_MAX: u64 = 64 << 10;

/// Whoever holds the lock takes a snapshot or ships one; who waits longer than this comes back later.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

/// A folder of snapshots for one storage, from the view of one of its databases.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The folder.
    pub root: PathBuf,
    /// The storage they wait for, as people name it.
    pub storage: String,
    /// Whose snapshots are asked for.
    pub database: DatabaseName,
}

/// Keeps other processes from working on the spool of a database, and from giving it to another storage.
pub(super) struct Held {
    _database: File,
    _record: File,
}

#[derive(Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Owner {
    format: u32,
    storage: String,
}

#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Losses {
    format: u32,
    dropped: Vec<Dropped>,
}

/// A snapshot that was dropped before it reached storage.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Dropped {
    /// Its id.
    pub snapshot: SnapshotId,
    /// What it followed.
    pub parent: Option<SnapshotId>,
    /// The moment it showed.
    pub taken_at: Timestamp,
    /// When it was dropped.
    pub dropped_at: Timestamp,
    /// Which limit it was dropped for.
    pub reason: String,
}

impl Place {
    /// The folder as storage, if it is there; one of another storage in which nothing waits is as good as
    /// none. An error names the file because of which it is not touched.
    pub fn open(&self) -> Result<Option<Directory>> {
        self.refuse_others()?;
        let record = self.root.join(RECORD);
        match read::<Owner>(&record)? {
            Some(owner) if owner.storage == self.storage => {
                Directory::open(&self.root).map(Some).map_err(no_outage)
            }
            Some(_) if !self.anything_waits()? => Ok(None),
            Some(owner) => Err(Error::new(
                ErrorKind::Config,
                format!(
                    "the spool is kept for another storage; ship it with the configuration it was made with, or move it \
                     away: path=`{}` its_storage=`{}` storage=`{}`",
                    record.display(),
                    owner.storage,
                    self.storage
                ),
            )),
            None if self.is_unused()? => Ok(None),
            None => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the spool does not say what it is for, but there are files in it; put its record back, or move them \
                     away: path=`{}`",
                    record.display()
                ),
            )),
        }
    }

    /// The folder as storage; made, if it is not there, and taken over, if nothing waits in it.
    ///
    /// `Busy` if somebody works on it for the other storage.
    pub fn open_or_make(&self) -> Result<Directory> {
        if let Some(directory) = self.open()? {
            return Ok(directory);
        }
        let path = self.root.join(RECORD);
        let standing = match open_own_file(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            standing => Some(standing.map_err(|error| unusable(&path, error))?),
        };
        if let Some(standing) = &standing {
            // Whoever takes a snapshot for the other storage holds it.
            wait_for(standing, FlockOperation::NonBlockingLockExclusive, &path)?;
            if let Some(directory) = self.open()? {
                return Ok(directory);
            }
            self.require_current(standing)?;
        }
        let directory = Directory::open(&self.root).map_err(no_outage)?;
        write(&path, &Owner { format: FORMAT, storage: self.storage.clone() })?;
        Ok(directory)
    }

    /// An error if a folder of the spool is somebody else's, or behind a link of somebody else's, while we
    /// are root: an application that was stepped down could otherwise have root write where it cannot, or
    /// send what it likes.
    fn refuse_others(&self) -> Result<()> {
        let own = self.root.join(self.database.as_str());
        let kinds = [Kind::Snapshots, Kind::Manifests, Kind::Proofs];
        let below = kinds.map(|kind| self.folder(kind, &self.database));
        for folder in [&self.root, &own].into_iter().chain(&below) {
            refuse_foreign_links(folder).map_err(|error| unusable(folder, error))?;
            let owner = match fs::metadata(folder) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                metadata => metadata.map_err(|error| unusable(folder, error))?.uid(),
            };
            if geteuid().is_root() && owner != 0 {
                let message = format!(
                    "a folder of the spool is another user's, so root does not use it; move it away, or, if that \
                     user is trusted, give it to root with all that is in it: path=`{}` uid=`{owner}`",
                    folder.display()
                );
                return Err(Error::new(ErrorKind::Target, message));
            }
        }
        Ok(())
    }

    /// Whether there is a manifest of any database. Data without one is what a crash left.
    fn anything_waits(&self) -> Result<bool> {
        for entry in fs::read_dir(&self.root).map_err(|error| unusable(&self.root, error))? {
            let entry = entry.map_err(|error| unusable(&self.root, error))?;
            let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
            let name = entry.file_name();
            let Some(Ok(database)) = name.to_str().map(str::parse).filter(|_| !is_file) else { continue };
            let folder = self.folder(Kind::Manifests, &database);
            if !holds_nothing(&folder).map_err(|error| unusable(&folder, error))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Whether nothing is there, or an empty folder: what a crash leaves before the record is written.
    fn is_unused(&self) -> Result<bool> {
        holds_nothing(&self.root).map_err(|error| unusable(&self.root, error))
    }

    /// Keeps other processes from working on the spool of the database, until it is dropped.
    ///
    /// `Busy` if one does for longer than we wait, or gave the spool to another storage meanwhile.
    pub fn lock(&self) -> Result<Held> {
        let folder = self.root.join(self.database.as_str());
        let path = folder.join(LOCK);
        let open = || {
            make_private_directory(&folder)?;
            sync_folder(&self.root)?;
            open_lock_file(&path)
        };
        let file = open().map_err(|error| unusable(&path, error))?;
        wait_for(&file, FlockOperation::NonBlockingLockExclusive, &path)?;
        crash::at(Point::SpoolLocked);
        let path = self.root.join(RECORD);
        let record = open_own_file(&path).map_err(|error| unusable(&path, error))?;
        wait_for(&record, FlockOperation::NonBlockingLockShared, &path)?;
        // Before it was locked another storage may have taken over.
        self.require_current(&record)?;
        match self.open()? {
            Some(_) => Ok(Held { _database: file, _record: record }),
            None => Err(busy(&path)),
        }
    }

    /// `Busy` if the record was replaced since it was opened.
    fn require_current(&self, record: &File) -> Result<()> {
        let path = self.root.join(RECORD);
        match is_at(record, &path).map_err(|error| unusable(&path, error))? {
            true => Ok(()),
            false => Err(busy(&path)),
        }
    }

    /// Removes what a process that is gone left unfinished; under the lock only.
    pub fn sweep(&self) {
        let objects = [Kind::Snapshots, Kind::Manifests, Kind::Proofs];
        let records = self.root.join(self.database.as_str());
        for folder in objects.map(|kind| self.folder(kind, &self.database)).into_iter().chain([records]) {
            let Ok(entries) = fs::read_dir(folder) else { continue };
            for entry in entries.flatten() {
                if entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX) {
                    // What cannot be removed is tried again in the next turn.
                    let _ = fs::remove_file(entry.path());
                    crash::at(Point::SpoolUnfinishedRemoved);
                }
            }
        }
    }

    /// Whether `path`, below the folder, is one of the spool's own files.
    pub fn is_own(&self, path: &str) -> bool {
        [LOCK, DROPPED].iter().any(|name| path == format!("{}/{name}", self.database))
    }

    /// Files at the top that are not ours.
    pub fn foreign(&self) -> Vec<PathBuf> {
        let is_foreign = |entry: &fs::DirEntry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            let is_folder = entry.file_type().is_ok_and(|kind| kind.is_dir());
            let is_ours = match is_folder {
                true => name.parse::<DatabaseName>().is_ok(),
                false => name == RECORD || name == LOCK_FILE || name.starts_with(TEMPORARY_PREFIX),
            };
            !is_ours
        };
        let entries = fs::read_dir(&self.root).into_iter().flatten().flatten();
        entries.filter(is_foreign).map(|entry| entry.path()).collect()
    }

    /// What was dropped of the database and followed by nothing that was shipped.
    pub fn dropped(&self) -> Result<Vec<Dropped>> {
        Ok(read::<Losses>(&self.losses())?.map(|losses| losses.dropped).unwrap_or_default())
    }

    /// Remembers what was dropped; forgets it, if that is nothing.
    pub fn remember_dropped(&self, mut dropped: Vec<Dropped>) -> Result<()> {
        let path = self.losses();
        if dropped.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unusable(&path, error)),
                _ => {
                    crash::at(Point::SpoolLossForgotten);
                    Ok(())
                }
            };
        }
        dropped.drain(..dropped.len().saturating_sub(DROPPED_MAX));
        write(&path, &Losses { format: FORMAT, dropped })
    }

    fn folder(&self, kind: Kind, database: &DatabaseName) -> PathBuf {
        self.root.join(kind.prefix(database).trim_end_matches('/'))
    }

    fn losses(&self) -> PathBuf {
        self.root.join(self.database.as_str()).join(DROPPED)
    }
}

/// Whether a folder is not there, or nothing is in it but files that were never finished.
fn holds_nothing(folder: &Path) -> io::Result<bool> {
    let is_unfinished = |entry: io::Result<fs::DirEntry>| {
        entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX))
    };
    match fs::read_dir(folder) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
        entries => Ok(entries?.all(is_unfinished)),
    }
}

/// Reads one of the spool's own files; `None` if it is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let Some(bytes) = read_own_file(path, BYTES_MAX).map_err(|error| unusable(path, error))? else {
        return Ok(None);
    };
    let damaged = || damaged(path);
    let Version { format } = serde_json::from_slice(&bytes).context(ErrorKind::Corrupt, damaged)?;
    if format != FORMAT {
        return Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "unknown format version {format} of the spool (this program knows {FORMAT}; a newer lifeboat wrote it): \
                 path=`{}`",
                path.display()
            ),
        ));
    }
    serde_json::from_slice(&bytes).context(ErrorKind::Corrupt, damaged).map(Some)
}

/// Replaces one of the spool's own files, durably.
fn write(path: &Path, value: &impl Serialize) -> Result<()> {
    let folder = crate::disk::folder_of(path);
    let replace = || {
        let mut copy = tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder)?;
        copy.write_all(&serde_json::to_vec_pretty(value)?)?;
        copy.as_file().sync_all()?;
        crash::at(Point::SpoolRecordSynced);
        copy.persist(path)?;
        crash::at(Point::SpoolRecordRenamed);
        sync_folder(folder)
    };
    replace().map_err(|error| unusable(path, error))
}

fn wait_for(file: &File, lock: FlockOperation, path: &Path) -> Result<()> {
    let began = Instant::now();
    loop {
        match flock(file, lock) {
            Ok(()) => return Ok(()),
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_PATIENCE => pause(),
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(busy(path)),
            Err(error) => return Err(unusable(path, error.into())),
        }
    }
}

fn damaged(path: &Path) -> String {
    format!("a file of the spool is damaged or not ours: path=`{}`", path.display())
}

fn busy(path: &Path) -> Error {
    let message = format!("another process works on the spool: path=`{}`", path.display());
    Error::new(ErrorKind::Busy, message)
}

fn unusable(path: &Path, error: io::Error) -> Error {
    let used = || format!("use the spool: path=`{}`", path.display());
    let (kind, message) = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => (ErrorKind::Limit, used()),
        io::ErrorKind::InvalidData => (ErrorKind::Corrupt, damaged(path)),
        _ => (ErrorKind::Target, used()),
    };
    Error::new(kind, message).because(error)
}

/// That the disk of this machine does not answer is no outage of storage.
pub(super) fn no_outage(error: Error) -> Error {
    match error.kind() {
        ErrorKind::Unavailable | ErrorKind::Denied => {
            Error::new(ErrorKind::Target, "use the spool").because(error)
        }
        _ => error,
    }
}

#[expect(clippy::disallowed_methods, reason = "on a blocking thread; the lock tells nobody when it is free")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
