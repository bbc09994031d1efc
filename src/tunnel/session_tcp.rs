//! One visitor over TCP: look at its first bytes, dial a target, introduce the visitor, relay.

use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};

use super::direct::Instance;
use super::slots::Slot;
use crate::config::options::{Block, ProxyHeader};
use crate::limits::{SNIFF_SILENCE_TIMEOUT, SNIFF_UNCLEAR_TIMEOUT, TCP_BUFFER_SIZE_MIN};
use crate::net::dial::Dialled;
use crate::net::listen::canonical;
use crate::net::race::Watch;
use crate::net::relay::{Terms, relay};
use crate::net::stream::{PlainStream, Stream};
use crate::runtime::event::timespec;
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

/// The visitor goes no further: it is refused, left, was idle, or the program stops.
struct Away;

/// A visitor's connection, refused when its first bytes are those of a blocked protocol.
struct Guarded {
    stream: PlainStream,
    block: Block,
    /// The first bytes have been judged.
    is_known: bool,
    refused: Option<Protocol>,
}

impl Guarded {
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

    fn abort(&mut self, deadline: Instant) {
        self.stream.abort(deadline);
    }

    fn is_plain(&self) -> bool {
        self.is_known
    }
}

/// Serves one visitor from its first byte to its last; the body of a session thread.
pub fn serve(instance: &Instance, visitor: Visitor) {
    let Visitor {
        socket,
        address,
        slot,
    } = visitor;
    let block = instance.options.block;
    let mut stream = Guarded {
        stream: PlainStream::new(socket),
        block,
        is_known: !block.any(),
        refused: None,
    };
    // Whoever left early needs no word.
    let _ = carry(instance, &mut stream, address);
    if let Some(protocol) = stream.refused {
        instance.notes.blocked.log(format_args!(
            "Visitor {address} refused: it speaks {protocol}, which is blocked"
        ));
    }
    // The connection ends before its place is free: a count of zero means that none is open.
    drop(stream);
    drop(slot);
}

fn carry(instance: &Instance, visitor: &mut Guarded, address: SocketAddr) -> Result<(), Away> {
    let mut prefix = Vec::new();
    if !visitor.is_known {
        read_prefix(instance, visitor, None, &mut prefix)?;
    }
    let Dialled {
        stream: mut target,
        address: target_address,
        ..
    } = dial(instance, &visitor.stream, address)?;
    log::debug!("Visitor {address} connected to {target_address}");
    let mut first = introduction(instance.options.proxy, &visitor.stream, address);
    if !visitor.is_known {
        // The target may be the one to speak first, and it waits for the introduction.
        send_first(&mut target, &std::mem::take(&mut first));
        read_prefix(instance, visitor, Some(&target), &mut prefix)?;
    }
    instance.tcp_meter.received.add(prefix.len());
    first.append(&mut prefix);
    let terms = Terms {
        stock: &instance.stock,
        meter: &instance.tcp_meter,
        rates: instance.rates.as_ref(),
        read_timeout: instance.options.read_timeout,
        stop: &instance.shutdown.stop,
    };
    let reason = relay(visitor, &mut target, &first, terms);
    log::debug!("Visitor {address} disconnected from {target_address}: {reason}");
    Ok(())
}

/// Dials a target; says in the log why there is none.
fn dial(instance: &Instance, visitor: &PlainStream, address: SocketAddr) -> Result<Dialled, Away> {
    let watch = Watch {
        stop: &instance.shutdown.stop,
        visitor: Some(visitor.socket().as_fd()),
    };
    instance.dialer.dial(watch).map_err(|error| {
        let notes = &instance.notes;
        notes
            .not_dialled
            .log(format_args!("Visitor {address} not served: {error}"));
        Away
    })
}

/// Returns the PROXY protocol header, or nothing.
fn introduction(header: ProxyHeader, visitor: &PlainStream, address: SocketAddr) -> Vec<u8> {
    let encode = match header {
        ProxyHeader::Off => return Vec::new(),
        ProxyHeader::V1 => proxy_header::encode_v1,
        ProxyHeader::V2 => proxy_header::encode_v2,
    };
    // A visitor that has been reset meanwhile has no address any more, and the relay will see it.
    let entry = visitor.socket().local_addr().map_or(address, canonical);
    encode(address, entry)
}

/// Writes a few bytes to a connection on which nothing has been written yet.
fn send_first(target: &mut PlainStream, bytes: &[u8]) {
    if !bytes.is_empty() {
        // A fresh socket takes them whole; if it is broken, the relay will see it.
        let _ = target.write(bytes);
    }
}

fn is_blocked(block: Block, protocol: Protocol) -> bool {
    match protocol {
        Protocol::Socks => block.socks,
        Protocol::Http => block.http,
        Protocol::Tls => block.tls,
    }
}

/// Reads the first bytes of a visitor into `prefix`, until they tell its protocol.
///
/// Blocks: while it is silent, for `SNIFF_SILENCE_TIMEOUT` where there is no target yet, else
/// until the target speaks or the time of option `read` is over; then for
/// `SNIFF_UNCLEAR_TIMEOUT`; until the program stops.
/// Errors: the visitor is refused, or left, or stayed silent although a target is waiting.
fn read_prefix(
    instance: &Instance,
    visitor: &mut Guarded,
    target: Option<&PlainStream>,
    prefix: &mut Vec<u8>,
) -> Result<(), Away> {
    let patience = match target {
        None => Some(SNIFF_SILENCE_TIMEOUT),
        Some(_) => instance.options.read_timeout,
    };
    let mut deadline = patience.map(|patience| Instant::now() + patience);
    while !visitor.is_known {
        let left = deadline.map(|at| at.saturating_duration_since(Instant::now()));
        if left.is_some_and(|left| left.is_zero()) {
            if prefix.is_empty() {
                return target.map_or(Ok(()), |_| Err(Away));
            }
            visitor.is_known = true;
            break;
        }
        match wait_for_first(instance, visitor, target, left)? {
            Spoke::Visitor => {
                let is_first = prefix.is_empty();
                if !read_some(visitor, prefix)? {
                    return Ok(());
                }
                if is_first {
                    deadline = Some(Instant::now() + SNIFF_UNCLEAR_TIMEOUT);
                }
                visitor.judge(prefix)?;
            }
            Spoke::Target => return Ok(()),
            Spoke::Nobody => {}
        }
    }
    Ok(())
}

enum Spoke {
    Visitor,
    Target,
    Nobody,
}

/// Waits for the first bytes of either side.
fn wait_for_first(
    instance: &Instance,
    visitor: &Guarded,
    target: Option<&PlainStream>,
    timeout: Option<Duration>,
) -> Result<Spoke, Away> {
    let stop = PollFd::new(&instance.shutdown.stop, PollFlags::IN);
    let from_visitor = PollFd::from_borrowed_fd(visitor.descriptor(), PollFlags::IN);
    let from_target = match target {
        Some(target) => PollFd::new(target.socket(), PollFlags::IN),
        None => stop.clone(),
    };
    let mut set = [from_visitor, from_target, stop];
    // An interrupted poll is a round in which nothing happened.
    let _ = rustix::event::poll(&mut set, timeout.map(timespec).as_ref());
    match set.map(|entry| !entry.revents().is_empty()) {
        [_, _, true] => Err(Away),
        [true, _, _] => Ok(Spoke::Visitor),
        [_, true, _] => Ok(Spoke::Target),
        _ => Ok(Spoke::Nobody),
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
        Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(true),
        Err(_) => Err(Away),
    }
}
