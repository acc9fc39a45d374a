//! Taking a snapshot into the spool, within its limits.

use std::path::Path;

use bytes::Bytes;
use futures::StreamExt;
use futures::stream;
use tokio_util::sync::CancellationToken;

use super::place::no_outage;
use super::{Contents, Dropped, Settings, Spool, room};
use crate::backup::{self, Basis, Work};
use crate::crash::{self, Point};
use crate::disk::{blocking, file_system};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{DatabaseId, Flag, Key, Manifest, Proof, Record, SnapshotId};
use crate::source::{OnProgress, Source};
use crate::storage::{Directory, Parts, Storage, whole};

/// What a snapshot is taken of, and what is known beforehand.
pub struct Asked<'a> {
    /// Where the database is.
    pub path: &'a Path,
    /// How snapshots are taken.
    pub settings: &'a backup::Settings,
    /// What this machine knows of storage.
    pub published: Published,
    /// The epoch of this process, 0 if it has claimed none yet.
    pub epoch: u64,
    /// Whether the database is known not to descend from the newest snapshot.
    pub is_branch: bool,
    /// Whether a file that shows no write since the last snapshot is taken for unchanged.
    pub trusts_stamps: bool,
    /// Ends it early.
    pub cancel: &'a CancellationToken,
    /// Is told how far it has come.
    pub on_progress: OnProgress,
}

/// What this machine knows of what storage holds.
#[derive(Debug, Clone, Default)]
pub struct Published {
    /// The history.
    pub database_id: Option<DatabaseId>,
    /// The newest snapshot that the database descends from.
    pub newest: Option<SnapshotId>,
    /// Its manifest, if it is known and nothing speaks against pointing at it.
    pub manifest: Option<Box<Manifest>>,
}

/// How it ended well.
#[derive(Debug)]
pub enum Taken {
    /// This snapshot, new or not, waits in the spool and holds the database.
    Waits(Box<Manifest>),
    /// Nothing waits, and this published snapshot holds the database.
    Published(Box<Manifest>),
}

/// What a manifest takes on the disk, at most.
const MANIFEST_BYTES: u64 = 4 << 10;

/// Of a file system this part is left to the application, or as much as its database has, if that is less.
const RESERVED_PART: u64 = 10;

impl Spool {
    /// Takes a snapshot into the spool, unless the newest one there, or in storage, holds the same.
    ///
    /// `Limit` if there is no room for it, or the spool is switched off. What was dropped to make room, the
    /// oldest first, is dropped even if the snapshot fails then: each is named in the log and in health.
    pub async fn take(&self, asked: Asked<'_>) -> Result<Taken> {
        let taken = self.try_take(asked).await;
        match &taken {
            Ok(_) => self.memory().refusal = None,
            Err(error) if error.kind() == ErrorKind::Cancelled => {}
            Err(error) => self.memory().refusal = Some(error.chain()),
        }
        self.look().await;
        taken
    }

