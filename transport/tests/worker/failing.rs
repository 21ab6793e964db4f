//! A gateway in front of workers that are slow, full, wrong, or die.

use std::time::Duration;

use http_body_util::BodyExt;
use serde_json::json;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;
use transport::worker::{Backend, Echo, Hash, Settings, serve};

use crate::world::{Answer, LONG, SECOND, Worker, World, kill_whoever_is_asked, streamed, words};

const SLOW: Duration = Duration::from_millis(50);

#[tokio::test]
async fn a_deadline_ends_the_answer_at_the_worker_too() {
    let worker = Worker::echo(SLOW);
    let more = "routing: {timeouts: {request: 600ms}}";
    let world = World::before(&[worker.url()], more).await;
    let began = Instant::now();
    let answer = world.ask(&words(1_200), json!({})).await;
    assert_eq!(answer.status, 504, "{answer:?}");
    assert!(began.elapsed() < 5 * SECOND);
    timeout(5 * SECOND, worker.runs(0)).await.unwrap();
    let stream = world.ask(&words(1_200), json!({"stream": true})).await;
    assert!(stream.text.contains("\"error\"") && !stream.is_done(), "{stream:?}");
}

#[tokio::test]
async fn a_silent_worker_is_noticed_by_the_first_token_timer_without_a_stream_too() {
    let (silent, well) = (Worker::echo(LONG), Worker::echo(Duration::ZERO));
    let more = "routing: {load_balancer: round_robin, timeouts: {first_token: 300ms}}";
    let world = World::before(&[silent.url(), well.url()], more).await;
    for _ in 0..2 {
        let answer = world.ask("hello", json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-pointsman-replica")), (200, "w1"));
    }
    timeout(5 * SECOND, silent.runs(0)).await.unwrap();
}

#[tokio::test]
async fn a_full_worker_backs_off_and_serves_again_when_it_has_room() {
    let backend = || Backend::Echo(Echo { delay: SLOW });
    let workers = [0, 1].map(|_| Worker::with(backend(), 1, SECOND));
    let world = World::before(&[workers[0].url(), workers[1].url()], "").await;
    let mut long = Vec::new();
    for _ in 0..2 {
        long.push(world.begin("/v1/chat/completions", &streamed(&words(400))).await);
    }
    for worker in &workers {
        worker.runs(1).await;
    }
    let refused = world.ask("short", json!({})).await;
    assert!([429, 503].contains(&refused.status.as_u16()), "{refused:?}");
    assert_ne!(refused.header("retry-after"), "-", "{refused:?}");
    assert!(!world.get("/health").await.contains("breaker open"));
    long.clear();
    for worker in &workers {
        worker.runs(0).await;
    }
    let began = Instant::now();
    while world.ask("short", json!({})).await.status != 200 {
        assert!(began.elapsed() < LONG, "room, and nobody gets it");
        tokio::time::sleep(SLOW).await;
    }
}

#[tokio::test]
async fn a_worker_killed_before_the_first_token_costs_nothing() {
    // Slow to the first token, so that there is time to kill it.
    let mut workers = [0, 1].map(|_| Worker::echo(SECOND));
    let world = World::before(&[workers[0].url(), workers[1].url()], "").await;
    let asking = async { world.ask("one", json!({"stream": true})).await };
    let (answer, survivor) = tokio::join!(asking, kill_whoever_is_asked(&mut workers));
    assert_eq!((answer.status.as_u16(), answer.told()), (200, "one".to_owned()), "{answer:?}");
    assert!(answer.is_done());
    assert_eq!(answer.header("x-pointsman-replica"), survivor);
    assert_eq!(answer.header("x-pointsman-attempts"), "2");
}

#[tokio::test]
async fn a_worker_killed_in_the_middle_gives_an_error_event_and_no_done() {
    let mut worker = Worker::echo(SLOW);
    let world = World::before(&[worker.url()], "").await;
    let mut response = world.begin("/v1/chat/completions", &streamed(&words(400))).await;
    let first = timeout(LONG, response.body_mut().frame()).await.unwrap().unwrap().unwrap();
    assert!(!first.into_data().unwrap().is_empty());
    worker.kill();
    let rest = Answer::of(response).await;
    // Nobody was there to go on with it.
    assert!(rest.text.contains("The answer broke off"), "{rest:?}");
    assert!(!rest.text.contains("[DONE]"), "{rest:?}");
}

#[tokio::test]
async fn a_draining_worker_finishes_and_gets_nothing_new_and_is_not_held_for_broken() {
    let mut workers = [0, 1].map(|_| Worker::with(Backend::Echo(Echo { delay: SLOW }), 8, LONG));
    let more = "routing: {load_balancer: round_robin}";
    let world = World::before(&[workers[0].url(), workers[1].url()], more).await;
    let running = world.begin("/v1/chat/completions", &streamed(&words(40))).await;
    let leaving = running.headers()["x-pointsman-replica"].to_str().unwrap().to_owned();
    let at = usize::from(leaving == "w1");
    workers[at].runs(1).await;
    workers[at].order_to_stop();
    while !workers[at].described().await.draining {
        tokio::time::sleep(Duration::from_millis(1)).await;
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
async fn a_worker_that_comes_back_is_found_on_the_same_address() {
    let mut worker = Worker::echo(Duration::ZERO);
    let more = "routing: {breaker: {consecutive_failures: 1000, window_requests_min: 100000}}";
    let world = World::before(&[worker.url()], more).await;
    assert_eq!(world.ask("a", json!({})).await.status, 200);
    let addr = worker.addr;
    worker.kill();
    assert_ne!(world.ask("a", json!({})).await.status, 200);
    let settings = Settings {
        model: "m".to_owned(),
        backend: Backend::Hash(Hash::default()),
        concurrency: 1,
        grace: SECOND,
    };
    let began = Instant::now();
    let incoming = loop {
        match transport::worker::Incoming::bind(addr).await {
            Ok(incoming) => break incoming,
            Err(error) => assert!(began.elapsed() < LONG, "{error}"),
        }
    };
    let stop = CancellationToken::new();
    let served = tokio::spawn(serve(incoming, settings, stop.clone().cancelled_owned()));
    assert_eq!(world.ask("a", json!({})).await.status, 200);
    stop.cancel();
    timeout(LONG, served).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_worker_of_another_model_is_the_endpoints_fault() {
    let worker = Worker::echo(Duration::ZERO);
    let (wrong, right) = (worker.url(), worker.url());
    let text = format!(
        "models: {{m: {{endpoints: [{{url: '{wrong}', name: wrong, model: other}}, \
         {{url: '{right}', name: right}}]}}}}\nrouting: {{load_balancer: round_robin}}"
    );
    let world = World::of(&text).await;
    for _ in 0..3 {
        let answer = world.ask("a", json!({})).await;
        assert_eq!((answer.status.as_u16(), answer.header("x-pointsman-replica")), (200, "right"));
    }
    let health = world.get("/health").await;
    assert!(health.contains("does not know the model"), "{health}");
}

#[tokio::test]
async fn nobody_at_the_address_is_no_connection_and_another_is_asked() {
    let gone = {
        let mut worker = Worker::echo(Duration::ZERO);
        worker.kill();
        worker.url()
    };
    let well = Worker::echo(Duration::ZERO);
    let more = "routing: {load_balancer: round_robin}";
    let world = World::before(&[gone, well.url()], more).await;
    for _ in 0..3 {
        assert_eq!(world.ask("a", json!({})).await.header("x-pointsman-replica"), "w1");
    }
    let health = world.get("/health").await;
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("outcome=\"connect\""), "{metrics}\n{health}");
}
