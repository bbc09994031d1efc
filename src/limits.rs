//! Every size, count and time that bounds the program.
//!
//! Constants are fixed; the members of [`Limits`] can be overridden by the environment
//! (`config/env.rs`), which checks their ranges once at start.

use std::time::Duration;

/// What the `NP_` variables set: read once at start, then handed down.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Signals queued for one control channel.
    pub signal_queue_max: usize,
    /// Copy buffer for one direction, where the kernel cannot move the bytes itself (bytes).
    pub tcp_buffer_size: usize,
    /// Largest datagram that is passed on (bytes); unset, each core has its own.
    pub udp_datagram_size_max: Option<usize>,
    /// Each step of a handshake.
    pub handshake_timeout: Duration,
    /// One TCP dial: names, addresses and targets tried within it.
    pub tcp_dial_timeout: Duration,
    /// One UDP dial: the resolution of the name.
    pub udp_dial_timeout: Duration,
    /// A UDP session without a datagram either way for this long ends.
    pub udp_read_timeout: Duration,
    /// Wait for a pool connection.
    pub pool_get_timeout: Duration,
    /// Shortest pause between two rounds of pool filling.
    pub pool_interval_min: Duration,
    /// Longest pause between two rounds of pool filling.
    pub pool_interval_max: Duration,
    /// Checkpoint line, ping, latency probe.
    pub report_interval: Duration,
    /// `lbs=2`: back to the first target this long after leaving it.
    pub fallback_interval: Duration,
    /// Pause before a restart, doubled while restarts keep failing.
    pub service_cooldown: Duration,
    /// Time that open connections are given at a stop.
    pub shutdown_timeout: Duration,
    /// Re-check of certificate files, state backup.
    pub reload_interval: Duration,
    /// Directory of the master's state; unset, the master looks for one.
    pub state_directory: Option<std::path::PathBuf>,
    /// Stack of each thread (bytes).
    pub stack_size: usize,
    /// Default of the option `min`.
    pub pool_min_default: u32,
    /// Default of the option `max`.
    pub pool_max_default: u32,
}

/// Longest URL that is read (bytes).
pub const URL_SIZE_MAX: usize = 8 * 1024;
/// Most `name=value` pairs of one URL. Three times what any core knows; more is a mistake.
pub const URL_OPTIONS_COUNT_MAX: usize = 64;
/// Most targets of one URL: one dial tries them all before its deadline.
pub const TARGETS_COUNT_MAX: usize = 64;
/// Most name servers of the option `dns`.
pub const NAME_SERVERS_COUNT_MAX: usize = 8;
/// Longest host name (characters, RFC 1035 section 2.3.4 without the dots of the wire form).
pub const HOST_NAME_LENGTH_MAX: usize = 253;
/// Most of a rejected value that an error shows (characters).
pub const SHOWN_LENGTH_MAX: usize = 64;
/// Largest `min` and `max`: more idle pool connections than this would use up every port.
pub const POOL_SIZE_MAX: u32 = 65536;
/// Largest `rate` (megabits per second, so 1 Tbit/s): far from overflow once it is in bytes.
pub const RATE_MAX: u64 = 1_000_000;

impl Limits {
    /// Returns how long a WebSocket may be silent before the silence is broken.
    pub fn web_socket_silence(&self) -> Duration {
        let reports = self
            .report_interval
            .saturating_mul(WEB_SOCKET_SILENT_REPORTS);
        reports.min(WEB_SOCKET_SILENCE_MAX)
    }
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            signal_queue_max: 65536,
            tcp_buffer_size: 16 * 1024,
            udp_datagram_size_max: None,
            handshake_timeout: Duration::from_secs(5),
            tcp_dial_timeout: Duration::from_secs(5),
            udp_dial_timeout: Duration::from_secs(5),
            udp_read_timeout: Duration::from_secs(30),
            pool_get_timeout: Duration::from_secs(5),
            pool_interval_min: Duration::from_millis(100),
            pool_interval_max: Duration::from_secs(1),
            report_interval: Duration::from_secs(5),
            fallback_interval: Duration::from_secs(300),
            service_cooldown: Duration::from_secs(3),
            shutdown_timeout: Duration::from_secs(5),
            reload_interval: Duration::from_secs(3600),
            state_directory: None,
            stack_size: STACK_SIZE,
            pool_min_default: 64,
            pool_max_default: 1024,
        }
    }
}

/// Stack of a thread unless `NP_STACK_SIZE` says otherwise (bytes). Release code was seen to run
/// on 16 KiB; unoptimised code keeps every temporary in a slot of its own.
pub const STACK_SIZE: usize = if cfg!(debug_assertions) {
    256 * 1024
} else {
    64 * 1024
};

// Threads

/// Most session threads, whatever the system would allow.
pub const THREADS_MAX: usize = 32 * 1024;

/// Most threads kept without work; about 12 KiB of memory each.
pub const PARKED_THREADS_MAX: usize = 128;

/// How long a thread without work is kept.
pub const THREAD_PARK_TIMEOUT: Duration = Duration::from_secs(10);

// Log

/// Lines that wait for standard output; 8 KiB each at most.
pub const LOG_QUEUE_MAX: usize = 1024;

/// Longest text of one line (bytes).
pub const LOG_LINE_SIZE_MAX: usize = 8 * 1024;

/// Failures of one kind that are logged one by one within an interval; more are counted.
pub const LOG_REPEAT_MAX: u32 = 10;

/// The interval of `LOG_REPEAT_MAX`.
pub const LOG_REPEAT_INTERVAL: Duration = Duration::from_secs(5);

/// How long the end of the program waits for standard output to take the last lines, twice. On a
/// busy machine it may be a second before the thread that writes them has its turn, and they say
/// why the program ends.
pub const LOG_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

// Rate

/// Length of a turn under `rate`: short enough that a lone flow looks smooth.
pub const RATE_TURN_DURATION: Duration = Duration::from_millis(10);

