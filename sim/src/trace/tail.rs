//! The last words of a run: of everything that happened, what concerns the moment at which it broke.
//!
//! **The problem.** The last fifteen events of a world with fifty gateways are fifteen events of other gateways. So lines
//! are kept with whom they concern, and in the end those are picked that share an id, a gateway or a replica with what the
//! judge said. **Rejected:** the last lines as they come; and asking the judge for what concerns it, which would make every
//! checker carry a story.

use std::collections::{BTreeMap, VecDeque};

use control::id::{AttemptId, CallerToken, RequestId};
use control::plane::{Effect, Input};
use control::quota::{Entry, OpId};
use control::shared::SharedOpId;

use super::words;
use crate::check::Violation;
use crate::plan::Plan;

/// Keeps what happened in words, to tell the end of it.
pub struct Tail {
    faults: Vec<String>,
    lines: VecDeque<Line>,
    /// Which request is behind each id that a gateway uses for it.
    callers: BTreeMap<(u32, CallerToken), RequestId>,
    attempts: BTreeMap<(u32, AttemptId), (RequestId, Box<str>)>,
    asks: BTreeMap<(u32, OpId), RequestId>,
    consults: BTreeMap<(u32, SharedOpId), RequestId>,
}

/// One thing that happened.
struct Line {
    at: u64,
    /// Which gateway it happened to. `None`: to the world.
    gateway: Option<u32>,
    text: String,
}

/// Lines that are kept. A run has some twenty thousand; one of the largest worlds ten times that, of which the first are
/// forgotten.
const LINES_MAX: usize = 100_000;

/// Lines that are told, and how many of them are the very last, whomever they concern.
const TOLD: usize = 15;
const LAST: usize = 3;

impl Tail {
    /// For a run of this plan.
    #[must_use]
    pub fn new(plan: &Plan) -> Self {
        Self {
            faults: plan.faults.iter().map(ToString::to_string).collect(),
            lines: VecDeque::new(),
            callers: BTreeMap::new(),
            attempts: BTreeMap::new(),
            asks: BTreeMap::new(),
            consults: BTreeMap::new(),
        }
    }

    /// The last lines that concern a violation, each with its time.
    #[must_use]
    pub fn told(&self, violation: &Violation) -> Vec<String> {
        let mut names = Names::of(&violation.text);
        let until = self.lines.iter().rposition(|line| line.at <= violation.at);
        // A machine that panicked has no time: then everything happened before.
        let until = if violation.at == 0 { self.lines.len() } else { until.map_or(0, |at| at + 1) };
        if names.gateways.is_empty() {
            // Ids are a gateway's own: the one that spoke of it last is the one that is meant.
            let mut named = self.lines.range(..until).rev().filter(|line| names.concern(line));
            names.gateways.extend(named.find_map(|line| line.gateway));
        }
        let mut picked: Vec<usize> = (0..until).rev().take(LAST).collect();
        let concerned = (0..until).rev().skip(LAST);
        let concerned = concerned.filter(|at| names.concern(&self.lines[*at]));
        picked.extend(concerned.take(TOLD - picked.len()));
        picked.sort_unstable();
        picked.into_iter().map(|at| self.lines[at].told()).collect()
    }

    pub(super) fn step(&mut self, at: u64, gateway: u32, input: &Input, effects: &[Effect]) {
        let request = self.learn(gateway, input, effects);
        let done: Vec<String> = effects.iter().map(words::effect).collect();
        let mut seen = words::input(input);
        if let (Some(seen), Some(replica)) = (&mut seen, self.replica(gateway, input)) {
            seen.push_str(&format!(" at {replica}"));
        }
        if seen.is_none() && done.is_empty() {
            return;
        }
        let mut text = seen.unwrap_or_else(|| "acts in time".to_owned());
        if let Some(request) = request.map(|request| request.to_string())
            && !text.contains(&request)
        {
            text = format!("{text} ({request})");
        }
        if !done.is_empty() {
            text = format!("{text}; {}", done.join("; "));
        }
        self.push(at, Some(gateway), text);
    }

    pub(super) fn store(&mut self, at: u64, entry: &Entry) {
        self.push(at, None, format!("the store {}", words::fact(&entry.fact)));
    }

    pub(super) fn fault(&mut self, at: u64, fault: u32, began: bool) {
        let what = self.faults.get(fault as usize).map_or("a fault", String::as_str);
        let text = format!("{}: {what}", if began { "begins" } else { "ends" });
        self.push(at, None, text);
    }

    fn push(&mut self, at: u64, gateway: Option<u32>, text: String) {
        if self.lines.len() == LINES_MAX {
            self.lines.pop_front();
        }
        self.lines.push_back(Line { at, gateway, text });
    }

    /// Where the attempt is that an input is about.
    fn replica(&self, gateway: u32, input: &Input) -> Option<&str> {
        let (Input::AttemptAccepted { attempt }
        | Input::FirstToken { attempt }
        | Input::Progress { attempt, .. }
        | Input::AttemptEnded { attempt, .. }) = input
        else {
            return None;
        };
        self.attempts.get(&(gateway, *attempt)).map(|(_, replica)| &**replica)
    }

