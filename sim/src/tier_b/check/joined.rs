//! What joins a client's try at a door with the request that a chat role makes of it.
//!
//! The two have different names for one request. The client's trace is the same at both, and at whom the chat role asks: so
//! what a replica or a worker is asked says which try it is for. Nothing here is asked of the product.

use std::collections::BTreeMap;
use std::time::Duration;

use super::super::plan::{Fault, TierBPlan};
use super::{Acknowledged, Charge, Checks, Work};
use crate::coverage::sometimes;

/// Which tries are which requests. Empty in plans without doors.
#[derive(Debug, Default)]
pub(super) struct Joined {
    /// The one request that a try is, with its chat role.
    tries: BTreeMap<usize, (u8, String)>,
    /// What was asked for under a key, by chat role and request.
    keyed: BTreeMap<(u8, String), usize>,
    /// The request that was charged for such an operation, by whoever counts it.
    paid: BTreeMap<(u8, usize), (u8, String)>,
    /// When each machine's journal lost something. Its answers may be with a door still, and are then not looked for in it.
    lost: BTreeMap<u8, Duration>,
    /// Whether all chat roles count a key once between them: they share a store, and nothing is wrong with it.
    is_one_book: bool,
}

impl Joined {
    pub fn new(plan: &TierBPlan) -> Self {
        let is_one_book = plan.shared && plan.faults.iter().all(|timed| spares_store(&timed.fault));
        Self { is_one_book, ..Self::default() }
    }

    /// The request that a try is, with its chat role.
    pub fn request_of(&self, ticket: usize) -> Option<(u8, String)> {
        self.tries.get(&ticket).cloned()
    }

    /// When a machine's journal lost something last.
    pub fn lost_at(&self, gateway: u8) -> Option<&Duration> {
        self.lost.get(&gateway)
    }

    /// What a chat role charged and forgot may be charged again.
    fn forgets(&mut self, gateway: u8) {
        self.paid.retain(|_, (by, _)| *by != gateway);
    }

    /// A chat role has an empty directory: it names its requests from the beginning again.
    pub fn begins_anew(&mut self, gateway: u8) {
        self.forgets(gateway);
        self.keyed.retain(|(of, _), _| *of != gateway);
    }
}

/// Whether a fault leaves what chat roles share alone, and everybody who has something to tell it.
fn spares_store(fault: &Fault) -> bool {
    let is_store = |name: &String| name == super::super::redis::HOST;
    match fault {
        Fault::Cut { a, b } | Fault::Hold { a, b } | Fault::Latency { a, b, .. } => {
            !is_store(a) && !is_store(b)
        }
        Fault::CutOneWay { from, to } => !is_store(from) && !is_store(to),
        Fault::Replica { .. }
        | Fault::ReplicaCrash { .. }
        | Fault::Drain { .. }
        | Fault::Reload { .. }
        | Fault::Consul { .. } => true,
        Fault::Kill { .. }
        | Fault::PowerLoss { .. }
        | Fault::Restart { .. }
        | Fault::DiskFull { .. }
        | Fault::DiskSlow { .. }
        | Fault::AppendsFail { .. }
        | Fault::SyncFails { .. }
        | Fault::BitFlip { .. }
        | Fault::Pause { .. }
        | Fault::CrashTwice { .. }
        | Fault::Redis { .. }
        | Fault::ClockJump { .. } => false,
    }
}

impl Checks {
    /// How the judge calls what is behind a try: as the gateway named it; behind a door as the try, or as the operation where its
    /// key makes all its tries one.
    pub(super) fn known_as(&self, ticket: usize, gateway: u8, request: &str) -> (u8, String) {
        if self.plan.doors == 0 {
            return (gateway, request.to_owned());
        }
        let operation = self.tickets[ticket].operation;
        let is_keyed = self.plan.operations[operation].keyed;
        (0, if is_keyed { String::new() } else { format!("try {ticket}") })
    }

    /// Whether something is worked on for this try, or for one that it repeats.
    pub(super) fn is_asked_for(&self, ticket: usize, work: &Work) -> bool {
        let heard = &self.tickets[ticket];
        let operation = &self.plan.operations[heard.operation];
        if self.plan.doors == 0 {
            return work.gateway == operation.gateway && work.request == heard.request;
        }
        let is_repeated = |asker: usize| {
            let asker = self.tickets.get(asker);
            operation.keyed && asker.is_some_and(|asker| asker.operation == heard.operation)
        };
        let is_for = |asker| asker == ticket || is_repeated(asker);
        heard.house == Some(work.gateway) && work.ticket.is_some_and(is_for)
    }

