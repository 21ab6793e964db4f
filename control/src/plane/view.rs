//! What `status` and `/health` show: a picture of the plane, taken under the driver's lock.

use alloc::boxed::Box;
use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::ControlPlane;
use crate::affinity::Binding;
use crate::breaker::StateView;
use crate::id::{EndpointId, SessionKey};
use crate::quota::{Audit, Quota};
use crate::time::{Instant, Wall};

/// The plane at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct View {
    /// Since the plane's first start.
    pub now: Instant,
    /// The wall clock, as last told.
    pub wall: Wall,
    /// Which life of the process.
    pub incarnation: u32,
    /// Version of the configuration in effect.
    pub config_version: u64,
    /// Requests under way.
    pub requests: usize,
    /// Reservations held, allotments included.
    pub reservations: usize,
    /// Sessions with a home.
    pub sessions: usize,
    /// Each endpoint, by name.
    pub endpoints: Vec<EndpointView>,
}

/// One endpoint at one moment.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct EndpointView {
    /// Its id.
    pub id: EndpointId,
    /// Its name.
    pub name: Box<str>,
    /// Public names of its models.
    pub models: Vec<Box<str>>,
    /// Its tier: lower is asked first.
    pub tier: u8,
    /// Its weight.
    pub weight: u32,
    /// Attempts that run there.
    pub in_flight: u32,
    /// Work that others gave it, by its own word and as far as that still counts.
    pub others: u32,
    /// Whether it gets no new picks.
    pub draining: bool,
    /// How long its source has been silent, where it is.
    pub stale_for: Option<Duration>,
    /// Its breaker.
    pub breaker: StateView,
}

impl ControlPlane {
    /// A picture of the plane.
    #[must_use]
    pub fn view(&self) -> View {
        let mut endpoints: Vec<_> = self.registry.iter().map(|e| self.view_endpoint(e)).collect();
        endpoints.sort_by(|a, b| a.name.cmp(&b.name));
        View {
            now: self.now,
            wall: self.wall,
            incarnation: self.incarnation,
            config_version: self.config.version,
            requests: self.requests.len(),
            reservations: self.quota.outstanding(),
            sessions: self.affinity.len(),
            endpoints,
        }
    }

    fn view_endpoint(&self, endpoint: &crate::registry::Endpoint) -> EndpointView {
        let spec = &endpoint.spec;
        EndpointView {
            id: endpoint.id,
            name: spec.name.clone(),
            models: spec.models.clone(),
            tier: spec.tier,
            weight: spec.weight,
            in_flight: self.balance.in_flight(endpoint.id),
            others: self.balance.others(endpoint.id),
            draining: endpoint.draining,
            stale_for: endpoint.stale_since.map(|since| self.now.since(since)),
            breaker: self.breakers.state(endpoint.id).expect("each endpoint has a breaker"),
        }
    }

    /// The highest version that a configuration or an answer of a source had: what is to be believed next needs a higher one.
    #[must_use]
    pub fn version_max(&self) -> u64 {
        self.config.version.max(self.registry.answer_version_max())
    }

    /// Where a session lives, unless that lapsed or its endpoint is gone.
    #[must_use]
    pub fn binding(&self, session: SessionKey) -> Option<Binding> {
        self.affinity.lookup(self.now, session)
    }

    /// The breaker of an endpoint that is registered.
    #[must_use]
    pub fn breaker(&self, id: EndpointId) -> Option<StateView> {
        self.breakers.state(id)
    }

    /// Every balance of the embedded ledger with the sums of its algebra, and what does not hold. Nothing where the
    /// ledger is in a shared store.
    #[must_use]
    pub fn audit(&self) -> Audit {
        self.quota.audit().unwrap_or_default()
    }

    /// The quota room as it stands.
    #[must_use]
    pub fn ledger(&self) -> &Quota {
        &self.quota
    }

    /// The name of an endpoint that is registered.
    #[must_use]
    pub fn endpoint_name(&self, id: EndpointId) -> Option<&str> {
        self.registry.endpoint(id).map(|endpoint| &*endpoint.spec.name)
    }

    /// The id of an endpoint that is registered.
    #[must_use]
    pub fn endpoint_id(&self, name: &str) -> Option<EndpointId> {
        self.registry.find(name)
    }

    /// The plane's clock: the instant of the latest step.
    #[must_use]
    pub fn now(&self) -> Instant {
        self.now
    }

    /// The wall clock, as last told.
    #[must_use]
    pub fn wall(&self) -> Wall {
        self.wall
    }

    /// Requests under way.
    #[must_use]
    pub fn requests(&self) -> usize {
        self.requests.len()
    }

    /// Which life of the process this is.
    #[must_use]
    pub fn incarnation(&self) -> u32 {
        self.incarnation
    }

    /// Version of the configuration in effect.
    #[must_use]
    pub fn config(&self) -> &super::Config {
        &self.config
    }
}
