//! The tunnel from start to stop: modes, counters, restarts, draining, exit statuses.

use std::io::Write;
use std::net::{Shutdown, SocketAddr, TcpListener};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::each::for_each;
use crate::support::pattern::Pattern;
use crate::support::program::{Checkpoint, Launch, Program};
use crate::support::servers::{TcpServer, UdpServer, echo_both, set_deadline};
use crate::support::tunnel::{Combination, Dialect, End, Flow, Place, Tunnel};
use crate::support::visitors::{
    End as StreamEnd, assert_closed, dial, exchange, exchange_datagram, read_count, read_to_end,
    receive_datagram, try_dial, try_exchange, udp_visitor, wait_refused,
};
use crate::support::{DEADLINE, eventually, free_address, own_loopback};

/// How soon a program ends that has nothing to wait for.
const PROMPT: Duration = Duration::from_secs(5);

#[track_caller]
fn assert_serves(tunnel: &Tunnel) {
    exchange(&dial(tunnel.tcp()), b"through the tunnel");
}

// Modes.

/// The line at level info that says what a mode 0 has become.
#[track_caller]
fn assert_chosen(program: &Program, mode: &str) {
    let line = program.wait_for("chosen");
    assert!(line.contains(" INFO ") && line.contains(mode), "{line}");
}

#[test]
fn mode_0_is_reverse_where_the_server_can_bind_the_target() {
    let (tcp, _udp) = echo_both();
    let plan = Combination::plain(Flow::Reverse).to(tcp.address());
    let tunnel = plan.server("mode=0").client("mode=0").start();
    assert_serves(&tunnel);
    exchange_datagram(&udp_visitor(tunnel.udp()), b"udp");
    assert_chosen(&tunnel.server, "reverse");
    assert_chosen(&tunnel.client, "dual-end");
}

#[test]
fn mode_0_is_forward_where_the_server_cannot_bind_the_target() {
    // Its own server has it.
    let (tcp, _udp) = echo_both();
    let plan = Combination::plain(Flow::Forward).to(tcp.address());
    let tunnel = plan.server("mode=0").client("mode=0").start();
    assert_serves(&tunnel);
    exchange_datagram(&udp_visitor(tunnel.udp()), b"udp");
    assert_chosen(&tunnel.server, "forward");
    assert_chosen(&tunnel.client, "dual-end");
}

#[test]
fn checkpoints_of_both_ends_name_mode_and_round_trip() {
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        let tunnel = combination.to(target.address()).report("500ms").start();
        for (program, mode) in [
            (&tunnel.server, combination.flow.mode()),
            (&tunnel.client, 2),
        ] {
            // The round trip has been measured by the second one.
            program.checkpoint();
            let now = program.checkpoint();
            assert_eq!(now.mode, mode);
            assert!(now.ping < 1000, "round trip of {} ms", now.ping);
        }
    });
}

// Counters.

#[test]
fn checkpoints_of_both_ends_count_every_byte_in_every_combination() {
    const REQUEST: usize = 300_001;
    const ANSWER: usize = 1_000_003;
    for_each(&Combination::all(), |combination| {
        let address = free_address();
        let _tcp = TcpServer::start_at(address, |mut stream| {
            set_deadline(stream);
            assert!(read_count(stream, REQUEST) == Pattern::new(3).take(REQUEST));
            stream.write_all(&Pattern::new(1).take(ANSWER)).unwrap();
        });
        let _udp = UdpServer::start_at(address, |socket, datagram, sender| {
            let answer = Pattern::new(2).take(datagram.len() * 3);
            socket.send_to(&answer, sender).unwrap();
        });
        let tunnel = combination.to(address).report("300ms").start();
        for _ in 0..2 {
            let visitor = dial(tunnel.tcp());
            thread::scope(|scope| {
                scope.spawn(|| {
                    let request = Pattern::new(3).take(REQUEST);
                    (&visitor).write_all(&request).unwrap();
                    visitor.shutdown(Shutdown::Write).unwrap();
                });
                assert!(read_to_end(&visitor).0 == Pattern::new(1).take(ANSWER));
            });
        }
        let visitor = udp_visitor(tunnel.udp());
        for size in [1, 1000, 5000] {
            visitor.send(&vec![0; size]).unwrap();
            let mut came = receive_datagram(&visitor).len();
            // What has no boundaries may come in parts.
            while came < size * 3 && size * 3 > combination.datagram_size_max() {
                came += receive_datagram(&visitor).len();
            }
            assert_eq!(came, size * 3);
        }
        let count = |number: usize| u64::try_from(number).unwrap();
        // Seen from the entry; the exit reads what the entry writes, and the other way round.
        let tcp = (count(2 * REQUEST), count(2 * ANSWER));
        let udp = (6001, 18_003);
        let swap = |(received, sent)| (sent, received);
        for (program, tcp, udp) in [
            (tunnel.entry(), tcp, udp),
            (tunnel.exit(), swap(tcp), swap(udp)),
        ] {
            program.wait_checkpoint(|now| now.tcp_sessions == 0);
            let now = program.checkpoint();
            assert_eq!((now.tcp_received, now.tcp_sent), tcp, "TCP");
            assert_eq!((now.udp_received, now.udp_sent), udp, "UDP");
            assert_eq!(now.udp_sessions, 1);
        }
    });
}

