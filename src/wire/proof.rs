//! Proofs that a peer knows a key, without the key.
//!
//! `H(k, label, parts…)` of the protocol is [`authenticate`]. A [`KeyVerified`] exists only where
//! an offered proof was compared with the one that the key gives, and only from it can a
//! [`SessionKey`] be made. Never prints a key.
//!
//! Source: wire protocol, sections 3 and 8; RFC 2104.

use std::fmt;

use hmac::{Hmac, KeyInit, Mac};
use sha2::Sha256;

use super::key::{HIDDEN_KEY, TunnelKey, same_bytes};

/// Size of a proof (bytes).
pub const PROOF_SIZE: usize = 32;

/// Size of a proof that is cut to its first bytes: tickets, signals, challenges (bytes).
pub const SHORT_PROOF_SIZE: usize = 16;

const HEX_DIGITS: &[u8; 16] = b"0123456789abcdef";

/// The 32 bytes that one side of a native handshake gives the other one to prove the key over.
pub type Nonce = [u8; 32];

/// The name of a native session: not secret.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct SessionId(pub [u8; 16]);

/// The peer has shown that it knows this tunnel key. Only the handshakes make one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyVerified {
    key: TunnelKey,
}

/// The key of one native session: tickets and signals are proven with it.
#[derive(Clone)]
pub struct SessionKey([u8; PROOF_SIZE]);

/// Returns HMAC-SHA256 over `label`, a zero byte and `parts`, keyed with `key`.
///
/// The parts follow each other without anything between them: all but the last must have a fixed
/// size.
///
/// Source: wire protocol, section 8, "H".
pub fn authenticate(key: &[u8], label: &str, parts: &[&[u8]]) -> [u8; PROOF_SIZE] {
    let mut mac = keyed(key);
    mac.update(label.as_bytes());
    mac.update(&[0]);
    for part in parts {
        mac.update(part);
    }
    mac.finalize().into_bytes().into()
}

/// Returns the first half of what [`authenticate`] returns.
pub fn authenticate_short(key: &[u8], label: &str, parts: &[&[u8]]) -> [u8; SHORT_PROOF_SIZE] {
    let proof = authenticate(key, label, parts);
    std::array::from_fn(|index| proof[index])
}

/// Returns what a v1 client sends to show that it knows `key`: HMAC-SHA256 over nothing.
///
/// Whoever sees it can use it again.
pub fn bearer_token(key: &TunnelKey) -> [u8; PROOF_SIZE] {
    keyed(key.as_bytes()).finalize().into_bytes().into()
}

fn keyed(key: &[u8]) -> Hmac<Sha256> {
    Hmac::new_from_slice(key).expect("HMAC takes keys of any length")
}

impl KeyVerified {
    /// Returns the key of `keys` whose proof, made by `expect`, is `offered`.
    ///
    /// Tries all of them, whichever fits, so that the time tells nothing.
    pub(super) fn check(
        keys: &[TunnelKey],
        offered: &[u8; PROOF_SIZE],
        expect: impl Fn(&TunnelKey) -> [u8; PROOF_SIZE],
    ) -> Option<Self> {
        let mut matched = None;
        for key in keys {
            if same_bytes(offered, &expect(key)) {
                matched = Some(key);
            }
        }
        matched.map(|key| Self { key: key.clone() })
    }

    /// The key that the peer knows.
    pub fn key(&self) -> &TunnelKey {
        &self.key
    }
}

impl SessionKey {
    /// Returns the key of `session`, agreed on with these nonces.
    pub fn derive(
        verified: &KeyVerified,
        client_nonce: &Nonce,
        server_nonce: &Nonce,
        session: SessionId,
    ) -> Self {
        Self(authenticate(
            verified.key.as_bytes(),
            "nodepass session",
            &[client_nonce, server_nonce, &session.0],
        ))
    }

    pub(super) fn as_bytes(&self) -> &[u8; PROOF_SIZE] {
        &self.0
    }

    /// A key out of nothing, for tests of what is built on one.
    #[cfg(test)]
    pub(super) fn for_test(byte: u8) -> Self {
        Self([byte; PROOF_SIZE])
    }
}

impl fmt::Debug for SessionKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN_KEY)
    }
}

impl fmt::Display for SessionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&encode_hex(&self.0))
    }
}

/// Returns two lower-case digits for each byte.
pub fn encode_hex(bytes: &[u8]) -> String {
    let mut text = String::with_capacity(bytes.len() * 2);
    for byte in bytes {
        for digit in [byte >> 4, byte & 0x0f] {
            text.push(char::from(HEX_DIGITS[usize::from(digit)]));
        }
    }
    text
}

