//! Visitors over UDP that go through a tunnel: each takes a pool connection to the other end.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::{Link, UdpSessions, VisitorKey, send_back};
use crate::limits::UDP_WAITING_MAX;
use crate::net::datagram::Received;
use crate::net::datagram_stream::Progress;
use crate::net::listen::canonical;
use crate::net::rate::Turn;
use crate::tunnel::gate::Lane;
use crate::tunnel::slots::Slot;
use crate::tunnel::udp_held::Held;
use crate::tunnel::udp_table::{Side, Token};
use crate::tunnel::udp_way::{Streams, WayEnd};
use crate::tunnel::uplink::{UdpWay, Uplink};

/// The sessions that go through a tunnel, as far as they have something to be done.
pub(super) struct Tunnel {
    uplink: Arc<dyn Uplink>,
    streams: Streams,
    /// Visitors without a pool connection, those that came first in front, and until when they
    /// wait. Some may be gone.
    waiting: VecDeque<(Token, Instant)>,
    /// Sessions with datagrams to be pushed out at the end of the round.
    marked: Vec<Token>,
    /// Sessions that may have more to read than their descriptors announce.
    again: VecDeque<Token>,
}

impl Tunnel {
    pub(super) fn new(uplink: Arc<dyn Uplink>, size_max: usize) -> Self {
        Self {
            uplink,
            streams: Streams::new(size_max),
            waiting: VecDeque::new(),
            marked: Vec::new(),
            again: VecDeque::new(),
        }
    }

    /// Returns how long the thread may sleep, as far as this is concerned.
    pub(super) fn sleep_duration(&self, back: &Lane, now: Instant) -> Option<Duration> {
        if !self.again.is_empty() && !back.is_waiting(now) {
            return Some(Duration::ZERO);
        }
        let (_, until) = self.waiting.front()?;
        Some(until.saturating_duration_since(now))
    }
}

impl UdpSessions {
    /// Opens a session to the other end of the tunnel.
    pub(super) fn open_to_tunnel(
        &mut self,
        visitor: VisitorKey,
        slot: Slot,
        now: Instant,
    ) -> Option<Token> {
        let waiting_count = self.tunnel.as_ref()?.waiting.len();
        if waiting_count >= UDP_WAITING_MAX {
            self.instance.notes.refused.log(format_args!(
                "UDP visitor {} refused: {waiting_count} wait for pool connections",
                canonical(visitor.0)
            ));
            return None;
        }
        let token = self.insert(visitor, slot, Link::Waiting(Held::default()), now);
        let until = now + self.instance.limits.pool_get_timeout;
        let waiting = &mut self.tunnel.as_mut()?.waiting;
        waiting.push_back((token, until));
        // Whoever came before has asked already, and is served first.
        if waiting_count == 0 {
            self.serve_waiting(now);
        }
        Some(token)
    }

    /// Gives pool connections to the visitors that wait, as far as there are some.
    pub(super) fn serve_waiting(&mut self, now: Instant) {
        loop {
            let Some(tunnel) = &mut self.tunnel else {
                return;
            };
            let Some((token, _)) = tunnel.waiting.front().copied() else {
                return;
            };
            let session = self.table.get(token);
            let Some(session) = session.filter(|one| matches!(one.link, Link::Waiting(_))) else {
                tunnel.waiting.pop_front();
                continue;
            };
            let visitor = canonical(session.visitor.0);
            let Some(way) = tunnel.uplink.take_udp(visitor, &self.bell) else {
                return;
            };
            session.active_at = now;
            tunnel.waiting.pop_front();
            self.link_way(token, way);
        }
    }

    /// Ends the sessions that have waited for a pool connection for too long.
    pub(super) fn give_up_waiting(&mut self, now: Instant) {
        let mut is_any = false;
        while let Some(tunnel) = &mut self.tunnel
            && let Some((token, until)) = tunnel.waiting.front().copied()
            && until <= now
        {
            tunnel.waiting.pop_front();
            let session = self.table.get(token);
            let Some(session) = session.filter(|one| matches!(one.link, Link::Waiting(_))) else {
                continue;
            };
            let visitor = canonical(session.visitor.0);
            let timeout = self.instance.limits.pool_get_timeout;
            let reason = format_args!("no pool connection within {timeout:?}");
            self.instance.note_udp_not_served(visitor, reason);
            self.close(token, "not served");
            is_any = true;
        }
        if is_any {
            // The bell was to be rung for one that is gone.
            self.serve_waiting(now);
        }
    }

