//! One visitor over TCP, from his first byte to his last: look at what he says, find his way
//! onward, introduce him, relay.
//!
//! | who serves | comes from | goes to | the application side is |
//! |---|---|---|---|
//! | a client without a server | visitor | target | the visitor |
//! | the end that visitors come to | visitor | pool connection | the visitor |
//! | the end that dials | pool connection | target | the target |

use std::fmt;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::instance::Instance;
use super::sessions::{NotTaken, Sessions, Taken};
use super::slots::Slot;
use crate::config::options::{Block, ProxyHeader};
use crate::limits::{SNIFF_SILENCE_TIMEOUT, SNIFF_UNCLEAR_TIMEOUT, TCP_BUFFER_SIZE_MIN};
use crate::net::dial::{DialError, Dialled};
use crate::net::listen::canonical;
use crate::net::mux::{Errand, MuxStream};
use crate::net::race::Watch;
use crate::net::relay::{Ahead, CloseReason, Terms, relay};
use crate::net::stream::{BoxedStream, Condition, PlainStream, Stream, is_passing};
use crate::pool::{Carrier, refuse};
use crate::runtime::event::{Event, timespec};
use crate::wire::proxy_header::{self, PROXY_HEADER_SIZE_MAX};
use crate::wire::sniff::{PREFIX_SIZE_MAX, Protocol, Verdict, recognise};

// Both go to the target at once, through one buffer.
const _: () = assert!(PROXY_HEADER_SIZE_MAX + PREFIX_SIZE_MAX <= TCP_BUFFER_SIZE_MIN);

/// A visitor who has been let in.
pub struct Visitor {
    /// The connection, non-blocking.
    pub socket: OwnedFd,
    /// Where it came from.
    pub address: SocketAddr,
    /// The place that it takes.
    pub slot: Slot,
}

/// A visitor of the other end, who has come through the tunnel.
pub struct Arrival {
    /// The pool connection.
    pub carrier: Carrier,
    /// The visitor, as the other end has told, or that end itself.
    pub address: SocketAddr,
    /// The place that it takes.
    pub slot: Slot,
    /// Raised when the session that it belongs to is over.
    pub over: Arc<Event>,
}

/// The visitor goes no further: it is refused, left, was idle, or the program stops.
struct Away;

/// What a visitor says, refused when its first bytes are those of a blocked protocol.
struct Guarded {
    stream: BoxedStream,
    block: Block,
    /// The first bytes have been judged.
    is_known: bool,
    refused: Option<Protocol>,
}

impl Guarded {
    fn new(stream: BoxedStream, block: Block) -> Self {
        Self {
            stream,
            block,
            is_known: !block.any(),
            refused: None,
        }
    }

    /// Judges the first bytes; until they are known it can be asked again with more.
    fn judge(&mut self, prefix: &[u8]) -> Result<(), Away> {
        match recognise(prefix) {
            Some(Verdict::Is(protocol)) if is_blocked(self.block, protocol) => {
                self.is_known = true;
                self.refused = Some(protocol);
                return Err(Away);
            }
            // Something that would not be blocked need not be waited for.
            Some(Verdict::MayBe(protocol)) => self.is_known = !is_blocked(self.block, protocol),
            Some(Verdict::Is(_) | Verdict::Other) => self.is_known = true,
            None => {}
        }
        Ok(())
    }
}

