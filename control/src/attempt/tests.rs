#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::outcome::{Fault, Stage};
use crate::rng::Rng;

const START: Instant = Instant::from_nanos(1_000_000_000_000);

#[test]
fn the_first_retry_goes_to_another_endpoint_at_once_and_the_second_backs_off() {
    let mut retry = retry();
    let at_once = Decision::Retry { at: START, cause: RetryCause::OtherEndpoint };
    assert_eq!(retry.decide(START, &failed(Failure::Status(500))), at_once);
    let second = History { attempts: 2, ..failed(Failure::Status(500)) };
    for _ in 0..50 {
        let (wait, cause) = retried(retry.decide(START, &second));
        assert!(wait <= Duration::from_millis(100) && cause == RetryCause::Backoff, "{wait:?}");
    }
}

#[test]
fn the_range_of_the_backoff_doubles_up_to_its_cap_and_is_used_fully() {
    let mut retry = retry();
    retry.config.attempts_max = 100;
    for (attempts, range) in [(1, 50), (2, 100), (3, 200), (6, 1_600), (7, 2_000), (99, 2_000)] {
        let alone = History { attempts, other_eligible: false, ..failed(Failure::Connect) };
        let waits: Vec<_> = (0..300).map(|_| retried(retry.decide(START, &alone)).0).collect();
        let range = Duration::from_millis(range);
        let (least, most) = (waits.iter().min().unwrap(), waits.iter().max().unwrap());
        assert!(*most <= range && *most > range * 9 / 10, "{attempts}: {most:?}");
        assert!(*least < range / 10, "{attempts}: {least:?}");
    }
}

#[test]
fn an_upstreams_wish_to_wait_delays_only_when_nobody_else_can_be_asked() {
    let mut retry = retry();
    let wish = Some(Duration::from_secs(7));
    let other = History { retry_after: wish, ..failed(Failure::Backpressure(429)) };
    assert_eq!(retried(retry.decide(START, &other)).0, Duration::ZERO);
    let alone = History { other_eligible: false, ..other };
    let (wait, cause) = retried(retry.decide(START, &alone));
    assert!(wait >= Duration::from_secs(7) && wait <= Duration::from_millis(7_050), "{wait:?}");
    assert_eq!(cause, RetryCause::RetryAfter);
}

#[test]
fn every_reason_to_give_up_is_named() {
    let ok = failed(Failure::Status(502));
    let near = START + Duration::from_millis(99);
    let late = Duration::from_secs(120);
    let client = failed(Failure::ClientError(400));
    let deadline = failed(Failure::Timeout(Stage::Deadline));
    let revoked = failed(Failure::EndpointFault(Fault::KeyRefused));
    for (history, why) in [
        (History { committed: true, ..ok.clone() }, Why::Committed),
        (client, Why::NotRetryable),
        (deadline, Why::NotRetryable),
        (History { other_eligible: false, ..revoked }, Why::NotRetryable),
        (History { attempts: 3, ..ok.clone() }, Why::AttemptsSpent),
        (History { elapsed_in_attempt: late, ..ok.clone() }, Why::SlowFailure),
        (History { deadline: near, ..ok }, Why::DeadlineTooNear),
    ] {
        let mut retry = retry();
        assert_eq!(retry.decide(START, &history), Decision::GiveUp(why), "{history:?}");
        assert_eq!(retry.budget(START), 100, "giving up costs nothing");
    }
}

#[test]
fn a_silent_replica_is_retried_after_the_whole_wait_for_its_first_token() {
    let elapsed_in_attempt = Timeouts::default().first_token;
    let silent = History { elapsed_in_attempt, ..failed(Failure::Timeout(Stage::FirstToken)) };
    assert_eq!(retried(retry().decide(START, &silent)).0, Duration::ZERO);
}

#[test]
fn a_refused_connection_costs_no_budget_and_still_counts_as_an_attempt() {
    let mut retry = retry();
    for _ in 0..1_000 {
        retried(retry.decide(START, &failed(Failure::Connect)));
    }
    assert_eq!(retry.budget(START), 100);
    let third = History { attempts: 3, ..failed(Failure::Connect) };
    assert_eq!(retry.decide(START, &third), Decision::GiveUp(Why::AttemptsSpent));
}

