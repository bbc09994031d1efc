//! What is measured over loopback, where the processor is the only limit.

use std::time::Duration;
use std::{io, thread};

use crate::bulk::{Bulk, Direction};
use crate::load::{self, IdleVisitors};
use crate::measure::{self, Window};
use crate::options::Test;
use crate::peers::{Forwarder, Kind, Peer};
use crate::table::Metric;
use crate::target::Target;
use crate::{Bench, datagrams};

/// How long bulk streams run before they are measured.
const BULK_WARM_UP: Duration = Duration::from_millis(300);

/// Rest before memory is read.
const MEMORY_SETTLE_TIME: Duration = Duration::from_millis(500);

/// How many visitors wait for a first byte, one after the other, and how long after the last one
/// each comes: time for a tunnel to be ready again, which visitors without end would not give it.
const FIRST_BYTE_COUNT: usize = 200;
const FIRST_BYTE_PAUSE: Duration = Duration::from_millis(2);

/// How many idle visitors there are when memory is read.
const IDLE_COUNTS: [(usize, Metric); 2] = [
    (1000, Metric::MemoryIdle1000),
    (5000, Metric::MemoryIdle5000),
];

/// Datagrams per second of the steady flow.
const FLOW_RATE: u32 = 20_000;

/// Bulk runs: direction, streams, and the metrics for throughput and processor time.
const BULK_RUNS: [(Direction, usize, Metric, Metric); 3] = [
    (Direction::Up, 1, Metric::BulkUpRate, Metric::BulkUpCost),
    (
        Direction::Down,
        1,
        Metric::BulkDownRate,
        Metric::BulkDownCost,
    ),
    (Direction::Up, 8, Metric::BulkManyRate, Metric::BulkManyCost),
];

/// Connection runs: how many at once, and the metrics for rate, p50, p99, cost and errors.
const CONNECT_RUNS: [(usize, [Metric; 5]); 2] = [
    (
        1,
        [
            Metric::ConnectRate,
            Metric::ConnectMedian,
            Metric::ConnectSlow,
            Metric::ConnectCost,
            Metric::ConnectErrors,
        ],
    ),
    (
        64,
        [
            Metric::ConnectManyRate,
            Metric::ConnectManyMedian,
            Metric::ConnectManySlow,
            Metric::ConnectManyCost,
            Metric::ConnectManyErrors,
        ],
    ),
];

impl Bench {
    /// Runs one of the tests over loopback.
    pub fn measure_loopback(
        &mut self,
        test: Test,
        peer: &'static Peer,
        forwarder: &Forwarder,
        target: &Target,
    ) -> io::Result<()> {
        match test {
            Test::Bulk => self.measure_bulk(peer, forwarder, target),
            Test::PingPong => self.measure_ping_pong(peer, forwarder, target),
            Test::FirstByte => self.measure_first_byte(peer, forwarder),
            Test::Connect => self.measure_connect(peer, forwarder, target),
            Test::Idle => self.measure_idle(peer, forwarder),
            Test::Udp => self.measure_udp(peer, forwarder, target),
            // Made for a link on which there is something to wait for.
            Test::BulkUp | Test::BulkDown | Test::BulkMany | Test::Burst => Ok(()),
        }
    }

    fn measure_bulk(
        &mut self,
        peer: &'static Peer,
        forwarder: &Forwarder,
        target: &Target,
    ) -> io::Result<()> {
        for (direction, streams, rate, cost) in BULK_RUNS {
            let bulk = Bulk::start(forwarder.address, streams, direction)?;
            thread::sleep(BULK_WARM_UP);
            let window = Window::open(&forwarder.pids(), target.pid())?;
            let bytes_before = bulk.bytes();
            thread::sleep(self.options.duration);
            let gigabytes = (bulk.bytes() - bytes_before) as f64 / 1e9;
            let usage = self.close(window)?;
            bulk.stop()?;
            self.samples
                .add(peer.name, rate, gigabytes * 8.0 / usage.seconds);
            self.add_cost(peer, cost, usage.forwarder_seconds / gigabytes);
        }
        Ok(())
    }

    fn measure_ping_pong(
        &mut self,
        peer: &'static Peer,
        forwarder: &Forwarder,
        target: &Target,
    ) -> io::Result<()> {
        let window = Window::open(&forwarder.pids(), target.pid())?;
        let mut result = load::ping_pong(forwarder.address, self.options.duration)?;
        let usage = self.close(window)?;
        let count = result.latencies.count() as f64;
        self.samples
            .add(peer.name, Metric::PingPongRate, count / result.seconds);
        self.samples.add(
            peer.name,
            Metric::PingPongMedian,
            result.latencies.percentile_us(50),
        );
        self.add_cost(
            peer,
            Metric::PingPongCost,
            usage.forwarder_seconds * 1e6 / count,
        );
        Ok(())
    }

