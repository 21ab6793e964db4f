//! What goes on, in figures and in words: the plane's observations as metrics, and the state of each part.

mod series;
mod sharing;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use control::attempt::NoHedge;
use control::breaker::{Phase, StateView, Transition};
use control::outcome::AttemptEnd;
use control::plane::{ControlPlane, Observation, Outcome, Race, View};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;
use series::Series;
use sharing::Sharing;

use crate::auth;
use crate::driver::{Driver, Observer, Progress};
use crate::exchange::Checks;
use crate::front::exposition;
use crate::upstream::{Failed, WorkerLoad};

/// Twice as long as between two questions of the discovery.
const TOLD_MAX: Duration = Duration::from_secs(60);

/// Counts and remembers what the plane and its hands noticed.
pub struct Health {
    registry: Registry,
    series: Series,
    retries: Counter,
    hedges: Family<Hedged, Counter>,
    bindings: Counter,
    migrations: Counter,
    outcomes: Family<Concluded, Counter>,
    lost: Counter,
    stale: Counter,
    steps: Counter,
    first_token: Histogram,
    in_flight: Family<Instance, Gauge>,
    breaker_open: Family<Instance, Gauge>,
    worker_running: Family<Instance, Gauge>,
    worker_queued: Family<Instance, Gauge>,
    worker_kv: Family<Instance, Gauge<f64, AtomicU64>>,
    reported_others: Family<Instance, Gauge>,
    reports_refused: Family<Instance, Counter>,
    registry_stale: Family<Listing, Gauge>,
    reservations: Gauge,
    requests: Gauge,
    sessions: Gauge,
    written: Gauge,
    replayed: Gauge,
    store_asks: Family<Asked, Counter>,
    shared_asks: Family<Shared, Counter>,
    notes_dropped: Family<Dropped, Counter>,
    projections_dropped: Counter,
    quota_late: Counter,
    quota_degraded: Gauge,
    auth: auth::Meters,
    shared_degraded: Gauge,
    sharing: Mutex<Sharing>,
    notes: Mutex<Notes>,
}

