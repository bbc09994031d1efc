//! The server's nonce: a challenge that needs no memory until it is answered.
//!
//! sn is 8 bytes time, 8 random bytes and 16 bytes of `H(boot secret, "nodepass nonce", time,
//! random, cn)`: it shows by itself that this server made it, for which client and when. It counts
//! for [`CHALLENGE_AGE_MAX`], and once: [`AnsweredChallenges`] remembers those that came back with
//! a right proof.
//!
//! Source: wire protocol, section 8, "Handshake".

use std::collections::BTreeSet;
use std::fmt;
use std::time::Duration;

use super::super::key::{HIDDEN_KEY, same_bytes};
use super::super::proof::{Nonce, authenticate_short};
use crate::limits::{CHALLENGE_AGE_MAX, CHALLENGES_REMEMBERED_MAX};

/// Size of the time in a challenge (bytes).
const TIME_SIZE: usize = 8;
/// Size of what the MAC of a challenge covers: time and random bytes.
const STAMP_SIZE: usize = 16;

/// What only this server knows, drawn at random when it starts.
pub struct BootSecret([u8; 32]);

/// The challenges that were answered and have not expired.
///
/// Bounded: when it is full, new ones are refused rather than old ones forgotten.
#[derive(Debug, Default)]
pub struct AnsweredChallenges {
    /// Sorted by their time, with which they start.
    answered: BTreeSet<Nonce>,
    /// The latest time at which one was remembered: what had expired by then is forgotten.
    latest: Duration,
}

/// Why an answered challenge does not count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChallengeError {
    /// This server did not make it, not for this client, or before it was restarted.
    Foreign,
    /// It is older than [`CHALLENGE_AGE_MAX`].
    Expired,
    /// It was answered before.
    Repeated,
    /// Too many were answered of late.
    Full,
}

/// This server made the challenge, for that client, a short while ago. Only
/// [`BootSecret::check`] makes one.
#[derive(Debug)]
pub(super) struct Fresh(Nonce);

impl BootSecret {
    /// Takes 32 bytes that nobody can guess.
    pub fn new(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    /// Returns the challenge for a client that sent `client_nonce` at `now`.
    ///
    /// `now` is the time since any moment that stays the same as long as the server runs; `random`
    /// are fresh random bytes.
    pub(super) fn challenge(&self, client_nonce: &Nonce, now: Duration, random: [u8; 8]) -> Nonce {
        let millis = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
        let mut nonce = [0; 32];
        let (stamp, mac) = nonce.split_at_mut(STAMP_SIZE);
        stamp[..TIME_SIZE].copy_from_slice(&millis.to_be_bytes());
        stamp[TIME_SIZE..].copy_from_slice(&random);
        mac.copy_from_slice(&self.mac(stamp, client_nonce));
        nonce
    }

    /// Returns that `server_nonce` is a challenge for the client with `client_nonce` that counts
    /// at `now`.
    pub(super) fn check(
        &self,
        client_nonce: &Nonce,
        server_nonce: &Nonce,
        now: Duration,
    ) -> Result<Fresh, ChallengeError> {
        let (stamp, mac) = server_nonce.split_at(STAMP_SIZE);
        if !same_bytes(mac, &self.mac(stamp, client_nonce)) {
            return Err(ChallengeError::Foreign);
        }
        // Two threads may read the clock in one order and come here in the other.
        let age = now.saturating_sub(time_of(server_nonce));
        if age > CHALLENGE_AGE_MAX {
            return Err(ChallengeError::Expired);
        }
        Ok(Fresh(*server_nonce))
    }

    fn mac(&self, stamp: &[u8], client_nonce: &Nonce) -> [u8; 16] {
        authenticate_short(&self.0, "nodepass nonce", &[stamp, client_nonce])
    }
}

impl AnsweredChallenges {
    /// Remembers that `challenge` has come back with a right proof, and forgets those that have
    /// expired at `now`.
    pub(super) fn remember(
        &mut self,
        challenge: &Fresh,
        now: Duration,
    ) -> Result<(), ChallengeError> {
        // A thread that read the clock before another one but comes here after it must not bring
        // back what the other one made us forget.
        let now = now.max(self.latest);
        self.latest = now;
        if now.saturating_sub(time_of(&challenge.0)) > CHALLENGE_AGE_MAX {
            return Err(ChallengeError::Expired);
        }
        while let Some(oldest) = self.answered.first()
            && now.saturating_sub(time_of(oldest)) > CHALLENGE_AGE_MAX
        {
            self.answered.pop_first();
        }
        if self.answered.contains(&challenge.0) {
            return Err(ChallengeError::Repeated);
        }
        if self.answered.len() >= CHALLENGES_REMEMBERED_MAX {
            return Err(ChallengeError::Full);
        }
        self.answered.insert(challenge.0);
        Ok(())
    }
}

/// Returns the time at which `nonce` was made.
fn time_of(nonce: &Nonce) -> Duration {
    let (time, _) = nonce.split_first_chunk().expect("8 of 32 bytes");
    Duration::from_millis(u64::from_be_bytes(*time))
}

impl fmt::Debug for BootSecret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(HIDDEN_KEY)
    }
}

