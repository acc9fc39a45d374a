//! The hashes of all pages of one state, and its checksum kept up with them.

use std::io::{Read, Write};

use super::checksum::DatabaseChecksum;
use super::layout::{Fields, Sealed, damaged};
use super::page::{PageHash, PageSize};
use crate::error::{Error, ErrorKind, Result};

/// What is known of one state of a database: the hash of each page, 8 bytes of memory apiece.
///
/// Its invariant: the checksum is the XOR of the hashes; a page whose hash is not known has the hash 0, and
/// so has the lock-byte page. (Of 2^64 pages one hashes to 0, and is taken for one that is not known.)
#[derive(Clone, PartialEq, Eq)]
pub struct PageTable {
    page_size: PageSize,
    hashes: Vec<u64>,
    checksum: DatabaseChecksum,
}

/// Stands at the beginning of a stored table; its last byte is the version.
const MAGIC: [u8; 4] = *b"LBT\x01";
const HEADER_BYTES: usize = 4 + 1 + 4;
const HASH_BYTES: usize = 8;

/// Hashes that are written or read at once.
const CHUNK: usize = 8 << 10;

impl PageTable {
    /// The table of a database without pages.
    pub fn new(page_size: PageSize) -> PageTable {
        PageTable { page_size, hashes: Vec::new(), checksum: DatabaseChecksum::default() }
    }

    /// Bytes per page.
    pub fn page_size(&self) -> PageSize {
        self.page_size
    }

    /// The size of the database in pages.
    pub fn pages(&self) -> u32 {
        self.hashes.len() as u32
    }

    /// The checksum of the pages that are known.
    pub fn checksum(&self) -> DatabaseChecksum {
        self.checksum
    }

    /// The hash of a page; none beyond the last page, of the lock-byte page, and of one that is not known.
    pub fn hash(&self, number: u32) -> Option<PageHash> {
        let hash = *self.hashes.get(usize::try_from(number).ok()?.checked_sub(1)?)?;
        (hash != 0).then_some(PageHash(hash))
    }

    /// Sets the size of the database. Pages beyond it are forgotten; new ones are not known yet.
    pub fn resize(&mut self, pages: u32) {
        for hash in self.hashes.iter().skip(pages as usize) {
            self.checksum.toggle(PageHash(*hash));
        }
        self.hashes.resize(pages as usize, 0);
    }

    /// Takes note of the content of a page. That of the lock-byte page does not count.
    ///
    /// A page beyond the last one is [`ErrorKind::Internal`].
    pub fn set(&mut self, number: u32, page: &[u8]) -> Result<()> {
        if number == self.page_size.lock_byte_page() {
            return Ok(());
        }
        let pages = self.pages();
        let place = (number as usize).checked_sub(1).and_then(|index| self.hashes.get_mut(index));
        let Some(place) = place.filter(|_| page.len() == self.page_size.bytes()) else {
            return Err(Error::new(
                ErrorKind::Internal,
                format!("a page of {} bytes has no place: page=`{number}` pages=`{pages}`", page.len()),
            ));
        };
        let hash = PageHash::of(number, page);
        self.checksum.toggle(PageHash(*place));
        self.checksum.toggle(hash);
        *place = hash.0;
        Ok(())
    }

    /// Writes the table, with a digest of its own: 8 bytes a page and 41 more.
    pub fn write(&self, to: impl Write) -> Result<()> {
        let mut to = Sealed::new(to);
        to.put(&MAGIC)?;
        to.put(&[self.page_size.log2()])?;
        to.put(&self.pages().to_le_bytes())?;
        for hashes in self.hashes.chunks(CHUNK) {
            to.put(&hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect::<Vec<u8>>())?;
        }
        to.seal().map(drop)
    }

    /// Reads what [`PageTable::write`] wrote; anything else is [`ErrorKind::Corrupt`].
    ///
    /// Takes no more memory than was read, whatever the table says of its size.
    pub fn read(from: impl Read) -> Result<PageTable> {
        const WHAT: &str = "a table of page hashes";
        let mut from = Sealed::new(from);
        let mut header = [0; HEADER_BYTES];
        from.take(&mut header, WHAT)?;
        let mut fields = Fields(&header);
        if fields.next() != MAGIC {
            return Err(damaged(WHAT, "it does not begin as one"));
        }
        let [log2] = fields.next();
        let page_size =
            PageSize::from_log2(log2).ok_or_else(|| damaged(WHAT, "its page size is not one SQLite has"))?;
        let mut left = u32::from_le_bytes(fields.next()) as usize;
        let mut table = PageTable::new(page_size);
        let mut bytes = vec![0; CHUNK * HASH_BYTES];
        while left > 0 {
            let chunk = &mut bytes[..left.min(CHUNK) * HASH_BYTES];
            from.take(chunk, WHAT)?;
            let mut fields = Fields(chunk);
            table.hashes.extend((0..left.min(CHUNK)).map(|_| u64::from_le_bytes(fields.next())));
            left -= left.min(CHUNK);
        }
        from.check_seal(WHAT)?;
        for hash in &table.hashes {
            table.checksum.toggle(PageHash(*hash));
        }
        Ok(table)
    }
}

