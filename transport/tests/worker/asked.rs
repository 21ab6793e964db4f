//! The backend that passes on: what reaches the model server, and what comes back from it.

#[allow(dead_code, reason = "each test program uses its own part of this")]
#[path = "../upstream/script.rs"]
mod script;

use std::time::Duration;

use proto::inference::v1::{Parameters, StreamInferenceResponse};
use script::{Step, serve, sse, with_length};
use serde_json::{Value, json};
use tokio::time::{sleep, timeout};
use tonic::{Code, Request};
use transport::worker::{Backend, OpenAi};

use crate::world::{LONG, SECOND, Worker, question};

fn before(server: &script::Scripted) -> Worker {
    let url = server.target.base_url.to_string();
    let backend = OpenAi::new(&url).unwrap().with_key("sk-x").unwrap();
    Worker::new(Backend::OpenAi(Box::new(backend.with_model("theirs".to_owned()))))
}

/// All chunks that say something, and how it ended.
async fn asked(worker: &Worker) -> (Vec<StreamInferenceResponse>, Option<tonic::Status>) {
    let parameters = Parameters { max_tokens: Some(9), ..Parameters::default() };
    let mut request = Request::new(question("hi", parameters));
    request.metadata_mut().insert("traceparent", TRACE.parse().unwrap());
    let mut chunks = match worker.client().await.stream_inference(request).await {
        Ok(chunks) => chunks.into_inner(),
        Err(status) => return (vec![], Some(status)),
    };
    let mut all = Vec::new();
    loop {
        match timeout(LONG, chunks.message()).await.unwrap() {
            Ok(Some(chunk)) if chunk.text.is_empty() && chunk.finish_reason.is_empty() => {}
            Ok(Some(chunk)) => all.push(chunk),
            Ok(None) => return (all, None),
            Err(status) => return (all, Some(status)),
        }
    }
}

const TRACE: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const BLOCKS: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}]}\n\n\
    data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n\
    data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n\
    data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}\n\n\
    data: [DONE]\n\n";

#[tokio::test]
async fn a_servers_stream_becomes_chunks_with_the_bill_on_the_last() {
    let server = serve(vec![Step::send(&sse(BLOCKS)), Step::Close]).await;
    let worker = before(&server);
    let (chunks, ended) = asked(&worker).await;
    assert!(ended.is_none(), "{ended:?}");
    let [hello, last] = &chunks[..] else { panic!("{chunks:?}") };
    assert_eq!((hello.seq, hello.token_count, &*hello.text), (0, 1, "Hello"));
    assert_eq!((last.seq, &*last.finish_reason), (1, "stop"));
    assert_eq!(last.usage.unwrap().prompt_tokens, 3);
    let requests = server.requests();
    let request = requests.iter().find(|request| request.starts_with("POST")).unwrap();
    let (head, body) = request.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("POST /v1/chat/completions"), "{head}");
    assert!(head.contains("authorization: Bearer sk-x"), "{head}");
    assert!(head.contains(&format!("traceparent: {TRACE}")), "{head}");
    let expected = json!({
        "model": "theirs", "messages": [{"role": "user", "content": "hi"}], "stream": true,
        "stream_options": {"include_usage": true}, "max_tokens": 9,
    });
    assert_eq!(serde_json::from_str::<Value>(body).unwrap(), expected);
}