#[test]
fn when_everything_fails_load_grows_by_a_tenth_and_not_threefold() {
    let mut retry = retry();
    let (mut now, mut sent) = (START, 0_u32);
    for _ in 0..100_000 {
        now = now + Duration::from_millis(1);
        retry.deposit(now);
        sent += 1;
        let mut attempts = 1;
        loop {
            let history = History { attempts, ..failed(Failure::Status(500)) };
            let deadline = now + Duration::from_secs(600);
            match retry.decide(now, &History { deadline, ..history }) {
                Decision::Retry { .. } => (attempts, sent) = (attempts + 1, sent + 1),
                Decision::GiveUp(_) => break,
            }
        }
    }
    // 100,000 requests in 100 s: a tenth of them, ten a second, and the burst; less what the first request earned,
    // which found the budget full.
    assert_eq!(sent, 100_000 + 10_000 + 1_000 + 100 - 1);
}

#[test]
fn hedges_are_a_share_of_the_requests_and_ten_of_them_are_saved_at_most() {
    let mut retry = retry();
    assert_eq!(hedges(&mut retry), 1, "one is there from the start");
    for _ in 0..60 {
        retry.deposit_hedge();
    }
    assert_eq!(hedges(&mut retry), 3, "a twentieth of the requests");
    for _ in 0..1_000 {
        retry.deposit_hedge();
    }
    retry.invariants();
    assert_eq!(hedges(&mut retry), HEDGES_SAVED_MAX);
    assert_eq!(u64::from(retry.budget(START)), 100 - 14, "and each costs a retry");
}

#[test]
fn every_reason_not_to_hedge_is_named_and_costs_nothing() {
    let waiting = waiting();
    for (waiting, why) in [
        (Waiting { attempts: 3, ..waiting }, NoHedge::AttemptsSpent),
        (
            Waiting { deadline: START + Duration::from_millis(99), ..waiting },
            NoHedge::DeadlineTooNear,
        ),
        (Waiting { other_eligible: false, ..waiting }, NoHedge::Nobody),
    ] {
        assert_eq!(retry().may_hedge(START, &waiting), Err(why));
    }
    let mut spent = retry();
    hedges(&mut spent);
    assert_eq!(spent.may_hedge(START, &waiting), Err(NoHedge::ShareSpent));
    assert_eq!(spent.pay_hedge(START), Err(NoHedge::ShareSpent));
    let mut poor = Retry::new(Config { budget_burst: 0, ..Config::default() }, Rng::new(1));
    assert_eq!(poor.pay_hedge(START), Err(NoHedge::BudgetSpent));
    poor.set_config(START, Config::default());
    let later = START + Duration::from_secs(1);
    assert_eq!(poor.pay_hedge(later), Ok(()), "its share was not taken");
}

