//! Programs that are killed, come back, or stand still.

use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use rustix::process::Signal;

use crate::support::each::for_each;
use crate::support::ends::{End, QUICK, Reverse};
use crate::support::servers::TcpServer;
use crate::support::tunnel::{Combination, Flow};
use crate::support::visitors::{assert_closed, dial, exchange, read_count};
use crate::support::{eventually, free_address};

/// Three report intervals of [`QUICK`], and what a busy machine may add.
const SILENCE_NOTICED: Duration = Duration::from_millis(3 * 300 + 1500);

/// The cool-down of [`QUICK`] with its jitter, a second, and what a busy machine may add.
const BACK_AGAIN: Duration = Duration::from_millis(375 + 1000 + 1500);

/// Asks who serves new visitors: `None` if the connection ends instead.
fn name_of_server(entry: SocketAddr) -> Option<Vec<u8>> {
    use std::io::Read;
    let mut name = [0];
    dial(entry).read_exact(&mut name).ok()?;
    Some(name.to_vec())
}

/// Waits until new visitors are served by an echo server, and for no longer than `limit`.
#[track_caller]
fn wait_served(entry: SocketAddr, since: Instant, limit: Duration) {
    eventually("a visitor that is served", || {
        let visitor = crate::support::visitors::try_dial(entry).ok()?;
        crate::support::visitors::try_exchange(&visitor, b"anyone there").ok()
    });
    let elapsed = since.elapsed();
    assert!(elapsed < limit, "served after {elapsed:?}");
}

#[test]
fn client_that_is_killed_takes_only_its_own_visitors_along() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let (a, b) = (TcpServer::banner("a"), TcpServer::banner("b"));
        let Reverse {
            server,
            client: client_a,
            entry,
            tunnel,
        } = Reverse::start(a.address(), &combination.server_options(), "min=4");
        let target_b = b.address().to_string();
        let client_b = End::client(tunnel, &target_b, "min=4", QUICK);
        server.wait_up(2);
        client_b.wait_up(1);
        // One that has no connection ready is passed over.
        server.wait_checkpoint(|now| now.pool >= 8);
        // Visitors are spread over both, so two in a row know both names.
        let visitors: Vec<(Vec<u8>, TcpStream)> = (0..8)
            .map(|_| dial(entry))
            .map(|visitor| (read_count(&visitor, 1), visitor))
            .collect();
        for name in [b"a", b"b"] {
            let count = visitors.iter().filter(|(found, _)| found == name).count();
            assert_eq!(count, 4, "of eight visitors in a row");
        }
        client_a.kill();
        server.wait_ended(1, &[]);
        for (name, visitor) in &visitors {
            if name == b"b" {
                exchange(visitor, b"undisturbed");
            } else {
                assert_closed(visitor);
            }
        }
        for _ in 0..8 {
            assert_eq!(name_of_server(entry).as_deref(), Some(&b"b"[..]));
        }
        let started_at = Instant::now();
        let target_a = a.address().to_string();
        let _client_a = End::client(tunnel, &target_a, "min=4", QUICK);
        eventually("a visitor of the one that came back", || {
            (name_of_server(entry)? == b"a").then_some(())
        });
        let elapsed = started_at.elapsed();
        assert!(elapsed < BACK_AGAIN, "back after {elapsed:?}");
        assert_eq!(client_b.ended_count(), 0);
    });
}

#[test]
fn visitors_of_the_moment_in_which_a_client_is_killed_go_to_the_other_one() {
    for_each(&Combination::over_tcp(), |combination| {
        let (a, b) = (TcpServer::banner("a"), TcpServer::banner("b"));
        let both = Reverse::start(a.address(), &combination.server_options(), "min=4");
        let target_b = b.address().to_string();
        let _client_b = End::client(both.tunnel, &target_b, "min=4", QUICK);
        both.server.wait_up(2);
        both.client.kill();
        // The kernel has closed its connections: none of them may be handed out.
        for _ in 0..8 {
            assert_eq!(name_of_server(both.entry).as_deref(), Some(&b"b"[..]));
        }
    });
}

