//! Calls against servers that follow a script, byte by byte: what each ending is taken for, and what reaches the wire.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "upstream/script.rs"]
mod script;

use core::time::Duration;

use bytes::Bytes;
use control::outcome::{Failure, Fault, Stage};
use control::units::{Tokens, Usage};
use http::HeaderMap;
use script::{Scripted, Step, chunk, serve, sse, with_length};
use tokio::time::{Instant, sleep, timeout};
use transport::upstream::{
    Answer, Ask, Client, Event, EventKind, Failed, Limits, Path, Secret, Settings, Target, Whole,
};

const SECOND: Duration = Duration::from_secs(1);

fn limits() -> Limits {
    Limits {
        connect: 5 * SECOND,
        first_token: 5 * SECOND,
        between_tokens: 5 * SECOND,
        whole_answer: 5 * SECOND,
        deadline: Instant::now() + 10 * SECOND,
        answer_bytes_max: 1 << 20,
    }
}

fn ask(stream: bool) -> Ask {
    Ask {
        resume: None,
        behalf: None,
        path: Path::ChatCompletions,
        body: Bytes::from_static(b"{\"model\":\"m\"}"),
        stream,
        request_id: "req_1-2".to_owned(),
        headers: HeaderMap::new(),
    }
}

fn client() -> Client {
    Client::new(&Settings::default()).unwrap()
}

async fn call(target: &Target, stream: bool, limits: Limits) -> Result<Answer, Failed> {
    timeout(20 * SECOND, client().call(target, ask(stream), limits)).await.unwrap()
}

async fn whole(answer: &str) -> Result<Whole, Failed> {
    let server = serve(vec![Step::send(answer), Step::Close]).await;
    match call(&server.target, false, limits()).await? {
        Answer::Whole(whole) => Ok(whole),
        Answer::Stream(_) => panic!("no stream was asked for"),
    }
}

async fn failed_whole(answer: &str) -> Failed {
    whole(answer).await.err().unwrap()
}

/// Everything a stream brings, and its failure if it has one.
async fn play(server: &Scripted, limits: Limits) -> (Vec<Event>, Option<Failed>) {
    let mut stream = match call(&server.target, true, limits).await {
        Ok(Answer::Stream(stream)) => stream,
        Ok(Answer::Whole(_)) => panic!("a stream was asked for"),
        Err(failed) => return (Vec::new(), Some(failed)),
    };
    let mut events = Vec::new();
    while let Some(event) = timeout(20 * SECOND, stream.next()).await.unwrap() {
        match event {
            Ok(event) => events.push(event),
            Err(failed) => {
                assert!(stream.next().await.is_none(), "nothing follows a failure");
                return (events, Some(failed));
            }
        }
    }
    (events, None)
}

/// A stream of these blocks, then the body's proper end.
async fn streamed(blocks: &str) -> (Vec<Event>, Option<Failed>) {
    let server = serve(vec![Step::send(&sse(blocks)), Step::Close]).await;
    play(&server, limits()).await
}

async fn stream_failure(blocks: &str) -> Failure {
    streamed(blocks).await.1.unwrap().failure
}

fn kinds(events: &[Event]) -> Vec<EventKind> {
    events.iter().map(|event| event.kind).collect()
}

const ONE: EventKind = EventKind::Tokens { count: Tokens(1) };
const ROLE: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"role\":\"assistant\",\"content\":\"\"},\"finish_reason\":null}],\"usage\":null}\n\n";
const HELLO: &str = "data: {\"choices\":[{\"index\":0,\"delta\":{\"content\":\"Hello\"},\"finish_reason\":null}]}\n\n";
const STOP: &str =
    "data: {\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}]}\n\n";
const USAGE: &str = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":3,\"completion_tokens\":1,\"total_tokens\":4}}\n\n";
const DONE: &str = "data: [DONE]\n\n";

#[tokio::test]
async fn a_stream_passes_byte_for_byte_with_its_meaning_beside() {
    let text = format!(": hi\n\n{ROLE}{HELLO}{STOP}{USAGE}{DONE}");
    let (events, failed) = streamed(&text).await;
    assert_eq!(failed, None);
    let raw: Vec<u8> = events.iter().flat_map(|event| event.raw.to_vec()).collect();
    assert_eq!(raw, text.as_bytes());
    let expected = [
        EventKind::Other,
        EventKind::Opening,
        ONE,
        EventKind::Finish,
        EventKind::Usage,
        EventKind::Done,
    ];
    assert_eq!(kinds(&events), expected);
    assert_eq!(events[4].usage, Some(Usage { prompt: Tokens(3), completion: Tokens(1) }));
}

