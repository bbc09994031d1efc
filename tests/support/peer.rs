//! Hand-made peers: a client and a server of either dialect, out of the codecs of the crate, that
//! do exactly what a case tells them, right or wrong.

mod client;
mod control;
#[cfg_attr(
    not(feature = "http2"),
    expect(dead_code, reason = "what only the cases of HTTP/2 ask for")
)]
pub mod http2;
#[cfg(feature = "quic")]
pub mod quic;
mod server;
mod sha1;
mod stream;
pub mod web_socket;

pub use client::{PlayedClient, Way, ask, handshake, handshake_v1, join_v1, join_with, say_hello};
pub use control::Control;
pub use server::{Form, PlayedServer, read_head};
pub use stream::{Identity, Stream};

use nodepass::wire::key::TunnelKey;
use rustix::rand::{GetRandomFlags, getrandom};

/// A key as the codecs take it.
pub fn key(text: &str) -> TunnelKey {
    TunnelKey::new(text.as_bytes().to_vec())
}

/// Random bytes.
pub fn random<const N: usize>() -> [u8; N] {
    let mut bytes = [0; N];
    assert_eq!(getrandom(&mut bytes, GetRandomFlags::empty()), Ok(N));
    bytes
}
