//! Peers of another version: newer ones, which say more than is known here, and older ones, which say less or lack a method.
//! What is known is used, what is not is left alone, and where something needed is missing, that is said.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use futures_util::stream;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::service::service_fn;
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use prost::Message as _;
use proto::chat::v1::{Begun, ListModelsResponse, Model, StreamChatRequest, StreamChatResponse};
use proto::inference::v1::{
    CallEnd, DescribeResponse, Load, StreamInferenceRequest, StreamInferenceResponse as Chunk,
    Usage,
};
use serde_json::json;
use tokio::net::TcpListener;
use transport::config::Role;
use transport::quic::Trust;
use transport::worker::{Backend, Hash};

use crate::quic_lines::{client, files, frame, liar, target, whole};
use crate::world::{Answer, Worker, World, question};

/// Fields that nobody here has heard of, of every kind.
fn newer() -> Vec<u8> {
    let mut bytes = Vec::new();
    prost::encoding::uint64::encode(900, &7, &mut bytes);
    prost::encoding::string::encode(901, &"from a later version".to_owned(), &mut bytes);
    prost::encoding::double::encode(902, &f64::NAN, &mut bytes);
    prost::encoding::fixed32::encode(903, &7, &mut bytes);
    bytes
}

/// A message as a later version writes it.
fn later(message: &impl prost::Message) -> Vec<u8> {
    [newer(), message.encode_to_vec(), newer()].concat()
}

/// A message in a field of another, as a later version writes both.
fn nested(tag: u32, message: &impl prost::Message, into: &mut Vec<u8>) {
    prost::encoding::bytes::encode(tag, &later(message), into);
}

/// What a server answers to each method, by the end of its path; nothing is a method it lacks.
type Script = Arc<dyn Fn(&str) -> Option<Vec<Vec<u8>>> + Send + Sync>;

/// Speaks gRPC in bytes, and remembers what it was asked.
async fn speaking(script: Script) -> (String, Arc<Mutex<Vec<Bytes>>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap().to_string();
    let asked = Arc::new(Mutex::new(Vec::new()));
    let heard = Arc::clone(&asked);
    tokio::spawn(async move {
        while let Ok((socket, _)) = listener.accept().await {
            let (script, heard) = (Arc::clone(&script), Arc::clone(&heard));
            let service = service_fn(move |request: Request<Incoming>| {
                answer(request, Arc::clone(&script), Arc::clone(&heard))
            });
            let connection = async move {
                let builder = auto::Builder::new(TokioExecutor::new()).http2_only();
                let _ = builder.serve_connection(TokioIo::new(socket), service).await;
            };
            tokio::spawn(connection);
        }
    });
    (addr, asked)
}

type Frames = Vec<Result<Frame<Bytes>, Infallible>>;

async fn answer(
    request: Request<Incoming>,
    script: Script,
    heard: Arc<Mutex<Vec<Bytes>>>,
) -> Result<
    Response<StreamBody<stream::Iter<std::vec::IntoIter<Result<Frame<Bytes>, Infallible>>>>>,
    Infallible,
