//! What gateways share beside the ledger: consulted when a request's turn has come, told when it is over.
//!
//! A request waits for its consultation together with its reservation, and for no longer than one does that can do without
//! the store. What the store then says late is noted and decides nothing any more: the request went on with what this plane knows. But for one word:
//! where nothing was sent out yet, because the ledger is slow as well, a key that is another's stops it still.
//!
//! Notes are made of what a request did. What it took is corrected by what it used; where nobody let it through but this
//! plane, what it used is counted all the same. Its key is told as charged, or freed.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::ControlPlane;
use super::effect::{Durable, Effect, Refusal};
use super::observation::{Observation, Stale};
use super::request::{Heard, Phase, Request};
use crate::affinity::Binding;
use crate::id::{EndpointId, RequestId, SessionKey};
use crate::quota::StoreMode;
use crate::rate::{RateUnit, at_least_one};
use crate::shared::{
    Ask, Claimant, Consult, Consulted, HomeAnswer, Housed, KeyAnswer, KeyClaim, Note, Noted,
    Orphan, Part, RateCorrection, RateTake, RatesAnswer, SharedOpId, drain_micros, micros,
};
use crate::units::Tokens;

/// How long a claim outlives the time its request has: its last count, and a note that is tried more than once.
const LEASE_SLACK: core::time::Duration = core::time::Duration::from_secs(60);

impl ControlPlane {
    /// Whether a part is shared with others at all.
    fn shares(&self, part: Part) -> bool {
        match self.quota.config().store {
            StoreMode::Embedded => false,
            StoreMode::Shared => true,
            StoreMode::Edge => part == Part::Rates,
        }
    }

    /// Asks the store what the request needs of it. Before its reservation is asked for, in the same step.
    pub(super) fn consult(&mut self, id: RequestId) {
        if !self.shares(Part::Rates) {
            return;
        }
        let all = self.shares(Part::Keys);
        let request = &self.requests[&id];
        let (arrival, op) = (&request.arrival, self.shared.mint());
        let affine = self.config.policy_of(&arrival.model).is_affine();
        let home = arrival.session.filter(|session| session.is_named() && affine && all);
        let rates = if planted!(RatesNotConsulted) { Vec::new() } else { self.takes(request) };
        let by = Claimant { owner: self.quota.config().owner, request: id };
        let key = arrival.idempotency.filter(|_| all);
        let claim = key.map(|idempotency| KeyClaim { idempotency, by });
        let probe_every = self.config.quota.probe_every;
        if self.quota.answers() {
            self.shared.trust();
        }
        let before = self.shared.any_away();
        let (shared, now) = (&mut self.shared, self.now);
        let mut wants = |part, needed: bool| needed && shared.wants(now, part, probe_every);
        let rates = if wants(Part::Rates, !rates.is_empty()) { rates } else { Vec::new() };
        let idempotency = claim.filter(|_| wants(Part::Keys, true));
        let home = home.filter(|_| wants(Part::Homes, true)).map(|session| session.key);
        let parts: Vec<_> = [
            (!rates.is_empty()).then_some(Part::Rates),
            idempotency.map(|_| Part::Keys),
            home.map(|_| Part::Homes),
        ]
        .into_iter()
        .flatten()
        .collect();
        if parts.is_empty() {
            return;
        }
        let (caller, tenant) = (arrival.caller, arrival.principal.tenant);
        let lease = micros(request.deadline.since(self.now) + LEASE_SLACK);
        let wait = self.config.quota.fallback_wait();
        let awaited = self.shared.ask(self.now, op, (id, caller, tenant), parts, wait);
        let claims = idempotency.is_some();
        let consult = Consult { op, caller, request: id, tenant, lease, rates, idempotency, home };
        self.effects.push_back(Effect::Consult(Box::new(consult)));
        let request = self.requests.get_mut(&id).expect("it is consulted about");
        request.heard = Heard { out: Some(op), awaits: awaited, claims, ..Heard::default() };
        // What is suspected is away from here on.
        self.say_degraded(before);
    }

