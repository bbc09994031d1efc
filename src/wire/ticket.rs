//! Tickets: the proof that a native pool connection belongs to a session.
//!
//! A ticket is the session's id (16 bytes), a counter (8, big endian) and the first 16 bytes of
//! `H(sk, "nodepass pool", counter)`. The client never writes one twice; the server takes each
//! once, in any order within [`TICKET_WINDOW_SIZE`], and remembers no more than that.
//!
//! Source: wire protocol, section 8, "Joining the pool".

use std::fmt;

use super::first_bytes::NATIVE_MAGIC;
use super::key::same_bytes;
use super::proof::{
    SHORT_PROOF_SIZE, SessionId, SessionKey, authenticate_short, decode_hex, encode_hex,
};
use crate::limits::TICKET_WINDOW_SIZE;

/// Size of a ticket (bytes).
pub const TICKET_SIZE: usize = 40;

/// Size of what a native TCP pool connection starts with: [`NATIVE_MAGIC`] and a ticket (bytes).
pub const PREFACE_SIZE: usize = NATIVE_MAGIC.len() + TICKET_SIZE;

/// Words of the bitmap.
const WORDS_COUNT: usize = 64;
const _: () = assert!(
    TICKET_WINDOW_SIZE == 64 * 64,
    "WORDS_COUNT words of 64 bits"
);

/// A ticket as it travels: nothing in it is believed before [`SessionTickets::redeem`]. Never prints
/// its proof, with which anyone could join the session until then.
#[derive(Clone, PartialEq, Eq)]
pub struct Ticket {
    session: SessionId,
    counter: u64,
    proof: [u8; SHORT_PROOF_SIZE],
}

/// Makes the tickets of one session: the client's side.
#[derive(Debug)]
pub struct TicketIssuer {
    session: SessionId,
    key: SessionKey,
    next_counter: u64,
}

/// Takes the tickets of one session: the server's side.
#[derive(Debug)]
pub struct SessionTickets {
    session: SessionId,
    key: SessionKey,
    /// The highest counter that was taken.
    highest: Option<u64>,
    /// Bit `counter % TICKET_WINDOW_SIZE` is set where `counter` was taken; meant are the
    /// counters up to `highest`, as many as there are bits.
    taken: [u64; WORDS_COUNT],
}

/// This connection belongs to the session. Only [`SessionTickets::redeem`] makes one.
#[derive(Debug, PartialEq, Eq)]
pub struct TicketRedeemed(());

/// Why a ticket is refused; its connection is closed without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TicketError {
    /// It names another session.
    OtherSession,
    /// It was not made with the session's key.
    WrongProof,
    /// It was taken before.
    Repeated,
    /// Too many others have overtaken it to know whether it was taken before.
    TooOld,
}

/// The bytes do not start a native pool connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotNative;

impl Ticket {
    /// Reads a ticket.
    pub fn decode(bytes: &[u8; TICKET_SIZE]) -> Self {
        let (session, rest) = bytes.split_first_chunk().expect("16 of 40 bytes");
        let (counter, proof) = rest.split_first_chunk().expect("8 of 24 bytes");
        Self {
            session: SessionId(*session),
            counter: u64::from_be_bytes(*counter),
            proof: proof.try_into().expect("16 bytes are left"),
        }
    }

    /// Returns the ticket's bytes.
    pub fn encode(&self) -> [u8; TICKET_SIZE] {
        let counter = self.counter.to_be_bytes();
        let mut bytes = [0; TICKET_SIZE];
        let parts = self.session.0.iter().chain(&counter).chain(&self.proof);
        for (byte, part) in bytes.iter_mut().zip(parts) {
            *byte = *part;
        }
        bytes
    }

    /// Reads the value of a ticket header; `None` if it is not exactly 80 lower-case digits.
    pub fn decode_header(value: &[u8]) -> Option<Self> {
        Some(Self::decode(&decode_hex(value)?))
    }

    /// Returns the value of a ticket header.
    pub fn encode_header(&self) -> String {
        encode_hex(&self.encode())
    }

    /// Reads the start of a native TCP pool connection, [`PREFACE_SIZE`] bytes; `None` while it
    /// is incomplete.
    pub fn decode_preface(input: &[u8]) -> Result<Option<Self>, NotNative> {
        let seen_size = input.len().min(NATIVE_MAGIC.len());
        if input[..seen_size] != NATIVE_MAGIC[..seen_size] {
            return Err(NotNative);
        }
        let ticket = input[seen_size..].first_chunk();
        Ok(ticket.map(Self::decode))
    }

