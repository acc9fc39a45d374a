//! When work is due next. Pure.

use super::check::Check;
use crate::clock::Timestamp;
use crate::error::Result;

/// How many coming runs are shown.
pub const RUNS_SHOWN: usize = 5;

/// The coming runs of each schedule: `None` where it is off, an error where its text is wrong.
#[derive(Debug)]
pub struct Runs {
    /// Of snapshots.
    pub backup: Result<Option<Vec<Timestamp>>>,
    /// Of drills.
    pub verify: Result<Option<Vec<Timestamp>>>,
    /// Of pruning.
    pub prune: Result<Option<Vec<Timestamp>>>,
}

/// The checks of the schedules.
pub(super) fn judge(runs: &Runs) -> [Check; 3] {
    let backup = judge_one("schedule.backup", &runs.backup, || {
        Check::warning(
            "schedule.backup",
            "off (backup.schedule)",
            "snapshots are taken on request and on the way out only: what is lost is all that was written in between",
            "set BACKUP_SCHEDULE, unless something else asks for backups regularly",
        )
    });
    let verify = judge_one("schedule.verify", &runs.verify, || {
        Check::warning(
            "schedule.verify",
            "off (verify.schedule)",
            "no snapshot is proven by itself: whether they restore is seen when they are needed",
            "set BACKUP_VERIFY_SCHEDULE, or run `lifeboat verify` regularly",
        )
    });
    let prune = judge_one("schedule.prune", &runs.prune, || {
        Check::note(
            "schedule.prune",
            "off (retention.prune_schedule)",
            "nothing is removed by itself: storage grows until `lifeboat prune --apply`, or a rule of the bucket, removes it",
        )
    });
    [backup, verify, prune]
}

fn judge_one(
    name: &'static str,
    runs: &Result<Option<Vec<Timestamp>>>,
    off: impl FnOnce() -> Check,
) -> Check {
    match runs {
        Ok(None) => off(),
        Ok(Some(runs)) => {
            let runs: Vec<String> = runs.iter().map(|time| format!("{time:.0}")).collect();
            Check::ok(name, format!("next {}", runs.join(", ")))
        }
        Err(error) => Check::failure(
            name,
            error.chain(),
            "the daemon does not start",
            "correct what the message names: five fields (minute hour day month weekday), UTC",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::check::Status::*;
    use crate::error::{Error, ErrorKind};

    #[test]
    fn runs_are_listed_in_utc() {
        let times =
            ["2026-11-21T14:05:00Z", "2026-11-21T14:10:00Z"].map(|time| time.parse().expect("a time"));
        let wrong = || Err(Error::new(ErrorKind::Config, "this has 4"));
        let checks = judge(&Runs {
            backup: Result::Ok(Some(times.to_vec())),
            verify: wrong(),
            prune: Result::Ok(None),
        });
        assert_eq!(checks.each_ref().map(|check| check.status), [Ok, Failure, Note]);
        assert_eq!(checks[0].found, "next 2026-11-21T14:05:00Z, 2026-11-21T14:10:00Z");
        let off = || Result::Ok(None);
        let checks = judge(&Runs { backup: off(), verify: off(), prune: off() });
        assert_eq!(checks.map(|check| check.status), [Warning, Warning, Note]);
    }
}
