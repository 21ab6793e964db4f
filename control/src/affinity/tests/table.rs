use alloc::format;
use alloc::string::{String, ToString};

use super::*;

const STATES: [&str; 5] = ["unbound", "bound", "spilling", "ripe", "lapsed"];
const EVENTS: [&str; 7] = [
    "bind same",
    "bind other",
    "decide calm",
    "decide over",
    "time to live",
    "release",
    "endpoint removed",
];

/// The module's table, as the machine itself tells it.
const EXPECTED: &str = "\
unbound  | bind same        | bound
unbound  | bind other       | bound
unbound  | decide calm      | unbound Stay
unbound  | decide over      | unbound Spill
unbound  | time to live     | unbound
unbound  | release          | unbound
unbound  | endpoint removed | unbound
bound    | bind same        | bound
bound    | bind other       | bound +1
bound    | decide calm      | bound Stay
bound    | decide over      | spilling Spill
bound    | time to live     | lapsed
bound    | release          | lapsed
bound    | endpoint removed | lapsed
spilling | bind same        | spilling
spilling | bind other       | bound +1
spilling | decide calm      | bound Stay
spilling | decide over      | spilling Spill
spilling | time to live     | lapsed
spilling | release          | lapsed
spilling | endpoint removed | lapsed
ripe     | bind same        | ripe
ripe     | bind other       | bound +1
ripe     | decide calm      | bound Stay
ripe     | decide over      | ripe Migrate
ripe     | time to live     | lapsed
ripe     | release          | lapsed
ripe     | endpoint removed | lapsed
lapsed   | bind same        | bound
lapsed   | bind other       | bound +1
lapsed   | decide calm      | lapsed Stay
lapsed   | decide over      | lapsed Spill
lapsed   | time to live     | lapsed
lapsed   | release          | lapsed
lapsed   | endpoint removed | lapsed
";

#[test]
fn the_transition_table_is_what_the_module_says() {
    let mut table = String::new();
    for state in STATES {
        for event in EVENTS {
            table += &format!("{state:8} | {event:16} | {}\n", outcome(state, event));
        }
    }
    assert_eq!(table, EXPECTED, "{table}");
}

fn outcome(state: &str, event: &str) -> String {
    let (mut affinity, mut now) = arrange(state);
    let mut said = String::new();
    let epoch = affinity.entries.get(&key(1)).map(|entry| entry.binding.epoch);
    match event {
        "bind same" => assert_eq!(affinity.bind(now, key(1), id(0)).binding.endpoint, id(0)),
        "bind other" => assert_eq!(affinity.bind(now, key(1), id(1)).binding.endpoint, id(1)),
        "decide calm" => said = format!(" {:?}", affinity.decide(now, key(1), false)),
        "decide over" => said = format!(" {:?}", affinity.decide(now, key(1), true)),
        "time to live" => now = now + Duration::from_secs(3_600),
        "release" => affinity.release(key(1)),
        _ => affinity.endpoint_removed(id(0)),
    }
    affinity.invariants();
    let after = affinity.entries.get(&key(1)).map(|entry| entry.binding.epoch);
    if epoch.is_some() && epoch < after {
        said += " +1";
    }
    state_of(&affinity, now).to_string() + &said
}

fn arrange(state: &str) -> (Affinity, Instant) {
    let mut affinity = small(10);
    if state == "unbound" {
        return (affinity, at(0));
    }
    affinity.bind(at(0), key(1), id(0));
    let spills = match state {
        "spilling" => 1,
        "ripe" => 3,
        _ => 0,
    };
    for _ in 0..spills {
        affinity.decide(at(1), key(1), true);
    }
    (affinity, if state == "lapsed" { at(3_600) } else { at(2) })
}

fn state_of(affinity: &Affinity, now: Instant) -> &'static str {
    let Some(entry) = affinity.entries.get(&key(1)) else { return "unbound" };
    match entry.spills {
        _ if affinity.lookup(now, key(1)).is_none() => "lapsed",
        0 => "bound",
        spills if spills < affinity.config.spills_before_migration => "spilling",
        _ => "ripe",
    }
}
