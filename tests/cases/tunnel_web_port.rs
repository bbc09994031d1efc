//! Tunnel port 443, where a web server would end TLS: the handshake itself goes over TLS.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};

use crate::support::own_loopback;
use crate::support::peer::{Identity, Stream};
use crate::support::program::{Launch, Program};
use crate::support::servers::{TcpServer, set_deadline};
use crate::support::tunnel::{Combination, Flow, Tls};
use crate::support::visitors::{dial, exchange};

/// The answer of a server that has no native dialect.
const V1_REFUSAL: &[u8] =
    b"HTTP/1.1 401 Unauthorized\r\nConnection: close\r\nContent-Length: 0\r\n\r\n";

/// A listener on port 443 of an address of its own; `None`, said aloud, where only others may.
pub(super) fn web_port() -> Option<TcpListener> {
    match TcpListener::bind(SocketAddr::from((own_loopback(), 443))) {
        Ok(listener) => Some(listener),
        Err(error) if error.kind() == ErrorKind::PermissionDenied => {
            eprintln!("skipped: port 443 takes more rights than these");
            None
        }
        Err(error) => panic!("{error}"),
    }
}

fn accept(listener: &TcpListener) -> TcpStream {
    let (socket, _) = listener.accept().unwrap();
    set_deadline(&socket);
    socket
}

fn client_of(listener: &TcpListener, options: &str) -> Program {
    let address = listener.local_addr().unwrap();
    let url = format!("client://k3y@{address}/127.0.0.1:9?mode=2&{options}");
    Launch::new(&[&url])
        .env("NP_SERVICE_COOLDOWN", "300ms")
        .start()
}

#[test]
fn handshake_at_the_web_port_goes_over_tls_and_a_visitor_is_served() {
    let Some(listener) = web_port() else { return };
    let address = listener.local_addr().unwrap();
    drop(listener);
    let target = TcpServer::echo();
    let combination = Combination::plain(Flow::Reverse).with_tls(Tls::SelfSigned);
    let tunnel = combination.to(target.address()).tunnel_at(address).start();
    exchange(&dial(tunnel.tcp()), b"through port 443");
    assert_eq!(tunnel.client.count("does not speak TLS"), 0);
}

#[test]
fn server_without_tls_at_the_web_port_gets_the_handshake_in_plain_sight() {
    let Some(listener) = web_port() else { return };
    let client = client_of(&listener, "");
    let mut first = [0; 1];
    accept(&listener).read_exact(&mut first).unwrap();
    assert_eq!(first, [0x16], "the first try is TLS");
    // It was closed without a word, as a server does that does not know TLS.
    let mut second = [0; 4];
    accept(&listener).read_exact(&mut second).unwrap();
    assert_eq!(&second, b"GET ");
    client.wait_for("does not speak TLS");
}

#[test]
fn v1_token_is_not_shown_to_a_server_whose_certificate_nobody_vouches_for() {
    let Some(listener) = web_port() else { return };
    let identity = Identity::make();
    let client = client_of(&listener, "");
    // The native hello gives nothing away, so any certificate will do.
    let mut hello = Stream::accept(accept(&listener), Some(&identity)).unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        head.extend(hello.read_count(1));
    }
    assert!(String::from_utf8_lossy(&head).contains("NodePass-Nonce"));
    hello.write_all(V1_REFUSAL).unwrap();
    drop(hello);
    // For the token it has to be one that the system trusts.
    let refused = Stream::accept(accept(&listener), Some(&identity));
    let said = refused.map(|mut stream| {
        let mut bytes = [0; 16];
        stream.read(&mut bytes)
    });
    assert!(!matches!(said, Ok(Ok(1..))), "{said:?}");
    let complaint = client.wait_for("Client error: ");
    assert!(complaint.contains("certificate"), "{complaint}");
}
