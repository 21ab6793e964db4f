//! Workers that a registry lists, and a registry that goes away.

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::StatusCode;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::{Instant, sleep};

use crate::world::{LONG, Worker, World};

/// An agent of Consul, as far as a gateway asks it: blocking queries over one service, `llm-m`.
struct Consul {
    /// The index, and the services that are listed; none at all while it is broken.
    state: watch::Sender<(u64, Option<Vec<Value>>)>,
    addr: String,
}

impl Consul {
    async fn start() -> Self {
        let state = watch::Sender::new((1, Some(Vec::new())));
        let app = Router::new()
            .route("/v1/catalog/services", get(services))
            .route("/v1/health/service/{name}", get(instances))
            .with_state(Arc::new(state.clone()));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { state, addr }
    }

    fn lists(&self, workers: Option<&[&Worker]>) {
        let service = |worker: &&Worker| {
            let port = worker.addr.port();
            json!({"ID": format!("w-{port}"), "Address": "", "Port": port, "Meta": {"model": "m"}})
        };
        self.says(workers.map(|all| all.iter().map(service).collect()));
    }

    fn lists_over_quic(&self, worker: &Worker, pin: &str) {
        let at = worker.over_quic();
        let port: u16 = at.split_once('#').unwrap().0.rsplit_once(':').unwrap().1.parse().unwrap();
        let meta = json!({"model": "m", "protocol": "quic", "pin": pin});
        let id = format!("w-{}", worker.addr.port());
        self.says(Some(vec![json!({"ID": id, "Address": "", "Port": port, "Meta": meta})]));
    }

    fn says(&self, services: Option<Vec<Value>>) {
        self.state.send_modify(|state| *state = (state.0 + 1, services));
    }

    fn config(&self) -> String {
        format!("discovery: {{consul: {{addr: 'http://{}'}}}}", self.addr)
    }
}

type Known = State<Arc<watch::Sender<(u64, Option<Vec<Value>>)>>>;

async fn answered(
    state: Known,
    query: Option<String>,
    body: impl Fn(&[Value]) -> Value,
) -> Response {
    let query = query.unwrap_or_default();
    let mut parts = query.split('&');
    let index: u64 = parts.find_map(|part| part.strip_prefix("index=")?.parse().ok()).unwrap_or(0);
    let mut changes = state.subscribe();
    let (index, ports) =
        changes.wait_for(|state| state.0 > index || state.1.is_none()).await.unwrap().clone();
    match ports {
        None => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
        Some(ports) => {
            ([("x-consul-index", index.to_string())], axum::Json(body(&ports))).into_response()
        }
    }
}

async fn services(state: Known, RawQuery(query): RawQuery) -> Response {
    answered(state, query, |_| json!({"consul": [], "llm-m": []})).await
}

async fn instances(state: Known, Path(name): Path<String>, RawQuery(query): RawQuery) -> Response {
    assert_eq!(name, "llm-m");
    let instance = |service: &Value| json!({"Node": {"Address": "127.0.0.1"}, "Service": service});
    answered(state, query, |ports| ports.iter().map(instance).collect()).await
}

/// Asks until an answer comes from this worker.
async fn answers_from(world: &World, worker: &Worker) {
    let began = Instant::now();
    let name = format!("w-{}", worker.addr.port());
    for nth in 0.. {
        // One conversation has one home: each of these is another.
        let answer = world.ask(&format!("hi {nth}"), json!({})).await;
        if answer.status == 200 && answer.header("x-pointsman-replica") == name {
            return;
        }
        assert!(began.elapsed() < LONG, "never answered by {name}: {answer:?}");
        sleep(Duration::from_millis(20)).await;
    }
}

async fn health_says(world: &World, words: &str) {
    let began = Instant::now();
    loop {
        let health = world.get("/health").await;
        if health.contains(words) {
            return;
        }
        assert!(began.elapsed() < LONG, "{words:?} is not in {health}");
        sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn workers_of_a_registry_serve_and_outlive_its_silence_and_a_restart() {
    let (one, two) = (Worker::echo(Duration::ZERO), Worker::echo(Duration::ZERO));
    let consul = Consul::start().await;
    let world = World::of(&consul.config()).await;
    assert_eq!(world.ask("hi", json!({})).await.status, 404, "nobody is there yet");
    consul.lists(Some(&[&one]));
    answers_from(&world, &one).await;
    consul.lists(Some(&[&one, &two]));
    answers_from(&world, &two).await;
    health_says(&world, "2 workers").await;

    // An empty answer is not believed, and a registry that fails takes nobody along.
    consul.lists(Some(&[]));
    health_says(&world, "0 workers").await;
    answers_from(&world, &one).await;
    consul.lists(Some(&[&one, &two]));
    health_says(&world, "2 workers").await;
    consul.lists(None);
    health_says(&world, "status 500").await;
    answers_from(&world, &two).await;

    // Another process begins while the registry is still down: with what was said before.
    let world = world.restarted().await;
    answers_from(&world, &one).await;
    health_says(&world, "2 workers").await;
    consul.lists(Some(&[&two]));
    health_says(&world, "1 workers").await;
    answers_from(&world, &two).await;
}

#[tokio::test]
async fn a_registry_says_whom_to_believe_over_quic_and_that_outlives_it() {
    let worker = Worker::echo(Duration::ZERO);
    let at = worker.over_quic();
    let pin = at.split_once('#').unwrap().1;
    let consul = Consul::start().await;
    let world = World::of(&consul.config()).await;
    consul.lists_over_quic(&worker, pin);
    answers_from(&world, &worker).await;
    consul.lists(None);
    health_says(&world, "status 500").await;
    let world = world.restarted().await;
    answers_from(&world, &worker).await;
    // From then on it is said to be somebody else: it is not believed any more.
    consul.lists_over_quic(&worker, &format!("sha256:{}", "5f".repeat(32)));
    let began = Instant::now();
    while world.ask("hi", json!({})).await.status == 200 {
        assert!(began.elapsed() < LONG, "whoever is there is believed");
        sleep(Duration::from_millis(20)).await;
    }
    let metrics = world.get("/metrics").await;
    assert!(metrics.contains("outcome=\"connect\""), "{metrics}");
}

#[tokio::test]
async fn a_worker_that_left_the_registry_and_died_is_forgotten() {
    let (mut one, two) = (Worker::echo(Duration::ZERO), Worker::echo(Duration::ZERO));
    let consul = Consul::start().await;
    let world = World::of(&consul.config()).await;
    consul.lists(Some(&[&one, &two]));
    answers_from(&world, &one).await;
    consul.lists(Some(&[&two]));
    one.kill();
    for nth in 0..20 {
        let answer = world.ask(&format!("hi {nth}"), json!({})).await;
        assert_eq!(answer.status, 200, "the other one is there: {answer:?}");
        assert_eq!(answer.header("x-pointsman-replica"), format!("w-{}", two.addr.port()));
    }
}
