//! Heads of HTTP messages: read within bounds, and written.

use std::fmt;

use httparse::{EMPTY_HEADER, Header, Status};

use crate::limits::{HANDSHAKE_HEAD_SIZE_MAX, HANDSHAKE_HEADERS_COUNT_MAX};

/// Why bytes are no head of a request or an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum HeadError {
    /// It has more than [`HANDSHAKE_HEAD_SIZE_MAX`] bytes.
    TooLarge,
    /// It is not HTTP/1.
    NotHttp,
    /// This header is there twice, or has a value that is not allowed.
    Header(&'static str),
}

/// The headers of a message.
pub(super) struct Headers<'h, 'b>(&'h [Header<'b>]);

/// Parses a request with `take`, which gets its method, its target and its headers; `None` while
/// the head is incomplete. Returns with it the size of the head.
pub(super) fn parse_request<T>(
    input: &[u8],
    take: impl FnOnce(&str, &str, &Headers<'_, '_>) -> T,
) -> Result<Option<(T, usize)>, HeadError> {
    let mut headers = [EMPTY_HEADER; HANDSHAKE_HEADERS_COUNT_MAX];
    let mut request = httparse::Request::new(&mut headers);
    let Some(size) = complete_size(input, |bytes| request.parse(bytes))? else {
        return Ok(None);
    };
    let (Some(method), Some(target)) = (request.method, request.path) else {
        return Err(HeadError::NotHttp);
    };
    Ok(Some((
        take(method, target, &Headers(request.headers)),
        size,
    )))
}

/// Whether a connection can carry another request after an answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Connection {
    /// It stays open.
    KeptOpen,
    /// The other side closes it, or where the answer ends on it is not known.
    Closed,
}

/// Parses an answer with `take`, which gets its status, what becomes of the connection and its
/// headers; else as [`parse_request`].
pub(super) fn parse_response<T>(
    input: &[u8],
    take: impl FnOnce(u16, Connection, &Headers<'_, '_>) -> T,
) -> Result<Option<(T, usize)>, HeadError> {
    let mut headers = [EMPTY_HEADER; HANDSHAKE_HEADERS_COUNT_MAX];
    let mut response = httparse::Response::new(&mut headers);
    let Some(size) = complete_size(input, |bytes| response.parse(bytes))? else {
        return Ok(None);
    };
    let status = response.code.ok_or(HeadError::NotHttp)?;
    let headers = Headers(response.headers);
    let connection = if response.version == Some(1) && !headers.lists("Connection", "close") {
        Connection::KeptOpen
    } else {
        Connection::Closed
    };
    Ok(Some((take(status, connection, &headers), size)))
}

/// Returns the size of the head at the start of `input`, none of which is looked at behind
/// [`HANDSHAKE_HEAD_SIZE_MAX`].
fn complete_size<'b>(
    input: &'b [u8],
    parse: impl FnOnce(&'b [u8]) -> httparse::Result<usize>,
) -> Result<Option<usize>, HeadError> {
    let bounded = &input[..input.len().min(HANDSHAKE_HEAD_SIZE_MAX)];
    match parse(bounded) {
        Ok(Status::Complete(size)) => Ok(Some(size)),
        Ok(Status::Partial) if bounded.len() == HANDSHAKE_HEAD_SIZE_MAX => Err(HeadError::TooLarge),
        Ok(Status::Partial) => Ok(None),
        Err(httparse::Error::TooManyHeaders) => Err(HeadError::TooLarge),
        Err(_) => Err(HeadError::NotHttp),
    }
}

impl<'b> Headers<'_, 'b> {
    /// Returns the value of the header `name`, blanks around it taken off; refuses two of them,
    /// which others on the way might read differently.
    pub(super) fn single(&self, name: &'static str) -> Result<Option<&'b [u8]>, HeadError> {
        let mut values = self.all(name);
        let value = values.next();
        match values.next() {
            None => Ok(value),
            Some(_) => Err(HeadError::Header(name)),
        }
    }

    /// Returns whether one of the headers `name` has `word` in its list.
    pub(super) fn lists(&self, name: &str, word: &str) -> bool {
        self.all(name)
            .flat_map(|value| value.split(|byte| *byte == b','))
            .any(|item| item.trim_ascii().eq_ignore_ascii_case(word.as_bytes()))
    }

    /// Returns the size that `Content-Length` tells; refuses one that is no plain number.
    pub(super) fn content_length(&self) -> Result<Option<usize>, HeadError> {
        const NAME: &str = "Content-Length";
        let Some(value) = self.single(NAME)? else {
            return Ok(None);
        };
        let digits = str::from_utf8(value).ok();
        let digits = digits.filter(|text| text.bytes().all(|byte| byte.is_ascii_digit()));
        let size = digits.and_then(|text| text.parse().ok());
        size.map(Some).ok_or(HeadError::Header(NAME))
    }

    /// Returns whether the body comes in a way of its own, chunks above all.
    pub(super) fn has_transfer_encoding(&self) -> bool {
        self.all("Transfer-Encoding").next().is_some()
    }

    fn all(&self, name: &str) -> impl Iterator<Item = &'b [u8]> {
        let named = self
            .0
            .iter()
            .filter(move |header| header.name.eq_ignore_ascii_case(name));
        named.map(|header| header.value.trim_ascii())
    }
}

