//! The breaker of one endpoint.

use alloc::vec::Vec;
use core::time::Duration;

use serde::{Deserialize, Serialize};

use super::config::{Config, EjectionRoom};
use super::view::{Admission, Cause, Phase, StateView, Ticket};
use super::window::Window;
use crate::outcome::Verdict;
use crate::time::{Instant, saturating_nanos};

#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Breaker {
    state: State,
    /// This stay in this state.
    pub(super) generation: u64,
    /// When this stay began.
    pub(super) since: Instant,
    /// Doublings of the next ejection.
    ejections: u32,
    withheld: u64,
    /// Where it stands among the timers.
    pub(super) due: Option<Instant>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
enum State {
    Closed {
        consecutive: u32,
        window: Window,
        /// Steps of slow start behind it; `None` at full share.
        step: Option<u32>,
    },
    Open {
        until: Instant,
        cause: Cause,
    },
    HalfOpen {
        cause: Cause,
        slots: u32,
        succeeded: u32,
        serial: u32,
        probes: Vec<Probe>,
    },
}

#[derive(Clone, Copy, Debug, Serialize, Deserialize)]
struct Probe {
    serial: u32,
    deadline: Instant,
}

/// What must happen to a breaker next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    Eject(Cause),
    HalfOpen,
    Close,
    MoreShare,
    Reset,
}

impl Breaker {
    pub(super) fn new(generation: u64) -> Self {
        let state = State::Closed { consecutive: 0, window: Window::default(), step: None };
        Self { state, generation, since: Instant::ZERO, ejections: 0, withheld: 0, due: None }
    }

    pub(super) fn phase(&self) -> Phase {
        match self.state {
            State::Closed { .. } => Phase::Closed,
            State::Open { .. } => Phase::Open,
            State::HalfOpen { .. } => Phase::HalfOpen,
        }
    }

    pub(super) fn admission(&self, now: Instant, config: &Config) -> Admission {
        match &self.state {
            State::Closed { step, .. } => {
                Admission::Allowed { share_permille: share(*step, config) }
            }
            // A timer that fires late leaves a deadline in the past: look again now.
            State::Open { until, cause } => {
                Admission::Refused { until: now.max(*until), cause: *cause }
            }
            State::HalfOpen { cause, slots, probes, .. } => match first_deadline(probes) {
                Some(deadline) if probes.len() >= *slots as usize && !planted!(HalfOpenFloods) => {
                    Admission::Refused { until: now.max(deadline), cause: *cause }
                }
                Some(_) | None => Admission::Allowed { share_permille: 1_000 },
            },
        }
    }

    pub(super) fn begin(&mut self, deadline: Instant) -> Ticket {
        let plain = Ticket { generation: self.generation, probe: false, serial: 0 };
        match &mut self.state {
            State::HalfOpen { slots, serial, probes, .. } if probes.len() < *slots as usize => {
                *serial = serial.wrapping_add(1);
                probes.push(Probe { serial: *serial, deadline });
                Ticket { probe: true, serial: *serial, ..plain }
            }
            State::HalfOpen { .. } | State::Open { .. } | State::Closed { .. } => plain,
        }
    }

    /// Renews a probe's deadline. False where the ticket holds no slot.
    pub(super) fn renew(&mut self, ticket: Ticket, deadline: Instant) -> bool {
        let State::HalfOpen { probes, .. } = &mut self.state else { return false };
        if ticket.generation != self.generation || !ticket.probe {
            return false;
        }
        let Some(probe) = probes.iter_mut().find(|probe| probe.serial == ticket.serial) else {
            return false;
        };
        probe.deadline = probe.deadline.max(deadline);
        true
    }

    /// Takes a verdict in and says what must follow.
    pub(super) fn judge(
        &mut self,
        now: Instant,
        ticket: Ticket,
        verdict: Verdict,
        room: EjectionRoom,
        config: &Config,
    ) -> Option<Step> {
        if ticket.generation != self.generation {
            return None;
        }
        if planted!(ProbeSlotLeaked) && matches!(verdict, Verdict::Neutral | Verdict::Backpressure)
        {
            self.renew(ticket, now + core::time::Duration::from_secs(86_400));
            return None;
        }
        let answered = self.take_probe(ticket);
        match verdict {
            Verdict::Backpressure | Verdict::Neutral => None,
            Verdict::Fault(fault) => self.judge_fault(Cause::Fault(fault)),
            Verdict::Success => self.judge_success(now, answered, config),
            Verdict::Failure => self.judge_failure(now, answered, room, config),
        }
    }

