//! The shared quota store: the pure ledger behind a network that loses, doubles and delays.

use control::quota::{At, Entry, Ledger, OpId, RunId, StoreAnswer, StoreOp};

use super::World;
use super::clock::{Clock, MILLI, Nanos, SECOND};
use super::event::Event;
use super::sharing::Shared;
use crate::coverage::sometimes;
use crate::plan::{Host, StoreTrouble, Topology};

/// The store as it is now.
pub(super) struct Store {
    pub ledger: Ledger,
    clock: Clock,
    run: RunId,
    /// Every entry the present run knows, as a replica would receive them.
    entries: Vec<Entry>,
    pub troubles: Vec<(u32, StoreTrouble)>,
    pub shared: Shared,
}

/// Expiries performed with each message, as a script would do a few of them.
const EXPIRIES_PER_CALL: usize = 64;

impl Store {
    pub fn new(topology: &Topology, config: &control::quota::Config) -> Self {
        Self {
            ledger: Ledger::new(config.ledger.clone()),
            clock: Clock::new(topology.store_ppm, 0),
            run: RunId(1),
            entries: Vec::new(),
            troubles: Vec::new(),
            shared: Shared::default(),
        }
    }

    pub fn at(&self, now: Nanos) -> At {
        At { now: self.clock.now(now), wall: self.clock.wall(now) }
    }

    pub fn has(&self, trouble: StoreTrouble) -> bool {
        self.troubles.iter().any(|(_, own)| *own == trouble)
    }

    pub fn slowness(&self) -> Nanos {
        let slow = self.troubles.iter().filter_map(|(_, trouble)| match trouble {
            StoreTrouble::Slow { ms } => Some(ms * MILLI),
            StoreTrouble::Down | StoreTrouble::Mute | StoreTrouble::Twice => None,
        });
        slow.sum()
    }
}

impl World<'_> {
    pub(super) fn send_to_store(&mut self, gateway: u32, life: u32, op: StoreOp) {
        let from = Host::Gateway(gateway);
        for _ in 0..=u32::from(self.store.has(StoreTrouble::Twice)) {
            let delay = self.network.delay(self.now, from, Host::Store) + self.astray();
            let event = Event::StoreAsk { gateway, life, op: Box::new(op.clone()) };
            self.agenda.plan(self.now + delay, event);
        }
    }

    /// What a message takes longer while the store's network is in disorder.
    pub(super) fn astray(&mut self) -> Nanos {
        if self.store.has(StoreTrouble::Twice) { self.rng.below(800) * MILLI } else { 0 }
    }

    pub(super) fn store_ask(&mut self, gateway: u32, life: u32, op: &StoreOp) {
        let (from, to) = (Host::Gateway(gateway), Host::Store);
        // A connection that is cut is given up, and what was on it with it.
        if !self.network.open(from, to) {
            return;
        }
        if self.store.has(StoreTrouble::Down) {
            // A host that is there refuses, and one that is gone is silent.
            if op.op.0.is_multiple_of(2) {
                let delay = self.network.delay(self.now, to, from);
                let event = Event::StoreRefused { gateway, life, op: op.op };
                self.agenda.plan(self.now + delay, event);
            }
            return;
        }
        self.store_expires();
        let at = self.store.at(self.now);
        let mut made = Vec::new();
        let answer = self.store.ledger.perform(at, self.store.run, op, &mut made);
        self.judge.stored(self.now, Some((op, &answer)), &made, &self.store.ledger);
        self.chronicle.stored(self.now, &made, &self.store.ledger);
        self.trace.store(self.now, &made);
        self.store.entries.extend(made);
        if self.store.has(StoreTrouble::Mute) {
            return;
        }
        let slow = self.store.slowness();
        for _ in 0..=u32::from(self.store.has(StoreTrouble::Twice)) {
            let delay = self.network.delay(self.now, to, from) + self.astray();
            let jitter = if slow > 0 { self.rng.below(slow) } else { 0 };
            let event = Event::StoreAnswer { gateway, life, answer: Box::new(answer.clone()) };
            self.agenda.plan(self.now + delay + slow / 2 + jitter, event);
        }
    }

    pub(super) fn store_answer(&mut self, gateway: u32, life: u32, answer: StoreAnswer) {
        let open = self.network.open(Host::Store, Host::Gateway(gateway));
        if open && self.gateways[gateway as usize].life == life {
            self.submit(gateway, control::plane::Input::StoreAnswered(answer));
        }
    }

    pub(super) fn store_refused(&mut self, gateway: u32, life: u32, op: OpId) {
        if self.gateways[gateway as usize].life == life {
            sometimes!("store_refused");
            self.submit(gateway, control::plane::Input::StoreFailed { op });
        }
    }

    /// What is due by the store's own clock.
    pub(super) fn store_expires(&mut self) {
        if !self.plan.topology.shared {
            return;
        }
        let at = self.store.at(self.now);
        if self.store.ledger.next_expiry().is_none_or(|due| due > at.now) {
            return;
        }
        let mut made = Vec::new();
        while self.store.ledger.expire(at, EXPIRIES_PER_CALL, &mut made).is_break() {}
        self.judge.stored(self.now, None, &made, &self.store.ledger);
        self.chronicle.stored(self.now, &made, &self.store.ledger);
        self.trace.store(self.now, &made);
        self.store.entries.extend(made);
    }

    /// Another takes over that never heard of the last entries, though they were acknowledged.
    pub(super) fn fail_over(&mut self, lose: u32) {
        let store = &mut self.store;
        let kept = store.entries.len().saturating_sub(lose as usize);
        let lost = store.entries.split_off(kept);
        store.ledger = Ledger::new(self.config.quota.ledger.clone());
        for entry in &store.entries {
            store.ledger.apply(entry);
        }
        store.run = RunId(store.run.0 + 1);
        self.store.shared.fail_over(lose);
        self.judge.shared_failed_over();
        self.chronicle.failed_over(self.now, lost.len(), &self.store.ledger);
        self.judge.failed_over(self.now, &lost, &self.store.entries, &self.store.ledger);
    }
}

/// How often the store looks whether something has expired while nobody asks it anything.
pub(super) const EXPIRE_EVERY: Nanos = SECOND;
