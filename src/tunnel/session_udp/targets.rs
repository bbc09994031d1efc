//! Visitors over UDP that go straight to the targets.

use std::sync::Arc;
use std::time::Instant;

use crossbeam_channel::{Receiver, Sender, bounded};

use super::{Link, Session, UdpSessions, VisitorKey, send_back};
use crate::net::datagram::Batch;
use crate::net::dial::{DialledUdp, Found};
use crate::net::listen::canonical;
use crate::net::race::Watch;
use crate::runtime::event::Bell;
use crate::tunnel::slots::Slot;
use crate::tunnel::udp_held::Held;
use crate::tunnel::udp_table::{Side, Token};
use crate::tunnel::udp_target::{UdpTarget, Verdict};

/// The look-up of names, on another thread; one at a time serves all sessions that wait.
pub(super) struct LookUp {
    finder: Arc<Finder>,
    answers: Receiver<Vec<Found>>,
    is_running: bool,
}

/// What that thread gets: where to leave the answer, and how to tell.
struct Finder {
    sender: Sender<Vec<Found>>,
    bell: Arc<Bell>,
}

impl LookUp {
    pub(super) fn new(bell: &Arc<Bell>) -> Self {
        let (sender, answers) = bounded(1);
        let bell = Arc::clone(bell);
        Self {
            finder: Arc::new(Finder { sender, bell }),
            answers,
            is_running: false,
        }
    }
}

impl Session {
    fn is_opening(&self) -> bool {
        matches!(self.link, Link::Opening { .. })
    }
}

impl UdpSessions {
    /// Opens a session to a target.
    pub(super) fn open_to_target(
        &mut self,
        visitor: VisitorKey,
        slot: Slot,
        now: Instant,
    ) -> Option<Token> {
        let dialer = &self.instance.dialer;
        let order = dialer.udp.order(now);
        let known = dialer.dial_udp(&order, |index| dialer.addresses_known(index));
        if let Some(Err(error)) = &known {
            let address = canonical(visitor.0);
            self.instance.note_udp_not_served(address, error);
            return None;
        }
        let held = Held::default();
        let token = self.insert(visitor, slot, Link::Opening { order, held }, now);
        match known {
            Some(Ok(dialled)) => self.link_target(token, dialled),
            _ => self.look_up(),
        }
        Some(token)
    }

    /// Has the names of the targets looked up on another thread.
    fn look_up(&mut self) {
        if self.look_up.is_running {
            return;
        }
        let deadline = Instant::now() + self.instance.limits.udp_dial_timeout;
        let (instance, finder) = (Arc::clone(&self.instance), Arc::clone(&self.look_up.finder));
        let task = move || {
            let watch = Watch {
                stop: &instance.shutdown.stop,
                visitor: None,
            };
            let all: Vec<usize> = (0..instance.dialer.udp.addresses().len()).collect();
            let found = instance.dialer.look_up(&all, deadline, watch);
            // There is room for one answer, and nobody asks before it has been taken.
            let _ = finder.sender.try_send(found);
            finder.bell.ring();
        };
        match self.instance.crew.run(task) {
            Ok(()) => self.look_up.is_running = true,
            Err(refused) => {
                let notes = &self.instance.notes;
                notes
                    .refused
                    .log(format_args!("UDP visitors refused: {refused}"));
                for token in self.table.tokens_where(Session::is_opening) {
                    self.close(token, "no thread for the look-up");
                }
            }
        }
    }

    /// Connects the sessions that waited for a look-up, if it has an answer.
    pub(super) fn take_found(&mut self, now: Instant) {
        let Ok(found) = self.look_up.answers.try_recv() else {
            return;
        };
        self.look_up.is_running = false;
        for token in self.table.tokens_where(Session::is_opening) {
            let Some(session) = self.table.get(token) else {
                continue;
            };
            session.active_at = now;
            let visitor = session.visitor;
            let Link::Opening { order, .. } = &session.link else {
                continue;
            };
            let dialer = &self.instance.dialer;
            match dialer.dial_udp(order, |index| found.get(index).cloned()) {
                Some(Ok(dialled)) => self.link_target(token, dialled),
                Some(Err(error)) => {
                    let address = canonical(visitor.0);
                    self.instance.note_udp_not_served(address, &error);
                    self.close(token, "not served");
                }
                None => self.close(token, "not served"),
            }
        }
    }

    /// Connects a session with its target and sends what has been waiting.
    fn link_target(&mut self, token: Token, dialled: DialledUdp) {
        let Some(session) = self.table.get(token) else {
            return;
        };
        let (visitor, address) = (canonical(session.visitor.0), dialled.address);
        let name = token.name(Side::Target);
        match UdpTarget::watched(dialled, &self.back, &self.gate, name) {
            Ok(target) => {
                log::debug!("UDP visitor {visitor} connected to {address}");
                self.link(token, Link::Target(target));
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

    /// Passes what one target has sent back to its visitor; returns how many bytes.
    pub(super) fn receive_from_target(&mut self, token: Token, now: Instant) -> usize {
        // The batch is lent out of `self` so that the session can be changed meanwhile.
        let Some(mut batch) = self.batch.take() else {
            return 0;
        };
        let mut moved = 0;
        for _ in 0..self.back.rounds_max() {
            moved += self.pass_back(token, &mut batch, now);
            if !batch.is_full() {
                break;
            }
        }
        self.batch = Some(batch);
        moved
    }

    fn pass_back(&mut self, token: Token, batch: &mut Batch, now: Instant) -> usize {
        let Some(session) = self.table.get(token) else {
            return 0;
        };
        let Link::Target(target) = &mut session.link else {
            return 0;
        };
        if let Err(error) = self.port.receive(&target.dialled.socket, batch) {
            self.note_target(token, &error);
            return 0;
        }
        session.active_at = now;
        target.note_answer(&self.instance.dialer, now);
        let mut moved = 0;
        for received in batch.iter() {
            let instance = &self.instance;
            if instance.admits(received.segment_size, self.size_max, "a target") {
                moved += received.bytes.len();
                let way = (&self.port, &self.listener);
                send_back(way, session.visitor, &received, instance);
            }
        }
        moved
    }

    /// Looks at an error that a call on a target's socket gave.
    pub(super) fn note_target(&mut self, token: Token, error: &std::io::Error) {
        let Some(session) = self.table.get(token) else {
            return;
        };
        let visitor = canonical(session.visitor.0);
        let Link::Target(target) = &mut session.link else {
            return;
        };
        match target.judge(error, visitor, &self.instance.dialer) {
            Verdict::Stays => {}
            Verdict::Moves(next) => self.link_target(token, next),
            Verdict::Ends => self.close(token, "its target refuses"),
        }
    }
}
