//! A server and a client that belong together, in every combination of their kinds.
//!
//! ```text
//!            reverse:  visitors ──▶ server ◀── client ──▶ target
//!            forward:  visitors ──▶ client ──▶ server ──▶ target
//! ```
//!
//! The entry takes the visitors, the exit dials the target.

use std::fmt::{self, Display};
use std::net::SocketAddr;

use super::certificates::Certificates;
use super::downgrade::Downgrade;
use super::own_loopback;
use super::program::{Launch, Program};

/// Which end takes the visitors.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flow {
    /// The server.
    Reverse,
    /// The client.
    Forward,
}

impl Flow {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Reverse, Self::Forward];

    /// Option `mode` of the server, and what it reports.
    pub fn mode(self) -> u64 {
        match self {
            Self::Reverse => 1,
            Self::Forward => 2,
        }
    }
}

impl Display for Flow {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Reverse => "reverse",
            Self::Forward => "forward",
        })
    }
}

/// What encrypts the tunnel.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tls {
    /// Nothing.
    None,
    /// A certificate that the server makes.
    SelfSigned,
    /// One from files, which the client verifies.
    Verified,
}

impl Tls {
    /// What this build can do.
    pub fn built_in() -> &'static [Self] {
        if cfg!(feature = "tls") {
            &[Self::None, Self::SelfSigned, Self::Verified]
        } else {
            &[Self::None]
        }
    }

    /// Option `tls`.
    pub fn digit(self) -> u8 {
        match self {
            Self::None => 0,
            Self::SelfSigned => 1,
            Self::Verified => 2,
        }
    }
}

/// How both ends talk to each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dialect {
    /// As programs of this kind do.
    Native,
    /// As programs of the 1.x line do, which a [`Downgrade`] between them brings about.
    V1,
}

/// A pool transport, and what it goes together with.
#[derive(Debug)]
struct Transport {
    /// Option `type`.
    number: u8,
    is_built: bool,
    /// The least encryption that it has: with less of it, it takes this.
    tls_min: Tls,
    /// The flows in which v1 is tried. What the dialects differ in is for the most part the same
    /// in all transports, and seen in both flows of the first one.
    v1_flows: &'static [Flow],
}

/// Pool type TCP.
pub const TCP: u8 = 0;

/// Pool type QUIC.
pub const QUIC: u8 = 1;

/// Pool type WebSocket.
pub const WEB_SOCKET: u8 = 2;

/// Pool type HTTP/2.
pub const HTTP2: u8 = 3;

/// The transports that there are.
const TRANSPORTS: &[Transport] = &[
    Transport {
        number: TCP,
        is_built: true,
        tls_min: Tls::None,
        v1_flows: &Flow::ALL,
    },
    Transport {
        number: QUIC,
        is_built: cfg!(feature = "quic"),
        tls_min: Tls::SelfSigned,
        v1_flows: &[Flow::Reverse],
    },
    Transport {
        number: WEB_SOCKET,
        is_built: cfg!(feature = "websocket"),
        tls_min: Tls::None,
        v1_flows: &[Flow::Reverse],
    },
    Transport {
        number: HTTP2,
        is_built: cfg!(feature = "http2"),
        tls_min: Tls::SelfSigned,
        v1_flows: &[Flow::Forward],
    },
];

impl Transport {
    /// Those of this build.
    fn built_in() -> impl Iterator<Item = &'static Self> {
        TRANSPORTS.iter().filter(|transport| transport.is_built)
    }

    /// The encryption that it can have in this build.
    fn tls(&self) -> impl Iterator<Item = Tls> {
        let is_enough = |tls: &Tls| tls.digit() >= self.tls_min.digit();
        Tls::built_in().iter().copied().filter(is_enough)
    }
}

/// The numbers of the pool types of this build.
pub fn transports() -> Vec<u8> {
    Transport::built_in().map(|one| one.number).collect()
}

/// The kind of a tunnel. Prints as in the line that a session is up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Combination {
    /// Which end takes the visitors.
    pub flow: Flow,
    /// What encrypts it.
    pub tls: Tls,
    /// How both ends talk.
    pub dialect: Dialect,
    /// Option `type`.
    pub transport: u8,
}

