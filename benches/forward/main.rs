//! Compares the speed and the size of nodepass with other forwarders and tunnels, all in one run.
//!
//! Load generator and target are the same for all, and the forwarders take turns, so that what
//! else the machine does meets all of them. Only ratios within one run mean something; figures of
//! two runs or two machines do not compare.
//!
//! | module | holds |
//! |---|---|
//! | `options` | the command line |
//! | `peers` | the forwarders: files, commands, start and stop |
//! | `rathole` | installs the tunnel that nodepass is compared with |
//! | `target` | the far end, a process of its own |
//! | `load`, `bulk`, `datagrams` | the near end |
//! | `loopback`, `link` | what is measured, on this machine alone and over a slow link |
//! | `measure` | processor time and memory of a forwarder's processes |
//! | `table` | samples, medians, output |

#![forbid(unsafe_code)]
#![allow(
    clippy::disallowed_types,
    reason = "what is measured is measured here, not on a router"
)]

mod bulk;
mod datagrams;
mod link;
mod load;
mod loopback;
mod measure;
mod options;
mod peers;
mod rathole;
mod table;
mod target;

use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::{env, fs, io};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use link::Link;
use measure::{Usage, Window};
use options::{Options, Test};
use peers::{Forwarder, Kind, Peer, Programs, Service, Site};
use table::Samples;
use target::Target;

/// Open files that 5,000 visitors need, at both of their sockets, with a margin.
const OPEN_FILES_COUNT: u64 = 20_000;

