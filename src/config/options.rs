//! The table of URL options: parsing, `--check`, `--help`, the manual and the README read it.
//!
//! An option is spelt here and nowhere else. To add one: a member of [`Options`], its default in
//! [`Options::new`] and an entry of [`OPTIONS`].

use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use super::Core;
use super::duration::{format_duration, parse_duration};
use super::error::{ConfigError, Notice};
use super::percent::encode_query;
use super::values::*;
pub use super::values::{
    Auth, Balance, Block, LogLevel, Mode, NamePolicy, ProxyHeader, TlsMode, Transport,
};
use crate::limits::{Limits, POOL_SIZE_MAX, RATE_MAX};

/// Every option as a typed value. Those that do not apply to a core have their defaults.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// `log`: the lowest level that is logged.
    pub log: LogLevel,
    /// `tls`: encryption of the tunnel.
    pub tls: TlsMode,
    /// `crt`: certificate chain; set with [`TlsMode::Verified`].
    pub certificate_file: Option<PathBuf>,
    /// `key`: private key of the certificate; set with [`TlsMode::Verified`].
    pub key_file: Option<PathBuf>,
    /// `dns`: who resolves names, and how long results are kept.
    pub names: NamePolicy,
    /// `sni`: name that is sent to the server and verified; unset, the tunnel host if it is one.
    pub server_name: Option<String>,
    /// `lbs`: choice among several targets.
    pub balance: Balance,
    /// `min`: fewest idle pool connections, 1 to [`POOL_SIZE_MAX`].
    pub pool_min: u32,
    /// `max`: most idle pool connections, 1 to [`POOL_SIZE_MAX`].
    pub pool_max: u32,
    /// `mode`: its meaning depends on the core.
    pub mode: Mode,
    /// `type`: what pool connections are made of.
    pub transport: Transport,
    /// `dial`: source of connections to targets; unset, the system chooses.
    pub dial_source: Option<IpAddr>,
    /// `read`: a TCP connection idle for this long is closed; unset, never. Not zero.
    pub read_timeout: Option<Duration>,
    /// `rate`: megabits per second in each direction, 1 to [`RATE_MAX`]; unset, no limit.
    pub rate: Option<u64>,
    /// `slot`: most forwarded connections at once; unset, no limit. Not zero.
    pub slots: Option<u32>,
    /// `proxy`: header that tells a target where the visitor comes from.
    pub proxy: ProxyHeader,
    /// `block`: protocols whose visitors are closed.
    pub block: Block,
    /// `notcp`: TCP is forwarded.
    pub tcp: bool,
    /// `noudp`: UDP is forwarded. At least one of `tcp` and `udp` is true.
    pub udp: bool,
    /// `auth`: handshakes that are spoken.
    pub auth: Auth,
}

/// One option: how it is written, read, shown and explained.
pub struct OptionSpec {
    /// Its name in a URL.
    pub name: &'static str,
    /// The cores it applies to; the others ignore it with a notice.
    pub cores: &'static [Core],
    /// The value it has when it is left out, as a URL would write it; empty, none.
    pub default: &'static str,
    /// What is accepted, to be read after "use".
    pub values: &'static str,
    /// What it does.
    pub meaning: &'static str,
    /// Sets the value; `None` means that it is not accepted, and nothing was set.
    pub apply: fn(&mut Options, &str) -> Option<()>,
    /// The present value, normalised; `None` when there is none to show.
    pub show: fn(&Options) -> Option<String>,
}

const ALL: &[Core] = &[Core::Server, Core::Client, Core::Master];
const TUNNEL: &[Core] = &[Core::Server, Core::Client];
const SERVER: &[Core] = &[Core::Server];
const CLIENT: &[Core] = &[Core::Client];
const LISTENER: &[Core] = &[Core::Server, Core::Master];

const TLS_VALUES: &str = "0 (plain), 1 (self-signed) or 2 (certificate files)";
const FILE_VALUES: &str = "the path of a PEM file";
const POOL_VALUES: &str = "a number from 1 to 65536";
const _: () = assert!(POOL_SIZE_MAX == 65536, "POOL_VALUES says so");
const RATE_VALUES: &str = "a number from 0 (no limit) to 1000000";
const _: () = assert!(RATE_MAX == 1_000_000, "RATE_VALUES says so");
const LEFT_OUT_VALUES: &str = "0 (forwarded) or 1 (left out)";

