use std::net::{Shutdown, TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use rcgen::{
    BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair, date_time_ymd,
};
use rustls::RootCertStore;
use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;

use super::*;
use crate::net::certificate::Certificates;
use crate::net::meter::Meter;
use crate::net::relay::{Ahead, CloseReason, Stock, Terms, relay};
use crate::net::stream::tests::{connected, wait_readable};

const PATIENCE: Duration = Duration::from_secs(20);

fn deadline() -> Instant {
    Instant::now() + PATIENCE
}

/// An authority that only these tests trust.
struct Authority(CertifiedIssuer<'static, KeyPair>);

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        // No two are called the same.
        let name = Fingerprint::of_certificate(key.public_key_raw()).to_string();
        Self::called(&name, key)
    }

    fn called(name: &str, key: KeyPair) -> Self {
        let mut parameters = CertificateParams::default();
        parameters.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        parameters.distinguished_name.push(DnType::CommonName, name);
        Self(CertifiedIssuer::self_signed(parameters, key).unwrap())
    }

    fn client(&self) -> ClientTls {
        let mut roots = RootCertStore::empty();
        roots.add(self.0.der().clone()).unwrap();
        ClientTls::with_roots(roots, &[]).unwrap()
    }

    /// Returns a server with a certificate for `names`, valid between the years.
    fn server(&self, names: &[&str], years: (i32, i32)) -> ServerTls {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut parameters = CertificateParams::new(names).unwrap();
        parameters.not_before = date_time_ymd(years.0, 1, 1);
        parameters.not_after = date_time_ymd(years.1, 1, 1);
        let key = KeyPair::generate().unwrap();
        let certificate = parameters.signed_by(&key, &self.0).unwrap();
        let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
        let chain = vec![certificate.der().clone()];
        ServerTls::new(
            CertifiedKey::from_der(chain, private, &crypto()).unwrap(),
            &[],
        )
    }
}

fn self_signed() -> ServerTls {
    Certificates::self_signed(&[]).unwrap().current().tls
}

fn trusting() -> ClientTls {
    ClientTls::new(Trust::Any, &[]).unwrap()
}

/// Drives both handshakes on one thread; returns how each ended.
fn shake_hands(
    client: &mut TlsStream,
    server: &mut TlsStream,
) -> (Result<(), TlsError>, Result<(), TlsError>) {
    let flags_of = |progress: &Result<Progress, TlsError>| match progress {
        Ok(Progress::Wants { read, write }) => {
            let mut flags = PollFlags::empty();
            flags.set(PollFlags::IN, *read);
            flags.set(PollFlags::OUT, *write);
            flags
        }
        _ => PollFlags::empty(),
    };
    let limit = timespec(PATIENCE);
    let (mut of_client, mut of_server) = (client.advance(), server.advance());
    loop {
        let (client_flags, server_flags) = (flags_of(&of_client), flags_of(&of_server));
        if client_flags.is_empty() && server_flags.is_empty() {
            return (of_client.map(|_| ()), of_server.map(|_| ()));
        }
        let mut set = [
            PollFd::from_borrowed_fd(client.descriptor(), client_flags),
            PollFd::from_borrowed_fd(server.descriptor(), server_flags),
        ];
        assert!(rustix::event::poll(&mut set, Some(&limit)).unwrap() > 0);
        if !client_flags.is_empty() {
            of_client = client.advance();
        }
        if !server_flags.is_empty() {
            of_server = server.advance();
        }
    }
}

fn ends(server: &ServerTls, client: &ClientTls, name: Option<&str>) -> (TlsStream, TlsStream) {
    let (near, far) = connected();
    (
        TlsStream::connect(near, client, name).unwrap(),
        TlsStream::accept(far, server).unwrap(),
    )
}

/// Returns both ends of a connection that is ready for use: the client's and the server's.
pub(crate) fn established() -> (TlsStream, TlsStream) {
    let (mut client, mut server) = ends(&self_signed(), &trusting(), None);
    let (of_client, of_server) = shake_hands(&mut client, &mut server);
    of_client.unwrap();
    of_server.unwrap();
    (client, server)
}

