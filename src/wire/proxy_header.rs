//! The PROXY protocol header, which tells a target who its visitor is.
//!
//! Source: the PROXY protocol, HAProxy Technologies, versions 1 (section 2.1) and 2 (section 2.2).

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

/// Signature of a version 2 header.
const SIGNATURE: &[u8; 12] = b"\r\n\r\n\0\r\nQUIT\n";

/// Longest header of either version (bytes).
pub const PROXY_HEADER_SIZE_MAX: usize = 107;

/// Version 2, command PROXY: the connection is made on behalf of another.
const VERSION_2_PROXY: u8 = 0x21;
/// TCP over IPv4.
const TCP_OVER_V4: u8 = 0x11;
/// TCP over IPv6.
const TCP_OVER_V6: u8 = 0x21;

/// Returns the version 1 header: one line of text, line end included.
///
/// `visitor` is where the connection came from, `entry` the address that it came to. Where their
/// families differ, the IPv4 one is written as an IPv4-mapped IPv6 address.
pub fn encode_v1(visitor: SocketAddr, entry: SocketAddr) -> Vec<u8> {
    let (source, destination, family) = match same_family(visitor, entry) {
        Pair::V4(source, destination) => (source.to_string(), destination.to_string(), "TCP4"),
        Pair::V6(source, destination) => (source.to_string(), destination.to_string(), "TCP6"),
    };
    let (source_port, destination_port) = (visitor.port(), entry.port());
    format!("PROXY {family} {source} {destination} {source_port} {destination_port}\r\n")
        .into_bytes()
}

/// Returns the version 2 header: 28 bytes for IPv4, 52 for IPv6.
///
/// The arguments are those of [`encode_v1`].
pub fn encode_v2(visitor: SocketAddr, entry: SocketAddr) -> Vec<u8> {
    let mut header = SIGNATURE.to_vec();
    header.push(VERSION_2_PROXY);
    match same_family(visitor, entry) {
        Pair::V4(source, destination) => {
            header.extend([TCP_OVER_V4, 0, 12]);
            header.extend(source.octets());
            header.extend(destination.octets());
        }
        Pair::V6(source, destination) => {
            header.extend([TCP_OVER_V6, 0, 36]);
            header.extend(source.octets());
            header.extend(destination.octets());
        }
    }
    header.extend(visitor.port().to_be_bytes());
    header.extend(entry.port().to_be_bytes());
    header
}

enum Pair {
    V4(std::net::Ipv4Addr, std::net::Ipv4Addr),
    V6(Ipv6Addr, Ipv6Addr),
}

/// Returns both addresses in one family. A visitor of a listener for both families has an
/// IPv4-mapped address: what it is called there is nothing that a target wants to know.
fn same_family(visitor: SocketAddr, entry: SocketAddr) -> Pair {
    match (visitor.ip().to_canonical(), entry.ip().to_canonical()) {
        (IpAddr::V4(source), IpAddr::V4(destination)) => Pair::V4(source, destination),
        (source, destination) => Pair::V6(as_v6(source), as_v6(destination)),
    }
}

fn as_v6(address: IpAddr) -> Ipv6Addr {
    match address {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn address(text: &str) -> SocketAddr {
        text.parse().unwrap()
    }

    #[test]
    fn version_1_is_a_line_of_text() {
        assert_eq!(
            encode_v1(address("203.0.113.9:51234"), address("192.0.2.1:443")),
            b"PROXY TCP4 203.0.113.9 192.0.2.1 51234 443\r\n"
        );
        assert_eq!(
            encode_v1(address("[2001:db8::9]:51234"), address("[2001:db8::1]:443")),
            b"PROXY TCP6 2001:db8::9 2001:db8::1 51234 443\r\n"
        );
    }

    #[test]
    fn no_header_is_longer_than_the_specification_allows() {
        let longest = address("[ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff]:65535");
        assert!(encode_v1(longest, longest).len() <= PROXY_HEADER_SIZE_MAX);
        assert!(encode_v2(longest, longest).len() <= PROXY_HEADER_SIZE_MAX);
    }

    #[test]
    fn version_2_is_binary() {
        let mut expected = b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c".to_vec();
        expected.extend([203, 0, 113, 9, 192, 0, 2, 1, 0xc8, 0x22, 1, 0xbb]);
        assert_eq!(
            encode_v2(address("203.0.113.9:51234"), address("192.0.2.1:443")),
            expected
        );
        let long = encode_v2(address("[2001:db8::9]:51234"), address("[2001:db8::1]:443"));
        assert_eq!(long.len(), 16 + 36);
        assert_eq!(&long[12..16], b"\x21\x21\0\x24");
        assert_eq!(&long[48..], [0xc8, 0x22, 1, 0xbb]);
    }

    #[test]
    fn mapped_addresses_are_shown_as_ipv4() {
        let mapped = encode_v1(
            address("[::ffff:203.0.113.9]:1"),
            address("[::ffff:192.0.2.1]:2"),
        );
        assert_eq!(mapped, b"PROXY TCP4 203.0.113.9 192.0.2.1 1 2\r\n");
    }

    #[test]
    fn mixed_families_become_ipv6() {
        let mixed = encode_v1(address("203.0.113.9:1"), address("[2001:db8::1]:2"));
        assert_eq!(mixed, b"PROXY TCP6 ::ffff:203.0.113.9 2001:db8::1 1 2\r\n");
    }
}
