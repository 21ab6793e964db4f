//! The bench on which a server is compared with the pure ledger, ask by ask and balance by balance.

use std::collections::BTreeMap;

use control::id::AccountId;
use control::quota::{
    Ask, At, BalanceKey, DenyReason, Ledger, LedgerConfig, OpId, OwnerId, Reply, RunId, StoreOp,
    Sums, Unit, WindowKind,
};
use control::{Instant, Wall};
use transport::redis::{Settings, Store, Told};

use crate::script::{Belief, Rng, Step, bounds, steps};

/// Steps of one random script.
const STEPS: usize = 250;

/// Near the end of a month, so that windows of all kinds turn over. In milliseconds.
pub const START: u64 = 1_764_542_000_000;

/// Everything a ledger can say, told apart as far as scripts take different ways.
pub const WORDS: [&str; 11] = [
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

/// Which of them a reply is.
pub fn word(reply: &Reply) -> &'static str {
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

/// How many random scripts are run.
pub fn scripts(usual: u64) -> u64 {
    let told = std::env::var("POINTSMAN_LEDGER_SCRIPTS").ok();
    told.map_or(usual, |count| count.parse().unwrap())
}

/// Compares the store with as many pure ledgers as it has tenants.
pub struct Bench {
    store: Store,
    /// Every comparison uses tenants nobody has used.
    tenants: u64,
    /// How often what was answered.
    pub heard: BTreeMap<&'static str, usize>,
}

/// A ledger, and the same in Redis.
struct Pair {
    tenant: AccountId,
    ledger: Ledger,
    run: Option<String>,
}

impl Bench {
    /// Against the server of these settings.
    pub fn new(settings: Settings) -> Self {
        let store = Store::new(settings, LedgerConfig::default(), 1).unwrap();
        Self { store, tenants: 0, heard: BTreeMap::new() }
    }

    /// Runs so many random scripts; the number of asks made.
    pub async fn compare(&mut self, scripts: u64, tenants: usize) -> usize {
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
    pub async fn run(
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
