//! The program as a child: its arguments and environment, its log, its end.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};
use std::{env, fs, thread};

use rustix::process::{Pid, Resource, Signal, getrlimit, kill_process, setrlimit};

use super::{DEADLINE, eventually};

/// Where the program is: the one built for the tests, if `NP_TEST_BINARY` has named no other one when
/// they were compiled.
pub const BINARY: &str = match option_env!("NP_TEST_BINARY") {
    Some(path) => path,
    None => env!("CARGO_BIN_EXE_nodepass"),
};

/// How the program is to be started.
pub struct Launch {
    command: Command,
    input: Option<String>,
}

impl Launch {
    /// With these arguments and an environment that sets nothing of ours.
    pub fn new(arguments: &[&str]) -> Self {
        let mut command = Command::new(BINARY);
        command.args(arguments);
        Self::prepare(command)
    }

    /// A copy of the program, at `path`, with these arguments.
    pub fn copy(path: &Path, arguments: &[&str]) -> Self {
        let mut command = Command::new(path);
        command.args(arguments);
        Self::prepare(command)
    }

    /// The same through a shell that first runs `setup`, such as `ulimit -n 64`.
    pub fn through_shell(setup: &str, arguments: &[&str]) -> Self {
        Self::through_script(&format!("{setup}; exec \"$0\" \"$@\""), arguments)
    }

    /// The same through a shell script, to which the program is `"$0"` and its arguments `"$@"`.
    pub fn through_script(script: &str, arguments: &[&str]) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script, BINARY]).args(arguments);
        Self::prepare(command)
    }

    fn prepare(mut command: Command) -> Self {
        command
            .env_clear()
            .env("PATH", env::var_os("PATH").unwrap_or_default());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        Self {
            command,
            input: None,
        }
    }

    /// Sets one environment variable.
    pub fn env(mut self, name: &str, value: &str) -> Self {
        self.command.env(name, value);
        self
    }

    /// Standard output goes there instead of into the log that the tests read.
    pub fn output_to(mut self, output: impl Into<Stdio>) -> Self {
        self.command.stdout(output);
        self
    }

    /// Standard input holds `text`.
    pub fn input(mut self, text: &str) -> Self {
        self.command.stdin(Stdio::piped());
        self.input = Some(text.to_owned());
        self
    }

    /// Starts the program.
    pub fn start(mut self) -> Program {
        let mut child = self.command.spawn().unwrap();
        if let Some(text) = self.input {
            // A program that does not read it is for the test to find out.
            let _ = child.stdin.take().unwrap().write_all(text.as_bytes());
        }
        let output = Lines::collect(child.stdout.take());
        let errors = Lines::collect(child.stderr.take());
        Program {
            child,
            output,
            errors,
        }
    }

    /// Starts the program and waits for its end.
    #[track_caller]
    pub fn run(self) -> Outcome {
        let mut program = self.start();
        let status = program.wait_exit();
        Outcome {
            status,
            output: program.output.text(),
            errors: program.errors.text(),
        }
    }
}

/// What a program that has ended leaves.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status.
    pub status: i32,
    /// Everything on standard output.
    pub output: String,
    /// Everything on standard error.
    pub errors: String,
}

/// A running program. Dropping it kills it; in a failing test it shows its log as well.
pub struct Program {
    child: Child,
    output: Arc<Lines>,
    errors: Arc<Lines>,
}

impl Program {
    /// Starts with a URL as the only argument.
    pub fn start(url: &str) -> Self {
        Launch::new(&[url]).start()
    }

    /// A single-end client on a free port of 127.0.0.1; `options` as in `slot=2&rate=8`.
    pub fn forward_to(target: SocketAddr, options: &str) -> Self {
        Self::start(&forward_url(target, options))
    }

    /// The first log line that contains `text`.
    #[track_caller]
    pub fn wait_for(&self, text: &str) -> String {
        self.wait_for_count(text, 1)
    }

    /// The `count`-th log line that contains `text`.
    #[track_caller]
    pub fn wait_for_count(&self, text: &str, count: usize) -> String {
        let nth = |lines: &[String]| {
            lines
                .iter()
                .filter(|l| l.contains(text))
                .nth(count - 1)
                .cloned()
        };
        self.output
            .wait(nth)
            .unwrap_or_else(|| panic!("no line {count} with {text:?} in the log"))
    }

    /// The first warning or error that contains all of `words`.
    #[track_caller]
    pub fn wait_complaint(&self, words: &[&str]) -> String {
        let found = self.output.wait(|lines| {
            let mut complaints = lines.iter().filter(|line| is_complaint(line));
            complaints
                .find(|line| words.iter().all(|word| line.contains(word)))
                .cloned()
        });
        found.unwrap_or_else(|| panic!("no warning with {words:?} in the log"))
    }

    /// Warnings and errors so far.
    pub fn complaints(&self) -> Vec<String> {
        self.lines()
            .into_iter()
            .filter(|line| is_complaint(line))
            .collect()
    }

