//! A user's configuration under trial: what is bad is named with its reason, what is good passes.

#![allow(clippy::unwrap_used, reason = "a test that unwraps nothing fails as it should")]

use std::path::{Path, PathBuf};

use sim::try_config::{Args, Report, run};

#[test]
fn a_breaker_that_turns_a_hiccup_into_an_outage_is_flagged() {
    let report = tried("bad-breaker.yaml");
    let why = reason(&report, "routing.breaker.ejection_base");
    assert!(why.contains("gpu-7 was ejected for") && why.contains("nobody else serves"), "{why}");
    assert_eq!(report.findings().len(), 1, "{report}");
    assert!(report.findings()[0].seen.starts_with("hiccup: after 2 s of trouble"), "{report}");
}

#[test]
fn timeouts_and_retries_that_cannot_work_are_flagged() {
    let report = tried("bad-timeouts.yaml");
    let why = reason(&report, "routing.timeouts.request");
    assert!(why.contains("it is 5 s, and healthy answers take longer"), "{why}");
    let why = reason(&report, "routing.max_retries");
    assert!(why.contains("no retry is allowed"), "{why}");
    assert_eq!(report.findings().len(), 2, "{report}");
}

#[test]
fn limits_that_refuse_calm_traffic_are_flagged_each_by_its_own_key() {
    let report = tried("bad-limits.yaml");
    let why = reason(&report, "tenants.acme.daily_tokens");
    assert!(why.contains("the limit is 500 tokens"), "{why}");
    let why = reason(&report, "tenants.globex.tpm");
    assert!(why.contains("the limit is 200 tokens"), "{why}");
    let why = reason(&report, "models.qwen.endpoints (in_flight_max)");
    assert!(why.contains("its 2 endpoints take 2 at once"), "{why}");
    assert_eq!(report.findings().len(), 3, "{report}");
}

#[test]
fn the_example_configuration_passes() {
    let example = Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy/pointsman.example.yaml");
    let report = run(&args(&example)).unwrap();
    assert!(report.is_good(), "{report}");
    assert!(report.to_string().contains("Nothing dangerous was found"), "{report}");
}

#[test]
fn mending_the_flagged_key_makes_a_bad_configuration_good() {
    let bad = std::fs::read_to_string(committed("bad-breaker.yaml")).unwrap();
    let mended = bad.replace("ejection_base: 10m", "ejection_base: 5s");
    let mended = mended.replace("ejection_max: 1h", "ejection_max: 30s");
    assert_ne!(bad, mended);
    let file = Scratch::new("mended.yaml", &mended);
    let report = run(&args(&file.0)).unwrap();
    assert!(report.is_good(), "{report}");
}

#[test]
fn a_report_shows_every_scenario_and_what_was_assumed() {
    let text = tried("bad-limits.yaml").to_string();
    let scenarios = [
        "calm",
        "hiccup",
        "one dies",
        "one hangs",
        "one fails fast",
        "key revoked",
        "half is slow",
        "burst",
        "nemesis",
    ];
    for scenario in scenarios {
        assert!(text.lines().any(|line| line.starts_with(scenario)), "{scenario} in {text}");
    }
    assert!(text.contains("requests/s from 2 callers"), "{text}");
    assert!(text.contains("write 50 a second"), "{text}");
}

#[test]
fn the_same_trial_gives_the_same_report_on_any_number_of_threads() {
    let one = run(&Args { jobs: 1, ..args(&committed("bad-timeouts.yaml")) }).unwrap();
    let four = run(&Args { jobs: 4, ..args(&committed("bad-timeouts.yaml")) }).unwrap();
    assert_eq!(one.to_string(), four.to_string());
}

#[test]
fn a_traffic_file_with_a_bad_line_is_refused_with_its_number() {
    let cases = [
        ("at_ms,model,tenant,prompt,output\n0,qwen,acme,10,20\n5,qwen,acme,ten,20\n", ":3: prompt"),
        ("at_ms,model,tenant,prompt,output\n0,qwenn,acme,10,20\n", ":2: no model \"qwenn\""),
        ("at_ms,model,tenant,prompt,output\n0,qwen,acme,1,1\n\n9,qwen,evil,1,1\n", ":4: no tenant"),
        ("{\"timestamp\": 0, \"input_length\": 5, \"output_length\": 6}\n{}\n", ":2: timestamp is"),
        (
            "TIMESTAMP,ContextTokens,GeneratedTokens\n2023-11-16 18:17:03,1,-2\n",
            ":2: GeneratedTokens",
        ),
    ];
    for (number, (text, expected)) in cases.into_iter().enumerate() {
        let file = Scratch::new(&format!("traffic-{number}.csv"), text);
        let args = Args { traffic: Some(file.0.clone()), ..args(&committed("bad-limits.yaml")) };
        let why = run(&args).unwrap_err();
        assert!(why.contains(&format!("traffic-{number}.csv{expected}")), "{why}");
    }
}

#[test]
fn traffic_of_a_file_goes_to_whom_it_names() {
    let rows: String = (0..40).map(|at| format!("{},qwen,acme,50,60\n", at * 5_000)).collect();
    let file = Scratch::new("named.csv", &format!("at_ms,model,tenant,prompt,output\n{rows}"));
    let args = Args { traffic: Some(file.0.clone()), ..args(&committed("bad-limits.yaml")) };
    let report = run(&args).unwrap();
    let why = reason(&report, "tenants.acme.daily_tokens");
    assert!(
        !why.is_empty() && !report.findings().iter().any(|f| f.key.contains("globex")),
        "{report}"
    );
}

#[test]
fn a_configuration_that_cannot_be_read_is_refused_in_the_products_own_words() {
    let file = Scratch::new("broken.yaml", "version: 1\nrouting:\n  max_retrys: 2\n");
    let why = run(&args(&file.0)).unwrap_err();
    assert!(why.contains("max_retrys") && why.contains("max_retries"), "{why}");
}

fn tried(name: &str) -> Report {
    run(&args(&committed(name))).unwrap()
}

fn args(config: &Path) -> Args {
    Args { config: config.to_owned(), traffic: None, seeds: 2, jobs: 2 }
}

fn committed(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name)
}

/// Why a key is flagged.
fn reason(report: &Report, key: &str) -> String {
    assert!(!report.is_good());
    let finding = report.findings().iter().find(|finding| finding.key == key);
    finding.unwrap_or_else(|| panic!("{key} is not flagged: {report}")).why.clone()
}

/// A file of this process that goes away with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("pointsman-{}-{name}", std::process::id()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // What stays behind is in the folder for such things.
        let _ = std::fs::remove_file(&self.0);
    }
}