    /// What it takes of each limit that it was admitted under here.
    fn takes(&self, request: &Request) -> Vec<RateTake> {
        let burst = self.config.rate.burst;
        let mut takes = Vec::new();
        for (account, limits) in &request.rates {
            let rpm = limits.rpm.map(|limit| (RateUnit::Rpm, u64::from(limit), 1));
            let tpm = limits.tpm.map(|limit| (RateUnit::Tpm, limit, request.rated.0));
            for (unit, limit, amount) in rpm.into_iter().chain(tpm) {
                let drain = drain_micros(limit, amount);
                // Rounded as the one unit is that it has room for.
                let burst = micros(at_least_one(limit, burst)).max(drain_micros(limit, 1));
                takes.push(RateTake { account: *account, unit, limit, drain, burst });
            }
        }
        takes
    }

    pub(super) fn handle_consulted(&mut self, answer: Consulted) {
        let Some(ask) = self.shared.take(answer.op) else {
            return self.observe(Observation::Stale(Stale::Shared(answer.op)));
        };
        self.parts_heard(
            &ask,
            |part| match part {
                Part::Rates => answer.rates.is_some(),
                Part::Keys => answer.idempotency.is_some(),
                Part::Homes => answer.home.is_some(),
            },
            &answer.odd,
        );
        if let Some(orphan) = &ask.orphan {
            return self.give_back(&ask, orphan, &answer);
        }
        let id = ask.request;
        let Some(request) = self.requests.get_mut(&id) else { return };
        let session = request.arrival.session;
        request.heard.out = None;
        if let Some(RatesAnswer::Taken { until }) = answer.rates {
            request.heard.until = Some(until);
        }
        if let Some(key) = answer.idempotency {
            request.heard.claims = key == KeyAnswer::Begun;
        }
        let awaited = core::mem::take(&mut request.heard.awaits);
        if let (Some(session), Some(home)) = (session, &answer.home) {
            let home = self.hear_home(session.key, home);
            self.requests.get_mut(&id).expect("it is live").heard.home = Some(home);
        }
        let refusal = refusal_of(&answer);
        let is_anothers = answer.idempotency.is_some_and(|key| key != KeyAnswer::Begun);
        let unsent = matches!(self.requests[&id].phase, Phase::Reserving);
        self.observe(Observation::Consulted { request: id, answer: Box::new(answer), awaited });
        match refusal {
            Some(refusal) if awaited || (unsent && is_anothers) => self.refuse(id, refusal),
            Some(_) => {}
            None if awaited => self.go_on(id),
            None => {}
        }
    }

    pub(super) fn handle_consult_failed(&mut self, op: SharedOpId) {
        match self.shared.take(op) {
            Some(ask) => self.nobody_answers(&ask),
            None => self.observe(Observation::Stale(Stale::Shared(op))),
        }
    }

    /// Asks whose wait is over, as many as one step does.
    pub(super) fn consults_due(&mut self, most: usize) {
        for _ in 0..most {
            let Some(ask) = self.shared.overdue(self.now) else { return };
            self.nobody_answers(&ask);
        }
    }

    /// Its request goes on alone.
    fn nobody_answers(&mut self, ask: &Ask) {
        self.parts_heard(ask, |_| false, &[]);
        let Some(request) = self.requests.get_mut(&ask.request) else { return };
        if core::mem::take(&mut request.heard.awaits) {
            self.observe(Observation::ConsultLost { request: ask.request });
            self.go_on(ask.request);
        }
    }

    /// Which parts answered. Those that are `odd` have neither answered nor shown that they do not.
    fn parts_heard(&mut self, ask: &Ask, answered: impl Fn(&Part) -> bool, odd: &[Part]) {
        let before = self.shared.any_away();
        let parts = ask.parts.iter().filter(|part| !odd.contains(part));
        let parts: Vec<_> = parts.map(|part| (*part, answered(part))).collect();
        self.shared.heard(self.now, &parts, self.config.quota.probe_every);
        self.say_degraded(before);
    }

    fn say_degraded(&mut self, before: bool) {
        let after = self.shared.any_away();
        if before != after {
            self.observe(Observation::SharedDegraded(after));
        }
    }

    /// The store has nothing against it: it is sent out if the ledger has nothing either.
    fn go_on(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        if request.heard.granted && matches!(request.phase, Phase::Reserving) {
            self.pick(id);
        }
    }

