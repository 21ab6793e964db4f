//! Invariant 4: a session has one owner, its epochs only grow, and who sees the same members computes the same home.

use std::collections::{BTreeMap, BTreeSet};

use control::affinity::Binding;
use control::balance::{Chosen, Reason};
use control::id::{EndpointId, SessionKey};
use control::plane::{ControlPlane, Dispatch, Input};
use control::rng::hash_bytes;

use super::members::Members;
use super::request::Request;
use super::requests::Requests;
use super::{Invariant, Step, Verdict};
use crate::coverage::sometimes;
use crate::plan::Plan;

/// Every session's homes.
pub(super) struct Affinity {
    gateways: Vec<BTreeMap<SessionKey, Vec<Home>>>,
    /// Under which membership a session of a model has which home, whoever computed it.
    homes: BTreeMap<(u64, SessionKey, Box<str>), u32>,
}

#[derive(Clone, Copy, Debug)]
struct Home {
    position: u64,
    epoch: u64,
    endpoint: EndpointId,
    released: bool,
}

impl Affinity {
    pub fn new(plan: &Plan) -> Self {
        let gateways = vec![BTreeMap::new(); plan.topology.gateways.len()];
        Self { gateways, homes: BTreeMap::new() }
    }

    /// A session found its replica, or moved.
    pub fn bound(
        &mut self,
        step: &Step<'_>,
        session: SessionKey,
        binding: Binding,
        requests: &Requests,
        verdict: &mut Verdict,
    ) {
        let attempt = match &step.input {
            Input::AttemptAccepted { attempt }
            | Input::FirstToken { attempt }
            | Input::AttemptEnded { attempt, .. } => Some(*attempt),
            Input::Restarted { .. }
            | Input::WallTime(_)
            | Input::Configured(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::Drain { .. }
            | Input::LoadReported { .. }
            | Input::RequestArrived(_)
            | Input::StoreAnswered(_)
            | Input::StoreFailed { .. }
            | Input::Consulted(_)
            | Input::ConsultFailed { .. }
            | Input::Housed(_)
            | Input::LedgerAsked { .. }
            | Input::Progress { .. }
            | Input::ClientGone { .. }
            | Input::Timeout => None,
        };
        let request = attempt.and_then(|attempt| requests.by_attempt(step.gateway, attempt));
        let earned = request.is_some_and(|request| {
            request.arrival.session.is_some_and(|own| own.key == session)
                && attempt.and_then(|id| request.tried_by(id)) == Some(binding.endpoint)
        });
        let homes = self.gateways[step.gateway as usize].entry(session).or_default();
        let mut wrong = |text: String| {
            verdict.fail(Invariant::Affinity, step.at, format!("{session:?} {text}"));
        };
        if !earned {
            wrong("is bound to an endpoint that has not just accepted it".into());
        }
        if request.is_some_and(|request| request.beside.is_some()) {
            wrong("is bound while nobody knows which of two attempts answers".into());
        }
        match homes.last() {
            None => sometimes!("affinity_bound"),
            Some(last) if last.endpoint == binding.endpoint => {
                if binding.epoch < last.epoch {
                    wrong(format!("falls back from epoch {} to {}", last.epoch, binding.epoch));
                }
                sometimes!("affinity_bound_again");
            }
            Some(last) => {
                if binding.epoch <= last.epoch {
                    let text = format!("moves under epoch {}, after {}", binding.epoch, last.epoch);
                    wrong(text);
                }
                match last.released {
                    true => sometimes!("affinity_bound_after_release"),
                    false => sometimes!("affinity_moved"),
                }
            }
        }
        let (position, epoch, endpoint) = (step.position, binding.epoch, binding.endpoint);
        homes.push(Home { position, epoch, endpoint, released: false });
    }

    /// The store says where a session lives: perhaps elsewhere under the same epoch, where two moved it at once.
    pub fn adopted(
        &mut self,
        step: &Step<'_>,
        session: SessionKey,
        binding: Binding,
        verdict: &mut Verdict,
    ) {
        let homes = self.gateways[step.gateway as usize].entry(session).or_default();
        let (position, epoch, endpoint) = (step.position, binding.epoch, binding.endpoint);
        if let Some(last) = homes.last().filter(|last| last.epoch > epoch) {
            let text = format!("{session:?} falls back from epoch {} to {epoch}", last.epoch);
            verdict.fail(Invariant::Affinity, step.at, text);
        }
        homes.push(Home { position, epoch, endpoint, released: false });
    }

    /// A session lost its replica.
    pub fn released(&mut self, step: &Step<'_>, session: SessionKey) {
        sometimes!("affinity_released");
        let homes = self.gateways[step.gateway as usize].entry(session).or_default();
        if let Some(last) = homes.last().copied() {
            homes.push(Home { position: step.position, released: true, ..last });
        }
    }

    pub fn died(&mut self, gateway: u32, next: u64) {
        for homes in self.gateways[gateway as usize].values_mut() {
            homes.retain(|home| home.position < next);
        }
    }

    /// What was recovered knows no older homes than were recorded.
    pub fn recovered(&self, gateway: u32, plane: &ControlPlane, at: u64, verdict: &mut Verdict) {
        for (session, homes) in &self.gateways[gateway as usize] {
            let Some(last) = homes.last() else { continue };
            let Some(binding) = plane.binding(*session) else { continue };
            if binding.epoch < last.epoch || (!last.released && binding.endpoint != last.endpoint) {
                let text = format!(
                    "{session:?} is recovered at {:?} under epoch {}, and was at {:?} under {}",
                    binding.endpoint, binding.epoch, last.endpoint, last.epoch
                );
                verdict.fail(Invariant::Durability, at, text);
            }
        }
    }

    /// A home was computed: under the same members it is the same for everybody.
    pub fn picked(
        &mut self,
        step: &Step<'_>,
        (order, chosen): (&Dispatch, &Chosen),
        request: &Request,
        members: &Members,
        verdict: &mut Verdict,
    ) {
        if let Reason::Spilled { .. } = chosen.reason {
            sometimes!("affinity_spilled");
        }
        // With nobody passed over it is the first of the key's homes.
        if chosen.reason != Reason::Home || chosen.considered.iter().count() != 1 {
            return;
        }
        let Some(session) = request.arrival.session.map(|session| session.key) else { return };
        let pool = &members.gateways[step.gateway as usize];
        let Some(member) = pool.members.get(&order.endpoint) else { return };
        let membership = membership(&pool.present, chosen.tier);
        let key = (membership, session, request.arrival.model.clone());
        let home = *self.homes.entry(key).or_insert(member.replica);
        if home != member.replica {
            let text = format!(
                "{session:?} has its home at replica-{home} and at replica-{}, under the same members",
                member.replica
            );
            verdict.fail(Invariant::Affinity, step.at, text);
        }
    }
}

fn membership(present: &BTreeSet<u32>, tier: u8) -> u64 {
    present.iter().fold(u64::from(tier), |hash, replica| hash_bytes(hash, &replica.to_le_bytes()))
}
