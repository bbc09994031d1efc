//! A client without a server: visitors come to the tunnel address and go straight to the targets.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use log::Level;

use super::report;
use super::session_tcp::{self, Visitor};
use super::session_udp::UdpSessions;
use super::slots::{Kind, Slot, Slots};
use crate::config::Config;
use crate::config::options::Options;
use crate::limits::{
    DATAGRAM_SIZE_MAX, DESCRIPTORS_RESERVED, DRAIN_TICK, Limits, STOP_AGAIN_TIMEOUT, STOP_TIMEOUT,
};
use crate::net::datagram::Received;
use crate::net::dial::Dialer;
use crate::net::listen::{Listeners, accept_until, canonical};
use crate::net::meter::Meter;
use crate::net::relay::{Rates, Stock};
use crate::net::resolve::Resolver;
use crate::net::targets::Targets;
use crate::runtime::event::Event;
use crate::runtime::log::Repeated;
use crate::runtime::shutdown::{Shutdown, Signals};
use crate::runtime::threads::{Crew, spawn, threads_max};

/// What all threads of a running instance share.
pub struct Instance {
    pub(super) options: Options,
    pub(super) limits: Limits,
    pub(super) dialer: Dialer,
    pub(super) stock: Stock,
    pub(super) rates: Option<Rates>,
    pub(super) tcp_meter: Meter,
    pub(super) udp_meter: Meter,
    pub(super) slots: Arc<Slots>,
    pub(super) crew: Crew,
    pub(super) shutdown: Shutdown,
    pub(super) notes: Notes,
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
}

/// A running instance: its threads and the way to stop them.
pub struct Direct {
    instance: Arc<Instance>,
    resolver: Resolver,
    /// Those that let visitors in come first.
    threads: Vec<JoinHandle<()>>,
    entries_count: usize,
    failed: Arc<Event>,
}

impl Direct {
    /// Starts serving visitors at `listeners`.
    ///
    /// `descriptors_max` is how many descriptors the process may have open.
    ///
    /// Errors: the system has no room for the threads and events that this takes.
    pub fn start(
        config: &Config,
        limits: &Limits,
        resolver: Resolver,
        listeners: Listeners,
        descriptors_max: usize,
    ) -> io::Result<Self> {
        let options = config.options.clone();
        let targets = || {
            let addresses = config.targets.clone();
            Targets::new(addresses, options.balance, limits.fallback_interval)
        };
        let (source, timeout) = (options.dial_source, limits.tcp_dial_timeout);
        let failed = Arc::new(Event::new()?);
        let instance = Arc::new(Instance {
            dialer: Dialer::new(resolver.clone(), targets, source, timeout),
            stock: Stock::new(limits.tcp_buffer_size, descriptors_max),
            rates: options.rate.map(Rates::new),
            tcp_meter: Meter::default(),
            udp_meter: Meter::default(),
            slots: Slots::new(options.slots),
            crew: Crew::new("relay", limits.stack_size, threads_max()),
            shutdown: Shutdown::new()?,
            notes: Notes::new(),
            options,
            limits: limits.clone(),
        });
        let mut starting = Starting {
            instance: Arc::clone(&instance),
            failed: Arc::clone(&failed),
            threads: Vec::new(),
        };
        let mut entries_count = 0;
        if let Some(listener) = listeners.tcp {
            log::info!("Listening on tcp {}", canonical(listener.local_addr()?));
            let admitting = Arc::clone(&instance);
            starting.spawn("accept", move || {
                accept_until(&admitting.shutdown.drain, &listener, |socket, address| {
                    admit(&admitting, socket, address);
                });
            })?;
            entries_count += 1;
        }
        if let Some(socket) = listeners.udp {
            log::info!("Listening on udp {}", canonical(socket.local_addr()?));
            let sessions = UdpSessions::new(Arc::clone(&instance), socket)?;
            starting.spawn("udp", move || sessions.run())?;
            entries_count += 1;
        }
        let interval = limits.report_interval;
        let reporting = Arc::clone(&instance);
        starting.spawn("report", move || report::run(&reporting, interval))?;
        Ok(Self {
            threads: std::mem::take(&mut starting.threads),
            instance,
            resolver,
            entries_count,
            failed,
        })
    }

    /// Returns the event that a thread of the instance raises if it ends before it should.
    pub fn failed(&self) -> &Event {
        &self.failed
    }

