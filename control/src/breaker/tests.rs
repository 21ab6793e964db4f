#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod model;
mod story;
mod table;

use alloc::string::ToString;
use alloc::vec::Vec;
use core::time::Duration;

use super::*;
use crate::outcome::Fault;

#[test]
fn five_failures_in_a_row_open_and_a_success_starts_the_count_again() {
    let mut bench = Bench::new();
    bench.fail(4);
    bench.ask(Verdict::Success);
    bench.fail(4);
    assert_eq!(bench.phase(), Phase::Closed);
    let opened = bench.ask(Verdict::Failure).unwrap();
    assert_eq!(opened.cause, Cause::ConsecutiveFailures { count: 5 });
    assert_eq!((opened.from, opened.to, opened.share_permille), (Phase::Closed, Phase::Open, 0));
    assert!(matches!(bench.admission(), Admission::Refused { .. }));
}

#[test]
fn half_of_twenty_requests_failing_opens_even_when_no_two_fail_in_a_row() {
    let mut bench = Bench::new();
    let opened = (0..20).find_map(|i| {
        bench.pass(Duration::from_secs(1));
        bench.ask(if i % 2 == 0 { Verdict::Success } else { Verdict::Failure })
    });
    assert_eq!(opened.unwrap().cause, Cause::FailureRate { failed: 10, total: 20 });
}

#[test]
fn failures_that_left_the_window_no_longer_count() {
    let mut bench = Bench::new();
    for _ in 0..9 {
        bench.ask(Verdict::Failure);
        bench.ask(Verdict::Success);
    }
    bench.pass(Duration::from_secs(31));
    for _ in 0..11 {
        bench.ask(Verdict::Success);
    }
    bench.fail(4);
    assert_eq!(bench.phase(), Phase::Closed);
}

#[test]
fn saturation_and_client_errors_are_neutral_in_every_state() {
    let neutral = [Verdict::Backpressure, Verdict::Neutral];
    let mut bench = Bench::new();
    for verdict in neutral.into_iter().cycle().take(1_000) {
        assert_eq!(bench.ask(verdict), None);
    }
    bench.fail(4);
    neutral.into_iter().for_each(|verdict| assert_eq!(bench.ask(verdict), None));
    assert_eq!(bench.phase(), Phase::Closed);
    bench.ask(Verdict::Failure);
    assert_eq!(bench.phase(), Phase::Open, "they neither count nor break a row");
}

#[test]
fn a_probe_that_meets_backpressure_frees_its_slot_so_half_open_never_sticks() {
    let mut bench = Bench::half_open();
    for _ in 0..100 {
        assert!(matches!(bench.admission(), Admission::Allowed { .. }));
        assert_eq!(bench.ask(Verdict::Backpressure), None);
    }
    let closed = bench.ask(Verdict::Success).unwrap();
    assert_eq!((closed.to, closed.cause), (Phase::Closed, Cause::ProbesSucceeded));
}

#[test]
fn a_probe_that_never_reports_counts_as_failed_at_its_deadline() {
    let mut bench = Bench::half_open();
    let silent = bench.begin();
    assert!(silent.probe);
    let Admission::Refused { until, .. } = bench.admission() else { panic!("one slot only") };
    assert_eq!(until, bench.now + Duration::from_secs(30));
    let opened = bench.pass(Duration::from_secs(30));
    assert_eq!(opened[0].cause, Cause::ProbeExpired);
    assert_eq!(bench.record(silent, Verdict::Success), None, "too late: the stay is over");
    assert_eq!(bench.phase(), Phase::Open);
}

#[test]
fn a_probe_that_streams_for_minutes_is_not_expired_while_it_shows_life() {
    let mut bench = Bench::half_open();
    let probe = bench.begin();
    for _ in 0..20 {
        assert!(bench.pass(Duration::from_secs(20)).is_empty());
        bench.breakers.progress(bench.now, bench.id, probe);
    }
    assert_eq!(bench.record(probe, Verdict::Success).unwrap().to, Phase::Closed);
}

