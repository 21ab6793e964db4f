//! What a worker tells of itself: figures, a span and a log line for each answer.
//!
//! The same names and words as the worker in Python has, so that one dashboard shows both.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use axum::Router;
use axum::extract::State;
use axum::response::IntoResponse;
use axum::routing::get;
use http::{HeaderValue, StatusCode, header};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use tokio::sync::watch;

use super::desk::Desk;
use super::page;
use super::presence::Standing;
use super::record::Ended;
use super::witness::Witness;
use crate::front::{SPANS, SPANS_HELP, exposition};
use crate::trace::Tracer;

/// From a cached first token to one that nobody waits for any more, in seconds.
const FIRST_TOKEN: [f64; 12] =
    [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0];
/// From a refusal to the longest answers, in seconds.
const DURATION: [f64; 13] =
    [0.01, 0.05, 0.1, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0];

/// A worker's figures and spans; clones are of the same worker.
#[derive(Clone, Debug)]
pub struct Telemetry(Arc<Inner>, Option<Arc<dyn Witness>>);

#[derive(Debug)]
struct Inner {
    model: String,
    /// Its name among all workers, in the log.
    instance: OnceLock<String>,
    tracer: Tracer,
    registry: Registry,
    requests: Family<Outcome, Counter>,
    tokens: Family<Kind, Counter>,
    resumed: Counter,
    duration: Histogram,
    first_token: Histogram,
    running: Gauge,
    queued: Gauge,
    running_max: Gauge,
    draining: Gauge,
    backend_ready: Gauge,
    registered: Gauge,
    /// Whether the backend answers, for those who wait for that to change.
    readiness: watch::Sender<bool>,
    standing: Mutex<Standing>,
    desk: OnceLock<Arc<Desk>>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Outcome {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Kind {
    r#type: &'static str,
}

impl Telemetry {
    /// The same with somebody who sees every answer begin.
    #[must_use]
    pub fn seen_by(self, witness: Arc<dyn Witness>) -> Self {
        Self(self.0, Some(witness))
    }

    pub(super) fn witness(&self) -> Option<&dyn Witness> {
        self.1.as_deref()
    }

    /// Of a worker that serves `model`.
    #[must_use]
    pub fn new(model: &str, tracer: Tracer) -> Self {
        let mut inner = Inner {
            model: model.to_owned(),
            instance: OnceLock::new(),
            tracer,
            registry: Registry::with_labels(
                [("model".into(), model.to_owned().into())].into_iter(),
            ),
            requests: Family::default(),
            tokens: Family::default(),
            resumed: Counter::default(),
            duration: Histogram::new(DURATION),
            first_token: Histogram::new(FIRST_TOKEN),
            running: Gauge::default(),
            queued: Gauge::default(),
            running_max: Gauge::default(),
            draining: Gauge::default(),
            backend_ready: Gauge::default(),
            registered: Gauge::default(),
            readiness: watch::Sender::new(false),
            standing: Mutex::default(),
            desk: OnceLock::new(),
        };
        inner.register();
        Self(Arc::new(inner), None)
    }

    /// The same under the name by which others know it, which its log lines then have. The first name stays.
    #[must_use]
    pub fn named(self, instance: &str) -> Self {
        let _ = self.0.instance.set(instance.to_owned());
        self
    }

    /// The pages for probes and scrapes: `/health`, `/ready` and `/metrics`.
    pub fn router(&self) -> Router {
        Router::new()
            .route("/health", get(page::health))
            .route("/ready", get(page::ready))
            .route("/metrics", get(metrics))
            .fallback(nothing)
            .with_state(self.clone())
    }

    /// The figures in the Prometheus text format 0.0.4.
    #[must_use]
    pub fn page(&self) -> String {
        let inner = &self.0;
        if let Some(desk) = inner.desk.get() {
            let load = desk.load();
            inner.running.set(load.running.into());
            inner.queued.set(load.queued.into());
            inner.running_max.set(load.running_max.into());
            inner.draining.set(desk.is_draining().into());
        }
        exposition::text(&inner.registry, "")
    }

    pub(super) fn model(&self) -> &str {
        &self.0.model
    }

    /// As it was named.
    pub(super) fn instance(&self) -> Option<&str> {
        self.0.instance.get().map(String::as_str)
    }

    pub(super) fn tracer(&self) -> &Tracer {
        &self.0.tracer
    }

    /// The worker's desk, whose load is shown.
    pub(super) fn follow(&self, desk: &Arc<Desk>) {
        // A second worker with the same figures would be a mistake of ours, and shows the first one's load.
        let _ = self.0.desk.set(Arc::clone(desk));
    }

    /// Whether the backend answers.
    pub(super) fn backend_is_ready(&self, ready: bool) {
        self.0.backend_ready.set(ready.into());
        self.0.readiness.send_replace(ready);
    }

    /// That, as it changes.
    pub(super) fn backend_readiness(&self) -> watch::Receiver<bool> {
        self.0.readiness.subscribe()
    }

    /// What the registry knows of the worker from now on.
    pub(super) fn stands(&self, now: Standing) {
        self.0.registered.set((now == Standing::Known).into());
        *self.0.standing.lock().unwrap_or_else(PoisonError::into_inner) = now;
    }

    pub(super) fn standing(&self) -> Standing {
        self.0.standing.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Nobody is let in: not yet, or no more.
    pub(super) fn is_closed(&self) -> bool {
        self.0.desk.get().is_none_or(|desk| desk.is_draining())
    }

    pub(super) fn ended(&self, ended: &Ended) {
        let inner = &self.0;
        inner.requests.get_or_create(&Outcome { outcome: ended.outcome }).inc();
        inner.duration.observe(ended.took.as_secs_f64());
        if let Some(after) = ended.first_token {
            inner.first_token.observe(after.as_secs_f64());
        }
        if ended.resumed_at.is_some() {
            inner.resumed.inc();
        }
        for (kind, count) in [("prompt", ended.prompt), ("completion", ended.tokens)] {
            if count > 0 {
                inner.tokens.get_or_create(&Kind { r#type: kind }).inc_by(count);
            }
        }
    }
}

impl Inner {
    fn register(&mut self) {
        let r = &mut self.registry;
        let help = "Requests by how they ended";
        r.register("pointsman_worker_requests", help, self.requests.clone());
        let help = "Tokens, of prompts where the backend counts them, and generated here";
        r.register("pointsman_worker_tokens", help, self.tokens.clone());
        let help = "Answers that another worker had begun";
        r.register("pointsman_worker_resumed", help, self.resumed.clone());
        let help = "From call to end";
        r.register("pointsman_worker_request_duration_seconds", help, self.duration.clone());
        let help = "From call to first token";
        r.register("pointsman_worker_first_token_seconds", help, self.first_token.clone());
        for (name, help, gauge) in [
            ("pointsman_worker_running", "Requests that run", &self.running),
            ("pointsman_worker_queued", "Requests that wait", &self.queued),
            ("pointsman_worker_running_max", "The most requests at once", &self.running_max),
            ("pointsman_worker_draining", "1 while it takes no more", &self.draining),
            (
                "pointsman_worker_backend_ready",
                "1 while the backend can answer",
                &self.backend_ready,
            ),
            (
                "pointsman_worker_registered",
                "1 while the registry knows the worker",
                &self.registered,
            ),
        ] {
            r.register(name, help, gauge.clone());
        }
        r.register(SPANS, SPANS_HELP, self.tracer.counts().0);
    }
}

async fn metrics(State(told): State<Telemetry>) -> impl IntoResponse {
    let kind = HeaderValue::from_static(exposition::CONTENT_TYPE);
    ([(header::CONTENT_TYPE, kind)], told.page())
}

async fn nothing() -> impl IntoResponse {
    (StatusCode::NOT_FOUND, "nothing here; there are /health, /ready and /metrics\n")
}
