//! One caller at the tunnel port: what he has said so far and what he is told.
//!
//! Never waits and knows no key: the doorman asks him to go on, and decides.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};

use rustix::event::epoll::EventFlags;
use rustix::net::RecvFlags;

#[cfg(feature = "http2")]
use crate::limits::CALLER_HTTP2_SIZE_MAX;
use crate::limits::{
    CALLER_DISCARD_SIZE_MAX, CALLER_LINGER_TIMEOUT, CALLER_PLACE_INTERVAL, CALLER_PLACE_TIMEOUT,
    CALLER_REQUESTS_MAX, CALLER_ROUNDS_MAX, HANDSHAKE_HEAD_SIZE_MAX,
};
use crate::net::cover::{Arriving, CoverError, ServerCover, Wants};
#[cfg(feature = "http2")]
use crate::net::mux::http2::Http2;
#[cfg(feature = "http2")]
use crate::net::mux::{MuxEvent, Transport};
use crate::net::origin::origin_of;
use crate::net::stream::{BoxedStream, PlainStream, is_passing};
#[cfg(feature = "http2")]
use crate::wire::alpn::H2;
use crate::wire::first_bytes::{Grace, Opening, TLS_HANDSHAKE, recognise_opening};
pub use crate::wire::handshake::server::Request;
use crate::wire::handshake::server::{Refusal, Upgrade, decode_request};
use crate::wire::ticket::{PREFACE_SIZE, Ticket};

const LINE_IS_THERE: &str = "whoever takes it puts it back or ends the caller";

/// A caller.
pub struct Caller {
    arriving: Option<Arriving>,
    /// What he asks for as a WebSocket.
    upgrade: Option<Upgrade>,
    /// What `arriving` has become, if it is a connection for many.
    #[cfg(feature = "http2")]
    http2: Option<Box<Http2>>,
    address: SocketAddr,
    stage: Stage,
    /// What he has said and nobody has taken.
    input: Vec<u8>,
    /// What he is to be told.
    output: Vec<u8>,
    /// He may be a v1 pool connection, which says nothing, from this time on.
    silent_at: Option<Instant>,
    silence: Option<Silence>,
    /// Until when he waits for a place in the pool.
    place_until: Option<Instant>,
    deadline: Instant,
    requests_count: usize,
    /// Bytes that were read only to be thrown away.
    discarded_size: usize,
}

/// When a connection that says nothing is a v1 pool connection.
#[derive(Clone, Copy, Debug)]
pub struct Silence {
    /// After this time.
    pub time: Duration,
    /// Inside of TLS, and else outside.
    pub is_covered: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    /// Nothing has been looked at.
    New,
    /// The handshake of the cover is going on.
    Cover,
    /// His first bytes are awaited, or those of the next request.
    Opening,
    /// He sends a request.
    Request,
    /// He sends a ticket.
    Ticket,
    /// He is a WebSocket.
    Upgrade,
    /// He is told something, not before this time, and then goes on or not.
    Answer { at: Option<Instant>, is_last: bool },
    /// He speaks HTTP/2.
    #[cfg(feature = "http2")]
    Http2,
    /// He has been told all, and should hang up first.
    Leaving,
}

/// What a caller has come to.
pub enum Step {
    /// There is nothing to do before then, or before his descriptor shows one of these.
    Wait { until: Instant, flags: EventFlags },
    /// He asks for something: answer him.
    Asks(Request),
    /// What he asks for leads to nothing: answer him.
    Refused(Refusal),
    /// He is a pool connection; a native one has a ticket.
    Joins(Option<Ticket>),
    /// He is one over WebSocket.
    Upgrades(Upgrade),
    /// He is a connection for many pool connections, the first of which shows this.
    #[cfg(feature = "http2")]
    Multiplexes(Option<Ticket>),
    /// That was all.
    Done(Why),
}

/// Why a caller goes.
pub enum Why {
    Ended,
    TooSlow,
    NotOurs,
    TooMuch,
    Broke(io::Error),
    Cover(CoverError),
}

impl Caller {
    /// Receives a connection, non-blocking.
    pub fn new(
        socket: OwnedFd,
        address: SocketAddr,
        silence: Option<Silence>,
        now: Instant,
        timeout: Duration,
    ) -> Self {
        let of_plain = silence.filter(|silence| !silence.is_covered);
        Self {
            arriving: Some(Arriving::Plain(PlainStream::new(socket))),
            upgrade: None,
            #[cfg(feature = "http2")]
            http2: None,
            address,
            stage: Stage::New,
            input: Vec::new(),
            output: Vec::new(),
            silent_at: of_plain.map(|silence| now + silence.time),
            silence,
            place_until: None,
            deadline: now + timeout,
            requests_count: 0,
            discarded_size: 0,
        }
    }

