//! What a new connection on the tunnel port speaks, by its first bytes.
//!
//! The same holds for the bytes inside TLS. A v1 TCP pool connection says nothing: it waits for
//! its id, so silence is an answer too, once the caller has waited for a while.
//!
//! Source: wire protocol, sections 4 and 8.

use super::sniff::{Verdict, recognise_http};

/// The bytes that start a native TCP pool connection; its ticket follows.
pub const NATIVE_MAGIC: &[u8; 4] = b"NPC1";

/// The record type of a TLS handshake (RFC 8446 section 5.1).
pub const TLS_HANDSHAKE: u8 = 0x16;

/// What a connection turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Opening {
    /// TLS; what is inside is to be told apart the same way.
    Tls,
    /// An HTTP request: a handshake, a WebSocket or a mistake.
    Http,
    /// A native TCP pool connection.
    Native,
    /// A v1 TCP pool connection, if its address has a session of that kind.
    Silence,
    /// Something else.
    Unknown,
}

/// Whether a connection that says nothing may still be about to speak.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Grace {
    /// It is new.
    Running,
    /// It has been given its time.
    Over,
}

/// Returns what `prefix`, all bytes so far, is the start of; `None` while that is open.
///
/// Beyond four bytes `None` only for what may become a request, and never for more than the longest
/// start of one has. Whoever has begun to speak is waited for, grace or not, until the handshake
/// timeout.
pub fn recognise_opening(prefix: &[u8], grace: Grace) -> Option<Opening> {
    match prefix.first() {
        None if grace == Grace::Over => return Some(Opening::Silence),
        None => return None,
        Some(&TLS_HANDSHAKE) => return Some(Opening::Tls),
        Some(_) => {}
    }
    if prefix.starts_with(NATIVE_MAGIC) {
        return Some(Opening::Native);
    }
    if NATIVE_MAGIC.starts_with(prefix) {
        return None;
    }
    match recognise_http(prefix) {
        Verdict::Is(_) => Some(Opening::Http),
        Verdict::Other => Some(Opening::Unknown),
        Verdict::MayBe(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the first answer that is one, and checks that longer prefixes do not change it.
    fn opening(bytes: &[u8]) -> Option<Opening> {
        let mut decided = None;
        for end in 1..=bytes.len() {
            let running = recognise_opening(&bytes[..end], Grace::Running);
            assert_eq!(running, recognise_opening(&bytes[..end], Grace::Over));
            assert!(decided.is_none() || decided == running);
            decided = running;
        }
        decided
    }

    #[test]
    fn openings_are_told_apart() {
        assert_eq!(opening(b"\x16"), Some(Opening::Tls));
        assert_eq!(opening(b"\x16\x03\x01"), Some(Opening::Tls));
        assert_eq!(opening(b"GET / HTTP/1.1"), Some(Opening::Http));
        assert_eq!(opening(b"POST /"), Some(Opening::Http));
        assert_eq!(opening(b"get /"), Some(Opening::Http));
        assert_eq!(opening(b"PRI * HT"), Some(Opening::Http));
        assert_eq!(opening(b"NPC1\0\0"), Some(Opening::Native));
        let unknown: [&[u8]; 6] = [
            b"\0",
            b"SSH-2.0",
            b"\x05\x01\0",
            b"NPC2",
            b"GETTING started",
            b"NPC 1",
        ];
        for bytes in unknown {
            assert_eq!(opening(bytes), Some(Opening::Unknown), "{bytes:?}");
        }
    }

    #[test]
    fn a_start_of_something_is_undecided() {
        for bytes in [&b"G"[..], b"GET", b"N", b"NPC", b"NPCs", b"get ", b"\r\n"] {
            assert_eq!(opening(bytes), None, "{bytes:?}");
        }
    }

    #[test]
    fn silence_counts_after_the_grace() {
        assert_eq!(recognise_opening(b"", Grace::Running), None);
        assert_eq!(recognise_opening(b"", Grace::Over), Some(Opening::Silence));
    }

    #[test]
    fn the_longest_start_is_always_decided() {
        for first in 0..=255 {
            for second in 0..=255 {
                for fill in [0, b'A', b'\n'] {
                    let mut prefix = [fill; 40];
                    (prefix[0], prefix[1]) = (first, second);
                    assert!(recognise_opening(&prefix, Grace::Running).is_some());
                }
            }
        }
    }
}
