//! Recognises SOCKS, HTTP and TLS by the first bytes that a visitor sends.
//!
//! Sources: SOCKS 4 and RFC 1928 section 3; RFC 9110 section 9; RFC 8446 section 5.1.

use std::fmt;

/// A protocol that `block` can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protocol {
    /// SOCKS 4, 4a or 5.
    Socks,
    /// HTTP, any version that starts with a method.
    Http,
    /// TLS, any version.
    Tls,
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Socks => "SOCKS",
            Self::Http => "HTTP",
            Self::Tls => "TLS",
        })
    }
}

/// What the first bytes tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// They are the start of this protocol.
    Is(Protocol),
    /// They could become this one; more bytes are needed.
    MayBe(Protocol),
    /// They are none of the three.
    Other,
}

/// Longest prefix after which [`recognise`] never answers [`Verdict::MayBe`] (bytes).
pub const PREFIX_SIZE_MAX: usize = 2 + 255;

/// Longest method of HTTP that is recognised (bytes): the longest registered one has 17.
const METHOD_SIZE_MAX: usize = 20;

/// Line ends before a request, which servers are told to pass over (RFC 9112 section 2.2).
const LINE_ENDS_SIZE_MAX: usize = 8;

/// Methods after which whatever follows makes a request, such as a host name.
const METHODS: [&[u8]; 9] = [
    b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"CONNECT", b"OPTIONS", b"TRACE", b"PATCH",
];

/// What follows any other method: a path, everything (`*`), or a whole URL.
const REQUEST_TARGETS: [&[u8]; 4] = [b"/", b"*", b"http://", b"https://"];

/// Returns what `prefix`, all bytes that a visitor has sent so far, tells about its protocol;
/// `None` without any.
pub fn recognise(prefix: &[u8]) -> Option<Verdict> {
    Some(match prefix.first()? {
        4 => recognise_socks4(prefix),
        5 => recognise_socks5(prefix),
        0x16 => recognise_tls(prefix),
        _ => recognise_http(prefix),
    })
}

/// SOCKS 4: version 4, command 1 (connect) or 2 (bind).
fn recognise_socks4(prefix: &[u8]) -> Verdict {
    match prefix.get(1) {
        None => Verdict::MayBe(Protocol::Socks),
        Some(1 | 2) => Verdict::Is(Protocol::Socks),
        Some(_) => Verdict::Other,
    }
}

/// SOCKS 5: version 5, the count of methods, and the methods: 0 to 9, or from 0x80 for private
/// use.
fn recognise_socks5(prefix: &[u8]) -> Verdict {
    let Some(&count) = prefix.get(1) else {
        return Verdict::MayBe(Protocol::Socks);
    };
    let methods = prefix[2..].iter().take(usize::from(count));
    if count == 0 || methods.clone().any(|method| matches!(method, 10..0x80)) {
        Verdict::Other
    } else if methods.len() < usize::from(count) {
        Verdict::MayBe(Protocol::Socks)
    } else {
        Verdict::Is(Protocol::Socks)
    }
}

/// TLS: a handshake record of version 3.x.
fn recognise_tls(prefix: &[u8]) -> Verdict {
    match prefix.get(1..3) {
        None if matches!(prefix.get(1), None | Some(3)) => Verdict::MayBe(Protocol::Tls),
        Some([3, 0..=4]) => Verdict::Is(Protocol::Tls),
        _ => Verdict::Other,
    }
}

/// HTTP: a method, a blank, and the start of a request target. The preface of HTTP/2 looks like
/// a request as well (RFC 9113 section 3.4).
pub(super) fn recognise_http(prefix: &[u8]) -> Verdict {
    let is_line_end = |byte: &u8| matches!(byte, b'\r' | b'\n');
    let start = prefix.iter().take_while(|byte| is_line_end(byte)).count();
    let request = &prefix[start..];
    let is_letter = |byte: &u8| byte.is_ascii_alphabetic() || *byte == b'-';
    let method_size = request.iter().take_while(|byte| is_letter(byte)).count();
    if start > LINE_ENDS_SIZE_MAX || method_size > METHOD_SIZE_MAX {
        return Verdict::Other;
    }
    let (method, rest) = request.split_at(method_size);
    match rest.split_first() {
        None => Verdict::MayBe(Protocol::Http),
        Some((b' ', _)) if METHODS.contains(&method) => Verdict::Is(Protocol::Http),
        Some((b' ', target)) if !method.is_empty() => recognise_request_target(target),
        Some(_) => Verdict::Other,
    }
}

