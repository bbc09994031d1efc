//! The command line of the benchmark.

use std::fs;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use crate::peers::{PEERS, Peer};

/// What the command line may hold.
pub fn usage() -> String {
    let peers: Vec<&str> = PEERS.iter().map(|peer| peer.name).collect();
    let tests = |over_link: bool| {
        let applying = Test::ALL.iter().filter(|test| test.applies(over_link));
        let names: Vec<&str> = applying.map(|test| test.name()).collect();
        names.join(", ")
    };
    format!(
        "\
Usage: cargo bench --bench forward -- [OPTION…]
  --only NAME,…     what is compared: {peers} (default: all)
  --tests NAME,…    {loopback} (default: all)
  --rounds N        times that everything is measured; medians are shown (default: 5, 3 on a link)
  --seconds S       length of each measurement (default: 1); on a link, how long bulk streams are
                    measured (default: 4)
  --binary PATH     nodepass to measure (default: the one cargo has just built)
  --link PATH       over a link of 50 ms that the helper at PATH makes, instead of over loopback;
                    tests are then {link}; only tunnels and direct; root only
  --loss PERCENT    how many packets the link loses, each way (default: 0)
  --congestion NAME congestion control of TCP on the link, such as cubic, bbr (default: the system's)
",
        peers = peers.join(", "),
        loopback = tests(false),
        link = tests(true),
    )
}

/// What is measured with each forwarder.
#[derive(Clone, Copy, PartialEq)]
pub enum Test {
    Bulk,
    BulkUp,
    BulkDown,
    BulkMany,
    PingPong,
    FirstByte,
    Burst,
    Connect,
    Idle,
    Udp,
}

impl Test {
    const ALL: [Test; 10] = [
        Test::Bulk,
        Test::BulkUp,
        Test::BulkDown,
        Test::BulkMany,
        Test::PingPong,
        Test::FirstByte,
        Test::Burst,
        Test::Connect,
        Test::Idle,
        Test::Udp,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Test::Bulk => "bulk",
            Test::BulkUp => "bulk-up",
            Test::BulkDown => "bulk-down",
            Test::BulkMany => "bulk-many",
            Test::PingPong => "pingpong",
            Test::FirstByte => "firstbyte",
            Test::Burst => "burst",
            Test::Connect => "connect",
            Test::Idle => "idle",
            Test::Udp => "udp",
        }
    }

    /// Whether it is one of those over a link, or over loopback.
    fn applies(self, over_link: bool) -> bool {
        match self {
            Test::FirstByte | Test::Connect => true,
            Test::BulkUp | Test::BulkDown | Test::BulkMany | Test::Burst => over_link,
            Test::Bulk | Test::PingPong | Test::Idle | Test::Udp => !over_link,
        }
    }
}

pub struct Options {
    pub peers: Vec<&'static Peer>,
    pub tests: Vec<Test>,
    pub rounds: usize,
    pub duration: Duration,
    pub nodepass: PathBuf,
    /// The program that makes the link; without one, all is measured over loopback.
    pub link: Option<PathBuf>,
    /// Share of packets that the link loses each way.
    pub loss_percent: f64,
    /// Congestion control of TCP on the link, if not the system's.
    pub congestion: Option<String>,
}

impl Options {
    /// Reads the arguments; `None` when only the usage is asked for.
    pub fn parse(mut arguments: impl Iterator<Item = String>) -> Result<Option<Options>, String> {
        let mut options = Options {
            peers: Vec::new(),
            tests: Vec::new(),
            rounds: 0,
            duration: Duration::ZERO,
            nodepass: PathBuf::from(env!("CARGO_BIN_EXE_nodepass")),
            link: None,
            loss_percent: 0.0,
            congestion: None,
        };
        let (mut only, mut tests, mut rounds, mut seconds) = (None, None, None, None);
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
            let find = || {
                fs::canonicalize(&value)
                    .map_err(|error| format!("'{name}' has value '{value}': {error}"))
            };
            match name.as_str() {
                "--only" => only = Some(value),
                "--tests" => tests = Some(value),
                "--rounds" => rounds = Some(parse_value(&name, &value)?),
                "--seconds" => {
                    let duration = Duration::try_from_secs_f64(parse_value(&name, &value)?)
                        .map_err(|error| format!("'{name}' has value '{value}': {error}"))?;
                    seconds = Some(duration);
                }
                "--binary" => options.nodepass = find()?,
                "--link" => options.link = Some(find()?),
                "--loss" => options.loss_percent = parse_value(&name, &value)?,
                "--congestion" => options.congestion = Some(value),
                _ => return Err(format!("unknown option '{name}'")),
            }
        }
        let over_link = options.link.is_some();
        options.peers = pick(
            only,
            PEERS
                .iter()
                .filter(|peer| !over_link || peer.kind.is_on_link())
                .map(|peer| (peer.name, peer)),
        )?;
        options.tests = pick(
            tests,
            Test::ALL
                .into_iter()
                .filter(|test| test.applies(over_link))
                .map(|test| (test.name(), test)),
        )?;
        options.rounds = rounds.unwrap_or(if over_link { 3 } else { 5 });
        let default_seconds = if over_link { 4 } else { 1 };
        options.duration = seconds.unwrap_or(Duration::from_secs(default_seconds));
        if !over_link && (options.loss_percent != 0.0 || options.congestion.is_some()) {
            return Err("'--loss' and '--congestion' are for a link: use '--link'".to_owned());
        }
        if !(0.0..100.0).contains(&options.loss_percent) {
            return Err("'--loss' must be a percentage from 0 to less than 100".to_owned());
        }
        if options.rounds == 0 || options.duration.is_zero() {
            return Err("'--rounds' and '--seconds' must be more than 0".to_owned());
        }
        Ok(Some(options))
    }
}

/// The choices whose names are in a comma-separated list, in their own order; all if there is none.
fn pick<T: Clone>(
    names: Option<String>,
    choices: impl Iterator<Item = (&'static str, T)>,
) -> Result<Vec<T>, String> {
    let choices: Vec<(&str, T)> = choices.collect();
    let Some(names) = names else {
        return Ok(choices.into_iter().map(|(_, choice)| choice).collect());
    };
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
