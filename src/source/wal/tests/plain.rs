//! One run of the log, read forward.

use std::fs::{self, OpenOptions};
use std::io::Write;

use rusqlite::Connection;

use crate::source::wal::fixture::{BOUNDS, Replica, Scene, add, chain_again, checkpoint, pages, run, touch};
use crate::source::wal::format::{ByteOrder, lock_page};
use crate::source::wal::{Bounds, Changes, Loss, Mark, Outcome};

fn append(scene: &Scene, bytes: &[u8]) {
    OpenOptions::new()
        .append(true)
        .open(scene.log_path())
        .and_then(|mut log| log.write_all(bytes))
        .expect("written");
}

/// Reads what `bounds` allow.
fn within(scene: &Scene, mark: &Mark, bytes_max: usize, frames_max: u32) -> Changes {
    match scene.log().read(mark, &Bounds { bytes_max, frames_max }).expect("readable") {
        Outcome::Read(changes) => changes,
        Outcome::Lost(loss) => panic!("lost: {loss}"),
    }
}

#[test]
fn what_was_written_is_read_once() {
    let (scene, connection) = Scene::new(4096);
    touch(&connection);
    let mut replica = Replica::of(&scene.path);
    assert_eq!(replica.follow(&BOUNDS), None);
    let nothing = scene.read(replica.mark.as_ref().expect("a log"));
    assert_eq!((nothing.transactions, nothing.page_count, nothing.pages.len()), (0, None, 0));
    assert_eq!(Some(&nothing.mark), replica.mark.as_ref());
    touch(&connection);
    add(&connection, 20);
    let changes = scene.read(&nothing.mark);
    assert_eq!((changes.transactions, changes.more, changes.uncommitted), (2, false, 0));
    assert_eq!(changes.page_count, Some(pages(&scene.path).len() as u32));
    replica.apply(changes);
    replica.compare("after two transactions");
}

#[test]
fn a_log_that_is_not_there_yet_has_no_mark() {
    let (scene, connection) = Scene::new(4096);
    assert_eq!(scene.log_bytes().len(), 0, "truncated by the fixture");
    assert_eq!(scene.log().mark().expect("readable"), None);
    touch(&connection);
    let (mark, log) = (scene.mark(), scene.log_bytes());
    for bytes in [0, 1, 31] {
        fs::write(scene.log_path(), &log[..bytes]).expect("written");
        assert_eq!(scene.log().mark().expect("readable"), None, "{bytes} bytes");
        assert_eq!(scene.lost(&mark), Loss::Emptied, "{bytes} bytes");
    }
    fs::write(scene.log_path(), [7; 4096]).expect("written");
    assert_eq!(scene.log().mark().expect("readable"), None);
    assert_eq!(scene.lost(&mark), Loss::Malformed);
    fs::remove_file(scene.log_path()).expect("removed");
    assert_eq!(scene.log().mark().expect("readable"), None);
    assert_eq!(scene.lost(&mark), Loss::Gone);
    assert!(!scene.log().confirm(&mark).expect("readable"));
}

#[test]
fn every_page_size_is_read() {
    for page_size in [512, 1024, 8192, 65_536] {
        let (scene, connection) = Scene::new(page_size);
        touch(&connection);
        let mut replica = Replica::of(&scene.path);
        add(&connection, 300);
        assert_eq!(replica.follow(&BOUNDS), None);
        assert_eq!(replica.pages[&1].len(), page_size as usize);
        replica.compare(&format!("pages of {page_size} bytes"));
    }
}

