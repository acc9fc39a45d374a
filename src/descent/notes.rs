//! What this machine noted of where a database file comes from: one small file in the scratch
//! directory. A cache: without it the content has to tell.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::crash::{self, Point};
use crate::disk::{make_private_directory, read_own_file, scratch_file, sync_folder};
use crate::lineage::Known;
use crate::snapshot::{DatabaseId, DatabaseName, Digest, SnapshotId};

/// The version of the file. Any other is as good as none.
const FORMAT: u32 = 1;

/// Notes kept at most, of one name: who backs up to several storages has a few.
const NOTES_MAX: usize = 16;

/// The largest file that is read, in bytes.
const BYTES_MAX: u64 = 64 << 10;

/// The notes about one database file.
#[derive(Debug, Clone)]
pub struct Notes {
    file: PathBuf,
    database: PathBuf,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct File {
    format: u32,
    /// Newest first, one for each history and path.
    notes: Vec<Note>,
}

/// What was noted with regard to one history. It counts for the file it was written about only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Note {
    database_id: DatabaseId,
    path: PathBuf,
    inode: u64,
    snapshot: SnapshotId,
    sha256: Digest,
    branch: bool,
    pending: Option<SnapshotId>,
}

impl From<Note> for Known {
    fn from(note: Note) -> Known {
        let Note { snapshot, sha256, branch: is_branch, pending, .. } = note;
        Known { snapshot, sha256, is_branch, pending }
    }
}

impl Notes {
    /// The notes about the database at `database`, stored as `name`, kept in `scratch`.
    pub fn of(scratch: &Path, name: &DatabaseName, database: &Path) -> Notes {
        Notes { file: scratch.join(format!("{name}.lineage.json")), database: database.to_owned() }
    }

    /// Where they are.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// What is known of this file in the history `database_id`.
    pub fn known(&self, database_id: &DatabaseId) -> Option<Known> {
        let note = self.of_this_file().into_iter().find(|note| note.database_id == *database_id)?;
        Some(note.into())
    }

    /// A history this file is known to belong to.
    pub fn history(&self) -> Option<DatabaseId> {
        self.newest().map(|(database_id, _)| database_id)
    }

    /// What was noted of this file last, and with regard to which history.
    pub fn newest(&self) -> Option<(DatabaseId, Known)> {
        self.of_this_file().into_iter().next().map(|note| (note.database_id.clone(), note.into()))
    }

    /// Notes what is known now. That it cannot be noted is told, and no reason to fail.
    pub fn write(&self, database_id: &DatabaseId, known: &Known) {
        if let Err(error) = self.try_write(database_id, known) {
            tracing::warn!(
                path = %self.file.display(),
                "could not note where the database comes from, so the next start has to compare it: {error}"
            );
        }
    }

    fn try_write(&self, database_id: &DatabaseId, known: &Known) -> io::Result<()> {
        let (path, inode) = identity(&self.database)?;
        let note = Note {
            database_id: database_id.clone(),
            path,
            inode,
            snapshot: known.snapshot.clone(),
            sha256: known.sha256,
            branch: known.is_branch,
            pending: known.pending.clone(),
        };
        let mut notes = self.read();
        if notes.contains(&note) {
            return Ok(());
        }
        // Several machines may share a directory, each with its own path.
        notes.retain(|other| other.database_id != note.database_id || other.path != note.path);
        notes.insert(0, note);
        notes.truncate(NOTES_MAX);
        let folder = self.file.parent().unwrap_or(Path::new("."));
        make_private_directory(folder)?;
        let mut copy = scratch_file(folder)?;
        copy.write_all(&serde_json::to_vec_pretty(&File { format: FORMAT, notes })?)?;
        copy.as_file().sync_all()?;
        crash::at(Point::NoteSynced);
        copy.persist(&self.file)?;
        crash::at(Point::NoteRenamed);
        sync_folder(folder)
    }

    fn of_this_file(&self) -> Vec<Note> {
        let Ok((path, inode)) = identity(&self.database) else { return Vec::new() };
        let mut notes = self.read();
        notes.retain(|note| note.path == path && note.inode == inode);
        notes
    }

