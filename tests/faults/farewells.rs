//! Ends that stop while visitors are still owed something.

use std::fmt::{self, Display};
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::{Domain, Socket, Type};

use crate::support::each::for_each;
use crate::support::pattern::{self, Pattern};
use crate::support::servers::{TcpServer, drain, set_deadline};
use crate::support::tunnel::{Combination, End, Flow, Tunnel};
use crate::support::visitors::{dial, exchange, read_count, read_to_end, try_dial, try_exchange};
use crate::support::{eventually, free_address};

/// How soon a program ends that has nothing to wait for.
const PROMPT: Duration = Duration::from_secs(5);

/// Time that open connections are given at a stop: far more than any of them needs.
const SHUTDOWN_TIMEOUT: &str = "30s";

/// Which end of which tunnel stops.
struct Stopped {
    combination: Combination,
    end: End,
}

impl Display for Stopped {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} of {}", self.end, self.combination)
    }
}

/// Both ends of both flows, plain and encrypted, in every transport.
fn all() -> Vec<Stopped> {
    Combination::plain_and_encrypted()
        .into_iter()
        .flat_map(|combination| End::ALL.map(|end| Stopped { combination, end }))
        .collect()
}

/// Connects with little room for what comes.
fn dial_narrow(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_recv_buffer_size(8 * 1024).unwrap();
    socket.connect(&address.into()).unwrap();
    let stream = TcpStream::from(socket);
    set_deadline(&stream);
    stream
}

/// Stops one end, which has visitors.
#[track_caller]
fn stop(tunnel: &Tunnel, end: End) {
    tunnel.program(end).signal(Signal::TERM);
    tunnel.program(end).wait_for("stopping");
}

#[test]
fn slow_visitor_gets_all_that_it_is_owed_when_either_end_stops() {
    const OWED: usize = 5_000_000;
    const SEED: u64 = 7;
    const READ_SIZE: usize = 32 * 1024;
    for_each(&all(), |stopped| {
        let target = TcpServer::start(|stream| {
            if drain(stream).is_ok() {
                pattern::send(stream, SEED, u64::try_from(OWED).unwrap());
            }
        });
        let plan = stopped.combination.to(target.address());
        let mut tunnel = plan.env("NP_SHUTDOWN_TIMEOUT", SHUTDOWN_TIMEOUT).start();
        let mut visitor = dial_narrow(tunnel.tcp());
        visitor.write_all(b"all of it").unwrap();
        visitor.shutdown(Shutdown::Write).unwrap();
        // It flows.
        let mut expected = Pattern::new(SEED);
        expected.check(&read_count(&visitor, READ_SIZE));
        stop(&tunnel, stopped.end);
        let mut came = READ_SIZE;
        let mut buffer = vec![0; READ_SIZE];
        loop {
            let count = visitor.read(&mut buffer).unwrap();
            if count == 0 {
                break;
            }
            expected.check(&buffer[..count]);
            came += count;
            // Slow is what this visitor is.
            thread::sleep(Duration::from_millis(u64::try_from(count / 4096).unwrap()));
        }
        assert_eq!(came, OWED);
        let finished_at = Instant::now();
        assert_eq!(tunnel.program_mut(stopped.end).wait_exit(), 0);
        let elapsed = finished_at.elapsed();
        assert!(elapsed < PROMPT, "ended {elapsed:?} after its last visitor");
    });
}

/// A tunnel whose client looks at what visitors say first, and a visitor who is in and has not
/// said anything.
#[track_caller]
fn start_with_silent_visitor(target: &TcpServer) -> (Tunnel, TcpStream) {
    let plan = Combination::plain(Flow::Forward).to(target.address());
    let plan = plan
        .client("block=1")
        .env("NP_SHUTDOWN_TIMEOUT", SHUTDOWN_TIMEOUT);
    let tunnel = plan.start();
    let silent = dial(tunnel.tcp());
    // Visitors are let in one after another: when this one is served, the other one is in.
    let other = dial(tunnel.tcp());
    (&other).write_all(b"hello there").unwrap();
    read_count(&other, 5);
    (tunnel, silent)
}

#[track_caller]
fn finish_stop(mut tunnel: Tunnel, visitor: &TcpStream) {
    visitor.shutdown(Shutdown::Write).unwrap();
    assert!(read_to_end(visitor).0.is_empty());
    assert_eq!(tunnel.client.wait_exit(), 0);
}

#[test]
fn stopping_client_serves_a_silent_visitor_whose_target_speaks_first() {
    let target = TcpServer::banner("220 ready\r\n");
    let (tunnel, silent) = start_with_silent_visitor(&target);
    stop(&tunnel, End::Client);
    assert_eq!(read_count(&silent, 11), b"220 ready\r\n");
    exchange(&silent, b"QUIT\r\n");
    finish_stop(tunnel, &silent);
}

#[test]
fn stopping_client_serves_a_silent_visitor_who_speaks_later() {
    let target = TcpServer::echo();
    let (tunnel, silent) = start_with_silent_visitor(&target);
    stop(&tunnel, End::Client);
    exchange(&silent, b"hello at last");
    finish_stop(tunnel, &silent);
}

#[test]
fn stopped_server_takes_no_new_visitors_from_its_client_and_ends_with_the_last_one() {
    let target = TcpServer::echo();
    let plan = Combination::plain(Flow::Forward).to(target.address());
    let plan = plan.env("NP_SHUTDOWN_TIMEOUT", SHUTDOWN_TIMEOUT);
    let mut tunnel = plan.env("NP_POOL_GET_TIMEOUT", "1s").start();
    let entry = tunnel.tcp();
    let visitor = dial(entry);
    exchange(&visitor, b"before");
    stop(&tunnel, End::Server);
    // A visitor is on the way for a moment when it is told.
    let is_served = || {
        let new = try_dial(entry).ok()?;
        try_exchange(&new, b"anyone there").ok()
    };
    eventually("a visitor who is not served", || {
        is_served().is_none().then_some(())
    });
    for _ in 0..3 {
        assert!(is_served().is_none(), "a new visitor was served");
    }
    exchange(&visitor, b"after");
    drop(visitor);
    let left_at = Instant::now();
    // Those who keep coming do not keep it.
    eventually("the end of the server", || {
        drop(try_dial(entry));
        (!tunnel.server.is_running()).then_some(())
    });
    let elapsed = left_at.elapsed();
    assert!(elapsed < PROMPT, "ended {elapsed:?} after its last visitor");
    assert_eq!(tunnel.server.wait_exit(), 0);
}

#[test]
fn client_starts_anew_when_its_server_comes_back_with_another_flow() {
    use crate::support::ends::{End, QUICK};
    let tunnel = free_address();
    // Where the client listens in forward flow, and goes to in reverse flow.
    let target = free_address();
    let first = TcpServer::banner("first");
    let address = first.address().to_string();
    let server = End::server(&tunnel.to_string(), &address, "mode=2", QUICK);
    server.tunnel_address();
    let client = End::client(tunnel, &target.to_string(), "min=4", QUICK);
    client.wait_up(1);
    assert_eq!(client.tcp_address(), target);
    assert_eq!(read_count(&dial(target), 5), b"first");
    server.kill();

    let server = End::server(&tunnel.to_string(), "127.0.0.1:0", "mode=1", QUICK);
    // Binds as soon as the client has gone from there.
    let second = TcpServer::banner_at(target, "second");
    client.wait_for(" is up: native, reverse");
    server.wait_for(" is up: native, reverse");
    assert_eq!(read_count(&dial(server.tcp_address()), 6), b"second");
    assert_eq!(read_count(&dial(second.address()), 6), b"second");
}
