//! What each finding of a database's snapshots is worth.

use super::*;
use crate::catalog::fixture::{at, manifest, proof};
use crate::doctor::check::Status::{self, *};
use crate::prune::Damage;
use crate::retention::{self, SnapshotFacts};
use crate::snapshot::Flag;

const NOW: &str = "2026-11-21T14:05:00Z";

fn retention_settings(prune_schedule: Option<&str>) -> Retention {
    Retention {
        keep: "24h".to_owned(),
        safety_age: Duration::from_secs(3_600),
        prune_schedule: prune_schedule.map(str::to_owned),
    }
}

fn newest(flags: &[Flag]) -> Newest {
    let manifest = manifest(at("2026-11-21T14:00:00Z"), 1, None, flags);
    let proof = proof(&manifest.id, at("2026-11-21T14:01:00Z"));
    Newest { manifest, sample: Result::Ok(()), proof: Result::Ok(Some(proof)) }
}

fn plan() -> PrunePlan {
    let Newest { manifest, .. } = newest(&[]);
    let facts = SnapshotFacts {
        id: manifest.id.clone(),
        taken_at: manifest.taken_at,
        flags: Vec::new(),
        is_proven: true,
        is_refuted: false,
        is_head: true,
        epoch: 1,
        is_base: false,
    };
    let policy = "24h".parse().expect("a policy");
    PrunePlan {
        database: manifest.database,
        epoch: 1,
        head: Some(manifest.id),
        snapshots: retention::plan(&[facts], &policy, at(NOW), Duration::ZERO),
        removals: Vec::new(),
        orphans: Vec::new(),
        stale_proofs: Vec::new(),
        deltas: Vec::new(),
        damaged: Vec::new(),
    }
}

fn checks(looked: Looked, drills: bool) -> [Check; 3] {
    let policy = Result::Ok("24h".parse().expect("a policy"));
    let retention = retention_settings(None);
    let rules = Rules {
        now: at(NOW),
        age_max: Some(Duration::from_secs(900)),
        policy: &policy,
        retention: &retention,
        point_in_time: Duration::ZERO,
    };
    judge(Some(&looked), &rules, drills)
}

fn of_newest(change: impl FnOnce(&mut Newest)) -> [Status; 2] {
    let mut found = newest(&[]);
    change(&mut found);
    let [newest, proof, _] =
        checks(Looked { newest: Result::Ok(Some(found)), plan: Result::Ok(plan()) }, true);
    [newest.status, proof.status]
}

fn of_plan(plan: Result<PrunePlan>) -> Status {
    let [_, _, retention] = checks(Looked { newest: Result::Ok(None), plan }, true);
    retention.status
}

fn refused<T>(kind: ErrorKind) -> Result<T> {
    Err(Error::new(kind, "refused"))
}

#[test]
fn the_newest_snapshot() {
    assert_eq!(of_newest(|_| {}), [Ok, Ok]);
    for kind in [ErrorKind::NotFound, ErrorKind::Corrupt, ErrorKind::Denied, ErrorKind::Unavailable] {
        assert_eq!(of_newest(|found| found.sample = refused(kind)), [Failure, Ok], "{kind}");
    }
    assert_eq!(
        of_newest(|found| found.sample = refused(ErrorKind::Limit)),
        [Skipped, Ok],
        "no time was left"
    );
    assert_eq!(of_newest(|found| found.manifest.flags = vec![Flag::Empty]), [Warning, Ok]);
    assert_eq!(of_newest(|found| found.manifest.taken_at = at("2026-11-21T13:49:59Z")), [Note, Ok]);
    let statuses =
        |newest| checks(Looked { newest, plan: Result::Ok(plan()) }, true).map(|check| check.status);
    assert_eq!(statuses(Result::Ok(None)), [Note, Skipped, Ok]);
    assert_eq!(statuses(refused(ErrorKind::Corrupt)), [Failure, Skipped, Ok]);
}

#[test]
fn the_proof() {
    assert_eq!(of_newest(|found| found.proof = Result::Ok(None)), [Ok, Note]);
    let failed = |found: &mut Newest| {
        let standing = found.proof.as_mut().expect("readable").as_mut().expect("there");
        standing.failure = Some("torn".to_owned());
    };
    assert_eq!(of_newest(failed), [Ok, Failure]);
    assert_eq!(of_newest(|found| found.proof = refused(ErrorKind::Unavailable)), [Ok, Warning]);
    assert_eq!(of_newest(|found| found.proof = refused(ErrorKind::Limit)), [Ok, Skipped]);
    let unproven = Newest { proof: Result::Ok(None), ..newest(&[]) };
    let [_, proof, _] =
        checks(Looked { newest: Result::Ok(Some(unproven)), plan: Result::Ok(plan()) }, false);
    assert_eq!(proof.status, Warning, "nobody will prove it");
}

#[test]
fn retention_in_numbers() {
    assert_eq!(of_plan(Result::Ok(plan())), Ok);
    assert_eq!(of_plan(refused(ErrorKind::Denied)), Skipped);
    let damage = Damage { path: "app/manifests/x.json".to_owned(), what: "not JSON".to_owned() };
    assert_eq!(of_plan(Result::Ok(PrunePlan { damaged: vec![damage], ..plan() })), Warning);
    let stale = vec![newest(&[]).manifest.id];
    assert_eq!(of_plan(Result::Ok(PrunePlan { stale_proofs: stale, ..plan() })), Note, "pruning is off");
    let mut frozen = plan();
    frozen.snapshots = retention::plan(
        &[SnapshotFacts {
            id: newest(&[]).manifest.id,
            taken_at: at(NOW),
            flags: Vec::new(),
            is_proven: false,
            is_refuted: false,
            is_head: false,
            epoch: 1,
            is_base: false,
        }],
        &"24h".parse().expect("a policy"),
        at(NOW),
        Duration::ZERO,
    );
    assert_eq!(of_plan(Result::Ok(frozen)), Note);
}

#[test]
fn a_policy_that_cannot_be_read_is_a_failure_of_its_own() {
    let (policy, retention) = (refused(ErrorKind::Config), retention_settings(Some("17 3 * * *")));
    let rules = Rules {
        now: at(NOW),
        age_max: None,
        policy: &policy,
        retention: &retention,
        point_in_time: Duration::ZERO,
    };
    let looked = Looked { newest: Result::Ok(None), plan: refused(ErrorKind::Config) };
    assert_eq!(judge(Some(&looked), &rules, true)[2].status, Failure);
    assert_eq!(judge(None, &rules, true).map(|check| check.status), [Skipped; 3]);
}
