//! Which deltas a moment takes, where some were merged.

use super::*;
use crate::catalog::fixture::{at, catalog, manifest, publish};
use crate::delta::fixture::{header, table};
use crate::delta::{Encoder, Header};
use crate::snapshot::{Anchor, Level, Span};
use crate::storage::Memory;

fn minute(minute: u64) -> Timestamp {
    at(&format!("2026-11-22T10:{minute:02}:00Z"))
}

/// A snapshot at position 0 and at ten o'clock, and deltas, each `LEVEL:FROM-TO`. In each minute one was captured.
async fn stored(deltas: &str) -> Catalog {
    let catalog = catalog(Memory::default());
    let epoch = catalog.claim_epoch("test", minute(0)).await.expect("claimed");
    let mut snapshot = manifest(minute(0), epoch, None, &[]);
    snapshot.anchor = Some(Anchor { position: 0, checksum: 0 });
    publish(&catalog, &snapshot).await;
    for word in deltas.split_whitespace() {
        let (level, span) = word.split_once(':').expect("two parts");
        let (from, to) = span.split_once('-').expect("two parts");
        let [from, to] = [from, to].map(|number| number.parse().expect("a number"));
        let span = Span::new(from, to).expect("forward");
        let (first_commit, last_commit) = (minute(from + 1), minute(to));
        let header = Header { span, first_commit, last_commit, ..header(from, &[], &[]) };
        let encoder = Encoder::new(Vec::new(), &header, 1).expect("begun");
        let (_, bytes) = encoder.finish(table(&[]).checksum()).expect("ended");
        let level = Level::new(level.parse().expect("a number")).expect("there is one");
        catalog.create_merged(level, span, bytes.into()).await.expect("stored");
    }
    catalog
}

/// What a target takes, as `LEVEL:FROM-TO`, and the minute it shows.
async fn found(catalog: &Catalog, target: &Target) -> (String, i64) {
    let moment = Moment::find(target, catalog).await.expect("found");
    let names: Vec<String> = moment
        .deltas
        .iter()
        .map(|delta| format!("{}:{}-{}", delta.level, delta.span.from(), delta.span.to()))
        .collect();
    (names.join(" "), moment.shows.duration_since(minute(0)).as_mins())
}

async fn found_at(catalog: &Catalog, time: u64) -> (String, i64) {
    found(catalog, &Target::At(minute(time))).await
}

fn is(deltas: &str, shows: i64) -> (String, i64) {
    (deltas.to_owned(), shows)
}

#[tokio::test]
async fn a_moment_within_what_was_merged_takes_what_that_was_made_of() {
    let catalog = stored("0:0-1 0:1-2 0:2-3 0:3-4 0:4-5 0:5-6 1:0-3 1:3-6").await;
    assert_eq!(found_at(&catalog, 2).await, is("0:0-1 0:1-2", 2));
    assert_eq!(found_at(&catalog, 4).await, is("1:0-3 0:3-4", 4));
    assert_eq!(found_at(&catalog, 59).await, is("1:0-3 1:3-6", 6));
    assert_eq!(found(&catalog, &Target::Newest).await, is("1:0-3 1:3-6", 6));
}

#[tokio::test]
async fn where_that_is_gone_it_is_the_last_state_before() {
    let catalog = stored("0:3-4 0:4-5 0:5-6 1:0-3 1:3-6 2:0-9 1:6-9").await;
    assert_eq!(found_at(&catalog, 0).await, is("", 0));
    assert_eq!(found_at(&catalog, 2).await, is("", 0));
    assert_eq!(found_at(&catalog, 3).await, is("1:0-3", 3));
    assert_eq!(found_at(&catalog, 5).await, is("1:0-3 0:3-4 0:4-5", 5));
    assert_eq!(found_at(&catalog, 8).await, is("1:0-3 1:3-6", 6));
    assert_eq!(found_at(&catalog, 9).await, is("2:0-9", 9));
    assert_eq!(found(&catalog, &Target::Newest).await, is("2:0-9", 9));
}
