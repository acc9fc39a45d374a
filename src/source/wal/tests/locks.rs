//! The fact the reader leans on: the `-wal` file has no locks that closing a descriptor could drop.

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rusqlite::Connection;

use crate::source::wal::fixture::{Scene, run, touch};

/// The locks that this process holds on a file, as the kernel lists them.
fn locks_on(path: &Path) -> Vec<String> {
    let inode = format!(":{}", fs::metadata(path).expect("a file").ino());
    let pid = std::process::id().to_string();
    let listed = fs::read_to_string("/proc/locks").expect("listed");
    // "1: POSIX  ADVISORY  READ 1234 fe:01:5678 124 124"
    let ours = |line: &&str| {
        let words: Vec<&str> = line.split_whitespace().collect();
        words.get(4) == Some(&pid.as_str()) && words.get(5).is_some_and(|file| file.ends_with(&inode))
    };
    let mut locks: Vec<String> = listed
        .lines()
        .filter(ours)
        .map(|line| line.split_whitespace().skip(1).collect::<Vec<_>>().join(" "))
        .collect();
    locks.sort();
    locks
}

/// A reader in its transaction and a writer in its own.
fn held() -> (Scene, Connection, Connection) {
    let (scene, writer) = Scene::new(4096);
    touch(&writer);
    let reader = scene.open();
    run(&reader, "BEGIN; SELECT count(*) FROM t");
    run(&writer, "BEGIN IMMEDIATE; INSERT INTO t(x) VALUES (1)");
    (scene, reader, writer)
}

#[test]
fn opening_and_closing_the_log_drops_no_lock() {
    let (scene, reader, writer) = held();
    let index = scene.folder.path().join("app.db-shm");
    let all = || [&scene.path, &index, &scene.log_path()].map(|path| locks_on(path));
    let before = all();
    assert!(before[0].iter().any(|lock| lock.contains("READ")), "on the database: {before:?}");
    assert!(before[1].iter().any(|lock| lock.contains("WRITE")), "the writer's: {before:?}");
    assert!(before[1].iter().any(|lock| lock.contains("READ")), "the reader's: {before:?}");
    assert_eq!(before[2], Vec::<String>::new(), "none on the log");
    let mark = scene.mark();
    for _ in 0..10 {
        drop(File::open(scene.log_path()).expect("opens"));
        scene.read(&mark);
    }
    assert_eq!(all(), before);
    run(&writer, "COMMIT");
    run(&reader, "COMMIT");
}

#[test]
fn opening_and_closing_the_database_or_its_index_would() {
    let (scene, _reader, _writer) = held();
    for path in [scene.path.clone(), scene.folder.path().join("app.db-shm")] {
        assert_ne!(locks_on(&path), Vec::<String>::new());
        drop(File::open(&path).expect("opens"));
        assert_eq!(locks_on(&path), Vec::<String>::new(), "{}", path.display());
    }
}