/// Every option, in the order in which they are explained.
pub static OPTIONS: &[OptionSpec] = &[
    OptionSpec {
        name: "log",
        cores: ALL,
        default: "info",
        values: "none, debug, info, warn, error or event",
        meaning: "lowest level that is logged, in the order debug, info, warn, error, event; none \
                  logs nothing; fatal counts as error",
        apply: |options, text| value_of(LOG_LEVELS, text).map(|value| options.log = value),
        show: |options| Some(word_of(LOG_LEVELS, options.log)),
    },
    OptionSpec {
        name: "tls",
        cores: LISTENER,
        default: "0",
        values: TLS_VALUES,
        meaning: "encryption of the tunnel, or of a master's API; 2 needs crt and key",
        apply: |options, text| value_of(TLS_MODES, text).map(|value| options.tls = value),
        show: |options| Some(word_of(TLS_MODES, options.tls)),
    },
    OptionSpec {
        name: "crt",
        cores: LISTENER,
        default: "",
        values: FILE_VALUES,
        meaning: "certificate chain of tls=2; read again when it changes",
        apply: |options, text| parse_file(text).map(|value| options.certificate_file = value),
        show: |options| {
            options
                .certificate_file
                .as_ref()
                .map(|file| file.display().to_string())
        },
    },
    OptionSpec {
        name: "key",
        cores: LISTENER,
        default: "",
        values: FILE_VALUES,
        meaning: "private key of that certificate",
        apply: |options, text| parse_file(text).map(|value| options.key_file = value),
        show: |options| {
            options
                .key_file
                .as_ref()
                .map(|file| file.display().to_string())
        },
    },
    OptionSpec {
        name: "dns",
        cores: TUNNEL,
        default: "5m",
        values: "a duration such as 5m, 0 (no cache), or up to 8 IP addresses of name servers, \
                 comma-separated, each with :port if it is not 53",
        meaning: "how long a resolved name is kept, or the name servers that are asked instead \
                  of the system's",
        apply: |options, text| parse_names(text).map(|value| options.names = value),
        show: |options| Some(format_names(&options.names)),
    },
    OptionSpec {
        name: "sni",
        cores: CLIENT,
        default: "none",
        values: "a host name, an IP address or none",
        meaning: "server name that is sent and verified; none takes the tunnel host if it is a \
                  name",
        apply: |options, text| parse_server_name(text).map(|value| options.server_name = value),
        show: |options| {
            Some(
                options
                    .server_name
                    .clone()
                    .unwrap_or_else(|| "none".to_owned()),
            )
        },
    },
    OptionSpec {
        name: "lbs",
        cores: TUNNEL,
        default: "0",
        values: "0 (round robin), 1 (lowest latency) or 2 (primary and backups)",
        meaning: "choice among several targets; a target that does not answer is passed over",
        apply: |options, text| value_of(BALANCES, text).map(|value| options.balance = value),
        show: |options| Some(word_of(BALANCES, options.balance)),
    },
    OptionSpec {
        name: "min",
        cores: CLIENT,
        default: "64",
        values: POOL_VALUES,
        meaning: "fewest idle pool connections",
        apply: |options, text| parse_pool_size(text).map(|value| options.pool_min = value),
        show: |options| Some(options.pool_min.to_string()),
    },
    OptionSpec {
        name: "max",
        cores: SERVER,
        default: "1024",
        values: POOL_VALUES,
        meaning: "most idle pool connections; the client is told",
        apply: |options, text| parse_pool_size(text).map(|value| options.pool_max = value),
        show: |options| Some(options.pool_max.to_string()),
    },
    OptionSpec {
        name: "mode",
        cores: TUNNEL,
        default: "0",
        values: "0 (auto), 1 (server: reverse, client: single-end) or 2 (server: forward, \
                 client: dual-end)",
        meaning: "which end listens for visitors; auto finds out by trying to bind",
        apply: |options, text| value_of(MODES, text).map(|value| options.mode = value),
        show: |options| Some(word_of(MODES, options.mode)),
    },
    OptionSpec {
        name: "type",
        cores: SERVER,
        default: "0",
        values: "0 (TCP), 1 (QUIC), 2 (WebSocket) or 3 (HTTP/2)",
        meaning: "what carries visitors between the two ends; the client is told. 0 and 2 take a \
                  connection for each, 1 and 3 one for all; 1 goes over UDP, 2 passes web proxies. \
                  1 and 3 need TLS and turn tls=0 into tls=1",
        apply: |options, text| value_of(TRANSPORTS, text).map(|value| options.transport = value),
        show: |options| Some(word_of(TRANSPORTS, options.transport)),
    },
    OptionSpec {
        name: "dial",
        cores: TUNNEL,
        default: "auto",
        values: "auto or an IP address of this host",
        meaning: "source address of connections to targets",
        apply: |options, text| parse_dial_source(text).map(|value| options.dial_source = value),
        show: |options| {
            Some(
                options
                    .dial_source
                    .map_or("auto".to_owned(), |ip| ip.to_string()),
            )
        },
    },
    OptionSpec {
        name: "read",
        cores: TUNNEL,
        default: "0",
        values: "a duration such as 30s or 2h45m, or 0 (never)",
        meaning: "a TCP connection that is silent both ways for this long is closed",
        apply: |options, text| {
            let timeout = parse_duration(text).ok()?;
            options.read_timeout = (!timeout.is_zero()).then_some(timeout);
            Some(())
        },
        show: |options| Some(format_duration(options.read_timeout.unwrap_or_default())),
    },
    OptionSpec {
        name: "rate",
        cores: TUNNEL,
        default: "0",
        values: RATE_VALUES,
        meaning: "megabits per second in each direction, all connections together",
        apply: |options, text| {
            let rate = parse_number(text).filter(|rate| *rate <= RATE_MAX)?;
            options.rate = (rate != 0).then_some(rate);
            Some(())
        },
        show: |options| Some(options.rate.unwrap_or(0).to_string()),
    },
    OptionSpec {
        name: "slot",
        cores: TUNNEL,
        default: "65536",
        values: "a number from 0 (no limit) to 4294967295",
        meaning: "most forwarded connections at once, TCP and UDP together; more are refused",
        apply: |options, text| {
            let slots = parse_number(text)?;
            options.slots = (slots != 0).then_some(slots);
            Some(())
        },
        show: |options| Some(options.slots.unwrap_or(0).to_string()),
    },
    OptionSpec {
        name: "proxy",
        cores: TUNNEL,
        default: "0",
        values: "0 (off), 1 (version 1) or 2 (version 2)",
        meaning: "PROXY protocol header that tells a TCP target the visitor's address",
        apply: |options, text| value_of(PROXY_HEADERS, text).map(|value| options.proxy = value),
        show: |options| Some(word_of(PROXY_HEADERS, options.proxy)),
    },
    OptionSpec {
        name: "block",
        cores: TUNNEL,
        default: "0",
        values: "0 (nothing), or one or more of the digits 1 (SOCKS), 2 (HTTP) and 3 (TLS)",
        meaning: "visitors whose first bytes are of these protocols are closed",
        apply: |options, text| parse_block(text).map(|value| options.block = value),
        show: |options| Some(format_block(options.block)),
    },
    OptionSpec {
        name: "notcp",
        cores: TUNNEL,
        default: "0",
        values: LEFT_OUT_VALUES,
        meaning: "whether TCP is forwarded",
        apply: |options, text| value_of(LEFT_OUT, text).map(|value| options.tcp = value),
        show: |options| Some(word_of(LEFT_OUT, options.tcp)),
    },
    OptionSpec {
        name: "noudp",
        cores: TUNNEL,
        default: "0",
        values: LEFT_OUT_VALUES,
        meaning: "whether UDP is forwarded",
        apply: |options, text| value_of(LEFT_OUT, text).map(|value| options.udp = value),
        show: |options| Some(word_of(LEFT_OUT, options.udp)),
    },
    OptionSpec {
        name: "auth",
        cores: TUNNEL,
        default: "0",
        values: "0 (native where the peer has it, else v1) or 1 (native only)",
        meaning: "handshake with the other end of the tunnel",
        apply: |options, text| value_of(AUTHS, text).map(|value| options.auth = value),
        show: |options| Some(word_of(AUTHS, options.auth)),
    },
];