    /// What the store took for a request that is over.
    fn give_back(&mut self, ask: &Ask, orphan: &Orphan, answer: &Consulted) {
        if let Some(RatesAnswer::Taken { until }) = answer.rates
            && !orphan.rates.is_empty()
        {
            let held = orphan.rates.iter().map(|rate| RateCorrection { until, ..*rate });
            self.note(ask, Noted::Rates(held.collect()));
        }
        if let (Some(idempotency), Some(KeyAnswer::Begun)) = (orphan.key, answer.idempotency) {
            let by = Claimant { owner: self.quota.config().owner, request: ask.request };
            self.note(ask, Noted::Key { idempotency, by, charged: false, keep: 0 });
        }
    }

    fn note(&mut self, ask: &Ask, what: Noted) {
        let (op, tenant, caller) = (self.shared.mint(), ask.tenant, ask.caller);
        self.effects.push_back(Effect::Note(Box::new(Note { op, tenant, caller, what })));
    }

    fn note_of(&mut self, request: &Request, what: Noted) {
        let (tenant, caller) = (request.arrival.principal.tenant, request.arrival.caller);
        let op = self.shared.mint();
        self.effects.push_back(Effect::Note(Box::new(Note { op, tenant, caller, what })));
    }

    /// A request is over: the store is told what it used, and whether its key was charged.
    pub(super) fn tell_end(
        &mut self,
        id: RequestId,
        request: &Request,
        used: Tokens,
        charged: bool,
    ) {
        if !self.shares(Part::Rates) {
            return;
        }
        let Heard { until, claims, out, .. } = request.heard;
        let corrections = self.corrections(request, used);
        let counts = used > Tokens::ZERO && !self.shared.is_away(Part::Rates);
        if (until.is_some() || counts) && !corrections.is_empty() {
            self.note_of(request, Noted::Rates(corrections.clone()));
        }
        let key = request.arrival.idempotency.filter(|_| self.shares(Part::Keys));
        if let Some(idempotency) = key.filter(|_| claims || charged)
            && !(planted!(ChargedKeyNotTold) && charged)
        {
            let keep = micros(self.config.session.idempotency_ttl);
            let by = Claimant { owner: self.quota.config().owner, request: id };
            self.note_of(request, Noted::Key { idempotency, by, charged, keep });
        }
        if let Some(op) = out {
            let drained = |limit| drain_micros(limit, request.rated.0);
            let held = corrections.iter().zip(tpm_limits(request));
            let rates = held
                .map(|(rate, limit)| RateCorrection { held: drained(limit), used: 0, ..*rate })
                .collect();
            let key = key.filter(|_| !charged);
            self.shared.orphan(op, Orphan { rates, key });
        }
    }

    /// What was taken and what was used, of each limit of tokens.
    fn corrections(&self, request: &Request, used: Tokens) -> Vec<RateCorrection> {
        let most = micros(self.config.rate.hold_max);
        let Heard { until, .. } = request.heard;
        let accounts = request.rates.iter().filter(|(_, limits)| limits.tpm.is_some());
        accounts
            .zip(tpm_limits(request))
            .map(|((account, _), limit)| RateCorrection {
                account: *account,
                unit: RateUnit::Tpm,
                until: until.unwrap_or(0),
                held: until.map_or(0, |_| drain_micros(limit, request.rated.0)),
                used: drain_micros(limit, used.0).min(most),
            })
            .collect()
    }

    /// The store says where a session lives. Returns the endpoint, where it is one of ours, and the epoch.
    fn hear_home(&mut self, session: SessionKey, home: &HomeAnswer) -> (Option<EndpointId>, u64) {
        let (name, epoch) = match home {
            HomeAnswer::At { endpoint, epoch } => (Some(&**endpoint), *epoch),
            HomeAnswer::Nowhere { epoch } => (None, *epoch),
        };
        let endpoint = name.and_then(|name| self.registry.find(name));
        if planted!(LostHomeKept) {
            return (endpoint, epoch);
        }
        if let Some(endpoint) = endpoint {
            let binding = Binding { endpoint, epoch, last_used: self.now };
            if let Some(binding) = self.affinity.adopt(session, binding) {
                self.effects.push_back(Effect::Persist(Durable::Adopted { session, binding }));
                self.observe(Observation::Adopted { session, binding });
            }
        } else if self.affinity.lookup(self.now, session).is_some_and(|own| own.epoch <= epoch) {
            // It has left where we saw it, for nowhere or for an endpoint that nobody told us of.
            self.affinity.release(session);
            self.effects.push_back(Effect::Persist(Durable::Released { session }));
        }
        (endpoint, epoch)
    }

