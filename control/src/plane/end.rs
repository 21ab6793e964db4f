//! Ends: of attempts, and of requests, through one door.

use core::time::Duration;

use super::ControlPlane;
use super::arrive::holdable;
use super::effect::{Durable, Effect, Outcome, Refusal};
use super::input::Session;
use super::observation::{Observation, Stale};
use super::request::{Attempt, Phase, Request, reservation_of};
use crate::attempt::{Decision, History};
use crate::breaker::EjectionRoom;
use crate::id::{AttemptId, CallerToken, EndpointId, RequestId};
use crate::outcome::{AttemptEnd, Failure, Stage, Verdict};
use crate::rate::Signal;
use crate::units::{Amount, Tokens, Usage};

/// How a request leaves, and what is charged for it.
enum Exit {
    /// Nothing of an answer was sent: the reservation goes back whole.
    Refused(Refusal),
    /// An answer was sent, whole or in part: it is charged.
    Answered { outcome: Outcome, usage: Usage, estimated: bool },
}

impl ControlPlane {
    pub(super) fn handle_ended(&mut self, attempt: AttemptId, end: AttemptEnd) {
        let Some((id, running)) = self.running(attempt) else { return self.stale(attempt) };
        let running = running.clone();
        let after = self.now.since(running.started);
        if !running.accepted && matches!(end, AttemptEnd::Completed { .. }) {
            // A whole answer was accepted, whether or not its head was reported apart.
            self.accept(id, attempt);
        }
        if decides(&end) {
            self.race_won(id, attempt);
        }
        if matches!(end, AttemptEnd::Completed { .. }) {
            self.settle_home(id, attempt);
        }
        let observed = end.clone();
        self.observe(Observation::Ended {
            attempt,
            endpoint: running.endpoint,
            end: observed,
            after,
        });
        self.release(&running, self.verdict(id, &end));
        self.pause_if_full(running.endpoint, &end);
        if self.requests[&id].hedge.attempt.is_some() {
            return self.other_goes_on(id, &running, &end);
        }
        if let Phase::Cutting { outcome, .. } = self.requests[&id].phase {
            return self.finish_cut(id, outcome, &end);
        }
        match end {
            AttemptEnd::Completed { usage, estimated } => {
                self.answered(id, Outcome::Completed, usage, estimated);
            }
            AttemptEnd::Failed { failure, produced, retry_after } => {
                self.note_produced(id, produced);
                self.after_failure(id, &running, failure, retry_after);
            }
            AttemptEnd::Cancelled { produced } => {
                self.note_produced(id, produced);
                self.leave(id);
            }
        }
    }

    /// Nobody waits any more, and nothing runs.
    fn leave(&mut self, id: RequestId) {
        if self.requests[&id].committed && !planted!(DisconnectBillsNothing) {
            self.answered_in_part(id, Outcome::Cancelled);
        } else {
            self.refuse(id, Refusal::ClientGone);
        }
    }

    /// What an end says about its endpoint. A deadline that the client chose says nothing; one that is configured, passed
    /// without a token, is a replica that accepts and never answers.
    fn verdict(&self, id: RequestId, end: &AttemptEnd) -> Verdict {
        let request = &self.requests[&id];
        let configured = self.config.timeouts_of(&request.arrival.model).request;
        let hurried = request.arrival.patience.is_some_and(|patience| patience < configured);
        match end {
            AttemptEnd::Failed { failure: Failure::EndpointFault(_), .. }
                if planted!(FaultNeutral) =>
            {
                Verdict::Neutral
            }
            AttemptEnd::Failed {
                failure: Failure::Backpressure(_) | Failure::ClientError(_),
                ..
            } if planted!(BusyOpens) => Verdict::Failure,
            AttemptEnd::Failed { failure: Failure::Connect, .. } if planted!(ConnectNotCounted) => {
                Verdict::Neutral
            }
            AttemptEnd::Failed { failure: Failure::Timeout(Stage::Deadline), produced, .. }
                if !hurried && !request.committed && *produced == Tokens::ZERO =>
            {
                Verdict::Failure
            }
            AttemptEnd::Completed { .. }
            | AttemptEnd::Failed { .. }
            | AttemptEnd::Cancelled { .. } => end.verdict(),
        }
    }