    /// Where he comes from.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Whose places he takes.
    pub fn origin(&self) -> IpAddr {
        origin_of(self.address)
    }

    /// When to look at him even if he has said nothing.
    pub fn first_look_at(&self) -> Instant {
        self.silent_at.unwrap_or(self.deadline).min(self.deadline)
    }

    /// The descriptor to watch.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        #[cfg(feature = "http2")]
        if let Some(http2) = &self.http2 {
            return http2.descriptor();
        }
        let arriving = self.arriving.as_ref();
        arriving.expect(LINE_IS_THERE).descriptor()
    }

    /// Gives the connection away, and whether it is covered.
    pub fn into_stream(self) -> (BoxedStream, bool) {
        let arriving = self.arriving.expect(LINE_IS_THERE);
        let is_covered = arriving.is_covered();
        (arriving.into_stream(), is_covered)
    }

    /// Takes what he has said and nobody has taken.
    #[cfg(feature = "websocket")]
    pub fn take_input(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.input)
    }

    /// Gives a connection for many away.
    #[cfg(feature = "http2")]
    pub fn into_http2(self) -> Option<Http2> {
        self.http2.map(|http2| *http2)
    }

    /// Tells him something at once, after which he may go on.
    pub fn answer(&mut self, answer: Vec<u8>) {
        self.output = answer;
        self.stage = Stage::Answer {
            at: None,
            is_last: false,
        };
    }

    /// Tells him the last thing, at `at` or, if that is later, never; without words he is left
    /// alone.
    pub fn answer_last(&mut self, answer: Option<Vec<u8>>, at: Instant) {
        self.output = answer.unwrap_or_default();
        self.stage = Stage::Answer {
            at: Some(at),
            is_last: true,
        };
    }

    /// Waits for a place in the pool; `None` when he has waited long enough.
    pub fn wait_for_place(&mut self, now: Instant) -> Option<Step> {
        let until = *self.place_until.get_or_insert(now + CALLER_PLACE_TIMEOUT);
        (now < until).then(|| self.hold_back(now + CALLER_PLACE_INTERVAL))
    }

    /// Returns whether the handshake of TLS goes on, which costs time of the processor.
    pub fn is_in_cover(&self) -> bool {
        self.stage == Stage::Cover
    }

    /// Leaves him alone until then.
    pub fn hold_back(&self, until: Instant) -> Step {
        Step::Wait {
            until: until.min(self.deadline),
            flags: EventFlags::ONESHOT,
        }
    }

    /// Goes on as far as he has got, in a bounded number of steps. Does not wait.
    pub fn advance(&mut self, cover: &ServerCover, now: Instant) -> Step {
        if now >= self.deadline {
            return Step::Done(Why::TooSlow);
        }
        match self.go_on(cover, now) {
            Ok(step) => step,
            Err(why) => Step::Done(why),
        }
    }

    fn go_on(&mut self, cover: &ServerCover, now: Instant) -> Result<Step, Why> {
        for _ in 0..CALLER_ROUNDS_MAX {
            match self.stage {
                Stage::New if !cover.is_tls() => self.stage = Stage::Opening,
                Stage::New => match self.peek()? {
                    None => return Ok(self.wait_for_first(now)),
                    Some(TLS_HANDSHAKE) if cover.is_tls() => {
                        if let Some(Arriving::Plain(socket)) = self.arriving.take() {
                            self.arriving = Some(cover.put_on(socket).map_err(Why::Cover)?);
                        }
                        self.stage = Stage::Cover;
                    }
                    Some(_) => self.stage = Stage::Opening,
                },
                Stage::Cover => match self.arriving().advance().map_err(Why::Cover)? {
                    #[cfg(feature = "http2")]
                    Wants::Nothing if self.arriving().protocol() == Some(H2) => {
                        if let Some(Arriving::Tls(tls)) = self.arriving.take() {
                            self.http2 = Some(Box::new(Http2::server(*tls)));
                        }
                        self.stage = Stage::Http2;
                    }
                    Wants::Nothing => {
                        self.stage = Stage::Opening;
                        let inside = self.silence.filter(|silence| silence.is_covered);
                        self.silent_at = inside.map(|silence| now + silence.time);
                    }
                    Wants::Ready { read, write } => {
                        let mut flags = EventFlags::empty();
                        flags.set(EventFlags::IN, read);
                        flags.set(EventFlags::OUT, write);
                        return Ok(self.wait(flags));
                    }
                },
                Stage::Opening => {
                    let grace = self.grace(now)?;
                    match recognise_opening(&self.input, grace) {
                        Some(Opening::Native) => self.stage = Stage::Ticket,
                        Some(Opening::Http) => self.stage = Stage::Request,
                        Some(Opening::Silence) => return Ok(Step::Joins(None)),
                        Some(Opening::Tls | Opening::Unknown) => return Err(Why::NotOurs),
                        None if self.read(PREFACE_SIZE)? => {}
                        None => return Ok(self.wait_for_first(now)),
                    }
                }
                Stage::Ticket => match Ticket::decode_preface(&self.input) {
                    Ok(Some(ticket)) => return Ok(Step::Joins(Some(ticket))),
                    Ok(None) if self.read(PREFACE_SIZE)? => {}
                    Ok(None) => return Ok(self.wait(EventFlags::IN)),
                    Err(_) => return Err(Why::NotOurs),
                },
                Stage::Request => match decode_request(&self.input) {
                    Ok(Some((request, size))) => {
                        self.requests_count += 1;
                        if self.requests_count > CALLER_REQUESTS_MAX {
                            return Err(Why::TooMuch);
                        }
                        self.input.drain(..size);
                        let Request::WebSocket(upgrade) = request else {
                            return Ok(Step::Asks(request));
                        };
                        self.upgrade = Some(upgrade);
                        self.stage = Stage::Upgrade;
                    }
                    Ok(None) if self.read(HANDSHAKE_HEAD_SIZE_MAX)? => {}
                    Ok(None) => return Ok(self.wait(EventFlags::IN)),
                    Err(refusal) => return Ok(Step::Refused(refusal)),
                },
                Stage::Answer { at: Some(at), .. } if now < at => {
                    // Nothing is read meanwhile: what he sends waits in the kernel. That he hangs
                    // up cannot be left out, and is told only once.
                    return Ok(self.hold_back(at));
                }
                Stage::Answer { is_last, .. } => {
                    if !self.send(is_last)? {
                        return Ok(self.wait(EventFlags::OUT));
                    }
                    self.stage = Stage::Opening;
                    // Whoever has asked for something is no pool connection that says nothing.
                    self.silent_at = None;
                    if is_last {
                        self.stage = Stage::Leaving;
                        self.deadline = self.deadline.min(now + CALLER_LINGER_TIMEOUT);
                    }
                }
                Stage::Upgrade => {
                    // He is asked again while he waits for a place.
                    let upgrade = self.upgrade.clone().ok_or(Why::NotOurs)?;
                    return Ok(Step::Upgrades(upgrade));
                }
                #[cfg(feature = "http2")]
                Stage::Http2 => return self.go_on_http2(now),
                Stage::Leaving => {
                    // A connection that is closed with something unread is reset, and then what
                    // he was told may not reach him.
                    self.input.clear();
                    if !self.read(HANDSHAKE_HEAD_SIZE_MAX)? {
                        return Ok(self.wait(EventFlags::IN));
                    }
                    self.discarded_size += self.input.len();
                    if self.discarded_size > CALLER_DISCARD_SIZE_MAX {
                        return Err(Why::TooMuch);
                    }
                }
            }
        }
        // Others get their turn first.
        Ok(Step::Wait {
            until: now,
            flags: EventFlags::IN,
        })
    }

    /// Returns whether he may still be about to speak.
    fn grace(&mut self, now: Instant) -> Result<Grace, Why> {
        let is_late = self.silent_at.is_some_and(|at| now >= at);
        // He may have spoken in time, and it is this end that comes late.
        let is_silent = is_late && self.input.is_empty() && !self.read(PREFACE_SIZE)?;
        Ok(if is_silent {
            Grace::Over
        } else {
            Grace::Running
        })
    }

    /// Goes on until the first pool connection of many comes.
    #[cfg(feature = "http2")]
    fn go_on_http2(&mut self, now: Instant) -> Result<Step, Why> {
        let deadline = self.deadline;
        let http2 = self.http2.as_mut().expect(LINE_IS_THERE);
        let has_more = http2.receive(now).map_err(Why::Broke)?;
        while let Some(event) = http2.next_event() {
            if let MuxEvent::Arrived(key, ticket) = event {
                http2.put_back(MuxEvent::Arrived(key, ticket.clone()));
                return Ok(Step::Multiplexes(ticket));
            }
        }
        let is_too_much = http2.strange_count() > CALLER_REQUESTS_MAX
            || http2.received_size() > CALLER_HTTP2_SIZE_MAX;
        if is_too_much {
            http2.close();
        }
        http2.send().map_err(Why::Broke)?;
        if is_too_much {
            return Err(Why::TooMuch);
        }
        http2.sleep();
        let mut flags = EventFlags::IN;
        flags.set(EventFlags::OUT, http2.holds_unsent());
        // Others get their turn first.
        let until = if has_more { now } else { deadline };
        Ok(Step::Wait { until, flags })
    }

    fn arriving(&mut self) -> &mut Arriving {
        self.arriving.as_mut().expect(LINE_IS_THERE)
    }

    fn wait(&self, flags: EventFlags) -> Step {
        Step::Wait {
            until: self.deadline,
            flags,
        }
    }

    /// Waits for the first bytes, or until there need be none.
    fn wait_for_first(&mut self, now: Instant) -> Step {
        if self.silent_at.is_some_and(|at| now >= at) {
            // Only `New` comes here with that; the next look finds that he says nothing.
            self.stage = Stage::Opening;
            return Step::Joins(None);
        }
        Step::Wait {
            until: self.first_look_at(),
            flags: EventFlags::IN,
        }
    }

    /// Returns the first byte without taking it; `None` if there is none yet.
    fn peek(&mut self) -> Result<Option<u8>, Why> {
        let mut first = [0];
        let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        match rustix::net::recv(self.descriptor(), &mut first[..], flags) {
            Ok((_, 0)) => Err(Why::Ended),
            Ok(_) => Ok(Some(first[0])),
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => Ok(None),
            Err(error) => Err(Why::Broke(error.into())),
        }
    }

    /// Reads until `input` has at most `size_max` bytes; false if there is nothing to read.
    fn read(&mut self, size_max: usize) -> Result<bool, Why> {
        let filled = self.input.len();
        self.input.resize(size_max.max(filled + 1), 0);
        let arriving = self.arriving.as_mut().expect(LINE_IS_THERE);
        let result = arriving.stream().read(&mut self.input[filled..]);
        self.input.truncate(filled + *result.as_ref().unwrap_or(&0));
        match result {
            Ok(0) => Err(Why::Ended),
            Ok(_) => {
                // Whoever has begun to speak is waited for.
                self.silent_at = None;
                Ok(true)
            }
            Err(error) if is_passing(&error) => Ok(false),
            Err(error) => Err(Why::Broke(error)),
        }
    }

    /// Sends `output`, and behind the last one the end; false if not all of it has left.
    fn send(&mut self, is_last: bool) -> Result<bool, Why> {
        let arriving = self.arriving.as_mut().expect(LINE_IS_THERE);
        let stream = arriving.stream();
        let mut sent = 0;
        let result = loop {
            if sent < self.output.len() {
                match stream.write(&self.output[sent..]) {
                    Ok(size) => sent += size,
                    Err(error) => break Err(error),
                }
            } else if is_last {
                break stream.finish();
            } else {
                break stream.flush();
            }
        };
        self.output.drain(..sent);
        match result {
            Ok(()) => Ok(true),
            Err(error) if is_passing(&error) => Ok(false),
            Err(error) => Err(Why::Broke(error)),
        }
    }
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Ended => f.write_str("the other side has ended it"),
            Self::TooSlow => f.write_str("it was too slow"),
            Self::NotOurs => f.write_str("it speaks nothing that is spoken here"),
            Self::TooMuch => f.write_str("it asks for more than there is to ask for"),
            Self::Broke(error) => write!(f, "{error}"),
            Self::Cover(error) => write!(f, "{error}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::net::stream::tests::{connected, wait_readable};

    const SILENCE: Silence = Silence {
        time: Duration::from_millis(100),
        is_covered: false,
    };

    /// Returns a caller who came at `now` and has said `words`, and whoever plays him.
    fn caller_with(words: &[u8], now: Instant) -> (Caller, PlainStream) {
        let (near, far) = connected();
        far.socket().write_all(words).unwrap();
        if !words.is_empty() {
            wait_readable(&near);
        }
        let address = near.peer_address().unwrap();
        let (silence, timeout) = (Some(SILENCE), Duration::from_secs(5));
        let caller = Caller::new(near.into_socket(), address, silence, now, timeout);
        (caller, far)
    }

    #[test]
    fn a_caller_who_says_nothing_is_a_pool_connection_of_v1() {
        let now = Instant::now();
        let (mut caller, _far) = caller_with(b"", now);
        let cover = ServerCover::Nothing;
        assert!(matches!(caller.advance(&cover, now), Step::Wait { .. }));
        let later = now + SILENCE.time;
        assert!(matches!(caller.advance(&cover, later), Step::Joins(None)));
    }

    #[test]
    fn a_caller_who_has_spoken_is_heard_however_late_he_is_looked_at() {
        let now = Instant::now();
        let (mut caller, _far) = caller_with(b"NPC", now);
        let late = now + SILENCE.time * 10;
        let step = caller.advance(&ServerCover::Nothing, late);
        assert!(matches!(step, Step::Wait { .. }));
    }
}
