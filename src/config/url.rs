//! The URL: `<core>://[<key>@]<tunnel>/<target>[,<target>...][?<option>=<value>&...]`.
//!
//! Read by hand, since a general URL has other rules for the host part. A key may be anything,
//! so every text that might belong to one stays out of errors and notices.

use super::address::{Address, AddressError};
use super::error::{ConfigError, Notice};
use super::options::{Mode, OPTIONS, OptionSpec, Options};
use super::percent::decode_percent;
use super::spelling::nearest;
use super::{API_PREFIX_DEFAULT, Config, Core};
use crate::limits::{Limits, TARGETS_COUNT_MAX, URL_OPTIONS_COUNT_MAX, URL_SIZE_MAX};
use crate::wire::key::TunnelKey;
use crate::wire::shown::shown;

const QUOTED: &str = "the URL begins with a space or a quotation mark; leave both out in files and \
                      variables, only a shell takes quotes off";
const RAW_HASH: &str = "the URL has a raw '#'; write it as %23";
const RAW_CONTROL: &str =
    "the URL has a control character, such as a tab or a line break; write it percent-encoded";
const BAD_KEY_ENCODING: &str =
    "the key has a '%' without two hex digits behind it; write a plain '%' as %25";
const EMPTY_KEY: &str = "the key has nothing before its ':', and what is behind would be ignored; \
                         write ':' as %3A";
const STRAY_AT: &str = "the URL cannot be used, and why is not shown: with an '@' behind the first \
                        '/' or '?' it may hold a piece of a key. In a key write '/' as %2F and \
                        '?' as %3F, elsewhere write '@' as %40";
const NO_TARGET: &str = "the target address is missing; write it behind the tunnel address, \
                         for example server://0.0.0.0:10101/127.0.0.1:8080";
const MANY_BOUND_TARGETS: &str = "a server with mode=1 binds its target address, so it takes one; \
                                  use mode=2 to dial several targets";

/// Reads and checks a whole URL. What the operator should know comes with it, in URL order.
///
/// Errors: the first fault found; it never shows the key.
pub fn parse_url(url: &str, limits: &Limits) -> Result<(Config, Vec<Notice>), ConfigError> {
    let parts = split_url(url)?;
    parse_parts(&parts, limits).map_err(|error| {
        if parts.has_stray_at() {
            ConfigError::Url(STRAY_AT)
        } else {
            error
        }
    })
}

/// A URL cut into its parts, each still as it was written.
pub(super) struct UrlParts<'a> {
    pub(super) core: Core,
    pub(super) key: Option<&'a str>,
    pub(super) tunnel: &'a str,
    pub(super) path: &'a str,
    pub(super) query: &'a str,
}

impl UrlParts<'_> {
    /// An `@` behind the one that ended the key, or without any key: it may be that the key has
    /// raw slashes or question marks and that the parts are pieces of it.
    fn has_stray_at(&self) -> bool {
        self.path.contains('@') || self.query.contains('@')
    }
}

pub(super) fn split_url(url: &str) -> Result<UrlParts<'_>, ConfigError> {
    if url.len() > URL_SIZE_MAX {
        return Err(ConfigError::UrlTooLong { size: url.len() });
    }
    let (core, rest) = split_core(url)?;
    if url.contains('#') {
        return Err(ConfigError::Url(RAW_HASH));
    }
    if url.contains(char::is_control) {
        return Err(ConfigError::Url(RAW_CONTROL));
    }
    let key_end = match core {
        // No key belongs here, and without a path an '@' is more likely one of a file name.
        Core::Master => rest.find(['/', '?']),
        Core::Server | Core::Client => rest.find('/'),
    };
    let (key, rest) = match rest[..key_end.unwrap_or(rest.len())].rfind('@') {
        Some(at) => (Some(&rest[..at]), &rest[at + 1..]),
        None => (None, rest),
    };
    let (addresses, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (tunnel, path) = addresses.split_once('/').unwrap_or((addresses, ""));
    Ok(UrlParts {
        core,
        key,
        tunnel,
        path,
        query,
    })
}