impl Stream for Guarded {
    fn descriptor(&self) -> BorrowedFd<'_> {
        self.stream.descriptor()
    }

    /// Judges what is read first, if the target has spoken before the visitor did. What is
    /// unclear then may pass: none of the protocols lets the target begin.
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let refusal = || io::Error::from(io::ErrorKind::PermissionDenied);
        // Nothing of a refused visitor is passed on, whatever else it has sent.
        if self.refused.is_some() {
            return Err(refusal());
        }
        let size = self.stream.read(buffer)?;
        if !self.is_known && size > 0 {
            self.judge(&buffer[..size]).map_err(|Away| refusal())?;
            self.is_known = true;
        }
        Ok(size)
    }

    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.stream.write(bytes)
    }

    fn finish(&mut self) -> io::Result<()> {
        self.stream.finish()
    }

    fn expect_finish(&mut self) {
        self.stream.expect_finish();
    }

    fn forgo_finish(&mut self) {
        self.stream.forgo_finish();
    }

    fn abort(&mut self, deadline: Instant) {
        self.stream.abort(deadline);
    }

    fn check(&mut self) -> Condition {
        self.stream.check()
    }

    fn holds_bytes(&self) -> bool {
        self.stream.holds_bytes()
    }

    fn holds_unsent(&self) -> bool {
        self.stream.holds_unsent()
    }

    fn flush(&mut self) -> io::Result<()> {
        self.stream.flush()
    }

    fn keep_alive(&mut self) -> Option<Instant> {
        self.stream.keep_alive()
    }

    fn rest(&mut self) {
        self.stream.rest();
    }

    fn is_plain(&self) -> bool {
        self.is_known && self.stream.is_plain()
    }

    fn keep_messages(&mut self) {
        self.stream.keep_messages();
    }

    fn has_left(&mut self) -> Option<bool> {
        self.stream.has_left()
    }

    fn has_half_close(&self) -> bool {
        self.stream.has_half_close()
    }
}

/// Serves a visitor of a client without a server; the body of a session thread.
pub fn serve(instance: &Instance, visitor: Visitor) {
    let Visitor {
        socket,
        address,
        slot,
    } = visitor;
    let stream = PlainStream::new(socket);
    // A visitor that has been reset meanwhile has no address any more, and the relay will see it.
    let entry = stream.socket().local_addr().map_or(address, canonical);
    let mut visitor = Guarded::new(Box::new(stream), instance.options.block);
    let stop = &instance.shutdown.stop;
    let reach = |visitor: &Guarded| {
        let (stream, to) = dial(instance, Some(visitor.descriptor()), address, stop)?;
        let first = introduction(instance.options.proxy, address, entry);
        Ok(Far {
            carrier: Carrier::Stream(stream),
            to,
            first,
            over: None,
        })
    };
    // Whoever left early needs no word.
    if let Ok((far, ahead)) = meet(instance, &mut visitor, stop, reach)
        && let Carrier::Stream(mut target) = far.carrier
    {
        instance.tcp_meter.received.add(ahead.prefix.len());
        let ahead_bytes = [ahead.first, ahead.prefix].concat();
        let ahead = Ahead {
            to_other: &ahead_bytes,
            ..Ahead::default()
        };
        let reason = relay(&mut visitor, &mut *target, ahead, terms(instance, stop));
        note_end(address, &far.to, &reason);
    }
    leave(instance, visitor, address, slot);
}

/// Serves a visitor at the end of a tunnel that visitors come to; the body of a session thread.
pub fn serve_entry(instance: &Instance, sessions: &Sessions, visitor: Visitor) {
    let Visitor {
        socket,
        address,
        slot,
    } = visitor;
    let stream = Box::new(PlainStream::new(socket));
    let mut visitor = Guarded::new(stream, instance.options.block);
    let stop = &instance.shutdown.stop;
    let reach = |visitor: &Guarded| {
        let timeout = instance.limits.pool_get_timeout;
        let watch = Watch {
            stop,
            visitor: Some(visitor.descriptor()),
        };
        let taken = sessions.take(address, timeout, watch);
        let Taken { session, carrier } = taken.map_err(|not_taken| {
            note_not_served(instance, address, &not_taken, not_taken == NotTaken::Left);
            Away
        })?;
        let to = format!("{} through the tunnel", session.peer());
        log::debug!("Visitor {address} connected to {to}");
        Ok(Far {
            carrier,
            to,
            first: Vec::new(),
            over: Some(session.over()),
        })
    };
    let Ok((far, ahead)) = meet(instance, &mut visitor, stop, reach) else {
        return leave(instance, visitor, address, slot);
    };
    instance.tcp_meter.received.add(ahead.prefix.len());
    match far.carrier {
        Carrier::Stream(mut stream) => {
            let ahead = Ahead {
                to_other: &ahead.prefix,
                ..Ahead::default()
            };
            let over = far.over.as_deref().unwrap_or(stop);
            let reason = relay(&mut visitor, &mut *stream, ahead, terms(instance, over));
            end_tunnelled(&mut *stream, &reason);
            note_end(address, &far.to, &reason);
            leave(instance, visitor, address, slot);
        }
        // Its thread goes on with what this one has begun.
        Carrier::Muxed(stream) => stream.carry(Errand {
            application: Box::new(visitor),
            to_other: ahead.prefix,
            to_application: Vec::new(),
            on_end: Box::new(move |reason| {
                note_end(address, &far.to, reason);
                drop(slot);
            }),
        }),
    }
}

