//! What is left out of the plans of each tier, and in which order.
//!
//! A plan of tier B is thinned and no more: each of its runs takes a second, and the time is better spent on leaving out.

use super::{Case, Shrinker};
use crate::check::Violation;
use crate::plan::Plan;
use crate::tier::AnyPlan;
use crate::tier_b::TierBPlan;

/// What is left free after the last event, in milliseconds, before the faults count as over.
const REST_MS: u64 = 1_000;

impl Case for Plan {
    fn any(&self) -> AnyPlan {
        AnyPlan::A(Box::new(self.clone()))
    }

    fn duration_ms(&self) -> u64 {
        self.duration_ms
    }

    fn seed(&mut self) -> &mut u64 {
        &mut self.seed
    }

    /// A run of a small one costs next to nothing.
    fn tries(&self) -> u64 {
        match self.asks.len() {
            0..=60 => 8,
            61..=300 => 2,
            _ => 1,
        }
    }

    fn size(&self) -> String {
        format!(
            "{} asks, {} faults, {} gateways, {} replicas, {} ms",
            self.asks.len(),
            self.faults.len(),
            self.topology.gateways.len(),
            self.topology.replicas.len(),
            self.duration_ms,
        )
    }

    fn name(&mut self, violation: &Violation) {
        self.what = format!("{}, shrunk: invariant {}", self.what, violation.invariant);
    }

    fn round(shrinker: &mut Shrinker<'_, Self>) {
        shrinker.cut_time();
        shrinker.say("time");
        shrinker.thin(|plan| plan.faults.len(), |plan, range| drop(plan.faults.drain(range)));
        shrinker.say("faults");
        shrinker.thin(|plan| plan.asks.len(), |plan, range| drop(plan.asks.drain(range)));
        shrinker.say("asks");
        shrinker.fewer_hosts();
        shrinker.say("hosts");
        shrinker.simpler_values();
        shrinker.say("values");
    }
}

impl Case for TierBPlan {
    fn any(&self) -> AnyPlan {
        AnyPlan::B(Box::new(self.clone()))
    }

    fn duration_ms(&self) -> u64 {
        self.duration_ms
    }

    fn seed(&mut self) -> &mut u64 {
        &mut self.seed
    }

    fn tries(&self) -> u64 {
        if self.operations.len() <= 20 { 3 } else { 1 }
    }

    fn size(&self) -> String {
        format!("{} operations, {} faults", self.operations.len(), self.faults.len())
    }

    fn name(&mut self, _violation: &Violation) {}

    fn round(shrinker: &mut Shrinker<'_, Self>) {
        shrinker.thin(|plan| plan.faults.len(), |plan, range| drop(plan.faults.drain(range)));
        shrinker.say("faults");
        shrinker.thin(
            |plan| plan.operations.len(),
            |plan, range| {
                drop(plan.operations.drain(range));
            },
        );
        shrinker.say("operations");
    }
}

impl Shrinker<'_, Plan> {
    /// Nothing that comes after the failure has to do with it; nor has the quiet before the first event.
    fn cut_time(&mut self) {
        let broke_ms = self.violation.at / 1_000_000 + 1;
        if self.goal.at_the_end {
            self.attempt(|plan| {
                let rest = plan.duration_ms - plan.heal_at_ms;
                plan.heal_at_ms = plan.heal_at_ms.min(last_ms(plan) + REST_MS);
                plan.duration_ms = plan.heal_at_ms + rest;
            });
        } else {
            let broke_at = self.violation.at;
            self.attempt(|plan| {
                plan.asks.retain(|ask| ask.at_us * 1_000 <= broke_at);
                plan.faults.retain(|fault| fault.at_ms * 1_000_000 <= broke_at);
            });
            self.attempt(|plan| {
                plan.duration_ms = plan.duration_ms.min(broke_ms + 1);
                plan.heal_at_ms = plan.heal_at_ms.min(plan.duration_ms);
            });
        }
        let first_ms = first_ms(&self.best).saturating_sub(10);
        self.attempt(|plan| earlier(plan, first_ms));
    }
}

pub(super) fn first_ms(plan: &Plan) -> u64 {
    let asks = plan.asks.iter().map(|ask| ask.at_us / 1_000);
    asks.chain(plan.faults.iter().map(|fault| fault.at_ms)).min().unwrap_or(0)
}

pub(super) fn last_ms(plan: &Plan) -> u64 {
    let asks = plan.asks.iter().map(|ask| ask.at_us / 1_000);
    let faults = plan.faults.iter().map(|fault| fault.until_ms.unwrap_or(fault.at_ms));
    asks.chain(faults).max().unwrap_or(0)
}

/// Everything happens so much earlier.
pub(super) fn earlier(plan: &mut Plan, by_ms: u64) {
    for ask in &mut plan.asks {
        ask.at_us -= by_ms * 1_000;
    }
    for fault in &mut plan.faults {
        fault.at_ms -= by_ms;
        fault.until_ms = fault.until_ms.map(|until| until - by_ms);
    }
    let rest = plan.duration_ms - plan.heal_at_ms;
    plan.heal_at_ms = plan.heal_at_ms.saturating_sub(by_ms);
    plan.duration_ms = plan.heal_at_ms + rest;
}
