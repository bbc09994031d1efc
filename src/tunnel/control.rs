//! The control channel of a session: one thread reads it and keeps its time, any thread writes.
//!
//! A signal is written at once where the connection takes it; what it does not take waits in
//! order, and the reading thread sends it when there is room. So no writer ever waits, and no two
//! lines mix.
//!
//! A burst of signals on a long link is gathered for a moment: one segment for each would be more
//! than a connection that was quiet may send within its first round trip.
//!
//! Source: wire protocol, sections 5 and 8.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags};
use socket2::SockRef;

use crate::limits::{
    CONTROL_READ_SIZE, CONTROL_ROUNDS_MAX, GATHER_ROUND_TRIP_MIN, GATHER_TIME, SILENT_INTERVALS_MAX,
};
use crate::net::stream::{BoxedStream, is_passing};
use crate::runtime::event::{Bell, Event, timespec};
use crate::runtime::threads::lock;
use crate::wire::signal::{ControlError, Received, Signal, SignalReader, SignalWriter};

/// The writing side, for all threads.
pub struct Control {
    line: Mutex<Line>,
    /// The descriptor of the stream, to be polled without the lock.
    descriptor: OwnedFd,
    /// Tells the reading thread that something waits to be sent.
    bell: Bell,
    /// Most signals that may wait.
    queue_max: usize,
}

struct Line {
    stream: BoxedStream,
    writer: SignalWriter,
    /// Lines that wait for room, the first of them maybe in part.
    unsent: Vec<u8>,
    /// How many signals those are.
    unsent_count: usize,
    /// When signals were last written.
    written_at: Option<Instant>,
    /// For how long signals are gathered after one was written.
    gather_time: Duration,
}

/// Why a signal is not sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotSent {
    /// As many wait as may wait.
    Full,
    /// The control channel is broken.
    Broken,
    /// The dialect has no such signal.
    Unknown,
}

/// Why a control channel ended.
#[derive(Debug)]
pub enum ControlEnd {
    /// The peer closed it.
    Closed,
    /// It broke.
    Broke(io::Error),
    /// Nothing came, or no answer, for that long.
    Silent(Duration),
    /// What came was not what the peer had sent.
    Untrusted(ControlError),
    /// The session is over for another reason, or the program stops.
    Stopped,
}

/// What the reading thread works for.
pub trait Listener {
    /// Takes what a line of the peer was; must not wait for anything.
    fn receive(&self, received: Received);
    /// Takes how long the answer to a ping took.
    fn note_round_trip(&self, time: Duration);
}

impl Control {
    /// Takes over a stream whose first byte is the first of a line.
    ///
    /// Errors: no descriptor left.
    pub fn new(stream: BoxedStream, writer: SignalWriter, queue_max: usize) -> io::Result<Self> {
        let descriptor = stream.descriptor().try_clone_to_owned()?;
        let socket = SockRef::from(&descriptor);
        // BBR spreads bytes over time by a bandwidth that it has measured, and on a channel that
        // is mostly quiet it measures next to nothing: eight signals at once took a round trip
        // more. Where there is no other, that is how it is.
        if socket.set_tcp_congestion(b"cubic").is_err() {
            let _ = socket.set_tcp_congestion(b"reno");
        }
        Ok(Self {
            descriptor,
            bell: Bell::new()?,
            queue_max,
            line: Mutex::new(Line {
                stream,
                writer,
                unsent: Vec::new(),
                unsent_count: 0,
                written_at: None,
                gather_time: Duration::ZERO,
            }),
        })
    }

    /// Sends a signal, or puts it behind those that wait. Never waits.
    pub fn send(&self, signal: &Signal) -> Result<(), NotSent> {
        let mut line = lock(&self.line);
        if line.unsent_count >= self.queue_max {
            return Err(NotSent::Full);
        }
        let bytes = line.writer.encode(signal).ok_or(NotSent::Unknown)?;
        let was_empty = line.unsent.is_empty();
        line.unsent.extend(bytes);
        line.unsent_count += 1;
        if line.gathers_until(Instant::now()).is_none() {
            line.send_waiting().map_err(|_| NotSent::Broken)?;
        }
        if was_empty && line.has_unsent() {
            self.bell.ring();
        }
        Ok(())
    }

