//! The pick of one attempt: whom, whether its session moves there, and its dispatch.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use super::arrive::WATCHDOG_SLACK;
use super::effect::{Dispatch, Effect, Refusal};
use super::observation::{Observation, Race};
use super::request::{Attempt, Phase, Request, attempt_id};
use super::{AccountConfig, ControlPlane};
use crate::affinity::Decision as Move;
use crate::attempt::NoHedge;
use crate::balance::{Chosen, Nobody, Pick, Query, Reason, WhyNot};
use crate::breaker::Admission;
use crate::id::{EndpointId, RequestId, SessionKey};
use crate::outcome::{Failure, Stage};
use crate::units::Tokens;

/// Endpoints passed over for their rate in one pick. Each costs a pick of its own; a fleet of which eight in a row have
/// had their requests is as good as busy.
const THROTTLED_MAX: usize = 8;

/// Endpoints asked when the first of them returns: after so many, one return is as good as another.
const RETURNS_MAX: usize = 64;

/// When nobody says when to come back: requests take seconds.
const COME_BACK: Duration = Duration::from_secs(1);

/// What a pick came to.
enum Choice {
    /// This one; and who was passed over because it has had its requests of this second.
    Chosen(Box<Chosen>, Vec<EndpointId>),
    /// Nobody may take it.
    Nobody(Nobody),
    /// All who may take it have had their requests; the first may be asked again after this.
    Throttled(Duration),
}

/// Where the session lives, as far as the pick is concerned.
#[derive(Clone, Copy)]
struct At {
    key: Option<SessionKey>,
    home: Option<EndpointId>,
}

impl ControlPlane {
    /// Picks an endpoint for the request's next attempt and sends it there, or refuses.
    pub(super) fn pick(&mut self, id: RequestId) {
        let request = &self.requests[&id];
        if request.deadline <= self.now {
            return self.give_up(id, Failure::Timeout(Stage::Deadline), None);
        }
        let at = self.session_at(id);
        match self.choose(id, at) {
            Choice::Chosen(chosen, throttled) => self.dispatch(id, at, chosen, throttled),
            Choice::Nobody(nobody) => self.nobody(id, nobody),
            Choice::Throttled(retry_after) => self.all_throttled(id, retry_after),
        }
    }

    /// Sends a request's second attempt, beside the one that runs, to somebody who was not tried, has room and is not ejected:
    /// a hedge is nobody's last resort.
    pub(super) fn send_hedge(&mut self, id: RequestId) -> Result<Attempt, NoHedge> {
        let at = self.session_at(id);
        let Choice::Chosen(chosen, throttled) = self.choose(id, at) else {
            return Err(NoHedge::Nobody);
        };
        let busy = !self.throttle_of(chosen.endpoint).is_zero();
        if chosen.retried_same || chosen.panic || busy {
            return Err(NoHedge::Nobody);
        }
        self.retry.pay_hedge(self.now)?;
        let silent = self.requests[&id].attempt().map(|running| self.now.since(running.started));
        let after = silent.expect("an attempt runs beside it");
        self.observe(Observation::Hedged { request: id, race: Race::Begun { after } });
        Ok(self.send(id, at, chosen, throttled, true))
    }

    fn session_at(&self, id: RequestId) -> At {
        let key = self.requests[&id].arrival.session.map(|session| session.key);
        let home = key.and_then(|key| self.affinity.lookup(self.now, key)).map(|b| b.endpoint);
        At { key, home: home.filter(|home| self.registry.endpoint(*home).is_some()) }
    }

