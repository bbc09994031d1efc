//! Too little of something: descriptors, clients, readers.

use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crate::support::ends::{End, KEY, QUICK, Reverse, with_env};
use crate::support::eventually;
use crate::support::program::Launch;
use crate::support::servers::{TcpServer, echo, set_deadline};
use crate::support::visitors::{assert_closed, dial, exchange, try_dial, try_exchange};

/// Does what the first byte says: `e` echo, `s` send without end, `n` never read.
fn obedient_target() -> TcpServer {
    TcpServer::start(|mut stream| {
        let mut order = [0];
        if stream.read_exact(&mut order).is_err() {
            return;
        }
        match order[0] {
            b'e' => echo(stream),
            b's' => while stream.write_all(&[b's'; 64 * 1024]).is_ok() {},
            _ => {
                // Until the other side is gone, and for no longer than a test may take.
                set_deadline(stream);
                while stream.peek(&mut order).is_ok_and(|count| count > 0) {
                    std::thread::sleep(Duration::from_millis(50));
                }
            }
        }
    })
}

/// A visitor that has told the target what to do.
fn visitor_with_order(entry: SocketAddr, order: u8) -> TcpStream {
    let mut visitor = dial(entry);
    visitor.write_all(&[order]).unwrap();
    visitor
}

#[track_caller]
fn check_others(entry: SocketAddr) {
    for _ in 0..20 {
        exchange(&visitor_with_order(entry, b'e'), b"not held up");
    }
}

#[test]
fn target_that_never_reads_holds_up_nobody_else() {
    let target = obedient_target();
    let both = Reverse::start(target.address(), "", "min=4");
    let before = visitor_with_order(both.entry, b'e');
    exchange(&before, b"before");
    let mut stuck = visitor_with_order(both.entry, b'n');
    stuck
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let chunk = vec![0; 256 * 1024];
    // Everything between is full when a write takes too long; 256 MiB never fit.
    let blocked = (0..1024).find_map(|_| stuck.write_all(&chunk).err());
    let kind = blocked.expect("somebody reads without end").kind();
    assert!(
        matches!(kind, ErrorKind::WouldBlock | ErrorKind::TimedOut),
        "{kind}"
    );
    check_others(both.entry);
    exchange(&before, b"neither this one");
    assert_eq!(both.client.ended_count() + both.server.ended_count(), 0);
}

#[test]
fn visitor_that_never_reads_holds_up_nobody_else() {
    let target = obedient_target();
    let both = Reverse::start(target.address(), "", "min=4");
    let before = visitor_with_order(both.entry, b'e');
    exchange(&before, b"before");
    let stuck = visitor_with_order(both.entry, b's');
    // The flood has begun.
    assert_eq!(stuck.peek(&mut [0]).unwrap(), 1);
    check_others(both.entry);
    exchange(&before, b"neither this one");
    // For longer than silence is allowed on a control channel.
    let seen = both.client.count("CHECK_POINT");
    both.client.wait_for_count("CHECK_POINT", seen + 5);
    check_others(both.entry);
    assert_eq!(both.client.ended_count() + both.server.ended_count(), 0);
}

#[test]
fn descriptors_that_run_out_on_the_server_come_back() {
    const VISITORS: usize = 200;
    let target = TcpServer::echo();
    let url = format!("server://{KEY}@127.0.0.1:0/127.0.0.1:0?mode=1&log=debug");
    let launch = Launch::through_shell("ulimit -n 64", &[&url]);
    let mut server = End::start(with_env(launch, QUICK), KEY);
    let address = target.address().to_string();
    let client = End::client(server.tunnel_address(), &address, "min=4", QUICK);
    client.wait_up(1);
    let entry = server.tcp_address();
    exchange(&dial(entry), b"before");
    // More than it can hold: each takes a descriptor, and its pool connection another one.
    let visitors: Vec<TcpStream> = (0..VISITORS).map(|_| dial(entry)).collect();
    for mut visitor in &visitors {
        let _ = visitor.write_all(b"hold on");
    }
    server.wait_complaint(&[]);
    assert!(server.is_running());
    drop(visitors);
    eventually("a visitor that is served", || {
        let visitor = try_dial(entry).ok()?;
        try_exchange(&visitor, b"after").ok()
    });
    assert!(server.is_running());
}

/// A server that visitors can reach and no client.
fn lonely_server(wait: &str) -> End {
    let url = format!("server://{KEY}@127.0.0.1:0/127.0.0.1:0?mode=1&log=debug");
    let launch = with_env(Launch::new(&[&url]), QUICK).env("NP_POOL_GET_TIMEOUT", wait);
    End::start(launch, KEY)
}

#[test]
fn visitors_wait_for_a_client_and_are_served_when_it_comes() {
    let target = TcpServer::echo();
    let server = lonely_server("15s");
    let visitors: Vec<TcpStream> = (0..20).map(|_| dial(server.tcp_address())).collect();
    for mut visitor in &visitors {
        visitor.write_all(b"early").unwrap();
    }
    let address = target.address().to_string();
    let _client = End::client(server.tunnel_address(), &address, "min=4", QUICK);
    for mut visitor in &visitors {
        let mut answer = [0; 5];
        visitor.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"early");
    }
}

#[test]
fn visitor_is_closed_when_no_client_comes_in_time() {
    let server = lonely_server("500ms");
    let entry = server.tcp_address();
    let dialled_at = Instant::now();
    let visitor = dial(entry);
    assert_closed(&visitor);
    let elapsed = dialled_at.elapsed();
    assert!(
        elapsed >= Duration::from_millis(450),
        "closed after {elapsed:?}"
    );
    let address = visitor.local_addr().unwrap();
    server.wait_complaint(&[&format!("Visitor {address} not served")]);
}

#[test]
fn visitor_that_leaves_while_it_waits_costs_no_pool_connection() {
    let target = TcpServer::echo();
    let server = lonely_server("15s");
    for _ in 0..50 {
        drop(dial(server.tcp_address()));
    }
    let address = target.address().to_string();
    let client = End::client(server.tunnel_address(), &address, "min=4", QUICK);
    client.wait_up(1);
    exchange(&dial(server.tcp_address()), b"the one that stays");
    assert_eq!(client.ended_count(), 0);
}
