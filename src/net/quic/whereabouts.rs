//! Where the peer of a connection is: his address may change, as behind a NAT or when a router gets
//! another one.
//!
//! The connection itself takes all datagrams as from one address: quiche sends nothing again that
//! was on its way to an address of before (0.30), so a stream would stand still. Which of them are
//! genuine it does know, and the next ones go to where the last of these came from. To another host
//! only a little is sent until something that went there has been acknowledged.
//!
//! Source: RFC 9000 section 9.3.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use crate::limits::{
    QUIC_ACK_DELAY_MAX, QUIC_MOVE_PAUSE, QUIC_PROBE_SIZE_MAX, QUIC_UNPROVEN_SIZE_MAX,
};
use crate::net::listen::canonical;

/// Bytes that may be sent for each one that came (RFC 9000 section 8).
const UNPROVEN_FACTOR: u64 = 3;

/// Where a peer is.
pub(super) struct Whereabouts {
    /// What the connection calls it, for good.
    pub known: SocketAddr,
    /// Where it is now.
    pub peer: SocketAddr,
    /// The address that it writes to.
    pub local_ip: Option<IpAddr>,
    /// Where it was before, and since when it no longer is.
    before: Option<(SocketAddr, Instant)>,
    /// When it was last another host.
    host_moved_at: Option<Instant>,
    proof: Option<Proof>,
}

/// What is known of an address from which datagrams have come, and where perhaps nothing arrives.
struct Proof {
    received_size: u64,
    sent_size: u64,
    /// From then on what is acknowledged was sent there: what had been sent before that has been
    /// acknowledged, or is lost.
    counts_from: Instant,
    /// Bytes that had been acknowledged by then.
    acknowledged_size: u64,
}

impl Whereabouts {
    /// Begins with an address that has been proven.
    pub fn new(peer: SocketAddr) -> Self {
        Self {
            known: peer,
            peer,
            local_ip: None,
            before: None,
            host_moved_at: None,
            proof: None,
        }
    }

    /// Notes that `size` bytes have come from where the peer is.
    pub fn note(&mut self, local_ip: Option<IpAddr>, size: u64) {
        self.local_ip = local_ip;
        if let Some(proof) = &mut self.proof {
            proof.received_size += size;
        }
    }

    /// Notes that a genuine datagram of `size` bytes has come from elsewhere; returns whether that
    /// is where the peer is now. A round trip takes `round_trip`.
    pub fn note_move(
        &mut self,
        peer: SocketAddr,
        local_ip: Option<IpAddr>,
        size: u64,
        round_trip: Duration,
        now: Instant,
    ) -> bool {
        let is_recent = |at: Instant| now < at + QUIC_MOVE_PAUSE;
        // One of before may be late.
        let is_late = |(before, left_at)| peer == before && is_recent(left_at);
        let is_other_host = canonical(self.peer).ip() != canonical(peer).ip();
        let is_too_soon = is_other_host && self.host_moved_at.is_some_and(is_recent);
        if is_too_soon || self.before.is_some_and(is_late) {
            return false;
        }
        self.before = Some((self.peer, now));
        if is_other_host {
            self.host_moved_at = Some(now);
            self.proof = Some(Proof {
                received_size: size,
                sent_size: 0,
                counts_from: now + 2 * round_trip + QUIC_ACK_DELAY_MAX,
                acknowledged_size: 0,
            });
        }
        (self.peer, self.local_ip) = (peer, local_ip);
        true
    }

    /// Returns whether it is not known that what is sent arrives.
    pub fn is_unproven(&self) -> bool {
        self.proof.is_some()
    }

    /// Returns when more may be sent although nothing has come.
    pub fn wake_at(&self, now: Instant) -> Option<Instant> {
        let counts_from = self.proof.as_ref()?.counts_from;
        (now < counts_from).then_some(counts_from)
    }

