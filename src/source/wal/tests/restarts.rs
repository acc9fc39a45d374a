//! A log that is restarted in place, between two readings and within one.

use std::collections::BTreeMap;
use std::fs;

use rusqlite::Connection;

use crate::source::wal::fixture::{
    BOUNDS, Meddled, Pages, Replica, Scene, add, checkpoint, pages, run, touch,
};
use crate::source::wal::reader::read;
use crate::source::wal::{Bounds, Log, Loss, Mark, Outcome};

/// A log with some transactions, all of which are read.
fn begun() -> (Scene, Connection, Replica) {
    let (scene, connection) = Scene::new(512);
    // So that the log is longer than one run, as it is after a while.
    add(&connection, 40);
    restart(&connection);
    for _ in 0..8 {
        touch(&connection);
    }
    let mut replica = Replica::of(&scene.path);
    assert_eq!(replica.follow(&BOUNDS), None);
    (scene, connection, replica)
}

fn restart(connection: &Connection) {
    checkpoint(connection, "FULL");
    touch(connection);
}

/// One transaction whose pages another row's change does not write.
fn change(connection: &Connection, row: u32) {
    connection.execute("UPDATE t SET x = randomblob(1200) WHERE id = ?1", [row]).expect("changes");
}

#[test]
fn what_was_not_read_of_the_old_run_is_salvaged() {
    let (scene, connection, mut replica) = begun();
    for _ in 0..3 {
        touch(&connection);
    }
    restart(&connection);
    let changes = scene.read(replica.mark.as_ref().expect("a log"));
    assert_eq!((changes.transactions, changes.more), (4, false));
    let salts = |mark: &Option<_>| mark.as_ref().map(|mark: &Mark| mark.run.salts.0);
    let before = salts(&replica.mark).expect("a log");
    assert_eq!(changes.mark.run.salts.0, before.wrapping_add(1));
    replica.apply(changes);
    replica.compare("old and new run");
    // Again and again, with and without something that was not read.
    for round in 0..20 {
        for _ in 0..6 {
            touch(&connection);
        }
        assert_eq!(replica.follow(&BOUNDS), None, "{round}");
        if round % 2 == 0 {
            touch(&connection);
        }
        restart(&connection);
        assert_eq!(replica.follow(&BOUNDS), None, "{round}");
        replica.compare("restarted once more");
    }
}

#[test]
fn a_large_tail_is_salvaged_in_pieces() {
    let (scene, connection, replica) = begun();
    for _ in 0..5 {
        touch(&connection);
    }
    restart(&connection);
    let mut replica = replica;
    let mut steps = 0;
    loop {
        let bounds = Bounds { frames_max: 1, ..BOUNDS };
        let mark = replica.mark.clone().expect("a log");
        let Outcome::Read(changes) = scene.log().read(&mark, &bounds).expect("readable") else {
            panic!("lost")
        };
        let more = changes.more;
        replica.apply(changes);
        steps += 1;
        if !more {
            break;
        }
    }
    assert!(steps >= 6, "{steps}");
    replica.compare("in pieces");
}

#[test]
fn a_restart_that_overwrote_what_was_not_read_is_a_loss() {
    let (scene, connection, replica) = begun();
    let mark = replica.mark.as_ref().expect("a log");
    touch(&connection);
    checkpoint(&connection, "FULL");
    for _ in 0..16 {
        touch(&connection);
    }
    assert_eq!(scene.lost(mark), Loss::Overwritten);
}

#[test]
fn a_restart_of_a_log_of_which_nothing_was_read_is_a_loss() {
    let (scene, connection, _) = begun();
    let begin = scene.begin();
    restart(&connection);
    assert_eq!(scene.lost(&begin), Loss::Overwritten);
}

#[test]
fn two_restarts_are_a_loss() {
    let (scene, connection, replica) = begun();
    restart(&connection);
    restart(&connection);
    assert_eq!(scene.lost(replica.mark.as_ref().expect("a log")), Loss::Restarted);
}

#[test]
fn a_restart_by_another_connection_is_salvaged() {
    let (scene, connection, mut replica) = begun();
    let writer = scene.open();
    touch(&connection);
    checkpoint(&connection, "RESTART");
    touch(&writer);
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("restarted by another");
}

#[test]
fn a_restart_with_new_salts_is_a_loss() {
    let (scene, connection, replica) = begun();
    let writer = scene.open();
    // Who writes the new header has never restarted a log itself, nor does so now: it draws both salts.
    checkpoint(&connection, "TRUNCATE");
    touch(&writer);
    assert_eq!(scene.lost(replica.mark.as_ref().expect("a log")), Loss::Restarted);
}

