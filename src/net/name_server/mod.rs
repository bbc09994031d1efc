//! Asks name servers for the addresses of a name, over UDP and, for what does not fit, over TCP.
//!
//! Owns the sockets and the clock of one lookup; what the bytes mean is `wire/dns.rs`. Both kinds
//! of address are asked for at once on one connected socket per attempt. Silence or a failure
//! moves on to the next server, while the sockets of those before stay open for a late answer.
//! Knows nothing of a cache, of search domains or of the hosts file: that is for the caller.
//!
//! ```text
//! ask server 1 ──silent, failed──▶ ask server 2 ──▶ … ──▶ second round ──▶ Unanswered
//!      │ addresses of one kind               │
//!      ▼                                     ▼
//! wait a short grace for the other kind ──▶ addresses, NotFound or NoAddress
//! ```
//!
//! Against answers from someone off the path: the kernel takes datagrams of the asked server
//! only, and each attempt has a source port and ids of its own, all random.
//!
//! Source: RFC 1035 section 4.2 (UDP and TCP), RFC 5452 section 9 (forged answers), RFC 7766
//! section 6.2.1.1 (several questions on one stream), RFC 6761 section 6.3 (localhost).

mod error;
mod stream;

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use rustix::rand::{GetRandomFlags, getrandom};

use crate::limits::{
    NAME_ADDRESSES_MAX, NAME_ATTEMPT_TIMEOUT, NAME_DATAGRAM_SIZE_MAX, NAME_GRACE_TIMEOUT,
    NAME_ROUNDS_MAX, NAME_SERVERS_COUNT_MAX, NAME_STRAYS_MAX, NAME_STREAM_TIMEOUT,
};
use crate::net::stream::is_passing;
use crate::wire::dns::{
    Answer, DomainName, Edns, Question, RecordType, decode_answer, encode_query,
};
pub use error::{NameError, ServerFault};
use stream::{read_message, time_left};

/// Returns the addresses of `name` as the first of `servers` that answers knows them.
///
/// IPv6 and IPv4 addresses take turns, IPv6 first, each kind in the order of its answer; at most
/// [`NAME_ADDRESSES_MAX`]. A dot at the end of `name` is fine. An address as `name` is returned
/// as it is, and `localhost` is this host, both without asking. Only the first
/// [`NAME_SERVERS_COUNT_MAX`] servers are asked.
///
/// Blocks: until there is an answer, at most until `deadline`.
/// Errors: what [`NameError`] lists; [`NameError::retry_helps`] tells which may pass.
pub fn look_up(
    servers: &[SocketAddr],
    name: &str,
    deadline: Instant,
) -> Result<Vec<IpAddr>, NameError> {
    if let Ok(address) = name.parse() {
        return Ok(vec![address]);
    }
    let domain = DomainName::parse(name).map_err(|error| NameError::Syntax {
        name: name.to_owned(),
        error,
    })?;
    if domain.is_localhost() {
        return Ok(vec![Ipv6Addr::LOCALHOST.into(), Ipv4Addr::LOCALHOST.into()]);
    }
    let servers = servers.get(..NAME_SERVERS_COUNT_MAX).unwrap_or(servers);
    Lookup::new(servers, &domain, deadline)
        .run()
        .map_err(|unsettled| unsettled.into_error(name))
}

/// What the servers say about one kind of address.
enum Settled {
    Addresses(Vec<IpAddr>),
    NoData(SocketAddr),
    NoSuchName(SocketAddr),
}

/// A lookup without addresses at its end.
enum Unsettled {
    NotFound(SocketAddr),
    NoAddress(SocketAddr),
    Unanswered {
        servers: Vec<(SocketAddr, ServerFault)>,
        within: Duration,
    },
}

impl Unsettled {
    fn into_error(self, name: &str) -> NameError {
        let name = name.to_owned();
        match self {
            Self::NotFound(server) => NameError::NotFound { name, server },
            Self::NoAddress(server) => NameError::NoAddress { name, server },
            Self::Unanswered { servers, within } => NameError::Unanswered {
                name,
                servers,
                within,
            },
        }
    }
}

/// One question that an attempt still waits for.
struct Awaited {
    record_type: RecordType,
    id: u16,
    /// The answer did not fit in a datagram, so it has to come over a stream.
    is_truncated: bool,
}

/// Questions to one server on a socket of their own.
struct Attempt {
    /// Counts attempts from 1, in their order.
    number: usize,
    server_index: usize,
    socket: UdpSocket,
    edns: Edns,
    /// Empty once everything is answered or failed; such an attempt is dropped.
    awaited: Vec<Awaited>,
    strays_count: usize,
}

/// What was done with a message.
#[derive(PartialEq, Eq)]
enum Taken {
    /// It answered something, be it with a failure.
    Used,
    /// It was an answer that did not fit.
    Truncated,
    /// It answers nothing that is awaited.
    Stray,
}

struct Lookup<'a> {
    name: &'a DomainName,
    deadline: Instant,
    within: Duration,
    servers: Vec<(SocketAddr, ServerFault)>,
    ipv6: Option<Settled>,
    ipv4: Option<Settled>,
    /// Once one kind is known: how long the other one is waited for. No server is asked after.
    grace_deadline: Option<Instant>,
    /// Attempts started so far.
    attempts_count: usize,
    /// When the next server is asked, though the last one may still answer.
    next_attempt_at: Instant,
    /// Those that await something, in the order of their numbers.
    attempts: Vec<Attempt>,
}