/// Returns a head: its first line, the headers, the empty line.
pub(super) fn encode(first_line: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let mut head = format!("{first_line}\r\n");
    for (name, value) in headers {
        head.extend([name, ": ", value, "\r\n"]);
    }
    head.push_str("\r\n");
    head.into_bytes()
}

impl fmt::Display for HeadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::TooLarge => write!(
                f,
                "its HTTP head has more than {HANDSHAKE_HEAD_SIZE_MAX} bytes or \
                 {HANDSHAKE_HEADERS_COUNT_MAX} lines"
            ),
            Self::NotHttp => f.write_str("it does not speak HTTP/1"),
            Self::Header(name) => write!(f, "its header '{name}' is not as it must be"),
        }
    }
}

impl std::error::Error for HeadError {}

#[cfg(test)]
mod tests {
    use super::*;

    fn size_of(head: &[u8]) -> Result<Option<usize>, HeadError> {
        parse_request(head, |_, _, _| ()).map(|parsed| parsed.map(|((), size)| size))
    }

    fn head_of_size(size: usize) -> Vec<u8> {
        let rest = b"GET / HTTP/1.1\r\nX: \r\n\r\n".len();
        encode("GET / HTTP/1.1", &[("X", &"y".repeat(size - rest))])
    }

    #[test]
    fn the_largest_head_passes_and_one_byte_more_does_not() {
        let largest = head_of_size(HANDSHAKE_HEAD_SIZE_MAX);
        assert_eq!(size_of(&largest), Ok(Some(HANDSHAKE_HEAD_SIZE_MAX)));
        let followed = [&largest[..], b"more"].concat();
        assert_eq!(size_of(&followed), Ok(Some(HANDSHAKE_HEAD_SIZE_MAX)));
        assert_eq!(size_of(&largest[..largest.len() - 1]), Ok(None));
        let larger = head_of_size(HANDSHAKE_HEAD_SIZE_MAX + 1);
        assert_eq!(size_of(&larger), Err(HeadError::TooLarge));
        let unfinished = &larger[..HANDSHAKE_HEAD_SIZE_MAX];
        assert_eq!(size_of(unfinished), Err(HeadError::TooLarge));
    }

    #[test]
    fn most_headers_pass_and_one_more_does_not() {
        let most = [("a", "b"); HANDSHAKE_HEADERS_COUNT_MAX];
        assert!(matches!(
            size_of(&encode("GET / HTTP/1.1", &most)),
            Ok(Some(_))
        ));
        let more = [("a", "b"); HANDSHAKE_HEADERS_COUNT_MAX + 1];
        assert_eq!(
            size_of(&encode("GET / HTTP/1.1", &more)),
            Err(HeadError::TooLarge)
        );
    }

    #[test]
    fn what_is_not_http_is_seen_early() {
        for bytes in [
            &b"\0"[..],
            b"GET / HTTP/9",
            b"GET / HTTP/1.1\r\nbad name: x\r\n",
        ] {
            assert_eq!(size_of(bytes), Err(HeadError::NotHttp));
        }
    }

    #[test]
    fn headers_are_found_whatever_their_case() {
        let head = b"GET / HTTP/1.1\r\none:  1 \r\nTWO: 2\r\nTwo: 3\r\nList: a, B\r\n\r\n";
        let found = parse_request(head, |_, _, headers| {
            assert_eq!(headers.single("One"), Ok(Some(&b"1"[..])));
            assert_eq!(headers.single("two"), Err(HeadError::Header("two")));
            assert_eq!(headers.single("three"), Ok(None));
            assert!(headers.lists("list", "b") && !headers.lists("list", "c"));
        });
        assert_eq!(found, Ok(Some(((), head.len()))));
    }

    #[test]
    fn content_length_is_a_plain_number() {
        for (text, expected) in [
            ("42", Some(Some(42))),
            ("0", Some(Some(0))),
            ("", None),
            ("+1", None),
            ("-1", None),
            ("1 1", None),
            ("99999999999999999999999", None),
        ] {
            let head = encode("HTTP/1.1 200 OK", &[("Content-Length", text)]);
            let ((length, chunked), _) = parse_response(&head, |_, _, headers| {
                (headers.content_length(), headers.has_transfer_encoding())
            })
            .unwrap()
            .unwrap();
            assert_eq!(length.ok(), expected, "{text}");
            assert!(!chunked);
        }
    }
}
