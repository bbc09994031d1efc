//! The end of a tunnel that visitors come to: its listeners.

use std::io;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use super::instance::Instance;
use super::running::{Duty, Threads};
use super::session_tcp::{Visitor, serve, serve_entry};
use super::session_udp::{Onward, UdpSessions};
use super::sessions::Sessions;
use super::slots::Kind;
use crate::net::listen::{Listeners, accept_until, canonical};

/// Where the visitors of an instance go.
#[derive(Clone)]
pub enum Way {
    /// To the targets of this program.
    Targets,
    /// To the other end of the tunnel.
    Tunnel(Arc<Sessions>),
}

/// Starts to let visitors in at `listeners`.
///
/// Errors: the system has no room for the threads and events that this takes.
pub fn start(
    instance: &Arc<Instance>,
    threads: &Threads,
    listeners: Listeners,
    way: &Way,
) -> io::Result<()> {
    // All that takes descriptors comes first: the first visitors may take the last ones.
    let mut sessions = None;
    if let Some(socket) = listeners.udp {
        let address = canonical(socket.local_addr()?);
        let onward = match way {
            Way::Targets => Onward::Targets,
            Way::Tunnel(sessions) => {
                let sessions = Arc::clone(sessions);
                Onward::Tunnel(sessions)
            }
        };
        let of_udp = UdpSessions::new(Arc::clone(instance), socket, onward)?;
        sessions = Some((of_udp, address));
    }
    if let Some(listener) = listeners.tcp {
        log::info!("Listening on tcp {}", canonical(listener.local_addr()?));
        let (admitting, onward) = (Arc::clone(instance), way.clone());
        threads.spawn(Duty::Visitors, "accept", move || {
            accept_until(
                &admitting.shutdown.drain,
                listener,
                "Visitor",
                |socket, address| {
                    admit(&admitting, &onward, socket, address);
                },
            );
        })?;
    }
    if let Some((sessions, address)) = sessions {
        log::info!("Listening on udp {address}");
        threads.spawn(Duty::Visitors, "udp", move || sessions.run())?;
    }
    Ok(())
}

/// Lets a visitor in, or turns him away. Takes no time.
fn admit(instance: &Arc<Instance>, way: &Way, socket: OwnedFd, address: SocketAddr) {
    let Some(slot) = instance.take_slot(Kind::Tcp, address) else {
        return;
    };
    let visitor = Visitor {
        socket,
        address,
        slot,
    };
    let serving = Arc::clone(instance);
    let started = match way {
        Way::Targets => instance.crew.run(move || serve(&serving, visitor)),
        Way::Tunnel(sessions) => {
            let sessions = Arc::clone(sessions);
            let task = move || serve_entry(&serving, &sessions, visitor);
            instance.crew.run(task)
        }
    };
    if let Err(refused) = started {
        let notes = &instance.notes;
        notes
            .refused
            .log(format_args!("Visitor {address} refused: {refused}"));
    }
}
