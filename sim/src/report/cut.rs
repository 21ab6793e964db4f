//! What of a story goes into the page, and what is left out.
//!
//! Runs have no upper size and pages must: each list is held to a number of items, to a number of bytes, and each text to a
//! length. The violating request goes in first, then what lies nearest to the failing moment. When nothing failed, what
//! went wrong goes in first and the rest is thinned evenly, so that no part of the run looks idle. Rejected: to cut at an
//! instant, which keeps a calm beginning and drops the end that everybody came for.
//!
//! Figures that speak of the whole run (how many requests arrived and failed in each slice) are counted before the cut.

use serde::Serialize;
use serde_json::{Map, Value, json};

use super::script_safe;
use crate::story::{HostKind, Quota, Request, Story};

/// Requests kept. With more, their bars are thinner than a pixel even when the window is narrow.
pub const REQUESTS_MAX: usize = 5_000;
/// Hosts kept: 50 gateways, 500 replicas, and as many again. The page shows the concerned ones first.
pub const HOSTS_MAX: usize = 1_100;
/// Faults kept. Plans hold dozens.
pub const FAULTS_MAX: usize = 1_000;
/// Changes of breakers kept: ten for each of 500 replicas.
pub const BREAKERS_MAX: usize = 5_000;
/// Moves of sessions kept: one for each request.
pub const MOVES_MAX: usize = 5_000;
/// Marks kept: restarts and reloads of 500 hosts, twice each.
pub const MARKS_MAX: usize = 2_000;
/// Accounts kept: the page can show no more lines than that one above the other.
pub const QUOTAS_MAX: usize = 24;
/// Points kept of an account's line: about one for each pixel of a screen.
pub const POINTS_MAX: usize = 800;
/// Characters kept of any text. A reason that needs more is a log.
pub const TEXT_MAX: usize = 600;
/// Lines of an explanation kept, and also attempts of a request and hosts of a fault.
pub const EXPLANATION_MAX: usize = 64;

/// Bytes of all requests in the page: 1,250 for each, twice what a usual one takes.
const REQUEST_BYTES_MAX: usize = 6 << 20;
/// Bytes of any other list in the page.
const LIST_BYTES_MAX: usize = 1 << 20;
/// Slices of the overview: each is some four pixels wide.
const SLICES: usize = 300;

/// What goes into the page.
pub struct Cut {
    /// An object: the story's lists, plus `tally`, and `seed` as a text (JavaScript's numbers cannot hold it).
    pub data: Value,
    /// What is missing, one sentence for each list.
    pub left_out: Vec<String>,
}

/// Chooses.
pub fn cut(story: &Story) -> Cut {
    let mut data = Map::new();
    let mut left_out = Vec::new();
    let mut put = |name: &'static str, kept: Kept| {
        left_out.extend(kept.missing());
        data.insert(name.to_owned(), Value::Array(kept.values));
    };
    put("requests", requests(story));
    put("hosts", hosts(story));
    let far = |start, end| distance(story, start, end);
    let by_time = |at: u64| far(at, at);
    let faults = story.faults.iter().map(|f| (far(f.start_ns, end(story, f.end_ns)), f));
    put("faults", keep("faults", faults, FAULTS_MAX, LIST_BYTES_MAX));
    let breakers = story.breakers.iter().map(|b| (by_time(b.at_ns), b));
    put("breakers", keep("changes of breakers", breakers, BREAKERS_MAX, LIST_BYTES_MAX));
    let moves = story.moves.iter().map(|m| (by_time(m.at_ns), m));
    put("moves", keep("moves of sessions", moves, MOVES_MAX, LIST_BYTES_MAX));
    let marks = story.marks.iter().map(|m| (by_time(m.at_ns), m));
    put("marks", keep("marks", marks, MARKS_MAX, LIST_BYTES_MAX));
    let thin: Vec<Quota> = story.quotas.iter().take(QUOTAS_MAX).map(thinned).collect();
    let mut quotas = keep("accounts", thin.iter().map(|q| ((0, 0), q)), QUOTAS_MAX, LIST_BYTES_MAX);
    quotas.of = story.quotas.len();
    put("quotas", quotas);
    data.insert("violation".to_owned(), clipped(&story.violation));
    data.insert("seed".to_owned(), json!(story.seed.to_string()));
    data.insert("duration_ns".to_owned(), json!(story.duration_ns));
    data.insert("tally".to_owned(), tally(story));
    Cut { data: Value::Object(data), left_out }
}

/// Where something stands in the queue for a place: smaller goes first.
type Rank = (u64, u64);

struct Kept {
    name: &'static str,
    values: Vec<Value>,
    of: usize,
}

impl Kept {
    fn missing(&self) -> Option<String> {
        let missing = self.of - self.values.len();
        (missing > 0).then(|| format!("{missing} of {} {}", self.of, self.name))
    }
}

fn requests(story: &Story) -> Kept {
    let named = story.violation.as_ref().and_then(|violation| violation.request.as_ref());
    let rank = |request: &Request| -> Rank {
        if Some(&request.id) == named {
            return (0, 0);
        }
        let (far, _) = distance(story, request.arrived_ns, end(story, request.ended_ns));
        let fine = story.violation.is_none() && request.good;
        (far.saturating_add(1), u64::from(fine))
    };
    let ranked = story.requests.iter().map(|request| (rank(request), request));
    keep("requests", ranked, REQUESTS_MAX, REQUEST_BYTES_MAX)
}

