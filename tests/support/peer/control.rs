//! A control channel in the hands of a case.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use nodepass::wire::signal::{Received, Signal, SignalReader, SignalWriter};

use super::stream::{Stream, is_timeout};
use crate::support::DEADLINE;

/// How long the channel's thread waits for the peer before it looks what the case wants.
const TURN: Duration = Duration::from_millis(5);

/// What the peer has said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Heard {
    /// A signal; pings have been answered.
    Signal(Signal),
    /// A line that is none.
    Nonsense(String),
    /// The channel has ended.
    End,
}

/// The channel, served by a thread so that pings are answered whatever the case waits for.
/// Dropping it ends it.
pub struct Control {
    orders: Option<Sender<Order>>,
    heard: Receiver<Heard>,
    thread: Option<JoinHandle<()>>,
}

enum Order {
    /// Send it; what is altered on the way is the case's affair.
    Send(Signal, fn(Vec<u8>) -> Vec<u8>),
    /// Send these bytes.
    SendBytes(Vec<u8>),
    /// From now on neither read nor write.
    Freeze,
    /// From now on answer no ping.
    IgnorePings,
}

struct Channel {
    stream: Stream,
    writer: SignalWriter,
    reader: SignalReader,
    heard: Sender<Heard>,
    ignores_pings: bool,
}

impl Control {
    /// Takes over the connection whose id was 0.
    pub fn start(stream: Stream, writer: SignalWriter, reader: SignalReader) -> Self {
        stream.socket().set_read_timeout(Some(TURN)).unwrap();
        let (orders, to_do) = mpsc::channel();
        let (report, heard) = mpsc::channel();
        let channel = Channel {
            stream,
            writer,
            reader,
            heard: report,
            ignores_pings: false,
        };
        Self {
            orders: Some(orders),
            heard,
            thread: Some(thread::spawn(move || channel.serve(&to_do))),
        }
    }

    /// Sends `signal` as the dialect has it.
    pub fn send(&self, signal: Signal) {
        self.order(Order::Send(signal, |line| line));
    }

    /// Sends what `alter` makes of the right line.
    pub fn send_altered(&self, signal: Signal, alter: fn(Vec<u8>) -> Vec<u8>) {
        self.order(Order::Send(signal, alter));
    }

    /// Sends `bytes`, which the counters of the dialect know nothing of.
    pub fn send_bytes(&self, bytes: &[u8]) {
        self.order(Order::SendBytes(bytes.to_vec()));
    }

    /// Neither reads nor writes from now on, and stays open.
    pub fn freeze(&self) {
        self.order(Order::Freeze);
    }

    /// Answers no ping from now on, and goes on with all else.
    pub fn ignore_pings(&self) {
        self.order(Order::IgnorePings);
    }

    fn order(&self, order: Order) {
        // A channel that has ended is for the case to find out.
        let _ = self.orders.as_ref().unwrap().send(order);
    }

    /// The next that is heard.
    #[track_caller]
    pub fn next(&self) -> Heard {
        match self.heard.recv_timeout(DEADLINE) {
            Ok(heard) => heard,
            Err(RecvTimeoutError::Disconnected) => Heard::End,
            Err(RecvTimeoutError::Timeout) => panic!("nothing on the control channel"),
        }
    }

    /// The next signal that is neither ping nor pong.
    #[track_caller]
    pub fn next_signal(&self) -> Signal {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            match self.next() {
                Heard::Signal(Signal::Ping | Signal::Pong) => {}
                Heard::Signal(signal) => return signal,
                other => panic!("no signal but {other:?}"),
            }
        }
        panic!("no signal but pings");
    }

    /// The next signal that is neither ping nor pong, if one has come.
    #[track_caller]
    pub fn signal_so_far(&self) -> Option<Signal> {
        loop {
            match self.heard.try_recv() {
                Ok(Heard::Signal(Signal::Ping | Signal::Pong)) => {}
                Ok(Heard::Signal(signal)) => return Some(signal),
                Ok(other) => panic!("no signal but {other:?}"),
                Err(_) => return None,
            }
        }
    }

    /// Waits for `signal`, whatever comes before it.
    #[track_caller]
    pub fn wait_for(&self, signal: &Signal) {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            match self.next() {
                Heard::Signal(heard) if heard == *signal => return,
                Heard::End => break,
                _ => {}
            }
        }
        panic!("{signal:?} did not come");
    }

    /// Waits for the peer to end the channel, whatever it says before.
    #[track_caller]
    pub fn wait_end(&self) {
        let deadline = Instant::now() + DEADLINE;
        while Instant::now() < deadline {
            if self.next() == Heard::End {
                return;
            }
        }
        panic!("the control channel did not end");
    }
}

impl Drop for Control {
    fn drop(&mut self) {
        drop(self.orders.take());
        let _ = self.thread.take().unwrap().join();
    }
}

impl Channel {
    fn serve(mut self, orders: &Receiver<Order>) {
        let mut buffer = [0; 4096];
        loop {
            match orders.try_recv() {
                Ok(Order::Send(signal, alter)) => {
                    let line = self.writer.encode(&signal).expect("of this dialect");
                    self.write(&alter(line));
                    continue;
                }
                Ok(Order::SendBytes(bytes)) => {
                    self.write(&bytes);
                    continue;
                }
                Ok(Order::Freeze) => {
                    // Until the case drops us: what it orders is no longer done.
                    while orders.recv().is_ok() {}
                    break;
                }
                Ok(Order::IgnorePings) => {
                    self.ignores_pings = true;
                    continue;
                }
                Err(TryRecvError::Empty) => {}
                Err(TryRecvError::Disconnected) => break,
            }
            match self.stream.read(&mut buffer) {
                Ok(0) => break,
                Ok(count) => self.take(&buffer[..count]),
                Err(error) if is_timeout(&error) => {}
                Err(_) => break,
            }
        }
        let _ = self.stream.socket().shutdown(Shutdown::Both);
        let _ = self.heard.send(Heard::End);
    }

    fn take(&mut self, mut input: &[u8]) {
        while let Some(received) = self.reader.read(&mut input).transpose() {
            let heard = match received {
                Ok(Received::Signal(signal)) => {
                    if signal == Signal::Ping && !self.ignores_pings {
                        let pong = self.writer.encode(&Signal::Pong).unwrap();
                        self.write(&pong);
                    }
                    Heard::Signal(signal)
                }
                Ok(other) => Heard::Nonsense(format!("{other:?}")),
                Err(error) => {
                    let _ = self.heard.send(Heard::Nonsense(error.to_string()));
                    return;
                }
            };
            let _ = self.heard.send(heard);
        }
    }

    fn write(&mut self, bytes: &[u8]) {
        // An end shows when reading.
        let _ = self.stream.write_all(bytes);
        let _ = self.stream.flush();
    }
}
