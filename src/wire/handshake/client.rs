//! The client's side: requests, and what the answers to them mean.
//!
//! [`decode_response`] reads a whole answer; a state takes it and becomes the next one. In v1 the
//! server proves nothing; a native client believes no member of an answer before its proof.

use std::fmt;

use super::super::fingerprint::Fingerprint;
use super::super::key::TunnelKey;
use super::super::offer::{Offer, OfferError, TlsMode};
use super::super::proof::{
    KeyVerified, Nonce, SessionId, SessionKey, bearer_token, decode_hex, encode_hex,
};
use super::head::{self, Connection, HeadError, Headers};
use super::{
    HEADER_CHALLENGE, HEADER_NONCE, HEADER_PROOF, HEADER_REPLACES, HEADER_VERSION, NativeSession,
    VERSION, prove_client, prove_server,
};
use crate::limits::HANDSHAKE_BODY_SIZE_MAX;

const STATUS_OK: u16 = 200;
const STATUS_UNAUTHORIZED: u16 = 401;

/// A whole answer. Nothing of it is verified.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Response {
    status: u16,
    connection: Connection,
    version: Option<Vec<u8>>,
    nonce: Option<Vec<u8>>,
    proof: Option<Vec<u8>>,
    body: Vec<u8>,
}

/// A v1 client that has sent its token.
#[derive(Debug)]
pub struct AwaitOffer {
    key: TunnelKey,
}

/// A native client that has said hello.
#[derive(Debug)]
pub struct AwaitChallenge {
    key: TunnelKey,
    host: String,
    client_nonce: Nonce,
    replaces: Option<SessionId>,
}

/// Who has answered a hello.
#[derive(Debug)]
pub enum Challenged {
    /// A server of the native dialect: send `request`, on the same connection if the answer left
    /// it open, else on a new one.
    Native {
        /// The bytes to send.
        request: Vec<u8>,
        /// What waits for the answer to them.
        next: AwaitProof,
    },
    /// A server of v1, or someone in between who makes it look like one: with `auth=0` the
    /// handshake starts again in v1, on a new connection.
    V1,
}

/// A native client that has sent its proof.
#[derive(Debug)]
pub struct AwaitProof {
    key: TunnelKey,
    client_nonce: Nonce,
    server_nonce: Nonce,
}

/// What a server offers that has proven the key.
#[derive(Debug)]
pub struct ServerVerified {
    /// How the session is to be.
    pub offer: Offer,
    /// The certificate that pool connections must show; always there with
    /// [`TlsMode::SelfSigned`].
    pub fingerprint: Option<Fingerprint>,
    /// The session.
    pub session: NativeSession,
}

/// Why a handshake has failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClientError {
    /// The head of the answer cannot be read.
    Head(HeadError),
    /// The answer does not say where its body ends.
    NoLength,
    /// The body of the answer has more than [`HANDSHAKE_BODY_SIZE_MAX`] bytes.
    BodyTooLarge,
    /// The server does not accept our key.
    KeyRefused,
    /// The answer has a status that no NodePass server gives here.
    Status(u16),
    /// The server speaks another version of the native dialect.
    Version,
    /// The server's challenge is none.
    Challenge,
    /// The server has not proven that it knows our key, or its answer was changed.
    WrongProof,
    /// The server uses a self-signed certificate, and does not say which.
    NoFingerprint,
    /// The body of the answer cannot be used.
    Offer(OfferError),
}

/// Reads an answer; `None` while it is incomplete. Returns with it its size.
///
/// The body is read of answers 200 alone, and stepped over of 401; behind any other, or where its
/// end is not known, the connection counts as closed.
///
/// Errors: [`ClientError::Head`], [`ClientError::NoLength`], [`ClientError::BodyTooLarge`].
pub fn decode_response(input: &[u8]) -> Result<Option<(Response, usize)>, ClientError> {
    let parsed = head::parse_response(input, decode_head).map_err(ClientError::Head)?;
    let Some((decoded, head_size)) = parsed else {
        return Ok(None);
    };
    let (mut response, body_size) = decoded?;
    let Some(body) = input.get(head_size..head_size + body_size) else {
        return Ok(None);
    };
    if response.status == STATUS_OK {
        response.body = body.to_vec();
    }
    Ok(Some((response, head_size + body_size)))
}

