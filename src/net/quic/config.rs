//! What both ends of a QUIC connection insist on.
//!
//! TLS 1.3 by the library that quiche brings, with the certificates, and the judgement of them,
//! that connections over TLS have. No session tickets and no early data: a tunnel opens its
//! connection once and keeps it.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use boring::error::ErrorStack;
use boring::pkey::PKey;
use boring::ssl::{
    SslAlert, SslContextBuilder, SslMethod, SslOptions, SslRef, SslVerifyError, SslVerifyMode,
};
use boring::x509::X509;
use quiche::{Config, CongestionControlAlgorithm};
use rustls::pki_types::CertificateDer;

use crate::limits::{
    QUIC_CONNECTION_WINDOW, QUIC_IDS_SPARE_MAX, QUIC_STREAM_WINDOW, QUIC_STREAM_WINDOW_MAX,
    QUIC_STREAMS_MAX,
};
use crate::net::certificate::Identity;
use crate::net::tls::{Judge, TlsError};
use crate::runtime::threads::lock;
use crate::wire::alpn::NP_QUIC;

/// Silence after which a connection is over, in intervals between signs of life (wire protocol,
/// section 4).
pub(super) const IDLE_INTERVALS: u32 = 3;

/// Why an end cannot be set up.
#[derive(Debug)]
pub enum ConfigError {
    /// The certificate or key cannot be used.
    Tls(ErrorStack),
    /// The transport cannot be set up.
    Transport(quiche::Error),
}

/// What became of the certificate that a server has shown.
#[derive(Clone, Default)]
pub struct Verdict(Arc<Mutex<Option<TlsError>>>);

impl Verdict {
    /// Returns why the certificate was refused, if it was.
    pub fn take(&self) -> Option<TlsError> {
        lock(&self.0).take()
    }
}

/// Returns the settings of a server that shows the certificate of `identity`; `keep_alive` is the
/// interval between signs of life.
///
/// Errors: the certificate or key is of a kind that the library does not have.
pub fn of_server(identity: &Identity, keep_alive: Duration) -> Result<Config, ConfigError> {
    let mut builder = builder()?;
    let mut chain = identity.chain.iter();
    if let Some(own) = chain.next() {
        builder.set_certificate(&*X509::from_der(own)?)?;
    }
    for link in chain {
        builder.add_extra_chain_cert(X509::from_der(link)?)?;
    }
    let key = PKey::private_key_from_der(identity.key.secret_der())?;
    builder.set_private_key(&key)?;
    finish(builder, keep_alive)
}

/// Returns the settings of a client that has `judge` look at the certificate of the server, and
/// where it says what it does not like.
///
/// Errors: none but those of a system that is short of memory.
pub fn of_client(judge: Judge, keep_alive: Duration) -> Result<(Config, Verdict), ConfigError> {
    let mut builder = builder()?;
    let verdict = Verdict::default();
    let of_callback = verdict.clone();
    builder.set_custom_verify_callback(SslVerifyMode::PEER, move |session| {
        verify(session, &judge).map_err(|error| {
            *lock(&of_callback.0) = Some(error);
            SslVerifyError::Invalid(SslAlert::BAD_CERTIFICATE)
        })
    });
    Ok((finish(builder, keep_alive)?, verdict))
}

fn verify(session: &mut SslRef, judge: &Judge) -> Result<(), TlsError> {
    let mut chain = Vec::new();
    for certificate in session.peer_cert_chain().into_iter().flatten() {
        // What cannot be written down was not read either.
        chain.extend(certificate.to_der().map(CertificateDer::from));
    }
    judge.look_at(&chain)
}

fn builder() -> Result<SslContextBuilder, ConfigError> {
    let mut builder = SslContextBuilder::new(SslMethod::tls())?;
    builder.set_options(SslOptions::NO_TICKET);
    Ok(builder)
}

fn finish(builder: SslContextBuilder, keep_alive: Duration) -> Result<Config, ConfigError> {
    let mut config = Config::with_boring_ssl_ctx_builder(quiche::PROTOCOL_VERSION, builder)?;
    config.set_application_protos(&[NP_QUIC])?;
    let idle = (keep_alive * IDLE_INTERVALS).as_millis();
    config.set_max_idle_timeout(u64::try_from(idle).unwrap_or(u64::MAX));
    config.set_initial_max_data(QUIC_CONNECTION_WINDOW);
    config.set_max_connection_window(QUIC_CONNECTION_WINDOW);
    config.set_initial_max_stream_data_bidi_local(QUIC_STREAM_WINDOW);
    config.set_initial_max_stream_data_bidi_remote(QUIC_STREAM_WINDOW);
    config.set_max_stream_window(QUIC_STREAM_WINDOW_MAX);
    config.set_initial_max_streams_bidi(QUIC_STREAMS_MAX);
    config.set_initial_max_streams_uni(0);
    config.set_active_connection_id_limit(QUIC_IDS_SPARE_MAX);
    config.discover_pmtu(true);
    config.grease(false);
    // Of what gets lost on the way, little says that the way is full: at 1 % loss and 50 ms this
    // carries 25 times what CUBIC does, which takes each loss for that.
    config.set_cc_algorithm(CongestionControlAlgorithm::Bbr2Gcongestion);
    // Datagrams leave in batches, when acknowledgements come; a pause between them costs a third of
    // the throughput.
    config.enable_pacing(false);
    Ok(config)
}

impl From<ErrorStack> for ConfigError {
    fn from(error: ErrorStack) -> Self {
        Self::Tls(error)
    }
}

impl From<quiche::Error> for ConfigError {
    fn from(error: quiche::Error) -> Self {
        Self::Transport(error)
    }
}

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tls(error) => write!(f, "QUIC cannot use the certificate or key: {error}"),
            Self::Transport(error) => write!(f, "QUIC cannot be set up: {error}"),
        }
    }
}

impl std::error::Error for ConfigError {}