/// Serves a visitor of the other end at the end that dials; the body of a session thread.
pub fn serve_arrival(instance: &Instance, arrival: Arrival) {
    let Arrival {
        carrier,
        address,
        slot,
        over,
    } = arrival;
    let stream = match carrier {
        Carrier::Muxed(stream) if !instance.options.block.any() => {
            let muxed = (stream, address, slot);
            return serve_muxed(instance, muxed, &over);
        }
        carrier => match carrier.into_stream() {
            Ok(stream) => stream,
            Err(error) => return note_not_served(instance, address, &error, false),
        },
    };
    let mut visitor = Guarded::new(stream, instance.options.block);
    let reach = |visitor: &Guarded| {
        let (stream, to) = dial(instance, Some(visitor.descriptor()), address, &over)?;
        let first = introduction(instance.options.proxy, address, to);
        Ok(Far {
            carrier: Carrier::Stream(stream),
            to,
            first,
            over: None,
        })
    };
    if let Ok((far, ahead)) = meet(instance, &mut visitor, &over, reach)
        && let Carrier::Stream(mut target) = far.carrier
    {
        let ahead_bytes = [ahead.first, ahead.prefix].concat();
        instance.tcp_meter.sent.add(ahead_bytes.len());
        let ahead = Ahead {
            to_application: &ahead_bytes,
            ..Ahead::default()
        };
        let reason = relay(&mut *target, &mut visitor, ahead, terms(instance, &over));
        end_tunnelled(&mut visitor, &reason);
        note_end(address, &far.to, &reason);
    } else {
        refuse(&mut visitor);
    }
    leave(instance, visitor, address, slot);
}

/// Serves a visitor of the other end whose bytes another thread carries, and nobody judges.
fn serve_muxed(
    instance: &Instance,
    (stream, address, slot): (MuxStream, SocketAddr, Slot),
    over: &Event,
) {
    // One that is dropped is cut short, which says that the visitor is not served.
    if let Ok((target, to)) = dial(instance, None, address, over) {
        let introduction = introduction(instance.options.proxy, address, to);
        instance.tcp_meter.sent.add(introduction.len());
        stream.carry(Errand {
            application: target,
            to_other: Vec::new(),
            to_application: introduction,
            on_end: Box::new(move |reason| {
                note_end(address, &to, reason);
                drop(slot);
            }),
        });
    }
}

/// The way onward of a visitor.
struct Far<T> {
    carrier: Carrier,
    /// Where it leads.
    to: T,
    /// What introduces the visitor there.
    first: Vec<u8>,
    /// Raised when it ends with the session that it belongs to.
    over: Option<Arc<Event>>,
}

/// What goes ahead of a visitor's data on the way onward: the introduction, if it has not been
/// sent yet, and what was read to judge him.
struct AheadOf {
    first: Vec<u8>,
    prefix: Vec<u8>,
}

/// Judges a visitor and finds his way onward, whichever of the two speaks first.
fn meet<T>(
    instance: &Instance,
    visitor: &mut Guarded,
    stop: &Event,
    reach: impl FnOnce(&Guarded) -> Result<Far<T>, Away>,
) -> Result<(Far<T>, AheadOf), Away> {
    let mut prefix = Vec::new();
    let mut waiting = Waiting {
        read_timeout: instance.options.read_timeout,
        stop,
        visitor,
    };
    if !waiting.visitor.is_known {
        waiting.read_prefix(None, &mut prefix)?;
    }
    let mut far = reach(waiting.visitor)?;
    let mut first = std::mem::take(&mut far.first);
    if !waiting.visitor.is_known {
        // The far end may be the one to speak first, and it waits for the introduction.
        waiting.stop = far.over.as_deref().unwrap_or(stop);
        let mut stream = far.carrier.into_stream().map_err(|_| Away)?;
        send_first(&mut *stream, &std::mem::take(&mut first));
        waiting.read_prefix(Some(&mut *stream), &mut prefix)?;
        far.carrier = Carrier::Stream(stream);
    }
    Ok((far, AheadOf { first, prefix }))
}

