//! Connections of the API: accepts them, ends TLS, lets one checked request after another through
//! to the server behind.
//!
//! | module | owns |
//! |---|---|
//! | `places` | how many clients there may be, and who gives way |
//! | `connection` | one client: TLS, his requests, errors |
//! | `relay` | one request to the server behind, its answer back |
//!
//! One thread accepts; each client has a thread. Nothing that a client sends or withholds stops
//! another one: all he takes is one place, and that gives way to a newcomer while he is waited for.

mod connection;
mod places;
mod relay;
#[cfg(test)]
mod tests;

use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::Instant;

use log::Level;

use super::backend::Backend;
use crate::limits::{
    API_CONNECTION_DESCRIPTORS, API_CONNECTIONS_MAX, API_DESCRIPTORS_SHARE, API_FAREWELL_TIMEOUT,
    API_THREADS_ENDING_MAX, API_TURNED_AWAY_MAX,
};
use crate::net::cover::ServerCover;
use crate::net::listen::accept_until;
use crate::net::origin::origin_of;
use crate::runtime::descriptors;
use crate::runtime::event::Event;
use crate::runtime::log::Repeated;
use crate::runtime::threads::{Crew, spawn};
use connection::Connection;
use places::{Places, Service};

/// What stands between clients and the server behind. Dropped without [`Front::stop`] it goes on.
pub struct Front {
    address: SocketAddr,
    around: Arc<Around>,
    accepting: JoinHandle<()>,
}

/// What all connections share.
struct Around {
    cover: Arc<ServerCover>,
    backend: Backend,
    places: Arc<Places>,
    crew: Crew,
    drain: Event,
    full: Repeated,
}

impl Front {
    /// Accepts clients of `listener`, which is non-blocking.
    ///
    /// Errors: the system is short of threads or descriptors.
    pub fn start(
        listener: TcpListener,
        cover: Arc<ServerCover>,
        backend: Backend,
        stack_size: usize,
    ) -> io::Result<Self> {
        let address = listener.local_addr()?;
        let descriptors = descriptors::raise_limit() / API_DESCRIPTORS_SHARE;
        let connections_max =
            (descriptors / API_CONNECTION_DESCRIPTORS).clamp(1, API_CONNECTIONS_MAX);
        let threads_max = connections_max + API_TURNED_AWAY_MAX + API_THREADS_ENDING_MAX;
        let around = Arc::new(Around {
            cover,
            backend,
            places: Places::new(connections_max),
            crew: Crew::new("client", stack_size, threads_max),
            drain: Event::new()?,
            full: Repeated::new(Level::Warn, "API connections refused"),
        });
        let accepting = spawn("accept", stack_size, {
            let around = Arc::clone(&around);
            move || {
                accept_until(&around.drain, listener, "API client", |socket, address| {
                    Around::admit(&around, socket, address);
                });
            }
        })?;
        Ok(Self {
            address,
            around,
            accepting,
        })
    }

    /// Returns where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Closes the listener and reads no more requests. Those under way are answered.
    pub fn drain(&self) {
        self.around.drain.raise();
        self.around.places.drain();
    }

    /// Ends whatever is left, once the last answers have had a moment to leave.
    ///
    /// Blocks: until all threads have ended, at most until `deadline`.
    pub fn stop(self, deadline: Instant) {
        self.drain();
        let left = || deadline.saturating_duration_since(Instant::now());
        let crew = &self.around.crew;
        // The server behind may have answered just now: the end of an event stream is on its way.
        let mut has_ended = crew.close(left().min(API_FAREWELL_TIMEOUT));
        if !has_ended {
            self.around.places.stop();
            has_ended = crew.close(left());
        }
        if !has_ended {
            log::warn!("Connections of the API are still open at the end");
        } else if self.accepting.join().is_err() {
            log::error!("The thread that accepts API clients has failed");
        }
    }
}

impl Around {
    /// Gives a client a place and a thread, or hangs up.
    fn admit(around: &Arc<Self>, socket: OwnedFd, address: SocketAddr) {
        let place = match around.places.take(origin_of(address)) {
            Ok(Some(place)) => place,
            Ok(None) => return around.refuse(address, &"there is no room"),
            Err(error) => return around.refuse(address, &error),
        };
        if place.service == Service::TurnedAway {
            around.refuse(address, &"all places are taken by requests under way");
        }
        let carried = Arc::clone(around);
        let serve = move || Connection::serve(&carried, &place, socket, address);
        if let Err(refused) = around.crew.run(serve) {
            around.refuse(address, &refused);
        }
    }

    fn refuse(&self, address: SocketAddr, reason: &dyn std::fmt::Display) {
        if !self.drain.is_raised() {
            let full = &self.full;
            full.log(format_args!("API client {address} refused: {reason}"));
        }
    }
}
