//! The client's side of the exchange that makes a connection a WebSocket.
//!
//! Source: RFC 6455, section 4; wire protocol, sections 4 and 8.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::ticket::Ticket;
use super::head::{self, HeadError, Headers};
use super::{
    HEADER_SOCKET_ACCEPT, HEADER_SOCKET_KEY, HEADER_SOCKET_VERSION, HEADER_TICKET, SOCKET_VERSION,
    accept_key,
};

const STATUS_SWITCHING: u16 = 101;

/// A client that has asked for a WebSocket.
#[derive(Debug)]
pub struct AwaitUpgrade {
    accept: String,
}

/// Why a connection is no WebSocket.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UpgradeError {
    /// The head of the answer cannot be read, or lacks what it must have.
    Head(HeadError),
    /// The answer has another status.
    Status(u16),
    /// The answer is not one to our request.
    Accept,
    /// The server wants to speak something that we have not asked for.
    Extended,
}

impl AwaitUpgrade {
    /// Returns the request of a client, and what waits for the answer to it.
    ///
    /// `host` is a name or an address as a URL has it; `nonce` has not been used before.
    pub fn start(host: &str, nonce: [u8; 16], ticket: Option<&Ticket>) -> (Vec<u8>, Self) {
        let key = STANDARD.encode(nonce);
        let ticket = ticket.map(Ticket::encode_header);
        let mut headers = vec![
            ("Host", host),
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            (HEADER_SOCKET_KEY, &key),
            (HEADER_SOCKET_VERSION, SOCKET_VERSION),
        ];
        if let Some(ticket) = &ticket {
            headers.push((HEADER_TICKET, ticket));
        }
        let request = head::encode("GET / HTTP/1.1", &headers);
        let accept = accept_key(key.as_bytes());
        (request, Self { accept })
    }

    /// Reads the answer; `None` while it is incomplete. Returns its size; what follows it are
    /// frames.
    ///
    /// Errors: what [`UpgradeError`] lists.
    pub fn take(&self, input: &[u8]) -> Result<Option<usize>, UpgradeError> {
        let parsed = head::parse_response(input, |status, _, headers| self.check(status, headers));
        match parsed.map_err(UpgradeError::Head)? {
            Some((checked, size)) => checked.map(|()| Some(size)),
            None => Ok(None),
        }
    }

    fn check(&self, status: u16, headers: &Headers<'_, '_>) -> Result<(), UpgradeError> {
        if status != STATUS_SWITCHING {
            return Err(UpgradeError::Status(status));
        }
        for (name, word) in [("Upgrade", "websocket"), ("Connection", "Upgrade")] {
            if !headers.lists(name, word) {
                return Err(UpgradeError::Head(HeadError::Header(name)));
            }
        }
        let single = |name| headers.single(name).map_err(UpgradeError::Head);
        if single(HEADER_SOCKET_ACCEPT)? != Some(self.accept.as_bytes()) {
            return Err(UpgradeError::Accept);
        }
        for name in ["Sec-WebSocket-Extensions", "Sec-WebSocket-Protocol"] {
            if single(name)?.is_some() {
                return Err(UpgradeError::Extended);
            }
        }
        Ok(())
    }
}

impl fmt::Display for UpgradeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(error) => write!(f, "the answer is no WebSocket's: {error}"),
            Self::Status(status) => write!(
                f,
                "the answer has the status {status} instead of 101; a proxy in between may not \
                 pass WebSocket on"
            ),
            Self::Accept => f.write_str("the answer is to another request"),
            Self::Extended => f.write_str("the answer has extensions that nobody asked for"),
        }
    }
}

impl std::error::Error for UpgradeError {}

#[cfg(test)]
mod tests {
    use super::super::server::{Request, decode_request};
    use super::*;

    /// The example of RFC 6455 section 1.3.
    const NONCE: &[u8; 16] = b"the sample nonce";
    const ACCEPT: &str = "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=";

    fn answer(headers: &str) -> Vec<u8> {
        let first = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n";
        format!("{first}Connection: keep-alive, upgrade\r\n{headers}\r\n").into_bytes()
    }

    #[test]
    fn the_example_of_the_standard_is_spoken() {
        let (request, waiting) = AwaitUpgrade::start("server.example", *NONCE, None);
        let text = String::from_utf8(request).unwrap();
        assert!(text.contains("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"));
        let good = answer(&format!("Sec-WebSocket-Accept: {ACCEPT}\r\n"));
        assert_eq!(waiting.take(&good), Ok(Some(good.len())));
        for end in 0..good.len() {
            assert_eq!(waiting.take(&good[..end]), Ok(None));
        }
    }

    #[test]
    fn both_sides_agree_and_the_ticket_arrives() {
        let ticket = Ticket::decode_header("ab".repeat(40).as_bytes()).unwrap();
        for ticket in [None, Some(&ticket)] {
            let (request, waiting) = AwaitUpgrade::start("server.example", [9; 16], ticket);
            let decoded = decode_request(&request).unwrap();
            let Some((Request::WebSocket(upgrade), size)) = decoded else {
                panic!("{decoded:?}");
            };
            assert_eq!((upgrade.ticket(), size), (ticket, request.len()));
            let mut answer = upgrade.accept();
            let head_size = answer.len();
            answer.extend([0x82, 4, 0, 0, 0, 0]);
            assert_eq!(waiting.take(&answer), Ok(Some(head_size)));
        }
    }

    #[test]
    fn answers_that_are_none_are_refused() {
        let (_, waiting) = AwaitUpgrade::start("server.example", *NONCE, None);
        let accept = format!("Sec-WebSocket-Accept: {ACCEPT}\r\n");
        let of = |text: &[u8]| waiting.take(text).unwrap_err();
        assert_eq!(of(&answer("")), UpgradeError::Accept);
        let other = answer("Sec-WebSocket-Accept: aaaaaaaaaaaaaaaaaaaaaaaaaaa=\r\n");
        assert_eq!(of(&other), UpgradeError::Accept);
        for name in ["Extensions", "Protocol"] {
            let extended = answer(&format!("{accept}Sec-WebSocket-{name}: x\r\n"));
            assert_eq!(of(&extended), UpgradeError::Extended);
        }
        let status = b"HTTP/1.1 502 Bad Gateway\r\n\r\n";
        assert_eq!(of(status), UpgradeError::Status(502));
        let plain = format!("HTTP/1.1 101 Switching Protocols\r\n{accept}\r\n");
        assert_eq!(
            of(plain.as_bytes()),
            UpgradeError::Head(HeadError::Header("Upgrade"))
        );
    }
}
