//! Deltas of real databases: what they cost, and that what was stored once is read for ever.

use std::fs;
use std::path::{Path, PathBuf};

use lifeboat::clock::Timestamp;
use lifeboat::delta::{
    Applier, DatabaseChecksum, Decoder, Encoder, Header, PageSize, PageStore, PageTable, PutId, Step, merge,
};
use lifeboat::error::Result;
use lifeboat::snapshot::{Compressor, DatabaseId, Digest, Key, Level, Span};
use rusqlite::Connection;
use serde_json::{Value, json};
use tempfile::TempDir;

const PAGE: usize = 4096;

/// A database file in memory.
#[derive(Default)]
struct Memory(Vec<u8>);

impl PageStore for Memory {
    fn set_pages(&mut self, pages: u32) -> Result<()> {
        self.0.resize(pages as usize * PAGE, 0);
        Ok(())
    }

    fn write_page(&mut self, number: u32, page: &[u8]) -> Result<()> {
        let at = (number as usize - 1) * PAGE;
        self.0.resize(self.0.len().max(at + PAGE), 0);
        self.0[at..at + PAGE].copy_from_slice(page);
        Ok(())
    }
}

fn page_size() -> PageSize {
    PageSize::new(PAGE as u32).expect("valid")
}

fn database_id() -> DatabaseId {
    DatabaseId::new(0x9f3a_2c07_0011_2233_4455_6677_8899_aabb)
}

fn key(level: u8, from: u64, to: u64) -> Key {
    let level = Level::new(level).expect("there is one");
    Key::Delta("app".parse().expect("a name"), level, Span::new(from, to).expect("forward"))
}

fn header(from: u64, pages_after: usize, checksum_before: DatabaseChecksum) -> Header {
    let time = |offset_ms| Timestamp::from_millisecond(1_795_354_800_123 + offset_ms).expect("a time");
    Header {
        database_id: database_id(),
        epoch: 3,
        put_id: PutId::new(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
        span: Span::new(from, from + 1).expect("forward"),
        first_commit: time(2_000 * from as i64),
        last_commit: time(2_000 * from as i64 + 700),
        page_size: page_size(),
        pages_after: pages_after as u32,
        checksum_before,
    }
}

fn table(file: &[u8]) -> PageTable {
    let mut table = PageTable::new(page_size());
    table.resize((file.len() / PAGE) as u32);
    for (number, page) in (1..).zip(file.chunks(PAGE)) {
        table.set(number, page).expect("there");
    }
    table
}

/// The delta of the pages that differ.
fn delta(from: u64, before: &[u8], after: &[u8]) -> Vec<u8> {
    let (before, header) = (table(before), header(from, after.len() / PAGE, table(before).checksum()));
    let after_table = table(after);
    let mut encoder = Encoder::new(Vec::new(), &header, 3).expect("begun");
    for (number, page) in (1..).zip(after.chunks(PAGE)) {
        if before.hash(number) != after_table.hash(number) {
            encoder.page(number, page).expect("in order");
        }
    }
    encoder.finish(after_table.checksum()).expect("ended").1
}

const WORDS: [&str; 32] = [
    "account",
    "please",
    "the",
    "invoice",
    "of",
    "November",
    "we",
    "received",
    "your",
    "order",
    "and",
    "will",
    "deliver",
    "tomorrow",
    "meeting",
    "with",
    "customers",
    "from",
    "Hamburg",
    "about",
    "prices",
    "thank",
    "you",
    "question",
    "answer",
    "is",
    "attached",
    "regards",
    "project",
    "budget",
    "not",
    "approved",
];

/// Adds rows as an application has them: ids, names, texts, times; not random bytes, and not all the same.
fn insert(app: &Connection, rows: u64) {
    app.execute_batch(
        "CREATE TABLE IF NOT EXISTS message(
           id INTEGER PRIMARY KEY, sender TEXT, subject TEXT, body TEXT, sent_at TEXT, token TEXT);
         BEGIN",
    )
    .expect("runs");
    let mut insert = app
        .prepare("INSERT INTO message(sender, subject, body, sent_at, token) VALUES (?, ?, ?, ?, ?)")
        .expect("a statement");
    for row in 0..rows {
        let mut bits = row.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
        let mut random = |below: usize| {
            bits ^= bits << 13;
            bits ^= bits >> 7;
            bits ^= bits << 17;
            (bits % below as u64) as usize
        };
        let mut text = |words: usize| (0..words).map(|_| WORDS[random(32)]).collect::<Vec<_>>().join(" ");
        let (subject, body) = (text(4), text(8 + row as usize % 13));
        let sender = format!("user{}@example.com", random(1_000));
        let sent_at = Timestamp::from_second(1_795_354_800 + 37 * row as i64).expect("a time").to_string();
        let token = format!("{:08x}-{:08x}", random(1 << 32), random(1 << 32));
        insert.execute((sender, subject, body, sent_at, token)).expect("inserted");
    }
    app.execute_batch("COMMIT").expect("committed");
}

/// The content of a database file after each of these changes, none before the first.
fn states(changes: &[&dyn Fn(&Connection)]) -> Vec<Vec<u8>> {
    let dir = TempDir::new().expect("a directory");
    let app = Connection::open(dir.path().join("app.db")).expect("opens");
    let after = changes.iter().map(|change| {
        change(&app);
        fs::read(dir.path().join("app.db")).expect("readable")
    });
    std::iter::once(Vec::new()).chain(after).collect()
}

