//! A follower beside SQLite, step by step.

use std::fs;
use std::time::Duration;

use super::*;
use crate::delta::PageSize;
use crate::source::Source;
use crate::source::wal::fixture::{Connection, Scene, add, chain_again, pages, run, touch};
use crate::source::wal::format::{ByteOrder, FRAME_HEADER_BYTES};

/// A database and its application, and a follower to which all is known.
struct Beside {
    scene: Scene,
    app: Connection,
    follower: Follower,
}

impl Beside {
    fn new(page_size: u32) -> Beside {
        let mut beside = Beside::unknown(page_size);
        beside.follow();
        beside
    }

    /// Nothing is known but where it stands.
    fn unknown(page_size: u32) -> Beside {
        let (scene, app) = Scene::new(page_size);
        touch(&app);
        let source = Source::locate(&scene.path).expect("there");
        let presence = Presence::begin(&source, Duration::from_secs(60)).expect("connects");
        let follower = Follower::new(scene.log(), presence, 0);
        Beside { scene, app, follower }
    }

    /// Begins with the pages as they are now. Nothing waits then.
    fn follow(&mut self) {
        let place = self.follower.place().expect("readable");
        self.follower.resume(self.table(), place, now()).expect("readable");
        self.follower.cut().expect("cut");
        self.ship();
        assert!(self.follower.is_following());
    }

    fn table(&self) -> PageTable {
        let pages = pages(&self.scene.path);
        let bytes = pages.values().next().expect("a page").len() as u32;
        let mut table = PageTable::new(PageSize::new(bytes).expect("a size"));
        table.resize(pages.len() as u32);
        pages.iter().for_each(|(number, page)| table.set(*number, page).expect("of this size"));
        table
    }

    fn read(&mut self) -> Seen {
        self.follower.read(now()).expect("readable")
    }

    fn ship(&mut self) {
        while self.follower.next_cut().is_some() {
            self.follower.stored();
        }
    }

    /// What a snapshot asks for around its transaction.
    fn pin(&mut self) -> Option<u64> {
        self.follower.before_pin(now()).expect("readable");
        self.follower.pinned(true, now()).expect("readable")
    }

    fn waiting_bytes(&self) -> usize {
        let since = match &self.follower.state {
            State::Following(following) => following.since.pages.values().map(|page| page.len()).sum(),
            _ => 0,
        };
        since + self.follower.cuts.iter().map(Cut::bytes).sum::<usize>()
    }

    /// In place of the log stands what cannot be read.
    fn hide_log(&self) {
        fs::rename(self.scene.log_path(), self.scene.path.with_extension("aside")).expect("moved");
        fs::create_dir(self.scene.log_path()).expect("made");
    }

    fn show_log(&self) {
        fs::remove_dir(self.scene.log_path()).expect("removed");
        fs::rename(self.scene.path.with_extension("aside"), self.scene.log_path()).expect("moved");
    }
}

fn now() -> Timestamp {
    Timestamp::from_second(1_795_354_800).expect("a time")
}

#[test]
fn a_snapshot_may_not_show_the_transaction_that_was_read_last() {
    let mut beside = Beside::new(512);
    touch(&beside.app);
    let position = beside.pin().expect("it stands there");
    let cuts: Vec<&Cut> = beside.follower.cuts.iter().collect();
    let [before, after] = cuts[..] else { panic!("{} cuts", cuts.len()) };
    assert_eq!((before.span.to(), after.span.from()), (position, position));
    assert_eq!(before.pages, after.pages, "it leads on from the snapshot, too");
    assert_eq!((before.after, after.before, after.after), (after.before, before.after, before.after));
}

#[test]
fn a_snapshot_proves_the_deltas_before_it() {
    let mut beside = Beside::new(512);
    add(&beside.app, 40);
    let position = beside.pin().expect("it stands there");
    beside.follower.anchored(position, beside.table(), now()).expect("the pages are those of the log");
    assert_eq!(beside.follower.needs(), Needs::Nothing);

    // A page that the transaction that was read last did not write cannot be another one.
    touch(&beside.app);
    let position = beside.pin().expect("it stands there");
    let last = &beside.follower.cuts.back().expect("the last one again").pages;
    let mut table = beside.table();
    let untouched = (2..=table.pages()).find(|number| !last.contains_key(number)).expect("most are");
    table.set(untouched, &[7; 512]).expect("of this size");
    let error = beside.follower.anchored(position, table, now()).expect_err("not what was captured");
    assert!(error.chain().contains(&format!("page=`{untouched}`")), "{}", error.chain());
    assert_eq!(beside.follower.needs(), Needs::Snapshot);
}

#[test]
fn no_two_snapshots_stand_at_one_position() {
    let mut beside = Beside::unknown(512);
    assert_eq!(beside.follower.needs(), Needs::Snapshot);
    assert_eq!(beside.pin(), Some(1));
    // That one was not stored, or nobody knows.
    touch(&beside.app);
    assert_eq!(beside.pin(), Some(2));
    beside.follower.anchored(1, beside.table(), now()).expect("it comes late");
    assert_eq!(beside.follower.needs(), Needs::Snapshot);
    beside.follower.anchored(2, beside.table(), now()).expect("readable");
    assert_eq!((beside.follower.needs(), beside.follower.position()), (Needs::Nothing, 2));
}

