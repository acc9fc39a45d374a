//! Whatever stands in the note of an interrupted restore: the database is there afterwards, whole, and
//! no file that is not of a restore is touched. A note that is refused changes nothing.
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use lifeboat::error::ErrorKind;
use lifeboat::restore;

/// What may lie beside a database: itself, its log, a foreign file, and what a restore leaves.
const FILES: [&str; 5] =
    ["app.db", "app.db-wal", "other.db", ".lifeboat-copy-1", "app.db.pre-restore-20261121T140000.000Z"];

/// As many of them as are nobody's but the application's.
const FOREIGN: usize = 3;

pub fn holds(note: &[u8]) {
    let dir = tempfile::tempdir().expect("a directory");
    for name in FILES {
        fs::write(dir.path().join(name), name).expect("written");
    }
    let intent = dir.path().join(".app.db.lifeboat-intent");
    fs::write(&intent, note).expect("written");
    let before = files(dir.path());
    let recovered = restore::recover(&dir.path().join("app.db"));
    let after = files(dir.path());
    match recovered {
        Ok(done) => assert!(done.is_some() && !intent.exists(), "it is settled"),
        Err(error) => {
            assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
            assert_eq!(after, before, "{}", error.chain());
        }
    }
    for name in &FILES[..FOREIGN] {
        assert_eq!(after.get(*name), before.get(*name), "{name} after {:?}", String::from_utf8_lossy(note));
    }
}

fn files(folder: &Path) -> BTreeMap<String, Vec<u8>> {
    let entries = fs::read_dir(folder).expect("readable").map(|entry| entry.expect("readable"));
    let named = entries.map(|entry| {
        let content = fs::read(entry.path()).expect("readable");
        (entry.file_name().to_string_lossy().into_owned(), content)
    });
    named.collect()
}