    async fn try_take(&self, asked: Asked<'_>) -> Result<Taken> {
        if self.settings.limits.bytes_max == 0 {
            let message = "the spool is switched off: key=`spool.bytes_max` (BACKUP_SPOOL_MAX)";
            return Err(Error::new(ErrorKind::Limit, message));
        }
        let place = self.place();
        let directory = blocking("open the spool", move || place.open_or_make()).await?;
        let _turn = self.turn().await?;
        self.sweep_orphans(&directory).await?;
        let mut contents = self.contents().await?;
        self.drop_outdated(&directory, &mut contents).await?;

        let source = Source::locate(asked.path)?;
        // Taken before the transaction: what is written in between is seen as a change next time.
        let state = source.fingerprint();
        let last = self.memory().taken.clone();
        if let Some((earlier, id)) = last
            && asked.trusts_stamps
            && state.shows_no_write_since(&earlier)
            && let Some(waits) =
                contents.waiting.last().filter(|waits| waits.id == id && self.is_sound(&contents, waits))
        {
            return Ok(Taken::Waits(Box::new(waits.clone())));
        }
        let admission = Admission {
            spool: self.clone(),
            directory: directory.clone(),
            database_bytes: state.database_bytes() + state.log_bytes(),
            rest: contents.bytes - contents.sizes.iter().sum::<u64>(),
            waiting: self.least_missed_first(&contents),
        };
        let basis = self.basis(&contents, &asked);
        let work = Work {
            database: &self.database,
            path: asked.path,
            settings: asked.settings,
            clock: &self.clock,
            cancel: asked.cancel,
            on_progress: asked.on_progress,
            follower: None,
        };
        let create = |key: Key, parts: Parts| async move {
            let directory = admission.directory.clone();
            directory.create(&key, admission.bounded(parts)).await.map_err(no_outage)
        };
        let manifest = match backup::take(work, basis, create).await? {
            backup::Taken::Known(manifest) if contents.snapshot(&manifest.id).is_none() => {
                return Ok(Taken::Published(manifest));
            }
            backup::Taken::Known(manifest) => manifest,
            backup::Taken::New(manifest, _) => {
                crash::at(Point::SpoolDataWritten);
                let record = whole(manifest.encode());
                directory.create(&manifest.key(), record).await.map_err(no_outage)?;
                crash::at(Point::SpoolManifestWritten);
                manifest
            }
        };
        self.memory().taken = Some((state, manifest.id.clone()));
        Ok(Taken::Waits(manifest))
    }

    /// What the new snapshot follows: the newest of what waits and of what is published.
    fn basis(&self, contents: &Contents, asked: &Asked<'_>) -> Basis {
        let Asked { published, epoch, is_branch, .. } = asked;
        let waits = contents.waiting.last();
        let newest = match (waits, &published.manifest) {
            (Some(waits), Some(published)) if published.id > waits.id => Some(&**published),
            (None, published) => published.as_deref(),
            (waits, _) => waits,
        };
        let is_newest = |manifest: &&Manifest| {
            Some(&manifest.id) >= contents.newest_id.as_ref()
                && Some(&manifest.id) >= published.newest.as_ref()
        };
        let loses_flag =
            |manifest: &Manifest| asked.settings.accept_shrunken && manifest.flags.contains(&Flag::Shrunken);
        let known = newest
            .filter(is_newest)
            .filter(|newest| self.is_sound(contents, newest))
            .filter(|manifest| !loses_flag(manifest));
        Basis {
            database_id: published.database_id.clone().unwrap_or_else(DatabaseId::unknown),
            epoch: *epoch,
            is_branch: *is_branch,
            parent: contents.newest_id.clone().max(published.newest.clone()),
            baseline: newest.and_then(Manifest::baseline_for_next),
            known: known.map(|manifest| Box::new(manifest.clone())),
        }
    }

    /// Whether nothing is known to be wrong with a snapshot that waits.
    fn is_sound(&self, contents: &Contents, waits: &Manifest) -> bool {
        let is_refuted = |drill: &Proof| drill.snapshot == waits.id && drill.failure.is_some();
        !self.memory().stuck.contains_key(&waits.id) && !contents.drills.iter().any(is_refuted)
    }

    /// What waits and what it takes, in the order in which it goes to make room: what is of no use first, then
    /// the oldest.
    fn least_missed_first(&self, contents: &Contents) -> Vec<(Manifest, u64)> {
        let waiting = contents.waiting.iter().cloned().zip(contents.sizes.iter().copied());
        let (sound, mut all): (Vec<_>, Vec<_>) =
            waiting.partition(|(waits, _)| self.is_sound(contents, waits));
        all.extend(sound);
        all
    }

    /// Drops what is too old, but for the newest.
    async fn drop_outdated(&self, directory: &Directory, contents: &mut Contents) -> Result<()> {
        if contents.waiting.iter().any(|waits| !self.is_sound(contents, waits)) {
            // The newest may be the one that is of no use: somebody has to look first.
            return Ok(());
        }
        let age_max = self.settings.limits.age_max;
        let taken: Vec<_> = contents.waiting.iter().map(|manifest| manifest.taken_at).collect();
        let outdated = room::outdated(&taken, age_max, self.clock.now());
        let age_max = jiff::SignedDuration::try_from(age_max).unwrap_or(jiff::SignedDuration::MAX);
        let reason = format!("its age, above {age_max:#} (spool.age_max)");
        contents.bytes -= contents.sizes.drain(..outdated).sum::<u64>();
        for manifest in contents.waiting.drain(..outdated).collect::<Vec<_>>() {
            self.drop_loudly(directory, &manifest, &reason).await?;
        }
        Ok(())
    }

