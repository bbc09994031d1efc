//! Who has done the handshake: the sessions of a server from there on, by what their pool
//! connections show.
//!
//! ```text
//!   handshake ──admit──▶ expected ──first pool connection──▶ live ──over──▶ forgotten
//!                            └── none within the time ──▶ forgotten
//! ```
//!
//! A native connection shows a ticket, a v1 connection nothing but its address. The first one of
//! a session becomes its control channel.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::session::{Session, SessionEnd, Surroundings, Terms};
use crate::limits::{CALLER_GRACE, CALLER_GRACE_SHARED, EXPECTED_PER_ADDRESS_MAX, SESSIONS_MAX};
use crate::pool::{Carrier, PoolConnection};
use crate::wire::handshake::NativeSession;
use crate::wire::key::TunnelKey;
use crate::wire::offer::Transport;
use crate::wire::proof::SessionId;
use crate::wire::signal::{PoolId, SignalReader, SignalWriter};
use crate::wire::ticket::{SessionTickets, Ticket};

/// What makes consecutive numbers look unlike each other: odd, so that 2^32 of them differ.
const ID_STEP: u32 = 0x9e37_79b1;

/// Those who have done the handshake.
pub struct Guests {
    around: Surroundings,
    native: HashMap<SessionId, (SessionTickets, Guest)>,
    v1: HashMap<IpAddr, Guest>,
}

/// One of them.
struct Guest {
    terms: Terms,
    ids: Ids,
    stay: Stay,
}

enum Stay {
    /// Its first pool connection is awaited.
    Expected {
        /// For its control channel.
        codecs: Box<(SignalWriter, SignalReader)>,
        until: Instant,
    },
    Live(Arc<Session>),
    /// Its session could not start.
    Failed,
}

/// What a pool connection shows.
pub enum Shows<'a> {
    /// A ticket.
    Ticket(&'a Ticket),
    /// Nothing; it is v1.
    Nothing,
}

/// How a pool connection came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Came {
    /// Of this type.
    pub transport: Transport,
    /// Inside TLS that ends here.
    pub is_covered: bool,
}

/// A pool connection is not taken: it is closed without a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotJoined(pub &'static str);

/// The ids of one session: none comes twice, the first one is that of the control channel.
struct Ids {
    next: u32,
    is_first: bool,
}

impl Guests {
    /// Expects nobody.
    pub fn new(around: Surroundings) -> Self {
        Self {
            around,
            native: HashMap::new(),
            v1: HashMap::new(),
        }
    }

    /// Makes room for one more client of `address`; false if there is none.
    ///
    /// Whoever has done the handshake and not come since gives way: of the same address where it
    /// has many of them, of any where all places are taken.
    pub fn make_room(&mut self, address: IpAddr) -> bool {
        let of_address: Vec<_> = self.expected(|peer| peer == address).collect();
        if of_address.len() >= EXPECTED_PER_ADDRESS_MAX {
            self.forget_first(of_address);
        }
        if self.native.len() + self.v1.len() >= SESSIONS_MAX {
            let of_all = self.expected(|_| true).collect();
            self.forget_first(of_all);
        }
        self.native.len() + self.v1.len() < SESSIONS_MAX
    }

    /// Returns the native guests of some addresses that are expected, and until when each is.
    fn expected(
        &self,
        is_meant: impl Fn(IpAddr) -> bool,
    ) -> impl Iterator<Item = (Instant, SessionId)> {
        self.native
            .iter()
            .filter_map(move |(id, (_, guest))| match guest.stay {
                Stay::Expected { until, .. } if is_meant(guest.terms.peer.ip()) => {
                    Some((until, *id))
                }
                _ => None,
            })
    }

    fn forget_first(&mut self, expected: Vec<(Instant, SessionId)>) {
        if let Some((_, id)) = expected.into_iter().min() {
            self.native.remove(&id);
        }
    }

    /// Returns whether a client of `address` has a session, or is expected.
    pub fn knows(&self, address: IpAddr) -> bool {
        self.v1.contains_key(&address) || self.knows_native(address)
    }