fn refusal(server: &ServerTls, client: &ClientTls, name: &str) -> CertificateFault {
    let (mut client, mut server) = ends(server, client, Some(name));
    let (of_client, of_server) = shake_hands(&mut client, &mut server);
    assert!(
        matches!(of_server, Err(TlsError::Alert(_))),
        "{of_server:?}"
    );
    match of_client {
        Err(TlsError::Certificate(fault)) => fault,
        other => panic!("{other:?}"),
    }
}

fn is_blocked(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::WouldBlock
}

/// Reads to the end of a stream, waiting by poll.
fn read_all(stream: &mut TlsStream) -> io::Result<Vec<u8>> {
    let mut content = Vec::new();
    let mut buffer = [0; 16 * 1024];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => return Ok(content),
            Ok(size) => content.extend_from_slice(&buffer[..size]),
            Err(error) if is_blocked(&error) => wait_readable(stream),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Reads exactly as much as `expected` has, and compares.
fn expect(stream: &mut TlsStream, expected: &[u8]) {
    let mut got = Vec::new();
    let mut buffer = [0; 1024];
    while got.len() < expected.len() {
        let room = buffer.len().min(expected.len() - got.len());
        match stream.read(&mut buffer[..room]) {
            Ok(size) => got.extend_from_slice(&buffer[..size]),
            Err(error) if is_blocked(&error) => wait_readable(stream),
            Err(error) => panic!("{error}"),
        }
    }
    assert_eq!(got, expected);
}

fn pattern(size: usize, seed: u32) -> Vec<u8> {
    let mut state = seed.max(1);
    let next = std::iter::repeat_with(|| {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state.to_le_bytes()
    });
    next.flatten().take(size).collect()
}

fn server_name(stream: &TlsStream) -> Option<String> {
    match &stream.connection {
        Connection::Server(connection) => connection.server_name().map(str::to_owned),
        Connection::Client(_) => None,
    }
}

#[test]
fn any_certificate_is_accepted_and_its_fingerprint_told() {
    let identity = Certificates::self_signed(&[]).unwrap().current();
    let (mut client, mut server) = ends(&identity.tls, &trusting(), Some("tunnel.example"));
    let (of_client, of_server) = shake_hands(&mut client, &mut server);
    of_client.unwrap();
    of_server.unwrap();
    assert_eq!(client.peer_fingerprint(), Some(identity.fingerprint));
    let shown = client.connection.peer_certificates().unwrap();
    assert_eq!(Fingerprint::of_certificate(&shown[0]), identity.fingerprint);
    assert_eq!(server.peer_fingerprint(), None);
    assert_eq!(server_name(&server).as_deref(), Some("tunnel.example"));
}

#[test]
fn verified_certificates_are_for_a_name_or_an_address() {
    let authority = Authority::new();
    let server = authority.server(&["tunnel.example", "127.0.0.1"], (2000, 3000));
    for (name, sent) in [
        ("tunnel.example", Some("tunnel.example")),
        ("127.0.0.1", None),
    ] {
        let (mut client, mut server) = ends(&server, &authority.client(), Some(name));
        let (of_client, of_server) = shake_hands(&mut client, &mut server);
        of_client.unwrap();
        of_server.unwrap();
        assert_eq!(server_name(&server).as_deref(), sent);
    }
}

#[test]
fn without_a_name_none_is_sent_and_none_can_be_verified() {
    let (client, server) = {
        let (mut client, mut server) = ends(&self_signed(), &trusting(), None);
        let (of_client, of_server) = shake_hands(&mut client, &mut server);
        of_client.and(of_server).unwrap();
        (client, server)
    };
    assert_eq!(server_name(&server), None);
    drop(client);
    let connect = |client: &ClientTls, name| {
        TlsStream::connect(connected().0, client, name)
            .map(|_| ())
            .unwrap_err()
    };
    let verifying = Authority::new().client();
    assert!(matches!(connect(&verifying, None), TlsError::NoName));
    assert!(matches!(
        connect(&trusting(), Some("no name")),
        TlsError::Name(_)
    ));
}

#[test]
fn a_refused_certificate_says_why() {
    let authority = Authority::new();
    let client = authority.client();
    let good = authority.server(&["tunnel.example"], (2000, 3000));
    let wrong = refusal(&good, &client, "other.example");
    assert_eq!(
        wrong,
        CertificateFault::WrongName("other.example".to_owned())
    );
    let old = authority.server(&["tunnel.example"], (2000, 2001));
    let expired = refusal(&old, &client, "tunnel.example");
    assert_eq!(expired, CertificateFault::Expired);
    let early = authority.server(&["tunnel.example"], (2999, 3000));
    let early = refusal(&early, &client, "tunnel.example");
    assert_eq!(early, CertificateFault::NotYetValid);
    let stranger = refusal(&good, &Authority::new().client(), "tunnel.example");
    assert_eq!(stranger, CertificateFault::UnknownIssuer);
    let self_signed = refusal(&self_signed(), &client, "localhost");
    assert_eq!(self_signed, CertificateFault::UnknownIssuer);
    let [one, other] = [(); 2].map(|()| Authority::called("CA", KeyPair::generate().unwrap()));
    let remade = other.server(&["tunnel.example"], (2000, 3000));
    let remade = refusal(&remade, &one.client(), "tunnel.example");
    assert_eq!(remade, CertificateFault::WrongIssuer);

    let text = TlsError::Certificate(wrong).to_string();
    assert!(text.contains("not for 'other.example'"), "{text}");
    let text = TlsError::Certificate(expired).to_string();
    assert!(text.contains("expired"), "{text}");
}

/// Returns how the handshake of `make` ends when the other end does `act`.
fn opposite(
    make: fn(PlainStream) -> TlsStream,
    act: impl FnOnce(TcpStream),
) -> Result<(), TlsError> {
    let (near, far) = connected();
    let mut stream = make(near);
    stream.advance().unwrap();
    act(TcpStream::from(far.into_socket()));
    stream.handshake(deadline(), &Event::new().unwrap())
}

fn as_client(socket: PlainStream) -> TlsStream {
    TlsStream::connect(socket, &trusting(), None).unwrap()
}

fn as_server(socket: PlainStream) -> TlsStream {
    TlsStream::accept(socket, &self_signed()).unwrap()
}

#[test]
fn an_end_without_tls_is_recognised_from_both_sides() {
    for make in [as_client as fn(_) -> _, as_server] {
        for text in [
            "HTTP/1.1 400 Bad Request\r\n\r\n",
            "GET / HTTP/1.1\r\n\r\n",
            "N",
            "\0",
            "\x16\x16\x16\x16\x16",
        ] {
            let outcome = opposite(make, |mut socket| {
                socket.write_all(text.as_bytes()).unwrap();
            });
            assert!(matches!(outcome, Err(TlsError::NotTls)), "{outcome:?}");
        }
        // The client's greeting stays unread, so this close is a reset.
        let outcome = opposite(make, drop);
        assert!(matches!(outcome, Err(TlsError::NotTls)), "{outcome:?}");
        let mut kept = None;
        let outcome = opposite(make, |socket| {
            socket.shutdown(Shutdown::Write).unwrap();
            kept = Some(socket);
        });
        assert!(matches!(outcome, Err(TlsError::NotTls)), "{outcome:?}");
    }
}

#[test]
fn a_handshake_that_breaks_off_or_is_damaged_is_not_taken_for_plain() {
    for make in [as_client as fn(_) -> _, as_server] {
        let mut kept = None;
        let outcome = opposite(make, |mut socket| {
            socket.write_all(&[0x16]).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
            kept = Some(socket);
        });
        assert!(matches!(outcome, Err(TlsError::Io(_))), "{outcome:?}");
        let outcome = opposite(make, |mut socket| {
            socket
                .write_all(&[0x16, 3, 3, 0, 5, 9, 0, 0, 1, 9])
                .unwrap();
            kept = Some(socket);
        });
        assert!(matches!(outcome, Err(TlsError::Protocol(_))), "{outcome:?}");
        let outcome = opposite(make, |mut socket| {
            socket.write_all(&[0x15, 3, 3, 0, 2, 2, 40]).unwrap();
            kept = Some(socket);
        });
        assert!(matches!(outcome, Err(TlsError::Alert(_))), "{outcome:?}");
        drop(kept);
    }
}

#[test]
fn a_silent_end_and_a_stop_end_the_handshake() {
    let stop = Event::new().unwrap();
    let (near, _far) = connected();
    let soon = Instant::now() + Duration::from_millis(20);
    let outcome = as_client(near).handshake(soon, &stop);
    assert!(matches!(outcome, Err(TlsError::Timeout)), "{outcome:?}");
    stop.raise();
    let (near, _far) = connected();
    let outcome = as_server(near).handshake(deadline(), &stop);
    assert!(matches!(outcome, Err(TlsError::Stopped)), "{outcome:?}");
}

#[test]
fn a_stream_is_of_no_use_before_the_handshake() {
    let (mut client, _server) = ends(&self_signed(), &trusting(), None);
    let unready = |result: io::Result<usize>| result.unwrap_err().kind();
    assert_eq!(
        unready(client.read(&mut [0; 8])),
        io::ErrorKind::NotConnected
    );
    assert_eq!(unready(client.write(b"x")), io::ErrorKind::NotConnected);
    assert!(client.finish().is_err());
    assert_eq!(client.check(), Condition::Ended);
}

#[test]
fn protocols_are_agreed_on_where_both_have_some() {
    let server = Certificates::self_signed(&[b"h2", b"x"]).unwrap();
    let client = ClientTls::new(Trust::Any, &[b"x"]).unwrap();
    let (mut client, mut server) = ends(&server.current().tls, &client, None);
    let (of_client, of_server) = shake_hands(&mut client, &mut server);
    of_client.and(of_server).unwrap();
    assert_eq!(client.protocol(), Some(&b"x"[..]));
    assert_eq!(server.protocol(), Some(&b"x"[..]));
    assert_eq!(established().0.protocol(), None);
}

#[test]
fn all_that_comes_with_the_end_of_the_handshake_is_kept() {
    let (mut client, mut server) = ends(&self_signed(), &trusting(), None);
    while client.advance().unwrap() != Progress::Done {
        if server.advance().unwrap() != Progress::Done {
            wait_readable(&client);
        }
    }
    let text = pattern(50_000, 5);
    assert_eq!(client.write(&text).unwrap(), text.len());
    client.finish().unwrap();
    server
        .handshake(deadline(), &Event::new().unwrap())
        .unwrap();
    assert!(read_all(&mut server).unwrap() == text);
}

#[test]
fn the_end_of_one_direction_leaves_the_other_alive() {
    let (client, server) = established();
    for (mut first, mut second) in [(client, server), {
        let (client, server) = established();
        (server, client)
    }] {
        assert_eq!(first.write(b"question").unwrap(), 8);
        first.finish().unwrap();
        first.finish().unwrap();
        let broken = first.write(b"more").unwrap_err().kind();
        assert_eq!(broken, io::ErrorKind::BrokenPipe);
        assert_eq!(read_all(&mut second).unwrap(), b"question");
        // The end stays the end.
        assert_eq!(second.read(&mut [0; 8]).unwrap(), 0);
        assert_eq!(second.write(b"answer").unwrap(), 6);
        second.finish().unwrap();
        assert_eq!(read_all(&mut first).unwrap(), b"answer");
    }
}

#[test]
fn close_notify_without_the_end_of_tcp_is_the_end() {
    let (mut client, mut server) = established();
    client.connection.writer().write_all(b"last").unwrap();
    client.connection.send_close_notify();
    client.flush().unwrap();
    wait_readable(&server);
    let mut buffer = [0; 64];
    assert_eq!(server.read(&mut buffer).unwrap(), 4);
    // Poll will not tell of it.
    assert!(server.holds_bytes());
    assert_eq!(server.read(&mut buffer).unwrap(), 0);
    assert_eq!(server.check(), Condition::Ended);
}

#[test]
fn a_connection_without_close_notify_was_cut() {
    let (mut client, mut server) = established();
    assert_eq!(client.write(b"half").unwrap(), 4);
    client.socket.finish().unwrap();
    let mut content = [0; 64];
    wait_readable(&server);
    assert_eq!(server.read(&mut content).unwrap(), 4);
    let end = |server: &mut TlsStream| {
        wait_readable(server);
        server.read(&mut [0; 64]).unwrap_err().kind()
    };
    assert_eq!(end(&mut server), io::ErrorKind::UnexpectedEof);
    assert_eq!(end(&mut server), io::ErrorKind::UnexpectedEof);
    assert_eq!(server.check(), Condition::Ended);
}

#[test]
fn what_came_before_a_damaged_record_is_delivered() {
    let (mut client, mut server) = established();
    assert_eq!(client.write(b"good").unwrap(), 4);
    let damaged = [0x17, 3, 3, 0, 20, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10];
    let damaged = [&damaged[..], &[0; 10]].concat();
    client.socket.write(&damaged).unwrap();
    assert_eq!(read_error(&mut server, b"good"), io::ErrorKind::InvalidData);
    assert_eq!(server.check(), Condition::Ended);
    // The other end is told.
    assert_eq!(read_error(&mut client, b""), io::ErrorKind::InvalidData);
}

/// Reads until the stream breaks; what came before must be `expected`.
fn read_error(stream: &mut TlsStream, expected: &[u8]) -> io::ErrorKind {
    let mut got = Vec::new();
    let mut buffer = [0; 64];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) => panic!("an ordinary end after {got:?}"),
            Ok(size) => got.extend_from_slice(&buffer[..size]),
            Err(error) if is_blocked(&error) => wait_readable(stream),
            Err(error) => {
                assert_eq!(got, expected);
                return error.kind();
            }
        }
    }
}

