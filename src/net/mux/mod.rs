//! Many streams over one connection, carried by one thread: the mux loop.
//!
//! ```text
//!   session threads ──commands──▶ ┌────────────┐ ◀──▶ transport (HTTP/2 over TLS, QUIC)
//!   MuxStream: one pool stream    │ mux thread │
//!   socket of visitor or target ─▶└────────────┘ ◀──▶ sockets handed over
//! ```
//!
//! Whatever may wait (letting in, judging, dialling) happens on other threads. The socket is then
//! handed over together with the [`MuxStream`] that it belongs to, and the loop moves the bytes
//! with the same code as a relay thread. What wants a descriptor of its own, such as a control
//! channel, gets one end of a socket pair: [`MuxStream::into_stream`].
//!
//! A `line` is one such connection with its streams. A thread has one (`run`), or all those of one
//! socket (`net::quic::endpoint`).
//!
//! Back pressure is that of the relay: a socket is not read while its stream has no window, a
//! stream not while its socket takes nothing. So one visitor who does not read costs the window of
//! his stream and holds up nobody.

mod bridge;
#[cfg(feature = "http2")]
pub mod http2;
pub(in crate::net) mod line;
mod link;
pub(in crate::net) mod run;

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::sync::{Arc, Mutex};
use std::time::Instant;

use self::bridge::{BridgeStream, bridge};
pub use self::link::OnEnd;
use self::link::Parting;
pub use self::run::Mux;
use super::relay::CloseReason;
use super::stream::{BoxedStream, Condition, Stream};
use crate::runtime::event::{Bell, Event};
use crate::runtime::threads::lock;
use crate::wire::signal::PoolId;
use crate::wire::ticket::Ticket;

/// Names a stream of one transport.
pub type StreamKey = u64;

/// What carries streams: the state of a protocol and the socket under it.
///
/// Nothing of it waits. Stream operations fail as those of [`Stream`] do.
pub trait Transport {
    /// The descriptor to wait for.
    fn descriptor(&self) -> BorrowedFd<'_>;

    /// Returns whether bytes wait for room in the descriptor.
    fn holds_unsent(&self) -> bool;

    /// Takes what has come, up to a bound; returns whether there may be more that the descriptor
    /// does not announce.
    ///
    /// Errors: the transport is over, in order (`UnexpectedEof`) or not.
    fn receive(&mut self, now: Instant) -> io::Result<bool>;

    /// Sends what the descriptor takes.
    ///
    /// Errors: the transport is over.
    fn send(&mut self) -> io::Result<()>;

    /// Returns what has happened, one thing after another.
    fn next_event(&mut self) -> Option<MuxEvent>;

    /// Opens a stream that shows `ticket`; [`MuxEvent::Identified`] tells of the answer.
    fn open(&mut self, ticket: Option<&Ticket>) -> Result<StreamKey, NotOpened>;

    /// Lets a stream on which all others depend go before them.
    fn hurry(&mut self, stream: StreamKey);

    /// Returns whether the peer has ended its direction in order and takes nothing more.
    fn has_declined(&self, stream: StreamKey) -> bool;

    /// Answers a stream that has arrived.
    fn identify(&mut self, stream: StreamKey, id: PoolId);

    /// Reads from a stream.
    fn read(&mut self, stream: StreamKey, buffer: &mut [u8]) -> io::Result<usize>;

    /// Returns what a read would find.
    fn check(&self, stream: StreamKey) -> Condition;

    /// Writes to a stream; [`MuxEvent::Writable`] follows a write that would block.
    fn write(&mut self, stream: StreamKey, bytes: &[u8]) -> io::Result<usize>;

    /// Ends the writing direction of a stream.
    fn finish(&mut self, stream: StreamKey) -> io::Result<()>;

    /// Cuts a stream short, behind what was written to it, and forgets it.
    fn reset(&mut self, stream: StreamKey);

    /// Returns whether more streams may come, now or when others have ended.
    fn can_open(&self) -> bool;

    /// Says good-bye, behind all that was written.
    fn close(&mut self);