impl OptionSpec {
    /// The option of that name, if there is one.
    pub fn find(name: &str) -> Option<&'static Self> {
        OPTIONS.iter().find(|spec| spec.name == name)
    }

    /// The present value as a query carries it; `None` when there is none to show.
    pub(super) fn show_encoded(&self, options: &Options) -> Option<String> {
        Some(encode_query(&(self.show)(options)?))
    }

    /// Whether the option means anything to `core`.
    pub fn applies_to(&self, core: Core) -> bool {
        self.cores.contains(&core)
    }
}

impl Options {
    /// What holds when a URL names no option.
    pub fn new(limits: &Limits) -> Self {
        Self {
            log: LogLevel::Info,
            tls: TlsMode::Plain,
            certificate_file: None,
            key_file: None,
            names: NamePolicy::System {
                cache: Duration::from_secs(300),
            },
            server_name: None,
            balance: Balance::RoundRobin,
            pool_min: limits.pool_min_default,
            pool_max: limits.pool_max_default,
            mode: Mode::Auto,
            transport: Transport::Tcp,
            dial_source: None,
            read_timeout: None,
            rate: None,
            slots: Some(65536),
            proxy: ProxyHeader::Off,
            block: Block::default(),
            tcp: true,
            udp: true,
            auth: Auth::NativeOrV1,
        }
    }

