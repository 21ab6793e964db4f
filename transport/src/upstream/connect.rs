//! Connections: pools, TLS, HTTP versions.
//!
//! Three pools, because an idle connection's worth differs. Without TLS a connection costs one round trip in the same
//! building, and common model servers close theirs after 5 idle seconds: we close first, so that no request meets a
//! connection the server is just closing. With TLS it costs several round trips to somebody else's cloud: we keep it.

use core::error::Error as _;
use core::time::Duration;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Builder, Client as Pool, Error as PoolError};
use hyper_util::rt::{TokioExecutor, TokioTimer};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};

use control::outcome::Failure;

use super::failed::Failed;
use super::target::Target;
use super::wire::Workers;
use crate::seam::net::Connector;
use crate::seam::{Network, WallClock};
use crate::tls::{TlsError, chain as chain_of, private_key};

/// How connections are made and kept. Timeouts of a single call are its [`Limits`](super::Limits).
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// A PEM file of certificate authorities to trust beside the public ones.
    pub extra_ca: Option<PathBuf>,
    /// What is shown to servers that ask who calls: a certificate chain and its private key, PEM files.
    pub own: Option<(PathBuf, PathBuf)>,
    /// How long an idle connection without TLS is kept.
    pub idle_plain: Duration,
    /// How long an idle connection with TLS, or of HTTP/2 by prior knowledge, is kept.
    pub idle_tls: Duration,
    /// How many idle connections are kept for each host.
    pub idle_per_host_max: usize,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            extra_ca: None,
            own: None,
            // Below the 5 s after which uvicorn (vLLM, SGLang) closes an idle connection.
            idle_plain: Duration::from_secs(4),
            // Below the 75 s of nginx and the 60 s of most cloud load balancers.
            idle_tls: Duration::from_secs(50),
            // A burst of this many streams on one replica is a large one; more would only hold file descriptors.
            idle_per_host_max: 128,
        }
    }
}

