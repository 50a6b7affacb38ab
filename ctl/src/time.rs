//! Times of logs and reports: RFC 3339 to nanoseconds since the epoch and back, and durations such as "2h".
//!
//! The calendar is the proleptic Gregorian one; leap seconds do not exist, as in time(2).

use std::time::{Duration, SystemTime, UNIX_EPOCH};

const DAY: i64 = 86_400;
const NANO: i128 = 1_000_000_000;

/// Days since 1970-01-01 of a date.
fn days(year: i64, month: i64, day: i64) -> i64 {
    // Years begin in March, so that the leap day is their last.
    let year = if month <= 2 { year - 1 } else { year };
    let (era, month) = (year.div_euclid(400), (month + 9) % 12);
    let of_era = year.rem_euclid(400);
    let of_year = (153 * month + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

/// The date of a day since 1970-01-01.
fn date(days: i64) -> (i64, i64, i64) {
    let shifted = days + 719_468;
    let (era, of_era) = (shifted.div_euclid(146_097), shifted.rem_euclid(146_097));
    let year = (of_era - of_era / 1460 + of_era / 36_524 - of_era / 146_096) / 365;
    let of_year = of_era - (365 * year + year / 4 - year / 100);
    let month = (5 * of_year + 2) / 153;
    let day = of_year - (153 * month + 2) / 5 + 1;
    let (year, month) = (year + era * 400, (month + 2) % 12 + 1);
    (if month <= 2 { year + 1 } else { year }, month, day)
}

/// `2026-11-21T10:00:00.5Z`, `2026-11-21 10:00:00+01:00`, `2026-11-21`, or seconds since the epoch as the shim writes them,
/// `1795262085.681981`: nanoseconds since the epoch.
pub(crate) fn parse(text: &str) -> Option<i128> {
    epoch(text).or_else(|| calendar(text))
}

/// Of nine to twelve digits: fewer are a year, or no time.
fn epoch(text: &str) -> Option<i128> {
    let end = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let (nanos, rest) = fraction(&text[end..])?;
    let plain = rest.is_empty() && (9..=12).contains(&end);
    plain.then(|| text[..end].parse::<i128>().ok().map(|seconds| seconds * NANO + nanos))?
}

fn calendar(text: &str) -> Option<i128> {
    let number = |from: usize, to: usize| -> Option<i64> {
        let digits = text.get(from..to)?;
        digits
            .bytes()
            .all(|byte| byte.is_ascii_digit())
            .then(|| digits.parse().ok())?
    };
    let at = |index: usize, wanted: &[u8]| text.as_bytes().get(index).is_some_and(|byte| wanted.contains(byte));
    let (year, month, day) = (number(0, 4)?, number(5, 7)?, number(8, 10)?);
    if !at(4, b"-") || !at(7, b"-") || !(1..=12).contains(&month) || day < 1 || date(days(year, month, day)).2 != day {
        return None;
    }
    let midnight = days(year, month, day) * DAY;
    if text.len() == 10 {
        return Some(i128::from(midnight) * NANO);
    }
    let (hour, minute) = (number(11, 13)?, number(14, 16)?);
    let has_seconds = at(16, b":");
    let second = if has_seconds { number(17, 19)? } else { 0 };
    if !at(10, b"Tt ") || !at(13, b":") || hour > 23 || minute > 59 || second > 60 {
        return None;
    }
    let rest = text.get(if has_seconds { 19 } else { 16 }..)?;
    let (nanos, rest) = fraction(rest)?;
    let seconds = midnight + hour * 3600 + minute * 60 + second - zone(rest)?;
    Some(i128::from(seconds) * NANO + nanos)
}

fn fraction(text: &str) -> Option<(i128, &str)> {
    let Some(digits) = text.strip_prefix('.') else {
        return Some((0, text));
    };
    let end = digits.find(|c: char| !c.is_ascii_digit()).unwrap_or(digits.len());
    let (digits, rest) = digits.split_at(end);
    let nano: String = digits.chars().chain("000000000".chars()).take(9).collect();
    (!digits.is_empty()).then_some((nano.parse().ok()?, rest))
}

/// Seconds east of Greenwich.
fn zone(text: &str) -> Option<i64> {
    let sign = match text.as_bytes().first() {
        None | Some(b'Z' | b'z') if text.len() <= 1 => return Some(0),
        Some(b'+') => 1,
        Some(b'-') => -1,
        _ => return None,
    };
    let digits: String = text[1..].chars().filter(|c| *c != ':').collect();
    if digits.len() != 4 || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    let number: i64 = digits.parse().ok()?;
    Some(sign * (number / 100 * 3600 + number % 100 * 60))
}

/// RFC 3339 in UTC, to the microsecond.
pub(crate) fn format(nanos: i128) -> String {
    let seconds = i64::try_from(nanos.div_euclid(NANO)).unwrap_or(0);
    let micro = nanos.rem_euclid(NANO) / 1000;
    let (year, month, day) = date(seconds.div_euclid(DAY));
    let of_day = seconds.rem_euclid(DAY);
    let (hour, minute, second) = (of_day / 3600, of_day / 60 % 60, of_day % 60);
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{micro:06}Z")
}

/// Nanoseconds since the epoch.
pub(crate) fn now() -> i128 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i128::try_from(since.as_nanos()).unwrap_or(i128::MAX)
}

/// A time, or how long ago it was: `90s`, `30m`, `2h`, `7d`.
pub(crate) fn since(text: &str) -> Result<i128, String> {
    if let Some(time) = parse(text) {
        return Ok(time);
    }
    let ago = || -> Option<Duration> {
        let unit = match text.chars().last()? {
            's' => 1,
            'm' => 60,
            'h' => 3600,
            'd' => 86_400,
            _ => return None,
        };
        let number: u32 = text[..text.len() - 1].parse().ok()?;
        Some(Duration::from_secs(u64::from(number) * unit))
    };
    let ago = ago()
        .ok_or_else(|| format!("{text:?} is neither a time (2026-11-21T10:00:00Z) nor a span (90s, 30m, 2h, 7d)"))?;
    Ok(now() - i128::try_from(ago.as_nanos()).unwrap_or(0))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times_are_read() {
        let second = |text| parse(text).map(|nanos| nanos / NANO);
        assert_eq!(second("1970-01-01T00:00:00Z"), Some(0));
        assert_eq!(second("2000-02-29T12:00:00+01:00"), Some(951_822_000));
        assert_eq!(second("2026-11-21 10:00:00"), Some(1_795_255_200));
        assert_eq!(second("2026-11-21"), Some(1_795_219_200));
        assert_eq!(parse("1970-01-01T00:00:00.5Z"), Some(500_000_000));
        assert_eq!(parse("1795262085.681981"), Some(1_795_262_085_681_981_000));
        assert_eq!(parse("20261121"), None);
        for wrong in [
            "",
            "yesterday",
            "2026-13-01",
            "2025-02-29",
            "2026-11-21T25:00:00Z",
            "2026-11-21T10:00:00X",
            "2026-11-21T",
        ] {
            assert_eq!(parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_span_is_counted_back_from_now() {
        let hour = now() - since("1h").unwrap();
        assert!((3_590 * NANO..3_700 * NANO).contains(&hour), "{hour}");
        assert!(since("soon").unwrap_err().contains("soon"));
        assert!(since("99999999999d").is_err());
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_as_the_same(micro in -60_000_000_000_000_000i64..250_000_000_000_000_000) {
            let nanos = i128::from(micro) * 1000;
            prop_assert_eq!(parse(&format(nanos)), Some(nanos));
        }

        #[test]
        fn no_text_makes_it_panic(text in "\\PC{0,40}|[0-9T:Z.+ -]{0,40}") {
            let _ = (parse(&text), since(&text));
        }
    }
}
