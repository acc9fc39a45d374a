//! Pruning over storage in memory, whole and interrupted.

use futures::FutureExt;

use super::*;
use crate::catalog::fixture::{
    Hooked, Moment, at, catalog, listed_is_restorable, manifest, proof, publish, with_snapshots,
};
use crate::snapshot::{Anchor, DatabaseId, Flag, Identity, Level, Proof, Record, Span};
use crate::storage::{Memory, whole};

const DAY: Duration = Duration::from_secs(86_400);
/// Long after every object in memory was written.
const LATER: &str = "2099-01-01T00:00:00Z";
const TIMES: [&str; 5] = [
    "2026-11-20T10:00:00Z",
    "2026-11-20T11:00:00Z",
    "2026-11-21T10:00:00Z",
    "2026-11-21T11:00:00Z",
    "2026-11-22T10:00:00Z",
];

/// Five snapshots, all proven; data of an upload that died, and a proof of a snapshot long gone.
async fn stocked() -> (Memory, Catalog, Vec<Manifest>) {
    let memory = Memory::default();
    let (catalog, snapshots) = with_snapshots(&memory, &TIMES).await;
    for snapshot in &snapshots {
        catalog.write_proof(&proof(&snapshot.id, at(LATER))).await.expect("proven");
    }
    let orphan = manifest(at("2026-11-20T12:00:00Z"), 7, None, &[]);
    catalog.storage().create(&orphan.data_key(), whole("half done")).await.expect("stored");
    let gone = manifest(at("2026-11-19T12:00:00Z"), 7, None, &[]);
    catalog.write_proof(&proof(&gone.id, at(LATER))).await.expect("written");
    (memory, catalog, snapshots)
}

fn rules(policy: &Policy) -> Rules<'_> {
    Rules { policy, point_in_time: DAY, safety_age: DAY }
}

async fn plan_later(catalog: &Catalog) -> PrunePlan {
    plan(catalog, rules(&"3d".parse().expect("valid")), at(LATER)).await.expect("planned")
}

fn ids(removals: &[Removal]) -> Vec<&str> {
    removals.iter().map(|removal| removal.id.as_str()).collect()
}

fn paths(memory: &Memory) -> Vec<String> {
    memory.objects().into_iter().map(|(path, _)| path).collect()
}

