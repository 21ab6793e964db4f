//! The scripts against their specification: the same random asks to the pure ledger and to a real Redis, which must agree on
//! every answer and every balance, standalone and in a cluster.
//!
//! `POINTSMAN_LEDGER_SCRIPTS=1000` runs so many random scripts instead of the usual few; `POINTSMAN_LEDGER_SEED=7` starts at
//! that one.
#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

#[path = "redis/script.rs"]
mod script;
#[path = "redis/server.rs"]
#[allow(dead_code, reason = "shared with tests that do more to their servers")]
mod server;

use core::time::Duration;
use std::collections::BTreeMap;

use control::id::AccountId;
use control::quota::{
    Ask, At, BalanceKey, DenyReason, Ledger, LedgerConfig, OpId, OwnerId, Reply, RunId, StoreOp,
    Sums, Unit, WindowKind,
};
use control::{Instant, Wall};
use script::{Belief, Rng, Step, bounds, steps};
use server::Server;
use transport::redis::{Settings, Store, Told};

/// Steps of one random script.
const STEPS: usize = 250;

/// Near the end of a month, so that windows of all kinds turn over. In milliseconds.
const START: u64 = 1_764_542_000_000;

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

/// Everything a ledger can say, told apart as far as scripts take different ways.
const WORDS: [&str; 11] = [
    "granted",
    "done",
    "other run",
    "ended",
    "too large",
    "full",
    "tokens of a day",
    "money of a day",
    "tokens of a month",
    "tokens of a rolling window",
    "money of a rolling window",
];

