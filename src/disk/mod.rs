//! Small truths about disks: room, durable folders, files that are written once.

mod links;
mod mount;
mod own_file;
mod scratch_file;
mod synced_file;
mod watch;

use std::fs::File;
use std::io;
use std::path::Path;

pub use links::{make_directory, make_private_directory, real_path, refuse_foreign_links};
pub use mount::{Mount, mount_of};
pub use own_file::{open_lock_file, open_own_file, read_own_file};
pub use scratch_file::{
    NOTE_BYTES_MAX, NOTE_SUFFIX, is_at, is_locked, is_scratch_name, scratch_file, sweep_scratch,
};
pub use synced_file::SyncedFile;
pub use watch::Watcher;

use crate::error::{Context, Error, ErrorKind, Result};

/// Left free for the application, whose next commit must not fail because of us.
const RESERVE_BYTES: u64 = 32 << 20;

/// Refuses, with `Target`, to begin what `directory` has no room for.
pub fn require_space(directory: &Path, bytes: u64) -> Result<()> {
    let Room { free, needed } = room_for(directory, bytes)?;
    if free < needed {
        let message = format!(
            "not enough space, nothing was changed: directory=`{}` free=`{free}` needed=`{needed}`",
            directory.display()
        );
        return Err(Error::new(ErrorKind::Target, message));
    }
    Ok(())
}

/// What is free and what would be needed, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Free for this user.
    pub free: u64,
    /// What is to be written, and what is left to the application.
    pub needed: u64,
}

/// The room in `directory` for writing `bytes`.
pub fn room_for(directory: &Path, bytes: u64) -> Result<Room> {
    Ok(Room { free: file_system(directory)?.free, needed: bytes + RESERVE_BYTES })
}

/// A file system, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct FileSystem {
    /// Free for this user.
    pub free: u64,
    /// All of it.
    pub size: u64,
}

/// The file system on which `directory` is.
pub fn file_system(directory: &Path) -> Result<FileSystem> {
    let stat = rustix::fs::statvfs(directory)
        .context(ErrorKind::Target, || format!("ask for free space: directory=`{}`", directory.display()))?;
    Ok(FileSystem { free: stat.f_bavail * stat.f_frsize, size: stat.f_blocks * stat.f_frsize })
}

/// Makes names created, renamed or removed in `folder` survive a power loss.
pub fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

/// The folder a file is in: `.` for a bare name.
pub fn folder_of(file: &Path) -> &Path {
    file.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// The one gate to blocking work: it leaves the async threads here. `what` names it in an error.
pub async fn blocking<T: Send + 'static>(
    what: &'static str,
    act: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<T> {
    tokio::task::spawn_blocking(act)
        .await
        .context(ErrorKind::Internal, || format!("{what}: it ended early"))?
}