    /// Asks the balancer until it names somebody who has not had its requests of this second, and is not full. First among
    /// those the request was not tried on; when these are exhausted, among those it was. Where everybody is full, the first
    /// of them is asked all the same.
    fn choose(&mut self, id: RequestId, at: At) -> Choice {
        let request = &self.requests[&id];
        let mut throttled = Vec::new();
        let mut first_free: Option<Duration> = None;
        let mut full: Option<Box<Chosen>> = None;
        let mut excluded = Vec::new();
        let mut fresh = true;
        while throttled.len() < THROTTLED_MAX {
            let tried = match (throttled.is_empty(), fresh) {
                (true, true) => request.tried.as_slice(),
                (_, true) => excluded.as_slice(),
                (_, false) => throttled.as_slice(),
            };
            let query = Query { model: &request.arrival.model, key: at.key, bound: at.home, tried };
            let mut chosen = match self.balance.pick(&query) {
                Pick::Chosen(chosen) => Box::new(chosen),
                Pick::Nobody(nobody) if full.is_none() => return Choice::Nobody(nobody),
                Pick::Nobody(_) => break,
            };
            if chosen.retried_same && !throttled.is_empty() {
                // Nobody is left but those that were excluded: on the first round some of them for having been tried.
                if !fresh || request.tried.is_empty() {
                    break;
                }
                fresh = false;
                continue;
            }
            let continues = self.continues(id, chosen.endpoint);
            let wait = self.throttle_of(chosen.endpoint);
            if wait.is_zero() && continues {
                chosen.retried_same |= !fresh;
                return Choice::Chosen(chosen, throttled);
            }
            first_free = Some(first_free.map_or(wait, |first| first.min(wait)));
            fresh &= !chosen.retried_same;
            if throttled.is_empty() {
                excluded.extend_from_slice(&request.tried);
            }
            throttled.push(chosen.endpoint);
            excluded.push(chosen.endpoint);
            if full.is_none() && continues && self.rps_max(chosen.endpoint).is_none() {
                chosen.retried_same |= request.tried.contains(&chosen.endpoint);
                full = Some(chosen);
            }
        }
        let Some(full) = full else {
            return Choice::Throttled(first_free.unwrap_or(COME_BACK));
        };
        throttled.retain(|passed| *passed != full.endpoint);
        Choice::Chosen(full, throttled)
    }

    /// Whether an endpoint can go on with what a request's client already has.
    fn continues(&self, id: RequestId, endpoint: EndpointId) -> bool {
        let request = &self.requests[&id];
        let own = self.registry.endpoint(endpoint).and_then(|endpoint| endpoint.spec.fingerprint);
        !request.committed || own == request.fingerprint || planted!(ResumesAnywhere)
    }

    /// How long an endpoint is to be passed over, for its rate or because it was full.
    fn throttle_of(&self, id: EndpointId) -> Duration {
        self.throttle.wait(self.now, id)
    }

    fn rps_max(&self, id: EndpointId) -> Option<u32> {
        self.registry.endpoint(id)?.spec.rps_max
    }

    fn dispatch(&mut self, id: RequestId, at: At, chosen: Box<Chosen>, throttled: Vec<EndpointId>) {
        let running = self.send(id, at, chosen, throttled, false);
        let request = self.requests.get_mut(&id).expect("it was sent just now");
        let after = self.config.hedge_after(&request.arrival);
        let after = after.filter(|_| !request.committed && !request.hedge.made);
        request.hedge.due = after.map(|after| self.now + after);
        self.set_phase(id, Phase::Attempting(running));
    }

    /// Makes an attempt at the endpoint that was chosen.
    fn send(
        &mut self,
        id: RequestId,
        at: At,
        chosen: Box<Chosen>,
        throttled: Vec<EndpointId>,
        hedge: bool,
    ) -> Attempt {
        let endpoint = chosen.endpoint;
        let binds = at.key.is_some_and(|key| self.binds(id, key, at.home, &chosen, &throttled));
        let request = self.requests.get_mut(&id).expect("a live request is dispatched");
        request.attempts += 1;
        request.tried.push(endpoint);
        let order = Dispatch { hedge, ..self.order(id, &self.requests[&id], endpoint) };
        let (attempt, started) = (order.attempt, self.now);
        let silent_until = order.first_token_by + WATCHDOG_SLACK;
        let ticket = self.breakers.begin_until(self.now, endpoint, silent_until);
        self.balance.dispatched(endpoint);
        if ticket.probe {
            self.sync(endpoint);
        }
        if let Some(rps_max) = self.rps_max(endpoint) {
            self.throttle.sent(self.now, endpoint, rps_max);
        }
        self.effects.push_back(Effect::Dispatch(order));
        if planted!(BindAtDispatch)
            && let Some(key) = at.key.filter(|_| binds)
        {
            self.bind(id, key, endpoint);
        }
        self.observe(Observation::Picked { request: id, attempt, chosen, throttled });
        Attempt { id: attempt, endpoint, ticket, started, binds, accepted: false }
    }

