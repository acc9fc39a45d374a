//! What each finding of a database is worth.

use super::*;
use crate::doctor::check::Status::{self, *};
use crate::error::Error;
use crate::snapshot::{Digest, SqliteFacts};

fn facts() -> Facts {
    Facts {
        page_size: 4096,
        page_count: 3,
        schema_objects: 1,
        sqlite: SqliteFacts {
            user_version: 0,
            application_id: 0,
            journal_mode: "wal".to_owned(),
            encoding: "UTF-8".to_owned(),
            freelist_count: 0,
            schema_sha256: Digest::of(b""),
            written_by: 3_053_002,
        },
    }
}

fn found() -> Found {
    Found {
        file: File {
            path: "/data/app.db".into(),
            bytes: 12_288,
            log_bytes: 0,
            mode: 0o644,
            owner: (1000, 1000),
            user: 1000,
            file_is_ours: true,
            folder_is_ours: true,
        },
        mount: Result::Ok(Some(Mount { point: "/data".into(), kind: "ext4".to_owned() })),
        room: Result::Ok(Room { free: 1 << 30, needed: 1 << 20 }),
        scratch: Result::Ok(Room { free: 1 << 30, needed: 1 << 20 }),
        facts: Result::Ok(facts()),
    }
}

fn status_of(name: &str, change: impl FnOnce(&mut Found)) -> Status {
    let mut found = found();
    change(&mut found);
    let checks = judge(&Looked::There(Box::new(found)), RestoreOnBoot::Never);
    checks.into_iter().find(|check| check.name == name).expect("a check of this name").status
}

#[test]
fn a_database_as_it_should_be() {
    let checks = judge(&Looked::There(Box::new(found())), RestoreOnBoot::Never);
    let names: Vec<&str> = checks.iter().map(|check| check.name).collect();
    assert_eq!(names, [FILE, RIGHTS, CONTENT, JOURNAL, FILE_SYSTEM, SPACE, SCRATCH, SQLITE]);
    for check in checks {
        assert_eq!(check.status, Ok, "{check}");
    }
}

#[test]
fn an_absent_database_is_no_fault_where_a_start_restores_it() {
    let status = |on_boot| judge(&Looked::Absent { folder: true }, on_boot)[0].status;
    assert_eq!(status(RestoreOnBoot::Never), Failure);
    assert_eq!(status(RestoreOnBoot::IfMissing), Note);
    assert_eq!(status(RestoreOnBoot::Always), Note);
    let unusable = Looked::Unusable(Error::new(ErrorKind::Source, "this is a directory"));
    assert_eq!(judge(&unusable, RestoreOnBoot::IfMissing)[0].status, Failure);
    let no_time = Looked::Unusable(Error::new(ErrorKind::Limit, "over"));
    assert_eq!(judge(&no_time, RestoreOnBoot::Never)[0].status, Skipped);
}

#[test]
fn rights() {
    assert_eq!(status_of(RIGHTS, |found| found.file.file_is_ours = false), Failure);
    assert_eq!(status_of(RIGHTS, |found| found.file.folder_is_ours = false), Failure);
    assert_eq!(status_of(RIGHTS, |found| found.file.mode = 0o666), Warning);
    assert_eq!(status_of(RIGHTS, |found| found.file.mode = 0o640), Ok);
}

#[test]
fn content_and_journal_mode() {
    let with = |kind| move |found: &mut Found| found.facts = Err(Error::new(kind, "refused"));
    assert_eq!(status_of(CONTENT, with(ErrorKind::Source)), Failure);
    assert_eq!(status_of(CONTENT, with(ErrorKind::Busy)), Warning);
    assert_eq!(status_of(JOURNAL, with(ErrorKind::Source)), Skipped);
    assert_eq!(status_of(SQLITE, with(ErrorKind::Source)), Skipped);
    let empty = |found: &mut Found| found.facts = Result::Ok(Facts { schema_objects: 0, ..facts() });
    assert_eq!(status_of(CONTENT, empty), Warning);
    assert_eq!(status_of(JOURNAL, rollback), Note);
}

fn rollback(found: &mut Found) {
    let mut facts = facts();
    facts.sqlite.journal_mode = "delete".to_owned();
    found.facts = Result::Ok(facts);
}

#[test]
fn file_systems() {
    for (kind, with_log, without) in [
        ("ext4", Ok, Ok),
        ("xfs", Ok, Ok),
        ("nfs4", Failure, Warning),
        ("cifs", Failure, Warning),
        ("fuse.sshfs", Failure, Warning),
        ("fuse.litefs", Warning, Warning),
        ("fuse", Warning, Warning),
        ("9p", Warning, Warning),
        ("tmpfs", Warning, Warning),
        ("overlay", Warning, Warning),
    ] {
        let mounted = |found: &mut Found| {
            found.mount = Result::Ok(Some(Mount { point: "/data".into(), kind: kind.to_owned() }));
        };
        assert_eq!(status_of(FILE_SYSTEM, mounted), with_log, "{kind}");
        let both = |found: &mut Found| {
            mounted(found);
            rollback(found);
        };
        assert_eq!(status_of(FILE_SYSTEM, both), without, "{kind}");
    }
    assert_eq!(status_of(FILE_SYSTEM, |found| found.mount = Result::Ok(None)), Skipped);
}

#[test]
fn room_for_copies() {
    let (full, enough) = (Room { free: 99, needed: 100 }, Room { free: 100, needed: 100 });
    for (room, status) in [(full, Warning), (enough, Ok)] {
        assert_eq!(status_of(SPACE, |found| found.room = Result::Ok(room)), status);
        assert_eq!(status_of(SCRATCH, |found| found.scratch = Result::Ok(room)), status);
    }
    let both = |found: &mut Found| {
        found.scratch = Result::Ok(full);
        rollback(found);
    };
    assert_eq!(status_of(SCRATCH, both), Failure, "without a log every snapshot needs it");
}

#[test]
fn versions_of_sqlite() {
    for (version, status) in [
        (0, Note),
        (3_006_023, Ok),
        (3_007_000, Warning),
        (3_040_001, Warning),
        (3_044_005, Warning),
        (3_044_006, Ok),
        (3_045_000, Warning),
        (3_050_006, Warning),
        (3_050_007, Ok),
        (3_051_000, Warning),
        (3_051_002, Warning),
        (3_051_003, Ok),
        (3_052_000, Ok),
        (3_054_001, Ok),
    ] {
        let written = |found: &mut Found| {
            let mut facts = facts();
            facts.sqlite.written_by = version;
            found.facts = Result::Ok(facts);
        };
        assert_eq!(status_of(SQLITE, written), status, "{version}");
    }
    assert!(has_wal_reset_bug(3_046_001));
    assert_eq!(sqlite_version(3_046_001, false).status, Ok, "it needs a write-ahead log");
}
