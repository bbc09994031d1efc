//! Receives and sends datagrams in batches, with the address they came to.
//!
//! The kernel may join datagrams of one sender that have the same size (GRO), and takes joined
//! ones back (GSO): then one call moves up to 64 of them.

use std::cell::Cell;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr, UdpSocket};

use nix::sys::socket::{setsockopt, sockopt};
use quinn_udp::{RecvMeta, Transmit, UdpSockRef, UdpSocketState};
use rustix::io::Errno;
use rustix::net::SendFlags;

use crate::limits::{
    DATAGRAM_BATCH_SIZE, DATAGRAM_BUFFER_SIZE, DATAGRAM_JOIN_SIZE_MAX, DATAGRAM_RUN_SIZE_MAX,
};

/// What the kernel can do with datagrams; one for all sockets.
#[derive(Debug)]
pub struct DatagramPort {
    /// Made for a socket that is thrown away: it holds nothing of a socket, and what it would
    /// set on ours forbids fragments, without which large datagrams do not pass.
    state: UdpSocketState,
    /// For datagrams that go alone: what the system refuses there must not end the joining.
    alone: UdpSocketState,
}

/// Datagrams of one sender that came to one address.
#[derive(Clone, Copy, Debug)]
pub struct Received<'a> {
    /// The sender.
    pub peer: SocketAddr,
    /// The address that the sender wrote to, where the socket was asked to tell.
    pub local: Option<IpAddr>,
    /// The datagrams one after another, each of `segment_size` bytes, the last one maybe shorter.
    pub bytes: &'a [u8],
    /// Size of one datagram; 0 for one empty datagram.
    pub segment_size: usize,
}

impl<'a> Received<'a> {
    /// Returns the datagrams one by one.
    pub fn segments(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        let is_empty = self.bytes.is_empty();
        let empty = is_empty.then_some(&[][..]);
        empty
            .into_iter()
            .chain(self.bytes.chunks(self.segment_size.max(1)))
    }
}

/// Where a batch is received into; lent to one receive at a time.
#[derive(Debug)]
pub struct Batch {
    buffer: Box<[u8]>,
    meta: [RecvMeta; DATAGRAM_BATCH_SIZE],
    count: usize,
    count_max: usize,
}

impl Default for Batch {
    fn default() -> Self {
        Self {
            // Pages that no datagram reaches are never touched, so they cost nothing.
            buffer: vec![0; DATAGRAM_BATCH_SIZE * DATAGRAM_BUFFER_SIZE].into_boxed_slice(),
            meta: [RecvMeta::default(); DATAGRAM_BATCH_SIZE],
            count: 0,
            count_max: DATAGRAM_BATCH_SIZE,
        }
    }
}

impl Batch {
    /// Returns whether the last receive filled the batch, so that there may be more.
    pub fn is_full(&self) -> bool {
        self.count == self.count_max
    }

    /// Receives only one thing at a time from now on.
    pub fn limit_to_one(&mut self) {
        self.count_max = 1;
    }

    /// Hands what was received last to `take`, datagram by datagram, which may change it; with it
    /// the sender, and the address that the sender wrote to.
    #[cfg(feature = "quic")]
    pub fn take_each(&mut self, mut take: impl FnMut(&mut [u8], SocketAddr, Option<IpAddr>)) {
        let parts = self.buffer.chunks_mut(DATAGRAM_BUFFER_SIZE);
        for (part, meta) in parts.zip(&self.meta[..self.count]) {
            for datagram in part[..meta.len].chunks_mut(meta.stride.max(1)) {
                take(datagram, meta.addr, meta.dst_ip);
            }
        }
    }

    /// Returns what was received last.
    pub fn iter(&self) -> impl Iterator<Item = Received<'_>> {
        let parts = self.buffer.chunks(DATAGRAM_BUFFER_SIZE);
        parts
            .zip(&self.meta[..self.count])
            .map(|(part, meta)| Received {
                peer: meta.addr,
                local: meta.dst_ip,
                bytes: &part[..meta.len],
                segment_size: meta.stride,
            })
    }
}

/// Datagrams of one size, one after another, that can be sent by one call. It keeps its memory
/// for the next ones.
#[derive(Debug, Default)]
pub struct Run {
    bytes: Vec<u8>,
    segment_size: usize,
    count: usize,
    /// The last one is shorter, or too large to be joined: none can follow.
    is_closed: bool,
}