#[test]
fn server_that_is_killed_and_started_again_is_found_by_its_client() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let target = TcpServer::echo();
        let (tunnel, entry) = (free_address(), free_address());
        let start_server = || {
            let (tunnel, entry) = (tunnel.to_string(), entry.to_string());
            let options = format!("mode=1&{}", combination.server_options());
            End::server(&tunnel, &entry, &options, QUICK)
        };
        let server = start_server();
        assert_eq!(server.tunnel_address(), tunnel);
        let client = End::client(tunnel, &target.address().to_string(), "min=4", QUICK);
        client.wait_up(1);
        let visitor = dial(entry);
        exchange(&visitor, b"before");
        server.kill();
        assert_closed(&visitor);
        client.wait_ended(1, &["Client error: session with"]);
        let server = start_server();
        server.tunnel_address();
        let started_at = Instant::now();
        client.wait_up(2);
        // The pauses have grown by then, to twice the cool-down or four times at most.
        wait_served(entry, started_at, BACK_AGAIN + Duration::from_millis(1200));
    });
}

#[test]
fn client_without_a_server_waits_for_one() {
    let target = TcpServer::echo();
    let (tunnel, entry) = (free_address(), free_address());
    let mut client = End::client(tunnel, &target.address().to_string(), "min=4", QUICK);
    client.wait_complaint(&["Client error: ", "refused"]);
    client.wait_for("Trying again in ");
    assert!(client.is_running());
    let entry_text = entry.to_string();
    let _server = End::server(&tunnel.to_string(), &entry_text, "mode=1", QUICK);
    client.wait_up(1);
    exchange(&dial(entry), b"served");
}

#[test]
fn client_that_stands_still_is_noticed_and_comes_back() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let target = TcpServer::echo();
        let both = Reverse::start(target.address(), &combination.server_options(), "min=4");
        let visitor = dial(both.entry);
        exchange(&visitor, b"before");
        let stopped_at = Instant::now();
        both.client.signal(Signal::STOP);
        both.server.wait_ended(1, &[]);
        let elapsed = stopped_at.elapsed();
        assert!(elapsed < SILENCE_NOTICED, "noticed after {elapsed:?}");
        assert_closed(&visitor);
        both.client.signal(Signal::CONT);
        both.client.wait_ended(1, &["Client error: session with"]);
        both.server.wait_up(2);
        exchange(&dial(both.entry), b"after");
    });
}

#[test]
fn server_that_stands_still_is_noticed_and_found_again() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let target = TcpServer::echo();
        let both = Reverse::start(target.address(), &combination.server_options(), "min=4");
        exchange(&dial(both.entry), b"before");
        let stopped_at = Instant::now();
        both.server.signal(Signal::STOP);
        both.client.wait_ended(1, &["Client error: session with"]);
        let elapsed = stopped_at.elapsed();
        assert!(elapsed < SILENCE_NOTICED, "noticed after {elapsed:?}");
        both.server.signal(Signal::CONT);
        both.client.wait_up(2);
        wait_served(both.entry, Instant::now(), BACK_AGAIN);
    });
}

#[test]
fn client_that_stops_in_peace_says_so_and_its_visitors_may_finish() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let target = TcpServer::echo();
        let Reverse {
            server,
            mut client,
            entry,
            ..
        } = Reverse::start(target.address(), &combination.server_options(), "min=4");
        exchange(&dial(entry), b"before");
        let stopped_at = Instant::now();
        client.signal(Signal::TERM);
        assert_eq!(client.wait_exit(), 0);
        server.wait_ended(1, &[]);
        let elapsed = stopped_at.elapsed();
        assert!(elapsed < SILENCE_NOTICED, "dropped after {elapsed:?}");
    });
}