impl Display for Dialect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Native => "native",
            Self::V1 => "v1",
        })
    }
}

impl Display for Combination {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dialect = self.dialect;
        let (flow, tls, transport) = (self.flow, self.tls.digit(), self.transport);
        write!(f, "{dialect}, {flow}, tls={tls}, type={transport}")
    }
}

impl Combination {
    /// All that are tried: all there are, but for v1 in both flows of every transport.
    pub fn all() -> Vec<Self> {
        let mut all = Vec::new();
        for transport in Transport::built_in() {
            let dialects = [
                (Dialect::Native, &Flow::ALL[..]),
                (Dialect::V1, transport.v1_flows),
            ];
            for (dialect, flows) in dialects {
                for tls in transport.tls() {
                    all.extend(flows.iter().map(|&flow| Self {
                        flow,
                        tls,
                        dialect,
                        transport: transport.number,
                    }));
                }
            }
        }
        all
    }

    /// The plainest one of a flow.
    pub fn plain(flow: Flow) -> Self {
        Self {
            flow,
            tls: Tls::None,
            dialect: Dialect::Native,
            transport: TCP,
        }
    }

    /// The plainest one of a flow in each transport.
    pub fn plainest(flow: Flow) -> Vec<Self> {
        let plain = |transport: &Transport| Self {
            tls: transport.tls_min,
            transport: transport.number,
            ..Self::plain(flow)
        };
        Transport::built_in().map(plain).collect()
    }

    /// The plainest reverse one of each transport whose pool connections can be told apart, cut and
    /// kept from outside.
    pub fn with_own_connections() -> Vec<Self> {
        let mut all = Self::over_tcp();
        all.retain(|one| one.transport != HTTP2);
        all
    }

    /// The plainest reverse one of each transport of which connections can be cut, and end with
    /// the program that has them: what is sent by UDP does neither.
    pub fn over_tcp() -> Vec<Self> {
        let mut all = Self::plainest(Flow::Reverse);
        all.retain(|one| one.transport != QUIC);
        all
    }

    /// The plainest one of each flow in each transport, then the same encrypted where it is not.
    pub fn plain_and_encrypted() -> Vec<Self> {
        let mut all = Self::all();
        all.retain(|one| one.dialect == Dialect::Native && one.tls != Tls::Verified);
        all
    }

    /// Whether its transport could do with no less encryption.
    pub fn is_plainest(self) -> bool {
        Self::plainest(self.flow)
            .iter()
            .any(|one| (one.transport, one.tls) == (self.transport, self.tls))
    }

    /// What a server has to be told so that it is one of this kind, but for the flow.
    pub fn server_options(self) -> String {
        format!("tls={}&type={}", self.tls.digit(), self.transport)
    }

    /// The same with other encryption.
    pub fn with_tls(self, tls: Tls) -> Self {
        Self { tls, ..self }
    }

    /// The same in v1.
    pub fn in_v1(self) -> Self {
        Self {
            dialect: Dialect::V1,
            ..self
        }
    }

    // What v1 leaves out. Native does it all, in every transport.

    /// Whether datagrams keep their boundaries on their way. What v1 writes are the bytes alone.
    pub fn keeps_boundaries(self) -> bool {
        self.dialect == Dialect::Native
    }

    /// The largest datagram that passes in one piece.
    ///
    /// Without boundaries it is what fits into one frame that fits into one record of TLS, or into
    /// one packet of QUIC: what is larger may reach the other end in two parts, which it takes for
    /// two datagrams.
    pub fn datagram_size_max(self) -> usize {
        // The smallest packet of 1200 bytes, less its headers.
        const PACKET_MAX: usize = 1100;
        const FRAMES_MAX: usize = 16_375;
        const BUFFER_SIZE: usize = 16_384;
        match self.transport {
            _ if self.keeps_boundaries() => BUFFER_SIZE,
            TCP => BUFFER_SIZE,
            QUIC => PACKET_MAX,
            _ => FRAMES_MAX,
        }
    }

