//! What the owner holds, as the fold of its facts.

use super::super::entry::{Entry, Fact};
use super::super::terms::{BalanceKey, HoldId};
use super::allotment::Allotment;
use super::terminals::{Ending, How};
use super::{Holding, Owner, path_of};
use crate::id::ReservationId;
use crate::time::{Instant, Wall};
use crate::units::Amount;

impl Owner {
    /// Applies one fact. Total: what does not fit changes nothing.
    pub fn apply(&mut self, entry: &Entry) {
        let at = entry.at;
        self.wall = self.wall.max(entry.wall);
        match &entry.fact {
            Fact::Reserve { hold, pins, amount, ttl, expires, .. } if hold.allotment => {
                let drawn = Allotment::drawn(hold.id, pins.clone(), *amount, (at, *ttl, *expires));
                self.insert_allotment(path_of(pins), drawn);
            }
            Fact::Reserve { hold, .. } if self.holdings.contains_key(&hold.id) => {}
            Fact::Reserve { hold, pins, amount, ttl, expires: _, from } => {
                let holding = Holding {
                    pins: pins.clone(),
                    stored: from.is_none().then_some(*amount),
                    lent: Amount::ZERO,
                    from: None,
                    ttl: *ttl,
                    run: None,
                    extending: None,
                };
                self.holdings.insert(hold.id, holding);
                if let Some(from) = from {
                    self.lend_to(hold.id, *from, *amount);
                }
            }
            Fact::Extend { hold, amount, expires, .. } if hold.allotment => {
                if let Some(allotment) = self.allotment_mut(hold.id) {
                    allotment.total += *amount;
                    allotment.expires = *expires;
                }
            }
            Fact::Extend { hold, amount, from: Some(from), .. } => {
                self.lend_to(hold.id, *from, *amount);
            }
            Fact::Extend { hold, amount, from: None, .. } => {
                if let Some(holding) = self.holdings.get_mut(&hold.id) {
                    holding.stored = Some(holding.stored.unwrap_or_default() + *amount);
                }
            }
            Fact::Settle { hold, actual, estimated } => {
                self.end(at, *hold, Some((*actual, *estimated)));
            }
            Fact::Refund { hold } => self.end(at, *hold, None),
            Fact::Acknowledged { hold } => {
                self.acknowledge(*hold);
            }
            Fact::Limits { .. }
            | Fact::Expire { .. }
            | Fact::Late { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. } => {}
        }
    }

    fn lend_to(&mut self, id: ReservationId, from: ReservationId, amount: Amount) {
        let Some(holding) = self.holdings.get_mut(&id) else { return };
        holding.from = Some(from);
        holding.lent += amount;
        if let Some(allotment) = self.allotment_mut(from) {
            allotment.held += amount;
        }
    }

    /// `used` is what was used and whether that is an estimate; `None` for nothing at all.
    fn end(&mut self, at: Instant, hold: HoldId, used: Option<(Amount, bool)>) {
        if hold.allotment {
            if let Some(allotment) = self.take_allotment(hold.id) {
                let how = How::used(used.unwrap_or_default(), allotment.run);
                self.insert_ending(at, hold, Ending::new(allotment.pins, how, at));
            }
            return;
        }
        let Some(holding) = self.holdings.remove(&hold.id) else { return };
        let left = self.end_at_allotment(&holding, used);
        let how = match (holding.stored, left) {
            (Some(_), None) => How::Unused,
            (Some(_), Some(used)) => How::used(used, holding.run),
            (None, Some(used)) if used.0 != Amount::ZERO => How::used(used, None),
            (None, _) => return,
        };
        self.insert_ending(at, hold, Ending::new(holding.pins, how, at));
    }

    /// Returns what the allotment lent and notes what was spent of it. What remains is for the store to charge: the part
    /// the store holds, or everything where the allotment has ended.
    fn end_at_allotment(
        &mut self,
        holding: &Holding,
        used: Option<(Amount, bool)>,
    ) -> Option<(Amount, bool)> {
        let Some(allotment) = holding.from.and_then(|from| self.allotment_mut(from)) else {
            return used;
        };
        allotment.held = allotment.held.saturating_sub(holding.lent);
        let (actual, estimated) = used?;
        let spent = actual.saturating_sub(holding.stored.unwrap_or_default());
        allotment.spent += spent;
        holding.stored.map(|_| (actual.saturating_sub(spent), estimated))
    }

    fn allotment_mut(&mut self, id: ReservationId) -> Option<&mut Allotment> {
        self.allotments.values_mut().find(|allotment| allotment.id == id)
    }
}

/// True where a window has ended: what is pinned there may not be spent from any more.
pub(super) fn over(pins: &[BalanceKey], wall: Wall) -> bool {
    pins.iter().any(|pin| pin.window.is_over(wall))
}