#[test]
fn single_bytes_arrive_in_order() {
    let (mut client, mut server) = established();
    let text = pattern(2000, 7);
    for byte in &text {
        assert_eq!(client.write(&[*byte]).unwrap(), 1);
        assert!(!client.holds_unsent());
    }
    expect(&mut server, &text);
}

#[test]
fn bytes_may_be_read_one_at_a_time() {
    let (mut client, mut server) = established();
    let text = pattern(40_000, 8);
    assert_eq!(client.write(&text).unwrap(), text.len());
    let mut got = Vec::new();
    while got.len() < text.len() {
        let mut byte = [0];
        match server.read(&mut byte) {
            Ok(size) => got.extend_from_slice(&byte[..size]),
            Err(error) => {
                // Only an empty socket may block, or poll would never wake anybody.
                assert!(is_blocked(&error) && !server.holds_bytes());
                wait_readable(&server);
            }
        }
    }
    assert_eq!(got, text);
}

/// Writes until the socket takes no more; returns what was taken.
fn fill(stream: &mut TlsStream) -> Vec<u8> {
    let piece = pattern(100_000, 9);
    let mut sent = Vec::new();
    loop {
        match stream.write(&piece) {
            Ok(size) => sent.extend_from_slice(&piece[..size]),
            Err(error) if is_blocked(&error) => return sent,
            Err(error) => panic!("{error}"),
        }
    }
}

