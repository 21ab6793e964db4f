//! Why a request went where it went, in words.
//!
//! Nothing is written down for this in production: the journal is replayed, and what the plane observes on the way is
//! told. So an explanation costs nothing until somebody asks, and it cannot differ from what was decided.

use alloc::collections::BTreeSet;
use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt::Write;
use core::time::Duration;

use crate::balance::{Candidate, Chosen, Reason, WhyNot};
use crate::breaker::Transition;
use crate::id::{AttemptId, EndpointId, RequestId};
use crate::outcome::AttemptEnd;
use crate::plane::{ControlPlane, Observation, Outcome, Race, Refusal, Spent, request_of_attempt};
use crate::quota::{Denied, DenyReason, Unit, WindowKind};
use crate::rate::RateUnit;
use crate::shared::{Consulted, HomeAnswer, KeyAnswer, RatesAnswer};
use crate::time::Instant;
use crate::units::{Amount, MicroUsd};

/// Lines of one explanation. A request of fifteen attempts makes fewer than a hundred; a stream that runs for an hour
/// adds one for each slice of quota.
const LINES_MAX: usize = 1_000;

/// Collects what concerns one request while a journal is replayed.
#[derive(Clone, Debug)]
pub struct Explanation {
    request: RequestId,
    endpoints: BTreeSet<EndpointId>,
    lines: Vec<Line>,
    over: bool,
}

/// One thing that happened to the request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// When.
    pub at: Instant,
    /// What, and why.
    pub text: String,
}

impl Explanation {
    /// For a request.
    #[must_use]
    pub fn of(request: RequestId) -> Self {
        Self { request, endpoints: BTreeSet::new(), lines: Vec::new(), over: false }
    }

    /// Takes what `plane` noticed in its latest step.
    pub fn observe(&mut self, plane: &ControlPlane, observation: &Observation) {
        if self.over || self.lines.len() >= LINES_MAX {
            return;
        }
        if let Some(text) = self.tell(plane, observation) {
            self.lines.push(Line { at: plane.now(), text });
        }
    }

    /// What was told so far, oldest first. Empty: the request was not met.
    #[must_use]
    pub fn lines(&self) -> &[Line] {
        &self.lines
    }

    /// Whether the request's end was met.
    #[must_use]
    pub const fn is_over(&self) -> bool {
        self.over
    }

    #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is told below")]
    fn tell(&mut self, plane: &ControlPlane, observation: &Observation) -> Option<String> {
        match observation {
            Observation::Breaker(moved) => self.tell_breaker(plane, moved),
            Observation::Picked { request, attempt, chosen, throttled }
                if *request == self.request =>
            {
                self.endpoints.extend(chosen.considered.iter().map(|candidate| candidate.endpoint));
                self.endpoints.insert(chosen.endpoint);
                Some(tell_pick(plane, *attempt, chosen, throttled))
            }
            Observation::Accepted { attempt, after } if self.is_ours(*attempt) => {
                Some(format!("accepted after {}", short(*after)))
            }
            Observation::FirstToken { attempt, after } if self.is_ours(*attempt) => {
                Some(format!("first token after {}: from here on no silent retry", short(*after)))
            }
            Observation::Ended { attempt, endpoint, end, after } if self.is_ours(*attempt) => {
                Some(tell_end(plane, *endpoint, end, *after))
            }
            Observation::Hedged { request, race } if *request == self.request => {
                Some(tell_race(plane, *race))
            }
            other => self.tell_request(plane, other),
        }
    }

    fn is_ours(&self, attempt: AttemptId) -> bool {
        request_of_attempt(attempt) == self.request
    }

    fn tell_breaker(&self, plane: &ControlPlane, moved: &Transition) -> Option<String> {
        // Steps of a slow start, and a fault named anew, move nothing that a request would notice.
        let told = self.endpoints.contains(&moved.id) && moved.from != moved.to;
        told.then(|| {
            let name = name(plane, moved.id);
            let again = moved.until.map(|until| until.since(plane.now()));
            let again = again.map(|wait| format!("; asked again in {}", short(wait)));
            let (from, to, cause) = (moved.from, moved.to, moved.cause);
            format!("breaker of {name}: {from} -> {to}: {cause}{}", again.unwrap_or_default())
        })
    }