    /// Returns the start of a native TCP pool connection.
    pub fn encode_preface(&self) -> Vec<u8> {
        [&NATIVE_MAGIC[..], &self.encode()].concat()
    }

    /// The session that the connection wants to join: says whose [`SessionTickets`] to ask.
    pub fn session(&self) -> SessionId {
        self.session
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("session", &self.session)
            .field("counter", &self.counter)
            .finish_non_exhaustive()
    }
}

impl TicketIssuer {
    /// Returns the issuer of a new session.
    pub fn new(session: SessionId, key: SessionKey) -> Self {
        Self {
            session,
            key,
            next_counter: 0,
        }
    }

    /// Returns a ticket that was never returned before.
    pub fn issue(&mut self) -> Ticket {
        let counter = self.next_counter;
        self.next_counter = counter
            .checked_add(1)
            .expect("2^64 connections are out of reach");
        Ticket {
            session: self.session,
            counter,
            proof: prove(&self.key, counter),
        }
    }
}

impl SessionTickets {
    /// Returns the record of a new session, of which no ticket was taken.
    pub fn new(session: SessionId, key: SessionKey) -> Self {
        Self {
            session,
            key,
            highest: None,
            taken: [0; WORDS_COUNT],
        }
    }

    /// Returns whether `ticket` was made with the session's key, whether it was taken before or not.
    pub fn knows(&self, ticket: &Ticket) -> bool {
        ticket.session == self.session && self.has_proof(ticket)
    }

    fn has_proof(&self, ticket: &Ticket) -> bool {
        same_bytes(&ticket.proof, &prove(&self.key, ticket.counter))
    }

    /// Takes `ticket`, which is worth nothing from then on.
    ///
    /// Errors: what [`TicketError`] lists; a refused ticket changes nothing.
    pub fn redeem(&mut self, ticket: &Ticket) -> Result<TicketRedeemed, TicketError> {
        if ticket.session != self.session {
            return Err(TicketError::OtherSession);
        }
        let counter = ticket.counter;
        if !self.has_proof(ticket) {
            return Err(TicketError::WrongProof);
        }
        match self.highest {
            Some(highest) if counter <= highest => {
                if highest - counter >= TICKET_WINDOW_SIZE {
                    return Err(TicketError::TooOld);
                }
                let (word_index, bit) = place(counter);
                if self.taken[word_index] & bit != 0 {
                    return Err(TicketError::Repeated);
                }
            }
            Some(highest) => self.move_window(highest, counter),
            None => self.highest = Some(counter),
        }
        let (word_index, bit) = place(counter);
        self.taken[word_index] |= bit;
        Ok(TicketRedeemed(()))
    }

    /// Makes `counter` the highest; those between were not taken.
    fn move_window(&mut self, highest: u64, counter: u64) {
        if counter - highest >= TICKET_WINDOW_SIZE {
            self.taken = [0; WORDS_COUNT];
        } else {
            for skipped in highest + 1..=counter {
                let (word_index, bit) = place(skipped);
                self.taken[word_index] &= !bit;
            }
        }
        self.highest = Some(counter);
    }
}

/// Returns the word and the bit in it that stand for `counter`.
fn place(counter: u64) -> (usize, u64) {
    let index = counter % TICKET_WINDOW_SIZE;
    let word_index = usize::try_from(index / 64).expect("fewer than WORDS_COUNT");
    (word_index, 1 << (index % 64))
}

fn prove(key: &SessionKey, counter: u64) -> [u8; SHORT_PROOF_SIZE] {
    authenticate_short(key.as_bytes(), "nodepass pool", &[&counter.to_be_bytes()])
}

impl fmt::Display for TicketError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OtherSession => "the ticket of a pool connection names another session",
            Self::WrongProof => {
                "the ticket of a pool connection was made without the session's key"
            }
            Self::Repeated => "the ticket of a pool connection was used before",
            Self::TooOld => "the ticket of a pool connection comes too late",
        })
    }
}

impl std::error::Error for TicketError {}

impl fmt::Display for NotNative {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("not the start of a native pool connection")
    }
}

impl std::error::Error for NotNative {}

#[cfg(test)]
mod tests {
    use super::super::mutation::Xorshift;
    use super::super::proof::authenticate;
    use super::*;

    const SESSION: SessionId = SessionId([0x5a; 16]);

