//! What is measured over a slow link, where round trips are what costs.
//!
//! The link is made by a helper, `benches/link/delaylink.c`: two network namespaces with a wire
//! between them. Visitors and a tunnel's server are at the near end, its client and the target at
//! the far end. Namespaces and link are gone when the helper ends, which it does with this program.

use std::fs::{self, File};
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
use crate::options::{Options, Test};
use crate::peers::{Forwarder, Peer, Site, search_path};
use crate::table::{Metric, Samples};
use crate::target::Target;

/// What the link is like, in words and as the helper is told: the delay is that of one way.
const DESCRIPTION: &str = "over a link of 50 ms round trip and 1 Gbit/s each way";
const DELAY_US: &str = "25000";
const RATE_MBIT_S: &str = "1000";

/// The ends of the link; the helper sets them.
const NEAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 1));
const FAR: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 2));

/// The network of the link and its device, which both ends have.
const NETWORK: &str = "192.0.2.0/30";
const DEVICE: &str = "link0";

/// What congestion control TCP begins with in the namespace of the thread that reads it.
const CONGESTION_FILE: &str = "/proc/sys/net/ipv4/tcp_congestion_control";

/// Rest before visitors come, for a tunnel to have its connections ready.
const SETTLE_TIME: Duration = Duration::from_secs(2);

/// Visitors who wait for a first byte one after the other, and how long after the last one each
/// comes.
const FIRST_BYTE_COUNT: usize = 10;
const FIRST_BYTE_PAUSE: Duration = Duration::from_millis(200);

/// The same where packets get lost: enough visitors for some of them to meet a loss.
const LOSSY_FIRST_BYTE_COUNT: usize = 200;
const LOSSY_FIRST_BYTE_PAUSE: Duration = Duration::from_millis(50);

/// How often each burst comes where packets get lost.
const LOSSY_BURST_REPEATS: usize = 3;

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

/// How long a stream runs before it is measured: until it has found out what the link carries.
const BULK_WARM_UP: Duration = Duration::from_secs(3);

/// How many streams there are when there are many.
const MANY_STREAMS: usize = 8;

/// The running helper; the link ends when this is dropped.
pub struct Link {
    helper: Child,
    loss_percent: f64,
    /// Congestion control of TCP.
    congestion: String,
    bulk_duration: Duration,
}

