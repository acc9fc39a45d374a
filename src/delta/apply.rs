//! Deltas become pages of a database again, and prove that they became the right ones.

use std::io::Read;

use super::decode::{Decoder, Step};
use super::header::Header;
use super::table::PageTable;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::DatabaseId;

/// The file that deltas are applied to.
pub trait PageStore {
    /// Sets the size of the database: pages beyond it go.
    fn set_pages(&mut self, pages: u32) -> Result<()>;

    /// Writes a page at its place, counted from 1, or right behind the last one, so that there is one more.
    /// Between the last one and a new one the lock-byte page may be left out; it is zeros.
    fn write_page(&mut self, number: u32, page: &[u8]) -> Result<()>;
}

/// Applies deltas one after the other and proves each. After an error, what it wrote to is of no use.
pub struct Applier<S> {
    store: S,
    table: PageTable,
    database_id: DatabaseId,
    position: u64,
    epoch: u64,
    /// Whether the state is that of the position. A snapshot lies somewhere before the next one.
    is_exact: bool,
}

impl<S: PageStore> Applier<S> {
    /// Begins with a snapshot that lies at `position`, or between it and the next: `store` holds its pages,
    /// `table` their hashes.
    ///
    /// The first delta may begin before `position`. It has to hold every page that was written after it, also
    /// one that in the end is what it was there.
    pub fn new(store: S, table: PageTable, database_id: DatabaseId, position: u64) -> Self {
        Applier { store, table, database_id, position, epoch: 0, is_exact: false }
    }

    /// Where the last delta led.
    pub fn position(&self) -> u64 {
        self.position
    }

    /// The file and the hashes of its pages.
    pub fn into_parts(self) -> (S, PageTable) {
        (self.store, self.table)
    }

    /// Applies the delta that goes on from here.
    ///
    /// One that does not, that is not what was stored, or after which the database has not the checksum it
    /// should have, is [`ErrorKind::Corrupt`], and the position is named.
    pub fn apply<R: Read>(&mut self, mut delta: Decoder<R>) -> Result<()> {
        let header = delta.header().clone();
        if let Some(why) = self.contradiction(&header) {
            return Err(self.does_not_prove(&header, why));
        }
        if header.pages_after < self.table.pages() {
            self.resize(header.pages_after)?;
        }
        let trailer = loop {
            match delta.advance()? {
                Step::Page(number) => {
                    self.make_room(number, &header)?;
                    self.store.write_page(number, delta.page())?;
                    self.table.set(number, delta.page())?;
                }
                Step::End(trailer) => break trailer,
            }
        };
        if self.table.pages() + 1 == header.page_size.lock_byte_page()
            && header.pages_after > self.table.pages()
        {
            self.resize(header.page_size.lock_byte_page())?;
        }
        if self.table.pages() < header.pages_after {
            return Err(self.lacks_page(&header));
        }
        if self.table.checksum() != trailer.checksum_after {
            let why = format!(
                "the checksum of the database is {}, and not {}",
                self.table.checksum(),
                trailer.checksum_after
            );
            return Err(self.does_not_prove(&header, &why));
        }
        (self.position, self.epoch, self.is_exact) = (header.span.to(), header.epoch, true);
        Ok(())
    }

    /// Makes the database one page longer if this is a new page.
    ///
    /// It grows with the pages that come, never to a size that a header only claims.
    fn make_room(&mut self, number: u32, header: &Header) -> Result<()> {
        let pages = self.table.pages();
        let next = pages + 1 + u32::from(pages + 1 == header.page_size.lock_byte_page());
        match number {
            _ if number <= pages => Ok(()),
            _ if number == next => {
                self.table.resize(number);
                Ok(())
            }
            _ => Err(self.lacks_page(header)),
        }
    }

    fn resize(&mut self, pages: u32) -> Result<()> {
        self.table.resize(pages);
        self.store.set_pages(pages)
    }

    fn lacks_page(&self, header: &Header) -> Error {
        let why = format!("page {} is new, and not in the delta", self.table.pages() + 1);
        self.does_not_prove(header, &why)
    }

    /// Why the delta cannot be the next one.
    fn contradiction(&self, header: &Header) -> Option<&'static str> {
        let (from, to) = (header.span.from(), header.span.to());
        let goes_on = from == self.position || !self.is_exact && from < self.position && self.position < to;
        let follows = !self.is_exact || header.checksum_before == self.table.checksum();
        let checks = [
            (header.database_id == self.database_id, "the delta is of another history"),
            (header.page_size == self.table.page_size(), "its pages have another size"),
            (goes_on, "the delta does not go on from there"),
            (header.epoch >= self.epoch, "the delta is of an older epoch than one before"),
            (follows, "the delta follows another state, as its checksum says"),
        ];
        checks.into_iter().find_map(|(holds, why)| (!holds).then_some(why))
    }

    fn does_not_prove(&self, header: &Header, why: &str) -> Error {
        Error::new(
            ErrorKind::Corrupt,
            format!(
                "what is restored does not prove after position=`{}`: {why}: span=`{}`",
                self.position, header.span
            ),
        )
    }
}

#[cfg(test)]
mod tests;
