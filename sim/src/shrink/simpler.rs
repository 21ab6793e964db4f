//! The same asks, faults and hosts with plainer values: what is left in a plan should be there for a reason.

use control::quota::{Cap, Limits};
use control::units::{MicroUsd, Tokens};

use super::Shrinker;
use crate::plan::{Ask, FaultKind, Plan};

/// What an ask may do without, the largest first.
const PLAINER_ASKS: [fn(&mut Ask); 13] = [
    |ask| (ask.session, ask.stored) = (None, false),
    |ask| ask.stored = false,
    |ask| (ask.key, ask.again) = (None, 0),
    |ask| ask.again = 0,
    |ask| ask.named = false,
    |ask| ask.roams = false,
    |ask| ask.user = None,
    |ask| ask.patience_ms = None,
    |ask| ask.leaves_ms = None,
    |ask| ask.output_max = None,
    |ask| ask.stream = true,
    |ask| (ask.prompt, ask.prompt_true) = (10, 10),
    |ask| ask.output = ask.output.min(10),
];

/// What a world may do without.
const PLAINER_WORLDS: [fn(&mut Plan); 12] = [
    |plan| plan.topology.gateways.iter_mut().for_each(|gateway| gateway.ppm = 0),
    |plan| plan.topology.gateways.iter_mut().for_each(|gateway| gateway.wall_off_ms = 0),
    |plan| plan.topology.store_ppm = 0,
    |plan| plan.topology.registry_every_ms = 0,
    |plan| plan.topology.link.jitter_us = 1,
    |plan| plan.topology.disk.sync_every_ms = 0,
    |plan| plan.topology.replicas.iter_mut().for_each(|replica| replica.weight = 100),
    |plan| plan.topology.replicas.iter_mut().for_each(|replica| replica.tier = 0),
    |plan| plan.topology.replicas.iter_mut().for_each(|replica| replica.rps_max = None),
    |plan| plan.topology.replicas.iter_mut().for_each(|replica| replica.tells_usage = true),
    |plan| plan.topology.replicas.iter_mut().for_each(|replica| replica.tells = None),
    |plan| plan.topology.replicas.iter_mut().for_each(|replica| replica.fingerprint = None),
];

/// Numbers that many asks are needed to reach: a limit half as high needs half as many.
const HALVES: [fn(&mut Plan); 8] = [
    |plan| limits(plan, |limits| [&mut limits.day, &mut limits.month].into_iter().for_each(halve)),
    |plan| limits(plan, |limits| limits.rolling.iter_mut().for_each(|one| halve(&mut one.cap))),
    |plan| {
        for account in plan.config.accounts.values_mut() {
            account.rates.rpm = account.rates.rpm.map(|rpm| rpm.div_ceil(2));
            account.rates.tpm = account.rates.tpm.map(|tpm| tpm.div_ceil(2));
        }
    },
    |plan| {
        let breaker = &mut plan.config.breaker;
        breaker.consecutive_failures = breaker.consecutive_failures.div_ceil(2);
        breaker.window_requests_min = breaker.window_requests_min.div_ceil(2);
    },
    |plan| {
        let affinity = &mut plan.config.affinity;
        affinity.spills_before_migration = affinity.spills_before_migration.div_ceil(2);
    },
    |plan| {
        let attempt = &mut plan.config.attempt;
        attempt.budget_burst /= 2;
        attempt.budget_floor_per_second /= 2;
    },
    |plan| plan.topology.replicas.iter_mut().for_each(|one| one.slots = one.slots.div_ceil(2)),
    |plan| {
        let replicas = plan.topology.replicas.iter_mut();
        replicas.for_each(|one| one.in_flight_max = one.in_flight_max.div_ceil(2));
    },
];

fn limits(plan: &mut Plan, change: impl Fn(&mut Limits)) {
    for account in plan.config.accounts.values_mut() {
        change(&mut account.limits);
        account.per_user.iter_mut().for_each(|user| change(&mut user.limits));
    }
}

