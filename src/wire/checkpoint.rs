//! The status line that a running instance writes each report interval.
//!
//! The master and dashboards read it: its shape may not change.
//! Source: `options.md`, "Log lines".

use std::fmt;
use std::time::Duration;

/// What a checkpoint line says.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Checkpoint {
    /// The run mode in use, 1 or 2.
    pub mode: u8,
    /// Round trip of the control channel, or connect time to the target of a single-end client.
    pub ping: Duration,
    /// Idle pool connections.
    pub pool_count: u64,
    /// Open TCP sessions.
    pub tcp_sessions_count: u64,
    /// Open UDP sessions.
    pub udp_sessions_count: u64,
    /// Bytes read from TCP sockets on the application side since start.
    pub tcp_received: u64,
    /// Bytes written to TCP sockets on the application side since start.
    pub tcp_sent: u64,
    /// Bytes of datagrams received on the application side since start.
    pub udp_received: u64,
    /// Bytes of datagrams sent on the application side since start.
    pub udp_sent: u64,
}

impl fmt::Display for Checkpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "CHECK_POINT|MODE={}|PING={}ms|POOL={}|TCPS={}|UDPS={}|TCPRX={}|TCPTX={}|UDPRX={}|UDPTX={}",
            self.mode,
            self.ping.as_millis(),
            self.pool_count,
            self.tcp_sessions_count,
            self.udp_sessions_count,
            self.tcp_received,
            self.tcp_sent,
            self.udp_received,
            self.udp_sent
        )
    }
}

impl Checkpoint {
    /// Reads the line; `None` if it is any other.
    pub fn parse(line: &str) -> Option<Self> {
        let mut fields = line.split('|');
        if fields.next()? != "CHECK_POINT" {
            return None;
        }
        let mut next = |name: &str| fields.next()?.strip_prefix(name)?.strip_prefix('=');
        let mode = next("MODE")?.parse().ok()?;
        let ping = next("PING")?.strip_suffix("ms")?.parse().ok()?;
        let mut count = |name| next(name)?.parse::<u64>().ok();
        let checkpoint = Self {
            mode,
            ping: Duration::from_millis(ping),
            pool_count: count("POOL")?,
            tcp_sessions_count: count("TCPS")?,
            udp_sessions_count: count("UDPS")?,
            tcp_received: count("TCPRX")?,
            tcp_sent: count("TCPTX")?,
            udp_received: count("UDPRX")?,
            udp_sent: count("UDPTX")?,
        };
        fields.next().is_none().then_some(checkpoint)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_line_is_the_one_that_is_specified() {
        let checkpoint = Checkpoint {
            mode: 1,
            ping: Duration::from_micros(12_900),
            pool_count: 64,
            tcp_sessions_count: 3,
            udp_sessions_count: 0,
            tcp_received: 1024,
            tcp_sent: 2048,
            udp_received: 0,
            udp_sent: u64::MAX,
        };
        assert_eq!(
            checkpoint.to_string(),
            "CHECK_POINT|MODE=1|PING=12ms|POOL=64|TCPS=3|UDPS=0|TCPRX=1024|TCPTX=2048|UDPRX=0|\
             UDPTX=18446744073709551615"
        );
    }

    #[test]
    fn the_line_is_read_as_it_was_written() {
        let checkpoint = Checkpoint {
            mode: 2,
            ping: Duration::from_millis(7),
            pool_count: 1,
            tcp_sessions_count: 2,
            udp_sessions_count: 3,
            tcp_received: 4,
            tcp_sent: 5,
            udp_received: 6,
            udp_sent: u64::MAX,
        };
        let line = checkpoint.to_string();
        assert_eq!(Checkpoint::parse(&line), Some(checkpoint));
        for end in 0..line.len() - 20 {
            assert_eq!(Checkpoint::parse(&line[..end]), None, "{}", &line[..end]);
        }
        for other in [
            format!("{line}|X=1"),
            format!(" {line}"),
            line.replace("TCPS=2", "TCPS=-2"),
            line.replace("7ms", "7"),
        ] {
            assert_eq!(Checkpoint::parse(&other), None, "{other}");
        }
    }
}
