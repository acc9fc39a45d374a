//! Deltas become pages of a database again, and prove that they became the right ones.

use std::io::Read;

use super::decode::{Decoder, Step};
use super::header::Header;
use super::table::PageTable;
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::DatabaseId;

/// The file that deltas are applied to.
pub trait PageStore {
    /// Sets the size of the database: pages beyond it go, new ones are zeros until they are written.
    fn set_pages(&mut self, pages: u32) -> Result<()>;

    /// Writes a page at its place; pages are counted from 1.
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
    /// `table` their hashes. The first delta then has to hold every page that was written after `position`,
    /// also one that in the end is what it was there.
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
        let pages_before = self.table.pages();
        self.store.set_pages(header.pages_after)?;
        self.table.resize(header.pages_after);
        let trailer = loop {
            match delta.advance()? {
                Step::Page(number) => {
                    self.store.write_page(number, delta.page())?;
                    self.table.set(number, delta.page())?;
                }
                Step::End(trailer) => break trailer,
            }
        };
        let new = pages_before.saturating_add(1)..=header.pages_after;
        if let Some(number) = self.table.first_unknown(new) {
            return Err(self.does_not_prove(&header, &format!("page {number} is new, and not in the delta")));
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

    /// Why the delta cannot be the next one.
    fn contradiction(&self, header: &Header) -> Option<&'static str> {
        let follows = !self.is_exact || header.checksum_before == self.table.checksum();
        let checks = [
            (header.database_id == self.database_id, "the delta is of another history"),
            (header.page_size == self.table.page_size(), "its pages have another size"),
            (header.span.from() == self.position, "the delta does not go on from there"),
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
