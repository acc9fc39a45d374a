//! What an encoder wrote comes back, and nothing else does.

use super::super::fixture::*;
use super::super::{DatabaseChecksum, Encoder, PageSize};
use super::*;
use crate::error::{Error, ErrorKind};
use crate::snapshot::{Compressor, FORMAT, is_other_format};
use proptest::prelude::*;

type Decoded = (Header, Vec<(u32, Vec<u8>)>, Trailer);

fn decoded(stored: &[u8], key: &Key) -> Result<Decoded> {
    let mut decoder = Decoder::new(stored, key)?;
    let mut pages = Vec::new();
    loop {
        match decoder.advance()? {
            Step::Page(number) => pages.push((number, decoder.page().to_vec())),
            Step::End(trailer) => {
                assert_eq!(decoder.advance().expect("it stays there"), Step::End(trailer));
                return Ok((decoder.header().clone(), pages, trailer));
            }
        }
    }
}

fn refusal(stored: &[u8]) -> Error {
    let error = decoded(stored, &key(4, 5)).expect_err("it is not what was stored");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    error
}

/// It is refused, and what is wrong is named, and where.
fn assert_refused(stored: &[u8], why: &str) {
    let told = refusal(stored).chain();
    assert!(told.contains(why) && told.contains(&key(4, 5).path()), "{told} does not say: {why}");
}

fn small() -> Vec<u8> {
    delta(4, &pages(&[1, 2, 3]), &pages(&[1, 5, 3, 6]), &[])
}

fn trailer(pages: u32) -> Trailer {
    Trailer { pages, checksum_after: DatabaseChecksum::from(1) }
}

fn header_of(pages_after: u32) -> Header {
    Header { pages_after, ..header(4, &[], &[]) }
}

#[test]
fn a_claim_of_a_new_epoch_has_no_pages_and_135_bytes() {
    let state = pages(&[1, 2]);
    let stored = delta(4, &state, &state, &[]);
    assert_eq!(stored.len(), 135);
    let (header, pages, trailer) = decoded(&stored, &key(4, 5)).expect("whole");
    assert_eq!((pages, trailer.pages, trailer.checksum_after), (vec![], 0, header.checksum_before));
}

#[test]
fn every_flipped_bit_is_refused() {
    let stored = small();
    for bit in 0..stored.len() * 8 {
        let mut flipped = stored.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        refusal(&flipped);
    }
}

#[test]
fn what_is_cut_off_or_goes_on_is_refused() {
    let mut stored = small();
    for length in 0..stored.len() {
        assert_refused(&stored[..length], "it is truncated");
    }
    stored.push(0);
    assert_refused(&stored, "something follows its end");
}

#[test]
fn what_is_no_delta_and_what_is_a_newer_one_are_told_apart() {
    let mut stored = small();
    stored[3] = FORMAT as u8 + 1;
    assert_refused(&stored, "unknown format version 2");
    assert!(is_other_format(&refusal(&stored)));
    stored[0] = b'X';
    assert_refused(&stored, "it does not begin as one");
    assert!(!is_other_format(&refusal(&stored)));
}

#[test]
fn a_header_that_cannot_be_is_refused() {
    let with = |at: usize, bytes: &[u8]| {
        let mut stored = small();
        stored.truncate(stored.len() - 32);
        stored[at..at + bytes.len()].copy_from_slice(bytes);
        sealed(stored)
    };
    for log2 in [0, 8, 17, 255] {
        assert_refused(&with(4, &[log2]), "its page size is not one SQLite has");
    }
    assert_refused(&with(45, &5u64.to_le_bytes()), "it leads nowhere");
    assert_refused(&with(45, &3u64.to_le_bytes()), "it stands under another one's key");
    assert_refused(&with(61, &i64::MAX.to_le_bytes()), "a time in it is none");
    assert_refused(&with(69, &i64::MIN.to_le_bytes()), "a time in it is none");
}

#[test]
fn pages_that_cannot_follow_one_another_are_refused() {
    let lock_byte_page = PageSize::new(512).expect("valid").lock_byte_page();
    for (numbers, why) in [
        (&[0][..], "there is no page 0"),
        (&[2, 1], "page 1 comes after page 2"),
        (&[2, 2], "page 2 is in it twice"),
        (&[lock_byte_page], "page 2097153 is the lock-byte page"),
        (&[lock_byte_page + 2], "page 2097155 is beyond the 2097154 pages of the database"),
    ] {
        let forged = forged(&header_of(lock_byte_page + 1), numbers, trailer(numbers.len() as u32));
        assert_refused(&forged, why);
    }
    let whole = forged(&header_of(lock_byte_page + 1), &[1, lock_byte_page + 1], trailer(2));
    decoded(&whole, &key(4, 5)).expect("all that was wrong above is the numbers");
    let count = forged(&header_of(9), &[1, 2], trailer(3));
    assert_refused(&count, "it holds 2 pages, not 3");
}

