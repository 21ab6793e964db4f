//! The run in figures, ready to be shown.

use std::collections::BTreeMap;

use crate::run::Ran;
use crate::story::{Request, Story};

/// Outcomes named one by one; all others are in the requests themselves.
const OUTCOMES_MAX: usize = 3;

/// (name, value) about the whole run.
pub(super) fn of(story: &Story, ran: &Ran) -> Vec<(String, String)> {
    let requests = &story.requests;
    let mut summary = Vec::new();
    let mut add = |name: &str, value: String| summary.push((name.to_owned(), value));
    let completed = requests.iter().filter(|request| request.outcome == "completed").count();
    add("requests", requests.len().to_string());
    add("answered whole", share(completed, requests.len()));
    let bad = requests.iter().filter(|request| !request.good).count();
    add("ended badly", share(bad, requests.len()));
    let attempts: usize = requests.iter().map(|request| request.attempts.len()).sum();
    let asked = requests.iter().filter(|request| !request.attempts.is_empty()).count();
    add("retries", format!("{} of {attempts} attempts", attempts - asked));
    let first = waits(requests, |request| {
        let first = request.attempts.iter().filter_map(|attempt| attempt.first_token_ns).min();
        first.map(|first| first - request.arrived_ns)
    });
    add("first token", halves(&first));
    let whole = waits(requests, |request| {
        let ended = request.ended_ns.filter(|_| request.outcome == "completed");
        ended.map(|ended| ended.saturating_sub(request.arrived_ns))
    });
    add("whole answer", halves(&whole));
    let tokens = requests.iter().fold(0_u64, |sum, request| sum.saturating_add(request.tokens));
    add("tokens written", tokens.to_string());
    let ejections = story.breakers.iter().filter(|turn| turn.to == "open").count();
    add("ejections", ejections.to_string());
    let placed = story.moves.iter().filter(|moved| moved.to.is_some()).count();
    let moved =
        story.moves.iter().filter(|moved| moved.to.is_some() && moved.from.is_some()).count();
    add("homes of sessions", format!("{placed} found, {moved} of them moved"));
    for (outcome, count) in commonest(requests) {
        add(&outcome, count.to_string());
    }
    add("events", ran.outcome.events.to_string());
    add("trace", format!("{:016x}", ran.outcome.hash));
    summary
}

fn share(part: usize, whole: usize) -> String {
    format!("{part} ({:.1} %)", part as f64 * 100.0 / whole.max(1) as f64)
}

fn waits(requests: &[Request], of: impl Fn(&Request) -> Option<u64>) -> Vec<u64> {
    let mut waits: Vec<u64> = requests.iter().filter_map(of).collect();
    waits.sort_unstable();
    waits
}

/// Half of them, and all but one in a hundred, took no longer.
fn halves(sorted: &[u64]) -> String {
    let at =
        |part: usize| sorted.get((sorted.len() * part / 100).min(sorted.len().saturating_sub(1)));
    match (at(50), at(99)) {
        (Some(half), Some(most)) => format!("{} ms, p99 {} ms", half / 1_000_000, most / 1_000_000),
        _ => "none".to_owned(),
    }
}

/// The commonest ways to end that are not whole answers.
fn commonest(requests: &[Request]) -> Vec<(String, usize)> {
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    for request in requests.iter().filter(|request| request.outcome != "completed") {
        *counts.entry(&request.outcome).or_default() += 1;
    }
    let mut counts: Vec<_> = counts.into_iter().map(|(name, n)| (name.to_owned(), n)).collect();
    counts.sort_by(|one, other| (other.1, &one.0).cmp(&(one.1, &other.0)));
    counts.truncate(OUTCOMES_MAX);
    counts
}