/// Replicas are the many: where hosts must go, they do.
fn hosts(story: &Story) -> Kept {
    let concerned = story.violation.as_ref().map_or(&[][..], |violation| &violation.hosts);
    let rank = |id, kind| match kind {
        _ if concerned.contains(&id) => (0, 0),
        HostKind::Clients | HostKind::Gateway | HostKind::Store | HostKind::Registry => (0, 1),
        HostKind::Replica => (0, 2),
    };
    let ranked = story.hosts.iter().map(|host| (rank(host.id, host.kind), host));
    keep("hosts", ranked, HOSTS_MAX, LIST_BYTES_MAX)
}

/// From the failing moment, in ns; nothing when nothing failed.
fn distance(story: &Story, start: u64, end: u64) -> Rank {
    let Some(violation) = &story.violation else { return (0, 0) };
    let at = violation.at_ns;
    (start.saturating_sub(at).max(at.saturating_sub(end)), 0)
}

fn end(story: &Story, end: Option<u64>) -> u64 {
    end.unwrap_or(story.duration_ns)
}

/// The first in rank that fit, in their old order. Among equals, every other one goes first, then every fourth, and so on:
/// reversed bits of the index are spread evenly wherever one stops.
fn keep<'a, T: Serialize + 'a>(
    name: &'static str,
    ranked: impl Iterator<Item = (Rank, &'a T)>,
    count_max: usize,
    bytes_max: usize,
) -> Kept {
    let mut queue: Vec<_> = ranked.enumerate().map(|(at, (rank, item))| (rank, at, item)).collect();
    let of = queue.len();
    queue.sort_by_key(|(rank, at, _)| (*rank, at.reverse_bits()));
    let mut kept: Vec<(usize, Value)> = Vec::new();
    let mut room = bytes_max;
    for (_, at, item) in queue.into_iter().take(count_max) {
        let value = clipped(item);
        // A comma stands between it and the next.
        let bytes = script_safe(&value.to_string()).len() + 1;
        // The first that does not fit ends it: a smaller one behind it would make a gap that nobody can explain.
        let Some(left) = room.checked_sub(bytes) else { break };
        room = left;
        kept.push((at, value));
    }
    kept.sort_by_key(|(at, _)| *at);
    Kept { name, values: kept.into_iter().map(|(_, value)| value).collect(), of }
}

fn clipped(item: &impl Serialize) -> Value {
    let mut value = serde_json::to_value(item).expect("a story is plain data");
    clip(&mut value);
    value
}

fn clip(value: &mut Value) {
    match value {
        Value::String(text) => *text = clip_text(text),
        Value::Array(items) if items.first().is_some_and(Value::is_array) => {}
        Value::Array(items) => {
            let more = items.len().saturating_sub(EXPLANATION_MAX);
            items.truncate(EXPLANATION_MAX);
            items.iter_mut().for_each(clip);
            if let (true, Some(Value::String(last))) = (more > 0, items.last_mut()) {
                *last = format!("({} more lines)", more + 1);
            }
        }
        Value::Object(fields) => fields.values_mut().for_each(clip),
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// At most [`TEXT_MAX`] characters, and a word about the rest.
pub fn clip_text(text: &str) -> String {
    match text.char_indices().nth(TEXT_MAX) {
        None => text.to_owned(),
        Some((at, _)) => format!("{}… ({} characters)", &text[..at], text.chars().count()),
    }
}

/// Of each run of neighbouring points the first and the highest, so that no peak is lost.
fn thinned(quota: &Quota) -> Quota {
    let stride = (quota.points.len() * 2).div_ceil(POINTS_MAX).max(2);
    let thin = |run: &[(u64, u64, u64)]| {
        let peak = run.iter().skip(1).max_by_key(|(_, spent, out)| spent.saturating_add(*out));
        run.first().into_iter().chain(peak).copied().collect::<Vec<_>>()
    };
    let points = quota.points.chunks(stride).flat_map(thin).collect();
    Quota { account: quota.account.clone(), limit: quota.limit, points }
}

/// How many requests arrived, and how many ended badly, in each slice of the run: all of them, also those left out.
fn tally(story: &Story) -> Value {
    let mut arrived = vec![0_u32; SLICES];
    let mut failed = vec![0_u32; SLICES];
    let slice = |at: u64| {
        let share = u128::from(at) * SLICES as u128 / u128::from(story.duration_ns.max(1));
        usize::try_from(share).map_or(SLICES - 1, |slice| slice.min(SLICES - 1))
    };
    for request in &story.requests {
        arrived[slice(request.arrived_ns)] += 1;
        if !request.good {
            failed[slice(end(story, request.ended_ns))] += 1;
        }
    }
    let bad = story.requests.iter().filter(|request| !request.good).count();
    json!({"arrived": arrived, "failed": failed, "requests": story.requests.len(), "bad": bad})
}
