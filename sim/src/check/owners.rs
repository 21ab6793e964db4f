//! What each gateway holds at a shared store, by the facts it noted: one end for each, and each end acknowledged.

use std::collections::{BTreeMap, BTreeSet};

use control::id::{AccountId, ReservationId};
use control::plane::ControlPlane;
use control::quota::{Ask, Entry, Fact, HoldId, StoreOp};

use super::book::{Pair, above, minus, pair, plus};
use super::{Invariant, Step, Verdict};
use crate::coverage::sometimes;

/// All gateways' holdings.
pub(super) struct Owners {
    gateways: Vec<Owner>,
    /// The accounts of every hold there ever was.
    accounts: BTreeMap<HoldId, Vec<AccountId>>,
}

#[derive(Clone, Default)]
struct Owner {
    facts: Vec<(u64, Entry)>,
    live: BTreeMap<HoldId, Held>,
    /// Ends that the store has not acknowledged, and since when.
    unacknowledged: BTreeMap<HoldId, (u64, Pair)>,
    /// What was spent of each allotment that is live or whose end is not acknowledged.
    lent: BTreeMap<ReservationId, Lent>,
    /// Allotments whose end was told to the store, in a record that a loss of power took.
    told: BTreeSet<ReservationId>,
    /// What was spent of them after that: the store keeps to what it was told.
    untold: Vec<(AccountId, Pair)>,
}

#[derive(Clone, Debug, Default)]
struct Lent {
    /// The allotment has ended: what still runs on it is settled on its own.
    over: bool,
    spent: Vec<(AccountId, Pair)>,
    /// What was drawn for it, and what of that is lent or spent.
    drawn: Pair,
    used: Pair,
}

#[derive(Clone, Debug)]
struct Held {
    /// What the store itself holds for it.
    stored: Option<Pair>,
    from: Option<ReservationId>,
    lent: Pair,
}

/// How long after the last request every end must have been acknowledged.
const ACKNOWLEDGED_WITHIN: u64 = 10_000_000_000;

impl Owners {
    pub fn new(gateways: usize) -> Self {
        Self { gateways: vec![Owner::default(); gateways], accounts: BTreeMap::new() }
    }

    pub fn asked(&mut self, _gateway: u32, op: &StoreOp) {
        if let Ask::Reserve(draw) = &op.ask
            && !self.accounts.contains_key(&draw.hold)
        {
            let accounts = draw.accounts.iter().map(|(account, _)| *account).collect();
            self.accounts.insert(draw.hold, accounts);
        }
    }

    pub fn noted(&mut self, step: &Step<'_>, entry: &Entry, verdict: &mut Verdict) {
        if let Fact::Reserve { hold, pins, .. } = &entry.fact {
            let mut accounts: Vec<_> = pins.iter().map(|pin| pin.account).collect();
            accounts.dedup();
            self.accounts.insert(*hold, accounts);
        }
        let owner = &mut self.gateways[step.gateway as usize];
        if let Err(why) = owner.add(step.at, entry, &self.accounts) {
            // A second end breaks the algebra; what is lent beyond what was drawn breaks the bound.
            let lends = matches!(
                &entry.fact,
                Fact::Reserve { from: Some(_), .. } | Fact::Extend { from: Some(_), .. }
            );
            let invariant = if lends { Invariant::Bound } else { Invariant::Algebra };
            verdict.fail(invariant, step.at, format!("gateway-{}: {why}", step.gateway));
        }
        owner.facts.push((step.position, entry.clone()));
    }

    pub fn died(&mut self, gateway: u32, next: u64) {
        let owner = &mut self.gateways[gateway as usize];
        let facts = std::mem::take(&mut owner.facts);
        let ended = |entry: &Entry| {
            let (Fact::Settle { hold, .. } | Fact::Refund { hold }) = &entry.fact else {
                return None;
            };
            hold.allotment.then_some(hold.id)
        };
        let lost = facts.iter().filter(|(position, _)| *position >= next);
        let mut told = std::mem::take(&mut owner.told);
        told.extend(lost.filter_map(|(_, entry)| ended(entry)));
        *owner = Owner { told, ..Owner::default() };
        for (position, entry) in facts.into_iter().filter(|(position, _)| *position < next) {
            // They were added before without complaint, in this order.
            let _ = owner.add(entry.at.as_nanos(), &entry, &self.accounts);
            owner.facts.push((position, entry));
        }
    }

    /// What a gateway has drawn ahead.
    pub fn allotments(&self, gateway: u32) -> impl Iterator<Item = HoldId> {
        let live = self.gateways[gateway as usize].live.keys();
        live.filter(|hold| hold.allotment).copied()
    }

    /// The accounts that pay for a hold, as far as anybody said.
    pub fn accounts_of(&self, hold: &HoldId) -> Vec<AccountId> {
        self.accounts.get(hold).cloned().unwrap_or_default()
    }

    /// What the store may not know yet, and will charge late; what dead gateways took with them it never will, and what the
    /// living spent of allotments it charges when these end.
    pub fn beyond(&self, account: AccountId) -> Pair {
        let owners = self.gateways.iter();
        owners.fold([0, 0], |sum, owner| plus(sum, owner.pending(account, &self.accounts)))
    }

