//! Small truths about disks: room, durable folders, files that are written once.

mod scratch_file;
mod synced_file;

use std::fs::File;
use std::io;
use std::path::Path;

pub use scratch_file::{NOTE_SUFFIX, is_locked, scratch_file, sweep_scratch};
pub use synced_file::SyncedFile;

use crate::error::{Context, Error, ErrorKind, Result};

/// Left free for the application, whose next commit must not fail because of us.
const RESERVE_BYTES: u64 = 32 << 20;

/// Refuses, with `Target`, to begin what `directory` has no room for.
pub fn require_space(directory: &Path, bytes: u64) -> Result<()> {
    let stat = rustix::fs::statvfs(directory)
        .context(ErrorKind::Target, || format!("ask for free space: directory=`{}`", directory.display()))?;
    let free = stat.f_bavail * stat.f_frsize;
    let needed = bytes + RESERVE_BYTES;
    if free < needed {
        let message = format!(
            "not enough space, nothing was changed: directory=`{}` free=`{free}` needed=`{needed}`",
            directory.display()
        );
        return Err(Error::new(ErrorKind::Target, message));
    }
    Ok(())
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
