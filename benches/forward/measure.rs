//! What a forwarder costs: processor time and resident memory of its processes, read from `/proc`.

use std::collections::{HashMap, HashSet};
use std::time::Instant;
use std::{fs, io, process};

use rustix::param::clock_ticks_per_second;

/// What `/proc/PID/stat` says about one process.
struct Process {
    parent: u32,
    /// User and system time of its own threads, in clock ticks.
    own_ticks: u64,
    /// The same of the children that it has waited for.
    reaped_ticks: u64,
}

/// All processes of the machine at one moment.
struct Processes(HashMap<u32, Process>);

impl Processes {
    fn read() -> io::Result<Processes> {
        let mut all = HashMap::new();
        for entry in fs::read_dir("/proc")? {
            let Some(pid) = entry?
                .file_name()
                .to_str()
                .and_then(|name| name.parse().ok())
            else {
                continue;
            };
            // A process that ended since the listing is no error.
            if let Some(process) = read_process(pid) {
                all.insert(pid, process);
            }
        }
        Ok(Processes(all))
    }

    /// The given processes and all that descend from them.
    fn tree(&self, roots: &[u32]) -> HashSet<u32> {
        let mut children: HashMap<u32, Vec<u32>> = HashMap::new();
        for (pid, process) in &self.0 {
            children.entry(process.parent).or_default().push(*pid);
        }
        let mut found = HashSet::new();
        let mut open = roots.to_vec();
        while let Some(pid) = open.pop() {
            if self.0.contains_key(&pid) && found.insert(pid) {
                open.extend(children.get(&pid).into_iter().flatten());
            }
        }
        found
    }

    /// Processor seconds of a whole tree, with those of its children that are gone already.
    fn seconds(&self, roots: &[u32]) -> f64 {
        let of = |pid| {
            self.0
                .get(pid)
                .map_or(0, |found| found.own_ticks + found.reaped_ticks)
        };
        seconds_of(self.tree(roots).iter().map(of).sum())
    }
}

/// Measures processor time from `open` to `close`.
pub struct Window {
    forwarder: Vec<u32>,
    target: u32,
    opened_at: Instant,
    forwarder_seconds: f64,
    known_seconds: f64,
    busy_seconds: f64,
}

/// What happened during a `Window`.
pub struct Usage {
    pub seconds: f64,
    /// Processor seconds that the forwarder's processes used.
    pub forwarder_seconds: f64,
    /// Share of the machine that processes outside the benchmark used, 0 to 1.
    pub foreign_share: f64,
}

impl Window {
    /// Starts to measure. `forwarder` are its first processes, `target` is the target's process.
    pub fn open(forwarder: &[u32], target: u32) -> io::Result<Window> {
        let (forwarder_seconds, known_seconds) = read_times(forwarder, target)?;
        Ok(Window {
            forwarder: forwarder.to_vec(),
            target,
            forwarder_seconds,
            known_seconds,
            busy_seconds: machine_seconds()?,
            opened_at: Instant::now(),
        })
    }

    pub fn close(self) -> io::Result<Usage> {
        let seconds = self.opened_at.elapsed().as_secs_f64();
        let busy = machine_seconds()? - self.busy_seconds;
        let (forwarder_seconds, known_seconds) = read_times(&self.forwarder, self.target)?;
        let foreign = (busy - (known_seconds - self.known_seconds)).max(0.0);
        Ok(Usage {
            seconds,
            forwarder_seconds: forwarder_seconds - self.forwarder_seconds,
            foreign_share: foreign / (seconds * f64::from(processors_count())),
        })
    }
}

/// Sum of the resident memory of all processes of a forwarder, in bytes.
pub fn resident_bytes(roots: &[u32]) -> io::Result<f64> {
    let tree = Processes::read()?.tree(roots);
    Ok(tree.into_iter().filter_map(resident_kilobytes).sum::<f64>() * 1024.0)
}

pub fn processors_count() -> u32 {
    std::thread::available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1))
}

pub fn kernel_version() -> String {
    fs::read_to_string("/proc/sys/kernel/osrelease")
        .unwrap_or_default()
        .trim()
        .to_owned()
}

/// Processor seconds of the forwarder, and of forwarder, target and this program together.
fn read_times(forwarder: &[u32], target: u32) -> io::Result<(f64, f64)> {
    let processes = Processes::read()?;
    let forwarder_seconds = processes.seconds(forwarder);
    // Forwarder and target are children of this program: only its own time is added here.
    let own = processes
        .0
        .get(&process::id())
        .map_or(0, |found| found.own_ticks);
    Ok((
        forwarder_seconds,
        forwarder_seconds + processes.seconds(&[target]) + seconds_of(own),
    ))
}

fn read_process(pid: u32) -> Option<Process> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // The second field is the name in brackets, which may hold blanks and brackets itself.
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Process {
        parent: u32::try_from(number(1)?).ok()?,
        own_ticks: number(11)? + number(12)?,
        reaped_ticks: number(13)? + number(14)?,
    })
}

fn resident_kilobytes(pid: u32) -> Option<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.trim().trim_end_matches("kB").trim().parse().ok()
}

/// Seconds that the processors of the machine were busy since it started, summed over them.
fn machine_seconds() -> io::Result<f64> {
    let text = fs::read_to_string("/proc/stat")?;
    let fields = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1);
    let ticks: Vec<u64> = fields.filter_map(|field| field.parse().ok()).collect();
    // In order: user, nice, system, idle, waiting for input, interrupts, soft interrupts.
    let busy = [0, 1, 2, 5, 6].iter().filter_map(|index| ticks.get(*index));
    Ok(seconds_of(busy.sum()))
}

fn seconds_of(ticks: u64) -> f64 {
    ticks as f64 / clock_ticks_per_second() as f64
}
