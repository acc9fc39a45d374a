//! When work is due: five cron fields, in UTC. Only triggers; what is due is asked of a worker.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use chrono::{DateTime, Utc};
use croner::Cron;
use croner::parser::{CronParser, Seconds};
use tokio_cron_scheduler::{Job, JobScheduler};

use crate::clock::Timestamp;
use crate::error::{Context, Error, ErrorKind, Result};

/// A time pattern: minute, hour, day of month, month, day of week. Both day fields must match.
#[derive(Debug, Clone)]
pub struct Schedule {
    text: String,
    cron: Cron,
}

const FIELDS: [&str; 5] = ["minute", "hour", "day of month", "month", "day of week"];

impl Schedule {
    /// The first time after `now`.
    pub fn next(&self, now: Timestamp) -> Option<Timestamp> {
        let after = DateTime::<Utc>::from_timestamp(now.as_second(), 0)?;
        let next = self.cron.find_next_occurrence(&after, false).ok()?;
        Timestamp::from_second(next.timestamp()).ok()
    }

    /// The longest pause among the next few: how long "one missed" can be.
    pub fn period(&self, now: Timestamp) -> Duration {
        const PAUSES: usize = 12;
        let times: Vec<Timestamp> =
            std::iter::successors(self.next(now), |time| self.next(*time)).take(PAUSES).collect();
        let pauses = times.windows(2).map(|pair| pair[1].duration_since(pair[0]).unsigned_abs());
        pauses.max().unwrap_or(Duration::from_secs(365 * 86_400))
    }
}

impl FromStr for Schedule {
    type Err = Error;

    #[expect(
        clippy::disallowed_methods,
        reason = "whether a date ever comes does not hang on the exact time"
    )]
    fn from_str(text: &str) -> Result<Self> {
        let refuse = |why: String| {
            Error::new(
                ErrorKind::Config,
                format!(
                    "{why}; write five fields (minute hour day month weekday), e.g. `*/5 * * * *`: schedule=`{text}`"
                ),
            )
        };
        let fields: Vec<&str> = text.split_whitespace().collect();
        if fields.len() != FIELDS.len() {
            return Err(refuse(format!("a schedule has five fields, this has {}", fields.len())));
        }
        let parser = CronParser::builder().seconds(Seconds::Disallowed).dom_and_dow(true).build();
        let cron = parser.parse(text).map_err(|error| match offending_field(&parser, &fields) {
            Some(at) => {
                refuse(format!("field {} ({}) is wrong, `{}`", at + 1, FIELDS[at], fields[at])).because(error)
            }
            None => refuse("the schedule cannot be read".to_owned()).because(error),
        })?;
        let schedule = Schedule { text: fields.join(" "), cron };
        match schedule.next(Timestamp::now()) {
            Some(_) => Ok(schedule),
            None => Err(refuse("no date ever matches".to_owned())),
        }
    }
}

/// The first field that is wrong by itself.
fn offending_field(parser: &CronParser, fields: &[&str]) -> Option<usize> {
    (0..fields.len()).find(|&at| {
        let alone: Vec<&str> =
            (0..fields.len()).map(|other| if other == at { fields[at] } else { "*" }).collect();
        parser.parse(&alone.join(" ")).is_err()
    })
}

impl fmt::Display for Schedule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

/// Calls functions at their times until it is stopped.
pub struct Trigger(JobScheduler);

/// What happens when a schedule is due. It must not take long: it asks, and does not do.
pub type OnDue = Box<dyn Fn() + Send + Sync>;

impl Trigger {
    /// Starts watching the clock.
    pub async fn start(due: Vec<(Schedule, OnDue)>) -> Result<Trigger> {
        let failed = || "start the schedule".to_owned();
        let scheduler = JobScheduler::new().await.context(ErrorKind::Internal, failed)?;
        for (schedule, on_due) in due {
            // The scheduler wants a field for seconds in front.
            let job = Job::new(format!("0 {schedule}"), move |_, _| on_due());
            scheduler
                .add(job.context(ErrorKind::Internal, failed)?)
                .await
                .context(ErrorKind::Internal, failed)?;
        }
        scheduler.start().await.context(ErrorKind::Internal, failed)?;
        Ok(Trigger(scheduler))
    }

    /// Ends it; nothing is due any more.
    pub async fn stop(mut self) {
        if let Err(error) = self.0.shutdown().await {
            tracing::debug!("the schedule did not stop cleanly: {error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("valid time")
    }

    #[test]
    fn times_are_utc() {
        let schedule: Schedule = "41 4 * * *".parse().expect("valid");
        assert_eq!(schedule.next(at("2026-11-21T05:00:00Z")), Some(at("2026-11-22T04:41:00Z")));
        assert_eq!(schedule.period(at("2026-11-21T05:00:00Z")), Duration::from_secs(86_400));
    }

    #[test]
    fn the_period_is_the_longest_pause() {
        let schedule: Schedule = "0,10 8 * * *".parse().expect("valid");
        assert_eq!(schedule.period(at("2026-11-21T00:00:00Z")), Duration::from_secs(86_400 - 600));
    }

    #[test]
    fn nonsense_is_refused_with_its_position() {
        for (text, expected) in [
            ("61 * * * *", "field 1 (minute)"),
            ("* 25 * * *", "field 2 (hour)"),
            ("* * 32 * *", "field 3 (day of month)"),
            ("* * * 13 *", "field 4 (month)"),
            ("* * * * 9", "field 5 (day of week)"),
            ("0 0 31 2 *", "no date ever matches"),
            ("", "this has 0"),
            ("* * * *", "this has 4"),
            ("0 * * * * *", "this has 6"),
            ("@daily", "this has 1"),
            ("every 5 min ok now", "field 1"),
        ] {
            let error = text.parse::<Schedule>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.to_string().contains(expected), "{text}: {error}");
        }
    }
}
