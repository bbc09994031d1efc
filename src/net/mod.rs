//! Bytes in motion: sockets, names and the relay.

pub mod datagram;
pub mod dial;
pub mod listen;
pub mod meter;
pub mod name_server;
pub mod race;
pub mod rate;
pub mod relay;
pub mod resolve;
pub mod stream;
pub mod targets;
