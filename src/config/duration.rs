//! Durations as Go writes and reads them (`300ms`, `2h45m`, `5m0s`).
//!
//! Source: Go's `time.ParseDuration` and `Duration.String`, whose results are the tests here.

use std::fmt;
use std::time::Duration;

const NANOS_PER_SECOND: u64 = 1_000_000_000;

/// Longest duration: what fits the signed 64-bit count of nanoseconds that Go keeps.
const NANOS_MAX: u64 = i64::MAX.cast_unsigned();

/// Why a text is no duration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DurationError {
    /// Not numbers with units; a plain number other than `0` has none.
    Malformed,
    /// Less than nothing.
    Negative,
    /// More than 2^63 - 1 nanoseconds, about 292 years.
    TooLong,
}

impl fmt::Display for DurationError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Malformed => "not a duration such as 300ms, 1.5h or 2h45m",
            Self::Negative => "a duration may not be negative",
            Self::TooLong => "a duration may not exceed 292 years",
        })
    }
}

impl std::error::Error for DurationError {}

/// Reads a duration: numbers with units (ns, us, µs, ms, s, m, h), fractions and sums, or `0`.
///
/// Errors: [`DurationError`], each one a fault of the text.
pub fn parse_duration(text: &str) -> Result<Duration, DurationError> {
    if text.starts_with('-') {
        return Err(DurationError::Negative);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
    if rest == "0" {
        return Ok(Duration::ZERO);
    }
    if rest.is_empty() {
        return Err(DurationError::Malformed);
    }
    let mut total_nanos: u64 = 0;
    while !rest.is_empty() {
        let (nanos, after) = take_part(rest)?;
        total_nanos = total_nanos
            .checked_add(nanos)
            .ok_or(DurationError::TooLong)?;
        if total_nanos > NANOS_MAX {
            return Err(DurationError::TooLong);
        }
        rest = after;
    }
    Ok(Duration::from_nanos(total_nanos))
}

/// Writes a duration Go's way: `0s`, `1ns`, `2µs`, `1.5s`, `5m0s`, `1h0m0s`.
pub fn format_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    if seconds == 0 {
        let nanos = duration.subsec_nanos().into();
        return match nanos {
            0 => "0s".to_owned(),
            1..1_000 => format!("{nanos}ns"),
            1_000..1_000_000 => format!("{}µs", decimal(nanos, 1_000)),
            _ => format!("{}ms", decimal(nanos, 1_000_000)),
        };
    }
    let (hours, minutes) = (seconds / 3600, seconds / 60 % 60);
    let nanos = seconds % 60 * NANOS_PER_SECOND + u64::from(duration.subsec_nanos());
    let seconds = decimal(nanos, NANOS_PER_SECOND);
    match (hours, minutes) {
        (0, 0) => format!("{seconds}s"),
        (0, _) => format!("{minutes}m{seconds}s"),
        _ => format!("{hours}h{minutes}m{seconds}s"),
    }
}

/// Takes one number with its unit from the front; what follows it comes back too.
fn take_part(text: &str) -> Result<(u64, &str), DurationError> {
    let (whole_digits, after_whole) = split_digits(text);
    let (fraction_digits, after_number) = match after_whole.strip_prefix('.') {
        Some(after_point) => split_digits(after_point),
        None => ("", after_whole),
    };
    if whole_digits.is_empty() && fraction_digits.is_empty() {
        return Err(DurationError::Malformed);
    }
    let unit_size = after_number
        .find(|c: char| c == '.' || c.is_ascii_digit())
        .unwrap_or(after_number.len());
    let (unit, rest) = after_number.split_at(unit_size);
    let unit_nanos = unit_nanos(unit).ok_or(DurationError::Malformed)?;

    let whole: u64 = match whole_digits {
        "" => 0,
        digits => digits.parse().map_err(|_| DurationError::TooLong)?,
    };
    let nanos = whole
        .checked_mul(unit_nanos)
        .and_then(|nanos| nanos.checked_add(fraction_nanos(fraction_digits, unit_nanos)))
        .ok_or(DurationError::TooLong)?;
    Ok((nanos, rest))
}

fn split_digits(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

fn unit_nanos(unit: &str) -> Option<u64> {
    Some(match unit {
        "ns" => 1,
        // U+00B5 micro sign and U+03BC Greek mu look alike; both are typed.
        "us" | "\u{b5}s" | "\u{3bc}s" => 1_000,
        "ms" => 1_000_000,
        "s" => NANOS_PER_SECOND,
        "m" => 60 * NANOS_PER_SECOND,
        "h" => 3600 * NANOS_PER_SECOND,
        _ => return None,
    })
}

/// Nanoseconds of the digits after a decimal point, below one `unit_nanos`.
fn fraction_nanos(digits: &str, unit_nanos: u64) -> u64 {
    let (mut fraction, mut scale) = (0_u64, 1.0_f64);
    for digit in digits.bytes().map(|byte| byte - b'0') {
        // Digits that no longer fit are below any nanosecond; Go drops them too.
        let Some(next) = fraction
            .checked_mul(10)
            .and_then(|f| f.checked_add(digit.into()))
        else {
            break;
        };
        if next > 1 << 63 {
            break;
        }
        (fraction, scale) = (next, scale * 10.0);
    }
    // Floating point, because Go rounds this way and the results are to be the same.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        clippy::cast_precision_loss,
        reason = "from zero to one unit, which is at most 3.6e12; the fraction is cut off"
    )]
    let nanos = (fraction as f64 * (unit_nanos as f64 / scale)) as u64;
    nanos
}

