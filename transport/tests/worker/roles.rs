//! The work in two processes: a gateway role in front, chat roles behind, workers behind those.

use std::time::Duration;

use proto::chat::v1::chat_service_client::ChatServiceClient;
use proto::chat::v1::{ListModelsRequest, StreamChatRequest, StreamChatResponse};
use proto::inference::v1::Parameters;
use serde_json::json;
use tokio::time::{Instant, sleep};
use tonic::transport::Channel;
use tonic::{Code, Request, Status};
use transport::config::Role;
use transport::quic::{Identity, Pin};
use transport::worker::{Backend, Hash};

use crate::world::{Answer, LONG, SECOND, Worker, World, question, streamed, words};

/// A chat role before one worker.
pub async fn chat_before(worker: &Worker, more: &str) -> World {
    chat_at(&format!("{{url: '{}', name: w0}}", worker.url()), more).await
}

fn owned((one, other): (&str, &str)) -> (String, String) {
    (one.to_owned(), other.to_owned())
}

/// The same before this endpoint.
async fn chat_at(endpoint: &str, more: &str) -> World {
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nmodels: {{m: {{endpoints: [{endpoint}]}}}}\n{more}"
    );
    World::playing(Role::Chat, &text).await
}

async fn channel(chat: &World) -> Channel {
    let channel = Channel::from_shared(format!("http://{}", chat.rpc.unwrap())).unwrap();
    channel.connect().await.unwrap()
}

pub async fn client(chat: &World) -> ChatServiceClient<Channel> {
    ChatServiceClient::new(channel(chat).await)
}

/// A gateway role before chat roles named `c0`, `c1`.
pub async fn gateway(chats: &[&World], more: &str) -> World {
    let chats = chats.iter().enumerate();
    let chats =
        chats.map(|(at, chat)| format!("{{url: 'chat://{}', name: c{at}}}", chat.rpc.unwrap()));
    let chats: Vec<_> = chats.collect();
    World::playing(Role::Gateway, &format!("chats: [{}]\n{more}", chats.join(", "))).await
}

fn hashing() -> Worker {
    Worker::new(Backend::Hash(Hash::default()))
}

/// A turn over gRPC.
pub fn turn(text: &str, parameters: Parameters) -> StreamChatRequest {
    let asked = question(text, parameters);
    StreamChatRequest {
        model: asked.model,
        messages: asked.messages,
        parameters: asked.parameters,
        ..StreamChatRequest::default()
    }
}

async fn collect(
    client: &mut ChatServiceClient<Channel>,
    request: Request<StreamChatRequest>,
) -> Result<Vec<StreamChatResponse>, Status> {
    let mut stream = client.stream_chat(request).await?.into_inner();
    let mut pieces = Vec::new();
    while let Some(piece) = stream.message().await? {
        pieces.push(piece);
    }
    Ok(pieces)
}

#[tokio::test]
async fn through_two_roles_an_answer_is_what_it_is_through_one() {
    let worker = hashing();
    let (chat, alone) = (chat_before(&worker, "").await, World::before(&[worker.url()], "").await);
    let world = gateway(&[&chat], "").await;
    let more = json!({"stream": true, "max_tokens": 40, "stream_options": {"include_usage": true}});
    let (two, one) = (world.ask("hi", more.clone()).await, alone.ask("hi", more).await);
    assert_eq!(two.status, 200, "{two:?}");
    assert_eq!(two.header("x-pointsman-replica"), "c0");
    assert_eq!(two.told(), one.told());
    assert!(two.is_done() && two.told().len() > 40);
    let usage = |events: &[serde_json::Value]| events.last().unwrap()["usage"].clone();
    assert_eq!(usage(&two.events()), usage(&one.events()));
    // It came to its end behind the gateway too: nobody left.
    let counted = "gateway_requests_total{provider=\"pointsman\",model=\"m\",status=\"200\"} 1\n";
    let figures = chat.get("/metrics").await;
    assert!(figures.contains(counted) && !figures.contains("status=\"499\""), "{figures}");
    let (two, one) = (world.ask("hi", json!({})).await, alone.ask("hi", json!({})).await);
    assert_eq!(two.json()["choices"], one.json()["choices"], "{two:?}");
    assert!(world.get("/v1/models").await.contains("\"m\""));
}

