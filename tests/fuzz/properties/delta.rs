//! A delta that is read is, written again, the same delta, and with any bit flipped none; what is no delta is
//! refused as damaged. Nothing that is applied makes a database longer than its pages.
//!
//! Each input is tried as it is, and with the digest that it should have.
use std::io;

use lifeboat::delta::{Applier, Decoder, Encoder, PageStore, PageTable, Step};
use lifeboat::error::{ErrorKind, Result};
use lifeboat::snapshot::{Digest, Key, Level, Span};

const DIGEST_BYTES: usize = 32;
/// Flips that are tried of each delta.
const FLIPS: usize = 16;

pub fn holds(bytes: &[u8]) {
    try_one(bytes);
    let Some(end) = bytes.len().checked_sub(DIGEST_BYTES) else { return };
    try_one(&[&bytes[..end], Digest::of(&bytes[..end]).bytes()].concat());
}

fn try_one(bytes: &[u8]) {
    let key = key(bytes);
    let again = match copy(bytes, &key) {
        Ok(again) => again,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Corrupt),
    };
    assert_eq!(content(bytes, &key).expect("read before"), content(&again, &key).expect("written by us"));
    for bit in (0..bytes.len() * 8).step_by(bytes.len() * 8 / FLIPS) {
        let mut flipped = bytes.to_vec();
        flipped[bit / 8] ^= 1 << (bit % 8);
        assert!(content(&flipped, &key).is_err(), "bit {bit} does not count");
    }
    apply(bytes, &key);
}

/// The key under which it says it stands, if it says so.
fn key(bytes: &[u8]) -> Key {
    let position =
        |at: usize| bytes.get(at..at + 8).map(|it| u64::from_le_bytes(it.try_into().expect("8 bytes")));
    let named = position(45).zip(position(53)).and_then(|(from, to)| Span::new(from, to).ok());
    let span = named.unwrap_or_else(|| Span::new(0, 1).expect("forward"));
    Key::Delta("app".parse().expect("a name"), Level::CAPTURED, span)
}

/// The same delta, written by the program of today.
fn copy(bytes: &[u8], key: &Key) -> Result<Vec<u8>> {
    let mut delta = Decoder::new(bytes, key)?;
    let mut encoder = Encoder::new(Vec::new(), delta.header(), 1)?;
    loop {
        match delta.advance()? {
            Step::Page(number) => encoder.page(number, delta.page())?,
            Step::End(trailer) => {
                let (again, bytes) = encoder.finish(trailer.checksum_after)?;
                assert_eq!(again, trailer);
                return Ok(bytes);
            }
        }
    }
}

/// All that it holds, as text.
fn content(bytes: &[u8], key: &Key) -> Result<String> {
    let mut delta = Decoder::new(bytes, key)?;
    let mut content = format!("{:?}", delta.header());
    loop {
        match delta.advance()? {
            Step::Page(number) => content.push_str(&format!(" {number}:{}", Digest::of(delta.page()))),
            Step::End(trailer) => return Ok(content + &format!(" {trailer:?}")),
        }
    }
}

/// Counts what is written.
struct Counted(u32);

impl PageStore for Counted {
    fn set_pages(&mut self, _: u32) -> Result<()> {
        Ok(())
    }

    fn write_page(&mut self, _: u32, _: &[u8]) -> Result<()> {
        self.0 += 1;
        Ok(())
    }
}

fn apply(bytes: &[u8], key: &Key) {
    let delta = Decoder::new(bytes, key).expect("read before");
    let header = delta.header().clone();
    let table = PageTable::new(header.page_size);
    let mut state = Applier::new(Counted(0), table, header.database_id, header.span.from());
    let applied = state.apply(delta);
    let (Counted(written), table) = state.into_parts();
    // One more may be the lock-byte page.
    assert!(table.pages() <= written + 1, "{} pages of {written}", table.pages());
    if applied.is_ok() {
        assert_eq!(table.pages(), header.pages_after);
        let mut stored = Vec::new();
        table.write(&mut stored).expect("written");
        assert_eq!(PageTable::read(&mut io::Cursor::new(stored)).expect("ours"), table);
    }
}
