//! A gateway in front of workers over QUIC: the stories that `gateway`, `failing` and `outliving` tell over gRPC.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::{Instant, sleep, timeout};
use transport::worker::{Backend, Echo, Hash};

use crate::world::{Answer, LONG, SECOND, Worker, World, kill_whoever_is_asked, streamed, words};

const SLOW: Duration = Duration::from_millis(50);

#[tokio::test]
async fn streams_and_whole_answers_read_as_they_do_over_grpc() {
    let worker = Worker::echo(Duration::ZERO);
    let more = "routing: {load_balancer: round_robin}";
    let world = World::before(&[worker.over_quic(), worker.url()], more).await;
    let mut served = std::collections::BTreeSet::new();
    for _ in 0..3 {
        let more = json!({"stream": true, "stream_options": {"include_usage": true}});
        let answer = world.ask("say \u{4f60}\u{597d} now", more).await;
        assert_eq!(answer.told(), "say \u{4f60}\u{597d} now", "{answer:?}");
        assert!(answer.is_done(), "{answer:?}");
        assert_eq!(answer.events().last().unwrap()["usage"]["completion_tokens"], 3);
        served.insert(answer.header("x-pointsman-replica").to_owned());
        world.ask("so that each transport has both", json!({})).await;
        let answer = world.ask("one two three four", json!({"max_tokens": 3})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_eq!(answer.json()["choices"][0]["message"]["content"], "one two three ");
        assert_eq!(answer.json()["choices"][0]["finish_reason"], "length");
    }
    assert_eq!(served.len(), 2, "one of the two transports did nothing");
}

#[tokio::test]
async fn what_a_worker_serves_is_discovered_over_quic_and_its_load_is_a_metric() {
    let worker = Worker::echo(Duration::ZERO);
    let at = worker.over_quic();
    let (url, pin) = at.split_once('#').unwrap();
    let text = format!("upstreams: [{{url: '{url}', name: near, tls: {{pin: '{pin}'}}}}]");
    let world = World::of(&text).await;
    assert!(world.get("/v1/models").await.contains("\"m\""));
    assert_eq!(world.ask("hi", json!({})).await.status, 200);
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("pointsman_worker_running{instance=\"near\"} 0"), "{metrics}");
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_worker_at_once() {
    let worker = Worker::echo(SLOW);
    let world = World::before(&[worker.over_quic()], "").await;
    // This answer would take a minute.
    let response = world.begin("/v1/chat/completions", &streamed(&words(1_200))).await;
    assert_eq!(response.status(), 200);
    worker.runs(1).await;
    drop(response);
    worker.runs_within(0, 5 * SECOND).await;
}

#[tokio::test]
async fn a_deadline_ends_the_answer_at_the_worker_too() {
    let worker = Worker::echo(SLOW);
    let more = "routing: {timeouts: {request: 600ms}}";
    let world = World::before(&[worker.over_quic()], more).await;
    let began = Instant::now();
    let answer = world.ask(&words(1_200), json!({})).await;
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(began.elapsed() < 5 * SECOND);
    worker.runs_within(0, 5 * SECOND).await;
    let stream = world.ask(&words(1_200), json!({"stream": true})).await;
    assert!(stream.text.contains("\"error\"") && !stream.is_done(), "{stream:?}");
}

#[tokio::test]
async fn a_full_worker_says_when_to_come_back_and_serves_when_it_has_room() {
    let worker = Worker::with(Backend::Echo(Echo { delay: SLOW }), 1, SECOND);
    let world = World::before(&[worker.over_quic()], "").await;
    let long = world.begin("/v1/chat/completions", &streamed(&words(400))).await;
    worker.runs(1).await;
    let refused = world.ask("short", json!({})).await;
    assert!([429, 503].contains(&refused.status.as_u16()), "{refused:?}");
    assert_ne!(refused.header("retry-after"), "-", "{refused:?}");
    assert!(!world.get("/health").await.contains("breaker open"));
    drop(long);
    let began = Instant::now();
    while world.ask("short", json!({})).await.status != 200 {
        assert!(began.elapsed() < LONG, "room, and nobody gets it");
        sleep(SLOW).await;
    }
}

#[tokio::test]
async fn a_draining_worker_finishes_to_the_last_byte_and_gets_nothing_new() {
    let echo = || Worker::with(Backend::Echo(Echo { delay: SLOW }), 8, LONG);
    let mut workers = [echo(), echo()];
    let more = "routing: {load_balancer: round_robin}";
    let urls = [workers[0].over_quic(), workers[1].over_quic()];
    let world = World::before(&urls, more).await;
    let running = world.begin("/v1/chat/completions", &streamed(&words(40))).await;
    let leaving = running.headers()["x-pointsman-replica"].to_str().unwrap().to_owned();
    let at = usize::from(leaving == "w1");
    workers[at].runs(1).await;
    workers[at].order_to_stop();
    while !workers[at].described().await.draining {
        sleep(Duration::from_millis(1)).await;
    }
    for _ in 0..4 {
        let answer = world.ask("a", json!({})).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        assert_ne!(answer.header("x-pointsman-replica"), leaving);
    }
    let health = world.get("/health").await;
    assert!(!health.contains("breaker open"), "{health}");
    let rest = Answer::of(running).await;
    assert!(rest.is_done() && rest.told() == words(40), "{rest:?}");
    assert_eq!(workers[at].stopped().await.cut, 0);
}

#[tokio::test]
async fn a_worker_killed_before_the_first_token_costs_nothing() {
    let mut workers = [Worker::echo(SECOND), Worker::echo(SECOND)];
    let urls = [workers[0].over_quic(), workers[1].over_quic()];
    let world = World::before(&urls, "").await;
    let asking = async { world.ask("one", json!({"stream": true})).await };
    let (answer, survivor) = tokio::join!(asking, kill_whoever_is_asked(&mut workers));
    assert_eq!((answer.status.as_u16(), answer.told()), (200, "one".to_owned()), "{answer:?}");
    assert!(answer.is_done());
    assert_eq!(answer.header("x-pointsman-replica"), survivor);
    assert_eq!(answer.header("x-pointsman-attempts"), "2");
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_is_noticed_within_a_second_and_continued_over_grpc() {
    let hash =
        |millis| Worker::new(Backend::Hash(Hash { delay: Duration::from_millis(millis), seed: 7 }));
    let (mut first, second) = (hash(15), hash(0));
    let mut body = streamed("Tell me of points and trains.");
    body.as_object_mut().unwrap().insert("max_tokens".to_owned(), json!(80));
    let alone = World::before(&[second.url()], "").await;
    let whole = Answer::of(alone.begin("/v1/chat/completions", &body).await).await;
    assert!(whole.is_done() && whole.told().len() > 100, "{whole:?}");

    // The second is asked only where the first cannot be.
    let at = first.over_quic();
    let (url, pin) = at.split_once('#').unwrap();
    let world = World::of(&format!(
        "models: {{m: {{endpoints: [{{url: '{url}', name: w0, tls: {{pin: '{pin}'}}}}, \
         {{url: '{}', name: w1, priority: 2}}]}}}}",
        second.url()
    ))
    .await;
    let response = world.begin("/v1/chat/completions", &body).await;
    assert_eq!(response.headers()["x-pointsman-replica"], "w0");
    let (head, mut body) = response.into_parts();
    let mut text = String::new();
    while text.matches("\"content\":").count() < 6 {
        let frame = timeout(LONG, body.frame()).await.unwrap().expect("it goes on").unwrap();
        text += core::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    first.kill();
    let killed = Instant::now();
    while !text.contains(": resumed after ") {
        let frame = timeout(LONG, body.frame()).await.unwrap().expect("it goes on").unwrap();
        text += core::str::from_utf8(&frame.into_data().unwrap()).unwrap();
    }
    let gap = killed.elapsed();
    let rest = timeout(LONG, body.collect()).await.unwrap().unwrap().to_bytes();
    text += core::str::from_utf8(&rest).unwrap();
    let blocks = text.split_inclusive("\n\n").filter(|block| !block.starts_with(':'));
    let told = Answer { status: head.status, headers: head.headers, text: blocks.collect() };
    assert!(told.is_done() && told.told() == whole.told(), "token for token: {text}");
    // Its port says so when it is asked whether it is alive, every 750 ms. The rest is for a machine that is busy: the
    // silence alone would have to last eight seconds.
    assert!(gap < 3 * SECOND, "{gap:?}");
}

#[tokio::test]
async fn a_certificate_that_is_not_the_pinned_one_is_refused_in_clear_words() {
    let (right, wrong) = (Worker::echo(Duration::ZERO), Worker::echo(Duration::ZERO));
    let (url, pin) = (right.over_quic(), wrong.over_quic());
    let url = url.split_once('#').unwrap().0;
    let pin = pin.split_once('#').unwrap().1.to_owned();
    let more = "routing: {load_balancer: round_robin}";
    let world = World::before(&[format!("{url}#{pin}"), right.over_quic()], more).await;
    for _ in 0..3 {
        let answer = world.ask("a", json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-pointsman-replica")), (200, "w1"));
    }
    let health = world.get("/health").await;
    assert!(health.contains(&format!("{pin} is pinned")), "{health}");
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("outcome=\"connect\""), "{metrics}");
}

#[tokio::test]
async fn nobody_at_the_address_is_no_connection_and_another_is_asked() {
    let gone = {
        let mut worker = Worker::echo(Duration::ZERO);
        worker.kill();
        worker.over_quic()
    };
    let well = Worker::echo(Duration::ZERO);
    let more = "routing: {load_balancer: round_robin}";
    let world = World::before(&[gone, well.over_quic()], more).await;
    let began = Instant::now();
    for _ in 0..3 {
        assert_eq!(world.ask("a", json!({})).await.header("x-pointsman-replica"), "w1");
    }
    assert!(began.elapsed() < 4 * SECOND, "a closed port says so at once: {:?}", began.elapsed());
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("outcome=\"connect\""), "{metrics}");
}
