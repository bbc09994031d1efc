//! The thread that writes the checkpoint line and measures the targets.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::direct::Instance;
use super::slots::Kind;
use crate::config::Balance;
use crate::limits::PROBE_TIMEOUT;
use crate::runtime::log::event;
use crate::wire::checkpoint::Checkpoint;

/// Run mode of a client without a server.
const MODE_SINGLE_END: u8 = 1;

/// Body of the thread `report`: one line each report interval, until the program stops.
pub fn run(instance: &Arc<Instance>, interval: Duration) {
    let stop = &instance.shutdown.stop;
    let mut next_at = Instant::now();
    loop {
        next_at += interval;
        if stop.wait(next_at.saturating_duration_since(Instant::now())) {
            return;
        }
        let ping = measure(instance, interval);
        if stop.is_raised() {
            return;
        }
        write_line(instance, ping);
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
fn measure(instance: &Instance, interval: Duration) -> Duration {
    let targets = &instance.dialer.tcp;
    let latest = targets.take_latest();
    let chooses_lowest =
        instance.options.balance == Balance::LowestLatency && targets.addresses().len() > 1;
    // A target of UDP need not listen for TCP as well.
    if !chooses_lowest && (latest.is_some() || !instance.options.tcp) {
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

/// Writes the checkpoint line.
pub fn write_line(instance: &Instance, ping: Duration) {
    let count = |kind| u64::try_from(instance.slots.count(kind)).unwrap_or(u64::MAX);
    let checkpoint = Checkpoint {
        mode: MODE_SINGLE_END,
        ping,
        pool_count: 0,
        tcp_sessions_count: count(Kind::Tcp),
        udp_sessions_count: count(Kind::Udp),
        tcp_received: instance.tcp_meter.received.sum(),
        tcp_sent: instance.tcp_meter.sent.sum(),
        udp_received: instance.udp_meter.received.sum(),
        udp_sent: instance.udp_meter.sent.sum(),
    };
    event(format_args!("{checkpoint}"));
}
