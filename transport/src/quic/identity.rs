//! Who an end is: a certificate and its key.

use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use hmac::{Hmac, KeyInit as _, Mac as _};
use quinn::crypto::rustls::QuicServerConfig;
use quinn::crypto::{CryptoError, HmacKey};
use quinn::{ConnectionId, ConnectionIdGenerator, EndpointConfig, ServerConfig};
use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use rustls::version;
use sha2::{Digest as _, Sha256};

use super::{ALPN, Pin};
use crate::tls::{TlsError, chain, private_key, vouched_by};

/// A certificate chain with its private key. `Debug` shows the fingerprint alone.
#[derive(Clone)]
pub struct Identity {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: Arc<PrivateKeyDer<'static>>,
}

/// Why there is no [`Identity`], or why it cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// A file of it, or of the authorities.
    #[error("{0}")]
    File(#[from] TlsError),
    /// One of two files is there.
    #[error(
        "{} is there and {} is not: give both, or neither to have both made",
        there.display(), missing.display()
    )]
    Half {
        /// Which.
        there: PathBuf,
        /// And which is not.
        missing: PathBuf,
    },
    /// A file that was made cannot be written.
    #[error("cannot write {}: {source}", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// No certificate can be made.
    #[error("cannot make a certificate: {0}")]
    Made(#[from] rcgen::Error),
    /// Certificate and key are of no use.
    #[error("the certificate and its key cannot be used: {0}")]
    Unusable(String),
}

impl std::fmt::Debug for Identity {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Identity({})", self.pin())
    }
}

impl Identity {
    /// Of PEM files.
    ///
    /// # Errors
    /// Where one cannot be read.
    pub fn read(cert: &Path, key: &Path) -> Result<Self, TlsError> {
        Ok(Self { chain: chain(cert)?, key: Arc::new(private_key(key)?) })
    }

    /// Of PEM text.
    ///
    /// # Errors
    /// Where there is no certificate in it, or no key.
    pub fn of_pem(cert: &[u8], key: &[u8]) -> Result<Self, pem::Error> {
        let chain: Vec<_> = CertificateDer::pem_slice_iter(cert).collect::<Result<_, _>>()?;
        if chain.is_empty() {
            return Err(pem::Error::NoItemsFound);
        }
        Ok(Self { chain, key: Arc::new(PrivateKeyDer::from_pem_slice(key)?) })
    }

    /// A new one that signs itself. Whoever is to trust it must know its fingerprint.
    ///
    /// # Errors
    /// Where the machine gives no randomness.
    pub fn made() -> Result<Self, IdentityError> {
        Ok(Self::pem()?.0)
    }

    /// Of PEM files; where neither is there, both are made, so that the fingerprint stays the same from then on.
    ///
    /// # Errors
    /// Where one cannot be read or written, or only one is there.
    pub fn read_or_made(cert: &Path, key: &Path) -> Result<Self, IdentityError> {
        match (cert.exists(), key.exists()) {
            (true, true) => Ok(Self::read(cert, key)?),
            (false, false) => {
                let (made, cert_pem, key_pem) = Self::pem()?;
                write(key, &key_pem, 0o600)?;
                write(cert, &cert_pem, 0o644)?;
                Ok(made)
            }
            (cert_there, _) => {
                let (there, missing) = if cert_there { (cert, key) } else { (key, cert) };
                Err(IdentityError::Half { there: there.to_owned(), missing: missing.to_owned() })
            }
        }
    }

