#![allow(clippy::unwrap_used, reason = "tests")]

use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::AccountId;
use crate::outcome::{AttemptEnd, Failure, Stage};
use crate::time::Instant;
use crate::units::Tokens;

const ANNA: AccountId = AccountId(1);
const BERT: AccountId = AccountId(2);

fn at(millis: u64) -> Instant {
    Instant::from_nanos(millis * 1_000_000)
}

fn rpm(limit: u32) -> RateLimits {
    RateLimits { rpm: Some(limit), tpm: None }
}

fn tpm(limit: u64) -> RateLimits {
    RateLimits { rpm: None, tpm: Some(limit) }
}

fn rate() -> Rate {
    Rate::new(Config::default())
}

#[test]
fn three_a_minute_are_three_at_once_and_then_one_every_twenty_seconds() {
    let mut rate = rate();
    let asks = [(ANNA, rpm(3))];
    for _ in 0..3 {
        rate.check(at(0), &asks, Tokens(1)).unwrap();
    }
    let refusal = rate.check(at(0), &asks, Tokens(1)).unwrap_err();
    assert_eq!(refusal.retry_after, Duration::from_secs(20));
    assert_eq!((refusal.account, refusal.unit, refusal.limit), (ANNA, RateUnit::Rpm, 3));
    assert!(rate.check(at(19_999), &asks, Tokens(1)).is_err());
    assert!(rate.check(at(20_000), &asks, Tokens(1)).is_ok());
    assert!(rate.check(at(20_000), &asks, Tokens(1)).is_err());
}

#[test]
fn a_short_burst_still_admits_one_request() {
    let mut rate = Rate::new(Config { burst: Duration::from_secs(1), ..Config::default() });
    let asks = [(ANNA, rpm(3))];
    assert!(rate.check(at(0), &asks, Tokens(1)).is_ok());
    assert!(rate.check(at(0), &asks, Tokens(1)).is_err());
    assert!(rate.check(at(20_000), &asks, Tokens(1)).is_ok());
}

#[test]
fn a_refusal_charges_nobody() {
    let mut rate = rate();
    let both = [(ANNA, RateLimits { rpm: Some(2), tpm: Some(100) }), (BERT, tpm(50))];
    assert_eq!(rate.check(at(0), &both, Tokens(60)).unwrap_err().account, BERT);
    assert!(rate.is_empty());
    for _ in 0..2 {
        rate.check(at(0), &both, Tokens(25)).unwrap();
    }
    assert_eq!(rate.held(at(0), ANNA), Tokens(50));
}

#[test]
fn an_estimate_that_was_not_used_is_there_for_the_next_request() {
    let mut rate = rate();
    let asks = [(ANNA, tpm(1_000))];
    rate.check(at(0), &asks, Tokens(1_000)).unwrap();
    assert!(rate.check(at(0), &asks, Tokens(1)).is_err());
    rate.adjust(at(10), asks[0], at(0), Tokens(1_000), Tokens(100));
    assert!(rate.check(at(10), &asks, Tokens(900)).is_ok());
    assert!(rate.check(at(10), &asks, Tokens(1)).is_err());
}

#[test]
fn what_was_used_beyond_the_estimate_is_debt() {
    let mut rate = rate();
    let asks = [(ANNA, tpm(60))];
    rate.check(at(0), &asks, Tokens(10)).unwrap();
    rate.adjust(at(0), asks[0], at(0), Tokens(10), Tokens(90));
    let refusal = rate.check(at(0), &asks, Tokens(1)).unwrap_err();
    assert_eq!(refusal.retry_after, Duration::from_secs(31));
    assert!(rate.check(at(31_000), &asks, Tokens(1)).is_ok());
}

#[test]
fn a_replica_that_claims_absurd_usage_locks_nobody_out_for_ever() {
    let mut rate = rate();
    let asks = [(ANNA, tpm(60))];
    rate.check(at(0), &asks, Tokens(10)).unwrap();
    rate.adjust(at(0), asks[0], at(0), Tokens(10), Tokens(u64::MAX));
    assert!(rate.check(at(3_600_000), &asks, Tokens(1)).is_ok());
}

