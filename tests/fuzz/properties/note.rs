//! Whatever stands in the note of where a database comes from: it counts, or it is as good as none, and
//! the next note is read as it was written.
use std::cell::RefCell;
use std::fs;

use lifeboat::descent::Notes;
use lifeboat::lineage::Known;
use lifeboat::snapshot::{DatabaseId, Digest};
use tempfile::TempDir;

thread_local! {
    static PLACE: RefCell<TempDir> = RefCell::new(TempDir::new().expect("a directory"));
}

pub fn holds(bytes: &[u8]) {
    PLACE.with_borrow(|dir| {
        let database = dir.path().join("app.db");
        fs::write(&database, "a database").expect("written");
        let notes = Notes::of(dir.path(), &"app".parse().expect("a name"), &database);
        fs::write(notes.file(), bytes).expect("written");
        let (ours, other) = (DatabaseId::new(1), DatabaseId::new(2));
        let before = notes.known(&other);
        assert!(before.is_none() || notes.history().is_some());
        let known = Known {
            snapshot: "20261121T140500.123Z-9f3a2c07".parse().expect("an id"),
            sha256: Digest::of(bytes),
            is_branch: false,
            pending: None,
        };
        if before.is_none() {
            notes.write(&other, &known);
        }
        let before = notes.known(&other);
        assert!(before.is_some());
        notes.write(&ours, &known);
        assert_eq!(notes.known(&ours), Some(known));
        assert_eq!(notes.history(), Some(ours));
        assert_eq!(notes.known(&other), before, "what was noted of another history stays");
    });
}
