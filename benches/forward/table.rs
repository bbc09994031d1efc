//! Samples, their medians, and how they are shown and kept.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::peers::Peer;

/// Everything that is measured. Those over a slow link have names of their own, since their units
/// are others.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Metric {
    BulkUpRate,
    BulkUpCost,
    BulkDownRate,
    BulkDownCost,
    BulkManyRate,
    BulkManyCost,
    PingPongMedian,
    PingPongRate,
    PingPongCost,
    FirstByteMedian,
    FirstByteSlow,
    ConnectRate,
    ConnectMedian,
    ConnectSlow,
    ConnectCost,
    ConnectErrors,
    ConnectManyRate,
    ConnectManyMedian,
    ConnectManySlow,
    ConnectManyCost,
    ConnectManyErrors,
    MemoryStart,
    MemoryIdle1000,
    MemoryIdle5000,
    MemoryPerIdle,
    MemoryAfter,
    IdleAlive,
    UdpMedian,
    UdpRate,
    UdpLoss,
    UdpFlowMedian,
    UdpFlowCost,
    LinkFirstByteMedian,
    LinkFirstByteSlow,
    LinkFirstByteMax,
    LinkBurst32Median,
    LinkBurst32Max,
    LinkBurst32Errors,
    LinkBurst256Median,
    LinkBurst256Max,
    LinkBurst256Errors,
    LinkConnectRate,
    LinkConnectMedian,
    LinkConnectSlow,
    LinkConnectErrors,
    LinkBulkUpRate,
    LinkBulkDownRate,
    LinkBulkManyRate,
}

