//! HTTP/2 without sockets.

pub mod hpack;
