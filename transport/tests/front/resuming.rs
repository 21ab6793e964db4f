//! Streams whose client goes away and comes back.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use control::outcome::Failure;
use control::plane::Outcome;
use http::{HeaderMap, Method, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use tokio::sync::mpsc::Sender;
use tokio::time::timeout;
use transport::exchange::Part;
use transport::streams::{Limits, Streams};

use crate::world::{
    ANSWER, Act, Answer, HELLO, KEY, World, client, end, request, script, send, streaming,
};

const SOON: Duration = Duration::from_secs(5);
const ID: &str = "req_1-beef";
const PATH: &str = "/v1/streams/req_1-beef";

#[tokio::test]
async fn a_resumable_stream_numbers_its_events_and_ends_in_one_done() {
    let (world, sender) = world(Limits::default());
    let parts = ["data: {\"n\":1}\n\n", "id: theirs\ndata: {\"n\":2}\n\n", "data: [DONE]\n\n"];
    for part in parts {
        sender.send(bytes(part)).await.unwrap();
    }
    sender.send(Part::End(end(Outcome::Completed))).await.unwrap();
    let mut reader = Reader::open(&world).await;
    assert_eq!(reader.header("x-pointsman-resumable"), "this-gateway");
    assert_eq!(reader.header("x-pointsman-stream-id"), ID);
    assert_eq!(reader.header("x-request-id"), ID);
    let whole = "id: 1\ndata: {\"n\":1}\n\nid: 2\ndata: {\"n\":2}\n\nid: 3\ndata: [DONE]\n\n";
    assert_eq!(reader.rest().await, whole);
    world.quiet().await;
    // It is kept for a while, and whole.
    assert_eq!(world.get(PATH, "*/*").await.text(), whole);
}

#[tokio::test]
async fn a_client_that_comes_back_gets_the_rest_once() {
    let (world, sender) = world(Limits::default());
    let mut first = Reader::open_after(&world, &sender, 2).await;
    first.until("id: 2\ndata: 2\n\n").await;
    drop(first);
    send_numbers(&sender, 3..=5).await;
    let mut second = Reader::resume(&world, 2).await;
    second.until("id: 5\ndata: 5\n\n").await;
    send_numbers(&sender, 6..=6).await;
    sender.send(Part::End(end(Outcome::Completed))).await.unwrap();
    second.rest().await;
    assert_eq!(second.text, numbers(3..=6) + "id: 7\ndata: [DONE]\n\n");
    world.quiet().await;
    let line = "status=\"200\"} 1";
    assert!(world.get("/metrics", "*/*").await.text().contains(line), "it is one request");
}

#[tokio::test]
async fn whoever_has_no_business_with_a_stream_is_told_in_clear_words() {
    let (world, sender) = world(Limits::default());
    let mut reader = Reader::open_after(&world, &sender, 1).await;
    reader.until("id: 1\n").await;
    for (path, key, last, status, code) in [
        (PATH, "sk-other-tenant", "0", 404, "stream_not_found"),
        ("/v1/streams/req_1-dead", KEY, "0", 404, "stream_not_found"),
        ("/v1/streams/a%2Fb%20c", KEY, "0", 404, "stream_not_found"),
        (PATH, "sk-nobody", "0", 401, "invalid_api_key"),
        (PATH, KEY, "2", 400, "last_event_id_beyond"),
        (PATH, KEY, "two", 400, "invalid_last_event_id"),
    ] {
        let answer = ask(&world, path, key, last).await;
        assert_eq!(
            (answer.status.as_u16(), &*answer.code()),
            (status, code),
            "{path} {key} {last}"
        );
    }
    // None of them has cut the reader off.
    sender.send(Part::End(end(Outcome::Completed))).await.unwrap();
    assert!(reader.rest().await.ends_with("id: 2\ndata: [DONE]\n\n"));
    assert_eq!(ask(&world, PATH, KEY, "2").await.status, StatusCode::NO_CONTENT);
    assert_eq!(world.post(PATH, "{}").await.code(), "method_not_allowed");
}

#[tokio::test]
async fn a_client_that_does_not_come_back_is_gone_after_the_grace_time_and_not_before() {
    let grace = Duration::from_millis(400);
    let (world, sender) = world(Limits { grace, ..Limits::default() });
    let mut reader = Reader::open_after(&world, &sender, 1).await;
    reader.until("id: 1\n").await;
    let left = tokio::time::Instant::now();
    drop(reader);
    timeout(SOON, sender.closed()).await.unwrap();
    assert!(left.elapsed() >= grace, "{:?}", left.elapsed());
    world.quiet().await;
    let told = ask(&world, PATH, KEY, "0").await;
    assert!(
        told.text().starts_with("id: 1\ndata: 1\n\nid: 2\ndata: {\"error\""),
        "{}",
        told.text()
    );
    assert!(told.text().contains("stream_abandoned") && !told.text().contains("[DONE]"));
    let figures = world.get("/metrics", "*/*").await;
    assert!(figures.text().contains("status=\"499\"} 1"), "{}", figures.text());
    let line = "pointsman_streams_ended_total{outcome=\"abandoned\"} 1";
    assert!(figures.text().contains(line), "{}", figures.text());
}

#[tokio::test]
async fn another_stream_is_cancelled_at_once_as_ever() {
    let (world, sender) = world(Limits::default());
    let asked = request(Method::POST, world.url("/v1/chat/completions"))
        .header("authorization", format!("Bearer {KEY}"))
        .header("x-pointsman-resumable", "false");
    let mut reader = Reader::of(asked.body(Full::from(streaming(HELLO))).unwrap()).await;
    assert_eq!(reader.header("x-pointsman-resumable"), "-");
    send_numbers(&sender, 1..=1).await;
    reader.until("data: 1\n\n").await;
    assert_eq!(reader.text, "data: 1\n\n", "without a number");
    drop(reader);
    timeout(Duration::from_secs(2), sender.closed()).await.expect("no grace for it");
    assert_eq!(ask(&world, PATH, KEY, "0").await.code(), "stream_not_found");
}

#[tokio::test]
async fn of_two_readers_the_later_one_wins_and_the_earlier_is_told() {
    let (world, sender) = world(Limits::default());
    let mut first = Reader::open_after(&world, &sender, 1).await;
    first.until("id: 1\n").await;
    let mut second = Reader::resume(&world, 0).await;
    let told = first.rest().await;
    assert!(told.contains("stream_taken_over") && !told.contains("[DONE]"), "{told}");
    assert!(!told.contains("id: 2"), "its last words are no event of the stream: {told}");
    // The one that was cut off counts for nothing.
    drop(first);
    send_numbers(&sender, 2..=2).await;
    second.until("id: 2\ndata: 2\n\n").await;
    assert_eq!(second.text, numbers(1..=2));
}

#[tokio::test]
async fn an_answer_that_breaks_ends_in_an_error_for_whoever_resumes_too() {
    let (world, sender) = world(Limits::default());
    let mut reader = Reader::open_after(&world, &sender, 1).await;
    reader.until("id: 1\n").await;
    drop(reader);
    sender.send(Part::End(end(Outcome::Broken(Failure::Truncated)))).await.unwrap();
    for _ in 0..2 {
        let told = ask(&world, PATH, KEY, "1").await;
        assert!(told.text().starts_with("id: 2\ndata: {\"error\""), "{}", told.text());
        assert!(told.text().contains("replica_broke_off") && !told.text().contains("[DONE]"));
    }
}

#[tokio::test]
async fn a_full_log_holds_the_answer_back_and_drops_only_what_was_sent() {
    let (world, sender) = world(Limits { entries_max: 4, ..Limits::default() });
    let mut reader = Reader::open_after(&world, &sender, 2).await;
    reader.until("id: 2\n").await;
    reader.leave(&world).await;
    // Two that were sent make room; four that were not stay; those in the channel wait.
    let flood = send_numbers(&sender, 3..=60);
    assert!(timeout(Duration::from_millis(300), flood).await.is_err(), "there is room for few");
    let gone = ask(&world, PATH, KEY, "0").await;
    assert_eq!((gone.status, gone.code()), (StatusCode::GONE, "stream_events_gone".to_owned()));
    let mut reader = Reader::resume(&world, 2).await;
    reader.until("id: 6\ndata: 6\n\n").await;
    drop(sender);
    let told = reader.rest().await;
    assert!(told.starts_with(&numbers(3..=10)), "nothing is missing: {told}");
    assert!(told.contains("answer_lost"), "{told}");
}

#[tokio::test]
async fn more_streams_than_may_be_kept_are_refused_before_anything_is_spent() {
    let streams = Streams::new(Limits { streams_max: 1, ..Limits::default() });
    let (sender, play) = script();
    let world = World::keeping(streams, play);
    let mut reader = Reader::open_after(&world, &sender, 1).await;
    reader.until("id: 1\n").await;
    let refused = open(&world).await;
    assert_eq!((refused.status.as_u16(), &*refused.code()), (503, "streams_full"));
    assert_eq!(refused.header("retry-after"), "1");
    assert_eq!(world.chat.calls.lock().unwrap().len(), 1);
    sender.send(Part::End(end(Outcome::Completed))).await.unwrap();
    reader.rest().await;
    world.quiet().await;
    // The script has no second stream: that it breaks shows that it was asked for one.
    assert_eq!(open(&world).await.code(), "internal_error");
    assert_eq!(ask(&world, PATH, KEY, "0").await.code(), "stream_not_found", "it made room");
}

#[tokio::test]
async fn comments_pass_and_are_not_kept() {
    let (world, sender) = world(Limits::default());
    let mut reader = Reader::open_after(&world, &sender, 1).await;
    reader.until("id: 1\n").await;
    sender.send(bytes(": still there\n\n")).await.unwrap();
    reader.until(": still there\n\n").await;
    sender.send(Part::End(end(Outcome::Completed))).await.unwrap();
    reader.rest().await;
    assert_eq!(ask(&world, PATH, KEY, "1").await.text(), "id: 2\ndata: [DONE]\n\n");
}

#[tokio::test]
async fn where_an_answer_went_on_elsewhere_is_told_in_its_place_and_to_nobody_who_is_past_it() {
    let (world, sender) = world(Limits::default());
    let seam = ": resumed after 2 tokens by w1\n\n";
    let mut reader = Reader::open_after(&world, &sender, 2).await;
    reader.until("id: 2\n").await;
    sender.send(bytes(seam)).await.unwrap();
    send_numbers(&sender, 3..=4).await;
    reader.until("id: 4\ndata: 4\n\n").await;
    let behind = format!("{seam}{}", numbers(3..=4));
    assert_eq!(reader.text, numbers(1..=2) + &behind);
    // The last word of an answer that broke once more may be all that follows.
    let again = ": resumed after 4 tokens by w0\n\n";
    sender.send(bytes(again)).await.unwrap();
    sender.send(Part::End(end(Outcome::Completed))).await.unwrap();
    reader.rest().await;
    let end = format!("{again}id: 5\ndata: [DONE]\n\n");
    for (last, rest) in [
        ("0", numbers(1..=2) + &behind + &end),
        ("2", behind + &end),
        ("3", numbers(4..=4) + &end),
        ("4", end),
    ] {
        assert_eq!(ask(&world, PATH, KEY, last).await.text(), rest, "after {last}");
    }
}

#[tokio::test]
async fn a_gateway_that_stops_says_so_to_whoever_reads() {
    let streams = Streams::new(Limits::default());
    let (sender, play) = script();
    let world = World::keeping(Arc::clone(&streams), play);
    let mut reader = Reader::open_after(&world, &sender, 1).await;
    reader.until("id: 1\n").await;
    streams.stop(SOON).await;
    assert!(sender.is_closed(), "the chat role knows");
    let told = reader.rest().await;
    assert!(told.contains("gateway_stopping") && !told.contains("[DONE]"), "{told}");
}

#[tokio::test]
async fn the_header_is_true_or_false_and_means_nothing_without_a_stream() {
    let world = World::new(|_| Act::Whole(ANSWER));
    let asked = |word: &'static str| {
        request(Method::POST, world.url("/v1/chat/completions"))
            .header("authorization", format!("Bearer {KEY}"))
            .header("x-pointsman-resumable", word)
            .body(Full::from(HELLO))
            .unwrap()
    };
    let answer = send(asked("true")).await;
    assert_eq!((answer.text(), answer.header("x-pointsman-resumable")), (ANSWER, "-"));
    let answer = send(asked("yes")).await;
    assert_eq!((answer.status.as_u16(), &*answer.code()), (400, "invalid_header"));
}