/// What each is called in the file of samples and in the table, in the order of the table.
const METRICS: [(Metric, &str, &str); 48] = [
    (
        Metric::BulkUpRate,
        "bulk_up_1_gbit_s",
        "1 stream up, Gbit/s",
    ),
    (Metric::BulkUpCost, "bulk_up_1_cpu_s_gb", "— CPU s/GB"),
    (
        Metric::BulkDownRate,
        "bulk_down_1_gbit_s",
        "1 stream down, Gbit/s",
    ),
    (Metric::BulkDownCost, "bulk_down_1_cpu_s_gb", "— CPU s/GB"),
    (
        Metric::BulkManyRate,
        "bulk_up_8_gbit_s",
        "8 streams up, Gbit/s",
    ),
    (Metric::BulkManyCost, "bulk_up_8_cpu_s_gb", "— CPU s/GB"),
    (
        Metric::PingPongMedian,
        "pingpong_p50_us",
        "ping-pong 64 B, p50 µs",
    ),
    (Metric::PingPongRate, "pingpong_per_s", "— per second"),
    (Metric::PingPongCost, "pingpong_cpu_us", "— CPU µs each"),
    (
        Metric::FirstByteMedian,
        "first_byte_p50_us",
        "first byte of a new visitor, p50 µs",
    ),
    (Metric::FirstByteSlow, "first_byte_p99_us", "— p99 µs"),
    (
        Metric::ConnectRate,
        "connect_1_per_s",
        "new connections/s, 1 at once",
    ),
    (Metric::ConnectMedian, "connect_1_p50_us", "— p50 µs"),
    (Metric::ConnectSlow, "connect_1_p99_us", "— p99 µs"),
    (Metric::ConnectCost, "connect_1_cpu_us", "— CPU µs each"),
    (Metric::ConnectErrors, "connect_1_errors", "— errors"),
    (
        Metric::ConnectManyRate,
        "connect_64_per_s",
        "new connections/s, 64 at once",
    ),
    (Metric::ConnectManyMedian, "connect_64_p50_us", "— p50 µs"),
    (Metric::ConnectManySlow, "connect_64_p99_us", "— p99 µs"),
    (
        Metric::ConnectManyCost,
        "connect_64_cpu_us",
        "— CPU µs each",
    ),
    (Metric::ConnectManyErrors, "connect_64_errors", "— errors"),
    (
        Metric::MemoryStart,
        "memory_0_mb",
        "memory without visitors, MB",
    ),
    (
        Metric::MemoryIdle1000,
        "memory_1000_mb",
        "— with 1,000 idle visitors, MB",
    ),
    (
        Metric::MemoryIdle5000,
        "memory_5000_mb",
        "— with 5,000 idle visitors, MB",
    ),
    (
        Metric::MemoryPerIdle,
        "memory_idle_kb",
        "— per idle visitor, KB",
    ),
    (
        Metric::MemoryAfter,
        "memory_after_mb",
        "— after they have left, MB",
    ),
    (
        Metric::IdleAlive,
        "idle_alive_percent",
        "idle visitors still served, %",
    ),
    (
        Metric::UdpMedian,
        "udp_p50_us",
        "UDP ping-pong 1000 B, p50 µs",
    ),
    (Metric::UdpRate, "udp_per_s", "— per second"),
    (
        Metric::UdpLoss,
        "udp_flow_loss_percent",
        "UDP 20,000/s of 1000 B, loss %",
    ),
    (Metric::UdpFlowMedian, "udp_flow_p50_us", "— p50 µs"),
    (Metric::UdpFlowCost, "udp_flow_cpu_us", "— CPU µs each way"),
    (
        Metric::LinkFirstByteMedian,
        "link_first_byte_p50_ms",
        "first byte of a new visitor, p50 ms",
    ),
    (
        Metric::LinkFirstByteSlow,
        "link_first_byte_p99_ms",
        "— p99 ms",
    ),
    (
        Metric::LinkFirstByteMax,
        "link_first_byte_max_ms",
        "— max ms",
    ),
    (
        Metric::LinkBurst32Median,
        "link_burst_32_p50_ms",
        "32 new visitors at once, p50 ms",
    ),
    (Metric::LinkBurst32Max, "link_burst_32_max_ms", "— max ms"),
    (
        Metric::LinkBurst32Errors,
        "link_burst_32_errors",
        "— failures",
    ),
    (
        Metric::LinkBurst256Median,
        "link_burst_256_p50_ms",
        "256 new visitors at once, p50 ms",
    ),
    (Metric::LinkBurst256Max, "link_burst_256_max_ms", "— max ms"),
    (
        Metric::LinkBurst256Errors,
        "link_burst_256_errors",
        "— failures",
    ),
    (
        Metric::LinkConnectRate,
        "link_connect_64_per_s",
        "new visitors/s, 64 at once for 4 s",
    ),
    (
        Metric::LinkConnectMedian,
        "link_connect_64_p50_ms",
        "— p50 ms",
    ),
    (
        Metric::LinkConnectSlow,
        "link_connect_64_p99_ms",
        "— p99 ms",
    ),
    (
        Metric::LinkConnectErrors,
        "link_connect_64_errors",
        "— failures",
    ),
    (
        Metric::LinkBulkUpRate,
        "link_bulk_up_mbit_s",
        "1 stream up, Mbit/s",
    ),
    (
        Metric::LinkBulkDownRate,
        "link_bulk_down_mbit_s",
        "1 stream down, Mbit/s",
    ),
    (
        Metric::LinkBulkManyRate,
        "link_bulk_up_8_mbit_s",
        "8 streams up, Mbit/s",
    ),
];

impl Metric {
    fn key(self) -> &'static str {
        METRICS
            .iter()
            .find(|(metric, ..)| *metric == self)
            .map_or("", |(_, key, _)| *key)
    }
}

