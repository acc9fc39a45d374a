//! The verbs that work on storage directly, each: open, do, print.

use std::sync::Arc;
use std::time::Duration;

use bytesize::ByteSize;
use serde::Serialize;
use tokio::sync::OnceCell;
use tokio_util::sync::CancellationToken;

use super::Restore;
use super::lineage::Lineage;
use super::output::Output;
use crate::backup::{self, Outcome};
use crate::catalog::{Captured, Catalog};
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, DatabaseFile};
use crate::credentials::{IdentityState, Session};
use crate::disk::blocking;
use crate::error::{Context, Error, ErrorKind, Result};
use crate::metrics::{IdentityMetrics, StorageMetrics};
use crate::prune;
use crate::restore::{self, Damage, Resources, Target};
use crate::setup;
use crate::snapshot::{DatabaseName, Manifest, Proof, SnapshotId};
use crate::source;
use crate::spool::{self, Found, State};
use crate::storage::Storage;
use crate::verify;

/// The verbs over one configuration.
pub struct Verbs<'a> {
    pub(super) config: Config,
    pub(super) clock: Clock,
    pub(super) output: &'a Output,
}

impl<'a> Verbs<'a> {
    pub fn new(config: Config, clock: Clock, output: &'a Output) -> Self {
        Verbs { config, clock, output }
    }

    pub async fn backup(&self, name: Option<String>, accept_shrunken: bool) -> Result<()> {
        source::assert_library()?;
        let mut databases = self.databases(name)?;
        match (databases.pop(), databases.is_empty()) {
            (Some(only), true) => {
                self.require_database(&only).await?;
                let outcome =
                    self.back_up_one(&self.open_for_writing().await?, &only, accept_shrunken).await?;
                self.output.result(&outcome, told(&outcome))
            }
            _ if accept_shrunken => Err(Error::new(
                ErrorKind::Config,
                "say which database is meant to be small: --accept-shrunken wants --name NAME",
            )),
            (last, _) => {
                databases.extend(last);
                self.back_up_each(&databases).await
            }
        }
    }