    /// The log lines so far.
    pub fn lines(&self) -> Vec<String> {
        self.output.state.lock().unwrap().lines.clone()
    }

    /// Log lines so far that contain `text`.
    pub fn count(&self, text: &str) -> usize {
        self.lines()
            .iter()
            .filter(|line| line.contains(text))
            .count()
    }

    /// Everything on standard error so far.
    pub fn errors(&self) -> String {
        self.errors.text()
    }

    /// Where it listens for TCP.
    #[track_caller]
    pub fn tcp_address(&self) -> SocketAddr {
        listen_address(&self.wait_for("Listening on tcp "), "tcp ")
    }

    /// Where a server listens for its clients.
    #[track_caller]
    pub fn tunnel_address(&self) -> SocketAddr {
        listen_address(&self.wait_for("Tunnel listening on tcp "), "tcp ")
    }

    /// Where it listens for UDP.
    #[track_caller]
    pub fn udp_address(&self) -> SocketAddr {
        listen_address(&self.wait_for("Listening on udp "), "udp ")
    }

    /// The first checkpoint from now on that satisfies `wanted`.
    #[track_caller]
    pub fn wait_checkpoint(&self, wanted: impl Fn(&Checkpoint) -> bool) -> Checkpoint {
        let seen = self.output.state.lock().unwrap().lines.len();
        let found = self.output.wait(|lines| {
            lines
                .iter()
                .skip(seen)
                .filter_map(|line| Checkpoint::parse(line))
                .find(&wanted)
        });
        found.unwrap_or_else(|| panic!("no such checkpoint"))
    }

    /// All checkpoints so far.
    pub fn checkpoints(&self) -> Vec<Checkpoint> {
        let lines = self.lines();
        lines
            .iter()
            .filter_map(|line| Checkpoint::parse(line))
            .collect()
    }

    /// The next checkpoint.
    #[track_caller]
    pub fn checkpoint(&self) -> Checkpoint {
        self.wait_checkpoint(|_| true)
    }

    /// The last checkpoint so far.
    #[track_caller]
    pub fn last_checkpoint(&self) -> Checkpoint {
        let last = self.checkpoints().pop();
        last.unwrap_or_else(|| panic!("no checkpoint"))
    }

    /// Sends a signal.
    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Ends it without giving it a chance to say so.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
        self.wait_exit();
    }

    /// Waits for the end: the exit status, 128 and more for a signal as shells have it.
    #[track_caller]
    pub fn wait_exit(&mut self) -> i32 {
        let status = eventually("the end of the program", || self.child.try_wait().unwrap());
        self.output.wait_closed();
        self.errors.wait_closed();
        status
            .code()
            .unwrap_or_else(|| 128 + status.signal().unwrap())
    }

    /// Whether it still runs.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// Resident memory (bytes).
    pub fn memory_size(&self) -> u64 {
        self.status_number("VmRSS:") * 1024
    }

    /// Threads it has now.
    pub fn threads_count(&self) -> u64 {
        self.status_number("Threads:")
    }

    /// Descriptors it has open now.
    pub fn descriptors_count(&self) -> usize {
        let path = format!("/proc/{}/fd", self.child.id());
        fs::read_dir(path).unwrap().count()
    }

    /// The number after `label` in what the system tells of the process.
    fn status_number(&self, label: &str) -> u64 {
        let path = format!("/proc/{}/status", self.child.id());
        let status = fs::read_to_string(path).unwrap();
        let line = status.lines().find(|line| line.starts_with(label)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// Its number.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// Processor time used so far, in the kernel and outside.
    pub fn processor_time(&self) -> Duration {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id())).unwrap();
        // The name, in parentheses, may hold spaces; user and system time are 12 and 13 after it.
        let (_, fields) = stat.rsplit_once(") ").unwrap();
        let ticks = fields
            .split(' ')
            .skip(11)
            .take(2)
            .map(|field| field.parse::<u64>().unwrap());
        Duration::from_millis(ticks.sum::<u64>() * 10)
    }

    fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!(
                "--- log\n{}--- errors\n{}---",
                self.output.text(),
                self.errors.text()
            );
        }
    }
}

/// The URL of a single-end client on a free port of 127.0.0.1.
pub fn forward_url(target: SocketAddr, options: &str) -> String {
    forward_url_to(&target.to_string(), options)
}

/// The same with targets as they are written in a URL.
pub fn forward_url_to(targets: &str, options: &str) -> String {
    let separator = if options.is_empty() { "" } else { "&" };
    format!("client://127.0.0.1:0/{targets}?mode=1{separator}{options}")
}

/// Lets this process, and so the program, open as many descriptors as the system permits.
pub fn raise_descriptor_limit() {
    let mut limit = getrlimit(Resource::Nofile);
    limit.current = limit.maximum;
    setrlimit(Resource::Nofile, limit).unwrap();
}

