#![allow(clippy::unwrap_used, reason = "a test may panic")]

use alloc::vec;
use alloc::vec::Vec;

use proptest::prelude::*;

use super::*;
use crate::rng::hash_bytes;

fn entry(place: u32, weight: u32) -> Entry {
    Entry { hash: hash_bytes(1, &place.to_le_bytes()), weight, place }
}

fn trie(weights: &[u32]) -> Trie {
    let mut trie = Trie::default();
    for (place, weight) in (0..).zip(weights) {
        trie.insert(entry(place, *weight));
    }
    assert_eq!(trie.invariants(), weights.len());
    trie
}

fn home(trie: &Trie, key: u64) -> u32 {
    trie.ranking(mix(key)).next().unwrap()
}

#[test]
fn an_empty_trie_has_no_homes() {
    assert_eq!(Trie::default().ranking(1).count(), 0);
}

#[test]
fn a_small_pool_is_ranked_in_exact_rendezvous_order() {
    let weights: Vec<u32> = (1..=20).collect();
    let trie = trie(&weights);
    for key in (0..200).map(mix) {
        let mut slow: Vec<(f64, u32)> = (0..)
            .zip(&weights)
            .map(|(place, weight)| {
                let u = uniform(mix(mix(key) ^ entry(place, *weight).hash));
                (-libm::log(u) / f64::from(*weight), place)
            })
            .collect();
        slow.sort_by(|left, right| left.0.partial_cmp(&right.0).unwrap());
        let slow: Vec<u32> = slow.into_iter().map(|(_, place)| place).collect();
        assert_eq!(trie.ranking(key).collect::<Vec<_>>(), slow);
    }
}

#[test]
fn homes_are_shared_out_in_proportion_to_weight() {
    for members in [2_u32, 10, 64, 65, 300] {
        let weights: Vec<u32> = (0..members).map(|place| 1 + place % 5).collect();
        let trie = trie(&weights);
        let total: u32 = weights.iter().sum();
        let keys = 200 * members;
        let mut counts = vec![0_u32; members as usize];
        for key in 0..keys {
            counts[home(&trie, u64::from(key)) as usize] += 1;
        }
        for (count, weight) in counts.iter().zip(&weights) {
            let share = f64::from(*weight) / f64::from(total);
            let mean = f64::from(keys) * share;
            let deviation = (mean * (1.0 - share)).sqrt();
            let off = (f64::from(*count) - mean).abs();
            // Of some 440 counts, the largest is expected at about 3 standard deviations.
            assert!(off < 4.5 * deviation, "{members}: {count} of {mean} ({deviation})");
        }
    }
}

#[test]
fn a_huge_weight_takes_nearly_everything_and_a_small_one_still_something() {
    let trie = trie(&[1, 1_000]);
    let small = (0..100_000).filter(|key| home(&trie, *key) == 0).count();
    assert!((60..=140).contains(&small), "{small}");
}

#[test]
fn later_draws_of_a_large_pool_do_not_follow_the_first() {
    let trie = trie(&[1; 200]);
    let same: usize = (0..2_000)
        .map(|key| {
            let ranking: Vec<u32> = trie.ranking(mix(key)).collect();
            assert_eq!(ranking.len() as u64, DRAWS_MAX);
            ranking[1..].iter().filter(|place| **place == ranking[0]).count()
        })
        .sum();
    // 14,000 pairs, each alike once in 200.
    assert!((40..=105).contains(&same), "{same}");
}

#[test]
fn members_of_the_same_name_share_a_leaf_of_any_size() {
    let mut trie = Trie::default();
    let same = |place| Entry { hash: 42, weight: 1, place };
    for place in 0..200 {
        trie.insert(same(place));
    }
    assert_eq!(trie.invariants(), 200);
    assert!(trie.ranking(7).next().is_some());
    for place in 0..200 {
        trie.remove(same(place));
    }
    assert_eq!(trie.invariants(), 0);
    assert!(matches!(trie.root, Node::Leaf(_)));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(32))]

    #[test]
    fn the_shape_is_a_function_of_the_members_not_of_their_history(
        members in prop::collection::btree_set(0_u32..400, 0..200),
        passing in prop::collection::btree_set(400_u32..600, 0..100),
        shift in 0_u32..60,
    ) {
        // Shifted hashes crowd into few subtrees, which then split deep.
        let crowded = |place| {
            let entry = entry(place, 1 + place % 3);
            Entry { hash: entry.hash >> shift, ..entry }
        };
        let mut straight = Trie::default();
        members.iter().for_each(|place| straight.insert(crowded(*place)));
        let mut winding = Trie::default();
        passing.iter().for_each(|place| winding.insert(crowded(*place)));
        members.iter().rev().for_each(|place| winding.insert(crowded(*place)));
        passing.iter().for_each(|place| winding.remove(crowded(*place)));
        prop_assert_eq!(winding.invariants(), members.len());
        let bytes = |trie: &Trie| postcard::to_allocvec(trie).unwrap();
        prop_assert_eq!(bytes(&straight), bytes(&winding));
    }
}
