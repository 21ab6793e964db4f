//! A run, told: all of it, in names that people know, and the same each time.

use control::rng::Rng;
use sim::plan::{self, Fault, FaultKind, Plan};
use sim::story::{HostKind, Story};
use sim::tell;

#[test]
fn a_story_of_a_small_plan_contains_every_request() {
    let plan = small(2, &[]);
    let story = tell::story(&plan);
    let asked = story.requests.iter().filter(|request| request.tenant != "visitor");
    assert_eq!(asked.count(), plan.asks.len());
    for request in &story.requests {
        assert!(!request.explanation.is_empty(), "{} says why", request.id);
        assert!(request.ended_ns.is_some(), "{} of a calm world ends", request.id);
        let arrived = request.arrived_ns;
        assert!(
            request.attempts.iter().all(|attempt| attempt.start_ns >= arrived),
            "{}",
            request.id
        );
    }
    let mut ids: Vec<&str> = story.requests.iter().map(|request| request.id.as_str()).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), story.requests.len(), "every id stands for one request");
}

#[test]
fn the_same_plan_gives_the_same_story() {
    for seed in 0..6 {
        let plan = plan::draw(seed);
        assert_eq!(tell::story(&plan), tell::story(&plan), "seed {seed}");
    }
}

#[test]
fn a_story_speaks_of_hosts_and_tenants_by_name() {
    for seed in 0..12 {
        let story = tell::story(&plan::draw(seed));
        for request in &story.requests {
            for line in &request.explanation {
                assert!(!line.contains("acct_") && !line.contains("sess_"), "seed {seed}: {line}");
                let is_id = |word: &str| {
                    let numbers = word.strip_prefix("ep").and_then(|rest| rest.split_once('.'));
                    numbers.is_some_and(|(slot, _)| slot.parse::<u32>().is_ok())
                };
                let mut words = line.split([' ', ',', ':', ';', '(', ')']);
                assert!(!words.any(is_id), "seed {seed}: {line}");
            }
        }
    }
}

#[test]
fn whoever_is_named_in_a_story_is_one_of_its_hosts() {
    for seed in 0..12 {
        let story = tell::story(&plan::draw(seed));
        let known = |id: &u32| story.hosts.iter().any(|host| host.id == *id);
        assert!(story.faults.iter().flat_map(|fault| &fault.hosts).all(known), "seed {seed}");
        assert!(story.marks.iter().map(|mark| &mark.host).all(known), "seed {seed}");
        assert!(
            story.breakers.iter().all(|b| known(&b.gateway) && known(&b.replica)),
            "seed {seed}"
        );
        let homes = story.moves.iter().flat_map(|moved| moved.from.iter().chain(&moved.to));
        assert!(homes.into_iter().all(known), "seed {seed}");
        for request in &story.requests {
            assert!(known(&request.gateway), "seed {seed}");
            assert!(request.attempts.iter().all(|attempt| known(&attempt.replica)), "seed {seed}");
        }
    }
}

#[test]
fn clients_of_a_killed_gateway_are_told_of_with_the_kill() {
    let kill = FaultKind::Kill { gateway: 0, again: 0, upgrade: false };
    let plan = small(2, &[Fault { at_ms: 3_000, until_ms: Some(6_000), kind: kill }]);
    let story = tell::story(&plan);
    let gateway =
        story.hosts.iter().find(|host| host.kind == HostKind::Gateway).map(|host| host.id);
    let marks: Vec<&str> = story
        .marks
        .iter()
        .filter(|mark| Some(mark.host) == gateway)
        .map(|mark| mark.text.as_str())
        .collect();
    assert!(marks.iter().any(|text| text.contains("is killed")), "{marks:?}");
    assert!(marks.iter().any(|text| text.contains("life 2")), "{marks:?}");
    let turned_away =
        story.requests.iter().filter(|request| request.outcome.contains("it is down"));
    let while_down = plan.asks.iter().filter(|ask| (3_010_000..5_990_000).contains(&ask.at_us));
    assert!(turned_away.count() >= while_down.count());
}

#[test]
fn a_run_that_panics_is_told_up_to_its_last_step() {
    // Nobody is there to crash: the world itself panics.
    let nobody = FaultKind::ReplicaCrash { replica: 9_999, power: false };
    let plan = small(2, &[Fault { at_ms: 5_000, until_ms: None, kind: nobody }]);
    let story = tell::story(&plan);
    let broken = story.violation.as_ref().expect("a panic breaks an invariant");
    assert_eq!(broken.invariant, 7);
    assert!((4_000_000_000..=5_000_000_000).contains(&broken.at_ns), "{}", broken.at_ns);
    let before = plan.asks.iter().filter(|ask| ask.at_us < 4_900_000).count();
    assert!(before > 0 && story.requests.len() >= before, "{} of {before}", story.requests.len());
}

#[test]
fn an_account_is_drawn_with_its_limit_and_in_order_of_time() {
    let told: Vec<Story> = (0..20).map(|seed| tell::story(&plan::draw(seed))).collect();
    let lines = told.iter().flat_map(|story| &story.quotas);
    let mut limited = 0;
    for line in lines {
        assert!(line.limit.is_some(), "{} has a limit", line.account);
        let times: Vec<u64> = line.points.iter().map(|point| point.0).collect();
        assert!(times.is_sorted(), "{}", line.account);
        limited += usize::from(line.points.iter().any(|(_, spent, _)| *spent > 0));
    }
    assert!(limited > 20, "{limited} accounts spent something");
}

/// A dozen requests in twelve seconds, one gateway, nothing but the given faults.
fn small(seed: u64, faults: &[Fault]) -> Plan {
    let mut plan = plan::draw(seed);
    let mut rng = Rng::new(seed);
    plan.topology.gateways.truncate(1);
    plan.topology.shared = false;
    plan.config.quota.store = control::quota::StoreMode::Embedded;
    plan.config.quota.ledger.drift_max = std::time::Duration::ZERO;
    plan.faults = faults.to_vec();
    plan.asks.truncate(24);
    for (ask, at) in plan.asks.iter_mut().zip(0_u64..) {
        ask.at_us = at * 500_000 + rng.below(400_000);
        (ask.gateway, ask.again, ask.leaves_ms, ask.patience_ms) = (0, 0, None, None);
    }
    (plan.heal_at_ms, plan.duration_ms) = (13_000, 60_000);
    plan
}
