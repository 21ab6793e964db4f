//! A plan with a host less: whoever comes after it moves up, and what named it names another or goes.

use super::Shrinker;
use crate::plan::{Fault, FaultKind, Host, Plan, tenant_account, user_account};

/// Users that a tenant may have; see the drawing of asks.
const USERS: u32 = 3;

impl Shrinker<'_, Plan> {
    pub(super) fn fewer_hosts(&mut self) {
        // Half of a crowd at a time, then one by one from the last.
        while self.best.topology.replicas.len() > 3 {
            let count = self.best.topology.replicas.len();
            let less =
                |plan: &mut Plan| (count / 2..count).rev().for_each(|at| no_replica(plan, at));
            if !self.attempt(less) {
                break;
            }
        }
        for at in (0..self.best.topology.replicas.len()).rev() {
            self.attempt(|plan| no_replica(plan, at));
        }
        for at in (0..self.best.topology.gateways.len()).rev() {
            if self.best.topology.gateways.len() > 1 {
                self.attempt(|plan| no_gateway(plan, at));
            }
        }
        self.attempt(|plan| {
            plan.asks.iter_mut().for_each(|ask| ask.tenant = 0);
        });
        self.attempt(fewer_tenants);
    }
}

/// Tenants beyond the last that asks, and what is configured for them.
fn fewer_tenants(plan: &mut Plan) {
    let tenants = plan.asks.iter().map(|ask| ask.tenant + 1).max().unwrap_or(1);
    plan.topology.tenants = tenants;
    plan.config.accounts.retain(|account, _| {
        (0..tenants).any(|tenant| {
            let users = (0..USERS).map(|user| user_account(tenant, user));
            *account == tenant_account(tenant) || users.into_iter().any(|user| user == *account)
        })
    });
}

fn no_replica(plan: &mut Plan, gone: usize) {
    plan.topology.replicas.remove(gone);
    let gone = gone as u32;
    rename(plan, |host| match host {
        Host::Replica(index) => moved_up(index, gone).map(Host::Replica),
        Host::Gateway(_) | Host::Store | Host::Registry | Host::Clients => Some(host),
    });
}

fn no_gateway(plan: &mut Plan, gone: usize) {
    plan.topology.gateways.remove(gone);
    let gone = gone as u32;
    for ask in &mut plan.asks {
        // Its clients ask the first.
        ask.gateway = moved_up(ask.gateway, gone).unwrap_or(0);
    }
    rename(plan, |host| match host {
        Host::Gateway(index) => moved_up(index, gone).map(Host::Gateway),
        Host::Replica(_) | Host::Store | Host::Registry | Host::Clients => Some(host),
    });
}

fn moved_up(index: u32, gone: u32) -> Option<u32> {
    (index != gone).then(|| if index > gone { index - 1 } else { index })
}

/// Gives hosts other names in all faults; a fault of which nobody is left goes.
fn rename(plan: &mut Plan, name: impl Fn(Host) -> Option<Host>) {
    plan.faults.retain_mut(|fault| renamed(fault, &name).is_some());
}

fn renamed(fault: &mut Fault, name: &impl Fn(Host) -> Option<Host>) -> Option<()> {
    match &mut fault.kind {
        FaultKind::Cut { from, to, .. } | FaultKind::Flap { from, to, .. } => {
            for side in [&mut *from, &mut *to] {
                *side = side.iter().filter_map(|host| name(*host)).collect();
            }
            return (!from.is_empty() && !to.is_empty()).then_some(());
        }
        FaultKind::Latency { host, .. } => *host = name(*host)?,
        FaultKind::Ill { replica, .. }
        | FaultKind::ReplicaCrash { replica, .. }
        | FaultKind::Drain { replica } => {
            let Host::Replica(index) = name(Host::Replica(*replica))? else { return None };
            *replica = index;
        }
        FaultKind::Kill { gateway, .. }
        | FaultKind::PowerLoss { gateway, .. }
        | FaultKind::Pause { gateway }
        | FaultKind::ClockJump { gateway, .. }
        | FaultKind::DiskFull { gateway }
        | FaultKind::DiskSlow { gateway, .. }
        | FaultKind::SyncFails { gateway } => {
            let Host::Gateway(index) = name(Host::Gateway(*gateway))? else { return None };
            *gateway = index;
        }
        FaultKind::Registry { .. }
        | FaultKind::Store { .. }
        | FaultKind::StoreFailover { .. }
        | FaultKind::Reload { .. } => {}
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::draw;

    #[test]
    fn a_plan_without_any_one_of_its_hosts_is_still_a_plan() {
        for seed in 0..30 {
            let plan = draw(seed);
            for gone in 0..plan.topology.replicas.len().min(4) {
                let mut less = plan.clone();
                no_replica(&mut less, gone);
                assert_eq!(Plan::parse(&less.to_text()).as_ref(), Ok(&less), "seed {seed}");
            }
            if plan.topology.gateways.len() > 1 {
                let mut less = plan.clone();
                no_gateway(&mut less, 0);
                assert_eq!(Plan::parse(&less.to_text()).as_ref(), Ok(&less), "seed {seed}");
            }
        }
    }

    #[test]
    fn who_comes_after_moves_up_and_what_named_the_gone_one_goes() {
        let mut plan = draw(0);
        let fault = |replica| Fault {
            at_ms: 1,
            until_ms: Some(2),
            kind: FaultKind::ReplicaCrash { replica, power: false },
        };
        plan.faults = vec![fault(0), fault(1), fault(2)];
        no_replica(&mut plan, 1);
        assert_eq!(plan.faults, [fault(0), fault(1)]);
    }
}
