//! A slow registry: lists of what each source said, searched from the front for every question.
#![allow(clippy::disallowed_types, reason = "prop_oneof shares its strategies")]

use alloc::collections::BTreeMap;
use alloc::format;
use alloc::string::{String, ToString};

use proptest::prelude::*;

use super::*;

proptest! {
    #![proptest_config(ProptestConfig { cases: 192, ..ProptestConfig::default() })]

    #[test]
    fn the_registry_says_what_a_search_through_all_answers_says(
        ops in ops(60),
    ) {
        let mut world = World::new();
        let mut model = Model::default();
        let mut mirror: BTreeMap<EndpointId, String> = BTreeMap::new();
        for op in ops {
            let served = served(&world.registry);
            let changes = perform(&mut world, &op);
            model.perform(&op);
            world.registry.invariants();
            prop_assert_eq!(world.told(), model.told());
            prop_assert!(listeners_agree(&mut mirror, &changes, &world.registry));
            if let Op::Answer(1.., _, lines) = &op {
                // Only the word of an endpoint that served it may end a model.
                let said: Vec<_> = lines.iter().filter(|l| !l.2.is_empty()).map(line).collect();
                let ended = served.iter().filter(|(m, _)| !world.registry.serves(m));
                for (model, names) in ended {
                    let named = |n| said.iter().any(|l| l.starts_with(&format!("{n}*")));
                    prop_assert!(names.iter().any(named), "{} was emptied by silence", model);
                }
            }
        }
    }

    #[test]
    fn a_restored_registry_has_the_same_future(
        before in ops(30),
        after in ops(30),
    ) {
        let mut stopped = World::new();
        before.iter().for_each(|op| { perform(&mut stopped, op); });
        let bytes = postcard::to_allocvec(&stopped.registry).unwrap();
        let registry = postcard::from_bytes(&bytes).unwrap();
        let mut restored = World { registry, now: stopped.now };
        for op in after {
            prop_assert_eq!(perform(&mut stopped, &op), perform(&mut restored, &op));
        }
        let stopped = postcard::to_allocvec(&stopped.registry);
        prop_assert_eq!(stopped, postcard::to_allocvec(&restored.registry));
    }
}

/// Each model with the names that serve it.
fn served(registry: &Registry) -> Vec<(String, Vec<String>)> {
    let name = |id: &EndpointId| registry.endpoint(*id).unwrap().spec.name.to_string();
    let pools = registry.models();
    pools.map(|(model, pool)| (model.to_string(), pool.iter().map(name).collect())).collect()
}

/// A name, a weight, and the models.
type Line = (usize, u32, Vec<usize>);

#[derive(Clone, Debug)]
enum Op {
    /// Source (the first is configuration), version, lines.
    Answer(usize, u64, Vec<Line>),
    Lost(usize),
    Drain(usize, bool),
    Prune(usize),
    Remove(usize),
}

/// Versions grow with the sequence, and sometimes stand still or fall back.
fn ops(most: usize) -> impl Strategy<Value = Vec<Op>> {
    prop::collection::vec(op(), 1..most).prop_map(|ops| {
        let numbered = ops.into_iter().zip(0..).map(|(op, at)| match op {
            Op::Answer(source, version, lines) => Op::Answer(source, at + version, lines),
            Op::Lost(_) | Op::Drain(..) | Op::Prune(_) | Op::Remove(_) => op,
        });
        numbered.collect()
    })
}

fn op() -> impl Strategy<Value = Op> {
    let line = (0_usize..5, 1_u32..3, prop::collection::vec(0_usize..4, 0..3));
    let lines = prop::collection::vec(line, 0..5);
    prop_oneof![
        12 => (0_usize..3, 0_u64..3, lines).prop_map(|(s, v, lines)| Op::Answer(s, v, lines)),
        2 => (0_usize..3).prop_map(Op::Lost),
        2 => (0_usize..5, any::<bool>()).prop_map(|(name, on)| Op::Drain(name, on)),
        2 => (0_usize..5).prop_map(Op::Prune),
        1 => (0_usize..3).prop_map(Op::Remove),
    ]
}

const SOURCES: [(&str, SourceKind); 3] =
    [("config", Authoritative), ("consul", Observed), ("dns", Observed)];

fn perform(world: &mut World, op: &Op) -> Vec<Change> {
    match op {
        Op::Answer(source, version, lines) => {
            let (source, kind) = SOURCES[*source];
            let lines: Vec<_> = lines.iter().map(line).collect();
            let lines: Vec<_> = lines.iter().map(String::as_str).collect();
            world.apply(source, kind, *version, &lines).changes
        }
        Op::Lost(source) => {
            world.registry.source_lost(world.now, SOURCES[*source].0);
            Vec::new()
        }
        Op::Drain(name, on) => {
            world.registry.drain(&format!("e{name}"), *on);
            Vec::new()
        }
        Op::Prune(name) => {
            let id = world.registry.find(&format!("e{name}"));
            id.and_then(|id| world.registry.prune(id)).into_iter().collect()
        }
        Op::Remove(source) => world.registry.remove_source(SOURCES[*source].0),
    }
}

fn line((name, weight, models): &Line) -> String {
    let models: String = models.iter().map(|model| format!(" m{model}")).collect();
    format!("e{name}*{weight}{models}")
}