    /// Drops a snapshot that never reached storage: noted first, so that no crash makes it silent.
    async fn drop_loudly(&self, directory: &Directory, manifest: &Manifest, reason: &str) -> Result<()> {
        let place = self.place();
        let mut dropped = blocking("look at the spool", move || place.dropped()).await?;
        // Noted before, and a crash kept it from being removed.
        dropped.retain(|noted| noted.snapshot != manifest.id);
        dropped.push(Dropped {
            snapshot: manifest.id.clone(),
            parent: manifest.parent.clone(),
            taken_at: manifest.taken_at,
            dropped_at: self.clock.now(),
            reason: reason.to_owned(),
        });
        self.remember_dropped(dropped).await?;
        crash::at(Point::SpoolLossNoted);
        tracing::error!(
            database = %self.database, snapshot = %manifest.id,
            "dropped snapshot {} of {} from the spool, which never reached storage, for {reason}",
            manifest.id, self.database
        );
        self.metrics.spool_dropped();
        self.remove(directory, &manifest.id).await
    }
}

/// Lets the parts of a snapshot in as long as there is room.
struct Admission {
    spool: Spool,
    directory: Directory,
    /// The size of the database with its log.
    database_bytes: u64,
    /// What waits and what it takes, in the order in which it goes.
    waiting: Vec<(Manifest, u64)>,
    /// What is damaged or foreign takes room as well, and is not ours to remove.
    rest: u64,
}

impl Admission {
    fn bounded(self, parts: Parts) -> Parts {
        let next = |(mut admission, mut parts, before): (Admission, Parts, u64)| async move {
            let Some(part) = parts.next().await.transpose()? else { return Ok::<_, Error>(None) };
            let written = before + part.len() as u64;
            admission.admit(&part, written).await?;
            Ok(Some((part, (admission, parts, written))))
        };
        stream::try_unfold((self, parts, 0), next).boxed()
    }

    /// Makes room for `written` bytes of the new snapshot, of which `part` is not on the disk yet: as much as
    /// the limit wants, and the reserve, for the volume is the application's, too.
    async fn admit(&mut self, part: &Bytes, written: u64) -> Result<()> {
        let Settings { folder, limits, .. } = &self.spool.settings;
        let asked = folder.clone();
        let volume = blocking("ask for free space", move || file_system(&asked)).await?;
        let reserve = (volume.size / RESERVED_PART).min(self.database_bytes);
        let sizes: Vec<u64> = self.waiting.iter().map(|(_, bytes)| *bytes).collect();
        let on_disk = sizes.iter().sum::<u64>() + written - part.len() as u64;
        let by_volume = (on_disk + volume.free).saturating_sub(reserve);
        let by_limit = limits.bytes_max.saturating_sub(self.rest);
        let reason = match by_volume < by_limit {
            true => format!("room, for {reserve} bytes of the volume stay free"),
            false => format!("room, above {} bytes (spool.bytes_max)", limits.bytes_max),
        };
        let wanted = written + MANIFEST_BYTES;
        let Some(gone) = room::to_make_room(&sizes, wanted, by_volume.min(by_limit)) else {
            let message = match by_volume < by_limit {
                true => format!(
                    "the volume of the spool is too full, and what is left of it is the application's: directory=`{}` \
                     free=`{}` reserve=`{reserve}`",
                    folder.display(),
                    volume.free
                ),
                false => format!(
                    "the spool has no room for this snapshot beside the newest one in it; raise spool.bytes_max \
                     (BACKUP_SPOOL_MAX): path=`{}` limit=`{}`",
                    folder.display(),
                    limits.bytes_max
                ),
            };
            return Err(Error::new(ErrorKind::Limit, message));
        };
        for (manifest, _) in self.waiting.drain(..gone) {
            self.spool.drop_loudly(&self.directory, &manifest, &reason).await?;
        }
        Ok(())
    }
}
