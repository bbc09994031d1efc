//! One process of an instance.

use std::ffi::OsStr;
use std::fmt;
use std::io::{self, PipeReader, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::PathBuf;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use rustix::fs::OFlags;
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::output::Lines;
use crate::config::instance::with_checkpoints;
use crate::limits::{INSTANCE_DESCRIPTORS_SPARE, INSTANCE_OUTPUT_SIZE, Limits};
use crate::runtime::descriptors::check_spare;
use crate::runtime::parent::{MASTER_VARIABLE, own_id};
use crate::wire::checkpoint::Checkpoint;

/// A process of an instance. One that is dropped while it runs is killed by the end of the thread
/// that started it.
#[derive(Debug)]
pub struct Process {
    child: Child,
    /// `None` once it has been closed.
    output: Option<PipeReader>,
    lines: Lines,
    /// Its last checkpoint.
    pub last: Checkpoint,
    /// When it has been silent for too long; `None` once that has been said.
    pub silent_at: Option<Instant>,
    /// What it writes is for nobody but the master.
    pub is_kept_quiet: bool,
    /// Whether it has been told to end.
    pub outlook: Outlook,
}

/// What is expected of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outlook {
    /// It runs until it is told to end.
    Stays,
    /// It is about to end.
    Ends,
}

/// How a process has ended.
#[derive(Clone, Copy, Debug)]
pub struct End(Option<ExitStatus>);

impl End {
    /// Returns whether it ended as if by its own will.
    pub fn is_success(self) -> bool {
        self.0.is_some_and(|status| status.success())
    }
}

impl fmt::Display for End {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Some(status) = self.0 else {
            return f.write_str("how is not known");
        };
        match (status.code(), status.signal()) {
            (Some(code), _) => write!(f, "exit status {code}"),
            (None, Some(signal)) => write!(f, "killed by signal {signal}"),
            (None, None) => write!(f, "{status}"),
        }
    }
}

/// Returns the program that runs here, also when its file has been replaced or removed; without
/// /proc, as in a root of its own, what the kernel was told to start.
fn own_program() -> PathBuf {
    match std::env::current_exe() {
        Ok(program) if program.exists() => program,
        Ok(_) => PathBuf::from("/proc/self/exe"),
        Err(_) => PathBuf::from(OsStr::from_bytes(rustix::param::linux_execfn().to_bytes())),
    }
}

impl Process {
    /// Starts this program with a URL on its standard input.
    ///
    /// Errors: the system has no room for a process, or the program is not there any more.
    pub fn start(url: &str, limits: &Limits, silence: Duration) -> io::Result<Self> {
        check_spare(INSTANCE_DESCRIPTORS_SPARE)?;
        let (url, is_kept_quiet) = with_checkpoints(url, limits);
        let (output, input) = io::pipe()?;
        // Only this end: the process writes as it always does.
        rustix::fs::fcntl_setfl(&output, OFlags::NONBLOCK)?;
        let mut child = Command::new(own_program())
            .arg("-")
            .env(MASTER_VARIABLE, own_id())
            // It may hold a key, and is not for an instance.
            .env_remove("NODEPASS_URL")
            .stdin(Stdio::piped())
            .stdout(input.try_clone()?)
            .stderr(input)
            // A stop from the keyboard goes to all of a group: it is for the master to pass on,
            // or an instance would be seen to end by itself.
            .process_group(0)
            .spawn()?;
        if let Some(mut stdin) = child.stdin.take() {
            // A pipe holds more than the longest URL. A process that ends before it reads says why.
            let _ = stdin.write_all(format!("{url}\n").as_bytes());
        }
        Ok(Self {
            child,
            output: Some(output),
            lines: Lines::default(),
            last: Checkpoint::default(),
            silent_at: Some(Instant::now() + silence),
            is_kept_quiet,
            outlook: Outlook::Stays,
        })
    }

    /// Returns where it writes; `None` once it has closed that, which it does when it ends.
    pub fn output(&self) -> Option<BorrowedFd<'_>> {
        self.output.as_ref().map(AsFd::as_fd)
    }

    /// Returns the lines that it has written, as far as they fit in one turn. Does not wait.
    pub fn read(&mut self) -> Vec<String> {
        let mut lines = Vec::new();
        let Some(output) = &self.output else {
            return lines;
        };
        let mut buffer = [0; 4096];
        let mut room = INSTANCE_OUTPUT_SIZE;
        while room >= buffer.len() {
            match rustix::io::read(output, &mut buffer) {
                Ok(0) => {
                    lines.extend(self.lines.rest());
                    self.output = None;
                    break;
                }
                Ok(size) => {
                    room -= size;
                    self.lines.push(&buffer[..size], |line| lines.push(line));
                }
                // Nothing more for now.
                Err(_) => break,
            }
        }
        lines
    }

    /// Returns how it has ended, once it has and all that it wrote has been read. Does not wait.
    pub fn ended(&mut self) -> Option<End> {
        if self.output.is_some() {
            return None;
        }
        match self.child.try_wait() {
            Ok(None) => None,
            Ok(Some(status)) => Some(End(Some(status))),
            // It is not there, whatever became of it.
            Err(_) => Some(End(None)),
        }
    }

    /// Returns whether it runs no more, though all that it wrote may not have been read yet. Does not
    /// wait, and leaves [`Process::ended`] to tell how.
    pub fn has_exited(&self) -> bool {
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        self.pid()
            .is_some_and(|pid| matches!(waitid(WaitId::Pid(pid), options), Ok(Some(_))))
    }

    /// Asks it to end.
    pub fn ask_to_end(&mut self) {
        self.outlook = Outlook::Ends;
        self.signal(Signal::TERM);
    }

    /// Ends it.
    pub fn kill(&mut self) {
        self.signal(Signal::KILL);
    }

    /// Returns its number.
    #[cfg(test)]
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    fn pid(&self) -> Option<Pid> {
        i32::try_from(self.child.id()).ok().and_then(Pid::from_raw)
    }

    fn signal(&self, signal: Signal) {
        if let Some(pid) = self.pid() {
            // It has not been waited for, so the number is still its own; one that has ended
            // takes no harm.
            let _ = kill_process(pid, signal);
        }
    }
}