#[tokio::test]
async fn a_stream_without_its_end_is_truncated_and_says_what_it_produced() {
    for blocks in [String::new(), HELLO.to_owned(), format!("{HELLO}data: {{\"choi")] {
        let (_, failed) = streamed(&blocks).await;
        let failed = failed.unwrap();
        assert_eq!(failed.failure, Failure::Truncated, "{blocks}");
        assert_eq!(failed.produced, Tokens(u64::from(!blocks.is_empty())));
    }
    assert_eq!(stream_failure(DONE).await, Failure::Truncated, "[DONE] and no answer");
    let one_of_two = HELLO.replace("\"index\":0", "\"index\":1");
    assert_eq!(stream_failure(&format!("{one_of_two}{HELLO}{STOP}")).await, Failure::Truncated);
}

#[tokio::test]
async fn a_connection_that_breaks_mid_stream_is_truncated() {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n";
    let steps = vec![Step::send(head), Step::send(&chunk(HELLO)), Step::Close];
    let (events, failed) = play(&serve(steps).await, limits()).await;
    assert_eq!(kinds(&events), [ONE]);
    assert_eq!(failed.unwrap().failure, Failure::Truncated);
}

#[tokio::test]
async fn a_finished_stream_without_done_is_complete_and_flagged() {
    for rest in ["", "data: [DONE]", "data: [DONE]\n"] {
        let server =
            serve(vec![Step::send(&sse(&format!("{HELLO}{STOP}{rest}"))), Step::Close]).await;
        let Ok(Answer::Stream(mut stream)) = call(&server.target, true, limits()).await else {
            panic!("a stream was asked for");
        };
        let mut last = None;
        while let Some(event) = stream.next().await {
            last = Some(event.unwrap());
        }
        assert_eq!(last.unwrap().raw, DONE, "{rest:?}");
        assert_eq!(stream.done_was_missing(), rest.is_empty());
        assert!(stream.finished());
    }
}

#[tokio::test]
async fn an_error_inside_a_stream_is_a_failure_with_its_words() {
    let error = "{\"error\":{\"message\":\"CUDA\",\"type\":\"server_error\",\"code\":null}}";
    for block in [format!("data: {error}\n\n"), format!("event: error\ndata: {error}\n\n")] {
        let (events, failed) = streamed(&format!("{HELLO}{block}{DONE}")).await;
        let failed = failed.unwrap();
        assert_eq!(events.len(), 1);
        assert_eq!((failed.failure, failed.produced), (Failure::ErrorInAnswer, Tokens(1)));
        assert_eq!(failed.upstream.unwrap().body, error);
    }
    let full = "data: {\"error\":{\"code\":\"rate_limit_exceeded\"}}\n\n";
    assert_eq!(stream_failure(full).await, Failure::Backpressure(429));
}

#[tokio::test]
async fn what_is_no_answer_is_garbage() {
    assert_eq!(stream_failure("data: my prompt\n\n").await, Failure::Garbage);
    assert_eq!(stream_failure("data: [1,2]\n\n").await, Failure::Garbage);
    let html = "<html>my prompt</html>";
    let page = with_length("200 OK", "text/html", html);
    assert_eq!(failed_whole(&page).await.failure, Failure::Garbage);
    let json = |body| with_length("200 OK", "application/json", body);
    for body in [html, "[]", "{}", "{\"choices\":3}"] {
        let failed = failed_whole(&json(body)).await;
        assert_eq!(failed.failure, Failure::Garbage, "{body}");
        assert!(!failed.to_string().contains("prompt"));
    }
    let server = serve(vec![Step::send(&page), Step::Close]).await;
    assert_eq!(play(&server, limits()).await.1.unwrap().failure, Failure::Garbage);
    assert_eq!(failed_whole("HTTP/1.1 OK what\r\n\r\n").await.failure, Failure::Garbage);
    let moved = "HTTP/1.1 302 Found\r\nlocation: http://other/\r\ncontent-length: 0\r\n\r\n";
    assert_eq!(failed_whole(moved).await.failure, Failure::Garbage);
}

#[tokio::test]
async fn a_whole_answer_comes_with_its_usage_and_without_it_with_our_count() {
    let body = "{\"choices\":[{\"index\":0,\"message\":{\"content\":\"one two three\"},\"finish_reason\":\"stop\"}],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":7}}";
    let answer = whole(&with_length("200 OK", "application/json", body)).await.unwrap();
    assert_eq!(answer.body, body);
    assert_eq!(answer.usage, Some(Usage { prompt: Tokens(5), completion: Tokens(7) }));
    assert_eq!((answer.estimated, answer.finished), (Tokens(3), true));
}

