//! How far behind storage is with what was committed, for whoever asks "are we safe?".

use super::status::{Freshness, Status, short};
use crate::capture;
use crate::clock::Timestamp;

impl Freshness {
    /// Whether what is committed between two snapshots is stored soon: then few snapshots are due.
    pub fn is_captured(&self, capture: Option<&capture::State>, now: Timestamp) -> bool {
        let is_in_time =
            |state: &capture::State| self.capture_lag_max.is_some_and(|max| state.lag(now) <= max);
        capture.is_some_and(|state| state.doing.captures() && is_in_time(state))
    }

    /// What holds of a database with this capture.
    pub(super) fn of(self, capture: Option<&capture::State>, now: Timestamp) -> Freshness {
        let is_captured = self.is_captured(capture, now);
        let backup_age_max = if is_captured { self.backup_age_max } else { self.uncaptured_age_max };
        Freshness { backup_age_max, ..self }
    }
}

impl Status {
    /// What speaks against capture, where there is to be any.
    pub(super) fn behind(
        &self,
        capture: Option<&capture::State>,
        freshness: Freshness,
        now: Timestamp,
    ) -> Vec<String> {
        let Some(lag_max) = freshness.capture_lag_max else { return Vec::new() };
        let lag = capture.map(|capture| capture.lag(now)).filter(|lag| *lag > lag_max);
        let reason = match (lag, self.failures.get("capture")) {
            // What is not captured for this is told already.
            _ if self.fork.is_some() || self.fenced => None,
            (Some(lag), _) => Some(format!(
                "what was committed in the last {} is not stored yet, more than {}",
                short(lag),
                short(lag_max)
            )),
            (None, Some(failure)) if capture.is_none() => {
                Some(format!("what is committed is not captured: {}", failure.message))
            }
            (None, _) => None,
        };
        reason.into_iter().collect()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::capture::Doing;
    use crate::error::ErrorKind;
    use crate::worker::{Answer, AtStart};

    const FRESHNESS: Freshness = Freshness {
        backup_age_max: None,
        uncaptured_age_max: None,
        proof_age_max: None,
        capture_lag_max: Some(Duration::from_secs(60)),
    };

    fn at(text: &str) -> Timestamp {
        text.parse().expect("valid time")
    }

    #[test]
    fn what_is_not_captured_or_late_goes_by_the_shorter_schedule() {
        let now = at("2026-11-21T14:01:00Z");
        let (day, minutes) = (Some(Duration::from_secs(86_400)), Some(Duration::from_secs(300)));
        let freshness = Freshness { backup_age_max: day, uncaptured_age_max: minutes, ..FRESHNESS };
        let state = |doing, since: Option<&str>| capture::State {
            doing,
            waits_since: since.map(at),
            ..Default::default()
        };
        let cases = [
            (Some(state(Doing::Following, None)), day),
            (Some(state(Doing::Following, Some("2026-11-21T14:00:00Z"))), day),
            (Some(state(Doing::Following, Some("2026-11-21T13:59:59Z"))), minutes),
            (Some(state(Doing::Comparing, None)), day),
            (Some(state(Doing::Anchoring, None)), minutes),
            (Some(state(Doing::NoLog, None)), minutes),
            (None, minutes),
        ];
        for (state, expected) in cases {
            assert_eq!(freshness.of(state.as_ref(), now).backup_age_max, expected, "{state:?}");
        }
        let off = Freshness { capture_lag_max: None, ..freshness };
        assert_eq!(off.of(Some(&state(Doing::Following, None)), now).backup_age_max, minutes);
    }

    #[test]
    fn deltas_that_are_late_or_missing_are_a_reason() {
        let now = at("2026-11-21T14:01:00Z");
        let since = |text| capture::State { waits_since: Some(at(text)), ..Default::default() };
        let (late, in_time) = (since("2026-11-21T13:59:59Z"), since("2026-11-21T14:00:00Z"));
        let mut status = Status::new("memory".to_owned(), &AtStart::default(), None);
        let reasons = |status: &Status, state| status.behind(state, FRESHNESS, now);
        assert_eq!(
            reasons(&status, Some(&late)),
            ["what was committed in the last 1m 1s is not stored yet, more than 1m"]
        );
        assert!(reasons(&status, Some(&in_time)).is_empty() && reasons(&status, None).is_empty());
        let off = Freshness { capture_lag_max: None, ..FRESHNESS };
        assert!(status.behind(Some(&late), off, now).is_empty(), "nothing is to be captured");

        let failure = Answer { kind: ErrorKind::Source, message: "no such table".to_owned() };
        status.failures.insert("capture", failure);
        assert_eq!(reasons(&status, None), ["what is committed is not captured: no such table"]);
        assert!(reasons(&status, Some(&in_time)).is_empty(), "it began, and is tried again");
        status.fenced = true;
        assert!(reasons(&status, Some(&late)).is_empty(), "told already");
    }
}
