//! How fast visitors are served: a pool connection carries one of them, and the next is ready.

use std::fmt::{self, Display};
use std::io::Write;
use std::net::{Shutdown, TcpStream};
use std::time::{Duration, Instant};

use crate::support::each::for_each;
use crate::support::servers::{TcpServer, echo_both};
use crate::support::tunnel::{Combination, Dialect, Flow, Tls};
use crate::support::visitors::{
    assert_closed, dial, exchange, exchange_datagram, read_count, udp_visitor,
};

/// Report interval of tunnels that are busy for long: three of them without a word of the other end
/// are the end of a session and its visitors, and a machine that runs tests may stand still for a
/// second or two.
const RARE: &str = "10s";

/// So many short visitors one after another.
struct Row {
    combination: Combination,
    visitors: usize,
}

impl Display for Row {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} visitors, {}", self.visitors, self.combination)
    }
}

#[test]
fn sixty_four_visitors_at_once_are_served_by_an_idle_tunnel_in_every_combination() {
    const VISITORS: usize = 64;
    for_each(&Combination::all(), |combination| {
        let target = TcpServer::echo();
        // More than the pool ever has ready, then as many.
        for min in [8, 64] {
            let plan = combination.to(target.address()).min(min).report("500ms");
            let tunnel = plan.start();
            for program in tunnel.programs() {
                program.wait_checkpoint(|now| now.pool >= u64::from(min));
            }
            for round in 0..3 {
                let message = |index: usize| format!("visitor {index} {round}").into_bytes();
                let visitors: Vec<TcpStream> = (0..VISITORS).map(|_| dial(tunnel.tcp())).collect();
                for (index, mut visitor) in visitors.iter().enumerate() {
                    visitor.write_all(&message(index)).unwrap();
                }
                for (index, visitor) in visitors.iter().enumerate() {
                    let sent = message(index);
                    assert_eq!(read_count(visitor, sent.len()), sent);
                }
            }
        }
    });
}

#[test]
fn two_thousand_short_visitors_one_after_another_are_all_served() {
    let mut rows = Vec::new();
    for flow in Flow::ALL {
        let plain = Combination::plain(flow);
        for combination in Combination::plainest(flow) {
            rows.push(Row {
                combination,
                visitors: if combination == plain { 2000 } else { 500 },
            });
        }
        for combination in [plain.with_tls(Tls::SelfSigned), plain.in_v1()] {
            if Tls::built_in().contains(&combination.tls) {
                rows.push(Row {
                    combination,
                    visitors: 300,
                });
            }
        }
    }
    for_each(&rows, |row| {
        let target = TcpServer::echo();
        let plan = row.combination.to(target.address()).report(RARE);
        let tunnel = plan.start();
        let address = tunnel.tcp();
        for index in 0..row.visitors {
            let visitor = dial(address);
            exchange(&visitor, format!("visitor {index}").as_bytes());
            visitor.shutdown(Shutdown::Write).unwrap();
            assert_closed(&visitor);
        }
    });
}

#[test]
fn new_visitors_of_both_protocols_are_served_beside_each_other() {
    for_each(&Combination::all(), |combination| {
        let (tcp, _udp) = echo_both();
        let tunnel = combination.to(tcp.address()).report(RARE).start();
        for index in 0..30 {
            let message = format!("round {index}").into_bytes();
            exchange(&dial(tunnel.tcp()), &message);
            exchange_datagram(&udp_visitor(tunnel.udp()), &message);
        }
    });
}

#[test]
fn visitor_of_an_idle_tunnel_waits_for_no_tick() {
    // With ticks as rare as these, whoever waits for one is noticed.
    const TICK: &str = "30s";
    const PATIENCE: Duration = Duration::from_secs(10);
    let mut all = Combination::all();
    all.retain(|combination| combination.dialect == Dialect::Native);
    for_each(&all, |combination| {
        let target = TcpServer::echo();
        let tunnel = combination
            .to(target.address())
            .min(2)
            .report(TICK)
            .env("NP_MAX_POOL_INTERVAL", TICK)
            .env("NP_MIN_POOL_INTERVAL", TICK)
            .start();
        let began = Instant::now();
        let mut open = Vec::new();
        for index in 0..20 {
            let visitor = dial(tunnel.tcp());
            exchange(&visitor, format!("visitor {index}").as_bytes());
            open.push(visitor);
        }
        let elapsed = began.elapsed();
        assert!(elapsed < PATIENCE, "20 visitors took {elapsed:?}");
    });
}