#[test]
fn checkpoints_of_both_ends_count_a_connection_while_it_lasts() {
    for_each(&Flow::ALL, |flow| {
        let target = TcpServer::echo();
        let plan = Combination::plain(*flow).to(target.address());
        let tunnel = plan.report("500ms").start();
        let visitor = dial(tunnel.tcp());
        exchange(&visitor, &[b'x'; 1000]);
        let is_counted = |now: &Checkpoint| (now.tcp_received, now.tcp_sent) == (1000, 1000);
        for program in tunnel.programs() {
            let now = program.wait_checkpoint(is_counted);
            assert_eq!(now.tcp_sessions, 1);
        }
    });
}

// Restarts.

#[test]
fn restarted_end_takes_the_tunnel_up_again_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        let mut tunnel = combination.to(target.address()).start();
        for end in [End::Client, End::Server] {
            let open = dial(tunnel.tcp());
            exchange(&open, b"before");
            tunnel.restart(end);
            assert_closed(&open);
            eventually("service after the restart", || {
                try_exchange(&try_dial(tunnel.tcp()).ok()?, b"after").ok()
            });
        }
    });
}

/// Kills a program on the way of an open connection: what the system closes for it must not look
/// like the whole, neither to the visitor at `entry` nor to the target.
fn check_killed(entry: impl FnOnce(&TcpServer) -> (SocketAddr, Box<dyn FnOnce()>)) {
    let (tell, told) = mpsc::channel();
    let target = TcpServer::start(move |mut stream| {
        exchange(stream, b"said both ways");
        stream.write_all(b".").unwrap();
        tell.send(read_to_end(stream).1).unwrap();
    });
    let (entry, kill) = entry(&target);
    let mut visitor = dial(entry);
    let words = read_count(&visitor, 14);
    visitor.write_all(&words).unwrap();
    assert_eq!(read_count(&visitor, 1), b".");
    kill();
    assert_eq!(read_to_end(&visitor).1, StreamEnd::Reset, "the visitor");
    let at_target = told.recv_timeout(DEADLINE).unwrap();
    assert_eq!(at_target, StreamEnd::Reset, "the target");
}

#[test]
fn killed_end_looks_like_no_end_in_every_combination() {
    let mut combinations = Combination::all();
    // Some types cannot tell in v1.
    combinations.retain(|combination| combination.dialect == Dialect::Native);
    for_each(&combinations, |combination| {
        for end in [End::Client, End::Server] {
            check_killed(|target| {
                let plan = combination.to(target.address());
                let mut tunnel = plan.report("300ms").start();
                let entry = tunnel.tcp();
                (entry, Box::new(move || tunnel.program_mut(end).kill()))
            });
        }
    });
}

#[test]
fn killed_forwarder_looks_like_no_end() {
    check_killed(|target| {
        let mut forwarder = Program::forward_to(target.address(), "");
        let entry = forwarder.tcp_address();
        (entry, Box::new(move || forwarder.kill()))
    });
}

#[test]
fn stopped_end_is_given_up_and_found_again_in_every_combination() {
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        let tunnel = combination.to(target.address()).report("300ms").start();
        assert_serves(&tunnel);
        for end in [End::Client, End::Server] {
            let other = tunnel.program(end.other());
            let ends_count = other.count(" ended: ");
            tunnel.program(end).signal(Signal::STOP);
            other.wait_for_count(" ended: ", ends_count + 1);
            tunnel.program(end).signal(Signal::CONT);
            eventually("service after the pause", || {
                try_exchange(&try_dial(tunnel.tcp()).ok()?, b"after").ok()
            });
        }
    });
}

