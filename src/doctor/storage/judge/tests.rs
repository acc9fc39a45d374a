//! What each answer of a storage is worth.

use jiff::Timestamp;

use super::*;
use crate::config::{Credentials, Identity, Provider, S3};
use crate::doctor::check::Status::{self, *};
use crate::error::Result;
use crate::storage::Greeting;

fn bucket() -> StorageChoice {
    StorageChoice::S3(Box::new(S3 {
        bucket: "backups".to_owned(),
        prefix: String::new(),
        region: Some("eu-north-1".to_owned()),
        endpoint_url: None,
        path_style: None,
        provider: Provider::Aws,
        part_concurrency: 4.try_into().expect("not zero"),
        credentials: Credentials { identity: Identity::Chain, sts_endpoint_url: None },
    }))
}

fn directory() -> StorageChoice {
    StorageChoice::Directory("/backups".into())
}

fn greeted() -> Greeted {
    let now: Timestamp = "2026-11-21T14:05:00.4Z".parse().expect("a time");
    let time = Some("2026-11-21T14:05:00Z".parse().expect("a time"));
    let greeting = Greeting { time, region: Some("eu-north-1".to_owned()), is_elsewhere: false };
    Greeted { greeting, asked_at: now, answered_at: now }
}

fn tried() -> Tried {
    Tried {
        put: Result::Ok(()),
        get: Result::Ok(()),
        list: Result::Ok(true),
        conditions: Some(Result::Ok(Guarantees::FULL)),
        abort: Result::Ok(()),
        delete: Result::Ok(()),
    }
}

fn refused<T>(kind: ErrorKind) -> Result<T> {
    Err(Error::new(kind, "refused"))
}

fn status_of(name: &str, change: impl FnOnce(&mut Tried)) -> Status {
    let mut tried = tried();
    change(&mut tried);
    let looked = Looked { location: "s3://backups/".to_owned(), greeted: greeted(), tried: Some(tried) };
    let checks = judge(&Result::Ok(looked), &bucket(), true);
    checks.into_iter().find(|check| check.name == name).expect("a check of this name").status
}

#[test]
fn append_only_is_what_takes_and_does_not_let_go() {
    let is_append_only = |put, delete| {
        let tried = Some(Tried { put, delete, ..tried() });
        Looked { location: "s3://backups/".to_owned(), greeted: greeted(), tried }.is_append_only()
    };
    assert!(is_append_only(Result::Ok(()), refused(ErrorKind::Denied)));
    assert!(!is_append_only(refused(ErrorKind::Denied), refused(ErrorKind::Denied)), "everything is denied");
    assert!(!is_append_only(Result::Ok(()), Result::Ok(())));
}

#[test]
fn a_storage_as_it_should_be() {
    let looked = Looked { location: "s3://backups/".to_owned(), greeted: greeted(), tried: Some(tried()) };
    let checks = judge(&Result::Ok(looked), &bucket(), true);
    assert_eq!(checks.iter().map(|check| check.name).collect::<Vec<_>>(), ALL);
    for check in checks {
        assert_eq!(check.status, Ok, "{check}");
    }
}

#[test]
fn what_cannot_be_reached_skips_the_rest_and_says_why() {
    for kind in [ErrorKind::Unavailable, ErrorKind::Denied, ErrorKind::Config] {
        for choice in [bucket(), directory()] {
            let checks = judge(&refused(kind), &choice, true);
            assert_eq!(checks.iter().map(|check| check.name).collect::<Vec<_>>(), ALL);
            assert_eq!(checks[0].status, Failure);
            assert!(checks[1..].iter().all(|check| check.status == Skipped));
        }
    }
}

#[test]
fn the_right_region_is_named() {
    let elsewhere = |region: Option<&str>| {
        let greeting = Greeting { region: region.map(str::to_owned), is_elsewhere: true, time: None };
        region_check(&Greeted { greeting, ..greeted() })
    };
    fn region_check(greeted: &Greeted) -> Check {
        region(greeted, &bucket())
    }
    let check = elsewhere(Some("us-west-2"));
    assert_eq!(check.status, Failure);
    assert_eq!(check.action.as_deref(), Some("set AWS_REGION=us-west-2"));
    assert_eq!(elsewhere(None).status, Failure);
    assert_eq!(region(&greeted(), &directory()).status, Skipped);
    let mut silent = greeted();
    silent.greeting.region = None;
    assert_eq!(region_check(&silent).status, Ok);
}

