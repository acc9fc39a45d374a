//! Finding the database file, and seeing cheaply whether it was written to.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::clock::Timestamp;
use crate::disk::real_path;
use crate::error::{Error, ErrorKind, Result};

/// When the database at `path`, its log or its journal was last written, whichever was later.
pub fn last_written(path: &Path) -> Option<Timestamp> {
    let path = fs::canonicalize(path).ok()?;
    let modified = |path: &Path| fs::metadata(path).and_then(|metadata| metadata.modified()).ok();
    let files = [path.clone(), log_path(&path), beside(&path, "-journal")];
    files.iter().filter_map(|file| modified(file)).max()?.try_into().ok()
}

/// A database file that exists, under its real path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    path: PathBuf,
}

/// The write-ahead log's place: beside the real file.
pub(super) fn log_path(database: &Path) -> PathBuf {
    beside(database, "-wal")
}

/// The path of a companion of `database`: the same name and `suffix`.
pub(super) fn beside(database: &Path, suffix: &str) -> PathBuf {
    let mut path = OsString::from(database);
    path.push(suffix);
    path.into()
}

impl Source {
    /// Finds the database at `path`, following symbolic links, for SQLite keeps the log beside the
    /// real file. Opens nothing, so that a FIFO or a device cannot make it hang.
    pub fn locate(path: &Path) -> Result<Source> {
        let refuse = |what: &str| Error::new(ErrorKind::Source, format!("{what}: path=`{}`", path.display()));
        let path = real_path(path).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => refuse("there is no database file").because(error),
            _ => refuse("the database file cannot be reached").because(error),
        })?;
        let metadata = fs::metadata(&path)
            .map_err(|error| refuse("the database file cannot be reached").because(error))?;
        let file_type = metadata.file_type();
        if file_type.is_dir() {
            return Err(refuse("this is a directory, not a database file"));
        }
        if file_type.is_fifo() || file_type.is_socket() {
            return Err(refuse("this is a pipe or socket, not a database file"));
        }
        if !file_type.is_file() {
            return Err(refuse("this is a device, not a database file"));
        }
        if metadata.nlink() > 1 {
            // Each name would have a log of its own, and a reader of one misses what is in the other's.
            return Err(refuse(
                "the database file has more than one hard link, which SQLite cannot handle; remove the others",
            ));
        }
        Ok(Source { path })
    }

    /// The real path.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What the file system says about the database and its log now.
    pub fn fingerprint(&self) -> Fingerprint {
        Fingerprint {
            database: fs::metadata(&self.path).ok().map(|metadata| Stamp::of(&metadata)),
            log: fs::metadata(log_path(&self.path)).ok().map(|metadata| Stamp::of(&metadata)),
            read_at: SystemTime::now(),
        }
    }
}

/// Size, time and inode of the database and its log at one moment.
///
/// Two equal fingerprints mean that nobody wrote in between; reading them takes no lock and keeps
/// nothing open, so an idle database costs nothing.
#[derive(Debug, Clone, Copy)]
pub struct Fingerprint {
    database: Option<Stamp>,
    log: Option<Stamp>,
    read_at: SystemTime,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    inode: u64,
    bytes: u64,
    modified: SystemTime,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Stamp {
        let modified = metadata.modified().unwrap_or(SystemTime::UNIX_EPOCH);
        Stamp { inode: metadata.ino(), bytes: metadata.len(), modified }
    }
}

/// File systems stamp times in steps, the coarsest in use (FAT) of two seconds. A file stamped
/// within one step of being looked at may be written again without its stamp changing.
const TIME_STEP_MAX: Duration = Duration::from_secs(2);

impl Fingerprint {
    /// Whether nobody wrote between `earlier` and this one. When in doubt, no.
    pub fn shows_no_write_since(&self, earlier: &Fingerprint) -> bool {
        let settled = |stamp: Option<Stamp>| {
            stamp.is_none_or(|stamp| {
                earlier.read_at.duration_since(stamp.modified).is_ok_and(|age| age > TIME_STEP_MAX)
            })
        };
        let same = self.database == earlier.database && self.log == earlier.log;
        same && self.database.is_some() && settled(earlier.database) && settled(earlier.log)
    }

    /// Whether nobody committed between `earlier` and this one, both without anything in the log: only an empty one may
    /// have come or gone. When in doubt, no.
    pub fn shows_no_commit_since(&self, earlier: &Fingerprint) -> bool {
        let without_log = |print: &Fingerprint| Fingerprint { log: None, ..*print };
        self.log_bytes() == 0
            && earlier.log_bytes() == 0
            && without_log(self).shows_no_write_since(&without_log(earlier))
    }

    /// Size of the write-ahead log, in bytes; 0 if there is none.
    pub fn log_bytes(&self) -> u64 {
        self.log.map_or(0, |log| log.bytes)
    }

    /// Size of the database file, in bytes; 0 if there is none.
    pub fn database_bytes(&self) -> u64 {
        self.database.map_or(0, |database| database.bytes)
    }
}
