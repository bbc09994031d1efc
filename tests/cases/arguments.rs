//! Arguments, options and environment: what is accepted, what is said of the rest.

use rustix::process::Signal;

use crate::support::program::{Launch, Outcome, Program, forward_url};
use crate::support::servers::TcpServer;
use crate::support::visitors::{dial, exchange};

const CLIENT: &str = "client://127.0.0.1:1080/127.0.0.1:8080?mode=1";

/// Every option of the contract.
const OPTIONS: [&str; 19] = [
    "log", "tls", "crt", "key", "dns", "sni", "lbs", "min", "max", "mode", "type", "dial", "read",
    "rate", "slot", "proxy", "block", "notcp", "noudp",
];

/// Every environment variable of the contract.
const VARIABLES: [&str; 16] = [
    "NP_SEMAPHORE_LIMIT",
    "NP_TCP_DATA_BUF_SIZE",
    "NP_UDP_DATA_BUF_SIZE",
    "NP_HANDSHAKE_TIMEOUT",
    "NP_TCP_DIAL_TIMEOUT",
    "NP_UDP_DIAL_TIMEOUT",
    "NP_UDP_READ_TIMEOUT",
    "NP_POOL_GET_TIMEOUT",
    "NP_MIN_POOL_INTERVAL",
    "NP_MAX_POOL_INTERVAL",
    "NP_REPORT_INTERVAL",
    "NP_FALLBACK_INTERVAL",
    "NP_SERVICE_COOLDOWN",
    "NP_SHUTDOWN_TIMEOUT",
    "NP_RELOAD_INTERVAL",
    "NP_STACK_SIZE",
];

fn run(arguments: &[&str]) -> Outcome {
    Launch::new(arguments).run()
}

#[track_caller]
fn check(url: &str) -> Outcome {
    run(&["--check", url])
}

/// Asserts an end with status 2 whose words on standard error hold all of `words`.
#[track_caller]
fn assert_unusable(outcome: &Outcome, words: &[&str]) {
    assert_eq!(outcome.status, 2, "{words:?}: {outcome:?}");
    for word in words {
        assert!(
            outcome.errors.contains(word),
            "{word:?} is not named: {outcome:?}"
        );
    }
    let first = outcome.errors.lines().next().unwrap_or_default();
    assert!(!first.contains("panicked"), "{outcome:?}");
}

#[test]
fn bad_option_values_are_refused_with_option_and_value() {
    let table: [(&str, &[&str]); 15] = [
        ("log", &["loud", "", "0", "INFO!"]),
        ("dns", &["5x", "-5m", "1.1.1.1,nonsense", ","]),
        ("lbs", &["3", "-1", "x"]),
        ("min", &["0", "-1", "x", "1.5", "99999999999999999999"]),
        ("mode", &["3", "-1", "x"]),
        ("dial", &["300.1.1.1", "example", "127.0.0.1:80"]),
        ("read", &["5", "-5s", "x", "1h1"]),
        ("rate", &["-1", "x", "1.5", "99999999999999999999"]),
        ("slot", &["-1", "x", "99999999999999999999"]),
        ("proxy", &["3", "-1", "yes"]),
        ("block", &["4", "x", "15", "-1"]),
        ("notcp", &["2", "x", "true"]),
        ("noudp", &["2", "x", "true"]),
        ("auth", &["2", "x"]),
        ("sni", &["two words", "a..b"]),
    ];
    for (option, values) in table {
        for value in values {
            // Alone in its URL: of a repeated option the first counts.
            let mode = if option == "mode" { "" } else { "mode=1&" };
            let written = value.replace(' ', "%20");
            let url = format!("client://127.0.0.1:1080/127.0.0.1:8080?{mode}{option}={written}");
            assert_unusable(&run(&[&url]), &[option, value]);
            assert_unusable(&check(&url), &[option, value]);
        }
    }
}

#[test]
fn bad_values_of_server_options_are_refused_with_option_and_value() {
    for (option, value) in [
        ("tls", "3"),
        ("tls", "yes"),
        ("type", "4"),
        ("type", "x"),
        ("max", "0"),
        ("max", "x"),
    ] {
        let url = format!("server://127.0.0.1:1080/127.0.0.1:8080?{option}={value}");
        assert_unusable(&check(&url), &[option, value]);
    }
}

#[test]
fn leaving_out_both_protocols_is_refused() {
    assert_unusable(
        &check(&format!("{CLIENT}&notcp=1&noudp=1")),
        &["notcp", "noudp"],
    );
}