    fn issuer() -> TicketIssuer {
        TicketIssuer::new(SESSION, SessionKey::for_test(1))
    }

    fn tickets() -> SessionTickets {
        SessionTickets::new(SESSION, SessionKey::for_test(1))
    }

    fn ticket_at(counter: u64) -> Ticket {
        let mut issuer = issuer();
        issuer.next_counter = counter;
        issuer.issue()
    }

    #[test]
    fn ticket_is_session_counter_and_half_a_proof() {
        let bytes = ticket_at(0x0102_0304).encode();
        assert_eq!(bytes[..16], [0x5a; 16]);
        assert_eq!(bytes[16..24], [0, 0, 0, 0, 1, 2, 3, 4]);
        let proof = authenticate(&[1; 32], "nodepass pool", &[&bytes[16..24]]);
        assert_eq!(bytes[24..], proof[..16]);
    }

    #[test]
    fn proof_is_never_printed() {
        let ticket = Ticket {
            session: SESSION,
            counter: 7,
            proof: [0xee; SHORT_PROOF_SIZE],
        };
        let text = format!("{ticket:?}");
        assert!(
            text.contains("counter: 7") && !text.contains("238"),
            "{text}"
        );
    }

    #[test]
    fn preface_is_read_once_it_is_complete() {
        let ticket = issuer().issue();
        let preface = ticket.encode_preface();
        assert_eq!(preface.len(), PREFACE_SIZE);
        for end in 0..PREFACE_SIZE {
            assert_eq!(Ticket::decode_preface(&preface[..end]), Ok(None));
        }
        let with_data = [&preface[..], b"data"].concat();
        for input in [&preface, &with_data] {
            assert_eq!(Ticket::decode_preface(input), Ok(Some(ticket.clone())));
        }
        for other in [&b"x"[..], b"NPC2", b"NPC\0", b"GET "] {
            assert_eq!(Ticket::decode_preface(other), Err(NotNative));
        }
    }

    #[test]
    fn each_ticket_is_taken_once() {
        let (mut issuer, mut tickets) = (issuer(), tickets());
        for _ in 0..3 {
            let ticket = issuer.issue();
            assert!(tickets.redeem(&ticket).is_ok());
            assert_eq!(tickets.redeem(&ticket), Err(TicketError::Repeated));
        }
    }

    #[test]
    fn each_changed_byte_is_refused() {
        let ticket = issuer().issue().encode();
        let mut tickets = tickets();
        for index in 0..TICKET_SIZE {
            for bit in 0..8 {
                let mut changed = ticket;
                changed[index] ^= 1 << bit;
                assert!(tickets.redeem(&Ticket::decode(&changed)).is_err());
            }
        }
        assert!(tickets.redeem(&Ticket::decode(&ticket)).is_ok());
        let mut other = SessionTickets::new(SESSION, SessionKey::for_test(2));
        let refused = other.redeem(&Ticket::decode(&ticket));
        assert_eq!(refused, Err(TicketError::WrongProof));
    }

    #[test]
    fn tickets_may_overtake_each_other_within_the_window() {
        let mut tickets = tickets();
        assert!(tickets.redeem(&ticket_at(TICKET_WINDOW_SIZE)).is_ok());
        assert_eq!(tickets.redeem(&ticket_at(0)), Err(TicketError::TooOld));
        assert!(tickets.redeem(&ticket_at(1)).is_ok());
        assert_eq!(tickets.redeem(&ticket_at(1)), Err(TicketError::Repeated));
        assert!(tickets.redeem(&ticket_at(u64::MAX - 1)).is_ok());
        assert_eq!(tickets.redeem(&ticket_at(2)), Err(TicketError::TooOld));
    }

    #[test]
    fn window_forgets_nothing_it_should_know() {
        let mut random = Xorshift::new(4);
        let mut tickets = tickets();
        let mut taken = std::collections::BTreeSet::new();
        let mut base = 0;
        for _ in 0..20_000 {
            base += random.next() % 8;
            let jump = if random.below(500) == 0 { 5_000 } else { 0 };
            base += jump;
            let counter = base + random.next() % 300;
            let known = taken.last().is_some_and(|highest| {
                taken.contains(&counter) || counter + TICKET_WINDOW_SIZE <= *highest
            });
            assert_eq!(tickets.redeem(&ticket_at(counter)).is_err(), known);
            taken.insert(counter);
        }
    }
}