    /// Whether one direction of a connection can end before the other. A close frame of WebSocket
    /// ends both: there the end of a visitor is passed on after a quiet time, and a target that
    /// waits for it in order to answer speaks to nobody.
    pub fn has_half_close(self) -> bool {
        self.dialect == Dialect::Native || self.transport != WEB_SOCKET
    }

    /// A tunnel of this kind to `targets`, as they are written in a URL.
    pub fn to(self, targets: impl Display) -> Plan {
        Plan {
            combination: self,
            targets: targets.to_string(),
            entry: SocketAddr::from((own_loopback(), 0)).to_string(),
            keys: ["k3y@".to_owned(), "k3y@".to_owned()],
            ends: [EndPlan::default(), EndPlan::default()],
            tunnel: SocketAddr::from((own_loopback(), 0)),
            tunnel_host: None,
            certificate_names: Vec::new(),
        }
    }
}

/// One of the two programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// The one that listens at the tunnel port.
    Server,
    /// The one that goes there.
    Client,
}

impl End {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Server, Self::Client];

    /// The one that takes the visitors.
    pub fn entry(flow: Flow) -> Self {
        match flow {
            Flow::Reverse => Self::Server,
            Flow::Forward => Self::Client,
        }
    }

    /// The one that dials the target.
    pub fn exit(flow: Flow) -> Self {
        Self::entry(flow).other()
    }

    /// The other one.
    pub fn other(self) -> Self {
        match self {
            Self::Server => Self::Client,
            Self::Client => Self::Server,
        }
    }

    fn index(self) -> usize {
        match self {
            Self::Server => 0,
            Self::Client => 1,
        }
    }
}

/// One end of a tunnel of one flow: where an option is set, or what is done to a program.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Which way visitors go.
    pub flow: Flow,
    /// Which end.
    pub end: End,
}

impl Place {
    /// Both ends of both flows.
    pub fn all() -> Vec<Self> {
        let ends = |flow| End::ALL.map(|end| Self { flow, end });
        Flow::ALL.into_iter().flat_map(ends).collect()
    }

    /// Whether visitors come in here.
    pub fn is_entry(self) -> bool {
        End::entry(self.flow) == self.end
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (flow, end) = (self.flow, self.end);
        write!(f, "{end:?} of a {flow} tunnel")
    }
}

/// What one end is started with beyond what makes the tunnel.
#[derive(Debug, Default)]
struct EndPlan {
    options: Vec<String>,
    variables: Vec<(String, String)>,
}

/// A tunnel that is not started yet.
#[derive(Debug)]
pub struct Plan {
    combination: Combination,
    targets: String,
    entry: String,
    keys: [String; 2],
    ends: [EndPlan; 2],
    tunnel: SocketAddr,
    tunnel_host: Option<String>,
    certificate_names: Vec<String>,
}

impl Plan {
    /// Adds options to one end, as in `slot=2&rate=8`. Those that make the tunnel may be replaced.
    pub fn options(mut self, end: End, options: &str) -> Self {
        let new = options.split('&').map(str::to_owned);
        self.ends[end.index()].options.extend(new);
        self
    }

    /// The same at the server.
    pub fn server(self, options: &str) -> Self {
        self.options(End::Server, options)
    }

    /// The same at the client.
    pub fn client(self, options: &str) -> Self {
        self.options(End::Client, options)
    }

    /// The same at the end that dials the target.
    pub fn exit(self, options: &str) -> Self {
        let exit = End::exit(self.combination.flow);
        self.options(exit, options)
    }

    /// Fewest idle pool connections.
    pub fn min(self, count: u32) -> Self {
        self.client(&format!("min={count}"))
    }

    /// Most idle pool connections.
    pub fn max(self, count: u32) -> Self {
        self.server(&format!("max={count}"))
    }

    /// Sets an environment variable of one end. The last value counts.
    pub fn env_of(mut self, end: End, name: &str, value: &str) -> Self {
        let variable = (name.to_owned(), value.to_owned());
        self.ends[end.index()].variables.push(variable);
        self
    }