/// Fewest bytes of a turn, so that a slow rate does not become a stream of tiny segments.
pub const RATE_TURN_SIZE_MIN: usize = 1250;

/// Most bytes of a turn: what a pipe takes at once.
pub const RATE_TURN_SIZE_MAX: usize = 512 * 1024;

// Relay

/// Least size of a copy buffer (bytes).
pub const TCP_BUFFER_SIZE_MIN: usize = 1024;

/// Reads and writes of one direction before the other one gets its turn.
pub const RELAY_ROUNDS_MAX: usize = 16;

/// Small buffers kept for the next relay.
pub const BUFFERS_IDLE_MAX: usize = 32;

/// Buffer for bulk that cannot go through a pipe (bytes): larger ones gained nothing.
pub const LARGE_BUFFER_SIZE: usize = 256 * 1024;

/// Most large buffers at a time; whoever gets none uses a small one.
pub const LARGE_BUFFERS_MAX: usize = 16;

/// Capacity asked for a pipe (bytes), and the least that beats copying.
pub const PIPE_SIZE: usize = 512 * 1024;
/// Least capacity of a pipe with which splicing beats copying (bytes).
pub const PIPE_SIZE_MIN: usize = 256 * 1024;

/// After the kernel refused a pipe, it is not asked for one for this long.
pub const PIPE_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Most pipes at a time; whoever gets none copies.
pub const PIPES_MAX: usize = 64;

/// Pipes, and large buffers, kept for the next bulk transfer.
pub const PIPES_IDLE_MAX: usize = 8;

/// Bytes in reads that filled their buffer after which a direction counts as bulk.
pub const SPLICE_STREAK: usize = 1024 * 1024;

/// Most that such a streak counts: it is halved by each read that brings little.
pub const SPLICE_STREAK_MAX: usize = 4 * SPLICE_STREAK;

/// While bytes wait for a side that does not take them, option `read` is this many times as long:
/// the kernel tells of room only when a third of its buffer, some megabytes, has been read.
pub const BLOCKED_FACTOR: u32 = 10;

/// After one side broke, how long the other one is given to take what was read before.
pub const RESET_FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// Where one direction cannot end without the other, how long an answer is waited for after the
/// application has ended its own; also how long a side that has ended both is spoken to in vain.
pub const HALF_OPEN_TIMEOUT: Duration = Duration::from_secs(5);

// Targets

/// How long a target may take to answer the connect that measures its latency.
pub const PROBE_TIMEOUT: Duration = Duration::from_secs(1);

/// A target that failed is tried after all others for this long.
pub const TARGET_RETRY_INTERVAL: Duration = Duration::from_secs(5);

// Listeners

/// Connections that may wait to be accepted; the kernel cuts it to `somaxconn`.
pub const ACCEPT_BACKLOG: i32 = 4096;

/// Visitors accepted in a row before the thread looks whether it should stop.
pub const ACCEPT_BATCH_MAX: usize = 64;

/// Pause of an accept loop that the system gave an error.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Ports tried for one that is free for TCP and for UDP.
pub const FREE_PORT_TRIES_MAX: usize = 16;

// Dialling

/// Between the starts of two connects to addresses of one name (RFC 8305 section 5).
pub const DIAL_STAGGER: Duration = Duration::from_millis(250);

/// Least time for one target of a list, while that much is left.
pub const DIAL_SHARE_MIN: Duration = Duration::from_secs(1);

/// Idle time before the kernel probes whether a peer is alive, and between two probes.
pub const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(30);

/// Probes without an answer after which a connection is dead.
pub const KEEPALIVE_PROBES: u32 = 4;

// Names

/// Names that are kept; those of a configuration are fewer.
pub const NAMES_MAX: usize = 1024;

/// How often somebody who waits for a name looks whether it is still wanted.
pub const NAME_WANTED_INTERVAL: Duration = Duration::from_millis(100);

/// How long the failure to resolve a name is believed.
pub const NAME_FAILURE_DURATION: Duration = Duration::from_secs(1);

/// How long the answer of a name server that was chosen by `dns` is believed.
pub const SERVERS_CACHE_DURATION: Duration = Duration::from_secs(300);

/// Names that can be resolved at the same time.
pub const NAME_THREADS_MAX: usize = 8;

/// Least stack of a thread that calls the system's resolver (bytes), which keeps its answers
/// there.
pub const NAME_STACK_SIZE_MIN: usize = 256 * 1024;

/// Longest domain name in its wire form, length octets and root included (bytes).
/// RFC 1035 section 2.3.4.
pub const NAME_SIZE_MAX: usize = 255;
/// Longest label of a domain name (bytes). RFC 1035 section 2.3.4.
pub const NAME_LABEL_SIZE_MAX: usize = 63;
/// Most compression pointers followed for one name: no name of legal size has more labels than
/// this, so none needs more.
pub const NAME_POINTERS_MAX: usize = 127;
/// Longest chain of aliases (CNAME) followed within one answer; what common resolvers allow.
pub const NAME_ALIASES_MAX: usize = 16;
/// Most addresses kept of a name; a dial tries them one after the other, so more help nobody.
pub const NAME_ADDRESSES_MAX: usize = 16;
/// Largest answer asked for over UDP (bytes): passes any path without fragments, as the DNS flag
/// day 2020 settled.
pub const NAME_DATAGRAM_SIZE_MAX: u16 = 1232;
/// Largest answer taken over TCP (bytes): several hundred addresses, many times what is kept.
pub const NAME_STREAM_SIZE_MAX: usize = 16 * 1024;
/// How often each name server is asked for one name, at most.
pub const NAME_ROUNDS_MAX: usize = 2;
/// Silence after which the next name server is asked; the one before may still answer.
pub const NAME_ATTEMPT_TIMEOUT: Duration = Duration::from_secs(1);
/// One exchange over TCP: connect, ask, read. Longer than over UDP for its extra round trip.
pub const NAME_STREAM_TIMEOUT: Duration = Duration::from_secs(2);
/// Wait for the addresses of one family when those of the other are there. RFC 8305 section 3
/// has 50 ms; more, because nobody asks again for what came too late while it is cached.
pub const NAME_GRACE_TIMEOUT: Duration = Duration::from_millis(250);
/// Datagrams that answer nothing we asked, taken on one socket before it is given up: someone who
/// guesses the id gets this many tries of 65536.
pub const NAME_STRAYS_MAX: usize = 64;

