//! Workers that say what cannot be: none is believed, and no client sees a clean end of it.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures_util::Stream;
use futures_util::stream::{StreamExt, iter, once, pending};
use proto::inference::v1::inference_service_server::{InferenceService, InferenceServiceServer};
use proto::inference::v1::{
    DescribeRequest, DescribeResponse, StreamInferenceRequest, StreamInferenceResponse as Chunk,
};
use serde_json::json;
use tokio_util::sync::CancellationToken;
use tonic::metadata::MetadataMap;
use tonic::transport::Server;
use tonic::{Request, Response, Status};
use transport::worker::{Drained, Incoming};

use crate::world::{Worker, World};

/// Says the same to everybody.
struct Scripted {
    chunks: Vec<Result<Chunk, Status>>,
    hangs: bool,
    /// The last question's metadata.
    told: Arc<Mutex<MetadataMap>>,
}

#[tonic::async_trait]
impl InferenceService for Scripted {
    type StreamInferenceStream =
        std::pin::Pin<Box<dyn Stream<Item = Result<Chunk, Status>> + Send>>;

    async fn stream_inference(
        &self,
        request: Request<StreamInferenceRequest>,
    ) -> Result<Response<Self::StreamInferenceStream>, Status> {
        *self.told.lock().unwrap() = request.metadata().clone();
        let chunks = iter(self.chunks.clone());
        let rest = if self.hangs { pending().boxed() } else { iter([]).boxed() };
        Ok(Response::new(chunks.chain(rest).boxed()))
    }

    async fn describe(
        &self,
        _: Request<DescribeRequest>,
    ) -> Result<Response<DescribeResponse>, Status> {
        Ok(Response::new(DescribeResponse { models: vec!["m".to_owned()], ..Default::default() }))
    }
}

pub fn liar(chunks: Vec<Result<Chunk, Status>>, hangs: bool) -> Worker {
    listening(chunks, hangs, Arc::default())
}

fn listening(
    chunks: Vec<Result<Chunk, Status>>,
    hangs: bool,
    told: Arc<Mutex<MetadataMap>>,
) -> Worker {
    Worker::running(CancellationToken::new(), async move |incoming| {
        let Incoming::Real(listener) = incoming else { panic!("a real port") };
        let accepted = once(async { listener.accept().await.map(|(stream, _)| stream) });
        let accepted = accepted.chain(pending());
        let service = InferenceServiceServer::new(Scripted { chunks, hangs, told });
        Server::builder().add_service(service).serve_with_incoming(accepted).await.unwrap();
        Drained::default()
    })
}

pub fn chunk(seq: u64, text: &str, finish_reason: &str) -> Result<Chunk, Status> {
    let (text, finish_reason) = (text.to_owned(), finish_reason.to_owned());
    Ok(Chunk {
        seq,
        token_count: u32::from(!text.is_empty()),
        text,
        finish_reason,
        ..Chunk::default()
    })
}

/// What a client of a stream sees of it, and how the attempt was counted.
async fn told(chunks: Vec<Result<Chunk, Status>>) -> (String, String) {
    let worker = liar(chunks, false);
    let world = World::before(&[worker.url()], "routing: {max_retries: 0}").await;
    let answer = world.ask("x", json!({"stream": true, "max_tokens": 3})).await;
    assert!(!answer.is_done(), "{answer:?}");
    assert!(answer.text.contains("\"error\""), "{answer:?}");
    let metrics = world.get("/metrics").await;
    let line = metrics.lines().find(|line| line.starts_with("pointsman_attempts_total")).unwrap();
    (answer.text, line.to_owned())
}

#[tokio::test]
async fn places_that_do_not_follow_each_other_are_garbage() {
    for chunks in [
        vec![chunk(0, "a", ""), chunk(2, "b", ""), chunk(3, "", "stop")],
        vec![chunk(0, "a", ""), chunk(0, "a", ""), chunk(1, "", "stop")],
        vec![chunk(7, "a", ""), chunk(8, "", "stop")],
    ] {
        let (_, counted) = told(chunks).await;
        assert!(counted.contains("outcome=\"garbage\""), "{counted}");
    }
}

