//! A port for callers over gRPC, and what every service on one has beside it: health, reflection, bounds, a drain.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::service::Routes;
use tonic::transport::Server;
use tonic_health::ServingStatus;

use crate::config::{GrpcTls, Tls};
use crate::tls::{TlsError, asking_config};
use crate::worker::{Incoming, bounded};

/// How often health looks at readiness.
const HEALTH_EVERY: Duration = Duration::from_millis(250);

/// Why a gRPC server stopped serving.
#[derive(Debug, thiserror::Error)]
pub enum RpcError {
    /// What reflection tells cannot be read. A mistake of the build.
    #[error("the service's description is unreadable: {0}")]
    Description(#[from] tonic_reflection::server::Error),
    /// The server failed as a whole.
    #[error("the gRPC server failed: {0}")]
    Server(#[from] tonic::transport::Error),
}

/// Where callers over gRPC come in.
pub struct RpcDoor {
    incoming: Incoming,
    tls: Option<TlsAcceptor>,
}

/// How such a port shakes hands.
pub struct RpcTls(TlsAcceptor);

impl RpcTls {
    /// Reads certificate, key and, where callers have to show a certificate, whom those are of.
    ///
    /// # Errors
    /// Where a file cannot be read, or certificate and key are no pair.
    pub fn read(tls: &GrpcTls) -> Result<Self, TlsError> {
        let GrpcTls { own: Tls { cert, key }, client_ca } = tls;
        let mut config = asking_config(cert, key, client_ca.as_deref())?;
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Self(TlsAcceptor::from(Arc::new(config))))
    }
}

impl RpcDoor {
    /// Without TLS.
    #[must_use]
    pub fn plain(incoming: Incoming) -> Self {
        Self { incoming, tls: None }
    }

    /// With TLS, and callers that have to show a certificate where the configuration says so.
    ///
    /// # Errors
    /// Where a file cannot be read, or certificate and key are no pair.
    pub fn with_tls(incoming: Incoming, tls: &GrpcTls) -> Result<Self, TlsError> {
        Ok(Self::secured(incoming, RpcTls::read(tls)?))
    }

    /// The same with what was read before.
    #[must_use]
    pub fn secured(incoming: Incoming, tls: RpcTls) -> Self {
        Self { incoming, tls: Some(tls.0) }
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the socket has no address any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.incoming.local_addr()
    }
}

/// Serves `services`, known by their names, until `stopping` resolves; calls under way may then go on for `grace`.
pub(crate) async fn serve_routes(
    door: RpcDoor,
    (names, services): (Vec<&'static str>, Routes),
    ready: impl Fn() -> bool + Send + 'static,
    stopping: impl Future<Output = ()>,
    grace: Duration,
) -> Result<(), RpcError> {
    let (health, health_service) = tonic_health::server::health_reporter();
    let reflection = tonic_reflection::server::Builder::configure()
        .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
        .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
        .build_v1()?;
    let _watching = AbortOnDropHandle::new(tokio::spawn(async move {
        loop {
            let status = match ready() {
                true => ServingStatus::Serving,
                false => ServingStatus::NotServing,
            };
            health.set_service_status("", status).await;
            for name in &names {
                health.set_service_status(*name, status).await;
            }
            tokio::time::sleep(HEALTH_EVERY).await;
        }
    }));
    let closing = CancellationToken::new();
    let mut server = Box::pin(
        bounded(Server::builder())
            .add_routes(services.add_service(health_service).add_service(reflection))
            .serve_with_incoming_shutdown(
                door.incoming.connections(door.tls),
                closing.clone().cancelled_owned(),
            ),
    );
    tokio::select! {
        ended = &mut server => return ended.map_err(Into::into),
        () = stopping => closing.cancel(),
    }
    // What still runs after the grace ends with the process.
    tokio::time::timeout(grace, server).await.unwrap_or(Ok(())).map_err(Into::into)
}