fn world(limits: Limits) -> (World, Sender<Part>) {
    let (sender, play) = script();
    (World::keeping(Streams::new(limits), play), sender)
}

fn bytes(text: &str) -> Part {
    Part::Bytes(Bytes::copy_from_slice(text.as_bytes()))
}

async fn send_numbers(sender: &Sender<Part>, numbers: std::ops::RangeInclusive<u32>) {
    for number in numbers {
        sender.send(bytes(&format!("data: {number}\n\n"))).await.unwrap();
    }
}

/// As they arrive.
fn numbers(numbers: std::ops::RangeInclusive<u32>) -> String {
    numbers.map(|number| format!("id: {number}\ndata: {number}\n\n")).collect()
}

async fn ask(world: &World, path: &str, key: &str, last: &str) -> Answer {
    let asked = request(Method::GET, world.url(path))
        .header("authorization", format!("Bearer {key}"))
        .header("last-event-id", last);
    timeout(SOON, send(asked.body(Full::default()).unwrap())).await.unwrap()
}

fn opening(world: &World) -> http::Request<Full<Bytes>> {
    let asked = request(Method::POST, world.url("/v1/chat/completions"))
        .header("authorization", format!("Bearer {KEY}"))
        .header("x-pointsman-resumable", "true");
    asked.body(Full::from(streaming(HELLO))).unwrap()
}