#[test]
fn a_delta_of_one_page_costs_little_more_than_the_page() {
    let [_, file] = &states(&[&|app| insert(app, 2_000)])[..] else { panic!("two states") };
    let mut compressor = Compressor::new(3).expect("level");
    let pages: Vec<&[u8]> = file.chunks(PAGE).skip(2).collect();
    let mut costs: Vec<(f64, usize, usize)> = pages
        .iter()
        // A leaf of a table: those are what an application writes.
        .filter(|page| page[0] == 13)
        .map(|page| {
            let alone = compressor.frame(page).expect("compressed").len();
            let mut encoder =
                Encoder::new(Vec::new(), &header(1, pages.len() + 2, 5.into()), 3).expect("begun");
            encoder.page(3, page).expect("first");
            let stored = encoder.finish(6.into()).expect("ended").1.len();
            (stored as f64 / alone as f64, stored, alone)
        })
        .collect();
    assert!(costs.len() > 50, "{} leaves", costs.len());
    costs.sort_by(|one, other| one.0.total_cmp(&other.0));
    let median = costs[costs.len() / 2];
    assert!(median.0 < 1.2, "{median:?}");
}

#[test]
fn a_database_goes_through_its_deltas_one_by_one_and_merged() {
    let run = |sql: &'static str| move |app: &Connection| app.execute_batch(sql).expect("runs");
    let states = states(&[
        &|app| insert(app, 200),
        &run("UPDATE message SET body = upper(body) WHERE id % 7 = 0"),
        &run("CREATE INDEX by_sender ON message(sender)"),
        &run("DELETE FROM message WHERE id > 20; VACUUM"),
        &|app| insert(app, 300),
        &run("DROP TABLE message; VACUUM"),
        &|app| insert(app, 30),
    ]);
    let run: Vec<Vec<u8>> =
        (0..).zip(states.windows(2)).map(|(from, pair)| delta(from, &pair[0], &pair[1])).collect();
    let empty = PageTable::new(page_size());
    let open =
        |from: usize| Decoder::new(&run[from][..], &key(0, from as u64, from as u64 + 1)).expect("header");
    let mut one_by_one = Applier::new(Memory::default(), empty.clone(), database_id(), 0);
    for (to, state) in states.iter().enumerate().skip(1) {
        one_by_one.apply(open(to - 1)).expect("it proves");
        let merged = merge((0..to).map(open).collect(), PutId::new(1), 3, Vec::new()).expect("merged");
        let merged = Decoder::new(&merged.to[..], &key(1, 0, to as u64)).expect("header");
        let mut at_once = Applier::new(Memory::default(), empty.clone(), database_id(), 0);
        at_once.apply(merged).expect("it proves");
        assert!(at_once.into_parts().0.0 == *state, "position {to}");
    }
    assert!(one_by_one.into_parts().0.0 == states[states.len() - 1]);
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1-deltas").join(name)
}

/// What a delta holds, in words.
fn told(stored: &[u8], key: &Key) -> Value {
    let mut decoder = Decoder::new(stored, key).expect("the header is read");
    let mut pages = Vec::new();
    let trailer = loop {
        match decoder.advance().expect("it is whole") {
            Step::Page(number) => pages.push(json!([number, Digest::of(decoder.page()).to_string()])),
            Step::End(trailer) => break trailer,
        }
    };
    let header = decoder.header();
    json!({
        "database_id": header.database_id,
        "epoch": header.epoch,
        "put_id": header.put_id.to_string(),
        "from": header.span.from(),
        "to": header.span.to(),
        "first_commit": header.first_commit.to_string(),
        "last_commit": header.last_commit.to_string(),
        "page_size": header.page_size.bytes(),
        "pages_after": header.pages_after,
        "checksum_before": header.checksum_before.to_string(),
        "pages": pages,
        "checksum_after": trailer.checksum_after.to_string(),
    })
}

#[test]
fn the_deltas_of_the_first_format_are_read_and_applied_as_they_were_meant() {
    let expected: Value =
        serde_json::from_slice(&fs::read(fixture("expected.json")).expect("readable")).expect("JSON");
    let deltas = expected["deltas"].as_object().expect("an object");
    assert_eq!(deltas.len(), 6);
    for (path, meant) in deltas {
        let key = Key::parse(path).expect("a key");
        let stored = fs::read(fixture(path)).expect("readable");
        assert_eq!(&told(&stored, &key), meant, "{path}");
    }
    let databases = expected["databases"].as_array().expect("a list");
    let lead = |run: &[Key]| {
        let mut state = Applier::new(Memory::default(), PageTable::new(page_size()), database_id(), 0);
        for key in run {
            let stored = fs::read(fixture(&key.path())).expect("readable");
            state.apply(Decoder::new(&stored[..], key).expect("the header is read")).expect("it proves");
        }
        let position = state.position() as usize;
        let (Memory(file), found) = state.into_parts();
        assert_eq!(found, table(&file));
        assert_eq!(databases[position], Digest::of(&file).to_string(), "position {position}");
        file
    };
    let captured: Vec<Key> = (0..5).map(|from| key(0, from, from + 1)).collect();
    for length in 0..=captured.len() {
        lead(&captured[..length]);
    }
    let file = lead(&[key(1, 0, 5)]);
    let dir = TempDir::new().expect("a directory");
    fs::write(dir.path().join("app.db"), file).expect("written");
    let app = Connection::open(dir.path().join("app.db")).expect("opens");
    let count = |sql| app.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("queries");
    assert_eq!(
        (
            count("SELECT count(*) FROM message"),
            count("SELECT count(*) FROM pragma_integrity_check WHERE integrity_check = 'ok'")
        ),
        (10, 1)
    );
}