    fn measure_connect(
        &mut self,
        peer: &'static Peer,
        forwarder: &Forwarder,
        target: &Target,
    ) -> io::Result<()> {
        for (workers, [rate, median, slow, cost, errors]) in CONNECT_RUNS {
            let window = Window::open(&forwarder.pids(), target.pid())?;
            let mut result = load::connections(forwarder.address, workers, self.options.duration)?;
            let usage = self.close(window)?;
            let count = result.latencies.count() as f64;
            self.samples.add(peer.name, rate, count / result.seconds);
            self.samples
                .add(peer.name, median, result.latencies.percentile_us(50));
            self.samples
                .add(peer.name, slow, result.latencies.percentile_us(99));
            self.samples
                .add(peer.name, errors, result.errors_count.into());
            self.add_cost(peer, cost, usage.forwarder_seconds * 1e6 / count);
        }
        Ok(())
    }

    fn measure_first_byte(&mut self, peer: &'static Peer, forwarder: &Forwarder) -> io::Result<()> {
        let mut latencies =
            load::first_bytes(forwarder.address, FIRST_BYTE_COUNT, FIRST_BYTE_PAUSE)?;
        let metrics = [(Metric::FirstByteMedian, 50), (Metric::FirstByteSlow, 99)];
        for (metric, percent) in metrics {
            self.samples
                .add(peer.name, metric, latencies.percentile_us(percent));
        }
        Ok(())
    }

    fn measure_idle(&mut self, peer: &'static Peer, forwarder: &Forwarder) -> io::Result<()> {
        let resident = || -> io::Result<f64> {
            thread::sleep(MEMORY_SETTLE_TIME);
            measure::resident_bytes(&forwarder.pids())
        };
        let at_start = resident()?;
        self.samples
            .add(peer.name, Metric::MemoryStart, at_start / 1e6);
        let mut idle = IdleVisitors::new(forwarder.address);
        let mut wanted_count = 0;
        let mut per_visitor = f64::NAN;
        for (count, metric) in IDLE_COUNTS {
            if count > peer.idle_count_max {
                break;
            }
            wanted_count = count;
            idle.grow_to(count);
            let bytes = resident()?;
            self.samples.add(peer.name, metric, bytes / 1e6);
            per_visitor = (bytes - at_start) / idle.count() as f64 / 1e3;
        }
        self.samples
            .add(peer.name, Metric::MemoryPerIdle, per_visitor);
        let alive_percent = idle.count_alive() as f64 * 100.0 / wanted_count as f64;
        self.samples
            .add(peer.name, Metric::IdleAlive, alive_percent);
        drop(idle);
        self.samples
            .add(peer.name, Metric::MemoryAfter, resident()? / 1e6);
        Ok(())
    }

    fn measure_udp(
        &mut self,
        peer: &'static Peer,
        forwarder: &Forwarder,
        target: &Target,
    ) -> io::Result<()> {
        let mut result = datagrams::ping_pong(forwarder.address, self.options.duration)?;
        let count = result.latencies.count() as f64;
        self.samples
            .add(peer.name, Metric::UdpRate, count / result.seconds);
        self.samples.add(
            peer.name,
            Metric::UdpMedian,
            result.latencies.percentile_us(50),
        );

        let window = Window::open(&forwarder.pids(), target.pid())?;
        let mut flow = datagrams::flow(forwarder.address, FLOW_RATE, self.options.duration)?;
        let usage = self.close(window)?;
        let lost_percent = f64::from(flow.sent - flow.received) * 100.0 / f64::from(flow.sent);
        self.samples.add(peer.name, Metric::UdpLoss, lost_percent);
        self.samples.add(
            peer.name,
            Metric::UdpFlowMedian,
            flow.latencies.percentile_us(50),
        );
        let passed_count = f64::from(flow.sent) + f64::from(flow.received);
        self.add_cost(
            peer,
            Metric::UdpFlowCost,
            usage.forwarder_seconds * 1e6 / passed_count,
        );
        Ok(())
    }

    /// Keeps a forwarder's processor time; where there is no forwarder, there is none.
    fn add_cost(&mut self, peer: &'static Peer, metric: Metric, value: f64) {
        if peer.kind != Kind::Direct {
            self.samples.add(peer.name, metric, value);
        }
    }
}
