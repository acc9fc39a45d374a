//! Small databases as lists of pages, and the deltas between them.

use jiff::Timestamp;
use proptest::prelude::*;

use super::*;
use crate::error::Result;
use crate::snapshot::{Compressor, DatabaseId, Digest, Key, Level, Span};

/// Bytes per page of all that is made here.
pub const PAGE: usize = 512;

/// A database: its pages.
pub type Pages = Vec<Vec<u8>>;

pub fn page(content: u8) -> Vec<u8> {
    vec![content; PAGE]
}

pub fn pages(contents: &[u8]) -> Pages {
    contents.iter().copied().map(page).collect()
}

pub fn database_id() -> DatabaseId {
    DatabaseId::new(7)
}

pub fn key(from: u64, to: u64) -> Key {
    let span = Span::new(from, to).expect("forward");
    Key::Delta("app".parse().expect("a name"), Level::CAPTURED, span)
}

/// Deltas that follow one another from position 0 on, as one.
pub fn merged(run: &[Vec<u8>]) -> Vec<u8> {
    let open = |(from, stored)| Decoder::new(stored, &key(from, from + 1)).expect("header");
    let run = (0..).zip(run.iter().map(Vec::as_slice)).map(open).collect();
    merge(run, PutId::new(11), 3, Vec::new()).expect("merged").to
}

pub fn table(pages: &[Vec<u8>]) -> PageTable {
    let mut table = PageTable::new(PageSize::new(PAGE as u32).expect("valid"));
    table.resize(pages.len() as u32);
    for (number, page) in (1..).zip(pages) {
        table.set(number, page).expect("there");
    }
    table
}

/// The header of the delta between two states, the later at position `from` + 1.
pub fn header(from: u64, before: &[Vec<u8>], after: &[Vec<u8>]) -> Header {
    let second = |second: u64| Timestamp::from_second(second as i64).expect("a time");
    Header {
        database_id: database_id(),
        epoch: 1,
        put_id: PutId::new(9),
        span: Span::new(from, from + 1).expect("forward"),
        first_commit: second(2 * from),
        last_commit: second(2 * from + 1),
        page_size: PageSize::new(PAGE as u32).expect("valid"),
        pages_after: after.len() as u32,
        checksum_before: table(before).checksum(),
    }
}

/// The delta between two states: the pages that differ, and those in `touched`.
pub fn delta(from: u64, before: &[Vec<u8>], after: &[Vec<u8>], touched: &[u32]) -> Vec<u8> {
    let mut encoder = Encoder::new(Vec::new(), &header(from, before, after), 3).expect("begun");
    for (number, page) in (1..).zip(after) {
        if before.get(number as usize - 1) != Some(page) || touched.contains(&number) {
            encoder.page(number, page).expect("in order");
        }
    }
    encoder.finish(table(after).checksum()).expect("ended").1
}

/// A delta of one block as nobody writes it, with a digest that is right.
pub fn forged(header: &Header, numbers: &[u32], trailer: Trailer) -> Vec<u8> {
    let plain: Vec<u8> =
        numbers.iter().flat_map(|number| [&number.to_le_bytes()[..], &page(1)].concat()).collect();
    let stored = Compressor::bare(3).expect("level").frame(&plain).expect("compressed");
    let mut bytes = header.encode().expect("encoded");
    if !numbers.is_empty() {
        bytes.extend((numbers.len() as u16).to_le_bytes());
        bytes.extend((stored.len() as u32).to_le_bytes());
        bytes.extend(stored);
    }
    bytes.extend(0u16.to_le_bytes());
    bytes.extend(trailer.encode());
    sealed(bytes)
}

/// With the digest of all before it.
pub fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(Digest::of(&bytes).bytes());
    bytes
}

/// A database that deltas are applied to.
pub struct Store(pub Pages);

impl PageStore for Store {
    fn set_pages(&mut self, pages: u32) -> Result<()> {
        self.0.resize(pages as usize, page(0));
        Ok(())
    }

    fn write_page(&mut self, number: u32, page: &[u8]) -> Result<()> {
        self.0.resize(self.0.len().max(number as usize), vec![0; page.len()]);
        self.0[number as usize - 1] = page.to_vec();
        Ok(())
    }
}

/// A database at `position` to go on from.
pub fn applier(state: &[Vec<u8>], position: u64) -> Applier<Store> {
    Applier::new(Store(state.to_vec()), table(state), database_id(), position)
}

/// States that follow one another: pages written, written back, gone and come back.
pub fn any_history() -> impl Strategy<Value = Vec<Pages>> {
    let step = (0usize..10, prop::collection::vec((0usize..10, 0u8..3), 0..4), 0u8..3);
    prop::collection::vec(step, 2..8).prop_map(|steps| {
        let mut states: Vec<Pages> = Vec::new();
        for (length, writes, new) in steps {
            let mut state = states.last().cloned().unwrap_or_default();
            state.resize(length, page(new));
            for (index, content) in writes {
                if let Some(place) = state.get_mut(index) {
                    *place = page(content);
                }
            }
            states.push(state);
        }
        states
    })
}
