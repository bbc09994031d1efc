//! Puts a master under load and looks whether it keeps up: instances, event subscribers, some of
//! whom never read, and requests at a steady rate.
//!
//! Prints how long answers took, what the master used, and whether a subscriber who reads missed
//! an event. Ends with status 1 if one did, or if a request was not answered as it should be.
//!
//!     cargo bench --bench api -- [--seconds 30] [--rate 1000] [--instances 100]

#![forbid(unsafe_code)]

mod client;

use std::collections::HashSet;
use std::error::Error;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use std::{env, fs, process, thread};

use client::{Client, Events};
use serde_json::Value;

type Outcome<T> = Result<T, Box<dyn Error + Send + Sync>>;

/// Subscribers who read, and those who do not.
const READERS_COUNT: usize = 40;
const SILENT_COUNT: usize = 10;
/// Connections over which the requests come.
const CLIENTS_COUNT: usize = 32;
/// How long anything may take before it counts as not happening.
const PATIENCE: Duration = Duration::from_secs(60);

#[derive(Clone, Copy)]
struct Options {
    seconds: u32,
    rate: u32,
    instances: usize,
}

fn main() -> ExitCode {
    let options = match parse(env::args().skip(1)) {
        Ok(options) => options,
        Err(error) => {
            eprintln!("api: {error}\nusage: api [--seconds N] [--rate N] [--instances N]");
            return ExitCode::from(2);
        }
    };
    match run(options) {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("api: {error}");
            ExitCode::FAILURE
        }
    }
}

fn parse(mut arguments: impl Iterator<Item = String>) -> Outcome<Options> {
    let mut options = Options {
        seconds: 30,
        rate: 1000,
        instances: 100,
    };
    while let Some(argument) = arguments.next() {
        let mut value = || arguments.next().ok_or("a value is missing");
        match argument.as_str() {
            // Cargo adds it.
            "--bench" => {}
            "--seconds" => options.seconds = value()?.parse()?,
            "--rate" => options.rate = value()?.parse()?,
            "--instances" => options.instances = value()?.parse()?,
            other => return Err(format!("unknown argument {other}").into()),
        }
    }
    Ok(options)
}

fn run(options: Options) -> Outcome<bool> {
    let master = Master::start()?;
    let mut client = master.client()?;
    let idle = master.resident_kib()?;
    let ids = create_instances(&mut client, options.instances)?;
    let children = wait_for_children(&master, options.instances)?;
    println!(
        "resident KiB: idle master {idle}, with {} instances {}, each of them {}",
        options.instances,
        master.resident_kib()?,
        children
    );

    let readers: Vec<Reader> = (0..READERS_COUNT)
        .map(|_| Reader::start(&master, options.instances + 1))
        .collect::<Outcome<_>>()?;
    let silent: Vec<Events> = (0..SILENT_COUNT)
        .map(|_| Events::open(master.address, &master.key))
        .collect::<Outcome<_>>()?;
    let usage = master.processor_time()?;
    let began_at = Instant::now();
    let load = Load::new(options, ids);
    let workers: Vec<_> = (0..CLIENTS_COUNT)
        .map(|number| {
            let (load, client) = (Arc::clone(&load), master.client()?);
            Ok(thread::spawn(move || load.work(number, client)))
        })
        .collect::<Outcome<_>>()?;
    let mut resident_max = 0;
    while !workers.iter().all(JoinHandle::is_finished) {
        resident_max = resident_max.max(master.resident_kib()?);
        thread::sleep(Duration::from_millis(200));
    }
    let mut latencies = Vec::new();
    for worker in workers {
        latencies.extend(worker.join().map_err(|_| "a worker panicked")??);
    }
    let seconds = began_at.elapsed().as_secs_f64();
    let used = master.processor_time()? - usage;

    // Behind this name nothing is under way any more.
    client.change_alias(&load.ids[0], "the last one")?;
    let mut missed_count = 0;
    for reader in readers {
        missed_count += reader.missed(load.changes_count.load(Ordering::Relaxed))?;
    }
    let let_go_count = silent
        .into_iter()
        .map(Events::has_ended)
        .filter(|has_ended| *has_ended)
        .count();
    report(&mut latencies, seconds, used, resident_max);
    println!("events missed by {READERS_COUNT} readers: {missed_count}");
    println!("subscribers who never read: {let_go_count} of {SILENT_COUNT} disconnected");
    Ok(missed_count == 0)
}