#[test]
fn a_slow_reader_gets_all_and_holds_up_a_bounded_rest() {
    let (mut client, mut server) = established();
    let sent = fill(&mut client);
    assert!(client.holds_unsent());
    assert!(is_blocked(&client.flush().unwrap_err()));
    assert!(is_blocked(&client.write(b"no").unwrap_err()));
    assert!(is_blocked(&client.finish().unwrap_err()));

    let reader = thread::spawn(move || read_all(&mut server));
    while let Err(error) = client.finish() {
        assert!(is_blocked(&error), "{error}");
        let mut set = [PollFd::from_borrowed_fd(
            client.descriptor(),
            PollFlags::OUT,
        )];
        rustix::event::poll(&mut set, Some(&timespec(PATIENCE))).unwrap();
    }
    assert!(!client.holds_unsent());
    assert!(reader.join().unwrap().unwrap() == sent);
}

#[test]
fn an_abort_lets_unsent_bytes_leave_and_is_seen_as_one() {
    let (mut client, mut server) = established();
    let sent = fill(&mut client);
    let reader = thread::spawn(move || {
        let mut size = 0;
        let mut buffer = [0; 64 * 1024];
        loop {
            match server.read(&mut buffer) {
                Ok(got) => size += got,
                Err(error) if is_blocked(&error) => wait_readable(&server),
                Err(error) => return (size, error.kind()),
            }
        }
    });
    client.abort(deadline());
    assert!(!client.holds_unsent());
    drop(client);
    // The reset may overtake what the kernel had not delivered, but nothing is invented.
    let (size, end) = reader.join().unwrap();
    assert!(size <= sent.len());
    assert_eq!(end, io::ErrorKind::ConnectionReset);
}

