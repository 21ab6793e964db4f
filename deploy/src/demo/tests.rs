#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

use std::time::Instant;

use control::outcome::{Failure, Fault, Stage};
use control::units::Tokens;
use tokio::time::timeout;
use transport::upstream::{
    Answer, Ask, Client, EventKind, Failed, Limits, Path, Secret, Settings, Target,
};

use super::*;

const QUICK: Duration = Duration::from_millis(1);

fn quick() -> Options {
    Options { ttft: QUICK, gap: QUICK, tokens: 12, ..Options::default() }
}

async fn start(options: Options) -> Target {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(serve(listener, options, core::future::pending()));
    Target::new(url.parse().unwrap())
}

fn limits() -> Limits {
    Limits {
        connect: Duration::from_secs(5),
        first_token: Duration::from_secs(5),
        between_tokens: Duration::from_millis(300),
        whole_answer: Duration::from_secs(5),
        deadline: tokio::time::Instant::now() + Duration::from_secs(10),
        answer_bytes_max: 1 << 20,
    }
}

async fn call(target: &Target, path: Path, body: &str) -> Result<Answer, Failed> {
    let ask = Ask {
        resume: None,
        behalf: None,
        path,
        body: Bytes::copy_from_slice(body.as_bytes()),
        stream: body.contains("\"stream\":true"),
        request_id: "req_1".to_owned(),
        headers: HeaderMap::new(),
    };
    let client = Client::new(&Settings::default()).unwrap();
    timeout(Duration::from_secs(20), client.call(target, ask, limits())).await.unwrap()
}

const WHOLE: &str =
    r#"{"model":"demo","messages":[{"role":"user","content":"tell me of trains"}]}"#;
const STREAM: &str = r#"{"model":"demo","stream":true,"stream_options":{"include_usage":true},"messages":[{"role":"user","content":"tell me of trains"}]}"#;

/// The stream's tokens by count, and how it ended.
async fn stream(target: &Target, body: &str) -> (u64, Result<Option<u64>, Failed>) {
    let Answer::Stream(mut stream) = call(target, Path::ChatCompletions, body).await.unwrap()
    else {
        panic!("a stream was asked for");
    };
    let mut pieces = 0;
    while let Some(event) = timeout(Duration::from_secs(20), stream.next()).await.unwrap() {
        match event {
            Ok(event) => pieces += u64::from(matches!(event.kind, EventKind::Tokens { .. })),
            Err(failed) => return (pieces, Err(failed)),
        }
    }
    (pieces, Ok(stream.usage().map(|usage| usage.completion.0)))
}

async fn whole(target: &Target, body: &str) -> serde_json::Value {
    let Answer::Whole(whole) = call(target, Path::ChatCompletions, body).await.unwrap() else {
        panic!("no stream was asked for");
    };
    serde_json::from_slice(&whole.body).unwrap()
}

async fn failure(options: Options, body: &str) -> Failure {
    let target = start(options).await;
    match call(&target, Path::ChatCompletions, body).await {
        Err(failed) => failed.failure,
        Ok(Answer::Whole(_)) => panic!("it should have failed"),
        Ok(Answer::Stream(mut stream)) => loop {
            let event = timeout(Duration::from_secs(20), stream.next()).await.unwrap();
            if let Err(failed) = event.expect("it should have failed") {
                return failed.failure;
            }
        },
    }
}

#[tokio::test]
async fn a_healthy_replica_streams_what_it_says_it_used() {
    let target = start(quick()).await;
    let (pieces, end) = stream(&target, STREAM).await;
    assert_eq!((pieces, end.unwrap()), (12, Some(12)));
    let answer = whole(&target, WHOLE).await;
    assert_eq!(answer["usage"]["completion_tokens"], 12);
    assert_eq!(answer["choices"][0]["finish_reason"], "stop");
    let again = whole(&target, WHOLE).await;
    assert_eq!(answer["choices"], again["choices"], "the same prompt, the same answer");
    assert_ne!(answer["id"], again["id"]);
}

#[tokio::test]
async fn a_limit_in_the_request_is_honoured_and_named() {
    let target = start(quick()).await;
    for key in ["max_tokens", "max_completion_tokens"] {
        let answer =
            whole(&target, &WHOLE.replace("{\"model\"", &format!("{{\"{key}\":5,\"model\""))).await;
        assert_eq!(answer["usage"]["completion_tokens"], 5);
        assert_eq!(answer["choices"][0]["finish_reason"], "length");
    }
}

#[tokio::test]
async fn tokens_come_at_the_cadence_asked_for() {
    let options =
        Options { ttft: Duration::from_millis(60), gap: Duration::from_millis(10), ..quick() };
    let target = start(options).await;
    let began = Instant::now();
    stream(&target, STREAM).await.1.unwrap();
    // 60 ms and 11 gaps.
    assert!(began.elapsed() >= Duration::from_millis(170), "{:?}", began.elapsed());
}