impl fmt::Display for ChallengeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Foreign => f.write_str("it answers a challenge that this server did not give it"),
            Self::Expired => write!(
                f,
                "it answers a challenge more than {} s old",
                CHALLENGE_AGE_MAX.as_secs()
            ),
            Self::Repeated => f.write_str("it repeats an answer that was given before"),
            Self::Full => write!(
                f,
                "{CHALLENGES_REMEMBERED_MAX} handshakes within {} s are the most that are accepted",
                CHALLENGE_AGE_MAX.as_secs()
            ),
        }
    }
}

impl std::error::Error for ChallengeError {}

#[cfg(test)]
mod tests {
    use super::*;

    const CLIENT_NONCE: Nonce = [3; 32];
    const START: Duration = Duration::from_secs(1_000);

    fn secret() -> BootSecret {
        BootSecret::new([9; 32])
    }

    fn fresh(now: Duration, number: usize) -> Fresh {
        let random = u64::try_from(number).unwrap().to_be_bytes();
        let nonce = secret().challenge(&CLIENT_NONCE, now, random);
        secret().check(&CLIENT_NONCE, &nonce, now).unwrap()
    }

    #[test]
    fn challenge_is_time_random_bytes_and_a_mac() {
        let nonce = secret().challenge(&CLIENT_NONCE, START, [0xcd; 8]);
        assert_eq!(nonce[..8], 1_000_000_u64.to_be_bytes());
        assert_eq!(nonce[8..16], [0xcd; 8]);
        let parts: [&[u8]; 3] = [&nonce[..8], &nonce[8..16], &CLIENT_NONCE];
        assert_eq!(
            nonce[16..],
            authenticate_short(&[9; 32], "nodepass nonce", &parts)
        );
        assert_eq!(format!("{:?}", secret()), "***");
    }

    #[test]
    fn each_changed_bit_is_foreign() {
        let nonce = secret().challenge(&CLIENT_NONCE, START, [1; 8]);
        for index in 0..32 {
            for bit in 0..8 {
                let mut changed = nonce;
                changed[index] ^= 1 << bit;
                let checked = secret().check(&CLIENT_NONCE, &changed, START);
                assert_eq!(checked.unwrap_err(), ChallengeError::Foreign);
                let mut other_client = CLIENT_NONCE;
                other_client[index] ^= 1 << bit;
                let checked = secret().check(&other_client, &nonce, START);
                assert_eq!(checked.unwrap_err(), ChallengeError::Foreign);
            }
        }
        let restarted = BootSecret::new([8; 32]).check(&CLIENT_NONCE, &nonce, START);
        assert_eq!(restarted.unwrap_err(), ChallengeError::Foreign);
    }

    #[test]
    fn challenge_expires() {
        let nonce = secret().challenge(&CLIENT_NONCE, START, [1; 8]);
        let check = |now| secret().check(&CLIENT_NONCE, &nonce, now).map(|_| ());
        assert_eq!(check(START), Ok(()));
        assert_eq!(check(START - Duration::from_millis(1)), Ok(()));
        assert_eq!(check(START + CHALLENGE_AGE_MAX), Ok(()));
        let late = START + CHALLENGE_AGE_MAX + Duration::from_millis(1);
        assert_eq!(check(late), Err(ChallengeError::Expired));
    }

    #[test]
    fn challenge_counts_once_as_long_as_it_counts() {
        let mut answered = AnsweredChallenges::default();
        let challenge = fresh(START, 1);
        assert_eq!(answered.remember(&challenge, START), Ok(()));
        for now in [START, START + CHALLENGE_AGE_MAX] {
            let again = answered.remember(&challenge, now);
            assert_eq!(again, Err(ChallengeError::Repeated));
        }
    }

    #[test]
    fn a_clock_that_was_read_early_brings_nothing_back() {
        let mut answered = AnsweredChallenges::default();
        let challenge = fresh(START, 1);
        assert_eq!(answered.remember(&challenge, START), Ok(()));
        let later = START + CHALLENGE_AGE_MAX + Duration::from_millis(1);
        assert_eq!(answered.remember(&fresh(later, 2), later), Ok(()));
        let again = answered.remember(&challenge, START + CHALLENGE_AGE_MAX);
        assert_eq!(again, Err(ChallengeError::Expired));
    }

    #[test]
    fn full_memory_refuses_and_recovers() {
        let mut answered = AnsweredChallenges::default();
        for number in 0..CHALLENGES_REMEMBERED_MAX {
            assert_eq!(answered.remember(&fresh(START, number), START), Ok(()));
        }
        let last = START + CHALLENGE_AGE_MAX;
        let more = fresh(last, 0);
        assert_eq!(answered.remember(&more, last), Err(ChallengeError::Full));
        let repeated = answered.remember(&fresh(START, 0), last);
        assert_eq!(repeated, Err(ChallengeError::Repeated));
        let later = last + Duration::from_millis(1);
        assert_eq!(answered.remember(&more, later), Ok(()));
        assert_eq!(answered.answered.len(), 1);
    }
}
