//! One request, as an outsider keeps track of it.

use std::time::Duration;

use control::Instant;
use control::id::{AccountId, AttemptId, EndpointId, RequestId};
use control::outcome::AttemptEnd;
use control::plane::{Arrival, Config, Dispatch, Refusal};
use control::quota::Cap;
use control::units::{Price, Usage};

use super::Step;
use super::book::{Pair, plus};
use crate::coverage::sometimes;
use crate::world::replica_of;

/// What is known of a request.
#[derive(Clone, Debug)]
pub(crate) struct Request {
    pub id: RequestId,
    pub gateway: u32,
    pub arrival: Box<Arrival>,
    pub accounts: Vec<AccountId>,
    /// The position of its first record.
    pub position: u64,
    /// By true time.
    pub at: u64,
    /// By its gateway's clock.
    pub arrived: Instant,
    pub deadline: Instant,
    /// As of its arrival.
    pub price: Price,
    /// The most completion tokens that are held for it at first.
    pub slice: u64,
    limited: bool,
    /// Whether the store was asked for it.
    pub asked: bool,
    pub attempts: u32,
    /// Each attempt's record, and where it went.
    pub dispatches: Vec<(u64, EndpointId)>,
    /// Where it was tried, but for the one that lost a race, where nothing failed.
    pub tried: Vec<EndpointId>,
    /// The attempt that runs, the first of two where there are two.
    pub running: Option<Running>,
    /// The second of two, until it is known which of them answers.
    pub beside: Option<Running>,
    /// The one of two that does not answer, until it is told to stop.
    pub lost: Option<Running>,
    /// It had a second attempt beside the first.
    pub hedged: bool,
    /// How its latest attempt ended.
    pub last_end: Option<AttemptEnd>,
    /// The record of its first token.
    pub committed: Option<u64>,
    /// Progress: record, attempt number, tokens.
    pub marks: Vec<(u64, u32, u64)>,
    /// Where its latest attempt went.
    pub replica: Option<u32>,
    /// What is held for it.
    pub granted: Pair,
    /// Records of what is held, for when they are lost.
    pub grants: Vec<(u64, Pair)>,
    /// Its terminal entry: the record and what it charges.
    pub terminal: Option<(u64, Pair)>,
    /// The record by which its reservation expired.
    pub expired: Option<u64>,
    /// Why it was refused.
    pub refusal: Option<Box<Refusal>>,
    pub end: Option<End>,
    /// What its client had delivered whole.
    pub delivered: Option<u64>,
    pub acknowledged: bool,
}

/// An attempt that runs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Running {
    pub attempt: AttemptId,
    pub number: u32,
    pub replica: Option<u32>,
    /// By its gateway's clock.
    pub since: Instant,
    /// How long it may be silent before another is made beside it. Zero: for ever.
    pub hedge_after: Duration,
    pub cancelled: bool,
}

/// How a request ended.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub position: u64,
    pub at: u64,
    pub charged: Pair,
    pub good: bool,
}

/// No reservation or settlement is more, in either unit: 2^36.
pub(super) const AMOUNT_MAX: i128 = 1 << 36;

impl Request {
    pub fn new(
        id: RequestId,
        gateway: u32,
        arrival: Box<Arrival>,
        (position, at, now): (u64, u64, Instant),
        config: &Config,
    ) -> Self {
        let model = config.models.get(&arrival.model);
        let timeouts = model.and_then(|m| m.timeouts.as_ref()).unwrap_or(&config.timeouts);
        let patience = arrival.patience.unwrap_or(Duration::MAX).min(timeouts.request);
        let wanted = arrival.output_max.unwrap_or(config.output_default).0;
        let slice = if arrival.stream { wanted.min(config.quota.slice.0) } else { wanted };
        let who = &arrival.principal;
        Self {
            id,
            gateway,
            accounts: [Some(who.tenant), who.user, who.key].into_iter().flatten().collect(),
            position,
            at,
            arrived: now,
            deadline: now + patience,
            price: model.map(|model| model.price).unwrap_or_default(),
            slice,
            limited: is_limited(config, &arrival),
            asked: false,
            attempts: 0,
            dispatches: Vec::new(),
            tried: Vec::new(),
            running: None,
            beside: None,
            lost: None,
            hedged: false,
            last_end: None,
            committed: None,
            marks: Vec::new(),
            replica: None,
            granted: [0, 0],
            grants: Vec::new(),
            terminal: None,
            expired: None,
            refusal: None,
            end: None,
            delivered: None,
            acknowledged: false,
            arrival,
        }
    }

