//! A text is a key, an id or a name of ours with exactly that spelling, or none of ours.
use lifeboat::snapshot::{DatabaseName, Key, SnapshotId};

pub fn holds(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    if let Some(key) = Key::parse(text) {
        assert_eq!(key.path(), text);
        assert!(!text.starts_with('/') && !text.contains("//"), "it stays below the prefix");
        assert!(text.split('/').all(|part| part != ".."), "it stays below the prefix");
    }
    if let Ok(id) = text.parse::<SnapshotId>() {
        assert_eq!(id.as_str(), text);
        let next = SnapshotId::next(id.time(), Some(&id), 0);
        assert!(next > id || next.time() == id.time(), "{next} comes after {id}");
    }
    if let Ok(name) = text.parse::<DatabaseName>() {
        assert_eq!(name.as_str(), text);
    }
}
