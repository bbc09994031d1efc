//! The server's side: what a request on the tunnel port is, and the answers to it.
//!
//! Nothing a client says leads to a session before it is [`BearerVerified`] or [`ProofVerified`].

use std::fmt;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use super::super::fingerprint::Fingerprint;
use super::super::key::{HIDDEN_KEY, ServerKeys, TunnelKey};
use super::super::offer::{NativePart, Offer};
use super::super::proof::{
    KeyVerified, Nonce, PROOF_SIZE, SessionId, SessionKey, bearer_token, decode_hex, encode_hex,
};
use super::super::shown::shown;
use super::super::ticket::Ticket;
use super::challenge::{AnsweredChallenges, BootSecret, ChallengeError, Fresh};
use super::head::{self, HeadError, Headers};
use super::{
    HEADER_CHALLENGE, HEADER_NONCE, HEADER_PROOF, HEADER_REPLACES, HEADER_SOCKET_KEY,
    HEADER_SOCKET_VERSION, HEADER_TICKET, HEADER_VERSION, NativeSession, SOCKET_VERSION, VERSION,
    prove_client, prove_server,
};

/// What a client asks for, in a head that is as it must be. Nothing of it is verified.
#[derive(Debug)]
pub enum Request {
    /// A v1 handshake.
    Bearer(BearerRequest),
    /// The first step of a native handshake.
    Hello(Hello),
    /// The second step of a native handshake.
    Proof(ProofRequest),
    /// A WebSocket pool connection.
    WebSocket(Upgrade),
}

/// A WebSocket pool connection that asks to be one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Upgrade {
    ticket: Option<Ticket>,
    /// What the answer is derived from.
    key: Vec<u8>,
}

/// A v1 handshake, with or without a token. Never prints it: whoever has it can use it again.
pub struct BearerRequest {
    /// `None` where there is no token, or none that any key could give.
    token: Option<[u8; PROOF_SIZE]>,
}

/// A v1 client that has shown the token of a key.
#[derive(Debug)]
pub struct BearerVerified(KeyVerified);

/// The first step of a native handshake.
#[derive(Debug)]
pub struct Hello {
    client_nonce: Nonce,
}

/// The second step of a native handshake.
#[derive(Debug)]
pub struct ProofRequest {
    client_nonce: Nonce,
    server_nonce: Nonce,
    proof: [u8; PROOF_SIZE],
    replaces: Option<SessionId>,
}

/// A native client that has proven a key, just now and for the first time.
#[derive(Debug)]
pub struct ProofVerified {
    client_nonce: Nonce,
    server_nonce: Nonce,
    replaces: Option<SessionId>,
    key: KeyVerified,
}

/// A native handshake that is done, once its answer is sent.
#[derive(Debug)]
pub struct Accepted {
    /// The bytes to send, after which the connection is closed.
    pub answer: Vec<u8>,
    /// The session that is to be.
    pub session: NativeSession,
    /// The session that ends with this: the same client has come back.
    pub replaces: Option<SessionId>,
}

/// Why a request leads to nothing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Its head cannot be read.
    Head(HeadError),
    /// It brings a body, or says so.
    Body,
    /// Its path is not `/`.
    Path {
        /// The path, escaped and cut.
        path: String,
    },
    /// Its method is not GET.
    Method {
        /// The method, escaped and cut.
        method: String,
    },
    /// It speaks another version of the native dialect.
    Version,
    /// It has neither a token nor a native handshake.
    NoToken,
    /// Its token is of another key.
    WrongToken,
    /// It speaks v1, which `auth=1` rules out.
    NativeOnly,
    /// What it answers is no challenge that counts.
    Challenge(ChallengeError),
    /// Its proof is of another key.
    WrongProof,
    /// Its ticket is none.
    Ticket,
    /// There is no room for another session now.
    Busy,
    /// It wants a WebSocket, and pool connections are of another kind.
    WebSocket,
}

