//! What the connections of a tunnel are covered by: nothing, or TLS.
//!
//! The only place that knows whether TLS was built in.

use std::fmt;
use std::os::fd::BorrowedFd;
use std::path::Path;

use super::patient::Patience;
use super::stream::{BoxedStream, PlainStream, Stream};
use crate::wire::fingerprint::Fingerprint;
use crate::wire::offer::TlsMode;

#[cfg(feature = "quic")]
use super::certificate::Identity;
#[cfg(feature = "tls")]
use super::certificate::{CertificateError, Certificates, Reload};
#[cfg(feature = "quic")]
use super::tls::Judge;
#[cfg(feature = "tls")]
use super::tls::{ClientTls, Progress, TlsError, TlsStream, Trust};

/// Why a connection cannot be covered.
#[derive(Debug)]
pub enum CoverError {
    /// TLS was left out of this program.
    #[cfg(not(feature = "tls"))]
    NotBuilt,
    /// TLS failed.
    #[cfg(feature = "tls")]
    Tls(TlsError),
    /// The server's own certificate cannot be used.
    #[cfg(feature = "tls")]
    Certificate(CertificateError),
    /// The peer offers a protocol that needs TLS, without it.
    #[cfg(any(feature = "http2", feature = "quic"))]
    NoTls,
    /// A certificate needs files, and the URL does not name both.
    NoFiles,
}

/// What a client puts around its connections.
pub enum ClientCover {
    /// Nothing.
    Nothing,
    /// TLS.
    #[cfg(feature = "tls")]
    Tls {
        /// Which certificates are good.
        tls: ClientTls,
        /// The name that is sent and verified, or the address.
        server_name: String,
    },
}

/// Whose certificate a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accepts {
    /// Anyone's; what the fingerprint of it should be is the caller's to check.
    Anyone,
    /// One that the system's roots vouch for, with the name of the server.
    Verified,
}

/// What a server puts around its connections.
pub enum ServerCover {
    /// Nothing.
    Nothing,
    /// TLS.
    #[cfg(feature = "tls")]
    Tls(Certificates),
}

/// A connection to a server whose cover may still be on its way.
pub enum Arriving {
    /// It has none.
    Plain(PlainStream),
    /// TLS, from the first byte on.
    #[cfg(feature = "tls")]
    Tls(Box<TlsStream>),
}

/// What a connection waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wants {
    /// Nothing: bytes can be read and written.
    Nothing,
    /// One of these.
    Ready {
        /// Something to read.
        read: bool,
        /// Room to write.
        write: bool,
    },
}

impl ClientCover {
    /// Returns what `tls` asks for; `server_name` is a name, or an address. `protocols` are those
    /// to agree on inside (ALPN), the best first.
    ///
    /// Errors: TLS was left out, or the system's roots cannot be read.
    #[cfg_attr(not(feature = "tls"), allow(clippy::needless_pass_by_value))]
    pub fn new(tls: TlsMode, server_name: String, protocols: &[&[u8]]) -> Result<Self, CoverError> {
        match tls {
            TlsMode::Plain => Ok(Self::Nothing),
            TlsMode::SelfSigned => Self::tls(Accepts::Anyone, server_name, protocols),
            TlsMode::Verified => Self::tls(Accepts::Verified, server_name, protocols),
        }
    }

    /// Returns TLS with a server called `server_name`, to speak one of `protocols` inside.
    ///
    /// Errors: TLS was left out, or the system's roots cannot be read.
    #[cfg(feature = "tls")]
    pub fn tls(
        accepts: Accepts,
        server_name: String,
        protocols: &[&[u8]],
    ) -> Result<Self, CoverError> {
        let trust = match accepts {
            Accepts::Anyone => Trust::Any,
            Accepts::Verified => Trust::System,
        };
        let tls = ClientTls::new(trust, protocols).map_err(CoverError::Tls)?;
        Ok(Self::Tls { tls, server_name })
    }

    /// Returns an error: TLS was left out.
    #[cfg(not(feature = "tls"))]
    pub fn tls(_: Accepts, _: String, _: &[&[u8]]) -> Result<Self, CoverError> {
        Err(CoverError::NotBuilt)
    }

    /// Returns what looks at the certificate of the server, for a transport that does TLS by other
    /// means.
    ///
    /// Errors: this is no TLS; the server has no name that a certificate could be for.
    #[cfg(feature = "quic")]
    pub fn judge(&self) -> Result<Judge, CoverError> {
        match self {
            Self::Nothing => Err(CoverError::NoTls),
            Self::Tls { tls, server_name } => tls.judge(server_name).map_err(CoverError::Tls),
        }
    }

