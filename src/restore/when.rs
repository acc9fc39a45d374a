//! The moment somebody asks for, in the forms in which people say it.

use jiff::{Span, SpanRelativeTo, Zoned};

use crate::clock::Timestamp;
use crate::error::{Error, ErrorKind, Result};

/// Reads a time of any zone (`2026-11-21T14:05:00Z`, `2026-11-21 15:05+01:00`, `2026-11-21T15:05[Europe/Berlin]`), or
/// how long ago it was (`10m ago`).
///
/// `Config` if it is neither, or has not come yet.
pub fn when(text: &str, now: Timestamp) -> Result<Timestamp> {
    let refuse = |why: &str| Error::new(ErrorKind::Config, format!("{why}: at=`{}`", text.escape_debug()));
    // Else a zone that contradicts the offset beside it would not count.
    let absolute = || match text.contains('[') {
        true => Some(text.parse::<Zoned>().ok()?.timestamp()),
        false => text.parse().ok(),
    };
    let relative = || {
        let span: Span = text.parse().ok()?;
        let since_then = span.to_duration(SpanRelativeTo::days_are_24_hours()).ok()?;
        since_then.is_negative().then(|| now.checked_add(since_then).ok())?
    };
    let time: Timestamp = absolute().or_else(relative).ok_or_else(|| {
        refuse(
            "a moment is a time with its zone, such as `2026-11-21T14:05:00Z` or `2026-11-21T15:05:00+01:00`, or how \
             long ago it was, such as `10m ago`",
        )
    })?;
    match time > now {
        true => Err(refuse(&format!("this moment has not come yet, it is {now:.0}"))),
        false => Ok(time),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(text: &str) -> Timestamp {
        text.parse().expect("a time")
    }

    #[test]
    fn a_moment_is_said_in_any_zone_or_as_how_long_ago() {
        let now = at("2026-11-21T14:05:00Z");
        for (text, time) in [
            ("2026-11-21T14:00:00Z", "2026-11-21T14:00:00Z"),
            ("2026-11-21 14:00:00.123Z", "2026-11-21T14:00:00.123Z"),
            ("2026-11-21T15:00:00+01:00", "2026-11-21T14:00:00Z"),
            ("2026-11-21 05:30-08", "2026-11-21T13:30:00Z"),
            ("2026-11-21T15:00[Europe/Berlin]", "2026-11-21T14:00:00Z"),
            ("2026-07-21T15:00:00+02:00[Europe/Berlin]", "2026-07-21T13:00:00Z"),
            ("10m ago", "2026-11-21T13:55:00Z"),
            ("2h ago", "2026-11-21T12:05:00Z"),
            ("1h 30m ago", "2026-11-21T12:35:00Z"),
            ("1d ago", "2026-11-20T14:05:00Z"),
            ("90 seconds ago", "2026-11-21T14:03:30Z"),
        ] {
            assert_eq!(when(text, now).expect(text), at(time), "{text}");
        }
    }

    #[test]
    fn what_is_no_moment_or_none_yet_is_refused() {
        let now = at("2026-11-21T14:05:00Z");
        for (text, why) in [
            ("", "how long ago"),
            ("yesterday", "how long ago"),
            ("10m", "how long ago"),
            ("2026-11-21T14:00:00", "with its zone"),
            ("1 month ago", "how long ago"),
            ("2026-11-21T14:05:00.001Z", "not come yet"),
            ("2026-11-21T14:30:00+01:00[America/New_York]", "with its zone"),
        ] {
            let error = when(text, now).expect_err(text);
            assert_eq!(error.kind(), ErrorKind::Config);
            assert!(error.chain().contains(why), "{text}: {error}");
        }
        assert_eq!(when("2026-11-21T14:05:00Z", now).expect("it is now"), now);
    }
}
