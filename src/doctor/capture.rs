//! Whether what is committed between snapshots can be captured as configured. Pure.

use super::check::Check;
use super::database;
use crate::config::{Config, StorageChoice};

const LOG: &str = "capture.log";
const REQUESTS: &str = "capture.requests";

const OFF: &str = "capture is off (capture.on)";

/// Whether one database has a log to read.
pub(super) fn judge_database(looked: &database::Looked, config: &Config) -> Check {
    if !config.capture.on {
        return Check::skipped(LOG, OFF);
    }
    let facts = match looked {
        database::Looked::There(found) => found.facts.as_ref().ok(),
        database::Looked::Absent { .. } | database::Looked::Unusable(_) => None,
    };
    judge_mode(facts.map(|facts| facts.sqlite.journal_mode.as_str()), config)
}

fn judge_mode(journal_mode: Option<&str>, config: &Config) -> Check {
    match journal_mode {
        None => Check::skipped(LOG, "there is no database that can be read"),
        Some("wal") => Check::ok(LOG, "there is a write-ahead log to read"),
        Some(mode) => {
            let due = config.backup.uncaptured_schedule.as_deref().unwrap_or("off");
            Check::warning(
                LOG,
                format!("the journal mode is {mode}: there is no write-ahead log to read"),
                format!(
                    "nothing is captured: what is committed after a snapshot waits for the next one (backup.schedule: `{due}`)"
                ),
                "switch to a write-ahead log (once, in the application: PRAGMA journal_mode=WAL), or set BACKUP_SCHEDULE \
                 to how much may be lost, and BACKUP_CAPTURE=off",
            )
        }
    }
}

/// Whether a day has room for the requests of all databases.
pub(super) fn judge(config: &Config, databases: usize) -> Check {
    if !config.capture.on {
        return Check::skipped(REQUESTS, OFF);
    }
    if matches!(config.storage, StorageChoice::Directory(_)) {
        return Check::skipped(REQUESTS, "backups are in a directory, which nobody counts requests to");
    }
    let interval = config.capture.interval;
    let needed = config.capture_requests(databases);
    let found = format!(
        "up to {needed} requests a day, for the deltas of {databases} databases at one per {interval:?}"
    );
    match config.requests_per_day(databases).map(|requests| requests.get()) {
        None => Check::ok(REQUESTS, format!("{found}; without limit")),
        Some(allowed) if needed <= allowed => Check::ok(REQUESTS, format!("{found}; {allowed} are allowed")),
        Some(allowed) => Check::warning(
            REQUESTS,
            format!("{found}; {allowed} are allowed (storage.requests_per_day)"),
            "a database that is written to all the time reaches the limit, and then nothing is captured until midnight UTC",
            format!("set BACKUP_REQUESTS_PER_DAY above {needed}, or a longer BACKUP_INTERVAL"),
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Sources;
    use crate::doctor::check::Status::{self, *};

    /// Variables, databases, and what the check then says.
    type Case<'a> = (&'a [(&'a str, &'a str)], usize, Status, &'a str);

    fn config(pairs: &[(&str, &str)]) -> Config {
        let environment = pairs.iter().copied().collect();
        Config::load(&Sources { environment, ..Sources::default() }).expect("valid").0
    }

    const ON: (&str, &str) = ("BACKUP_CAPTURE", "true");
    const OFF: (&str, &str) = ("BACKUP_CAPTURE", "off");
    const BUCKET: (&str, &str) = ("BACKUP_S3_BUCKET", "my-app-backups");

    #[test]
    fn a_database_without_a_log_is_warned_of_with_its_schedule() {
        let judged = |mode, pairs: &[_]| judge_mode(mode, &config(pairs));
        assert_eq!(judged(Some("wal"), &[ON]).status, Ok);
        assert_eq!(judged(None, &[ON]).status, Skipped);
        let warned = judged(Some("delete"), &[ON]);
        assert_eq!(warned.status, Warning);
        assert!(warned.means.expect("said").contains("`*/5 * * * *`"));
    }

    #[test]
    fn a_day_has_to_have_room_for_the_requests() {
        let cases: [Case<'_>; 9] = [
            (&[OFF, BUCKET], 1, Skipped, "off"),
            (&[ON], 1, Skipped, "directory"),
            (
                &[ON, BUCKET],
                1,
                Ok,
                "up to 518400 requests a day, for the deltas of 1 databases at one per 1s; 568400",
            ),
            (&[ON, BUCKET], 1000, Ok, "518450000 are allowed"),
            (&[ON, BUCKET, ("BACKUP_REQUESTS_PER_DAY", "50000")], 1, Warning, "50000 are allowed"),
            (&[ON, BUCKET, ("BACKUP_REQUESTS_PER_DAY", "0")], 1, Ok, "without limit"),
            (&[ON, BUCKET, ("BACKUP_REQUESTS_PER_DAY", "600000")], 1, Ok, "600000 are allowed"),
            (&[ON, BUCKET, ("BACKUP_REQUESTS_PER_DAY", "600000")], 2, Warning, "1036800"),
            (&[ON, BUCKET, ("BACKUP_INTERVAL", "6s")], 1, Ok, "86400"),
        ];
        for (pairs, databases, status, found) in cases {
            let check = judge(&config(pairs), databases);
            assert_eq!(check.status, status, "{pairs:?}");
            assert!(check.found.contains(found), "{}", check.found);
        }
    }
}
