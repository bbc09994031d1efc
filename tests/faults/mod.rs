//! What happens when something goes wrong: one test per fault, named after it.
//!
//! All programs in here run with a key that is easily found in a log, and are looked through when
//! they end: `support::ends`.

mod answers;
#[cfg(feature = "master")]
mod api_abuse;
mod cuts;
mod farewells;
mod floods;
mod handshakes;
#[cfg(feature = "http2")]
mod http2_abuse;
#[cfg(feature = "master")]
mod master_state;
#[cfg(feature = "tls")]
mod middle;
mod oddities;
mod pools;
#[cfg(feature = "quic")]
mod quic_abuse;
mod restarts;
mod scarcity;
mod signals;
mod strangers;
#[cfg(feature = "websocket")]
mod web_socket_abuse;
