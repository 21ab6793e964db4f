//! Invariants 1 and 2: the books add up, and nobody spends what it has not.
//!
//! Every entry of every ledger goes into a [`Book`], which is compared with the ledger after each step. A grant must fit
//! by the book's own sums, a denial must not. What clients truly used is added up besides, and in the end the ledger must
//! have charged exactly that: no less but what a failover or a loss of power is allowed to lose, and never more.

use std::collections::{BTreeMap, BTreeSet};

use control::id::{AccountId, RequestId};
use control::plane::{ControlPlane, Refusal};
use control::quota::{
    Ask, BalanceKey, Denied, DenyReason, Entry, Fact, HoldId, Ledger, Limits, Reply, StoreAnswer,
    StoreOp, Unit, WindowKind,
};

use super::book::{Book, Pair, above, caps_of, pair, plus};
use super::owners::Owners;
use super::request::{AMOUNT_MAX, Request};
use super::{Invariant, Step, Verdict};
use crate::coverage::sometimes;
use crate::plan::{FaultKind, Plan};

/// All ledgers: one in each gateway, or one in the store.
pub(super) struct Ledgers {
    shared: bool,
    books: Vec<Book>,
    /// Of gateways with a ledger of their own: every entry with the position of its record.
    entries: Vec<Vec<(u64, Entry)>>,
    owners: Owners,
    truth: BTreeMap<AccountId, Truth>,
    /// What was charged in each step, to be taken back if its record is lost.
    charges: Vec<Charge>,
    /// What a store was told of requests whose record was lost: it keeps to that, whatever it is told again.
    told: BTreeMap<(u32, RequestId), Pair>,
    /// What it therefore does not charge.
    untold: BTreeMap<AccountId, Pair>,
    /// Charges a failover made the store forget.
    forgotten: BTreeMap<AccountId, Pair>,
    /// What the store let expire.
    expired: BTreeSet<HoldId>,
    /// Allotments that may end at the store before their owner can know: a failover forgot that they were extended, or the
    /// owner's wall clock was set while it was down. What is spent of them then is late, and in the bound as such.
    excused: BTreeSet<HoldId>,
    /// Gateways whose wall clocks are set.
    set_back: BTreeSet<u32>,
    /// The most generous limits an account ever had.
    caps: BTreeMap<(AccountId, WindowKind), [Option<i128>; 2]>,
}

/// One request's charge to one account.
struct Charge {
    gateway: u32,
    position: u64,
    request: RequestId,
    account: AccountId,
    one: Truth,
}

/// What an account's clients used, by the judge's own count.
#[derive(Clone, Copy, Debug, Default)]
struct Truth {
    /// What is settled, by records that are left.
    used: Pair,
    /// What was settled, by records that were ever made.
    ever: Pair,
    /// What of it lay beyond what was held.
    overrun: Pair,
}

impl Ledgers {
    pub fn new(plan: &Plan) -> Self {
        let shared = plan.topology.shared;
        let gateways = plan.topology.gateways.len();
        Self {
            shared,
            books: vec![Book::default(); if shared { 1 } else { gateways }],
            entries: vec![Vec::new(); gateways],
            owners: Owners::new(gateways),
            truth: BTreeMap::new(),
            charges: Vec::new(),
            told: BTreeMap::new(),
            untold: BTreeMap::new(),
            forgotten: BTreeMap::new(),
            expired: BTreeSet::new(),
            excused: BTreeSet::new(),
            set_back: set_back(plan),
            caps: BTreeMap::new(),
        }
    }

    /// A gateway asks the store.
    pub fn asked(&mut self, step: &Step<'_>, op: &StoreOp) {
        self.owners.asked(step.gateway, op);
    }

    /// A gateway noted a fact: of its own ledger, or of what it holds at the store.
    pub fn noted(&mut self, step: &Step<'_>, entry: &Entry, verdict: &mut Verdict) {
        if self.shared {
            self.lends(step, entry, verdict);
            return self.owners.noted(step, entry, verdict);
        }
        let index = step.gateway as usize;
        self.learn(entry);
        let granted = self.fits(index, entry);
        let added = granted
            .and_then(|()| self.books[index].add(entry).map_err(|why| (Invariant::Algebra, why)));
        if let Err((invariant, why)) = added {
            verdict.fail(invariant, step.at, why);
        }
        self.entries[index].push((step.position, entry.clone()));
    }