#[tokio::test]
async fn what_the_chat_role_refuses_reaches_the_client_as_it_was_worded() {
    let worker = Worker::echo(Duration::ZERO);
    // The first turn takes some of it; the gateway, which reads the same, keeps no account of it.
    let limits = "tenants: {default: {daily_tokens: 40}}";
    let chat = chat_before(&worker, limits).await;
    let world = gateway(&[&chat], limits).await;
    assert_eq!(world.ask("one two three", json!({"max_tokens": 3})).await.status, 200);
    let refused = world.ask(&words(30), json!({"max_tokens": 30})).await;
    assert_eq!(refused.status, 402, "{refused:?}");
    assert_eq!(refused.json()["error"]["code"], "insufficient_quota");
    assert_eq!(refused.header("x-should-retry"), "false");
    assert_ne!(refused.header("retry-after"), "-");
    // Nobody is at fault there: the chat role is asked again.
    assert!(world.get("/health").await.contains("\"healthy\":true"));
    let asked = world.ask("x", json!({"temperature": "hot"})).await;
    assert_eq!(asked.status, 400, "{asked:?}");
}

#[tokio::test]
async fn where_nobody_is_left_behind_it_the_chat_role_says_so_and_is_not_blamed() {
    let mut worker = Worker::echo(Duration::ZERO);
    let chat = chat_before(&worker, "routing: {max_retries: 0}").await;
    let world = gateway(&[&chat], "").await;
    worker.kill();
    // The first may meet the connection's end.
    let first = world.ask("hi", json!({})).await;
    assert!(first.status == 502 || first.status == 503, "{first:?}");
    for _ in 0..12 {
        let refused = world.ask("hi", json!({})).await;
        assert_eq!(refused.status, 503, "{refused:?}");
        assert_ne!(refused.header("retry-after"), "-");
        assert_eq!(refused.header("x-pointsman-attempts"), "1");
    }
    let metrics = world.get("/metrics").await;
    assert!(!metrics.contains("state=\"open\"} 1"), "the chat role was ejected: {metrics}");
}

#[tokio::test]
async fn a_key_that_is_repeated_is_charged_once_behind_the_gateway() {
    let worker = Worker::echo(Duration::ZERO);
    // Enough for one such turn.
    let chat = chat_before(&worker, "tenants: {default: {daily_tokens: 60}}").await;
    let world = gateway(&[&chat], "").await;
    let head = [("idempotency-key", "k1")];
    let first = world.ask_with("one two", json!({"max_tokens": 40}), &head).await;
    let again = world.ask_with("one two", json!({"max_tokens": 40}), &head).await;
    assert_eq!(first.status, 200);
    assert_eq!((again.status, &again.json()["choices"]), (first.status, &first.json()["choices"]));
    let other = world.ask_with("three", json!({}), &head).await;
    assert!([409, 422].contains(&other.status.as_u16()), "{other:?}");
}

#[tokio::test]
async fn a_client_that_leaves_the_gateway_stops_the_worker_behind_both() {
    let worker = Worker::echo(Duration::from_millis(50));
    let chat = chat_before(&worker, "").await;
    let world = gateway(&[&chat], "").await;
    let response = world.begin("/v1/chat/completions", &streamed(&words(1_200))).await;
    assert_eq!(response.status(), 200);
    worker.runs(1).await;
    drop(response);
    tokio::time::timeout(5 * SECOND, worker.runs(0)).await.unwrap();
}

#[tokio::test]
async fn a_stream_that_the_chat_role_cuts_ends_with_its_own_error() {
    let worker = Worker::echo(Duration::from_millis(2));
    let chat = chat_before(&worker, "tenants: {default: {daily_tokens: 700}}").await;
    let world = gateway(&[&chat], "").await;
    let answer = world.ask(&words(300), json!({"stream": true})).await;
    assert!(answer.status == 402 || !answer.is_done(), "{answer:?}");
    assert!(answer.text.contains("\"code\":\"insufficient_quota\""), "{}", answer.text);
}

#[tokio::test]
async fn over_grpc_a_turn_is_told_piece_by_piece() {
    let worker = hashing();
    let chat = chat_before(&worker, "").await;
    let mut client = client(&chat).await;
    let parameters = Parameters { max_tokens: Some(12), ..Parameters::default() };
    let pieces = collect(&mut client, Request::new(turn("hi", parameters))).await.unwrap();
    let begun = pieces[0].begun.as_ref().unwrap();
    assert!(begun.request_id.starts_with("req_") && begun.replica == "w0" && begun.attempts == 1);
    let chunks: Vec<_> = pieces.iter().map(|piece| piece.chunk.as_ref().unwrap()).collect();
    let mut next = 0;
    for chunk in &chunks {
        assert_eq!(chunk.seq, next);
        next += u64::from(chunk.token_count);
    }
    let last = chunks.last().unwrap();
    assert_eq!((&*last.finish_reason, last.usage.unwrap().completion_tokens), ("length", 12));
    assert!(pieces[1..].iter().all(|piece| piece.begun.is_none()));
    let models = client.list_models(ListModelsRequest {}).await.unwrap().into_inner().models;
    assert_eq!(models.iter().map(|model| &*model.name).collect::<Vec<_>>(), ["m"]);
}

