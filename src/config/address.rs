//! Addresses as a URL writes them: `host:port`, `1.2.3.4:port`, `[v6]:port`, `:port`.
//!
//! Names are checked for their characters only; whether they exist is known at the dial.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::limits::HOST_NAME_LENGTH_MAX;

/// Longest label of a host name, the part between two dots (RFC 1035 section 2.3.4).
const LABEL_LENGTH_MAX: usize = 63;

/// The host part of an [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Host {
    /// Left out: every local address where it is bound, this host where it is dialled.
    Any,
    /// A literal address.
    Ip(IpAddr),
    /// A name, to be resolved; as it was written.
    Name(String),
}

/// A host and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Address {
    /// The host.
    pub host: Host,
    /// The port; 0 binds a free one.
    pub port: u16,
}

/// Why a text is no address. Reads on from "address 'x'".
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AddressError {
    /// Nothing there.
    Empty,
    /// No colon, or nothing behind it.
    NoPort,
    /// Not a number from 0 to 65535.
    BadPort,
    /// The port is a number, and a path or options follow without the '?' between.
    BehindPort,
    /// A URL of its own, as of a web page.
    Scheme,
    /// An IPv6 address without brackets, or with broken ones.
    Brackets,
    /// What is in the brackets is no IPv6 address.
    BadIpv6,
    /// Digits and dots, yet no IPv4 address.
    BadIpv4,
    /// A name with characters that no name has, or an empty label.
    BadName,
    /// A name or a label beyond its limit.
    LongName,
    /// Port 0 where the address is dialled.
    ZeroPort,
}

impl fmt::Display for AddressError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Empty => "is empty; write host:port, [IPv6]:port or :port",
            Self::NoPort => "has no port; write host:port, [IPv6]:port or :port",
            Self::BadPort => "has a port that is not a number from 0 to 65535",
            Self::BehindPort => {
                "has something behind its port; nothing may follow there but '?' and options"
            }
            Self::Scheme => "is a URL of its own; write its host and port alone, as host:port",
            Self::Brackets => "has more than one colon; write an IPv6 address as [IPv6]:port",
            Self::BadIpv6 => {
                "has no IPv6 address between its brackets; write [2001:db8::1]:port, without a zone"
            }
            Self::BadIpv4 => "has a host that looks like an IPv4 address but is none",
            Self::BadName => {
                "has a host name that is not letters, digits, '-', '_' and single dots; \
                 write an international name in its xn-- form"
            }
            Self::LongName => {
                "has a host name of more than 253 characters, or more than 63 between two dots"
            }
            Self::ZeroPort => "has port 0, which cannot be dialled; use 1 to 65535",
        })
    }
}

impl std::error::Error for AddressError {}

impl Address {
    /// Reads one address.
    ///
    /// Errors: [`AddressError`], each one a fault of the text.
    pub fn parse(text: &str) -> Result<Self, AddressError> {
        if text.is_empty() {
            return Err(AddressError::Empty);
        }
        if text.contains("://") {
            return Err(AddressError::Scheme);
        }
        let (host, port) = match text.strip_prefix('[') {
            Some(bracketed) => {
                let (ip, after) = bracketed.split_once(']').ok_or(AddressError::Brackets)?;
                let ip: Ipv6Addr = ip.parse().map_err(|_| AddressError::BadIpv6)?;
                (
                    Host::Ip(ip.into()),
                    after.strip_prefix(':').ok_or(AddressError::NoPort)?,
                )
            }
            None => {
                let (host, port) = text.split_once(':').ok_or(AddressError::NoPort)?;
                if port.contains(':') {
                    return Err(AddressError::Brackets);
                }
                (parse_host(host)?, port)
            }
        };
        Ok(Self {
            host,
            port: parse_port(port)?,
        })
    }

    /// Whether traffic for `target` would come back to `self`, the tunnel address.
    ///
    /// The same port, unless it is 0 (a free one), on the same host. Wildcard and loopback
    /// addresses and `localhost` are one host. A wildcard tunnel and a target with another
    /// address or a name may or may not meet; that is the operator's to know.
    pub fn feeds(&self, target: &Address) -> bool {
        if self.port == 0 || self.port != target.port {
            return false;
        }
        match (&self.host, &target.host) {
            (a, b) if a.is_local() && b.is_local() => true,
            (Host::Ip(a), Host::Ip(b)) => a.to_canonical() == b.to_canonical(),
            (Host::Name(a), Host::Name(b)) => without_root(a).eq_ignore_ascii_case(without_root(b)),
            _ => false,
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.host {
            Host::Any => write!(f, ":{}", self.port),
            Host::Ip(IpAddr::V6(ip)) => write!(f, "[{ip}]:{}", self.port),
            Host::Ip(IpAddr::V4(ip)) => write!(f, "{ip}:{}", self.port),
            Host::Name(name) => write!(f, "{name}:{}", self.port),
        }
    }
}

impl Host {
    /// Wildcard, loopback or `localhost`.
    fn is_local(&self) -> bool {
        match self {
            Self::Any => true,
            Self::Ip(ip) => {
                let ip = ip.to_canonical();
                ip.is_unspecified() || ip.is_loopback()
            }
            Self::Name(name) => without_root(name).eq_ignore_ascii_case("localhost"),
        }
    }
}

/// Checks a host name: labels of letters, digits, `-` and `_`, one dot at the end allowed.
///
/// Errors: [`AddressError::BadName`], [`AddressError::LongName`] and, for digits and dots alone,
/// [`AddressError::BadIpv4`].
pub(super) fn check_name(name: &str) -> Result<(), AddressError> {
    let name = without_root(name);
    if name.len() > HOST_NAME_LENGTH_MAX {
        return Err(AddressError::LongName);
    }
    let mut last_label = "";
    for label in name.split('.') {
        let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
        if label.is_empty() || !label.bytes().all(plain) {
            return Err(AddressError::BadName);
        }
        if label.len() > LABEL_LENGTH_MAX {
            return Err(AddressError::LongName);
        }
        last_label = label;
    }
    // Resolvers take "10.1" and "127.1" for addresses in an old notation; no name ends in a number.
    if last_label.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::BadIpv4);
    }
    Ok(())
}

