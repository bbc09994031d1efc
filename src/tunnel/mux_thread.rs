//! The threads of connections that carry many pool connections, and where their streams go.

use std::io;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};

use super::guests::{Came, Guests, note_not_joined, shown};
use super::session::Surroundings;
use super::session_tcp::terms;
use crate::net::mux::{Mux, MuxStream, Porter, Transport};
use crate::pool::Carrier;
use crate::pool::muxed::Launch;
use crate::runtime::threads::lock;
use crate::wire::ticket::Ticket;

/// Starts the thread of `mux`.
///
/// Errors: the system has no room for another thread, or there are as many as may be.
pub fn start<T>(around: &Surroundings, mux: Mux<T>) -> io::Result<()>
where
    T: Transport + Send + 'static,
{
    let instance = Arc::clone(&around.instance);
    let run = move || {
        let terms = terms(&instance, &instance.shutdown.stop);
        mux.run(&terms, &instance.crew);
    };
    let started = around.sessions.muxes.run(run);
    started.map_err(|refused| io::Error::other(refused.to_string()))
}

/// Returns what starts the threads of a client's connections.
pub fn launch<T>(around: &Surroundings) -> Launch<T>
where
    T: Transport + Send + 'static,
{
    let around = around.clone();
    Box::new(move |mux| start(&around, mux))
}

/// Takes the streams of one connection to the sessions that they belong to.
pub struct StreamPorter {
    /// Those who may have sessions.
    pub guests: Arc<Mutex<Guests>>,
    /// Where the connection comes from.
    pub address: SocketAddr,
    /// What its streams are.
    pub came: Came,
}

impl Porter for StreamPorter {
    fn arrive(&self, ticket: Option<Ticket>, stream: MuxStream) {
        let shows = shown(ticket.as_ref());
        let carrier = Carrier::Muxed(stream);
        let joined = lock(&self.guests).join(&shows, self.address, self.came, carrier);
        if let Err(not_joined) = joined {
            note_not_joined(self.address, not_joined);
        }
    }
}
