//! A plane without sockets: scripted replicas, a clock that is set, and every effect remembered by its caller.

use alloc::collections::BTreeMap;
use alloc::vec::Vec;
use core::time::Duration;

use crate::Machine;
use crate::balance::Reported;
use crate::id::{AccountId, AttemptId, CallerToken, Digest, Principal, SessionKey};
use crate::journal::{Explanation, Recorder, Replay};
use crate::outcome::{AttemptEnd, Failure};
use crate::plane::{
    AccountConfig, Arrival, Config, ControlPlane, Dispatch, Durable, Effect, Idempotency, Input,
    ModelConfig, Observation, Outcome, Refusal, Session, SessionKind,
};
use crate::quota::{self, Cap};
use crate::rate::RateLimits;
use crate::registry::{EndpointSpec, Fingerprint, SourceKind};
use crate::time::{Instant, Wall};
use crate::units::{Amount, MicroUsd, Price, Tokens, Usage};

/// Noon, some day in 2026.
pub(crate) const NOON: Wall =
    Wall::from_millis(1_780_000_000_000 / 86_400_000 * 86_400_000 + 43_200_000);

pub(crate) struct World {
    pub plane: ControlPlane,
    pub now: Instant,
    pub config: Config,
    pub effects: Vec<Effect>,
    pub observations: Vec<Observation>,
    /// The latest dispatch of each caller.
    pub dispatches: BTreeMap<CallerToken, Dispatch>,
    /// How each caller's request ended.
    pub ends: BTreeMap<CallerToken, Effect>,
    pub entries: Vec<quota::Entry>,
    /// Of every request, in order of arrival.
    pub explanations: Vec<(CallerToken, Explanation)>,
    /// The latest snapshot, and what was recorded since.
    snapshot: ControlPlane,
    records: Vec<Vec<u8>>,
    recorder: Recorder,
    callers: u64,
    memberships: u64,
    lives: u32,
}

/// Who asks for what, unless said otherwise: tenant 1, model `m`, a prompt of 10, at most 100, not streamed.
#[derive(Clone)]
pub(crate) struct Ask(pub Arrival);

impl World {
    pub fn new() -> Self {
        Self::with(|_| {})
    }

    /// With a configuration changed from: a token costs a micro-dollar, slices of 64.
    pub fn with(change: impl FnOnce(&mut Config)) -> Self {
        let mut config = Config::default();
        config.quota.slice = Tokens(64);
        let price = Price { input: MicroUsd(1_000_000), output: MicroUsd(1_000_000) };
        config.models.insert("m".into(), ModelConfig { price, ..ModelConfig::default() });
        change(&mut config);
        let plane = ControlPlane::with_config(7, config.clone());
        let mut world = Self {
            snapshot: plane.clone(),
            records: Vec::new(),
            recorder: Recorder::default(),
            plane,
            now: Instant::ZERO,
            config: config.clone(),
            effects: Vec::new(),
            observations: Vec::new(),
            dispatches: BTreeMap::new(),
            ends: BTreeMap::new(),
            entries: Vec::new(),
            explanations: Vec::new(),
            callers: 0,
            memberships: 0,
            lives: 0,
        };
        world.restart();
        world.input(Input::Configured(config.into()));
        world
    }

    /// With replicas of model `m` by these names.
    pub fn of(names: &[&str]) -> Self {
        let mut world = Self::new();
        world.members(names);
        world
    }

    pub fn configure(&mut self, change: impl FnOnce(&mut Config)) {
        change(&mut self.config);
        self.config.version += 1;
        self.input(Input::Configured(self.config.clone().into()));
    }

    pub fn members(&mut self, names: &[&str]) {
        self.listed(names.iter().map(|name| spec(name)).collect());
    }

    pub fn listed(&mut self, endpoints: Vec<EndpointSpec>) {
        self.memberships += 1;
        let (source, kind) = ("config".into(), SourceKind::Authoritative);
        self.input(Input::Membership { source, kind, version: self.memberships, endpoints });
    }

    pub fn drain(&mut self, name: &str, on: bool) {
        self.input(Input::Drain { endpoint: name.into(), on });
    }

    /// It says that so many requests run there.
    pub fn reports(&mut self, name: &str, running: u32) {
        let endpoint = self.plane.endpoint_id(name).unwrap();
        let load = Reported { running, ..Reported::default() };
        self.input(Input::LoadReported { endpoint, load });
    }

    pub fn restart(&mut self) -> Vec<Effect> {
        self.lives += 1;
        self.dispatches.clear();
        self.input(Input::Restarted { incarnation: self.lives, wall: self.wall() })
    }

    /// A recovery has to read nothing of what happened before.
    pub fn take_snapshot(&mut self) {
        self.snapshot = self.plane.clone();
        self.records.clear();
    }

