//! Why a TLS connection could not be had, in words for an operator.

use std::fmt;
use std::io;

use rustls::{AlertDescription, CertificateError};

/// Why there is no TLS connection.
#[derive(Debug)]
pub enum TlsError {
    /// The other end does not speak TLS at all: its first bytes start no TLS record, or it closed
    /// the connection before it sent any.
    NotTls,
    /// The certificate of the other end is not accepted.
    Certificate(CertificateFault),
    /// The handshake was not done in time.
    Timeout,
    /// The program stops.
    Stopped,
    /// The other end refused to go on.
    Alert(AlertDescription),
    /// The other end speaks TLS, but nothing that can be agreed on.
    Protocol(rustls::Error),
    /// This is no name or address that a certificate could be for.
    Name(String),
    /// A certificate is to be verified, and no name says for whom it must be.
    NoName,
    /// The system has no certificates to verify others with; the text says what was tried.
    NoRoots(String),
    /// The connection broke.
    Io(io::Error),
}

/// Why a certificate is not accepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum CertificateFault {
    /// Its time is over.
    Expired,
    /// Its time has not come.
    NotYetValid,
    /// Nobody who is trusted has signed it.
    UnknownIssuer,
    /// The one who is trusted under the issuer's name has not signed it.
    WrongIssuer,
    /// It is for others than this name or address.
    WrongName(String),
    /// Something else, in the words of the TLS library.
    Other(String),
}

impl TlsError {
    /// Sorts an error of the TLS library.
    pub(super) fn from_library(error: rustls::Error) -> Self {
        match error {
            rustls::Error::InvalidCertificate(error) => {
                Self::Certificate(CertificateFault::from_library(&error))
            }
            rustls::Error::AlertReceived(alert) => Self::Alert(alert),
            other => Self::Protocol(other),
        }
    }
}

impl CertificateFault {
    fn from_library(error: &CertificateError) -> Self {
        match error {
            CertificateError::Expired | CertificateError::ExpiredContext { .. } => Self::Expired,
            CertificateError::NotValidYet | CertificateError::NotValidYetContext { .. } => {
                Self::NotYetValid
            }
            CertificateError::UnknownIssuer => Self::UnknownIssuer,
            // Also where a self-signed one was made anew, and the former one is trusted here.
            CertificateError::BadSignature => Self::WrongIssuer,
            CertificateError::NotValidForNameContext { expected, .. } => {
                Self::WrongName(expected.to_str().into_owned())
            }
            other => Self::Other(other.to_string()),
        }
    }
}

impl fmt::Display for TlsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotTls => f.write_str(
                "TLS handshake failed: the other end does not speak TLS; \
                 check the address, and option tls of the server",
            ),
            Self::Certificate(fault) => write!(f, "certificate refused: {fault}"),
            Self::Timeout => f.write_str(
                "TLS handshake failed: not done in time; \
                 check the network, or raise NP_HANDSHAKE_TIMEOUT",
            ),
            Self::Stopped => f.write_str("TLS handshake given up: the program stops"),
            Self::Alert(alert) => write!(
                f,
                "TLS handshake failed: the other end refused it ({alert:?}); see its log"
            ),
            Self::Protocol(error) => write!(
                f,
                "TLS handshake failed: {error}; TLS 1.3 is needed at both ends"
            ),
            Self::Name(name) => write!(
                f,
                "no TLS handshake with '{name}': it is neither a host name nor an IP address; \
                 correct option sni"
            ),
            Self::NoName => f.write_str(
                "no TLS handshake: nothing says for whom the certificate must be; \
                 give the host by its name, or set option sni",
            ),
            Self::NoRoots(tried) => write!(
                f,
                "cannot verify certificates: the system has none to trust{tried}; \
                 install ca-certificates, or set SSL_CERT_FILE"
            ),
            Self::Io(error) => write!(f, "TLS handshake failed: {error}; check the network"),
        }
    }
}

impl std::error::Error for TlsError {}

impl fmt::Display for CertificateFault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Expired => f.write_str("it has expired; renew it there, or set the clock here"),
            Self::NotYetValid => f.write_str("it is not valid yet; set the clock here"),
            Self::UnknownIssuer => f.write_str(
                "its issuer is unknown; use one from a public authority there, \
                 or name the issuer in SSL_CERT_FILE here",
            ),
            Self::WrongIssuer => f.write_str(
                "it is not signed by the issuer of that name that is trusted here; \
                 name the right one in SSL_CERT_FILE here, or correct the certificate there",
            ),
            Self::WrongName(name) => write!(
                f,
                "it is not for '{name}'; set option sni to a name that it is for"
            ),
            Self::Other(reason) => write!(f, "it cannot be used ({reason}); replace it there"),
        }
    }
}
