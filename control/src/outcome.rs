//! How things end: attempts as the shell reports them, and requests as the plane tells them.

use core::fmt;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use crate::units::{Tokens, Usage};

/// How one attempt ended, as seen at the **end** of its answer, never at its beginning.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum AttemptEnd {
    /// The answer arrived whole.
    Completed {
        /// What the replica says it used, or our own count.
        usage: Usage,
        /// True where the replica said nothing and the count is ours.
        estimated: bool,
    },
    /// The attempt failed, before or after its first token.
    Failed {
        /// What went wrong.
        failure: Failure,
        /// Completion tokens that had arrived by then.
        produced: Tokens,
        /// How long the endpoint asked us to stay away.
        retry_after: Option<Duration>,
    },
    /// The shell stopped it, because the plane asked it to or because the client had gone.
    Cancelled {
        /// Completion tokens that had arrived by then.
        produced: Tokens,
    },
}

/// What went wrong with an attempt.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Failure {
    /// No connection: refused, unreachable, TLS, or not within the connect timeout. The request was never sent.
    Connect,
    /// The connection broke before the answer's head.
    ConnectionLost,
    /// A timeout passed.
    Timeout(Stage),
    /// A status that says the replica itself failed (5xx other than 503).
    Status(u16),
    /// The replica is full and says so (429, or 503): it is healthy.
    Backpressure(u16),
    /// The request itself is at fault (400, 404 of a resource, 413, 422): another replica would say the same.
    ClientError(u16),
    /// The endpoint cannot serve us until somebody mends it.
    EndpointFault(Fault),
    /// The stream or body ended before its end (no `[DONE]`, short body, reset).
    Truncated,
    /// A success status, then an error object inside the stream or body.
    ErrorInAnswer,
    /// The answer is not what the protocol allows.
    Garbage,
    /// The answer is larger than the stated maximum.
    TooLarge,
    /// It is healthy, and does not go on with what another began: perhaps somebody else does.
    CannotResume,
}

/// Which of the timeouts passed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stage {
    /// Waiting for the first token.
    FirstToken,
    /// Waiting for the next token of a stream that had begun.
    BetweenTokens,
    /// The whole request's deadline.
    Deadline,
}

/// What is wrong with an endpoint that only its operator can mend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Fault {
    /// It refuses our key (401).
    KeyRefused,
    /// Our key may not do this (403).
    Forbidden,
    /// It does not know the model we were told it serves.
    UnknownModel,
    /// Our account there is empty (402, `insufficient_quota`).
    AccountEmpty,
}

/// What an attempt's end means to the breaker.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Verdict {
    /// The endpoint works.
    Success,
    /// The endpoint fails.
    Failure,
    /// It works and is full: neutral.
    Backpressure,
    /// The request or the client was at fault: neutral.
    Neutral,
    /// Only its operator can mend it: eject at once.
    Fault(Fault),
}

impl Failure {
    /// What the failure says about the endpoint.
    #[must_use]
    pub const fn verdict(self) -> Verdict {
        match self {
            Self::Connect
            | Self::ConnectionLost
            | Self::Timeout(Stage::FirstToken | Stage::BetweenTokens)
            | Self::Status(_)
            | Self::Truncated
            | Self::ErrorInAnswer
            | Self::Garbage => Verdict::Failure,
            Self::Backpressure(_) => Verdict::Backpressure,
            // A deadline the client chose says nothing about the replica; a too large answer may be what was asked for.
            Self::Timeout(Stage::Deadline)
            | Self::ClientError(_)
            | Self::TooLarge
            | Self::CannotResume => Verdict::Neutral,
            Self::EndpointFault(fault) => Verdict::Fault(fault),
        }
    }

    /// A short name, for a metric's label.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::ConnectionLost => "connection_lost",
            Self::Timeout(Stage::FirstToken) => "timeout_first_token",
            Self::Timeout(Stage::BetweenTokens) => "timeout_between_tokens",
            Self::Timeout(Stage::Deadline) => "timeout_deadline",
            Self::Status(_) => "status",
            Self::Backpressure(_) => "backpressure",
            Self::ClientError(_) => "client_error",
            Self::EndpointFault(_) => "endpoint_fault",
            Self::Truncated => "truncated",
            Self::ErrorInAnswer => "error_in_answer",
            Self::Garbage => "garbage",
            Self::TooLarge => "too_large",
            Self::CannotResume => "cannot_resume",
        }
    }

    /// Whether another endpoint may do better. False where the request itself is at fault or its time is over.
    #[must_use]
    pub const fn retryable(self) -> bool {
        !matches!(self, Self::ClientError(_) | Self::Timeout(Stage::Deadline) | Self::TooLarge)
    }
}

impl AttemptEnd {
    /// What the end says about the endpoint.
    #[must_use]
    pub const fn verdict(&self) -> Verdict {
        match self {
            Self::Completed { .. } => Verdict::Success,
            Self::Failed { failure, .. } => failure.verdict(),
            Self::Cancelled { .. } => Verdict::Neutral,
        }
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Connect => f.write_str("no connection"),
            Self::ConnectionLost => f.write_str("the connection broke before an answer"),
            Self::Timeout(Stage::FirstToken) => f.write_str("no first token in time"),
            Self::Timeout(Stage::BetweenTokens) => f.write_str("the stream stalled"),
            Self::Timeout(Stage::Deadline) => f.write_str("the request's deadline passed"),
            Self::Status(status) => write!(f, "status {status}"),
            Self::Backpressure(status) => write!(f, "full (status {status})"),
            Self::ClientError(status) => write!(f, "the request was refused (status {status})"),
            Self::EndpointFault(fault) => write!(f, "{fault}"),
            Self::Truncated => f.write_str("the answer ended too early"),
            Self::ErrorInAnswer => f.write_str("an error inside the answer"),
            Self::Garbage => f.write_str("the answer was not understood"),
            Self::TooLarge => f.write_str("the answer was larger than allowed"),
            Self::CannotResume => f.write_str("it cannot go on with what another began"),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::KeyRefused => "the endpoint refuses our key (401): check its api_key",
            Self::Forbidden => "the endpoint forbids our key this (403): check what the key may do",
            Self::UnknownModel => "the endpoint does not know the model: check its model names",
            Self::AccountEmpty => "our account at the endpoint is empty: top it up",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_replicas_own_failures_count_against_it() {
        assert_eq!(Failure::Connect.verdict(), Verdict::Failure);
        assert_eq!(Failure::ErrorInAnswer.verdict(), Verdict::Failure);
        assert_eq!(Failure::Backpressure(429).verdict(), Verdict::Backpressure);
        assert_eq!(Failure::ClientError(400).verdict(), Verdict::Neutral);
        assert_eq!(Failure::Timeout(Stage::Deadline).verdict(), Verdict::Neutral);
    }

    #[test]
    fn who_cannot_go_on_with_anothers_answer_is_healthy_and_somebody_else_is_asked() {
        assert_eq!(Failure::CannotResume.verdict(), Verdict::Neutral);
        assert!(Failure::CannotResume.retryable());
    }

    #[test]
    fn a_revoked_key_is_the_endpoints_fault_and_worth_another_endpoint() {
        let failure = Failure::EndpointFault(Fault::KeyRefused);
        assert_eq!(failure.verdict(), Verdict::Fault(Fault::KeyRefused));
        assert!(failure.retryable());
    }
}