    /// The process ends, and one of another logic begins: it has the snapshot, and the facts since.
    pub fn upgrade(&mut self) {
        let mut facts = Replay::from(self.snapshot.clone());
        for record in &self.records {
            facts.apply_facts(record).unwrap();
        }
        self.plane = facts.into_plane();
        self.take_snapshot();
        self.restart();
    }

    pub fn wall(&self) -> Wall {
        NOON + self.now.since(Instant::ZERO)
    }

    /// One step; what follows is remembered and returned.
    pub fn input(&mut self, input: Input) -> Vec<Effect> {
        self.recorder.begin(self.now, &input);
        self.plane.handle(self.now, input);
        self.plane.invariants();
        let effects: Vec<_> = core::iter::from_fn(|| self.plane.poll_effect()).collect();
        self.records.push(self.recorder.finish(&effects).to_vec());
        for effect in &effects {
            if let Effect::Admitted { caller, request } = effect {
                self.explanations.push((*caller, Explanation::of(*request)));
            }
        }
        while let Some(observation) = self.plane.poll_observation() {
            for (_, explanation) in &mut self.explanations {
                explanation.observe(&self.plane, &observation);
            }
            self.observations.push(observation);
        }
        for effect in &effects {
            match effect {
                Effect::Dispatch(dispatch) => {
                    assert!(!self.ends.contains_key(&dispatch.caller), "its request is over");
                    self.dispatches.insert(dispatch.caller, dispatch.clone());
                }
                Effect::Reject { caller, .. } | Effect::Finish { caller, .. } => {
                    let before = self.ends.insert(*caller, effect.clone());
                    assert_eq!(before, None, "a request ends once");
                }
                Effect::Persist(Durable::Entry(entry)) => self.entries.push(entry.clone()),
                _ => {}
            }
        }
        self.effects.extend(effects.iter().cloned());
        effects
    }

    /// Time passes, with a timeout for every timer on the way.
    pub fn later(&mut self, wait: Duration) {
        let until = self.now + wait;
        for _ in 0..100_000 {
            match self.plane.poll_timeout() {
                Some((due, _)) if due <= until => {
                    self.now = self.now.max(due);
                    self.input(Input::Timeout);
                }
                _ => {
                    self.now = until;
                    return;
                }
            }
        }
        panic!("a timer is served and stays: {:?}", self.plane.poll_timeout());
    }

    pub fn ask(&mut self, ask: Ask) -> CallerToken {
        self.callers += 1;
        let caller = CallerToken(self.callers);
        self.input(Input::RequestArrived(Arrival { caller, ..ask.0 }.into()));
        caller
    }

    pub fn attempt(&self, caller: CallerToken) -> AttemptId {
        self.dispatches[&caller].attempt
    }

    /// The name of the endpoint it was last sent to.
    pub fn at(&self, caller: CallerToken) -> &str {
        &self.dispatches[&caller].endpoint_name
    }

    pub fn accept(&mut self, caller: CallerToken) -> Vec<Effect> {
        let attempt = self.attempt(caller);
        self.input(Input::AttemptAccepted { attempt })
    }

    pub fn first_token(&mut self, caller: CallerToken) {
        let attempt = self.attempt(caller);
        self.input(Input::FirstToken { attempt });
    }

    pub fn produce(&mut self, caller: CallerToken, produced: u64) -> Vec<Effect> {
        let attempt = self.attempt(caller);
        self.input(Input::Progress { attempt, produced: Tokens(produced) })
    }

    pub fn end(&mut self, caller: CallerToken, end: AttemptEnd) -> Vec<Effect> {
        let attempt = self.attempt(caller);
        self.input(Input::AttemptEnded { attempt, end })
    }

    pub fn complete(&mut self, caller: CallerToken, completion: u64) -> Vec<Effect> {
        let usage = Usage { prompt: Tokens(10), completion: Tokens(completion) };
        self.end(caller, AttemptEnd::Completed { usage, estimated: false })
    }

    pub fn fail(&mut self, caller: CallerToken, failure: Failure) -> Vec<Effect> {
        self.end(caller, failed(failure, 0))
    }

    pub fn gone(&mut self, caller: CallerToken) -> Vec<Effect> {
        self.input(Input::ClientGone { caller })
    }

    pub fn refusal(&self, caller: CallerToken) -> Refusal {
        match self.ends.get(&caller) {
            Some(Effect::Reject { refusal, .. }) => refusal.clone(),
            end => panic!("not refused: {end:?}"),
        }
    }

