//! The server's certificate: files of the user's, or one that it makes for itself at its first start.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use data_encoding::HEXUPPER;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::{self, PemObject};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig, crypto};
use sha2::{Digest, Sha256};

use crate::server::state_dir::StateDir;

/// What clients need to know it.
const OWN_CERTIFICATE: &str = "server.pem";
const OWN_KEY: &str = "server.key";

/// How the server proves who it is, and whom it lets in.
#[derive(Clone, Debug, Default)]
pub struct TlsFiles {
    /// The certificate, followed by those that lead to its authority, and its private key (PEM). The server makes its own if
    /// there are none.
    pub own: Option<(PathBuf, PathBuf)>,
    /// Clients may show a certificate that this authority has signed (PEM).
    pub client_authority: Option<PathBuf>,
}

/// Why there is no TLS.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file that cannot be read, or is no PEM.
    #[error("cannot read certificates from `{}`", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: pem::Error,
    },
    /// A file that cannot be written.
    #[error("cannot write `{}`", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// A certificate that cannot be made.
    #[error("cannot make a certificate")]
    Make(#[from] rcgen::Error),
    /// Certificates and keys that do not belong together, or are of no use.
    #[error("TLS refuses the certificates")]
    Refused(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// The server's side of TLS, and how clients can know it.
pub(crate) struct Identity {
    pub(crate) config: Arc<ServerConfig>,
    /// SHA-256 of the certificate.
    pub(crate) fingerprint: String,
    /// Its file.
    pub(crate) certificate: PathBuf,
    /// Whether the server made it itself: clients must be given the file.
    pub(crate) is_own: bool,
}

impl Identity {
    /// `names`: under which clients call the server, for a certificate that is made.
    pub(crate) fn load(
        files: &TlsFiles,
        dir: &StateDir,
        names: &[String],
    ) -> Result<Self, TlsError> {
        let (certificate, key) = match &files.own {
            Some((certificate, key)) => (certificate.clone(), key.clone()),
            None => own(dir, names)?,
        };
        let read = |path: &Path| {
            let path = path.to_owned();
            move |source| TlsError::Read { path, source }
        };
        let chain = certificates(&certificate)?;
        let key_der = PrivateKeyDer::from_pem_file(&key).map_err(read(&key))?;
        let fingerprint = HEXUPPER.encode(&Sha256::digest(&chain[0]));
        let provider = Arc::new(crypto::aws_lc_rs::default_provider());
        let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_safe_default_protocol_versions()
            .map_err(refused)?;
        let builder = match &files.client_authority {
            None => builder.with_no_client_auth(),
            Some(path) => {
                let mut roots = RootCertStore::empty();
                for authority in certificates(path)? {
                    roots.add(authority).map_err(refused)?;
                }
                let verifier =
                    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider)
                        .allow_unauthenticated()
                        .build()
                        .map_err(refused)?;
                builder.with_client_cert_verifier(verifier)
            }
        };
        let mut config = builder.with_single_cert(chain, key_der).map_err(refused)?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Self {
            config: Arc::new(config),
            fingerprint,
            certificate,
            is_own: files.own.is_none(),
        })
    }
}

fn refused(error: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Refused(Box::new(error))
}

/// At least one.
fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |source| TlsError::Read {
        path: path.to_owned(),
        source,
    };
    let all = CertificateDer::pem_file_iter(path).map_err(failed)?;
    let all: Vec<_> = all.collect::<Result<_, _>>().map_err(failed)?;
    match all.is_empty() {
        true => Err(failed(pem::Error::NoItemsFound)),
        false => Ok(all),
    }
}

/// The server's own certificate and key, made if they are missing.
fn own(dir: &StateDir, names: &[String]) -> Result<(PathBuf, PathBuf), TlsError> {
    let (certificate, key) = (dir.path(OWN_CERTIFICATE), dir.path(OWN_KEY));
    if is_made(&certificate) && is_made(&key) {
        return Ok((certificate, key));
    }
    let pair = KeyPair::generate()?;
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name = rcgen::DistinguishedName::new();
    params
        .distinguished_name
        .push(rcgen::DnType::CommonName, "standin target");
    let made = params.self_signed(&pair)?;
    let failed = |name| {
        let path = dir.path(name);
        move |source| TlsError::Write { path, source }
    };
    let locked = dir.lock().map_err(failed("lock"))?;
    // Each whole or not at all, the key first: a certificate without its key is made anew.
    for (name, text) in [
        (OWN_KEY, pair.serialize_pem()),
        (OWN_CERTIFICATE, made.pem()),
    ] {
        let written = dir.write(&locked, name, text.as_bytes());
        written.map_err(failed(name))?;
    }
    Ok((certificate, key))
}

/// An empty file is what a build before this one left, where it was killed at its first start.
fn is_made(path: &Path) -> bool {
    fs::metadata(path).is_ok_and(|found| found.len() > 0)
}

/// The common name of a certificate that TLS has checked; none if it has none, or several.
pub(crate) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
    let mut names = parsed.subject().iter_common_name();
    let name = names.next()?.as_str().ok()?.to_owned();
    names.next().is_none().then_some(name)
}
