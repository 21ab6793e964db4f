//! The gRPC front: `ChatService`, for clients and for the gateway role.
//!
//! Two fronts that each judge keys, bodies, limits and refusals would come to differ, and their callers would find out in
//! production. So this one judges nothing: a call becomes the request that the HTTP front takes, goes through the same
//! routes, and what comes back is told in gRPC's words ([`status`]), event by event ([`pieces`]). What HTTP would have
//! answered stands beside a status, so that the gateway role can pass it on as it was worded.
//!
//! `QuotaService` ([`quota`]) is served beside it where the ledger is asked, that is everywhere but in the gateway role; and
//! alone, where its callers look for it at a port of its own. Health and reflection too. `Check` follows `/ready`.

mod door;
mod pieces;
mod quota;
mod sessions;
pub(crate) mod status;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use futures_util::stream::BoxStream;
use http::header::{CONTENT_TYPE, HeaderName, HeaderValue};
use http::{Extensions, HeaderMap, Method, Request as HttpRequest, Response as HttpResponse, Uri};
use proto::chat::v1::chat_service_server::{ChatService, ChatServiceServer};
use proto::chat::v1::{
    AwaitStreamRequest, AwaitStreamResponse, ClearSessionRequest, ClearSessionResponse,
    EmbedRequest, EmbedResponse, GetHistoryRequest, GetHistoryResponse, GetSessionMessagesRequest,
    GetSessionMessagesResponse, GetSessionRequest, GetSessionResponse, ListModelsRequest,
    ListModelsResponse, ListSessionsRequest, ListSessionsResponse, Model as ModelSaid, Resumable,
    ResumeStreamRequest, ResumeStreamResponse, StreamChatRequest, StreamChatResponse,
};
use proto::quota::v1::quota_service_server::QuotaServiceServer;
use tonic::metadata::MetadataMap;
use tonic::service::Routes;
use tonic::{Request, Response, Status};
use tower::ServiceExt;

pub(crate) use door::serve_routes;
pub use door::{RpcDoor, RpcError, RpcTls};

use super::error::ApiError;
use super::resumable::RESUMABLE;
use super::{Front, Shared, head, routes};
use crate::exchange::Chat;
use crate::members::{Members, Writer};
use crate::trace::Trace;
use crate::translate;

/// The name by which health is asked for.
pub(super) const SERVICE: &str = "pointsman.chat.v1.ChatService";
/// The same of the ledger.
const QUOTA_SERVICE: &str = "pointsman.quota.v1.QuotaService";

