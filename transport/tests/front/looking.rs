//! What is said about the gateway itself, and about paths that do not exist.

use std::collections::BTreeMap;

use http::Method;
use http_body_util::Full;
use transport::exchange::Checks;

use crate::world::{ANSWER, Act, HELLO, World, bearer, request, send};

fn answering() -> World {
    World::new(|_| Act::Whole(ANSWER))
}

#[tokio::test]
async fn models_are_listed_as_openai_lists_them_and_with_prices_under_api() {
    let world = answering();
    let plain = world.get("/v1/models", "*/*").await.json();
    assert_eq!(plain["object"], "list");
    assert_eq!(plain["data"][1]["id"], "gpt-4o-mini");
    assert_eq!(plain["data"][1]["object"], "model");
    assert_eq!(plain["data"][1]["owned_by"], "openai");
    assert!(plain["data"][1].get("input_price").is_none());
    let priced = world.get("/api/v1/models", "*/*").await.json();
    assert_eq!(priced["data"][1]["provider"], "openai");
    assert_eq!(priced["data"][1]["input_price"], 0.15);
    assert_eq!(priced["data"][1]["output_price"], 0.6);
    assert!(priced["data"][0].get("input_price").is_none(), "not known, not shown");
}

#[tokio::test]
async fn one_model_is_found_by_its_name_even_with_a_slash_in_it() {
    let world = answering();
    assert_eq!(world.get("/v1/models/demo", "*/*").await.json()["id"], "demo");
    for path in ["/v1/models/meta/llama-3", "/v1/models/meta%2Fllama-3"] {
        assert_eq!(world.get(path, "*/*").await.json()["id"], "meta/llama-3");
    }
    let answer = world.get("/v1/models/dem", "*/*").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "model_not_found"));
    assert!(answer.text().contains("Did you mean 'demo'?"));
    assert_eq!(world.get("/v1/models/%ff", "*/*").await.status, 400);
}

#[tokio::test]
async fn a_key_sees_only_the_models_it_may_use() {
    let world = answering();
    let asked = request(Method::GET, world.url("/v1/models"))
        .header("authorization", "Bearer sk-demo-only");
    let json = send(asked.body(Full::default()).unwrap()).await.json();
    assert_eq!(json["data"].as_array().unwrap().len(), 1);
}

#[tokio::test]
async fn health_is_200_while_the_process_lives_and_ready_judges() {
    let world = answering();
    *world.chat.checks.lock().unwrap() = Checks {
        ready: false,
        parts: vec![("endpoint a".into(), false, "its key was refused".into())],
    };
    let answer = world.get("/health", "*/*").await;
    assert_eq!(answer.status, 200);
    let json = answer.json();
    assert_eq!((&json["status"], &json["healthy"]), (&"degraded".into(), &false.into()));
    assert_eq!(json["service"], "pointsman");
    assert!(json["version"].is_string() && json["timestamp"].is_u64());
    assert_eq!(json["checks"]["endpoint a"]["detail"], "its key was refused");
    let text = world.get("/health", "text/plain").await;
    assert_eq!((text.status.as_u16(), text.text()), (200, "ok"));
    let ready = world.get("/ready", "*/*").await;
    assert_eq!(ready.status, 503);
    assert_eq!(ready.json()["reasons"][0], "endpoint a: its key was refused");
    *world.chat.checks.lock().unwrap() = Checks { ready: true, parts: Vec::new() };
    assert_eq!(world.get("/ready", "*/*").await.status, 200);
    assert_eq!(world.get("/health", "*/*").await.json()["status"], "healthy");
}

