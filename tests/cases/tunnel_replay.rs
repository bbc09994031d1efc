//! The recorded v1 exchanges, one side of each played by the test against our program.
//!
//! What a recording says is sent byte for byte wherever our side has not chosen what it says: ids
//! that our server gives out, addresses of visitors and the fingerprint of a certificate are put
//! in anew, with the codecs of the crate.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};
use std::sync::mpsc::{self, Receiver};

use nodepass::wire::fingerprint::{Fingerprint, FingerprintClaim};
use nodepass::wire::handshake::client::{AwaitOffer, decode_response};
use nodepass::wire::offer::{Offer, TlsMode};
use nodepass::wire::signal::{PoolId, Side, Signal};

use crate::support::ends::{End, with_env};
use crate::support::free_address;
use crate::support::peer::{Control, Identity, PlayedClient, PlayedServer, Stream, handshake_v1};
use crate::support::program::Launch;
use crate::support::recording::{KEY, Recording, Visit};
use crate::support::servers::{TcpServer, UdpServer, drain, set_deadline};
use crate::support::visitors::{
    End as StreamEnd, dial, read_count, read_to_end, receive_datagram, udp_visitor,
};

/// What the target says to the recorded datagram, to which nobody answered then.
const DATAGRAM_ANSWER: &[u8] = b"pong-datagram";

/// Long enough that no ping of ours is late on a busy machine.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("NP_REPORT_INTERVAL", "1s"),
    ("NP_SERVICE_COOLDOWN", "200ms"),
];

fn start(url: &str) -> End {
    End::start(with_env(Launch::new(&[url]), ENVIRONMENT), KEY)
}

fn start_server(target: SocketAddr, options: &str) -> End {
    let url = format!("server://{KEY}@127.0.0.1:0/{target}?log=debug&max=8&{options}");
    start(&url)
}

fn start_client(server: &PlayedServer, target: SocketAddr) -> End {
    let (tunnel, options) = (server.address(), "mode=2&min=2&log=debug");
    start(&format!("client://{KEY}@{tunnel}/{target}?{options}"))
}

/// A port of the system's choice.
fn any_port() -> SocketAddr {
    SocketAddr::from(([127, 0, 0, 1], 0))
}

// What both flows and both sides have in common.

/// A target that asserts the recorded request and gives the recorded answers, over TCP and UDP.
struct RecordedTarget {
    address: SocketAddr,
    /// The requests that came, those of TCP at the end of their connection.
    requests: Receiver<Vec<u8>>,
    _servers: (TcpServer, UdpServer),
}

impl RecordedTarget {
    fn start(visits: &[Visit]) -> Self {
        let address = free_address();
        let (report, requests) = mpsc::channel();
        let (size, answer) = (visits[0].request.len(), visits[0].answer.clone());
        let tcp = TcpServer::start_at(address, {
            let report = report.clone();
            move |mut stream| {
                set_deadline(stream);
                report.send(read_count(stream, size)).unwrap();
                stream.write_all(&answer).unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let _ = drain(stream);
            }
        });
        let udp = UdpServer::start_at(address, move |socket, datagram, sender| {
            report.send(datagram.to_vec()).unwrap();
            socket.send_to(DATAGRAM_ANSWER, sender).unwrap();
        });
        Self {
            address,
            requests,
            _servers: (tcp, udp),
        }
    }

    #[track_caller]
    fn expect(&self, visit: &Visit) {
        let request = self.requests.recv_timeout(crate::support::DEADLINE);
        assert!(request.as_ref() == Ok(&visit.request), "{request:?}");
    }
}

/// Two visits are recorded: an HTTP exchange, then a datagram.
fn recorded_visits(recording: &Recording, entry: Side) -> [Visit; 2] {
    let visits = recording.visits(entry);
    let Ok([first, second]) = <[Visit; 2]>::try_from(visits) else {
        panic!("another number of visitors than two");
    };
    assert!(matches!(first.signal, Signal::Tcp { .. }));
    assert!(matches!(second.signal, Signal::Udp { .. }));
    assert!(first.request.starts_with(b"GET /rec.py HTTP/1.1\r\n"));
    assert_eq!(second.request, b"ping-datagram");
    [first, second]
}

