//! What a status means, and what of it reaches whom.

use core::time::Duration;
use std::error::Error as _;

use serde_json::json;
use tokio::time::Instant;
use tonic::{Code, Status};

use control::outcome::{Failure, Stage};

use crate::convert;
use crate::front::rpc::status as rpc;
use crate::upstream::Limits;
use crate::upstream::connect::chain;
use crate::upstream::failed::{Failed, UpstreamError, Verdict};

/// Clocks and wires are this much apart: who says so earlier than this does not mean our deadline.
const SLACK: Duration = Duration::from_secs(1);
/// A worker's words for the caller. What is longer is cut: it came in a header.
const WORDS_MAX: usize = 2_048;

/// A call's end by a status that is not OK. `begun`: a chunk had come before.
pub(super) fn of(status: &Status, begun: bool, limits: &Limits) -> Failed {
    if let Some(source) = status.source() {
        return broken(status, source, begun);
    }
    let code = status.code();
    let retry_after = retry_after(status);
    let ours = code == Code::DeadlineExceeded && limits.deadline <= Instant::now() + SLACK;
    let failure = if ours {
        Failure::Timeout(Stage::Deadline)
    } else {
        convert::failure(code, retry_after.is_some(), begun)
    };
    let mut failed = Failed::new(failure, "");
    if matches!(failure, Failure::ClientError(_)) {
        failed.upstream = of_request(status.message(), None).upstream;
    }
    // Not its message: that may quote the prompt.
    failed.detail = format!("status {code:?}");
    failed.retry_after = retry_after;
    failed
}

/// The same where the server itself was asked: what it said, as it said it.
pub(super) fn of_server(status: &Status, begun: bool, limits: &Limits) -> Failed {
    let said = status.source().and_then(|source| source.downcast_ref::<Failed>());
    said.cloned().unwrap_or_else(|| of(status, begun, limits))
}

/// The same of a call to the chat role. What it refuses, or ends, it has decided for all of us: it is passed on as it is
/// worded, and neither held against that process nor asked again.
pub(super) fn of_chat(status: &Status, begun: bool, limits: &Limits) -> Failed {
    let said = status.metadata();
    let number = |name: &str| said.get(name)?.to_str().ok()?.parse::<u16>().ok();
    let Some(http) = number(rpc::HTTP_STATUS).filter(|_| status.source().is_none()) else {
        return of(status, begun, limits);
    };
    let body = said.get_bin(rpc::ERROR).and_then(|value| value.to_bytes().ok());
    let should_retry =
        said.get(rpc::SHOULD_RETRY).and_then(|value| value.to_str().ok()?.parse().ok());
    let mut failed = Failed::new(Failure::ClientError(http), format!("the chat role: {http}"));
    failed.upstream = Some(Box::new(UpstreamError {
        status: http,
        body: body.unwrap_or_else(|| of_request(status.message(), None).body()),
        content_type: Some("application/json".to_owned()),
        verdict: Some(Verdict { retry_after: retry_after(status), should_retry }),
    }));
    failed
}

/// The other process is of a version that cannot do what it is asked: nobody's fault, and no reason to ask again.
pub(super) fn of_older(words: &str) -> Failed {
    let error = json!({
        "message": words, "type": "server_error", "param": null, "code": "not_implemented",
    });
    let mut failed = Failed::new(Failure::ClientError(501), words);
    failed.upstream = Some(Box::new(UpstreamError {
        status: 501,
        body: json!({ "error": error }).to_string().into(),
        content_type: Some("application/json".to_owned()),
        verdict: Some(Verdict { retry_after: None, should_retry: Some(false) }),
    }));
    failed
}

/// The request itself is at fault, in these words.
pub(super) fn of_request(words: &str, param: Option<&str>) -> Failed {
    refused(400, words, param, None)
}

/// The question is larger, as the wire encodes it, than any worker takes. gRPC itself would say "full" to it, of every worker
/// in turn.
pub(super) fn too_large(bytes: usize, most: usize) -> Failed {
    let words = format!(
        "the request takes {bytes} bytes on its way to a worker, which takes {most}: send less, or ask a model that an OpenAI-compatible server serves"
    );
    refused(413, &words, None, Some("request_too_large"))
}

fn refused(status: u16, words: &str, param: Option<&str>, code: Option<&str>) -> Failed {
    let words = &words[..words.floor_char_boundary(WORDS_MAX)];
    let error = json!({
        "message": words, "type": "invalid_request_error", "param": param, "code": code,
    });
    let mut failed =
        Failed::new(Failure::ClientError(status), "the request cannot be put to a worker");
    failed.upstream = Some(Box::new(UpstreamError {
        status,
        body: json!({ "error": error }).to_string().into(),
        content_type: Some("application/json".to_owned()),
        verdict: None,
    }));
    failed
}