/// Reads a request; `None` while its head is incomplete. Returns with it the size of its head.
///
/// Errors: what [`Refusal`] lists, from [`Refusal::Head`] to [`Refusal::Version`], and
/// [`Refusal::Ticket`].
pub fn decode_request(input: &[u8]) -> Result<Option<(Request, usize)>, Refusal> {
    match head::parse_request(input, classify).map_err(Refusal::Head)? {
        Some((classified, size)) => Ok(Some((classified?, size))),
        None => Ok(None),
    }
}

fn classify(method: &str, path: &str, headers: &Headers<'_, '_>) -> Result<Request, Refusal> {
    if path != "/" {
        return Err(Refusal::Path { path: shown(path) });
    }
    if method != "GET" {
        return Err(Refusal::Method {
            method: shown(method),
        });
    }
    // Nothing here takes a body, and one that is not read would pass for the next request.
    let length = headers.content_length().map_err(Refusal::Head)?;
    if length.is_some_and(|size| size > 0) || headers.has_transfer_encoding() {
        return Err(Refusal::Body);
    }
    if headers.lists("Upgrade", "websocket") {
        return classify_websocket(headers);
    }
    let single = |name| headers.single(name).map_err(Refusal::Head);
    match single(HEADER_VERSION)? {
        None => Ok(Request::Bearer(BearerRequest {
            token: single("Authorization")?.and_then(decode_bearer),
        })),
        Some(version) if version == VERSION.as_bytes() => classify_native(headers),
        Some(_) => Err(Refusal::Version),
    }
}

fn classify_websocket(headers: &Headers<'_, '_>) -> Result<Request, Refusal> {
    let ticket = match headers.single(HEADER_TICKET).map_err(Refusal::Head)? {
        None => None,
        Some(value) => Some(Ticket::decode_header(value).ok_or(Refusal::Ticket)?),
    };
    if !headers.lists("Connection", "Upgrade") {
        return Err(Refusal::Head(HeadError::Header("Connection")));
    }
    let single = |name| headers.single(name).map_err(Refusal::Head);
    if single(HEADER_SOCKET_VERSION)? != Some(SOCKET_VERSION.as_bytes()) {
        return Err(Refusal::Head(HeadError::Header(HEADER_SOCKET_VERSION)));
    }
    // 16 bytes. RFC 6455 section 4.2.1
    let key = single(HEADER_SOCKET_KEY)?.filter(|key| {
        let decoded = STANDARD.decode(key);
        decoded.is_ok_and(|bytes| bytes.len() == 16)
    });
    let key = key.ok_or(Refusal::Head(HeadError::Header(HEADER_SOCKET_KEY)))?;
    Ok(Request::WebSocket(Upgrade {
        ticket,
        key: key.to_vec(),
    }))
}

fn classify_native(headers: &Headers<'_, '_>) -> Result<Request, Refusal> {
    let client_nonce = required(headers, HEADER_NONCE)?;
    let Some(proof) = optional(headers, HEADER_PROOF)? else {
        return Ok(Request::Hello(Hello { client_nonce }));
    };
    Ok(Request::Proof(ProofRequest {
        client_nonce,
        server_nonce: required(headers, HEADER_CHALLENGE)?,
        proof,
        replaces: optional(headers, HEADER_REPLACES)?.map(SessionId),
    }))
}

fn required<const N: usize>(
    headers: &Headers<'_, '_>,
    name: &'static str,
) -> Result<[u8; N], Refusal> {
    optional(headers, name)?.ok_or(Refusal::Head(HeadError::Header(name)))
}

fn optional<const N: usize>(
    headers: &Headers<'_, '_>,
    name: &'static str,
) -> Result<Option<[u8; N]>, Refusal> {
    let wrong = Refusal::Head(HeadError::Header(name));
    match headers.single(name).map_err(Refusal::Head)? {
        None => Ok(None),
        Some(value) => decode_hex(value).map(Some).ok_or(wrong),
    }
}