impl<'a> Lookup<'a> {
    fn new(servers: &[SocketAddr], name: &'a DomainName, deadline: Instant) -> Self {
        let now = Instant::now();
        Self {
            name,
            deadline,
            within: deadline.saturating_duration_since(now),
            servers: servers
                .iter()
                .map(|server| (*server, ServerFault::Silent))
                .collect(),
            ipv6: None,
            ipv4: None,
            grace_deadline: None,
            attempts_count: 0,
            next_attempt_at: now,
            attempts: Vec::new(),
        }
    }

    fn run(mut self) -> Result<Vec<IpAddr>, Unsettled> {
        loop {
            self.attempts.retain(|attempt| !attempt.awaited.is_empty());
            let now = Instant::now();
            if (self.ipv6.is_some() && self.ipv4.is_some()) || now >= self.wait_deadline() {
                return self.conclude();
            }
            if self.may_ask_more() {
                let last_failed = self
                    .attempts
                    .last()
                    .is_none_or(|last| last.number != self.attempts_count);
                if last_failed || now >= self.next_attempt_at {
                    self.ask_next(now);
                    continue;
                }
            } else if self.attempts.is_empty() {
                return self.conclude();
            }
            self.wait();
        }
    }

    /// Returns when waiting is over, whatever is still awaited.
    fn wait_deadline(&self) -> Instant {
        self.grace_deadline
            .map_or(self.deadline, |grace| grace.min(self.deadline))
    }

    fn may_ask_more(&self) -> bool {
        self.grace_deadline.is_none() && self.attempts_left() > 0
    }

    fn attempts_left(&self) -> usize {
        (self.servers.len() * NAME_ROUNDS_MAX).saturating_sub(self.attempts_count)
    }

    /// Asks the server whose turn it is for what is not settled yet.
    fn ask_next(&mut self, now: Instant) {
        let server_index = self.attempts_count % self.servers.len();
        // What is lost in the first round may be lost for its EDNS record, so the second one
        // does without. RFC 6891 section 6.2.2 allows that.
        let edns = if self.attempts_count < self.servers.len() {
            Edns::Announce
        } else {
            Edns::Omit
        };
        let attempts_left = u32::try_from(self.attempts_left())
            .unwrap_or(u32::MAX)
            .max(1);
        let share = self.deadline.saturating_duration_since(now) / attempts_left;
        self.next_attempt_at = now + share.min(NAME_ATTEMPT_TIMEOUT);
        self.attempts_count += 1;

        let unsettled: Vec<_> = [RecordType::Aaaa, RecordType::A]
            .into_iter()
            .filter(|record_type| self.settled(*record_type).is_none())
            .collect();
        match self.start_attempt(server_index, edns, &unsettled) {
            Ok(attempt) => self.attempts.push(attempt),
            Err(error) => self.note_fault(server_index, ServerFault::Unreachable(error)),
        }
    }

