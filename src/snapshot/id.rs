//! Snapshot ids: they sort by time, read as a time, and never go backwards.

use std::fmt;
use std::str::FromStr;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// The name of one snapshot, for example `20261121T140500.123Z-9f3a2c07`.
///
/// UTC time to the millisecond, then eight random hex digits. Lexical order is order in time.
/// Within one database ids are strictly increasing even when the clock is not: see
/// [`SnapshotId::next`].
#[derive(Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct SnapshotId(String);

const TIME_FORMAT: &str = "%Y%m%dT%H%M%S%.3fZ";
const TIME_LENGTH: usize = "20261121T140500.123Z".len();
const RANDOM_DIGITS: usize = 8;

impl SnapshotId {
    /// The id for a snapshot taken at `now`, after `previous`.
    ///
    /// If the clock went back, the id's time is one millisecond after the previous id's: the
    /// catalog's order is the order in which snapshots were taken, whatever the clock says.
    pub fn next(now: Timestamp, previous: Option<&SnapshotId>, random: u32) -> SnapshotId {
        // After the last millisecond there is none: then the head refuses what is not newer.
        let after = |time: Timestamp| time.checked_add(SignedDuration::from_millis(1)).unwrap_or(time);
        let earliest = previous.map(|id| after(id.time()));
        let time = earliest.map_or(now, |earliest| now.max(earliest));
        SnapshotId(format!("{}-{random:08x}", time.strftime(TIME_FORMAT)))
    }

    /// The time in the id.
    pub fn time(&self) -> Timestamp {
        parse_time(&self.0[..TIME_LENGTH]).expect("checked when the id was made")
    }

    /// The id as text, as it stands in keys.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

fn parse_time(text: &str) -> Option<Timestamp> {
    let datetime = jiff::civil::DateTime::strptime("%Y%m%dT%H%M%S%.fZ", text).ok()?;
    jiff::tz::TimeZone::UTC.to_timestamp(datetime).ok()
}

impl FromStr for SnapshotId {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let is_random = |part: &str| {
            part.len() == RANDOM_DIGITS && part.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
        };
        let id = SnapshotId(text.to_owned());
        let valid = text.is_ascii()
            && text.len() == TIME_LENGTH + 1 + RANDOM_DIGITS
            && text.as_bytes()[TIME_LENGTH] == b'-'
            && is_random(&text[TIME_LENGTH + 1..])
            // Formatting what was parsed must give the same text: one time, one spelling.
            && parse_time(&text[..TIME_LENGTH])
                .is_some_and(|time| time.strftime(TIME_FORMAT).to_string() == text[..TIME_LENGTH]);
        if !valid {
            return Err(Error::new(
                ErrorKind::NotFound,
                format!(
                    "not a snapshot id (expected e.g. 20261121T140500.123Z-9f3a2c07): value=`{}`",
                    text.escape_debug()
                ),
            ));
        }
        Ok(id)
    }
}

impl fmt::Display for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for SnapshotId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl From<SnapshotId> for String {
    fn from(id: SnapshotId) -> String {
        id.0
    }
}

impl TryFrom<String> for SnapshotId {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("valid time")
    }

    #[test]
    fn an_id_reads_as_its_time() {
        let id = SnapshotId::next(at("2026-11-21T14:05:00.123456Z"), None, 0x9f3a);
        assert_eq!(id.as_str(), "20261121T140500.123Z-00009f3a");
        assert_eq!(id.time(), at("2026-11-21T14:05:00.123Z"));
    }

    #[test]
    fn ids_increase_when_the_clock_goes_back() {
        let first = SnapshotId::next(at("2026-11-21T14:05:00Z"), None, u32::MAX);
        let second = SnapshotId::next(at("2020-01-01T00:00:00Z"), Some(&first), 0);
        let third = SnapshotId::next(at("2026-11-21T14:05:00Z"), Some(&second), 0);
        assert!(first < second && second < third, "{first} {second} {third}");
    }

    #[test]
    fn the_last_id_there_can_be_has_a_successor_of_the_same_time() {
        let last = SnapshotId::next(Timestamp::MAX, None, 1);
        assert_eq!(SnapshotId::next(at("2026-11-21T14:05:00Z"), Some(&last), 2).time(), last.time());
    }

    #[test]
    fn other_texts_are_refused() {
        for text in [
            "",
            "20261121T140500.123Z",
            "20261121T140500.123Z-9F3A2C07",
            "20261341T140500.123Z-9f3a2c07",
            "20261121T140500.12Z-9f3a2c070",
            "../../../../etc/passwd-00000000",
            "20261121T140500.123Z/9f3a2c07",
        ] {
            text.parse::<SnapshotId>().expect_err(text);
        }
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_display(seconds in 0i64..4_000_000_000, nanos in 0i32..1_000_000_000, random: u32) {
            let time = Timestamp::new(seconds, nanos).expect("in range");
            let id = SnapshotId::next(time, None, random);
            prop_assert_eq!(id.as_str().parse::<SnapshotId>().expect("valid"), id);
        }

        #[test]
        fn any_clock_gives_strictly_increasing_ids(times in prop::collection::vec((0i64..10, 0i32..1_000_000_000, any::<u32>()), 2..20)) {
            let mut previous: Option<SnapshotId> = None;
            for (seconds, nanos, random) in times {
                let id = SnapshotId::next(Timestamp::new(seconds, nanos).expect("in range"), previous.as_ref(), random);
                if let Some(previous) = &previous {
                    prop_assert!(previous < &id);
                }
                previous = Some(id);
            }
        }
    }
}