fn main() -> ExitCode {
    let mut arguments = env::args().skip(1);
    if env::args()
        .nth(1)
        .is_some_and(|argument| argument == target::SERVE_ARGUMENT)
    {
        let served = raise_open_files().and_then(|()| target::serve(arguments.nth(1)));
        return exit_code(served);
    }
    match Options::parse(arguments) {
        Ok(Some(options)) => exit_code(run(options)),
        Ok(None) => {
            print!("{}", options::usage());
            ExitCode::SUCCESS
        }
        Err(message) => {
            eprint!("forward: {message}\n{}", options::usage());
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
    let build_folder = build_folder();
    let folder = build_folder.join("bench");
    fs::create_dir_all(&folder)?;
    let programs = Programs {
        nodepass: options.nodepass.clone(),
        rathole: rathole::path(&build_folder),
    };
    // Before the link is there: from inside of it no registry is in reach.
    let wants_rathole = options.peers.iter().any(|peer| peer.name == rathole::NAME);
    if wants_rathole && let Err(error) = rathole::install(&build_folder) {
        eprintln!("rathole could not be installed: {error}");
    }
    options.peers.retain(|peer| {
        let installed = peer.is_installed(&programs);
        if !installed {
            eprintln!("{}: not installed, left out", peer.name);
        }
        installed
    });
    let mut site = Site {
        programs,
        folder,
        server: IpAddr::V4(Ipv4Addr::LOCALHOST),
        target: IpAddr::V4(Ipv4Addr::LOCALHOST),
        far_namespace: None,
    };
    let link = match &options.link {
        Some(helper) => Some(Link::enter(helper, &options, &mut site)?),
        None => None,
    };
    let mut bench = Bench {
        site,
        link,
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
    site: Site,
    link: Option<Link>,
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
                Test::Bulk | Test::BulkUp | Test::BulkDown | Test::BulkMany => {
                    (Service::Bulk, true)
                }
                Test::PingPong | Test::FirstByte | Test::Burst | Test::Connect => {
                    (Service::Echo, true)
                }
                Test::Idle => (Service::Echo, peer.kind != Kind::Direct),
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
        let mut target = Target::start(&self.site)?;
        let forwarder = Forwarder::start(&self.site, peer, service, &target)?;
        match &self.link {
            Some(link) => {
                let mut pids = forwarder.pids();
                pids.push(link.pid());
                let window = Window::open(&pids, target.pid())?;
                link.measure(&mut self.samples, test, peer, &forwarder, &mut target)?;
                self.close(window).map(|_| ())
            }
            None => self.measure_loopback(test, peer, &forwarder, &target),
        }
    }

    /// Ends a measurement and keeps in mind how busy the machine was with other things.
    fn close(&mut self, window: Window) -> io::Result<Usage> {
        let usage = window.close()?;
        self.foreign_shares.push(usage.foreign_share);
        Ok(usage)
    }

    fn write_samples(&self) -> io::Result<()> {
        let text = format!(
            "{{\n  \"processors\": {},\n  \"kernel\": \"{}\",\n  \"network\": \"{}\",\n  \
             \"seconds\": {},\n  \"foreign_share\": {},\n  \"samples\": {}\n}}\n",
            measure::processors_count(),
            measure::kernel_version(),
            self.describe_network(),
            self.options.duration.as_secs_f64(),
            table::median(&self.foreign_shares).unwrap_or_default(),
            self.samples.to_json(),
        );
        fs::write(self.samples_path(), text)
    }

    fn samples_path(&self) -> PathBuf {
        let name = match &self.link {
            Some(link) if link.is_lossy() => "link-loss.json",
            Some(_) => "link.json",
            None => "forward.json",
        };
        self.site.folder.join(name)
    }

    fn describe_network(&self) -> String {
        self.link.as_ref().map_or_else(
            || {
                let seconds = self.options.duration.as_secs_f64();
                format!("{seconds} s each, all over loopback")
            },
            Link::describe,
        )
    }

    fn print(&self) {
        match self.link {
            Some(_) => self.print_table("Tunnels", Kind::is_on_link, &["rathole"]),
            None => {
                let references = ["haproxy", "direct"];
                self.print_table("Forwarders", |kind| kind != Kind::Tunnel, &references);
                self.print_table("Tunnels", |kind| kind == Kind::Tunnel, &["rathole"]);
            }
        }
        if self.has(|peer| peer.kind == Kind::Tunnel && peer.is_nodepass()) {
            println!(
                "tunnel is nodepass as server and client, reverse, native; tunnel-tls: tls=1; \
                 tunnel-ws: type=2, tunnel-wss: with tls=1; tunnel-h2: type=3; tunnel-quic: type=1."
            );
        }
        if self.has(|peer| peer.name == rathole::NAME) {
            println!("{}", rathole::describe(&self.site.programs.rathole));
        }
        println!(
            "{} rounds on {} processors, Linux {}; {}.",
            self.options.rounds,
            measure::processors_count(),
            measure::kernel_version(),
            self.describe_network(),
        );
        let foreign = table::median(&self.foreign_shares).unwrap_or_default() * 100.0;
        let foreign_max = self.foreign_shares.iter().copied().fold(0.0, f64::max) * 100.0;
        println!(
            "Other processes used {foreign:.0} % of the machine meanwhile, at most \
             {foreign_max:.0} %.",
        );
        if self.options.tests.contains(&Test::Idle) {
            println!(
                "Memory is resident memory summed over processes: what they share counts for \
                 each."
            );
        }
        for failure in &self.failures {
            println!("Failed: {failure}");
        }
        println!("All samples: {}", self.samples_path().display());
    }

    fn has(&self, is_wanted: impl Fn(&Peer) -> bool) -> bool {
        self.options.peers.iter().any(|peer| is_wanted(peer))
    }

    /// Prints a table of the peers of some kinds, if there are any.
    fn print_table(&self, title: &str, is_wanted: impl Fn(Kind) -> bool, references: &[&str]) {
        let wanted = self
            .options
            .peers
            .iter()
            .filter(|peer| is_wanted(peer.kind));
        let peers: Vec<&Peer> = wanted.copied().collect();
        if !peers.is_empty() {
            println!(
                "{title}\n\n{}",
                self.samples.to_markdown(&peers, references)
            );
        }
    }
}

/// Where cargo builds, which is outside of version control.
fn build_folder() -> PathBuf {
    let temporary = Path::new(env!("CARGO_TARGET_TMPDIR"));
    temporary.parent().unwrap_or(temporary).to_owned()
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
