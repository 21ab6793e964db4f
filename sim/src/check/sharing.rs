//! Invariant 14: what gateways share holds over all of them, while the store they share it in answers.
//!
//! Counted is what was let through by a gateway that was not by itself: it did not say that the store was away, and the
//! request did not go on unanswered. What is taken for such a request is taken between the moment at which it asks for its
//! quota and the moment at which it is sent; so in any span that holds both moments of some requests of an account, there
//! are no more of them than the limit and its burst allow. A failover may forget takes, charges and homes: counting starts
//! anew.
//!
//! What a gateway does by itself is bounded by other means: its own rates, its own keys. That it does not consult on and on
//! while nobody answers is looked at here, and that it finds the store back.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use control::id::{AccountId, CallerToken, RequestId, SessionKey};
use control::plane::{Config, Durable, Effect, Input, Observation, Refusal};
use control::quota::{Ask as StoreAsk, StoreMode};
use control::shared::{Consult, HomeAnswer, Noted, SharedOpId};
use control::units::Tokens;

use super::requests::Requests;
use super::{Invariant, Step, Verdict};
use crate::coverage::sometimes;
use crate::plan::{FaultKind, Plan};
use crate::world::{SharedAnswer, SharedAsk};

/// A tenant's key.
type Key = (AccountId, u128);

pub(super) struct Sharing {
    shared: bool,
    gateways: Vec<Gateway>,
    /// The highest limit each account ever has, in requests a minute; accounts that at times have none are not here.
    limits: BTreeMap<AccountId, u64>,
    /// How far requests may run ahead, in nanoseconds.
    burst: u64,
    /// Requests that were let through with the store's consent: when they asked, and when they were sent.
    sent: BTreeMap<AccountId, Vec<(u64, u64)>>,
    /// Keys the store knows as charged, since when.
    charged: BTreeMap<Key, u64>,
    /// The epoch of each session at the store, and until when it is kept there.
    epochs: BTreeMap<SessionKey, (u64, u64)>,
}

#[derive(Default)]
struct Gateway {
    alone: bool,
    /// Which parts each consultation asks for, until it is answered or given up.
    asked: BTreeMap<SharedOpId, Asked>,
    /// When each part that did not answer was asked for since, by the gateway's own clock. `None`: it answers.
    probes: [Option<VecDeque<u64>>; PARTS],
    /// Requests that wait: when they asked.
    waiting: BTreeMap<RequestId, u64>,
    /// Requests of which the store has not said anything in time.
    unheard: BTreeSet<RequestId>,
}

/// A consultation on its way.
struct Asked {
    request: RequestId,
    parts: [bool; PARTS],
    session: Option<SessionKey>,
}

/// Parts of the store that are asked by themselves.
const PARTS: usize = 3;

/// Times a part that does not answer may be asked for within the time between two probes: a reload may shorten that.
const PROBES_MAX: usize = 2;

/// Clocks that run differently, and rounding: a hundredth.
const SLACK_PERCENT: u64 = 1;

impl Sharing {
    pub fn new(plan: &Plan) -> Self {
        let reloads = plan.faults.iter().filter_map(|fault| {
            let FaultKind::Reload { config } = &fault.kind else { return None };
            Some(&**config)
        });
        let configs: Vec<&Config> = reloads.chain([&plan.config]).collect();
        let mut limits = BTreeMap::new();
        for account in plan.config.accounts.keys() {
            let of = |config: &&Config| config.accounts.get(account)?.rates.rpm.map(u64::from);
            let all: Option<Vec<u64>> = configs.iter().map(of).collect();
            limits.extend(all.and_then(|all| Some((*account, *all.iter().max()?))));
        }
        let burst = configs.iter().map(|config| config.rate.burst.as_nanos() as u64).max();
        Self {
            shared: plan.config.quota.store == StoreMode::Shared,
            gateways: plan.topology.gateways.iter().map(|_| Gateway::default()).collect(),
            limits,
            burst: burst.unwrap_or(0),
            sent: BTreeMap::new(),
            charged: BTreeMap::new(),
            epochs: BTreeMap::new(),
        }
    }

