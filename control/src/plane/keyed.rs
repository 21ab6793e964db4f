//! Idempotency keys across an upgrade: what another logic charged is not charged again.
//!
//! A client that was cut off by the upgrade asks again, under its key. Keys are soft state, which starts cold; but that
//! the request was charged is a fact, and one key is one charge. A fact names the request and not its key, an arrival
//! the key and not the request: the two are joined by the number that each arrival has minted.
//!
//! Only charges count. Whoever was turned away at the door never held anything, whoever was refunded has freed its key,
//! and what was under way when that logic stopped is refunded at the next start: all of these may be asked again. So
//! nobody has to decide once more which of two requests with one key was the repetition.
//!
//! Rejected: a fact of its own for each key. Journals that were written before it would go without, and every keyed
//! request would be longer for the sake of a rare day.

use alloc::collections::BTreeMap;

use super::ControlPlane;
use super::input::{Arrival, Idempotency};
use super::request::request_of;
use crate::id::{AccountId, RequestId};
use crate::quota::{Fact, HoldId};

/// Keyed requests of another logic whose end was not met yet. Lives as long as the facts are read: it is not part of any
/// snapshot, for what it holds when they end is free.
#[derive(Debug, Default)]
pub(crate) struct Keyed {
    /// Nothing is held for them: turned away, waiting, or expired. As many as there may be keys; the oldest is forgotten
    /// first, for it is the likeliest to have been turned away.
    asked: BTreeMap<RequestId, Key>,
    /// Quota is held for them: no more than there are reservations.
    held: BTreeMap<RequestId, Key>,
}

/// A tenant's key, with the body it came with.
type Key = (AccountId, Idempotency);

impl Keyed {
    /// A request was taken under this id, and may have been turned away. At most `keys_max` wait.
    pub(super) fn arrived(&mut self, id: RequestId, arrival: &Arrival, keys_max: u32) {
        let Some(key) = key_of(arrival) else { return };
        self.asked.insert(id, key);
        if self.asked.len() > keys_max as usize {
            self.asked.pop_first();
        }
    }

    /// A life of the process is over: what it left was settled in its last step.
    pub(crate) fn forget(&mut self) {
        *self = Self::default();
    }

    fn reserved(&mut self, hold: &HoldId) {
        let asked = request_held(hold).and_then(|id| self.asked.remove_entry(&id));
        self.held.extend(asked);
    }

    /// It runs on, and may be charged late.
    fn expired(&mut self, hold: &HoldId) {
        let held = request_held(hold).and_then(|id| self.held.remove_entry(&id));
        self.asked.extend(held);
    }

    fn ended(&mut self, id: RequestId) -> Option<Key> {
        self.held.remove(&id).or_else(|| self.asked.remove(&id))
    }
}

impl ControlPlane {
    /// What a fact of the ledger says about a key.
    pub(super) fn restore_key(&mut self, fact: &Fact, keyed: &mut Keyed) {
        let (hold, charged) = match fact {
            Fact::Reserve { hold, .. } => return keyed.reserved(hold),
            Fact::Expire { hold } => return keyed.expired(hold),
            Fact::Settle { hold, .. } | Fact::Late { hold, .. } => (hold, true),
            Fact::Refund { hold } => (hold, false),
            Fact::Limits { .. }
            | Fact::Extend { .. }
            | Fact::Forgive { .. }
            | Fact::Close { .. }
            | Fact::Retire { .. }
            | Fact::Acknowledged { .. } => return,
        };
        let Some(id) = request_held(hold) else { return };
        // A snapshot has those that were under way when it was made.
        let known = || self.requests.get(&id).and_then(|request| key_of(&request.arrival));
        let Some((tenant, Idempotency { key, body })) = keyed.ended(id).or_else(known) else {
            return;
        };
        if charged {
            self.idempotency.restore(self.now, tenant, key, body, id);
        } else {
            self.idempotency.finish(self.now, tenant, key, id, false);
        }
    }
}

/// The request that holds it; `None` for an allotment.
fn request_held(hold: &HoldId) -> Option<RequestId> {
    (!hold.allotment).then(|| request_of(hold.id))
}

fn key_of(arrival: &Arrival) -> Option<Key> {
    arrival.idempotency.map(|idempotency| (arrival.principal.tenant, idempotency))
}
