//! Looking at files without disturbing those who have them open.
//!
//! Closing any descriptor on a database drops the locks that SQLite holds on it in this process.
//! So what may be open is copied by a process of its own first, and the copy is read.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::Command;

use lifeboat::snapshot::{Digest, Hasher};

/// What stands in a folder: per name its digest, or none for what is not content (`-shm`).
pub type State = BTreeMap<String, Option<Digest>>;

/// The state of `folder`, whoever has its files open.
pub fn state(folder: &Path) -> State {
    let copy = tempfile::tempdir().expect("a temporary directory");
    copy_tree(folder, &copy.path().join("copy"));
    let entry = |entry: fs::DirEntry| {
        let name = entry.file_name().to_string_lossy().into_owned();
        let is_content = entry.path().is_file() && !name.ends_with("-shm");
        (name, is_content.then(|| digest(&entry.path())))
    };
    entries(&copy.path().join("copy")).into_iter().map(entry).collect()
}

/// The names in a folder, in order.
pub fn names(folder: &Path) -> Vec<String> {
    let mut names: Vec<String> =
        entries(folder).iter().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

fn entries(folder: &Path) -> Vec<fs::DirEntry> {
    fs::read_dir(folder).expect("the folder is there").map(|entry| entry.expect("an entry")).collect()
}

/// Copies a file or a folder, in another process.
pub fn copy_tree(from: &Path, to: &Path) {
    let copied = Command::new("cp").arg("-R").arg(from).arg(to).status().expect("cp runs");
    assert!(copied.success(), "{} is copied", from.display());
}

/// The digest of a file that nobody has open.
pub fn digest(path: &Path) -> Digest {
    let mut hasher = Hasher::default();
    pieces(path, |piece| hasher.update(piece));
    hasher.finish()
}

/// Fails unless two files are the same, byte for byte; reads them piece by piece.
pub fn assert_same(one: &Path, other: &Path) {
    let size = |path: &Path| fs::metadata(path).expect("the file is there").len();
    assert_eq!(size(one), size(other), "{} and {} differ in size", one.display(), other.display());
    assert_eq!(digest(one), digest(other), "{} and {} differ", one.display(), other.display());
}

fn pieces(path: &Path, mut take: impl FnMut(&[u8])) {
    let mut file = File::open(path).expect("the file opens");
    let mut piece = vec![0; 1 << 20];
    loop {
        let count = file.read(&mut piece).expect("the file is read");
        if count == 0 {
            return;
        }
        take(&piece[..count]);
    }
}