    /// Tries every database; the error is the first one's that failed, and the others' are printed.
    async fn back_up_each(&self, databases: &[DatabaseFile]) -> Result<()> {
        #[derive(Serialize)]
        struct Done<'a> {
            database: &'a DatabaseName,
            #[serde(flatten)]
            outcome: Outcome,
        }
        let (mut done, mut failed) = (Vec::new(), Vec::new());
        let storage = OnceCell::new();
        for database in databases {
            let backup = async {
                self.require_database(database).await?;
                let storage = storage.get_or_try_init(|| self.open_for_writing()).await?;
                self.back_up_one(storage, database, false).await
            };
            match backup.await {
                Ok(outcome) => done.push(Done { database: &database.name, outcome }),
                Err(error) => {
                    let kind = error.kind();
                    failed.push(Error::new(kind, format!("back up {}", database.name)).because(error));
                    // Whoever interrupts one means all; and storage that is out of reach stays so for a while.
                    let is_out_of_reach = kind == ErrorKind::Unavailable && !storage.initialized();
                    if kind == ErrorKind::Cancelled || is_out_of_reach {
                        break;
                    }
                }
            }
        }
        let text: String =
            done.iter().map(|done| format!("{}: {}\n", done.database, told(&done.outcome))).collect();
        if !done.is_empty() {
            self.output.result(&done, text)?;
        }
        let mut failed = failed.into_iter();
        let first = failed.next();
        failed.for_each(|error| self.output.error(&error));
        first.map_or(Ok(()), Err)
    }

    /// Nothing is made in storage, and no epoch claimed, for what is no database.
    async fn require_database(&self, database: &DatabaseFile) -> Result<()> {
        let (path, busy_timeout) = (database.path.clone(), self.config.backup.busy_timeout);
        tokio::task::spawn_blocking(move || source::require_database(&path, busy_timeout))
            .await
            .context(ErrorKind::Internal, || "looking at the database ended early".to_owned())?
    }

    async fn back_up_one(
        &self,
        storage: &Arc<dyn Storage>,
        database: &DatabaseFile,
        accept_shrunken: bool,
    ) -> Result<Outcome> {
        let catalog = &setup::catalog(storage, &database.name);
        let backup = async {
            let (standing, is_ours) = self.stand(catalog, database).await?;
            let settings = backup::Settings { accept_shrunken, ..setup::backup_settings(&self.config) };
            let progress = self.output.progress("backing up");
            let cancel = CancellationToken::new();
            let work = backup::Work {
                database: &database.name,
                path: &database.path,
                settings: &settings,
                clock: &self.clock,
                cancel: &cancel,
                on_progress: progress,
                follower: None,
            };
            let outcome = backup::run(catalog, &standing, work).await?;
            if is_ours {
                catalog.release_epoch(standing.epoch, self.clock.now()).await?;
            }
            Ok(outcome)
        };
        tokio::select! {
            outcome = backup => outcome,
            _ = tokio::signal::ctrl_c() => Err(Error::cancelled()),
        }
    }

    pub async fn restore(&self, options: Restore) -> Result<()> {
        source::assert_library()?;
        let database = self.database(options.which.name)?;
        if options.undo {
            return self.undo(database, options.dry_run).await;
        }
        let damage = if options.accept_damage { Damage::Accepted } else { Damage::Refused };
        let storage = self.open().await?;
        let catalog = setup::catalog(&storage, &database.name);
        let target = match (options.snapshot, options.at) {
            (Some(id), _) => Target::Snapshot(id),
            (None, Some(time)) => Target::At(restore::when(&time, self.clock.now())?),
            (None, None) => Target::Newest,
        };
        let spool = self.spool(&database);
        let found = spool::find(&target, &catalog, spool.as_ref()).await?;
        let manifest = found.manifest();
        let path = options.output.as_ref().unwrap_or(&database.path);
        if !options.dry_run
            && let Some(done) = restore::recover(path)?
        {
            tracing::warn!("{done}");
        }
        let plan = restore::plan(&found.moment, path, self.config.restore.keep_replaced)?;
        if options.dry_run {
            return self.output.result(&plan, &plan);
        }
        let resources = self.resources(&found.storage, "restoring");
        let restored = match &options.output {
            Some(output) => restore::to_new_file(&resources, &found.moment, output, damage).await?,
            None => {
                let newest = replaced_newest(&catalog, &found).await?;
                let restored = restore::onto(&resources, &found.moment, &plan, damage).await?;
                found.note_restored(&self.descent(&database), newest.as_ref());
                restored
            }
        };
        let mut text = format!(
            "restored {} from snapshot {}, taken {}{}",
            restored.path.display(),
            manifest.id,
            manifest.taken_at,
            if found.is_spooled() { ", which waits in the spool" } else { "" }
        );
        if restored.deltas > 0 {
            text.push_str(&format!("\nwith {} deltas after it, up to {}", restored.deltas, restored.shows));
        }
        if let Some(kept) = &restored.kept {
            text.push_str(&format!("\nthe old database is kept at {}", kept.display()));
        }
        for path in &restored.gave_up {
            text.push_str(&format!("\nno longer kept: {}", path.display()));
        }
        for remark in &restored.remarks {
            text.push_str(&format!("\n! {remark}"));
        }
        self.output.result(&restored, text)
    }

    /// Puts back what the last restore replaced. Works without storage.
    async fn undo(&self, database: DatabaseFile, dry_run: bool) -> Result<()> {
        let (now, path) = (self.clock.now(), database.path.clone());
        let act = move || {
            if !dry_run && let Some(done) = restore::recover(&path)? {
                tracing::warn!("{done}");
            }
            let plan = restore::plan_undo(&path)?;
            let undone = if dry_run { None } else { Some(restore::undo(&plan, now)?) };
            Ok((plan, undone))
        };
        match blocking("undo a restore", act).await? {
            (plan, None) => self.output.result(&plan, &plan),
            (_, Some(undone)) => {
                let followed = self.follow_newest(&database).await;
                self.output.result(&followed.beside(&undone), format!("{undone}{followed}"))
            }
        }
    }

    pub async fn verify(&self, name: Option<String>, snapshot: Option<SnapshotId>) -> Result<()> {
        source::assert_library()?;
        let database = self.database(name)?;
        let spooled = match &snapshot {
            Some(id) => self.prove_spooled(&database, id).await?,
            None => None,
        };
        let (proof, location) = match spooled {
            Some(proof) => (proof, "the spool".to_owned()),
            None => {
                let storage = self.open_for_writing().await?;
                let catalog = setup::catalog(&storage, &database.name);
                let target = snapshot.map_or(Target::Newest, Target::Snapshot);
                let manifest = target.find(&catalog).await?;
                let proven = verify::run(&catalog, &manifest, &self.resources(&storage, "proving")).await;
                (proven.map_err(|failure| failure.error)?, storage.location())
            }
        };
        let text = format!(
            "proven {}: read back from {location}, both hashes right, restored, {} ok{}, in {} ms",
            proof.snapshot,
            proof.check,
            if proof.assertion.is_some() { ", the assertion holds" } else { "" },
            proof.took_ms
        );
        self.output.result(&proof, text)
    }

    pub async fn prune(&self, name: Option<String>, apply: bool) -> Result<()> {
        let policy = setup::policy(&self.config)?;
        let database = self.database(name)?;
        let storage = match apply {
            true => self.open_for_writing().await?,
            false => self.open().await?,
        };
        let catalog = setup::catalog(&storage, &database.name);
        let rules = setup::prune_rules(&self.config, &policy);
        let plan = prune::plan(&catalog, rules, self.clock.now()).await?;
        if !apply {
            let text = format!("{plan}this was a dry run; `lifeboat prune --apply` removes it");
            return self.output.result(&plan, text);
        }
        let epoch = catalog.head().await?.map_or(0, |(head, _)| head.epoch);
        let (report, ended) = prune::apply(&catalog, &plan, epoch).await;
        self.output.result(&report, &report)?;
        ended
    }

    pub async fn status(&self, name: Option<String>) -> Result<()> {
        let database = self.database(name)?;
        let session = self.session()?;
        let storage = setup::storage(&self.config, session.as_ref(), &StorageMetrics::default())?;
        let catalog = setup::catalog(&storage, &database.name);
        let spool = self.spool_state(&database).await;
        let newest = match catalog.newest().await {
            Err(error) => {
                self.show_spool(spool.as_ref())?;
                return Err(error);
            }
            newest => newest?,
        };
        let proof = match &newest {
            Some(manifest) => catalog.drill(&manifest.id).await?,
            None => None,
        };
        let head = catalog.head().await?.map(|(head, _)| head);
        let identity = session.map(|session| session.state());
        let mut text = match &newest {
            None => format!("no snapshot of {} in {}", database.name, storage.location()),
            Some(manifest) => format!(
                "database  {} ({})\nstorage   {}\nepoch     {}\nnewest    {}\nage       {}",
                database.name,
                database.path.display(),
                storage.location(),
                head.as_ref().map_or(0, |head| head.epoch),
                line(manifest, Some(proof.as_ref())),
                age(manifest.taken_at, self.clock.now())
            ),
        };
        let lineage = self.lineage(&catalog, &database).await?;
        if let Some(line) = lineage.as_ref().and_then(Lineage::line) {
            text.push_str(&format!("\n{line}"));
        }
        let captured = match catalog.captured().await {
            Err(error) if error.kind() == ErrorKind::Denied => {
                text.push_str("\ncaptured  not known, deltas may not be listed");
                None
            }
            captured => captured?,
        };
        text.extend(captured.iter().map(|captured| captured_line(captured, self.clock.now())));
        for reason in spool.iter().flat_map(State::reasons) {
            text.push_str(&format!("\nspool     {reason}"));
        }
        if let Some(identity) = &identity {
            text.push_str(&format!("\nidentity  {}", identity_line(identity)));
        }
        #[derive(Serialize)]
        struct Status<'a> {
            database: &'a DatabaseFile,
            storage: String,
            identity: Option<IdentityState>,
            head: Option<crate::snapshot::Head>,
            lineage: Option<Lineage>,
            captured: Option<Captured>,
            spool: Option<State>,
            newest: &'a Option<Manifest>,
            proof: &'a Option<Proof>,
        }
        let storage = storage.location();
        let (database, newest, proof) = (&database, &newest, &proof);
        let status = Status { database, storage, identity, head, lineage, captured, spool, newest, proof };
        self.output.result(&status, text)
    }

    /// The databases meant: the named one, or all.
    fn databases(&self, name: Option<String>) -> Result<Vec<DatabaseFile>> {
        databases(&self.config, name)
    }

    /// The one database meant.
    pub(super) fn database(&self, name: Option<String>) -> Result<DatabaseFile> {
        let mut databases = self.databases(name)?;
        match (databases.pop(), databases.is_empty()) {
            (Some(only), true) => Ok(only),
            _ => Err(Error::new(
                ErrorKind::Config,
                "several databases are configured; say which with --name NAME",
            )),
        }
    }

    fn session(&self) -> Result<Option<Session>> {
        setup::session(&self.config, &self.clock, &IdentityMetrics::default())
    }

    pub(super) async fn open(&self) -> Result<Arc<dyn Storage>> {
        setup::storage(&self.config, self.session()?.as_ref(), &StorageMetrics::default())
    }

    pub(super) async fn open_for_writing(&self) -> Result<Arc<dyn Storage>> {
        let session = self.session()?;
        setup::storage_for_writing(&self.config, session.as_ref(), &StorageMetrics::default()).await
    }

    pub(super) fn resources(&self, storage: &Arc<dyn Storage>, what: &'static str) -> Resources {
        setup::resources(&self.config, storage, &self.clock, self.output.progress(what))
    }
}