    fn start_attempt(
        &self,
        server_index: usize,
        edns: Edns,
        unsettled: &[RecordType],
    ) -> io::Result<Attempt> {
        let (server, _) = self.servers[server_index];
        let any = match server {
            SocketAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            SocketAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        let socket = UdpSocket::bind((any, 0))?;
        socket.set_nonblocking(true)?;
        socket.connect(server)?;
        let mut awaited = Vec::with_capacity(unsettled.len());
        for &record_type in unsettled {
            let id = random_id()?;
            let question = Question {
                name: self.name,
                record_type,
            };
            socket.send(&encode_query(question, id, edns))?;
            awaited.push(Awaited {
                record_type,
                id,
                is_truncated: false,
            });
        }
        let number = self.attempts_count;
        Ok(Attempt {
            number,
            server_index,
            socket,
            edns,
            awaited,
            strays_count: 0,
        })
    }

    /// Sleeps until a datagram is there or it is time for something else, and takes at most one
    /// datagram from each socket.
    fn wait(&mut self) {
        let mut until = self.wait_deadline();
        if self.may_ask_more() {
            until = until.min(self.next_attempt_at);
        }
        let timeout = until.saturating_duration_since(Instant::now());
        // Only a time beyond what the kernel counts has no such form, and then there is no limit.
        let timeout = Timespec::try_from(timeout).ok();
        let mut entries: Vec<_> = self
            .attempts
            .iter()
            .map(|attempt| PollFd::new(&attempt.socket, PollFlags::IN))
            .collect();
        let outcome = poll(&mut entries, timeout.as_ref());
        let ready: Vec<_> = entries
            .iter()
            .map(|entry| !entry.revents().is_empty())
            .collect();
        match outcome {
            Ok(_) => {}
            Err(Errno::INTR) => return,
            Err(errno) => {
                // Without poll there is no waiting: end the attempts instead of spinning.
                for index in 0..self.attempts.len() {
                    self.give_up(index, ServerFault::Unreachable(errno.into()));
                }
                return;
            }
        }
        for (index, is_ready) in ready.into_iter().enumerate() {
            if is_ready {
                self.receive(index);
            }
        }
        // Streams come last: what lies in the other sockets must not wait for them.
        for index in 0..self.attempts.len() {
            if self.attempts[index]
                .awaited
                .iter()
                .any(|awaited| awaited.is_truncated)
            {
                self.ask_over_stream(index);
            }
        }
    }

    fn receive(&mut self, index: usize) {
        // Larger answers are not asked for; one that comes is cut, and so does not add up.
        let mut buffer = vec![0; usize::from(NAME_DATAGRAM_SIZE_MAX)];
        let message = match self.attempts[index].socket.recv(&mut buffer) {
            Ok(size) => &buffer[..size],
            Err(error) if is_passing(&error) => return,
            Err(error) => return self.give_up(index, ServerFault::Unreachable(error)),
        };
        if self.take_message(index, message) == Taken::Stray {
            let attempt = &mut self.attempts[index];
            attempt.strays_count += 1;
            if attempt.strays_count > NAME_STRAYS_MAX {
                self.give_up(index, ServerFault::Unusable);
            } else if self.ipv6.is_none() && self.ipv4.is_none() {
                // Otherwise it may be a good answer to what another server settled before.
                let server_index = attempt.server_index;
                self.note_fault(server_index, ServerFault::Unusable);
            }
        }
    }

    /// Finds the question of this attempt that `message` answers, and believes it.
    fn take_message(&mut self, index: usize, message: &[u8]) -> Taken {
        let (server, _) = self.servers[self.attempts[index].server_index];
        for awaited in &mut self.attempts[index].awaited {
            let record_type = awaited.record_type;
            let question = Question {
                name: self.name,
                record_type,
            };
            match decode_answer(message, question, awaited.id) {
                Answer::Unusable => continue,
                Answer::Truncated => {
                    awaited.is_truncated = true;
                    return Taken::Truncated;
                }
                Answer::Addresses(addresses) => {
                    self.settle(record_type, Settled::Addresses(addresses));
                }
                Answer::NoSuchName => self.settle(record_type, Settled::NoSuchName(server)),
                Answer::NoData => self.settle(record_type, Settled::NoData(server)),
                Answer::Failure(rcode) => {
                    self.fail(index, record_type, ServerFault::Refused(rcode));
                }
                Answer::Referral => self.fail(index, record_type, ServerFault::Referral),
            }
            return Taken::Used;
        }
        Taken::Stray
    }

    /// Asks all that this attempt still awaits again, over one stream.
    ///
    /// What was truncated is awaited no longer afterwards; the rest may still come as datagram.
    ///
    /// Blocks: for [`NAME_STREAM_TIMEOUT`] at most, and not past the deadline.
    fn ask_over_stream(&mut self, index: usize) {
        let server_index = self.attempts[index].server_index;
        if let Err(fault) = self.exchange_over_stream(index) {
            self.note_fault(server_index, fault);
        }
        self.attempts[index]
            .awaited
            .retain(|awaited| !awaited.is_truncated);
    }

    fn exchange_over_stream(&mut self, index: usize) -> Result<(), ServerFault> {
        let exchange_deadline = Instant::now() + NAME_STREAM_TIMEOUT;
        let attempt = &self.attempts[index];
        let (server, _) = self.servers[attempt.server_index];
        let mut queries = Vec::new();
        for awaited in &attempt.awaited {
            let question = Question {
                name: self.name,
                record_type: awaited.record_type,
            };
            let query = encode_query(question, awaited.id, attempt.edns);
            let size = u16::try_from(query.len()).map_err(io::Error::other)?;
            queries.extend(size.to_be_bytes());
            queries.extend(query);
        }
        let deadline = exchange_deadline.min(self.wait_deadline());
        let mut stream = TcpStream::connect_timeout(&server, time_left(deadline)?)?;
        // So few bytes fit the buffer of a new socket at once.
        stream.set_write_timeout(Some(time_left(deadline)?))?;
        stream.write_all(&queries)?;
        while !self.attempts[index].awaited.is_empty() {
            // The first addresses bring the deadline nearer.
            let deadline = exchange_deadline.min(self.wait_deadline());
            let message = read_message(&mut stream, deadline)?;
            // A stream has room for everything and carries nobody else's answers.
            if self.take_message(index, &message) != Taken::Used {
                return Err(ServerFault::Unusable);
            }
        }
        Ok(())
    }

    fn settled(&self, record_type: RecordType) -> &Option<Settled> {
        match record_type {
            RecordType::A => &self.ipv4,
            RecordType::Aaaa => &self.ipv6,
        }
    }

    /// Keeps what is now known of one kind; no attempt awaits it any longer.
    fn settle(&mut self, record_type: RecordType, settled: Settled) {
        // No data of one kind alone is worth nothing: the other kind gets all its time.
        if !matches!(settled, Settled::NoData(_)) {
            self.grace_deadline = Some(Instant::now() + NAME_GRACE_TIMEOUT);
        }
        match record_type {
            RecordType::A => self.ipv4 = Some(settled),
            RecordType::Aaaa => self.ipv6 = Some(settled),
        }
        for attempt in &mut self.attempts {
            attempt
                .awaited
                .retain(|awaited| awaited.record_type != record_type);
        }
    }

    /// Awaits nothing more of this kind from this attempt.
    fn fail(&mut self, index: usize, record_type: RecordType, fault: ServerFault) {
        let attempt = &mut self.attempts[index];
        attempt
            .awaited
            .retain(|awaited| awaited.record_type != record_type);
        let server_index = attempt.server_index;
        self.note_fault(server_index, fault);
    }

    fn give_up(&mut self, index: usize, fault: ServerFault) {
        let attempt = &mut self.attempts[index];
        attempt.awaited.clear();
        let server_index = attempt.server_index;
        self.note_fault(server_index, fault);
    }

    fn note_fault(&mut self, server_index: usize, fault: ServerFault) {
        self.servers[server_index].1 = fault;
    }

    /// Returns what is known once nothing more is waited for.
    fn conclude(self) -> Result<Vec<IpAddr>, Unsettled> {
        match (self.ipv6, self.ipv4) {
            (Some(Settled::Addresses(ipv6)), Some(Settled::Addresses(ipv4))) => {
                Ok(interleave(ipv6, ipv4))
            }
            (Some(Settled::Addresses(addresses)), _) | (_, Some(Settled::Addresses(addresses))) => {
                Ok(addresses)
            }
            (Some(Settled::NoSuchName(server)), _) | (_, Some(Settled::NoSuchName(server))) => {
                Err(Unsettled::NotFound(server))
            }
            (Some(Settled::NoData(server)), Some(Settled::NoData(_))) => {
                Err(Unsettled::NoAddress(server))
            }
            _ => Err(Unsettled::Unanswered {
                servers: self.servers,
                within: self.within,
            }),
        }
    }
}

/// Returns both lists as one that takes from each in turn, `ipv6` first.
fn interleave(ipv6: Vec<IpAddr>, ipv4: Vec<IpAddr>) -> Vec<IpAddr> {
    let mut ipv6 = ipv6.into_iter();
    let mut ipv4 = ipv4.into_iter();
    let mut addresses = Vec::with_capacity(NAME_ADDRESSES_MAX);
    while addresses.len() < NAME_ADDRESSES_MAX {
        let pair = [ipv6.next(), ipv4.next()];
        if pair == [None, None] {
            break;
        }
        addresses.extend(pair.into_iter().flatten());
    }
    addresses.truncate(NAME_ADDRESSES_MAX);
    addresses
}

fn random_id() -> io::Result<u16> {
    let mut bytes = [0; 2];
    // Right after boot the kernel may not be ready to give randomness of the best kind, and a
    // lookup must not wait for that. The file gives what there is.
    if getrandom(&mut bytes, GetRandomFlags::NONBLOCK) != Ok(bytes.len()) {
        File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    }
    Ok(u16::from_ne_bytes(bytes))
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
    use std::sync::{Arc, mpsc};
    use std::thread::{self, JoinHandle};

    use super::*;
    use crate::limits::NAME_STREAM_SIZE_MAX;
    use crate::wire::dns::made::{A, AAAA, GOOD, MadeAnswer, RESPONSE, TRUNCATED, read_query};

    /// Far more than any lookup here should take.
    const LONG: Duration = Duration::from_secs(8);
    /// What a busy machine may take on top of a timeout.
    const SLACK: Duration = Duration::from_secs(2);
    const IPV4: &str = "192.0.2.1";
    const IPV6: &str = "2001:db8::1";
    const EVIL: &str = "192.0.2.66";
    /// A port on which nobody listens: it is below those that the kernel gives out.
    const CLOSED: &str = "127.0.0.1:1";

    type OnStream = fn(&[u8]) -> Vec<u8>;

    /// One query that came to a made server.
    struct Asked<'a> {
        socket: &'a UdpSocket,
        visitor: SocketAddr,
        id: u16,
        name: String,
        record_type: u16,
        has_edns: bool,
    }