#[test]
fn a_parked_stream_is_silent_speaking_or_ended_and_keeps_no_buffer() {
    let (mut client, mut server) = established();
    assert_eq!(client.check(), Condition::Silent);
    assert_eq!(server.check(), Condition::Silent);
    assert_eq!(server.received.capacity(), 0);
    assert_eq!(client.write(b"hello").unwrap(), 5);
    wait_readable(&server);
    assert_eq!(server.check(), Condition::Speaking);
    assert_eq!(server.check(), Condition::Speaking);
    assert!(server.holds_bytes());
    expect(&mut server, b"hello");
    server.rest();
    assert_eq!(server.received.capacity(), 0);
    assert_eq!(server.check(), Condition::Silent);
    // Bytes first, then the end.
    assert_eq!(client.write(b"bye").unwrap(), 3);
    client.finish().unwrap();
    wait_readable(&server);
    assert_eq!(server.check(), Condition::Speaking);
    assert_eq!(read_all(&mut server).unwrap(), b"bye");
    assert_eq!(server.check(), Condition::Ended);
    let (client, mut server) = established();
    drop(client);
    wait_readable(&server);
    assert_eq!(server.check(), Condition::Ended);
}

#[test]
fn many_handshakes_run_at_once() {
    const COUNT: usize = 64;
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let (server, client) = (self_signed(), trusting());
    let plain = |socket: TcpStream| {
        socket.set_nonblocking(true).unwrap();
        PlainStream::new(socket.into())
    };
    let stop = Event::new().unwrap();
    thread::scope(|scope| {
        for index in 0..COUNT {
            let (client, stop) = (&client, &stop);
            scope.spawn(move || {
                let socket = plain(TcpStream::connect(address).unwrap());
                let mut stream = TlsStream::connect(socket, client, None).unwrap();
                stream.handshake(deadline(), stop).unwrap();
                let text = pattern(1000, u32::try_from(index).unwrap());
                assert_eq!(stream.write(&text).unwrap(), text.len());
                stream.finish().unwrap();
                assert_eq!(read_all(&mut stream).unwrap(), text);
            });
        }
        for _ in 0..COUNT {
            let (socket, _) = listener.accept().unwrap();
            let (server, stop) = (&server, &stop);
            scope.spawn(move || {
                let mut stream = TlsStream::accept(plain(socket), server).unwrap();
                stream.handshake(deadline(), stop).unwrap();
                let text = read_all(&mut stream).unwrap();
                assert_eq!(stream.write(&text).unwrap(), text.len());
                stream.finish().unwrap();
            });
        }
    });
}

