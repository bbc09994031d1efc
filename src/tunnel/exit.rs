//! The end that dials: a signal names a pool connection, a target is dialled, bytes flow.

use std::net::SocketAddr;
use std::sync::Arc;

use super::instance::Instance;
use super::session::Session;
use super::session_tcp::{self, Arrival};
use super::slots::Kind;
use super::udp_exit::{UdpCarrier, serve_udp};
use super::uplink::UdpWay;
use crate::pool::Carrier;

/// The end that dials.
pub struct Exit {
    instance: Arc<Instance>,
    /// Absent where UDP is left out.
    udp: Option<UdpCarrier>,
}

impl Exit {
    /// Makes an end for the targets of `instance`.
    pub fn new(instance: Arc<Instance>, udp: Option<UdpCarrier>) -> Self {
        Self { instance, udp }
    }

    /// Serves a visitor of the other end, who has come on `carrier`. Does not wait.
    ///
    /// Where there is no place for him the connection is refused, and the log says why.
    pub fn carry(
        &self,
        session: &Arc<Session>,
        carrier: Carrier,
        kind: Kind,
        remote: Option<SocketAddr>,
    ) {
        let instance = &self.instance;
        let visitor = remote.unwrap_or_else(|| session.peer());
        let pending = Pending(Some(carrier));
        let (over, framing) = (session.over(), session.framing());
        let serving = Arc::clone(instance);
        let started = match (kind, &self.udp) {
            (Kind::Tcp, _) if instance.options.tcp => {
                let Some(slot) = instance.take_slot(kind, visitor) else {
                    return;
                };
                let task = move || {
                    if let Some(carrier) = pending.accept() {
                        let arrival = Arrival {
                            carrier,
                            address: visitor,
                            slot,
                            over,
                        };
                        session_tcp::serve_arrival(&serving, arrival);
                    }
                };
                instance.crew.run(task).map_err(|why| why.to_string())
            }
            (Kind::Udp, Some(exit)) => {
                let exit = exit.clone();
                let task = move || match pending.accept().map(Carrier::into_stream) {
                    Some(Ok(stream)) => {
                        let way = UdpWay {
                            stream,
                            framing,
                            over,
                        };
                        serve_udp(&serving, &exit, way, remote);
                    }
                    Some(Err(error)) => serving.note_udp_not_served(visitor, error),
                    None => {}
                };
                instance.crew.run(task).map_err(|why| why.to_string())
            }
            (Kind::Tcp, _) => Err("notcp=1 is set here".to_owned()),
            (Kind::Udp, None) => Err("noudp=1 is set here".to_owned()),
        };
        if let Err(why) = started {
            let notes = &instance.notes;
            notes
                .refused
                .log(format_args!("Visitor {visitor} refused: {why}"));
        }
    }
}

/// A pool connection that nobody serves yet. It is refused when it is dropped, whoever drops it:
/// a crew without a thread drops the task with all that it holds.
struct Pending(Option<Carrier>);

impl Pending {
    /// Gives the connection to the thread that serves it; there is one, as this ends the wait.
    fn accept(mut self) -> Option<Carrier> {
        self.0.take()
    }
}

impl Drop for Pending {
    fn drop(&mut self) {
        if let Some(carrier) = self.0.take() {
            carrier.refuse();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use rustix::event::{PollFd, PollFlags};

    use super::*;
    use crate::net::stream::Stream;
    use crate::net::stream::tests::connected;
    use crate::runtime::event::timespec;
    use crate::runtime::threads::Crew;

    /// Returns whether both directions of a connection end within `timeout`.
    fn is_cut(stream: &impl Stream, timeout: Duration) -> bool {
        // Without any flag poll tells of nothing but that; an orderly end is no more than input.
        let mut set = [PollFd::from_borrowed_fd(
            stream.descriptor(),
            PollFlags::empty(),
        )];
        rustix::event::poll(&mut set, Some(&timespec(timeout))) == Ok(1)
    }

    #[test]
    fn a_connection_that_finds_no_thread_is_cut() {
        let (near, far) = connected();
        let pending = Pending(Some(Carrier::Stream(Box::new(near))));
        let crew = Crew::new("none", 64 * 1024, 0);
        assert!(crew.run(move || drop(pending.accept())).is_err());
        assert!(is_cut(&far, Duration::from_secs(10)));
    }

    #[test]
    fn a_connection_that_is_served_is_not_cut() {
        let (near, far) = connected();
        drop(Pending(Some(Carrier::Stream(Box::new(near)))).accept());
        assert!(!is_cut(&far, Duration::from_millis(50)));
    }
}
