//! `/tcping`: whether a target takes connections, and how fast.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, bounded};
use serde::Serialize;

use super::reply::Reply;
use crate::config::address::{Address, Host};
use crate::config::percent::decode_percent;
use crate::limits::{TCPING_COUNT_MAX, TCPING_TIMEOUT, TCPING_WAIT};
use crate::net::resolve::Resolver;

/// What came of a connection test.
#[derive(Serialize)]
#[allow(missing_docs, reason = "the members are those of the specification")]
pub struct TcpingResult {
    pub target: String,
    pub connected: bool,
    /// In milliseconds.
    pub latency: u64,
    pub error: Option<String>,
}

/// Connection tests, a bounded number at a time.
pub struct Tcping {
    resolver: Resolver,
    /// Holds one token for each that may begin.
    free: (Sender<()>, Receiver<()>),
}

impl Tcping {
    /// Begins with none.
    pub fn new(resolver: Resolver) -> Self {
        let free = bounded(TCPING_COUNT_MAX);
        for _ in 0..TCPING_COUNT_MAX {
            // There is room for all of them.
            let _ = free.0.try_send(());
        }
        Self { resolver, free }
    }

    /// Tests what the query names.
    ///
    /// Blocks: until there is a result, bounded.
    /// Errors: it names nothing.
    pub fn answer(&self, query: &str) -> Result<Reply, Reply> {
        let target = parameter(query, "target");
        let target = target.filter(|target| !target.is_empty());
        let target = target.ok_or_else(|| Reply::error(400, "Target address required"))?;
        let outcome = match self.free.1.recv_timeout(TCPING_WAIT) {
            Ok(()) => {
                let outcome = self.test(&target);
                let _ = self.free.0.try_send(());
                outcome
            }
            Err(_) => Err(format!(
                "too many tests: {TCPING_COUNT_MAX} are running, try again"
            )),
        };
        let latency = outcome.as_ref().copied().unwrap_or_default();
        let result = TcpingResult {
            target,
            connected: outcome.is_ok(),
            latency: u64::try_from(latency.as_millis()).unwrap_or(u64::MAX),
            error: outcome.err(),
        };
        Ok(Reply::json(200, &result))
    }

    /// Returns how long it took to connect; the error is in the words of 1.x programs.
    fn test(&self, target: &str) -> Result<Duration, String> {
        let deadline = Instant::now() + TCPING_TIMEOUT;
        if !target.contains(':') {
            return Err(format!(
                "dial tcp: address {target}: missing port in address"
            ));
        }
        let address = Address::parse(target)
            .map_err(|error| format!("dial tcp: address {target}: {error}"))?;
        let failed = |reason: &str| format!("dial tcp {target}: {reason}");
        let ips = match &address.host {
            Host::Ip(ip) => vec![*ip],
            Host::Any => vec![std::net::Ipv4Addr::LOCALHOST.into()],
            Host::Name(name) => self
                .resolver
                .look_up(name, deadline, &|| true)
                .map_err(|error| failed(&error.to_string()))?
                .to_vec(),
        };
        let mut last = failed("i/o timeout");
        for ip in ips {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            let began_at = Instant::now();
            match TcpStream::connect_timeout(&SocketAddr::new(ip, address.port), left) {
                Ok(_) => return Ok(began_at.elapsed()),
                Err(error) => last = failed(&reason(&error)),
            }
        }
        Err(last)
    }
}

fn reason(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => String::from("connect: connection refused"),
        io::ErrorKind::TimedOut => String::from("i/o timeout"),
        io::ErrorKind::NetworkUnreachable => String::from("connect: network is unreachable"),
        io::ErrorKind::HostUnreachable => String::from("connect: no route to host"),
        _ => format!("connect: {error}"),
    }
}

/// Returns the first value of that name in a query.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = query
        .split('&')
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.find(|(found, _)| *found == name)?;
    let bytes = decode_percent(&value.replace('+', " "))?;
    String::from_utf8(bytes).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_parameter_is_found_and_decoded() {
        let find = |query| parameter(query, "target");
        assert_eq!(find("target=a:1").as_deref(), Some("a:1"));
        assert_eq!(
            find("x=1&target=%5B::1%5D:2&target=b").as_deref(),
            Some("[::1]:2")
        );
        assert_eq!(find("target").as_deref(), Some(""));
        assert_eq!(find("targets=a:1"), None);
        assert_eq!(find("target=%zz"), None);
    }
}