/// Relays between two streams until both have ended.
fn carry(
    application: &mut dyn Stream,
    other: &mut dyn Stream,
    read_timeout: Option<Duration>,
) -> CloseReason {
    let terms = Terms {
        stock: &Stock::new(16 * 1024, 1024),
        meter: &Meter::default(),
        rates: None,
        read_timeout,
        stop: &Event::new().unwrap(),
    };
    relay(application, other, Ahead::default(), terms)
}

fn blocking(stream: PlainStream) -> TcpStream {
    let socket = TcpStream::from(stream.into_socket());
    socket.set_nonblocking(false).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends `text`, ends the writing direction, and returns what came until the end.
fn talk(socket: &TcpStream, text: &[u8]) -> Vec<u8> {
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut writer = socket;
            writer.write_all(text).unwrap();
            socket.shutdown(Shutdown::Write).unwrap();
        });
        let mut got = Vec::new();
        let mut reader = socket;
        reader.read_to_end(&mut got).unwrap();
        got
    })
}

/// Makes the kernel take little of a stream at once.
fn narrow(stream: &TlsStream) {
    let socket = socket2::SockRef::from(stream.socket.socket());
    socket.set_send_buffer_size(4096).unwrap();
    socket.set_recv_buffer_size(4096).unwrap();
}