#[test]
fn the_very_first_frame_is_accepted_in_both_byte_orders() {
    let (scene, connection) = Scene::new(4096);
    touch(&connection);
    add(&connection, 50);
    let expected = scene.read(&scene.begin());
    assert_eq!(expected.transactions, 2);
    for order in [ByteOrder::Little, ByteOrder::Big] {
        let (other, _) = Scene::new(4096);
        let mut log = scene.log_bytes();
        chain_again(&mut log, order);
        assert_eq!(log == scene.log_bytes(), order == ByteOrder::Little, "SQLite here writes little-endian");
        fs::write(other.log_path(), &log).expect("written");
        let changes = other.read(&other.begin());
        assert_eq!((changes.transactions, &changes.pages), (2, &expected.pages), "{order:?}");
        // SQLite is of the same opinion.
        fs::copy(&scene.path, other.folder.path().join("copy.db")).expect("copied");
        fs::write(other.folder.path().join("copy.db-wal"), &log).expect("written");
        assert_eq!(pages(&other.folder.path().join("copy.db")), pages(&scene.path), "{order:?}");
    }
}

#[test]
fn a_database_that_shrinks_loses_its_last_pages() {
    let (scene, connection) = Scene::new(4096);
    add(&connection, 200);
    let mut replica = Replica::of(&scene.path);
    run(&connection, "UPDATE t SET x = randomblob(1200); DELETE FROM t WHERE id > 10; VACUUM");
    let changes = scene.read(replica.mark.as_ref().expect("a log"));
    let page_count = changes.page_count.expect("transactions");
    assert!(page_count < 20 && changes.pages.keys().all(|page| *page <= page_count), "{page_count}");
    replica.apply(changes);
    replica.compare("smaller");
    // Shrinks and grows again in one reading: what came back has its new content.
    add(&connection, 100);
    run(&connection, "DELETE FROM t WHERE id > 10; VACUUM");
    add(&connection, 60);
    let changes = scene.read(replica.mark.as_ref().expect("a log"));
    assert_eq!(changes.unwritten(page_count).count(), 0);
    replica.apply(changes);
    replica.compare("smaller and larger");
}

#[test]
fn pages_that_come_back_without_being_written_are_named() {
    let (scene, connection) = Scene::new(4096);
    add(&connection, 40);
    run(&connection, "DELETE FROM t WHERE id > 10; VACUUM");
    add(&connection, 60);
    let changes = scene.read(&scene.begin());
    let (page_count, last) = (changes.page_count.expect("transactions"), changes.pages.len() as u32);
    assert_eq!(page_count, last, "all were written");
    // As if the last two of them had been left out by SQLite.
    let mut left_out = changes.clone();
    left_out.pages.retain(|page, _| page + 2 <= page_count);
    assert_eq!(left_out.unwritten(1).collect::<Vec<_>>(), [page_count - 1, page_count]);
    assert_eq!(left_out.unwritten(page_count).count(), 2, "it was smaller in between");
}

#[test]
fn what_is_no_whole_transaction_is_not_read() {
    let (scene, connection) = Scene::new(4096);
    add(&connection, 20);
    let (mark, log) = (scene.mark(), scene.log_bytes());
    add(&connection, 20);
    let longer = scene.log_bytes();
    let new = longer[log.len()..].to_vec();
    let mut wrong = new.clone();
    wrong[24 + 100] ^= 1;
    let zero_page = [&[0; 4], &new[4..]].concat();
    let garbage: Vec<u8> = (0..10_000_u32).map(|at| (at * 31 % 251) as u8).collect();
    let whole = new.len();
    for (name, tail) in [
        ("nothing", &[][..]),
        ("garbage", &garbage),
        ("zeros", &[0; 9000]),
        ("part of a frame header", &new[..10]),
        ("half a frame", &new[..2000]),
        ("all but the last byte", &new[..whole - 1]),
        ("a right salt and a wrong checksum", &wrong),
        ("page 0", &zero_page),
    ] {
        let mut bytes = [&log, tail].concat();
        if name == "page 0" {
            chain_again(&mut bytes, ByteOrder::Little);
        }
        fs::write(scene.log_path(), bytes).expect("written");
        let changes = scene.read(&mark);
        assert_eq!((changes.transactions, changes.pages.len()), (0, 0), "{name}");
        assert_eq!(changes.mark.at, mark.at, "{name}");
    }
    fs::write(scene.log_path(), &longer).expect("written");
    assert_eq!(scene.read(&mark).transactions, 1);
    append(&scene, &garbage);
    assert_eq!(scene.read(&mark).transactions, 1);
}

