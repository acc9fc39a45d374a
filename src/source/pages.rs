//! From SQLite's page writes to the database file as one stream of bytes, first to last.

use crate::error::{Error, ErrorKind, Result};

/// Takes a database file, in order, in pieces of any size.
pub trait PageSink: Send {
    /// Takes the next bytes of the file. An error stops the snapshot and becomes its result.
    fn write(&mut self, bytes: &[u8]) -> Result<()>;
}

/// Two sinks take the same; the second one if it is there.
impl<A: PageSink, B: PageSink> PageSink for (A, Option<B>) {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes)?;
        self.1.as_mut().map_or(Ok(()), |second| second.write(bytes))
    }
}

/// Takes the pages of a database, in order.
pub trait TakePages: Send {
    /// Takes the page of that number, counted from 1. An error ends the reading and becomes its result.
    fn take(&mut self, number: u32, page: &[u8]) -> Result<()>;
}

/// Cuts the stream of a database file into its pages again.
pub struct ByPage<T> {
    taker: T,
    page_bytes: usize,
    number: u32,
    /// The beginning of the next page.
    begun: Vec<u8>,
}

impl<T: TakePages> ByPage<T> {
    /// Hands pages of `page_bytes` to `taker`.
    pub fn new(taker: T, page_bytes: usize) -> Self {
        ByPage { taker, page_bytes, number: 0, begun: Vec::new() }
    }

    /// Who took the pages.
    pub fn into_taker(self) -> T {
        self.taker
    }

    fn hand_on(&mut self, page: &[u8]) -> Result<()> {
        self.number += 1;
        self.taker.take(self.number, page)
    }
}

impl<T: TakePages> PageSink for ByPage<T> {
    fn write(&mut self, mut bytes: &[u8]) -> Result<()> {
        while !bytes.is_empty() {
            let missing = self.page_bytes - self.begun.len();
            let (now, later) = bytes.split_at(missing.min(bytes.len()));
            bytes = later;
            if now.len() == self.page_bytes {
                self.hand_on(now)?;
                continue;
            }
            self.begun.extend_from_slice(now);
            if self.begun.len() == self.page_bytes {
                let page = std::mem::take(&mut self.begun);
                self.hand_on(&page)?;
            }
        }
        Ok(())
    }
}

/// SQLite never stores anything in the page that holds this byte: it is where locks are taken.
const LOCK_BYTE: u64 = 0x4000_0000;

/// The bytes of page 1 that the backup API sets itself: change counter, size in pages, schema
/// cookie, and the pair that says for which change counter which SQLite wrote the size.
const ALTERED: [std::ops::Range<usize>; 4] = [24..28, 28..32, 40..44, 92..100];

/// Puts what the backup API writes in order and makes page 1 what the source's is.
///
/// Page 1 was read beforehand, in the same transaction; the backup API's own version of it, which
/// comes last, is only compared.
pub(super) struct PageStream<S> {
    sink: S,
    page_size: u64,
    page_count: u64,
    first_page: Vec<u8>,
    next: u64,
    /// The first thing that went wrong. SQLite learns only that a write failed.
    failure: Option<Error>,
}

impl<S: PageSink> PageStream<S> {
    pub fn new(sink: S, first_page: Vec<u8>, page_count: u32) -> Self {
        let page_size = first_page.len() as u64;
        PageStream { sink, page_size, page_count: page_count.into(), first_page, next: 0, failure: None }
    }

    /// Sends page 1; comes before any [`PageStream::take`].
    pub fn begin(&mut self) -> Result<()> {
        self.next = self.page_size;
        self.sink.write(&self.first_page)
    }

    /// Takes one write of the backup API. `false`: stop, the reason is kept.
    pub fn take(&mut self, offset: u64, page: &[u8]) -> bool {
        match self.accept(offset, page) {
            Ok(()) => true,
            Err(error) => {
                self.failure.get_or_insert(error);
                false
            }
        }
    }

    /// Why [`PageStream::take`] said stop, if it did.
    pub fn take_failure(&mut self) -> Option<Error> {
        self.failure.take()
    }

    /// Bytes handed on so far.
    pub fn sent(&self) -> u64 {
        self.next
    }

    /// Ends the stream, which must be complete; gives back what is behind it.
    pub fn finish(mut self) -> Result<S> {
        self.skip_lock_page()?;
        if self.next != self.page_size * self.page_count {
            let message = format!(
                "the backup API ended after {} of {} bytes; nothing was stored",
                self.next,
                self.page_size * self.page_count
            );
            return Err(Error::new(ErrorKind::Internal, message));
        }
        Ok(self.sink)
    }

    fn accept(&mut self, offset: u64, page: &[u8]) -> Result<()> {
        if page.len() as u64 != self.page_size {
            return Err(unforeseen(format!("a page of {} bytes, not {}", page.len(), self.page_size)));
        }
        if offset == 0 {
            return self.compare_first_page(page);
        }
        self.skip_lock_page()?;
        if offset != self.next {
            return Err(unforeseen(format!("offset {offset} where {} was due", self.next)));
        }
        self.sink.write(page)?;
        self.next += self.page_size;
        Ok(())
    }

    /// The backup API leaves the lock page out; in the file it is zeros.
    fn skip_lock_page(&mut self) -> Result<()> {
        if self.next == LOCK_BYTE && self.next < self.page_size * self.page_count {
            self.sink.write(&vec![0; self.page_size as usize])?;
            self.next += self.page_size;
        }
        Ok(())
    }

    fn compare_first_page(&self, page: &[u8]) -> Result<()> {
        let altered = |at: usize| ALTERED.iter().any(|range| range.contains(&at));
        let same = page
            .iter()
            .zip(&self.first_page)
            .enumerate()
            .all(|(at, (one, other))| one == other || altered(at));
        match same {
            true => Ok(()),
            false => Err(unforeseen("page 1 is not the one read at the start of the transaction".to_owned())),
        }
    }
}

fn unforeseen(what: String) -> Error {
    Error::new(
        ErrorKind::Internal,
        format!("the backup API did something unforeseen, nothing was stored: {what}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Collect(Vec<u8>);

    impl PageSink for Collect {
        fn write(&mut self, bytes: &[u8]) -> Result<()> {
            self.0.extend_from_slice(bytes);
            Ok(())
        }
    }

    fn stream(page_count: u32) -> PageStream<Collect> {
        let mut stream = PageStream::new(Collect(Vec::new()), vec![1; 512], page_count);
        stream.begin().expect("collects");
        stream
    }

    #[test]
    fn page_one_stays_as_it_was_read() {
        let mut stream = stream(2);
        assert!(stream.take(512, &[2; 512]));
        let mut altered = [1; 512];
        altered[24..32].fill(9);
        altered[40..44].fill(9);
        altered[92..100].fill(9);
        assert!(stream.take(0, &altered));
        let bytes = stream.finish().expect("complete").0;
        assert_eq!(bytes, [[1; 512], [2; 512]].concat());
    }

    #[test]
    fn another_page_one_a_gap_a_repetition_and_an_early_end_are_refused() {
        let mut other = [1; 512];
        other[100] = 9;
        assert!(!stream(2).take(0, &other));
        assert!(!stream(3).take(1024, &[0; 512]));
        let mut repeated = stream(3);
        assert!(repeated.take(512, &[0; 512]));
        assert!(!repeated.take(512, &[0; 512]));
        assert_eq!(repeated.take_failure().expect("kept").kind(), ErrorKind::Internal);
        stream(2).finish().err().expect("one page is missing");
    }
}