    /// Somebody works for a try: its only request, at its only chat role.
    pub(super) fn joins(&mut self, now: Duration, work: &Work) {
        let Some(ticket) = work.ticket.filter(|_| self.plan.doors > 0) else { return };
        let own = (work.gateway, work.request.clone());
        let first = self.joined.tries.entry(ticket).or_insert_with(|| own.clone());
        if *first != own {
            let text = format!("try {ticket} is {first:?} already, and becomes {own:?}");
            return self.violated(now, 3, text);
        }
        let Some(of) = self.tickets.get(ticket) else { return };
        if self.plan.operations[of.operation].keyed {
            self.joined.keyed.insert(own, of.operation);
        }
    }

    /// A chat role charges a request: the only one under its key.
    pub(super) fn pays(&mut self, now: Duration, charge: &Charge) {
        let own = (charge.gateway, charge.request.clone());
        let joined = &mut self.joined;
        let Some(operation) = joined.keyed.get(&own).filter(|_| charge.tokens > 0) else { return };
        sometimes!("b_door_key_charged");
        let by = if joined.is_one_book { 0 } else { charge.gateway };
        let first = joined.paid.entry((by, *operation)).or_insert_with(|| own.clone());
        if *first != own {
            let text = format!("operation {operation} is charged as {first:?} and as {own:?}");
            self.violated(now, 3, text);
        }
    }

    /// A machine lost some of its journal.
    pub fn forgets(&mut self, now: Duration, gateway: u8) {
        self.shelf.forgets(now, gateway);
        if self.plan.doors > 0 {
            self.joined.lost.insert(gateway, now);
            self.joined.forgets(gateway);
        }
    }

    /// An answer that came through a door ended as whole ones do: the chat role that the door names has settled it.
    pub(super) fn answered_behind(&mut self, now: Duration, ticket: usize, usage: Option<u64>) {
        sometimes!("b_door_answered");
        let Some(gateway) = self.tickets[ticket].house else {
            let text = format!("try {ticket} is answered, and the door does not say by whom");
            return self.violated(now, 6, text);
        };
        let tries = self.joined.tries.iter();
        let of_its = tries.filter(|(asker, (house, _))| {
            **asker == ticket || *house == gateway && self.repeats(ticket, **asker)
        });
        let requests: Vec<String> = of_its.map(|(_, (_, request))| request.clone()).collect();
        self.acknowledge(ticket, Acknowledged { gateway, requests, usage });
    }