/// The databases of `config` that are meant: the named one, or all.
pub(super) fn databases(config: &Config, name: Option<String>) -> Result<Vec<DatabaseFile>> {
    let all = config.databases.expand()?;
    let Some(name) = name else { return Ok(all) };
    let names: Vec<&str> = all.iter().map(|database| database.name.as_str()).collect();
    let unknown =
        format!("no database of this name is configured: name=`{name}` configured=`{}`", names.join(", "));
    let found = all.into_iter().find(|database| database.name.as_str() == name);
    found.map(|database| vec![database]).ok_or_else(|| Error::new(ErrorKind::Config, unknown))
}

/// How long a restore from the spool waits for storage to say what the newest snapshot is.
const STORAGE_WAIT: Duration = Duration::from_secs(3);

/// The snapshot in place of which another one is restored, as far as storage tells; what comes from the spool
/// does not wait for it.
async fn replaced_newest(catalog: &Catalog, found: &Found) -> Result<Option<SnapshotId>> {
    if !found.is_spooled() {
        return catalog.newest_id().await;
    }
    match tokio::time::timeout(STORAGE_WAIT, catalog.newest_id()).await {
        Ok(Err(error)) if !spool::is_outage(&error) => Err(error),
        answered => Ok(answered.ok().and_then(Result::ok).flatten()),
    }
}

