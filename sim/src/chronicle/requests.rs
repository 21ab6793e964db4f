//! What became of each request, and why.

use std::collections::{BTreeMap, BTreeSet};

use control::Instant;
use control::attempt::Why;
use control::id::{AttemptId, Principal, RequestId};
use control::journal::Explanation;
use control::outcome::AttemptEnd;
use control::plane::{
    Arrival, Effect, Input, Observation, Outcome, Race, Refusal, request_of_attempt,
};

use super::{Names, id_of, words};
use crate::check::Step;
use crate::plan::{Ask, Host, Plan, tenant_account, user_account};
use crate::story::{Attempt, Request};

/// Every request that came to a gateway.
#[derive(Default)]
pub(crate) struct Requests {
    /// With several gateways an id alone names nobody.
    several: bool,
    /// Whether nobody will read the reasons.
    wordless: bool,
    all: Vec<Noted>,
    by_id: BTreeMap<(u32, RequestId), usize>,
    by_call: BTreeMap<u32, usize>,
    /// Under way, by gateway.
    live: BTreeMap<u32, BTreeSet<usize>>,
}

/// What became of a request, to be counted and not read.
#[derive(Clone, Debug)]
pub(crate) struct Record {
    pub principal: Principal,
    pub model: Box<str>,
    pub stream: bool,
    pub at: u64,
    /// When the first token of a stream was at its gateway.
    pub first: Option<u64>,
    pub attempts: u32,
    /// Why no other attempt was made, where one had failed.
    pub gave_up: Option<Why>,
    /// When and how it ended.
    pub end: Option<(u64, End)>,
}

/// How a request ended.
#[derive(Clone, Debug)]
pub(crate) enum End {
    Refused(Refusal),
    Finished(Outcome),
}

struct Noted {
    told: Request,
    /// `None` for what no plane ever saw.
    record: Option<Record>,
    gateway: u32,
    /// By its gateway's clock.
    arrived: Instant,
    /// `None` for what no plane ever saw.
    explanation: Option<Explanation>,
    attempts: Vec<AttemptId>,
    /// Why the latest endpoint was picked.
    reason: String,
    /// What a replica wrote whole, whatever it said.
    delivered: Option<u64>,
    over: bool,
}

impl Requests {
    pub fn of(plan: &Plan) -> Self {
        Self { several: plan.topology.gateways.len() > 1, ..Self::default() }
    }

    /// Without reasons: whoever only counts need not pay for them.
    pub fn wordless(mut self) -> Self {
        self.wordless = true;
        self
    }

    /// What became of all that a plane saw, in the order of arrival.
    pub fn records(self) -> Vec<Record> {
        self.all.into_iter().filter_map(|noted| noted.record).collect()
    }