fn split_core(url: &str) -> Result<(Core, &str), ConfigError> {
    if url.starts_with([' ', '\'', '"']) {
        return Err(ConfigError::Url(QUOTED));
    }
    let (scheme, rest) = url.split_once("://").unwrap_or((url, ""));
    let core = Core::ALL
        .into_iter()
        .find(|core| core.name().eq_ignore_ascii_case(scheme));
    match core {
        Some(core) if scheme.len() < url.len() => Ok((core, rest)),
        _ => {
            let nearest = nearest(scheme, Core::ALL.into_iter().map(Core::name));
            Err(ConfigError::Scheme { nearest })
        }
    }
}

fn parse_parts(parts: &UrlParts, limits: &Limits) -> Result<(Config, Vec<Notice>), ConfigError> {
    let mut notices = Vec::new();
    let core = parts.core;
    let key = parse_key(parts, &mut notices)?;
    let role = if core == Core::Master {
        "API"
    } else {
        "tunnel"
    };
    let tunnel = parse_address(role, parts.tunnel)?;
    let (targets, api_prefix) = match core {
        Core::Master => (Vec::new(), parse_api_prefix(parts.path)?),
        Core::Server | Core::Client => (parse_targets(parts.path)?, API_PREFIX_DEFAULT.to_owned()),
    };
    let mut options = parse_options(parts, limits, &mut notices)?;
    notices.extend(options.settle()?);
    let config = Config {
        core,
        key,
        tunnel,
        targets,
        api_prefix,
        options,
    };
    check_addresses(&config)?;
    Ok((config, notices))
}

fn parse_key(
    parts: &UrlParts,
    notices: &mut Vec<Notice>,
) -> Result<Option<TunnelKey>, ConfigError> {
    let Some(text) = parts.key else {
        return Ok(None);
    };
    if parts.core == Core::Master {
        notices.push(Notice::new(
            "a master takes no key in its URL, so it is ignored; \
             the API key is made at first start",
        ));
        return Ok(None);
    }
    let key = match text.split_once(':') {
        Some(("", _)) => return Err(ConfigError::Url(EMPTY_KEY)),
        Some((key, _)) => {
            notices.push(Notice::new(
                "the key has a raw ':', and as in 1.x only what is before it counts; \
                 to make ':' part of the key write %3A",
            ));
            key
        }
        None => text,
    };
    if key.is_empty() {
        notices.push(Notice::new(
            "the key before '@' is empty, so it counts as none",
        ));
        return Ok(None);
    }
    let bytes = decode_percent(key).ok_or(ConfigError::Url(BAD_KEY_ENCODING))?;
    Ok(Some(TunnelKey::new(bytes)))
}

fn parse_address(role: &'static str, text: &str) -> Result<Address, ConfigError> {
    Address::parse(text).map_err(|reason| address_error(role, text, reason))
}

fn address_error(role: &'static str, text: &str, reason: AddressError) -> ConfigError {
    ConfigError::Address {
        role,
        text: shown(text),
        reason,
    }
}

fn parse_targets(path: &str) -> Result<Vec<Address>, ConfigError> {
    if path.is_empty() {
        return Err(ConfigError::Url(NO_TARGET));
    }
    if path.split(',').count() > TARGETS_COUNT_MAX {
        let what = "target addresses";
        return Err(ConfigError::TooMany {
            what,
            count_max: TARGETS_COUNT_MAX,
        });
    }
    path.split(',')
        .map(|text| parse_address("target", text))
        .collect()
}

/// `/` and the path without slashes at its ends; the default when nothing is left.
fn parse_api_prefix(path: &str) -> Result<String, ConfigError> {
    let trimmed = path.trim_matches('/');
    if trimmed.is_empty() {
        return Ok(API_PREFIX_DEFAULT.to_owned());
    }
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte);
    // "." and ".." would be resolved away by clients of the API.
    let usable = |segment: &str| !matches!(segment, "" | "." | "..") && segment.bytes().all(plain);
    if !trimmed.split('/').all(usable) {
        return Err(ConfigError::ApiPrefix { text: shown(path) });
    }
    Ok(format!("/{trimmed}"))
}

