//! What whole transactions changed since the last cut.

use std::collections::BTreeMap;

use crate::clock::Timestamp;
use crate::delta::{PageHash, PageTable};
use crate::source::wal::Changes;

/// The newest version of each page, and when it was seen.
#[derive(Default)]
pub struct Since {
    /// By number.
    pub pages: BTreeMap<u32, Box<[u8]>>,
    /// The size of the database after the last of the transactions.
    pub page_count: Option<u32>,
    /// When the first and the last of the transactions were seen.
    pub seen: Option<(Timestamp, Timestamp)>,
}

impl Since {
    /// Adds what was read at `now`.
    pub fn take(&mut self, changes: Changes, now: Timestamp) {
        let Some(page_count) = changes.page_count else { return };
        self.pages.extend(changes.pages);
        self.pages.split_off(&page_count.saturating_add(1));
        self.page_count = Some(page_count);
        let first = self.seen.map_or(now, |(first, _)| first);
        self.seen = Some((first, now));
    }

    /// Forgets what `table` shows already: it was committed before the transaction that the table is of.
    pub fn forget_shown(&mut self, table: &PageTable) {
        self.pages.retain(|number, page| table.hash(*number) != Some(PageHash::of(*number, page)));
        if self.pages.is_empty() && self.page_count == Some(table.pages()) {
            *self = Since::default();
        }
    }
}
