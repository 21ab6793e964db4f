//! The front's figures: the contract's `gateway_*`, and what only the front sees under `pointsman_front_*`.
//!
//! Labels are bounded: models and providers come from the catalog, never from a request (`other` and `none` stand for
//! the rest), statuses are judged at an answer's **end**, so that a stream that breaks after its 200 counts as the
//! failure it is. No user, session or key is ever a label.

use std::time::Duration;

use control::units::Usage;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;

use super::exposition;
use crate::trace::Counts;

/// What becomes of finished spans, under one name in every role.
pub(crate) const SPANS: &str = "pointsman_trace_spans";
/// And what its values mean.
pub(crate) const SPANS_HELP: &str =
    "Spans by what became of them: exported, failed at the collector, dropped for want of room";

/// Counters, gauges and histograms of one front.
#[derive(Debug)]
pub struct Meters {
    registry: Registry,
    requests: Family<Finished, Counter>,
    durations: Family<Served, Histogram, fn() -> Histogram>,
    tokens: Family<Counted, Counter>,
    first_tokens: Family<Served, Histogram, fn() -> Histogram>,
    in_flight: Gauge,
    connections: Gauge,
    accepted: Counter,
}

impl Meters {
    /// All at zero.
    #[must_use]
    pub fn new() -> Self {
        Self::counting(Counts::default())
    }

    /// The same, with what becomes of spans among them.
    pub(super) fn counting(spans: Counts) -> Self {
        let mut meters = Self {
            registry: Registry::default(),
            requests: Family::default(),
            durations: Family::new_with_constructor(seconds),
            tokens: Family::default(),
            first_tokens: Family::new_with_constructor(seconds),
            in_flight: Gauge::default(),
            connections: Gauge::default(),
            accepted: Counter::default(),
        };
        meters.register();
        meters.registry.register(SPANS, SPANS_HELP, spans.0);
        meters
    }

    fn register(&mut self) {
        let registry = &mut self.registry;
        registry.register(
            "gateway_requests",
            "Requests by how they ended; a stream is judged at its end",
            self.requests.clone(),
        );
        registry.register(
            "gateway_request_duration_seconds",
            "From a request's head to its answer's last byte",
            self.durations.clone(),
        );
        registry.register(
            "gateway_tokens_used",
            "Tokens charged, by type: prompt or completion",
            self.tokens.clone(),
        );
        registry.register(
            "pointsman_front_first_token_seconds",
            "From a request's arrival at the plane to its first token",
            self.first_tokens.clone(),
        );
        registry.register(
            "pointsman_front_requests_in_flight",
            "Requests whose answer is not yet over",
            self.in_flight.clone(),
        );
        registry.register(
            "pointsman_front_connections",
            "Client connections now open",
            self.connections.clone(),
        );
        registry.register(
            "pointsman_front_connections_accepted",
            "Client connections accepted since the start",
            self.accepted.clone(),
        );
    }

    /// The front's figures and the plane's, as one exposition in the Prometheus text format 0.0.4.
    pub(super) fn exposition(&self, plane: &str) -> String {
        exposition::text(&self.registry, plane)
    }

    /// Answers that are not yet over: 0 once everything has gone quiet.
    #[must_use]
    pub fn requests_in_flight(&self) -> i64 {
        self.in_flight.get()
    }

    /// Client connections now open.
    #[must_use]
    pub fn connections(&self) -> i64 {
        self.connections.get()
    }

    pub(super) fn begun(&self) {
        self.in_flight.inc();
    }

    /// One request is over.
    pub(super) fn finished(
        &self,
        served: &Served,
        status: u16,
        took: Duration,
        usage: Usage,
        first_token: Option<Duration>,
    ) {
        self.in_flight.dec();
        let Served { provider, model } = served.clone();
        self.requests.get_or_create(&Finished { provider, model, status }).inc();
        self.durations.get_or_create(served).observe(took.as_secs_f64());
        if let Some(first_token) = first_token {
            self.first_tokens.get_or_create(served).observe(first_token.as_secs_f64());
        }
        for (kind, count) in [("prompt", usage.prompt), ("completion", usage.completion)] {
            if count.0 > 0 {
                let Served { provider, model } = served.clone();
                self.tokens
                    .get_or_create(&Counted { provider, model, r#type: kind })
                    .inc_by(count.0);
            }
        }
    }

    pub(super) fn connected(&self) {
        self.accepted.inc();
        self.connections.inc();
    }

    pub(super) fn disconnected(&self) {
        self.connections.dec();
    }
}

impl Default for Meters {
    fn default() -> Self {
        Self::new()
    }
}

/// Who provides which model.
#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
pub(super) struct Served {
    pub(super) provider: String,
    pub(super) model: String,
}

impl Default for Served {
    /// A request that never named a model of the catalog.
    fn default() -> Self {
        Self { provider: "none".to_owned(), model: "other".to_owned() }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Finished {
    provider: String,
    model: String,
    status: u16,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Counted {
    provider: String,
    model: String,
    r#type: &'static str,
}

/// From a cache's answer to the longest generation that a default deadline allows.
fn seconds() -> Histogram {
    const BOUNDS: [f64; 15] =
        [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0, 600.0];
    Histogram::new(BOUNDS)
}