#[test]
fn a_new_run_that_holds_only_what_was_rolled_back_is_salvaged() {
    let (_scene, connection, mut replica) = begun();
    for _ in 0..40 {
        touch(&connection);
    }
    assert_eq!(replica.follow(&BOUNDS), None);
    touch(&connection);
    checkpoint(&connection, "FULL");
    run(&connection, "BEGIN");
    add(&connection, 5);
    run(&connection, "ROLLBACK");
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("rolled back in the new run");
    touch(&connection);
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("and then a transaction");
}

/// Two connections begin the same run, and count their checkpoints differently: the header has another
/// checksum the second time.
#[test]
fn a_run_whose_header_is_written_twice_is_read() {
    let (scene, connection, mut replica) = begun();
    let other = scene.open();
    checkpoint(&connection, "FULL");
    touch(&other);
    assert_eq!(replica.follow(&BOUNDS), None);
    checkpoint(&other, "FULL");
    run(&connection, "BEGIN");
    add(&connection, 20);
    run(&connection, "ROLLBACK");
    assert_eq!(replica.follow(&BOUNDS), Some(Loss::Overwritten));
    let (before, mark) = (scene.begin(), replica.mark.clone().expect("a log"));
    touch(&other);
    let after = scene.begin();
    assert!(before.run.salts == after.run.salts && before.run.begin != after.run.begin);
    assert_eq!(mark.run, before.run);
    assert_eq!(scene.read(&mark).transactions, 1);
    assert_eq!(replica.follow(&BOUNDS), None);
    replica.compare("after the second header");
    // With frames of the run read, another header cannot be.
    let mut impossible = replica.mark.clone().expect("a log");
    impossible.run.begin = before.run.begin;
    assert_eq!(scene.lost(&impossible), Loss::Rewritten);
}

/// A log whose last transaction vanished in a crash, or never was: something else is written from there on.
#[test]
fn a_transaction_that_was_read_and_then_unmade_is_a_loss() {
    let (scene, connection, mut replica) = begun();
    let files = ["app.db", "app.db-wal"];
    let other = tempfile::tempdir().expect("a folder");
    for file in files {
        fs::copy(scene.folder.path().join(file), other.path().join(file)).expect("copied");
    }
    // Here a large transaction follows, and is read.
    add(&connection, 6);
    assert_eq!(replica.follow(&BOUNDS), None);
    let mark = replica.mark.clone().expect("a log");
    let with_large = scene.log_bytes();
    // There a small one follows, in the same run of the log.
    let database = other.path().join("app.db");
    let writer = Connection::open(&database).expect("opens");
    touch(&writer);
    let with_small = fs::read(other.path().join("app.db-wal")).expect("readable");
    assert_eq!(with_small[..32], with_large[..32], "the same run");
    // What was read lies behind it as it was: its last frame, too.
    let before = Log::of(&database).mark().expect("readable").expect("a log");
    let small = match Log::of(&database).read(&before, &BOUNDS).expect("readable") {
        Outcome::Read(changes) => changes.mark.bytes() as usize,
        Outcome::Lost(loss) => panic!("lost: {loss}"),
    };
    assert!((small as u64) < mark.bytes() - 536, "the last frame is as it was read");
    fs::write(scene.log_path(), [&with_small[..small], &with_large[small..]].concat()).expect("written");
    assert_eq!(scene.lost(&mark), Loss::Rewritten);
    assert!(!scene.log().confirm(&mark).expect("readable"));
    // Cut there, as by a crash.
    fs::write(scene.log_path(), &with_large[..before.bytes() as usize]).expect("written");
    assert_eq!(scene.lost(&mark), Loss::Rewritten);
}

/// Frames are in the log before SQLite shows them; here for as long as we like.
#[test]
fn a_transaction_that_is_not_shown_yet_is_read_again_from_a_settled_mark() {
    let (scene, connection, mut replica) = begun();
    let other = tempfile::tempdir().expect("a folder");
    for file in ["app.db", "app.db-wal"] {
        fs::copy(scene.folder.path().join(file), other.path().join(file)).expect("copied");
    }
    let database = other.path().join("app.db");
    let writer = Connection::open(&database).expect("opens");
    change(&writer, 5);
    fs::write(scene.log_path(), fs::read(other.path().join("app.db-wal")).expect("readable"))
        .expect("written");
    // The log is ahead of what SQLite reads.
    let mark = scene.mark();
    assert_eq!(pages(&scene.path), replica.pages);
    assert_eq!(scene.read(replica.mark.as_ref().expect("a log")).transactions, 1);
    // Who reads pages behind the settled mark, and then from it, has the transaction.
    replica.start_again();
    assert!(replica.mark.as_ref().is_some_and(|settled| settled.frames() < mark.frames()));
    assert_eq!(replica.follow(&BOUNDS), None);
    assert_eq!(replica.pages, pages(&database));
    // If it fails instead, whatever is written in its place is seen.
    change(&connection, 6);
    assert_eq!(scene.lost(&mark), Loss::Rewritten);
}