    /// Covers a connection; returns with it the fingerprint of the certificate that it showed.
    ///
    /// Blocks: until the handshake is done, as long as `patience` has it.
    pub fn put_on(
        &self,
        socket: PlainStream,
        patience: Patience<'_>,
    ) -> Result<(BoxedStream, Option<Fingerprint>), CoverError> {
        match self {
            Self::Nothing => {
                // There is no handshake to be patient with.
                let Patience { .. } = patience;
                Ok((Box::new(socket), None))
            }
            #[cfg(feature = "tls")]
            Self::Tls { tls, server_name } => {
                let (stream, fingerprint) = put_on_tls(socket, tls, server_name, patience)?;
                Ok((Box::new(stream), fingerprint))
            }
        }
    }

    /// Covers a connection by TLS, for a protocol that needs it.
    ///
    /// Blocks: until the handshake is done, as long as `patience` has it.
    /// Errors: as of [`ClientCover::put_on`]; this is no TLS.
    #[cfg(feature = "http2")]
    pub fn put_on_tls(
        &self,
        socket: PlainStream,
        patience: Patience<'_>,
    ) -> Result<(TlsStream, Option<Fingerprint>), CoverError> {
        match self {
            Self::Nothing => Err(CoverError::NoTls),
            Self::Tls { tls, server_name } => put_on_tls(socket, tls, server_name, patience),
        }
    }
}

#[cfg(feature = "tls")]
fn put_on_tls(
    socket: PlainStream,
    tls: &ClientTls,
    server_name: &str,
    patience: Patience<'_>,
) -> Result<(TlsStream, Option<Fingerprint>), CoverError> {
    let mut stream = TlsStream::connect(socket, tls, Some(server_name)).map_err(CoverError::Tls)?;
    stream
        .handshake(patience.deadline, patience.stop)
        .map_err(CoverError::Tls)?;
    let fingerprint = stream.peer_fingerprint();
    Ok((stream, fingerprint))
}

impl ServerCover {
    /// Returns what `tls` asks for, with a new certificate or the one in the files. `protocols`
    /// are those to agree on inside (ALPN), the best first.
    ///
    /// Errors: TLS was left out; the files are not named, or cannot be used.
    #[cfg(feature = "tls")]
    pub fn new(
        tls: TlsMode,
        certificate_file: Option<&Path>,
        key_file: Option<&Path>,
        protocols: &[&[u8]],
    ) -> Result<Self, CoverError> {
        let certificates = match tls {
            TlsMode::Plain => return Ok(Self::Nothing),
            TlsMode::SelfSigned => Certificates::self_signed(protocols),
            TlsMode::Verified => {
                let files = certificate_file.zip(key_file).ok_or(CoverError::NoFiles)?;
                Certificates::from_files(files.0, files.1, protocols)
            }
        };
        certificates.map(Self::Tls).map_err(CoverError::Certificate)
    }

    /// Returns nothing, or that TLS was left out.
    #[cfg(not(feature = "tls"))]
    pub fn new(
        tls: TlsMode,
        certificate_file: Option<&Path>,
        key_file: Option<&Path>,
        _: &[&[u8]],
    ) -> Result<Self, CoverError> {
        let has_files = certificate_file.is_some() && key_file.is_some();
        match tls {
            TlsMode::Plain => Ok(Self::Nothing),
            TlsMode::Verified if !has_files => Err(CoverError::NoFiles),
            TlsMode::SelfSigned | TlsMode::Verified => Err(CoverError::NotBuilt),
        }
    }

    /// Returns whether connections may be covered.
    pub fn is_tls(&self) -> bool {
        !matches!(self, Self::Nothing)
    }

