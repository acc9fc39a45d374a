//! The swap: a proven copy, or what an earlier swap kept, takes the place of a database that nobody
//! has open.
//!
//! A crash at any moment leaves either the old or the new database under its name, whole. What
//! remains to be done is read from the files themselves, helped by one intent file that names them:
//!
//! | what a crash left | what [`recover`] does |
//! |---|---|
//! | intent, and the copy still under its temporary name | undo: old companions back, copy and link removed |
//! | the same, and what was kept is not the database any more | give up: only the copy is removed |
//! | intent, and no copy: the rename happened | finish: only the intent is left to remove |
//!
//! What is put back is not a copy: undoing leaves it where it was kept, and finishing brings its log
//! and journal after it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::kept;
use crate::clock::Timestamp;
use crate::crash::{self, Point};
use crate::disk::{
    NOTE_BYTES_MAX, NOTE_SUFFIX, folder_of, is_locked, is_scratch_name, open_own_file, read_own_file,
    scratch_file, sync_folder,
};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::source::{Exclusive, companions};

/// The durable note of a swap under way: `.NAME.lifeboat-intent` beside the database.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Intent {
    format: u32,
    /// File name of the proven copy, or of what is put back.
    copy: String,
    /// File name under which the old database is kept.
    kept: String,
    /// What is called the copy is what an earlier restore replaced: it is never removed.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    puts_back: bool,
}

const INTENT_FORMAT: u32 = 1;

/// Puts the proven file `copy`, in the same folder, in the place of `target`.
///
/// Returns where what stood there is kept, if anything did. `Target` if anybody has the database
/// open; `Busy` if another process is at the same. A swap that fails leaves the old database as it
/// was, but for its log, which may have been folded in.
pub fn swap(copy: &Path, target: &Path, now: Timestamp) -> Result<Option<PathBuf>> {
    adopt_owner_and_mode(copy, target).map_err(|error| refuse(target, "swap the database", error))?;
    crash::at(Point::SwapOwned);
    exchange(copy, target, now, false)
}

/// Puts what was kept under `replaced` in the place of `target` again, with its log and journal; else
/// as [`swap`]. Owner and mode are its own.
pub fn put_back(replaced: &Path, target: &Path, now: Timestamp) -> Result<Option<PathBuf>> {
    exchange(replaced, target, now, true)
}

fn exchange(copy: &Path, target: &Path, now: Timestamp, puts_back: bool) -> Result<Option<PathBuf>> {
    let failed = |error: io::Error| refuse(target, "swap the database", error);
    let kept = kept::name(target, now);
    let intent = Intent { format: INTENT_FORMAT, copy: file_name(copy)?, kept: file_name(&kept)?, puts_back };
    // Before anything is noted: that these names are free, and not too long for the file system.
    for name in [kept.clone()].iter().chain(&companions(&kept)) {
        if name.try_exists().map_err(failed)? {
            return Err(refuse(target, "keep the old database", io::ErrorKind::AlreadyExists.into()));
        }
    }
    let _lock = write_intent(target, &intent).map_err(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => being_restored(target).because(error),
        _ => failed(error),
    })?;
    let swapped = swap_under_intent(copy, target, &kept, puts_back);
    match &swapped {
        Ok(_) => remove_intent(target).map_err(failed)?,
        // Undoing now is what the next start would do.
        Err(_) => {
            if let Err(error) = settle(target) {
                tracing::error!("failed to undo the swap; the next start tries again: {}", error.chain());
            }
        }
    }
    swapped
}

