//! The handshake on the tunnel port: one HTTP exchange in v1, two in the native dialect.
//!
//! ```text
//! v1      client ── GET, Authorization: Bearer token ───────────────▶ server
//!                ◀─ 200 and the offer, or 401 ───────────────────────
//!
//! native  client ── GET, NodePass-Nonce cn ─────────────────────────▶ server
//!                ◀─ 401, NodePass-Nonce sn ──────────────────────────
//!                ── GET, cn, NodePass-Challenge sn, NodePass-Proof ──▶
//!                ◀─ 200, NodePass-Proof, the offer ──────────────────
//! ```
//!
//! A WebSocket pool connection begins with an exchange of its own ([`server::Upgrade`], `upgrade`).
//!
//! Both sides are values that a step consumes: [`client`] from [`client::AwaitOffer`] or
//! [`client::AwaitChallenge`] on, [`server`] from [`server::Request`] on. The server keeps nothing
//! between the two native requests: sn proves itself ([`challenge`]).
//!
//! The client's proof does not cover `NodePass-Replaces`: who can change a request on its way can
//! have the session of another client replaced, if it also knows that session's id. Everything
//! else that both sides act on is covered.
//!
//! Never opens a socket, reads a clock or draws a number: nonces, ids and the time come in.
//!
//! Source: wire protocol, sections 3 and 8; RFC 9112.

pub mod challenge;
pub mod client;
mod head;
pub mod server;
#[cfg(feature = "websocket")]
pub mod upgrade;

pub use head::{Connection, HeadError};

use super::proof::{Nonce, SessionId, SessionKey, authenticate};
use super::signal::{Side, SignalReader, SignalWriter};
use super::ticket::{SessionTickets, TicketIssuer};

/// The version of the native dialect.
const VERSION: &str = "1";

const HEADER_VERSION: &str = "NodePass-Version";
const HEADER_NONCE: &str = "NodePass-Nonce";
const HEADER_CHALLENGE: &str = "NodePass-Challenge";
const HEADER_PROOF: &str = "NodePass-Proof";
const HEADER_REPLACES: &str = "NodePass-Replaces";
const HEADER_TICKET: &str = "NodePass-Ticket";

/// The version of WebSocket. RFC 6455 section 4.1
const SOCKET_VERSION: &str = "13";

const HEADER_SOCKET_VERSION: &str = "Sec-WebSocket-Version";
const HEADER_SOCKET_KEY: &str = "Sec-WebSocket-Key";
#[cfg(feature = "websocket")]
const HEADER_SOCKET_ACCEPT: &str = "Sec-WebSocket-Accept";

/// A native session, agreed on by two ends that both know the tunnel key.
///
/// Taken apart once: a second pair of counters would start at 0 again.
#[derive(Debug)]
pub struct NativeSession {
    id: SessionId,
    key: SessionKey,
}

impl NativeSession {
    /// The session's id: not secret.
    pub fn id(&self) -> SessionId {
        self.id
    }

    /// Returns the client's side: what writes its signals, what reads the server's, and what makes
    /// its tickets.
    pub fn into_client(self) -> (SignalWriter, SignalReader, TicketIssuer) {
        (
            SignalWriter::native(self.key.clone(), Side::Client),
            SignalReader::native(self.key.clone(), Side::Server),
            TicketIssuer::new(self.id, self.key),
        )
    }

    /// Returns the server's side: what writes its signals, what reads the client's, and what takes
    /// the client's tickets.
    pub fn into_server(self) -> (SignalWriter, SignalReader, SessionTickets) {
        (
            SignalWriter::native(self.key.clone(), Side::Server),
            SignalReader::native(self.key.clone(), Side::Client),
            SessionTickets::new(self.id, self.key),
        )
    }
}

/// Returns what a server answers to a WebSocket key. RFC 6455 section 4.2.2
#[cfg(feature = "websocket")]
fn accept_key(key: &[u8]) -> String {
    tungstenite::handshake::derive_accept_key(key)
}

/// Returns the proof of a client that knows `key`.
fn prove_client(key: &[u8], client_nonce: &Nonce, server_nonce: &Nonce) -> [u8; 32] {
    authenticate(key, "nodepass client", &[client_nonce, server_nonce])
}

/// Returns the proof of a server that knows `key`, over the bytes of its answer.
fn prove_server(key: &[u8], client_nonce: &Nonce, server_nonce: &Nonce, body: &[u8]) -> [u8; 32] {
    authenticate(key, "nodepass server", &[client_nonce, server_nonce, body])
}

#[cfg(test)]
mod tests;
