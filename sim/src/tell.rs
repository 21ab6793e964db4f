//! A plan, run and told.
//!
//! The [`chronicle`](crate::chronicle) has noted what happened; here it becomes a [`Story`]: the hosts from the plan, the
//! faults as they began and ended, what was noted, what broke and whom that concerns, and the figures.
//!
//! A run that breaks ends there: its story is as long as what happened, and a moment more, so that the failing instant
//! does not lie on the picture's edge. A run whose machine panicked is told up to its last step. Same plan, same story.

mod figures;

use std::cell::RefCell;
use std::rc::Rc;

use control::id::{AttemptId, RequestId};
use control::plane::request_of_attempt;

use crate::check;
use crate::chronicle::{Chronicle, Notes, fault_words, id_of};
use crate::plan::{self, Host, Plan};
use crate::run::{Ran, run_with};
use crate::story::{Fault, Host as Told, HostKind, Story, Tier, Violation};
use crate::trace::Trace;

/// Shown after the failing moment.
const AFTER_NS: u64 = 400_000_000;

/// Runs a plan and tells it.
#[must_use]
pub fn story(plan: &Plan) -> Story {
    let notes = Rc::new(RefCell::new(Notes::of(plan)));
    let ran = run_with(plan, Trace::hashed(), Chronicle::into(&notes));
    compose(plan, &ran, notes.take())
}

fn compose(plan: &Plan, ran: &Ran, mut notes: Notes) -> Story {
    let broken = ran.outcome.violation.as_ref().map(|violation| violation_of(violation, &notes));
    let whole = plan.duration_ms * 1_000_000;
    let duration_ns = broken.as_ref().map_or(whole, |broken| (broken.at_ns + AFTER_NS).min(whole));
    let faults = plan.faults.iter().filter(|fault| fault.at_ms * 1_000_000 <= duration_ns);
    let hosts = hosts(plan);
    let mut faults: Vec<Fault> = faults.map(|fault| fault_of(fault, duration_ns)).collect();
    for fault in &mut faults {
        // A cut may name a store that nobody has.
        fault.hosts.retain(|id| hosts.iter().any(|host| host.id == *id));
    }
    let quotas = notes.quotas.told(&notes.names);
    let mut requests = notes.requests.into_story(&notes.names);
    requests.sort_by(|one, other| (one.arrived_ns, &one.id).cmp(&(other.arrived_ns, &other.id)));
    let mut story = Story {
        title: title(plan, &faults),
        seed: plan.seed,
        tier: Tier::A,
        duration_ns,
        command: command(plan),
        hosts,
        requests,
        faults,
        breakers: notes.breakers,
        moves: notes.moves,
        quotas,
        marks: notes.marks.list,
        violation: broken,
        summary: Vec::new(),
    };
    concern_its_hosts(&mut story);
    story.summary = figures::of(&story, ran);
    story
}

/// Whom the blamed request met belongs to what broke.
fn concern_its_hosts(story: &mut Story) {
    let Some(violation) = &mut story.violation else { return };
    let blamed = violation.request.as_ref();
    let blamed = blamed.and_then(|id| story.requests.iter().find(|request| request.id == *id));
    let Some(request) = blamed else { return };
    let met = request.attempts.iter().map(|attempt| attempt.replica);
    for host in std::iter::once(request.gateway).chain(met) {
        if !violation.hosts.contains(&host) {
            violation.hosts.push(host);
        }
    }
}

fn title(plan: &Plan, faults: &[Fault]) -> String {
    if !plan.what.starts_with("drawn from seed") {
        return plan.what.clone();
    }
    let mut kinds: Vec<&str> = Vec::new();
    for fault in faults {
        if !kinds.contains(&fault.kind.as_str()) {
            kinds.push(&fault.kind);
        }
    }
    let (named, more) = kinds.split_at(kinds.len().min(3));
    let title = match (named.is_empty(), more.len()) {
        (true, _) => "a calm world".to_owned(),
        (false, 0) => named.join(", "),
        (false, more) => format!("{} and {more} more", named.join(", ")),
    };
    let mut letters = title.chars();
    letters.next().map_or_else(String::new, |first| first.to_uppercase().chain(letters).collect())
}

