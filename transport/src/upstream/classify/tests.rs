use super::*;

const EMPTY: Failure = Failure::EndpointFault(Fault::AccountEmpty);
const UNKNOWN: Failure = Failure::EndpointFault(Fault::UnknownModel);

fn of(status: u16, body: &str) -> Failure {
    of_status(status, &Said::read(body.as_bytes()))
}

fn inside(body: &str) -> Failure {
    in_answer(&Said::read(body.as_bytes())).0
}

#[test]
fn every_status_has_one_meaning() {
    for status in 100..=999 {
        let expected = match status {
            401 => Failure::EndpointFault(Fault::KeyRefused),
            402 => EMPTY,
            403 => Failure::EndpointFault(Fault::Forbidden),
            429 | 503 => Failure::Backpressure(status),
            405 | 406 | 407 | 408 | 415 | 421 | 425 | 426 => Failure::Status(status),
            400..=499 => Failure::ClientError(status),
            500..=599 => Failure::Status(status),
            _ => Failure::Garbage,
        };
        assert_eq!(of(status, ""), expected, "{status}");
    }
}

#[test]
fn an_empty_account_is_told_from_a_full_replica() {
    let openai = r#"{"error":{"message":"You exceeded your current quota","type":"insufficient_quota","param":null,"code":"insufficient_quota"}}"#;
    assert_eq!(of(429, openai), EMPTY);
    assert_eq!(inside(openai), EMPTY);
    let rate = r#"{"error":{"message":"Rate limit reached","type":"tokens","code":"rate_limit_exceeded"}}"#;
    assert_eq!(of(429, rate), Failure::Backpressure(429));
    assert_eq!(inside(rate), Failure::Backpressure(429));
    assert_eq!(of(400, r#"{"code":"Arrearage","message":"Access denied"}"#), EMPTY);
}

#[test]
fn an_unknown_model_is_the_endpoints_fault_in_every_servers_words() {
    for body in [
        r#"{"error":{"message":"The model `x` does not exist","type":"invalid_request_error","param":null,"code":"model_not_found"}}"#,
        r#"{"object":"error","message":"The model `x` does not exist.","type":"NotFoundError","param":null,"code":404}"#,
        r#"{"error":{"message":"model \"x\" not found, try pulling it first","type":"api_error","param":null,"code":null}}"#,
        r#"{"error":"model 'x' not found"}"#,
    ] {
        assert_eq!(of(404, body), UNKNOWN, "{body}");
    }
    assert_eq!(
        of(400, r#"{"error":{"message":"Model Not Exist","code":"invalid_request_error"}}"#),
        UNKNOWN
    );
    assert_eq!(of(404, r#"{"detail":"Not Found"}"#), Failure::ClientError(404));
    assert_eq!(of(404, "<html>"), Failure::ClientError(404));
    let quoting =
        r#"{"error":{"message":"cannot read: 'model not found'","type":"invalid_request_error"}}"#;
    assert_eq!(of(400, quoting), Failure::ClientError(400), "a quoted prompt does not decide");
}

#[test]
fn an_error_inside_an_answer_counts_against_the_replica_unless_it_says_otherwise() {
    assert_eq!(
        inside(r#"{"error":{"message":"CUDA error","type":"internal_error"}}"#),
        Failure::ErrorInAnswer
    );
    assert_eq!(inside(r#"{"error":"boom"}"#), Failure::ErrorInAnswer);
    assert_eq!(inside("not json"), Failure::ErrorInAnswer);
    let overloaded = r#"{"error":{"type":"overloaded_error","code":503}}"#;
    assert_eq!(inside(overloaded), Failure::Backpressure(503));
    let bad = r#"{"object":"error","message":"too long","type":"BadRequestError","code":400}"#;
    assert_eq!(inside(bad), Failure::ClientError(400));
}

#[test]
fn what_is_printed_is_a_code_or_nothing() {
    let said = Said::read(
        br#"{"error":{"message":"sk-secret in my prompt","type":"a b","code":"rate_limit"}}"#,
    );
    assert_eq!(said.to_string(), "code rate_limit");
    assert_eq!(Said::read(br#"{"error":{"code":"sk-secret"}}"#).to_string(), "no error code");
    assert_eq!(Said::read(b"").to_string(), "no error code");
}