// Each label of a pointer chain takes at least a length octet and one more, and the root one.
const _: () = assert!(NAME_POINTERS_MAX * 2 < NAME_SIZE_MAX);
// The length octets of labels must not look like a pointer.
const _: () = assert!(NAME_LABEL_SIZE_MAX < 0x40);
// RFC 6891 section 6.2.3: smaller payload sizes count as 512.
const _: () = assert!(NAME_DATAGRAM_SIZE_MAX >= 512);

// UDP

/// Kernel buffer asked for a UDP listener, each way (bytes).
pub const UDP_LISTENER_BUFFER_SIZE: usize = 4 * 1024 * 1024;

/// Kernel buffer asked for the socket of one UDP session, each way (bytes).
pub const UDP_SESSION_BUFFER_SIZE: usize = 512 * 1024;

/// Largest datagram of UDP over IPv4 (bytes).
pub const DATAGRAM_SIZE_MAX: usize = 65507;

/// Room for one datagram, or for many that the kernel has joined (bytes): none is ever cut.
pub const DATAGRAM_BUFFER_SIZE: usize = 64 * 1024;
const _: () = assert!(DATAGRAM_BUFFER_SIZE > DATAGRAM_SIZE_MAX);

/// Datagrams, joined or single, received by one call.
pub const DATAGRAM_BATCH_SIZE: usize = 16;

/// Batches of one socket before the next one gets its turn.
pub const DATAGRAM_ROUNDS_MAX: usize = 4;

/// Receives of single datagrams in one turn under `rate`.
pub const DATAGRAM_TURN_ROUNDS_MAX: usize = 128;

/// Largest datagram that is joined with others to be sent by one call (bytes): with the headers of
/// IPv6 and UDP it fits a packet of Ethernet, and a larger one would have to be cut into fragments,
/// which the kernel does not do for joined ones.
pub const DATAGRAM_JOIN_SIZE_MAX: usize = 1452;

/// Bytes of datagrams that are joined to be sent by one call: less than the kernel takes.
pub const DATAGRAM_RUN_SIZE_MAX: usize = 60 * 1024;
const _: () = assert!(DATAGRAM_RUN_SIZE_MAX < DATAGRAM_SIZE_MAX);

/// Largest datagram that goes through a tunnel, unless `NP_UDP_DATA_BUF_SIZE` says otherwise
/// (bytes); what 1.x programs take.
pub const TUNNEL_DATAGRAM_SIZE_MAX: usize = 16 * 1024;

/// Bytes read at once from a stream of datagrams; one buffer for all sessions of a loop.
pub const DATAGRAM_READ_SIZE: usize = 64 * 1024;
// A raw datagram is what one read gives.
const _: () = assert!(DATAGRAM_READ_SIZE > DATAGRAM_SIZE_MAX);

/// Reads of one stream of datagrams before the next one gets its turn.
pub const DATAGRAM_STREAM_ROUNDS_MAX: usize = 4;

/// Bytes of datagrams for one stream after which they are written, and not only when all that was
/// received at once has been looked through.
pub const DATAGRAM_WRITE_SIZE: usize = 32 * 1024;

/// Bytes of datagrams that wait for one stream to take them. The kernel holds megabytes before
/// that, so more would only make them late.
pub const DATAGRAM_BACKLOG_SIZE_MAX: usize = 160 * 1024;
// Beside the rest of a datagram of which a part has left there is room for another one.
const _: () = assert!(DATAGRAM_BACKLOG_SIZE_MAX >= 2 * (0xffff + 2));

/// The same for all streams of a loop together.
pub const DATAGRAM_BACKLOG_TOTAL_MAX: usize = 4 * 1024 * 1024;

/// Sessions handed over to the thread for the exits of UDP that it has not taken yet.
pub const UDP_ARRIVALS_MAX: usize = 1024;

/// How long a session waits to be handed over to that thread when it is busy.
pub const UDP_ARRIVAL_TIMEOUT: Duration = Duration::from_secs(1);

/// Shortest time between two looks for UDP sessions whose tunnel is gone: a busy pool rings for
/// each connection.
pub const UDP_OVER_INTERVAL: Duration = Duration::from_millis(50);

/// Sockets that one look at the UDP sessions tells of.
pub const UDP_EVENTS_MAX: usize = 128;

/// UDP visitors that wait for a pool connection: they have no descriptor that would bound them.
pub const UDP_WAITING_MAX: usize = 4096;

/// Bytes that all UDP sessions of an instance hold while names are resolved, or until there is a
/// pool connection.
pub const UDP_OPENING_TOTAL_MAX: usize = 4 * 1024 * 1024;

/// Bytes that a UDP session holds while the name of its target is resolved, or until there is a
/// pool connection.
pub const UDP_OPENING_SIZE_MAX: usize = 64 * 1024;

/// Datagrams that a UDP session holds while the name of its target is resolved, or until there is
/// a pool connection.
pub const UDP_OPENING_COUNT_MAX: usize = 64;

/// Longest time between two looks for UDP sessions that are idle.
pub const UDP_SWEEP_INTERVAL: Duration = Duration::from_secs(1);

/// At a stop, UDP sessions end when none had a datagram for this long: they have no other end.
pub const UDP_DRAIN_QUIET: Duration = Duration::from_millis(500);

// Sessions

