//! Which moments can be restored, where there are gaps, and what is said of those that cannot.

use std::fs;
use std::path::PathBuf;

use lifeboat::clock::Timestamp;
use lifeboat::error::{Error, ErrorKind};
use lifeboat::restore::{Target, when};

use crate::support::line::{Line, time};

fn at(clock: &str) -> Target {
    Target::At(time(clock))
}

/// The target that a message names in a command.
fn named(error: &Error) -> Target {
    let chain = error.chain();
    let (_, command) = chain.split_once("`lifeboat restore ").expect("a command");
    let (arguments, _) = command.split_once('`').expect("it ends");
    match arguments.split_once(' ').expect("a flag and a value") {
        ("--at", time) => Target::At(when(time, Timestamp::MAX).expect("a time")),
        ("--snapshot", id) => Target::Snapshot(id.parse().expect("an id")),
        other => panic!("{other:?}"),
    }
}

/// 12:00 to 12:00:02 with two rows; then two rows that nobody captured; from 13:00 on two more.
async fn with_gap() -> Line {
    let mut line = Line::new().await;
    line.commit("12:00:01").await;
    line.commit("12:00:02").await;
    line.stop();
    line.write();
    line.write();
    line.start("13:00:00").await;
    line.commit("13:00:01").await;
    line.commit("13:00:02").await;
    line
}

#[tokio::test(flavor = "multi_thread")]
async fn every_moment_of_a_window_is_restored_as_it_was() {
    let line = with_gap().await;
    for (clock, rows) in [
        ("12:00:00", 0),
        ("12:00:00.999", 0),
        ("12:00:01", 1),
        ("12:00:01.500", 1),
        ("12:00:02", 2),
        ("13:00:00", 4),
        ("13:00:01", 5),
        ("13:00:02", 6),
        ("23:00:00", 6),
    ] {
        assert_eq!(line.restored(&at(clock)).await.expect(clock), rows, "{clock}");
    }
    assert_eq!(line.restored(&Target::Newest).await.expect("restored"), 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn windows_and_gaps_are_told_with_their_times() {
    let line = with_gap().await;
    let catalog = line.lab.catalog();
    let snapshots = catalog.list().await.expect("listed").snapshots;
    let reach = catalog.reach(&snapshots).await.expect("read").expect("there are deltas");
    let windows: Vec<_> = reach.windows.iter().map(|window| (window.from, window.until)).collect();
    assert_eq!(
        windows,
        [(time("12:00:00"), time("12:00:02")), (time("13:00:00"), time("13:00:02"))],
        "a start that could not go on claims no time of its own"
    );
    let gaps: Vec<_> = reach.gaps.iter().map(|gap| (gap.after, gap.until)).collect();
    assert_eq!(gaps, [(time("12:00:02"), time("13:00:00"))]);
    assert!(reach.windows.iter().all(|window| window.deltas >= 2 && window.delta_bytes > 200));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_in_a_gap_is_refused_and_the_one_before_is_named() {
    let line = with_gap().await;
    for clock in ["12:00:02.001", "12:30:00", "12:59:59.999"] {
        let error = line.find(&at(clock)).await.expect_err(clock);
        assert_eq!(error.kind(), ErrorKind::NotFound);
        for part in [
            "gap from 2026-11-21T12:00:02Z to 2026-11-21T13:00:00Z",
            "from 2026-11-21T12:00:00Z to 2026-11-21T12:00:02Z",
            "from 2026-11-21T13:00:00Z to 2026-11-21T13:00:02Z",
        ] {
            assert!(error.chain().contains(part), "{clock}: {error}");
        }
        assert_eq!(line.restored(&named(&error)).await.expect("what is named is there"), 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_before_all_snapshots_names_the_windows() {
    let line = with_gap().await;
    let error = line.find(&at("11:59:59")).await.expect_err("too early");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    for part in ["no snapshot is that old", "from 2026-11-21T12:00:00Z to 2026-11-21T12:00:02Z"] {
        assert!(error.chain().contains(part), "{error}");
    }
}

/// What nobody captured between has only its snapshots.
#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_within_a_gap_is_named_if_it_is_nearer() {
    let mut line = Line::new().await;
    line.commit("12:00:01").await;
    line.stop();
    line.write();
    let uncaptured = line.snapshot("12:30:00").await;
    assert_eq!(uncaptured.anchor, None);
    line.write();
    line.start("13:00:00").await;
    line.commit("13:00:01").await;
    let error = line.find(&at("12:45:00")).await.expect_err("in a gap");
    assert_eq!(named(&error), Target::Snapshot(uncaptured.id));
    assert_eq!(line.restored(&named(&error)).await.expect("restored"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_delta_begins_a_gap_behind_the_last_window() {
    let line = Line::new().await;
    for clock in ["12:00:01", "12:00:02", "12:00:03"] {
        line.commit(clock).await;
    }
    fs::remove_file(deltas(&line)[1].clone()).expect("removed");
    let error = line.find(&at("12:00:02")).await.expect_err("in a gap");
    assert_eq!(error.kind(), ErrorKind::NotFound);
    assert!(error.chain().contains("gap from 2026-11-21T12:00:01Z to 2026-11-21T12:00:03Z"), "{error}");
    assert_eq!(line.restored(&named(&error)).await.expect("restored"), 1);
    assert_eq!(line.restored(&at("12:00:01")).await.expect("restored"), 1);
}

/// The deltas in storage, by position.
fn deltas(line: &Line) -> Vec<PathBuf> {
    let folder = line.lab.path("backups/app/deltas/0");
    let mut paths: Vec<PathBuf> =
        fs::read_dir(folder).expect("a folder").map(|entry| entry.expect("an entry").path()).collect();
    paths.sort();
    paths
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_prove_names_the_newest_moment_that_does() {
    let clocks = ["12:00:01", "12:00:02", "12:00:03"];
    // In the format byte, in the pages, in the checksum of the database before, and in the digest.
    for place in ["format", "pages", "before", "digest"] {
        for damaged in 0..clocks.len() {
            let line = Line::new().await;
            for clock in clocks {
                line.commit(clock).await;
            }
            let path = &deltas(&line)[damaged];
            let mut bytes = fs::read(path).expect("readable");
            let at = match place {
                "format" => 3,
                "before" => 77,
                "pages" => 120,
                _ => bytes.len() - 1,
            };
            bytes[at] ^= 1;
            fs::write(path, bytes).expect("written");

            let error = line.restored(&Target::Newest).await.expect_err("refused");
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{error}");
            let rows = line.restored(&named(&error)).await.unwrap_or_else(|error| panic!("{place}: {error}"));
            assert_eq!(rows, damaged as i64, "{place}: all that proves: {}", error.chain());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_moment_that_may_be_in_a_damaged_delta_is_no_older_one() {
    let line = Line::new().await;
    for clock in ["12:00:01", "12:00:02", "12:00:03"] {
        line.commit(clock).await;
    }
    let path = &deltas(&line)[1];
    fs::write(path, b"no delta").expect("written");
    for clock in ["12:00:01.500", "12:00:02"] {
        let error = line.find(&at(clock)).await.expect_err(clock);
        assert_eq!((error.kind(), named(&error)), (ErrorKind::Corrupt, at("12:00:01")), "{error}");
    }
    assert_eq!(line.restored(&at("12:00:01")).await.expect("restored"), 1);
    assert_eq!(line.restored(&at("12:00:00.500")).await.expect("restored"), 0);
}