/// A visitor at our program, whose other end of the pool connection the test holds: `take` waits
/// for the signal and gives that connection.
fn visit_our_entry(
    program: &End,
    visit: &Visit,
    take: impl FnOnce() -> (Option<SocketAddr>, Stream),
) {
    if matches!(visit.signal, Signal::Tcp { .. }) {
        let mut visitor = dial(program.tcp_address());
        visitor.write_all(&visit.request).unwrap();
        let (remote, mut stream) = take();
        assert_eq!(remote, Some(visitor.local_addr().unwrap()));
        assert_eq!(stream.read_count(visit.request.len()), visit.request);
        stream.write_all(&visit.answer).unwrap();
        stream.finish().unwrap();
        assert_eq!(
            read_to_end(&visitor),
            (visit.answer.clone(), StreamEnd::Finished)
        );
        drop(visitor);
        assert_eq!(stream.read_until_end(), b"");
    } else {
        let visitor = udp_visitor(program.udp_address());
        visitor.send(&visit.request).unwrap();
        let (remote, mut stream) = take();
        let port = visitor.local_addr().unwrap().port();
        assert_eq!(remote.map(|address| address.port()), Some(port));
        assert_eq!(stream.read_count(visit.request.len()), visit.request);
        stream.write_all(DATAGRAM_ANSWER).unwrap();
        stream.flush().unwrap();
        assert_eq!(receive_datagram(&visitor), DATAGRAM_ANSWER);
    }
}

/// The recorded visits at our client, whose server the test plays.
fn visit_our_client(client: &End, recording: &Recording, control: &Control, server: &PlayedServer) {
    for visit in &recorded_visits(recording, Side::Client) {
        visit_our_entry(client, visit, || {
            match (&visit.signal, control.next_signal()) {
                (Signal::Tcp { .. }, Signal::Tcp { remote, id })
                | (Signal::Udp { .. }, Signal::Udp { remote, id }) => (remote, server.take(id)),
                (recorded, signal) => panic!("{signal:?} where {recorded:?} was recorded"),
            }
        });
    }
}

/// The test as the entry side: it says what the visitor said, and `announce` sends the signal,
/// before or after as it was recorded.
fn visit_our_exit(
    target: &RecordedTarget,
    visit: &Visit,
    mut stream: Stream,
    announce: impl FnOnce(),
) {
    if visit.data_comes_first {
        stream.write_all(&visit.request).unwrap();
        stream.flush().unwrap();
        announce();
    } else {
        announce();
        stream.write_all(&visit.request).unwrap();
        stream.flush().unwrap();
    }
    target.expect(visit);
    if matches!(visit.signal, Signal::Tcp { .. }) {
        assert_eq!(stream.read_until_end(), visit.answer);
    } else {
        assert_eq!(stream.read_count(DATAGRAM_ANSWER.len()), DATAGRAM_ANSWER);
    }
}

/// `signal` with another id.
fn renamed(signal: &Signal, id: PoolId) -> Signal {
    match signal.clone() {
        Signal::Tcp { remote, .. } => Signal::Tcp { remote, id },
        Signal::Udp { remote, .. } => Signal::Udp { remote, id },
        Signal::Verify { fp, .. } => Signal::Verify { id, fp },
        other => other,
    }
}

fn first_line(head: &[u8]) -> &[u8] {
    head.split(|byte| *byte == b'\r').next().unwrap()
}

fn body(message: &[u8]) -> &[u8] {
    let end = message.windows(4).position(|bytes| bytes == b"\r\n\r\n");
    &message[end.unwrap() + 4..]
}

/// The value of a header, whose name has no case.
fn header<'a>(message: &'a [u8], name: &str) -> Option<&'a str> {
    let text = str::from_utf8(message).unwrap();
    let mut lines = text.lines().skip(1).take_while(|line| !line.is_empty());
    lines.find_map(|line| {
        let (found, value) = line.split_once(": ")?;
        found.eq_ignore_ascii_case(name).then_some(value)
    })
}

/// Sends the first ping of the recording as it is, and waits for its answer and for a ping of
/// ours, both of which must read as the recorded ones.
fn exchange_pings(recording: &Recording, control: &Control, side: Side) {
    let lines = recording.lines(side);
    let (ping, _) = lines
        .iter()
        .find(|(_, signal)| *signal == Signal::Ping)
        .unwrap();
    control.send_bytes(ping);
    control.wait_for(&Signal::Pong);
    control.wait_for(&Signal::Ping);
}

// Our server against the recorded client.