/// With `block`: how long a visitor may stay silent before its target is dialled.
pub const SNIFF_SILENCE_TIMEOUT: Duration = Duration::from_millis(300);

/// With `block`: how long a visitor whose first bytes tell nothing yet is given for more.
pub const SNIFF_UNCLEAR_TIMEOUT: Duration = Duration::from_secs(1);

/// How often a stop looks whether all visitors have left.
pub const DRAIN_TICK: Duration = Duration::from_millis(20);

/// Longest wait for threads that have been told to stop.
pub const STOP_TIMEOUT: Duration = Duration::from_secs(3);

/// The same after another signal, which says that the end cannot wait.
pub const STOP_AGAIN_TIMEOUT: Duration = Duration::from_millis(100);

/// Most that the pause before a restart grows to, as a multiple of the cool-down.
pub const COOLDOWN_FACTOR_MAX: u32 = 10;

/// Descriptors that the program takes for itself, about: listeners, events, log, names.
pub const DESCRIPTORS_RESERVED: usize = 20;

// TLS

/// Ciphertext received by one call (bytes): with 4 KiB, what the TLS library takes by itself,
/// decrypting cost half as much again. The memory exists only while bytes flow.
pub const TLS_RECEIVE_SIZE: usize = 64 * 1024;

/// Plaintext encrypted before the socket is asked to take it (bytes); also the most that one
/// stream holds unsent, apart from headers.
pub const TLS_SEND_SIZE: usize = 64 * 1024;

/// Receives of one read or check: a flood of records without content must not hold the thread.
pub const TLS_RECEIVE_ROUNDS_MAX: usize = 8;

/// Largest certificate or key file (bytes): a long chain has about 20 KiB.
pub const CERTIFICATE_FILE_SIZE_MAX: u64 = 256 * 1024;

// WebSocket

/// Bytes that a client masks before the stream below is asked to take them, head included; also
/// the most that one stream holds unsent, apart from what a server answers. Four records of TLS.
pub const WEB_SOCKET_SEND_SIZE: usize = 64 * 1024;

/// Up to here a server's frame is copied so that it leaves in one piece with its head; of a larger
/// one only so much is. More than a relay reads at once at first.
pub const WEB_SOCKET_JOIN_SIZE: usize = 32 * 1024;

/// Bytes that are read of an idle stream to find out what the other end wants.
pub const WEB_SOCKET_CHECK_SIZE: usize = 1024;

/// Longest silence on a WebSocket before it is broken. Proxies cut after a minute (nginx, HAProxy
/// and load balancers of clouds, unless they are told otherwise) or later; looks at idle
/// connections are some seconds late, and one packet may be lost and sent again.
pub const WEB_SOCKET_SILENCE_MAX: Duration = Duration::from_secs(25);
/// The same in report intervals, where that is less: who looks at the control channel more often
/// wants to see here as well, sooner, what has become of a connection.
pub const WEB_SOCKET_SILENT_REPORTS: u32 = 5;
// With the looks at the pool, or at UDP sessions, it is still less than half a minute.
const _: () = assert!(
    WEB_SOCKET_SILENCE_MAX.as_secs() + 2 * TEND_INTERVAL.as_secs() + UDP_SWEEP_INTERVAL.as_secs()
        < 30
);

/// Reads from below in one read or check: a flood of frames without data must not hold the thread.
pub const WEB_SOCKET_ROUNDS_MAX: usize = 8;

// Tunnel protocol

/// Longest head of a handshake request or answer, its empty line included (bytes).
pub const HANDSHAKE_HEAD_SIZE_MAX: usize = 8 * 1024;

/// Most header lines of a handshake: twice what a proxy or CDN in front was seen to add.
pub const HANDSHAKE_HEADERS_COUNT_MAX: usize = 64;

/// Largest body of a handshake answer (bytes): ours has less than 300.
pub const HANDSHAKE_BODY_SIZE_MAX: usize = 4 * 1024;

/// How long a client may take to answer the challenge of a native handshake.
pub const CHALLENGE_AGE_MAX: Duration = Duration::from_secs(30);

/// Answered challenges remembered, each at most [`CHALLENGE_AGE_MAX`], so that none counts twice;
/// about 64 bytes each. When it is full, new handshakes are refused: that takes 136 in a second,
/// all of them with the right key.
pub const CHALLENGES_REMEMBERED_MAX: usize = 4096;

/// Longest line of the control channel, newline included (bytes).
pub const CONTROL_LINE_SIZE_MAX: usize = 4 * 1024;

/// Tickets of one session that may overtake each other; one bit each. One that
/// comes later than this many others is refused, and its client dials again.
pub const TICKET_WINDOW_SIZE: u64 = 4096;

/// Reads of a control channel, and the size of each (bytes), before its thread looks at the time.
pub const CONTROL_ROUNDS_MAX: usize = 16;
/// Size of one read of a control channel (bytes): some hundred signals.
pub const CONTROL_READ_SIZE: usize = 16 * 1024;

/// After a signal the next ones are gathered for so long, where a round trip takes at least
/// `GATHER_ROUND_TRIP_MIN`.
pub const GATHER_TIME: Duration = Duration::from_millis(1);
/// On shorter links a segment for each signal does no harm.
pub const GATHER_ROUND_TRIP_MIN: Duration = Duration::from_millis(10);

/// Report intervals without a word of the peer after which a session is over.
pub const SILENT_INTERVALS_MAX: u32 = 3;

// Pool

/// Most threads that make pool connections: on a link of 50 ms, where each takes two round trips or
/// with TLS three, that many make more than 1,500 a second.
pub const WARM_UP_THREADS_MAX: usize = 256;

/// Connections that are made at a time while the pool is filled for the first time and nobody waits:
/// on a link of 50 ms a pool of 64 is there in less than a second. What a handshake and its thread
/// leave in the heap counts on a router: with 64 at a time a client took 2 MB more.
pub const FIRST_FILL_FLIGHT_MAX: usize = 16;

