//! What roles before one Redis know of a stream that its chat role keeps: where that log falls silent, and what counts of it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use control::rate::RateUnit;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Instant, sleep, timeout};
use tokio_util::task::AbortOnDropHandle;
use transport::config::Role;
use transport::redis::rate_key;

use crate::kept::{Client, body, hashing, last, numbers, plain, resumed, used};
use crate::server::Server;
use crate::world::{Answer, LONG, Worker, World};

/// Tokens a minute: each is worth 600 ms.
const TPM: u64 = 100;

async fn chat(redis: u16, worker: &Worker, more: &str) -> World {
    let text = format!(
        "server: {{grpc: {{addr: '127.0.0.1:0'}}}}\nmodels: {{m: {{endpoints: [{{url: '{}', name: w0}}]}}}}\n{more}",
        worker.url()
    );
    World::sharing(Role::Chat, redis, &text).await
}

async fn gateway(redis: u16, chats: &[&World], more: &str) -> World {
    let chats: Vec<_> =
        chats.iter().map(|chat| format!("{{url: 'chat://{}'}}", chat.rpc.unwrap())).collect();
    let text = format!("chats: [{}]\n{more}", chats.join(", "));
    World::sharing(Role::Gateway, redis, &text).await
}

/// A way to a server that can be cut.
struct Road {
    port: u16,
    cut: Arc<AtomicBool>,
    _carrying: AbortOnDropHandle<()>,
}

