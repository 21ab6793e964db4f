//! Embeddings through two roles: what an OpenAI-compatible server behind the chat role makes of a text, as it made it.

use std::sync::{Arc, Mutex};

use axum::Json;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use futures_util::stream::BoxStream;
use http::StatusCode;
use proto::chat::v1::chat_service_server::{ChatService, ChatServiceServer};
use proto::chat::v1::{
    AwaitStreamRequest, AwaitStreamResponse, ClearSessionRequest, ClearSessionResponse,
    EmbedRequest, EmbedResponse, GetHistoryRequest, GetHistoryResponse, GetSessionMessagesRequest,
    GetSessionMessagesResponse, GetSessionRequest, GetSessionResponse, ListModelsRequest,
    ListModelsResponse, ListSessionsRequest, ListSessionsResponse, Model, ResumeStreamRequest,
    ResumeStreamResponse, StreamChatRequest, StreamChatResponse,
};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;
use tonic::{Request, Response as Answered, Status};
use transport::config::Role;

use crate::world::{Answer, Worker, World};

type Heard = Arc<Mutex<Vec<Value>>>;

/// Embeds `x` and `y`, fails once for `fails`, and refuses what is odd.
struct Server {
    url: String,
    heard: Heard,
    _served: AbortOnDropHandle<()>,
}

async fn embedded(State(heard): State<Heard>, Json(body): Json<Value>) -> Response {
    let mut heard = heard.lock().unwrap();
    let again = heard.contains(&body);
    heard.push(body.clone());
    match body["input"].as_str() {
        Some("fails") if !again => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some("odd") => {
            let error = json!({"error": {"message": "What an odd input.", "type": "invalid_request_error"}});
            (StatusCode::BAD_REQUEST, Json(error)).into_response()
        }
        _ => Json(json!({
            "object": "list", "model": "m", "extra": 1.50,
            "data": [{"object": "embedding", "index": 0, "embedding": [0.25, -1.0]}],
            "usage": {"prompt_tokens": 3, "total_tokens": 3},
        }))
        .into_response(),
    }
}

impl Server {
    async fn new() -> Self {
        let heard = Heard::default();
        let router = axum::Router::new()
            .route("/v1/embeddings", post(embedded))
            .with_state(Arc::clone(&heard));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let served = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        Self { url, heard, _served: AbortOnDropHandle::new(served) }
    }
}

/// A gateway role before a chat role before whoever is at this URL.
async fn roles(url: &str, more: &str) -> (World, World) {
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nmodels: {{m: {{endpoints: [{{url: '{url}', name: e0}}]}}}}\n{more}"
    );
    let chat = World::playing(Role::Chat, &text).await;
    let chats = format!("chats: [{{url: 'chat://{}', name: c0}}]\n{more}", chat.rpc.unwrap());
    (World::playing(Role::Gateway, &chats).await, chat)
}

async fn embed(world: &World, body: &Value) -> Answer {
    Answer::of(world.begin("/v1/embeddings", body).await).await
}

#[tokio::test]
async fn embeddings_come_through_two_roles_as_they_were_made() {
    let server = Server::new().await;
    let (gateway, chat) = roles(&server.url, "").await;
    let body = json!({"model": "m", "input": "x", "dimensions": 2, "user_id": "ada"});
    let (two, one) = (embed(&gateway, &body).await, embed(&chat, &body).await);
    assert_eq!((two.status.as_u16(), &two.text), (200, &one.text), "{two:?}");
    assert_eq!(two.header("x-pointsman-replica"), "c0");
    assert_eq!(two.header("content-type"), "application/json");
    assert!(two.text.contains("\"extra\":1.5"), "{two:?}");
    // Fields of ours stay here; what is not ours reached the server.
    let heard = server.heard.lock().unwrap().clone();
    assert_eq!(heard, vec![json!({"model": "m", "input": "x", "dimensions": 2}); 2]);
}

#[tokio::test]
async fn what_is_refused_behind_the_chat_role_is_told_as_it_was_worded() {
    let server = Server::new().await;
    let limits = "tenants: {default: {daily_tokens: 4}}";
    let (gateway, _chat) = roles(&server.url, limits).await;
    let ask = |input: &str| json!({"model": "m", "input": input});
    let odd = embed(&gateway, &ask("odd")).await;
    assert_eq!(odd.status, 400, "{odd:?}");
    assert_eq!(odd.json()["error"]["message"], "What an odd input.");
    let mut spent = embed(&gateway, &ask("x")).await;
    while spent.status == 200 {
        spent = embed(&gateway, &ask("x")).await;
    }
    assert_eq!((spent.status.as_u16(), spent.header("x-should-retry")), (402, "false"));
    assert_eq!(spent.json()["error"]["code"], "insufficient_quota");
    let nobody = embed(&gateway, &json!({"model": "none", "input": "x"})).await;
    assert_eq!(nobody.status, 404, "{nobody:?}");
}

