//! What operators are promised of a process: its bounds, its pages, its start and its end.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

mod support;

use std::net::{TcpListener, TcpStream};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use support::client::{Ask, Client};
use support::{Server, World, free_port, get, pointsman, printed, until, words};

/// Takes connections and never says anything.
struct Silent {
    port: u16,
    taken: Arc<AtomicUsize>,
}

impl Silent {
    fn new() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let (port, taken) = (listener.local_addr().unwrap().port(), Arc::<AtomicUsize>::default());
        let counted = Arc::clone(&taken);
        std::thread::spawn(move || {
            let mut lines = Vec::new();
            for line in listener.incoming() {
                lines.push(line.unwrap());
                counted.fetch_add(1, Ordering::Relaxed);
            }
        });
        Self { port, taken }
    }

    fn is_asked(&self) {
        until("it is asked", 60, || self.taken.load(Ordering::Relaxed) > 0);
    }
}

/// A gateway under `more`, which listens at the second port too for its own pages.
fn gateway(world: &World, more: &str) -> (Server, u16) {
    let (port, admin) = (free_port(), free_port());
    write(world, (port, admin), more);
    (world.gateway(port), admin)
}

fn write(world: &World, (port, admin): (u16, u16), more: &str) {
    world.write_config(&format!(
        "version: 1
server: {{http: {{addr: '127.0.0.1:{port}', timeout: 1s}}, admin: {{addr: '127.0.0.1:{admin}'}}}}
{more}"
    ));
}

fn data(world: &World, more: &str) -> String {
    format!("data: {{dir: '{}'{more}}}\n", world.data().display())
}

fn serving(urls: &[u16]) -> String {
    let endpoint = |port: &u16| format!("{{url: 'http://127.0.0.1:{port}', name: e{port}}}");
    let endpoints: Vec<_> = urls.iter().map(endpoint).collect();
    format!("models: {{demo: {{endpoints: [{}]}}}}\n", endpoints.join(", "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_exchange_takes_no_longer_than_the_server_lets_it() {
    let (world, silent) = (World::new(), Silent::new());
    let more = data(&world, "") + &serving(&[silent.port]);
    let (mut gateway, _) = gateway(&world, &more);
    gateway.start();
    let began = Instant::now();
    let answer = Client::new(gateway.port).ask(&Ask::default()).await;
    let took = began.elapsed();
    assert_eq!(answer.status, 504, "after {took:?}: {answer:?}");
    assert!(took > Duration::from_millis(900) && took < Duration::from_secs(10), "{took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_endpoint_that_left_is_not_spoken_of_any_more() {
    let world = World::new();
    let replica = world.replica("replica", "");
    let gone = free_port();
    let asked = |names: &[(&str, u16)]| {
        let one = |(name, port): &(&str, u16)| {
            format!("{{url: 'http://127.0.0.1:{port}', name: {name}}}")
        };
        let all: Vec<_> = names.iter().map(one).collect();
        format!("{}upstreams: [{}]\n", data(&world, ""), all.join(", "))
    };
    // It says nothing of its models, and the other is served, and refuses.
    let served =
        format!("{}{}", asked(&[("here", replica.port), ("mute", gone)]), serving(&[gone]));
    let (mut gateway, admin) = gateway(&world, &served);
    gateway.start();
    let client = Client::new(gateway.port);
    let left = format!("e{gone}");
    let metrics = || get(gateway.port, "/metrics").unwrap().1;
    let (began, mut turn) = (Instant::now(), 0);
    while !metrics().contains(&format!("pointsman_attempts_total{{instance=\"{left}\"")) {
        assert!(began.elapsed() < Duration::from_secs(60), "{}", metrics());
        // One conversation has one home: each of these is another.
        turn += 1;
        let session = Some(format!("s{turn}"));
        client.ask(&Ask { tokens: 1, session, ..Ask::default() }).await;
    }
    let health = || get(gateway.port, "/health").unwrap().1;
    until("its silence is noticed", 60, || health().contains("discovery mute"));
    write(&world, (gateway.port, admin), &asked(&[("here", replica.port)]));
    until("they have left", 60, || {
        let (health, metrics) = (health(), metrics());
        !health.contains("mute") && !health.contains(&left) && !metrics.contains(&left)
    });
    // Nor is it again, when an ask that was under way is over.
    assert!(health().contains("\"healthy\":true"), "{}", health());
    assert!(metrics().contains("instance=\"here\""), "{}", metrics());
}

#[test]
fn without_figures_the_admin_port_says_how_the_process_is() {
    let world = World::new();
    let replica = world.replica("replica", "");
    let more = data(&world, "") + &serving(&[replica.port]);
    let (mut gateway, admin) =
        gateway(&world, &(more + "monitoring: {prometheus: {enabled: false}}\n"));
    gateway.start();
    let status = |path: &str| get(admin, path).map(|(status, _)| status);
    assert_eq!(status("/health"), Some(200));
    assert_eq!(status("/ready"), Some(200));
    assert_eq!(status("/metrics"), Some(404));
}

#[test]
fn a_start_that_waits_for_its_store_takes_no_connections_and_heeds_a_stop() {
    let (world, redis) = (World::new(), Silent::new());
    let store = format!(", redis: {{addr: '127.0.0.1:{}'}}", redis.port);
    let more = data(&world, &store) + &serving(&[free_port()]);
    let (mut gateway, _) = gateway(&world, &more);
    gateway.process.spawn();
    redis.is_asked();
    let refused = TcpStream::connect(("127.0.0.1", gateway.port)).map_err(|error| error.kind());
    assert_eq!(refused.unwrap_err(), std::io::ErrorKind::ConnectionRefused);
    let said = gateway.process.said();
    assert!(gateway.process.is_alive() && !said.contains(" serves http"), "{said}");
    let began = Instant::now();
    let status = gateway.process.stop();
    let took = began.elapsed();
    assert!(status.success(), "{status} {}", gateway.process.said());
    // The store is waited for longer than that.
    assert!(took < Duration::from_secs(5), "it took {took:?}");
    assert!(gateway.process.said().contains("told to stop while it started"));
}

#[test]
fn a_reader_that_has_gone_breaks_no_command_and_a_full_disk_is_told() {
    let world = World::new();
    world.write_config("version: 1\n");
    let check = |stdout: Stdio| {
        let print = words("check --print --config").into_iter();
        let print = print.chain([world.path("config.yaml").into()]);
        let mut check = pointsman(&print.collect::<Vec<_>>());
        let running = check.stdout(stdout).stderr(Stdio::piped()).spawn().unwrap();
        running.wait_with_output().unwrap()
    };
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let told = check(writer.into());
    assert!(told.status.success() && told.stderr.is_empty(), "{}", printed(&told));
    let full = std::fs::File::options().write(true).open("/dev/full").unwrap();
    let told = check(full.into());
    assert_eq!(told.status.code(), Some(1), "{}", printed(&told));
    assert!(printed(&told).contains("cannot write to standard output"), "{}", printed(&told));
}
