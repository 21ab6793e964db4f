//! What a plane may say of a request, effect by effect.

use std::time::Duration;

use control::id::{AttemptId, CallerToken, RequestId};
use control::outcome::{AttemptEnd, Failure};
use control::plane::{Arrival, Config, Dispatch, Input, Outcome, Refusal};
use control::units::Amount;

use super::super::book::{above, pair};
use super::super::request::{End, Request};
use super::super::{Invariant, Step, Verdict};
use super::{Gateway, HEDGES_MAX, Requests};

impl Requests {
    /// A request has an id: the first thing said of it, and a new one.
    pub fn admitted(
        &mut self,
        step: &Step<'_>,
        caller: CallerToken,
        id: RequestId,
        verdict: &mut Verdict,
    ) {
        let call = caller.0 as usize;
        let Input::RequestArrived(arrival) = &step.input else {
            let text = format!("{id:?} is admitted, and nobody asked");
            return verdict.fail(Invariant::Outcome, step.at, text);
        };
        if self.all.len() <= call {
            self.all.resize_with(call + 1, || None);
        }
        let when = (step.position, step.at, step.now);
        let config = self.config(step.gateway);
        let request = Request::new(id, step.gateway, arrival.clone(), when, config);
        let ratio = config.attempt.budget_ratio_percent;
        let hedges = match hedge_after(config, &request.arrival).is_zero() {
            true => 0,
            false => u64::from(config.attempt.hedge_share_percent),
        };
        let own = &mut self.gateways[step.gateway as usize];
        if own.by_id.insert(id, call as u32).is_some() {
            let text = format!("gateway-{} mints {id:?} twice", step.gateway);
            verdict.fail(Invariant::Outcome, step.at, text);
        }
        own.budget += u128::from(ratio);
        own.hedges = (own.hedges + hedges).min(HEDGES_MAX);
        own.live.insert(call as u32);
        self.counted += 1;
        self.all[call] = Some(Box::new(request));
    }

    /// An attempt is to be made.
    pub fn dispatched(&mut self, step: &Step<'_>, order: &Dispatch, verdict: &mut Verdict) {
        let mut wrong = |invariant, text: String| {
            verdict.fail(invariant, step.at, format!("{:?}: {text}", order.attempt));
        };
        let own = &mut self.gateways[step.gateway as usize];
        own.by_attempt.insert(order.attempt, order.caller.0 as u32);
        let Some(Some(request)) = self.all.get_mut(order.caller.0 as usize) else {
            return wrong(Invariant::Outcome, "is made for a request nobody knows".into());
        };
        if let Some(end) = request.end {
            let text = format!("is made after {:?} was over, at {} ns", request.id, end.at);
            return wrong(Invariant::Outcome, text);
        }
        if request.committed.is_none() && order.resume.is_some() {
            wrong(Invariant::Tokens, "goes on with an answer that never began".into());
        }
        if request.committed.is_some()
            && let Some(text) = request.wrongly_resumed(order, &self.fingerprints)
        {
            wrong(Invariant::Tokens, text);
        }
        if let Some(text) = own.beside(step, order, request) {
            wrong(Invariant::Bounds, text);
        }
        if order.deadline != request.deadline {
            let text = format!("has deadline {:?}, not {:?}", order.deadline, request.deadline);
            wrong(Invariant::Deadlines, text);
        }
        let model =
            own.config.as_ref().and_then(|config| config.models.get(&request.arrival.model));
        let timeouts = model.and_then(|model| model.timeouts.as_ref());
        let timeouts = timeouts.or(own.config.as_ref().map(|config| &config.timeouts));
        if timeouts.is_some_and(|timeouts| order.gap_max != timeouts.between_tokens) {
            let text = format!("may be silent for {:?} between two tokens", order.gap_max);
            wrong(Invariant::Deadlines, text);
        }
        if step.now >= request.deadline || order.first_token_by > request.deadline {
            wrong(Invariant::Deadlines, "is given time beyond its request's deadline".into());
        }
        request.attempts += 1;
        if order.number != request.attempts || request.attempts > own.attempts_max {
            let text = format!("is number {} of at most {}", order.number, own.attempts_max);
            wrong(Invariant::Bounds, text);
        }
        if request.attempts > 1 && (order.hedge || Self::costs(request.last_end.as_ref())) {
            own.retries += 1;
            if u128::from(own.retries) * 100 > own.budget + 100 {
                let text =
                    format!("is retry {}, and {} have been earned", own.retries, own.budget / 100);
                wrong(Invariant::Bounds, text);
            }
        }
        if let Some(AttemptEnd::Failed { failure: Failure::ClientError(_), .. }) = request.last_end
        {
            wrong(Invariant::Bounds, "tries again what the client did wrong".into());
        }
        let mut hedged_after = Duration::ZERO;
        if let Some(config) = &own.config {
            request.under(config);
            hedged_after = hedge_after(config, &request.arrival);
        }
        request.sent(step, order, hedged_after);
        self.figures.attempts += 1;
    }

