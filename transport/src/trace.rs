//! Spans: which hop of a request took how long, told to whoever collects them from every process it went through.
//!
//! A log line says how a request ended. Where its time went, which replica failed before the one that answered, and
//! what the worker did meanwhile is spread over machines; a trace holds it together. The parts speak OpenTelemetry's API
//! alone: who makes spans of it and where they go is the binary's affair, so that nothing here starts a thread, reads an
//! environment or opens a connection, and a simulated gateway, which is given no [`Tracer`], draws no entropy either.
//!
//! - **Off** is the default. Then a [`Span`] is empty, nothing is allocated for it, and what a caller said of its own
//!   trace is passed on letter by letter.
//! - **On**, a caller's `traceparent` is the parent of our span, and whoever we call hears of ours (W3C Trace Context).
//!   One that cannot be true is as if it had not been sent: nobody's request fails because of it.
//! - **What stands in a span**: names of models and replicas, counts, times, kinds of errors. Never a prompt, an answer,
//!   a key, a user or a session.
//!
//! The alternative, spans of the `tracing` crate with a layer that turns them into OpenTelemetry's, was rejected: parents
//! come from a header and live across tasks, and each span would go through a global subscriber that also writes the logs.

mod incoming;
pub mod key;

use core::fmt;
use std::borrow::Cow;
use std::sync::Arc;

use http::{HeaderMap, HeaderValue};
use opentelemetry::global::{BoxedSpan, BoxedTracer, ObjectSafeTracer};
use opentelemetry::trace::{
    Span as _, SpanBuilder, SpanContext, SpanKind, Status, TraceContextExt as _, Tracer as _,
};
use opentelemetry::{Context, KeyValue, Value};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;

pub use incoming::Incoming;

/// Makes spans, or none.
#[derive(Clone, Default)]
pub struct Tracer(Option<Arc<On>>);

struct On {
    tracer: BoxedTracer,
    counts: Counts,
}

/// What became of finished spans, for the metrics.
#[derive(Clone, Debug, Default)]
pub struct Counts(pub Family<Became, Counter>);

/// The label of [`Counts`].
#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
pub struct Became {
    /// `exported`, `failed` or `dropped`.
    pub outcome: &'static str,
}

impl Counts {
    /// So many more became this.
    pub fn add(&self, outcome: &'static str, spans: u64) {
        self.0.get_or_create(&Became { outcome }).inc_by(spans);
    }
}

impl Tracer {
    /// Over a tracer of any OpenTelemetry SDK, which counts what becomes of its spans.
    #[must_use]
    pub fn new(tracer: impl ObjectSafeTracer + Send + Sync + 'static, counts: Counts) -> Self {
        Self(Some(Arc::new(On { tracer: BoxedTracer::new(Box::new(tracer)), counts })))
    }

    /// What became of spans; all at zero where there are none.
    #[must_use]
    pub fn counts(&self) -> Counts {
        self.0.as_ref().map(|on| on.counts.clone()).unwrap_or_default()
    }

    /// A span for a call that came in.
    #[must_use]
    pub fn serve(&self, name: &'static str, incoming: Incoming) -> Span {
        let Some(on) = &self.0 else {
            return Span { inner: None, trace: Trace(At::Passed(incoming.some())) };
        };
        on.span(self, name.into(), SpanKind::Server, incoming.context())
    }
}

impl On {
    fn span(
        &self,
        own: &Tracer,
        name: Cow<'static, str>,
        kind: SpanKind,
        parent: SpanContext,
    ) -> Span {
        let above = match parent.is_valid() {
            true => Context::new().with_remote_span_context(parent),
            false => Context::new(),
        };
        let builder = SpanBuilder::from_name(name).with_kind(kind);
        let inner = self.tracer.build_with_context(builder, &above);
        let trace = Trace(At::Span(own.clone(), inner.span_context().clone()));
        Span { inner: Some(inner), trace }
    }
}

impl fmt::Debug for Tracer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Tracer({})", if self.0.is_some() { "on" } else { "off" })
    }
}

/// A place in a trace: what hangs below it, and whoever is called from it, belongs to that trace.
#[derive(Clone, Debug, Default)]
pub struct Trace(At);

#[derive(Clone, Debug)]
enum At {
    /// No spans are made; what the caller said is passed on.
    Passed(Option<Arc<Incoming>>),
    /// Within this span.
    Span(Tracer, SpanContext),
}

impl Default for At {
    fn default() -> Self {
        Self::Passed(None)
    }
}

impl Trace {
    /// A span for a call that goes out from here.
    #[must_use]
    pub fn call(&self, name: impl FnOnce() -> String) -> Span {
        match &self.0 {
            At::Span(own @ Tracer(Some(on)), context) => {
                on.span(own, name().into(), SpanKind::Client, context.clone())
            }
            At::Passed(_) | At::Span(..) => Span { inner: None, trace: self.clone() },
        }
    }

    /// What whoever is called hears of the trace.
    #[must_use]
    pub fn outgoing(&self) -> Option<Arc<Incoming>> {
        match &self.0 {
            At::Passed(said) => said.clone(),
            At::Span(_, context) => Incoming::from_context(context).some(),
        }
    }

    /// The same, as headers.
    pub fn write(&self, headers: &mut HeaderMap) {
        let Some(said) = self.outgoing() else { return };
        for (name, text) in said.headers() {
            if let Ok(value) = HeaderValue::from_str(text) {
                headers.insert(name, value);
            }
        }
    }

    /// The trace's id, where spans are made, in 32 hexadecimal digits.
    #[must_use]
    pub fn id(&self) -> Option<String> {
        match &self.0 {
            At::Passed(_) => None,
            At::Span(_, context) => Some(context.trace_id().to_string()),
        }
    }
}

/// One span, from its making to its drop; or none, which takes everything and says nothing.
#[derive(Default)]
pub struct Span {
    inner: Option<BoxedSpan>,
    trace: Trace,
}

impl Span {
    /// The place within it.
    #[must_use]
    pub fn trace(&self) -> &Trace {
        &self.trace
    }

    /// Whether anybody will read what is said: for what takes work to find out.
    #[must_use]
    pub fn is_read(&self) -> bool {
        self.inner.as_ref().is_some_and(BoxedSpan::is_recording)
    }

    /// Says something of it. Of two values for one key the later counts.
    pub fn set(&mut self, key: &'static str, value: impl Into<Value>) {
        if let Some(inner) = &mut self.inner {
            inner.set_attribute(KeyValue::new(key, value));
        }
    }

    /// The same where there is something to say.
    pub fn maybe(&mut self, key: &'static str, value: Option<impl Into<Value>>) {
        if let Some(value) = value {
            self.set(key, value);
        }
    }

    /// Something happens in it, now.
    pub fn event(&mut self, name: &'static str, said: Vec<KeyValue>) {
        if let Some(inner) = &mut self.inner {
            inner.add_event(name, said);
        }
    }

    /// It fails in this way: one of a list that does not grow with what callers send.
    pub fn fail(&mut self, kind: &'static str) {
        self.set(key::ERROR_TYPE, kind);
        if let Some(inner) = &mut self.inner {
            inner.set_status(Status::error(kind));
        }
    }
}

impl fmt::Debug for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Span({})", if self.inner.is_some() { "on" } else { "off" })
    }
}

#[cfg(test)]
mod tests;
