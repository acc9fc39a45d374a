//! Restore on boot: what stands where the database should be, and what follows from it.

use std::fs;
use std::io;
use std::path::Path;
use std::time::Duration;

use crate::config::RestoreOnBoot;
use crate::error::{Error, ErrorKind, Result};
use crate::source::inspect_live;

/// What stands where the database should be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Present {
    /// Nothing (whatever lies beside it).
    Absent,
    /// A file without a byte.
    Empty,
    /// A file that is not a whole SQLite database.
    Unusable,
    /// A database.
    Healthy,
}

/// What a boot finds.
#[derive(Debug, Clone, Copy)]
pub struct Boot {
    /// The configured policy.
    pub policy: RestoreOnBoot,
    /// What stands there.
    pub present: Present,
    /// Whether the configuration allows to start with no database and no snapshot.
    pub allow_empty: bool,
}

/// What a boot does before the application starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BootAction {
    /// Start with what stands there.
    Start,
    /// Restore the newest snapshot, then start; what stands there is kept under another name.
    Restore(WithoutSnapshot),
}

/// What to do if there is nothing to restore. Storage out of reach is never taken for this.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum WithoutSnapshot {
    /// Start: a database is there, or starting empty is allowed.
    Start,
    /// Do not start: an application that finds nothing would create an empty database.
    Refuse,
}

/// What follows from what was found. Pure.
pub fn decide(boot: Boot) -> BootAction {
    let usable = boot.present == Present::Healthy;
    match (boot.policy, boot.present) {
        (RestoreOnBoot::Never, _) | (RestoreOnBoot::IfMissing, Present::Healthy) => BootAction::Start,
        (RestoreOnBoot::IfMissing | RestoreOnBoot::Always, _) => {
            BootAction::Restore(match usable || boot.allow_empty {
                true => WithoutSnapshot::Start,
                false => WithoutSnapshot::Refuse,
            })
        }
    }
}

/// Before the application starts nobody should hold a lock; an old instance may be on its way out.
const BUSY_TIMEOUT: Duration = Duration::from_secs(10);

/// Looks at what stands at `path`. Nobody has it open yet, for the application has not started.
pub fn look(path: &Path) -> Result<Present> {
    match fs::metadata(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Present::Absent),
        Err(error) => {
            Err(Error::new(ErrorKind::Source, format!("look at the database: path=`{}`", path.display()))
                .because(error))
        }
        Ok(metadata) if !metadata.is_file() => Err(Error::new(
            ErrorKind::Source,
            format!("this is not a database file: path=`{}`", path.display()),
        )),
        Ok(metadata) if metadata.len() == 0 => Ok(Present::Empty),
        Ok(_) => Ok(match inspect_live(path, BUSY_TIMEOUT)?.is_whole() {
            true => Present::Healthy,
            false => Present::Unusable,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::source::wal::fixture::Connection;
    use WithoutSnapshot::{Refuse, Start};

    #[test]
    fn what_stands_there_is_told_apart() {
        let folder = tempfile::tempdir().expect("a folder");
        let path = |name: &str| folder.path().join(name);
        fs::write(path("empty"), "").expect("written");
        fs::write(path("noise"), [7; 5000]).expect("written");
        let healthy = Connection::open(path("healthy")).expect("opens");
        healthy.execute_batch("CREATE TABLE t(x)").expect("fills");
        for (name, present) in [
            ("absent", Present::Absent),
            ("empty", Present::Empty),
            ("noise", Present::Unusable),
            ("healthy", Present::Healthy),
        ] {
            assert_eq!(look(&path(name)).expect("looked"), present, "{name}");
        }
        // Neither is a database that is not there yet.
        for (name, what) in [("", "not a database file"), ("empty/below", "look at the database")] {
            let error = look(&path(name)).expect_err("refused");
            assert!(error.kind() == ErrorKind::Source && error.to_string().contains(what), "{error}");
        }
    }

    #[test]
    fn the_boot_matrix() {
        use {Present::*, RestoreOnBoot::*};
        for (policy, present, allow_empty, expected) in [
            (Never, Absent, false, BootAction::Start),
            (Never, Unusable, false, BootAction::Start),
            (IfMissing, Healthy, false, BootAction::Start),
            (IfMissing, Absent, false, BootAction::Restore(Refuse)),
            (IfMissing, Absent, true, BootAction::Restore(Start)),
            (IfMissing, Empty, false, BootAction::Restore(Refuse)),
            (IfMissing, Unusable, true, BootAction::Restore(Start)),
            (Always, Healthy, false, BootAction::Restore(Start)),
            (Always, Absent, false, BootAction::Restore(Refuse)),
            (Always, Unusable, false, BootAction::Restore(Refuse)),
        ] {
            let boot = Boot { policy, present, allow_empty };
            assert_eq!(decide(boot), expected, "{boot:?}");
        }
    }
}