fn swap_under_intent(copy: &Path, target: &Path, kept: &Path, puts_back: bool) -> Result<Option<PathBuf>> {
    let failed = |error: io::Error| refuse(target, "swap the database", error);
    // Held until after the rename: whoever opens the old file in between is told "locked".
    let held = Exclusive::take(target)?;
    crash::at(Point::SwapLocked);
    if held.exists() {
        // A second name, not a rename: at no moment is there no database for the application to
        // find and replace by an empty one.
        fs::hard_link(target, kept).map_err(failed)?;
        crash::at(Point::SwapKept);
    }
    // A log or journal that is still there belongs to the old file; beside the new one SQLite
    // would replay it into it.
    let mut moved = false;
    for (companion, keep) in companions(target).iter().zip(companions(kept)) {
        moved |= move_if_there(companion, &keep).map_err(failed)?;
        crash::at(Point::SwapCompanionMoved);
    }
    sync_folder(folder_of(target)).map_err(failed)?;
    crash::at(Point::SwapKeptSynced);
    fs::rename(copy, target).map_err(failed)?;
    crash::at(Point::SwapRenamed);
    sync_folder(folder_of(target)).map_err(failed)?;
    crash::at(Point::SwapRenameSynced);
    if let Some(newcomer) = held.newcomer() {
        let message = format!(
            "the database is the restored one now, but somebody opened the old one during the swap and would go on \
             with it; stop whoever it is: path=`{}` {newcomer}",
            target.display()
        );
        return Err(Error::new(ErrorKind::Target, message));
    }
    let existed = held.exists();
    drop(held);
    crash::at(Point::SwapReleased);
    if let Some(companion) = companions(target).iter().find(|companion| companion.exists()) {
        let message = format!(
            "the database is the restored one now, but somebody opened it during the swap and left this file, which \
             may be of the old one; stop whoever it is and restore again: path=`{}`",
            companion.display()
        );
        return Err(Error::new(ErrorKind::Target, message));
    }
    if puts_back {
        follow(copy, target).map_err(failed)?;
    }
    Ok((existed || moved).then(|| kept.to_owned()))
}

/// Moves the log and journal of what was put back after it. What somebody who opened it has made
/// meanwhile stays: over it nothing is moved.
fn follow(copy: &Path, target: &Path) -> io::Result<()> {
    for (companion, place) in companions(copy).iter().zip(companions(target)) {
        if !place.try_exists()? {
            move_if_there(companion, &place)?;
        }
        crash::at(Point::SwapCompanionFollowed);
    }
    sync_folder(folder_of(target))
}

/// Finishes or undoes a swap that a crash interrupted. Returns what was done, for the log.
///
/// `Corrupt` if the intent cannot be read; nothing is touched then. `Busy` while a swap is under way.
pub fn recover(target: &Path) -> Result<Option<&'static str>> {
    if is_locked(&intent_path(target)) {
        return Err(being_restored(target));
    }
    settle(target)
}

fn being_restored(target: &Path) -> Error {
    let message =
        format!("another process is restoring this database now; try again: path=`{}`", target.display());
    Error::new(ErrorKind::Busy, message)
}

/// Brings a swap to its end, one way or the other; nobody else is at work on it.
fn settle(target: &Path) -> Result<Option<&'static str>> {
    let failed = |error: io::Error| refuse(target, "recover an interrupted restore", error);
    let Some(intent) = read_intent(target)? else { return Ok(None) };
    let folder = folder_of(target);
    let (copy, kept) = (folder.join(&intent.copy), folder.join(&intent.kept));
    let done = if !copy.try_exists().map_err(failed)? {
        if intent.puts_back {
            follow(&copy, target).map_err(failed)?;
        }
        "an interrupted restore was finished: the database is the restored one"
    } else if is_other_file(&kept, target).map_err(failed)? {
        remove_copy(&copy, &intent).map_err(failed)?;
        "an interrupted restore was given up: the database was replaced or removed since, so what was kept of it stays"
    } else {
        for (companion, keep) in companions(target).iter().zip(companions(&kept)) {
            move_if_there(&keep, companion).map_err(failed)?;
            crash::at(Point::RecoveryCompanionReturned);
        }
        // That there is a copy says "undo": it goes when nothing is left to undo, also for a power
        // loss that keeps what was done last and forgets what was done before.
        sync_folder(folder).map_err(failed)?;
        remove_if_there(&kept).map_err(failed)?;
        crash::at(Point::RecoveryNameRemoved);
        remove_copy(&copy, &intent).map_err(failed)?;
        "an interrupted restore was undone: the database is what it was before"
    };
    sync_folder(folder).map_err(failed)?;
    crash::at(Point::RecoverySynced);
    remove_intent(target).map_err(failed)?;
    Ok(Some(done))
}

fn remove_copy(copy: &Path, intent: &Intent) -> io::Result<()> {
    if !intent.puts_back {
        remove_if_there(copy)?;
        crash::at(Point::RecoveryCopyRemoved);
    }
    Ok(())
}

