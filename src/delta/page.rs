//! Pages: their size, which of them SQLite never uses, and their hashes.

use xxhash_rust::xxh3::Xxh3;

use crate::error::{Error, ErrorKind, Result};

/// Bytes per page: a power of two from 512 to 65536.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PageSize {
    log2: u8,
}

/// The byte whose page SQLite locks by and never stores anything in.
const LOCK_BYTE: u32 = 0x4000_0000;

impl PageSize {
    /// 512 bytes.
    pub const SMALLEST: PageSize = PageSize { log2: 9 };

    /// The size of that many bytes; [`ErrorKind::Corrupt`] if SQLite has none such.
    pub fn new(bytes: u32) -> Result<PageSize> {
        let size = PageSize { log2: bytes.checked_ilog2().unwrap_or(0) as u8 };
        let is_one = bytes.is_power_of_two() && PageSize::is_known(size.log2);
        is_one.then_some(size).ok_or_else(|| {
            Error::new(ErrorKind::Corrupt, format!("a page has no such size: page_size=`{bytes}`"))
        })
    }

    pub(super) fn from_log2(log2: u8) -> Option<PageSize> {
        PageSize::is_known(log2).then_some(PageSize { log2 })
    }

    pub(super) fn log2(self) -> u8 {
        self.log2
    }

    fn is_known(log2: u8) -> bool {
        (9..=16).contains(&log2)
    }

    /// The number of bytes.
    pub fn bytes(self) -> usize {
        1 << self.log2
    }

    /// The page that SQLite never reads or writes, counted from 1; databases below 1 GiB end before it.
    pub fn lock_byte_page(self) -> u32 {
        (LOCK_BYTE >> self.log2) + 1
    }
}

/// The hash of one page at its place: XXH3 (64 bits, no seed) over the number of the page, 4 bytes
/// little-endian, and its content.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct PageHash(pub(super) u64);

impl PageHash {
    /// The hash of `page` as page `number`.
    pub fn of(number: u32, page: &[u8]) -> PageHash {
        let mut hasher = Xxh3::new();
        hasher.update(&number.to_le_bytes());
        hasher.update(page);
        PageHash(hasher.digest())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_size_is_one_that_sqlite_has() {
        for bytes in [512, 1024, 4096, 65536] {
            assert_eq!(PageSize::new(bytes).expect("valid").bytes(), bytes as usize);
        }
        for bytes in [0, 1, 256, 513, 4095, 131_072, u32::MAX] {
            let error = PageSize::new(bytes).expect_err("no size");
            assert!(error.to_string().contains(&format!("page_size=`{bytes}`")), "{error}");
        }
    }

    #[test]
    fn the_lock_byte_page_holds_the_byte_at_1_gib() {
        let page = |bytes| PageSize::new(bytes).expect("valid").lock_byte_page();
        assert_eq!((page(512), page(4096), page(65536)), (2_097_153, 262_145, 16_385));
    }

    /// Stored checksums are made of these: they never change. The numbers are those of the C library.
    #[test]
    fn hashes_are_what_they_always_were() {
        assert_eq!(PageHash::of(1, &[0; 512]), PageHash(0x6542_150a_c650_8d1c));
        assert_eq!(PageHash::of(2, &[0; 512]), PageHash(0x721c_cd72_56a0_799c));
        assert_eq!(PageHash::of(1, &[7; 4096]), PageHash(0x9f5a_a229_7dd7_2006));
        assert_eq!(PageHash::of(262_146, &[7; 65536]), PageHash(0x3bf7_9d7c_173e_c734));
    }
}