#[derive(Default)]
struct Notes {
    /// Parts that said something about themselves: configuration, sources, journal.
    parts: BTreeMap<String, (bool, String)>,
    /// The last thing that went wrong at an endpoint, in its own words.
    endpoints: BTreeMap<String, String>,
    shadow: Option<Arc<Progress>>,
    draining: bool,
    started: bool,
    /// Parts without which nobody can be served, and that cannot do their work.
    unable: BTreeSet<&'static str>,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Hedged {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Concluded {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Asked {
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Shared {
    part: &'static str,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Dropped {
    part: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Listing {
    source: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Instance {
    instance: String,
}

impl Health {
    /// Nothing noticed yet; not ready.
    #[must_use]
    pub fn new() -> Arc<Self> {
        let mut health = Self {
            registry: Registry::default(),
            series: Series::default(),
            retries: Counter::default(),
            hedges: Family::default(),
            bindings: Counter::default(),
            migrations: Counter::default(),
            outcomes: Family::default(),
            lost: Counter::default(),
            stale: Counter::default(),
            steps: Counter::default(),
            // From 1 ms, doubling: the last bucket ends at half a minute.
            first_token: Histogram::new(exponential_buckets(0.001, 2.0, 16)),
            in_flight: Family::default(),
            breaker_open: Family::default(),
            worker_running: Family::default(),
            worker_queued: Family::default(),
            worker_kv: Family::default(),
            reported_others: Family::default(),
            reports_refused: Family::default(),
            registry_stale: Family::default(),
            reservations: Gauge::default(),
            requests: Gauge::default(),
            sessions: Gauge::default(),
            written: Gauge::default(),
            replayed: Gauge::default(),
            store_asks: Family::default(),
            shared_asks: Family::default(),
            notes_dropped: Family::default(),
            projections_dropped: Counter::default(),
            quota_late: Counter::default(),
            quota_degraded: Gauge::default(),
            auth: auth::Meters::default(),
            shared_degraded: Gauge::default(),
            sharing: Mutex::default(),
            notes: Mutex::default(),
        };
        health.register();
        Arc::new(health)
    }

    fn register(&mut self) {
        let r = &mut self.registry;
        self.auth.register(r);
        let mut counter = |name: &str, help: &str, metric: &Counter| {
            r.register(name, help, metric.clone());
        };
        counter("pointsman_retries", "Attempts after a request's first", &self.retries);
        counter("pointsman_affinity_bindings", "Sessions that found a home", &self.bindings);
        counter("pointsman_affinity_migrations", "Sessions that moved", &self.migrations);
        counter("pointsman_requests_lost", "Requests a stopped process left", &self.lost);
        counter("pointsman_stale_inputs", "Inputs that came too late", &self.stale);
        let help = "Requests whose tokens users' sums of the day miss";
        counter("pointsman_token_projections_dropped", help, &self.projections_dropped);
        let help = "Times the shared quota store kept a request waiting that could do without it";
        counter("pointsman_quota_late", help, &self.quota_late);
        counter("pointsman_observations", "Things the plane noticed", &self.steps);
        self.series.register(r);
        let help = "Second attempts beside a silent one, by what came of them";
        r.register("pointsman_hedges", help, self.hedges.clone());
        r.register("pointsman_outcomes", "Requests by their end", self.outcomes.clone());
        let help = "From dispatch to first token";
        r.register_with_unit(
            "pointsman_first_token",
            help,
            prometheus_client::registry::Unit::Seconds,
            self.first_token.clone(),
        );
        r.register("pointsman_in_flight_attempts", "Attempts running", self.in_flight.clone());
        r.register("pointsman_breaker_open", "1 while ejected", self.breaker_open.clone());
        let help = "Requests that a worker says it runs";
        r.register("pointsman_worker_running", help, self.worker_running.clone());
        let help = "Requests that a worker says it lets wait";
        r.register("pointsman_worker_queued", help, self.worker_queued.clone());
        let help = "Use of a worker's key-value cache, 0 to 1";
        r.register("pointsman_worker_kv_used_ratio", help, self.worker_kv.clone());
        let help = "Work of others that picks count at an endpoint, by its own report";
        r.register("pointsman_endpoint_reported_others", help, self.reported_others.clone());
        let help = "Reports of load that cannot be true";
        r.register("pointsman_endpoint_reported_refused", help, self.reports_refused.clone());
        let help = "How old what a registry said last is, in seconds; 0 while it is heard";
        r.register("pointsman_registry_stale_seconds", help, self.registry_stale.clone());
        let help = "Asks to the shared quota store by what came of them";
        r.register("pointsman_quota_store_asks", help, self.store_asks.clone());
        let help = "Asks for rates, keys and homes that gateways share, by what came of them";
        r.register("pointsman_shared_asks", help, self.shared_asks.clone());
        let help = "What the shared store was never told or asked";
        r.register("pointsman_shared_dropped", help, self.notes_dropped.clone());
        let mut gauge = |name: &str, help: &str, metric: &Gauge| {
            r.register(name, help, metric.clone());
        };
        let help = "1 while only what was drawn ahead is spent";
        gauge("pointsman_quota_degraded", help, &self.quota_degraded);
        let help = "1 while rates, keys or homes are this gateway's own";
        gauge("pointsman_shared_degraded", help, &self.shared_degraded);
        gauge("pointsman_reservations", "Quota reservations held", &self.reservations);
        gauge("pointsman_plane_requests", "Requests the plane holds", &self.requests);
        gauge("pointsman_sessions", "Sessions with a home", &self.sessions);
        gauge("pointsman_journal_written_records", "Journal records written", &self.written);
        gauge("pointsman_journal_replayed_records", "Records reproduced", &self.replayed);
    }

    fn sharing_degraded(&self, degraded: bool) {
        self.shared_degraded.set(i64::from(degraded));
        let state = if degraded { "by this gateway alone" } else { "with the others" };
        let mut sharing = self.sharing.lock().unwrap_or_else(PoisonError::into_inner);
        if sharing.is_news(degraded) {
            tracing::warn!("rates, keys and sessions' homes are kept {state} from here on");
        }
    }

    /// A part says how it is. `None` where there is nothing to say any more.
    pub fn note(&self, part: &str, state: Option<(bool, String)>) {
        let mut notes = self.notes();
        match state {
            Some(state) => drop(notes.parts.insert(part.to_owned(), state)),
            None => drop(notes.parts.remove(part)),
        }
    }

    /// A part without which nobody can be served is able to do its work, or not.
    pub(crate) fn set_able(&self, part: &'static str, able: bool) {
        let mut notes = self.notes();
        match able {
            true => drop(notes.unable.remove(part)),
            false => drop(notes.unable.insert(part)),
        }
    }

    /// Figures of who asks for keys.
    pub(crate) fn auth(&self) -> &auth::Meters {
        &self.auth
    }

    /// What a registry said last is so old; nothing while it is heard.
    pub(crate) fn registry_stale(&self, source: &str, age: Duration) {
        let seconds = i64::try_from(age.as_secs()).unwrap_or(i64::MAX);
        self.registry_stale.get_or_create(&Listing { source: source.to_owned() }).set(seconds);
    }

    /// The shared quota store was asked, and this came of it.
    pub(crate) fn store_asked(&self, outcome: &'static str) {
        self.store_asks.get_or_create(&Asked { outcome }).inc();
    }

    /// What gateways share beside the ledger was asked for, and this came of it.
    pub(crate) fn shared_asked(&self, part: &'static str, outcome: &'static str) {
        self.shared_asks.get_or_create(&Shared { part, outcome }).inc();
    }

    /// So many were given up.
    pub(crate) fn notes_dropped(&self, part: &'static str, count: u64) {
        self.notes_dropped.get_or_create(&Dropped { part }).inc_by(count);
    }

    /// Users' sums of the day miss what so many requests spent.
    pub(crate) fn projections_dropped(&self, count: u64) {
        self.projections_dropped.inc_by(count);
    }

    /// An attempt failed, in upstream's words: kept for `/health`, and logged where an operator must act.
    pub fn attempt_failed(&self, endpoint: &str, failed: &Failed) {
        let text = format!("{}: {}", failed.failure, failed.detail);
        let before = self.notes().endpoints.insert(endpoint.to_owned(), text.clone());
        let is_fault = matches!(failed.failure.verdict(), control::outcome::Verdict::Fault(_));
        if is_fault && before.as_ref() != Some(&text) {
            tracing::warn!(instance_id = endpoint, "an endpoint needs its operator: {text}");
        }
    }

    /// What is known of an endpoint's discovery; `None` where there is nothing to say.
    pub(crate) fn discovery(&self, endpoint: &str, state: Option<(bool, String)>) {
        self.note(&discovery_part(endpoint), state);
    }

    /// An endpoint has left: nothing is said of it any more, and nothing counted.
    pub(crate) fn forget(&self, endpoint: &str) {
        let mut notes = self.notes();
        notes.parts.remove(&discovery_part(endpoint));
        notes.endpoints.remove(endpoint);
        drop(notes);
        self.series.forget(endpoint);
    }

    /// What workers said last of their load, by endpoint. What is older than a minute says nothing any more.
    pub fn workers_told<'a>(&self, told: impl Iterator<Item = (&'a str, WorkerLoad)>) {
        self.worker_running.clear();
        self.worker_queued.clear();
        self.worker_kv.clear();
        for (name, load) in told.filter(|(_, load)| load.at.elapsed() <= TOLD_MAX) {
            let instance = Instance { instance: name.to_owned() };
            self.worker_running.get_or_create(&instance).set(i64::from(load.running));
            self.worker_queued.get_or_create(&instance).set(i64::from(load.queued));
            if let Some(used) = load.kv_used_permille {
                self.worker_kv.get_or_create(&instance).set(f64::from(used) / 1_000.0);
            }
        }
    }

    /// How often each endpoint reported a load that cannot be.
    pub fn workers_lied<'a>(&self, lied: impl Iterator<Item = (&'a str, u64)>) {
        self.reports_refused.clear();
        for (name, count) in lied.filter(|(_, count)| *count > 0) {
            let instance = Instance { instance: name.to_owned() };
            self.reports_refused.get_or_create(&instance).inc_by(count);
        }
    }

    /// The process serves (or, `false`, drains).
    pub fn set_serving(&self, serving: bool) {
        let mut notes = self.notes();
        notes.started |= serving;
        notes.draining = !serving;
    }

    /// Whether the process takes no new requests.
    pub fn is_draining(&self) -> bool {
        self.notes().draining
    }

    /// The shadow plane to report on.
    pub fn follow(&self, shadow: Arc<Progress>) {
        self.notes().shadow = Some(shadow);
    }

    /// How far the shadow plane is, where there is one.
    pub fn shadow(&self) -> Option<Arc<Progress>> {
        self.notes().shadow.clone()
    }

    fn notes(&self) -> std::sync::MutexGuard<'_, Notes> {
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The state of each part.
    pub fn checks(&self, driver: &Driver) -> Checks {
        let view = driver.look(ControlPlane::view);
        let notes = self.notes();
        let mut parts: Vec<_> = notes
            .parts
            .iter()
            .map(|(name, (ok, text))| (name.clone(), *ok, text.clone()))
            .collect();
        let journal = driver.journal().admits();
        let text = journal.as_ref().map_or_else(ToString::to_string, |()| "writing".to_owned());
        parts.push(("journal".into(), journal.is_ok(), text));
        if let Some(shadow) = &notes.shadow {
            let text = match shadow.diverged() {
                true => "a record did not replay: see the log".into(),
                false => format!("{} records reproduced", shadow.position()),
            };
            parts.push(("determinism".into(), !shadow.diverged(), text));
        }
        let mut able = 0;
        for endpoint in &view.endpoints {
            let (ok, text) = endpoint_words(endpoint, &view, notes.endpoints.get(&*endpoint.name));
            able += usize::from(ok);
            parts.push((format!("endpoint {}", endpoint.name), ok, text));
        }
        if able == 0 {
            parts.push(("endpoints".into(), false, "nobody can be asked".into()));
        }
        let ready = notes.started
            && !notes.draining
            && notes.unable.is_empty()
            && journal.is_ok()
            && able > 0;
        if notes.draining {
            parts.push(("process".into(), false, "draining".into()));
        }
        Checks { ready, parts }
    }

    /// The figures in the Prometheus text format.
    pub fn metrics(&self, driver: &Driver) -> String {
        let view = driver.look(ControlPlane::view);
        self.in_flight.clear();
        self.breaker_open.clear();
        self.reported_others.clear();
        for endpoint in &view.endpoints {
            let instance = Instance { instance: endpoint.name.to_string() };
            self.in_flight.get_or_create(&instance).set(i64::from(endpoint.in_flight));
            self.breaker_open.get_or_create(&instance).set(i64::from(endpoint.breaker.ejected()));
            self.reported_others.get_or_create(&instance).set(i64::from(endpoint.others));
        }
        self.reservations.set(view.reservations as i64);
        self.requests.set(view.requests as i64);
        self.sessions.set(view.sessions as i64);
        self.written.set(i64::try_from(driver.journal().written()).unwrap_or(i64::MAX));
        if let Some(shadow) = &self.notes().shadow {
            self.replayed.set(i64::try_from(shadow.position()).unwrap_or(i64::MAX));
        }
        exposition::text(&self.registry, "")
    }
}