    impl Asked<'_> {
        fn begin(&self, flags: u16) -> MadeAnswer {
            MadeAnswer::new(self.id, flags, &self.name, self.record_type)
        }

        fn send(&self, message: &[u8]) {
            self.socket.send_to(message, self.visitor).unwrap();
        }

        fn answer(&self, flags: u16) {
            self.send(&self.begin(flags).0);
        }

        /// The right answer: one address of the kind asked for.
        fn truth(&self) -> MadeAnswer {
            let address = if self.record_type == A { IPV4 } else { IPV6 };
            self.begin(GOOD).address(&self.name, address)
        }
    }

    /// A name server on one port of this host, ended and joined when dropped.
    struct MadeServer {
        address: SocketAddr,
        queries_count: Arc<AtomicUsize>,
        streams_count: Arc<AtomicUsize>,
        stop: Arc<AtomicBool>,
        threads: Vec<JoinHandle<()>>,
    }

    impl MadeServer {
        /// `on_datagram` sees each query; `on_stream` turns one into what the stream then carries.
        fn start(
            on_datagram: impl FnMut(&Asked<'_>) + Send + 'static,
            on_stream: impl FnMut(&[u8]) -> Vec<u8> + Send + 'static,
        ) -> Self {
            // The same port of both kinds may be taken, then the next one is tried.
            let (listener, socket) = (0..100)
                .find_map(|_| {
                    let listener = TcpListener::bind("127.0.0.1:0").ok()?;
                    let socket = UdpSocket::bind(listener.local_addr().ok()?).ok()?;
                    Some((listener, socket))
                })
                .unwrap();
            let mut server = Self {
                address: socket.local_addr().unwrap(),
                queries_count: Arc::default(),
                streams_count: Arc::default(),
                stop: Arc::default(),
                threads: Vec::new(),
            };
            let (stop, count) = (server.stop.clone(), server.queries_count.clone());
            server.threads.push(thread::spawn(move || {
                serve_datagrams(&socket, &stop, &count, on_datagram);
            }));
            let (stop, count) = (server.stop.clone(), server.streams_count.clone());
            server.threads.push(thread::spawn(move || {
                serve_streams(&listener, &stop, &count, on_stream);
            }));
            server
        }

        fn with_datagrams(on_datagram: impl FnMut(&Asked<'_>) + Send + 'static) -> Self {
            Self::start(on_datagram, |_| panic!("asked over a stream"))
        }

        fn truthful() -> Self {
            Self::with_datagrams(|asked| asked.send(&asked.truth().0))
        }

        fn silent() -> Self {
            Self::with_datagrams(|_| {})
        }

        fn queries_count(&self) -> usize {
            self.queries_count.load(Ordering::SeqCst)
        }
    }

    impl Drop for MadeServer {
        fn drop(&mut self) {
            self.stop.store(true, Ordering::SeqCst);
            let waker = UdpSocket::bind("127.0.0.1:0").unwrap();
            waker.send_to(&[], self.address).unwrap();
            drop(TcpStream::connect(self.address));
            for thread in self.threads.drain(..) {
                let outcome = thread.join();
                assert!(
                    thread::panicking() || outcome.is_ok(),
                    "the made server panicked"
                );
            }
        }
    }

    fn serve_datagrams(
        socket: &UdpSocket,
        stop: &AtomicBool,
        count: &AtomicUsize,
        mut on_datagram: impl FnMut(&Asked<'_>),
    ) {
        let mut buffer = [0; 512];
        loop {
            let (size, visitor) = socket.recv_from(&mut buffer).unwrap();
            if stop.load(Ordering::SeqCst) {
                return;
            }
            count.fetch_add(1, Ordering::SeqCst);
            let (id, name, record_type) = read_query(&buffer[..size]);
            let has_edns = buffer[11] == 1;
            on_datagram(&Asked {
                socket,
                visitor,
                id,
                name,
                record_type,
                has_edns,
            });
        }
    }

    fn serve_streams(
        listener: &TcpListener,
        stop: &AtomicBool,
        count: &AtomicUsize,
        mut on_stream: impl FnMut(&[u8]) -> Vec<u8>,
    ) {
        loop {
            let (mut stream, _) = listener.accept().unwrap();
            if stop.load(Ordering::SeqCst) {
                return;
            }
            count.fetch_add(1, Ordering::SeqCst);
            let deadline = Instant::now() + LONG;
            while let Ok(query) = read_message(&mut stream, deadline) {
                let bytes = on_stream(&query);
                // Nothing to say here means to hang up. The client may have left already.
                if bytes.is_empty() || stream.write_all(&bytes).is_err() {
                    break;
                }
            }
        }
    }

    fn on_stream_truthful(query: &[u8]) -> Vec<u8> {
        let (id, name, record_type) = read_query(query);
        let address = if record_type == A { IPV4 } else { IPV6 };
        let answer = MadeAnswer::new(id, GOOD, &name, record_type).address(&name, address);
        prefixed(&answer.0)
    }

    fn prefixed(message: &[u8]) -> Vec<u8> {
        let size = u16::try_from(message.len()).unwrap();
        [&size.to_be_bytes(), message].concat()
    }

    fn look_up_within(
        servers: &[&MadeServer],
        timeout: Duration,
    ) -> Result<Vec<IpAddr>, NameError> {
        let servers: Vec<_> = servers.iter().map(|server| server.address).collect();
        look_up(&servers, "x.test", Instant::now() + timeout)
    }

    fn addresses(texts: &[&str]) -> Vec<IpAddr> {
        texts.iter().map(|text| text.parse().unwrap()).collect()
    }

    fn assert_truth(server: &MadeServer) {
        assert_eq!(
            look_up_within(&[server], LONG).unwrap(),
            addresses(&[IPV6, IPV4])
        );
    }

    #[test]
    fn both_kinds_take_turns() {
        let server = MadeServer::with_datagrams(|asked| {
            let mut answer = asked.truth();
            if asked.record_type == A {
                answer = answer
                    .address("x.test", "192.0.2.2")
                    .address("x.test", "192.0.2.3");
            } else {
                answer = answer.address("x.test", "2001:db8::2");
            }
            asked.send(&answer.0);
        });
        let expected = addresses(&[IPV6, IPV4, "2001:db8::2", "192.0.2.2", "192.0.2.3"]);
        assert_eq!(look_up_within(&[&server], LONG).unwrap(), expected);
        assert_eq!(server.queries_count(), 2);
    }

    #[test]
    fn addresses_of_both_kinds_share_the_limit() {
        let many = |prefix: &str, count: usize| -> Vec<IpAddr> {
            (0..count)
                .map(|last| format!("{prefix}{last}").parse().unwrap())
                .collect()
        };
        let shared = |ipv6_count, ipv4_count| {
            interleave(many("2001:db8::", ipv6_count), many("192.0.2.", ipv4_count))
        };
        let half = NAME_ADDRESSES_MAX / 2;
        assert_eq!(shared(half, half).len(), NAME_ADDRESSES_MAX);
        assert_eq!(shared(half + 1, half).len(), NAME_ADDRESSES_MAX);
        assert_eq!(shared(half, half + 1).len(), NAME_ADDRESSES_MAX);
        assert_eq!(shared(0, 3), many("192.0.2.", 3));
        assert_eq!(shared(3, 0), many("2001:db8::", 3));
    }

    #[test]
    fn one_kind_is_enough_where_there_is_no_other() {
        for missing in [A, AAAA] {
            let server = MadeServer::with_datagrams(move |asked| {
                if asked.record_type == missing {
                    asked.answer(GOOD);
                } else {
                    asked.send(&asked.truth().0);
                }
            });
            let expected = if missing == A { IPV6 } else { IPV4 };
            assert_eq!(
                look_up_within(&[&server], LONG).unwrap(),
                addresses(&[expected])
            );
        }
    }

    #[test]
    fn aliases_lead_to_the_address() {
        let server = MadeServer::with_datagrams(|asked| {
            let address = if asked.record_type == A { IPV4 } else { IPV6 };
            let answer = asked
                .begin(GOOD)
                .alias("x.test", "y.test")
                .alias("y.test", "z.example");
            asked.send(&answer.address("z.example", address).0);
        });
        let found = look_up(&[server.address], "X.Test.", Instant::now() + LONG).unwrap();
        assert_eq!(found, addresses(&[IPV6, IPV4]));
    }

    #[test]
    fn lies_and_garbage_are_ignored_until_the_answer_comes() {
        let server = MadeServer::with_datagrams(|asked| {
            let other_type = if asked.record_type == A { AAAA } else { A };
            let lie = |id, name, record_type| {
                asked.send(
                    &MadeAnswer::new(id, GOOD, name, record_type)
                        .address(name, EVIL)
                        .0,
                );
            };
            lie(asked.id.wrapping_add(1), "x.test", asked.record_type);
            lie(asked.id, "y.test", asked.record_type);
            lie(asked.id, "x.test", other_type);
            asked.send(&[]);
            asked.send(b"garbage");
            asked.send(&[0xff; 1400]);
            // Pointers that lead to themselves, and an answer cut short.
            asked.send(
                &asked
                    .begin(GOOD)
                    .record(b"\xc0\x18", asked.record_type, b"")
                    .0,
            );
            let truth = asked.truth().0;
            asked.send(&truth[..truth.len() - 1]);
            // The right answer to the right question, but not from the server.
            let elsewhere = UdpSocket::bind("127.0.0.1:0").unwrap();
            let forged = asked.begin(GOOD).address("x.test", EVIL);
            elsewhere.send_to(&forged.0, asked.visitor).unwrap();
            asked.send(&truth);
        });
        assert_truth(&server);
        assert_eq!(server.queries_count(), 2, "asked again");
    }

    #[test]
    fn records_of_other_names_are_not_taken() {
        let server = MadeServer::with_datagrams(|asked| {
            let answer = asked
                .begin(GOOD)
                .address("y.test", EVIL)
                .alias("y.test", "x.test");
            asked.send(&answer.address("test", EVIL).0);
        });
        let error = look_up_within(&[&server], LONG).unwrap_err();
        assert!(matches!(error, NameError::NoAddress { .. }), "{error}");
    }

    #[test]
    fn strays_have_a_limit() {
        let with_strays = |strays_count: usize| {
            let server = MadeServer::with_datagrams(move |asked| {
                if asked.record_type == AAAA {
                    return asked.answer(GOOD);
                }
                for _ in 0..strays_count {
                    asked.send(b"stray");
                }
                asked.send(&asked.truth().0);
            });
            look_up_within(&[&server], LONG)
        };
        assert_eq!(with_strays(NAME_STRAYS_MAX).unwrap(), addresses(&[IPV4]));
        let error = with_strays(NAME_STRAYS_MAX + 1).unwrap_err();
        assert!(
            error.to_string().contains("(its answer is unusable)"),
            "{error}"
        );
    }

    #[test]
    fn what_does_not_fit_is_asked_over_a_stream() {
        let both = MadeServer::start(|asked| asked.answer(GOOD | TRUNCATED), on_stream_truthful);
        assert_truth(&both);

        let one = MadeServer::start(
            |asked| {
                if asked.record_type == A {
                    asked.answer(GOOD | TRUNCATED);
                } else {
                    asked.send(&asked.truth().0);
                }
            },
            on_stream_truthful,
        );
        assert_truth(&one);
        assert_eq!(one.streams_count.load(Ordering::SeqCst), 1);
    }

    #[test]
    fn answers_on_a_stream_may_come_in_any_order_and_pieces() {
        let mut held = Vec::new();
        let server = MadeServer::start(
            |asked| asked.answer(GOOD | TRUNCATED),
            move |query| {
                let answer = on_stream_truthful(query);
                // Half of the answer to the first query does not wait for the second one.
                if held.is_empty() {
                    held = answer;
                    held.drain(..1).collect()
                } else {
                    [held.as_slice(), &answer].concat()
                }
            },
        );
        assert_truth(&server);
    }

    #[test]
    fn the_largest_answer_on_a_stream_is_taken_and_no_larger_one() {
        let with_size = |size: usize| {
            let server = MadeServer::start(
                |asked| asked.answer(GOOD | TRUNCATED),
                move |query| {
                    // What follows the answer section is not looked at.
                    let mut answer = on_stream_truthful(query).split_off(2);
                    answer.resize(size, 0);
                    prefixed(&answer)
                },
            );
            look_up_within(&[&server], LONG)
        };
        let found = with_size(NAME_STREAM_SIZE_MAX).unwrap();
        assert_eq!(found, addresses(&[IPV6, IPV4]));
        let error = with_size(NAME_STREAM_SIZE_MAX + 1).unwrap_err();
        assert!(
            error.to_string().contains("(its answer is unusable)"),
            "{error}"
        );
    }

    #[test]
    fn bad_streams_move_on_to_the_next_server() {
        let on_streams: [OnStream; 4] = [
            |_| Vec::new(),
            |_| prefixed(b"garbage"),
            |query| {
                let (id, name, record_type) = read_query(query);
                prefixed(&MadeAnswer::new(id, GOOD | TRUNCATED, &name, record_type).0)
            },
            |query| {
                let (id, name, record_type) = read_query(query);
                let lie = MadeAnswer::new(id, GOOD, "y.test", record_type).address(&name, EVIL);
                prefixed(&lie.0)
            },
        ];
        for on_stream in on_streams {
            let bad = MadeServer::start(|asked| asked.answer(GOOD | TRUNCATED), on_stream);
            let found = look_up_within(&[&bad, &MadeServer::truthful()], LONG).unwrap();
            assert_eq!(found, addresses(&[IPV6, IPV4]));
        }
    }

    #[test]
    fn a_silent_stream_keeps_the_deadline() {
        let timeout = Duration::from_millis(300);
        // One byte for each query is a size at most, and then the message is missing.
        let server = MadeServer::start(|asked| asked.answer(GOOD | TRUNCATED), |_| vec![1]);
        let started_at = Instant::now();
        look_up_within(&[&server], timeout).unwrap_err();
        let elapsed = started_at.elapsed();
        assert!(
            elapsed >= timeout && elapsed < timeout + SLACK,
            "{elapsed:?}"
        );
    }

    #[test]
    fn silence_and_failure_move_on_to_the_next_server() {
        let servers = [
            MadeServer::silent(),
            MadeServer::with_datagrams(|asked| asked.answer(GOOD | 2)),
            MadeServer::with_datagrams(|asked| asked.answer(GOOD | 5)),
            MadeServer::with_datagrams(|asked| asked.answer(RESPONSE)),
            MadeServer::with_datagrams(|asked| asked.send(b"garbage")),
        ];
        for server in servers {
            let truthful = MadeServer::truthful();
            let found = look_up_within(&[&server, &truthful], Duration::from_secs(2)).unwrap();
            assert_eq!(found, addresses(&[IPV6, IPV4]));
            assert_eq!((server.queries_count(), truthful.queries_count()), (2, 2));
        }
    }

    #[test]
    fn failures_do_not_wait_for_a_timeout() {
        let refusing = MadeServer::with_datagrams(|asked| asked.answer(GOOD | 5));
        let truthful = MadeServer::truthful();
        let servers = [CLOSED.parse().unwrap(), refusing.address, truthful.address];
        let started_at = Instant::now();
        let found = look_up(&servers, "x.test", started_at + LONG).unwrap();
        assert_eq!(found, addresses(&[IPV6, IPV4]));
        assert!(
            started_at.elapsed() < NAME_ATTEMPT_TIMEOUT,
            "{:?}",
            started_at.elapsed()
        );
    }

    #[test]
    fn a_late_answer_counts() {
        let (next_asked_sender, next_asked) = mpsc::channel();
        let late = MadeServer::with_datagrams(move |asked| {
            // The first query waits until the next server has been asked. The sender may be
            // gone by the second one.
            let _ = next_asked.recv_timeout(LONG);
            asked.send(&asked.truth().0);
        });
        let silent = MadeServer::with_datagrams(move |_| {
            let _ = next_asked_sender.send(());
        });
        let found = look_up_within(&[&late, &silent], Duration::from_secs(2)).unwrap();
        assert_eq!(found, addresses(&[IPV6, IPV4]));
        assert_eq!(silent.queries_count(), 2);
    }

    #[test]
    fn silence_ends_at_the_deadline_after_two_rounds() {
        let (edns_sender, edns) = mpsc::channel();
        let first = MadeServer::with_datagrams(move |asked| {
            edns_sender.send(asked.has_edns).unwrap();
        });
        let second = MadeServer::silent();
        let timeout = Duration::from_secs(1);
        let started_at = Instant::now();
        let error = look_up_within(&[&first, &second], timeout).unwrap_err();
        let elapsed = started_at.elapsed();
        assert!(
            elapsed >= timeout && elapsed < timeout + SLACK,
            "{elapsed:?}"
        );
        let expected = format!(
            "no answer for 'x.test' from {}, {} within 1s",
            first.address, second.address
        );
        assert_eq!(error.to_string(), expected);
        assert!(error.retry_helps());
        assert_eq!((first.queries_count(), second.queries_count()), (4, 4));
        let announced: Vec<_> = edns.try_iter().collect();
        assert_eq!(announced, [true, true, false, false]);
    }

    #[test]
    fn failures_of_all_end_after_two_rounds_and_say_why() {
        let failing = MadeServer::with_datagrams(|asked| asked.answer(GOOD | 2));
        let servers = [CLOSED.parse().unwrap(), failing.address];
        let started_at = Instant::now();
        let error = look_up(&servers, "x.test", started_at + LONG).unwrap_err();
        assert!(started_at.elapsed() < NAME_ATTEMPT_TIMEOUT);
        let expected = format!(
            "no answer for 'x.test' from {CLOSED} ({}), {} (answers SERVFAIL) within 8s",
            io::Error::from(Errno::CONNREFUSED),
            failing.address
        );
        assert_eq!(error.to_string(), expected);
        assert_eq!(failing.queries_count(), 4);
    }

    #[test]
    fn no_such_name_is_believed() {
        let denying = MadeServer::with_datagrams(|asked| asked.answer(GOOD | 3));
        let truthful = MadeServer::truthful();
        let error = look_up_within(&[&denying, &truthful], LONG).unwrap_err();
        let expected = format!("name 'x.test' not found (asked {})", denying.address);
        assert_eq!(error.to_string(), expected);
        assert!(!error.retry_helps());
        assert_eq!(truthful.queries_count(), 0);
    }

    #[test]
    fn a_name_without_addresses_is_told_from_one_that_is_not_there() {
        let server = MadeServer::with_datagrams(|asked| asked.answer(GOOD));
        let error = look_up_within(&[&server], LONG).unwrap_err();
        let expected = format!("name 'x.test' has no address (asked {})", server.address);
        assert_eq!(error.to_string(), expected);
    }

    #[test]
    fn addresses_outweigh_that_the_other_kind_is_denied() {
        let server = MadeServer::with_datagrams(|asked| {
            if asked.record_type == AAAA {
                asked.answer(GOOD | 3);
            } else {
                asked.send(&asked.truth().0);
            }
        });
        assert_eq!(
            look_up_within(&[&server], LONG).unwrap(),
            addresses(&[IPV4])
        );
    }

    #[test]
    fn a_silent_kind_is_waited_for_a_short_grace_only() {
        for silent in [A, AAAA] {
            let server = MadeServer::with_datagrams(move |asked| {
                if asked.record_type != silent {
                    asked.send(&asked.truth().0);
                }
            });
            let started_at = Instant::now();
            let expected = if silent == A { IPV6 } else { IPV4 };
            assert_eq!(
                look_up_within(&[&server], LONG).unwrap(),
                addresses(&[expected])
            );
            let elapsed = started_at.elapsed();
            assert!(elapsed >= NAME_GRACE_TIMEOUT, "{elapsed:?}");
            assert_eq!(server.queries_count(), 2);
        }
    }

    #[test]
    fn a_failed_kind_is_not_waited_for() {
        let server = MadeServer::with_datagrams(|asked| {
            if asked.record_type == AAAA {
                asked.answer(GOOD | 2);
            } else {
                asked.send(&asked.truth().0);
            }
        });
        // A busy machine may be late once, but not always.
        let is_quick = (1..=5).any(|lookups_count| {
            let started_at = Instant::now();
            assert_eq!(
                look_up_within(&[&server], LONG).unwrap(),
                addresses(&[IPV4])
            );
            let elapsed = started_at.elapsed();
            assert_eq!(server.queries_count(), 2 * lookups_count, "asked again");
            elapsed < NAME_GRACE_TIMEOUT
        });
        assert!(is_quick, "waited for the failed kind");
    }

    #[test]
    fn only_what_is_missing_is_asked_of_the_next_server() {
        let half = MadeServer::with_datagrams(|asked| {
            asked.answer(if asked.record_type == AAAA {
                GOOD
            } else {
                GOOD | 2
            });
        });
        let truthful = MadeServer::truthful();
        let found = look_up_within(&[&half, &truthful], LONG).unwrap();
        assert_eq!(found, addresses(&[IPV4]));
        assert_eq!(truthful.queries_count(), 1);
    }

    #[test]
    fn servers_beyond_the_limit_are_left_alone() {
        let closed: SocketAddr = CLOSED.parse().unwrap();
        let truthful = MadeServer::truthful();
        let behind = |closed_count: usize| {
            let mut servers = vec![closed; closed_count];
            servers.push(truthful.address);
            look_up(&servers, "x.test", Instant::now() + LONG)
        };
        assert!(behind(NAME_SERVERS_COUNT_MAX - 1).is_ok());
        assert!(behind(NAME_SERVERS_COUNT_MAX).is_err());
        assert_eq!(truthful.queries_count(), 2);
    }

    #[test]
    fn some_names_need_no_server() {
        let look_up_alone = |name| look_up(&[], name, Instant::now());
        assert_eq!(look_up_alone("192.0.2.1").unwrap(), addresses(&[IPV4]));
        assert_eq!(look_up_alone("2001:db8::1").unwrap(), addresses(&[IPV6]));
        assert_eq!(
            look_up_alone("localhost").unwrap(),
            addresses(&["::1", "127.0.0.1"])
        );
        let error = look_up_alone("x.test").unwrap_err().to_string();
        assert_eq!(
            error,
            "no answer for 'x.test': there is no name server to ask"
        );
        let error = look_up_alone("x..test").unwrap_err();
        assert_eq!(
            error.to_string(),
            "'x..test' is not a name: it has a dot too many"
        );
        assert!(!error.retry_helps());
    }

    #[test]
    fn servers_may_have_ipv6_addresses() {
        let Ok(socket) = UdpSocket::bind("[::1]:0") else {
            eprintln!("skipped: this machine has no IPv6");
            return;
        };
        let server = socket.local_addr().unwrap();
        let (stop, count) = (AtomicBool::new(false), AtomicUsize::new(0));
        let found = thread::scope(|scope| {
            scope.spawn(|| {
                serve_datagrams(&socket, &stop, &count, |asked| asked.send(&asked.truth().0));
            });
            let found = look_up(&[server], "x.test", Instant::now() + LONG);
            stop.store(true, Ordering::SeqCst);
            socket.send_to(&[], server).unwrap();
            found
        });
        assert_eq!(found.unwrap(), addresses(&[IPV6, IPV4]));
    }

    #[test]
    fn nobody_is_asked_after_the_deadline() {
        let server = MadeServer::truthful();
        let error = look_up_within(&[&server], Duration::ZERO).unwrap_err();
        assert!(matches!(error, NameError::Unanswered { .. }), "{error}");
        assert_eq!(server.queries_count(), 0);
    }
}