#[test]
fn exactly_as_many_probes_pass_as_there_are_slots() {
    let config = Config { probes_max: 3, probes_to_close: 5, ..Config::default() };
    let mut bench = Bench::with(config);
    bench.eject();
    bench.pass_until_half_open();
    let probes: Vec<_> = (0..10).map(|_| bench.begin()).filter(|ticket| ticket.probe).collect();
    assert_eq!(probes.len(), 3);
    assert_eq!(bench.record(probes[0], Verdict::Success), None);
    assert_eq!(bench.record(probes[0], Verdict::Success), None, "a ticket answers once");
    let next = bench.begin();
    assert!(next.probe && !bench.begin().probe, "one slot was freed, once");
    for ticket in [probes[1], probes[2], next] {
        assert_eq!(bench.record(ticket, Verdict::Success), None);
    }
    assert_eq!(bench.ask(Verdict::Success).unwrap().to, Phase::Closed);
}

#[test]
fn a_result_from_before_the_ejection_neither_closes_nor_prolongs_it() {
    let mut bench = Bench::new();
    let (good, bad, faulty) = (bench.begin(), bench.begin(), bench.begin());
    bench.eject();
    let until = bench.view().until;
    assert_eq!(bench.record(good, Verdict::Success), None);
    assert_eq!(bench.record(bad, Verdict::Failure), None);
    assert_eq!(bench.view().until, until);
    bench.pass_until_half_open();
    assert_eq!(bench.record(faulty, Verdict::Fault(Fault::Forbidden)), None);
    assert_eq!(bench.phase(), Phase::HalfOpen);
}

#[test]
fn each_ejection_is_longer_than_the_last_up_to_the_cap() {
    let mut bench = Bench::new();
    bench.eject();
    let mut last = bench.ejected_for();
    assert!((4..=5).contains(&last.as_secs()), "{last:?}");
    for _ in 0..20 {
        bench.pass_until_half_open();
        bench.ask(Verdict::Failure);
        let this = bench.ejected_for();
        assert!(this > last || this >= Duration::from_secs(240), "{last:?} then {this:?}");
        assert!(this <= Duration::from_secs(300));
        last = this;
    }
}

#[test]
fn an_ejection_after_one_for_a_fault_is_longer_still_whatever_its_own_cause() {
    // A fault is given less than a failure too: an operator may order the bases either way.
    for (fault_base, jitter) in [(60, 20), (60, 0), (1, 20), (7, 0)] {
        let fault_ejection_base = Duration::from_secs(fault_base);
        let config =
            Config { fault_ejection_base, ejection_jitter_percent: jitter, ..Config::default() };
        let mut bench = Bench::with(config);
        bench.ask(Verdict::Fault(Fault::KeyRefused));
        let mut last = bench.ejected_for();
        let verdicts = [Verdict::Failure, Verdict::Fault(Fault::AccountEmpty), Verdict::Failure];
        for verdict in verdicts.into_iter().flat_map(|verdict| [verdict; 3]) {
            bench.pass_until_half_open();
            bench.ask(verdict);
            let this = bench.ejected_for();
            let doubled = (last * 2).min(Duration::from_secs(300));
            let least = doubled / 100 * (100 - jitter);
            assert!(this >= least, "{fault_base} s: {last:?}, then {this:?}");
            last = this;
        }
    }
}

#[test]
fn a_quiet_while_forgets_doublings_one_by_one() {
    let mut bench = Bench::new();
    bench.eject();
    for _ in 0..3 {
        bench.pass_until_half_open();
        bench.ask(Verdict::Failure);
    }
    bench.pass_until_half_open();
    bench.ask(Verdict::Success);
    bench.pass(Duration::from_secs(3 * 60 + 1));
    bench.eject();
    let again = bench.ejected_for().as_secs();
    assert!((8..=10).contains(&again), "four doublings less three: {again}");
}

