//! The verbs' part of lineage: as whom `lifeboat backup` publishes, and `lifeboat adopt`.

use std::fmt;
use std::time::Duration;

use serde::Serialize;
use tokio_util::sync::CancellationToken;

use super::verbs::{Verbs, line};
use crate::adopt;
use crate::catalog::Catalog;
use crate::config::DatabaseFile;
use crate::descent::{Descent, Judged, Traces};
use crate::error::{Error, ErrorKind, Result};
use crate::lineage::{Standing, Verdict, WAYS_OUT};
use crate::restore::Undone;
use crate::setup;
use crate::snapshot::SnapshotId;

/// Who claims the epoch of a snapshot by hand.
const HOLDER: &str = "lifeboat backup";

/// How long an undo waits for storage to say what the newest snapshot is.
const STORAGE_WAIT: Duration = Duration::from_secs(3);

/// Which snapshot a file that was put back is noted to follow.
#[derive(Debug)]
pub(super) enum Followed {
    /// This one; none if there is no snapshot yet.
    Newest(Option<SnapshotId>),
    /// It could not be noted, for this reason.
    Unnoted(Error),
}

impl Followed {
    /// What an undo did, with this, in JSON.
    pub(super) fn beside<'a>(&'a self, undone: &'a Undone) -> impl Serialize + 'a {
        #[derive(Serialize)]
        struct Both<'a> {
            #[serde(flatten)]
            undone: &'a Undone,
            follows: Option<&'a SnapshotId>,
            remarks: Vec<String>,
        }
        match self {
            Followed::Newest(id) => Both { undone, follows: id.as_ref(), remarks: Vec::new() },
            Followed::Unnoted(error) => Both { undone, follows: None, remarks: vec![unnoted(error)] },
        }
    }
}

impl fmt::Display for Followed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Followed::Newest(Some(id)) => write!(f, "\nits backups go on after {id}, the newest"),
            Followed::Newest(None) => Ok(()),
            Followed::Unnoted(error) => write!(f, "\n! {}", unnoted(error)),
        }
    }
}

fn unnoted(error: &Error) -> String {
    format!(
        "that its backups go on after the newest snapshot could not be noted, so they may become a branch; if `lifeboat \
         status` says so, `lifeboat adopt` makes it the newest: {}",
        error.chain()
    )
}

/// What can be told of a database without reading it.
#[derive(Debug, Serialize)]
pub(super) struct Lineage {
    /// `descends`, `branch`, or `unknown`.
    state: &'static str,
    /// Why it is a branch, and the ways out.
    #[serde(skip_serializing_if = "Option::is_none")]
    why: Option<String>,
}

impl Lineage {
    /// The line of `lifeboat status`; none where there is nothing to say.
    pub(super) fn line(&self) -> Option<String> {
        self.why.as_ref().map(|why| format!("branch    {why}"))
    }
}

impl Verbs<'_> {
    /// The file of `database`, and what this machine noted of it.
    pub(super) fn descent(&self, database: &DatabaseFile) -> Descent {
        Descent::of(&database.name, &database.path, &setup::scratch(&self.config))
    }

    /// As whom to publish, and whether the epoch is ours alone.
    ///
    /// A daemon may be at work on the same database: a database that descends is published under its
    /// epoch instead of a new one, which would fence it off. One that does not goes on a branch.
    pub(super) async fn stand(&self, catalog: &Catalog, database: &DatabaseFile) -> Result<(Standing, bool)> {
        let now = self.clock.now();
        let Some((head, _)) = catalog.head().await? else {
            return Ok((Standing::head(catalog.claim_epoch(HOLDER, now).await?), true));
        };
        let descent = self.descent(database);
        let mut traces = descent.traces();
        let limits = setup::backup_settings(&self.config).limits(&CancellationToken::new());
        descent.compare(catalog, &mut traces, limits).await?;
        match descent.judge(catalog, &traces).await?.verdict {
            Verdict::Descends => {}
            Verdict::Unknown => tracing::warn!(
                database = %database.name,
                "whether {} descends from the newest snapshot is not known; it is taken to", database.name
            ),
            Verdict::Older(fork) => {
                tracing::warn!(database = %database.name, "{fork}: {WAYS_OUT}");
                let epoch = catalog.claim_branch(HOLDER, now).await?;
                return Ok((Standing { epoch, fork: Some(fork) }, false));
            }
        }
        Ok((Standing::head(head.epoch), false))
    }

    /// What the notes of this machine say of its database; none where there is no database.
    pub(super) async fn lineage(
        &self,
        catalog: &Catalog,
        database: &DatabaseFile,
    ) -> Result<Option<Lineage>> {
        let descent = self.descent(database);
        let traces = descent.traces();
        if traces.bytes == Some(0) {
            return Ok(None);
        }
        let Judged { verdict, .. } = descent.judge(catalog, &Traces::default()).await?;
        Ok(Some(match verdict {
            Verdict::Descends => Lineage { state: "descends", why: None },
            Verdict::Unknown => Lineage { state: "unknown", why: None },
            Verdict::Older(fork) => Lineage { state: "branch", why: Some(format!("{fork}: {WAYS_OUT}")) },
        }))
    }

    /// Notes that the file of `database`, which was just put back on purpose, follows the newest
    /// snapshot. Storage is not waited for: an undo is possible without it.
    pub(super) async fn follow_newest(&self, database: &DatabaseFile) -> Followed {
        let note = async {
            let catalog = setup::catalog(&self.open().await?, &database.name);
            let newest = catalog.newest().await?;
            newest.iter().for_each(|newest| self.descent(database).put_back(newest));
            Ok(newest.map(|newest| newest.id))
        };
        let late = || Error::new(ErrorKind::Unavailable, "storage did not answer in time");
        let noted = tokio::time::timeout(STORAGE_WAIT, note).await.unwrap_or_else(|_| Err(late()));
        noted.map_or_else(Followed::Unnoted, Followed::Newest)
    }

    pub async fn adopt(&self, name: Option<String>, snapshot: Option<SnapshotId>, apply: bool) -> Result<()> {
        let database = self.database(name)?;
        let storage = match apply {
            true => self.open_for_writing().await?,
            false => self.open().await?,
        };
        let catalog = setup::catalog(&storage, &database.name);
        let plan = adopt::plan(&catalog, snapshot).await?;
        if !apply {
            return self.output.result(&plan, format!("{plan}this was a dry run; `--apply` does it"));
        }
        let adopted = adopt::apply(&catalog, &plan, &self.clock).await?;
        let text = format!(
            "adopted {} as {}\nits daemon goes on as head by itself; one of the other side publishes nothing more",
            plan.snapshot,
            line(&adopted, None)
        );
        self.output.result(&adopted, text)
    }
}
