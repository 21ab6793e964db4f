//! Noticing change.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::super::watch::Watched;
use super::*;

const GOOD: &str = "version: 1\nlog: {level: debug}\n";
const BAD: &str = "version: 1\nlog: {level: loud}\n";

#[test]
fn unchanged_content_gives_nothing_and_a_change_counts_when_it_was_seen_twice() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    fs::write(&path, "version: 1\n").unwrap();
    let mut watched = watched(&path);
    assert_eq!([told(&mut watched), told(&mut watched)], ["nothing", "nothing"]);
    fs::write(&path, "version: 1\nlog:").unwrap();
    assert_eq!(told(&mut watched), "nothing", "half written");
    fs::write(&path, GOOD).unwrap();
    assert_eq!([told(&mut watched), told(&mut watched)], ["nothing", "debug"]);
    fs::write(&path, GOOD).unwrap();
    assert_eq!([told(&mut watched), told(&mut watched)], ["nothing", "nothing"]);
}

#[test]
fn a_bad_file_is_told_once_and_again_when_it_changes_and_its_repair_is_told_too() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    fs::write(&path, GOOD).unwrap();
    let mut watched = watched(&path);
    let mut settle = |text: Option<&str>| {
        match text {
            Some(text) => fs::write(&path, text).unwrap(),
            None => fs::remove_file(&path).unwrap(),
        }
        [(); 4].map(|()| told(&mut watched))
    };
    let loud = "log.level: \"loud\" is not one of trace, debug, info, warn, warning, error";
    assert_eq!(settle(Some(BAD)), ["nothing", loud, "nothing", "nothing"]);
    assert_eq!(
        settle(Some("version: 3")),
        [
            "nothing",
            "version: this build reads version 1 of the configuration",
            "nothing",
            "nothing"
        ]
    );
    assert_eq!(
        settle(None),
        ["nothing", "cannot be read: No such file or directory (os error 2)", "nothing", "nothing"]
    );
    assert_eq!(settle(Some(GOOD)), ["nothing", "debug", "nothing", "nothing"]);
}

#[cfg(unix)]
#[test]
fn a_swapped_link_two_directories_up_is_seen() {
    use std::os::unix::fs::symlink;
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name);
    for (name, text) in [("v1", "version: 1\n"), ("v2", GOOD)] {
        fs::create_dir(at(name)).unwrap();
        fs::write(at(name).join("p.yaml"), text).unwrap();
    }
    symlink("v1", at("..data")).unwrap();
    symlink("..data/p.yaml", at("p.yaml")).unwrap();
    let mut watched = watched(&at("p.yaml"));
    symlink("v2", at("..new")).unwrap();
    fs::rename(at("..new"), at("..data")).unwrap();
    assert_eq!([told(&mut watched), told(&mut watched)], ["nothing", "debug"]);
}

#[test]
fn a_rotated_secret_is_a_change_and_one_that_appears_is_too() {
    let dir = tempfile::tempdir().unwrap();
    let (path, secret) = (dir.path().join("p.yaml"), dir.path().join("secret"));
    let text =
        format!("version: 1\nproviders: {{openai: {{api_key: 'file:{}'}}}}\n", secret.display());
    fs::write(&path, text).unwrap();
    fs::write(&secret, "one").unwrap();
    let mut watched = watched(&path);
    fs::write(&secret, "two").unwrap();
    assert_eq!([told(&mut watched), told(&mut watched)], ["nothing", "info"]);
    fs::remove_file(&secret).unwrap();
    told(&mut watched);
    assert!(told(&mut watched).contains("cannot be read"));
    fs::write(&secret, "three").unwrap();
    assert_eq!([told(&mut watched), told(&mut watched)], ["nothing", "info"]);
}

#[tokio::test]
async fn the_task_sends_what_changed_and_ends_with_its_receiver() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("p.yaml");
    fs::write(&path, "version: 1\n").unwrap();
    let loaded = load(Some(&path), &Flags::default(), &Env::default()).unwrap();
    let interval = Duration::from_millis(5);
    let (flags, env) = (Flags::default(), Env::default());
    let mut changes = watch(path.clone(), flags, env, loaded.fingerprint, interval);
    fs::write(&path, GOOD).unwrap();
    let next = tokio::time::timeout(Duration::from_secs(30), changes.recv()).await;
    let loaded = next.unwrap().unwrap().unwrap();
    assert_eq!(loaded.config.log.level, LogLevel::Debug);
    assert!(changes.try_recv().is_err());
}

fn watched(path: &Path) -> Watched {
    let loaded = load(Some(path), &Flags::default(), &Env::default()).unwrap();
    Watched::new(path.to_owned(), Flags::default(), Env::default(), loaded.fingerprint)
}

/// What one poll gives: the log level of what it loaded, or its one error.
fn told(watched: &mut Watched) -> String {
    match watched.poll() {
        None => "nothing".to_owned(),
        Some(Ok(loaded)) => format!("{:?}", loaded.config.log.level).to_lowercase(),
        Some(Err(errors)) => {
            let problem = &errors.problems[0];
            let separator = if problem.path.is_empty() { "" } else { ": " };
            format!("{}{separator}{}", problem.path, problem.kind)
        }
    }
}