> {
    let method = request.uri().path().rsplit('/').next().unwrap().to_owned();
    let mut body = request.into_body().collect().await.unwrap().to_bytes();
    if method.starts_with("Stream") {
        body.advance(5);
        heard.lock().unwrap().push(body);
    }
    let mut frames = Frames::new();
    let said = script(&method);
    let status = if said.is_some() { "0" } else { "12" };
    for message in said.unwrap_or_default() {
        frames.push(Ok(Frame::data(framed(&message))));
    }
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", status.parse().unwrap());
    frames.push(Ok(Frame::trailers(trailers)));
    let mut response = Response::new(StreamBody::new(stream::iter(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    Ok(response)
}

fn framed(message: &[u8]) -> Bytes {
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    [&[0], &length[..], message].concat().into()
}

/// The messages that a server of ours answers to these bytes, and its status.
async fn told(addr: &str, method: &str, message: &[u8]) -> (Vec<Bytes>, String) {
    let mut builder = Client::builder(TokioExecutor::new());
    let client: Client<HttpConnector, Full<Bytes>> = builder.http2_only(true).build_http();
    let request = Request::post(format!("http://{addr}/pointsman.{method}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(Full::new(framed(message)))
        .unwrap();
    let response = client.request(request).await.unwrap();
    let early = response.headers().clone();
    let body = response.into_body().collect().await.unwrap();
    let trailers = body.trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").or(early.get("grpc-status")).unwrap();
    let status = status.to_str().unwrap().to_owned();
    let (mut bytes, mut messages) = (body.to_bytes(), Vec::new());
    while !bytes.is_empty() {
        let length = bytes.get_uint(5) & 0xffff_ffff;
        messages.push(bytes.split_to(usize::try_from(length).unwrap()));
    }
    (messages, status)
}

fn said(seq: u64, text: &str, finish_reason: &str) -> Chunk {
    let (text, finish_reason) = (text.to_owned(), finish_reason.to_owned());
    Chunk { seq, token_count: 1, text, finish_reason, ..Chunk::default() }
}

/// An answer as a later version streams it, with what is known and what is not.
fn later_answer() -> Vec<Vec<u8>> {
    let mut last = later(&said(1, "b", "stop"));
    let usage = Usage { prompt_tokens: 3, completion_tokens: 2, cached_tokens: 1 };
    nested(10, &usage, &mut last);
    nested(11, &Load { running: 1, ..Load::default() }, &mut last);
    vec![later(&said(0, "a", "")), newer(), last]
}

#[tokio::test]
async fn a_worker_of_a_later_version_is_understood_as_far_as_it_is_known() {
    let description =
        DescribeResponse { models: vec!["m".to_owned()], ..DescribeResponse::default() };
    let script = move |method: &str| match method {
        "StreamInference" => Some(later_answer()),
        "Describe" => Some(vec![later(&description)]),
        _ => None,
    };
    let (addr, _) = speaking(Arc::new(script)).await;
    let world = World::before(&[format!("grpc://{addr}")], "").await;
    for stream in [true, false] {
        let body = json!({"stream": stream, "stream_options": {"include_usage": true}});
        let body = if stream { body } else { json!({}) };
        let answer = world.ask("x", body).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert!(answer.text.contains("\"prompt_tokens\":3"), "{answer:?}");
        if stream {
            assert_eq!((answer.told(), answer.is_done()), ("ab".to_owned(), true), "{answer:?}");
        }
    }
}

#[tokio::test]
async fn over_quic_a_worker_of_a_later_version_is_understood_too() {
    let own = files();
    let raw = |kind: u8, bytes: Vec<u8>| {
        let length = u32::try_from(bytes.len()).unwrap().to_be_bytes();
        [&[kind], &length[..], &bytes].concat()
    };
    let mut answer: Vec<u8> = later_answer().into_iter().flat_map(|chunk| raw(2, chunk)).collect();
    answer.extend(raw(3, later(&CallEnd::default())));
    assert!(
        answer.ends_with(&raw(3, later(&CallEnd::default())))
            && frame(3, &CallEnd::default())[0] == 3
    );
    let (url, _task) = liar(&own, answer, false).await;
    let said = whole(&client(), &target(&url, Trust::pinned(own.own.pin()))).await.unwrap();
    assert!(said.contains("\"ab\"") && said.contains("\"prompt_tokens\":3"), "{said}");
}

#[tokio::test]
async fn a_worker_of_an_earlier_version_serves_with_what_it_has() {
    // No Describe, no usage, no load, no fingerprint; and an end by a word that nobody here knows.
    let script = |method: &str| {
        let answer = [said(0, "a", ""), said(1, "b", "paused")];
        (method == "StreamInference")
            .then(|| answer.iter().map(|one| one.encode_to_vec()).collect())
    };
    let (addr, asked) = speaking(Arc::new(script)).await;
    let world = World::before(&[format!("grpc://{addr}")], "").await;
    let answer = world.ask("x", json!({"stream": true, "max_tokens": 7})).await;
    assert_eq!((answer.told(), answer.is_done()), ("ab".to_owned(), true), "{answer:?}");
    assert!(answer.text.contains("\"finish_reason\":\"paused\""), "{answer:?}");
    let question = asked.lock().unwrap().last().cloned().unwrap();
    let question = StreamInferenceRequest::decode(question).unwrap();
    assert_eq!((&*question.model, question.parameters.unwrap().max_tokens), ("m", Some(7)));
}

#[tokio::test]
async fn a_worker_of_ours_answers_callers_of_other_versions() {
    let worker = Worker::new(Backend::Hash(Hash::default()));
    let addr = worker.addr.to_string();
    let method = "inference.v1.InferenceService/StreamInference";
    let mut bare = question("hi", Default::default());
    (bare.parameters, bare.request_id) = (None, String::new());
    for message in [bare.encode_to_vec(), later(&bare)] {
        let (chunks, status) = told(&addr, method, &message).await;
        assert_eq!(status, "0");
        let last = Chunk::decode(chunks.last().unwrap().clone()).unwrap();
        assert!(!last.finish_reason.is_empty() && last.usage.is_some(), "{last:?}");
    }
    for (method, message, code) in [
        // No model was named.
        (method, Vec::new(), "5"),
        (method, newer(), "5"),
        (method, vec![0xff; 9], "13"),
        ("inference.v1.InferenceService/Rewind", Vec::new(), "12"),
        ("inference.v2.InferenceService/StreamInference", Vec::new(), "12"),
    ] {
        let (_, status) = told(&addr, method, &message).await;
        assert_eq!(status, code, "{method} {message:?}");
    }
    assert_eq!(told(&addr, method, &bare.encode_to_vec()).await.1, "0", "and goes on");
}

/// A gateway role before whatever is there.
async fn gateway(addr: &str) -> World {
    World::playing(Role::Gateway, &format!("chats: [{{url: 'chat://{addr}', name: c0}}]")).await
}

#[tokio::test]
async fn a_gateway_understands_chat_roles_of_other_versions() {
    let model = Model { name: "m".to_owned(), owned_by: "us".to_owned() };
    for (is_later, begun) in [(true, true), (false, true), (false, false)] {
        let model = model.clone();
        let script = move |method: &str| {
            let begun = begun.then(|| Begun { replica: "w7".to_owned(), ..Begun::default() });
            let usage = Usage { prompt_tokens: 3, completion_tokens: 1, cached_tokens: 0 };
            let chunk = Chunk { usage: Some(usage), ..said(0, "a", "stop") };
            let piece = StreamChatResponse { begun, chunk: Some(chunk), ..Default::default() };
            let models = ListModelsResponse { models: vec![model.clone()] };
            let write = |message: &dyn Fn() -> (Vec<u8>, Vec<u8>)| {
                let (plain, with_more) = message();
                Some(vec![if is_later { with_more } else { plain }])
            };
            match method {
                "StreamChat" => write(&|| (piece.encode_to_vec(), later(&piece))),
                "ListModels" => write(&|| (models.encode_to_vec(), later(&models))),
                _ => None,
            }
        };
        let (addr, asked) = speaking(Arc::new(script)).await;
        let world = gateway(&addr).await;
        let answer = world.ask("hi", json!({"stream": true})).await;
        assert_eq!(answer.told(), "a", "later {is_later}, begun {begun}: {answer:?}");
        assert!(answer.is_done(), "{answer:?}");
        let question = asked.lock().unwrap().last().cloned().unwrap();
        assert_eq!(StreamChatRequest::decode(question).unwrap().model, "m");
    }
}

/// What a chat role of an earlier version says, which keeps neither sessions nor streams.
fn earlier(method: &str) -> Option<Vec<Vec<u8>>> {
    let begun = Some(Begun { replica: "w7".to_owned(), ..Begun::default() });
    let piece =
        StreamChatResponse { begun, chunk: Some(said(0, "a", "stop")), ..Default::default() };
    let model = Model { name: "m".to_owned(), owned_by: "us".to_owned() };
    match method {
        "StreamChat" => Some(vec![piece.encode_to_vec()]),
        "ListModels" => Some(vec![ListModelsResponse { models: vec![model] }.encode_to_vec()]),
        _ => None,
    }
}

#[tokio::test]
async fn a_chat_role_that_keeps_no_sessions_is_not_believed_a_turn_of_one() {
    let (addr, asked) = speaking(Arc::new(earlier)).await;
    let world = gateway(&addr).await;
    for stream in [true, false] {
        let turn = json!({
            "model": "m", "stream": stream, "messages": [{"role": "user", "content": "hi"}],
        });
        let answer = Answer::of(world.begin("/api/v1/chat/completions", &turn).await).await;
        assert_eq!(answer.status, 501, "{answer:?}");
        assert_eq!(answer.json()["error"]["code"], "not_implemented");
        let question = asked.lock().unwrap().last().cloned().unwrap();
        assert!(StreamChatRequest::decode(question).unwrap().stored);
    }
    assert_eq!(asked.lock().unwrap().len(), 2, "nobody asks again");
    assert_eq!(world.ask("hi", json!({})).await.status, 200, "it answers what it can");
}

#[tokio::test]
async fn a_stream_that_an_older_chat_role_does_not_keep_is_kept_in_front_of_it() {
    let (addr, asked) = speaking(Arc::new(earlier)).await;
    let world = gateway(&addr).await;
    let head = [("x-pointsman-resumable", "true")];
    let answer = world.ask_with("hi", json!({"stream": true}), &head).await;
    assert_eq!(answer.header("x-pointsman-resumable"), "this-gateway", "{answer:?}");
    assert!(
        answer.status == 200 && answer.is_done() && answer.text.starts_with("id: 1\n"),
        "{answer:?}"
    );
    let question = asked.lock().unwrap().last().cloned().unwrap();
    assert!(StreamChatRequest::decode(question).unwrap().resumable.is_some(), "it was asked to");
    let path = format!("/v1/streams/{}", answer.header("x-pointsman-stream-id"));
    assert_eq!(world.get(&path).await, answer.text);
    // It cannot be asked for streams, so it has none.
    assert_eq!(world.get_with(&format!("{path}0"), &[]).await.status, 404);
}

#[tokio::test]
async fn a_chat_role_answers_gateways_of_other_versions() {
    let worker = Worker::echo(Duration::ZERO);
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nmodels: {{m: {{endpoints: [{{url: '{}', name: w0}}]}}}}",
        worker.url()
    );
    let chat = World::playing(Role::Chat, &text).await;
    let addr = chat.rpc.unwrap().to_string();
    let asked = question("hi", Default::default());
    let turn =
        StreamChatRequest { model: asked.model, messages: asked.messages, ..Default::default() };
    let method = "chat.v1.ChatService/StreamChat";
    for message in [turn.encode_to_vec(), later(&turn)] {
        let (pieces, status) = told(&addr, method, &message).await;
        assert_eq!(status, "0");
        let first = StreamChatResponse::decode(pieces[0].clone()).unwrap();
        assert_eq!(first.begun.unwrap().replica, "w0");
    }
    for (method, message, code) in [
        (method, newer(), "3"),
        (method, vec![0xff; 9], "13"),
        ("chat.v1.ChatService/ForgetEverything", Vec::new(), "12"),
    ] {
        let (_, status) = told(&addr, method, &message).await;
        assert_eq!(status, code, "{method} {message:?}");
    }
}

#[tokio::test]
async fn a_peer_of_another_kind_is_named_and_nobody_waits_for_it() {
    let worker = Worker::echo(Duration::ZERO);
    // A worker where a chat role should be, and one that knows no method at all.
    let (mute, _) = speaking(Arc::new(|_: &str| None)).await;
    for addr in [worker.addr.to_string(), mute.clone()] {
        let world = gateway(&addr).await;
        let answer = world.ask("hi", json!({})).await;
        assert!(answer.status == 404 || answer.status == 503, "{answer:?}");
        let health = world.get("/health").await;
        assert!(health.contains("c0") && health.contains("false"), "{health}");
    }
    let world = World::before(&[format!("grpc://{mute}")], "routing: {max_retries: 0}").await;
    let answer = world.ask("hi", json!({})).await;
    assert!(answer.status.is_server_error(), "{answer:?}");
}