#[test]
fn more_tokens_than_any_minute_allows_are_refused_for_good() {
    let refusal = rate().check(at(0), &[(ANNA, tpm(100))], Tokens(101)).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::TooLarge);
    assert_eq!(refusal.retry_after, Duration::ZERO);
    let refusal = rate().check(at(0), &[(ANNA, rpm(0))], Tokens(1)).unwrap_err();
    assert_eq!(refusal.reason, RefusalReason::TooLarge);
}

#[test]
fn a_request_nobody_ended_stops_counting_after_an_hour_and_an_eighth() {
    let mut rate = rate();
    let asks = [(ANNA, tpm(100))];
    rate.check(at(0), &asks, Tokens(100)).unwrap();
    assert!(rate.check(at(3_600_000), &asks, Tokens(1)).is_err());
    assert!(rate.check(at(4_050_001), &asks, Tokens(100)).is_ok());
    rate.adjust(at(4_050_002), asks[0], at(0), Tokens(100), Tokens::ZERO);
    assert_eq!(rate.held(at(4_050_002), ANNA), Tokens(100), "the leaked one returns nothing");
}

#[test]
fn a_full_table_drops_only_what_has_recovered() {
    let mut rate = Rate::new(Config { buckets_max: 2, ..Config::default() });
    for account in [1, 2] {
        for _ in 0..3 {
            rate.check(at(0), &[(AccountId(account), rpm(3))], Tokens(1)).unwrap();
        }
    }
    let third = [(AccountId(3), rpm(3))];
    assert_eq!(rate.check(at(0), &third, Tokens(1)).unwrap_err().reason, RefusalReason::Full);
    assert!(rate.check(at(59_999), &third, Tokens(1)).is_err());
    assert!(rate.check(at(60_000), &third, Tokens(1)).is_ok());
    assert_eq!(rate.len(), 2);
    rate.invariants();
}

/// A request of the reference: when it began, what it held, and when it ended with what.
struct Past {
    began: u64,
    reserved: u64,
    ended: Option<(u64, u64)>,
}