async fn open(world: &World) -> Answer {
    timeout(SOON, send(opening(world))).await.unwrap()
}

/// A client that reads; dropped, its connection is.
struct Reader {
    headers: HeaderMap,
    body: Incoming,
    text: String,
}

impl Reader {
    async fn of(asked: http::Request<Full<Bytes>>) -> Self {
        let answer = timeout(SOON, client().request(asked)).await.unwrap().unwrap();
        let (head, body) = answer.into_parts();
        assert_eq!(head.status, 200);
        assert_eq!(head.headers["content-type"], "text/event-stream");
        Self { headers: head.headers, body, text: String::new() }
    }

    async fn open(world: &World) -> Self {
        Self::of(opening(world)).await
    }

    /// Of a stream that has so many events.
    async fn open_after(world: &World, sender: &Sender<Part>, count: u32) -> Self {
        send_numbers(sender, 1..=count).await;
        Self::open(world).await
    }

    async fn resume(world: &World, last: u64) -> Self {
        let asked = request(Method::GET, world.url(PATH))
            .header("authorization", format!("Bearer {KEY}"))
            .header("last-event-id", last.to_string());
        Self::of(asked.body(Full::default()).unwrap()).await
    }

    fn header(&self, name: &str) -> &str {
        self.headers.get(name).map_or("-", |value| value.to_str().unwrap())
    }

    /// Reads until this has come.
    async fn until(&mut self, words: &str) {
        while !self.text.contains(words) {
            let frame = timeout(SOON, self.body.frame()).await;
            let frame = frame.unwrap_or_else(|_| panic!("{words:?} never comes: {:?}", self.text));
            let data = frame.expect("the stream ended").unwrap().into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
    }

    /// Leaves, and waits until the server has noticed: until then it sends into a socket that nobody reads.
    async fn leave(self, world: &World) {
        drop(self);
        let noticed = async {
            while world.meters.connections() > 0 {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        timeout(SOON, noticed).await.unwrap();
    }

    /// Reads to the end; all that has come.
    async fn rest(&mut self) -> String {
        while let Some(frame) = timeout(SOON, self.body.frame()).await.unwrap() {
            let data = frame.unwrap().into_data().unwrap();
            self.text.push_str(std::str::from_utf8(&data).unwrap());
        }
        self.text.clone()
    }
}
