//! The forwarders that are compared, and how each is started and stopped.
//!
//! To add one, add a row to `PEERS`. A tunnel is a forwarder with two commands.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::time::{Duration, Instant};
use std::{env, thread};

use rustix::process::{Pid, Signal, kill_process_group};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::bulk::BulkRequest;
use crate::target::{Target, loopback};
use crate::{datagrams, load};

/// One forwarder.
///
/// In files and commands these stand for what is known only when it is started: `{visitors}` where
/// visitors come to, `{target}` where they end up, `{control}` where a tunnel's server waits for
/// its client, all of them address and port; `{port}` the port for visitors alone, `{folder}` a
/// folder of its own, `{nodepass}` and `{rathole}` programs.
pub struct Peer {
    pub name: &'static str,
    pub kind: Kind,
    /// Configuration files: name and content.
    files: &'static [(&'static str, &'static str)],
    /// Program and arguments of each process, in the order in which they start.
    commands: &'static [&'static [&'static str]],
    /// The same for UDP; none if it does not forward UDP.
    datagram_commands: &'static [&'static [&'static str]],
    /// Most idle visitors to try it with.
    pub idle_count_max: usize,
}

/// What a peer is compared with.
#[derive(Clone, Copy, PartialEq)]
pub enum Kind {
    /// No program at all: visitors go straight to the target.
    Direct,
    /// One program between visitors and target.
    Forwarder,
    /// Two programs: a server that visitors come to, and a client beside the target.
    Tunnel,
}

impl Kind {
    /// Whether it has two ends, which a link can be between.
    pub fn is_on_link(self) -> bool {
        self != Kind::Forwarder
    }
}

const NODEPASS: &[&[&str]] = &[&[
    "{nodepass}",
    "client://{visitors}/{target}?mode=1&log=error",
]];

const NODEPASS_CLIENT: &[&str] = &[
    "{nodepass}",
    "client://bench@{control}/{target}?mode=2&auth=1&log=error",
];

const NODEPASS_TUNNEL: &[&[&str]] = &[
    &[
        "{nodepass}",
        "server://bench@{control}/{visitors}?mode=1&tls=0&auth=1&log=error",
    ],
    NODEPASS_CLIENT,
];

const NODEPASS_TUNNEL_TLS: &[&[&str]] = &[
    &[
        "{nodepass}",
        "server://bench@{control}/{visitors}?mode=1&tls=1&auth=1&log=error",
    ],
    NODEPASS_CLIENT,
];

const NODEPASS_TUNNEL_WEB_SOCKET: &[&[&str]] = &[
    &[
        "{nodepass}",
        "server://bench@{control}/{visitors}?mode=1&tls=0&type=2&auth=1&log=error",
    ],
    NODEPASS_CLIENT,
];

const NODEPASS_TUNNEL_WEB_SOCKET_TLS: &[&[&str]] = &[
    &[
        "{nodepass}",
        "server://bench@{control}/{visitors}?mode=1&tls=1&type=2&auth=1&log=error",
    ],
    NODEPASS_CLIENT,
];

const NODEPASS_TUNNEL_HTTP2: &[&[&str]] = &[
    &[
        "{nodepass}",
        "server://bench@{control}/{visitors}?mode=1&tls=1&type=3&auth=1&log=error",
    ],
    NODEPASS_CLIENT,
];

const NODEPASS_TUNNEL_QUIC: &[&[&str]] = &[
    &[
        "{nodepass}",
        "server://bench@{control}/{visitors}?mode=1&tls=1&type=1&auth=1&log=error",
    ],
    NODEPASS_CLIENT,
];

const RATHOLE: &[&[&str]] = &[
    &["{rathole}", "--server", "{folder}/server.toml"],
    &["{rathole}", "--client", "{folder}/client.toml"],
];

pub const PEERS: &[Peer] = &[
    // What the load generator and the target can do.
    Peer {
        name: "direct",
        kind: Kind::Direct,
        files: &[],
        commands: &[],
        datagram_commands: &[],
        idle_count_max: 0,
    },
    Peer {
        name: "nodepass",
        kind: Kind::Forwarder,
        files: &[],
        commands: NODEPASS,
        datagram_commands: NODEPASS,
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "socat",
        kind: Kind::Forwarder,
        files: &[],
        commands: &[&[
            "socat",
            "-b65536",
            "TCP-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr,nodelay,backlog=1024",
            "TCP:{target},nodelay",
        ]],
        datagram_commands: &[&[
            "socat",
            "-T30",
            "-b65536",
            "UDP4-LISTEN:{port},bind=127.0.0.1,fork,reuseaddr",
            "UDP4:{target}",
        ]],
        // It runs one process for each visitor.
        idle_count_max: 1000,
    },
    Peer {
        name: "haproxy",
        kind: Kind::Forwarder,
        files: &[(
            "haproxy.cfg",
            "global\n  maxconn 6000\n\
             defaults\n  mode tcp\n\
             \x20 timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n\
             \x20 option splice-request\n  option splice-response\n\
             listen forward\n  bind {visitors}\n  server target {target}\n",
        )],
        commands: &[&["haproxy", "-db", "-f", "{folder}/haproxy.cfg"]],
        datagram_commands: &[],
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "tunnel",
        kind: Kind::Tunnel,
        files: &[],
        commands: NODEPASS_TUNNEL,
        datagram_commands: NODEPASS_TUNNEL,
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "tunnel-tls",
        kind: Kind::Tunnel,
        files: &[],
        commands: NODEPASS_TUNNEL_TLS,
        datagram_commands: NODEPASS_TUNNEL_TLS,
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "tunnel-ws",
        kind: Kind::Tunnel,
        files: &[],
        commands: NODEPASS_TUNNEL_WEB_SOCKET,
        datagram_commands: NODEPASS_TUNNEL_WEB_SOCKET,
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "tunnel-wss",
        kind: Kind::Tunnel,
        files: &[],
        commands: NODEPASS_TUNNEL_WEB_SOCKET_TLS,
        datagram_commands: NODEPASS_TUNNEL_WEB_SOCKET_TLS,
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "tunnel-h2",
        kind: Kind::Tunnel,
        files: &[],
        commands: NODEPASS_TUNNEL_HTTP2,
        datagram_commands: NODEPASS_TUNNEL_HTTP2,
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "tunnel-quic",
        kind: Kind::Tunnel,
        files: &[],
        commands: NODEPASS_TUNNEL_QUIC,
        datagram_commands: NODEPASS_TUNNEL_QUIC,
        idle_count_max: usize::MAX,
    },
    Peer {
        name: "rathole",
        kind: Kind::Tunnel,
        files: &[
            (
                "server.toml",
                "[server]\nbind_addr = \"{control}\"\ndefault_token = \"bench\"\n\
                 [server.services.tcp]\nbind_addr = \"{visitors}\"\n\
                 [server.services.udp]\ntype = \"udp\"\nbind_addr = \"{visitors}\"\n",
            ),
            (
                "client.toml",
                "[client]\nremote_addr = \"{control}\"\ndefault_token = \"bench\"\n\
                 [client.services.tcp]\nlocal_addr = \"{target}\"\n\
                 [client.services.udp]\ntype = \"udp\"\nlocal_addr = \"{target}\"\n",
            ),
        ],
        commands: RATHOLE,
        datagram_commands: RATHOLE,
        idle_count_max: usize::MAX,
    },
];

/// How long a forwarder may take until it forwards.
const READY_TIMEOUT: Duration = Duration::from_secs(10);

/// How long to wait before asking again whether it does.
const READY_INTERVAL: Duration = Duration::from_millis(20);

/// Pause between the processes of one forwarder.
const COMMAND_INTERVAL: Duration = Duration::from_millis(300);

/// Rest before measurements, for what a forwarder does after its start.
const SETTLE_TIME: Duration = Duration::from_millis(200);

/// How long a forwarder may take to stop when asked to.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Ports for forwarders, below the range that the kernel takes for outgoing connections.
const FIRST_PORT: u16 = 17_100;
const LAST_PORT: u16 = 30_000;
static NEXT_PORT: AtomicU16 = AtomicU16::new(FIRST_PORT);

/// What of the target is to be forwarded.
#[derive(Clone, Copy, PartialEq)]
pub enum Service {
    Echo,
    EchoDatagrams,
    Bulk,
}

impl Peer {
    pub fn forwards_datagrams(&self) -> bool {
        self.kind == Kind::Direct || !self.datagram_commands.is_empty()
    }

    /// Whether it is what all others are compared with.
    pub fn is_nodepass(&self) -> bool {
        self.commands
            .iter()
            .any(|command| command[0] == "{nodepass}")
    }

    /// Whether its programs are installed.
    pub fn is_installed(&self, programs: &Programs) -> bool {
        self.commands.iter().all(|command| {
            let program = programs.expand(command[0]);
            // A path of several parts stands for itself, whatever it is joined to.
            env::split_paths(&search_path()).any(|folder| folder.join(&program).is_file())
        })
    }
}

/// The programs that are not looked for where others are.
pub struct Programs {
    pub nodepass: PathBuf,
    pub rathole: PathBuf,
}

impl Programs {
    fn expand(&self, text: &str) -> String {
        text.replace("{nodepass}", &self.nodepass.to_string_lossy())
            .replace("{rathole}", &self.rathole.to_string_lossy())
    }
}

/// Where forwarders and targets run.
///
/// Visitors always come to a loopback address of the place where the benchmark itself runs.
pub struct Site {
    pub programs: Programs,
    /// Where forwarders keep their files while they run.
    pub folder: PathBuf,
    /// The address at which a tunnel's client finds its server.
    pub server: IpAddr,
    /// The address of targets.
    pub target: IpAddr,
    /// Network namespace of the target and of a tunnel's client, if not that of the benchmark.
    pub far_namespace: Option<OwnedFd>,
}

impl Site {
    /// Starts a process beside the target.
    pub fn spawn_far(&self, command: &mut Command) -> io::Result<Child> {
        let Some(namespace) = &self.far_namespace else {
            return command.spawn();
        };
        // A process begins in the namespace of the thread that starts it.
        let spawn = || {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            command.spawn()
        };
        thread::scope(|scope| scope.spawn(spawn).join())
            .unwrap_or_else(|_| Err(io::Error::other("the starting thread panicked")))
    }
}

/// A forwarder in front of a target. Dropping it ends all its processes.
pub struct Forwarder {
    children: Vec<Child>,
    folder: PathBuf,
    /// Where visitors connect to.
    pub address: SocketAddr,
}

impl Forwarder {
    /// Starts a forwarder and waits until it forwards.
    ///
    /// Errors: what it wrote, when it ended or did not forward in time.
    pub fn start(
        site: &Site,
        peer: &Peer,
        service: Service,
        target: &Target,
    ) -> io::Result<Forwarder> {
        let target_address = if service == Service::Bulk {
            target.sink
        } else {
            target.echo
        };
        let mut forwarder = Forwarder {
            children: Vec::new(),
            folder: site.folder.join(peer.name),
            address: target_address,
        };
        if peer.kind != Kind::Direct {
            forwarder.address = loopback(find_free_port()?);
            forwarder.start_processes(site, peer, service, target_address)?;
        }
        forwarder.wait_until_ready(service)?;
        thread::sleep(SETTLE_TIME);
        Ok(forwarder)
    }

    /// Its first processes; they may have children.
    pub fn pids(&self) -> Vec<u32> {
        self.children.iter().map(Child::id).collect()
    }

    fn start_processes(
        &mut self,
        site: &Site,
        peer: &Peer,
        service: Service,
        target: SocketAddr,
    ) -> io::Result<()> {
        fs::create_dir_all(&self.folder)?;
        let control = SocketAddr::new(site.server, find_free_port()?);
        let expand = |text: &str| {
            site.programs
                .expand(text)
                .replace("{visitors}", &self.address.to_string())
                .replace("{port}", &self.address.port().to_string())
                .replace("{target}", &target.to_string())
                .replace("{control}", &control.to_string())
                .replace("{folder}", &self.folder.to_string_lossy())
        };
        for (name, content) in peer.files {
            fs::write(self.folder.join(name), expand(content))?;
        }
        let commands = match service {
            Service::EchoDatagrams => peer.datagram_commands,
            Service::Echo | Service::Bulk => peer.commands,
        };
        for (index, command) in commands.iter().enumerate() {
            let log = File::create(self.folder.join(format!("{index}.log")))?;
            let mut process = Command::new(expand(command[0]));
            process
                .args(command[1..].iter().map(|argument| expand(argument)))
                .env("PATH", search_path())
                // How some are told to log no more than nodepass is.
                .env("RUST_LOG", "error")
                .stdin(Stdio::null())
                .stdout(log.try_clone()?)
                .stderr(log)
                // A group of its own, so that its children can be ended with it.
                .process_group(0);
            let child = if index == 0 {
                process.spawn()?
            } else {
                thread::sleep(COMMAND_INTERVAL);
                site.spawn_far(&mut process)?
            };
            self.children.push(child);
        }
        Ok(())
    }

    fn wait_until_ready(&mut self, service: Service) -> io::Result<()> {
        let deadline = Instant::now() + READY_TIMEOUT;
        loop {
            let ready = match service {
                Service::Echo => load::is_answered(self.address),
                Service::EchoDatagrams => datagrams::is_answered(self.address, READY_INTERVAL)?,
                Service::Bulk => probe_bulk(self.address).is_ok(),
            };
            if ready {
                return Ok(());
            }
            for child in &mut self.children {
                if let Some(status) = child.try_wait()? {
                    let log = self.read_logs();
                    return Err(io::Error::other(format!("ended with {status}: {log}")));
                }
            }
            if Instant::now() > deadline {
                let log = self.read_logs();
                return Err(io::Error::other(format!("does not forward: {log}")));
            }
            thread::sleep(READY_INTERVAL);
        }
    }

    /// What its processes wrote, on one line.
    fn read_logs(&self) -> String {
        let paths = (0..self.children.len()).map(|index| self.folder.join(format!("{index}.log")));
        let logs = paths.filter_map(|path| fs::read_to_string(path).ok());
        logs.collect::<String>()
            .lines()
            .collect::<Vec<_>>()
            .join(" / ")
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        // Nothing here can fail in a way that matters: the processes may be gone already.
        for child in &self.children {
            kill_group(child, Signal::TERM);
        }
        let deadline = Instant::now() + STOP_TIMEOUT;
        for child in &mut self.children {
            while matches!(child.try_wait(), Ok(None)) && Instant::now() < deadline {
                thread::sleep(READY_INTERVAL);
            }
            kill_group(child, Signal::KILL);
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn kill_group(leader: &Child, signal: Signal) {
    if let Some(pid) = i32::try_from(leader.id()).ok().and_then(Pid::from_raw) {
        let _ = kill_process_group(pid, signal);
    }
}

fn probe_bulk(address: SocketAddr) -> io::Result<()> {
    let mut visitor = TcpStream::connect_timeout(&address, READY_TIMEOUT)?;
    visitor.set_read_timeout(Some(READY_TIMEOUT))?;
    visitor.write_all(&[BulkRequest::Probe.encode()])?;
    visitor.read_exact(&mut [0])
}

/// The next port that is free for TCP and UDP.
fn find_free_port() -> io::Result<u16> {
    for _ in FIRST_PORT..LAST_PORT {
        let port = NEXT_PORT.fetch_add(1, Ordering::Relaxed);
        if port >= LAST_PORT {
            NEXT_PORT.store(FIRST_PORT, Ordering::Relaxed);
        }
        let address = loopback(port);
        if TcpListener::bind(address).is_ok() && UdpSocket::bind(address).is_ok() {
            return Ok(port);
        }
    }
    Err(io::ErrorKind::AddrInUse.into())
}

/// Where programs are looked for: haproxy is where only the administrator looks.
pub fn search_path() -> OsString {
    let mut path = env::var_os("PATH").unwrap_or_default();
    path.push(":/usr/sbin:/usr/local/sbin");
    path
}
