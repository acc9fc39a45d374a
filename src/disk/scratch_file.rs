//! Temporary files that no crash leaves for ever: whoever makes the next one removes them.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use rustix::fs::{FlockOperation, flock};
use tempfile::NamedTempFile;

use super::own_file::{open_own_file, read_own_file};
use crate::crash::{self, Point};

/// Begins the names of our temporary files, beside a database and elsewhere.
const PREFIX: &str = ".lifeboat-copy-";

/// Ends the names of notes about work under way; the files a note names are left to who reads it.
pub const NOTE_SUFFIX: &str = ".lifeboat-intent";

/// The largest of these notes that is read, in bytes.
pub const NOTE_BYTES_MAX: u64 = 64 << 10;

/// Whether a file of this name is one of our temporary files.
pub fn is_scratch_name(name: &str) -> bool {
    name.starts_with(PREFIX)
}

/// A new temporary file in `directory` (mode 0600), removed when dropped.
///
/// It is locked as long as it or a clone of it is open: so what a crash left is told from what
/// another process works on. What a crash left in `directory` is removed first.
pub fn scratch_file(directory: &Path) -> io::Result<NamedTempFile> {
    sweep_scratch(directory)?;
    loop {
        let file = tempfile::Builder::new().prefix(PREFIX).tempfile_in(directory)?;
        // Before the lock another process may have taken the file for a left one, and removed it.
        if is_ours_alone(file.as_file()) && is_at(file.as_file(), file.path())? {
            return Ok(file);
        }
    }
}

/// Removes the temporary files in `directory` that nobody works on any more; none of them if a note
/// cannot be read, for it may name any of them.
pub fn sweep_scratch(directory: &Path) -> io::Result<()> {
    let mut left = Vec::new();
    let mut notes = String::new();
    for entry in fs::read_dir(directory)? {
        let path = entry?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        if name.ends_with(NOTE_SUFFIX) {
            match read_own_file(&path, NOTE_BYTES_MAX) {
                Ok(note) => notes.push_str(&String::from_utf8_lossy(&note.unwrap_or_default())),
                Err(_) => return Ok(()),
            }
        } else if is_scratch_name(&name) {
            left.push(path);
        }
    }
    for path in left {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        // What cannot be opened or removed is in nobody's way.
        if !notes.contains(&*name) && open_own_file(&path).is_ok_and(|file| is_ours_alone(&file)) {
            let _ = fs::remove_file(&path);
            crash::at(Point::CopySwept);
        }
    }
    Ok(())
}

fn is_ours_alone(file: &File) -> bool {
    flock(file, FlockOperation::NonBlockingLockExclusive).is_ok()
}

/// Whether `file` is what stands at `path` now.
pub fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let there = fs::metadata(path).ok().map(|metadata| (metadata.dev(), metadata.ino()));
    let own = file.metadata()?;
    Ok(there == Some((own.dev(), own.ino())))
}

/// Whether somebody works on the scratch file at `path`.
pub fn is_locked(path: &Path) -> bool {
    open_own_file(path).is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn only_what_nobody_works_on_is_swept() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        let in_work = scratch_file(folder.path()).expect("a file");
        for name in [".lifeboat-copy-left", ".lifeboat-copy-noted", "app.db"] {
            fs::write(path(name), "x").expect("written");
        }
        fs::write(path(".app.db.lifeboat-intent"), r#"{"copy":".lifeboat-copy-noted"}"#).expect("written");
        sweep_scratch(folder.path()).expect("swept");
        assert!(!path(".lifeboat-copy-left").exists());
        assert!(path(".lifeboat-copy-noted").exists() && path("app.db").exists());
        assert!(in_work.path().exists(), "it is locked");
        let name = in_work.path().to_owned();
        let (file, kept) = in_work.keep().expect("kept");
        assert_eq!(kept, name);
        sweep_scratch(folder.path()).expect("swept");
        assert!(kept.exists(), "a clone or the file itself still holds the lock");
        drop(file);
        sweep_scratch(folder.path()).expect("swept");
        assert!(!kept.exists());
    }
    #[test]
    fn a_pipe_keeps_nobody_waiting_and_an_unreadable_note_keeps_everything() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path(".lifeboat-copy-left"), "x").expect("written");
        for name in [".lifeboat-copy-pipe", ".app.db.lifeboat-intent"] {
            mknodat(CWD, path(name), FileType::Fifo, Mode::RWXU, 0).expect("made");
        }
        assert!(!is_locked(&path(".app.db.lifeboat-intent")));
        sweep_scratch(folder.path()).expect("nothing to be done");
        assert!(path(".lifeboat-copy-left").exists(), "the note may name it");
        fs::remove_file(path(".app.db.lifeboat-intent")).expect("removed");
        sweep_scratch(folder.path()).expect("swept");
        assert!(!path(".lifeboat-copy-left").exists() && path(".lifeboat-copy-pipe").exists());
    }
}
