//! One request to the server behind, and its answer back, as it comes.

use std::io::{self, Read, Write};

use rustix::event::{PollFd, PollFlags};

use super::connection::{Connection, End, Request};
use crate::limits::{API_FORWARD_TIMEOUT, API_PIECE_SIZE};
use crate::master::api::backend::Call;
use crate::wire::http1::answer::{AnswerBody, AnswerHead, Form};
use crate::wire::http1::request::{Refusal, Version};

/// The server behind takes no request.
const NOT_READY: Refusal = Refusal {
    status: 503,
    why: "Service unavailable",
};

/// The server behind gives no answer.
const NO_ANSWER: Refusal = Refusal {
    status: 500,
    why: "Internal server error",
};

/// An answer on its way.
struct Answer {
    behind: Call,
    /// What has been read of it; a part of the head at first.
    pending: Vec<u8>,
    buffer: Vec<u8>,
}

impl Connection<'_> {
    /// Has a request answered; returns whether the connection can carry another one.
    ///
    /// Blocks: until it is answered, or the client is gone.
    pub(super) fn relay(&mut self, request: &Request) -> Result<bool, End> {
        let behind = self.forward(request).map_err(|error| {
            log::debug!("The API server takes no request: {error}");
            NOT_READY
        })?;
        let mut answer = Answer {
            behind,
            pending: Vec::new(),
            buffer: vec![0; API_PIECE_SIZE],
        };
        let head = self.receive_answer(&mut answer, request.head.is_head)?;
        let form = match request.head.version {
            Version::Http10 => Form::Bare,
            Version::Http11 => Form::AsIs,
        };
        // A stream of events that ends was no more wanted, by one side or the other.
        let stays_open = request.head.stays_open
            && head.can_stay_open(form)
            && !head.is_events
            && !self.place.is_draining();
        let mut body = AnswerBody::new(&head, form);
        let mut out = head.encode(form, stays_open);
        // What came with the head leaves with it.
        pass(&mut body, &answer.pending, &mut out)?;
        self.send(&out)?;
        while !body.is_over() {
            let size = self.read_behind(&mut answer, head.is_events)?;
            if size == 0 {
                if body.ends_with_connection() {
                    break;
                }
                // Without its end the client sees that it is not whole.
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            out.clear();
            pass(&mut body, &answer.buffer[..size], &mut out)?;
            self.send(&out)?;
        }
        Ok(stays_open)
    }

    /// Hands a request to the server behind.
    fn forward(&self, request: &Request) -> io::Result<Call> {
        let mut behind = self.around.backend.call()?;
        behind.stream.set_write_timeout(Some(API_FORWARD_TIMEOUT))?;
        let head = request.head.encode(behind.number, request.body.len());
        let mut bytes = head.into_bytes();
        bytes.extend_from_slice(&request.body);
        behind.stream.write_all(&bytes)?;
        Ok(behind)
    }

    fn receive_answer(&mut self, answer: &mut Answer, is_head: bool) -> Result<AnswerHead, End> {
        loop {
            let size = match self.read_behind(answer, false) {
                Ok(0) => return Err(NO_ANSWER.into()),
                Ok(size) => size,
                Err(end) => return Err(end),
            };
            answer.pending.extend_from_slice(&answer.buffer[..size]);
            match AnswerHead::parse(&answer.pending, is_head) {
                Ok(None) => {}
                Ok(Some((head, size))) => {
                    answer.pending.drain(..size);
                    return Ok(head);
                }
                Err(error) => {
                    log::error!("API answer lost: {error}");
                    return Err(NO_ANSWER.into());
                }
            }
        }
    }

    /// Reads more of an answer into its buffer.
    ///
    /// A client may have ended his direction and read the answer all the same; one who has ended
    /// while events come is gone.
    ///
    /// Blocks: until there is something.
    /// Errors: the client is gone or sent away.
    fn read_behind(&self, answer: &mut Answer, is_events: bool) -> Result<usize, End> {
        loop {
            let mut client_flags = PollFlags::empty();
            client_flags.set(PollFlags::RDHUP, is_events);
            let mut set = [
                PollFd::new(&answer.behind.stream, PollFlags::IN),
                PollFd::from_borrowed_fd(self.stream.descriptor(), client_flags),
                PollFd::new(&*self.place.stop, PollFlags::IN),
            ];
            // An interrupted poll is followed by another one.
            let _ = rustix::event::poll(&mut set, None);
            let [behind, client, _] = set.map(|entry| entry.revents());
            if self.place.stop.is_raised() {
                return Err(io::Error::from(io::ErrorKind::Interrupted).into());
            }
            if client.intersects(PollFlags::HUP | PollFlags::ERR | PollFlags::RDHUP) {
                return Err(io::Error::from(io::ErrorKind::ConnectionReset).into());
            }
            if behind.is_empty() {
                continue;
            }
            return match answer.behind.stream.read(&mut answer.buffer) {
                // A server that failed before it answered says no more than one that ended.
                Err(error) if error.kind() == io::ErrorKind::ConnectionReset => Ok(0),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                read => Ok(read?),
            };
        }
    }
}

/// Appends to `out` what the client gets of `bytes`; what is behind the end of the body is left
/// out.
fn pass(body: &mut AnswerBody, bytes: &[u8], out: &mut Vec<u8>) -> Result<(), End> {
    let mut rest = bytes;
    while !rest.is_empty() && !body.is_over() {
        let (size, passed) = body.take(rest).map_err(io::Error::other)?;
        out.extend_from_slice(passed);
        rest = &rest[size..];
    }
    Ok(())
}