    /// Reads until the channel ends; the body of the thread `ctl-read`.
    ///
    /// Sends a ping each `interval`, and gives up when nothing came for
    /// `SILENT_INTERVALS_MAX` of them; time in which this end itself stood still does not count.
    ///
    /// Blocks: until then, or until `over` or `stop` is raised.
    pub fn run(
        &self,
        mut reader: SignalReader,
        listener: &dyn Listener,
        interval: Duration,
        over: &Event,
        stop: &Event,
    ) -> ControlEnd {
        let mut buffer = vec![0; CONTROL_READ_SIZE];
        let mut clock = Clock::new(Instant::now(), interval);
        loop {
            if over.is_raised() || stop.is_raised() {
                return ControlEnd::Stopped;
            }
            let now = Instant::now();
            clock.note_awake(now);
            if clock.is_patience_over(now) {
                return ControlEnd::Silent(clock.patience());
            }
            if now >= clock.ping_at {
                clock.ping_at = now + interval;
                clock.pinged_at.get_or_insert(now);
                // A channel that is full of signals needs no ping to be found dead.
                let _ = self.send(&Signal::Ping);
            }
            self.wait(clock.plan_wake(), over, stop);
            match self.read(&mut reader, listener, &mut buffer, &mut clock) {
                Ok(()) => {}
                Err(end) => return end,
            }
        }
    }

    /// Ends the channel in order, as far as that can be done at once.
    pub fn close(&self) {
        let mut line = lock(&self.line);
        // It is closed right after; one that cannot take a word more is cut off by that.
        let _ = line.send_waiting();
        let _ = line.stream.finish();
    }

    /// Sleeps until there is something to read, or to send, or `wake_at` has come.
    fn wait(&self, wake_at: Instant, over: &Event, stop: &Event) {
        let now = Instant::now();
        let mut events = PollFlags::IN;
        let mut wake_at = wake_at;
        {
            let line = lock(&self.line);
            if line.stream.holds_bytes() {
                wake_at = now;
            }
            match line.gathers_until(now) {
                Some(until) if !line.unsent.is_empty() => wake_at = wake_at.min(until),
                _ => events.set(PollFlags::OUT, line.has_unsent()),
            }
        }
        let timeout = timespec(wake_at.saturating_duration_since(now));
        let mut set = [
            PollFd::new(&self.descriptor, events),
            PollFd::new(&self.bell, PollFlags::IN),
            PollFd::new(over, PollFlags::IN),
            PollFd::new(stop, PollFlags::IN),
        ];
        // An interrupted poll is a round in which nothing happened.
        let _ = rustix::event::poll(&mut set, Some(&timeout));
        if !set[1].revents().is_empty() {
            self.bell.silence();
        }
    }

    /// Sends what waits, and reads what is there.
    fn read(
        &self,
        reader: &mut SignalReader,
        listener: &dyn Listener,
        buffer: &mut [u8],
        clock: &mut Clock,
    ) -> Result<(), ControlEnd> {
        for _ in 0..CONTROL_ROUNDS_MAX {
            let size = {
                let mut line = lock(&self.line);
                if line.gathers_until(Instant::now()).is_none() {
                    line.send_waiting().map_err(ControlEnd::Broke)?;
                }
                match line.stream.read(buffer) {
                    Ok(0) => return Err(ControlEnd::Closed),
                    Ok(size) => size,
                    Err(error) if is_passing(&error) => {
                        line.stream.rest();
                        return Ok(());
                    }
                    Err(error) => return Err(ControlEnd::Broke(error)),
                }
            };
            let now = Instant::now();
            clock.note_heard(now);
            let mut input = &buffer[..size];
            while let Some(received) = reader.read(&mut input).map_err(ControlEnd::Untrusted)? {
                match received {
                    Received::Signal(Signal::Ping) => {
                        // The same as above: what is full needs no pong.
                        let _ = self.send(&Signal::Pong);
                    }
                    Received::Signal(Signal::Pong) => {
                        if let Some(pinged_at) = clock.pinged_at.take() {
                            let time = now - pinged_at;
                            lock(&self.line).gather_time = gather_time(time);
                            listener.note_round_trip(time);
                        }
                    }
                    received => listener.receive(received),
                }
            }
        }
        Ok(())
    }
}

/// When the reading thread has to do something of its own accord.
struct Clock {
    interval: Duration,
    ping_at: Instant,
    /// When the first ping was sent that has no answer yet.
    pinged_at: Option<Instant>,
    silent_at: Instant,
    /// When the thread should be awake again, or was last.
    wake_at: Instant,
}

impl Clock {
    fn new(now: Instant, interval: Duration) -> Self {
        let mut clock = Self {
            interval,
            // The first one at once: then the round trip is known from the start.
            ping_at: now,
            pinged_at: None,
            silent_at: now,
            wake_at: now,
        };
        clock.silent_at += clock.patience();
        clock
    }

    /// Returns how long the other end may say nothing, or not answer.
    fn patience(&self) -> Duration {
        self.interval * SILENT_INTERVALS_MAX
    }

    /// Returns when to wake, if nothing wakes the thread before.
    fn plan_wake(&mut self) -> Instant {
        self.wake_at = self.ping_at.min(self.silent_at);
        self.wake_at
    }