    /// What happened to a gateway: first tokens and progress.
    pub fn input(&mut self, step: &Step<'_>, names: &Names) {
        match &step.input {
            Input::RequestArrived(arrival) => self.arrived(step, arrival, names),
            Input::Progress { attempt, produced } => {
                if let Some(noted) = self.of_attempt(step.gateway, *attempt) {
                    noted.told.tokens = produced.0;
                }
            }
            Input::Restarted { .. }
            | Input::WallTime(_)
            | Input::Configured(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::Drain { .. }
            | Input::LoadReported { .. }
            | Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::AttemptAccepted { .. }
            | Input::FirstToken { .. }
            | Input::AttemptEnded { .. }
            | Input::ClientGone { .. }
            | Input::Timeout => {}
        }
    }

    fn arrived(&mut self, step: &Step<'_>, arrival: &Arrival, names: &Names) {
        let admitted = step.effects.iter().find_map(|effect| {
            let Effect::Admitted { request, .. } = effect else { return None };
            Some(*request)
        });
        let Some(id) = admitted else { return };
        let index = self.all.len();
        let name = match self.several {
            true => format!("gateway-{}/{id}", step.gateway),
            false => id.to_string(),
        };
        let payer = arrival.principal.user.unwrap_or(arrival.principal.tenant);
        let told = Request {
            id: name,
            tenant: names.account(payer),
            model: arrival.model.to_string(),
            gateway: id_of(Host::Gateway(step.gateway)),
            arrived_ns: step.at,
            ended_ns: None,
            outcome: "under way when the run ended".to_owned(),
            good: true,
            tokens: 0,
            session: arrival.session.map(|session| names.session(session.key)),
            explanation: vec![asked(arrival)],
            attempts: Vec::new(),
        };
        self.by_id.insert((step.gateway, id), index);
        self.by_call.insert(arrival.caller.0 as u32, index);
        self.live.entry(step.gateway).or_default().insert(index);
        let record = Record {
            principal: arrival.principal,
            model: arrival.model.clone(),
            stream: arrival.stream,
            at: step.at,
            first: None,
            attempts: 0,
            gave_up: None,
            end: None,
        };
        self.all.push(Noted {
            told,
            record: Some(record),
            gateway: step.gateway,
            arrived: step.now,
            explanation: (!self.wordless).then(|| Explanation::of(id)),
            attempts: Vec::new(),
            reason: String::new(),
            delivered: None,
            over: false,
        });
    }

    /// What a plane asked for.
    pub fn effect(&mut self, step: &Step<'_>, effect: &Effect) {
        let Effect::Dispatch(order) = effect else { return };
        let Some(replica) = crate::world::replica_of(&order.endpoint_name) else { return };
        let Some(noted) = self.of_request(step.gateway, order.request) else { return };
        noted.attempts.push(order.attempt);
        if let Some(record) = &mut noted.record {
            record.attempts += 1;
        }
        noted.told.tokens = 0;
        noted.told.attempts.push(Attempt {
            replica: id_of(Host::Replica(replica)),
            start_ns: step.at,
            first_token_ns: None,
            end_ns: None,
            end: "under way".to_owned(),
            good: true,
        });
    }

    /// What a plane noticed.
    #[allow(clippy::wildcard_enum_match_arm, reason = "the rest is told by the explanation alone")]
    pub fn observed(&mut self, step: &Step<'_>, observation: &Observation) {
        let Some(request) = concerns(observation) else {
            if let Observation::Breaker(_) = observation {
                for index in self.live.get(&step.gateway).into_iter().flatten() {
                    self.all[*index].explain(step, observation);
                }
            }
            return;
        };
        let Some(index) = self.by_id.get(&(step.gateway, request)).copied() else { return };
        let noted = &mut self.all[index];
        noted.explain(step, observation);
        match observation {
            Observation::Picked { chosen, .. } => noted.reason = chosen.reason.to_string(),
            Observation::FirstToken { attempt, .. } => {
                if let Some(told) = noted.attempt(*attempt) {
                    told.first_token_ns = Some(step.at);
                }
                if let Some(record) = &mut noted.record {
                    record.first = Some(step.at);
                }
            }
            Observation::Ended { attempt, end, .. } => noted.attempt_ended(step.at, *attempt, end),
            Observation::Hedged { race, .. } => noted.raced(step.at, *race),
            Observation::GaveUp { why, .. } => {
                if let Some(record) = &mut noted.record {
                    record.gave_up = Some(*why);
                }
            }
            Observation::Refused { refusal, .. } => {
                noted.ended(step.at, End::Refused(refusal.clone()));
                noted.conclude(step.at, words::refusal(refusal));
                self.live.entry(step.gateway).or_default().remove(&index);
            }
            Observation::Finished { outcome, .. } => {
                noted.ended(step.at, End::Finished(*outcome));
                noted.conclude(step.at, words::outcome(*outcome));
                self.live.entry(step.gateway).or_default().remove(&index);
            }
            _ => {}
        }
    }

    /// Why the request was last sent where it was sent.
    pub fn reason(&self, gateway: u32, request: RequestId) -> String {
        let index = self.by_id.get(&(gateway, request));
        let reason = index.map_or("", |index| &self.all[*index].reason);
        if reason.is_empty() { "it answered there".to_owned() } else { reason.to_owned() }
    }

    /// A gateway is dead, and with it every attempt it had made.
    pub fn died(&mut self, at: u64, gateway: u32) {
        for index in self.live.get(&gateway).into_iter().flatten() {
            let noted = &mut self.all[*index];
            noted.stop_attempts(at, "its gateway died", false);
            noted.told.outcome = "lost: its gateway died".to_owned();
            noted.told.good = false;
            noted.told.explanation.push(format!(
                "{} gateway-{gateway} dies; what of this it remembers, its journal says",
                since(at.saturating_sub(noted.told.arrived_ns))
            ));
        }
    }

    /// A client knows how its call ended, or its connection broke.
    pub fn told(&mut self, at: u64, call: u32, heard: bool) {
        let Some(index) = self.by_call.get(&call) else { return };
        let told = &mut self.all[*index].told;
        told.ended_ns = Some(at);
        if !heard && told.good {
            told.good = false;
            told.outcome.push_str(", and its client never heard of it");
        }
    }

    pub fn delivered(&mut self, call: u32, tokens: u64) {
        if let Some(index) = self.by_call.get(&call) {
            self.all[*index].delivered = Some(tokens);
        }
    }

    /// A call that no plane took. It has no id of a gateway, so it goes by its number.
    pub fn turned_away(&mut self, at: u64, call: u32, ask: &Ask, (gateway, why): (u32, &str)) {
        let names = Names::default();
        let tenant = tenant_account(ask.tenant);
        let payer = ask.user.map_or(tenant, |user| user_account(ask.tenant, user));
        let told = Request {
            id: format!("call-{call}"),
            tenant: names.account(payer),
            model: Plan::model_name(ask.model),
            gateway: id_of(Host::Gateway(gateway)),
            arrived_ns: at,
            ended_ns: None,
            outcome: format!("turned away by its gateway: {why}"),
            good: false,
            tokens: 0,
            session: ask.session.map(|session| format!("tenant-{}/s{session}", ask.tenant)),
            explanation: vec![format!("+0 ms: gateway-{gateway} takes nothing: {why}")],
            attempts: Vec::new(),
        };
        self.by_call.insert(call, self.all.len());
        self.all.push(Noted {
            told,
            record: None,
            gateway,
            arrived: Instant::ZERO,
            explanation: None,
            attempts: Vec::new(),
            reason: String::new(),
            delivered: None,
            over: true,
        });
    }

    /// The requests as they are told.
    pub fn into_story(self, names: &Names) -> Vec<Request> {
        self.all.into_iter().map(|noted| noted.into_story(names)).collect()
    }

    /// What a request is called in the story: at this gateway where there is one of that id, else at any.
    pub fn name_of(&self, gateway: u32, id: RequestId) -> Option<String> {
        let here = self.by_id.get(&(gateway, id)).copied();
        let anywhere = || self.by_id.iter().find(|((_, other), _)| *other == id).map(|(_, i)| *i);
        here.or_else(anywhere).map(|index| self.all[index].told.id.clone())
    }

    fn of_request(&mut self, gateway: u32, id: RequestId) -> Option<&mut Noted> {
        let index = self.by_id.get(&(gateway, id))?;
        self.all.get_mut(*index)
    }

    fn of_attempt(&mut self, gateway: u32, attempt: AttemptId) -> Option<&mut Noted> {
        self.of_request(gateway, request_of_attempt(attempt))
            .filter(|noted| noted.attempts.contains(&attempt))
    }
}

impl Noted {
    fn explain(&mut self, step: &Step<'_>, observation: &Observation) {
        if let Some(explanation) = &mut self.explanation {
            explanation.observe(step.plane, observation);
        }
    }

