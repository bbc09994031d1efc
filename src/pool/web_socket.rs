//! Pool connections over WebSocket, one connection each: the client's side.
//!
//! The client asks for `/` to be upgraded, native with its ticket in a header; the server answers,
//! and its first message is the id.
//!
//! Source: wire protocol, sections 4 and 8.

use std::io;
use std::time::Duration;

use super::PoolConnection;
use super::tcp::{OpenError, TcpConnector};
use crate::limits::HANDSHAKE_HEAD_SIZE_MAX;
use crate::net::stream::Stream;
use crate::net::web_socket::{Ends, Role, WebSocketStream};
use crate::runtime::event::Event;
use crate::runtime::random::random_bytes;
use crate::wire::handshake::upgrade::AwaitUpgrade;
use crate::wire::signal::PoolId;

/// Makes the pool connections of one session.
pub struct WebSocketConnector {
    /// Makes what is below, and has the tickets.
    pub tcp: TcpConnector,
    /// What the server is called in requests.
    pub host: String,
    /// How their directions end.
    pub ends: Ends,
    /// How long they may be silent.
    pub silence_max: Duration,
}

impl WebSocketConnector {
    /// Makes a connection.
    ///
    /// Blocks: as [`TcpConnector::open`].
    /// Errors: what [`OpenError`] lists.
    pub fn open(&self, stop: &Event) -> Result<(PoolId, PoolConnection), OpenError> {
        let (mut stream, fingerprint) = self.tcp.connect(stop)?;
        let nonce = random_bytes().map_err(OpenError::Random)?;
        let ticket = self.tcp.ticket();
        let (request, waiting) = AwaitUpgrade::start(&self.host, nonce, ticket.as_ref());
        let patience = self.tcp.patience(stop);
        patience
            .write_all(&mut *stream, &request)
            .map_err(OpenError::NoId)?;
        let mut input = vec![0; HANDSHAKE_HEAD_SIZE_MAX];
        let mut filled = 0;
        let answer_size = loop {
            let taken = waiting.take(&input[..filled]);
            if let Some(size) = taken.map_err(OpenError::Upgrade)? {
                break size;
            }
            // Whatever does not fit has been refused.
            let size = patience
                .read(&mut *stream, &mut input[filled..])
                .map_err(OpenError::NoId)?;
            if size == 0 {
                return Err(OpenError::NoId(io::ErrorKind::UnexpectedEof.into()));
            }
            filled += size;
        };
        let received = &input[answer_size..filled];
        let mut stream = WebSocketStream::new(stream, Role::Client, self.ends, received);
        stream.limit_silence(self.silence_max);
        // The memory is not needed while it waits for the id.
        drop(input);
        stream.rest();
        self.tcp.take_id(Box::new(stream), fingerprint, stop)
    }
}
