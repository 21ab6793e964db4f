//! What gateways share beside the ledger, in a real Redis: the scripts against their specification, the keys byte for byte,
//! and a server that is somebody else's, full, silent, a replica, or loading.
//!
//! `POINTSMAN_WAVE_SEEDS=1000` compares so many random runs instead of the usual few.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/script.rs"]
#[allow(dead_code, reason = "shared with tests that ask a ledger")]
mod script;
#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;
#[path = "redis/shared.rs"]
mod shared;

use core::time::Duration;
use std::time::Instant;

use control::id::{AccountId, CallerToken, Digest, Minted, RequestId, SessionKey};
use control::plane::Idempotency;
use control::quota::{LedgerConfig, OwnerId};
use control::rate::RateUnit;
use control::shared::{
    Claimant, Consult, HomeAnswer, KeyAnswer, KeyClaim, Note, Noted, RateCorrection, RateTake,
    RatesAnswer, SharedOpId,
};
use server::Server;
use shared::{ANSWERS, Both, Lapse};
use transport::redis::{
    Settings, Store, StoreError, Wave, home_keys, key_key, rate_key, scoped_name,
};

const TENANT: AccountId = AccountId(0xa11ce);

#[tokio::test]
async fn the_scripts_answer_as_the_pure_store_does() {
    let server = Server::start();
    let all = [&server];
    let mut heard = std::collections::BTreeMap::new();
    let seeds = std::env::var("POINTSMAN_WAVE_SEEDS").map_or(20, |seeds| seeds.parse().unwrap());
    for seed in 0..seeds {
        server.ask("FLUSHALL");
        let mut both = Both::new(wave(settings(&[&server], false)), Deleting(&all));
        both.compare(seed, 400).await;
        for (answer, count) in &both.heard {
            *heard.entry(*answer).or_insert(0) += count;
        }
    }
    println!("{} asks compared: {heard:?}", seeds * 400);
    for answer in ANSWERS {
        let count = heard.get(answer).copied().unwrap_or(0);
        assert!(count >= 20, "`{answer}` was heard {count} times: too seldom to compare anything");
    }
}

#[tokio::test]
async fn the_scripts_answer_alike_in_a_cluster_and_touch_one_slot_each() {
    let servers = Server::cluster(3);
    let all: Vec<&Server> = servers.iter().collect();
    let mut both = Both::new(wave(settings(&all, true)), Deleting(&all));
    both.compare(1, 1_200).await;
    let slot = |key: &str| servers[0].ask(&format!("CLUSTER KEYSLOT {key}"));
    for number in 0..64 {
        let [home, epoch] = home_keys(&scoped_name("acme", &format!("{{a}}:{number}")));
        assert_eq!(slot(&home), slot(&epoch), "{home}");
        let (account, other) = (AccountId(number), AccountId(number * 7 + 1));
        let buckets =
            [rate_key(TENANT, account, RateUnit::Rpm), rate_key(TENANT, other, RateUnit::Tpm)];
        assert_eq!(slot(&buckets[0]), slot(&buckets[1]), "{buckets:?}");
    }
    let mut used = 0;
    for server in &servers {
        used += usize::from(server.ask("DBSIZE") != "0");
    }
    assert_eq!(used, 3, "what is shared lies on all nodes");
}

#[tokio::test]
async fn the_contracts_keys_say_what_it_says_and_none_lives_for_ever() {
    let server = Server::start();
    let wave = wave(settings(&[&server], false));
    let consulted = wave.consult(&consult(), Some("s1")).await;
    assert!(consulted.parts.iter().all(|(_, error)| error.is_none()), "{consulted:?}");
    let home = noted(Noted::Home {
        session: SessionKey(1),
        endpoint: "replica-a".into(),
        believed: 0,
        ttl: 3_600_000_000,
    });
    let housed = wave.note(&home, Some("s1")).await.unwrap().unwrap();
    assert_eq!(housed.home, HomeAnswer::At { endpoint: "replica-a".into(), epoch: 1 });
    assert_eq!(server.ask("GET session_affinity:s1"), "replica-a");
    assert_eq!(server.ask("GET {session_affinity:s1}:epoch"), "1");
    let key = key_key(TENANT, Digest(7));
    assert_eq!(key, format!("chat:idempotent:{:016x}.{:032x}", 0xa11ce, 7));
    assert!(server.ask(&format!("GET {key}")).starts_with("running "));
    let lives = |key: &str| server.ask(&format!("PTTL {key}")).parse::<i64>().unwrap();
    let near = |key: &str, seconds: i64| {
        let left = lives(key);
        assert!(
            (seconds * 1_000 - 30_000..=seconds * 1_000).contains(&left),
            "{key} lives {left} ms"
        );
    };
    near("session_affinity:s1", 3_600);
    near("{session_affinity:s1}:epoch", 7_200);
    near(&key, 600 + 60);
    near(&rate_key(TENANT, TENANT, RateUnit::Rpm), 1 + 60);
    // Tokens are held in slots of five minutes.
    let held = lives(&rate_key(TENANT, TENANT, RateUnit::Tpm));
    assert!((600_000..=600_000 + 300_000 + 60_000).contains(&held), "{held}");
    wave.note(&noted(ended(true)), None).await.unwrap();
    assert!(server.ask(&format!("GET {key}")).starts_with("done "));
    near(&key, 86_400 + 60);
    assert_eq!(server.ask("DBSIZE"), "5", "there is no other key");
}

