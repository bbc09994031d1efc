//! The command line of the benchmark.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::peers::{PEERS, Peer};

pub const USAGE: &str = "\
Usage: cargo bench --bench forward -- [OPTION…]
  --only NAME,…     forwarders to compare: direct, nodepass, socat, haproxy (default: all)
  --tests NAME,…    bulk, pingpong, connect, idle, udp (default: all)
  --rounds N        times that everything is measured; medians are shown (default: 5)
  --seconds S       length of each measurement (default: 1)
  --binary PATH     nodepass to measure (default: the one cargo has just built)
";

/// What is measured with each forwarder.
#[derive(Clone, Copy, PartialEq)]
pub enum Test {
    Bulk,
    PingPong,
    Connect,
    Idle,
    Udp,
}

impl Test {
    const ALL: [(&str, Test); 5] = [
        ("bulk", Test::Bulk),
        ("pingpong", Test::PingPong),
        ("connect", Test::Connect),
        ("idle", Test::Idle),
        ("udp", Test::Udp),
    ];

    pub fn name(self) -> &'static str {
        Test::ALL
            .iter()
            .find(|(_, test)| *test == self)
            .map_or("", |(name, _)| *name)
    }
}

pub struct Options {
    pub peers: Vec<&'static Peer>,
    pub tests: Vec<Test>,
    pub rounds: usize,
    pub duration: Duration,
    pub nodepass: PathBuf,
}

impl Options {
    /// Reads the arguments; `None` when only the usage is asked for.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
        let mut options = Options {
            peers: PEERS.iter().collect(),
            tests: Test::ALL.iter().map(|(_, test)| *test).collect(),
            rounds: 5,
            duration: Duration::from_secs(1),
            nodepass: PathBuf::from(env!("CARGO_BIN_EXE_nodepass")),
        };
        while let Some(name) = arguments.next() {
            // Cargo passes this one to every benchmark.
            if name == "--bench" {
                continue;
            }
            if name == "--help" || name == "-h" {
                return Ok(None);
            }
            let value = arguments
                .next()
                .ok_or_else(|| format!("'{name}' needs a value"))?;
            match name.as_str() {
                "--only" => {
                    options.peers = pick(&value, PEERS.iter().map(|peer| (peer.name, peer)))?
                }
                "--tests" => options.tests = pick(&value, Test::ALL.into_iter())?,
                "--rounds" => options.rounds = parse_value(&name, &value)?,
                "--seconds" => {
                    options.duration = Duration::try_from_secs_f64(parse_value(&name, &value)?)
                        .map_err(|error| format!("'{name}' has value '{value}': {error}"))?;
                }
                "--binary" => {
                    options.nodepass = fs::canonicalize(&value)
                        .map_err(|error| format!("'{name}' has value '{value}': {error}"))?;
                }
                _ => return Err(format!("unknown option '{name}'")),
            }
        }
        if options.rounds == 0 || options.duration.is_zero() {
            return Err("'--rounds' and '--seconds' must be more than 0".to_owned());
        }
        Ok(Some(options))
    }
}

/// The choices whose names are in a comma-separated list, in their own order.
fn pick<T: Clone>(
    names: &str,
    choices: impl Iterator<Item = (&'static str, T)>,
) -> Result<Vec<T>, String> {
    let choices: Vec<(&str, T)> = choices.collect();
    for name in names.split(',') {
        if !choices.iter().any(|(known, _)| *known == name) {
            let known: Vec<&str> = choices.iter().map(|(known, _)| *known).collect();
            return Err(format!(
                "unknown name '{name}'; known are {}",
                known.join(", ")
            ));
        }
    }
    let wanted = choices
        .into_iter()
        .filter(|(known, _)| names.split(',').any(|name| name == *known));
    Ok(wanted.map(|(_, choice)| choice).collect())
}

fn parse_value<T: FromStr>(name: &str, value: &str) -> Result<T, String> {
    value
        .parse()
        .map_err(|_| format!("'{name}' has value '{value}'; use a number"))
}
