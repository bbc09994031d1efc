//! The threads of connections that carry many pool connections.

use std::io;
use std::sync::Arc;

use super::session::Surroundings;
use super::session_tcp::terms;
use crate::net::mux::{Mux, Transport};

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
