//! The way of a session to the thread of the exits: a place, a target, and the handing over.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::Sender;

use crate::limits::UDP_ARRIVAL_TIMEOUT;
use crate::net::dial::{DialError, DialledUdp};
use crate::net::listen::canonical;
use crate::net::race::Watch;
use crate::runtime::event::Bell;
use crate::tunnel::instance::Instance;
use crate::tunnel::slots::{Kind, Slot};
use crate::tunnel::uplink::UdpWay;

/// A session for the thread of the exits.
pub struct UdpRelay {
    /// The pool connection to the visitor.
    pub way: UdpWay,
    /// The socket to the target.
    pub target: DialledUdp,
    /// The place of the session, freed with it.
    pub slot: Slot,
    /// Who the visitor is, as far as the other end has told.
    pub visitor: Option<SocketAddr>,
}

/// Hands sessions over to the thread of the exits.
#[derive(Clone)]
pub struct UdpCarrier {
    pub(super) sender: Sender<UdpRelay>,
    pub(super) bell: Arc<Bell>,
}

/// The thread did not take a session: it is too busy, or the program stops.
#[derive(Debug)]
pub struct NotCarried;

impl fmt::Display for NotCarried {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the thread for datagrams is busy or stopping")
    }
}

/// Takes a place for a visitor over UDP at the other end of `way`, connects it with a target and
/// hands it over.
///
/// What cannot be served is logged, and the pool connection is closed.
///
/// Blocks: while names of targets are looked up, at most for the UDP dial timeout; and while the
/// thread of the exits is busy, at most for `UDP_ARRIVAL_TIMEOUT`.
pub fn serve_udp(
    instance: &Instance,
    carrier: &UdpCarrier,
    way: UdpWay,
    visitor: Option<SocketAddr>,
) {
    let address = visitor_address(visitor);
    let Some(slot) = instance.take_slot(Kind::Udp, address) else {
        return;
    };
    match dial_udp(instance) {
        Ok(target) => {
            let relay = UdpRelay {
                way,
                target,
                slot,
                visitor,
            };
            if let Err(error) = carrier.carry(relay) {
                instance.note_udp_not_served(address, error);
            }
        }
        Err(error) => instance.note_udp_not_served(address, error),
    }
}

/// Makes a socket for datagrams to the target whose turn it is, or to the next one that there is
/// a way to.
///
/// Blocks: while names are looked up, at most for the UDP dial timeout.
fn dial_udp(instance: &Instance) -> Result<DialledUdp, DialError> {
    let (dialer, start) = (&instance.dialer, Instant::now());
    let order = dialer.udp.order(start);
    if let Some(result) = dialer.dial_udp(&order, |index| dialer.addresses_known(index)) {
        return result;
    }
    let watch = Watch {
        stop: &instance.shutdown.stop,
        visitor: None,
    };
    let all: Vec<usize> = (0..dialer.udp.addresses().len()).collect();
    let found = dialer.look_up(&all, start + instance.limits.udp_dial_timeout, watch);
    let result = dialer.dial_udp(&order, |index| found.get(index).cloned());
    // There is an answer for each of the targets, so the dial has a result.
    result.unwrap_or(Err(DialError::NotWanted))
}

impl UdpCarrier {
    /// Hands a session over.
    ///
    /// Blocks: while the thread is busy, at most for `UDP_ARRIVAL_TIMEOUT`.
    /// Errors: the session has been dropped, with its pool connection.
    pub fn carry(&self, relay: UdpRelay) -> Result<(), NotCarried> {
        let result = self.sender.send_timeout(relay, UDP_ARRIVAL_TIMEOUT);
        self.bell.ring();
        result.map_err(|_| NotCarried)
    }

    /// Lets the thread look soon for sessions that are over.
    pub fn look_around(&self) {
        self.bell.ring();
    }
}

/// Returns what to call a visitor in the log.
pub(super) fn visitor_address(visitor: Option<SocketAddr>) -> SocketAddr {
    visitor.map_or(SocketAddr::from(([0, 0, 0, 0], 0)), canonical)
}