/// Why a [`Client`] could not be made.
#[derive(Debug, thiserror::Error)]
pub enum SetupError {
    /// The file of extra authorities cannot be read as PEM.
    #[error("cannot read the certificates in {path}: {why}")]
    ExtraCa {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Our own certificate, or its key, cannot be read.
    #[error("{0}")]
    Own(#[from] TlsError),
    /// The TLS library refused its set-up.
    #[error("cannot set up TLS: {0}")]
    Tls(#[from] rustls::Error),
}

/// Calls endpoints, over pooled connections. Cheap to clone; the pools are shared.
#[derive(Clone, Debug)]
pub struct Client {
    plain: Pool<Connector, Full<Bytes>>,
    tls: Pool<HttpsConnector<Connector>, Full<Bytes>>,
    http2: Pool<HttpsConnector<Connector>, Full<Bytes>>,
    pub(super) workers: Workers,
    pub(super) wall: WallClock,
}

impl Client {
    /// A client without connections yet.
    ///
    /// # Errors
    /// [`SetupError`] where the extra authorities cannot be read.
    pub fn new(settings: &Settings) -> Result<Self, SetupError> {
        Self::over(settings, &Network::Real)
    }

    /// The same over a network that may be a simulated one.
    ///
    /// # Errors
    /// As for [`Client::new`].
    pub fn over(settings: &Settings, network: &Network) -> Result<Self, SetupError> {
        let connector = || connector(network);
        let roots = Arc::new(roots(settings)?);
        let tls = tls_config(&roots, settings.own.as_ref())?;
        let any_version = HttpsConnectorBuilder::new()
            .with_tls_config(tls.clone())
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(connector());
        let only_http2 = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http2()
            .wrap_connector(connector());
        Ok(Self {
            workers: Workers::new(only_http2.clone(), network.clone(), roots),
            wall: WallClock::System,
            plain: pool(settings, settings.idle_plain).build(connector()),
            tls: pool(settings, settings.idle_tls).build(any_version),
            http2: pool(settings, settings.idle_tls).http2_only(true).build(only_http2),
        })
    }

    /// The same with another calendar: answers that are put together here are dated.
    #[must_use]
    pub fn dated(mut self, wall: WallClock) -> Self {
        self.wall = wall;
        self
    }

    /// Sends a request on a pooled or a new connection and waits for the answer's head, however long it takes.
    pub(super) async fn send(
        &self,
        target: &Target,
        request: Request<Full<Bytes>>,
    ) -> Result<Response<Incoming>, Failed> {
        let answer = if target.http2_only {
            self.http2.request(request)
        } else if target.base_url.is_tls() {
            self.tls.request(request)
        } else {
            self.plain.request(request)
        };
        answer.await.map_err(|error| no_head(&error))
    }
}

fn connector(network: &Network) -> Connector {
    match network {
        Network::Real => Connector::Real(tcp()),
        Network::Simulated(dial) => Connector::Simulated(Arc::clone(dial)),
    }
}

/// Connections of HTTP/2 over TLS that believe whom `tls` believes.
pub(super) fn believing(tls: rustls::ClientConfig, network: &Network) -> HttpsConnector<Connector> {
    let builder = HttpsConnectorBuilder::new().with_tls_config(tls).https_only().enable_http2();
    builder.wrap_connector(connector(network))
}

fn no_head(error: &PoolError) -> Failed {
    let failure = if error.is_connect() {
        Failure::Connect
    } else if error
        .source()
        .and_then(|source| source.downcast_ref::<hyper::Error>())
        .is_some_and(hyper::Error::is_parse)
    {
        Failure::Garbage
    } else {
        Failure::ConnectionLost
    };
    Failed::new(failure, chain(error))
}

/// The causes of a connection's failure, innermost last. These come from sockets and libraries, never from a peer's text.
pub(super) fn chain(error: &dyn core::error::Error) -> String {
    let mut text = String::new();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            if !text.is_empty() {
                text.push_str(": ");
            }
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    if text.is_empty() { error.to_string() } else { text }
}

fn tcp() -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    // So that a peer that vanished without a word is noticed on an idle connection, before a request is.
    tcp.set_keepalive(Some(Duration::from_secs(30)));
    // A call waits no longer than its own limit; this ends a connect that nobody waits for any more.
    tcp.set_connect_timeout(Some(Duration::from_secs(30)));
    tcp
}

fn pool(settings: &Settings, idle: Duration) -> Builder {
    let mut builder = Pool::builder(TokioExecutor::new());
    builder
        .pool_timer(TokioTimer::new())
        .timer(TokioTimer::new())
        .pool_idle_timeout(idle)
        .pool_max_idle_per_host(settings.idle_per_host_max)
        // One dead HTTP/2 connection would otherwise hold all its streams until each one's own timeout.
        .http2_keep_alive_interval(Duration::from_secs(10))
        .http2_keep_alive_timeout(Duration::from_secs(5));
    builder
}

fn roots(settings: &Settings) -> Result<RootCertStore, SetupError> {
    let mut roots = RootCertStore { roots: webpki_roots::TLS_SERVER_ROOTS.to_vec() };
    if let Some(path) = &settings.extra_ca {
        let bad = |why: String| SetupError::ExtraCa { path: path.clone(), why };
        let certificates = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect::<Result<Vec<_>, _>>)
            .map_err(|error| bad(error.to_string()))?;
        if certificates.is_empty() {
            return Err(bad("there is none in it".to_owned()));
        }
        for certificate in certificates {
            roots.add(certificate).map_err(|error| bad(error.to_string()))?;
        }
    }
    Ok(roots)
}

fn tls_config(
    roots: &Arc<RootCertStore>,
    own: Option<&(PathBuf, PathBuf)>,
) -> Result<ClientConfig, SetupError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_root_certificates(Arc::clone(roots));
    match own {
        None => Ok(builder.with_no_client_auth()),
        Some((cert, key)) => Ok(builder.with_client_auth_cert(chain_of(cert)?, private_key(key)?)?),
    }
}
