//! What the program promises, one file per side of it.

mod arguments;
mod block;
#[cfg(feature = "http2")]
mod http2;
#[cfg(feature = "http2")]
mod http2_curl;
mod life;
mod limits;
#[cfg(feature = "master")]
mod master_api;
#[cfg(feature = "master")]
mod master_docs;
#[cfg(feature = "master")]
mod master_events;
#[cfg(feature = "master")]
mod master_import;
#[cfg(feature = "master")]
mod master_instances;
#[cfg(feature = "master")]
mod master_life;
#[cfg(feature = "master")]
mod master_recorded;
#[cfg(feature = "master")]
mod master_state;
#[cfg(all(feature = "master", feature = "tls"))]
mod master_tls;
mod names;
#[cfg(all(feature = "tls", feature = "websocket"))]
mod nginx;
mod proxy;
#[cfg(any(feature = "http2", feature = "websocket"))]
mod python_peers;
#[cfg(feature = "quic")]
mod quic;
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
#[cfg(feature = "websocket")]
mod web_socket;
