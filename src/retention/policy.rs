//! The retention policy as people write it: `24h 7d 4w 12m`.

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use jiff::civil::Date;
use jiff::tz::TimeZone;
use serde::{Deserialize, Serialize};

use crate::error::{Error, ErrorKind, Result};

/// What a rule counts: the newest snapshots themselves, or UTC calendar periods that have one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Unit {
    /// `l`: snapshots.
    Last,
    /// `h`: hours.
    Hourly,
    /// `d`: days.
    Daily,
    /// `w`: ISO weeks, Monday to Sunday.
    Weekly,
    /// `m`: months.
    Monthly,
    /// `y`: years.
    Yearly,
}

impl Unit {
    /// Every unit, in the order in which a policy is written.
    pub const ALL: [Unit; 6] =
        [Unit::Last, Unit::Hourly, Unit::Daily, Unit::Weekly, Unit::Monthly, Unit::Yearly];

    /// The letter after the count.
    pub const fn letter(self) -> char {
        match self {
            Unit::Last => 'l',
            Unit::Hourly => 'h',
            Unit::Daily => 'd',
            Unit::Weekly => 'w',
            Unit::Monthly => 'm',
            Unit::Yearly => 'y',
        }
    }

    /// The name used in reasons.
    pub const fn name(self) -> &'static str {
        match self {
            Unit::Last => "last",
            Unit::Hourly => "hourly",
            Unit::Daily => "daily",
            Unit::Weekly => "weekly",
            Unit::Monthly => "monthly",
            Unit::Yearly => "yearly",
        }
    }

    /// The period that holds `time`: a number that grows from period to period, and its name.
    /// `None` for [`Unit::Last`], which has no periods.
    pub(super) fn period(self, time: Timestamp) -> Option<(i64, String)> {
        let civil = TimeZone::UTC.to_datetime(time);
        let date = civil.date();
        let month = i64::from(date.year()) * 12 + i64::from(date.month());
        let hour = time.as_second().div_euclid(3600);
        let day = hour.div_euclid(24);
        Some(match self {
            Unit::Last => return None,
            Unit::Hourly => (hour, format!("{date}T{:02}", civil.hour())),
            Unit::Daily => (day, date.to_string()),
            // Day 0, the first of January 1970, was a Thursday.
            Unit::Weekly => ((day + 3).div_euclid(7), week_name(date)),
            Unit::Monthly => (month, format!("{:04}-{:02}", date.year(), date.month())),
            Unit::Yearly => (i64::from(date.year()), format!("{:04}", date.year())),
        })
    }
}

fn week_name(date: Date) -> String {
    let week = date.iso_week_date();
    format!("{:04}-W{:02}", week.year(), week.week())
}

/// How many snapshots to keep per unit, grandfather-father-son; at least one rule, no count of zero.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Policy(BTreeMap<Unit, u32>);

impl Policy {
    /// The rules, in the order of [`Unit::ALL`].
    pub fn rules(&self) -> impl Iterator<Item = (Unit, usize)> + '_ {
        self.0.iter().map(|(unit, count)| (*unit, *count as usize))
    }
}

impl Default for Policy {
    fn default() -> Self {
        Policy([(Unit::Hourly, 24), (Unit::Daily, 7), (Unit::Weekly, 4), (Unit::Monthly, 12)].into())
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Self> {
        let refused = |position: usize, what: &str| {
            Error::new(
                ErrorKind::Config,
                format!(
                    "read a retention policy (such as `24h 7d 4w 12m`): {what}: value=`{}` at=`{}`",
                    text.escape_debug(),
                    position + 1
                ),
            )
        };
        let mut rules = BTreeMap::new();
        for rule in text.split_whitespace() {
            let position = rule.as_ptr() as usize - text.as_ptr() as usize;
            let digits = rule.bytes().take_while(u8::is_ascii_digit).count();
            let (count, letter) = rule.split_at(digits);
            if count.is_empty() {
                return Err(refused(position, "a count comes first"));
            }
            let unit = Unit::ALL
                .into_iter()
                .find(|unit| letter.chars().eq([unit.letter()]))
                .ok_or_else(|| refused(position + digits, "the unit is one of l h d w m y"))?;
            let count = count.parse().map_err(|_| refused(position, "the count is too large"))?;
            if count == 0 {
                return Err(refused(position, "a count of 0 keeps nothing, leave the rule out"));
            }
            if rules.insert(unit, count).is_some() {
                return Err(refused(position, "there is a rule for this unit already"));
            }
        }
        if rules.is_empty() {
            return Err(refused(0, "it has no rule and would keep nothing"));
        }
        Ok(Policy(rules))
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, (unit, count)) in self.0.iter().enumerate() {
            let space = if position == 0 { "" } else { " " };
            write!(f, "{space}{count}{}", unit.letter())?;
        }
        Ok(())
    }
}

