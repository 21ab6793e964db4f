#![allow(clippy::unwrap_used, reason = "a failed unwrap fails the test")]

mod model;
mod table;

use alloc::format;
use alloc::string::String;
use alloc::vec;
use core::time::Duration;

use super::*;
use SourceKind::{Authoritative, Observed};

#[test]
fn a_source_that_answers_nobody_keeps_the_last_known_set_marked_stale() {
    let mut world = World::new();
    world.apply("consul", Observed, 1, &["a m", "b m"]);
    let refused = world.apply("consul", Observed, 2, &[]);
    assert_eq!((refused.refused, refused.changes), (Some(Refused::Empty), vec![]));
    assert_eq!(world.told(), ["a 1 [m] stale", "b 1 [m] stale"]);
    assert_eq!(world.apply("consul", Observed, 3, &["a m", "b m"]).changes, vec![]);
    assert_eq!(world.told(), ["a 1 [m]", "b 1 [m]"]);
}

#[test]
fn a_source_that_goes_dark_keeps_its_endpoints_and_their_ids() {
    let mut world = World::new();
    world.apply("consul", Observed, 1, &["a m"]);
    let id = world.registry.find("a");
    world.registry.source_lost(world.now, "consul");
    assert_eq!(world.told(), ["a 1 [m] stale"]);
    world.apply("consul", Observed, 1, &["a m"]);
    assert_eq!((world.told(), world.registry.find("a")), (vec!["a 1 [m]".into()], id));
}

#[test]
fn an_explicit_removal_by_configuration_counts_even_for_the_last() {
    let mut world = World::new();
    world.apply("config", Authoritative, 1, &["a m", "b n"]);
    world.apply("config", Authoritative, 2, &[]);
    assert_eq!(world.told(), Vec::<String>::new());
    assert!(!world.registry.serves("m"));
}

#[test]
fn discovery_removes_what_others_still_serve_and_keeps_the_last_of_a_model() {
    let mut world = World::new();
    world.apply("consul", Observed, 1, &["a m", "b m", "c n"]);
    let applied = world.apply("consul", Observed, 2, &["a m"]);
    assert_eq!(world.told(), ["a 1 [m]", "c 1 [n] stale"]);
    assert_eq!(applied.kept, 1);
    world.apply("consul", Observed, 3, &["a m", "d n"]);
    assert_eq!(world.told(), ["a 1 [m]", "d 1 [n]"], "once others serve it, the stale one goes");
}

#[test]
fn a_kept_endpoint_may_be_pruned_but_not_one_whose_source_is_dark() {
    let mut world = World::new();
    world.apply("consul", Observed, 1, &["a m", "c n"]);
    world.apply("consul", Observed, 2, &["a m"]);
    let (a, c) = (world.registry.find("a").unwrap(), world.registry.find("c").unwrap());
    world.registry.source_lost(world.now, "consul");
    assert_eq!(world.registry.prune(a), None);
    let gone = Change::Removed { id: c, name: "c".into() };
    assert_eq!(world.registry.prune(c), Some(gone));
    assert_eq!(world.registry.prune(c), None);
    assert_eq!(world.told(), ["a 1 [m] stale"]);
}

#[test]
fn an_endpoint_that_drops_a_model_is_believed_and_one_that_lists_none_is_silent() {
    let mut world = World::new();
    world.apply("consul", Observed, 1, &["a m n"]);
    world.apply("consul", Observed, 2, &["a n"]);
    assert_eq!(world.told(), ["a 1 [n]"]);
    world.apply("consul", Observed, 3, &["a"]);
    assert_eq!(world.told(), ["a 1 [n]"]);
    world.apply("config", Authoritative, 1, &["b m"]);
    world.apply("config", Authoritative, 2, &["b"]);
    assert_eq!(world.told(), ["a 1 [n]", "b 1 []"], "configuration means what it says");
}

#[test]
fn an_old_version_never_replaces_a_newer_one() {
    let mut world = World::new();
    world.apply("consul", Observed, 7, &["a m"]);
    for version in [6, 0] {
        let older = world.apply("consul", Observed, version, &["b m"]);
        assert_eq!(older.refused, Some(Refused::OlderVersion));
    }
    let reused = world.apply("consul", Observed, 7, &["b m"]);
    assert_eq!(reused.refused, Some(Refused::VersionReused));
    assert_eq!(world.told(), ["a 1 [m]"]);
    assert_eq!(world.apply("consul", Observed, 7, &["a m"]), Applied::default());
}

