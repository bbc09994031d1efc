//! The typed values of options, and the words a URL has for them.

use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use super::address::check_name;
use super::duration::{format_duration, parse_duration};
use crate::limits::NAME_SERVERS_COUNT_MAX;

pub use crate::wire::offer::{TlsMode, Transport};

const NAME_SERVER_PORT: u16 = 53;

/// The lowest level that is logged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogLevel {
    /// Nothing at all.
    None,
    /// Everything.
    Debug,
    /// What the program does.
    Info,
    /// What the operator should look at.
    Warn,
    /// What failed.
    Error,
    /// Events for a master: checkpoints.
    Event,
}

impl LogLevel {
    /// The levels up to error that are shown.
    pub fn filter(self) -> log::LevelFilter {
        match self {
            Self::None | Self::Event => log::LevelFilter::Off,
            Self::Debug => log::LevelFilter::Debug,
            Self::Info => log::LevelFilter::Info,
            Self::Warn => log::LevelFilter::Warn,
            Self::Error => log::LevelFilter::Error,
        }
    }

    /// Whether events are shown, which are above error.
    pub fn shows_events(self) -> bool {
        self != Self::None
    }
}

/// Who resolves names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum NamePolicy {
    /// The system.
    System {
        /// How long a result is kept; zero, not at all.
        cache: Duration,
    },
    /// These name servers, in this order; at least one, at most [`NAME_SERVERS_COUNT_MAX`].
    Servers(Vec<SocketAddr>),
}

/// The choice among several targets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Balance {
    /// One after the other.
    RoundRobin,
    /// The one that answers fastest.
    LowestLatency,
    /// The first that answers.
    PrimaryBackup,
}

/// How a core works; `One` and `Two` mean something else in each.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// Found out by trying to bind.
    Auto,
    /// Server: reverse. Client: single-end.
    One,
    /// Server: forward. Client: dual-end.
    Two,
}

/// The PROXY protocol header a target gets before any data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProxyHeader {
    /// None.
    Off,
    /// The line of version 1.
    V1,
    /// The binary header of version 2.
    V2,
}

/// Protocols whose visitors are closed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Block {
    /// SOCKS 4, 4a and 5.
    pub socks: bool,
    /// HTTP.
    pub http: bool,
    /// TLS.
    pub tls: bool,
}

impl Block {
    /// Whether a visitor's first bytes have to be looked at.
    pub fn any(self) -> bool {
        self.socks || self.http || self.tls
    }
}

/// The handshakes that are spoken.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Auth {
    /// The native one where the peer has it, else v1.
    NativeOrV1,
    /// The native one only.
    NativeOnly,
}

