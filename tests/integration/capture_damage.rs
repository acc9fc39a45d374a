//! Deltas that are not what was stored: the restore of what proves, or an error that names what does; never anything
//! else. And what a capture makes of them that begins after it.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use lifeboat::backup::{self, Follow, Outcome};
use lifeboat::capture::{Capture, Needs, Writer};
use lifeboat::clock::{Clock, Timestamp};
use lifeboat::delta::{Decoder, Encoder, Header, Step};
use lifeboat::error::{Error, ErrorKind, Result};
use lifeboat::lineage::Standing;
use lifeboat::restore::{self, Damage, Moment, Target};
use lifeboat::snapshot::{Anchor, DatabaseId, Key, Level, Manifest, Record, Span};
use lifeboat::source::Source;
use lifeboat::storage::{Fault, Faulty, How, Memory, Operation, Storage};
use rusqlite::Connection;
use tokio_util::sync::CancellationToken;

use crate::support::lab::Lab;

const EPOCH: u64 = 5;

/// A database whose every commit is in a delta of its own: after the first snapshot, rows 1 to 6.
struct Line {
    lab: Lab,
    memory: Memory,
    storage: Faulty,
    app: Connection,
    capture: Arc<Capture>,
    ticks: Arc<AtomicI64>,
    clock: Clock,
    /// When storage had so many rows, and where.
    moments: Vec<(i64, Timestamp, u64)>,
}

const ROWS: i64 = 6;

impl Line {
    async fn new() -> Line {
        let memory = Memory::default();
        let storage = Faulty::new(Arc::new(memory.clone()));
        let lab = Lab::over(tempfile::tempdir().expect("a folder"), Arc::new(storage.clone()));
        let app = lab.database("app.db", "PRAGMA journal_mode=wal; CREATE TABLE t(n INTEGER PRIMARY KEY, x)");
        let ticks = Arc::new(AtomicI64::new(1_795_354_800_000));
        let reading = Arc::clone(&ticks);
        let clock = Clock::from_fn(move || {
            Timestamp::from_millisecond(reading.fetch_add(7, Ordering::Relaxed)).expect("a time")
        });
        let capture = begin(&lab, &clock, EPOCH).await.expect("begins");
        let mut line = Line { lab, memory, storage, app, capture, ticks, clock, moments: Vec::new() };
        line.back_up().await;
        for n in 1..=ROWS {
            line.commit(n).await;
        }
        line
    }

    async fn back_up(&self) -> Manifest {
        let (catalog, cancel) = (self.lab.catalog(), CancellationToken::new());
        let path = self.lab.path("app.db");
        let work = backup::Work {
            database: catalog.database(),
            path: &path,
            settings: &self.lab.settings,
            clock: &self.clock,
            cancel: &cancel,
            on_progress: Arc::new(|_| {}),
            follower: Some(Arc::clone(&self.capture) as Arc<dyn Follow>),
        };
        match backup::run(&catalog, &Standing::head(EPOCH), work).await.expect("backs up") {
            Outcome::Stored(manifest) => *manifest,
            Outcome::Unchanged(_) => panic!("it changed"),
        }
    }

    async fn commit(&mut self, n: i64) {
        self.app.execute("INSERT INTO t VALUES (?1, randomblob(900))", [n]).expect("commits");
        self.capture.read().expect("readable");
        self.capture.ship().await.expect("stored");
        assert!(self.capture.is_caught_up());
        self.moments.push((n, self.clock.now(), self.capture.position()));
    }

    fn span(&self, row: i64) -> Span {
        let to = self.moments[row as usize - 1].2;
        Span::new(to - 1, to).expect("forward")
    }

    /// The delta with this row.
    fn key(&self, row: i64) -> Key {
        self.lab.catalog().delta_key(Level::CAPTURED, self.span(row))
    }

    fn bytes(&self, row: i64) -> Vec<u8> {
        let path = self.key(row).path();
        let found = self.memory.objects().into_iter().find(|(known, _)| *known == path);
        found.expect("there").1.to_vec()
    }

