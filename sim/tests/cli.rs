//! The command as somebody uses it: arguments in, words and an exit status out.
#![allow(clippy::unwrap_used, reason = "tests")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};
use std::time::Duration;

use sim::plan::{Ask, Plan, draw};

/// Its seed is short and holds.
const CALM: [&str; 4] = ["run", "--seed", "13", "--null"];

#[test]
fn a_run_prints_one_line_with_the_hash_and_twice_the_same() {
    let (one, other) = (sim(&CALM), sim(&CALM));
    assert_eq!(one.status.code(), Some(0), "{}", said(&one));
    assert_eq!(one.stdout, other.stdout);
    let line = said(&one);
    assert_eq!(line.lines().count(), 1, "{line}");
    let hash = line.split(' ').next().unwrap();
    assert!(hash.len() == 16 && u64::from_str_radix(hash, 16).is_ok(), "{line}");
}

#[test]
fn a_saved_plan_runs_to_the_hash_of_its_seed() {
    let folder = tempfile::tempdir().unwrap();
    let plan = path(folder.path(), "plan.json");
    let saved = sim(&[CALM.as_slice(), &["--save", &plan]].concat());
    let again = sim(&["run", "--plan", &plan]);
    assert_eq!(said(&saved)[..16], said(&again)[..16]);
    assert_eq!(again.status.code(), Some(0));
}

#[test]
fn a_failure_tells_the_invariant_the_last_events_and_the_command() {
    let folder = tempfile::tempdir().unwrap();
    let plan = forgetful(folder.path());
    let run = sim(&["run", "--plan", &plan]);
    assert_eq!(run.status.code(), Some(1));
    let said = said(&run);
    for part in ["invariant 3 (one outcome)", "happened last", "asks m0", "charges"] {
        assert!(said.contains(part), "no {part:?} in {said}");
    }
    assert!(said.ends_with(&format!("again: cargo sim run --plan {plan}\n")), "{said}");
}

#[test]
fn a_failing_plan_shrinks_to_one_that_still_fails() {
    let folder = tempfile::tempdir().unwrap();
    let (plan, out) = (forgetful(folder.path()), path(folder.path(), "small.json"));
    let shrunk = sim(&["shrink", &plan, "--out", &out]);
    assert_eq!(shrunk.status.code(), Some(0), "{}", complaint(&shrunk));
    let text = fs::read_to_string(&out).unwrap();
    assert_eq!(Plan::parse(&text).unwrap().asks.len(), 2, "{text}");
    assert_eq!(sim(&["run", "--plan", &out]).status.code(), Some(1));
}

#[test]
fn a_plan_that_holds_cannot_be_shrunk_and_the_reason_is_told() {
    let shrunk = sim(&["shrink", "--seed", "13", "--null"]);
    assert_eq!(shrunk.status.code(), Some(2));
    assert!(complaint(&shrunk).contains("nothing to shrink"), "{}", complaint(&shrunk));
}

#[test]
fn traces_of_two_seeds_part_and_a_trace_equals_itself() {
    let folder = tempfile::tempdir().unwrap();
    let traces = ["13", "8"].map(|seed| {
        let trace = path(folder.path(), seed);
        assert!(sim(&["run", "--seed", seed, "--null", "--trace", &trace]).status.success());
        trace
    });
    let same = sim(&["diff", &traces[0], &traces[0]]);
    assert_eq!((same.status.code(), said(&same).as_str()), (Some(0), "the same\n"));
    let parted = sim(&["diff", &traces[0], &traces[1]]);
    assert_eq!(parted.status.code(), Some(1));
    assert!(said(&parted).contains("the traces part at line"), "{}", said(&parted));
}

#[test]
fn a_swarm_without_faults_holds_and_tells_its_speed() {
    let swarm = sim(&["swarm", "--seeds", "3", "--from", "8", "--null", "--jobs", "2"]);
    assert_eq!(swarm.status.code(), Some(0), "{}", said(&swarm));
    for part in ["3 seeds in", "a minute", "no failure"] {
        assert!(said(&swarm).contains(part), "no {part:?} in {}", said(&swarm));
    }
}

#[test]
fn tier_b_runs_from_a_seed_as_from_its_saved_plan_and_in_processes_of_its_own() {
    let folder = tempfile::tempdir().unwrap();
    let plan = path(folder.path(), "b.json");
    let seed = sim(&["run", "--tier", "b", "--seed", "3", "--save", &plan]);
    assert_eq!(seed.status.code(), Some(0), "{}", said(&seed));
    assert_eq!(said(&seed)[..16], said(&sim(&["run", "--plan", &plan]))[..16]);
    let swarm = sim(&["swarm", "--tier", "b", "--seeds", "2", "--from", "3", "--jobs", "2"]);
    assert_eq!(swarm.status.code(), Some(0), "{}", said(&swarm));
    assert!(said(&swarm).contains("2 seeds in"), "{}", said(&swarm));
}