    /// What is asked for it at first.
    pub fn wanted(&self) -> Pair {
        cost(self.price, self.arrival.prompt.0, self.slice)
    }

    /// What it was charged.
    pub fn charged(&self) -> Pair {
        self.end.map_or([0, 0], |end| end.charged)
    }

    /// What its terminal entry charges; an expiry charges nothing.
    pub fn noted(&self) -> Option<Pair> {
        let expired = self.expired.map(|_| [0, 0]);
        self.terminal.map(|(_, charged)| charged).or(expired)
    }

    /// An attempt is made, in the record at `position`.
    pub fn sent(&mut self, step: &Step<'_>, order: &Dispatch, hedge_after: Duration) {
        let (position, replica) = (step.position, replica_of(&order.endpoint_name));
        if let Some(from) = order.resume {
            self.marks.push((position, self.attempts, from.0));
            sometimes!("stream_resumed");
        }
        self.tried.push(order.endpoint);
        self.dispatches.push((position, order.endpoint));
        let (attempt, number, since) = (order.attempt, order.number, step.now);
        let running = Running { attempt, number, replica, since, hedge_after, cancelled: false };
        if order.hedge {
            (self.beside, self.hedged) = (Some(running), true);
        } else {
            (self.running, self.replica) = (Some(running), replica);
        }
    }

    /// Every attempt that runs for it.
    pub fn under_way(&self) -> impl Iterator<Item = Running> {
        self.running.into_iter().chain(self.beside)
    }

    /// Where an attempt of its went: the last four bits of an attempt's id count them.
    pub fn tried_by(&self, attempt: AttemptId) -> Option<EndpointId> {
        let number = (attempt.0.counter & 0xf) as usize;
        self.dispatches.get(number.checked_sub(1)?).map(|(_, at)| *at)
    }

    /// This attempt answers: another beside it has lost.
    pub fn answers(&mut self, winner: Running) {
        if let Some(beside) = self.beside.take() {
            let first = self.running.replace(winner);
            let both = first.into_iter().chain([beside]);
            self.lost = both.into_iter().find(|one| one.attempt != winner.attempt);
            let spared = self.lost.and_then(|lost| self.tried_by(lost.attempt));
            let latest = self.tried.iter().rposition(|tried| Some(*tried) == spared);
            latest.map(|at| self.tried.remove(at));
        }
        self.replica = winner.replica;
    }

    /// An attempt that ran has ended. Returns whether none is left.
    pub fn ended(&mut self, attempt: AttemptId) -> bool {
        let beside = self.beside.take();
        if beside.is_some_and(|beside| beside.attempt == attempt) {
            return false;
        }
        self.running = beside;
        if let Some(left) = beside {
            self.replica = left.replica;
        }
        beside.is_none()
    }

    /// Why a second attempt may not be made beside the first, if it may not.
    pub fn wrongly_hedged(&self, now: Instant, order: &Dispatch) -> Option<String> {
        let Some(running) = self.running else {
            return Some("is made beside nobody".into());
        };
        let (silent, after) = (now.since(running.since), running.hedge_after);
        if self.committed.is_some() {
            Some("is made beside an attempt that answers".into())
        } else if self.hedged {
            Some("is the second that is made beside another".into())
        } else if after.is_zero() || silent < after {
            Some(format!("is made beside one that is silent for {silent:?}, not for {after:?}"))
        } else if self.tried.contains(&order.endpoint) {
            Some(format!("is made where it was tried before, at {}", order.endpoint_name))
        } else {
            None
        }
    }

