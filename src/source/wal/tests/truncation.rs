//! Logs that are cut, taken away, or replaced.

use std::fs;

use rusqlite::Connection;

use crate::source::wal::fixture::{BOUNDS, Replica, Scene, add, checkpoint, run, touch};
use crate::source::wal::{Loss, Outcome};

/// A log all of which is read, with `limit` as journal_size_limit.
fn begun(limit: i64) -> (Scene, Connection, Replica) {
    let (scene, connection) = Scene::new(512);
    connection
        .query_row(&format!("PRAGMA journal_size_limit={limit}"), [], |row| row.get::<_, i64>(0))
        .expect("set");
    for _ in 0..8 {
        touch(&connection);
    }
    let mut replica = Replica::of(&scene.path);
    assert_eq!(replica.follow(&BOUNDS), None);
    (scene, connection, replica)
}

#[test]
fn a_log_that_ends_where_the_old_run_ended_is_whole() {
    // No run was longer than this one: behind its last transaction the file ends.
    let (scene, connection, mut replica) = begun(-1);
    touch(&connection);
    checkpoint(&connection, "FULL");
    touch(&connection);
    assert_eq!(scene.read(replica.mark.as_ref().expect("a log")).transactions, 2);
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("as long as ever");
}

#[test]
fn a_log_that_was_cut_within_what_was_not_read_is_a_loss() {
    // Cut within a frame; behind one that ends no transaction; and to what was read. Frames have 536 bytes.
    let (scene, connection, replica) = begun(-1);
    let mark = replica.mark.expect("a log");
    add(&connection, 4);
    touch(&connection);
    checkpoint(&connection, "FULL");
    touch(&connection);
    let log = scene.log_bytes();
    assert_eq!(scene.read(&mark).transactions, 3);
    let (unread, end) = (mark.bytes() as usize, log.len());
    for bytes in [unread, unread + 10, unread + 300, unread + 536, unread + 2 * 536 + 30, end - 536, end - 1]
    {
        fs::write(scene.log_path(), &log[..bytes]).expect("written");
        let seen_whole = mark.bytes_seen_max.max(end as u64);
        let mut seen = mark.clone();
        seen.bytes_seen_max = seen_whole;
        assert_eq!(scene.lost(&seen), Loss::Cut, "{bytes} of {end} bytes, seen whole");
        if bytes != unread && bytes != end - 536 {
            assert_eq!(scene.lost(&mark), Loss::Cut, "{bytes} of {end} bytes");
        }
    }
    fs::write(scene.log_path(), &log[..unread - 10]).expect("written");
    assert_eq!(scene.lost(&mark), Loss::Cut, "within what was read");
}

#[test]
fn journal_size_limit_costs_the_thread_only_if_it_cuts_what_was_not_read() {
    // 20 frames and a bit: less than the run has.
    let (scene, connection, mut replica) = begun(20 * 536 + 100);
    let mut losses = 0;
    for round in 0..12 {
        for _ in 0..6 {
            touch(&connection);
        }
        assert_eq!(replica.follow(&BOUNDS), None, "{round}");
        if round % 3 == 0 {
            add(&connection, 5);
        }
        let before = scene.log_bytes().len();
        checkpoint(&connection, "FULL");
        touch(&connection);
        let cut = scene.log_bytes().len() < before;
        let loss = replica.follow(&BOUNDS);
        assert!(cut || loss.is_none(), "{round}: {loss:?}");
        losses += u32::from(loss.is_some());
        replica.follow(&BOUNDS);
        replica.compare("cut or not");
    }
    assert!((1..12).contains(&losses), "{losses}");
}

#[test]
fn a_log_truncated_to_nothing_is_a_loss() {
    let (scene, connection, replica) = begun(-1);
    let mark = replica.mark.expect("a log");
    checkpoint(&connection, "TRUNCATE");
    assert_eq!(scene.log_bytes().len(), 0);
    assert_eq!(scene.lost(&mark), Loss::Emptied);
    touch(&connection);
    // The salts are those of a restart, but of the old run nothing is there.
    assert_eq!(scene.begin().run.salts.0, mark.run.salts.0.wrapping_add(1));
    assert!(matches!(scene.lost(&mark), Loss::Cut | Loss::Overwritten));
}

