//! The end that dials: a signal names a pool connection, a target is dialled, bytes flow.

use std::net::SocketAddr;
use std::sync::Arc;

use super::instance::Instance;
use super::session::Session;
use super::session_tcp::{self, Arrival};
use super::slots::Kind;
use super::udp_exit::{UdpCarrier, serve_udp};
use super::uplink::UdpWay;
use crate::net::stream::BoxedStream;

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

    /// Serves a visitor of the other end, who has come on `stream`. Does not wait.
    ///
    /// Where there is no place for him the connection is closed, and the log says why.
    pub fn carry(
        &self,
        session: &Arc<Session>,
        mut stream: BoxedStream,
        kind: Kind,
        remote: Option<SocketAddr>,
    ) {
        let instance = &self.instance;
        let visitor = remote.unwrap_or_else(|| session.peer());
        let is_served = match kind {
            Kind::Tcp => instance.options.tcp,
            Kind::Udp => instance.options.udp,
        };
        if !is_served {
            let option = match kind {
                Kind::Tcp => "notcp=1",
                Kind::Udp => "noudp=1",
            };
            let notes = &instance.notes;
            notes.refused.log(format_args!(
                "Visitor {visitor} refused: {option} is set here"
            ));
            session_tcp::refuse_tunnelled(&mut *stream);
            return;
        }
        let serving = Arc::clone(instance);
        let over = session.over();
        let started = match (kind, &self.udp) {
            (Kind::Tcp, _) => {
                let Some(slot) = instance.take_slot(kind, visitor) else {
                    session_tcp::refuse_tunnelled(&mut *stream);
                    return;
                };
                let arrival = Arrival {
                    stream,
                    address: visitor,
                    slot,
                    over,
                };
                instance
                    .crew
                    .run(move || session_tcp::serve_arrival(&serving, arrival))
            }
            (Kind::Udp, Some(carrier)) => {
                let way = UdpWay {
                    stream,
                    framing: session.framing(),
                    over,
                };
                let carrier = carrier.clone();
                instance
                    .crew
                    .run(move || serve_udp(&serving, &carrier, way, remote))
            }
            (Kind::Udp, None) => Ok(()),
        };
        if let Err(refused) = started {
            let notes = &instance.notes;
            notes
                .refused
                .log(format_args!("Visitor {visitor} refused: {refused}"));
        }
    }
}
