//! Compares the speed and the size of nodepass with other forwarders, all in one run.
//!
//! Load generator and target are the same for all, and the forwarders take turns, so that what
//! else the machine does meets all of them. Only ratios within one run mean something; figures of
//! two runs or two machines do not compare.
//!
//! | module | holds |
//! |---|---|
//! | `options` | the command line |
//! | `peers` | the forwarders: files, commands, start and stop |
//! | `target` | the far end, a process of its own |
//! | `load`, `bulk`, `datagrams` | the near end |
//! | `measure` | processor time and memory of a forwarder's processes |
//! | `table` | samples, medians, output |

#![forbid(unsafe_code)]

mod bulk;
mod datagrams;
mod load;
mod measure;
mod options;
mod peers;
mod table;
mod target;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use std::{env, fs, io, thread};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use bulk::{Bulk, Direction};
use load::IdleVisitors;
use measure::{Usage, Window};
use options::{Options, Test};
use peers::{DIRECT, Forwarder, Peer, Service};
use table::{Metric, Samples};
use target::Target;

/// Open files that 5,000 visitors need, at both of their sockets, with a margin.
const OPEN_FILES_COUNT: u64 = 20_000;

/// How long bulk streams run before they are measured.
const BULK_WARM_UP: Duration = Duration::from_millis(300);

/// Rest before memory is read.
const MEMORY_SETTLE_TIME: Duration = Duration::from_millis(500);

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

fn main() -> ExitCode {
    if env::args()
        .nth(1)
        .is_some_and(|argument| argument == target::SERVE_ARGUMENT)
    {
        return exit_code(raise_open_files().and_then(|()| target::serve()));
    }
    match Options::parse(env::args().skip(1)) {
        Ok(Some(options)) => exit_code(run(options)),
        Ok(None) => {
            print!("{}", options::USAGE);
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprint!("forward: {message}\n{}", options::USAGE);
            ExitCode::from(2)
        }
    }
}

fn exit_code(result: io::Result<()>) -> ExitCode {
    let Err(error) = result else {
        return ExitCode::SUCCESS;
    };
    eprintln!("forward: {error}");
    ExitCode::FAILURE
}

fn run(mut options: Options) -> io::Result<()> {
    raise_open_files()?;
    options.peers.retain(|peer| {
        let installed = peer.is_installed(&options.nodepass);
        if !installed {
            eprintln!("{}: not installed, left out", peer.name);
        }
        installed
    });
    let mut bench = Bench {
        folder: results_folder()?,
        stopped: catch_signals()?,
        options,
        samples: Samples::default(),
        foreign_shares: Vec::new(),
        failures: Vec::new(),
    };
    for round in 0..bench.options.rounds {
        // A different one begins each time: none always follows the same neighbour.
        let mut turns = bench.options.peers.clone();
        let first = round % turns.len().max(1);
        turns.rotate_left(first);
        for peer in turns {
            eprintln!(
                "round {} of {}: {}",
                round + 1,
                bench.options.rounds,
                peer.name
            );
            bench.measure(peer)?;
        }
        bench.write_samples()?;
    }
    bench.print();
    match bench.failures.len() {
        0 => Ok(()),
        count => Err(io::Error::other(format!("{count} measurements failed"))),
    }
}

/// One run of the benchmark.
struct Bench {
    options: Options,
    /// Where samples are written, and where forwarders keep their files.
    folder: PathBuf,
    /// Set by a signal: end as soon as possible, leave nothing behind.
    stopped: Arc<AtomicBool>,
    samples: Samples,
    foreign_shares: Vec<f64>,
    failures: Vec<String>,
}

