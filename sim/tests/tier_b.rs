//! Tier B: runs that hold, runs that are the same everywhere, and how fast they are.
//!
//! Two of these tests are programs for others to start: see the last two.

#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

use std::process::Command;
use std::time::Instant;

use sim::tier_b;

/// So few that a debug build is through them in seconds; the swarm, in a build that is made for it, runs hundreds.
const SEEDS: u64 = 2;

#[test]
fn the_first_seeds_hold() {
    for seed in 0..SEEDS {
        let outcome = tier_b::run(&tier_b::plan(seed), None);
        assert_eq!(outcome.violation, None, "seed {seed}:\n{}", outcome.last_words.join("\n"));
        assert!(outcome.requests > 300, "seed {seed} asks too little: {}", outcome.requests);
    }
}

#[test]
fn a_seed_leaves_the_same_trace_in_two_processes() {
    let seed = 4;
    let (first, second) = (trace_of(seed), trace_of(seed));
    assert!(first.len() > 100_000, "the trace holds what happened: {} bytes", first.len());
    let differs = first.iter().zip(&second).position(|(a, b)| a != b);
    assert!(first == second, "seed {seed} differs from byte {differs:?} on");
}

#[test]
fn a_run_does_not_depend_on_those_before_it() {
    let plan = short_plan(2);
    let first = tier_b::run(&plan, None);
    let _between = tier_b::run(&short_plan(3), None);
    assert_eq!(tier_b::run(&plan, None), first);
}

#[test]
fn a_plan_survives_being_written_down() {
    let plan = tier_b::plan(7);
    let text = serde_json::to_string(&plan).unwrap();
    assert_eq!(serde_json::from_str::<tier_b::TierBPlan>(&text).unwrap(), plan);
}

/// A program: writes the trace of `TIER_B_SEED` to the file `TIER_B_TRACE`.
#[test]
fn one_seed_writes_its_trace_where_it_is_told() {
    let (Ok(seed), Ok(path)) = (std::env::var("TIER_B_SEED"), std::env::var("TIER_B_TRACE")) else {
        return;
    };
    let mut file = std::fs::File::create(path).unwrap();
    tier_b::run(&short_plan(seed.parse().unwrap()), Some(&mut file));
}

/// A program: `TIER_B_FROM` and `TIER_B_SEEDS` say which seeds; prints a line for each that breaks, and how fast it was.
/// `cargo test --release -p sim --test tier_b a_swarm -- --ignored --nocapture`
#[test]
#[ignore = "a swarm, not a test"]
fn a_swarm_of_seeds_holds_and_says_how_fast_it_was() {
    let read = |name: &str, default: u64| {
        std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
    };
    let (from, seeds) = (read("TIER_B_FROM", 0), read("TIER_B_SEEDS", 20));
    let (began, mut broken, mut simulated, mut requests) = (Instant::now(), 0, 0.0, 0);
    for seed in from..from + seeds {
        let outcome = tier_b::run(&tier_b::plan(seed), None);
        simulated += outcome.simulated.as_secs_f64();
        requests += outcome.requests;
        if let Some((invariant, text, at)) = outcome.violation {
            broken += 1;
            println!("seed {seed} breaks {invariant} at {:.3}: {text}", at.as_secs_f64());
            if seeds == 1 {
                println!("{}", outcome.last_words.join("\n"));
            }
        }
    }
    let took = began.elapsed().as_secs_f64();
    println!(
        "{seeds} seeds, {broken} broken, {requests} requests, {:.1} simulated seconds a second, {:.1} seeds a minute",
        simulated / took,
        seeds as f64 * 60.0 / took
    );
    assert_eq!(broken, 0, "see above");
}

/// Enough for several faults. It ends in the middle of them, so what it finds at its end means nothing.
fn short_plan(seed: u64) -> tier_b::TierBPlan {
    tier_b::TierBPlan { duration_ms: 12_000, quiet_ms: 1_000, ..tier_b::plan(seed) }
}

fn trace_of(seed: u64) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("trace");
    let status = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "one_seed_writes_its_trace_where_it_is_told"])
        .env("TIER_B_SEED", seed.to_string())
        .env("TIER_B_TRACE", &path)
        .output()
        .unwrap();
    assert!(status.status.success(), "{}", String::from_utf8_lossy(&status.stderr));
    std::fs::read(path).unwrap()
}
