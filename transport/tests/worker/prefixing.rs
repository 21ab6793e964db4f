//! OpenAI-compatible servers that continue an answer where they are told to, and such as only say so.

use std::io;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::body::Body;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use axum::routing::post;
use axum::{Json, Router};
use bytes::Bytes;
use futures_util::stream;
use http::StatusCode;
use http_body_util::BodyExt;
use proto::inference::v1::{Parameters, Resume, StreamInferenceRequest};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use tokio::time::{sleep, timeout};
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;
use tonic::Code;
use transport::worker::{Backend, OpenAi};

use crate::resuming::{Told, ask};
use crate::world::{Answer, LONG, Worker, World, question};

/// Words of a whole answer.
const LENGTH: usize = 60;
/// Tokens of every question, as these servers count.
const PROMPT: usize = 11;
/// Slow enough that there is time to kill somebody in the middle.
const SLOW: Duration = Duration::from_millis(15);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Manner {
    /// As vLLM and SGLang.
    Continues,
    /// The same, and tells its usage at the end alone.
    Uncounted,
    /// Passes over what it does not know.
    BeginsAnew,
    /// The same, and does not count either.
    BeginsAnewUncounted,
    /// Takes no members that it does not know.
    Strict,
    /// Takes nothing.
    Refuses(u16),
}

/// A server whose next word is a function of all text before it.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Value>>>,
    dead: CancellationToken,
    _serving: AbortOnDropHandle<()>,
}

type Known = State<(Manner, Duration, Arc<Mutex<Vec<Value>>>, CancellationToken)>;

impl Server {
    async fn start(manner: Manner, delay: Duration) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let app = Router::new().route("/v1/chat/completions", post(complete));
        let dead = CancellationToken::new();
        let app = app.with_state((manner, delay, Arc::clone(&asked), dead.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, asked, dead, _serving: AbortOnDropHandle::new(serving) }
    }