#[test]
fn sources_merge_by_name_and_configuration_has_the_last_word() {
    let mut world = World::new();
    world.apply("consul", Observed, 1, &["a*5 m"]);
    world.apply("dns", Observed, 1, &["a*6 n", "b k"]);
    assert_eq!(world.told(), ["a 5 [m n]", "b 1 [k]"]);
    let applied = world.apply("config", Authoritative, 1, &["a*9 o"]);
    let a = world.registry.find("a").unwrap();
    assert_eq!(applied.changes, vec![Change::Updated(a)]);
    assert_eq!(world.told(), ["a 9 [m n o]", "b 1 [k]"]);
    let sources = &world.registry.endpoint(a).unwrap().sources;
    assert_eq!(sources, &["config".into(), "consul".into(), "dns".into()] as &[Box<str>]);
    world.apply("config", Authoritative, 2, &[]);
    assert_eq!(world.told(), ["a 5 [m n]", "b 1 [k]"], "discovery still sees it");
    world.registry.source_lost(world.now, "consul");
    assert_eq!(world.told(), ["a 5 [m n]", "b 1 [k]"], "dns still stands behind it");
    assert_eq!(world.registry.remove_source("consul"), vec![Change::Updated(a)]);
    assert_eq!(world.told(), ["a 6 [n]", "b 1 [k]"]);
    assert_eq!(world.registry.remove_source("dns").len(), 2);
    assert_eq!(world.told(), Vec::<String>::new());
}

#[test]
fn a_drained_name_stays_drained_over_updates_and_over_going_and_coming_back() {
    let mut world = World::new();
    world.apply("config", Authoritative, 1, &["a m", "b m"]);
    let first = world.registry.drain("a", true).unwrap();
    assert!(world.registry.endpoint(first).unwrap().draining);
    world.apply("config", Authoritative, 2, &["a*3 m", "b m"]);
    assert_eq!(world.told(), ["a 3 [m] draining", "b 1 [m]"]);
    world.apply("config", Authoritative, 3, &["b m"]);
    world.apply("config", Authoritative, 4, &["a m", "b m"]);
    assert_eq!(world.told(), ["a 1 [m] draining", "b 1 [m]"]);
    let second = world.registry.drain("a", false).unwrap();
    assert_ne!(first, second, "the same slot, another generation");
    assert_eq!((first.slot, world.registry.endpoint(first)), (second.slot, None));
    assert_eq!(world.told(), ["a 1 [m]", "b 1 [m]"]);
}

#[test]
fn draining_a_name_nobody_has_does_nothing_and_undraining_one_that_left_is_remembered() {
    let mut world = World::new();
    assert_eq!(world.registry.drain("a", true), None);
    world.apply("config", Authoritative, 1, &["a m"]);
    assert_eq!(world.told(), ["a 1 [m]"]);
    world.registry.drain("a", true);
    world.apply("config", Authoritative, 2, &[]);
    assert_eq!(world.registry.drain("a", false), None);
    world.apply("config", Authoritative, 3, &["a m"]);
    assert_eq!(world.told(), ["a 1 [m]"]);
}

#[test]
fn the_list_of_drained_names_does_not_grow_with_those_that_left() {
    let mut world = World::with(Config { endpoints_max: 3, ..Config::default() });
    for round in 0..20 {
        let name = format!("pod-{round}");
        world.apply("config", Authoritative, round + 1, &[&format!("{name} m")]);
        world.registry.drain(&name, true).unwrap();
        assert!(world.registry.drained.len() <= 3);
    }
    world.apply("config", Authoritative, 99, &["pod-0 m", "pod-18 m", "pod-19 m"]);
    assert_eq!(world.told(), ["pod-0 1 [m]", "pod-18 1 [m] draining", "pod-19 1 [m] draining"]);
}

