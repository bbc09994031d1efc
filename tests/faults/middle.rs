//! Someone in the middle, who reads and answers for both ends.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;

use crate::support::ends::{End, QUICK};
use crate::support::peer::{Identity, Stream};
use crate::support::servers::{TcpServer, set_deadline};
use crate::support::visitors::{assert_closed, dial};

/// What stands at the start of a TLS connection.
const TLS_HANDSHAKE: u8 = 0x16;

/// A proxy that ends TLS with a certificate of its own and passes on all else; what it has read
/// inside TLS.
struct Middle {
    proxy: TcpServer,
    read: Arc<Mutex<Vec<u8>>>,
    connections: Arc<Mutex<usize>>,
}

impl Middle {
    fn start(server: SocketAddr) -> Self {
        let identity = Identity::make();
        let read = Arc::new(Mutex::new(Vec::new()));
        let connections = Arc::new(Mutex::new(0));
        let proxy = TcpServer::start({
            let (read, connections) = (Arc::clone(&read), Arc::clone(&connections));
            move |client| {
                set_deadline(client);
                let mut first = [0];
                let is_tls = matches!(client.peek(&mut first), Ok(1)) && first[0] == TLS_HANDSHAKE;
                if !is_tls {
                    let _ = pass_on(client, server);
                    return;
                }
                *connections.lock().unwrap() += 1;
                let Ok(socket) = client.try_clone() else {
                    return;
                };
                if let Ok(inside) = Stream::accept(socket, Some(&identity)) {
                    let _ = listen_in(inside, server, &read);
                }
            }
        });
        Self {
            proxy,
            read,
            connections,
        }
    }
}

/// Both directions of a plain connection.
fn pass_on(client: &TcpStream, server: SocketAddr) -> io::Result<()> {
    let far = dial(server);
    let onward = (client.try_clone()?, far.try_clone()?);
    let copier = thread::spawn(move || {
        let (mut from, mut to) = onward;
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(std::net::Shutdown::Write);
    });
    let (mut from, mut to) = (&far, client);
    let _ = io::copy(&mut from, &mut to);
    let _ = to.shutdown(std::net::Shutdown::Write);
    let _ = copier.join();
    Ok(())
}

/// Keeps what the client says, and lets the server hear it as well.
fn listen_in(mut client: Stream, server: SocketAddr, read: &Mutex<Vec<u8>>) -> io::Result<()> {
    let mut far = Stream::dial(server, true)?;
    let mut buffer = [0; 4096];
    loop {
        let count = client.read(&mut buffer)?;
        if count == 0 {
            return Ok(());
        }
        read.lock().unwrap().extend_from_slice(&buffer[..count]);
        far.write_all(&buffer[..count])?;
        far.flush()?;
        let answer = far.read_count(4);
        client.write_all(&answer)?;
        client.flush()?;
    }
}

#[test]
fn certificate_of_someone_in_the_middle_is_refused() {
    let target = TcpServer::echo();
    let server = End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1&tls=1", QUICK);
    let middle = Middle::start(server.tunnel_address());
    let target = target.address().to_string();
    let mut client = End::client(middle.proxy.address(), &target, "min=2", QUICK);
    let line = client.wait_complaint(&["certificate"]);
    assert!(line.contains("Client error: "), "{line}");
    // A visitor is not served, and nobody gets to know what he says.
    let mut visitor = dial(server.tcp_address());
    visitor.write_all(b"for the target only").unwrap();
    assert_closed(&visitor);
    client.wait_for_count("Trying again in ", 2);
    assert!(client.is_running());
    assert_eq!((client.up_count(), server.up_count()), (0, 0));
    assert!(
        *middle.connections.lock().unwrap() > 0,
        "nobody was in the middle"
    );
    let read = middle.read.lock().unwrap().clone();
    assert!(read.is_empty(), "{} bytes reached the middle", read.len());
}

#[cfg(feature = "quic")]
#[test]
fn quic_connection_to_someone_else_is_refused() {
    use crate::support::proxy::Proxy;
    use crate::support::visitors::exchange;

    let target = TcpServer::echo();
    let start_server = || End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1&type=1", QUICK);
    let (server, other) = (start_server(), start_server());
    let proxy = Proxy::start(server.tunnel_address());
    // The handshake goes to the one, datagrams to the other, who has another certificate.
    proxy.datagrams().lead_to(other.tunnel_address());
    let target = target.address().to_string();
    let mut client = End::client(proxy.address(), &target, "min=2", QUICK);
    let line = client.wait_complaint(&["certificate"]);
    assert!(line.contains("Client error: "), "{line}");
    client.wait_for_count("Trying again in ", 2);
    assert!(client.is_running());
    let counts = [&client, &server, &other].map(|end| end.up_count());
    assert_eq!(counts, [0; 3]);
    proxy.datagrams().lead_to(server.tunnel_address());
    client.wait_up(1);
    exchange(&dial(server.tcp_address()), b"served");
}