/// A plan that its seed still gives is run by its seed; any other by its file.
fn command(plan: &Plan) -> String {
    match plan::draw(plan.seed) == *plan {
        true => format!("cargo sim run --seed {}", plan.seed),
        false => "cargo sim run --plan PLAN.json".to_owned(),
    }
}

fn hosts(plan: &Plan) -> Vec<Told> {
    let topology = &plan.topology;
    let gateways = (0..topology.gateways.len() as u32).map(Host::Gateway);
    let replicas = (0..topology.replicas.len() as u32).map(Host::Replica);
    let store = topology.shared.then_some(Host::Store);
    let registry = (topology.registry_every_ms > 0).then_some(Host::Registry);
    let all = std::iter::once(Host::Clients).chain(gateways).chain(replicas);
    let told = |host: Host| Told { id: id_of(host), name: host.to_string(), kind: kind_of(host) };
    all.chain(store).chain(registry).map(told).collect()
}

const fn kind_of(host: Host) -> HostKind {
    match host {
        Host::Gateway(_) => HostKind::Gateway,
        Host::Replica(_) => HostKind::Replica,
        Host::Store => HostKind::Store,
        Host::Registry => HostKind::Registry,
        Host::Clients => HostKind::Clients,
    }
}

fn fault_of(fault: &plan::Fault, duration_ns: u64) -> Fault {
    let (kind, text, hosts) = fault_words(&fault.kind);
    let start_ns = fault.at_ms * 1_000_000;
    let lasts = !matches!(
        fault.kind,
        plan::FaultKind::StoreFailover { .. }
            | plan::FaultKind::Reload { .. }
            | plan::FaultKind::ClockJump { .. }
    );
    let until = fault.until_ms.map(|until| until * 1_000_000);
    let end_ns = if lasts { until.filter(|until| *until <= duration_ns) } else { Some(start_ns) };
    Fault {
        start_ns,
        end_ns,
        hosts: hosts.into_iter().map(id_of).collect(),
        kind: kind.to_owned(),
        text,
    }
}

/// Whom and which request a violation's text names.
fn violation_of(broken: &check::Violation, notes: &Notes) -> Violation {
    let (latest_at, latest_gateway) = notes.latest;
    // A panic says nothing of its instant.
    let at_ns = if broken.at == 0 { latest_at } else { broken.at };
    let named = hosts_in(&broken.text);
    let gateway = named.iter().find_map(|host| match host {
        Host::Gateway(index) => Some(*index),
        Host::Replica(_) | Host::Store | Host::Registry | Host::Clients => None,
    });
    let near = gateway.unwrap_or(latest_gateway);
    let request = words_of(&broken.text).find_map(|word| request_in(word, near, notes));
    Violation {
        at_ns,
        invariant: broken.invariant.number(),
        name: broken.invariant.name().to_owned(),
        text: notes.names.named(near, &broken.text),
        hosts: named.into_iter().map(id_of).collect(),
        request,
    }
}

fn words_of(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_alphanumeric() || c == '_' || c == '-')).filter(|w| !w.is_empty())
}

fn hosts_in(text: &str) -> Vec<Host> {
    let mut hosts = Vec::new();
    for word in words_of(text) {
        let index = |prefix: &str| word.strip_prefix(prefix)?.parse().ok();
        let host = index("gateway-").map(Host::Gateway).or(index("replica-").map(Host::Replica));
        let host = host.or((word == "store").then_some(Host::Store));
        hosts.extend(host.filter(|host| !hosts.contains(host)));
    }
    hosts
}

fn request_in(word: &str, gateway: u32, notes: &Notes) -> Option<String> {
    let attempt = || AttemptId::parse(word).map(request_of_attempt);
    let id = RequestId::parse(word).or_else(attempt)?;
    notes.requests.name_of(gateway, id)
}
