//! What a server tells a client in the handshake: how their session is to be.
//!
//! One JSON object, in the order of recorded answers, and a newline:
//! `{"flow":"-","max":8,"tls":"0","type":"0"}`. The native dialect adds `session` and `fp`.
//!
//! Source: wire protocol, sections 3 and 8.

use std::borrow::Cow;
use std::fmt;

use serde::{Deserialize, Serialize};

use super::fingerprint::Fingerprint;
use super::proof::{SessionId, decode_hex};
use super::shown::shown;
use crate::limits::POOL_SIZE_MAX;

/// Which end takes the visitors.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Flow {
    /// `-`: the server binds the target address, the client dials its target.
    #[serde(rename = "-")]
    Reverse,
    /// `+`: the client binds, the server dials.
    #[serde(rename = "+")]
    Forward,
}

/// Encryption of the tunnel, or of a master's API.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TlsMode {
    /// None.
    #[serde(rename = "0")]
    Plain,
    /// A certificate made in memory at start.
    #[serde(rename = "1")]
    SelfSigned,
    /// Certificate and key from files.
    #[serde(rename = "2")]
    Verified,
}

/// What pool connections are made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Transport {
    /// One TCP connection each.
    #[serde(rename = "0")]
    Tcp,
    /// Streams of a QUIC connection.
    #[serde(rename = "1")]
    Quic,
    /// One WebSocket each.
    #[serde(rename = "2")]
    WebSocket,
    /// Streams of an HTTP/2 connection.
    #[serde(rename = "3")]
    Http2,
}

/// How a session is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Offer {
    /// Which end takes the visitors.
    pub flow: Flow,
    /// Most idle pool connections, 1 to [`POOL_SIZE_MAX`].
    pub pool_max: u32,
    /// Encryption of pool connections.
    pub tls: TlsMode,
    /// What pool connections are made of.
    pub transport: Transport,
}

/// What the native dialect adds to an offer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct NativePart {
    pub(super) session: SessionId,
    /// Of the certificate that pool connections will show.
    pub(super) fingerprint: Option<Fingerprint>,
}

/// Why the body of an answer is no offer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum OfferError {
    /// It is not the JSON object that is expected: in the words of the JSON reader, cut.
    Json(String),
    /// `max` is 0: no pool connection would be accepted.
    NoPool,
    /// A native offer has no session id, or one that is not 32 lower-case digits.
    Session,
    /// The fingerprint is not `sha256:` and 32 pairs of upper-case digits.
    Fingerprint {
        /// The text, escaped and cut.
        text: String,
    },
}

#[derive(Serialize, Deserialize)]
struct Body<'a> {
    flow: Flow,
    max: u64,
    tls: TlsMode,
    #[serde(rename = "type")]
    transport: Transport,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    session: Option<Cow<'a, str>>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    fp: Option<Cow<'a, str>>,
}

impl TlsMode {
    /// Its word in a URL and in an offer.
    pub fn digit(self) -> char {
        match self {
            Self::Plain => '0',
            Self::SelfSigned => '1',
            Self::Verified => '2',
        }
    }
}

impl Transport {
    /// Its word in a URL and in an offer.
    pub fn digit(self) -> char {
        match self {
            Self::Tcp => '0',
            Self::Quic => '1',
            Self::WebSocket => '2',
            Self::Http2 => '3',
        }
    }
}

impl Offer {
    /// Returns whether pool connections are inside TLS.
    pub fn is_covered(&self) -> bool {
        self.tls != TlsMode::Plain
    }

    /// Returns the body of the answer that makes this offer.
    pub(super) fn encode(&self, native: Option<&NativePart>) -> Vec<u8> {
        let body = Body {
            flow: self.flow,
            max: self.pool_max.into(),
            tls: self.tls,
            transport: self.transport,
            session: native.map(|part| part.session.to_string().into()),
            fp: native.and_then(|part| part.fingerprint.map(|fp| fp.to_string().into())),
        };
        let mut json = serde_json::to_vec(&body).expect("plain members can always be written");
        json.push(b'\n');
        json
    }

