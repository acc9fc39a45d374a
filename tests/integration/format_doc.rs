//! `docs/FORMAT.md` against the code: every field and every key it names, and stock tools on real data.

use std::fs::{self, File};
use std::path::Path;
use std::process::{Command, Stdio};

use lifeboat::clock::Timestamp;
use lifeboat::delta::Header;
use lifeboat::delta::ageing::{MERGED_BYTES_MAX, PARTS_MAX, RULES};
use lifeboat::snapshot::{
    Anchor, Claim, Digest, FORMAT, FRAME_BYTES_MAX, Flag, Identity, Key, Manifest, Proof, Record, SeekTable,
};
use serde_json::{Value, json};

use crate::support::lab::{Lab, checkpoint};

const DOCUMENT: &str = include_str!("../../docs/FORMAT.md");

/// The part of the document from a heading to the next of the same or a higher level.
fn section(heading: &str) -> &'static str {
    let level = heading.chars().take_while(|c| *c == '#').count();
    let start =
        DOCUMENT.find(&format!("\n{heading}\n")).unwrap_or_else(|| panic!("no heading `{heading}`")) + 1;
    let body = &DOCUMENT[start + heading.len()..];
    let ends = |line: &str| {
        let hashes = line.chars().take_while(|c| *c == '#').count();
        (1..=level).contains(&hashes) && line[hashes..].starts_with(' ')
    };
    let length: usize = body.split_inclusive('\n').take_while(|line| !ends(line)).map(str::len).sum();
    &body[..length]
}

/// The names in the first column of every table of a text.
fn first_column(text: &str) -> Vec<&str> {
    text.lines()
        .filter_map(|line| line.strip_prefix("| `"))
        .filter_map(|line| line.split('`').next())
        .collect()
}

fn names(object: &Value) -> Vec<String> {
    object.as_object().expect("an object").keys().cloned().collect()
}

fn sorted<T: Into<String>>(names: impl IntoIterator<Item = T>) -> Vec<String> {
    let mut names: Vec<String> = names.into_iter().map(Into::into).collect();
    names.sort();
    names
}

fn json(record: &impl Record) -> Value {
    serde_json::from_slice(&record.encode()).expect("records are JSON")
}

/// The whole document and the code name the same fields: none is missing, none is invented.
fn assert_documented(heading: &str, record: &Value) {
    assert_eq!(sorted(first_column(section(heading))), sorted(names(record)), "{heading}");
}

fn tables(text: &str) -> Vec<Vec<&str>> {
    let mut tables: Vec<Vec<&str>> = Vec::new();
    let mut in_table = false;
    for line in text.lines() {
        match (line.starts_with('|'), in_table) {
            (true, false) => tables.push(vec![line]),
            (true, true) => tables.last_mut().expect("one was begun").push(line),
            (false, _) => {}
        }
        in_table = line.starts_with('|');
    }
    tables
}

