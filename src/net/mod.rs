//! Bytes in motion: sockets, names and the relay.

#[cfg(feature = "tls")]
pub mod certificate;
pub mod cover;
pub mod datagram;
pub mod datagram_stream;
pub mod dial;
pub mod listen;
pub mod meter;
pub mod mux;
pub mod name_server;
pub mod origin;
pub mod patient;
#[cfg(feature = "quic")]
pub mod quic;
pub mod race;
pub mod rate;
pub mod relay;
pub mod resolve;
pub mod stream;
pub mod targets;
#[cfg(feature = "tls")]
pub mod tls;
#[cfg(feature = "websocket")]
pub mod web_socket;
