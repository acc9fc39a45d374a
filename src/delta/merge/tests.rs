//! A merged delta does what those it was merged from do.

use super::super::fixture::*;
use super::super::{DatabaseChecksum, Encoder};
use super::*;
use crate::snapshot::{DatabaseId, Key, Level, Span};
use proptest::prelude::*;

fn merged(run: &[Vec<u8>], first: u64) -> Result<Merged<Vec<u8>>> {
    let run = (first..).zip(run).map(|(from, stored)| Decoder::new(&stored[..], &key(from, from + 1)));
    let run = run.collect::<Result<Vec<_>>>()?;
    merge(run, PutId::new(11), 3, Vec::new())
}

fn refusal(run: &[Vec<u8>]) -> String {
    let error = merged(run, 0).expect_err("they do not follow one another");
    assert_eq!(error.kind(), ErrorKind::Corrupt);
    error.to_string()
}

/// The deltas between states, from position 0 on.
fn deltas(states: &[Pages]) -> Vec<Vec<u8>> {
    (0..).zip(states.windows(2)).map(|(from, pair)| delta(from, &pair[0], &pair[1], &[])).collect()
}

/// A delta without pages, with another header and another checksum after it.
fn empty(change: impl Fn(&mut Header), checksum_after: u64) -> Vec<u8> {
    let mut header = header(1, &[], &[]);
    change(&mut header);
    let encoder = Encoder::new(Vec::new(), &header, 3).expect("begun");
    encoder.finish(DatabaseChecksum::from(checksum_after)).expect("ended").1
}

#[test]
fn the_header_is_that_of_the_first_at_the_beginning_and_of_the_last_at_the_end() {
    let states = [pages(&[1]), pages(&[2]), pages(&[2, 3]), pages(&[4, 3])];
    let Merged { header: merged_header, trailer, to } = merged(&deltas(&states), 0).expect("merged");
    let (first, last) = (header(0, &states[0], &states[1]), header(2, &states[2], &states[3]));
    assert_eq!(
        merged_header,
        Header {
            put_id: PutId::new(11),
            span: Span::new(0, 3).expect("forward"),
            first_commit: first.first_commit,
            checksum_before: first.checksum_before,
            ..last
        }
    );
    assert_eq!(trailer, Trailer { pages: 2, checksum_after: table(&states[3]).checksum() });
    let stored = Decoder::new(&to[..], &key_of(0, 3)).expect("header");
    assert_eq!(stored.header(), &merged_header);
    assert_eq!(stored.check().expect("whole"), trailer);
}

fn key_of(from: u64, to: u64) -> Key {
    let level = Level::new(1).expect("there is one");
    Key::Delta("app".parse().expect("a name"), level, Span::new(from, to).expect("forward"))
}

#[test]
fn those_that_do_not_follow_one_another_are_refused() {
    let first = |epoch, id| {
        empty(
            |header| {
                header.span = Span::new(0, 1).expect("forward");
                (header.epoch, header.database_id) = (epoch, DatabaseId::new(id));
            },
            0,
        )
    };
    let second = |change: &dyn Fn(&mut Header)| empty(change, 0);
    merged(&[first(1, 7), second(&|_| ())], 0).expect("these do");
    let page_size = super::super::PageSize::new(1024).expect("valid");
    for (run, why) in [
        ([first(1, 8), second(&|_| ())], "different histories"),
        ([first(2, 7), second(&|_| ())], "older epoch"),
        ([first(1, 7), second(&|header| header.page_size = page_size)], "different sizes"),
        ([first(1, 7), second(&|header| header.checksum_before = 5.into())], "their checksums differ"),
    ] {
        let told = refusal(&run);
        assert!(told.contains(why) && told.contains("position=`1`"), "{told}");
    }
    let gap = [first(1, 7), delta(2, &[], &[], &[])];
    let run = [(0, &gap[0]), (2, &gap[1])]
        .map(|(from, stored)| Decoder::new(&stored[..], &key(from, from + 1)).expect("header"));
    let told = merge(run.into(), PutId::new(1), 3, Vec::new()).expect_err("a gap").to_string();
    assert!(told.contains("there is a gap") && told.contains("position=`1`"), "{told}");
    merge(Vec::<Decoder<&[u8]>>::new(), PutId::new(1), 3, Vec::new()).expect_err("nothing");
}

#[test]
fn a_damaged_one_is_noticed_though_its_pages_are_not_taken() {
    let states = [pages(&[1, 2]), pages(&[3, 2]), pages(&[4, 2])];
    let mut run = deltas(&states);
    let last = run[0].len() - 1;
    run[0][last] ^= 1;
    assert!(refusal(&run).contains("its digest is another"));
}

#[test]
fn a_page_that_comes_back_without_content_is_refused() {
    let [full, short] = [pages(&[1, 2, 3]), pages(&[1])];
    let nothing_new = forged(
        &header(2, &short, &full),
        &[1],
        Trailer { pages: 1, checksum_after: table(&full).checksum() },
    );
    let run = [delta(0, &[], &full, &[]), delta(1, &full, &short, &[]), nothing_new];
    let told = refusal(&run);
    assert!(told.contains("came back without content: page=`2`"), "{told}");
}

proptest! {
    #[test]
    fn a_merged_delta_leads_where_the_run_leads(states in any_history(), split in 1usize..7, touched in prop::collection::vec(1u32..10, 0..3)) {
        let run: Vec<Vec<u8>> = (0..)
            .zip(states.windows(2))
            .map(|(from, pair)| delta(from, &pair[0], &pair[1], &touched))
            .collect();
        let mut one_by_one = applier(&states[0], 0);
        for (from, stored) in (0..).zip(&run) {
            one_by_one.apply(Decoder::new(&stored[..], &key(from, from + 1)).expect("header")).expect("applied");
        }
        let steps = run.len() as u64;
        let whole = merged(&run, 0).expect("merged");
        let mut at_once = applier(&states[0], 0);
        at_once.apply(Decoder::new(&whole.to[..], &key_of(0, steps)).expect("header")).expect("applied");
        let (Store(expected), _) = one_by_one.into_parts();
        let (Store(found), found_table) = at_once.into_parts();
        prop_assert_eq!(&expected, states.last().expect("some"));
        // It leads there from every state that it passes, too.
        for (position, state) in (0..steps).zip(&states) {
            let mut snapshot = applier(state, position);
            snapshot.apply(Decoder::new(&whole.to[..], &key_of(0, steps)).expect("header")).expect("applied");
            prop_assert_eq!(snapshot.position(), steps);
            prop_assert_eq!(&snapshot.into_parts().0.0, &expected);
        }
        prop_assert_eq!(&found, &expected);
        prop_assert_eq!(found_table, table(&expected));
        // Merged in two halves first, it holds the same pages.
        let split = split.min(run.len());
        let halves = [(0, &run[..split]), (split as u64, &run[split..])];
        let halves: Vec<_> = halves
            .into_iter()
            .filter(|(_, half)| !half.is_empty())
            .map(|(from, half)| (from, from + half.len() as u64, merged(half, from).expect("merged").to))
            .collect();
        let twice = halves.iter().map(|(from, to, stored)| Decoder::new(&stored[..], &key_of(*from, *to)));
        let twice = twice.collect::<Result<Vec<_>>>().expect("headers");
        prop_assert_eq!(merge(twice, PutId::new(11), 3, Vec::new()).expect("merged").to, whole.to);
    }
}
