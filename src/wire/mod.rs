//! The meaning of bytes: codecs without sockets, clock, threads or log.

pub mod alpn;
pub mod checkpoint;
pub mod datagram;
pub mod dns;
pub mod fingerprint;
pub mod first_bytes;
#[cfg(feature = "master")]
pub mod gob;
#[cfg(feature = "http2")]
pub mod h2;
pub mod handshake;
#[cfg(feature = "master")]
pub mod http1;
pub mod key;
pub mod offer;
pub mod proof;
pub mod proxy_header;
pub mod shown;
pub mod signal;
pub mod sniff;
pub mod ticket;
#[cfg(feature = "websocket")]
pub mod web_socket;

#[cfg(test)]
mod mutation;
#[cfg(test)]
mod recorded;
