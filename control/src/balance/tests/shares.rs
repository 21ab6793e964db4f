use alloc::collections::VecDeque;
use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::support::*;
use crate::balance::{Balancer, Policy};

/// How often each of the first `members` slots is picked, without any load.
fn counts(balancer: &mut Balancer, picks: u32, members: usize) -> Vec<u32> {
    let mut counts = vec![0; members];
    for _ in 0..picks {
        counts[slot(balancer, &query(&[])) as usize] += 1;
    }
    counts
}

#[test]
fn round_robin_with_equal_weights_goes_round() {
    let mut balancer = pool(Policy::RoundRobin, &[100; 4]);
    let picks: Vec<_> = (0..12).map(|_| slot(&mut balancer, &query(&[]))).collect();
    assert_eq!(picks, [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3]);
}

#[test]
fn round_robin_spreads_a_heavy_members_turns_out() {
    let mut balancer = pool(Policy::RoundRobin, &[5, 1, 1]);
    let picks: Vec<_> = (0..14).map(|_| slot(&mut balancer, &query(&[]))).collect();
    assert_eq!(picks, [0, 0, 0, 1, 2, 0, 0, 0, 0, 0, 1, 2, 0, 0]);
}

#[test]
fn who_comes_back_gets_no_burst() {
    let mut balancer = pool(Policy::RoundRobin, &[100; 3]);
    balancer.set_admitted(id(0), false);
    counts(&mut balancer, 1_000, 3);
    balancer.set_admitted(id(0), true);
    let after = counts(&mut balancer, 9, 3);
    assert!(after.iter().all(|count| (2..=4).contains(count)), "{after:?}");
    add(&mut balancer, 3, 100, 0);
    let after = counts(&mut balancer, 8, 4);
    assert!(after.iter().all(|count| (1..=3).contains(count)), "{after:?}");
}

#[test]
fn who_comes_back_waits_for_no_turns_that_others_missed_to_retries() {
    let mut balancer = pool(Policy::RoundRobin, &[1, 100, 100, 100]);
    balancer.set_admitted(id(3), false);
    for _ in 0..3 {
        let tried = [id(1), id(2)];
        assert_eq!(slot(&mut balancer, &query(&tried)), 0, "out of order: its turn is far away");
    }
    balancer.set_admitted(id(3), true);
    balancer.invariants();
    let after = counts(&mut balancer, 9, 4);
    assert!(after[1..].iter().all(|count| (2..=4).contains(count)), "{after:?}");
}

#[test]
fn slow_start_ends_when_the_share_is_whole_again_not_a_long_turn_later() {
    let mut balancer = pool(Policy::RoundRobin, &[100, 100]);
    balancer.set_admitted(id(0), false);
    balancer.set_share(id(0), 10);
    counts(&mut balancer, 10, 2);
    balancer.set_admitted(id(0), true);
    assert!(counts(&mut balancer, 20, 2)[0] <= 1);
    balancer.set_share(id(0), 1_000);
    let after = counts(&mut balancer, 20, 2);
    assert!((9..=11).contains(&after[0]), "{after:?}");
}

#[test]
fn two_choices_follow_the_weights() {
    let mut balancer = pool(Policy::P2c, &[300, 100, 100, 100]);
    let mut running = VecDeque::new();
    let mut picked = [0_u32; 4];
    for _ in 0..4_000 {
        let endpoint = chosen(balancer.pick(&query(&[]))).endpoint;
        balancer.dispatched(endpoint);
        picked[endpoint.slot as usize] += 1;
        running.push_back(endpoint);
        if running.len() > 60 {
            assert!(balancer.released(running.pop_front().unwrap()));
        }
    }
    assert!((1_800..=2_200).contains(&picked[0]), "{picked:?}");
    assert!(picked[1..].iter().all(|count| (550..=780).contains(count)), "{picked:?}");
}

#[test]
fn equals_take_turns_under_least_load() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 5]);
    assert_eq!(counts(&mut balancer, 50, 5), [10; 5]);
}

#[test]
fn least_load_fills_in_proportion_to_weight() {
    let mut balancer = pool(Policy::LeastLoad, &[100, 200, 300]);
    for _ in 0..600 {
        let endpoint = chosen(balancer.pick(&query(&[]))).endpoint;
        balancer.dispatched(endpoint);
    }
    let load: Vec<_> = (0..3).map(|slot| balancer.in_flight(id(slot))).collect();
    assert_eq!(load, [100, 200, 300]);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    /// In `v` units of virtual time a member has `v * weight` turns, off by less than one. Over a window of picks
    /// that leaves one slot for itself, and its share of what the others are off by.
    #[test]
    fn round_robin_is_proportional_in_every_window(
        weights in prop::collection::vec(1_u32..30, 1..7),
    ) {
        let mut balancer = pool(Policy::RoundRobin, &weights);
        let picks: Vec<_> = (0..150).map(|_| slot(&mut balancer, &query(&[]))).collect();
        let total: u32 = weights.iter().sum();
        for (member, weight) in (0..).zip(&weights) {
            let share = f64::from(*weight) / f64::from(total);
            let off_by = (1.0 - share) + share * (weights.len() - 1) as f64;
            for from in 0..picks.len() {
                let mut count = 0.0;
                for (length, pick) in (1..).zip(&picks[from..]) {
                    count += f64::from(u8::from(*pick == member));
                    let off: f64 = count - share * f64::from(length);
                    prop_assert!(off.abs() <= off_by + 1e-6, "{weights:?}: {picks:?}");
                }
            }
        }
    }

    #[test]
    fn least_load_with_equal_service_times_stays_within_one(
        members in 1_usize..20,
        bursts in prop::collection::vec((1_u8..30, 0_u8..30), 1..30),
    ) {
        let mut balancer = pool(Policy::LeastLoad, &vec![100; members]);
        let mut running = VecDeque::new();
        for (arrive, depart) in bursts {
            for _ in 0..arrive {
                let endpoint = chosen(balancer.pick(&query(&[]))).endpoint;
                balancer.dispatched(endpoint);
                running.push_back(endpoint);
                let load = (0..members as u32).map(|slot| balancer.in_flight(id(slot)));
                prop_assert!(load.clone().max().unwrap() - load.min().unwrap() <= 1);
            }
            for _ in 0..depart {
                // Equal service times: first in, first out.
                if let Some(endpoint) = running.pop_front() {
                    prop_assert!(balancer.released(endpoint));
                }
            }
        }
        while let Some(endpoint) = running.pop_front() {
            prop_assert!(balancer.released(endpoint));
        }
        prop_assert_eq!(balancer.in_flight_total(), 0);
        balancer.invariants();
    }
}
