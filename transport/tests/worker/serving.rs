//! What a worker does for whoever asks it directly: bounds, deadlines, drain, load, health, reflection.

use std::time::Duration;

use proto::inference::v1::{Parameters, StreamInferenceRequest};
use tokio::time::{Instant, timeout};
use tonic::{Code, Request};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_client::HealthClient;
use transport::worker::{Backend, Drained, Echo};

use crate::reflecting::tells_of_itself;
use crate::world::{LONG, SECOND, Worker, question, words};

const SLOW: Duration = Duration::from_millis(50);

fn long() -> StreamInferenceRequest {
    question(&words(1_200), Parameters::default())
}

fn slow(concurrency: u32, grace: Duration) -> Worker {
    Worker::with(Backend::Echo(Echo { delay: SLOW }), concurrency, grace)
}

#[tokio::test]
async fn a_full_worker_says_when_to_come_back_and_leaving_makes_room() {
    let worker = slow(1, SECOND);
    let mut client = worker.client().await;
    let mut running = client.stream_inference(long()).await.unwrap().into_inner();
    running.message().await.unwrap().unwrap();
    let refused = client.stream_inference(long()).await.unwrap_err();
    assert_eq!(refused.code(), Code::ResourceExhausted);
    let millis: u64 =
        refused.metadata().get("retry-after-ms").unwrap().to_str().unwrap().parse().unwrap();
    assert!((50..=5_000).contains(&millis), "{millis}");
    drop(running);
    timeout(5 * SECOND, worker.runs(0)).await.unwrap();
    client.stream_inference(long()).await.unwrap();
}

#[tokio::test]
async fn a_deadline_ends_the_stream_and_the_work() {
    let worker = slow(4, SECOND);
    let mut request = Request::new(long());
    request.set_timeout(Duration::from_millis(300));
    let began = Instant::now();
    let mut chunks = worker.client().await.stream_inference(request).await.unwrap().into_inner();
    let mut count = 0;
    let ended = loop {
        match chunks.message().await {
            Ok(Some(_)) => count += 1,
            Ok(None) => panic!("a clean end after {count} chunks"),
            Err(status) => break status,
        }
    };
    assert_eq!(ended.code(), Code::DeadlineExceeded, "{ended}");
    assert!(count > 0 && began.elapsed() < 5 * SECOND);
    timeout(5 * SECOND, worker.runs(0)).await.unwrap();
}

#[tokio::test]
async fn chunks_have_their_places_and_the_first_and_last_tell_the_load() {
    let worker = Worker::echo(Duration::ZERO);
    let asked = question("a b c", Parameters::default());
    let mut chunks = worker.client().await.stream_inference(asked).await.unwrap().into_inner();
    let mut all = Vec::new();
    while let Some(chunk) = chunks.message().await.unwrap() {
        all.push(chunk);
    }
    let places: Vec<_> = all.iter().map(|chunk| (chunk.seq, chunk.token_count)).collect();
    assert_eq!(places, [(0, 1), (1, 1), (2, 1), (3, 0)]);
    let (first, last) = (&all[0], &all[3]);
    assert_eq!((&*first.fingerprint, &*last.fingerprint), ("echo-1-m", ""));
    assert_eq!(first.load.unwrap().running_max, 64);
    assert!(last.load.is_some() && last.usage.is_some() && all[1].load.is_none());
    assert_eq!(last.finish_reason, "stop");
}

#[tokio::test]
async fn a_silent_backend_still_tells_its_load_every_second() {
    let worker = Worker::echo(LONG);
    let asked = question("a", Parameters::default());
    let mut chunks = worker.client().await.stream_inference(asked).await.unwrap().into_inner();
    let chunk = timeout(3 * SECOND, chunks.message()).await.unwrap().unwrap().unwrap();
    assert_eq!((chunk.seq, chunk.token_count, chunk.load.unwrap().running), (0, 0, 1));
}

#[tokio::test]
async fn a_drain_lets_what_runs_finish_and_nobody_in() {
    let mut worker = slow(4, LONG);
    let mut client = worker.client().await;
    let short = question(&words(10), Parameters::default());
    let mut running = client.stream_inference(short).await.unwrap().into_inner();
    running.message().await.unwrap().unwrap();
    worker.order_to_stop();
    let refused = loop {
        // The order takes a moment to arrive.
        match client.stream_inference(question("a", Parameters::default())).await {
            Ok(_) => tokio::time::sleep(Duration::from_millis(1)).await,
            Err(status) => break status,
        }
    };
    assert_eq!(refused.code(), Code::Unavailable);
    assert!(refused.metadata().get("retry-after-ms").is_some(), "{refused}");
    assert_eq!(health(&worker).await, 2, "NOT_SERVING");
    assert!(worker.described().await.draining);
    let mut finish = String::new();
    while let Some(chunk) = running.message().await.unwrap() {
        finish.push_str(&chunk.finish_reason);
    }
    assert_eq!(finish, "stop");
    assert_eq!(worker.stopped().await, Drained { cut: 0 });
}

#[tokio::test]
async fn a_drain_whose_time_is_over_cuts_what_runs_and_says_so() {
    let mut worker = slow(4, Duration::from_millis(200));
    let mut chunks = worker.client().await.stream_inference(long()).await.unwrap().into_inner();
    chunks.message().await.unwrap().unwrap();
    worker.order_to_stop();
    let cut = loop {
        if let Err(status) = chunks.message().await.map(|chunk| chunk.expect("no clean end")) {
            break status;
        }
    };
    assert_eq!(cut.code(), Code::Unavailable, "{cut}");
    assert_eq!(worker.stopped().await, Drained { cut: 1 });
}

#[tokio::test]
async fn what_cannot_be_asked_is_refused_by_name() {
    let worker = Worker::echo(Duration::ZERO);
    let mut client = worker.client().await;
    let fine = || question("a", Parameters::default());
    let none = Parameters { max_tokens: Some(0), ..Parameters::default() };
    let many = Parameters { extra_json: "{\"n\":2}".to_owned(), ..Parameters::default() };
    for (ask, code, word) in [
        (StreamInferenceRequest { model: "x".to_owned(), ..fine() }, Code::NotFound, "\"m\""),
        (StreamInferenceRequest { messages: vec![], ..fine() }, Code::InvalidArgument, "messages"),
        (question("a", none), Code::InvalidArgument, "max_tokens"),
    ] {
        let refused = client.stream_inference(ask).await.unwrap_err();
        assert_eq!(refused.code(), code, "{refused}");
        assert!(refused.message().contains(word), "{refused}");
    }
    let mut chunks = client.stream_inference(question("a", many)).await.unwrap().into_inner();
    let refused = chunks.message().await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
    let mut request = Request::new(fine());
    request.metadata_mut().insert("grpc-timeout", "soon".parse().unwrap());
    let refused = client.stream_inference(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
}

#[tokio::test]
async fn health_and_reflection_answer() {
    let worker = Worker::echo(Duration::ZERO);
    tells_of_itself(worker.addr, "pointsman.inference.v1.InferenceService").await;
}

pub async fn health(worker: &Worker) -> i32 {
    let mut client = HealthClient::new(worker.channel().await);
    let service = "pointsman.inference.v1.InferenceService".to_owned();
    let asked = client.check(HealthCheckRequest { service }).await;
    asked.unwrap().into_inner().status
}
