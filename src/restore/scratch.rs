//! A private copy of a snapshot's database: fetched, hashed, synced and checked by SQLite.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempPath;

use super::Resources;
use super::fetch::fetch;
use crate::catalog::Catalog;
use crate::disk::{blocking, make_directory, require_space, scratch_file};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::Manifest;
use crate::source::{Depth, inspect};

/// A restored copy nobody has open; removed when dropped, unless it is moved into place.
pub struct Scratch {
    path: TempPath,
    /// Holds the lock that says somebody works on the copy.
    lock: File,
    is_checked: bool,
}

impl Scratch {
    /// Reads the snapshot of `manifest` from storage into a new file (mode 0600) in `directory`.
    ///
    /// Both hashes are compared, and SQLite checks the copy to `depth`: `Corrupt` if it finds damage.
    pub async fn fetch(
        resources: &Resources,
        manifest: &Manifest,
        directory: &Path,
        depth: Option<Depth>,
    ) -> Result<Scratch> {
        make_directory(directory)
            .context(ErrorKind::Target, || format!("create a directory: path=`{}`", directory.display()))?;
        require_space(directory, manifest.plain.bytes)?;
        let create = || {
            let (file, path) = scratch_file(directory)?.into_parts();
            Ok::<_, io::Error>((file.try_clone()?, file, path))
        };
        let (lock, file, path) = create()
            .context(ErrorKind::Target, || format!("create a file: directory=`{}`", directory.display()))?;
        fetch(resources, manifest, file).await?;
        let mut copy = Scratch { path, lock, is_checked: false };
        if let Some(depth) = depth {
            copy.is_checked = copy.require_whole(manifest, depth).await?;
        }
        Ok(copy)
    }

    /// As [`Scratch::fetch`], for a copy that becomes the database.
    ///
    /// SQLite looks at it unless these very bytes, by their hash, passed a proof before.
    pub async fn fetch_to_restore(
        resources: &Resources,
        manifest: &Manifest,
        directory: &Path,
    ) -> Result<Scratch> {
        let catalog = Catalog::new(Arc::clone(&resources.storage), manifest.database.clone());
        // A proof that cannot be read only costs the check.
        let is_proven = matches!(catalog.proof(&manifest.id).await, Ok(Some(_)));
        let depth = (!is_proven).then_some(Depth::Quick);
        Scratch::fetch(resources, manifest, directory, depth).await
    }

    /// Where the copy is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether SQLite looked at all of it and found nothing.
    pub fn is_checked(&self) -> bool {
        self.is_checked
    }

    /// An error if SQLite finds damage, which was in the source already, for the hashes agree.
    /// Whether it could look at everything: not with collations or functions of the application.
    async fn require_whole(&self, manifest: &Manifest, depth: Depth) -> Result<bool> {
        let path = self.path.to_path_buf();
        let findings = blocking("check the copy", move || inspect(&path, depth)).await?;
        match findings.complaints.first() {
            None => Ok(findings.is_complete),
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
