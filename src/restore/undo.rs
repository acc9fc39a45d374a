//! Undoing a restore: what it replaced is put back, and what stands there now is kept in its turn.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::kept;
use super::offline::resolve;
use super::swap;
use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

/// What an undo will do, before anything is done.
#[derive(Debug, Clone, Serialize)]
pub struct Undo {
    /// Where the database is: the real path.
    pub path: PathBuf,
    /// What is put there: the newest that a restore replaced.
    pub puts_back: PathBuf,
    /// When it was replaced.
    pub replaced_at: Timestamp,
    /// Its size with log and journal, in bytes.
    pub bytes: u64,
    /// Whether a database stands there now, which will be kept under another name.
    pub replaces: bool,
}

/// What an undo did.
#[derive(Debug, Clone, Serialize)]
pub struct Undone {
    /// Where the database is.
    pub path: PathBuf,
    /// Under which name it was kept.
    pub put_back: PathBuf,
    /// When it was replaced.
    pub replaced_at: Timestamp,
    /// Where what stood there is kept now, if anything did.
    pub kept: Option<PathBuf>,
}

impl fmt::Display for Undo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "put back   {}, {} bytes", self.puts_back.display(), self.bytes)?;
        writeln!(f, "replaced   at {}", self.replaced_at)?;
        match self.replaces {
            true => write!(f, "replace    {} by one rename; it is kept beside it", self.path.display()),
            false => write!(f, "create     {}", self.path.display()),
        }
    }
}

impl fmt::Display for Undone {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "put back {}, which was replaced at {}", self.path.display(), self.replaced_at)?;
        match &self.kept {
            Some(kept) => write!(f, "\nwhat stood there is kept at {}", kept.display()),
            None => Ok(()),
        }
    }
}

/// Plans to put back what the last restore onto the database at `path` replaced, following symbolic
/// links. `NotFound` if nothing is kept.
pub fn plan_undo(path: &Path) -> Result<Undo> {
    let (path, replaces) = resolve(path)?;
    let newest = kept::list(&path)?.into_iter().find(|kept| kept.has_database).ok_or_else(|| {
        let message = format!(
            "there is no restore to undo: nothing is kept as `….pre-restore-TIME` beside the database: path=`{}`",
            path.display()
        );
        Error::new(ErrorKind::NotFound, message)
    })?;
    let (puts_back, replaced_at, bytes) = (newest.path, newest.replaced_at, newest.bytes);
    Ok(Undo { path, puts_back, replaced_at, bytes, replaces })
}

/// Carries out an undo. Nobody may have the database open. Safe at every moment, as a restore is.
pub fn undo(plan: &Undo, now: Timestamp) -> Result<Undone> {
    let kept = swap::put_back(&plan.puts_back, &plan.path, now)?;
    let (path, put_back) = (plan.path.clone(), plan.puts_back.clone());
    Ok(Undone { path, put_back, replaced_at: plan.replaced_at, kept })
}