/// Beside a request that came as a call of this method.
#[derive(Clone, Copy, Debug)]
pub(super) struct Called(pub &'static str);

impl<C: Chat> Front<C> {
    /// Serves `ChatService`, and `QuotaService` where there is a till, on a port until `stopping` resolves; calls under way
    /// may then go on for `grace`.
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
        let chat = Rpc { router: routes::router(Arc::clone(&shared)), shared: Arc::clone(&shared) };
        let chat = ChatServiceServer::new(chat).max_decoding_message_size(shared.limits.body_max);
        let mut services = (vec![SERVICE], Routes::new(chat));
        if let Some(quota) = self.quota() {
            services.0.push(QUOTA_SERVICE);
            services.1 = services.1.add_service(quota);
        }
        let ready = move || shared.chat.checks().ready;
        serve_routes(door, services, ready, stopping, grace).await
    }

    /// Serves `QuotaService` alone in the same way; without a till, nothing but health and reflection.
    ///
    /// # Errors
    /// See [`RpcError`].
    pub async fn serve_quota(
        &self,
        door: RpcDoor,
        stopping: impl Future<Output = ()>,
        grace: Duration,
    ) -> Result<(), RpcError> {
        let services = match self.quota() {
            Some(quota) => (vec![QUOTA_SERVICE], Routes::new(quota)),
            None => (Vec::new(), Routes::default()),
        };
        let shared = Arc::clone(&self.shared);
        let ready = move || shared.chat.checks().ready;
        serve_routes(door, services, ready, stopping, grace).await
    }

    fn quota(&self) -> Option<QuotaServiceServer<quota::Counter>> {
        let till = self.shared.till.clone()?;
        let auth = Arc::clone(&self.shared.auth);
        Some(QuotaServiceServer::new(quota::Counter { auth, till }))
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
    async fn post(
        &self,
        (called, path): (&'static str, &'static str),
        headers: HeaderMap,
        body: impl Into<Body>,
    ) -> HttpResponse<Body> {
        let asked = (Method::POST, Uri::from_static(path));
        self.send((called, Extensions::new()), asked, headers, body).await
    }

    async fn send(
        &self,
        (called, beside): (&'static str, Extensions),
        (method, uri): (Method, Uri),
        headers: HeaderMap,
        body: impl Into<Body>,
    ) -> HttpResponse<Body> {
        let mut request = HttpRequest::new(body.into());
        *request.method_mut() = method;
        *request.uri_mut() = uri;
        *request.headers_mut() = headers;
        *request.extensions_mut() = beside;
        request.extensions_mut().insert(Called(called));
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
        let mut headers = headers(&metadata, &asked.session_id)?;
        let said = asked.parameters.as_ref();
        let mut body = translate::writer(&asked.model, &asked.messages, said)?;
        body.text("user_id", &asked.user_id);
        match asked.resumable.filter(|_| !asked.whole) {
            Some(Resumable { usage_event }) => {
                headers.insert(RESUMABLE, HeaderValue::from_static("true"));
                translate::streamed(&mut body, usage_event);
            }
            None if !asked.whole => translate::streamed(&mut body, true),
            None => {}
        }
        let path = if asked.stored { STORED } else { PLAIN };
        let response = self.post(("StreamChat", path), headers, body.end()).await;
        if !response.status().is_success() {
            return Err(status::of_response(response).await);
        }
        Ok(Response::new(pieces::of(response, said, asked.whole)))
    }

    type ResumeStreamStream = BoxStream<'static, Result<ResumeStreamResponse, Status>>;

    async fn resume_stream(
        &self,
        request: Request<ResumeStreamRequest>,
    ) -> Result<Response<Self::ResumeStreamStream>, Status> {
        let headers = passed(request.metadata());
        let asked = (Method::GET, streams::path(request.get_ref())?);
        let mut beside = Extensions::new();
        beside.insert(streams::coming(request.get_ref()));
        let response = self.send(("ResumeStream", beside), asked, headers, ()).await;
        streams::of(response).await.map(Response::new)
    }

    async fn await_stream(
        &self,
        request: Request<AwaitStreamRequest>,
    ) -> Result<Response<AwaitStreamResponse>, Status> {
        streams::awaited(&self.shared, request).await
    }

    async fn embed(
        &self,
        request: Request<EmbedRequest>,
    ) -> Result<Response<EmbedResponse>, Status> {
        let (metadata, _, asked) = request.into_parts();
        let headers = headers(&metadata, &asked.session_id)?;
        let body = on_behalf_of(&asked.user_id, asked.body);
        let response = self.post(("Embed", "/v1/embeddings"), headers, body).await;
        if !response.status().is_success() {
            return Err(status::of_response(response).await);
        }
        let (head, body) = response.into_parts();
        let begun = Some(pieces::begun(&head.headers));
        // It is in memory already, and bounded by whoever read it.
        let body = axum::body::to_bytes(body, usize::MAX).await;
        let body = body.map_err(|_| Status::internal("the answer broke off"))?.into();
        Ok(Response::new(EmbedResponse { begun, body }))
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
                let caller = self.shared.auth.authenticate(Some(&key), None, &Trace::default());
                Some(caller.await.map_err(|error| refuse(error.into()))?)
            }
        };
        let models = self.shared.chat.models().into_iter();
        let models = models
            .filter(|model| caller.as_ref().is_none_or(|caller| caller.may_use(&model.name)))
            .map(|model| ModelSaid { name: model.name, owned_by: model.provider });
        Ok(Response::new(ListModelsResponse { models: models.collect() }))
    }

    async fn get_session(
        &self,
        request: Request<GetSessionRequest>,
    ) -> Result<Response<GetSessionResponse>, Status> {
        sessions::get(&self.shared, request).await
    }

    async fn list_sessions(
        &self,
        request: Request<ListSessionsRequest>,
    ) -> Result<Response<ListSessionsResponse>, Status> {
        sessions::list(&self.shared, request).await
    }

    async fn clear_session(
        &self,
        request: Request<ClearSessionRequest>,
    ) -> Result<Response<ClearSessionResponse>, Status> {
        sessions::clear(&self.shared, request).await
    }

    async fn get_session_messages(
        &self,
        request: Request<GetSessionMessagesRequest>,
    ) -> Result<Response<GetSessionMessagesResponse>, Status> {
        sessions::messages(&self.shared, request).await
    }

    async fn get_history(
        &self,
        request: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        sessions::history(&self.shared, request).await
    }
}

/// The body with its caller's user, who stands in it over HTTP. What is no object stays as it is: it is refused as it is there.
fn on_behalf_of(user: &str, body: Vec<u8>) -> Vec<u8> {
    let members = std::str::from_utf8(&body).ok().and_then(Members::read);
    let Some(Members(members)) = members.filter(|_| !user.is_empty()) else { return body };
    let mut named = Writer::new();
    for (key, value) in members.iter().filter(|(key, _)| key != "user_id") {
        named.raw(key, value.get());
    }
    named.text("user_id", user);
    named.end().into_bytes()
}
/// Where HTTP takes a turn, and one of a stored session.
const PLAIN: &str = "/v1/chat/completions";
const STORED: &str = "/api/v1/chat/completions";

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