    /// The same at both ends.
    pub fn env(self, name: &str, value: &str) -> Self {
        self.env_of(End::Server, name, value)
            .env_of(End::Client, name, value)
    }

    /// How often both ends report.
    pub fn report(self, interval: &str) -> Self {
        self.env("NP_REPORT_INTERVAL", interval)
    }

    /// Other keys, as they are written in a URL: `key@`, or nothing.
    pub fn keys(mut self, server: &str, client: &str) -> Self {
        self.keys = [server.to_owned(), client.to_owned()];
        self
    }

    /// Where the server listens for clients.
    pub fn tunnel_at(mut self, address: SocketAddr) -> Self {
        self.tunnel = address;
        self
    }

    /// What the client calls the host of the server.
    pub fn tunnel_host(mut self, name: &str) -> Self {
        self.tunnel_host = Some(name.to_owned());
        self
    }

    /// Where visitors are taken: the target that is bound, as it is written in a URL.
    pub fn entry_at(mut self, address: impl Display) -> Self {
        self.entry = address.to_string();
        self
    }

    /// Names of the server's certificate instead of those that fit.
    pub fn certificate_for(mut self, names: &[&str]) -> Self {
        self.certificate_names = names.iter().map(|name| (*name).to_owned()).collect();
        self
    }

    /// Starts both ends and waits until they are one tunnel.
    #[track_caller]
    pub fn start(self) -> Tunnel {
        let tunnel = self.launch();
        tunnel.wait_up();
        tunnel
    }

    /// Starts both ends. The client goes there when the server listens.
    #[track_caller]
    pub fn launch(mut self) -> Tunnel {
        let certificates = self.prepare_tls();
        let server = self.start_server();
        // Restarted, it comes back to the same port: nobody else uses this address.
        self.tunnel = server.tunnel_address();
        let downgrade = match self.combination.dialect {
            Dialect::Native => None,
            Dialect::V1 => Some(Downgrade::start(self.tunnel)),
        };
        let front = downgrade.as_ref().map_or(self.tunnel, Downgrade::address);
        let client = self.start_client(front);
        Tunnel {
            plan: self,
            server,
            client,
            downgrade,
            _certificates: certificates,
        }
    }

    /// Makes what tls=2 needs.
    fn prepare_tls(&mut self) -> Option<Certificates> {
        if self.combination.tls != Tls::Verified {
            return None;
        }
        let mut names = self.certificate_names.clone();
        if names.is_empty() {
            names = ["localhost", "127.0.0.1"].map(str::to_owned).to_vec();
            names.push(self.tunnel.ip().to_string());
        }
        let made = Certificates::for_names(&names);
        let (chain, key) = (made.chain(), made.key());
        let options = format!("crt={}&key={}", chain.display(), key.display());
        self.ends[End::Server.index()]
            .options
            .extend(options.split('&').map(str::to_owned));
        let trusted = (
            "SSL_CERT_FILE".to_owned(),
            made.roots().display().to_string(),
        );
        // Before what the test has set, which counts if it is the same.
        self.ends[End::Client.index()].variables.insert(0, trusted);
        Some(made)
    }

    fn start_server(&self) -> Program {
        let Combination {
            flow,
            tls,
            transport,
            ..
        } = self.combination;
        let bound_or_dialled = match flow {
            Flow::Reverse => &self.entry,
            Flow::Forward => &self.targets,
        };
        let own = format!(
            "mode={}&tls={}&type={transport}&log=debug",
            flow.mode(),
            tls.digit()
        );
        let place = format!("{}/{bound_or_dialled}", self.tunnel);
        self.start_end(End::Server, "server", &place, &own)
    }

    fn start_client(&self, front: SocketAddr) -> Program {
        let bound_or_dialled = match self.combination.flow {
            Flow::Reverse => &self.targets,
            Flow::Forward => &self.entry,
        };
        let tunnel = match &self.tunnel_host {
            Some(name) => format!("{name}:{}", front.port()),
            None => front.to_string(),
        };
        let place = format!("{tunnel}/{bound_or_dialled}");
        // A pool that shows its level soon and costs little to fill.
        self.start_end(End::Client, "client", &place, "mode=2&min=8&log=debug")
    }