    /// A plane took a step.
    pub fn step(&mut self, step: &Step<'_>, requests: &Requests, verdict: &mut Verdict) {
        if !self.shared {
            return;
        }
        let alone = self.gateways[step.gateway as usize].alone;
        self.homes(step, verdict);
        self.noticed(step);
        // Who asks in the step in which his gateway is by itself, because the ledger is silent, does not wait.
        let suspects = observed(step, &Observation::SharedDegraded(true));
        for effect in step.effects {
            self.effect(step, effect, alone || suspects, requests, verdict);
        }
        let now_alone = self.gateways[step.gateway as usize].alone;
        // It may be by itself again at once, for another part and for the ledger's sake.
        let stays = now_alone && !observed(step, &Observation::SharedDegraded(false));
        if let Input::Consulted(answer) = &step.input
            && (answer.rates.is_some() || answer.idempotency.is_some() || answer.home.is_some())
            && stays
            && step.observed.iter().any(|o| matches!(o, Observation::Consulted { .. }))
        {
            let text = format!("gateway-{} was answered, and stays by itself", step.gateway);
            verdict.fail(Invariant::Sharing, step.at, text);
        }
    }

    fn noticed(&mut self, step: &Step<'_>) {
        let own = &mut self.gateways[step.gateway as usize];
        if let Input::Consulted(answer) = &step.input {
            own.asked.remove(&answer.op);
            own.probes = Default::default();
        }
        for observation in step.observed {
            if let Observation::SharedDegraded(alone) = observation {
                own.alone = *alone;
            } else if let Observation::ConsultLost { request } = observation {
                own.unheard.insert(*request);
                let lost = own.asked.values().filter(|asked| asked.request == *request);
                for parts in lost.map(|asked| asked.parts).collect::<Vec<_>>() {
                    for (probes, lost) in own.probes.iter_mut().zip(parts) {
                        if lost {
                            probes.get_or_insert_default();
                        }
                    }
                }
            }
        }
        if let Input::ConsultFailed { op } = &step.input {
            own.asked.remove(op);
        }
    }

    fn effect(
        &mut self,
        step: &Step<'_>,
        effect: &Effect,
        alone: bool,
        requests: &Requests,
        verdict: &mut Verdict,
    ) {
        let index = step.gateway as usize;
        match effect {
            Effect::Reserve(op) => {
                if let StoreAsk::Reserve(draw) = &op.ask
                    && !draw.hold.allotment
                {
                    let id = RequestId(draw.hold.id.0);
                    let own = &mut self.gateways[index];
                    own.waiting.entry(id).or_insert(step.at);
                    if alone {
                        own.unheard.insert(id);
                    }
                }
            }
            Effect::Consult(consult) => self.consults(step, consult, alone, requests, verdict),
            Effect::Dispatch(order) if order.number == 1 => {
                let own = &mut self.gateways[index];
                let asked = own.waiting.remove(&order.request);
                let Some(asked) = asked.filter(|_| !own.unheard.contains(&order.request)) else {
                    return;
                };
                self.let_through(step, order.caller, asked, requests, verdict);
            }
            Effect::Reject { request, refusal, .. } => {
                self.gateways[index].waiting.remove(request);
                self.gateways[index].unheard.remove(request);
                // One that was begun: what its own gateway refuses at the door is never asked for.
                let consulted = matches!(step.input, Input::Consulted(_));
                if consulted && matches!(refusal, Refusal::RateLimited { .. }) {
                    sometimes!("shared_rate_met");
                } else if matches!(refusal, Refusal::IdempotencyInFlight { by: None }) {
                    sometimes!("shared_key_in_flight");
                } else if matches!(refusal, Refusal::IdempotencyDone { by: None }) {
                    sometimes!("shared_key_done");
                }
            }
            Effect::Finish { request, caller, charged, .. } => {
                self.gateways[index].unheard.remove(request);
                if charged.tokens > Tokens::ZERO {
                    told(step, *caller, requests, verdict);
                }
            }
            Effect::Admitted { .. }
            | Effect::Dispatch(_)
            | Effect::Cancel { .. }
            | Effect::Persist(Durable::Entry(_))
            | Effect::Persist(Durable::Binding { .. })
            | Effect::Persist(Durable::Released { .. })
            | Effect::Persist(Durable::Adopted { .. })
            | Effect::LedgerAnswered { .. }
            | Effect::Note(_) => {}
        }
    }

