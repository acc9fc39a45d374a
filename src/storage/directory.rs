//! Storage in a directory of a local file system.
//!
//! An object appears under its name complete and synced, or not at all: it is written to a
//! temporary name beside it, synced, linked into place, and the directory is synced. A link (not a
//! rename) makes it create-only, for it fails where a file stands.

use std::fs::{self, File};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use async_trait::async_trait;
use bytes::Bytes;
use futures::StreamExt;
use jiff::Timestamp;
use rustix::fs::{FlockOperation, flock};
use tempfile::{NamedTempFile, TempPath};

use super::{Entry, Examine, Greeting, Guarantees, Object, Parts, Storage, Version};
use crate::crash::{self, Point};
use crate::disk::{
    SyncedFile, blocking, folder_of, open_lock_file, open_own_file, read_own_file, refuse_foreign_links,
    sync_folder,
};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{Digest, Key};

/// Objects as files below one directory, at their key's path.
#[derive(Debug, Clone)]
pub struct Directory {
    root: PathBuf,
}

/// Begins the name of every file that is not an object yet; no key begins a file name with it.
pub(crate) const TEMPORARY_PREFIX: &str = ".lifeboat-tmp-";

/// No record that is replaced is larger, in bytes.
const RECORD_BYTES_MAX: u64 = 1 << 20;

/// The one other file that is no object: locked while a record is replaced.
pub(crate) const LOCK_FILE: &str = ".lifeboat-lock";

impl Directory {
    /// Opens the directory, which is created (mode 0700) if it is not there.
    pub fn open(root: impl Into<PathBuf>) -> Result<Self> {
        let root = root.into();
        let directory = Directory { root };
        let made =
            refuse_foreign_links(&directory.root).and_then(|()| directory.create_folder(&directory.root));
        made.map_err(|error| {
            let message = format!("create the backup directory: path=`{}`", directory.root.display());
            let kind = match error.kind() {
                io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => ErrorKind::Limit,
                _ if error.raw_os_error() == Some(rustix::io::Errno::IO.raw_os_error()) => {
                    ErrorKind::Unavailable
                }
                _ => ErrorKind::Denied,
            };
            Error::new(kind, message).because(error)
        })?;
        Ok(directory)
    }

    fn file_of(&self, key: &Key) -> PathBuf {
        self.root.join(key.path())
    }

