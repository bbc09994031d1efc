//! The certificate that a server shows: made in memory, or read from files and read again when
//! they change.
//!
//! Connections that are open keep the certificate they began with; new ones get the one in force.

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
#[cfg(feature = "quic")]
use std::sync::Arc;
use std::sync::Mutex;

use rcgen::{
    CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
    KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, date_time_ymd,
};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::sign::CertifiedKey;
use sha2::{Digest, Sha256};

use super::tls::{ServerTls, crypto};
use crate::limits::CERTIFICATE_FILE_SIZE_MAX;
use crate::runtime::threads::lock;
use crate::wire::fingerprint::Fingerprint;

/// The name in a self-signed certificate: it says nothing about the machine or its owner.
const NEUTRAL_NAME: &str = "localhost";

/// The certificate in force, and how to show it.
#[derive(Clone, Debug)]
pub struct Identity {
    /// For the connections to come.
    pub tls: ServerTls,
    /// Of the certificate itself, without the rest of its chain.
    pub fingerprint: Fingerprint,
    /// The certificate and those that lead to its authority.
    #[cfg(feature = "quic")]
    pub(in crate::net) chain: Vec<CertificateDer<'static>>,
    #[cfg(feature = "quic")]
    pub(in crate::net) key: Arc<PrivateKeyDer<'static>>,
}

/// A certificate, and its key as it was read or made.
struct Loaded {
    certified: CertifiedKey,
    #[cfg(feature = "quic")]
    key: Arc<PrivateKeyDer<'static>>,
}

/// The certificate of a server, shared by all its threads.
#[derive(Debug)]
pub struct Certificates {
    files: Option<Files>,
    alpn: Vec<Vec<u8>>,
    state: Mutex<State>,
}

#[derive(Debug)]
struct Files {
    certificate: PathBuf,
    key: PathBuf,
}

#[derive(Debug)]
struct State {
    identity: Identity,
    /// Of the files that `identity` was made from.
    digest: Option<[u8; 32]>,
}

/// What a look at the certificate files brought.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reload {
    /// They are as before, or there are none.
    Unchanged,
    /// New connections show the new certificate.
    Renewed,
}

/// Why a certificate cannot be used.
#[derive(Debug)]
pub struct CertificateError {
    /// The file to blame; none if the certificate is made in memory.
    file: Option<PathBuf>,
    fault: Fault,
}

#[derive(Debug)]
enum Fault {
    Unreadable(io::Error),
    NoFile,
    TooLarge,
    NoCertificate,
    NoKey,
    BadPem(String),
    BadCertificate(String),
    BadKey(String),
    /// The key belongs to another certificate than this file's.
    WrongKey(PathBuf),
    /// Making one failed.
    NotMade(String),
}

impl Certificates {
    /// Makes a self-signed certificate with a new key; servers offer the protocols of `alpn`.
    ///
    /// Errors: the system gives no random bytes.
    pub fn self_signed(alpn: &[&[u8]]) -> Result<Self, CertificateError> {
        let loaded = make_self_signed().map_err(|error| CertificateError {
            file: None,
            fault: Fault::NotMade(error),
        })?;
        Ok(Self::new(None, alpn, |alpn| State {
            identity: identity_of(loaded, alpn),
            digest: None,
        }))
    }

    /// Reads certificate and key from PEM files; servers offer the protocols of `alpn`.
    ///
    /// The certificate file has the server's own certificate first, then those that lead to its
    /// authority; all are served. The key is PKCS#8, SEC1 or RSA.
    ///
    /// Errors: a file is missing, unreadable, too large or has no such thing in it; the key does
    /// not belong to the certificate.
    pub fn from_files(
        certificate: &Path,
        key: &Path,
        alpn: &[&[u8]],
    ) -> Result<Self, CertificateError> {
        let files = Files {
            certificate: certificate.to_owned(),
            key: key.to_owned(),
        };
        let content = files.read()?;
        let loaded = files.parse(&content)?;
        Ok(Self::new(Some(files), alpn, |alpn| State {
            identity: identity_of(loaded, alpn),
            digest: Some(content.digest()),
        }))
    }

