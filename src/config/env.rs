//! The table of environment variables: reading, `--help`, the manual and the README use it.
//!
//! Nothing else in the program reads the environment for its settings.

use std::ffi::{OsStr, OsString};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use super::duration::{format_duration, parse_duration};
use super::error::ConfigError;
use super::values::parse_number;
use crate::limits::{Limits, POOL_SIZE_MAX, TCP_BUFFER_SIZE_MIN};
use crate::wire::shown::shown;

/// One environment variable: how it is read and explained.
pub struct VariableSpec {
    /// Its name.
    pub name: &'static str,
    /// The name it had before; read where `name` is unset.
    pub older_name: Option<&'static str>,
    /// What holds when it is unset, as the variable would be written, or in words.
    pub default: &'static str,
    /// What is accepted, to be read after "use".
    pub values: &'static str,
    /// What it sets.
    pub meaning: &'static str,
    /// Sets the value; `None` means that it is not accepted, and nothing was set.
    pub apply: fn(&mut Limits, &OsStr) -> Option<()>,
}

const MILLISECOND: Duration = Duration::from_millis(1);
const DAY: Duration = Duration::from_secs(24 * 3600);
/// Wide enough for everything that waits.
const ANY_WAIT: RangeInclusive<Duration> = MILLISECOND..=DAY;
const ANY_WAIT_VALUES: &str = "a duration from 1ms to 24h";

const SIGNALS_RANGE: RangeInclusive<usize> = 1..=1_048_576;
/// A PROXY header and the first bytes of a visitor fit at once.
const TCP_BUFFER_RANGE: RangeInclusive<usize> = TCP_BUFFER_SIZE_MIN..=16 * 1024 * 1024;
const _: () = assert!(
    TCP_BUFFER_SIZE_MIN == 1024,
    "the text of the variable says so"
);
/// The largest payload of an IPv4 datagram: 65535 less 20 bytes of IP header and 8 of UDP.
const DATAGRAM_RANGE: RangeInclusive<usize> = 1..=65_507;
const STACK_RANGE: RangeInclusive<usize> = 16 * 1024..=64 * 1024 * 1024;
const POOL_RANGE: RangeInclusive<u32> = 1..=POOL_SIZE_MAX;
const POOL_VALUES: &str = "a number from 1 to 65536";
const _: () = assert!(POOL_SIZE_MAX == 65536, "POOL_VALUES says so");

/// More often, and reports would cost more than what they report on.
const REPORT_RANGE: RangeInclusive<Duration> = Duration::from_millis(100)..=DAY;
/// Shorter, and a service that cannot start would keep a processor busy.
const COOLDOWN_RANGE: RangeInclusive<Duration> = Duration::from_millis(10)..=DAY;
/// Zero closes what is open at once.
const SHUTDOWN_RANGE: RangeInclusive<Duration> = Duration::ZERO..=DAY;

