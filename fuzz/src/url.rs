//! The URL, and what a master makes of it.

use nodepass::config::duration::{format_duration, parse_duration};
use nodepass::config::instance::{InstanceUrlError, complete};
use nodepass::config::options::Options;
use nodepass::config::{Address, Config, ConfigError, Notice, parse_url};
use nodepass::limits::{Limits, TARGETS_COUNT_MAX, URL_OPTIONS_COUNT_MAX, URL_SIZE_MAX};
use nodepass::wire::key::TunnelKey;

use super::{take_byte, with_byte};

const SECRET: &str = "s3cr3tc4n4ry";

/// A URL that is taken is the same once it is written; a key, or what may be one, is never shown.
pub fn run(mut input: &[u8]) -> bool {
    let how = take_byte(&mut input);
    let Ok(text) = str::from_utf8(input) else {
        return false;
    };
    let limits = Limits::default();
    if text.contains('@') {
        let core = ["server", "client", "master"][usize::from(how % 3)];
        check_secret(&format!("{core}://{SECRET}{text}"), &limits);
    }
    let is_notation = check_notations(text);
    check_completed(text, &limits);
    let Ok((config, notices)) = parse_url(text, &limits) else {
        return is_notation;
    };
    assert!(text.len() <= URL_SIZE_MAX);
    assert!(config.targets.len() <= TARGETS_COUNT_MAX);
    assert!(notices.iter().all(|notice| notice.text.len() < 1024));
    let written = config.to_url();
    // With every default it may be longer than one may be.
    if written.len() <= URL_SIZE_MAX {
        let (again, notices) = parse_url(&written, &limits).expect("it was read before");
        assert_eq!((&notices[..], again.to_url()), (&[][..], written));
        let key = config.key.as_ref().map(|_| TunnelKey::new(b"***".to_vec()));
        assert_eq!(again, Config { key, ..config });
    }
    true
}

/// Checks that an address or a duration is the same once it is written.
fn check_notations(text: &str) -> bool {
    let (address, duration) = (Address::parse(text), parse_duration(text));
    if let Ok(address) = &address {
        assert_eq!(Address::parse(&address.to_string()).as_ref(), Ok(address));
    }
    if let Ok(duration) = duration {
        assert_eq!(parse_duration(&format_duration(duration)), Ok(duration));
    }
    address.is_ok() || duration.is_ok()
}

/// Checks that a URL that begins with a key, or with what may be a piece of one, shows it nowhere.
fn check_secret(url: &str, limits: &Limits) {
    let shown = match parse_url(url, limits) {
        // It was the beginning of a host, and there is no key.
        Ok((config, _)) if config.tunnel.to_string().starts_with(SECRET) => return,
        Ok((config, notices)) => {
            let notices: Vec<&str> = notices.iter().map(|Notice { text }| &**text).collect();
            format!("{} {config:?} {}", config.to_url(), notices.join(" "))
        }
        Err(error) => format!("{error} {error:?}"),
    };
    assert!(!shown.contains(SECRET), "{shown}");
}

/// Checks that what a master makes of a URL can be run, and stays as it is.
fn check_completed(url: &str, limits: &Limits) {
    let master = Options::new(limits);
    match complete(url, &master, limits) {
        Ok(completed) => {
            let again = complete(&completed.url, &master, limits).expect("it was completed before");
            assert_eq!(again, completed);
            let (config, _) = parse_url(&completed.url, limits).expect("it can be run");
            assert_eq!(config.core, completed.core);
            // With every default it may be longer, and have more options, than one may that is run.
            let pairs_count = completed.config.split('&').count();
            if completed.config.len() <= URL_SIZE_MAX && pairs_count <= URL_OPTIONS_COUNT_MAX {
                let (filled, _) = parse_url(&completed.config, limits).expect("it can be run");
                assert_eq!(filled, config);
            }
        }
        Err(InstanceUrlError::Scheme) => {}
        Err(InstanceUrlError::Unusable(error)) => {
            assert!(error.to_string().len() < 2048);
            assert!(!matches!(error, ConfigError::Variable { .. }));
        }
    }
}

pub fn seeds() -> Vec<Vec<u8>> {
    [
        "server://key@0.0.0.0:10101/127.0.0.1:8080?log=debug&tls=1&max=8&type=2",
        "client://p%40ss:w0rd@example.com:10101/:80,[2001:db8::1]:81,b.example.:82?lbs=2&min=3",
        "client://[::]:1/127.0.0.2:2?mode=1&dns=1.1.1.1,[2606::1]:54&read=1h2m&rate=9&slot=0",
        "master://127.0.0.1:9090/a/b?tls=2&crt=%2Fa%20b&key=/c+d&log=none",
        "SERVER://@:0/a:1?type=3&proxy=2&block=12&notcp=1&auth=1&dial=::1&sni=x&x=y&log=warn&log=",
        "2h45m1.5s300ms7us9\u{b5}s0.000000000000000000001h",
        "[::ffff:1.2.3.4]:080",
        "client://a:1/b:2?dns=0.5s&read=1.5µs&sni=none&noudp=1&mode=2&dns=2",
    ]
    .iter()
    .zip(0..)
    .map(|(url, how)| with_byte(how, url.as_bytes()))
    .collect()
}
