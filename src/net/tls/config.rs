//! What both ends of a TLS connection insist on.
//!
//! TLS 1.3 alone, no session tickets and no resumption: a tunnel opens its connections once and
//! keeps them, so what would be remembered costs memory and is never used.

use std::fmt;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, WebPkiServerVerifier};
use rustls::crypto::ring::{self, cipher_suite};
use rustls::crypto::{CryptoProvider, WebPkiSupportedAlgorithms};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::NoServerSessionStorage;
use rustls::sign::{CertifiedKey, SingleCertAndKey};
use rustls::version::TLS13;
use rustls::{
    ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme,
    SupportedCipherSuite,
};

use super::error::TlsError;

/// Whose certificates a client accepts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Trust {
    /// Anyone's. That the other end has the key of what it shows is checked nevertheless, so a
    /// fingerprint that is compared later means something.
    Any,
    /// Those that the system's roots vouch for, for the name of the server.
    System,
}

/// How a server presents itself; cheap to clone.
#[derive(Clone)]
pub struct ServerTls {
    pub(super) config: Arc<ServerConfig>,
}

/// How a client judges servers; cheap to clone.
#[derive(Clone)]
pub struct ClientTls {
    pub(super) config: Arc<ClientConfig>,
    pub(super) trust: Trust,
    #[cfg(feature = "quic")]
    verifier: Arc<dyn ServerCertVerifier>,
}

/// Looks at the certificates of one server for a transport that does TLS by other means.
#[cfg(feature = "quic")]
#[derive(Clone)]
pub struct Judge {
    verifier: Arc<dyn ServerCertVerifier>,
    name: ServerName<'static>,
}

impl ServerTls {
    /// Makes a server that shows the certificate of `key` and offers the protocols of `alpn`,
    /// the preferred one first; without any, none is negotiated.
    pub(in crate::net) fn new(key: CertifiedKey, alpn: &[&[u8]]) -> Self {
        let has_aes = has_aes();
        let mut config = ServerConfig::builder_with_provider(Arc::new(provider(has_aes)))
            .with_protocol_versions(&[&TLS13])
            .expect("each of our cipher suites is one of TLS 1.3")
            .with_no_client_auth()
            .with_cert_resolver(Arc::new(SingleCertAndKey::from(key)));
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.send_tls13_tickets = 0;
        config.session_storage = Arc::new(NoServerSessionStorage {});
        // Whoever is slow without the other's favourite decides; if both have AES, either may.
        config.ignore_client_order = !has_aes;
        Self {
            config: Arc::new(config),
        }
    }
}

impl ClientTls {
    /// Makes a client that accepts what `trust` says and offers the protocols of `alpn`.
    ///
    /// Errors: `NoRoots`, with `Trust::System` only.
    pub fn new(trust: Trust, alpn: &[&[u8]]) -> Result<Self, TlsError> {
        match trust {
            Trust::Any => {
                let algorithms = provider(has_aes()).signature_verification_algorithms;
                let verifier = Arc::new(AcceptAny { algorithms });
                Ok(Self::with_verifier(verifier, trust, alpn))
            }
            Trust::System => Self::with_roots(system_roots()?, alpn),
        }
    }

    /// Makes a client that accepts what `roots` vouch for.
    pub(super) fn with_roots(roots: RootCertStore, alpn: &[&[u8]]) -> Result<Self, TlsError> {
        let provider = Arc::new(provider(has_aes()));
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| TlsError::NoRoots(format!(" ({error})")))?;
        Ok(Self::with_verifier(verifier, Trust::System, alpn))
    }

    fn with_verifier(verifier: Arc<dyn ServerCertVerifier>, trust: Trust, alpn: &[&[u8]]) -> Self {
        #[cfg(feature = "quic")]
        let of_judges = Arc::clone(&verifier);
        let mut config = ClientConfig::builder_with_provider(Arc::new(provider(has_aes())))
            .with_protocol_versions(&[&TLS13])
            .expect("each of our cipher suites is one of TLS 1.3")
            .dangerous()
            .with_custom_certificate_verifier(verifier)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Self {
            config: Arc::new(config),
            trust,
            #[cfg(feature = "quic")]
            verifier: of_judges,
        }
    }

    /// Returns what looks at the certificates of the server called `name`, a host name or an IP
    /// address without brackets.
    ///
    /// Errors: `Name`.
    #[cfg(feature = "quic")]
    pub fn judge(&self, name: &str) -> Result<Judge, TlsError> {
        let parsed = ServerName::try_from(name.to_owned());
        Ok(Judge {
            verifier: Arc::clone(&self.verifier),
            name: parsed.map_err(|_| TlsError::Name(name.to_owned()))?,
        })
    }
}

