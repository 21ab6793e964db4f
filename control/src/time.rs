//! Time as the plane knows it.
//!
//! The plane never reads a clock. The driver stamps every input with an [`Instant`], nanoseconds since the plane first
//! started, which never goes backwards, not even over a restart. [`Wall`] time (UTC) arrives as an input of its own and
//! is used only where people mean a calendar: quota windows and what is printed.

use core::fmt;
use core::ops::{Add, Sub};
use core::time::Duration;

use serde::{Deserialize, Serialize};

/// Nanoseconds since the plane's first start. Monotonic over restarts.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Instant(u64);

impl Instant {
    /// The plane's first moment.
    pub const ZERO: Self = Self(0);
    /// Later than anything that happens: 584 years after the start.
    pub const FAR_FUTURE: Self = Self(u64::MAX);

    /// An instant from nanoseconds since the plane's start.
    #[must_use]
    pub const fn from_nanos(nanos: u64) -> Self {
        Self(nanos)
    }

    /// Nanoseconds since the plane's start.
    #[must_use]
    pub const fn as_nanos(self) -> u64 {
        self.0
    }

    /// How long ago `earlier` was; zero if it lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_nanos(self.0.saturating_sub(earlier.0))
    }
}

impl Add<Duration> for Instant {
    type Output = Self;
    /// Saturates at [`Instant::FAR_FUTURE`].
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(saturating_nanos(rhs)))
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;
    /// Saturates at [`Instant::ZERO`].
    fn sub(self, rhs: Duration) -> Self {
        Self(self.0.saturating_sub(saturating_nanos(rhs)))
    }
}

impl fmt::Debug for Instant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:06}s", self.0 / 1_000_000_000, self.0 % 1_000_000_000 / 1_000)
    }
}

/// A duration in nanoseconds, saturating at `u64::MAX`.
#[must_use]
pub const fn saturating_nanos(duration: Duration) -> u64 {
    let nanos = duration.as_nanos();
    if nanos > u64::MAX as u128 { u64::MAX } else { nanos as u64 }
}

/// Wall-clock time: milliseconds since 1970-01-01T00:00:00Z.
#[derive(
    Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
)]
pub struct Wall(u64);

impl Wall {
    /// Wall time from milliseconds since the Unix epoch.
    #[must_use]
    pub const fn from_millis(millis: u64) -> Self {
        Self(millis)
    }

    /// Milliseconds since the Unix epoch.
    #[must_use]
    pub const fn as_millis(self) -> u64 {
        self.0
    }

    /// The UTC day: days since 1970-01-01.
    #[must_use]
    pub const fn day(self) -> u64 {
        self.0 / MILLIS_PER_DAY
    }

    /// The UTC month: months since January 1970.
    #[must_use]
    pub const fn month(self) -> u64 {
        let (year, month, _) = civil(self.day());
        (year - 1970) * 12 + (month - 1)
    }

    /// Year, month (1 to 12) and day of the month (1 to 31), UTC.
    #[must_use]
    pub const fn date(self) -> (u64, u64, u64) {
        civil(self.day())
    }

    /// Until the next UTC midnight.
    #[must_use]
    pub const fn until_next_day(self) -> Duration {
        Duration::from_millis(MILLIS_PER_DAY - self.0 % MILLIS_PER_DAY)
    }

    /// Until the first moment of the next UTC month.
    #[must_use]
    pub const fn until_next_month(self) -> Duration {
        let this = self.month();
        let mut day = self.day() + 1;
        while Self(day * MILLIS_PER_DAY).month() == this {
            day += 1;
        }
        Duration::from_millis(day * MILLIS_PER_DAY - self.0)
    }
}

impl Add<Duration> for Wall {
    type Output = Self;
    fn add(self, rhs: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(rhs.as_millis()).unwrap_or(u64::MAX)))
    }
}

const MILLIS_PER_DAY: u64 = 86_400_000;

/// Year, month (1 to 12) and day (1 to 31) of a day since 1970-01-01, in the proleptic Gregorian calendar, whose 400-year cycle has
/// 146,097 days; years are counted from March, so that the leap day comes last.
const fn civil(day: u64) -> (u64, u64, u64) {
    let from_march_0000 = day + 719_468;
    let era = from_march_0000 / 146_097;
    let day_of_era = from_march_0000 % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_from_march = (5 * day_of_year + 2) / 153;
    let month = if month_from_march < 10 { month_from_march + 3 } else { month_from_march - 9 };
    let day = day_of_year - (153 * month_from_march + 2) / 5 + 1;
    (era * 400 + year_of_era + (month <= 2) as u64, month, day)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn day(year: u64, month: u64, day_of_month: u64) -> Wall {
        let mut days = 0;
        for y in 1970..year {
            days += if leap(y) { 366 } else { 365 };
        }
        let lengths =
            [31, if leap(year) { 29 } else { 28 }, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31];
        days += lengths[..month as usize - 1].iter().sum::<u64>();
        Wall::from_millis((days + day_of_month - 1) * MILLIS_PER_DAY)
    }

    fn leap(year: u64) -> bool {
        year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
    }

    #[test]
    fn every_day_until_2400_lies_in_the_month_the_calendar_says() {
        for year in 1970..2400 {
            for month in 1..=12 {
                let expected = (year - 1970) * 12 + month - 1;
                assert_eq!(day(year, month, 1).month(), expected, "{year}-{month}");
                assert_eq!(day(year, month, 28).month(), expected, "{year}-{month}");
                assert_eq!(day(year, month, 28).date(), (year, month, 28));
            }
        }
    }

    #[test]
    fn the_next_month_begins_on_its_first_midnight() {
        for (at, next) in [
            (day(2024, 2, 28), day(2024, 3, 1)),
            (day(2023, 2, 28), day(2023, 3, 1)),
            (day(2026, 12, 31), day(2027, 1, 1)),
            (day(2026, 11, 1), day(2026, 12, 1)),
        ] {
            let late = at + Duration::from_millis(1_234);
            assert_eq!(late + late.until_next_month(), next);
            assert_eq!(at + at.until_next_month(), next);
        }
    }

    #[test]
    fn instants_saturate_instead_of_wrapping() {
        assert_eq!(Instant::FAR_FUTURE + Duration::from_secs(1), Instant::FAR_FUTURE);
        assert_eq!(Instant::ZERO - Duration::from_secs(1), Instant::ZERO);
        assert_eq!(Instant::ZERO.since(Instant::FAR_FUTURE), Duration::ZERO);
    }
}