fn parse_host(text: &str) -> Result<Host, AddressError> {
    if text.is_empty() {
        return Ok(Host::Any);
    }
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Ok(Host::Ip(ip.into()));
    }
    check_name(text)?;
    Ok(Host::Name(text.to_owned()))
}

fn parse_port(text: &str) -> Result<u16, AddressError> {
    if text.is_empty() {
        return Err(AddressError::NoPort);
    }
    let behind = text.trim_start_matches(|c: char| c.is_ascii_digit());
    if behind.len() < text.len() && behind.starts_with(['/', '&', ';']) {
        return Err(AddressError::BehindPort);
    }
    // The parser of u16 alone would let a sign pass.
    if !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(AddressError::BadPort);
    }
    text.parse().map_err(|_| AddressError::BadPort)
}

/// The name without the dot of the root zone.
fn without_root(name: &str) -> &str {
    name.strip_suffix('.').unwrap_or(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> Address {
        Address::parse(text).unwrap()
    }

    #[test]
    fn addresses_print_as_they_were_read() {
        let longest = format!("{0}.{0}.{0}.{1}:1", "a".repeat(63), "b".repeat(61));
        for text in [
            "example.com:80",
            "my_host-1:0",
            "1.2.3.4:65535",
            "[::]:10101",
            "[2001:db8::1]:53",
            ":8080",
            "example.com.:80",
            "1.example:80",
            &longest,
        ] {
            assert_eq!(address(text).to_string(), text);
        }
        assert_eq!(address("[0:0::1]:080").to_string(), "[::1]:80");
    }

    #[test]
    fn each_fault_has_its_error() {
        use AddressError::*;
        let long_name = format!("{0}.{0}.{0}.{1}:1", "a".repeat(63), "b".repeat(62));
        let long_label = format!("{}:1", "a".repeat(64));
        for (text, error) in [
            ("", Empty),
            ("host", NoPort),
            ("host:", NoPort),
            (":", NoPort),
            ("[::1]", NoPort),
            ("[::1]80", NoPort),
            ("host:65536", BadPort),
            ("host:+80", BadPort),
            ("host:-1", BadPort),
            ("host:8o", BadPort),
            ("host:/80", BadPort),
            ("host:80/", BehindPort),
            ("host:80/path", BehindPort),
            ("host:80&mode=1", BehindPort),
            ("http://host:80", Scheme),
            ("http://host", Scheme),
            ("::1:80", Brackets),
            ("[::1:80", Brackets),
            ("[fe80::1%eth0]:80", BadIpv6),
            ("[1.2.3.4]:80", BadIpv6),
            ("[]:80", BadIpv6),
            ("1.2.3:80", BadIpv4),
            ("1.2.3.256:80", BadIpv4),
            ("80:80", BadIpv4),
            ("a..b:80", BadName),
            (".:80", BadName),
            ("a b:80", BadName),
            ("h%41:80", BadName),
            ("münchen.de:80", BadName),
            ("a]:80", BadName),
            (&long_name, LongName),
            (&long_label, LongName),
        ] {
            assert_eq!(Address::parse(text), Err(error), "{text}");
        }
    }

    #[test]
    fn a_program_may_not_feed_itself() {
        for (tunnel, target) in [
            (":80", ":80"),
            (":80", "127.0.0.1:80"),
            ("0.0.0.0:80", "localhost:80"),
            ("[::]:80", "[::1]:80"),
            ("127.0.0.1:80", "[::1]:80"),
            ("LocalHost.:80", "127.0.0.1:80"),
            ("[::ffff:127.0.0.1]:80", "0.0.0.0:80"),
            ("10.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1:80", "[::ffff:10.0.0.1]:80"),
            ("Example.com:80", "example.COM.:80"),
        ] {
            assert!(address(tunnel).feeds(&address(target)), "{tunnel} {target}");
            assert!(address(target).feeds(&address(tunnel)), "{target} {tunnel}");
        }
    }

    #[test]
    fn different_addresses_are_no_loop() {
        for (tunnel, target) in [
            (":80", ":81"),
            (":0", ":0"),
            (":80", "10.0.0.1:80"),
            ("0.0.0.0:80", "example.com:80"),
            ("[::]:80", "[2001:db8::1]:80"),
            ("127.0.0.1:80", "10.0.0.1:80"),
            ("10.0.0.1:80", "10.0.0.2:80"),
            ("a.example:80", "b.example:80"),
        ] {
            assert!(
                !address(tunnel).feeds(&address(target)),
                "{tunnel} {target}"
            );
        }
    }
}
