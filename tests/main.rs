//! Black-box tests: the real binary, driven through its sockets, its log and its exit status.

#![allow(
    clippy::unwrap_used,
    reason = "a failed step of a test is a failed test"
)]

mod cases;
mod documents;
mod faults;
mod support;