#[tokio::test]
async fn every_fault_is_what_the_gateway_takes_it_for() {
    let garbage = Options { garbage_rate: 1.0, ..quick() };
    assert_eq!(failure(garbage.clone(), STREAM).await, Failure::Garbage);
    assert_eq!(failure(garbage, WHOLE).await, Failure::Garbage);
    let error = Options { error_in_stream_rate: 1.0, ..quick() };
    assert_eq!(failure(error.clone(), STREAM).await, Failure::ErrorInAnswer);
    assert_eq!(failure(error, WHOLE).await, Failure::ErrorInAnswer);
    let dying = Options { die_after: Some(3), ..quick() };
    assert_eq!(failure(dying.clone(), STREAM).await, Failure::Truncated);
    assert_eq!(failure(dying, WHOLE).await, Failure::Truncated);
    assert_eq!(failure(Options { no_done: true, ..quick() }, STREAM).await, Failure::Truncated);
    let stalling = Options { stall_after: Some(3), ..quick() };
    assert_eq!(failure(stalling, STREAM).await, Failure::Timeout(Stage::BetweenTokens));
    assert_eq!(failure(Options { fail_rate: 1.0, ..quick() }, WHOLE).await, Failure::Status(500));
    let full = Options { status: Some(429), ..quick() };
    assert_eq!(failure(full, WHOLE).await, Failure::Backpressure(429));
    let other = WHOLE.replace("demo", "other");
    let unknown = Failure::EndpointFault(Fault::UnknownModel);
    assert_eq!(failure(quick(), &other).await, unknown);
}

#[tokio::test]
async fn a_replica_with_a_key_refuses_those_without_it() {
    let mut target = start(Options { key: Some("sk-right".to_owned()), ..quick() }).await;
    let refused = Failure::EndpointFault(Fault::KeyRefused);
    for key in [None, Some(Secret::new("sk-wrong").unwrap())] {
        target.api_key = key;
        let failed = call(&target, Path::ChatCompletions, WHOLE).await.err().unwrap();
        assert_eq!(failed.failure, refused);
    }
    target.api_key = Some(Secret::new("sk-right").unwrap());
    assert!(call(&target, Path::ChatCompletions, WHOLE).await.is_ok());
}

#[tokio::test]
async fn a_replica_without_usage_still_ends_well() {
    let target = start(Options { no_usage: true, ..quick() }).await;
    let (pieces, end) = stream(&target, STREAM).await;
    assert_eq!((pieces, end.unwrap()), (12, None));
}

#[tokio::test]
async fn bad_requests_are_refused_as_such() {
    for body in [
        "nonsense",
        "{}",
        r#"{"model":"demo","messages":[]}"#,
        r#"{"model":"demo","n":2,"messages":[{"role":"user","content":"x"}]}"#,
        r#"{"messages":[{"role":"user","content":"x"}]}"#,
    ] {
        assert_eq!(failure(quick(), body).await, Failure::ClientError(400), "{body}");
    }
}

#[tokio::test]
async fn texts_and_lists_are_embedded_and_counted() {
    let target = start(quick()).await;
    let body = r#"{"model":"demo","input":["one two","three"],"dimensions":8}"#;
    let Answer::Whole(whole) = call(&target, Path::Embeddings, body).await.unwrap() else {
        panic!("embeddings do not stream");
    };
    assert_eq!(whole.usage.unwrap().prompt, Tokens(3));
    let answer: serde_json::Value = serde_json::from_slice(&whole.body).unwrap();
    let vectors = answer["data"].as_array().unwrap();
    assert_eq!(vectors.len(), 2);
    assert_eq!(vectors[1]["embedding"].as_array().unwrap().len(), 8);
}

#[tokio::test]
async fn its_models_are_discovered() {
    let models = vec!["a".to_owned(), "b".to_owned()];
    let target = start(Options { models, ..quick() }).await;
    let client = Client::new(&Settings::default()).unwrap();
    let found = client.discover(&target, limits()).await.unwrap();
    assert_eq!(found.models.iter().map(|model| model.id.as_str()).collect::<Vec<_>>(), ["a", "b"]);
}

#[tokio::test]
async fn a_shutdown_lets_a_running_answer_finish_but_does_not_wait_for_a_hung_one() {
    for (options, ends_well) in
        [(quick(), true), (Options { stall_after: Some(2), ..quick() }, false)]
    {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let target =
            Target::new(format!("http://{}", listener.local_addr().unwrap()).parse().unwrap());
        let (stop, stopped) = tokio::sync::oneshot::channel::<()>();
        let options = Options { ttft: Duration::from_millis(150), ..options };
        let server = tokio::spawn(serve(listener, options, async move {
            let _ = stopped.await;
        }));
        let answer = tokio::spawn(async move { stream(&target, STREAM).await.1.is_ok() });
        tokio::time::sleep(Duration::from_millis(50)).await;
        stop.send(()).unwrap();
        timeout(GRACE + Duration::from_secs(5), server).await.unwrap().unwrap().unwrap();
        assert_eq!(answer.await.unwrap(), ends_well);
    }
}