    fn replace(&self, row: i64, bytes: Vec<u8>) {
        self.memory.overwrite(&self.key(row).path(), bytes);
    }

    async fn remove(&self, row: i64) {
        self.memory.delete(&self.key(row)).await.expect("removed");
    }

    /// The same pages under another header.
    fn altered(&self, row: i64, alter: impl FnOnce(&mut Header)) -> Vec<u8> {
        let bytes = self.bytes(row);
        let mut delta = Decoder::new(&bytes[..], &self.key(row)).expect("begins");
        let mut header = delta.header().clone();
        alter(&mut header);
        let mut encoder = Encoder::new(Vec::new(), &header, 1).expect("begun");
        loop {
            match delta.advance().expect("whole") {
                Step::Page(number) => encoder.page(number, delta.page()).expect("in order"),
                Step::End(trailer) => return encoder.finish(trailer.checksum_after).expect("ended").1,
            }
        }
    }

    /// How many rows a restore brings back, and that it brings back no others.
    async fn restored(&self, target: Target) -> Result<i64> {
        let moment = Moment::find(&target, &self.lab.catalog()).await?;
        let output = self.lab.path("restored.db");
        restore::to_new_file(&self.lab.resources(), &moment, &output, Damage::Refused).await?;
        let restored = Connection::open(&output).expect("opens");
        let sql = "SELECT count(*), ifnull(max(n), 0) FROM t";
        let (rows, last): (i64, i64) =
            restored.query_row(sql, [], |row| Ok((row.get(0)?, row.get(1)?))).expect("asked");
        drop(restored);
        for suffix in ["", "-wal", "-shm"] {
            let _ = fs::remove_file(self.lab.path(&format!("restored.db{suffix}")));
        }
        assert_eq!(rows, last);
        Ok(rows)
    }

    /// The newest is refused, for what is wrong with the delta of this row, and what was named is had instead.
    async fn require_refused_from(&self, row: i64, why: &str) {
        let error = self.restored(Target::Newest).await.expect_err(why);
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
        let chain = error.chain();
        assert!(chain.contains(why), "no `{why}` in: {chain}");
        assert_eq!(self.restored(named(&error)).await.expect("as told"), row - 1, "{chain}");
    }

    /// What is restored of that moment, or of the one that is named instead.
    async fn restored_or_named(&self, time: Timestamp) -> i64 {
        match self.restored(Target::At(time)).await {
            Ok(rows) => rows,
            Err(error) => self.restored(named(&error)).await.expect("as told"),
        }
    }
}

/// What can be had instead.
pub fn named(error: &Error) -> Target {
    let chain = error.chain();
    let after = |flag: &str| {
        let rest = chain.split_once(&format!("lifeboat restore {flag} "))?.1;
        rest.split('`').next()
    };
    match (after("--at"), after("--snapshot")) {
        (Some(time), _) => Target::At(time.parse().expect("a time")),
        (None, Some(id)) => Target::Snapshot(id.parse().expect("an id")),
        (None, None) => panic!("nothing is named in: {chain}"),
    }
}

async fn begin(lab: &Lab, clock: &Clock, epoch: u64) -> Result<Arc<Capture>> {
    let catalog = lab.catalog();
    while catalog.head().await?.is_none_or(|(head, _)| head.epoch < epoch) {
        catalog.claim_epoch("test", clock.now()).await?;
    }
    let identity = catalog.ensure_identity(clock.now(), 7).await?;
    let newest = catalog.newest().await?;
    let source = Source::locate(&lab.path("app.db"))?;
    let writer = Writer { database_id: identity.database_id, epoch, zstd_level: 1 };
    let limits = lab.settings.limits(&CancellationToken::new());
    Capture::begin(catalog, &source, writer, clock.clone(), newest.as_ref(), limits).await.map(Arc::new)
}

