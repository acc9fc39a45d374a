//! Reading both ends of a snapshot: what shows, without fetching all, that it can be read.

use std::sync::Arc;

use super::fetch::{object, seek_table};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::snapshot::{Decompressor, Manifest};
use crate::storage::Storage;

/// Reads the seek table, and decompresses the first and the last frame.
///
/// `NotFound` if the data is not there, `Corrupt` if it has another size or does not decompress.
/// What lies between the ends may still be damaged: only a proof tells.
pub async fn sample(storage: &Arc<dyn Storage>, manifest: &Manifest) -> Result<()> {
    let key = manifest.data_key();
    let found = object(storage, manifest).await?;
    if found.bytes != manifest.stored.bytes {
        let expected = manifest.stored.bytes;
        let message = format!("the data has {} bytes, not {expected}: key=`{key}`", found.bytes);
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    let table = seek_table(storage, manifest).await?;
    // Pieces of one frame each; where there is but one frame, both ends are the same.
    let pieces = table.pieces(1);
    let ends = [pieces.first(), pieces.last()].into_iter().flatten();
    for (frames, range) in ends.take(pieces.len()) {
        let stored = storage.read_range(&key, range.clone()).await?;
        let (_, plain_bytes) = table.sizes(frames.start);
        Decompressor::new()?.frame(&stored, plain_bytes).context(ErrorKind::Corrupt, || {
            format!("read frame {} of a snapshot: key=`{key}`", frames.start)
        })?;
    }
    Ok(())
}
