//! What is applied is proven, delta by delta.

use super::super::fixture::*;
use super::super::{DatabaseChecksum, Encoder, Trailer};
use super::*;
use crate::snapshot::DatabaseId;
use proptest::prelude::*;

fn apply(state: &mut Applier<Store>, from: u64, stored: &[u8]) -> Result<()> {
    state.apply(Decoder::new(stored, &key(from, from + 1)).expect("header"))
}

fn refusal(state: &mut Applier<Store>, from: u64, stored: &[u8]) -> String {
    let error = apply(state, from, stored).expect_err("it does not prove");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    error.to_string()
}

fn empty(change: impl Fn(&mut Header), after: u64) -> Vec<u8> {
    let mut header = header(1, &[], &[]);
    change(&mut header);
    let encoder = Encoder::new(Vec::new(), &header, 3).expect("begun");
    encoder.finish(DatabaseChecksum::from(after)).expect("ended").1
}

#[test]
fn a_delta_that_does_not_go_on_from_here_is_refused() {
    let [before, after] = [pages(&[1, 2]), pages(&[1, 3])];
    let mut state = applier(&before, 0);
    apply(&mut state, 0, &delta(0, &before, &after, &[])).expect("applied");
    assert_eq!(state.position(), 1);
    let told = refusal(&mut state, 3, &delta(3, &after, &after, &[]));
    assert!(told.contains("after position=`1`: the delta does not go on from there"), "{told}");
    let whole = merged(&[delta(0, &before, &after, &[]), delta(1, &after, &before, &[])]);
    let over =
        state.apply(Decoder::new(&whole[..], &key(0, 2)).expect("header")).expect_err("it begins before");
    assert!(over.to_string().contains("does not go on from there"), "{over}");
    let told = refusal(&mut state, 1, &delta(1, &before, &after, &[]));
    assert!(told.contains("follows another state"), "{told}");
    let mut claimed = header(1, &after, &after);
    claimed.epoch = 0;
    let encoder = Encoder::new(Vec::new(), &claimed, 3).expect("begun");
    let claim = encoder.finish(table(&after).checksum()).expect("ended").1;
    assert!(refusal(&mut state, 1, &claim).contains("older epoch"));
    // Nothing was written yet: the right one still goes on.
    apply(&mut state, 1, &delta(1, &after, &before, &[])).expect("applied");
}

#[test]
fn a_delta_of_another_database_is_refused() {
    let page_size = super::super::PageSize::new(1024).expect("valid");
    let foreign = empty(|header| header.database_id = DatabaseId::new(8), 0);
    assert!(refusal(&mut applier(&[], 1), 1, &foreign).contains("another history"));
    let other = empty(|header| header.page_size = page_size, 0);
    assert!(refusal(&mut applier(&[], 1), 1, &other).contains("another size"));
    apply(&mut applier(&[], 1), 1, &empty(|_| (), 0)).expect("its own");
}

#[test]
fn a_wrong_page_is_noticed_at_the_position_it_leads_to() {
    let [before, after] = [pages(&[1, 2]), pages(&[1, 3])];
    let mut state = applier(&pages(&[9, 2]), 0);
    let told = refusal(&mut state, 0, &delta(0, &before, &after, &[]));
    assert!(told.contains("the checksum of the database is"), "{told}");
    assert!(told.ends_with("span=`0000000000000000-0000000000000001`"), "{told}");
}

#[test]
fn a_database_that_grows_without_the_new_page_is_refused() {
    let [before, after] = [pages(&[1]), pages(&[1, 0, 1])];
    for (numbers, pages_after, lacking) in [(&[3][..], 3, 2), (&[2], 3, 3), (&[], u32::MAX, 2)] {
        let header = Header { pages_after, ..header(0, &before, &after) };
        let trailer = Trailer { pages: numbers.len() as u32, checksum_after: header.checksum_before };
        let told = refusal(&mut applier(&before, 0), 0, &forged(&header, numbers, trailer));
        assert!(told.contains(&format!("page {lacking} is new, and not in the delta")), "{told}");
    }
}

/// What is written goes nowhere: a database beyond 1 GiB is too large for a test.
#[test]
fn a_database_grows_over_the_lock_byte_page_and_up_to_it() {
    struct Nowhere(u32);
    impl PageStore for Nowhere {
        fn set_pages(&mut self, pages: u32) -> Result<()> {
            self.0 = pages;
            Ok(())
        }

        fn write_page(&mut self, number: u32, _: &[u8]) -> Result<()> {
            self.0 = self.0.max(number);
            Ok(())
        }
    }
    let page_size = super::super::PageSize::new(65536).expect("valid");
    let lock_byte_page = page_size.lock_byte_page();
    let mut before = PageTable::new(page_size);
    before.resize(lock_byte_page - 2);
    let (below, above) = (lock_byte_page - 1, lock_byte_page + 1);
    for (numbers, pages_after, is_whole) in [
        (&[below][..], below, true),
        (&[below], lock_byte_page, true),
        (&[below, above], above, true),
        (&[above], above, false),
        (&[below], above, false),
    ] {
        let mut after = before.clone();
        after.resize(pages_after);
        let header = Header { page_size, pages_after, ..header(0, &[], &[]) };
        let mut encoder = Encoder::new(Vec::new(), &header, 1).expect("begun");
        for number in numbers {
            after.set(*number, &[7; 65536]).expect("there");
            encoder.page(*number, &[7; 65536]).expect("in order");
        }
        let stored = encoder.finish(after.checksum()).expect("ended").1;
        let mut state = Applier::new(Nowhere(before.pages()), before.clone(), database_id(), 0);
        let applied = state.apply(Decoder::new(&stored[..], &key(0, 1)).expect("header"));
        assert_eq!(applied.is_ok(), is_whole, "{numbers:?} {pages_after}");
        if is_whole {
            let (Nowhere(pages), table) = state.into_parts();
            assert_eq!((pages, table), (pages_after, after));
        }
    }
}

#[test]
fn a_database_that_shrinks_and_grows_has_nothing_left_of_what_was_there() {
    let states = [pages(&[1, 2, 3]), pages(&[]), pages(&[4])];
    let mut state = applier(&states[0], 0);
    for (from, pair) in (0..).zip(states.windows(2)) {
        apply(&mut state, from, &delta(from, &pair[0], &pair[1], &[])).expect("applied");
    }
    assert_eq!(state.into_parts().0.0, states[2]);
}

proptest! {
    /// A snapshot lies between two positions; the delta between them holds all pages written there.
    #[test]
    fn what_lies_between_two_positions_is_right_from_the_next_on(
        states in any_history(),
        written in prop::collection::vec((0usize..10, 0u8..4), 0..5),
    ) {
        let mut between = states[0].clone();
        let mut touched = Vec::new();
        for (index, content) in written {
            if let Some(place) = between.get_mut(index) {
                *place = page(content);
                touched.push(index as u32 + 1);
            }
        }
        let mut state = applier(&between, 0);
        for (from, pair) in (0..).zip(states.windows(2)) {
            let touched: &[u32] = if from == 0 { &touched } else { &[] };
            apply(&mut state, from, &delta(from, &pair[0], &pair[1], touched)).expect("applied");
        }
        let (Store(found), found_table) = state.into_parts();
        prop_assert_eq!(&found, states.last().expect("some"));
        prop_assert_eq!(found_table, table(&found));
    }
}