#[test]
fn a_transaction_that_spilled_and_was_rolled_back_is_not_read() {
    let (scene, connection) = Scene::new(4096);
    touch(&connection);
    let mut replica = Replica::of(&scene.path);
    assert_eq!(replica.follow(&BOUNDS), None);
    run(&connection, "BEGIN");
    add(&connection, 200);
    let spilled = scene.read(replica.mark.as_ref().expect("a log"));
    assert!(spilled.transactions == 0 && spilled.uncommitted > 20, "{spilled:?}");
    run(&connection, "ROLLBACK");
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("rolled back");
    // What follows is written over it, and is shorter.
    touch(&connection);
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("written over");
    // A transaction that rewrites its own frames has their checksums made anew at the end.
    run(&connection, "BEGIN");
    add(&connection, 100);
    assert_eq!(replica.follow(&BOUNDS), None);
    run(
        &connection,
        "UPDATE t SET x = randomblob(1200); SAVEPOINT s; DELETE FROM t; ROLLBACK TO s; UPDATE t SET x = 1 WHERE id % 2",
    );
    assert_eq!(replica.follow(&BOUNDS), None);
    run(&connection, "COMMIT");
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("rewritten within");
}

#[test]
fn bounds_end_a_reading_behind_a_whole_transaction() {
    let (scene, connection) = Scene::new(4096);
    touch(&connection);
    let mark = scene.mark();
    for _ in 0..5 {
        add(&connection, 20);
    }
    let one = within(&scene, &mark, 64 << 20, 1);
    assert_eq!((one.transactions, one.more), (1, true));
    let pages_of_one = one.pages.len();
    let some = within(&scene, &mark, pages_of_one * 2 * 4096, 100_000);
    assert!((1..5).contains(&some.transactions) && some.more, "{}", some.transactions);
    assert!(some.pages.len() <= pages_of_one * 2);
    let mut replica = Replica::of(&scene.path);
    replica.mark = Some(mark.clone());
    assert_eq!(replica.follow(&Bounds { bytes_max: pages_of_one * 2 * 4096, frames_max: 3 }), None);
    replica.compare("in small steps");
    let too_small = Bounds { bytes_max: (pages_of_one - 1) * 4096, frames_max: 100_000 };
    let lost = scene.log().read(&mark, &too_small).expect("readable");
    assert!(matches!(lost, Outcome::Lost(Loss::TooLarge)), "{lost:?}");
    // As long as it may be rolled back, it is none.
    let mark = scene.mark();
    run(&connection, "BEGIN");
    add(&connection, 200);
    let waiting = within(&scene, &mark, 4096, 100_000);
    assert!(waiting.transactions == 0 && waiting.uncommitted > 20 && !waiting.more);
}

#[test]
fn the_page_of_the_lock_byte_is_never_handed_on() {
    let (scene, connection) = Scene::new(65_536);
    add(&connection, 300);
    let begin = scene.begin();
    let page_count = scene.read(&begin).page_count.expect("a transaction");
    let mut log = scene.log_bytes();
    // The last page becomes the one of the lock byte, in a database that reaches beyond it.
    let lock = lock_page(65_536);
    assert_eq!(lock, 16_385);
    for frame in log[32..].chunks_exact_mut(24 + 65_536) {
        for at in [0..4, 4..8] {
            if frame[at.clone()] == page_count.to_be_bytes() {
                frame[at].copy_from_slice(&lock.to_be_bytes());
            }
        }
    }
    chain_again(&mut log, ByteOrder::Little);
    fs::write(scene.log_path(), &log).expect("written");
    let changes = scene.read(&begin);
    assert_eq!(changes.page_count, Some(lock));
    assert_eq!(changes.pages.len() as u32, page_count - 1);
    assert!(!changes.pages.contains_key(&lock));
    assert!(changes.unwritten(1).all(|page| page != lock) && changes.unwritten(1).count() > 10_000);
}