    /// An attempt is to be stopped.
    pub fn cancelled(
        &mut self,
        step: &Step<'_>,
        caller: CallerToken,
        attempt: AttemptId,
        verdict: &mut Verdict,
    ) {
        let Some(Some(request)) = self.all.get_mut(caller.0 as usize) else { return };
        if request.lost.is_some_and(|lost| lost.attempt == attempt) {
            request.lost = None;
            return;
        }
        let mut both = [&mut request.running, &mut request.beside].into_iter().flatten();
        match both.find(|running| running.attempt == attempt) {
            Some(running) => running.cancelled = true,
            None => {
                let text = format!("{attempt:?} is cancelled and does not run");
                verdict.fail(Invariant::Deadlines, step.at, text);
            }
        }
    }

    /// A request is refused: nothing was sent, nothing is charged.
    pub fn rejected(
        &mut self,
        step: &Step<'_>,
        caller: CallerToken,
        id: RequestId,
        refusal: &Refusal,
        verdict: &mut Verdict,
    ) {
        self.figures.refused(refusal);
        self.conflicts(step, caller, refusal, verdict);
        let Some(request) = self.over(step, caller, id, verdict) else { return };
        if request.committed.is_some() {
            let text = format!("{id:?} is refused after its client was sent a token");
            verdict.fail(Invariant::Tokens, step.at, text);
        }
        if request.granted != [0, 0] && request.noted().is_none() {
            let text = format!("{id:?} is refused, and what is held for it stays held");
            verdict.fail(Invariant::Algebra, step.at, text);
        }
        let named = match refusal {
            Refusal::QuotaSpent(spent) => Some(spent.account),
            Refusal::RateLimited { account, .. } => Some(*account),
            Refusal::UnknownModel
            | Refusal::QuotaUnavailable { .. }
            | Refusal::ModelBusy { .. }
            | Refusal::TurnConflict
            | Refusal::IdempotencyInFlight { .. }
            | Refusal::IdempotencyDone { .. }
            | Refusal::IdempotencyMismatch { .. }
            | Refusal::NobodyLeft { .. }
            | Refusal::Failed { .. }
            | Refusal::ClientGone
            | Refusal::Overloaded
            | Refusal::Lost => None,
        };
        if let Some(named) = named.filter(|named| !request.accounts.contains(named)) {
            let text = format!("{id:?} is refused because {named}, which is not its own, is spent");
            verdict.fail(Invariant::Fairness, step.at, text);
        }
        let charged = request.noted().unwrap_or_default();
        if charged != [0, 0] {
            let text = format!("{id:?} is refused and charged {charged:?}");
            verdict.fail(Invariant::Outcome, step.at, text);
        }
        request.refusal = Some(Box::new(refusal.clone()));
        request.end = Some(End { position: step.position, at: step.at, charged, good: false });
    }

    /// A turn is refused only while another of its session is under way.
    fn conflicts(
        &self,
        step: &Step<'_>,
        caller: CallerToken,
        refusal: &Refusal,
        verdict: &mut Verdict,
    ) {
        let Some(request) = self.of(caller).filter(|_| *refusal == Refusal::TurnConflict) else {
            return;
        };
        if self.turns(step.gateway, request) <= 1 && !self.just_left(step, request) {
            let text = format!("{:?} is refused its turn, and nobody else has it", request.id);
            verdict.fail(Invariant::Liveness, step.at, text);
        }
    }

    /// Whether another of its session was over in this very step: a gateway that slept ends both late, and the one that
    /// waited has waited long enough by then.
    fn just_left(&self, step: &Step<'_>, request: &Request) -> bool {
        let stored = |one: &Request| one.arrival.session.filter(|session| session.is_stored());
        self.all.iter().flatten().any(|other| {
            other.gateway == step.gateway
                && other.end.is_some_and(|end| end.position == step.position)
                && stored(other) == stored(request)
        })
    }

    /// Requests of a request's stored session that are under way at a gateway, this one included.
    pub(super) fn turns(&self, gateway: u32, request: &Request) -> usize {
        let live = self.gateways[gateway as usize].live.iter();
        let others = live.filter_map(|call| self.all[*call as usize].as_deref());
        let stored = |one: &Request| one.arrival.session.filter(|session| session.is_stored());
        others.filter(|other| stored(other).is_some() && stored(other) == stored(request)).count()
    }