    /// Reads the body of a v1 answer; members that are not of v1 are ignored, whatever they hold.
    pub(super) fn decode(body: &[u8]) -> Result<Self, OfferError> {
        #[derive(Deserialize)]
        struct V1Body {
            flow: Flow,
            max: u64,
            tls: TlsMode,
            #[serde(rename = "type")]
            transport: Transport,
        }
        let body: V1Body = serde_json::from_slice(body).map_err(OfferError::json)?;
        Self::new(body.flow, body.max, body.tls, body.transport)
    }

    /// Reads the body of a native answer, which must have been proven.
    pub(super) fn decode_native(body: &[u8]) -> Result<(Self, NativePart), OfferError> {
        let body: Body<'_> = serde_json::from_slice(body).map_err(OfferError::json)?;
        let session = body.session.and_then(|text| decode_hex(text.as_bytes()));
        let fingerprint = match body.fp {
            None => None,
            Some(text) => match Fingerprint::parse(&text) {
                Some(fingerprint) => Some(fingerprint),
                None => return Err(OfferError::Fingerprint { text: shown(&text) }),
            },
        };
        let native = NativePart {
            session: SessionId(session.ok_or(OfferError::Session)?),
            fingerprint,
        };
        let offer = Self::new(body.flow, body.max, body.tls, body.transport)?;
        Ok((offer, native))
    }

    fn new(flow: Flow, max: u64, tls: TlsMode, transport: Transport) -> Result<Self, OfferError> {
        if max == 0 {
            return Err(OfferError::NoPool);
        }
        // A peer that would take more than we ever open is no reason to turn away.
        let pool_max = u32::try_from(max)
            .unwrap_or(POOL_SIZE_MAX)
            .min(POOL_SIZE_MAX);
        Ok(Self {
            flow,
            pool_max,
            tls,
            transport,
        })
    }
}

impl OfferError {
    // By value, as `map_err` hands it over.
    #[allow(
        clippy::needless_pass_by_value,
        reason = "the shape that map_err calls"
    )]
    fn json(error: serde_json::Error) -> Self {
        Self::Json(shown(&error.to_string()))
    }
}

impl fmt::Display for OfferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Json(reason) => write!(f, "the server's answer cannot be read: {reason}"),
            Self::NoPool => f.write_str(
                "the server's answer has 'max' 0, with which there can be no pool connection; set \
                 'max' at the server",
            ),
            Self::Session => f.write_str("the server's answer has no usable session id"),
            Self::Fingerprint { text } => write!(
                f,
                "the server's answer has the certificate fingerprint '{text}', which is none"
            ),
        }
    }
}

impl std::error::Error for OfferError {}

#[cfg(test)]
mod tests {
    use super::super::mutation::Xorshift;
    use super::super::recorded::recordings;
    use super::*;

    const OFFER: Offer = Offer {
        flow: Flow::Reverse,
        pool_max: 8,
        tls: TlsMode::Plain,
        transport: Transport::Tcp,
    };

    fn body_end(answer: &[u8]) -> &[u8] {
        let index = answer.windows(4).position(|window| window == b"\r\n\r\n");
        &answer[index.unwrap() + 4..]
    }

    #[test]
    fn recorded_offers_are_read_and_written_byte_for_byte() {
        let [reverse, forward, tls] = recordings();
        for (recording, offer) in [
            (reverse, OFFER),
            (
                forward,
                Offer {
                    flow: Flow::Forward,
                    ..OFFER
                },
            ),
            (
                tls,
                Offer {
                    tls: TlsMode::SelfSigned,
                    ..OFFER
                },
            ),
        ] {
            let body = body_end(&recording.answer);
            assert_eq!(Offer::decode(body), Ok(offer));
            assert_eq!(offer.encode(None), body);
        }
    }