fn read_intent(target: &Path) -> Result<Option<Intent>> {
    let path = intent_path(target);
    let failed = || format!("read the note of an interrupted restore: path=`{}`", path.display());
    let json = read_own_file(&path, NOTE_BYTES_MAX).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData => Error::new(ErrorKind::Corrupt, failed()).because(error),
        _ => Error::new(ErrorKind::Target, failed()).because(error),
    })?;
    let Some(json) = json else { return Ok(None) };
    let intent: Intent = serde_json::from_slice(&json).context(ErrorKind::Corrupt, failed)?;
    // What is named is removed or moved: it must be what a restore makes, in this folder.
    let is_copy = match intent.puts_back {
        true => kept::is_name(target, &intent.copy),
        false => is_scratch_name(&intent.copy),
    };
    let is_beside = !intent.copy.contains('/') && !intent.kept.contains('/');
    if intent.format != INTENT_FORMAT || !is_beside || !is_copy || !kept::is_name(target, &intent.kept) {
        let message = format!("the note of an interrupted restore is not ours: path=`{}`", path.display());
        return Err(Error::new(ErrorKind::Corrupt, message));
    }
    Ok(Some(intent))
}

/// The note stays locked as long as the file returned is open, also while the swap is past the
/// rename: so nobody takes what is under way for interrupted.
fn write_intent(target: &Path, intent: &Intent) -> io::Result<File> {
    let folder = folder_of(target);
    let mut file = scratch_file(folder)?;
    file.write_all(&serde_json::to_vec(intent)?)?;
    file.as_file().sync_all()?;
    crash::at(Point::IntentSynced);
    let file = file.persist_noclobber(intent_path(target)).map_err(|error| error.error)?;
    crash::at(Point::IntentNamed);
    sync_folder(folder)?;
    crash::at(Point::IntentWritten);
    Ok(file)
}

fn remove_intent(target: &Path) -> io::Result<()> {
    remove_if_there(&intent_path(target))?;
    crash::at(Point::IntentRemoved);
    sync_folder(folder_of(target))
}

fn intent_path(target: &Path) -> PathBuf {
    let name = target.file_name().unwrap_or_default().to_string_lossy();
    target.with_file_name(format!(".{name}{NOTE_SUFFIX}"))
}

fn file_name(path: &Path) -> Result<String> {
    path.file_name().and_then(|name| name.to_str()).map(str::to_owned).ok_or_else(|| {
        Error::new(ErrorKind::Target, format!("the file name is not UTF-8: path=`{}`", path.display()))
    })
}

/// The new file belongs to whom the old one did. Where there was none, it belongs to whom the folder
/// does if we may say so, for the application may run as another user; and to nobody else.
fn adopt_owner_and_mode(copy: &Path, target: &Path) -> io::Result<()> {
    let (like, mode, is_required) = match fs::metadata(target) {
        Ok(old) => (old.clone(), old.permissions().mode() & 0o7777, true),
        Err(_) => (fs::metadata(folder_of(target))?, 0o600, false),
    };
    // Never by its name: who may write to the folder could have put a link there.
    let copy = open_own_file(copy)?;
    copy.set_permissions(fs::Permissions::from_mode(mode))?;
    let own = copy.metadata()?;
    if (own.uid(), own.gid()) != (like.uid(), like.gid()) {
        let changed = std::os::unix::fs::fchown(&copy, Some(like.uid()), Some(like.gid()));
        if is_required {
            changed?;
        }
    }
    copy.sync_all()
}

fn move_if_there(from: &Path, to: &Path) -> io::Result<bool> {
    match fs::rename(from, to) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        moved => moved.map(|()| true),
    }
}

/// Whether there is a file at `path`, and it is not the one at `target` under a second name.
fn is_other_file(path: &Path, target: &Path) -> io::Result<bool> {
    let id = |path: &Path| match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        metadata => metadata.map(|metadata| Some((metadata.dev(), metadata.ino()))),
    };
    let own = id(path)?;
    Ok(own.is_some() && own != id(target)?)
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        removed => removed,
    }
}

fn refuse(target: &Path, attempt: &str, error: io::Error) -> Error {
    Error::new(ErrorKind::Target, format!("{attempt}: path=`{}`", target.display())).because(error)
}

#[cfg(test)]
mod tests {
    use rustix::fs::{CWD, FileType, Mode, mknodat};

    use super::*;