/// Plays the handshake; the answer must be the recorded one.
fn play_handshake(recording: &Recording, server: SocketAddr) -> Offer {
    let mut stream = dial(server);
    stream.write_all(&recording.request()).unwrap();
    let (answer, end) = read_to_end(&stream);
    assert_eq!(end, StreamEnd::Finished);
    let recorded = recording.answer();
    assert_eq!(first_line(&answer), first_line(&recorded));
    assert_eq!(body(&answer), body(&recorded));
    for name in ["Connection", "Content-Type", "Content-Length"] {
        assert_eq!(header(&answer, name), header(&recorded, name), "{name}");
    }
    let (response, _) = decode_response(&answer).unwrap().unwrap();
    let (_, state) = AwaitOffer::start(Recording::key(), "none");
    state.take(&response).unwrap().0
}

/// Joins as the recorded client did; the first id is 0, and no two are the same.
fn play_joins(recording: &Recording, server: SocketAddr) -> PlayedClient {
    let offer = play_handshake(recording, server);
    let way = recording.way(server);
    let mut client = PlayedClient::join_v1_by(server, &Recording::key(), offer, way);
    let ids = recording.ids();
    assert_eq!(ids[0], PoolId::CONTROL);
    // As many as were idle at a time: control channel aside, four connections at most.
    client.fill(ids.len().min(4) - 1);
    client
}

/// The visitor that the server tells of, whose pool connection must be one of ours.
fn recorded_visitor(client: &mut PlayedClient, visit: &Visit) -> (Option<SocketAddr>, Stream) {
    let (signal, stream) = client.next_visitor();
    match (&visit.signal, signal) {
        (Signal::Tcp { .. }, Signal::Tcp { remote, .. })
        | (Signal::Udp { .. }, Signal::Udp { remote, .. }) => (remote, stream),
        (recorded, signal) => panic!("{signal:?} where {recorded:?} was recorded"),
    }
}

/// What our program says of a session as it was recorded.
fn up_words(recording: &Recording, flow: &str, tls: u8) -> String {
    let transport = recording.transport();
    format!("v1, {flow}, tls={tls}, type={transport}")
}

/// Options of our server that are not those of every one.
fn options_of(recording: &Recording, mode: u8, tls: u8) -> String {
    let transport = recording.transport();
    format!("mode={mode}&tls={tls}&type={transport}")
}

fn check_server_serves(name: &str) {
    let recording = Recording::read(name);
    let server = start_server(any_port(), &options_of(&recording, 1, 0));
    let mut client = play_joins(&recording, server.tunnel_address());
    exchange_pings(&recording, &client.control, Side::Client);
    let up = server.wait_up(1);
    assert!(up.contains(&up_words(&recording, "reverse", 0)), "{up}");
    for visit in &recorded_visits(&recording, Side::Server) {
        client.try_fill().unwrap();
        visit_our_entry(&server, visit, || recorded_visitor(&mut client, visit));
    }
    drop(client);
    server.wait_ended(1, &[]);
}

#[test]
fn our_server_serves_the_recorded_client() {
    check_server_serves("tcp-plain-reverse");
}

#[test]
#[cfg(feature = "websocket")]
fn our_server_serves_the_recorded_client_over_web_socket() {
    check_server_serves("ws-plain-reverse");
}

#[test]
fn our_server_serves_the_recorded_client_that_takes_visitors() {
    let recording = Recording::read("tcp-plain-forward");
    let visits = recorded_visits(&recording, Side::Client);
    let target = RecordedTarget::start(&visits);
    let server = start_server(target.address, "mode=2");
    let mut client = play_joins(&recording, server.tunnel_address());
    exchange_pings(&recording, &client.control, Side::Client);
    let up = server.wait_up(1);
    assert!(up.contains("v1, forward, tls=0, type=0"), "{up}");
    for visit in &visits {
        let id = client.try_fill().unwrap();
        let stream = client.take(id);
        visit_our_exit(&target, visit, stream, || {
            client.control.send(renamed(&visit.signal, id));
        });
    }
}

/// Answers the check of our server, as the recorded client did.
fn check_certificate(client: &mut PlayedClient, seen: Fingerprint) {
    let Signal::Verify { id, fp } = client.control.next_signal() else {
        panic!("no check of the certificate comes first");
    };
    assert!(fp.is(&seen), "{fp}");
    drop(client.take(id));
}