    fn new(files: Option<Files>, alpn: &[&[u8]], state: impl FnOnce(&[&[u8]]) -> State) -> Self {
        Self {
            files,
            alpn: alpn.iter().map(|name| name.to_vec()).collect(),
            state: Mutex::new(state(alpn)),
        }
    }

    /// Returns the certificate in force.
    pub fn current(&self) -> Identity {
        lock(&self.state).identity.clone()
    }

    /// Takes a changed certificate from the files, if they have changed; to be called now and
    /// then.
    ///
    /// Blocks: while the files are read; the certificate in force can be had meanwhile.
    /// Errors: as [`Certificates::from_files`]; the old certificate stays, and the next call tries
    /// again.
    pub fn reload_if_changed(&self) -> Result<Reload, CertificateError> {
        let Some(files) = &self.files else {
            return Ok(Reload::Unchanged);
        };
        let content = files.read()?;
        let digest = Some(content.digest());
        if lock(&self.state).digest == digest {
            return Ok(Reload::Unchanged);
        }
        let loaded = files.parse(&content)?;
        let alpn: Vec<&[u8]> = self.alpn.iter().map(Vec::as_slice).collect();
        let identity = identity_of(loaded, &alpn);
        *lock(&self.state) = State { identity, digest };
        Ok(Reload::Renewed)
    }
}

fn identity_of(loaded: Loaded, alpn: &[&[u8]]) -> Identity {
    let chain = &loaded.certified.cert;
    let own = chain.first().expect("a chain without one is refused");
    let fingerprint = Fingerprint::of_certificate(own);
    Identity {
        fingerprint,
        #[cfg(feature = "quic")]
        chain: chain.clone(),
        #[cfg(feature = "quic")]
        key: loaded.key,
        tls: ServerTls::new(loaded.certified, alpn),
    }
}

fn make_self_signed() -> Result<Loaded, String> {
    let told = |error: rcgen::Error| error.to_string();
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(told)?;
    let mut parameters = CertificateParams::new([NEUTRAL_NAME.to_owned()]).map_err(told)?;
    parameters.distinguished_name = DistinguishedName::new();
    let common_name = DnType::CommonName;
    parameters
        .distinguished_name
        .push(common_name, NEUTRAL_NAME);
    // A router without a battery starts in 1970. The end is what RFC 5280 section 4.1.2.5 gives
    // for "no end".
    parameters.not_before = date_time_ymd(1970, 1, 1);
    parameters.not_after = date_time_ymd(9999, 12, 31);
    parameters.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    parameters.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    let certificate = parameters.self_signed(&key).map_err(told)?;
    let private = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(key.serialize_der()));
    Ok(Loaded {
        #[cfg(feature = "quic")]
        key: Arc::new(private.clone_key()),
        certified: CertifiedKey::from_der(vec![certificate.der().clone()], private, &crypto())
            .map_err(|error| error.to_string())?,
    })
}

/// What both files have in them.
struct Content {
    certificate: Vec<u8>,
    key: Vec<u8>,
}

impl Content {
    fn digest(&self) -> [u8; 32] {
        let parts = [&self.certificate, &self.key].map(Sha256::digest);
        Sha256::digest(parts.concat()).into()
    }
}

impl Files {
    fn read(&self) -> Result<Content, CertificateError> {
        let read = |path: &Path| {
            read_file(path).map_err(|fault| CertificateError {
                file: Some(path.to_owned()),
                fault,
            })
        };
        Ok(Content {
            certificate: read(&self.certificate)?,
            key: read(&self.key)?,
        })
    }

