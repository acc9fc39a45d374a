//! Reading every page in one transaction: to learn what a database is, or what became of it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;

use super::follower::{Compared, SINCE_BYTES_MAX};
use crate::delta::{PageHash, PageSize, PageTable};
use crate::error::{Error, ErrorKind, Result};
use crate::source::{ByPage, Facts, Limits, Reading, Source, TakePages};

/// The hashes of all pages of a database with a log; none of one without, or without pages.
pub fn table(source: &Source, limits: Limits) -> Result<Option<PageTable>> {
    let reading = Reading::begin(source, limits)?;
    let facts = reading.facts().clone();
    if facts.sqlite.journal_mode != "wal" || facts.page_size == 0 {
        return Ok(None);
    }
    let hashing = Hashing { table: sized(&facts)?, before: None, differing: BTreeMap::new() };
    pass(reading, hashing, &facts).map(|hashing| Some(hashing.table))
}

/// Compares all pages with those of `before`.
///
/// `Limit` if more of them differ than is kept in memory, or if their size is another.
pub fn compare(source: &Source, limits: Limits, before: Arc<PageTable>) -> Result<Compared> {
    let reading = Reading::begin(source, limits)?;
    let facts = reading.facts().clone();
    let page_size = before.page_size();
    if facts.sqlite.journal_mode != "wal" || facts.page_size as usize != page_size.bytes() {
        let what = format!("mode=`{}` page_size=`{}`", facts.sqlite.journal_mode, facts.page_size);
        return Err(Error::new(ErrorKind::Limit, format!("the database is not what it was: {what}")));
    }
    let checksum = before.checksum();
    let hashing = Hashing { table: sized(&facts)?, before: Some(before), differing: BTreeMap::new() };
    let Hashing { table, differing, .. } = pass(reading, hashing, &facts)?;
    Ok(Compared { before: checksum, pages: differing, table })
}

fn sized(facts: &Facts) -> Result<PageTable> {
    let mut table = PageTable::new(PageSize::new(facts.page_size)?);
    table.resize(facts.page_count);
    Ok(table)
}

fn pass(reading: Reading, hashing: Hashing, facts: &Facts) -> Result<Hashing> {
    let by_page = ByPage::new(hashing, facts.page_size as usize);
    // With a log nothing is written anywhere.
    let no_scratch = Path::new("");
    Ok(reading.copy(by_page, no_scratch, &(Arc::new(|_| {}) as _))?.sink.into_taker())
}

/// Takes note of all pages, and keeps those that differ.
struct Hashing {
    table: PageTable,
    before: Option<Arc<PageTable>>,
    differing: BTreeMap<u32, Box<[u8]>>,
}

impl TakePages for Hashing {
    fn take(&mut self, number: u32, page: &[u8]) -> Result<()> {
        self.table.set(number, page)?;
        let Some(before) = &self.before else { return Ok(()) };
        let is_lock_byte_page = number == self.table.page_size().lock_byte_page();
        if is_lock_byte_page || before.hash(number) == Some(PageHash::of(number, page)) {
            return Ok(());
        }
        if self.differing.len() * page.len() > SINCE_BYTES_MAX {
            return Err(Error::new(ErrorKind::Limit, "more pages differ than are kept in memory"));
        }
        self.differing.insert(number, page.into());
        Ok(())
    }
}
