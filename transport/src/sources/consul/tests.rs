#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

//! Against an agent in this process that answers as Consul does: blocking queries with an index.

mod nonsense;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Path, RawQuery, State};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use http::{HeaderMap, StatusCode};
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::time::timeout;

use super::*;
use crate::upstream::Settings as ClientSettings;

/// What the agent knows, under which index.
#[derive(Clone, Default)]
struct Known {
    index: u64,
    services: BTreeMap<String, Vec<Value>>,
    refuses: Option<u16>,
}

#[derive(Clone)]
struct Agent {
    state: watch::Sender<Known>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Agent {
    async fn start() -> (Self, String) {
        let agent = Self {
            state: watch::Sender::new(Known { index: 1, ..Known::default() }),
            asked: Arc::default(),
        };
        let app = Router::new()
            .route("/v1/catalog/services", get(services))
            .route("/v1/health/service/{name}", get(health))
            .with_state(agent.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = format!("http://{}", listener.local_addr().unwrap());
        tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        (agent, addr)
    }

    fn change(&self, change: impl FnOnce(&mut Known)) {
        self.state.send_modify(|state| {
            state.index += 1;
            change(state);
        });
    }

    /// Waits as a blocking query does, then answers.
    async fn answer(
        &self,
        path: &str,
        query: Option<String>,
        headers: &HeaderMap,
        body: impl Fn(&Known) -> Value,
    ) -> Response {
        let query = query.unwrap_or_default();
        self.asked.lock().unwrap().push(format!("{path}?{query}"));
        if headers.get("x-consul-token").is_none_or(|token| token != "secret") {
            return StatusCode::FORBIDDEN.into_response();
        }
        let index: u64 = query
            .split('&')
            .find_map(|part| part.strip_prefix("index=")?.parse().ok())
            .unwrap_or(0);
        let mut state = self.state.subscribe();
        let state = state.wait_for(|state| state.index != index || state.refuses.is_some());
        let state = state.await.unwrap().clone();
        if let Some(status) = state.refuses {
            return StatusCode::from_u16(status).unwrap().into_response();
        }
        ([("x-consul-index", state.index.to_string())], axum::Json(body(&state))).into_response()
    }
}

async fn services(
    State(agent): State<Agent>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let body = |state: &Known| {
        let names = state.services.keys().map(|name| (name.clone(), json!([])));
        Value::Object(names.chain([("consul".to_owned(), json!([]))]).collect())
    };
    agent.answer("services", query, &headers, body).await
}

async fn health(
    State(agent): State<Agent>,
    Path(name): Path<String>,
    RawQuery(query): RawQuery,
    headers: HeaderMap,
) -> Response {
    let body = |state: &Known| json!(state.services.get(&name).cloned().unwrap_or_default());
    agent.answer(&name, query, &headers, body).await
}

fn worker(id: &str, port: u16, meta: Value) -> Value {
    json!({
        "Node": {"Node": "n1", "Address": "10.0.0.1"},
        "Service": {"ID": id, "Service": "llm-m", "Address": "", "Port": port, "Meta": meta,
                    "Weights": {"Passing": 2, "Warning": 1}},
        "Checks": [],
    })
}

fn watching(addr: &str, token: &str) -> mpsc::Receiver<Told> {
    let settings = Settings {
        addr: addr.parse().unwrap(),
        token: Some(HeaderValue::from_str(token).unwrap()),
        datacenter: None,
        prefix: "llm-".into(),
    };
    let (tell, told) = mpsc::channel(1);
    let client = Client::new(&ClientSettings::default()).unwrap();
    tokio::spawn(watch(client, settings, tell));
    told
}

/// What is told next, other than what was told already.
async fn next(told: &mut mpsc::Receiver<Told>, other_than: &Told) -> Told {
    loop {
        let next = timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap();
        if next != *other_than {
            return next;
        }
    }
}

fn nobody() -> Told {
    Told::Instances(Vec::new())
}

fn urls(told: &Told) -> Vec<String> {
    match told {
        Told::Instances(found) => found.iter().map(Instance::url).collect(),
        Told::Lost(why) => panic!("lost: {why}"),
    }
}

#[tokio::test]
async fn workers_come_and_go_as_they_register() {
    let (agent, addr) = Agent::start().await;
    let mut told = watching(&addr, "secret");
    assert_eq!(told.recv().await, Some(nobody()));
    let meta = json!({"model": "org/m"});
    agent.change(|state| {
        state.services.insert("llm-m".into(), vec![worker("w1", 50_055, meta)]);
        state.services.insert("web".into(), vec![worker("web-1", 80, json!({}))]);
    });
    let one = next(&mut told, &nobody()).await;
    let Told::Instances(found) = &one else { panic!("{one:?}") };
    let Instance { name, model, weight, .. } = &found[0];
    assert_eq!((name.as_str(), model.as_str(), *weight), ("w1", "org/m", 200));
    assert_eq!(urls(&one), ["grpc://10.0.0.1:50055"]);
    let two = json!({"protocol": "quic", "weight": "7", "pin": "sha256:5f"});
    agent.change(|state| state.services.get_mut("llm-m").unwrap().push(worker("w2", 2, two)));
    let both = next(&mut told, &one).await;
    assert_eq!(urls(&both), ["grpc://10.0.0.1:50055", "quic://10.0.0.1:2"]);
    let Told::Instances(found) = &both else { panic!("{both:?}") };
    assert_eq!((found[1].model.as_str(), found[1].weight), ("m", 7), "the name says it too");
    assert_eq!((found[1].pin.as_deref(), &found[0].pin), (Some("sha256:5f"), &None));
    agent.change(|state| drop(state.services.remove("llm-m")));
    assert_eq!(next(&mut told, &both).await, nobody());
    assert!(!agent.asked.lock().unwrap().iter().any(|path| path.starts_with("web")));
}

#[tokio::test]
async fn a_registration_that_makes_no_sense_hides_nobody() {
    let (agent, addr) = Agent::start().await;
    agent.change(|state| {
        let odd = [
            worker("odd-protocol", 1, json!({"protocol": "smoke"})),
            worker("odd-weight", 1, json!({"weight": "much"})),
            worker("odd-port", 0, json!({})),
            worker("w1", 1, Value::Null),
        ];
        state.services.insert("llm-m".into(), odd.into());
    });
    let mut told = watching(&addr, "secret");
    assert_eq!(urls(&next(&mut told, &nobody()).await), ["grpc://10.0.0.1:1"]);
}

#[tokio::test]
async fn a_registry_that_fails_is_lost_and_heard_again_when_it_is_back() {
    let (agent, addr) = Agent::start().await;
    agent.change(|state| {
        drop(state.services.insert("llm-m".into(), vec![worker("w1", 1, json!({}))]))
    });
    let mut told = watching(&addr, "secret");
    let one = next(&mut told, &nobody()).await;
    agent.change(|state| state.refuses = Some(500));
    let Told::Lost(why) = next(&mut told, &one).await else { panic!("not lost") };
    assert!(why.contains("status 500"), "{why}");
    agent.change(|state| state.refuses = None);
    while timeout(Duration::from_secs(20), told.recv()).await.unwrap() != Some(one.clone()) {}
}

#[tokio::test]
async fn an_index_that_goes_backwards_is_heard() {
    let (agent, addr) = Agent::start().await;
    agent.change(|state| state.index = 1_000);
    let mut told = watching(&addr, "secret");
    assert_eq!(told.recv().await, Some(nobody()));
    agent.state.send_modify(|state| {
        // Restored from a snapshot: a small index again, and another content.
        state.index = 5;
        state.services.insert("llm-m".into(), vec![worker("w1", 1, json!({}))]);
    });
    assert_eq!(urls(&next(&mut told, &nobody()).await), ["grpc://10.0.0.1:1"]);
}

#[tokio::test]
async fn a_token_that_is_refused_is_named_as_the_reason_and_not_shown() {
    let (_agent, addr) = Agent::start().await;
    let mut told = watching(&addr, "wrong-token");
    let Some(Told::Lost(why)) = told.recv().await else { panic!("not lost") };
    assert!(
        why.contains("403") && why.contains("service:read") && !why.contains("wrong-token"),
        "{why}"
    );
}

#[tokio::test]
async fn nobody_there_is_a_source_that_is_lost() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    drop(listener);
    let Some(Told::Lost(why)) = watching(&addr, "secret").recv().await else { panic!("not lost") };
    assert!(why.contains("does not answer"), "{why}");
}

#[test]
fn a_secret_never_shows() {
    let settings = Settings {
        addr: "http://h".parse().unwrap(),
        token: Some(HeaderValue::from_static("very-secret")),
        datacenter: None,
        prefix: String::new(),
    };
    assert!(!format!("{settings:?}").contains("very-secret"));
}

#[test]
fn names_are_escaped() {
    assert_eq!(escaped("llm-org/m x"), "llm-org%2Fm%20x");
}

#[tokio::test]
async fn an_id_that_two_nodes_share_is_two_workers() {
    let (agent, addr) = Agent::start().await;
    let mut other = worker("w", 50_055, json!({}));
    other["Node"] = json!({"Node": "n2", "Address": "10.0.0.2"});
    agent.change(|state| {
        let both = vec![worker("w", 50_055, json!({})), other];
        state.services.insert("llm-m".into(), both);
    });
    let told = next(&mut watching(&addr, "secret"), &nobody()).await;
    assert_eq!(urls(&told), ["grpc://10.0.0.1:50055", "grpc://10.0.0.2:50055"]);
    let Told::Instances(found) = told else { panic!("lost") };
    let names: Vec<_> = found.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(names, ["w@n1", "w@n2"]);
}
