//! What whole transactions changed.

use std::collections::BTreeMap;

use super::format::lock_page;
use super::mark::Mark;

/// What the transactions between two marks changed, taken together.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Changes {
    /// Where reading goes on.
    pub mark: Mark,
    /// The newest content of each page that was written and still is in the database. Never the page of
    /// the lock byte.
    pub pages: BTreeMap<u32, Box<[u8]>>,
    /// Pages the database has now; `None` if there was no transaction.
    pub page_count: Option<u32>,
    /// Whole transactions. One that SQLite padded to the size of a sector may count more than once.
    pub transactions: u32,
    /// Whether a bound stopped the reading: there may be more already.
    pub more: bool,
    /// Frames behind the last whole transaction that belong to one that is not, so far. Each read looks
    /// at them again; whoever finds many should come less often.
    pub uncommitted: u32,
    /// The fewest pages the database had after any of the transactions.
    page_count_min: u32,
}

/// Pages of a transaction whose end was not seen yet.
pub(super) type Pending = BTreeMap<u32, Box<[u8]>>;

impl Changes {
    /// Nothing, so far.
    pub(super) fn none(mark: Mark) -> Changes {
        let page_count_min = u32::MAX;
        Changes {
            mark,
            pages: BTreeMap::new(),
            page_count: None,
            transactions: 0,
            more: false,
            uncommitted: 0,
            page_count_min,
        }
    }

    /// Pages that are in the database now, may not have been (or not with this content) before, and were
    /// not written to the log: the database had `page_count_before` pages at the mark that was read from.
    ///
    /// SQLite leaves out pages that it added and never used. What is in them matters to nobody, but is
    /// not known from the log: in the database file it may be zeros or what was there before it shrank.
    pub fn unwritten(&self, page_count_before: u32) -> impl Iterator<Item = u32> {
        let kept = self.page_count_min.min(page_count_before);
        let all = kept.saturating_add(1)..=self.page_count.unwrap_or(0);
        let lock_page = lock_page(self.mark.page_size());
        all.filter(move |page| *page != lock_page && !self.pages.contains_key(page))
    }

    /// The same, where a bound stopped the reading.
    pub(super) fn with_more(self) -> Changes {
        Changes { more: true, ..self }
    }

    /// Takes the pages of a transaction after which the database has `page_count` pages.
    pub(super) fn commit(&mut self, pending: Pending, page_count: u32) {
        self.pages.extend(pending);
        while self.pages.last_key_value().is_some_and(|(page, _)| *page > page_count) {
            self.pages.pop_last();
        }
        self.page_count = Some(page_count);
        self.page_count_min = self.page_count_min.min(page_count);
        self.transactions += 1;
    }
}