#[test]
fn a_lone_endpoint_is_ejected_and_the_last_fifth_of_a_pool_is_not() {
    let mut lone = Bench::new();
    lone.room = EjectionRoom { members: 1, ejected: 0 };
    lone.eject();
    assert_eq!(lone.phase(), Phase::Open);

    let mut ninth = Bench::new();
    ninth.room = EjectionRoom { members: 10, ejected: 8 };
    ninth.fail(7);
    assert_eq!((ninth.phase(), ninth.view().withheld), (Phase::Closed, 3));
    ninth.room.ejected = 7;
    let opened = ninth.ask(Verdict::Failure).unwrap();
    assert_eq!(opened.cause, Cause::ConsecutiveFailures { count: 8 }, "what was withheld counts");
}

#[test]
fn a_fault_ejects_at_once_for_longer_beyond_the_cap_and_names_itself() {
    let mut bench = Bench::new();
    bench.room = EjectionRoom { members: 10, ejected: 9 };
    let opened = bench.ask(Verdict::Fault(Fault::KeyRefused)).unwrap();
    assert_eq!(opened.cause, Cause::Fault(Fault::KeyRefused));
    assert!(bench.ejected_for() >= Duration::from_secs(48));
    let Admission::Refused { cause, .. } = bench.admission() else { panic!("ejected") };
    assert!(cause.to_string().contains("api_key"), "{cause}");
}

#[test]
fn in_a_panic_a_fault_is_named_and_the_later_deadline_stands() {
    let mut bench = Bench::new();
    bench.eject();
    let short = bench.view().until.unwrap();
    let panicked = bench.begin();
    assert_eq!(bench.ask(Verdict::Success), None, "only a probe closes");
    assert_eq!(bench.ask(Verdict::Failure), None);
    let named = bench.record(panicked, Verdict::Fault(Fault::AccountEmpty)).unwrap();
    assert_eq!((named.from, named.to), (Phase::Open, Phase::Open));
    assert!(named.until.unwrap() > short);
    assert_eq!(bench.ask(Verdict::Fault(Fault::AccountEmpty)), None, "known: nothing moves");
}

#[test]
fn a_probe_that_fails_goes_back_even_when_its_pool_has_no_room() {
    let mut bench = Bench::half_open();
    bench.room = EjectionRoom { members: 10, ejected: 8 };
    assert_eq!(bench.ask(Verdict::Failure).unwrap().cause, Cause::ProbeFailed);
}

#[test]
fn a_returned_endpoint_gets_its_share_back_in_steps() {
    let mut bench = Bench::half_open();
    bench.ask(Verdict::Success);
    let mut shares = Vec::new();
    while let Admission::Allowed { share_permille } = bench.admission() {
        shares.push(share_permille);
        if bench.breakers.poll_timeout().is_none() {
            break;
        }
        bench.pass(Duration::from_secs(1));
    }
    assert_eq!(shares, [100, 190, 280, 370, 460, 550, 640, 730, 820, 910, 1_000]);
}

#[test]
fn a_late_timer_skips_the_steps_it_missed() {
    let mut bench = Bench::half_open();
    bench.ask(Verdict::Success);
    let steps = bench.pass(Duration::from_secs(7));
    assert_eq!(steps.len(), 1);
    assert_eq!(steps[0].share_permille, 730);
    let done = bench.pass(Duration::from_secs(60));
    assert_eq!((done[0].share_permille, bench.breakers.poll_timeout()), (1_000, None));
}

#[test]
fn a_hundred_endpoints_due_at_once_are_worked_off_in_bounded_calls() {
    let mut breakers = Breakers::new(Config::default(), Rng::new(3));
    let ids: Vec<_> = (0..100).map(|slot| EndpointId { slot, generation: 1 }).collect();
    for id in &ids {
        breakers.insert(*id);
        let ticket = breakers.begin(Instant::ZERO, *id);
        breakers.record(Instant::ZERO, *id, ticket, Verdict::Fault(Fault::Forbidden), WIDE);
    }
    let later = Instant::ZERO + Duration::from_secs(61);
    assert_eq!(breakers.handle_timeout(later).len(), TIMEOUTS_PER_CALL);
    assert!(breakers.poll_timeout().unwrap() <= later, "a backlog asks to come back at once");
    assert_eq!(breakers.handle_timeout(later).len(), 100 - TIMEOUTS_PER_CALL);
    breakers.invariants();
}