impl Observer for Arc<Health> {
    fn observe(&self, plane: &ControlPlane, observation: &Observation) {
        self.steps.inc();
        let name = |id| plane.endpoint_name(id).unwrap_or("gone").to_owned();
        match observation {
            Observation::Ended { endpoint, end, .. } => {
                let outcome = match end {
                    AttemptEnd::Completed { .. } => "completed",
                    AttemptEnd::Failed { failure, .. } => failure.name(),
                    AttemptEnd::Cancelled { .. } => "cancelled",
                };
                self.series.attempted(name(*endpoint), outcome);
            }
            Observation::Retrying { .. } => drop(self.retries.inc()),
            Observation::Hedged { race, .. } => self.raced(*race),
            Observation::FirstToken { after, .. } => self.first_token.observe(after.as_secs_f64()),
            Observation::Breaker(moved) if moved.from != moved.to => {
                self.breaker_moved(name(moved.id), moved);
            }
            Observation::Bound { moved_from, .. } => match moved_from {
                None => drop(self.bindings.inc()),
                Some(_) => drop(self.migrations.inc()),
            },
            Observation::Finished { outcome, .. } => {
                let outcome = match outcome {
                    Outcome::Completed => "completed",
                    Outcome::Broken(_) => "broken",
                    Outcome::QuotaSpent(_) => "quota_spent",
                    Outcome::QuotaUnavailable { .. } => "quota_unavailable",
                    Outcome::Cancelled => "cancelled",
                };
                self.concluded(outcome);
            }
            Observation::Refused { .. } => self.concluded("refused"),
            Observation::Lost { .. } => drop(self.lost.inc()),
            Observation::Stale(_) => drop(self.stale.inc()),
            Observation::SourceRefused { source, why } => {
                tracing::warn!("endpoints from {source} were not taken: {why}");
            }
            Observation::ChargeLost { reservation, actual } => {
                let tokens = actual.tokens.0;
                tracing::error!(%reservation, tokens, "a charge was lost: the store never took it");
            }
            Observation::QuotaLate => drop(self.quota_late.inc()),
            Observation::QuotaDegraded(degraded) => {
                self.quota_degraded.set(i64::from(*degraded));
                let state = if *degraded { "only what was drawn ahead" } else { "from the store" };
                tracing::warn!("quota is spent {state} from here on");
            }
            Observation::SharedDegraded(degraded) => self.sharing_degraded(*degraded),
            Observation::EndpointRemoved { name, .. } => self.forget(name),
            Observation::Arrived { .. }
            | Observation::Consulted { .. }
            | Observation::ConsultLost { .. }
            | Observation::Adopted { .. }
            | Observation::Granted { .. }
            | Observation::Denied { .. }
            | Observation::Picked { .. }
            | Observation::Nobody { .. }
            | Observation::Accepted { .. }
            | Observation::GaveUp { .. }
            | Observation::Breaker(_)
            | Observation::EndpointAdded(_)
            | Observation::Configured { .. } => {}
        }
    }
}

