//! A private copy of a snapshot's database: fetched, hashed, synced and checked by SQLite.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use tempfile::TempPath;

use super::Resources;
use super::fetch::fetch;
use crate::disk::{require_space, scratch_file};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::Manifest;
use crate::source::{Depth, Findings, inspect};

/// A restored copy nobody has open; removed when dropped, unless it is moved into place.
pub struct Scratch {
    path: TempPath,
    /// Holds the lock that says somebody works on the copy.
    lock: File,
    findings: Findings,
}

impl Scratch {
    /// Reads the snapshot of `manifest` from storage into a new file (mode 0600) in `directory`.
    ///
    /// Both hashes are compared; what SQLite finds at `depth` is kept in [`Scratch::findings`].
    pub async fn fetch(
        resources: &Resources,
        manifest: &Manifest,
        directory: &Path,
        depth: Depth,
    ) -> Result<Scratch> {
        std::fs::create_dir_all(directory)
            .context(ErrorKind::Target, || format!("create a directory: path=`{}`", directory.display()))?;
        require_space(directory, manifest.plain.bytes)?;
        let create = || {
            let (file, path) = scratch_file(directory)?.into_parts();
            Ok::<_, io::Error>((file.try_clone()?, file, path))
        };
        let (lock, file, path) = create()
            .context(ErrorKind::Target, || format!("create a file: directory=`{}`", directory.display()))?;
        fetch(resources, manifest, file).await?;
        let checked = PathBuf::from(&*path);
        let findings = tokio::task::spawn_blocking(move || inspect(&checked, depth))
            .await
            .context(ErrorKind::Internal, || "checking the copy ended early".to_owned())??;
        Ok(Scratch { path, lock, findings })
    }

    /// Where the copy is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What SQLite found; anything here was wrong in the source already, for the hashes agree.
    pub fn findings(&self) -> &Findings {
        &self.findings
    }

    /// An error if SQLite found damage.
    pub fn require_whole(&self, manifest: &Manifest) -> Result<()> {
        match self.findings.0.first() {
            None => Ok(()),
            Some(first) => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the snapshot is what was stored, but the database in it was damaged when it was taken; choose \
                     another: snapshot=`{}` finding=`{first}`",
                    manifest.id
                ),
            )),
        }
    }

    /// Gives up ownership of the file, for a rename into place; until then the lock is to be held.
    pub fn keep(self) -> Result<(PathBuf, File)> {
        let path = self.path.keep().context(ErrorKind::Internal, || "keep the restored copy".to_owned())?;
        Ok((path, self.lock))
    }
}