/// The words of an option that has a fixed set of them; of two for one value the first is shown.
pub(super) type Words<T> = [(&'static str, T)];

pub(super) const LOG_LEVELS: &Words<LogLevel> = &[
    ("none", LogLevel::None),
    ("debug", LogLevel::Debug),
    ("info", LogLevel::Info),
    ("warn", LogLevel::Warn),
    ("error", LogLevel::Error),
    ("fatal", LogLevel::Error),
    ("event", LogLevel::Event),
];
pub(super) const TLS_MODES: &Words<TlsMode> = &[
    ("0", TlsMode::Plain),
    ("1", TlsMode::SelfSigned),
    ("2", TlsMode::Verified),
];
pub(super) const BALANCES: &Words<Balance> = &[
    ("0", Balance::RoundRobin),
    ("1", Balance::LowestLatency),
    ("2", Balance::PrimaryBackup),
];
pub(super) const MODES: &Words<Mode> = &[("0", Mode::Auto), ("1", Mode::One), ("2", Mode::Two)];
pub(super) const TRANSPORTS: &Words<Transport> = &[
    ("0", Transport::Tcp),
    ("1", Transport::Quic),
    ("2", Transport::WebSocket),
    ("3", Transport::Http2),
];
pub(super) const PROXY_HEADERS: &Words<ProxyHeader> = &[
    ("0", ProxyHeader::Off),
    ("1", ProxyHeader::V1),
    ("2", ProxyHeader::V2),
];
pub(super) const AUTHS: &Words<Auth> = &[("0", Auth::NativeOrV1), ("1", Auth::NativeOnly)];
/// Of `notcp` and `noudp`: whether the protocol is forwarded.
pub(super) const LEFT_OUT: &Words<bool> = &[("0", true), ("1", false)];

/// The value of a word; `None` when it is not among them.
pub(super) fn value_of<T: Copy>(words: &Words<T>, text: &str) -> Option<T> {
    words
        .iter()
        .find(|(word, _)| *word == text)
        .map(|(_, value)| *value)
}

/// The word of a value; each has one.
pub(super) fn word_of<T: Copy + PartialEq>(words: &Words<T>, value: T) -> String {
    words
        .iter()
        .find(|(_, other)| *other == value)
        .map(|(word, _)| *word)
        .unwrap_or_default()
        .into()
}

/// A plain decimal number; unlike [`str::parse`], without a sign.
pub(super) fn parse_number<T: std::str::FromStr>(text: &str) -> Option<T> {
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return None;
    }
    text.parse().ok()
}

/// A cache time for the system's names, or a list of name servers.
pub(super) fn parse_names(text: &str) -> Option<NamePolicy> {
    if let Ok(cache) = parse_duration(text) {
        return Some(NamePolicy::System { cache });
    }
    // One more than is accepted is enough to know that there are too many.
    let servers: Option<Vec<_>> = text
        .split(',')
        .take(NAME_SERVERS_COUNT_MAX + 1)
        .map(parse_name_server)
        .collect();
    servers
        .filter(|servers| servers.len() <= NAME_SERVERS_COUNT_MAX)
        .map(NamePolicy::Servers)
}

pub(super) fn format_names(names: &NamePolicy) -> String {
    let format_server = |server: &SocketAddr| match server.port() {
        NAME_SERVER_PORT => server.ip().to_string(),
        _ => server.to_string(),
    };
    match names {
        NamePolicy::System { cache } => format_duration(*cache),
        NamePolicy::Servers(servers) => servers
            .iter()
            .map(format_server)
            .collect::<Vec<_>>()
            .join(","),
    }
}

pub(super) fn parse_block(text: &str) -> Option<Block> {
    let mut block = Block::default();
    if text.is_empty() {
        return None;
    }
    if text == "0" {
        return Some(block);
    }
    for digit in text.bytes() {
        match digit {
            b'1' => block.socks = true,
            b'2' => block.http = true,
            b'3' => block.tls = true,
            _ => return None,
        }
    }
    Some(block)
}

pub(super) fn format_block(block: Block) -> String {
    let digits: String = [(block.socks, '1'), (block.http, '2'), (block.tls, '3')]
        .into_iter()
        .filter_map(|(set, digit)| set.then_some(digit))
        .collect();
    if digits.is_empty() {
        "0".to_owned()
    } else {
        digits
    }
}

/// The outer `None` refuses the value, the inner one is the word `none`.
pub(super) fn parse_server_name(text: &str) -> Option<Option<String>> {
    if text == "none" {
        return Some(None);
    }
    let usable = text.parse::<IpAddr>().is_ok() || check_name(text).is_ok();
    usable.then(|| Some(text.to_owned()))
}

/// The outer `None` refuses the value, the inner one is the word `auto`.
pub(super) fn parse_dial_source(text: &str) -> Option<Option<IpAddr>> {
    if text == "auto" {
        return Some(None);
    }
    text.parse().ok().map(Some)
}

fn parse_name_server(text: &str) -> Option<SocketAddr> {
    let server = match text.parse::<IpAddr>() {
        Ok(ip) => SocketAddr::new(ip, NAME_SERVER_PORT),
        Err(_) => text.parse().ok()?,
    };
    (server.port() != 0 && !server.ip().is_unspecified()).then_some(server)
}