#[tokio::test]
async fn an_error_inside_a_whole_answer_is_a_failure() {
    let body = "{\"error\":{\"message\":\"boom\",\"type\":\"server_error\"}}";
    let failed = failed_whole(&with_length("200 OK", "application/json", body)).await;
    assert_eq!(failed.failure, Failure::ErrorInAnswer);
}

#[tokio::test]
async fn a_body_that_is_too_short_or_too_large_is_told() {
    let short = "HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{\"choices\":";
    assert_eq!(failed_whole(short).await.failure, Failure::Truncated);
    let large = format!("{{\"x\":\"{}\"}}", "y".repeat(2 << 20));
    let large = with_length("200 OK", "application/json", &large);
    assert_eq!(failed_whole(&large).await.failure, Failure::TooLarge);
    let server = serve(vec![Step::send(&sse(&HELLO.repeat(20))), Step::Close]).await;
    let small = Limits { answer_bytes_max: 300, ..limits() };
    assert_eq!(play(&server, small).await.1.unwrap().failure, Failure::TooLarge);
}

#[tokio::test]
async fn statuses_mean_what_the_contract_says_and_keep_their_words() {
    let quota = "{\"error\":{\"code\":\"insufficient_quota\"}}";
    let model = "{\"error\":{\"code\":\"model_not_found\"}}";
    for (status, body, failure) in [
        ("400 Bad Request", "{\"error\":{\"message\":\"too long\"}}", Failure::ClientError(400)),
        ("401 Unauthorized", "", Failure::EndpointFault(Fault::KeyRefused)),
        ("403 Forbidden", "", Failure::EndpointFault(Fault::Forbidden)),
        ("402 Payment Required", "", Failure::EndpointFault(Fault::AccountEmpty)),
        ("429 Too Many Requests", quota, Failure::EndpointFault(Fault::AccountEmpty)),
        ("404 Not Found", model, Failure::EndpointFault(Fault::UnknownModel)),
        ("404 Not Found", "", Failure::ClientError(404)),
        ("422 Unprocessable", "", Failure::ClientError(422)),
        ("500 Internal", "oops", Failure::Status(500)),
        ("503 Unavailable", "", Failure::Backpressure(503)),
    ] {
        let failed = failed_whole(&with_length(status, "application/json", body)).await;
        assert_eq!(failed.failure, failure, "{status}");
        let upstream = failed.upstream.unwrap();
        assert_eq!(upstream.status.to_string(), status[..3]);
        assert_eq!(upstream.body, body);
    }
}

#[tokio::test]
async fn a_full_replica_says_when_to_come_back_and_a_refusal_is_bounded() {
    let answer = "HTTP/1.1 429 Full\r\nretry-after: 7\r\ncontent-length: 0\r\n\r\n";
    let failed = failed_whole(answer).await;
    assert_eq!(failed.failure, Failure::Backpressure(429));
    assert_eq!(failed.retry_after, Some(7 * SECOND));
    let failed = failed_whole(&with_length("500 No", "text/plain", &"x".repeat(1 << 20))).await;
    assert_eq!(failed.upstream.unwrap().body.len(), 64 << 10);
}

#[tokio::test]
async fn a_refused_connection_was_never_sent() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let failed = call(&Target::new(url.parse().unwrap()), false, limits()).await.err().unwrap();
    assert_eq!(failed.failure, Failure::Connect);
}

#[tokio::test]
async fn a_connect_that_hangs_is_given_up_and_is_no_fault_of_the_model() {
    // TLS that never answers: the connection is not usable, so this is still connecting.
    let server = serve(vec![Step::Hang]).await;
    let url = server.target.base_url.to_string().replace("http:", "https:");
    let target = Target::new(url.parse().unwrap());
    let began = Instant::now();
    let short = Limits { connect: Duration::from_millis(150), ..limits() };
    let failed = call(&target, false, short).await.err().unwrap();
    assert_eq!(failed.failure, Failure::Connect);
    assert!(began.elapsed() < 3 * SECOND);
}

