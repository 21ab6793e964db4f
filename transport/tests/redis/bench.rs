//! The bench on which a server is compared with the pure ledger, ask by ask and balance by balance.

use std::collections::BTreeMap;

use control::id::AccountId;
use control::quota::{
    Ask, At, BalanceKey, DenyReason, Ledger, LedgerConfig, OpId, OwnerId, Reply, RunId, StoreOp,
    Sums, Unit, WindowKind,
};
use control::{Instant, Wall};
use transport::redis::{Settings, Store, Together, Told};

use crate::script::{Belief, Rng, Step, batches, bounds, steps};

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
    /// How many asks the largest call had.
    pub most: usize,
    /// Two answers of each call are taken for each other's: what a bench must notice.
    pub mistakes: bool,
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
        Self { store, tenants: 0, heard: BTreeMap::new(), most: 0, mistakes: false }
    }

    /// Runs so many random scripts, each ask a call; the number of asks made.
    pub async fn compare(&mut self, scripts: u64, tenants: usize) -> usize {
        let single =
            |step| if matches!(step, Step::Ask { .. }) { vec![step, Step::Go] } else { vec![step] };
        let made = |rng: &mut Rng| {
            steps(rng, tenants, STEPS, START).into_iter().flat_map(single).collect()
        };
        self.compare_made(scripts, tenants, made).await
    }

    /// The same with several asks in a call.
    pub async fn compare_batches(&mut self, scripts: u64) -> usize {
        self.compare_made(scripts, 1, |rng| batches(rng, STEPS, START)).await
    }

    async fn compare_made(
        &mut self,
        scripts: u64,
        tenants: usize,
        made: impl Fn(&mut Rng) -> Vec<Step>,
    ) -> usize {
        let first = std::env::var("POINTSMAN_LEDGER_SEED").map_or(1, |seed| seed.parse().unwrap());
        let mut asks = 0;
        for seed in first..first + scripts {
            let mut rng = Rng(seed);
            let bounds = bounds(&mut rng);
            let steps = made(&mut rng);
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
        let mut together: Vec<Asked> = Vec::new();
        for step in steps.iter().chain([&Step::Go]) {
            let moment =
                At { now: Instant::from_nanos(micros * 1_000), wall: Wall::from_millis(wall) };
            match step {
                Step::Ask { tenant, believed, confirmed, ask }
                    if together.first().is_none_or(|first| first.0 == *tenant) =>
                {
                    together.push((*tenant, (*believed, *confirmed), ask));
                    continue;
                }
                // Who stands alone leaves with the next step whatever that is.
                Step::Ask { .. } | Step::Go => {}
                Step::Wait { micros: more } => {
                    micros += more;
                    wall += more / 1_000;
                }
                Step::Jump { millis } => wall = wall.saturating_add_signed(*millis),
            }
            if let Some((tenant, ..)) = together.first() {
                asks += together.len();
                self.most = self.most.max(together.len());
                let (pair, mistakes) = (&mut pairs[*tenant], self.mistakes);
                for reply in pair.step(&self.store, moment, &together, mistakes).await? {
                    *self.heard.entry(word(&reply)).or_default() += 1;
                }
            }
            together.clear();
            if let Step::Ask { tenant, believed, confirmed, ask } = step {
                together.push((*tenant, (*believed, *confirmed), ask));
            }
        }
        Ok(asks)
    }
}

/// Whose ask, what its owner believes, and what it is.
type Asked<'a> = (usize, (Belief, Belief), &'a Ask);

/// The pure ledger's run.
const HERE: RunId = RunId(1);

impl Pair {
    async fn step(
        &mut self,
        store: &Store,
        at: At,
        asks: &[Asked<'_>],
        mistakes: bool,
    ) -> Result<Vec<Reply>, String> {
        // Before the first answer nobody knows the run.
        let known = |belief| match belief {
            Belief::Current if self.run.is_none() => Belief::None,
            Belief::None | Belief::Current | Belief::Other => belief,
        };
        let known = |asked: &Asked<'_>| (known(asked.1.0), known(asked.1.1));
        let beliefs: Vec<(Belief, Belief)> = asks.iter().map(known).collect();
        let both = || asks.iter().map(|asked| asked.2).zip(beliefs.iter().copied());
        let expected: Vec<Reply> =
            both().map(|(ask, beliefs)| self.expected(at, beliefs, ask)).collect();
        let text = |belief| match belief {
            Belief::None => None,
            Belief::Current => self.run.as_deref(),
            Belief::Other => Some("another"),
        };
        let told =
            |(believed, confirmed)| Told { believed: text(believed), confirmed: text(confirmed) };
        let told: Vec<_> = both().map(|(ask, beliefs)| (ask, told(beliefs))).collect();
        let bounds = self.ledger.config();
        let together = Together { at: Some(at), token: "token", bounds };
        let answer = store.run_script(self.tenant, &told, &together).await;
        let asked = || asks.iter().map(|asked| format!("{:?}\n", asked.2)).collect::<String>();
        let (run, mut replies) = answer.map_err(|error| format!("{at:?}\n{}{error}", asked()))?;
        if mistakes && replies.len() > 1 {
            replies.swap(0, 1);
        }
        if replies != expected {
            let lines = |replies: &[Reply]| -> String {
                replies.iter().map(|reply| format!("{reply:?}\n")).collect()
            };
            let (pure, script) = (lines(&expected), lines(&replies));
            return Err(format!("{at:?}\nthe ledger:\n{pure}the script:\n{script}"));
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
        Ok(replies)
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