#[tokio::test]
async fn over_grpc_a_refusal_has_a_status_and_what_http_would_have_said() {
    let worker = Worker::echo(Duration::ZERO);
    let chat = chat_before(&worker, "tenants: {default: {daily_tokens: 10}}").await;
    let mut client = client(&chat).await;
    let mut unknown = turn("hi", Parameters::default());
    unknown.model = "other".to_owned();
    let refused = collect(&mut client, Request::new(unknown)).await.unwrap_err();
    assert_eq!(refused.code(), Code::NotFound, "{refused:?}");
    let long = Parameters { max_tokens: Some(500), ..Parameters::default() };
    let refused = collect(&mut client, Request::new(turn("hi", long))).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted, "{refused:?}");
    assert_eq!(refused.metadata().get("pointsman-http-status").unwrap(), "402");
    assert!(refused.message().contains("quota"), "{refused:?}");
    let said = refused.metadata().get_bin("pointsman-error-bin").unwrap().to_bytes().unwrap();
    let said: serde_json::Value = serde_json::from_slice(&said).unwrap();
    assert_eq!(said["error"]["code"], "insufficient_quota");
    let mut odd = turn("hi", Parameters::default());
    odd.session_id = "line\nend".to_owned();
    let refused = collect(&mut client, Request::new(odd)).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused:?}");
}

#[tokio::test]
async fn over_grpc_a_key_is_asked_for_and_a_deadline_is_kept() {
    let worker = Worker::echo(SECOND);
    let key = transport::keys::generate().unwrap();
    let chat = chat_before(&worker, &format!("keys: [{{hash: '{}'}}]", key.1)).await;
    let mut client = client(&chat).await;
    let refused = collect(&mut client, Request::new(turn("hi", Parameters::default()))).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let mut asked = Request::new(turn(&words(60), Parameters::default()));
    let bearer = format!("Bearer {}", key.0.expose()).parse().unwrap();
    asked.metadata_mut().insert("authorization", bearer);
    asked.set_timeout(2 * SECOND);
    let late = tokio::time::timeout(LONG, collect(&mut client, asked)).await.unwrap();
    assert_eq!(late.unwrap_err().code(), Code::DeadlineExceeded);
    worker.runs(0).await;
}

#[tokio::test]
async fn the_callers_own_key_is_judged_again_behind_the_gateway() {
    let worker = Worker::echo(Duration::ZERO);
    let (known, other) =
        (transport::keys::generate().unwrap(), transport::keys::generate().unwrap());
    let keys = |hash: &dyn std::fmt::Display| format!("keys: [{{hash: '{hash}'}}]");
    let chat = chat_before(&worker, &keys(&known.1)).await;
    let both = format!("keys: [{{hash: '{}'}}, {{hash: '{}'}}]", known.1, other.1);
    let world = gateway(&[&chat], &both).await;
    for (key, status) in [(&known.0, 200), (&other.0, 401)] {
        let bearer = format!("Bearer {}", key.expose());
        let asked = world.ask_with("hi", json!({}), &[("authorization", &bearer)]).await;
        assert_eq!(asked.status.as_u16(), status, "{asked:?}");
    }
}

#[tokio::test]
async fn a_deadline_at_the_gateway_ends_the_answer_at_the_worker_behind_the_chat_role() {
    let worker = Worker::echo(Duration::from_millis(50));
    for over_quic in [false, true] {
        let chat = match over_quic {
            true => {
                let (url, pin) = worker.over_quic().split_once('#').map(owned).unwrap();
                chat_at(&format!("{{url: '{url}', name: w0, tls: {{pin: '{pin}'}}}}"), "").await
            }
            false => chat_before(&worker, "").await,
        };
        let world = gateway(&[&chat], "").await;
        let head = [("x-request-timeout", "1.5")];
        let began = Instant::now();
        let asked = streamed(&words(1_200));
        let response = world.begin_with("/v1/chat/completions", &asked, &head).await;
        assert_eq!(response.status(), 200, "{response:?}");
        worker.runs(1).await;
        // The client stays, and reads on: it is the time that ends it.
        let answer = tokio::time::timeout(LONG, Answer::of(response)).await.unwrap();
        assert!(!answer.is_done() && answer.text.contains("\"error\""), "{}", answer.text);
        worker.runs_within(0, SECOND).await;
        let took = began.elapsed();
        assert!(took > SECOND && took < 5 * SECOND, "{took:?} of 60 s over QUIC: {over_quic}");
    }
}