#[tokio::test]
async fn each_way_a_server_fails_has_its_status() {
    let json = |status: &str, body: &str| with_length(status, "application/json", body);
    let broken = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"}}]}\n\n";
    for (answer, code, word) in [
        (json("401 Unauthorized", "{}"), Code::PermissionDenied, "key"),
        (json("404 Not Found", r#"{"error":{"code":"model_not_found"}}"#), Code::NotFound, "model"),
        (
            json("400 Bad Request", r#"{"error":{"message":"too long"}}"#),
            Code::InvalidArgument,
            "too long",
        ),
        (json("429 Too Many", r#"{"error":{"message":"x"}}"#), Code::ResourceExhausted, "full"),
        (json("500 Oops", "{}"), Code::Internal, "500"),
        (sse(broken), Code::Internal, "too early"),
        ("nonsense\r\n\r\n".to_owned(), Code::Internal, "not understood"),
    ] {
        // What else the worker asks this server must leave no connection that the question goes over while it closes.
        let answer = answer.replacen("\r\n\r\n", "\r\nconnection: close\r\n\r\n", 1);
        let server = serve(vec![Step::send(&answer), Step::Close]).await;
        let (_, ended) = asked(&before(&server)).await;
        let ended = ended.unwrap();
        assert_eq!(ended.code(), code, "{ended}");
        assert!(ended.message().contains(word), "{ended}");
        let comes_back = ended.metadata().get("retry-after-ms").is_some();
        assert_eq!(comes_back, code == Code::ResourceExhausted);
    }
    let nobody = Backend::OpenAi(Box::new(OpenAi::new("http://127.0.0.1:1").unwrap()));
    let (_, ended) = asked(&Worker::new(nobody)).await;
    let ended = ended.unwrap();
    assert_eq!(ended.code(), Code::Unavailable, "{ended}");
    assert!(ended.metadata().get("retry-after-ms").is_none(), "a dead backend is not merely full");
}

#[tokio::test]
async fn a_caller_that_leaves_stops_the_server() {
    let first = sse(BLOCKS.split_inclusive("\n\n").next().unwrap());
    let first = first.strip_suffix("0\r\n\r\n").unwrap();
    let server = serve(vec![Step::send(first), Step::Hang]).await;
    let worker = before(&server);
    let mut client = worker.client().await;
    let asked = client.stream_inference(question("hi", Parameters::default())).await.unwrap();
    worker.runs(1).await;
    // Until the question itself has arrived there is nothing to stop.
    while !server.requests().iter().any(|request| request.starts_with("POST")) {
        sleep(Duration::from_millis(5)).await;
    }
    drop(asked);
    server.closed(5 * SECOND).await;
    timeout(5 * SECOND, worker.runs(0)).await.unwrap();
}

#[tokio::test]
async fn the_servers_own_figures_are_passed_on() {
    let page =
        "vllm:num_requests_running 3\nvllm:num_requests_waiting 2\nvllm:kv_cache_usage_perc 0.5\n";
    let server =
        serve(vec![Step::send(&with_length("200 OK", "text/plain", page)), Step::Close]).await;
    let worker = before(&server);
    let waited = async {
        loop {
            let load = worker.described().await.load.unwrap();
            if load.kv_used_permille.is_some() {
                return load;
            }
            sleep(Duration::from_millis(20)).await;
        }
    };
    let load = timeout(LONG, waited).await.unwrap();
    assert_eq!((load.running, load.queued, load.kv_used_permille), (3, 2, Some(500)));
    assert!(server.requests().iter().any(|request| request.starts_with("GET /metrics")));
}

#[tokio::test]
async fn an_answer_of_a_server_cannot_be_continued_unless_that_was_declared_and_that_is_said() {
    let server = serve(vec![Step::send(&sse(BLOCKS)), Step::Close]).await;
    let worker = before(&server);
    let mut ask = question("hi", Parameters::default());
    ask.resume = Some(proto::inference::v1::Resume { seq: 1, ..Default::default() });
    let refused = worker.client().await.stream_inference(ask).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    assert_eq!(worker.described().await.fingerprint, "");
}

#[tokio::test]
async fn a_server_that_is_slow_to_list_its_models_serves() {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 11\r\n\r\n";
    let listing = format!("{head}{{\"data\":[]}}");
    let late = Step::Wait(Duration::from_millis(1_500));
    let server = serve(vec![late, Step::send(&listing), Step::Close]).await;
    let worker = before(&server);
    let serves = async {
        while crate::serving::health(&worker).await != 1 {
            sleep(Duration::from_millis(50)).await;
        }
    };
    timeout(LONG, serves).await.unwrap();
}