    /// Connects a session with the other end and puts in what has been waiting.
    fn link_way(&mut self, token: Token, way: UdpWay) {
        let Some(tunnel) = &mut self.tunnel else {
            return;
        };
        let name = token.name(Side::Stream);
        match WayEnd::watched(way, &tunnel.streams, &self.back, &self.gate, name) {
            Ok(way) => {
                self.link(token, Link::Way(way));
                self.note_held_bytes(token);
            }
            Err(error) => {
                let notes = &self.instance.notes;
                notes
                    .refused
                    .log(format_args!("UDP visitor refused: {error}"));
                self.close(token, "refused");
            }
        }
    }

    /// Puts datagrams of a visitor into its pool connection.
    pub(super) fn put(&mut self, token: Token, received: &Received<'_>) {
        let (Some(tunnel), Some(session)) = (&mut self.tunnel, self.table.get(token)) else {
            return;
        };
        let Link::Way(way) = &mut session.link else {
            return;
        };
        let visitor = canonical(session.visitor.0);
        match way.put(received, visitor, &self.instance) {
            Ok(()) if way.is_marked => {}
            Ok(()) => {
                way.is_marked = true;
                tunnel.marked.push(token);
            }
            Err(error) => self.close(token, &error.to_string()),
        }
    }

    /// Lets the rest of what was put in leave: there is room again.
    pub(super) fn resume(&mut self, token: Token) {
        let Some(Link::Way(way)) = self.table.get(token).map(|session| &mut session.link) else {
            return;
        };
        let name = token.name(Side::Stream);
        if let Err(error) = way.resume(&self.back, &self.gate, name) {
            self.close(token, &error.to_string());
        }
    }

    /// Passes what came through the tunnel back to its visitor; returns how many bytes.
    pub(super) fn receive_from_tunnel(
        &mut self,
        token: Token,
        turn: Option<Turn>,
        now: Instant,
    ) -> usize {
        let (Some(tunnel), Some(session)) = (&mut self.tunnel, self.table.get(token)) else {
            return 0;
        };
        let Link::Way(way) = &mut session.link else {
            return 0;
        };
        let (instance, visitor) = (&*self.instance, session.visitor);
        let link = (&self.port, &self.listener);
        let streams = &mut tunnel.streams;
        let reading = way.receive(streams, turn, visitor.0, instance, |received| {
            session.active_at = now;
            send_back(link, visitor, received, instance);
        });
        match reading.progress {
            Ok(Progress::Ended) => self.close(token, "the other end has ended it"),
            Err(error) => self.close(token, &error.to_string()),
            Ok(_) => {
                self.note_held_bytes(token);
                // The reading may have made the stream write.
                self.push_out(token);
            }
        }
        reading.moved
    }

    /// Ends a round: reads what no descriptor announces, and pushes out what was put in.
    pub(super) fn finish_round(&mut self, now: Instant) {
        let again_count = self.tunnel.as_ref().map_or(0, |tunnel| tunnel.again.len());
        if self.back.is_limited() && again_count > 0 {
            self.take_turn_back(now);
        } else {
            for _ in 0..again_count {
                let Some(token) = self.next_again() else {
                    break;
                };
                self.receive_from_tunnel(token, None, now);
            }
        }
        while let Some(token) = self.tunnel.as_mut().and_then(|tunnel| tunnel.marked.pop()) {
            if let Some(way) = self.way(token) {
                way.is_marked = false;
            }
            self.push_out(token);
        }
    }

    /// Returns a session that may have more to read than its descriptor announces.
    pub(super) fn next_again(&mut self) -> Option<Token> {
        let token = self.tunnel.as_mut()?.again.pop_front()?;
        if let Some(way) = self.way(token) {
            way.is_again = false;
        }
        Some(token)
    }

    /// Lets nobody in between take a quiet session for a dead one, and gives up what it does not
    /// need.
    pub(super) fn keep_alive(&mut self, token: Token) {
        if let Some(way) = self.way(token) {
            way.keep_alive();
            way.rest();
        }
        self.note_held_bytes(token);
        self.push_out(token);
    }

    fn note_held_bytes(&mut self, token: Token) {
        if let Some(way) = self.way(token)
            && way.holds_bytes()
            && !std::mem::replace(&mut way.is_again, true)
            && let Some(tunnel) = &mut self.tunnel
        {
            tunnel.again.push_back(token);
        }
    }

    fn way(&mut self, token: Token) -> Option<&mut WayEnd> {
        match &mut self.table.get(token)?.link {
            Link::Way(way) => Some(way),
            _ => None,
        }
    }

    fn push_out(&mut self, token: Token) {
        let Some(Link::Way(way)) = self.table.get(token).map(|session| &mut session.link) else {
            return;
        };
        let name = token.name(Side::Stream);
        if let Err(error) = way.push_out(&self.back, &self.gate, name) {
            self.close(token, &error.to_string());
        }
    }
}
