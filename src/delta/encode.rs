//! Pages in, the stored form out, without holding more than a block.

use std::io::Write;

use super::checksum::DatabaseChecksum;
use super::header::{Header, NUMBER_BYTES, Order, Trailer, block_pages};
use super::layout::Sealed;
use super::page::PageSize;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::Compressor;

/// Writes one delta. What is given to it is wrong only by a mistake of ours: [`ErrorKind::Internal`].
pub struct Encoder<W> {
    to: Sealed<W>,
    compressor: Compressor,
    page_size: PageSize,
    order: Order,
    /// Numbers and pages of the block that is being filled.
    plain: Vec<u8>,
    in_block: usize,
    pages: u32,
}

impl<W: Write> Encoder<W> {
    /// Begins a delta; `level` is zstd's.
    pub fn new(to: W, header: &Header, level: i32) -> Result<Self> {
        let mut to = Sealed::new(to);
        to.put(&header.encode()?)?;
        Ok(Encoder {
            to,
            compressor: Compressor::bare(level)?,
            page_size: header.page_size,
            order: Order::of(header),
            plain: Vec::new(),
            in_block: 0,
            pages: 0,
        })
    }

    /// Adds a page, which comes after all before it and is not the lock-byte page.
    pub fn page(&mut self, number: u32, page: &[u8]) -> Result<()> {
        let wrong = |why| Error::new(ErrorKind::Internal, format!("write a delta: {why}"));
        self.order.admit(number).map_err(wrong)?;
        if page.len() != self.page_size.bytes() {
            return Err(wrong(format!("page {number} has {} bytes", page.len())));
        }
        self.plain.extend(number.to_le_bytes());
        self.plain.extend(page);
        self.in_block += 1;
        self.pages += 1;
        match self.in_block == block_pages(self.page_size) {
            true => self.end_block(),
            false => Ok(()),
        }
    }

    /// Ends the delta, after which the database has this checksum.
    pub fn finish(mut self, checksum_after: DatabaseChecksum) -> Result<(Trailer, W)> {
        if self.in_block > 0 {
            self.end_block()?;
        }
        self.to.put(&0u16.to_le_bytes())?;
        let trailer = Trailer { pages: self.pages, checksum_after };
        self.to.put(&trailer.encode())?;
        Ok((trailer, self.to.seal()?))
    }

    fn end_block(&mut self) -> Result<()> {
        debug_assert_eq!(self.plain.len(), self.in_block * (NUMBER_BYTES + self.page_size.bytes()));
        let stored = self.compressor.frame(&self.plain)?;
        let pages = u16::try_from(self.in_block).expect("few pages fit a block");
        let bytes = u32::try_from(stored.len()).expect("a block is small");
        self.to.put(&pages.to_le_bytes())?;
        self.to.put(&bytes.to_le_bytes())?;
        self.to.put(&stored)?;
        self.plain.clear();
        self.in_block = 0;
        Ok(())
    }
}