/// The bound of the module's first page, read literally: over every window that ends now, what was used, what is held
/// and what is asked for fit into what drains in it plus the burst. In thousandths of a token.
fn fits(past: &[Past], now: u64, limit: u64, burst: u64, asked: u64, slack: u64) -> bool {
    let running = past.iter().filter(|p| p.ended.is_none()).map(|p| p.reserved).sum::<u64>();
    let ends: Vec<_> = past.iter().filter_map(|p| p.ended).collect();
    let starts = ends.iter().map(|(end, _)| *end).chain([now]);
    let mut windows = starts.map(|start| {
        let used = ends.iter().filter(|(end, _)| *end >= start).map(|(_, used)| used).sum::<u64>();
        (used + running + asked + slack) * 60_000 <= limit * (now - start) + limit * burst
    });
    windows.all(|fits| fits)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn no_window_ever_sees_more_than_the_limit_and_the_burst(
        limit in 1_u64..5_000, burst in 1_000_u64..90_000,
        steps in prop::collection::vec((0_u64..20_000, 0_u64..600, 0_usize..12, 0_u64..1_001), 1..80),
    ) {
        let burst_config = Duration::from_millis(burst);
        let mut rate = Rate::new(Config { burst: burst_config, ..Config::default() });
        let account = (ANNA, tpm(limit));
        let burst = burst.max(60_000_u64.div_ceil(limit));
        let (mut now, mut past) = (0, Vec::<Past>::new());
        for (wait, asked, which, permille) in steps {
            now += wait;
            if let Some(request) = past.get_mut(which).filter(|p| p.ended.is_none()) {
                let used = request.reserved * permille / 1_000;
                let (since, reserved) = (at(request.began), Tokens(request.reserved));
                rate.adjust(at(now), account, since, reserved, Tokens(used));
                request.ended = Some((now, used));
            } else if rate.check(at(now), &[account], Tokens(asked)).is_ok() {
                prop_assert!(fits(&past, now, limit, burst, asked, 0), "more than the bound");
                past.push(Past { began: now, reserved: asked, ended: None });
            } else {
                // Rounding may cost a nanosecond a request: far less than one token here.
                prop_assert!(!fits(&past, now, limit, burst, asked, 1), "less than the bound");
            }
            rate.invariants();
        }
        let held = past.iter().filter(|p| p.ended.is_none()).map(|p| p.reserved).sum();
        prop_assert_eq!(rate.held(at(now), ANNA), Tokens(held));
    }

    #[test]
    fn requests_in_any_window_stay_within_limit_and_burst(
        limit in 1_u32..600, waits in prop::collection::vec(0_u64..3_000, 1..200),
    ) {
        let mut rate = rate();
        let (mut now, mut admitted) = (0, Vec::new());
        for wait in waits {
            now += wait;
            match rate.check(at(now), &[(ANNA, rpm(limit))], Tokens(1)) {
                Ok(()) => admitted.push(now),
                Err(refusal) => {
                    let then = at(now) + refusal.retry_after;
                    let (asks, mut early) = ([(ANNA, rpm(limit))], rate.clone());
                    prop_assert!(early.clone().check(then, &asks, Tokens(1)).is_ok());
                    let before = then - Duration::from_nanos(1);
                    prop_assert!(early.check(before, &asks, Tokens(1)).is_err());
                }
            }
        }
        for (first, start) in admitted.iter().enumerate() {
            for (last, end) in admitted.iter().enumerate().skip(first) {
                let count = (last - first + 1) as u64;
                prop_assert!(count * 60_000 <= u64::from(limit) * (end - start + 60_000));
            }
        }
    }

    #[test]
    fn a_small_table_never_admits_what_a_large_one_refuses(
        steps in prop::collection::vec((0_u64..30_000, 0_u64..12), 1..120),
    ) {
        let mut small = Rate::new(Config { buckets_max: 3, ..Config::default() });
        let (mut large, mut now) = (rate(), 0);
        for (wait, account) in steps {
            now += wait;
            let asks = [(AccountId(account), rpm(2))];
            if small.check(at(now), &asks, Tokens(1)).is_ok() {
                prop_assert!(large.check(at(now), &asks, Tokens(1)).is_ok());
            }
            small.invariants();
        }
    }

    #[test]
    fn the_adaptive_limit_keeps_its_bounds_and_its_count(
        steps in prop::collection::vec((0_u64..700, any::<bool>(), 0_u8..3), 1..300),
        least in 0_u32..30,
    ) {
        let bounds = ConcurrencyConfig { min: 2, max: 20, ..ConcurrencyConfig::default() };
        let mut limiter = Concurrency::new(bounds);
        let (mut now, mut flying) = (0, 0);
        for (wait, begin, signal) in steps {
            now += wait;
            if begin {
                let free = flying < limiter.limit("m").max(least.min(20));
                prop_assert_eq!(limiter.admit(at(now), "m", least).is_ok(), free);
                flying += u32::from(free);
            } else if flying > 0 {
                let signal = [Signal::Success, Signal::Overload, Signal::Neutral][usize::from(signal)];
                let before = limiter.limit("m");
                limiter.released(at(now), "m", signal);
                flying -= 1;
                prop_assert!(signal != Signal::Neutral || limiter.limit("m") == before);
            }
            prop_assert_eq!(limiter.in_flight("m"), flying);
            prop_assert!((2..=20).contains(&limiter.limit("m")));
            limiter.invariants();
        }
    }
}

