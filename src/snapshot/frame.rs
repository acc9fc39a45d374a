//! One frame: a fixed piece of the database, compressed on its own.
//!
//! Frames are independent, so they are compressed and decompressed on all cores, and a stored
//! snapshot is their plain concatenation: `zstd -d` reads it.

use std::ops::RangeInclusive;

use zstd::bulk;
use zstd::zstd_safe::{CParameter, DParameter};

use crate::error::{Context, Error, ErrorKind, Result};

/// Plain bytes per frame: a multiple of every page size SQLite has (512 to 65536).
pub const FRAME_BYTES_DEFAULT: u32 = 1 << 20;

/// The largest frame a reader accepts, which bounds what a hostile manifest can make it allocate.
pub const FRAME_BYTES_MAX: u32 = 16 << 20;

/// The zstd levels that may be configured.
pub const LEVELS: RangeInclusive<i32> = 1..=19;

/// log2 of the window of the largest frame: nothing we wrote needs more, so nothing more is granted.
const WINDOW_LOG_MAX: u32 = FRAME_BYTES_MAX.ilog2();

/// Compresses frames; keeps its working memory between them.
pub struct Compressor(bulk::Compressor<'static>);

impl Compressor {
    /// A compressor at `level` (see [`LEVELS`]), whose frames carry a checksum and their size.
    pub fn new(level: i32) -> Result<Self> {
        Compressor::build(level, true)
    }

    /// The same for frames within something that carries both for them.
    pub fn bare(level: i32) -> Result<Self> {
        Compressor::build(level, false)
    }

    fn build(level: i32, describes_itself: bool) -> Result<Self> {
        let build = || {
            let mut inner = bulk::Compressor::new(level)?;
            inner.set_parameter(CParameter::ChecksumFlag(describes_itself))?;
            inner.set_parameter(CParameter::ContentSizeFlag(describes_itself))?;
            Ok::<_, std::io::Error>(inner)
        };
        build().map(Compressor).context(ErrorKind::Internal, || format!("set up zstd level=`{level}`"))
    }

    /// One complete zstd frame holding `plain`.
    pub fn frame(&mut self, plain: &[u8]) -> Result<Vec<u8>> {
        self.0.compress(plain).context(ErrorKind::Internal, || "compress a frame".to_owned())
    }
}

/// Decompresses frames; keeps its working memory between them.
pub struct Decompressor(bulk::Decompressor<'static>);

impl Decompressor {
    /// A decompressor that grants no frame a window above [`FRAME_BYTES_MAX`].
    pub fn new() -> Result<Self> {
        let build = || {
            let mut inner = bulk::Decompressor::new()?;
            inner.set_parameter(DParameter::WindowLogMax(WINDOW_LOG_MAX))?;
            Ok::<_, std::io::Error>(inner)
        };
        build().map(Decompressor).context(ErrorKind::Internal, || "set up zstd".to_owned())
    }

    /// The content of one frame, which must be exactly `plain_bytes` long.
    ///
    /// Never allocates more than `plain_bytes`, whatever the frame claims.
    pub fn frame(&mut self, stored: &[u8], plain_bytes: usize) -> Result<Vec<u8>> {
        let plain = self
            .0
            .decompress(stored, plain_bytes)
            .context(ErrorKind::Corrupt, || "decompress a frame".to_owned())?;
        if plain.len() != plain_bytes {
            return Err(Error::new(
                ErrorKind::Corrupt,
                format!("a frame holds {} bytes where {plain_bytes} belong", plain.len()),
            ));
        }
        Ok(plain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_frame_comes_back_as_it_was() {
        let plain: Vec<u8> = (0..100_000u32).flat_map(|n| (n / 7).to_le_bytes()).collect();
        let stored = Compressor::new(3).expect("level").frame(&plain).expect("compress");
        assert!(stored.len() < plain.len());
        let back = Decompressor::new().expect("zstd").frame(&stored, plain.len()).expect("decompress");
        assert_eq!(back, plain);
    }

    #[test]
    fn a_frame_that_inflates_beyond_its_place_is_refused() {
        let bomb = Compressor::new(3).expect("level").frame(&vec![0; 1 << 20]).expect("compress");
        assert!(bomb.len() < 200);
        for plain_bytes in [0, 4096, (1 << 20) - 1, (1 << 20) + 1] {
            let error = Decompressor::new().expect("zstd").frame(&bomb, plain_bytes).expect_err("wrong size");
            assert_eq!(error.kind(), ErrorKind::Corrupt);
        }
    }
}
