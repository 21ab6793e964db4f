use super::support::*;
use crate::balance::{Balancer, Fallback, Nobody, Policy, Query, Reason, WhyNot};
use crate::rng::Rng;

const ALL: [Policy; 6] = [
    Policy::RoundRobin,
    Policy::LeastLoad,
    Policy::P2c,
    Policy::Sticky { fallback: Fallback::Rendezvous },
    Policy::Sticky { fallback: Fallback::RoundRobin },
    Policy::Auto,
];

#[test]
fn a_model_nobody_serves_is_told_apart_from_one_nobody_can_serve_now() {
    let mut balancer = pool(Policy::Auto, &[100]);
    let unknown = balancer.pick(&Query { model: "other", ..query(&[]) });
    assert!(nobody(unknown).unknown_model);
    balancer.set_draining(id(0), true);
    let draining = Nobody { members: 1, draining: 1, ..Nobody::default() };
    assert_eq!(nobody(balancer.pick(&query(&[]))), draining);
    assert!(balancer.serves(MODEL) && !balancer.serves("other"));
}

#[test]
fn a_worse_tier_is_used_only_while_the_better_one_has_nobody_left() {
    for policy in ALL {
        let mut balancer = pool(policy, &[100, 100]);
        add(&mut balancer, 2, 100, 1);
        for number in 0..20 {
            assert_eq!(chosen(balancer.pick(&with_key(number))).tier, 0, "{policy:?}");
        }
        balancer.set_admitted(id(0), false);
        balancer.set_draining(id(1), true);
        assert_eq!(chosen(balancer.pick(&with_key(1))).tier, 1);
        balancer.set_draining(id(1), false);
        assert_eq!(slot(&mut balancer, &with_key(1)), 1);
    }
}

#[test]
fn a_request_goes_to_another_tier_rather_than_twice_to_the_same_endpoint() {
    for policy in ALL {
        let mut balancer = pool(policy, &[100]);
        add(&mut balancer, 1, 100, 3);
        let second = chosen(balancer.pick(&query(&[id(0)])));
        assert_eq!((second.endpoint, second.tier, second.retried_same), (id(1), 3, false));
        let third = chosen(balancer.pick(&query(&[id(0), id(1), id(0)])));
        assert_eq!((third.endpoint, third.retried_same), (id(0), true), "{policy:?}");
        balancer.invariants();
    }
}

#[test]
fn a_stale_pin_never_beats_failover() {
    for policy in ALL {
        let mut balancer = pool(policy, &[100, 100]);
        let bound = Query { bound: Some(id(0)), ..with_key(1) };
        balancer.set_admitted(id(0), false);
        assert_eq!(slot(&mut balancer, &bound), 1);
        balancer.set_admitted(id(0), true);
        balancer.set_draining(id(0), true);
        assert_eq!(slot(&mut balancer, &bound), 1);
        balancer.remove(id(0));
        assert_eq!(slot(&mut balancer, &bound), 1);
        balancer.invariants();
    }
}

#[test]
fn a_full_endpoint_takes_no_more_until_one_is_released() {
    for policy in ALL {
        let mut balancer = Balancer::new(config(policy), Rng::new(1));
        add_bounded(&mut balancer, 0, 100, 0, 2);
        for _ in 0..2 {
            assert_eq!(slot(&mut balancer, &with_key(3)), 0);
            balancer.dispatched(id(0));
        }
        let full = Nobody { members: 1, full: 1, ..Nobody::default() };
        assert_eq!(nobody(balancer.pick(&with_key(3))), full);
        assert!(balancer.released(id(0)));
        assert_eq!(slot(&mut balancer, &with_key(3)), 0);
    }
}