impl std::fmt::Debug for PageTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "PageTable({} pages of {}, {})", self.pages(), self.page_size.bytes(), self.checksum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn size(bytes: u32) -> PageSize {
        PageSize::new(bytes).expect("valid")
    }

    fn table_of(pages: &[Vec<u8>]) -> PageTable {
        let mut table = PageTable::new(size(512));
        table.resize(pages.len() as u32);
        for (number, page) in (1..).zip(pages) {
            table.set(number, page).expect("there");
        }
        table
    }

    #[test]
    fn the_same_page_at_another_place_is_another_checksum() {
        let (a, b) = (vec![1; 512], vec![2; 512]);
        assert_ne!(table_of(&[a.clone(), b.clone()]).checksum(), table_of(&[b, a.clone()]).checksum());
        assert_ne!(table_of(&[a.clone(), a]).checksum(), DatabaseChecksum::default());
    }

    #[test]
    fn the_lock_byte_page_never_counts() {
        let mut table = PageTable::new(size(65536));
        table.resize(16_386);
        table.set(16_385, &[7; 65536]).expect("passed over");
        assert_eq!((table.hash(16_385), table.checksum()), (None, DatabaseChecksum::default()));
        assert_eq!(table.hash(16_386), None, "it is not known yet");
        table.set(16_386, &[7; 65536]).expect("there");
        assert_eq!(table.hash(16_386), Some(PageHash::of(16_386, &[7; 65536])));
    }

    #[test]
    fn a_page_without_a_place_is_refused() {
        let mut table = table_of(&[vec![1; 512]]);
        for (number, bytes) in [(0, 512), (2, 512), (1, 511)] {
            let error = table.set(number, &vec![0; bytes]).expect_err("no place");
            assert!(error.to_string().contains(&format!("page=`{number}` pages=`1`")), "{error}");
        }
    }

    #[test]
    fn a_stored_table_with_any_bit_flipped_cut_or_with_more_behind_it_is_refused() {
        let mut stored = Vec::new();
        table_of(&[vec![1; 512], vec![2; 512]]).write(&mut stored).expect("written");
        assert_eq!(stored.len(), 2 * 8 + 41);
        let refused = |bytes: &[u8]| PageTable::read(bytes).expect_err("damaged").kind();
        for bit in 0..stored.len() * 8 {
            let mut flipped = stored.clone();
            flipped[bit / 8] ^= 1 << (bit % 8);
            assert_eq!(refused(&flipped), ErrorKind::Corrupt, "bit {bit}");
        }
        for length in 0..stored.len() {
            assert_eq!(refused(&stored[..length]), ErrorKind::Corrupt);
        }
        stored.push(0);
        assert_eq!(refused(&stored), ErrorKind::Corrupt);
    }

    proptest! {
        #[test]
        fn however_a_state_was_reached_its_table_is_the_same_and_comes_back(
            steps in prop::collection::vec((0u32..20, 1u32..20, any::<u8>()), 0..60)
        ) {
            let mut state: Vec<Vec<u8>> = Vec::new();
            let mut table = PageTable::new(size(512));
            for (pages, number, content) in steps {
                let before = state.len();
                state.resize(pages as usize, vec![0; 512]);
                table.resize(pages);
                for new in before + 1..=pages as usize {
                    table.set(new as u32, &state[new - 1]).expect("there");
                }
                if number <= pages {
                    state[number as usize - 1] = vec![content; 512];
                    table.set(number, &state[number as usize - 1]).expect("there");
                }
            }
            prop_assert_eq!(&table, &table_of(&state));
            let mut stored = Vec::new();
            table.write(&mut stored).expect("written");
            prop_assert_eq!(PageTable::read(&stored[..]).expect("ours"), table);
        }
    }
}
