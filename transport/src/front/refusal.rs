//! What each refusal and each broken answer is called on the wire.
//!
//! Rules: a spent quota is 402 and not worth a retry before its window turns; a rate is 429; bad input 4xx; a
//! replica's failure 502; nobody left 503; a deadline 504. What is wrong between us and a replica (our key there, our
//! account, its model names) is never the caller's 401, 402 or 404: it is a 503 that sends them to the operator.
//! `Retry-After` stands wherever waiting helps; `x-should-retry: false` wherever an SDK would retry in vain.

use std::time::Duration;

use bytes::Bytes;
use control::id::RequestId;
use control::outcome::Fault;
use control::outcome::{Failure, Stage};
use control::plane::{Outcome, Refusal, Spent};
use control::quota::{Unit, WindowKind};
use control::rate::RateUnit;
use http::StatusCode;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{self, ApiError, SERVER};
use crate::exchange::Why;
use crate::upstream::{UpstreamError, Verdict};

/// Where waiting helps and nobody knows how long: about as long as a rolling restart keeps one replica away.
const WAIT_UNKNOWN: Duration = Duration::from_secs(2);

/// Where the cause is gone in a moment (a turn in front, a restart).
const WAIT_SHORT: Duration = Duration::from_secs(1);

/// An answer that never began.
pub(super) fn of_why(why: Why, attempts: u32) -> ApiError {
    match why {
        Why::Plane(refusal) => of_refusal(&refusal),
        Why::Upstream { failure, said } => match said.verdict {
            Some(verdict) => of_chat(&said, verdict),
            None => of_upstream(failure, attempts, said.body),
        },
        Why::JournalUnavailable(_) => unavailable(
            "journal_unavailable",
            "The gateway cannot write its journal and takes no requests. Its operator finds the cause in GET /ready.",
        )
        .retry_after(WAIT_UNKNOWN),
        Why::Session(error) => super::sessions::refusal(&error),
        Why::Draining => unavailable(
            "draining",
            "This gateway is shutting down and takes no new requests. Try again: another one will answer.",
        )
        .retry_after(WAIT_SHORT),
    }
}

/// The plane's refusals, one by one.
pub(super) fn of_refusal(refusal: &Refusal) -> ApiError {
    match refusal {
        Refusal::UnknownModel => {
            let words = "Nobody serves this model any more. GET /v1/models lists the models of this gateway.";
            error::new(StatusCode::NOT_FOUND, error::INVALID, "model_not_found", words)
                .param("model")
        }
        Refusal::QuotaSpent(spent) => quota_spent(spent),
        Refusal::QuotaUnavailable { retry_after } => unavailable(
            "quota_unavailable",
            "The quota store cannot be reached, so nothing may be spent. Try again shortly.",
        )
        .retry_after(*retry_after),
        Refusal::RateLimited { account: _, unit, limit, retry_after } => {
            rate_limited(*unit, *limit, *retry_after)
        }
        Refusal::ModelBusy { retry_after } => unavailable(
            "model_busy",
            "The model takes no more requests at once. Try again, or use another model.",
        )
        .retry_after(*retry_after),
        Refusal::TurnConflict => conflict(
            "turn_conflict",
            "Other turns of this session are still being answered. Wait for them, then send this one again.",
        )
        .retry_after(WAIT_SHORT),
        Refusal::IdempotencyInFlight { by } => conflict(
            "idempotency_in_flight",
            format!("A request with this Idempotency-Key is being answered ({}). Wait for it and ask again.", other(*by)),
        )
        .retry_after(WAIT_SHORT),
        Refusal::IdempotencyDone { by } => conflict(
            "idempotency_done",
            format!(
                "A request with this Idempotency-Key was answered before, whole or in part, and charged ({}); its \
                 answer is not kept. Send a new key to ask anew.",
                other(*by)
            ),
        )
        .should_retry(false),
        Refusal::IdempotencyMismatch { by } => error::new(
            StatusCode::UNPROCESSABLE_ENTITY,
            error::INVALID,
            "idempotency_mismatch",
            format!("This Idempotency-Key came before with another body ({}). Send a new key for a new request.", other(*by)),
        )
        .should_retry(false),
        Refusal::NobodyLeft { members, draining, ejected, full, retry_after } => {
            nobody_left([*members, *draining, *ejected, *full], *retry_after)
        }
        Refusal::Failed { failure, attempts, retry_after } => {
            of_failure(*failure, *attempts, *retry_after)
        }
        Refusal::ClientGone => client_gone(),
        Refusal::Overloaded => unavailable(
            "overloaded",
            "The gateway holds as many requests as it may. Try again shortly.",
        )
        .retry_after(WAIT_SHORT),
        Refusal::Lost => unavailable(
            "lost",
            "The gateway restarted while the request was under way. Nothing was sent; try again.",
        )
        .retry_after(WAIT_SHORT),
    }
}

