#![allow(clippy::unwrap_used, reason = "tests")]

use alloc::vec::Vec;
use core::time::Duration;

use proptest::prelude::*;

use super::*;
use crate::id::{Digest, Minted};
use crate::rate::{self, Rate, RateLimits};
use crate::time::Instant;
use crate::units::Tokens;

const ANNA: AccountId = AccountId(1);
const BERT: AccountId = AccountId(2);
const SECOND: u64 = 1_000_000;
const LEASE: u64 = 60 * SECOND;
const SESSION: SessionKey = SessionKey(5);

fn take(account: AccountId, unit: RateUnit, limit: u64, amount: u64) -> RateTake {
    let burst = (60 * SECOND).max(drain_micros(limit, 1));
    RateTake { account, unit, limit, drain: drain_micros(limit, amount), burst }
}

fn correction(until: u64, held: u64, used: u64) -> RateCorrection {
    RateCorrection { account: ANNA, unit: RateUnit::Tpm, until, held, used }
}

fn by(owner: u64) -> Claimant {
    let request = RequestId(Minted { incarnation: 1, counter: 7 });
    Claimant { owner: OwnerId(owner), request }
}

fn keyed(body: u128) -> Idempotency {
    Idempotency { key: Digest(1), body: Digest(body) }
}

fn until_of(answer: RatesAnswer) -> Option<u64> {
    match answer {
        RatesAnswer::Taken { until } => Some(until),
        RatesAnswer::Refused { .. } => None,
    }
}

#[test]
fn what_does_not_fit_takes_nothing_and_names_the_longest_wait() {
    let mut rates = Rates::default();
    let takes = [take(ANNA, RateUnit::Rpm, 3, 1), take(BERT, RateUnit::Rpm, 2, 1)];
    for _ in 0..2 {
        assert!(until_of(rates.take(0, LEASE, &takes)).is_some());
    }
    let refused = rates.take(0, LEASE, &takes);
    let retry_after = Duration::from_secs(30);
    let expected =
        RatesAnswer::Refused { account: BERT, unit: RateUnit::Rpm, limit: 2, retry_after };
    assert_eq!(refused, expected);
    assert_eq!(rates.ahead(0, ANNA, RateUnit::Rpm), 40 * SECOND, "the third was not counted");
    let larger = [take(ANNA, RateUnit::Rpm, 3, 1), take(BERT, RateUnit::Tpm, 10, 11)];
    let RatesAnswer::Refused { account, retry_after, .. } = rates.take(0, LEASE, &larger) else {
        panic!("more than an idle bucket holds");
    };
    assert_eq!((account, retry_after), (BERT, Duration::ZERO), "what never fits comes first");
}

#[test]
fn what_is_returned_was_held_and_is_not_granted_twice() {
    let mut rates = Rates::default();
    let all = [take(ANNA, RateUnit::Tpm, 60, 60)];
    let until = until_of(rates.take(0, LEASE, &all)).unwrap();
    // A minute later an estimate that had been charged would have drained. It is still held.
    assert_eq!(until_of(rates.take(60 * SECOND, LEASE, &all)), None);
    rates.correct(60 * SECOND, &[correction(until, 60 * SECOND, 15 * SECOND)]);
    assert_eq!(until_of(rates.take(60 * SECOND, LEASE, &all)), None, "15 were used just now");
    let rest = [take(ANNA, RateUnit::Tpm, 60, 45)];
    assert!(until_of(rates.take(60 * SECOND, LEASE, &rest)).is_some());
}

#[test]
fn what_a_gateway_that_died_held_is_free_when_its_slot_is_over() {
    let mut rates = Rates::default();
    let all = [take(ANNA, RateUnit::Tpm, 60, 60)];
    let until = until_of(rates.take(0, LEASE, &all)).unwrap();
    assert_eq!(until, SLOT_MICROS);
    assert_eq!(until_of(rates.take(until - 1, LEASE, &all)), None);
    assert!(until_of(rates.take(until, LEASE, &all)).is_some());
    // Whoever comes late returns nothing, and is counted.
    rates.correct(until, &[correction(until, 60 * SECOND, SECOND)]);
    assert_eq!(rates.held(until, ANNA, RateUnit::Tpm), 60 * SECOND);
    assert_eq!(rates.ahead(until, ANNA, RateUnit::Tpm), SECOND);
}