#[test]
fn session_outlives_a_standstill_of_both_ends_longer_than_their_patience() {
    const INTERVAL: Duration = Duration::from_secs(2);
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let target = TcpServer::echo();
        let tunnel = combination.to(target.address()).report("2s").start();
        let visitor = dial(tunnel.tcp());
        exchange(&visitor, b"before");
        for program in tunnel.programs() {
            program.signal(Signal::STOP);
        }
        // Three intervals of silence end a session.
        thread::sleep(INTERVAL * 4);
        for program in tunnel.programs() {
            program.signal(Signal::CONT);
        }
        for program in tunnel.programs() {
            // The first one may have been due before.
            program.checkpoint();
            program.checkpoint();
            assert_eq!(program.count(" ended: "), 0);
        }
        exchange(&visitor, b"after");
    });
}

#[test]
fn visitor_that_comes_before_the_client_is_served_by_it() {
    let target = TcpServer::echo();
    let tunnel_address = free_address();
    let server = Program::start(&format!(
        "server://k3y@{tunnel_address}/{}:0?mode=1&log=debug",
        own_loopback()
    ));
    let visitor = dial(server.tcp_address());
    (&visitor).write_all(b"early").unwrap();
    let _client = Program::start(&format!(
        "client://k3y@{tunnel_address}/{}?mode=2&log=debug",
        target.address()
    ));
    let mut answer = [0; 5];
    std::io::Read::read_exact(&mut &visitor, &mut answer).unwrap();
    assert_eq!(&answer, b"early");
}

#[test]
fn visitor_without_any_client_is_closed_after_the_pool_time() {
    let server = Launch::new(&[&format!(
        "server://k3y@{}:0/{}:0?mode=1&log=debug",
        own_loopback(),
        own_loopback()
    )])
    .env("NP_POOL_GET_TIMEOUT", "700ms")
    .start();
    let began = Instant::now();
    let visitor = dial(server.tcp_address());
    let name = visitor.local_addr().unwrap().to_string();
    assert_closed(&visitor);
    let elapsed = began.elapsed();
    let range = Duration::from_millis(600)..PROMPT;
    assert!(range.contains(&elapsed), "closed after {elapsed:?}");
    server.wait_complaint(&["Visitor", &name, "not served"]);
}

#[test]
fn client_that_comes_before_the_server_finds_it() {
    let target = TcpServer::echo();
    let address = free_address();
    let url = format!("client://k3y@{address}/{}?mode=2", target.address());
    let client = Launch::new(&[&url])
        .env("NP_SERVICE_COOLDOWN", "100ms")
        .start();
    client.wait_for("Client error: ");
    client.wait_for("Trying again in ");
    let url = format!("server://k3y@{address}/{}:0?mode=1", own_loopback());
    let server = Program::start(&url);
    client.wait_for(" is up: native, reverse, tls=0, type=0");
    exchange(&dial(server.tcp_address()), b"at last");
}

#[test]
fn taken_tunnel_port_is_an_error_until_it_is_free() {
    let address = free_address();
    let holder = TcpListener::bind(address).unwrap();
    let url = format!("server://k3y@{address}/{}:0?mode=1", own_loopback());
    let mut server = Launch::new(&[&url])
        .env("NP_SERVICE_COOLDOWN", "100ms")
        .start();
    let line = server.wait_for("Server error: ");
    assert!(line.contains(&address.to_string()), "{line}");
    drop(holder);
    assert_eq!(server.tunnel_address(), address);
    server.signal(Signal::TERM);
    assert_eq!(server.wait_exit(), 0);
}

// The end.

