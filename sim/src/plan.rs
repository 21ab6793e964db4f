//! A plan: everything that is going to happen to a simulated world, as plain data.
//!
//! **The problem.** A failure that only a seed reproduces is lost with the next change of the generator. So a seed is
//! first drawn out into a plan (topology, configuration, timed asks, timed faults), and only a plan is run. It can be
//! saved, edited, shrunk and committed, and reads the same years later. **Rejected:** drawing while running, which is
//! shorter, and where leaving one fault out shifts every draw after it.
//!
//! Chance that is left to the run (jitter, the order of equal instants) comes from streams of the plan's seed, one for
//! each host, so that a host more or less does not move another's.

mod draw;
mod faults;
mod knobs;
pub(crate) mod shape;
mod topology;

use std::time::Duration;

use control::plane::Config;
use serde::{Deserialize, Serialize};

pub use draw::draw;
pub(crate) use draw::trouble_for;
pub use faults::{Fault, FaultKind, RegistryLie, ReplicaIllness, StoreTrouble};
pub use knobs::{tenant_account, user_account};
pub use topology::{DiskPlan, GatewayPlan, Host, LinkPlan, ReplicaPlan, Tells, Topology};

/// The layout of a saved plan. A plan of another version is refused.
pub const PLAN_VERSION: u32 = 1;

/// All that happens to a world.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    /// [`PLAN_VERSION`].
    pub version: u32,
    /// One line on what it is there for.
    pub what: String,
    /// What it was drawn from, and the root of every stream of chance in the run.
    pub seed: u64,
    /// How long the world lasts, in simulated milliseconds.
    pub duration_ms: u64,
    /// When the faults that end have ended and no ask of the workload comes any more. From here on the core must drain
    /// and serve.
    pub heal_at_ms: u64,
    /// Who is there.
    pub topology: Topology,
    /// What every gateway is configured with at the beginning.
    pub config: Config,
    /// What clients want, by time.
    pub asks: Vec<Ask>,
    /// What goes wrong, by time.
    pub faults: Vec<Fault>,
}

/// One thing a client wants.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// When, in simulated microseconds since the world's start.
    pub at_us: u64,
    /// Which gateway it goes to first.
    pub gateway: u32,
    /// Whose it is.
    pub tenant: u32,
    /// Which user of the tenant, where one is named.
    pub user: Option<u32>,
    /// Of which model.
    pub model: u32,
    /// In which session, where it names one.
    pub session: Option<u32>,
    /// Whether the session is stored, and so has turn order.
    pub stored: bool,
    /// Its idempotency key. The same number is the same key with the same body.
    pub key: Option<u32>,
    /// Prompt tokens, as the gateway estimates them.
    pub prompt: u64,
    /// Prompt tokens, as the replica counts them.
    pub prompt_true: u64,
    /// Completion tokens the model would write if nobody stopped it.
    pub output: u64,
    /// The most it may write, where the client says so.
    pub output_max: Option<u64>,
    /// Whether it streams.
    pub stream: bool,
    /// The client's own deadline, in milliseconds, told to the gateway.
    pub patience_ms: Option<u64>,
    /// When the client hangs up, in milliseconds after asking, told to nobody.
    pub leaves_ms: Option<u64>,
    /// How often the client asks again after a failure or silence, with the same key.
    pub again: u32,
    /// Whether the session has a name of its own.
    #[serde(default)]
    pub named: bool,
    /// Whether the client asks another gateway the next time, though it has a key.
    #[serde(default)]
    pub roams: bool,
    /// Whether every replica refuses it as the client's own mistake (400).
    #[serde(default)]
    pub bad: bool,
}

impl Plan {
    /// How long the world lasts.
    #[must_use]
    pub const fn duration(&self) -> Duration {
        Duration::from_millis(self.duration_ms)
    }

    /// The name of a model.
    #[must_use]
    pub fn model_name(model: u32) -> String {
        format!("m{model}")
    }

    /// Reads a saved plan.
    ///
    /// # Errors
    /// In words that say what to do.
    pub fn parse(text: &str) -> Result<Self, String> {
        let plan: Self = serde_json::from_str(text).map_err(|why| format!("not a plan: {why}"))?;
        if plan.version != PLAN_VERSION {
            let found = plan.version;
            return Err(format!("a plan of version {found}; this simulator reads {PLAN_VERSION}"));
        }
        plan.check()?;
        Ok(plan)
    }

    /// The plan as it is saved: one ask and one fault on each line, so that a person can edit it and a diff is short.
    ///
    /// # Panics
    /// Never: a plan is plain data.
    #[must_use]
    pub fn to_text(&self) -> String {
        let line = |value: serde_json::Result<String>| value.expect("a plan is plain data");
        let rows = |rows: Vec<String>| match rows.is_empty() {
            true => "[]".to_owned(),
            false => format!("[\n    {}\n  ]", rows.join(",\n    ")),
        };
        let asks = self.asks.iter().map(|ask| line(serde_json::to_string(ask))).collect();
        let faults = self.faults.iter().map(|fault| line(serde_json::to_string(fault))).collect();
        format!(
            "{{\n  \"version\": {},\n  \"what\": {},\n  \"seed\": {},\n  \"duration_ms\": {},\n  \
             \"heal_at_ms\": {},\n  \"topology\": {},\n  \"config\": {},\n  \"faults\": {},\n  \
             \"asks\": {}\n}}\n",
            self.version,
            line(serde_json::to_string(&self.what)),
            self.seed,
            self.duration_ms,
            self.heal_at_ms,
            line(serde_json::to_string(&self.topology)),
            line(serde_json::to_string(&self.config)),
            rows(faults),
            rows(asks),
        )
    }

    /// What a hand-written plan may get wrong.
    fn check(&self) -> Result<(), String> {
        let (gateways, replicas) = (self.topology.gateways.len(), self.topology.replicas.len());
        if !(1..=50).contains(&gateways) || replicas > 500 {
            return Err(format!("{gateways} gateways and {replicas} replicas: 1 to 50, 0 to 500"));
        }
        if self.heal_at_ms > self.duration_ms {
            return Err("heal_at_ms lies after duration_ms".to_owned());
        }
        if let Some(ask) = self.asks.iter().find(|ask| ask.gateway as usize >= gateways) {
            return Err(format!("an ask goes to gateway {}, which is not there", ask.gateway));
        }
        let host = |host: &Host| match host {
            Host::Gateway(index) => (*index as usize) < gateways,
            Host::Replica(index) => (*index as usize) < replicas,
            Host::Store | Host::Registry | Host::Clients => true,
        };
        for fault in &self.faults {
            if let Some(missing) = fault.kind.hosts().iter().find(|named| !host(named)) {
                return Err(format!("a fault names {missing}, which is not there"));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_is_always_the_same_plan() {
        assert_eq!(draw(7), draw(7));
        assert_ne!(draw(7), draw(8));
    }

    #[test]
    fn a_saved_plan_reads_back_as_it_was() {
        for seed in 0..40 {
            let plan = draw(seed);
            assert_eq!(Plan::parse(&plan.to_text()).as_ref(), Ok(&plan), "seed {seed}");
        }
    }

    #[test]
    fn a_plan_that_names_who_is_not_there_is_refused_with_the_reason() {
        let mut plan = draw(1);
        plan.asks[0].gateway = 99;
        let why = Plan::parse(&plan.to_text()).expect_err("gateway 99 is not there");
        assert!(why.contains("gateway 99"), "{why}");
    }
}