#[test]
fn bad_addresses_and_cores_are_refused() {
    for (url, named) in [
        ("peer://127.0.0.1:1080/127.0.0.1:8080", "client://"),
        ("127.0.0.1:1080/127.0.0.1:8080", "client://"),
        ("client://127.0.0.1/127.0.0.1:8080?mode=1", "127.0.0.1"),
        ("client://127.0.0.1:70000/127.0.0.1:8080?mode=1", "70000"),
        ("client://127.0.0.1:1080/127.0.0.1:70000?mode=1", "70000"),
        ("client://127.0.0.1:1080/127.0.0.1:http?mode=1", "http"),
        ("client://127.0.0.1:1080/?mode=1", "target"),
        ("client://127.0.0.1:1080?mode=1", "target"),
        ("client://127.0.0.1:1080/127.0.0.1:8080,?mode=1", "target"),
        ("client://[::1:1080/127.0.0.1:8080?mode=1", "[::1:1080"),
    ] {
        assert_unusable(&check(url), &[named]);
        assert_unusable(&run(&[url]), &[named]);
    }
}

#[test]
fn program_that_would_feed_itself_is_refused() {
    for (tunnel, target) in [
        ("127.0.0.1:9000", "127.0.0.1:9000"),
        ("0.0.0.0:9000", "127.0.0.1:9000"),
        (":9000", "127.0.0.1:9000"),
        ("[::1]:9000", "[::1]:9000"),
        ("127.0.0.1:9000", "localhost:9000"),
        ("127.0.0.1:9000", "192.0.2.1:80,127.0.0.1:9000"),
    ] {
        let own = target.rsplit(',').next().unwrap();
        assert_unusable(
            &check(&format!("client://{tunnel}/{target}?mode=1")),
            &[tunnel, own],
        );
        assert_unusable(
            &run(&[&format!("client://{tunnel}/{target}?mode=1")]),
            &[tunnel, own],
        );
    }
}

#[test]
fn bad_environment_values_are_refused_with_variable_and_value() {
    let mut table: Vec<(&str, &str)> = vec![
        ("NP_UDP_DATA_BUF_SIZE", "65508"),
        ("NP_UDP_DATA_BUF_SIZE", "0"),
        ("NP_TCP_DATA_BUF_SIZE", "0"),
        ("NP_SEMAPHORE_LIMIT", "0"),
        ("NP_REPORT_INTERVAL", "0"),
        ("NP_REPORT_INTERVAL", "5"),
        ("NP_SHUTDOWN_TIMEOUT", "5"),
        ("NP_TCP_DIAL_TIMEOUT", "-1s"),
        ("NP_STACK_SIZE", "1"),
        // The older names are read where the newer are unset.
        ("UDP_DATA_BUF_SIZE", "65508"),
        ("SHUTDOWN_TIMEOUT", "soon"),
        ("MIN_POOL_CAPACITY", "0"),
    ];
    table.extend(VARIABLES.map(|name| (name, "nonsense")));
    for (name, value) in table {
        let outcome = Launch::new(&["--check", CLIENT]).env(name, value).run();
        assert_unusable(&outcome, &[name, value]);
    }
    let outcome = Launch::new(&[CLIENT])
        .env("NP_REPORT_INTERVAL", "nonsense")
        .run();
    assert_unusable(&outcome, &["NP_REPORT_INTERVAL", "nonsense"]);
}

#[test]
fn check_prints_the_url_with_all_defaults() {
    let outcome = check("client://secret@127.0.0.1:1080/127.0.0.1:8080,127.0.0.1:8081?mode=1");
    assert_eq!(
        (outcome.status, outcome.errors.as_str()),
        (0, ""),
        "{outcome:?}"
    );
    let url = outcome.output.trim_end();
    assert_eq!(url.lines().count(), 1, "{outcome:?}");
    let (address, options) = url.split_once('?').unwrap();
    assert_eq!(
        address,
        "client://***@127.0.0.1:1080/127.0.0.1:8080,127.0.0.1:8081"
    );
    let options: Vec<&str> = options.split('&').collect();
    for expected in [
        "log=info",
        "dns=5m0s",
        "sni=none",
        "lbs=0",
        "min=64",
        "mode=1",
        "dial=auto",
        "read=0s",
        "rate=0",
        "slot=65536",
        "proxy=0",
        "block=0",
        "notcp=0",
        "noudp=0",
    ] {
        assert!(options.contains(&expected), "no {expected} in {url}");
    }
}

