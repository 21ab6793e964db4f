//! `routing`: how requests are placed, timed, tried again, and what makes an endpoint fall out.

use std::time::Duration;

use super::problem::ProblemKind;
use super::reader::Section;
use super::server::{MILLI, seconds};
use super::value::choices;

/// One replica's death fails at most what is in flight there: about this much, each worth a retry.
const RETRY_BURST: u32 = 100;

/// How requests are placed and tried.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Routing {
    /// No effect: a model goes to the providers that list it.
    pub default_provider: Option<String>,
    /// Attempts after the first.
    pub max_retries: u32,
    /// How endpoints are picked, for models that say nothing.
    pub load_balancer: LoadBalancer,
    /// Where `sticky` places a session that has no home.
    pub fallback: Fallback,
    /// At placement, no endpoint goes above this percentage of the mean work while another fits.
    pub bound_percent: u32,
    /// Timeouts, for models that say nothing.
    pub timeouts: Timeouts,
    /// Waits between attempts.
    pub backoff: Backoff,
    /// How many retries there may be in all.
    pub retry_budget: RetryBudget,
    /// When a second attempt is made beside one that is silent.
    pub hedge: Hedge,
    /// When an endpoint is ejected, and how it returns.
    pub breaker: Breaker,
    /// Sessions' homes.
    pub affinity: Affinity,
}

/// How an endpoint is picked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoadBalancer {
    /// A session's home, else the least loaded, under the bound.
    Auto,
    /// In turn, smoothly, by weight.
    RoundRobin,
    /// The fewest in flight for its weight.
    LeastLoad,
    /// The better of two drawn.
    P2c,
    /// Weighted rendezvous on the session, under the bound.
    Sticky,
}

choices!(
    LoadBalancer,
    Auto = "auto",
    RoundRobin = "round_robin" | "weighted_round_robin",
    LeastLoad = "least_load",
    P2c = "p2c",
    Sticky = "sticky",
);

/// Where a session without a home is placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fallback {
    /// Where weighted rendezvous says: the same on every gateway, without shared state.
    Rendezvous,
    /// On the next in turn, and remembered.
    RoundRobin,
}

choices!(Fallback, Rendezvous = "rendezvous", RoundRobin = "round_robin");

/// How long each phase of a request may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until a connection stands.
    pub connect: Duration,
    /// From dispatch to the first token.
    pub first_token: Duration,
    /// From one token to the next.
    pub between_tokens: Duration,
    /// The whole request, every attempt included.
    pub request: Duration,
}

/// Exponential, with jitter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Backoff {
    /// Before the first retry, at most.
    pub base: Duration,
    /// Before any retry, at most.
    pub max: Duration,
}

/// Retries are paid from what requests deposit, so that they cannot multiply an outage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RetryBudget {
    /// Retries per hundred requests.
    pub percent: u32,
    /// Retries a second that are allowed in any case.
    pub floor_per_second: u32,
    /// Retries that there are at the start, and that can be saved up.
    pub burst: u32,
}

/// A second attempt beside one that has brought no token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hedge {
    /// Made after so long; zero is never. For models that say nothing.
    pub after: Duration,
    /// The most hedges per hundred requests that may be hedged.
    pub share_percent: u32,
}

/// When an endpoint is ejected, and how it returns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Breaker {
    /// So many failures in a row.
    pub consecutive_failures: u32,
    /// Over this time, rates are taken.
    pub window: Duration,
    /// From so many outcomes within it on.
    pub window_requests_min: u32,
    /// At this rate of failures.
    pub failure_percent: u32,
    /// The first ejection's length; each next one is longer.
    pub ejection_base: Duration,
    /// The longest ejection.
    pub ejection_max: Duration,
    /// The share of a pool that may be ejected at once.
    pub ejected_percent_max: u32,
    /// Probes at a time while half open.
    pub probes_max: u32,
    /// A probe without an outcome for so long failed.
    pub probe_timeout: Duration,
    /// Below this share of eligible endpoints, all are.
    pub panic_percent: u32,
    /// Over this time a returned endpoint grows to its full weight.
    pub slow_start: Duration,
}

/// Sessions' homes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Affinity {
    /// A home is forgotten so long after its last use.
    pub ttl: Duration,
    /// So many are held.
    pub sessions_max: u32,
}

const DAY: Duration = seconds(86_400);

/// Zero is never.
pub(super) const HEDGE_AFTER: std::ops::RangeInclusive<Duration> = seconds(0)..=DAY;

