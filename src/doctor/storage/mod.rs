//! Trying a storage under a key of its own: what it answers, allows and honours.

mod judge;

use crate::clock::{Clock, Timestamp};
use crate::error::{ErrorKind, Result};
use crate::snapshot::Key;
use crate::storage::{Examine, Greeting, Guarantees, conditions_honoured, ensure_probe, new_probe_key};

use super::patience::{LOOK, Patience};
pub(super) use judge::judge;

/// What was found of a storage that answers.
#[derive(Debug)]
pub(super) struct Looked {
    pub(super) location: String,
    pub(super) greeted: Greeted,
    /// `None` where the first answer already says that there is no use in trying.
    pub(super) tried: Option<Tried>,
}

impl Looked {
    /// Whether something can be stored and nothing that was stored may be removed.
    pub(super) fn is_append_only(&self) -> bool {
        let tried = self.tried.as_ref().map(|tried| (&tried.put, &tried.delete));
        matches!(tried, Some((Ok(()), Err(error))) if error.kind() == ErrorKind::Denied)
    }
}

/// The first answer, between two looks at our own clock.
#[derive(Debug, Clone)]
pub(super) struct Greeted {
    pub(super) greeting: Greeting,
    pub(super) asked_at: Timestamp,
    pub(super) answered_at: Timestamp,
}

/// What came of trying each right.
#[derive(Debug)]
pub(super) struct Tried {
    /// Writing an object.
    pub(super) put: Result<()>,
    /// Reading it.
    pub(super) get: Result<()>,
    /// Listing it; whether it was in the list.
    pub(super) list: Result<bool>,
    /// What conditions hold back; not tried where the object could not be written or read.
    pub(super) conditions: Option<Result<Guarantees>>,
    /// Ending an upload in parts.
    pub(super) abort: Result<()>,
    /// Removing the object.
    pub(super) delete: Result<()>,
}

/// Asks for an answer, then tries every right. An error is that of a storage that does not answer.
pub(super) async fn look(storage: &dyn Examine, clock: &Clock, patience: Patience) -> Result<Looked> {
    let (object, upload) = (new_probe_key()?, new_probe_key()?);
    let asked_at = clock.now();
    let greeting = patience.bounded(LOOK, storage.greet()).await?;
    let answered_at = clock.now();
    let tried = match greeting.is_elsewhere {
        true => None,
        false => Some(try_rights(storage, patience, &object, &upload).await),
    };
    let greeted = Greeted { greeting, asked_at, answered_at };
    Ok(Looked { location: storage.location(), greeted, tried })
}

/// Every right is tried, whatever became of the ones before; what was written is removed.
async fn try_rights(storage: &dyn Examine, patience: Patience, object: &Key, upload: &Key) -> Tried {
    let path = object.path();
    let put = patience.bounded(LOOK, ensure_probe(storage, object)).await;
    let get = patience.bounded(LOOK, storage.read(object, 16)).await.map(drop);
    let listed = patience.bounded(LOOK, storage.list(&path)).await;
    let conditions = match (&put, &get) {
        (Ok(()), Ok(())) => Some(patience.bounded(LOOK, conditions_honoured(storage, object)).await),
        _ => None,
    };
    let abort = patience.bounded(LOOK, storage.begin_and_abort(upload)).await;
    let delete = patience.bounded(LOOK, storage.delete(object)).await;
    let list = listed.map(|entries| entries.iter().any(|entry| entry.path == path));
    Tried { put, get, list, conditions, abort, delete }
}