#[test]
fn bulk_both_ways_through_two_relays_arrives_whole() {
    let (mut client, mut server) = established();
    let (visitor, mut entry) = connected();
    let (mut exit, target) = connected();
    let (visitor, target) = (blocking(visitor), blocking(target));
    let (up, down) = (pattern(12_000_000, 1), pattern(9_000_001, 2));
    thread::scope(|scope| {
        let entry = scope.spawn(move || carry(&mut entry, &mut client, None));
        let exit = scope.spawn(move || carry(&mut exit, &mut server, None));
        let at_target = scope.spawn(|| talk(&target, &down));
        assert!(talk(&visitor, &up) == down);
        assert!(at_target.join().unwrap() == up);
        for reason in [entry.join().unwrap(), exit.join().unwrap()] {
            assert!(matches!(reason, CloseReason::Finished), "{reason}");
        }
    });
}

#[test]
fn a_stream_that_ends_while_ciphertext_is_unsent_arrives_whole() {
    let (mut client, mut server) = established();
    narrow(&client);
    narrow(&server);
    let (visitor, mut entry) = connected();
    let visitor = blocking(visitor);
    let text = pattern(80_000, 3);
    thread::scope(|scope| {
        let entry = scope.spawn(move || carry(&mut entry, &mut client, None));
        (&visitor).write_all(&text).unwrap();
        visitor.shutdown(Shutdown::Write).unwrap();
        // Nobody has read a byte so far, and both sockets are full of them.
        assert!(read_all(&mut server).unwrap() == text);
        assert_eq!(server.write(b"got it").unwrap(), 6);
        server.finish().unwrap();
        let mut answer = Vec::new();
        (&visitor).read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"got it");
        let reason = entry.join().unwrap();
        assert!(matches!(reason, CloseReason::Finished), "{reason}");
    });
}

#[test]
fn a_visitor_that_resets_leaves_what_it_sent_to_a_slow_tls_end() {
    let (mut client, mut server) = established();
    narrow(&client);
    narrow(&server);
    let (mut visitor, mut entry) = connected();
    let text = pattern(60_000, 4);
    let mut sent = 0;
    while sent < text.len() {
        sent += visitor.write(&text[sent..]).unwrap();
    }
    thread::scope(|scope| {
        let entry = scope.spawn(move || {
            let reason = carry(&mut entry, &mut client, None);
            drop(client);
            reason
        });
        expect(&mut server, &text[..30_000]);
        visitor.abort(deadline());
        drop(visitor);
        expect(&mut server, &text[30_000..]);
        let reason = entry.join().unwrap();
        assert!(
            matches!(reason, CloseReason::ApplicationBroke(_)),
            "{reason}"
        );
        assert_eq!(read_error(&mut server, b""), io::ErrorKind::ConnectionReset);
    });
}

#[test]
fn a_cut_tls_stream_resets_the_other_side() {
    let (mut client, mut server) = established();
    let (visitor, mut entry) = connected();
    let visitor = blocking(visitor);
    assert_eq!(server.write(b"half").unwrap(), 4);
    server.socket.finish().unwrap();
    let reason = carry(&mut entry, &mut client, None);
    let CloseReason::OtherBroke(error) = reason else {
        panic!("{reason}");
    };
    assert_eq!(error.kind(), io::ErrorKind::UnexpectedEof);
    drop(entry);
    let mut got = Vec::new();
    let end = (&visitor).read_to_end(&mut got).unwrap_err().kind();
    assert_eq!(
        (got.as_slice(), end),
        (&b"half"[..], io::ErrorKind::ConnectionReset)
    );
}

#[test]
fn an_idle_relay_says_good_bye_over_tls() {
    let (mut client, mut server) = established();
    let (visitor, mut entry) = connected();
    let reason = carry(&mut entry, &mut client, Some(Duration::from_millis(20)));
    assert!(matches!(reason, CloseReason::Idle), "{reason}");
    drop((entry, client));
    assert_eq!(read_all(&mut server).unwrap(), b"");
    assert_eq!(talk(&blocking(visitor), b""), b"");
}
