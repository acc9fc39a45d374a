//! Where a database comes from: what this machine noted of it, what the file shows, and whether it
//! descends from the newest snapshot.
//!
//! The traces are taken before the application starts, for its first write covers them. What they
//! mean is decided by [`lineage::judge`].

mod notes;

use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

pub use notes::Notes;

use crate::catalog::Catalog;
use crate::clock::Timestamp;
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::lineage::{self, Evidence, Known, Likeness, Newest, Verdict};
use crate::snapshot::{Content, DatabaseId, DatabaseName, Digest, Hasher, Manifest, SnapshotId};
use crate::source::{Limits, PageSink, Reading, Source, last_written};

/// For how long a database is read to compare it, at most: the application waits for it. Only a
/// database without a note is read, or one whose note the newest snapshot contradicts, and only if its
/// size is that of a snapshot.
const COMPARE_TIME: Duration = Duration::from_secs(20);

/// What a database file showed before the application could write to it.
#[derive(Debug, Clone, Default)]
pub struct Traces {
    /// When it or its log was last written.
    pub modified_at: Option<Timestamp>,
    /// Its size in bytes, log included; 0 where there was none. None if nobody looked.
    pub bytes: Option<u64>,
    /// The digest of its content, if it had to be compared and could be read in time.
    pub sha256: Option<Digest>,
}

/// One database file, and what is known of it.
#[derive(Debug, Clone)]
pub struct Descent {
    path: PathBuf,
    scratch: PathBuf,
    notes: Notes,
}

/// What was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Judged {
    /// Whether the database may become head.
    pub verdict: Verdict,
    /// The newest snapshot it was compared with.
    pub newest: Option<SnapshotId>,
}

impl Descent {
    /// The database at `path`, stored as `name`, with its notes in `scratch`.
    pub fn of(name: &DatabaseName, path: &Path, scratch: &Path) -> Descent {
        let notes = Notes::of(scratch, name, path);
        Descent { path: path.to_owned(), scratch: scratch.to_owned(), notes }
    }

    /// When the file was last written: cheap, opens nothing.
    pub fn traces(&self) -> Traces {
        let is_absent = fs::metadata(&self.path).is_ok_and(|metadata| metadata.len() == 0)
            || (fs::symlink_metadata(&self.path).is_err());
        Traces { modified_at: last_written(&self.path), bytes: is_absent.then_some(0), sha256: None }
    }

    /// Adds to `traces` the size of the database and its digest, as far as they decide anything.
    /// Takes three small reads from storage; only then, perhaps, a listing and a reading of the database.
    pub async fn compare(&self, catalog: &Catalog, traces: &mut Traces, limits: Limits) -> Result<()> {
        let Some(newest) = newest(catalog).await? else { return Ok(()) };
        let Newest { content: Some((_, taken_at)), .. } = newest.facts else { return Ok(()) };
        let known = self.known(catalog).await?;
        let unread = Evidence { known, modified_at: traces.modified_at, likeness: Likeness::Unknown };
        if traces.bytes == Some(0) || lineage::judge(Some(&newest.facts), &unread) == Verdict::Descends {
            return Ok(());
        }
        let limits = Limits { deadline: limits.deadline.min(Instant::now() + COMPARE_TIME), ..limits };
        let source = Source::locate(&self.path)?;
        let reading = blocking("look at the database", move || Reading::begin(&source, limits)).await?;
        let facts = reading.facts();
        let bytes = u64::from(facts.page_size) * u64::from(facts.page_count);
        traces.bytes = Some(bytes);
        let is_as_large = newest.manifest.as_ref().is_some_and(|manifest| manifest.plain.bytes == bytes);
        let may_be_older = || unread.known.is_none() && traces.modified_at.is_none_or(|at| at >= taken_at);
        let is_as_large_as_some = match is_as_large || !may_be_older() {
            true => is_as_large,
            false => listed(catalog).await?.iter().any(|manifest| manifest.plain.bytes == bytes),
        };
        if !is_as_large_as_some {
            return Ok(());
        }
        let scratch = self.scratch.clone();
        let digest = move || digest(reading, &scratch).map(Some);
        traces.sha256 = match blocking("compare the database", digest).await {
            Err(error) if error.kind() == ErrorKind::Limit => None,
            digest => digest?,
        };
        Ok(())
    }

    /// Whether the database may become head.
    ///
    /// `Corrupt` if it is known to belong to another history than the one kept under this name.
    pub async fn judge(&self, catalog: &Catalog, traces: &Traces) -> Result<Judged> {
        let Some(newest) = newest(catalog).await? else {
            return Ok(Judged { verdict: Verdict::Descends, newest: None });
        };
        let known = self.known(catalog).await?;
        let is_noted = known.is_some();
        let likeness = match (&newest.manifest, traces) {
            (_, Traces { bytes: Some(0), .. }) => Likeness::Absent,
            (Some(manifest), Traces { sha256: Some(sha256), .. }) if manifest.plain.sha256 == *sha256 => {
                Likeness::Newest
            }
            (Some(_), Traces { sha256: Some(sha256), .. }) if !is_noted => {
                let older =
                    listed(catalog).await?.into_iter().find(|manifest| manifest.plain.sha256 == *sha256);
                older.map_or(Likeness::None, |manifest| Likeness::Older(manifest.id))
            }
            (Some(Manifest { plain: Content { bytes, .. }, .. }), Traces { bytes: Some(found), .. })
                if found != bytes =>
            {
                Likeness::NotNewest
            }
            (Some(_), Traces { sha256: Some(_), .. }) => Likeness::NotNewest,
            _ => Likeness::Unknown,
        };
        let evidence = Evidence { known, modified_at: traces.modified_at, likeness };
        let verdict = lineage::judge(Some(&newest.facts), &evidence);
        Ok(Judged { verdict, newest: Some(newest.facts.id) })
    }