fn decode_bearer(value: &[u8]) -> Option<[u8; PROOF_SIZE]> {
    let (scheme, token) = value.split_at_checked(b"Bearer ".len())?;
    // The name of a scheme has no case. RFC 9110 section 11.1
    scheme.eq_ignore_ascii_case(b"Bearer ").then_some(())?;
    decode_hex(token.trim_ascii())
}

impl BearerRequest {
    /// Returns the client as one that knows a key of `keys`.
    ///
    /// Errors: [`Refusal::NoToken`], [`Refusal::WrongToken`].
    pub fn verify(self, keys: &ServerKeys) -> Result<BearerVerified, Refusal> {
        let token = self.token.ok_or(Refusal::NoToken)?;
        KeyVerified::check(keys.as_slice(), &token, bearer_token)
            .map(BearerVerified)
            .ok_or(Refusal::WrongToken)
    }
}

impl fmt::Debug for BearerRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "BearerRequest({HIDDEN_KEY})")
    }
}

impl BearerVerified {
    /// Returns the answer that makes `offer`, after which the connection is closed.
    pub fn accept(&self, offer: &Offer) -> Vec<u8> {
        encode_offer(&offer.encode(None), None)
    }

    /// The session's key.
    pub fn key(&self) -> &TunnelKey {
        self.0.key()
    }
}

impl Upgrade {
    /// The ticket of a native one.
    pub fn ticket(&self) -> Option<&Ticket> {
        self.ticket.as_ref()
    }

    /// Returns the answer that makes the connection a WebSocket.
    #[cfg(feature = "websocket")]
    pub fn accept(&self) -> Vec<u8> {
        let accept = super::accept_key(&self.key);
        let headers = [
            ("Upgrade", "websocket"),
            ("Connection", "Upgrade"),
            (super::HEADER_SOCKET_ACCEPT, &*accept),
        ];
        head::encode("HTTP/1.1 101 Switching Protocols", &headers)
    }
}

impl Hello {
    /// Returns the answer with a challenge, after which the connection stays open.
    ///
    /// `now` is the time since any moment that stays the same as long as the server runs; `random`
    /// are fresh random bytes.
    pub fn challenge(self, secret: &BootSecret, now: Duration, random: [u8; 8]) -> Vec<u8> {
        let nonce = encode_hex(&secret.challenge(&self.client_nonce, now, random));
        let headers = [
            (HEADER_VERSION, VERSION),
            (HEADER_NONCE, &nonce),
            ("Content-Length", "0"),
        ];
        head::encode("HTTP/1.1 401 Unauthorized", &headers)
    }
}

impl ProofRequest {
    /// Returns the client as one that knows a key of `keys`, and remembers in `answered` that this
    /// proof was used. `now` is that of [`Hello::challenge`].
    ///
    /// Errors: [`Refusal::Challenge`], [`Refusal::WrongProof`]; nothing is remembered then.
    pub fn verify(
        self,
        keys: &ServerKeys,
        secret: &BootSecret,
        answered: &mut AnsweredChallenges,
        now: Duration,
    ) -> Result<ProofVerified, Refusal> {
        let fresh: Fresh = secret
            .check(&self.client_nonce, &self.server_nonce, now)
            .map_err(Refusal::Challenge)?;
        let key = KeyVerified::check(keys.as_slice(), &self.proof, |key| {
            prove_client(key.as_bytes(), &self.client_nonce, &self.server_nonce)
        })
        .ok_or(Refusal::WrongProof)?;
        answered.remember(&fresh, now).map_err(Refusal::Challenge)?;
        Ok(ProofVerified {
            client_nonce: self.client_nonce,
            server_nonce: self.server_nonce,
            replaces: self.replaces,
            key,
        })
    }
}

