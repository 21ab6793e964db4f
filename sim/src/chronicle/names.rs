//! Who is who: hosts by number, and names for the ids that planes use.
//!
//! Inside a plane everybody is a number: a slot, a hash, an account. A reader knows `replica-3` and `tenant-2`.

use std::collections::BTreeMap;

use control::id::{AccountId, EndpointId, SessionKey};
use control::plane::Observation;

use crate::check::Step;
use crate::plan::{Host, Plan};
use crate::story::HostId;

/// What planes' ids are called.
#[derive(Default)]
pub(crate) struct Names {
    tenants: u32,
    /// By gateway and id: the replica an endpoint stands for, also when it has been removed since.
    endpoints: BTreeMap<(u32, EndpointId), u32>,
    /// By gateway: the homes of sessions.
    homes: BTreeMap<(u32, SessionKey), HostId>,
}

/// Gateways are at most 50, so that replicas may begin here.
const FIRST_REPLICA: HostId = 100;
const FIRST_GATEWAY: HostId = 10;

/// What a story calls a host.
pub(crate) const fn id_of(host: Host) -> HostId {
    match host {
        Host::Clients => 0,
        Host::Store => 1,
        Host::Registry => 2,
        Host::Gateway(index) => FIRST_GATEWAY + index,
        Host::Replica(index) => FIRST_REPLICA + index,
    }
}

impl Names {
    pub fn of(plan: &Plan) -> Self {
        Self { tenants: plan.topology.tenants, ..Self::default() }
    }

    /// Endpoints that joined.
    pub fn learn(&mut self, step: &Step<'_>) {
        for observation in step.observed {
            if let Observation::EndpointAdded(id) = observation
                && let Some(replica) =
                    step.plane.endpoint_name(*id).and_then(crate::world::replica_of)
            {
                self.endpoints.insert((step.gateway, *id), replica);
            }
        }
    }

    /// The replica an endpoint of a gateway stands for.
    pub fn replica(&self, gateway: u32, id: EndpointId) -> Option<HostId> {
        self.endpoints.get(&(gateway, id)).map(|replica| id_of(Host::Replica(*replica)))
    }

    /// A session lives somewhere now.
    pub fn bound(&mut self, gateway: u32, session: SessionKey, home: Option<HostId>) {
        if let Some(home) = home {
            self.homes.insert((gateway, session), home);
        }
    }

    /// A session lives nowhere now. Returns where it lived.
    pub fn released(&mut self, gateway: u32, session: SessionKey) -> Option<HostId> {
        self.homes.remove(&(gateway, session))
    }

    /// `tenant-2`, or `tenant-2/user-1`. The tenant that looks whether the world is well again is called `visitor`.
    pub fn account(&self, account: AccountId) -> String {
        let tenant = |tenant: u64| match tenant == u64::from(self.tenants) {
            true => "visitor".to_owned(),
            false => format!("tenant-{tenant}"),
        };
        match account.0 {
            1_000..100_000 => tenant(account.0 - 1_000),
            100_000.. => {
                let user = account.0 - 100_000;
                format!("{}/user-{}", tenant(user / 1_000), user % 1_000)
            }
            _ => account.to_string(),
        }
    }

    /// `tenant-2/s7`.
    pub fn session(&self, session: SessionKey) -> String {
        format!("tenant-{}/s{}", session.0 >> 32, session.0 & 0xffff_ffff)
    }

    /// A text of a gateway's plane, with names in the place of ids.
    pub fn named(&self, gateway: u32, text: &str) -> String {
        let is_word = |c: char| c.is_alphanumeric() || c == '_' || c == '.';
        let mut named = String::with_capacity(text.len());
        let mut rest = text;
        while let Some(from) = rest.find(is_word) {
            named.push_str(&rest[..from]);
            rest = &rest[from..];
            let to = rest.find(|c| !is_word(c)).unwrap_or(rest.len());
            let word = &rest[..to];
            match self.name_of(gateway, word) {
                Some(name) => named.push_str(&name),
                None => named.push_str(word),
            }
            rest = &rest[to..];
        }
        named.push_str(rest);
        named
    }

    fn name_of(&self, gateway: u32, word: &str) -> Option<String> {
        let hex = |digits| u64::from_str_radix(digits, 16).ok();
        if let Some(digits) = word.strip_prefix("acct_") {
            return Some(self.account(AccountId(hex(digits)?)));
        }
        if let Some(digits) = word.strip_prefix("sess_") {
            return Some(self.session(SessionKey(hex(digits)?)));
        }
        let (slot, generation) = word.strip_prefix("ep")?.split_once('.')?;
        let id = EndpointId { slot: slot.parse().ok()?, generation: generation.parse().ok()? };
        let replica = self.endpoints.get(&(gateway, id))?;
        Some(Host::Replica(*replica).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::{tenant_account, user_account};

    #[test]
    fn an_account_is_called_by_the_tenant_and_user_it_was_made_of() {
        let names = Names { tenants: 5, ..Names::default() };
        assert_eq!(names.account(tenant_account(3)), "tenant-3");
        assert_eq!(names.account(user_account(4, 17)), "tenant-4/user-17");
        assert_eq!(names.account(tenant_account(5)), "visitor");
    }

    #[test]
    fn ids_in_a_text_are_replaced_and_everything_else_stays() {
        let mut names = Names { tenants: 5, ..Names::default() };
        names.endpoints.insert((1, EndpointId { slot: 3, generation: 2 }), 9);
        let text = format!("{}: not ep3.2 (gone), ep9.9, epoch 3.", tenant_account(0));
        assert_eq!(names.named(1, &text), "tenant-0: not replica-9 (gone), ep9.9, epoch 3.");
    }
}