/// Returns the `N` bytes that `text` writes; `None` if it is not exactly `2 * N` lower-case
/// hexadecimal digits.
///
/// One value has one spelling: what is not as we would write it is refused.
pub fn decode_hex<const N: usize>(text: &[u8]) -> Option<[u8; N]> {
    let (pairs, []) = text.as_chunks::<2>() else {
        return None;
    };
    let pairs: &[[u8; 2]; N] = pairs.try_into().ok()?;
    let mut bytes = [0; N];
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = decode_digit(*high)? << 4 | decode_digit(*low)?;
    }
    Some(bytes)
}

fn decode_digit(digit: u8) -> Option<u8> {
    match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::super::mutation::Xorshift;
    use super::*;

    #[test]
    fn mac_is_the_one_of_the_standard() {
        // RFC 4231 section 4.3.
        let mut mac = keyed(b"Jefe");
        mac.update(b"what do ya want for nothing?");
        assert_eq!(
            encode_hex(&mac.finalize().into_bytes()),
            "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"
        );
    }

    #[test]
    fn label_is_followed_by_a_zero_byte_and_the_parts() {
        let mut mac = keyed(b"key");
        mac.update(b"label\0onetwo");
        let expected: [u8; 32] = mac.finalize().into_bytes().into();
        assert_eq!(authenticate(b"key", "label", &[b"one", b"two"]), expected);
        assert_eq!(
            authenticate_short(b"key", "label", &[b"onetwo"]),
            expected[..16]
        );
        assert_ne!(authenticate(b"key", "labelo", &[b"netwo"]), expected);
    }

    #[test]
    fn bearer_token_is_the_recorded_one() {
        let token = bearer_token(&TunnelKey::new(b"k3y".to_vec()));
        assert_eq!(
            encode_hex(&token),
            "6debfeadd8df80dd8b3762fd569962db0f3bfbbe252972c28341591bf823aa2c"
        );
    }

    #[test]
    fn the_key_that_matched_is_the_verified_one() {
        let keys = [b"one", b"two"].map(|key| TunnelKey::new(key.to_vec()));
        for key in &keys {
            let verified = KeyVerified::check(&keys, &bearer_token(key), bearer_token).unwrap();
            assert_eq!(verified.key(), key);
        }
        let other = bearer_token(&TunnelKey::new(b"three".to_vec()));
        assert_eq!(KeyVerified::check(&keys, &other, bearer_token), None);
        assert_eq!(KeyVerified::check(&[], &other, bearer_token), None);
    }

    #[test]
    fn session_key_depends_on_everything_and_is_never_printed() {
        let verified = |key: &[u8]| KeyVerified {
            key: TunnelKey::new(key.to_vec()),
        };
        let derive = |key, cn, sn, id| {
            *SessionKey::derive(&verified(key), &[cn; 32], &[sn; 32], SessionId([id; 16]))
                .as_bytes()
        };
        let first = derive(b"key", 1, 2, 3);
        assert_eq!(first, derive(b"key", 1, 2, 3));
        for other in [
            derive(b"kez", 1, 2, 3),
            derive(b"key", 2, 1, 3),
            derive(b"key", 1, 9, 3),
            derive(b"key", 1, 2, 4),
        ] {
            assert_ne!(first, other);
        }
        assert_eq!(format!("{:?}", SessionKey(first)), "***");
        assert!(format!("{:?}", verified(b"key")).contains("***"));
    }

    #[test]
    fn hex_has_one_spelling_and_a_fixed_size() {
        assert_eq!(encode_hex(&[0x00, 0x9f, 0xa0]), "009fa0");
        assert_eq!(decode_hex(b"009fa0"), Some([0x00, 0x9f, 0xa0]));
        assert_eq!(decode_hex::<0>(b""), Some([]));
        let wrong: [&[u8]; 8] = [
            b"",
            b"009fa",
            b"009fa00",
            b"009fa000",
            b"009FA0",
            b"009fg0",
            b" 09fa0",
            b"0x9fa0",
        ];
        for text in wrong {
            assert_eq!(decode_hex::<3>(text), None);
        }
    }

    #[test]
    fn hex_survives_damage() {
        let mut random = Xorshift::new(1);
        for _ in 0..2_000 {
            let bytes: [u8; 16] = random.bytes();
            let text = encode_hex(&bytes);
            assert_eq!(decode_hex(text.as_bytes()), Some(bytes));
            let damaged = random.damage(text.as_bytes());
            if let Some(decoded) = decode_hex::<16>(&damaged) {
                assert_eq!(encode_hex(&decoded).as_bytes(), damaged);
            }
        }
    }
}