/// Returns the answer without its body, and the size of that.
fn decode_head(
    status: u16,
    connection: Connection,
    headers: &Headers<'_, '_>,
) -> Result<(Response, usize), ClientError> {
    let length = if headers.has_transfer_encoding() {
        None
    } else {
        headers.content_length().map_err(ClientError::Head)?
    };
    let length_in_bounds = length.filter(|size| *size <= HANDSHAKE_BODY_SIZE_MAX);
    let (connection, body_size) = match (status, length_in_bounds) {
        (STATUS_OK, None) if length.is_some() => return Err(ClientError::BodyTooLarge),
        (STATUS_OK, None) => return Err(ClientError::NoLength),
        (STATUS_OK | STATUS_UNAUTHORIZED, Some(size)) => (connection, size),
        _ => (Connection::Closed, 0),
    };
    let single = |name| match headers.single(name) {
        Ok(value) => Ok(value.map(<[u8]>::to_vec)),
        Err(error) => Err(ClientError::Head(error)),
    };
    let response = Response {
        status,
        connection,
        version: single(HEADER_VERSION)?,
        nonce: single(HEADER_NONCE)?,
        proof: single(HEADER_PROOF)?,
        body: Vec::new(),
    };
    Ok((response, body_size))
}

impl Response {
    /// Whether the connection can carry the next request.
    pub fn connection(&self) -> Connection {
        self.connection
    }
}

impl AwaitOffer {
    /// Returns the request of a v1 client with `key`, and what waits for the answer to it.
    ///
    /// `host` is the server name, `none` where there is none.
    ///
    /// Panics: only if `host` could not stand in a header, which a configured name always can.
    pub fn start(key: TunnelKey, host: &str) -> (Vec<u8>, Self) {
        let token = format!("Bearer {}", encode_hex(&bearer_token(&key)));
        let request = encode_request(host, &[("Authorization", &token)]);
        (request, Self { key })
    }

    /// Returns what the server offers, and the session's key.
    ///
    /// Errors: [`ClientError::KeyRefused`], after which a derived key of the other kind may be
    /// tried; [`ClientError::Status`], [`ClientError::Offer`].
    pub fn take(self, response: &Response) -> Result<(Offer, TunnelKey), ClientError> {
        expect_ok(response.status)?;
        let offer = Offer::decode(&response.body).map_err(ClientError::Offer)?;
        Ok((offer, self.key))
    }
}

impl AwaitChallenge {
    /// Returns the hello of a native client with `key`, and what waits for the answer to it.
    ///
    /// `client_nonce` are fresh random bytes, `replaces` is the session from which the client
    /// comes back. For `host` see [`AwaitOffer::start`].
    pub fn start(
        key: TunnelKey,
        host: &str,
        client_nonce: Nonce,
        replaces: Option<SessionId>,
    ) -> (Vec<u8>, Self) {
        let nonce = encode_hex(&client_nonce);
        let headers = [(HEADER_VERSION, VERSION), (HEADER_NONCE, &*nonce)];
        let state = Self {
            key,
            host: host.to_owned(),
            client_nonce,
            replaces,
        };
        (encode_request(host, &headers), state)
    }

    /// Returns who has answered, and what comes next.
    ///
    /// Errors: [`ClientError::Status`], [`ClientError::Version`], [`ClientError::Challenge`].
    pub fn take(self, response: &Response) -> Result<Challenged, ClientError> {
        if response.status != STATUS_UNAUTHORIZED {
            return Err(ClientError::Status(response.status));
        }
        match &response.version {
            None => return Ok(Challenged::V1),
            Some(version) if version == VERSION.as_bytes() => {}
            Some(_) => return Err(ClientError::Version),
        }
        let nonce = response.nonce.as_deref().and_then(decode_hex);
        let server_nonce = nonce.ok_or(ClientError::Challenge)?;
        Ok(Challenged::Native {
            request: self.encode_proof(&server_nonce),
            next: AwaitProof {
                key: self.key,
                client_nonce: self.client_nonce,
                server_nonce,
            },
        })
    }