#[tokio::test]
async fn a_delta_that_is_missing_ends_what_is_restored_and_the_line() {
    let line = Line::new().await;
    line.remove(4).await;
    assert_eq!(line.restored(Target::Newest).await.expect("what proves"), 3);
    for (rows, time, _) in &line.moments {
        assert_eq!(line.restored_or_named(*time).await, 3.min(*rows));
    }
    // The database is what the last delta says, but nothing leads there.
    let capture = begin(&line.lab, &line.clock, EPOCH + 1).await.expect("begins");
    assert_eq!(capture.needs(), Needs::Snapshot);
}

#[tokio::test]
async fn deltas_that_are_doubled_or_have_changed_places_are_refused() {
    let line = Line::new().await;
    let (third, fourth) = (line.bytes(3), line.bytes(4));
    line.replace(4, third.clone());
    line.require_refused_from(4, "it stands under another one's key").await;
    line.replace(3, fourth.clone());
    line.require_refused_from(3, "it stands under another one's key").await;
    // Even if they say what their place is, they are not what belongs there.
    let (here, there) = (line.span(3), line.span(4));
    line.replace(3, third);
    line.replace(4, fourth);
    let third = line.altered(3, |header| header.span = there);
    let fourth = line.altered(4, |header| header.span = here);
    line.replace(3, fourth);
    line.replace(4, third);
    let error = line.restored(Target::Newest).await.expect_err("changed places");
    assert!(error.chain().contains("what is restored does not prove"), "{}", error.chain());
}

#[tokio::test]
async fn a_delta_that_is_cut_off_or_has_a_bit_flipped_is_refused() {
    let line = Line::new().await;
    let whole = line.bytes(4);
    for bytes in (0..whole.len()).step_by(whole.len() / 12) {
        line.replace(4, whole[..bytes].to_vec());
        // What has no whole header leads nowhere: that is found before anything is restored.
        let error = line.restored(Target::Newest).await.expect_err("cut off");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{bytes}: {}", error.chain());
    }
    for bit in (0..whole.len() * 8).step_by(whole.len() * 8 / 40) {
        let mut flipped = whole.clone();
        flipped[bit / 8] ^= 1 << (bit % 8);
        line.replace(4, flipped);
        let error = line.restored(Target::Newest).await.expect_err("flipped");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{bit}: {}", error.chain());
        assert_eq!(line.restored_or_named(line.moments[2].1).await, 3);
    }
    let mut flipped = whole.clone();
    flipped[whole.len() / 2] ^= 1;
    line.replace(4, flipped);
    line.require_refused_from(4, "is damaged").await;
}

#[tokio::test]
async fn a_delta_of_another_history_epoch_or_format_is_refused_by_name() {
    let line = Line::new().await;
    let whole = line.bytes(4);
    line.replace(4, line.altered(4, |header| header.database_id = DatabaseId::new(99)));
    line.require_refused_from(4, "the delta is of another history").await;
    line.replace(4, whole.clone());
    line.replace(4, line.altered(4, |header| header.epoch = EPOCH - 1));
    line.require_refused_from(4, "the delta is of an older epoch than one before").await;
    let mut newer = whole.clone();
    newer[3] += 1;
    line.replace(4, newer);
    let error = line.restored(Target::Newest).await.expect_err("a newer format");
    assert!(error.chain().contains("format"), "{}", error.chain());
    line.replace(4, whole);
    assert_eq!(line.restored(Target::Newest).await.expect("whole again"), ROWS);
}

#[tokio::test]
async fn an_anchor_that_lies_is_refused() {
    let line = Line::new().await;
    let manifest = line.lab.catalog().newest().await.expect("readable").expect("there is one");
    let anchor = manifest.anchor.expect("anchored");
    let lie = |anchor| {
        let manifest = Manifest { anchor: Some(anchor), ..manifest.clone() };
        line.memory.overwrite(&manifest.key().path(), manifest.encode());
    };
    lie(Anchor { checksum: anchor.checksum ^ 1, ..anchor });
    let error = line.restored(Target::Newest).await.expect_err("a lie");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    assert!(error.chain().contains("the snapshot is not what its anchor says"), "{}", error.chain());
    // The deltas before are left out then, and their pages are missing.
    lie(Anchor { position: line.moments[4].2, ..anchor });
    let error = line.restored(Target::Newest).await.expect_err("a lie");
    assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
    lie(anchor);
    assert_eq!(line.restored(Target::Newest).await.expect("the truth"), ROWS);
}