    /// Creates `folder` and what is above it, synced, so that a power loss does not take it back.
    fn create_folder(&self, folder: &Path) -> io::Result<()> {
        if folder.is_dir() {
            return Ok(());
        }
        self.create_folder(folder_of(folder))?;
        match fs::DirBuilder::new().mode(0o700).create(folder) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => crash::at(Point::DirectoryFolderMade),
        }
        sync_folder(folder_of(folder))
    }

    /// A temporary file in the folder where `file` will stand.
    fn temporary_beside(&self, file: &Path) -> io::Result<NamedTempFile> {
        let folder = folder_of(file);
        self.create_folder(folder)?;
        tempfile::Builder::new().prefix(TEMPORARY_PREFIX).tempfile_in(folder)
    }

    fn read_whole(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        let mut file = open_own_file(&self.file_of(key)).map_err(|error| fault(key, "open", error))?;
        let mut bytes = Vec::new();
        (&mut file)
            .take(bytes_max as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| fault(key, "read", error))?;
        if bytes.len() > bytes_max {
            return Err(Error::new(
                ErrorKind::Limit,
                format!("the object has more than {bytes_max} bytes: key=`{key}`"),
            ));
        }
        let version = version(&bytes);
        Ok(Object { bytes: bytes.into(), version })
    }

    fn read_part(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let mut file = open_own_file(&self.file_of(key)).map_err(|error| fault(key, "open", error))?;
        let length = file.metadata().map_err(|error| fault(key, "look at", error))?.len();
        // Before anything is allocated: a damaged manifest may name any range.
        if range.end > length {
            let message = format!("the object ends at byte {length}, before {}: key=`{key}`", range.end);
            return Err(Error::new(ErrorKind::Corrupt, message));
        }
        let mut bytes = vec![0; range.end.saturating_sub(range.start) as usize];
        file.seek(SeekFrom::Start(range.start))
            .and_then(|_| file.read_exact(&mut bytes))
            .map_err(|error| fault(key, "read", error))?;
        Ok(bytes.into())
    }

    /// Compares and swaps under a lock that all processes on this directory share.
    fn swap(&self, key: &Key, expected: Option<&Version>, bytes: &[u8]) -> Result<Version> {
        let failed = |error: io::Error| fault(key, "replace", error);
        let lock = open_lock_file(&self.root.join(LOCK_FILE)).map_err(failed)?;
        wait_for(&lock, &self.root).map_err(failed)?;
        crash::at(Point::DirectoryRecordLocked);
        let file = self.file_of(key);
        let current = read_own_file(&file, RECORD_BYTES_MAX).map_err(failed)?.map(|bytes| version(&bytes));
        if current.as_ref() != expected {
            return Err(Error::new(
                ErrorKind::Conflict,
                format!("the object exists or has changed: key=`{key}`"),
            ));
        }
        let mut temporary = self.temporary_beside(&file).map_err(failed)?;
        temporary.write_all(bytes).and_then(|()| temporary.as_file().sync_all()).map_err(failed)?;
        crash::at(Point::DirectoryRecordSynced);
        temporary.persist(&file).map_err(|error| failed(error.error))?;
        crash::at(Point::DirectoryRecordRenamed);
        sync_folder(folder_of(&file)).map_err(failed)?;
        Ok(version(bytes))
    }

    fn walk(&self, folder: &Path, visit: &mut dyn FnMut(&Path, &fs::Metadata)) -> io::Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let path = entry?.path();
            // A file may go away between being listed and being looked at.
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            if metadata.is_dir() {
                self.walk(&path, visit)?;
            } else {
                visit(&path, &metadata);
            }
        }
        Ok(())
    }

    fn entries(&self, prefix: &str) -> io::Result<Vec<Entry>> {
        // Only the folder part of a prefix can be opened; the rest filters names.
        let folder = prefix.rsplit_once('/').map_or(self.root.clone(), |(folder, _)| self.root.join(folder));
        let mut entries = Vec::new();
        self.walk(&folder, &mut |path, metadata| {
            let Some(relative) = path.strip_prefix(&self.root).ok().and_then(Path::to_str) else { return };
            if metadata.is_file() && !is_ours_unfinished(path) && relative.starts_with(prefix) {
                entries.push(Entry {
                    path: relative.to_owned(),
                    bytes: metadata.len(),
                    modified_at: modified_at(metadata),
                });
            }
        })?;
        entries.sort_by(|one, other| one.path.cmp(&other.path));
        Ok(entries)
    }

    fn sweep(&self, older_than: Timestamp) -> io::Result<u64> {
        let mut swept = 0;
        let mut remove = |path: &Path, metadata: &fs::Metadata| {
            let unfinished = path
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| name.starts_with(TEMPORARY_PREFIX));
            if unfinished && modified_at(metadata) < older_than && fs::remove_file(path).is_ok() {
                crash::at(Point::DirectoryUnfinishedRemoved);
                swept += 1;
            }
        };
        for entry in fs::read_dir(&self.root)? {
            let path = entry?.path();
            let Ok(metadata) = fs::symlink_metadata(&path) else { continue };
            match metadata.is_dir() {
                true => match self.walk(&path, &mut remove) {
                    // Not ours: the root of a volume has such a folder.
                    Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {}
                    walked => walked?,
                },
                false => remove(&path, &metadata),
            }
        }
        Ok(swept)
    }
}

/// A record is swapped in milliseconds: whoever holds the lock longer than this hangs.
const LOCK_PATIENCE: Duration = Duration::from_secs(10);