    /// Checks the options against each other, once all are set, and mends what can be mended.
    ///
    /// Errors: files missing for `tls=2`; both protocols left out.
    pub(super) fn settle(&mut self) -> Result<Vec<Notice>, ConfigError> {
        if !self.tcp && !self.udp {
            return Err(ConfigError::Conflict(
                "options 'notcp' and 'noudp' are both 1, which leaves nothing to forward; \
                 use at most one of them"
                    .to_owned(),
            ));
        }
        let has_files = self.certificate_file.is_some() && self.key_file.is_some();
        if self.tls == TlsMode::Verified && !has_files {
            return Err(ConfigError::Conflict(
                "option 'tls' has value '2', which needs certificate files; \
                 add crt=FILE and key=FILE, or use 0 (plain) or 1 (self-signed)"
                    .to_owned(),
            ));
        }
        let needs_tls = matches!(self.transport, Transport::Quic | Transport::Http2);
        if needs_tls && self.tls == TlsMode::Plain {
            self.tls = TlsMode::SelfSigned;
            let transport = word_of(TRANSPORTS, self.transport);
            let text = format!(
                "option 'type' has value '{transport}', which needs TLS: running with tls=1"
            );
            return Ok(vec![Notice::new(text)]);
        }
        Ok(Vec::new())
    }
}

/// An empty path is the same as none: masters and scripts write `crt=&key=`.
#[expect(
    clippy::unnecessary_wraps,
    reason = "one shape for all parsers of the table"
)]
fn parse_file(text: &str) -> Option<Option<PathBuf>> {
    Some((!text.is_empty()).then(|| PathBuf::from(text)))
}