#[test]
fn a_settled_mark_is_one_transaction_back() {
    let (scene, connection) = Scene::new(4096);
    touch(&connection);
    let before = scene.mark();
    add(&connection, 20);
    let after = scene.mark();
    assert_eq!(after.settled().at, before.at);
    assert_eq!(scene.log().mark().expect("readable").map(|mark| mark.at), Some(before.at));
    assert_eq!(scene.read(&after.settled()).mark, after);
    assert_eq!(before.settled().settled().at, before.settled().at);
}

#[test]
fn a_padded_transaction_is_settled_as_a_whole() {
    let (scene, connection) = Scene::new(512);
    drop(connection);
    let uri = format!("file:{}?psow=0", scene.path.display());
    let connection = Connection::open(uri).expect("opens");
    run(&connection, "PRAGMA synchronous=FULL");
    touch(&connection);
    let before = scene.mark();
    touch(&connection);
    let after = scene.mark();
    assert!(after.frames() >= before.frames() + 4, "padded to the sector: {before:?} {after:?}");
    assert_eq!(after.settled().at, before.at);
}

#[test]
fn a_mark_survives_being_stored() {
    let (scene, connection) = Scene::new(4096);
    add(&connection, 20);
    touch(&connection);
    let mark = scene.mark();
    let stored = serde_json::to_string(&mark).expect("stored");
    assert_eq!(serde_json::from_str::<Mark>(&stored).expect("read back"), mark);
    assert!(scene.log().confirm(&mark).expect("readable"));
    assert_eq!(mark.bytes(), scene.log_bytes().len() as u64);
    touch(&connection);
    assert!(scene.log().confirm(&mark).expect("readable"), "what follows does not matter");
    // One byte of an earlier transaction.
    let mut log = scene.log_bytes();
    log[500] ^= 1;
    fs::write(scene.log_path(), &log).expect("written");
    assert!(!scene.log().confirm(&mark).expect("readable"));
    log[500] ^= 1;
    fs::write(scene.log_path(), &log).expect("written");
    checkpoint(&connection, "FULL");
    touch(&connection);
    assert!(!scene.log().confirm(&mark).expect("readable"), "restarted");
}

/// Whatever happens to its bytes, a log gives a state that was, or none.
#[test]
fn a_damaged_log_ends_before_the_damage() {
    let (scene, connection) = Scene::new(512);
    for _ in 0..6 {
        touch(&connection);
    }
    let (begin, log) = (scene.begin(), scene.log_bytes());
    let mut whole = Vec::new();
    let mut mark = begin.clone();
    while whole.len() < 6 {
        let changes = within(&scene, &mark, 64 << 20, 1);
        mark = changes.mark.clone();
        whole.push(mark.clone());
    }
    for at in (32..log.len()).step_by(7) {
        let mut damaged = log.clone();
        damaged[at] ^= 0x10;
        fs::write(scene.log_path(), &damaged).expect("written");
        let Outcome::Read(changes) = scene.outcome(&begin) else { panic!("the header is as it was") };
        let before = whole.iter().filter(|mark| mark.bytes() <= at as u64).count();
        assert_eq!(changes.transactions as usize, before, "byte {at}");
    }
}

#[test]
fn a_log_whose_header_is_damaged_is_none() {
    let (scene, connection) = Scene::new(512);
    touch(&connection);
    let (begin, log) = (scene.begin(), scene.log_bytes());
    for bit in 0..32 * 8 {
        let mut damaged = log.clone();
        damaged[bit / 8] ^= 1 << (bit % 8);
        fs::write(scene.log_path(), &damaged).expect("written");
        assert_eq!(scene.lost(&begin), Loss::Malformed, "bit {bit}");
        assert_eq!(scene.log().mark().expect("readable"), None, "bit {bit}");
    }
}