impl Run {
    /// Adds a datagram; returns whether it could be joined with those that are there.
    pub fn add(&mut self, datagram: &[u8]) -> bool {
        let size = datagram.len();
        if self.count == 0 {
            self.segment_size = size;
            self.is_closed = size == 0 || size > DATAGRAM_JOIN_SIZE_MAX;
        } else if self.is_closed
            || size == 0
            || size > self.segment_size
            || self.bytes.len() + size > DATAGRAM_RUN_SIZE_MAX
        {
            return false;
        } else {
            self.is_closed = size < self.segment_size;
        }
        self.count += 1;
        self.bytes.extend_from_slice(datagram);
        true
    }

    /// Returns what was added, as if it had come from `peer`; `None` if that is nothing.
    pub fn joined(&self, peer: SocketAddr) -> Option<Received<'_>> {
        (self.count > 0).then_some(Received {
            peer,
            local: None,
            bytes: &self.bytes,
            segment_size: self.segment_size,
        })
    }

    /// Forgets what was added.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.count = 0;
    }
}

impl DatagramPort {
    /// Finds out what the kernel can do.
    ///
    /// Errors: no descriptor left, or no IPv4 on this system.
    pub fn new() -> io::Result<Self> {
        let throw_away = UdpSocket::bind(("127.0.0.1", 0))?;
        let state = || UdpSocketState::new(UdpSockRef::from(&throw_away));
        Ok(Self {
            state: state()?,
            alone: state()?,
        })
    }

    /// Receives what is there, into `batch`.
    ///
    /// Errors: `WouldBlock` when nothing is there; on a connected socket an ICMP message, such as
    /// `ConnectionRefused`, which does not harm the socket.
    pub fn receive(&self, socket: &UdpSocket, batch: &mut Batch) -> io::Result<()> {
        batch.count = 0;
        let mut parts = batch
            .buffer
            .chunks_mut(DATAGRAM_BUFFER_SIZE)
            .map(IoSliceMut::new);
        let mut buffers: [IoSliceMut<'_>; DATAGRAM_BATCH_SIZE] =
            std::array::from_fn(|_| parts.next().unwrap_or_else(|| IoSliceMut::new(&mut [])));
        let buffers = &mut buffers[..batch.count_max];
        let meta = &mut batch.meta[..batch.count_max];
        batch.count = self.state.recv(UdpSockRef::from(socket), buffers, meta)?;
        Ok(())
    }

    /// Sends datagrams to `peer`, from the address `local` if the socket has several.
    ///
    /// Errors: those of the first datagram that did not leave; the rest has not been sent then.
    pub fn send_to(
        &self,
        socket: &UdpSocket,
        peer: SocketAddr,
        local: Option<IpAddr>,
        received: &Received<'_>,
    ) -> io::Result<()> {
        let socket = || UdpSockRef::from(socket);
        let joined = |bytes: &[u8], size| {
            let transmit = transmit(peer, local, bytes, Some(size));
            self.state.try_send(socket(), &transmit)
        };
        let single = |bytes: &[u8]| {
            let result = self
                .alone
                .try_send(socket(), &transmit(peer, local, bytes, None));
            match result {
                // What came to a broadcast or multicast address cannot be answered from there.
                Err(error) if local.is_some() && is_wrong_source(&error) => self
                    .alone
                    .try_send(socket(), &transmit(peer, None, bytes, None)),
                result => result,
            }
        };
        self.send_joined(received, joined, single)
    }

    /// Sends datagrams to the peer that the socket is connected to.
    ///
    /// Errors: those of [`DatagramPort::send_to`]; or an ICMP message to an earlier datagram, and
    /// then these have been sent all the same.
    pub fn send(
        &self,
        socket: &UdpSocket,
        peer: SocketAddr,
        received: &Received<'_>,
    ) -> io::Result<()> {
        let refusal = Cell::new(None);
        // The kernel tells of an ICMP message instead of sending: the next try sends.
        let insist = |send: &dyn Fn() -> io::Result<()>| match send() {
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                refusal.set(Some(error));
                send()
            }
            result => result,
        };
        let joined = |contents: &[u8], size| {
            let transmit = transmit(peer, None, contents, Some(size));
            insist(&|| self.state.try_send(UdpSockRef::from(socket), &transmit))
        };
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        let single =
            |bytes: &[u8]| insist(&|| Ok(rustix::net::send(socket, bytes, flags).map(drop)?));
        self.send_joined(received, joined, single)?;
        refusal.take().map_or(Ok(()), Err)
    }

