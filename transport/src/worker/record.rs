//! What is written down about one answer, once, whichever way it ends: in the figures, in a span, in the log.
//!
//! One that is dropped unfinished belongs to a caller that went away.

use core::time::Duration;

use proto::inference::v1::{StreamInferenceRequest, StreamInferenceResponse};
use tokio::time::Instant;
use tonic::{Code, Status};

use super::backend::Caller;
use super::telemetry::Telemetry;
use crate::label::Label;
use crate::trace::{Span, Trace, key};

/// As much of a caller's id goes into a log.
const ID_CHARS_MAX: usize = 128;

/// One answer, from its question to its last chunk.
#[derive(Debug)]
pub(super) struct Record {
    telemetry: Telemetry,
    span: Span,
    began: Instant,
    request_id: String,
    label: Label,
    ended: Option<Ended>,
}

/// How an answer went.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ended {
    /// `ok`, `cancelled`, or the kind of a refusal or failure.
    pub outcome: &'static str,
    pub took: Duration,
    pub first_token: Option<Duration>,
    /// Of the prompt, where the backend counts them.
    pub prompt: u64,
    /// Written here.
    pub tokens: u64,
    pub resumed_at: Option<u64>,
}

impl Record {
    /// A question has come.
    pub fn begin(
        telemetry: &Telemetry,
        backend: &'static str,
        ask: &StreamInferenceRequest,
        caller: Caller,
    ) -> Self {
        let mut span = telemetry.tracer().serve("worker.stream_inference", caller.trace);
        let request_id: String =
            ask.request_id.chars().filter(|c| !c.is_control()).take(ID_CHARS_MAX).collect();
        if span.is_read() {
            span.set(key::OPERATION, "chat");
            span.set(key::REQUEST_MODEL, telemetry.model().to_owned());
            span.set(key::PROVIDER, backend);
            span.set(key::REQUEST_ID, request_id.clone());
        }
        let resumed_at = ask.resume.as_ref().map(|resume| resume.seq);
        let ended = Ended {
            outcome: "cancelled",
            took: Duration::ZERO,
            first_token: None,
            prompt: 0,
            tokens: 0,
            resumed_at,
        };
        let (telemetry, began) = (telemetry.clone(), Instant::now());
        Self { telemetry, span, began, request_id, label: caller.label, ended: Some(ended) }
    }

    /// The place within its span.
    pub fn trace(&self) -> Trace {
        self.span.trace().clone()
    }

    /// A chunk goes out.
    pub fn saw(&mut self, chunk: &StreamInferenceResponse) {
        let Some(ended) = &mut self.ended else { return };
        ended.tokens += u64::from(chunk.token_count);
        if let Some(usage) = &chunk.usage {
            ended.prompt = usage.prompt_tokens;
        }
        let begins = chunk.token_count > 0 || !chunk.text.is_empty();
        if begins && ended.first_token.is_none() {
            ended.first_token = Some(self.began.elapsed());
            self.span.event(key::FIRST_TOKEN_EVENT, Vec::new());
        }
    }

    /// It is over.
    pub fn end(&mut self, how: Result<(), &Status>) {
        let outcome = how.err().map_or("ok", |status| outcome(status.code()));
        if let Some(ended) = self.ended.take() {
            self.write(Ended { outcome, ..ended });
        }
    }

    fn write(&mut self, ended: Ended) {
        let ended = Ended { took: self.began.elapsed(), ..ended };
        self.telemetry.ended(&ended);
        self.tell(&ended);
        tracing::info!(
            request_id = self.request_id,
            trace_id = self.span.trace().id(),
            session_id = self.label.session.map(tracing::field::debug),
            model = self.telemetry.model(),
            instance_id = self.telemetry.instance(),
            retries = self.label.retries(),
            outcome = ended.outcome,
            tokens = ended.tokens,
            resumed_at = ended.resumed_at,
            ttft_ms = ended.first_token.map(millis),
            duration_ms = millis(ended.took),
            "answer finished"
        );
        drop(std::mem::take(&mut self.span));
    }

    fn tell(&mut self, ended: &Ended) {
        let span = &mut self.span;
        if !span.is_read() {
            return;
        }
        let whole = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
        span.set(key::OUTCOME, ended.outcome);
        span.set(key::OUTPUT_TOKENS, whole(ended.tokens));
        if ended.prompt > 0 {
            span.set(key::INPUT_TOKENS, whole(ended.prompt));
        }
        if ended.first_token.is_some() {
            span.set(key::RESPONSE_MODEL, self.telemetry.model().to_owned());
        }
        span.maybe(key::FIRST_CHUNK, ended.first_token.map(|after| after.as_secs_f64()));
        span.maybe(key::RESUMED_AT, ended.resumed_at.map(whole));
        if !matches!(ended.outcome, "ok" | "cancelled") {
            span.fail(ended.outcome);
        }
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        if let Some(ended) = self.ended.take() {
            self.write(ended);
        }
    }
}

/// The kind of a refusal or failure, as the worker in Python names it.
fn outcome(code: Code) -> &'static str {
    match code {
        Code::Ok => "ok",
        Code::Cancelled => "cancelled",
        Code::InvalidArgument | Code::OutOfRange => "invalid",
        Code::NotFound => "unknown_model",
        Code::ResourceExhausted => "full",
        Code::Unavailable => "unavailable",
        Code::FailedPrecondition => "cannot_resume",
        Code::PermissionDenied | Code::Unauthenticated => "credentials_refused",
        Code::DeadlineExceeded => "deadline",
        Code::Unknown
        | Code::AlreadyExists
        | Code::Aborted
        | Code::Unimplemented
        | Code::Internal
        | Code::DataLoss => "backend_failed",
    }
}

/// Milliseconds with a microsecond's resolution.
fn millis(duration: Duration) -> f64 {
    (duration.as_secs_f64() * 1e6).round() / 1e3
}