#[test]
fn a_log_that_the_last_connection_took_away_is_a_loss() {
    let (scene, connection, replica) = begun(-1);
    let mark = replica.mark.expect("a log");
    drop(connection);
    assert!(!scene.log_path().exists());
    assert_eq!(scene.lost(&mark), Loss::Gone);
    touch(&scene.open());
    assert!(!scene.log().confirm(&mark).expect("readable"));
    let connection = scene.open();
    touch(&connection);
    assert!(matches!(scene.lost(&mark), Loss::Restarted | Loss::Replaced));
    // Even if the file system gives the new log the number of the old one.
    let mut same_number = mark;
    same_number.inode = scene.begin().inode;
    assert_eq!(scene.lost(&same_number), Loss::Restarted);
}

#[test]
fn another_journal_mode_in_between_is_a_loss() {
    let (scene, connection, replica) = begun(-1);
    let mark = replica.mark.expect("a log");
    run(&connection, "PRAGMA journal_mode=DELETE");
    assert_eq!(scene.lost(&mark), Loss::Gone);
    touch(&connection);
    run(&connection, "PRAGMA journal_mode=WAL");
    touch(&connection);
    let loss = scene.lost(&mark);
    assert!(matches!(loss, Loss::Restarted | Loss::Replaced | Loss::Cut | Loss::Overwritten), "{loss:?}");
}

#[test]
fn another_page_size_in_between_is_a_loss() {
    let (scene, connection, replica) = begun(-1);
    run(&connection, "PRAGMA journal_mode=DELETE; PRAGMA page_size=1024; VACUUM; PRAGMA journal_mode=WAL");
    touch(&connection);
    let mut mark = replica.mark.expect("a log");
    assert_eq!(scene.begin().page_size(), 1024);
    mark.inode = scene.begin().inode;
    assert_eq!(scene.lost(&mark), Loss::Replaced);
}

#[test]
fn another_file_in_its_place_is_a_loss_whatever_is_in_it() {
    let (scene, _connection, replica) = begun(-1);
    let copy = scene.folder.path().join("copy");
    fs::copy(scene.log_path(), &copy).expect("copied");
    fs::rename(&copy, scene.log_path()).expect("moved");
    let mark = replica.mark.expect("a log");
    assert_eq!(scene.lost(&mark), Loss::Replaced);
    assert!(!scene.log().confirm(&mark).expect("readable"));
}

#[test]
fn an_error_of_the_file_system_is_no_loss() {
    let (scene, _connection, replica) = begun(-1);
    let mark = replica.mark.expect("a log");
    fs::rename(scene.log_path(), scene.folder.path().join("aside")).expect("moved");
    fs::create_dir(scene.log_path()).expect("made");
    let mut there = mark;
    there.inode = std::os::unix::fs::MetadataExt::ino(&fs::metadata(scene.log_path()).expect("there"));
    let error = scene.log().read(&there, &BOUNDS).expect_err("a directory");
    assert!(error.to_string().contains("read the write-ahead log: path=`"), "{error}");
    fs::remove_dir(scene.log_path()).expect("removed");
    assert!(matches!(scene.outcome(&there), Outcome::Lost(Loss::Gone)));
}

#[test]
fn vacuum_is_read_as_any_transaction() {
    let (_scene, connection, mut replica) = begun(-1);
    add(&connection, 100);
    run(&connection, "DELETE FROM t WHERE id % 3; VACUUM");
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("vacuumed");
    run(
        &connection,
        "PRAGMA auto_vacuum=INCREMENTAL; VACUUM; DELETE FROM t WHERE id % 2; PRAGMA incremental_vacuum(20)",
    );
    add(&connection, 30);
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("vacuumed by pieces");
}