#[test]
fn what_has_drained_is_forgotten_and_nothing_else() {
    let mut rates = Rates::default();
    let takes = [take(ANNA, RateUnit::Rpm, 60, 1), take(ANNA, RateUnit::Tpm, 60, 1)];
    rates.take(0, LEASE, &takes);
    rates.expire(SECOND - 1);
    assert_eq!(rates.len(), 2);
    rates.expire(SECOND);
    assert_eq!(rates.len(), 1, "the tokens are held");
    rates.expire(SLOT_MICROS);
    assert!(rates.is_empty());
}

#[test]
fn a_key_is_one_claimants_until_it_is_charged_freed_or_left() {
    let mut keys = Keys::default();
    let mut claim = |now, owner, body| keys.claim(now, LEASE, ANNA, keyed(body), by(owner));
    assert_eq!(claim(0, 1, 1), KeyAnswer::Begun);
    assert_eq!(claim(1, 1, 1), KeyAnswer::Begun, "the same ask, sent twice");
    assert_eq!(claim(1, 2, 1), KeyAnswer::InFlight);
    assert_eq!(claim(1, 2, 2), KeyAnswer::Mismatch);
    assert_eq!(claim(LEASE + 1, 2, 2), KeyAnswer::Begun, "its gateway died");
    keys.end(LEASE + 2, LEASE, ANNA, (keyed(1), by(1)), false);
    assert_eq!(keys.claim(LEASE + 2, LEASE, ANNA, keyed(2), by(3)), KeyAnswer::InFlight);
    keys.end(LEASE + 2, LEASE, ANNA, (keyed(2), by(2)), false);
    assert_eq!(keys.claim(LEASE + 2, LEASE, BERT, keyed(2), by(3)), KeyAnswer::Begun);
    assert_eq!(keys.claim(LEASE + 2, LEASE, ANNA, keyed(3), by(3)), KeyAnswer::Begun);
    assert_eq!(keys.len(), 2, "a key is its tenant's");
}

#[test]
fn a_key_that_was_charged_is_done_whoever_has_it_now() {
    let mut keys = Keys::default();
    keys.claim(0, LEASE, ANNA, keyed(1), by(1));
    assert_eq!(keys.claim(LEASE, LEASE, ANNA, keyed(1), by(2)), KeyAnswer::Begun);
    keys.end(LEASE, LEASE, ANNA, (keyed(1), by(1)), true);
    keys.end(LEASE + 1, LEASE, ANNA, (keyed(1), by(2)), false);
    for owner in 1..4 {
        assert_eq!(keys.claim(LEASE + 2, LEASE, ANNA, keyed(1), by(owner)), KeyAnswer::Done);
    }
    assert_eq!(keys.claim(LEASE + 2, LEASE, ANNA, keyed(2), by(1)), KeyAnswer::Mismatch);
    assert_eq!(keys.claim(2 * LEASE, LEASE, ANNA, keyed(2), by(1)), KeyAnswer::Begun);
    keys.expire(3 * LEASE);
    assert!(keys.is_empty());
}

fn at(endpoint: &str, epoch: u64) -> HomeAnswer {
    HomeAnswer::At { endpoint: endpoint.into(), epoch }
}

