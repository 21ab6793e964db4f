use alloc::format;
use alloc::string::String;

use super::support::*;
use crate::balance::{Balancer, Pick, Policy};
use crate::rng::Rng;

/// Three replicas of our own and a provider behind them. One replica dies, its sessions move and the others' stay; all
/// three go, and the provider helps out; they come back, and every session is home again.
#[test]
fn a_replica_dies_its_sessions_move_and_it_comes_back() {
    let told = tell(
        "pick 1, pick 2, pick 3, pick 4, eject 2, pick 1, pick 2, pick 3, pick 4, \
         drain 0, eject 1, pick 1, eject 3, pick 1, admit 1, admit 2, admit 3, undrain 0, \
         pick 1, pick 2, pick 3, pick 4",
    );
    assert_eq!(told, EXPECTED, "{told}");
}

const EXPECTED: &str = "\
pick 1 -> replica-2: it is the session's home
pick 2 -> replica-2: it is the session's home
pick 3 -> replica-0: it is the session's home
pick 4 -> replica-1: it is the session's home
eject 2
pick 1 -> replica-0: it is the session's home; not replica-2: its breaker is open
pick 2 -> replica-1: it is the session's home; not replica-2: its breaker is open
pick 3 -> replica-0: it is the session's home
pick 4 -> replica-1: it is the session's home
drain 0
eject 1
pick 1 -> replica-3: it is the session's home
eject 3
pick 1: nobody, of 4 endpoints 1 are draining, 3 have an open breaker, 0 are full
admit 1
admit 2
admit 3
undrain 0
pick 1 -> replica-2: it is the session's home
pick 2 -> replica-2: it is the session's home
pick 3 -> replica-0: it is the session's home
pick 4 -> replica-1: it is the session's home
";

fn tell(script: &str) -> String {
    let mut balancer = Balancer::new(config(Policy::Auto), Rng::new(1));
    for slot in 0..3 {
        add(&mut balancer, slot, 100, 0);
    }
    add(&mut balancer, 3, 100, 1);
    let mut told = String::new();
    for line in script.split(", ") {
        let (verb, number) = line.trim().split_once(' ').unwrap();
        let number: u32 = number.parse().unwrap();
        let outcome = match verb {
            "eject" => say(|| balancer.set_admitted(id(number), false)),
            "admit" => say(|| balancer.set_admitted(id(number), true)),
            "drain" => say(|| balancer.set_draining(id(number), true)),
            "undrain" => say(|| balancer.set_draining(id(number), false)),
            "pick" => describe(balancer.pick(&with_key(u64::from(number)))),
            _ => panic!("an unknown verb: {verb}"),
        };
        told += &format!("{verb} {number}{outcome}\n");
        balancer.invariants();
    }
    told
}

fn say(change: impl FnOnce()) -> String {
    change();
    String::new()
}

fn describe(pick: Pick) -> String {
    let chosen = match pick {
        Pick::Nobody(nobody) => return format!(": nobody, {nobody}"),
        Pick::Chosen(chosen) => chosen,
    };
    let mut told = format!(" -> {}: {}", name(chosen.endpoint.slot), chosen.reason);
    for candidate in chosen.considered.iter() {
        if let Some(why_not) = candidate.why_not {
            told += &format!("; not {}: {why_not}", name(candidate.endpoint.slot));
        }
    }
    told
}