    fn parse(&self, content: &Content) -> Result<Loaded, CertificateError> {
        let of_certificate = |fault| CertificateError {
            file: Some(self.certificate.clone()),
            fault,
        };
        let of_key = |fault| CertificateError {
            file: Some(self.key.clone()),
            fault,
        };
        let chain = parse_chain(&content.certificate).map_err(of_certificate)?;
        let key = PrivateKeyDer::from_pem_slice(&content.key).map_err(|error| {
            of_key(match error {
                pem::Error::NoItemsFound => Fault::NoKey,
                other => Fault::BadPem(other.to_string()),
            })
        })?;
        #[cfg(feature = "quic")]
        let as_read = Arc::new(key.clone_key());
        let signing_key = crypto()
            .key_provider
            .load_private_key(key)
            .map_err(|error| of_key(Fault::BadKey(error.to_string())))?;
        let certified = CertifiedKey::new(chain, signing_key);
        match certified.keys_match() {
            Ok(()) | Err(rustls::Error::InconsistentKeys(rustls::InconsistentKeys::Unknown)) => {
                Ok(Loaded {
                    certified,
                    #[cfg(feature = "quic")]
                    key: as_read,
                })
            }
            Err(rustls::Error::InconsistentKeys(_)) => {
                Err(of_key(Fault::WrongKey(self.certificate.clone())))
            }
            Err(error) => Err(of_certificate(Fault::BadCertificate(error.to_string()))),
        }
    }
}

fn read_file(path: &Path) -> Result<Vec<u8>, Fault> {
    // Opening something else, such as a pipe, may wait for ever.
    if !path.metadata().map_err(Fault::Unreadable)?.is_file() {
        return Err(Fault::NoFile);
    }
    let mut content = Vec::new();
    let file = File::open(path).map_err(Fault::Unreadable)?;
    let mut file = file.take(CERTIFICATE_FILE_SIZE_MAX + 1);
    let size = file.read_to_end(&mut content).map_err(Fault::Unreadable)?;
    if u64::try_from(size).is_ok_and(|size| size <= CERTIFICATE_FILE_SIZE_MAX) {
        Ok(content)
    } else {
        Err(Fault::TooLarge)
    }
}

fn parse_chain(text: &[u8]) -> Result<Vec<CertificateDer<'static>>, Fault> {
    let chain = CertificateDer::pem_slice_iter(text)
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| Fault::BadPem(error.to_string()))?;
    if chain.is_empty() {
        return Err(Fault::NoCertificate);
    }
    Ok(chain)
}

impl fmt::Display for CertificateError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(file) = &self.file {
            write!(f, "{}: ", file.display())?;
        }
        match &self.fault {
            Fault::Unreadable(error) => {
                write!(f, "cannot be read: {error}; correct path or permissions")
            }
            Fault::NoFile => f.write_str("is no regular file; give the path of a PEM file"),
            Fault::TooLarge => write!(
                f,
                "is larger than {CERTIFICATE_FILE_SIZE_MAX} bytes; \
                 give a file with nothing but the chain or the key"
            ),
            Fault::NoCertificate => {
                f.write_str("has no certificate in it; give the chain in PEM form")
            }
            Fault::NoKey => f.write_str(
                "has no private key in it that can be used; \
                 give it in PEM form and without a password",
            ),
            Fault::BadPem(reason) => write!(f, "is damaged: {reason}; copy it anew"),
            Fault::BadCertificate(reason) => {
                write!(
                    f,
                    "its first certificate cannot be used: {reason}; get a new one"
                )
            }
            Fault::BadKey(reason) => write!(
                f,
                "its key cannot be used: {reason}; \
                 use ECDSA on P-256 or P-384, Ed25519, or RSA of 2048 bits and more"
            ),
            Fault::WrongKey(certificate) => write!(
                f,
                "its key does not belong to the first certificate in {}; \
                 give the two that were made together",
                certificate.display()
            ),
            Fault::NotMade(reason) => write!(
                f,
                "cannot make a certificate: {reason}; give files with tls=2, crt and key"
            ),
        }
    }
}

