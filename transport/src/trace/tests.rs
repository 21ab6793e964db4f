//! Spans as an SDK gets them.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use opentelemetry::trace::{SpanId, TracerProvider as _};
use opentelemetry_sdk::trace::{InMemorySpanExporter, Sampler, SdkTracerProvider};

use super::*;

const GOOD: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

fn tracer(sampler: Sampler) -> (Tracer, InMemorySpanExporter, SdkTracerProvider) {
    let exporter = InMemorySpanExporter::default();
    let provider = SdkTracerProvider::builder()
        .with_sampler(sampler)
        .with_simple_exporter(exporter.clone())
        .build();
    (Tracer::new(provider.tracer("test"), Counts::default()), exporter, provider)
}

fn incoming(parent: &'static str) -> Incoming {
    Incoming::read(|name| (name == "traceparent").then_some(parent))
}

fn header(trace: &Trace) -> Option<String> {
    let mut headers = HeaderMap::new();
    trace.write(&mut headers);
    Some(headers.get("traceparent")?.to_str().unwrap().to_owned())
}

#[test]
fn without_a_tracer_what_came_goes_on_and_nothing_else_does() {
    let span = Tracer::default().serve("a", incoming(GOOD));
    let called = span.trace().call(|| unreachable!("no name is made for a span that is none"));
    assert_eq!(header(called.trace()).as_deref(), Some(GOOD));
    assert!(!called.is_read() && called.trace().id().is_none());
    assert_eq!(header(Tracer::default().serve("a", Incoming::default()).trace()), None);
}

#[test]
fn a_callers_span_is_the_parent_and_whoever_is_called_hears_of_ours() {
    let (tracer, exporter, _provider) = tracer(Sampler::AlwaysOn);
    let served = tracer.serve("served", incoming(GOOD));
    let mut called = served.trace().call(|| "called".to_owned());
    called.set(key::ATTEMPT, 2_i64);
    called.fail("connect");
    let told = header(called.trace()).unwrap();
    drop((called, served));
    let spans = exporter.get_finished_spans().unwrap();
    let [called, served] = &spans[..] else { panic!("{spans:?}") };
    assert_eq!((&*served.name, &served.span_kind), ("served", &SpanKind::Server));
    assert_eq!(served.parent_span_id, SpanId::from_hex("b7ad6b7169203331").unwrap());
    assert_eq!(served.span_context.trace_id().to_string(), GOOD[3..35]);
    assert_eq!(called.parent_span_id, served.span_context.span_id());
    assert_eq!(told, format!("{}{}-01", &GOOD[..36], called.span_context.span_id()));
    assert_eq!(called.status, Status::error("connect"));
    let wanted = [KeyValue::new(key::ATTEMPT, 2_i64), KeyValue::new(key::ERROR_TYPE, "connect")];
    assert_eq!(called.attributes, wanted);
}

#[test]
fn what_is_not_sampled_says_so_to_the_next_and_is_not_kept() {
    let (tracer, exporter, _provider) = tracer(Sampler::AlwaysOff);
    let span = tracer.serve("a", incoming(GOOD));
    let told = header(span.trace()).unwrap();
    assert!(!span.is_read() && told.starts_with(&GOOD[..36]) && told.ends_with("-00"), "{told}");
    drop(span);
    assert!(exporter.get_finished_spans().unwrap().is_empty());
}