    #[allow(
        clippy::wildcard_enum_match_arm,
        reason = "what is no request's is told by nobody here"
    )]
    fn tell_request(&mut self, plane: &ControlPlane, observation: &Observation) -> Option<String> {
        let (request, text) = match observation {
            Observation::Arrived { request, session, reserving, deadline } => {
                let session = match session {
                    None => "without a session".to_string(),
                    Some((key, None)) => format!("in session {key:?}, which has no home yet"),
                    Some((key, Some(home))) => {
                        format!("in session {key:?}, at home on {}", name(plane, home.endpoint))
                    }
                };
                let left = short(deadline.since(plane.now()));
                let reserving = sum(*reserving);
                (
                    request,
                    format!("arrived {session}; asks to reserve {reserving}; {left} to answer"),
                )
            }
            Observation::Granted { request, total } => {
                (request, format!("reserved: {} in all", sum(*total)))
            }
            Observation::Denied { request, denied } => {
                (request, format!("quota denied: {}", tell_denied(denied)))
            }
            Observation::Consulted { request, answer, awaited } => {
                let late = if *awaited { "" } else { ", too late to count" };
                (request, format!("the store that gateways share says{late}: {}", tell_shared(answer)))
            }
            Observation::ConsultLost { request } => (
                request,
                "the store that gateways share does not answer: this gateway goes by what it knows itself"
                    .to_string(),
            ),
            Observation::Nobody { request, nobody } => {
                (request, format!("nobody to pick: {nobody}"))
            }
            Observation::Retrying { request, at, resume } => {
                let wait = at.since(plane.now());
                let when =
                    if wait.is_zero() { "at once".into() } else { format!("in {}", short(wait)) };
                let from = resume.map(|from| format!(", from token {} on", from.0));
                (request, format!("another attempt {when}{}", from.unwrap_or_default()))
            }
            Observation::GaveUp { request, why } => (request, format!("no other attempt: {why}")),
            Observation::Bound { request, session, binding, moved_from } => {
                let home = name(plane, binding.endpoint);
                let from = moved_from.map(|id| format!(", moved from {}", name(plane, id)));
                let (from, epoch) = (from.unwrap_or_default(), binding.epoch);
                (
                    request,
                    format!("{home} is the home of session {session:?} now{from} (epoch {epoch})"),
                )
            }
            Observation::Refused { request, refusal } => {
                self.over = *request == self.request;
                (request, format!("refused: {}", tell_refusal(refusal)))
            }
            Observation::Finished { request, outcome, charged, estimated } => {
                self.over = *request == self.request;
                let how = if *estimated { ", by our own count" } else { "" };
                let charged = sum(*charged);
                (request, format!("{}; charged {charged}{how}", tell_outcome(*outcome)))
            }
            Observation::Lost { request, produced } => (
                request,
                format!("the process stopped; {produced} had been delivered by the last mark"),
            ),
            _ => return None,
        };
        (*request == self.request).then_some(text)
    }
}

/// Tokens, and what they cost where they cost something.
fn sum(amount: Amount) -> String {
    match amount.money {
        MicroUsd::ZERO => amount.tokens.to_string(),
        money => format!("{} ({money})", amount.tokens),
    }
}

fn tell_pick(
    plane: &ControlPlane,
    attempt: AttemptId,
    chosen: &Chosen,
    throttled: &[EndpointId],
) -> String {
    let number = attempt.0.counter & 0xf;
    let mut text =
        format!("attempt {number} -> {}: {}", name(plane, chosen.endpoint), chosen.reason);
    if let Reason::Spilled { from } = chosen.reason {
        let _ = write!(text, " ({} keeps the session)", name(plane, from));
    }
    if chosen.panic {
        text.push_str("; panic: so few are left that the ejected ones are asked too");
    }
    if chosen.retried_same {
        text.push_str("; it was tried before, and nobody else is left");
    }
    let mut considered = chosen.considered.iter();
    if let Some(own) = considered.find(|c| c.endpoint == chosen.endpoint && c.others > 0) {
        let _ = write!(text, " ({})", tell_load(own));
    }
    let others = chosen.considered.iter().filter(|c| c.endpoint != chosen.endpoint);
    for (index, candidate) in others.enumerate() {
        text.push_str(if index == 0 { ". Not " } else { "; not " });
        let _ = write!(text, "{} ({})", name(plane, candidate.endpoint), tell_load(candidate));
        if throttled.contains(&candidate.endpoint) {
            text.push_str(": it has had its requests of this second (rps_max)");
        } else if let Some(why_not) = candidate.why_not {
            let _ = write!(text, ": {}", tell_why_not(plane, candidate.endpoint, why_not));
        }
    }
    text
}

