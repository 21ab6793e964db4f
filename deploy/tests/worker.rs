//! `pointsman worker` behind `pointsman serve`, as people start them: two programs, real sockets, signals.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use std::net::TcpListener;
use std::sync::atomic::Ordering;
use std::time::Duration;

use support::client::{Ask, Client};
use support::{Server, Worker, World, free_port, get, pointsman, printed, run, until, words};

/// The prompt of the tests' client, as `echo` repeats it, has so many words.
const WORDS: usize = 7;

fn gateway(world: &World, endpoints: &[String]) -> Server {
    let port = free_port();
    world.write_config(&format!(
        "version: 1
server:
  http: {{addr: '127.0.0.1:{port}', drain_grace: 10s}}
  admin: {{addr: '127.0.0.1:0'}}
data: {{dir: '{data}'}}
models: {{demo: {{endpoints: [{endpoints}]}}}}
routing: {{load_balancer: round_robin}}
log: {{level: info, format: json}}
",
        data = world.data().display(),
        endpoints = endpoints.join(", "),
    ));
    let mut gateway = world.gateway(port);
    gateway.start();
    gateway
}

fn ask(stream: bool) -> Ask {
    Ask { stream, tokens: 60, ..Ask::default() }
}

fn endpoints(workers: &[&Worker]) -> Vec<String> {
    workers.iter().map(|worker| worker.endpoint()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_serve_are_killed_and_come_back_and_no_request_fails() {
    let world = World::new();
    let mut one = world.worker("one", "--backend echo");
    let two = world.worker("two", "--backend echo --delay 1ms");
    let gateway = gateway(&world, &endpoints(&[&one, &two]));
    let client = Client::new(gateway.port);
    let mut asked = Vec::new();
    for number in 0..6 {
        let answer = client.ask(&ask(number % 2 == 0)).await;
        assert!(answer.whole && answer.used().is_some(), "{answer:?}");
        assert_eq!(answer.usage.unwrap().1, WORDS as u64, "{answer:?}");
        asked.push(answer.replica.unwrap());
    }
    assert!(asked.iter().any(|name| name == "one") && asked.iter().any(|name| name == "two"));
    one.process.kill();
    for _ in 0..6 {
        let answer = client.ask(&ask(true)).await;
        assert!(answer.whole && answer.replica.as_deref() == Some("two"), "{answer:?}");
    }
    one.start();
    let again = async {
        while client.ask(&ask(false)).await.replica.as_deref() != Some("one") {
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(40), again).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_told_to_stop_finishes_its_stream_and_says_so() {
    let world = World::new();
    let mut slow = world.worker("slow", "--backend echo --delay 200ms --grace 20s");
    let gateway = gateway(&world, &endpoints(&[&slow]));
    let client = Client::new(gateway.port);
    let streaming = tokio::spawn(async move { client.ask(&ask(true)).await });
    until("the worker writes", 10, || {
        get(gateway.port, "/metrics")
            .is_some_and(|(_, page)| page.contains("pointsman_worker_running{instance=\"slow\"} 1"))
    });
    let (status, worker) =
        tokio::task::spawn_blocking(move || (slow.process.stop(), slow)).await.unwrap();
    assert!(status.success(), "{status}");
    let answer = streaming.await.unwrap();
    assert!(answer.whole && answer.pieces == WORDS, "{answer:?}");
    let said = worker.process.said();
    assert!(said.contains("worker ready at grpc://127.0.0.1:"), "{said}");
    assert!(
        said.contains("draining") && said.contains("everything that ran has finished"),
        "{said}"
    );
    assert!(!said.contains("trains"), "no prompt in a log: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_over_quic_is_pinned_by_the_fingerprint_it_prints_and_its_death_is_survived() {
    let world = World::new();
    let port = std::net::UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    let mut quic = world
        .worker("quic", &format!("--backend hash --delay 20ms --quic-listen 127.0.0.1:{port}"));
    let spare = world.worker("spare", "--backend hash --delay 1ms");
    let mut pin = String::new();
    until("the worker says where it is", 10, || {
        let said = quic.process.said();
        let line = said.lines().find(|line| line.contains(&format!("quic://127.0.0.1:{port}")));
        let found = line.and_then(|line| line.split_once("certificate "));
        found.map(|(_, found)| found[..71].clone_into(&mut pin)).is_some()
    });
    assert!(pin.starts_with("sha256:"), "{pin}");
    let over_quic =
        format!("{{url: 'quic://127.0.0.1:{port}', name: quic, tls: {{pin: '{pin}'}}}}");
    let spare = format!("{{url: 'grpc://127.0.0.1:{}', name: spare, priority: 2}}", spare.port);
    let gateway = gateway(&world, &[over_quic, spare]);
    let client = Client::new(gateway.port);
    let answer = client.ask(&ask(true)).await;
    assert!(answer.whole && answer.replica.as_deref() == Some("quic"), "{answer:?}");
    let asked = ask(true);
    let heard = std::sync::Arc::clone(&asked.heard);
    let streaming = tokio::spawn(async move { client.ask(&asked).await });
    until("some of the answer is there", 10, || heard.load(Ordering::Relaxed) >= 3);
    quic.process.kill();
    let continued = streaming.await.unwrap();
    assert!(continued.whole && continued.pieces == answer.pieces, "{continued:?} {answer:?}");
    let said = gateway.process.said();
    assert!(said.contains("a broken stream goes on"), "it was over before the worker died: {said}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_beside_a_model_server_passes_on_and_check_asks_it() {
    let world = World::new();
    let server = world.replica("server", "--ttft 1ms --gap 1ms");
    let worker =
        world.worker("beside", &format!("--backend openai:http://127.0.0.1:{}", server.port));
    let gateway = gateway(&world, &endpoints(&[&worker]));
    let client = Client::new(gateway.port);
    for stream in [true, false] {
        let answer = client.ask(&ask(stream)).await;
        assert!(answer.whole, "{answer:?}");
        assert_eq!(answer.usage.unwrap().1, 60, "the server's own bill: {answer:?}");
    }
    let checked = run("check --online --config", &world.config());
    assert!(checked.status.success(), "{}", printed(&checked));
    assert!(printed(&checked).contains("beside (grpc://127.0.0.1:"), "{}", printed(&checked));
}

#[test]
fn a_port_that_is_taken_and_a_backend_that_is_none_are_refused_in_plain_words() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let addr = taken.local_addr().unwrap();
    let line = format!("worker --model m --backend echo --listen {addr}");
    let refused = pointsman(&words(&line)).output().unwrap();
    assert!(!refused.status.success());
    let said = printed(&refused);
    assert!(
        said.contains(&format!("cannot listen on {addr}")) && said.contains("--listen"),
        "{said}"
    );
    let refused = pointsman(&words("worker --model m --backend llama")).output().unwrap();
    assert!(!refused.status.success());
    assert!(printed(&refused).contains("openai:URL"), "{}", printed(&refused));
}
