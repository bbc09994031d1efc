//! Peers of another making: the scripts of `tests/peers`, run by the Python that `make test` sets
//! up for them.

use std::io::{BufRead, BufReader, Read};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use std::{env, thread};

use serde_json::Value;

use super::eventually;

/// How long a script may take for a step: an interpreter has to start, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(40);

/// Names another interpreter than that of `make test`.
const VARIABLE: &str = "NP_TEST_PYTHON";

/// A running script. Dropping it kills it; in a failing test it shows what it has said as well.
pub struct PythonPeer {
    child: Child,
    events: Receiver<Value>,
    said: Arc<Mutex<String>>,
    patience: Duration,
}

impl PythonPeer {
    /// Starts `tests/peers/SCRIPT`.
    #[track_caller]
    pub fn start(script: &str, arguments: &[&str]) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/peers");
        let mut child = Command::new(interpreter())
            .arg("-B")
            .arg(folder.join(script))
            .args(arguments)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let said = Arc::new(Mutex::new(String::new()));
        let (report, events) = mpsc::channel();
        let output = child.stdout.take().unwrap();
        collect(output, &said, move |line| {
            if let Ok(event) = serde_json::from_str(line) {
                // Nobody may be waiting any more.
                let _ = report.send(event);
            }
        });
        collect(child.stderr.take().unwrap(), &said, |_| {});
        Self {
            child,
            events,
            said,
            patience: PATIENCE,
        }
    }

    /// The same, which may take so long for a step.
    pub fn patience(mut self, patience: Duration) -> Self {
        self.patience = patience;
        self
    }

    /// The next event of that name; others are passed over.
    #[track_caller]
    pub fn wait_for(&self, name: &str) -> Value {
        let deadline = Instant::now() + self.patience;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.events.recv_timeout(left) {
                Ok(event) if event["event"] == name => return event,
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => panic!("ended without {name:?}"),
                Err(RecvTimeoutError::Timeout) => panic!("no {name:?} within {:?}", self.patience),
            }
        }
    }

    /// Waits for the end, and for the script to say that all was as it should be.
    #[track_caller]
    pub fn wait_done(mut self) {
        self.wait_for("done");
        let status = eventually("the end of the script", || self.child.try_wait().unwrap());
        assert!(status.success(), "{status}");
    }
}

impl Drop for PythonPeer {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if thread::panicking() {
            eprintln!("--- script\n{}---", self.said.lock().unwrap());
        }
    }
}

/// Keeps each line, and gives it to `take`. Ends with the script, so nobody has to join it.
fn collect(
    pipe: impl Read + Send + 'static,
    said: &Arc<Mutex<String>>,
    take: impl Fn(&str) + Send + 'static,
) {
    let said = Arc::clone(said);
    thread::spawn(move || {
        for line in BufReader::new(pipe).lines().map_while(Result::ok) {
            *said.lock().unwrap() += &format!("{line}\n");
            take(&line);
        }
    });
}

/// The interpreter with what the peers need.
#[track_caller]
fn interpreter() -> PathBuf {
    if let Some(path) = env::var_os(VARIABLE) {
        return path.into();
    }
    // Beside the folder for files of the tests, in that of all that is built.
    let path = Path::new(env!("CARGO_TARGET_TMPDIR")).with_file_name("python/bin/python3");
    assert!(
        path.exists(),
        "{} is missing, which the peers of these tests need: run `make test`, which makes it, or \
         name an interpreter that has what is in tests/peers/requirements.txt in {VARIABLE}",
        path.display()
    );
    path
}