/// What a writer does to the log while it is read; each commit is told.
type Deed = fn(&Connection, &mut dyn FnMut());

const DEEDS: [(&str, Deed); 9] = [
    ("commit", |connection, told| {
        touch(connection);
        told();
    }),
    ("commits", |connection, told| {
        for row in 1..6 {
            change(connection, row);
            told();
        }
    }),
    ("rollback", |connection, _| {
        run(connection, "BEGIN");
        add(connection, 20);
        run(connection, "ROLLBACK");
    }),
    ("restart", |connection, told| {
        restart(connection);
        told();
    }),
    ("commits and restart", |connection, told| {
        for row in 1..4 {
            change(connection, row);
            told();
        }
        restart(connection);
        told();
    }),
    ("restart and overrun", |connection, told| {
        restart(connection);
        told();
        for _ in 0..12 {
            touch(connection);
            told();
        }
    }),
    ("restart and rollback", |connection, _| {
        checkpoint(connection, "FULL");
        run(connection, "BEGIN");
        add(connection, 20);
        run(connection, "ROLLBACK");
    }),
    ("two restarts", |connection, told| {
        for _ in 0..2 {
            restart(connection);
            told();
        }
    }),
    ("truncate", |connection, told| {
        checkpoint(connection, "TRUNCATE");
        touch(connection);
        told();
    }),
];

/// Every deed before every single read of a reading, of a log of one run and of one just restarted: what
/// is handed on always leads to a state that SQLite has committed, and going on from there to the last.
#[test]
fn whatever_is_done_between_two_reads_no_wrong_state_is_handed_on() {
    let mut seen: BTreeMap<String, u32> = BTreeMap::new();
    for (name, deed) in DEEDS {
        for restarted_before in [false, true] {
            let mut at = 0;
            loop {
                let (scene, connection, mut replica) = begun();
                let mut states: Vec<Pages> = vec![pages(&scene.path)];
                for row in 10..12 {
                    change(&connection, row);
                    states.push(pages(&scene.path));
                }
                if restarted_before {
                    restart(&connection);
                    states.push(pages(&scene.path));
                }
                // Read to the end, it leads at least to what was committed before.
                let last = states.len() - 1;
                let mut done = false;
                let mark = replica.mark.clone().expect("a log");
                let log = Meddled::new(&scene.path, 300, |number| {
                    if number == at {
                        done = true;
                        deed(&connection, &mut || states.push(pages(&scene.path)));
                    }
                });
                let outcome = read(&log, &mark, &BOUNDS).expect("readable");
                drop(log);
                let context = format!("{name} before read {at}, restarted before: {restarted_before}");
                let what = match outcome {
                    Outcome::Read(changes) => {
                        let what = if changes.mark.run == mark.run { "read" } else { "salvaged" };
                        let first = if changes.more { 0 } else { last };
                        replica.apply(changes);
                        assert!(
                            states[first..].contains(&replica.pages),
                            "{context}: {what}, no state it may be"
                        );
                        what.to_owned()
                    }
                    Outcome::Lost(loss) => {
                        replica.start_again();
                        loss.to_string()
                    }
                };
                *seen.entry(what).or_default() += 1;
                replica.follow(&BOUNDS);
                replica.compare(&context);
                if !done {
                    break;
                }
                at += 1;
            }
            assert!(at > 10, "{name}: {at} reads");
        }
    }
    for what in ["read", "salvaged", "the log was restarted and overwrote what was not read"] {
        assert!(seen.get(what).is_some_and(|times| *times > 5), "{what}: {seen:?}");
    }
}

/// A bound is reached with the last frame of a run, and another run has begun: what a transaction sees that has
/// begun is not all read.
#[test]
fn the_end_of_a_run_is_not_the_end_of_the_log() {
    let (scene, connection) = Scene::new(512);
    add(&connection, 40);
    let mark = scene.mark();
    add(&connection, 40);
    let frames = scene.mark().frames() - mark.frames();
    let before = scene.log().end().expect("readable").expect("a log");
    restart(&connection);
    touch(&connection);
    let end = scene.log().end().expect("readable").expect("a log");
    let bounds = Bounds { frames_max: frames, ..BOUNDS };
    let Outcome::Read(changes) = scene.log().read(&mark, &bounds).expect("readable") else {
        panic!("all of it is there");
    };
    assert!(changes.more && end.is_behind(&changes.mark));
    assert!(!before.is_behind(&changes.mark), "what comes later is not waited for");
}