#[cfg(feature = "quic")]
impl Judge {
    /// Looks at what a server shows, its own certificate first. That it has the key of it is for
    /// the transport to check.
    ///
    /// Errors: the certificate is not accepted.
    pub fn look_at(&self, chain: &[CertificateDer<'_>]) -> Result<(), TlsError> {
        let (own, rest) = chain
            .split_first()
            .ok_or(TlsError::Protocol(rustls::Error::NoCertificatesPresented))?;
        let now = UnixTime::now();
        let judged = self
            .verifier
            .verify_server_cert(own, rest, &self.name, &[], now);
        judged.map(drop).map_err(TlsError::from_library)
    }

    /// Returns the name to send (SNI), which an address is not.
    pub fn host_name(&self) -> Option<&str> {
        match &self.name {
            ServerName::DnsName(name) => Some(name.as_ref()),
            _ => None,
        }
    }
}

impl fmt::Debug for ServerTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("ServerTls")
    }
}

impl fmt::Debug for ClientTls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ClientTls({:?})", self.trust)
    }
}

/// Reads the certificates that the system trusts.
///
/// Errors: there is none that can be used.
fn system_roots() -> Result<RootCertStore, TlsError> {
    let found = rustls_native_certs::load_native_certs();
    let mut roots = RootCertStore::empty();
    // Those that cannot be used would verify nothing.
    roots.add_parsable_certificates(found.certs);
    if roots.is_empty() {
        let reason = found.errors.first();
        let reason = reason.map(|error| format!(" ({error})"));
        return Err(TlsError::NoRoots(reason.unwrap_or_default()));
    }
    for error in found.errors {
        log::warn!("Some of the system's certificates cannot be read: {error}");
    }
    Ok(roots)
}

/// Returns what the cryptography is done with: *ring*, the fastest cipher first.
pub(in crate::net) fn crypto() -> CryptoProvider {
    provider(has_aes())
}

fn provider(has_aes: bool) -> CryptoProvider {
    let aes_128 = cipher_suite::TLS13_AES_128_GCM_SHA256;
    let aes_256 = cipher_suite::TLS13_AES_256_GCM_SHA384;
    let chacha = cipher_suite::TLS13_CHACHA20_POLY1305_SHA256;
    let cipher_suites: Vec<SupportedCipherSuite> = if has_aes {
        vec![aes_128, aes_256, chacha]
    } else {
        vec![chacha, aes_128, aes_256]
    };
    CryptoProvider {
        cipher_suites,
        ..ring::default_provider()
    }
}

/// Returns whether the processor has instructions for AES and its checksum.
fn has_aes() -> bool {
    #[cfg(any(target_arch = "x86", target_arch = "x86_64"))]
    return std::arch::is_x86_feature_detected!("aes")
        && std::arch::is_x86_feature_detected!("pclmulqdq");
    #[cfg(target_arch = "aarch64")]
    return std::arch::is_aarch64_feature_detected!("aes");
    #[cfg(not(any(target_arch = "x86", target_arch = "x86_64", target_arch = "aarch64")))]
    return false;
}

/// Accepts every certificate whose key the server turns out to have.
#[derive(Debug)]
struct AcceptAny {
    algorithms: WebPkiSupportedAlgorithms,
}

impl ServerCertVerifier for AcceptAny {
    fn verify_server_cert(
        &self,
        _end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signed, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signed, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use rustls::CipherSuite;

    use super::*;

    #[test]
    fn the_cipher_that_the_processor_is_good_at_comes_first() {
        let first = |has_aes| provider(has_aes).cipher_suites[0].suite();
        assert_eq!(first(true), CipherSuite::TLS13_AES_128_GCM_SHA256);
        assert_eq!(first(false), CipherSuite::TLS13_CHACHA20_POLY1305_SHA256);
        assert_eq!(provider(false).cipher_suites.len(), 3);
    }
}