fn create_instances(client: &mut Client, count: usize) -> Outcome<Vec<String>> {
    // Nobody listens there, and nobody comes.
    let body = r#"{"url":"client://127.0.0.1:0/127.0.0.1:9?mode=1"}"#;
    (0..count)
        .map(|_| {
            let (status, instance) = client.request("POST", "/api/v1/instances", body)?;
            let instance: Value = serde_json::from_slice(&instance)?;
            match (status, instance["id"].as_str()) {
                (201, Some(id)) => Ok(id.to_owned()),
                _ => Err(format!("POST was answered {status}: {instance}").into()),
            }
        })
        .collect()
}

/// Waits until all instances have a process; returns what one of them takes (KiB, the median).
fn wait_for_children(master: &Master, count: usize) -> Outcome<u64> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let mut sizes: Vec<u64> = master
            .children()?
            .into_iter()
            .filter_map(|pid| resident_kib(pid).ok())
            .collect();
        if sizes.len() >= count {
            // They have listeners and threads by then.
            thread::sleep(Duration::from_secs(1));
            sizes.sort_unstable();
            return Ok(sizes[sizes.len() / 2]);
        }
        if Instant::now() > deadline {
            return Err(format!("{} of {count} instances run", sizes.len()).into());
        }
        thread::sleep(Duration::from_millis(100));
    }
}

fn report(latencies: &mut [Duration], seconds: f64, used: Duration, resident_max: u64) {
    latencies.sort_unstable();
    let at = |share: f64| {
        #[allow(
            clippy::cast_possible_truncation,
            clippy::cast_sign_loss,
            reason = "a place in a list"
        )]
        let place = (latencies.len().saturating_sub(1) as f64 * share) as usize;
        latencies[place].as_secs_f64() * 1000.0
    };
    println!(
        "{} requests in {seconds:.1} s: p50 {:.1} ms, p99 {:.1} ms, p99.9 {:.1} ms, longest {:.1} ms",
        latencies.len(),
        at(0.5),
        at(0.99),
        at(0.999),
        at(1.0)
    );
    println!(
        "the master used {:.0} % of one processor, and {resident_max} KiB at most",
        used.as_secs_f64() / seconds * 100.0
    );
}

/// What the workers share.
struct Load {
    options: Options,
    ids: Vec<String>,
    /// Names given so far, each another one.
    changes_count: AtomicUsize,
    began_at: Instant,
}

impl Load {
    fn new(options: Options, ids: Vec<String>) -> Arc<Self> {
        Arc::new(Self {
            options,
            ids,
            changes_count: AtomicUsize::new(0),
            began_at: Instant::now(),
        })
    }

    /// Sends this worker's share of the requests, each at its time: one that is late because the
    /// one before it took long counts from when it was due.
    fn work(&self, number: usize, mut client: Client) -> Outcome<Vec<Duration>> {
        let interval = Duration::from_secs(1) / self.options.rate;
        let total = self.options.rate * self.options.seconds;
        let mut latencies = Vec::new();
        for turn in (u32::try_from(number)?..total).step_by(CLIENTS_COUNT) {
            let due_at = self.began_at + interval * turn;
            thread::sleep(due_at.saturating_duration_since(Instant::now()));
            let id = &self.ids[usize::try_from(turn)? % self.ids.len()];
            match turn / u32::try_from(CLIENTS_COUNT)? % 20 {
                0 => drop(client.expect(200, "GET", "/api/v1/instances", "")?),
                1 => {
                    let change = self.changes_count.fetch_add(1, Ordering::Relaxed);
                    client.change_alias(id, &format!("change {change}"))?;
                }
                _ => drop(client.expect(200, "GET", &format!("/api/v1/instances/{id}"), "")?),
            }
            latencies.push(due_at.elapsed());
        }
        Ok(latencies)
    }
}

