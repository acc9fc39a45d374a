//! Windows by tables: snapshots as `POSITION@SECOND`, deltas as `FROM-TO`.

use super::*;
use crate::snapshot::Level;

fn time(second: i64) -> Timestamp {
    Timestamp::from_second(second).expect("in range")
}

fn window(snapshots: &str, deltas: &str, begins: i64) -> Window {
    let snapshots: Vec<Anchored> = snapshots
        .split_whitespace()
        .map(|word| {
            let (position, second) = word.split_once('@').expect("two parts");
            let taken_at = time(second.parse().expect("a number"));
            let id = SnapshotId::next(taken_at, None, 0);
            Anchored { id, taken_at, position: position.parse().expect("a number") }
        })
        .collect();
    let deltas: Vec<Listed> = deltas
        .split_whitespace()
        .map(|word| Listed { level: Level::CAPTURED, span: span(word), moments: None })
        .collect();
    Window::of(&snapshots, &deltas, time(begins))
}

fn span(word: &str) -> Span {
    let (from, to) = word.split_once('-').expect("two parts");
    Span::new(from.parse().expect("a number"), to.parse().expect("a number")).expect("forward")
}

/// The seconds at which what the window rests on was taken.
fn bases(snapshots: &str, deltas: &str, begins: i64) -> String {
    let seconds =
        window(snapshots, deltas, begins).bases.into_iter().map(|id| id.time().as_second().to_string());
    seconds.collect::<Vec<_>>().join(" ")
}

#[test]
fn a_window_rests_on_the_newest_snapshot_before_it() {
    assert_eq!(bases("0@10 5@20 9@30", "0-5 5-9 9-12", 25), "20");
    assert_eq!(bases("0@10 5@20 9@30", "0-5 5-9 9-12", 20), "20");
    assert_eq!(bases("0@10 5@20 9@30", "0-5 5-9 9-12", 99), "30");
}

#[test]
fn with_none_before_it_on_the_oldest() {
    assert_eq!(bases("0@10 5@20", "0-5 5-9", 5), "10");
    assert_eq!(bases("4@10 5@20", "0-6", 5), "10");
}

#[test]
fn behind_a_gap_on_the_first_snapshot_there() {
    assert_eq!(bases("0@10 5@20 8@30 9@40", "0-5 5-7 8-9 9-12", 15), "10 30");
    // A delta that leads past a snapshot makes it one of many.
    assert_eq!(bases("0@10 5@20 8@30 9@40", "0-5 5-7 7-9 9-12", 15), "10");
    // What lies before the window rests on nothing.
    assert_eq!(bases("0@10 8@30 9@40", "0-5 8-9 9-12", 45), "40");
}

#[test]
fn without_deltas_it_rests_on_nothing() {
    assert_eq!(bases("0@10 5@20", "", 15), "");
    // A snapshot that nothing leads on from is one of many, too.
    assert_eq!(bases("0@10 8@30", "0-5", 15), "10");
}

#[test]
fn what_leads_to_the_base_and_no_further_is_past() {
    let window = window("0@10 5@20 9@30", "0-5 5-9 3-6", 25);
    let is_past = |word| window.is_past(span(word));
    assert_eq!(["0-5", "4-5", "3-6", "5-6"].map(is_past), [true, true, false, false]);
    let early = self::window("0@10 5@20", "0-5", 5);
    assert!(!early.is_past(span("0-1")), "no snapshot is older than the window");
}

#[test]
fn what_no_snapshot_leads_to_is_not_reached() {
    let window = window("2@10 9@30", "0-1 1-2 2-4 6-7 9-10", 5);
    let is_reached = |word| window.is_reached(span(word));
    assert_eq!(["1-2", "2-4", "6-7", "9-10"].map(is_reached), [false, true, false, true]);
}
