//! The gRPC front: `ChatService`, for clients and for the gateway role.
//!
//! Two fronts that each judge keys, bodies, limits and refusals would come to differ, and their callers would find out in
//! production. So this one judges nothing: a call becomes the request that the HTTP front takes, goes through the same
//! routes, and what comes back is told in gRPC's words ([`status`]), event by event ([`pieces`]). What HTTP would have
//! answered stands beside a status, so that the gateway role can pass it on as it was worded.
//!
//! `QuotaService` ([`quota`]) is served beside it where the ledger is asked, that is everywhere but in the gateway role.
//! Health and reflection too. `Check` follows `/ready`.

mod pieces;
mod quota;
pub(crate) mod status;

use std::io;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::stream::BoxStream;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{HeaderMap, Request as HttpRequest, Response as HttpResponse};
use proto::chat::v1::chat_service_server::{ChatService, ChatServiceServer};
use proto::chat::v1::{
    ListModelsRequest, ListModelsResponse, Model as ModelSaid, StreamChatRequest,
    StreamChatResponse,
};
use proto::quota::v1::quota_service_server::QuotaServiceServer;
use rustls::pki_types::pem;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::metadata::MetadataMap;
use tonic::transport::{Certificate, Identity, Server, ServerTlsConfig};
use tonic::{Request, Response, Status};
use tonic_health::ServingStatus;
use tower::ServiceExt;

use super::error::ApiError;
use super::{Front, Shared, head, routes};
use crate::config::{GrpcTls, Tls};
use crate::exchange::Chat;
use crate::tls::{TlsError, chain, server_config};
use crate::translate;
use crate::worker::{Incoming, bounded};

/// The name by which health is asked for.
const SERVICE: &str = "pointsman.chat.v1.ChatService";
/// The same of the ledger.
const QUOTA_SERVICE: &str = "pointsman.quota.v1.QuotaService";
/// How often health looks at readiness.
const HEALTH_EVERY: Duration = Duration::from_millis(250);

/// Why a gRPC front stopped serving.
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
    tls: Option<ServerTlsConfig>,
}

/// A caller that connects and does not speak TLS is let go.
const HANDSHAKE_WITHIN: Duration = Duration::from_secs(10);

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
        let GrpcTls { own: Tls { cert, key }, client_ca } = tls;
        // What is wrong with them is found out here, in words.
        server_config(cert, key)?;
        let text = |path: &Path, what| {
            let bad = |error| TlsError::File {
                what,
                path: path.to_owned(),
                source: pem::Error::Io(error),
            };
            std::fs::read(path).map_err(bad)
        };
        let identity = Identity::from_pem(text(cert, "certificate")?, text(key, "private key")?);
        let mut config = ServerTlsConfig::new().identity(identity).timeout(HANDSHAKE_WITHIN);
        if let Some(authorities) = client_ca {
            chain(authorities)?;
            let known = Certificate::from_pem(text(authorities, "certificate")?);
            config = config.client_ca_root(known);
        }
        Ok(Self { incoming, tls: Some(config) })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// Where the socket has no address any more.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        self.incoming.local_addr()
    }
}