/// Dials a target; says in the log why there is none.
fn dial(
    instance: &Instance,
    visitor: Option<BorrowedFd<'_>>,
    address: SocketAddr,
    stop: &Event,
) -> Result<(BoxedStream, SocketAddr), Away> {
    let watch = Watch { stop, visitor };
    match instance.dialer.dial(watch) {
        Ok(Dialled {
            stream,
            address: target,
            ..
        }) => {
            log::debug!("Visitor {address} connected to {target}");
            Ok((Box::new(stream), target))
        }
        Err(error) => {
            let has_left = matches!(error, DialError::NotWanted);
            note_not_served(instance, address, &error, has_left);
            Err(Away)
        }
    }
}

/// Says why a visitor got nothing; that he left by himself is nothing to look at.
fn note_not_served(
    instance: &Instance,
    address: SocketAddr,
    reason: &dyn fmt::Display,
    has_left: bool,
) {
    if has_left {
        log::debug!("Visitor {address} not served: {reason}");
    } else {
        let notes = &instance.notes;
        notes
            .not_dialled
            .log(format_args!("Visitor {address} not served: {reason}"));
    }
}

/// Returns under which conditions the bytes of a visitor are carried, until `stop`.
pub(super) fn terms<'a>(instance: &'a Instance, stop: &'a Event) -> Terms<'a> {
    Terms {
        stock: &instance.stock,
        meter: &instance.tcp_meter,
        rates: instance.rates.as_ref(),
        read_timeout: instance.options.read_timeout,
        stop,
    }
}

/// Tells the other end of a tunnel that both directions are over: an end of one alone would leave
/// it waiting for the other one.
fn end_tunnelled(stream: &mut dyn Stream, reason: &CloseReason) {
    if matches!(reason, CloseReason::Idle) {
        stream.abort(Instant::now());
    }
}

fn note_end(address: SocketAddr, to: &impl fmt::Display, reason: &CloseReason) {
    log::debug!("Visitor {address} disconnected from {to}: {reason}");
}

/// Ends a visitor's stay.
fn leave(instance: &Instance, visitor: Guarded, address: SocketAddr, slot: Slot) {
    if let Some(protocol) = visitor.refused {
        instance.notes.blocked.log(format_args!(
            "Visitor {address} refused: it speaks {protocol}, which is blocked"
        ));
    }
    // The connection ends before its place is free: a count of zero means that none is open.
    drop(visitor);
    drop(slot);
}

/// Returns the PROXY protocol header of a visitor from `address` to `entry`, or nothing.
fn introduction(header: ProxyHeader, address: SocketAddr, entry: SocketAddr) -> Vec<u8> {
    match header {
        ProxyHeader::Off => Vec::new(),
        ProxyHeader::V1 => proxy_header::encode_v1(address, entry),
        ProxyHeader::V2 => proxy_header::encode_v2(address, entry),
    }
}

/// Writes a few bytes to a connection on which nothing has been written yet.
fn send_first(stream: &mut dyn Stream, bytes: &[u8]) {
    if !bytes.is_empty() {
        // A fresh socket takes them whole; if it is broken, the relay will see it.
        let _ = stream.write(bytes);
    }
}

fn is_blocked(block: Block, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Socks => block.socks,
        Protocol::Http => block.http,
        Protocol::Tls => block.tls,
    }
}

/// The wait for the first bytes of a visitor.
struct Waiting<'a> {
    read_timeout: Option<Duration>,
    stop: &'a Event,
    visitor: &'a mut Guarded,
}

