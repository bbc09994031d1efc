//! A server behind nginx, which ends TLS at port 443 and passes WebSocket on.

use std::io::Write;
use std::net::{Shutdown, SocketAddr};

use super::tunnel_web_port::web_port;
use crate::support::certificates::Certificates;
use crate::support::downgrade::Downgrade;
use crate::support::each::for_each;
use crate::support::ends::{End, KEY, QUICK, client_url, with_env};
use crate::support::nginx::Nginx;
use crate::support::pattern::{receive, send};
use crate::support::program::Launch;
use crate::support::servers::{TcpServer, UdpServer, drain, set_deadline};
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
        Nginx::start(self.front, &self.certificates, back)
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