/// A subscriber who reads, and remembers the names that he was told of.
struct Reader {
    thread: JoinHandle<Outcome<HashSet<String>>>,
}

impl Reader {
    fn start(master: &Master, initial_count: usize) -> Outcome<Self> {
        let mut events = Events::open(master.address, &master.key)?;
        for _ in 0..initial_count {
            events.next()?;
        }
        let thread = thread::spawn(move || {
            let mut names = HashSet::new();
            loop {
                let event = events.next()?;
                let Some(alias) = event["instance"]["alias"].as_str() else {
                    continue;
                };
                if alias == "the last one" {
                    return Ok(names);
                }
                if event["type"] == "update" && alias.starts_with("change ") {
                    names.insert(alias.to_owned());
                }
            }
        });
        Ok(Self { thread })
    }

    /// Returns how many changes he was not told of.
    fn missed(self, changes_count: usize) -> Outcome<usize> {
        let names = self.thread.join().map_err(|_| "a reader panicked")??;
        Ok((0..changes_count)
            .filter(|change| !names.contains(&format!("change {change}")))
            .count())
    }
}

/// The master, a process of its own with a folder of its own.
struct Master {
    child: Child,
    folder: PathBuf,
    address: SocketAddr,
    key: String,
    drained: Arc<AtomicBool>,
}

impl Master {
    fn start() -> Outcome<Self> {
        let folder = env::temp_dir().join(format!("nodepass-bench-api-{}", process::id()));
        fs::create_dir_all(&folder)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_nodepass"))
            .arg("master://127.0.0.1:0")
            .env("NP_STATE_DIR", &folder)
            .stdout(Stdio::piped())
            .spawn()?;
        let output = child.stdout.take().ok_or("no output")?;
        let drained = Arc::new(AtomicBool::new(false));
        let address = client::read_address(output, &drained)?;
        let state: Value = serde_json::from_slice(&fs::read(folder.join("nodepass.json"))?)?;
        let key = state["instances"][0]["url"].as_str().ok_or("no key")?;
        Ok(Self {
            child,
            address,
            key: key.to_owned(),
            folder,
            drained,
        })
    }

    fn client(&self) -> Outcome<Client> {
        Client::connect(self.address, &self.key)
    }

    fn resident_kib(&self) -> Outcome<u64> {
        resident_kib(self.child.id())
    }

    fn children(&self) -> Outcome<Vec<u32>> {
        let pid = self.child.id();
        let mut children = Vec::new();
        for thread in fs::read_dir(format!("/proc/{pid}/task"))? {
            let text = fs::read_to_string(thread?.path().join("children"))?;
            children.extend(
                text.split_whitespace()
                    .filter_map(|pid| pid.parse::<u32>().ok()),
            );
        }
        Ok(children)
    }

    /// Returns the processor time of the master itself.
    fn processor_time(&self) -> Outcome<Duration> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let (_, fields) = stat.rsplit_once(") ").ok_or("no such file as expected")?;
        let mut ticks = 0;
        for field in fields.split(' ').skip(11).take(2) {
            ticks += field.parse::<u64>()?;
        }
        // The kernel counts hundredths of a second for everybody outside.
        Ok(Duration::from_millis(ticks * 10))
    }
}

impl Drop for Master {
    fn drop(&mut self) {
        // Its instances end with it.
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = fs::remove_dir_all(&self.folder);
        self.drained.store(true, Ordering::Relaxed);
    }
}

fn resident_kib(pid: u32) -> Outcome<u64> {
    let status = fs::read_to_string(format!("/proc/{pid}/status"))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"));
    let kib = line.ok_or("no VmRSS")?.trim().trim_end_matches(" kB");
    Ok(kib.parse()?)
}
