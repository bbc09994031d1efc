//! Bulk data over TCP, with ends so lean that the forwarder is what limits.
//!
//! The sender gives the kernel the same pages again and again (`sendfile` from memory), the
//! receiver has the kernel throw the bytes away without copying them (`MSG_TRUNC`).

use std::io::{self, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::{self, JoinHandle};

use rustix::fs::{MemfdFlags, ftruncate, memfd_create, sendfile};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{RecvFlags, recv};

/// Bytes handed to the kernel in one call.
const CHUNK_SIZE: usize = 1 << 20;

/// Which way the data goes, seen from the visitor.
#[derive(Clone, Copy)]
pub enum Direction {
    Up,
    Down,
}

/// First byte on a connection to the target's bulk port.
#[derive(Clone, Copy)]
#[repr(u8)]
pub enum BulkRequest {
    /// Answer with the same byte, then close.
    Probe = b'P',
    /// Receive all that follows and forget it.
    Receive = b'R',
    /// Send without end.
    Send = b'S',
}

impl BulkRequest {
    pub fn decode(byte: u8) -> Option<BulkRequest> {
        let all = [BulkRequest::Probe, BulkRequest::Receive, BulkRequest::Send];
        all.into_iter().find(|request| request.encode() == byte)
    }

    pub fn encode(self) -> u8 {
        self as u8
    }
}

/// Bulk streams that run until `stop`.
pub struct Bulk {
    bytes: Arc<AtomicU64>,
    sockets: Vec<Arc<TcpStream>>,
    threads: Vec<JoinHandle<io::Result<()>>>,
}

impl Bulk {
    /// Connects `streams` times and starts to move data on all of them.
    pub fn start(address: SocketAddr, streams: usize, direction: Direction) -> io::Result<Bulk> {
        let mut bulk = Bulk {
            bytes: Arc::default(),
            sockets: Vec::new(),
            threads: Vec::new(),
        };
        for _ in 0..streams {
            let socket = Arc::new(TcpStream::connect(address)?);
            let bytes = Arc::clone(&bulk.bytes);
            bulk.sockets.push(Arc::clone(&socket));
            bulk.threads.push(thread::spawn(move || {
                let count = |moved| {
                    bytes.fetch_add(moved, Ordering::Relaxed);
                };
                match direction {
                    Direction::Up => {
                        (&*socket).write_all(&[BulkRequest::Receive.encode()])?;
                        flood(&socket, count)
                    }
                    Direction::Down => {
                        (&*socket).write_all(&[BulkRequest::Send.encode()])?;
                        drain(&socket, count)
                    }
                }
            }));
        }
        Ok(bulk)
    }

    /// Bytes moved so far on all streams together.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }

    /// Ends all streams. Errors: how many of them had ended by themselves.
    pub fn stop(self) -> io::Result<()> {
        let ended = self
            .threads
            .iter()
            .filter(|thread| thread.is_finished())
            .count();
        for socket in &self.sockets {
            // A stream that has ended already is counted above.
            let _ = socket.shutdown(Shutdown::Both);
        }
        for thread in self.threads {
            // Being cut off is how a stream ends.
            let _ = thread.join();
        }
        if ended > 0 {
            return Err(io::Error::other(format!("{ended} streams broke")));
        }
        Ok(())
    }
}

/// Sends zeros until the connection ends, and reports the size of each piece.
pub fn flood(socket: &TcpStream, count: impl Fn(u64)) -> io::Result<()> {
    let zeros = memfd_create("zeros", MemfdFlags::CLOEXEC)?;
    ftruncate(&zeros, CHUNK_SIZE as u64)?;
    loop {
        let mut offset = 0;
        let sent = sendfile(socket, &zeros, Some(&mut offset), CHUNK_SIZE);
        match sent {
            Ok(0) => return Ok(()),
            Ok(_) => count(offset),
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

/// Receives and forgets until the connection ends, and reports the size of each piece.
pub fn drain(socket: &TcpStream, count: impl Fn(u64)) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK_SIZE];
    loop {
        let (_, received) = retry_on_intr(|| recv(socket, &mut buffer[..], RecvFlags::TRUNC))?;
        if received == 0 {
            return Ok(());
        }
        count(received as u64);
    }
}