/// The status was made on this side: the connection could not be made, or broke.
fn broken(status: &Status, source: &(dyn core::error::Error + 'static), begun: bool) -> Failed {
    let mut cause = Some(source);
    let mut connecting = false;
    while let Some(error) = cause {
        connecting |= error.is::<tonic::ConnectError>();
        cause = error.source();
    }
    let failure = match (connecting, begun) {
        (true, _) => Failure::Connect,
        (false, false) if control::planted!(LostIsRefused) => Failure::Connect,
        (false, false) => Failure::ConnectionLost,
        (false, true) => Failure::Truncated,
    };
    Failed::new(failure, format!("{:?}: {}", status.code(), chain(source)))
}

fn retry_after(status: &Status) -> Option<Duration> {
    const DAY: u64 = 86_400_000;
    let millis: u64 =
        status.metadata().get("retry-after-ms")?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_millis(millis.min(DAY)))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

    use control::outcome::Fault;

    use super::*;

    fn limits(deadline: Duration) -> Limits {
        let second = Duration::from_secs(1);
        Limits {
            connect: second,
            first_token: second,
            between_tokens: second,
            whole_answer: second,
            deadline: Instant::now() + deadline,
            answer_bytes_max: 1 << 20,
        }
    }

    #[tokio::test]
    async fn every_status_has_its_meaning_before_and_behind_the_first_chunk() {
        let fault = Failure::EndpointFault;
        for (code, before, behind) in [
            (Code::InvalidArgument, Failure::ClientError(400), Failure::ClientError(400)),
            (Code::NotFound, fault(Fault::UnknownModel), fault(Fault::UnknownModel)),
            (Code::PermissionDenied, fault(Fault::Forbidden), fault(Fault::Forbidden)),
            (Code::Unauthenticated, fault(Fault::KeyRefused), fault(Fault::KeyRefused)),
            (Code::ResourceExhausted, Failure::Backpressure(429), Failure::Backpressure(429)),
            (Code::Unavailable, Failure::Status(502), Failure::Truncated),
            (Code::Internal, Failure::Status(500), Failure::ErrorInAnswer),
            (Code::Unknown, Failure::Status(500), Failure::ErrorInAnswer),
            (Code::DeadlineExceeded, Failure::Status(504), Failure::ErrorInAnswer),
            (Code::FailedPrecondition, Failure::CannotResume, Failure::CannotResume),
            (Code::Unimplemented, Failure::Status(501), Failure::ErrorInAnswer),
            (Code::OutOfRange, Failure::TooLarge, Failure::TooLarge),
            (Code::Cancelled, Failure::ConnectionLost, Failure::Truncated),
        ] {
            let status = Status::new(code, "my secret");
            let limits = limits(Duration::from_secs(60));
            assert_eq!(of(&status, false, &limits).failure, before, "{code:?}");
            let failed = of(&status, true, &limits);
            assert_eq!(failed.failure, behind, "{code:?}");
            assert!(!failed.detail.contains("secret"), "{failed}");
        }
    }

    #[tokio::test]
    async fn only_a_deadline_that_is_ours_is_taken_for_it() {
        let status = Status::deadline_exceeded("");
        let ours = of(&status, false, &limits(Duration::from_millis(1)));
        assert_eq!(ours.failure, Failure::Timeout(Stage::Deadline));
    }

    #[tokio::test]
    async fn a_draining_worker_is_full_and_says_for_how_long() {
        let mut status = Status::unavailable("");
        status.metadata_mut().insert("retry-after-ms", "1500".parse().unwrap());
        let failed = of(&status, false, &limits(Duration::from_secs(9)));
        assert_eq!(failed.failure, Failure::Backpressure(503));
        assert_eq!(failed.retry_after, Some(Duration::from_millis(1_500)));
    }

    #[tokio::test]
    async fn a_refusal_of_the_request_keeps_its_words() {
        let words = "max_tokens must be at least 1";
        let failed = of(&Status::invalid_argument(words), false, &limits(Duration::from_secs(9)));
        let said: serde_json::Value =
            serde_json::from_slice(&failed.upstream.unwrap().body).unwrap();
        assert_eq!(said["error"]["message"], words);
        let long = of_request(&"\u{4f60}".repeat(2_000), None);
        assert!(long.upstream.unwrap().body.len() < 2_200);
    }
}
