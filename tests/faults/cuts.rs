//! The way between the two ends: cut, frozen, thawed.

use std::time::{Duration, Instant};

use crate::support::each::for_each;
use crate::support::ends::{End, QUICK};
use crate::support::eventually;
use crate::support::proxy::{Death, Proxy, Which};
use crate::support::servers::TcpServer;
use crate::support::tunnel::{Combination, Flow};
use crate::support::visitors::{assert_closed, dial, exchange};

/// Three report intervals of [`QUICK`], and what a busy machine may add.
const SILENCE_NOTICED: Duration = Duration::from_millis(3 * 300 + 1500);

/// A tunnel whose ends meet in a proxy.
struct Cuttable {
    server: End,
    client: End,
    proxy: Proxy,
    _target: TcpServer,
}

impl Cuttable {
    fn start(combination: Combination) -> Self {
        let target = TcpServer::echo();
        let options = format!("mode=1&{}", combination.server_options());
        let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, QUICK);
        let proxy = Proxy::start(server.tunnel_address());
        let address = target.address().to_string();
        let client = End::client(proxy.address(), &address, "min=4", QUICK);
        server.wait_up(1);
        client.wait_up(1);
        Self {
            server,
            client,
            proxy,
            _target: target,
        }
    }

    /// The session ends at both ends, and with it `visitor`; the next one serves the next visitor.
    #[track_caller]
    fn check_recovery(&self, visitor: &std::net::TcpStream) {
        self.server.wait_ended(1, &[]);
        self.client.wait_ended(1, &["Client error: session with"]);
        assert_closed(visitor);
        self.proxy.thaw();
        self.client.wait_up(2);
        self.server.wait_up(2);
        exchange(&dial(self.server.tcp_address()), b"after");
    }

    #[track_caller]
    fn check_cut(combination: Combination, death: Death) {
        let tunnel = Self::start(combination);
        let visitor = dial(tunnel.server.tcp_address());
        exchange(&visitor, b"before");
        assert_eq!(tunnel.proxy.kill(Which::Control, death), 1);
        tunnel.check_recovery(&visitor);
        assert_eq!(tunnel.proxy.count(Which::Control), 1);
    }

    #[track_caller]
    fn check_freeze(combination: Combination, which: Which) {
        let tunnel = Self::start(combination);
        let visitor = dial(tunnel.server.tcp_address());
        exchange(&visitor, b"before");
        let frozen_at = Instant::now();
        assert!(tunnel.proxy.freeze(which) > 0);
        tunnel.server.wait_ended(1, &[]);
        tunnel.client.wait_ended(1, &["Client error: session with"]);
        let elapsed = frozen_at.elapsed();
        assert!(elapsed < SILENCE_NOTICED, "noticed after {elapsed:?}");
        tunnel.check_recovery(&visitor);
    }
}

#[test]
fn control_channel_that_ends_ends_the_session_and_the_next_one_serves() {
    for_each(&Combination::with_own_connections(), |combination| {
        Cuttable::check_cut(*combination, Death::Finished);
    });
}

#[test]
fn control_channel_that_is_reset_ends_the_session_and_the_next_one_serves() {
    for_each(&Combination::with_own_connections(), |combination| {
        Cuttable::check_cut(*combination, Death::Reset);
    });
}

#[test]
fn control_channel_that_freezes_ends_the_session_and_the_next_one_serves() {
    for_each(&Combination::with_own_connections(), |combination| {
        Cuttable::check_freeze(*combination, Which::Control);
    });
}

#[test]
fn network_that_freezes_ends_the_session_and_serves_again_when_it_thaws() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        Cuttable::check_freeze(*combination, Which::All);
    });
}

#[test]
fn network_that_freezes_for_an_interval_costs_nothing() {
    for_each(&Combination::plainest(Flow::Reverse), |combination| {
        let tunnel = Cuttable::start(*combination);
        let visitor = dial(tunnel.server.tcp_address());
        exchange(&visitor, b"before");
        let pause = Duration::from_millis(300);
        let frozen_at = Instant::now();
        tunnel.proxy.freeze(Which::All);
        eventually("an interval", || {
            (frozen_at.elapsed() >= pause).then_some(())
        });
        tunnel.proxy.thaw();
        exchange(&visitor, b"after");
        exchange(&dial(tunnel.server.tcp_address()), b"another one");
        assert_eq!(tunnel.server.ended_count() + tunnel.client.ended_count(), 0);
    });
}

#[test]
fn whole_network_that_is_reset_again_and_again_serves_every_time() {
    for_each(&Combination::over_tcp(), |combination| {
        let tunnel = Cuttable::start(*combination);
        for count in 1..=3 {
            tunnel.proxy.kill(Which::All, Death::Reset);
            tunnel
                .client
                .wait_ended(count, &["Client error: session with"]);
            tunnel.client.wait_up(count + 1);
            tunnel.server.wait_up(count + 1);
            exchange(&dial(tunnel.server.tcp_address()), b"served");
        }
    });
}