    /// After a step: the gateway's own ledger agrees with the book.
    pub fn after(&mut self, step: &Step<'_>, verdict: &mut Verdict) {
        if let Some(ledger) = step.plane.ledger().ledger()
            && let Err(why) = self.books[step.gateway as usize].compare(ledger)
        {
            verdict.fail(Invariant::Algebra, step.at, why);
        }
    }

    /// The store performed something.
    pub fn stored(
        &mut self,
        at: u64,
        asked: Option<(&StoreOp, &StoreAnswer)>,
        made: &[Entry],
        ledger: &Ledger,
        verdict: &mut Verdict,
    ) {
        let told = asked.is_some_and(|(op, _)| matches!(op.ask, Ask::Assert { .. }));
        if let Some((op, answer)) = asked {
            covered(op, answer);
            if let Ask::Reserve(draw) = &op.ask {
                // A store that forgot an account notes no limits for it where there are none any more.
                for (account, limits) in &draw.accounts {
                    self.allow(*account, limits);
                }
            }
            let draws = matches!(op.ask, Ask::Reserve(_) | Ask::Extend { .. });
            let other = op.run.is_some_and(|run| run != answer.run);
            if draws && other && answer.reply != Reply::OtherRun {
                let text = format!("{:?} is answered, and believes in another run", op.ask);
                verdict.fail(Invariant::Bound, at, text);
            }
            if let Err(why) = self.justly_denied(op, answer, ledger) {
                verdict.fail(Invariant::Bound, at, why);
            }
        }
        for entry in made {
            if let Fact::Expire { hold } = &entry.fact {
                self.expired.insert(*hold);
            }
            self.learn(entry);
            // What an owner says it holds is taken as a fact, whatever the limits say.
            let granted = if told { Ok(()) } else { self.fits(0, entry) };
            let added = granted
                .and_then(|()| self.books[0].add(entry).map_err(|why| (Invariant::Algebra, why)));
            if let Err((invariant, why)) = added {
                verdict.fail(invariant, at, why);
            }
        }
        if let Err(why) = self.books[0].compare(ledger) {
            verdict.fail(Invariant::Algebra, at, why);
        }
    }

    /// The store forgot what it had acknowledged.
    pub fn failed_over(
        &mut self,
        at: u64,
        lost: &[Entry],
        kept: &[Entry],
        ledger: &Ledger,
        verdict: &mut Verdict,
    ) {
        for entry in lost {
            let (pins, actual) = match &entry.fact {
                Fact::Settle { hold, actual, .. } => {
                    let pins = self.owners.accounts_of(hold);
                    (pins, pair(*actual))
                }
                Fact::Late { pins, actual, .. } => {
                    (pins.iter().map(|pin| pin.account).collect(), pair(*actual))
                }
                Fact::Limits { .. }
                | Fact::Reserve { .. }
                | Fact::Extend { .. }
                | Fact::Refund { .. }
                | Fact::Expire { .. }
                | Fact::Forgive { .. }
                | Fact::Close { .. }
                | Fact::Retire { .. }
                | Fact::Acknowledged { .. } => continue,
            };
            let accounts: std::collections::BTreeSet<_> = pins.into_iter().collect();
            for account in accounts {
                let forgotten = self.forgotten.entry(account).or_default();
                *forgotten = plus(*forgotten, actual);
            }
        }
        let allotments = self.books[0].live.keys().filter(|hold| hold.allotment);
        self.excused.extend(allotments.copied());
        let mut book = Book::default();
        for entry in kept {
            if let Err(why) = book.add(entry) {
                verdict.fail(Invariant::Algebra, at, why);
            }
        }
        if let Err(why) = book.compare_all(ledger) {
            verdict.fail(Invariant::Durability, at, format!("after a failover {why}"));
        }
        self.books[0] = book;
    }

