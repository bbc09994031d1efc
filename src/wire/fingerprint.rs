//! The fingerprint of a certificate: SHA-256 of its DER form, written `sha256:AA:BB:…`.
//!
//! Source: wire protocol, sections 6 and 8.

use std::fmt;

use sha2::{Digest, Sha256};

use super::shown::shown;

const PREFIX: &str = "sha256:";

/// SHA-256 of a certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint([u8; 32]);

/// What a v1 peer says the fingerprint is, in its own words.
///
/// May be empty or no fingerprint at all: then it matches none.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FingerprintClaim(String);

impl Fingerprint {
    /// Returns the fingerprint of the certificate whose DER form is `der`.
    pub fn of_certificate(der: &[u8]) -> Self {
        Self(Sha256::digest(der).into())
    }

    /// Returns the fingerprint that `text` writes; `None` if it is not exactly as
    /// [`Display`](fmt::Display) would write it.
    pub fn parse(text: &str) -> Option<Self> {
        let mut pairs = text.strip_prefix(PREFIX)?.split(':');
        let mut bytes = [0; 32];
        for byte in &mut bytes {
            let pair = pairs.next()?;
            let upper = |digit: u8| matches!(digit, b'0'..=b'9' | b'A'..=b'F');
            if pair.len() != 2 || !pair.bytes().all(upper) {
                return None;
            }
            *byte = u8::from_str_radix(pair, 16).ok()?;
        }
        pairs.next().is_none().then_some(Self(bytes))
    }
}

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pairs: Vec<String> = self.0.iter().map(|byte| format!("{byte:02X}")).collect();
        write!(f, "{PREFIX}{}", pairs.join(":"))
    }
}

impl FingerprintClaim {
    /// Takes what a peer wrote.
    pub(super) fn new(text: String) -> Self {
        Self(text)
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }

    /// Returns whether the peer claims nothing.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns whether the peer claims exactly `fingerprint`.
    pub fn is(&self, fingerprint: &Fingerprint) -> bool {
        self.0 == fingerprint.to_string()
    }
}

impl From<Fingerprint> for FingerprintClaim {
    fn from(fingerprint: Fingerprint) -> Self {
        Self(fingerprint.to_string())
    }
}

impl fmt::Display for FingerprintClaim {
    /// Escaped, and cut unless it is a fingerprint.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if Fingerprint::parse(&self.0).is_some() {
            f.write_str(&self.0)
        } else {
            f.write_str(&shown(&self.0))
        }
    }
}

#[cfg(test)]
mod tests {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::super::mutation::Xorshift;
    use super::*;

    const RECORDED: &str = "sha256:6B:30:A8:CD:2E:A0:B0:99:B0:3E:1D:4F:76:EB:99:0B:92:B0:37:24:\
                            E1:40:2C:5A:22:DF:EB:DB:98:6D:17:A0";

    #[test]
    fn fingerprint_of_the_recorded_certificate_is_the_recorded_one() {
        let pem = include_str!("../../tests/vectors/v1/server-certificate.pem");
        let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
        let fingerprint = Fingerprint::of_certificate(&STANDARD.decode(body).unwrap());
        assert_eq!(fingerprint.to_string(), RECORDED);
        assert_eq!(Fingerprint::parse(RECORDED), Some(fingerprint));
        assert!(FingerprintClaim::new(RECORDED.to_owned()).is(&fingerprint));
        assert_eq!(FingerprintClaim::from(fingerprint).to_string(), RECORDED);
    }

    #[test]
    fn fingerprint_has_one_spelling() {
        let lower = RECORDED.to_ascii_lowercase();
        let longer = format!("{RECORDED}:00");
        let signed = RECORDED.replace("6B", "+B");
        let wrong = [
            "",
            "sha256:",
            &RECORDED[7..],
            &RECORDED[..99],
            &lower,
            &longer,
            &signed,
        ];
        for text in wrong {
            assert_eq!(Fingerprint::parse(text), None, "{text}");
        }
    }

    #[test]
    fn a_claim_that_is_none_is_shown_harmless() {
        let claim = FingerprintClaim::new(format!("\u{1b}[31m{}", "x".repeat(100)));
        assert!(claim.to_string().starts_with("\\u{1b}[31mxxx"));
        assert!(claim.to_string().ends_with("..."));
        assert!(!claim.is(&Fingerprint([0; 32])));
        assert!(FingerprintClaim::default().is_empty() && !claim.is_empty());
    }

    #[test]
    fn fingerprint_survives_damage() {
        let mut random = Xorshift::new(2);
        for _ in 0..2_000 {
            let fingerprint = Fingerprint(random.bytes());
            let text = fingerprint.to_string();
            assert_eq!(Fingerprint::parse(&text), Some(fingerprint));
            let damaged = random.damage(text.as_bytes());
            if let Ok(damaged) = str::from_utf8(&damaged)
                && let Some(parsed) = Fingerprint::parse(damaged)
            {
                assert_eq!(parsed.to_string(), damaged);
            }
        }
    }
}
