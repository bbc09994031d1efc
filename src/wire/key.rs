//! The tunnel key: what both ends must know to talk to each other.
//!
//! The key is never shown: [`Debug`](fmt::Debug) and [`Display`](fmt::Display) print `***`.

use std::{fmt, hint};

/// What stands in every log line, error and URL where a key would be.
pub const HIDDEN_KEY: &str = "***";

/// The bytes of a tunnel key. Equality takes the same time wherever the first difference is.
#[derive(Clone)]
pub struct TunnelKey(Vec<u8>);

impl TunnelKey {
    /// Takes the bytes as they are; percent-decoding is the caller's.
    pub fn new(bytes: Vec<u8>) -> Self {
        Self(bytes)
    }

    /// The key itself, for proofs and for the control link.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// The key of a tunnel without one: its port in hexadecimal, lower case, no padding.
    ///
    /// It protects nothing: whoever reaches the port knows it.
    pub fn derived_from_port(port: u16) -> Self {
        Self(format!("{port:x}").into_bytes())
    }

    /// The key that some v1 programs derive instead: FNV-1a 32 of the decimal port, 8 hex digits.
    pub fn derived_fnv(port: u16) -> Self {
        const OFFSET_BASIS: u32 = 0x811c_9dc5;
        const PRIME: u32 = 0x0100_0193;
        let hash = port.to_string().bytes().fold(OFFSET_BASIS, |hash, byte| {
            (hash ^ u32::from(byte)).wrapping_mul(PRIME)
        });
        Self(format!("{hash:08x}").into_bytes())
    }
}

/// The keys that a server accepts: one, or those that programs derive where none is set.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerKeys(Vec<TunnelKey>);

impl ServerKeys {
    /// The key that the operator has set.
    pub fn explicit(key: TunnelKey) -> Self {
        Self(vec![key])
    }

    /// Both keys that are derived from `port`, the tunnel port.
    pub fn derived(port: u16) -> Self {
        Self(vec![
            TunnelKey::derived_from_port(port),
            TunnelKey::derived_fnv(port),
        ])
    }

    /// The keys, in the order in which a client tries them; never empty.
    pub fn as_slice(&self) -> &[TunnelKey] {
        &self.0
    }
}

impl PartialEq for TunnelKey {
    /// Only the lengths show in the time it takes.
    fn eq(&self, other: &Self) -> bool {
        same_bytes(&self.0, &other.0)
    }
}

/// Returns whether both are the same; of two with one length, in a time that does not tell where
/// they differ.
pub(crate) fn same_bytes(left: &[u8], right: &[u8]) -> bool {
    if left.len() != right.len() {
        return false;
    }
    let pairs = left.iter().zip(right);
    // The compiler may not stop at the first difference.
    let difference = pairs.fold(0, |seen, (a, b)| hint::black_box(seen | (a ^ b)));
    difference == 0
}

impl Eq for TunnelKey {}

impl fmt::Debug for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN_KEY)
    }
}

impl fmt::Display for TunnelKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN_KEY)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn port_in_hexadecimal_is_the_derived_key() {
        assert_eq!(TunnelKey::derived_from_port(10101).as_bytes(), b"2775");
        assert_eq!(TunnelKey::derived_from_port(80).as_bytes(), b"50");
        assert_eq!(TunnelKey::derived_from_port(65535).as_bytes(), b"ffff");
    }

    #[test]
    fn fnv_key_has_eight_digits() {
        // Computed apart from this program; "0" and "10101" are what is hashed.
        assert_eq!(TunnelKey::derived_fnv(0).as_bytes(), b"350ca8af");
        assert_eq!(TunnelKey::derived_fnv(10101).as_bytes(), b"e68be2b4");
        assert!((0..=u16::MAX).all(|port| TunnelKey::derived_fnv(port).as_bytes().len() == 8));
    }

    #[test]
    fn keys_are_equal_byte_for_byte() {
        let key = TunnelKey::new(b"secret".to_vec());
        assert_eq!(key, TunnelKey::new(b"secret".to_vec()));
        for other in [&b"secres"[..], b"Secret", b"secre", b"secrets", b""] {
            assert_ne!(key, TunnelKey::new(other.to_vec()));
        }
    }

    #[test]
    fn key_is_never_printed() {
        let key = TunnelKey::new(b"secret".to_vec());
        assert_eq!(
            format!("{key} {key:?} {:?}", Some(&key)),
            "*** *** Some(***)"
        );
    }
}