    fn knows_native(&self, address: IpAddr) -> bool {
        let mut guests = self.native.values();
        guests.any(|(_, guest)| guest.terms.peer.ip() == address)
    }

    /// Expects a native client, until `until`; the session `replaces` is over with that.
    pub fn admit_native(
        &mut self,
        terms: Terms,
        session: NativeSession,
        replaces: Option<SessionId>,
        until: Instant,
        seed: u32,
    ) {
        if let Some((_, guest)) = replaces.and_then(|id| self.native.remove(&id)) {
            guest.dismiss();
        }
        let id = session.id();
        let (writer, reader, tickets) = session.into_server();
        let guest = Guest::new(terms, (writer, reader), until, seed);
        self.native.insert(id, (tickets, guest));
    }

    /// Expects a v1 client, until `until`; what its address had before is over with that.
    pub fn admit_v1(&mut self, terms: Terms, key: &TunnelKey, until: Instant, seed: u32) {
        let codecs = (SignalWriter::v1(key.clone()), SignalReader::v1(key.clone()));
        let guest = Guest::new(terms, codecs, until, seed);
        if let Some(before) = self.v1.insert(terms.peer.ip(), guest) {
            before.dismiss();
        }
    }

    /// Returns after how much silence a connection from `address` is a pool connection; `None`
    /// where it never is.
    pub fn silence_of(&self, address: IpAddr) -> Option<Duration> {
        let guest = self.v1.get(&address)?;
        if guest.terms.offer.transport != Transport::Tcp {
            return None;
        }
        // One of a native client that is slow must not be taken for one of v1.
        Some(if self.knows_native(address) {
            CALLER_GRACE_SHARED
        } else {
            CALLER_GRACE
        })
    }

    /// Returns whether the session that a pool connection shows has a place for it, as far as it is
    /// known.
    pub fn has_place(&self, shows: &Shows<'_>, address: SocketAddr) -> bool {
        let guest = match shows {
            Shows::Ticket(ticket) => self.native.get(&ticket.session()).map(|(_, guest)| guest),
            Shows::Nothing => self.v1.get(&address.ip()),
        };
        match guest.map(|guest| &guest.stay) {
            Some(Stay::Live(session)) => session.has_room(),
            _ => true,
        }
    }

    /// Returns whether a connection that carries many pool connections is let in for what the first
    /// of them shows.
    pub fn admits(&self, shows: &Shows<'_>, address: SocketAddr, came: Came) -> bool {
        let guest = match shows {
            Shows::Ticket(ticket) => {
                let member = self.native.get(&ticket.session());
                let member = member.filter(|(tickets, _)| tickets.knows(ticket));
                member.map(|(_, guest)| guest)
            }
            Shows::Nothing => self.v1.get(&address.ip()),
        };
        guest.is_some_and(|guest| guest.expects(came))
    }

    /// Takes a pool connection: tells it its id and adds it to its session, or begins the session
    /// with it.
    ///
    /// Errors: it does not belong to a session, or that has no room.
    pub fn join(
        &mut self,
        shows: &Shows<'_>,
        address: SocketAddr,
        came: Came,
        carrier: Carrier,
    ) -> Result<(), NotJoined> {
        let guest = match shows {
            Shows::Ticket(ticket) => {
                let member = self.native.get_mut(&ticket.session());
                let (tickets, guest) = member.ok_or(NotJoined("its session is not here"))?;
                tickets
                    .redeem(ticket)
                    .map_err(|_| NotJoined("its ticket is not good"))?;
                guest
            }
            Shows::Nothing => {
                let guest = self.v1.get_mut(&address.ip());
                guest.ok_or(NotJoined("it says nothing and has no v1 session"))?
            }
        };
        guest.take(&self.around, came, carrier)
    }

    /// Forgets those whose session is over, and those who have not come in time.
    pub fn tend(&mut self, now: Instant) {
        self.native.retain(|_, (_, guest)| guest.is_here(now));
        self.v1.retain(|_, guest| guest.is_here(now));
    }
}

