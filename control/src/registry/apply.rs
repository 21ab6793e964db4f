//! A source answers.

use alloc::boxed::Box;
use alloc::collections::{BTreeMap, BTreeSet};
use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

use super::{Endpoint, EndpointSpec, Registry, Source, SourceKind, Vouch};
use crate::id::EndpointId;
use crate::time::Instant;

/// What came of an answer.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Applied {
    /// What changed: removals first, then by name.
    pub changes: Vec<Change>,
    /// Why the answer as a whole changed nothing.
    pub refused: Option<Refused>,
    /// What was left out or put right in it.
    pub ignored: Vec<Ignored>,
    /// Endpoints the answer left out that were kept, as the last of a model.
    pub kept: u32,
}

/// An endpoint came, changed or went.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Change {
    /// New, or back again under a new id.
    Added(EndpointId),
    /// Its merged spec changed.
    Updated(EndpointId),
    /// Gone; the id now names nobody.
    Removed {
        /// What it was.
        id: EndpointId,
        /// For what the shell keeps by name.
        name: Box<str>,
    },
}

/// Why an answer was refused as a whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Refused {
    /// A newer one was applied before.
    OlderVersion,
    /// The version of the last answer, with another content: one of them lies.
    VersionReused,
    /// Discovery says that nobody is there. The last known set stays, stale.
    Empty,
    /// More endpoints than may be.
    TooManyEndpoints,
    /// More sources than may speak.
    TooManySources,
}

/// What was left out of an answer, or put right.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ignored {
    /// A second endpoint of the name: the first counts.
    DuplicateName(Box<str>),
    /// An endpoint without a name.
    Unnamed,
    /// Weight zero, read as one.
    ZeroWeight(Box<str>),
    /// More models than may be: the first count.
    ModelsCut(Box<str>),
}

/// An answer, checked.
type Answer = BTreeMap<Box<str>, EndpointSpec>;

impl Registry {
    /// Takes in a whole answer of `source`. Its cost grows with the endpoints of the source, which are bounded.
    ///
    /// The same answer again changes nothing, but shows that the source is back.
    pub fn apply(
        &mut self,
        now: Instant,
        source: &str,
        kind: SourceKind,
        version: u64,
        specs: Vec<EndpointSpec>,
    ) -> Applied {
        let (answer, ignored) = checked(specs, self.config.models_max as usize);
        let refused = |refused| Applied { refused: Some(refused), ..Applied::default() };
        let Some(index) = self.source_index(source).or_else(|| self.admit_source(source, kind))
        else {
            return refused(Refused::TooManySources);
        };
        let known = self.sources[index].version;
        if known.is_some_and(|known| version < known) && !planted!(StaleRegistryApplied) {
            return refused(Refused::OlderVersion);
        }
        let answer = self.sources[index].with_silent_models(kind, answer);
        let nobody = answer.is_empty() && !planted!(EmptyRegistryApplied);
        if kind == SourceKind::Observed && nobody && self.sources[index].lists_any() {
            self.mark_source_stale(now, index);
            return Applied { ignored, ..refused(Refused::Empty) };
        }
        if known == Some(version) {
            let same = self.sources[index].says(&answer) && self.sources[index].kind == kind;
            if same {
                self.mark_source_fresh(index);
            }
            let refused = (!same).then_some(Refused::VersionReused);
            return Applied { refused, ignored, ..Applied::default() };
        }
        let Some(vouches) = self.vouches(now, index, kind, answer) else {
            return Applied { ignored, ..refused(Refused::TooManyEndpoints) };
        };
        let kept = vouches.values().filter(|vouch| vouch.kept_since.is_some()).count();
        let changes = self.replace(index, kind, version, vouches);
        Applied { changes, refused: None, ignored, kept: u32::try_from(kept).unwrap_or(u32::MAX) }
    }

    /// A source is no longer configured: what it alone lists goes, stale or not.
    pub fn remove_source(&mut self, source: &str) -> Vec<Change> {
        let Some(index) = self.source_index(source) else { return Vec::new() };
        let gone = self.sources.remove(index);
        self.refresh_all(gone.vouches.into_keys().collect())
    }

    fn admit_source(&mut self, name: &str, kind: SourceKind) -> Option<usize> {
        if self.sources.len() >= self.config.sources_max as usize {
            return None;
        }
        self.sources.push(Source {
            name: name.into(),
            kind,
            version: None,
            stale_since: None,
            vouches: BTreeMap::new(),
        });
        Some(self.sources.len() - 1)
    }

