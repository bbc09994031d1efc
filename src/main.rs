//! The program: parse, choose the core, map the result to an exit status.

#![forbid(unsafe_code)]

use std::io::{self, Write};
use std::process::ExitCode;

use nodepass::config::{
    ConfigError, FlagsError, Invocation, parse_flags, parse_url, read_limits, reference,
};
use nodepass::runtime::descriptors::raise_limit;
use nodepass::runtime::input::read_url;
use nodepass::runtime::log::{Log, Threshold};
use nodepass::runtime::parent::{MASTER_VARIABLE, end_with_parent};
use nodepass::runtime::shutdown::Signals;
use nodepass::tunnel;
#[cfg(feature = "master")]
use nodepass::{config::Core, master};

/// Arguments, URL or environment that cannot be used.
const EXIT_UNUSABLE: u8 = 2;

fn main() -> ExitCode {
    let url_of_environment = std::env::var_os("NODEPASS_URL");
    let result = match parse_flags(std::env::args_os().skip(1), url_of_environment) {
        Err(FlagsError::NoUrl) => {
            complain(&reference::usage());
            return ExitCode::from(EXIT_UNUSABLE);
        }
        Err(error) => Err(error.to_string()),
        Ok(Invocation::Help) => print(&reference::help()),
        Ok(Invocation::Version) => print(&reference::version()),
        Ok(Invocation::Check(url)) if url == "-" => read_url().and_then(|url| check(&url)),
        Ok(Invocation::Check(url)) => check(&url),
        Ok(Invocation::RunStdin) => run_stdin(),
        Ok(Invocation::Run(url)) => run(&url),
    };
    result.unwrap_or_else(|error| {
        complain(&format!("nodepass: {error}\n"));
        ExitCode::from(EXIT_UNUSABLE)
    })
}

fn check(url: &str) -> Result<ExitCode, String> {
    let limits = read_limits(|name| std::env::var_os(name)).map_err(text)?;
    let (config, notices) = parse_url(url, &limits).map_err(text)?;
    for notice in notices {
        complain(&format!("nodepass: {notice}\n"));
    }
    print(&format!("{}\n", config.to_url()))
}

/// Runs the URL on standard input, which may come from a master.
fn run_stdin() -> Result<ExitCode, String> {
    if let Some(master) = std::env::var_os(MASTER_VARIABLE) {
        let bound = end_with_parent(&master.to_string_lossy());
        bound.map_err(|error| format!("cannot run as an instance of a master: {error}"))?;
    }
    read_url().and_then(|url| run(&url))
}

fn run(url: &str) -> Result<ExitCode, String> {
    let limits = read_limits(|name| std::env::var_os(name)).map_err(text)?;
    let (config, notices) = parse_url(url, &limits).map_err(text)?;
    let system = |what: &str, error: io::Error| {
        complain(&format!("nodepass: cannot {what}: {error}\n"));
        Ok(ExitCode::FAILURE)
    };
    let threshold = Threshold {
        level: config.options.log.filter(),
        events: config.options.log.shows_events(),
    };
    let log = match Log::start(threshold, limits.stack_size) {
        Ok(log) => log,
        Err(error) => return system("start the log", error),
    };
    let signals = match Signals::install() {
        Ok(signals) => signals,
        Err(error) => return system("take over signals", error),
    };
    for notice in notices {
        log::warn!("{notice}");
    }
    let descriptors_max = raise_limit();
    let is_well = match config.core {
        #[cfg(feature = "master")]
        Core::Master => master::run(&config, &limits, &signals, &log).is_ok(),
        _ => tunnel::run(&config, &limits, &signals, descriptors_max).is_ok(),
    };
    log.finish();
    Ok(if is_well {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

fn complain(text: &str) {
    // Where standard error is closed there is nobody to tell.
    let _ = io::stderr().write_all(text.as_bytes());
}

fn print(text: &str) -> Result<ExitCode, String> {
    // A reader that has seen enough, such as `head`, is no error.
    let _ = io::stdout().write_all(text.as_bytes());
    Ok(ExitCode::SUCCESS)
}

#[allow(clippy::needless_pass_by_value, reason = "fits map_err")]
fn text(error: ConfigError) -> String {
    error.to_string()
}