    pub fn finish(&self, caller: CallerToken) -> (Outcome, Amount, u32) {
        match self.ends.get(&caller) {
            Some(Effect::Finish { outcome, charged, attempts, .. }) => {
                (*outcome, *charged, *attempts)
            }
            end => panic!("not finished: {end:?}"),
        }
    }

    /// Answers whole, and was charged so many tokens.
    pub fn charged(&self, caller: CallerToken) -> u64 {
        self.finish(caller).1.tokens.0
    }

    pub fn runs(&self, caller: CallerToken) -> bool {
        !self.ends.contains_key(&caller)
    }

    pub fn view(&self, name: &str) -> crate::plane::EndpointView {
        self.plane.view().endpoints.into_iter().find(|e| *e.name == *name).unwrap()
    }

    /// What the tenant has spent today.
    pub fn spent(&self, tenant: u64) -> u64 {
        let ledger = self.plane.ledger().ledger().unwrap();
        let own = ledger.balances().filter(|(key, _)| {
            key.account == AccountId(tenant) && key.window.kind() == quota::WindowKind::Day
        });
        own.map(|(_, sums)| sums.spent.tokens.0).sum()
    }

    /// Why its request went as it did, one line below the other.
    pub fn explain(&self, caller: CallerToken) -> String {
        let told = self.explanations.iter().find(|(of, _)| *of == caller);
        let lines = told.into_iter().flat_map(|(_, explanation)| explanation.lines());
        lines.map(|line| format!("{:?} {}\n", line.at, line.text)).collect()
    }

    /// Nothing runs, nothing is held, and the algebra holds.
    pub fn is_quiet(&self) {
        let view = self.plane.view();
        assert_eq!((view.requests, view.reservations), (0, 0), "something is left over");
        assert!(view.endpoints.iter().all(|endpoint| endpoint.in_flight == 0), "{view:?}");
        assert!(self.plane.audit().violations.is_empty());
        self.plane.invariants();
    }
}

impl Ask {
    pub fn new() -> Self {
        Self(Arrival {
            caller: CallerToken(0),
            model: "m".into(),
            principal: Principal { tenant: AccountId(1), user: None, key: None },
            session: None,
            idempotency: None,
            prompt: Tokens(10),
            output_max: Some(Tokens(100)),
            resumable: false,
            stream: false,
            patience: None,
        })
    }

    pub fn stream() -> Self {
        Self(Arrival { stream: true, output_max: None, ..Self::new().0 })
    }

    pub fn resumable() -> Self {
        Self(Arrival { resumable: true, ..Self::stream().0 })
    }

    pub fn model(mut self, model: &str) -> Self {
        self.0.model = model.into();
        self
    }

    pub fn tenant(mut self, tenant: u64) -> Self {
        self.0.principal.tenant = AccountId(tenant);
        self
    }

    pub fn session(mut self, key: u64) -> Self {
        self.0.session = Some(Session { key: SessionKey(key), kind: SessionKind::Hint });
        self
    }

    pub fn stored(mut self, key: u64) -> Self {
        self.0.session = Some(Session { key: SessionKey(key), kind: SessionKind::Stored });
        self
    }

    pub fn keyed(mut self, key: u128, body: u128) -> Self {
        self.0.idempotency = Some(Idempotency { key: Digest(key), body: Digest(body) });
        self
    }

    pub fn at_most(mut self, output_max: u64) -> Self {
        self.0.output_max = Some(Tokens(output_max));
        self
    }

    pub fn patience(mut self, patience: Duration) -> Self {
        self.0.patience = Some(patience);
        self
    }
}

pub(crate) fn spec(name: &str) -> EndpointSpec {
    EndpointSpec {
        name: name.into(),
        weight: 100,
        tier: 0,
        in_flight_max: 64,
        rps_max: None,
        models: Vec::from(["m".into()]),
        fingerprint: None,
    }
}

/// One that continues the streams of others with the same mark.
pub(crate) fn alike(name: &str, fingerprint: u64) -> EndpointSpec {
    EndpointSpec { fingerprint: Some(Fingerprint(fingerprint)), ..spec(name) }
}

pub(crate) fn failed(failure: Failure, produced: u64) -> AttemptEnd {
    AttemptEnd::Failed { failure, produced: Tokens(produced), retry_after: None }
}

/// An account that may spend so many tokens a day.
pub(crate) fn daily(tokens: u64) -> AccountConfig {
    let day = Cap { tokens: Some(Tokens(tokens)), money: None };
    let limits = quota::Limits { day, ..quota::Limits::default() };
    AccountConfig { limits, ..AccountConfig::default() }
}

pub(crate) fn rated(rpm: Option<u32>, tpm: Option<u64>) -> AccountConfig {
    AccountConfig { rates: RateLimits { rpm, tpm }, ..AccountConfig::default() }
}

pub(crate) const fn seconds(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}
