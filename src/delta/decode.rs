//! The stored form in, pages out, without holding more than a block, and nothing believed.

use std::io::Read;

use super::header::{Header, NUMBER_BYTES, Order, Trailer, block_pages};
use super::layout::{Fields, Sealed, damaged};
use crate::error::Result;
use crate::snapshot::{Decompressor, Key};

/// Reads one delta. Whatever is not what an encoder wrote is [`ErrorKind::Corrupt`](crate::error::ErrorKind).
///
/// The digest comes last: the pages are what was stored only once [`Step::End`] was reached, so whoever
/// applies them before works on what can be thrown away.
pub struct Decoder<R> {
    from: Sealed<R>,
    key: Key,
    header: Header,
    order: Order,
    decompressor: Decompressor,
    /// Numbers and pages of the block that is being read.
    plain: Vec<u8>,
    /// Where in `plain` the page is that was come to last, and where the next one begins.
    page_at: usize,
    next_at: usize,
    pages: u32,
    trailer: Option<Trailer>,
}

/// What came next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// The page of that number, see [`Decoder::page`].
    Page(u32),
    /// All was read, and it is what was stored.
    End(Trailer),
}

impl<R: Read> Decoder<R> {
    /// Reads the header of the delta that is stored under `key`.
    pub fn new(from: R, key: &Key) -> Result<Self> {
        let mut from = Sealed::new(from);
        let mut bytes = [0; Header::BYTES];
        from.take(&mut bytes, format_args!("the delta key=`{key}`"))?;
        let header = Header::decode(&bytes, key)?;
        Ok(Decoder {
            from,
            key: key.clone(),
            order: Order::of(&header),
            header,
            decompressor: Decompressor::new()?,
            plain: Vec::new(),
            page_at: 0,
            next_at: 0,
            pages: 0,
            trailer: None,
        })
    }

    /// What stands before the pages.
    pub fn header(&self) -> &Header {
        &self.header
    }

    /// Goes on to the next page, or to the end. After an error there is no going on.
    pub fn advance(&mut self) -> Result<Step> {
        if let Some(trailer) = self.trailer {
            return Ok(Step::End(trailer));
        }
        if self.next_at == self.plain.len() && !self.read_block()? {
            return self.read_end().map(Step::End);
        }
        let number = u32::from_le_bytes(Fields(&self.plain[self.next_at..]).next());
        self.order.admit(number).map_err(|why| self.damaged(why))?;
        self.page_at = self.next_at + NUMBER_BYTES;
        self.next_at = self.page_at + self.header.page_size.bytes();
        self.pages += 1;
        Ok(Step::Page(number))
    }

    /// The content of the page that was come to last.
    pub fn page(&self) -> &[u8] {
        &self.plain[self.page_at..self.next_at]
    }

    /// Reads to the end: whether it is whole.
    pub fn check(mut self) -> Result<Trailer> {
        loop {
            if let Step::End(trailer) = self.advance()? {
                return Ok(trailer);
            }
        }
    }

    /// Whether there was one more block.
    fn read_block(&mut self) -> Result<bool> {
        let pages = usize::from(u16::from_le_bytes(self.field()?));
        if pages == 0 {
            return Ok(false);
        }
        if pages > block_pages(self.header.page_size) {
            return Err(self.damaged(format!("a block of {pages} pages is too large")));
        }
        let plain_bytes = pages * (NUMBER_BYTES + self.header.page_size.bytes());
        let stored_bytes = u32::from_le_bytes(self.field()?) as usize;
        // zstd never adds more than this to what it cannot compress.
        if stored_bytes > plain_bytes + plain_bytes / 128 + 512 {
            return Err(self.damaged(format!("a block of {stored_bytes} bytes is too large")));
        }
        let mut stored = vec![0; stored_bytes];
        self.from.take(&mut stored, format_args!("the delta key=`{}`", self.key))?;
        let plain = self.decompressor.frame(&stored, plain_bytes);
        self.plain = plain.map_err(|cause| self.damaged("a block does not decompress").because(cause))?;
        (self.page_at, self.next_at) = (0, 0);
        Ok(true)
    }

    fn read_end(&mut self) -> Result<Trailer> {
        let trailer = Trailer::decode(&self.field()?);
        self.from.check_seal(format_args!("the delta key=`{}`", self.key))?;
        if trailer.pages != self.pages {
            return Err(self.damaged(format!("it holds {} pages, not {}", self.pages, trailer.pages)));
        }
        self.trailer = Some(trailer);
        Ok(trailer)
    }

    fn field<const BYTES: usize>(&mut self) -> Result<[u8; BYTES]> {
        let mut bytes = [0; BYTES];
        self.from.take(&mut bytes, format_args!("the delta key=`{}`", self.key))?;
        Ok(bytes)
    }

    fn damaged(&self, why: impl std::fmt::Display) -> crate::error::Error {
        damaged(format_args!("the delta key=`{}`", self.key), why)
    }
}

#[cfg(test)]
mod tests;