fn parse_pool_size(text: &str) -> Option<u32> {
    parse_number(text).filter(|size| (1..=POOL_SIZE_MAX).contains(size))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Values that are accepted with what is shown for them, and values that are not accepted.
    type Case = (
        &'static str,
        &'static [(&'static str, &'static str)],
        &'static [&'static str],
    );

    const CASES: &[Case] = &[
        (
            "log",
            &[
                ("none", "none"),
                ("debug", "debug"),
                ("info", "info"),
                ("warn", "warn"),
                ("error", "error"),
                ("fatal", "error"),
                ("event", "event"),
            ],
            &["", "INFO", "trace", "0"],
        ),
        (
            "tls",
            &[("0", "0"), ("1", "1"), ("2", "2")],
            &["", "3", "yes", "01", "-1"],
        ),
        (
            "crt",
            &[("/etc/a.pem", "/etc/a.pem"), ("a b.pem", "a b.pem")],
            &[],
        ),
        ("key", &[("/etc/a.key", "/etc/a.key")], &[]),
        (
            "dns",
            &[
                ("0", "0s"),
                ("5m", "5m0s"),
                ("1.5h", "1h30m0s"),
                ("1.1.1.1", "1.1.1.1"),
                ("1.1.1.1:53,8.8.8.8:5353", "1.1.1.1,8.8.8.8:5353"),
                (
                    "2001:db8::1,[2001:db8::2]:54",
                    "2001:db8::1,[2001:db8::2]:54",
                ),
                ("[::1]:53", "::1"),
                (
                    "1.0.0.1,1.0.0.2,1.0.0.3,1.0.0.4,1.0.0.5,1.0.0.6,1.0.0.7,1.0.0.8",
                    "1.0.0.1,1.0.0.2,1.0.0.3,1.0.0.4,1.0.0.5,1.0.0.6,1.0.0.7,1.0.0.8",
                ),
            ],
            &[
                "",
                "5",
                "-5m",
                "1.1.1.1,",
                ",1.1.1.1",
                "1.1.1.1,,8.8.8.8",
                "1.1.1.1 ,8.8.8.8",
                "1.1.1.1:0",
                "1.1.1.1:65536",
                "0.0.0.0",
                "::",
                "dns.example",
                "5m,1.1.1.1",
                "1.0.0.1,1.0.0.2,1.0.0.3,1.0.0.4,1.0.0.5,1.0.0.6,1.0.0.7,1.0.0.8,1.0.0.9",
            ],
        ),
        (
            "sni",
            &[
                ("none", "none"),
                ("example.com", "example.com"),
                ("10.0.0.1", "10.0.0.1"),
                ("2001:db8::1", "2001:db8::1"),
            ],
            &[
                "",
                "a b",
                "example.com:443",
                "a..b",
                "1.2.3",
                "münchen.de",
                "a/b",
            ],
        ),
        (
            "lbs",
            &[("0", "0"), ("1", "1"), ("2", "2")],
            &["", "3", "x"],
        ),
        (
            "min",
            &[("1", "1"), ("64", "64"), ("65536", "65536")],
            &["", "0", "65537", "-1", "+1"],
        ),
        (
            "max",
            &[("1", "1"), ("65536", "65536")],
            &["", "0", "65537", "1e3", " 1"],
        ),
        (
            "mode",
            &[("0", "0"), ("1", "1"), ("2", "2")],
            &["", "3", "auto"],
        ),
        (
            "type",
            &[("0", "0"), ("1", "1"), ("2", "2"), ("3", "3")],
            &["", "4", "quic"],
        ),
        (
            "dial",
            &[("auto", "auto"), ("10.0.0.1", "10.0.0.1"), ("::1", "::1")],
            &["", "AUTO", "eth0", "10.0.0.1:0", "[::1]", "10.0.0"],
        ),
        (
            "read",
            &[
                ("0", "0s"),
                ("0s", "0s"),
                ("30s", "30s"),
                ("1h", "1h0m0s"),
                ("300ms", "300ms"),
            ],
            &["", "30", "-1s", "1d", "9223372036854775808ns"],
        ),
        (
            "rate",
            &[("0", "0"), ("1", "1"), ("1000000", "1000000")],
            &["", "1000001", "-1", "1.5", "18446744073709551616"],
        ),
        (
            "slot",
            &[
                ("0", "0"),
                ("1", "1"),
                ("65536", "65536"),
                ("4294967295", "4294967295"),
            ],
            &["", "4294967296", "-1", "x"],
        ),
        (
            "proxy",
            &[("0", "0"), ("1", "1"), ("2", "2")],
            &["", "3", "v1"],
        ),
        (
            "block",
            &[
                ("0", "0"),
                ("1", "1"),
                ("31", "13"),
                ("321", "123"),
                ("22", "2"),
            ],
            &["", "4", "10", "1,2", "00", "http"],
        ),
        ("notcp", &[("0", "0"), ("1", "1")], &["", "2", "true"]),
        ("noudp", &[("0", "0"), ("1", "1")], &["", "2", "yes"]),
        ("auth", &[("0", "0"), ("1", "1")], &["", "2", "native"]),
    ];

    fn defaults() -> Options {
        Options::new(&Limits::default())
    }

    #[test]
    fn each_option_accepts_its_values_and_no_others() {
        let tested: Vec<_> = CASES.iter().map(|(name, ..)| *name).collect();
        let known: Vec<_> = OPTIONS.iter().map(|spec| spec.name).collect();
        assert_eq!(tested, known);
        for (name, good, bad) in CASES {
            let spec = OptionSpec::find(name).unwrap();
            for (value, shown) in *good {
                let mut options = defaults();
                assert_eq!(
                    (spec.apply)(&mut options, value),
                    Some(()),
                    "{name}={value}"
                );
                assert_eq!(
                    (spec.show)(&options).as_deref(),
                    Some(*shown),
                    "{name}={value}"
                );
                // What is shown means the same again.
                let mut again = defaults();
                assert_eq!((spec.apply)(&mut again, shown), Some(()), "{name}={shown}");
                assert_eq!(again, options);
            }
            for value in *bad {
                let mut options = defaults();
                assert_eq!((spec.apply)(&mut options, value), None, "{name}={value}");
                assert_eq!(options, defaults());
            }
        }
    }

    #[test]
    fn default_texts_are_the_defaults() {
        for spec in OPTIONS {
            let mut options = defaults();
            assert_eq!(
                (spec.apply)(&mut options, spec.default),
                Some(()),
                "{}",
                spec.name
            );
            assert_eq!(options, defaults(), "{}", spec.name);
        }
    }

    #[test]
    fn values_become_types() {
        let apply = |pairs: &[(&str, &str)]| {
            let mut options = defaults();
            for (name, value) in pairs {
                (OptionSpec::find(name).unwrap().apply)(&mut options, value).unwrap();
            }
            options
        };
        let options = apply(&[
            ("log", "event"),
            ("tls", "2"),
            ("crt", "/c"),
            ("key", "/k"),
            ("dns", "1.1.1.1,[::1]:54"),
            ("sni", "a.example"),
            ("lbs", "2"),
            ("min", "7"),
            ("max", "8"),
            ("mode", "2"),
            ("type", "3"),
            ("dial", "10.0.0.1"),
            ("read", "90s"),
            ("rate", "100"),
            ("slot", "9"),
            ("proxy", "2"),
            ("block", "13"),
            ("notcp", "1"),
            ("noudp", "1"),
            ("auth", "1"),
        ]);
        let expected = Options {
            log: LogLevel::Event,
            tls: TlsMode::Verified,
            certificate_file: Some("/c".into()),
            key_file: Some("/k".into()),
            names: NamePolicy::Servers(vec![
                "1.1.1.1:53".parse().unwrap(),
                "[::1]:54".parse().unwrap(),
            ]),
            server_name: Some("a.example".to_owned()),
            balance: Balance::PrimaryBackup,
            pool_min: 7,
            pool_max: 8,
            mode: Mode::Two,
            transport: Transport::Http2,
            dial_source: Some("10.0.0.1".parse().unwrap()),
            read_timeout: Some(Duration::from_secs(90)),
            rate: Some(100),
            slots: Some(9),
            proxy: ProxyHeader::V2,
            block: Block {
                socks: true,
                http: false,
                tls: true,
            },
            tcp: false,
            udp: false,
            auth: Auth::NativeOnly,
        };
        assert_eq!(options, expected);
        let unlimited = apply(&[("slot", "0"), ("rate", "0"), ("read", "0"), ("dns", "0")]);
        assert_eq!(
            (unlimited.slots, unlimited.rate, unlimited.read_timeout),
            (None, None, None)
        );
        assert_eq!(
            unlimited.names,
            NamePolicy::System {
                cache: Duration::ZERO
            }
        );
    }

    #[test]
    fn block_tells_whether_it_looks() {
        assert!(!Block::default().any());
        assert!(
            Block {
                http: true,
                ..Block::default()
            }
            .any()
        );
    }
}
