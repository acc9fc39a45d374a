//! `lifeboat doctor`: the configuration becomes what is to be looked at, and what was found an exit code.

use std::iter;
use std::time::Duration;

use super::output::Output;
use super::verbs::databases;
use crate::clock::{Clock, Timestamp};
use crate::config::{Config, Identity, StorageChoice};
use crate::daemon::backup_age_max;
use crate::disk::blocking;
use crate::doctor::{self, RUNS_SHOWN, Runs, Subject, bounded_look};
use crate::error::Result;
use crate::metrics::IdentityMetrics;
use crate::schedule::Schedule;
use crate::setup;
use crate::source;

/// That no token is there is said, not waited out.
const TOKEN_WAIT_MAX: Duration = Duration::from_secs(2);

/// Looks at everything and prints it; `Unhealthy` if a check failed.
pub async fn run(config: Config, name: Option<String>, clock: &Clock, output: &Output) -> Result<()> {
    source::assert_library()?;
    let report = doctor::examine(&subject(config, name, clock).await?, clock).await;
    output.result(&report, &report)?;
    report.verdict()
}

async fn subject(mut config: Config, name: Option<String>, clock: &Clock) -> Result<Subject> {
    let now = clock.now();
    if let StorageChoice::S3(s3) = &mut config.storage
        && let Identity::Role(role) = &mut s3.credentials.identity
    {
        role.token_wait = role.token_wait.min(TOKEN_WAIT_MAX);
    }
    let [backup, _, verify, prune] = setup::schedules(&config);
    let is_named = name.is_some();
    let patterns = config.clone();
    let found = bounded_look(blocking("find the databases", move || databases(&patterns, name))).await;
    let session = setup::session(&config, clock, &IdentityMetrics::default())?;
    Ok(Subject {
        // A name nobody has is a slip on the command line; what is configured and missing is a finding.
        databases: if is_named { Ok(found?) } else { found },
        role: setup::role(&config),
        storage: bounded_look(setup::storage_to_examine(&config, session.as_ref())).await,
        session,
        age_max: backup_age_max(&config, backup.as_ref().ok().and_then(Option::as_ref), now),
        runs: Runs {
            backup: backup.map(|schedule| coming(schedule, now)),
            verify: verify.map(|schedule| coming(schedule, now)),
            prune: prune.map(|schedule| coming(schedule, now)),
        },
        policy: setup::policy(&config),
        scratch: setup::scratch(&config),
        config,
    })
}

fn coming(schedule: Option<Schedule>, now: Timestamp) -> Option<Vec<Timestamp>> {
    let schedule = schedule?;
    Some(iter::successors(schedule.next(now), |time| schedule.next(*time)).take(RUNS_SHOWN).collect())
}
