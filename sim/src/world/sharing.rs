//! What gateways share beside the ledger: the pure store of it, behind the ledger's network and with the ledger's troubles.
//!
//! A shell asks once and says when it was refused; notes it tries again until they are acknowledged, for some seconds. A
//! failover forgets the last of what was performed, here as there.

use control::plane::Input;
use control::shared::{
    Consult, Consulted, HomeAnswer, Homes, Housed, Keys, Note, Noted, Rates, SharedOpId,
};

use super::World;
use super::clock::{MILLI, Nanos};
use super::event::Event;
use crate::coverage::sometimes;
use crate::plan::{Host, StoreTrouble};

/// What a shell sends.
#[derive(Clone, Debug)]
pub(crate) enum SharedAsk {
    Consult(Box<Consult>),
    Note(Box<Note>),
}

/// What comes back.
#[derive(Clone, Debug)]
pub(crate) enum SharedAnswer {
    Consulted(Box<Consulted>),
    /// A consultation was refused by the store's host.
    Refused(SharedOpId),
    /// A note was taken; what it says about a session, where it does.
    Noted(SharedOpId, Option<Box<Housed>>),
}

/// The rates, the keys and the homes.
#[derive(Default)]
pub(super) struct Shared {
    rates: Rates,
    keys: Keys,
    homes: Homes,
    /// All that was performed, and when.
    log: Vec<(u64, SharedAsk)>,
}

/// How long a shell waits for a note to be acknowledged, and how often it tries.
const NOTE_AGAIN: Nanos = 300 * MILLI;
const NOTE_TRIES: u32 = 12;

impl Shared {
    fn perform(&mut self, now: u64, ask: &SharedAsk) -> SharedAnswer {
        match ask {
            SharedAsk::Consult(consult) => {
                let Consult { op, tenant, lease, .. } = **consult;
                let asked = !consult.rates.is_empty();
                let rates = asked.then(|| self.rates.take(now, lease, &consult.rates));
                let idempotency = consult
                    .idempotency
                    .map(|claim| self.keys.claim(now, lease, tenant, claim.idempotency, claim.by));
                let home = consult.home.map(|session| self.homes.at(now, session));
                SharedAnswer::Consulted(Box::new(Consulted {
                    op,
                    rates,
                    idempotency,
                    home,
                    odd: Vec::new(),
                }))
            }
            SharedAsk::Note(note) => SharedAnswer::Noted(note.op, self.note(now, note)),
        }
    }

    fn note(&mut self, now: u64, note: &Note) -> Option<Box<Housed>> {
        let (session, home): (_, HomeAnswer) = match &note.what {
            Noted::Rates(corrections) => {
                self.rates.correct(now, corrections);
                return None;
            }
            Noted::Key { idempotency, by, charged, keep } => {
                self.keys.end(now, *keep, note.tenant, (*idempotency, *by), *charged);
                return None;
            }
            Noted::Home { session, endpoint, believed, ttl } => {
                (*session, self.homes.accepted(now, *session, endpoint, *believed, *ttl))
            }
            Noted::Homeless { session, believed } => {
                (*session, self.homes.homeless(now, *session, *believed))
            }
        };
        Some(Box::new(Housed { op: note.op, session, home }))
    }

    /// Another takes over that never heard of the last of it.
    pub fn fail_over(&mut self, lose: u32) {
        let mut log = std::mem::take(&mut self.log);
        log.truncate(log.len().saturating_sub(lose as usize));
        *self = Self::default();
        for (now, ask) in &log {
            self.perform(*now, ask);
        }
        self.log = log;
    }
}

impl World<'_> {
    pub(super) fn consult(&mut self, gateway: u32, consult: Box<Consult>) {
        let life = self.gateways[gateway as usize].life;
        self.send_shared(gateway, life, &SharedAsk::Consult(consult));
    }

    pub(super) fn note(&mut self, gateway: u32, note: Box<Note>) {
        let life = self.gateways[gateway as usize].life;
        self.unheard.insert((gateway, life, note.op));
        self.try_note(gateway, life, note, 0);
    }

    /// A shell tells its note, once more if it was not heard.
    pub(super) fn try_note(&mut self, gateway: u32, life: u32, note: Box<Note>, nth: u32) {
        let key = (gateway, life, note.op);
        if nth == NOTE_TRIES || self.gateways[gateway as usize].life != life {
            self.unheard.remove(&key);
        }
        if !self.unheard.contains(&key) {
            return;
        }
        if nth > 0 {
            sometimes!("note_again");
        }
        self.send_shared(gateway, life, &SharedAsk::Note(note.clone()));
        let again = Event::NoteTry { gateway, life, note, nth: nth + 1 };
        self.agenda.plan(self.now + NOTE_AGAIN, again);
    }

    fn send_shared(&mut self, gateway: u32, life: u32, ask: &SharedAsk) {
        let from = Host::Gateway(gateway);
        for _ in 0..=u32::from(self.store.has(StoreTrouble::Twice)) {
            let delay = self.network.delay(self.now, from, Host::Store) + self.astray();
            let ask = Box::new(ask.clone());
            self.agenda.plan(self.now + delay, Event::SharedAsk { gateway, life, ask });
        }
    }

    pub(super) fn shared_ask(&mut self, gateway: u32, life: u32, ask: SharedAsk) {
        let (from, to) = (Host::Gateway(gateway), Host::Store);
        if !self.network.open(from, to) {
            return;
        }
        if self.store.has(StoreTrouble::Down) {
            if let SharedAsk::Consult(consult) = &ask
                && consult.op.0.is_multiple_of(2)
            {
                let delay = self.network.delay(self.now, to, from);
                let answer = Box::new(SharedAnswer::Refused(consult.op));
                self.agenda.plan(self.now + delay, Event::SharedAnswer { gateway, life, answer });
            }
            return;
        }
        let now = self.store.at(self.now).now.as_nanos() / 1_000;
        let answer = self.store.shared.perform(now, &ask);
        self.judge.shared(self.now, gateway, &ask, &answer);
        self.store.shared.log.push((now, ask));
        if self.store.has(StoreTrouble::Mute) {
            return;
        }
        let slow = self.store.slowness();
        for _ in 0..=u32::from(self.store.has(StoreTrouble::Twice)) {
            let delay = self.network.delay(self.now, to, from) + self.astray();
            let jitter = if slow > 0 { self.rng.below(slow) } else { 0 };
            let answer = Box::new(answer.clone());
            let event = Event::SharedAnswer { gateway, life, answer };
            self.agenda.plan(self.now + delay + slow / 2 + jitter, event);
        }
    }

    pub(super) fn shared_answer(&mut self, gateway: u32, life: u32, answer: SharedAnswer) {
        let open = self.network.open(Host::Store, Host::Gateway(gateway));
        if !open || self.gateways[gateway as usize].life != life {
            return;
        }
        match answer {
            SharedAnswer::Consulted(answer) => self.submit(gateway, Input::Consulted(answer)),
            SharedAnswer::Refused(op) => self.submit(gateway, Input::ConsultFailed { op }),
            SharedAnswer::Noted(op, housed) => {
                self.unheard.remove(&(gateway, life, op));
                if let Some(housed) = housed {
                    self.submit(gateway, Input::Housed(housed));
                }
            }
        }
    }
}
