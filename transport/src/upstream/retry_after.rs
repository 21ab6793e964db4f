//! `Retry-After` (RFC 9110, section 10.2.3): seconds, or one of the three date forms of section 5.6.7. Beside it the
//! `retry-after-ms` that OpenAI sends, which is more exact and wins.

use core::time::Duration;
use std::time::{SystemTime, UNIX_EPOCH};

use http::header::{self, HeaderMap, HeaderValue};

/// How long an endpoint asks us to stay away. A date in the past is no wait; what cannot be read is nothing said.
pub(super) fn retry_after(headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if let Some(millis) = headers.get("retry-after-ms").and_then(number) {
        return Some(Duration::from_secs_f64(millis / 1_000.0));
    }
    let value = headers.get(header::RETRY_AFTER)?;
    if let Some(seconds) = number(value) {
        return Some(Duration::from_secs_f64(seconds));
    }
    let until = UNIX_EPOCH + Duration::from_secs(unix_seconds(value.to_str().ok()?.trim(), now)?);
    Some(until.duration_since(now).unwrap_or_default())
}

/// A number, also with a fraction: some servers send one. Capped at a year, so that it stays a duration.
fn number(value: &HeaderValue) -> Option<f64> {
    const YEAR: f64 = 365.0 * 86_400.0;
    let number: f64 = value.to_str().ok()?.trim().parse().ok()?;
    (number.is_finite() && number >= 0.0).then_some(number.min(YEAR))
}

/// Seconds since 1970 of `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT` or
/// `Sun Nov  6 08:49:37 1994`.
fn unix_seconds(date: &str, now: SystemTime) -> Option<u64> {
    let words: Vec<&str> = date.split([' ', ',', '-']).filter(|word| !word.is_empty()).collect();
    let (day, month, year, time) = match words[..] {
        [_, day, month, year, time, "GMT"] => (day, month, year, time),
        [_, month, day, time, year] => (day, month, year, time),
        _ => return None,
    };
    let month = MONTHS.iter().position(|name| *name == month)? as u64 + 1;
    let day = bounded(day, 1, 31)?;
    let year = match year.len() {
        2 => century(bounded(year, 0, 99)?, now),
        _ => bounded(year, 1970, 9_999)?,
    };
    let mut clock = time.split(':');
    let hours = bounded(clock.next()?, 0, 23)?;
    let minutes = bounded(clock.next()?, 0, 59)?;
    // 60 is a leap second.
    let seconds = bounded(clock.next()?, 0, 60)?;
    if clock.next().is_some() {
        return None;
    }
    Some(((days(year, month, day) * 24 + hours) * 60 + minutes) * 60 + seconds)
}

const MONTHS: [&str; 12] =
    ["Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"];

fn bounded(digits: &str, min: u64, max: u64) -> Option<u64> {
    let number = digits.parse().ok()?;
    (min..=max).contains(&number).then_some(number)
}

/// A year of two digits that would lie more than 50 years ahead belongs to the century before (RFC 9110, 5.6.7).
fn century(two_digits: u64, now: SystemTime) -> u64 {
    let elapsed = now.duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
    let this_year = 1970 + elapsed / 31_556_952;
    let year = this_year / 100 * 100 + two_digits;
    if year > this_year + 50 { year - 100 } else { year }.max(1970)
}

/// Days from 1970-01-01 to a date of the Gregorian calendar.
fn days(year: u64, month: u64, day: u64) -> u64 {
    // Counted from March, so that the leap day is the last of its year.
    let (year, month) = if month > 2 { (year, month - 3) } else { (year - 1, month + 9) };
    let from_march_0000 = 365 * year + year / 4 - year / 100 + year / 400;
    from_march_0000 + (153 * month + 2) / 5 + day - 1 - 719_468
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    fn wait(name: &'static str, value: &str) -> Option<Duration> {
        let now = UNIX_EPOCH + Duration::from_secs(784_111_770);
        let mut headers = HeaderMap::new();
        headers.insert(name, HeaderValue::from_str(value).unwrap());
        retry_after(&headers, now)
    }

    #[test]
    fn seconds_and_all_three_date_forms_are_read() {
        let seven = Some(Duration::from_secs(7));
        assert_eq!(wait("retry-after", "7"), seven);
        assert_eq!(wait("retry-after", "Sun, 06 Nov 1994 08:49:37 GMT"), seven);
        assert_eq!(wait("retry-after", "Sunday, 06-Nov-94 08:49:37 GMT"), seven);
        assert_eq!(wait("retry-after", "Sun Nov  6 08:49:37 1994"), seven);
        assert_eq!(wait("retry-after-ms", "1500"), Some(Duration::from_millis(1_500)));
    }

    #[test]
    fn the_past_is_no_wait_and_nonsense_is_nothing_said() {
        assert_eq!(wait("retry-after", "Sat, 01 Jan 1994 00:00:00 GMT"), Some(Duration::ZERO));
        for text in [
            "",
            "soon",
            "-1",
            "NaN",
            "inf",
            "Sun, 06 Foo 1994 08:49:37 GMT",
            "Sun, 00 Nov 1994 08:49:37 GMT",
            "Sun, 06 Nov 1994 24:00:00 GMT",
            "Sun, 06 Nov 1994 08:49:37:00 GMT",
            "Sun, 06 Nov 99999999999999999999 08:49:37 GMT",
        ] {
            assert_eq!(wait("retry-after", text), None, "{text:?}");
        }
        assert!(wait("retry-after", "1e300").unwrap() <= Duration::from_secs(365 * 86_400));
    }

    #[test]
    fn days_agree_with_the_planes_own_calendar() {
        for (year, month) in (1970..2200).flat_map(|year| (1..=12).map(move |month| (year, month)))
        {
            let wall = control::Wall::from_millis(days(year, month, 1) * 86_400_000);
            assert_eq!(wall.month(), (year - 1970) * 12 + month - 1);
        }
    }
}