fn word(reply: &Reply) -> &'static str {
    let denied = match reply {
        Reply::Granted { .. } => return "granted",
        Reply::Done => return "done",
        Reply::OtherRun => return "other run",
        Reply::Here => return "here",
        Reply::Denied(denied) => denied.reason,
    };
    match denied {
        DenyReason::Ended => "ended",
        DenyReason::TooLarge => "too large",
        DenyReason::Full => "full",
        DenyReason::StoreUnreachable => "unreachable",
        DenyReason::Spent { window, unit, .. } => match (window, unit) {
            (WindowKind::Day, Unit::Tokens) => "tokens of a day",
            (WindowKind::Day, Unit::Money) => "money of a day",
            (WindowKind::Month, Unit::Tokens) => "tokens of a month",
            (WindowKind::Month, Unit::Money) => "money of a month",
            (WindowKind::Rolling, Unit::Tokens) => "tokens of a rolling window",
            (WindowKind::Rolling, Unit::Money) => "money of a rolling window",
        },
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
    bench.run(&bounds, &steps, 1).await.unwrap();
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
        let told = Told { at, believed: None, confirmed: None, token: "token", bounds };
        let reply = store.run_script(tenant, &ask, &told).await.unwrap().1;
        let balances = store.balances(tenant).await.unwrap();
        (reply, balances[0].1.outstanding.tokens.0)
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

fn scripts(usual: u64) -> u64 {
    let told = std::env::var("POINTSMAN_LEDGER_SCRIPTS").ok();
    told.map_or(usual, |count| count.parse().unwrap())
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

/// Compares the store with as many pure ledgers as it has tenants.
struct Bench {
    store: Store,
    /// Every comparison uses tenants nobody has used.
    tenants: u64,
    /// How often what was answered.
    heard: BTreeMap<&'static str, usize>,
}

/// A ledger, and the same in Redis.
struct Pair {
    tenant: AccountId,
    ledger: Ledger,
    run: Option<String>,
}

impl Bench {
    fn new(settings: Settings) -> Self {
        let store = Store::new(settings, LedgerConfig::default(), 1).unwrap();
        Self { store, tenants: 0, heard: BTreeMap::new() }
    }

    async fn compare(&mut self, scripts: u64, tenants: usize) -> usize {
        let first = std::env::var("POINTSMAN_LEDGER_SEED").map_or(1, |seed| seed.parse().unwrap());
        let mut asks = 0;
        for seed in first..first + scripts {
            let mut rng = Rng(seed);
            let bounds = bounds(&mut rng);
            let steps = steps(&mut rng, tenants, STEPS, START);
            match self.run(&bounds, &steps, tenants).await {
                Ok(made) => asks += made,
                Err(_) => self.report(seed, &bounds, steps, tenants).await,
            }
        }
        asks
    }

    /// Leaves out what can be left out, prints the rest, and fails.
    async fn report(&mut self, seed: u64, bounds: &LedgerConfig, steps: Vec<Step>, tenants: usize) {
        let mut shortest = steps;
        let mut chunk = shortest.len().div_ceil(2);
        loop {
            let mut at = 0;
            while at < shortest.len() {
                let mut fewer = shortest.clone();
                fewer.drain(at..(at + chunk).min(shortest.len()));
                if self.run(bounds, &fewer, tenants).await.is_err() {
                    shortest = fewer;
                } else {
                    at += chunk;
                }
            }
            if chunk == 1 {
                break;
            }
            chunk = chunk.div_ceil(2);
        }
        let why = self.run(bounds, &shortest, tenants).await.unwrap_err();
        let shortest: String = shortest.iter().map(|step| format!("{step:?}\n")).collect();
        panic!("seed {seed}, {bounds:?}\n{shortest}{why}");
    }

    /// The number of asks, or where the two part.
    async fn run(
        &mut self,
        bounds: &LedgerConfig,
        steps: &[Step],
        tenants: usize,
    ) -> Result<usize, String> {
        let mut pairs: Vec<Pair> = (0..tenants)
            .map(|_| {
                self.tenants += 1;
                let ledger = Ledger::new(bounds.clone());
                Pair { tenant: AccountId(self.tenants << 32), ledger, run: None }
            })
            .collect();
        let (mut micros, mut wall, mut asks) = (1_u64, START, 0);
        for step in steps {
            match step {
                Step::Wait { micros: more } => {
                    micros += more;
                    wall += more / 1_000;
                }
                Step::Jump { millis } => wall = wall.saturating_add_signed(*millis),
                Step::Ask { tenant, believed, confirmed, ask } => {
                    asks += 1;
                    let now = Instant::from_nanos(micros * 1_000);
                    let at = At { now, wall: Wall::from_millis(wall) };
                    let pair = &mut pairs[*tenant];
                    let reply = pair.step(&self.store, at, (*believed, *confirmed), ask).await?;
                    *self.heard.entry(word(&reply)).or_default() += 1;
                }
            }
        }
        Ok(asks)
    }
}

/// The pure ledger's run.
const HERE: RunId = RunId(1);

impl Pair {
    async fn step(
        &mut self,
        store: &Store,
        at: At,
        (believed, confirmed): (Belief, Belief),
        ask: &Ask,
    ) -> Result<Reply, String> {
        // Before the first answer nobody knows the run.
        let known = |belief| match belief {
            Belief::Current if self.run.is_none() => Belief::None,
            Belief::None | Belief::Current | Belief::Other => belief,
        };
        let (believed, confirmed) = (known(believed), known(confirmed));
        let expected = self.expected(at, (believed, confirmed), ask);
        let text = |belief| match belief {
            Belief::None => None,
            Belief::Current => self.run.as_deref(),
            Belief::Other => Some("another"),
        };
        let told = Told {
            at: Some(at),
            believed: text(believed),
            confirmed: text(confirmed),
            token: "token",
            bounds: self.ledger.config(),
        };
        let answer = store.run_script(self.tenant, ask, &told).await;
        let (run, reply) = answer.map_err(|error| format!("{at:?} {ask:?}: {error}"))?;
        if reply != expected {
            return Err(format!("{at:?}\nthe ledger: {expected:?}\n the script: {reply:?}"));
        }
        if self.run.get_or_insert_with(|| run.clone()) != &run {
            return Err(format!("the run became {run}"));
        }
        let kept: Vec<(BalanceKey, Sums)> = store.balances(self.tenant).await.unwrap();
        let pure: Vec<(BalanceKey, Sums)> =
            self.ledger.balances().map(|(key, sums)| (key, *sums)).collect();
        if kept != pure {
            let lines = |sums: &[(BalanceKey, Sums)]| -> String {
                sums.iter().map(|line| format!("{line:?}\n")).collect()
            };
            return Err(format!("{at:?}\nledger:\n{}script:\n{}", lines(&pure), lines(&kept)));
        }
        Ok(reply)
    }

    fn expected(&mut self, at: At, (believed, confirmed): (Belief, Belief), ask: &Ask) -> Reply {
        let run = |belief| match belief {
            Belief::None => None,
            Belief::Current => Some(HERE),
            Belief::Other => Some(RunId(2)),
        };
        let mut ask = ask.clone();
        if let Ask::Settle { confirmed: told, .. } = &mut ask {
            *told = run(confirmed);
        }
        let tenant = Some(self.tenant);
        let op = StoreOp { op: OpId(0), owner: OwnerId(7), run: run(believed), tenant, ask };
        let mut entries = Vec::new();
        while self.ledger.expire(at, 64, &mut entries).is_break() {}
        let reply = self.ledger.perform(at, HERE, &op, &mut entries).reply;
        self.ledger.invariants();
        reply
    }
}