    /// Sends as many datagrams at once as the kernel takes, or one by one where it does not.
    fn send_joined(
        &self,
        received: &Received<'_>,
        joined: impl Fn(&[u8], usize) -> io::Result<()>,
        single: impl Fn(&[u8]) -> io::Result<()>,
    ) -> io::Result<()> {
        let size = received.segment_size;
        let joined_max = self.state.max_gso_segments();
        if received.bytes.len() <= size || joined_max < 2 {
            return received.segments().try_for_each(single);
        }
        for chunk in received.bytes.chunks(size * joined_max) {
            // The path may have a smaller packet size than the one that they came on, or its
            // network device cannot take them apart.
            if chunk.len() <= size {
                single(chunk)?;
            } else if joined(chunk, size).is_err() {
                chunk.chunks(size).try_for_each(&single)?;
            }
        }
        Ok(())
    }
}

fn transmit(
    destination: SocketAddr,
    src_ip: Option<IpAddr>,
    contents: &[u8],
    segment_size: Option<usize>,
) -> Transmit<'_> {
    Transmit {
        destination,
        ecn: None,
        contents,
        segment_size,
        src_ip,
    }
}

/// Returns whether the system refuses to send from an address.
fn is_wrong_source(error: &io::Error) -> bool {
    let errno = Errno::from_io_error(error);
    matches!(
        errno,
        Some(Errno::INVAL | Errno::ADDRNOTAVAIL | Errno::NETUNREACH)
    )
}

/// Asks the kernel to join datagrams of one size, where it can.
pub fn join_received(socket: &UdpSocket) {
    // Without it each datagram comes alone.
    let _ = setsockopt(socket, sockopt::UdpGroSegment, &true);
}

/// Asks the kernel to tell which address a datagram came to.
///
/// Errors: the system cannot tell; then a socket for all addresses cannot answer from the right
/// one.
pub fn tell_local_address(socket: &UdpSocket) -> io::Result<()> {
    if socket.local_addr()?.is_ipv4() {
        setsockopt(socket, sockopt::Ipv4PacketInfo, &true)?;
    } else {
        setsockopt(socket, sockopt::Ipv6RecvPacketInfo, &true)?;
    }
    Ok(())
}

/// Asks for kernel buffers of `size` bytes each way; gets what the system allows.
pub fn set_buffer_sizes(socket: &UdpSocket, size: usize) {
    let plain = socket2::SockRef::from(socket);
    // Only the network administrator may go beyond the limit of the system.
    if rustix::net::sockopt::set_socket_recv_buffer_size_force(socket, size).is_err() {
        let _ = plain.set_recv_buffer_size(size);
    }
    let _ = plain.set_send_buffer_size(size);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn segments(bytes: &[u8], segment_size: usize) -> Vec<&[u8]> {
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        Received {
            peer,
            local: None,
            bytes,
            segment_size,
        }
        .segments()
        .collect()
    }

    #[test]
    fn joined_datagrams_are_taken_apart() {
        assert_eq!(segments(b"aabbc", 2), [&b"aa"[..], b"bb", b"c"]);
        assert_eq!(segments(b"aabb", 4), [b"aabb"]);
        assert_eq!(segments(b"", 0), [b""]);
    }

    /// Returns the runs that datagrams of these sizes make, as sizes.
    fn runs(sizes: &[usize]) -> Vec<Vec<usize>> {
        let peer = SocketAddr::from(([127, 0, 0, 1], 9));
        let (mut run, mut runs) = (Run::default(), Vec::new());
        let mut end = |run: &mut Run| {
            if let Some(joined) = run.joined(peer) {
                runs.push(joined.segments().map(<[u8]>::len).collect());
            }
            run.clear();
        };
        for size in sizes {
            let datagram = vec![0; *size];
            if !run.add(&datagram) {
                end(&mut run);
                assert!(run.add(&datagram));
            }
        }
        end(&mut run);
        runs
    }

    #[test]
    fn datagrams_of_one_size_make_a_run_that_a_shorter_one_ends() {
        assert_eq!(runs(&[]), Vec::<Vec<usize>>::new());
        assert_eq!(runs(&[5, 5, 5]), [[5, 5, 5]]);
        assert_eq!(runs(&[5, 5, 3, 3]), [vec![5, 5, 3], vec![3]]);
        assert_eq!(runs(&[3, 5]), [[3], [5]]);
        assert_eq!(runs(&[0, 0, 5, 0]), [[0], [0], [5], [0]]);
    }

    #[test]
    fn large_datagrams_and_long_runs_are_not_joined() {
        let max = DATAGRAM_JOIN_SIZE_MAX;
        assert_eq!(runs(&[max, max]), [[max, max]]);
        assert_eq!(runs(&[max + 1, max + 1]), [[max + 1], [max + 1]]);
        let count = DATAGRAM_RUN_SIZE_MAX / 1024;
        let lengths: Vec<usize> = runs(&vec![1024; count + 1]).iter().map(Vec::len).collect();
        assert_eq!(lengths, [count, 1]);
    }
}
