//! Resumable streams that the chat role keeps, so that the gateway role in front may die: taken up again at another gateway
//! that knows the same chat roles.

use core::time::Duration;

use http_body_util::BodyExt;
use proto::chat::v1::{Resumable, ResumeStreamRequest};
use proto::inference::v1::Parameters;
use serde_json::{Value, json};
use tokio::time::timeout;
use tonic::{Code, Status};
use transport::worker::{Backend, Hash};

use crate::roles::{chat_before, client, gateway, turn};
use crate::world::{Answer, LONG, Worker, World};

const QUESTION: &str = "Tell me of points and trains.";
const RESUMABLE: (&str, &str) = ("x-pointsman-resumable", "true");

pub fn hashing(delay: Duration) -> Worker {
    Worker::new(Backend::Hash(Hash { delay, seed: 7 }))
}

/// Slow enough that there is time to leave in the middle.
fn slow() -> Worker {
    hashing(Duration::from_millis(15))
}

pub fn body(more: &Value) -> Value {
    let mut body = json!({
        "model": "m", "stream": true, "max_tokens": 80,
        "messages": [{"role": "user", "content": QUESTION}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    body
}

/// A client that has read some of a stream.
pub struct Client {
    pub id: String,
    pub told: String,
    rest: hyper::body::Incoming,
}

impl Client {
    pub async fn begin(world: &World, more: &Value, headers: &[(&str, &str)]) -> Self {
        let headers = [&[RESUMABLE], headers].concat();
        let response = world.begin_with("/v1/chat/completions", &body(more), &headers).await;
        let (head, rest) = response.into_parts();
        assert_eq!(
            (head.status.as_u16(), &head.headers["x-pointsman-resumable"]),
            (200, &"any-gateway".parse().unwrap())
        );
        let id = head.headers["x-pointsman-stream-id"].to_str().unwrap().to_owned();
        Self { id, told: String::new(), rest }
    }

    /// Comes back to it.
    pub async fn again(world: &World, id: &str, after: u64) -> Self {
        let path = format!("/v1/streams/{id}?last_event_id={after}");
        let (head, rest) = world.get_begun(&path, &[]).await.into_parts();
        assert_eq!(head.status, 200);
        Self { id: id.to_owned(), told: String::new(), rest }
    }

    pub async fn until(mut self, words: &str) -> Self {
        while !self.told.contains(words) {
            let frame = timeout(LONG, self.rest.frame()).await.unwrap().unwrap().unwrap();
            self.told += core::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
        self
    }

    pub async fn finish(mut self) -> String {
        let rest = timeout(LONG, self.rest.collect()).await.unwrap().unwrap().to_bytes();
        self.told += core::str::from_utf8(&rest).unwrap();
        self.told
    }

    /// The number of the last event that came whole.
    pub fn last(&self) -> u64 {
        last(&self.told)
    }
}

pub fn last(told: &str) -> u64 {
    numbers(told).last().copied().unwrap_or_default()
}

pub fn numbers(told: &str) -> Vec<u64> {
    let whole = told.rsplit_once("\n\n").map_or("", |(whole, _)| whole);
    let ids = whole.split("\n\n").filter_map(|block| block.strip_prefix("id: "));
    ids.map(|id| id.split_once('\n').unwrap().0.parse().unwrap()).collect()
}

/// Its events without their numbers, as any other stream has them.
pub fn plain(told: &str) -> Answer {
    let lines = told.split_inclusive('\n').filter(|line| !line.starts_with("id: "));
    Answer { status: http::StatusCode::OK, headers: http::HeaderMap::new(), text: lines.collect() }
}

pub async fn resumed(world: &World, id: &str, after: u64, headers: &[(&str, &str)]) -> Answer {
    world.get_with(&format!("/v1/streams/{id}?last_event_id={after}"), headers).await
}

/// What `/metrics` says was used.
pub async fn used(world: &World) -> u64 {
    let metrics = world.get("/metrics").await;
    let lines = metrics.lines().filter(|line| line.starts_with("gateway_tokens_used_total"));
    lines.map(|line| line.rsplit_once(' ').unwrap().1.parse::<u64>().unwrap()).sum()
}

#[tokio::test]
async fn a_stream_whose_gateway_is_gone_goes_on_whole_at_another() {
    let quick = hashing(Duration::ZERO);
    for usage in [false, true] {
        let more = json!({"stream_options": {"include_usage": usage}});
        let whole = World::before(&[quick.url()], "").await;
        let unbroken = Answer::of(whole.begin("/v1/chat/completions", &body(&more)).await).await;
        let workers = [slow(), slow()];
        let (one, two) = (chat_before(&workers[0], "").await, chat_before(&workers[1], "").await);
        let (first, second) = (gateway(&[&one, &two], "").await, gateway(&[&one, &two], "").await);
        let client = Client::begin(&first, &more, &[]).await.until("id: 12\n").await;
        let Client { id, told, rest } = client;
        let after = last(&told);
        // With all its connections.
        drop((rest, first));
        let rest = resumed(&second, &id, after, &[]).await;
        assert_eq!(rest.status, 200, "{rest:?}");
        assert_eq!(rest.header("x-pointsman-stream-id"), id);
        let (before, _) = told.split_at(told.rfind("\n\n").unwrap() + 2);
        let all = format!("{before}{}", rest.text);
        let expected: Vec<u64> = (1..=last(&all)).collect();
        assert_eq!(numbers(&all), expected, "each once: {all}");
        let all = plain(&all);
        assert!(all.is_done(), "{all:?}");
        assert_eq!(all.text.matches("[DONE]").count(), 1);
        assert_eq!(all.told(), unbroken.told(), "token for token");
        assert_eq!(all.events().len(), unbroken.events().len(), "{all:?}");
        let bill = |answer: &Answer| answer.events().last().unwrap()["usage"].clone();
        assert_eq!(bill(&all), bill(&unbroken), "told to whoever asked for it");
        assert_eq!(used(&one).await + used(&two).await, used(&whole).await, "one bill");
        // As often as wanted, and by nobody else's number.
        let again = resumed(&second, &id, 0, &[]).await;
        assert_eq!(plain(&again.text).told(), unbroken.told());
        let end = last(&again.text);
        assert_eq!(resumed(&second, &id, end, &[]).await.status, 204);
        let beyond = resumed(&second, &id, end + 1, &[]).await;
        assert_eq!(
            (beyond.status.as_u16(), beyond.json()["error"]["code"].clone()),
            (400, json!("last_event_id_beyond"))
        );
        assert_eq!(resumed(&second, &format!("{id}0"), 0, &[]).await.status, 404);
    }
}

#[tokio::test]
async fn who_resumes_at_another_gateway_cuts_off_who_reads_at_the_first() {
    let worker = slow();
    let chat = chat_before(&worker, "").await;
    let (first, second) = (gateway(&[&chat], "").await, gateway(&[&chat], "").await);
    let client = Client::begin(&first, &json!({}), &[]).await.until("id: 5\n").await;
    let (id, after) = (client.id.clone(), client.last());
    let (cut, rest) = tokio::join!(client.finish(), resumed(&second, &id, after, &[]));
    assert!(cut.contains("\"code\":\"stream_taken_over\"") && !cut.contains("[DONE]"), "{cut}");
    assert!(plain(&rest.text).is_done(), "{rest:?}");
    assert_eq!(numbers(&rest.text).first(), Some(&(after + 1)));
}

#[tokio::test]
async fn a_client_that_stays_away_is_given_up_behind_the_gateway() {
    let worker = hashing(Duration::from_millis(100));
    let chat = chat_before(&worker, "streams: {grace: 1s}").await;
    let world = gateway(&[&chat], "").await;
    let client = Client::begin(&world, &json!({}), &[]).await.until("id: 3\n").await;
    worker.runs(1).await;
    let Client { id, told, rest } = client;
    drop(rest);
    worker.runs(0).await;
    let rest = resumed(&world, &id, last(&told), &[]).await;
    assert!(rest.text.contains("\"code\":\"stream_abandoned\""), "{rest:?}");
    assert!(!rest.text.contains("[DONE]"), "{rest:?}");
}

#[tokio::test]
async fn a_stream_is_found_for_its_own_key_alone_and_by_its_whole_name() {
    let worker = hashing(Duration::ZERO);
    let keys = [(); 2].map(|()| transport::keys::generate().unwrap());
    let known =
        format!("keys: [{{name: a, hash: '{}'}}, {{name: b, hash: '{}'}}]", keys[0].1, keys[1].1);
    let bearers = keys.each_ref().map(|key| format!("Bearer {}", key.0.expose()));
    let (one, two) = (chat_before(&worker, &known).await, chat_before(&worker, &known).await);
    let (first, second) =
        (gateway(&[&one, &two], &known).await, gateway(&[&one, &two], &known).await);
    let own = [("authorization", &*bearers[0])];
    let client = Client::begin(&first, &json!({}), &own).await;
    let (id, told) = (client.id.clone(), client.finish().await);
    // Both chat roles count their requests from one.
    assert!(id.contains('.'), "{id}");
    assert_eq!(resumed(&second, &id, 0, &own).await.text, told);
    let other = resumed(&second, &id, 0, &[("authorization", &*bearers[1])]).await;
    assert_eq!(
        (other.status.as_u16(), other.json()["error"]["code"].clone()),
        (404, json!("stream_not_found"))
    );
    let short = id.split_once('.').unwrap().0;
    assert_eq!(resumed(&second, short, 0, &own).await.status, 404);
    assert_eq!(resumed(&second, &id, 0, &[]).await.status, 401);
}

#[tokio::test]
async fn a_chat_role_that_is_away_or_full_is_told_as_what_it_is() {
    let worker = hashing(Duration::ZERO);
    let chat = chat_before(&worker, "streams: {streams_max: 0}").await;
    let world = gateway(&[&chat], "").await;
    let full = world.ask_with(QUESTION, json!({"stream": true}), &[RESUMABLE]).await;
    assert_eq!(
        (full.status.as_u16(), full.json()["error"]["code"].clone()),
        (503, json!("streams_full"))
    );
    assert_eq!(used(&chat).await, 0, "nothing was spent");
    assert_eq!(
        world.ask(QUESTION, json!({"stream": true})).await.status,
        200,
        "without it, it answers"
    );
    drop(chat);
    let lost = resumed(&world, "req_1-2.0000000000000001", 0, &[]).await;
    assert_eq!(
        (lost.status.as_u16(), lost.json()["error"]["code"].clone()),
        (503, json!("stream_log_unavailable"))
    );
}

/// The rest of a stream over gRPC, and whether the first message said that there is none.
async fn rest_of(chat: &World, id: &str, last_event_id: u64) -> Result<(bool, String), Status> {
    let stream_id = id.to_owned();
    let ask = ResumeStreamRequest { stream_id, last_event_id, ..ResumeStreamRequest::default() };
    let mut said = client(chat).await.resume_stream(ask).await?.into_inner();
    let first = timeout(LONG, said.message()).await.unwrap()?.unwrap();
    let mut events = first.events;
    while let Some(next) = timeout(LONG, said.message()).await.unwrap()? {
        assert!(!next.complete, "only the first says so");
        events.extend(next.events);
    }
    Ok((first.complete, String::from_utf8(events).unwrap()))
}

#[tokio::test]
async fn over_grpc_a_kept_stream_has_its_events_beside_its_chunks_and_goes_on() {
    let worker = slow();
    let chat = chat_before(&worker, "").await;
    let parameters = Parameters { max_tokens: Some(60), ..Parameters::default() };
    let mut asked = turn(QUESTION, parameters);
    asked.resumable = Some(Resumable { usage_event: false });
    let mut said = client(&chat).await.stream_chat(asked.clone()).await.unwrap().into_inner();
    let (mut events, mut id) = (Vec::new(), String::new());
    while numbers(core::str::from_utf8(&events).unwrap()).len() < 8 {
        let piece = timeout(LONG, said.message()).await.unwrap().unwrap().unwrap();
        assert!(piece.chunk.is_some() && !piece.event.is_empty(), "{piece:?}");
        id.extend(piece.begun.map(|begun| begun.stream_id));
        events.extend(piece.event);
    }
    drop(said);
    let before = String::from_utf8(events).unwrap();
    let (complete, rest) = rest_of(&chat, &id, last(&before)).await.unwrap();
    let all = before + &rest;
    assert!(!complete && numbers(&all) == (1..=last(&all)).collect::<Vec<_>>(), "{all}");
    assert_eq!(rest_of(&chat, &id, last(&all)).await.unwrap(), (true, String::new()));
    for (id, after, code) in [
        (&*id, last(&all) + 1, Code::InvalidArgument),
        ("req_1-2", 0, Code::NotFound),
        ("../../v1/models", 0, Code::NotFound),
        ("", 0, Code::NotFound),
    ] {
        let refused = rest_of(&chat, id, after).await.unwrap_err();
        assert_eq!(refused.code(), code, "{id} {after}: {refused:?}");
    }
    // Whole, the same by its chunks; and the usage comes with the last, though no event tells it.
    let mut said = client(&chat).await.stream_chat(asked).await.unwrap().into_inner();
    let (mut text, mut usage) = (String::new(), None);
    while let Some(piece) = timeout(LONG, said.message()).await.unwrap().unwrap() {
        let chunk = piece.chunk.unwrap();
        text += &chunk.text;
        usage = chunk.usage.or(usage);
        assert!(!String::from_utf8(piece.event).unwrap().contains("usage"));
    }
    assert_eq!(plain(&all).told(), text);
    assert_eq!(usage.unwrap().completion_tokens, 60);
}

#[tokio::test]
async fn over_a_gateways_grpc_a_kept_stream_ends_clean_and_says_what_it_came_to() {
    let worker = hashing(Duration::ZERO);
    let chat = chat_before(&worker, "").await;
    let world = gateway(&[&chat], "server: {grpc: {addr: '127.0.0.1:0'}}").await;
    let parameters = Parameters { max_tokens: Some(60), ..Parameters::default() };
    let mut asked = turn(QUESTION, parameters);
    asked.resumable = Some(Resumable { usage_event: false });
    let mut said = client(&world).await.stream_chat(asked).await.unwrap().into_inner();
    let (mut events, mut usage) = (Vec::new(), None);
    while let Some(piece) = timeout(LONG, said.message()).await.unwrap().unwrap() {
        usage = piece.chunk.and_then(|chunk| chunk.usage).or(usage);
        events.extend(piece.event);
    }
    let events = String::from_utf8(events).unwrap();
    assert!(events.ends_with("data: [DONE]\n\n") && !events.contains("usage"), "{events}");
    assert_eq!(usage.unwrap().completion_tokens, 60);
    for role in [&world, &chat] {
        let metrics = role.get("/metrics").await;
        assert!(!metrics.contains("499"), "nobody left: {metrics}");
    }
}

#[tokio::test]
async fn a_gateway_without_a_place_of_its_own_has_its_streams_kept_all_the_same() {
    let worker = hashing(Duration::ZERO);
    let chat = chat_before(&worker, "").await;
    let world = gateway(&[&chat], "streams: {streams_max: 0}").await;
    let client = Client::begin(&world, &json!({}), &[]).await;
    let (id, told) = (client.id.clone(), client.finish().await);
    assert_eq!(resumed(&world, &id, 0, &[]).await.text, told);
}

#[tokio::test]
async fn a_chat_role_that_judges_no_keys_keeps_no_stream_of_a_gateways_callers() {
    let worker = hashing(Duration::ZERO);
    let key = transport::keys::generate().unwrap();
    let chat = chat_before(&worker, "").await;
    let world = gateway(&[&chat], &format!("keys: [{{name: a, hash: '{}'}}]", key.1)).await;
    let bearer = format!("Bearer {}", key.0.expose());
    let own = [("authorization", &*bearer), RESUMABLE];
    let response = world.begin_with("/v1/chat/completions", &body(&json!({})), &own).await;
    assert_eq!(response.headers()["x-pointsman-resumable"], "this-gateway");
    let id = response.headers()["x-pointsman-stream-id"].to_str().unwrap().to_owned();
    assert!(Answer::of(response).await.is_done());
    assert_eq!(resumed(&world, &id, 0, &own[..1]).await.status, 200);
    assert_eq!(rest_of(&chat, &id, 0).await.unwrap_err().code(), Code::NotFound);
}