    /// While nobody answers, each part is asked for once in a while, and not with every request.
    fn consults(
        &mut self,
        step: &Step<'_>,
        consult: &Consult,
        alone: bool,
        requests: &Requests,
        verdict: &mut Verdict,
    ) {
        let own = &mut self.gateways[step.gateway as usize];
        own.waiting.insert(consult.request, step.at);
        let parts =
            [!consult.rates.is_empty(), consult.idempotency.is_some(), consult.home.is_some()];
        let (request, session) = (consult.request, consult.home);
        own.asked.insert(consult.op, Asked { request, parts, session });
        if alone {
            // Sent along, perhaps, and not waited for.
            own.unheard.insert(consult.request);
        }
        let every = requests.config(step.gateway).quota.probe_every.as_nanos() as u64;
        let now = step.now.as_nanos();
        for (probes, _) in own.probes.iter_mut().zip(parts).filter(|(_, asked)| *asked) {
            let Some(probes) = probes else { continue };
            probes.push_back(now);
            while probes.front().is_some_and(|first| first + every <= now) {
                probes.pop_front();
            }
            if probes.len() > PROBES_MAX {
                let text = format!(
                    "gateway-{} has consulted {} times within {} ms while nobody answers",
                    step.gateway,
                    probes.len(),
                    every / 1_000_000
                );
                verdict.fail(Invariant::Sharing, step.at, text);
            }
        }
    }

    /// A request was sent with the store's consent.
    fn let_through(
        &mut self,
        step: &Step<'_>,
        caller: CallerToken,
        asked: u64,
        requests: &Requests,
        verdict: &mut Verdict,
    ) {
        let Some(request) = requests.of(caller) else { return };
        let tenant = request.arrival.principal.tenant;
        if let Some(idempotency) = request.arrival.idempotency {
            let known = self.charged.get(&(tenant, idempotency.key.0));
            if let Some(since) = known.filter(|since| **since < asked) {
                let text = format!(
                    "{:?} is sent by gateway-{}, and its key was charged {} ms before it asked",
                    request.id,
                    step.gateway,
                    (asked - since) / 1_000_000
                );
                verdict.fail(Invariant::Sharing, step.at, text);
            }
        }
        let Some(limit) = self.limits.get(&tenant).copied() else { return };
        let sent = self.sent.entry(tenant).or_default();
        sent.push((asked, step.at));
        sent.sort_unstable();
        let mut count = 0;
        for (from, until) in sent.iter().rev() {
            count += u64::from(*until <= step.at);
            let span = (step.at - from) * (100 + SLACK_PERCENT) / 100 + self.burst;
            // One more for the first, and one for rounding.
            let most = limit * span / 60_000_000_000 + 2;
            if count > most {
                let text = format!(
                    "{tenant} has had {count} requests sent within {} ms over all gateways, and may have {most}",
                    (step.at - from) / 1_000_000
                );
                return verdict.fail(Invariant::Sharing, step.at, text);
            }
        }
    }

