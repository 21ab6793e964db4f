//! What clients and replicas saw, and whether it may be.
//!
//! The model here is as small as the promise: an answer comes from one attempt, whole and in order, or it says that it
//! is not whole; nobody is asked more often than allowed; nothing is worked on for somebody who has left. Numbers are
//! those of the simulator's invariants. Only the first violation is kept: what follows from it would only confuse.

mod joined;
mod kept;
mod proof;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use super::client::Seen;
use super::plan::TierBPlan;
use super::shares::Shares;
use super::tenancy::Refused;
use joined::Joined;
pub(super) use kept::Asked;
use kept::Shelf;
use proof::Proofs;

/// How long after a cancel or a deadline a replica may still work: a connection's end travels two slow links, and a
/// stream's writer notices at its next token.
const WORK_AFTER_END: Duration = Duration::from_secs(3);

/// The product counts a replica's tokens itself where their usage is not told. No tokenizer finds more tokens in a text
/// than it has bytes, and what is a token here has at most so many.
const ESTIMATE_FACTOR: u64 = 14;

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
    /// The chat role that answers, as a door says.
    house: Option<u8>,
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
    /// Words of its prompt, which is how a replica counts them.
    pub prompt: u32,
    /// How many tokens the whole answer has.
    pub tokens: u32,
}

/// What a journal says a request cost.
#[derive(Clone, Debug)]
pub(super) struct Charge {
    pub gateway: u8,
    pub request: String,
    pub tokens: u64,
    /// Counted by the product and not told by the replica.
    pub is_estimate: bool,
}

/// An answer that ended cleanly, as its client was told.
#[derive(Clone, Debug)]
pub(super) struct Acknowledged {
    pub gateway: u8,
    /// Behind a door, whichever of them it was: those that were asked under one key.
    pub requests: Vec<String>,
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
    shares: Shares,
    proofs: Proofs,
    joined: Joined,
    shelf: Shelf,
    attempts: BTreeMap<(u8, String, Option<usize>), u32>,
    /// The most that any replica can have used for a request.
    usable: BTreeMap<(u8, String), u64>,
    /// Since the last look.
    acknowledged: Vec<Acknowledged>,
    /// When each gateway's journal was damaged last: what it said before need not be written any more.
    damaged: BTreeMap<u8, Duration>,
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
            shares: Shares::new(plan),
            proofs: Proofs::default(),
            joined: Joined::new(plan),
            shelf: Shelf::new(plan),
            attempts: BTreeMap::new(),
            usable: BTreeMap::new(),
            acknowledged: Vec::new(),
            damaged: BTreeMap::new(),
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

    /// The gateway named the request, and a door the chat role that answers.
    pub fn named(&mut self, ticket: usize, request: String, house: Option<u8>) {
        let ticket = &mut self.tickets[ticket];
        (ticket.request, ticket.house) = (request, house);
    }

    /// A client got a token.
    pub fn token(&mut self, now: Duration, ticket: usize, text: &str) {
        let read = text.strip_prefix('t').and_then(|rest| rest.split_once('.'));
        let read = read
            .and_then(|(nonce, seq)| Some((nonce.parse::<u64>().ok()?, seq.parse::<u32>().ok()?)));
        let Some((nonce, seq)) = read else { return self.proven(now, ticket, text) };
        // What a worker began no script goes on with.
        if self.is_proven(ticket).is_some() {
            return self.nonsense(now, ticket, text);
        }
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
        let is_own = self.work.get(&nonce).is_some_and(|work| self.is_asked_for(ticket, work));
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
        let whole = self.is_proven(ticket).unwrap_or_else(|| {
            heard.heard.is_some_and(|(nonce, count)| {
                self.work.get(&nonce).is_some_and(|work| work.tokens == count)
            })
        });
        if !whole {
            let text = format!("{request}: a clean end after {:?}, which is not all", heard.heard);
            return self.violated(now, 6, text);
        }
        // A door counts what went through the connection that the stream was opened on.
        if self.plan.doors == 0 || self.has_one_reader(ticket) {
            self.acknowledge(ticket, Acknowledged { gateway, requests: vec![request], usage });
        }
        if self.plan.doors > 0 {
            self.answered_behind(now, ticket, usage);
        }
    }

