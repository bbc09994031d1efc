//! A target of a UDP session: what it does with a socket, and what its ICMP messages mean.

use std::fmt;
use std::io;
use std::time::{Duration, Instant};

use super::gate::{Gate, Lane};
use crate::limits::UDP_SESSION_BUFFER_SIZE;
use crate::net::datagram::{join_received, set_buffer_sizes};
use crate::net::dial::{Dialer, DialledUdp};

/// The socket to the target of a session.
pub(super) struct UdpTarget {
    pub(super) dialled: DialledUdp,
    /// Whether it has answered since it last refused.
    has_answered: bool,
}

/// What an error on the socket means for the session.
pub(super) enum Verdict {
    /// It goes on.
    Stays,
    /// It goes on with another address of its target.
    Moves(DialledUdp),
    /// It ends, so that the next datagram of its visitor goes to another target.
    Ends,
}

impl UdpTarget {
    /// Takes a socket that was dialled and has it watched.
    ///
    /// Errors: the system cannot watch one more.
    pub(super) fn watched(
        dialled: DialledUdp,
        lane: &Lane,
        gate: &Gate,
        name: u64,
    ) -> io::Result<Self> {
        set_buffer_sizes(&dialled.socket, UDP_SESSION_BUFFER_SIZE);
        // With option `rate` datagrams come one by one, as its turns do.
        if !lane.is_limited() {
            join_received(&dialled.socket);
        }
        lane.watch(gate, &dialled.socket, name)?;
        Ok(Self {
            dialled,
            has_answered: false,
        })
    }

    /// Notes that the target has sent something.
    pub(super) fn note_answer(&mut self, dialer: &Dialer, now: Instant) {
        if !std::mem::replace(&mut self.has_answered, true) {
            let index = self.dialled.index;
            dialer.udp.note_success(index, Duration::ZERO, now);
            dialer.udp.note_address(index, self.dialled.address);
        }
    }

    /// Looks at an error on the socket.
    ///
    /// ICMP messages of one target concern its own session alone. One that refuses twice without
    /// an answer in between, or at once, gives up its visitor, to another address of its name or
    /// to another target, if there is one.
    pub(super) fn judge(
        &mut self,
        error: &io::Error,
        visitor: impl fmt::Display,
        dialer: &Dialer,
    ) -> Verdict {
        if error.kind() == io::ErrorKind::WouldBlock {
            return Verdict::Stays;
        }
        let address = self.dialled.address;
        log::debug!("UDP target {address} of visitor {visitor}: {error}");
        let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
        if !is_refused || std::mem::take(&mut self.has_answered) {
            return Verdict::Stays;
        }
        let others = std::mem::take(&mut self.dialled.others);
        let index = self.dialled.index;
        if let Ok(next) = dialer.connect_udp(index, others) {
            return Verdict::Moves(next);
        }
        if !dialer.udp.has_choice(index) {
            return Verdict::Stays;
        }
        dialer.udp.note_failure(index, Instant::now());
        Verdict::Ends
    }
}