/// Reads the query. Unknown, repeated and inapplicable options are noticed once each.
fn parse_options(
    parts: &UrlParts,
    limits: &Limits,
    notices: &mut Vec<Notice>,
) -> Result<Options, ConfigError> {
    let mut options = Options::new(limits);
    let pairs = || parts.query.split('&').filter(|pair| !pair.is_empty());
    if pairs().count() > URL_OPTIONS_COUNT_MAX {
        return Err(ConfigError::TooMany {
            what: "options",
            count_max: URL_OPTIONS_COUNT_MAX,
        });
    }
    let mut seen: Vec<String> = Vec::new();
    for pair in pairs() {
        let (raw_name, value) = pair.split_once('=').unwrap_or((pair, ""));
        if raw_name.contains('@') {
            return Err(ConfigError::Url(STRAY_AT));
        }
        let name = decode_text(raw_name).unwrap_or_default();
        match OptionSpec::find(&name) {
            None => push_once(notices, unknown_notice(&name)),
            Some(spec) if !spec.applies_to(parts.core) => {
                push_once(notices, inapplicable_notice(spec, parts.core));
            }
            Some(spec) if seen.contains(&name) => push_once(notices, repeated_notice(spec)),
            Some(spec) => apply_option(spec, value, &mut options)?,
        }
        seen.push(name);
    }
    Ok(options)
}

fn apply_option(
    spec: &OptionSpec,
    raw_value: &str,
    options: &mut Options,
) -> Result<(), ConfigError> {
    let error = |value: &str, accepted| ConfigError::Option {
        option: spec.name,
        value: shown(value),
        accepted,
    };
    let value = decode_text(raw_value)
        .ok_or_else(|| error(raw_value, "percent-encoded UTF-8, with %25 for a plain '%'"))?;
    // No accepted value has one; a file name with a line break would break log lines.
    if value.contains(char::is_control) {
        return Err(error(&value, spec.values));
    }
    (spec.apply)(options, &value).ok_or_else(|| error(&value, spec.values))
}

/// A name or value of the query; `None` when its encoding is broken.
fn decode_text(raw: &str) -> Option<String> {
    String::from_utf8(decode_percent(&raw.replace('+', " "))?).ok()
}

fn push_once(notices: &mut Vec<Notice>, notice: Notice) {
    if !notices.contains(&notice) {
        notices.push(notice);
    }
}

/// A name with unusual characters is not shown: it may be a piece of a key.
fn unknown_notice(name: &str) -> Notice {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-' || byte == b'_';
    if name.is_empty() || !name.bytes().all(plain) {
        return Notice::new("an option whose name is no word is ignored");
    }
    let hint = match nearest(name, OPTIONS.iter().map(|spec| spec.name)) {
        Some(known) => format!("; did you mean '{known}'?"),
        None => String::new(),
    };
    Notice::new(format!(
        "option '{}' is unknown and ignored{hint}",
        shown(name)
    ))
}

fn repeated_notice(spec: &OptionSpec) -> Notice {
    Notice::new(format!(
        "option '{}' is given more than once; the first counts",
        spec.name
    ))
}

fn inapplicable_notice(spec: &OptionSpec, core: Core) -> Notice {
    let cores: Vec<_> = spec.cores.iter().map(|core| core.name()).collect();
    Notice::new(format!(
        "option '{}' does not apply to a {} and is ignored; it is for: {}",
        spec.name,
        core.name(),
        cores.join(", ")
    ))
}