#[tokio::test]
async fn a_last_delta_that_is_damaged_ends_the_line_and_a_new_one_begins() {
    let mut line = Line::new().await;
    let mut damaged = line.bytes(ROWS);
    let middle = damaged.len() / 2;
    damaged[middle] ^= 1;
    line.replace(ROWS, damaged);
    let overtaken = Arc::clone(&line.capture);
    line.capture = begin(&line.lab, &line.clock, EPOCH + 1).await.expect("begins");
    assert_eq!(line.capture.needs(), Needs::Snapshot);
    // The line is closed to whoever wrote it.
    line.app.execute("INSERT INTO t VALUES (7, '')", []).expect("commits");
    overtaken.read().expect("readable");
    let error = overtaken.ship().await.expect_err("overtaken");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());

    let catalog = line.lab.catalog();
    let (cancel, path) = (CancellationToken::new(), line.lab.path("app.db"));
    let work = backup::Work {
        database: catalog.database(),
        path: &path,
        settings: &line.lab.settings,
        clock: &line.clock,
        cancel: &cancel,
        on_progress: Arc::new(|_| {}),
        follower: Some(Arc::clone(&line.capture) as Arc<dyn Follow>),
    };
    backup::run(&catalog, &Standing::head(EPOCH + 1), work).await.expect("backs up");
    line.commit(8).await;
    let moment = Moment::find(&Target::Newest, &catalog).await.expect("there is one");
    assert!(!moment.deltas.is_empty());
    assert_eq!(line.restored(Target::Newest).await.expect("the new line"), 8);
    assert_eq!(line.restored_or_named(line.moments[4].1).await, 5);
}

#[tokio::test]
async fn who_started_earlier_cannot_take_the_line_over() {
    let line = Line::new().await;
    let later = begin(&line.lab, &line.clock, EPOCH + 2).await.expect("begins");
    let error = begin(&line.lab, &line.clock, EPOCH + 1).await.map(drop).expect_err("overtaken");
    assert_eq!(error.kind(), ErrorKind::Fenced, "{}", error.chain());
    line.app.execute("INSERT INTO t VALUES (7, '')", []).expect("commits");
    later.read().expect("readable");
    later.ship().await.expect("goes on");
    assert_eq!(line.restored(Target::Newest).await.expect("its deltas"), 7);
}

#[tokio::test]
async fn a_clock_that_is_set_back_costs_the_newest_nothing() {
    let mut line = Line::new().await;
    line.back_up().await;
    line.ticks.fetch_sub(3_600_000, Ordering::Relaxed);
    line.commit(7).await;
    line.commit(8).await;
    assert_eq!(line.restored(Target::Newest).await.expect("all of it"), 8);
}

#[tokio::test]
async fn a_snapshot_that_no_deltas_can_lead_on_from_says_so() {
    let mut line = Line::new().await;
    line.app.execute("INSERT INTO t VALUES (7, '')", []).expect("commits");
    line.storage.script(Fault::at(Operation::Create, 1, How::Before(ErrorKind::Unavailable)).on("deltas"));
    let manifest = line.back_up().await;
    assert_eq!(manifest.anchor, None);
    line.commit(8).await;
    assert_eq!(line.restored(Target::Newest).await.expect("by the snapshot before"), 8);
    // One who dies right then leaves nothing that does not prove.
    line.app.execute("INSERT INTO t VALUES (9, '')", []).expect("commits");
    line.storage.script(Fault::at(Operation::Create, 1, How::Before(ErrorKind::Unavailable)).on("deltas"));
    line.back_up().await;
    line.app.execute("INSERT INTO t VALUES (10, '')", []).expect("commits");
    let capture = begin(&line.lab, &line.clock, EPOCH + 1).await.expect("begins");
    assert_eq!(capture.needs(), Needs::Snapshot);
    let newest = line.restored(Target::Newest).await.map_err(|error: Error| error.chain());
    assert_eq!(newest, Ok(9));
}