    /// Notes which ids mean which request, and says which one this step is about.
    fn learn(&mut self, gateway: u32, input: &Input, effects: &[Effect]) -> Option<RequestId> {
        for effect in effects {
            match effect {
                Effect::Admitted { caller, request } => {
                    self.callers.insert((gateway, *caller), *request);
                }
                Effect::Dispatch(order) => {
                    let to = (order.request, order.endpoint_name.clone());
                    self.attempts.insert((gateway, order.attempt), to);
                }
                Effect::Reserve(_)
                | Effect::Consult(_)
                | Effect::Note(_)
                | Effect::LedgerAnswered { .. }
                | Effect::Cancel { .. }
                | Effect::Persist(_)
                | Effect::Reject { .. }
                | Effect::Finish { .. } => {}
            }
        }
        let request = match input {
            Input::RequestArrived(arrival) => self.callers.get(&(gateway, arrival.caller)),
            Input::ClientGone { caller } => self.callers.get(&(gateway, *caller)),
            Input::AttemptAccepted { attempt }
            | Input::FirstToken { attempt }
            | Input::Progress { attempt, .. }
            | Input::AttemptEnded { attempt, .. } => {
                self.attempts.get(&(gateway, *attempt)).map(|(request, _)| request)
            }
            Input::StoreAnswered(answer) => self.asks.get(&(gateway, answer.op)),
            Input::StoreFailed { op } => self.asks.get(&(gateway, *op)),
            Input::Consulted(answer) => self.consults.get(&(gateway, answer.op)),
            Input::ConsultFailed { op } => self.consults.get(&(gateway, *op)),
            Input::Housed(housed) => self.consults.get(&(gateway, housed.op)),
            Input::Restarted { .. }
            | Input::WallTime(_)
            | Input::Configured(_)
            | Input::Membership { .. }
            | Input::SourceLost { .. }
            | Input::Drain { .. }
            | Input::LedgerAsked { .. }
            | Input::LoadReported { .. }
            | Input::Timeout => None,
        };
        let request = request.copied();
        if let Some(request) = request {
            for effect in effects {
                if let Effect::Reserve(op) = effect {
                    self.asks.insert((gateway, op.op), request);
                } else if let Effect::Consult(consult) = effect {
                    self.consults.insert((gateway, consult.op), consult.request);
                } else if let Effect::Note(note) = effect {
                    self.consults.insert((gateway, note.op), request);
                }
            }
        }
        request
    }
}

impl Line {
    fn told(&self) -> String {
        let who = self.gateway.map(|index| format!("gateway-{index}: ")).unwrap_or_default();
        format!("{:>12.6} s  {who}{}", self.at as f64 / 1e9, self.text)
    }
}

/// What a violation names.
struct Names {
    gateways: Vec<u32>,
    /// Requests, attempts, reservations, accounts, sessions.
    ids: Vec<String>,
    replicas: Vec<String>,
}

impl Names {
    fn of(text: &str) -> Self {
        let words = text.split(|c: char| !(c.is_alphanumeric() || matches!(c, '_' | '-')));
        let mut names = Self { gateways: Vec::new(), ids: Vec::new(), replicas: Vec::new() };
        for word in words {
            if let Some(index) = word.strip_prefix("gateway-").and_then(|text| text.parse().ok()) {
                names.gateways.push(index);
            } else if word.starts_with("replica-") {
                names.replicas.push(word.to_owned());
            } else if words::is_id(word) {
                names.ids.push(word.to_owned());
            }
        }
        names
    }

    /// The narrowest thing that is named decides: an id, then a replica, then a gateway.
    fn concern(&self, line: &Line) -> bool {
        let at_gateway = self.gateways.is_empty()
            || line.gateway.is_none_or(|gateway| self.gateways.contains(&gateway));
        let narrow = if self.ids.is_empty() { &self.replicas } else { &self.ids };
        let named = narrow.is_empty() || narrow.iter().any(|name| contains(&line.text, name));
        at_gateway && named
    }
}

/// Whether a name stands in a text as a whole: `req_1-2` is not in `req_1-2d`.
fn contains(text: &str, name: &str) -> bool {
    text.match_indices(name).any(|(at, _)| {
        let after = text[at + name.len()..].chars().next();
        !after.is_some_and(char::is_alphanumeric)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::check::Invariant;
    use crate::plan::draw;

    #[test]
    fn what_concerns_nobody_named_is_left_out() {
        let mut tail = Tail::new(&draw(1));
        for at in 0..40 {
            tail.push(at, Some(0), format!("att_1-{at:x} brings its first token (req_1-2)"));
            tail.push(at, Some(1), "att_1-1 brings its first token (req_1-2)".to_owned());
            tail.push(at, Some(0), "client 3 hangs up (req_1-2d)".to_owned());
        }
        let told = tail.told(&violation("gateway-0: req_1-2 is lost", 20));
        assert_eq!(told.len(), TOLD);
        let others = told.iter().filter(|line| !line.contains("gateway-0: att_")).count();
        assert!(others <= LAST, "{told:#?}");
        assert!(told.iter().all(|line| !line.contains("0.000021")), "{told:#?}");
    }

    #[test]
    fn an_id_without_a_gateway_means_the_gateway_that_spoke_of_it_last() {
        let mut tail = Tail::new(&draw(1));
        for (gateway, at) in [(0, 1), (1, 2), (0, 3), (1, 4)] {
            tail.push(at, Some(gateway), "sends req_1-2 to replica-3".to_owned());
        }
        for at in 5..8 {
            tail.push(at, Some(2), "hears nothing from consul".to_owned());
        }
        let told = tail.told(&violation("req_1-2 is sent twice", 7));
        assert_eq!(told.iter().filter(|line| line.contains("gateway-1")).count(), 2, "{told:?}");
        assert!(!told.iter().any(|line| line.contains("gateway-0")), "{told:?}");
    }

    fn violation(text: &str, at: u64) -> Violation {
        Violation { invariant: Invariant::Outcome, at, text: text.to_owned() }
    }
}
