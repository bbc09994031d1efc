//! Byte streams of a hand-made peer, plain or TLS, and the certificates of the latter.

use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::sync::Arc;

use nodepass::wire::fingerprint::Fingerprint;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, ring, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName, UnixTime};
use rustls::{
    ClientConfig, ClientConnection, DigitallySignedStruct, Error, ServerConfig, ServerConnection,
    SignatureScheme, StreamOwned,
};

use super::web_socket::WebSocket;
use crate::support::servers::set_deadline;
use crate::support::visitors::try_dial;

/// What both ends of a connection of HTTP/2 agree on in TLS (RFC 9113 section 3.2).
const ALPN_HTTP2: &[u8] = b"h2";

/// One connection, with the deadline of the tests in both directions.
pub enum Stream {
    /// Plain TCP.
    Plain(TcpStream),
    /// TLS, this end being its client.
    TlsClient(Box<StreamOwned<ClientConnection, TcpStream>>),
    /// TLS, this end being its server.
    TlsServer(Box<StreamOwned<ServerConnection, TcpStream>>),
    /// WebSocket above one of the others.
    WebSocket(Box<WebSocket>),
}

/// A certificate of our own making, and what serves it.
#[derive(Clone)]
pub struct Identity {
    /// What a client that has seen it knows.
    pub fingerprint: Fingerprint,
    config: Arc<ServerConfig>,
}

impl Stream {
    /// Connects for HTTP/2; any certificate will do.
    pub fn dial_http2(address: SocketAddr) -> io::Result<Self> {
        let mut config = (*trusting_config()).clone();
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        Self::begin_tls_with(try_dial(address)?, Arc::new(config))
    }

    /// Connects; with TLS any certificate will do.
    pub fn dial(address: SocketAddr, tls: bool) -> io::Result<Self> {
        let socket = try_dial(address)?;
        if !tls {
            return Ok(Self::Plain(socket));
        }
        Self::begin_tls(socket)
    }

    /// Does a client's handshake of TLS on a connection; any certificate will do.
    pub fn begin_tls(socket: TcpStream) -> io::Result<Self> {
        Self::begin_tls_with(socket, trusting_config())
    }

    fn begin_tls_with(socket: TcpStream, config: Arc<ClientConfig>) -> io::Result<Self> {
        let address = socket.peer_addr()?;
        let name = ServerName::IpAddress(address.ip().into());
        let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self::TlsClient(Box::new(stream)))
    }

    /// Takes a connection that was accepted; with an identity its client speaks TLS.
    pub fn accept(socket: TcpStream, identity: Option<&Identity>) -> io::Result<Self> {
        set_deadline(&socket);
        socket.set_nodelay(true)?;
        let Some(identity) = identity else {
            return Ok(Self::Plain(socket));
        };
        let config = Arc::clone(&identity.config);
        let connection = ServerConnection::new(config).map_err(io::Error::other)?;
        let mut stream = StreamOwned::new(connection, socket);
        while stream.conn.is_handshaking() {
            stream.conn.complete_io(&mut stream.sock)?;
        }
        Ok(Self::TlsServer(Box::new(stream)))
    }

    /// The socket below.
    pub fn socket(&self) -> &TcpStream {
        match self {
            Self::Plain(socket) => socket,
            Self::TlsClient(stream) => &stream.sock,
            Self::TlsServer(stream) => &stream.sock,
            Self::WebSocket(stream) => stream.below().socket(),
        }
    }

    /// The fingerprint of the certificate that a server has shown.
    pub fn fingerprint(&self) -> Option<Fingerprint> {
        let stream = match self {
            Self::TlsClient(stream) => stream,
            Self::WebSocket(stream) => return stream.below().fingerprint(),
            Self::Plain(_) | Self::TlsServer(_) => return None,
        };
        let certificate = stream.conn.peer_certificates()?.first()?;
        Some(Fingerprint::of_certificate(certificate))
    }

    /// Ends our direction; the other one stays open.
    pub fn finish(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) => {}
            Self::TlsClient(stream) => {
                stream.conn.send_close_notify();
                stream.flush()?;
            }
            Self::TlsServer(stream) => {
                stream.conn.send_close_notify();
                stream.flush()?;
            }
            Self::WebSocket(stream) => return stream.finish(),
        }
        self.socket().shutdown(Shutdown::Write)
    }

    /// Reads exactly `count` bytes.
    #[track_caller]
    pub fn read_count(&mut self, count: usize) -> Vec<u8> {
        let mut bytes = vec![0; count];
        self.read_exact(&mut bytes)
            .unwrap_or_else(|error| panic!("{count} bytes did not come: {error}"));
        bytes
    }

    /// Reads until the other direction ends, in whatever way but that of a deadline.
    #[track_caller]
    pub fn read_until_end(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let mut buffer = [0; 4096];
        loop {
            match self.read(&mut buffer) {
                Ok(0) => return bytes,
                Ok(count) => bytes.extend_from_slice(&buffer[..count]),
                Err(error) if is_timeout(&error) => panic!("the connection did not end"),
                Err(_) => return bytes,
            }
        }
    }
}

/// Whether a read or write has met its deadline.
pub(super) fn is_timeout(error: &io::Error) -> bool {
    use io::ErrorKind::{TimedOut, WouldBlock};
    matches!(error.kind(), TimedOut | WouldBlock)
}

impl Read for Stream {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.read(buffer),
            Self::TlsClient(stream) => stream.read(buffer),
            Self::TlsServer(stream) => stream.read(buffer),
            Self::WebSocket(stream) => stream.read(buffer),
        }
    }
}

impl Write for Stream {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.write(bytes),
            Self::TlsClient(stream) => stream.write(bytes),
            Self::TlsServer(stream) => stream.write(bytes),
            Self::WebSocket(stream) => stream.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(socket) => socket.flush(),
            Self::TlsClient(stream) => stream.flush(),
            Self::TlsServer(stream) => stream.flush(),
            Self::WebSocket(stream) => stream.flush(),
        }
    }
}

impl Identity {
    /// Makes a certificate.
    pub fn make() -> Self {
        let names = vec![String::from("nodepass")];
        let made = rcgen::generate_simple_self_signed(names).unwrap();
        let certificate = made.cert.der().clone();
        let secret = PrivatePkcs8KeyDer::from(made.signing_key.serialize_der());
        let fingerprint = Fingerprint::of_certificate(&certificate);
        let config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate], PrivateKeyDer::Pkcs8(secret))
            .unwrap();
        Self {
            fingerprint,
            config: Arc::new(config),
        }
    }

    /// The same certificate, served to clients that speak HTTP/2.
    pub fn for_http2(&self) -> Self {
        let mut config = (*self.config).clone();
        config.alpn_protocols = vec![ALPN_HTTP2.to_vec()];
        Self {
            fingerprint: self.fingerprint,
            config: Arc::new(config),
        }
    }
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(ring::default_provider())
}

fn trusting_config() -> Arc<ClientConfig> {
    let config = ClientConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    Arc::new(config)
}

/// Takes every certificate, as v1 clients do with tls 1, but only from whoever has its key.
#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General(String::from("TLS 1.3 only")))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = ring::default_provider().signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signature, &algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        ring::default_provider()
            .signature_verification_algorithms
            .supported_schemes()
    }
}
