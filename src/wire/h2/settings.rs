//! Which end a connection is, and its bounds.

use super::frame::{StreamId, WINDOW_DEFAULT, WINDOW_MAX};
use crate::limits::{
    H2_CONNECTION_WINDOW, H2_HEADER_LIST_SIZE_MAX, H2_OUTPUT_ROOM, H2_STREAM_WINDOW,
    H2_STREAM_WINDOW_MAX, H2_STREAMS_MAX, H2_WINDOW_GROWTH_MAX,
};

/// Which end of a connection this is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// The one that opens streams.
    Client,
    /// The one that answers.
    Server,
}

/// The bounds of one end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// Window of a stream at its start (bytes).
    pub stream_window: u32,
    /// Window up to which that of a busy stream grows (bytes).
    pub stream_window_max: u32,
    /// Bytes by which the windows of all streams together grow. The peer can make us keep this
    /// much, and `stream_window` for each stream.
    pub growth_max: u32,
    /// Window of the connection (bytes); at least 65,535.
    pub connection_window: u32,
    /// Streams that the peer may have open.
    pub streams_max: u32,
    /// Largest list of fields (bytes, 32 more for each field).
    pub header_list_size_max: usize,
    /// Bytes of data that may wait to be sent.
    pub output_room: usize,
    /// Number of the first stream that a client opens.
    pub first_stream: StreamId,
    /// Names of fields whose values are secrets, which no table may keep.
    pub secret_names: &'static [&'static [u8]],
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            stream_window: H2_STREAM_WINDOW,
            stream_window_max: H2_STREAM_WINDOW_MAX,
            growth_max: H2_WINDOW_GROWTH_MAX,
            connection_window: H2_CONNECTION_WINDOW,
            streams_max: H2_STREAMS_MAX,
            header_list_size_max: H2_HEADER_LIST_SIZE_MAX,
            output_room: H2_OUTPUT_ROOM,
            first_stream: 1,
            secret_names: &[],
        }
    }
}

impl Settings {
    /// Returns the same with every bound where the protocol allows it.
    pub(super) fn within_bounds(mut self) -> Self {
        self.stream_window = self.stream_window.clamp(1, WINDOW_MAX);
        self.stream_window_max = self.stream_window_max.clamp(self.stream_window, WINDOW_MAX);
        self.connection_window = self.connection_window.clamp(WINDOW_DEFAULT, WINDOW_MAX);
        self.output_room = self.output_room.max(1);
        self.first_stream |= 1;
        self
    }
}