    fn last_asked(&self) -> Value {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

async fn complete(State((manner, delay, asked, dead)): Known, Json(body): Json<Value>) -> Response {
    if dead.is_cancelled() {
        return StatusCode::INTERNAL_SERVER_ERROR.into_response();
    }
    asked.lock().unwrap().push(body.clone());
    if let Manner::Refuses(status) = manner {
        let error =
            json!({"error": {"message": "not so", "type": "odd", "code": "c", "param": "p"}});
        let status = StatusCode::from_u16(status).unwrap();
        return (status, [("retry-after", "7")], Json(error)).into_response();
    }
    let goes_on = body["continue_final_message"] == json!(true);
    if goes_on && manner == Manner::Strict {
        let error = json!({"error": {"message": "extra fields not permitted"}});
        return (StatusCode::BAD_REQUEST, Json(error)).into_response();
    }
    let anew = matches!(manner, Manner::BeginsAnew | Manner::BeginsAnewUncounted);
    let prefix = if goes_on && !anew {
        assert_eq!(body["add_generation_prompt"], json!(false));
        let last = body["messages"].as_array().unwrap().last().unwrap();
        assert_eq!(last["role"], "assistant");
        last["content"].as_str().unwrap().to_owned()
    } else {
        String::new()
    };
    let counts = matches!(manner, Manner::Continues | Manner::BeginsAnew)
        && body["stream_options"]["continuous_usage_stats"] == json!(true);
    let before = prefix.matches(' ').count();
    let most = body["max_tokens"].as_u64().map_or(LENGTH, |most| most as usize);
    let most = most.min(LENGTH - before);
    let end = if before + most == LENGTH { "stop" } else { "length" };
    let usage = move |produced: usize| json!({"prompt_tokens": PROMPT + before, "completion_tokens": produced});
    let event = move |delta: Value, end: Option<&str>, produced: usize| {
        let choice = json!({"index": 0, "delta": delta, "finish_reason": end});
        let usage = if counts { usage(produced) } else { Value::Null };
        json!({"choices": [choice], "usage": usage}).to_string()
    };
    let blocks = stream::unfold((0, prefix, dead), move |(step, mut text, dead)| async move {
        if dead.is_cancelled() {
            return Some((Err(io::Error::other("it died")), (usize::MAX, text, dead)));
        }
        let data = match step {
            0 => event(json!({"role": "assistant", "content": ""}), None, 0),
            step if step <= most => {
                sleep(delay).await;
                let word = word_after(&text);
                text.push_str(&word);
                event(json!({"content": word}), None, step)
            }
            step if step == most + 1 => event(json!({}), Some(end), most),
            step if step == most + 2 => json!({"choices": [], "usage": usage(most)}).to_string(),
            step if step == most + 3 => "[DONE]".to_owned(),
            _ => return None,
        };
        Some((Ok(Bytes::from(format!("data: {data}\n\n"))), (step + 1, text, dead)))
    });
    ([("content-type", "text/event-stream")], Body::from_stream(blocks)).into_response()
}

/// Of very different lengths, so that nobody's estimate is the truth.
fn word_after(text: &str) -> String {
    let digest = Sha256::digest(text);
    let letters = digest.iter().map(|byte| char::from(b'a' + byte % 26));
    let length = 1 + usize::from(digest[0] % 24);
    format!(" {}", letters.take(length).collect::<String>())
}

fn before(server: &Server, revision: &str) -> Worker {
    let backend = OpenAi::new(&server.url).unwrap().continuing(revision.to_owned());
    Worker::new(Backend::OpenAi(Box::new(backend)))
}

fn resumed(asked: &StreamInferenceRequest, unbroken: &Told, at: usize) -> StreamInferenceRequest {
    let words: String = unbroken.text.split_inclusive(' ').take(at + 1).collect();
    let text = words.trim_end().to_owned();
    let text = if at == LENGTH { unbroken.text.clone() } else { text };
    let resume = Resume {
        seq: at as u64,
        text,
        fingerprint: unbroken.fingerprint.clone(),
        ..Resume::default()
    };
    StreamInferenceRequest { resume: Some(resume), ..asked.clone() }
}

#[tokio::test]
async fn a_server_that_was_declared_goes_on_behind_exactly_what_was_delivered() {
    let server = Server::start(Manner::Continues, Duration::ZERO).await;
    let (first, second) = (before(&server, "r1"), before(&server, "r1"));
    for most in [None, Some(40), Some(1)] {
        let asked = question("hi", Parameters { max_tokens: most, ..Parameters::default() });
        let unbroken = ask(&first, asked.clone()).await.unwrap();
        let length = most.map_or(LENGTH, |most| most as usize);
        assert_eq!(unbroken.completion as usize, length);
        for at in (1..=length).step_by(7).chain([length]) {
            let resume = resumed(&asked, &unbroken, at);
            let said = resume.resume.as_ref().unwrap().text.clone();
            let rest = ask(&second, resume).await.unwrap();
            assert_eq!(format!("{said}{}", rest.text), unbroken.text, "broken at {at} of {most:?}");
            if most.is_none_or(|most| at < most as usize) {
                let body = server.last_asked();
                assert_eq!(body["messages"][1], json!({"role": "assistant", "content": said}));
                assert_eq!(
                    body["max_tokens"].as_u64(),
                    most.map(|most| u64::from(most) - at as u64)
                );
                assert_eq!(
                    (rest.completion, &rest.finish),
                    (unbroken.completion, &unbroken.finish)
                );
            } else {
                assert_eq!(
                    (&*rest.finish, &*rest.text),
                    ("length", ""),
                    "nothing is left to ask for"
                );
            }
        }
    }
}

#[tokio::test]
async fn only_who_was_said_to_run_the_same_goes_on() {
    let server = Server::start(Manner::Continues, Duration::ZERO).await;
    let asked = question("hi", Parameters::default());
    let unbroken = ask(&before(&server, "r1"), asked.clone()).await.unwrap();
    assert_eq!(unbroken.fingerprint.len(), 16);
    // As the worker in Python has it.
    assert_eq!(unbroken.fingerprint, "736cbfe3c5662ee1");
    let refused = ask(&before(&server, "r2"), resumed(&asked, &unbroken, 5)).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
    assert!(server.asked.lock().unwrap().len() == 1, "the second server was not asked");
    let mut seeded = resumed(&asked, &unbroken, 5);
    seeded.parameters.as_mut().unwrap().seed = Some(4);
    let refused = ask(&before(&server, "r1"), seeded).await.unwrap_err();
    assert!(refused.message().contains("plain text"), "{refused}");
}

#[tokio::test]
async fn a_server_that_only_is_said_to_continue_is_found_out_before_a_word_of_it_is_passed_on() {
    for (manner, at, word) in [
        (Manner::BeginsAnew, 40, "prompt is shorter"),
        (Manner::BeginsAnew, 12, "begins as the answer began"),
        (Manner::BeginsAnewUncounted, 12, "begins as the answer began"),
        (Manner::Strict, 12, "does not take"),
    ] {
        let server = Server::start(manner, Duration::ZERO).await;
        let worker = before(&server, "r1");
        let asked = question("hi", Parameters::default());
        let unbroken = ask(&worker, asked.clone()).await.unwrap();
        let asked = resumed(&asked, &unbroken, at);
        let mut chunks = worker.client().await.stream_inference(asked).await.unwrap().into_inner();
        let refused = loop {
            match timeout(LONG, chunks.message()).await.unwrap() {
                Ok(chunk) => assert_eq!(chunk.unwrap().text, "", "{manner:?}"),
                Err(status) => break status,
            }
        };
        assert_eq!(refused.code(), Code::FailedPrecondition, "{refused}");
        assert!(refused.message().contains(word), "{manner:?}: {refused}");
    }
}

/// A question whose stream is broken in the middle, at one who serves it.
async fn broken(world: &World, more: &Value, kill: impl FnOnce(&str)) -> Answer {
    let mut body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true},
        "messages": [{"role": "user", "content": "Tell me of points and trains."}],
    });
    body.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    let (head, mut body) = world.begin("/v1/chat/completions", &body).await.into_parts();
    let mut text = String::new();
    while text.matches("\"content\":").count() < 12 {
        let frame = timeout(LONG, body.frame()).await.unwrap().expect("it goes on").unwrap();
        text += core::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    kill(head.headers["x-pointsman-replica"].to_str().unwrap());
    let rest = timeout(LONG, body.collect()).await.unwrap().unwrap().to_bytes();
    text += core::str::from_utf8(&rest).unwrap();
    Answer { status: head.status, headers: head.headers, text }
}