    #[test]
    fn a_note_is_somebodys_until_its_lock_is_gone() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("app.db");
        fs::write(&target, "old").expect("written");
        let intent = || Intent {
            format: INTENT_FORMAT,
            copy: ".lifeboat-copy-renamed".to_owned(),
            kept: "app.db.pre-restore-x".to_owned(),
            puts_back: false,
        };
        let lock = write_intent(&target, &intent()).expect("noted");
        assert_eq!(recover(&target).expect_err("under way").kind(), ErrorKind::Busy);
        let second = write_intent(&target, &intent()).expect_err("there is one");
        assert_eq!(second.kind(), io::ErrorKind::AlreadyExists);
        let copy = folder.path().join("copy");
        fs::write(&copy, "new").expect("written");
        let other = put_back(&copy, &target, Timestamp::UNIX_EPOCH).expect_err("another one is at it");
        assert_eq!(other.kind(), ErrorKind::Busy);
        drop(lock);
        let done = recover(&target).expect("left by a crash").expect("something is done");
        assert!(done.contains("finished"), "{done}");
        assert_eq!(recover(&target).expect("nothing is left"), None);
    }

    #[test]
    fn a_note_that_is_a_pipe_or_a_link_is_damaged_and_nothing_is_touched() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("app.db");
        let copy = folder.path().join(".lifeboat-copy-left");
        fs::write(&target, "old").expect("written");
        fs::write(&copy, "new").expect("written");
        let intent = intent_path(&target);
        let elsewhere = folder.path().join("elsewhere");
        fs::write(&elsewhere, r#"{"format":1,"copy":".lifeboat-copy-left","kept":"app.db.pre-restore-x"}"#)
            .expect("written");
        std::os::unix::fs::symlink(&elsewhere, &intent).expect("made");
        assert_damaged(&target, &copy);
        fs::remove_file(&intent).expect("removed");
        mknodat(CWD, &intent, FileType::Fifo, Mode::RWXU, 0).expect("made");
        assert_damaged(&target, &copy);
        fs::remove_file(&intent).expect("removed");
        fs::write(&intent, vec![b' '; NOTE_BYTES_MAX as usize + 1]).expect("written");
        assert_damaged(&target, &copy);
    }

    #[test]
    fn a_note_that_names_what_no_restore_makes_is_damaged_and_nothing_is_touched() {
        let folder = tempfile::tempdir().expect("a folder");
        let target = folder.path().join("app.db");
        let copy = folder.path().join(".lifeboat-copy-left");
        fs::write(&target, "old").expect("written");
        fs::write(&copy, "new").expect("written");
        let ours = (".lifeboat-copy-left", "app.db.pre-restore-x");
        for (format, (copy_name, kept)) in [
            (2, ours),
            (1, ("copy", ours.1)),
            (1, (".lifeboat-copy-left/../app.db", ours.1)),
            (1, (ours.0, "other.db")),
            (1, (ours.0, "app.db.pre-restore-x/../app.db")),
        ] {
            let note = format!(r#"{{"format":{format},"copy":"{copy_name}","kept":"{kept}"}}"#);
            fs::write(intent_path(&target), note).expect("written");
            assert_damaged(&target, &copy);
        }
    }

    #[test]
    fn a_link_in_place_of_the_copy_is_given_to_nobody() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        for (name, mode) in [("app.db", 0o644), ("elsewhere", 0o600)] {
            fs::write(path(name), name).expect("written");
            fs::set_permissions(path(name), fs::Permissions::from_mode(mode)).expect("set");
        }
        std::os::unix::fs::symlink(path("elsewhere"), path("copy")).expect("made");
        adopt_owner_and_mode(&path("copy"), &path("app.db")).expect_err("a link");
        let mode = |name: &str| fs::metadata(path(name)).expect("there").permissions().mode() & 0o777;
        assert_eq!(mode("elsewhere"), 0o600);
        fs::remove_file(path("copy")).expect("removed");
        fs::rename(path("elsewhere"), path("copy")).expect("moved");
        adopt_owner_and_mode(&path("copy"), &path("app.db")).expect("a file");
        assert_eq!(mode("copy"), 0o644);
    }

    #[track_caller]
    fn assert_damaged(target: &Path, copy: &Path) {
        let error = recover(target).expect_err("damaged");
        assert_eq!(error.kind(), ErrorKind::Corrupt, "{}", error.chain());
        assert!(error.chain().contains(".app.db.lifeboat-intent"), "{}", error.chain());
        assert_eq!(fs::read_to_string(target).expect("there"), "old");
        assert!(copy.exists());
    }
}