impl Guest {
    fn new(terms: Terms, codecs: (SignalWriter, SignalReader), until: Instant, seed: u32) -> Self {
        Self {
            terms,
            ids: Ids {
                next: seed,
                is_first: true,
            },
            stay: Stay::Expected {
                codecs: Box::new(codecs),
                until,
            },
        }
    }

    fn take(
        &mut self,
        around: &Surroundings,
        came: Came,
        mut carrier: Carrier,
    ) -> Result<(), NotJoined> {
        if !self.expects(came) {
            return Err(NotJoined("its session has another type or tls"));
        }
        if let Stay::Live(session) = &self.stay {
            if !session.has_room() {
                return Err(NotJoined("max idle connections are there"));
            }
            let id = self.ids.next();
            send_id(&mut carrier, id)?;
            carrier.end_with(&session.over());
            let is_wanted = session.add(id, PoolConnection::new(carrier, None));
            return is_wanted
                .then_some(())
                .ok_or(NotJoined("its session is over"));
        }
        send_id(&mut carrier, self.ids.next())?;
        let Stay::Expected { codecs, .. } = std::mem::replace(&mut self.stay, Stay::Failed) else {
            return Err(NotJoined("its session could not start"));
        };
        match Session::start(around.clone(), self.terms, carrier, *codecs, None) {
            Ok(session) => {
                self.stay = Stay::Live(session);
                Ok(())
            }
            Err(error) => {
                log::error!("Session with {} cannot start: {error}", self.terms.peer);
                Err(NotJoined("its session cannot start"))
            }
        }
    }

    /// Returns whether its pool connections come in that way.
    fn expects(&self, came: Came) -> bool {
        let offer = &self.terms.offer;
        came.transport == offer.transport && came.is_covered == offer.is_covered()
    }

    fn is_here(&self, now: Instant) -> bool {
        match &self.stay {
            Stay::Expected { until, .. } => {
                if now >= *until {
                    log::info!(
                        "Client {} did not come after its handshake",
                        self.terms.peer
                    );
                }
                now < *until
            }
            Stay::Live(session) => !session.is_over(),
            Stay::Failed => false,
        }
    }

    fn dismiss(self) {
        if let Stay::Live(session) = self.stay {
            session.end(SessionEnd::Replaced);
        }
    }
}

impl Ids {
    fn next(&mut self) -> PoolId {
        if std::mem::take(&mut self.is_first) {
            return PoolId::CONTROL;
        }
        self.next = self.next.wrapping_add(ID_STEP);
        if self.next == 0 {
            self.next = ID_STEP;
        }
        PoolId(self.next.to_be_bytes())
    }
}

/// Returns what a pool connection with this ticket, or none, shows.
pub fn shown(ticket: Option<&Ticket>) -> Shows<'_> {
    ticket.map_or(Shows::Nothing, Shows::Ticket)
}

/// Says in the log why a pool connection of `address` was not taken.
pub fn note_not_joined(address: SocketAddr, NotJoined(why): NotJoined) {
    log::debug!("Pool connection of {address} closed: {why}");
}

/// Tells a pool connection its id.
fn send_id(carrier: &mut Carrier, id: PoolId) -> Result<(), NotJoined> {
    let stream = match carrier {
        Carrier::Muxed(stream) => {
            stream.identify(id);
            return Ok(());
        }
        Carrier::Stream(stream) => stream,
    };
    let gone = |_| NotJoined("it has gone away");
    // A fresh connection has room for four bytes; one that has none is not worth waiting for.
    let size = stream.write(&id.0).map_err(gone)?;
    stream.flush().map_err(gone)?;
    stream.rest();
    if size == id.0.len() {
        Ok(())
    } else {
        Err(NotJoined("it takes no bytes"))
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn the_first_id_is_that_of_the_control_channel_and_none_comes_twice() {
        let mut ids = Ids {
            next: 0_u32.wrapping_sub(ID_STEP.wrapping_mul(5)),
            is_first: true,
        };
        assert_eq!(ids.next(), PoolId::CONTROL);
        let others: HashSet<PoolId> = (0..10_000).map(|_| ids.next()).collect();
        assert_eq!(others.len(), 10_000);
        assert!(!others.contains(&PoolId::CONTROL));
    }
}
