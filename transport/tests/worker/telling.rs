//! What a gateway and its workers tell of a request: spans that hang together, figures, and nothing of its content.

use std::time::Duration;

use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, SdkTracerProvider, SpanData};
use proto::inference::v1::Parameters;
use serde_json::json;
use tokio::time::{Instant, sleep};
use transport::trace::{Counts, Tracer, key};
use transport::worker::{Backend, Echo, Telemetry};

use crate::world::{LONG, SECOND, Worker, World, question, streamed};

/// Spans of everybody in this process.
struct Spans {
    exporter: InMemorySpanExporter,
    provider: SdkTracerProvider,
}

impl Spans {
    fn new() -> Self {
        let exporter = InMemorySpanExporter::default();
        let provider = SdkTracerProvider::builder().with_simple_exporter(exporter.clone()).build();
        Self { exporter, provider }
    }

    fn tracer(&self) -> Tracer {
        Tracer::new(self.provider.tracer("test"), Counts::default())
    }

    fn worker(&self, concurrency: u32) -> (Worker, Telemetry) {
        let telemetry = Telemetry::new("m", self.tracer());
        let backend = Backend::Echo(Echo::default());
        (Worker::telling(telemetry.clone(), backend, concurrency, SECOND), telemetry)
    }

    /// So many, once they have ended, in the order in which they began.
    async fn ended(&self, count: usize) -> Vec<SpanData> {
        let began = Instant::now();
        loop {
            let mut spans = self.exporter.get_finished_spans().unwrap();
            if spans.len() >= count {
                spans.sort_by_key(|span| span.start_time);
                assert_eq!(spans.len(), count, "{spans:#?}");
                return spans;
            }
            assert!(began.elapsed() < LONG, "{spans:#?}");
            sleep(Duration::from_millis(5)).await;
        }
    }
}

fn said(span: &SpanData, key: &str) -> String {
    let found = span.attributes.iter().find(|said| said.key.as_str() == key);
    found.map_or_else(|| "-".to_owned(), |said| said.value.to_string())
}

#[tokio::test]
async fn over_grpc_and_over_quic_the_workers_span_hangs_below_the_attempts() {
    for over_quic in [false, true] {
        let spans = Spans::new();
        let (worker, _) = spans.worker(8);
        let url = if over_quic { worker.over_quic() } else { worker.url() };
        let world = World::traced(spans.tracer(), &[url], "").await;
        let answer = world.ask("Hi there", json!({"stream": true})).await;
        assert!(answer.is_done(), "{answer:?}");
        let ended = spans.ended(3).await;
        let [served, attempt, asked] = &ended[..] else { panic!() };
        assert_eq!(served.parent_span_id, SpanId::INVALID);
        assert_eq!(attempt.parent_span_id, served.span_context.span_id(), "{ended:#?}");
        assert_eq!(asked.parent_span_id, attempt.span_context.span_id(), "{ended:#?}");
        assert!(ended.iter().all(|s| s.span_context.trace_id() == served.span_context.trace_id()));
        let names: Vec<&str> = ended.iter().map(|span| &*span.name).collect();
        assert_eq!(names, ["gateway.chat_completion", "chat m", "worker.stream_inference"]);
        for span in &ended {
            assert_eq!(said(span, key::REQUEST_ID), answer.header("x-request-id"));
            assert_eq!(said(span, key::REQUEST_MODEL), "m");
            assert_eq!(said(span, key::OUTPUT_TOKENS), "2", "{span:#?}");
        }
        assert_eq!(said(attempt, key::RESPONSE_MODEL), "m");
        assert!(!format!("{ended:?}").contains("there"), "the prompt came back as the answer");
    }
}

#[tokio::test]
async fn a_client_that_leaves_ends_all_spans_and_is_no_error() {
    let spans = Spans::new();
    let telemetry = Telemetry::new("m", spans.tracer());
    let backend = Backend::Echo(Echo { delay: LONG });
    let worker = Worker::telling(telemetry.clone(), backend, 8, SECOND);
    let world = World::traced(spans.tracer(), &[worker.url()], "").await;
    let body = streamed("Hi");
    let asking = world.begin("/v1/chat/completions", &body);
    tokio::select! {
        answer = asking => panic!("{answer:?}"),
        () = worker.runs(1) => {}
    }
    for span in spans.ended(3).await {
        let outcome = said(&span, key::OUTCOME);
        assert!(["client_gone", "cancelled"].contains(&outcome.as_str()), "{span:#?}");
        assert_eq!(span.status, opentelemetry::trace::Status::Unset, "{span:#?}");
    }
    let page = telemetry.page();
    assert!(page.contains("requests_total{model=\"m\",outcome=\"cancelled\"} 1\n"), "{page}");
}

#[tokio::test]
async fn a_worker_counts_what_it_wrote_and_what_it_refused() {
    let spans = Spans::new();
    let (worker, telemetry) = spans.worker(8);
    let mut client = worker.client().await;
    let mut asked = question("a b c", Parameters::default());
    let mut chunks = client.stream_inference(asked.clone()).await.unwrap().into_inner();
    while chunks.message().await.unwrap().is_some() {}
    asked.model = "other".to_owned();
    client.stream_inference(asked).await.unwrap_err();
    let ended = spans.ended(2).await;
    assert_eq!(said(&ended[1], key::ERROR_TYPE), "unknown_model");
    let page = telemetry.page();
    for line in [
        "pointsman_worker_requests_total{model=\"m\",outcome=\"ok\"} 1",
        "pointsman_worker_requests_total{model=\"m\",outcome=\"unknown_model\"} 1",
        "pointsman_worker_tokens_total{model=\"m\",type=\"completion\"} 3",
        "pointsman_worker_first_token_seconds_count{model=\"m\"} 1",
        "pointsman_worker_request_duration_seconds_count{model=\"m\"} 2",
        "pointsman_worker_running{model=\"m\"} 0",
        "pointsman_worker_running_max{model=\"m\"} 8",
        "pointsman_worker_backend_ready{model=\"m\"} 1",
        "pointsman_worker_draining{model=\"m\"} 0",
    ] {
        assert!(page.lines().any(|one| one == line), "{line} is not in\n{page}");
    }
}
