//! A new life of the process: what the last one left under way is settled, nothing is asked twice.

use super::observation::Observation;
use super::request::request_of;
use super::{ControlPlane, Durable, Effect, Input, Keyed, Outcome, Refusal};
use crate::outcome::Verdict;
use crate::session::Idempotency;
use crate::time::{Instant, Wall};

impl ControlPlane {
    /// Attempts that were in flight are lost. A client that had been sent something is charged up to the last progress
    /// mark; one that had not is charged nothing. Looks at every request and every reservation, which no other input
    /// does: it is the first of a life, before anybody can wait for it.
    pub(super) fn handle_restarted(&mut self, incarnation: u32, wall: Wall) {
        self.set_wall(wall);
        while let Some(id) = self.requests.keys().next().copied() {
            let produced = self.requests[&id].produced;
            self.observe(Observation::Lost { request: id, produced });
            self.lose(id);
        }
        if planted!(RecoveryForgetsKeys) {
            self.idempotency = Idempotency::new(self.config.session.clone());
        }
        // Turns that came to requests of that life came too late.
        self.next_turns.clear();
        if incarnation > self.incarnation {
            (self.incarnation, self.minted) = (incarnation, 0);
        }
        // After an upgrade soft state starts cold while the ledger's facts were applied: reservations whose requests
        // nobody knows any more go back.
        let none = planted!(CrashLeaks);
        let orphans: alloc::vec::Vec<_> = self.quota.live().filter(|_| !none).collect();
        for reservation in orphans {
            debug_assert!(!self.requests.contains_key(&request_of(reservation)));
            self.quota.refund(self.now, reservation);
        }
        self.drain_quota();
        // The callers of that life are gone with it: nobody is there to be told. Stores are.
        self.shared.forget();
        self.effects.retain(|effect| match effect {
            Effect::Persist(_) | Effect::Reserve(_) | Effect::Note(_) => true,
            Effect::Admitted { .. }
            | Effect::Dispatch(_)
            | Effect::Cancel { .. }
            | Effect::Reject { .. }
            | Effect::Finish { .. }
            | Effect::Consult(_)
            | Effect::LedgerAnswered { .. } => false,
        });
    }

    /// Goes over a step that another logic decided: time passes, and what people and sources said is taken in, since the
    /// facts name endpoints and limits by it. Nothing else is decided again.
    pub(crate) fn restore_step(&mut self, now: Instant, input: Input, keyed: &mut Keyed) {
        self.now = self.now.max(now);
        match input {
            Input::Restarted { incarnation, wall } => {
                self.wall = wall;
                if incarnation > self.incarnation {
                    (self.incarnation, self.minted) = (incarnation, 0);
                }
            }
            Input::WallTime(wall) => self.wall = wall,
            Input::Configured(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::Drain { .. } => self.step(input),
            // Each was given an id, were it only to be refused by it; no shell has one token under way twice.
            Input::RequestArrived(arrival) => {
                let id = self.mint();
                keyed.arrived(id, &arrival, self.config.session.idempotency_keys_max);
            }
            Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::AttemptAccepted { .. }
            | Input::FirstToken { .. }
            | Input::Progress { .. }
            | Input::AttemptEnded { .. }
            | Input::ClientGone { .. }
            | Input::LoadReported { .. }
            | Input::Timeout => {}
        }
    }

    /// Takes a fact that another logic decided.
    pub(crate) fn restore_fact(&mut self, fact: &Durable, keyed: &mut Keyed) {
        match fact {
            Durable::Entry(entry) => {
                self.quota.apply_entry(entry);
                self.restore_key(&entry.fact, keyed);
            }
            Durable::Binding { session, binding } => {
                self.affinity.restore(*session, *binding);
            }
            Durable::Released { session } => self.affinity.release(*session),
            Durable::Adopted { session, binding } => {
                self.affinity.adopt(*session, *binding);
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