    /// Returns the fingerprint of the certificate that new connections show.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        match self {
            Self::Nothing => None,
            #[cfg(feature = "tls")]
            Self::Tls(certificates) => Some(certificates.current().fingerprint),
        }
    }

    /// Returns the certificate that new connections show.
    #[cfg(feature = "quic")]
    pub fn identity(&self) -> Option<Identity> {
        match self {
            Self::Nothing => None,
            Self::Tls(certificates) => Some(certificates.current()),
        }
    }

    /// Reads the certificate again if its files have changed; says so in the log.
    pub fn reload(&self) {
        match self {
            Self::Nothing => {}
            #[cfg(feature = "tls")]
            Self::Tls(certificates) => match certificates.reload_if_changed() {
                Ok(Reload::Unchanged) => {}
                Ok(Reload::Renewed) => log::info!("New connections show the new certificate"),
                Err(error) => log::error!("{error}; the certificate of before stays in use"),
            },
        }
    }

    /// Covers a connection on which nothing has been read.
    ///
    /// Errors: TLS was left out, or the system is short of something; the connection is closed.
    #[cfg(feature = "tls")]
    pub fn put_on(&self, socket: PlainStream) -> Result<Arriving, CoverError> {
        match self {
            Self::Nothing => Ok(Arriving::Plain(socket)),
            Self::Tls(certificates) => {
                let tls = certificates.current().tls;
                let stream = TlsStream::accept(socket, &tls).map_err(CoverError::Tls)?;
                Ok(Arriving::Tls(Box::new(stream)))
            }
        }
    }

    /// Returns the connection as it is.
    #[cfg(not(feature = "tls"))]
    pub fn put_on(&self, socket: PlainStream) -> Result<Arriving, CoverError> {
        Ok(Arriving::Plain(socket))
    }
}

impl Arriving {
    /// Returns whether the connection is covered.
    pub fn is_covered(&self) -> bool {
        !matches!(self, Self::Plain(_))
    }

    /// Goes on with the handshake of the cover as far as it can. Does not wait.
    ///
    /// Errors: the handshake has failed.
    pub fn advance(&mut self) -> Result<Wants, CoverError> {
        match self {
            Self::Plain(_) => Ok(Wants::Nothing),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => match stream.advance().map_err(CoverError::Tls)? {
                Progress::Done => Ok(Wants::Nothing),
                Progress::Wants { read, write } => {
                    // Whoever stops half-way should cost little.
                    stream.rest();
                    Ok(Wants::Ready { read, write })
                }
            },
        }
    }

    /// Returns the protocol that both ends have agreed on, if any (ALPN).
    #[cfg(feature = "http2")]
    pub fn protocol(&self) -> Option<&[u8]> {
        match self {
            Self::Plain(_) => None,
            Self::Tls(stream) => stream.protocol(),
        }
    }

    /// Returns the descriptor to wait for.
    pub fn descriptor(&self) -> BorrowedFd<'_> {
        match self {
            Self::Plain(stream) => stream.descriptor(),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream.descriptor(),
        }
    }

    /// Returns the bytes inside.
    pub fn stream(&mut self) -> &mut (dyn Stream + Send) {
        match self {
            Self::Plain(stream) => stream,
            #[cfg(feature = "tls")]
            Self::Tls(stream) => &mut **stream,
        }
    }

    /// Returns the bytes inside, for another thread to take over.
    pub fn into_stream(self) -> BoxedStream {
        match self {
            Self::Plain(stream) => Box::new(stream),
            #[cfg(feature = "tls")]
            Self::Tls(stream) => stream,
        }
    }
}

impl CoverError {
    /// Returns whether the next attempt may go better without another URL or program.
    pub fn is_passing(&self) -> bool {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(_) => true,
            // "At start a missing or unusable file is an error": options.md, crt and key.
            #[cfg(feature = "tls")]
            Self::Certificate(_) => false,
            #[cfg(any(feature = "http2", feature = "quic"))]
            Self::NoTls => true,
            #[cfg(not(feature = "tls"))]
            Self::NotBuilt => false,
            Self::NoFiles => false,
        }
    }

    /// Returns whether the other end does not speak TLS at all.
    pub fn is_not_tls(&self) -> bool {
        match self {
            #[cfg(feature = "tls")]
            Self::Tls(error) => matches!(error, TlsError::NotTls),
            _ => false,
        }
    }
}

impl fmt::Display for CoverError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            #[cfg(not(feature = "tls"))]
            Self::NotBuilt => f.write_str(
                "TLS was left out when this program was built; use tls=0 or a full build",
            ),
            #[cfg(feature = "tls")]
            Self::Tls(error) => write!(f, "{error}"),
            #[cfg(feature = "tls")]
            Self::Certificate(error) => write!(f, "{error}"),
            #[cfg(any(feature = "http2", feature = "quic"))]
            Self::NoTls => f.write_str(
                "the server offers type=1 or type=3 without TLS, which both need; set tls=1 there",
            ),
            Self::NoFiles => f.write_str("tls=2 needs certificate and key: options crt and key"),
        }
    }
}

impl std::error::Error for CoverError {}
