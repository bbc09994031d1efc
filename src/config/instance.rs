//! The URL of an instance, with what its master adds.
//!
//! Source: `master-api.md`, "Instance".

use std::fmt;

use super::error::ConfigError;
use super::options::{LogLevel, OptionSpec, Options};
use super::url::{UrlParts, parse_url, split_url};
use super::{Core, join_sorted};
use crate::limits::Limits;

/// Options that an instance of a server takes from its master when its URL leaves them out; other
/// instances only the first.
const INHERITED: [&str; 4] = ["log", "tls", "crt", "key"];

/// An instance's URL that can be run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct InstanceUrl {
    /// Server or client.
    pub core: Core,
    /// What was given and what the master adds, options sorted by name.
    pub url: String,
    /// The same with every default filled in.
    pub config: String,
}

/// Why a URL cannot be one of an instance.
#[derive(Debug)]
pub enum InstanceUrlError {
    /// It is for neither a server nor a client.
    Scheme,
    /// It cannot be used, for this reason.
    Unusable(ConfigError),
}

impl fmt::Display for InstanceUrlError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Scheme => f.write_str("Invalid URL scheme"),
            Self::Unusable(error) => write!(f, "Invalid URL format: {error}"),
        }
    }
}

/// Completes the URL of an instance of a master that has these options.
///
/// Both texts have the key as it was given.
///
/// Errors: it could not be run, or is longer than a URL may be once completed.
pub fn complete(
    given: &str,
    master: &Options,
    limits: &Limits,
) -> Result<InstanceUrl, InstanceUrlError> {
    let parts = split_url(given).map_err(|error| match error {
        ConfigError::Scheme { .. } => InstanceUrlError::Scheme,
        other => InstanceUrlError::Unusable(other),
    })?;
    let inherited = match parts.core {
        Core::Server => &INHERITED[..],
        Core::Client => &INHERITED[..1],
        Core::Master => return Err(InstanceUrlError::Scheme),
    };
    let mut pairs: Vec<(&str, String)> = parts
        .query
        .split('&')
        .filter(|pair| !pair.is_empty())
        .map(|pair| pair.split_once('=').unwrap_or((pair, "")))
        .map(|(name, value)| (name, value.to_owned()))
        .collect();
    for name in inherited {
        if pairs.iter().all(|(given, _)| given != name) {
            let value = OptionSpec::find(name).and_then(|spec| spec.show_encoded(master));
            pairs.extend(value.map(|value| (*name, value)));
        }
    }
    let others = pairs.iter().filter(|(name, _)| {
        !OptionSpec::find(name).is_some_and(|spec| spec.applies_to(parts.core))
    });
    let others = others.cloned().collect();
    let url = write_url(&parts, &join_sorted(pairs.clone()));
    let (config, _) = parse_url(&url, limits).map_err(InstanceUrlError::Unusable)?;
    // What runs may be longer by a byte.
    let (run, _) = with_checkpoints(&url, limits);
    split_url(&run).map_err(InstanceUrlError::Unusable)?;
    Ok(InstanceUrl {
        core: parts.core,
        config: config.to_url_with(parts.key, others),
        url,
    })
}

/// Returns the URL that runs an instance so that its master sees its checkpoints, and whether its
/// other lines are to be kept back: with `log=none` it would write neither.
pub fn with_checkpoints(url: &str, limits: &Limits) -> (String, bool) {
    let is_silent =
        parse_url(url, limits).is_ok_and(|(config, _)| config.options.log == LogLevel::None);
    if !is_silent {
        return (url.to_owned(), false);
    }
    let Ok(parts) = split_url(url) else {
        return (url.to_owned(), false);
    };
    // In place of what was there: there may be no room for one more.
    let others = parts.query.split('&').filter(|pair| !is_log(pair));
    let pairs: Vec<&str> = std::iter::once("log=event").chain(others).collect();
    (write_url(&parts, &pairs.join("&")), true)
}

/// Returns whether this part of a query sets the level of the log.
fn is_log(pair: &str) -> bool {
    pair.split_once('=').unwrap_or((pair, "")).0 == "log"
}

