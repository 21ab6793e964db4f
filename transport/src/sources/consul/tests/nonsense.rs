//! What is at Consul's address may be anything: a login page, a proxy's error, a catalogue without end.

use axum::body::Body;

use super::*;

/// An agent that says this of its services and of each one's instances.
async fn saying(services: impl Into<String>, instances: impl Into<String>) -> mpsc::Receiver<Told> {
    let (services, instances) = (services.into(), instances.into());
    let said = |body: String| {
        move || async move { ([("x-consul-index", "7")], Body::from(body)).into_response() }
    };
    let app = Router::new()
        .route("/v1/catalog/services", get(said(services)))
        .route("/v1/health/service/{name}", get(said(instances)));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
    watching(&addr, "secret")
}

async fn first(told: &mut mpsc::Receiver<Told>) -> Told {
    timeout(Duration::from_secs(20), told.recv()).await.unwrap().unwrap()
}

const SERVICES: &str = r#"{"consul": [], "llm-m": []}"#;

#[tokio::test]
async fn an_answer_that_is_none_is_a_source_that_is_lost() {
    let page = "<!DOCTYPE html><title>Sign in</title>";
    let endless = format!("[{}]", " ".repeat(ANSWER_BYTES_MAX));
    for (services, instances) in [
        (page, "[]"),
        ("", "[]"),
        ("[]", "[]"),
        ("{\"llm-m\": [", "[]"),
        ("\u{0}\u{1}\u{2}", "[]"),
        (endless.as_str(), "[]"),
        (SERVICES, page),
        (SERVICES, "{}"),
        (SERVICES, "null"),
        (SERVICES, r#"[{"Node": 3}]"#),
        (SERVICES, r#"[{"Node": {}, "Service": {"ID": 1, "Port": "x"}}]"#),
        (SERVICES, r#"[{"Node": {}, "Service": {"ID": "w", "Port": 1e99}}]"#),
        (SERVICES, endless.as_str()),
    ] {
        let what: String = format!("{services} {instances}").chars().take(80).collect();
        let Told::Lost(why) = first(&mut saying(services, instances).await).await else {
            panic!("believed: {what}")
        };
        assert!(why.contains("Consul") && why.len() < 300, "{what}: {why}");
        assert!(!why.contains("Sign in"), "a stranger's words: {why}");
    }
}

#[tokio::test]
async fn ten_thousand_workers_are_cut_to_what_may_be_and_a_name_counts_once() {
    let many: Vec<Value> = (0..10_000)
        .map(|n| worker(&format!("w-{n:05}"), 1 + (n % 60_000) as u16, json!({})))
        .collect();
    let Told::Instances(found) = first(&mut saying(SERVICES, json!(many).to_string()).await).await
    else {
        panic!("lost")
    };
    assert_eq!(found.len(), super::super::super::INSTANCES_MAX);
    assert_eq!((found[0].name.as_str(), found[4_095].name.as_str()), ("w-00000", "w-04095"));
    let twice = json!([
        worker("w", 2, json!({})),
        worker("w", 1, json!({"model": "other"})),
        worker("v", 3, json!({})),
        worker("w", 2, json!({})),
    ]);
    let told = first(&mut saying(SERVICES, twice.to_string()).await).await;
    assert_eq!(
        urls(&told),
        ["grpc://10.0.0.1:3", "grpc://10.0.0.1:2"],
        "one of them, always the same"
    );
}

#[tokio::test]
async fn services_without_end_are_refused_with_what_to_do() {
    let many: BTreeMap<String, Vec<String>> =
        (0..10_000).map(|n| (format!("llm-{n}"), Vec::new())).collect();
    let services = serde_json::to_string(&many).unwrap();
    let Told::Lost(why) = first(&mut saying(services, "[]").await).await else {
        panic!("believed")
    };
    assert!(why.contains("service_prefix"), "{why}");
}