    /// Stops: no new visitors at once, then the end of those that are in.
    ///
    /// Blocks: until all have left, at most for the shutdown timeout, less after another signal;
    /// then until the threads have ended, at most for `STOP_TIMEOUT`.
    pub fn stop(self, signals: &Signals) {
        let shutdown = &self.instance.shutdown;
        shutdown.drain.raise();
        let deadline = Instant::now() + self.instance.limits.shutdown_timeout;
        let mut was_told_again = false;
        while !self.is_empty() && Instant::now() < deadline && !was_told_again {
            let tick = Instant::now() + DRAIN_TICK;
            was_told_again = signals.wait(Some(tick.min(deadline)), None);
        }
        let open_count = self.instance.slots.count(Kind::Tcp);
        if open_count > 0 {
            log::warn!("Stopping with {open_count} connections still open: they are cut");
        }
        shutdown.stop.raise();
        self.resolver.close();
        let patience = if was_told_again {
            STOP_AGAIN_TIMEOUT
        } else {
            STOP_TIMEOUT
        };
        if !self.instance.crew.close(patience) {
            log::warn!("Some connections did not end in time");
        }
        join_all(self.threads);
        self.instance.notes.flush();
        report::write_line(&self.instance, Duration::ZERO);
    }

    /// Returns whether all visitors have left, those of UDP as far as that can be told.
    fn is_empty(&self) -> bool {
        let entries = &self.threads[..self.entries_count];
        self.instance.slots.count(Kind::Tcp) == 0 && entries.iter().all(JoinHandle::is_finished)
    }
}

/// Threads of an instance that is not complete yet: they end if it never will be.
struct Starting {
    instance: Arc<Instance>,
    failed: Arc<Event>,
    threads: Vec<JoinHandle<()>>,
}

impl Starting {
    /// Starts a thread that belongs to the instance until `drain`.
    fn spawn(&mut self, name: &str, body: impl FnOnce() + Send + 'static) -> io::Result<()> {
        let alarm = Alarm {
            instance: Arc::clone(&self.instance),
            failed: Arc::clone(&self.failed),
        };
        let stack_size = self.instance.limits.stack_size;
        self.threads.push(spawn(name, stack_size, move || {
            let _alarm = alarm;
            body();
        })?);
        Ok(())
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if !self.threads.is_empty() {
            self.instance.shutdown.drain.raise();
            self.instance.shutdown.stop.raise();
            join_all(std::mem::take(&mut self.threads));
        }
    }
}

/// Tells when a thread ends that should not, by a panic: the instance starts again then.
struct Alarm {
    instance: Arc<Instance>,
    failed: Arc<Event>,
}

impl Drop for Alarm {
    fn drop(&mut self) {
        if !self.instance.shutdown.drain.is_raised() {
            self.failed.raise();
        }
    }
}

fn join_all(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        if thread.join().is_err() {
            log::error!("A thread ended by a panic: please report what it said");
        }
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
        }
    }

    /// Says how often each happened without a line of its own.
    pub fn flush(&self) {
        for note in [&self.refused, &self.blocked, &self.not_dialled, &self.udp] {
            note.flush();
        }
    }
}

impl Instance {
    /// Takes a place for a visitor, or says in the log that there is none.
    pub(super) fn take_slot(&self, kind: Kind, address: SocketAddr) -> Option<Slot> {
        let slot = self.slots.take(kind);
        if slot.is_none() {
            let max = self.slots.max();
            self.notes.refused.log(format_args!(
                "Visitor {address} refused: slot={max} reached"
            ));
        }
        slot
    }

    /// Returns whether datagrams are of a size that is passed on; says in the log if not.
    pub(super) fn admits(&self, received: &Received<'_>, sender: &str) -> bool {
        let size_max = self
            .limits
            .udp_datagram_size_max
            .unwrap_or(DATAGRAM_SIZE_MAX);
        let size = received.segment_size;
        if size > size_max {
            self.notes.udp.log(format_args!(
                "Datagram of {size} bytes from {sender} dropped: \
                 NP_UDP_DATA_BUF_SIZE is {size_max}"
            ));
        }
        size <= size_max
    }
}

/// Lets a visitor in, or turns it away. Takes no time.
fn admit(instance: &Arc<Instance>, socket: std::os::fd::OwnedFd, address: SocketAddr) {
    let Some(slot) = instance.take_slot(Kind::Tcp, address) else {
        return;
    };
    let visitor = Visitor {
        socket,
        address,
        slot,
    };
    let serving = Arc::clone(instance);
    if let Err(refused) = instance
        .crew
        .run(move || session_tcp::serve(&serving, visitor))
    {
        instance
            .notes
            .refused
            .log(format_args!("Visitor {address} refused: {refused}"));
    }
}

/// Says in the log how many visitors there is room for, if that is less than option `slot`.
pub fn announce_room(options: &Options, descriptors_max: usize) {
    // A TCP visitor takes a descriptor and its target another one.
    let by_descriptors = descriptors_max.saturating_sub(DESCRIPTORS_RESERVED) / 2;
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
