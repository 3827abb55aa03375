//! Durations such as `"1h 30m"` and sizes such as `"64 MiB"`: text to value and back.
//!
//! Pure. A number without a unit is never guessed at. What is written by this file is read back the
//! same.

use std::time::Duration;

/// What a duration can look like, for errors.
pub(crate) const DURATION_EXAMPLES: &str = r#""150ms", "30s", "5m", "1h 30m" or "7d""#;

/// What a size can look like, for errors.
pub(crate) const SIZE_EXAMPLES: &str = r#""4096 B", "512 KiB", "64 MiB", "10 GiB" or "1 MB""#;

/// Units of time in milliseconds, longest first.
const DURATION_UNITS: [(&str, u64); 5] =
    [("d", 86_400_000), ("h", 3_600_000), ("m", 60_000), ("s", 1_000), ("ms", 1)];

/// Units of size in bytes, largest first among the binary ones, which are written.
const SIZE_UNITS: [(&str, u64); 9] = [
    ("TiB", 1 << 40),
    ("GiB", 1 << 30),
    ("MiB", 1 << 20),
    ("KiB", 1 << 10),
    ("TB", 1_000_000_000_000),
    ("GB", 1_000_000_000),
    ("MB", 1_000_000),
    ("KB", 1_000),
    ("B", 1),
];

/// Reads a duration in whole milliseconds: numbers with units, longest unit first.
///
/// # Errors
///
/// If a number has no unit or is not whole, a unit is unknown, or units are not in falling order.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let wrong =
        |problem: String| format!("{text:?} {problem}; write for example {DURATION_EXAMPLES}");
    let mut rest = text.trim();
    if rest.is_empty() {
        return Err(wrong("is no duration".to_owned()));
    }
    let mut total_ms = 0_u64;
    let mut last_unit_ms = u64::MAX;
    while !rest.is_empty() {
        let (number, unit, tail) = split_quantity(rest);
        let number: u64 = number.parse().map_err(|_| not_whole(text, DURATION_EXAMPLES))?;
        if unit.is_empty() {
            return Err(wrong("has a number without a unit".to_owned()));
        }
        let Some((_, unit_ms)) = DURATION_UNITS.into_iter().find(|(name, _)| *name == unit) else {
            return Err(wrong(format!("has the unknown unit {unit:?}")));
        };
        if unit_ms >= last_unit_ms {
            return Err(wrong("has units out of order".to_owned()));
        }
        last_unit_ms = unit_ms;
        total_ms = number
            .checked_mul(unit_ms)
            .and_then(|part_ms| total_ms.checked_add(part_ms))
            .ok_or_else(|| wrong("is too long".to_owned()))?;
        rest = tail;
    }
    Ok(Duration::from_millis(total_ms))
}

/// Writes a duration: `1h 30m`; what is less than a millisecond is dropped.
#[must_use]
pub fn format_duration(duration: Duration) -> String {
    let mut rest_ms = u64::try_from(duration.as_millis()).unwrap_or(u64::MAX);
    let mut parts = Vec::new();
    for (name, unit_ms) in DURATION_UNITS {
        if rest_ms >= unit_ms {
            parts.push(format!("{}{name}", rest_ms / unit_ms));
            rest_ms %= unit_ms;
        }
    }
    if parts.is_empty() {
        return "0s".to_owned();
    }
    parts.join(" ")
}

/// Reads a size in bytes: one whole number and its unit.
///
/// # Errors
///
/// If the number has no unit or is not whole, or the unit is unknown.
pub fn parse_size(text: &str) -> Result<u64, String> {
    let wrong = |problem: String| format!("{text:?} {problem}; write for example {SIZE_EXAMPLES}");
    let (number, unit, rest) = split_quantity(text.trim());
    if number.is_empty() || !rest.is_empty() {
        return Err(not_whole(text, SIZE_EXAMPLES));
    }
    let number: u64 = number.parse().map_err(|_| wrong("is too large".to_owned()))?;
    if unit.is_empty() {
        return Err(wrong("has no unit".to_owned()));
    }
    let Some((_, unit_bytes)) = SIZE_UNITS.into_iter().find(|(name, _)| *name == unit) else {
        return Err(wrong(format!("has the unknown unit {unit:?}")));
    };
    number.checked_mul(unit_bytes).ok_or_else(|| wrong("is too large".to_owned()))
}

