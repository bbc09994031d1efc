//! The two ends of a tunnel, watched: no key in any log, no line that is too long, no panic.

use std::net::SocketAddr;
use std::ops::{Deref, DerefMut};
use std::thread;

use nodepass::limits::LOG_LINE_SIZE_MAX;
use nodepass::wire::key::TunnelKey;
use nodepass::wire::proof::{bearer_token, encode_hex};
use rustix::process::Signal;

use super::eventually;
use super::program::{Launch, Program};

/// The key of tunnels under test, easily found where it should not be.
pub const KEY: &str = "sup3rsecret";

/// What stands in front of the text of a log line: time and level.
const LINE_PREFIX_SIZE: usize = 64;

/// Short times, so that faults are noticed and mended within a test.
pub const QUICK: &[(&str, &str)] = &[
    ("NP_REPORT_INTERVAL", "300ms"),
    ("NP_SERVICE_COOLDOWN", "300ms"),
    ("NP_POOL_GET_TIMEOUT", "2s"),
    ("NP_HANDSHAKE_TIMEOUT", "2s"),
    ("NP_SHUTDOWN_TIMEOUT", "1s"),
];

/// One end. Dropping it kills it, and looks through all it has said.
pub struct End {
    program: Program,
    key: TunnelKey,
}

impl End {
    /// Starts a program whose URL has `key`.
    pub fn start(launch: Launch, key: &str) -> Self {
        Self {
            program: launch.start(),
            key: TunnelKey::new(key.as_bytes().to_vec()),
        }
    }

    /// A server; `tunnel` and `target` as they stand in a URL, `options` as in `mode=1&tls=1`.
    pub fn server(tunnel: &str, target: &str, options: &str, env: &[(&str, &str)]) -> Self {
        let url = format!("server://{KEY}@{tunnel}/{target}?log=debug&{options}");
        Self::start(with_env(Launch::new(&[&url]), env), KEY)
    }

    /// A client that goes to a server; else as [`End::server`].
    pub fn client(tunnel: SocketAddr, target: &str, options: &str, env: &[(&str, &str)]) -> Self {
        let url = client_url(tunnel, target, options);
        Self::start(with_env(Launch::new(&[&url]), env), KEY)
    }

    /// Where a server waits for clients.
    #[track_caller]
    pub fn tunnel_address(&self) -> SocketAddr {
        let line = self.wait_for("Tunnel listening on tcp ");
        let (_, address) = line.rsplit_once("tcp ").unwrap();
        address.trim().parse().unwrap()
    }

    /// Waits for the `count`-th session to be up; what the log says of it.
    #[track_caller]
    pub fn wait_up(&self, count: usize) -> String {
        self.wait_session_line(" is up: ", count)
    }

    /// Waits for the `count`-th end of a session, of which the log tells all of `words`.
    #[track_caller]
    pub fn wait_ended(&self, count: usize, words: &[&str]) -> String {
        let line = self.wait_session_line(" ended: ", count);
        for word in words {
            assert!(line.contains(word), "no {word:?} in {line:?}");
        }
        line
    }

    /// Sessions that have been up so far.
    pub fn up_count(&self) -> usize {
        self.session_lines(" is up: ").len()
    }

    /// Sessions that have ended so far.
    pub fn ended_count(&self) -> usize {
        self.session_lines(" ended: ").len()
    }

    #[track_caller]
    fn wait_session_line(&self, what: &str, count: usize) -> String {
        eventually(what, || self.session_lines(what).into_iter().nth(count - 1))
    }

    fn session_lines(&self, what: &str) -> Vec<String> {
        let mut lines = self.lines();
        lines.retain(|line| {
            let mut parts = line.split(what);
            parts
                .next()
                .is_some_and(|start| start.contains("ession with "))
                && parts.next().is_some()
        });
        lines
    }

    /// Kills the program and looks through its log.
    pub fn kill(self) {
        drop(self);
    }

    /// Panics if the program has said what it never may.
    fn check(&self) {
        let log = self.lines();
        let too_long = |line: &&String| line.len() > LOG_LINE_SIZE_MAX + LINE_PREFIX_SIZE;
        assert!(log.iter().find(too_long).is_none(), "a line is too long");
        let errors = self.errors();
        assert!(!errors.contains("panicked"), "{errors}");
        let secret = String::from_utf8(self.key.as_bytes().to_vec()).unwrap();
        let token = encode_hex(&bearer_token(&self.key));
        let hex = encode_hex(self.key.as_bytes());
        for line in log.iter().map(String::as_str).chain(errors.lines()) {
            for secret in [&secret, &token, &hex] {
                assert!(!line.contains(secret.as_str()), "a secret in {line:?}");
            }
        }
    }
}

impl Deref for End {
    type Target = Program;

    fn deref(&self) -> &Program {
        &self.program
    }
}

impl DerefMut for End {
    fn deref_mut(&mut self) -> &mut Program {
        &mut self.program
    }
}

impl Drop for End {
    fn drop(&mut self) {
        if thread::panicking() {
            return;
        }
        if self.program.is_running() {
            // Not by the program's own drop: what it has written is to be read to its end.
            self.program.signal(Signal::KILL);
        }
        self.program.wait_exit();
        self.check();
    }
}

/// The URL of a client that goes to a server.
pub fn client_url(tunnel: SocketAddr, target: &str, options: &str) -> String {
    format!("client://{KEY}@{tunnel}/{target}?mode=2&log=debug&{options}")
}

/// Sets all of `env`.
pub fn with_env(mut launch: Launch, env: &[(&str, &str)]) -> Launch {
    for (name, value) in env {
        launch = launch.env(name, value);
    }
    launch
}

/// Both ends of a reverse tunnel: visitors come to the server, the client dials `target`.
pub struct Reverse {
    /// The server.
    pub server: End,
    /// The client.
    pub client: End,
    /// Where visitors go, TCP and UDP.
    pub entry: SocketAddr,
    /// Where the client goes.
    pub tunnel: SocketAddr,
}

impl Reverse {
    /// Starts both with [`QUICK`] times and waits until the session is up.
    #[track_caller]
    pub fn start(target: SocketAddr, server_options: &str, client_options: &str) -> Self {
        let options = format!("mode=1&{server_options}");
        let server = End::server("127.0.0.1:0", "127.0.0.1:0", &options, QUICK);
        let tunnel = server.tunnel_address();
        let client = End::client(tunnel, &target.to_string(), client_options, QUICK);
        client.wait_up(1);
        server.wait_up(1);
        Self {
            entry: server.tcp_address(),
            tunnel,
            server,
            client,
        }
    }
}