fn is_complaint(line: &str) -> bool {
    matches!(line.split_whitespace().nth(2), Some("WARN" | "ERROR"))
}

/// The address that a line names after `marker`; a wildcard becomes the loopback address.
#[track_caller]
fn listen_address(line: &str, marker: &str) -> SocketAddr {
    let (_, text) = line.rsplit_once(marker).unwrap();
    let text = text.split_whitespace().next().unwrap();
    let text = match text.strip_prefix(':') {
        Some(port) => format!("0.0.0.0:{port}"),
        None => text.to_owned(),
    };
    let mut address: SocketAddr = text
        .parse()
        .unwrap_or_else(|_| panic!("no address in the line {line:?}"));
    if address.ip().is_unspecified() {
        address.set_ip(IpAddr::V4(Ipv4Addr::LOCALHOST));
    }
    address
}

/// One `CHECK_POINT` line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Checkpoint {
    /// Run mode in use.
    pub mode: u64,
    /// Round trip to the target or to the other end (milliseconds).
    pub ping: u64,
    /// Idle pool connections.
    pub pool: u64,
    /// Open TCP connections.
    pub tcp_sessions: u64,
    /// Open UDP sessions.
    pub udp_sessions: u64,
    /// Bytes read from TCP visitors; at the end that dials, from targets.
    pub tcp_received: u64,
    /// Bytes written there.
    pub tcp_sent: u64,
    /// Bytes read from UDP visitors; at the end that dials, from targets.
    pub udp_received: u64,
    /// Bytes written there.
    pub udp_sent: u64,
}

impl Checkpoint {
    const FIELDS: [&str; 9] = [
        "MODE", "PING", "POOL", "TCPS", "UDPS", "TCPRX", "TCPTX", "UDPRX", "UDPTX",
    ];

    /// Reads a log line; `None` if it is another one. Panics on a checkpoint of another shape.
    pub fn parse(line: &str) -> Option<Self> {
        let (_, fields) = line.split_once("CHECK_POINT|")?;
        let pairs: Vec<(&str, &str)> = fields
            .split('|')
            .map(|field| field.split_once('=').unwrap())
            .collect();
        let names: Vec<&str> = pairs.iter().map(|(name, _)| *name).collect();
        assert_eq!(names, Self::FIELDS, "shape of {line:?}");
        let values: BTreeMap<&str, u64> = pairs
            .iter()
            .map(|(name, value)| {
                let digits = match *name {
                    "PING" => value.strip_suffix("ms").unwrap(),
                    _ => value,
                };
                (
                    *name,
                    digits
                        .parse()
                        .unwrap_or_else(|_| panic!("{name} in {line:?}")),
                )
            })
            .collect();
        Some(Self {
            mode: values["MODE"],
            ping: values["PING"],
            pool: values["POOL"],
            tcp_sessions: values["TCPS"],
            udp_sessions: values["UDPS"],
            tcp_received: values["TCPRX"],
            tcp_sent: values["TCPTX"],
            udp_received: values["UDPRX"],
            udp_sent: values["UDPTX"],
        })
    }
}

/// What one output of the program has said, line by line.
#[derive(Default)]
struct Lines {
    state: Mutex<LinesState>,
    changed: Condvar,
}

#[derive(Default)]
struct LinesState {
    lines: Vec<String>,
    is_closed: bool,
}

impl Lines {
    /// Starts reading; without a pipe there is nothing to come.
    fn collect(pipe: Option<impl Read + Send + 'static>) -> Arc<Self> {
        let lines = Arc::new(Self::default());
        let Some(pipe) = pipe else {
            lines.close();
            return lines;
        };
        // Ends with the pipe, and so with the program: nobody has to join it.
        thread::spawn({
            let lines = Arc::clone(&lines);
            move || {
                for line in BufReader::new(pipe).lines() {
                    let Ok(line) = line else { break };
                    lines.state.lock().unwrap().lines.push(line);
                    lines.changed.notify_all();
                }
                lines.close();
            }
        });
        lines
    }

    fn close(&self) {
        self.state.lock().unwrap().is_closed = true;
        self.changed.notify_all();
    }

    /// Waits until `find` finds; `None` at the deadline or when nothing more can come.
    fn wait<T>(&self, find: impl Fn(&[String]) -> Option<T>) -> Option<T> {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.state.lock().unwrap();
        loop {
            if let Some(found) = find(&state.lines) {
                return Some(found);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.is_closed || left.is_zero() {
                return None;
            }
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
    }

    fn wait_closed(&self) {
        let deadline = Instant::now() + DEADLINE;
        let mut state = self.state.lock().unwrap();
        while !state.is_closed && Instant::now() < deadline {
            state = self
                .changed
                .wait_timeout(state, Duration::from_millis(100))
                .unwrap()
                .0;
        }
    }

    fn text(&self) -> String {
        let state = self.state.lock().unwrap();
        state
            .lines
            .iter()
            .fold(String::new(), |text, line| text + line + "\n")
    }
}
