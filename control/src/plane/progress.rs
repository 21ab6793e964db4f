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
        let session = request.arrival.session;
        let Some(running) = request.attempt_mut() else { return };
        if core::mem::replace(&mut running.accepted, true) {
            return;
        }
        let Attempt { endpoint, binds, started, ticket, .. } = *running;
        if ticket.probe {
            self.show_life(id);
        }
        self.observe(Observation::Accepted { attempt, after: self.now.since(started) });
        if planted!(SuccessAtStart) {
            let (now, room) = (self.now, EjectionRoom::default());
            let moved = self.breakers.record(now, endpoint, ticket, Verdict::Success, room);
            moved.into_iter().for_each(|transition| self.breaker_moved(transition));
        }
        if let Some(session) = session.filter(|_| binds) {
            self.bind(id, session.key, endpoint);
        }
    }

    /// A probe that shows life is not given up before the attempt itself would be.
    fn show_life(&mut self, id: RequestId) {
        let Some(request) = self.requests.get(&id) else { return };
        if let Some(running) = request.attempt()
            && running.ticket.probe
        {
            let gap = self.config.timeouts_of(&request.arrival.model).between_tokens;
            let silent_until = self.now + gap;
            let (endpoint, ticket) = (running.endpoint, running.ticket);
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
        let own = self.registry.endpoint(endpoint).and_then(|endpoint| endpoint.spec.fingerprint);
        let Some(request) = self.requests.get_mut(&id) else { return };
        if !core::mem::replace(&mut request.committed, true) {
            request.fingerprint = own.filter(|_| request.arrival.resumable);
            if ticket.probe {
                self.show_life(id);
            }
            self.observe(Observation::FirstToken { attempt, after });
        }
    }

    pub(super) fn handle_progress(&mut self, attempt: AttemptId, produced: Tokens) {
        let Some((id, running)) = self.running(attempt) else { return self.stale(attempt) };
        if running.ticket.probe {
            self.show_life(id);
        }
        // Marks are totals, so a late or repeated one changes nothing.
        self.note_produced(id, produced);
        self.extend(id);
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