    /// Why an attempt may not go on with an answer that began, if it may not.
    pub fn wrongly_resumed(
        &self,
        order: &Dispatch,
        fingerprints: &[Option<u32>],
    ) -> Option<String> {
        let mark = |replica: Option<u32>| replica.and_then(|one| fingerprints[one as usize]);
        let (before, now) = (mark(self.replica), mark(replica_of(&order.endpoint_name)));
        match order.resume {
            None => Some("is a second beginning of an answer that began".into()),
            Some(from) if from.0 != self.produced() => {
                Some(format!("goes on after {} tokens of {}", from.0, self.produced()))
            }
            Some(_) if before.is_none() || before != now => {
                Some(format!("goes on at a replica of {now:?} with what one of {before:?} began"))
            }
            Some(_) if !self.arrival.resumable => Some("goes on with what nobody can".into()),
            Some(_) => None,
        }
    }

    /// Whether a quota of one of its accounts held it back all along.
    pub fn is_limited(&self) -> bool {
        self.limited
    }

    /// The configuration in effect as it is sent: a limit that has been lifted holds nothing back.
    pub fn under(&mut self, config: &Config) {
        self.limited &= is_limited(config, &self.arrival);
    }

    /// Completion tokens of the attempt that spoke last, as of its last mark: once a client was sent something, nobody else does.
    pub fn produced(&self) -> u64 {
        let Some((_, speaks, _)) = self.marks.last() else { return 0 };
        let of = self.marks.iter().filter(|(_, number, _)| number == speaks);
        of.map(|(_, _, produced)| *produced).max().unwrap_or(0)
    }

    /// What a request that broke off is to be charged: nothing before its client was sent something.
    pub fn cost_in_part(&self) -> Pair {
        match self.committed {
            None => [0, 0],
            Some(_) => cost(self.price, self.arrival.prompt.0, self.produced()),
        }
    }

    /// Records from `next` on are gone.
    pub fn forget_from(&mut self, next: u64) {
        (self.running, self.beside, self.lost) = (None, None, None);
        self.committed = self.committed.filter(|position| *position < next);
        self.marks.retain(|(position, ..)| *position < next);
        self.grants.retain(|(position, _)| *position < next);
        self.granted = self.grants.iter().fold([0, 0], |sum, (_, amount)| plus(sum, *amount));
        self.terminal = self.terminal.filter(|(position, _)| *position < next);
        self.expired = self.expired.filter(|position| *position < next);
        self.dispatches.retain(|(position, _)| *position < next);
        self.attempts = self.dispatches.len() as u32;
        self.tried.retain(|tried| self.dispatches.iter().any(|(_, at)| at == tried));
    }

    /// What a request that completed is to be charged.
    pub fn cost_of(&self, usage: Usage) -> Pair {
        cost(self.price, usage.prompt.0, usage.completion.0)
    }
}

fn is_limited(config: &Config, arrival: &Arrival) -> bool {
    let who = &arrival.principal;
    let tenant = config.accounts.get(&who.tenant);
    let user = who.user.and_then(|id| {
        config.accounts.get(&id).or(tenant.and_then(|tenant| tenant.per_user.as_deref()))
    });
    [tenant, user].into_iter().flatten().any(|account| {
        let limits = &account.limits;
        limits.rolling.is_some() || [limits.day, limits.month].iter().any(|cap| *cap != Cap::NONE)
    })
}

/// Tokens and money, each side of the price rounded up.
fn cost(price: Price, prompt: u64, completion: u64) -> Pair {
    let (prompt, completion) = (i128::from(prompt), i128::from(completion));
    let part =
        |tokens: i128, per_million: u64| (tokens * i128::from(per_million) + 999_999) / 1_000_000;
    let money = part(prompt, price.input.0) + part(completion, price.output.0);
    [(prompt + completion).min(AMOUNT_MAX), money.min(AMOUNT_MAX)]
}
