//! A client without a server: visitors come to the tunnel address and go straight to the targets.

use std::io;
use std::sync::Arc;

use super::entry::{self, Way};
use super::instance::Instance;
use super::report::Gauge;
use super::running::{Running, Threads};
use crate::net::listen::Listeners;

/// Starts serving visitors at `listeners`.
///
/// Errors: the system has no room for the threads and events that this takes.
pub fn start(instance: Arc<Instance>, listeners: Listeners) -> io::Result<Running> {
    let threads = Threads::new(instance)?;
    let starting = Running::begin(threads.clone(), Gauge::Targets);
    entry::start(starting.instance(), &threads, listeners, &Way::Targets)?;
    starting.complete(None)
}
