//! HTTP/2: many streams on one connection, both roles, without I/O.
//!
//! Bytes that were received go into a [`Connection`], bytes to send and events come out; its owner
//! has the socket, the threads and the clock. Knows nothing of pools and tunnels. What the peer can
//! make it keep is bounded: by the windows of streams, the number of them, and the allowances in
//! `limits.rs`.
//!
//! ```text
//!             receive                next_event
//!   bytes ──▶ frames ──▶ streams ──▶ events, read ──▶ owner
//!   bytes ◀── output ◀───────────── request, respond, write, finish, reset
//! ```
//!
//! Source: RFC 9113 (HTTP/2), RFC 7541 (HPACK).

mod abuse;
mod connection;
mod control;
mod error;
mod flow;
pub mod frame;
mod heads;
pub mod hpack;
mod message;
mod output;
mod pieces;
mod receive;
mod settings;
mod stream;
mod turns;
mod windows;

#[cfg(test)]
mod tests;

pub use connection::{Connection, Event};
pub use error::{ConnectionError, NotOpened};
pub use frame::{ErrorCode, StreamId};
pub use settings::{Role, Settings};
