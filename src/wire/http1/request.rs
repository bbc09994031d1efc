//! Heads of requests: read within bounds, checked, and written anew for the server behind.
//!
//! What two programs could read differently is refused: whoever checks a request and whoever
//! answers it must see the same one.

use httparse::{EMPTY_HEADER, Header, Status};

use super::{FIELDS_OF_CONNECTION, items};
use crate::limits::{API_BODY_SIZE_MAX, API_FIELDS_MAX, API_HEAD_SIZE_MAX};

/// Why a request is not let through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Status of the answer.
    pub status: u16,
    /// What the client may read of it.
    pub why: &'static str,
}

/// A request head that is well-formed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RequestHead {
    /// First line and fields as the server behind gets them, without those of the body.
    lines: String,
    /// Which of the two versions it is.
    pub version: Version,
    /// What follows.
    pub body: BodyLength,
    /// The client wants to go on with this connection after the answer.
    pub stays_open: bool,
    /// The client waits to be told that he may send the body.
    pub expects_continue: bool,
    /// The answer has no body.
    pub is_head: bool,
}

/// A version of HTTP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Version {
    /// 1.0, which knows no chunks.
    Http10,
    /// 1.1.
    Http11,
}

/// How much follows a request head.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyLength {
    /// Nothing was said of a body.
    Nothing,
    /// So many bytes, at most `API_BODY_SIZE_MAX`.
    Exactly(usize),
    /// Chunks.
    Chunked,
}

const fn malformed(why: &'static str) -> Refusal {
    Refusal { status: 400, why }
}

/// The field by which the server behind gets the number of a call. What clients say there is left
/// out.
pub const CALL_FIELD: &str = "Nodepass-Call";

/// The head has no end within its bounds.
pub const HEAD_TOO_LARGE: Refusal = Refusal {
    status: 431,
    why: "Request head too large",
};

/// The body is larger than it may be.
pub const BODY_TOO_LARGE: Refusal = Refusal {
    status: 413,
    why: "Request body too large",
};

/// The body says that it is in chunks and is not.
pub const BAD_CHUNKS: Refusal = malformed("Malformed chunked body");

/// The client has ended before the request.
pub const CUT_SHORT: Refusal = malformed("Incomplete request");

/// The request took too long to come.
pub const TOO_SLOW: Refusal = Refusal {
    status: 408,
    why: "Request took too long",
};

impl RequestHead {
    /// Reads a head from the front of `input`; returns with it its size. `None` while it is
    /// incomplete.
    pub fn parse(input: &[u8]) -> Result<Option<(Self, usize)>, Refusal> {
        let bounded = &input[..input.len().min(API_HEAD_SIZE_MAX)];
        let mut fields = [EMPTY_HEADER; API_FIELDS_MAX];
        let mut request = httparse::Request::new(&mut fields);
        let size = match request.parse(bounded) {
            Ok(Status::Complete(size)) => size,
            Ok(Status::Partial) if bounded.len() == API_HEAD_SIZE_MAX => {
                return Err(HEAD_TOO_LARGE);
            }
            Ok(Status::Partial) => return Ok(None),
            Err(error) => return Err(refusal_of(error, bounded)),
        };
        let (Some(method), Some(target), Some(version)) =
            (request.method, request.path, request.version)
        else {
            return Err(malformed("Malformed request line"));
        };
        let version = if version == 0 {
            Version::Http10
        } else {
            Version::Http11
        };
        let fields = Fields(request.headers);
        fields.check_host(version)?;
        let body = fields.body_length(version)?;
        let head = Self {
            lines: fields.lines(method, &path_of(method, target)?),
            version,
            body,
            stays_open: fields.keeps_open(version),
            expects_continue: fields.expects_continue(version)? && body != BodyLength::Nothing,
            is_head: method == "HEAD",
        };
        Ok(Some((head, size)))
    }