#[test]
fn termination_of_either_end_lets_open_transfers_finish() {
    const TRANSFERS: usize = 10;
    const CHUNK: usize = 32 * 1024;
    for_each(&Place::all(), |place| {
        let target = TcpServer::echo();
        let plan = Combination::plain(place.flow).to(target.address());
        let mut tunnel = plan.env("NP_SHUTDOWN_TIMEOUT", "30s").start();
        let (address, tunnel_address) = (tunnel.tcp(), tunnel.tunnel_address());
        let mut transfers: Vec<_> = (0..TRANSFERS)
            .map(|index| (dial(address), Pattern::new(u64::try_from(index).unwrap())))
            .collect();
        let mut advance = |chunks: usize| {
            for _ in 0..chunks {
                for (visitor, pattern) in &mut transfers {
                    exchange(visitor, &pattern.take(CHUNK));
                }
            }
        };
        advance(3);
        tunnel.program(place.end).signal(Signal::TERM);
        if place.is_entry() {
            wait_refused(address);
        }
        if place.end == End::Server {
            wait_refused(tunnel_address);
        }
        assert!(tunnel.program_mut(place.end).is_running());
        advance(3);
        for (visitor, _) in &transfers {
            visitor.shutdown(Shutdown::Write).unwrap();
            assert_closed(visitor);
        }
        let finished_at = Instant::now();
        assert_eq!(tunnel.program_mut(place.end).wait_exit(), 0);
        let elapsed = finished_at.elapsed();
        assert!(
            elapsed < PROMPT,
            "ended {elapsed:?} after its last connection"
        );
        assert!(tunnel.program_mut(place.end.other()).is_running());
    });
}

#[test]
fn open_connections_are_ended_after_the_shutdown_time_of_either_end() {
    for_each(&Place::all(), |place| {
        let (tcp, _udp) = echo_both();
        let plan = Combination::plain(place.flow).to(tcp.address());
        let mut tunnel = plan.env("NP_SHUTDOWN_TIMEOUT", "1s").start();
        let visitor = dial(tunnel.tcp());
        exchange(&visitor, b"then silent");
        exchange_datagram(&udp_visitor(tunnel.udp()), b"then silent");
        let signalled_at = Instant::now();
        tunnel.program(place.end).signal(Signal::TERM);
        assert_closed(&visitor);
        let elapsed = signalled_at.elapsed();
        assert!(
            elapsed >= Duration::from_millis(900),
            "ended after {elapsed:?}"
        );
        assert_eq!(tunnel.program_mut(place.end).wait_exit(), 0);
        let elapsed = signalled_at.elapsed();
        assert!(elapsed < PROMPT, "took {elapsed:?}");
    });
}

#[test]
fn termination_of_an_idle_end_is_immediate_and_told_to_the_other() {
    for_each(&Place::all(), |place| {
        for signal in [Signal::TERM, Signal::INT] {
            let target = TcpServer::echo();
            let plan = Combination::plain(place.flow).to(target.address());
            // No silence makes the other end notice.
            let plan = plan.report("30s").env("NP_SHUTDOWN_TIMEOUT", "30s");
            let mut tunnel = plan.start();
            assert_serves(&tunnel);
            let signalled_at = Instant::now();
            tunnel.program(place.end).signal(signal);
            assert_eq!(tunnel.program_mut(place.end).wait_exit(), 0, "{signal:?}");
            tunnel.program(place.end.other()).wait_for(" ended: ");
            let elapsed = signalled_at.elapsed();
            assert!(elapsed < PROMPT, "took {elapsed:?}");
        }
    });
}

#[test]
fn second_signal_ends_either_end_at_once() {
    for_each(&Place::all(), |place| {
        let target = TcpServer::echo();
        let plan = Combination::plain(place.flow).to(target.address());
        let mut tunnel = plan.env("NP_SHUTDOWN_TIMEOUT", "30s").start();
        let visitor = dial(tunnel.tcp());
        exchange(&visitor, b"then silent");
        let program = tunnel.program_mut(place.end);
        program.signal(Signal::TERM);
        program.wait_for("stopping");
        assert!(program.is_running());
        let signalled_at = Instant::now();
        program.signal(Signal::TERM);
        assert_eq!(program.wait_exit(), 0);
        let elapsed = signalled_at.elapsed();
        assert!(elapsed < PROMPT, "took {elapsed:?}");
        assert_closed(&visitor);
    });
}

#[test]
fn lone_end_ends_at_once() {
    let server = format!(
        "server://k3y@{}:0/{}:0?mode=1",
        own_loopback(),
        own_loopback()
    );
    let client = format!("client://k3y@{}/{}?mode=2", free_address(), free_address());
    for (url, line) in [
        (&server, "Server started: server://***@"),
        (&client, "Client error: "),
    ] {
        for signal in [Signal::TERM, Signal::INT] {
            let mut program = Program::start(url);
            program.wait_for(line);
            let signalled_at = Instant::now();
            program.signal(signal);
            assert_eq!(program.wait_exit(), 0, "{url}");
            let elapsed = signalled_at.elapsed();
            assert!(elapsed < PROMPT, "took {elapsed:?}");
        }
    }
}