    /// Ends this side's direction of a transport that is over, as far as that can be done.
    fn hang_up(&mut self);

    /// Gives up memory that is needed only while bytes flow.
    fn rest(&mut self);

    /// Returns when [`Transport::look_at_the_clock`] has something to do.
    fn wake_at(&self) -> Option<Instant> {
        None
    }

    /// Does what is due.
    ///
    /// Errors: the transport is over.
    fn look_at_the_clock(&mut self, _now: Instant) -> io::Result<()> {
        Ok(())
    }
}

/// What has happened in a transport.
#[derive(Debug)]
pub enum MuxEvent {
    /// The peer opened a stream, and shows this.
    Arrived(StreamKey, Option<Ticket>),
    /// The peer took a stream that was opened here, and calls it so.
    Identified(StreamKey, PoolId),
    /// The peer did not take a stream that was opened here.
    Refused(StreamKey),
    /// There are bytes to read, or the end.
    Readable(StreamKey),
    /// There is room to write.
    Writable(StreamKey),
    /// The peer, which has ended its direction in order, takes nothing more.
    Declined(StreamKey),
    /// The peer cut the stream short.
    Reset(StreamKey),
}

/// A stream that was asked for and what the peer calls it, or why there is none.
pub type Opened = Result<(PoolId, MuxStream), NotOpened>;

/// Why a stream could not be opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotOpened {
    /// The connection carries as many as the peer allows, or its numbers have run out.
    Full,
    /// Too much waits to be sent: a later try may go better.
    Busy,
    /// The peer does not want this one.
    Refused,
    /// The connection is over.
    Over,
}

/// Receives the streams that a peer opens.
pub trait Porter: Send {
    /// Takes a stream that shows `ticket`; must not wait.
    fn arrive(&self, ticket: Option<Ticket>, stream: MuxStream);
}

/// What any thread may ask of a mux thread.
#[derive(Clone)]
pub struct MuxHandle {
    shared: Arc<Shared>,
}

struct Shared {
    state: Mutex<State>,
    /// Tells the mux thread of commands.
    bell: Bell,
}

#[derive(Default)]
struct State {
    commands: Vec<Command>,
    /// The mux thread takes no more commands.
    is_over: bool,
}

/// What a mux thread is asked to do. Each stream gives rise to a few of them, so their number is
/// bounded.
enum Command {
    /// Open a stream.
    Open(Option<Ticket>, SyncSender<Opened>),
    /// Tell the peer how its stream is called.
    Identify(StreamKey, PoolId),
    /// Carry bytes between a stream and a socket.
    Carry(StreamKey, Box<Errand>),
    /// Carry bytes between a stream and one end of a socket pair.
    Bridge(StreamKey, Box<BridgeStream>, Urgency),
    /// Cut a stream short.
    Reset(StreamKey),
    /// End when this is raised.
    EndWith(Arc<Event>),
    /// End when no stream is left.
    Retire,
}

/// How a stream goes on its way beside others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Urgency {
    /// In turn.
    Ordinary,
    /// Before the others, which depend on it.
    Urgent,
}

/// A socket for which a stream is to be relayed.
pub struct Errand {
    /// The application side.
    pub application: BoxedStream,
    /// Goes ahead of everything on its way to the stream.
    pub to_other: Vec<u8>,
    /// Goes ahead of everything on its way to the socket.
    pub to_application: Vec<u8>,
    /// Called when it is over and the socket is closed; must not wait.
    pub on_end: OnEnd,
}

impl MuxHandle {
    fn new() -> io::Result<Self> {
        Ok(Self {
            shared: Arc::new(Shared {
                state: Mutex::default(),
                bell: Bell::new()?,
            }),
        })
    }

    /// Asks for a stream; what is returned tells of it.
    pub fn open(&self, ticket: Option<Ticket>) -> Receiver<Opened> {
        let (answer, answered) = sync_channel(1);
        self.shared.ask(Command::Open(ticket, answer));
        answered
    }