#[test]
fn a_snapshot_that_is_pinned_after_the_log_could_not_be_read_has_no_place() {
    let mut beside = Beside::new(512);
    touch(&beside.app);
    beside.hide_log();
    beside.follower.before_pin(now()).expect_err("it is a folder");
    beside.show_log();
    assert_eq!(beside.follower.pinned(true, now()).expect("readable"), None);
    beside.read();
    beside.follower.cut().expect("cut");
    let cut = beside.follower.next_cut().expect("nothing is lost by it");
    assert_eq!(cut.after, beside.table().checksum());
}

#[test]
fn pages_older_than_the_snapshot_are_not_cut_where_the_log_could_not_be_read_to_its_end() {
    let mut beside = Beside::new(512);
    touch(&beside.app);
    beside.follower.before_pin(now()).expect("readable");
    beside.hide_log();
    beside.follower.pinned(true, now()).expect_err("it is a folder");
    beside.show_log();
    assert_eq!(beside.follower.needs(), Needs::Comparison(Why::Unread));
}

/// Some transactions of so many frames each that the log is read in pieces.
#[test]
fn pages_older_than_the_state_that_is_known_are_not_cut() {
    let mut beside = Beside::unknown(512);
    add(&beside.app, 4_000);
    let place = beside.follower.place().expect("readable");
    for _ in 0..READS_MAX + 3 {
        run(&beside.app, "UPDATE t SET x = randomblob(1200)");
    }
    beside.follower.resume(beside.table(), place, now()).expect("readable");
    assert_eq!(beside.waiting_bytes(), 0, "the log begins before the state, and ends with it");
    assert_eq!(beside.read().frames, 0, "all of it was read");
}

/// What was committed between is part of both: the state that is known, and the log from its place on.
#[test]
fn what_the_state_that_is_known_shows_already_is_not_stored_again() {
    let mut beside = Beside::unknown(512);
    add(&beside.app, 40);
    let place = beside.follower.place().expect("readable");
    run(&beside.app, "UPDATE t SET x = randomblob(1200)");
    let table = beside.table();
    run(&beside.app, "UPDATE t SET x = randomblob(1200) WHERE rowid = 7");
    beside.follower.resume(table.clone(), place, now()).expect("readable");
    beside.follower.cut().expect("cut");
    let cut = beside.follower.next_cut().expect("one row is newer");
    assert!(cut.pages.len() < 20, "{} pages", cut.pages.len());
    assert_eq!((cut.before, cut.after), (table.checksum(), beside.table().checksum()));
}

/// SQLite leaves out what it added and never used: here the last two pages.
#[test]
fn pages_that_were_never_written_are_compared() {
    let mut beside = Beside::new(512);
    touch(&beside.app);
    let mut log = beside.scene.log_bytes();
    let last = log.len() - 512 - FRAME_HEADER_BYTES;
    let page_count = log[last + 4..].first_chunk_mut().expect("of the last frame");
    *page_count = (u32::from_be_bytes(*page_count) + 2).to_be_bytes();
    chain_again(&mut log, ByteOrder::Little);
    fs::write(beside.scene.log_path(), log).expect("written");
    beside.read();
    assert_eq!(beside.follower.needs(), Needs::Comparison(Why::Unwritten));
}

#[test]
fn what_was_compared_in_vain_is_compared_again() {
    let mut beside = Beside::new(512);
    run(&beside.app, "PRAGMA wal_checkpoint(TRUNCATE)");
    touch(&beside.app);
    beside.read();
    let Needs::Comparison(why) = beside.follower.needs() else { panic!("{:?}", beside.follower.needs()) };
    let (table, _) = beside.follower.begin_comparison().expect("readable").expect("it is needed");
    assert_eq!(beside.follower.needs(), Needs::Nothing, "it is under way");
    beside.follower.not_compared(Some(table));
    assert_eq!(beside.follower.needs(), Needs::Comparison(why));
    beside.follower.begin_comparison().expect("readable").expect("it is needed");
    beside.follower.not_compared(None);
    assert_eq!(beside.follower.needs(), Needs::Snapshot);
}

/// Nothing is stored meanwhile, and snapshots are tried again and again.
#[test]
fn what_waits_for_storage_has_a_bound() {
    let mut beside = Beside::new(4096);
    let mut without_place = 0;
    // Of 24 MiB.
    add(&beside.app, 18_000);
    for _ in 0..4 {
        run(&beside.app, "UPDATE t SET x = randomblob(1200)");
        beside.read();
        without_place += u32::from(beside.pin().is_none());
        let waiting = beside.waiting_bytes();
        assert!(waiting <= 3 * SINCE_BYTES_MAX, "{waiting} bytes");
    }
    assert!(without_place > 0, "they stand nowhere then");
    assert_eq!(beside.follower.needs(), Needs::Nothing, "the same pages again and again");

    let cuts = beside.follower.cuts.len();
    add(&beside.app, 40_000);
    beside.read();
    assert_eq!(beside.follower.needs(), Needs::Comparison(Why::TooMuch));
    assert_eq!(beside.follower.cuts.len(), cuts, "what was cut is stored one day");
}