/// Drives a model that bears 40 at once, always with one more request waiting; each takes a second.
fn saturate(limiter: &mut Concurrency, from: u64, seconds: u64) -> u32 {
    let mut flying = Vec::new();
    for now in (from..from + seconds * 1_000).step_by(10) {
        flying.retain(|(end, signal)| {
            if *end <= now {
                limiter.released(at(now), "m", *signal);
            }
            *end > now
        });
        while flying.len() < 200 && limiter.admit(at(now), "m", 0).is_ok() {
            let full = flying.len() >= 40;
            let signal = if full { Signal::Overload } else { Signal::Success };
            flying.push((if full { now + 10 } else { now + 1_000 }, signal));
        }
    }
    let limit = limiter.limit("m");
    flying.iter().for_each(|_| limiter.released(at(from), "m", Signal::Neutral));
    limit
}

#[test]
fn under_backpressure_the_limit_settles_near_what_the_replicas_bear() {
    let mut limiter = Concurrency::new(ConcurrencyConfig::default());
    let limit = saturate(&mut limiter, 0, 120);
    assert!((30..=44).contains(&limit), "{limit}");
    assert_eq!(limiter.in_flight("m"), 0);
}

#[test]
fn without_overload_the_limit_never_bites() {
    let mut limiter = Concurrency::new(ConcurrencyConfig::default());
    for _ in 0..100_000 {
        limiter.admit(at(0), "m", 0).unwrap();
    }
    let refusal = limiter.admit(at(0), "m", 0).unwrap_err();
    assert_eq!(refusal.limit, 100_000);
}

#[test]
fn one_full_moment_counts_once_however_many_report_it() {
    let mut limiter = Concurrency::new(ConcurrencyConfig::default());
    for _ in 0..100 {
        limiter.admit(at(0), "m", 0).unwrap();
    }
    for _ in 0..50 {
        limiter.released(at(10), "m", Signal::Overload);
    }
    assert_eq!(limiter.limit("m"), 80);
}

#[test]
fn an_idle_model_makes_room_and_too_many_busy_ones_go_unlimited() {
    let bounds =
        ConcurrencyConfig { models_max: 1, max: 1, min: 1, ..ConcurrencyConfig::default() };
    let mut limiter = Concurrency::new(bounds);
    limiter.admit(at(0), "a", 0).unwrap();
    for _ in 0..5 {
        limiter.admit(at(0), "b", 0).unwrap();
        limiter.released(at(0), "b", Signal::Success);
    }
    assert!(limiter.admit(at(0), "a", 0).is_err());
    limiter.released(at(0), "a", Signal::Success);
    limiter.admit(at(0), "b", 0).unwrap();
    assert!(limiter.admit(at(0), "b", 0).is_err());
    limiter.invariants();
}

#[test]
fn only_a_full_or_stalled_replica_says_overload() {
    let failed = |failure| AttemptEnd::Failed { failure, produced: Tokens(0), retry_after: None };
    assert_eq!(Signal::of(&failed(Failure::Backpressure(429))), Signal::Overload);
    assert_eq!(Signal::of(&failed(Failure::Timeout(Stage::FirstToken))), Signal::Overload);
    assert_eq!(Signal::of(&failed(Failure::Timeout(Stage::Deadline))), Signal::Neutral);
    assert_eq!(Signal::of(&failed(Failure::Connect)), Signal::Neutral);
    assert_eq!(Signal::of(&AttemptEnd::Cancelled { produced: Tokens(0) }), Signal::Neutral);
}

#[test]
fn a_restored_limiter_has_the_same_future() {
    let mut rate = rate();
    let asks = [(ANNA, RateLimits { rpm: Some(5), tpm: Some(500) })];
    rate.check(at(0), &asks, Tokens(300)).unwrap();
    let bytes = postcard::to_allocvec(&rate).unwrap();
    let mut restored: Rate = postcard::from_bytes(&bytes).unwrap();
    let ahead = [rate.check(at(7), &asks, Tokens(250)), restored.check(at(7), &asks, Tokens(250))];
    assert!(ahead[0].is_err());
    assert_eq!(ahead[0], ahead[1]);
    assert_eq!(rate, restored);
}
