//! Attempts: picked, dispatched, accepted, producing.

use super::arrive::spent_of;
use super::effect::{Dispatch, Durable, Effect, Refusal};
use super::observation::{Observation, Stale};
use super::request::{Attempt, Phase, attempt_id, request_of, request_of_attempt, reservation_of};
use super::{AccountConfig, ControlPlane};
use crate::affinity::Decision as Move;
use crate::balance::{Chosen, Nobody, Pick, Query, Reason};
use crate::breaker::Admission;
use crate::id::{AttemptId, EndpointId, RequestId, ReservationId, SessionKey};
use crate::quota::Denied;
use crate::time::Instant;
use crate::units::{Amount, Tokens, Usage};

impl ControlPlane {
    /// Picks an endpoint for the request's next attempt and sends it there, or refuses.
    pub(super) fn pick(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        let key = request.arrival.session.map(|session| session.key);
        let home = key.and_then(|key| self.affinity.lookup(self.now, key));
        let bound = home.map(|b| b.endpoint).filter(|id| self.registry.endpoint(*id).is_some());
        let query = Query { model: &request.arrival.model, key, bound, tried: &request.tried };
        match self.balance.pick(&query) {
            Pick::Chosen(chosen) => self.dispatch(id, key, bound, chosen),
            Pick::Nobody(nobody) => self.nobody(id, nobody),
        }
    }

    fn dispatch(
        &mut self,
        id: RequestId,
        key: Option<SessionKey>,
        bound: Option<EndpointId>,
        chosen: Chosen,
    ) {
        let endpoint = chosen.endpoint;
        let binds = key.is_some_and(|key| self.binds(key, bound, &chosen));
        let ticket = self.breakers.begin(self.now, endpoint);
        self.balance.dispatched(endpoint);
        self.sync(endpoint);
        let request = self.requests.get_mut(&id).expect("a live request is dispatched");
        request.attempts += 1;
        request.tried.push(endpoint);
        let attempt = attempt_id(id, request.attempts);
        self.effects.push_back(Effect::Dispatch(Self::order(
            self.now,
            &self.config,
            id,
            request,
            (endpoint, &self.registry),
        )));
        let started = self.now;
        let running = Attempt { id: attempt, endpoint, ticket, started, binds, accepted: false };
        self.set_phase(id, Phase::Attempting(running));
        self.observe(Observation::Picked { request: id, attempt, chosen });
    }

    /// The attempt as the shell gets it.
    fn order(
        now: Instant,
        config: &super::Config,
        id: RequestId,
        request: &super::request::Request,
        (endpoint, registry): (EndpointId, &crate::registry::Registry),
    ) -> Dispatch {
        let arrival = &request.arrival;
        let timeouts = config.timeouts_of(&arrival.model);
        let deadlines = timeouts.attempt(now, request.deadline);
        let limited = config
            .accounts_of(&arrival.principal)
            .any(|(_, account)| account.is_some_and(AccountConfig::is_limited));
        let name = registry.endpoint(endpoint).map(|e| e.spec.name.clone());
        Dispatch {
            caller: arrival.caller,
            request: id,
            attempt: attempt_id(id, request.attempts),
            number: request.attempts,
            endpoint,
            endpoint_name: name.expect("what is picked is registered"),
            connect_by: deadlines.connect,
            first_token_by: if arrival.stream { deadlines.first_token } else { request.deadline },
            gap_max: deadlines.between_tokens,
            deadline: request.deadline,
            // A stream is extended while it runs; what comes at once must not outgrow what was granted.
            output_max: (limited && !arrival.stream && arrival.output_max != Some(Tokens::ZERO))
                .then_some(request.covered),
        }
    }

    /// Whether the session moves to the chosen endpoint once that has accepted. A home that is merely busy is kept: the
    /// session spills for one attempt, until spilling has become a habit.
    fn binds(&mut self, key: SessionKey, bound: Option<EndpointId>, chosen: &Chosen) -> bool {
        match (&chosen.reason, bound) {
            (Reason::Spilled { from }, Some(home)) if *from == home => {
                self.affinity.decide(self.now, key, true) == Move::Migrate
            }
            (_, Some(home)) if home == chosen.endpoint => {
                let stay = self.affinity.decide(self.now, key, false);
                stay == Move::Stay
            }
            // A spill of a session without a home binds as well: it will come back to where its prefix is.
            _ => true,
        }
    }

    fn nobody(&mut self, id: RequestId, nobody: Nobody) {
        let request = &self.requests[&id];
        let refusal = match request.last_failure {
            Some(failure) => {
                Refusal::Failed { failure, attempts: request.attempts, retry_after: None }
            }
            None => Refusal::NobodyLeft {
                members: nobody.members,
                draining: nobody.draining,
                ejected: nobody.ejected,
                full: nobody.full,
                retry_after: self.until_someone_returns(id),
            },
        };
        self.observe(Observation::Nobody { request: id, nobody });
        self.refuse(id, refusal);
    }

    /// When the first ejected endpoint of the request's model may be asked again; a second where none is ejected.
    fn until_someone_returns(&self, id: RequestId) -> core::time::Duration {
        let model = &self.requests[&id].arrival.model;
        let pool = self.registry.pool(model).into_iter().flatten();
        let returns =
            pool.filter_map(|endpoint| match self.breakers.admission(self.now, *endpoint) {
                Admission::Refused { until, .. } => Some(until.since(self.now)),
                Admission::Allowed { .. } => None,
            });
        returns.min().unwrap_or(core::time::Duration::from_secs(1))
    }

