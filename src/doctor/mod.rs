//! The verb "doctor": looks at everything a backup or a restore will need, and says what is wrong.
//!
//! First everything is looked at, each look bounded in time and none stopping another; then pure
//! functions judge what was found. Nothing is changed: in storage a probe is written under a key of
//! its own and removed again; the database is only read (what a crashed writer left beside it is
//! recovered, as by any program that opens it).

mod capture;
mod check;
mod database;
mod fly;
mod http;
mod identity;
mod patience;
mod schedule;
mod snapshots;
mod storage;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::future::OptionFuture;
use futures::stream::{self, StreamExt};

pub use check::{Check, Report, Status};
pub use patience::bounded_look;
pub use schedule::{RUNS_SHOWN, Runs};

use crate::clock::{Clock, Timestamp};
use crate::config::{Config, DatabaseFile, StorageChoice};
use crate::credentials::{Role, Session};
use crate::error::Result;
use crate::retention::Policy;
use crate::storage::{Examine, Storage};
use patience::Patience;

/// What is to be looked at. What could not be made of the configuration is a finding, too.
#[derive(Debug)]
pub struct Subject {
    /// The configuration.
    pub config: Config,
    /// The databases.
    pub databases: Result<Vec<DatabaseFile>>,
    /// The role to assume, if one is configured.
    pub role: Option<Role>,
    /// Who `storage` asks as; `None` where that needs nobody.
    pub session: Option<Session>,
    /// Where backups are; opened, not asked yet.
    pub storage: Result<Arc<dyn Examine>>,
    /// When work is due.
    pub runs: Runs,
    /// How old the newest snapshot may be.
    pub age_max: Option<Duration>,
    /// What is kept.
    pub policy: Result<Policy>,
    /// Where copies are made that do not become the database.
    pub scratch: PathBuf,
}

/// How many databases are looked at at the same time.
const DATABASES_AT_ONCE: usize = 4;

/// An application's lock is not waited for any longer than this.
const BUSY_TIMEOUT_MAX: Duration = Duration::from_secs(5);

/// What was found of one database.
struct Looked {
    file: DatabaseFile,
    database: database::Looked,
    snapshots: Option<snapshots::Looked>,
}

/// Looks at everything, in at most two minutes, and judges it.
pub async fn examine(subject: &Subject, clock: &Clock) -> Report {
    let patience = Patience::begin();
    let config = &subject.config;
    let rules = subject.rules(clock.now());
    let port = OptionFuture::from(config.http.addr.map(http::look));
    let role = OptionFuture::from(
        subject
            .role_and_region()
            .map(|(role, region)| async move { identity::look(role, region, clock, patience).await }),
    );
    let (port, role, (storage, databases)) = tokio::join!(port, role, look(subject, &rules, clock, patience));

    let mut checks = Vec::new();
    if let Err(error) = &subject.databases {
        checks.push(Check::failure(
            "database",
            error.chain(),
            "there is nothing to back up",
            "give the path of the database file in BACKUP_DATABASE",
        ));
    }
    for looked in &databases {
        let found = database::judge(&looked.database, config.restore.on_boot);
        let captured = capture::judge_database(&looked.database, config);
        checks.extend(found.into_iter().chain([captured]).map(|check| check.about(&looked.file.name)));
    }
    checks.push(capture::judge(config, databases.len()));
    checks.extend(storage::judge(&storage, &config.storage, config.retention.prune_schedule.is_some()));
    checks.extend(identity::judge(&identity::Case {
        config,
        role: subject.role.as_ref(),
        looked: role.as_ref(),
        state: subject.session.as_ref().map(Session::state).as_ref(),
        is_append_only: storage.as_ref().is_ok_and(storage::Looked::is_append_only),
    }));
    checks.extend(schedule::judge(&subject.runs));
    for looked in &databases {
        let found = snapshots::judge(looked.snapshots.as_ref(), &rules, config.verify.schedule.is_some());
        checks.extend(found.map(|check| check.about(&looked.file.name)));
    }
    checks.extend(http::judge(&config.http, port.as_ref()));
    let facts: Vec<fly::Fact<'_>> = databases.iter().map(Looked::fact).collect();
    checks.extend(fly::judge(config, &facts));
    Report::new(checks)
}

/// Storage and databases; the snapshots once storage has answered.
async fn look(
    subject: &Subject,
    rules: &snapshots::Rules<'_>,
    clock: &Clock,
    patience: Patience,
) -> (Result<storage::Looked>, Vec<Looked>) {
    let files = subject.databases.as_deref().unwrap_or_default();
    let databases = stream::iter(files)
        .map(|file| async move { (file, look_at_database(subject, &file.path, patience).await) })
        .buffered(DATABASES_AT_ONCE)
        .collect::<Vec<_>>();
    let storage = async {
        match &subject.storage {
            Ok(storage) => storage::look(storage.as_ref(), clock, patience).await,
            Err(error) => Err(error.again()),
        }
    };
    let (databases, storage) = tokio::join!(databases, storage);
    let answering: Option<Arc<dyn Storage>> = match (&subject.storage, &storage) {
        (Ok(opened), Ok(looked)) if looked.tried.is_some() => Some(Arc::clone(opened) as Arc<dyn Storage>),
        _ => None,
    };
    let databases = stream::iter(databases)
        .map(|(file, database)| {
            let answering = answering.as_ref();
            async move {
                let snapshots =
                    answering.map(|storage| snapshots::look(storage, &file.name, rules, patience));
                Looked { file: file.clone(), database, snapshots: OptionFuture::from(snapshots).await }
            }
        })
        .buffered(DATABASES_AT_ONCE)
        .collect()
        .await;
    (storage, databases)
}

async fn look_at_database(subject: &Subject, path: &Path, patience: Patience) -> database::Looked {
    let (path, scratch) = (path.to_owned(), subject.scratch.clone());
    let busy_timeout = subject.config.backup.busy_timeout.min(BUSY_TIMEOUT_MAX);
    let look = move || Ok(database::look(&path, &scratch, busy_timeout));
    patience.blocking("look at the database", look).await.unwrap_or_else(database::Looked::Unusable)
}

impl Subject {
    fn role_and_region(&self) -> Option<(&Role, &str)> {
        let StorageChoice::S3(s3) = &self.config.storage else { return None };
        Some((self.role.as_ref()?, s3.region.as_deref()?))
    }

    fn rules(&self, now: Timestamp) -> snapshots::Rules<'_> {
        snapshots::Rules {
            now,
            age_max: self.age_max,
            policy: &self.policy,
            retention: &self.config.retention,
            point_in_time: self.config.capture.point_in_time,
        }
    }
}

impl Looked {
    fn fact(&self) -> fly::Fact<'_> {
        let mount = match &self.database {
            database::Looked::There(found) => found.mount.as_ref().ok().and_then(Option::as_ref),
            _ => None,
        };
        let newest = self.snapshots.as_ref().and_then(|found| found.newest.as_ref().ok()?.as_ref());
        fly::Fact { name: &self.file.name, mount, newest: newest.map(|newest| &newest.manifest) }
    }
}
