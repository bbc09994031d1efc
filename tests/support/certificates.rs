//! Certificates made for one test, in files as a server and a client read them.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};
use std::{env, fs};

use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};

/// An authority of its own, and a server's certificate from it. Dropping it removes the files.
///
/// The certificate is signed by an intermediate one, which only the server has: a client that
/// knows the root accepts it when it is served with its whole chain.
pub struct Certificates {
    folder: PathBuf,
}

impl Certificates {
    /// Makes a certificate for `names`, DNS names and IP addresses.
    pub fn for_names(names: &[String]) -> Self {
        static MADE: AtomicU32 = AtomicU32::new(0);
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("nodepass-tests-{}-{number}", std::process::id());
        let folder = env::temp_dir().join(name);
        fs::create_dir_all(&folder).unwrap();
        let certificates = Self { folder };
        certificates.write(names);
        certificates
    }

    fn write(&self, names: &[String]) {
        let root_key = KeyPair::generate().unwrap();
        let root = authority_params("root of the test");
        let root_pem = root.self_signed(&root_key).unwrap().pem();
        let root = Issuer::new(root, root_key);

        let middle_key = KeyPair::generate().unwrap();
        let middle = authority_params("intermediate of the test");
        let middle_pem = middle.signed_by(&middle_key, &root).unwrap().pem();
        let middle = Issuer::new(middle, middle_key);

        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(names).unwrap();
        name_subject(&mut params, "server of the test");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let pem = params.signed_by(&key, &middle).unwrap().pem();

        fs::write(self.roots(), root_pem).unwrap();
        fs::write(self.chain(), pem + &middle_pem).unwrap();
        fs::write(self.key(), key.serialize_pem()).unwrap();
    }

    /// What a client has to trust: for `SSL_CERT_FILE`.
    pub fn roots(&self) -> PathBuf {
        self.file("roots.pem")
    }

    /// For option `crt`.
    pub fn chain(&self) -> PathBuf {
        self.file("chain.pem")
    }

    /// For option `key`.
    pub fn key(&self) -> PathBuf {
        self.file("key.pem")
    }

    fn file(&self, name: &str) -> PathBuf {
        Path::join(&self.folder, name)
    }
}

impl Drop for Certificates {
    fn drop(&mut self) {
        // What cannot be removed is in the folder for passing files anyway.
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn authority_params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    name_subject(&mut params, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign];
    params
}

/// Each its own: a verifier finds the issuer by its name.
fn name_subject(params: &mut CertificateParams, name: &str) {
    params.distinguished_name.push(DnType::CommonName, name);
}