    /// A request was refused: if for want of quota, there must be a want.
    pub fn refused(
        &mut self,
        step: &Step<'_>,
        refusal: &Refusal,
        request: Option<&Request>,
        verdict: &mut Verdict,
    ) {
        let (Refusal::QuotaSpent(spent), Some(request)) = (refusal, request) else { return };
        sometimes!("quota_refused");
        if self.shared || request.granted != [0, 0] {
            return;
        }
        let book = &self.books[step.gateway as usize];
        let mut keys = book
            .rows
            .keys()
            .filter(|key| key.account == spent.account && key.window.kind() == spent.window);
        // The latest of them is the one that is open; without any nothing is used yet.
        let used = keys.next_back().map_or([0, 0], |key| book.used(key, step.plane.wall()));
        let unit = spent.unit as usize;
        let asked = request.wanted()[unit];
        let cap = book.caps(spent.account, spent.window)[unit];
        if let Some(cap) = cap.filter(|cap| used[unit] + asked <= *cap) {
            let text = format!(
                "{:?} was refused for want of quota of {}: {} are used of {cap}, it wanted {asked}",
                request.id, spent.account, used[unit]
            );
            verdict.fail(Invariant::Bound, step.at, text);
        }
    }

    /// A request was charged: what its accounts truly used grows, and must stay within the bound.
    pub fn charged(&mut self, step: &Step<'_>, request: Option<&Request>, verdict: &mut Verdict) {
        let Some(request) = request else { return };
        let charged = request.charged();
        let overrun = above(charged, request.granted);
        let told = self.told.remove(&(step.gateway, request.id));
        for account in request.accounts.clone() {
            let one = Truth { used: charged, ever: charged, overrun };
            let truth = self.truth.entry(account).or_default();
            *truth = truth.with(&one);
            if let Some(told) = told {
                let untold = self.untold.entry(account).or_default();
                *untold = plus(*untold, above(charged, told));
            }
            let (gateway, position, request) = (step.gateway, step.position, request.id);
            self.charges.push(Charge { gateway, position, request, account, one });
            let truth = *truth;
            if let Err(why) = self.within(account, &truth) {
                verdict.fail(Invariant::Bound, step.at, why);
            }
        }
    }

    /// Records from `next` on are gone, and with them what they say was charged.
    pub fn died(&mut self, gateway: u32, next: u64) {
        let (truth, told) = (&mut self.truth, &mut self.told);
        self.charges.retain(|charge| {
            let lost = charge.gateway == gateway && charge.position >= next;
            if lost && let Some(truth) = truth.get_mut(&charge.account) {
                for unit in 0..2 {
                    truth.used[unit] -= charge.one.used[unit];
                }
                told.insert((gateway, charge.request), charge.one.used);
            }
            !lost
        });
        if self.shared {
            if self.set_back.contains(&gateway) {
                self.excused.extend(self.owners.allotments(gateway));
            }
            return self.owners.died(gateway, next);
        }
        let index = gateway as usize;
        self.entries[index].retain(|(position, _)| *position < next);
        let mut book = Book::default();
        for (_, entry) in &self.entries[index] {
            // They were added before without complaint, in this order.
            let _ = book.add(entry);
        }
        self.books[index] = book;
    }

    /// What was recovered is what was recorded.
    pub fn recovered(
        &mut self,
        gateway: u32,
        plane: &ControlPlane,
        at: u64,
        verdict: &mut Verdict,
    ) {
        if let Some(ledger) = plane.ledger().ledger()
            && let Err(why) = self.books[gateway as usize].compare_all(ledger)
        {
            verdict.fail(Invariant::Durability, at, format!("gateway-{gateway} recovered: {why}"));
        }
    }

