//! What restores replaced: `NAME.pre-restore-TIME` beside the database, each with its log and journal.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use jiff::civil::DateTime;
use jiff::tz::TimeZone;

use crate::clock::Timestamp;
use crate::crash::{self, Point};
use crate::disk::{folder_of, sync_folder};
use crate::error::{Error, ErrorKind, Result};
use crate::source::companions;

const MARK: &str = ".pre-restore-";
const STAMP: &str = "%Y%m%dT%H%M%S%.3fZ";

/// A database that was replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Where it is.
    pub path: PathBuf,
    /// When it was replaced, by its name.
    pub replaced_at: Timestamp,
    /// The size of all its files.
    pub bytes: u64,
    /// Whether the database itself is there, and not only what lay beside none.
    pub has_database: bool,
}

/// The name under which what stands at `target` is kept when it is replaced at `now`.
pub fn name(target: &Path, now: Timestamp) -> PathBuf {
    let mut name = target.file_name().unwrap_or_default().to_owned();
    name.push(format!("{MARK}{}", now.strftime(STAMP)));
    target.with_file_name(name)
}

/// Whether a file of this name may be one that was kept for `target`.
pub fn is_name(target: &Path, name: &str) -> bool {
    let own = target.file_name().unwrap_or_default().to_string_lossy();
    name.strip_prefix(&*own).is_some_and(|rest| rest.starts_with(MARK))
}

/// Everything kept for `target`, a real path, newest first. Other files are left out, however like
/// they are called.
pub fn list(target: &Path) -> Result<Vec<Kept>> {
    let folder = folder_of(target);
    let attempt = || -> io::Result<Vec<Kept>> {
        let mut found: Vec<Kept> = Vec::new();
        for entry in fs::read_dir(folder)? {
            let entry = entry?;
            let Some((path, replaced_at)) = parse(target, &entry.path()) else { continue };
            let metadata = entry.metadata()?;
            if !metadata.is_file() {
                continue;
            }
            let is_database = path == entry.path();
            let known = found.iter().position(|kept| kept.path == path);
            let kept = match known {
                Some(index) => &mut found[index],
                None => {
                    found.push(Kept { path, replaced_at, bytes: 0, has_database: false });
                    found.last_mut().expect("just pushed")
                }
            };
            kept.bytes += metadata.len();
            kept.has_database |= is_database;
        }
        found.sort_by(|one, other| other.path.cmp(&one.path));
        Ok(found)
    };
    attempt().map_err(|error| {
        let message = format!("list what restores replaced: directory=`{}`", folder.display());
        Error::new(ErrorKind::Target, message).because(error)
    })
}

/// The name of the set that `file` belongs to, and its time, if it is one of `target`.
fn parse(target: &Path, file: &Path) -> Option<(PathBuf, Timestamp)> {
    let rest = file.file_name()?.to_str()?.strip_prefix(target.file_name()?.to_str()?)?.strip_prefix(MARK)?;
    let stamp = &rest[..=rest.find('Z')?];
    let time = DateTime::strptime("%Y%m%dT%H%M%S%.fZ", stamp).ok()?;
    let time = time.to_zoned(TimeZone::UTC).ok()?.timestamp();
    let path = name(target, time);
    let is_of_set = path == file || companions(&path).iter().any(|companion| companion == file);
    is_of_set.then_some((path, time))
}

/// What goes when only the newest `keep` databases of `all`, newest first, stay; with the first of them all that
/// is older. Pure.
pub fn beyond(all: &[Kept], keep: usize) -> &[Kept] {
    let databases = all.iter().enumerate().filter(|(_, kept)| kept.has_database);
    let first = databases.map(|(index, _)| index).nth(keep);
    first.map(|first| &all[first..]).unwrap_or_default()
}