    /// The attempt no longer runs: its endpoint is told apart from its load, and its breaker from its outcome.
    pub(super) fn release(&mut self, attempt: &Attempt, verdict: Verdict) {
        let Attempt { endpoint, ticket, .. } = *attempt;
        self.balance.released(endpoint);
        if planted!(NegativeInFlight) && verdict == Verdict::Failure {
            self.balance.released(endpoint);
        }
        let scored = planted!(SuccessAtStart) && attempt.accepted;
        let verdict = if scored { Verdict::Neutral } else { verdict };
        // Only failures ask for room, and counting it costs a look at every pool of the endpoint.
        let room = match verdict {
            Verdict::Failure => self.balance.ejection_room(endpoint),
            Verdict::Success | Verdict::Backpressure | Verdict::Neutral | Verdict::Fault(_) => {
                EjectionRoom::default()
            }
        };
        match self.breakers.record(self.now, endpoint, ticket, verdict, room) {
            Some(transition) => self.breaker_moved(transition),
            // What is admitted changes with a transition, and with a probe's slot.
            None if ticket.probe => self.sync(endpoint),
            None => {}
        }
    }

    /// An endpoint that is full is passed over for as long as it says, or for the longest backoff where it does not say;
    /// never longer than the worst of them is ejected.
    fn pause_if_full(&mut self, endpoint: EndpointId, end: &AttemptEnd) {
        if let AttemptEnd::Failed { failure: Failure::Backpressure(_), retry_after, .. } = end
            && self.registry.endpoint(endpoint).is_some()
            && !planted!(FullIsAskedAgain)
        {
            let pause = retry_after.unwrap_or(self.config.attempt.backoff_max);
            let pause = pause.min(self.config.breaker.ejection_max);
            self.throttle.pushed_back(self.now, endpoint, pause);
        }
    }

    pub(super) fn note_produced(&mut self, id: RequestId, produced: Tokens) {
        if let Some(request) = self.requests.get_mut(&id) {
            request.produced = request.produced.max(produced);
        }
    }

    fn after_failure(
        &mut self,
        id: RequestId,
        ended: &Attempt,
        failure: Failure,
        retry_after: Option<Duration>,
    ) {
        let Some(request) = self.requests.get_mut(&id) else { return };
        request.last_failure = Some(failure);
        let other_eligible = self.balance.has_untried(&request.arrival.model, &request.tried);
        // Whoever continues a stream does what is left of its work: how long the work took until now is no reason against.
        let resumes = request.committed && request.fingerprint.is_some();
        let elapsed = if resumes { Duration::ZERO } else { self.now.since(ended.started) };
        let history = History {
            attempts: request.attempts,
            committed: request.committed && !resumes,
            deadline: request.deadline,
            elapsed_in_attempt: elapsed,
            failure,
            retry_after,
            other_eligible,
        };
        match self.retry.decide(self.now, &history) {
            Decision::Retry { at, .. } => {
                if !resumes {
                    request.produced = Tokens::ZERO;
                }
                let resume = resumes.then_some(request.produced);
                self.observe(Observation::Retrying { request: id, at, resume });
                if at <= self.now {
                    self.pick(id);
                } else {
                    self.set_phase(id, Phase::Backoff { until: at });
                }
            }
            Decision::GiveUp(why) => {
                self.observe(Observation::GaveUp { request: id, why });
                self.give_up(id, failure, retry_after);
            }
        }
    }

    pub(super) fn give_up(
        &mut self,
        id: RequestId,
        failure: Failure,
        retry_after: Option<Duration>,
    ) {
        let request = &self.requests[&id];
        if request.committed {
            let clean = planted!(BrokenEndsClean);
            let outcome = if clean { Outcome::Completed } else { Outcome::Broken(failure) };
            self.answered_in_part(id, outcome);
        } else {
            let attempts = request.attempts;
            self.refuse(id, Refusal::Failed { failure, attempts, retry_after });
        }
    }

    /// There is no more quota for it: stop the attempt, then charge what its last count says.
    pub(super) fn cut(&mut self, id: RequestId, outcome: Outcome) {
        self.stop_hedge(id);
        let request = &self.requests[&id];
        let Phase::Attempting(attempt) = request.phase.clone() else { return };
        let caller = request.arrival.caller;
        self.effects.push_back(Effect::Cancel { caller, attempt: attempt.id });
        let until = self.now + LAST_COUNT_WAIT;
        self.set_phase(id, Phase::Cutting { attempt, outcome, until });
    }

    fn finish_cut(&mut self, id: RequestId, outcome: Outcome, end: &AttemptEnd) {
        match end {
            // It was over before it could be cut.
            AttemptEnd::Completed { usage, estimated } => {
                return self.answered(id, Outcome::Completed, *usage, *estimated);
            }
            AttemptEnd::Failed { produced, .. } | AttemptEnd::Cancelled { produced } => {
                self.note_produced(id, *produced);
            }
        }
        self.answered_in_part(id, outcome);
    }

