//! Wall time as people and machines write it.

use control::Wall;

/// RFC 3339 in UTC, with milliseconds: `2026-11-21T06:30:46.123Z`.
#[must_use]
pub fn rfc3339(wall: Wall) -> String {
    let (year, month, day) = wall.date();
    let millis = wall.as_millis() % 86_400_000;
    let (seconds, millis) = (millis / 1_000, millis % 1_000);
    let (hour, minute, second) = (seconds / 3_600, seconds / 60 % 60, seconds % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{millis:03}Z")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_moment_prints_as_the_standard_says() {
        assert_eq!(rfc3339(Wall::default()), "1970-01-01T00:00:00.000Z");
        let leap = Wall::from_millis(1_709_210_096_007);
        assert_eq!(rfc3339(leap), "2024-02-29T12:34:56.007Z");
    }
}