#[test]
fn a_version_counts_changes_and_nothing_else() {
    let mut world = World::new();
    world.apply("config", Authoritative, 1, &["a m"]);
    let version = world.registry.version();
    world.apply("config", Authoritative, 2, &["a m"]);
    world.registry.source_lost(world.now, "config");
    world.registry.drain("a", false);
    assert_eq!(world.registry.version(), version);
    world.registry.drain("a", true);
    assert_eq!(world.registry.version(), version + 1);
}

#[test]
fn what_is_wrong_in_an_answer_is_put_right_and_reported() {
    let mut world = World::with(Config { models_max: 2, ..Config::default() });
    let answer = ["a*0 m", "a n", " m", "b x y z y"];
    let applied = world.apply("config", Authoritative, 1, &answer);
    let expected = vec![
        Ignored::ZeroWeight("a".into()),
        Ignored::DuplicateName("a".into()),
        Ignored::Unnamed,
        Ignored::ModelsCut("b".into()),
    ];
    assert_eq!(applied.ignored, expected);
    assert_eq!(world.told(), ["a 1 [m]", "b 1 [x y]"]);
}

#[test]
fn too_much_is_refused_as_a_whole_and_what_was_kept_gives_way_first() {
    let mut world = World::with(Config { endpoints_max: 3, sources_max: 2, ..Config::default() });
    world.apply("consul", Observed, 1, &["a m", "b n"]);
    let over = world.apply("consul", Observed, 2, &["a m", "c m", "d m", "e m"]);
    assert_eq!(over.refused, Some(Refused::TooManyEndpoints));
    assert_eq!(world.told(), ["a 1 [m]", "b 1 [n]"]);
    world.apply("consul", Observed, 2, &["a m", "c m", "d m"]);
    assert_eq!(world.told(), ["a 1 [m]", "c 1 [m]", "d 1 [m]"], "b was the last of n");
    world.apply("config", Authoritative, 1, &["a m"]);
    let third = world.apply("dns", Observed, 1, &["a m"]);
    assert_eq!(third.refused, Some(Refused::TooManySources));
}

#[test]
fn every_model_has_its_pool_and_no_pool_is_empty() {
    let mut world = World::new();
    world.apply("config", Authoritative, 1, &["a m n", "b m"]);
    let pools: Vec<_> = world.registry.models().map(|(m, pool)| format!("{m} {pool:?}")).collect();
    assert_eq!(pools, ["m {ep0.1, ep1.1}", "n {ep0.1}"]);
    world.apply("config", Authoritative, 2, &["b m"]);
    assert!(!world.registry.serves("n"));
    assert_eq!(world.registry.pool("m").unwrap().len(), 1);
}

pub(super) struct World {
    pub(super) registry: Registry,
    pub(super) now: Instant,
}

impl World {
    pub(super) fn new() -> Self {
        Self::with(Config::default())
    }

    fn with(config: Config) -> Self {
        Self { registry: Registry::new(config), now: Instant::ZERO }
    }

    /// Each line is `name*weight model model`.
    fn apply(&mut self, source: &str, kind: SourceKind, version: u64, lines: &[&str]) -> Applied {
        self.now = self.now + Duration::from_secs(1);
        let specs = lines.iter().map(|line| spec(line)).collect();
        let applied = self.registry.apply(self.now, source, kind, version, specs);
        self.registry.invariants();
        applied
    }

    /// Each endpoint as `name weight [models] stale draining`, by name.
    pub(super) fn told(&self) -> Vec<String> {
        let mut lines: Vec<_> = self.registry.iter().map(tell).collect();
        lines.sort();
        lines
    }
}

fn tell(endpoint: &Endpoint) -> String {
    let EndpointSpec { name, weight, models, .. } = &endpoint.spec;
    let stale = if endpoint.stale_since.is_some() { " stale" } else { "" };
    let draining = if endpoint.draining { " draining" } else { "" };
    format!("{name} {weight} [{}]{stale}{draining}", models.join(" "))
}

pub(super) fn spec(line: &str) -> EndpointSpec {
    let mut words = line.split(' ');
    let head = words.next().unwrap();
    let (name, weight) = head.split_once('*').unwrap_or((head, "1"));
    EndpointSpec {
        name: name.into(),
        weight: weight.parse().unwrap(),
        tier: 0,
        in_flight_max: 8,
        rps_max: None,
        models: words.map(Into::into).collect(),
        fingerprint: None,
    }
}
