//! The time of day as texts have it.

use std::time::{SystemTime, UNIX_EPOCH};

use tz::UtcDateTime;

/// Returns the present time as `2026-11-20T09:28:54.697950388Z` (RFC 3339).
pub fn now_utc() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    let seconds = i64::try_from(since.as_secs()).unwrap_or(i64::MAX);
    format_utc(seconds, since.subsec_nanos())
}

fn format_utc(seconds: i64, nanoseconds: u32) -> String {
    // A year that has more digits than RFC 3339 allows is the only error.
    let Ok(time) = UtcDateTime::from_timespec(seconds, nanoseconds) else {
        return String::from("9999-12-31T23:59:59.999999999Z");
    };
    format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}.{nanoseconds:09}Z",
        time.year(),
        time.month(),
        time.month_day(),
        time.hour(),
        time.minute(),
        time.second(),
    )
}

/// Returns the seconds since 1970.
pub fn unix_seconds() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default()
        .as_secs()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_has_nine_digits_behind_the_second() {
        assert_eq!(format_utc(0, 5), "1970-01-01T00:00:00.000000005Z");
        assert_eq!(
            format_utc(1_795_166_934, 697_950_388),
            "2026-11-20T09:28:54.697950388Z"
        );
    }
}