/// How an answer that had begun ended, where the client has to be told.
pub(super) fn of_outcome(outcome: &Outcome, detail: Option<&str>) -> Option<ApiError> {
    match outcome {
        Outcome::Completed => None,
        Outcome::Broken(failure) => {
            let mut error = of_failure(*failure, 1, None);
            let detail =
                detail.map(|text| format!(" The replica says: {text}")).unwrap_or_default();
            let words = format!(
                "The answer broke off: {failure}. What arrived is incomplete and was charged as delivered; send the \
                 request again for a whole one.{detail}"
            );
            error.message = words.into();
            Some(error)
        }
        Outcome::QuotaSpent(spent) => {
            let mut error = quota_spent(spent);
            error.message = format!("The answer was cut here. {}", error.message).into();
            Some(error)
        }
        Outcome::QuotaUnavailable { retry_after } => {
            let words =
                "The answer was cut here: the quota store cannot be reached. Try again shortly.";
            Some(unavailable("quota_unavailable", words).retry_after(*retry_after))
        }
        Outcome::Cancelled => Some(client_gone()),
    }
}

/// The last failure of a request whose attempts all failed.
fn of_failure(failure: Failure, attempts: u32, wait: Option<Duration>) -> ApiError {
    let tries = if attempts == 1 { "1 attempt".to_owned() } else { format!("{attempts} attempts") };
    let words = |advice: &str| format!("{tries} failed; the last: {failure}. {advice}");
    let bad_gateway = |code| {
        error::new(StatusCode::BAD_GATEWAY, SERVER, code, words("Try again, or use another model."))
    };
    let error = match failure {
        // Nobody was there to be asked: the contract's UNAVAILABLE, unlike a replica that failed while it answered.
        Failure::Connect => unavailable("replica_unreachable", words("Try again later."))
            .retry_after(wait.unwrap_or(WAIT_UNKNOWN)),
        Failure::ConnectionLost => bad_gateway("replica_lost"),
        Failure::Status(_) => bad_gateway("replica_failed"),
        Failure::Truncated | Failure::ErrorInAnswer | Failure::CannotResume => {
            bad_gateway("replica_broke_off")
        }
        Failure::Garbage => bad_gateway("replica_not_understood"),
        Failure::Timeout(Stage::FirstToken | Stage::BetweenTokens | Stage::Deadline) => {
            let advice = "Ask for less, or send a larger x-request-timeout.";
            error::new(StatusCode::GATEWAY_TIMEOUT, SERVER, "timeout", words(advice))
        }
        Failure::Backpressure(_) => unavailable("replicas_full", words("Try again later."))
            .retry_after(wait.unwrap_or(WAIT_UNKNOWN)),
        Failure::EndpointFault(fault) => endpoint_fault(fault, &tries),
        Failure::TooLarge => bad_gateway("answer_too_large").should_retry(false),
        Failure::ClientError(status) => refused_upstream(status),
    };
    match wait {
        Some(wait) if error.status.is_server_error() => error.retry_after(wait),
        _ => error,
    }
}

/// What the chat role answered, as it stands.
fn of_chat(said: &UpstreamError, verdict: Verdict) -> ApiError {
    let status = StatusCode::from_u16(said.status).unwrap_or(StatusCode::BAD_GATEWAY);
    let mut error = error::new(status, SERVER, "refused_by_chat", "The chat role refused.");
    error.verbatim = Some(said.body.clone());
    error.retry_after = verdict.retry_after;
    error.should_retry = verdict.should_retry;
    error
}

/// A refusal in a replica's own words, where they have the shape that clients expect.
fn of_upstream(failure: Failure, attempts: u32, body: Bytes) -> ApiError {
    let mut error = of_failure(failure, attempts, None);
    if matches!(failure, Failure::ClientError(_)) && error.status.is_client_error() {
        match message_of(&body) {
            Some(Shape::OpenAi) => error.verbatim = Some(body),
            Some(Shape::Other(words)) => {
                error.message = format!("The replica refused the request: {words}").into();
            }
            None => {}
        }
    }
    error
}

enum Shape {
    OpenAi,
    Other(String),
}

/// What kind of error a body is: OpenAI's, or one of the common others (`detail`, `message`, a bare `error`).
fn message_of(body: &[u8]) -> Option<Shape> {
    #[derive(Deserialize)]
    struct Outer<'a> {
        #[serde(borrow, default)]
        error: Option<&'a RawValue>,
        #[serde(borrow, default)]
        message: Option<&'a RawValue>,
        #[serde(borrow, default)]
        detail: Option<&'a RawValue>,
    }
    #[derive(Deserialize)]
    struct Inner {
        #[serde(rename = "message")]
        _message: String,
    }
    // Enough for a validation report, too little to be a second copy of the request.
    const WORDS_MAX: usize = 2_000;
    let outer: Outer<'_> = serde_json::from_slice(body).ok()?;
    if outer.error.is_some_and(|error| {
        error.get().starts_with('{') && serde_json::from_str::<Inner>(error.get()).is_ok()
    }) {
        return Some(Shape::OpenAi);
    }
    let words = outer.error.or(outer.message).or(outer.detail)?.get();
    let words = serde_json::from_str::<String>(words).unwrap_or_else(|_| words.to_owned());
    Some(Shape::Other(words.chars().take(WORDS_MAX).collect()))
}