impl Routing {
    pub(super) fn read(section: &Section<'_>) -> Self {
        Self {
            default_provider: read_default_provider(section),
            // Three attempts in all.
            max_retries: section.between("max_retries", 2, 0..=10),
            timeouts: read_timeouts(section),
            load_balancer: section.get("load_balancer", LoadBalancer::Auto),
            fallback: section.get("fallback", Fallback::Rendezvous),
            bound_percent: section.between("bound_percent", 125, 101..=1_000),
            backoff: section.section("backoff", Backoff::read),
            retry_budget: section.section("retry_budget", |budget| RetryBudget {
                // One upstream request in eleven at most is a retry, over time.
                percent: budget.between("percent", 10, 0..=100),
                floor_per_second: budget.between("floor_per_second", 10, 0..=10_000),
                burst: RETRY_BURST,
            }),
            hedge: section.section("hedge", |hedge| Hedge {
                // Off: how long a first token may take, only the operator knows.
                after: hedge.between("after", seconds(0), HEDGE_AFTER),
                // What is slower than the 95th percentile.
                share_percent: hedge.between("share_percent", 5, 0..=100),
            }),
            breaker: section.section("breaker", Breaker::read),
            affinity: section.section("affinity", |affinity| Affinity {
                // As long as engines keep a prefix that nobody asks for.
                ttl: affinity.between("ttl", seconds(3_600), seconds(1)..=DAY * 30),
                // About 100 bytes each.
                sessions_max: affinity.between("sessions_max", 100_000, 1..=10_000_000),
            }),
        }
    }
}

/// Accepted for the sake of files that have it: a model goes to whoever lists it, so nobody has to be the default.
fn read_default_provider(section: &Section<'_>) -> Option<String> {
    section.warn_idle("default_provider", "a model goes to the providers that list it");
    section.maybe("default_provider", "none")
}

/// `routing.timeout` is the older name of `routing.timeouts.request`; given both, they must agree.
fn read_timeouts(section: &Section<'_>) -> Timeouts {
    let whole = section.maybe_between("timeout", "`routing.timeouts.request`", MILLI..=DAY);
    let mut timeouts = section.section("timeouts", |timeouts| {
        let read = Timeouts {
            connect: timeouts.between("connect", seconds(2), MILLI..=DAY),
            // A prompt of 100,000 tokens takes half of it on one busy accelerator.
            first_token: timeouts.between("first_token", seconds(60), MILLI..=DAY),
            between_tokens: timeouts.between("between_tokens", seconds(30), MILLI..=DAY),
            request: timeouts.between("request", whole.unwrap_or(seconds(600)), MILLI..=DAY),
        };
        if timeouts.gives("request") && whole.is_some_and(|whole| whole != read.request) {
            let other = "routing.timeout".to_owned();
            timeouts.problem("request", ProblemKind::Contradicts { other });
        }
        read
    });
    timeouts.request = whole.unwrap_or(timeouts.request);
    timeouts
}

impl Timeouts {
    /// A model's own, over these.
    pub(super) fn read_over(&self, section: &Section<'_>) -> Self {
        let read = |key, general| section.maybe_between(key, general, MILLI..=DAY);
        Self {
            connect: read("connect", "`routing.timeouts.connect`").unwrap_or(self.connect),
            first_token: read("first_token", "`routing.timeouts.first_token`")
                .unwrap_or(self.first_token),
            between_tokens: read("between_tokens", "`routing.timeouts.between_tokens`")
                .unwrap_or(self.between_tokens),
            request: read("request", "`routing.timeouts.request`").unwrap_or(self.request),
        }
    }
}

impl Backoff {
    fn read(section: &Section<'_>) -> Self {
        let read = Self {
            base: section.between("base", Duration::from_millis(50), MILLI..=seconds(60)),
            max: section.between("max", seconds(2), MILLI..=seconds(600)),
        };
        if read.max < read.base {
            let reason = "must not be less than routing.backoff.base".to_owned();
            section.problem("max", ProblemKind::Invalid(reason));
        }
        read
    }
}

impl Breaker {
    fn read(section: &Section<'_>) -> Self {
        let read = Self {
            consecutive_failures: section.between("consecutive_failures", 5, 1..=1_000),
            window: section.between("window", seconds(30), seconds(1)..=seconds(3_600)),
            // Below it, one failure more or less is chance.
            window_requests_min: section.between("window_requests_min", 20, 1..=100_000),
            failure_percent: section.between("failure_percent", 50, 1..=100),
            ejection_base: section.between("ejection_base", seconds(5), MILLI..=DAY),
            ejection_max: section.between("ejection_max", seconds(300), MILLI..=DAY),
            ejected_percent_max: section.between("ejected_percent_max", 80, 0..=100),
            probes_max: section.between("probes_max", 1, 1..=100),
            probe_timeout: section.between("probe_timeout", seconds(60), MILLI..=DAY),
            // Low: an inference request to a dead replica costs seconds, and one live replica of nine still helps.
            panic_percent: section.between("panic_percent", 10, 0..=100),
            slow_start: section.between("slow_start", seconds(10), seconds(0)..=DAY),
        };
        if read.ejection_max < read.ejection_base {
            let reason = "must not be less than routing.breaker.ejection_base".to_owned();
            section.problem("ejection_max", ProblemKind::Invalid(reason));
        }
        read
    }
}
