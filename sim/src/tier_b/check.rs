//! What clients and replicas saw, and whether it may be.
//!
//! The model here is as small as the promise: an answer comes from one attempt, whole and in order, or it says that it
//! is not whole; nobody is asked more often than allowed; nothing is worked on for somebody who has left. Numbers are
//! those of the simulator's invariants. Only the first violation is kept: what follows from it would only confuse.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::client::Seen;
use super::plan::TierBPlan;

/// How long after a cancel or a deadline a replica may still work: a connection's end travels two slow links, and a
/// stream's writer notices at its next token.
const WORK_AFTER_END: Duration = Duration::from_secs(3);

/// An invariant that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Violation {
    pub invariant: u8,
    pub text: String,
    pub at: Duration,
}

/// A try of a client, as the client sees it.
#[derive(Clone, Debug, Default)]
struct Ticket {
    operation: usize,
    began: Duration,
    ended: Option<(Duration, Seen)>,
    request: String,
    /// The answer that its tokens are from, and how many there were.
    heard: Option<(u64, u32)>,
}

/// What a replica was asked.
#[derive(Clone, Debug)]
pub(super) struct Work {
    pub replica: u8,
    pub gateway: u8,
    pub request: String,
    /// Which try of a client it is for.
    pub ticket: Option<usize>,
    /// How many tokens the whole answer has.
    pub tokens: u32,
}

/// An answer that ended cleanly, as its client was told.
#[derive(Clone, Debug)]
pub(super) struct Acknowledged {
    pub gateway: u8,
    pub request: String,
    /// Tokens used in all, where the answer said so.
    pub usage: Option<u64>,
}

/// The checkers of one run.
#[derive(Debug)]
pub(super) struct Checks {
    plan: TierBPlan,
    tickets: Vec<Ticket>,
    work: BTreeMap<u64, Work>,
    /// Answers that a replica still has in hand.
    live: BTreeSet<u64>,
    attempts: BTreeMap<(u8, String), u32>,
    /// Since the last look.
    acknowledged: Vec<Acknowledged>,
    /// Since when nothing is wrong with the network and no host is down.
    pub calm_since: Option<Duration>,
    violation: Option<Violation>,
}

impl Checks {
    pub fn new(plan: &TierBPlan) -> Self {
        Self {
            plan: plan.clone(),
            tickets: Vec::new(),
            work: BTreeMap::new(),
            live: BTreeSet::new(),
            attempts: BTreeMap::new(),
            acknowledged: Vec::new(),
            calm_since: Some(Duration::ZERO),
            violation: None,
        }
    }

    /// The first violation.
    pub fn violation(&self) -> Option<&Violation> {
        self.violation.as_ref()
    }

    pub fn violated(&mut self, at: Duration, invariant: u8, text: String) {
        self.violation.get_or_insert(Violation { invariant, text, at });
    }

    /// Tries of clients so far.
    pub fn tries(&self) -> usize {
        self.tickets.len()
    }

    /// Answers that ended cleanly since the last call.
    pub fn take_acknowledged(&mut self) -> Vec<Acknowledged> {
        std::mem::take(&mut self.acknowledged)
    }

    /// A client tries; returns the try's number.
    pub fn begins(&mut self, now: Duration, operation: usize) -> usize {
        self.tickets.push(Ticket { operation, began: now, ..Ticket::default() });
        self.tickets.len() - 1
    }

    /// The gateway named the request.
    pub fn named(&mut self, ticket: usize, request: String) {
        self.tickets[ticket].request = request;
    }

    /// A client got a token.
    pub fn token(&mut self, now: Duration, ticket: usize, text: &str) {
        let read = text.strip_prefix('t').and_then(|rest| rest.split_once('.'));
        let read = read
            .and_then(|(nonce, seq)| Some((nonce.parse::<u64>().ok()?, seq.parse::<u32>().ok()?)));
        let Some((nonce, seq)) = read else { return self.nonsense(now, ticket, text) };
        let (of, next) = *self.tickets[ticket].heard.get_or_insert((nonce, 0));
        if of != nonce || next != seq {
            let request = &self.tickets[ticket].request;
            let text = format!("{request}: token t{nonce}.{seq} where t{of}.{next} was next");
            return self.violated(now, 6, text);
        }
        self.tickets[ticket].heard = Some((nonce, next + 1));
        self.belongs(now, ticket, nonce);
    }

