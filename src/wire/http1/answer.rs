//! Heads of answers that the server behind gives: written anew for the client; and where an
//! answer ends.

use std::fmt;

use httparse::{EMPTY_HEADER, Status};

use super::chunks::Chunks;
use super::{FIELDS_OF_CONNECTION, items};
use crate::limits::{API_FIELDS_MAX, API_HEAD_SIZE_MAX};

/// The head of an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerHead {
    /// First line and fields as the client gets them, without those of the connection.
    lines: Vec<u8>,
    /// What follows.
    pub body: BodyEnd,
    /// It is a stream of events: it goes on for as long as somebody reads.
    pub is_events: bool,
}

/// Where the body of an answer ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BodyEnd {
    /// There is none.
    Nothing,
    /// After so many bytes.
    Exactly(u64),
    /// With the last chunk.
    Chunked,
    /// With the connection.
    Close,
}

/// How the bytes of a body go on to the client.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Form {
    /// As they come.
    AsIs,
    /// Without chunks, which version 1.0 does not know: it ends with the connection.
    Bare,
}

/// What the server behind gives is no answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BadAnswer;

impl AnswerHead {
    /// Reads a head from the front of `input`; returns with it its size. `None` while it is
    /// incomplete. `is_head` says that the request was HEAD.
    pub fn parse(input: &[u8], is_head: bool) -> Result<Option<(Self, usize)>, BadAnswer> {
        let bounded = &input[..input.len().min(API_HEAD_SIZE_MAX)];
        let mut fields = [EMPTY_HEADER; API_FIELDS_MAX];
        let mut response = httparse::Response::new(&mut fields);
        let size = match response.parse(bounded) {
            Ok(Status::Complete(size)) => size,
            Ok(Status::Partial) if bounded.len() < API_HEAD_SIZE_MAX => return Ok(None),
            _ => return Err(BadAnswer),
        };
        let status = response.code.unwrap_or_default();
        // Nobody has asked for an interim answer.
        if status < 200 {
            return Err(BadAnswer);
        }
        let mut lines = Vec::with_capacity(size);
        let reason = response.reason.unwrap_or_default();
        lines.extend_from_slice(format!("HTTP/1.1 {status} {reason}\r\n").as_bytes());
        let mut length = None;
        let mut is_chunked = false;
        let mut is_events = false;
        for field in response.headers.iter() {
            let is = |name: &str| field.name.eq_ignore_ascii_case(name);
            let value = field.value.trim_ascii();
            if is("Content-Length") {
                let digits = str::from_utf8(value).ok();
                length = Some(digits.and_then(|text| text.parse().ok()).ok_or(BadAnswer)?);
            } else if is("Transfer-Encoding") {
                is_chunked = items(value).any(|item| item.eq_ignore_ascii_case(b"chunked"));
            } else if is("Content-Type") {
                let kind = value.split(|byte| *byte == b';').next().unwrap_or_default();
                is_events = kind.trim_ascii().eq_ignore_ascii_case(b"text/event-stream");
            }
            // Which program answers is nobody's business.
            if is("Server") || FIELDS_OF_CONNECTION.iter().any(|name| is(name)) {
                continue;
            }
            for part in [field.name.as_bytes(), b": ", value, b"\r\n"] {
                lines.extend_from_slice(part);
            }
        }
        let has_body = status != 204 && status != 304 && !is_head;
        // RFC 9110 section 8.6: with 204 there must be none.
        if let (Some(length), false) = (length, is_chunked || status == 204) {
            lines.extend_from_slice(format!("Content-Length: {length}\r\n").as_bytes());
        }
        let body = match length {
            _ if !has_body => BodyEnd::Nothing,
            _ if is_chunked => BodyEnd::Chunked,
            Some(0) => BodyEnd::Nothing,
            Some(length) => BodyEnd::Exactly(length),
            None => BodyEnd::Close,
        };
        let head = Self {
            lines,
            body,
            is_events: is_events && has_body,
        };
        Ok(Some((head, size)))
    }

    /// Returns whether the connection can go on after the answer in this form.
    pub fn can_stay_open(&self, form: Form) -> bool {
        match self.body {
            BodyEnd::Nothing | BodyEnd::Exactly(_) => true,
            BodyEnd::Chunked => form == Form::AsIs,
            BodyEnd::Close => false,
        }
    }

    /// Returns the head for the client; `stays_open` says what becomes of his connection.
    pub fn encode(&self, form: Form, stays_open: bool) -> Vec<u8> {
        let mut head = self.lines.clone();
        if self.body == BodyEnd::Chunked && form == Form::AsIs {
            head.extend_from_slice(b"Transfer-Encoding: chunked\r\n");
        }
        let connection = if stays_open { "keep-alive" } else { "close" };
        head.extend_from_slice(format!("Connection: {connection}\r\n\r\n").as_bytes());
        head
    }
}

/// The body of an answer on its way to the client.
#[derive(Debug)]
pub struct AnswerBody {
    form: Form,
    rest: Rest,
}

/// What is to come of a body.
#[derive(Debug)]
enum Rest {
    Bytes(u64),
    Chunks(Chunks),
    UntilClose,
}

impl AnswerBody {
    /// Begins the body behind `head`.
    pub fn new(head: &AnswerHead, form: Form) -> Self {
        let rest = match head.body {
            BodyEnd::Nothing => Rest::Bytes(0),
            BodyEnd::Exactly(size) => Rest::Bytes(size),
            BodyEnd::Chunked => Rest::Chunks(Chunks::default()),
            BodyEnd::Close => Rest::UntilClose,
        };
        Self { form, rest }
    }