#[tokio::test]
async fn each_timer_has_its_own_name() {
    let short = Duration::from_millis(150);
    let hang = || vec![Step::Hang];
    let first = Limits { first_token: short, ..limits() };
    let never = play(&serve(hang()).await, first).await.1.unwrap();
    assert_eq!(never.failure, Failure::Timeout(Stage::FirstToken));

    let whole = Limits { whole_answer: short, ..limits() };
    let failed = call(&serve(hang()).await.target, false, whole).await.err().unwrap();
    assert_eq!(failed.failure, Failure::Timeout(Stage::FirstToken));

    let deadline = Limits { deadline: Instant::now() + short, ..limits() };
    let failed = call(&serve(hang()).await.target, false, deadline).await.err().unwrap();
    assert_eq!(failed.failure, Failure::Timeout(Stage::Deadline));
}

#[tokio::test]
async fn comments_and_empty_chunks_are_no_tokens() {
    let mut steps = vec![Step::send(&sse_head())];
    for _ in 0..40 {
        steps.push(Step::send(&chunk(&format!(": still here\n\n{ROLE}"))));
        steps.push(Step::Wait(Duration::from_millis(20)));
    }
    let first = Limits { first_token: Duration::from_millis(250), ..limits() };
    let (events, failed) = play(&serve(steps.clone()).await, first).await;
    assert_eq!(failed.unwrap().failure, Failure::Timeout(Stage::FirstToken));
    assert!(events.len() > 4);

    steps.insert(1, Step::send(&chunk(HELLO)));
    let between = Limits { between_tokens: Duration::from_millis(250), ..limits() };
    let (_, failed) = play(&serve(steps).await, between).await;
    let failed = failed.unwrap();
    assert_eq!(failed.failure, Failure::Timeout(Stage::BetweenTokens));
    assert_eq!(failed.produced, Tokens(1));
}

#[tokio::test]
async fn a_deadline_ends_a_stream_that_flows() {
    let mut steps = vec![Step::send(&sse_head())];
    for _ in 0..100 {
        steps.push(Step::send(&chunk(HELLO)));
        steps.push(Step::Wait(Duration::from_millis(10)));
    }
    let deadline = Limits { deadline: Instant::now() + Duration::from_millis(200), ..limits() };
    let (events, failed) = play(&serve(steps).await, deadline).await;
    let failed = failed.unwrap();
    assert_eq!(failed.failure, Failure::Timeout(Stage::Deadline));
    assert_eq!(failed.produced.0, events.len() as u64);
}

#[tokio::test]
async fn a_slow_reader_is_not_a_stalled_replica() {
    let text = format!("{HELLO}{HELLO}{STOP}{DONE}");
    let server = serve(vec![Step::send(&sse(&text)), Step::Close]).await;
    let short = Limits { between_tokens: Duration::from_millis(100), ..limits() };
    let Ok(Answer::Stream(mut stream)) = call(&server.target, true, short).await else {
        panic!("a stream was asked for");
    };
    let mut events = Vec::new();
    while let Some(event) = stream.next().await {
        events.push(event.unwrap());
        sleep(Duration::from_millis(150)).await;
    }
    assert_eq!(events.last().unwrap().kind, EventKind::Done);
}

#[tokio::test]
async fn dropping_a_stream_or_a_call_closes_the_connection_at_once() {
    let server = serve(vec![Step::send(&sse_head()), Step::send(&chunk(HELLO)), Step::Hang]).await;
    let client = client();
    let Ok(Answer::Stream(mut stream)) = client.call(&server.target, ask(true), limits()).await
    else {
        panic!("a stream was asked for");
    };
    assert_eq!(stream.next().await.unwrap().unwrap().kind, ONE);
    assert_eq!(stream.produced(), Tokens(1));
    drop(stream);
    server.closed(2 * SECOND).await;

    let server = serve(vec![Step::Hang]).await;
    let call = client.call(&server.target, ask(false), limits());
    assert!(timeout(Duration::from_millis(100), call).await.is_err());
    server.closed(2 * SECOND).await;
}

#[tokio::test]
async fn a_finished_stream_gives_its_connection_back() {
    let answer = Step::send(&sse(&format!("{HELLO}{STOP}{DONE}")));
    let server = serve(vec![answer.clone(), Step::NextRequest, answer.clone()]).await;
    let client = client();
    for _ in 0..2 {
        let Ok(Answer::Stream(mut stream)) = client.call(&server.target, ask(true), limits()).await
        else {
            panic!("a stream was asked for");
        };
        while let Some(event) = stream.next().await {
            event.unwrap();
        }
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.connections(), 1);
    assert_eq!(server.requests().len(), 2);
}

