//! Where an answer went on at another replica, told to whoever asked the chat role: over gRPC, and through a gateway role.

use core::time::Duration;

use control::id::RequestId;
use http_body_util::BodyExt;
use proto::chat::v1::chat_service_client::ChatServiceClient;
use proto::chat::v1::{StreamChatRequest, StreamChatResponse};
use proto::inference::v1::Parameters;
use serde_json::json;
use tokio::time::timeout;
use tonic::Request;
use transport::config::Role;
use transport::inspect::Inspection;
use transport::worker::{Backend, Hash};

use crate::world::{Answer, LONG, Worker, World, question};

const QUESTION: &str = "Tell me of points and trains.";
const TOKENS: u32 = 80;

fn hashing(delay: Duration) -> Worker {
    Worker::new(Backend::Hash(Hash { delay, seed: 7 }))
}

/// Slow enough that there is time to kill one in the middle.
fn slow() -> [Worker; 2] {
    [hashing(Duration::from_millis(15)), hashing(Duration::from_millis(15))]
}

/// A chat role before these workers, named `w0`, `w1`.
async fn chat_before(workers: &[Worker]) -> World {
    let endpoint =
        |(at, worker): (usize, &Worker)| format!("{{url: '{}', name: w{at}}}", worker.url());
    let endpoints: Vec<_> = workers.iter().enumerate().map(endpoint).collect();
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nmodels: {{m: {{endpoints: [{}]}}}}\n\
         routing: {{max_retries: 5, breaker: {{consecutive_failures: 100}}}}",
        endpoints.join(", ")
    );
    World::playing(Role::Chat, &text).await
}

fn turn() -> StreamChatRequest {
    let asked =
        question(QUESTION, Parameters { max_tokens: Some(TOKENS), ..Parameters::default() });
    StreamChatRequest {
        model: asked.model,
        messages: asked.messages,
        parameters: asked.parameters,
        ..StreamChatRequest::default()
    }
}

/// All pieces of a turn; `heard` is called with those that have come so far.
async fn pieces(
    chat: &World,
    mut heard: impl FnMut(&[StreamChatResponse]),
) -> Vec<StreamChatResponse> {
    let url = format!("http://{}", chat.rpc.unwrap());
    let mut client = ChatServiceClient::connect(url).await.unwrap();
    let mut stream = client.stream_chat(Request::new(turn())).await.unwrap().into_inner();
    let mut pieces = Vec::new();
    while let Some(piece) = timeout(LONG, stream.message()).await.unwrap().unwrap() {
        pieces.push(piece);
        heard(&pieces);
    }
    pieces
}

fn text(pieces: &[StreamChatResponse]) -> String {
    pieces.iter().map(|piece| &*piece.chunk.as_ref().unwrap().text).collect()
}

#[tokio::test]
async fn over_grpc_the_seam_is_told_with_the_first_piece_behind_it() {
    let alone = [hashing(Duration::ZERO)];
    let whole = pieces(&chat_before(&alone).await, |_| {}).await;
    assert!(whole.iter().all(|piece| piece.resumed.is_none()), "nothing broke");

    let mut workers = slow();
    let chat = chat_before(&workers).await;
    let mut killed = None;
    let broken = pieces(&chat, |pieces| {
        if pieces.len() == 10 {
            let at = usize::from(pieces[0].begun.as_ref().unwrap().replica == "w1");
            workers[at].kill();
            killed = Some(at);
        }
    })
    .await;
    assert_eq!(text(&broken), text(&whole), "token for token");
    let at = broken.iter().position(|piece| piece.resumed.is_some()).unwrap();
    let seam = broken[at].resumed.as_ref().unwrap();
    assert_eq!(seam.replica, format!("w{}", 1 - killed.unwrap()));
    assert!(seam.from_token >= 9 && seam.from_token < u64::from(TOKENS), "{seam:?}");
    assert_eq!(broken.iter().filter(|piece| piece.resumed.is_some()).count(), 1);
    // Each token of this worker is a piece: what was delivered before the seam lies before it.
    assert_eq!(at as u64, seam.from_token, "{seam:?}");
    let request = &broken[0].begun.as_ref().unwrap().request_id;
    let request = RequestId::parse(request).unwrap();
    let explained = Inspection::open(&chat.data()).unwrap().explain(request);
    let explained = explained.unwrap().to_string();
    let from = format!("another attempt at once, from token {} on", seam.from_token);
    assert!(explained.contains(&from), "{from}: {explained}");
}

#[tokio::test]
async fn through_a_gateway_role_the_seam_is_a_comment_again() {
    let alone = [hashing(Duration::ZERO)];
    let asked = json!({"stream": true, "max_tokens": TOKENS});
    let whole = World::before(&[alone[0].url()], "").await.ask(QUESTION, asked.clone()).await;

    let mut workers = slow();
    let chat = chat_before(&workers).await;
    let chats = format!("chats: [{{url: 'chat://{}', name: c0}}]", chat.rpc.unwrap());
    let world = World::playing(Role::Gateway, &chats).await;
    let mut body = json!({"model": "m", "messages": [{"role": "user", "content": QUESTION}]});
    body.as_object_mut().unwrap().extend(asked.as_object().unwrap().clone());
    let (head, mut rest) = world.begin("/v1/chat/completions", &body).await.into_parts();
    let mut told = String::new();
    while told.matches("\"content\":").count() < 10 {
        let frame = timeout(LONG, rest.frame()).await.unwrap().unwrap().unwrap();
        told += core::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    let survivor = crate::world::kill_whoever_is_asked(&mut workers).await;
    let rest = timeout(LONG, rest.collect()).await.unwrap().unwrap().to_bytes();
    told += core::str::from_utf8(&rest).unwrap();
    let (before, seam) = told.split_once(": resumed after ").unwrap();
    let (seam, _) = seam.split_once("\n\n").unwrap();
    let (after, named) = seam.split_once(" tokens by ").unwrap();
    assert_eq!(named, survivor, "the worker's name, not the chat role's");
    assert_eq!(after.parse(), Ok(before.matches("\"content\":").count()), "where it broke: {told}");
    let blocks = told.split_inclusive("\n\n").filter(|block| !block.starts_with(':'));
    let told = Answer { status: head.status, headers: head.headers, text: blocks.collect() };
    assert_eq!((told.told(), told.is_done()), (whole.told(), true), "{told:?}");
}