    /// Returns the head for the server behind, whose connection carries only this request, the
    /// `call` of that number; `body_size` bytes will follow.
    pub fn encode(&self, call: u64, body_size: usize) -> String {
        let mut head = self.lines.clone();
        head += &format!("{CALL_FIELD}: {call}\r\n");
        if self.body != BodyLength::Nothing {
            head += &format!("Content-Length: {body_size}\r\n");
        }
        head + "Connection: close\r\n\r\n"
    }
}

/// Returns what is wrong with a head that cannot be parsed.
fn refusal_of(error: httparse::Error, head: &[u8]) -> Refusal {
    match error {
        httparse::Error::TooManyHeaders => HEAD_TOO_LARGE,
        httparse::Error::Version if names_other_version(head) => Refusal {
            status: 505,
            why: "HTTP version not supported",
        },
        httparse::Error::Version => malformed("Malformed request line"),
        httparse::Error::HeaderName
        | httparse::Error::HeaderValue
        | httparse::Error::NewLine
        | httparse::Error::Token
        | httparse::Error::Status => malformed("Malformed request head"),
    }
}

/// Returns whether the first line of a head is a request of another version.
fn names_other_version(head: &[u8]) -> bool {
    let mut lines = head.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    let line = lines.find(|line| !line.is_empty()).unwrap_or_default();
    let words: Vec<_> = line.split(|byte| *byte == b' ').collect();
    let [_, _, version] = words[..] else {
        return false;
    };
    match version.strip_prefix(b"HTTP/") {
        Some([major, rest @ ..]) => major.is_ascii_digit() && matches!(rest, [] | [b'.', _]),
        _ => false,
    }
}

/// Returns the path and query of a target.
fn path_of<'t>(method: &str, target: &'t str) -> Result<PathOf<'t>, Refusal> {
    const MALFORMED: Refusal = malformed("Malformed request target");
    if !target.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err(MALFORMED);
    }
    let whole = PathOf {
        slash: "",
        rest: target,
    };
    // Whether the method is known is for others to say.
    if target.starts_with('/') || method == "CONNECT" || (method == "OPTIONS" && target == "*") {
        return Ok(whole);
    }
    let Some((scheme, rest)) = target.split_once("://") else {
        return Err(MALFORMED);
    };
    if !["http", "https"]
        .iter()
        .any(|known| scheme.eq_ignore_ascii_case(known))
    {
        return Err(MALFORMED);
    }
    let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
    let (authority, rest) = rest.split_at(end);
    if authority.is_empty() {
        return Err(MALFORMED);
    }
    let slash = if rest.starts_with('/') { "" } else { "/" };
    Ok(PathOf { slash, rest })
}

/// A path and query.
struct PathOf<'t> {
    /// A slash, where the target left it out.
    slash: &'static str,
    rest: &'t str,
}

/// The fields of a request.
struct Fields<'h, 'b>(&'h [Header<'b>]);