fn halve(cap: &mut Cap) {
    cap.tokens = cap.tokens.map(|tokens| Tokens(tokens.0.div_ceil(2)));
    cap.money = cap.money.map(|money| MicroUsd(money.0.div_ceil(2)));
}

/// How often a number is halved in one go.
const HALVINGS: u32 = 8;

/// Asks of which each is made plainer by itself; of more, only all together.
const ASKS_ONE_BY_ONE: usize = 40;

impl Shrinker<'_, Plan> {
    pub(super) fn simpler_values(&mut self) {
        for plainer in PLAINER_WORLDS {
            self.attempt(plainer);
        }
        for half in HALVES {
            for _ in 0..HALVINGS {
                if !self.attempt(half) {
                    break;
                }
            }
        }
        for plainer in PLAINER_ASKS {
            let of_all = self.attempt(|plan| plan.asks.iter_mut().for_each(plainer));
            if !of_all && self.best.asks.len() <= ASKS_ONE_BY_ONE {
                for at in 0..self.best.asks.len() {
                    self.attempt(|plan| plainer(&mut plan.asks[at]));
                }
            }
        }
        for at in 0..self.best.faults.len() {
            self.attempt(|plan| plainer_fault(&mut plan.faults[at].kind));
            self.smaller_sides(at);
            self.shorter(at);
        }
    }

    /// Who does not have to be on either side of a cut.
    fn smaller_sides(&mut self, fault: usize) {
        for of_from in [true, false] {
            let mut at = 0;
            while let Some(count) =
                side(&mut self.best.clone(), fault, of_from).map(|side| side.len())
                && count > 1
                && at < count
            {
                let fewer = self.attempt(|plan| {
                    side(plan, fault, of_from).map(|side| side.remove(at));
                });
                at += usize::from(!fewer);
            }
        }
    }

    fn shorter(&mut self, fault: usize) {
        for _ in 0..HALVINGS {
            let shorter = self.attempt(|plan| {
                let fault = &mut plan.faults[fault];
                fault.until_ms =
                    fault.until_ms.map(|until| fault.at_ms + (until - fault.at_ms) / 2);
            });
            if !shorter {
                return;
            }
        }
    }
}

fn side(plan: &mut Plan, fault: usize, of_from: bool) -> Option<&mut Vec<crate::plan::Host>> {
    match &mut plan.faults[fault].kind {
        FaultKind::Cut { from, to, .. } | FaultKind::Flap { from, to, .. } => {
            Some(if of_from { from } else { to })
        }
        FaultKind::Latency { .. }
        | FaultKind::Ill { .. }
        | FaultKind::ReplicaCrash { .. }
        | FaultKind::Drain { .. }
        | FaultKind::Kill { .. }
        | FaultKind::PowerLoss { .. }
        | FaultKind::Pause { .. }
        | FaultKind::ClockJump { .. }
        | FaultKind::DiskFull { .. }
        | FaultKind::DiskSlow { .. }
        | FaultKind::SyncFails { .. }
        | FaultKind::Registry { .. }
        | FaultKind::Store { .. }
        | FaultKind::StoreFailover { .. }
        | FaultKind::Reload { .. } => None,
    }
}

fn plainer_fault(kind: &mut FaultKind) {
    match kind {
        FaultKind::Cut { both, .. } => *both = true,
        FaultKind::Latency { ramp, .. } => *ramp = false,
        FaultKind::ReplicaCrash { power, .. } => *power = false,
        FaultKind::Kill { again, upgrade, .. } => (*again, *upgrade) = (0, false),
        FaultKind::PowerLoss { torn, .. } => *torn = false,
        FaultKind::Flap { .. }
        | FaultKind::Ill { .. }
        | FaultKind::Drain { .. }
        | FaultKind::Pause { .. }
        | FaultKind::ClockJump { .. }
        | FaultKind::DiskFull { .. }
        | FaultKind::DiskSlow { .. }
        | FaultKind::SyncFails { .. }
        | FaultKind::Registry { .. }
        | FaultKind::Store { .. }
        | FaultKind::StoreFailover { .. }
        | FaultKind::Reload { .. } => {}
    }
}
