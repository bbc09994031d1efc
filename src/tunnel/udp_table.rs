//! The UDP sessions of a listener, by visitor and by token.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Instant;

use super::slots::Slot;
use crate::net::dial::DialledUdp;

/// A visitor, and the address that it wrote to.
pub(super) type VisitorKey = (SocketAddr, Option<IpAddr>);

/// A session in the table: its place, and which use of that place it is. The first use is 1, so
/// that no token looks like a name in the outer epoll.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) struct Token {
    place: u32,
    use_count: u32,
}

pub(super) struct Session {
    pub(super) visitor: VisitorKey,
    pub(super) link: Link,
    pub(super) active_at: Instant,
    /// Freed with the session.
    pub(super) _slot: Slot,
}

/// The way to the target.
pub(super) enum Link {
    /// Names are being looked up; datagrams wait.
    Opening {
        /// The targets in the order in which they are to be tried.
        order: Vec<usize>,
        held: Vec<Vec<u8>>,
        held_size: usize,
    },
    Open {
        target: DialledUdp,
        /// Whether it has answered since it last refused.
        has_answered: bool,
    },
}

impl Session {
    pub(super) fn is_opening(&self) -> bool {
        matches!(self.link, Link::Opening { .. })
    }
}

impl Token {
    pub(super) fn to_u64(self) -> u64 {
        u64::from(self.use_count) << 32 | u64::from(self.place)
    }

    pub(super) fn from_u64(value: u64) -> Self {
        let half = |value: u64| u32::try_from(value & u64::from(u32::MAX)).unwrap_or_default();
        Self {
            place: half(value),
            use_count: half(value >> 32),
        }
    }
}

/// The sessions, by visitor and by token.
#[derive(Default)]
pub(super) struct Table {
    places: Vec<Place>,
    free: Vec<u32>,
    by_visitor: HashMap<VisitorKey, Token>,
}

#[derive(Default)]
struct Place {
    use_count: u32,
    session: Option<Session>,
}

impl Table {
    pub(super) fn find(&self, visitor: &VisitorKey) -> Option<Token> {
        self.by_visitor.get(visitor).copied()
    }

    pub(super) fn get(&mut self, token: Token) -> Option<&mut Session> {
        let place = self.places.get_mut(usize::try_from(token.place).ok()?)?;
        place
            .session
            .as_mut()
            .filter(|_| place.use_count == token.use_count)
    }

    pub(super) fn insert(&mut self, session: Session) -> Token {
        let index = self.free.pop().unwrap_or_else(|| {
            self.places.push(Place::default());
            u32::try_from(self.places.len() - 1).expect("each session has a descriptor")
        });
        let place = &mut self.places[usize::try_from(index).expect("it is an index")];
        place.use_count = place.use_count.wrapping_add(1).max(1);
        let token = Token {
            place: index,
            use_count: place.use_count,
        };
        self.by_visitor.insert(session.visitor, token);
        place.session = Some(session);
        token
    }

    pub(super) fn remove(&mut self, token: Token) -> Option<Session> {
        self.get(token)?;
        let place = self.places.get_mut(usize::try_from(token.place).ok()?)?;
        let session = place.session.take()?;
        self.free.push(token.place);
        self.by_visitor.remove(&session.visitor);
        Some(session)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Session> {
        self.places
            .iter()
            .filter_map(|place| place.session.as_ref())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.by_visitor.is_empty()
    }

    pub(super) fn tokens_where(&self, condition: impl Fn(&Session) -> bool) -> Vec<Token> {
        let is_meant = |token: &Token| {
            let place = usize::try_from(token.place)
                .ok()
                .and_then(|i| self.places.get(i));
            place
                .and_then(|place| place.session.as_ref())
                .is_some_and(&condition)
        };
        self.by_visitor.values().copied().filter(is_meant).collect()
    }
}
