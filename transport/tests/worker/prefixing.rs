//! OpenAI-compatible servers that continue an answer where they are told to, and such as only say so.

use std::convert::Infallible;
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
}

/// A server whose next word is a function of all text before it.
struct Server {
    url: String,
    asked: Arc<Mutex<Vec<Value>>>,
    _serving: AbortOnDropHandle<()>,
}

type Known = State<(Manner, Duration, Arc<Mutex<Vec<Value>>>)>;

impl Server {
    async fn start(manner: Manner, delay: Duration) -> Self {
        let asked = Arc::new(Mutex::new(Vec::new()));
        let app = Router::new().route("/v1/chat/completions", post(complete));
        let app = app.with_state((manner, delay, Arc::clone(&asked)));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, asked, _serving: AbortOnDropHandle::new(serving) }
    }

    fn last_asked(&self) -> Value {
        self.asked.lock().unwrap().last().unwrap().clone()
    }
}

async fn complete(State((manner, delay, asked)): Known, Json(body): Json<Value>) -> Response {
    asked.lock().unwrap().push(body.clone());
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
    let blocks = stream::unfold((0, prefix), move |(step, mut text)| async move {
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
        let block = Ok::<_, Infallible>(Bytes::from(format!("data: {data}\n\n")));
        Some((block, (step + 1, text)))
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

#[tokio::test]
async fn a_stream_whose_worker_dies_goes_on_at_another_server_and_is_billed_once() {
    let manners = [Manner::Continues, Manner::Uncounted];
    // Long words, so that what is estimated is soon more than that, and more than there is.
    for (manner, most) in
        manners.into_iter().flat_map(|manner| [(manner, None), (manner, Some(40))])
    {
        let servers = [Server::start(manner, SLOW).await, Server::start(manner, SLOW).await];
        let mut workers = [before(&servers[0], "r1"), before(&servers[1], "r1")];
        let urls: Vec<String> = workers.iter().map(Worker::url).collect();
        let world = World::before(&urls, "routing: {max_retries: 5}").await;
        let body = json!({
            "model": "m", "stream": true, "stream_options": {"include_usage": true}, "max_tokens": most,
            "messages": [{"role": "user", "content": "Tell me of points and trains."}],
        });
        let whole = Answer::of(world.begin("/v1/chat/completions", &body).await).await;
        let response = world.begin("/v1/chat/completions", &body).await;
        let (head, mut body) = response.into_parts();
        let serving = head.headers["x-pointsman-replica"].to_str().unwrap().to_owned();
        let mut text = String::new();
        while text.matches("\"content\":").count() < 12 {
            let frame = timeout(LONG, body.frame()).await.unwrap().expect("it goes on").unwrap();
            text += core::str::from_utf8(&frame.into_data().unwrap()).unwrap();
        }
        workers[usize::from(serving == "w1")].kill();
        let rest = timeout(LONG, body.collect()).await.unwrap().unwrap().to_bytes();
        text += core::str::from_utf8(&rest).unwrap();
        assert_eq!(text.matches(": resumed after ").count(), 1, "{manner:?}: {text}");
        let text = text.split_inclusive("\n\n").filter(|block| !block.starts_with(':')).collect();
        let answer = Answer { status: head.status, headers: head.headers, text };
        assert!(answer.is_done(), "{manner:?}: {answer:?}");
        assert_eq!(answer.told(), whole.told(), "{manner:?} {most:?}: word for word");
        let bill = |answer: &Answer| answer.events().last().unwrap()["usage"].clone();
        let total = bill(&answer)["total_tokens"].as_u64();
        assert_eq!(total, bill(&whole)["total_tokens"].as_u64(), "{manner:?}: one bill");
        if manner == Manner::Continues {
            assert_eq!(bill(&answer), bill(&whole), "its prompt counted once");
        }
    }
}
