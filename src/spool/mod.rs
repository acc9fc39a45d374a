//! The spool: snapshots that wait on this machine while storage cannot be reached.
//!
//! It is laid out like storage, without a head: each snapshot is complete, can be proven and restored here,
//! and goes away only once its copy in storage was read back, or loudly when it has to make room.

mod find;
mod line;
mod place;
mod room;
mod ship;
mod state;
mod take;

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::watch;

pub use find::{Found, find};
pub use place::Dropped;
pub use room::Limits;
pub use ship::{Destination, Shipped};
pub use state::State;
pub use take::{Asked, Published, Taken};

use crate::catalog::Catalog;
use crate::clock::{Clock, Timestamp};
use crate::crash::{self, Point};
use crate::disk::blocking;
use crate::error::{Error, ErrorKind, Result};
use crate::metrics::DatabaseMetrics;
use crate::snapshot::{DatabaseName, Key, Kind, Manifest, Proof, SnapshotId};
use crate::source::Fingerprint;
use crate::storage::{Directory, Storage};
use place::{Held, Place, no_outage};

/// Where the spool is, whose, and how large it may become.
#[derive(Debug, Clone)]
pub struct Settings {
    /// The folder.
    pub folder: PathBuf,
    /// The storage for which snapshots wait, as people name it.
    pub storage: String,
    /// How much may wait.
    pub limits: Limits,
}

/// The spool of one database. Clones share it, and only one of them works on it at a time.
#[derive(Clone)]
pub struct Spool {
    database: DatabaseName,
    settings: Settings,
    clock: Clock,
    metrics: DatabaseMetrics,
    shared: Arc<Shared>,
}

struct Shared {
    turn: tokio::sync::Mutex<()>,
    memory: Mutex<Memory>,
    state: watch::Sender<State>,
}

/// What this process knows of the spool beyond its files.
#[derive(Default)]
struct Memory {
    /// The database file as it was when this snapshot, which waits, was taken.
    taken: Option<(Fingerprint, SnapshotId)>,
    /// Snapshots that wait and cannot be shipped, and why.
    stuck: BTreeMap<SnapshotId, String>,
    /// What storage said last.
    outage: Option<String>,
    /// Why the last snapshot could not be spooled.
    refusal: Option<String>,
}

/// What is in the spool of one database.
#[derive(Debug, Default)]
pub struct Contents {
    /// The snapshots that wait, the oldest first.
    pub waiting: Vec<Manifest>,
    /// What each of them takes with its records, in bytes.
    sizes: Vec<u64>,
    /// What their last drills said.
    pub drills: Vec<Proof>,
    /// What was dropped, as long as nothing newer was shipped.
    pub dropped: Vec<Dropped>,
    /// Files that are damaged or not ours; each is named.
    pub trouble: Vec<String>,
    /// What all of it takes, in bytes.
    pub bytes: u64,
    /// The newest id in use, also of what cannot be read.
    newest_id: Option<SnapshotId>,
}

impl Contents {
    /// The snapshot of this id, if it waits here.
    pub fn snapshot(&self, id: &SnapshotId) -> Option<&Manifest> {
        self.waiting.iter().find(|manifest| manifest.id == *id)
    }
}

/// Keeps other tasks and other processes from working on the spool, until it is dropped.
struct Turn<'a> {
    _tasks: tokio::sync::MutexGuard<'a, ()>,
    _processes: Held,
}

impl Spool {
    /// The spool of `database`; nothing is read yet.
    pub fn new(settings: Settings, database: DatabaseName, clock: Clock, metrics: DatabaseMetrics) -> Spool {
        let shared = Shared {
            turn: tokio::sync::Mutex::default(),
            memory: Mutex::default(),
            state: watch::Sender::default(),
        };
        Spool { database, settings, clock, metrics, shared: Arc::new(shared) }
    }

    /// What it shows now.
    pub fn state(&self) -> State {
        self.shared.state.borrow().clone()
    }

    /// What it shows now and later.
    pub fn watch(&self) -> watch::Receiver<State> {
        self.shared.state.subscribe()
    }