    /// Starts one end. Of what is set twice, what the test has set counts.
    fn start_end(&self, end: End, core: &str, place: &str, own: &str) -> Program {
        let EndPlan { options, variables } = &self.ends[end.index()];
        let key = &self.keys[end.index()];
        let is_set = |option: &&str| {
            let name = option.split('=').next();
            options.iter().any(|other| other.split('=').next() == name)
        };
        let mut all: Vec<&str> = own.split('&').filter(|option| !is_set(option)).collect();
        all.extend(options.iter().map(String::as_str));
        let url = format!("{core}://{key}{place}?{}", all.join("&"));
        // Busy machines run tests: nothing is to end because it took long.
        let launch = Launch::new(&[&url])
            .env("NP_REPORT_INTERVAL", "1s")
            .env("NP_SERVICE_COOLDOWN", "300ms")
            .env("NP_POOL_GET_TIMEOUT", "15s")
            .env("NP_HANDSHAKE_TIMEOUT", "15s");
        variables
            .iter()
            .fold(launch, |launch, (name, value)| launch.env(name, value))
            .start()
    }
}

/// A running tunnel. Dropping it kills both ends.
pub struct Tunnel {
    plan: Plan,
    /// The end that listens at the tunnel port.
    pub server: Program,
    /// The end that goes there.
    pub client: Program,
    downgrade: Option<Downgrade>,
    _certificates: Option<Certificates>,
}

impl Tunnel {
    /// Waits until both ends say that their session is up, and of the right kind.
    #[track_caller]
    pub fn wait_up(&self) {
        let line = self.up_line();
        self.server.wait_for(&line);
        self.client.wait_for(&line);
    }

    /// What both ends say of a session of the right kind.
    fn up_line(&self) -> String {
        format!("is up: {}", self.plan.combination)
    }

    /// One of the two programs.
    pub fn program(&self, end: End) -> &Program {
        match end {
            End::Server => &self.server,
            End::Client => &self.client,
        }
    }

    /// The same, to be ended.
    pub fn program_mut(&mut self, end: End) -> &mut Program {
        match end {
            End::Server => &mut self.server,
            End::Client => &mut self.client,
        }
    }

    /// Both programs.
    pub fn programs(&self) -> [&Program; 2] {
        [&self.server, &self.client]
    }

    /// The end that takes the visitors.
    pub fn entry(&self) -> &Program {
        self.program(End::entry(self.plan.combination.flow))
    }

    /// The end that dials the target.
    pub fn exit(&self) -> &Program {
        self.program(End::exit(self.plan.combination.flow))
    }

    /// Where TCP visitors go.
    #[track_caller]
    pub fn tcp(&self) -> SocketAddr {
        self.entry().tcp_address()
    }

    /// Where UDP visitors go.
    #[track_caller]
    pub fn udp(&self) -> SocketAddr {
        self.entry().udp_address()
    }

    /// Where the server listens for clients.
    pub fn tunnel_address(&self) -> SocketAddr {
        self.plan.tunnel
    }

    /// The man in the middle of a v1 tunnel.
    pub fn downgrade(&self) -> &Downgrade {
        self.downgrade.as_ref().expect("a tunnel that speaks v1")
    }

    /// Kills one end if it still runs, starts it anew at the same addresses, and waits for the
    /// next session.
    #[track_caller]
    pub fn restart(&mut self, end: End) {
        let line = self.up_line();
        let other = end.other();
        let sessions_count = self.program(other).count(&line);
        if End::entry(self.plan.combination.flow) == end {
            self.plan.entry = self.tcp().to_string();
        }
        let program = self.program_mut(end);
        if program.is_running() {
            program.kill();
        }
        let front = self.downgrade.as_ref().map(Downgrade::address);
        *self.program_mut(end) = match end {
            End::Server => self.plan.start_server(),
            End::Client => self.plan.start_client(front.unwrap_or(self.plan.tunnel)),
        };
        self.program(end).wait_for(&line);
        self.program(other)
            .wait_for_count(&line, sessions_count + 1);
    }
}