enum Spoke {
    Visitor,
    Far,
    Nobody,
}

impl Waiting<'_> {
    /// Reads the first bytes of a visitor into `prefix`, until they tell its protocol.
    ///
    /// Blocks: while it is silent, for `SNIFF_SILENCE_TIMEOUT` where there is no `far` yet, else
    /// until that speaks or the time of option `read` is over; then for `SNIFF_UNCLEAR_TIMEOUT`;
    /// until `stop`.
    /// Errors: the visitor is refused, or left, or stayed silent although the far end is waiting.
    fn read_prefix(
        &mut self,
        mut far: Option<&mut (dyn Stream + Send + 'static)>,
        prefix: &mut Vec<u8>,
    ) -> Result<(), Away> {
        let patience = match far {
            None => Some(SNIFF_SILENCE_TIMEOUT),
            Some(_) => self.read_timeout,
        };
        let mut deadline = patience.map(|patience| Instant::now() + patience);
        while !self.visitor.is_known {
            let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                if prefix.is_empty() {
                    return far.map_or(Ok(()), |_| Err(Away));
                }
                self.visitor.is_known = true;
                break;
            }
            match self.wait_for_first(far.as_deref_mut(), left)? {
                Spoke::Visitor => {
                    let is_first = prefix.is_empty();
                    if !read_some(self.visitor, prefix)? {
                        return Ok(());
                    }
                    if is_first && !prefix.is_empty() {
                        deadline = Some(Instant::now() + SNIFF_UNCLEAR_TIMEOUT);
                    }
                    self.visitor.judge(prefix)?;
                }
                Spoke::Far => return Ok(()),
                Spoke::Nobody => {}
            }
        }
        Ok(())
    }

    /// Waits for the first bytes of either side.
    fn wait_for_first(
        &mut self,
        mut far: Option<&mut (dyn Stream + Send + 'static)>,
        timeout: Option<Duration>,
    ) -> Result<Spoke, Away> {
        let of_far = far.as_mut().and_then(|far| far.keep_alive());
        let kept_until = [self.visitor.keep_alive(), of_far];
        // What TLS has read ahead does not show at the descriptor.
        if self.visitor.holds_bytes() {
            return Ok(Spoke::Visitor);
        }
        if far.as_ref().is_some_and(|far| far.holds_bytes()) {
            return Ok(Spoke::Far);
        }
        let stop = PollFd::new(self.stop, PollFlags::IN);
        let from_visitor = PollFd::from_borrowed_fd(self.visitor.descriptor(), PollFlags::IN);
        let from_far = match &far {
            Some(far) => PollFd::from_borrowed_fd(far.descriptor(), PollFlags::IN),
            None => stop.clone(),
        };
        let mut set = [from_visitor, from_far, stop];
        let now = Instant::now();
        let kept = kept_until.into_iter().flatten();
        let kept = kept.map(|at| at.saturating_duration_since(now));
        let timeout = kept.chain(timeout).min();
        // An interrupted poll is a round in which nothing happened.
        let _ = rustix::event::poll(&mut set, timeout.map(timespec).as_ref());
        match set.map(|entry| !entry.revents().is_empty()) {
            [_, _, true] => Err(Away),
            [true, _, _] => Ok(Spoke::Visitor),
            // What only kept its connection alive is no word of it.
            [_, true, _] if far.is_some_and(|far| far.check() != Condition::Silent) => {
                Ok(Spoke::Far)
            }
            _ => Ok(Spoke::Nobody),
        }
    }
}

/// Adds what a visitor has sent to `prefix`; returns false at the end of its stream, which is
/// for the relay to pass on.
fn read_some(visitor: &mut Guarded, prefix: &mut Vec<u8>) -> Result<bool, Away> {
    let mut buffer = [0; PREFIX_SIZE_MAX];
    match visitor
        .stream
        .read(&mut buffer[..PREFIX_SIZE_MAX - prefix.len()])
    {
        Ok(size) => {
            prefix.extend(&buffer[..size]);
            Ok(size > 0)
        }
        Err(error) if is_passing(&error) => Ok(true),
        Err(_) => Err(Away),
    }
}