/// What it has to do: for us, and where it says so for others.
fn tell_load(candidate: Candidate) -> String {
    match candidate {
        Candidate { in_flight, others: 0, .. } => format!("{in_flight} in flight"),
        Candidate { in_flight, others, .. } => {
            format!("{in_flight} in flight, and says {others} of others")
        }
    }
}

/// With what the breaker knows, where that is the reason.
fn tell_why_not(plane: &ControlPlane, id: EndpointId, why_not: WhyNot) -> String {
    let breaker = plane.breaker(id).filter(|_| why_not == WhyNot::Ejected);
    match breaker.and_then(|breaker| Some((breaker.phase, breaker.cause?))) {
        Some((phase, cause)) => format!("its breaker is {phase} ({cause})"),
        None => why_not.to_string(),
    }
}

fn tell_end(plane: &ControlPlane, id: EndpointId, end: &AttemptEnd, after: Duration) -> String {
    let (name, after) = (name(plane, id), short(after));
    match end {
        AttemptEnd::Completed { usage, .. } => format!(
            "{name} answered in {after}: prompt {}, completion {}",
            usage.prompt, usage.completion
        ),
        AttemptEnd::Failed { failure, produced, .. } => {
            format!("{name} failed after {after}, with {produced} sent: {failure}")
        }
        AttemptEnd::Cancelled { produced } => {
            format!("stopped on {name} after {after}, with {produced} sent")
        }
    }
}

fn tell_race(plane: &ControlPlane, race: Race) -> String {
    match race {
        Race::Begun { after } => {
            format!("no token after {}: a second attempt beside the first", short(after))
        }
        Race::NotBegun { why } => format!("no second attempt beside the first: {why}"),
        Race::Won { over } => {
            format!("the second attempt answers; the first, on {}, is stopped", name(plane, over))
        }
        Race::Lost { over } => {
            format!("the first attempt answers; the second, on {}, is stopped", name(plane, over))
        }
        Race::Alone { without } => {
            format!("of two attempts the one on {} is out; the other goes on", name(plane, without))
        }
        Race::Stopped => "of two attempts neither had brought a token".into(),
    }
}

fn tell_outcome(outcome: Outcome) -> String {
    match outcome {
        Outcome::Completed => "answered whole".into(),
        Outcome::Broken(failure) => {
            format!("broken off in the middle, and the client was told: {failure}")
        }
        Outcome::QuotaSpent(spent) => {
            format!("cut in the middle: {}", tell_spent(&spent))
        }
        Outcome::QuotaUnavailable { retry_after } => {
            let again = short(retry_after);
            format!("cut in the middle: no more quota can be reserved just now; again in {again}")
        }
        Outcome::Cancelled => "the client left".into(),
    }
}

fn tell_spent(spent: &Spent) -> String {
    let unit = match spent.unit {
        Unit::Tokens => "tokens",
        Unit::Money => "money",
    };
    format!("{} has spent its {unit} {}", spent.account, tell_window(spent.window))
}

const fn tell_window(window: WindowKind) -> &'static str {
    match window {
        WindowKind::Day => "of the day",
        WindowKind::Month => "of the month",
        WindowKind::Rolling => "of its rolling window",
    }
}

fn tell_denied(denied: &Denied) -> String {
    match denied.reason {
        DenyReason::Spent { account, window, unit, remaining } => {
            let left = match unit {
                Unit::Tokens => remaining.tokens.to_string(),
                Unit::Money => remaining.money.to_string(),
            };
            format!("{account} has {left} left {}, and more was asked for", tell_window(window))
        }
        DenyReason::TooLarge => "more than any account may hold at once".into(),
        DenyReason::Full => "the ledger holds as many reservations as it may".into(),
        DenyReason::Ended => "the reservation had ended".into(),
        DenyReason::StoreUnreachable => "the store cannot be reached".into(),
    }
}