    fn attempt(&mut self, id: AttemptId) -> Option<&mut Attempt> {
        let at = self.attempts.iter().position(|own| *own == id)?;
        self.told.attempts.get_mut(at)
    }

    fn attempt_ended(&mut self, at: u64, id: AttemptId, end: &AttemptEnd) {
        let said = match end {
            AttemptEnd::Completed { usage, .. } => usage.completion.0,
            AttemptEnd::Failed { produced, .. } | AttemptEnd::Cancelled { produced } => produced.0,
        };
        let truth = self.delivered.unwrap_or(said);
        self.told.tokens = truth;
        let (mut text, good) = words::attempt_end(end);
        if truth != said {
            text.push_str(&format!(" (truly {truth})"));
        }
        if let Some(attempt) = self.attempt(id) {
            (attempt.end_ns, attempt.end, attempt.good) = (Some(at), text, good);
        }
    }

    /// Of two attempts one answers, and the other is stopped. The second is the last that was made.
    fn raced(&mut self, at: u64, race: Race) {
        let made = self.told.attempts.len();
        let lost = match race {
            Race::Won { .. } => made.checked_sub(2),
            Race::Lost { .. } => made.checked_sub(1),
            Race::Begun { .. } | Race::NotBegun { .. } | Race::Alone { .. } | Race::Stopped => None,
        };
        if let Some(lost) = lost.and_then(|lost| self.told.attempts.get_mut(lost)) {
            (lost.end_ns, lost.end) = (Some(at), "stopped: another attempt answers".to_owned());
        }
    }

