//! A TCP and UDP tunnel and forwarder, run by a URL.
//!
//! | module | holds | may use |
//! |---|---|---|
//! | `master` | the API, and instances as child processes; feature `master` | everything below but `tunnel` and `pool` |
//! | [`tunnel`] | what the cores do: listeners, sessions, targets | everything below |
//! | [`pool`] | connections between the two ends, made before a visitor comes | `net`, `runtime`, `wire`, `limits` |
//! | [`net`] | bytes in motion: sockets, names, the relay | `runtime`, `config` types, `wire` types, `limits` |
//! | [`runtime`] | threads, shutdown, log | `limits` |
//! | [`config`] | URL, options and environment as typed values | `wire` types, `limits` |
//! | [`wire`] | the meaning of bytes; no sockets, clock or threads | `limits` |
//! | [`limits`] | every size, count and time | nothing |
//!
//! The program is `main.rs`; this library lets tests and benchmarks reach the same code.

#![forbid(unsafe_code)]

pub mod config;
pub mod limits;
#[cfg(feature = "master")]
pub mod master;
pub mod net;
pub mod pool;
pub mod runtime;
pub mod tunnel;
pub mod wire;