#[test]
fn pairs_in_separate_processes_are_the_same() {
    let meta = sim(&["meta", "--pairs", "2", "--from", "8", "--whole", "1"]);
    assert_eq!(meta.status.code(), Some(0), "{}{}", said(&meta), complaint(&meta));
    assert!(said(&meta).contains("1 compared by whole traces"), "{}", said(&meta));
}

#[test]
fn regression_plans_are_run_and_the_broken_one_is_named() {
    let folder = tempfile::tempdir().unwrap();
    assert_eq!(sim(&["regress", folder.path().to_str().unwrap()]).status.code(), Some(2));
    let plan = path(folder.path(), "calm.json");
    assert!(sim(&[CALM.as_slice(), &["--save", &plan]].concat()).status.success());
    let held = sim(&["regress", folder.path().to_str().unwrap()]);
    assert_eq!(held.status.code(), Some(0));
    assert!(said(&held).ends_with("1 passed, 0 failed\n"), "{}", said(&held));
    forgetful(folder.path());
    let broke = sim(&["regress", folder.path().to_str().unwrap()]);
    assert_eq!(broke.status.code(), Some(1));
    assert!(said(&broke).contains("BROKEN forgetful.json"), "{}", said(&broke));
}

#[test]
fn coverage_that_lacks_marks_fails_and_names_them() {
    let coverage = sim(&["coverage", "--seeds", "1", "--from", "13"]);
    assert_eq!(coverage.status.code(), Some(1));
    assert!(said(&coverage).contains("never: "), "{}", said(&coverage));
}

#[test]
fn wrong_usage_exits_with_two_and_says_what_to_do() {
    for (arguments, part) in [
        (["run"].as_slice(), "--seed <N>|--plan <FILE>"),
        (&["run", "--seed", "1", "--plan", "x"], "cannot be used with"),
        (&["run", "--plan", "no-such-file"], "no-such-file cannot be read"),
        (&["run", "--seed", "1", "--tier", "z"], "possible values"),
        (&["shrink"], "<PLAN|--seed <N>>"),
        (&["regress", "no-such-folder"], "no-such-folder cannot be read"),
    ] {
        let wrong = sim(arguments);
        assert_eq!(wrong.status.code(), Some(2), "{arguments:?}");
        assert!(complaint(&wrong).contains(part), "{arguments:?}: {}", complaint(&wrong));
    }
}

#[test]
#[cfg(not(feature = "mutants"))]
fn a_build_without_planted_bugs_says_how_to_get_one_with() {
    for arguments in [["run", "--seed", "1", "--mutant", "x"].as_slice(), &["mutants"]] {
        let wrong = sim(arguments);
        assert_eq!(wrong.status.code(), Some(2));
        assert!(complaint(&wrong).contains("--features mutants"), "{}", complaint(&wrong));
    }
}

#[test]
#[cfg(feature = "mutants")]
fn a_planted_bug_is_found_by_the_right_alarm() {
    let found = sim(&["mutants", "--mutant", "overdraft", "--seeds", "20"]);
    assert_eq!(found.status.code(), Some(0), "{}", said(&found));
    assert!(said(&found).ends_with("1 passed, 0 failed\n"), "{}", said(&found));
    let unknown = sim(&["mutants", "--mutant", "gremlin"]);
    assert_eq!(unknown.status.code(), Some(2));
    assert!(complaint(&unknown).contains("overdraft"), "{}", complaint(&unknown));
}

fn sim(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_pointsman-sim")).args(arguments).output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn complaint(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn path(folder: &Path, name: &str) -> String {
    folder.join(name).to_str().unwrap().to_owned()
}

/// Saves a plan that breaks: its gateways forget a key after a second, and the key comes again after three.
fn forgetful(folder: &Path) -> String {
    let mut plan = draw(8);
    plan.config.session.idempotency_ttl = Duration::from_secs(1);
    plan.asks.truncate(30);
    let mut keyed = plan.asks[20].clone();
    plan.asks.iter_mut().for_each(|ask| ask.key = None);
    (keyed.key, keyed.session, keyed.stored) = (Some(7), None, false);
    (keyed.patience_ms, keyed.leaves_ms, keyed.model) = (None, None, 0);
    plan.asks.extend([500_000, 4_000_000].map(|at_us| Ask { at_us, ..keyed.clone() }));
    plan.asks.sort_by_key(|ask| ask.at_us);
    plan.faults.clear();
    let path = path(folder, "forgetful.json");
    fs::write(&path, plan.to_text()).unwrap();
    path
}
