//! Restoring into a database that the application has open.

use std::path::Path;
use std::sync::Arc;

use super::Resources;
use super::moment::Moment;
use super::offline::Restored;
use super::scratch::{Damage, Scratch};
use crate::clock::{Timestamp, elapsed_ms};
use crate::disk::{blocking, folder_of, require_space};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{Limits, Source, overwrite};

/// A proven copy, ready to replace the content of the open database.
pub struct Overwriting<'a> {
    resources: &'a Resources,
    moment: &'a Moment,
    source: Source,
    copy: Scratch,
    began: Timestamp,
}

/// Fetches and proves the snapshot in the scratch directory; the database is not touched yet.
pub async fn prepare_online<'a>(
    resources: &'a Resources,
    moment: &'a Moment,
    path: &Path,
) -> Result<Overwriting<'a>> {
    let began = resources.clock.now();
    let source = Source::locate(path)?;
    let manifest = &moment.manifest;
    if manifest.plain.bytes == 0 {
        let message =
            format!("the snapshot is of an empty file; restore another: snapshot=`{}`", manifest.id);
        return Err(Error::new(ErrorKind::Target, message));
    }
    // In WAL mode the new content goes through the log before a checkpoint moves it.
    require_space(folder_of(source.path()), manifest.plain.bytes)?;
    let copy = Scratch::fetch_to_restore(resources, moment, &resources.scratch, Damage::Refused).await?;
    Ok(Overwriting { resources, moment, source, copy, began })
}

impl Overwriting<'_> {
    /// Replaces the content of the open database, in one transaction.
    ///
    /// Readers keep what they see until their next transaction; a kill at any moment leaves the old
    /// content.
    pub async fn carry_out(self, limits: Limits) -> Result<Restored> {
        let Overwriting { resources, moment, source, copy, began } = self;
        let (target, on_progress) = (source.path().to_owned(), Arc::clone(&resources.on_progress));
        // Once more: the copy, and what was stored before, may have taken the same room.
        require_space(folder_of(&target), copy.bytes()?)?;
        let remarks = copy.remark(&moment.manifest).into_iter().collect();
        let overwriting = move || overwrite(&target, copy.path(), &limits, &on_progress);
        blocking("overwrite the database", overwriting).await?;
        let took_ms = elapsed_ms(began, resources.clock.now());
        Ok(Restored { remarks, ..Restored::new(moment, source.path().to_owned(), took_ms) })
    }
}
