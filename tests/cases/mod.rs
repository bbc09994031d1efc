//! What the program promises, one file per side of it.

mod arguments;
mod block;
mod life;
mod limits;
mod names;
mod proxy;
mod rate;
mod targets;
mod tcp;
mod udp;
mod udp_targets;
