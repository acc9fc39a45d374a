//! Restoring into a database that the application has open.

use std::path::Path;
use std::sync::Arc;

use super::Resources;
use super::offline::Restored;
use super::scratch::Scratch;
use crate::disk::{folder_of, require_space};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::Manifest;
use crate::source::{Depth, Limits, Source, overwrite};

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
    let copy = Scratch::fetch(resources, manifest, &resources.scratch, Depth::Quick).await?;
    copy.require_whole(manifest)?;
    let (target, on_progress) = (source.path().to_owned(), Arc::clone(&resources.on_progress));
    tokio::task::spawn_blocking(move || overwrite(&target, copy.path(), &limits, &on_progress))
        .await
        .context(ErrorKind::Internal, || "the online restore ended early".to_owned())??;
    let took = clock.now().duration_since(began);
    Ok(Restored::new(manifest, source.path().to_owned(), None, took))
}