    /// In the end what was charged is what was used.
    pub fn finish(
        &mut self,
        planes: &[Option<&ControlPlane>],
        store: &Ledger,
        at: u64,
        verdict: &mut Verdict,
    ) {
        let ledgers = planes.iter().map(|plane| plane.and_then(|plane| plane.ledger().ledger()));
        let ledgers: Vec<_> = if self.shared { vec![Some(store)] } else { ledgers.collect() };
        for (book, ledger) in self.books.iter().zip(ledgers) {
            if let Some(Err(why)) = ledger.map(|ledger| book.compare_all(ledger)) {
                verdict.fail(Invariant::Algebra, at, why);
            }
        }
        if self.shared {
            self.owners.finish(planes, at, verdict);
        } else if planes.iter().any(Option::is_none) {
            // The one gateway with the one ledger is dead: nobody is there to be asked.
            return;
        }
        for (account, truth) in &self.truth {
            let spent = self.books.iter().fold([0, 0], |sum, book| {
                let total = book.total(*account, WindowKind::Day);
                plus(sum, plus(total.charged, total.late))
            });
            let forgotten = self.forgotten.get(account).copied().unwrap_or_default();
            let untold = self.untold.get(account).copied().unwrap_or_default();
            let lost = plus(plus(forgotten, untold), self.owners.beyond(*account));
            for unit in 0..2 {
                let (used, ever) = (truth.used[unit], truth.ever[unit]);
                // A replica that claims more than any entry may say is cut to that, entry by entry.
                if ever < AMOUNT_MAX && (spent[unit] > ever || spent[unit] + lost[unit] < used) {
                    let text = format!(
                        "{account} used {used} ({} unit), and {} are charged; {} may be lost",
                        if unit == 0 { "token" } else { "money" },
                        spent[unit],
                        lost[unit]
                    );
                    verdict.fail(Invariant::Liveness, at, text);
                }
            }
        }
    }

    /// Nothing is lent from an allotment that the ledger, on its own clock, has let expire.
    fn lends(&self, step: &Step<'_>, entry: &Entry, verdict: &mut Verdict) {
        let (Fact::Reserve { hold, from: Some(from), .. }
        | Fact::Extend { hold, from: Some(from), .. }) = &entry.fact
        else {
            return;
        };
        let allotment = HoldId::allotment(hold.owner, *from);
        if self.expired.contains(&allotment) && !self.excused.contains(&allotment) {
            let text = format!("{hold:?} is held from {from:?}, which the ledger let expire");
            verdict.fail(Invariant::Bound, step.at, text);
        }
    }

    /// Remembers the most generous limits of an account.
    fn learn(&mut self, entry: &Entry) {
        if let Fact::Limits { account, limits } = &entry.fact {
            self.allow(*account, limits);
        }
    }

    fn allow(&mut self, account: AccountId, limits: &Limits) {
        for kind in WindowKind::ALL {
            let caps = caps_of(limits, kind);
            let known = self.caps.entry((account, kind)).or_insert(caps);
            for unit in 0..2 {
                known[unit] = known[unit].zip(caps[unit]).map(|(one, two)| one.max(two));
            }
        }
    }

    /// Whether what an entry holds fits, by the book as it is before it.
    fn fits(&self, index: usize, entry: &Entry) -> Result<(), (Invariant, String)> {
        let book = &self.books[index];
        let (pins, amount): (&[BalanceKey], Pair) = match &entry.fact {
            Fact::Reserve { pins, amount, .. } => (pins, pair(*amount)),
            Fact::Extend { hold, amount, .. } => match book.live.get(hold) {
                Some((pins, _)) => (pins, pair(*amount)),
                None => return Ok(()),
            },
            Fact::Limits { .. }
            | Fact::Settle { .. }
            | Fact::Refund { .. }
            | Fact::Expire { .. }
            | Fact::Late { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. }
            | Fact::Acknowledged { .. } => return Ok(()),
        };
        for pin in pins {
            let caps = book.caps(pin.account, pin.window.kind());
            if caps == [None, None] {
                continue;
            }
            let used = book.used(pin, entry.wall);
            for unit in 0..2 {
                let Some(cap) = caps[unit] else { continue };
                if amount[unit] > 0 && used[unit] + amount[unit] > cap {
                    let text = format!(
                        "{:?} was granted {} more of {pin:?}, which has used {} of {cap}",
                        entry.fact, amount[unit], used[unit]
                    );
                    return Err((Invariant::Bound, text));
                }
            }
        }
        Ok(())
    }