impl Road {
    async fn to(port: u16) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let own = listener.local_addr().unwrap().port();
        let cut = Arc::new(AtomicBool::new(false));
        let is_cut = Arc::clone(&cut);
        let carrying = tokio::spawn(async move {
            loop {
                let (mut here, _) = listener.accept().await.unwrap();
                let is_cut = Arc::clone(&is_cut);
                tokio::spawn(async move {
                    let mut there = TcpStream::connect(("127.0.0.1", port)).await.unwrap();
                    let broken = async {
                        while !is_cut.load(Ordering::Relaxed) {
                            sleep(Duration::from_millis(2)).await;
                        }
                    };
                    tokio::select! {
                        biased;
                        () = broken => {}
                        _ = tokio::io::copy_bidirectional(&mut here, &mut there) => {}
                    }
                });
            }
        });
        Self { port: own, cut, _carrying: AbortOnDropHandle::new(carrying) }
    }

    fn cut(&self, cut: bool) {
        self.cut.store(cut, Ordering::Relaxed);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_log_that_falls_silent_is_followed_by_whoever_runs_the_stream() {
    let redis = Server::start();
    let (road, quick) = (Road::to(redis.port).await, hashing(Duration::ZERO));
    let more = json!({"max_tokens": 120});
    let whole = World::before(&[quick.url()], "").await;
    let unbroken = Answer::of(whole.begin("/v1/chat/completions", &body(&more)).await).await;
    let worker = hashing(Duration::from_millis(90));
    let runs_it = chat(road.port, &worker, "").await;
    // This one reads the same log, and knows nothing more of the stream than the gateway does.
    let reads_it = chat(redis.port, &quick, "").await;
    let first = gateway(redis.port, &[&runs_it], "").await;
    let second = gateway(redis.port, &[&reads_it, &runs_it], "").await;
    let begun = Client::begin(&first, &more, &[]).await.until("id: 8\n").await;
    let id = begun.id.clone();
    drop(begun);
    road.cut(true);
    // Behind what is known there; and as two readers of the log, of whom the chat role has heard of none.
    let again = Client::again(&second, &id, 2).await.until("id: 5\n").await;
    let mut told = again.told.clone();
    told.truncate(told.rfind("\n\n").unwrap() + 2);
    let after = last(&told);
    drop(again);
    let again = Client::again(&second, &id, after).await.until("id: 20\n").await;
    // When it can be read again, the log cuts nobody off for what it says of them.
    road.cut(false);
    let reached = async {
        while !runs_it.get("/metrics").await.contains("pointsman_streams_cut_off 0\n") {
            sleep(Duration::from_millis(20)).await;
        }
    };
    timeout(LONG, reached).await.unwrap();
    assert!(!runs_it.get("/metrics").await.contains("outcome=\"completed\""), "it still runs");
    told += &again.finish().await;
    assert_eq!(numbers(&told), (3..=last(&told)).collect::<Vec<_>>(), "each once: {told}");
    let all = plain(&told);
    assert!(all.is_done() && !told.contains("error"), "{told}");
    let from_third = unbroken.events()[2..].to_vec();
    let text = |events: &[serde_json::Value]| -> String {
        let texts =
            events.iter().filter_map(|event| event["choices"][0]["delta"]["content"].as_str());
        texts.collect()
    };
    assert_eq!(all.told(), text(&from_third), "token for token");
    assert_eq!(used(&runs_it).await, used(&whole).await, "one bill");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_who_runs_it_has_died_the_client_is_told_so_within_a_bound() {
    let redis = Server::start();
    let (slow, quick) = (hashing(Duration::from_millis(90)), hashing(Duration::ZERO));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
    let dying = runtime.unwrap();
    let port = redis.port;
    let (tell, told) = tokio::sync::oneshot::channel();
    let running = dying.spawn(async move {
        let _ = tell.send(chat(port, &slow, "").await);
        std::future::pending::<()>().await;
    });
    let runs_it = told.await.unwrap();
    let reads_it = chat(redis.port, &quick, "").await;
    let world = gateway(redis.port, &[&reads_it, &runs_it], "").await;
    let first = gateway(redis.port, &[&runs_it], "").await;
    let begun = Client::begin(&first, &json!({}), &[]).await.until("id: 8\n").await;
    let id = begun.id.clone();
    drop(begun);
    running.abort();
    dying.shutdown_background();
    let began = Instant::now();
    let told = Client::again(&world, &id, 2).await.finish().await;
    // A sign counts for 3 s, a second more is waited, and who can be asked for 8 s.
    assert!(began.elapsed() < Duration::from_secs(14), "{:?}", began.elapsed());
    assert_eq!(told.matches("\"code\":\"stream_gateway_lost\"").count(), 1, "{told}");
    assert!(!told.contains("[DONE]"), "{told}");
    drop(runs_it);
}

/// Waits until nothing is held any more, and returns how many tokens a bucket that was empty has been told of. To be asked while
/// something is held: what it is told counts from that moment.
async fn rated(redis: &Server, gateway: &World) -> u64 {
    let tenant = gateway.gateway.accounts().ids().tenant("default");
    let bucket = rate_key(tenant, tenant, RateUnit::Tpm);
    let (began, mut before) = (Instant::now(), micros());
    loop {
        let asked = micros();
        let said = redis.ask(&format!("GET {bucket}"));
        let after = micros();
        // The instant when it will all have drained; behind it, what is held.
        if let Ok(drained) = said.parse::<u64>() {
            let each = 60_000_000 / TPM;
            let (least, most) = ((drained - after).div_ceil(each), (drained - before) / each);
            assert_eq!(least, most, "looked at often enough");
            return least;
        }
        assert!(began.elapsed() < LONG, "{said:?}");
        // What is not said yet may come to be as soon as this was asked.
        before = asked;
        sleep(Duration::from_millis(5)).await;
    }
}

fn micros() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_micros().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_counts_whole_and_once_among_the_tokens_a_minute_whoever_reads_it() {
    let limits = format!("tenants: {{default: {{tpm: {TPM}}}}}");
    let more = json!({"max_tokens": 60});
    for stays in [false, true] {
        let redis = Server::start();
        // Who reads the log elsewhere is heard of within a second.
        let worker = hashing(Duration::from_millis(50));
        let chat = chat(redis.port, &worker, "").await;
        let gateways = [
            gateway(redis.port, &[&chat], &limits).await,
            gateway(redis.port, &[&chat], &limits).await,
        ];
        let begun = Client::begin(&gateways[0], &more, &[]).await.until("id: 12\n").await;
        let (id, after) = (begun.id.clone(), begun.last());
        // Gone, or a connection that nobody has heard of the end of.
        let kept = stays.then_some(begun);
        let reads = async {
            // More than once, and from the beginning, too.
            drop(Client::again(&gateways[1], &id, after).await.until("id: 20\n").await);
            let whole = resumed(&gateways[1], &id, 0, &[]).await;
            assert!(plain(&whole.text).is_done(), "{whole:?}");
        };
        let (rated, ()) = tokio::join!(rated(&redis, &gateways[0]), reads);
        assert_eq!(rated, used(&chat).await, "stays: {stays}");
        if let Some(kept) = kept {
            let told = kept.finish().await;
            assert!(told.contains("\"code\":\"stream_taken_over\""), "{told}");
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_nobody_comes_back_to_counts_as_far_as_it_was_generated() {
    let limits = format!("tenants: {{default: {{tpm: {TPM}}}}}");
    let redis = Server::start();
    let worker = hashing(Duration::from_millis(50));
    let chat = chat(redis.port, &worker, "streams: {grace: 1s}").await;
    let world = gateway(redis.port, &[&chat], &limits).await;
    drop(Client::begin(&world, &json!({"max_tokens": 80}), &[]).await.until("id: 3\n").await);
    let rated = rated(&redis, &world).await;
    // Twenty a second, for a second behind the third.
    assert!(rated.abs_diff(used(&chat).await) <= 1, "{rated} {}", used(&chat).await);
    assert!(rated >= 16, "{rated}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_gateway_that_stops_counts_what_it_knows_of_a_stream_that_goes_on() {
    let limits = format!("tenants: {{default: {{tpm: {TPM}}}}}");
    let redis = Server::start();
    let worker = hashing(Duration::from_millis(100));
    let chat = chat(redis.port, &worker, "").await;
    let world = gateway(redis.port, &[&chat], &limits).await;
    drop(Client::begin(&world, &json!({"max_tokens": 60}), &[]).await.until("id: 3\n").await);
    world.gateway.health().set_serving(false);
    let rated = rated(&redis, &world).await;
    assert!(worker.running_now().await == 1, "it goes on");
    assert!((1..40).contains(&rated), "{rated}");
}