    #[test]
    fn all_offers_come_back() {
        let native = NativePart {
            session: SessionId([0xab; 16]),
            fingerprint: Some(Fingerprint::of_certificate(b"certificate")),
        };
        for flow in [Flow::Reverse, Flow::Forward] {
            for tls in [TlsMode::Plain, TlsMode::SelfSigned, TlsMode::Verified] {
                for transport in [
                    Transport::Tcp,
                    Transport::Quic,
                    Transport::WebSocket,
                    Transport::Http2,
                ] {
                    let offer = Offer {
                        flow,
                        pool_max: POOL_SIZE_MAX,
                        tls,
                        transport,
                    };
                    assert_eq!(Offer::decode(&offer.encode(None)), Ok(offer));
                    let body = offer.encode(Some(&native));
                    assert_eq!(Offer::decode(&body), Ok(offer));
                    assert_eq!(Offer::decode_native(&body), Ok((offer, native)));
                }
            }
        }
        let text = String::from_utf8(OFFER.encode(Some(&native))).unwrap();
        assert!(text.starts_with(concat!(
            r#"{"flow":"-","max":8,"tls":"0","type":"0","#,
            r#""session":"abababababababababababababababab","fp":"sha256:"#
        )));
    }

    #[test]
    fn unknown_members_are_ignored() {
        let body = br#"{"new":[{"max":1}],"type":"0","tls":"0","max":8,"flow":"-","fp":7}"#;
        assert_eq!(Offer::decode(body), Ok(OFFER));
    }

    #[test]
    fn most_idle_connections_are_cut_to_what_we_open() {
        let decode = |max: &str| {
            let body = format!(r#"{{"flow":"-","max":{max},"tls":"0","type":"0"}}"#);
            Offer::decode(body.as_bytes()).map(|offer| offer.pool_max)
        };
        assert_eq!(decode("1"), Ok(1));
        assert_eq!(decode("65536"), Ok(65536));
        for large in ["65537", "4294967296", "18446744073709551615"] {
            assert_eq!(decode(large), Ok(65536));
        }
        assert_eq!(decode("0"), Err(OfferError::NoPool));
        for wrong in ["-1", "1.5", "\"8\"", "null", "18446744073709551616"] {
            assert!(matches!(decode(wrong), Err(OfferError::Json(_))), "{wrong}");
        }
    }

    #[test]
    fn wrong_types_and_values_are_refused_with_the_reason() {
        for (body, reason) in [
            (
                r#"{"flow":"*","max":8,"tls":"0","type":"0"}"#,
                "unknown variant `*`",
            ),
            (r#"{"flow":"-","max":8,"tls":0,"type":"0"}"#, "expected"),
            (
                r#"{"flow":"-","max":8,"tls":"3","type":"0"}"#,
                "unknown variant `3`",
            ),
            (
                r#"{"flow":"-","max":8,"tls":"0","type":"4"}"#,
                "unknown variant `4`",
            ),
            (r#"{"flow":"-","max":8,"tls":"0"}"#, "missing field `type`"),
            (
                r#"{"flow":"-","max":"8","tls":"0","type":"0"}"#,
                "expected u64",
            ),
            ("", "EOF"),
            ("<html>", "expected value"),
        ] {
            let error = Offer::decode(body.as_bytes()).unwrap_err().to_string();
            assert!(error.contains(reason), "{error}");
        }
        let with = |members: &str| {
            let body = format!(r#"{{"flow":"-","max":8,"tls":"0","type":"0"{members}}}"#);
            Offer::decode_native(body.as_bytes()).unwrap_err()
        };
        assert_eq!(with(""), OfferError::Session);
        assert_eq!(with(r#","session":"00""#), OfferError::Session);
        assert!(matches!(with(r#","session":5"#), OfferError::Json(_)));
        let session = r#","session":"00000000000000000000000000000000""#;
        let text = "sha256:00".to_owned();
        let error = with(&format!(r#"{session},"fp":"sha256:00""#));
        assert_eq!(error, OfferError::Fingerprint { text });
    }

    #[test]
    fn no_damaged_offer_panics() {
        let native = NativePart {
            session: SessionId([0xab; 16]),
            fingerprint: Some(Fingerprint::of_certificate(b"certificate")),
        };
        let body = OFFER.encode(Some(&native));
        let mut random = Xorshift::new(7);
        for _ in 0..5_000 {
            let damaged = random.damage(&body);
            let _either_way = (Offer::decode(&damaged), Offer::decode_native(&damaged));
        }
    }
}