/// All samples of a run: by forwarder, then by metric.
#[derive(Default)]
pub struct Samples(BTreeMap<&'static str, BTreeMap<Metric, Vec<f64>>>);

impl Samples {
    /// Keeps one sample; what could not be measured is left out.
    pub fn add(&mut self, peer: &'static str, metric: Metric, value: f64) {
        if value.is_finite() {
            self.0
                .entry(peer)
                .or_default()
                .entry(metric)
                .or_default()
                .push(value);
        }
    }

    fn median_of(&self, peer: &str, metric: Metric) -> Option<f64> {
        self.0
            .get(peer)?
            .get(&metric)
            .and_then(|values| median(values))
    }

    /// A markdown table of medians: a line for each metric, a column for each forwarder, and how
    /// nodepass compares with each of `references`.
    pub fn to_markdown(&self, peers: &[&Peer], references: &[&str]) -> String {
        let names: Vec<&str> = peers.iter().map(|peer| peer.name).collect();
        let mut header = vec!["median".to_owned()];
        header.extend(names.iter().map(|name| (*name).to_owned()));
        let mut ratios = Vec::new();
        for one in peers.iter().filter(|peer| peer.is_nodepass()) {
            for other in references.iter().filter(|other| names.contains(other)) {
                header.push(format!("{} / {other}", one.name));
                ratios.push((one.name, *other));
            }
        }
        let mut lines = vec![header];
        for (metric, _, title) in METRICS {
            if !names
                .iter()
                .any(|name| self.median_of(name, metric).is_some())
            {
                continue;
            }
            let mut line = vec![title.to_owned()];
            line.extend(
                names
                    .iter()
                    .map(|name| format_value(self.median_of(name, metric))),
            );
            line.extend(ratios.iter().map(|(one, other)| {
                let one = self.median_of(one, metric);
                let other = self.median_of(other, metric).filter(|value| *value != 0.0);
                let ratio = one.zip(other).map(|(one, other)| one / other);
                ratio.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"))
            }));
            lines.push(line);
        }
        format_table(&lines)
    }

    /// All samples as a JSON object.
    pub fn to_json(&self) -> String {
        let peers = self.0.iter().map(|(peer, metrics)| {
            let metrics = metrics.iter().map(|(metric, values)| {
                let values: Vec<String> = values.iter().map(f64::to_string).collect();
                format!("      \"{}\": [{}]", metric.key(), values.join(", "))
            });
            let metrics: Vec<String> = metrics.collect();
            format!("    \"{peer}\": {{\n{}\n    }}", metrics.join(",\n"))
        });
        let peers: Vec<String> = peers.collect();
        format!("{{\n{}\n  }}", peers.join(",\n"))
    }
}

/// The value in the middle, or between the two in the middle.
pub fn median(values: &[f64]) -> Option<f64> {
    let mut sorted = values.to_vec();
    sorted.sort_unstable_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = sorted[(sorted.len() - 1) / 2];
    Some(f64::midpoint(lower, upper))
}

/// A number with as many digits as are worth reading.
fn format_value(value: Option<f64>) -> String {
    match value {
        None => "–".to_owned(),
        Some(0.0) => "0".to_owned(),
        Some(value) if value < 1.0 => format!("{value:.3}"),
        Some(value) if value < 100.0 => format!("{value:.1}"),
        Some(value) => format!("{value:.0}"),
    }
}

/// A markdown table whose columns line up; the first line is the header.
fn format_table(lines: &[Vec<String>]) -> String {
    let columns = lines.first().map_or(0, Vec::len);
    let width = |column: usize| {
        lines
            .iter()
            .map(|line| line[column].chars().count())
            .max()
            .unwrap_or(0)
            .max(3)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut text = String::new();
    for (index, line) in lines.iter().enumerate() {
        for (column, cell) in line.iter().enumerate() {
            let width = widths[column];
            // Writing to a string cannot fail.
            let _ = match column {
                0 => write!(text, "| {cell:<width$} |"),
                _ => write!(text, " {cell:>width$} |"),
            };
        }
        text.push('\n');
        if index == 0 {
            for (column, width) in widths.iter().enumerate() {
                let dashes = "-".repeat(width + 1);
                let _ = match column {
                    0 => write!(text, "|{dashes}-|"),
                    _ => write!(text, "{dashes}:|"),
                };
            }
            text.push('\n');
        }
    }
    text
}
