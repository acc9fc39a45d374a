//! Looking at a database: its file, its file system, and what SQLite says of it. Changes nothing.

mod judge;

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{Access, AtFlags, CWD, accessat};
use tokio_util::sync::CancellationToken;

use crate::disk::{Mount, Room, folder_of, mount_of, room_for};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::{Facts, Limits, Reading, Source};
pub(super) use judge::judge;

/// What was found where a database should be.
#[derive(Debug)]
pub(super) enum Looked {
    /// Nothing, nor perhaps the folder.
    Absent {
        /// Whether its folder is there.
        folder: bool,
    },
    /// Something that is no database file, or nothing that could be looked at.
    Unusable(Error),
    /// A file.
    There(Box<Found>),
}

/// What was found of a file.
#[derive(Debug)]
pub(super) struct Found {
    pub(super) file: File,
    pub(super) mount: Result<Option<Mount>>,
    /// Beside it, for a copy of it.
    pub(super) room: Result<Room>,
    /// In the scratch directory, for a copy of it.
    pub(super) scratch: Result<Room>,
    /// What SQLite says.
    pub(super) facts: Result<Facts>,
}

/// What the file system says of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct File {
    /// The real path.
    pub(super) path: PathBuf,
    pub(super) bytes: u64,
    /// Of the write-ahead log.
    pub(super) log_bytes: u64,
    /// The permission bits.
    pub(super) mode: u32,
    /// Owner and group.
    pub(super) owner: (u32, u32),
    /// The user we are.
    pub(super) user: u32,
    pub(super) file_is_ours: bool,
    /// Whether we may write in its folder.
    pub(super) folder_is_ours: bool,
}

/// Looks at the database at `path`; waits at most `busy_timeout` for its lock.
pub(super) fn look(path: &Path, scratch: &Path, busy_timeout: Duration) -> Looked {
    match fs::symlink_metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            return Looked::Absent { folder: folder_of(path).is_dir() };
        }
        _ => {}
    }
    match found(path, scratch, busy_timeout) {
        Ok(found) => Looked::There(Box::new(found)),
        Err(error) => Looked::Unusable(error),
    }
}

fn found(path: &Path, scratch: &Path, busy_timeout: Duration) -> Result<Found> {
    let source = Source::locate(path)?;
    let file = file(&source)?;
    let needed = file.bytes + file.log_bytes;
    Ok(Found {
        mount: mount_of(source.path()).context(ErrorKind::Source, || "read the table of mounts".to_owned()),
        room: room_for(folder_of(source.path()), needed),
        scratch: room_for(standing(scratch), needed),
        facts: facts(&source, busy_timeout),
        file,
    })
}

fn file(source: &Source) -> Result<File> {
    let path = source.path();
    let metadata = fs::metadata(path)
        .context(ErrorKind::Source, || format!("look at the database: path=`{}`", path.display()))?;
    let may = |path: &Path, access| accessat(CWD, path, access, AtFlags::EACCESS).is_ok();
    Ok(File {
        path: path.to_owned(),
        bytes: metadata.len(),
        log_bytes: source.fingerprint().log_bytes(),
        mode: metadata.mode() & 0o7777,
        owner: (metadata.uid(), metadata.gid()),
        user: rustix::process::geteuid().as_raw(),
        file_is_ours: may(path, Access::READ_OK | Access::WRITE_OK),
        folder_is_ours: may(folder_of(path), Access::WRITE_OK | Access::EXEC_OK),
    })
}

/// Reads the header and the schema through a transaction that lasts no longer than that.
fn facts(source: &Source, busy_timeout: Duration) -> Result<Facts> {
    let limits = Limits {
        busy_timeout,
        deadline: Instant::now() + busy_timeout,
        wal_growth_max: u64::MAX,
        writer_blocked_max: busy_timeout,
        cancel: CancellationToken::new(),
    };
    Reading::begin(source, limits).map(|reading| reading.facts().clone())
}

/// The nearest folder above `path` that stands already.
fn standing(path: &Path) -> &Path {
    path.ancestors().find(|folder| folder.is_dir()).unwrap_or(Path::new("/"))
}