impl Health {
    fn concluded(&self, outcome: &'static str) {
        self.outcomes.get_or_create(&Concluded { outcome }).inc();
    }

    /// A race that is begun is counted when it is over.
    fn raced(&self, race: Race) {
        let outcome = match race {
            Race::Begun { .. } => return,
            Race::Won { .. } => "won",
            Race::Lost { .. } => "lost",
            Race::Alone { .. } => "alone",
            Race::Stopped => "stopped",
            Race::NotBegun { why: NoHedge::AttemptsSpent } => "attempts_spent",
            Race::NotBegun { why: NoHedge::DeadlineTooNear } => "deadline_near",
            Race::NotBegun { why: NoHedge::Nobody } => "nobody",
            Race::NotBegun { why: NoHedge::ShareSpent } => "share_spent",
            Race::NotBegun { why: NoHedge::BudgetSpent } => "budget_spent",
        };
        self.hedges.get_or_create(&Hedged { outcome }).inc();
    }

    fn breaker_moved(&self, instance: String, moved: &Transition) {
        tracing::info!(
            instance_id = instance,
            "breaker {} -> {}: {}",
            moved.from,
            moved.to,
            moved.cause
        );
        let to = match moved.to {
            Phase::Closed => "closed",
            Phase::Open => "open",
            Phase::HalfOpen => "half_open",
        };
        self.series.moved(instance, to);
    }
}

fn discovery_part(endpoint: &str) -> String {
    format!("discovery {endpoint}")
}

/// How an endpoint is, for a reader who wonders why it gets no traffic.
fn endpoint_words(
    endpoint: &control::plane::EndpointView,
    view: &View,
    last: Option<&String>,
) -> (bool, String) {
    let StateView { phase, until, cause, .. } = endpoint.breaker;
    if endpoint.draining {
        return (false, "draining: it gets no new requests until `pointsman undrain`".into());
    }
    if phase == Phase::Closed {
        let stale =
            endpoint.stale_for.map(|age| format!(", its source silent for {}s", age.as_secs()));
        let others = (endpoint.others > 0).then(|| format!(", {} of others", endpoint.others));
        let (others, stale) = (others.unwrap_or_default(), stale.unwrap_or_default());
        return (true, format!("{} in flight{others}{stale}", endpoint.in_flight));
    }
    let mut text = format!("breaker {phase}");
    if let Some(until) = until {
        text.push_str(&format!(" for {}s more", until.since(view.now).as_secs()));
    }
    if let Some(cause) = cause {
        text.push_str(&format!(": {cause}"));
    }
    if let Some(last) = last {
        text.push_str(&format!(" (last: {last})"));
    }
    (false, text)
}