/// Removes what was kept at `paths`, newest first, beginning with the oldest; returns what went.
pub fn remove(target: &Path, paths: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let mut removed = Vec::new();
    for path in paths.iter().rev() {
        // The database last: as long as it is there, the set can be told from a foreign log.
        for file in companions(path).iter().chain([path]) {
            match fs::remove_file(file) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    let message = format!("remove what a restore replaced: path=`{}`", file.display());
                    return Err(Error::new(ErrorKind::Target, message).because(error));
                }
                _ => crash::at(Point::KeptRemoved),
            }
        }
        removed.push(path.clone());
    }
    if !removed.is_empty() {
        // A name that comes back after a power loss is removed next time.
        let _ = sync_folder(folder_of(target));
    }
    Ok(removed)
}

#[cfg(test)]
mod tests {
    use super::*;

    const OLD: &str = "app.db.pre-restore-20261121T140500.000Z";
    const NEW: &str = "app.db.pre-restore-20261122T140500.123Z";
    /// Only a log: it lay beside no database.
    const LOG_ONLY: &str = "app.db.pre-restore-20261120T000000.000Z";

    fn folder() -> tempfile::TempDir {
        let folder = tempfile::tempdir().expect("a folder");
        let foreign = [
            "app.db",
            "app.db-wal",
            "app.db.pre-restore-mine",
            "app.db.pre-restore-20261121T140500Z",
            "app.db.pre-restore-20261121T140500.000Z.bak",
            "app.db.pre-restore-20261399T140500.000Z",
            "other.db.pre-restore-20261121T140500.000Z",
        ];
        let log = format!("{OLD}-wal");
        let lone = format!("{LOG_ONLY}-wal");
        for name in foreign.into_iter().chain([OLD, NEW, &log, &lone]) {
            fs::write(folder.path().join(name), "1234").expect("written");
        }
        fs::create_dir(folder.path().join("app.db.pre-restore-20261123T000000.000Z")).expect("made");
        folder
    }

    #[test]
    fn only_what_we_kept_is_listed_newest_first() {
        let folder = folder();
        let target = folder.path().join("app.db");
        let found: Vec<_> = list(&target)
            .expect("listed")
            .into_iter()
            .map(|kept| {
                let name = kept.path.file_name().expect("a name").to_string_lossy().into_owned();
                (name, kept.bytes, kept.has_database)
            })
            .collect();
        let expected =
            [(NEW.to_owned(), 4, true), (OLD.to_owned(), 8, true), (LOG_ONLY.to_owned(), 4, false)];
        assert_eq!(found, expected);
        let now: Timestamp = "2026-11-22T14:05:00.123Z".parse().expect("a time");
        assert_eq!(name(&target, now), folder.path().join(NEW));
    }

    #[test]
    fn the_oldest_go_with_all_their_files_and_nothing_else_does() {
        let folder = folder();
        let target = folder.path().join("app.db");
        let count = || fs::read_dir(folder.path()).expect("listed").count();
        let before = count();
        let given_up = |keep| -> Vec<PathBuf> {
            let all = list(&target).expect("listed");
            beyond(&all, keep).iter().map(|kept| kept.path.clone()).collect()
        };
        assert_eq!(given_up(2), Vec::<PathBuf>::new(), "a log without a database takes no database's place");
        let removed = remove(&target, &given_up(1)).expect("removed");
        assert_eq!(removed, [folder.path().join(LOG_ONLY), folder.path().join(OLD)]);
        assert_eq!(count(), before - 3);
        assert!(folder.path().join(NEW).exists() && target.exists());
    }

    #[test]
    fn what_cannot_be_removed_is_named_and_its_database_stays() {
        let folder = folder();
        let journal = folder.path().join(format!("{OLD}-journal"));
        fs::create_dir(&journal).expect("made");
        let database = folder.path().join(OLD);
        let target = folder.path().join("app.db");
        let error = remove(&target, std::slice::from_ref(&database)).expect_err("a folder is in the way");
        assert_eq!(error.kind(), ErrorKind::Target);
        assert!(error.chain().contains(&journal.display().to_string()), "{}", error.chain());
        assert!(database.exists());
    }
}
