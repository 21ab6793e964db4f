//! Collectors that misbehave cost nobody anything, and it can be read how much was lost.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use std::sync::atomic::AtomicU64;
use std::time::Instant;

use tokio::sync::Semaphore;
use transport::trace::{Became, Incoming};

use super::*;

/// Takes a batch for each permit, and refuses it while it is told to.
#[derive(Clone, Debug)]
struct Collector {
    room: Arc<Semaphore>,
    refuses: Arc<AtomicBool>,
    taken: Arc<AtomicU64>,
}

impl Collector {
    fn new(room: usize) -> Self {
        let room = Arc::new(Semaphore::new(room));
        Self { room, refuses: Arc::default(), taken: Arc::default() }
    }
}

impl SpanExporter for Collector {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        self.room.acquire().await.unwrap().forget();
        if self.refuses.load(Ordering::Relaxed) {
            return Err(OTelSdkError::InternalFailure("refused".to_owned()));
        }
        self.taken.fetch_add(batch.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

fn spans(collector: &Collector) -> Spans {
    let (tracing, _) = Tracing::of_env(&Env::default()).unwrap();
    Spans::over(collector.clone(), "http://here:1".to_owned(), &tracing, "test")
}

fn make(tracer: &Tracer, count: usize) {
    for _ in 0..count {
        drop(tracer.serve("a", Incoming::default()));
    }
}

fn became(tracer: &Tracer, outcome: &'static str) -> u64 {
    tracer.counts().0.get_or_create(&Became { outcome }).get()
}

async fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let began = Instant::now();
    while !holds() {
        assert!(began.elapsed() < Duration::from_secs(20), "never: {what}");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_last_is_sent_before_the_end() {
    let collector = Collector::new(usize::MAX >> 3);
    let spans = spans(&collector);
    let tracer = spans.tracer();
    make(&tracer, 3);
    spans.stop().await;
    assert_eq!(collector.taken.load(Ordering::Relaxed), 3);
    assert_eq!(became(&tracer, "exported"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_hangs_costs_one_queue_and_no_time() {
    let collector = Collector::new(0);
    let spans = spans(&collector);
    let tracer = spans.tracer();
    let beyond = 1_000;
    let began = Instant::now();
    // One batch may be on its way besides what waits.
    make(&tracer, QUEUE_MAX + BATCH_MAX + beyond);
    assert!(became(&tracer, "dropped") >= beyond as u64);
    assert!(began.elapsed() < EXPORT_WITHIN, "making them waits for nobody");
    let began = Instant::now();
    spans.stop().await;
    assert!(began.elapsed() < FLUSH_WITHIN + Duration::from_secs(2), "the end is bounded");
    assert_eq!(became(&tracer, "exported"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_batch_that_is_not_taken_in_time_is_given_up_and_the_next_is_tried() {
    let collector = Collector::new(0);
    let spans = spans(&collector);
    let tracer = spans.tracer();
    make(&tracer, 2);
    until("the first batch is given up", || became(&tracer, "failed") == 2).await;
    collector.room.add_permits(1);
    make(&tracer, 1);
    until("the next is taken", || became(&tracer, "exported") == 1).await;
    spans.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_collector_refuses_is_counted() {
    let collector = Collector::new(usize::MAX >> 3);
    collector.refuses.store(true, Ordering::Relaxed);
    let spans = spans(&collector);
    let tracer = spans.tracer();
    make(&tracer, 2);
    until("both failed", || became(&tracer, "failed") == 2).await;
    collector.refuses.store(false, Ordering::Relaxed);
    make(&tracer, 1);
    spans.stop().await;
    assert_eq!((became(&tracer, "failed"), became(&tracer, "exported")), (2, 1));
}

#[tokio::test]
async fn without_a_collector_or_where_they_are_switched_off_there_are_none() {
    let tracer = |vars: &[(&str, &str)]| {
        let env: Env = vars.iter().copied().collect();
        let (tracing, _) = Tracing::of_env(&env).unwrap();
        format!("{:?}", Spans::start(&tracing, "test", &env).unwrap().tracer())
    };
    let collector = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1");
    assert_eq!(tracer(&[]), "Tracer(off)");
    assert_eq!(tracer(&[collector]), "Tracer(on)");
    assert_eq!(tracer(&[collector, ("OTEL_SDK_DISABLED", "True")]), "Tracer(off)");
    assert_eq!(tracer(&[collector, ("OTEL_TRACES_EXPORTER", "none")]), "Tracer(off)");
}