    /// Notes that the database holds, or is about to be published as, what `manifest` says.
    pub fn publishing(&self, manifest: &Manifest) {
        let Some(mut known) = self.notes.known(&manifest.database_id) else { return };
        known.pending = Some(manifest.id.clone());
        self.notes.write(&manifest.database_id, &known);
    }

    /// Notes that the database held what `manifest` says, and follows it.
    pub fn stored(&self, manifest: &Manifest) {
        self.follows(manifest, None);
    }

    /// Notes that the file was replaced by what `manifest` holds, knowingly in place of `newest`, so
    /// that it follows that. A branch stays one: only its adoption makes it head.
    pub fn restored(&self, manifest: &Manifest, newest: Option<&SnapshotId>) {
        self.follows(manifest, newest.filter(|_| !manifest.is_branch()));
    }

    /// Notes that the file was put back, knowingly in place of what `newest` holds, so that it follows
    /// that. Its own content need not be known.
    pub fn put_back(&self, newest: &Manifest) {
        self.follows(newest, None);
    }

    /// Notes that the open database of the writer whose snapshots are the newest took over what
    /// `manifest` holds. It is that writer's next change, wherever the content came from.
    pub fn overwritten(&self, manifest: &Manifest, newest: Option<&SnapshotId>) {
        self.follows(manifest, newest);
    }

    /// Notes that the file was replaced by what `manifest` holds, which waits in the spool of this machine
    /// and follows `newest`: so does the file, and it may be published as that snapshot.
    pub fn restored_from_spool(&self, manifest: &Manifest, newest: Option<&SnapshotId>) {
        if manifest.database_id == DatabaseId::unknown() {
            // To note a history that is none would make every other one foreign.
            return;
        }
        let known = Known {
            snapshot: newest.unwrap_or(&manifest.id).clone(),
            sha256: manifest.plain.sha256,
            is_branch: manifest.is_branch(),
            pending: Some(manifest.id.clone()),
        };
        self.notes.write(&manifest.database_id, &known);
    }

    /// What was noted of the file last, with regard to whatever history.
    pub fn noted(&self) -> Option<(DatabaseId, Known)> {
        self.notes.newest()
    }

    fn follows(&self, manifest: &Manifest, instead: Option<&SnapshotId>) {
        let known = Known {
            snapshot: instead.unwrap_or(&manifest.id).clone(),
            sha256: manifest.plain.sha256,
            is_branch: manifest.is_branch() && instead.is_none(),
            pending: None,
        };
        self.notes.write(&manifest.database_id, &known);
    }

    /// What was noted of this file in the history of `catalog`.
    async fn known(&self, catalog: &Catalog) -> Result<Option<Known>> {
        let Some(identity) = catalog.identity().await? else { return Ok(None) };
        let known = self.notes.known(&identity.database_id);
        match self.notes.history() {
            Some(other) if known.is_none() => Err(Error::new(
                ErrorKind::Corrupt,
                format!(
                    "the backups under this name are of a foreign database; give this one another name or prefix, or, if \
                     it does belong there, remove the note: database=`{}` path=`{}` database_id=`{}` \
                     its_database_id=`{other}` note=`{}`",
                    catalog.database(),
                    self.path.display(),
                    identity.database_id,
                    self.notes.file().display()
                ),
            )),
            _ => Ok(known),
        }
    }
}

/// The newest snapshot: its name, and its manifest unless that is damaged.
struct Found {
    facts: Newest,
    manifest: Option<Manifest>,
}

async fn newest(catalog: &Catalog) -> Result<Option<Found>> {
    let Some(id) = catalog.newest_id().await? else { return Ok(None) };
    let manifest = match catalog.named(&id).await {
        Err(error) if error.kind() == ErrorKind::Corrupt => None,
        manifest => Some(manifest?),
    };
    let content = manifest.as_ref().map(|manifest| (manifest.plain.sha256, manifest.taken_at));
    Ok(Some(Found { facts: Newest { id, content }, manifest }))
}

/// Every snapshot, as far as listing is permitted.
async fn listed(catalog: &Catalog) -> Result<Vec<Manifest>> {
    match catalog.list().await {
        Err(error) if error.kind() == ErrorKind::Denied => Ok(Vec::new()),
        listing => Ok(listing?.snapshots),
    }
}

struct Hashing(Hasher);

impl PageSink for Hashing {
    fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.update(bytes);
        Ok(())
    }
}

fn digest(reading: Reading, scratch: &Path) -> Result<Digest> {
    let copied = reading.copy(Hashing(Hasher::default()), scratch, &(std::sync::Arc::new(|_| {}) as _))?;
    Ok(copied.sink.0.finish())
}
