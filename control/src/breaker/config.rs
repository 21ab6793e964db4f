//! The breaker's policy numbers.

use core::time::Duration;

use serde::{Deserialize, Serialize};

/// When to open, for how long, and how to come back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Config {
    /// Failures in a row that open. Zero is read as one.
    pub consecutive_failures: u32,
    /// Length of the sliding window; it slides in tenths. Changing it forgets the windows.
    pub window: Duration,
    /// Successes and failures the window must hold before its rate means anything.
    pub window_requests_min: u32,
    /// Share of failures in the window that opens.
    pub failure_percent: u32,
    /// The first ejection. Each that follows is twice as long.
    pub ejection_base: Duration,
    /// The first ejection for a fault that only an operator can mend.
    pub fault_ejection_base: Duration,
    /// No ejection is longer.
    pub ejection_max: Duration,
    /// Up to this share of an ejection is taken off at random, so that endpoints that fell together return apart.
    pub ejection_jitter_percent: u32,
    /// Each time an endpoint has stayed closed for so long, one doubling is forgotten.
    pub ejection_forget_after: Duration,
    /// At most this share of a pool is ejected (faults aside); one may always be.
    pub ejection_percent_max: u32,
    /// Requests that may be under way to a half-open endpoint. Read as at least 1 and at most 64.
    pub probes_max: u32,
    /// A probe that shows no life for so long has failed, unless its attempt was given longer (see
    /// [`begin_until`](super::Breakers::begin_until)).
    pub probe_timeout: Duration,
    /// Probes that must succeed to close. Zero is read as one.
    pub probes_to_close: u32,
    /// How long the share of a returned endpoint grows. Zero returns it at once.
    pub slow_start: Duration,
    /// The share it returns with, in thousandths.
    pub slow_start_floor_permille: u32,
    /// In how many steps it grows. Zero is read as one.
    pub slow_start_steps: u32,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            // One bad answer is chance, five in a row are not: at a failure rate of 1% that is one in 10^10.
            consecutive_failures: 5,
            // Long enough to hold 20 requests at one per second, short enough to forget a brief outage.
            window: Duration::from_secs(30),
            window_requests_min: 20,
            failure_percent: 50,
            // A process restarts in about 5 s; loading a model takes minutes.
            ejection_base: Duration::from_secs(5),
            // An operator needs at least a minute to read the cause, and every probe costs a caller a failover.
            fault_ejection_base: Duration::from_secs(60),
            // Nobody should wait more than 5 minutes for a replica that is back.
            ejection_max: Duration::from_secs(300),
            // Below one half, so that an ejection is always longer than the one before it.
            ejection_jitter_percent: 20,
            // Twice the window: an endpoint that fails again within it has not recovered.
            ejection_forget_after: Duration::from_secs(60),
            // A fifth of the pool keeps trying, in case the failures are ours.
            ejection_percent_max: 80,
            probes_max: 1,
            probe_timeout: Duration::from_secs(30),
            probes_to_close: 1,
            // A cold prefix cache and cold kernels: about ten seconds of requests warm them.
            slow_start: Duration::from_secs(10),
            slow_start_floor_permille: 100,
            // One step a second: finer steps move no request.
            slow_start_steps: 10,
        }
    }
}

impl Config {
    /// Probe slots of a half-open endpoint.
    pub(crate) fn probe_slots(&self) -> u32 {
        // 64 probes at once are no longer probes; also bounds the list of their deadlines.
        self.probes_max.clamp(1, 64)
    }

    /// Steps of slow start.
    pub(super) fn steps(&self) -> u32 {
        if self.slow_start.is_zero() { 1 } else { self.slow_start_steps.max(1) }
    }

    /// The share after `step` of `steps()` steps.
    pub(super) fn share_permille(&self, step: u32) -> u32 {
        let floor = u64::from(self.slow_start_floor_permille.clamp(1, 1_000));
        let (step, steps) = (u64::from(step.min(self.steps())), u64::from(self.steps()));
        u32::try_from(floor + (1_000 - floor) * step / steps).unwrap_or(1_000)
    }
}

/// How much of a pool is ejected, counted before the verdict that may eject one more.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct EjectionRoom {
    /// Endpoints in the pool.
    pub members: u32,
    /// Those of them that are open or half-open (see [`StateView::ejected`](super::StateView::ejected)).
    pub ejected: u32,
}

impl EjectionRoom {
    /// Whether one more may be ejected.
    #[must_use]
    pub fn admits(self, ejection_percent_max: u32) -> bool {
        let after = (u64::from(self.ejected) + 1) * 100;
        (self.ejected == 0 && !planted!(LoneNeverCooled))
            || after <= u64::from(self.members) * u64::from(ejection_percent_max)
    }
}
