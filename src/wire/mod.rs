//! The meaning of bytes: codecs without sockets, clock, threads or log.

pub mod checkpoint;
pub mod proxy_header;
pub mod shown;
pub mod sniff;
