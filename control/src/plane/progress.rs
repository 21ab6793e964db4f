//! Attempts that run: accepted, begun, producing.

use super::ControlPlane;
use super::effect::{Durable, Effect};
use super::observation::{Observation, Stale};
use super::request::{Attempt, request_of_attempt};
use crate::breaker::EjectionRoom;
use crate::id::{AttemptId, EndpointId, RequestId, SessionKey};
use crate::outcome::Verdict;
use crate::units::Tokens;

impl ControlPlane {
    pub(super) fn handle_accepted(&mut self, attempt: AttemptId) {
        match self.running(attempt) {
            Some((id, _)) => self.accept(id, attempt),
            None => self.stale(attempt),
        }
    }

    /// The endpoint took the attempt, said once: its session lives there now, if it was to move.
    pub(super) fn accept(&mut self, id: RequestId, attempt: AttemptId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        // Where another attempt may be the one that answers, accepted is not yet chosen.
        let waits = request.may_be_hedged();
        let Some(running) = request.running_mut(attempt) else { return };
        if core::mem::replace(&mut running.accepted, true) {
            return;
        }
        let Attempt { endpoint, started, ticket, .. } = *running;
        if ticket.probe {
            self.show_life(attempt);
        }
        self.observe(Observation::Accepted { attempt, after: self.now.since(started) });
        if planted!(SuccessAtStart) {
            let (now, room) = (self.now, EjectionRoom::default());
            let moved = self.breakers.record(now, endpoint, ticket, Verdict::Success, room);
            moved.into_iter().for_each(|transition| self.breaker_moved(transition));
        }
        if !waits {
            self.settle_home(id, attempt);
        }
    }

    /// The session's home is where this attempt runs, if it was to move there. Said once.
    pub(super) fn settle_home(&mut self, id: RequestId, attempt: AttemptId) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        let session = request.arrival.session;
        let Some(running) = request.running_mut(attempt) else { return };
        let (binds, endpoint) = (core::mem::take(&mut running.binds), running.endpoint);
        if let Some(session) = session.filter(|_| binds) {
            self.bind(id, session.key, endpoint);
        }
    }

    /// A probe that shows life is not given up before the attempt itself would be.
    fn show_life(&mut self, attempt: AttemptId) {
        let Some((id, running)) = self.running(attempt) else { return };
        if running.ticket.probe {
            let (endpoint, ticket) = (running.endpoint, running.ticket);
            let model = &self.requests[&id].arrival.model;
            let silent_until = self.now + self.config.timeouts_of(model).between_tokens;
            self.breakers.progress_until(self.now, endpoint, ticket, silent_until);
        }
    }

    pub(super) fn bind(&mut self, request: RequestId, session: SessionKey, endpoint: EndpointId) {
        if self.registry.endpoint(endpoint).is_none() {
            // It was removed while it answered: a home that is gone would only be looked for.
            return;
        }
        let before = self.affinity.lookup(self.now, session).map(|b| (b.endpoint, b.epoch));
        let heard = self.requests.get(&request).and_then(|request| request.heard.home);
        let (known, floor) = (self.affinity.epoch(session), heard.map_or(0, |(_, epoch)| epoch));
        let bound = self.affinity.bind_above(self.now, session, endpoint, floor);
        let binding = bound.binding;
        let moved = before != Some((binding.endpoint, binding.epoch));
        self.tell_home(request, session, moved, known);
        if moved {
            let moved_from = bound.moved_from;
            self.effects.push_back(Effect::Persist(Durable::Binding { session, binding }));
            self.observe(Observation::Bound { request, session, binding, moved_from });
        }
    }

    pub(super) fn handle_first_token(&mut self, attempt: AttemptId) {
        let Some((id, running)) = self.running(attempt) else { return self.stale(attempt) };
        let Attempt { started, accepted, ticket, endpoint, .. } = *running;
        let after = self.now.since(started);
        if !accepted {
            self.accept(id, attempt);
        }
        self.race_won(id, attempt);
        self.settle_home(id, attempt);
        let own = self.registry.endpoint(endpoint).and_then(|endpoint| endpoint.spec.fingerprint);
        let Some(request) = self.requests.get_mut(&id) else { return };
        if !core::mem::replace(&mut request.committed, true) {
            request.fingerprint = own.filter(|_| request.arrival.resumable);
            if ticket.probe {
                self.show_life(attempt);
            }
            self.observe(Observation::FirstToken { attempt, after });
        }
    }

    pub(super) fn handle_progress(&mut self, attempt: AttemptId, produced: Tokens) {
        let Some((id, running)) = self.running(attempt) else { return self.stale(attempt) };
        if running.ticket.probe {
            self.show_life(attempt);
        }
        if self.requests[&id].hedge.attempt.is_some() {
            // A shell says first that it is the first token: which of two answers is decided by that.
            return;
        }
        // Marks are totals, so a late or repeated one changes nothing.
        self.note_produced(id, produced);
        self.extend(id);
    }

    /// The request and the attempt that runs under this id, if it still does.
    pub(super) fn running(&self, attempt: AttemptId) -> Option<(RequestId, &Attempt)> {
        let id = request_of_attempt(attempt);
        let running = self.requests.get(&id)?.running().find(|running| running.id == attempt)?;
        Some((id, running))
    }

    pub(super) fn stale(&mut self, attempt: AttemptId) {
        self.observe(Observation::Stale(Stale::Attempt(attempt)));
    }
}