#[test]
fn check_keeps_values_and_normalises_durations() {
    for (given, printed) in [
        ("read=90s", "read=1m30s"),
        ("read=1.5h", "read=1h30m0s"),
        ("read=300ms", "read=300ms"),
        ("read=0", "read=0s"),
        ("dns=2h45m", "dns=2h45m0s"),
        ("dns=1.1.1.1,8.8.8.8", "dns=1.1.1.1,8.8.8.8"),
        ("slot=0", "slot=0"),
        ("rate=100", "rate=100"),
        ("dial=127.0.0.2", "dial=127.0.0.2"),
        ("lbs=2", "lbs=2"),
        ("log=debug", "log=debug"),
    ] {
        let outcome = check(&format!("{CLIENT}&{given}"));
        assert_eq!(outcome.status, 0, "{outcome:?}");
        let options = outcome.output.trim_end().split_once('?').unwrap().1;
        assert!(
            options.split('&').any(|option| option == printed),
            "{given}: {outcome:?}"
        );
    }
}

#[test]
fn help_names_every_option_and_variable() {
    for flag in ["--help", "-h"] {
        let outcome = run(&[flag]);
        assert_eq!((outcome.status, outcome.errors.as_str()), (0, ""));
        let words: Vec<&str> = outcome
            .output
            .split(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .collect();
        for name in OPTIONS
            .iter()
            .chain(&VARIABLES)
            .chain(&["auth", "NP_STATE_DIR"])
        {
            assert!(words.contains(name), "{flag} does not name {name}");
        }
        for core in ["server://", "client://", "master://"] {
            assert!(outcome.output.contains(core), "{flag} does not show {core}");
        }
    }
}

#[test]
fn version_names_program_features_and_target() {
    for flag in ["--version", "-V"] {
        let outcome = run(&[flag]);
        assert_eq!((outcome.status, outcome.errors.as_str()), (0, ""));
        let line = outcome.output.trim_end();
        assert_eq!(line.lines().count(), 1, "{line:?}");
        let start = format!("nodepass {} (features: ", env!("CARGO_PKG_VERSION"));
        let rest = line
            .strip_prefix(&start)
            .unwrap_or_else(|| panic!("{line:?}"));
        let (features, target) = rest
            .strip_suffix(')')
            .and_then(|rest| rest.split_once("; "))
            .unwrap();
        let all = [
            ("http2", cfg!(feature = "http2")),
            ("master", cfg!(feature = "master")),
            ("quic", cfg!(feature = "quic")),
            ("swagger-ui", cfg!(feature = "swagger-ui")),
            ("tls", cfg!(feature = "tls")),
            ("websocket", cfg!(feature = "websocket")),
        ];
        let built_in: Vec<&str> = all
            .into_iter()
            .filter_map(|(name, is_built)| is_built.then_some(name))
            .collect();
        let expected = match built_in.is_empty() {
            true => "none".to_owned(),
            false => built_in.join(", "),
        };
        assert_eq!(features, expected, "{line:?}");
        // A triple has two dashes or three.
        assert!((2..=3).contains(&target.matches('-').count()), "{line:?}");
    }
}

#[test]
fn no_argument_shows_a_short_usage() {
    let outcome = run(&[]);
    assert_unusable(&outcome, &["nodepass"]);
    assert!(
        outcome.errors.to_lowercase().contains("usage"),
        "{outcome:?}"
    );
    assert!(outcome.errors.lines().count() < 20, "{outcome:?}");
    assert_eq!(outcome.output, "");
}

#[test]
fn unusable_arguments_are_refused() {
    for arguments in [
        &["--unheard-of"][..],
        &["--check"],
        &["--check", CLIENT, CLIENT],
        &[CLIENT, CLIENT],
        &["-x"],
        &[""],
    ] {
        assert_unusable(&run(arguments), &[]);
    }
}

#[test]
fn url_is_read_from_standard_input() {
    let target = TcpServer::echo();
    // Only its first line is the URL.
    let input = format!("{}\nnothing of this\n", forward_url(target.address(), ""));
    let program = Launch::new(&["-"]).input(&input).start();
    exchange(&dial(program.tcp_address()), b"by standard input");
}

#[test]
fn empty_standard_input_is_refused() {
    assert_unusable(&Launch::new(&["-"]).input("").run(), &[]);
}

#[test]
fn url_is_read_from_the_environment() {
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "");
    let program = Launch::new(&[]).env("NODEPASS_URL", &url).start();
    exchange(&dial(program.tcp_address()), b"by environment");
}

