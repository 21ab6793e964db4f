//! Notes taken while a world runs, to tell its [`Story`](crate::story::Story) by.
//!
//! The trace says what every machine saw, byte for byte; a reader wants to know what became of a request and why. So
//! somebody listens at the same places as the judge and writes down, in a reader's terms, what [`crate::tell`] puts
//! together afterwards. Reasons are the product's own: each request has a
//! [`control::journal::Explanation`], fed with what its gateway's plane observed, as `explain` does it.
//!
//! **Rejected:** to tell from the trace afterwards. It holds inputs and a digest of effects, so that every plane would
//! have to be run a second time; and where one panics there is no second time.
//!
//! Nobody listens unless asked: a [`Chronicle`] that is off is one branch at each place. The notes lie outside the world,
//! so that they survive a machine's panic. Not bounded but by the run itself: they are taken of one run at a time, to be
//! looked at.

mod marks;
mod names;
mod quotas;
mod requests;
mod words;

use std::cell::RefCell;
use std::rc::Rc;
use std::time::Duration;

use control::breaker::Phase;
use control::plane::{Durable, Effect, Observation};
use control::quota::{Entry, Ledger};

use crate::check::Step;
use crate::plan::{Ask, Plan};
use crate::story::{Breaker, HostId, Move};
use marks::Marks;
use quotas::Quotas;
use requests::Requests;

pub(crate) use names::{Names, id_of};
pub(crate) use requests::{End, Record};
pub(crate) use words::fault_words;

/// Takes notes of a run, if anybody wants to read them.
#[derive(Default)]
pub(crate) struct Chronicle(Option<Rc<RefCell<Notes>>>);

/// What was noted.
#[derive(Default)]
pub(crate) struct Notes {
    pub names: Names,
    pub requests: Requests,
    pub breakers: Vec<Breaker>,
    pub moves: Vec<Move>,
    pub marks: Marks,
    pub ejections: Vec<Ejection>,
    pub quotas: Quotas,
    /// The instant and the gateway of the latest step.
    pub latest: (u64, u32),
}

/// A replica that was left alone for a while, at one gateway.
pub(crate) struct Ejection {
    pub at: u64,
    pub replica: HostId,
    pub length: Duration,
}

impl Chronicle {
    /// One that writes into `notes`.
    pub fn into(notes: &Rc<RefCell<Notes>>) -> Self {
        Self(Some(Rc::clone(notes)))
    }

    /// A plane took a step.
    pub fn step(&mut self, step: &Step<'_>) {
        self.note(|notes| notes.step(step));
    }

    /// The store's ledger moved, or was replaced.
    pub fn stored(&mut self, at: u64, made: &[Entry], ledger: &Ledger) {
        self.note(|notes| notes.quotas.moved(at, made.iter(), ledger));
    }

    /// Another store took over.
    pub fn failed_over(&mut self, at: u64, lost: usize, ledger: &Ledger) {
        self.note(|notes| {
            notes.marks.failed_over(at, lost);
            notes.quotas.replaced(at, ledger);
        });
    }

    /// A gateway's process died; the clients of these calls see their connections break.
    pub fn died(&mut self, at: u64, gateway: u32, power: bool) {
        self.note(|notes| {
            notes.marks.died(at, gateway, power);
            notes.requests.died(at, gateway);
        });
    }

    /// A call reached a gateway that takes none.
    pub fn turned_away(&mut self, at: u64, call: u32, ask: &Ask, (gateway, why): (u32, &str)) {
        self.note(|notes| notes.requests.turned_away(at, call, ask, (gateway, why)));
    }

    /// A client knows how its call ended, or hung up; `heard` is false where its connection broke instead.
    pub fn told(&mut self, at: u64, call: u32, heard: bool) {
        self.note(|notes| notes.requests.told(at, call, heard));
    }

    /// A replica has written so many tokens for a call, whatever it says.
    pub fn delivered(&mut self, call: u32, tokens: u64) {
        self.note(|notes| notes.requests.delivered(call, tokens));
    }

    fn note(&mut self, write: impl FnOnce(&mut Notes)) {
        if let Some(notes) = &self.0 {
            write(&mut notes.borrow_mut());
        }
    }
}

impl Notes {
    /// Empty ones, for a plan.
    pub fn of(plan: &Plan) -> Self {
        let names = Names::of(plan);
        Self { requests: Requests::of(plan), names, ..Self::default() }
    }

    /// To be counted, not read: without reasons.
    pub fn wordless(plan: &Plan) -> Self {
        Self { requests: Requests::of(plan).wordless(), ..Self::of(plan) }
    }

    fn step(&mut self, step: &Step<'_>) {
        self.latest = (step.at, step.gateway);
        self.names.learn(step);
        self.requests.input(step, &self.names);
        self.marks.input(step);
        for effect in step.effects {
            self.requests.effect(step, effect);
            if let Effect::Persist(Durable::Released { session }) = effect {
                self.moves.push(Move {
                    at_ns: step.at,
                    gateway: id_of(crate::plan::Host::Gateway(step.gateway)),
                    session: self.names.session(*session),
                    from: self.names.released(step.gateway, *session),
                    to: None,
                    why: "nobody could answer it there".to_owned(),
                });
            }
        }
        for observation in step.observed {
            self.requests.observed(step, observation);
            self.turn(step, observation);
        }
        self.marks.observed(step, &self.names);
        let entries = step.effects.iter().filter_map(|effect| {
            let Effect::Persist(Durable::Entry(entry)) = effect else { return None };
            Some(entry)
        });
        if let Some(ledger) = step.plane.ledger().ledger() {
            self.quotas.moved(step.at, entries, ledger);
        }
    }

    /// Breakers that turn, and sessions that move.
    fn turn(&mut self, step: &Step<'_>, observation: &Observation) {
        let gateway = id_of(crate::plan::Host::Gateway(step.gateway));
        if let Observation::Breaker(moved) = observation
            && moved.from != moved.to
            && let Some(replica) = self.names.replica(step.gateway, moved.id)
        {
            let wait = moved.until.map(|until| until.since(step.now));
            if let Some(wait) = wait.filter(|_| moved.to == Phase::Open) {
                self.ejections.push(Ejection { at: step.at, replica, length: wait });
            }
            let wait = wait.map(|wait| format!("; left alone for {}", words::span(wait)));
            self.breakers.push(Breaker {
                at_ns: step.at,
                gateway,
                replica,
                from: moved.from.to_string(),
                to: moved.to.to_string(),
                why: format!("{}{}", moved.cause, wait.unwrap_or_default()),
            });
        }
        if let Observation::Bound { request, session, binding, moved_from } = observation {
            let to = self.names.replica(step.gateway, binding.endpoint);
            self.names.bound(step.gateway, *session, to);
            let why = self.requests.reason(step.gateway, *request);
            self.moves.push(Move {
                at_ns: step.at,
                gateway,
                session: self.names.session(*session),
                from: moved_from.and_then(|id| self.names.replica(step.gateway, id)),
                to,
                why: format!("{why} (epoch {})", binding.epoch),
            });
        }
    }
}
