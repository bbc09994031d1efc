//! What a server that keeps nothing about strangers has them bring back: tokens of Retry packets,
//! and the tokens that tell a client of a connection that the server has lost.
//!
//! Source: RFC 9000 sections 8.1 and 10.3.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::limits::{QUIC_ID_SIZE, QUIC_TOKEN_AGE_MAX};
use crate::wire::key::same_bytes;
use crate::wire::proof::{SHORT_PROOF_SIZE, authenticate_short};

/// A connection id that this program has chosen.
pub type OwnId = [u8; QUIC_ID_SIZE];

/// Size of the time in a token (bytes).
const TIME_SIZE: usize = 8;

/// Makes the tokens of Retry packets, and knows them again: each counts for one address, one pair
/// of connection ids and a short time.
pub struct RetryTokens {
    secret: [u8; 32],
    /// What tokens are dated from.
    started_at: Instant,
}

impl RetryTokens {
    /// Takes 32 bytes that nobody can guess.
    pub fn new(secret: [u8; 32]) -> Self {
        Self {
            secret,
            started_at: Instant::now(),
        }
    }

    /// Returns a token for a client at `address` that called the server `original_id`, and is told
    /// to call it `id`.
    pub fn issue(
        &self,
        address: SocketAddr,
        original_id: &[u8],
        id: &OwnId,
        now: Instant,
    ) -> Vec<u8> {
        let age = now.saturating_duration_since(self.started_at);
        let millis = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
        let time = millis.to_be_bytes();
        let mac = self.mac(address, &time, id, original_id);
        [&time[..], &mac, original_id].concat()
    }

    /// Returns how the client of a token called the server at first, if the token was made for
    /// `address` and `id` a short while ago.
    pub fn check<'t>(
        &self,
        token: &'t [u8],
        address: SocketAddr,
        id: &OwnId,
        now: Instant,
    ) -> Option<&'t [u8]> {
        let (time, rest) = token.split_first_chunk::<TIME_SIZE>()?;
        let (mac, original_id) = rest.split_first_chunk::<SHORT_PROOF_SIZE>()?;
        if !same_bytes(mac, &self.mac(address, time, id, original_id)) {
            return None;
        }
        let made_at = self.started_at + Duration::from_millis(u64::from_be_bytes(*time));
        let age = now.saturating_duration_since(made_at);
        (age <= QUIC_TOKEN_AGE_MAX).then_some(original_id)
    }

    fn mac(
        &self,
        address: SocketAddr,
        time: &[u8; TIME_SIZE],
        id: &OwnId,
        original_id: &[u8],
    ) -> [u8; SHORT_PROOF_SIZE] {
        let ip = match address.ip() {
            IpAddr::V4(ip) => ip.to_ipv6_mapped(),
            IpAddr::V6(ip) => ip,
        };
        let port = address.port().to_be_bytes();
        let parts: [&[u8]; 5] = [time, &ip.octets(), &port, id, original_id];
        authenticate_short(&self.secret, "nodepass quic retry", &parts)
    }
}

/// Makes the tokens that end connections which the server no longer knows. They come from a key
/// that outlives the program, so that its clients learn at once that it was started again.
pub struct ResetTokens {
    key: Vec<u8>,
}

impl ResetTokens {
    /// Takes what only the server and its clients know.
    pub fn new(key: &[u8]) -> Self {
        Self { key: key.to_vec() }
    }

    /// Returns the token of the connection that calls the server `id`.
    pub fn of(&self, id: &OwnId) -> u128 {
        let token = authenticate_short(&self.key, "nodepass quic reset", &[id]);
        u128::from_be_bytes(token)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ID: OwnId = [7; QUIC_ID_SIZE];
    const ORIGINAL: &[u8] = b"what the client chose";

    fn address(port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, 7], port))
    }

    #[test]
    fn a_token_counts_for_its_address_and_ids_and_for_a_while() {
        let tokens = RetryTokens::new([1; 32]);
        let now = Instant::now();
        let token = tokens.issue(address(4), ORIGINAL, &ID, now);
        assert_eq!(tokens.check(&token, address(4), &ID, now), Some(ORIGINAL));
        assert_eq!(tokens.check(&token, address(5), &ID, now), None);
        assert_eq!(tokens.check(&token, address(4), &[8; 8], now), None);
        let late = now + QUIC_TOKEN_AGE_MAX + Duration::from_secs(1);
        assert_eq!(tokens.check(&token, address(4), &ID, late), None);
        let other_server = RetryTokens::new([2; 32]);
        assert_eq!(other_server.check(&token, address(4), &ID, now), None);
    }

    #[test]
    fn an_altered_token_does_not_count() {
        let tokens = RetryTokens::new([1; 32]);
        let now = Instant::now();
        let token = tokens.issue(address(4), ORIGINAL, &ID, now);
        for index in 0..token.len() {
            let mut altered = token.clone();
            altered[index] ^= 1;
            assert_eq!(
                tokens.check(&altered, address(4), &ID, now),
                None,
                "{index}"
            );
        }
        for size in 0..token.len() {
            assert_eq!(tokens.check(&token[..size], address(4), &ID, now), None);
        }
    }

    #[test]
    fn reset_tokens_come_from_the_key_and_the_id() {
        let token = ResetTokens::new(b"key").of(&ID);
        assert_eq!(ResetTokens::new(b"key").of(&ID), token);
        assert_ne!(ResetTokens::new(b"other").of(&ID), token);
        assert_ne!(ResetTokens::new(b"key").of(&[8; 8]), token);
    }
}
