//! Figures by endpoint, dropped when it leaves: in a fleet whose members change names they would only grow.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Mutex, PoisonError};

use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::registry::Registry;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Attempted {
    instance: String,
    outcome: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct Moved {
    instance: String,
    to: &'static str,
}

/// What is counted of each endpoint.
#[derive(Default)]
pub(super) struct Series {
    attempts: Family<Attempted, Counter>,
    transitions: Family<Moved, Counter>,
    /// The labels in use: a family does not tell its own. Held while either is changed.
    seen: Mutex<BTreeMap<String, Seen>>,
}

#[derive(Default)]
struct Seen {
    outcomes: BTreeSet<&'static str>,
    moves: BTreeSet<&'static str>,
}

impl Series {
    pub fn register(&self, registry: &mut Registry) {
        registry.register("pointsman_attempts", "Attempts by their end", self.attempts.clone());
        let help = "Breakers that moved";
        registry.register("pointsman_breaker_transitions", help, self.transitions.clone());
    }

    /// An attempt there ended so.
    pub fn attempted(&self, instance: String, outcome: &'static str) {
        let mut seen = self.seen();
        of(&mut seen, &instance).outcomes.insert(outcome);
        self.attempts.get_or_create(&Attempted { instance, outcome }).inc();
    }

    /// Its breaker moved there.
    pub fn moved(&self, instance: String, to: &'static str) {
        let mut seen = self.seen();
        of(&mut seen, &instance).moves.insert(to);
        self.transitions.get_or_create(&Moved { instance, to }).inc();
    }

    /// It has left.
    pub fn forget(&self, instance: &str) {
        let mut all = self.seen();
        let seen = all.remove(instance).unwrap_or_default();
        for outcome in seen.outcomes {
            self.attempts.remove(&Attempted { instance: instance.to_owned(), outcome });
        }
        for to in seen.moves {
            self.transitions.remove(&Moved { instance: instance.to_owned(), to });
        }
    }

    fn seen(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Seen>> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn of<'a>(all: &'a mut BTreeMap<String, Seen>, instance: &str) -> &'a mut Seen {
    if !all.contains_key(instance) {
        all.insert(instance.to_owned(), Seen::default());
    }
    all.get_mut(instance).expect("it was put there")
}