#[tokio::test]
async fn a_plan_is_shown_and_carried_out() {
    let (memory, catalog, _) = stocked().await;
    let before = memory.objects();
    let plan = plan_later(&catalog).await;
    assert_eq!(memory.objects(), before, "planning changes nothing");
    insta::assert_snapshot!(plan, @r"
    keep    20261122T100000.000Z-00000001  daily 2026-11-22, newest, last proven
    keep    20261121T110000.000Z-00000001  daily 2026-11-21
    remove  20261121T100000.000Z-00000001
    keep    20261120T110000.000Z-00000001  daily 2026-11-20
    remove  20261120T100000.000Z-00000001
    remove  20261120T120000.000Z-00000007  data without a manifest, 9 B
    remove  20261119T120000.000Z-00000007  proof of a snapshot that is gone
    2 of 5 snapshots, 1 orphans and 1 stale proofs to remove: 137 B
    ");

    let (report, ended) = apply(&catalog, &plan, 1).await;
    ended.expect("applied");
    insta::assert_json_snapshot!(report, @r#"
    {
      "removed": [
        "20261120T100000.000Z-00000001",
        "20261121T100000.000Z-00000001"
      ],
      "orphans": [
        "20261120T120000.000Z-00000007"
      ],
      "stale_proofs": [
        "20261119T120000.000Z-00000007"
      ],
      "deltas": 0,
      "bytes_freed": 137,
      "refused": [],
      "left": 0
    }
    "#);
    insta::assert_snapshot!(paths(&memory).join("\n"), @r"
    app/epochs/0000000001.json
    app/head.json
    app/manifests/20261120T110000.000Z-00000001.json
    app/manifests/20261121T110000.000Z-00000001.json
    app/manifests/20261122T100000.000Z-00000001.json
    app/proofs/20261120T110000.000Z-00000001.json
    app/proofs/20261121T110000.000Z-00000001.json
    app/proofs/20261122T100000.000Z-00000001.json
    app/snapshots/20261120T110000.000Z-00000001.db.zst
    app/snapshots/20261121T110000.000Z-00000001.db.zst
    app/snapshots/20261122T100000.000Z-00000001.db.zst
    ");
    assert!(plan_later(&catalog).await.is_empty());
}

#[tokio::test]
async fn wherever_a_run_stops_what_is_listed_can_be_restored_and_the_next_run_finishes() {
    let finished = {
        let (memory, catalog, _) = stocked().await;
        apply(&catalog, &plan_later(&catalog).await, 1).await.1.expect("applied");
        paths(&memory)
    };
    let mut stops = 0;
    for moment in [Moment::Before, Moment::After] {
        for calls in 0.. {
            let (memory, sound, _) = stocked().await;
            let plan = plan_later(&sound).await;
            let stopping = catalog(Hooked::stopping(&memory, calls, moment));
            let (report, ended) = apply(&stopping, &plan, 1).await;
            assert!(listed_is_restorable(&memory), "{moment:?} call {calls}");
            if ended.is_ok() {
                assert_eq!(report.left, 0);
                break;
            }
            stops += 1;
            assert!(report.left > 0, "{moment:?} call {calls}");
            apply(&sound, &plan_later(&sound).await, 1).await.1.expect("the next run");
            assert_eq!(paths(&memory), finished, "{moment:?} call {calls}");
        }
    }
    // Two snapshots (head and three deletes), an orphan (head, look, delete), a proof (head, delete).
    assert_eq!(stops, 2 * (2 * 4 + 3 + 2));
}

#[tokio::test]
async fn a_fenced_writer_removes_nothing() {
    let (memory, old, _) = stocked().await;
    let plan = plan_later(&old).await;
    catalog(memory.clone()).claim_epoch("newer", at(LATER)).await.expect("claimed");
    let before = memory.objects();
    let (report, ended) = apply(&old, &plan, 1).await;
    assert_eq!(ended.expect_err("fenced").kind(), ErrorKind::Fenced);
    assert_eq!(memory.objects(), before);
    assert_eq!(report, Report { left: 4, ..Report::default() });
}

#[tokio::test]
async fn a_writer_fenced_midway_stops_there() {
    let (memory, catalog_before, _) = stocked().await;
    let plan = plan_later(&catalog_before).await;
    let beside = memory.clone();
    let overtaken = catalog(Hooked::new(&memory, move |moment, operation, key| {
        let first_proof = (moment, operation) == (Moment::After, "delete") && matches!(key, Key::Proof(..));
        let newer = catalog(beside.clone());
        async move {
            match first_proof {
                true => newer.claim_epoch("newer", at(LATER)).await.map(drop),
                false => Ok(()),
            }
        }
        .boxed()
    }));
    let (report, ended) = apply(&overtaken, &plan, 1).await;
    assert_eq!(ended.expect_err("fenced").kind(), ErrorKind::Fenced);
    assert_eq!((report.removed.len(), report.left), (1, 3));
}

#[tokio::test]
async fn a_plan_made_before_the_newest_snapshot_is_not_carried_out() {
    let (memory, catalog, snapshots) = stocked().await;
    let plan = plan_later(&catalog).await;
    let parent = snapshots.last().map(|newest| &newest.id);
    publish(&catalog, &manifest(at("2026-11-23T10:00:00Z"), 1, parent, &[Flag::Empty])).await;
    let before = memory.objects();
    let (_, ended) = apply(&catalog, &plan, 1).await;
    assert_eq!(ended.expect_err("out of date").kind(), ErrorKind::Conflict);
    assert_eq!(memory.objects(), before);
    // With the newest one flagged, a new plan keeps every snapshot.
    assert!(plan_later(&catalog).await.removals.is_empty());
}

#[tokio::test]
async fn without_a_head_nothing_is_removed() {
    let (memory, catalog, _) = stocked().await;
    let planned = plan_later(&catalog).await;
    catalog.storage().delete(&Key::Head(catalog.database().clone())).await.expect("deleted");
    let before = memory.objects();
    let (_, ended) = apply(&catalog, &planned, 1).await;
    assert_eq!(ended.expect_err("no head").kind(), ErrorKind::Conflict);
    assert_eq!(memory.objects(), before);
    assert!(plan_later(&catalog).await.is_empty());
}

#[tokio::test]
async fn a_refused_delete_is_reported_and_passed_over() {
    let (memory, sound, snapshots) = stocked().await;
    let plan = plan_later(&sound).await;
    let refused = [snapshots[0].key(), snapshots[2].data_key()];
    let strict = catalog(Hooked::new(&memory, move |moment, operation, key| {
        let denied = (moment, operation) == (Moment::Before, "delete") && refused.contains(key);
        let answer = if denied { Err(Error::new(ErrorKind::Denied, "not permitted")) } else { Ok(()) };
        async move { answer }.boxed()
    }));
    let (report, ended) = apply(&strict, &plan, 1).await;
    ended.expect("the rest is removed");
    let reported: Vec<&str> = report.refused.iter().map(|refusal| refusal.path.as_str()).collect();
    assert_eq!(reported, [snapshots[0].key().path(), snapshots[2].data_key().path()]);
    assert_eq!(report.removed, [snapshots[2].id.clone()]);
    assert_eq!((report.orphans.len(), report.stale_proofs.len(), report.left), (1, 1, 0));
    assert!(listed_is_restorable(&memory));
}

#[tokio::test]
async fn data_that_may_be_on_its_way_is_left_alone() {
    let (_, catalog, snapshots) = stocked().await;
    let parent = snapshots.last().map(|newest| &newest.id);
    let coming = manifest(at("2026-11-22T11:00:00Z"), 1, parent, &[]);
    catalog.storage().create(&coming.data_key(), whole("half done")).await.expect("stored");
    // Beyond the head: not even decades later.
    assert_eq!(ids(&plan_later(&catalog).await.orphans), ["20261120T120000.000Z-00000007"]);
    // Below it: not before the safety age, by the storage's clock.
    let policy = Policy::default();
    #[expect(clippy::disallowed_methods, reason = "the storage in memory stamps with the machine's clock")]
    let now = Timestamp::now();
    let young = plan(&catalog, rules(&policy), now).await.expect("planned");
    assert!(young.orphans.is_empty());
    let old = plan(&catalog, rules(&policy), now + DAY).await.expect("planned");
    assert_eq!(old.orphans.len(), 1);
}

#[tokio::test]
async fn what_is_damaged_is_left_alone_and_counts_for_nothing() {
    let (memory, catalog, snapshots) = stocked().await;
    memory.overwrite(&snapshots[3].key().path(), "torn");
    catalog.storage().delete(&snapshots[1].data_key()).await.expect("deleted");
    let plan = plan_later(&catalog).await;
    // The newest of each day are broken: the ones before stand for these days.
    assert!(plan.removals.is_empty(), "{plan}");
    let damaged: Vec<&str> = plan.damaged.iter().map(|damage| damage.path.as_str()).collect();
    assert_eq!(damaged, [snapshots[3].key().path(), snapshots[1].data_key().path()]);
    assert_eq!(ids(&plan.orphans), ["20261120T120000.000Z-00000007"]);
    assert_eq!(plan.stale_proofs.len(), 1);
}

#[tokio::test]
async fn a_broken_head_freezes_everything() {
    let (memory, catalog, snapshots) = stocked().await;
    memory.overwrite(&snapshots[4].data_key().path(), "cut");
    let plan = plan_later(&catalog).await;
    assert!(plan.is_empty(), "{plan}");
    assert_eq!(plan.damaged[0].what, "the data has 3 bytes, not 64");
}

#[tokio::test]
async fn data_does_not_follow_manifests_that_somebody_deleted() {
    let memory = Memory::default();
    let times: Vec<String> = (10..30).map(|minute| format!("2026-11-21T10:{minute}:00Z")).collect();
    let times: Vec<&str> = times.iter().map(String::as_str).collect();
    let (catalog, snapshots) = with_snapshots(&memory, &times).await;
    for snapshot in &snapshots {
        catalog.storage().delete(&snapshot.key()).await.expect("deleted");
    }
    publish(&catalog, &manifest(at("2026-11-22T10:00:00Z"), 1, None, &[])).await;
    let plan = plan_later(&catalog).await;
    assert!(plan.is_empty(), "{plan}");
    insta::assert_json_snapshot!(plan.damaged, @r#"
    [
      {
        "path": "app/snapshots/",
        "what": "20 objects have no manifest: were manifests deleted? All are left alone"
      }
    ]
    "#);
}

#[tokio::test]
async fn one_run_removes_a_limited_number() {
    let memory = Memory::default();
    let start = at("2026-11-21T00:00:00Z");
    let times: Vec<String> =
        (0..=REMOVALS_MAX as u32 + 5).map(|nth| (start + nth * DAY / 2880).to_string()).collect();
    let times: Vec<&str> = times.iter().map(String::as_str).collect();
    let (catalog, snapshots) = with_snapshots(&memory, &times).await;
    let newest = &snapshots[snapshots.len() - 1].id;
    catalog.write_proof(&proof(newest, at(LATER))).await.expect("proven");
    let mut left = Vec::new();
    for _ in 0..3 {
        let (report, ended) = apply(&catalog, &plan_later(&catalog).await, 1).await;
        ended.expect("applied");
        left.push((report.removed.len(), report.left));
    }
    assert_eq!(left, [(REMOVALS_MAX, 5), (5, 0), (0, 0)]);
}

#[tokio::test]
async fn the_daemon_can_spawn_both_calls() {
    fn spawnable<T: Send>(_: &T) {}
    let (_, catalog, _) = stocked().await;
    let policy = Policy::default();
    spawnable(&plan(&catalog, rules(&policy), at(LATER)));
    spawnable(&apply(&catalog, &plan_later(&catalog).await, 1));
}

#[test]
fn a_report_tells_what_was_not_done() {
    let [one, two] =
        ["2026-11-20T10:00:00Z", "2026-11-20T11:00:00Z"].map(|time| manifest(at(time), 1, None, &[]).id);
    let done = Report { removed: vec![one], stale_proofs: vec![two], bytes_freed: 2048, ..Report::default() };
    assert_eq!(done.to_string(), "removed 1 snapshots, 0 orphans and 1 stale proofs: 2.0 KiB\n");
    let refused = vec![Damage { path: "app/manifests/x.json".to_owned(), what: "not allowed".to_owned() }];
    let partial = Report { refused, left: 3, ..done };
    assert_eq!(
        partial.to_string(),
        "refused app/manifests/x.json  not allowed\n\
         removed 1 snapshots, 0 orphans and 1 stale proofs: 2.0 KiB; storage refused to delete 1 objects; \
         3 left for the next run\n"
    );
}

#[tokio::test]
async fn of_a_history_in_place_of_ours_nothing_is_removed() {
    let (memory, catalog, _) = stocked().await;
    let ours = catalog.ensure_identity(at(TIMES[0]), 1).await.expect("made");
    let theirs = Identity { database_id: DatabaseId::new(2), ..ours };
    memory.overwrite("app/identity.json", theirs.encode());
    let refused = plan(&catalog, rules(&"3d".parse().expect("valid")), at(LATER)).await.expect_err("foreign");
    assert_eq!(refused.kind(), ErrorKind::Corrupt);
    assert!(refused.to_string().contains("foreign database"), "{refused}");
}

/// Five snapshots at positions 0, 10, 20, 30 and 40, all proven, and deltas of ten positions between them.
async fn with_deltas() -> (Memory, Catalog) {
    let memory = Memory::default();
    let catalog = catalog(memory.clone());
    let epoch = catalog.claim_epoch("test", at(TIMES[0])).await.expect("claimed");
    let mut parent: Option<Manifest> = None;
    for (position, time) in (0..).step_by(10).zip(TIMES) {
        let mut next = manifest(at(time), epoch, parent.as_ref().map(|parent| &parent.id), &[]);
        next.anchor = Some(Anchor { position, checksum: 0 });
        publish(&catalog, &next).await;
        catalog.write_proof(&proof(&next.id, at(LATER))).await.expect("proven");
        let span = Span::new(position, position + 10).expect("forward");
        catalog.create_merged(Level::MAX, span, "delta".into()).await.expect("stored");
        parent = Some(next);
    }
    (memory, catalog)
}

/// What is planned when the window begins an hour after that snapshot.
async fn plan_from(catalog: &Catalog, nth: usize) -> PrunePlan {
    let now = at(LATER);
    let window = now.duration_since(at(TIMES[nth])).unsigned_abs() - Duration::from_secs(60);
    let policy = "1l".parse().expect("valid");
    let rules = Rules { policy: &policy, point_in_time: window, safety_age: DAY };
    plan(catalog, rules, now).await.expect("planned")
}

#[tokio::test]
async fn what_leads_to_moments_before_the_window_is_removed_and_what_the_window_rests_on_stays() {
    let (memory, catalog) = with_deltas().await;
    let plan = plan_from(&catalog, 2).await;
    insta::assert_snapshot!(plan, @r"
    keep    20261122T100000.000Z-00000001  last 1, newest, last proven
    remove  20261121T110000.000Z-00000001
    keep    20261121T100000.000Z-00000001  moments after it
    remove  20261120T110000.000Z-00000001
    remove  20261120T100000.000Z-00000001
    remove  2 deltas to moments that are not kept, 10 B
    3 of 5 snapshots, 0 orphans and 0 stale proofs to remove: 202 B
    ");
    let (report, ended) = apply(&catalog, &plan, 1).await;
    ended.expect("applied");
    assert_eq!((report.deltas, report.bytes_freed, report.left), (2, 202, 0));
    let left = paths(&memory).into_iter().filter(|path| path.contains("/deltas/"));
    let from: Vec<String> =
        left.filter_map(|path| Some(path.rsplit_once('/')?.1[14..16].to_owned())).collect();
    assert_eq!(from, ["14", "1e", "28"]);
    assert!(plan_from(&catalog, 2).await.is_empty());
}

#[tokio::test]
async fn deltas_are_not_removed_while_nothing_is_or_while_they_are_young() {
    let (_, catalog) = with_deltas().await;
    let policy = "1l".parse().expect("valid");
    let old = plan_from(&catalog, 2).await;
    assert_eq!(old.deltas.len(), 2);
    // They were stored in this century.
    let rules = Rules { policy: &policy, point_in_time: DAY, safety_age: DAY * 36_500 };
    let young = plan(&catalog, rules, at(LATER)).await.expect("planned");
    assert!(young.deltas.is_empty());
    let newest = catalog.newest().await.expect("read").expect("there is one");
    let refuted =
        Proof { failure: Some("damaged".to_owned()), ..proof(&newest.id, at("2099-02-01T00:00:00Z")) };
    catalog.write_proof(&refuted).await.expect("written");
    assert!(plan_from(&catalog, 2).await.deltas.is_empty(), "the newest drill failed");
}

#[tokio::test]
async fn what_no_snapshot_leads_to_is_removed_with_age_unless_one_cannot_be_read() {
    let (memory, catalog) = with_deltas().await;
    let lost = Span::new(100, 110).expect("forward");
    catalog.create_merged(Level::MAX, lost, "delta".into()).await.expect("stored");
    let policy = "1l".parse().expect("valid");
    let planned = async || plan(&catalog, rules(&policy), at(LATER)).await.expect("planned").deltas;
    assert!(planned().await.iter().any(|delta| delta.span == lost));
    memory.overwrite("app/manifests/20261120T100000.000Z-00000001.json", "{");
    assert!(!planned().await.iter().any(|delta| delta.span == lost));
}
