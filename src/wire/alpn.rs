//! Names of the protocols that TLS agrees on (ALPN, RFC 7301).

/// HTTP/2 (RFC 9113 section 3.2).
pub const H2: &[u8] = b"h2";

/// HTTP/1.1, which handshakes speak (RFC 9112).
pub const HTTP_1_1: &[u8] = b"http/1.1";

/// Pool connections over QUIC (wire protocol, section 4).
pub const NP_QUIC: &[u8] = b"np-quic";