/// Checks addresses against the core, its mode and each other.
fn check_addresses(config: &Config) -> Result<(), ConfigError> {
    let (tunnel, targets, mode) = (&config.tunnel, &config.targets, config.options.mode);
    if config.core == Core::Server && mode == Mode::One && targets.len() > 1 {
        return Err(ConfigError::Conflict(MANY_BOUND_TARGETS.to_owned()));
    }
    let dials_tunnel = config.core == Core::Client && mode == Mode::Two;
    if dials_tunnel && tunnel.port == 0 {
        return Err(address_error(
            "tunnel",
            &tunnel.to_string(),
            AddressError::ZeroPort,
        ));
    }
    // Where the mode leaves it open whether a lone target is bound or dialled, 0 may be meant.
    let dials_targets = targets.len() > 1
        || matches!(
            (config.core, mode),
            (Core::Server, Mode::Two) | (Core::Client, Mode::One)
        );
    for target in targets {
        if dials_targets && target.port == 0 {
            return Err(address_error(
                "target",
                &target.to_string(),
                AddressError::ZeroPort,
            ));
        }
        if tunnel.feeds(target) {
            let (tunnel, target) = (tunnel.clone(), target.clone());
            return Err(ConfigError::SelfFeeding { tunnel, target });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::duration::parse_duration;
    use super::super::{Block, LogLevel, TlsMode, Transport};
    use super::*;

    fn parse(url: &str) -> Result<(Config, Vec<Notice>), ConfigError> {
        parse_url(url, &Limits::default())
    }

    /// The configuration of a URL that gives no notice.
    fn config(url: &str) -> Config {
        let (config, notices) = parse(url).unwrap();
        assert_eq!(notices, [], "{url}");
        config
    }

    fn error(url: &str) -> String {
        parse(url).unwrap_err().to_string()
    }

    fn notices(url: &str) -> Vec<String> {
        parse(url)
            .unwrap()
            .1
            .iter()
            .map(Notice::to_string)
            .collect()
    }

    /// The key of a tunnel URL that begins with `server://` and this.
    fn key(text: &str) -> Option<Vec<u8>> {
        let (config, _) = parse(&format!("server://{text}:1/:2")).unwrap();
        config.key.map(|key| key.as_bytes().to_vec())
    }

    #[test]
    fn each_core_is_read() {
        let server = config("server://secret@0.0.0.0:10101/127.0.0.1:8080?tls=1&log=warn");
        assert_eq!(server.core, Core::Server);
        assert_eq!(server.key, Some(TunnelKey::new(b"secret".to_vec())));
        assert_eq!(server.tunnel.to_string(), "0.0.0.0:10101");
        assert_eq!(server.targets, [Address::parse("127.0.0.1:8080").unwrap()]);
        assert_eq!(
            (server.options.tls, server.options.log),
            (TlsMode::SelfSigned, LogLevel::Warn)
        );

        let client = config("CLIENT://[2001:db8::1]:10101/a.example:1,:2,[::1]:3");
        assert_eq!((client.core, client.key), (Core::Client, None));
        assert_eq!(client.targets.len(), 3);

        let master = config("master://:9090/admin/np/?tls=1");
        assert_eq!(
            (master.core, master.api_prefix.as_str()),
            (Core::Master, "/admin/np")
        );
        assert_eq!(master.targets, []);
        for url in [
            "master://:9090",
            "master://:9090/",
            "master://:9090?log=info",
        ] {
            assert_eq!(config(url).api_prefix, "/api", "{url}");
        }
    }

    #[test]
    fn defaults_come_from_the_limits() {
        let limits = Limits {
            pool_min_default: 3,
            pool_max_default: 5,
            ..Limits::default()
        };
        let (client, _) = parse_url("client://a:1/:2", &limits).unwrap();
        assert_eq!(client.options.pool_min, 3);
        let (server, _) = parse_url("server://:1/:2", &limits).unwrap();
        assert_eq!(server.options.pool_max, 5);
    }

    #[test]
    fn printed_url_has_every_default() {
        assert_eq!(
            config("client://127.0.0.1:19001/127.0.0.1:19080").to_url(),
            "client://127.0.0.1:19001/127.0.0.1:19080?auth=0&block=0&dial=auto&dns=5m0s&lbs=0\
             &log=info&min=64&mode=0&notcp=0&noudp=0&proxy=0&rate=0&read=0s&slot=65536&sni=none"
        );
        assert_eq!(
            config("server://s%40@:1/:2,:3?crt=/a%26b&key=k&tls=2&block=21&read=90s").to_url(),
            "server://***@:1/:2,:3?auth=0&block=12&crt=/a%26b&dial=auto&dns=5m0s&key=k&lbs=0\
             &log=info&max=1024&mode=0&notcp=0&noudp=0&proxy=0&rate=0&read=1m30s&slot=65536\
             &tls=2&type=0"
        );
        let master = config("master://127.0.0.1:9090").to_url();
        assert_eq!(master, "master://127.0.0.1:9090/api?log=info&tls=0");
    }

    #[test]
    fn printed_url_means_the_same() {
        for url in [
            "client://a.example:1/:2,[::1]:3?dns=2us&sni=b.example&dial=::1&lbs=2&min=1",
            "server://:1/:2?dns=[::1]:54,1.1.1.1&type=2&crt=a%20b%25%40&notcp=1&rate=5&slot=0",
            "master://[::1]:1/a/b?tls=2&crt=/c&key=/k&log=none",
        ] {
            let once = config(url);
            let again = config(&once.to_url());
            assert_eq!(once, again);
            assert_eq!(once.to_url(), again.to_url());
        }
    }

    #[test]
    fn key_is_percent_decoded_up_to_the_last_at() {
        assert_eq!(key(""), None);
        assert_eq!(key("secret@"), Some(b"secret".to_vec()));
        assert_eq!(key("a@b@"), Some(b"a@b".to_vec()));
        assert_eq!(key("a%40%2F%3A%23%3fb+@"), Some(b"a@/:#?b+".to_vec()));
        assert_eq!(key("%00%ff@"), Some(vec![0, 0xff]));
        assert_eq!(key("what?&=@"), Some(b"what?&=".to_vec()));
        assert_eq!(key("schlüssel@"), Some("schlüssel".as_bytes().to_vec()));
    }

    #[test]
    fn key_with_a_colon_ends_there_with_a_notice() {
        assert_eq!(key("user:pass@"), Some(b"user".to_vec()));
        let notices = notices("server://user:pass@:1/:2");
        assert_eq!(notices.len(), 1);
        assert!(
            notices[0].contains("%3A") && !notices[0].contains("pass"),
            "{notices:?}"
        );
        assert!(error("server://:pass@:1/:2").contains("%3A"));
    }

    #[test]
    fn odd_keys_are_told() {
        assert!(notices("server://@:1/:2")[0].contains("empty"));
        assert!(notices("master://secret@:1")[0].contains("takes no key"));
        assert!(error("server://100%@:1/:2").contains("%25"));
        assert!(error("server://a#b@:1/:2").contains("%23"));
        assert!(error("server://a\tb@:1/:2").contains("control character"));
    }

    #[test]
    fn key_is_never_shown() {
        let secret = "topsecret";
        for start in ["server", "client", "master", "severs", "http", ""] {
            for key in [
                "topsecret",
                "x:topsecret",
                "topsecret:x",
                "%topsecret",
                "#topsecret",
                "topsecret/",
                "/topsecret",
                "?topsecret",
                "topsecret?tls=",
                "?topsecret=1&",
                "?tls=topsecret&x",
                "?log=topsecret",
                "x/topsecret?y",
                "x@y/topsecret",
                "x@y?topsecret=",
                ":1/:2?topsecret",
                "topsecret,/a?",
                "\ntopsecret",
                "://topsecret",
            ] {
                for rest in [
                    ":1/:2",
                    "h:99999/:2",
                    ":1/",
                    ":1/:1",
                    ":1/:2?tls=x",
                    ":1/:2?zz=1",
                ] {
                    for url in [
                        format!("{start}://{key}@{rest}"),
                        format!("{key}@{rest}"),
                        format!("{start}:{key}@{rest}"),
                    ] {
                        let text = match parse(&url) {
                            Ok((config, notices)) => {
                                format!("{config:?} {} {notices:?}", config.to_url())
                            }
                            Err(error) => format!("{error} {error:?}"),
                        };
                        assert!(!text.contains(secret), "{url} -> {text}");
                    }
                }
            }
        }
    }

    #[test]
    fn an_at_behind_the_addresses_is_only_fit_for_values() {
        let file = config("server://:1/:2?crt=/a@b").options.certificate_file;
        assert_eq!(file, Some("/a@b".into()));
        for url in [
            "server://:1/a@b:2",
            "server://:1/:2?a@b=c",
            "server://:1/:2?sni=a@b&tls=x",
        ] {
            assert_eq!(parse(url), Err(ConfigError::Url(STRAY_AT)), "{url}");
        }
    }

    #[test]
    fn scheme_errors_name_the_cores() {
        for url in [
            "",
            "server",
            "server:/x",
            "http://a:1/:2",
            "key@:1/:2",
            "://:1/:2",
        ] {
            let error = error(url);
            assert!(
                error.starts_with("the URL must begin with server://, client:// or "),
                "{error}"
            );
            assert!(error.contains(", for example server://key@0.0.0.0:10101/127.0.0.1:8080"));
        }
        for url in [" server://:1/:2", "'server://:1/:2'", "\"server://:1/:2\""] {
            assert!(error(url).starts_with("the URL begins with a space or a quotation mark; "));
        }
        assert!(error("sever://:1/:2").contains("did you mean server://?"));
    }

    #[test]
    fn length_is_bounded() {
        let start = "server://:1/:2?crt=";
        let url = |size: usize| format!("{start}{}", "x".repeat(size - start.len()));
        assert!(parse(&url(URL_SIZE_MAX)).is_ok());
        let size = URL_SIZE_MAX + 1;
        assert_eq!(parse(&url(size)), Err(ConfigError::UrlTooLong { size }));
    }

    #[test]
    fn address_faults_say_which_and_why() {
        for (url, text) in [
            ("server://host/:2", "tunnel address 'host' has no port; "),
            ("server:///:2", "tunnel address '' is empty; "),
            (
                "server://:1/:99999",
                "target address ':99999' has a port that is not a number",
            ),
            ("server://:1/:2,,:3", "target address '' is empty; "),
            (
                "server://:1/a:2/b",
                "target address 'a:2/b' has something behind its port; ",
            ),
            (
                "client://::1:1/:2",
                "tunnel address '::1:1' has more than one colon; ",
            ),
            ("master://9090", "API address '9090' has no port; "),
            ("master://", "API address '' is empty; "),
            ("master://:1/a b", "API prefix 'a b' cannot be used; "),
            ("master://:1/a//b", "API prefix 'a//b' cannot be used; "),
            ("master://:1/../b", "API prefix '../b' cannot be used; "),
            ("server://:1", "the target address is missing; "),
            ("client://:1/?log=info", "the target address is missing; "),
            (
                "server://:1/:0?mode=2",
                "target address ':0' has port 0, which cannot be dialled",
            ),
            ("client://:1/:0?mode=1", "target address ':0' has port 0"),
            ("client://:1/:2,:0", "target address ':0' has port 0"),
            ("client://a:0/:2?mode=2", "tunnel address 'a:0' has port 0"),
        ] {
            assert!(error(url).starts_with(text), "{url}: {}", error(url));
        }
        for url in [
            "server://:0/:0",
            "server://:0/:0?mode=1",
            "client://:0/:1?mode=1",
        ] {
            config(url);
        }
    }

    #[test]
    fn several_targets_need_a_core_that_dials() {
        for mode in 0..=2 {
            assert_eq!(
                config(&format!("client://a:1/:2,:3?mode={mode}"))
                    .targets
                    .len(),
                2
            );
        }
        assert_eq!(config("server://:1/:2,:3?mode=2").targets.len(), 2);
        assert_eq!(config("server://:1/:2,:3").targets.len(), 2);
        assert!(error("server://:1/:2,:3?mode=1").contains("mode=2"));
        let targets = |count: usize| vec![":2"; count].join(",");
        config(&format!("client://a:1/{}", targets(TARGETS_COUNT_MAX)));
        let text = error(&format!("client://a:1/{}", targets(TARGETS_COUNT_MAX + 1)));
        assert!(text.contains("more than 64 target addresses"), "{text}");
    }

    #[test]
    fn self_feeding_names_both_addresses() {
        let text = error("client://:80/a.example:1,localhost:80");
        assert!(
            text.contains("':80'") && text.contains("'localhost:80'"),
            "{text}"
        );
        config("client://:80/a.example:80");
    }

    #[test]
    fn bad_values_name_the_option_and_what_is_accepted() {
        let url = |pair: &str| format!("server://:1/:2?{pair}");
        assert_eq!(
            error(&url("tls=yes")),
            "option 'tls' has value 'yes'; use 0 (plain), 1 (self-signed) or 2 (certificate files)"
        );
        assert!(error(&url("tls")).starts_with("option 'tls' has value ''; use 0"));
        assert!(error(&url("log=%1b%0a")).contains("value '\\u{1b}\\n'; use none"));
        assert!(
            error(&url("crt=a%00b")).starts_with("option 'crt' has value 'a\\0b'; use the path")
        );
        assert!(error(&url("crt=%ff")).contains("value '%ff'; use percent-encoded"));
        assert!(error(&url("crt=100%")).contains("use percent-encoded"));
        let text = error(&url(&format!("dial={}", "x".repeat(1000))));
        assert!(text.len() < 200 && text.contains("xxx...'"), "{text}");
        let names = OPTIONS.iter().filter(|spec| !spec.values.contains("path"));
        for spec in names {
            let text = error(&format!(
                "{}://:1/:2?{}=%3F",
                spec.cores[0].name(),
                spec.name
            ));
            let start = format!("option '{}' has value '?'; use {}", spec.name, spec.values);
            assert_eq!(text, start);
        }
    }

    #[test]
    fn query_is_decoded() {
        let options = config("server://:1/:2?&&crt=a+b%2Bc%3d&bl%6Fck=1&&read=1%6d&").options;
        assert_eq!(options.certificate_file, Some("a b+c=".into()));
        assert_eq!(
            options.block,
            Block {
                socks: true,
                ..Block::default()
            }
        );
        assert_eq!(options.read_timeout, Some(parse_duration("1m").unwrap()));
        assert_eq!(
            config("server://:1/:2?").options,
            config("server://:1/:2").options
        );
        assert_eq!(
            config("server://:1/:2?crt=a=b?c").options.certificate_file,
            Some("a=b?c".into())
        );
    }

    #[test]
    fn options_that_do_nothing_are_told_once() {
        let url = "client://a:1/:2?tsl=1&tls=bad&foo=bar&log=warn&log=bad&log=info&tls=2&foo=1";
        assert_eq!(
            notices(url),
            [
                "option 'tsl' is unknown and ignored; did you mean 'tls'?",
                "option 'tls' does not apply to a client and is ignored; it is for: server, master",
                "option 'foo' is unknown and ignored",
                "option 'log' is given more than once; the first counts",
            ]
        );
        assert_eq!(parse(url).unwrap().0.options.log, LogLevel::Warn);
        assert_eq!(notices("server://:1/:2?=1&%ff=2&a%20b=3").len(), 1);
    }

    #[test]
    fn number_of_options_is_bounded() {
        let url = |count: usize| format!("server://:1/:2?{}", "a&".repeat(count));
        assert!(parse(&url(URL_OPTIONS_COUNT_MAX)).is_ok());
        assert!(error(&url(URL_OPTIONS_COUNT_MAX + 1)).contains("more than 64 options"));
    }

    #[test]
    fn options_that_contradict_are_refused_or_mended() {
        assert!(error("server://:1/:2?notcp=1&noudp=1").contains("'notcp' and 'noudp'"));
        for files in ["", "&crt=/c", "&key=/k", "&crt=&key="] {
            for core in ["server://:1/:2", "master://:1"] {
                let error = error(&format!("{core}?tls=2{files}"));
                assert!(error.contains("add crt=FILE and key=FILE"), "{error}");
            }
        }
        for (number, transport) in [(1, Transport::Quic), (3, Transport::Http2)] {
            let url = format!("server://:1/:2?type={number}");
            let (config, notices) = parse(&url).unwrap();
            assert_eq!(
                (config.options.transport, config.options.tls),
                (transport, TlsMode::SelfSigned)
            );
            let text =
                format!("option 'type' has value '{number}', which needs TLS: running with tls=1");
            assert_eq!(notices, [Notice::new(text)]);
            assert_eq!(parse(&format!("{url}&tls=1")).unwrap().1, []);
        }
        assert_eq!(config("server://:1/:2?type=2").options.tls, TlsMode::Plain);
    }
}