#[test]
fn a_block_inflates_to_no_more_and_no_less_than_its_pages() {
    let block = |pages: u16, bytes: u32, stored: &[u8]| {
        let header = header_of(9).encode().expect("encoded");
        let ends = [&0u16.to_le_bytes()[..], &trailer(u32::from(pages)).encode()].concat();
        let begins = [&header[..], &pages.to_le_bytes(), &bytes.to_le_bytes()].concat();
        sealed([&begins[..], stored, &ends].concat())
    };
    let bomb = Compressor::bare(3).expect("level").frame(&vec![1; 8 << 20]).expect("compressed");
    for stored in [&bomb[..], b"no zstd", b"", &bomb[..bomb.len() - 1]] {
        assert_refused(&block(1, stored.len() as u32, stored), "a block does not decompress");
    }
    assert_refused(&block(u16::MAX, 10, &[0; 10]), "a block of 65535 pages is too large");
    assert_refused(&block(1, u32::MAX, &[]), "a block of 4294967295 bytes is too large");
}

#[test]
fn a_failing_source_keeps_whose_turn_it_is_to_act() {
    struct Failing(ErrorKind);
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other(Error::new(self.0, "the store is away")))
        }
    }
    let cut = &small()[..100];
    let mut decoder = Decoder::new(cut.chain(Failing(ErrorKind::Unavailable)), &key(4, 5)).expect("header");
    let error = decoder.advance().expect_err("away");
    assert_eq!(error.kind(), ErrorKind::Unavailable);
    assert!(error.chain().ends_with("the store is away"), "{}", error.chain());
}

#[test]
fn an_encoder_writes_only_what_a_decoder_reads() {
    let encoder = || Encoder::new(Vec::new(), &header_of(3), 3).expect("begun");
    for (number, bytes) in [(0, PAGE), (4, PAGE), (1, PAGE - 1)] {
        let error = encoder().page(number, &vec![0; bytes]).expect_err("refused");
        assert_eq!(error.kind(), ErrorKind::Internal);
    }
    let foreign = Header { database_id: serde_json::from_str("\"no id\"").expect("text"), ..header_of(3) };
    let error = Encoder::new(Vec::new(), &foreign, 3).err().expect("refused");
    assert!(error.to_string().contains("database_id=`no id`"), "{error}");
}

#[test]
fn many_blocks_are_read_one_at_a_time() {
    let all: Pages = (0..2_000u32).map(|n| n.to_le_bytes().repeat(PAGE / 4)).collect();
    let stored = delta(4, &[], &all, &[]);
    let mut decoder = Decoder::new(&stored[..], &key(4, 5)).expect("header");
    let mut expected = (1..).zip(&all);
    while let Step::Page(number) = decoder.advance().expect("whole") {
        assert_eq!(Some((number, &decoder.page().to_vec())), expected.next());
        assert!(decoder.plain.len() <= 256 << 10);
    }
    assert_eq!(expected.next(), None);
}

proptest! {
    #[test]
    fn decode_is_the_inverse_of_encode(
        numbers in prop::collection::btree_map(1u32..3_000_000, prop::collection::vec(any::<u8>(), 4), 0..40),
        (from, length, epoch, id, put_id) in (any::<u32>(), 1u64.., any::<u64>(), any::<u128>(), any::<u128>()),
        (first, last) in (0i64..4_000_000_000_000, 0i64..4_000_000_000_000),
        (before, after, log2, level) in (any::<u64>(), any::<u64>(), 9u8..17, 1i32..4),
    ) {
        let from = u64::from(from);
        let page_size = PageSize::new(1 << log2).expect("valid");
        let time = |ms| jiff::Timestamp::from_millisecond(ms).expect("a time");
        let span = crate::snapshot::Span::new(from, from.saturating_add(length)).expect("forward");
        let header = Header {
            database_id: crate::snapshot::DatabaseId::new(id),
            epoch,
            put_id: super::super::PutId::new(put_id),
            span,
            first_commit: time(first),
            last_commit: time(last),
            page_size,
            pages_after: 3_000_000,
            checksum_before: DatabaseChecksum::from(before),
        };
        let pages: Vec<(u32, Vec<u8>)> = numbers
            .into_iter()
            .filter(|(number, _)| *number != page_size.lock_byte_page())
            .map(|(number, content)| (number, content.repeat(page_size.bytes() / 4)))
            .collect();
        let mut encoder = Encoder::new(Vec::new(), &header, level).expect("begun");
        for (number, page) in &pages {
            encoder.page(*number, page).expect("in order");
        }
        let (trailer, stored) = encoder.finish(DatabaseChecksum::from(after)).expect("ended");
        let key = Key::Delta("app".parse().expect("a name"), crate::snapshot::Level::CAPTURED, span);
        prop_assert_eq!(decoded(&stored, &key).expect("whole"), (header, pages, trailer));
    }
}