    /// Whether anything new is let in; what waits already is shipped in any case.
    pub fn is_on(&self) -> bool {
        self.settings.limits.bytes_max > 0
    }

    /// The spool as a place to read snapshots from, if there is one.
    ///
    /// An error names the file because of which nothing in it is touched.
    pub async fn storage(&self) -> Result<Option<Arc<dyn Storage>>> {
        Ok(self.directory().await?.map(|directory| Arc::new(directory) as Arc<dyn Storage>))
    }

    /// What is in it.
    pub async fn contents(&self) -> Result<Contents> {
        let Some(directory) = self.directory().await? else { return Ok(Contents::default()) };
        let catalog = self.catalog(&directory);
        let listing = catalog.list().await.map_err(no_outage)?;
        let drills = catalog.drills().await.map_err(no_outage)?;
        let place = self.place();
        let (dropped, foreign) =
            blocking("look at the spool", move || Ok((place.dropped(), place.foreign()))).await?;
        let mut contents = Contents { drills, ..Contents::default() };
        let named = |what: &str, path: PathBuf| format!("{what}: path=`{}`", path.display());
        contents.trouble.extend(foreign.into_iter().map(|path| named("this file is not ours", path)));
        match dropped {
            Ok(dropped) => contents.dropped = dropped,
            Err(error) => contents.trouble.push(error.chain()),
        }
        for (key, error) in &listing.damaged {
            contents.newest_id = contents.newest_id.max(key.snapshot_id().cloned());
            contents.trouble.push(named(&error.chain(), self.path_of(&key.path())));
        }
        let (mut data, mut sizes) = (BTreeMap::new(), BTreeMap::<SnapshotId, u64>::new());
        let place = self.place();
        for entry in directory.list(&format!("{}/", self.database)).await.map_err(no_outage)? {
            let key = Key::parse(&entry.path);
            match key.as_ref().and_then(Key::snapshot_id) {
                Some(id) => *sizes.entry(id.clone()).or_default() += entry.bytes,
                None if place.is_own(&entry.path) => continue,
                None => contents.trouble.push(named("this file is not ours", self.path_of(&entry.path))),
            }
            if let Some(Key::Snapshot(_, id)) = key {
                data.insert(id, entry.bytes);
            }
            contents.bytes += entry.bytes;
        }
        for manifest in listing.snapshots.into_iter().rev() {
            contents.newest_id = contents.newest_id.max(Some(manifest.id.clone()));
            if data.get(&manifest.id) == Some(&manifest.stored.bytes) {
                contents.sizes.push(sizes.get(&manifest.id).copied().unwrap_or(0));
                contents.waiting.push(manifest);
            } else {
                let path = self.path_of(&manifest.data_key().path());
                contents.trouble.push(named("the data of a snapshot is missing or has another size", path));
            }
        }
        Ok(contents)
    }

    /// Looks at it and shows what is there; whatever is wrong with it is shown, too.
    pub async fn look(&self) {
        match self.contents().await {
            Ok(contents) => self.show(&contents),
            Err(error) => {
                let state = State { error: Some(error.chain()), ..State::default() };
                self.metrics.spooled(0, 0, None);
                self.show_if_new(state);
            }
        }
    }

    /// Takes in that storage took a backup: that the last one could not be spooled matters no more.
    pub async fn note_answer(&self) {
        let was_refused = self.memory().refusal.take().is_some();
        if was_refused {
            self.look().await;
        }
    }

    /// Takes in what storage said while something waits for it.
    pub fn note_outage(&self, error: &Error) {
        self.memory().outage = Some(error.chain());
        let waits_because = Some(error.chain());
        self.shared.state.send_if_modified(|state| {
            let is_news = state.waits_because != waits_because;
            state.waits_because = waits_because;
            is_news
        });
    }

