//! Ends of a tunnel that share no code with this program: Python, its libraries `websockets`, `h2`
//! and `aioquic`, and the protocol as it is written down.

use std::fmt::{self, Display};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};

use sha2::{Digest, Sha256};

use crate::support::certificates::Certificates;
use crate::support::each::for_each;
use crate::support::ends::{End, KEY};
use crate::support::free_address;
use crate::support::pattern::Pattern;
use crate::support::python::PythonPeer;
use crate::support::servers::{TcpServer, UdpServer, set_deadline};
use crate::support::tunnel::{Dialect, Flow, HTTP2, QUIC, Tls, WEB_SOCKET, transports};
use crate::support::visitors::{assert_closed, dial, receive_datagram, udp_visitor};

/// Long enough that nothing is late on a busy machine.
const ENVIRONMENT: &[(&str, &str)] = &[
    ("NP_REPORT_INTERVAL", "3s"),
    ("NP_SERVICE_COOLDOWN", "300ms"),
];

const BODY_SIZE: usize = 300_000;

/// The kind of a tunnel.
#[derive(Clone, Copy)]
struct Kind {
    transport: u8,
    tls: Tls,
    dialect: Dialect,
    flow: Flow,
}

impl Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (transport, tls, flow) = (self.transport, self.tls.digit(), self.flow);
        write!(f, "{}, {flow}, tls={tls}, type={transport}", self.dialect)
    }
}

impl Kind {
    fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for (transport, tls) in [
            (QUIC, Tls::SelfSigned),
            (WEB_SOCKET, Tls::None),
            (WEB_SOCKET, Tls::SelfSigned),
            (HTTP2, Tls::SelfSigned),
        ] {
            if transports().contains(&transport) && Tls::built_in().contains(&tls) {
                all.extend(Self::all_of(transport, tls));
            }
        }
        all
    }

    /// Those of both dialects and both flows.
    fn all_of(transport: u8, tls: Tls) -> Vec<Self> {
        let mut all = Vec::new();
        for dialect in [Dialect::Native, Dialect::V1] {
            all.extend(Flow::ALL.map(|flow| Self {
                transport,
                tls,
                dialect,
                flow,
            }));
        }
        all
    }

    fn has_half_close(self) -> bool {
        self.dialect == Dialect::Native || self.transport != WEB_SOCKET
    }

    /// A Python server of this kind, and its port.
    fn start_server(self, scene: &str, more: &[&str]) -> (PythonPeer, SocketAddr, Certificates) {
        let certificates = Certificates::for_names(&["localhost".to_owned()]);
        let (chain, key) = (certificates.chain(), certificates.key());
        let (transport, tls) = (self.transport.to_string(), self.tls.digit().to_string());
        let flow = match self.flow {
            Flow::Reverse => "--flow=-",
            Flow::Forward => "--flow=+",
        };
        let (chain, key) = (chain.display().to_string(), key.display().to_string());
        let dialect = self.dialect.to_string();
        let mut arguments = vec!["--key", KEY, "--dialect", &dialect, "--scene", scene];
        arguments.extend(["--type", &transport, "--tls", &tls, flow]);
        arguments.extend(["--crt", &chain, "--crt-key", &key]);
        arguments.extend(more);
        let peer = PythonPeer::start("server.py", &arguments);
        let port = peer.wait_for("listening")["port"].as_u64().unwrap();
        let port = u16::try_from(port).unwrap();
        (peer, SocketAddr::from(([127, 0, 0, 1], port)), certificates)
    }
}

/// A body as it goes over the wire: its length, its digest, itself.
fn enclose(body: &[u8]) -> Vec<u8> {
    let size = u64::try_from(body.len()).unwrap().to_be_bytes();
    [&size[..], &Sha256::digest(body), body].concat()
}