fn wait_for(lock: &File, root: &Path) -> io::Result<()> {
    let began = Instant::now();
    loop {
        match flock(lock, FlockOperation::NonBlockingLockExclusive) {
            Err(rustix::io::Errno::WOULDBLOCK) if began.elapsed() < LOCK_PATIENCE => {
                pause(Duration::from_millis(5));
            }
            Err(rustix::io::Errno::WOULDBLOCK) => {
                let path = root.join(LOCK_FILE);
                let message = format!(
                    "another process has held the lock for {LOCK_PATIENCE:?}: path=`{}`",
                    path.display()
                );
                return Err(io::Error::new(io::ErrorKind::TimedOut, message));
            }
            locked => return Ok(locked?),
        }
    }
}

#[expect(clippy::disallowed_methods, reason = "on a blocking thread; the lock tells nobody when it is free")]
fn pause(duration: Duration) {
    std::thread::sleep(duration);
}

fn is_ours_unfinished(path: &Path) -> bool {
    let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
    name.starts_with(TEMPORARY_PREFIX) || name == LOCK_FILE
}

fn modified_at(metadata: &fs::Metadata) -> Timestamp {
    metadata.modified().ok().and_then(|time| Timestamp::try_from(time).ok()).unwrap_or(Timestamp::MIN)
}

fn version(bytes: &[u8]) -> Version {
    Version(Digest::of(bytes).to_string())
}

/// Says what could not be done with which key, in the kinds all storages share.
fn fault(key: &Key, attempt: &str, error: io::Error) -> Error {
    let message = format!("{attempt} an object in the backup directory: key=`{key}`");
    Error::new(kind_of(&error), message).because(error)
}

fn kind_of(error: &io::Error) -> ErrorKind {
    match error.kind() {
        io::ErrorKind::NotFound => ErrorKind::NotFound,
        // What is no file of ours under the name of one.
        io::ErrorKind::InvalidData => ErrorKind::Corrupt,
        io::ErrorKind::AlreadyExists => ErrorKind::Conflict,
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => ErrorKind::Denied,
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded | io::ErrorKind::FileTooLarge => {
            ErrorKind::Limit
        }
        _ => ErrorKind::Unavailable,
    }
}

#[async_trait]
impl Storage for Directory {
    fn location(&self) -> String {
        format!("directory {}", self.root.display())
    }

    async fn create(&self, key: &Key, mut parts: Parts) -> Result<()> {
        let (this, owned) = (self.clone(), key.clone());
        let mut writer = blocking("use the backup directory", move || Writer::begin(&this, owned)).await?;
        while let Some(part) = parts.next().await {
            let part = part?;
            writer = blocking("use the backup directory", move || writer.append(&part)).await?;
        }
        blocking("use the backup directory", move || writer.commit()).await
    }

    async fn replace(&self, key: &Key, expected: Option<&Version>, bytes: Bytes) -> Result<Version> {
        let (this, key, expected) = (self.clone(), key.clone(), expected.cloned());
        blocking("use the backup directory", move || this.swap(&key, expected.as_ref(), &bytes)).await
    }

    async fn read(&self, key: &Key, bytes_max: usize) -> Result<Object> {
        let (this, key) = (self.clone(), key.clone());
        blocking("use the backup directory", move || this.read_whole(&key, bytes_max)).await
    }

    async fn read_range(&self, key: &Key, range: Range<u64>) -> Result<Bytes> {
        let (this, key) = (self.clone(), key.clone());
        blocking("use the backup directory", move || this.read_part(&key, range)).await
    }

    async fn head(&self, key: &Key) -> Result<Option<Entry>> {
        let (this, key) = (self.clone(), key.clone());
        blocking("use the backup directory", move || match fs::symlink_metadata(this.file_of(&key)) {
            Ok(metadata) if metadata.is_file() => Ok(Some(Entry {
                path: key.path(),
                bytes: metadata.len(),
                modified_at: modified_at(&metadata),
            })),
            // As in a listing.
            Ok(_) => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(fault(&key, "look at", error)),
        })
        .await
    }