impl From<Policy> for String {
    fn from(policy: Policy) -> String {
        policy.to_string()
    }
}

impl TryFrom<String> for Policy {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_policy_is_shown_in_one_order() {
        for (text, shown) in [
            ("24h 7d 4w 12m", "24h 7d 4w 12m"),
            ("  12m\t4w 7d\n24h ", "24h 7d 4w 12m"),
            ("2y 3l", "3l 2y"),
            ("007d", "7d"),
            ("4294967295h", "4294967295h"),
        ] {
            assert_eq!(text.parse::<Policy>().expect(text).to_string(), shown);
        }
        assert_eq!(Policy::default().to_string(), "24h 7d 4w 12m");
    }

    #[test]
    fn what_cannot_be_meant_is_refused_with_its_place() {
        for (text, place, what) in [
            ("", 1, "no rule"),
            ("   ", 1, "no rule"),
            ("24h 0d", 5, "count of 0"),
            ("24h 7d 12h", 8, "already"),
            ("24h 7x", 6, "unit"),
            ("24h 7", 6, "unit"),
            ("7days", 2, "unit"),
            ("7D", 2, "unit"),
            ("24h,7d", 3, "unit"),
            ("h", 1, "count comes first"),
            ("-1d", 1, "count comes first"),
            ("24h 4294967296d", 5, "too large"),
            ("7é", 2, "unit"),
        ] {
            let error = text.parse::<Policy>().expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Config);
            let message = error.to_string();
            assert!(message.contains(what) && message.ends_with(&format!("at=`{place}`")), "{message}");
        }
    }

    #[test]
    fn periods_are_of_the_calendar_in_utc() {
        let names = |time: &str| -> Vec<String> {
            let time = time.parse().expect("a time");
            Unit::ALL.into_iter().filter_map(|unit| Some(unit.period(time)?.1)).collect()
        };
        assert_eq!(
            names("2026-11-21T14:05:00Z"),
            ["2026-11-21T14", "2026-11-21", "2026-W47", "2026-11", "2026"]
        );
        assert_eq!(
            names("2027-01-01T01:30:00+02:00"),
            ["2026-12-31T23", "2026-12-31", "2026-W53", "2026-12", "2026"]
        );
        assert_eq!(
            names("2027-01-01T00:00:00Z"),
            ["2027-01-01T00", "2027-01-01", "2026-W53", "2027-01", "2027"]
        );
    }

    proptest! {
        #[test]
        fn parse_is_the_inverse_of_display(counts in prop::collection::btree_map(0usize..6, 1u32.., 1..6)) {
            let policy = Policy(counts.into_iter().map(|(unit, count)| (Unit::ALL[unit], count)).collect());
            prop_assert_eq!(policy.to_string().parse::<Policy>().expect("valid"), policy);
        }

        #[test]
        fn two_times_are_in_one_period_if_its_name_is_the_same(one in -99_999_999_999i64..99_999_999_999, apart in 0i64..9_999_999) {
            let [one, other] = [one, one + apart].map(|second| Timestamp::from_second(second).expect("in range"));
            for unit in Unit::ALL {
                let (Some(one), Some(other)) = (unit.period(one), unit.period(other)) else { continue };
                prop_assert!(one.0 <= other.0);
                prop_assert_eq!(one.0 == other.0, one.1 == other.1);
            }
        }
    }
}