/// It went on, and is what it would have been.
fn is_whole(answer: Answer, whole: &Answer, manner: Manner) {
    assert_eq!(answer.text.matches(": resumed after ").count(), 1, "{manner:?}: {answer:?}");
    let blocks = answer.text.split_inclusive("\n\n").filter(|block| !block.starts_with(':'));
    let answer = Answer { text: blocks.collect(), ..answer };
    assert!(answer.is_done(), "{manner:?}: {answer:?}");
    assert_eq!(answer.told(), whole.told(), "{manner:?}: word for word");
    let bill = |answer: &Answer| answer.events().last().unwrap()["usage"].clone();
    let total = bill(&answer)["total_tokens"].as_u64();
    assert_eq!(total, bill(whole)["total_tokens"].as_u64(), "{manner:?}: one bill");
    if manner == Manner::Continues {
        assert_eq!(bill(&answer), bill(whole), "its prompt counted once");
    }
    let ids =
        answer.events().into_iter().map(|event| (event["id"].clone(), event["created"].clone()));
    let ids: std::collections::BTreeSet<_> = ids.map(|id| format!("{id:?}")).collect();
    assert_eq!(ids.len(), 1, "one answer: {ids:?}");
}

/// Long words, so that what is estimated is soon more than that, and more than there is.
fn questions() -> impl Iterator<Item = (Manner, Value)> {
    let manners = [Manner::Continues, Manner::Uncounted].into_iter();
    manners.flat_map(|manner| [(manner, json!({})), (manner, json!({"max_tokens": 40}))])
}

async fn whole(world: &World, more: &Value) -> Answer {
    let mut more = more.clone();
    more["stream"] = json!(true);
    more["stream_options"] = json!({"include_usage": true});
    world.ask("Tell me of points and trains.", more).await
}

#[tokio::test]
async fn a_stream_whose_worker_dies_goes_on_at_another_server_and_is_billed_once() {
    for (manner, more) in questions() {
        let servers = [Server::start(manner, SLOW).await, Server::start(manner, SLOW).await];
        let mut workers = [before(&servers[0], "r1"), before(&servers[1], "r1")];
        let urls: Vec<String> = workers.iter().map(Worker::url).collect();
        let world = World::before(&urls, "routing: {max_retries: 5}").await;
        let whole = whole(&world, &more).await;
        let kill = |name: &str| workers[usize::from(name == "w1")].kill();
        is_whole(broken(&world, &more, kill).await, &whole, manner);
    }
}

