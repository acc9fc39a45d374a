//! Before the application starts: interrupted restores are settled, and databases restored.

use std::sync::Arc;

use backon::{ExponentialBuilder, Retryable};

use super::opening::Opener;
use crate::config::DatabaseFile;
use crate::error::{Error, ErrorKind, Result};
use crate::restore::{self, Boot, BootAction, WithoutSnapshot};
use crate::setup;
use crate::snapshot::Manifest;
use crate::worker::Fleet;

/// Restores what the configuration and the state of each database ask for.
///
/// Storage out of reach is waited for, however long it takes: an application that started on
/// nothing would create an empty database. Everything else that is wrong is an error.
pub(super) async fn restore_all(opener: &Arc<Opener>, fleet: &Fleet) -> Result<()> {
    for member in fleet.members() {
        let database = &member.database;
        if let Some(done) = restore::recover(&database.path)? {
            tracing::warn!(database = %database.name, "{done}");
        }
        let restore = &opener.config.restore;
        let present = restore::look(&database.path)?;
        let boot = Boot { policy: restore.on_boot, present, allow_empty: restore.allow_empty };
        let BootAction::Restore(without_snapshot) = restore::decide(boot) else { continue };
        tracing::info!(database = %database.name, ?present, policy = ?restore.on_boot, "restoring {} before the start", database.name);
        let find = || newest(opener, database);
        let newest = find
            .retry(waits())
            .when(|error| error.kind().is_transient())
            .notify(|error, wait| {
                member.not_yet(error);
                tracing::error!(
                    database = %database.name, wait_ms = wait.as_millis() as u64,
                    "the application is not started, for storage cannot be reached: {}", error.chain()
                );
            })
            .await?;
        match (newest, without_snapshot) {
            (Some(newest), _) => restore_one(opener, database, &newest).await?,
            (None, WithoutSnapshot::Start) => {
                tracing::warn!(database = %database.name, "there is no snapshot of {} to restore; starting as it is", database.name);
            }
            (None, WithoutSnapshot::Refuse) => return Err(nothing_to_restore(database)),
        }
    }
    Ok(())
}

fn waits() -> ExponentialBuilder {
    ExponentialBuilder::new()
        .with_jitter()
        .with_min_delay(std::time::Duration::from_secs(1))
        .with_max_delay(std::time::Duration::from_secs(30))
        .without_max_times()
}

async fn newest(opener: &Opener, database: &DatabaseFile) -> Result<Option<Manifest>> {
    setup::catalog(&opener.storage().await?, &database.name).newest().await
}

async fn restore_one(opener: &Opener, database: &DatabaseFile, newest: &Manifest) -> Result<()> {
    let storage = opener.storage().await?;
    let resources = setup::resources(&opener.config, &storage, &opener.clock, Arc::new(|_| {}));
    let plan = restore::plan(newest, &database.path)?;
    let restored = restore::onto(&resources, newest, &plan).await?;
    tracing::info!(
        database = %database.name,
        snapshot = %restored.snapshot,
        size_bytes = restored.bytes,
        duration_ms = restored.took_ms,
        kept = restored.kept.as_ref().map(|path| path.display().to_string()),
        "restored {} from snapshot {}", database.name, restored.snapshot
    );
    Ok(())
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