#[tokio::test]
async fn a_key_is_one_claimants_over_all_gateways_until_its_lease_is_over() {
    let server = Server::start();
    let waves = [wave(settings(&[&server], false)), wave(settings(&[&server], false))];
    let claims = (0..40).map(|number| {
        let wave = &waves[number % 2];
        let by = claimant(number as u64);
        async move {
            wave.claim(TENANT, None, 60_000_000, &KeyClaim { idempotency: KEY, by }).await.unwrap()
        }
    });
    let answers = futures_util::future::join_all(claims).await;
    let begun = answers.iter().filter(|answer| **answer == KeyAnswer::Begun).count();
    assert_eq!(begun, 1, "{answers:?}");
    assert!(answers.iter().all(|answer| matches!(answer, KeyAnswer::Begun | KeyAnswer::InFlight)));
}

#[tokio::test]
async fn gateways_that_take_at_once_take_no_more_than_the_limit() {
    let server = Server::start();
    let waves = [wave(settings(&[&server], false)), wave(settings(&[&server], false))];
    // A minute's worth of a hundred an hour: nothing drains meanwhile that would count.
    let take = RateTake { drain: 36_000_000, burst: 3_600_000_000, ..take(RateUnit::Rpm) };
    let takes = (0..200).map(|number| {
        let wave = &waves[number % 2];
        async move { wave.take(TENANT, None, 600_000_000, &[take]).await.unwrap() }
    });
    let answers = futures_util::future::join_all(takes).await;
    let taken = answers.iter().filter(|answer| matches!(answer, RatesAnswer::Taken { .. })).count();
    assert_eq!(taken, 100);
}

#[tokio::test]
async fn a_session_that_two_gateways_move_at_once_lives_where_the_first_one_said() {
    let server = Server::start();
    let waves = [wave(settings(&[&server], false)), wave(settings(&[&server], false))];
    for believed in 0..20 {
        let settle = ["a", "b"].map(|endpoint| Noted::Home {
            session: SessionKey(1),
            endpoint: format!("{endpoint}{believed}").into(),
            believed,
            ttl: 60_000_000,
        });
        let (one, two) =
            tokio::join!(waves[0].set_home("s1", &settle[0]), waves[1].set_home("s1", &settle[1]));
        let (one, two) = (one.unwrap(), two.unwrap());
        assert_eq!(one, two, "both know where it lives");
        let HomeAnswer::At { epoch, .. } = one else { panic!("{one:?}") };
        assert_eq!(epoch, believed + 1, "it moved once");
    }
}

#[tokio::test]
async fn foreign_data_under_our_keys_is_named_and_left_alone() {
    let server = Server::start();
    let wave = wave(settings(&[&server], false));
    let [home, epoch] = home_keys("s1");
    let (key, bucket) = (key_key(TENANT, Digest(7)), rate_key(TENANT, TENANT, RateUnit::Tpm));
    let all = [home, epoch, key, bucket];
    for foreign in ["LPUSH % precious", "SET % precious"] {
        server.ask("FLUSHALL");
        for key in &all {
            server.ask(&foreign.replace('%', key));
        }
        let brought = wave.consult(&consult(), Some("s1")).await;
        let consulted = &brought.consulted;
        assert_eq!((consulted.rates, consulted.idempotency, &consulted.home), (None, None, &None));
        for (part, error) in brought.parts {
            let error = error.unwrap_or_else(|| panic!("{part} read what is not its own"));
            assert!(matches!(error, StoreError::Foreign(_)), "{part}: {error}");
            assert!(!error.to_string().contains("precious"), "{error}");
        }
        for noted in [
            ended(true),
            ended(false),
            corrected(),
            moved(),
            Noted::Homeless { session: SessionKey(1), believed: 9 },
        ] {
            let told = wave.note(&self::noted(noted.clone()), Some("s1")).await;
            assert!(matches!(told, Err(StoreError::Foreign(_))), "{noted:?}: {told:?}");
        }
        let kind = if foreign.starts_with("SET") { "string" } else { "list" };
        for key in &all {
            assert_eq!(server.ask(&format!("TYPE {key}")), kind, "{key}");
        }
    }
}