#[tokio::test]
async fn what_fails_is_tried_again_behind_the_chat_role_alone() {
    let server = Server::new().await;
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nmodels: {{m: {{endpoints: [{{url: '{0}', name: e0}}, {{url: '{0}', name: e1}}]}}}}",
        server.url
    );
    let chat = World::playing(Role::Chat, &text).await;
    let chats = format!("chats: [{{url: 'chat://{}', name: c0}}]", chat.rpc.unwrap());
    let gateway = World::playing(Role::Gateway, &chats).await;
    let answer = embed(&gateway, &json!({"model": "m", "input": "fails"})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("x-pointsman-attempts"), "1", "the gateway asked once");
    assert_eq!(server.heard.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_worker_behind_the_chat_role_has_no_embeddings_still() {
    let worker = Worker::echo(std::time::Duration::ZERO);
    let (gateway, _chat) = roles(&worker.url(), "").await;
    let answer = embed(&gateway, &json!({"model": "m", "input": "x"})).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text.contains("no embeddings"), "{answer:?}");
}

/// A chat role of the version before: it lists the model and answers turns, and has no other call.
struct Before;

type Said<T> = Result<Answered<T>, Status>;

/// What a server says of a method that it does not have.
fn missing<T>() -> Said<T> {
    Err(Status::unimplemented(""))
}

#[tonic::async_trait]
impl ChatService for Before {
    type StreamChatStream = BoxStream<'static, Result<StreamChatResponse, Status>>;

    async fn stream_chat(
        &self,
        _: Request<StreamChatRequest>,
    ) -> Result<Answered<Self::StreamChatStream>, Status> {
        Err(Status::unimplemented(""))
    }

    type ResumeStreamStream = BoxStream<'static, Result<ResumeStreamResponse, Status>>;

    async fn resume_stream(
        &self,
        _: Request<ResumeStreamRequest>,
    ) -> Said<Self::ResumeStreamStream> {
        missing()
    }

    async fn await_stream(&self, _: Request<AwaitStreamRequest>) -> Said<AwaitStreamResponse> {
        missing()
    }

    async fn embed(&self, _: Request<EmbedRequest>) -> Said<EmbedResponse> {
        missing()
    }

    async fn get_session(&self, _: Request<GetSessionRequest>) -> Said<GetSessionResponse> {
        missing()
    }

    async fn list_sessions(&self, _: Request<ListSessionsRequest>) -> Said<ListSessionsResponse> {
        missing()
    }

    async fn clear_session(&self, _: Request<ClearSessionRequest>) -> Said<ClearSessionResponse> {
        missing()
    }

    async fn get_session_messages(
        &self,
        _: Request<GetSessionMessagesRequest>,
    ) -> Said<GetSessionMessagesResponse> {
        missing()
    }

    async fn get_history(&self, _: Request<GetHistoryRequest>) -> Said<GetHistoryResponse> {
        missing()
    }

    async fn list_models(
        &self,
        _: Request<ListModelsRequest>,
    ) -> Result<Answered<ListModelsResponse>, Status> {
        let model = Model { name: "m".to_owned(), owned_by: String::new() };
        Ok(Answered::new(ListModelsResponse { models: vec![model] }))
    }
}

#[tokio::test]
async fn a_chat_role_of_the_version_before_is_named_as_too_old() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let incoming = futures_util::stream::unfold(listener, async |listener| {
        Some((listener.accept().await.map(|(stream, _)| stream), listener))
    });
    let server = tonic::transport::Server::builder().add_service(ChatServiceServer::new(Before));
    let _served = AbortOnDropHandle::new(tokio::spawn(server.serve_with_incoming(incoming)));
    let text = format!("chats: [{{url: 'chat://{addr}', name: old}}]");
    let gateway = World::playing(Role::Gateway, &text).await;
    let answer = embed(&gateway, &json!({"model": "m", "input": "x"})).await;
    assert_eq!(answer.status, 501, "{answer:?}");
    assert!(answer.text.contains("older version"), "{answer:?}");
}
