//! Whom a caller believes, and what it shows of itself.

use core::fmt;
use core::str::FromStr;
use std::path::Path;
use std::sync::Arc;

use quinn::ClientConfig;
use quinn::crypto::rustls::QuicClientConfig;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{DigitallySignedStruct, Error, RootCertStore, SignatureScheme, version};
use sha2::{Digest as _, Sha256};

use super::{ALPN, Identity};
use crate::tls::{TlsError, chain};

/// The SHA-256 of a certificate (its DER form): `sha256:` and 64 hexadecimal digits.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Pin([u8; 32]);

/// A text is no [`Pin`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "a fingerprint is sha256: and 64 hexadecimal digits, as the worker prints it when it starts"
)]
pub struct BadPin;

impl Pin {
    pub(super) fn of(certificate: &[u8]) -> Self {
        Self(Sha256::digest(certificate).into())
    }
}

impl FromStr for Pin {
    type Err = BadPin;

    /// With or without `sha256:`, in either case, with or without colons between the bytes.
    fn from_str(text: &str) -> Result<Self, BadPin> {
        let text = text.trim().to_ascii_lowercase();
        let digits: String = text.strip_prefix("sha256:").unwrap_or(&text).split(':').collect();
        if digits.len() != 64 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Err(BadPin);
        }
        let mut bytes = [0; 32];
        for (at, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&digits[2 * at..2 * at + 2], 16).map_err(|_| BadPin)?;
        }
        Ok(Self(bytes))
    }
}

impl fmt::Display for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Pin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// Whom a caller of our own wire believes, over QUIC or TLS. By default: whoever a public authority vouches for.
#[derive(Clone, Debug, Default)]
pub struct Trust {
    believes: Believes,
    shows: Option<Identity>,
}

#[derive(Clone, Debug, Default)]
enum Believes {
    /// The authorities that everybody believes.
    #[default]
    Public,
    /// These authorities, of a file.
    Authorities(Vec<CertificateDer<'static>>),
    /// This one certificate, whoever signed it and whatever name is in it.
    Pinned(Pin),
}

impl Trust {
    /// In this one certificate.
    #[must_use]
    pub fn pinned(pin: Pin) -> Self {
        Self { believes: Believes::Pinned(pin), shows: None }
    }

    /// In the authorities of a PEM file.
    ///
    /// # Errors
    /// Where it cannot be read.
    pub fn authorities(ca: &Path) -> Result<Self, TlsError> {
        Ok(Self { believes: Believes::Authorities(chain(ca)?), shows: None })
    }

    /// The same, to a worker that asks who calls.
    #[must_use]
    pub fn showing(mut self, own: Identity) -> Self {
        self.shows = Some(own);
        self
    }

    /// Differs where anything of it does.
    pub(crate) fn mark(&self) -> String {
        let believes = match &self.believes {
            Believes::Public => "public".to_owned(),
            Believes::Pinned(pin) => pin.to_string(),
            Believes::Authorities(known) => {
                Pin::of(&known.iter().flat_map(|one| one.to_vec()).collect::<Vec<u8>>()).to_string()
            }
        };
        let shows = self.shows.as_ref().map(|own| own.pin().to_string()).unwrap_or_default();
        format!("{believes} {shows}")
    }

    /// For QUIC, without early data.
    pub(crate) fn client(&self, public: &Arc<RootCertStore>) -> Result<ClientConfig, Error> {
        let mut tls = self.tls(public)?;
        tls.alpn_protocols = vec![ALPN.to_vec()];
        let quic = QuicClientConfig::try_from(tls)
            .map_err(|_| Error::General("no cipher suite that QUIC needs".to_owned()))?;
        Ok(ClientConfig::new(Arc::new(quic)))
    }

    /// TLS 1.3 without early data.
    pub(crate) fn tls(&self, public: &Arc<RootCertStore>) -> Result<rustls::ClientConfig, Error> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&version::TLS13])?;
        let builder = match &self.believes {
            Believes::Public => builder.with_root_certificates(Arc::clone(public)),
            Believes::Authorities(known) => {
                let mut roots = RootCertStore::empty();
                known.iter().try_for_each(|authority| roots.add(authority.clone()))?;
                builder.with_root_certificates(roots)
            }
            Believes::Pinned(pin) => {
                let pinned = Pinned { pin: *pin, provider };
                builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
            }
        };
        let mut tls = match &self.shows {
            None => builder.with_no_client_auth(),
            Some(own) => builder.with_client_auth_cert(own.chain.clone(), own.key.clone_key())?,
        };
        tls.enable_early_data = false;
        Ok(tls)
    }
}

/// Believes one certificate. That its holder has the key is proven by the handshake's signature, as ever.
#[derive(Debug)]
struct Pinned {
    pin: Pin,
    provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Pinned {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _server_name: &ServerName<'_>,
        _ocsp_response: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let shown = Pin::of(end_entity);
        if shown != self.pin {
            return Err(Error::General(format!(
                "the peer shows the certificate {shown}, and {} is pinned",
                self.pin
            )));
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _message: &[u8],
        _cert: &CertificateDer<'_>,
        _signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        Err(Error::General("only TLS 1.3 is spoken here".to_owned()))
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let known = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signature, known)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use super::*;

    #[test]
    fn a_fingerprint_is_read_as_people_have_it_and_shown_in_one_form() {
        let plain = "0123456789abcdef".repeat(4);
        let shown = format!("sha256:{plain}");
        let bytes: Vec<&str> = (0..32).map(|at| &plain[2 * at..2 * at + 2]).collect();
        for text in
            [plain.clone(), shown.clone(), bytes.join(":").to_uppercase(), format!(" {shown}\n")]
        {
            assert_eq!(text.parse::<Pin>().unwrap().to_string(), shown, "{text}");
        }
        for text in
            ["", "sha256:", &plain[1..], &format!("{plain}0"), &"\u{e9}".repeat(32), "sha1:00"]
        {
            assert_eq!(text.parse::<Pin>(), Err(BadPin), "{text}");
        }
    }

    #[test]
    fn what_is_believed_or_shown_differs_has_another_mark() {
        let (one, other) = (Identity::made().unwrap(), Identity::made().unwrap());
        let marks = [
            Trust::default(),
            Trust::pinned(one.pin()),
            Trust::pinned(other.pin()),
            Trust::pinned(one.pin()).showing(other),
        ]
        .map(|trust| trust.mark());
        assert_eq!(marks.iter().collect::<std::collections::BTreeSet<_>>().len(), 4, "{marks:?}");
    }
}
