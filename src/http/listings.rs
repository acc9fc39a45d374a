//! Listings that are kept for a moment, so that asking often does not cost storage requests often.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use tokio::sync::Mutex;

use crate::catalog::{Listing, Reach};
use crate::error::{Error, ErrorKind, Result};
use crate::snapshot::{DatabaseName, Proof};
use crate::worker::{Fleet, Handle, JobRecord};

/// How long a listing is shown again: anybody may ask for one, and on a remote store it costs two
/// requests for each snapshot.
const AGE_MAX: Duration = Duration::from_secs(10);

/// The last listing of each database. Only one at a time is fetched for each; the others wait for it.
pub(super) struct Listings(HashMap<DatabaseName, Mutex<Option<Kept>>>);

struct Kept {
    fetched_at: Instant,
    /// The last job that had ended by then: each may have changed what there is.
    after: Option<u64>,
    listed: Arc<Listed>,
}

/// What one database has.
pub(super) struct Listed {
    pub(super) listing: Listing,
    /// What came of each snapshot's last drill.
    pub(super) drills: Vec<Proof>,
    /// What can be restored to any moment; an error if deltas may not be listed.
    pub(super) reach: Result<Option<Reach>>,
}

impl Listings {
    pub(super) fn of(fleet: &Fleet) -> Listings {
        let names = fleet.members().iter().map(|member| member.database.name.clone());
        Listings(names.map(|name| (name, Mutex::default())).collect())
    }

    /// The snapshots and drills behind `handle`.
    pub(super) async fn get(&self, handle: &Handle) -> Result<Arc<Listed>> {
        let catalog = handle.catalog();
        let slot = self.0.get(catalog.database()).ok_or_else(|| {
            Error::new(ErrorKind::Internal, format!("no listing slot: database=`{}`", catalog.database()))
        })?;
        let mut kept = slot.lock().await;
        let after = last_ended(handle);
        if let Some(kept) = &*kept
            && kept.after == after
            && kept.fetched_at.elapsed() < AGE_MAX
        {
            return Ok(Arc::clone(&kept.listed));
        }
        let (listing, drills) = tokio::try_join!(catalog.list(), catalog.drills())?;
        let reach = match catalog.reach(&listing.snapshots).await {
            Err(error) if error.kind() != ErrorKind::Denied => return Err(error),
            reach => reach,
        };
        let listed = Arc::new(Listed { listing, drills, reach });
        *kept = Some(Kept { fetched_at: Instant::now(), after, listed: Arc::clone(&listed) });
        Ok(listed)
    }
}

fn last_ended(handle: &Handle) -> Option<u64> {
    handle
        .watch()
        .borrow()
        .jobs
        .iter()
        .filter(|record: &&JobRecord| record.is_over())
        .map(|record| record.id.0)
        .max()
}
