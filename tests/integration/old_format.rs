//! What earlier programs wrote is read, proven, restored and gone on from; and what a later program
//! writes is refused by name, and nothing beside it is removed or replaced.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use lifeboat::error::ErrorKind;
use rusqlite::Connection;
use serde_json::Value;

use crate::support::files::{copy_tree, digest, names};
use crate::support::program::Program;

const FIRST: &str = "20261122T075923.127Z-520f2f77";
const SECOND: &str = "20261122T075923.321Z-7e346c79";
const THIRD: &str = "20261122T075923.516Z-d2f8de1b";
const BRANCH: &str = "20261122T075923.740Z-6f84f314";

/// Each snapshot, the digest of its database, and what that says.
const SNAPSHOTS: [(&str, &str, &str); 4] = [
    (FIRST, "62f6c255e157bb89ccc0825f61d553956ac6a9049c61ca9c1797fd3bd703e7f8", "first"),
    (SECOND, "ac43671ee0d0419e48cad42b484b04505bf9bb6274c1893d196849e0164e1ae7", "first,second"),
    (THIRD, "b668b0d5d318394f8812130b53a235120773133c93d25fe69a8c750fc549b1a9", "first,second,third"),
    (BRANCH, "ebcc1fc78d737fe240b3cae8ba389e60279aa3e805cbbfe417caed4de80f39fa", "first,branch"),
];

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/format-1").join(name)
}

/// A machine on which everything was stored by the first program; its database is the third snapshot.
fn old_machine() -> Program {
    let program = Program::new().with("BACKUP_PRUNE_SAFETY_AGE", "0s").with("BACKUP_RETENTION", "1l");
    fs::create_dir(program.path("backups")).expect("made");
    copy_tree(&fixture("app"), &program.path("backups/app"));
    program.succeed(&["restore"]);
    let scratch = program.path("backups/.lifeboat-scratch");
    let _ = fs::remove_dir_all(&scratch);
    fs::create_dir(&scratch).expect("made");
    let note = fs::read_to_string(fixture("lineage.json")).expect("readable");
    let database = fs::canonicalize(program.database()).expect("there");
    let inode = fs::metadata(&database).expect("there").ino().to_string();
    let note = note.replace("PATH", &database.display().to_string()).replace("12345678", &inode);
    fs::write(scratch.join("app.lineage.json"), note).expect("written");
    program
}

fn words(database: &Path) -> String {
    let app = Connection::open(database).expect("opens");
    let verdict: String = app.query_row("PRAGMA integrity_check", [], |row| row.get(0)).expect("checked");
    assert_eq!(verdict, "ok");
    app.query_row("SELECT group_concat(word) FROM t", [], |row| row.get(0)).expect("queries")
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).expect("readable")).expect("JSON")
}

/// Every file below a folder with its digest.
fn content(folder: &Path) -> Vec<(PathBuf, String)> {
    let mut found = Vec::new();
    for name in names(folder) {
        let path = folder.join(name);
        match path.is_dir() {
            true => found.extend(content(&path)),
            false => found.push((path.clone(), digest(&path).to_string())),
        }
    }
    found
}

#[test]
fn every_snapshot_of_the_first_format_is_listed_proven_and_restored_byte_for_byte() {
    let program = old_machine();
    assert_eq!(words(&program.database()), "first,second,third");
    let listing = program.json(&["snapshots"]);
    let ids: Vec<&str> = listing["snapshots"]
        .as_array()
        .expect("a list")
        .iter()
        .map(|manifest| manifest["id"].as_str().expect("an id"))
        .collect();
    assert_eq!(ids, [BRANCH, THIRD, SECOND, FIRST]);
    let told = program.succeed(&["snapshots"]);
    let line = |id: &str| told.lines().find(|line| line.starts_with(id)).expect("listed").to_owned();
    for (id, part) in [
        (FIRST, "proven 2026-11-22"),
        (SECOND, "drill failed"),
        (THIRD, "proven 2026-11-22"),
        (BRANCH, "a branch"),
    ] {
        assert!(line(id).contains(part), "{told}");
    }
    for (id, sha256, says) in SNAPSHOTS {
        let output = program.path(id);
        program.succeed(&["restore", "--snapshot", id, "--output", &output.display().to_string()]);
        assert_eq!(digest(&output).to_string(), sha256);
        assert_eq!(words(&output), says);
        program.succeed(&["verify", "--snapshot", id]);
    }
}

#[test]
fn a_history_of_the_first_format_goes_on() {
    let program = old_machine();
    let before = content(&program.path("backups/app"));
    drop(program.app("INSERT INTO t VALUES ('fourth')"));
    let ended = program.run(&["backup", "--json"]);
    assert_eq!(ended.code, Some(0), "{ended:?}");
    assert_eq!(ended.stderr, "", "the old note shows where the database comes from");
    let report: Value = serde_json::from_str(&ended.stdout).expect("JSON");
    assert_eq!(report["snapshot"]["parent"], THIRD);
    assert_eq!(report["snapshot"]["flags"], serde_json::json!([]));
    let fourth = report["snapshot"]["id"].as_str().expect("an id");
    program.succeed(&["verify"]);
    // What was written once stands as it was.
    let after = content(&program.path("backups/app"));
    for (path, sha256) in before.iter().filter(|(path, _)| !path.ends_with("head.json")) {
        assert!(after.contains(&(path.clone(), sha256.clone())), "{}", path.display());
    }
    program.succeed(&["prune", "--apply"]);
    let left = program.snapshots();
    assert!(left.contains(&fourth.to_owned()) && !left.contains(&FIRST.to_owned()), "{left:?}");
    program.succeed(&["adopt", "--snapshot", BRANCH, "--apply"]);
    program.succeed(&["restore"]);
    assert_eq!(words(&program.database()), "first,branch");
}