    fn repeats(&self, ticket: usize, other: usize) -> bool {
        let operation = self.tickets[ticket].operation;
        let is_same = self.tickets.get(other).is_some_and(|other| other.operation == operation);
        is_same && self.plan.operations[operation].keyed
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::plan::{RedisTrouble, TimedFault};
    use super::*;

    const NOW: Duration = Duration::from_secs(1);

    #[test]
    fn a_try_is_one_request_at_one_chat_role_however_often_that_asks() {
        let mut door = Door::new(false);
        door.worked(7, 0, "req_1-1");
        door.worked(8, 0, "req_1-1");
        assert_eq!(door.broken(), None, "it asks another replica");
        for (gateway, request) in [(1, "req_1-1"), (0, "req_1-2")] {
            let mut door = Door::new(false);
            door.worked(7, 0, "req_1-1");
            door.worked(8, gateway, request);
            assert_eq!(door.broken(), Some(3), "{request} at {gateway}");
        }
    }

    #[test]
    fn an_answer_is_from_the_chat_role_that_the_door_names_for_who_asked() {
        for (house, broken) in [(Some(0), None), (Some(1), Some(6)), (None, Some(6))] {
            let mut door = Door::new(false);
            door.worked(7, 0, "req_1-1");
            door.checks.named(0, "req_9-9".into(), house);
            door.checks.token(NOW, 0, "t7.0");
            assert_eq!(door.broken(), broken, "{house:?}");
        }
        let mut door = Door::new(false);
        door.worked(7, 0, "req_1-1");
        let other = door.checks.begins(NOW, 1);
        door.checks.named(other, "req_9-8".into(), Some(0));
        door.checks.token(NOW, other, "t7.0");
        assert_eq!(door.broken(), Some(6), "somebody else asked");
    }

    #[test]
    fn a_clean_end_is_looked_for_at_the_door_and_at_the_chat_role_under_its_own_name() {
        let mut door = Door::new(false);
        door.worked(7, 1, "req_1-4");
        door.checks.named(0, "req_9-9".into(), Some(1));
        door.checks.token(NOW, 0, "t7.0");
        door.checks.clean_end(NOW, 0, Some(5));
        let told = door.checks.take_acknowledged();
        let told: Vec<_> = told.into_iter().map(|told| (told.gateway, told.requests)).collect();
        assert_eq!(told, [(2, vec!["req_9-9".to_owned()]), (1, vec!["req_1-4".to_owned()])]);
        assert_eq!(door.broken(), None);
    }

    #[test]
    fn what_a_door_passes_on_of_a_journal_that_lost_something_is_not_looked_for_in_it() {
        let mut door = Door::new(false);
        door.worked(7, 1, "req_1-4");
        door.checks.named(0, "req_9-9".into(), Some(1));
        door.checks.token(NOW, 0, "t7.0");
        door.checks.forgets(NOW, 1);
        door.checks.clean_end(NOW, 0, Some(5));
        let told = door.checks.take_acknowledged();
        assert_eq!(told.iter().map(|told| told.gateway).collect::<Vec<_>>(), [2]);
    }

    #[test]
    fn a_key_is_charged_once_by_each_who_counts_it() {
        for (shared, broken) in [(false, None), (true, Some(3))] {
            let mut door = Door::new(shared);
            door.charged_twice([(0, "req_1-1"), (1, "req_1-1")]);
            assert_eq!(door.broken(), broken, "shared: {shared}");
        }
        let mut door = Door::new(false);
        door.charged_twice([(0, "req_1-1"), (0, "req_1-2")]);
        assert_eq!(door.broken(), Some(3));
    }

    #[test]
    fn what_was_forgotten_or_has_no_key_or_is_no_charge_may_come_again() {
        let mut door = Door::new(false);
        door.work_of_two_tries([(0, "req_1-1"), (0, "req_1-2")]);
        door.charge(0, "req_1-1", 5);
        door.checks.forgets(NOW, 0);
        door.charge(0, "req_1-2", 5);
        assert_eq!(door.broken(), None, "its journal lost the first");
        let mut door = Door::new(false);
        door.checks.plan.operations[0].keyed = false;
        door.charged_twice([(0, "req_1-1"), (0, "req_1-2")]);
        assert_eq!(door.broken(), None, "it has no key");
        let mut door = Door::new(false);
        door.work_of_two_tries([(0, "req_1-1"), (0, "req_1-2")]);
        door.charge(0, "req_1-1", 0);
        door.charge(0, "req_1-2", 5);
        assert_eq!(door.broken(), None, "the first cost nothing");
    }

    #[test]
    fn a_store_that_something_may_be_wrong_with_is_no_one_book() {
        let fault = Fault::Redis { trouble: RedisTrouble::Mute };
        for (faults, one) in [(Vec::new(), true), (vec![fault], false)] {
            let faults = faults.into_iter();
            let faults = faults.map(|fault| TimedFault { at_ms: 1, for_ms: 1, fault }).collect();
            let plan = TierBPlan { shared: true, faults, ..super::super::super::plan(1) };
            assert_eq!(Joined::new(&plan).is_one_book, one);
        }
    }

    /// A keyed operation, asked once, at a door before two chat roles. Its answers have one token.
    struct Door {
        checks: Checks,
    }

    impl Door {
        fn new(shared: bool) -> Self {
            let mut plan = super::super::super::plan(1);
            (plan.gateways, plan.doors, plan.shared) = (2, 1, shared);
            plan.faults.clear();
            plan.operations.iter_mut().for_each(|asked| (asked.gateway, asked.keyed) = (2, true));
            let mut checks = Checks::new(&plan);
            checks.begins(NOW, 0);
            Self { checks }
        }

        fn worked(&mut self, nonce: u64, gateway: u8, request: &str) {
            self.worked_for(0, nonce, gateway, request);
        }

        fn worked_for(&mut self, ticket: usize, nonce: u64, gateway: u8, request: &str) {
            let (request, ticket) = (request.to_owned(), Some(ticket));
            let work = Work { replica: 0, gateway, request, ticket, prompt: 4, tokens: 1 };
            self.checks.asked(NOW, nonce, work);
        }

        fn work_of_two_tries(&mut self, requests: [(u8, &str); 2]) {
            for (nonce, (gateway, request)) in (0_u64..).zip(requests) {
                let ticket = if nonce == 0 { 0 } else { self.checks.begins(NOW, 0) };
                self.worked_for(ticket, nonce, gateway, request);
            }
        }

        fn charged_twice(&mut self, requests: [(u8, &str); 2]) {
            self.work_of_two_tries(requests);
            requests.iter().for_each(|(gateway, request)| self.charge(*gateway, request, 5));
        }

        fn charge(&mut self, gateway: u8, request: &str, tokens: u64) {
            let request = request.to_owned();
            let charge = Charge { gateway, request, tokens, is_estimate: false };
            self.checks.charged(NOW, &charge);
        }

        fn broken(&self) -> Option<u8> {
            self.checks.violation().map(|violation| violation.invariant)
        }
    }
}
