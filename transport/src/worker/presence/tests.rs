#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

//! Against an agent in this process, which forgets, refuses and answers nonsense.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use axum::Router;
use axum::body::Bytes;
use axum::extract::State;
use axum::response::{IntoResponse, Response};
use http::{HeaderMap, StatusCode, Uri};
use serde_json::{Value, json};
use tokio::time::sleep;

use super::*;
use crate::quic::Pin;
use crate::sources::Protocol;
use crate::trace::Tracer;
use crate::upstream::{Client, Settings};
use crate::worker::{Backend, Hash};

/// What the agent was told, and how it answers.
#[derive(Default)]
struct Known {
    /// What is registered, and its check's status.
    worker: Option<(Value, String)>,
    /// What it says to everything, where that is not what an agent says.
    answers: Option<(u16, &'static str)>,
    /// What it takes long for.
    slow: Option<(&'static str, Duration)>,
    asked: Vec<String>,
    tokens: Vec<String>,
}

type Shared = Arc<Mutex<Known>>;

async fn agent() -> (Shared, String) {
    let known = Shared::default();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&known));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    (known, addr)
}

async fn answer(
    State(known): State<Shared>,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let path = uri.path().to_owned();
    let slow = {
        let mut known = known.lock().unwrap();
        known.asked.push(path.clone());
        known.slow.filter(|(slow, _)| *slow == path)
    };
    if let Some((_, after)) = slow {
        sleep(after).await;
    }
    let mut known = known.lock().unwrap();
    let token = headers.get("x-consul-token").map(|token| token.to_str().unwrap().to_owned());
    known.tokens.extend(token);
    if let Some((status, body)) = known.answers {
        return (StatusCode::from_u16(status).unwrap(), body).into_response();
    }
    let body: Value = serde_json::from_slice(&body).unwrap_or_default();
    if path == "/v1/agent/service/register" {
        known.worker = Some((body, "critical".to_owned()));
    } else if path == "/v1/agent/service/deregister/w%201" {
        known.worker = None;
    } else if path == "/v1/agent/check/update/w%201%3Attl" {
        match &mut known.worker {
            Some(worker) => body["Status"].as_str().unwrap().clone_into(&mut worker.1),
            None => {
                let words = r#"CheckID "w 1:ttl" does not have associated TTL"#;
                return (StatusCode::INTERNAL_SERVER_ERROR, words).into_response();
            }
        }
    } else {
        return StatusCode::NOT_FOUND.into_response();
    }
    StatusCode::OK.into_response()
}

fn present(addr: &str, token: Option<&str>, ready: bool) -> (Presence, Telemetry) {
    let telemetry = Telemetry::new("org/m", Tracer::default());
    telemetry.backend_is_ready(ready);
    let backend = Backend::Hash(Hash::default());
    let pin: Pin = format!("sha256:{}", "5f".repeat(32)).parse().unwrap();
    let at = (Protocol::Quic, "10.0.0.7".to_owned(), 50_056);
    let what = Registration::new("w 1".to_owned(), ("org/m", &backend), at, Some(pin));
    let client = Client::new(&Settings::default()).unwrap();
    let agent = Agent::new(client, addr.parse().unwrap(), token, what).unwrap();
    (Presence::start(agent, telemetry.clone()), telemetry)
}

async fn until(what: &str, mut so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !so() {
        assert!(began.elapsed() < Duration::from_secs(20), "not in time: {what}");
        sleep(Duration::from_millis(5)).await;
    }
}

fn status(known: &Shared) -> Option<String> {
    known.lock().unwrap().worker.as_ref().map(|(_, status)| status.clone())
}

async fn passing(known: &Shared) {
    until("it passes", || status(known).as_deref() == Some("passing")).await;
}

#[tokio::test]
async fn a_worker_says_what_the_gateways_read_and_takes_leave() {
    let (known, addr) = agent().await;
    let (presence, telemetry) = present(&addr, Some("very-secret"), true);
    passing(&known).await;
    until("it knows", || telemetry.standing() == Standing::Known).await;
    assert!(telemetry.page().contains("pointsman_worker_registered{model=\"org/m\"} 1"));
    let told = known.lock().unwrap().worker.clone().unwrap().0;
    assert_eq!(told["ID"], "w 1");
    assert_eq!(told["Name"], "llm-org-m");
    assert_eq!((&told["Address"], &told["Port"]), (&json!("10.0.0.7"), &json!(50_056)));
    let meta = &told["Meta"];
    assert_eq!((&meta["model"], &meta["protocol"]), (&json!("org/m"), &json!("quic")));
    assert_eq!(meta["pin"], format!("sha256:{}", "5f".repeat(32)));
    assert_eq!((&meta["backend"], &told["Check"]["TTL"]), (&json!("hash"), &json!("15s")));
    assert!(known.lock().unwrap().tokens.iter().all(|token| token == "very-secret"));
    assert!(!format!("{presence:?}").contains("very-secret"));
    presence.leave().await;
    assert_eq!(status(&known), None);
    assert_eq!(telemetry.standing(), Standing::Left);
    assert!(telemetry.page().contains("pointsman_worker_registered{model=\"org/m\"} 0"));
}