/// How often it is looked whether a visitor who waits for a pool connection is still there.
pub const VISITOR_LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// How long retired pool connections are kept for signals that are on their way.
pub const RETIREMENT: Duration = Duration::from_secs(10);

/// Longest time between two looks at a session for what is over or due.
pub const TEND_INTERVAL: Duration = Duration::from_secs(1);

// Tunnel port

/// The port on which a web server would end TLS.
pub const WEB_TLS_PORT: u16 = 443;

/// Most sessions of a server, those included that are only expected.
pub const SESSIONS_MAX: usize = 1024;

/// Most connections to the tunnel port whose purpose is not known yet.
pub const CALLERS_MAX: usize = 1024;

/// How long a new connection may be silent before it counts as one of v1, which says nothing.
pub const CALLER_GRACE: Duration = Duration::from_millis(100);

/// The same for an address that has a native client as well, whose first bytes may be late.
pub const CALLER_GRACE_SHARED: Duration = Duration::from_secs(1);

/// How long a pool connection waits for a place when as many are idle as may be: the signal that
/// makes one is often on its way.
pub const CALLER_PLACE_TIMEOUT: Duration = Duration::from_millis(200);
/// How often it is looked whether there is one.
pub const CALLER_PLACE_INTERVAL: Duration = Duration::from_millis(5);

/// How long a caller who has been told all may take to hang up.
pub const CALLER_LINGER_TIMEOUT: Duration = Duration::from_secs(1);

/// Steps of one caller before others get their turn.
pub const CALLER_ROUNDS_MAX: usize = 8;

/// Requests on one connection: a native handshake has two.
pub const CALLER_REQUESTS_MAX: usize = 3;

/// Bytes of a caller who has been told all that are thrown away before he is cut off.
pub const CALLER_DISCARD_SIZE_MAX: usize = 64 * 1024;

/// Callers whose handshakes of TLS take so much of the processor within `COVER_WINDOW` wait for
/// the next one, unless their address has a session: a hello with an RSA key of 4096 bits takes
/// 4.7 ms, and anyone can send very many.
pub const COVER_TIME_MAX: Duration = Duration::from_millis(200);
/// The time within which `COVER_TIME_MAX` counts.
pub const COVER_WINDOW: Duration = Duration::from_secs(1);

/// Clients of one address that have done the handshake and have yet to open a connection.
pub const EXPECTED_PER_ADDRESS_MAX: usize = 64;

/// Callers that one look tells of.
pub const DOORMAN_EVENTS_MAX: usize = 128;

/// Addresses remembered for a wrong key; about 64 bytes each.
pub const FAILURES_REMEMBERED_MAX: usize = 1024;

/// How long an address is remembered for its last wrong key.
pub const FAILURE_MEMORY: Duration = Duration::from_secs(60);

/// How long the second answer to a wrong key is held back; doubled for each more.
pub const FAILURE_DELAY_FIRST: Duration = Duration::from_millis(100);

/// Longest time that an answer is held back: less than a client waits for it.
pub const FAILURE_DELAY_MAX: Duration = Duration::from_secs(2);

// HTTP/2

/// Table of an encoder of header fields (bytes, 32 more for each field): more is not used even
/// where the peer allows it. Also what both ends begin with before any setting (RFC 9113 section
/// 6.5.2), so that no change has to be announced at the start.
pub const HPACK_TABLE_SIZE_MAX: usize = 4 * 1024;

/// Most header fields in one list: several times what a browser sends.
pub const HPACK_FIELDS_COUNT_MAX: usize = 256;

/// Window of a stream at its start (bytes): a short visit never waits for a longer one.
pub const H2_STREAM_WINDOW: u32 = 256 * 1024;

/// Largest window of a stream (bytes): 1 Gbit/s over 50 ms takes 6.25 MB.
pub const H2_STREAM_WINDOW_MAX: u32 = 8 * 1024 * 1024;

/// Bytes by which the windows of all streams of a connection together may have grown.
pub const H2_WINDOW_GROWTH_MAX: u32 = 64 * 1024 * 1024;

/// Window of a connection (bytes). What arrives is counted as taken at once, so it only has to hold
/// what is on its way.
pub const H2_CONNECTION_WINDOW: u32 = 16 * 1024 * 1024;

// One stream at its largest must not wait for the window of the connection.
const _: () = assert!(H2_CONNECTION_WINDOW >= 2 * H2_STREAM_WINDOW_MAX);
// RFC 9113 section 6.9.1.
const _: () = assert!(H2_CONNECTION_WINDOW <= 0x7fff_ffff);

/// A stream whose reader took this long for half a window gets half of it from then on.
pub const H2_WINDOW_SHRINK_TIME: Duration = Duration::from_secs(5);

/// How often the round trip is measured while data flow.
pub const H2_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Most streams of one connection at a time.
pub const H2_STREAMS_MAX: u32 = 1024;

/// Bytes of frames of data that wait for the connection to take them.
pub const H2_OUTPUT_ROOM: usize = 256 * 1024;

/// Bytes of other frames that may wait beyond that, besides `H2_OUTPUT_EXCESS_PER_STREAM`, before a
/// peer counts as one that does not read.
pub const H2_OUTPUT_EXCESS_MAX: usize = 256 * 1024;

/// The same for each stream that may be open (bytes): when all are answered and reset at once there
/// are some 60.
pub const H2_OUTPUT_EXCESS_PER_STREAM: usize = 128;

/// What a stream may say first although others wait (bytes): the id of a pool connection.
pub const H2_FIRST_WORDS_SIZE: usize = 4;

/// Data that a stream writes when others wait (bytes), before the next one gets its turn.
pub const H2_TURN_SIZE: usize = 64 * 1024;

/// Output buffer that an idle connection keeps (bytes).
pub const H2_OUTPUT_KEPT_SIZE: usize = 16 * 1024;