#[test]
fn clocks() {
    let check = |shown: &str, choice: &StorageChoice| {
        let greeting = Greeting { time: shown.parse().ok(), ..Greeting::default() };
        let asked_at = "2026-11-21T14:05:00.9Z".parse().expect("a time");
        let answered_at = "2026-11-21T14:05:03.1Z".parse().expect("a time");
        clock(&Greeted { greeting, asked_at, answered_at }, choice).status
    };
    for (shown, bucket_status, directory_status) in [
        ("2026-11-21T14:05:00Z", Ok, Ok),
        ("2026-11-21T14:05:03Z", Ok, Ok),
        ("2026-11-21T14:05:07Z", Ok, Ok),
        ("2026-11-21T14:05:09Z", Warning, Warning),
        ("2026-11-21T14:04:53Z", Warning, Warning),
        ("2026-11-21T14:18:00Z", Warning, Warning),
        ("2026-11-21T14:19:04Z", Failure, Warning),
        ("2026-11-21T13:50:00Z", Failure, Warning),
        ("never", Skipped, Skipped),
    ] {
        assert_eq!(check(shown, &bucket()), bucket_status, "{shown}");
        assert_eq!(check(shown, &directory()), directory_status, "{shown}");
    }
}

#[test]
fn rights_that_are_not_there() {
    use ErrorKind::{Denied, Unavailable};
    assert_eq!(status_of(PUT, |tried| tried.put = refused(Denied)), Failure);
    assert_eq!(status_of(GET, |tried| tried.get = refused(Denied)), Failure);
    assert_eq!(status_of(LIST, |tried| tried.list = refused(Denied)), Warning);
    assert_eq!(status_of(LIST, |tried| tried.list = Result::Ok(false)), Warning);
    assert_eq!(status_of(ABORT, |tried| tried.abort = refused(Denied)), Warning);
    assert_eq!(status_of(DELETE, |tried| tried.delete = refused(Denied)), Note);
    for name in [PUT, GET] {
        let all = |tried: &mut Tried| {
            *tried = Tried {
                put: refused(Unavailable),
                get: refused(Unavailable),
                conditions: None,
                ..self::tried()
            };
        };
        assert_eq!(status_of(name, all), Failure);
    }
    assert_eq!(status_of(DELETE, |tried| tried.delete = refused(Unavailable)), Warning);
}

#[test]
fn what_could_not_be_written_proves_nothing_about_reading() {
    let unwritten = |kind| {
        move |tried: &mut Tried| {
            tried.put = refused(ErrorKind::Denied);
            tried.get = refused(kind);
            tried.list = Result::Ok(false);
            tried.conditions = None;
        }
    };
    assert_eq!(status_of(GET, unwritten(ErrorKind::NotFound)), Ok);
    assert_eq!(status_of(GET, unwritten(ErrorKind::Denied)), Skipped);
    assert_eq!(status_of(LIST, unwritten(ErrorKind::NotFound)), Ok);
    assert_eq!(status_of(CREATE_ONLY, unwritten(ErrorKind::NotFound)), Skipped);
}

#[test]
fn conditions_that_are_not_honoured() {
    let found = |create_only, compare_and_swap| {
        move |tried: &mut Tried| {
            tried.conditions = Some(Result::Ok(Guarantees { create_only, compare_and_swap }));
        }
    };
    assert_eq!(status_of(CREATE_ONLY, found(false, true)), Warning);
    assert_eq!(status_of(COMPARE_AND_SWAP, found(false, true)), Ok);
    assert_eq!(status_of(COMPARE_AND_SWAP, found(true, false)), Warning);
    assert_eq!(status_of(CREATE_ONLY, |tried| tried.conditions = Some(refused(ErrorKind::Denied))), Warning);
}