/// Whoever only hears of changes knows who is there and what they are.
fn listeners_agree(
    mirror: &mut BTreeMap<EndpointId, String>,
    changes: &[Change],
    registry: &Registry,
) -> bool {
    let spec = |id: &EndpointId| format!("{:?}", registry.endpoint(*id).unwrap().spec);
    for change in changes {
        let sound = match change {
            Change::Added(id) => mirror.insert(*id, spec(id)).is_none(),
            Change::Updated(id) => mirror.insert(*id, spec(id)).is_some_and(|old| old != spec(id)),
            Change::Removed { id, .. } => mirror.remove(id).is_some(),
        };
        assert!(sound, "{change:?} does not fit");
    }
    let all: BTreeMap<_, _> = registry.iter().map(|e| (e.id, format!("{:?}", e.spec))).collect();
    *mirror == all
}

#[derive(Default)]
struct Model {
    /// In order of their first answer.
    sources: Vec<Told>,
    drained: Vec<String>,
}

struct Told {
    source: usize,
    version: Option<u64>,
    dark: bool,
    lines: Vec<Entry>,
}

#[derive(Clone, PartialEq)]
struct Entry {
    name: String,
    weight: u32,
    models: Vec<String>,
    kept: bool,
}

impl Model {
    fn perform(&mut self, op: &Op) {
        match op {
            Op::Answer(source, version, lines) => self.answer(*source, *version, lines),
            Op::Lost(source) => {
                self.sources.iter_mut().filter(|t| t.source == *source).for_each(|t| t.dark = true);
            }
            Op::Drain(name, on) => {
                let name = format!("e{name}");
                let known = self.entries().any(|(_, entry)| entry.name == name);
                if !on {
                    self.drained.retain(|drained| *drained != name);
                } else if known && !self.drained.contains(&name) {
                    self.drained.push(name);
                }
            }
            Op::Prune(name) => {
                let name = format!("e{name}");
                if self.entries().filter(|(_, e)| e.name == name).all(|(_, e)| e.kept) {
                    self.sources.iter_mut().for_each(|t| t.lines.retain(|e| e.name != name));
                }
            }
            Op::Remove(source) => self.sources.retain(|told| told.source != *source),
        }
    }

    fn answer(&mut self, source: usize, version: u64, lines: &[Line]) {
        if !self.sources.iter().any(|told| told.source == source) {
            self.sources.push(Told { source, version: None, dark: false, lines: Vec::new() });
        }
        let at = self.sources.iter().position(|told| told.source == source).unwrap();
        let old = self.sources[at].lines.clone();
        if self.sources[at].version > Some(version) {
            return;
        }
        let mut new = first_of_each_name(lines);
        let observed = source > 0;
        if observed && new.is_empty() && !old.is_empty() {
            self.sources[at].dark = true;
            return;
        }
        for entry in new.iter_mut().filter(|entry| observed && entry.models.is_empty()) {
            let before = old.iter().find(|before| before.name == entry.name);
            entry.models = before.map_or(Vec::new(), |before| before.models.clone());
        }
        if self.sources[at].version == Some(version) {
            let same = old.iter().filter(|entry| !entry.kept).eq(new.iter());
            self.sources[at].dark &= !same;
            return;
        }
        if observed {
            let others = self.entries().filter(|(s, e)| *s != source && !e.kept).map(|(_, e)| e);
            let served: Vec<_> = others.chain(&new).flat_map(|e| e.models.clone()).collect();
            let missing = |e: &&Entry| !new.iter().any(|n| n.name == e.name);
            let last = |e: &&Entry| e.models.iter().any(|m| !served.contains(m));
            let kept: Vec<_> = old.iter().filter(missing).filter(last).cloned().collect();
            new.extend(kept.into_iter().map(|entry| Entry { kept: true, ..entry }));
            new.sort_by(|a, b| a.name.cmp(&b.name));
        }
        let told = &mut self.sources[at];
        (told.version, told.dark, told.lines) = (Some(version), false, new);
    }

    fn entries(&self) -> impl Iterator<Item = (usize, &Entry)> {
        self.sources.iter().flat_map(|told| told.lines.iter().map(|entry| (told.source, entry)))
    }

    fn told(&self) -> Vec<String> {
        let mut names: Vec<_> = self.entries().map(|(_, entry)| entry.name.clone()).collect();
        names.sort();
        names.dedup();
        names.iter().map(|name| self.tell(name)).collect()
    }

    fn tell(&self, name: &str) -> String {
        let configured = self.sources.iter().filter(|told| told.source == 0);
        let ranked = configured.chain(self.sources.iter().filter(|told| told.source > 0));
        let listing = ranked.flat_map(|told| told.lines.iter().map(move |e| (told.dark, e)));
        let listing: Vec<_> = listing.filter(|(_, entry)| entry.name == name).collect();
        let mut models: Vec<_> = listing.iter().flat_map(|(_, e)| e.models.clone()).collect();
        models.sort();
        models.dedup();
        let stale = listing.iter().all(|(dark, entry)| *dark || entry.kept);
        let stale = if stale { " stale" } else { "" };
        let draining = if self.drained.iter().any(|d| d == name) { " draining" } else { "" };
        format!("{name} {} [{}]{stale}{draining}", listing[0].1.weight, models.join(" "))
    }
}

fn first_of_each_name(lines: &[Line]) -> Vec<Entry> {
    let mut entries: Vec<Entry> = Vec::new();
    for (name, weight, models) in lines {
        let name = format!("e{name}");
        if entries.iter().any(|entry| entry.name == name) {
            continue;
        }
        let mut unique: Vec<String> = Vec::new();
        for model in models.iter().map(|model| format!("m{model}")) {
            if !unique.contains(&model) {
                unique.push(model);
            }
        }
        entries.push(Entry { name, weight: *weight, models: unique, kept: false });
    }
    entries.sort_by(|a, b| a.name.cmp(&b.name));
    entries
}
