//! What is measured over a slow link, where round trips are what costs.
//!
//! The link is made by a helper, `benches/link/delaylink.c`: two network namespaces with a wire
//! between them. Visitors and a tunnel's server are at the near end, its client and the target at
//! the far end. Namespaces and link are gone when the helper ends, which it does with this program.

use std::fs::File;
use std::io::{self, BufRead, BufReader};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::bulk::{Bulk, Direction};
use crate::load::{self, Connections};
use crate::options::Test;
use crate::peers::{Forwarder, Peer, Site};
use crate::table::{Metric, Samples};

/// What the link is like, in words and as the helper is told.
pub const DESCRIPTION: &str = "over a link of 50 ms round trip and 1 Gbit/s each way";
const DELAY_US: &str = "25000";
const RATE_MBIT_S: &str = "1000";

/// The ends of the link; the helper sets them.
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// Rest before visitors come, for a tunnel to have its connections ready.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// Visitors who wait for a first byte one after the other, and how long after the last one each
/// comes.
const FIRST_BYTE_COUNT: usize = 10;
const FIRST_BYTE_PAUSE: Duration = Duration::from_millis(200);

/// Bursts: how many visitors, and the metrics for p50, longest time and failures.
const BURSTS: [(usize, [Metric; 3]); 2] = [
    (
        32,
        [
            Metric::LinkBurst32Median,
            Metric::LinkBurst32Max,
            Metric::LinkBurst32Errors,
        ],
    ),
    (
        256,
        [
            Metric::LinkBurst256Median,
            Metric::LinkBurst256Max,
            Metric::LinkBurst256Errors,
        ],
    ),
];

/// How many visitors are there at once, and for how long, to see how many can be served.
const CONNECT_WORKERS: usize = 64;
const CONNECT_DURATION: Duration = Duration::from_secs(4);

/// How long a stream runs before it is measured: until it has found out what the link carries, and
/// all buffers on the way are full.
const BULK_WARM_UP: Duration = Duration::from_secs(3);
const BULK_DURATION: Duration = Duration::from_secs(4);

/// The running helper; the link ends when this is dropped.
pub struct Link {
    helper: Child,
}

impl Link {
    /// Makes a link, moves this thread to its near end and the site's target to its far end.
    pub fn enter(helper: &Path, site: &mut Site) -> io::Result<Link> {
        let mut link = Link {
            helper: Command::new(helper)
                .args([DELAY_US, RATE_MBIT_S])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped())
                .spawn()?,
        };
        let mut line = String::new();
        let output = link.helper.stdout.take();
        let output = output.expect("standard output was asked for");
        BufReader::new(output).read_line(&mut line)?;
        let Some((near, far)) = line.trim_end().split_once(' ') else {
            return Err(io::Error::other("there is no link"));
        };
        site.far_namespace = Some(File::open(far)?.into());
        site.server = NEAR;
        site.target = FAR;
        let near = File::open(near)?;
        move_into_link_name_space(near.as_fd(), Some(LinkNameSpaceType::Network))?;
        Ok(link)
    }

    pub fn pid(&self) -> u32 {
        self.helper.id()
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may have ended already, which is what we want.
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// Runs one of the tests over the link.
pub fn measure(
    samples: &mut Samples,
    test: Test,
    peer: &'static Peer,
    forwarder: &Forwarder,
) -> io::Result<()> {
    thread::sleep(SETTLE_TIME);
    match test {
        Test::Bulk => measure_bulk(samples, peer, forwarder),
        Test::FirstByte => {
            let mut latencies =
                load::first_bytes(forwarder.address, FIRST_BYTE_COUNT, FIRST_BYTE_PAUSE)?;
            let metrics = [
                (Metric::LinkFirstByteMedian, 50),
                (Metric::LinkFirstByteMax, 100),
            ];
            for (metric, percent) in metrics {
                samples.add(peer.name, metric, latencies.percentile_us(percent) / 1e3);
            }
            Ok(())
        }
        Test::Burst => {
            for (count, metrics) in BURSTS {
                let result = load::burst(forwarder.address, count)?;
                add_crowd(samples, peer, result, metrics, 100);
                thread::sleep(SETTLE_TIME);
            }
            Ok(())
        }
        Test::Connect => {
            let result = load::connections(forwarder.address, CONNECT_WORKERS, CONNECT_DURATION)?;
            let rate = result.latencies.count() as f64 / result.seconds;
            samples.add(peer.name, Metric::LinkConnectRate, rate);
            let metrics = [
                Metric::LinkConnectMedian,
                Metric::LinkConnectSlow,
                Metric::LinkConnectErrors,
            ];
            add_crowd(samples, peer, result, metrics, 99);
            Ok(())
        }
        // They ask what a processor can do; the link would only blur it.
        Test::PingPong | Test::Idle | Test::Udp => Ok(()),
    }
}

/// Keeps how long visitors waited, half of them and `slow_percent` of them, and how many failed.
fn add_crowd(
    samples: &mut Samples,
    peer: &'static Peer,
    mut result: Connections,
    [median, slow, errors]: [Metric; 3],
    slow_percent: usize,
) {
    samples.add(peer.name, median, result.latencies.percentile_us(50) / 1e3);
    let slow_us = result.latencies.percentile_us(slow_percent);
    samples.add(peer.name, slow, slow_us / 1e3);
    samples.add(peer.name, errors, result.errors_count.into());
}

fn measure_bulk(
    samples: &mut Samples,
    peer: &'static Peer,
    forwarder: &Forwarder,
) -> io::Result<()> {
    let directions = [
        (Direction::Up, Metric::LinkBulkUpRate),
        (Direction::Down, Metric::LinkBulkDownRate),
    ];
    for (direction, metric) in directions {
        let bulk = Bulk::start(forwarder.address, 1, direction)?;
        thread::sleep(BULK_WARM_UP);
        let bytes_before = bulk.bytes();
        let started_at = Instant::now();
        thread::sleep(BULK_DURATION);
        let megabits = (bulk.bytes() - bytes_before) as f64 * 8.0 / 1e6;
        let seconds = started_at.elapsed().as_secs_f64();
        bulk.stop()?;
        samples.add(peer.name, metric, megabits / seconds);
    }
    Ok(())
}
