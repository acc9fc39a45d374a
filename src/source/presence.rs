//! Being connected to a database, so that its log stays.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use std::time::Duration;

use super::connection::{Live, explain};
use super::locate::Source;
use crate::error::Result;

/// An idle connection without a transaction.
///
/// Whoever closes a database last moves the log into it and removes the log. As long as this is open, that is not
/// the application; closing this one moves and removes nothing. It keeps nobody from writing, or from checkpoints.
pub struct Presence {
    live: Live,
    path: PathBuf,
}

/// Which commits a database has seen: another one after every commit, whether or not a log tells of it.
///
/// Only comparable with others of the same [`Presence`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Version {
    inode: Option<u64>,
    data: i64,
}

impl Presence {
    /// Connects to a database with a log.
    pub fn begin(source: &Source, busy_timeout: Duration) -> Result<Presence> {
        let live = Live::open(source.path(), busy_timeout)?;
        // Only whoever has read once is seen by others.
        let read = live.connection.query_row("SELECT count(*) FROM sqlite_schema", [], |_| Ok(()));
        read.map_err(|error| explain(source.path(), "read", error))?;
        Ok(Presence { live, path: source.path().to_owned() })
    }

    /// The version that a transaction sees which begins now.
    pub fn version(&self) -> Result<Version> {
        let data = self.live.connection.query_row("PRAGMA data_version", [], |row| row.get(0));
        let data = data.map_err(|error| explain(&self.path, "read", error))?;
        let inode = fs::metadata(&self.path).ok().map(|metadata| metadata.ino());
        Ok(Version { inode, data })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::wal::fixture::{Scene, checkpoint, run, touch};

    #[test]
    fn the_log_stays_when_the_application_closes_the_database() {
        let (scene, app) = Scene::new(512);
        let source = Source::locate(&scene.path).expect("there");
        let presence = Presence::begin(&source, Duration::from_secs(60)).expect("connects");
        touch(&app);
        let mark = scene.mark();
        touch(&app);
        drop(app);
        assert_eq!(scene.read(&mark).transactions, 1);
        // Nor does whoever stops to capture take it away.
        drop(presence);
        assert_eq!(scene.read(&mark).transactions, 1);
    }

    #[test]
    fn a_version_is_another_one_after_every_commit_and_in_another_file() {
        let (scene, app) = Scene::new(512);
        run(&app, "PRAGMA journal_mode=DELETE");
        let source = Source::locate(&scene.path).expect("there");
        let presence = Presence::begin(&source, Duration::from_secs(60)).expect("connects");
        let version = || presence.version().expect("readable");
        let first = version();
        assert_eq!(version(), first);
        touch(&app);
        let second = version();
        assert_ne!(second, first);
        run(&app, "PRAGMA journal_mode=WAL");
        touch(&app);
        checkpoint(&app, "TRUNCATE");
        let third = version();
        assert_ne!(third, second);
        fs::copy(&scene.path, scene.folder.path().join("copy")).expect("copied");
        fs::rename(scene.folder.path().join("copy"), &scene.path).expect("replaced");
        assert_ne!(version(), third);
    }
}