/// Every variable, in the order in which they are explained.
pub static VARIABLES: &[VariableSpec] = &[
    VariableSpec {
        name: "NP_SEMAPHORE_LIMIT",
        older_name: Some("SEMAPHORE_LIMIT"),
        default: "65536",
        values: "a number from 1 to 1048576",
        meaning: "signals queued for one control channel",
        apply: |limits, text| set(&mut limits.signal_queue_max, number(text, SIGNALS_RANGE)),
    },
    VariableSpec {
        name: "NP_TCP_DATA_BUF_SIZE",
        older_name: None,
        default: "16384",
        values: "a number of bytes from 1024 to 16777216",
        meaning: "copy buffer per direction, where the kernel cannot move the data itself",
        apply: |limits, text| set(&mut limits.tcp_buffer_size, number(text, TCP_BUFFER_RANGE)),
    },
    VariableSpec {
        name: "NP_UDP_DATA_BUF_SIZE",
        older_name: Some("UDP_DATA_BUF_SIZE"),
        default: "16384 through a tunnel, 65507 in a single-end client",
        values: "a number of bytes from 1 to 65507",
        meaning: "largest datagram",
        apply: |limits, text| {
            let size = number(text, DATAGRAM_RANGE).map(Some);
            set(&mut limits.udp_datagram_size_max, size)
        },
    },
    VariableSpec {
        name: "NP_HANDSHAKE_TIMEOUT",
        older_name: None,
        default: "5s",
        values: ANY_WAIT_VALUES,
        meaning: "each step of a handshake",
        apply: |limits, text| set(&mut limits.handshake_timeout, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_TCP_DIAL_TIMEOUT",
        older_name: None,
        default: "5s",
        values: ANY_WAIT_VALUES,
        meaning: "one TCP dial, with all addresses and targets it tries",
        apply: |limits, text| set(&mut limits.tcp_dial_timeout, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_UDP_DIAL_TIMEOUT",
        older_name: None,
        default: "5s",
        values: ANY_WAIT_VALUES,
        meaning: "one UDP dial: the resolution of the name",
        apply: |limits, text| set(&mut limits.udp_dial_timeout, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_UDP_READ_TIMEOUT",
        older_name: Some("UDP_READ_TIMEOUT"),
        default: "30s",
        values: ANY_WAIT_VALUES,
        meaning: "a UDP session that is silent both ways for this long ends",
        apply: |limits, text| set(&mut limits.udp_read_timeout, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_POOL_GET_TIMEOUT",
        older_name: None,
        default: "5s",
        values: ANY_WAIT_VALUES,
        meaning: "wait for a pool connection",
        apply: |limits, text| set(&mut limits.pool_get_timeout, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_MIN_POOL_INTERVAL",
        older_name: None,
        default: "100ms",
        values: "a duration from 1ms to 24h, at most NP_MAX_POOL_INTERVAL",
        meaning: "shortest pause between two rounds of pool filling",
        apply: |limits, text| set(&mut limits.pool_interval_min, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_MAX_POOL_INTERVAL",
        older_name: None,
        default: "1s",
        values: ANY_WAIT_VALUES,
        meaning: "longest pause between two rounds of pool filling",
        apply: |limits, text| set(&mut limits.pool_interval_max, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_REPORT_INTERVAL",
        older_name: Some("REPORT_INTERVAL"),
        default: "5s",
        values: "a duration from 100ms to 24h",
        meaning: "checkpoint line, ping, latency probe of lbs=1",
        apply: |limits, text| set(&mut limits.report_interval, wait(text, REPORT_RANGE)),
    },
    VariableSpec {
        name: "NP_FALLBACK_INTERVAL",
        older_name: None,
        default: "5m",
        values: ANY_WAIT_VALUES,
        meaning: "with lbs=2, back to the first target this long after leaving it",
        apply: |limits, text| set(&mut limits.fallback_interval, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_SERVICE_COOLDOWN",
        older_name: Some("SERVICE_COOLDOWN"),
        default: "3s",
        values: "a duration from 10ms to 24h",
        meaning: "pause before a restart, doubled to at most 10 times while restarts keep failing",
        apply: |limits, text| set(&mut limits.service_cooldown, wait(text, COOLDOWN_RANGE)),
    },
    VariableSpec {
        name: "NP_SHUTDOWN_TIMEOUT",
        older_name: Some("SHUTDOWN_TIMEOUT"),
        default: "5s",
        values: "a duration from 0 to 24h",
        meaning: "time that open connections are given at a stop",
        apply: |limits, text| set(&mut limits.shutdown_timeout, wait(text, SHUTDOWN_RANGE)),
    },
    VariableSpec {
        name: "NP_RELOAD_INTERVAL",
        older_name: None,
        default: "1h",
        values: ANY_WAIT_VALUES,
        meaning: "re-check of certificate files, backup of a master's state",
        apply: |limits, text| set(&mut limits.reload_interval, wait(text, ANY_WAIT)),
    },
    VariableSpec {
        name: "NP_STATE_DIR",
        older_name: None,
        default: "chosen by the master",
        values: "the path of a directory",
        meaning: "where a master keeps its state",
        apply: |limits, text| {
            let directory = (!text.is_empty()).then(|| Some(PathBuf::from(text)));
            set(&mut limits.state_directory, directory)
        },
    },
    VariableSpec {
        name: "NP_STACK_SIZE",
        older_name: None,
        default: "chosen by the program",
        values: "a number of bytes from 16384 to 67108864",
        meaning: "stack of each thread",
        apply: |limits, text| set(&mut limits.stack_size, number(text, STACK_RANGE)),
    },
    VariableSpec {
        name: "MIN_POOL_CAPACITY",
        older_name: None,
        default: "64",
        values: POOL_VALUES,
        meaning: "default of the option min",
        apply: |limits, text| set(&mut limits.pool_min_default, number(text, POOL_RANGE)),
    },
    VariableSpec {
        name: "MAX_POOL_CAPACITY",
        older_name: None,
        default: "1024",
        values: POOL_VALUES,
        meaning: "default of the option max",
        apply: |limits, text| set(&mut limits.pool_max_default, number(text, POOL_RANGE)),
    },
];

/// Reads every variable of [`VARIABLES`] through `lookup`; an empty one counts as unset.
///
/// Errors: [`ConfigError::Variable`] for the first value that is not accepted.
pub fn read_limits(lookup: impl Fn(&str) -> Option<OsString>) -> Result<Limits, ConfigError> {
    let mut limits = Limits::default();
    for spec in VARIABLES {
        let names = [Some(spec.name), spec.older_name];
        let found = names.into_iter().flatten().find_map(|name| {
            lookup(name)
                .filter(|value| !value.is_empty())
                .map(|value| (name, value))
        });
        if let Some((variable, value)) = found {
            (spec.apply)(&mut limits, &value).ok_or_else(|| ConfigError::Variable {
                variable,
                value: shown(&value.to_string_lossy()),
                accepted: spec.values,
            })?;
        }
    }
    if limits.pool_interval_min > limits.pool_interval_max {
        return Err(ConfigError::Conflict(format!(
            "environment variable NP_MIN_POOL_INTERVAL ({}) is longer than NP_MAX_POOL_INTERVAL \
             ({}); set it to that or less",
            format_duration(limits.pool_interval_min),
            format_duration(limits.pool_interval_max),
        )));
    }
    Ok(limits)
}

fn set<T>(member: &mut T, value: Option<T>) -> Option<()> {
    value.map(|value| *member = value)
}

fn number<T>(text: &OsStr, range: RangeInclusive<T>) -> Option<T>
where
    T: std::str::FromStr + PartialOrd,
{
    parse_number(text.to_str()?).filter(|value| range.contains(value))
}

fn wait(text: &OsStr, range: RangeInclusive<Duration>) -> Option<Duration> {
    parse_duration(text.to_str()?)
        .ok()
        .filter(|value| range.contains(value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Limits, ConfigError> {
        read_limits(|name| {
            let found = variables.iter().find(|(other, _)| *other == name);
            found.map(|(_, value)| OsString::from(value))
        })
    }

    #[test]
    fn nothing_set_leaves_the_defaults() {
        assert_eq!(read(&[]), Ok(Limits::default()));
        assert_eq!(read(&[("NP_REPORT_INTERVAL", "")]), Ok(Limits::default()));
    }

    #[test]
    fn default_texts_are_the_defaults() {
        for spec in VARIABLES.iter().filter(|spec| !spec.default.contains(' ')) {
            assert_eq!(
                read(&[(spec.name, spec.default)]),
                Ok(Limits::default()),
                "{}",
                spec.name
            );
        }
    }

    #[test]
    fn ranges_end_where_they_say() {
        // Name, lowest and highest accepted, then what is just outside.
        let cases = [
            ("NP_SEMAPHORE_LIMIT", ["1", "1048576"], ["0", "1048577"]),
            (
                "NP_TCP_DATA_BUF_SIZE",
                ["1024", "16777216"],
                ["1023", "16777217"],
            ),
            ("NP_UDP_DATA_BUF_SIZE", ["1", "65507"], ["0", "65508"]),
            ("NP_HANDSHAKE_TIMEOUT", ["1ms", "24h"], ["999us", "24h1ns"]),
            ("NP_TCP_DIAL_TIMEOUT", ["1ms", "24h"], ["0", "24h1ns"]),
            ("NP_UDP_DIAL_TIMEOUT", ["1ms", "24h"], ["0", "24h1ns"]),
            ("NP_UDP_READ_TIMEOUT", ["1ms", "24h"], ["0s", "24h1ns"]),
            ("NP_POOL_GET_TIMEOUT", ["1ms", "24h"], ["0", "24h1ns"]),
            ("NP_MIN_POOL_INTERVAL", ["1ms", "1s"], ["0", "24h1ns"]),
            ("NP_MAX_POOL_INTERVAL", ["100ms", "24h"], ["0", "24h1ns"]),
            ("NP_REPORT_INTERVAL", ["100ms", "24h"], ["99ms", "24h1ns"]),
            ("NP_FALLBACK_INTERVAL", ["1ms", "24h"], ["0", "24h1ns"]),
            ("NP_SERVICE_COOLDOWN", ["10ms", "24h"], ["9.9ms", "24h1ns"]),
            ("NP_SHUTDOWN_TIMEOUT", ["0", "24h"], ["-1s", "24h1ns"]),
            ("NP_RELOAD_INTERVAL", ["1ms", "24h"], ["0", "24h1ns"]),
            (
                "NP_STACK_SIZE",
                ["16384", "67108864"],
                ["16383", "67108865"],
            ),
            ("MIN_POOL_CAPACITY", ["1", "65536"], ["0", "65537"]),
            ("MAX_POOL_CAPACITY", ["1", "65536"], ["0", "65537"]),
        ];
        for (name, good, bad) in cases {
            for value in good {
                assert!(read(&[(name, value)]).is_ok(), "{name}={value}");
            }
            for value in bad.into_iter().chain(["x", "-1", "+1", "1 ", "5"]) {
                let is_number = !name.ends_with("_TIMEOUT") && !name.ends_with("_INTERVAL");
                if value == "5" && is_number {
                    continue;
                }
                let error = read(&[(name, value)]).unwrap_err().to_string();
                let start = format!("environment variable {name} has value '{value}'; use a ");
                assert!(error.starts_with(&start), "{error}");
            }
        }
        // All of the table but the directory, which has no range.
        assert_eq!(cases.len() + 1, VARIABLES.len());
    }

    #[test]
    fn each_variable_sets_its_limit() {
        let limits = read(&[
            ("NP_SEMAPHORE_LIMIT", "2"),
            ("NP_TCP_DATA_BUF_SIZE", "3000"),
            ("NP_UDP_DATA_BUF_SIZE", "4"),
            ("NP_HANDSHAKE_TIMEOUT", "5ms"),
            ("NP_TCP_DIAL_TIMEOUT", "6ms"),
            ("NP_UDP_DIAL_TIMEOUT", "7ms"),
            ("NP_UDP_READ_TIMEOUT", "8ms"),
            ("NP_POOL_GET_TIMEOUT", "9ms"),
            ("NP_MIN_POOL_INTERVAL", "10ms"),
            ("NP_MAX_POOL_INTERVAL", "11ms"),
            ("NP_REPORT_INTERVAL", "120ms"),
            ("NP_FALLBACK_INTERVAL", "13ms"),
            ("NP_SERVICE_COOLDOWN", "14ms"),
            ("NP_SHUTDOWN_TIMEOUT", "15ms"),
            ("NP_RELOAD_INTERVAL", "16ms"),
            ("NP_STATE_DIR", "/var/x"),
            ("NP_STACK_SIZE", "17000"),
            ("MIN_POOL_CAPACITY", "18"),
            ("MAX_POOL_CAPACITY", "19"),
        ]);
        let expected = Limits {
            signal_queue_max: 2,
            tcp_buffer_size: 3000,
            udp_datagram_size_max: Some(4),
            handshake_timeout: Duration::from_millis(5),
            tcp_dial_timeout: Duration::from_millis(6),
            udp_dial_timeout: Duration::from_millis(7),
            udp_read_timeout: Duration::from_millis(8),
            pool_get_timeout: Duration::from_millis(9),
            pool_interval_min: Duration::from_millis(10),
            pool_interval_max: Duration::from_millis(11),
            report_interval: Duration::from_millis(120),
            fallback_interval: Duration::from_millis(13),
            service_cooldown: Duration::from_millis(14),
            shutdown_timeout: Duration::from_millis(15),
            reload_interval: Duration::from_millis(16),
            state_directory: Some(PathBuf::from("/var/x")),
            stack_size: 17000,
            pool_min_default: 18,
            pool_max_default: 19,
        };
        assert_eq!(limits, Ok(expected));
    }

    #[test]
    fn older_names_count_where_the_new_one_is_unset() {
        let limits = read(&[("UDP_READ_TIMEOUT", "20s"), ("SEMAPHORE_LIMIT", "7")]).unwrap();
        assert_eq!(limits.udp_read_timeout, Duration::from_secs(20));
        assert_eq!(limits.signal_queue_max, 7);
        let both = [("SHUTDOWN_TIMEOUT", "1s"), ("NP_SHUTDOWN_TIMEOUT", "2s")];
        assert_eq!(
            read(&both).unwrap().shutdown_timeout,
            Duration::from_secs(2)
        );
        let emptied = [("SHUTDOWN_TIMEOUT", "1s"), ("NP_SHUTDOWN_TIMEOUT", "")];
        assert_eq!(
            read(&emptied).unwrap().shutdown_timeout,
            Duration::from_secs(1)
        );
        let older: Vec<_> = VARIABLES
            .iter()
            .filter_map(|spec| spec.older_name)
            .collect();
        assert_eq!(
            older,
            [
                "SEMAPHORE_LIMIT",
                "UDP_DATA_BUF_SIZE",
                "UDP_READ_TIMEOUT",
                "REPORT_INTERVAL",
                "SERVICE_COOLDOWN",
                "SHUTDOWN_TIMEOUT"
            ]
        );
        let error = read(&[("REPORT_INTERVAL", "1\n")]).unwrap_err().to_string();
        let text = "environment variable REPORT_INTERVAL has value '1\\n'; \
                    use a duration from 100ms to 24h";
        assert_eq!(error, text);
    }

    #[test]
    fn pool_intervals_may_not_cross() {
        let same = [
            ("NP_MIN_POOL_INTERVAL", "2s"),
            ("NP_MAX_POOL_INTERVAL", "2s"),
        ];
        assert!(read(&same).is_ok());
        let error = read(&[("NP_MIN_POOL_INTERVAL", "2s")])
            .unwrap_err()
            .to_string();
        assert!(error.contains("NP_MIN_POOL_INTERVAL (2s)"), "{error}");
        assert!(error.contains("NP_MAX_POOL_INTERVAL (1s)"), "{error}");
    }

    #[cfg(unix)]
    #[test]
    fn text_that_is_not_utf8_is_no_number_but_may_be_a_path() {
        use std::os::unix::ffi::OsStringExt;

        let broken = OsString::from_vec(vec![b'5', 0xff]);
        let read_one =
            |variable: &str| read_limits(|name| (name == variable).then(|| broken.clone()));
        assert!(read_one("NP_STACK_SIZE").is_err());
        let limits = read_one("NP_STATE_DIR").unwrap();
        assert_eq!(limits.state_directory, Some(PathBuf::from(&broken)));
    }
}