/// Takes a body; `None` if the connection ends before.
fn read_body(mut stream: &TcpStream) -> Option<Vec<u8>> {
    let mut size = [0; 8];
    let mut digest = [0; 32];
    stream.read_exact(&mut size).ok()?;
    stream.read_exact(&mut digest).ok()?;
    let mut body = vec![0; usize::try_from(u64::from_be_bytes(size)).unwrap()];
    stream.read_exact(&mut body).ok()?;
    assert_eq!(Sha256::digest(&body)[..], digest, "another body");
    Some(body)
}

/// Sends bodies and datagrams back the other way round.
fn turning_target() -> (SocketAddr, TcpServer, UdpServer) {
    let address = free_address();
    let tcp = TcpServer::start_at(address, |mut stream| {
        set_deadline(stream);
        // Some are broken off, and some come to see whether there is a target.
        let Some(mut body) = read_body(stream) else {
            return;
        };
        body.reverse();
        let mut rest = Vec::new();
        if stream.write_all(&enclose(&body)).is_ok() {
            let _ = stream.read_to_end(&mut rest);
        }
        assert!(b"still here".starts_with(&rest), "{rest:?}");
    });
    let udp = UdpServer::start_at(address, |socket, datagram, sender| {
        let turned: Vec<u8> = datagram.iter().rev().copied().collect();
        socket.send_to(&turned, sender).unwrap();
    });
    (address, tcp, udp)
}

/// A visitor of a script that serves like that, but ends its direction first.
#[track_caller]
fn visit(entry: SocketAddr, kind: Kind) {
    let visitor = dial(entry);
    let body = Pattern::new(5).take(BODY_SIZE);
    (&visitor).write_all(&enclose(&body)).unwrap();
    let mut answer = read_body(&visitor).expect("an answer");
    answer.reverse();
    assert!(answer == body, "another answer");
    if kind.has_half_close() {
        assert_closed(&visitor);
        (&visitor).write_all(b"still here").unwrap();
        visitor.shutdown(Shutdown::Write).unwrap();
    } else {
        assert_closed(&visitor);
    }
}

#[track_caller]
fn visit_by_datagram(entry: SocketAddr) {
    let visitor = udp_visitor(entry);
    visitor.send(b"datagram").unwrap();
    assert_eq!(receive_datagram(&visitor), b"margatad");
}

/// The visitors that a script waits for.
#[track_caller]
fn visit_all(end: &End, peer: &PythonPeer, kind: Kind) {
    visit(end.tcp_address(), kind);
    peer.wait_for("served");
    visit_by_datagram(end.udp_address());
    peer.wait_for("datagram");
    visit(end.tcp_address(), kind);
    peer.wait_for("served");
}

/// Our server and a Python client are a tunnel, through which visitors come.
fn check_our_server(kinds: &[Kind], more: &[&str]) {
    for_each(kinds, |kind| {
        let (target, _tcp, _udp) = turning_target();
        let place = match kind.flow {
            Flow::Reverse => "127.0.0.1:0".to_owned(),
            Flow::Forward => target.to_string(),
        };
        let (mode, tls, transport) = (kind.flow.mode(), kind.tls.digit(), kind.transport);
        let options = format!("mode={mode}&tls={tls}&type={transport}");
        let server = End::server("127.0.0.1:0", &place, &options, ENVIRONMENT);
        let tunnel = server.tunnel_address().to_string();
        let dialect = kind.dialect.to_string();
        let mut arguments = vec!["--server", &tunnel, "--key", KEY, "--dialect", &dialect];
        arguments.extend(more);
        let peer = PythonPeer::start("client.py", &arguments);
        peer.wait_for("up");
        if kind.transport == QUIC {
            // RFC 9000 section 8.1.2: nobody gets more from it before it has shown its address.
            assert_eq!(peer.wait_for("retried")["count"], 1);
        }
        let up = server.wait_up(1);
        assert!(up.contains(&kind.to_string()), "{up}");
        if kind.flow == Flow::Reverse {
            visit_all(&server, &peer, *kind);
        }
        peer.wait_done();
        server.wait_ended(1, &[]);
        assert_eq!(server.up_count(), 1, "one session does it all");
    });
}

