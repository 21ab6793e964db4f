//! What gateways share beside the ledger: asked at arrival, told at the end.

use super::ControlPlane;
use super::observation::{Observation, Stale};
use crate::shared::{Consulted, Housed, SharedOpId};

impl ControlPlane {
    pub(super) fn handle_consulted(&mut self, answer: Consulted) {
        self.observe(Observation::Stale(Stale::Shared(answer.op)));
    }

    pub(super) fn handle_consult_failed(&mut self, op: SharedOpId) {
        self.observe(Observation::Stale(Stale::Shared(op)));
    }

    pub(super) fn handle_housed(&mut self, housed: Housed) {
        self.observe(Observation::Stale(Stale::Shared(housed.op)));
    }
}