    /// Tells the balancer what the breaker says: what may not be picked is not in the pick set.
    pub(super) fn sync(&mut self, endpoint: EndpointId) {
        match self.breakers.admission(self.now, endpoint) {
            Admission::Allowed { share_permille } => {
                self.balance.set_admitted(endpoint, true);
                self.balance.set_share(endpoint, share_permille);
            }
            Admission::Refused { .. } => self.balance.set_admitted(endpoint, false),
        }
    }

    pub(super) fn handle_accepted(&mut self, attempt: AttemptId) {
        let Some((id, running)) = self.running(attempt) else { return self.stale(attempt) };
        if running.accepted {
            return;
        }
        let (endpoint, binds, started) = (running.endpoint, running.binds, running.started);
        if let Some(request) = self.requests.get_mut(&id)
            && let Phase::Attempting(running) = &mut request.phase
        {
            running.accepted = true;
        }
        self.show_life(id);
        self.observe(Observation::Accepted { attempt, after: self.now.since(started) });
        let session = self.requests[&id].arrival.session;
        if let Some(session) = session.filter(|_| binds) {
            self.bind(id, session.key, endpoint);
        }
    }

    /// A probe that shows life is not given up.
    fn show_life(&mut self, id: RequestId) {
        if let Some(running) = self.requests.get(&id).and_then(|request| request.attempt()) {
            self.breakers.progress(self.now, running.endpoint, running.ticket);
        }
    }

    fn bind(&mut self, request: RequestId, session: SessionKey, endpoint: EndpointId) {
        let before = self.affinity.lookup(self.now, session).map(|b| (b.endpoint, b.epoch));
        let bound = self.affinity.bind(self.now, session, endpoint);
        let binding = bound.binding;
        if before != Some((binding.endpoint, binding.epoch)) {
            let moved_from = bound.moved_from;
            self.effects.push_back(Effect::Persist(Durable::Binding { session, binding }));
            self.observe(Observation::Bound { request, session, binding, moved_from });
        }
    }

    pub(super) fn handle_first_token(&mut self, attempt: AttemptId) {
        let Some((id, running)) = self.running(attempt) else { return self.stale(attempt) };
        let after = self.now.since(running.started);
        if let Some(request) = self.requests.get_mut(&id) {
            request.committed = true;
        }
        self.show_life(id);
        self.observe(Observation::FirstToken { attempt, after });
    }

    pub(super) fn handle_progress(&mut self, attempt: AttemptId, produced: Tokens) {
        let Some((id, _)) = self.running(attempt) else { return self.stale(attempt) };
        self.show_life(id);
        let slice = self.config.quota.slice;
        let Some(request) = self.requests.get_mut(&id) else { return };
        // Marks are totals, so a late or repeated one changes nothing.
        request.produced = request.produced.max(produced);
        // Ask for the next slice when half of the last one is left, so that the answer is here before it is needed.
        let reached = Tokens(request.produced.0.saturating_add(slice.0 / 2));
        let due = reached >= request.covered && !request.extending && request.arrival.stream;
        if due && matches!(request.phase, Phase::Attempting(_)) {
            request.extending = true;
            let missing = request.produced.saturating_sub(request.covered);
            let amount =
                request.price.of(Usage { prompt: Tokens::ZERO, completion: slice + missing });
            self.quota.extend(self.now, reservation_of(id), amount);
        }
    }

    pub(super) fn handle_extended(&mut self, reservation: ReservationId, total: Amount) {
        let id = request_of(reservation);
        let Some(request) = self.requests.get_mut(&id) else {
            return self.observe(Observation::Stale(Stale::Reservation(reservation)));
        };
        request.extending = false;
        request.covered = total.tokens.saturating_sub(request.arrival.prompt);
        self.observe(Observation::Granted { request: id, total });
    }

    /// The account's true limit is met: what is covered may still be delivered, then the stream is cut.
    pub(super) fn handle_extend_denied(&mut self, reservation: ReservationId, denied: &Denied) {
        let id = request_of(reservation);
        let Some(request) = self.requests.get(&id) else {
            return self.observe(Observation::Stale(Stale::Reservation(reservation)));
        };
        let (produced, covered) = (request.produced, request.covered);
        let spent = spent_of(denied);
        self.observe(Observation::Denied { request: id, denied: denied.clone() });
        match spent {
            Some(spent) if produced >= covered => self.cut(id, spent),
            // Asked again at the next mark: until then the slice in hand is used up.
            Some(_) | None => {
                if let Some(request) = self.requests.get_mut(&id) {
                    request.extending = false;
                }
            }
        }
    }

    /// The request and the attempt that runs under this id, if it still does.
    pub(super) fn running(&self, attempt: AttemptId) -> Option<(RequestId, &Attempt)> {
        let id = request_of_attempt(attempt);
        let running = self.requests.get(&id)?.attempt()?;
        (running.id == attempt).then_some((id, running))
    }

    pub(super) fn stale(&mut self, attempt: AttemptId) {
        self.observe(Observation::Stale(Stale::Attempt(attempt)));
    }
}