    /// A denial for want of quota names an account that has not enough.
    fn justly_denied(
        &self,
        op: &StoreOp,
        answer: &StoreAnswer,
        ledger: &Ledger,
    ) -> Result<(), String> {
        let Reply::Denied(Denied {
            reason: DenyReason::Spent { account, window, unit, .. }, ..
        }) = answer.reply
        else {
            return Ok(());
        };
        let book = &self.books[0];
        let (asked, limits) = match &op.ask {
            Ask::Reserve(draw) => {
                let limits = draw.accounts.iter().find(|(id, _)| *id == account);
                (pair(draw.amount), limits.map(|(_, limits)| *limits))
            }
            Ask::Extend { hold, total } => {
                let held = book.live.get(hold).map_or([0, 0], |(_, total)| *total);
                (above(pair(*total), held), None)
            }
            Ask::Probe | Ask::Assert { .. } | Ask::Settle { .. } | Ask::Refund { .. } => {
                return Ok(());
            }
        };
        let caps = limits.map_or_else(|| book.caps(account, window), |l| caps_of(&l, window));
        let key =
            book.rows.keys().rfind(|key| key.account == account && key.window.kind() == window);
        let used = key.map_or([0, 0], |key| book.used(key, ledger.wall()));
        let unit = match unit {
            Unit::Tokens => 0,
            Unit::Money => 1,
        };
        match caps[unit] {
            Some(cap) if used[unit] + asked[unit] > cap => Ok(()),
            cap => Err(format!(
                "{:?} was denied: {account} has used {} of {cap:?} and {} were asked",
                op.ask, used[unit], asked[unit]
            )),
        }
    }

    /// The bound of what was truly used: the limit, and what is stated to lie beyond it.
    fn within(&self, account: AccountId, truth: &Truth) -> Result<(), String> {
        let forgotten = self.forgotten.get(&account).copied().unwrap_or_default();
        for kind in [WindowKind::Day, WindowKind::Month] {
            let Some(caps) = self.caps.get(&(account, kind)) else { continue };
            for unit in 0..2 {
                let Some(cap) = caps[unit] else { continue };
                let late: i128 =
                    self.books.iter().map(|book| book.total(account, kind).late[unit]).sum();
                let unheard = self.owners.beyond(account)[unit];
                let bound = cap + truth.overrun[unit] + late + forgotten[unit] + unheard;
                if truth.used[unit] > bound {
                    return Err(format!(
                        "{account} used {} of {cap}, with {} overrun, {late} late, {} forgotten",
                        truth.used[unit], truth.overrun[unit], forgotten[unit]
                    ));
                }
            }
        }
        Ok(())
    }
}

impl Truth {
    fn with(&self, other: &Self) -> Self {
        Self {
            used: plus(self.used, other.used),
            ever: plus(self.ever, other.ever),
            overrun: plus(self.overrun, other.overrun),
        }
    }
}

/// Gateways whose wall clocks jump.
fn set_back(plan: &Plan) -> BTreeSet<u32> {
    let jump = |kind: &FaultKind| {
        if let FaultKind::ClockJump { gateway, .. } = kind { Some(*gateway) } else { None }
    };
    plan.faults.iter().filter_map(|fault| jump(&fault.kind)).collect()
}

/// What the store was asked and answered, for coverage.
fn covered(op: &StoreOp, answer: &StoreAnswer) {
    match (&op.ask, &answer.reply) {
        (_, Reply::OtherRun) => sometimes!("store_other_run"),
        (Ask::Probe, _) => sometimes!("store_probe"),
        (Ask::Reserve(_), Reply::Granted { .. }) => sometimes!("store_reserve_granted"),
        (Ask::Reserve(_), _) => sometimes!("store_reserve_denied"),
        (Ask::Extend { .. }, Reply::Granted { .. }) => sometimes!("store_extend_granted"),
        (Ask::Extend { .. }, _) => sometimes!("store_extend_denied"),
        (Ask::Assert { .. }, Reply::Granted { .. }) => sometimes!("store_assert_granted"),
        (Ask::Assert { .. }, _) => sometimes!("store_assert_denied"),
        (Ask::Settle { .. }, _) => sometimes!("store_settle"),
        (Ask::Refund { .. }, _) => sometimes!("store_refund"),
    }
}