    /// The attempt as the shell gets it.
    fn order(&self, id: RequestId, request: &Request, endpoint: EndpointId) -> Dispatch {
        let arrival = &request.arrival;
        let timeouts = self.config.timeouts_of(&arrival.model);
        let deadlines = timeouts.attempt(self.now, request.deadline);
        let anew = planted!(DeadlineNotPassed);
        let deadline = if anew { self.now + timeouts.request } else { request.deadline };
        let name = self.registry.endpoint(endpoint).map(|e| e.spec.name.clone());
        Dispatch {
            caller: arrival.caller,
            request: id,
            attempt: attempt_id(id, request.attempts),
            number: request.attempts,
            hedge: false,
            endpoint,
            endpoint_name: name.expect("what is picked is registered"),
            connect_by: deadlines.connect,
            first_token_by: if arrival.stream { deadlines.first_token } else { request.deadline },
            gap_max: if planted!(NoGapTimeout) {
                timeouts.request
            } else {
                deadlines.between_tokens
            },
            deadline,
            // A stream is extended while it runs; what comes at once must not outgrow what was granted.
            output_max: (!arrival.stream
                && arrival.output_max != Some(Tokens::ZERO)
                && self.is_limited(request))
            .then_some(request.covered),
            resume: request.committed.then_some(if planted!(ResumesFromTheStart) {
                Tokens::ZERO
            } else {
                request.produced
            }),
        }
    }

    fn is_limited(&self, request: &Request) -> bool {
        let mut accounts = self.config.accounts_of(&request.arrival.principal);
        accounts.any(|(_, account)| account.is_some_and(AccountConfig::is_limited))
    }

    /// Whether the session moves to the chosen endpoint once that has accepted. A home that is merely busy is kept: the
    /// session spills for one attempt, until spilling has become a habit. A session without a home binds wherever it
    /// goes, spill or not: it will come back to where its prefix is.
    fn binds(
        &mut self,
        id: RequestId,
        key: SessionKey,
        home: Option<EndpointId>,
        chosen: &Chosen,
        throttled: &[EndpointId],
    ) -> bool {
        let request = &self.requests[&id];
        if !self.config.policy_of(&request.arrival.model).is_affine() {
            // Who asks for turns gets turns: a home that no pick looks at would only move about.
            return false;
        }
        let Some(home) = home else { return true };
        if home == chosen.endpoint {
            self.affinity.decide(self.now, key, false);
            return true;
        }
        let pushed_back = matches!(request.last_failure, Some(Failure::Backpressure(_)))
            && request.tried.last() == Some(&home);
        let busy = pushed_back || throttled.contains(&home) || passed_for_load(chosen, home);
        !busy || self.affinity.decide(self.now, key, true) == Move::Migrate
    }

    fn nobody(&mut self, id: RequestId, nobody: Nobody) {
        let retry_after = self.until_someone_returns(id);
        let failure = self.requests[&id].last_failure;
        self.observe(Observation::Nobody { request: id, nobody });
        let Some(failure) = failure else {
            let refusal = Refusal::NobodyLeft {
                members: nobody.members,
                draining: nobody.draining,
                ejected: nobody.ejected,
                full: nobody.full,
                retry_after,
            };
            return self.refuse(id, refusal);
        };
        self.give_up(id, failure, Some(retry_after));
    }

    fn all_throttled(&mut self, id: RequestId, retry_after: Duration) {
        match self.requests[&id].last_failure {
            Some(failure) => self.give_up(id, failure, Some(retry_after)),
            None => self.refuse(id, Refusal::ModelBusy { retry_after }),
        }
    }

    /// When the first ejected endpoint of the request's model may be asked again; a second where none is ejected.
    fn until_someone_returns(&self, id: RequestId) -> Duration {
        let model = &self.requests[&id].arrival.model;
        let pool = self.registry.pool(model).into_iter().flatten().take(RETURNS_MAX);
        let returns =
            pool.filter_map(|endpoint| match self.breakers.admission(self.now, *endpoint) {
                Admission::Refused { until, .. } => Some(until.since(self.now)),
                Admission::Allowed { .. } => None,
            });
        returns.min().unwrap_or(COME_BACK)
    }

    /// Tells the balancer what the breaker says: what may not be picked is not in the pick set.
    pub(super) fn sync(&mut self, endpoint: EndpointId) {
        match self.breakers.admission(self.now, endpoint) {
            Admission::Allowed { share_permille } => {
                self.balance.set_admitted(endpoint, true);
                self.balance.set_share(endpoint, share_permille);
            }
            Admission::Refused { .. } if planted!(EjectedStillPicked) => {}
            Admission::Refused { .. } => self.balance.set_admitted(endpoint, false),
        }
    }
}

/// Whether a home was passed over only because it has much to do.
fn passed_for_load(chosen: &Chosen, home: EndpointId) -> bool {
    let noted = chosen.considered.iter().find(|candidate| candidate.endpoint == home);
    let why_not = noted.and_then(|candidate| candidate.why_not);
    chosen.reason == Reason::Spilled { from: home }
        || matches!(why_not, Some(WhyNot::OverBound | WhyNot::Full))
}