    fn acknowledge(&mut self, ticket: usize, told: Acknowledged) {
        // It may have been under way, on a link that was held, for longer than its record lasted.
        let began = self.tickets[ticket].began;
        let is_after = |at: &Duration| began > *at;
        // Somebody else may still show what its gateway's disk forgot.
        if !self.shelf.lost_at(told.gateway).is_none_or(&is_after) {
            return;
        }
        if self.damaged.get(&told.gateway).is_none_or(is_after)
            && self.joined.lost_at(told.gateway).is_none_or(is_after)
        {
            self.acknowledged.push(told);
        }
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

    /// A client was told why it got nothing.
    pub fn refused(&mut self, now: Duration, refused: &Refused<'_>) {
        if let Err((invariant, text)) = refused.judge() {
            self.violated(now, invariant, text);
        }
    }

    /// A gateway's journal is damaged.
    pub fn damaged(&mut self, now: Duration, gateway: u8) {
        self.damaged.insert(gateway, now);
        self.acknowledged.retain(|told| told.gateway != gateway);
    }

    /// A gateway has an empty directory: it counts its requests from the beginning again.
    pub fn begins_anew(&mut self, gateway: u8) {
        self.shelf.begins_anew(gateway);
        self.joined.begins_anew(gateway);
        self.attempts.retain(|(of, ..), _| *of != gateway);
        self.usable.retain(|(of, _), _| *of != gateway);
    }

    /// The run is over.
    pub fn end(&mut self, now: Duration) {
        if let Err((invariant, text)) = self.shares.end() {
            self.violated(now, invariant, text);
        }
    }

    /// A replica is asked.
    pub fn asked(&mut self, now: Duration, nonce: u64, work: Work) {
        let asked = self.shares.asked(now, self.calm_since, (work.gateway, work.replica));
        if let Err((invariant, text)) = asked {
            self.violated(now, invariant, text);
        }
        // A gateway that begins anew counts its requests from the beginning: what one of its former life still has on its way
        // is another client's.
        let key = (work.gateway, work.request.clone(), work.ticket);
        let count = self.attempts.entry(key).or_default();
        *count += 1;
        let (count, max) = (*count, self.plan.attempts_max());
        if count > max {
            let Work { replica, request, .. } = &work;
            let text = format!("{request} reaches replica-{replica} as attempt {count} of {max}");
            self.violated(now, 7, text);
        }
        self.joins(now, &work);
        let usable = self.usable.entry((work.gateway, work.request.clone())).or_default();
        *usable = u64::from(work.prompt + work.tokens).max(*usable);
        self.began_to_work(now, &work);
        self.work.insert(nonce, work);
        self.live.insert(nonce);
        self.worked(now, nonce);
    }

    /// A journal charges a request: what a replica can have used for it, at most.
    pub fn charged(&mut self, now: Duration, charge: &Charge) {
        let Charge { gateway, request, tokens, is_estimate } = charge;
        let usable = self.usable.get(&(*gateway, request.clone())).copied().unwrap_or_default();
        let most = if *is_estimate { usable * ESTIMATE_FACTOR } else { usable };
        if *tokens > most {
            let text = format!("{request} is charged {tokens} tokens, and used {usable} at most");
            return self.violated(now, 1, text);
        }
        self.is_billed(now, charge);
        self.pays(now, charge);
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
        let end = match self.unread_since(*ticket) {
            Some(since) => since.min(deadline),
            None => deadline,
        };
        // Turmoil never sends a lost segment again: a cut in the middle may have taken the end's message with it.
        let calm = self.calm_since.is_some_and(|since| since <= of.began);
        if calm && now > end + self.work_after_end(*ticket) {
            let late = now.saturating_sub(end).as_secs_f64();
            let text = format!("replica-{replica} works on {request} {late:.1} s after its end");
            self.violated(now, 12, text);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_order_and_all_of_them_are_a_whole_answer() {
        let mut world = World::with_answer(3);
        (0..3).for_each(|seq| world.token(&format!("t7.{seq}")));
        world.checks.clean_end(NOW, world.ticket, Some(9));
        assert_eq!(world.broken(), None);
        assert_eq!(world.checks.take_acknowledged().len(), 1);
    }

    #[test]
    fn what_was_said_before_a_journal_was_damaged_is_not_looked_for_in_it() {
        for (damaged_at, acknowledged) in [(NOW, 0), (NOW - Duration::from_millis(1), 1)] {
            let mut world = World::with_answer(1);
            world.checks.damaged(damaged_at, world.checks.plan.operations[0].gateway);
            world.token("t7.0");
            world.checks.clean_end(NOW, world.ticket, None);
            assert_eq!(world.checks.take_acknowledged().len(), acknowledged);
        }
    }

    #[test]
    fn a_gap_a_repeat_and_a_seam_break_the_sixth() {
        for wrong in ["t7.2", "t7.0", "t8.1", "nonsense", "t7"] {
            let mut world = World::with_answer(3);
            world.token("t7.0");
            world.token(wrong);
            assert_eq!(world.broken(), Some(6), "{wrong}");
        }
    }

    #[test]
    fn a_clean_end_before_the_last_token_breaks_the_sixth() {
        let mut world = World::with_answer(3);
        world.token("t7.0");
        world.checks.clean_end(NOW, world.ticket, None);
        assert_eq!(world.broken(), Some(6));
    }

    #[test]
    fn an_answer_to_another_request_breaks_the_sixth() {
        let mut world = World::with_answer(3);
        world.checks.named(world.ticket, "req_1-2".into(), None);
        world.token("t7.0");
        assert_eq!(world.broken(), Some(6));
    }

    #[test]
    fn one_attempt_too_many_breaks_the_seventh() {
        let mut world = World::with_answer(3);
        let max = world.checks.plan.attempts_max();
        for attempt in 1..max {
            world.ask(7 + u64::from(attempt));
            assert_eq!(world.broken(), None, "attempt {attempt}");
        }
        world.ask(100);
        assert_eq!(world.broken(), Some(7));
    }

    #[test]
    fn work_for_somebody_who_left_breaks_the_twelfth_where_the_network_was_calm() {
        for (calm_since, expected) in [(Some(Duration::ZERO), Some(12)), (None, None)] {
            let mut world = World::with_answer(3);
            world.checks.saw(NOW, world.ticket, Seen::Left, true);
            world.checks.calm_since = calm_since;
            world.checks.look(NOW + WORK_AFTER_END);
            assert_eq!(world.broken(), None, "that may take its time");
            world.checks.look(NOW + WORK_AFTER_END + Duration::from_millis(5));
            assert_eq!(world.broken(), expected);
        }
    }

    #[test]
    fn a_charge_for_what_nobody_used_breaks_the_first() {
        for (request, tokens, is_estimate, broken) in [
            ("req_1-1", 4, false, None),
            ("req_1-1", 5, false, Some(1)),
            ("req_1-1", 4 * ESTIMATE_FACTOR, true, None),
            ("req_1-1", 4 * ESTIMATE_FACTOR + 1, true, Some(1)),
            // It reached no replica.
            ("req_1-2", 1, true, Some(1)),
        ] {
            let mut world = World::with_answer(3);
            let gateway = world.checks.plan.operations[0].gateway;
            let charge = Charge { gateway, request: request.into(), tokens, is_estimate };
            // Long enough after it was asked that all of it can have been said.
            world.checks.charged(2 * NOW, &charge);
            assert_eq!(world.broken(), broken, "{charge:?}");
        }
    }

    #[test]
    fn work_that_was_let_go_of_is_nobodys_fault() {
        let mut world = World::with_answer(3);
        world.checks.saw(NOW, world.ticket, Seen::Unknown, true);
        world.checks.rested(7);
        world.checks.look(NOW + 2 * WORK_AFTER_END);
        assert_eq!(world.broken(), None);
    }

    #[test]
    fn an_unserved_fresh_request_breaks_the_ninth_and_a_second_end_the_third() {
        let mut world = World::with_answer(3);
        world.checks.plan.operations[0].must_succeed = true;
        world.checks.saw(NOW, world.ticket, Seen::Refused(503), false);
        assert_eq!(world.broken(), None, "it will try again");
        world.checks.saw(NOW, world.ticket, Seen::Whole, true);
        assert_eq!(world.broken(), Some(3));
        let mut world = World::with_answer(3);
        world.checks.plan.operations[0].must_succeed = true;
        world.checks.saw(NOW, world.ticket, Seen::Unknown, true);
        assert_eq!(world.broken(), Some(9));
    }

    const NOW: Duration = Duration::from_secs(1);

    /// One try of the plan's first operation, and the answer `t7` to it.
    struct World {
        checks: Checks,
        ticket: usize,
        tokens: u32,
    }

    impl World {
        fn with_answer(tokens: u32) -> Self {
            let plan = super::super::plan(1);
            let mut checks = Checks::new(&plan);
            let ticket = checks.begins(NOW, 0);
            checks.named(ticket, "req_1-1".into(), None);
            let mut world = Self { checks, ticket, tokens };
            world.ask(7);
            world
        }

        fn ask(&mut self, nonce: u64) {
            let gateway = self.checks.plan.operations[0].gateway;
            let (request, ticket) = ("req_1-1".to_owned(), Some(self.ticket));
            let work =
                Work { replica: 0, gateway, request, ticket, prompt: 1, tokens: self.tokens };
            self.checks.asked(NOW, nonce, work);
        }

        fn token(&mut self, text: &str) {
            self.checks.token(NOW, self.ticket, text);
        }

        fn broken(&self) -> Option<u8> {
            self.checks.violation().map(|violation| violation.invariant)
        }
    }
}
