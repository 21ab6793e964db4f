#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use super::*;
use axum::response::IntoResponse;
use control::id::{AccountId, Minted, RequestId};
use std::fmt::Write as _;

const BY: RequestId = RequestId(Minted { incarnation: 1, counter: 2 });
const WAIT: Duration = Duration::from_millis(1_200);

fn spent(window: WindowKind, unit: Unit) -> Spent {
    Spent { account: AccountId(7), window, unit, retry_after: WAIT }
}

fn failures() -> Vec<Failure> {
    let mut all = vec![
        Failure::Connect,
        Failure::ConnectionLost,
        Failure::Timeout(Stage::FirstToken),
        Failure::Timeout(Stage::BetweenTokens),
        Failure::Timeout(Stage::Deadline),
        Failure::Status(500),
        Failure::Backpressure(429),
        Failure::ClientError(400),
        Failure::ClientError(422),
        Failure::ClientError(401),
        Failure::ClientError(200),
        Failure::Truncated,
        Failure::ErrorInAnswer,
        Failure::Garbage,
        Failure::TooLarge,
    ];
    let faults = [Fault::KeyRefused, Fault::Forbidden, Fault::UnknownModel, Fault::AccountEmpty];
    all.extend(faults.map(Failure::EndpointFault));
    all
}

fn refusals() -> Vec<Refusal> {
    let mut all = vec![
        Refusal::UnknownModel,
        Refusal::QuotaSpent(spent(WindowKind::Day, Unit::Tokens)),
        Refusal::QuotaUnavailable { retry_after: WAIT },
        Refusal::RateLimited {
            account: AccountId(7),
            unit: RateUnit::Rpm,
            limit: 3,
            retry_after: WAIT,
        },
        Refusal::ModelBusy { retry_after: Duration::ZERO },
        Refusal::TurnConflict,
        Refusal::IdempotencyInFlight { by: Some(BY) },
        Refusal::IdempotencyDone { by: Some(BY) },
        Refusal::IdempotencyMismatch { by: Some(BY) },
        Refusal::NobodyLeft { members: 3, draining: 1, ejected: 2, full: 0, retry_after: WAIT },
        Refusal::ClientGone,
        Refusal::Overloaded,
        Refusal::Lost,
    ];
    all.extend(failures().into_iter().map(|failure| Refusal::Failed {
        failure,
        attempts: 3,
        retry_after: None,
    }));
    all
}

/// `status type code retry-after should-retry`, as they leave.
fn row(error: ApiError) -> String {
    let (kind, code) = (error.kind, error.code);
    let response = error.into_response();
    let header = |name: &str| {
        response.headers().get(name).map_or("-", |value| value.to_str().unwrap()).to_owned()
    };
    let status = response.status().as_u16();
    format!("{status} {kind} {code} {} {}", header("retry-after"), header("x-should-retry"))
}

#[test]
fn every_refusal_has_its_place_in_the_table() {
    let mut table = String::new();
    for refusal in refusals() {
        let debug = format!("{refusal:?}");
        let name = if let Refusal::Failed { failure, .. } = &refusal {
            format!("Failed {failure:?}")
        } else {
            debug.split([' ', '(', '{']).next().unwrap().to_owned()
        };
        writeln!(table, "{name}: {}", row(of_refusal(&refusal))).unwrap();
    }
    assert_eq!(table, include_str!("table.txt"), "\n{table}");
}

#[test]
fn a_request_that_never_fits_is_not_to_be_sent_again() {
    let error = rate_limited(RateUnit::Tpm, 100, Duration::ZERO);
    assert!(error.message.contains("shorter prompt"), "{}", error.message);
    assert_eq!(row(error), "429 rate_limit_error rate_limited - false");
}

#[test]
fn every_message_says_what_to_do() {
    let advice = ["try again", "ask", "send", "wait", "tell", "get /", "check", "cancelled"];
    for refusal in refusals() {
        let message = of_refusal(&refusal).message.to_lowercase();
        assert!(advice.iter().any(|word| message.contains(word)), "{refusal:?}: {message}");
    }
}

#[test]
fn an_account_upstream_is_never_the_callers_401() {
    for failure in failures() {
        let status = of_failure(failure, 1, None).status.as_u16();
        assert!(![401, 402, 403, 404].contains(&status), "{failure:?} became {status}");
    }
}

#[test]
fn a_pushback_with_a_time_is_passed_on() {
    let error = of_failure(Failure::Backpressure(429), 3, Some(Duration::from_secs(17)));
    assert_eq!(row(error), "503 server_error replicas_full 17 -");
}

#[test]
fn upstreams_words_pass_where_they_are_openais_and_are_wrapped_where_not() {
    let refuse = |body: &'static str| {
        of_upstream(Failure::ClientError(400), 1, Bytes::from_static(body.as_bytes()))
    };
    let own = r#"{"error": {"message":"no such voice","type":"x","new":1}}"#;
    assert_eq!(refuse(own).verbatim.as_deref(), Some(own.as_bytes()));
    for (body, words) in [
        (r#"{"detail":"too long"}"#, "too long"),
        (r#"{"error":"plain"}"#, "plain"),
        (r#"{"message":{"a":1}}"#, r#"{"a":1}"#),
        ("<html>", "without saying why"),
        (r#"{"error":{"message":7}}"#, r#"{"message":7}"#),
    ] {
        let error = refuse(body);
        assert_eq!(error.verbatim, None);
        assert_eq!(error.status, 400);
        assert!(error.message.contains(words), "{body}: {}", error.message);
    }
}

#[test]
fn upstreams_words_about_our_own_key_do_not_reach_the_caller() {
    let body = Bytes::from_static(br#"{"error":{"message":"bad key sk-1"}}"#);
    let error = of_upstream(Failure::ClientError(401), 1, body);
    assert_eq!((error.status.as_u16(), &error.verbatim), (502, &None));
}

#[test]
fn a_broken_stream_says_why_and_a_whole_one_says_nothing() {
    assert!(of_outcome(&Outcome::Completed, None).is_none());
    let broken = of_outcome(&Outcome::Broken(Failure::Truncated), Some("boom")).unwrap();
    assert!(broken.message.contains("ended too early") && broken.message.ends_with("boom"));
    let spent = spent(WindowKind::Month, Unit::Money);
    let cut = of_outcome(&Outcome::QuotaSpent(spent), None).unwrap();
    assert_eq!(cut.code, "insufficient_quota");
    assert!(cut.message.starts_with("The answer was cut here. The monthly money quota"));
    assert_eq!(of_outcome(&Outcome::Cancelled, None).unwrap().code, "client_gone");
}
