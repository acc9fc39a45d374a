//! Five fields are refused, or a schedule that comes, again and again, on full minutes.
use std::time::Duration;

use lifeboat::clock::Timestamp;
use lifeboat::error::ErrorKind;
use lifeboat::schedule::Schedule;

pub fn holds(input: &[u8]) {
    let Ok(text) = str::from_utf8(input) else { return };
    let schedule = match text.parse::<Schedule>() {
        Ok(schedule) => schedule,
        Err(error) => return assert_eq!(error.kind(), ErrorKind::Config),
    };
    let shown = schedule.to_string();
    let again: Schedule = shown.parse().expect("what is shown is a schedule");
    let mut now: Timestamp = "2026-11-22T07:30:30Z".parse().expect("a time");
    assert!(schedule.period(now) >= Duration::from_secs(60), "{shown}");
    for _ in 0..3 {
        let next = schedule.next(now);
        assert_eq!(next, again.next(now), "{shown}");
        let Some(next) = next else { return };
        assert!(next > now && next.as_second() % 60 == 0, "{shown}: {next} after {now}");
        now = next;
    }
}