    /// Notes how many bytes the peer has acknowledged by now.
    pub fn note_acknowledged(&mut self, size: u64, now: Instant) {
        let Some(proof) = &mut self.proof else {
            return;
        };
        if now < proof.counts_from {
            proof.acknowledged_size = size;
        } else if size > proof.acknowledged_size {
            self.proof = None;
        }
    }

    /// Notes that datagrams of `size` bytes have been sent.
    pub fn note_sent(&mut self, size: usize) {
        if let Some(proof) = &mut self.proof {
            proof.sent_size += u64::try_from(size).unwrap_or(u64::MAX);
        }
    }

    /// Returns whether more than `size` bytes may be sent now.
    pub fn may_send(&self, size: usize, now: Instant) -> bool {
        let Some(proof) = &self.proof else {
            return true;
        };
        let mut allowed = QUIC_UNPROVEN_SIZE_MAX + UNPROVEN_FACTOR * proof.received_size;
        if now >= proof.counts_from {
            // So that there is something to acknowledge.
            allowed += QUIC_PROBE_SIZE_MAX;
        }
        let size = u64::try_from(size).unwrap_or(u64::MAX);
        proof.sent_size.saturating_add(size) < allowed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROUND_TRIP: Duration = Duration::from_millis(50);

    fn address(host: u8, port: u16) -> SocketAddr {
        SocketAddr::from(([203, 0, 113, host], port))
    }

    #[test]
    fn datagrams_go_to_where_the_last_one_came_from() {
        let start = Instant::now();
        let mut whereabouts = Whereabouts::new(address(1, 1));
        assert!(whereabouts.note_move(address(1, 2), None, 40, ROUND_TRIP, start));
        assert_eq!(whereabouts.peer, address(1, 2));
        assert!(!whereabouts.is_unproven(), "the same host");
        // A late one does not bring it back; a later one does.
        let soon = start + Duration::from_millis(10);
        assert!(!whereabouts.note_move(address(1, 1), None, 40, ROUND_TRIP, soon));
        assert_eq!(whereabouts.peer, address(1, 2));
        let later = start + QUIC_MOVE_PAUSE;
        assert!(whereabouts.note_move(address(1, 1), None, 40, ROUND_TRIP, later));
        assert_eq!(whereabouts.peer, address(1, 1));
        assert_eq!(whereabouts.known, address(1, 1));
    }

    #[test]
    fn nobody_moves_from_host_to_host_all_the_time() {
        let start = Instant::now();
        let mut whereabouts = Whereabouts::new(address(1, 1));
        assert!(whereabouts.note_move(address(2, 1), None, 40, ROUND_TRIP, start));
        for host in 3..9 {
            assert!(!whereabouts.note_move(address(host, 1), None, 40, ROUND_TRIP, start));
        }
        let later = start + QUIC_MOVE_PAUSE;
        assert!(whereabouts.note_move(address(3, 1), None, 40, ROUND_TRIP, later));
    }

    #[test]
    fn another_host_gets_little_until_something_sent_there_is_acknowledged() {
        let start = Instant::now();
        let mut whereabouts = Whereabouts::new(address(1, 1));
        whereabouts.note_move(address(2, 1), None, 100, ROUND_TRIP, start);
        assert!(whereabouts.may_send(0, start));
        whereabouts.note_sent(64 * 1024 + 300);
        assert!(!whereabouts.may_send(0, start));
        whereabouts.note(None, 1000);
        assert!(whereabouts.may_send(2999, start));
        assert!(!whereabouts.may_send(3000, start));
        // What is acknowledged now may have gone to the other one.
        whereabouts.note_acknowledged(5000, start);
        assert!(whereabouts.is_unproven());
        let counts_from = whereabouts.wake_at(start).unwrap();
        assert!(whereabouts.may_send(3000, counts_from));
        assert!(!whereabouts.may_send(1024 * 1024, counts_from));
        whereabouts.note_acknowledged(5000, counts_from);
        assert!(whereabouts.is_unproven());
        whereabouts.note_acknowledged(6000, counts_from);
        assert!(whereabouts.may_send(usize::MAX, counts_from));
    }
}