#[tokio::test]
async fn a_backend_that_goes_and_comes_is_told_at_once() {
    let (known, addr) = agent().await;
    let (_presence, telemetry) = present(&addr, None, false);
    until("it is told", || telemetry.standing() == Standing::Known).await;
    assert_eq!(status(&known).as_deref(), Some("critical"));
    let began = Instant::now();
    telemetry.backend_is_ready(true);
    passing(&known).await;
    telemetry.backend_is_ready(false);
    until("it is told", || status(&known).as_deref() == Some("critical")).await;
    assert!(began.elapsed() < REPORT_EVERY, "only with the next report");
}

#[tokio::test]
async fn a_worker_that_was_forgotten_registers_again() {
    let (known, addr) = agent().await;
    let (_presence, telemetry) = present(&addr, None, true);
    passing(&known).await;
    until("it knows", || telemetry.standing() == Standing::Known).await;
    known.lock().unwrap().worker = None;
    // What changes is reported at once, so that nobody waits for the next report here.
    telemetry.backend_is_ready(false);
    until(
        "it hears",
        || matches!(telemetry.standing(), Standing::Unknown(why) if why.contains("forgot")),
    )
    .await;
    telemetry.backend_is_ready(true);
    passing(&known).await;
}

#[tokio::test]
async fn an_agent_that_comes_late_is_found() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let (presence, telemetry) = present(&format!("http://{addr}"), None, true);
    until("it is missed", || matches!(telemetry.standing(), Standing::Unknown(why) if why.contains("does not answer"))).await;
    let known = Shared::default();
    let app = Router::new().fallback(answer).with_state(Arc::clone(&known));
    let listener = tokio::net::TcpListener::bind(addr).await.unwrap();
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    passing(&known).await;
    presence.leave().await;
    assert_eq!(status(&known), None);
}

#[tokio::test]
async fn whatever_an_agent_answers_the_worker_says_what_is_wrong_and_goes_on() {
    for (status, body, words) in [
        (200, "<!DOCTYPE html><p>Welcome!</p>", "no agent of Consul's"),
        (404, "404 page not found", "no agent of Consul's"),
        (403, "Permission denied", "service:write"),
        (401, "", "service:write"),
        (500, "No cluster leader", "status 500"),
        (400, "Invalid Service Meta: \u{1}\u{2}", "status 400"),
        (301, "", "status 301"),
        (418, "{\"garbage\": [", "status 418"),
    ] {
        let (known, addr) = agent().await;
        known.lock().unwrap().answers = Some((status, body));
        let (presence, telemetry) = present(&addr, Some("very-secret"), true);
        let mut said = String::new();
        until("it says so", || {
            said = telemetry.standing().to_string();
            said.contains(words)
        })
        .await;
        assert!(!said.contains("very-secret") && said.starts_with("not registered"), "{said}");
        assert!(!said.contains('\u{1}') && said.len() < 200, "a stranger's words: {said}");
        known.lock().unwrap().answers = None;
        passing(&known).await;
        drop(presence);
    }
}

#[tokio::test]
async fn an_agent_that_swallows_everything_holds_nobody_up() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    let (presence, telemetry) = present(&addr, None, true);
    let (_swallowing, _) = listener.accept().await.unwrap();
    let began = Instant::now();
    presence.leave().await;
    let most = FINISH_WITHIN + LEAVE_WITHIN + Duration::from_secs(1);
    assert!(began.elapsed() < most, "{:?}", began.elapsed());
    assert_eq!(telemetry.standing(), Standing::Left);
}

#[tokio::test]
async fn a_farewell_is_sent_however_slow_what_was_under_way_is() {
    // Longer than all that one who leaves waits for.
    let never = FINISH_WITHIN + LEAVE_WITHIN + Duration::from_secs(4);
    for (slow, after) in [
        ("/v1/agent/service/register", FINISH_WITHIN / 2),
        ("/v1/agent/service/register", never),
        ("/v1/agent/check/update/w%201%3Attl", never),
    ] {
        let (known, addr) = agent().await;
        known.lock().unwrap().slow = Some((slow, after));
        let (presence, telemetry) = present(&addr, None, true);
        until("it is asked", || known.lock().unwrap().asked.iter().any(|path| path == slow)).await;
        let began = Instant::now();
        presence.leave().await;
        assert!(began.elapsed() < FINISH_WITHIN + LEAVE_WITHIN, "{:?}", began.elapsed());
        let last = known.lock().unwrap().asked.last().cloned();
        assert_eq!(last.as_deref(), Some("/v1/agent/service/deregister/w%201"), "{slow} {after:?}");
        assert_eq!((status(&known), telemetry.standing()), (None, Standing::Left));
    }
}

#[test]
fn what_can_never_be_registered_is_refused() {
    let made = |addr: &str, token, model: &str| {
        let backend = Backend::Hash(Hash::default());
        let at = (Protocol::Grpc, "h".to_owned(), 1);
        let what = Registration::new("w".into(), (model, &backend), at, None);
        let client = Client::new(&Settings::default()).unwrap();
        Agent::new(client, addr.parse().unwrap(), token, what).map(drop)
    };
    assert!(matches!(made("grpc://h:1", None, "m"), Err(AgentError::Url(_))));
    assert_eq!(made("http://h:1", Some("a\nb"), "m"), Err(AgentError::Token));
    assert_eq!(made("http://h:1", None, &"m".repeat(513)), Err(AgentError::Model(513)));
    assert_eq!(made("http://h:1", Some("t"), &"m".repeat(512)), Ok(()));
}