    /// Lets the thread end, and everything on it, when `over` is raised. The first one counts.
    pub fn end_with(&self, over: Arc<Event>) {
        self.shared.ask(Command::EndWith(over));
    }

    /// Lets the thread end when its last stream has ended.
    pub fn retire(&self) {
        self.shared.ask(Command::Retire);
    }

    /// Takes no more commands, and undoes those that have not been obeyed.
    fn refuse_all(&self) {
        let commands = {
            let mut state = lock(&self.shared.state);
            state.is_over = true;
            std::mem::take(&mut state.commands)
        };
        for command in commands {
            command.cancel();
        }
    }

    /// Returns whether both ask the same thread.
    pub fn is_same(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// Returns whether the thread has ended.
    pub fn is_over(&self) -> bool {
        lock(&self.shared.state).is_over
    }
}

impl Shared {
    fn ask(&self, command: Command) {
        let mut state = lock(&self.state);
        if state.is_over {
            drop(state);
            command.cancel();
        } else {
            state.commands.push(command);
            drop(state);
            self.bell.ring();
        }
    }
}

impl Command {
    /// Undoes what has been asked of a thread that has ended.
    fn cancel(self) {
        match self {
            // Whoever has stopped waiting needs no answer.
            Self::Open(_, answer) => drop(answer.try_send(Err(NotOpened::Over))),
            Self::Carry(_, errand) => {
                let reset = io::ErrorKind::ConnectionReset;
                drop(Parting {
                    application: Some(errand.application),
                    on_end: Some(errand.on_end),
                    reason: CloseReason::OtherBroke(reset.into()),
                });
            }
            Self::Bridge(_, mut far, _) => far.abort(Instant::now()),
            Self::Identify(..) | Self::Reset(_) | Self::EndWith(_) | Self::Retire => {}
        }
    }
}

/// One stream of a connection that carries many, idle until it is handed over; one that is dropped
/// is cut short.
pub struct MuxStream {
    shared: Arc<Shared>,
    key: StreamKey,
    condition: Arc<Idle>,
    is_given_away: bool,
}

/// What the mux thread tells of an idle stream: a [`Condition`].
#[derive(Debug, Default)]
struct Idle(AtomicU8);

impl Idle {
    fn set(&self, condition: Condition) {
        let value = match condition {
            Condition::Silent => 0,
            Condition::Speaking => 1,
            Condition::Ended => 2,
        };
        self.0.store(value, Ordering::Release);
    }

    fn get(&self) -> Condition {
        match self.0.load(Ordering::Acquire) {
            0 => Condition::Silent,
            1 => Condition::Speaking,
            _ => Condition::Ended,
        }
    }
}

impl MuxStream {
    /// Returns what the stream is about to do.
    pub fn check(&self) -> Condition {
        if lock(&self.shared.state).is_over {
            return Condition::Ended;
        }
        self.condition.get()
    }

    /// Tells the peer, who has opened the stream, how it is called.
    pub fn identify(&self, id: PoolId) {
        self.shared.ask(Command::Identify(self.key, id));
    }

    /// Lets everything on this connection end when `over` is raised. The first one counts.
    pub fn end_with(&self, over: Arc<Event>) {
        self.shared.ask(Command::EndWith(over));
    }

    /// Has the mux thread relay between the stream and a socket.
    pub fn carry(mut self, errand: Errand) {
        self.is_given_away = true;
        self.shared.ask(Command::Carry(self.key, Box::new(errand)));
    }

    /// Returns the stream behind a descriptor of its own, at the cost of one more copy.
    ///
    /// Errors: no descriptor left.
    pub fn into_stream(self, urgency: Urgency) -> io::Result<BoxedStream> {
        let (near, far) = bridge()?;
        let mut stream = self;
        stream.is_given_away = true;
        let command = Command::Bridge(stream.key, Box::new(far), urgency);
        stream.shared.ask(command);
        Ok(Box::new(near))
    }
}

impl Drop for MuxStream {
    fn drop(&mut self) {
        if !self.is_given_away {
            self.shared.ask(Command::Reset(self.key));
        }
    }
}