/// Both checks, that of our server first. Before they are done the session is not up.
#[track_caller]
fn exchange_checks(recording: &Recording, server: &End, client: &mut PlayedClient) {
    let seen = client.seen.unwrap();
    check_certificate(client, seen);
    exchange_pings(recording, &client.control, Side::Client);
    assert_eq!(client.control.signal_so_far(), None);
    assert_eq!(server.up_count(), 0);
    // The recorded check of the client, with what this certificate has.
    let (_, check) = recording
        .lines(Side::Client)
        .into_iter()
        .find(|(_, signal)| matches!(signal, Signal::Verify { .. }))
        .unwrap();
    let Signal::Verify { fp, .. } = &check else {
        unreachable!("it was looked for");
    };
    assert_eq!(fp.to_string().len(), seen.to_string().len());
    let named = client.try_fill().unwrap();
    let fp = FingerprintClaim::from(seen);
    client.control.send(Signal::Verify { id: named, fp });
    // The side that is asked takes the connection and closes it.
    assert_eq!(client.take(named).read_until_end(), b"");
}

fn check_server_serves_over_tls(name: &str) {
    let recording = Recording::read(name);
    let server = start_server(any_port(), &options_of(&recording, 1, 1));
    let mut client = play_joins(&recording, server.tunnel_address());
    assert_eq!(client.offer.tls, TlsMode::SelfSigned);
    // Before both checks are done no visitor is taken to a pool connection.
    let visits = recorded_visits(&recording, Side::Server);
    let early = dial(server.tcp_address());
    exchange_checks(&recording, &server, &mut client);
    let up = server.wait_up(1);
    assert!(up.contains(&up_words(&recording, "reverse", 1)), "{up}");
    client.fill(3);
    let (_, mut stream) = client.next_visitor();
    stream.write_all(b"served").unwrap();
    stream.flush().unwrap();
    assert_eq!(read_count(&early, 6), b"served");
    for visit in &visits {
        client.try_fill().unwrap();
        visit_our_entry(&server, visit, || recorded_visitor(&mut client, visit));
    }
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_server_serves_the_recorded_client_over_tls() {
    check_server_serves_over_tls("tcp-tls-reverse");
}

#[test]
#[cfg(feature = "http2")]
fn our_server_serves_the_recorded_client_over_http2() {
    check_server_serves_over_tls("h2-reverse");
}

#[test]
#[cfg(feature = "http2")]
fn our_server_serves_the_recorded_client_that_takes_visitors_over_http2() {
    let recording = Recording::read("h2-forward");
    let visits = recorded_visits(&recording, Side::Client);
    let target = RecordedTarget::start(&visits);
    let server = start_server(target.address, &options_of(&recording, 2, 1));
    let mut client = play_joins(&recording, server.tunnel_address());
    exchange_checks(&recording, &server, &mut client);
    let up = server.wait_up(1);
    assert!(up.contains(&up_words(&recording, "forward", 1)), "{up}");
    for visit in &visits {
        let id = client.try_fill().unwrap();
        let stream = client.take(id);
        visit_our_exit(&target, visit, stream, || {
            client.control.send(renamed(&visit.signal, id));
        });
    }
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_server_answers_a_check_of_the_connection_that_it_checks_itself() {
    let server = start_server(any_port(), "mode=1&tls=1");
    let tunnel = server.tunnel_address();
    let offer = handshake_v1(tunnel, &Recording::key()).unwrap();
    let mut client = PlayedClient::join_v1(tunnel, &Recording::key(), offer);
    client.fill(2);
    let Signal::Verify { id, fp } = client.control.next_signal() else {
        panic!("no check of the certificate comes first");
    };
    client.control.send(Signal::Verify { id, fp });
    server.wait_up(1);
    client.take(id);
    client.fill(1);
    let visitor = dial(server.tcp_address());
    let (_, mut stream) = client.next_visitor();
    stream.write_all(b"served").unwrap();
    stream.flush().unwrap();
    assert_eq!(read_count(&visitor, 6), b"served");
    assert_eq!(server.ended_count(), 0);
}

/// Our server gets `claim` for a certificate that it does not describe.
#[track_caller]
fn server_ends_the_session_after(claim: FingerprintClaim) {
    let server = start_server(any_port(), "mode=1&tls=1");
    let tunnel = server.tunnel_address();
    let offer = handshake_v1(tunnel, &Recording::key()).unwrap();
    let mut client = PlayedClient::join_v1(tunnel, &Recording::key(), offer);
    let id = client.fill(2)[1];
    client.control.send(Signal::Verify { id, fp: claim });
    client.control.wait_end();
    server.wait_ended(1, &["certificate"]);
    assert_eq!(server.up_count(), 0);
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_server_ends_a_session_whose_client_saw_another_certificate() {
    let other = Fingerprint::of_certificate(b"another one");
    server_ends_the_session_after(other.into());
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_server_ends_a_session_whose_client_saw_no_certificate() {
    server_ends_the_session_after(FingerprintClaim::default());
}

// Our client against the recorded server.

/// A v1 server knows nothing of the native hello, and its request has no token.
fn refuse_hello(server: &PlayedServer) {
    let (hello, mut socket) = server.next_request();
    assert_eq!(first_line(&hello), b"GET / HTTP/1.1");
    assert_eq!(header(&hello, "NodePass-Version"), Some("1"));
    let nonce = header(&hello, "NodePass-Nonce").unwrap();
    assert_eq!(nonce.len(), 64);
    assert_eq!(header(&hello, "Authorization"), None);
    let answer = b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\n\
                   Content-Type: text/plain; charset=utf-8\r\n\
                   X-Content-Type-Options: nosniff\r\nContent-Length: 13\r\n\r\nUnauthorized\n";
    socket.write_all(answer).unwrap();
}

/// Plays the handshake with the recorded answer and opens the pool with the recorded ids.
fn play_answer(recording: &Recording, server: &PlayedServer, identity: Option<&Identity>) {
    refuse_hello(server);
    let (request, mut socket) = server.next_request();
    let recorded = recording.request();
    assert_eq!(first_line(&request), first_line(&recorded));
    for name in ["Host", "Authorization"] {
        assert_eq!(header(&request, name), header(&recorded, name), "{name}");
    }
    assert!(request.ends_with(b"\r\n\r\n") && header(&request, "NodePass-Version").is_none());
    let form = recording.server_form();
    server.open_pool_v1(form, identity.cloned(), &recording.ids());
    socket.write_all(&recording.answer()).unwrap();
    // It is the server that ends the connection.
    drop(socket);
}

/// Sends the recorded line of `visit`.
fn recorded_line(recording: &Recording, side: Side, visit: &Visit) -> Vec<u8> {
    let mut lines = recording.lines(side).into_iter();
    let found = lines.find(|(_, signal)| *signal == visit.signal);
    found.unwrap().0
}

fn check_client_is_served(name: &str) {
    let recording = Recording::read(name);
    let visits = recorded_visits(&recording, Side::Server);
    let target = RecordedTarget::start(&visits);
    let server = PlayedServer::start();
    let client = start_client(&server, target.address);
    play_answer(&recording, &server, None);
    let control = server.control_v1(&Recording::key());
    let up = client.wait_up(1);
    assert!(up.contains(&up_words(&recording, "reverse", 0)), "{up}");
    exchange_pings(&recording, &control, Side::Server);
    for visit in &visits {
        let stream = server.take(visit.id);
        visit_our_exit(&target, visit, stream, || {
            control.send_bytes(&recorded_line(&recording, Side::Server, visit));
        });
    }
}

#[test]
fn our_client_is_served_by_the_recorded_server() {
    check_client_is_served("tcp-plain-reverse");
}

#[test]
#[cfg(feature = "websocket")]
fn our_client_is_served_by_the_recorded_server_over_web_socket() {
    check_client_is_served("ws-plain-reverse");
}

#[test]
fn our_client_takes_visitors_for_the_recorded_server() {
    let recording = Recording::read("tcp-plain-forward");
    let server = PlayedServer::start();
    let client = start_client(&server, any_port());
    play_answer(&recording, &server, None);
    let control = server.control_v1(&Recording::key());
    let up = client.wait_up(1);
    assert!(up.contains("v1, forward, tls=0, type=0"), "{up}");
    exchange_pings(&recording, &control, Side::Server);
    visit_our_client(&client, &recording, &control, &server);
}

/// Our client with a v1 session over TLS, before any check of the certificate.
struct UncheckedClient {
    client: End,
    server: PlayedServer,
    identity: Identity,
    control: Control,
    target: RecordedTarget,
    recording: Recording,
}

impl UncheckedClient {
    fn start() -> Self {
        Self::start_as("tcp-tls-reverse", Side::Server)
    }

    fn start_as(name: &str, entry: Side) -> Self {
        let recording = Recording::read(name);
        let target = RecordedTarget::start(&recorded_visits(&recording, entry));
        let server = PlayedServer::start();
        let place = match entry {
            Side::Client => any_port(),
            Side::Server => target.address,
        };
        let client = start_client(&server, place);
        let identity = Identity::make();
        play_answer(&recording, &server, Some(&identity));
        let control = server.control_v1(&Recording::key());
        Self {
            client,
            server,
            identity,
            control,
            target,
            recording,
        }
    }

    /// The check that our client makes; its pool connection.
    #[track_caller]
    fn check_of_client(&self) -> PoolId {
        let Signal::Verify { id, fp } = self.control.next_signal() else {
            panic!("no check of the certificate comes first");
        };
        assert!(fp.is(&self.identity.fingerprint), "{fp}");
        id
    }

    /// Our client ends the session because of what the server says it has.
    #[track_caller]
    fn end_after(&self, claim: FingerprintClaim) {
        let named = self.check_of_client();
        let mut idle = self.server.wait_idle(2);
        idle.retain(|id| *id != named);
        let id = idle[0];
        self.control.send(Signal::Verify { id, fp: claim });
        self.control.wait_end();
        self.client
            .wait_complaint(&["Client error: ", "certificate"]);
        assert_eq!(self.client.up_count(), 0);
    }
}

/// Both checks, that of our client first.
#[track_caller]
fn answer_checks(played: &UncheckedClient) {
    let named = played.check_of_client();
    drop(played.server.take(named));
    // The recorded check of the server, with another connection and certificate.
    let lines = played.recording.lines(Side::Server);
    let is_check = |signal: &Signal| matches!(signal, Signal::Verify { .. });
    assert!(lines.iter().any(|(_, signal)| is_check(signal)));
    let id = played.server.wait_idle(1)[0];
    let fp = FingerprintClaim::from(played.identity.fingerprint);
    played.control.send(Signal::Verify { id, fp });
    assert_eq!(played.server.take(id).read_until_end(), b"");
}

fn check_client_is_served_over_tls(name: &str) {
    let played = UncheckedClient::start_as(name, Side::Server);
    answer_checks(&played);
    let UncheckedClient {
        client,
        server,
        control,
        target,
        recording,
        ..
    } = &played;
    let up = client.wait_up(1);
    assert!(up.contains(&up_words(recording, "reverse", 1)), "{up}");
    exchange_pings(recording, control, Side::Server);
    for visit in &recorded_visits(recording, Side::Server) {
        let id = server.wait_idle(1)[0];
        let stream = server.take(id);
        visit_our_exit(target, visit, stream, || {
            control.send(renamed(&visit.signal, id));
        });
    }
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_client_is_served_by_the_recorded_server_over_tls() {
    check_client_is_served_over_tls("tcp-tls-reverse");
}

#[test]
#[cfg(feature = "http2")]
fn our_client_is_served_by_the_recorded_server_over_http2() {
    check_client_is_served_over_tls("h2-reverse");
}

#[test]
#[cfg(feature = "http2")]
fn our_client_takes_visitors_for_the_recorded_server_over_http2() {
    let played = UncheckedClient::start_as("h2-forward", Side::Client);
    answer_checks(&played);
    let UncheckedClient {
        client,
        server,
        control,
        recording,
        ..
    } = &played;
    let up = client.wait_up(1);
    assert!(up.contains(&up_words(recording, "forward", 1)), "{up}");
    exchange_pings(recording, control, Side::Server);
    visit_our_client(client, recording, control, server);
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_client_answers_a_check_of_the_connection_that_it_checks_itself() {
    let played = UncheckedClient::start();
    let id = played.check_of_client();
    let fp = FingerprintClaim::from(played.identity.fingerprint);
    played.control.send(Signal::Verify { id, fp });
    played.client.wait_up(1);
    let [visit, _] = recorded_visits(&played.recording, Side::Server);
    drop(played.server.take(id));
    let id = played.server.wait_idle(1)[0];
    let stream = played.server.take(id);
    visit_our_exit(&played.target, &visit, stream, || {
        played.control.send(renamed(&visit.signal, id));
    });
    assert_eq!(played.client.ended_count(), 0);
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_client_ends_a_session_whose_server_has_another_certificate() {
    let other = Fingerprint::of_certificate(b"another one");
    UncheckedClient::start().end_after(other.into());
}

#[test]
#[cfg_attr(not(feature = "tls"), ignore = "needs the feature tls")]
fn our_client_ends_a_session_whose_server_names_no_certificate() {
    UncheckedClient::start().end_after(FingerprintClaim::default());
}