    fn judge_fault(&self, fault: Cause) -> Option<Step> {
        // An endpoint that is out for a fault stays out as long as it was told: asking it in a panic prolongs nothing.
        let known = matches!(self.state, State::Open { cause: Cause::Fault(_), .. });
        (!known).then_some(Step::Eject(fault))
    }

    fn judge_success(&mut self, now: Instant, probe: bool, config: &Config) -> Option<Step> {
        match &mut self.state {
            State::Closed { consecutive, window, .. } => {
                *consecutive = 0;
                window.insert(now, config.window, true);
                None
            }
            State::Open { .. } => None,
            State::HalfOpen { succeeded, .. } if probe => {
                *succeeded = succeeded.saturating_add(1);
                (*succeeded >= config.probes_to_close.max(1)).then_some(Step::Close)
            }
            State::HalfOpen { .. } => None,
        }
    }

    fn judge_failure(
        &mut self,
        now: Instant,
        probe: bool,
        room: EjectionRoom,
        config: &Config,
    ) -> Option<Step> {
        match &mut self.state {
            State::Closed { consecutive, window, .. } => {
                *consecutive = consecutive.saturating_add(1);
                window.insert(now, config.window, false);
                let cause = trip(*consecutive, window.counts(now, config.window), config)?;
                if room.admits(config.ejection_percent_max) {
                    return Some(Step::Eject(cause));
                }
                // The counts stay: the next failure with room opens.
                self.withheld = self.withheld.saturating_add(1);
                None
            }
            State::Open { .. } => None,
            State::HalfOpen { .. } => probe.then_some(Step::Eject(Cause::ProbeFailed)),
        }
    }

    /// Frees the slot a ticket holds. False where it holds none.
    fn take_probe(&mut self, ticket: Ticket) -> bool {
        let State::HalfOpen { probes, .. } = &mut self.state else { return false };
        let before = probes.len();
        probes.retain(|probe| !(ticket.probe && probe.serial == ticket.serial));
        probes.len() < before
    }

    /// What a timer that fires now has to do.
    pub(super) fn due_step(&self, now: Instant) -> Option<Step> {
        if self.due.is_none_or(|due| due > now) {
            return None;
        }
        match &self.state {
            State::Closed { step, .. } => step.map(|_| Step::MoreShare),
            State::Open { .. } => Some(Step::HalfOpen),
            State::HalfOpen { .. } => Some(Step::Eject(Cause::ProbeExpired)),
        }
    }

    /// When it needs a timer.
    pub(super) fn next_due(&self, config: &Config) -> Option<Instant> {
        match &self.state {
            State::Closed { step, .. } => {
                let next = u128::from((*step)?) + 1;
                let whole = u128::from(saturating_nanos(config.slow_start));
                let nanos = (whole * next).div_ceil(u128::from(config.steps()));
                let nanos = u64::try_from(nanos).unwrap_or(u64::MAX);
                Some(self.since + Duration::from_nanos(nanos))
            }
            State::Open { until, .. } => Some(*until),
            State::HalfOpen { probes, .. } => first_deadline(probes),
        }
    }

    /// Doublings of an ejection from `base` that begins now: those so far, less one for each quiet while since it closed.
    /// While ejected, as many as make it twice as long as the ejection it follows, which may have had another base.
    pub(super) fn exponent(&self, now: Instant, base: Duration, config: &Config) -> u32 {
        match self.state {
            State::Closed { .. } => {
                let quiet = saturating_nanos(now.since(self.since));
                let forgotten = quiet / saturating_nanos(config.ejection_forget_after).max(1);
                self.ejections.saturating_sub(u32::try_from(forgotten).unwrap_or(u32::MAX))
            }
            State::Open { cause, .. } | State::HalfOpen { cause, .. } => {
                let doubled = config.grown(config.base_of(cause), self.ejections);
                config.doublings(base, self.ejections, doubled)
            }
        }
    }

    pub(super) fn set_exponent(&mut self, exponent: u32) {
        self.ejections = exponent;
    }