/// A gateway that asks these servers itself.
async fn asking(servers: &[(&Server, &str)]) -> World {
    let endpoint = |(at, (server, revision)): (usize, &(&Server, &str))| {
        format!("{{url: '{}', name: w{at}, continues: {revision}}}", server.url)
    };
    let endpoints: Vec<_> = servers.iter().enumerate().map(endpoint).collect();
    let endpoints = endpoints.join(", ");
    World::of(&format!("models: {{m: {{endpoints: [{endpoints}]}}}}\nrouting: {{max_retries: 5}}"))
        .await
}

#[tokio::test]
async fn servers_that_are_asked_without_workers_go_on_with_each_others_streams() {
    for (manner, more) in questions() {
        let servers = [Server::start(manner, SLOW).await, Server::start(manner, SLOW).await];
        let world = asking(&[(&servers[0], "r1"), (&servers[1], "r1")]).await;
        let whole = whole(&world, &more).await;
        let kill = |name: &str| servers[usize::from(name == "w1")].dead.cancel();
        is_whole(broken(&world, &more, kill).await, &whole, manner);
    }
}

#[tokio::test]
async fn with_a_worker_of_the_same_revision_they_do_so_too() {
    for first in ["w0", "w1"] {
        let servers = [
            Server::start(Manner::Continues, SLOW).await,
            Server::start(Manner::Continues, SLOW).await,
        ];
        let mut worker = before(&servers[0], "r1");
        let tier = |name: &str| 1 + u8::from(name != first);
        let world = World::of(&format!(
            "models: {{m: {{endpoints: [{{url: '{}', name: w0, priority: {}}}, \
             {{url: '{}', name: w1, continues: r1, priority: {}}}]}}}}\nrouting: {{max_retries: 5}}",
            worker.url(),
            tier("w0"),
            servers[1].url,
            tier("w1"),
        ))
        .await;
        let whole = whole(&world, &json!({})).await;
        let more = json!({});
        let answer = broken(&world, &more, |name| {
            assert_eq!(name, first);
            match name {
                "w0" => worker.kill(),
                _ => servers[1].dead.cancel(),
            }
        });
        is_whole(answer.await, &whole, Manner::Continues);
    }
}

#[tokio::test]
async fn what_runs_another_revision_and_what_is_not_plain_text_is_joined_by_nobody() {
    for (revision, more) in [
        ("r2", json!({})),
        ("r1", json!({"tools": [{"type": "function", "function": {"name": "f"}}]})),
        ("r1", json!({"seed": 4})),
        ("r1", json!({"stop": ["never"]})),
        ("r1", json!({"response_format": {"type": "json_object"}})),
    ] {
        let servers = [
            Server::start(Manner::Continues, SLOW).await,
            Server::start(Manner::Continues, SLOW).await,
        ];
        let world = asking(&[(&servers[0], "r1"), (&servers[1], revision)]).await;
        let told = broken(&world, &more, |name| servers[usize::from(name == "w1")].dead.cancel());
        let told = told.await.text;
        assert!(!told.contains("[DONE]") && !told.contains(": resumed after "), "{more}: {told}");
        assert!(told.contains("\"error\""), "{more}: {told}");
        let asked: Vec<Value> =
            servers.iter().flat_map(|server| server.asked.lock().unwrap().clone()).collect();
        assert_eq!(asked.len(), 1, "nobody was asked to go on, or anew: {asked:?}");
        for (key, value) in more.as_object().unwrap() {
            assert_eq!(&asked[0][key], value, "as its client wrote it");
        }
    }
}

#[tokio::test]
async fn what_such_a_server_refuses_is_told_as_that_of_any_other() {
    for status in [400, 401, 404, 413, 422, 429, 500, 503] {
        let server = Server::start(Manner::Refuses(status), Duration::ZERO).await;
        let world = async |more: &str| {
            let url = &server.url;
            let text = format!(
                "models: {{m: {{endpoints: [{{url: '{url}', name: w0{more}}}]}}}}\nrouting: {{max_retries: 0}}"
            );
            World::of(&text).await
        };
        let (own, plain) = (world(", continues: r1").await, world("").await);
        let more = json!({"stream": true});
        let (own, plain) = (own.ask("hi", more.clone()).await, plain.ask("hi", more).await);
        let told = |answer: &Answer| {
            let header = |name| answer.header(name).to_owned();
            let again = (header("retry-after"), header("x-should-retry"));
            (answer.status, again, answer.json())
        };
        assert_eq!(told(&own), told(&plain), "{status}");
    }
}
