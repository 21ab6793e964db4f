//! Others who charge the same ledger: services beside the gateway, which reserve, settle and refund under their own names.
//!
//! They speak in the words that the shared ledger has ([`StoreOp`]), so that it makes no difference to them which of the two
//! is there: a shared one is asked by the shell, the embedded one through the plane, because its facts must stand in the
//! journal before anybody believes them. What such an owner holds is no request's: a new life of this process leaves it
//! alone, and it ends by its owner's word or by its own expiry.

use alloc::vec::Vec;

use super::ControlPlane;
use super::effect::Effect;
use crate::id::{AccountId, CallerToken, Principal};
use crate::quota::{Limits, StoreOp};

impl ControlPlane {
    /// The accounts that pay for `who`, the tenant first, each with its limits as configured now.
    #[must_use]
    pub fn payers(&self, who: &Principal) -> Vec<(AccountId, Limits)> {
        let accounts = self.config.accounts_of(who);
        accounts.map(|(id, known)| (id, known.map(|one| one.limits).unwrap_or_default())).collect()
    }

    pub(super) fn handle_ledger_asked(&mut self, caller: CallerToken, op: &StoreOp) {
        // Under our own name it would speak for the requests of this plane.
        let foreign = op.owner != self.quota.config().owner;
        let answer = if foreign { self.quota.perform(self.now, op) } else { None };
        self.drain_quota();
        self.effects.extend(answer.map(|answer| Effect::LedgerAnswered { caller, answer }));
    }
}