#[test]
fn with_nearly_all_ejected_everybody_counts_again() {
    for policy in ALL {
        let mut balancer = pool(policy, &[100; 20]);
        for slot in 0..19 {
            assert!(!chosen(balancer.pick(&with_key(1))).panic);
            balancer.set_admitted(id(slot), false);
        }
        // One of twenty is less than ten percent.
        let mut seen = [0; 20];
        for number in 0..400 {
            let pick = chosen(balancer.pick(&with_key(number)));
            assert!(pick.panic);
            balancer.dispatched(pick.endpoint);
            seen[pick.endpoint.slot as usize] += 1;
        }
        assert!(seen.iter().all(|count| *count > 0), "{policy:?}: {seen:?}");
        balancer.set_admitted(id(0), true);
        assert!(!chosen(balancer.pick(&query(&[]))).panic);
        balancer.invariants();
    }
}

#[test]
fn panic_waits_while_another_tier_can_help() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 5]);
    add(&mut balancer, 9, 100, 1);
    for slot in 0..5 {
        balancer.set_admitted(id(slot), false);
    }
    let pick = chosen(balancer.pick(&query(&[])));
    assert_eq!((pick.endpoint, pick.panic), (id(9), false));
    let pick = chosen(balancer.pick(&query(&[id(9)])));
    assert_eq!((pick.tier, pick.panic, pick.retried_same), (0, true, false));
}

#[test]
fn the_few_admitted_ones_of_a_tier_are_not_joined_by_the_ejected_while_another_tier_can_help() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 20]);
    add(&mut balancer, 20, 100, 1);
    for slot in 1..20 {
        balancer.set_admitted(id(slot), false);
    }
    for _ in 0..5 {
        let pick = chosen(balancer.pick(&query(&[])));
        assert_eq!((pick.endpoint, pick.panic), (id(0), false));
        balancer.dispatched(pick.endpoint);
    }
    balancer.set_draining(id(20), true);
    assert!(chosen(balancer.pick(&query(&[]))).panic);
}

#[test]
fn draining_and_full_endpoints_stay_out_even_in_panic() {
    let mut balancer = pool(Policy::LeastLoad, &[100; 3]);
    add_bounded(&mut balancer, 3, 100, 0, 0);
    for slot in 0..4 {
        balancer.set_admitted(id(slot), false);
    }
    balancer.set_draining(id(0), true);
    for _ in 0..10 {
        let pick = chosen(balancer.pick(&query(&[])));
        assert!(pick.panic && [1, 2].contains(&pick.endpoint.slot));
    }
}

#[test]
fn a_lone_endpoint_is_left_to_cool_down() {
    for members in 1..=2 {
        let mut balancer = pool(Policy::Auto, &[100, 100][..members]);
        for slot in 0..members as u32 {
            balancer.set_admitted(id(slot), false);
        }
        let all = members as u32;
        let expected = Nobody { members: all, ejected: all, ..Nobody::default() };
        assert_eq!(nobody(balancer.pick(&query(&[]))), expected);
        let expected = Nobody { tried: 1, ..expected };
        assert_eq!(nobody(balancer.pick(&query(&[id(0), id(0)]))), expected);
        balancer.invariants();
    }
}

#[test]
fn an_answer_tells_who_was_looked_at() {
    let mut balancer = pool(Policy::Auto, &[100, 100, 100, 100]);
    let home = slot(&mut balancer, &with_key(5));
    balancer.set_admitted(id(home), false);
    let next = slot(&mut balancer, &with_key(5));
    let tried = [id((0..4).find(|slot| *slot != home && *slot != next).unwrap())];
    let bound = Query { bound: Some(id(77)), tried: &tried, ..with_key(5) };
    let pick = chosen(balancer.pick(&bound));
    let told: Vec<_> = pick.considered.iter().map(|c| (c.endpoint, c.why_not)).collect();
    assert_eq!(pick.reason, Reason::Home);
    let expected = [
        (tried[0], Some(WhyNot::Tried)),
        (id(77), Some(WhyNot::Gone)),
        (id(home), Some(WhyNot::Ejected)),
        (id(next), None),
    ];
    assert_eq!(told, expected);
}
