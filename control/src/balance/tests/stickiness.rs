use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::support::*;
use crate::balance::{Balancer, Fallback, Policy, Query, Reason};
use crate::rng::Rng;

const STICKY: Policy = Policy::Sticky { fallback: Fallback::Rendezvous };
const IN_TURN: Policy = Policy::Sticky { fallback: Fallback::RoundRobin };

fn homes(balancer: &mut Balancer, sessions: u64) -> Vec<u32> {
    (0..sessions).map(|number| slot(balancer, &with_key(number))).collect()
}

#[test]
fn two_gateways_that_learned_of_their_replicas_in_other_orders_agree_on_every_home() {
    for members in [5_u32, 64, 65, 300] {
        let mut one = pool(STICKY, &vec![100; members as usize]);
        let mut other = Balancer::new(config(STICKY), Rng::new(99));
        for slot in (0..members).rev() {
            add(&mut other, slot, 100, 0);
        }
        add(&mut other, members, 100, 0);
        other.remove(id(members));
        other.invariants();
        assert_eq!(homes(&mut one, 500), homes(&mut other, 500), "{members} members");
    }
}

#[test]
fn a_dead_replica_loses_only_its_own_sessions_and_they_spread_over_all_survivors() {
    for members in [8_usize, 100] {
        let mut balancer = pool(STICKY, &vec![100; members]);
        let sessions = 200 * members as u64;
        let before = homes(&mut balancer, sessions);
        balancer.set_admitted(id(3), false);
        let after = homes(&mut balancer, sessions);
        let mut inherited = vec![0; members];
        for (before, after) in before.iter().zip(&after) {
            if *before == 3 {
                inherited[*after as usize] += 1;
            } else {
                assert_eq!(before, after, "a session of a living replica moved");
            }
        }
        assert_eq!(inherited.remove(3), 0);
        let most = inherited.iter().max().unwrap();
        if members == 8 {
            assert!(inherited.iter().all(|count| (10..=45).contains(count)), "{inherited:?}");
        } else {
            assert!(*most <= 10, "a neighbour inherited {most}");
        }
        balancer.set_admitted(id(3), true);
        assert_eq!(homes(&mut balancer, sessions), before, "back, they come home");
    }
}

#[test]
fn a_removed_member_of_a_large_pool_moves_few_sessions_of_others() {
    let mut balancer = pool(STICKY, &[100; 400]);
    let before = homes(&mut balancer, 8_000);
    balancer.remove(id(3));
    let after = homes(&mut balancer, 8_000);
    let own = before.iter().filter(|home| **home == 3).count();
    let moved = before.iter().zip(&after).filter(|(before, after)| before != after).count();
    // Two levels of inner nodes and a leaf: at most a few times what had to move.
    assert!(moved >= own && moved <= 5 * own.max(20), "{moved} moved, {own} had to");
}

#[test]
fn a_session_stays_where_it_is_bound_while_that_one_has_room() {
    for policy in [STICKY, IN_TURN, Policy::Auto] {
        let mut balancer = pool(policy, &[100; 4]);
        for bound in 0..4 {
            let query = Query { bound: Some(id(bound)), ..with_key(1) };
            let pick = chosen(balancer.pick(&query));
            assert_eq!((pick.endpoint, pick.reason), (id(bound), Reason::Bound));
        }
    }
}

#[test]
fn a_home_above_the_bound_spills_to_the_keys_next_home() {
    let mut balancer = pool(Policy::Auto, &[100; 4]);
    let home = slot(&mut balancer, &with_key(5));
    balancer.dispatched(id(home));
    for bound in [None, Some(id(home))] {
        // One in flight there, none elsewhere: a second would be above ceil(1.25 * 2 / 4) = 1.
        let pick = chosen(balancer.pick(&Query { bound, ..with_key(5) }));
        assert_eq!(pick.reason, Reason::Spilled { from: id(home) });
        assert_ne!(pick.endpoint, id(home));
    }
    assert!(balancer.released(id(home)));
    assert_eq!(slot(&mut balancer, &with_key(5)), home);
}

#[test]
fn sticky_places_new_sessions_in_turn_where_that_is_asked_for() {
    let mut balancer = pool(IN_TURN, &[100; 3]);
    let picks: Vec<_> = (0..6).map(|number| chosen(balancer.pick(&with_key(number)))).collect();
    assert!(picks.iter().all(|pick| pick.reason == Reason::InTurn));
    let slots: Vec<_> = picks.iter().map(|pick| pick.endpoint.slot).collect();
    assert_eq!(slots, [0, 1, 2, 0, 1, 2]);
}

#[test]
fn a_session_bound_to_a_worse_tier_returns_to_the_better_one() {
    let mut balancer = pool(Policy::Auto, &[100]);
    add(&mut balancer, 1, 100, 1);
    assert_eq!(slot(&mut balancer, &Query { bound: Some(id(1)), ..with_key(1) }), 0);
}

#[test]
fn other_policies_do_not_pin() {
    let mut balancer = pool(Policy::RoundRobin, &[100; 3]);
    let query = Query { bound: Some(id(2)), ..with_key(1) };
    let picks: Vec<_> = (0..3).map(|_| slot(&mut balancer, &query)).collect();
    assert_eq!(picks, [0, 1, 2]);
}

#[test]
fn one_key_for_everything_still_uses_every_replica() {
    // A prefix that every request shares must not send everything to one replica.
    let mut balancer = pool(Policy::Auto, &[100; 8]);
    for _ in 0..800 {
        let endpoint = chosen(balancer.pick(&with_key(1))).endpoint;
        balancer.dispatched(endpoint);
    }
    for slot in 0..8 {
        assert!(balancer.in_flight(id(slot)) <= 125);
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn no_placement_goes_above_the_bound(
        weights in prop::collection::vec(1_u32..200, 1..90),
        in_turn: bool,
        keys in prop::collection::vec(0_u64..20, 1..150),
        ended in prop::collection::vec(0_usize..1_000, 0..80),
    ) {
        let mut balancer = pool(if in_turn { IN_TURN } else { STICKY }, &weights);
        let total: u64 = weights.iter().map(|weight| u64::from(*weight)).sum();
        let (mut running, mut ended) = (Vec::new(), ended.into_iter());
        for number in keys {
            let endpoint = chosen(balancer.pick(&with_key(number))).endpoint;
            balancer.dispatched(endpoint);
            running.push(endpoint);
            let weight = u64::from(weights[endpoint.slot as usize]);
            let bound = (125 * running.len() as u64 * weight).div_ceil(100 * total);
            prop_assert!(u64::from(balancer.in_flight(endpoint)) <= bound);
            if let Some(index) = ended.next().filter(|_| number % 2 == 0) {
                prop_assert!(balancer.released(running.swap_remove(index % running.len())));
            }
        }
        balancer.invariants();
    }
}
