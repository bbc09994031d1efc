//! Reads messages of a name server from a stream, each wait bounded by a deadline.

use std::io::{self, Read};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use super::error::ServerFault;
use crate::limits::NAME_STREAM_SIZE_MAX;
use crate::net::stream::is_passing;

/// Returns one message of a stream: its size in two bytes, then itself. RFC 1035 section 4.2.2.
pub(super) fn read_message(
    stream: &mut TcpStream,
    deadline: Instant,
) -> Result<Vec<u8>, ServerFault> {
    let mut prefix = [0; 2];
    read_exact_by(stream, &mut prefix, deadline)?;
    let size = usize::from(u16::from_be_bytes(prefix));
    if size > NAME_STREAM_SIZE_MAX {
        return Err(ServerFault::Unusable);
    }
    let mut message = vec![0; size];
    read_exact_by(stream, &mut message, deadline)?;
    Ok(message)
}

/// Fills `buffer` by `deadline`; unlike `read_exact`, whose timeout starts anew with each byte.
fn read_exact_by(stream: &mut TcpStream, buffer: &mut [u8], deadline: Instant) -> io::Result<()> {
    let mut filled_size = 0;
    while filled_size < buffer.len() {
        stream.set_read_timeout(Some(time_left(deadline)?))?;
        match stream.read(&mut buffer[filled_size..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(size) => filled_size += size,
            Err(error) if is_passing(&error) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns the time until `deadline`, never zero: that would mean no limit.
pub(super) fn time_left(deadline: Instant) -> io::Result<Duration> {
    let left = deadline.saturating_duration_since(Instant::now());
    if left.is_zero() {
        Err(io::ErrorKind::TimedOut.into())
    } else {
        Ok(left)
    }
}