    /// Reads from the front of `input`; returns how many bytes belong to the body, and those that
    /// the client gets of them.
    ///
    /// To be called again with the rest, until nothing is left of `input` or the body is over.
    pub fn take<'i>(&mut self, input: &'i [u8]) -> Result<(usize, &'i [u8]), BadAnswer> {
        match &mut self.rest {
            Rest::UntilClose => Ok((input.len(), input)),
            Rest::Bytes(left) => {
                let size = usize::try_from(*left)
                    .unwrap_or(usize::MAX)
                    .min(input.len());
                *left -= u64::try_from(size).unwrap_or(*left);
                Ok((size, &input[..size]))
            }
            Rest::Chunks(chunks) if self.form == Form::Bare => {
                chunks.decode(input).map_err(|_| BadAnswer)
            }
            Rest::Chunks(chunks) => {
                let mut size = 0;
                while size < input.len() && !chunks.is_over() {
                    size += chunks.decode(&input[size..]).map_err(|_| BadAnswer)?.0;
                }
                Ok((size, &input[..size]))
            }
        }
    }

    /// Returns whether the body has ended.
    pub fn is_over(&self) -> bool {
        match &self.rest {
            Rest::Bytes(left) => *left == 0,
            Rest::Chunks(chunks) => chunks.is_over(),
            Rest::UntilClose => false,
        }
    }

    /// Returns whether the end of the connection is the end of the body.
    pub fn ends_with_connection(&self) -> bool {
        matches!(self.rest, Rest::UntilClose)
    }
}

impl fmt::Display for BadAnswer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("what comes from the server behind is no answer")
    }
}

impl std::error::Error for BadAnswer {}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(head: &str, is_head: bool) -> AnswerHead {
        let (parsed, size) = AnswerHead::parse(head.as_bytes(), is_head)
            .unwrap()
            .unwrap();
        assert_eq!(size, head.len());
        parsed
    }

    #[test]
    fn a_head_is_written_anew() {
        let head = parse(
            "HTTP/1.1 200 OK\r\nServer: tiny-http (Rust)\r\nDate: now\r\nConnection: close\r\n\
             Content-Type: application/json\r\nContent-Length: 5\r\n\r\n",
            false,
        );
        let encoded = head.encode(Form::AsIs, true);
        assert_eq!(
            str::from_utf8(&encoded).unwrap(),
            "HTTP/1.1 200 OK\r\nDate: now\r\nContent-Type: application/json\r\n\
             Content-Length: 5\r\nConnection: keep-alive\r\n\r\n"
        );
        assert_eq!(head.body, BodyEnd::Exactly(5));
        assert!(!head.is_events);
    }

    #[test]
    fn chunks_pass_or_are_taken_off() {
        let lines = "HTTP/1.1 200 OK\r\nContent-Type: Text/Event-Stream; charset=x\r\n";
        let head = parse(&format!("{lines}Transfer-Encoding: chunked\r\n\r\n"), false);
        assert!(head.is_events);
        assert!(head.can_stay_open(Form::AsIs) && !head.can_stay_open(Form::Bare));
        let bare = head.encode(Form::Bare, false);
        assert_eq!(bare, format!("{lines}Connection: close\r\n\r\n").as_bytes());
        let chunks = b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\nrest";
        for (form, expected) in [
            (Form::Bare, &b"abcde"[..]),
            (Form::AsIs, &chunks[..chunks.len() - 4]),
        ] {
            for piece_size in 1..chunks.len() {
                let mut body = AnswerBody::new(&head, form);
                let mut passed = Vec::new();
                for piece in chunks.chunks(piece_size) {
                    let mut rest = piece;
                    while !rest.is_empty() && !body.is_over() {
                        let (size, bytes) = body.take(rest).unwrap();
                        passed.extend_from_slice(bytes);
                        rest = &rest[size..];
                    }
                }
                assert!(body.is_over());
                assert_eq!(passed, expected);
            }
        }
    }

    #[test]
    fn it_is_known_where_an_answer_ends() {
        let end = |status: u16, fields: &str, is_head| {
            parse(&format!("HTTP/1.1 {status} X\r\n{fields}\r\n"), is_head).body
        };
        assert_eq!(end(200, "", false), BodyEnd::Close);
        assert_eq!(end(200, "", true), BodyEnd::Nothing);
        assert_eq!(end(200, "Content-Length: 5\r\n", true), BodyEnd::Nothing);
        assert_eq!(end(200, "Content-Length: 0\r\n", false), BodyEnd::Nothing);
        assert_eq!(end(304, "Content-Length: 5\r\n", false), BodyEnd::Nothing);
        let both = "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n";
        assert_eq!(end(200, both, false), BodyEnd::Chunked);
        let empty = parse("HTTP/1.1 204 X\r\nContent-Length: 0\r\n\r\n", false);
        let encoded = empty.encode(Form::AsIs, false);
        assert_eq!(encoded, b"HTTP/1.1 204 X\r\nConnection: close\r\n\r\n");
        let mut body = AnswerBody::new(&empty, Form::AsIs);
        assert!(body.is_over());
        assert_eq!(body.take(b"more"), Ok((0, &b""[..])));
    }

    #[test]
    fn what_is_no_answer_is_refused() {
        for head in [
            "GET / HTTP/1.1\r\n\r\n",
            "HTTP/1.1 100 Continue\r\n\r\n",
            "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        ] {
            assert_eq!(AnswerHead::parse(head.as_bytes(), false), Err(BadAnswer));
        }
        let endless = format!("HTTP/1.1 200 OK\r\nA: {}", "b".repeat(API_HEAD_SIZE_MAX));
        assert_eq!(AnswerHead::parse(endless.as_bytes(), false), Err(BadAnswer));
    }
}
