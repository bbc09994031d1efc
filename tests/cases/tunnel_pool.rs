//! How many connections a pool keeps ready, seen from its visitors and from the reports.

use std::net::TcpStream;
use std::thread;
use std::time::{Duration, Instant};

use crate::support::each::for_each;
use crate::support::eventually;
use crate::support::servers::TcpServer;
use crate::support::tunnel::{Combination, Flow, Tunnel};
use crate::support::visitors::{dial, exchange};

/// The least level of the pools here.
const MIN: u32 = 8;

/// At rest a pool holds this much at most: half as much again is closed.
const REST_MAX: u64 = 12;

/// Idle connections, as both ends last said.
fn pools(tunnel: &Tunnel) -> [u64; 2] {
    tunnel
        .programs()
        .map(|program| program.checkpoints().last().map_or(0, |now| now.pool))
}

/// So many visitors at the same time, all of whom are served.
#[track_caller]
fn burst(tunnel: &Tunnel, count: usize) {
    let visitors: Vec<TcpStream> = (0..count).map(|_| dial(tunnel.tcp())).collect();
    for visitor in &visitors {
        exchange(visitor, b"one of many");
    }
}

#[test]
fn pool_grows_with_bursts_and_shrinks_in_quiet_at_the_cost_of_no_visitor() {
    const BURST: usize = 100;
    const GROWN: u64 = 100;
    for_each(&Flow::ALL, |flow| {
        let target = TcpServer::echo();
        let plan = Combination::plain(*flow).to(target.address());
        let plan = plan.min(MIN).max(256).report("200ms");
        let tunnel = plan
            .env("NP_MIN_POOL_INTERVAL", "20ms")
            .env("NP_MAX_POOL_INTERVAL", "100ms")
            .start();
        let grown = eventually("a pool that bursts have made larger", || {
            burst(&tunnel, BURST);
            let smallest = pools(&tunnel).into_iter().min()?;
            (smallest > GROWN).then_some(smallest)
        });
        let at_rest = u64::from(MIN)..=REST_MAX;
        let mut single_count = 0;
        eventually("a pool at rest", || {
            // The quiet is one of single visitors.
            exchange(&dial(tunnel.tcp()), b"one by one");
            single_count += 1;
            thread::sleep(Duration::from_millis(100));
            pools(&tunnel)
                .iter()
                .all(|pool| at_rest.contains(pool))
                .then_some(())
        });
        // Were they only used up, there would have to be a visitor for each.
        assert!(
            single_count + REST_MAX < grown,
            "{single_count} visitors came while {grown} idle connections became few"
        );
        for program in tunnel.programs() {
            assert_eq!(program.count(" ended: "), 0);
        }
    });
}

#[test]
fn pool_without_room_to_grow_keeps_nobody_waiting() {
    const VISITORS: usize = 300;
    const MEDIAN_MAX: Duration = Duration::from_millis(100);
    const LONGEST_MAX: Duration = Duration::from_millis(500);
    let target = TcpServer::echo();
    let plan = Combination::plain(Flow::Forward).to(target.address());
    let tunnel = plan.min(64).max(64).start();
    tunnel.client.wait_checkpoint(|now| now.pool >= 60);
    let address = tunnel.tcp();
    let mut times: Vec<Duration> = (0..VISITORS)
        .map(|_| {
            let began = Instant::now();
            exchange(&dial(address), b"at once");
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    let (median, longest) = (times[VISITORS / 2], times[VISITORS - 1]);
    assert!(
        median < MEDIAN_MAX && longest < LONGEST_MAX,
        "half of the visitors took up to {median:?}, the slowest one {longest:?}"
    );
    let mut complaints = tunnel.client.complaints();
    complaints.retain(|line| line.to_ascii_lowercase().contains("pool"));
    assert!(complaints.is_empty(), "{complaints:?}");
}