    pub fn finish(&self, planes: &[Option<&ControlPlane>], at: u64, verdict: &mut Verdict) {
        for (index, (owner, plane)) in self.gateways.iter().zip(planes).enumerate() {
            if plane.is_none() {
                continue;
            }
            let old = owner
                .unacknowledged
                .iter()
                .find(|(_, (since, _))| since + ACKNOWLEDGED_WITHIN < at);
            if let Some((hold, _)) = old {
                let text = format!("gateway-{index}: the end of {hold:?} is not acknowledged");
                verdict.fail(Invariant::Liveness, at, text);
            }
        }
    }
}

impl Owner {
    fn add(
        &mut self,
        at: u64,
        entry: &Entry,
        accounts: &BTreeMap<HoldId, Vec<AccountId>>,
    ) -> Result<(), String> {
        match &entry.fact {
            Fact::Reserve { hold, from, amount, .. } => {
                let amount = pair(*amount);
                if hold.allotment {
                    sometimes!("allotment_drawn");
                    self.lent.entry(hold.id).or_default().drawn = amount;
                }
                let (stored, lent) = match from {
                    None => (Some(amount), [0, 0]),
                    Some(from) => {
                        self.lend(*from, amount)?;
                        (None, amount)
                    }
                };
                let held = Held { stored, from: *from, lent };
                if self.live.insert(*hold, held).is_some() {
                    return Err(format!("{hold:?} is held twice"));
                }
            }
            Fact::Extend { hold, from, amount, .. } => self.extend(*hold, *from, pair(*amount))?,
            Fact::Settle { hold, actual, .. } => self.end(at, *hold, pair(*actual), accounts)?,
            Fact::Refund { hold } => self.end(at, *hold, [0, 0], accounts)?,
            Fact::Acknowledged { hold } => {
                self.unacknowledged.remove(hold);
                if hold.allotment
                    && let Some(lent) = self.lent.remove(&hold.id)
                    && self.told.contains(&hold.id)
                {
                    self.untold.extend(lent.spent);
                }
            }
            Fact::Limits { .. }
            | Fact::Expire { .. }
            | Fact::Late { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. } => {}
        }
        Ok(())
    }

    /// What is lent was drawn before.
    fn lend(&mut self, from: ReservationId, amount: Pair) -> Result<(), String> {
        sometimes!("owner_lent");
        let Some(lent) = self.lent.get_mut(&from) else {
            return Err(format!("{amount:?} are lent from {from:?}, which is not there"));
        };
        lent.used = plus(lent.used, amount);
        let beyond = (0..2).any(|unit| amount[unit] > 0 && lent.used[unit] > lent.drawn[unit]);
        match beyond {
            true => Err(format!("{from:?} lends {:?} of {:?}", lent.used, lent.drawn)),
            false => Ok(()),
        }
    }

    fn extend(
        &mut self,
        hold: HoldId,
        from: Option<ReservationId>,
        amount: Pair,
    ) -> Result<(), String> {
        if hold.allotment
            && let Some(lent) = self.lent.get_mut(&hold.id)
        {
            lent.drawn = plus(lent.drawn, amount);
        }
        if let Some(from) = from {
            self.lend(from, amount)?;
        }
        let Some(held) = self.live.get_mut(&hold) else {
            return Err(format!("{hold:?} is extended and not held"));
        };
        match from {
            Some(_) => (held.from, held.lent) = (held.from.or(from), plus(held.lent, amount)),
            None => held.stored = Some(plus(held.stored.unwrap_or_default(), amount)),
        }
        Ok(())
    }

    fn end(
        &mut self,
        at: u64,
        hold: HoldId,
        actual: Pair,
        accounts: &BTreeMap<HoldId, Vec<AccountId>>,
    ) -> Result<(), String> {
        let Some(held) = self.live.remove(&hold) else {
            return Err(format!("{hold:?} ends and is not held: a second terminal fact"));
        };
        if hold.allotment
            && let Some(lent) = self.lent.get_mut(&hold.id)
        {
            lent.over = true;
        }
        match held.from.and_then(|from| self.lent.get_mut(&from)).filter(|lent| !lent.over) {
            Some(lent) => {
                // What the store itself held pays first: it hears of that with this end, of the rest with the allotment's.
                let spent = above(actual, held.stored.unwrap_or_default());
                let own = accounts.get(&hold).into_iter().flatten();
                lent.spent.extend(own.map(|account| (*account, spent)));
                lent.used = plus(minus(lent.used, held.lent), spent);
                if held.stored.is_some() {
                    self.unacknowledged.insert(hold, (at, minus(actual, spent)));
                }
            }
            None => {
                let owed = if hold.allotment { [0, 0] } else { actual };
                if held.stored.is_some() || owed != [0, 0] {
                    self.unacknowledged.insert(hold, (at, owed));
                }
            }
        }
        Ok(())
    }

    /// What of an account's use the store may not know yet.
    fn pending(&self, account: AccountId, accounts: &BTreeMap<HoldId, Vec<AccountId>>) -> Pair {
        let ends = self
            .unacknowledged
            .iter()
            .filter(|(hold, _)| accounts.get(hold).is_some_and(|own| own.contains(&account)));
        let sum = ends.fold([0, 0], |sum, (_, (_, owed))| plus(sum, *owed));
        let lent = self.lent.values().flat_map(|lent| &lent.spent).chain(&self.untold);
        let lent = lent.filter(|(own, _)| *own == account);
        lent.fold(sum, |sum, (_, spent)| plus(sum, *spent))
    }
}