impl<'b> Fields<'_, 'b> {
    fn all(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        let named = self
            .0
            .iter()
            .filter(move |field| field.name.eq_ignore_ascii_case(name));
        named.map(|field| field.value.trim_ascii())
    }

    fn lists(&self, name: &str, word: &str) -> bool {
        self.all(name)
            .flat_map(items)
            .any(|item| item.eq_ignore_ascii_case(word.as_bytes()))
    }

    /// RFC 9112 section 3.2: "A server MUST respond with a 400 to any HTTP/1.1 request message that
    /// lacks a Host header field and to any request message that contains more than one".
    fn check_host(&self, version: Version) -> Result<(), Refusal> {
        let mut hosts = self.all("Host");
        let host = hosts.next();
        let is_plain = |byte: &u8| byte.is_ascii_graphic() && !b"/?#@\\,".contains(byte);
        match (host, hosts.next()) {
            (None, _) if version == Version::Http11 => Err(malformed("Host header required")),
            (_, Some(_)) => Err(malformed("More than one Host header")),
            (Some(host), None) if !host.iter().all(is_plain) => {
                Err(malformed("Malformed Host header"))
            }
            _ => Ok(()),
        }
    }

    fn body_length(&self, version: Version) -> Result<BodyLength, Refusal> {
        let mut codings = self.all("Transfer-Encoding");
        let size = self.content_length()?;
        let Some(coding) = codings.next() else {
            return Ok(size.map_or(BodyLength::Nothing, BodyLength::Exactly));
        };
        if size.is_some() || version == Version::Http10 {
            return Err(malformed("Transfer-Encoding does not belong here"));
        }
        if !coding.eq_ignore_ascii_case(b"chunked") || codings.next().is_some() {
            return Err(Refusal {
                status: 501,
                why: "Transfer coding not implemented",
            });
        }
        Ok(BodyLength::Chunked)
    }

    fn content_length(&self) -> Result<Option<usize>, Refusal> {
        const MALFORMED: Refusal = malformed("Malformed Content-Length");
        let mut values = self.all("Content-Length");
        let Some(first) = values.next() else {
            return Ok(None);
        };
        if first.is_empty() || !first.iter().all(u8::is_ascii_digit) {
            return Err(MALFORMED);
        }
        if values.any(|value| value != first) {
            return Err(MALFORMED);
        }
        // Digits that do not fit are too many bytes as well.
        let size = str::from_utf8(first)
            .ok()
            .and_then(|digits| digits.parse().ok());
        match size {
            Some(size) if size <= API_BODY_SIZE_MAX => Ok(Some(size)),
            _ => Err(BODY_TOO_LARGE),
        }
    }

    fn keeps_open(&self, version: Version) -> bool {
        let closes = self.lists("Connection", "close");
        match version {
            Version::Http10 => !closes && self.lists("Connection", "keep-alive"),
            Version::Http11 => !closes,
        }
    }

    fn expects_continue(&self, version: Version) -> Result<bool, Refusal> {
        let mut expectations = self.all("Expect");
        // RFC 9110 section 10.1.1: from a client of 1.0 it is ignored.
        if version == Version::Http10 {
            return Ok(false);
        }
        match (expectations.next(), expectations.next()) {
            (None, _) => Ok(false),
            (Some(one), None) if one.eq_ignore_ascii_case(b"100-continue") => Ok(true),
            _ => Err(Refusal {
                status: 417,
                why: "Expectation failed",
            }),
        }
    }

    /// Returns the lines that the server behind gets.
    ///
    /// It reads nothing but ASCII, and no field that it knows is anything else; so other ones are
    /// left out.
    fn lines(&self, method: &str, path: &PathOf<'_>) -> String {
        let mut lines = format!("{method} {}{} HTTP/1.1\r\n", path.slash, path.rest);
        for field in self.0 {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            // Nobody may list the host, without which it would be no request.
            let is_of_connection = FIELDS_OF_CONNECTION.iter().any(|name| is(name))
                || is(CALL_FIELD)
                || self.lists("Connection", field.name) && !is("Host");
            match str::from_utf8(field.value.trim_ascii()) {
                Ok(value) if value.is_ascii() && !is_of_connection => {
                    lines.extend([field.name, ": ", value, "\r\n"]);
                }
                _ => {}
            }
        }
        lines
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str) -> Result<RequestHead, Refusal> {
        let parsed = RequestHead::parse(head.as_bytes())?;
        let (parsed, size) = parsed.expect("the head is complete");
        assert_eq!(size, head.len());
        Ok(parsed)
    }

    fn status(head: &str) -> u16 {
        parse(head).expect_err(head).status
    }

    /// Returns a request with these lines behind a first one and `Host`.
    fn with(lines: &str) -> String {
        format!("POST /a HTTP/1.1\r\nHost: h\r\n{lines}\r\n")
    }

    #[test]
    fn a_head_is_written_anew() {
        let head = parse(
            "PUT /api/v1/instances/a?b=[*] HTTP/1.1\r\nhost: h:1\r\nX-API-Key:\t k \r\n\
             Connection: close, x-mine\r\nX-Mine: 1\r\nTE: trailers\r\nKeep-Alive: 5\r\n\
             Cookie: \u{e9}\r\nNODEPASS-call: 5\r\nUpgrade: h2c\r\nContent-Length: 3\r\n\r\n",
        )
        .unwrap();
        assert_eq!(
            head.encode(7, 3),
            "PUT /api/v1/instances/a?b=[*] HTTP/1.1\r\nhost: h:1\r\nX-API-Key: k\r\n\
             Nodepass-Call: 7\r\nContent-Length: 3\r\nConnection: close\r\n\r\n"
        );
        assert_eq!(head.body, BodyLength::Exactly(3));
        assert!(!head.stays_open && !head.is_head && !head.expects_continue);
    }

    /// RFC 9112 section 3.2: whoever passes a request on sends a Host.
    #[test]
    fn the_host_is_passed_on_whatever_the_connection_lists() {
        let head = parse(&with("Connection: X, Host\r\nX: y\r\nZ: y\r\n")).unwrap();
        assert_eq!(
            head.encode(1, 0),
            parse(&with("Z: y\r\n")).unwrap().encode(1, 0)
        );
    }

    #[test]
    fn targets_become_paths() {
        for (line, expected) in [
            ("GET / HTTP/1.1", "GET / HTTP/1.1"),
            ("GET http://h/p?q HTTP/1.1", "GET /p?q HTTP/1.1"),
            ("GET HTTP://h:80 HTTP/1.1", "GET / HTTP/1.1"),
            ("GET https://h?q HTTP/1.1", "GET /?q HTTP/1.1"),
            ("OPTIONS * HTTP/1.1", "OPTIONS * HTTP/1.1"),
            ("CONNECT h:443 HTTP/1.1", "CONNECT h:443 HTTP/1.1"),
            ("BREW //x HTTP/1.1", "BREW //x HTTP/1.1"),
        ] {
            let head = parse(&format!("{line}\r\nHost: h\r\n\r\n")).unwrap();
            let expected = format!("{expected}\r\nHost: h\r\n");
            assert_eq!(head.lines, expected);
        }
        for target in [
            "*",
            "x",
            "ftp://h/",
            "http:///x",
            "http://",
            "/\u{e9}",
            "/\u{7f}",
        ] {
            let head = format!("GET {target} HTTP/1.1\r\nHost: h\r\n\r\n");
            assert_eq!(status(&head), 400, "{target}");
        }
    }

    #[test]
    fn malformed_heads_are_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.0\r\nHost: a\r\nHost: a\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
            "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET  / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET /\r\n\r\n",
            "GET / FTP/1.1\r\n\r\n",
            "G@T / HTTP/1.1\r\nHost: h\r\n\r\n",
            " GET / HTTP/1.1\r\nHost: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA : b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\n: b\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\r\n c\r\n\r\n",
            "GET / HTTP/1.1\r\n Host: h\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\rc\r\n\r\n",
            "GET / HTTP/1.1\r\nHost: h\r\nA: b\0c\r\n\r\n",
            "GET /\0 HTTP/1.1\r\nHost: h\r\n\r\n",
            "\x16\x03\x01\x02\x00\x01\x00\x01",
        ] {
            assert_eq!(status(head), 400, "{head:?}");
        }
    }

    #[test]
    fn other_versions_are_refused() {
        for version in ["HTTP/2.0", "HTTP/0.9", "HTTP/1.2", "HTTP/3", "HTTP/9.9"] {
            let head = format!("\r\nGET / {version}\r\nHost: h\r\n\r\n");
            assert_eq!(status(&head), 505, "{version}");
        }
        assert_eq!(status("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"), 505);
    }

    #[test]
    fn the_length_of_the_body_is_certain() {
        let body = |lines| parse(&with(lines)).map(|head| head.body);
        assert_eq!(body(""), Ok(BodyLength::Nothing));
        assert_eq!(body("Content-Length: 0\r\n"), Ok(BodyLength::Exactly(0)));
        let twice = "Content-Length: 7\r\ncontent-length: 7\r\n";
        assert_eq!(body(twice), Ok(BodyLength::Exactly(7)));
        let chunked = "Transfer-Encoding: Chunked\r\n";
        assert_eq!(body(chunked), Ok(BodyLength::Chunked));
        for lines in [
            "Content-Length: 7\r\nContent-Length: 8\r\n",
            "Content-Length: 7, 7\r\n",
            "Content-Length: +7\r\n",
            "Content-Length: -7\r\n",
            "Content-Length: 0x7\r\n",
            "Content-Length: 7 7\r\n",
            "Content-Length:\r\n",
            "Content-Length: 7\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\nContent-Length: 7\r\n",
        ] {
            assert_eq!(status(&with(lines)), 400, "{lines}");
        }
        for lines in [
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: chunked\u{b}\r\n",
            "Transfer-Encoding: identity\r\n",
            "Transfer-Encoding:\r\n",
        ] {
            let status = status(&with(lines));
            assert!(status == 501 || status == 400, "{lines}");
        }
        let old = "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n";
        assert_eq!(status(old), 400);
    }

    #[test]
    fn the_largest_body_passes_and_one_byte_more_does_not() {
        let sized = |size: &str| parse(&with(&format!("Content-Length: {size}\r\n")));
        let largest = sized(&API_BODY_SIZE_MAX.to_string()).unwrap();
        assert_eq!(largest.body, BodyLength::Exactly(API_BODY_SIZE_MAX));
        for size in [
            &(API_BODY_SIZE_MAX + 1).to_string(),
            "1000000000000000000",
            "99999999999999999999999999999999",
        ] {
            assert_eq!(sized(size), Err(BODY_TOO_LARGE));
        }
    }

    #[test]
    fn the_largest_head_passes_and_one_byte_more_does_not() {
        let sized = |size: usize| {
            let rest = with("X: \r\n").len();
            with(&format!("X: {}\r\n", "y".repeat(size - rest)))
        };
        assert!(parse(&sized(API_HEAD_SIZE_MAX)).is_ok());
        let larger = sized(API_HEAD_SIZE_MAX + 1);
        assert_eq!(parse(&larger), Err(HEAD_TOO_LARGE));
        let endless = vec![b'\n'; API_HEAD_SIZE_MAX];
        assert_eq!(RequestHead::parse(&endless), Err(HEAD_TOO_LARGE));
        assert_eq!(RequestHead::parse(&endless[1..]), Ok(None));
    }

    #[test]
    fn most_fields_pass_and_one_more_does_not() {
        assert!(parse(&with(&"a: b\r\n".repeat(API_FIELDS_MAX - 1))).is_ok());
        let more = with(&"a: b\r\n".repeat(API_FIELDS_MAX));
        assert_eq!(parse(&more), Err(HEAD_TOO_LARGE));
    }

    #[test]
    fn connections_stay_open_as_their_version_has_it() {
        let stays = |version, lines| {
            let head = parse(&format!("GET / HTTP/{version}\r\nHost: h\r\n{lines}\r\n"));
            head.unwrap().stays_open
        };
        assert!(stays("1.1", ""));
        assert!(!stays("1.1", "Connection: Close\r\n"));
        assert!(!stays(
            "1.1",
            "Connection: keep-alive\r\nConnection: close\r\n"
        ));
        assert!(!stays("1.0", ""));
        assert!(stays("1.0", "Connection: Keep-Alive\r\n"));
    }

    #[test]
    fn expectations_are_met_or_refused() {
        let expects = |lines: &str| parse(&with(lines)).map(|head| head.expects_continue);
        assert_eq!(expects(""), Ok(false));
        assert_eq!(expects("Expect: 100-Continue\r\n"), Ok(false));
        let both = "Content-Length: 5\r\nExpect: 100-Continue\r\n";
        assert_eq!(expects(both), Ok(true));
        assert_eq!(status(&with("Expect: 200-ok\r\n")), 417);
        let old = "POST / HTTP/1.0\r\nExpect: x\r\n\r\n";
        assert_eq!(parse(old).map(|head| head.expects_continue), Ok(false));
    }
}
