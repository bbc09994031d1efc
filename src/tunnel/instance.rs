//! What all threads of a running instance share.

use std::fmt::Display;
use std::sync::Arc;

use log::Level;

use super::slots::{Kind, Slot, Slots};
use crate::config::Config;
use crate::config::options::Options;
use crate::limits::{DESCRIPTORS_RESERVED, Limits};
use crate::net::dial::Dialer;
use crate::net::meter::Meter;
use crate::net::relay::{Rates, Stock};
use crate::net::resolve::Resolver;
use crate::net::targets::Targets;
use crate::runtime::log::Repeated;
use crate::runtime::shutdown::Shutdown;
use crate::runtime::threads::{Crew, threads_max};

/// What all threads of a running instance share.
pub struct Instance {
    pub(super) options: Options,
    pub(super) limits: Limits,
    pub(super) resolver: Resolver,
    pub(super) dialer: Dialer,
    pub(super) stock: Stock,
    pub(super) rates: Option<Rates>,
    pub(super) tcp_meter: Meter,
    pub(super) udp_meter: Meter,
    pub(super) slots: Arc<Slots>,
    pub(super) crew: Crew,
    pub(super) shutdown: Shutdown,
    pub(super) notes: Notes,
    /// How many descriptors the process may have open.
    pub(super) descriptors_max: usize,
}

/// Failures that visitors can cause as often as they like.
pub(super) struct Notes {
    /// No place, thread or descriptor for a visitor.
    pub refused: Repeated,
    /// A protocol that is not let in.
    pub blocked: Repeated,
    /// No target answered.
    pub not_dialled: Repeated,
    /// Datagrams that cannot be received or are too large.
    pub udp: Repeated,
    /// Clients that do not get a session.
    pub handshakes: Repeated,
    /// Lines of a control channel that are no signals.
    pub unreadable: Repeated,
}

impl Instance {
    /// Makes what the threads of an instance of `config` will share.
    ///
    /// Errors: no descriptors left.
    pub(super) fn new(
        config: &Config,
        limits: &Limits,
        resolver: Resolver,
        descriptors_max: usize,
    ) -> std::io::Result<Self> {
        let options = config.options.clone();
        let targets = || {
            let addresses = config.targets.clone();
            Targets::new(addresses, options.balance, limits.fallback_interval)
        };
        let (source, timeout) = (options.dial_source, limits.tcp_dial_timeout);
        Ok(Self {
            dialer: Dialer::new(resolver.clone(), targets, source, timeout),
            resolver,
            stock: Stock::new(limits.tcp_buffer_size, descriptors_max),
            rates: options.rate.map(Rates::new),
            tcp_meter: Meter::default(),
            udp_meter: Meter::default(),
            slots: Slots::new(
                options.slots,
                descriptors_max.saturating_sub(DESCRIPTORS_RESERVED),
            ),
            crew: Crew::new("relay", limits.stack_size, threads_max()),
            shutdown: Shutdown::new()?,
            notes: Notes::new(),
            descriptors_max,
            options,
            limits: limits.clone(),
        })
    }

    /// Returns how many pool connections may be idle: visitors must find descriptors as well.
    pub(super) fn pool_room(&self) -> usize {
        pool_room(self.descriptors_max)
    }

    /// Takes a place for a visitor, or says in the log that there is none.
    pub(super) fn take_slot(&self, kind: Kind, address: impl Display) -> Option<Slot> {
        match self.slots.take(kind) {
            Ok(slot) => Some(slot),
            Err(full) => {
                let notes = &self.notes;
                notes
                    .refused
                    .log(format_args!("Visitor {address} refused: {full}"));
                None
            }
        }
    }

    /// Returns whether a datagram is of a size that is passed on; says in the log if not.
    pub(super) fn admits(&self, size: usize, size_max: usize, sender: &str) -> bool {
        if size > size_max {
            self.notes.udp.log(format_args!(
                "Datagram of {size} bytes from {sender} dropped: \
                 NP_UDP_DATA_BUF_SIZE is {size_max}, raise it where more is needed"
            ));
        }
        size <= size_max
    }

    /// Says in the log that a visitor over UDP was not served.
    pub(super) fn note_udp_not_served(&self, visitor: impl Display, reason: impl Display) {
        self.notes
            .not_dialled
            .log(format_args!("UDP visitor {visitor} not served: {reason}"));
    }
}

impl Notes {
    fn new() -> Self {
        let warnings = |what| Repeated::new(Level::Warn, what);
        Self {
            refused: warnings("visitors refused"),
            blocked: warnings("visitors refused for their protocol"),
            not_dialled: warnings("visitors not served"),
            udp: warnings("failures with datagrams"),
            handshakes: warnings("handshakes refused"),
            unreadable: warnings("signals skipped"),
        }
    }

    /// Says how often each happened without a line of its own.
    pub fn flush(&self) {
        let of_visitors = [&self.refused, &self.blocked, &self.not_dialled, &self.udp];
        let of_peers = [&self.handshakes, &self.unreadable];
        for note in of_visitors.into_iter().chain(of_peers) {
            note.flush();
        }
    }
}

/// Returns how many pool connections may be idle in a process that may have so many descriptors.
pub fn pool_room(descriptors_max: usize) -> usize {
    (descriptors_max / 4).max(1)
}

/// Says in the log how many visitors there is room for beside `pool_count` idle pool connections,
/// if that is less than option `slot`.
pub fn announce_room(options: &Options, descriptors_max: usize, pool_count: usize) {
    // A TCP visitor takes a descriptor and its target another one.
    let taken = DESCRIPTORS_RESERVED + pool_count;
    let by_descriptors = descriptors_max.saturating_sub(taken) / 2;
    let room = by_descriptors.min(threads_max());
    let slots = options
        .slots
        .map_or(usize::MAX, |max| usize::try_from(max).unwrap_or(usize::MAX));
    if slots > room {
        let limit = if room == by_descriptors {
            format!("the limit of open files is {descriptors_max} (ulimit -n)")
        } else {
            String::from("that is how many threads this system can carry")
        };
        log::info!("Room for about {room} visitors at once: {limit}");
    }
}
