#![allow(clippy::unwrap_used, reason = "a test stops at the first surprise")]

//! A gateway's life: a calendar that is set back while it is down, and an end without a stop.

use std::path::Path;
use std::sync::Arc;

use control::Wall;
use control::plane::Input;
use transport::config::{Env, Flags, parse};
use transport::gateway::Gateway;
use transport::seam::{WallClock, World};

/// A gateway in this directory, by this calendar, before endpoints of these names.
fn started(dir: &Path, millis: u64, names: &[&str]) -> Arc<Gateway> {
    let endpoint = |name: &&str| format!("{{name: {name}, url: 'http://127.0.0.1:9/v1'}}");
    let endpoints: Vec<String> = names.iter().map(endpoint).collect();
    let text = format!(
        "version: 1\ndata: {{dir: '{}'}}\nmodels: {{m: {{endpoints: [{}]}}}}\n",
        dir.display(),
        endpoints.join(", ")
    );
    let loaded = parse("c.yaml", text.as_bytes(), &Flags::default(), &Env::default()).unwrap();
    let wall = WallClock::Simulated(Arc::new(move || Wall::from_millis(millis)));
    Gateway::start_in(&loaded.config, World { wall, ..World::real() }).unwrap()
}

fn known(gateway: &Gateway) -> Vec<String> {
    let view = gateway.driver().look(|plane| plane.view());
    view.endpoints.iter().map(|one| one.name.to_string()).collect()
}

#[tokio::test]
async fn a_configuration_is_believed_whatever_the_calendar_says() {
    const NOON: u64 = 1_780_000_000_000;
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("data");
    let before = started(&dir, NOON, &["a"]);
    assert_eq!(known(&before), ["a"]);
    before.stop().unwrap();
    drop(before);
    let after = started(&dir, NOON - 3_600_000, &["a", "b"]);
    assert_eq!(known(&after), ["a", "b"], "it starts an hour before it stopped");
    after.stop().unwrap();
}

#[tokio::test]
async fn who_still_holds_the_driver_of_a_gateway_that_is_gone_ends_no_process() {
    const NOON: u64 = 1_780_000_000_000;
    let home = tempfile::tempdir().unwrap();
    let gateway = started(&home.path().join("data"), NOON, &["a"]);
    let driver = gateway.driver();
    drop(gateway);
    // Nobody took the process's end from it: this would abort it if the step were to be recorded.
    driver.submit(Input::WallTime(Wall::from_millis(NOON)));
    assert_eq!(driver.look(|plane| plane.view()).endpoints.len(), 1);
}
