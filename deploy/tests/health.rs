//! `pointsman health` against gateways and workers that run, cannot serve, and are gone.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use std::process::Output;

use support::{World, free_port, pointsman, printed, until, words};

fn health(url: &str) -> Output {
    pointsman(&words("health --within 10s").into_iter().chain([url.into()]).collect::<Vec<_>>())
        .output()
        .unwrap()
}

#[test]
fn a_gateway_lives_before_it_can_serve_and_neither_when_it_is_gone() {
    let world = World::new();
    let (port, admin, nobody) = (free_port(), free_port(), free_port());
    world.write_config(&format!(
        "version: 1
server: {{http: {{addr: '127.0.0.1:{port}'}}, admin: {{addr: '127.0.0.1:{admin}'}}}}
data: {{dir: '{data}'}}
upstreams: [{{url: 'http://127.0.0.1:{nobody}'}}]
",
        data = world.data().display(),
    ));
    let mut gateway = world.gateway(port);
    gateway.process.spawn();
    let page = |path: &str| format!("http://127.0.0.1:{admin}{path}");
    until("it lives", 60, || health(&page("/health")).status.success());
    let ready = health(&page("/ready"));
    assert!(!ready.status.success() && ready.stdout.is_empty(), "{}", printed(&ready));
    assert!(printed(&ready).contains("endpoint"), "{}", printed(&ready));
    gateway.process.kill();
    let gone = health(&page("/health"));
    assert!(!gone.status.success() && printed(&gone).contains("refused"), "{}", printed(&gone));
}

#[test]
fn a_worker_says_what_it_serves() {
    let world = World::new();
    let mut worker = world.worker("one", "--backend echo");
    let url = format!("grpc://127.0.0.1:{}", worker.port);
    let well = health(&url);
    assert!(well.status.success() && printed(&well).contains("serves demo"), "{}", printed(&well));
    worker.process.kill();
    let gone = health(&url);
    assert!(!gone.status.success() && !gone.stderr.is_empty(), "{}", printed(&gone));
}

#[test]
fn what_cannot_be_asked_is_refused_with_what_can() {
    let refused = health("https://127.0.0.1:1/health");
    assert!(!refused.status.success());
    assert!(printed(&refused).contains("server.admin.addr"), "{}", printed(&refused));
}