    /// What the source will stand for: its answer, and what must be kept. `None` where that is more than may be; what
    /// is kept is given up before what is listed.
    fn vouches(
        &self,
        now: Instant,
        index: usize,
        kind: SourceKind,
        answer: Answer,
    ) -> Option<BTreeMap<Box<str>, Vouch>> {
        let kept = match kind {
            SourceKind::Authoritative => Vec::new(),
            SourceKind::Observed if planted!(EmptyRegistryApplied) && answer.is_empty() => {
                Vec::new()
            }
            SourceKind::Observed => self.last_of_a_model(now, index, &answer),
        };
        let fresh = answer.into_iter().map(|(name, spec)| (name, Vouch { spec, kept_since: None }));
        let mut vouches: BTreeMap<_, _> = fresh.collect();
        let mut names: BTreeSet<&str> = vouches.keys().map(|name| &**name).collect();
        names.extend(self.others(index).flat_map(|other| other.vouches.keys()).map(|name| &**name));
        let room = (self.config.endpoints_max as usize).checked_sub(names.len())?;
        let news = kept.iter().filter(|(name, _)| !names.contains(&**name)).count();
        if news <= room {
            vouches.extend(kept);
        }
        Some(vouches)
    }

    /// What the source listed and has left out, where some model would have nobody else.
    fn last_of_a_model(
        &self,
        now: Instant,
        index: usize,
        answer: &Answer,
    ) -> Vec<(Box<str>, Vouch)> {
        let others = self.others(index).flat_map(|other| other.vouches.values());
        let others = others.filter(|vouch| vouch.kept_since.is_none()).map(|vouch| &vouch.spec);
        let served: BTreeSet<&str> =
            others.chain(answer.values()).flat_map(|spec| &spec.models).map(|m| &**m).collect();
        let missing = self.sources[index].vouches.iter();
        let missing = missing.filter(|(name, _)| !answer.contains_key(*name));
        let last = missing.filter(|(_, v)| v.spec.models.iter().any(|m| !served.contains(&**m)));
        last.map(|(name, vouch)| {
            let kept_since = vouch.kept_since.or(Some(now));
            (name.clone(), Vouch { kept_since, ..vouch.clone() })
        })
        .collect()
    }

    fn others(&self, index: usize) -> impl Iterator<Item = &Source> {
        let all = self.sources.iter().enumerate();
        all.filter(move |(other, _)| *other != index).map(|(_, source)| source)
    }

    fn replace(
        &mut self,
        index: usize,
        kind: SourceKind,
        version: u64,
        vouches: BTreeMap<Box<str>, Vouch>,
    ) -> Vec<Change> {
        let source = &mut self.sources[index];
        let before = core::mem::replace(&mut source.vouches, vouches);
        let all = source.stale_since.is_some() || source.kind != kind;
        (source.kind, source.version, source.stale_since) = (kind, Some(version), None);
        let differs = |name: &str| all || before.get(name) != source.vouches.get(name);
        let touched = before.keys().chain(source.vouches.keys());
        let touched = touched.filter(|name| differs(name)).cloned().collect();
        self.refresh_all(touched)
    }

    fn mark_source_fresh(&mut self, index: usize) {
        let source = &mut self.sources[index];
        if source.stale_since.take().is_some() {
            let names = source.vouches.keys().cloned().collect();
            self.refresh_all(names);
        }
    }

    /// Removals first, so that slots never outgrow the bound.
    pub(super) fn refresh_all(&mut self, names: BTreeSet<Box<str>>) -> Vec<Change> {
        let (listed, gone): (Vec<_>, Vec<_>) = names
            .into_iter()
            .partition(|name| self.sources.iter().any(|source| source.vouches.contains_key(name)));
        let order = gone.into_iter().chain(listed);
        let changes: Vec<_> = order.filter_map(|name| self.refresh(&name)).collect();
        self.version += u64::from(!changes.is_empty());
        changes
    }

    /// Brings one endpoint in line with what the sources say.
    pub(super) fn refresh(&mut self, name: &str) -> Option<Change> {
        let known = self.find(name);
        let (id, merged) = match (known, self.merged(name)) {
            (None, None) => return None,
            (Some(id), None) => return self.remove(id),
            (None, Some(merged)) => return Some(self.insert(merged)),
            (Some(id), Some(merged)) => (id, merged),
        };
        let endpoint = self.slots.get_mut(id).expect("names lead to endpoints");
        (endpoint.stale_since, endpoint.sources) = (merged.stale_since, merged.sources);
        if endpoint.spec == merged.spec {
            return None;
        }
        let before = core::mem::replace(&mut endpoint.spec, merged.spec.clone());
        self.leave_pools(id, &before);
        self.join_pools(id, &merged.spec);
        Some(Change::Updated(id))
    }

    fn insert(&mut self, merged: Merged) -> Change {
        let Merged { spec, stale_since, sources } = merged;
        let name = spec.name.clone();
        let draining = self.drained.contains_key(&name);
        let pools = spec.clone();
        let id = self.slots.insert(|id| Endpoint { id, spec, draining, stale_since, sources });
        self.join_pools(id, &pools);
        self.names.insert(name, id);
        Change::Added(id)
    }