/// Our client and a Python server are a tunnel, through which visitors come.
fn check_our_client(kinds: &[Kind], more: &[&str]) {
    for_each(kinds, |kind| {
        let (target, _tcp, _udp) = turning_target();
        let place = match kind.flow {
            Flow::Reverse => target.to_string(),
            Flow::Forward => "127.0.0.1:0".to_owned(),
        };
        let (peer, tunnel, _certificates) = kind.start_server("plain", more);
        let client = End::client(tunnel, &place, "min=4", ENVIRONMENT);
        peer.wait_for("up");
        let up = client.wait_up(1);
        assert!(up.contains(&kind.to_string()), "{up}");
        if kind.flow == Flow::Forward {
            visit_all(&client, &peer, *kind);
        }
        peer.wait_done();
    });
}

/// Our client does what a scene of the Python server asks of it, in one session.
#[cfg(any(feature = "http2", feature = "quic"))]
fn check_scene(transport: u8, scene: &str, min: u32, more: &[&str]) {
    for_each(&[Dialect::Native, Dialect::V1], |dialect| {
        let (target, _tcp, _udp) = turning_target();
        let kind = Kind {
            transport,
            tls: Tls::SelfSigned,
            dialect: *dialect,
            flow: Flow::Reverse,
        };
        let (peer, tunnel, _certificates) = kind.start_server(scene, more);
        let options = format!("min={min}");
        let client = End::client(tunnel, &target.to_string(), &options, ENVIRONMENT);
        peer.wait_for("up");
        client.wait_up(1);
        peer.wait_done();
        assert_eq!(client.up_count(), 1, "one session does it all");
    });
}

#[test]
fn our_server_and_a_client_of_another_making_are_a_tunnel() {
    check_our_server(&Kind::all(), &[]);
}

#[test]
fn our_client_and_a_server_of_another_making_are_a_tunnel() {
    check_our_client(&Kind::all(), &[]);
}

#[test]
#[cfg(feature = "http2")]
fn our_client_opens_another_connection_when_a_server_says_goodbye_to_one_in_use() {
    check_scene(HTTP2, "goodbye", 8, &[]);
}

#[test]
#[cfg(feature = "http2")]
fn our_client_opens_as_many_connections_as_the_streams_of_its_pool_need() {
    check_scene(HTTP2, "few-streams", 32, &["--streams-max", "10"]);
}

#[test]
#[cfg(feature = "http2")]
fn our_client_loses_a_stream_that_is_reset_and_no_other() {
    check_scene(HTTP2, "resets", 8, &[]);
}

#[test]
#[cfg(feature = "quic")]
fn our_client_loses_a_quic_stream_that_is_reset_and_no_other() {
    check_scene(QUIC, "resets", 8, &[]);
}

/// RFC 9000 section 8.1.2, as our server does it too.
#[test]
#[cfg(feature = "quic")]
fn our_client_shows_its_address_when_a_server_asks_for_that_with_a_retry() {
    check_our_client(&Kind::all_of(QUIC, Tls::SelfSigned), &["--retry"]);
}

/// RFC 9000 section 9.3: the path changes while data go either way.
#[test]
#[cfg(feature = "quic")]
fn visitors_survive_a_client_whose_port_changes_in_the_middle() {
    check_our_server(&Kind::all_of(QUIC, Tls::SelfSigned), &["--scene", "move"]);
}

/// RFC 9001 section 6.
#[test]
#[cfg(feature = "quic")]
fn visitors_survive_a_client_that_updates_its_keys_in_the_middle() {
    check_our_server(
        &Kind::all_of(QUIC, Tls::SelfSigned),
        &["--scene", "update-keys"],
    );
}

/// Other first bytes, and tickets that are used, forged, of another session or cut short.
#[test]
#[cfg(feature = "quic")]
fn our_server_says_nothing_on_quic_streams_that_do_not_belong_to_the_pool() {
    check_our_server(
        &Kind::all_of(QUIC, Tls::SelfSigned),
        &["--scene", "strangers"],
    );
}