async fn stored_manifest() -> (Lab, Manifest) {
    let lab = Lab::new();
    let app = lab.database("app.db", "PRAGMA journal_mode=wal; CREATE TABLE t(x); INSERT INTO t VALUES (1)");
    let manifest = lab.stored(&lab.path("app.db")).await;
    drop(app);
    (lab, manifest)
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_a_manifest_is_described_and_no_other() {
    let (_lab, manifest) = stored_manifest().await;
    let anchor = Some(Anchor { position: 7, checksum: 1 });
    let written = json(&Manifest { anchor, ..manifest });
    let tables = tables(section("### `manifests/ID.json`"));
    let [fields, sqlite, flags] = &tables[..] else { panic!("three tables, not {}", tables.len()) };
    assert_eq!(sorted(first_column(&fields.join("\n"))), sorted(names(&written)));
    assert_eq!(sorted(first_column(&sqlite.join("\n"))), sorted(names(&written["sqlite"])));
    let known = [Flag::Empty, Flag::Shrunken, Flag::Malformed, Flag::Branch].map(Flag::name);
    assert_eq!(sorted(first_column(&flags.join("\n"))), sorted(known));
    for content in ["plain", "stored", "anchor"] {
        let row = fields.iter().find(|line| line.starts_with(&format!("| `{content}`"))).expect("a row");
        for field in names(&written[content]) {
            assert!(row.contains(&format!("`{field}`")), "{content}.{field}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_field_of_the_small_records_is_described_and_no_other() {
    let (lab, manifest) = stored_manifest().await;
    let catalog = lab.catalog();
    let (head, _) = catalog.head().await.expect("readable").expect("published");
    let identity: Identity = catalog.identity().await.expect("readable").expect("written");
    let now = Timestamp::UNIX_EPOCH;
    let claim = Claim { format: FORMAT, epoch: 1, holder: String::new(), claimed_at: now, branch: false };
    let proof = Proof {
        format: FORMAT,
        snapshot: manifest.id,
        proven_at: now,
        took_ms: 0,
        check: String::new(),
        assertion: None,
        failure: None,
        tool: String::new(),
    };
    assert_documented("### `head.json`", &json(&head));
    assert_documented("### `identity.json`", &json(&identity));
    assert_documented("### `epochs/N.json`", &json(&claim));
    assert_documented("### `proofs/ID.json`", &json(&proof));
}

#[test]
fn every_example_of_a_key_is_one_and_every_kind_has_an_example() {
    let block =
        DOCUMENT.split("```key\n").nth(1).and_then(|rest| rest.split("```").next()).expect("examples");
    let keys: Vec<Key> =
        block.lines().map(|line| Key::parse(line).unwrap_or_else(|| panic!("no key: {line}"))).collect();
    let kinds: std::collections::HashSet<_> = keys.iter().map(std::mem::discriminant).collect();
    assert_eq!(kinds.len(), keys.len(), "one example of each kind");
    // A kind that is added must be added here, which the compiler says, and then in the document.
    let all = |key: &Key| match key {
        Key::Identity(_)
        | Key::Head(_)
        | Key::Epoch(..)
        | Key::Snapshot(..)
        | Key::Manifest(..)
        | Key::Proof(..)
        | Key::Delta(..)
        | Key::Probe(_) => 8,
    };
    assert_eq!(keys.len(), all(&keys[0]));
    assert_eq!(first_column(section("## Keys")).len(), keys.len(), "one row of each kind");
}

#[test]
fn the_numbers_in_the_document_are_those_of_the_code() {
    assert!(DOCUMENT.contains(&format!("Format version {FORMAT}.")));
    let frame = section("### `manifests/ID.json`");
    assert!(
        frame
            .contains(&format!("Written: {}. Read: 512 to {FRAME_BYTES_MAX}", lifeboat::backup::FRAME_BYTES))
    );
    assert_eq!(Manifest::BYTES_MAX, 64 << 10);
    for frames in [0, 1, 1000] {
        assert_eq!(SeekTable::encoded_bytes(frames), 8 * frames + 17);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_seek_table_is_laid_out_as_drawn() {
    let (lab, manifest) = stored_manifest().await;
    let object = fs::read(lab.path("backups").join(manifest.data_key().path())).expect("readable");
    assert_eq!(object.len() as u64, manifest.stored.bytes);
    let word = |at: usize| u32::from_le_bytes(object[at..at + 4].try_into().expect("four bytes"));
    let table = object.len() - 25;
    assert_eq!(object[..4], [0x28, 0xB5, 0x2F, 0xFD], "a zstd frame");
    assert_eq!(object[table..table + 4], [0x5E, 0x2A, 0x4D, 0x18]);
    assert_eq!(word(table + 4), 8 + 9);
    assert_eq!(word(table + 8) as usize, table, "the one frame ends where the table begins");
    assert_eq!(u64::from(word(table + 12)), manifest.plain.bytes);
    assert_eq!(word(table + 16), 1, "frames");
    assert_eq!(object[table + 20], 0, "the descriptor");
    assert_eq!(object[table + 21..], [0xB1, 0xEA, 0x92, 0x8F]);
}

#[test]
fn a_delta_is_laid_out_as_drawn() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1-deltas");
    let path = "app/deltas/0/0000000000000004-0000000000000005";
    let stored = fs::read(folder.join(path)).expect("readable");
    let expected = fs::read(folder.join("expected.json")).expect("readable");
    let expected: Value = serde_json::from_slice(&expected).expect("JSON");
    let meant = &expected["deltas"][path];
    let field = |from: usize, bytes: usize| &stored[from..from + bytes];
    let number = |from: usize, bytes: usize| {
        field(from, bytes).iter().rev().fold(0u64, |number, byte| number << 8 | u64::from(*byte))
    };
    let hex = |from: usize| field(from, 16).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
    let time = |from: usize| {
        let ms = i64::try_from(number(from, 8)).expect("after 1970");
        Timestamp::from_millisecond(ms).expect("a time").to_string()
    };

    let tables = tables(section("## Deltas"));
    let [header, block, end] = &tables[..] else { panic!("three tables, not {}", tables.len()) };
    let mut at = 0;
    for row in &header[2..] {
        let cells: Vec<&str> = row.trim_matches(['|', ' ']).split(" | ").collect();
        let [from, bytes, what] = cells[..] else { panic!("three cells: {row}") };
        let (from, bytes): (usize, usize) = (from.parse().expect("a place"), bytes.parse().expect("a size"));
        assert_eq!(from, at, "{row}");
        at += bytes;
        let (found, meant) = match what.split([':', ',', ';', '.']).next().expect("a name") {
            "`4C 42 44`" => (json!(field(from, bytes)), json!(b"LBD")),
            "`format`" => (json!(number(from, bytes)), json!(FORMAT)),
            "page size" => (json!(1u32 << number(from, bytes)), meant["page_size"].clone()),
            "`database_id` as in `identity" => (json!(hex(from)), meant["database_id"].clone()),
            "put id" => (json!(hex(from)), meant["put_id"].clone()),
            "epoch of the writer" => (json!(number(from, bytes)), meant["epoch"].clone()),
            "from" => (json!(number(from, bytes)), meant["from"].clone()),
            "to" => (json!(number(from, bytes)), meant["to"].clone()),
            "time of the first commit" => (json!(time(from)), meant["first_commit"].clone()),
            "time of the last commit" => (json!(time(from)), meant["last_commit"].clone()),
            "checksum of the database at the position it leads from" => {
                (json!(format!("{:016x}", number(from, bytes))), meant["checksum_before"].clone())
            }
            "size of the database in pages at the position it leads to" => {
                (json!(number(from, bytes)), meant["pages_after"].clone())
            }
            other => panic!("{other} is checked nowhere"),
        };
        assert_eq!(found, meant, "{row}");
    }
    assert_eq!(at, Header::BYTES);

    assert_eq!((block.len(), end.len()), (2 + 3, 2 + 4));
    let pages = meant["pages"].as_array().expect("a list");
    assert_eq!(number(at, 2), pages.len() as u64, "all in one block");
    let frame_bytes = number(at + 2, 4) as usize;
    assert_eq!(field(at + 6, 4), [0x28, 0xB5, 0x2F, 0xFD], "a zstd frame");
    let end = at + 6 + frame_bytes;
    assert_eq!((number(end, 2), number(end + 2, 4)), (0, pages.len() as u64));
    assert_eq!(format!("{:016x}", number(end + 6, 8)), meant["checksum_after"]);
    assert_eq!(&stored[end + 14..], Digest::of(&stored[..end + 14]).bytes());
}

#[test]
fn deltas_are_merged_as_told() {
    let told = |seconds: i64| {
        let units = [(3600, "hour"), (60, "minute"), (1, "second")];
        let (size, unit) = units.into_iter().find(|(size, _)| seconds % size == 0).expect("a second");
        let count = seconds / size;
        format!("{count} {unit}{}", if count == 1 { "" } else { "s" })
    };
    let text = section("## Merged deltas");
    let [levels] = &tables(text)[..] else { panic!("one table") };
    let rows: Vec<Vec<&str>> =
        levels[2..].iter().map(|row| row.trim_matches(['|', ' ']).split(" | ").collect()).collect();
    assert_eq!(rows.len(), RULES.len() + 1);
    for (level, rule) in RULES.iter().enumerate() {
        let (below, row) = (&rows[level], &rows[level + 1]);
        assert_eq!(row[0], rule.level.to_string());
        assert_eq!(row[1], told(rule.covers.as_secs()));
        assert_eq!(below[2], told(rule.parts_kept.as_secs()));
    }
    assert!(
        text.contains(&format!("At most {PARTS_MAX} deltas, of {} MiB together", MERGED_BYTES_MAX >> 20))
    );
}

/// What `zstd -d` makes of a file. The tool is a Debian package of that name; without it this fails.
fn stock_zstd(stored: &Path) -> Vec<u8> {
    let output = Command::new("zstd")
        .args(["-d", "--stdout"])
        .stdin(Stdio::from(File::open(stored).expect("the object opens")))
        .output()
        .expect("`zstd` is installed (Debian package zstd; tests/run installs it)");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_zstd_turns_a_stored_snapshot_into_the_source() {
    let lab = Lab::new();
    // Some four frames, the last one shorter.
    let app = lab.database(
        "app.db",
        "PRAGMA journal_mode=wal; CREATE TABLE t(id INTEGER PRIMARY KEY, x BLOB);
         WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i+1 FROM n WHERE i<8000)
         INSERT INTO t SELECT i, randomblob(400) FROM n; DELETE FROM t WHERE id % 5 = 0;",
    );
    let manifest = lab.stored(&lab.path("app.db")).await;
    assert!(manifest.frame_count() > 2);
    let decoded = stock_zstd(&lab.path("backups").join(manifest.data_key().path()));
    drop(app);
    checkpoint(&lab.path("app.db"));
    assert!(decoded == fs::read(lab.path("app.db")).expect("readable"), "the source, byte for byte");
    assert_eq!(Digest::of(&decoded), manifest.plain.sha256);
}

#[tokio::test(flavor = "multi_thread")]
async fn stock_zstd_turns_the_snapshot_of_an_empty_file_into_an_empty_file() {
    let lab = Lab::new();
    File::create(lab.path("app.db")).expect("created");
    let manifest = lab.stored(&lab.path("app.db")).await;
    assert_eq!((manifest.page_size, manifest.page_count, manifest.stored.bytes), (0, 0, 17));
    assert_eq!(stock_zstd(&lab.path("backups").join(manifest.data_key().path())), Vec::<u8>::new());
}