fn refused_upstream(status: u16) -> ApiError {
    // What is about identity or money upstream is ours, not the caller's.
    let status = StatusCode::from_u16(status).ok().filter(|status| {
        status.is_client_error() && ![401, 402, 403, 407].contains(&status.as_u16())
    });
    match status {
        Some(status) => error::new(
            status,
            error::INVALID,
            "refused_by_replica",
            "The replica refused the request without saying why. Check its fields against the model's documentation.",
        ),
        None => error::new(
            StatusCode::BAD_GATEWAY,
            SERVER,
            "replica_failed",
            "The replica refused the gateway, not the request. Tell the gateway's operator.",
        ),
    }
}

fn endpoint_fault(fault: Fault, tries: &str) -> ApiError {
    // The caller learns that it is not their fault; which key or account it is stands in /health, for the operator.
    let cause = match fault {
        Fault::KeyRefused | Fault::Forbidden => "its key there is not accepted",
        Fault::UnknownModel => "it asks there for a model that is not known",
        Fault::AccountEmpty => "its account there is empty",
    };
    let words = format!(
        "{tries} failed: the gateway cannot use the last replica because {cause}. Your key and your request are \
         fine. Tell the gateway's operator, who finds the endpoint in GET /health."
    );
    unavailable("replica_misconfigured", words).should_retry(false)
}

fn quota_spent(spent: &Spent) -> ApiError {
    let unit = match spent.unit {
        Unit::Tokens => "token",
        Unit::Money => "money",
    };
    let window = match spent.window {
        WindowKind::Day => "daily",
        WindowKind::Month => "monthly",
        WindowKind::Rolling => "rolling",
    };
    let words = format!(
        "The {window} {unit} quota of account {} is spent. It opens again in {} seconds; ask the gateway's operator \
         for more before that.",
        spent.account,
        error::whole_seconds(spent.retry_after)
    );
    error::new(StatusCode::PAYMENT_REQUIRED, "insufficient_quota", "insufficient_quota", words)
        .retry_after(spent.retry_after)
        .should_retry(false)
}

fn rate_limited(unit: RateUnit, limit: u64, retry_after: Duration) -> ApiError {
    let unit = match unit {
        RateUnit::Rpm => "requests",
        RateUnit::Tpm => "tokens",
    };
    let refused = |words| {
        error::new(StatusCode::TOO_MANY_REQUESTS, "rate_limit_error", "rate_limited", words)
    };
    if retry_after.is_zero() {
        let words = format!(
            "This request alone is more than the rate limit of {limit} {unit} a minute ever lets through. Send a \
             shorter prompt or a smaller max_tokens, or ask the gateway's operator for a higher limit."
        );
        return refused(words).should_retry(false);
    }
    let words = format!(
        "The rate limit of {limit} {unit} a minute is reached. Try again in {} seconds.",
        error::whole_seconds(retry_after)
    );
    refused(words).retry_after(retry_after)
}

fn nobody_left([members, draining, ejected, full]: [u32; 4], retry_after: Duration) -> ApiError {
    let words = format!(
        "No replica can take the request: of {members} that serve the model, {draining} are draining, {ejected} are \
         out after failures, {full} are full or already tried. Try again in {} seconds; GET /health says more.",
        error::whole_seconds(retry_after)
    );
    unavailable("nobody_left", words).retry_after(retry_after)
}

fn client_gone() -> ApiError {
    // 499 is what nginx writes for it; nobody is left to read it, the metrics are.
    let status = StatusCode::from_u16(499).unwrap_or(StatusCode::BAD_REQUEST);
    error::new(
        status,
        error::INVALID,
        "client_gone",
        "The request was cancelled before its answer was whole.",
    )
}

/// The request that had the key first. Those of another gateway have ids that name others here.
fn other(by: Option<RequestId>) -> String {
    by.map_or_else(|| "at another gateway".into(), |by| by.to_string())
}

fn unavailable(code: &'static str, words: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
    error::new(StatusCode::SERVICE_UNAVAILABLE, SERVER, code, words)
}

fn conflict(code: &'static str, words: impl Into<std::borrow::Cow<'static, str>>) -> ApiError {
    error::new(StatusCode::CONFLICT, error::INVALID, code, words)
}

#[cfg(test)]
mod tests;