#[tokio::test]
async fn words_behind_the_end_and_above_the_limit_are_garbage() {
    let behind = vec![chunk(0, "a", "stop"), chunk(1, "b", "")];
    let above: Vec<_> = (0..4).map(|seq| chunk(seq, "a", "")).collect();
    for chunks in [behind, above] {
        let (text, counted) = told(chunks).await;
        assert!(counted.contains("outcome=\"garbage\""), "{counted}");
        assert!(text.contains("\"a\""), "{text}");
    }
}

#[tokio::test]
async fn an_end_without_a_reason_is_no_end() {
    let (_, counted) = told(vec![chunk(0, "a", ""), chunk(1, "b", "")]).await;
    assert!(counted.contains("outcome=\"truncated\""), "{counted}");
    let (_, counted) = told(vec![]).await;
    assert!(counted.contains("outcome=\"truncated\""), "{counted}");
    let failed = vec![chunk(0, "a", ""), Err(Status::internal("secret"))];
    let (text, counted) = told(failed).await;
    assert!(counted.contains("outcome=\"error_in_answer\""), "{counted}");
    assert!(!text.contains("secret"), "{text}");
}

#[tokio::test]
async fn json_that_is_none_cannot_break_out_of_its_event() {
    let evil =
        Chunk { extra_json: "{}}]}\n\ndata: [DONE]\n\n".to_owned(), ..chunk(1, "b", "").unwrap() };
    let (text, counted) = told(vec![chunk(0, "a", ""), Ok(evil)]).await;
    assert!(counted.contains("outcome=\"garbage\"") && !text.contains("[DONE]"), "{text}");
}

#[tokio::test]
async fn a_lie_before_the_first_token_sends_the_question_elsewhere() {
    let (lying, well) = (liar(vec![chunk(7, "a", "stop")], false), Worker::echo(Duration::ZERO));
    let more = "routing: {load_balancer: round_robin}";
    let world = World::before(&[lying.url(), well.url()], more).await;
    for _ in 0..2 {
        let answer = world.ask("hello", json!({"stream": true})).await;
        assert_eq!((answer.told(), answer.is_done()), ("hello".to_owned(), true), "{answer:?}");
        assert_eq!(answer.header("x-pointsman-replica"), "w1");
    }
}

#[tokio::test]
async fn a_worker_that_only_says_that_it_is_there_is_stalled() {
    let silent = || Ok(Chunk::default());
    let worker = liar(vec![chunk(0, "a", ""), silent(), silent()], true);
    let more = "routing: {timeouts: {between_tokens: 300ms}}";
    let world = World::before(&[worker.url()], more).await;
    let answer = world.ask("x", json!({"stream": true})).await;
    assert!(answer.text.contains("\"error\"") && !answer.is_done(), "{answer:?}");
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("outcome=\"timeout_between_tokens\""), "{metrics}");
}

#[tokio::test]
async fn key_id_trace_and_deadline_travel_with_the_question() {
    let told = Arc::default();
    let worker = listening(vec![chunk(0, "a", "stop")], false, Arc::clone(&told));
    let text = format!(
        "models: {{m: {{endpoints: [{{url: '{}', name: w0, api_key: sk-worker}}]}}}}\n\
         routing: {{timeouts: {{request: 30s}}}}",
        worker.url()
    );
    let world = World::of(&text).await;
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let answer = world.ask_with("x", json!({}), &[("traceparent", trace)]).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    let told = told.lock().unwrap().clone();
    let said = |name: &str| told.get(name).map_or("-", |value| value.to_str().unwrap()).to_owned();
    assert_eq!(said("authorization"), "Bearer sk-worker");
    assert_eq!(said("x-request-id"), answer.header("x-request-id"));
    assert_eq!(&said("traceparent")[..35], &trace[..35], "the same trace");
    let timeout = said("grpc-timeout");
    let (number, unit) = timeout.split_at(timeout.len() - 1);
    let millis = number.parse::<u64>().unwrap() / if unit == "u" { 1_000 } else { 1 };
    assert!(["u", "m"].contains(&unit) && (20_000..=30_000).contains(&millis), "{timeout}");
}
