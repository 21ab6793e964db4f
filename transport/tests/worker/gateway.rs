//! A gateway in front of workers, while all is well.

use std::time::Duration;

use serde_json::json;

use crate::world::{LONG, SECOND, Worker, World, streamed, words};

#[tokio::test]
async fn a_stream_of_a_worker_reads_as_one_of_the_api() {
    let (one, two) = (Worker::echo(Duration::ZERO), Worker::echo(Duration::ZERO));
    let world = World::before(&[one.url(), two.url()], "").await;
    let more = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = world.ask("say \u{4f60}\u{597d} now", more).await;
    assert_eq!(answer.status, 200);
    assert_eq!(answer.header("content-type"), "text/event-stream");
    assert!(answer.header("x-pointsman-replica").starts_with('w'), "{answer:?}");
    assert_eq!(answer.told(), "say \u{4f60}\u{597d} now");
    assert!(answer.is_done(), "{answer:?}");
    let events = answer.events();
    assert_eq!(events[0]["choices"][0]["delta"]["role"], "assistant");
    assert_eq!(events[0]["object"], "chat.completion.chunk");
    let [finish, bill] = &events[events.len() - 2..] else { panic!() };
    assert_eq!(finish["choices"][0]["finish_reason"], "stop");
    assert_eq!(bill["choices"], json!([]));
    assert_eq!(bill["usage"]["completion_tokens"], 3);
    let plain = world.ask("one", json!({"stream": true})).await;
    assert!(!plain.text.contains("usage"), "a bill that was not asked for: {plain:?}");
}

#[tokio::test]
async fn an_answer_that_does_not_stream_is_put_together() {
    let worker = Worker::echo(Duration::ZERO);
    let world = World::before(&[worker.url()], "").await;
    let answer = world.ask("one two three four", json!({"max_tokens": 3})).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    assert_eq!(answer.header("content-type"), "application/json");
    let said = answer.json();
    assert_eq!(said["object"], "chat.completion");
    assert_eq!(said["choices"][0]["message"]["content"], "one two three ");
    assert_eq!(said["choices"][0]["finish_reason"], "length");
    assert_eq!(said["usage"]["completion_tokens"], 3);
}

#[tokio::test]
async fn what_a_worker_serves_is_discovered_and_its_load_is_a_metric() {
    let worker = Worker::echo(Duration::ZERO);
    let world = World::of(&format!("upstreams: [{{url: '{}', name: near}}]", worker.url())).await;
    let models = world.get("/v1/models").await;
    assert!(models.contains("\"m\""), "{models}");
    // It may count the answer that says so.
    let idle = async {
        loop {
            assert_eq!(world.ask("hi", json!({})).await.status, 200);
            let metrics = world.get("/metrics").await;
            assert!(metrics.contains("pointsman_worker_queued{instance=\"near\"} 0"), "{metrics}");
            if metrics.contains("pointsman_worker_running{instance=\"near\"} 0") {
                return;
            }
        }
    };
    tokio::time::timeout(LONG, idle).await.unwrap();
}

#[tokio::test]
async fn a_client_that_leaves_stops_the_worker_at_once() {
    let worker = Worker::echo(Duration::from_millis(50));
    let world = World::before(&[worker.url()], "").await;
    // This answer would take a minute.
    let response = world.begin("/v1/chat/completions", &streamed(&words(1_200))).await;
    assert_eq!(response.status(), 200);
    worker.runs(1).await;
    drop(response);
    tokio::time::timeout(5 * SECOND, worker.runs(0)).await.unwrap();
}

#[tokio::test]
async fn a_worker_has_no_embeddings_and_that_is_said() {
    let worker = Worker::echo(Duration::ZERO);
    let world = World::before(&[worker.url()], "").await;
    let asked = world.begin("/v1/embeddings", &json!({"model": "m", "input": "x"})).await;
    let answer = crate::world::Answer::of(asked).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text.contains("no embeddings"), "{answer:?}");
}

#[tokio::test]
async fn a_request_that_is_itself_at_fault_is_refused_in_plain_words() {
    let worker = Worker::echo(Duration::ZERO);
    let world = World::before(&[worker.url()], "").await;
    // This one is found out by the gateway, the next by the worker.
    let answer = world.ask("x", json!({"temperature": "hot"})).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.text.contains("temperature must be a number"), "{answer:?}");
    let body = json!({"model": "m", "messages": [{"role": "system", "content": "be brief"}]});
    let asked = world.begin("/v1/chat/completions", &body).await;
    let answer = crate::world::Answer::of(asked).await;
    assert_eq!(answer.status, 400, "{answer:?}");
    assert!(answer.json()["error"]["message"].as_str().unwrap().contains("last user message"));
}

#[tokio::test]
async fn a_gateway_that_is_stopped_under_a_stream_settles_it_when_it_starts_again() {
    let worker = Worker::echo(Duration::from_millis(20));
    let world = World::before(&[worker.url()], "").await;
    let response = world.begin("/v1/chat/completions", &streamed(&words(1_200))).await;
    assert_eq!(response.status(), 200);
    worker.runs(1).await;
    let world = world.restarted().await;
    // What the old process still hears goes nowhere.
    drop(response);
    tokio::time::timeout(5 * SECOND, worker.runs(0)).await.unwrap();
    assert_eq!(world.ask("hi", json!({})).await.status, 200);
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("pointsman_in_flight_attempts{instance=\"w0\"} 0"), "{metrics}");
}