    /// Where the store says a session lives, it lives for whoever has heard that, unless it has moved it since.
    fn homes(&mut self, step: &Step<'_>, verdict: &mut Verdict) {
        let consulted = &self.gateways[step.gateway as usize].asked;
        let (session, home) = if let Input::Housed(housed) = &step.input {
            (Some(housed.session), Some(&housed.home))
        } else if let Input::Consulted(answer) = &step.input {
            // What nobody asked for, or no more, or was answered before, is news of old.
            let live = step.observed.iter().any(|o| matches!(o, Observation::Consulted { .. }));
            let asked = consulted.get(&answer.op).filter(|_| live);
            (asked.and_then(|asked| asked.session), answer.home.as_ref())
        } else {
            return;
        };
        let (Some(session), Some(HomeAnswer::At { endpoint, epoch })) = (session, home) else {
            return;
        };
        let Some(own) = step.plane.binding(session) else { return };
        let at = step.plane.endpoint_name(own.endpoint);
        // One that this gateway's sources do not list is nowhere for it.
        let listed = || step.plane.view().endpoints.iter().any(|known| known.name == *endpoint);
        if own.epoch <= *epoch && at.is_some_and(|at| *at != **endpoint) && listed() {
            let text = format!(
                "{session:?} is at {} for gateway-{} under epoch {}, and the store has just told it of {endpoint} under {epoch}",
                at.unwrap_or("?"),
                step.gateway,
                own.epoch
            );
            verdict.fail(Invariant::Sharing, step.at, text);
        }
        if step.effects.iter().any(|e| matches!(e, Effect::Persist(Durable::Adopted { .. }))) {
            sometimes!("shared_home_lost");
        }
    }

    /// The store performed something.
    pub fn stored(
        &mut self,
        at: u64,
        gateway: u32,
        ask: &SharedAsk,
        answer: &SharedAnswer,
        verdict: &mut Verdict,
    ) {
        if let SharedAsk::Note(note) = ask
            && let Noted::Key { idempotency, charged: true, .. } = &note.what
        {
            self.charged.entry((note.tenant, idempotency.key.0)).or_insert(at);
        }
        if let SharedAsk::Note(note) = ask
            && let Noted::Home { session, endpoint, ttl, .. } = &note.what
            && let SharedAnswer::Noted(_, Some(housed)) = answer
            && let HomeAnswer::At { endpoint: home, epoch } = &housed.home
            && home == endpoint
        {
            // Kept for twice the home's time, by a clock that may run a hundredth faster.
            let until = at + ttl.saturating_mul(2_000) / 100 * (100 - SLACK_PERCENT);
            let known = self.epochs.insert(*session, (*epoch, until));
            let last = known.filter(|(_, until)| at < *until).map_or(0, |(last, _)| last);
            if *epoch < last {
                let text = format!(
                    "{session:?} falls back from epoch {last} to {epoch} at the store, told by gateway-{gateway}"
                );
                verdict.fail(Invariant::Sharing, at, text);
            }
        }
    }

    /// Takes, charges and homes may be forgotten.
    pub fn failed_over(&mut self) {
        self.sent.clear();
        self.charged.clear();
        self.epochs.clear();
    }

    pub fn died(&mut self, gateway: u32) {
        self.gateways[gateway as usize] = Gateway::default();
    }
}

fn observed(step: &Step<'_>, what: &Observation) -> bool {
    step.observed.contains(what)
}

/// Whoever charges a request with a key tells the others in the same step.
fn told(step: &Step<'_>, caller: CallerToken, requests: &Requests, verdict: &mut Verdict) {
    let Some(request) = requests.of(caller) else { return };
    let Some(idempotency) = request.arrival.idempotency else { return };
    let told = step.effects.iter().any(|effect| {
        let Effect::Note(note) = effect else { return false };
        matches!(
            note.what,
            Noted::Key { idempotency: own, charged: true, .. } if own == idempotency
        )
    });
    if !told {
        let text = format!("{:?} is charged under a key, and nobody is told", request.id);
        verdict.fail(Invariant::Sharing, step.at, text);
    }
}
