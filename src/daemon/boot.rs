//! Before the application starts: interrupted restores are settled, and databases restored.

use std::sync::Arc;
use std::time::{Duration, Instant};

use backon::{ExponentialBuilder, Retryable};

use super::opening::Opener;
use crate::config::{DatabaseFile, RestoreOnBoot};
use crate::disk::{folder_of, make_directory};
use crate::error::{Context, Error, ErrorKind, Result};
use crate::restore::{self, Boot, BootAction, Damage, Target, WithoutSnapshot};
use crate::setup;
use crate::snapshot::{Flag, Manifest};
use crate::spool;
use crate::worker::{Fleet, Member};

/// Restores what the configuration and the state of each database ask for.
///
/// Storage out of reach is waited for, however long it takes: an application that started on
/// nothing would create an empty database. Everything else that is wrong is an error.
pub(super) async fn restore_all(opener: &Arc<Opener>, fleet: &Fleet) -> Result<()> {
    for member in fleet.members() {
        restore_one(opener, member).await?;
        opener.trace(&member.database).await;
    }
    Ok(())
}

async fn restore_one(opener: &Arc<Opener>, member: &Member) -> Result<()> {
    let database = &member.database;
    if let Some(done) = restore::recover(&database.path)? {
        tracing::warn!(database = %database.name, "{done}");
    }
    let restore = &opener.config.restore;
    if restore.on_boot == RestoreOnBoot::Never {
        return Ok(());
    }
    let present = restore::look(&database.path)?;
    let boot = Boot { policy: restore.on_boot, present, allow_empty: restore.allow_empty };
    let BootAction::Restore(without_snapshot) = restore::decide(boot) else { return Ok(()) };
    tracing::info!(database = %database.name, ?present, policy = ?restore.on_boot, "restoring {} before the start", database.name);
    wait_for_release(opener, database).await;
    let restore = || restore_newest(opener, member);
    let restored = restore
        .retry(waits())
        // Busy is not storage: somebody else restores the same database.
        .when(|error| error.kind().is_transient() && error.kind() != ErrorKind::Busy)
        .notify(|error, wait| {
            member.not_yet(error);
            tracing::error!(
                database = %database.name, wait_ms = wait.as_millis() as u64,
                "the application is not started, for storage cannot be reached: {}", error.chain()
            );
        })
        .await?;
    match (restored, without_snapshot) {
        (true, _) => {}
        (false, WithoutSnapshot::Start) => {
            tracing::warn!(database = %database.name, "there is no snapshot of {} to restore; starting as it is", database.name);
        }
        (false, WithoutSnapshot::Refuse) => return Err(nothing_to_restore(database)),
    }
    Ok(())
}

/// Waits until whoever publishes has stopped in order, so that its last snapshot is the one restored;
/// as long as that is configured.
async fn wait_for_release(opener: &Opener, database: &DatabaseFile) {
    let bound = opener.config.restore.handover_wait;
    if bound.is_zero() {
        return;
    }
    // What keeps it from being opened, the restore says.
    let Ok(storage) = opener.storage_to_read() else { return };
    let catalog = setup::catalog(&storage, &database.name);
    let deadline = Instant::now() + bound;
    let mut told = false;
    loop {
        match catalog.head().await {
            Ok(Some((head, _))) if head.released => return,
            Ok(Some((head, _))) if Instant::now() < deadline => {
                if !std::mem::replace(&mut told, true) {
                    tracing::info!(
                        database = %database.name, epoch = head.epoch, wait_ms = bound.as_millis() as u64,
                        "waiting for the holder of epoch {} to release {}", head.epoch, database.name
                    );
                }
            }
            // Storage out of reach may be back before the bound; after it, it is the restore's to wait for.
            Err(error) if error.kind().is_transient() && Instant::now() < deadline => {}
            Ok(Some((head, _))) if told => {
                tracing::warn!(
                    database = %database.name, epoch = head.epoch,
                    "the holder of epoch {} did not release {} in time: what it has not stored yet is not restored \
                     (restore.handover_wait)", head.epoch, database.name
                );
                return;
            }
            _ => return,
        }
        tokio::time::sleep(RELEASE_PAUSE).await;
    }
}

/// Between two looks whether the head was released.
const RELEASE_PAUSE: Duration = Duration::from_secs(1);

fn waits() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(Duration::from_secs(1))
        .with_max_delay(Duration::from_secs(30))
        .without_max_times()
}

/// Restores the newest snapshot; `false` if there is none. Only reads storage.
async fn restore_newest(opener: &Opener, member: &Member) -> Result<bool> {
    let database = &member.database;
    let catalog = setup::catalog(&opener.storage_to_read()?, &database.name);
    let found = match spool::find(&Target::Newest, &catalog, member.spool()).await {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(false),
        found => found?,
    };
    let newest = found.manifest();
    refuse_what_is_no_database(newest)?;
    let resources = setup::resources(&opener.config, &found.storage, &opener.clock, Arc::new(|_| {}));
    let folder = folder_of(&database.path);
    make_directory(folder)
        .context(ErrorKind::Target, || format!("create a directory: path=`{}`", folder.display()))?;
    let plan = restore::plan(&found.moment, &database.path, opener.config.restore.keep_replaced)?;
    let restored = restore::onto(&resources, &found.moment, &plan, Damage::Refused).await?;
    let replaced = (!found.is_spooled()).then_some(&newest.id);
    found.note_restored(&opener.descent(database), replaced);
    for remark in &restored.remarks {
        tracing::warn!(database = %database.name, snapshot = %restored.snapshot, "{remark}");
    }
    tracing::info!(
        database = %database.name,
        snapshot = %restored.snapshot,
        deltas = restored.deltas,
        shows = %restored.shows,
        size_bytes = restored.bytes,
        duration_ms = restored.took_ms,
        gave_up = restored.gave_up.len(),
        kept = restored.kept.as_ref().map(|path| path.display().to_string()),
        "restored {} from snapshot {}", database.name, restored.snapshot
    );
    Ok(true)
}

/// A snapshot of an empty or damaged source is kept for its time, but no application starts on it by
/// itself while older ones exist.
fn refuse_what_is_no_database(newest: &Manifest) -> Result<()> {
    let refused = newest.flags.iter().find(|flag| matches!(flag, Flag::Empty | Flag::Malformed));
    match refused {
        Some(flag) if newest.parent.is_some() => Err(Error::new(
            ErrorKind::Corrupt,
            format!(
                "the newest snapshot is flagged, its source was {}; choose one with `lifeboat snapshots` and restore \
                 it with `lifeboat restore --snapshot ID`: snapshot=`{}`",
                flag.name(),
                newest.id
            ),
        )),
        _ => Ok(()),
    }
}

fn nothing_to_restore(database: &DatabaseFile) -> Error {
    Error::new(
        ErrorKind::NotFound,
        format!(
            "there is neither a usable database nor a snapshot to restore; if this is the very first start, allow it \
             with BACKUP_ALLOW_EMPTY=true: database=`{}` path=`{}`",
            database.name,
            database.path.display()
        ),
    )
}
