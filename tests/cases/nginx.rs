//! A server behind nginx, which ends TLS at port 443 and passes WebSocket on.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use super::tunnel_web_port::web_port;
use crate::support::certificates::Certificates;
use crate::support::downgrade::Downgrade;
use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK, client_url, with_env};
use crate::support::nginx::Nginx;
use crate::support::pattern::{receive, send};
use crate::support::program::Launch;
use crate::support::servers::{TcpServer, UdpServer, drain, echo, set_deadline};
use crate::support::visitors::{
    End as StreamEnd, dial, exchange, exchange_datagram, read_to_end, try_dial, try_exchange,
    udp_visitor,
};
use crate::support::{eventually, free_address};

const SIZE: u64 = 3 << 20;

/// A server at a port that only nginx knows, and where nginx listens.
struct Behind {
    server: End,
    front: SocketAddr,
    certificates: Certificates,
}

impl Behind {
    /// `None`, said aloud, where port 443 is for others only.
    fn start() -> Option<Self> {
        let front = web_port()?.local_addr().unwrap();
        let server = End::server("127.0.0.1:0", "127.0.0.1:0", "mode=1&type=2&tls=0", QUICK);
        let names = [front.ip().to_string()];
        Some(Self {
            server,
            front,
            certificates: Certificates::for_names(&names),
        })
    }

    fn start_nginx(&self, back: SocketAddr) -> Nginx {
        self.start_nginx_with(back, "")
    }

    fn start_nginx_with(&self, back: SocketAddr, directives: &str) -> Nginx {
        Nginx::start(self.front, &self.certificates, back, directives)
    }

    /// A client that goes to nginx, and trusts its certificate or nobody's.
    fn start_client(&self, target: SocketAddr, trusts: bool) -> End {
        let url = client_url(self.front, &target.to_string(), "min=4");
        let mut launch = with_env(Launch::new(&[&url]), QUICK);
        if trusts {
            let roots = self.certificates.roots();
            launch = launch.env("SSL_CERT_FILE", roots.to_str().unwrap());
        }
        End::start(launch, KEY)
    }

    #[track_caller]
    fn check_visitors(&self) {
        let entry = self.server.tcp_address();
        for _ in 0..20 {
            exchange(&dial(entry), b"through nginx");
        }
        let bulk = dial(entry);
        std::thread::scope(|scope| {
            scope.spawn(|| send(&bulk, 1, SIZE));
            receive(&bulk, 1, SIZE);
        });
        exchange_datagram(&udp_visitor(self.server.udp_address()), b"through nginx");
    }
}

/// TCP and UDP echo.
fn target() -> (SocketAddr, TcpServer, UdpServer) {
    let address = free_address();
    (
        address,
        TcpServer::echo_at(address),
        UdpServer::echo_at(address),
    )
}

#[test]
fn server_behind_nginx_serves_whether_or_not_its_certificate_is_trusted() {
    for_each(&[true, false], |trusts| {
        let Some(behind) = Behind::start() else {
            return;
        };
        let (address, _tcp, _udp) = target();
        let _nginx = behind.start_nginx(behind.server.tunnel_address());
        let client = behind.start_client(address, *trusts);
        let up = client.wait_up(1);
        assert!(up.contains("native, reverse, tls=0, type=2"), "{up}");
        behind.server.wait_up(1);
        behind.check_visitors();
        assert_eq!(client.ended_count(), 0);
    });
}

#[test]
fn half_close_passes_nginx() {
    let Some(behind) = Behind::start() else {
        return;
    };
    let target = TcpServer::start(|mut stream| {
        set_deadline(stream);
        let count = drain(stream).unwrap();
        let _ = write!(stream, "{count} bytes");
    });
    let _nginx = behind.start_nginx(behind.server.tunnel_address());
    let client = behind.start_client(target.address(), false);
    client.wait_up(1);
    let mut visitor = dial(behind.server.tcp_address());
    visitor.write_all(&[b'x'; 100_000]).unwrap();
    visitor.shutdown(Shutdown::Write).unwrap();
    assert_eq!(
        read_to_end(&visitor),
        (b"100000 bytes".to_vec(), StreamEnd::Finished)
    );
}

#[test]
fn v1_server_behind_nginx_serves_where_its_certificate_is_trusted() {
    let Some(behind) = Behind::start() else {
        return;
    };
    let (address, _tcp, _udp) = target();
    let downgrade = Downgrade::start(behind.server.tunnel_address());
    let _nginx = behind.start_nginx(downgrade.address());
    let stranger = behind.start_client(address, false);
    let complaint = stranger.wait_for("Client error: ");
    assert!(complaint.contains("certificate"), "{complaint}");
    assert_eq!(stranger.up_count(), 0);
    drop(stranger);
    let client = behind.start_client(address, true);
    let up = client.wait_up(1);
    assert!(up.contains("v1, reverse, tls=0, type=2"), "{up}");
    behind.server.wait_up(1);
    behind.check_visitors();
}

