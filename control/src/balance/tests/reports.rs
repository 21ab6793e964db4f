//! What endpoints say of their load, and how far it is believed.

use core::time::Duration;

use super::support::*;
use crate::balance::{Balancer, FRESH, GONE, Policy, REPORTED_MAX, Reason, Reported, STEP};
use crate::rng::Rng;
use crate::time::Instant;

const START: Instant = Instant::from_nanos(1_000_000_000);

fn running(running: u32) -> Reported {
    Reported { running, ..Reported::default() }
}

/// Where so many requests go that all stay.
fn placed<const N: usize>(balancer: &mut Balancer, requests: u32) -> [u32; N] {
    let mut counts = [0; N];
    for _ in 0..requests {
        let endpoint = chosen(balancer.pick(&query(&[]))).endpoint;
        balancer.dispatched(endpoint);
        counts[endpoint.slot as usize] += 1;
    }
    balancer.invariants();
    counts
}

#[test]
fn who_is_busy_with_the_work_of_others_gets_less() {
    for policy in [Policy::LeastLoad, Policy::Auto, Policy::P2c] {
        let mut balancer = pool(policy, &[100; 4]);
        assert!(balancer.reported(START, id(0), running(30)));
        let counts: [u32; 4] = placed(&mut balancer, 80);
        assert!(counts[0] <= 12 && counts.iter().sum::<u32>() == 80, "{policy:?}: {counts:?}");
    }
}

#[test]
fn our_own_part_of_what_is_reported_is_not_counted_twice() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 2]);
    placed::<2>(&mut balancer, 12);
    balancer.reported(START, id(0), running(6));
    assert_eq!(balancer.others(id(0)), 0);
    // Less than we know of: a part of ours has not arrived there yet.
    balancer.reported(START, id(0), running(2));
    assert_eq!(balancer.others(id(0)), 0);
    balancer.reported(START, id(0), Reported { queued: 3, ..running(6) });
    assert_eq!(balancer.others(id(0)), 3);
}

#[test]
fn what_was_said_counts_less_and_less_and_then_not_at_all() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 2]);
    balancer.reported(START, id(0), running(8));
    let moment = Duration::from_nanos(1);
    let mut counted = |at: Duration| {
        balancer.age(START + at);
        balancer.invariants();
        balancer.others(id(0))
    };
    assert_eq!(counted(FRESH - moment), 8);
    let later = [FRESH, FRESH + STEP, FRESH + STEP * 2, GONE - moment, GONE];
    assert_eq!(later.map(&mut counted), [6, 4, 2, 2, 0]);
}

#[test]
fn a_long_silence_takes_all_of_it_at_once() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 2]);
    balancer.reported(START, id(0), running(8));
    balancer.age(START + GONE * 100);
    assert_eq!(balancer.others(id(0)), 0);
    balancer.invariants();
}

#[test]
fn a_newer_report_replaces_an_older_one() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 2]);
    balancer.reported(START, id(0), running(8));
    balancer.age(START + FRESH);
    balancer.reported(START + FRESH, id(0), running(20));
    assert_eq!(balancer.others(id(0)), 20);
    balancer.reported(START + FRESH, id(0), running(0));
    assert_eq!(balancer.others(id(0)), 0);
    balancer.invariants();
}

#[test]
fn a_cache_that_is_nearly_full_makes_dearer() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 2]);
    for (used, others) in [(0, 10), (900, 10), (950, 15), (1_000, 20), (u32::MAX, 20)] {
        balancer.reported(START, id(0), Reported { kv_used_permille: Some(used), ..running(10) });
        assert_eq!(balancer.others(id(0)), others, "{used} permille");
    }
    let idle = Reported { kv_used_permille: Some(1_000), ..Reported::default() };
    balancer.reported(START, id(0), idle);
    assert_eq!(balancer.others(id(0)), 1);
}

#[test]
fn no_lie_drives_anybody_above_the_bound() {
    for policy in [Policy::LeastLoad, Policy::Auto] {
        let mut balancer = pool(policy, &[100; 5]);
        let absurd = Reported { queued: u32::MAX, ..running(u32::MAX) };
        (0..4).for_each(|slot| assert!(balancer.reported(START, id(slot), absurd)));
        assert_eq!(balancer.others(id(0)), REPORTED_MAX);
        let counts: [u32; 5] = placed(&mut balancer, 100);
        // A fifth would be 20.
        assert_eq!(counts[4], 25, "{policy:?}: {counts:?}");
        assert!(counts[..4].iter().all(|count| *count >= 18), "{policy:?}: {counts:?}");
    }
}

#[test]
fn who_claims_to_be_idle_gains_nothing() {
    let mut believed = pool(Policy::LeastLoad, &[100; 3]);
    let mut silent = believed.clone();
    for request in 0..60 {
        believed.reported(START, id(1), running(0));
        let [one, other] = [&mut believed, &mut silent].map(|balancer| {
            let endpoint = chosen(balancer.pick(&query(&[]))).endpoint;
            balancer.dispatched(endpoint);
            endpoint
        });
        assert_eq!(one, other, "request {request}");
    }
}

#[test]
fn a_home_is_where_it_was_whatever_is_reported() {
    let mut balancer = pool(Policy::Auto, &[100; 4]);
    let home = chosen(balancer.pick(&with_key(1))).endpoint;
    balancer.reported(START, home, running(1_000));
    let again = chosen(balancer.pick(&with_key(1)));
    assert_eq!((again.endpoint, again.reason), (home, Reason::Home));
    let told = again.considered.iter().find(|candidate| candidate.endpoint == home);
    assert_eq!(told.map(|candidate| candidate.others), Some(1_000));
}

#[test]
fn nobody_reports_for_who_is_gone() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 2]);
    balancer.reported(START, id(0), running(8));
    balancer.remove(id(0));
    balancer.invariants();
    assert!(!balancer.reported(START, id(0), running(8)));
    let stale = crate::id::EndpointId { slot: 1, generation: 0 };
    assert!(!balancer.reported(START, stale, running(8)));
    let mut empty = Balancer::new(config(Policy::Auto), Rng::new(1));
    assert!(!empty.reported(START, id(3), running(8)));
}