    /// Nobody waits any more: the upstream call stops at once, what was generated is charged.
    pub(super) fn handle_client_gone(&mut self, caller: CallerToken) {
        let Some(id) = self.callers.get(&caller).copied() else {
            return self.observe(Observation::Stale(Stale::Caller));
        };
        if planted!(RetryAfterClientLeft)
            && matches!(self.requests[&id].phase, Phase::Backoff { .. })
        {
            return;
        }
        self.abandon(id, Verdict::Neutral);
        self.leave(id);
        if planted!(TwoOutcomes) {
            let (request, refusal) = (id, Refusal::ClientGone);
            self.effects.push_back(Effect::Reject { caller, request, refusal });
        }
    }

    /// Stops whatever runs, without waiting for its report.
    pub(super) fn abandon(&mut self, id: RequestId, verdict: Verdict) {
        self.stop_hedge(id);
        if let Some(attempt) = self.requests[&id].attempt().cloned() {
            self.stop(id, &attempt, verdict);
        }
    }

    /// Stops an attempt without waiting for its report, which will name nobody any more.
    pub(super) fn stop(&mut self, id: RequestId, attempt: &Attempt, verdict: Verdict) {
        let caller = self.requests[&id].arrival.caller;
        if !planted!(CancelNotSent) {
            self.effects.push_back(Effect::Cancel { caller, attempt: attempt.id });
        }
        self.release(attempt, verdict);
    }

    /// A request's timer is due: a backoff is over, a last count never came, or the deadline is long past.
    pub(super) fn request_due(&mut self, id: RequestId) {
        match self.requests[&id].phase {
            Phase::Backoff { .. } if planted!(BusySpins) && pushed_back(&self.requests[&id]) => {
                self.set_phase(id, Phase::Backoff { until: self.now });
            }
            Phase::Backoff { .. } => self.pick(id),
            Phase::WaitingTurn => self.refuse(id, Refusal::TurnConflict),
            Phase::Reserving => {
                let retry_after = self.config.quota.answer_timeout;
                self.refuse(id, Refusal::QuotaUnavailable { retry_after });
            }
            Phase::Attempting(_) if self.hedge_is_due(id) => self.hedge(id),
            Phase::Attempting(_) => {
                // The shell never reported: the attempt is lost, and whoever lost it is not the replica.
                self.abandon(id, Verdict::Neutral);
                self.give_up(id, Failure::Timeout(Stage::Deadline), None);
            }
            Phase::Cutting { outcome, .. } => {
                self.abandon(id, Verdict::Neutral);
                self.answered_in_part(id, outcome);
            }
        }
    }

    pub(super) fn refuse(&mut self, id: RequestId, refusal: Refusal) {
        self.conclude(id, Exit::Refused(refusal));
    }

    fn answered(&mut self, id: RequestId, outcome: Outcome, usage: Usage, estimated: bool) {
        self.conclude(id, Exit::Answered { outcome, usage, estimated });
    }

    /// Charges the prompt and what had arrived, by our own count.
    pub(super) fn answered_in_part(&mut self, id: RequestId, outcome: Outcome) {
        let usage = self.requests[&id].used();
        self.answered(id, outcome, usage, true);
    }

    /// The one way out of the plane.
    fn conclude(&mut self, id: RequestId, exit: Exit) {
        let request = self.requests.remove(&id).expect("a request concludes once");
        let caller = request.arrival.caller;
        assert!(self.timers.remove(&(request.due, id)), "a live request has its timer");
        self.callers.remove(&caller);
        self.leave_rooms(id, &request, &exit);
        self.release_home(&request, &exit);
        let attempts = request.attempts;
        match exit {
            Exit::Refused(refusal) => {
                let gone = planted!(RefundLost) && refusal == Refusal::ClientGone;
                let lost = planted!(CrashLeaks) && refusal == Refusal::Lost;
                let limited = matches!(refusal, Refusal::RateLimited { .. });
                let kept = planted!(LimitedHoldKept) && limited;
                if !gone && !lost && !kept {
                    self.quota.refund(self.now, reservation_of(id));
                }
                self.drain_quota();
                self.observe(Observation::Refused { request: id, refusal: refusal.clone() });
                self.effects.push_back(Effect::Reject { caller, request: id, refusal });
            }
            Exit::Answered { outcome, usage, estimated } => {
                let charged = self.bill(&request, outcome, usage);
                self.charge(id, charged, estimated);
                self.observe(Observation::Finished { request: id, outcome, charged, estimated });
                let finish = Effect::Finish { caller, request: id, outcome, charged, attempts };
                self.effects.push_back(finish);
            }
        }
        self.pass_turn(id, &request);
    }