#[tokio::test]
async fn a_server_that_takes_no_writes_says_why_and_nothing_is_half_done() {
    let server = Server::start();
    let wave = wave(settings(&[&server], false));
    wave.take(TENANT, None, 1, &[take(RateUnit::Rpm)]).await.unwrap();
    server.ask("FLUSHALL");
    server.ask("CONFIG SET maxmemory 1");
    let brought = wave.consult(&consult(), Some("s1")).await;
    for (part, error) in &brought.parts[..2] {
        assert!(matches!(error, Some(StoreError::Full(_))), "{part}: {error:?}");
    }
    assert_eq!(brought.consulted.home, Some(HomeAnswer::Nowhere { epoch: 0 }), "that only reads");
    server.ask("CONFIG SET maxmemory 0");
    assert_eq!(server.ask("DBSIZE"), "0");
    server.ask("REPLICAOF 127.0.0.1 1");
    let error = wave.take(TENANT, None, 1, &[take(RateUnit::Rpm)]).await.unwrap_err();
    assert!(matches!(error, StoreError::NotServing(_)), "{error}");
    // A new connection sees at once that this is a replica.
    let error = wave.take(TENANT, None, 1, &[take(RateUnit::Rpm)]).await.unwrap_err();
    assert!(matches!(error, StoreError::Away(_)), "{error}");
}

#[tokio::test]
async fn a_silent_server_costs_the_deadline_once_for_all_parts_and_a_dead_one_nothing() {
    let mut server = Server::start();
    let quick = Duration::from_millis(300);
    let wave = wave(Settings { call_timeout: quick, ..settings(&[&server], false) });
    let warm = wave.consult(&consult(), Some("s1")).await;
    assert!(warm.parts.iter().all(|(_, error)| error.is_none()), "{warm:?}");
    server.freeze();
    let started = Instant::now();
    let brought = wave.consult(&consult(), Some("s1")).await;
    assert!(started.elapsed() < 2 * quick, "{:?}", started.elapsed());
    assert_eq!(brought.parts.len(), 3);
    for (part, error) in brought.parts {
        assert!(matches!(error, Some(StoreError::Unanswered(300))), "{part}: {error:?}");
    }
    server.thaw();
    server.kill();
    let started = Instant::now();
    for _ in 0..100 {
        let brought = wave.consult(&consult(), Some("s1")).await;
        assert!(brought.parts.iter().all(|(_, error)| error.is_some()), "{brought:?}");
    }
    assert!(started.elapsed() < Duration::from_secs(1), "{:?}", started.elapsed());
}

#[tokio::test]
async fn what_is_asked_beside_the_ledger_takes_no_place_from_it() {
    let server = Server::start();
    let quick = Duration::from_millis(300);
    let settings =
        Settings { call_timeout: quick, in_flight_max: 2, ..settings(&[&server], false) };
    let store = Store::new(settings, LedgerConfig::default(), 7).unwrap();
    let wave = Wave::beside(&store);
    wave.home("s1").await.unwrap();
    server.freeze();
    let (homes, ledger) = tokio::join!(
        futures_util::future::join_all((0..5).map(|_| wave.home("s1"))),
        store.salt([0; 32])
    );
    let busy = homes.iter().filter(|home| matches!(home, Err(StoreError::Busy(2)))).count();
    assert_eq!(busy, 3, "{homes:?}");
    assert_eq!(ledger, Err(StoreError::Unanswered(300)), "it had a place");
    server.thaw();
}

#[tokio::test]
async fn a_server_that_forgot_the_scripts_is_told_them_again_and_a_user_who_may_not_hears_what_it_needs()
 {
    let server = Server::start();
    let shared = wave(settings(&[&server], false));
    for _ in 0..2 {
        let brought = shared.consult(&consult(), Some("s1")).await;
        assert!(brought.parts.iter().all(|(_, error)| error.is_none()), "{brought:?}");
        server.ask("SCRIPT FLUSH");
    }
    server.ask("ACL SETUSER gate on >right ~pointsman:* +@all");
    let user = Settings {
        user: Some("gate".to_owned()),
        password: Some(transport::config::Secret::new("right".to_owned())),
        ..settings(&[&server], false)
    };
    let brought = wave(user).consult(&consult(), Some("s1")).await;
    let errors: Vec<_> = brought
        .parts
        .into_iter()
        .map(|(part, error)| (part, error.map(|error| error.to_string())))
        .collect();
    assert!(errors.contains(&("rates", None)), "{errors:?}");
    for (_, error) in errors.iter().filter(|(part, _)| *part != "rates") {
        let error = error.as_deref().unwrap();
        assert!(error.contains("refuses its user") && error.contains("*session*"), "{error}");
    }
}