#[test]
fn a_new_policy_keeps_what_was_saved_within_the_new_burst() {
    let mut retry = retry();
    retry.set_config(START, Config { budget_burst: 7, ..Config::default() });
    retry.invariants();
    assert_eq!(retry.budget(START), 7);
    retry.set_config(START, Config::default());
    assert_eq!(retry.budget(START), 7);
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn retries_in_every_stretch_of_time_stay_within_ratio_floor_and_burst(
        ops in prop::collection::vec((0_u64..300, 0_u32..4), 1..150),
        ratio in 0_u32..120,
        floor in 0_u32..12,
        burst in 0_u32..12,
    ) {
        let config = Config {
            budget_ratio_percent: ratio,
            budget_floor_per_second: floor,
            budget_burst: burst,
            ..Config::default()
        };
        let mut retry = Retry::new(config, Rng::new(1));
        let mut model = Model { ratio, floor, burst, events: Vec::new() };
        let mut now = START;
        for (millis, kind) in ops {
            now = now + Duration::from_millis(millis);
            if kind == 0 {
                retry.deposit(now);
                model.events.push((now, Event::Request));
                continue;
            }
            let deadline = now + Duration::from_secs(600);
            let decided = retry.decide(now, &History { deadline, ..failed(Failure::Garbage) });
            let granted = matches!(decided, Decision::Retry { .. });
            prop_assert_eq!(granted, model.grants(now));
            if granted {
                model.events.push((now, Event::Retry));
            }
            retry.invariants();
        }
        model.check_every_stretch();
    }

    #[test]
    fn no_deadline_of_an_attempt_lies_after_the_requests(
        connect in 0_u64..100, first in 0_u64..100, between in 0_u64..100, request in 0_u64..100,
        at in 0_u64..200, token in 0_u64..200,
    ) {
        let [connect, first_token, between_tokens, request] =
            [connect, first, between, request].map(Duration::from_secs);
        let timeouts = Timeouts { connect, first_token, between_tokens, request };
        let deadline = timeouts.request_deadline(START);
        let dispatched = START + Duration::from_secs(at);
        let attempt = timeouts.attempt(dispatched, deadline);
        prop_assert!(attempt.connect <= attempt.first_token);
        prop_assert!(attempt.first_token <= attempt.end);
        prop_assert_eq!(attempt.end, deadline);
        let next = attempt.next_token(dispatched + Duration::from_secs(token));
        prop_assert!(next <= deadline);
    }

    #[test]
    fn a_restored_budget_has_the_same_future(waits in prop::collection::vec(0_u64..2_000, 1..40)) {
        let mut stopped = retry();
        let mut now = START;
        let alone = History { other_eligible: false, ..failed(Failure::Truncated) };
        let mut restored: Option<Retry> = None;
        for millis in waits {
            now = now + Duration::from_millis(millis);
            let history = History { deadline: now + Duration::from_secs(600), ..alone.clone() };
            let decided = stopped.decide(now, &history);
            if let Some(restored) = &mut restored {
                prop_assert_eq!(restored.decide(now, &history), decided);
            }
            let bytes = postcard::to_allocvec(&stopped).unwrap();
            restored = Some(postcard::from_bytes(&bytes).unwrap());
        }
    }
}

#[derive(Clone, Copy, PartialEq)]
enum Event {
    Request,
    Retry,
}

/// Adds everything up again for every question, in thousandths of a percent of a retry.
struct Model {
    ratio: u32,
    floor: u32,
    burst: u32,
    events: Vec<(Instant, Event)>,
}

const ONE: u128 = 100_000;

impl Model {
    fn grants(&self, now: Instant) -> bool {
        let burst = u128::from(self.burst) * ONE;
        let (mut saved, mut last) = (burst, Instant::ZERO);
        for (at, event) in
            self.events.iter().copied().map(|(at, e)| (at, Some(e))).chain([(now, None)])
        {
            saved = (saved + self.earned_by_time(at.since(last))).min(burst);
            last = at;
            match event {
                Some(Event::Request) => saved = (saved + self.earned_by_request()).min(burst),
                Some(Event::Retry) => saved -= ONE,
                None => {}
            }
        }
        saved >= ONE
    }

    fn check_every_stretch(&self) {
        for (i, (from, _)) in self.events.iter().enumerate() {
            let (mut retries, mut earned) = (0, u128::from(self.burst) * ONE);
            for (to, event) in &self.events[i..] {
                match event {
                    Event::Request => earned += self.earned_by_request(),
                    Event::Retry => retries += ONE,
                }
                assert!(retries <= earned + self.earned_by_time(to.since(*from)));
            }
        }
    }

    fn earned_by_request(&self) -> u128 {
        u128::from(self.ratio) * ONE / 100
    }

    fn earned_by_time(&self, time: Duration) -> u128 {
        time.as_millis() * u128::from(self.floor) * ONE / 1_000
    }
}

fn retry() -> Retry {
    Retry::new(Config::default(), Rng::new(1))
}

fn waiting() -> Waiting {
    Waiting { attempts: 1, deadline: START + Duration::from_secs(600), other_eligible: true }
}

/// Makes as many as there are.
fn hedges(retry: &mut Retry) -> u64 {
    let mut made = 0;
    while retry.may_hedge(START, &waiting()).is_ok() && retry.pay_hedge(START).is_ok() {
        made += 1;
    }
    made
}

fn failed(failure: Failure) -> History {
    History {
        attempts: 1,
        committed: false,
        deadline: START + Duration::from_secs(600),
        elapsed_in_attempt: Duration::from_millis(20),
        failure,
        retry_after: None,
        other_eligible: true,
    }
}

fn retried(decision: Decision) -> (Duration, RetryCause) {
    match decision {
        Decision::Retry { at, cause } => (at.since(START), cause),
        Decision::GiveUp(why) => panic!("gave up: {why}"),
    }
}