    fn encode_proof(&self, server_nonce: &Nonce) -> Vec<u8> {
        let nonce = encode_hex(&self.client_nonce);
        let challenge = encode_hex(server_nonce);
        let proof = prove_client(self.key.as_bytes(), &self.client_nonce, server_nonce);
        let proof = encode_hex(&proof);
        let replaces = self.replaces.map(|session| session.to_string());
        let mut headers = vec![
            (HEADER_VERSION, VERSION),
            (HEADER_NONCE, &*nonce),
            (HEADER_CHALLENGE, &*challenge),
            (HEADER_PROOF, &*proof),
        ];
        if let Some(session) = &replaces {
            headers.push((HEADER_REPLACES, session));
        }
        encode_request(&self.host, &headers)
    }
}

impl AwaitProof {
    /// Returns what the server offers, once its proof is checked.
    ///
    /// Errors: [`ClientError::KeyRefused`], [`ClientError::Status`], [`ClientError::WrongProof`],
    /// and of a server that has proven the key: [`ClientError::Offer`],
    /// [`ClientError::NoFingerprint`].
    pub fn take(self, response: &Response) -> Result<ServerVerified, ClientError> {
        expect_ok(response.status)?;
        let proof = response.proof.as_deref().and_then(decode_hex);
        let proof = proof.ok_or(ClientError::WrongProof)?;
        let (client_nonce, server_nonce) = (&self.client_nonce, &self.server_nonce);
        let verified = KeyVerified::check(&[self.key], &proof, |key| {
            prove_server(key.as_bytes(), client_nonce, server_nonce, &response.body)
        })
        .ok_or(ClientError::WrongProof)?;
        let (offer, native) = Offer::decode_native(&response.body).map_err(ClientError::Offer)?;
        if offer.tls == TlsMode::SelfSigned && native.fingerprint.is_none() {
            return Err(ClientError::NoFingerprint);
        }
        let id = native.session;
        Ok(ServerVerified {
            offer,
            fingerprint: native.fingerprint,
            session: NativeSession {
                id,
                key: SessionKey::derive(&verified, client_nonce, server_nonce, id),
            },
        })
    }
}

fn expect_ok(status: u16) -> Result<(), ClientError> {
    match status {
        STATUS_OK => Ok(()),
        STATUS_UNAUTHORIZED => Err(ClientError::KeyRefused),
        other => Err(ClientError::Status(other)),
    }
}

fn encode_request(host: &str, headers: &[(&str, &str)]) -> Vec<u8> {
    let fits_header = !host.is_empty() && host.bytes().all(|byte| byte.is_ascii_graphic());
    assert!(
        fits_header,
        "a configured name has neither blanks nor line ends"
    );
    let headers = [&[("Host", host)], headers].concat();
    head::encode("GET / HTTP/1.1", &headers)
}

impl ClientError {
    /// Returns whether another handshake could go better without the operator.
    pub fn retry_helps(&self) -> bool {
        match self {
            Self::Head(_) | Self::NoLength | Self::BodyTooLarge | Self::Challenge => true,
            Self::Status(status) => *status >= 500,
            Self::KeyRefused | Self::Version | Self::WrongProof | Self::NoFingerprint => false,
            Self::Offer(_) => false,
        }
    }
}

impl fmt::Display for ClientError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(error) => write!(f, "the server's answer cannot be read: {error}"),
            Self::NoLength => f.write_str(
                "the server's answer does not say how long it is; a proxy in front of it may not \
                 send answers in chunks",
            ),
            Self::BodyTooLarge => write!(
                f,
                "the server's answer has more than {HANDSHAKE_BODY_SIZE_MAX} bytes; it may not be \
                 a NodePass server"
            ),
            Self::KeyRefused => f.write_str("the server refuses our key; both sides need the same"),
            Self::Status(status) if *status >= 500 => write!(
                f,
                "the server, or a proxy in front of it, cannot serve us now: it answers with HTTP \
                 status {status}"
            ),
            Self::Status(status) => write!(
                f,
                "the server answers with HTTP status {status}; it may not be a NodePass server"
            ),
            Self::Version => write!(
                f,
                "the server speaks another version of the native dialect than {VERSION}; update \
                 the older side"
            ),
            Self::Challenge => f.write_str("the server's challenge cannot be used"),
            Self::WrongProof => f.write_str(
                "the server has not proven that it knows our key, or someone has changed its \
                 answer; both sides need the same key",
            ),
            Self::NoFingerprint => {
                f.write_str("the server does not say which certificate it will show")
            }
            Self::Offer(error) => error.fmt(f),
        }
    }
}

impl std::error::Error for ClientError {}