    fn remove(&mut self, id: EndpointId) -> Option<Change> {
        let endpoint = self.slots.remove(id)?;
        self.leave_pools(id, &endpoint.spec);
        let name = endpoint.spec.name;
        self.names.remove(&name);
        Some(Change::Removed { id, name })
    }

    fn join_pools(&mut self, id: EndpointId, spec: &EndpointSpec) {
        for model in &spec.models {
            self.pools.entry(model.clone()).or_default().insert(id);
        }
    }

    fn leave_pools(&mut self, id: EndpointId, spec: &EndpointSpec) {
        for model in &spec.models {
            if let Some(pool) = self.pools.get_mut(model) {
                pool.remove(&id);
                if pool.is_empty() {
                    self.pools.remove(model);
                }
            }
        }
    }

    /// What all sources together say of a name; `None` where none lists it.
    pub(super) fn merged(&self, name: &str) -> Option<Merged> {
        let mut listing: Vec<(&Source, &Vouch)> = self
            .sources
            .iter()
            .filter_map(|source| Some((source, source.vouches.get(name)?)))
            .collect();
        // Stable: within a kind, in order of the first answer.
        listing.sort_by_key(|(source, _)| source.kind);
        let (_, best) = listing.first()?;
        let all = listing.iter().flat_map(|(_, vouch)| &vouch.spec.models);
        let mut models: Vec<Box<str>> = Vec::new();
        let mut seen = BTreeSet::new();
        models.extend(all.filter(|model| seen.insert(&***model)).cloned());
        models.truncate(self.config.models_max as usize);
        models.sort_unstable();
        // The latest to go stale decides; one that is not stale makes all fresh.
        let stale = listing.iter().map(|(source, vouch)| vouch.kept_since.or(source.stale_since));
        let stale_since = stale.collect::<Option<Vec<_>>>().and_then(|all| all.into_iter().max());
        let sources = listing.iter().map(|(source, _)| source.name.clone()).collect();
        Some(Merged { spec: EndpointSpec { models, ..best.spec.clone() }, stale_since, sources })
    }
}

pub(super) struct Merged {
    pub(super) spec: EndpointSpec,
    pub(super) stale_since: Option<Instant>,
    pub(super) sources: Vec<Box<str>>,
}

impl Source {
    fn lists_any(&self) -> bool {
        !self.vouches.is_empty()
    }

    /// Whether the answer is what it said last.
    fn says(&self, answer: &Answer) -> bool {
        let said = self.vouches.values().filter(|vouch| vouch.kept_since.is_none());
        said.map(|vouch| &vouch.spec).eq(answer.values())
    }

    /// Discovery that lists an endpoint without models has not asked it yet: it keeps those it had.
    fn with_silent_models(&self, kind: SourceKind, mut answer: Answer) -> Answer {
        if kind == SourceKind::Observed {
            for (name, spec) in answer.iter_mut().filter(|(_, spec)| spec.models.is_empty()) {
                if let Some(vouch) = self.vouches.get(name) {
                    spec.models.clone_from(&vouch.spec.models);
                }
            }
        }
        answer
    }
}

fn checked(specs: Vec<EndpointSpec>, models_max: usize) -> (Answer, Vec<Ignored>) {
    let mut answer = Answer::new();
    let mut ignored = Vec::new();
    for mut spec in specs {
        let name = spec.name.clone();
        if name.is_empty() {
            ignored.push(Ignored::Unnamed);
            continue;
        }
        if answer.contains_key(&name) {
            ignored.push(Ignored::DuplicateName(name));
            continue;
        }
        if spec.weight == 0 {
            spec.weight = 1;
            ignored.push(Ignored::ZeroWeight(name.clone()));
        }
        spec.models = unique(spec.models);
        if spec.models.len() > models_max {
            spec.models.truncate(models_max);
            ignored.push(Ignored::ModelsCut(name.clone()));
        }
        answer.insert(name, spec);
    }
    (answer, ignored)
}

/// Without repetitions, in the order given.
fn unique(models: Vec<Box<str>>) -> Vec<Box<str>> {
    let mut seen = BTreeSet::new();
    models.into_iter().filter(|model| seen.insert(model.clone())).collect()
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::OlderVersion => "the source answered with an older version than before",
            Self::VersionReused => "the source answered twice with one version and two contents",
            Self::Empty => "the source says that nobody is there: keeping the last known endpoints",
            Self::TooManyEndpoints => "more endpoints than endpoints_max: raise it or list fewer",
            Self::TooManySources => "more sources than sources_max: remove one first",
        })
    }
}

impl fmt::Display for Ignored {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::DuplicateName(name) => write!(f, "{name} is listed twice: the first counts"),
            Self::Unnamed => f.write_str("an endpoint has no name: left out"),
            Self::ZeroWeight(name) => write!(f, "{name} has weight 0, read as 1: drain it instead"),
            Self::ModelsCut(name) => write!(f, "{name} lists too many models: the first count"),
        }
    }
}
