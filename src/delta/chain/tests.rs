//! Plans and windows over listings of all kinds.

use super::*;
use proptest::prelude::*;

fn listed(level: u8, from: u64, to: u64) -> Listed {
    let level = Level::new(level).expect("there is one");
    Listed { level, span: Span::new(from, to).expect("forward"), moments: None }
}

/// Ten deltas as captured, of which some were merged, too.
fn listing() -> Vec<Listed> {
    let captured = (0..10).map(|from| listed(0, from, from + 1));
    captured.chain([listed(1, 0, 3), listed(1, 3, 6), listed(2, 0, 6)]).collect()
}

fn spans(listing: &[Listed], start: u64, target: Target) -> Vec<(u64, u64)> {
    let run = plan(listing, start, target).expect("reached");
    run.iter().map(|delta| (delta.span.from(), delta.span.to())).collect()
}

fn refusal(listing: &[Listed], start: u64, target: Target) -> String {
    let error = plan(listing, start, target).expect_err("not reached");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    error.to_string()
}

#[test]
fn the_fewest_deltas_are_taken_and_none_that_passes_the_target() {
    let all = listing();
    assert_eq!(spans(&all, 0, Target::Position(6)), [(0, 6)]);
    assert_eq!(spans(&all, 0, Target::Position(5)), [(0, 3), (3, 4), (4, 5)]);
    assert_eq!(spans(&all, 2, Target::Position(6)), [(0, 6)], "the first may begin before the snapshot");
    assert_eq!(spans(&all, 2, Target::Position(5)), [(0, 3), (3, 4), (4, 5)]);
    assert_eq!(spans(&all, 7, Target::Position(9)), [(7, 8), (8, 9)]);
    assert_eq!(spans(&all, 0, Target::Latest), [(0, 6), (6, 7), (7, 8), (8, 9), (9, 10)]);
    assert_eq!(spans(&all, 10, Target::Latest), []);
}

#[test]
fn a_long_step_that_leads_to_a_dead_end_is_not_taken() {
    let all = [listed(1, 0, 10), listed(0, 0, 4), listed(1, 4, 20)];
    assert_eq!(spans(&all, 0, Target::Latest), [(0, 4), (4, 20)]);
}

#[test]
fn where_nothing_leads_to_the_target_it_is_said_why() {
    let mut all = listing();
    all.retain(|delta| delta.span.from() != 6);
    assert!(refusal(&all, 0, Target::Latest).ends_with(
        "to position=`10` from the snapshot at position=`0`; they lead up to position=`6`: a gap follows, up to position=`7`"
    ));
    assert!(refusal(&all, 7, Target::Position(11)).ends_with("up to position=`10`: nothing follows"));
    assert!(refusal(&all, 7, Target::Position(7)).ends_with("the snapshot is a later one"));
    let merged = [listed(2, 0, 6), listed(0, 6, 7)];
    let why = "it went into the merged delta span=`0000000000000000-0000000000000006`";
    let told = refusal(&merged, 0, Target::Position(5));
    assert!(told.ends_with(why) && told.contains("lead up to position=`0`"), "{told}");
}

#[test]
fn windows_end_where_no_delta_leads_and_begin_at_a_snapshot() {
    let window = |from, to| Window { from, to, moments: None };
    let mut all = listing();
    assert_eq!(windows(&[0], &all), [window(0, 10)]);
    assert_eq!(gaps(&windows(&[0], &all), &all), []);
    all.retain(|delta| delta.span.from() != 6);
    let lost = windows(&[0], &all);
    assert_eq!(
        (&lost[..], &gaps(&lost, &all)[..]),
        (&[window(0, 6)][..], &[Gap { after: 6, until: 10 }][..])
    );
    let found = windows(&[0, 8], &all);
    assert_eq!(found, [window(0, 6), window(8, 10)]);
    assert_eq!(gaps(&found, &all), [Gap { after: 6, until: 8 }]);
    // A snapshot within a merged delta, from which on there is something.
    assert_eq!(windows(&[5], &[listed(2, 0, 6), listed(0, 6, 7)]), [window(5, 7)]);
    // A snapshot no delta goes on from, and deltas before the first one.
    assert_eq!(windows(&[2, 12], &all), [window(2, 6), window(12, 12)]);
    assert_eq!((windows(&[], &all), gaps(&[], &all)), (vec![], vec![]));
}

#[test]
fn a_window_shows_the_moments_that_are_known() {
    let second = |second| Timestamp::from_second(second).expect("a time");
    let mut all = listing();
    all.truncate(3);
    for (delta, first) in all.iter_mut().skip(1).zip([100, 40]) {
        delta.moments = Some(Moments { first: second(first), last: second(first + 5) });
    }
    let moments = windows(&[0], &all)[0].moments;
    assert_eq!(moments, Some(Moments { first: second(40), last: second(105) }), "a clock may go back");
}

proptest! {
    #[test]
    fn a_plan_is_contiguous_and_no_shorter_one_leads_there(
        spans in prop::collection::vec((0u64..12, 1u64..6), 0..20),
        start in 0u64..6,
        end in 0u64..18,
    ) {
        let all: Vec<Listed> = spans.iter().map(|(from, length)| listed(0, *from, from + length)).collect();
        // The number of steps to each position, found by trying every delta until nothing changes.
        let first = all.iter().map(|delta| delta.span).filter(|span| span.from() <= start && span.to() > start);
        let mut steps: BTreeMap<u64, usize> = first.map(|span| (span.to(), 1)).collect();
        loop {
            let before = steps.clone();
            for Listed { span, .. } in &all {
                let Some(more) = steps.get(&span.from()).map(|steps| steps + 1) else { continue };
                steps.entry(span.to()).and_modify(|known| *known = more.min(*known)).or_insert(more);
            }
            if steps == before {
                break;
            }
        }
        match plan(&all, start, Target::Position(end)) {
            Ok(run) => {
                prop_assert_eq!(Some(&run.len()), steps.get(&end));
                let mut position = start;
                for (nth, delta) in run.iter().enumerate() {
                    let goes_on = delta.span.from() == position || nth == 0 && delta.span.from() < position;
                    prop_assert!(goes_on);
                    position = delta.span.to();
                }
                prop_assert_eq!(position, end);
            }
            Err(error) => {
                prop_assert!(end <= start || !steps.contains_key(&end), "{}", error);
            }
        }
    }
}