/// Largest payload of a frame of data (bytes): with its header it fills a record of TLS.
pub const H2_DATA_SIZE_MAX: usize = 16 * 1024 - 9;

/// Largest payload of a frame that is taken (bytes); the least that may be announced.
/// RFC 9113 section 6.5.2.
pub const H2_FRAME_SIZE_MAX: usize = 16 * 1024;

/// Size of the pieces in which data wait for their reader (bytes).
pub const H2_PIECE_SIZE: usize = 16 * 1024;

/// Empty pieces that a connection keeps for the next data.
pub const H2_PIECES_IDLE_MAX: usize = 16;

/// Fields of one request or response (bytes, 32 more for each field, RFC 9113 section 6.5.2): some
/// 20 times what a pool connection needs.
pub const H2_HEADER_LIST_SIZE_MAX: usize = 16 * 1024;

/// The same as it comes, compressed (bytes): compression makes smaller, so a block that is larger
/// than the list may be is one for nothing.
pub const H2_HEADER_BLOCK_SIZE_MAX: usize = 32 * 1024;
const _: () = assert!(H2_HEADER_BLOCK_SIZE_MAX >= H2_FRAME_SIZE_MAX);

/// CONTINUATION frames of one block, empty ones among them (CVE-2024-27316): two full ones hold
/// the largest block.
pub const H2_CONTINUATIONS_MAX: u32 = 8;

/// Interim responses to one request.
pub const H2_INTERIM_RESPONSES_MAX: usize = 8;

/// Pings of ours whose answers are waited for.
pub const H2_PINGS_MAX: usize = 16;

/// Streams that end by a reset of the peer, or of ours for its mistakes, in a burst (rapid reset,
/// CVE-2023-44487; CVE-2025-8671), besides two for each stream that may be open: a pool that is
/// flushed resets all its streams at once.
pub const H2_RESETS_BURST: u32 = 1000;
/// The same each second: three times as many as visitors come to a busy tunnel, should all of them
/// leave at once.
pub const H2_RESETS_PER_SECOND: u32 = 250;

/// A reset counts for one divided by this when the stream had been answered: 1.x programs end each
/// visit that way, and a visit cost its peer as much as us.
pub const H2_ANSWERED_RESETS_FACTOR: u32 = 10;

/// SETTINGS frames in a burst (CVE-2019-9515); programs send one, some a few to tune windows.
pub const H2_SETTINGS_BURST: u32 = 64;
/// The same each second.
pub const H2_SETTINGS_PER_SECOND: u32 = 4;

/// PING frames in a burst (CVE-2019-9512).
pub const H2_PINGS_BURST: u32 = 1000;
/// The same each second; programs were seen to send one.
pub const H2_PINGS_PER_SECOND: u32 = 100;

/// Frames without any effect in a burst, besides two for each stream that may be open: data
/// without a byte (CVE-2019-9518), priorities (CVE-2019-9513), types unknown, late GOAWAY.
pub const H2_EMPTY_FRAMES_BURST: u32 = 1000;
/// The same each second.
pub const H2_EMPTY_FRAMES_PER_SECOND: u32 = 100;

/// WINDOW_UPDATE frames in a burst (CVE-2019-9511, CVE-2019-9517), besides those that data account
/// for.
pub const H2_UPDATES_BURST: u32 = 10_000;
/// The same each second.
pub const H2_UPDATES_PER_SECOND: u32 = 100;
/// WINDOW_UPDATE frames that a frame of data accounts for, unless a tiny window made it small.
pub const H2_UPDATES_PER_FRAME: u32 = 4;
/// Bytes of data that account for one more: programs send two for each 4 KiB.
pub const H2_UPDATE_DATA_SIZE: usize = 1024;

// Command line

/// How long the URL may take to come on standard input.
pub const STDIN_TIMEOUT: Duration = Duration::from_secs(60);

// Many streams over one connection

/// Events that a mux thread takes at once.
pub const MUX_EVENTS_MAX: usize = 256;

/// Streams that move their bytes before a mux thread looks at its transport again.
pub const MUX_STEPS_MAX: usize = 64;

/// Bytes that a mux thread takes from its transport before the streams get their turn: what they
/// do not take at once stays in memory.
pub const MUX_RECEIVE_SIZE_MAX: usize = 256 * 1024;

/// At the end of a connection of many streams: how long its last bytes may take to leave.
pub const MUX_FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);

/// How often one who waits for the answer to a stream looks whether he is still wanted.
pub const MUX_ANSWER_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Pause before a stream is asked for again, when too much waits to be sent.
pub const MUX_BUSY_PAUSE: Duration = Duration::from_millis(20);

/// Connections that may be lost one after another while one stream is asked for.
pub const MUX_LINES_LOST_MAX: u32 = 2;

/// Most connections of one session that carry many streams each: with the 250 streams that
/// programs of the 1.x line allow on each, enough for 16,000 visitors.
pub const MUX_LINES_MAX: usize = 64;

/// Bytes that the kernel keeps beside what is on its way: more would only keep what comes later
/// from leaving, such as pings.
pub const HTTP2_UNSENT_SIZE_MAX: u32 = 128 * 1024;

/// Bytes that are taken from TLS at once for HTTP/2.
pub const HTTP2_RECEIVE_SIZE: usize = 64 * 1024;

/// Least stack of a thread that carries many streams (bytes): it opens sessions as well, and does
/// the handshakes of QUIC. Only what is used takes memory.
pub const MUX_STACK_SIZE_MIN: usize = if cfg!(debug_assertions) {
    4 * 1024 * 1024
} else {
    512 * 1024
};

/// Bytes of HTTP/2 that a caller may send before he shows that he belongs to a session.
pub const CALLER_HTTP2_SIZE_MAX: usize = 64 * 1024;

// QUIC