impl Bench {
    /// Runs every test once with one forwarder. A test that fails is noted and left out.
    fn measure(&mut self, peer: &'static Peer) -> io::Result<()> {
        for test in self.options.tests.clone() {
            if self.stopped.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "interrupted"));
            }
            let (service, measured) = match test {
                Test::Bulk => (Service::Bulk, true),
                Test::PingPong | Test::Connect => (Service::Echo, true),
                Test::Idle => (Service::Echo, peer.name != DIRECT),
                Test::Udp => (Service::EchoDatagrams, peer.forwards_datagrams()),
            };
            if !measured {
                continue;
            }
            if let Err(error) = self.measure_one(peer, test, service) {
                let failure = format!("{}, {}: {error}", peer.name, test.name());
                eprintln!("{failure}");
                self.failures.push(failure);
            }
        }
        Ok(())
    }

    /// Runs one test with a fresh target and a fresh forwarder, so that no test meets the
    /// leftovers of another one: closed connections, grown memory.
    fn measure_one(&mut self, peer: &'static Peer, test: Test, service: Service) -> io::Result<()> {
        let target = Target::start()?;
        let forwarder =
            Forwarder::start(peer, service, &target, &self.options.nodepass, &self.folder)?;
        match test {
            Test::Bulk => self.measure_bulk(peer, &forwarder, &target),
            Test::PingPong => self.measure_ping_pong(peer, &forwarder, &target),
            Test::Connect => self.measure_connect(peer, &forwarder, &target),
            Test::Idle => self.measure_idle(peer, &forwarder),
            Test::Udp => self.measure_udp(peer, &forwarder, &target),
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

    /// Ends a measurement and keeps in mind how busy the machine was with other things.
    fn close(&mut self, window: Window) -> io::Result<Usage> {
        let usage = window.close()?;
        self.foreign_shares.push(usage.foreign_share);
        Ok(usage)
    }

    /// Keeps a forwarder's processor time; where there is no forwarder, there is none.
    fn add_cost(&mut self, peer: &'static Peer, metric: Metric, value: f64) {
        if peer.name != DIRECT {
            self.samples.add(peer.name, metric, value);
        }
    }

    fn write_samples(&self) -> io::Result<()> {
        let text = format!(
            "{{\n  \"processors\": {},\n  \"kernel\": \"{}\",\n  \"seconds\": {},\n  \
             \"foreign_share\": {},\n  \"samples\": {}\n}}\n",
            measure::processors_count(),
            measure::kernel_version(),
            self.options.duration.as_secs_f64(),
            table::median(&self.foreign_shares).unwrap_or_default(),
            self.samples.to_json(),
        );
        fs::write(self.samples_path(), text)
    }

    fn samples_path(&self) -> PathBuf {
        self.folder.join("forward.json")
    }

    fn print(&self) {
        let names: Vec<&str> = self.options.peers.iter().map(|peer| peer.name).collect();
        println!(
            "{}",
            self.samples
                .to_markdown(&names, "nodepass", &["haproxy", DIRECT])
        );
        println!(
            "{} rounds of {} s each on {} processors, Linux {}; all over loopback.",
            self.options.rounds,
            self.options.duration.as_secs_f64(),
            measure::processors_count(),
            measure::kernel_version(),
        );
        let foreign = table::median(&self.foreign_shares).unwrap_or_default() * 100.0;
        let foreign_max = self.foreign_shares.iter().copied().fold(0.0, f64::max) * 100.0;
        println!(
            "Other processes used {foreign:.0} % of the machine meanwhile, at most \
             {foreign_max:.0} %.",
        );
        println!(
            "Memory is resident memory summed over processes: what they share counts for each."
        );
        for failure in &self.failures {
            println!("Failed: {failure}");
        }
        println!("All samples: {}", self.samples_path().display());
    }
}

/// Where results go: beside what cargo builds, which is outside of version control.
fn results_folder() -> io::Result<PathBuf> {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    let folder = temporary.parent().unwrap_or(temporary).join("bench");
    fs::create_dir_all(&folder)?;
    Ok(folder)
}

/// Allows this process and its children as many open files as the test with idle visitors needs.
fn raise_open_files() -> io::Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let maximum = limit.maximum.unwrap_or(u64::MAX);
    if maximum < OPEN_FILES_COUNT {
        let wanted = Rlimit {
            current: Some(OPEN_FILES_COUNT),
            maximum: Some(OPEN_FILES_COUNT),
        };
        if setrlimit(Resource::Nofile, wanted).is_ok() {
            return Ok(());
        }
        eprintln!("only {maximum} open files are allowed: not all idle visitors may be served");
    }
    Ok(setrlimit(
        Resource::Nofile,
        Rlimit {
            current: limit.maximum,
            maximum: limit.maximum,
        },
    )?)
}

/// A flag that is set when the user or the system wants the run to end.
fn catch_signals() -> io::Result<Arc<AtomicBool>> {
    let stopped = Arc::new(AtomicBool::new(false));
    for signal in [SIGHUP, SIGINT, SIGTERM] {
        signal_hook::flag::register(signal, Arc::clone(&stopped))?;
    }
    Ok(stopped)
}
