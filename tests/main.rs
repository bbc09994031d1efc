//! Black-box tests: the real binary, driven through its sockets, its log and its exit status.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]
#![allow(
    clippy::disallowed_types,
    reason = "tests run where they are compiled, not on a router"
)]
#![cfg_attr(
    not(all(
        feature = "http2",
        feature = "master",
        feature = "quic",
        feature = "swagger-ui",
        feature = "tls",
        feature = "websocket"
    )),
    allow(
        dead_code,
        unused_imports,
        reason = "what only the cases of a feature need"
    )
)]

mod cases;
mod documents;
mod faults;
#[cfg(all(feature = "http2", feature = "master", feature = "websocket"))]
mod fuzz;
mod support;
