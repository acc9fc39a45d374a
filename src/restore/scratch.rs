//! A private copy of a snapshot's database: fetched, hashed, synced and checked by SQLite.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tempfile::TempPath;

use super::Resources;
use super::fetch::fetch;
use super::moment::Moment;
use super::replay::replay;
use crate::catalog::Catalog;
use crate::crash::{self, Point};
use crate::disk::{blocking, make_private_directory, require_space, scratch_file};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::Manifest;
use crate::source::{Depth, Findings, inspect};

/// What becomes of a copy in which SQLite finds damage.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// It is not restored.
    Refused,
    /// It is restored as it is, for somebody said so, and the findings are told.
    Accepted,
}

/// A restored copy nobody has open; removed when dropped, unless it is moved into place.
pub struct Scratch {
    path: TempPath,
    /// Holds the lock that says somebody works on the copy.
    lock: File,
    /// Bytes in storage behind the end of the object.
    surplus: u64,
    /// What SQLite said, if it was asked.
    findings: Option<Findings>,
}

impl Scratch {
    /// Reads the snapshot of `manifest` from storage into a new file (mode 0600) in `directory`, and
    /// compares both hashes. SQLite has not looked at it.
    pub async fn fetch(resources: &Resources, manifest: &Manifest, directory: &Path) -> Result<Scratch> {
        make_private_directory(directory)
            .context(ErrorKind::Target, || format!("create a directory: path=`{}`", directory.display()))?;
        require_space(directory, manifest.plain.bytes)?;
        let create = || {
            let (file, path) = scratch_file(directory)?.into_parts();
            Ok::<_, io::Error>((file.try_clone()?, file, path))
        };
        let (lock, file, path) = create()
            .context(ErrorKind::Target, || format!("create a file: directory=`{}`", directory.display()))?;
        crash::at(Point::CopyCreated);
        let surplus = fetch(resources, manifest, file).await?;
        crash::at(Point::CopyFetched);
        Ok(Scratch { path, lock, surplus, findings: None })
    }

    /// As [`Scratch::fetch`], for a copy that becomes the database, with the deltas up to the moment wanted.
    ///
    /// SQLite looks at it unless these very bytes, by their hash, passed a proof before; `Corrupt` if
    /// it finds damage that `damage` refuses.
    pub async fn fetch_to_restore(
        resources: &Resources,
        moment: &Moment,
        directory: &Path,
        damage: Damage,
    ) -> Result<Scratch> {
        let manifest = &moment.manifest;
        let catalog = Catalog::new(Arc::clone(&resources.storage), manifest.database.clone());
        // A proof that cannot be read only costs the check.
        let is_proven = moment.deltas.is_empty() && matches!(catalog.proof(&manifest.id).await, Ok(Some(_)));
        let mut copy = Scratch::fetch(resources, manifest, directory).await?;
        replay(resources, moment, copy.path()).await?;
        if !is_proven {
            copy.check(resources, Depth::Quick).await?;
        }
        match damage {
            Damage::Refused => copy.require_whole(manifest)?,
            Damage::Accepted => {}
        }
        crash::at(Point::CopyAccepted);
        Ok(copy)
    }

    /// Has SQLite look at all of the copy; what it finds is remembered.
    pub async fn check(&mut self, resources: &Resources, depth: Depth) -> Result<()> {
        let (path, deadline) = (self.path.to_path_buf(), resources.check_by());
        self.findings = Some(blocking("check the copy", move || inspect(&path, depth, deadline)).await?);
        Ok(())
    }

    /// Where the copy is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its size, with the deltas that lead to its moment.
    pub fn bytes(&self) -> Result<u64> {
        let metadata = self.lock.metadata();
        let metadata = metadata
            .context(ErrorKind::Target, || format!("look at a copy: path=`{}`", self.path.display()))?;
        Ok(metadata.len())
    }

    /// Whether SQLite looked at all of it and found nothing; it cannot look at everything where
    /// collations or functions of the application are needed.
    pub fn is_checked(&self) -> bool {
        self.findings.as_ref().is_some_and(|findings| findings.is_complete && findings.is_whole())
    }

    /// An error if SQLite found damage, which was in the source already, for the hashes agree.
    pub fn require_whole(&self, manifest: &Manifest) -> Result<()> {
        let Some(first) = self.complaints().first() else { return Ok(()) };
        Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the snapshot is what was stored, but the database in it was damaged when it was taken; choose \
                 another, or take it as it is with `lifeboat restore --accept-damage`: snapshot=`{}` finding=`{first}`",
                manifest.id
            ),
        ))
    }

    /// What SQLite complained of.
    pub fn complaints(&self) -> &[String] {
        self.findings.as_ref().map_or(&[], |findings| &findings.complaints)
    }

    /// What is wrong with the object beside its content, if anything is.
    pub fn remark(&self, manifest: &Manifest) -> Option<String> {
        (self.surplus > 0).then(|| {
            format!(
                "the object in storage has {} bytes behind its end, which are not ours: key=`{}`",
                self.surplus,
                manifest.data_key()
            )
        })
    }

    /// Gives up ownership of the file, for a rename into place; until then the lock is to be held.
    pub fn keep(self) -> Result<(PathBuf, File)> {
        let path = self.path.keep().context(ErrorKind::Internal, || "keep the restored copy".to_owned())?;
        Ok((path, self.lock))
    }
}