#[test]
fn a_restore_that_the_first_program_left_in_the_middle_is_settled() {
    const KEPT: &str = "app.db.pre-restore-20261121T140500.000Z";
    const PUT_BACK: &str = "app.db.pre-restore-20261120T140500.000Z";
    const COPY: &str = ".lifeboat-copy-abcdef";
    // What the note is, what is to take the database's place, and whether it has.
    for (intent, replacement) in [("intent.json", COPY), ("intent-puts-back.json", PUT_BACK)] {
        for is_renamed in [false, true] {
            let program = old_machine();
            let data = program.path("data");
            let other = data.join(replacement).display().to_string();
            program.succeed(&["restore", "--snapshot", FIRST, "--output", &other]);
            fs::copy(fixture(intent), data.join(".app.db.lifeboat-intent")).expect("copied");
            fs::hard_link(data.join("app.db"), data.join(KEPT)).expect("linked");
            if is_renamed {
                fs::rename(data.join(replacement), data.join("app.db")).expect("renamed");
            }
            let ended = program.run(&["run", "--", "true"]);
            assert_eq!(ended.code, Some(0), "{ended:?}");
            let (done, says) =
                if is_renamed { ("finished", "first") } else { ("undone", "first,second,third") };
            assert!(ended.stderr.contains(&format!("an interrupted restore was {done}")), "{ended:?}");
            assert_eq!(words(&program.database()), says);
            assert_eq!(data.join(PUT_BACK).exists(), replacement == PUT_BACK && !is_renamed);
            assert!(!data.join(".app.db.lifeboat-intent").exists() && !data.join(COPY).exists());
        }
    }
}

/// A field that comes or goes is a new format: see "Versions" in docs/FORMAT.md.
#[test]
fn the_program_of_today_writes_the_same_fields() {
    let program = Program::new();
    drop(program.app("CREATE TABLE t(word)"));
    program.succeed(&["backup"]);
    program.succeed(&["verify"]);
    let fields = |path: PathBuf| -> Vec<String> {
        let Value::Object(object) = json(&path) else { panic!("no object") };
        let nested = |(name, value): (&String, &Value)| match value {
            Value::Object(inner) => inner.keys().map(|inner| format!("{name}.{inner}")).collect(),
            _ => vec![name.clone()],
        };
        // It is null where there was no snapshot before.
        object.iter().flat_map(nested).filter(|name| !name.starts_with("baseline")).collect()
    };
    let id = program.snapshots().remove(0);
    for (old, new) in [
        ("identity.json".to_owned(), "identity.json".to_owned()),
        ("head.json".to_owned(), "head.json".to_owned()),
        ("epochs/0000000001.json".to_owned(), "epochs/0000000001.json".to_owned()),
        (format!("manifests/{THIRD}.json"), format!("manifests/{id}.json")),
        (format!("proofs/{THIRD}.json"), format!("proofs/{id}.json")),
    ] {
        assert_eq!(fields(program.path("backups/app").join(new)), fields(fixture("app").join(&old)), "{old}");
    }
    let note = |path: PathBuf| fields_of_note(&json(&path));
    assert_eq!(
        note(program.path("backups/.lifeboat-scratch/app.lineage.json")),
        note(fixture("lineage.json"))
    );
}

fn fields_of_note(note: &Value) -> Vec<String> {
    note["notes"][0].as_object().expect("a note").keys().cloned().collect()
}

/// What is refused with a record of a later format in place, by its name; what is not among them does
/// not look at that record, or says in words that it looks past it.
#[test]
fn a_later_format_is_refused_by_name_and_nothing_is_removed_or_replaced() {
    let newest = format!("app/manifests/{THIRD}.json");
    let oldest = format!("app/manifests/{FIRST}.json");
    let proof = format!("app/proofs/{THIRD}.json");
    const BACKUP: &[&str] = &["backup"];
    const PRUNE: &[&str] = &["prune", "--apply"];
    const VERIFY: &[&str] = &["verify"];
    const RESTORE: &[&str] = &["restore"];
    let refused: [(&str, &[&[&str]]); 5] = [
        ("app/head.json", &[BACKUP, PRUNE, VERIFY, RESTORE]),
        ("app/identity.json", &[BACKUP, PRUNE]),
        (&newest, &[BACKUP, PRUNE, VERIFY, RESTORE]),
        (&oldest, &[PRUNE]),
        (&proof, &[PRUNE, VERIFY]),
    ];
    for (key, verbs) in refused {
        let program = old_machine();
        drop(program.app("INSERT INTO t VALUES ('fourth')"));
        let path = program.path("backups").join(key);
        let text = fs::read_to_string(&path).expect("readable");
        let later = text.replacen("\"format\": 1", "\"format\": 2,\n  \"of_the_future\": {}", 1);
        assert_ne!(later, text);
        fs::write(path, later).expect("written");
        let before = content(&program.path("backups/app"));
        let database = digest(&program.database());
        for verb in verbs {
            let ended = program.run(verb);
            assert_eq!(
                ended.code,
                Some(i32::from(ErrorKind::Corrupt.exit_code())),
                "{key} {verb:?}: {ended:?}"
            );
            let last = ended.stderr.lines().last().expect("an error");
            for part in ["unknown format version 2", "a newer lifeboat wrote it", key] {
                assert!(last.contains(part), "{verb:?}: {last}");
            }
            assert_eq!(content(&program.path("backups/app")), before, "{key} {verb:?}");
        }
        assert_eq!(digest(&program.database()), database, "{key}");
    }
}