/// Size of the connection ids that this program chooses (bytes): enough that nobody guesses one,
/// and few, as each packet carries one.
pub const QUIC_ID_SIZE: usize = 8;

/// Connection ids that each end keeps ready for the other one, for when its address changes.
pub const QUIC_IDS_SPARE_MAX: u64 = 4;

/// Least size of a datagram that opens a connection (bytes; RFC 9000 section 14.1).
pub const QUIC_OPENING_SIZE_MIN: usize = 1200;

/// Largest datagram that is sent over IPv4, and over IPv6 (bytes): what an Ethernet packet carries.
/// Which sizes up to that pass is found out on the way.
pub const QUIC_DATAGRAM_SIZES_MAX: [usize; 2] = [1472, 1452];
const _: () = assert!(QUIC_DATAGRAM_SIZES_MAX[1] >= QUIC_OPENING_SIZE_MIN);

/// Kernel buffer asked for a socket of QUIC, each way (bytes): what comes in 30 ms at 1 Gbit/s.
pub const QUIC_SOCKET_BUFFER_SIZE: usize = 4 * 1024 * 1024;

/// What a stream may hold that nobody has read, at first (bytes): a visitor who does not read from
/// the start costs no more.
pub const QUIC_STREAM_WINDOW: u64 = 256 * 1024;

/// The same for one whose reader keeps up, over a path that is fast and long (bytes). A window is
/// moved on when half of it has been read, so that half has to hold a round trip: 1 Gbit/s at
/// 67 ms.
pub const QUIC_STREAM_WINDOW_MAX: u64 = 16 * 1024 * 1024;

/// What all streams of a connection together may hold that nobody has read (bytes). When half of it
/// is held by streams that nobody reads, the others come to a halt as well; so it is far beyond
/// what visitors pile up who do not read.
pub const QUIC_CONNECTION_WINDOW: u64 = 2 * 1024 * 1024 * 1024;
const _: () = assert!(QUIC_CONNECTION_WINDOW >= 100 * QUIC_STREAM_WINDOW_MAX);

/// Streams of one connection at a time.
pub const QUIC_STREAMS_MAX: u64 = 65_536;

/// Bytes that one connection may send before it belongs to a session: beside the handshake of TLS
/// it takes 41.
pub const QUIC_STRANGER_SIZE_MAX: u64 = 32 * 1024;

/// Connections at one time that do not belong to a session yet.
pub const QUIC_STRANGERS_MAX: usize = 256;

/// How long a Retry token counts: the client sends it back at once.
pub const QUIC_TOKEN_AGE_MAX: Duration = Duration::from_secs(10);

/// Answers to datagrams of connections that are not here, in one turn: whoever sends more of them
/// gets none.
pub const QUIC_STATELESS_ANSWERS_MAX: usize = 32;

/// Bytes of a stream that are kept as one piece until they are acknowledged.
pub const QUIC_PIECE_SIZE: usize = 16 * 1024;

/// Bytes that are sent to an address that a client has moved to, beyond three times what came from
/// there, before it is known that he receives them (RFC 9000 section 9.3 asks for such a limit).
pub const QUIC_UNPROVEN_SIZE_MAX: u64 = 64 * 1024;

/// The same once it is certain that what is acknowledged then was sent there: so that there is
/// something to acknowledge.
pub const QUIC_PROBE_SIZE_MAX: u64 = 16 * 1024;

/// How long a peer may keep an acknowledgement back (RFC 9000 section 18.2, its default).
pub const QUIC_ACK_DELAY_MAX: Duration = Duration::from_millis(25);

/// For how long datagrams from the address of before do not move a client back, as they may have
/// been late; and the pause between two moves to another host.
pub const QUIC_MOVE_PAUSE: Duration = Duration::from_secs(1);

// Master

/// Most characters in a name, and in each text of `meta` (`master-api.md`, "Instance").
pub const TEXT_LENGTH_MAX: usize = 256;

/// Most instances of a master: each takes a process.
pub const INSTANCES_MAX: usize = 1024;

/// Largest state file that is read (bytes): all instances with the longest URLs and as many tags as
/// one request can carry.
pub const STATE_FILE_SIZE_MAX: u64 = 128 * 1024 * 1024;

/// Changes that wait for those before them.
pub const CHANGE_QUEUE_MAX: usize = 1024;

/// Changes that one write to disk serves.
pub const CHANGE_BATCH_MAX: usize = 256;

/// How long a change may take: an instance that is removed has `INSTANCE_STOP_TIMEOUT` to end.
pub const CHANGE_TIMEOUT: Duration = Duration::from_secs(20);
const _: () = assert!(CHANGE_TIMEOUT.as_secs() > 2 * INSTANCE_STOP_TIMEOUT.as_secs());

/// How long an instance has to end before it is killed (`master-api.md`, "Instance"); the half
/// second lets one that cuts its last visitors after `NP_SHUTDOWN_TIMEOUT` tell them so.
pub const INSTANCE_STOP_TIMEOUT: Duration = Duration::from_millis(5500);

/// Pause between two starts when a master brings its instances back.
pub const INSTANCE_START_PAUSE: Duration = Duration::from_millis(100);

/// Descriptors that have to be free before an instance is started: through them the API stays open
/// to delete one.
pub const INSTANCE_DESCRIPTORS_SPARE: usize = 48;
const _: () =
    assert!(INSTANCE_DESCRIPTORS_SPARE > 2 * (API_DESCRIPTORS_SPARE + API_CONNECTION_DESCRIPTORS));

/// How often it is looked whether an instance that has closed its output has ended.
pub const INSTANCE_REAP_INTERVAL: Duration = Duration::from_millis(10);

/// Bytes read from the output of one instance before the others get their turn.
pub const INSTANCE_OUTPUT_SIZE: usize = 64 * 1024;

/// Longest line of an instance that is passed on (bytes): what it writes at most, and its date.
pub const INSTANCE_LINE_SIZE_MAX: usize = LOG_LINE_SIZE_MAX + 256;