#[tokio::test]
async fn where_nobody_is_left_grpc_says_unavailable() {
    let mut worker = Worker::echo(Duration::ZERO);
    let chat = chat_before(&worker, "routing: {max_retries: 0}").await;
    let front = "server: {grpc: {addr: '127.0.0.1:0'}}";
    let world = gateway(&[&chat], front).await;
    worker.kill();
    for role in [&chat, &world] {
        let mut client = client(role).await;
        // The first may meet the connection's end.
        let _ = collect(&mut client, Request::new(turn("hi", Parameters::default()))).await;
        let refused = collect(&mut client, Request::new(turn("hi", Parameters::default()))).await;
        let refused = refused.unwrap_err();
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
        assert_eq!(refused.metadata().get("pointsman-http-status").unwrap(), "503");
        assert!(refused.metadata().contains_key("retry-after-ms"), "{refused:?}");
    }
}

#[tokio::test]
async fn health_over_grpc_follows_readiness() {
    use tonic_health::pb::HealthCheckRequest;
    use tonic_health::pb::health_client::HealthClient;

    let worker = Worker::echo(Duration::ZERO);
    let chat = chat_before(&worker, "").await;
    let mut client = HealthClient::new(channel(&chat).await);
    let service = "pointsman.chat.v1.ChatService".to_owned();
    for _ in 0..200 {
        let asked = client.check(HealthCheckRequest { service: service.clone() }).await;
        if asked.is_ok_and(|said| said.into_inner().status == 1) {
            return;
        }
        sleep(Duration::from_millis(20)).await;
    }
    panic!("never serving");
}

#[tokio::test]
async fn between_roles_tls_believes_whom_it_is_told_to() {
    let worker = Worker::echo(Duration::ZERO);
    let home = tempfile::tempdir().unwrap();
    let made = |name: &str| {
        let (cert, key) =
            (home.path().join(format!("{name}.pem")), home.path().join(format!("{name}.key")));
        let pin = Identity::read_or_made(&cert, &key).unwrap().pin();
        (cert.display().to_string(), key.display().to_string(), pin)
    };
    let (chats_own, gateways_own, strangers) = (made("chat"), made("gateway"), made("stranger"));
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0', tls: {{cert: '{}', key: '{}', client_ca: '{}'}}}}}}\n\
         models: {{m: {{endpoints: [{{url: '{}', name: w0}}]}}}}",
        chats_own.0,
        chats_own.1,
        gateways_own.0,
        worker.url()
    );
    let chat = World::playing(Role::Chat, &text).await;
    let addr = chat.rpc.unwrap();
    let before = async |pin: &Pin, own: &(String, String, Pin)| {
        let tls = format!("tls: {{pin: '{pin}', cert: '{}', key: '{}'}}", own.0, own.1);
        let text = format!("chats: [{{url: 'chats://{addr}', name: c0, {tls}}}]");
        World::playing(Role::Gateway, &text).await
    };
    let world = before(&chats_own.2, &gateways_own).await;
    let answer = world.ask("hi", json!({})).await;
    assert_eq!(answer.json()["choices"][0]["message"]["content"], "hi", "{answer:?}");
    // Another's certificate is not believed, and another's is not let in.
    for (pin, own) in [(&strangers.2, &gateways_own), (&chats_own.2, &strangers)] {
        let world = before(pin, own).await;
        let models = world.get("/v1/models").await;
        assert!(!models.contains("\"m\""), "{models}");
    }
}

#[tokio::test]
async fn a_resumable_stream_is_kept_behind_the_role_in_front() {
    let worker = hashing();
    let chat = chat_before(&worker, "").await;
    let world = gateway(&[&chat], "").await;
    let more = json!({"stream": true, "max_tokens": 20});
    let head = [("x-pointsman-resumable", "true")];
    let answer = world.ask_with("hi", more, &head).await;
    assert!(answer.status == 200 && answer.is_done(), "{answer:?}");
    let kept = |metrics: String| metrics.contains("\npointsman_streams_kept 1\n");
    assert!(!kept(world.get("/metrics").await) && kept(chat.get("/metrics").await));
    let again = world.get(&format!("/v1/streams/{}", answer.header("x-pointsman-stream-id"))).await;
    assert_eq!(again, answer.text, "kept otherwise than told");
}
