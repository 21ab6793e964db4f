//! Names that tell instances apart: an id is unique on the node of its agent, and a gateway looks at many nodes.

use std::collections::{BTreeMap, BTreeSet};

use super::super::Instance;

/// An instance, called by its id, and the node whose agent registered it.
#[derive(Clone)]
pub(super) struct Found {
    pub node: String,
    pub instance: Instance,
}

/// All of them under names that occur once. An id at more than one address becomes `id@node`; the others are called by
/// their ids. What is not told apart even so (twice on one node, at other ports or for other models) counts once, always
/// the same of them, and `tell` hears of it.
pub(super) fn distinct(found: Vec<Found>, mut tell: impl FnMut(String)) -> Vec<Instance> {
    let mut addresses: BTreeMap<String, BTreeSet<(String, u16)>> = BTreeMap::new();
    for Found { instance, .. } in &found {
        let at = (instance.host.clone(), instance.port);
        addresses.entry(instance.name.clone()).or_default().insert(at);
    }
    let is_shared = |id: &str| addresses.get(id).is_some_and(|at| at.len() > 1);
    let mut named: Vec<Instance> = found
        .into_iter()
        .map(|Found { node, mut instance }| {
            if is_shared(&instance.name) && !node.is_empty() {
                instance.name = format!("{}@{node}", instance.name);
            }
            instance
        })
        .collect();
    named.sort();
    named.dedup();
    named.dedup_by(|dropped, kept| {
        let is_same = dropped.name == kept.name;
        if is_same {
            let (name, url, model) = (&dropped.name, dropped.url(), &dropped.model);
            let other = (kept.url(), &kept.model);
            tell(format!(
                "{name} is registered as {url} for {model} and as {} for {}: give each worker its own id",
                other.0, other.1
            ));
        }
        is_same
    });
    named
}

#[cfg(test)]
mod tests {
    use super::super::super::Protocol;
    use super::*;

    fn found(node: &str, id: &str, host: &str, port: u16) -> Found {
        let (name, model, host) = (id.to_owned(), "m".to_owned(), host.to_owned());
        let (protocol, weight, pin) = (Protocol::Grpc, 100, None);
        let instance = Instance { name, model, protocol, host, port, weight, pin };
        Found { node: node.to_owned(), instance }
    }

    fn named(found: Vec<Found>) -> (Vec<(String, u16)>, Vec<String>) {
        let mut told = Vec::new();
        let named = distinct(found, |why| told.push(why));
        (named.into_iter().map(|one| (one.name, one.port)).collect(), told)
    }

    #[test]
    fn an_id_on_two_nodes_is_two_workers_and_others_keep_their_names() {
        let all = vec![
            found("n1", "w", "10.0.0.1", 1),
            found("n2", "w", "10.0.0.2", 1),
            found("n2", "v", "10.0.0.2", 2),
        ];
        let names = [("v".into(), 2), ("w@n1".into(), 1), ("w@n2".into(), 1)];
        assert_eq!(named(all), (names.into(), Vec::new()));
    }

    #[test]
    fn one_worker_on_the_books_of_two_agents_is_one() {
        let all = vec![found("n1", "w", "10.0.0.1", 1), found("n2", "w", "10.0.0.1", 1)];
        assert_eq!(named(all), (vec![("w".into(), 1)], Vec::new()));
    }

    #[test]
    fn what_is_dropped_is_told() {
        let all = vec![found("n1", "w", "10.0.0.1", 2), found("n1", "w", "10.0.0.1", 1)];
        let (names, told) = named(all);
        assert_eq!(names, [("w@n1".into(), 1)]);
        let [why] = told.as_slice() else { panic!("{told:?}") };
        assert!(why.contains("grpc://10.0.0.1:1") && why.contains("grpc://10.0.0.1:2"), "{why}");
    }
}
