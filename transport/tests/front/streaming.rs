//! Streams: forwarded untouched, ended honestly, dropped when nobody listens.

use std::time::Duration;

use bytes::Bytes;
use control::outcome::Failure;
use control::plane::Outcome;
use http::Method;
use http_body_util::{BodyExt, Full};
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;
use transport::exchange::{End, Part};

use crate::world::{
    Act, Answer, HELLO, KEY, World, bearer, client, end, request, script, streaming,
};

const SOON: Duration = Duration::from_secs(2);
const EVENTS: [&str; 4] = [
    "data: {\"choices\":[{\"delta\":{\"content\":\"\u{4f60}\"}}]}\r\n\r\n",
    ": a comment\n\ndata: {\"cho",
    "ices\":[]}\n\n",
    "data: [DONE]\n\n",
];

async fn streamed(parts: Vec<Part>) -> Answer {
    let (sender, play) = script();
    let world = World::new(play);
    for part in parts {
        sender.send(part).await.unwrap();
    }
    drop(sender);
    let answer = world.post("/v1/chat/completions", streaming(HELLO)).await;
    world.quiet().await;
    answer
}

fn bytes(text: &'static str) -> Part {
    Part::Bytes(Bytes::from_static(text.as_bytes()))
}

#[tokio::test]
async fn a_streams_bytes_arrive_as_they_were_sent() {
    let mut parts: Vec<Part> = EVENTS.into_iter().map(bytes).collect();
    parts.push(Part::End(end(Outcome::Completed)));
    let answer = streamed(parts).await;
    assert_eq!(answer.text(), EVENTS.concat());
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert_eq!(answer.header("cache-control"), "no-cache");
    assert_eq!(answer.header("x-accel-buffering"), "no");
    assert_eq!(answer.header("x-pointsman-replica"), "replica-b");
}

#[tokio::test]
async fn each_part_leaves_at_once() {
    let (sender, play) = script();
    let world = World::new(play);
    let asked = request(Method::POST, world.url("/v1/chat/completions"))
        .header("authorization", bearer())
        .body(Full::from(streaming(HELLO)))
        .unwrap();
    let mut body = client().request(asked).await.unwrap().into_body();
    for text in EVENTS {
        sender.send(bytes(text)).await.unwrap();
        let frame = timeout(SOON, body.frame()).await.unwrap().unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), text);
    }
}

#[tokio::test]
async fn a_broken_stream_ends_in_an_error_event_and_never_in_done() {
    let broken = End {
        detail: Some("CUDA out of memory".to_owned()),
        ..end(Outcome::Broken(Failure::ErrorInAnswer))
    };
    let answer = streamed(vec![bytes("data: {}\n\n"), Part::End(broken)]).await;
    let event = answer.text().strip_prefix("data: {}\n\ndata: ").unwrap();
    let event = event.strip_suffix("\n\n").unwrap();
    let error: serde_json::Value = serde_json::from_str(event).unwrap();
    assert_eq!(error["error"]["code"], "replica_broke_off");
    assert!(error["error"]["message"].as_str().unwrap().contains("CUDA out of memory"));
    assert!(!answer.text().contains("[DONE]"));
}

#[tokio::test]
async fn a_stream_broken_inside_an_event_closes_it_first() {
    let end = end(Outcome::Broken(Failure::Truncated));
    let answer = streamed(vec![bytes("data: {\"half"), Part::End(end)]).await;
    assert!(answer.text().starts_with("data: {\"half\n\ndata: {\"error\""), "{}", answer.text());
}

#[tokio::test]
async fn a_whole_stream_whose_settlement_was_not_written_does_not_end_cleanly() {
    let end = end(Outcome::Completed);
    let answer = streamed(vec![bytes("data: {}\n\n"), Part::Unrecorded(end)]).await;
    assert!(answer.text().contains("answer_not_recorded"), "{}", answer.text());
    assert!(!answer.text().contains("[DONE]"));
}

#[tokio::test]
async fn a_stream_without_an_end_is_told_as_our_own_fault() {
    let answer = streamed(vec![bytes("data: {}\n\n")]).await;
    assert!(answer.text().contains("answer_lost"));
    assert!(!answer.text().contains("[DONE]"));
}

#[tokio::test]
async fn a_stream_is_counted_by_how_it_ended() {
    let (sender, play) = script();
    let world = World::new(play);
    sender.send(Part::End(end(Outcome::Broken(Failure::Truncated)))).await.unwrap();
    assert_eq!(world.post("/v1/chat/completions", streaming(HELLO)).await.status, 200);
    let figures = world.get("/metrics", "*/*").await;
    let line = r#"gateway_requests_total{provider="scripted",model="demo",status="502"} 1"#;
    assert!(figures.text().contains(line), "{}", figures.text());
}

#[tokio::test]
async fn a_client_that_leaves_mid_stream_drops_the_receiver() {
    let (sender, play) = script();
    let world = World::new(play);
    let mut socket = world.raw(raw_request()).await;
    sender.send(bytes(EVENTS[0])).await.unwrap();
    let mut buf = [0; 16];
    tokio::io::AsyncReadExt::read_exact(&mut socket, &mut buf).await.unwrap();
    drop(socket);
    timeout(SOON, sender.closed()).await.expect("the receiver is dropped without another token");
    world.quiet().await;
}

#[tokio::test]
async fn a_client_that_leaves_before_the_first_byte_drops_the_exchange() {
    let (held, dropped) = oneshot::channel();
    let held = std::sync::Mutex::new(Some(held));
    let world = World::new(move |_| Act::Hang(held.lock().unwrap().take().unwrap()));
    let socket = world.raw(raw_request()).await;
    while world.chat.calls.lock().unwrap().is_empty() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    drop(socket);
    let gone = timeout(SOON, dropped).await.expect("the exchange is dropped");
    assert!(gone.is_err());
    world.quiet().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_holds_the_sender_back() {
    let (sender, play) = script();
    let world = World::new(play);
    let _socket = world.raw(raw_request()).await;
    // More than all buffers on the way: the channel's 16 parts, the server's and the kernel's few MiB.
    let big = Bytes::from(vec![b'x'; 1 << 20]);
    let flood = async {
        for _ in 0..64 {
            sender.send(Part::Bytes(big.clone())).await.unwrap();
        }
    };
    assert!(timeout(Duration::from_millis(500), flood).await.is_err(), "backpressure reaches us");
}

#[tokio::test]
async fn a_hundred_streams_at_once_leave_nothing_behind() {
    let world = World::new(|_| {
        let (sender, receiver) = mpsc::channel(8);
        tokio::spawn(async move {
            for text in EVENTS {
                sender.send(bytes(text)).await.unwrap();
            }
            sender.send(Part::End(end(Outcome::Completed))).await.unwrap();
        });
        Act::Stream(receiver)
    });
    let answers = (0..100).map(|_| world.post("/v1/chat/completions", streaming(HELLO)));
    for answer in futures_util::future::join_all(answers).await {
        assert_eq!(answer.text(), EVENTS.concat());
    }
    world.quiet().await;
}

fn raw_request() -> String {
    let body = streaming(HELLO);
    format!(
        "POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {KEY}\r\ncontent-length: {}\r\n\r\n{body}",
        body.len()
    )
}