    async fn list(&self, prefix: &str) -> Result<Vec<Entry>> {
        let (this, prefix) = (self.clone(), prefix.to_owned());
        blocking("use the backup directory", move || {
            this.entries(&prefix).map_err(|error| {
                let message = format!("list the backup directory: prefix=`{prefix}`");
                Error::new(kind_of(&error), message).because(error)
            })
        })
        .await
    }

    async fn delete(&self, key: &Key) -> Result<()> {
        let (file, key) = (self.file_of(key), key.clone());
        blocking("use the backup directory", move || match fs::remove_file(&file) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(fault(&key, "delete", error)),
            _ => {
                crash::at(Point::DirectoryObjectRemoved);
                match sync_folder(folder_of(&file)) {
                    // Where there is no folder there was no object.
                    Err(error) if error.kind() != io::ErrorKind::NotFound => {
                        Err(fault(&key, "delete", error))
                    }
                    _ => Ok(()),
                }
            }
        })
        .await
    }

    async fn sweep_unfinished(&self, older_than: Timestamp) -> Result<u64> {
        let this = self.clone();
        blocking("use the backup directory", move || {
            this.sweep(older_than)
                .map_err(|error| Error::new(kind_of(&error), "sweep unfinished writes").because(error))
        })
        .await
    }

    fn guarantees(&self) -> Guarantees {
        Guarantees::FULL
    }
}

#[async_trait]
impl Examine for Directory {
    async fn greet(&self) -> Result<Greeting> {
        let this = self.clone();
        blocking("use the backup directory", move || {
            // Not every file system stamps by our clock: over a network it is the server's.
            let stamped = || this.temporary_beside(&this.root.join("greeting"))?.as_file().metadata();
            let metadata = stamped().map_err(|error| {
                let message = format!("write in the backup directory: path=`{}`", this.root.display());
                Error::new(kind_of(&error), message).because(error)
            })?;
            Ok(Greeting { time: Some(modified_at(&metadata)), ..Greeting::default() })
        })
        .await
    }

    async fn begin_and_abort(&self, key: &Key) -> Result<()> {
        let (this, key) = (self.clone(), key.clone());
        blocking("use the backup directory", move || Writer::begin(&this, key).map(drop)).await
    }
}

/// An object being written; dropping it before [`Writer::commit`] removes the temporary file.
struct Writer {
    key: Key,
    object: PathBuf,
    temporary: TempPath,
    file: SyncedFile,
}

impl Writer {
    fn begin(directory: &Directory, key: Key) -> Result<Writer> {
        let object = directory.file_of(&key);
        if object.exists() {
            return Err(Error::new(ErrorKind::Conflict, format!("the object exists: key=`{key}`")));
        }
        let open = || {
            let (file, temporary) = directory.temporary_beside(&object)?.into_parts();
            Ok((SyncedFile::new(file)?, temporary))
        };
        let (file, temporary) = open().map_err(|error| fault(&key, "begin", error))?;
        crash::at(Point::DirectoryObjectBegun);
        Ok(Writer { key, object, temporary, file })
    }

    fn append(mut self, bytes: &[u8]) -> Result<Writer> {
        self.file.append(bytes).map_err(|error| fault(&self.key, "write", error))?;
        crash::at(Point::DirectoryObjectAppended);
        Ok(self)
    }

    fn commit(self) -> Result<()> {
        let publish = || {
            self.file.finish()?;
            crash::at(Point::DirectoryObjectSynced);
            fs::hard_link(&self.temporary, &self.object)?;
            crash::at(Point::DirectoryObjectLinked);
            sync_folder(folder_of(&self.object))
        };
        publish().map_err(|error| fault(&self.key, "publish", error))
    }
}
