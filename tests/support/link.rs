//! Two network namespaces, joined by a link with a fixed delay: `delaylink.c` says how.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::Duration;

use rustix::process::geteuid;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

const SOURCE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/support/delaylink.c");

/// The address of the near end.
pub const NEAR: &str = "10.86.0.1";

/// The link. Dropping it takes both namespaces away, once nothing runs in them.
pub struct Link {
    child: Child,
    near: File,
    far: File,
}

/// One of its ends.
#[derive(Debug, Clone, Copy)]
pub enum Place {
    /// The one with the address [`NEAR`].
    Near,
    /// The other one.
    Far,
}

impl Link {
    /// Builds and starts a link on which each packet takes `delay`, each way.
    ///
    /// Errors: this machine does not let us, and why.
    pub fn start(delay: Duration) -> Result<Self, String> {
        if !geteuid().is_root() {
            return Err(String::from("only root makes network namespaces"));
        }
        if !Path::new("/dev/net/tun").exists() {
            return Err(String::from("there is no /dev/net/tun"));
        }
        let program = build()?;
        let mut child = Command::new(&program)
            .arg(delay.as_micros().to_string())
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("{program}: {error}"))?;
        // It runs: its file is no longer needed.
        let _ = std::fs::remove_file(&program);
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        let ends: Vec<File> = line
            .split_whitespace()
            .filter_map(|number| File::open(format!("/proc/{}/fd/{number}", child.id())).ok())
            .collect();
        let Ok([near, far]) = <[File; 2]>::try_from(ends) else {
            let _ = child.kill();
            let _ = child.wait();
            return Err(String::from("no permission for network namespaces"));
        };
        Ok(Self { child, near, far })
    }

    /// Does `work` at one end: sockets it makes and programs it starts stay there.
    pub fn at<T: Send>(&self, place: Place, work: impl FnOnce() -> T + Send) -> T {
        let name_space = match place {
            Place::Near => &self.near,
            Place::Far => &self.far,
        };
        let enter = || {
            // A namespace is that of a thread, so one of its own.
            let kind = Some(LinkNameSpaceType::Network);
            move_into_link_name_space(name_space.as_fd(), kind).unwrap();
            work()
        };
        thread::scope(|scope| scope.spawn(enter).join())
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Says that a case was not run, so that it can be seen whatever becomes of the other output.
pub fn skip(case: &str, reason: &str) {
    // The macros would write into what is shown of failed cases only.
    let _ = writeln!(io::stderr(), "skipped: {case}: {reason}");
}

/// Builds the program; where it is.
fn build() -> Result<String, String> {
    static COUNT: AtomicU32 = AtomicU32::new(0);
    let (process, count) = (std::process::id(), COUNT.fetch_add(1, Ordering::Relaxed));
    let program = format!(
        "{}/delaylink-{process}-{count}",
        env!("CARGO_TARGET_TMPDIR")
    );
    let compiled = Command::new("cc")
        .args(["-O2", "-o", &program, SOURCE])
        .stdin(Stdio::null())
        .output()
        .map_err(|error| format!("cc: {error}"))?;
    if compiled.status.success() {
        Ok(program)
    } else {
        Err(String::from_utf8_lossy(&compiled.stderr).into_owned())
    }
}