#[tokio::test]
async fn a_reused_connection_that_dies_with_our_request_is_lost_and_asked_once_only() {
    let body = "{\"choices\":[]}";
    let answer = Step::send(&with_length("200 OK", "application/json", body));
    let server = serve(vec![answer, Step::NextRequest, Step::Close]).await;
    let client = client();
    assert!(client.call(&server.target, ask(false), limits()).await.is_ok());
    let failed = client.call(&server.target, ask(false), limits()).await.err().unwrap();
    assert_eq!(failed.failure, Failure::ConnectionLost);
    assert_eq!(server.requests().len(), 2, "what was written is not sent again");
}

#[tokio::test]
async fn an_idle_connection_that_the_server_closed_is_not_used() {
    let body = "{\"choices\":[]}";
    let answer = Step::send(&with_length("200 OK", "application/json", body));
    let server = serve(vec![answer, Step::Close]).await;
    let client = client();
    for _ in 0..3 {
        client.call(&server.target, ask(false), limits()).await.unwrap();
        sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(server.connections(), 3);
}

#[tokio::test]
async fn a_request_carries_our_headers_and_none_that_are_not_for_the_endpoint() {
    let body = "{\"choices\":[]}";
    let server = serve(vec![Step::send(&with_length("200 OK", "application/json", body))]).await;
    let mut target = server.target.clone();
    target.api_key = Some(Secret::new("sk-upstream").unwrap());
    target.headers.insert("x-extra", "1".parse().unwrap());
    let mut ask = ask(false);
    ask.headers.insert("traceparent", "00-ab".parse().unwrap());
    ask.headers.insert("authorization", "Bearer sk-callers".parse().unwrap());
    ask.headers.insert("cookie", "a=b".parse().unwrap());
    client().call(&target, ask, limits()).await.unwrap();
    let seen = server.requests().remove(0).to_lowercase();
    assert!(seen.starts_with("post /v1/chat/completions http/1.1\r\n"), "{seen}");
    for line in [
        "authorization: bearer sk-upstream",
        "x-extra: 1",
        "traceparent: 00-ab",
        "x-request-id: req_1-2",
        "content-type: application/json",
        "accept: application/json",
        "content-length: 13",
    ] {
        assert!(seen.contains(line), "{line} in {seen}");
    }
    assert!(
        !seen.contains("callers")
            && !seen.contains("cookie")
            && seen.ends_with("{\"model\":\"m\"}")
    );
}

#[tokio::test]
async fn models_are_discovered_and_a_server_that_lists_none_is_garbage() {
    let list = "{\"object\":\"list\",\"data\":[{\"id\":\"a\",\"max_model_len\":4096},{\"id\":\"b\",\"owned_by\":\"me\"}]}";
    let server = serve(vec![Step::send(&with_length("200 OK", "application/json", list))]).await;
    let models = client().discover(&server.target, limits()).await.unwrap().models;
    assert_eq!(models.len(), 2);
    assert_eq!((models[0].id.as_str(), models[0].context), ("a", Some(Tokens(4_096))));
    let server = serve(vec![Step::send(&with_length("200 OK", "text/html", "<html>"))]).await;
    let failed = client().discover(&server.target, limits()).await.err().unwrap();
    assert_eq!(failed.failure, Failure::Garbage);
}

#[tokio::test]
async fn http2_is_spoken_without_tls_where_it_is_known() {
    let (target, dropped) = script::http2(sse_blocks()).await;
    let Ok(Answer::Stream(mut stream)) = call(&target, true, limits()).await else {
        panic!("a stream was asked for");
    };
    assert_eq!(stream.next().await.unwrap().unwrap().kind, ONE);
    drop(stream);
    timeout(2 * SECOND, dropped).await.unwrap().unwrap();
}

#[tokio::test]
async fn tls_trusts_an_authority_from_a_file_and_no_stranger() {
    let body = "{\"choices\":[]}";
    let (target, ca) = script::tls(with_length("200 OK", "application/json", body)).await;
    let settings = Settings { extra_ca: Some(ca.path().to_owned()), ..Settings::default() };
    let trusting = Client::new(&settings).unwrap();
    trusting.call(&target, ask(false), limits()).await.unwrap();
    let failed = client().call(&target, ask(false), limits()).await.err().unwrap();
    assert_eq!(failed.failure, Failure::Connect);

    let missing = Settings { extra_ca: Some("/nonexistent/ca.pem".into()), ..Settings::default() };
    assert!(Client::new(&missing).unwrap_err().to_string().contains("/nonexistent/ca.pem"));
}

fn sse_head() -> String {
    "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"
        .to_owned()
}

fn sse_blocks() -> Bytes {
    Bytes::from_static(HELLO.as_bytes())
}