impl<C: Chat> Front<C> {
    /// Serves `ChatService`, and `QuotaService` where there is a till, on a port until `stopping` resolves; calls under way may then go on for `grace`.
    ///
    /// # Errors
    /// See [`RpcError`].
    pub async fn serve_rpc(
        &self,
        door: RpcDoor,
        stopping: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), RpcError> {
        let shared = Arc::clone(&self.shared);
        let (health, health_service) = tonic_health::server::health_reporter();
        let chat = Rpc { router: routes::router(Arc::clone(&shared)), shared: Arc::clone(&shared) };
        let chat = ChatServiceServer::new(chat).max_decoding_message_size(shared.limits.body_max);
        let quota = shared.till.clone().map(|till| {
            QuotaServiceServer::new(quota::Counter { auth: Arc::clone(&shared.auth), till })
        });
        let has_quota = quota.is_some();
        let reflection = tonic_reflection::server::Builder::configure()
            .register_encoded_file_descriptor_set(proto::DESCRIPTORS)
            .register_encoded_file_descriptor_set(tonic_health::pb::FILE_DESCRIPTOR_SET)
            .build_v1()?;
        let _watching = AbortOnDropHandle::new(tokio::spawn(async move {
            loop {
                let status = match shared.chat.checks().ready {
                    true => ServingStatus::Serving,
                    false => ServingStatus::NotServing,
                };
                health.set_service_status("", status).await;
                health.set_service_status(SERVICE, status).await;
                if has_quota {
                    health.set_service_status(QUOTA_SERVICE, status).await;
                }
                tokio::time::sleep(HEALTH_EVERY).await;
            }
        }));
        let closing = CancellationToken::new();
        let RpcDoor { incoming, tls } = door;
        let builder = match tls {
            None => Server::builder(),
            Some(tls) => Server::builder().tls_config(tls)?,
        };
        let mut server = Box::pin(
            bounded(builder)
                .add_service(chat)
                .add_optional_service(quota)
                .add_service(health_service)
                .add_service(reflection)
                .serve_with_incoming_shutdown(
                    incoming.connections(),
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
}

struct Rpc<C> {
    router: Router,
    shared: Arc<Shared<C>>,
}

/// Metadata that means what the header of its name means.
const PASSED: [&str; 4] = ["authorization", "idempotency-key", "traceparent", "tracestate"];

impl<C> Rpc<C> {
    /// Through the routes of HTTP.
    async fn post(&self, headers: HeaderMap, body: String) -> HttpResponse<Body> {
        let mut request = HttpRequest::new(Body::from(body));
        *request.method_mut() = http::Method::POST;
        *request.uri_mut() = http::Uri::from_static("/v1/chat/completions");
        *request.headers_mut() = headers;
        match self.router.clone().oneshot(request).await {
            Ok(response) => response,
            Err(never) => match never {},
        }
    }
}

#[tonic::async_trait]
impl<C: Chat> ChatService for Rpc<C> {
    type StreamChatStream = BoxStream<'static, Result<StreamChatResponse, Status>>;

    async fn stream_chat(
        &self,
        request: Request<StreamChatRequest>,
    ) -> Result<Response<Self::StreamChatStream>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let headers = headers(&metadata, &asked.session_id)?;
        let said = asked.parameters.as_ref();
        let mut body = translate::writer(&asked.model, &asked.messages, said)?;
        body.text("user_id", &asked.user_id);
        if !asked.whole {
            translate::streamed(&mut body);
        }
        let response = self.post(headers, body.end()).await;
        if !response.status().is_success() {
            return Err(status::of_response(response).await);
        }
        Ok(Response::new(pieces::of(response, said, asked.whole)))
    }

    async fn list_models(
        &self,
        request: Request<ListModelsRequest>,
    ) -> Result<Response<ListModelsResponse>, Status> {
        let headers = passed(request.metadata());
        let refuse = |error: ApiError| status::of_error(&error);
        let bearer = head::bearer(&headers).map_err(refuse)?;
        // Names of models stand in /metrics, too, which is open: a gateway asks before anybody has shown it a key.
        let caller = match bearer {
            None => None,
            Some(key) => {
                let caller = self.shared.auth.authenticate(Some(&key), None);
                Some(caller.map_err(|error| refuse(error.into()))?)
            }
        };
        let models = self.shared.chat.models().into_iter();
        let models = models
            .filter(|model| caller.as_ref().is_none_or(|caller| caller.may_use(&model.name)))
            .map(|model| ModelSaid { name: model.name, owned_by: model.provider });
        Ok(Response::new(ListModelsResponse { models: models.collect() }))
    }
}

/// What HTTP takes for a client's patience.
const PATIENCE: (Duration, Duration) = (Duration::from_millis(1), Duration::from_secs(86_400));

fn passed(metadata: &MetadataMap) -> HeaderMap {
    let all = metadata.as_ref();
    let mut headers = HeaderMap::new();
    for name in PASSED {
        for value in all.get_all(name) {
            headers.append(name, value.clone());
        }
    }
    headers
}

/// What the HTTP front reads of a head.
fn headers(metadata: &MetadataMap, session: &str) -> Result<HeaderMap, Status> {
    let mut headers = passed(metadata);
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    if !session.is_empty() {
        let wrong = |_| Status::invalid_argument("session_id must hold no control characters");
        let value = HeaderValue::from_bytes(session.as_bytes()).map_err(wrong)?;
        headers.insert(HeaderName::from_static("x-session-id"), value);
    }
    if let Some(patience) = crate::worker::patience(metadata)? {
        let seconds = patience.clamp(PATIENCE.0, PATIENCE.1).as_secs_f64();
        let value = HeaderValue::from_str(&format!("{seconds:.3}"));
        let name = HeaderName::from_static("x-request-timeout");
        headers.extend(value.ok().map(|value| (name, value)));
    }
    Ok(headers)
}