    /// Every note there is; none if the file is absent, damaged or of another version.
    fn read(&self) -> Vec<Note> {
        let bytes = read_own_file(&self.file, BYTES_MAX).unwrap_or_else(|error| {
            tracing::warn!("the notes of where the database comes from count as none: {error}");
            None
        });
        let bytes = bytes.unwrap_or_default();
        let file = serde_json::from_slice::<File>(&bytes).ok();
        file.filter(|file| file.format == FORMAT).map(|file| file.notes).unwrap_or_default()
    }
}

/// The real path and the inode: a file that was put in the place of another is another.
fn identity(database: &Path) -> io::Result<(PathBuf, u64)> {
    let path = fs::canonicalize(database)?;
    let inode = fs::metadata(&path)?.ino();
    Ok((path, inode))
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;
    use crate::catalog::fixture::{at, manifest};

    fn known(time: &str) -> Known {
        let manifest = manifest(at(time), 1, None, &[]);
        Known { snapshot: manifest.id, sha256: manifest.plain.sha256, is_branch: false, pending: None }
    }

    #[test]
    fn a_note_counts_for_its_file_and_its_history_only() {
        let dir = tempfile::tempdir().expect("a directory");
        let database = dir.path().join("app.db");
        fs::write(&database, "one").expect("written");
        let notes = Notes::of(&dir.path().join("scratch"), &"app".parse().expect("a name"), &database);
        let (ours, other) = (DatabaseId::new(1), DatabaseId::new(2));
        assert_eq!((notes.known(&ours), notes.history()), (None, None));
        let noted = known("2026-11-21T14:00:00Z");
        notes.write(&ours, &noted);
        assert_eq!(notes.known(&ours).as_ref(), Some(&noted));
        assert_eq!((notes.known(&other), notes.history()), (None, Some(ours.clone())));
        // A second history does not push the first one out, nor does a second note.
        notes.write(&other, &known("2026-11-21T15:00:00Z"));
        let later = Known { pending: Some(noted.snapshot.clone()), ..known("2026-11-21T16:00:00Z") };
        notes.write(&ours, &later);
        assert_eq!(notes.known(&ours), Some(later));
        assert_eq!(notes.known(&other), Some(known("2026-11-21T15:00:00Z")));

        // Written to, it is the same file; replaced, it is another.
        fs::write(&database, "one and more").expect("written");
        assert!(notes.known(&ours).is_some());
        fs::write(dir.path().join("copy"), "two").expect("written");
        fs::rename(dir.path().join("copy"), &database).expect("renamed");
        assert_eq!((notes.known(&ours), notes.history()), (None, None));
    }

    #[test]
    fn a_damaged_note_is_none_and_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let database = dir.path().join("app.db");
        fs::write(&database, "one").expect("written");
        let notes = Notes::of(dir.path(), &"app".parse().expect("a name"), &database);
        let ours = DatabaseId::new(1);
        for damaged in ["", "{", r#"{"format":2,"notes":[]}"#, r#"{"format":1,"notes":[{"path":"/"}]}"#] {
            fs::write(notes.file(), damaged).expect("written");
            assert_eq!(notes.known(&ours), None, "{damaged}");
            notes.write(&ours, &known("2026-11-21T14:00:00Z"));
            assert!(notes.known(&ours).is_some(), "{damaged}");
        }
    }
    #[test]
    fn a_pipe_or_a_link_is_no_note_and_is_replaced() {
        let dir = tempfile::tempdir().expect("a directory");
        let database = dir.path().join("app.db");
        fs::write(&database, "one").expect("written");
        let notes = Notes::of(dir.path(), &"app".parse().expect("a name"), &database);
        let ours = DatabaseId::new(1);
        notes.write(&ours, &known("2026-11-21T14:00:00Z"));
        let elsewhere = dir.path().join("elsewhere");
        fs::rename(notes.file(), &elsewhere).expect("moved");
        std::os::unix::fs::symlink(&elsewhere, notes.file()).expect("made");
        assert_eq!(notes.known(&ours), None);
        fs::remove_file(notes.file()).expect("removed");
        mknodat(CWD, notes.file(), FileType::Fifo, Mode::RWXU, 0).expect("made");
        assert_eq!(notes.known(&ours), None);
        notes.write(&ours, &known("2026-11-21T15:00:00Z"));
        assert!(notes.known(&ours).is_some());
    }
}