    /// What no reservation can be, no answer can have used: a replica that says so is not believed.
    fn bill(&self, request: &Request, outcome: Outcome, usage: Usage) -> Amount {
        let all = planted!(DisconnectBillsEverything) && outcome == Outcome::Cancelled;
        if all || planted!(EstimateCharged) {
            return holdable(request.wanted());
        }
        if planted!(PriceNotPinned) {
            return holdable(self.config.price_of(&request.arrival.model).of(usage));
        }
        if planted!(LoserCharged) && request.hedge.made {
            let usage = Usage { prompt: usage.prompt + usage.prompt, ..usage };
            return holdable(request.price.of(usage));
        }
        holdable(request.price.of(usage))
    }

    fn charge(&mut self, id: RequestId, charged: Amount, estimated: bool) {
        if charged == Amount::ZERO {
            self.quota.refund(self.now, reservation_of(id));
        } else {
            self.quota.settle(self.now, reservation_of(id), charged, estimated);
        }
        self.drain_quota();
    }

    fn leave_rooms(&mut self, id: RequestId, request: &Request, exit: &Exit) {
        let used = match exit {
            Exit::Refused(_) => Tokens::ZERO,
            Exit::Answered { usage, .. } => usage.total(),
        };
        // One key, one charge: an answer that broke off was charged as delivered, so its key stays used, and whoever
        // wants another answer says so with another key. What cost nothing frees its key.
        let whole = matches!(exit, Exit::Answered { outcome: Outcome::Completed, .. });
        let charged = used > Tokens::ZERO && (whole || !planted!(KeyForgotten));
        self.free_idempotency(id, &request.arrival, charged);
        self.tell_end(id, request, used, charged);
        self.concurrency.released(self.now, &request.arrival.model, load_signal(exit));
        for account in &request.rates {
            self.rate.adjust(self.now, *account, request.arrived, request.rated, used);
        }
    }

    /// Nobody could be asked, so where the session was is no guide. Replicas that are merely full keep their sessions.
    fn release_home(&mut self, request: &Request, exit: &Exit) {
        let unavailable = match exit {
            Exit::Refused(Refusal::NobodyLeft { full, .. }) => *full == 0,
            Exit::Refused(Refusal::Failed { failure, .. }) => {
                matches!(failure.verdict(), Verdict::Failure | Verdict::Fault(_))
            }
            Exit::Refused(_) | Exit::Answered { .. } => false,
        };
        if let Some(session) = request.arrival.session.filter(|_| unavailable) {
            let session = session.key;
            self.tell_homeless(request, session);
            if self.affinity.lookup(self.now, session).is_some() {
                self.affinity.release(session);
                self.effects.push_back(Effect::Persist(Durable::Released { session }));
            }
        }
    }

    /// The session's next turn begins.
    fn pass_turn(&mut self, id: RequestId, request: &Request) {
        if planted!(TurnNeverPassed) && request.attempts == 0 {
            return;
        }
        let Some(session) = request.arrival.session.filter(Session::is_stored) else {
            return;
        };
        self.next_turns.extend(self.turns.end_turn(session.key, id));
    }
}

/// What a request's end says about its model's load. A replica that was full and another that was not is no overload:
/// only the request as a whole counts.
fn load_signal(exit: &Exit) -> Signal {
    match exit {
        Exit::Answered { outcome: Outcome::Completed, .. } => Signal::Success,
        Exit::Answered { outcome: Outcome::Broken(failure), .. }
        | Exit::Refused(Refusal::Failed { failure, .. }) => match failure {
            Failure::Backpressure(_) | Failure::Timeout(Stage::FirstToken) => Signal::Overload,
            Failure::Connect
            | Failure::ConnectionLost
            | Failure::Timeout(Stage::BetweenTokens | Stage::Deadline)
            | Failure::Status(_)
            | Failure::ClientError(_)
            | Failure::EndpointFault(_)
            | Failure::Truncated
            | Failure::ErrorInAnswer
            | Failure::Garbage
            | Failure::TooLarge
            | Failure::CannotResume => Signal::Neutral,
        },
        Exit::Answered { .. } | Exit::Refused(_) => Signal::Neutral,
    }
}

/// Whether an end is its request's, whatever runs beside it: the whole answer, or a failure that anybody else would repeat.
fn decides(end: &AttemptEnd) -> bool {
    match end {
        AttemptEnd::Completed { .. } => true,
        AttemptEnd::Failed { failure, .. } => !failure.retryable(),
        AttemptEnd::Cancelled { .. } => false,
    }
}

fn pushed_back(request: &Request) -> bool {
    matches!(request.last_failure, Some(Failure::Backpressure(_)))
}

/// How long the last count of a cut stream is awaited. The shell answers a cancel without asking anybody, within
/// microseconds; a second is for a machine under heavy load.
const LAST_COUNT_WAIT: Duration = Duration::from_secs(1);
