//! Who is there, what is configured, and what is due.

use alloc::boxed::Box;
use alloc::vec::Vec;

use super::observation::{Observation, Stale};
use super::{Config, ControlPlane};
use crate::balance::{Member, Reported};
use crate::breaker::{Cause, Transition};
use crate::id::EndpointId;
use crate::registry::{Change, EndpointSpec, SourceKind};

impl ControlPlane {
    pub(super) fn handle_membership(
        &mut self,
        source: Box<str>,
        kind: SourceKind,
        version: u64,
        endpoints: Vec<EndpointSpec>,
    ) {
        let applied = self.registry.apply(self.now, &source, kind, version, endpoints);
        for change in applied.changes {
            self.member_changed(change);
        }
        if let Some(why) = applied.refused {
            self.observe(Observation::SourceRefused { source, why });
        }
    }

    fn member_changed(&mut self, change: Change) {
        match change {
            Change::Added(id) => {
                self.breakers.insert(id);
                self.enlist(id);
                self.observe(Observation::EndpointAdded(id));
            }
            Change::Updated(id) => self.enlist(id),
            // Attempts that run there run on: the source may be wrong, and their clients wait.
            Change::Removed { id, name } => {
                self.balance.remove(id);
                self.breakers.remove(id);
                self.throttle.remove(id);
                self.affinity.endpoint_removed(id);
                self.observe(Observation::EndpointRemoved { id, name });
            }
        }
    }

    /// A breaker moved: who may be picked follows. An endpoint that its sources have left out, that was ejected, and
    /// that failed again when it was probed, is gone: nobody but its own silence speaks for it.
    pub(super) fn breaker_moved(&mut self, transition: Transition) {
        self.sync(transition.id);
        let failed_again = matches!(transition.cause, Cause::ProbeFailed | Cause::ProbeExpired);
        self.observe(Observation::Breaker(transition));
        if failed_again && let Some(change) = self.registry.prune(transition.id) {
            self.member_changed(change);
        }
    }

    /// Puts an endpoint into the pools its models belong to, as the registry describes it.
    fn enlist(&mut self, id: EndpointId) {
        let endpoint = self.registry.endpoint(id).expect("the registry has just named it");
        let spec = &endpoint.spec;
        let draining = endpoint.draining;
        self.balance.insert(
            id,
            Member {
                name: &spec.name,
                weight: spec.weight,
                tier: spec.tier,
                in_flight_max: spec.in_flight_max,
                models: &spec.models,
            },
        );
        self.balance.set_draining(id, draining);
        self.sync(id);
    }

    pub(super) fn handle_drain(&mut self, name: &str, on: bool) {
        match self.registry.drain(name, on) {
            Some(_) if planted!(DrainedStillPicked) && on => {}
            Some(id) => self.balance.set_draining(id, on),
            None => self.observe(Observation::Stale(Stale::Endpoint)),
        }
    }

    /// An endpoint says how busy it is; that it has left meanwhile is a normal race.
    pub(super) fn handle_load(&mut self, endpoint: EndpointId, load: Reported) {
        if !self.balance.reported(self.now, endpoint, load) {
            self.observe(Observation::Stale(Stale::Endpoint));
        }
    }

    /// Takes a whole configuration; what did not change keeps its state, and requests under way keep their price, their
    /// deadline and their attempt. Looks at every endpoint: a reload is a person's doing, and rare.
    pub(super) fn handle_configured(&mut self, config: Config) {
        let config = config.within_bounds();
        for change in self.registry.set_config(config.registry.clone()) {
            self.member_changed(change);
        }
        self.balance.set_config(config.balance.clone());
        self.affinity.set_config(config.affinity.clone());
        self.breakers.set_config(config.breaker.clone());
        self.retry.set_config(self.now, config.attempt.clone());
        self.quota.set_config(config.quota.clone());
        self.rate.set_config(config.rate.clone());
        self.concurrency.set_config(config.concurrency.clone());
        self.turns.set_config(config.session.clone());
        self.idempotency.set_config(config.session.clone());
        self.balance.reset_policies();
        for (name, model) in &config.models {
            if let Some(policy) = model.policy {
                self.balance.set_policy(name, policy);
            }
        }
        self.observe(Observation::Configured { version: config.version });
        self.config = config;
        // A slow start's steps are read from the configuration.
        let ids: Vec<_> = self.registry.iter().map(|endpoint| endpoint.id).collect();
        for id in ids {
            self.sync(id);
            if planted!(ConfigEditEvicts)
                && self.breakers.state(id).is_some_and(|state| state.ejected())
            {
                self.balance.set_draining(id, true);
            }
        }
    }

    /// Whatever is due. One step does bounded work: what is left over asks for another timeout at once.
    pub(super) fn handle_timeout(&mut self) {
        for transition in self.breakers.handle_timeout(self.now) {
            self.breaker_moved(transition);
        }
        self.quota.handle_timeout(self.now);
        self.drain_quota();
        for (_, request) in self.turns.handle_timeout(self.now) {
            if self.requests.contains_key(&request) {
                self.refuse(request, super::Refusal::TurnConflict);
            }
        }
        self.idempotency.expire(self.now);
        self.affinity.expire(self.now, EXPIRED_PER_STEP);
        self.consults_due(DUE_PER_STEP);
        for _ in 0..DUE_PER_STEP {
            match self.timers.first() {
                Some((due, id)) if *due <= self.now => self.request_due(*id),
                _ => break,
            }
        }
    }
}

/// Requests whose timers are served in one step: about a microsecond each, so that the lock is held well below 20 us
/// at the 99th percentile.
const DUE_PER_STEP: usize = 8;

/// Sessions' homes forgotten in one step, for the same reason.
const EXPIRED_PER_STEP: usize = 16;