/// Writes a URL again, with another query.
fn write_url(parts: &UrlParts<'_>, query: &str) -> String {
    let key = parts.key.map(|key| format!("{key}@")).unwrap_or_default();
    format!(
        "{}://{key}{}/{}?{query}",
        parts.core.name(),
        parts.tunnel,
        parts.path,
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::limits::{URL_OPTIONS_COUNT_MAX, URL_SIZE_MAX};

    fn master(url: &str) -> Options {
        parse_url(url, &Limits::default()).unwrap().0.options
    }

    fn completed(given: &str, master_url: &str) -> InstanceUrl {
        complete(given, &master(master_url), &Limits::default()).unwrap()
    }

    fn error(given: &str) -> String {
        complete(given, &master("master://:1"), &Limits::default())
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn url_and_config_are_those_of_1_14_and_newer_options() {
        let server = completed(
            "server://127.0.0.1:19001/127.0.0.1:19081?mode=1&tls=0",
            "master://:1",
        );
        assert_eq!(
            server.url,
            "server://127.0.0.1:19001/127.0.0.1:19081?log=info&mode=1&tls=0"
        );
        assert_eq!(
            server.config,
            "server://127.0.0.1:19001/127.0.0.1:19081?auth=0&block=0&dial=auto&dns=5m0s&lbs=0\
             &log=info&max=1024&mode=1&notcp=0&noudp=0&proxy=0&rate=0&read=0s&slot=65536&tls=0\
             &type=0"
        );
        let client = completed(
            "client://pass%40word@127.0.0.1:19090/127.0.0.1:19080?mode=1&log=debug&foo=bar",
            "master://:1?tls=1",
        );
        assert_eq!(
            client.url,
            "client://pass%40word@127.0.0.1:19090/127.0.0.1:19080?foo=bar&log=debug&mode=1"
        );
        assert_eq!(
            client.config,
            "client://pass%40word@127.0.0.1:19090/127.0.0.1:19080?auth=0&block=0&dial=auto\
             &dns=5m0s&foo=bar&lbs=0&log=debug&min=64&mode=1&notcp=0&noudp=0&proxy=0&rate=0\
             &read=0s&slot=65536&sni=none"
        );
    }

    #[test]
    fn a_server_takes_the_certificate_of_its_master() {
        let options = "log=warn&tls=2&crt=/a%20b.pem&key=/k.pem";
        let server = completed("server://:2/:3?type=2", &format!("master://:1?{options}"));
        assert_eq!(
            server.url,
            "server://:2/:3?crt=/a%20b.pem&key=/k.pem&log=warn&tls=2&type=2"
        );
        let own = completed("server://:2/:3?tls=0", &format!("master://:1?{options}"));
        assert!(own.url.ends_with("log=warn&tls=0"), "{}", own.url);
        let client = completed("client://:2/:3", &format!("master://:1?{options}"));
        assert_eq!(client.url, "client://:2/:3?log=warn");
    }

    #[test]
    fn what_cannot_run_is_refused_with_the_reason() {
        for url in ["http://x/y", "master://:1", "", "x"] {
            assert_eq!(error(url), "Invalid URL scheme", "{url}");
        }
        for url in [
            "server://[::1/x:1",
            "client://127.0.0.1:1",
            "client://:1/:2?min=0",
        ] {
            assert!(error(url).starts_with("Invalid URL format: "), "{url}");
        }
        assert!(error("client://:1/:2?min=0").contains("'min'"));
    }

    #[test]
    fn a_silent_instance_still_writes_checkpoints() {
        let limits = Limits::default();
        let url = completed("client://:1/:2?log=none", "master://:1").url;
        let (run, is_silent) = with_checkpoints(&url, &limits);
        assert!(is_silent);
        let (config, _) = parse_url(&run, &limits).unwrap();
        assert_eq!(config.options.log, LogLevel::Event);
        let most: String = (1..URL_OPTIONS_COUNT_MAX)
            .map(|n| format!("&x{n}="))
            .collect();
        let url = completed(&format!("client://:1/:2?log=none{most}"), "master://:1").url;
        assert!(parse_url(&with_checkpoints(&url, &limits).0, &limits).is_ok());
        let sized = |size: usize| {
            let rest = "client://:1/:2?log=none&x=";
            format!("{rest}{}", "y".repeat(size - rest.len()))
        };
        let options = master("master://:1");
        assert!(complete(&sized(URL_SIZE_MAX - 1), &options, &limits).is_ok());
        assert!(complete(&sized(URL_SIZE_MAX), &options, &limits).is_err());
        let url = completed("client://:1/:2", "master://:1").url;
        assert_eq!(with_checkpoints(&url, &limits), (url.clone(), false));
    }
}
