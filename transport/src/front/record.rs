//! What is written down about one request, once, whichever way it ends.
//!
//! A record that is dropped unfinished belongs to a client that went away: the server drops the handler, or the body,
//! at whatever point it had reached. So nothing is forgotten and nothing is counted twice.

use std::sync::Arc;
use std::time::{Duration, Instant};

use control::id::SessionKey;
use control::plane::{Outcome, Session};
use control::units::{Tokens, Usage};
use tracing::info;

use super::meters::{Meters, Served};
use crate::exchange::{End, Model, Tally};
use crate::trace::{Span, Trace, key};

/// One request, from its head to its answer's last byte.
pub(super) struct Record {
    meters: Arc<Meters>,
    began: Instant,
    pub(super) request: String,
    served: Served,
    tenant: Option<Arc<str>>,
    session: Option<SessionKey>,
    pub(super) replica: Option<String>,
    pub(super) attempts: u32,
    /// What a stream has delivered, should its client go away.
    pub(super) tally: Option<Arc<Tally>>,
    span: Span,
    finished: bool,
}

impl Record {
    /// Begins now, under a local id until the plane gives one. It is over when its span is.
    pub(super) fn begin(meters: Arc<Meters>, local_id: String, span: Span) -> Self {
        meters.begun();
        Self {
            meters,
            began: Instant::now(),
            request: local_id,
            served: Served::default(),
            tenant: None,
            session: None,
            replica: None,
            attempts: 0,
            tally: None,
            span,
            finished: false,
        }
    }

    pub(super) fn tenant(&mut self, name: &Arc<str>) {
        self.tenant = Some(Arc::clone(name));
    }

    pub(super) fn model(&mut self, model: &Model) {
        self.served = Served { provider: model.provider.clone(), model: model.name.clone() };
    }

    /// The one that answers, where it is not the one the catalog names first.
    pub(super) fn provider(&mut self, name: String) {
        if !name.is_empty() {
            self.served.provider = name;
        }
    }

    pub(super) fn session(&mut self, session: Option<Session>) {
        self.session = session.map(|session| session.key);
    }

    /// The place within its span.
    pub(super) fn trace(&self) -> Trace {
        self.span.trace().clone()
    }

    /// Nothing of an answer was sent.
    pub(super) fn refused(&mut self, status: u16, code: &'static str) {
        self.finish(status, code, code, Usage::default(), None);
    }

    /// An answer began, and is over.
    pub(super) fn ended(&mut self, status: u16, end: &End) {
        if let Some((replica, attempts)) = &end.resumed {
            (self.replica, self.attempts) = (Some(replica.clone()), *attempts);
        }
        let words = words(&end.outcome);
        self.finish(status, &words, kind(&end.outcome), end.usage, end.first_token);
    }

    /// `outcome` is for people, `kind` one of a fixed list.
    fn finish(
        &mut self,
        status: u16,
        outcome: &str,
        kind: &'static str,
        usage: Usage,
        first_token: Option<Duration>,
    ) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let took = self.began.elapsed();
        self.tell(status, kind, usage, first_token);
        self.meters.finished(&self.served, status, took, usage, first_token);
        info!(
            request_id = %self.request,
            trace_id = self.span.trace().id(),
            tenant = self.tenant.as_deref(),
            session_id = self.session.map(tracing::field::debug),
            model = %self.served.model,
            instance_id = self.replica.as_deref(),
            retries = self.attempts.saturating_sub(1),
            outcome,
            status,
            tokens = usage.total().0,
            prompt_tokens = usage.prompt.0,
            completion_tokens = usage.completion.0,
            ttft_ms = first_token.map(millis),
            duration_ms = millis(took),
            "request finished"
        );
        // Ends it: a body may be kept long after its last byte.
        drop(std::mem::take(&mut self.span));
    }

    /// What the span says in the end.
    fn tell(
        &mut self,
        status: u16,
        kind: &'static str,
        usage: Usage,
        first_token: Option<Duration>,
    ) {
        let span = &mut self.span;
        if !span.is_read() {
            return;
        }
        if self.served != Served::default() {
            span.set(key::PROVIDER, self.served.provider.clone());
            span.set(key::REQUEST_MODEL, self.served.model.clone());
        }
        span.set(key::REQUEST_ID, self.request.clone());
        span.maybe(key::REPLICA, self.replica.clone());
        span.set(key::RETRIES, i64::from(self.attempts.saturating_sub(1)));
        span.set(key::OUTCOME, kind);
        span.set(key::HTTP_STATUS, i64::from(status));
        if usage != Usage::default() {
            span.set(key::INPUT_TOKENS, count(usage.prompt));
            span.set(key::OUTPUT_TOKENS, count(usage.completion));
        }
        span.maybe(key::FIRST_CHUNK, first_token.map(|after| after.as_secs_f64()));
        // What the caller did wrong is no failure of the gateway's (OpenTelemetry, HTTP spans).
        match status {
            500.. => span.fail(kind),
            400.. => span.set(key::ERROR_TYPE, kind),
            _ => {}
        }
    }
}

/// As OpenTelemetry counts.
fn count(tokens: Tokens) -> i64 {
    i64::try_from(tokens.0).unwrap_or(i64::MAX)
}

impl Drop for Record {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return self.refused(500, "internal_error");
        }
        // 499, as nginx has it: the client closed the request.
        let delivered = self.tally.as_ref().map(|tally| tally.usage()).unwrap_or_default();
        self.finish(499, "client_gone", "client_gone", delivered, None);
    }
}

/// An outcome for a log line. Upstream's own words stay out of it: they may repeat the prompt.
fn words(outcome: &Outcome) -> String {
    match outcome {
        Outcome::Completed => "completed".to_owned(),
        Outcome::Broken(failure) => format!("broken: {failure}"),
        Outcome::QuotaSpent(_) => "quota_spent".to_owned(),
        Outcome::QuotaUnavailable { .. } => "quota_unavailable".to_owned(),
        Outcome::Cancelled => "cancelled".to_owned(),
    }
}

/// The same without its details.
fn kind(outcome: &Outcome) -> &'static str {
    match outcome {
        Outcome::Completed => "completed",
        Outcome::Broken(failure) => failure.name(),
        Outcome::QuotaSpent(_) => "quota_spent",
        Outcome::QuotaUnavailable { .. } => "quota_unavailable",
        Outcome::Cancelled => "cancelled",
    }
}

/// Milliseconds with a microsecond's resolution: what a person reads and a machine sums.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