#[tokio::test]
async fn unknown_paths_name_the_likely_one_and_browsers_get_a_page() {
    let world = answering();
    let answer = world.post("/v1/chat/completions/", HELLO).await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (404, "unknown_url"));
    assert!(answer.text().contains("Did you mean POST /v1/chat/completions?"));
    let answer = world.post("/api/v1/chat/completion", HELLO).await;
    assert!(answer.text().contains("Did you mean POST /api/v1/chat/completions?"));
    // A chat role that keeps no sessions says so.
    let answer = world.get("/api/v1/sessions", "application/json").await;
    assert_eq!((answer.status.as_u16(), answer.code().as_str()), (503, "sessions_off"));
    let page = world.get("/", "text/html,*/*").await;
    assert_eq!(page.status, 200);
    assert!(page.header("content-type").starts_with("text/html"));
    assert!(page.text().contains(&format!("http://{}/v1/chat/completions", world.addr)));
    assert_eq!(world.get("/some/where", "text/html").await.status, 200);
    for path in ["/v1/nothing", "/api/x", "/admin"] {
        assert_eq!(world.get(path, "text/html").await.status, 404, "{path}");
    }
    assert_eq!(world.get("/", "*/*").await.status, 404);
}

#[tokio::test]
async fn a_wrong_method_is_a_405_that_allows_the_right_one() {
    let world = answering();
    let answer = world.get("/v1/chat/completions", "text/html").await;
    assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "POST"));
    assert!(answer.error()["message"].as_str().unwrap().contains("Send it with POST"));
    let answer = world.post("/v1/models", "{}").await;
    assert_eq!((answer.status.as_u16(), answer.header("allow")), (405, "GET,HEAD"));
}

#[tokio::test]
async fn figures_are_one_clean_exposition_with_bounded_labels() {
    let world = answering();
    world.post("/v1/chat/completions", HELLO).await;
    for name in ["nonsense-1", "nonsense-2"] {
        world.post("/v1/chat/completions", HELLO.replace("demo", name)).await;
    }
    let asked = request(Method::GET, world.url("/metrics")).header("authorization", bearer());
    let answer = send(asked.body(Full::default()).unwrap()).await;
    assert_eq!(answer.header("content-type"), "text/plain; version=0.0.4; charset=utf-8");
    let text = answer.text();
    for line in [
        r#"gateway_requests_total{provider="scripted",model="demo",status="200"} 1"#,
        r#"gateway_requests_total{provider="none",model="other",status="404"} 2"#,
        r#"gateway_tokens_used_total{provider="scripted",model="demo",type="prompt"} 3"#,
        r#"gateway_tokens_used_total{provider="scripted",model="demo",type="completion"} 4"#,
        r#"gateway_request_duration_seconds_count{provider="scripted",model="demo"} 1"#,
        "pointsman_front_requests_in_flight 0",
        "pointsman_picks_total 7",
    ] {
        assert!(text.contains(line), "{line} is missing in\n{text}");
    }
    assert!(!text.contains("nonsense"));
    lint(text);
}

/// What `promtool check metrics` looks for: every sample after its own HELP and TYPE, each family once, counters and
/// only counters ending in `_total`.
fn lint(text: &str) {
    let mut kinds: BTreeMap<String, String> = BTreeMap::new();
    let (mut helped, mut open) = (Vec::new(), String::new());
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            let (name, help) = rest.split_once(' ').unwrap();
            assert!(!help.is_empty() && !helped.contains(&name.to_owned()), "{line}");
            helped.push(name.to_owned());
        } else if let Some(rest) = line.strip_prefix("# TYPE ") {
            let (name, kind) = rest.split_once(' ').unwrap();
            assert_eq!(helped.last().map(String::as_str), Some(name), "TYPE follows its HELP");
            assert_eq!(kind == "counter", name.ends_with("_total"), "{line}");
            assert!(kinds.insert(name.to_owned(), kind.to_owned()).is_none(), "twice: {name}");
            name.clone_into(&mut open);
        } else {
            assert!(!line.starts_with('#'), "unknown comment: {line}");
            let sample = line.split(['{', ' ']).next().unwrap();
            let family = ["_bucket", "_sum", "_count"]
                .iter()
                .find_map(|end| sample.strip_suffix(end))
                .filter(|_| kinds[&open] == "histogram")
                .unwrap_or(sample);
            assert_eq!(family, open, "a sample outside its family: {line}");
            let value = line.rsplit(' ').next().unwrap();
            assert!(value.parse::<f64>().is_ok(), "{line}");
        }
    }
}