impl Link {
    /// Makes a link, moves this thread to its near end and the site's target to its far end.
    pub fn enter(helper: &Path, options: &Options, site: &mut Site) -> io::Result<Link> {
        let loss_permille = (options.loss_percent * 10.0).to_string();
        let mut link = Link {
            loss_percent: options.loss_percent,
            congestion: String::new(),
            bulk_duration: options.duration,
            helper: Command::new(helper)
                .args([DELAY_US, RATE_MBIT_S, &loss_permille])
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
        link.congestion = match &options.congestion {
            Some(name) => {
                choose_congestion(name, site)?;
                name.clone()
            }
            None => fs::read_to_string(CONGESTION_FILE)?.trim_end().to_owned(),
        };
        Ok(link)
    }

    /// What the link is like, in words.
    pub fn describe(&self) -> String {
        let loss = if self.is_lossy() {
            format!(", {} % of packets lost each way", self.loss_percent)
        } else {
            String::new()
        };
        format!("{DESCRIPTION}{loss}, TCP with {}", self.congestion)
    }

    pub fn is_lossy(&self) -> bool {
        self.loss_percent > 0.0
    }

    pub fn pid(&self) -> u32 {
        self.helper.id()
    }

    /// Runs one of the tests over the link.
    pub fn measure(
        &self,
        samples: &mut Samples,
        test: Test,
        peer: &'static Peer,
        forwarder: &Forwarder,
        target: &mut Target,
    ) -> io::Result<()> {
        thread::sleep(SETTLE_TIME);
        let mut add_bulk = |metric, direction, streams| {
            let rate = self.measure_bulk(forwarder, target, direction, streams)?;
            samples.add(peer.name, metric, rate);
            Ok(())
        };
        match test {
            Test::BulkUp => add_bulk(Metric::LinkBulkUpRate, Direction::Up, 1),
            Test::BulkDown => add_bulk(Metric::LinkBulkDownRate, Direction::Down, 1),
            Test::BulkMany => add_bulk(Metric::LinkBulkManyRate, Direction::Up, MANY_STREAMS),
            Test::FirstByte => self.measure_first_byte(samples, peer, forwarder),
            Test::Burst => self.measure_bursts(samples, peer, forwarder),
            Test::Connect => {
                let result =
                    load::connections(forwarder.address, CONNECT_WORKERS, CONNECT_DURATION)?;
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
            Test::Bulk | Test::PingPong | Test::Idle | Test::Udp => Ok(()),
        }
    }

    /// Megabits per second that arrive.
    ///
    /// They are counted where they arrive: what a slow link has not taken yet lies in buffers of
    /// the tunnel, which may hold more than comes through during the measurement.
    fn measure_bulk(
        &self,
        forwarder: &Forwarder,
        target: &mut Target,
        direction: Direction,
        streams: usize,
    ) -> io::Result<f64> {
        let bulk = Bulk::start(forwarder.address, streams, direction)?;
        let mut arrived_bytes = || match direction {
            Direction::Up => target.received_bytes(),
            Direction::Down => Ok(bulk.bytes()),
        };
        thread::sleep(BULK_WARM_UP);
        let bytes_before = arrived_bytes()?;
        let started_at = Instant::now();
        thread::sleep(self.bulk_duration);
        let megabits = (arrived_bytes()? - bytes_before) as f64 * 8.0 / 1e6;
        let seconds = started_at.elapsed().as_secs_f64();
        bulk.stop()?;
        Ok(megabits / seconds)
    }

    fn measure_first_byte(
        &self,
        samples: &mut Samples,
        peer: &'static Peer,
        forwarder: &Forwarder,
    ) -> io::Result<()> {
        let (count, pause) = if self.is_lossy() {
            (LOSSY_FIRST_BYTE_COUNT, LOSSY_FIRST_BYTE_PAUSE)
        } else {
            (FIRST_BYTE_COUNT, FIRST_BYTE_PAUSE)
        };
        let mut latencies = load::first_bytes(forwarder.address, count, pause)?;
        let mut add = |metric, percent| {
            samples.add(peer.name, metric, latencies.percentile_us(percent) / 1e3);
        };
        add(Metric::LinkFirstByteMedian, 50);
        add(Metric::LinkFirstByteMax, 100);
        // Of few visitors it would be another name for the longest time.
        if self.is_lossy() {
            add(Metric::LinkFirstByteSlow, 99);
        }
        Ok(())
    }

    fn measure_bursts(
        &self,
        samples: &mut Samples,
        peer: &'static Peer,
        forwarder: &Forwarder,
    ) -> io::Result<()> {
        let repeats = if self.is_lossy() {
            LOSSY_BURST_REPEATS
        } else {
            1
        };
        for (count, metrics) in BURSTS {
            for _ in 0..repeats {
                let result = load::burst(forwarder.address, count)?;
                add_crowd(samples, peer, result, metrics, 100);
                thread::sleep(SETTLE_TIME);
            }
        }
        Ok(())
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // It may have ended already, which is what we want.
        let _ = self.helper.kill();
        let _ = self.helper.wait();
    }
}

/// Chooses the congestion control of TCP at both ends.
///
/// By route, since a namespace may be set only to what the system allows to all users.
fn choose_congestion(name: &str, site: &Site) -> io::Result<()> {
    let command = || {
        let mut command = Command::new("ip");
        command
            .args(["route", "replace", NETWORK, "dev", DEVICE, "congctl", name])
            .env("PATH", search_path());
        command
    };
    let near = command().status()?;
    let far = site.spawn_far(&mut command())?.wait()?;
    if near.success() && far.success() {
        return Ok(());
    }
    Err(io::Error::other(format!(
        "congestion control '{name}' cannot be chosen"
    )))
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