#[test]
fn of_two_that_move_a_session_at_once_one_does() {
    let mut homes = Homes::default();
    assert_eq!(homes.at(0, SESSION), HomeAnswer::Nowhere { epoch: 0 });
    assert_eq!(homes.accepted(0, SESSION, "a", 0, LEASE), at("a", 1));
    assert_eq!(homes.accepted(0, SESSION, "b", 0, LEASE), at("a", 1), "it lost");
    assert_eq!(homes.accepted(0, SESSION, "b", 1, LEASE), at("b", 2));
    assert_eq!(homes.accepted(0, SESSION, "b", 0, LEASE), at("b", 2), "there it is");
    assert_eq!(homes.homeless(0, SESSION, 1), at("b", 2));
    assert_eq!(homes.homeless(0, SESSION, 2), HomeAnswer::Nowhere { epoch: 2 });
    assert_eq!(homes.accepted(0, SESSION, "a", 2, LEASE), at("a", 3));
}

#[test]
fn a_store_that_has_forgotten_catches_up_with_whoever_has_not() {
    let mut homes = Homes::default();
    assert_eq!(homes.accepted(0, SESSION, "a", 0, LEASE), at("a", 1));
    assert_eq!(homes.accepted(0, SESSION, "a", 8, LEASE), at("a", 8));
    assert_eq!(homes.accepted(0, SESSION, "a", 7, LEASE), at("a", 8));
    assert_eq!(homes.at(LEASE, SESSION), HomeAnswer::Nowhere { epoch: 8 });
    assert_eq!(homes.accepted(LEASE, SESSION, "b", 7, LEASE), HomeAnswer::Nowhere { epoch: 8 });
    homes.expire(2 * LEASE);
    assert_eq!(homes.at(2 * LEASE, SESSION), HomeAnswer::Nowhere { epoch: 0 });
    assert!(homes.is_empty());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn the_store_lets_through_what_one_planes_own_limiter_would(
        rpm in 1_u32..600, tpm in 1_u64..5_000,
        steps in prop::collection::vec((0_u64..8_000, 1_u64..400, 0_usize..6, 0_u64..1_200), 1..100),
    ) {
        let mut own = Rate::new(rate::Config::default());
        let limits = [(ANNA, RateLimits { rpm: Some(rpm), tpm: Some(tpm) })];
        let (mut store, mut now) = (Rates::default(), 0);
        let mut running = Vec::new();
        for (wait, tokens, which, permille) in steps {
            now += wait * 1_000;
            let instant = |micros: u64| Instant::from_nanos(micros * 1_000);
            if which < running.len() {
                let (since, until, held) = running.swap_remove(which);
                let used: u64 = held * permille / 1_000;
                own.adjust(instant(now), limits[0], instant(since), Tokens(held), Tokens(used));
                let [held, used] = [held, used].map(|tokens| drain_micros(tpm, tokens));
                store.correct(now, &[correction(until, held, used)]);
                continue;
            }
            let takes = [
                take(ANNA, RateUnit::Rpm, u64::from(rpm), 1),
                take(ANNA, RateUnit::Tpm, tpm, tokens),
            ];
            let locally = own.check(instant(now), &limits, Tokens(tokens));
            let answer = store.take(now, 3_600 * SECOND, &takes);
            match (locally, answer) {
                (Ok(()), RatesAnswer::Taken { until }) => running.push((now, until, tokens)),
                (Err(own), RatesAnswer::Refused { retry_after, .. }) => {
                    let apart = own.retry_after.abs_diff(retry_after);
                    prop_assert!(apart < Duration::from_millis(1), "{apart:?}");
                }
                // Rounded up to microseconds: a hundred requests are a tenth of a millisecond later at most.
                (Ok(()), RatesAnswer::Refused { retry_after, .. }) => {
                    prop_assert!(retry_after < Duration::from_micros(300), "{retry_after:?}");
                    return Ok(());
                }
                (Err(own), RatesAnswer::Taken { .. }) => prop_assert!(false, "more than {own:?}"),
            }
        }
    }

    #[test]
    fn a_script_with_doubles_counts_the_same(limit in 0_u64.., amount in 0_u64..) {
        prop_assert!(drain_micros(limit, amount) <= 1 << 50);
        let micros = drain_micros(limit, amount);
        #[allow(clippy::cast_precision_loss, clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "what is tested")]
        let doubled = micros as f64 as u64;
        prop_assert_eq!(doubled, micros);
    }
}