/// `value / unit` with the decimals it needs and no more; `unit` is a power of ten.
fn decimal(value: u64, unit: u64) -> String {
    let (whole, fraction) = (value / unit, value % unit);
    if fraction == 0 {
        return whole.to_string();
    }
    // The leading 1 keeps the zeros after the point; it is cut off again.
    let digits = (unit + fraction).to_string();
    format!("{whole}.{}", digits[1..].trim_end_matches('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MICRO: u64 = 1_000;
    const MILLI: u64 = 1_000_000;
    const SECOND: u64 = NANOS_PER_SECOND;
    const MINUTE: u64 = 60 * SECOND;
    const HOUR: u64 = 60 * MINUTE;

    #[test]
    fn parses_what_go_parses() {
        // From the table of Go's own test of ParseDuration.
        let cases = [
            ("0", 0),
            ("+0", 0),
            ("5s", 5 * SECOND),
            ("30s", 30 * SECOND),
            ("1478s", 1478 * SECOND),
            ("+5s", 5 * SECOND),
            ("5.0s", 5 * SECOND),
            ("5.6s", 5 * SECOND + 600 * MILLI),
            ("5.s", 5 * SECOND),
            (".5s", 500 * MILLI),
            ("1.0s", SECOND),
            ("1.00s", SECOND),
            ("1.004s", SECOND + 4 * MILLI),
            ("1.0040s", SECOND + 4 * MILLI),
            ("100.00100s", 100 * SECOND + MILLI),
            ("10ns", 10),
            ("11us", 11 * MICRO),
            ("12\u{b5}s", 12 * MICRO),
            ("12\u{3bc}s", 12 * MICRO),
            ("13ms", 13 * MILLI),
            ("14s", 14 * SECOND),
            ("15m", 15 * MINUTE),
            ("16h", 16 * HOUR),
            ("3h30m", 3 * HOUR + 30 * MINUTE),
            ("10.5s4m", 4 * MINUTE + 10 * SECOND + 500 * MILLI),
            ("2m3.4s", 2 * MINUTE + 3 * SECOND + 400 * MILLI),
            (
                "1h2m3s4ms5us6ns",
                HOUR + 2 * MINUTE + 3 * SECOND + 4 * MILLI + 5 * MICRO + 6,
            ),
            (
                "39h9m14.425s",
                39 * HOUR + 9 * MINUTE + 14 * SECOND + 425 * MILLI,
            ),
            ("52763797000ns", 52_763_797_000),
            ("0.3333333333333333333h", 20 * MINUTE),
            ("9007199254740993ns", (1 << 53) + 1),
            ("9223372036854775807ns", i64::MAX.cast_unsigned()),
            ("9223372036854775.807us", i64::MAX.cast_unsigned()),
            ("9223372036s854ms775us807ns", i64::MAX.cast_unsigned()),
            ("0.100000000000000000000h", 6 * MINUTE),
            (
                "0.830103483285477580700h",
                49 * MINUTE + 48 * SECOND + 372_539_827,
            ),
        ];
        for (text, nanos) in cases {
            assert_eq!(
                parse_duration(text),
                Ok(Duration::from_nanos(nanos)),
                "{text}"
            );
        }
    }

    #[test]
    fn refuses_what_go_refuses() {
        use DurationError::{Malformed, Negative, TooLong};
        let cases = [
            ("", Malformed),
            ("3", Malformed),
            ("s", Malformed),
            (".", Malformed),
            (".s", Malformed),
            ("+", Malformed),
            ("+.s", Malformed),
            ("1d", Malformed),
            ("1 s", Malformed),
            ("5S", Malformed),
            ("1s ", Malformed),
            ("++1s", Malformed),
            ("1s-1s", Malformed),
            ("\u{85}\u{85}", Malformed),
            ("\u{ffff}", Malformed),
            ("-", Negative),
            ("-5s", Negative),
            ("9223372036854775810ns", TooLong),
            ("9223372036854775808ns", TooLong),
            ("9223372036854775.808us", TooLong),
            ("9223372036854ms775us808ns", TooLong),
            ("99999999999999999999s", TooLong),
            ("3000000h", TooLong),
        ];
        for (text, error) in cases {
            assert_eq!(parse_duration(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn formats_as_go_does() {
        let cases = [
            (0, "0s"),
            (1, "1ns"),
            (999, "999ns"),
            (1_100, "1.1µs"),
            (2_000, "2µs"),
            (2_200_000, "2.2ms"),
            (300_000_000, "300ms"),
            (999_999_999, "999.999999ms"),
            (1_500_000_000, "1.5s"),
            (3_300_000_000, "3.3s"),
            (60 * SECOND, "1m0s"),
            (300 * SECOND, "5m0s"),
            (4 * MINUTE + 5 * SECOND, "4m5s"),
            (4 * MINUTE + 5 * SECOND + MILLI, "4m5.001s"),
            (HOUR, "1h0m0s"),
            (5 * HOUR + 6 * MINUTE + 7 * SECOND + MILLI, "5h6m7.001s"),
            (8 * MINUTE + 1, "8m0.000000001s"),
            (i64::MAX.cast_unsigned(), "2562047h47m16.854775807s"),
        ];
        for (nanos, text) in cases {
            let duration = Duration::from_nanos(nanos);
            assert_eq!(format_duration(duration), text);
            assert_eq!(parse_duration(text), Ok(duration), "{text}");
        }
    }
}