    pub(super) fn handle_housed(&mut self, housed: Housed) {
        if self.affinity.epoch(housed.session).is_none() {
            // Forgotten meanwhile: it will ask again.
            return self.observe(Observation::Stale(Stale::Shared(housed.op)));
        }
        self.hear_home(housed.session, &housed.home);
    }

    /// A session was accepted at an endpoint, and is bound there by this plane: the others are told, where that is new to
    /// the store or was last said long ago.
    pub(super) fn tell_home(
        &mut self,
        id: RequestId,
        session: SessionKey,
        moved: bool,
        known: Option<u64>,
    ) {
        let Some(request) = self.requests.get(&id) else { return };
        let named = request.arrival.session.is_some_and(|session| session.is_named());
        if !self.shares(Part::Homes) || !named || self.shared.is_away(Part::Homes) {
            return;
        }
        let Some(binding) = self.affinity.lookup(self.now, session) else { return };
        let elsewhere = request.heard.home.is_some_and(|(home, _)| home != Some(binding.endpoint));
        // A store that is behind would let others move the session under epochs that are over.
        let behind = request.heard.home.is_some_and(|(_, epoch)| epoch < binding.epoch);
        if !(self.affinity.tells(self.now, session) || moved || elsewhere || behind) {
            return;
        }
        let Some(endpoint) = self.registry.endpoint(binding.endpoint) else { return };
        let endpoint = endpoint.spec.name.clone();
        // What it was before we moved it.
        let raised = known != Some(binding.epoch);
        let believed = binding.epoch.saturating_sub(u64::from(raised));
        let ttl = micros(self.config.affinity.ttl);
        let (tenant, caller) = (request.arrival.principal.tenant, request.arrival.caller);
        let (op, what) = (self.shared.mint(), Noted::Home { session, endpoint, believed, ttl });
        self.effects.push_back(Effect::Note(Box::new(Note { op, tenant, caller, what })));
    }

    /// Nobody could answer a session.
    pub(super) fn tell_homeless(&mut self, request: &Request, session: SessionKey) {
        let named = request.arrival.session.is_some_and(|session| session.is_named());
        let believed = self.affinity.epoch(session);
        if let Some(believed) = believed.filter(|_| self.shares(Part::Homes) && named) {
            self.note_of(request, Noted::Homeless { session, believed });
        }
    }

    /// Each that waits for the store is one that was asked about.
    pub(super) fn who_waits_was_asked_about(&self) {
        self.shared.invariants();
        for (op, id) in self.shared.awaited() {
            let request = self.requests.get(&id);
            let waits = request
                .is_some_and(|request| request.heard.awaits && request.heard.out == Some(op));
            assert!(waits, "{id} waits for {op:?}");
        }
        let waiting = self.requests.values().filter(|request| request.heard.awaits).count();
        assert_eq!(waiting, self.shared.awaited().count(), "who waits is answered or gives up");
    }
}

/// The limits of tokens, in the order of the accounts that have one.
fn tpm_limits(request: &Request) -> impl Iterator<Item = u64> {
    request.rates.iter().filter_map(|(_, limits)| limits.tpm)
}

/// What the store has against a request.
fn refusal_of(answer: &Consulted) -> Option<Refusal> {
    let by = None;
    match answer.idempotency {
        Some(KeyAnswer::InFlight) => return Some(Refusal::IdempotencyInFlight { by }),
        Some(KeyAnswer::Done) => return Some(Refusal::IdempotencyDone { by }),
        Some(KeyAnswer::Mismatch) => return Some(Refusal::IdempotencyMismatch { by }),
        Some(KeyAnswer::Begun) | None => {}
    }
    match answer.rates {
        Some(RatesAnswer::Refused { account, unit, limit, retry_after }) => {
            Some(Refusal::RateLimited { account, unit, limit, retry_after })
        }
        Some(RatesAnswer::Taken { .. }) | None => None,
    }
}