    fn ended(&mut self, at: u64, end: End) {
        if let Some(record) = &mut self.record
            && record.end.is_none()
        {
            record.end = Some((at, end));
        }
    }

    fn conclude(&mut self, at: u64, (outcome, good): (String, bool)) {
        if self.over {
            return;
        }
        self.over = true;
        (self.told.outcome, self.told.good) = (outcome, good);
        self.stop_attempts(at, "its request ended", good);
    }

    fn stop_attempts(&mut self, at: u64, why: &str, good: bool) {
        for attempt in self.told.attempts.iter_mut().filter(|attempt| attempt.end_ns.is_none()) {
            (attempt.end_ns, attempt.end, attempt.good) = (Some(at), why.to_owned(), good);
        }
    }

    fn into_story(self, names: &Names) -> Request {
        let mut told = self.told;
        let own = std::mem::take(&mut told.explanation);
        let mut own = own.into_iter();
        // What the client wanted goes first, what happened around its gateway last.
        told.explanation.extend(own.next());
        for line in self.explanation.iter().flat_map(Explanation::lines) {
            let gone = line.at.since(self.arrived).as_nanos();
            let gone = since(u64::try_from(gone).unwrap_or(u64::MAX));
            told.explanation.push(format!("{gone} {}", names.named(self.gateway, &line.text)));
        }
        told.explanation.extend(own);
        told
    }
}

/// What the client wants.
fn asked(arrival: &Arrival) -> String {
    let how = if arrival.stream { "a stream" } else { "a whole answer" };
    let most = arrival.output_max.map(|most| format!(", at most {} tokens", most.0));
    let most = most.unwrap_or_default();
    let patience = arrival.patience.map(|p| format!(", waits {}", words::span(p)));
    let key = arrival.idempotency.map_or("", |_| ", with an idempotency key");
    let turn = arrival
        .session
        .map_or("", |s| if s.is_stored() { ", a turn of a stored session" } else { "" });
    format!(
        "+0 ms: asks {} for {how} to a prompt of {} tokens{most}{}{key}{turn}",
        arrival.model,
        arrival.prompt.0,
        patience.unwrap_or_default(),
    )
}

fn since(nanos: u64) -> String {
    format!("+{}:", words::span(std::time::Duration::from_nanos(nanos)))
}

/// The request an observation is about.
fn concerns(observation: &Observation) -> Option<RequestId> {
    match observation {
        Observation::Arrived { request, .. }
        | Observation::Granted { request, .. }
        | Observation::Denied { request, .. }
        | Observation::Picked { request, .. }
        | Observation::Nobody { request, .. }
        | Observation::Hedged { request, .. }
        | Observation::Retrying { request, .. }
        | Observation::GaveUp { request, .. }
        | Observation::Bound { request, .. }
        | Observation::Refused { request, .. }
        | Observation::Finished { request, .. }
        | Observation::Lost { request, .. } => Some(*request),
        Observation::Accepted { attempt, .. }
        | Observation::FirstToken { attempt, .. }
        | Observation::Ended { attempt, .. } => Some(request_of_attempt(*attempt)),
        Observation::Breaker(_)
        | Observation::EndpointAdded(_)
        | Observation::EndpointRemoved { .. }
        | Observation::SourceRefused { .. }
        | Observation::Configured { .. }
        | Observation::ChargeLost { .. }
        | Observation::QuotaLate
        | Observation::QuotaDegraded(_)
        | Observation::SharedDegraded(_)
        | Observation::Consulted { .. }
        | Observation::ConsultLost { .. }
        | Observation::Adopted { .. }
        | Observation::Stale(_) => None,
    }
}