#[test]
fn argument_wins_over_the_environment() {
    let target = TcpServer::echo();
    let url = forward_url(target.address(), "");
    let program = Launch::new(&[&url])
        .env("NODEPASS_URL", "nonsense://")
        .start();
    exchange(&dial(program.tcp_address()), b"by argument");
}

/// The log of a program that started in spite of `options`, with what it said elsewhere.
fn said_of(options: &str) -> Vec<String> {
    let target = TcpServer::echo();
    let program = Program::forward_to(target.address(), options);
    exchange(&dial(program.tcp_address()), b"runs");
    let errors = program.errors();
    program
        .lines()
        .into_iter()
        .chain(errors.lines().map(str::to_owned))
        .collect()
}

/// Asserts that `option` is the subject of exactly one warning, and returns it.
#[track_caller]
fn only_warning(options: &str) -> String {
    let lines = said_of(options);
    let warnings: Vec<&String> = lines.iter().filter(|line| line.contains("WARN")).collect();
    assert_eq!(warnings.len(), 1, "{options}: {lines:#?}");
    warnings[0].clone()
}

#[test]
fn unknown_option_is_ignored_with_the_nearest_known_one() {
    for (unknown, nearest) in [
        ("slto=3", "slot"),
        ("notpc=1", "notcp"),
        ("blok=1", "block"),
    ] {
        let warning = only_warning(unknown);
        let name = unknown.split('=').next().unwrap();
        assert!(
            warning.contains(name) && warning.contains(nearest),
            "{warning}"
        );
    }
}

#[test]
fn option_of_another_core_is_ignored_with_a_warning() {
    for (option, name) in [("tls=1", "tls"), ("max=5", "max"), ("type=1", "type")] {
        let warning = only_warning(option);
        assert!(warning.contains(name), "{warning}");
    }
}

#[test]
fn first_of_a_repeated_option_counts_with_a_warning() {
    let warning = only_warning("read=1m&read=2m");
    assert!(warning.contains("read"), "{warning}");
    let outcome = check(&format!("{CLIENT}&slot=3&slot=5"));
    assert!(outcome.output.contains("slot=3"), "{outcome:?}");
    assert!(!outcome.output.contains("slot=5"), "{outcome:?}");
}

#[test]
fn key_is_shown_nowhere() {
    const WRITTEN: &str = "hush%2Fhush";
    const DECODED: &str = "hush/hush";
    let assert_hidden = |text: &str| {
        assert!(!text.contains(WRITTEN) && !text.contains(DECODED), "{text}");
    };
    let target = TcpServer::echo();
    let url = format!(
        "client://{WRITTEN}@127.0.0.1:0/{}?mode=1&log=debug&slto=1",
        target.address()
    );
    let mut program = Launch::new(&[&url])
        .env("NP_REPORT_INTERVAL", "100ms")
        .start();
    program.wait_for("***@");
    exchange(&dial(program.tcp_address()), b"traffic");
    program.checkpoint();
    program.signal(Signal::TERM);
    program.wait_exit();
    assert_hidden(&program.lines().join("\n"));
    assert_hidden(&program.errors());
    for url in [
        format!("client://{WRITTEN}@127.0.0.1:1080/127.0.0.1:8080?mode=1"),
        format!("client://{WRITTEN}@127.0.0.1:1080/127.0.0.1:8080?mode=9"),
        format!("client://{WRITTEN}@127.0.0.1:1080/127.0.0.1:1080?mode=1"),
        format!("client://{WRITTEN}@127.0.0.1:99999/127.0.0.1:8080?mode=1"),
        format!("client://{WRITTEN}@127.0.0.1/127.0.0.1:8080?mode=1"),
        format!("client://{WRITTEN}@/"),
        format!("client://{WRITTEN}%@127.0.0.1:1080/127.0.0.1:8080"),
        format!("cleint://{WRITTEN}@127.0.0.1:1080/127.0.0.1:8080"),
        format!("{WRITTEN}@127.0.0.1:1080/127.0.0.1:8080"),
    ] {
        for outcome in [
            check(&url),
            Launch::new(&["--check", "-"]).input(&url).run(),
        ] {
            assert_hidden(&outcome.output);
            assert_hidden(&outcome.errors);
        }
    }
}