impl std::error::Error for CertificateError {}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::sync::atomic::{AtomicU32, Ordering};

    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;

    use super::*;

    const RSA_CERTIFICATE: &str = include_str!("../../tests/vectors/tls/rsa-certificate.pem");
    const RSA_KEY: &str = include_str!("../../tests/vectors/tls/rsa-key.pem");

    /// Two files in a directory that goes when it is dropped.
    struct Place {
        directory: PathBuf,
    }

    impl Place {
        fn new(certificate: &str, key: &str) -> Self {
            static COUNT: AtomicU32 = AtomicU32::new(0);
            let number = COUNT.fetch_add(1, Ordering::Relaxed);
            let name = format!("nodepass-certificate-{}-{number}", std::process::id());
            let directory = std::env::temp_dir().join(name);
            fs::create_dir_all(&directory).unwrap();
            let place = Self { directory };
            place.write(certificate, key);
            place
        }

        fn certificate(&self) -> PathBuf {
            self.directory.join("certificate.pem")
        }

        fn key(&self) -> PathBuf {
            self.directory.join("key.pem")
        }

        fn write(&self, certificate: &str, key: &str) {
            fs::write(self.certificate(), certificate).unwrap();
            fs::write(self.key(), key).unwrap();
        }

        fn load(&self) -> Result<Certificates, CertificateError> {
            Certificates::from_files(&self.certificate(), &self.key(), &[])
        }

        /// Returns how loading fails, as the operator reads it.
        fn complaint(&self) -> String {
            self.load().unwrap_err().to_string()
        }
    }

    impl Drop for Place {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.directory);
        }
    }

    struct Made {
        der: Vec<u8>,
        certificate: String,
        key: String,
        /// The key in its own form, which PKCS#8 wraps.
        sec1: String,
    }

    fn make() -> Made {
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).unwrap();
        let parameters = CertificateParams::new([NEUTRAL_NAME.to_owned()]).unwrap();
        let certificate = parameters.self_signed(&key).unwrap();
        let wrapped = key.serialize_der();
        // A sequence that begins with version 1 and an octet string of 32 (RFC 5915 section 3).
        let start = wrapped
            .windows(5)
            .position(|window| window == [2, 1, 1, 4, 32])
            .unwrap();
        Made {
            der: certificate.der().to_vec(),
            certificate: pem("CERTIFICATE", certificate.der()),
            key: pem("PRIVATE KEY", &wrapped),
            sec1: pem("EC PRIVATE KEY", &wrapped[start - 2..]),
        }
    }

    fn pem(label: &str, der: &[u8]) -> String {
        let body = STANDARD.encode(der);
        format!("-----BEGIN {label}-----\n{body}\n-----END {label}-----\n")
    }

    #[test]
    fn a_self_signed_certificate_is_new_each_time_and_has_nothing_to_reload() {
        let certificates = Certificates::self_signed(&[]).unwrap();
        let fingerprint = certificates.current().fingerprint;
        let unchanged = certificates.reload_if_changed().unwrap();
        assert_eq!(unchanged, Reload::Unchanged);
        assert_eq!(certificates.current().fingerprint, fingerprint);
        let other = Certificates::self_signed(&[]).unwrap();
        assert_ne!(other.current().fingerprint, fingerprint);
    }

    #[test]
    fn keys_of_all_kinds_are_read() {
        let made = make();
        let fingerprint = Fingerprint::of_certificate(&made.der);
        for key in [&made.key, &made.sec1] {
            let loaded = Place::new(&made.certificate, key).load().unwrap();
            assert_eq!(loaded.current().fingerprint, fingerprint);
        }
        // PKCS#1, as older programs write it.
        assert!(RSA_KEY.starts_with("-----BEGIN RSA PRIVATE KEY-----"));
        Place::new(RSA_CERTIFICATE, RSA_KEY).load().unwrap();
    }

    #[test]
    fn the_whole_chain_is_kept_and_the_first_certificate_counts() {
        let made = make();
        let chain = format!("{}{RSA_CERTIFICATE}", made.certificate);
        assert_eq!(parse_chain(chain.as_bytes()).unwrap().len(), 2);
        let loaded = Place::new(&chain, &made.key).load().unwrap();
        let fingerprint = Fingerprint::of_certificate(&made.der);
        assert_eq!(loaded.current().fingerprint, fingerprint);
    }

    #[test]
    fn a_changed_file_is_taken_once() {
        let (old, new) = (make(), make());
        let place = Place::new(&old.certificate, &old.key);
        let certificates = place.load().unwrap();
        let reload = || certificates.reload_if_changed().unwrap();
        assert_eq!(reload(), Reload::Unchanged);
        place.write(&new.certificate, &new.key);
        assert_eq!(reload(), Reload::Renewed);
        assert_eq!(
            certificates.current().fingerprint,
            Fingerprint::of_certificate(&new.der)
        );
        assert_eq!(reload(), Reload::Unchanged);
    }

    #[test]
    fn a_broken_change_keeps_the_old_certificate_until_it_is_mended() {
        let (old, new) = (make(), make());
        let place = Place::new(&old.certificate, &old.key);
        let certificates = place.load().unwrap();
        let fingerprint = Fingerprint::of_certificate(&old.der);
        // Half-way through a renewal the key belongs to another certificate.
        place.write(&new.certificate, &old.key);
        let error = certificates.reload_if_changed().unwrap_err().to_string();
        assert!(error.contains("does not belong"), "{error}");
        place.write("nothing", &new.key);
        assert!(certificates.reload_if_changed().is_err());
        fs::remove_file(place.certificate()).unwrap();
        assert!(certificates.reload_if_changed().is_err());
        assert_eq!(certificates.current().fingerprint, fingerprint);
        place.write(&new.certificate, &new.key);
        let renewed = certificates.reload_if_changed().unwrap();
        assert_eq!(renewed, Reload::Renewed);
    }

    #[test]
    fn each_fault_names_its_file_and_what_to_do() {
        let (made, other) = (make(), make());
        let damaged = made.certificate.replace("MII", "M!!");
        let (bad, bad_key) = (pem("CERTIFICATE", &[0; 3]), pem("PRIVATE KEY", &[0; 3]));
        let long = " ".repeat(usize::try_from(CERTIFICATE_FILE_SIZE_MAX).unwrap() + 1);
        let cases = [
            (
                made.certificate.as_str(),
                other.key.as_str(),
                "key.pem",
                "does not belong",
            ),
            ("", &made.key, "certificate.pem", "has no certificate"),
            (
                &made.key,
                &made.key,
                "certificate.pem",
                "has no certificate",
            ),
            (&made.certificate, "", "key.pem", "has no private key"),
            (
                &made.certificate,
                &made.certificate,
                "key.pem",
                "has no private key",
            ),
            (&damaged, &made.key, "certificate.pem", "is damaged"),
            (&bad, &made.key, "certificate.pem", "cannot be used"),
            (&made.certificate, &bad_key, "key.pem", "cannot be used"),
            (&long, &made.key, "certificate.pem", "is larger than"),
        ];
        for (certificate, key, file, reason) in cases {
            let place = Place::new(certificate, key);
            let complaint = place.complaint();
            assert!(complaint.contains(file), "{complaint}");
            assert!(complaint.contains(reason), "{complaint}");
            assert!(complaint.contains("; "), "{complaint}");
        }
    }

    #[test]
    fn what_is_no_file_is_refused_without_waiting() {
        let made = make();
        let place = Place::new(&made.certificate, &made.key);
        fs::remove_file(place.key()).unwrap();
        assert!(place.complaint().contains("cannot be read"));
        fs::create_dir(place.key()).unwrap();
        assert!(place.complaint().contains("no regular file"));
        fs::remove_dir(place.key()).unwrap();
        // Opening a pipe would wait for somebody to write to it.
        let mode = rustix::fs::Mode::RWXU;
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, place.key(), kind, mode, 0).unwrap();
        assert!(place.complaint().contains("no regular file"));
    }
}