fn recognise_request_target(target: &[u8]) -> Verdict {
    if REQUEST_TARGETS
        .iter()
        .any(|start| target.starts_with(start))
    {
        Verdict::Is(Protocol::Http)
    } else if REQUEST_TARGETS
        .iter()
        .any(|start| start.starts_with(target))
    {
        Verdict::MayBe(Protocol::Http)
    } else {
        Verdict::Other
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the verdict on the bytes as they come one by one: the first that is certain.
    fn verdict_in_time(bytes: &[u8]) -> Verdict {
        (1..=bytes.len())
            .filter_map(|end| recognise(&bytes[..end]))
            .find(|verdict| !matches!(verdict, Verdict::MayBe(_)))
            .unwrap()
    }

    #[test]
    fn socks_is_recognised() {
        for bytes in [
            &b"\x05\x01\x00"[..],
            b"\x05\x03\x00\x01\x02",
            b"\x04\x01\x00\x50\x7f\0\0\x01\0",
        ] {
            assert_eq!(verdict_in_time(bytes), Verdict::Is(Protocol::Socks));
        }
        let more_than_a_greeting = b"\x05\x01\x00\x05\x01\x00";
        let verdict = recognise(more_than_a_greeting);
        assert_eq!(verdict, Some(Verdict::Is(Protocol::Socks)));
    }

    #[test]
    fn http_is_recognised() {
        for request in [
            &b"GET / HTTP/1.1\r\n"[..],
            b"CONNECT a:1",
            b"PATCH /",
            b"PRI * HTTP/2.0",
            b"PROPFIND /",
            b"get /",
            b"\r\n\r\nGET /",
            b"VERSION-CONTROL http://",
        ] {
            assert_eq!(verdict_in_time(request), Verdict::Is(Protocol::Http));
        }
    }

    #[test]
    fn tls_is_recognised() {
        let hello = b"\x16\x03\x01\x02\x00\x01";
        assert_eq!(verdict_in_time(hello), Verdict::Is(Protocol::Tls));
    }

    #[test]
    fn others_pass() {
        for bytes in [
            &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
            b"EHLO example.org\r\n",
            b"NICK hello\r\n",
            b"\x16\x02",
            b"\x05\x00",
            b"\x04\x07",
            b"GETTING started",
            b" /",
            b"\r\n\r\n\r\n\r\n\r\nGET /",
            b"aMethodThatIsLongerThanAny /",
            b"\0\0\0\x05",
            b"\x05\x02\x41\x42\x43",
        ] {
            assert_eq!(verdict_in_time(bytes), Verdict::Other, "{bytes:?}");
        }
    }

    #[test]
    fn a_short_prefix_may_be_one_protocol() {
        let cases = [
            (&b"G"[..], Protocol::Http),
            (b"GET", Protocol::Http),
            (b"\r\n", Protocol::Http),
            (b"PROPFIND ", Protocol::Http),
            (b"PROPFIND htt", Protocol::Http),
            (b"\x16", Protocol::Tls),
            (b"\x16\x03", Protocol::Tls),
            (b"\x05", Protocol::Socks),
            (b"\x05\x02\x00", Protocol::Socks),
            (b"\x04", Protocol::Socks),
        ];
        for (bytes, protocol) in cases {
            assert_eq!(
                recognise(bytes),
                Some(Verdict::MayBe(protocol)),
                "{bytes:?}"
            );
        }
        assert_eq!(recognise(b""), None);
    }

    #[test]
    fn the_longest_prefix_is_always_certain() {
        for first in 0..=255 {
            for second in 0..=255 {
                for fill in [0, b'A', b'\n', 5] {
                    let mut prefix = vec![fill; PREFIX_SIZE_MAX];
                    (prefix[0], prefix[1]) = (first, second);
                    assert!(!matches!(recognise(&prefix), Some(Verdict::MayBe(_))));
                }
            }
        }
    }
}
