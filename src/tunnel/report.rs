//! The thread that writes the checkpoint line and measures the targets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::instance::Instance;
use super::sessions::Sessions;
use super::slots::Kind;
use crate::config::Balance;
use crate::limits::PROBE_TIMEOUT;
use crate::runtime::log::event;
use crate::wire::checkpoint::Checkpoint;

/// Run mode of a client without a server.
const MODE_SINGLE_END: u8 = 1;

/// Run mode of a client with one.
const MODE_DUAL_END: u8 = 2;

/// Where the part of a checkpoint line comes from that is not counted in the instance.
#[derive(Clone)]
pub enum Gauge {
    /// A client without a server: its targets are measured.
    Targets,
    /// A server of a tunnel: the peers are. It serves whether they are there or not.
    Server {
        /// The run mode in use.
        mode: u8,
        /// Where the peers and the pools are.
        sessions: Arc<Sessions>,
    },
    /// A client of a tunnel: the peer is.
    Client {
        /// Where the peer and the pool are.
        sessions: Arc<Sessions>,
    },
}

impl Gauge {
    /// Returns whether there is something that runs: a client that cannot reach its server does
    /// not, until it can, and whoever reads its lines would take it for one that does.
    fn is_running(&self, instance: &Instance) -> bool {
        let Self::Client { sessions } = self else {
            return true;
        };
        let has_visitors = [Kind::Tcp, Kind::Udp]
            .into_iter()
            .any(|kind| instance.slots.count(kind) > 0);
        has_visitors || !sessions.list().is_empty()
    }
}

/// Body of the thread `report`: one line each report interval while the instance runs, until the
/// program stops.
pub fn run(instance: &Arc<Instance>, gauge: &Gauge) {
    let interval = instance.limits.report_interval;
    let stop = &instance.shutdown.stop;
    let mut next_at = Instant::now();
    loop {
        next_at += interval;
        if stop.wait(next_at.saturating_duration_since(Instant::now())) {
            return;
        }
        let to_target = measure(instance, gauge, interval);
        if stop.is_raised() {
            return;
        }
        if gauge.is_running(instance) {
            write(instance, gauge, to_target);
        }
        instance.notes.flush();
        // After a suspend the lines that were missed are not written all at once.
        let now = Instant::now();
        if next_at + interval < now {
            next_at = now;
        }
    }
}

/// Returns how long a connect to the target takes; 0 if it does not answer.
///
/// Visitors' own connects are taken where there were any, so that a target is not bothered
/// without need; the choice of the lowest latency has to know all targets.
///
/// Blocks: at most `PROBE_TIMEOUT`, less with a short interval or when the program stops.
fn measure(instance: &Instance, gauge: &Gauge, interval: Duration) -> Duration {
    let targets = &instance.dialer.tcp;
    let latest = targets.take_latest();
    let chooses_lowest =
        instance.options.balance == Balance::LowestLatency && targets.addresses().len() > 1;
    // A target of UDP need not listen for TCP as well, and in a tunnel it is the peer that counts.
    let is_enough = latest.is_some() || !instance.options.tcp || !matches!(gauge, Gauge::Targets);
    if !chooses_lowest && is_enough {
        return latest.unwrap_or_default();
    }
    let indexes = if chooses_lowest {
        (0..targets.addresses().len()).collect()
    } else {
        vec![targets.in_use()]
    };
    let deadline = Instant::now() + PROBE_TIMEOUT.min(interval / 2);
    let latencies = instance
        .dialer
        .measure(&indexes, deadline, &instance.shutdown.drain);
    latencies.into_iter().flatten().min().unwrap_or_default()
}

/// Writes the last checkpoint line, without measuring anything.
pub fn write_last(instance: &Instance, gauge: &Gauge) {
    write(instance, gauge, Duration::ZERO);
}

fn write(instance: &Instance, gauge: &Gauge, to_target: Duration) {
    let (mode, ping, pool_count) = match gauge {
        Gauge::Targets => (MODE_SINGLE_END, to_target, 0),
        Gauge::Server { mode, sessions } => (*mode, sessions.round_trip(), sessions.idle_count()),
        Gauge::Client { sessions } => (MODE_DUAL_END, sessions.round_trip(), sessions.idle_count()),
    };
    let count = |kind| u64::try_from(instance.slots.count(kind)).unwrap_or(u64::MAX);
    let checkpoint = Checkpoint {
        mode,
        ping,
        pool_count: u64::try_from(pool_count).unwrap_or(u64::MAX),
        tcp_sessions_count: count(Kind::Tcp),
        udp_sessions_count: count(Kind::Udp),
        tcp_received: instance.tcp_meter.received.sum(),
        tcp_sent: instance.tcp_meter.sent.sum(),
        udp_received: instance.udp_meter.received.sum(),
        udp_sent: instance.udp_meter.sent.sum(),
    };
    event(format_args!("{checkpoint}"));
}
