//! Spans on their way to a collector: OTLP over gRPC, in the background, and never at a request's cost.
//!
//! A span that has ended is put into a queue of stated size, or dropped and counted where that is full. A thread of the
//! SDK's takes batches from it; each is sent within a deadline, whatever the collector does, and thrown away where it
//! was not taken. So a collector that is dead, slow or wrong costs memory for one queue and a line in the log when it is
//! lost and when it is back; the counter `pointsman_trace_spans_total` says the rest.
//!
//! The SDK's own queue drops in silence and its exporter waits for a connection as long as the operating system does.
//! Hence the two wrappers here: [`Bounded`] in front of the queue, [`Watched`] behind it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use opentelemetry::trace::TracerProvider as _;
use opentelemetry::{Context, KeyValue};
use opentelemetry_otlp::{ExporterBuildError, WithExportConfig as _};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::{OTelSdkError, OTelSdkResult};
use opentelemetry_sdk::trace::{
    BatchConfigBuilder, BatchSpanProcessor, Sampler, SdkTracerProvider, Span, SpanData,
    SpanExporter, SpanProcessor,
};
use tokio::runtime::Handle;
use tokio::time::timeout;
use transport::config::{self, Env, Tracing};
use transport::trace::{Counts, Tracer};

/// Spans that wait for their batch: some seconds of a busy gateway, some megabytes.
const QUEUE_MAX: usize = 8_192;
/// As many go out at once.
const BATCH_MAX: usize = 512;
/// A span waits no longer for its batch to fill.
const BATCH_EVERY: Duration = Duration::from_secs(1);
/// For one batch, the connection to the collector included.
const EXPORT_WITHIN: Duration = Duration::from_secs(5);
/// For all that is left when the process ends.
const FLUSH_WITHIN: Duration = Duration::from_secs(3);

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
#[error("monitoring.tracing: {0}")]
pub struct SpansError(#[from] ExporterBuildError);

/// Spans and where they go, until [`stop`](Self::stop).
pub struct Spans {
    provider: Option<SdkTracerProvider>,
    tracer: Tracer,
}

impl Spans {
    /// None at all where no collector is named, or where `OTEL_SDK_DISABLED` or `OTEL_TRACES_EXPORTER` say so. `role` is
    /// whose they are where nobody says. Call it within a Tokio runtime.
    pub fn start(tracing: &Tracing, role: &'static str, env: &Env) -> Result<Self, SpansError> {
        let disabled = env.var("OTEL_SDK_DISABLED").is_some_and(|v| v.eq_ignore_ascii_case("true"))
            || env.var("OTEL_TRACES_EXPORTER") == Some("none");
        let Some(collector) = tracing.endpoint.as_ref().filter(|_| !disabled) else {
            return Ok(Self { provider: None, tracer: Tracer::default() });
        };
        let exporter = opentelemetry_otlp::SpanExporter::builder()
            .with_tonic()
            .with_endpoint(collector.as_str())
            .with_timeout(EXPORT_WITHIN)
            .build()?;
        tracing::info!("spans go to {collector}");
        Ok(Self::over(exporter, collector.to_string(), tracing, role))
    }

    /// Through any exporter, which `collector` names in the log.
    fn over(
        exporter: impl SpanExporter + 'static,
        collector: String,
        tracing: &Tracing,
        role: &'static str,
    ) -> Self {
        let (counts, queued) = (Counts::default(), Arc::new(AtomicUsize::new(0)));
        let exporter = Watched {
            exporter: Arc::new(exporter),
            collector,
            runtime: Handle::current(),
            queued: Arc::clone(&queued),
            counts: counts.clone(),
            lost: AtomicBool::new(false),
        };
        let batches = BatchConfigBuilder::default()
            .with_max_queue_size(QUEUE_MAX)
            .with_max_export_batch_size(BATCH_MAX)
            .with_scheduled_delay(BATCH_EVERY)
            .build();
        let batches = BatchSpanProcessor::builder(exporter).with_batch_config(batches).build();
        let provider = SdkTracerProvider::builder()
            .with_resource(resource(tracing, role))
            .with_sampler(sampler(tracing))
            .with_span_processor(Bounded { batches, queued, counts: counts.clone() })
            .build();
        let tracer = Tracer::new(provider.tracer("pointsman"), counts);
        Self { provider: Some(provider), tracer }
    }

    /// Makes them.
    pub fn tracer(&self) -> Tracer {
        self.tracer.clone()
    }

    /// Sends what is left, within 3 seconds. What comes after is not kept.
    pub async fn stop(self) {
        let Some(provider) = self.provider else { return };
        // It waits for its thread, which needs this runtime.
        let stopped =
            tokio::task::spawn_blocking(move || provider.shutdown_with_timeout(FLUSH_WITHIN));
        let why = match timeout(FLUSH_WITHIN + Duration::from_secs(1), stopped).await {
            Ok(Ok(Ok(()))) => return,
            Ok(Ok(Err(why))) => why.to_string(),
            Ok(Err(why)) => why.to_string(),
            Err(_) => "it took too long".to_owned(),
        };
        tracing::warn!("the last spans were not sent: {why}");
    }
}

/// Whose spans they are. More comes from `OTEL_RESOURCE_ATTRIBUTES`.
fn resource(tracing: &Tracing, role: &'static str) -> Resource {
    let name = tracing.service_name.clone().unwrap_or_else(|| role.to_owned());
    let version = KeyValue::new("service.version", env!("CARGO_PKG_VERSION"));
    Resource::builder().with_attribute(version).with_service_name(name).build()
}

fn sampler(tracing: &Tracing) -> Sampler {
    let ratio = Sampler::TraceIdRatioBased(tracing.sample_ratio.as_f64());
    let parent = |root| Sampler::ParentBased(Box::new(root));
    match tracing.sampler {
        config::Sampler::AlwaysOn => Sampler::AlwaysOn,
        config::Sampler::AlwaysOff => Sampler::AlwaysOff,
        config::Sampler::Ratio => ratio,
        config::Sampler::ParentOrOn => parent(Sampler::AlwaysOn),
        config::Sampler::ParentOrOff => parent(Sampler::AlwaysOff),
        config::Sampler::ParentOrRatio => parent(ratio),
    }
}

/// In front of the SDK's queue: what has no room there is counted.
#[derive(Debug)]
struct Bounded {
    batches: BatchSpanProcessor,
    queued: Arc<AtomicUsize>,
    counts: Counts,
}

impl SpanProcessor for Bounded {
    fn on_start(&self, span: &mut Span, within: &Context) {
        self.batches.on_start(span, within);
    }

    fn on_end(&self, span: SpanData) {
        let room = |queued: usize| (queued < QUEUE_MAX).then_some(queued + 1);
        match self.queued.fetch_update(Ordering::Relaxed, Ordering::Relaxed, room) {
            Ok(_) => self.batches.on_end(span),
            Err(_) => self.counts.add("dropped", 1),
        }
    }

    fn force_flush(&self) -> OTelSdkResult {
        self.batches.force_flush()
    }

    fn shutdown_with_timeout(&self, time: Duration) -> OTelSdkResult {
        self.batches.shutdown_with_timeout(time)
    }

    fn set_resource(&mut self, resource: &Resource) {
        self.batches.set_resource(resource);
    }
}

/// Behind the SDK's queue: each batch has a deadline, and what became of it is counted and, when that changes, logged.
#[derive(Debug)]
struct Watched<E> {
    exporter: Arc<E>,
    collector: String,
    runtime: Handle,
    queued: Arc<AtomicUsize>,
    counts: Counts,
    lost: AtomicBool,
}

impl<E: SpanExporter + 'static> SpanExporter for Watched<E> {
    async fn export(&self, batch: Vec<SpanData>) -> OTelSdkResult {
        let spans = batch.len();
        self.queued.fetch_sub(spans, Ordering::Relaxed);
        // On the runtime: the thread that asks has none, and neither timers nor connections live without.
        let exporter = Arc::clone(&self.exporter);
        let sending = self.runtime.spawn(async move {
            let sent = timeout(EXPORT_WITHIN, exporter.export(batch)).await;
            sent.unwrap_or(Err(OTelSdkError::Timeout(EXPORT_WITHIN)))
        });
        let broke = |why| Err(OTelSdkError::InternalFailure(format!("{why}")));
        let sent = sending.await.unwrap_or_else(broke);
        self.note(spans as u64, &sent);
        sent
    }

    fn shutdown_with_timeout(&self, time: Duration) -> OTelSdkResult {
        self.exporter.shutdown_with_timeout(time)
    }

    fn set_resource(&mut self, resource: &Resource) {
        let exporter = Arc::get_mut(&mut self.exporter);
        exporter.expect("nothing is exported before the resource is set").set_resource(resource);
    }
}

impl<E> Watched<E> {
    fn note(&self, spans: u64, sent: &OTelSdkResult) {
        let was_lost = self.lost.swap(sent.is_err(), Ordering::Relaxed);
        let collector = &self.collector;
        match sent {
            Ok(()) => {
                self.counts.add("exported", spans);
                if was_lost {
                    tracing::info!("the collector at {collector} takes spans again");
                }
            }
            Err(why) => {
                self.counts.add("failed", spans);
                if !was_lost {
                    tracing::warn!(
                        "the collector at {collector} takes no spans, which are lost until it does: {why}"
                    );
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