#[test]
fn an_unknown_or_removed_endpoint_is_refused_and_its_tickets_move_nothing() {
    let mut bench = Bench::new();
    let ticket = bench.begin();
    bench.eject();
    bench.breakers.remove(bench.id);
    assert_eq!(bench.breakers.poll_timeout(), None);
    assert_eq!(bench.record(ticket, Verdict::Failure), None);
    let nobodys = bench.begin();
    bench.breakers.insert(bench.id);
    assert_eq!(bench.record(nobodys, Verdict::Fault(Fault::Forbidden)), None);
    assert_eq!(bench.phase(), Phase::Closed);
}

#[test]
fn a_reset_closes_at_full_share() {
    let mut bench = Bench::half_open();
    let reset = bench.breakers.reset(bench.now, bench.id).unwrap();
    assert_eq!(
        (reset.from, reset.to, reset.share_permille),
        (Phase::HalfOpen, Phase::Closed, 1_000)
    );
    assert_eq!(bench.breakers.poll_timeout(), None);
    bench.breakers.invariants();
}

#[test]
fn a_new_policy_keeps_deadlines_that_were_given() {
    let mut bench = Bench::half_open();
    let probe = bench.begin();
    let due = bench.breakers.poll_timeout();
    bench.breakers.set_config(Config {
        probes_max: 2,
        probe_timeout: Duration::from_secs(1),
        window: Duration::from_secs(5),
        ..Config::default()
    });
    bench.breakers.invariants();
    assert_eq!(bench.breakers.poll_timeout(), due);
    assert!(!bench.begin().probe, "this stay has the slots it began with");
    assert_eq!(bench.record(probe, Verdict::Success).unwrap().to, Phase::Closed);
}

const WIDE: EjectionRoom = EjectionRoom { members: 1_000, ejected: 0 };

/// One endpoint, and the time.
#[derive(Clone)]
pub(super) struct Bench {
    pub(super) breakers: Breakers,
    pub(super) id: EndpointId,
    pub(super) now: Instant,
    pub(super) room: EjectionRoom,
}

impl Bench {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    pub(super) fn with(config: Config) -> Self {
        let mut breakers = Breakers::new(config, Rng::new(1));
        let id = EndpointId { slot: 0, generation: 1 };
        breakers.insert(id);
        let now = Instant::ZERO + Duration::from_secs(1_000);
        Self { breakers, id, now, room: WIDE }
    }

    pub(super) fn half_open() -> Self {
        let mut bench = Self::new();
        bench.eject();
        bench.pass_until_half_open();
        bench
    }

    pub(super) fn begin(&mut self) -> Ticket {
        self.breakers.begin(self.now, self.id)
    }

    pub(super) fn record(&mut self, ticket: Ticket, verdict: Verdict) -> Option<Transition> {
        let transition = self.breakers.record(self.now, self.id, ticket, verdict, self.room);
        self.breakers.invariants();
        transition
    }

    pub(super) fn ask(&mut self, verdict: Verdict) -> Option<Transition> {
        let ticket = self.begin();
        self.record(ticket, verdict)
    }

    fn fail(&mut self, times: u32) {
        for _ in 0..times {
            self.ask(Verdict::Failure);
        }
    }

    pub(super) fn eject(&mut self) {
        self.fail(5);
        assert_eq!(self.phase(), Phase::Open);
    }

    pub(super) fn pass(&mut self, time: Duration) -> Vec<Transition> {
        self.now = self.now + time;
        let transitions = self.breakers.handle_timeout(self.now);
        self.breakers.invariants();
        transitions
    }

    pub(super) fn pass_until_half_open(&mut self) {
        let until = self.view().until.unwrap();
        self.pass(until.since(self.now));
        assert_eq!(self.phase(), Phase::HalfOpen);
    }

    fn ejected_for(&self) -> Duration {
        self.view().until.unwrap().since(self.now)
    }

    pub(super) fn view(&self) -> StateView {
        self.breakers.state(self.id).unwrap()
    }

    pub(super) fn phase(&self) -> Phase {
        self.view().phase
    }

    fn admission(&self) -> Admission {
        self.breakers.admission(self.now, self.id)
    }
}