impl ProofVerified {
    /// Returns the answer that makes `offer`, and the session called `id`, which no other one is
    /// or was. `fingerprint` is that of the certificate that pool connections will show; the
    /// client insists on it where the offer says [`TlsMode::SelfSigned`].
    ///
    /// [`TlsMode::SelfSigned`]: super::super::offer::TlsMode::SelfSigned
    pub fn accept(
        self,
        id: SessionId,
        offer: &Offer,
        fingerprint: Option<Fingerprint>,
    ) -> Accepted {
        let body = offer.encode(Some(&NativePart {
            session: id,
            fingerprint,
        }));
        let (client_nonce, server_nonce) = (&self.client_nonce, &self.server_nonce);
        let key = self.key.key().as_bytes();
        let proof = prove_server(key, client_nonce, server_nonce, &body);
        Accepted {
            answer: encode_offer(&body, Some(&proof)),
            session: NativeSession {
                id,
                key: SessionKey::derive(&self.key, client_nonce, server_nonce, id),
            },
            replaces: self.replaces,
        }
    }
}

/// Returns the answer 200 with `body`.
fn encode_offer(body: &[u8], proof: Option<&[u8; PROOF_SIZE]>) -> Vec<u8> {
    let length = body.len().to_string();
    let proof = proof.map(|proof| encode_hex(proof));
    let mut headers = vec![
        ("Connection", "close"),
        ("Content-Type", "application/json"),
        ("Content-Length", &length),
    ];
    if let Some(proof) = &proof {
        headers.push((HEADER_PROOF, proof));
    }
    let mut answer = head::encode("HTTP/1.1 200 OK", &headers);
    answer.extend(body);
    answer
}

impl Refusal {
    /// Returns the answer to send before the connection is closed; `None` where it is closed
    /// without one.
    pub fn answer(&self) -> Option<Vec<u8>> {
        let (status, header) = match self {
            Self::Head(HeadError::TooLarge) | Self::Ticket => return None,
            Self::Head(HeadError::NotHttp | HeadError::Header(_))
            | Self::Body
            | Self::WebSocket => ("400 Bad Request", None),
            Self::Path { .. } => ("404 Not Found", None),
            Self::Method { .. } => ("405 Method Not Allowed", Some(("Allow", "GET"))),
            Self::NoToken | Self::WrongToken | Self::NativeOnly => ("401 Unauthorized", None),
            // Another status than that of a wrong key: the client may come again with the same.
            Self::Challenge(_) | Self::Busy => ("503 Service Unavailable", None),
            Self::Version | Self::WrongProof => {
                ("401 Unauthorized", Some((HEADER_VERSION, VERSION)))
            }
        };
        let mut headers = vec![("Connection", "close"), ("Content-Length", "0")];
        headers.extend(header);
        Some(head::encode(&format!("HTTP/1.1 {status}"), &headers))
    }

    /// Returns whether the client does not know the key: those are logged with their address, and
    /// answered slower when they repeat.
    pub fn is_wrong_key(&self) -> bool {
        matches!(self, Self::NoToken | Self::WrongToken | Self::WrongProof)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Head(error) => error.fmt(f),
            Self::Body => f.write_str("its request brings a body"),
            Self::Path { path } => write!(f, "it asks for '{path}', not for '/'"),
            Self::Method { method } => write!(f, "its method is '{method}', not GET"),
            Self::Version => write!(
                f,
                "it speaks another version of the native dialect than {VERSION}; update the older \
                 side"
            ),
            Self::NoToken => f.write_str("it shows no key"),
            Self::WrongToken | Self::WrongProof => {
                f.write_str("its key is not ours; both sides need the same")
            }
            Self::NativeOnly => f.write_str(
                "it speaks v1, and auth=1 accepts the native handshake only; update it, or set \
                 auth=0",
            ),
            Self::Challenge(error) => error.fmt(f),
            Self::Ticket => f.write_str("its ticket is none"),
            Self::Busy => f.write_str("there are as many sessions as may be"),
            Self::WebSocket => {
                f.write_str("it wants a WebSocket, and pool connections are of another kind here")
            }
        }
    }
}

impl std::error::Error for Refusal {}