#[test]
fn client_finds_its_server_again_when_nginx_is_back() {
    let Some(behind) = Behind::start() else {
        return;
    };
    let (address, _tcp, _udp) = target();
    let nginx = behind.start_nginx(behind.server.tunnel_address());
    let client = behind.start_client(address, false);
    client.wait_up(1);
    behind.server.wait_up(1);
    let entry = behind.server.tcp_address();
    exchange(&dial(entry), b"before");
    drop(nginx);
    client.wait_ended(1, &["Client error: session with"]);
    let _nginx = behind.start_nginx(behind.server.tunnel_address());
    client.wait_up(2);
    eventually("service after the restart", || {
        try_exchange(&try_dial(entry).ok()?, b"after").ok()
    });
}

/// After so long nginx cuts a connection on which nothing passes. Visitors are pinged each 1.5 s,
/// idle connections at most a second later.
const CUT: &str = "proxy_read_timeout 5s; proxy_send_timeout 5s; send_timeout 5s;";

/// Reports of a server until all that is silent would have been cut twice.
const REPORTS_COUNT: usize = 40;

/// Lets time pass in which nobody says anything.
#[track_caller]
fn be_silent(server: &End) {
    for _ in 0..REPORTS_COUNT {
        server.checkpoint();
    }
}

/// Does what the first word of a visitor says: `s` as an echo, `e` ends its own direction and hears
/// him out, `h` hears him out and then answers when it is told to.
fn obedient_target(is_told: &Arc<AtomicBool>, heard: &Arc<Mutex<Vec<u8>>>) -> TcpServer {
    let (is_told, heard) = (Arc::clone(is_told), Arc::clone(heard));
    TcpServer::start(move |mut stream| {
        set_deadline(stream);
        let mut word = [0];
        stream.read_exact(&mut word).unwrap();
        stream.write_all(&word).unwrap();
        match word[0] {
            b's' => echo(stream),
            b'e' => {
                stream.shutdown(Shutdown::Write).unwrap();
                let (said, _) = read_to_end(stream);
                heard.lock().unwrap().extend(said);
            }
            _ => {
                drain(stream).unwrap();
                eventually("the word to answer", || {
                    is_told.load(Ordering::SeqCst).then_some(())
                });
                stream.write_all(b"answer").unwrap();
            }
        }
    })
}

#[test]
fn silent_visitors_pass_nginx() {
    let Some(behind) = Behind::start() else {
        return;
    };
    let (is_told, heard) = (Arc::default(), Arc::default());
    let target = obedient_target(&is_told, &heard);
    let _udp = UdpServer::echo_at(target.address());
    let nginx = behind.start_nginx_with(behind.server.tunnel_address(), CUT);
    let client = behind.start_client(target.address(), false);
    client.wait_up(1);
    behind.server.wait_up(1);
    let [silent, mut ended, half] = [b"s", b"e", b"h"].map(|word| {
        let visitor = dial(behind.server.tcp_address());
        exchange(&visitor, word);
        visitor
    });
    assert_eq!(read_to_end(&ended), (Vec::new(), StreamEnd::Finished));
    half.shutdown(Shutdown::Write).unwrap();
    let datagrams = udp_visitor(behind.server.udp_address());
    exchange_datagram(&datagrams, b"before");
    be_silent(&behind.server);
    // Nor are idle connections cut, nor that of the UDP visitor.
    assert_eq!(nginx.timeouts_count(), 0);
    exchange(&silent, b"still here");
    ended.write_all(b"still speaking").unwrap();
    ended.shutdown(Shutdown::Write).unwrap();
    eventually("what was said to who has ended", || {
        (*heard.lock().unwrap() == b"still speaking").then_some(())
    });
    is_told.store(true, Ordering::SeqCst);
    assert_eq!(
        read_to_end(&half),
        (b"answer".to_vec(), StreamEnd::Finished)
    );
    exchange_datagram(&datagrams, b"after");
    assert_eq!(client.ended_count(), 0);
}

#[test]
fn silent_visitor_of_a_v1_session_passes_nginx() {
    let Some(behind) = Behind::start() else {
        return;
    };
    let (address, _tcp, _udp) = target();
    let downgrade = Downgrade::start(behind.server.tunnel_address());
    let nginx = behind.start_nginx_with(downgrade.address(), CUT);
    let client = behind.start_client(address, true);
    let up = client.wait_up(1);
    assert!(up.contains("v1, reverse, tls=0, type=2"), "{up}");
    behind.server.wait_up(1);
    let visitor = dial(behind.server.tcp_address());
    exchange(&visitor, b"hello");
    be_silent(&behind.server);
    exchange(&visitor, b"still here");
    // On idle connections, which nobody reads there, nothing is said.
    assert_ne!(nginx.timeouts_count(), 0);
}