    /// Notes that the thread is awake. If that is late, this end stood still: what the other one
    /// has said meanwhile may wait in a socket, for a thread that stood still as well.
    fn note_awake(&mut self, now: Instant) {
        let late = now.saturating_duration_since(self.wake_at);
        self.wake_at += late;
        self.silent_at += late;
        if let Some(pinged_at) = &mut self.pinged_at {
            *pinged_at += late;
        }
    }

    /// Notes that the other end has said something.
    fn note_heard(&mut self, now: Instant) {
        self.note_awake(now);
        self.silent_at = now + self.patience();
    }

    /// Returns whether the other end has said nothing, or not answered, for too long.
    fn is_patience_over(&self, now: Instant) -> bool {
        // One that talks but does not answer does not act on what it is told either.
        let is_deaf = self.pinged_at.is_some_and(|at| now >= at + self.patience());
        now >= self.silent_at || is_deaf
    }
}

/// Returns for how long signals are gathered where the round trip takes `round_trip`: nothing that
/// is felt, and nothing at all where a round trip more would not be felt either.
fn gather_time(round_trip: Duration) -> Duration {
    if round_trip < GATHER_ROUND_TRIP_MIN {
        Duration::ZERO
    } else {
        GATHER_TIME
    }
}

impl Line {
    /// Returns until when signals are gathered; `None` if they are sent now.
    fn gathers_until(&self, now: Instant) -> Option<Instant> {
        let until = self.written_at? + self.gather_time;
        (now < until).then_some(until)
    }

    fn has_unsent(&self) -> bool {
        !self.unsent.is_empty() || self.stream.holds_unsent()
    }

    /// Sends what waits, as far as the stream takes it.
    fn send_waiting(&mut self) -> io::Result<()> {
        let mut sent = 0;
        let result = loop {
            if sent == self.unsent.len() {
                break match self.stream.flush() {
                    Err(error) if !is_passing(&error) => Err(error),
                    _ => Ok(()),
                };
            }
            match self.stream.write(&self.unsent[sent..]) {
                Ok(size) => sent += size,
                Err(error) if is_passing(&error) => break Ok(()),
                Err(error) => break Err(error),
            }
        };
        if sent > 0 {
            self.written_at = Some(Instant::now());
        }
        let lines = self
            .unsent
            .drain(..sent)
            .filter(|byte| *byte == b'\n')
            .count();
        self.unsent_count -= lines;
        result
    }
}

impl std::fmt::Display for ControlEnd {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Closed => f.write_str("the other side closed the control channel"),
            Self::Broke(error) => write!(f, "the control channel broke: {error}"),
            Self::Silent(time) => write!(
                f,
                "the other side did not answer for {:.1} s",
                time.as_secs_f64()
            ),
            Self::Untrusted(error) => write!(f, "{error}"),
            Self::Stopped => f.write_str("this side stops"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const INTERVAL: Duration = Duration::from_secs(1);

    /// Returns after how long `clock` gives up, when its thread wakes in time from `now` on.
    fn patience_left(clock: &mut Clock, now: Instant) -> Duration {
        let mut then = now;
        while !clock.is_patience_over(then) {
            if then >= clock.ping_at {
                clock.ping_at = then + INTERVAL;
                clock.pinged_at.get_or_insert(then);
            }
            then = clock.plan_wake();
            clock.note_awake(then);
        }
        then - now
    }

    #[test]
    fn one_that_says_nothing_is_given_up_after_three_intervals() {
        let start = Instant::now();
        let mut clock = Clock::new(start, INTERVAL);
        assert_eq!(patience_left(&mut clock, start), 3 * INTERVAL);
    }

    #[test]
    fn one_that_answers_no_ping_is_given_up_whatever_it_says() {
        let start = Instant::now();
        let mut clock = Clock::new(start, INTERVAL);
        let heard_at = start + INTERVAL * 2;
        (clock.pinged_at, clock.ping_at) = (Some(start), heard_at);
        assert_eq!(clock.plan_wake(), heard_at);
        clock.note_heard(heard_at);
        assert_eq!(patience_left(&mut clock, heard_at), INTERVAL);
    }

    #[test]
    fn time_in_which_this_end_stood_still_is_no_silence_of_the_other() {
        let start = Instant::now();
        let mut clock = Clock::new(start, INTERVAL);
        clock.ping_at = start + INTERVAL;
        clock.pinged_at = Some(start);
        assert_eq!(clock.plan_wake(), start + INTERVAL);
        let woken_at = start + INTERVAL * 60;
        clock.note_awake(woken_at);
        // One interval of patience was used up before the thread should have woken.
        assert_eq!(patience_left(&mut clock, woken_at), 2 * INTERVAL);
    }
}
