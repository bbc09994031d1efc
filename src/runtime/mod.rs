//! Threads, shutdown, log, and what else the process gets from its system.

pub mod clock;
pub mod cooldown;
pub mod descriptors;
pub mod event;
pub mod input;
pub mod log;
pub mod parent;
pub mod random;
pub mod shutdown;
pub mod threads;
