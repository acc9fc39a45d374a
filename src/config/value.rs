//! Text to typed values. What is wrong is said as a reason; the caller adds key, value and example.

use std::fmt::Display;
use std::ops::RangeInclusive;
use std::str::FromStr;
use std::time::Duration;

use bytesize::ByteSize;
use jiff::{Span, SpanRelativeTo};

/// A value, or the reason why the text is none.
pub(super) type Parsed<T> = Result<T, String>;

/// True or false, in the spellings people use.
pub(super) fn switch(text: &str) -> Parsed<bool> {
    match text.to_lowercase().as_str() {
        "true" | "1" | "yes" | "on" => Ok(true),
        "false" | "0" | "no" | "off" => Ok(false),
        _ => Err("it is one of true, false, 1, 0, yes, no, on, off".into()),
    }
}

/// A whole number within `range`.
pub(super) fn number<T>(text: &str, range: RangeInclusive<T>) -> Parsed<T>
where
    T: FromStr + PartialOrd + Display,
{
    text.parse()
        .ok()
        .filter(|number| range.contains(number))
        .ok_or_else(|| format!("it is a whole number from {} to {}", range.start(), range.end()))
}

/// A duration with units, within `range`; days have 24 hours.
pub(super) fn duration(text: &str, range: RangeInclusive<Duration>) -> Parsed<Duration> {
    if is_bare_number(text) {
        return Err("a duration needs a unit: s, m, h or d".into());
    }
    let span: Span = text.parse().map_err(|_| "it is not a duration".to_owned())?;
    let signed = span
        .to_duration(SpanRelativeTo::days_are_24_hours())
        .map_err(|_| "a duration has no unit larger than weeks".to_owned())?;
    let duration = Duration::try_from(signed).map_err(|_| "a duration is not negative".to_owned())?;
    if !range.contains(&duration) {
        let show = |bound: &Duration| {
            jiff::SignedDuration::try_from(*bound).map_or_else(|_| "for ever".into(), |d| format!("{d:#}"))
        };
        return Err(format!("it must lie between {} and {}", show(range.start()), show(range.end())));
    }
    Ok(duration)
}

/// A size with a unit, at least `bytes_min`, in bytes.
pub(super) fn size(text: &str, bytes_min: u64) -> Parsed<u64> {
    if is_bare_number(text) {
        return Err("a size needs a unit: KiB, MiB, GiB".into());
    }
    let size: ByteSize = text.parse().map_err(|_| "it is not a size".to_owned())?;
    if size.as_u64() < bytes_min {
        return Err(format!("it must be at least {}", ByteSize::b(bytes_min).display().iec()));
    }
    Ok(size.as_u64())
}

fn is_bare_number(text: &str) -> bool {
    text.parse::<f64>().is_ok()
}

/// A schedule's text, or `None` for `off`. Its syntax is the scheduler's business.
pub(super) fn schedule(text: &str) -> Parsed<Option<String>> {
    Ok((!text.eq_ignore_ascii_case("off")).then(|| text.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3_600);

    #[test]
    fn switches() {
        for text in ["true", "1", "yes", "on", "TRUE", "Yes"] {
            assert_eq!(switch(text), Ok(true), "{text}");
        }
        for text in ["false", "0", "no", "off", "False"] {
            assert_eq!(switch(text), Ok(false), "{text}");
        }
        for text in ["", "t", "y", "2", "enabled", "tru"] {
            assert!(switch(text).is_err(), "{text}");
        }
    }

    #[test]
    fn durations_have_a_unit() {
        for (text, seconds) in
            [("5m", 300), ("90s", 90), ("1h 30m", 5_400), ("2 days", 172_800), ("0s", 0), ("PT1H", 3_600)]
        {
            let range = Duration::ZERO..=48 * HOUR;
            assert_eq!(duration(text, range), Ok(Duration::from_secs(seconds)), "{text}");
        }
        for text in ["", "300", "1.5", "5 x", "-5m", "1 month", "3h", "99999999999999999999h"] {
            assert!(duration(text, Duration::ZERO..=2 * HOUR).is_err(), "{text}");
        }
        assert_eq!(
            duration("3h", Duration::from_secs(1)..=2 * HOUR),
            Err("it must lie between 1s and 2h".into())
        );
    }

    #[test]
    fn sizes_have_a_unit() {
        for (text, bytes) in
            [("64 MiB", 64 << 20), ("1GiB", 1 << 30), ("1.5 MiB", 3 << 19), ("2 MB", 2_000_000)]
        {
            assert_eq!(size(text, 1 << 20), Ok(bytes), "{text}");
        }
        for text in ["", "1048576", "1e9", "inf", "-1 MiB", "64 monkeys", "1 KiB"] {
            assert!(size(text, 1 << 20).is_err(), "{text}");
        }
        assert_eq!(size("1 KiB", 1 << 20), Err("it must be at least 1.0 MiB".into()));
    }

    #[test]
    fn numbers_stay_within_their_range() {
        assert_eq!(number("4", 1..=64), Ok(4));
        for text in ["", "0", "65", "-1", "1.0", "four", "99999999999999999999"] {
            assert_eq!(number(text, 1u8..=64), Err("it is a whole number from 1 to 64".into()), "{text}");
        }
    }
}