/// What gateways share, as the store has it.
fn tell_shared(answer: &Consulted) -> String {
    let key = answer.idempotency.map(|key| match key {
        KeyAnswer::Begun => "the key is new".to_string(),
        KeyAnswer::InFlight => "another request with this key runs".into(),
        KeyAnswer::Done => "another request with this key was answered".into(),
        KeyAnswer::Mismatch => "this key came with another body".into(),
    });
    let rates = answer.rates.map(|rates| match rates {
        RatesAnswer::Taken { .. } => "the rates have room".to_string(),
        RatesAnswer::Refused { account, unit, limit, .. } => {
            let unit = tell_rate(unit);
            format!("over all gateways {account} has had its {limit} {unit} a minute")
        }
    });
    let home = answer.home.as_ref().map(|home| match home {
        HomeAnswer::Nowhere { .. } => "the session has no home".to_string(),
        HomeAnswer::At { endpoint, epoch } => {
            format!("the session is at home on {endpoint} (epoch {epoch})")
        }
    });
    let parts: Vec<_> = [key, rates, home].into_iter().flatten().collect();
    if parts.is_empty() { "nothing".into() } else { parts.join("; ") }
}

const fn tell_rate(unit: RateUnit) -> &'static str {
    match unit {
        RateUnit::Rpm => "requests",
        RateUnit::Tpm => "tokens",
    }
}

fn tell_refusal(refusal: &Refusal) -> String {
    match refusal {
        Refusal::UnknownModel => "no endpoint serves the model".into(),
        Refusal::QuotaSpent(spent) => tell_spent(spent),
        Refusal::QuotaUnavailable { retry_after } => {
            format!("no quota can be reserved just now; again in {}", short(*retry_after))
        }
        Refusal::RateLimited { account, unit, limit, retry_after } => {
            let unit = tell_rate(*unit);
            format!("{account} may have {limit} {unit} a minute; again in {}", short(*retry_after))
        }
        Refusal::ModelBusy { retry_after } => {
            format!("the model takes no more just now; again in {}", short(*retry_after))
        }
        Refusal::TurnConflict => "another turn of the session runs".into(),
        Refusal::IdempotencyInFlight { by } => {
            format!("{} is answering the same key now", tell_other(*by))
        }
        Refusal::IdempotencyDone { by } => format!("{} has answered the same key", tell_other(*by)),
        Refusal::IdempotencyMismatch { by } => {
            format!("{} came with the same key and another body", tell_other(*by))
        }
        Refusal::NobodyLeft { members, draining, ejected, full, .. } => format!(
            "nobody is left: of {members} endpoints {draining} are draining, {ejected} have an open breaker, {full} are full"
        ),
        Refusal::Failed { failure, attempts: 0, .. } => format!("no attempt was made: {failure}"),
        Refusal::Failed { failure, attempts: 1, .. } => {
            format!("its one attempt failed: {failure}")
        }
        Refusal::Failed { failure, attempts, .. } => {
            format!("{attempts} attempts failed, the last with: {failure}")
        }
        Refusal::ClientGone => "the client left before anything was sent".into(),
        Refusal::Overloaded => "the gateway holds as many requests as it may".into(),
        Refusal::Lost => "the process stopped before anything was sent; nothing is charged".into(),
    }
}

/// Another gateway's requests have ids that name others here.
fn tell_other(by: Option<RequestId>) -> String {
    by.map_or_else(|| "a request of another gateway".into(), |by| by.to_string())
}

fn name(plane: &ControlPlane, id: EndpointId) -> String {
    plane.endpoint_name(id).map_or_else(|| format!("{id:?} (gone)"), ToString::to_string)
}

/// A duration at the precision a reader cares for.
fn short(duration: Duration) -> String {
    match duration.as_millis() {
        0 => format!("{} us", duration.as_micros()),
        1..10_000 => format!("{} ms", duration.as_millis()),
        _ => format!("{} s", duration.as_secs()),
    }
}
