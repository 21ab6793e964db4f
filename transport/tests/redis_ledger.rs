//! The scripts against their specification: the same random asks to the pure ledger and to a real Redis, which must agree on
//! every answer and every balance, standalone and in a cluster.
//!
//! `POINTSMAN_LEDGER_SCRIPTS=1000` runs so many random scripts instead of the usual few; `POINTSMAN_LEDGER_SEED=7` starts at
//! that one.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/bench.rs"]
mod bench;
#[path = "redis/script.rs"]
mod script;
#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;

use core::time::Duration;

use bench::{Bench, START, WORDS, scripts, word};
use control::id::AccountId;
use control::quota::{Ask, At, LedgerConfig, Reply};
use control::{Instant, Wall};
use script::{Belief, Step};
use server::Server;
use transport::redis::{Settings, Store, Together, Told};

#[tokio::test]
async fn the_scripts_answer_as_the_ledger_does() {
    let server = Server::start();
    let mut bench = Bench::new(settings(&[&server], false));
    let compared = bench.compare(scripts(60), 1).await;
    println!("{compared} asks compared: {:?}", bench.heard);
    for word in WORDS {
        let heard = bench.heard.get(word).copied().unwrap_or_default();
        assert!(heard >= 20, "`{word}` was answered {heard} times: too seldom to compare anything");
    }
}

#[tokio::test]
async fn the_scripts_answer_alike_in_a_cluster_and_touch_one_slot_each() {
    let servers = Server::cluster(3);
    let mut bench = Bench::new(settings(&servers.iter().collect::<Vec<_>>(), true));
    let compared = bench.compare(scripts(20), 4).await;
    println!("{compared} asks compared");
    assert!(compared > 1_500, "only {compared} asks were made");
    let mut used = 0;
    for server in &servers {
        let keys: usize = server.ask("DBSIZE").parse().unwrap();
        used += usize::from(keys > 0);
    }
    assert_eq!(used, 3, "tenants live on all nodes");
    for tenant in 0..64 {
        let slots = transport::redis::keys(AccountId(tenant))
            .map(|key| servers[0].ask(&format!("CLUSTER KEYSLOT {key}")));
        assert!(slots.iter().all(|slot| *slot == slots[0]), "{slots:?}");
    }
}

/// More ends than one call forgets: what is due to be forgotten is forgotten all the same, and what came after it is not.
#[tokio::test]
async fn a_backlog_of_ends_is_forgotten_as_if_there_were_none() {
    let server = Server::start();
    let mut bench = Bench::new(settings(&[&server], false));
    let bounds = LedgerConfig { remember: Duration::from_secs(50), ..LedgerConfig::default() };
    let ask = |ask| Step::Ask { tenant: 0, believed: Belief::None, confirmed: Belief::None, ask };
    let hold = |id| script::request(id);
    let mut steps: Vec<Step> = (0..300).map(|id| ask(Ask::Refund { hold: hold(id) })).collect();
    steps.push(Step::Wait { micros: 60_000_000 });
    steps.push(ask(Ask::Refund { hold: hold(1_000) }));
    // These were forgotten with the call before, though it did not come to them.
    let again = [299, 250, 100, 80];
    steps.extend(again.map(|id| ask(Ask::Reserve(script::draw(hold(id))))));
    steps.extend(again.map(|id| ask(Ask::Refund { hold: hold(id) })));
    // And these are remembered, while what they were before is swept away.
    steps.extend((0..10).map(|id| ask(Ask::Refund { hold: hold(2_000 + id) })));
    steps.extend(again.map(|id| ask(Ask::Reserve(script::draw(hold(id))))));
    for size in [1, 7, 64] {
        let calls = steps.chunks(size).flat_map(|chunk| [chunk, &[Step::Go]].concat());
        bench.run(&bounds, &calls.collect::<Vec<_>>(), 1).await.unwrap();
    }
}

#[tokio::test]
async fn several_asks_in_one_call_are_answered_as_one_after_the_other() {
    let server = Server::start();
    let mut bench = Bench::new(settings(&[&server], false));
    let compared = bench.compare_batches(scripts(60)).await;
    println!("{compared} asks compared, up to {} in a call: {:?}", bench.most, bench.heard);
    assert_eq!(bench.most, 64, "calls are of all sizes");
    for word in WORDS {
        let heard = bench.heard.get(word).copied().unwrap_or_default();
        assert!(heard >= 20, "`{word}` was answered {heard} times: too seldom to compare anything");
    }
}

/// The bench itself: answers that two asks of one call hear of each other are noticed.
#[tokio::test]
async fn answers_in_the_wrong_order_are_noticed() {
    let server = Server::start();
    let mut bench = Bench::new(settings(&[&server], false));
    bench.mistakes = true;
    let bounds = LedgerConfig::default();
    let ask = |ask| Step::Ask { tenant: 0, believed: Belief::None, confirmed: Belief::None, ask };
    let reserve = |id| ask(Ask::Reserve(script::draw(script::request(id))));
    // Alike but for what they are about.
    let noticed = bench.run(&bounds, &[reserve(1), reserve(2)], 1).await;
    assert!(noticed.is_err_and(|why| why.contains("the ledger")));
    let other = [reserve(1), ask(Ask::Refund { hold: script::request(1) })];
    assert!(bench.run(&bounds, &other, 1).await.is_err());
    bench.mistakes = false;
    assert_eq!(bench.run(&bounds, &other, 1).await, Ok(2));
}

/// More expiries than one call performs: whoever is asked about has expired, and the rest follows call by call.
#[tokio::test]
async fn a_backlog_of_expiries_is_worked_off_in_bounded_steps() {
    let server = Server::start();
    let store = Store::new(settings(&[&server], false), LedgerConfig::default(), 1).unwrap();
    let (tenant, bounds) = (AccountId(9), LedgerConfig::default());
    let (store, bounds) = (&store, &bounds);
    let ask = |seconds: u64, ask: Ask| async move {
        let wall = Wall::from_millis(START + seconds * 1_000);
        let at = Some(At { now: Instant::from_nanos(seconds * 1_000_000_000), wall });
        let together = Together { at, token: "token", bounds };
        let told = Told { believed: None, confirmed: None };
        let mut replies = store.run_script(tenant, &[(&ask, told)], &together).await.unwrap().1;
        let balances = store.balances(tenant).await.unwrap();
        (replies.remove(0), balances[0].1.outstanding.tokens.0)
    };
    for id in 0..200 {
        let (reply, held) = ask(1, Ask::Reserve(script::draw(script::request(id)))).await;
        assert!(matches!(reply, Reply::Granted { .. }), "{reply:?}");
        assert_eq!(held, id + 1);
    }
    let total = script::draw(script::request(0)).amount;
    let (reply, held) = ask(100, Ask::Extend { hold: script::request(199), total }).await;
    assert_eq!(word(&reply), "ended", "it was due, though it was the last");
    assert_eq!(held, 200 - 64 - 1);
    let mut left = Vec::new();
    for _ in 0..3 {
        left.push(ask(100, Ask::Refund { hold: script::request(999) }).await.1);
    }
    assert_eq!(left, [71, 7, 0]);
}

fn settings(servers: &[&Server], cluster: bool) -> Settings {
    Settings {
        addresses: servers.iter().map(|server| ("127.0.0.1".to_owned(), server.port)).collect(),
        cluster,
        // Patient: the machine may be busy, and this is no test of speed.
        dial_timeout: Duration::from_secs(10),
        call_timeout: Duration::from_secs(10),
        ..Settings::default()
    }
}