fn told(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Stored(manifest) => format!("stored {}", line(manifest, None)),
        Outcome::Unchanged(manifest) => format!("unchanged since {}", manifest.id),
    }
}

/// One snapshot on one line. `proof`, its last drill, is `None` where nobody asked for it.
pub(super) fn line(manifest: &Manifest, proof: Option<Option<&Proof>>) -> String {
    let mut line =
        format!("{}  {} -> {}", manifest.id, ByteSize(manifest.plain.bytes), ByteSize(manifest.stored.bytes));
    match proof {
        Some(Some(Proof { failure: Some(failure), proven_at, .. })) => {
            line.push_str(&format!("  ! drill failed {proven_at:.0}: {failure}"));
        }
        Some(Some(proof)) => line.push_str(&format!("  proven {:.0}", proof.proven_at)),
        Some(None) => line.push_str("  not proven yet"),
        None => {}
    }
    for flag in &manifest.flags {
        line.push_str(&format!("  ! {}", flag.told()));
    }
    line
}

/// Up to where deltas are stored, on a line of its own.
fn captured_line(captured: &Captured, now: Timestamp) -> String {
    let Captured { position, until, deltas, delta_bytes } = captured;
    let until = match until {
        Some(until) => format!("up to {until}, {} ago", age(*until, now)),
        None => "! the last delta is damaged".to_owned(),
    };
    format!("\ncaptured  {until}  position {position}, {deltas} deltas of {}", ByteSize(*delta_bytes))
}

/// Who we are to a bucket, on one line.
fn identity_line(identity: &IdentityState) -> String {
    let mut line = identity.role.clone().unwrap_or_else(|| identity.kind.to_owned());
    if let Some(source) = identity.source {
        line.push_str(&format!("  by {}", source.name()));
    }
    if let Some(end) = identity.expires_at {
        line.push_str(&format!("  until {end:.0}"));
    }
    if let Some(failure) = &identity.last_failure {
        line.push_str(&format!("  ! {} at {:.0}", failure.class.name(), failure.at));
    }
    line
}

fn age(then: Timestamp, now: Timestamp) -> String {
    let seconds = now.duration_since(then).as_secs();
    format!("{:#}", jiff::SignedDuration::from_secs(seconds))
}
