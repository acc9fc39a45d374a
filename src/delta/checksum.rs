//! The checksum of a whole database, kept up page by page.

use std::fmt;

use super::page::PageHash;

/// The XOR of the hashes of all pages of a database but the lock-byte page; 0 for one without pages.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct DatabaseChecksum(u64);

impl DatabaseChecksum {
    /// Puts a page in that is not in it, or takes one out that is.
    pub fn toggle(&mut self, page: PageHash) {
        self.0 ^= page.0;
    }

    /// Its 64 bits.
    pub fn bits(self) -> u64 {
        self.0
    }
}

impl From<u64> for DatabaseChecksum {
    fn from(bits: u64) -> Self {
        DatabaseChecksum(bits)
    }
}

impl fmt::Display for DatabaseChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}

impl fmt::Debug for DatabaseChecksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
