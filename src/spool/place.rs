//! The spool as a folder: whose it is, who works in it, and what does not belong there.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FlockOperation, flock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::clock::Timestamp;
use crate::crash::{self, Point};
use crate::disk::sync_folder;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{DatabaseName, SnapshotId};
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

/// A folder of snapshots for one storage.
#[derive(Debug, Clone)]
pub(super) struct Place {
    /// The folder.
    pub root: PathBuf,
    /// The storage they wait for, as people name it.
    pub storage: String,
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
    /// The folder as storage, if it is there. An error names the file because of which it is not touched.
    pub fn open(&self) -> Result<Option<Directory>> {
        let record = self.root.join(RECORD);
        match read::<Owner>(&record)? {
            Some(owner) if owner.storage == self.storage => Directory::open(&self.root).map(Some),
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

    /// The folder as storage; made, if it is not there.
    pub fn open_or_make(&self) -> Result<Directory> {
        if let Some(directory) = self.open()? {
            return Ok(directory);
        }
        let directory = Directory::open(&self.root)?;
        let owner = Owner { format: FORMAT, storage: self.storage.clone() };
        write(&self.root.join(RECORD), &owner)?;
        Ok(directory)
    }

    /// Whether nothing is there, or an empty folder: what a crash leaves before the record is written.
    fn is_unused(&self) -> Result<bool> {
        let is_unfinished = |entry: io::Result<fs::DirEntry>| {
            entry.is_ok_and(|entry| entry.file_name().to_string_lossy().starts_with(TEMPORARY_PREFIX))
        };
        match fs::read_dir(&self.root) {
            Ok(mut entries) => Ok(entries.all(is_unfinished)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(true),
            Err(error) => Err(unreadable(&self.root, error)),
        }
    }

    /// Keeps other processes from working on the spool of `database`, until the file is closed.
    ///
    /// `Busy` if one does for longer than we wait.
    pub fn lock(&self, database: &DatabaseName) -> Result<File> {
        let folder = self.root.join(database.as_str());
        let path = folder.join(LOCK);
        let open = || {
            fs::create_dir_all(&folder)?;
            File::options().create(true).truncate(false).write(true).open(&path)
        };
        let file = open().map_err(|error| unreadable(&path, error))?;
        let began = Instant::now();
        loop {
            match flock(&file, FlockOperation::NonBlockingLockExclusive) {
                Ok(()) => {
                    crash::at(Point::SpoolLocked);
                    return Ok(file);
                }
                Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_PATIENCE => pause(),
                Err(rustix::io::Errno::WOULDBLOCK) => {
                    let message = format!("another process works on the spool: path=`{}`", path.display());
                    return Err(Error::new(ErrorKind::Busy, message));
                }
                Err(error) => return Err(unreadable(&path, error.into())),
            }
        }
    }

    /// Removes what a process that is gone left unfinished; under the lock only.
    pub fn sweep(&self, database: &DatabaseName) {
        for folder in ["snapshots", "manifests"] {
            let Ok(entries) = fs::read_dir(self.root.join(database.as_str()).join(folder)) else { continue };
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
    pub fn is_own(path: &str, database: &DatabaseName) -> bool {
        [LOCK, DROPPED].iter().any(|name| path == format!("{database}/{name}"))
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

    /// What was dropped of `database` and followed by nothing that was shipped.
    pub fn dropped(&self, database: &DatabaseName) -> Result<Vec<Dropped>> {
        Ok(read::<Losses>(&self.losses(database))?.map(|losses| losses.dropped).unwrap_or_default())
    }

    /// Remembers what was dropped; forgets it, if that is nothing.
    pub fn remember_dropped(&self, database: &DatabaseName, mut dropped: Vec<Dropped>) -> Result<()> {
        let path = self.losses(database);
        if dropped.is_empty() {
            return match fs::remove_file(&path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => Err(unreadable(&path, error)),
                _ => {
                    crash::at(Point::SpoolLossForgotten);
                    Ok(())
                }
            };
        }
        dropped.drain(..dropped.len().saturating_sub(DROPPED_MAX));
        write(&path, &Losses { format: FORMAT, dropped })
    }

    fn losses(&self, database: &DatabaseName) -> PathBuf {
        self.root.join(database.as_str()).join(DROPPED)
    }
}

/// Reads one of the spool's own files; `None` if it is not there.
fn read<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    #[derive(Deserialize)]
    struct Version {
        format: u32,
    }
    let bytes = match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Ok(metadata) if metadata.len() <= BYTES_MAX => {
            fs::read(path).map_err(|error| unreadable(path, error))?
        }
        Ok(_) => Vec::new(),
        Err(error) => return Err(unreadable(path, error)),
    };
    let damaged = || format!("a file of the spool is damaged or not ours: path=`{}`", path.display());
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
    replace().map_err(|error| unreadable(path, error))
}

fn unreadable(path: &Path, error: io::Error) -> Error {
    let kind = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Limit,
        _ => ErrorKind::Target,
    };
    Error::new(kind, format!("use the spool: path=`{}`", path.display())).because(error)
}

#[expect(clippy::disallowed_methods, reason = "on a blocking thread; the lock tells nobody when it is free")]
fn pause() {
    std::thread::sleep(Duration::from_millis(20));
}