    /// A request was answered, in whole or in part.
    pub fn finished(
        &mut self,
        step: &Step<'_>,
        caller: CallerToken,
        id: RequestId,
        (outcome, charged, attempts): (Outcome, Amount, u32),
        verdict: &mut Verdict,
    ) {
        let slack = self.overrun_max(step.gateway);
        let waited = self.of(caller).map(|request| step.now.since(request.arrived));
        self.figures.finished(&outcome, charged, waited);
        let Some(request) = self.over(step, caller, id, verdict) else { return };
        let mut wrong = |invariant, text: String| {
            verdict.fail(invariant, step.at, format!("{id:?} ({outcome:?}): {text}"));
        };
        let whole = match &request.last_end {
            Some(AttemptEnd::Completed { usage, .. }) => Some(*usage),
            Some(AttemptEnd::Failed { .. } | AttemptEnd::Cancelled { .. }) | None => None,
        };
        if outcome == Outcome::Completed && whole.is_none() {
            wrong(Invariant::Tokens, "a broken answer ends as a whole one".into());
        }
        if outcome != Outcome::Completed && whole.is_some() {
            wrong(Invariant::Tokens, "a whole answer ends as a broken one".into());
        }
        if attempts != request.attempts {
            wrong(Invariant::Outcome, format!("{attempts} attempts, not {}", request.attempts));
        }
        let charged = pair(charged);
        let expected = match whole {
            Some(usage) => request.cost_of(usage),
            None => request.cost_in_part(),
        };
        if charged != expected {
            let text = format!("{charged:?} are charged for what costs {expected:?}");
            wrong(Invariant::Outcome, text);
        }
        if request.noted() != Some(charged) {
            let text = format!("its terminal entry says {:?}, not {charged:?}", request.terminal);
            wrong(Invariant::Algebra, text);
        }
        let lied = whole.is_some_and(|usage| {
            request.delivered.is_none_or(|delivered| usage.completion.0 > delivered)
        });
        let error = request.arrival.prompt.0 / 2 + 8;
        let overrun = above(charged, request.granted)[0];
        // Without a limit nothing is held back: what is used beyond the estimate is only noted.
        if request.is_limited() && !lied && overrun > i128::from(slack + error) {
            wrong(Invariant::Bound, format!("{overrun} tokens beyond what was held for it"));
        }
        let good = outcome == Outcome::Completed;
        request.end = Some(End { position: step.position, at: step.at, charged, good });
        self.charge_key(step, caller, verdict);
    }

    /// What a stream may use beyond what is held for it: a slice, what arrives between two marks, and what arrives while
    /// the store is asked, for what is left and once more whether that was all.
    fn overrun_max(&self, gateway: u32) -> u64 {
        let quota = &self.config(gateway).quota;
        let waited = 2 * quota.answer_timeout.as_millis() as u64 * self.waits_at / 1_000;
        quota.slice.0 + waited + 64
    }

    /// How long a replica that is full is left alone.
    pub fn pause(&self, gateway: u32, retry_after: Option<Duration>) -> Duration {
        let config = self.config(gateway);
        retry_after.unwrap_or(config.attempt.backoff_max).min(config.breaker.ejection_max)
    }

    /// One key, one charge.
    fn charge_key(&mut self, step: &Step<'_>, caller: CallerToken, verdict: &mut Verdict) {
        let Some(request) = self.of(caller) else { return };
        let Some(idempotency) = request.arrival.idempotency else { return };
        if request.charged() == [0, 0] {
            return;
        }
        let (id, key) = (request.id, (request.arrival.principal.tenant.0, idempotency.key.0));
        let charged = self.gateways[step.gateway as usize].charged_keys.entry(key).or_default();
        *charged += 1;
        if *charged > 1 {
            let text = format!("{id:?} is charged, and its idempotency key had been charged");
            verdict.fail(Invariant::Outcome, step.at, text);
        }
    }

    /// A request is over: once, and with nothing left running.
    fn over(
        &mut self,
        step: &Step<'_>,
        caller: CallerToken,
        id: RequestId,
        verdict: &mut Verdict,
    ) -> Option<&mut Request> {
        self.gateways[step.gateway as usize].live.remove(&(caller.0 as u32));
        let Some(Some(request)) = self.all.get_mut(caller.0 as usize) else {
            let text = format!("{id:?} is over, and nobody asked for it");
            verdict.fail(Invariant::Outcome, step.at, text);
            return None;
        };
        if request.end.is_some() || request.id != id {
            let text = format!("{id:?} has a second outcome");
            verdict.fail(Invariant::Outcome, step.at, text);
            return None;
        }
        for running in request.under_way().filter(|running| !running.cancelled) {
            let text = format!("{id:?} is over, and {:?} is not told to stop", running.attempt);
            verdict.fail(Invariant::Deadlines, step.at, text);
        }
        (request.running, request.beside) = (None, None);
        Some(request)
    }
}

impl Gateway {
    /// Why an attempt may not be made beside what runs, if it may not. A hedge is paid for from their share.
    fn beside(&mut self, step: &Step<'_>, order: &Dispatch, request: &Request) -> Option<String> {
        if !order.hedge {
            let running = request.under_way().next()?;
            return Some(format!("is made while {:?} runs", running.attempt));
        }
        let Some(left) = self.hedges.checked_sub(100) else {
            return Some("is a hedge beyond their share".into());
        };
        self.hedges = left;
        request.wrongly_hedged(step.now, order)
    }
}

/// After how long a request's silent attempt has another beside it. Zero: never, as with a turn of a stored session, which
/// may have to wait before anybody is asked.
fn hedge_after(config: &Config, arrival: &Arrival) -> Duration {
    if arrival.session.is_some_and(|session| session.is_stored()) {
        return Duration::ZERO;
    }
    let own = config.models.get(&arrival.model).and_then(|model| model.hedge_after);
    own.unwrap_or(config.attempt.hedge_after)
}