    /// An answer is for whoever asked.
    fn belongs(&mut self, now: Duration, ticket: usize, nonce: u64) {
        let heard = &self.tickets[ticket];
        let gateway = self.plan.operations[heard.operation].gateway;
        let is_own = self
            .work
            .get(&nonce)
            .is_some_and(|work| work.gateway == gateway && work.request == heard.request);
        if !is_own {
            let text = format!("{} got answer t{nonce}, which is another's", heard.request);
            self.violated(now, 6, text);
        }
    }

    /// A client got something that is no token.
    pub fn nonsense(&mut self, now: Duration, ticket: usize, text: &str) {
        let request = &self.tickets[ticket].request;
        let text = format!("{request}: its client got what no replica says: {text:?}");
        self.violated(now, 6, text);
    }

    /// An answer ended as whole ones do.
    pub fn clean_end(&mut self, now: Duration, ticket: usize, usage: Option<u64>) {
        let heard = &self.tickets[ticket];
        let gateway = self.plan.operations[heard.operation].gateway;
        let request = heard.request.clone();
        let whole = heard.heard.is_some_and(|(nonce, count)| {
            self.work.get(&nonce).is_some_and(|work| work.tokens == count)
        });
        if !whole {
            let text = format!("{request}: a clean end after {:?}, which is not all", heard.heard);
            return self.violated(now, 6, text);
        }
        self.acknowledged.push(Acknowledged { gateway, request, usage });
    }

    /// A try is over, as far as its client knows; `is_last` where it will not try again.
    pub fn saw(&mut self, now: Duration, ticket: usize, seen: Seen, is_last: bool) {
        let ticket = &mut self.tickets[ticket];
        if ticket.ended.replace((now, seen)).is_some() {
            let text = format!("{} ends a second time", ticket.request);
            return self.violated(now, 3, text);
        }
        let operation = ticket.operation;
        if self.plan.operations[operation].must_succeed && is_last && seen != Seen::Whole {
            let text =
                format!("operation {operation}, long after everything was mended, saw {seen:?}");
            self.violated(now, 9, text);
        }
    }

    /// A replica is asked.
    pub fn asked(&mut self, now: Duration, nonce: u64, work: Work) {
        let count = self.attempts.entry((work.gateway, work.request.clone())).or_default();
        *count += 1;
        let (count, max) = (*count, self.plan.attempts_max());
        if count > max {
            let Work { replica, request, .. } = &work;
            let text = format!("{request} reaches replica-{replica} as attempt {count} of {max}");
            self.violated(now, 7, text);
        }
        self.work.insert(nonce, work);
        self.live.insert(nonce);
        self.worked(now, nonce);
    }

    /// A replica lets go of an answer: it is over, or nobody is there for it.
    pub fn rested(&mut self, nonce: u64) {
        self.live.remove(&nonce);
    }

    /// What replicas have in hand is for somebody.
    pub fn look(&mut self, now: Duration) {
        for nonce in self.live.clone() {
            self.worked(now, nonce);
        }
    }

    /// A replica works on an answer.
    pub fn worked(&mut self, now: Duration, nonce: u64) {
        let Some(Work { replica, request, ticket: Some(ticket), .. }) = self.work.get(&nonce)
        else {
            return;
        };
        let Some(of) = self.tickets.get(*ticket) else { return };
        let deadline = of.began + Duration::from_millis(self.plan.knobs.request_ms);
        let end = match of.ended {
            Some((ended, _)) => ended.min(deadline),
            None => deadline,
        };
        // Turmoil never sends a lost segment again: a cut in the middle may have taken the end's message with it.
        let calm = self.calm_since.is_some_and(|since| since <= of.began);
        if calm && now > end + WORK_AFTER_END {
            let late = (now - end).as_secs_f64();
            let text = format!("replica-{replica} works on {request} {late:.1} s after its end");
            self.violated(now, 12, text);
        }
    }
}