    fn pem() -> Result<(Self, String, String), IdentityError> {
        let signed = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()])?;
        let key = PrivatePkcs8KeyDer::from(signed.signing_key.serialize_der());
        let own = Self { chain: vec![signed.cert.der().clone()], key: Arc::new(key.into()) };
        Ok((own, signed.cert.pem(), signed.signing_key.serialize_pem()))
    }

    /// The fingerprint by which it can be trusted.
    #[must_use]
    pub fn pin(&self) -> Pin {
        Pin::of(self.chain.first().map_or(&[], |own| own.as_ref()))
    }

    /// A server's configuration: TLS 1.3, no early data, clients with a certificate of these authorities where some are
    /// given.
    pub(crate) fn server(&self, clients: Option<&Path>) -> Result<ServerConfig, IdentityError> {
        let unusable = |error: &dyn std::error::Error| IdentityError::Unusable(error.to_string());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])
            .map_err(|error| unusable(&error))?;
        let builder = match clients {
            None => builder.with_no_client_auth(),
            Some(path) => builder.with_client_cert_verifier(vouched_by(path, provider)?),
        };
        let mut tls = builder
            .with_single_cert(self.chain.clone(), self.key.clone_key())
            .map_err(|error| unusable(&error))?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        // Early data could be replayed by whoever recorded it.
        tls.max_early_data_size = 0;
        let tls = QuicServerConfig::try_from(tls).map_err(|error| unusable(&error))?;
        let mut config = ServerConfig::with_crypto(Arc::new(tls));
        // Callers do not move; whoever sends from elsewhere is somebody else.
        config.migration(false);
        Ok(config)
    }

    /// What outlives a restart with the same key: so a caller whose worker was restarted is told at once that its
    /// connection is gone, instead of waiting for the silence to be long enough.
    pub(crate) fn endpoint(&self) -> EndpointConfig {
        let mut digest = Sha256::new();
        digest.update(b"pointsman quic reset");
        digest.update(self.key.secret_der());
        let mut config = EndpointConfig::new(Arc::new(ResetKey(digest.finalize().into())));
        config.cid_generator(|| Box::new(Ids));
        config
    }
}

fn write(path: &Path, text: &str, mode: u32) -> Result<(), IdentityError> {
    let open = std::fs::OpenOptions::new().write(true).create_new(true).mode(mode).open(path);
    let written = open.and_then(|mut file| file.write_all(text.as_bytes()));
    written.map_err(|source| IdentityError::Write { path: path.to_owned(), source })
}

/// Connection ids that are nothing but random. The library's own can tell those of another process and ignores their
/// packets; these must be answered with a reset.
struct Ids;

impl ConnectionIdGenerator for Ids {
    fn generate_cid(&mut self) -> ConnectionId {
        let mut bytes = [0; 8];
        getrandom::fill(&mut bytes).expect("the machine has randomness: TLS has used it");
        ConnectionId::new(&bytes)
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<core::time::Duration> {
        None
    }
}

/// Signs the tokens by which a connection is reset.
struct ResetKey([u8; 32]);

impl ResetKey {
    fn mac(&self, data: &[u8]) -> Hmac<Sha256> {
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).expect("HMAC takes any length");
        mac.update(data);
        mac
    }
}

impl HmacKey for ResetKey {
    fn sign(&self, data: &[u8], signature_out: &mut [u8]) {
        signature_out.copy_from_slice(&self.mac(data).finalize().into_bytes());
    }

    fn signature_len(&self) -> usize {
        32
    }

    fn verify(&self, data: &[u8], signature: &[u8]) -> Result<(), CryptoError> {
        self.mac(data).verify_slice(signature).map_err(|_| CryptoError)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use std::os::unix::fs::PermissionsExt as _;

    use super::*;

    #[test]
    fn files_that_are_not_there_are_made_once_and_the_fingerprint_stays() {
        let dir = tempfile::tempdir().unwrap();
        let (cert, key) = (dir.path().join("a.crt"), dir.path().join("a.key"));
        let made = Identity::read_or_made(&cert, &key).unwrap();
        assert_eq!(key.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(Identity::read_or_made(&cert, &key).unwrap().pin(), made.pin());
        assert_ne!(Identity::made().unwrap().pin(), made.pin());
        std::fs::remove_file(&key).unwrap();
        let half = Identity::read_or_made(&cert, &key).unwrap_err().to_string();
        assert!(half.contains("a.key is not"), "{half}");
        assert!(!format!("{made:?}").contains("PRIVATE"), "{made:?}");
    }

    #[test]
    fn a_key_of_another_certificate_is_refused() {
        let (one, other) = (Identity::made().unwrap(), Identity::made().unwrap());
        let mixed = Identity { chain: one.chain, key: other.key };
        assert!(matches!(mixed.server(None), Err(IdentityError::Unusable(_))));
    }
}