/// What a consultation adds to an admission, beside a plain `GET` on a connection of the same kind, in turns.
#[tokio::test]
async fn a_consultation_costs_about_what_one_round_trip_does() {
    const TURNS: usize = 2_000;
    let server = Server::start();
    let wave = wave(settings(&[&server], false));
    let client = redis::Client::open(format!("redis://127.0.0.1:{}", server.port)).unwrap();
    let mut plain = client.get_multiplexed_async_connection().await.unwrap();
    let mut spent = [const { Vec::new() }; 4];
    for turn in 0..TURNS {
        let by = claimant(turn as u64);
        let idempotency = Idempotency { key: Digest(turn as u128), ..KEY };
        let all = Consult { idempotency: Some(KeyClaim { idempotency, by }), ..consult() };
        let roomy = all.rates.iter().map(|take| RateTake { drain: 1, ..*take }).collect();
        let all = Consult { rates: roomy, ..all };
        let rates = Consult { idempotency: None, home: None, ..all.clone() };
        let home = Consult { rates: Vec::new(), ..rates.clone() };
        let home = Consult { home: Some(SessionKey(1)), ..home };
        let started = Instant::now();
        let _: Option<String> =
            redis::cmd("GET").arg("nothing").query_async(&mut plain).await.unwrap();
        spent[0].push(started.elapsed());
        for (at, consult) in [home, rates, all].into_iter().enumerate() {
            let started = Instant::now();
            let brought = wave.consult(&consult, Some("s1")).await;
            spent[at + 1].push(started.elapsed());
            assert!(brought.parts.iter().all(|(_, error)| error.is_none()), "{brought:?}");
        }
    }
    let mut medians = Vec::new();
    for (what, times) in
        ["GET", "a home", "two rates", "rates, key and home"].iter().zip(&mut spent)
    {
        times.sort();
        let (median, last) = (times[TURNS / 2], times[TURNS * 99 / 100]);
        println!("{what}: median {median:?}, 99th percentile {last:?}");
        medians.push(median);
    }
    // Three parts at once are one round trip and not three.
    assert!(medians[3] < medians[0] * 6 + Duration::from_millis(2), "{medians:?}");
}

#[tokio::test]
async fn numbers_a_double_cannot_hold_are_refused_before_they_are_sent() {
    // Nobody listens there: what is refused here was never sent.
    let nowhere = Settings { addresses: vec![("127.0.0.1".to_owned(), 1)], ..Settings::default() };
    let take = RateTake { drain: 1 << 52, ..take(RateUnit::Tpm) };
    let error = wave(nowhere).take(TENANT, None, 1, &[take]).await.unwrap_err();
    assert!(matches!(error, StoreError::TooLarge(..)), "{error}");
}

const KEY: Idempotency = Idempotency { key: Digest(7), body: Digest(8) };

fn claimant(counter: u64) -> Claimant {
    let request = RequestId(Minted { incarnation: 1, counter });
    Claimant { owner: OwnerId(1), request }
}

fn take(unit: RateUnit) -> RateTake {
    RateTake { account: TENANT, unit, limit: 60, drain: 1_000_000, burst: 60_000_000 }
}

fn consult() -> Consult {
    Consult {
        op: SharedOpId(1),
        caller: CallerToken(1),
        request: claimant(1).request,
        tenant: TENANT,
        lease: 600_000_000,
        rates: vec![take(RateUnit::Rpm), take(RateUnit::Tpm)],
        idempotency: Some(KeyClaim { idempotency: KEY, by: claimant(1) }),
        home: Some(SessionKey(1)),
    }
}

fn noted(what: Noted) -> Note {
    Note { op: SharedOpId(2), tenant: TENANT, caller: CallerToken(1), what }
}

fn ended(charged: bool) -> Noted {
    Noted::Key { idempotency: KEY, by: claimant(1), charged, keep: 86_400_000_000 }
}

fn corrected() -> Noted {
    let (account, unit) = (TENANT, RateUnit::Tpm);
    Noted::Rates(vec![RateCorrection { account, unit, until: 0, held: 0, used: 5 }])
}

fn moved() -> Noted {
    Noted::Home { session: SessionKey(1), endpoint: "a".into(), believed: 0, ttl: 60_000_000 }
}

fn wave(settings: Settings) -> Wave {
    Wave::beside(&Store::new(settings, LedgerConfig::default(), 7).unwrap())
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

/// At real servers keys go when they are deleted; in a cluster, by the one that has them.
struct Deleting<'a>(&'a [&'a Server]);

impl Lapse for Deleting<'_> {
    fn lapse(&mut self, keys: &[String]) {
        for key in keys {
            assert!(self.0.iter().any(|server| server.try_ask(&format!("DEL {key}")).is_ok()));
        }
    }
}