    /// Opens. Where it is open already, the later deadline stands.
    pub(super) fn open(&mut self, now: Instant, generation: u64, until: Instant, cause: Cause) {
        let until = match self.state {
            State::Open { until: before, .. } => before.max(until),
            State::Closed { .. } | State::HalfOpen { .. } => until,
        };
        self.enter(now, generation, State::Open { until, cause });
    }

    pub(super) fn half_open(&mut self, now: Instant, generation: u64, slots: u32) -> Cause {
        let cause = self.ejected_for().unwrap_or(Cause::Unknown);
        let probes = Vec::new();
        let state = State::HalfOpen { cause, slots, succeeded: 0, serial: 0, probes };
        self.enter(now, generation, state);
        Cause::EjectionOver
    }

    pub(super) fn close(&mut self, now: Instant, generation: u64, config: &Config) -> Cause {
        let step = (!config.slow_start.is_zero()).then_some(0);
        let state = State::Closed { consecutive: 0, window: Window::default(), step };
        self.enter(now, generation, state);
        Cause::ProbesSucceeded
    }

    /// Stays closed (attempts under way still count), with the share that `now` has earned.
    pub(super) fn raise_share(&mut self, now: Instant, config: &Config) -> Cause {
        let elapsed = u128::from(saturating_nanos(now.since(self.since)));
        let whole = u128::from(saturating_nanos(config.slow_start)).max(1);
        let earned = elapsed * u128::from(config.steps()) / whole;
        if let State::Closed { step, .. } = &mut self.state {
            *step = u32::try_from(earned).ok().filter(|earned| *earned < config.steps());
        }
        Cause::SlowStart
    }

    /// As new, except for the timer it must give back.
    pub(super) fn reset(&mut self, now: Instant, generation: u64) -> Cause {
        *self = Self { due: self.due, since: now, ..Self::new(generation) };
        Cause::Reset
    }

    pub(super) fn forget_window(&mut self) {
        if let State::Closed { window, .. } = &mut self.state {
            *window = Window::default();
        }
    }

    fn enter(&mut self, now: Instant, generation: u64, state: State) {
        self.state = state;
        self.generation = generation;
        self.since = now;
    }

    fn ejected_for(&self) -> Option<Cause> {
        match self.state {
            State::Closed { .. } => None,
            State::Open { cause, .. } | State::HalfOpen { cause, .. } => Some(cause),
        }
    }

    pub(super) fn view(&self, config: &Config) -> StateView {
        let (share_permille, until, probes, consecutive_failures) = match &self.state {
            State::Closed { consecutive, step, .. } => {
                (share(*step, config), None, 0, *consecutive)
            }
            State::Open { until, .. } => (0, Some(*until), 0, 0),
            State::HalfOpen { probes, .. } => (1_000, None, probes.len(), 0),
        };
        StateView {
            phase: self.phase(),
            since: self.since,
            until,
            cause: self.ejected_for(),
            share_permille,
            probes: u32::try_from(probes).unwrap_or(u32::MAX),
            ejections: self.ejections,
            consecutive_failures,
            withheld: self.withheld,
        }
    }

    pub(super) fn invariants(&self) {
        assert!(self.generation > 0, "generation 0 is nobody's");
        match &self.state {
            State::Closed { step, .. } => {
                assert_eq!(
                    self.due.is_some(),
                    step.is_some(),
                    "only slow start waits while closed"
                );
            }
            State::Open { until, .. } => {
                assert_eq!(self.due, Some(*until), "an ejection must end");
            }
            State::HalfOpen { slots, probes, .. } => {
                assert!(probes.len() <= *slots as usize, "more probes than slots");
                assert_eq!(self.due, first_deadline(probes), "a probe must have its deadline");
            }
        }
    }
}

fn share(step: Option<u32>, config: &Config) -> u32 {
    step.map_or(1_000, |step| config.share_permille(step))
}

fn first_deadline(probes: &[Probe]) -> Option<Instant> {
    probes.iter().map(|probe| probe.deadline).min()
}

/// Why these counts open, if they do. Asked on failures only: a success never opens.
fn trip(consecutive: u32, (failed, total): (u32, u32), config: &Config) -> Option<Cause> {
    if consecutive >= config.consecutive_failures.max(1) {
        return Some(Cause::ConsecutiveFailures { count: consecutive });
    }
    let enough = total >= config.window_requests_min;
    let rate = u64::from(failed) * 100 >= u64::from(total) * u64::from(config.failure_percent);
    (enough && rate).then_some(Cause::FailureRate { failed, total })
}
