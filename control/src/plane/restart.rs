//! A new life of the process: what the last one left under way is settled, nothing is asked twice.

use super::observation::Observation;
use super::request::request_of;
use super::{ControlPlane, Durable, Outcome, Refusal};
use crate::outcome::Verdict;
use crate::time::Wall;

impl ControlPlane {
    /// Attempts that were in flight are lost. A client that had been sent something is charged up to the last progress
    /// mark; one that had not is charged nothing.
    pub(super) fn handle_restarted(&mut self, incarnation: u32, wall: Wall) {
        self.set_wall(wall);
        while let Some(id) = self.requests.keys().next().copied() {
            let produced = self.requests[&id].produced;
            self.observe(Observation::Lost { request: id, produced });
            self.lose(id);
        }
        self.incarnation = incarnation;
        self.minted = 0;
        // After an upgrade soft state starts cold while the ledger's facts were applied: reservations whose requests
        // nobody knows any more go back.
        let orphans: alloc::vec::Vec<_> = self.quota.live().collect();
        for reservation in orphans {
            debug_assert!(!self.requests.contains_key(&request_of(reservation)));
            self.quota.refund(self.now, reservation);
        }
        self.drain_quota();
        // The callers of that life are gone with it: nobody is there to be told.
        self.effects.retain(|effect| matches!(effect, super::Effect::Persist(_)));
    }

    /// Takes a fact that another logic decided.
    pub(crate) fn restore_fact(&mut self, fact: &Durable) {
        match fact {
            Durable::Entry(entry) => self.quota.apply_entry(entry),
            Durable::Binding { session, binding } => {
                self.affinity.restore(*session, *binding);
            }
        }
    }

    fn lose(&mut self, id: crate::id::RequestId) {
        self.abandon(id, Verdict::Neutral);
        if self.requests[&id].committed {
            self.answered_in_part(id, Outcome::Cancelled);
        } else {
            self.refuse(id, Refusal::Lost);
        }
    }
}