    fn show(&self, contents: &Contents) {
        let memory = self.memory();
        let stuck: Vec<&String> =
            contents.waiting.iter().filter_map(|manifest| memory.stuck.get(&manifest.id)).collect();
        let state = State {
            snapshots: contents.waiting.len(),
            stuck: stuck.len(),
            bytes: contents.bytes,
            oldest: contents.waiting.first().map(|oldest| oldest.taken_at),
            newest: contents.waiting.last().map(|newest| newest.id.clone()),
            waits_because: memory.outage.clone(),
            trouble: contents.trouble.iter().chain(stuck).cloned().collect(),
            dropped: contents.dropped.clone(),
            error: memory.refusal.clone(),
        };
        self.metrics.spooled(state.snapshots, state.bytes, state.oldest);
        self.show_if_new(state);
    }

    fn show_if_new(&self, state: State) {
        self.shared.state.send_if_modified(|shown| {
            let is_news = *shown != state;
            *shown = state;
            is_news
        });
    }

    /// Waits until nobody else works on the spool.
    async fn turn(&self) -> Result<Turn<'_>> {
        let tasks = self.shared.turn.lock().await;
        let place = self.place();
        let processes = blocking("lock the spool", move || {
            let held = place.lock()?;
            place.sweep();
            Ok(held)
        });
        Ok(Turn { _tasks: tasks, _processes: processes.await? })
    }

    /// Removes a snapshot: its manifest first, so that it never stands without its data.
    async fn remove(&self, directory: &Directory, id: &SnapshotId) -> Result<()> {
        let (database, id) = (self.database.clone(), id.clone());
        directory.delete(&Key::Manifest(database.clone(), id.clone())).await.map_err(no_outage)?;
        crash::at(Point::SpoolManifestRemoved);
        directory.delete(&Key::Snapshot(database.clone(), id.clone())).await.map_err(no_outage)?;
        crash::at(Point::SpoolDataRemoved);
        directory.delete(&Key::Proof(database, id)).await.map_err(no_outage)?;
        crash::at(Point::SpoolProofRemoved);
        Ok(())
    }

    /// Removes what crashes left: data and proofs without a manifest, and files begun before `older_than`.
    pub async fn sweep(&self, older_than: Timestamp) -> Result<()> {
        let Some(directory) = self.directory().await? else { return Ok(()) };
        let _turn = self.turn().await?;
        directory.sweep_unfinished(older_than).await?;
        self.sweep_orphans(&directory).await
    }

    /// Removes data and proofs without a manifest, as a crash leaves them; only in one's turn.
    async fn sweep_orphans(&self, directory: &Directory) -> Result<()> {
        let catalog = self.catalog(directory);
        let manifests = catalog.objects(Kind::Manifests).await.map_err(no_outage)?;
        let has_manifest =
            |id: Option<&SnapshotId>| manifests.iter().any(|(manifest, _)| manifest.snapshot_id() == id);
        for kind in [Kind::Snapshots, Kind::Proofs] {
            for (key, _) in catalog.objects(kind).await.map_err(no_outage)? {
                if !has_manifest(key.snapshot_id()) {
                    directory.delete(&key).await.map_err(no_outage)?;
                    crash::at(Point::SpoolOrphanRemoved);
                }
            }
        }
        Ok(())
    }

    async fn remember_dropped(&self, dropped: Vec<Dropped>) -> Result<()> {
        let place = self.place();
        blocking("note what was dropped", move || place.remember_dropped(dropped)).await
    }

    async fn directory(&self) -> Result<Option<Directory>> {
        let place = self.place();
        blocking("open the spool", move || place.open()).await
    }

    fn catalog(&self, directory: &Directory) -> Catalog {
        Catalog::new(Arc::new(directory.clone()), self.database.clone())
    }

    fn place(&self) -> Place {
        let Settings { folder, storage, .. } = &self.settings;
        Place { root: folder.clone(), storage: storage.clone(), database: self.database.clone() }
    }

    fn path_of(&self, path: &str) -> PathBuf {
        self.settings.folder.join(path)
    }

    fn memory(&self) -> MutexGuard<'_, Memory> {
        self.shared.memory.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Whether an error says that storage cannot be used now, whoever is to act on it: then what is due is
/// spooled.
pub fn is_outage(error: &Error) -> bool {
    matches!(error.kind(), ErrorKind::Unavailable | ErrorKind::Denied)
}
