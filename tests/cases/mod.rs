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
mod tunnel_arrival;
mod tunnel_handshake;
mod tunnel_life;
mod tunnel_link;
mod tunnel_load;
mod tunnel_matrix;
mod tunnel_options;
mod tunnel_pool;
#[cfg(feature = "tls")]
mod tunnel_reload;
mod tunnel_replay;
mod tunnel_sessions;
#[cfg(feature = "tls")]
mod tunnel_web_port;
mod udp;
mod udp_targets;
