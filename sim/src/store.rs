//! A shared quota store that misbehaves on cue.
//!
//! The ledger inside is the pure one; around it, a network that delays, loses, doubles and reorders in both directions, a
//! clock that runs at its own pace, and restarts that forget an acknowledged suffix, as an asynchronous replica does when
//! it takes over. Nothing here is random: each ask takes the next [`Fate`] of a script.

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use control::quota::{At, Entry, Ledger, LedgerConfig, OwnerId, RunId, StoreAnswer, StoreOp};
use control::{Instant, Wall};

/// What happens to one ask and its answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Fate {
    /// On its way to the store. Lost here, it is never performed.
    pub ask: Passage,
    /// On its way back. Lost here, it was performed.
    pub answer: Passage,
}

/// What happens to one message on its way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    /// It arrives, so much later. A later message may arrive before it.
    After(Duration),
    /// It never arrives.
    Lost,
    /// It arrives twice.
    Twice(Duration, Duration),
}

/// The store behind its script.
#[derive(Clone, Debug)]
pub struct Store {
    ledger: Ledger,
    config: LedgerConfig,
    run: RunId,
    /// Every entry of the ledger, as a replica would receive them.
    entries: Vec<Entry>,
    script: VecDeque<Fate>,
    unscripted: Fate,
    asks: Mail<(StoreOp, Passage)>,
    answers: Mail<(OwnerId, StoreAnswer)>,
    epoch: Wall,
    pace: i64,
    cut: bool,
    sequence: u64,
}

type Mail<T> = BTreeMap<(Instant, u64), T>;

/// Expiries performed with each message: enough that none lags behind the asks of a test.
const EXPIRIES_PER_CALL: usize = 64;

impl Store {
    /// An empty store in its first run, whose calendar stands at `epoch` at the beginning. Without a script every message
    /// takes a millisecond.
    #[must_use]
    pub fn new(config: LedgerConfig, epoch: Wall) -> Self {
        let prompt = Passage::After(Duration::from_millis(1));
        Self {
            ledger: Ledger::new(config.clone()),
            config,
            run: RunId(1),
            entries: Vec::new(),
            script: VecDeque::new(),
            unscripted: Fate { ask: prompt.clone(), answer: prompt },
            asks: Mail::new(),
            answers: Mail::new(),
            epoch,
            pace: 0,
            cut: false,
            sequence: 0,
        }
    }

    /// What happens to the next asks, in turn.
    pub fn script(&mut self, fates: impl IntoIterator<Item = Fate>) {
        self.script.extend(fates);
    }

    /// Lets the store's clock run so many parts per million fast (or slow, below zero). To be set before it is used.
    pub fn pace(&mut self, parts_per_million: i64) {
        self.pace = parts_per_million;
    }

    /// Cuts or mends the network: while cut, whatever is sent or would arrive is lost.
    pub fn cut(&mut self, cut: bool) {
        self.cut = cut;
    }

    /// Sends an ask to the store.
    pub fn ask(&mut self, now: Instant, op: StoreOp) {
        let fate = self.script.pop_front().unwrap_or_else(|| self.unscripted.clone());
        for delay in delays(&fate.ask) {
            let key = (now + delay, self.next());
            self.asks.insert(key, (op.clone(), fate.answer.clone()));
        }
    }

    /// When the next message arrives, at the store or back at its owner.
    #[must_use]
    pub fn poll_timeout(&self) -> Option<Instant> {
        let (ask, answer) = (self.asks.keys().next(), self.answers.keys().next());
        [ask, answer].into_iter().flatten().map(|key| key.0).min()
    }

    /// Performs what has arrived at the store, in the order of arrival, and expires what is due.
    pub fn handle_timeout(&mut self, now: Instant) {
        while self.asks.keys().next().is_some_and(|key| key.0 <= now) {
            let Some(((at, _), (op, passage))) = self.asks.pop_first() else { return };
            if self.cut {
                continue;
            }
            self.expire(at);
            let mut made = Vec::new();
            let answer = self.ledger.perform(self.at(at), self.run, &op, &mut made);
            self.entries.extend(made);
            for delay in delays(&passage) {
                let key = (at + delay, self.next());
                self.answers.insert(key, (op.owner, answer.clone()));
            }
        }
        self.expire(now);
    }

    /// The next answer that has arrived by `now`, and whose it is.
    pub fn poll_answer(&mut self, now: Instant) -> Option<(OwnerId, StoreAnswer)> {
        loop {
            self.answers.keys().next().filter(|key| key.0 <= now)?;
            let (_, (owner, answer)) = self.answers.pop_first()?;
            if !self.cut {
                return Some((owner, answer));
            }
        }
    }

    /// Restarts as another run that never heard of the last `lose` entries, though it acknowledged them. Returns those.
    pub fn restart(&mut self, lose: usize) -> Vec<Entry> {
        let lost = self.entries.split_off(self.entries.len().saturating_sub(lose));
        self.ledger = Ledger::new(self.config.clone());
        for entry in &self.entries {
            self.ledger.apply(entry);
        }
        self.run = RunId(self.run.0 + 1);
        lost
    }

    /// The ledger, to be looked at.
    #[must_use]
    pub fn ledger(&self) -> &Ledger {
        &self.ledger
    }

    /// Every entry the present run knows.
    #[must_use]
    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    fn expire(&mut self, now: Instant) {
        let mut made = Vec::new();
        let at = self.at(now);
        while self.ledger.expire(at, EXPIRIES_PER_CALL, &mut made).is_break() {}
        self.entries.extend(made);
    }

    /// Both of the store's clocks at `now`.
    fn at(&self, now: Instant) -> At {
        let nanos = i128::from(now.as_nanos()) * i128::from(1_000_000 + self.pace) / 1_000_000;
        let own = Instant::from_nanos(u64::try_from(nanos).unwrap_or(0));
        At { now: own, wall: self.epoch + own.since(Instant::ZERO) }
    }

    fn next(&mut self) -> u64 {
        self.sequence += 1;
        self.sequence
    }
}

fn delays(passage: &Passage) -> Vec<Duration> {
    match passage {
        Passage::After(delay) => vec![*delay],
        Passage::Lost => Vec::new(),
        Passage::Twice(first, second) => vec![*first, *second],
    }
}
