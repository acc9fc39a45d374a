//! Restoring into a database that the application has open.

use std::path::Path;
use std::sync::Arc;

use super::Resources;
use super::offline::Restored;
use super::scratch::Scratch;
use crate::clock::elapsed_ms;
use crate::disk::{blocking, folder_of, require_space};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Manifest;
use crate::source::{Limits, Source, overwrite};

/// Replaces the content of the open database at `path` by the snapshot's, in one transaction.
///
/// The copy is fetched and proven in the scratch directory first. Readers keep what they see until their next
/// transaction; a kill at any moment leaves the old content.
pub async fn online(
    resources: &Resources,
    manifest: &Manifest,
    path: &Path,
    limits: Limits,
) -> Result<Restored> {
    let clock = &resources.clock;
    let began = clock.now();
    let source = Source::locate(path)?;
    if manifest.plain.bytes == 0 {
        let message =
            format!("the snapshot is of an empty file; restore another: snapshot=`{}`", manifest.id);
        return Err(Error::new(ErrorKind::Target, message));
    }
    // In WAL mode the new content goes through the log before a checkpoint moves it.
    require_space(folder_of(source.path()), manifest.plain.bytes)?;
    let copy = Scratch::fetch_to_restore(resources, manifest, &resources.scratch).await?;
    let (target, on_progress) = (source.path().to_owned(), Arc::clone(&resources.on_progress));
    let overwriting = move || overwrite(&target, copy.path(), &limits, &on_progress);
    blocking("overwrite the database", overwriting).await?;
    let took_ms = elapsed_ms(began, clock.now());
    Ok(Restored::new(manifest, source.path().to_owned(), None, took_ms))
}