/// Writes a size exactly, in the largest unit that divides it: `64 MiB`.
#[must_use]
pub fn format_size(bytes: u64) -> String {
    SIZE_UNITS
        .into_iter()
        .take(4)
        .find(|(_, unit_bytes)| bytes > 0 && bytes.is_multiple_of(*unit_bytes))
        .map_or_else(
            || format!("{bytes} B"),
            |(name, unit_bytes)| format!("{} {name}", bytes / unit_bytes),
        )
}

/// Writes a size for people, to one decimal: `22.5 GiB`.
#[must_use]
pub fn approximate_size(bytes: u64) -> String {
    SIZE_UNITS.into_iter().take(4).find(|(_, unit_bytes)| bytes >= *unit_bytes).map_or_else(
        || format!("{bytes} B"),
        |(name, unit_bytes)| format!("{:.1} {name}", bytes as f64 / unit_bytes as f64),
    )
}

fn not_whole(text: &str, examples: &str) -> String {
    format!("{text:?} is not whole numbers with units; write for example {examples}")
}

/// Leading digits, the letters behind them, and what follows; blanks between them are dropped.
fn split_quantity(text: &str) -> (&str, &str, &str) {
    let split_where =
        |text: &'_ str, belongs: fn(char) -> bool| text.find(|c| !belongs(c)).unwrap_or(text.len());
    let (number, rest) = text.split_at(split_where(text, |c| c.is_ascii_digit()));
    let rest = rest.trim_start();
    let (unit, rest) = rest.split_at(split_where(rest, char::is_alphabetic));
    (number, unit, rest.trim_start())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_in_all_their_forms() {
        for (text, ms) in [
            ("150ms", 150),
            ("30s", 30_000),
            ("5m", 300_000),
            ("1h 30m", 5_400_000),
            ("1h30m", 5_400_000),
            ("7 d", 604_800_000),
            (" 0s ", 0),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_millis(ms)), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_duration_says_what_is_wrong_and_what_to_write() {
        let problem = |text| parse_duration(text).unwrap_err();
        assert_eq!(
            problem("10 sec"),
            r#""10 sec" has the unknown unit "sec"; write for example "150ms", "30s", "5m", "1h 30m" or "7d""#
        );
        assert!(problem("30").contains("has a number without a unit"));
        assert!(problem("1h 30").contains("has a number without a unit"));
        assert!(problem("").contains("is no duration"));
        assert!(problem("1.5h").contains("unit"));
        assert!(problem("-1s").contains("is not whole numbers with units"));
        assert!(problem("5m 5m").contains("out of order"));
        assert!(problem("99999999999999999d").contains("is too long"));
        assert!(problem("seven days").contains("is not whole numbers"));
    }

    #[test]
    fn sizes_are_read_in_all_their_forms() {
        for (text, bytes) in [
            ("64 MiB", 64 << 20),
            ("10GiB", 10 << 30),
            ("512 KiB", 512 << 10),
            ("1 MB", 1_000_000),
            ("4096 B", 4096),
            ("2 TiB", 2 << 40),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text:?}");
        }
    }

    #[test]
    fn a_wrong_size_says_what_is_wrong_and_what_to_write() {
        let problem = |text| parse_size(text).unwrap_err();
        assert_eq!(
            problem("64 M"),
            r#""64 M" has the unknown unit "M"; write for example "4096 B", "512 KiB", "64 MiB", "10 GiB" or "1 MB""#
        );
        assert!(problem("64").contains("has no unit"));
        assert!(problem("64 MiB 1 B").contains("is not whole numbers with units"));
        assert!(problem("1.5 GiB").contains("is not whole numbers with units"));
        assert!(problem("99999999999 TiB").contains("is too large"));
        assert!(problem("MiB").contains("is not whole numbers"));
    }

    #[test]
    fn sizes_for_people_have_one_decimal() {
        assert_eq!(approximate_size(0), "0 B");
        assert_eq!(approximate_size(1023), "1023 B");
        assert_eq!(approximate_size(1536), "1.5 KiB");
        assert_eq!(approximate_size(u64::MAX), "16777216.0 TiB");
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_back(ms in 0_u64..u64::MAX / 2, bytes: u64, unit in 0_u32..5) {
            let duration = Duration::from_millis(ms);
            prop_assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
            let bytes = bytes >> (unit * 10) << (unit * 10);
            prop_assert_eq!(parse_size(&format_size(bytes)), Ok(bytes));
        }

        #[test]
        fn no_text_makes_the_parsers_panic(text in ".{0,20}") {
            let _ = parse_duration(&text);
            let _ = parse_size(&text);
        }
    }
}
