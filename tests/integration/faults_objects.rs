//! Objects that somebody else put into storage, and clocks that are wrong.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::time::{Duration, Instant};

use jiff::{SignedDuration, Timestamp};
use lifeboat::error::ErrorKind;
use lifeboat::retention::{self, Policy, SnapshotFacts};
use lifeboat::snapshot::SnapshotId;
use lifeboat::verify;

use crate::support::lab::Lab;

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_of_any_hostile_shape_is_refused_at_once() {
    let lab = Lab::new();
    drop(lab.database("app.db", "CREATE TABLE t(x); INSERT INTO t VALUES (1)"));
    let manifest = lab.stored(&lab.path("app.db")).await;
    let path = lab.path("backups").join(manifest.key().path());
    let good = fs::read_to_string(&path).expect("it is there");
    let id = manifest.id.as_str();
    let replaced = |old: &str, new: &str| {
        assert!(good.contains(old), "{old} is in {good}");
        good.replacen(old, new, 1).into_bytes()
    };
    let hostile: Vec<(&str, Vec<u8>)> = vec![
        ("nothing", Vec::new()),
        ("not UTF-8", vec![0xff; 100]),
        ("another type", b"null".to_vec()),
        ("lists in lists", [b"[".repeat(30_000), b"]".repeat(30_000)].concat()),
        ("objects in objects", br#"{"format":"#.repeat(6_000)),
        ("a field twice", replaced(r#""epoch": 1,"#, r#""epoch": 1, "epoch": 1,"#)),
        ("a field nobody knows", replaced(r#""epoch": 1,"#, r#""epoch": 1, "command": "x","#)),
        ("a number without end", replaced(r#""epoch": 1,"#, r#""epoch": 1e999,"#)),
        ("more than fits", replaced(r#""epoch": 1,"#, r#""epoch": 99999999999999999999999,"#)),
        ("less than nothing", replaced(r#""epoch": 1,"#, r#""epoch": -1,"#)),
        ("not a number", replaced(r#""epoch": 1,"#, r#""epoch": NaN,"#)),
        ("a path", replaced(id, "../../../../etc/passwd")),
        ("an absolute path", replaced(id, "/etc/passwd")),
        ("a name that leads out", replaced(r#""database": "app""#, r#""database": "../app""#)),
        ("something behind the end", [good.as_bytes(), b"{}"].concat()),
    ];
    for (what, bytes) in hostile {
        fs::write(&path, bytes).expect("written");
        let error = lab.catalog().manifest(&manifest.id).await.expect_err(what);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{what}: {error:?}");
        assert!(error.to_string().contains(id), "{what}: {error}");
        let listing = lab.catalog().list().await.expect("the others are listed");
        assert_eq!((listing.snapshots.len(), listing.damaged.len()), (0, 1), "{what}");
    }
    // 4 GiB of nothing: only as much is read as a record can have.
    File::create(&path).and_then(|file| file.set_len(4 << 30)).expect("sparse");
    let began = Instant::now();
    let error = lab.catalog().manifest(&manifest.id).await.expect_err("too large");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{error:?}");
    assert!(began.elapsed() < Duration::from_secs(5), "{:?}", began.elapsed());
    fs::write(&path, good).expect("written");
    assert_eq!(lab.catalog().manifest(&manifest.id).await.expect("as stored"), manifest);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_manifest_that_describes_another_database_fails_its_proof() {
    let lab = Lab::new();
    drop(lab.database("app.db", "PRAGMA user_version=7; CREATE TABLE t(x); INSERT INTO t VALUES (1)"));
    let manifest = lab.stored(&lab.path("app.db")).await;
    verify::run(&lab.catalog(), &manifest, &lab.resources()).await.expect("as stored");
    let path = lab.path("backups").join(manifest.key().path());
    let good = fs::read_to_string(&path).expect("it is there");
    for (fact, forged) in [
        (r#""user_version": 7"#, r#""user_version": 8"#),
        (r#""application_id": 0"#, r#""application_id": 1"#),
    ] {
        assert!(good.contains(fact), "{fact} is in {good}");
        fs::write(&path, good.replacen(fact, forged, 1)).expect("written");
        let read = lab.catalog().manifest(&manifest.id).await.expect("it does not contradict itself");
        let failure = verify::run(&lab.catalog(), &read, &lab.resources()).await.expect_err(forged);
        assert_eq!(failure.error.kind(), ErrorKind::Corrupt, "{forged}: {failure:?}");
        assert!(failure.error.to_string().contains("does not describe"), "{forged}: {failure:?}");
    }
}

fn fact(taken_at: Timestamp, random: u32) -> SnapshotFacts {
    SnapshotFacts {
        id: SnapshotId::next(taken_at, None, random),
        taken_at,
        flags: Vec::new(),
        is_proven: false,
        is_refuted: false,
        is_head: false,
        epoch: 1,
        is_base: false,
    }
}

#[test]
fn a_flood_of_snapshots_beyond_the_newest_pushes_nothing_out() {
    let now: Timestamp = "2026-11-21T14:05:00Z".parse().expect("a time");
    let ago = |hours: i64| now - SignedDuration::from_hours(hours);
    let mut ours: Vec<SnapshotFacts> = (1..2_000).map(|hours| fact(ago(hours), 0)).collect();
    ours[0].is_head = true;
    ours[3].is_proven = true;
    let policy = Policy::default();
    let kept = |snapshots: &[SnapshotFacts]| -> BTreeSet<SnapshotId> {
        let plan = retention::plan(snapshots, &policy, now, Duration::from_secs(3_600));
        let kept = plan.decisions.into_iter().filter(|decision| !decision.keep.is_empty());
        kept.map(|decision| decision.id).filter(|id| ours.iter().any(|own| own.id == *id)).collect()
    };
    let expected = kept(&ours);
    assert!(expected.len() > 20, "{expected:?}");
    // From a moment after the newest until a year from now, and each says that it is proven.
    let fakes = (1..3_000).map(|number| SnapshotFacts {
        is_proven: true,
        ..fact(ago(1) + SignedDuration::from_mins(number * 175), 1)
    });
    let flooded: Vec<SnapshotFacts> = ours.iter().cloned().chain(fakes).collect();
    assert_eq!(kept(&flooded), expected);
}

#[tokio::test]
async fn no_clock_decides_who_may_publish() {
    let lab = Lab::new();
    let catalog = lab.catalog();
    let at = |text: &str| -> Timestamp { text.parse().expect("a time") };
    let late =
        catalog.claim_epoch("a clock that is ahead", at("2099-01-01T00:00:00Z")).await.expect("claimed");
    let early =
        catalog.claim_epoch("a clock that is behind", at("1999-01-01T00:00:00Z")).await.expect("claimed");
    assert!(early > late, "the later claim is the higher one, whatever the clocks say");
    let fenced = catalog.release_epoch(late, at("2099-01-02T00:00:00Z")).await.expect_err("overtaken");
    assert_eq!(fenced.kind(), ErrorKind::Fenced);
    catalog.release_epoch(early, at("1998-01-01T00:00:00Z")).await.expect("its own");
}