/// Events that wait for one subscriber: some seconds of a hundred busy instances.
pub const EVENT_QUEUE_MAX: usize = 4096;

/// Bytes of all of them: 2 KiB for each, while one of an instance with all the tags that it may
/// have takes more than 64 KiB. Texts are shared, so that all subscribers together hold no more.
pub const EVENT_QUEUE_SIZE_MAX: usize = 8 * 1024 * 1024;
const _: () = assert!(EVENT_QUEUE_SIZE_MAX >= EVENT_QUEUE_MAX * 2 * 1024);
// Some of the largest have to fit, or nobody could follow such an instance: tags, the URL twice
// and a line, of which JSON makes up to six bytes for one.
const _: () = assert!(
    EVENT_QUEUE_SIZE_MAX
        >= 16 * (API_BODY_SIZE_MAX + 2 * 6 * URL_SIZE_MAX + 6 * INSTANCE_LINE_SIZE_MAX)
);

/// Bytes of events that leave together when a subscriber is behind.
pub const EVENT_BATCH_SIZE: usize = 64 * 1024;

/// How often a silent event stream shows that it lives.
pub const EVENT_KEEPALIVE_INTERVAL: Duration = Duration::from_secs(15);

/// Connection tests that run at a time, how long one more waits for its turn, and how long one may
/// take (`master-api.md`, "Endpoints").
pub const TCPING_COUNT_MAX: usize = 10;
/// See [`TCPING_COUNT_MAX`].
pub const TCPING_WAIT: Duration = Duration::from_secs(1);
/// See [`TCPING_COUNT_MAX`].
pub const TCPING_TIMEOUT: Duration = Duration::from_secs(5);

// State of a 1.x master

/// Largest state file of a 1.x master that is read (bytes): the most instances that are read, with
/// the longest URLs.
pub const GOB_SIZE_MAX: usize = 16 * 1024 * 1024;

/// Most instances of such a file: all of a master and the entry of the API key.
pub const GOB_INSTANCES_COUNT_MAX: usize = INSTANCES_MAX + 1;

/// Most tags of all of them together: each takes memory beyond its size in the file.
pub const GOB_TAGS_COUNT_MAX: usize = 64 * 1024;

/// Most types that the file may define; one of version 1.14 has 5.
pub const GOB_TYPES_COUNT_MAX: usize = 64;

/// Most fields of one of them; an instance of version 1.14 has 25.
pub const GOB_FIELDS_COUNT_MAX: usize = 256;

/// How deep values that are skipped may stand in one another.
pub const GOB_DEPTH_MAX: usize = 16;

// Figures of the machine

/// Between the two looks that tell how much the processors work, and how old figures may be.
pub const HOST_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// Bytes that are read of each file of /proc: enough for 1000 interfaces or disks.
pub const HOST_FILE_SIZE_MAX: usize = 256 * 1024;

// API of the master

/// Clients connected at one time, each with a thread of its own.
pub const API_CONNECTIONS_MAX: usize = 512;
/// The same beyond it, just to be told that there is no room.
pub const API_TURNED_AWAY_MAX: usize = 16;
/// Threads of connections that have given their place back but have not ended yet.
pub const API_THREADS_ENDING_MAX: usize = 64;
/// Descriptors that a client takes while his request is under way: his socket, the event that ends
/// it, one connection to the server behind, with both of its ends and one of them twice, and what
/// the server has not closed yet of the one before.
pub const API_CONNECTION_DESCRIPTORS: usize = 7;
/// Part of all descriptors that clients may take, as a divisor: the rest is for instances and files.
pub const API_DESCRIPTORS_SHARE: usize = 2;
/// Descriptors that have to be free before the server behind is given a request: it stops for good
/// when it finds none.
pub const API_DESCRIPTORS_SPARE: usize = 8;
/// How long a newcomer waits until one who gives way has left.
pub const API_EVICTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Longest head of a request, and of an answer (bytes).
pub const API_HEAD_SIZE_MAX: usize = 16 * 1024;
/// Most fields of a head.
pub const API_FIELDS_MAX: usize = 64;
/// Longest body of a request (bytes).
pub const API_BODY_SIZE_MAX: usize = 64 * 1024;
/// Bytes of chunk extensions and trailers of one body, which say nothing here.
pub const API_CHUNK_WASTE_MAX: usize = 4 * 1024;

/// One TLS handshake.
pub const API_HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// From the first byte of a request to its last one.
pub const API_REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Silence before a request and between two of them.
pub const API_IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long a client may take none of the bytes that wait for him.
pub const API_STALL_TIMEOUT: Duration = Duration::from_secs(10);
/// How often a client who takes nothing is offered it again: the kernel tells of room only when a
/// third of its buffer is free.
pub const API_STALL_LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How long what a client still sends is read after the last answer: closed with bytes unread, the
/// connection would be reset and the answer lost.
pub const API_LINGER_TIMEOUT: Duration = Duration::from_secs(1);
/// How much of it (bytes).
pub const API_LINGER_SIZE_MAX: usize = 1024 * 1024;
/// How long the last answers may take to leave when the master ends.
pub const API_FAREWELL_TIMEOUT: Duration = Duration::from_secs(1);
const _: () = assert!(API_FAREWELL_TIMEOUT.as_secs() < STOP_TIMEOUT.as_secs());

/// Kernel buffer asked for what goes to a client (bytes; the kernel doubles it): what hides there
/// has not been taken by him.
pub const API_SEND_BUFFER_SIZE: usize = 64 * 1024;
/// Bytes of an answer that are moved at once.
pub const API_PIECE_SIZE: usize = 16 * 1024;
/// Bytes of a request that are read at once; on the stack.
pub const API_READ_SIZE: usize = 4 * 1024;
/// How long the server behind may take to receive a request.
pub const API_FORWARD_TIMEOUT: Duration = Duration::from_secs(5);
